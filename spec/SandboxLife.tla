------------------------------ MODULE SandboxLife ------------------------------
(* A sandbox after Exec'd, where GVisorRuntime ends: its owner, its supervisor
   (`runsc run`), the guest, the companion beside them (_attendant.py), and the
   commands (`runsc exec` clients) that the companion runs for the owner's threads;
   with whoever may kill any of them, wait for them, or end the owner.

   Not here: what is inside the guest (its processes below a command), several
   sandboxes, and time. A deadline is an action that may be taken or not.

   The operators between the rules carry what the code was mended by: the
   configurations life-*.cfg put back what was there before, one at a time, and TLC
   must refute a property for each (manifest.json).                              *)
EXTENDS Naturals, FiniteSets

CONSTANTS
    Cmds,          \* commands, one thread of the owner each
    Missing,       \* those whose program does not exist
    MainThread,    \* did the owner's initial thread make the sandbox: its death is a signal to the supervisor
    Watched,       \* is there a limit that only the companion sees to
    Faults,        \* how many processes may be killed by others, beside the owner
    Reaped         \* may others in the owner's program wait for all its children

VARIABLES
    owner, sup, guest, companion,
    number,        \* whose the companion's process number is: "ours", "free", "stranger"
    hung,          \* has the owner hung up on the companion
    client,        \* by command, its client: "none", "waits" (has started nothing), "started", "dead", "reaped"
    status,        \* how that ended: "none", "ok", "failed", "killed"
    proc,          \* its process in the guest: "none", "runs", "ended"
    told, sent,    \* packets that the companion has put on its channel: a number or a refusal; a status
    pc, said,      \* where the owner's thread is, and what its call came to
    paused, image, dirty,  \* a checkpoint: is the guest stopped, how far it is, are streams of the host in it
    close, wronged,        \* Sandbox.close; was a stranger killed
    over,          \* has the guest met the limit
    faults

vars == <<owner, sup, guest, companion, number, hung, client, status, proc, told, sent, pc, said, paused, image, dirty,
          close, wronged, over, faults>>

people == <<owner, sup, guest, companion, number, hung>>
cmds   == <<client, status, proc, told, sent>>
calls  == <<pc, said>>
ckpt   == <<paused, image, dirty>>
rest   == <<close, wronged, over, faults>>

Live(c)      == client[c] \in {"waits", "started"}
CompanionUp  == companion \in {"runs", "ending"}
Answers      == companion = "runs" /\ ~hung
Lives        == guest = "runs" /\ Answers
GateClosed   == image \in {"gated", "allowed", "paused"}
Starting(c)  == pc[c] \in {"marked", "asked", "begun"}

Set(f, c, v) == [f EXCEPT ![c] = v]
Killed(s)    == IF s = "runs" THEN "dead" ELSE s
Says(c, what) == pc' = Set(pc, c, "done") /\ said' = Set(said, c, what)

Init ==
    /\ owner = "runs" /\ sup = "runs" /\ guest = "runs" /\ companion = "runs" /\ number = "ours" /\ hung = FALSE
    /\ client = [c \in Cmds |-> "none"] /\ status = [c \in Cmds |-> "none"] /\ proc = [c \in Cmds |-> "none"]
    /\ told = [c \in Cmds |-> "none"] /\ sent = [c \in Cmds |-> FALSE]
    /\ pc = [c \in Cmds |-> "idle"] /\ said = [c \in Cmds |-> "-"]
    /\ paused = FALSE /\ image = "no" /\ dirty = FALSE
    /\ close = "no" /\ wronged = FALSE /\ over = FALSE /\ faults = Faults

--------------------------------------------------------------------------------
(* What the code was mended by. *)

(* A client that was killed says nothing of the program. *)
Refusal(c) == IF status[c] = "killed" THEN "RunscFailed" ELSE "CannotExec"
(* A command whose client was killed is ended, and the sandbox with it only where that cannot be done. *)
AfterLoss(c)  == "ended"
SaidOfLoss    == "RunscFailed"
(* The supervisor dies with its companion: the kernel signals it when the pipe between them closes. *)
Tied == TRUE
(* A process is killed by a pidfd, which a reaped one does not answer to. *)
ByPidfd == TRUE
(* A command looks at the gate again once it is counted among those that start; and a checkpoint counts those. *)
LooksAgain == TRUE
Counted == {c \in Cmds : Starting(c) \/ (pc[c] = "waits" /\ ~sent[c])}
(* A checkpoint hears first of the commands that have ended unheard of, and ends those whose client was killed. *)
Unheard == {c \in Cmds : pc[c] = "waits" /\ sent[c] /\ status[c] = "killed"}
(* A client dies with the companion, its parent (PR_SET_PDEATHSIG): the signal is sent before anybody can wait for the
   companion, and who has SIGKILL coming does nothing more. *)
WithCompanion(c)   == IF client[c] = "none" THEN "none" ELSE "reaped"
ClientsDie ==
    /\ client' = [c \in Cmds |-> WithCompanion(c)]
    /\ status' = [c \in Cmds |-> IF Live(c) /\ WithCompanion(c) = "reaped" THEN "killed" ELSE status[c]]

--------------------------------------------------------------------------------
(* The owner's threads: what an exec or a popen does, and what its caller hears. *)

(* Sandbox._await_resumed *)
Comes(c) ==
    /\ owner = "runs" /\ pc[c] = "idle" /\ ~GateClosed
    /\ pc' = Set(pc, c, "came")
    /\ UNCHANGED <<people, cmds, said, ckpt, rest>>

(* Sandbox._starting: from here on it is counted. The gate was open a moment ago. *)
Marks(c) ==
    /\ owner = "runs" /\ pc[c] = "came"
    /\ pc' = Set(pc, c, "marked")
    /\ UNCHANGED <<people, cmds, said, ckpt, rest>>

(* The gate was closed since: it waits there, and counts no more. *)
Withdraws(c) ==
    /\ owner = "runs" /\ pc[c] = "marked" /\ LooksAgain /\ GateClosed /\ guest = "runs"
    /\ pc' = Set(pc, c, "idle")
    /\ UNCHANGED <<people, cmds, said, ckpt, rest>>

(* Sandbox._attend: the packet goes, or nobody is there to take it, and then nothing may run on. *)
Asks(c) ==
    /\ owner = "runs" /\ pc[c] = "marked" /\ (LooksAgain => ~GateClosed \/ guest = "dead")
    /\ IF Answers
       THEN pc' = Set(pc, c, "asked") /\ UNCHANGED <<said, sup>>
       ELSE Says(c, "SandboxGone") /\ sup' = Killed(sup)
    /\ UNCHANGED <<owner, guest, companion, number, hung, cmds, ckpt, rest>>

HearsNumber(c) ==
    /\ owner = "runs" /\ pc[c] = "asked" /\ told[c] = "number"
    /\ pc' = Set(pc, c, "begun")
    /\ UNCHANGED <<people, cmds, said, ckpt, rest>>

(* It is one of the sandbox's commands. *)
Registers(c) ==
    /\ owner = "runs" /\ pc[c] = "begun"
    /\ pc' = Set(pc, c, "waits")
    /\ UNCHANGED <<people, cmds, said, ckpt, rest>>

HearsRefusal(c) ==
    /\ owner = "runs" /\ pc[c] = "asked" /\ told[c] = "refused" /\ sent[c]
    /\ IF Lives
       THEN Says(c, Refusal(c)) /\ UNCHANGED sup
       ELSE Says(c, "SandboxGone") /\ sup' = Killed(sup)
    /\ UNCHANGED <<owner, guest, companion, number, hung, cmds, ckpt, rest>>

HearsStatus(c) ==
    /\ owner = "runs" /\ pc[c] = "waits" /\ sent[c]
    /\ CASE status[c] = "ok" -> Says(c, "completed") /\ UNCHANGED <<sup, proc>>
         [] status[c] = "failed" /\ Lives -> Says(c, "completed") /\ UNCHANGED <<sup, proc>>
         [] status[c] = "killed" /\ Lives -> Says(c, SaidOfLoss) /\ proc' = Set(proc, c, AfterLoss(c)) /\ UNCHANGED sup
         [] status[c] \in {"failed", "killed"} /\ ~Lives ->
                Says(c, "SandboxGone") /\ sup' = Killed(sup) /\ UNCHANGED proc
    /\ UNCHANGED <<owner, guest, companion, number, hung, client, status, told, sent, ckpt, rest>>

(* The channel ends without a word: the companion has gone, and with it the sandbox. *)
HearsEnd(c) ==
    /\ owner = "runs" /\ ~CompanionUp /\ ~sent[c]
    /\ \/ pc[c] = "asked" /\ told[c] = "none"
       \/ pc[c] = "waits"
    /\ Says(c, "SandboxGone")
    /\ UNCHANGED <<people, cmds, ckpt, rest>>

(* timeout=, kill(): Sandbox._end_tree. A paused guest takes no signal, and the sandbox ends. *)
TimesOut(c) ==
    /\ owner = "runs" /\ pc[c] = "waits" /\ ~sent[c] /\ Answers
    /\ Says(c, "TimeoutExpired")
    /\ IF paused THEN sup' = Killed(sup) /\ UNCHANGED proc
                 ELSE proc' = Set(proc, c, "ended") /\ UNCHANGED sup
    /\ UNCHANGED <<owner, guest, companion, number, hung, client, status, told, sent, ckpt, rest>>

--------------------------------------------------------------------------------
(* The companion: _attendant._attend, Commands *)

Takes(c) ==
    /\ companion = "runs" /\ pc[c] = "asked" /\ client[c] = "none"
    /\ client' = Set(client, c, "waits")
    /\ UNCHANGED <<people, status, proc, told, sent, calls, ckpt, rest>>

(* A client that is killed before it has read what it was to start has started nothing: another one is sent. *)
Resends(c) ==
    /\ companion = "runs" /\ client[c] = "dead" /\ status[c] = "killed" /\ proc[c] = "none" /\ told[c] = "none"
    /\ client' = Set(client, c, "waits") /\ status' = Set(status, c, "none")
    /\ UNCHANGED <<people, proc, told, sent, calls, ckpt, rest>>

SaysNumber(c) ==
    /\ companion = "runs" /\ client[c] \in {"started", "dead"} /\ proc[c] # "none" /\ told[c] = "none"
    /\ told' = Set(told, c, "number")
    /\ UNCHANGED <<people, client, status, proc, sent, calls, ckpt, rest>>

Reaps(c) ==
    /\ companion = "runs" /\ client[c] = "dead" /\ (proc[c] # "none" => told[c] = "number")
    /\ client' = Set(client, c, "reaped") /\ sent' = Set(sent, c, TRUE)
    /\ told' = Set(told, c, IF told[c] = "none" THEN "refused" ELSE told[c])
    /\ UNCHANGED <<people, status, proc, calls, ckpt, rest>>

(* Its owner has hung up or gone, the supervisor has ended, a limit is met: its clients first, for they would tell of
   the sandbox's end on streams that are the caller's; then the supervisor. *)
Ends ==
    /\ companion = "runs" /\ (owner = "dead" \/ hung \/ sup # "runs" \/ (Watched /\ over))
    /\ companion' = "ending" /\ sup' = Killed(sup)
    /\ UNCHANGED <<owner, guest, number, hung, cmds, calls, ckpt, rest>>

Exits ==
    /\ companion = "ending" /\ companion' = "dead" /\ ClientsDie
    /\ UNCHANGED <<owner, sup, guest, number, hung, proc, told, sent, calls, ckpt, rest>>

--------------------------------------------------------------------------------
(* runsc and the kernel *)

ClientStarts(c) ==
    /\ client[c] = "waits" /\ guest = "runs" /\ ~paused /\ c \notin Missing
    /\ client' = Set(client, c, "started") /\ proc' = Set(proc, c, "runs")
    /\ UNCHANGED <<people, status, told, sent, calls, ckpt, rest>>

ClientFails(c) ==
    /\ client[c] = "waits" /\ (guest = "dead" \/ c \in Missing)
    /\ client' = Set(client, c, "dead") /\ status' = Set(status, c, "failed")
    /\ UNCHANGED <<people, proc, told, sent, calls, ckpt, rest>>

ProcEnds(c) ==
    /\ proc[c] = "runs" /\ guest = "runs" /\ ~paused
    /\ proc' = Set(proc, c, "ended")
    /\ UNCHANGED <<people, client, status, told, sent, calls, ckpt, rest>>

ClientEnds(c) ==
    /\ client[c] = "started" /\ proc[c] = "ended"
    /\ client' = Set(client, c, "dead") /\ status' = Set(status, c, IF guest = "runs" THEN "ok" ELSE "failed")
    /\ UNCHANGED <<people, proc, told, sent, calls, ckpt, rest>>

(* The sentry and the gofer end with the supervisor. *)
GuestDies ==
    /\ sup # "runs" /\ guest = "runs" /\ guest' = "dead"
    /\ proc' = [c \in Cmds |-> IF proc[c] = "runs" THEN "ended" ELSE proc[c]]
    /\ UNCHANGED <<owner, sup, companion, number, hung, client, status, told, sent, calls, ckpt, rest>>

(* PR_SET_PDEATHSIG of the supervisor, which speaks of one thread; and the tie to its companion. *)
SupDies ==
    /\ sup = "runs"
    /\ \/ owner = "dead" /\ MainThread
       \/ Tied /\ ~CompanionUp
    /\ sup' = "dead"
    /\ UNCHANGED <<owner, guest, companion, number, hung, cmds, calls, ckpt, rest>>

--------------------------------------------------------------------------------
(* Sandbox.close, from another thread: _Held.clean_up, Attendant.dismiss *)

CloseBegins ==
    /\ owner = "runs" /\ close = "no" /\ close' = "hungup" /\ hung' = TRUE
    /\ UNCHANGED <<owner, sup, guest, companion, number, cmds, calls, ckpt, wronged, over, faults>>
CloseKills ==
    /\ owner = "runs" /\ close = "hungup" /\ close' = "killed" /\ sup' = Killed(sup)
    /\ UNCHANGED <<owner, guest, companion, number, hung, cmds, calls, ckpt, wronged, over, faults>>
CloseReaps ==
    /\ owner = "runs" /\ close = "killed" /\ sup = "dead" /\ sup' = "reaped" /\ close' = "reaped"
    /\ UNCHANGED <<owner, guest, companion, number, hung, cmds, calls, ckpt, wronged, over, faults>>
CloseDismisses ==
    /\ owner = "runs" /\ close = "reaped" /\ ~CompanionUp /\ close' = "dismissed"
    /\ companion' = "reaped"
    /\ wronged' = (wronged \/ (companion = "reaped" /\ number = "stranger" /\ ~ByPidfd))
    /\ UNCHANGED <<owner, sup, guest, number, hung, cmds, calls, ckpt, over, faults>>
(* A companion that is stopped, or too slow: it is killed, with all that it has started. *)
CloseGivesUp ==
    /\ faults > 0 /\ faults' = faults - 1
    /\ owner = "runs" /\ close = "reaped" /\ CompanionUp /\ close' = "dismissed" /\ companion' = "reaped"
    /\ ClientsDie
    /\ UNCHANGED <<owner, sup, guest, number, hung, proc, told, sent, calls, ckpt, wronged, over>>
CloseReturns ==
    /\ owner = "runs" /\ close = "dismissed" /\ guest = "dead" /\ close' = "returned"
    /\ UNCHANGED <<people, cmds, calls, ckpt, wronged, over, faults>>

(* Somebody else in the owner's program waits for all children, and numbers go round. *)
OtherReaps ==
    /\ Reaped /\ companion = "dead" /\ close \in {"no", "hungup", "killed", "reaped"}
    /\ companion' = "reaped" /\ number' = "free"
    /\ UNCHANGED <<owner, sup, guest, hung, cmds, calls, ckpt, rest>>
NumberGoesRound ==
    /\ number = "free" /\ number' = "stranger"
    /\ UNCHANGED <<owner, sup, guest, companion, hung, cmds, calls, ckpt, rest>>

--------------------------------------------------------------------------------
(* Sandbox.checkpoint(leave_running=True), from another thread *)

CkptGates ==
    /\ owner = "runs" /\ image = "no" /\ close = "no" /\ Lives
    /\ image' = "gated"
    /\ UNCHANGED <<people, cmds, calls, paused, dirty, rest>>
CkptLooks ==
    /\ owner = "runs" /\ image = "gated"
    /\ image' = IF Counted = {} THEN "allowed" ELSE "refused"
    /\ proc' = [c \in Cmds |-> IF c \in Unheard /\ Lives THEN AfterLoss(c) ELSE proc[c]]
    /\ UNCHANGED <<people, client, status, told, sent, calls, paused, dirty, rest>>
CkptPauses ==
    /\ owner = "runs" /\ image = "allowed" /\ image' = "paused" /\ paused' = TRUE
    /\ UNCHANGED <<people, cmds, calls, dirty, rest>>
CkptWrites ==
    /\ owner = "runs" /\ image = "paused" /\ Lives
    /\ image' = "written" /\ paused' = FALSE /\ dirty' = (\E c \in Cmds : proc[c] = "runs")
    /\ UNCHANGED <<people, cmds, calls, rest>>
CkptFails ==
    /\ owner = "runs" /\ image = "paused" /\ ~Lives /\ image' = "failed" /\ paused' = FALSE
    /\ UNCHANGED <<people, cmds, calls, dirty, rest>>

--------------------------------------------------------------------------------
(* Others: the kernel for memory, an operator, a program that kills what it does not know *)

Strikes == faults > 0 /\ faults' = faults - 1

KillClient(c) ==
    /\ Strikes /\ Live(c) /\ client' = Set(client, c, "dead") /\ status' = Set(status, c, "killed")
    /\ UNCHANGED <<people, proc, told, sent, calls, ckpt, close, wronged, over>>
KillCompanion ==
    /\ Strikes /\ CompanionUp /\ companion' = "dead" /\ ClientsDie
    /\ UNCHANGED <<owner, sup, guest, number, hung, proc, told, sent, calls, ckpt, close, wronged, over>>
KillSupervisor ==
    /\ Strikes /\ sup = "runs" /\ sup' = "dead"
    /\ UNCHANGED <<owner, guest, companion, number, hung, cmds, calls, ckpt, close, wronged, over>>
KillOwner ==
    /\ owner = "runs" /\ owner' = "dead"
    /\ UNCHANGED <<sup, guest, companion, number, hung, cmds, calls, ckpt, rest>>
MeetsLimit ==
    /\ Watched /\ ~over /\ guest = "runs" /\ over' = TRUE
    /\ UNCHANGED <<people, cmds, calls, ckpt, close, wronged, faults>>

--------------------------------------------------------------------------------
Thread(c)  == Marks(c) \/ Withdraws(c) \/ Asks(c) \/ HearsNumber(c) \/ Registers(c) \/ HearsRefusal(c) \/ HearsStatus(c) \/ HearsEnd(c)
Client(c)  == ClientStarts(c) \/ ClientFails(c) \/ ClientEnds(c)
Companion(c) == Takes(c) \/ Resends(c) \/ SaysNumber(c) \/ Reaps(c)
Closing    == CloseKills \/ CloseReaps \/ CloseDismisses \/ CloseReturns
Checkpoint == CkptLooks \/ CkptPauses \/ CkptWrites \/ CkptFails
Kernel     == GuestDies \/ SupDies

Next ==
    \/ \E c \in Cmds : Comes(c) \/ Thread(c) \/ TimesOut(c) \/ Client(c) \/ ProcEnds(c) \/ Companion(c) \/ KillClient(c)
    \/ Ends \/ Exits \/ Kernel \/ CloseBegins \/ Closing \/ CloseGivesUp \/ OtherReaps \/ NumberGoesRound
    \/ CkptGates \/ Checkpoint \/ KillCompanion \/ KillSupervisor \/ KillOwner \/ MeetsLimit

(* A thread of the owner goes on, a client and the companion do their work, the kernel kills what is to die: each is
   scheduled in the end. Nobody has to start a command, close, take a checkpoint, or end a program. *)
Fairness ==
    /\ \A c \in Cmds : WF_vars(Thread(c)) /\ WF_vars(Client(c)) /\ WF_vars(Companion(c))
    /\ WF_vars(Ends) /\ WF_vars(Exits) /\ WF_vars(Kernel) /\ WF_vars(Closing) /\ WF_vars(Checkpoint)

Spec == Init /\ [][Next]_vars /\ Fairness

--------------------------------------------------------------------------------
TypeOK ==
    /\ owner \in {"runs", "dead"} /\ sup \in {"runs", "dead", "reaped"} /\ guest \in {"runs", "dead"}
    /\ companion \in {"runs", "ending", "dead", "reaped"} /\ number \in {"ours", "free", "stranger"}
    /\ hung \in BOOLEAN
    /\ client \in [Cmds -> {"none", "waits", "started", "dead", "reaped"}]
    /\ status \in [Cmds -> {"none", "ok", "failed", "killed"}] /\ proc \in [Cmds -> {"none", "runs", "ended"}]
    /\ told \in [Cmds -> {"none", "number", "refused"}] /\ sent \in [Cmds -> BOOLEAN]
    /\ pc \in [Cmds -> {"idle", "came", "marked", "asked", "begun", "waits", "done"}]
    /\ said \in [Cmds -> {"-", "completed", "CannotExec", "SandboxGone", "TimeoutExpired", "RunscFailed"}]
    /\ paused \in BOOLEAN /\ dirty \in BOOLEAN
    /\ image \in {"no", "gated", "refused", "allowed", "paused", "written", "failed"}
    /\ close \in {"no", "hungup", "killed", "reaped", "dismissed", "returned"}
    /\ wronged \in BOOLEAN /\ over \in BOOLEAN /\ faults \in 0 .. Faults

(* That a program cannot be executed is never said of somebody's death. *)
NeverBlamesTheProgram == \A c \in Cmds : said[c] = "CannotExec" => c \in Missing
(* What has completed did so by its own client's word. *)
CompletedIsTrue == \A c \in Cmds : (said[c] = "completed" /\ c \notin Missing) => status[c] \in {"ok", "failed"}
(* Nothing is left when close returns. *)
CloseIsClean ==
    close = "returned" =>
        sup = "reaped" /\ companion = "reaped" /\ guest = "dead" /\ \A c \in Cmds : ~Live(c)
(* A number that is signalled is still the process that was meant. *)
KillsOnlyOurs == ~wronged
(* An image that was written can be restored: no command's streams are in it. *)
ImageIsClean == image = "written" => ~dirty

(* A sandbox ends with its owner, whoever dies first and whichever thread made it. *)
EndsWithItsOwner == (owner = "dead") ~> (sup # "runs" /\ guest = "dead" /\ ~CompanionUp /\ \A c \in Cmds : ~Live(c))
(* Who is told that the sandbox has gone is told the truth. *)
GoneIsGone == \A c \in Cmds : (said[c] = "SandboxGone") ~> (guest = "dead")
(* A command does not outlive the call that ran it. *)
DoneIsDone == \A c \in Cmds : (pc[c] = "done") ~> (proc[c] # "runs")
NoneOutlivesTheSandbox == \A c \in Cmds : (guest = "dead") ~> ~Live(c)
(* A limit that is said to be held is, whoever is killed. *)
LimitHolds == over ~> (guest = "dead")
(* Each call comes to its end when its command can. *)
EveryCallEnds == \A c \in Cmds : (pc[c] = "asked" /\ (c \in Missing \/ guest = "dead")) ~> (pc[c] = "done" \/ owner = "dead")
================================================================================
