"""How what a guest has changed in the copy of its workspace is written to the host's directory: all of it, or nothing.

A killed owner leaves the directory as it was, or as it was meant to be:

1. All that is new is made in a directory of ours in the workspace, and is on disk, before anything else changes: so a
   full disk is met there. What is new is whole: an added directory is staged with all in it.
2. A line in a journal commits it. The journal lies in the artifact base, where no guest writes: one in the workspace
   could be forged by a guest that has it writable, and would be obeyed.
3. Each change is one rename: new into place, the old one out (RENAME_EXCHANGE for both at once). What comes out is
   compared with what was copied, so that nobody's edit is lost; it goes only in the end.
4. What fails, and a conflict that is met on the way, undoes all that was done: each rename has its reverse, for which
   there is room. After a kill, the next launch with a workspace, and `gc`, go on from the journal: before its line
   commits they remove what was staged, and then they do what is left, or undo it.

The other way, one exchange of the whole directory for a new one, is one step without a journal; but it leaves whoever
is in that directory, the caller's own shell above all, in one that is removed, and needs the right to change the one
above.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from nucleus_gvisor.model.errors import BadBase
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime import workspace
from nucleus_gvisor.runtime.errors import WorkspaceConflict
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import NAME_A_BASE, file_id, open_base, remove_tree
from nucleus_gvisor.runtime.workspace import (
    FILE,
    FOLDER,
    MODES,
    Entry,
    State,
    give,
    is_below_left_out,
    new_file,
    open_folder,
    opened_file,
    state_of,
    status_of,
    walk,
)

JOURNAL = re.compile(r"sync-[0-9a-f]{32}", re.ASCII)
MAX_JOURNAL = 256 << 20

ADD, SWAP, TAKE, MODE = "add", "swap", "take", "mode"


@dataclass
class Change:
    """One step of writing back: a rename, or a mode."""

    what: str
    path: str
    number: str = ""
    """The name of what is new, or of what was taken, in the directory where it is staged."""
    old: tuple[int, ...] = ()
    """The state of what is there (of MODE: mode, uid and gid)."""
    new: tuple[int, ...] = ()
    """The state of what comes there, but for its last time (of MODE: the same three)."""
    inside: str = ""
    """A digest of what is in a directory that is taken out."""
    node: tuple[int, ...] = ()
    """Of MODE: whose mode it is."""
    helps: bool = False
    """It lets the owner do what his own directory's mode forbids, or takes that back: no change of the guest's."""


class _Conflict(Exception):
    """Something else lies there than was copied."""


class _Tree:
    """A workspace of the host's that is being written, and where what is new is staged in it."""

    def __init__(self, root: int, staging: int) -> None:
        self.root, self.staging = root, staging

    def folder(self, path: bytes) -> int:
        """The directory that `path` lies in."""
        try:
            return linux.open_beneath(self.root, os.path.dirname(path) or b".", FOLDER)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _Conflict from error
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EXDEV):  # it is a link now, or a mount
                raise _Conflict from error
            raise

    def do(self, change: Change) -> None:
        """Do it, if it has not been done; _Conflict, with nothing done, where something else lies there."""
        self._act(change, self._do)

    def undo(self, change: Change) -> None:
        """The reverse, if it has been done."""
        self._act(change, self._undo)

    def _act(self, change: Change, act: Callable[[Change, int, bytes], None]) -> None:
        path = os.fsencode(change.path)
        if change.what == MODE:
            try:
                fd = linux.open_beneath(self.root, path or b".", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError as error:
                if change.helps:
                    return
                raise _Conflict from error
            try:
                if file_id(os.fstat(fd)) == change.node:
                    act(change, fd, b"")
                elif not change.helps:
                    raise _Conflict
            finally:
                linux.close(fd)
            return
        folder = self.folder(path)
        try:
            act(change, folder, os.path.basename(path))
        finally:
            linux.close(folder)

    def _do(self, change: Change, folder: int, name: bytes) -> None:
        staged = _seen(self.staging, change.number)
        if change.what == MODE:
            _set_rights(folder, change.new)
        elif change.what == ADD:
            if staged is None:
                return
            try:
                linux.rename(self.staging, change.number, folder, name, linux.RENAME_NOREPLACE)
            except FileExistsError as error:
                raise _Conflict from error
        elif change.what == SWAP:
            if not _is(staged, change.new):
                return
            try:
                linux.rename(self.staging, change.number, folder, name, linux.RENAME_EXCHANGE)
            except FileNotFoundError as error:
                raise _Conflict from error
            # SAFETY: what came out is looked at, not what lay there: nobody can put anything between the two.
            if not self._is_old(change):
                linux.rename(self.staging, change.number, folder, name, linux.RENAME_EXCHANGE)
                raise _Conflict
        elif staged is None:
            try:
                linux.rename(folder, name, self.staging, change.number, linux.RENAME_NOREPLACE)
            except FileNotFoundError as error:
                raise _Conflict from error
            if not self._is_old(change):
                linux.rename(self.staging, change.number, folder, name, linux.RENAME_NOREPLACE)
                raise _Conflict

    def _undo(self, change: Change, folder: int, name: bytes) -> None:
        staged = _seen(self.staging, change.number)
        if change.what == MODE:
            _set_rights(folder, change.old)
        elif change.what == TAKE:
            if staged is not None:
                linux.rename(self.staging, change.number, folder, name, linux.RENAME_NOREPLACE)
        elif (there := _seen(folder, name)) is None or state_of(there)[:5] != change.new:
            return  # not done; or another has written there since, and what he wrote stays
        elif change.what == ADD:
            linux.rename(folder, name, self.staging, change.number, linux.RENAME_NOREPLACE)
        else:
            linux.rename(self.staging, change.number, folder, name, linux.RENAME_EXCHANGE)

    def _is_old(self, change: Change) -> bool:
        """Is what was taken out of its place what was copied, with all that is in it."""
        status = _seen(self.staging, change.number)
        if status is None or state_of(status)[:5] != change.old[:5]:  # the rename has changed the last
            return False
        if not change.inside:
            return True
        folder = linux.open_beneath(self.staging, os.fsencode(change.number), FOLDER)
        try:
            return _inside(folder) == change.inside
        finally:
            linux.close(folder)


def _seen(folder: int, name: str | bytes) -> os.stat_result | None:
    if not name:
        return None
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is(status: os.stat_result | None, identity: tuple[int, ...]) -> bool:
    return status is not None and file_id(status) == tuple(identity[:2])


def _set_rights(node: int, rights: tuple[int, ...]) -> None:
    """Mode and owner by an O_PATH descriptor. A directory's own set-id bits stay."""
    mode, uid, gid = rights
    where = f"/proc/self/fd/{node}"
    status = os.fstat(node)
    if (status.st_uid, status.st_gid) != (uid, gid):
        with suppress(OSError):  # as far as the caller may
            os.chown(where, uid, gid)
    kept = status.st_mode & 0o7000 if stat.S_ISDIR(status.st_mode) else 0
    os.chmod(where, mode | kept)


def _inside(folder: int) -> str:
    """A digest of what a directory has in it: names, and the states of what they name."""
    return _digest([(path, state_of(status)) for path, _, _, status in walk(folder, workspace.MOST)])


def _digest(below: list[tuple[bytes, State]]) -> str:
    digest = hashlib.sha256(b"a directory with:\n")
    for path, state in sorted(below):
        digest.update(b"%d %s %s\n" % (len(path), path, repr(state).encode()))
    return digest.hexdigest()


class _Undone(Exception):
    """A change could not be made, and all that had been is undone."""

    def __init__(self, path: str, why: BaseException) -> None:
        super().__init__(path)
        self.path, self.why = path, why


def _roll_forward(tree: _Tree, changes: list[Change]) -> None:
    """Do what is left of them; _Undone when one cannot be, and OSError when that could not be undone either."""
    begun: list[Change] = []
    try:
        for change in changes:
            begun.append(change)
            tree.do(change)
        linux.sync_file_system(tree.root)
    except BaseException as error:
        for change in reversed(begun):
            with suppress(_Conflict):  # the directory that it was in is gone, and is not ours to make again
                tree.undo(change)
        raise _Undone(begun[-1].path if begun else "", error) from None


class _Journal:
    """What one writing back is about to do, in a file of the artifact base: see above."""

    def __init__(self, base: int, name: str, fd: int, path: str, root: int) -> None:
        self._base, self._name, self._fd, self.path, self._root = base, name, fd, path, root
        self._staging = -1

    @property
    def _folder(self) -> str:
        return ".nucleus-gvisor-" + self._name.partition("-")[2]

    @classmethod
    def begun(cls, base: os.PathLike[str] | None, path: bytes, root: int) -> "_Journal":
        """A new one, held as long as this process lives, which says where is to be staged."""
        directory, where, shared = open_base(base, Identity.current())
        try:
            if shared:
                raise BadBase(
                    "the artifact base lies below a directory that others write",
                    step="Sync",
                    path=where,
                    observed=os.fsdecode(shared),
                    expected="one that only the caller can write, for the journal of what is written back",
                    hint=NAME_A_BASE,
                )
            name = f"sync-{secrets.token_hex(16)}"
            fd = linux.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        except BaseException:
            linux.close(directory)
            raise
        self = cls(directory, name, fd, os.fsdecode(path), root)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            self._write({"version": 1, "path": self.path, "root": file_id(os.fstat(root))})
            os.fsync(directory)
            return self
        except BaseException:
            with suppress(OSError):
                os.unlink(name, dir_fd=directory)
            self.close()
            raise

    def _write(self, line: Mapping[str, object]) -> None:
        text = json.dumps(line, separators=(",", ":")).encode()
        # The line counts when all of it is there.
        linux.write_all(self._fd, text + b" " + hashlib.sha256(text).hexdigest().encode() + b"\n")
        os.fsync(self._fd)

    def stage(self) -> int:
        """The directory in the workspace where is staged, new and empty."""
        os.mkdir(self._folder, 0o700, dir_fd=self._root)
        self._staging = linux.open(self._folder, FOLDER, dir_fd=self._root)
        return self._staging

    def commit(self, changes: list[Change]) -> None:
        """From here on it is to be done."""
        staging = file_id(os.fstat(self._staging))
        self._write({"staging": staging, "changes": [asdict(change) for change in changes]})

    def end(self) -> None:
        """It is done, or not at all: what is staged goes, and then the journal."""
        self._write({"done": True})
        if self._staging >= 0:
            problems: list[OSError] = []
            for _ in walk(self._staging, 1 << 62, opened={}):
                pass  # what its owner may not enter is opened to him
            for name in os.listdir(self._staging):
                remove_tree(self._staging, os.fsencode(name), problems.append)
            if problems:
                raise problems[0]
            os.rmdir(self._folder, dir_fd=self._root)
        with suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._base)

    def close(self) -> None:
        """Let it go; where it was not ended, whoever finds it goes on."""
        for fd in (self._staging, self._fd, self._base):
            if fd >= 0:
                linux.close(fd)

    def recover(self, lines: list[dict[str, Any]]) -> None:
        """Go on with what a process that has ended had begun: remove what was staged, or do what is left."""
        with suppress(FileNotFoundError):
            self._staging = linux.open(self._folder, FOLDER, dir_fd=self._root)
        plan = next((line for line in lines if "changes" in line), None)
        if plan is not None and not lines[-1].get("done"):
            if self._staging < 0 or list(file_id(os.fstat(self._staging))) != plan["staging"]:
                raise OSError(errno.ESTALE, "what was staged is no longer there", self._folder)
            states = ("old", "new", "node")
            changes = [Change(**{**one, **{name: tuple(one[name]) for name in states}}) for one in plan["changes"]]
            with suppress(_Undone):  # then it is as it was
                _roll_forward(_Tree(self._root, self._staging), changes)
        self.end()


def recover(base: int) -> list[tuple[str, OSError | None]]:
    """Finish or undo, in every workspace, what killed processes had begun to write back: its path, and what failed."""
    found: list[tuple[str, OSError | None]] = []
    for name in os.listdir(base):
        if not JOURNAL.fullmatch(name):
            continue
        journal = None
        try:
            fd = linux.open(name, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=base)
            journal = _Journal(linux.dup(base), name, fd, "", -1)
            lines = _lines(fd)
            if lines is None:
                continue
            journal.path = str(lines[0]["path"]) if lines else ""
            # SAFETY: by path; the identity says whether it is the same directory.
            journal._root = linux.open(journal.path, FOLDER) if lines else -1
            if lines and list(file_id(os.fstat(journal._root))) == lines[0]["root"]:
                journal.recover(lines)
                found.append((journal.path, None))
            else:  # nothing had been staged, or the workspace is gone
                os.unlink(name, dir_fd=base)
        except FileNotFoundError:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=base)
        except OSError as error:
            found.append((name if journal is None else journal.path, error))
        finally:
            if journal is not None:
                linux.close_of(journal.__dict__, "_root")
                journal.close()
    return found


def _lines(fd: int) -> list[dict[str, Any]] | None:
    """The whole lines of a journal; None where its owner lives, or it is none that we have written."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    if os.fstat(fd).st_nlink != 1:  # another has ended it meanwhile
        return None
    lines = []
    with open(os.dup(fd), "rb") as file:
        for line in file.read(MAX_JOURNAL).split(b"\n"):
            text, _, digest = line.rpartition(b" ")
            if hashlib.sha256(text).hexdigest().encode() != digest:
                break
            lines.append(json.loads(text))
    return lines


class Writing:
    """One `sync`: what is to be done, and the doing."""

    def __init__(
        self, root: int, path: bytes, copy: int, was: dict[bytes, Entry], now: Mapping[bytes, Entry], size: int
    ) -> None:
        self._root, self._path, self._copy, self._left = root, path, copy, size
        self._was, self._now = was, now
        self._changes: list[Change] = []
        self._owners: list[str] = []
        self._staged: dict[bytes, Entry] = {}
        self._closing: dict[bytes, Change] = {}
        """What is closed to its owner in the end."""
        self.pending: bool = False
        """Is a part of it done, which the next use of the workspace goes on with."""

    def write(self, base: os.PathLike[str] | None) -> list[str]:
        """Do it all; the names of what could not be given to its owner."""
        self._plan()
        self._see_conflicts()
        journal = _Journal.begun(base, self._path, self._root)
        try:
            tree = _Tree(self._root, journal.stage())
            _see_exchange(tree.staging)
            for change in self._changes:
                if change.what in (ADD, SWAP):
                    self._stage(tree.staging, change)
            linux.sync_file_system(tree.staging)
            self._see_conflicts()  # staging took its time
            self.pending = True
            journal.commit(self._changes)
            _roll_forward(tree, self._changes)
            self.pending = False
        except _Undone as undone:
            self.pending = False
            if isinstance(undone.why, _Conflict):
                raise WorkspaceConflict(os.fsdecode(self._path), [undone.path]) from None
            raise undone.why from None
        finally:
            try:
                if not self.pending:
                    with suppress(OSError):  # what could not be removed is, at the next use
                        journal.end()
            finally:
                journal.close()
        self._remember()
        return self._owners

    def _plan(self) -> None:
        """Each change by the topmost name that it is of."""
        whole = b"\0"
        numbers = iter(range(len(self._was) + len(self._now)))
        for path in sorted({*self._was, *self._now}, key=lambda path: path.split(b"/")):
            if path.startswith(whole + b"/") or is_below_left_out(path, self._now):
                continue
            was, now = self._was.get(path), self._now.get(path)
            if now is not None and now.kind == 0:
                continue
            name, number = os.fsdecode(path), str(next(numbers))
            if was is None:
                self._changes.append(Change(ADD, name, number))
            elif now is None:
                self._changes.append(Change(TAKE, name, number, was.host, (), self._inside(path)))
            elif not now.like(was):
                self._changes.append(Change(SWAP, name, number, was.host, (), self._inside(path)))
            else:
                if now.rights != was.rights:
                    self._changes.append(self._mode_of(name, was, now))
                continue
            whole = path
        # A directory that its owner may not write is opened to him first, and closed last.
        self._changes.sort(key=lambda change: change.what == MODE and (1 if not change.new[0] & 0o200 else -1))
        if os.geteuid():
            self._help()

    def _help(self) -> None:
        """Have directories opened to the owner, whose modes keep him from changing what is in them, or from moving
        them (rename(2) writes the name `..` of what it moves), and closed again when all is in its place."""
        before: dict[bytes, Change] = {}
        modes = {change.path for change in self._changes if change.what == MODE}
        for change in self._changes:
            path = os.fsencode(change.path)
            if change.what == MODE:
                continue
            above = os.path.dirname(path)
            if (help_ := self._opening(above)) is not None:
                before[above] = help_
                if help_.path not in modes:
                    self._closing[above] = replace(help_, old=help_.new, new=help_.old)
            if change.what != ADD and (help_ := self._opening(path)) is not None:
                before[path] = help_
                change.old = (*change.old[:2], change.old[2] | 0o700, *change.old[3:])
            if change.what != TAKE and self._is_closed(self._now[path]):
                mode = self._now[path].mode
                self._closing[path] = Change(
                    MODE, change.path, old=(mode | 0o700, -1, -1), new=(mode, -1, -1), helps=True
                )
        self._changes = [*before.values(), *self._changes, *self._closing.values()]

    @staticmethod
    def _is_closed(entry: Entry) -> bool:
        return entry.kind == stat.S_IFDIR and entry.mode & 0o300 != 0o300

    def _opening(self, path: bytes) -> Change | None:
        was = self._was[path]
        if not self._is_closed(was):
            return None
        rights = ((was.mode, -1, -1), (was.mode | 0o700, -1, -1))
        return Change(MODE, os.fsdecode(path), old=rights[0], new=rights[1], node=was.host[:2], helps=True)

    def _mode_of(self, name: str, was: Entry, now: Entry) -> Change:
        try:
            status = status_of(self._root, os.fsencode(name))
        except OSError:
            return Change(MODE, name, new=(now.mode, 0, 0))  # a conflict, as will be seen
        owner = (status.st_uid, status.st_gid)
        same = (status.st_mode & MODES, file_id(status)) == (was.mode, was.host[:2])
        old = (status.st_mode & MODES, *owner) if same else ()
        new = (now.mode, *(owner if now.owner == was.owner else now.owner))
        return Change(MODE, name, old=old, new=new, node=was.host[:2])

    def _inside(self, path: bytes) -> str:
        """The digest of what was copied of a directory; nothing for a file."""
        if self._was[path].kind != stat.S_IFDIR:
            return ""
        below = [(one[len(path) + 1 :], entry.host) for one, entry in self._was.items() if one.startswith(path + b"/")]
        return _digest(below)

    def _see_conflicts(self) -> None:
        """WorkspaceConflict where the host's directory is not what was copied, at any of the names."""
        tree = _Tree(self._root, -1)
        if conflicts := [change.path or "." for change in self._changes if not self._fits(tree, change)]:
            raise WorkspaceConflict(os.fsdecode(self._path), conflicts)

    def _fits(self, tree: _Tree, change: Change) -> bool:
        path = os.fsencode(change.path)
        if change.helps:
            return True
        if change.what == MODE:
            old = self._mode_of(change.path, self._was[path], self._now[path]).old
            return bool(old) and old == change.old
        try:
            folder = tree.folder(path)
        except _Conflict:
            return False
        try:
            if file_id(os.fstat(folder)) != self._was[os.path.dirname(path)].host[:2]:
                return False
            status = _seen(folder, os.path.basename(path))
            if change.what == ADD or status is None:
                return change.what == ADD and status is None
            if state_of(status) != self._was[path].host:
                return False
            if not change.inside:
                return True
            below = linux.open_beneath(folder, os.path.basename(path), FOLDER)
            try:
                return _inside(below) == change.inside
            finally:
                linux.close(below)
        except OSError as error:
            if error.errno == errno.EXDEV:  # something is mounted there
                return False
            raise
        finally:
            linux.close(folder)

    def _stage(self, staging: int, change: Change) -> None:
        """Have what is new in the directory for that, whole."""
        top = os.fsencode(change.path)
        names = [top]
        if self._now[top].kind == stat.S_IFDIR:
            names += sorted(path for path in self._now if path.startswith(top + b"/"))
        folders = []
        for path in names:
            entry = self._now[path]
            if entry.kind == 0 or (path != top and os.path.dirname(path) not in self._staged):
                continue
            place = change.number.encode() + path[len(top) :]
            above = linux.open_beneath(staging, os.path.dirname(place) or b".", FOLDER)
            try:
                made = self._make(above, os.path.basename(place), path, entry)
                if made.kind == stat.S_IFDIR:
                    folders.append((place, made))
                elif made.kind == stat.S_IFREG:
                    made.host = state_of(os.stat(os.path.basename(place), dir_fd=above, follow_symlinks=False))
                self._staged[path] = made
            finally:
                linux.close(above)
        for place, made in reversed(folders):
            folder = linux.open_beneath(staging, place, FOLDER)
            try:
                give(folder, made.owner)
                os.fchmod(folder, made.mode | (0o700 if top in self._closing and b"/" not in place else 0))
            finally:
                linux.close(folder)
        change.new = state_of(os.stat(change.number, dir_fd=staging, follow_symlinks=False))[:5]
        if top in self._closing:
            self._closing[top].node = change.new[:2]

    def _make(self, above: int, name: bytes, path: bytes, entry: Entry) -> Entry:
        """What the copy has at `path`, in directory `above`; as it was written."""
        made = Entry(entry.kind, entry.mode, entry.owner, entry.size, entry.content)
        if entry.kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=above)
        elif entry.kind == stat.S_IFLNK:
            os.symlink(entry.content, name, dir_fd=above)
        else:
            folder = open_folder(self._copy, os.path.dirname(path))
            try:
                source = opened_file(folder, os.path.basename(path), FILE)
            finally:
                linux.close(folder)
            try:
                if not stat.S_ISREG(os.fstat(source).st_mode):
                    raise OSError(errno.ESTALE, "the guest has changed it meanwhile", os.fsdecode(path))
                owner = self._owner(path, entry)
                made.size, made.content, given = new_file(source, above, name, entry.mode, self._left, owner)
                self._left -= made.size
                if not given:
                    self._owners.append(os.fsdecode(path))
            finally:
                linux.close(source)
        return made

    def _owner(self, path: bytes, entry: Entry) -> tuple[int, int]:
        """Whose it is to be: its owner's on the host, unless the guest has given it to another."""
        was = self._was.get(path)
        if was is None or was.owner != entry.owner:
            return entry.owner
        status = status_of(self._root, path)
        return status.st_uid, status.st_gid

    def _remember(self) -> None:
        """What was written is what is compared with from now on."""
        for change in self._changes:
            path = os.fsencode(change.path)
            if change.helps:
                continue
            if change.what == MODE:
                was, now = self._was[path], self._now[path]
                was.mode, was.owner = now.mode, now.owner
                was.host = self._host(path)
                continue
            for one in [one for one in self._was if one == path or one.startswith(path + b"/")]:
                del self._was[one]
        for path, made in self._staged.items():
            state = self._host(path)
            # What another has changed since is a conflict of the next time.
            made.host = state if not made.host or made.host[:5] == state[:5] else ()
            self._was[path] = made

    def _host(self, path: bytes) -> State:
        try:
            return state_of(status_of(self._root, path))
        except OSError:
            return ()


def _see_exchange(staging: int) -> None:
    """OSError on a file system that cannot exchange two names in one step (Linux 3.15; not NFS)."""
    for name in ("a", "b"):
        os.mkdir(name, 0o700, dir_fd=staging)
    try:
        linux.rename(staging, "a", staging, "b", linux.RENAME_EXCHANGE)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS):
            text = "its file system cannot exchange two names (renameat2)"
            raise OSError(errno.EOPNOTSUPP, text) from error
        raise
    for name in ("a", "b"):
        os.rmdir(name, dir_fd=staging)
