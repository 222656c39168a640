-------------------------------- MODULE AnyState --------------------------------
(* One step from any state, reachable or not. The state graph shows that the Python
   model and GVisorRuntime agree wherever a launch can come; this module shows that
   they agree as functions: StateData, written by tests/spec/test_semantics.py, has
   states at random, TLC says which properties each breaks and takes every step out
   of it, and the model must say and do the same. `budget` numbers the states.     *)
EXTENDS GVisorRuntime, Sequences, TLC, StateData

AnyInit ==
    \E n \in 1 .. Len(Given) : LET s == Given[n] IN
        /\ state = s.state /\ cause = s.cause
        /\ enforcement = s.enforcement /\ confinement = s.confinement /\ method = s.method /\ program = s.program
        /\ alive = s.alive /\ request = s.request
        /\ path = s.path /\ held = s.held /\ pin = s.pin /\ staged = s.staged /\ fit = s.fit
        /\ base = s.base /\ bundle = s.bundle /\ lock = s.lock /\ residue = s.residue
        /\ userns = s.userns /\ landlock = s.landlock /\ holds = s.holds /\ space = s.space
        /\ execve = s.execve /\ calls = s.calls /\ cache = s.cache
        /\ confined = s.confined /\ proved = s.proved /\ image = s.image /\ guest = s.guest
        /\ budget = n

Nowhere == {}

(* An action constraint: no step out of what a step has led to. *)
OneStep == TLCGet("level") = 1

Says ==
    [TypeOK |-> TypeOK, RunsVerifiedBytes |-> RunsVerifiedBytes, PinHonoured |-> PinHonoured,
     RequiredMeansConfined |-> RequiredMeansConfined, NothingRunsUnlessExecd |-> NothingRunsUnlessExecd,
     FailedLeavesNothing |-> FailedLeavesNothing, CauseIffFailed |-> CauseIffFailed,
     ConfinedCanMount |-> ConfinedCanMount, ProofIsOfConfinement |-> ProofIsOfConfinement,
     ExecMeansAllWasWell |-> ExecMeansAllWasWell, ConfinedMeansHostCan |-> ConfinedMeansHostCan,
     SkippedMeansCannot |-> SkippedMeansCannot, CauseIsTrue |-> CauseIsTrue]

(* Always true; the test reads what it prints. *)
Reported == PrintT(<<"says", budget, {name \in DOMAIN Says : ~Says[name]}>>)
================================================================================
