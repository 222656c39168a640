-------------------------------- MODULE MustFail --------------------------------
(* What TLC must refute. A specification that cannot fail shows nothing, so each
   configuration of this module is expected to be answered with a named violation
   (manifest.json), and the build breaks when it is not.

   The configurations replace definitions of GVisorRuntime by the ones below, with
   TLC's `Name <- Other`; the specification itself has no switches.              *)
EXTENDS MCGVisorRuntime

--------------------------------------------------------------------------------
(* The reference's four faults, one configuration each: reference-*.cfg. Behind the
   guard that the first two lack stands a second one here, Evidenced. The reference
   has nothing like it, so their configurations take it away as well.            *)

NoEvidence == TRUE

(* PolicyOnlyIfRootless. gvisor.rs:363 asks for the policy only when runsc runs
   rootless, whatever `require_supervisor_exec_policy` says. Here it does not.   *)
Rootless        == FALSE
AskedIfRootless == enforcement # "off" /\ Rootless

(* ReopensByPath. gvisor.rs:834 opens the path again to copy from it, and takes what
   lies there by then for what was judged.                                       *)
TakenByPath  == IF path = "trusted" THEN held ELSE "rewritten"
PathStillHas == path # "absent"

(* StagesOwnerOnly. gvisor.rs:859 makes the staged file 0500. runsc executes itself
   again as nobody, which may not read it, and waits for its sandbox for ever.   *)
OwnerOnlyBoots == ~(program = "runsc" /\ (confined = "landlock" \/ method = "copy"))

(* LandlockForRunsc. gvisor.rs:898 puts Landlock around a program that must mount. *)
AlwaysCompatible == TRUE

--------------------------------------------------------------------------------
(* Fairness: without it nothing has to end, and each of its terms is needed. *)

Unfair            == Init /\ [][Next]_vars
UnfairSystem      == Unfair /\ WF_vars(GuestStarts) /\ WF_vars(Collect)
UnfairGuestStarts == Unfair /\ WF_vars(System) /\ WF_vars(Collect)
UnfairCollect     == Unfair /\ WF_vars(System) /\ WF_vars(GuestStarts)

--------------------------------------------------------------------------------
(* Refinement: a guest that falls back to the host's own kernel is refuted. *)

FallBack ==
    /\ guest = "running" /\ guest' = "none"
    /\ UNCHANGED <<state, cause, options, alive, request, binary, held, staged, place, lock, residue, host, achieved,
                   image, budget>>

FallsBack == Init /\ [][Next \/ FallBack]_vars

--------------------------------------------------------------------------------
(* Non-vacuity: what the liveness properties speak of does happen. Each of these
   says that it never does; reached.cfg expects every one to be violated.        *)

OneLaunch == {[Pairs EXCEPT !.budget = 1]}

NothingLeftByKill == alive \/ residue = {}                \* the two premises of CrashCollected
NothingLeftByFail == state # "Failed" \/ residue = {}
NeverKilled       == alive                                \* the three ends of EveryLaunchEnds
NeverFailed       == state # "Failed"
NeverExecd        == state # "Exec'd"                     \* and the premise of GuestRuns,
NeverRuns         == guest # "running"                    \* with its conclusion
================================================================================
