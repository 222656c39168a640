"""One fault in one system call of one process of a launch, by seccomp user notification (seccomp_unotify(2)).

The launch runs under a filter that hands the calls of one name to this supervisor, which counts them for each process
of the launch, answers the N-th with an error (or sends a signal), and lets the others pass. Compared with one strace
for each fault: ten times as fast, because only that one call is stopped; and a child's calls can be told from its
parent's. That the two agree is checked by `by_strace`.

The supervisor also looks at whoever is about to execute anything, from outside, before it may.
"""

import array
import ctypes
import errno
import fcntl
import hashlib
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from tests.conformance.kernel import ARCHITECTURE, EQUAL, LOAD, MACHINE, NUMBER, RET_ALLOW, RETURN
from tests.hostile.sweep.faults import BURST

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
# linux/seccomp.h
SET_MODE_FILTER, FILTER_FLAG_NEW_LISTENER, RET_USER_NOTIF = 1, 8, 0x7FC00000
NOTIF_RECV, NOTIF_SEND, NOTIF_ADDFD = 0xC0502100, 0xC0182101, 0x40182103
USER_NOTIF_FLAG_CONTINUE, ADDFD_FLAG_SETFD = 1, 1
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_ADDFD = struct.Struct("=QIIII")
AT_EMPTY_PATH = 0x1000
DESCRIPTOR = "/proc/self/fd/"
UNSEEN = (0, 0)
EXECUTES = ("execve", "execveat")
MARK = "sched_yield"
BEGUN, AGAIN = 2, 4
"""Marks that the caller has made when the launch has begun, and when it begins once more. One is for the filter."""
CALLER, CHILD, WAITS, ASKED = "caller", "child", "child-waits", "asked"
"""WAITS is the child between two marks of its own, where how often it looks is chance."""
CLOSED = "closed-by-the-sweep"


SEALED = 0xF  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE
_digests: dict[tuple[int, ...], str] = {}


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def program(numbers: list[int] | None, machine: str) -> bytes:
    """A filter that hands these calls (None: all) to the supervisor."""
    picked = numbers or []
    code = [(LOAD, 0, 0, MACHINE), (EQUAL, 0, 1 + len(picked), ARCHITECTURE[machine]), (LOAD, 0, 0, NUMBER)]
    code += [(EQUAL, len(picked) - place, 0, number) for place, number in enumerate(picked)]
    code += [(RETURN, 0, 0, RET_ALLOW)] if numbers is not None else []
    code += [(RETURN, 0, 0, RET_USER_NOTIF)]
    return b"".join(struct.pack("HBBI", *line) for line in code)


def install(code: bytes, number: int) -> int:
    """Put this process and all its children under the filter; the descriptor of the listener."""
    filter_ = _Program(len(code) // 8, code)
    fd = _libc.syscall(number, SET_MODE_FILTER, FILTER_FLAG_NEW_LISTENER, ctypes.byref(filter_))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(fd)


def adopt_orphans() -> None:
    """Have what a killed caller leaves running become this process's child (PR_SET_CHILD_SUBREAPER)."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def take_descriptor(pid: int, fd: int, number: int) -> int:
    """Descriptor `fd` of process `pid`, as soon as it is there; pidfd_getfd(2)."""
    pidfd = os.pidfd_open(pid)
    try:
        while True:
            ours = _libc.syscall(number, pidfd, fd, 0)
            if ours >= 0:
                return int(ours)
            if ctypes.get_errno() != errno.EBADF:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            time.sleep(0)
    finally:
        os.close(pidfd)


@dataclass(frozen=True)
class Fault:
    """What happens at a point: an error's or a signal's name at the N-th call of that name in that process."""

    role: str
    call: str
    number: int
    what: str
    lasting: bool = False
    """From then on, in every process of the launch, until the launch has ended."""

    @property
    def point(self) -> str:
        return f"{self.role}:{self.call}:{self.number}"


@dataclass
class Look:
    """Who is about to execute what, seen from outside."""

    role: str
    path: str
    digest: str
    """SHA-256 of what lies there."""
    sealed: bool
    open_because: str | None
    """None where the process is confined."""


@dataclass
class Traced:
    """What the supervisor saw of a launch."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    """(role, call), in order, from the launch's beginning to its end."""
    hit: bool = False
    more: bool = False
    """Did a call of that name come after the one that was hit. If not, a fault that lasts is this one."""
    looks: list[Look] = field(default_factory=list)
    hung: bool = False


class Supervisor:
    """Watches one launch."""

    def __init__(
        self,
        listener: int,
        caller: int,
        names: Mapping[int, str],
        own: bytes,
        fault: Fault | None,
        retried: Callable[[], None] = lambda: None,
    ) -> None:
        """`own` is the directory in which the launch may mount what can be executed; `retried` is called before the
        caller launches again.
        """
        self._listener, self._names, self._own, self._fault, self._retried = listener, names, own, fault, retried
        self._roles = {caller: CALLER}
        self._images: set[int] = set()
        self._python = self._executable(caller)
        self._outside = self._spaces(caller)
        self._counts: dict[tuple[str, str], int] = {}
        self._marks = 0
        self._waits = False
        self._burst = 0
        self._judged: dict[tuple[str, str], str | None] = {}
        self.traced = Traced()

    def watch(self, seconds: float) -> Traced:
        """Until all processes of the launch have ended, or `seconds` have passed."""
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        buffer = array.array("B", bytes(_NOTIFICATION.size))
        blank = bytes(_NOTIFICATION.size)
        while True:
            ready = poll.poll(max(0.0, end - time.monotonic()) * 1000)
            if not ready:
                self.traced.hung = True
                return self.traced
            if not ready[0][1] & select.POLLIN:  # nobody is under the filter any more
                return self.traced
            buffer[:] = array.array("B", blank)
            try:
                fcntl.ioctl(self._listener, NOTIF_RECV, buffer)
            except (FileNotFoundError, InterruptedError):
                continue  # it was killed meanwhile
            key, pid, _, nr, _, _, *arguments = _NOTIFICATION.unpack(buffer)
            with suppress(FileNotFoundError):
                self._answer(key, self._decide(key, pid, self._names.get(nr, str(nr)), arguments))

    def _answer(self, key: int, error: int) -> None:
        flags = 0 if error else USER_NOTIF_FLAG_CONTINUE
        fcntl.ioctl(self._listener, NOTIF_SEND, _ANSWER.pack(key, 0, -error, flags))

    def _decide(self, key: int, pid: int, call: str, arguments: list[int]) -> int:
        """The errno to answer with; 0 lets the call pass."""
        role = self._role(pid)
        if pid in self._images or (role != CALLER and self._executable(pid) not in (self._python, UNSEEN)):
            self._images.add(pid)
            return 0
        if call == MARK and role == CALLER:
            self._marks += 1
            if self._marks == AGAIN:
                self._roles, self._waits = {pid: CALLER}, False
                self._retried()
            return 0
        if call == MARK and role == CHILD:
            self._waits = not self._waits
            return 0
        if role == CHILD and self._waits:
            role = WAITS
        if call in EXECUTES:
            self.traced.looks += self._look(role, pid, call, arguments)
        if self._marks != BEGUN:
            return 0
        self.traced.calls.append((role, call))
        count = self._counts[role, call] = self._counts.get((role, call), 0) + 1
        fault = self._fault
        if fault is None or call != fault.call:
            return 0
        if not self.traced.hit:
            if role != fault.role or count != fault.number:
                return 0
            self.traced.hit = True
        else:
            self.traced.more = True
            if not fault.lasting or (fault.what == "EINTR" and self._burst == BURST):
                return 0
        self._burst += 1
        if fault.what.startswith("SIG"):
            os.kill(pid, getattr(signal, fault.what))
            return 0
        if call == "close":
            self._close(key, arguments[0])
        return int(getattr(errno, fault.what))

    def _close(self, key: int, fd: int) -> None:
        """close(2) frees the descriptor whatever it answers. Ours puts an inert file in its place."""
        inert = os.memfd_create(CLOSED)
        try:
            with suppress(OSError):
                fcntl.ioctl(self._listener, NOTIF_ADDFD, _ADDFD.pack(key, ADDFD_FLAG_SETFD, inert, fd, os.O_CLOEXEC))
        finally:
            os.close(inert)

    # ---- looking ----

    def _role(self, pid: int) -> str:
        role = self._roles.get(pid)
        if role is None:
            # In the order in which they were made: the child first, then those whom it asks, --version first. A caller
            # that launches again is alive, but a process of its first launch may still be about to end.
            asked = [role for role in self._roles.values() if role.startswith(ASKED)]
            made = self._marks < AGAIN or self._parent(pid) in self._roles
            role = CHILD if made and CHILD not in self._roles.values() else f"{ASKED}-{len(asked) + 1}"
            self._roles[pid] = role
        return role

    @staticmethod
    def _parent(pid: int) -> int:
        with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
        return 0

    @staticmethod
    def _executable(pid: int) -> tuple[int, int]:
        try:
            status = os.stat(f"/proc/{pid}/exe")
        except OSError:
            return UNSEEN
        return status.st_dev, status.st_ino

    @staticmethod
    def _spaces(pid: int) -> tuple[str, str]:
        return os.readlink(f"/proc/{pid}/ns/mnt"), os.readlink(f"/proc/{pid}/ns/user")

    def _look(self, role: str, pid: int, call: str, arguments: list[int]) -> list[Look]:
        path, digest, sealed = "?", "", False
        try:
            path = self._path(pid, call, arguments)
            at = path.replace(DESCRIPTOR, "/fd/") if path.startswith(DESCRIPTOR) else f"/root{path}"
            with suppress(OSError):  # then it is nothing that was verified
                digest, sealed = self._image(f"/proc/{pid}{at}")
            open_because = self._open_because(pid)
        except OSError as error:
            if self._ends(pid):  # it was killed while we looked, and executes nothing
                return []
            open_because = f"it cannot be looked at: {error}"
        return [Look(role, path, digest, sealed, open_because)]

    def _path(self, pid: int, call: str, arguments: list[int]) -> str:
        if call == "execveat" and arguments[4] & AT_EMPTY_PATH:
            return f"{DESCRIPTOR}{arguments[0]}"
        return self._text(pid, arguments[call == "execveat"])

    @staticmethod
    def _ends(pid: int) -> bool:
        """Is it dead, or about to be: exit(2) gives up the namespaces first, and then says so."""
        for _ in range(200):
            try:
                with open(f"/proc/{pid}/stat", "rb") as file:
                    if file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X"):
                        return True
            except OSError:
                return True
            time.sleep(0.005)
        return False

    @staticmethod
    def _text(pid: int, address: int) -> str:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return os.fsdecode(memory.read(256).partition(b"\0")[0])

    @staticmethod
    def _image(path: str) -> tuple[str, bool]:
        """SHA-256 of the bytes there, and whether they are sealed, or kept: read-only, and writable by nobody."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            known = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
            if known not in _digests:
                _digests[known] = hashlib.sha256(os.pread(fd, status.st_size, 0)).hexdigest()
            with suppress(OSError):
                return _digests[known], fcntl.fcntl(fd, fcntl.F_GET_SEALS) == SEALED
            readonly = os.fstatvfs(fd).f_flag & os.ST_RDONLY
            return _digests[known], bool(readonly and not status.st_mode & 0o222 and status.st_nlink == 1)
        finally:
            os.close(fd)

    def _open_because(self, pid: int) -> str | None:
        """Why this process is not confined as mount-locked says."""
        spaces = self._spaces(pid)
        if any(there == here for there, here in zip(spaces, self._outside, strict=True)):
            return "it is in the caller's namespaces"
        with open(f"/proc/{pid}/status", "rb") as file:
            if b"NoNewPrivs:\t1" not in file.read():
                return "it may gain privileges"
        if spaces not in self._judged:
            self._judged[spaces] = self._open_mount(pid)
        return self._judged[spaces]

    def _open_mount(self, pid: int) -> str | None:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            lines = file.read().splitlines()
        for line in lines:
            point, flags = line.split()[4:6]
            if {b"noexec", b"nosuid"} <= set(flags.split(b",")) or point.startswith((self._own + b"/", b"/dev/")):
                continue
            return f"{os.fsdecode(point)} can be executed from"
        return None
