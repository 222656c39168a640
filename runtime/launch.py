"""One launch: the machine, its steps, its record. This is the story; each step's work is in its own module.

Options and bundle go in, `drive` fires one action after the other, and every effect is asked for by the machine
through `observe` (look, before the guards judge) and `perform` (do, and show that it is done).
"""

import errno
import json
import os
import resource
import secrets
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nucleus_gvisor.model.errors import (
    BadArgument,
    BadBase,
    BadBundle,
    ConfineFailed,
    GuardRefused,
    Incompatible,
    LaunchError,
    Limit,
    NotProved,
    Refused,
    SafetyViolation,
    StepFailed,
    Unsupported,
    remedy,
)
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.machine import LaunchMachine, fresh
from nucleus_gvisor.model.record import TransitionRecord, set_digest
from nucleus_gvisor.model.states import TERMINAL, LaunchState
from nucleus_gvisor.model.table import CONFINE, STAGE, failure_row
from nucleus_gvisor.runtime import _child, image, interpreter, kept, retention, runsc, workspace
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.audit import Record
from nucleus_gvisor.runtime.bundle import HostPath, OciBundle
from nucleus_gvisor.runtime.cleanup import Place
from nucleus_gvisor.runtime.fields import told
from nucleus_gvisor.runtime.guest import Tree
from nucleus_gvisor.runtime.hooks import Hooks, judge
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.ids import Owners, subordinate
from nucleus_gvisor.runtime.limits import Held, Limits
from nucleus_gvisor.runtime.options import (
    Audit,
    Confinement,
    Enforcement,
    GVisorOciRunOptions,
    NetworkMode,
    Platform,
    StageMethod,
    Writable,
    judge_id,
)
from nucleus_gvisor.runtime.paths import NAME_A_BASE, calls, file_id, make_directory, open_base
from nucleus_gvisor.runtime.said import Said
from nucleus_gvisor.runtime.steps import confine, exec_, fail, prepare, resolve, stage
from nucleus_gvisor.runtime.streams import open_standard_descriptors
from nucleus_gvisor.runtime.version import VERSION


class Least(NamedTuple):
    """The name of a resource limit, and the least values with which a launch works."""

    name: str
    soft: int
    hard: int = 0

    def lacking(self, values: tuple[int, int]) -> tuple[str, int, int] | None:
        """Which limit of `values`, as getrlimit(2) has them, is too low: `soft` or `hard`, what it is, the least."""
        for kind, value, least in (("soft", values[0], self.soft), ("hard", values[1], self.hard)):
            if value != resource.RLIM_INFINITY and value < least:
                return kind, value, least
        return None


LIMITS = {
    # The soft one is the caller's own need: runsc raises its to the hard one. The sentry has the guest's standard
    # streams at 256, 257 and 258 (startingStdioFD in gVisor's runsc/boot/loader.go), and ends where they cannot be.
    resource.RLIMIT_NOFILE: Least("RLIMIT_NOFILE", 128, 259),
    resource.RLIMIT_FSIZE: Least("RLIMIT_FSIZE", 1 << 30),
    resource.RLIMIT_AS: Least("RLIMIT_AS", 1 << 36),
    resource.RLIMIT_NPROC: Least("RLIMIT_NPROC", 64),
}
"""Below these, runsc fails or hangs after exec."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SKIPPABLE = (ConfineFailed, NotProved, Incompatible)


class Launch:
    """The steps of one launch (the machine's `Steps`), and the one place that holds what they made.

    `bundle` is an OciBundle, or the directory of one, which is then loaded and judged in Prepare. With `checkpoint`
    runsc restores the image in that directory rather than run what the bundle says.
    """

    def __init__(
        self,
        container_id: str,
        bundle: OciBundle | str | os.PathLike[str],
        options: GVisorOciRunOptions,
        *,
        runsc_path: bytes | None = None,
        in_place: bool = False,
        stdio: tuple[int, int, int] = (0, 1, 2),
        die_with_parent: bool = False,
        fresh_interpreter: bool | None = None,
        attendant: int | None = None,
        tree: Tree | None = None,
        limits: Held | None = None,
        checkpoint: HostPath | None = None,
    ) -> None:
        self.container_id: str = container_id
        self.options: GVisorOciRunOptions = options
        self.record: Record = Record()
        self._ledger = linux.Ledger()
        self.launch_id: str = secrets.token_hex(16)
        self._bundle, self._runsc_path, self._in_place = bundle, runsc_path, in_place
        self._stdio, self._die_with_parent, self._fresh = stdio, die_with_parent, fresh_interpreter
        self._attendant = attendant
        self._own = () if tree is None else (tree,)
        """What of ours the guest is to see beside what its bundle brings."""
        self.limits: Held | None = limits if limits is not None or in_place else Held(Limits())
        """None in place, where nobody is left to see to any."""
        self.hooks: Hooks | None = None
        self.owners: Owners = Owners(None, None, None)
        """Whose the guest's files can be."""
        self._lost: tuple[str, ...] = ()
        """Fields of the bundle that nobody keeps, and that are left out."""
        self._checkpoint = checkpoint
        self._image: image.Image | None = None
        self.workspace: workspace.Copy | None = None
        """The copy that the guest works on."""
        self.made_with: Mapping[str, Any] = {}
        """What a checkpoint of this sandbox must be restored with."""
        self._identity: Identity | None = None
        self._judged: resolve.Judged | None = None
        self.place: Place | None = None
        self._guest: prepare.Guest | None = None
        self._held: dict[str, stage.Sealed] = {}
        self._kept: kept.Kept | None = None
        self._not_kept: str | None = None
        """Why `auto` keeps nothing."""
        self._staged: stage.Staged | None = None
        self._plan: dict[str, Any] = {}
        self._laid_out = False
        self.confined: confine.Confined | None = None
        self.said: Said | None = None
        """Where runsc says why it failed; in place there is nobody to hear it."""
        self.command: tuple[bytes, ...] = ()
        """The arguments that the image was given."""
        self._trouble: LaunchError | None = None
        self.machine: LaunchMachine | None = None
        self._looks: dict[str, Callable[[], None]] = {
            "Prepare": self._look_prepare,
            **dict.fromkeys(STAGE.values(), self._look_stage),
            "ConfineLocked": lambda: self._look_confine(Confinement.MOUNT_LOCKED),
            "ConfineLandlock": lambda: self._look_confine(Confinement.LANDLOCK),
            "ConfineSkipped": lambda: self._look_confine(None),
        }
        self._acts: dict[str, Callable[[Facts], Mapping[str, object]]] = {
            "Resolve": self._resolve,
            "Prepare": self._prepare,
            **dict.fromkeys(STAGE.values(), self._stage),
            **dict.fromkeys((*CONFINE.values(), "ConfineSkipped"), self._confine),
            "Exec": self._exec,
        }

    # ---- the story ----

    def drive(self) -> None:
        """Take the launch to Exec'd, or to Failed and raise why.

        Raises a LaunchError with the record on it. What interrupts (KeyboardInterrupt, MemoryError) unwinds the
        launch likewise, and is raised as it came. In place, a success does not return.
        """
        self._ledger.use()
        try:
            machine = self.begin()
            machine.fire("Resolve")
            machine.fire("Prepare")
            machine.fire(STAGE[machine.facts.method])
            self._fire_confine(machine)
            machine.fire("Exec")
            self.record.close()
        except BaseException as error:
            try:
                reason = self.failed(error)
            finally:
                self.undo()
            raise reason from reason.__cause__

    def undo(self) -> None:
        """Close, end and remove all that is left of it, whatever line it was interrupted on."""
        self._ledger.use()
        self.record.close()
        try:
            if self.confined is not None or self.place is not None:
                self._unwind()
        finally:
            self._ledger.release()

    def hand_over(self) -> None:
        """The child runs: what it and its place hold open is theirs to close, and not the launch's any more."""
        self._ledger.processes.clear()
        self._ledger.descriptors.clear()
        linux.Ledger().use()

    def begin(self) -> LaunchMachine:
        """The machine, in Unresolved. The binary has been looked at: whether it has side binaries decides the stage."""
        self._look(open_standard_descriptors)
        self.record.audit = self.options.audit.value
        if self.options.audit is Audit.OFF:
            self.record.problem = "not asked for: audit is off"
        elif named := self.options.record:
            self._recorded(lambda: self.record.open(named))
        self._look(self._look_resolve)
        container = str(self.container_id)[:64]
        by = {"version": VERSION}
        self.machine = LaunchMachine(
            self._begin(), self, sink=self._sink, launch=self.launch_id, container=container, by=by
        )
        return self.machine

    def _begin(self) -> Facts:
        options = self.options
        method = options.stage.value
        if options.stage is StageMethod.AUTO:
            method = self._choose().value
        return fresh(
            enforcement=options.enforcement.value,
            confinement=options.confinement.value,
            method=method,
            program=options.program.value,
            pin="none" if options.pin is None else "match",
        )

    def _choose(self) -> StageMethod:
        """How `auto` stages: whatever is chosen runs under what may become of this launch's confinement."""
        side = self._judged is not None and bool(self._judged.side)
        if self._judged is not None and self._identity is not None and self._must_lock:
            held = linux.ledger().descriptors
            before = set(held)
            try:
                self._kept = kept.provide(self._judged, self._identity)
                return StageMethod.KEPT
            except (LaunchError, OSError) as error:
                self._not_kept = str(error)
                for fd in set(held) - before:  # the launch goes on without them
                    linux.close(fd)
        if not side:
            return StageMethod.SEALED
        return StageMethod.SET if self._must_lock else StageMethod.COPY

    @property
    def _must_lock(self) -> bool:
        """Will its supervisor certainly be unable to write what it has not been given."""
        options = self.options
        return options.confinement is Confinement.MOUNT_LOCKED and options.enforcement is Enforcement.REQUIRED

    def _fire_confine(self, machine: LaunchMachine) -> None:
        if self.options.enforcement is Enforcement.OFF:
            machine.fire("ConfineSkipped")
            return
        try:
            machine.fire(CONFINE[self.options.confinement.value])
        except LaunchError:
            why = self._trouble
            if self.options.enforcement is not Enforcement.BEST_EFFORT or not isinstance(why, _SKIPPABLE):
                raise
            self._trouble = None
            machine.fire("ConfineSkipped", why.shows)

    def failed(self, error: BaseException) -> BaseException:
        """End in Failed, and say why: what the steps found rather than the guard that refused because of it."""
        reason = self._trouble if isinstance(error, GuardRefused) and self._trouble is not None else error
        if isinstance(reason, OSError):
            told: LaunchError = StepFailed(
                "system call failed", observed=str(reason), expected="no error", hint=remedy(reason)
            )
            told.__cause__ = reason
            reason = told
        else:
            told = (
                reason
                if isinstance(reason, LaunchError)
                else StepFailed(
                    f"interrupted by {type(reason).__name__}",
                    observed=repr(reason),
                    expected="a launch that is left to end",
                    hint="launch again: nothing was left behind",
                )
            )
        self._trouble = told
        if self.machine is None:
            self._unwind()
        elif self.machine.state not in TERMINAL:
            if len(self.record.lines) > len(self.machine.records):  # written, and then interrupted
                self.record.retract()
            self.machine.fail(told)
        told.record = self.record
        return reason

    def _sink(self, line: TransitionRecord) -> None:
        """Have the line on disk; in place, Exec's line is followed by execve itself, and taken back when it refuses."""
        if line.dest == LaunchState.FAILED:
            self.record.end(line)
            return
        self.record.append(line)
        if self._in_place and line.action == "Exec":
            try:
                argv, env = self._command()
                exec_.in_place(self._image_in_place(), argv, env)
            except BaseException:
                self.record.retract()
                raise

    # ---- Steps ----

    def observe(self, action: str, facts: Facts) -> Mapping[str, object]:
        """Look, for `action`; what was refused is kept, and told in the facts' own terms."""
        if action in self._looks:
            self._look(self._looks[action])
        elif action != "Resolve":  # which was looked at before the machine began
            return {}
        why = self._trouble
        if why is None:
            return {}
        return why.shows if failure_row(facts.state, why.cause).cause == why.cause else StepFailed.shows

    def perform(self, action: str, before: Facts, after: Facts) -> Mapping[str, object]:
        """Do what `action` says. A failure's work is to unmake everything."""
        if action.startswith("Fail"):
            return self._unwind() if action != "FailDirty" else {"problem": "not all could be removed"}
        if self._trouble is not None:  # a guard should have refused; never act on what was found wanting
            raise self._trouble
        return self._acts[action](before)

    def _look(self, look: Callable[[], None]) -> None:
        try:
            look()
        except LaunchError as error:
            self._trouble = error
        except OSError as error:
            self._trouble = StepFailed(
                "system call failed", observed=str(error), expected="no error", hint=remedy(error)
            )
            self._trouble.__cause__ = error

    # ---- Resolve ----

    def _look_resolve(self) -> None:
        interpreter.judge_calls()
        _judge_limits()
        judge_id(self.container_id)
        options = self.options
        if options.stage is StageMethod.SET and options.confinement is not Confinement.MOUNT_LOCKED:
            raise BadArgument(
                "the set is staged on a tmpfs that only mount-locked makes",
                step="Resolve",
                observed=options.confinement.value,
                expected="mount-locked",
                hint='stage="copy"',
            )
        if options.stage is StageMethod.KEPT and not self._must_lock:
            raise BadArgument(
                "what is kept is executed by launches alone that cannot write it",
                step="Resolve",
                observed=f"confinement {options.confinement}, enforcement {options.enforcement}",
                expected='confinement="mount-locked" and enforcement="required"',
                hint='stage="auto"',
            )
        self._identity = Identity.current()
        store = options.stage is StageMethod.STORE
        self._judged = resolve.resolve(self._runsc_path, self._identity, pin=options.pin, store=store)
        if self._judged.side and options.stage in (StageMethod.SEALED, StageMethod.STORE):
            side = len(self._judged.side)
            raise BadArgument(
                "this runsc has side binaries, which only a set or a copy keeps beside it",
                step="Resolve",
                observed=f"{side} in gvisor-bin",
                hint='stage="auto"',
                expected='stage="auto" or stage="copy"',
            )

    def _resolve(self, _: Facts) -> Mapping[str, object]:
        assert self._judged is not None
        return {"files": [_described(file) for file in self._judged.files], "pin": self.options.pin}

    # ---- Prepare ----

    def _look_prepare(self) -> None:
        assert self._identity is not None
        self.place = prepare.take_place(self.container_id, self.options.artifact_base, self._identity)
        self._judge_shared_base(self.place.shared)
        bundle = self._bundle
        if not isinstance(bundle, OciBundle):
            bundle = OciBundle.load(
                os.fspath(bundle),
                allow_hooks=self.options.allow_hooks,
                allow_flag_annotations=self.options.allow_flag_annotations,
            )
        self._judge_words(bundle)
        self._guest = self._look_at(bundle)
        self._judge_network(bundle)
        if self._guest.writable is Writable.DISK:
            prepare.require_disk(self.place.base, self.place.path)
            if self.limits is None or self.limits.limits.disk is None:
                raise BadArgument(
                    "a layer on disk has to have a limit",
                    step="Prepare",
                    observed="none",
                    expected="a limit `disk`, and an attendant that watches it",
                    hint="Limits(disk=...)",
                )
        if not self._in_place:
            name = f"{self.container_id}.{self.launch_id[:12]}"
            self.said = Said.made(self.options.debug_dir, name, self._identity)
        if self._checkpoint is not None:
            self._image = image.judged(self._checkpoint)
            self._image.compare(self._description())

    def _look_at(self, bundle: OciBundle) -> prepare.Guest:
        ours = [] if self.place is None else [self.place.base_path]
        if self._identity is not None:
            ours += kept.places(self._identity)
        return prepare.look_at_bundle(bundle, self.options.writable, *self._own, ours=ours, fills=self._must_lock)

    def _description(self) -> dict[str, Any]:
        assert self._guest is not None
        return image.description(self._guest.bundle, self.options.network_mode.value, self._guest.root)

    def _judge_shared_base(self, shared: bytes) -> None:
        """Below a directory that others write, a base holds locks and records alone: nothing is executed from it, and
        runsc reads nothing there.
        """
        options = self.options
        asked = (options.confinement, options.enforcement, options.stage is StageMethod.COPY)
        if shared and asked != (Confinement.MOUNT_LOCKED, Enforcement.REQUIRED, False):
            raise BadBase(
                "the artifact base lies below a directory that others write",
                step="Prepare",
                path=shared,
                observed=f"confinement {options.confinement}, enforcement {options.enforcement}, stage {options.stage}",
                expected='confinement="mount-locked", enforcement="required", and not stage="copy"',
                hint=NAME_A_BASE,
            )

    @property
    def _locks(self) -> bool:
        """Is mount-locked asked for."""
        return self.options.confinement is Confinement.MOUNT_LOCKED and self.options.enforcement is not Enforcement.OFF

    def _judge_words(self, bundle: OciBundle) -> None:
        """What the bundle asks for of others than its guest: brought to whoever keeps it, or refused.

        With limits of `best_effort` what nobody keeps is left out instead.
        """
        assert self._identity is not None
        lost, asked = bundle.lost(locked=self._locks), bundle.limits
        if self.limits is None:  # in place
            if bundle.hooks:
                raise Refused(
                    "hooks refused: nobody is left to run them",
                    step="Prepare",
                    path=bundle.bundle_path,
                    observed=", ".join(name for name, _ in bundle.hooks),
                    expected="no hooks for a launch in place",
                    hint="use spawn",
                )
            lost |= {"linux.resources": asked} if asked else {}
        score = bundle.config["process"].get("oomScoreAdj")
        # proc(5): to lower it takes CAP_SYS_RESOURCE, which counts in the initial user namespace alone.
        if score and score < _oom_score() and (self._locks or not self._identity.host_root):
            lost["process.oomScoreAdj"] = score
        if lost and (self.limits is None or self.limits.limits.enforcement is Enforcement.REQUIRED):
            name, value = next(iter(lost.items()))
            more = f", and so is {', '.join(list(lost)[1:])}" if len(lost) > 1 else ""
            raise BadBundle(
                f"{name} refused: nobody keeps it here{more}",
                step="Prepare",
                path=bundle.bundle_path,
                observed=json.dumps(value)[:200],
                expected=told(name),
                hint="take it out, or go on without it: limits=best_effort",
            )
        self._lost = tuple(lost)
        if self.limits is not None:
            self.limits.limits = self.limits.limits.with_those_of(asked)
            self.limits.of_bundle = tuple(asked)
        self.hooks = judge(self.container_id, bundle, self._identity)

    def _judge_network(self, bundle: OciBundle) -> None:
        """A sandbox network needs a namespace of its own: made by mount-locked, or named by the bundle otherwise."""
        if self.options.network_mode is not NetworkMode.SANDBOX:
            return
        spaces = (bundle.config.get("linux") or {}).get("namespaces") or []
        named = next((s.get("path") for s in spaces if s.get("type") == "network"), None)
        locked = self._locks
        if locked and named:
            raise BadBundle(
                "the bundle's network namespace cannot be entered from a locked user namespace",
                step="Prepare",
                path=named,
                expected="no network namespace path: the launch makes one",
                hint='enforcement="off" enters it, unconfined',
                observed="named in linux.namespaces",
            )
        if not locked and not named:
            raise BadBundle(
                "the sandbox network needs a network namespace",
                step="Prepare",
                observed="none named in the bundle, and without mount-locked none is made",
                hint="add linux.namespaces {type: network, path: /run/netns/NAME} to the bundle",
                expected="one of the host's, named in the bundle",
            )

    def _prepare(self, _: Facts) -> Mapping[str, object]:
        place = self.place
        assert place is not None and self._guest is not None
        if self.record.path is None and self.record.problem is None:
            self._recorded(lambda: self._open_record(place))
        place.make()
        if self._guest.writable is Writable.DISK:
            make_directory(place.directory, _child.STORE)
        bundle = self._guest.bundle
        return {
            "directory": os.fsdecode(place.path).encode("utf-8", "backslashreplace").decode(),
            "bundle": None if bundle.bundle_path is None else repr(os.fspath(bundle.bundle_path))[1:-1],
            "sources": len(self._guest.sources),
            **({"led": led} if (led := self._guest.led) else {}),
            **({"secret_files": [file.target for file in files]} if (files := bundle.secret_files) else {}),
            "root": self._guest.root,
            **({"lost": list(self._lost)} if self._lost else {}),
            **({"hooks": self.hooks.shown} if self.hooks else {}),
        }

    def _recorded(self, open_: Callable[[], None]) -> None:
        try:
            open_()
        except LaunchError as error:
            if self.options.audit is Audit.REQUIRED:
                raise
            self.record.give_up(error)

    def _open_record(self, place: Place) -> None:
        directory = prepare.records(place)
        try:
            path = place.base_path + b"/" + prepare.RECORDS.encode()
            retention.Store(directory, place.base, path).make_room(self.options.keep_records)
            name = f"{self.container_id}.{self.launch_id[:12]}.ndjson"
            self.record.open_in(directory, name, Path(os.fsdecode(place.base_path)) / prepare.RECORDS / name)
        finally:
            linux.close(directory)

    # ---- Stage ----

    def _look_stage(self) -> None:
        assert self._judged is not None
        stage.close(self._held)
        self._held = {}
        if self.machine is not None and self.machine.facts.method == "kept":
            self._look_kept()
        else:
            self._held = stage.seal_all(self._judged)

    def _look_kept(self) -> None:
        """What is kept is as it was, or is made anew; and it is what the pin names, by its bytes."""
        assert self._judged is not None and self._identity is not None
        if self._kept is not None and not kept.still(self._kept, self._judged, self._identity):
            self._kept.close()
            self._kept = None
        if self._kept is None:
            self._kept = kept.provide(self._judged, self._identity)
        if self._judged.pin is not None:
            stage.see_pinned(self._judged, {name: kept.bytes_of(file) for name, file in self._kept.files.items()})

    def _stage(self, facts: Facts) -> Mapping[str, object]:
        assert self._judged is not None and self.place is not None
        self._staged = stage.stage(
            facts.method, self._judged, self._held, self.place.directory, self.place.path, kept=self._kept
        )
        self._held = {}
        shown: dict[str, object] = {}
        if self._kept is not None:
            shown["kept"], self._kept = self._kept.word, None
        elif self._not_kept is not None:
            shown["kept"], shown["not_kept"] = "none", self._not_kept
        return {
            "method": self._staged.method,
            "sha256": self._staged.digests["runsc"],
            "digests": self._staged.digests,
            "set": set_digest(self._staged.digests),
            "pin": self.options.pin,
            **shown,
        }

    # ---- Confine ----

    def _look_confine(self, confinement: Confinement | None) -> None:
        if confinement is not None:
            confine.refuse_incompatible(self.options)
        assert self._staged is not None and self._identity is not None
        if self.confined is not None:  # a look whose action was refused, and is not the one that was asked for
            self.confined.child.end()
            self.confined = None
        self._plan = self._child_plan(confinement)
        if confinement is not Confinement.MOUNT_LOCKED and not self._laid_out:
            assert self.place is not None
            confine.lay_out_on_disk(self.place.directory, self._plan)
            self._laid_out = True
        # Whose supervisor could write the cache takes nothing from there.
        caller = self._identity if self._staged.method == StageMethod.KEPT else None
        self.confined = confine.start(
            self._plan, self._staged.digests, self.options, fresh=self._fresh, identity=caller
        )
        if self.confined.release is not None and self._guest is not None:
            runsc.overlay(self.confined.release, self._guest.writable)
        self._judge_user()
        if self._checkpoint is not None and self.confined.release is not None:
            runsc.judge_restore(self.confined.release, self.options, rootless=self.confined.rootless)
            if self._image is not None:
                self._image.judge_runsc(self.confined.release.version, self._staged.digests["runsc"])
        if self._seccomp and self.confined.release is not None:
            self._judge_seccomp(self.confined.release)
        if self.confined.platform == Platform.KVM and confinement is Confinement.MOUNT_LOCKED:
            # A trial is a launch, and comes after it.
            from nucleus_gvisor.runtime.trial import see_that_kvm_answers

            see_that_kvm_answers(self._staged, self._identity, caller)

    @property
    def _seccomp(self) -> bool:
        """Has the bundle a filter that its guest's kernel is to enforce."""
        assert self._guest is not None
        return bool((self._guest.bundle.config.get("linux") or {}).get("seccomp")) and "linux.seccomp" not in self._lost

    def _judge_seccomp(self, release: runsc.Release) -> None:
        if release.has("oci-seccomp"):
            return
        if self.limits is None or self.limits.limits.enforcement is Enforcement.REQUIRED:
            raise Unsupported(
                "linux.seccomp refused: this runsc enforces no filter of a bundle's",
                step="Confine",
                observed=f"release {release.version} without --oci-seccomp",
                expected="a release with it",
                hint="take it out, or go on without it: limits=best_effort",
            )
        self._lost += ("linux.seccomp",)

    @property
    def _written(self) -> list[prepare.Source]:
        """What of the host the guest may write to."""
        assert self._guest is not None
        writable = self._guest.writable is Writable.HOST
        return [s for s in self._guest.sources if not s.readonly and (s.target != "rootfs" or writable)]

    def _user(self) -> tuple[int, int]:
        assert self._guest is not None
        user = self._guest.bundle.config["process"].get("user") or {}
        return user.get("uid", 0), user.get("gid", 0)

    def _judge_user(self) -> None:
        assert self.confined is not None
        written = self._written
        self.owners = Owners(self.confined.shown.get("ids"), self._plan["ranges"], written[0].path if written else None)
        self.owners.judge(*self._user())
        self._judge_secret_files()

    def _judge_secret_files(self) -> None:
        """Unsupported where the guest's user could not be the one who alone can read them."""
        assert self._guest is not None and self.confined is not None
        uid = self._user()[0]
        if not self._guest.bundle.secret_files or uid == 0:
            return
        try:
            # Owned by the group of nobody that counts: it may not read them either.
            Owners(self.confined.shown.get("ids"), self._plan["ranges"], b"/").judge(uid, 0)
        except Unsupported as error:
            raise Unsupported(
                "the guest's user is none that a secret file could belong to",
                step="Confine",
                observed=error.observed,
                expected="user 0, or one whose files can be its own",
                hint="give user=0, or launch as root or with subordinate ids: newuidmap, and a line in /etc/subuid and"
                " /etc/subgid (Linux 6.12 and later)",
            ) from None

    def _child_plan(self, confinement: Confinement | None) -> dict[str, Any]:
        place, guest, staged = self.place, self._guest, self._staged
        assert place is not None and guest is not None and staged is not None
        locked = confinement is Confinement.MOUNT_LOCKED
        if staged.method == "set" and not locked:
            raise Unsupported(
                "the set is staged on a tmpfs that only mount-locked makes",
                step="Confine",
                hint='stage="copy"',
                observed=f"confinement {confinement and confinement.value}",
                expected='confinement="mount-locked"',
            )
        if guest.bundle.secret_files and not locked:
            raise Unsupported(
                "secret files are kept on a tmpfs that only mount-locked makes",
                step="Confine",
                observed=f"confinement {confinement and confinement.value}",
                expected='confinement="mount-locked"',
                hint="launch it confined, or hand the secret over in another way",
            )
        if any(source.copied for source in guest.sources) and (not locked or self._in_place):
            raise Unsupported(
                "a copy of a workspace is kept on a tmpfs that only mount-locked makes",
                step="Confine",
                observed="a launch in place" if self._in_place else f"confinement {confinement and confinement.value}",
                expected='confinement="mount-locked", and not in place',
                hint='workspace_mode="ro", or "rw"',
            )
        if guest.missing and not locked:  # there is no other tree than the caller's to make them in
            target, is_directory = guest.missing[0]
            raise prepare.no_place(target, guest.sources[0].path, os.fsencode(target), is_directory)
        path = os.fsdecode(place.path)
        roots = {source.target: os.fsdecode(source.path) for source in guest.sources}
        if locked or guest.skeleton is not None:
            roots["rootfs"] = f"{path}/rootfs"
        if locked:
            roots.update({target: f"{path}/{target}" for target in roots})
        allow = []
        if staged.directory is not None:
            parent = os.path.dirname(staged.directory)
            allow.append((parent, file_id(os.stat(parent, follow_symlinks=False))))
        elif staged.method == "store" and self._judged is not None:
            package = os.path.dirname(self._judged.runsc.path)
            allow.append((package, file_id(os.stat(package))))
        return confine.plan(
            self.options,
            confinement=confinement,
            images=staged.images,
            staged_set=staged.method == "set",
            bound=staged.bound if locked else {},
            place=place.path,
            place_identity=file_id(os.fstat(place.directory)),
            binds=[(s.path, s.identity, s.target, s.readonly, s.recursive) for s in guest.sources if not s.copied],
            skeleton=None if guest.skeleton is None else list(guest.skeleton),
            missing=list(guest.missing),
            fill=dict(guest.fill) if locked else {},
            covers=list(guest.covers),
            links=dict(guest.bundle.links),
            trees=[tree.planned for tree in guest.trees],
            config=self._with_trees(
                guest.bundle.private_config(
                    roots["rootfs"],
                    {index: roots[target] for index, target in guest.binds.items()},
                    netns="/proc/self/ns/net" if locked and self.options.network_mode is NetworkMode.SANDBOX else None,
                    without=self._lost,
                ),
                locked,
            ),
            allow=allow,
            stdio=self._stdio,
            die_with_parent=self._die_with_parent and not self._in_place,
            host_root=self._identity is not None and self._identity.host_root,
            attendant=self._attendant,
            lives=bool(self._own),
            said={} if self.said is None else self.said.descriptors,
            image=[] if self._image is None else list(self._image.files),
            store=guest.writable is Writable.DISK,
            ranges=subordinate() if locked and self._wants_ids() else None,
            copies=[(s.target, s.copied, workspace.MOST) for s in guest.sources if s.copied],
            secrets=[(secret.content, self._user()[0]) for secret in guest.bundle.secret_files],
        )

    def _wants_ids(self) -> bool:
        """Would an ordinary caller's guest make files of other ids: its commands have users of their own."""
        assert self._guest is not None
        if not os.geteuid():
            return False
        if self._guest.bundle.secret_files and self._user()[0]:
            return True
        return bool(self._written) and (bool(self._own) or self._user() != (0, 0))

    def _with_trees(self, config: bytes, locked: bool) -> bytes:
        """The private config.json with the trees of ours in it, which no bundle can name: they are made by the child.

        What of the host lies in one is mounted there by the child, at no cost of runsc's; unless it cannot mount.
        """
        assert self._guest is not None and self.place is not None
        secrets = self._guest.bundle.secret_files
        if not self._guest.trees and not secrets:
            return config
        document = json.loads(config)
        mounts = []
        for place in self._guest.trees:
            mounts.append((place.tree.target, os.fsdecode(self.place.path) + f"/{place.name}"))
            if not locked:
                mounts += [(f"{place.tree.target}/{name}", source) for name, source in place.tree.sources.items()]
        # First, for a bundle may mount something of its own within.
        document["mounts"] = [
            {"destination": target, "type": "bind", "source": source, "options": ["rbind", "ro"]}
            for target, source in mounts
        ] + (document.get("mounts") or [])
        for number, secret in enumerate(secrets):
            source = os.fsdecode(self.place.path) + f"/{_child.SECRETS}/{number}"
            document["mounts"].append(
                {"destination": secret.target, "type": "bind", "source": source, "options": ["rbind", "ro"]}
            )
        return json.dumps(document, separators=(",", ":")).encode("ascii")

    def _confine(self, _: Facts) -> Mapping[str, object]:
        confined = self.confined
        assert confined is not None
        release = confined.release
        return {
            **confined.shown,
            **confine.look_again(confined, self._plan),
            "requested": self.options.confinement.value,
            "enforcement": self.options.enforcement.value,
            "signal_scope": self.options.signal_scope.value,
            "release": None if release is None else release.version,
            "platform": confined.platform,
            "rootless": confined.rootless,
            **self._alone(release),
        }

    def _alone(self, release: runsc.Release | None) -> dict[str, object]:
        """A word for the record where runsc runs without the side binaries that its release has."""
        assert self._staged is not None
        if release is None or not release.has("side-binaries") or len(self._staged.digests) > 1:
            return {}
        return {"warning": f"runsc runs without its side binaries, which later releases refuse; {runsc.INSTALL_SET}"}

    # ---- Exec ----

    def _command(self) -> tuple[list[bytes], dict[bytes, bytes]]:
        """The image's argument vector and environment."""
        assert self.place is not None and self.confined is not None and self._guest is not None
        path = self.place.path
        release = self.confined.release
        locked = self._plan["confinement"] == Confinement.MOUNT_LOCKED.value
        argv = runsc.run_arguments(
            self.container_id,
            path + b"/bundle",
            path + b"/runsc-root",
            self.options,
            platform=self.confined.platform or self.options.platform.value,
            rootless=self.confined.rootless or None,
            # In a user namespace of its own the supervisor is not the host's root: its cgroups are not its to make.
            ignore_cgroups=True if locked else None,
            overlay=None if release is None else runsc.overlay(release, self._guest.writable, self._store),
            logs=() if self.said is None else self.said.arguments(self._flags),
            image=None if self._image is None else path + b"/" + _child.IMAGE.encode(),
            seccomp=self._seccomp,
            release=release,
            side=() if self._staged is None else tuple(self._staged.digests),
        )
        return argv, runsc.environment(path + b"/runtime")

    @property
    def _store(self) -> str:
        """The directory of a layer on disk, as runsc sees it."""
        assert self.place is not None
        return os.fsdecode(self.place.path + b"/" + _child.STORE.encode())

    @property
    def _flags(self) -> Collection[str]:
        """The names of the flags that this runsc has."""
        release = None if self.confined is None else self.confined.release
        return () if release is None else release.flags

    @property
    def words(self) -> tuple[str, ...]:
        """The guest's program and its arguments."""
        assert self._guest is not None
        return tuple(self._guest.bundle.config["process"]["args"])

    def _exec(self, _: Facts) -> Mapping[str, object]:
        assert self.confined is not None and self.place is not None
        argv, env = self._command()
        self.command = tuple(argv)
        shown: dict[str, object] = {
            "argv": [_printable(item) for item in argv],
            "env": sorted(_printable(name) for name in env),
            "limits": {least.name: resource.getrlimit(number)[0] for number, least in LIMITS.items()},
        }
        if self._attendant is not None and self._staged is not None and self.confined.release is not None:
            release, digest = self.confined.release.version, self._staged.digests["runsc"]
            self.made_with = {"release": release, "runsc": digest, **self._description()}
        if self._in_place:
            self.place.own(os.getpid())
            exec_.join(self.confined, self._plan)
            return {"pid": os.getpid(), "in_place": True, **shown}
        self.place.own(self.confined.child.pid)
        shown |= self._copy_workspace(self.confined.child.pid)
        if self.said is not None and self.said.kept:
            shown["debug"] = [os.fspath(path) for path in self.said.kept]
        assert self.limits is not None
        self.limits.store = self._store
        if self.limits.limits.asked:
            self.limits.hold(self.confined.child.pid, self.place.directory, self.confined.platform or "")
        if self._seccomp:
            self.limits.achieved["linux.seccomp"] = "runsc"
        self.limits.achieved |= dict.fromkeys(self._lost, "none")
        if self.limits.achieved:
            shown["held"] = self.limits.achieved
        if self.hooks:
            shown["hooks"] = self.hooks.create(self.confined.child.pid)
        return {**exec_.in_child(self.confined, argv, env), **shown}

    def _copy_workspace(self, pid: int) -> Mapping[str, object]:
        """Fill the copy of the workspace, which lies empty in the mounts of the child."""
        assert self.place is not None and self._guest is not None
        source = next((source for source in self._guest.sources if source.copied), None)
        if source is None:
            return {}
        if not self.place.shared:
            from nucleus_gvisor.runtime import writeback  # which most launches do without

            for path, error in writeback.recover(self.place.base):
                if error is not None and os.fsencode(path) == source.path:
                    raise StepFailed(
                        "the workspace is half written, by a process that was killed",
                        step="Exec",
                        path=path,
                        observed=str(error),
                        expected="to go on with it",
                        hint=remedy(error),
                    ) from error
        with calls("Exec", source.path, expected="a directory that can be read"):
            directory = linux.open(source.path, _DIRECTORY)
            if file_id(os.fstat(directory)) != source.identity:
                raise SafetyViolation(
                    "changed after it was judged",
                    step="Exec",
                    path=source.path,
                    observed="another directory",
                    expected="what was judged",
                )
            place = b"/proc/%d/root%s/%s" % (pid, self.place.path, os.fsencode(source.target))
            copy = linux.open(place, _DIRECTORY)
        self.workspace = workspace.Copy(directory, source.path, copy, source.copied, self.options.artifact_base)
        linux.ledger().processes.append(_Closed(self.workspace))
        try:
            return {"workspace": self.workspace.fill()}
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.E2BIG)
            most = f"{source.copied} bytes and {workspace.MOST} entries"
            raise StepFailed(
                "the workspace does not fit into its copy" if full else "the workspace cannot be copied",
                step="Exec",
                path=os.path.join(source.path, os.fsencode(error.filename or b"")),
                observed=error.strerror,
                expected=f"{most} at most" if full else "files and directories that this user can read",
                hint="workspace_size=BYTES allows more, of memory" if full else remedy(error),
            ) from error

    def _image_in_place(self) -> int:
        """What the calling process executes, now that it is in the child's namespaces; a set lies there only."""
        assert self._staged is not None and self.place is not None and self.confined is not None
        if not self._plan["set"] and not self._plan["bound"]:
            return self._staged.images["runsc"]
        image = linux.open(self.place.path + b"/set/runsc", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        # Read-only, and on a tmpfs that this launch alone reaches.
        if list(file_id(os.fstat(image))) != list(self.confined.shown["image"]):  # pragma: no cover - none can swap it
            raise SafetyViolation(
                "not the image that the child made",
                step="Exec",
                path=self.place.path,
                observed="another file",
                expected="the file that the child showed",
            )
        return image

    def ask(self) -> runsc.Release:
        """What the judged binary says of itself, from a child confined as a launch's is. No launch, and no record."""
        locked = None if self.options.enforcement is Enforcement.OFF else Confinement.MOUNT_LOCKED
        self._ledger.use()
        open_standard_descriptors()
        self._look_resolve()
        assert self._judged is not None and self._identity is not None
        self.place = prepare.take_place(self.container_id, self.options.artifact_base, self._identity)
        self._judge_shared_base(self.place.shared)
        assert isinstance(self._bundle, OciBundle)
        self._guest = self._look_at(self._bundle)
        self.place.make()
        self._look_stage()
        self._stage(self._begin())
        self._look_confine(locked)
        assert self.confined is not None and self.confined.release is not None
        return self.confined.release

    def abandon(self) -> None:
        """Unmake all that `ask` made."""
        self.record.problem = "no launch"
        try:
            self._unwind()
        finally:
            self._ledger.release()

    @property
    def root(self) -> str:
        """What the guest's root is: `read-only`, or where its writes go."""
        assert self._guest is not None
        return self._guest.root

    def release(self) -> None:
        """Close what only the launch needed, once the child runs."""
        items, self._staged, self._judged = (self._staged, self._judged), None, None
        for item in items:
            if item is not None:  # pragma: no branch - a launch that was driven has both; the types cannot say it
                item.close()

    # ---- Fail ----

    def _unwind(self) -> Mapping[str, object]:
        self._keep_record()
        stage.close(self._held)
        if self._kept is not None:
            self._kept.close()
        child = self.confined.child if self.confined is not None else None
        if self.said is not None:
            self.said.close()
            self.said = None
        held = (child, self._staged, self._judged, self.place)
        self.confined = self._staged = self._judged = self.place = None
        self._held, self._kept = {}, None
        hooks, self.hooks = self.hooks, None
        try:
            fail.unwind(*held)
        finally:
            if hooks is not None:
                hooks.stop()
        why = self._trouble
        told = {"poststop": [problem.as_dict() for problem in hooks.problems]} if hooks and hooks.problems else {}
        return {"error": why.as_dict(), **told} if why is not None else told

    def _keep_record(self) -> None:
        """A launch that fails before it has a base is recorded there all the same, where the base is sound.

        Not one whose request was refused: nothing on disk is touched for that.
        """
        if self.record.path is not None or self.record.problem is not None or self._identity is None:
            return
        if self.machine is None:
            self.record.problem = "interrupted before the launch began"
            return
        try:
            if self.place is not None:
                self._open_record(self.place)
                return
            base, path, _ = open_base(self.options.artifact_base, self._identity)
            place = Place(base, path, "")
            try:
                self._open_record(place)
            finally:
                place.close()
        except (LaunchError, OSError) as error:
            self.record.problem = str(error)


class _Closed:
    """Has a launch that does not succeed let go of a copy."""

    def __init__(self, copy: workspace.Copy) -> None:
        self._copy = copy

    def end(self) -> None:
        self._copy.close()


def _oom_score() -> int:
    return int(Path("/proc/self/oom_score_adj").read_text())


def _printable(item: bytes) -> str:
    return item.decode("utf-8", "backslashreplace")


def _described(file: resolve.JudgedFile) -> dict[str, object]:
    status = os.fstat(file.fd)
    return {
        "path": _printable(file.path),
        "size": file.snapshot.size,
        "owner": status.st_uid,
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "device": file.snapshot.device,
        "inode": file.snapshot.inode,
    }


def _judge_limits() -> None:
    for number, least in LIMITS.items():
        if lack := least.lacking(resource.getrlimit(number)):
            kind, value, enough = lack
            raise Limit(
                f"the {kind} {least.name} is too low",
                step="Resolve",
                observed=value,
                expected=f"at least {enough}",
                hint=f"raise it: ulimit or setrlimit {least.name}, or Limit{least.name.removeprefix('RLIMIT_')}= of the"
                " service",
            )
