"""What runsc says of its own failure, on descriptors of ours.

Its standard error is its guest's as well, and a guest can write there what it likes. So runsc is given two files of its
own: `--log`, to which each of its processes writes the error that it ends with, as JSON, and `--panic-log`, which has
what Go says of one that breaks. The first error is the cause; what follows only says that somebody has ended. A guest
reaches neither. A sentry that was taken over can write to both: it can make a run look as if it had not started, which
it can by ending as well.

runsc fails with 128, as a guest may: with a word in `--log` it was runsc.
"""

import errno
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from nucleus_gvisor.model.errors import BadBase, StepFailed, remedy, shown
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.errors import CannotExec, SandboxError, SandboxGone, StartFailed
from nucleus_gvisor.runtime.host import start_cause
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import open_private

FAILED = 128
"""The exit code of a runsc that failed by itself."""
FLAGS = ("log", "log-format", "panic-log", "debug-log")
"""All that `Said.arguments` may use."""
LIMIT = 1 << 16
"""Bytes of each file that are read."""
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Each runsc that waits for its sandbox in vain looks whether its own file could be executed by others. It is one in
# memory, which has no path: what it then finds has nothing to do with why the sandbox did not start.
_BESIDE = re.compile(r": stat file: stat /memfd:\S+: no such file or directory")
_NO_PROGRAM = re.compile(r"(?:error finding executable .*|failed to load .*): (?P<why>[a-z ]+)\Z", re.DOTALL)
_NOT_STARTED = re.compile(r"\b(?:creating|starting|restoring) container\b|\bcreating process\b|\bstarting sandbox\b")
_OF_THE_HOST = re.compile(r"mounting proc|no space left on device")  # ENOSPC: a limit on namespaces
_NUMBERS = {os.strerror(number).lower(): number for number in sorted(errno.errorcode, reverse=True)}


@dataclass
class Said:
    """The files of one launch; `close` them once the sandbox has ended."""

    log: int = -1
    panic: int = -1
    debug: int = -1
    """Where runsc debugs; -1 where nobody asked for it."""
    kept: list[Path] = field(default_factory=list)
    """Those that stay, in the caller's `debug_dir`."""

    @classmethod
    def made(cls, debug_dir: Path | None, name: str, identity: Identity) -> "Said":
        """In memory, but for what is to be kept in `debug_dir`: files with `name` that are new there.

        BadBase where others than the caller could change that directory, which is made where it is missing.
        """
        self = cls()
        try:
            self.log = linux.memfd_create("log", os.MFD_CLOEXEC)
            if debug_dir is None:
                self.panic = linux.memfd_create("panic", os.MFD_CLOEXEC)
            else:
                self._keep(debug_dir, name, identity)
        except OSError as error:
            self.close()
            raise StepFailed(
                "runsc's logs cannot be made",
                step="Prepare",
                observed=error.strerror,
                expected="no error",
                hint=remedy(error),
            ) from error
        except BaseException:
            self.close()
            raise
        return self

    def _keep(self, debug_dir: Path, name: str, identity: Identity) -> None:
        try:
            directory = open_private(os.fsencode(debug_dir), identity)
        except BadBase as error:
            error.message = f"debug_dir refused: {error.message}"
            raise
        try:
            for kind in ("panic", "debug"):
                file = f"{name}.{kind}.log"
                setattr(self, kind, linux.open(file, _FLAGS, 0o600, dir_fd=directory))
                self.kept.append(debug_dir / file)
        finally:
            linux.close(directory)

    @property
    def descriptors(self) -> dict[str, int]:
        """Those that runsc is to get."""
        return {kind: fd for kind in ("log", "panic", "debug") if (fd := getattr(self, kind)) >= 0}

    def arguments(self, listed: Collection[str]) -> list[bytes]:
        """runsc's flags for them, as far as it has `listed` them. They come last: no other command has the files."""
        words = []
        if {"log", "log-format"} <= set(listed):
            words += [b"--log", _path(self.log), b"--log-format", b"json"]
        if "panic-log" in listed:
            words += [b"--panic-log", _path(self.panic)]
        if self.debug >= 0 and "debug-log" in listed:
            words += [b"--debug", b"--debug-log", _path(self.debug)]
        return words

    def failure(self, args: tuple[str, ...] = ()) -> SandboxError | None:
        """Why the guest did not run, or not to its end, as runsc has it; None where it says nothing.

        CannotExec where the program is not there or cannot be executed, StartFailed for all else before that, and
        SandboxGone for what comes later.
        """
        errors = _errors(_read(self.log))
        if not errors:
            return None
        last = errors[-1]
        cause = _BESIDE.sub("", errors[0])
        if (no_program := _NO_PROGRAM.search(cause)) and args:
            return CannotExec(args, no_program[0].encode(), _NUMBERS.get(no_program["why"]))
        if not _NOT_STARTED.search(last):
            return SandboxGone(f"the sandbox ended before its guest: {shown(_BESIDE.sub('', last))}")
        cause = shown(cause)
        broken = shown(_read(self.panic).split(b"\n", 1)[0].decode("utf-8", "replace").strip())
        more = f"; {broken}" if broken and broken not in cause and len(errors) == 1 else ""
        where = f" (its logs: {', '.join(map(str, self.kept))})" if self.kept else ""
        known = start_cause() if _OF_THE_HOST.search(cause) else None
        why = "" if known is None else f"; {known[0]}; hint: {known[1]}"
        return StartFailed(f"runsc did not start the guest: {cause}{more}{where}{why}")

    def close(self) -> None:
        """Close them; a second time closes nothing."""
        for kind in ("log", "panic", "debug"):
            linux.close_of(self.__dict__, kind)


def reason_of(output: bytes) -> int | None:
    """The errno in runsc's words about a program that a command of its could not start; None where there is none."""
    found = _NO_PROGRAM.search(output.decode("utf-8", "replace").strip())
    return None if found is None else _NUMBERS.get(found["why"].strip())


def _path(fd: int) -> bytes:
    return b"/proc/self/fd/%d" % fd


def _read(fd: int) -> bytes:
    return os.pread(fd, LIMIT, 0) if fd >= 0 else b""


def _errors(log: bytes) -> list[str]:
    """The messages: JSON objects one after the other. What is none of these ends them."""
    text, found, decoder = log.decode("utf-8", "replace").strip(), list[str](), json.JSONDecoder()
    while text:
        try:
            entry, end = decoder.raw_decode(text)
            found.append(str(entry["msg"]).strip())
        except (ValueError, KeyError, TypeError, RecursionError):
            found.append(text)
            break
        text = text[end:].strip()
    return found
