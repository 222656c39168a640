"""The child's part of a launch, rehearsed: its own code, with system calls that only write down what they are asked.

`_child` and `_linux` run in private copies in which effectful modules, imports and `open` are denied. A call that is
not known here raises; it never becomes a real one, and never shortens the plan.
"""

import builtins
import errno
import itertools
import marshal
import os
import signal
import stat as stat_
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from nucleus_gvisor.runtime import _child, _linux, paths

NOTHING: paths.FileId = (0, 0)
"""The identity of what is not there yet."""


class _Done(BaseException):
    """The rehearsed child has ended, by _exit."""


Call = tuple[str, str, str]


def flags_of(value: int, *prefixes: str) -> str:
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
    identity: paths.FileId = NOTHING
    size: int = 0
    times: tuple[int, int] = (0, 0)


class Fds:
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
        return f"<{self.known[fd].name}>" if isinstance(fd, int) and fd in self.known else str(fd)


class Rehearsal:
    """`_child` on a stage of its own: its system calls are written down, and answered as a willing kernel would.

    Strict: a call that has no answer here is an AttributeError, never a real call.
    """

    def __init__(
        self,
        child_plan: Mapping[str, Any],
        command: tuple[list[bytes], dict[bytes, bytes]],
        sizes: Mapping[str, int],
    ) -> None:
        self.plan: dict[str, Any] = {**child_plan, "parent": 0}
        # What is written is told of, when it is short.
        self.plan["secrets"] = [(b"...", uid) for _, uid in child_plan["secrets"]]
        self.command: tuple[list[bytes], dict[bytes, bytes]] = command
        self.calls: list[Call] = []
        self.fds: Fds = Fds()
        self.link: int = self.fds.new(_File("link"))
        for name, fd in child_plan["images"].items():
            self.fds.known[fd] = _File(name, size=sizes[name])
        for name, fd in child_plan["said"].items():
            self.fds.known[fd] = _File(f"runsc's {name} log")
        self.identities: dict[bytes, paths.FileId] = dict(self._identified())
        self.bound: dict[bytes, tuple[int, ...]] = {}
        """Files that are bound, and where, with what their descriptors say."""
        for name, (path, numbers, _) in child_plan["bound"].items():
            self.bound[path] = self.bound[child_plan["place"] + b"/set/" + os.fsencode(name)] = numbers
        self.written: dict[bytes, bytes] = {b"/proc/self/mountinfo": b""}
        self.words: list[tuple[Any, ...]] = [("exec", *command)]
        canaries = [argv[0] for argv in child_plan["canaries"]]
        self.tried: set[str] = {os.fsdecode(way) for path in canaries for way in _child._ways_to(path, 0)}
        self.problem: object = None
        linux = _copy(_linux)
        self.child_module: ModuleType = _copy(_child)
        fake_os = _Os(self)
        # A few functions whose plumbing would hide what they are for are told of as one.
        vars(linux).update(
            _syscall=self._syscall,
            _libc=_Libc(self),
            os=fake_os,
            posix=fake_os,
            _signal=_Signal(self),
            arrange=self._arrange,
            close_all_but=self._close_all_but,
            default_signal=self._default_signal,
            landlock_has_scope=_linux.landlock_has_scope,
        )
        vars(self.child_module).update(
            os=fake_os,
            _signal=_Signal(self),
            linux=linux,
            _loopback_up=self._loopback_up,
            _scope=self._scope,
            _mapper=self._mapper,
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

    @property
    def confined(self) -> bool:
        """Is the child where it proves that it is."""
        return any(call == "prctl" and "SET_NO_NEW_PRIVS" in detail for call, detail, _ in self.calls)

    def note(self, call: str, detail: str, why: str = "") -> None:
        if call == "unshare" and any(earlier == "pivot_root" for earlier, *_ in self.calls):
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
            f"set {flags_of(wanted.attr_set, 'MOUNT_ATTR_')}" if wanted.attr_set else "",
            f"clear {flags_of(wanted.attr_clr, 'MOUNT_ATTR_')}" if wanted.attr_clr else "",
            flags_of(wanted.propagation, "MS_") if wanted.propagation else "",
            "AT_RECURSIVE" if flags & _linux.AT_RECURSIVE else "",
        ]
        text = " ".join(filter(None, parts))
        if self.confined:
            self.note("mount_setattr", f"{os.fsdecode(path)} {text}", "the undo test: it must answer EPERM")
            raise PermissionError(errno.EPERM, "as it must")
        self.note("mount_setattr", f"{os.fsdecode(path) or self.fds.name(fd)} {text}")
        return 0

    def _open_tree(self, fd: int, path: bytes, flags: int) -> int:
        file = _File(os.fsdecode(path), os.stat(path, follow_symlinks=False).st_mode) if path else self.fds.known[fd]
        name, mode = file.name, file.mode
        self.note("open_tree", f"{name} OPEN_TREE_CLONE{'|AT_RECURSIVE' if flags & _linux.AT_RECURSIVE else ''}")
        return self.fds.new(_File(f"clone of {name}", mode))

    def _move_mount(self, mount: int, _from: bytes, onto: int, _to: bytes, _flags: int) -> int:
        self.note("move_mount", f"{self.fds.name(mount)} onto {self.fds.known[onto].name}")
        place = os.fsdecode(self.plan["place"])
        if self.fds.known[onto].name in (place, place + "/set"):
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
        self.note("fsmount", flags_of(attributes, "MOUNT_ATTR_") if attributes else "no attributes")
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

    def _arrange(self, descriptors: list[int]) -> None:
        for target, fd in enumerate(descriptors):
            self.note("dup2", f"{fd} to {target}")

    def _default_signal(self, number: int) -> None:
        name = {known.value: known.name for known in signal.Signals}.get(number, str(number))
        self.note("rt_sigaction", f"{name} to SIG_DFL")

    def _ask(
        self, _image: int, questions: list[list[bytes]], _env: object, trial: list[bytes] | None
    ) -> list[tuple[int, bytes]]:
        for argv in questions:
            self.note("ask", b" ".join(argv).decode(), "of the image, in a process of its own, where it is confined")
        if trial:
            self.note("ask", b" ".join(trial).decode(), "does it start without --rootless; ended once it has")
        return [(0, b"") for _ in questions]

    def message(self, data: bytes) -> None:
        """What the child writes to its parent."""
        word = marshal.loads(data)[0]
        if word == "map":
            ranges = self.plan["ranges"]
            how = "has newuidmap and newgidmap map the caller and his subordinate ids" if ranges else "maps all ids"
            self.note("send", "map", f"the parent {how}: /proc/CHILD/uid_map and gid_map")
            self.words.insert(0, ("mapped", True))
        elif word == "confined":
            self.note("report", "confined, the evidence, and the answers")
        elif word == "executing":
            self.note("send", "executing")
        else:
            self.problem = marshal.loads(data)

    def _mapper(self) -> Callable[[], bool]:
        self.note("fork", "a process that stays in this user namespace", "it alone may map ids in the nested one")

        def ask() -> bool:
            self.note("write", "/proc/CHILD/uid_map and gid_map, by that process: all its ids, each as itself")
            return True

        return ask

    def _scope(self, _plan: object) -> list[dict[str, str]]:
        self.note("landlock_restrict_self", "signals and abstract sockets", "where the kernel has it (Linux 6.12)")
        self.note("kill", "0 to the parent", "a canary: it must answer EPERM")
        self.note("connect", "an abstract socket from outside", "a canary: it must answer EPERM")
        return []

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
    """The functions that `_linux` calls by name; of `syscall` pivot_root alone gets here."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._r = rehearsal

    def unshare(self, flags: int) -> int:
        self._r.note("unshare", flags_of(flags, "CLONE_"))
        return 0

    def syscall(self, _number: object, *_: object) -> int:
        self._r.note("pivot_root", ". .", "nothing of the host's files is left in sight")
        return 0

    def umount2(self, _path: object, _flags: int) -> int:
        self._r.note("umount2", ". MNT_DETACH", "the host's root")
        return 0

    def prctl(self, what: int, value: Any, *_: int) -> int:
        name = next(n for n, v in vars(_linux).items() if n.startswith("PR_") and v == what)
        text = value if isinstance(value, int) else value.value.decode()  # a c_char_p
        self._r.note("prctl", name if name.startswith("PR_GET") else f"{name} {text}")
        return 1 if name.startswith("PR_GET") else 0


class _Signal:
    """The `_signal` module as `_child` uses it."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._r = rehearsal

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("SIG") and name != "NSIG":
            raise AttributeError(f"the rehearsal has no _signal.{name}")
        return getattr(signal, name)

    def valid_signals(self) -> Iterable[int]:
        return signal.valid_signals()

    def getsignal(self, number: int) -> object:
        return signal.getsignal(number)

    def pthread_sigmask(self, how: int, signals: Iterable[int]) -> None:
        what = "all blocked" if how == signal.SIG_BLOCK else "empty mask" if not tuple(signals) else "set"
        self._r.note("rt_sigprocmask", what)

    def signal(self, number: int, _action: object) -> None:
        self._r._default_signal(number)


class _Os:
    """The `os` module as `_child` and `_linux` use it: constants and looking are real, the rest is written down."""

    path, fsdecode, fsencode, strerror = os.path, staticmethod(os.fsdecode), staticmethod(os.fsencode), os.strerror

    def __init__(self, rehearsal: Rehearsal) -> None:
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
        identity = r.identities.get(raw, NOTHING)
        kind = stat_.S_IFDIR if flags & os.O_DIRECTORY else stat_.S_IFREG
        if r.confined and name in r.tried:
            r.note("openat", f"{name} O_PATH", "a canary: it must answer ENOENT or EACCES")
            raise FileNotFoundError(errno.ENOENT, "as it must")
        if raw in r.identities:
            kind = stat_.S_IFDIR if raw == r.plan["place"] or os.path.isdir(raw) else stat_.S_IFREG
            r.note("openat", f"{name} O_PATH", "again, in this namespace, and compared with what was judged")
        elif raw in r.bound and not flags & os.O_CREAT:
            r.note("openat", name, "compared with what was said of it when it was verified")
            device, inode, size, *times = r.bound[raw]
            return r.fds.new(_File(name, kind, (device, inode), size, (times[0], times[1])))
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
        modified, changed = file.times
        numbers = (file.mode, inode, device, 1, 0, 0, file.size, 0, 0, 0)
        return os.stat_result(numbers, {"st_mtime_ns": modified, "st_ctime_ns": changed})

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

    def fchown(self, fd: int, uid: int, gid: int) -> None:
        self._r.note("fchown", f"{self._r.fds.known[fd].name} {uid}:{gid}")

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

    def fchdir(self, fd: int) -> None:
        self._r.note("fchdir", self._r.fds.known[fd].name)

    def getppid(self) -> int:
        return int(self._r.plan["parent"])

    def geteuid(self) -> int:
        return 0 if b"/proc/self/uid_map" in self._r.written else os.geteuid()

    def getegid(self) -> int:
        return 0 if b"/proc/self/gid_map" in self._r.written else os.getegid()

    def set_inheritable(self, fd: int, inheritable: bool) -> None:
        pass

    def symlink(self, target: str, name: str, *, dir_fd: int) -> None:
        self._r.note("symlinkat", f"{target} {self._full(name, dir_fd)}")

    def execve(self, image: int | bytes, argv: list[bytes], _env: Mapping[bytes, bytes]) -> None:
        if isinstance(image, bytes):
            self._r.note("execve", os.fsdecode(image), "a canary: it must answer EACCES")
            raise PermissionError(errno.EACCES, "as it must")
        if image in self._r.plan.get("opened", ()):
            detail = f"{os.fsdecode(argv[0])}, by descriptor"
            self._r.note("execveat", detail, "a canary: it must answer EACCES")
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
    ("mount_setattr", "<clone of /proc", "root's supervisor must not write what root owns there"),
    ("move_mount", "<clone of /proc> onto", "kept whole, out of the way: the kernel wants to see one for runsc's own"),
    ("mount_setattr", "<clone of", "the guest may execute it; older releases of runsc cannot keep locked flags"),
    ("mount_setattr", "/ set", "nothing of the host can be executed, gain privilege or be written"),
    ("mount_setattr", "/proc clear", "runsc writes there"),
    ("mount_setattr", "<new tmpfs> set", "complete: nobody can put anything there any more"),
    ("open_tree", "/proc", "the kernel's own settings"),
    ("open_tree", "", "before the host's mounts lose execution"),
    ("move_mount", "/proc/sys/net/core", "older releases take this for the host's network namespace"),
    ("fsopen", "overlay", "the mount points that the rootfs lacks lie below it, so that none is made in it"),
    ("fsopen", "", "reached by descriptor only, until it is attached"),
    ("write", "setgroups", "without CAP_SETGID outside, gid_map cannot be written before"),
    ("write", "uid_map", "root inside is the caller outside, and no other id exists"),
    ("move_mount", "/dev/", "of the host's devices, harmless ones alone are kept"),
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
