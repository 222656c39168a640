"""System calls that Python does not offer, one thin function each. No policy here.

Each raises OSError whose text is the call with its arguments. Constants name their header. Numbers are those of
x86-64 and of the architectures that share the generic table from 424 on (arm64, riscv64).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal without its enumerations: a millisecond less
import _socket  # likewise
import ctypes
import errno
import fcntl
import os
import posix
import resource
import struct
from _thread import _local

TYPE_CHECKING = False
if TYPE_CHECKING:  # a fresh interpreter does without that module, and the dozen that it imports
    from typing import Any

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
# linux/mount.h
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
# linux/fcntl.h
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 1, 2, 4, 8
# linux/openat2.h
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 0x01, 0x02, 0x04
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x08, 0x10
# linux/fs.h
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
# linux/close_range.h
CLOSE_RANGE_CLOEXEC = 4
# linux/prctl.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 1, 4, 15, 38, 39
PR_GET_CHILD_SUBREAPER = 37
# asm-generic/resource.h
RLIMIT_LOCKS = 10
# linux/landlock.h
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1
LANDLOCK_ACCESS_FS_EXECUTE = 1
LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, LANDLOCK_SCOPE_SIGNAL = 1, 2
# linux/pidfd.h: struct pidfd_info up to exit_code
_PIDFD_INFO = struct.Struct("=QQ11Ii")
PIDFD_INFO_EXIT = 1 << 3
PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11
# asm-generic/resource.h
RLIMIT_FSIZE = 1
# elf.h (auxiliary vector)
AT_SECURE = 23

_NUMBERS = {
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "close_range": 436,
    "openat2": 437, "mount_setattr": 442, "landlock_create_ruleset": 444, "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
    # asm/unistd_64.h, asm-generic/unistd.h
    **({"renameat2": 316, "syncfs": 306} if os.uname().machine == "x86_64" else {"renameat2": 276, "syncfs": 267}),
}  # fmt: skip

_RT_SIGACTION = 13 if os.uname().machine == "x86_64" else 134  # asm/unistd_64.h, asm-generic/unistd.h
_PIVOT_ROOT = 155 if os.uname().machine == "x86_64" else 41  # the same
_CLONE = 56 if os.uname().machine == "x86_64" else 220  # the same

# ---- descriptors ----


class Ledger:
    """What one launch holds open, descriptors and processes, written down by the very line that opens it.

    KeyboardInterrupt and MemoryError may come between any two lines, so also between the one that opens something and
    the `try` after it; and the frames of a raised error live on, so that nothing is closed by being dropped. A launch
    that does not succeed ends with `release`, whatever line it had reached.
    """

    def __init__(self) -> None:
        self.descriptors: dict[int, int] = {}
        self.processes: list[Any] = []
        """Things with an `end` that does no harm a second time."""

    def use(self) -> None:
        """Write down in it what this thread opens from now on."""
        _here.ledger = self

    def release(self) -> None:
        """End and close all that is in it."""
        while self.processes:
            self.processes.pop().end()
        while self.descriptors:
            close(next(iter(self.descriptors)))


class _Here(_local):
    def __init__(self) -> None:
        self.ledger = Ledger()


_here = _Here()


def ledger() -> Ledger:
    """The one that this thread writes to."""
    return _here.ledger


def open(path: str | bytes | os.PathLike[str], flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    """openat(2), written down."""
    held = _here.ledger.descriptors
    return held.setdefault(fd := os.open(path, flags, mode, dir_fd=dir_fd), fd)


def dup(fd: int) -> int:
    """fcntl(2) with F_DUPFD_CLOEXEC, written down."""
    held = _here.ledger.descriptors
    return held.setdefault(copy := os.dup(fd), copy)


def memfd_create(name: str, flags: int) -> int:
    """memfd_create(2), Linux 3.17, written down."""
    held = _here.ledger.descriptors
    return held.setdefault(fd := os.memfd_create(name, flags), fd)


# ---- calls that Python does not have ----

_libc = ctypes.CDLL(None, use_errno=True)
_libc.getauxval.restype = ctypes.c_ulong
_libc.syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):  # struct mount_attr, linux/mount.h
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class _RulesetAttr(ctypes.Structure):  # struct landlock_ruleset_attr, linux/landlock.h (ABI 6; the first has one field)
    _fields_ = [(name, ctypes.c_uint64) for name in ("handled_access_fs", "handled_access_net", "scoped")]


class _PathBeneath(ctypes.Structure):  # struct landlock_path_beneath_attr, packed
    _pack_, _layout_ = 1, "ms"  # what the one means without the other is deprecated, from Python 3.14 on
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def _shown(argument: object) -> str:
    if isinstance(argument, int):
        return str(argument) if abs(argument) < 4096 else hex(argument)
    return repr(argument) if isinstance(argument, bytes | str) else "&"


def _checked(result: int, name: str, arguments: tuple[Any, ...]) -> int:
    if result < 0:
        number = ctypes.get_errno()
        text = f"{name}({', '.join(_shown(a) for a in arguments)}): {os.strerror(number)}"
        raise OSError(number, text)
    return result


def _syscall(name: str, *arguments: Any) -> int:
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(_NUMBERS[name]), *passed), name, arguments)


class _OpenHow(ctypes.Structure):  # struct open_how, linux/openat2.h
    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


def open_in_root(root: int, path: bytes, flags: int) -> int:
    """openat2(2), Linux 5.6: `path` as a process sees it whose root is the directory `root`; magic links refused."""
    how = _OpenHow(flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    return _syscall("openat2", root, path, ctypes.byref(how), ctypes.sizeof(how))


def open_beneath(root: int, path: bytes, flags: int) -> int:
    """openat2(2), Linux 5.6, written down: `path` below the directory `root`, through no link and no other mount."""
    how = _OpenHow(flags, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV)
    held = _here.ledger.descriptors
    return held.setdefault(fd := _syscall("openat2", root, path, ctypes.byref(how), ctypes.sizeof(how)), fd)


def rename(old: int, name: str | bytes, new: int, target: str | bytes, flags: int) -> None:
    """renameat2(2), Linux 3.15: not in the place of another, or the two exchanged."""
    _syscall("renameat2", old, os.fsencode(name), new, os.fsencode(target), flags)


def sync_file_system(fd: int) -> None:
    """syncfs(2), Linux 2.6.39: all of its file system is on disk; since 5.8 it says what could not be written."""
    _syscall("syncfs", fd)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(flags), "unshare", (flags,))


def setns(fd: int, flags: int) -> None:
    """setns(2) with a pidfd: all namespaces in `flags` at once, or none."""
    _checked(_libc.setns(fd, flags), "setns", (fd, flags))


def mount_setattr(
    fd: int, path: bytes, *, set: int = 0, clear: int = 0, propagation: int = 0, recursive: bool = False
) -> None:
    """mount_setattr(2), Linux 5.12: all mounts of the tree or none."""
    attr = _MountAttr(set, clear, propagation, 0)
    flags = (0 if path else AT_EMPTY_PATH) | (AT_RECURSIVE if recursive else 0)
    _syscall("mount_setattr", fd, path, flags, ctypes.byref(attr), ctypes.sizeof(attr))


def open_tree(fd: int, path: bytes = b"", *, recursive: bool = False) -> int:
    """A detached copy of the mount that `path`, or O_PATH descriptor `fd`, is on, rooted there; open_tree(2).

    The last link of `path` is not followed.
    """
    how = AT_SYMLINK_NOFOLLOW if path else AT_EMPTY_PATH
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | how | (AT_RECURSIVE if recursive else 0)
    return _syscall("open_tree", fd, path, flags)


def move_mount(mount: int, onto: int) -> None:
    """Attach detached `mount` at O_PATH descriptor `onto`; move_mount(2), Linux 5.2."""
    _syscall("move_mount", mount, b"", onto, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)


def pivot_root(root: int) -> None:
    """Make the mount that directory `root` is the root of the root of this mount namespace, and detach the old one.

    pivot_root(2), "pivot_root(".", ".")"; the working directory is the new root afterwards.
    """
    os.fchdir(root)
    dot = ctypes.c_char_p(b".")
    _checked(_libc.syscall(ctypes.c_long(_PIVOT_ROOT), dot, dot), "pivot_root", (b".", b"."))
    _checked(_libc.umount2(dot, MNT_DETACH), "umount2", (b".", MNT_DETACH))
    os.chdir("/")


def detach(fd: int) -> None:
    """Detach the mount whose root O_PATH descriptor `fd` is, and those on it; umount2(2), MNT_DETACH."""
    path = b"/proc/self/fd/%d" % fd
    _checked(_libc.umount2(ctypes.c_char_p(path), MNT_DETACH), "umount2", (path, MNT_DETACH))


def new_tmpfs(attributes: int, **options: str) -> int:
    """A detached tmpfs with mount `attributes`."""
    return new_mount(b"tmpfs", attributes, **options)


def new_mount(kind: bytes, attributes: int, **options: str) -> int:
    """A detached file system of `kind` with mount `attributes`; fsopen(2), fsconfig(2), fsmount(2), Linux 5.2."""
    context = _syscall("fsopen", kind, FSOPEN_CLOEXEC)
    try:
        for key, value in options.items():
            _syscall("fsconfig", context, FSCONFIG_SET_STRING, key.encode(), value.encode(), 0)
        _syscall("fsconfig", context, FSCONFIG_CMD_CREATE, None, None, 0)
        return _syscall("fsmount", context, FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def close(fd: int) -> None:
    """close(2). Whatever it answers, the descriptor is gone (its man page, "Dealing with error returns").

    So an error is nobody's: what has to be on disk was synced before. But one that was not open is a defect of ours.
    """
    held = _here.ledger.descriptors
    try:
        posix.close(held.pop(fd, fd))  # os.close may be gevent's, which closes later
    except OSError as error:
        if error.errno == errno.EBADF:
            raise


def close_of(holder: dict[str, Any], name: str) -> None:
    """Close the descriptor that is `holder[name]`, unless it is -1, which it is from then on.

    Taken out and closed on one line: whatever interrupts, and does it again, does not close another's.
    """
    held = _here.ledger.descriptors
    try:
        if holder.get(name, -1) >= 0:
            os.close(held.pop(fd := holder.pop(name, -1), fd))
    except OSError as error:
        if error.errno == errno.EBADF and fd >= 0:
            raise
    finally:
        holder.setdefault(name, -1)


def close_range(first: int, last: int, flags: int = 0) -> None:
    """close_range(2), Linux 5.9 (5.11 for CLOSE_RANGE_CLOEXEC); elsewhere the same, one descriptor after the other.

    For a process with one thread: another could open a descriptor meanwhile.
    """
    try:
        _syscall("close_range", first, last, flags)
    except OSError as error:
        # EINVAL: the flag is unknown. EPERM: how a seccomp filter older than the call refuses it.
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            raise
        _close_each(first, last, flags)


def _close_each(first: int, last: int, flags: int) -> None:
    listing = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        held = [fd for fd in map(int, os.listdir(listing)) if first <= fd <= last and fd != listing]
    finally:
        os.close(listing)
    for fd in held:
        try:
            os.set_inheritable(fd, False) if flags & CLOSE_RANGE_CLOEXEC else os.close(fd)
        except OSError as error:
            # os.listdir's duplicate is gone.
            if error.errno != errno.EBADF:  # pragma: no cover - a disk that fails just when a file on it is closed
                raise


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor from 3 on that is not in `keep`, through the kernel's own table or its list of it."""
    first = 3
    for fd in sorted(k for k in keep if k >= 3):
        if fd > first:
            close_range(first, fd - 1)
        first = fd + 1
    close_range(first, 0x7FFFFFFF)


def socketpair() -> tuple[Any, Any]:
    """Two connected sockets of packets, which block, as `packets` has them."""
    kind = (_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    ends: tuple[Any, ...] = ()
    try:
        # Made and made to block on one line: the frame of an interrupt between two would keep them open, see Ledger.
        return (ends := _socket.socketpair(*kind), any(map(_socket.socket.setblocking, ends, (True, True))))[0]
    except OSError:  # pragma: no cover - the sweep does it, whose processes are not measured
        for end in ends:
            end.close()
        raise


def packets(fd: int) -> Any:
    """The socket of packets behind `fd`, which blocks, whatever socket.setdefaulttimeout says in this process; and one
    of the C library's kind, whatever has put its own class in `socket` (gevent)."""
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
    link.setblocking(True)
    return link


def unix_socket() -> Any:
    """A new stream socket of that family; it blocks, and is the C library's kind, as those of `packets`."""
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    link.setblocking(True)
    return link


def duplicate(fd: int) -> int:
    """A descriptor of our own for what `fd` names, whoever closes that; never one of 0, 1 and 2, F_DUPFD_CLOEXEC."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def receive(link: Any, size: int, most: int) -> tuple[bytes, list[int]]:
    """A packet of up to `size` bytes with up to `most` descriptors, which no program that is executed gets, unix(7).

    None of them when this process has no room for all.
    """
    # As socket.recv_fds, which does not hand its flags on.
    space = _socket.CMSG_LEN(most * struct.calcsize("i"))
    wanted = False
    extra: list[Any] = []
    try:
        packet, extra, flags, _ = link.recvmsg(size, space, _socket.MSG_CMSG_CLOEXEC)
        wanted = not flags & _socket.MSG_CTRUNC
        return packet, descriptors(extra) if wanted else []
    finally:
        if not wanted:  # or it was interrupted
            for fd in descriptors(extra):
                os.close(fd)


def descriptors(extra: list[Any]) -> list[int]:
    """Those of a packet's ancillary data, unix(7)."""
    return [fd for *_, data in extra for (fd,) in struct.iter_unpack("i", data)]


def write_all(fd: int, data: bytes | memoryview) -> None:
    """write(2), which takes as much as there is room for, until it has taken all."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def no_new_privs() -> None:
    """PR_SET_NO_NEW_PRIVS; never undone, inherited by all that follow."""
    _checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl", (PR_SET_NO_NEW_PRIVS, 1))


def has_no_new_privs() -> bool:
    """PR_GET_NO_NEW_PRIVS."""
    return _checked(_libc.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), "prctl", (PR_GET_NO_NEW_PRIVS,)) == 1


def set_name(name: bytes) -> None:
    """PR_SET_NAME: what /proc/PID/comm says, 15 bytes, until execve."""
    _checked(_libc.prctl(PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0), "prctl", (PR_SET_NAME, name))


def default_signal(number: int) -> None:
    """rt_sigaction(2) to SIG_DFL, also for the two signals that the C library keeps from its callers."""
    number_of_call = ctypes.c_long(_RT_SIGACTION)
    answer = _libc.syscall(
        number_of_call, ctypes.c_long(number), ctypes.create_string_buffer(32), None, ctypes.c_long(8)
    )
    _checked(answer, "rt_sigaction", (number,))


def ignores_its_group() -> bool:
    """Does this process ignore one of the signals by which a terminal, a shell or a service manager ends, or stops, all
    of a process group; nohup(1) and a shell's `&` have a program do so."""
    signals = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGTSTP)
    return any(_signal.getsignal(number) == _signal.SIG_IGN for number in signals)


def default_dispositions() -> None:
    """Default dispositions of all signals."""
    for number in range(1, _signal.NSIG):
        if number not in (_signal.SIGKILL, _signal.SIGSTOP):
            default_signal(number)


def default_signals() -> None:
    """Default dispositions and an empty mask; a signal that came meanwhile takes effect now."""
    default_dispositions()
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def arrange(descriptors: list[int]) -> None:
    """Put `descriptors` at 0, 1, 2 and on; copies first, because one may stand where another is to go."""
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(descriptors)) for fd in descriptors]
    for target, copy in enumerate(copies):
        os.dup2(copy, target)


def set_dumpable(value: bool = True) -> None:
    """PR_SET_DUMPABLE: /proc entries of this process are its user's again, after a change of credentials took them.

    False takes them away, and keeps this process from being traced.
    """
    _checked(_libc.prctl(PR_SET_DUMPABLE, int(value), 0, 0, 0), "prctl", (PR_SET_DUMPABLE, int(value)))


def clone_sibling() -> tuple[int, int]:
    """A copy of this process whose parent is this process's own, clone(2) with CLONE_PARENT; (0, -1) in the copy.

    Its number and its pidfd (CLONE_PIDFD, Linux 5.2), which is of this very process whatever becomes of it meanwhile.
    For a process with one thread, and past the C library: so only for one that was itself forked or started for it.
    """
    number, flags = ctypes.c_long(_CLONE), CLONE_PARENT | CLONE_PIDFD
    pidfd = ctypes.c_int(-1)
    arguments = (ctypes.c_long(flags), ctypes.c_long(0), ctypes.byref(pidfd), ctypes.c_long(0), ctypes.c_long(0))
    pid = _checked(_libc.syscall(number, *arguments), "clone", (flags,))
    return pid, pidfd.value


def die_with_parent(signal: int) -> None:
    """PR_SET_PDEATHSIG: `signal` to this process when the thread that made it ends."""
    _checked(_libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl", (PR_SET_PDEATHSIG, signal))


def gets_orphans() -> bool:
    """PR_GET_CHILD_SUBREAPER: does this process get those below it whose parents have ended. The first one does."""
    answer = ctypes.c_int(0)
    _checked(_libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0), "prctl", (PR_GET_CHILD_SUBREAPER,))
    return bool(answer.value) or os.getpid() == 1


def set_mark(mark: int) -> None:
    """Have `mark` from now on, with all that is started; see `orphans`. It can only become less."""
    resource.setrlimit(RLIMIT_LOCKS, (mark, mark))


def children(pid: int) -> list[int]:
    """The numbers of its child processes; none where that cannot be told (proc(5), CONFIG_PROC_CHILDREN)."""
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with os.fdopen(os.open(f"/proc/{pid}/task/{task}/children", os.O_RDONLY), "rb") as file:
                found += [int(child) for child in file.read().split()]
    except OSError:
        pass
    return found


class _Held(list[int]):
    """Descriptors that are closed when it is, or when whoever was interrupted drops it."""

    def close(self) -> None:
        while self:
            os.close(self.pop())

    def __del__(self) -> None:
        self.close()


def kill_with_all_below(pid: int, pidfd: int, *, patience: float = 0.0) -> None:
    """SIGKILL to the process `pid`, which `pidfd` is of, and to those below it; OSError when it has gone.

    With `patience` those below have ended when it returns, if they do within so many seconds; they are not reaped.

    runsc has the kernel kill its gofer when it dies itself, and loses that when the gofer executes itself anew from a
    thread that has not asked for it (prctl(2), PR_SET_PDEATHSIG). Then the gofer ends when it notices, if it is not
    stopped, and does as runsc's does.
    """
    below = _Held()
    try:
        _open_below(pid, below)
    finally:
        try:
            # SAFETY: a process that has gone cannot be sent a signal, and what was found may be below a stranger.
            _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
            for fd in below:
                try:
                    _signal.pidfd_send_signal(fd, _signal.SIGKILL)
                except OSError:
                    pass  # it has ended
            if patience:
                import select
                import time

                end = time.monotonic() + patience
                for fd in below:
                    poll = select.poll()
                    poll.register(fd, select.POLLIN)
                    poll.poll(max(0.0, end - time.monotonic()) * 1000)
        finally:
            below.close()


def _open_below(pid: int, below: list[int]) -> None:
    """Put a pidfd of each process below `pid` into `below`."""
    for child in children(pid):
        try:
            below.append(os.pidfd_open(child))
        except OSError:
            continue  # it has ended
        if child in children(pid):
            _open_below(child, below)
        else:  # its number may be another's by now
            os.close(below.pop())


def pidfd_exit_status(pidfd: int) -> int | None:
    """The wait status of a process that was reaped by someone else; PIDFD_GET_INFO, Linux 6.15, None before."""
    try:
        answer = fcntl.ioctl(pidfd, PIDFD_GET_INFO, _PIDFD_INFO.pack(PIDFD_INFO_EXIT, *[0] * 13))
    except OSError:
        return None
    mask, *_, status = _PIDFD_INFO.unpack(answer)
    return int(status) if mask & PIDFD_INFO_EXIT else None


def elevated() -> bool:
    """True in a set-id or capability-raised program (AT_SECURE): its environment is the invoker's, not its own."""
    return bool(_libc.getauxval(AT_SECURE)) or os.getuid() != os.geteuid() or os.getgid() != os.getegid()


def limit_file_size(size: int) -> None:
    """setrlimit(2) of RLIMIT_FSIZE. The `resource` module is a file of the host's, and cannot be loaded any more."""
    limit = (ctypes.c_ulong * 2)(size, size)
    _checked(_libc.setrlimit(RLIMIT_FSIZE, ctypes.byref(limit)), "setrlimit", (RLIMIT_FSIZE, size))


def landlock_abi() -> int:
    """The kernel's Landlock version, from 1; 0 where there is none."""
    try:
        return _syscall("landlock_create_ruleset", None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    except OSError:
        return 0


def landlock_execute_only(beneath: list[int]) -> None:
    """Restrict execution to what lies beneath the O_PATH descriptors `beneath`, for this thread and its children.

    Handles LANDLOCK_ACCESS_FS_EXECUTE alone (landlock(7)); without no_new_privs it needs CAP_SYS_ADMIN.
    """
    attr = _RulesetAttr(LANDLOCK_ACCESS_FS_EXECUTE)
    ruleset = _syscall("landlock_create_ruleset", ctypes.byref(attr), ctypes.sizeof(ctypes.c_uint64), 0)
    try:
        for fd in beneath:
            rule = _PathBeneath(LANDLOCK_ACCESS_FS_EXECUTE, fd)
            _syscall("landlock_add_rule", ruleset, LANDLOCK_RULE_PATH_BENEATH, ctypes.byref(rule), 0)
        _syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def landlock_scope() -> None:
    """Keep this thread and its children from signalling, and from abstract sockets of, what is not among them.

    LANDLOCK_SCOPE_SIGNAL and LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, Landlock ABI 6 (Linux 6.12). No access is handled, so
    that mount(2) and pivot_root(2) stay permitted. It needs no_new_privs, and is never undone.
    """
    attr = _RulesetAttr(0, 0, LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | LANDLOCK_SCOPE_SIGNAL)
    ruleset = _syscall("landlock_create_ruleset", ctypes.byref(attr), ctypes.sizeof(attr), 0)
    try:
        _syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def landlock_has_scope() -> bool:
    """Could `landlock_scope` be had by this process, which has no_new_privs or CAP_SYS_ADMIN."""
    attr = _RulesetAttr(0, 0, LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | LANDLOCK_SCOPE_SIGNAL)
    try:
        os.close(_syscall("landlock_create_ruleset", ctypes.byref(attr), ctypes.sizeof(attr), 0))
        _syscall("landlock_restrict_self", -1, 0)  # a filter may forbid this one alone
    except OSError as error:
        return error.errno == errno.EBADF
    return True  # pragma: no cover - there is no such ruleset
