---------------------------- MODULE MCGVisorRuntime ----------------------------
(* Bounds for GVisorRuntime, and nothing else.

   There are 120 ways to ask for a launch, and 17 things besides a SIGKILL that can
   happen to one. The graph of MCLaunches is dumped, committed and replayed on a
   real host, edge by edge, so it must stay small without missing anything. It can,
   because the options matter on different steps and do not touch each other: the
   method and the pin are judged on Prepared; the enforcement, the confinement and
   the program on Staged. Hence every way to confine with the default method, and
   every way to stage with the default confinement. What is kept is for launches that
   must be locked, so it is asked for by one that need not be, too.

   One event shows most of what there is to see. Two are needed where one hides
   another: a call that fails while the disk is full, a host that forbids the
   namespace and lets canaries out as well, a kill after a swap. One launch, with
   the richest of the methods, has budget 2 for these.

   Twice leaves nothing out, and Undisturbed is left alone; both are checked, and
   not dumped.                                                                   *)
EXTENDS GVisorRuntime

Ask(e, c, m, p, n, b) ==
    [enforcement |-> e, confinement |-> c, method |-> m, program |-> p, pin |-> n, budget |-> b]

(* With mount-locked both programs behave alike, so `plain` is asked for once. *)
EveryConfinement ==
    {Ask(e, "mount-locked", "sealed", "runsc", "none", 1) : e \in Enforcements}
    \union {Ask(e, "landlock", "sealed", p, "none", 1) : e \in Enforcements, p \in Programs}
    \union {Ask("required", "mount-locked", "sealed", "plain", "none", 1)}

EveryMethod ==
    {Ask("required", "mount-locked", m, "runsc", n, 1) : m \in Methods, n \in {"none", "match"}}
    \union {Ask("best_effort", "mount-locked", "kept", "runsc", "none", 1)}

Pairs == Ask("required", "mount-locked", "copy", "runsc", "match", 2)

MCLaunches == {l \in EveryConfinement \union EveryMethod : l # [Pairs EXCEPT !.budget = 1]} \union {Pairs}

AllLaunches(b) ==
    {Ask(e, c, m, p, n, b) :
        e \in Enforcements, c \in Confinements, m \in Methods, p \in Programs, n \in {"none", "match"}}

Undisturbed == AllLaunches(0)
Twice       == AllLaunches(2)
================================================================================
