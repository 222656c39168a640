"""The same on asyncio: `arun` for one command, `AsyncSandbox` for a sandbox that lives.

A guest costs no thread: what is waited for is descriptors, and the loop waits for them. What blocks for a while, a
launch above all, is done by a few threads that all sandboxes share.

Cancelling, at whichever `await`, ends what the call has begun and waits until it has ended: a guest that starts is
launched to the end and then ended. A coroutine that is thrown away, because its loop was closed, does so at once and
without the loop.
"""

import asyncio
import errno
import os
import select
import signal as signals
import sys
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any, Literal, Self, Unpack, overload

from nucleus_gvisor.runtime.accounts import User
from nucleus_gvisor.runtime.attendant import PATIENCE, Command
from nucleus_gvisor.runtime.audit import Record
from nucleus_gvisor.runtime.bundle import HostPath
from nucleus_gvisor.runtime.capture import (
    CHUNK,
    DEVNULL,
    MAX_OUTPUT,
    PIPE,
    Capture,
    Data,
    Pipes,
    Redirection,
    readable,
)
from nucleus_gvisor.runtime.errors import NoEventLoop, OutputLimit, SandboxGone, TimeoutExpired
from nucleus_gvisor.runtime.files import (
    MAX_FILE,
    Agent,
    Ask,
    Conversation,
    FileStat,
    Lost,
    Names,
    Result,
    Steps,
    Walk,
    changing_mode,
    globbing,
    listing,
    making,
    making_parents,
    moving,
    paging,
    reading,
    receiving,
    removing,
    sending,
    status,
    writing,
)
from nucleus_gvisor.runtime.request import (
    Environment,
    SandboxOptions,
    Words,
    deadline_of,
    directory,
    left,
    request,
    seconds,
    sync_of,
    words_of,
)
from nucleus_gvisor.runtime.sandbox import (
    Completed,
    CompletedRun,
    ExecOptions,
    GuestProcess,
    LivingOptions,
    Process,
    RunOptions,
    Sandbox,
    ended,
    launched,
)
from nucleus_gvisor.runtime.trees import LONGEST, Copying, to_get, to_put
from nucleus_gvisor.runtime.workspace import Changes, Sync

MAX_LINE = 1 << 20
"""Bytes of a longer line are given as lines of their own."""


# ---- threads ----


def _new_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4 + 2 * (os.cpu_count() or 1), "nucleus-gvisor")


# It is never shut down: a guest of `arun` ends with the thread that has launched it.
_pool = _new_pool()


def _after_fork() -> None:
    global _pool
    _pool = _new_pool()  # a fork has none of its parent's threads


os.register_at_fork(after_in_child=_after_fork)


def _set(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _until_done(future: Future[Any], orphaned: Callable[[], object] = lambda: None) -> None:
    """Wait for the work of a thread; to be cancelled leaves it running. `orphaned` is called there if nobody waits."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: Future[Any]) -> None:
        try:
            loop.call_soon_threadsafe(_set, waiter)
        except RuntimeError:  # the loop was closed
            orphaned()

    future.add_done_callback(wake)
    await waiter


async def _finish(work: Callable[[], Result]) -> Result:
    """Have `work` done in a thread, whatever comes meanwhile: a cancellation is raised afterwards."""
    if isinstance(sys.exception(), GeneratorExit):
        return work()  # nobody runs this coroutine any more
    future: Future[Result] | None = None
    cancelled = False
    try:
        try:
            future = _pool.submit(work)
        except RuntimeError:
            return work()  # the interpreter ends, and starts no threads
        while not future.done():
            try:
                await _until_done(future)
            except asyncio.CancelledError:
                cancelled = True  # kept itself, it would keep this frame, and all that `work` holds
    except KeyboardInterrupt:  # pragma: no cover - the test that strikes every line takes the tracing from coverage
        if future is not None:
            futures.wait([future])  # the second Ctrl-C ends the loop, which cannot wait any more
        raise
    result = future.result()
    if cancelled:
        raise asyncio.CancelledError
    return result


def _see_asyncio() -> None:
    """NoEventLoop unless a loop of asyncio's runs: nothing may be begun that nobody can wait for."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise NoEventLoop("no asyncio event loop runs here: use asyncio.run, or `run` and `Sandbox`") from None


async def _made(make: Callable[[], Result], discard: Callable[[Result], object]) -> Result:
    """What `make` makes in a thread; to be cancelled means that it did not, or that it was discarded, once or twice."""
    _see_asyncio()

    future: Future[Result] | None = None

    def undo() -> None:
        if future is not None and not future.cancelled() and future.exception() is None:
            discard(future.result())

    try:
        future = _pool.submit(make)
        await _until_done(future, undo)
    except BaseException:
        if future is not None and not future.cancel():
            await _finish(undo)
        raise
    return future.result()


async def _call(work: Callable[[], Result]) -> Result:
    """What `work`, which leaves nothing behind, returns in a thread."""
    return await _made(work, lambda _: None)


# ---- descriptors ----


async def _ready(fd: int, event: int, deadline: float | None) -> bool:
    """Wait for `event` of poll(2) on `fd`, for one turn of the loop at least; False when `deadline` came first."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    own = os.dup(fd)  # others may wait for the same, or close it meanwhile
    try:
        (loop.add_reader if event == select.POLLIN else loop.add_writer)(own, _set, waiter)
        done, _ = await asyncio.wait([waiter], timeout=left(deadline))
        return bool(done)
    finally:
        loop.remove_reader(own)
        loop.remove_writer(own)
        os.close(own)


async def _resumed(box: Sandbox, deadline: float | None) -> bool:
    """As `Sandbox._await_resumed`."""
    loop = asyncio.get_running_loop()
    while (gate := box._gate) is not None:
        waiter = loop.create_future()
        with gate.use() as fd, box._process.use() as pidfd:
            if fd < 0:
                continue
            if pidfd < 0:
                break
            own = [os.dup(fd), os.dup(pidfd)]
            try:
                for awaited in own:
                    loop.add_reader(awaited, _set, waiter)
                done, _ = await asyncio.wait([waiter], timeout=left(deadline))
            finally:
                for awaited in own:
                    loop.remove_reader(awaited)
                    os.close(awaited)
            if not done:
                return False
            if readable(pidfd, time.monotonic()):
                break
    return True


async def _copied(capture: Capture, until: int, deadline: float | None) -> bool:
    """As `Capture.run`."""
    if until < 0:
        return capture.run(until, deadline)
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    watched: dict[int, Callable[[int], bool]] = {}

    def move(fd: int) -> None:
        try:
            if not capture.move(fd):
                watched.pop(fd)(fd)
                capture.stop(fd)
        except OSError as error:
            waiter.set_exception(error)
        if capture.stopped:
            _set(waiter)

    own = os.dup(until)
    try:
        watched[own] = loop.remove_reader
        loop.add_reader(own, _set, waiter)
        for fd, event in capture.waiting().items():
            reads = event == select.POLLIN
            watched[fd] = loop.remove_reader if reads else loop.remove_writer
            (loop.add_reader if reads else loop.add_writer)(fd, move, fd)
        done, _ = await asyncio.wait([waiter], timeout=left(deadline))
    finally:
        for fd, forget in watched.items():
            forget(fd)
        os.close(own)
    if not done:
        return False
    waiter.result()
    if not capture.stopped:
        capture.drain()
    return not capture.stopped


# ---- run ----


@overload
async def arun(
    args: Sequence[HostPath],
    *,
    stdout: None = None,
    stderr: None = None,
    capture_output: Literal[True] = True,
    text: Literal[True] = True,
    **options: Unpack[RunOptions],
) -> CompletedRun[str]: ...


@overload
async def arun(
    args: Sequence[HostPath],
    *,
    stdout: None = None,
    stderr: None = None,
    capture_output: Literal[True] = True,
    text: Literal[False],
    **options: Unpack[RunOptions],
) -> CompletedRun[bytes]: ...


@overload
async def arun(
    args: Sequence[HostPath],
    *,
    stdout: Redirection = None,
    stderr: Redirection = None,
    capture_output: bool = True,
    text: Literal[True] = True,
    **options: Unpack[RunOptions],
) -> CompletedRun[str | None]: ...


@overload
async def arun(
    args: Sequence[HostPath],
    *,
    stdout: Redirection = None,
    stderr: Redirection = None,
    capture_output: bool = True,
    text: Literal[False],
    **options: Unpack[RunOptions],
) -> CompletedRun[bytes | None]: ...


@overload
async def arun(
    args: Sequence[HostPath],
    *,
    stdout: Redirection = None,
    stderr: Redirection = None,
    capture_output: bool = True,
    text: bool = True,
    **options: Unpack[RunOptions],
) -> CompletedRun[str | None] | CompletedRun[bytes | None]: ...


async def arun(
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
    """As `run`. To be cancelled, by `asyncio.timeout` for one, ends the guest first.

    NoEventLoop outside asyncio, before anything is begun.
    """
    _see_asyncio()
    asked = request(**options)
    when = sync_of(sync, asked.how["copied"])
    seconds(timeout)
    pipes = Pipes.redirected(input, stdin, stdout, stderr, capture_output)
    try:
        words, process = await _made(lambda: launched(asked, args, pipes), lambda made: made[1].end())
        try:
            pipes.started()
            deadline = deadline_of(timeout)
            with pipes.capture(max_output) as capture:
                in_time = await _copied(capture, process.pidfd, deadline)
                if not in_time:
                    process.kill()
                code = await _finish(process.wait)

                def end() -> CompletedRun[Any]:
                    return ended(process, words, code, pipes, capture, in_time, timeout, check, text, max_output, when)

                return end() if process.workspace is None else await _finish(end)
        finally:
            if process.pidfd >= 0:  # not all of it has gone
                await _finish(process.end)
            if process.workspace is not None:
                process.workspace.close()
    finally:
        pipes.close()


# ---- a sandbox that lives ----


class AsyncSandbox:
    """`Sandbox` on asyncio; the arguments are the same, and all are named. It starts when it is entered or awaited:

        async with AsyncSandbox(mounts=["/data:/data:ro"]) as box:
            out, err = await box.exec("cat", "/data/input.txt")

    or `box = await AsyncSandbox()` with `await box.close()` in the end. Methods do, return and raise what those of
    `Sandbox` do; several tasks may use them at once.
    """

    def __init__(self, **options: Unpack[LivingOptions]) -> None:
        self._make: Callable[[], Sandbox] = lambda: Sandbox(**options)
        self._started = False
        self._made: Sandbox | None = None

    @classmethod
    def restore(cls, directory: HostPath, **options: Unpack[LivingOptions]) -> Self:
        """A sandbox that goes on where `checkpoint` wrote `directory`, when it is entered or awaited."""
        self = cls(**options)
        self._make = lambda: Sandbox.restore(directory, **options)
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._start().__await__()

    async def _start(self) -> Self:
        if self._started:
            raise RuntimeError("a sandbox starts once")
        self._started = True
        self._made = await _made(self._make, Sandbox.close)
        return self

    @property
    def _box(self) -> Sandbox:
        if self._made is None:
            raise RuntimeError("the sandbox was not started: await it, or enter it with `async with`")
        return self._made

    @property
    def id(self) -> str:
        """The container id."""
        return self._box.id

    @property
    def pid(self) -> int:
        """Process id of the supervisor (runsc)."""
        return self._box.pid

    @property
    def record(self) -> Record:
        """What the launch left in writing."""
        return self._box.record

    @property
    def achieved(self) -> str:
        """The confinement that was achieved and proved."""
        return self._box.achieved

    @property
    def achieved_scope(self) -> str:
        """What was achieved of `signal_scope`: `signals+abstract` or `none`."""
        return self._box.achieved_scope

    @property
    def achieved_limits(self) -> Mapping[str, str]:
        """By what each limit that was asked for is kept."""
        return self._box.achieved_limits

    @property
    def achieved_root(self) -> str:
        """What the guest's root is: `read-only`, or where its writes go (`Writable`)."""
        return self._box.achieved_root

    @property
    def closed(self) -> bool:
        """Has it ended, by `close` or by itself."""
        return self._box.closed

    # ---- commands ----

    @overload
    async def exec(
        self, cmd: Words, *args: HostPath, text: Literal[True] = True, **options: Unpack[ExecOptions]
    ) -> Completed[str]: ...

    @overload
    async def exec(
        self, cmd: Words, *args: HostPath, text: Literal[False], **options: Unpack[ExecOptions]
    ) -> Completed[bytes]: ...

    @overload
    async def exec(
        self, cmd: Words, *args: HostPath, text: bool, **options: Unpack[ExecOptions]
    ) -> Completed[str] | Completed[bytes]: ...

    async def exec(
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
        """Run a command to its end. To be cancelled ends it first, and what it has started, as a timeout does."""
        words = words_of(cmd, args)
        seconds(timeout)
        return await self._execute(words, Pipes(input), env, cwd, user, timeout, check, text, max_output)

    async def _execute(
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
            process = await self._begin(words, pipes, env, cwd, user, deadline)
            with pipes.capture(max_output) as capture:
                try:
                    in_time = process is not None and await _copied(capture, process.command.channel, deadline)
                    if process is not None and in_time:
                        process.wait()
                except SandboxGone as error:
                    capture.drain()
                    error.stdout, error.stderr = pipes.results(capture, text)
                    raise
                finally:
                    if process is not None and process.returncode is None:
                        await _finish(process.kill)
                    over = True
                code = None if process is None or not in_time else process.returncode
                return self._box._executed(said or words, code, pipes, capture, timeout, check, text, max_output)
        except BaseException:
            if process is not None and not over:  # it was interrupted between two lines
                await _finish(process.kill)
            raise
        finally:
            pipes.close()

    async def popen(
        self,
        args: Words,
        *more: HostPath,
        stdin: Redirection = None,
        stdout: Redirection = None,
        stderr: Redirection = None,
        env: Environment | None = None,
        cwd: str | None = None,
        user: User | None = None,
        pty: bool = False,
        window: tuple[int, int] = (24, 80),
    ) -> "AsyncGuestProcess":
        """Start a command; returns once it runs. Streams are bytes; a command that is cancelled later goes on, unless
        it is used with `async with`.

        With `pty` its streams are a terminal of `window` rows and columns: what is written to `stdin` is typed, and
        `stdout` has all that it shows, to the moment where nobody in the guest holds it any more.
        """
        words = words_of(args, more)
        process, pipes = None, Pipes.of(stdin, stdout, stderr, False, pty, window)
        try:
            try:
                process = await self._begin(words, pipes, env, cwd, user, None)
                assert process is not None
                process.take(pipes, text=False)
            finally:
                pipes.close()
            return AsyncGuestProcess(process)
        except BaseException:
            if process is not None:
                await _finish(process.kill)
            raise

    async def _begin(
        self,
        args: Sequence[HostPath],
        pipes: Pipes,
        env: Environment | None,
        cwd: str | None,
        user: User | None,
        deadline: float | None,
    ) -> GuestProcess[Any] | None:
        """As `Sandbox._start`."""
        _see_asyncio()
        box = self._box
        held: list[Command] = []
        started: GuestProcess[Any] | None = None
        try:
            while not held:
                if not await _resumed(box, deadline):
                    return None
                with box._starting():
                    if box._gate is not None and not box.closed:
                        continue
                    words = box._send(held, args, pipes, env, cwd, user)
                    (command,) = held
                    in_time = await _ready(command.channel, select.POLLIN, deadline)
                    in_time = in_time or await _ready(command.channel, select.POLLIN, time.monotonic() + PATIENCE)
                    if in_time:
                        command.begun(pipes.to_come, pipes.take)
                    if command.pid is not None:
                        started = GuestProcess[Any](box, words, command.pid, command)
                        if deadline is None or time.monotonic() < deadline:
                            return started
            if started is not None:
                await _finish(started.kill)
                return None
            if not in_time:
                box.kill()
                return None
            return await _finish(lambda: box._refuse(words, command, pipes))
        except BaseException:
            await _finish((lambda: box._unsend(held, pipes)) if started is None else started.kill)
            raise

    # ---- files ----

    @property
    def files(self) -> "AsyncFiles":
        """What is in the guest's directories, and what can be done with it."""
        return AsyncFiles(self)

    async def read_file(
        self, path: str, *, max_bytes: int = MAX_FILE, timeout: float | None = None, special: bool = False
    ) -> bytes:
        """The bytes of a file in the guest; see `Sandbox.read_file`."""
        deadline = deadline_of(timeout)
        if not special:
            return await self._do("read_file", reading(directory(path, "path"), max_bytes), timeout, deadline)
        copying = Copying("R", Pipes.redirected(None, None, PIPE, DEVNULL, False))
        return (await self._copy("read_file", path, copying, timeout, deadline, max_bytes)).stdout

    async def write_file(
        self,
        path: str,
        data: Data,
        *,
        mode: int | None = None,
        parents: bool = False,
        timeout: float | None = None,
        special: bool = False,
    ) -> None:
        """Make or overwrite a file in the guest; see `Sandbox.write_file`."""
        deadline, where = deadline_of(timeout), directory(path, "path")
        if not special:
            return await self._do("write_file", writing(where, data, mode, parents), timeout, deadline)
        if parents:
            await self._do("write_file", making_parents(where), timeout, deadline)
        await self._copy("write_file", path, Copying("W", Pipes(data)), timeout, deadline)
        if mode is not None:
            await self._do("write_file", changing_mode(where, mode), timeout, deadline)

    async def put(
        self, source: HostPath, path: str, *, timeout: float | None = None, special: bool = False
    ) -> tuple[str, ...]:
        """Copy the file or the directory `source` of the host to `path` in the guest; see `Sandbox.put`."""
        deadline = deadline_of(timeout)
        with to_put(source, special) as copying:
            if copying.pieces is not None:
                await self._do("put", sending(directory(path, "path"), copying.pieces), timeout, deadline)
            else:
                await self._copy("put", path, copying, timeout, deadline, LONGEST)
        return tuple(copying.left_out)

    async def get(
        self,
        path: str,
        target: HostPath,
        *,
        max_bytes: int = MAX_FILE,
        timeout: float | None = None,
        special: bool = False,
    ) -> tuple[str, ...]:
        """Copy the file or the directory `path` of the guest to `target` on the host; see `Sandbox.get`."""
        deadline = deadline_of(timeout)
        with to_get(target, max_bytes, special) as (copying, file):
            try:
                if not special:
                    await self._do("get", receiving(directory(path, "path"), file, max_bytes), timeout, deadline)
            except IsADirectoryError:
                special = True
            if special:
                await self._copy("get", path, copying, timeout, deadline, max_bytes)
        return tuple(copying.left_out)

    async def _copy(
        self, name: str, path: str, copying: Copying, timeout: float | None, deadline: float | None, limit: int = 0
    ) -> Completed[bytes]:
        """As `Sandbox._copy`."""
        try:
            where = directory(path, "path")
            done: Completed[bytes] = await self._execute(
                [self._box._program, copying.word, where],
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

    async def _do(self, name: str, steps: Steps[Result], timeout: float | None, deadline: float | None) -> Result:
        """As `Sandbox._do`."""
        try:
            ask = next(steps)
            while True:
                try:
                    answer = await self._ask_agent((name, ask.path), ask, timeout, deadline)
                except OSError as error:
                    ask = steps.throw(error)
                else:
                    ask = steps.send(answer)
        except StopIteration as stop:
            result: Result = stop.value
            return result

    async def _ask_agent(self, said: tuple[str, str], ask: Ask, timeout: float | None, deadline: float | None) -> bytes:
        """As `Sandbox._ask_agent`."""
        _see_asyncio()
        box = self._box
        in_time = await _resumed(box, deadline)
        agent = box._idle_agent()
        was_idle = agent is not None
        try:
            if agent is None and in_time:
                agent = await self._new_agent(deadline)
            if agent is None or not in_time:
                raise TimeoutExpired(list(said), timeout or 0)
            talk = Conversation(agent, ask, said)
            while (awaited := talk.step()) is not None:
                if not await _ready(*awaited, deadline):
                    raise TimeoutExpired(list(said), timeout or 0)
        except BaseException as error:
            if agent is not None:
                unheard = agent
                await _finish(lambda: box._end_agent(unheard))
            if not isinstance(error, Lost):
                raise
            if not (was_idle and talk.can_repeat):
                raise await _call(lambda: box._lost(said)) from None
            return await self._ask_agent(said, ask, timeout, deadline)
        return box._answered(agent, talk, ask)

    async def _new_agent(self, deadline: float | None) -> Agent | None:
        """As `Sandbox._new_agent`."""
        pipes = Pipes.redirected(None, PIPE, PIPE, DEVNULL, False)
        try:
            process = await self._begin([self._box._program, "a"], pipes, None, None, None, deadline)
            return None if process is None else self._box._met(process, pipes)
        finally:
            pipes.close()

    # ---- the sandbox as a whole ----

    async def ps(self) -> list[Process]:
        """The guest's processes; see `Sandbox.ps`."""
        return await _call(self._box.ps)

    async def stats(self) -> dict[str, Any]:
        """What runsc counts: memory in bytes, processor time in nanoseconds, processes."""
        return await _call(self._box.stats)

    async def pause(self) -> None:
        """Stop every process of the guest where it is. Commands started meanwhile wait."""
        await _call(self._box.pause)

    async def resume(self) -> None:
        """Let them go on."""
        await _call(self._box.resume)

    async def diff(self) -> Changes:
        """As `Sandbox.diff`."""
        return await _call(self._box.diff)

    async def sync(self) -> Changes:
        """As `Sandbox.sync`. To be cancelled does not end it: it is all written, or nothing is, and then raised."""
        return await _finish(self._box.sync)

    async def checkpoint(
        self, directory: HostPath, *, leave_running: bool = False, include_secrets: bool = False
    ) -> None:
        """Write the guest to `directory` on the host, for `restore`. To be cancelled waits for the end of it first."""
        await _call(
            lambda: self._box.checkpoint(directory, leave_running=leave_running, include_secrets=include_secrets)
        )

    async def signal(self, number: int, pid: int | None = None) -> None:
        """Send a signal to process `pid` of the guest, in the guest's numbers; to all of them when None."""
        await _call(lambda: self._box.signal(number, pid))

    def kill(self) -> None:
        """End the sandbox at once. `close` does so too, and cleans up."""
        self._box.kill()

    async def wait(self) -> int:
        """Wait until the sandbox has ended by itself; its init's exit code."""
        process = self._box._process
        while (code := process.poll()) is None:
            await _ready(process.pidfd, select.POLLIN, None)
        return code

    async def close(self) -> None:
        """End the sandbox and remove what it had on the host, but for its record. Once is enough."""
        if self._made is not None:
            await _finish(self._made.close)

    async def __aenter__(self) -> Self:
        return await self if self._made is None else self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncSandbox {self._made!r}>"


class AsyncFiles:
    """`Files` on asyncio: `AsyncSandbox.files`. The methods do, return and raise what those of `Files` do."""

    def __init__(self, box: AsyncSandbox) -> None:
        self._box = box

    async def read(self, path: str, *, max_bytes: int = MAX_FILE, timeout: float | None = None) -> bytes:
        """The bytes of a regular file."""
        return await self._box.read_file(self._at(path), max_bytes=max_bytes, timeout=timeout)

    async def read_text(
        self,
        path: str,
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        max_bytes: int = MAX_FILE,
        timeout: float | None = None,
    ) -> str:
        """The text of a regular file."""
        return (await self.read(path, max_bytes=max_bytes, timeout=timeout)).decode(encoding, errors)

    async def write(
        self, path: str, data: Data, *, mode: int | None = None, parents: bool = False, timeout: float | None = None
    ) -> None:
        """Make or overwrite a regular file."""
        await self._box.write_file(self._at(path), data, mode=mode, parents=parents, timeout=timeout)

    async def stat(self, path: str, *, follow_symlinks: bool = True, timeout: float | None = None) -> FileStat:
        """What the guest says of a file, or of what a link leads to."""
        return await self._do("stat", status(self._at(path), follow_symlinks), timeout)

    async def list(self, path: str = ".", *, timeout: float | None = None) -> tuple[FileStat, ...]:
        """A directory's entries, sorted by name."""
        return await self._do("list", listing(self._at(path)), timeout)

    async def mkdir(
        self,
        path: str,
        mode: int = 0o777,
        *,
        parents: bool = False,
        exist_ok: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Make a directory."""
        await self._do("mkdir", making(self._at(path), mode, parents, exist_ok), timeout)

    async def remove(
        self, path: str, *, recursive: bool = False, missing_ok: bool = False, timeout: float | None = None
    ) -> None:
        """Remove a file, a link or an empty directory; with `recursive` a directory with all that is in it."""
        await self._do("remove", removing(self._at(path), recursive, missing_ok), timeout)

    async def move(self, source: str, target: str, *, timeout: float | None = None) -> None:
        """Rename a file or a directory."""
        await self._do("move", moving(self._at(source), self._at(target)), timeout)

    async def glob(self, pattern: str, *, timeout: float | None = None) -> tuple[str, ...]:
        """The absolute paths that match, sorted."""
        return await self._do("glob", globbing(self._at("."), pattern), timeout)

    async def walk(self, path: str = ".", *, timeout: float | None = None) -> AsyncIterator[tuple[str, Names, Names]]:
        """A directory's path, its directories and its other files, and the same for each directory below."""
        walk = Walk(self._at(path))
        while (where := walk.next()) is not None:
            try:
                page = await self._do("walk", paging(where), timeout)
            except OSError:
                walk.failed(where)
            else:
                yield where, page.directories, page.others
                walk.enter(where, page)

    async def _do(self, name: str, steps: Steps[Result], timeout: float | None) -> Result:
        return await self._box._do(name, steps, timeout, deadline_of(timeout))

    def _at(self, path: str) -> str:
        return self._box._box._from_working_dir(path)

    def __repr__(self) -> str:
        return f"<AsyncFiles of {self._box!r}>"


# ---- a command that runs ----


class Output:
    """What a command writes: `async for` gives its lines, `read` gives pieces. Nothing is read before it is wanted."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.rest: bytes = b""
        os.set_blocking(file.fileno(), False)

    async def read(self, size: int = CHUNK) -> bytes:
        """Up to `size` bytes, as soon as there are any; b"" at the end."""
        while not self.rest:
            await _ready(self._file.fileno(), select.POLLIN, None)
            try:
                return os.read(self._file.fileno(), size)
            except BlockingIOError:
                pass  # another task was faster
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return b""  # nobody holds the guest's end of the terminal
        piece, self.rest = self.rest[:size], self.rest[size:]
        return piece

    async def readline(self) -> bytes:
        """A line with its end, or MAX_LINE bytes of it; b"" at the end."""
        while b"\n" not in self.rest and len(self.rest) < MAX_LINE:
            held, self.rest = self.rest, b""
            try:
                piece = await self.read()
            finally:
                self.rest = held + self.rest
            if not piece:
                break
            self.rest += piece
        size = min(self.rest.find(b"\n") + 1 or len(self.rest), MAX_LINE)
        line, self.rest = self.rest[:size], self.rest[size:]
        return line

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if line := await self.readline():
            return line
        raise StopAsyncIteration

    def close(self) -> None:
        """The command writes into nothing."""
        self._file.close()


class Input:
    """What a command reads."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        os.set_blocking(file.fileno(), False)

    async def write(self, data: bytes) -> None:
        """Return when the pipe has taken all of it; BrokenPipeError when nobody reads any more."""
        left = memoryview(data)
        while left:
            await _ready(self._file.fileno(), select.POLLOUT, None)
            with suppress(BlockingIOError):
                left = left[os.write(self._file.fileno(), left) :]

    def close(self) -> None:
        """The command comes to the end of its input."""
        self._file.close()


class AsyncGuestProcess:
    """A command that runs in a sandbox, as `asyncio.subprocess.Process` has it. Made by `AsyncSandbox.popen` alone."""

    def __init__(self, process: GuestProcess[bytes]) -> None:
        self._process = process
        stdin, stdout = process.stdin or process.terminal, process.stdout or process.terminal
        self.stdin: Input | None = None if stdin is None else Input(stdin)
        self.stdout: Output | None = None if stdout is None else Output(stdout)
        self.stderr: Output | None = None if process.stderr is None else Output(process.stderr)

    @property
    def args(self) -> tuple[str, ...]:
        """Its words."""
        return self._process.args

    @property
    def pid(self) -> int:
        """Its process id in the guest."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code (128 + signal when a signal ended it); None while it runs."""
        return self._process._ended(time.monotonic())

    async def wait(self) -> int:
        """The returncode, when the command has ended; CopyFailed as with `GuestProcess`. To be cancelled leaves it
        running."""
        while self.returncode is None:
            await _ready(self._process.command.channel, select.POLLIN, None)
        return await self._finished()

    async def _finished(self, *captured: Any) -> int:
        code = self._process._finished(time.monotonic(), *captured)
        if code is None:  # what copies for it has not ended
            code = await _call(lambda: self._process._finished(None, *captured))
        assert code is not None
        return code

    async def communicate(
        self, input: bytes = b"", timeout: float | None = None, *, max_output: int = MAX_OUTPUT
    ) -> tuple[bytes | None, bytes | None]:
        """Feed it `input`, read what it writes, and wait for its end; None for what is not a pipe.

        TimeoutExpired and OutputLimit as in `exec`; the command is then ended, as when this is cancelled. ValueError on
        a terminal, where input has no end.
        """
        if self._process.terminal is not None:
            raise ValueError("a terminal is read and written by hand")
        deadline = deadline_of(timeout)
        files = (self._process.stdin, self._process.stdout, self._process.stderr)
        fds = [-1 if file is None else os.dup(file.fileno()) for file in files]
        before = [b"" if output is None else output.rest for output in (self.stdout, self.stderr)]
        self._close()
        with Capture({fd: max_output for fd in fds[1:] if fd >= 0}, fds[0], input) as capture:
            try:
                in_time = (
                    await _copied(capture, self._process.command.channel, deadline) and self.returncode is not None
                )
            finally:
                if self._process.returncode is None:
                    await self.kill()
            capture.drain()
            out, err = (None if fd < 0 else rest + capture.output[fd] for fd, rest in zip(fds[1:], before, strict=True))
        if capture.exceeded:
            raise OutputLimit(self.args, max_output, out, err)
        if not in_time:
            raise TimeoutExpired(list(self.args), timeout or 0, out, err)
        await self._finished(out, err)
        return out, err

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of its terminal, which the guest is told by SIGWINCH."""
        self._process.resize(rows, columns)

    async def send_signal(self, number: int) -> None:
        """Send it a signal; nothing happens once it has ended."""
        await _call(lambda: self._process.send_signal(number))

    async def terminate(self) -> None:
        """Send it SIGTERM."""
        await self.send_signal(signals.SIGTERM)

    async def kill(self) -> None:
        """End it, and what it has started and that still descends from it, and wait for that."""
        await _finish(self._process.kill)

    def _close(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                if self.stdin is not None:
                    self.stdin.close()
                await self.wait()
        finally:
            try:
                if self._process.returncode is None:
                    await self.kill()
            finally:
                self._close()

    def __repr__(self) -> str:
        return f"<AsyncGuestProcess {list(self.args)} pid={self.pid} returncode={self._process.returncode}>"
