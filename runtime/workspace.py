"""A directory of the host's that a guest works on as a copy, and how what it changed is shown and written back.

The copy lies on a tmpfs that the launch's child makes (`_child`), bounded in bytes and entries by the kernel: a guest
that fills it meets ENOSPC, and nothing of the host's runs full. This process fills it through the child's root before
runsc is executed, and holds a descriptor of it: so it outlives the sandbox, and goes with this process, whatever ends
it.

What is in it afterwards was written by a guest, or by whoever took its supervisor over: names, kinds, modes, sizes and
targets are all its own. It is reached by descriptors alone, through no link and no mount, and what is read of it is
bounded. Contents are compared, not times: a write through a mapping leaves no time on a tmpfs.

How it is written back, and why so, is in `writeback`.
"""

import errno
import hashlib
import os
import stat
import threading
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.errors import SandboxGone, SyncFailed, WorkspaceConflict
from nucleus_gvisor.runtime.paths import file_id

SIZE = 1 << 30
"""Bytes that a copy may have, unless the caller says otherwise: of memory."""
MOST = 1 << 18
"""Files, directories and links that it may have."""
MODES = 0o777
"""Set-id bits are never written: what a guest makes is not for anybody else to become."""
PIECE = 1 << 20
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class WorkspaceMode(StrEnum):
    """What a guest has of its workspace."""

    COPY = "copy"
    """A copy of its own; what it changed can be seen, and written back."""
    RO = "ro"
    """The directory, to read."""
    RW = "rw"
    """The directory itself."""


class Sync(StrEnum):
    """When `run` writes back what its guest has changed in its copy of the workspace."""

    NEVER = "never"
    SUCCESS = "success"
    """When its program has ended with 0."""
    ALWAYS = "always"
    """When its program has ended by itself, whatever its code."""


@dataclass(frozen=True)
class Changes:
    """What differs between a copy and what it was made of, or was last synchronised with: names, relative to it."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    """Of other content, or of another kind."""
    removed: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    """Where mode or owner alone differ."""
    left_out: tuple[str, ...] = ()
    """What is neither copied nor written: FIFOs, sockets, devices, other mounts, and of the guest's links those that
    lead out, or may."""
    owners: tuple[str, ...] = ()
    """What was written, and belongs to the caller, for he may give it to nobody else."""

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed or self.modes)

    def as_dict(self) -> dict[str, list[str]]:
        """As plain JSON data."""
        return {name: [_plain(one) for one in names] for name, names in asdict(self).items()}


def _plain(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


State = tuple[int, ...]
"""(st_dev, st_ino, st_mode, st_size, st_mtime_ns, st_ctime_ns): what any change of a file changes; of a directory, the
first two and its mode. A rename changes the last one."""


def state_of(status: os.stat_result) -> State:
    if stat.S_ISDIR(status.st_mode):
        return (status.st_dev, status.st_ino, status.st_mode, 0, 0, 0)
    return (*file_id(status), status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass
class Entry:
    """What lies at a place of a copy."""

    kind: int
    """S_IFREG, S_IFDIR or S_IFLNK; 0 for what is not to be written."""
    mode: int
    owner: tuple[int, int]
    size: int = 0
    content: bytes = b""
    """A file's digest, a link's target."""
    host: State = ()
    """The host's own, when it was copied or written."""

    @property
    def rights(self) -> tuple[int, int, int]:
        return (0, 0, 0) if self.kind == stat.S_IFLNK else (self.mode, *self.owner)

    def like(self, other: "Entry") -> bool:
        return (self.kind, self.size, self.content) == (other.kind, other.size, other.content)


# ---- walking ----


Opened = dict[bytes, int]
"""Directories of a copy that their owner could not read, and that are opened to him now: their modes before."""


def walk(
    root: int, most: int, *, but: Collection[bytes] = (), opened: Opened | None = None
) -> Iterator[tuple[bytes, int, bytes, os.stat_result]]:
    """All that is below `root`, a directory before what is in it: path, its directory's descriptor, name and status.

    One directory is open at a time, reached from `root` through no link and no mount. The consumer may change what it
    is given before it asks for the next, and have left out what is below directories: `but`.
    """
    pending, count = [b""], 0
    while pending:
        above = pending.pop()
        folder = open_folder(root, above, opened)
        try:
            for name in sorted(map(os.fsencode, os.listdir(folder))):
                count += 1
                if count > most:
                    raise OSError(errno.E2BIG, f"more than {most} entries")
                path = above + b"/" + name if above else name
                try:
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it has gone meanwhile
                yield path, folder, name, status
                if stat.S_ISDIR(status.st_mode) and path not in but:
                    pending.append(path)
        except OSError as error:
            if not isinstance(error.filename, str | bytes):
                error.filename = os.fsdecode(above) or "."
            raise
        finally:
            linux.close(folder)


def open_folder(root: int, path: bytes, opened: Opened | None = None) -> int:
    """A directory of a tree, through no link and no mount. With `opened`, of a copy, its mode keeps no owner out."""
    if opened is not None and os.geteuid():
        _open_up(root, path, opened)
    try:
        return linux.open_beneath(root, path or b".", FOLDER)
    except OSError as error:
        error.filename = os.fsdecode(path) or "."
        raise


def _open_up(root: int, path: bytes, opened: Opened) -> None:
    """Let the caller into his own directory of a copy, and into those above it."""
    node = linux.dup(root)
    try:
        for number, name in enumerate(path.split(b"/") if path else [b"."]):
            below = linux.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=node)
            linux.close(node)
            node = below
            status = os.fstat(node)
            if status.st_uid == os.geteuid() and status.st_mode & 0o700 != 0o700:
                # By its descriptor, so that it is this one and no other, whatever lies at the name.
                os.chmod(f"/proc/self/fd/{node}", stat.S_IMODE(status.st_mode) | 0o700)
                opened[b"/".join(path.split(b"/")[: number + 1])] = status.st_mode & MODES
    finally:
        linux.close(node)


def opened_file(folder: int, name: bytes, flags: int) -> int:
    """`name` in `folder` of a copy, also where its mode keeps its owner, who is the caller, from reading it: that is
    as it was again then."""
    try:
        return linux.open(name, flags, dir_fd=folder)
    except PermissionError:
        node = linux.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            status = os.fstat(node)
            if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
                raise
            os.chmod(f"/proc/self/fd/{node}", 0o400)
            try:
                return linux.open(name, flags, dir_fd=folder)
            finally:
                os.chmod(f"/proc/self/fd/{node}", stat.S_IMODE(status.st_mode))
        finally:
            linux.close(node)


def status_of(root: int, path: bytes) -> os.stat_result:
    """Of what lies at `path` below `root`, through no link."""
    node = linux.open_beneath(root, os.path.dirname(path) or b".", FOLDER)
    try:
        return os.stat(os.path.basename(path) or b".", dir_fd=node, follow_symlinks=False)
    finally:
        linux.close(node)


def copied(source: int, target: int, limit: int) -> tuple[int, bytes]:
    """Copy a file's bytes, up to the size that it has now; how many, and their digest. OSError above `limit`."""
    size = os.fstat(source).st_size
    if size > limit:
        raise OSError(errno.EFBIG, f"{size} bytes, where {limit} may be")
    digest, left = hashlib.sha256(), size
    while left and (piece := os.read(source, min(left, PIECE))):
        if target >= 0:
            linux.write_all(target, piece)
        digest.update(piece)
        left -= len(piece)
    return size - left, digest.digest()


def new_file(
    source: int, above: int, name: bytes, mode: int, limit: int, owner: tuple[int, int] | None = None
) -> tuple[int, bytes, bool]:
    """Have the open regular file's bytes and time in a new file: how many, their digest, and is it `owner`'s."""
    status = os.fstat(source)
    target = linux.open(name, NEW, 0o600, dir_fd=above)
    try:
        size, digest = copied(source, target, limit)
        given = owner is None or give(target, owner)
        os.fchmod(target, mode)
        os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
        return size, digest, given
    finally:
        linux.close(target)


def give(path: int | bytes, owner: tuple[int, int], folder: int | None = None) -> bool:
    """Have what is open, or lies in `folder`, belong to user and group, as far as the caller may: does it."""
    uid, gid = owner
    where: dict[str, Any] = {} if folder is None else {"dir_fd": folder, "follow_symlinks": False}
    try:
        os.chown(path, uid, gid, **where)
        return True
    except OSError:
        found = os.fstat(path) if isinstance(path, int) else os.stat(path, **where)
        return (found.st_uid, found.st_gid) == (uid, gid)


# ---- the copy ----


class Copy:
    """The copy that a sandbox works on. Safe to use from several threads; it is there as long as this object is."""

    def __init__(self, source: int, path: bytes, copy: int, size: int, base: os.PathLike[str] | None) -> None:
        """`source` and `copy` are directories that it owns from now on; `path` is the first one's, without links, and
        `base` the artifact base of the launch."""
        self._source, self._path, self._copy, self._size, self._base = source, path, copy, size, base
        self._entries: dict[bytes, Entry] = {}
        self._opened: Opened = {}
        self._lock = threading.Lock()
        self._closed = weakref.finalize(self, _close_all, (source, copy))
        self.left_out: tuple[str, ...] = ()
        """What of the directory is not in it: FIFOs, sockets, devices, and what is mounted there."""
        self.owners: tuple[str, ...] = ()
        """What belongs to another user in it, for the caller may give nothing away."""

    def close(self) -> None:
        """Let it go."""
        with self._lock:
            self._closed()

    def _see_open(self) -> None:
        if not self._closed.alive:
            raise SandboxGone("the copy of the workspace has gone with its sandbox")

    def fill(self) -> Mapping[str, object]:
        """Copy the directory; what was copied, in numbers. OSError with the name of what could not be."""
        left_out: list[str] = []
        owners: list[str] = []
        count = 0
        whole = os.fstat(self._source)
        folders = [(b"", whole)]
        but: set[bytes] = set()
        self._entries[b""] = Entry(stat.S_IFDIR, whole.st_mode & MODES, (0, 0), 0, b"", state_of(whole))
        for path, folder, name, status in walk(self._source, MOST, but=but):
            if not _is_kept(status) or (stat.S_ISDIR(status.st_mode) and status.st_dev != whole.st_dev):
                left_out.append(os.fsdecode(path))
                but.add(path)
                continue
            above = open_folder(self._copy, os.path.dirname(path))
            try:
                entry = self._entries[path] = self._take(folder, name, above, status)
                if stat.S_ISDIR(status.st_mode):
                    folders.append((path, status))
                else:
                    if not give(name, (status.st_uid, status.st_gid), above):
                        owners.append(os.fsdecode(path))
                    made = os.stat(name, dir_fd=above, follow_symlinks=False)
                    entry.owner = made.st_uid, made.st_gid
            except OSError as error:
                error.filename = os.fsdecode(path)
                raise
            finally:
                linux.close(above)
            count += entry.size
        for path, status in reversed(folders):  # their modes may keep out whoever fills them
            self._finish(path, status, owners)
        self.left_out, self.owners = tuple(left_out), tuple(owners)
        return {"entries": len(self._entries) - 1, "bytes": count, "left_out": len(left_out), "owners": len(owners)}

    def _take(self, folder: int, name: bytes, above: int, status: os.stat_result) -> Entry:
        """Have in directory `above` of the copy what is `name` in the host's `folder`."""
        entry = Entry(stat.S_IFMT(status.st_mode), status.st_mode & MODES, (0, 0), 0, b"", state_of(status))
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=above)
        elif stat.S_ISLNK(status.st_mode):
            # As it is: in the guest it leads to what the guest has there.
            entry.content = os.readlink(name, dir_fd=folder)
            os.symlink(entry.content, name, dir_fd=above)
        else:
            source = linux.open(name, FILE, dir_fd=folder)
            try:
                if not stat.S_ISREG((status := os.fstat(source)).st_mode):
                    raise OSError(errno.ESTALE, "another thing lies there than a moment ago")
                entry.host = state_of(status)
                entry.size, entry.content, _ = new_file(source, above, name, status.st_mode & MODES, self._size)
            finally:
                linux.close(source)
        return entry

    def _finish(self, path: bytes, status: os.stat_result, owners: list[str]) -> None:
        """Owner, mode and time of a directory of the copy, once all in it is there."""
        made = open_folder(self._copy, path)
        try:
            if not give(made, (status.st_uid, status.st_gid)):
                owners.append(os.fsdecode(path) or ".")
            os.fchmod(made, status.st_mode & MODES)
            os.utime(made, ns=(status.st_mtime_ns, status.st_mtime_ns))
            found = os.fstat(made)
            self._entries[path].owner = found.st_uid, found.st_gid
        finally:
            linux.close(made)

    # ---- to compare ----

    def diff(self) -> Changes:
        """What the guest has changed. While it runs, that may be out of date when it is told."""
        with self._lock:
            self._see_open()
            return self._told(self._look())

    def _told(self, now: Mapping[bytes, Entry]) -> Changes:
        changes = _compared(self._entries, now)
        return replace(changes, left_out=tuple(sorted({*self.left_out, *changes.left_out})))

    def _look(self) -> dict[bytes, Entry]:
        """What is in the copy now."""
        from nucleus_gvisor.runtime.trees import stays_inside  # which knows the launch, that knows this module

        status = os.fstat(self._copy)
        found = {b"": Entry(stat.S_IFDIR, status.st_mode & MODES, (status.st_uid, status.st_gid))}
        for path, folder, name, status in walk(self._copy, MOST, opened=self._opened):
            entry = Entry(stat.S_IFMT(status.st_mode), status.st_mode & MODES, (status.st_uid, status.st_gid))
            was = self._entries.get(path)
            if stat.S_ISLNK(status.st_mode):
                entry.content = os.readlink(name, dir_fd=folder)
                kept = was is not None and was.kind == stat.S_IFLNK and was.content == entry.content
                entry.kind = entry.kind if kept or stays_inside(path, entry.content) else 0
            elif stat.S_ISREG(status.st_mode):
                entry.size = status.st_size
                # What has another size has another content, whatever it is; and so no more is read than was copied.
                if was is not None and (was.kind, was.size) == (entry.kind, entry.size):
                    entry.size, entry.content = self._read(folder, name, was.size)
            elif not stat.S_ISDIR(status.st_mode):
                entry.kind = 0
            found[path] = entry
        for path, mode in self._opened.items():
            if path in found and found[path].mode == mode | 0o700:
                found[path].mode = mode
        return found

    def _read(self, folder: int, name: bytes, limit: int) -> tuple[int, bytes]:
        try:
            fd = opened_file(folder, name, FILE)
        except FileNotFoundError:
            return -1, b""
        try:
            return copied(fd, -1, limit) if stat.S_ISREG(os.fstat(fd).st_mode) else (-1, b"")
        except OSError as error:
            if error.errno != errno.EFBIG:  # it has grown meanwhile
                raise
            return -1, b""
        finally:
            linux.close(fd)

    # ---- to write back ----

    def sync(self) -> Changes:
        """Write what the guest has changed to the host's directory: all of it, or, when anything is raised, nothing.

        WorkspaceConflict where the host's directory has changed since, by the names that would be written; SyncFailed
        where it cannot be written.
        """
        with self._lock:
            self._see_open()
            now = self._look()
            changes = self._told(now)
            if not changes:
                return changes
            from nucleus_gvisor.runtime.writeback import Writing  # which knows this module

            writing = Writing(self._source, self._path, self._copy, self._entries, now, self._size)
            try:
                owners = writing.write(self._base)
            except WorkspaceConflict:
                raise
            except OSError as error:
                raise SyncFailed(os.fsdecode(self._path), error, pending=writing.pending) from error
            return replace(changes, owners=tuple(owners))


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        with suppress(OSError):
            linux.close(fd)


def _is_kept(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)


def _compared(was: Mapping[bytes, Entry], now: Mapping[bytes, Entry]) -> Changes:
    found: dict[str, list[str]] = {name: [] for name in ("added", "changed", "removed", "modes", "left_out")}
    for path in sorted({*was, *now}):
        before, after = was.get(path), now.get(path)
        if after is not None and after.kind == 0:
            word = "left_out"
        elif is_below_left_out(path, now):
            continue
        elif before is None:
            word = "added"
        elif after is None:
            word = "removed"
        elif not after.like(before):
            word = "changed"
        elif after.rights != before.rights:
            word = "modes"
        else:
            continue
        found[word].append(os.fsdecode(path) or ".")
    return Changes(**{name: tuple(names) for name, names in found.items()})


def is_below_left_out(path: bytes, now: Mapping[bytes, Entry]) -> bool:
    """Was it in a directory in whose place is what is never written: then that one stays as it is."""
    while path:
        path = os.path.dirname(path)
        if (entry := now.get(path)) is not None:
            return entry.kind == 0
    return False
