----------------------------- MODULE GVisorRuntime -----------------------------
(* One launch of gVisor's runsc, with the host and an adversary around it.

   A launch goes

       Unresolved -> Resolved -> Prepared -> Staged -> Confined -> Exec'd

   and from any of the first five it can end in Failed. The launcher's own steps
   are the actions of System. Around them the world moves: binaries are swapped,
   disks fill up, the launcher is killed. Those are the actions of Environment.
   Afterwards holds what happens once the launcher is done or dead.

   How to read it. Each variable is a field of model/facts.py, each guard a
   function of model/guards.py, each action of System and Afterwards a row of
   model/table.py, each action of Environment an entry of model/environment.py,
   and each property a function of model/invariants.py, all under the name that
   they have here. tests/spec/test_graph_equality.py walks the Python machine
   through every state that TLC reaches and finds exactly these steps and no
   others. What a step does to the host is in the file that its comment names.  *)

EXTENDS Naturals

CONSTANT
    Launches    \* the launches to look at: what is asked for, and how often the
                \* environment may act during each (MCGVisorRuntime binds it)

States   == {"Unresolved", "Resolved", "Prepared", "Staged", "Confined", "Exec'd", "Failed"}
Terminal == {"Exec'd", "Failed"}
Rank     == [Unresolved |-> 0, Resolved |-> 1, Prepared |-> 2, Staged |-> 3, Confined |-> 4]

Causes == {"none", "bad_request", "not_found", "untrusted_binary", "untrusted_base", "busy", "bad_bundle",
           "changed", "pin_mismatch", "no_space", "untrusted_cache", "kept_changed", "incompatible",
           "cannot_confine", "not_proved", "unfit", "exec_refused", "fault", "left_behind"}

Enforcements == {"required", "best_effort", "off"}
Confinements == {"mount-locked", "landlock"}
Methods      == {"sealed", "set", "copy", "store", "kept"}
Programs     == {"runsc", "plain"}     \* plain: a program that never mounts

ASSUME LaunchesAreSound ==
    \A l \in Launches :
        /\ l.enforcement \in Enforcements /\ l.confinement \in Confinements
        /\ l.method \in Methods /\ l.program \in Programs
        /\ l.pin \in {"none", "match"} /\ l.budget \in Nat

VARIABLES
    (* where the launch stands *)
    state,
    cause,        \* why it failed, or "none"
    (* what was asked for *)
    enforcement,  \* must it be confined, should it, or not at all
    confinement,  \* how
    method,       \* how the bytes to execute are made safe from change
    program,      \* runsc, or a program that never mounts
    alive,        \* is the launcher's process there
    (* the world, as it is and not as it was last looked at *)
    request,      \* can what was asked for be done at all
    path,         \* what lies at runsc's path now
    held,         \* what the judged descriptor refers to
    pin,          \* how the held bytes compare with the pin, if there is one
    staged,       \* the bytes that would be executed
    fit,          \* do they answer as a runsc that can do what was asked
    base,         \* the artifact base and the container's directory in it
    bundle,       \* the OCI bundle
    cache,        \* the directory of what is kept, and what is kept in it
    lock,         \* the lock of this container id
    residue,      \* what would be left on disk if all stopped now
    userns,       \* does the host permit what mount-locked needs
    landlock,     \* does it have Landlock
    holds,        \* do the canaries stay inside
    space,        \* is there room for a copy of runsc
    execve,       \* does the kernel accept the image
    calls,        \* do the system calls work that every step needs
    (* what was achieved *)
    confined,     \* the confinement that is in force, not the one asked for
    proved,       \* was it shown from inside
    image,        \* what execve was given
    guest,        \* what became of it
    (* the model's own *)
    budget        \* how often the environment may still act

(* Variables that stay together, so that an action lists what it leaves alone in
   one line. What was asked for is never in an action's effect.                  *)
options  == <<enforcement, confinement, method, program>>
binary   == <<path, pin, fit>>
place    == <<base, bundle, space, cache>>
host     == <<userns, landlock, holds, execve, calls>>
achieved == <<confined, proved>>
ran      == <<image, guest>>
launcher == <<state, cause, options, alive, staged, residue, achieved, ran>>

vars == <<launcher, request, binary, held, place, lock, host, budget>>

Init ==
    /\ \E l \in Launches :
        /\ enforcement = l.enforcement /\ confinement = l.confinement
        /\ method = l.method /\ program = l.program
        /\ pin = l.pin /\ budget = l.budget
    /\ state = "Unresolved" /\ cause = "none" /\ alive = TRUE
    /\ request = TRUE /\ path = "trusted" /\ held = "nothing" /\ staged = "nothing" /\ fit = TRUE
    /\ base = "absent" /\ bundle = "sound" /\ lock = "free" /\ residue = {}
    /\ cache = "private"
    /\ userns = TRUE /\ landlock = TRUE /\ holds = TRUE /\ space = TRUE /\ execve = TRUE /\ calls = TRUE
    /\ confined = "none" /\ proved = FALSE /\ image = "none" /\ guest = "none"

--------------------------------------------------------------------------------
(* Guards. The launcher looks first and judges then: a guard is a question about
   what it has seen, and never touches the world itself.                         *)

Alive           == alive
BinaryTrusted   == path = "trusted"
BinaryAbsent    == path = "absent"
BinaryForged    == path = "forged"
BaseSound       == base # "hostile"
BundleSound     == bundle = "sound"
LockFree        == lock = "free"
LockTheirs      == lock = "theirs"
SourceUnchanged == held = "trusted"     \* asked of the descriptor; the path may lie by now
PinAgrees       == pin # "mismatch"
UsesSealed      == method = "sealed"
UsesSet         == method = "set"
UsesCopy        == method = "copy"
UsesStore       == method = "store"
UsesKept        == method = "kept"
CacheSound      == ~UsesKept \/ cache # "hostile"
KeptUnchanged   == ~UsesKept \/ cache # "changed"   \* asked of each file's descriptor, before and after it is bound
SpaceLeft       == ~UsesCopy \/ space   \* see FillDisk
Fit             == fit
Asked           == enforcement # "off"  \* rootless or not: the reference asks only when rootless, gvisor.rs:363
Required        == enforcement = "required"
WantsLocked     == confinement = "mount-locked"
WantsLandlock   == confinement = "landlock"
RequestSound    == request /\ (UsesKept => (Required /\ WantsLocked))   \* see StageKept
Compatible      == ~(WantsLandlock /\ program = "runsc")   \* see Boots
Available       == IF WantsLandlock THEN landlock ELSE userns
Holds           == holds
CanConfine      == Compatible /\ Available /\ Holds
MaySkip         == ~Asked \/ (enforcement = "best_effort" /\ ~CanConfine)
ConfinedAsAsked == confined = confinement /\ proved
Evidenced       == /\ staged = "trusted" /\ lock = "ours" /\ Fit /\ KeptUnchanged   \* of every earlier step
                   /\ Required => ConfinedAsAsked
ExecvePermitted == execve
CallsWork       == calls
GuestNotYet     == guest = "none"
HasResidue      == residue # {}

--------------------------------------------------------------------------------
(* System, on the way to a running guest. *)

(* The caller asked for something that can be done; the walk from / to runsc, each
   directory and link judged, ended at one descriptor, which was judged as well.
   From here on only that descriptor is used: what happens at the path is nothing
   to us.  runtime/steps/resolve.py: resolve                                     *)
Resolve ==
    /\ Alive /\ state = "Unresolved" /\ RequestSound /\ BinaryTrusted
    /\ state' = "Resolved" /\ held' = path
    /\ UNCHANGED <<cause, options, alive, request, binary, staged, place, lock, residue, host, achieved, ran, budget>>

(* The artifact base and the container's directory in it are made or judged, the
   lock of the id is taken, the bundle is read once, judged, and copied.
   runtime/steps/prepare.py: take_place, look_at_bundle                          *)
Prepare ==
    /\ Alive /\ state = "Resolved" /\ BaseSound /\ BundleSound /\ LockFree
    /\ state' = "Prepared" /\ base' = "private" /\ lock' = "ours"
    /\ residue' = residue \union {"directory"}
    /\ UNCHANGED <<cause, options, alive, request, binary, held, staged, bundle, space, cache, host, achieved, ran,
                   budget>>

(* The bytes that the judged descriptor gives. (The reference opens the path again,
   gvisor.rs:834; MustFail.tla.)                                                 *)
Taken == held

(* What the five ways of staging have in common: the bytes still are the judged
   ones, and the ones that the pin names, and now nobody can change them.        *)
Stage ==
    /\ Alive /\ state = "Prepared" /\ SourceUnchanged /\ PinAgrees
    /\ state' = "Staged" /\ staged' = Taken
    /\ UNCHANGED <<cause, options, alive, request, binary, held, base, bundle, space, lock, host, achieved, ran,
                   budget>>

(* A memfd, sealed and hashed after sealing: nothing on disk, nothing to swap.
   runtime/steps/stage.py: stage                                                 *)
StageSealed == UsesSealed /\ Stage /\ UNCHANGED <<residue, cache>>

(* runsc with the binaries that later releases expect beside it: each sealed, to be
   laid out on a private read-only tmpfs.  runtime/steps/stage.py: stage         *)
StageSet == UsesSet /\ Stage /\ UNCHANGED <<residue, cache>>

(* A file in the container's directory, 0555. It is the only method that can run
   out of space, and that leaves something behind.  runtime/steps/stage.py: stage *)
StageCopy == UsesCopy /\ SpaceLeft /\ Stage /\ residue' = residue \union {"stage"} /\ UNCHANGED cache

(* An immutable store, such as Nix's: executed where it lies, by the judged
   descriptor.  runtime/steps/stage.py: stage                                    *)
StageStore == UsesStore /\ Stage /\ UNCHANGED <<residue, cache>>

(* Files that lie once on disk for all launches, by the digest of their bytes, in a
   cache that nobody else can write. They are as they were when they were hashed, or
   are made anew from the judged ones; the child compares them again when it binds
   them, read-only. A supervisor that is not locked could write the cache, so only
   launches that must be locked use it: RequestSound.
   runtime/kept.py: provide, and runtime/steps/stage.py: stage                   *)
StageKept == UsesKept /\ CacheSound /\ Stage /\ cache' = "private" /\ UNCHANGED residue

(* What both confinements have in common: the host can, and canaries sent ahead
   stayed inside: what they tried is in the record.                              *)
Confine(how) ==
    /\ Alive /\ state = "Staged" /\ Fit /\ Asked /\ Available /\ Holds
    /\ state' = "Confined" /\ confined' = how /\ proved' = TRUE
    /\ UNCHANGED <<cause, options, alive, request, binary, held, staged, place, lock, residue, host, ran, budget>>

(* A private mount namespace whose root is the launch's own, with nothing of the
   host's but what the guest gets; all else is NOSUID and NOEXEC, a nested user
   namespace locks it, and signals do not leave it where the kernel can see to that.
   In this order: what is attached after the lock would not be locked, and the host's
   root can be detached only before. Canaries then neither execute nor find a host
   file, undo nothing, and signal nobody.
   runtime/steps/confine.py: start, and runtime/_child.py in the child           *)
ConfineLocked == WantsLocked /\ KeptUnchanged /\ Confine("mount-locked")

(* Landlock with an execute-only allowlist, for programs that do not mount.
   runtime/steps/confine.py: start, and runtime/_child.py in the child           *)
ConfineLandlock == WantsLandlock /\ Compatible /\ Confine("landlock")

(* No confinement, because none was asked for, or because what was asked for as a
   best effort cannot be had. The record says that it was not achieved.
   runtime/steps/confine.py: start                                               *)
ConfineSkipped ==
    /\ Alive /\ state = "Staged" /\ Fit /\ MaySkip
    /\ state' = "Confined"
    /\ UNCHANGED <<cause, options, alive, request, binary, held, staged, place, lock, residue, host, achieved, ran,
                   budget>>

(* What execve gets: the staged bytes. Those that are kept lie where they can be
   changed by whoever can write the cache, until they are bound.                 *)
Executed == IF UsesKept /\ cache = "changed" THEN "rewritten" ELSE staged

(* execve of the staged bytes, by descriptor. The parent learns of it from the end
   of a pipe that closes on exec.  runtime/steps/exec_.py: in_child, in_place    *)
Exec ==
    /\ Alive /\ state = "Confined" /\ Evidenced /\ ExecvePermitted
    /\ state' = "Exec'd" /\ image' = Executed
    /\ UNCHANGED <<cause, options, alive, request, binary, held, staged, place, lock, residue, host, achieved, guest,
                   budget>>

Forward == \/ Resolve \/ Prepare
           \/ StageSealed \/ StageSet \/ StageCopy \/ StageStore \/ StageKept
           \/ ConfineLocked \/ ConfineLandlock \/ ConfineSkipped
           \/ Exec

--------------------------------------------------------------------------------
(* System, when a step finds that it must not be taken, or cannot. One action for
   each step and cause; each cause is a class of model/errors.py, and what they do
   is always the same.  runtime/steps/fail.py: unwind                            *)

(* The launch ends, and all that it made is unmade, except what is `left` on disk.
   A child that had confined itself is gone, and the parent never was confined.  *)
Fail(from, why, left) ==
    /\ Alive /\ state = from
    /\ state' = "Failed" /\ cause' = why
    /\ held' = "nothing" /\ staged' = "nothing"
    /\ lock' = IF lock = "ours" THEN "free" ELSE lock
    /\ residue' = left
    /\ confined' = "none" /\ proved' = FALSE
    /\ UNCHANGED <<options, alive, request, binary, place, host, ran, budget>>

(* Unresolved: a bad id, argument, option or limit; no runsc at any candidate; one
   that others could have written, or that is no executable for this machine.    *)
FailRequest   == ~RequestSound /\ Fail("Unresolved", "bad_request", {})
FailNotFound  == BinaryAbsent  /\ Fail("Unresolved", "not_found", {})
FailUntrusted == BinaryForged  /\ Fail("Unresolved", "untrusted_binary", {})

(* Resolved: the base is not private to the caller; the bundle is unsound, or asks
   for something outside the sandbox; another launch has this container id.      *)
FailBase   == ~BaseSound   /\ Fail("Resolved", "untrusted_base", {})
FailBundle == ~BundleSound /\ Fail("Resolved", "bad_bundle", {})
FailBusy   == LockTheirs   /\ Fail("Resolved", "busy", {})

(* Prepared: the bytes behind the descriptor changed after they were judged; they
   are not the ones that the pin names; there is no room for the copy; others can
   write the cache.                                                              *)
FailChanged == ~SourceUnchanged /\ Fail("Prepared", "changed", {})
FailPin     == ~PinAgrees       /\ Fail("Prepared", "pin_mismatch", {})
FailSpace   == ~SpaceLeft       /\ Fail("Prepared", "no_space", {})
FailCache   == ~CacheSound      /\ Fail("Prepared", "untrusted_cache", {})

(* Staged: the sealed bytes do not answer as the runsc that was asked for; the
   program could not live in the confinement; the host does not permit it; a
   canary got out; what is kept was changed before it was bound.                 *)
FailUnfit        == ~Fit                                           /\ Fail("Staged", "unfit", {})
FailIncompatible == Required /\ ~Compatible                        /\ Fail("Staged", "incompatible", {})
FailConfine      == Required /\ Compatible /\ ~Available           /\ Fail("Staged", "cannot_confine", {})
FailUnproved     == Required /\ Compatible /\ Available /\ ~Holds  /\ Fail("Staged", "not_proved", {})
FailKept         == ~KeptUnchanged                                 /\ Fail("Staged", "kept_changed", {})

(* Confined: the kernel answers execve with an error, or the child died before it
   could be seen to have executed. It is told to a parent that is not confined.  *)
FailExec == ~ExecvePermitted /\ Fail("Confined", "exec_refused", {})

(* Anywhere: a system call that the step needs answers EIO, ENOMEM, EMFILE ..., or
   the caller is interrupted.                                                    *)
FailFault ==
    /\ ~CallsWork
    /\ \E from \in States \ Terminal : Fail(from, "fault", {})

(* The same, and unwinding failed as well: what is left is said, and Collect is
   left to remove it.                                                            *)
FailDirty ==
    /\ ~CallsWork /\ HasResidue
    /\ \E from \in States \ Terminal : Fail(from, "left_behind", residue)

Failures == \/ FailRequest \/ FailNotFound \/ FailUntrusted
            \/ FailBase \/ FailBundle \/ FailBusy
            \/ FailChanged \/ FailPin \/ FailSpace \/ FailCache
            \/ FailUnfit \/ FailIncompatible \/ FailConfine \/ FailUnproved \/ FailKept
            \/ FailExec
            \/ FailFault \/ FailDirty

System == Forward \/ Failures

--------------------------------------------------------------------------------
(* Afterwards: once the launcher is done or dead. *)

(* Can the image come up. A process under Landlock may not call mount, and runsc
   must; it would wait for its sandbox for ever. This is the world's rule, not
   ours: Compatible is the guard that keeps launches away from it.               *)
Boots == ~(program = "runsc" /\ confined = "landlock")

(* runsc's own part, by no function of ours: it mounts, executes itself again as
   another user, and the guest's kernel answers.                                 *)
GuestStarts ==
    /\ state = "Exec'd" /\ GuestNotYet
    /\ guest' = IF Boots THEN "running" ELSE "stuck"
    /\ UNCHANGED <<state, cause, options, alive, request, binary, held, staged, place, lock, residue, host, achieved,
                   image, budget>>

(* A later launch, or `nucleus-gvisor gc`, removes what a killed launch left, or one
   that could not unwind. Only the id's lock tells that nobody is there any more; a
   running guest's is still held.  runtime/cleanup.py: collect                   *)
Collect ==
    /\ state # "Exec'd" /\ HasResidue /\ LockFree
    /\ residue' = {}
    /\ UNCHANGED <<state, cause, options, alive, request, binary, held, staged, place, lock, host, achieved, ran,
                   budget>>

Afterwards == GuestStarts \/ Collect

--------------------------------------------------------------------------------
(* Environment: the host, its other users, the adversary. Each action has a twin
   in the tests that really does it: a rename, a chmod, a full disk, a SIGKILL.
   Each strikes at most once, while it can still matter to the launch.           *)

(* The launch is under way, not past `last`, and the environment may still act. *)
Strikes(last) ==
    /\ Alive /\ state \notin Terminal /\ Rank[state] <= Rank[last]
    /\ budget > 0 /\ budget' = budget - 1

(* An id, option, argument or resource limit is impossible, or becomes so. *)
MalformRequest ==
    /\ request = TRUE /\ Strikes("Unresolved") /\ request' = FALSE
    /\ UNCHANGED <<launcher, binary, held, place, lock, host>>

(* Another file is renamed over runsc, or made writable by others; or a directory
   or link on the way is another's.                                              *)
SwapBinary ==
    /\ path = "trusted" /\ Strikes("Prepared") /\ path' = "forged"
    /\ UNCHANGED <<launcher, request, pin, fit, held, place, lock, host>>

RemoveBinary ==
    /\ path = "trusted" /\ Strikes("Prepared") /\ path' = "absent"
    /\ UNCHANGED <<launcher, request, pin, fit, held, place, lock, host>>

(* Its trusted owner writes to the very file that we hold open: an upgrade that does
   not rename, a truncation.                                                     *)
RewriteInPlace ==
    /\ held = "trusted" /\ Strikes("Prepared") /\ held' = "rewritten"
    /\ UNCHANGED <<launcher, request, binary, place, lock, host>>

(* What is installed is sound, and not the release that the pin names. *)
OtherRelease ==
    /\ pin = "match" /\ Strikes("Prepared") /\ pin' = "mismatch"
    /\ UNCHANGED <<launcher, request, path, fit, held, place, lock, host>>

(* A trusted program that is not runsc, or a runsc that lacks the platform. Of a
   program that was not to be runsc nothing is asked that it could answer wrongly. *)
Impostor ==
    /\ fit = TRUE /\ program = "runsc" /\ Strikes("Staged") /\ fit' = FALSE
    /\ UNCHANGED <<launcher, request, path, pin, held, place, lock, host>>

(* A link, a foreign owner or a loose mode where the artifact base should be. *)
SpoilBase ==
    /\ base = "absent" /\ Strikes("Resolved") /\ base' = "hostile"
    /\ UNCHANGED <<launcher, request, binary, held, bundle, space, cache, lock, host>>

(* The bundle is another's, no bundle, or carries hooks. *)
SpoilBundle ==
    /\ bundle = "sound" /\ Strikes("Resolved") /\ bundle' = "hostile"
    /\ UNCHANGED <<launcher, request, binary, held, base, space, cache, lock, host>>

(* A second launcher with the same container id is quicker. *)
OtherTakesLock ==
    /\ lock = "free" /\ Strikes("Resolved") /\ lock' = "theirs"
    /\ UNCHANGED <<launcher, request, binary, held, place, host>>

(* The base's file system, or a quota on it, has no room for a copy of runsc, some
   tens of megabytes: that only StageCopy asks about. Where there is room for nothing
   at all, not for a directory or a line of the record, calls fail: BreakCall.       *)
FillDisk ==
    /\ space = TRUE /\ Strikes("Prepared") /\ space' = FALSE
    /\ UNCHANGED <<launcher, request, binary, held, base, bundle, cache, lock, host>>

(* The cache, or a directory above it, is opened to others. *)
OpenCache ==
    /\ method = "kept" /\ cache = "private" /\ Strikes("Prepared") /\ cache' = "hostile"
    /\ UNCHANGED <<launcher, request, binary, held, base, bundle, space, lock, host>>

(* What is kept is swapped, rewritten, or given another mode or name: by whoever may
   write the cache, root and the caller's own account.                           *)
SwapKept ==
    /\ method = "kept" /\ cache = "private" /\ Strikes("Staged") /\ cache' = "changed"
    /\ UNCHANGED <<launcher, request, binary, held, base, bundle, space, lock, host>>

(* user.max_user_namespaces=0, or a security module that forbids them. *)
DenyUserns ==
    /\ userns = TRUE /\ Strikes("Staged") /\ userns' = FALSE
    /\ UNCHANGED <<launcher, request, binary, held, place, lock, landlock, holds, execve, calls>>

(* A kernel without Landlock, or with it disabled at boot. *)
DenyLandlock ==
    /\ landlock = TRUE /\ Strikes("Staged") /\ landlock' = FALSE
    /\ UNCHANGED <<launcher, request, binary, held, place, lock, userns, holds, execve, calls>>

(* Every call succeeded, and still a canary runs or finds a host file, undoes the
   flags, or signals a process outside.                                          *)
LeakConfinement ==
    /\ holds = TRUE /\ Strikes("Staged") /\ holds' = FALSE
    /\ UNCHANGED <<launcher, request, binary, held, place, lock, userns, landlock, execve, calls>>

(* execve answers ENOEXEC, EACCES, ENOMEM, E2BIG ..., or the child is killed. *)
RefuseExecve ==
    /\ execve = TRUE /\ Strikes("Confined") /\ execve' = FALSE
    /\ UNCHANGED <<launcher, request, binary, held, place, lock, userns, landlock, holds, calls>>

(* Any other system call fails from here on: EIO, ENOMEM, a full file system. *)
BreakCall ==
    /\ calls = TRUE /\ Strikes("Confined") /\ calls' = FALSE
    /\ UNCHANGED <<launcher, request, binary, held, place, lock, userns, landlock, holds, execve>>

(* SIGKILL of the launcher. The kernel drops its lock, its memory and, as the child
   dies with it, its namespaces; what is on disk stays.                          *)
Kill ==
    /\ Strikes("Confined")
    /\ alive' = FALSE /\ held' = "nothing" /\ staged' = "nothing"
    /\ lock' = IF lock = "ours" THEN "free" ELSE lock
    /\ confined' = "none" /\ proved' = FALSE
    /\ UNCHANGED <<state, cause, options, request, binary, place, residue, host, ran>>

Environment == \/ MalformRequest
               \/ SwapBinary \/ RemoveBinary \/ RewriteInPlace \/ OtherRelease \/ Impostor
               \/ SpoilBase \/ SpoilBundle \/ OtherTakesLock
               \/ FillDisk \/ OpenCache \/ SwapKept \/ DenyUserns \/ DenyLandlock \/ LeakConfinement
               \/ RefuseExecve \/ BreakCall
               \/ Kill

--------------------------------------------------------------------------------
Next == System \/ Afterwards \/ Environment

(* What is promised about time: a launcher that can take a step takes one; runsc
   comes up; somebody collects in the end. Nothing is promised about the
   environment.                                                                  *)
Fairness == WF_vars(System) /\ WF_vars(GuestStarts) /\ WF_vars(Collect)

Spec == Init /\ [][Next]_vars /\ Fairness

--------------------------------------------------------------------------------
(* Invariants. *)

TypeOK ==
    /\ state \in States /\ cause \in Causes
    /\ enforcement \in Enforcements /\ confinement \in Confinements
    /\ method \in Methods /\ program \in Programs
    /\ alive \in BOOLEAN /\ request \in BOOLEAN
    /\ path \in {"trusted", "absent", "forged"}
    /\ held \in {"nothing", "trusted", "rewritten"}
    /\ pin \in {"none", "match", "mismatch"}
    /\ staged \in {"nothing", "trusted", "rewritten"}
    /\ fit \in BOOLEAN
    /\ base \in {"absent", "private", "hostile"}
    /\ bundle \in {"sound", "hostile"}
    /\ cache \in {"private", "hostile", "changed"}
    /\ lock \in {"free", "ours", "theirs"}
    /\ residue \subseteq {"directory", "stage"}
    /\ userns \in BOOLEAN /\ landlock \in BOOLEAN /\ holds \in BOOLEAN
    /\ space \in BOOLEAN /\ execve \in BOOLEAN /\ calls \in BOOLEAN
    /\ confined \in {"none", "landlock", "mount-locked"}
    /\ proved \in BOOLEAN
    /\ image \in {"none", "trusted", "rewritten"}
    /\ guest \in {"none", "running", "stuck"}
    /\ budget \in Nat

(* What runs is what was judged, whatever happened at the path. *)
RunsVerifiedBytes == image \in {"none", "trusted"}

(* Nothing runs that the pin does not name. *)
PinHonoured == image = "none" \/ pin # "mismatch"

(* With enforcement `required`, what runs is confined as asked, and that was shown
   from inside.                                                                  *)
RequiredMeansConfined ==
    (state = "Exec'd" /\ enforcement = "required") => (confined = confinement /\ proved)

(* No image without Exec'd, and no guest without an image. *)
NothingRunsUnlessExecd ==
    /\ image # "none" => state = "Exec'd"
    /\ guest # "none" => image # "none"

(* A failed launch holds nothing, and leaves nothing on disk unless it says so. *)
FailedLeavesNothing ==
    state = "Failed" =>
        /\ lock # "ours" /\ held = "nothing" /\ staged = "nothing" /\ confined = "none"
        /\ residue = {} \/ cause = "left_behind"

(* A cause is named exactly when the launch has failed. *)
CauseIffFailed == (cause # "none") <=> (state = "Failed")

(* runsc is never started under a confinement in which it would hang. *)
ConfinedCanMount == guest # "stuck"

(* There is proof exactly of what was achieved. *)
ProofIsOfConfinement == proved <=> (confined # "none")

(* What runs had everything that each step asks for: no guard was passed by. The
   place is private and ours by its lock, the bundle sound, the binary fit; a copy
   lies on disk exactly when a copy was asked for, and had room there; and what is
   kept was private and unchanged, and is executed under mount-locked alone.       *)
ExecMeansAllWasWell ==
    image # "none" =>
        /\ request /\ fit /\ execve
        /\ base = "private" /\ bundle = "sound" /\ lock = "ours" /\ "directory" \in residue
        /\ ("stage" \in residue) <=> (method = "copy")
        /\ (method = "copy") => space
        /\ (method = "kept") => (cache = "private" /\ confined = "mount-locked")

(* A confinement that the record shows is the one asked for, on a host that has it
   and where the canaries stayed inside: nobody is told of one that was not there. *)
ConfinedMeansHostCan ==
    (state = "Exec'd" /\ confined # "none") =>
        /\ enforcement # "off" /\ confined = confinement /\ holds
        /\ IF confined = "landlock" THEN landlock ELSE userns

(* Best effort is an effort: it runs unconfined only where it could not be had. *)
SkippedMeansCannot ==
    (state = "Exec'd" /\ confined = "none" /\ enforcement = "best_effort") => ~CanConfine

(* The error names what is so: whoever mends what it says mends the right thing.
   (`changed` is not here: what it speaks of is let go of with the descriptor.)    *)
CauseIsTrue ==
    /\ (cause = "bad_request") => (~request \/ (method = "kept" /\ ~(Required /\ WantsLocked)))
    /\ (cause = "not_found") => path = "absent"
    /\ (cause = "untrusted_binary") => path = "forged"
    /\ (cause = "untrusted_base") => base = "hostile"
    /\ (cause = "bad_bundle") => bundle = "hostile"
    /\ (cause = "busy") => lock = "theirs"
    /\ (cause = "pin_mismatch") => pin = "mismatch"
    /\ (cause = "no_space") => (method = "copy" /\ ~space)
    /\ (cause = "untrusted_cache") => (method = "kept" /\ cache = "hostile")
    /\ (cause = "kept_changed") => (method = "kept" /\ cache = "changed")
    /\ (cause = "unfit") => (program = "runsc" /\ ~fit)
    /\ (cause = "incompatible") => (Required /\ confinement = "landlock" /\ program = "runsc")
    /\ (cause = "cannot_confine") => (Required /\ Compatible /\ ~Available)
    /\ (cause = "not_proved") => (Required /\ Compatible /\ Available /\ ~holds)
    /\ (cause = "exec_refused") => ~execve
    /\ (cause \in {"fault", "left_behind"}) => ~calls

--------------------------------------------------------------------------------
(* Action properties. *)

Onward == {<<"Unresolved", "Resolved">>, <<"Resolved", "Prepared">>, <<"Prepared", "Staged">>,
           <<"Staged", "Confined">>, <<"Confined", "Exec'd">>}

(* The launch state moves one step along the path, or to Failed, or stays; what is
   Exec'd or Failed stays so.                                                    *)
OnlyForward ==
    [][\/ state' = state
       \/ state \notin Terminal /\ state' = "Failed"
       \/ <<state, state'>> \in Onward]_vars

(* What was asked for does not change under way. *)
OptionsAreFixed == [][UNCHANGED options]_vars

(* Once confined, never less, except that a failed or killed launch has no process
   left to confine.                                                              *)
NeverLessConfined ==
    [][(confined # "none") => (confined' = confined \/ state' = "Failed" \/ ~alive')]_vars

(* A killed launcher changes no state and starts nothing. *)
DeadDoNothing == [][~alive => (state' = state /\ image' = image)]_vars

(* The first reason is the one that is told; what goes wrong after it hides it not. *)
CauseIsFinal == [][(cause # "none") => (cause' = cause)]_vars

(* "left_behind" is said only of what is there, and by the step that leaves it. *)
LeftMeansResidue ==
    [][(cause = "none" /\ cause' = "left_behind") => (residue # {} /\ residue' = residue)]_vars

(* While another launch has the id, this one neither takes the lock nor touches the
   container's directory.                                                        *)
LockIsRespected == [][(lock = "theirs") => (lock' = lock /\ residue' = residue)]_vars

(* A base or a cache that others could have prepared is not mended and not built upon;
   and what is kept is as it was, or made anew, when it is staged.               *)
BaseIsRespected ==
    [][/\ (base = "hostile") => (base' = base /\ residue' = residue)
       /\ (cache = "hostile") => (cache' = cache)
       /\ (state = "Prepared" /\ state' = "Staged" /\ method = "kept") => (cache' = "private")]_vars

--------------------------------------------------------------------------------
(* Liveness, under Fairness. *)

EveryLaunchEnds == <>(state \in Terminal \/ ~alive)

GuestRuns == (state = "Exec'd") ~> (guest = "running")

(* What a killed launch left, or a failed one that said so, does not stay. *)
CrashCollected == (~alive \/ state = "Failed") ~> (residue = {})

(* Undisturbed, a launch runs its guest, unless it asks for what cannot be. Only
   launches with budget 0 are known to be undisturbed.                           *)
UndisturbedRuns ==
    (budget = 0 /\ RequestSound /\ (Compatible \/ ~Required)) => <>(state = "Exec'd" /\ guest = "running")

--------------------------------------------------------------------------------
(* Refinement: seen from the guest, a launch is AbstractGVisor's one step. *)

Abstract == INSTANCE AbstractGVisor WITH
    kernel      <- IF guest = "running" THEN "gvisor_kernel" ELSE "native_kernel",
    intercepted <- state = "Exec'd" /\ image = "trusted" /\ guest = "running"

RefinesAbstract == Abstract!Spec
================================================================================
