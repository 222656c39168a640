"""The launch's record on disk: appended, and durable before the transition that it tells of commits. And its audit."""

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from nucleus_gvisor.model.errors import BadArgument, LaunchError, RecordRejected, StepFailed, remedy, shown
from nucleus_gvisor.model.record import Line, Reader, TransitionRecord
from nucleus_gvisor.model.replay import Follower, Steps, fold
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.retention import LEDGER, Ledger

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Record:
    """What a launch left in writing: its lines, and the file that holds them.

    `path` is None as long as there is no file: a launch that fails before it has an artifact base, without
    `options.record`, has its record in memory only (`problem` says why).
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.problem: str | None = None
        self.audit = "required"
        """What was asked for (`options.Audit`). Unless "required", a line that cannot be written fails nothing, and
        `problem` says why the file has no more."""
        self._lines: list[TransitionRecord] = []
        self._fd = -1

    def __getstate__(self) -> dict[str, object]:
        """Pickled and copied as data: the file stays the original's to write."""
        return {**vars(self), "_lines": list(self._lines), "_fd": -1}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.__getstate__() == other.__getstate__()

    @property
    def lines(self) -> tuple[TransitionRecord, ...]:
        """The transitions so far, in order."""
        return tuple(self._lines)

    @property
    def states(self) -> tuple[str, ...]:
        """The states passed, in order."""
        return tuple(line.dest for line in self._lines)

    @property
    def head(self) -> str | None:
        """SHA-256 of the last line: kept elsewhere, it shows later that the tail was not cut."""
        return self._lines[-1].digest() if self._lines else None

    def evidence(self, *actions: str) -> dict[str, object]:
        """The evidence of the first of `actions` that happened; empty when none did."""
        return next((dict(line.evidence) for line in self._lines if line.action in actions), {})

    def verify(self) -> None:
        """RecordRejected unless the record is a behaviour of the specification."""
        fold(self._lines)

    def open(self, path: Path) -> None:
        """Write to the file `path` from now on, beginning with what there is; BadArgument where that cannot be."""
        try:
            self._adopt(linux.open(path, _FLAGS, 0o600), path)
        except OSError as error:
            raise BadArgument(
                "the record cannot be written",
                step="Resolve",
                path=path,
                observed=error.strerror,
                expected="a file that can be written",
                hint=remedy(error),
            ) from error

    def open_in(self, directory: int, name: str, path: Path) -> None:
        """The same for a new file `name` in an open directory; StepFailed where that cannot be."""
        if self._fd >= 0:
            return
        fd = -1
        try:
            try:
                fd = linux.open(name, _FLAGS | os.O_EXCL, 0o600, dir_fd=directory)
                self._adopt(fd, path)
            except BaseException:
                with suppress(OSError):
                    if fd >= 0:
                        os.unlink(name, dir_fd=directory)  # without its first lines it is no record
                raise
        except OSError as error:
            raise StepFailed(
                "the record cannot be written",
                step="Prepare",
                path=path,
                observed=error.strerror,
                hint=_hint(error),
                expected="a file that can be written",
            ) from error

    def _adopt(self, fd: int, path: Path) -> None:
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise BadArgument(
                    "the record is to be a regular file",
                    step="Resolve",
                    path=path,
                    observed=stat.filemode(mode),
                    expected="a regular file",
                    hint="name a file that is regular, or that is not there yet",
                )
            if not mode & 0o400:
                os.fchmod(fd, 0o600)  # a new file under a umask that left its owner nothing
            if self._lines:
                self._write(fd, path, *self._lines)
        except BaseException:
            linux.close(fd)
            raise
        self._fd, self.path = fd, path

    @property
    def achieved(self) -> str:
        """Where the record is: "file", whole and on disk, or "memory" alone."""
        return "file" if self.path and not self.problem else "memory"

    def append(self, line: TransitionRecord) -> None:
        """Keep `line`, and have it on disk before returning. The machine's sink."""
        kept = len(self._lines)
        try:
            self._lines.append(line)
            if self._fd >= 0:
                self._write(self._fd, self.path, line)
        except StepFailed as error:
            if self.audit == "required":
                del self._lines[kept:]
                raise
            self.give_up(error)
        except BaseException:
            del self._lines[kept:]
            raise

    def _write(self, fd: int, path: Path | None, *lines: TransitionRecord) -> None:
        text = b"".join(line.line() + b"\n" for line in lines)
        try:
            size = os.fstat(fd).st_size
            try:
                if os.write(fd, text) != len(text):
                    raise OSError("written in part")
                os.fdatasync(fd)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(fd, size)  # half a line would spoil the lines before it
                raise
        except OSError as error:
            raise StepFailed(
                "the record cannot be written",
                step="record",
                path=path,
                observed=error.strerror or str(error),
                hint=_hint(error),
                expected="a file that can be written",
            ) from error

    def give_up(self, error: LaunchError) -> None:
        """Write no more, and say why; the lines are kept in memory."""
        self.problem = str(error)
        self.close()

    def end(self, line: TransitionRecord) -> None:
        """Keep the line that says how the launch failed. It has failed, written or not: `problem` says when not."""
        try:
            self.append(line)
        except StepFailed as error:
            self._lines.append(line)
            self.give_up(error)

    def retract(self) -> None:
        """Take the last line back: in-place, Exec is written before execve, which may still refuse."""
        line = self._lines.pop()
        if self._fd >= 0:
            text = line.line() + b"\n"
            begin = os.fstat(self._fd).st_size - len(text)
            # Another launch may have appended to the same file meanwhile: its line is not ours to cut.
            if begin < 0 or os.pread(self._fd, len(text), begin) != text:
                raise StepFailed(
                    "the line cannot be taken back: it is not the last any more",
                    path=self.path,
                    observed="other lines after it",
                    expected="the last line of the file",
                    hint="give each launch a record of its own",
                )
            os.ftruncate(self._fd, begin)
            os.fdatasync(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            linux.close(fd)


def _hint(error: OSError) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return remedy(error)
    return "make room (nucleus-gvisor records prune; keep_records), or go on without a record (audit best_effort)"


# ---- the audit ----

HostPath = str | os.PathLike[str]
SUFFIX = ".ndjson"
"""What records are looked for by in a directory."""
MOST_LAUNCHES = 100_000
"""In one file; some hundred bytes of memory each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What an audit has to say of one launch, or of one file or head that has none."""

    verdict: str
    """"accepted": a behaviour of the specification to its end, or to the head that was given. "unfinished": the
    beginning of one, and nothing shows whether there was more. "rejected": neither."""
    file: str | None
    launch: str | None = None
    container: str | None = None
    lines: int = 0
    """How many were accepted: the next one is the first that is not."""
    state: str | None = None
    """Where the launch stood after them."""
    head: str | None = None
    """SHA-256 of the last of them."""
    reason: str
    """"accepted", or one of `model.replay.REASONS`, or "unreadable"."""
    words: str

    def __str__(self) -> str:
        """One line, without anything that could forge another."""
        where = ": ".join(shown(part) for part in (self.file, self.launch and f"launch {self.launch}") if part)
        return f"{where}: {self.words}" if where else self.words

    def as_dict(self) -> dict[str, object]:
        """The same as JSON data."""
        return asdict(self)


def verify(paths: Iterable[Path], heads: Collection[str] = ()) -> Iterator[Finding]:
    """Audit record files, and all files named *.ndjson below directories: a finding for each launch in them.

    Each of `heads`, SHA-256 in hex of some launch's last line, must be found, and be last: so a cut tail is noticed.
    Files are read as a stream; what they hold is never followed, executed or waited for.
    """
    found: set[str] = set()
    known = _Known(Reader(), {})
    for path in paths:
        if not path.is_dir():
            yield from _audit(path, heads, found, known)
            continue
        closed: list[OSError] = []
        below = _below(path, closed)
        records = [file for file in below if file.endswith((SUFFIX, "/" + LEDGER))]
        for file in records:
            yield from _audit(file, heads, found, known, follow=False)
        for error in closed:
            yield _unreadable(Path(os.fsdecode(error.filename)), error.strerror or str(error))
        if not records and not closed:
            yield _unreadable(path, f"no {SUFFIX} file below it")
    for head in heads:
        if head not in found:
            yield Finding(
                verdict="rejected", file=None, head=head, reason="head",
                words=f"REJECTED: no record has the head {head}: its tail was cut, or it is not among these files",
            )  # fmt: skip


def _below(top: HostPath, closed: list[OSError]) -> list[str]:
    """All files below a directory that is not entered by links; what cannot be entered is added to `closed`."""
    found, pending = [], [os.fspath(top)]  # os.walk calls itself for each level, of which there can be any number
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif not entry.is_dir():
                        found.append(entry.path)
        except OSError as error:
            closed.append(error)
    return sorted(found)


def _unreadable(path: HostPath, why: str) -> Finding:
    words = f"REJECTED: cannot be read: {why}"
    return Finding(verdict="rejected", file=_name(path), reason="unreadable", words=words)


def _name(path: HostPath) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _judged_ledger(path: HostPath, ledger: Ledger, file: BinaryIO, heads: Collection[str], found: set[str]) -> Finding:
    """What there is to say of a list of removed records. Its heads are of lines, as a record's are."""
    verdict, reason = "accepted", "accepted"
    try:
        ledger.follow(file)
        began = f", {ledger.dropped} older ones were dropped" if ledger.dropped else ""
        words = f"accepted, {ledger.lines} lines of {ledger.removed} removed records{began}, head {ledger.head}"
        found.update({ledger.head} & set(heads))
    except RecordRejected as error:
        verdict, reason, words = "rejected", error.reason, f"REJECTED: {error}"
    return Finding(
        verdict=verdict, file=_name(path), lines=ledger.lines, head=ledger.head if ledger.lines else None,
        reason=reason, words=words,
    )  # fmt: skip


@dataclass(slots=True)
class _Launch:
    follower: Follower
    rejected: RecordRejected | None = None
    head: int | None = None
    """The line that one of the heads names."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read and judged of the files before: most launches are as others were."""

    reader: Reader
    steps: Steps


def _audit(
    path: HostPath, heads: Collection[str], found: set[str], known: _Known, *, follow: bool = True
) -> Iterator[Finding]:
    launches: dict[str, _Launch] = {}
    ledger = Ledger() if os.path.basename(path) == LEDGER else None
    broken: RecordRejected | None = None
    try:
        # To open a device may be to act, and a FIFO to wait; what was swapped in meanwhile is not read either.
        regular = stat.S_ISREG(os.stat(path, follow_symlinks=follow).st_mode)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC) if regular else -1
        if not regular or not stat.S_ISREG(os.fstat(fd).st_mode):
            yield _unreadable(path, "not a regular file")
            return
        with open(fd, "rb") as file:
            if ledger is not None:
                yield _judged_ledger(path, ledger, file, heads, found)
                return
            for line in known.reader.lines(file):
                launch = launches.setdefault(line.record.launch, _Launch(Follower(known.steps)))
                if len(launches) > MOST_LAUNCHES:
                    yield _unreadable(path, f"more than {MOST_LAUNCHES} launches in one file")
                    return
                if launch.rejected is None:
                    _take(launch, line, heads, found)
    except OSError as error:
        yield _unreadable(path, error.strerror or str(error))
        return
    except ValueError as error:
        yield _unreadable(path, str(error))  # a NUL in the path
        return
    except RecordRejected as error:
        broken = error
    for name, launch in launches.items():
        # A file that cannot be read to its end shows no launch's end either.
        if broken is None or launch.rejected is not None:
            yield _judged(path, name, launch)
    if broken is not None or not launches:
        words = broken or "empty: a launch leaves at least its first line"
        reason = "empty" if broken is None else broken.reason
        yield Finding(verdict="rejected", file=_name(path), reason=reason, words=f"REJECTED: {words}")


def _take(launch: _Launch, line: Line, heads: Collection[str], found: set[str]) -> None:
    try:
        launch.follower.take(line.record, line)
    except RecordRejected as error:
        launch.rejected = error
    else:
        if launch.follower.head in heads:
            found.add(launch.follower.head)
            launch.head = launch.follower.lines


def _judged(path: HostPath, name: str, launch: _Launch) -> Finding:
    follower, reason = launch.follower, "accepted"
    verdict = "accepted" if follower.complete or launch.head is not None else "unfinished"
    state = None if follower.facts is None else str(follower.facts.state)
    if launch.rejected is not None:
        verdict, reason, words = "rejected", launch.rejected.reason, f"REJECTED: {launch.rejected}"
    elif launch.head not in (None, follower.lines):
        verdict, reason = "rejected", "head"
        words = f"REJECTED: the head given is line {(launch.head or 0) - 1}'s, and lines follow it"
    else:
        end = "complete" if follower.complete else "INCOMPLETE: a killed launch, or a cut tail"
        if launch.head is not None:
            end = f"{'complete' if follower.complete else 'incomplete'}, to the head given"
        words = f"accepted, {follower.lines} lines, ends in {state}, {end}, head {follower.head}"
    return Finding(
        verdict=verdict, file=_name(path), launch=name, container=follower.owner[1] if follower.owner else None,
        lines=follower.lines, state=state, head=follower.head if follower.lines else None, reason=reason, words=words,
    )  # fmt: skip
