"""What a running sandbox can fail with. What a launch can fail with is in `model.errors`; `Error` is the base of both.

Those with a namesake in `subprocess` derive from it as well, so that code written for it catches them.
"""

import subprocess
from collections.abc import Sequence
from typing import Any

from nucleus_gvisor.model.errors import Error, StepFailed, remedy, shown

Output = str | bytes | None
"""What a program wrote. An error's `stdout` is one of these, and Any to type checkers, as those of subprocess are: no
`except` clause can say which."""


class SandboxError(Error):
    """Base of what goes wrong once a sandbox was launched; never raised itself."""

    expected: str = ""
    """What would have been well."""
    hint: str = ""
    """What to do about it."""

    @property
    def observed(self) -> str:
        """What was seen instead."""
        return str(self)


class LimitUnavailable(StepFailed):
    """A limit that was asked for cannot be enforced on this host as this user; nothing ran."""


class RecordsFull(StepFailed):
    """The launch is to be recorded, and records that may not be removed fill the bounds of their directory.

    Look at them (`nucleus-gvisor records list`), move them to an archive, or ask for wider bounds (`keep_records`).
    """


class NoEventLoop(Error, RuntimeError):
    """What is asynchronous was called where no event loop of asyncio's runs (trio, by hand); nothing was begun."""


class HookFailed(StepFailed):
    """A hook of the bundle's failed. Of prestart and createRuntime: nothing ran. Of poststop: the sandbox had ended."""


class StartFailed(SandboxError):
    """runsc was executed, and the guest never ran: the text has what runsc said."""

    expected = "a guest that runs"
    hint = '`nucleus-gvisor doctor` starts one here; debug_dir="DIR" keeps what runsc logs'


class SandboxGone(SandboxError):
    """The sandbox was closed, or has ended: nothing more can be done in it. Make a new one.

    `stdout` and `stderr` have what the command that met this had written, if there was one.
    """

    expected = "a sandbox that lives"
    hint = "make a new one"

    stdout: Any = None
    stderr: Any = None


class PoststartFailed(SandboxGone):
    """A poststart hook of the bundle's failed, and the sandbox was ended for it; the guest had run.

    `record` is the launch's.
    """

    expected = "hooks that end with 0"
    hint = "mend the hook, or take it out of the bundle"

    record: Any = None


class RunscFailed(SandboxError):
    """A command of runsc's own (ps, kill, pause ...) failed or did not answer in time; `output` has what it said."""

    expected = "an answer of runsc's"
    hint: str = 'debug_dir="DIR" keeps what runsc logs'

    def __init__(self, message: str, output: bytes = b"", *, hint: str = "") -> None:
        super().__init__(message + (f": {shown(output.strip())}" if output.strip() else ""))
        self.output = output
        self.hint = hint or self.hint


class CannotExec(SandboxError):
    """The program could not be started in the guest: not found, not executable, or no such directory to start it in."""

    expected = "a program and a directory that the guest has"
    hint = "look for them in the guest's root, not in the host's"

    def __init__(self, args: tuple[str, ...], output: bytes, errno: int | None = None) -> None:
        super().__init__(f"exec failed: {shown(args[0])} was not started: {shown(output.strip())}")
        self.cmd: tuple[str, ...] = args
        self.output: bytes = output
        """What runsc said."""
        self.errno: int | None = errno
        """ENOENT, EACCES ..., where that is why."""


class GuestFailed(SandboxError, subprocess.CalledProcessError):
    """The guest's program ended with another code than 0, and `check` was asked for.

    `returncode`, `cmd`, `stdout` and `stderr` are there as on `subprocess.CalledProcessError`.
    """

    expected = "exit code 0"
    hint = "what it wrote says why"

    cmd: Sequence[str]

    def __str__(self) -> str:
        end = f"exit code {self.returncode}" if self.returncode >= 0 else f"signal {-self.returncode}"
        said = self.stderr if self.stderr else self.stdout
        return f"exec failed: {shown(self.cmd[0])}: {end}" + (f": {shown(said.strip())}" if said else "")


class TimeoutExpired(SandboxError, subprocess.TimeoutExpired):
    """The program ran for longer than `timeout` seconds and was ended, with all that it had started.

    `stdout` and `stderr` have what it had written until then.
    """

    expected = "its end in time"
    hint = "allow more time; what it wrote until then is there"

    cmd: Sequence[str]
    stdout: Any  # typeshed has bytes alone
    stderr: Any

    def __str__(self) -> str:
        return f"exec timed out after {self.timeout:g} seconds: {shown(self.cmd[0])}"


class OutputLimit(SandboxError):
    """The program wrote more than `limit` bytes to one stream and was ended; `stdout` and `stderr` have the first."""

    expected = "less output"
    hint = "allow more, or read it as it comes"

    def __init__(self, args: tuple[str, ...], limit: int, stdout: Output, stderr: Output) -> None:
        super().__init__(f"{shown(args[0])} wrote more than {limit} bytes")
        self.cmd: tuple[str, ...] = args
        self.limit: int = limit
        self.stdout: Any = stdout
        self.stderr: Any = stderr


class CopyFailed(SandboxError):
    """What the program wrote could not be written to the caller's file, or what it was to read not be read from it: the
    disk is full, say. `stream` is "stdin", "stdout" or "stderr", or "workspace" where what the guest has left
    there cannot be read; `errno` is the error, which is the cause as well.

    The program has been ended, or was cut off from its streams; `stdout` and `stderr` have what was captured.
    """

    expected = "no error"

    def __init__(self, args: tuple[str, ...], stream: str, error: OSError, stdout: Output, stderr: Output) -> None:
        super().__init__(f"{shown(args[0])}: copying {stream} failed: {error.strerror}")
        self.cmd: tuple[str, ...] = args
        self.stream: str = stream
        self.errno: int | None = error.errno
        self.hint: str = remedy(error)
        self.stdout: Any = stdout
        self.stderr: Any = stderr


class WorkspaceConflict(SandboxError):
    """The host's directory has changed since the guest's copy of it was made: nothing was written.

    `paths` are the names, relative to it, that would have been written and are no longer what was copied; `stdout` and
    `stderr` have what the guest of a `run` wrote.
    """

    expected = "a directory as it was copied"
    hint = "look at the two: the guest's is in /workspace of a Sandbox, and `get` takes it out"

    stdout: Any = None
    stderr: Any = None

    def __init__(self, path: str, paths: Sequence[str]) -> None:
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        names = ", ".join(map(shown, paths[:3]))
        super().__init__(f"the workspace has changed on the host, and is not written: {shown(path)}: {names}{more}")
        self.path: str = path
        self.paths: tuple[str, ...] = tuple(paths)


class SyncFailed(SandboxError):
    """What the guest has changed could not be written to the host's directory, which is as it was.

    Unless `pending`: then that could not be had either, and the next launch with a workspace goes on with it, and so
    does `nucleus-gvisor gc`. `errno` is the error, which is the cause as well.
    """

    expected = "a directory that can be written"
    hint: str = "look at the directory, and call `sync` again"

    stdout: Any = None
    stderr: Any = None

    def __init__(self, path: str, error: OSError, *, pending: bool = False) -> None:
        what = f"{shown(error.filename)}: " if error.filename else ""
        end = "it is half written, and `nucleus-gvisor gc` goes on with it" if pending else "it is as it was"
        super().__init__(f"the workspace {shown(path)} cannot be written: {what}{error.strerror}; {end}")
        self.path: str = path
        self.errno: int | None = error.errno
        self.pending: bool = pending
        self.hint = remedy(error)


class OutOfMemory(SandboxGone):
    """The sandbox used more memory than its limit, and was ended."""

    expected = "a guest within its limit"
    hint = "allow more memory, or give the guest less to do at once"


class TooManyProcesses(SandboxGone):
    """The guest had more processes than its limit, and the sandbox ended of it."""

    expected = "a guest within its limit"
    hint = "allow more processes, or have the guest wait for those that ended"


class OutOfDisk(SandboxGone):
    """The guest wrote more to its layer on disk than its limit, and the sandbox was ended."""

    expected = "a guest within its limit"
    hint = "allow more disk, or give the guest a directory to write to"


class LifetimeExpired(SandboxGone, TimeoutExpired):
    """The sandbox lived as long as it may, and was ended."""

    expected = "an end in time"
    hint = "allow a longer lifetime"

    stdout: Any = subprocess.TimeoutExpired.stdout  # which is `output` too
    stderr: Any

    def __init__(self, cmd: object = (), timeout: float = 0, stdout: Output = None, stderr: Output = None) -> None:
        subprocess.TimeoutExpired.__init__(self, cmd, timeout, stdout, stderr)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"the sandbox has lived for its {self.timeout:g} seconds, and was ended"
