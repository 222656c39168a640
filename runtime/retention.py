"""Which records stay in an artifact base: as many, as old and as large together as was asked for.

Removed are records of launches that came to their guest, whose sandbox has ended: the oldest first. All others tell of
what somebody may still ask about, and stay: of the living, without an end, of failures and refusals, and files that a
caller named. What is removed is written down before: a line a batch, each naming the hash of the line before.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, BinaryIO

from nucleus_gvisor.model.errors import RecordRejected, StepFailed
from nucleus_gvisor.model.record import GENESIS, MAX_LINE, TransitionRecord, canonical, parse, rejected
from nucleus_gvisor.model.states import LaunchState
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.bounds import RecordBounds
from nucleus_gvisor.runtime.cleanup import state_component
from nucleus_gvisor.runtime.errors import RecordsFull
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import calls, enter, open_base

RECORDS = "records"
LEDGER = "pruned.ledger"
"""In the records' directory: what was removed from it."""
MARK = ".launches"
"""In the same: when somebody last looked how many there are, after how many launches the next one is to look, and a
byte for each launch since."""
DAY = 86_400
FEW = 64
"""With no more records than this, each launch looks; there is no mark."""
BATCH = 100
"""Records that one line of the ledger tells of."""
MOST_LEDGER = 16 << 20
"""Bytes; its oldest half goes when it is longer."""
_OURS = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.+-]{0,63})\.([0-9a-f]{12})\.ndjson", re.ASCII)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Kept:
    """A record file of a base."""

    name: str
    size: int
    changed: float
    """When its last line was written."""
    inode: int
    container: str
    launch: str
    """Twelve digits of it."""

    def older(self, days: float, now: float) -> bool:
        return bool(days) and now - self.changed > days * DAY


@dataclass(frozen=True, slots=True)
class Pruned:
    """A record that is removed, or would be."""

    kept: Kept
    last: TransitionRecord
    head: str
    why: str
    """The bound that it is over: "age", "count" or "size"."""


@dataclass(frozen=True)
class Store:
    """The records' directory of an artifact base, and the base, open."""

    directory: int
    base: int
    path: bytes
    """Of the records' directory."""

    # ---- to look ----

    def kept(self) -> list[Kept]:
        """Record files that launches made here themselves, the oldest first."""
        found = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                match = _OURS.fullmatch(entry.name)
                if match is None:
                    continue
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                        kept = Kept(entry.name, status.st_size, status.st_mtime, status.st_ino, match[1], match[2])
                        found.append(kept)
        return sorted(found, key=lambda kept: (kept.changed, kept.name))

    def last(self, kept: Kept) -> tuple[TransitionRecord, str] | None:
        """The last line of the record that this file was made for, and its hash; None for anything else."""
        try:
            fd = linux.open(kept.name, _READ, dir_fd=self.directory)
            try:
                line = _last_line(fd)
            finally:
                linux.close(fd)
            record = parse(line)
        except (OSError, RecordRejected):
            return None
        ours = record.container == kept.container and record.launch.startswith(kept.launch)
        return (record, hashlib.sha256(line).hexdigest()) if ours else None

    def protects(self, kept: Kept, last: TransitionRecord | None) -> str:
        """Why this record is never removed; empty when it may be."""
        if last is None:
            return "not a whole record of one launch"
        if last.dest == LaunchState.FAILED:
            return "of a failure"
        if last.dest != LaunchState.EXECD:
            return "without an end"
        try:
            os.stat(f"locks/{state_component(kept.container)}", dir_fd=self.base, follow_symlinks=False)
        except FileNotFoundError:
            return ""
        except OSError:
            return "its lock cannot be looked at"
        return "its sandbox may run"

    def here(self, bounds: RecordBounds) -> RecordBounds:
        """The bounds on this file system: records are not to fill a small one, which may be memory."""
        if not bounds.size:
            return bounds
        return replace(bounds, size=min(bounds.size, max(1, self._room() // 4)))

    def _room(self) -> int:
        status = os.fstatvfs(self.directory)
        return status.f_blocks * status.f_frsize

    def over(self, bounds: RecordBounds, *, room: int = 0) -> tuple[list[Pruned], int, int]:
        """The records to remove, so that `room` more are within the bounds; how many stay, and how many bytes."""
        bounds = self.here(bounds)
        every, now = self.kept(), time.time()
        count, size = len(every), sum(kept.size for kept in every)
        chosen = []
        # Some more at once, when it has to be at all, so that not each launch after this one has to look.
        most = bounds.count - bounds.slack if room and count + room > bounds.count else bounds.count
        bytes_ = bounds.size - bounds.size // 20 if room and size >= bounds.size else bounds.size
        for kept in every:
            if kept.older(bounds.days, now):
                why = "age"
            elif bounds.count and count + room > most:
                why = "count"
            elif bounds.size and size + room > bytes_:
                why = "size"
            else:
                break
            found = self.last(kept)
            if not self.protects(kept, found[0] if found else None) and found is not None:
                chosen.append(Pruned(kept, *found, why))
                count, size = count - 1, size - kept.size
        return chosen, count, size

    # ---- to remove ----

    def remove(self, chosen: Sequence[Pruned], bounds: RecordBounds) -> None:
        """Remove the records, each batch once the ledger has it. Whoever calls holds the lock."""
        most, left = BATCH, list(chosen)
        while left:
            batch = left[:most]
            try:
                # Killed between the two: the next one that looks finds them, and writes them down again.
                self._write_down(batch, bounds)
            except StepFailed as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or most == 1:
                    raise
                most = 1  # the line of one is short, and room is what its removal makes
                continue
            for one in batch:
                with suppress(FileNotFoundError):
                    if os.stat(one.kept.name, dir_fd=self.directory, follow_symlinks=False).st_ino == one.kept.inode:
                        os.unlink(one.kept.name, dir_fd=self.directory)
            del left[:most]

    def _write_down(self, batch: Sequence[Pruned], bounds: RecordBounds) -> None:
        path = self.path + b"/" + LEDGER.encode()
        with calls("Prepare", path, hint="without a line that tells of it no record is removed"):
            fd = linux.open(LEDGER, _APPEND, 0o600, dir_fd=self.directory)
            try:
                size, before = os.fstat(fd).st_size, _last_line(fd)
                if size and os.pread(fd, 1, size - 1) != b"\n":
                    # Whoever wrote it was killed before it was whole, and before anything of it was removed.
                    size = _whole(fd, size)
                    os.ftruncate(fd, size)
                    before = _last_line(fd)
                line = _ledger_line(batch, bounds, *_place(before, path))
                try:
                    if os.write(fd, line + b"\n") != len(line) + 1:
                        raise OSError(errno.ENOSPC, "written in part")
                    os.fdatasync(fd)
                except BaseException:
                    with suppress(OSError):
                        os.ftruncate(fd, size)
                    raise
                if size > min(MOST_LEDGER, self._room() // 16):
                    self._shorten(fd, size)
            finally:
                linux.close(fd)

    def _shorten(self, fd: int, size: int) -> None:
        """Drop the older half; the numbers of those that stay say how many went."""
        half = os.pread(fd, size, size // 2).partition(b"\n")[2]
        aside = LEDGER + ".new"
        with suppress(FileNotFoundError):
            os.unlink(aside, dir_fd=self.directory)
        new = linux.open(aside, _APPEND | os.O_EXCL, 0o600, dir_fd=self.directory)
        try:
            with suppress(OSError):  # no room: the long one stays
                if os.write(new, half) == len(half):
                    os.fdatasync(new)
                    os.rename(aside, LEDGER, src_dir_fd=self.directory, dst_dir_fd=self.directory)
                    return
            os.unlink(aside, dir_fd=self.directory)
        finally:
            linux.close(new)

    @contextmanager
    def locked(self, *, wait: bool) -> Iterator[bool]:
        """Alone in removing, among all processes; False when another is at it and `wait` was not asked for."""
        try:
            fcntl.flock(self.directory, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self.directory, fcntl.LOCK_UN)

    # ---- at a launch ----

    def make_room(self, bounds: RecordBounds) -> None:
        """Room for one more record; RecordsFull when what may not be removed reaches the bounds.

        Most launches read a mark, and add a byte to it.
        """
        if not (bounds.count or bounds.days or bounds.size) or not self._due():
            return
        with calls("Prepare", self.path), self.locked(wait=False) as alone:
            if not alone:
                return
            bounds = self.here(bounds)
            chosen, count, size = self.over(bounds, room=1)
            self.remove(chosen, bounds)
            full = (bounds.count and count >= bounds.count) or (bounds.size and size >= bounds.size)
            left = min(
                bounds.count - count if bounds.count else 500, (bounds.size - size) >> 16 if bounds.size else 500
            )
            self._mark(0 if full else max(1, min(left, bounds.slack)), count)
        if full:
            raise RecordsFull(
                "the records that may not be removed reach the bounds",
                step="Prepare",
                path=self.path,
                observed=f"{count} records, {size} bytes: of failures, without an end, or of sandboxes that run",
                expected=f"less than {bounds}",
                hint="look at them (nucleus-gvisor records), move them to an archive, or ask for wider bounds",
            )

    def _due(self) -> bool:
        try:
            fd = linux.open(MARK, _APPEND & ~os.O_CREAT, dir_fd=self.directory)
        except OSError:
            return True
        try:
            looked, after = os.pread(fd, 32, 0).split(b"\n")[0].split()
            since = os.fstat(fd).st_size - 32
            if since >= int(after) or not 0 <= time.time() - int(looked) < DAY:
                return True
            os.write(fd, b".")
        except (OSError, ValueError):
            return True
        finally:
            linux.close(fd)
        return False

    def _mark(self, after: int, count: int) -> None:
        """A mark that cannot be written is none: then the next launch looks."""
        with suppress(OSError):
            if count <= FEW:
                os.unlink(MARK, dir_fd=self.directory)
                return
            fd = linux.open(MARK, _APPEND, 0o600, dir_fd=self.directory)
            try:
                os.ftruncate(fd, 0)
                os.write(fd, (b"%d %d\n" % (time.time(), after)).ljust(32, b"\n"))
            finally:
                linux.close(fd)


def _last_line(fd: int) -> bytes:
    """The last whole line of a file, without its end; empty when there is none."""
    size = os.fstat(fd).st_size
    for window in (1 << 14, 2 * MAX_LINE):
        text = os.pread(fd, window, max(0, size - window))
        lines = text.rpartition(b"\n")[0].rpartition(b"\n")
        if lines[1] or size <= window:
            return lines[2]
    return b""


def _whole(fd: int, size: int) -> int:
    """The length of a file without its last line, which has no end."""
    text = os.pread(fd, 2 * MAX_LINE, max(0, size - 2 * MAX_LINE))
    return size - len(text) + text.rfind(b"\n") + 1


@contextmanager
def opened(base: os.PathLike[str] | None = None) -> Iterator[Store]:
    """The records below an artifact base, as a launch would find or make them."""
    identity = Identity.current()
    directory, path, _ = open_base(base, identity)
    fds = [directory]
    try:
        records = path + b"/" + RECORDS.encode()
        fds.append(enter(fds[0], RECORDS.encode(), records, create=True))
        yield Store(fds[1], fds[0], records)
    finally:
        for fd in fds:
            linux.close(fd)


def prune(bounds: RecordBounds, base: os.PathLike[str] | None = None, *, dry_run: bool = False) -> list[Pruned]:
    """Remove the records that are over the bounds, and tell them; with `dry_run` nothing is removed."""
    with opened(base) as store, calls("records", store.path), store.locked(wait=True):
        chosen, _, _ = store.over(bounds)
        if not dry_run:
            store.remove(chosen, bounds)
    return chosen


# ---- the ledger ----

LEDGER_FIELDS = ("bounds", "prev", "removed", "seq", "time", "v")


def _ledger_line(batch: Sequence[Pruned], bounds: RecordBounds, seq: int, prev: str) -> bytes:
    removed = [[one.last.launch, one.last.container, one.head, one.why] for one in batch]
    said = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    limits = {"count": bounds.count, "days": bounds.days, "size": bounds.size}
    line = {"v": 1, "seq": seq, "prev": prev, "time": said, "bounds": limits, "removed": removed}
    return canonical(line).encode("ascii")


def _place(before: bytes, path: bytes) -> tuple[int, str]:
    """The number and `prev` of the line that follows `before`."""
    if not before:
        return 0, GENESIS
    try:
        return ledger_line(before)["seq"] + 1, hashlib.sha256(before).hexdigest()
    except RecordRejected as error:
        raise StepFailed(
            "the ledger of removed records is damaged",
            step="Prepare",
            path=path,
            observed=error.message,
            expected="lines that a launch wrote",
            hint="nucleus-gvisor audit verify says where; put it elsewhere, and a new one is begun",
        ) from error


def ledger_line(line: bytes, number: int = 0) -> Mapping[str, Any]:
    """The ledger's line; RecordRejected unless it is exactly what a launch writes."""
    try:
        if len(line) > MAX_LINE:
            raise ValueError(f"longer than {MAX_LINE} bytes")
        data = json.loads(line.decode("ascii"))
        if not isinstance(data, dict) or tuple(sorted(data)) != LEDGER_FIELDS:
            raise ValueError("fields missing or unknown")
        if data["v"] != 1 or type(data["seq"]) is not int or data["seq"] < 0 or not isinstance(data["removed"], list):
            raise ValueError("a field has the wrong type")
        if not all(isinstance(one, list) and [type(part) for part in one] == [str] * 4 for one in data["removed"]):
            raise ValueError("removed is no list of launch, container, head and why")
        if canonical(data).encode("ascii") != line:
            raise ValueError("not in canonical form")
    except (ValueError, RecursionError) as error:
        raise rejected(number, "format", error) from error
    return data


@dataclass(slots=True)
class Ledger:
    """What became of a ledger that was followed line by line."""

    lines: int = 0
    dropped: int = 0
    """Lines that its beginning lacks: it is kept short."""
    removed: int = 0
    head: str = GENESIS

    def follow(self, file: BinaryIO) -> None:
        """Judge all lines; RecordRejected at the first bad one."""
        while text := file.readline(MAX_LINE + 2):
            if not text.endswith(b"\n") and len(text) <= MAX_LINE:
                raise rejected(self.lines, "cut", "the last line is not ended: it was cut while it was written")
            line = text.removesuffix(b"\n")
            data = ledger_line(line, self.lines)
            if self.lines == 0:
                self.dropped = data["seq"]
                if (data["seq"] == 0) != (data["prev"] == GENESIS):
                    raise rejected(0, "begin", "does not begin as a ledger begins")
            elif data["seq"] != self.dropped + self.lines:
                raise rejected(self.lines, "order", f"number {data['seq']}: a line is missing, doubled or moved")
            elif data["prev"] != self.head:
                raise rejected(self.lines, "chain", "this line does not name the hash of the line before")
            self.head = hashlib.sha256(line).hexdigest()
            self.lines, self.removed = self.lines + 1, self.removed + len(data["removed"])
        if not self.lines:
            raise rejected(0, "empty", "empty: a ledger has at least its first line")
