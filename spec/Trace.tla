---------------------------------- MODULE Trace ----------------------------------
(* Are these records behaviours of GVisorRuntime? TraceData, written by trace.py,
   has the lines of many records; TLC follows all of them at once and prints how far
   it came with each, and why it came no further. TRACE_FORMAT.md says what a line is.

   Between two lines the environment may act, as far as the later line says that it
   was seen; then the line's action must be possible and lead to the line's facts,
   and its evidence may not contradict them. A line's time and duration are not
   judged. A killed launch writes nothing about it, so Kill is no part of a record,
   and one may end anywhere, unless its head is known.

   Each line of Traces[t] is a record with
       seq, prev, hash, owner   its place in the chain; digests are numbers here,
                                equal for equal digests, and 0 is the first line's prev
       action, source, dest     as written, "?" where it is none of ours
       sound                    does `seen` have variables of the world, with values
                                that they can have
       seen, facts              as written
       claims                   values that the evidence gives to variables
   Heads[t] is the hash of the record's last line, or 0 where nobody kept it.       *)
EXTENDS GVisorRuntime, Sequences, TLC, TraceData

VARIABLES
    trace,   \* which record
    line     \* how many of its lines are accepted

(* Every way to ask; as many events as there are. *)
Anything ==
    [enforcement : Enforcements, confinement : Confinements, method : Methods, program : Programs,
     pin : {"none", "match"}, budget : {17}]

World ==
    [request |-> request, path |-> path, held |-> held, pin |-> pin, fit |-> fit, base |-> base, bundle |-> bundle,
     cache |-> cache, lock |-> lock, userns |-> userns, landlock |-> landlock, holds |-> holds, space |-> space, execve |-> execve,
     calls |-> calls]

Facts ==
    [state |-> state, cause |-> cause, enforcement |-> enforcement, confinement |-> confinement, method |-> method,
     program |-> program, alive |-> alive, request |-> request, path |-> path, held |-> held, pin |-> pin,
     staged |-> staged, fit |-> fit, base |-> base, bundle |-> bundle, cache |-> cache, lock |-> lock, residue |-> residue,
     userns |-> userns, landlock |-> landlock, holds |-> holds, space |-> space, execve |-> execve, calls |-> calls,
     confined |-> confined, proved |-> proved, image |-> image, guest |-> guest]

Take(action) ==
    \/ action = "Resolve" /\ Resolve
    \/ action = "Prepare" /\ Prepare
    \/ action = "StageSealed" /\ StageSealed
    \/ action = "StageSet" /\ StageSet
    \/ action = "StageCopy" /\ StageCopy
    \/ action = "StageStore" /\ StageStore
    \/ action = "StageKept" /\ StageKept
    \/ action = "ConfineLocked" /\ ConfineLocked
    \/ action = "ConfineLandlock" /\ ConfineLandlock
    \/ action = "ConfineSkipped" /\ ConfineSkipped
    \/ action = "Exec" /\ Exec
    \/ action = "FailRequest" /\ FailRequest
    \/ action = "FailNotFound" /\ FailNotFound
    \/ action = "FailUntrusted" /\ FailUntrusted
    \/ action = "FailBase" /\ FailBase
    \/ action = "FailBundle" /\ FailBundle
    \/ action = "FailBusy" /\ FailBusy
    \/ action = "FailChanged" /\ FailChanged
    \/ action = "FailPin" /\ FailPin
    \/ action = "FailSpace" /\ FailSpace
    \/ action = "FailCache" /\ FailCache
    \/ action = "FailUnfit" /\ FailUnfit
    \/ action = "FailIncompatible" /\ FailIncompatible
    \/ action = "FailConfine" /\ FailConfine
    \/ action = "FailUnproved" /\ FailUnproved
    \/ action = "FailKept" /\ FailKept
    \/ action = "FailExec" /\ FailExec
    \/ action = "FailFault" /\ FailFault
    \/ action = "FailDirty" /\ FailDirty
    \/ action = "GuestStarts" /\ GuestStarts
    \/ action = "Collect" /\ Collect

More    == line < Len(Traces[trace])
Told    == Traces[trace][line + 1]
Before  == Traces[trace][line]
Chained == Told.prev = Before.hash
AsSeen  == \A name \in DOMAIN Told.seen : World[name] = Told.seen[name]

Agrees(told) == \A name \in DOMAIN told.claims : told.facts[name] = told.claims[name]
Leads        == Take(Told.action) /\ Facts' = Told.facts /\ Told.dest = state'

--------------------------------------------------------------------------------
(* The first line has the facts that the launch began with. *)
TraceInit ==
    /\ trace \in 1 .. Len(Traces) /\ line = 1
    /\ LET told == Traces[trace][1] IN
        /\ told.action = "Init" /\ told.sound /\ DOMAIN told.seen = {}
        /\ told.seq = 0 /\ told.prev = 0
        /\ told.source = told.facts.state /\ told.dest = told.facts.state
        /\ enforcement = told.facts.enforcement /\ confinement = told.facts.confinement
        /\ method = told.facts.method /\ program = told.facts.program /\ pin = told.facts.pin
        /\ Init
        /\ Facts = told.facts
        /\ Agrees(told)

(* Something happened that the next line says was seen. *)
Happens ==
    /\ More /\ Told.sound
    /\ Environment /\ alive' = alive
    /\ \A name \in DOMAIN World :
        World'[name] = World[name] \/ (name \in DOMAIN Told.seen /\ World'[name] = Told.seen[name])
    /\ UNCHANGED <<trace, line>>

(* The next line is a step of the launcher, and tells it as it is. *)
Follows ==
    /\ More
    /\ Told.seq = line /\ Chained /\ Told.owner = Before.owner
    /\ Told.sound /\ AsSeen
    /\ Told.source = state
    /\ Leads
    /\ Agrees(Told)
    /\ line' = line + 1 /\ UNCHANGED trace

TraceNext == Happens \/ Follows

--------------------------------------------------------------------------------
(* Why the next line is not accepted here: the first of these that is so. *)
Reason ==
    IF ~More THEN (IF Heads[trace] \in {0, Before.hash} THEN "accepted" ELSE "head")
    ELSE IF ENABLED Follows THEN "followed"
    ELSE IF Told.seq # line THEN "order"
    ELSE IF ~Chained THEN "chain"
    ELSE IF Told.owner # Before.owner THEN "owner"
    ELSE IF Told.source # state THEN "source"
    ELSE IF ~Told.sound \/ ~AsSeen THEN "seen"
    ELSE IF ~ENABLED Take(Told.action) THEN "guard"
    ELSE IF ~ENABLED Leads THEN "effect"
    ELSE "evidence"

(* Always true; trace.py reads what it prints. *)
Reported == PrintT(<<"at", trace, line, Reason>>)
================================================================================
