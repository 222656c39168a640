"""What a launch has on disk: its lock, its directory, and how both go again.

Below the artifact base lie `locks/ID` and the container's directory `ID`. A lock is held by flock while the launcher
lives; the owner written in it (a process, by pid and start time) keeps it taken for as long as the sandbox runs.
Whoever takes a lock that nobody holds any more collects what its last holder left.
"""

import fcntl
import hashlib
import os
import random
import re
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, field

from nucleus_gvisor.model.errors import BadBase, Busy, LaunchError, StepFailed
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime import limits
from nucleus_gvisor.runtime.paths import (
    calls,
    described,
    detach_below,
    enter,
    file_id,
    make_directory,
    remove_tree,
)

COLLECTOR_SECONDS, COLLECTOR_TRIES = 0.1, 10
LOOKS = 1000
"""How many locks a launch looks at for dead ones: with more sandboxes than that it is not slowed down by each."""
MOST_LOCKS = 1 << 16
_HEX32 = re.compile(r"[0-9a-f]{32}", re.ASCII)
_COMPONENT = re.compile(r"[0-9a-f]{32}|id-[0-9a-f]{64}", re.ASCII)
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def state_component(container_id: str) -> str:
    """The name of the container's directory: the id itself when it is 32 lower-case hex digits, else a digest of it.

    The whole SHA-256, where the reference keeps half and folds case (gvisor.rs:536).
    """
    if _HEX32.fullmatch(container_id):
        return container_id
    return "id-" + hashlib.sha256(container_id.encode()).hexdigest()


def components(locks: int | os.PathLike[str]) -> list[str]:
    """The names in `locks` that `state_component` gives, and no others.

    SAFETY: whatever a lock is named, a directory of that name beside `locks` is removed with all in it. A stray file
    named `records` must not mean the records, nor `..` what lies above.
    """
    return [name for name in os.listdir(locks) if _COMPONENT.fullmatch(name)]


def read_lock(path: str | bytes | os.PathLike[str], *, locks: int | None = None) -> bytes:
    """The owner line in a lock; it is not taken for that, and what is no file is not waited for."""
    fd = linux.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=locks)
    try:
        return os.pread(fd, 512, 0)
    finally:
        linux.close(fd)


def owner_line(pid: int) -> bytes:
    """Which process `pid` is, so that a later one with the same number is not taken for it."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        started = file.read().rpartition(b")")[2].split()[19]  # field 22, proc(5)
    return b"%d %s %s %s\n" % (pid, started, _boot(), os.readlink("/proc/self/ns/pid").encode())


def _boot() -> bytes:
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip()


def owner_lives(line: bytes) -> bool:
    """Does the process that `line` names still run. One in another pid namespace cannot be asked: it is alive."""
    fields = line.split()
    if len(fields) != 4:
        return False
    if fields[2] != _boot():
        return False
    if fields[3] != os.readlink("/proc/self/ns/pid").encode():
        return True
    if not fields[0].isdigit():
        return False
    try:
        with open(b"/proc/%s/stat" % fields[0], "rb") as file:
            tail = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return tail[19] == fields[1] and tail[0] not in (b"Z", b"X")


@dataclass
class Place:
    """One container's lock and directory below an open artifact base."""

    base: int
    base_path: bytes
    component: str
    locks: int = -1
    lock: int = -1
    directory: int = -1
    problems: list[OSError] = field(default_factory=list)
    shared: bytes = b""
    """The directory above that others write too, where there is one."""

    @property
    def path(self) -> bytes:
        return self.base_path + b"/" + self.component.encode()

    def take(self) -> None:
        """Take the lock, or Busy. What a dead launch left under this id is collected.

        Spec: Concurrent!Truncate.
        """
        if self.locks < 0:
            self.locks = enter(self.base, b"locks", self.base_path + b"/locks", create=True)
        path = self.base_path + b"/locks/" + self.component.encode()
        with calls("Prepare", path):
            full = len(os.listdir(self.locks)) > MOST_LOCKS
        if full:
            raise StepFailed(
                "too many locks below this artifact base",
                step="Prepare",
                path=self.base_path + b"/locks",
                observed=f"more than {MOST_LOCKS}: of sandboxes that run, and of launches that were killed",
                expected="fewer",
                hint="`nucleus-gvisor gc` in the pid namespace of the launches, or another artifact base",
            )
        self.lock = -1 if (fd := take_lock(self.locks, self.component, path, create=True)) is None else fd
        if self.lock < 0:
            raise Busy(
                "another launch holds this container id",
                step="Prepare",
                path=self.path,
                observed="its lock is taken",
                hint="choose another id, or wait for that launch to end",
                expected="an id that no launch holds",
            )
        os.ftruncate(self.lock, 0)

    def own(self, pid: int) -> None:
        """Write into the lock that process `pid` is the one that it is held for.

        Spec: Concurrent!Own.
        """
        with calls("Exec", self.path):
            line = owner_line(pid)
            os.pwrite(self.lock, line, 0)
            os.ftruncate(self.lock, len(line))

    def make(self) -> None:
        """A new, empty, private directory for the container, after what an earlier launch left is gone.

        Spec: Concurrent!Make.
        """
        self._remove_all()
        with calls("Prepare", self.path):
            make_directory(self.base, self.component)
        self.directory = enter(self.base, self.component.encode(), self.path, create=False)

    def remove(self) -> list[OSError]:
        """Remove directory and lock; the failures, in order, when something has to stay.

        Spec: Concurrent!RemoveTree, Unlink, Close.
        """
        self.problems.clear()
        linux.close_of(self.__dict__, "directory")
        if self.lock < 0 <= self.locks:
            self._find_lock()
        if self.lock >= 0:
            self._remove_all()
            if not self.problems:
                try:
                    os.unlink(self.component, dir_fd=self.locks)
                except FileNotFoundError:
                    pass
                except OSError:
                    if self.locks >= 0:  # otherwise a signal handler that came between has done it all
                        raise
            linux.close_of(self.__dict__, "lock")
        return self.problems

    def _remove_all(self) -> None:
        limits.remove(self.base, self.component, self.problems.append)
        if not self.problems:  # the directory has the list of what is still to be removed
            detach_below(self.base, self.component.encode(), self.problems.append)
        if not self.problems:
            remove_tree(self.base, self.component.encode(), self.problems.append)

    def _find_lock(self) -> None:
        """Whatever interrupted the taking may have left the file, and a descriptor of it that nobody knows."""
        with suppress(OSError, LaunchError):
            ours = file_id(os.stat(self.component, dir_fd=self.locks, follow_symlinks=False))
            for held in list(linux.ledger().descriptors):
                with suppress(OSError):  # one that cannot be looked at must not hide the one that is looked for
                    if file_id(os.fstat(held)) == ours:
                        linux.close(held)
            fd = take_lock(self.locks, self.component, self.path, create=False)
            self.lock = -1 if fd is None else fd

    def close(self) -> None:
        """Close all descriptors; the lock stays as its owner line says."""
        for name in ("directory", "lock", "locks", "base"):
            linux.close_of(self.__dict__, name)


def take_lock(locks: int, component: str, path: bytes, *, create: bool) -> int | None:
    """A locked descriptor of the lock file, or None when it is taken.

    Spec: Concurrent!TakeLock.
    """
    patience = COLLECTOR_TRIES
    while True:
        with calls("Prepare", path):
            fd = linux.open(component, _OPEN if create else _OPEN & ~os.O_CREAT, 0o600, dir_fd=locks)
        try:
            # What cannot be locked cannot be removed either: it may be another launch's by now.
            with calls("Prepare", path, hint="the lock's file may be left behind; the next launch here collects it"):
                _judge_lock(os.fstat(fd), path)
                if create:
                    os.fchmod(fd, 0o600)  # the umask may have taken all of it
                locked = _locks(fd)
                if not locked:
                    if not create or not patience or owner_lives(os.pread(fd, 512, 0)):
                        return None
                elif _leads_to(component, locks, fd):
                    if owner_lives(os.pread(fd, 512, 0)):
                        return None
                    taken, fd = fd, -1
                    return taken
                elif not create:
                    return None
        finally:
            if fd >= 0:  # pragma: no branch - it is given away only where it is returned
                linux.close(fd)
        if not locked:
            # Another launch, or only a collector that is about to let go.
            patience -= 1
            time.sleep(COLLECTOR_SECONDS / COLLECTOR_TRIES)


def _judge_lock(status: os.stat_result, path: bytes) -> None:
    """SAFETY: the lock is emptied, written to and removed. What has another name as well is another file."""
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise BadBase(
            "a lock is not a plain file",
            step="Prepare",
            path=path,
            observed=f"{described(status)}, {stat.filemode(status.st_mode)[0]}, {status.st_nlink} names",
            expected="a regular file with one name",
            hint="remove it by hand, once you know what it is",
        )


def _locks(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _leads_to(component: str, locks: int, fd: int) -> bool:
    """Is it still the file of that name. Its last holder may have removed it while we waited: then it locks nothing."""
    try:
        return file_id(os.stat(component, dir_fd=locks, follow_symlinks=False)) == file_id(os.fstat(fd))
    except FileNotFoundError:
        return False


def collect(base: int, base_path: bytes, locks: int, most: int | None = None) -> list[str]:
    """Remove what dead launches left below the base; the directories' names. Spec: GVisorRuntime!Collect.

    A live launch is safe: its lock is held, or names a process that runs. Spec: Concurrent!Finds. Of more than `most`
    locks so many are looked at, any of them: what is passed over now another launch comes by.
    """
    gone = []
    names = components(locks)
    for component in names if most is None or len(names) <= most else random.sample(names, most):
        path = base_path + b"/locks/" + component.encode()
        try:
            fd = take_lock(locks, component, path, create=False)
        except MemoryError:  # it may have come when the lock was ours
            raise
        except Exception:
            continue
        if fd is None:
            continue
        place = Place(linux.dup(base), base_path, component, linux.dup(locks), fd)
        if not place.remove():
            gone.append(component)
        place.close()
    return gone
