------------------------------- MODULE MCConcurrent -------------------------------
(* Two launches of one container id and a collector, of which any two may be killed
   at any point; and what TLC must refute: the lock without one of its two guards,
   and a base that nobody comes back to.                                           *)
EXTENDS Concurrent

Unguarded(p) == TRUE

(* The collector comes at the beginning, and never again. *)
ComesOnce ==
    /\ Init /\ [][Next]_vars
    /\ \A p \in Processes : WF_vars(Step(p))
    /\ \A l \in Launchers : WF_vars(Launch(l)) /\ WF_vars(Ends(l))
    /\ WF_vars(Finds)
================================================================================
