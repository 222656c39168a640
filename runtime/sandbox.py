"""Sandboxes for Python programs: `run` for one command, `Sandbox` for one that lives and takes many.

How it works, for whoever adds to it:

* Every start is `GVisorRuntime.spawn`, the verified launch. What comes after goes through the *attendant*
  (`attendant`, `_attendant`): a small process of ours beside the supervisor, in its namespaces and as confined as it,
  that executes runsc's other commands from the same verified image. It is made by the launch's child before that
  becomes runsc. When its owner ends, or closes its end of their socket, it kills the supervisor, and the kernel ends
  the sandbox with that: no daemon, no polling, no moment in which nobody is responsible. It holds no memory and no
  descriptor of its owner's.
* `run` needs no attendant but for limits that are watched (`limits`): the calling thread waits for the guest, and the
  kernel kills the supervisor when that thread ends.
* Nothing runs in the background of the owner: no thread, no signal handler. All state is descriptors, so an event loop
  can wait for the same ones (`SandboxProcess.pidfd`, `Command.channel`) instead of a thread.
* The guest's init is a program of ours (`guest`), so that a rootfs need have nothing in it. It says when it runs, and
  it copies files.
* What is asked of files goes to an agent (`files`): the same program, started as a command by the first request, which
  waits on its pipes for the next. The client that has started it goes at once. Whatever interrupts a request ends its
  agent, so that no answer is taken for another's; an idle one ends before a pause, an image, or the end of a command.
* `runsc exec` takes the whole process (arguments, environment, directory, user) from a memfd: none of it is ever on a
  command line of the host.
* Ending a command means ending what it started: it and its descendants are stopped until a listing shows no new ones,
  and then killed. A guest chooses the parents of its processes, and, by making many, their numbers, but not when they
  started. So every other process that has no parent but the init, or none at all, is judged by the start time that the
  guest's kernel has of it (field 22 of /proc/PID/stat, proc(5)): an older one than the command is a daemon of an
  earlier command's, or the service, and is left alone; any other is the command's for sure while no other command ran
  beside it. What cannot be told apart so, or ended within bounds, ends with the whole sandbox. So does a command with
  capabilities by which it could become any user, or change what is read of it (`request.DECEIVING`).
"""

import errno
import io
import json
import os
import re
import select
import signal as signals
import termios
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import IO, Any, AnyStr, Generic, Literal, NoReturn, Self, TypedDict, TypeVar, Unpack, overload

from nucleus_gvisor.model.errors import BadArgument, shown
from nucleus_gvisor.runtime import _attendant, guest, image, runsc, usage
from nucleus_gvisor.runtime.accounts import User
from nucleus_gvisor.runtime.attendant import PATIENCE, Attendant, Command
from nucleus_gvisor.runtime.audit import Record
from nucleus_gvisor.runtime.bundle import HostPath, OciBundle
from nucleus_gvisor.runtime.capture import (
    DEVNULL,
    MAX_OUTPUT,
    PIPE,
    Capture,
    Data,
    Pipes,
    Redirection,
    decoded,
    milliseconds,
    readable,
)
from nucleus_gvisor.runtime.descriptor import Descriptor
from nucleus_gvisor.runtime.errors import (
    CannotExec,
    CopyFailed,
    GuestFailed,
    LifetimeExpired,
    OutOfDisk,
    OutOfMemory,
    Output,
    OutputLimit,
    RunscFailed,
    SandboxGone,
    StartFailed,
    SyncFailed,
    TimeoutExpired,
    TooManyProcesses,
    WorkspaceConflict,
)
from nucleus_gvisor.runtime.files import (
    FAREWELL,
    MAX_FILE,
    Agent,
    Agents,
    Ask,
    Conversation,
    Files,
    Lost,
    Result,
    Steps,
    changing_mode,
    making_parents,
    reading,
    ready,
    receiving,
    sending,
    writing,
)
from nucleus_gvisor.runtime.gvisor import GVisorRuntime, SandboxProcess
from nucleus_gvisor.runtime.limits import DISK, MEMORY, PIDS_LIMIT, Limits
from nucleus_gvisor.runtime.options import Confinement, Enforcement, GVisorOciRunOptions, NetworkMode, Writable
from nucleus_gvisor.runtime.request import (
    AnyMount,
    Environment,
    OwnOptions,
    Request,
    SandboxOptions,
    Words,
    deadline_of,
    directory,
    request,
    seconds,
    sync_of,
    words_of,
)
from nucleus_gvisor.runtime.said import FAILED as RUNSC_FAILED
from nucleus_gvisor.runtime.said import reason_of
from nucleus_gvisor.runtime.trees import LONGEST, Copying, no_regular, to_get, to_put
from nucleus_gvisor.runtime.workspace import Changes, Copy, Sync

Wrote = TypeVar("Wrote", bound=Output, covariant=True)
"""What a program's captured streams are: str, bytes, or None where they may not have been captured."""

MAX_TREE = 64
"""A command with more processes than this is ended with its whole sandbox."""
TREE_PATIENCE = 10.0
"""Seconds after which a command that cannot be ended is ended with its whole sandbox."""
OURS = 0x7FFF_6E67
"""The user that reads /proc in the guest: no command's, so that none can signal what does, or pass for it."""
_PROCESS = ("--process", "/proc/self/fd/3", "--internal-pid-file", "/proc/self/fd/4")
"""runsc's arguments for an `exec` that reads what it is to start, and says its number."""
QUIET, GLANCE = 2.0, 0.002
"""Seconds for the commands that are being started to have started, and between two looks."""
TICK = 0.01
"""Seconds of a clock tick, in which /proc has start times (gVisor's CLK_TCK)."""
CLOCKS_DIFFER = 0.1
"""Seconds that the guest's clock may be wrong by against ours, and 1/1000 of what is measured besides."""
CHECKPOINT_PATIENCE = 600.0
"""Seconds that a checkpoint may take: all the guest's memory is written."""
# proc(5); a name may be of any bytes, but of 15 at most, so that nothing else passes for a part of the line.
_STAT = re.compile(rb"(?P<pid>\d+) \(.{0,15}\) \w(?: -?\d+){18} (?P<start>-?\d+)(?: -?\d+)+\n", re.DOTALL)


class Completed(tuple[Wrote, Wrote], Generic[Wrote]):
    """How a program ended: a value, and the pair `(stdout, stderr)` too, which it unpacks as and is equal to.

    Two of them are equal when all that they say is.
    """

    args: tuple[str, ...]
    returncode: int
    """The exit code; 128 + N when signal N ended it."""

    def __new__(cls, args: tuple[str, ...], returncode: int, stdout: Wrote, stderr: Wrote) -> Self:
        self = super().__new__(cls, (stdout, stderr))
        vars(self).update(args=args, returncode=returncode)
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.args, self.returncode, *self

    @property
    def stdout(self) -> Wrote:
        """What it wrote, as str or bytes as asked for; None when it was not captured."""
        return self[0]

    @property
    def stderr(self) -> Wrote:
        """The same of its standard error."""
        return self[1]

    def check_returncode(self) -> None:
        """GuestFailed unless the code is 0."""
        if self.returncode:
            raise GuestFailed(self.returncode, self.args, self.stdout, self.stderr)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"a result cannot be changed: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"a result cannot be changed: {name}")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Completed):
            return type(self) is type(other) and super().__eq__(other) and vars(self) == vars(other)
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return super().__hash__()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {list(self.args)} returncode={self.returncode}>"


class CompletedRun(Completed[Wrote]):
    """How a `run` ended, and what the launch left in writing."""

    record: Record
    achieved: str
    """The confinement that was achieved and proved."""
    achieved_limits: Mapping[str, str]
    """Each limit that was asked for, and who enforces it (`limits`)."""
    achieved_root: str
    """What the guest's root was: `read-only`, or where its writes went (`Writable`)."""
    changes: Changes | None
    """What the guest has changed in its copy of the workspace; None without one."""
    synchronised: bool
    """Has that been written to the workspace (`Sync`)."""

    def __new__(
        cls,
        args: tuple[str, ...],
        returncode: int,
        stdout: Wrote,
        stderr: Wrote,
        record: Record,
        achieved: str,
        achieved_limits: Mapping[str, str],
        achieved_root: str,
        changes: Changes | None = None,
        synchronised: bool = False,
    ) -> Self:
        self = super().__new__(cls, args, returncode, stdout, stderr)
        vars(self).update(
            record=record,
            achieved=achieved,
            achieved_limits=achieved_limits,
            achieved_root=achieved_root,
            changes=changes,
            synchronised=synchronised,
        )
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        achieved = self.achieved, self.achieved_limits, self.achieved_root
        return *super().__getnewargs__(), self.record, *achieved, self.changes, self.synchronised


# ---- run ----


class RunOptions(SandboxOptions, total=False):
    """The keyword arguments of `run` but for those that decide what it returns; see there."""

    input: Data | None
    stdin: Redirection
    timeout: float | None
    check: bool
    max_output: int
    sync: Sync | str


@overload
def run(
    args: Sequence[HostPath],
    *,
    stdout: None = None,
    stderr: None = None,
    capture_output: Literal[True] = True,
    text: Literal[True] = True,
    **options: Unpack[RunOptions],
) -> CompletedRun[str]: ...


@overload
def run(
    args: Sequence[HostPath],
    *,
    stdout: None = None,
    stderr: None = None,
    capture_output: Literal[True] = True,
    text: Literal[False],
    **options: Unpack[RunOptions],
) -> CompletedRun[bytes]: ...


@overload
def run(
    args: Sequence[HostPath],
    *,
    stdout: Redirection = None,
    stderr: Redirection = None,
    capture_output: bool = True,
    text: Literal[True] = True,
    **options: Unpack[RunOptions],
) -> CompletedRun[str | None]: ...


@overload
def run(
    args: Sequence[HostPath],
    *,
    stdout: Redirection = None,
    stderr: Redirection = None,
    capture_output: bool = True,
    text: Literal[False],
    **options: Unpack[RunOptions],
) -> CompletedRun[bytes | None]: ...


@overload
def run(
    args: Sequence[HostPath],
    *,
    stdout: Redirection = None,
    stderr: Redirection = None,
    capture_output: bool = True,
    text: bool = True,
    **options: Unpack[RunOptions],
) -> CompletedRun[str | None] | CompletedRun[bytes | None]: ...


def run(
    args: Sequence[HostPath],
    *,
    input: Data | None = None,
    stdin: Redirection = None,
    stdout: Redirection = None,
    stderr: Redirection = None,
    capture_output: bool = True,
    text: bool = True,
    timeout: float | None = None,
    check: bool = False,
    max_output: int = MAX_OUTPUT,
    sync: Sync | str = Sync.NEVER,
    **options: Unpack[SandboxOptions],
) -> CompletedRun[Any]:
    """Run `args` in a sandbox of its own, as `subprocess.run` would; `options` are those of `Sandbox`.

    Output is captured unless `capture_output` is false; a stream that is given is not. The guest reads nothing unless
    `input` or `stdin` is given. `text` decodes as UTF-8, and never fails over what the guest wrote. Nothing of the
    guest outlives the call, whatever ends it: TimeoutExpired after `timeout` seconds, OutputLimit for more than
    `max_output` bytes on a stream, and OutOfMemory, TooManyProcesses and LifetimeExpired for the sandbox's own limits
    carry the output until then, GuestFailed with `check` the code too. Nothing ran after a LaunchError, after
    CannotExec (there is no such program, or it cannot be executed) and after StartFailed (runsc says why).

    Of a workspace that is copied, `changes` of the result are what the guest has changed; `sync` says whether they are
    written back: "never", on "success" (the code 0) or "always", once the program has ended by itself.
    WorkspaceConflict and SyncFailed mean that nothing of it was.
    """
    asked = request(**options)
    when = sync_of(sync, asked.how["copied"])
    seconds(timeout)
    pipes = Pipes.redirected(input, stdin, stdout, stderr, capture_output)
    try:
        words, process = launched(asked, args, pipes)
        with process:
            pipes.started()
            deadline = deadline_of(timeout)
            with pipes.capture(max_output) as capture:
                in_time = capture.run(process.pidfd, deadline)
                if not in_time:
                    process.kill()
                code = process.wait()
                return ended(process, words, code, pipes, capture, in_time, timeout, check, text, max_output, when)
    finally:
        pipes.close()


def launched(asked: Request, args: Sequence[HostPath], pipes: Pipes) -> tuple[tuple[str, ...], SandboxProcess]:
    """A `run`'s guest, which ends with the calling thread; its words, and its supervisor."""
    bundle = asked.bundle(args)
    process = limited(asked.limits, asked.runtime, asked.sandbox_id, bundle, asked.options, pipes.guest)
    return tuple(bundle.config["process"]["args"]), process


def limited(
    limits: Limits,
    runtime: GVisorRuntime,
    sandbox_id: str,
    bundle: OciBundle | Path,
    options: GVisorOciRunOptions,
    streams: Sequence[int],
) -> SandboxProcess:
    """`runtime.spawn` of a guest that ends with the calling thread."""
    return runtime.spawn(
        sandbox_id,
        bundle,
        options,
        stdin=streams[0],
        stdout=streams[1],
        stderr=streams[2],
        die_with_thread=True,
        limits=limits,
    )


def ended(
    process: SandboxProcess,
    words: tuple[str, ...],
    code: int,
    pipes: Pipes,
    capture: Capture,
    in_time: bool,
    timeout: float | None,
    check: bool,
    text: bool,
    max_output: int,
    sync: Sync = Sync.NEVER,
) -> CompletedRun[Any]:
    """What a `run` that has ended returns, or what it raises."""
    capture.drain()
    out, err = pipes.results(capture, text)
    if capture.exceeded:
        raise OutputLimit(words, max_output, out, err)
    if capture.failed is not None:
        raise CopyFailed(words, *capture.failed, out, err) from capture.failed[1]
    if not in_time:
        raise TimeoutExpired(list(words), timeout or 0, out, err)
    if code and (met := process.held.met()) is not None:
        raise _limit_met(met, process.held.limits, out, err)
    if (failure := process.failure()) is not None:
        if isinstance(failure, SandboxGone):
            failure.stdout, failure.stderr = out, err
        raise failure
    returncode = code if code >= 0 else 128 - code
    try:
        changes, synchronised = synchronise(process, returncode, sync)
    except (WorkspaceConflict, SyncFailed) as error:
        error.stdout, error.stderr = out, err
        raise
    except OSError as error:  # the guest has made what cannot be read
        raise CopyFailed(words, "workspace", error, out, err) from error
    done: CompletedRun[Any] = CompletedRun(
        words,
        returncode,
        out,
        err,
        process.record,
        process.achieved,
        process.achieved_limits,
        process.achieved_root,
        changes,
        synchronised,
    )
    if check:
        done.check_returncode()
    return done


def synchronise(process: SandboxProcess, code: int, sync: Sync) -> tuple[Changes | None, bool]:
    """What its guest has changed in the copy of its workspace, and was it written back, as `sync` says."""
    copy = process.workspace
    if copy is None:
        return None, False
    if sync is Sync.ALWAYS or (sync is Sync.SUCCESS and code == 0):
        return copy.sync(), True
    return copy.diff(), False


def _limit_met(name: str, limits: Limits, out: Output, err: Output) -> SandboxGone:
    """The error for a sandbox that ended of its limit `name`."""
    asked = getattr(limits, name)
    error: SandboxGone
    if name == MEMORY:
        error = OutOfMemory(f"the sandbox used more than {asked} bytes of memory, and was ended")
    elif name == DISK:
        error = OutOfDisk(f"the guest wrote more than {asked} bytes to disk, and the sandbox was ended")
    elif name == PIDS_LIMIT:
        error = TooManyProcesses(f"the guest had more than {asked} processes, and the sandbox ended of it")
    else:
        error = LifetimeExpired(timeout=asked)
    error.stdout, error.stderr = out, err
    return error


# ---- a sandbox that lives ----


class LivingOptions(SandboxOptions, total=False):
    """The keyword arguments of `Sandbox`; see there."""

    service: Sequence[HostPath]


class ExecOptions(TypedDict, total=False):
    """The keyword arguments of `Sandbox.exec` but for `text`, which decides what it returns; see there."""

    env: Environment | None
    cwd: str | None
    timeout: float | None
    input: Data | None
    check: bool
    user: User | None
    max_output: int


class PopenOptions(TypedDict, total=False):
    """The keyword arguments of `Sandbox.popen` but for `text`; see there."""

    stdin: Redirection
    stdout: Redirection
    stderr: Redirection
    env: Environment | None
    cwd: str | None
    user: User | None
    pty: bool
    window: tuple[int, int]


@dataclass(frozen=True)
class Process:
    """One line of `Sandbox.ps`: a process of the guest, in the guest's numbers."""

    pid: int
    ppid: int
    uid: int
    command: str
    """The program's name, which is the guest's to choose, as is a line in it that looks like one more process."""


class Sandbox:
    """A sandbox that takes commands until it is closed; a `with` block closes it. It ends with its owner, the process
    that made it, however that ends.

        with Sandbox(mounts=["/data:/data:ro"]) as box:
            out, err = box.exec("cat", "/data/input.txt")

    The first six arguments are those of Google's `gvisor.Sandbox`, and so is what they mean:

    runtime_dir: where the launch keeps its directories (`artifact_base` in `GVisorOciRunOptions`).
    sandbox_id: the container id; 32 random hex digits by default.
    network: `none`, `sandbox` or `host`.
    env: the guest's variables, by name (None takes one away) or as NAME=VALUE, over bundle.DEFAULT_ENV. Nothing of the
        caller's own.
    mounts: `Mount` objects, `SRC:DST[:ro|rw]`, or mappings and objects with `destination`, `source`, `type` and
        `readonly`, which are writable unless they say otherwise.
    working_dir: where commands start; taken from the guest's root. `cwd` is the same, as `exec` has it. /workspace,
        which is the guest's own, when None; `/` with a `rootfs`.

    And ours: `rootfs`, the guest's root on the host (the host's own programs, read-only, without it), and `writable`,
    may the guest write to its root: False, "memory" or True (to a layer of this sandbox alone, which is gone with it),
    "disk" (the same, in a file below `runtime_dir`, which must be on disk, up to `disk` bytes), or "host" (to `rootfs`
    itself, refused where others can write it). Nothing of ours is ever made in it. `user` of the guest's processes, as
    UID, (UID, GID) or "USER[:GROUP]", by number or by a name that the guest knows; `etc`, "generated" or "none", and
    `capabilities`, "none", "docker" or names, as in `OciBundle.build`; `secret_files`, places in the guest and where
    what is to lie there comes from (a path, a descriptor, a `Credential`, or bytes), for `user` alone to read;
    `workspace`, a directory of the host that the guest has at /workspace, where it starts: as `workspace_mode` says, a
    "copy" (the default, of up to `workspace_size` bytes, 1 GiB) whose changes `diff` shows and `sync` writes back,
    "ro" or "rw"; `hostname`; `rlimits` as in `OciBundle.build`;
    `runsc`, the binary to use, and `pin`, its SHA-256; `platform`, `confinement`, `enforcement`, `record`, `audit`,
    `keep_records` and `debug_dir` as in `GVisorOciRunOptions`; and limits of the whole sandbox, as in `Limits`:
    `memory` in bytes, `cpus`, `pids`, `lifetime` in seconds, and `limits`, "required" or "best_effort". Who enforces
    which is in `achieved_limits`; a sandbox that meets one ends, and what was done in it then raises OutOfMemory,
    TooManyProcesses or LifetimeExpired, each a SandboxGone.

    `service` is a program, by its absolute path in the guest, and its arguments: the guest's init starts it as the
    sandbox's own, with its user, variables and directory, and with /dev/null for streams. A checkpoint keeps it.

    Raises ValueError and TypeError for arguments, a LaunchError when the launch failed, StartFailed when runsc did,
    CannotExec when the service could not be started; all but the first two are an `Error`. Safe to use from several
    threads.
    """

    _image: HostPath | None = None
    """The directory of the checkpoint that it is restored from."""

    def __init__(
        self,
        runtime_dir: HostPath | None = None,
        sandbox_id: str | None = None,
        network: NetworkMode | str = NetworkMode.NONE,
        env: Environment | None = None,
        mounts: Sequence[AnyMount] | None = None,
        working_dir: str | None = None,
        *,
        service: Sequence[HostPath] = (),
        **own: Unpack[OwnOptions],
    ) -> None:
        self._service = tuple(map(os.fsdecode, service))
        if service and not os.path.isabs(self._service[0]):
            raise ValueError(f"service {self._service[0]!r}: expected an absolute path in the guest")
        self._request = request(runtime_dir, sandbox_id, network, env, mounts, working_dir, **own)
        self._owner = os.getpid()
        self._paused = False
        self._gate: Descriptor | None = None
        """Of a sandbox that is paused: becomes readable when it goes on."""
        self._commands = weakref.WeakValueDictionary[int, GuestProcess[Any]]()
        self._agents = Agents()
        self._starts: set[object] = set()
        """One for each process of the guest that may run and is not among `_commands`: one that starts, or our own."""
        place = _place_for_programs(self._request)
        self._program = f"{place}/{guest.NAME}"
        self._attendant = Attendant()
        self._held = _Held(self._attendant)
        # Before there is anything: whoever is interrupted here, or later, ends it all the same when it is dropped.
        self._dropped = weakref.finalize(self, _clean_up_dropped, self._held, self._owner, self._request.sandbox_id)
        try:
            self._launch(guest.Tree(place, {guest.NAME: (0o555, guest.program())}))
        except BaseException:
            self._held.clean_up()
            self._dropped.detach()
            raise

    @classmethod
    def restore(cls, directory: HostPath, **options: Unpack[LivingOptions]) -> Self:
        """A sandbox that goes on where `checkpoint` wrote `directory`; the image stays, and can be restored again.

        `options` are those of `Sandbox`, and must be those of the sandbox that was checkpointed, but for its id, its
        limits, the sources of its mounts, and where it keeps its directories: the note beside the image says what it
        was made with, and BadArgument names the first option that differs, a missing `service` among them. The guest's
        own files are as they were, and its `service` goes on. What `exec` and `popen` had started does not: runsc ends
        it, for nobody is at the other end of its streams.

        Raises what `Sandbox` raises: Untrusted where others than the caller can change the image or a file of it is
        not what was written, BadPath for what is no image with its note, Unsupported where another runsc made it or
        this one cannot restore (releases before 2024 under `mount-locked`), StartFailed with what runsc said when it
        did not.
        """
        self = cls.__new__(cls)
        self._image = directory
        cls.__init__(self, **options)
        return self

    def _launch(self, tree: guest.Tree) -> None:
        """Launch, and wait until the guest runs."""
        asked = self._request
        with ExitStack() as stack:
            self._held.alive, says_ready = map(Descriptor, os.pipe2(os.O_CLOEXEC))
            # Full, it must not keep runsc from going on.
            self._held.stderr, says = map(Descriptor, os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
            null = Descriptor(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            for end in (says_ready, says, null):
                stack.callback(end.close)
            process = self._process = self._held.process = asked.runtime.spawn(
                asked.sandbox_id,
                asked.bundle([self._program, *(("s", *self._service) if self._service else ())]),
                asked.options,
                stdin=null.number,
                stdout=says_ready.number,
                stderr=says.number,
                # The initial thread lives as long as the process: then the kernel does the attendant's work as well,
                # should anyone kill the attendant first.
                die_with_thread=threading.get_native_id() == self._owner,
                attendant=self._attendant.theirs.fileno(),
                tree=tree,
                limits=asked.limits,
                checkpoint=self._image,
            )
        try:
            self._attendant.meet()
            process.held.told = self._attendant.told
            self._attendant.watch(process.held)
            early = self._process.release is not None and not self._process.release.has("hasty-client")
            if early:
                self._attendant.prepare(self._exec)
            if self._image is None:
                self._await_ready()
            else:
                self._await_answer()
            self._attendant.prepare(self._exec)  # unless there is one still
        except BaseException as error:
            process.end()
            if isinstance(error, SandboxGone):  # pragma: no cover - it ended in the instant before it was met
                raise StartFailed(f"{error}{self._said()}") from error
            raise

    def _await_ready(self) -> None:
        """Wait until the guest's init says that it runs."""
        alive = self._held.alive.number
        if not readable(alive, time.monotonic() + PATIENCE):
            raise StartFailed(f"the guest did not start within {PATIENCE:g} s{self._said()}")
        if os.read(alive, 1) != guest.READY:
            with suppress(TimeoutError, ChildProcessError):  # then nobody knows
                code = self._process.wait(PATIENCE)
                if (failure := self._process.failure()) is not None:
                    raise failure
                if self._service and 0 < code < RUNSC_FAILED:
                    raise CannotExec(self._service, os.strerror(code).encode(), code)
            raise StartFailed(f"runsc did not start the guest{self._said()}")

    def _await_answer(self) -> None:
        """Wait until a guest that was restored runs our program: its init has said so in its former life."""
        deadline = time.monotonic() + PATIENCE
        while not readable(self._process.pidfd, time.monotonic() + 0.02):  # pragma: no branch - or below, by chance
            try:
                self._run_own("k", "0")  # a signal to nobody
                return
            except SandboxGone:
                break
            except RunscFailed as error:  # not yet
                if time.monotonic() > deadline:
                    raise StartFailed(f"the guest was not restored within {PATIENCE:g} s: {error}") from error
        with suppress(TimeoutError, ChildProcessError):
            self._process.wait(PATIENCE)
            if (failure := self._process.failure()) is not None:
                raise StartFailed(f"runsc did not restore the guest: {failure}")
        raise StartFailed(f"runsc did not restore the guest{self._said()}")

    def _said(self) -> str:
        """What runsc has written to its standard error."""
        try:
            text = os.read(self._held.stderr.number, 1 << 12).strip()
        except BlockingIOError:
            text = b""
        return f": {shown(text)}" if text else ""

    # ---- what it is ----

    @property
    def id(self) -> str:
        """The container id."""
        return self._request.sandbox_id

    @property
    def bundle_dir(self) -> str:
        """The bundle's directory, as the supervisor names it: it lies on a tmpfs that only the sandbox sees."""
        command = self._process.command
        return os.fsdecode(command[command.index(b"--bundle") + 1])

    @property
    def pid(self) -> int:
        """Process id of the supervisor (runsc)."""
        return self._process.pid

    @property
    def record(self) -> Record:
        """What the launch left in writing."""
        return self._process.record

    @property
    def achieved(self) -> str:
        """The confinement that was achieved and proved."""
        return self._process.achieved

    @property
    def achieved_scope(self) -> str:
        """`signals+abstract` where the supervisor can signal nobody outside, nor reach their abstract sockets, which
        was tried; else `none`."""
        return self._process.achieved_scope

    @property
    def achieved_limits(self) -> Mapping[str, str]:
        """Each limit that was asked for, and who enforces it (`limits`)."""
        return self._process.achieved_limits

    @property
    def achieved_root(self) -> str:
        """What the guest's root is: `read-only`, or where its writes go (`Writable`)."""
        return self._process.achieved_root

    @property
    def closed(self) -> bool:
        """Has it ended, by `close` or by itself."""
        return self._process.poll() is not None

    # ---- commands ----

    @overload
    def exec(
        self, cmd: Words, *args: HostPath, text: Literal[True] = True, **options: Unpack[ExecOptions]
    ) -> Completed[str]: ...

    @overload
    def exec(
        self, cmd: Words, *args: HostPath, text: Literal[False], **options: Unpack[ExecOptions]
    ) -> Completed[bytes]: ...

    @overload
    def exec(
        self, cmd: Words, *args: HostPath, text: bool, **options: Unpack[ExecOptions]
    ) -> Completed[str] | Completed[bytes]: ...

    def exec(
        self,
        cmd: Words,
        *args: HostPath,
        env: Environment | None = None,
        cwd: str | None = None,
        timeout: float | None = None,
        input: Data | None = None,
        check: bool = True,
        text: bool = True,
        user: User | None = None,
        max_output: int = MAX_OUTPUT,
    ) -> Completed[Any]:
        """Run a command in the sandbox to its end; what it wrote, as `(stdout, stderr)` and by name.

        Its words are given one by one, or as a sequence.
        `env` comes over the sandbox's own. GuestFailed for a code other than 0, unless `check` is false; CannotExec
        when there is no such program; TimeoutExpired and OutputLimit when the command, with all that it had started,
        was ended for that (or the whole sandbox: see `GuestProcess.kill`). All of them carry the output, and all are an
        `Error`.
        """
        words = words_of(cmd, args)
        seconds(timeout)
        return self._execute(words, Pipes(input), env, cwd, user, timeout, check, text, max_output)

    def _execute(
        self,
        words: Sequence[HostPath],
        pipes: Pipes,
        env: Environment | None = None,
        cwd: str | None = None,
        user: User | None = None,
        timeout: float | None = None,
        check: bool = True,
        text: bool = True,
        max_output: int = MAX_OUTPUT,
        said: Sequence[HostPath] = (),
        deadline: float | None = None,
    ) -> Completed[Any]:
        """An `exec` of `words` with `pipes`; for whoever meets an error, `said` was asked for, until `deadline`."""
        deadline = deadline_of(timeout) if deadline is None else deadline
        process, over = None, False
        try:
            process = self._start(words, pipes, env, cwd, user, deadline)
            with pipes.capture(max_output) as capture:
                try:
                    in_time = process is not None and capture.run(process.command.channel, deadline)
                    if process is not None and in_time:
                        process.wait()
                except SandboxGone as error:
                    capture.drain()
                    error.stdout, error.stderr = pipes.results(capture, text)
                    raise
                finally:
                    if process is not None and process.returncode is None:
                        process.kill()
                    over = True
                code = None if process is None or not in_time else process.returncode
                return self._executed(said or words, code, pipes, capture, timeout, check, text, max_output)
        except BaseException:
            if process is not None and not over:  # it was interrupted between two lines
                process.kill()
            raise
        finally:
            pipes.close()

    def _executed(
        self,
        words: Sequence[HostPath],
        code: int | None,
        pipes: Pipes,
        capture: Capture,
        timeout: float | None,
        check: bool,
        text: bool,
        max_output: int,
    ) -> Completed[Any]:
        """What an `exec` returns, or what it raises; a code of None: it was ended."""
        capture.drain()
        out, err = pipes.results(capture, text)
        said = tuple(map(os.fsdecode, words))
        if capture.exceeded:
            raise OutputLimit(said, max_output, out, err)
        if capture.failed is not None:
            raise CopyFailed(said, *capture.failed, out, err) from capture.failed[1]
        if code is None:
            raise TimeoutExpired(list(said), timeout or 0, out, err)
        if code and self._process.held.met() is not None:  # it may be the command that was killed for it
            error = self._gone("the sandbox met a limit")
            error.stdout, error.stderr = out, err
            raise error
        done: Completed[Any] = Completed(said, code, out, err)
        if check:
            done.check_returncode()
        return done

    @overload
    def popen(
        self, args: Words, *more: HostPath, text: Literal[False] = False, **options: Unpack[PopenOptions]
    ) -> "GuestProcess[bytes]": ...

    @overload
    def popen(
        self, args: Words, *more: HostPath, text: Literal[True], **options: Unpack[PopenOptions]
    ) -> "GuestProcess[str]": ...

    @overload
    def popen(
        self, args: Words, *more: HostPath, text: bool, **options: Unpack[PopenOptions]
    ) -> "GuestProcess[str] | GuestProcess[bytes]": ...

    def popen(
        self,
        args: Words,
        *more: HostPath,
        stdin: Redirection = None,
        stdout: Redirection = None,
        stderr: Redirection = None,
        env: Environment | None = None,
        cwd: str | None = None,
        user: User | None = None,
        text: bool = False,
        pty: bool = False,
        window: tuple[int, int] = (24, 80),
    ) -> "GuestProcess[Any]":
        """Start a command in the sandbox, as `subprocess.Popen` would; returns once it runs.

        Its words are a sequence, or are given one by one.

        Streams that are not given are the caller's own, but for `stdin`, which is empty. Raises CannotExec.

        With `pty` all three are a terminal of `window` rows and columns instead, and the process's `terminal` is its
        other end: what is written there is typed. Once nobody holds the guest's end, reading fails with EIO.
        """
        words = words_of(args, more)
        process, pipes = None, Pipes.of(stdin, stdout, stderr, text, pty, window)
        try:
            try:
                process = self._start(words, pipes, env, cwd, user, None)
                assert process is not None
                process.take(pipes, text)
            finally:
                pipes.close()
            return process
        except BaseException:
            if process is not None:
                process.kill()
            raise

    def _start(
        self,
        args: Sequence[HostPath],
        pipes: Pipes,
        env: Environment | None,
        cwd: str | None,
        user: User | None,
        deadline: float | None,
    ) -> "GuestProcess[Any] | None":
        """The command, once it runs in the guest; None when `deadline` came first, and then it does not run."""
        held: list[Command] = []
        started: GuestProcess[Any] | None = None
        try:
            while not held:
                if not self._await_resumed(deadline):
                    return None
                with self._starting():
                    # Closed since; and who has closed it sees this one among those that start, or none.
                    if self._gate is not None and not self.closed:
                        continue
                    words = self._send(held, args, pipes, env, cwd, user)
                    (command,) = held
                    # A client that was told to start a process and is not heard of is not waited for without end.
                    in_time = readable(command.channel, deadline)
                    in_time = in_time or readable(command.channel, time.monotonic() + PATIENCE)
                    if in_time:
                        command.begun(pipes.to_come, pipes.take)
                    if command.pid is not None:
                        started = GuestProcess[Any](self, words, command.pid, command)
                        if deadline is None or time.monotonic() < deadline:
                            return started
            if started is not None:
                started.kill()
                return None
            if not in_time:
                self.kill()  # it may run or not, and has no number: then nothing may
                return None
            self._refuse(words, command, pipes)
        except BaseException:  # also as the `with` is left
            if started is not None:
                started.kill()
            else:
                self._unsend(held, pipes)
            raise

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """A command is about to start: until it is one of `_commands` nobody may take its process for another's.

        Spec: SandboxLife!Marks, Withdraws.
        """
        mark = object()
        try:
            self._starts.add(mark)
            for process in self._running():
                process.alone = False
            yield
        finally:
            self._starts.discard(mark)

    def _send(
        self,
        held: list[Command],
        args: Sequence[HostPath],
        pipes: Pipes,
        env: Environment | None,
        cwd: str | None,
        user: User | None,
    ) -> tuple[str, ...]:
        """Have a command started, and its words; `held` has the Command, whose channel will tell its number."""
        process = self._request.process(args, env, cwd, user)
        self._process.owners.judge(process["user"]["uid"], process["user"]["gid"])
        process["terminal"] = pipes.terminal
        words = tuple(process["args"])
        try:
            with _memory(json.dumps(process).encode()) as file:
                argv = self._exec_on_terminal if pipes.terminal else self._exec
                self._attend(held, argv, file.fileno(), pipes)
                return words
        finally:
            pipes.started()

    def _unsend(self, held: list[Command], pipes: Pipes) -> None:
        """Nobody wants the command any more, which runs or is about to, or was never sent."""
        if not held:
            return
        (command,) = held
        try:
            heard = command.has_begun or command.pid is not None
            if not heard and readable(command.channel, time.monotonic() + TREE_PATIENCE):
                with suppress(OSError, RunscFailed):  # what made it unwanted is raised
                    command.begun(pipes.to_come, pipes.take)
            if command.pid is not None:
                self._end_tree(command, lambda: not self._running())
            elif not command.has_begun:
                self.kill()
        finally:
            command.close()

    def _refuse(self, words: tuple[str, ...], command: Command, pipes: Pipes) -> NoReturn:
        """runsc ended without having started the process: raise why. Spec: SandboxLife!HearsRefusal."""
        try:
            command.ended(time.monotonic() + PATIENCE)
        except SandboxGone as error:
            raise self._gone(str(error)) from None
        if command.returncode is not None and command.returncode < 0:
            self._see_that_it_lives()
            raise RunscFailed("runsc's client was killed before it could start the command")
        output = command.refusal
        for fd in pipes.ours[1:]:
            if fd >= 0:
                os.set_blocking(fd, False)
                with suppress(BlockingIOError):
                    output += os.read(fd, 1 << 12)
        self._see_that_it_lives()
        raise CannotExec(words, output, reason_of(output))

    def _see_that_it_lives(self) -> None:
        """SandboxGone unless it does: a command of runsc's that failed has the same code for all reasons, and may have
        heard of the sandbox's end before us.
        """
        if self._process.held.met() is not None:
            raise self._gone("the sandbox met a limit")
        try:
            self._ask("ps")
        except RunscFailed:
            self.kill()
            raise self._gone("the sandbox has ended") from None

    @property
    def _exec(self) -> list[bytes]:
        """runsc's arguments for every command: the process is in a file, for a command line is everybody's to read."""
        release = self._process.release
        apart = map(os.fsdecode, _attendant.APART if release is not None and release.has("stderr-apart") else ())
        return self._command("exec", *apart, *_PROCESS)

    @property
    def _exec_on_terminal(self) -> list[bytes]:
        """The same where all its streams are a terminal, which runsc looks for on its own."""
        return self._command("exec", *_PROCESS)

    def _command(self, *words: str) -> list[bytes]:
        """runsc's argument vector for a command on this sandbox: the launch's own flags, and its container id last."""
        command = self._process.command
        return [*command[: runsc.after_flags(command)], *(word.encode() for word in words), self.id.encode()]

    def _gone(self, text: str) -> SandboxGone:
        """Why nothing more can be done: the limit that the sandbox met, if it met one. It ends now, if it has not."""
        held = self._process.held
        if held.limits.asked:
            self._end()
            if (met := held.met()) is not None:
                return _limit_met(met, held.limits, None, None)
        return SandboxGone(text)

    def _attend(self, held: list[Command], argv: list[bytes], process: int, pipes: Pipes) -> None:
        if os.getpid() != self._owner:
            raise SandboxGone("the sandbox belongs to another process, which forked this one")
        try:
            self._attendant.exec(held, argv, process, *pipes.guest, fed=pipes.fed, terminal=pipes.terminal)
        except SandboxGone as error:
            self.kill()  # nobody else would, when only the attendant is gone
            raise self._gone(str(error)) from None

    def _ask(self, *words: str) -> bytes:
        return self._ask_exactly(words[0], self._command(*words))

    def _ask_exactly(self, name: str, argv: list[bytes], timeout: float = PATIENCE, *descriptors: int) -> bytes:
        if os.getpid() != self._owner:
            raise SandboxGone("the sandbox belongs to another process, which forked this one")
        if self.closed:
            raise self._gone("the sandbox has ended")
        try:
            return self._attendant.ask(name, argv, timeout, *descriptors)
        except SandboxGone as error:
            raise self._gone(str(error)) from None

    # ---- files ----

    @property
    def files(self) -> Files:
        """What is in the guest's directories, and what can be done with it."""
        return Files(self)

    def read_file(
        self, path: str, *, max_bytes: int = MAX_FILE, timeout: float | None = None, special: bool = False
    ) -> bytes:
        """The bytes of a file in the guest; OSError as the guest has it, OutputLimit when it is larger, TimeoutExpired.

        A path that is not absolute begins at the guest's root, here and wherever one is copied. What is no regular file
        is refused with shutil.SpecialFileError, unless it is to be waited for: `special`.
        """
        deadline = deadline_of(timeout)
        if not special:
            return self._do("read_file", reading(directory(path, "path"), max_bytes), timeout, deadline)
        copying = Copying("R", Pipes.redirected(None, None, PIPE, DEVNULL, False))
        return self._copy("read_file", path, copying, timeout, deadline, max_bytes).stdout

    def write_file(
        self,
        path: str,
        data: Data,
        *,
        mode: int | None = None,
        parents: bool = False,
        timeout: float | None = None,
        special: bool = False,
    ) -> None:
        """Make or overwrite a file in the guest, and with `parents` the directories above it.

        What is no regular file is refused as by `read_file`, and nothing is written there.
        """
        deadline, where = deadline_of(timeout), directory(path, "path")
        if not special:
            return self._do("write_file", writing(where, data, mode, parents), timeout, deadline)
        if parents:
            self._do("write_file", making_parents(where), timeout, deadline)
        self._copy("write_file", path, Copying("W", Pipes(data)), timeout, deadline)
        if mode is not None:
            self._do("write_file", changing_mode(where, mode), timeout, deadline)

    def put(
        self, source: HostPath, path: str, *, timeout: float | None = None, special: bool = False
    ) -> tuple[str, ...]:
        """Copy the file or the directory `source` of the host to `path` in the guest, of whatever size.

        A file is written as by `write_file`. A directory's entries come into the directory `path`, which is made where
        it is not there, with their modes, and replace those of their names; they belong to the guest's user. Links that
        lead out of it, and special files, are left out: the names in it of those that were.
        """
        deadline = deadline_of(timeout)
        with to_put(source, special) as copying:
            if copying.pieces is not None:
                self._do("put", sending(directory(path, "path"), copying.pieces), timeout, deadline)
            else:
                self._copy("put", path, copying, timeout, deadline, LONGEST)
        return tuple(copying.left_out)

    def get(
        self,
        path: str,
        target: HostPath,
        *,
        max_bytes: int = MAX_FILE,
        timeout: float | None = None,
        special: bool = False,
    ) -> tuple[str, ...]:
        """Copy the file or the directory `path` of the guest to `target` on the host, which is there only if all of it
        is; in the place of a directory only of an empty one.

        OutputLimit when it is larger than `max_bytes`: its size is the guest's to say, and the disk is the host's. An
        entry of a directory counts as `trees.ENTRY` bytes and what is in it. Links that lead out of it, and special
        files, are left out: the names in it of those that were. Otherwise as `read_file`.
        """
        deadline = deadline_of(timeout)
        with to_get(target, max_bytes, special) as (copying, file):
            try:
                if not special:
                    self._do("get", receiving(directory(path, "path"), file, max_bytes), timeout, deadline)
            except IsADirectoryError:
                special = True
            if special:
                self._copy("get", path, copying, timeout, deadline, max_bytes)
        return tuple(copying.left_out)

    def _from_working_dir(self, path: str) -> str:
        """The absolute path; one that is not begins where commands do."""
        absolute = directory(path, "path")
        return absolute if path.startswith("/") else directory(os.path.join(self._request.working_dir, path), "path")

    def _copy(
        self, name: str, path: str, copying: Copying, timeout: float | None, deadline: float | None, limit: int = 0
    ) -> Completed[bytes]:
        """Have our program copy, as a command that can be waited for, and ended, as any can."""
        try:
            where = directory(path, "path")
            done: Completed[bytes] = self._execute(
                [self._program, copying.word, where],
                copying.pipes,
                timeout=timeout,
                check=False,
                text=False,
                max_output=limit,
                said=(name, where),
                deadline=deadline,
            )
        finally:
            copying.pipes.close()
        Sandbox._copied(done.returncode, copying.place(where, done.stdout), copying.word.isupper())
        return done

    @staticmethod
    def _copied(code: int, path: str, special: bool = False) -> None:
        if code == guest.SPECIAL or (code == errno.ENXIO and not special):  # a FIFO that nobody reads, or a socket
            raise no_regular(path)
        if 0 < code < 128:
            raise OSError(code, os.strerror(code), path)
        if code:
            raise RunscFailed(f"copying {path} was ended with {code}")

    def _do(self, name: str, steps: Steps[Result], timeout: float | None, deadline: float | None) -> Result:
        """Have agents do `steps`, and what comes of it."""
        try:
            ask = next(steps)
            while True:
                try:
                    answer = self._ask_agent((name, ask.path), ask, timeout, deadline)
                except OSError as error:
                    ask = steps.throw(error)
                else:
                    ask = steps.send(answer)
        except StopIteration as stop:
            result: Result = stop.value
            return result

    def _ask_agent(self, said: tuple[str, str], ask: Ask, timeout: float | None, deadline: float | None) -> bytes:
        """What an agent answers."""
        in_time = self._await_resumed(deadline)
        agent = self._idle_agent()
        was_idle = agent is not None
        try:
            if agent is None and in_time:
                agent = self._new_agent(deadline)
            if agent is None or not in_time:
                raise TimeoutExpired(list(said), timeout or 0)
            talk = Conversation(agent, ask, said)
            while (awaited := talk.step()) is not None:
                if not ready(*awaited, deadline):
                    raise TimeoutExpired(list(said), timeout or 0)
        except BaseException as error:
            if agent is not None:
                self._end_agent(agent)
            if not isinstance(error, Lost):
                raise
            if not (was_idle and talk.can_repeat):
                raise self._lost(said) from None
            return self._ask_agent(said, ask, timeout, deadline)
        return self._answered(agent, talk, ask)

    def _idle_agent(self) -> Agent | None:
        if os.getpid() != self._owner:
            raise SandboxGone("the sandbox belongs to another process, which forked this one")
        agent = self._agents.take()
        if agent is not None and self._gate is not None and not self.closed:
            # The gate was closed since; who has closed it sees now that this one does something, or not: to start
            # another waits there.
            self._agents.give_back(agent, keep=True)
            return None
        return agent

    def _new_agent(self, deadline: float | None) -> Agent | None:
        """One that was started for this; None when `deadline` came first."""
        pipes = Pipes.redirected(None, PIPE, PIPE, DEVNULL, False)
        try:
            process = self._start([self._program, "a"], pipes, None, None, None, deadline)
            return None if process is None else self._met(process, pipes)
        finally:
            pipes.close()

    def _met(self, process: "GuestProcess[Any]", pipes: Pipes) -> Agent:
        """The agent that runs as `process`, which is no command any more: the client that has started it goes."""
        (requests, answers, _), pipes.ours = pipes.ours, [-1, -1, -1]
        command = process.command
        agent = self._agents.use(Agent(process.pid, requests, answers, (command.sent_at, command.begun_at)))
        command.close()
        return agent

    def _answered(self, agent: Agent, talk: Conversation, ask: Ask) -> bytes:
        self._agents.give_back(agent, keep=not self.closed)
        self._copied(talk.code or 0, ask.path)
        return talk.answer()

    def _end_agent(self, agent: Agent) -> None:
        """End one that was not heard to its end, and all that it does."""
        if not self._agents.end(agent, 0 if self._paused else FAREWELL) and not self._paused:
            with suppress(RunscFailed, SandboxGone):
                self._signal_all(signals.SIGKILL, {agent.pid})

    def _end_agents(self) -> None:
        """End those that are idle."""
        for pid in self._agents.dismiss():
            with suppress(RunscFailed, SandboxGone):
                self._signal_all(signals.SIGKILL, {pid})

    def _lost(self, said: tuple[str, str]) -> Exception:
        """What to raise where an agent has ended before its answer."""
        self._see_that_it_lives()
        return RunscFailed(
            f"{said[0]}: the guest has ended the program of ours that does it: {shown(said[1])}",
            hint="do it again: another is started",
        )

    # ---- the workspace ----

    @property
    def copied(self) -> int:
        """How many bytes its copy of the workspace may have; 0 without one."""
        return int(self._request.how["copied"])

    def diff(self) -> Changes:
        """What the guest has changed in its copy of the workspace, since it was made or last synchronised.

        OSError for what cannot be read, as the guest may have made it. Like `sync` it can be asked for when the sandbox
        has ended by itself, until it is closed.
        """
        return self._workspace("diff").diff()

    def sync(self) -> Changes:
        """Write that to the workspace: all of it or, when anything is raised, nothing; what was written.

        WorkspaceConflict where the host's directory is no longer what was copied, at a name that would be written;
        SyncFailed where it cannot be written, as on a full disk. Links that lead out of the workspace, FIFOs, sockets
        and devices are left out, and so are set-id bits. A process that is killed in it leaves the directory as it was
        or as it was meant to be, once the next launch with a workspace, or `nucleus-gvisor gc`, has gone on with it.
        """
        return self._workspace("sync").sync()

    def _workspace(self, what: str) -> Copy:
        copy = self._process.workspace
        if copy is None:
            raise BadArgument(
                f"nothing to {what}",
                observed="no workspace that is copied",
                expected="one",
                hint='workspace="DIR" copies that directory',
            )
        return copy

    # ---- the sandbox as a whole ----

    def ps(self) -> list[Process]:
        """The guest's processes, its init (ours) among them, but not ours that wait to be asked for files."""
        ours = self._agents.there
        return [process for process in self._ps() if process.pid not in ours]

    def _ps(self) -> list[Process]:
        # As a table, for as JSON there are only the numbers.
        return processes(self._ask("ps", "--format", "table").decode("utf-8", "replace"))

    def stats(self) -> dict[str, Any]:
        """What the sandbox uses, as `runsc events --stats` would have it where it knew: processor time in nanoseconds
        and memory in bytes, both of the processes that make the sandbox on the host, the guest's processes, and its
        network interfaces. What is not known is not there.
        """
        event: dict[str, Any] = json.loads(self._ask("events", "--stats"))
        counted = {name: event["data"][name] for name in ("pids", "network_interfaces") if name in event["data"]}
        with self._process.use() as pidfd:
            return {**(usage.measured(self.pid) if pidfd >= 0 else {}), **counted}

    def pause(self) -> None:
        """Stop every process of the guest where it is. Commands started meanwhile wait until it goes on, or ends."""
        self._close_gate()
        try:
            self._await_starts()
            self._end_agents()  # a checkpoint cannot keep their pipes, and paused they cannot end
            self._ask("pause")
            self._paused = True
        finally:
            if not self._paused:
                self._open_gate()

    def resume(self) -> None:
        """Let them go on."""
        self._ask("resume")
        self._paused = False
        self._open_gate()

    def _close_gate(self) -> bool:
        """Have commands wait that are to be started; False where they do already."""
        if self._gate is not None:
            return False
        self._gate = Descriptor(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        return True

    def _await_starts(self, *, agents: bool = False) -> bool:
        """Wait a moment, with the gate closed, for the commands that are being started, and for agents that do
        something; are there none any more."""
        end = time.monotonic() + QUIET
        while (waits := bool(self._starts or (agents and self._agents.busy))) and time.monotonic() < end:
            time.sleep(GLANCE)
        return not waits

    def _open_gate(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            with gate.use() as fd:  # whoever waits at it has it open still
                if fd >= 0:
                    os.eventfd_write(fd, 1)
            gate.close()

    def _await_resumed(self, deadline: float | None) -> bool:
        """Wait while it is paused, and lives; False when `deadline` came first. Spec: SandboxLife!Comes."""
        while (gate := self._gate) is not None:
            with gate.use() as fd, self._process.use() as pidfd:
                if fd < 0:
                    continue
                if pidfd < 0:
                    break
                poll = select.poll()
                for awaited in (fd, pidfd):
                    poll.register(awaited, select.POLLIN)
                ready = poll.poll(milliseconds(deadline))
                if any(number == pidfd for number, _ in ready):
                    break
                if not ready and deadline is not None and time.monotonic() >= deadline:
                    return False
        return True

    def checkpoint(self, directory: HostPath, *, leave_running: bool = False, include_secrets: bool = False) -> None:
        """Write the guest, its memory and its files, to `directory` on the host, for `restore`; the sandbox then ends,
        unless it is to be left running.

        The directory is made, or is an empty one of the caller's: FileExistsError otherwise. Untrusted where others
        could change it. RunscFailed while a command runs (its streams are the host's, which no image can hold; what it
        left behind must not have them either), with releases before 2024, and when runsc fails. Then nothing of the
        image is left, and the sandbox goes on. What is mounted from the host is not in it, and `network="host"` cannot
        be kept. BadArgument for a sandbox with secret files, whose guest may have them in memory, unless the image may
        hold them: `include_secrets`. Its note then names them, and `restore` asks for them again.
        """
        if (secret := self._request.how["secret_files"]) and not include_secrets:
            raise BadArgument(
                "a checkpoint would hold secrets",
                step="Checkpoint",
                observed=f"secret files: {', '.join(file.target for file in secret)}",
                expected="a sandbox without secret files",
                hint="include_secrets=True writes the guest's memory to disk, and what it has read of them with it",
            )
        release = self._process.release
        if release is None or not release.has("leave-running"):
            why = f"runsc checkpoint: no image of this release can be restored: {release and release.text}"
            raise RunscFailed(why, hint="install a release of 2024 or later")
        closed = self._close_gate()
        try:
            self._checkpoint(directory, leave_running=leave_running)
        finally:
            if closed and not self._paused:
                self._open_gate()

    def _checkpoint(self, directory: HostPath, *, leave_running: bool) -> None:
        """The same, with the gate closed: no command starts until it is done.

        Spec: SandboxLife!CkptLooks, CkptWrites.
        """
        quiet = self._await_starts(agents=True)
        for process in self._known():
            with suppress(RunscFailed):  # which is for its own caller to hear
                process._ended(time.monotonic())  # one whose client was killed unheard of is in the guest still
        if not quiet or self._running():
            raise RunscFailed(
                "runsc checkpoint: a command runs, and its streams cannot be kept", hint="wait for it, or end it"
            )
        # Left to itself runsc ends the sandbox, and with it the attendant and this command, before anybody has heard
        # whether the image is whole. So it is left running, but does nothing any more.
        stop = not leave_running and not self._paused
        if stop:
            self.pause()
        self._end_agents()
        try:
            with image.made(directory, self._process.made_with) as path:
                fd = image.opened(path, alone=self.achieved == Confinement.MOUNT_LOCKED)
                try:
                    argv = self._command("checkpoint", "--leave-running", "--image-path", "/proc/self/fd/3")
                    self._ask_exactly("checkpoint", argv, CHECKPOINT_PATIENCE, fd)
                finally:
                    os.close(fd)
        except BaseException:
            if stop:
                with suppress(RunscFailed, SandboxGone):  # the first error counts
                    self.resume()
            raise
        if not leave_running:
            self._process.end()

    def signal(self, number: int, pid: int | None = None) -> None:
        """Send a signal to process `pid` of the guest, in the guest's numbers; to all of them when None."""
        where = ["--all"] if pid is None else ["--pid", str(pid)]
        self._ask_exactly("kill", [*self._command("kill", *where), str(int(number)).encode()])

    def _end_tree(self, command: Command, alone: Callable[[], bool]) -> None:
        """End what `command` has started in the guest, or, where that cannot be had, the sandbox.

        `alone`: no other command has run at any time while it did. Spec: SandboxLife!TimesOut.
        """
        deadline = time.monotonic() + TREE_PATIENCE
        try:
            if self._paused:
                raise RunscFailed("a paused guest takes no signal")
            if self._request.may_deceive:
                raise RunscFailed("with its capabilities a command can pass for any other, and for what reads /proc")
            self._end_agents()  # they would pass for what it has detached
            stopped: set[int] = set()
            doubted: set[int] = set()
            while (found := self._tree(command, alone, stopped, doubted)) is None or found - stopped:
                if len(stopped | (found or set())) > MAX_TREE or time.monotonic() > deadline:
                    raise RunscFailed("too many processes to end")
                if found is None:
                    time.sleep(TICK)
                else:
                    self._signal_all(signals.SIGSTOP, found)  # none of them can fork any more, or lose its parent
                    stopped |= found
            self._signal_all(signals.SIGKILL, stopped)
        except (RunscFailed, CannotExec):
            self._end()
        except SandboxGone:
            pass

    def _running(self) -> "list[GuestProcess[Any]]":
        """The commands that have not ended."""
        return [process for process in self._known() if process.runs]

    def _known(self) -> "list[GuestProcess[Any]]":
        """The commands that somebody holds."""
        known = [reference() for reference in self._commands.valuerefs()]
        return [process for process in known if process is not None]

    def _tree(
        self, command: Command, alone: Callable[[], bool], stopped: set[int], doubted: set[int]
    ) -> set[int] | None:
        """The numbers of what `command` has started, or some of them that are to be stopped first; None when a process
        came or went meanwhile, and it must be asked again. `doubted`: what was there already when it was asked before.
        """
        listed = self._ps()
        if len({process.pid for process in listed}) < len(listed):
            raise RunscFailed("a process is listed twice")  # its name has a line in it: it forges a parent
        processes = [process for process in listed if process.uid != OURS]  # another thread ends a command of its own
        numbers = {process.pid for process in processes}
        assert command.pid is not None
        tree = set(_descendants(processes, [command.pid]))
        if tree - stopped:
            return tree  # as long as they run, more may be detached, and the command's own start time may be gone
        starting = bool(self._starts)  # before one looks who runs: what starts is one of those, or of these
        others = {process.pid for process in self._running() if process.command is not command}
        known = tree | others
        detached = [
            process.pid
            for process in processes
            if process.pid not in known and process.pid != 1 and (process.ppid <= 1 or process.ppid not in numbers)
        ]
        if not detached:
            return tree
        try:
            earliest, latest = self._started(command, numbers)
            starts = {pid: self._start_time(pid) for pid in detached}
        except LookupError:
            return None
        newer = [pid for pid, start in starts.items() if start >= earliest and not self._is_agent(pid, start)]
        if newer and starting:
            return None
        if newer and not alone():
            if doubted.isdisjoint(newer):  # it may be on its way out, as what has signalled just now
                doubted.update(newer)
                return None
            raise RunscFailed("a detached process may be another command's")
        if any(starts[pid] < latest for pid in newer):
            raise RunscFailed("a detached process may be an earlier command's")
        return tree | set(_descendants(processes, newer))

    def _started(self, command: Command, listed: set[int]) -> tuple[float, float]:
        """When `command` has started, at the earliest and at the latest, by the guest's clock and in its ticks.

        Both are what its process says, unless that has ended: then its number may be another's already, which has
        started later than the command can have.
        """
        earliest, latest = self._in_ticks(command.sent_at, command.begun_at)
        assert command.pid is not None
        if command.pid in listed:
            start = self._start_time(command.pid)
            if earliest <= start <= latest and command.runs(time.monotonic()):
                return start, start
            return min(start, earliest), latest  # the host's clock was set meanwhile, and the guest's with it
        return earliest, latest

    def _in_ticks(self, begin: float, end: float) -> tuple[float, float]:
        """What has started between two moments of ours has done so between these, by the guest's clock."""
        before = time.monotonic()
        now = self._start_time(None)
        after = time.monotonic()
        # Our reader has started between those two: the guest's clock runs as ours.
        longest, shortest = after - begin, before - end
        wrong = CLOCKS_DIFFER + longest / 1000
        return now - (longest + wrong) / TICK, now - (shortest - wrong) / TICK

    def _is_agent(self, pid: int, start: int) -> bool:
        """Is the process, which started then, an agent that does something for another thread.

        SAFETY: not by its number alone. A guest can kill it, hold its pipe (/proc/PID/fd) and have the number given
        again to a process that is to outlive its command; but not as soon as the agent had it.
        """
        started = [agent.started for agent in self._agents.busy if agent.pid == pid]
        return any(earliest <= start <= latest for earliest, latest in (self._in_ticks(*times) for times in started))

    def _start_time(self, pid: int | None) -> int:
        """When process `pid` of the guest has started, in ticks since its kernel has; LookupError when there is none.

        None: the process that looks.
        """
        path = "/proc/self/stat" if pid is None else f"/proc/{pid}/stat"
        try:
            line = self._run_own("r", path)
        except RunscFailed:
            if pid is not None and pid not in {process.pid for process in self._ps()}:
                raise LookupError(pid) from None
            raise
        found = _STAT.fullmatch(line)
        if found is None or (pid is not None and int(found["pid"]) != pid):
            raise RunscFailed(f"the guest has no start time of process {pid}", line)
        return int(found["start"])

    def _signal_all(self, number: int, pids: set[int]) -> None:
        """Signal several processes at once, from inside: a command of runsc's for each would take too long."""
        if not pids:
            return
        mark = object()  # it runs as any command may: nobody may take it for something that a command has detached
        self._starts.add(mark)
        try:
            self._run_own("k", str(int(number)), *map(str, pids))
        finally:
            self._starts.discard(mark)

    def _run_own(self, *words: str) -> bytes:
        """Run our program in the guest: what it writes. It may signal, or else it is OURS, and may nothing."""
        may_signal = words[0] == "k"
        process = self._request.process([self._program, *words], None, "/", 0)
        process["user"]["uid"] = process["user"]["gid"] = 0 if may_signal else OURS
        for kind in ("bounding", "effective", "permitted"):
            process["capabilities"][kind] = ["CAP_KILL"] if may_signal else []
        with _memory(json.dumps(process).encode()) as file:
            return self._attendant.ask(
                "exec", self._command("exec", "--process", "/proc/self/fd/3"), TREE_PATIENCE, file.fileno()
            )

    def kill(self) -> None:
        """End the sandbox at once. `close` does so too, and cleans up."""
        if os.getpid() == self._owner:
            self._attendant.hang_up()
            self._attendant.await_end()
            self._process.kill()

    def _end(self) -> None:
        """`kill`, and see it end: its commands end before it does."""
        self.kill()
        with suppress(TimeoutError, ChildProcessError):  # where nobody knows how it ended
            self.wait(PATIENCE)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the sandbox has ended by itself; its init's exit code. TimeoutError after `timeout` seconds."""
        return self._process.wait(seconds(timeout))

    def close(self) -> None:
        """End the sandbox and remove what it had on the host, but for its record.

        Once is enough. When something interrupts it, the next one goes on; a signal handler may call it.
        """
        if os.getpid() == self._owner:
            self._held.clean_up()
            self._agents.dismiss(0)
            self._dropped.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Sandbox {self.id} pid={self.pid}{' closed' if self.closed else ''}>"


class GuestProcess(Generic[AnyStr]):
    """A command that runs in a sandbox, as `subprocess.Popen` has it. Made by `Sandbox.popen` alone."""

    alone: bool
    """Has no other command run while this one did."""

    def __init__(self, sandbox: Sandbox, args: tuple[str, ...], pid: int, command: Command) -> None:
        self._sandbox = sandbox
        self.args = args
        self.pid = pid
        """Its process id in the guest."""
        self.command = command
        self.stdin: IO[AnyStr] | None = None
        self.stdout: IO[AnyStr] | None = None
        self.stderr: IO[AnyStr] | None = None
        self.terminal: IO[bytes] | None = None
        """Our end of its terminal, where it has one; unbuffered."""
        self._copier: Copier | None = None
        """Copies what gVisor cannot be given as it is: regular files."""
        self.returncode: int | None = None
        """Its exit code (128 + signal when a signal ended it); None while it runs."""
        self._lost: RunscFailed | SandboxGone | None = None
        """Why nobody will know how it ended."""
        self.alone = True
        sandbox._commands[id(self)] = self  # before one looks: of two that start at once, one sees the other at least
        for process in sandbox._running():
            if process is not self:
                process.alone = self.alone = False

    def take(self, pipes: Pipes, text: bool) -> None:
        """Make files of our ends of the pipes, or of the terminal."""
        if pipes.terminal:
            ours, pipes.ours[1] = pipes.ours[1], -1
            self.terminal = open(ours, "r+b", buffering=0)  # noqa: SIM115
            return
        copier = pipes.copier() if pipes.copies else None
        names: tuple[tuple[str, str], ...] = (("stdin", "wb"), ("stdout", "rb"), ("stderr", "rb"))
        for number, (name, how) in enumerate(names):
            fd, pipes.ours[number] = pipes.ours[number], -1
            if fd >= 0:
                file: IO[Any] = open(fd, how)  # noqa: SIM115
                setattr(self, name, io.TextIOWrapper(file, "utf-8", "replace", write_through=True) if text else file)
        if copier is not None:
            self._copier = Copier(copier, os.dup(self.command.channel))
            self._copier.start()

    @property
    def runs(self) -> bool:
        """Does it run still; unlike `poll` it leaves everything as it is."""
        return self.returncode is None and self.command.runs(time.monotonic())

    def poll(self) -> int | None:
        """`returncode`, looking whether there is one; CopyFailed as `wait`."""
        return self._finished(time.monotonic())

    def wait(self, timeout: float | None = None) -> int:
        """The returncode, when the command has ended; TimeoutExpired after `timeout` seconds, with it still running.

        CopyFailed when it has ended, but a file that it was given could not be written, or read, to the end.
        """
        code = self._finished(deadline_of(timeout))
        if code is None:
            raise TimeoutExpired(list(self.args), timeout or 0)
        return code

    def _finished(self, deadline: float | None, *captured: Any) -> int | None:
        """`_ended`, and all that it wrote is where it belongs."""
        code = self._ended(deadline)
        if code is None or self._copier is None:
            return code
        self._copier.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if self._copier.is_alive():
            return None
        if self._copier.failed is not None:
            raise CopyFailed(self.args, *self._copier.failed, *(captured or (None, None))) from self._copier.failed[1]
        return code

    def _ended(self, deadline: float | None) -> int | None:
        """The returncode; None when `deadline` came first. Several threads, and handlers, may ask at once.

        Spec: SandboxLife!HearsStatus, HearsEnd.
        """
        if self.returncode is None and not self.command.runs(deadline) and self._command_ended():
            code = self.command.returncode
            assert code is not None
            if code < 0:
                self._lose()
            if code == RUNSC_FAILED:
                self._sandbox._see_that_it_lives()
            self.returncode = code
        return self.returncode

    def _lose(self) -> NoReturn:
        """Somebody killed runsc's client of the command, which runs on in the guest: end it too, and say so.

        Whom it started, and whom a command that came since, nobody can tell apart any more.

        Spec: SandboxLife!AfterLoss.
        """
        if self._lost is None:
            self._sandbox._see_that_it_lives()
            self._sandbox._end_tree(self.command, lambda: False)
            if self._sandbox.closed:
                self._lost = self._sandbox._gone("the sandbox was ended: runsc's client of a command was killed")
            else:
                self._lost = RunscFailed("runsc's client of the command was killed, and so the command was ended")
        raise self._lost

    def _command_ended(self) -> bool:
        try:
            return self.command.ended(time.monotonic())
        except SandboxGone as error:
            raise self._sandbox._gone(str(error)) from None

    def communicate(
        self, input: Data | None = None, timeout: float | None = None, *, max_output: int = MAX_OUTPUT
    ) -> tuple[AnyStr | None, AnyStr | None]:
        """Feed it `input`, read what it writes, and wait for its end; (stdout, stderr), None for what is not a pipe.

        TimeoutExpired and OutputLimit as in `Sandbox.exec`; the command is then ended. ValueError on a terminal, where
        input has no end.
        """
        if self.terminal is not None:
            raise ValueError("a terminal is read and written by hand")
        deadline = deadline_of(timeout)
        text = isinstance(self.stdout or self.stderr or self.stdin, io.TextIOWrapper)
        given = input.encode() if isinstance(input, str) else (input or b"")
        copies = [-1 if file is None else os.dup(file.fileno()) for file in (self.stdin, self.stdout, self.stderr)]
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                file.close()
        with Capture({fd: max_output for fd in copies[1:] if fd >= 0}, copies[0], given) as capture:
            try:
                in_time = capture.run(self.command.channel, deadline) and self._ended(deadline) is not None
            finally:
                if self.returncode is None:
                    self.kill()
            capture.drain()
            results: list[Any] = [None if fd < 0 else decoded(capture.output[fd], text) for fd in copies[1:]]
            out, err = results
        if capture.exceeded:
            raise OutputLimit(self.args, max_output, out, err)
        if not in_time:
            raise TimeoutExpired(list(self.args), timeout or 0, out, err)
        if self._finished(deadline, out, err) is None:
            raise TimeoutExpired(list(self.args), timeout or 0, out, err)
        return out, err

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of its terminal, which the guest is told by SIGWINCH."""
        if self.terminal is None:
            raise ValueError("the process has no terminal")
        termios.tcsetwinsize(self.terminal, (rows, columns))

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing happens once it has ended."""
        if self._ended(time.monotonic()) is None:
            try:
                self._sandbox.signal(number, self.pid)
            except (RunscFailed, SandboxGone):
                if self._ended(time.monotonic() + 1) is None:
                    raise

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signals.SIGTERM)

    def kill(self) -> None:
        """End it, and all that it has started, and wait for that.

        The whole sandbox ends where that is not known: when it has detached processes while other commands ran beside
        it, when it cannot be told whether it was this command that has detached one, and when there are more than
        MAX_TREE of them.
        """
        try:
            if self._ended(time.monotonic()) is None:
                self._sandbox._end_tree(self.command, lambda: self.alone)
                if self._ended(time.monotonic() + PATIENCE) is None:
                    self._sandbox._end()
                    self._ended(None)
        except SandboxGone:
            self.returncode = 128 + signals.SIGKILL  # with all that there was
        except RunscFailed:
            if self._lost is None:
                raise
            self.returncode = 128 + signals.SIGKILL

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.kill()
        for file in (self.stdin, self.stdout, self.stderr, self.terminal):
            if file is not None:
                with suppress(BrokenPipeError):
                    file.close()
        if kind is None:
            self.wait()

    def __repr__(self) -> str:
        return f"<GuestProcess {list(self.args)} pid={self.pid} returncode={self.returncode}>"


def _place_for_programs(asked: Request) -> str:
    """Where the guest sees our program: a directory of its own, or, so that none has to be made, an empty one.

    Nothing is made in a rootfs: only a launch that is locked can have the guest see a directory which is not there.
    """
    rootfs, options = asked.how["rootfs"], asked.options
    writable = None if asked.how["readonly"] else options.writable
    made = writable is not Writable.HOST and (options.confinement, options.enforcement) == (
        Confinement.MOUNT_LOCKED,
        Enforcement.REQUIRED,
    )
    if rootfs is None or (made and writable is not None):  # what an empty directory is covered with cannot be written
        return guest.DIRECTORY
    root = os.fsdecode(rootfs)
    names = [guest.DIRECTORY[1:], "mnt", "media", "srv"]
    if writable is None:
        with suppress(OSError):  # the launch says what is wrong with it
            names += sorted(name for name in os.listdir(root) if f"/{name}" not in ("/proc", "/dev", "/sys", "/tmp"))
    for name in names:
        path = os.path.join(root, name)
        with suppress(OSError):
            if not os.path.islink(path) and (not os.listdir(path) or f"/{name}" == guest.DIRECTORY):
                return f"/{name}"
    return guest.DIRECTORY


def processes(table: str) -> list[Process]:
    """The rows of `runsc ps`, read by the names in its header: releases differ in their columns."""
    header, *rows = table.split("\n")
    names = header.split()
    found = []
    for row in rows:
        words = dict(zip(names, row.split(maxsplit=len(names) - 1), strict=False))
        numbers = [words.get(name, "") for name in ("PID", "PPID", "UID")]
        if all(number.isascii() and number.isdigit() for number in numbers):
            pid, ppid, uid = map(int, numbers)
            found.append(Process(pid, ppid, uid, words.get("CMD", "").strip()))
    return found


def _descendants(processes: list[Process], roots: list[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for process in processes:
        children.setdefault(process.ppid, []).append(process.pid)
    found = [process.pid for process in processes if process.pid in roots]
    pending = list(roots)
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return [number for number in found if number != 1]  # a forged line could name the init


class _Held:
    """What a sandbox holds on the host: its processes, and our ends of pipes."""

    process: SandboxProcess | None = None
    alive: Descriptor
    """Of a pipe whose other end the guest's kernel has."""
    stderr: Descriptor
    """Of a pipe whose other end is runsc's standard error."""

    def __init__(self, attendant: Attendant) -> None:
        self.attendant = attendant

    def clean_up(self) -> None:
        """End and close it all. Each part can be done again, so that all of it can, wherever it was interrupted.

        Spec: SandboxLife!CloseBegins, CloseKills, CloseReaps, CloseReturns.
        """
        self.attendant.hang_up()
        self.attendant.await_end()
        if self.process is not None:
            self.process.end()
        self.attendant.dismiss()
        if self.process is not None:
            self.process.end_orphans(living=True)
        ends = [end for name in ("alive", "stderr") if (end := self.__dict__.get(name)) is not None]
        if self.process is not None:
            with self.alive.use() as fd:
                # The guest's kernel has ended when nobody holds the other end.
                if fd >= 0:
                    readable(fd, time.monotonic() + PATIENCE)
        for end in ends:
            end.close()
        if self.process is not None and self.process.workspace is not None:
            self.process.workspace.close()


def _clean_up_dropped(held: _Held, owner: int, name: str) -> None:
    """For a sandbox that nobody can use any more, or that is there when the interpreter ends."""
    if os.getpid() == owner:
        try:
            warnings.warn(f"sandbox {name} was not closed", ResourceWarning, stacklevel=2)
        finally:  # a warning may be an error
            held.clean_up()


class Copier(threading.Thread):
    """Copies until descriptor `until` is readable, and closes what it has then."""

    def __init__(self, capture: Capture, until: int) -> None:
        super().__init__(name="nucleus-gvisor", daemon=True)
        self._capture, self._until = capture, until

    @property
    def failed(self) -> tuple[str, OSError] | None:
        """The stream whose copy could not be made, and why."""
        return self._capture.failed

    def run(self) -> None:
        try:
            with self._capture:
                self._capture.run(self._until, None)
        finally:
            os.close(self._until)


def _memory(data: bytes) -> IO[bytes]:
    """A file in memory, for a command to open by /proc/self/fd."""
    file = open(os.memfd_create("process", os.MFD_CLOEXEC), "wb")  # noqa: SIM115
    file.write(data)
    file.flush()
    return file
