"""A kernel that is less than it should be, for one process and its children: seccomp filters, and file flags.

A filter cannot be taken off again, so each goes onto a launcher that is thrown away after its walk. They are what a
container engine (no user namespaces), an old kernel (no Landlock) and a kernel that does not keep its word really look
like from inside.
"""

import ctypes
import errno
import fcntl
import os
import platform
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

# linux/seccomp.h, linux/prctl.h, linux/filter.h, linux/audit.h
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
UNSHARE = {"x86_64": 272, "aarch64": 97}
MOUNT_SETATTR, LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 442, 444, 446
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
CLONE_NEWUSER, AT_FDCWD, AT_RECURSIVE = 0x10000000, 0xFFFFFF9C, 0x8000
# linux/fs.h
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL = 0x80086601, 0x40086602, 0x10

Test = tuple[int, int, int]
"""(argument, LOAD's comparison, value)."""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def answer(number: int, error: int, *tests: Test) -> None:
    """From now on this process's system call `number` does nothing and answers `error`, if all `tests` hold.

    With `error` 0 it seems to have succeeded.
    """
    code: list[tuple[int, int, int, int]] = []
    conditions = [(MACHINE, EQUAL, ARCHITECTURE[platform.machine()]), (NUMBER, EQUAL, number)]
    conditions += [(ARGUMENTS + 8 * argument, how, value) for argument, how, value in tests]
    for place, (offset, how, value) in enumerate(conditions):
        left = 2 * (len(conditions) - place)
        code += [(LOAD, 0, 0, offset), (how, 0, left - 1, value)]
    code += [(RETURN, 0, 0, RET_ERRNO | error), (RETURN, 0, 0, RET_ALLOW)]
    text = b"".join(struct.pack("HBBI", *line) for line in code)
    program = _Program(len(code), text)
    if _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def deny_user_namespaces() -> None:
    """As in a container whose engine forbids them: EPERM."""
    answer(UNSHARE[platform.machine()], errno.EPERM, (0, ANY_BIT, CLONE_NEWUSER))


def deny_landlock() -> None:
    """As in a kernel that was built without it: ENOSYS."""
    answer(LANDLOCK_CREATE_RULESET, errno.ENOSYS)


def break_promises() -> None:
    """Mount flags and Landlock's restriction are accepted, and not enforced."""
    answer(MOUNT_SETATTR, 0, (0, EQUAL, AT_FDCWD), (2, ANY_BIT, AT_RECURSIVE))
    answer(LANDLOCK_RESTRICT_SELF, 0)


def user_namespaces() -> bool:
    """Can a child of this process have a user namespace."""
    pid = os.fork()
    if pid == 0:
        os._exit(_libc.unshare(CLONE_NEWUSER) != 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def landlock() -> bool:
    """Does the kernel say that it has Landlock."""
    return bool(_libc.syscall(ctypes.c_long(LANDLOCK_CREATE_RULESET), None, 0, 1) > 0)


def set_immutable(path: Path, immutable: bool) -> None:
    """chattr +i or -i: nothing in the directory can be made or removed, by root neither."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        flags = struct.unpack("i", fcntl.ioctl(fd, FS_IOC_GETFLAGS, b"\0" * 4))[0]
        flags = flags | FS_IMMUTABLE_FL if immutable else flags & ~FS_IMMUTABLE_FL
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("i", flags))
    finally:
        os.close(fd)
