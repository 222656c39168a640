"""Directories that hold a checkpoint: made for one, and judged before one is restored.

An image is as good as the guest's memory: whoever writes it writes what the sentry reads back. So it lies where only
the caller can write, and is judged again when it is used. A supervisor that was taken over may have written into it
what it likes, as long as it lives: that gets it into another sentry, as confined as its own, and nowhere else.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nucleus_gvisor.model.errors import BadPath, Untrusted
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime import interpreter
from nucleus_gvisor.runtime.bundle import HostPath
from nucleus_gvisor.runtime.errors import RunscFailed
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import FileId, Walk, calls, described, file_id, remove_tree

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CLONE = """
import sys, _child, _linux, os, socket
if _child.privileged():
    _linux.unshare(_linux.CLONE_NEWNS)
else:
    _child.enter_user_namespace(_linux.CLONE_NEWNS)
mount = _linux.open_tree(_child._reopen(os.fsencode(sys.argv[2]), tuple(map(int, sys.argv[3:]))))
_linux.mount_setattr(mount, b"", set=_child.CLOSED)
socket.send_fds(_linux.packets(0), [b"mount"], [mount])
"""


@contextmanager
def made(directory: HostPath) -> Iterator[str]:
    """A new directory of mode 0700, or an empty one of the caller's, for an image: its path without links.

    FileExistsError for anything else that is there, Untrusted where others can change it. What is in it when the block
    ends is an image, or, when the block raises, is removed, and with it the directory that was made.
    """
    path = os.path.abspath(os.fsdecode(directory))
    try:
        os.mkdir(path, 0o700)
        new = True
    except FileExistsError:
        if not os.path.isdir(path) or os.listdir(path):
            raise
        new = False
    try:
        fd, path = _opened(path)
        try:
            os.fchmod(fd, 0o700)
            yield path
            _judge_files(fd, path)
        except BaseException:
            for name in os.listdir(fd):
                remove_tree(fd, os.fsencode(name), lambda _: None)  # the first error counts
            raise
        finally:
            os.close(fd)
    except BaseException:
        if new:
            with suppress(OSError):
                os.rmdir(path)
        raise


def judged(directory: HostPath) -> bytes:
    """The path, without links, of an image that nobody but root and the caller can have changed; Untrusted otherwise,
    NotFound and BadPath where there is none."""
    path = os.path.abspath(os.fsdecode(directory))
    fd, path = _opened(path)
    try:
        _judge_files(fd, path)
    finally:
        os.close(fd)
    return os.fsencode(path)


def _opened(path: str) -> tuple[int, str]:
    identity = Identity.current()
    found = Walk(identity).to(os.fsencode(path))
    try:
        with calls("Prepare", found.path, expected="a directory"):
            fd = os.open(found.name, _DIRECTORY, dir_fd=found.parent)
    finally:
        linux.close(found.parent)
    status = os.fstat(fd)
    if status.st_uid != identity.uid or status.st_mode & 0o022:
        os.close(fd)
        raise Untrusted(
            "a checkpoint's directory can be changed by others",
            step="Prepare",
            path=found.path,
            observed=described(status),
            expected=f"owner uid {identity.uid}, not writable by group or others",
        )
    return fd, os.fsdecode(found.path)


def _judge_files(fd: int, path: str) -> None:
    """Plain files of the caller's: what a sandbox was taken over to leave there instead leads nowhere."""
    names = os.listdir(fd)
    for name in names:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise Untrusted(
                "not a file of a checkpoint",
                step="Prepare",
                path=f"{path}/{name}",
                observed=f"{stat.filemode(status.st_mode)}, owner uid {status.st_uid}",
                expected=f"a file of uid {os.geteuid()}'s, not writable by group or others",
            )
    if not names:
        raise BadPath("not a checkpoint", step="Prepare", path=path, observed="an empty directory")


def opened(path: str, *, alone: bool) -> int:
    """A descriptor by which runsc can write into directory `path`.

    With `alone` nothing else can be reached by it: of a directory's own descriptor the parent is one `..` away, and
    whoever has taken over the supervisor takes descriptors from runsc's other commands too (ptrace(2)). The root of a
    detached mount has no parent.
    """
    fd = os.open(path, _DIRECTORY)
    if not alone:
        return fd
    try:
        return _detached(path, file_id(os.fstat(fd)))
    finally:
        os.close(fd)


def _detached(path: str, identity: FileId) -> int:
    """A detached mount of `path`, made in a mount namespace of its own: only there may the caller without privilege."""
    ours, theirs = linux.socketpair()
    try:
        done = interpreter.run(_CLONE, path, *map(str, identity), stdin=theirs.fileno())
        theirs.close()
        _, fds = linux.receive(ours, 16, 1)
    finally:
        theirs.close()
        ours.close()
    if not fds:
        raise RunscFailed("runsc checkpoint cannot be given its directory", done.stderr.strip().splitlines()[-1])
    return fds[0]
