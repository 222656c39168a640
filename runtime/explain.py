"""The plan of a launch: every operation in order, and nothing done.

What the launcher itself does is told from the values that its own functions give: candidates, artifact base, bundle,
child plan, argument vector. What the child does is not told but rehearsed: the code of `_child` and `_linux` runs in
private copies whose system calls only write down what they are asked for. So the order is the launch's own.
"""

import argparse
import builtins
import errno
import itertools
import json
import marshal
import os
import secrets
import signal
import stat as stat_
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from nucleus_gvisor.model.errors import (
    BadArgument,
    BadId,
    BadPath,
    Busy,
    LaunchError,
    Limit,
    PinMismatch,
    StepFailed,
    shown,
)
from nucleus_gvisor.model.states import LaunchState
from nucleus_gvisor.model.table import CONFINE, FAILURES, ROWS, STAGE
from nucleus_gvisor.runtime import _child, _linux, cleanup, doctor, paths, runsc
from nucleus_gvisor.runtime.bundle import OciBundle
from nucleus_gvisor.runtime.cleanup import Place, state_component
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.launch import LIMITS, Launch
from nucleus_gvisor.runtime.options import Confinement, Enforcement, GVisorOciRunOptions, Platform, Program, StageMethod
from nucleus_gvisor.runtime.steps import confine, prepare, stage
from nucleus_gvisor.runtime.supervisor import PATIENCE, Supervisor, threads

STEPS = ("Resolve", "Prepare", "Stage", "Confine", "Exec", "Fail")
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


def command(given: argparse.Namespace, options: GVisorOciRunOptions, bundle: OciBundle | Path) -> int:
    """Print the plan of the launch that `run` would make of the same arguments; 1 when it would be refused."""
    container = given.id if given.id is not None else secrets.token_hex(16)
    path = None if given.runsc is None else os.fsencode(given.runsc)
    operations = plan(container, bundle, options, runsc_path=path)
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
) -> list[Operation]:
    """Every operation of the launch, in order; nothing is made and nothing executed.

    Files are opened and judged as the launch would. What would be refused is the last operation before those of
    Fail, with `refused` set.
    """
    try:
        path = None if runsc_path is None else os.path.abspath(runsc_path)
    except OSError as error:  # the working directory is gone
        refusal = BadPath("cannot be looked at", step="Resolve", path=runsc_path, observed=error.strerror)
        return [_refusal("Resolve", refusal)]
    return _Dry(container_id, bundle, options, runsc_path=path, die_with_parent=True).told()


def _refusal(step: str, error: LaunchError) -> Operation:
    return Operation(step, "refuse", shown(str(error)), f"{type(error).__name__}, cause {error.cause}", True)


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
        except OSError as error:
            failed = StepFailed("system call failed", step=self._step, observed=str(error))
            self._operations.append(_refusal(self._step, failed))
        finally:
            if self._judged is not None:
                self._judged.close()
            if self._base_fd >= 0:
                os.close(self._base_fd)
        self._step = "Fail"
        self._tell_end()
        return self._operations

    def _say(self, call: str, detail: object, why: str = "") -> None:
        self._operations.append(Operation(self._step, call, shown(detail), why))

    # ---- Resolve ----

    def _tell_resolve(self) -> None:
        if self.options.record is not None:
            self._say("openat", f"{self.options.record} (O_CREAT|O_APPEND|O_NOFOLLOW)", "the record that was named")
            _judge_record(self.options.record)
        self._say(
            "openat", "/dev/null until descriptors 0, 1 and 2 are taken", "the next file must not become a stream"
        )
        self._say("judge", f"container id {self.container_id!r}"[:120], "runsc takes some ids as flags")
        limits = ", ".join(f"{name} >= {least}" for name, least in LIMITS.values())
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
        self._guest = guest = prepare.look_at_bundle(bundle)
        for source in guest.sources:
            how = "read-only" if source.readonly else "writable"
            self._say(
                "bind",
                f"{os.fsdecode(source.path)} -> {os.fsdecode(self._location)}/{source.target} ({how})",
                "identified now, cloned in Confine; runsc is given the private place",
            )
        self._judge_network(bundle)
        if self.options.record is None:
            name = f"{self.container_id}.{'?' * 12}.ndjson"
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

    def _judge_lock(self, base: bytes, component: str) -> None:
        """Busy when the lock names a living owner; the lock itself is not tried, for that would take it."""
        try:
            line = Path(os.fsdecode(base), "locks", component).read_bytes()[:512]
        except OSError:
            return
        if cleanup.owner_lives(line):
            raise Busy(
                "another launch holds this container id",
                step="Prepare",
                path=base + b"/" + component.encode(),
                observed="its lock is taken",
                hint="choose another id, or wait for that launch to end",
            )

    @staticmethod
    def _leftovers(base: bytes, component: str) -> str:
        """Directories of launches whose locks name no living owner; another launcher may hold one all the same."""
        locks = Path(os.fsdecode(base), "locks")
        try:
            names = sorted(name for name in os.listdir(locks) if name != component)
            dead = [name for name in names if not cleanup.owner_lives((locks / name).read_bytes()[:512])]
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
        digests: dict[str, str] = {}
        images: dict[str, int] = {}
        for name, file in doctor.named(judged).items():
            digests[name] = stage.sha256(file.fd, file.snapshot.size)
            images[name] = _Fds.IMAGE + 2 * len(images)
            self._say("memfd_create", f"{name} (MFD_CLOEXEC|MFD_ALLOW_SEALING|MFD_EXEC)", "a copy that has no path")
            self._say(
                "sendfile", f"{file.snapshot.size} bytes of {os.fsdecode(file.path)}", "from the judged descriptor"
            )
            self._say("fchmod", f"{name} 0555", "runsc re-executes itself as nobody")
            self._say("fcntl", f"{name} F_ADD_SEALS {_flags(stage.SEALS, 'F_SEAL_')}", "nobody can change it any more")
            self._say("sha256", f"{name} {digests[name]}", "hashed once it is sealed")
        if judged.pin is not None:
            self._say("compare", f"pin {judged.pin}")
            if digests["runsc"] != judged.pin:
                raise PinMismatch(
                    "not the pinned runsc",
                    step="Stage",
                    path=judged.runsc.path,
                    observed=digests["runsc"],
                    expected=judged.pin,
                )
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
            child_plan["allow"] = [(self._location + b"/exec-allow", _NOTHING)]
        child_plan["questions"] = list(runsc.QUESTIONS) if self.options.program is Program.RUNSC else []
        sizes = {name: file.snapshot.size for name, file in doctor.named(self._judged).items()}
        rehearsal = _Rehearsal(child_plan, self._command_with(ASKED), sizes)
        if wanted is not Confinement.MOUNT_LOCKED:
            for call, detail, why in rehearsal.lay_out():
                self._say(call, detail, why)
        self._say("socketpair", "AF_UNIX SOCK_SEQPACKET", "the child's only word to its parent; its end says execve")
        if threads() > 1 if self._fresh is None else self._fresh:
            self._say("posix_spawn", f"{sys.executable} -I -S", "other threads' locks do not survive a fork")
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
            runsc._require_kvm()
        if self.options.runsc_rootless:
            runsc.judge_network(runsc.Release("", "", (), ""), self.options, locked=False)

    def _until_report(self) -> Iterator[tuple[str, str, str]]:
        """The child's calls up to the report that it is confined; the rest belongs to Exec."""
        for item in self._child_calls:
            yield item
            if item[0] == "report":
                return

    def _command_with(self, platform: str) -> tuple[list[bytes], dict[bytes, bytes]]:
        chosen = platform if self.options.platform is Platform.AUTO else self.options.platform.value
        # No child: `_command` reads the platform only.
        self.confined = confine.Confined(Supervisor.__new__(Supervisor), {}, None, chosen)
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
        elif self.options.platform is Platform.KVM:
            self._say("access", "/dev/kvm", "the platform that was asked for needs it")
        for number, item in enumerate(argv):
            self._say("argv", f"[{number}] {os.fsdecode(item)}")
        for name, value in env.items():
            self._say("env", f"{os.fsdecode(name)}={os.fsdecode(value)}", "one of the six that runsc gets")
        self._say(
            "pwrite",
            f"the child's pid and start time to the lock of {self.container_id}",
            "the lock outlives the launcher",
        )
        self._say("send", "exec, argv and environment, to the child")
        for call, detail, why in self._child_calls:
            self._say(call, detail, why)
        self._say("stat", "/proc/CHILD/exe is the staged inode", "after the link's end of file, which is close-on-exec")

    # ---- Fail, and afterwards ----

    def _tell_end(self) -> None:
        """In the order of `steps.fail.unwind`; after a success, the wait for the sandbox does the last two."""
        where = os.fsdecode(self._location) if self._location else "the container's directory"
        base, _, component = where.rpartition("/")
        self._say("pidfd_send_signal", "SIGKILL to the child, and waitid", "on failure only, if it was started")
        self._say("close", "the staged image and the judged descriptors")
        self._say("unlinkat", where, "on failure, and when the sandbox has ended")
        self._say("unlinkat", f"{base}/locks/{component}" if base else "the lock", "the same; the record stays")


_NOTHING: paths.FileId = (0, 0)
"""The identity of what a launch would make: it has none yet."""


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
        raise BadArgument("the record cannot be written", step="Resolve", path=path, observed=problem)


# ---- the rehearsal ----


class _Done(BaseException):
    """The rehearsed child has ended, by _exit."""


Call = tuple[str, str, str]


def _flags(value: int, *prefixes: str) -> str:
    """A number as the names of its bits in `_linux`, like strace."""
    names, left = [], value
    for name, bit in sorted(vars(_linux).items()):
        if name.startswith(prefixes) and isinstance(bit, int) and left & bit and bit.bit_count() == 1:
            names.append(name)
            left &= ~bit
    return "|".join([*names, *([hex(left)] if left or not names else [])]) if value else "0"


@dataclass(frozen=True)
class _File:
    """What a descriptor of the rehearsal stands for."""

    name: str
    mode: int = stat_.S_IFREG
    identity: paths.FileId = _NOTHING
    size: int = 0


class _Fds:
    """Descriptors that stand for files which nobody opened."""

    FIRST = 1 << 20
    IMAGE = 1 << 24
    """The first number of the staged images."""

    def __init__(self) -> None:
        self.known: dict[int, _File] = {}
        self._next = self.FIRST

    def new(self, file: _File) -> int:
        self._next += 2
        self.known[self._next] = file
        return self._next

    def name(self, fd: object) -> str:
        if fd == _linux.AT_FDCWD:
            return "AT_FDCWD"
        return f"<{self.known[fd].name}>" if isinstance(fd, int) and fd in self.known else str(fd)


class _Rehearsal:
    """`_child` on a stage of its own: its system calls are written down, and answered as a willing kernel would.

    Strict: a call that has no answer here is an AttributeError, never a real call.
    """

    def __init__(
        self,
        child_plan: Mapping[str, Any],
        command: tuple[list[bytes], dict[bytes, bytes]],
        sizes: Mapping[str, int],
    ) -> None:
        self.plan, self.command = {**child_plan, "parent": 0}, command
        self.calls: list[Call] = []
        self.fds = _Fds()
        self.link = self.fds.new(_File("link"))
        for name, fd in child_plan["images"].items():
            self.fds.known[fd] = _File(name, size=sizes[name])
        self.identities = dict(self._identified())
        self.written: dict[bytes, bytes] = {b"/proc/self/mountinfo": b""}
        self.words = [("exec", *command)]
        self.problem: object = None
        linux, self.child_module = _copy(_linux), _copy(_child)
        fake_os = _Os(self)
        # A few functions whose plumbing would hide what they are for are told of as one.
        vars(linux).update(
            _syscall=self._syscall,
            _libc=_Libc(self),
            os=fake_os,
            close_all_but=self._close_all_but,
            default_signal=self._default_signal,
        )
        vars(self.child_module).update(
            os=fake_os,
            _signal=_Signal(self),
            linux=linux,
            _stdio=self._stdio,
            _loopback_up=self._loopback_up,
            ask=self._ask,
        )

    def _identified(self) -> Iterator[tuple[bytes, paths.FileId]]:
        for path, identity, *_ in self.plan["binds"]:
            yield path, identity
        yield self.plan["place"], self.plan["place_identity"]
        yield from self.plan["allow"]

    def child(self) -> Iterator[Call]:
        """All that `_child.main` does, to its execve."""
        try:
            self.child_module.main(self.plan, self.link)
        except _Done:
            pass
        # The child reports whatever goes wrong and exits: a rehearsal that breaks must not pass for a short plan.
        if self.calls[-1][0] != "execveat":
            raise RuntimeError(f"the rehearsal failed after {self.calls[-1]}: {self.problem}")
        return iter(_merged(self.calls))

    def lay_out(self) -> list[Call]:
        """What is laid out in the container's own directory, for the confinements without a tmpfs."""
        here = self.fds.new(_File(os.fsdecode(self.plan["place"]), stat_.S_IFDIR))
        self.child_module.lay_out(here, self.plan)
        calls, self.calls = self.calls, []
        return calls

    def note(self, call: str, detail: str, why: str = "") -> None:
        if call == "unshare" and any(earlier == "unshare" for earlier, *_ in self.calls):
            why = "this nested user namespace is what locks the flags"
        known = (reason for name, needle, reason in _WHY if name == call and needle in detail)
        self.calls.append((call, detail, why or next(known, "")))

    # What `_linux` asks of the kernel.

    def _syscall(self, name: str, *arguments: Any) -> int:
        tell: Callable[..., int] = getattr(self, f"_{name}")
        return tell(*arguments)

    def _mount_setattr(self, fd: int, path: bytes, flags: int, attr: Any, _size: int) -> int:
        wanted = attr._obj
        parts = [
            f"set {_flags(wanted.attr_set, 'MOUNT_ATTR_')}" if wanted.attr_set else "",
            f"clear {_flags(wanted.attr_clr, 'MOUNT_ATTR_')}" if wanted.attr_clr else "",
            _flags(wanted.propagation, "MS_") if wanted.propagation else "",
            "AT_RECURSIVE" if flags & _linux.AT_RECURSIVE else "",
        ]
        text = " ".join(filter(None, parts))
        if any(call == "prctl" and "SET_NO_NEW_PRIVS" in detail for call, detail, _ in self.calls):
            self.note("mount_setattr", f"{os.fsdecode(path)} {text}", "the undo test: it must answer EPERM")
            raise PermissionError(errno.EPERM, "as it must")
        self.note("mount_setattr", f"{os.fsdecode(path) or self.fds.name(fd)} {text}")
        return 0

    def _open_tree(self, fd: int, _path: bytes, flags: int) -> int:
        file = self.fds.known[fd]
        name, mode = file.name, file.mode
        self.note("open_tree", f"{name} OPEN_TREE_CLONE{'|AT_RECURSIVE' if flags & _linux.AT_RECURSIVE else ''}")
        return self.fds.new(_File(f"clone of {name}", mode))

    def _move_mount(self, mount: int, _from: bytes, onto: int, _to: bytes, _flags: int) -> int:
        self.note("move_mount", f"{self.fds.name(mount)} onto {self.fds.known[onto].name}")
        if self.fds.known[onto].name == os.fsdecode(self.plan["place"]):
            self.fds.known[mount] = _File(self.fds.known[onto].name, stat_.S_IFDIR)
        return 0

    def _fsopen(self, kind: bytes, _flags: int) -> int:
        self.note("fsopen", kind.decode())
        return self.fds.new(_File(kind.decode(), stat_.S_IFDIR))

    def _fsconfig(self, _fd: int, command: int, key: bytes | None, value: bytes | None, _aux: int) -> int:
        if command == _linux.FSCONFIG_SET_STRING and key is not None and value is not None:
            self.note("fsconfig", f"{key.decode()}={value.decode()}")
        else:
            self.note("fsconfig", "FSCONFIG_CMD_CREATE")
        return 0

    def _fsmount(self, fd: int, _flags_: int, attributes: int) -> int:
        self.note("fsmount", _flags(attributes, "MOUNT_ATTR_") if attributes else "no attributes")
        return self.fds.new(_File(f"new {self.fds.known[fd].name}", stat_.S_IFDIR))

    def _landlock_create_ruleset(self, attr: object, _size: int, _flags: int) -> int:
        if attr is None:
            return 1
        self.note("landlock_create_ruleset", "LANDLOCK_ACCESS_FS_EXECUTE")
        return self.fds.new(_File("ruleset"))

    def _landlock_add_rule(self, _ruleset: int, _kind: int, rule: Any, _flags: int) -> int:
        self.note("landlock_add_rule", f"execute beneath {self.fds.name(rule._obj.parent_fd)}")
        return 0

    def _landlock_restrict_self(self, _ruleset: int, _flags: int) -> int:
        self.note("landlock_restrict_self", "without no_new_privs")
        return 0

    def _close_all_but(self, keep: set[int]) -> None:
        self.note("close_range", f"from 3 to the last, all but {', '.join(sorted(map(self.fds.name, keep)))}")

    def _stdio(self, descriptors: list[int]) -> None:
        for target, fd in enumerate(descriptors):
            self.note("dup2", f"{fd} to {target}")

    def _default_signal(self, number: int) -> None:
        name = {known.value: known.name for known in signal.Signals}.get(number, str(number))
        self.note("rt_sigaction", f"{name} to SIG_DFL")

    def _ask(self, _image: int, questions: list[list[bytes]], _env: object) -> list[tuple[int, bytes]]:
        for argv in questions:
            self.note("ask", b" ".join(argv).decode(), "of the image, in a process of its own, where it is confined")
        return [(0, b"") for _ in questions]

    def message(self, data: bytes) -> None:
        """What the child writes to its parent."""
        word = marshal.loads(data)[0]
        if word == "confined":
            self.note("report", "confined, the evidence, and the answers")
        elif word == "executing":
            self.note("send", "executing")
        else:
            self.problem = marshal.loads(data)

    def _loopback_up(self) -> None:
        self.note("ioctl", "SIOCSIFFLAGS lo IFF_UP", "a new network namespace has its loopback down")


_PURE = frozenset(("ctypes", "errno", "marshal", "struct", "sys"))


class _Denied:
    """In place of a module with effects that the rehearsal does not play."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the rehearsal has no {self._module}.{name}")


def _denied(name: str, *_: object) -> None:
    raise AttributeError(f"the rehearsal cannot reach {name}")


def _copy(module: ModuleType) -> ModuleType:
    """A second instance of a module, which nobody else sees, and which can reach nothing but what it is then given."""
    spec = module.__spec__
    assert spec is not None and spec.loader is not None
    copy = module_from_spec(spec)
    # Functions keep the very dictionary of built-ins that their module was executed with.
    reach = vars(copy)["__builtins__"] = dict(vars(builtins))
    spec.loader.exec_module(copy)
    reach["__import__"] = reach["open"] = _denied
    for name, value in list(vars(copy).items()):
        if isinstance(value, ModuleType) and name not in _PURE:
            vars(copy)[name] = _Denied(name)
    return copy


class _Libc:
    """The three functions that `_linux` calls by name."""

    def __init__(self, rehearsal: _Rehearsal) -> None:
        self._r = rehearsal

    def unshare(self, flags: int) -> int:
        self._r.note("unshare", _flags(flags, "CLONE_"))
        return 0

    def prctl(self, what: int, value: Any, *_: int) -> int:
        name = next(n for n, v in vars(_linux).items() if n.startswith("PR_") and v == what)
        text = value if isinstance(value, int) else value.value.decode()  # a c_char_p
        self._r.note("prctl", name if name.startswith("PR_GET") else f"{name} {text}")
        return 1 if name.startswith("PR_GET") else 0


class _Signal:
    """The `_signal` module as `_child` uses it."""

    def __init__(self, rehearsal: _Rehearsal) -> None:
        self._r = rehearsal

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("SIG") and name != "NSIG":
            raise AttributeError(f"the rehearsal has no _signal.{name}")
        return getattr(signal, name)

    def valid_signals(self) -> Iterable[int]:
        return signal.valid_signals()

    def pthread_sigmask(self, how: int, signals: Iterable[int]) -> None:
        what = "all blocked" if how == signal.SIG_BLOCK else "empty mask" if not tuple(signals) else "set"
        self._r.note("rt_sigprocmask", what)

    def signal(self, number: int, _action: object) -> None:
        self._r._default_signal(number)


class _Os:
    """The `os` module as `_child` and `_linux` use it: constants and looking are real, the rest is written down."""

    path, fsdecode, fsencode, strerror = os.path, staticmethod(os.fsdecode), staticmethod(os.fsencode), os.strerror

    def __init__(self, rehearsal: _Rehearsal) -> None:
        self._r = rehearsal
        self._left: dict[int, bytes] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if not name.isupper() and not (name.startswith("P_")):
            raise AttributeError(f"the rehearsal has no os.{name}")
        return value

    def _full(self, path: bytes | str, dir_fd: int | None) -> str:
        text = os.fsdecode(path)
        return text if dir_fd is None else f"{self._r.fds.known[dir_fd].name}/{text}"

    def open(self, path: bytes | str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        name, r = self._full(path, dir_fd), self._r
        raw = os.fsencode(name)
        identity = r.identities.get(raw, _NOTHING)
        kind = stat_.S_IFDIR if flags & os.O_DIRECTORY else stat_.S_IFREG
        if raw in r.identities:
            kind = stat_.S_IFDIR if raw == r.plan["place"] or os.path.isdir(raw) else stat_.S_IFREG
            r.note("openat", f"{name} O_PATH", "again, in this namespace, and compared with what was judged")
        elif flags & os.O_CREAT:
            r.note("openat", f"{name} O_CREAT|O_EXCL {mode:04o}")
        fd = r.fds.new(_File(name, kind, identity))
        if not flags & (os.O_PATH | os.O_WRONLY | os.O_RDWR) and name.startswith("/proc/"):
            self._left[fd] = r.written.get(raw) or Path(name).read_bytes()
            if raw in r.written and not r.written[raw]:
                self._left[fd] = b""
                r.note("read", name, "every mount of the host has its flags, by the kernel's own list")
        return fd

    def read(self, fd: int, _size: int) -> bytes:
        if fd == self._r.link:
            return marshal.dumps(self._r.words.pop(0))
        return self._left.pop(fd, b"")

    def pread(self, _fd: int, _size: int, _offset: int) -> bytes:
        return b""

    def write(self, fd: int, data: bytes) -> int:
        name = self._r.fds.known[fd].name
        if fd == self._r.link:
            self._r.message(bytes(data))
        else:
            short = bytes(data).decode("utf-8", "replace") if len(data) < 80 else f"{len(data)} bytes"
            self._r.note("write", f"{name} {short!r}" if len(data) < 80 else f"{name} {short}")
            self._r.written[os.fsencode(name)] = bytes(data)
        return len(data)

    def fstat(self, fd: int) -> Any:
        file = self._r.fds.known[fd]
        device, inode = file.identity
        return os.stat_result((file.mode, inode, device, 1, 0, 0, file.size, 0, 0, 0))

    def close(self, fd: int) -> None:
        pass

    def dup(self, fd: int) -> int:
        return self._r.fds.new(self._r.fds.known[fd])

    def mkdir(self, path: bytes | str, mode: int, *, dir_fd: int) -> None:
        self._r.note("mkdirat", f"{self._full(path, dir_fd)} {mode:04o}")

    def chmod(self, path: str, mode: int, *, dir_fd: int) -> None:
        pass  # the umask undone, for the directory that was just told of

    def fchmod(self, fd: int, mode: int) -> None:
        self._r.note("fchmod", f"{self._r.fds.known[fd].name} {mode:04o}")

    def sendfile(self, out: int, source: int, offset: int, _count: int) -> int:
        if offset == 0:
            self._r.note("sendfile", f"{self._r.fds.name(source)} to {self._r.fds.known[out].name}")
        return self._r.fds.known[source].size - offset

    def statvfs(self, path: str) -> os.statvfs_result:
        return os.statvfs(path)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def umask(self, mask: int) -> None:
        self._r.note("umask", f"{mask:04o}")

    def chdir(self, path: str) -> None:
        self._r.note("chdir", path)

    def getppid(self) -> int:
        return int(self._r.plan["parent"])

    def geteuid(self) -> int:
        return 0 if b"/proc/self/uid_map" in self._r.written else os.geteuid()

    def getegid(self) -> int:
        return 0 if b"/proc/self/gid_map" in self._r.written else os.getegid()

    def set_inheritable(self, fd: int, inheritable: bool) -> None:
        pass

    def execve(self, image: int | bytes, argv: list[bytes], _env: Mapping[bytes, bytes]) -> None:
        if isinstance(image, bytes):
            self._r.note("execve", os.fsdecode(image), "a canary: it must answer EACCES")
            raise PermissionError(errno.EACCES, "as it must")
        name = f"{self._r.fds.name(image)} as {os.fsdecode(argv[0])}, by descriptor"
        self._r.note("execveat", name, "the verified bytes")
        raise _Done

    def _exit(self, _code: int) -> None:
        raise _Done


_WHY = (
    ("close_range", "", "a descriptor from outside would reach around all that follows"),
    ("unshare", "", "a private view of the host's mounts"),
    ("mount_setattr", "MS_PRIVATE", "what is mounted here does not reach the host"),
    ("mount_setattr", "<clone of", "the guest may execute it; older releases of runsc cannot keep locked flags"),
    ("mount_setattr", "/ set", "nothing of the host can be executed, gain privilege or be written"),
    ("mount_setattr", "/proc clear", "runsc writes there"),
    ("mount_setattr", "<new tmpfs> set", "complete: nobody can put anything there any more"),
    ("open_tree", "", "before the host's mounts lose execution"),
    ("move_mount", "/proc/sys/net/core", "older releases take this for the host's network namespace"),
    ("fsopen", "", "reached by descriptor only, until it is attached"),
    ("write", "setgroups", "without CAP_SETGID outside, gid_map cannot be written before"),
    ("write", "uid_map", "root inside is the caller outside, and no other id exists"),
    ("move_mount", " onto /dev", "of the host's devices, harmless ones alone are kept"),
    ("prctl", "PR_SET_NO_NEW_PRIVS", "no exec gains privilege"),
    ("prctl", "PR_SET_PDEATHSIG", "the child ends with its launcher"),
    ("prctl", "PR_SET_DUMPABLE", "the parent looks at the child through /proc"),
    ("prctl", "PR_GET_NO_NEW_PRIVS", "proved, not hoped"),
    ("prctl", "PR_SET_NAME", "until execve gives it another: a dead process still has its name"),
    ("umask", "", "whatever is made is the caller's alone"),
    ("chdir", "", "the caller's working directory is none of its"),
    ("rt_sigaction", "SIGCHLD", "ignored, it would have the kernel reap whom the child waits for"),
    ("rt_sigaction", "", "Python ignores some, and execve would keep that"),
    ("rt_sigprocmask", "all", "no handler of the caller's runs in the child"),
    ("rt_sigprocmask", "empty", "the image sees every signal, and what came meanwhile takes effect now"),
)
"""Call, what its detail contains, why it is made."""


def _merged(calls: list[Call]) -> list[Call]:
    """The same with a row of signal resets as one."""
    merged: list[Call] = []
    for kind, row in itertools.groupby(calls, key=lambda call: call[0]):
        told = list(row)
        if kind == "rt_sigaction" and len(told) > 1:
            told = [(kind, f"{len(told)} signals to SIG_DFL, all but SIGKILL and SIGSTOP", told[0][2])]
        merged += told
    return merged


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
    if sys.stdout is not None:
        sys.stdout.flush()


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
