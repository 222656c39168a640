"""Everything a launch can refuse or fail with.

One hierarchy. Each class says when it is raised and what the reader should do; each carries the
fields that its one-line text is built from, so that a caller can act on them without parsing. `cause`
is the specification's name for the failure; `shows` is what the failure tells about the world, in the
names of `Facts`.
"""

import errno as _errno
import os
from collections.abc import Mapping
from typing import Any, ClassVar


def shown(value: object) -> str:
    """Text for `value` that fits on one line and cannot forge a terminal or a log."""
    text = os.fsdecode(value) if isinstance(value, bytes) else str(value)
    quoted = text
    if not text.isprintable():
        quoted = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return quoted if len(quoted) <= 600 else f"{quoted[:600]}... ({len(text)} characters)"


def _rebuilt(kind: type[Any], args: tuple[object, ...], fields: dict[str, object], cause: BaseException | None) -> Any:
    error: Any = kind.__new__(kind, *args)
    vars(error).update(fields)
    error.__cause__ = cause
    return error


class Rebuilt(Exception):
    """An exception that pickle and copy rebuild from its fields: each `__init__` has a signature of its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Of the causes, the system call's and our own go along; what else it was need not pickle."""
        cause = self.__cause__ if isinstance(self.__cause__, OSError | Rebuilt) else None
        return _rebuilt, (type(self), self.args, dict(vars(self)), cause)


class Error(Rebuilt):
    """Base of all that this library raises by its own judgement; never raised itself."""


class LaunchError(Error):
    """Base of all refusals and failures of a launch; never raised itself."""

    cause: ClassVar[str] = "fault"
    shows: ClassVar[Mapping[str, object]] = {"calls": False}
    advice: ClassVar[str] = ""
    """The hint of an error of this class that brings none of its own."""

    def __init__(
        self,
        message: str,
        *,
        step: str = "",
        path: str | bytes | os.PathLike[str] | None = None,
        observed: object = None,
        expected: object = None,
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.step = step
        self.path: bytes | None = None if path is None else os.fsencode(path)
        self.observed = observed
        self.expected = expected
        self.hint: str = hint or self.advice
        self.record: object = None
        """The launch's record, a `Record`, once the launch has failed; None before."""

    @property
    def errno(self) -> int | None:
        """The system call's errno, where one lies behind the failure."""
        cause = self.__cause__
        return cause.errno if isinstance(cause, OSError) else None

    def __str__(self) -> str:
        parts = [f"{shown(self.step)}: " if self.step else "", shown(self.message)]
        if self.path is not None and os.fsdecode(self.path) not in self.message:
            parts.append(f": {shown(self.path)}")
        for name in ("observed", "expected", "hint"):
            value = getattr(self, name)
            if value not in (None, ""):  # a name with nothing behind it tells nobody anything
                parts.append(f"; {name}: {shown(value)}")
        return "".join(parts)

    def as_dict(self) -> dict[str, object]:
        """The same fields as plain JSON data."""
        return {
            "error": type(self).__name__,
            "cause": self.cause,
            "step": self.step,
            "message": self.message,
            "path": None if self.path is None else os.fsdecode(self.path).encode("utf-8", "backslashreplace").decode(),
            "observed": None if self.observed is None else shown(self.observed),
            "expected": None if self.expected is None else shown(self.expected),
            "hint": self.hint or None,
            "errno": None if self.errno is None else _errno.errorcode.get(self.errno, str(self.errno)),
        }


_REMEDIES = {
    (_errno.ENOSPC, _errno.EDQUOT): "make room there",
    (_errno.EMFILE,): "close files, or raise the limit of open files (RLIMIT_NOFILE)",
    (_errno.ENFILE,): "raise fs.file-max: the whole host has too many open files",
    (_errno.ENOMEM,): "free memory, or raise the limit that the service manager sets (MemoryMax=)",
    (_errno.EAGAIN,): "end processes, or raise their limit (RLIMIT_NPROC, TasksMax=)",
    (_errno.EACCES, _errno.EPERM): "look at owner and mode, and for a security module or seccomp filter that denies it",
    (_errno.EROFS,): "name a place that is not mounted read-only",
    (_errno.ELOOP,): "name the file itself, not a link to it",
    (_errno.ENOENT, _errno.ENOTDIR): "make it, or name another",
    (_errno.ENAMETOOLONG,): "choose a shorter path",
    (_errno.ENOSYS,): "take a newer kernel, or a seccomp filter that passes the call",
    (_errno.EIO,): "look at the kernel's log: the device does not answer as it should",
}


def remedy(error: OSError) -> str:
    """What to do about a system call's failure, for a hint, where no more than the call's answer is known."""
    for numbers, text in _REMEDIES.items():
        if error.errno in numbers:
            return text
    return "look at the host with `nucleus-gvisor doctor`, and launch again"


# ---- the machine itself ----


class GuardRefused(LaunchError):
    """An action was fired whose guard does not hold, or from a state that does not offer it.

    Nothing has changed. In a launch driven by this library it is a defect; in the conformance harness it
    is the expected answer to a non-edge.
    """

    advice = "by hand, fire what the state offers; by a launch of this library's, it is a defect: report it"

    def __init__(
        self, action: str, state: str, guard: str, *, observed: object = None, expected: object = None
    ) -> None:
        super().__init__(f"{action} refused in {state}: {guard}", step=action, observed=observed, expected=expected)
        self.action: str = action
        self.state: str = state
        self.guard: str = guard


class SafetyViolation(LaunchError):
    """The world, or our own data, changed under us after it was judged. Never retried, never softened."""

    advice = "find out who changed it before you launch again"


class StepFailed(LaunchError):
    """A system call that the step needs failed (EIO, ENOMEM, EMFILE ...), or the step was interrupted.

    `errno` has the call's answer. Mend the host and launch again; nothing was left behind.
    """


class RecordRejected(LaunchError):
    """A record is not the trace of a behaviour that the specification allows."""

    advice = "believe the lines before it alone, and keep the file as evidence"

    line: int = 0
    """The first line that no behaviour has, counted from 0: all before it are accepted."""
    reason: str = "format"
    """One of `model.replay.REASONS`."""


# ---- Unresolved: what was asked for ----


class BadRequest(LaunchError):
    """What was asked for cannot be done at all; found before any path is touched."""

    cause = "bad_request"
    shows: ClassVar[Mapping[str, object]] = {"request": False}


class BadId(BadRequest):
    """The container id is not `[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}`."""


class BadArgument(BadRequest, ValueError):
    """An argument, environment entry or option cannot be passed on (NUL, too long, contradictory)."""


class Limit(BadRequest):
    """The caller's resource limits leave no room for a launch."""


# ---- Unresolved: the binary ----


class NotFound(LaunchError):
    """No runsc at any candidate. Install gVisor, or name the binary."""

    cause = "not_found"
    shows: ClassVar[Mapping[str, object]] = {"path": "absent"}


class Untrusted(LaunchError):
    """Someone other than root or the caller can change what lies at the path. Mend owner or mode."""

    cause = "untrusted_binary"
    shows: ClassVar[Mapping[str, object]] = {"path": "forged"}


class NotRegular(Untrusted):
    """A directory, FIFO, device or socket lies in runsc's place."""


class NotElf(Untrusted):
    """The file is not a whole ELF executable for this machine."""


class NotExecutable(Untrusted):
    """The file has no execute bit."""


class TooBig(Untrusted):
    """The file is larger than any runsc."""


class Symlink(Untrusted):
    """A symbolic link on the way is a loop, or was made by someone who is not trusted."""


class BadPath(Untrusted):
    """The path is relative, has `..`, or cannot be walked."""


# ---- Resolved: artifact base, lock, bundle ----


class BadBase(LaunchError):
    """The artifact base, or a directory above or in it, is not private to the caller."""

    cause = "untrusted_base"
    shows: ClassVar[Mapping[str, object]] = {"base": "hostile"}


class Busy(LaunchError):
    """Another launch holds this container id. Choose another id or wait for that one to end."""

    cause = "busy"
    shows: ClassVar[Mapping[str, object]] = {"lock": "theirs"}


class BadBundle(LaunchError):
    """The bundle is not a sound OCI bundle, or others can change it."""

    cause = "bad_bundle"
    shows: ClassVar[Mapping[str, object]] = {"bundle": "hostile"}


class Refused(BadBundle):
    """The bundle asks for something that would act outside the sandbox (hooks, flag annotations)."""


# ---- Prepared: staging ----


class Changed(LaunchError):
    """The binary changed between judging it and sealing it. Launch again."""

    cause = "changed"
    shows: ClassVar[Mapping[str, object]] = {"held": "rewritten"}


class PinMismatch(LaunchError):
    """The sealed bytes are not the ones that the pin names."""

    cause = "pin_mismatch"
    shows: ClassVar[Mapping[str, object]] = {"pin": "mismatch"}
    advice = "install the release that the pin names, or pin this one once you trust it"


class NoSpace(LaunchError):
    """No room to stage: file system full, out of inodes, or over a file-size limit."""

    cause = "no_space"
    shows: ClassVar[Mapping[str, object]] = {"space": False}


class BadCache(LaunchError):
    """The directory of kept files, or one above it, can be written by others. Mend owner or mode, or name another."""

    cause = "untrusted_cache"
    shows: ClassVar[Mapping[str, object]] = {"cache": "hostile"}


# ---- Staged: confining ----


class Incompatible(LaunchError):
    """The confinement asked for cannot hold this program; it would hang or fail after exec."""

    cause = "incompatible"
    shows: ClassVar[Mapping[str, object]] = {}


class ConfineFailed(LaunchError):
    """The host does not permit a part of the confinement, and enforcement is `required`."""

    cause = "cannot_confine"
    shows: ClassVar[Mapping[str, object]] = {"available": False}


class NotProved(LaunchError):
    """The confinement was set up, and a canary got through it."""

    cause = "not_proved"
    shows: ClassVar[Mapping[str, object]] = {"holds": False}
    advice = "launch nothing here: what confines on this host lets through what it must not"


class KeptChanged(LaunchError):
    """A kept file was changed between its comparison and its bind. It is made anew by the next launch."""

    cause = "kept_changed"
    shows: ClassVar[Mapping[str, object]] = {"cache": "changed"}


class Unfit(LaunchError):
    """The sealed binary is not runsc, or says that it lacks what was asked for."""

    cause = "unfit"
    shows: ClassVar[Mapping[str, object]] = {"fit": False}


class NotRunsc(Unfit):
    """The sealed binary does not answer as runsc does."""


class Unsupported(Unfit):
    """This release of runsc, or this host, lacks the platform or network asked for."""


# ---- Confined: exec ----


class ExecFailed(LaunchError):
    """The kernel refused execve of the sealed image."""

    cause = "exec_refused"
    shows: ClassVar[Mapping[str, object]] = {"execve": False}

    restricted: bool = False
    """True when the calling process itself had entered the sandbox's namespaces (in-place exec): it must exit."""


class ChildDied(ExecFailed):
    """The child was killed before it could be shown that it had executed the image."""
