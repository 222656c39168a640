----------------------------- MODULE MCSandboxLife ------------------------------
(* What TLC must refute of a sandbox's life: the code before each mend, one
   configuration each (life-*.cfg).                                              *)
EXTENDS SandboxLife

BlamesTheProgram(c) == "CannotExec"    \* a killed client was taken for a program that cannot be executed
RunsOn(c)           == proc[c]         \* the process of a killed client was left to run
SaysGone            == "SandboxGone"
Untied              == FALSE           \* the companion's death was nobody's signal
ByNumber            == FALSE           \* the companion was killed by its number
LooksOnce           == FALSE           \* a command that was about to be sent was sent while an image was written
Registered          == {c \in Cmds : pc[c] = "waits" /\ ~sent[c]}
NoneUnheard         == {}              \* what nobody had heard of was not asked for
Orphaned(c)         == client[c]       \* a client outlives its companion

Unfair == Init /\ [][Next]_vars

(* Of what the properties speak, all happens: every action is taken (spec check), and: *)
NeverRefused == \A c \in Cmds : said[c] # "CannotExec"
================================================================================
