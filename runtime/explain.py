"""The plan of a launch: every operation in order, and nothing done.

What the launcher itself does is told from the values that its own functions give: candidates, artifact base, bundle,
child plan, argument vector. What the child does is not told but rehearsed: the code of `_child` and `_linux` runs in
private copies whose system calls only write down what they are asked for. So the order is the launch's own.
"""

import argparse
import json
import os
import secrets
import stat as stat_
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from nucleus_gvisor.model.errors import (
    BadArgument,
    BadId,
    BadPath,
    Busy,
    LaunchError,
    Limit,
    StepFailed,
    remedy,
    shown,
)
from nucleus_gvisor.model.states import LaunchState
from nucleus_gvisor.model.table import CONFINE, FAILURES, ROWS, STAGE
from nucleus_gvisor.runtime import _attendant, _child, cleanup, doctor, interpreter, kept, runsc
from nucleus_gvisor.runtime.bundle import OciBundle
from nucleus_gvisor.runtime.cleanup import Place, state_component
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.launch import LIMITS, Launch
from nucleus_gvisor.runtime.limits import Held, Limits
from nucleus_gvisor.runtime.options import (
    Audit,
    Confinement,
    Enforcement,
    GVisorOciRunOptions,
    Platform,
    Program,
    StageMethod,
    as_flags,
)
from nucleus_gvisor.runtime.rehearsal import NOTHING, Fds, Rehearsal, flags_of
from nucleus_gvisor.runtime.said import FLAGS, Said
from nucleus_gvisor.runtime.steps import confine, prepare, stage
from nucleus_gvisor.runtime.supervisor import PATIENCE, Supervisor, may_fork

STEPS = ("Resolve", "Prepare", "Stage", "Confine", "Exec", "Fail")
WHO = {
    "cgroup": "the kernel, in a cgroup that is made for the launch",
    "watch": f"the attendant, who looks every {_attendant.GLANCE} s and ends the sandbox",
    "affinity": "the kernel: the child is bound to so many processors",
    "rlimit": "the kernel, by RLIMIT_NPROC in the sandbox's user namespace",
    "none": "nobody can here",
}
"""Who enforces a limit, in the words of `limits`."""
FREE = 1 << 20
"""Above every descriptor."""
ASKED = "PLATFORM"
"""Stands in the argument vector for what only the sealed binary can say."""


@dataclass(frozen=True)
class Operation:
    """One thing that the launch would do: its step, the call, what with, and why."""

    step: str
    call: str
    detail: str
    why: str = ""
    refused: bool = False
    """The launch would end here: `detail` is the refusal."""

    def as_dict(self) -> dict[str, object]:
        """Plain JSON data."""
        return {"step": self.step, "call": self.call, "detail": self.detail, "why": self.why, "refused": self.refused}


def command(given: argparse.Namespace, options: GVisorOciRunOptions, bundle: OciBundle | Path, limits: Limits) -> int:
    """Print the plan of the launch that `run` would make of the same arguments; 1 when it would be refused."""
    container = given.id if given.id is not None else secrets.token_hex(16)
    path = None if given.runsc is None else os.fsencode(given.runsc)
    operations = plan(container, bundle, options, runsc_path=path, limits=limits)
    refused = any(operation.refused for operation in operations)
    if given.json:
        steps = {step: {"transition": text, "failures": causes} for step, (text, causes) in _transitions().items()}
        told = [operation.as_dict() for operation in operations]
        print(json.dumps({"id": shown(container), "refused": refused, "steps": steps, "operations": told}), flush=True)
    else:
        _print(operations)
    return 1 if refused else 0


def plan(
    container_id: str,
    bundle: OciBundle | str | os.PathLike[str],
    options: GVisorOciRunOptions,
    *,
    runsc_path: bytes | None = None,
    limits: Limits | None = None,
) -> list[Operation]:
    """Every operation of the launch, in order; nothing is made and nothing executed.

    Files are opened and judged as the launch would. What would be refused is the last operation before those of
    Fail, with `refused` set.
    """
    try:
        path = None if runsc_path is None else os.path.abspath(runsc_path)
    except OSError as error:  # the working directory is gone
        refusal = BadPath(
            "cannot be looked at",
            step="Resolve",
            path=runsc_path,
            observed=error.strerror,
            expected="a path that can be looked at",
            hint="go to a directory that exists, or name the path from /",
        )
        return [_refusal("Resolve", refusal)]
    asked = limits or Limits()
    held = Held(asked, asked.watched)
    return _Dry(container_id, bundle, options, runsc_path=path, die_with_parent=True, limits=held).told()


def _refusal(step: str, error: LaunchError) -> Operation:
    return Operation(step, "refuse", as_flags(shown(str(error))), f"{type(error).__name__}, cause {error.cause}", True)


class _Dry(Launch):
    """A launch that looks, and tells what it would do."""

    def told(self) -> list[Operation]:
        self._operations: list[Operation] = []
        self._step = "Resolve"
        self._location = b""
        self._base_fd = -1
        try:
            for step, tell in (
                ("Resolve", self._tell_resolve),
                ("Prepare", self._tell_prepare),
                ("Stage", self._tell_stage),
                ("Confine", self._tell_confine),
                ("Exec", self._tell_exec),
            ):
                self._step = step
                tell()
        except LaunchError as error:
            self._operations.append(_refusal(self._step, error))
        except OSError as error:  # pragma: no cover - a disk that fails to read: all else is an error of its own
            failed = StepFailed(
                "system call failed", step=self._step, observed=str(error), expected="no error", hint=remedy(error)
            )
            self._operations.append(_refusal(self._step, failed))
        finally:
            if self._judged is not None:
                self._judged.close()
            if self.hooks is not None:
                self.hooks.stop()  # none has begun: they are closed
            if self._base_fd >= 0:
                os.close(self._base_fd)
        self._step = "Fail"
        self._tell_end()
        return self._operations

    def _say(self, call: str, detail: object, why: str = "") -> None:
        self._operations.append(Operation(self._step, call, shown(detail), why))

    # ---- Resolve ----

    def _tell_resolve(self) -> None:
        self._say(
            "openat", "/dev/null until descriptors 0, 1 and 2 are taken", "the next file must not become a stream"
        )
        if self.options.record:
            self._say("openat", f"{self.options.record} (O_CREAT|O_APPEND|O_NOFOLLOW)", "the record that was named")
            _judge_record(self.options.record)
        self._say("judge", f"container id {self.container_id!r}"[:120], "runsc takes some ids as flags")
        limits = ", ".join(f"{least.name} >= {least.soft}" for least in LIMITS.values())
        self._say("getrlimit", limits, "below these runsc fails or hangs after exec")
        identity = Identity.current()
        self._say("read", "/proc/self/uid_map, /proc/self/ns/user", "who the caller is, decided before any unshare")
        refusal: LaunchError | None = None
        try:
            self._look_resolve()
        except LaunchError as error:
            refusal = error
        if isinstance(refusal, BadId | Limit):  # refused before any path is touched
            raise refusal
        store = self.options.stage is StageMethod.STORE
        candidates, judged, _ = doctor.look_at_candidates(self._runsc_path, identity, self.options.pin, store=store)
        if judged is not None:
            judged.close()
        for candidate in candidates:
            self._say(
                "openat",
                f"{os.fsdecode(candidate.path)}: {candidate.verdict}",
                "each directory on the way, then the file, by descriptor",
            )
            if candidate.chosen:  # the launch goes no further
                break
        if refusal is not None:
            raise refusal
        assert self._judged is not None
        for file in self._judged.files:
            self._say(
                "hold",
                f"{os.fsdecode(file.path)}, inode {file.snapshot.inode}, {file.snapshot.size} bytes",
                "all later steps act on this descriptor; the path is not opened again",
            )

    # ---- Prepare ----

    def _tell_prepare(self) -> None:
        assert self._identity is not None
        base = doctor.look_at_base(self.options.artifact_base, self._identity)
        self._judge_shared_base(base.shared)
        component = state_component(self.container_id)
        self._location = base.path + b"/" + component.encode()
        text = os.fsdecode(base.path)
        self._say(
            "openat",
            f"{text} ({base.note or 'private'})" if not base.missing else text,
            "the artifact base, each directory above judged on its descriptor",
        )
        for directory in base.missing:
            self._say("mkdirat", f"{os.fsdecode(directory)} 0700", "it is not there yet")
        self._say("openat", f"{text}/locks/{component} (O_CREAT|O_NOFOLLOW)")
        self._say("flock", f"{text}/locks/{component} LOCK_EX|LOCK_NB", "a second launch of this id is refused as busy")
        self._judge_lock(base.path, component)
        self._say("collect", f"{text}/locks/*: {self._leftovers(base.path, component)}", "what dead launches left")
        bundle = self._bundle
        if not isinstance(bundle, OciBundle):
            self._say("read", f"{os.fspath(bundle)}/config.json", "once, bounded, from the directory's descriptor")
            bundle = OciBundle.load(
                os.fspath(bundle),
                allow_hooks=self.options.allow_hooks,
                allow_flag_annotations=self.options.allow_flag_annotations,
            )
        self._judge_words(bundle)
        assert self.limits is not None
        self.limits.attended = self.limits.limits.watched
        for name in self._lost:
            self._say("leave out", name, "nobody keeps it, and limits are best_effort")
        for hook in self.hooks.shown if self.hooks is not None else ():
            self._say(
                "openat", f"hooks.{hook['hook']}: {hook['path']}", "judged as runsc is, and executed by descriptor"
            )
        self._guest = guest = self._look_at(bundle)
        for source in guest.sources:
            if source.copied:
                self._say(
                    "copy",
                    f"{os.fsdecode(source.path)} -> {os.fsdecode(self._location)}/{source.target}, a tmpfs of"
                    f" {source.copied} bytes at most",
                    "once it is there, and before anything is executed; what killed processes had begun to write back"
                    " is finished or undone first",
                )
                continue
            how = "read-only" if source.readonly else "writable"
            self._say(
                "bind",
                f"{os.fsdecode(source.path)} -> {os.fsdecode(self._location)}/{source.target} ({how})",
                "identified now, cloned in Confine; runsc is given the private place",
            )
        self._judge_network(bundle)
        self._tell_logs()
        if self.options.record is None and self.options.audit is not Audit.OFF:
            name = f"{self.container_id}.{'?' * 12}.ndjson"
            self._say(
                "prune",
                f"{text}/{prepare.RECORDS}: within {self.options.keep_records}",
                "the oldest of launches that came to their guest and have ended; now and then",
            )
            self._say(
                "openat",
                f"{text}/{prepare.RECORDS}/{name} (O_CREAT|O_EXCL)",
                "the record; the digits are this launch's own",
            )
        self._say(
            "mkdirat", f"{os.fsdecode(self._location)} 0700", "after what an earlier launch of this id left is gone"
        )
        # Only the look of a place: its descriptor stands in where the child plan asks for an identity.
        self._base_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.place = Place(-1, base.path, component, directory=self._base_fd)

    def _tell_logs(self) -> None:
        """Their numbers are any that are free; these are no descriptor's."""
        self.said = Said(*range(FREE, FREE + (2 if self.options.debug_dir is None else 3)))
        for kind in self.said.descriptors:
            if kind == "log" or self.options.debug_dir is None:
                self._say("memfd_create", kind, "runsc says there why it fails: its standard error is the guest's too")
            else:
                path = f"{self.options.debug_dir}/{self.container_id}.{'?' * 12}.{kind}.log"
                self._say("openat", f"{path} (O_CREAT|O_EXCL)", "it stays; its directory is judged as the base is")

    def _judge_lock(self, base: bytes, component: str) -> None:
        """Busy when the lock names a living owner; the lock itself is not tried, for that would take it."""
        try:
            line = cleanup.read_lock(base + b"/locks/" + component.encode())
        except OSError:
            return
        if cleanup.owner_lives(line):
            raise Busy(
                "another launch holds this container id",
                step="Prepare",
                path=base + b"/" + component.encode(),
                observed="its lock is taken",
                hint="choose another id, or wait for that launch to end",
                expected="an id that no launch holds",
            )

    @staticmethod
    def _leftovers(base: bytes, component: str) -> str:
        """Directories of launches whose locks name no living owner; another launcher may hold one all the same."""
        locks = Path(os.fsdecode(base), "locks")
        try:
            names = sorted(set(cleanup.components(locks)) - {component})
            dead = [name for name in names if not cleanup.owner_lives(cleanup.read_lock(locks / name))]
        except OSError:
            return "not to be seen from here"
        return ", ".join(dead) or "none"

    # ---- Stage ----

    def _tell_stage(self) -> None:
        judged = self._judged
        assert judged is not None
        method = str(self._begin().method)
        chosen = f"{self.options.stage} takes {method}" if self.options.stage.value != method else method
        beside = f"{len(judged.side)} side binaries" if judged.side else "no side binaries"
        self._say("choose", chosen, f"{beside}; action {STAGE[method]}")
        if method == "kept":
            self._tell_kept()
            return
        digests: dict[str, str] = {}
        images: dict[str, int] = {}
        for name, file in stage.named(judged).items():
            digests[name] = stage.sha256(file.fd, file.snapshot.size)
            images[name] = Fds.IMAGE + 2 * len(images)
            self._say("memfd_create", f"{name} (MFD_CLOEXEC|MFD_ALLOW_SEALING|MFD_EXEC)", "a copy that has no path")
            self._say(
                "sendfile", f"{file.snapshot.size} bytes of {os.fsdecode(file.path)}", "from the judged descriptor"
            )
            self._say("fchmod", f"{name} 0555", "runsc re-executes itself as nobody")
            self._say(
                "fcntl", f"{name} F_ADD_SEALS {flags_of(stage.SEALS, 'F_SEAL_')}", "nobody can change it any more"
            )
            self._say("sha256", f"{name} {digests[name]}", "hashed once it is sealed")
        if judged.pin is not None:
            self._say("compare", f"pin {judged.pin}")
            stage.see_pinned(judged, digests)
        if method == "copy":
            directory = os.fsdecode(self._location) + "/exec-allow/stage-RANDOM"
            self._say("mkdirat", f"{directory} 0700")
            for name in images:
                self._say(
                    "openat", f"{directory}/{name} (O_CREAT|O_EXCL)", "written from the memfd, synced, hashed again"
                )
        if method != "set":
            images = {"runsc": images["runsc"]}
        self._staged = stage.Staged(images, digests, method)

    def _choose(self) -> StageMethod:
        """The same, with nothing made."""
        side = self._judged is not None and bool(self._judged.side)
        known = self._must_lock and self._judged is not None and self._identity is not None
        if known and kept.foresee(self._judged, self._identity).word != "none":  # type: ignore[arg-type]
            return StageMethod.KEPT
        if not side:
            return StageMethod.SEALED
        return StageMethod.SET if self._must_lock else StageMethod.COPY

    def _tell_kept(self) -> None:
        judged, identity = self._judged, self._identity
        assert judged is not None and identity is not None
        seen = kept.foresee(judged, identity)
        if seen.word == "none":
            raise StepFailed(
                "nothing can be kept",
                step="Stage",
                path=seen.cache,
                observed=seen.why,
                expected="a cache of the caller's",
                hint='stage="auto"',
            )
        bound, digests = {}, {}
        images: dict[str, int] = {}
        for name, file in stage.named(judged).items():
            path = os.fsdecode(seen.paths[name])
            if seen.word in ("made", "replaced"):
                self._say(
                    "copy_file_range", f"{os.fsdecode(file.path)} to {path}", "compared, hashed, synced, renamed in"
                )
            else:
                self._say(
                    "openat", f"{path} O_RDONLY|O_NOFOLLOW", f"{seen.word}; its times, size and mode are compared"
                )
            digests[name] = stage.sha256(file.fd, file.snapshot.size)
            images[name] = Fds.IMAGE + 2 * len(images)
            bound[name] = (os.fsencode(path), file.snapshot.numbers, "kept")
        if judged.pin is not None:
            self._say("compare", f"pin {judged.pin}", "with the bytes")
            stage.see_pinned(judged, digests)
        self._staged = stage.Staged({"runsc": images["runsc"]}, digests, "kept", bound=bound)

    # ---- Confine ----

    def _tell_confine(self) -> None:
        wanted: Confinement | None = self.options.confinement
        if self.options.enforcement is Enforcement.OFF:
            wanted = None
        elif self.options.enforcement is Enforcement.BEST_EFFORT:
            self._say("choose", "best_effort: what follows, or ConfineSkipped where the host does not permit it")
        try:
            if wanted is not None:
                confine.refuse_incompatible(self.options)
        except LaunchError as error:
            if self.options.enforcement is not Enforcement.BEST_EFFORT:
                raise
            self._say("choose", f"ConfineSkipped: {error}", "enforcement is best_effort")
            wanted = None
        action = CONFINE[wanted.value] if wanted else "ConfineSkipped"
        self._say("choose", wanted.value if wanted else "no confinement", f"action {action}")
        self._judge_what_is_known()
        self._plan = child_plan = self._child_plan(wanted)
        assert self._staged is not None and self._judged is not None
        if self._staged.method == "copy":
            child_plan["allow"] = [(self._location + b"/exec-allow", NOTHING)]
        if self.options.program is Program.RUNSC:
            child_plan["questions"] = runsc.questions(self._staged.digests)
            child_plan["trial"] = runsc.trial_arguments(self._location) if wanted is Confinement.MOUNT_LOCKED else None
        sizes = {name: file.snapshot.size for name, file in stage.named(self._judged).items()}
        rehearsal = Rehearsal(child_plan, self._command_with(ASKED), sizes)
        if wanted is not Confinement.MOUNT_LOCKED:
            for call, detail, why in rehearsal.lay_out():
                self._say(call, detail, why)
        self._say("socketpair", "AF_UNIX SOCK_SEQPACKET", "the child's only word to its parent; its end says execve")
        fresh = not may_fork() if self._fresh is None else self._fresh
        if fresh and (program := interpreter.find()) is not None:
            self._say("posix_spawn", f"{program} -I -S", "other threads' locks do not survive a fork")
        else:
            self._say("fork", "the child; the parent stays unrestricted")
        self._say("pidfd_open", "the child")
        self._child_calls = rehearsal.child()
        for call, detail, why in self._until_report():
            self._say(call, detail, why)
        if self.options.program is Program.RUNSC:
            default = " and the default one" if self.options.platform is Platform.AUTO else ""
            self._say(
                "judge",
                f"the answers: release, platforms{default} (asked of the sealed binary)",
                f"{_child.ANSWER_SECONDS} s for each; the child is given up after {PATIENCE:.0f} s",
            )
        if wanted is Confinement.MOUNT_LOCKED:
            self._say(
                "readlink", "/proc/CHILD/ns/mnt, /proc/CHILD/ns/user", "the kernel's word for what the child said"
            )

    def _judge_what_is_known(self) -> None:
        """Unsupported for what the launch would refuse whatever the binary answers."""
        if self.options.program is not Program.RUNSC:
            return
        if self.options.platform is Platform.KVM:
            self._say("access", "/dev/kvm", "the platform that was asked for needs it")
            runsc._require_kvm()
        if self.options.runsc_rootless:
            runsc.judge_network(runsc.Release("", "", (), ""), self.options, rootless=False)

    def _until_report(self) -> Iterator[tuple[str, str, str]]:
        """The child's calls up to the report that it is confined; the rest belongs to Exec."""
        while True:
            yield (item := next(self._child_calls))
            if item[0] == "report":
                return

    @property
    def _flags(self) -> Collection[str]:
        return FLAGS if self.options.program is Program.RUNSC else ()  # nobody has asked

    def _command_with(self, platform: str) -> tuple[list[bytes], dict[bytes, bytes]]:
        chosen = platform if self.options.platform is Platform.AUTO else self.options.platform.value
        # No child: `_command` reads the platform and the flags only; no release in use lacks the one it asks for.
        release = runsc.Release("", "", (), "", {"overlay2": ""}) if self.options.program is Program.RUNSC else None
        self.confined = confine.Confined(Supervisor.__new__(Supervisor), {}, release, chosen, False)
        try:
            return self._command()
        finally:
            self.confined = None

    # ---- Exec ----

    def _tell_exec(self) -> None:
        argv, env = self._command_with(ASKED)
        if self.options.platform is Platform.AUTO:
            self._say(
                "choose", f"{ASKED} below: asked of the sealed binary", "its own default, or one that needs no device"
            )
        if self._plan["trial"]:
            self._say("choose", "--rootless below, should the trial show that this runsc needs it")
        for number, item in enumerate(argv):
            self._say("argv", f"[{number}] {os.fsdecode(item)}")
        for name, value in env.items():
            self._say("env", f"{os.fsdecode(name)}={os.fsdecode(value)}", "one of the six that runsc gets")
        self._say(
            "pwrite",
            f"the child's pid and start time to the lock of {self.container_id}",
            "the lock outlives the launcher",
        )
        if self.limits is not None and self.limits.limits.asked:
            self._tell_limits(self.limits)
        self._tell_hooks("prestart", "createRuntime")
        self._say("send", "exec, argv and environment, to the child")
        for call, detail, why in self._child_calls:
            self._say(call, detail, why)
        self._say("stat", "/proc/CHILD/exe is the staged inode", "after the link's end of file, which is close-on-exec")
        self._tell_hooks("poststart")

    def _tell_hooks(self, *kinds: str) -> None:
        for hook in self.hooks.shown if self.hooks is not None else ():
            if hook["hook"].partition("[")[0] in kinds:
                self._say("execve", f"hooks.{hook['hook']}: {hook['path']}", "on the host, in a session of its own")

    def _tell_limits(self, held: Held) -> None:
        if held.attended:
            self._say(
                "clone", "the attendant, beside the child", "it watches what no kernel enforces, and who is killed"
            )
        achieved = held.foreseen()
        for name, how in achieved.items():
            self._say("limit", f"{name} {getattr(held.limits, name)}: {how}", WHO[how])
        held.require(achieved)

    # ---- Fail, and afterwards ----

    def _tell_end(self) -> None:
        """In the order of `steps.fail.unwind`; after a success, the wait for the sandbox does the last two."""
        where = os.fsdecode(self._location) if self._location else "the container's directory"
        base, _, component = where.rpartition("/")
        self._say("pidfd_send_signal", "SIGKILL to the child, and waitid", "on failure only, if it was started")
        self._say("close", "the staged image and the judged descriptors")
        self._say("unlinkat", where, "on failure, and when the sandbox has ended")
        self._say("unlinkat", f"{base}/locks/{component}" if base else "the lock", "the same; the record stays")
        self._tell_hooks("poststop")


def _judge_record(path: Path) -> None:
    """BadArgument where `Record.open` would refuse; the file itself is not opened, for that would make it."""
    problem = ""
    try:
        if not stat_.S_ISREG(os.lstat(path).st_mode):
            problem = "not a regular file"
        elif not os.access(path, os.W_OK):
            problem = "not writable by the caller"
    except FileNotFoundError:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            problem = "its directory is missing or not writable"
    except OSError as error:
        problem = str(error.strerror)
    if problem:
        raise BadArgument(
            "the record cannot be written",
            step="Resolve",
            path=path,
            observed=problem,
            expected="a file that can be written",
            hint="name another file, in a directory that you can write",
        )


# ---- printing ----


def _transitions() -> dict[str, tuple[str, str]]:
    """Step -> the transition that it is, and the failures that may end it, from the table."""
    actions = ("Resolve", "Prepare", STAGE["sealed"], CONFINE["mount-locked"], "Exec")
    told = {}
    for step, row in zip(STEPS, map(ROWS.__getitem__, actions), strict=False):  # Fail has no row of its own
        causes = [f.cause for f in FAILURES if f.sources == row.sources]
        told[step] = (f"{row.sources[0]} -> {row.dest}", ", ".join(causes))
    told["Fail"] = (f"any -> {LaunchState.FAILED}, and what is unmade after the sandbox has ended", "")
    return told


def _print(operations: list[Operation]) -> None:
    write = _coloured() if sys.stdout is not None and sys.stdout.isatty() else _plain
    transitions = _transitions()
    step = ""
    for operation in operations:
        if operation.step != step:
            step = operation.step
            transition, causes = transitions[step]
            write(f"{step}: {transition}", f"  (fails as: {causes})" if causes else "", "bold")
        why = f"  # {operation.why}" if operation.why else ""
        write(f"  {operation.call:<17} {operation.detail}", why, "bold red" if operation.refused else "")


def _plain(text: str, note: str, _style: str) -> None:
    print(text + note)


def _coloured() -> Callable[[str, str, str], None]:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)

    def write(text: str, note: str, style: str) -> None:
        # Text, never markup: a path may have brackets.
        console.print(Text(text, style=style).append(note, style="not bold dim"))

    return write


__all__ = ["STEPS", "Operation", "command", "plan"]
