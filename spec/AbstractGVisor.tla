---------------------------- MODULE AbstractGVisor ----------------------------
(* What a launch is for, seen from inside the guest: it has the host's own
   kernel beneath it, or gVisor's, and under gVisor's every system call is
   intercepted. There is one step, and no way back.

   GVisorRuntime refines this module; its RefinesAbstract is checked by TLC
   whenever GVisorRuntime is.                                              *)

VARIABLES
    kernel,       \* who answers the guest's system calls
    intercepted   \* is every one of them intercepted

vars == <<kernel, intercepted>>

TypeOK ==
    /\ kernel \in {"native_kernel", "gvisor_kernel"}
    /\ intercepted \in BOOLEAN

Init == kernel = "native_kernel" /\ intercepted = FALSE

EnableGVisor ==
    /\ kernel = "native_kernel"
    /\ kernel' = "gvisor_kernel"
    /\ intercepted' = TRUE

Next == EnableGVisor

Spec == Init /\ [][Next]_vars

NativeMeansNotIntercepted == (kernel = "gvisor_kernel") <=> intercepted
===============================================================================
