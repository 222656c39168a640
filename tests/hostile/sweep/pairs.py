"""Two signals at every pair of neighbouring system calls of an ending.

Some programs signal twice (GNU timeout), and users do: the second finds the handler of the first, or what that has
interrupted, in the middle. A fork of this process begins an ending, and from there on its main thread is traced
(ptrace(2)): as it enters a call, and the next one, it is signalled. It has to come to its end, whatever that was.
"""

import ctypes
import gc
import os
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nucleus_gvisor.runtime import Sandbox, cli, streams
from tests.e2e import launching

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_void_p]
# linux/ptrace.h
SYSCALL, SEIZE, INTERRUPT, SYSCALL_INFO = 24, 0x4206, 0x4207, 0x420E
OPTION_SYSGOOD, OPTION_EXITKILL, ENTRY = 1, 1 << 20, 1
_INFO = struct.Struct("=B23xQ")  # of struct ptrace_syscall_info: op, and the number of the call
SIGRETURN = 15 if os.uname().machine == "x86_64" else 139
"""What a handler ends in. Python's own, until then, only takes a note: what it calls is not told apart from that."""

SECONDS = 60.0
"""For an ending, which takes a twentieth of a second: more is a hang."""


def _ptrace(request: int, pid: int, address: int = 0, data: object = 0) -> int:
    result = int(_libc.ptrace(request, pid, address, data))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


@dataclass
class Ended:
    """One ending with signals in it."""

    calls: int = 0
    """How many calls it made, but for those of the interpreter's own handler."""
    sent: int = 0
    code: int | None = None
    """As subprocess has it; None: it hung, and was killed."""
    said: str = ""
    """What it wrote."""
    left: list[str] = field(default_factory=list)
    """What was there afterwards that was not before."""


class Mark:
    """Where a traced ending begins: its process says so, and waits to be traced."""

    def __init__(self) -> None:
        self._told, self._tells = os.pipe()
        self._waits, self._releases = os.pipe()

    def __call__(self) -> None:
        os.write(self._tells, b"x")
        os.read(self._waits, 1)

    def await_begin(self) -> bool:
        """False when it has not begun within a minute."""
        return bool(select.select([self._told], [], [], SECONDS)[0]) and bool(os.read(self._told, 1))

    def release(self) -> None:
        os.write(self._releases, b"x")

    def close(self) -> None:
        for fd in (self._told, self._tells, self._waits, self._releases):
            os.close(fd)


Work = Callable[[Mark], object]
"""What is ended: it calls the mark, and exits with what it returns."""


def end(work: Work, base: Path, number: int, at: Collection[int], seconds: float = SECONDS) -> Ended:
    """`work` in a fork of this process, whose main thread gets signal `number` as it enters each of the calls `at`."""
    before = launching.descendants(os.getpid())
    mark, (reader, writer) = Mark(), os.pipe()
    ended = Ended()
    gc.collect()
    pid = os.fork()
    if pid == 0:
        gc.disable()  # what earlier tests have left is not ended here: an interrupt of that is printed and forgotten
        _worked(work, mark, writer)
    os.close(writer)
    try:
        if mark.await_begin():
            _trace(pid, mark, number, at, ended, time.monotonic() + seconds)
        else:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        while piece := os.read(reader, 1 << 16):
            ended.said += piece.decode(errors="replace")
    finally:
        mark.close()
        os.close(reader)
    after = {p: what for p, what in launching.descendants(os.getpid()).items() if before.get(p) != what}
    ended.left = sorted(launching.gone(after).values())
    launching.reap()
    ended.left += [str(path) for path in base.rglob("*") if path.parent != base and "records" not in path.parts]
    return ended


def _worked(work: Work, mark: Mark, writer: int) -> None:
    """In the fork."""
    code = 1
    try:
        for fd in (1, 2):
            os.dup2(writer, fd)
        os.close(writer)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))
        code = int(work(mark) or 0)  # type: ignore[call-overload]
        sys.stdout.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _trace(pid: int, mark: Mark, number: int, at: Collection[int], ended: Ended, deadline: float) -> None:
    _ptrace(SEIZE, pid, 0, OPTION_SYSGOOD | OPTION_EXITKILL)
    _ptrace(INTERRUPT, pid)
    os.waitpid(pid, 0)
    mark.release()
    released = handles = False
    deliver = 0
    while True:
        with suppress(ProcessLookupError):  # it was killed in its stop
            _ptrace(SYSCALL, pid, 0, deliver)
        status = _waited(pid, deadline)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        if not os.WIFSTOPPED(status):
            ended.code = os.waitstatus_to_exitcode(status)
            return
        deliver, stopped = 0, os.WSTOPSIG(status)
        if stopped == signal.SIGTRAP | 0x80:
            entered = _entered(pid)
            if entered is None:
                released = True  # the first to come back is the read in which it waits
            elif entered == SIGRETURN:
                handles = False
            elif released and not handles:
                ended.calls += 1
                if ended.calls in at:
                    ended.sent += 1
                    os.kill(pid, number)
        elif status >> 16 == 0:
            deliver, handles = stopped, handles or stopped == number


def _entered(pid: int) -> int | None:
    """The number of the call before which it stops; None after one."""
    info = ctypes.create_string_buffer(88)
    _ptrace(SYSCALL_INFO, pid, len(info), ctypes.addressof(info))
    op, number = _INFO.unpack_from(info)
    return int(number) if op == ENTRY else None


def _waited(pid: int, deadline: float) -> int | None:
    pause = 0.00001
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > deadline:
            return None
        time.sleep(pause)
        pause = min(pause * 2, 0.01)


# ---- what ends ----


def command_line(words: list[str], *, timed: bool = False) -> Work:
    """`nucleus-gvisor run`, whose guest has ended or, `timed`, is ended by the first signal as by GNU timeout's."""

    def work(mark: Mark) -> int:
        real = streams.Relay.run

        def run(self: streams.Relay, pidfd: int, timeout: float | None, signalled: int) -> bool:
            if not timed:
                select.select([pidfd], [], [])
            mark()
            return real(self, pidfd, timeout, signalled)

        streams.Relay.run = run  # type: ignore[method-assign]
        return cli.main(["run", *words, "--", *(["sleep", "600"] if timed else ["true"])])

    return work


def closed_by_handler(**options: object) -> Work:
    """`Sandbox.close`, which the signal's handler calls too."""

    def work(mark: Mark) -> None:
        box = Sandbox(**options)  # type: ignore[arg-type]
        signal.signal(signal.SIGTERM, lambda *_: box.close())
        mark()
        box.close()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        box.close()
        print("closed" if box.closed else "open")

    return work


def closed_again(**options: object) -> Work:
    """`Sandbox.close`, which the signal's handler leaves by an exception, and which is then called again."""

    def work(mark: Mark) -> None:
        box = Sandbox(**options)  # type: ignore[arg-type]
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        mark()
        for _ in range(3):  # two signals, and one more
            with suppress(KeyboardInterrupt):
                box.close()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        box.close()
        print("closed" if box.closed else "open")

    return work


def kinds(runsc: Path, base: Path) -> dict[str, tuple[Work, frozenset[int]]]:
    """Each ending by name, with the calls at which it is always signalled."""
    words = ["--runsc", str(runsc), "--artifact-base", str(base), "--platform", "auto"]
    options = {"runsc": runsc, "runtime_dir": base}
    return {
        "command line": (command_line(words), frozenset()),
        "command line, timed": (command_line(words, timed=True), frozenset({1})),
        "close, and by a handler": (closed_by_handler(**options), frozenset()),
        "close, interrupted": (closed_again(**options), frozenset()),
    }


def pairs(work: Work, base: Path, always: Collection[int], step: int = 1) -> Iterator[tuple[int, Ended]]:
    """Each `step`th pair, by its first call, and what became of it; the last one came too late."""
    number = 1 + len(always)
    while True:
        wanted = {*always, number, number + 1}
        ended = end(work, base, signal.SIGTERM, wanted)
        yield number, ended
        if ended.sent < len(wanted) and ended.code is not None:
            return
        number += step


def problems(name: str, ended: Ended) -> list[str]:
    """What is not as it should be."""
    found = [f"left {what}" for what in ended.left]
    if ended.code is None:
        return ["it hangs", *found]
    if name.startswith("command line"):
        # Once its own handlers are gone the signal ends it, as any program.
        fine = ended.code in (128 + signal.SIGTERM, -signal.SIGTERM) or (ended.code == 0 and "timed" not in name)
    else:
        fine = (ended.code, ended.said) == (0, "closed\n")
    return found if fine else [*found, f"it ends with {ended.code}: {ended.said[-300:]!r}"]
