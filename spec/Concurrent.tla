------------------------------- MODULE Concurrent -------------------------------
(* Several launches of one container id, and a collector, over one artifact base.

   GVisorRuntime has one variable for the lock. This module is what lies behind it:
   the file locks/ID, its flock, the line in it that names the sandbox's process,
   and the container's directory, call by call as in runtime/cleanup.py. Between any
   two calls anybody else may act, or a process may be killed.

   A launch holds its id as long as its launcher holds the flock, or as long as the
   process lives that the line names: a launcher may exit while its sandbox runs.

   The file is found by name and locked by descriptor, and whoever is done with it
   removes the name. So a process can hold the lock of a file that has no name any
   more, while another has made and locked a new one. NameIsOurs is the guard
   against that, and OwnerIsGone the one that spares a sandbox whose launcher went. *)

EXTENDS Naturals, FiniteSets

CONSTANTS
    Launchers,   \* processes that launch the one container id
    Collector,   \* the process that collects
    Kills        \* how many processes may be killed

Processes == Launchers \union {Collector}
Files     == 1 .. Cardinality(Processes) + 1    \* inodes: one for each descriptor and one for the name
Nobody    == "nobody"

VARIABLES
    at,      \* what each process does next
    fd,      \* the lock file that it has open, or 0
    name,    \* the file that locks/ID is now, or 0
    flock,   \* who holds each file's flock
    line,    \* whose process each file's line names
    place,   \* whose directory lies below the base
    lives,   \* does the process live that the line of this launcher names: its child, later its sandbox
    execd,   \* has it become the sandbox
    kills    \* kills left

vars == <<at, fd, name, flock, line, place, lives, execd, kills>>

Init ==
    /\ at = [p \in Processes |-> "open"] /\ fd = [p \in Processes |-> 0]
    /\ name = 0 /\ flock = [f \in Files |-> Nobody] /\ line = [f \in Files |-> Nobody]
    /\ place = Nobody
    /\ lives = [l \in Launchers |-> FALSE] /\ execd = [l \in Launchers |-> FALSE]
    /\ kills = Kills

--------------------------------------------------------------------------------
(* Guards. *)

NameIsOurs(p)  == name = fd[p]
OwnerLives(f)  == line[f] # Nobody /\ lives[line[f]]
OwnerIsGone(p) == ~OwnerLives(fd[p])

Goes(p, here, there) == at[p] = here /\ at' = [at EXCEPT ![p] = there]

(* Close the descriptor; an flock goes with it. *)
Closes(p) ==
    /\ fd' = [fd EXCEPT ![p] = 0]
    /\ flock' = [f \in Files |-> IF flock[f] = p THEN Nobody ELSE flock[f]]

--------------------------------------------------------------------------------
(* take_lock. A launcher makes the file, the collector does not. *)

OpenThere(p) ==
    /\ Goes(p, "open", "flock") /\ name # 0
    /\ fd' = [fd EXCEPT ![p] = name]
    /\ UNCHANGED <<name, flock, line, place, lives, execd, kills>>

(* A new inode may have the number of one that nobody has open any more. *)
OpenNew(p) ==
    /\ Goes(p, "open", "flock") /\ name = 0 /\ p # Collector
    /\ LET f == CHOOSE f \in Files : \A q \in Processes : fd[q] # f IN
        /\ name' = f /\ fd' = [fd EXCEPT ![p] = f]
        /\ line' = [line EXCEPT ![f] = Nobody]
    /\ UNCHANGED <<flock, place, lives, execd, kills>>

Flock(p) ==
    /\ Goes(p, "flock", "stat") /\ flock[fd[p]] = Nobody
    /\ flock' = [flock EXCEPT ![fd[p]] = p]
    /\ UNCHANGED <<fd, name, line, place, lives, execd, kills>>

(* Somebody has it. A launcher whose file names nobody tries again for a while, because it may only be a collector
   that is about to let go; else the id is taken. *)
FlockTaken(p) ==
    /\ at[p] = "flock" /\ flock[fd[p]] # Nobody
    /\ \/ at' = [at EXCEPT ![p] = "end"]
       \/ p # Collector /\ ~OwnerLives(fd[p]) /\ at' = [at EXCEPT ![p] = "open"]
    /\ Closes(p)
    /\ UNCHANGED <<name, line, place, lives, execd, kills>>

Stat(p) ==
    /\ Goes(p, "stat", "ask") /\ NameIsOurs(p)
    /\ UNCHANGED <<fd, name, flock, line, place, lives, execd, kills>>

(* The lock of a file without the name locks nothing. *)
StatOther(p) ==
    /\ Goes(p, "stat", IF p = Collector /\ name = 0 THEN "end" ELSE "open") /\ ~NameIsOurs(p)
    /\ Closes(p)
    /\ UNCHANGED <<name, line, place, lives, execd, kills>>

Ask(p) ==
    /\ Goes(p, "ask", "taken") /\ OwnerIsGone(p)
    /\ UNCHANGED <<fd, name, flock, line, place, lives, execd, kills>>

AskLives(p) ==
    /\ Goes(p, "ask", "end") /\ ~OwnerIsGone(p)
    /\ Closes(p)
    /\ UNCHANGED <<name, line, place, lives, execd, kills>>

TakeLock(p) == \/ OpenThere(p) \/ OpenNew(p)
               \/ Flock(p) \/ FlockTaken(p)
               \/ Stat(p) \/ StatOther(p)
               \/ Ask(p) \/ AskLives(p)

--------------------------------------------------------------------------------
(* A launch, once it has its lock. *)

(* Place.take ends: the dead owner's line goes. *)
Truncate(l) ==
    /\ Goes(l, "taken", "make")
    /\ line' = [line EXCEPT ![fd[l]] = Nobody]
    /\ UNCHANGED <<fd, name, flock, place, lives, execd, kills>>

(* Place.make: what lies there is removed, and a directory of our own made. *)
Make(l) ==
    /\ Goes(l, "make", "own")
    /\ place' = l
    /\ UNCHANGED <<fd, name, flock, line, lives, execd, kills>>

(* The child lives; Place.own writes it into the line. *)
Own(l) ==
    /\ Goes(l, "own", "exec")
    /\ line' = [line EXCEPT ![fd[l]] = l] /\ lives' = [lives EXCEPT ![l] = TRUE]
    /\ UNCHANGED <<fd, name, flock, place, execd, kills>>

Exec(l) ==
    /\ Goes(l, "exec", "watch") /\ lives[l]
    /\ execd' = [execd EXCEPT ![l] = TRUE]
    /\ UNCHANGED <<fd, name, flock, line, place, lives, kills>>

(* The launcher goes, and its sandbox stays: Place.close. *)
Leave(l) ==
    /\ Goes(l, "watch", "end")
    /\ Closes(l)
    /\ UNCHANGED <<name, line, place, lives, execd, kills>>

(* Place.remove begins: the launch failed, and its child was ended; or its sandbox did. *)
GiveUp(l) ==
    /\ \/ at[l] \in {"make", "own", "exec"}
       \/ at[l] = "watch" /\ ~lives[l]
    /\ at' = [at EXCEPT ![l] = "remove"] /\ lives' = [lives EXCEPT ![l] = FALSE]
    /\ UNCHANGED <<fd, name, flock, line, place, execd, kills>>

(* The sandbox ends, or a child whose launcher was killed finds its pipe closed. *)
Ends(l) ==
    /\ lives[l] /\ (execd[l] \/ at[l] = "killed")
    /\ lives' = [lives EXCEPT ![l] = FALSE]
    /\ UNCHANGED <<at, fd, name, flock, line, place, execd, kills>>

(* collect: what the collector does with a lock that it could take. *)
Finds ==
    /\ Goes(Collector, "taken", "remove")
    /\ UNCHANGED <<fd, name, flock, line, place, lives, execd, kills>>

(* Place.remove: the directory, then the name, then the lock. *)
RemoveTree(p) ==
    /\ Goes(p, "remove", "unlink")
    /\ place' = Nobody
    /\ UNCHANGED <<fd, name, flock, line, lives, execd, kills>>

Unlink(p) ==
    /\ Goes(p, "unlink", "close")
    /\ name' = 0
    /\ UNCHANGED <<fd, flock, line, place, lives, execd, kills>>

Close(p) ==
    /\ Goes(p, "close", "end")
    /\ Closes(p)
    /\ UNCHANGED <<name, line, place, lives, execd, kills>>

(* The next launch collects again. *)
ComesAgain ==
    /\ Goes(Collector, "end", "open")
    /\ UNCHANGED <<fd, name, flock, line, place, lives, execd, kills>>

(* SIGKILL. A killed collector is followed by another. *)
Kill(p) ==
    /\ kills > 0 /\ kills' = kills - 1
    /\ at[p] \notin {"end", "killed"}
    /\ at' = [at EXCEPT ![p] = IF p = Collector THEN "end" ELSE "killed"]
    /\ Closes(p)
    /\ UNCHANGED <<name, line, place, lives, execd>>

Step(p) == TakeLock(p) \/ RemoveTree(p) \/ Unlink(p) \/ Close(p)

Launch(l) == Truncate(l) \/ Make(l) \/ Own(l) \/ Exec(l) \/ Leave(l) \/ GiveUp(l)

Next ==
    \/ \E p \in Processes : Step(p) \/ Kill(p)
    \/ \E l \in Launchers : Launch(l) \/ Ends(l)
    \/ Finds \/ ComesAgain

(* Everyone goes on, and no sandbox runs for ever. *)
Spec ==
    /\ Init /\ [][Next]_vars
    /\ \A p \in Processes : WF_vars(Step(p))
    /\ \A l \in Launchers : WF_vars(Launch(l)) /\ WF_vars(Ends(l))
    /\ WF_vars(Finds) /\ WF_vars(ComesAgain)

--------------------------------------------------------------------------------
(* Properties. *)

TypeOK ==
    /\ \A p \in Processes :
        /\ at[p] \in {"open", "flock", "stat", "ask", "taken", "make", "own", "exec", "watch", "remove", "unlink",
                      "close", "end", "killed"}
        /\ fd[p] \in Files \union {0}
    /\ name \in Files \union {0}
    /\ \A f \in Files : flock[f] \in Processes \union {Nobody} /\ line[f] \in Launchers \union {Nobody}
    /\ place \in Launchers \union {Nobody}
    /\ \A l \in Launchers : lives[l] \in BOOLEAN /\ execd[l] \in BOOLEAN
    /\ kills \in 0 .. Kills

(* A launch that has its lock, from there until nothing of it lives. *)
Holding(l) == at[l] \in {"taken", "make", "own", "exec", "watch", "remove", "unlink"}
Running(l) == lives[l] /\ execd[l]

(* The same id runs once. *)
RunsOnce == \A l, m \in Launchers : ((Holding(l) \/ Running(l)) /\ (Holding(m) \/ Running(m))) => l = m

(* A live launch keeps its directory, whatever the collector does. *)
LiveKeepsPlace == \A l \in Launchers : (at[l] \in {"own", "exec", "watch"} \/ Running(l)) => place = l

(* And it keeps its lock: the name is that of the file which it holds or which names it. *)
LiveKeepsLock ==
    \A l \in Launchers :
        /\ Holding(l) => name = fd[l]
        /\ Running(l) => (name # 0 /\ line[name] = l)

(* Once no launch holds the id any more, nothing of one is left. *)
LeftoversGo == <>[](place = Nobody)
================================================================================
