"""The launch's record on disk: appended, and durable before the transition that it tells of commits."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from nucleus_gvisor.model.errors import BadArgument, StepFailed
from nucleus_gvisor.model.record import TransitionRecord
from nucleus_gvisor.model.replay import fold

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Record:
    """What a launch left in writing: its lines, and the file that holds them.

    `path` is None as long as there is no file: a launch that fails before it has an artifact base, without
    `options.record`, has its record in memory only (`problem` says why).
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.problem: str | None = None
        self._lines: list[TransitionRecord] = []
        self._fd = -1

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
            self._adopt(os.open(path, _FLAGS, 0o600), path)
        except OSError as error:
            raise BadArgument(
                "the record cannot be written", step="Resolve", path=path, observed=error.strerror
            ) from error

    def open_in(self, directory: int, name: str, path: Path) -> None:
        """The same for a new file `name` in an open directory; StepFailed where that cannot be."""
        if self._fd >= 0:
            return
        try:
            self._adopt(os.open(name, _FLAGS | os.O_EXCL, 0o600, dir_fd=directory), path)
        except OSError as error:
            raise StepFailed(
                "the record cannot be written", step="Prepare", path=path, observed=error.strerror
            ) from error

    def _adopt(self, fd: int, path: Path) -> None:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise BadArgument("the record is to be a regular file", step="Resolve", path=path)
        self._fd, self.path = fd, path
        if not os.fstat(fd).st_mode & 0o400:
            os.fchmod(fd, 0o600)  # a new file under a umask that left its owner nothing
        for line in self._lines:
            self._write(line)

    def append(self, line: TransitionRecord) -> None:
        """Keep `line`, and have it on disk before returning. The machine's sink."""
        if self._fd >= 0:
            self._write(line)
        self._lines.append(line)

    def _write(self, line: TransitionRecord) -> None:
        text = line.line() + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, text) != len(text):
                raise OSError("written in part")
            os.fdatasync(self._fd)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, size)  # half a line would spoil the lines before it
            raise StepFailed(
                "the record cannot be written", step="record", path=self.path, observed=error.strerror or str(error)
            ) from error

    def retract(self) -> None:
        """Take the last line back: in-place, Exec is written before execve, which may still refuse."""
        line = self._lines.pop()
        if self._fd >= 0:
            text = line.line() + b"\n"
            begin = os.fstat(self._fd).st_size - len(text)
            # Another launch may have appended to the same file meanwhile: its line is not ours to cut.
            if begin < 0 or os.pread(self._fd, len(text), begin) != text:
                raise StepFailed("the line cannot be taken back: it is not the last any more", path=self.path)
            os.ftruncate(self._fd, begin)
            os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
