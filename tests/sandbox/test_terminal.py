"""Terminals: a command of the sandbox's on one, and `nucleus-gvisor shell` on a real one."""

import asyncio
import errno
import fcntl
import os
import select
import signal
import subprocess
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nucleus_gvisor.runtime import AsyncSandbox, CannotExec, Sandbox, shell
from nucleus_gvisor.runtime.capture import readable
from tests.e2e import launching
from tests.e2e.launching import Caller
from tests.sandbox.conftest import MakeSandbox, Options

pytestmark = pytest.mark.real

BASH = ["bash", "--norc", "--noprofile", "-i"]
PATIENCE = 60
PROMPT = "here> "
BUSY = "sh -c 'echo busy; exec sleep 600'"
"""One process: a shell that has begun vfork(2) waits for its child, and cannot stop when that has stopped already."""


class Typist:
    """Whoever sits at a terminal: types, and reads until something is there."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seen = b""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, text: str) -> str:
        """All up to and with `text`."""
        wanted = text.encode()
        while wanted not in self.seen:
            assert select.select([self.fd], [], [], PATIENCE)[0], self.seen
            try:
                piece = os.read(self.fd, 4096)
            except OSError as error:
                assert error.errno == errno.EIO
                piece = b""
            assert piece, self.seen
            self.seen += piece
        before, _, self.seen = self.seen.partition(wanted)
        return (before + wanted).decode()

    def press(self, key: str, text: str) -> None:
        """Press a key until `text` is there: runsc drops a signal that comes before it knows for whom."""
        for _ in range(PATIENCE // 5):
            self.type(key)
            while text.encode() not in self.seen and select.select([self.fd], [], [], 5)[0]:
                self.seen += os.read(self.fd, 4096)
            if text.encode() in self.seen:
                break
        self.until(text)

    def ask(self, command: str, answer: str) -> None:
        """Run a command; `answer` is on a line of its own, so that the echo is not taken for it."""
        self.type(command + "\n")
        self.until(f"\n{answer}\r\n")
        self.until(PROMPT)


@pytest.fixture
def box(make: MakeSandbox) -> Sandbox:
    """A sandbox whose shell has a prompt that is easy to find."""
    return make(env={"PS1": PROMPT, "TERM": "dumb"})


def work(at: Typist, resize: Any) -> None:
    """What anyone does at a shell: sizes, interrupting, stopping, going on."""
    at.until(PROMPT)
    at.ask("stty size", "33 101")
    at.type(f"{BUSY}\n")
    at.until("\nbusy\r\n")
    at.press("\x03", PROMPT)
    at.ask("echo $?", "130")
    at.type(f"{BUSY}\n")
    at.until("\nbusy\r\n")
    at.press("\x1a", "Stopped")
    at.until(PROMPT)
    at.ask("kill %1; wait 2>/dev/null; echo over", "over")
    at.ask("trap 'stty size' WINCH; echo set", "set")
    resize(40, 120)
    at.press("\n", "40 120\r\n")  # a bash that was just about to wait for a key runs its trap after that


def test_a_shell_on_a_terminal(box: Sandbox) -> None:
    """Control characters act on the guest's foreground job, sizes are told, and the exit code comes back."""
    with box.popen(BASH, pty=True, window=(33, 101)) as process:
        assert process.terminal is not None
        at = Typist(process.terminal.fileno())
        work(at, process.resize)
        at.type("exit 7\n")
        assert process.wait() == 7


def test_a_terminal_that_is_closed_ends_what_ran_on_it(box: Sandbox) -> None:
    """As when a window is closed: the shell gets SIGHUP. The sandbox goes on."""
    with box.popen(BASH, pty=True) as process:
        assert process.terminal is not None
        Typist(process.terminal.fileno()).until(PROMPT)
    assert process.returncode is not None
    assert box.exec("echo", "alive").stdout == "alive\n"


def test_what_cannot_be_put_on_a_terminal(box: Sandbox) -> None:
    """A missing program is told apart, wrong arguments are refused, and no descriptor is left open."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(CannotExec, match="no-such-program"):
        box.popen(["no-such-program"], pty=True)
    with pytest.raises(ValueError, match="terminal"):
        box.popen(["true"], pty=True, stdout=subprocess.PIPE)
    with pytest.raises(ValueError, match="rows"):
        box.popen(["true"], pty=True, window=(0, 80))
    assert os.listdir("/proc/self/fd") == before
    with box.popen(["true"]) as process, pytest.raises(ValueError, match="no terminal"):
        process.resize(1, 1)
    with box.popen(["true"], pty=True) as process, pytest.raises(ValueError, match="by hand"):
        process.communicate()


def test_a_terminal_on_asyncio(new_options: Options) -> None:
    """Lines are typed and shown, its size is told, and its end is the end of what it shows."""
    script = """
    stty size; read line; echo "=$line"
    until [ "$(stty size)" = "40 120" ]; do sleep 0.1; done; echo resized; exit 7
    """

    async def body() -> None:
        async with (
            AsyncSandbox(**new_options) as box,
            await box.popen(["sh", "-c", script], pty=True, window=(33, 101)) as process,
        ):
            assert process.stdin is not None and process.stdout is not None and process.stderr is None
            with pytest.raises(ValueError, match="by hand"):
                await process.communicate()
            assert await process.stdout.readline() == b"33 101\r\n"
            await process.stdin.write(b"typed\n")
            assert [await process.stdout.readline() for _ in range(2)] == [b"typed\r\n", b"=typed\r\n"]
            process.resize(40, 120)
            assert await process.stdout.readline() == b"resized\r\n"
            assert await process.stdout.read() == b""
            assert await process.wait() == 7

    asyncio.run(body())


def test_a_shell_shows_all_and_ends_with_its_terminal(box: Sandbox) -> None:
    """What a command wrote last is shown, more than one read gives; a terminal that goes away ends the command."""
    ours, theirs = os.openpty()
    reader, writer = os.pipe()
    try:
        with box.popen(["sh", "-c", "head -c 6000 /dev/zero | tr '\\0' x"], pty=True) as process:
            assert readable(process.command.channel, None)
            assert shell.interact(process, theirs, writer) == 0
            assert os.read(reader, 1 << 16) == b"x" * 6000
        with box.popen(["sh", "-c", "echo up; exec sleep 600"], pty=True) as process:

            def close() -> None:
                os.read(reader, 1)
                os.close(ours)

            closer = threading.Thread(target=close)
            closer.start()
            assert shell.interact(process, theirs, writer) == 128 + signal.SIGHUP
            closer.join()
            assert process.returncode is not None
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        for fd in (theirs, reader, writer):
            os.close(fd)


@contextmanager
def at_a_terminal(caller: Caller, *flags: str, command: list[str]) -> Iterator[tuple[subprocess.Popen[Any], Typist]]:
    """`nucleus-gvisor shell` on a terminal that is its controlling one."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (33, 101))

    def take() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    words = [*launching.COMMAND, "shell", *caller.chosen(), "--env", f"PS1={PROMPT}", *flags, "--", *command]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = caller.mode.popen([caller.mode.python, *words], preexec_fn=take, **streams)
    try:
        yield process, Typist(ours)
    finally:
        process.kill()
        process.wait()
        for fd in (ours, theirs):
            os.close(fd)


def test_shell_for_each_kind_of_caller_with_each_release(caller: Caller) -> None:
    """It works as on the host, its size follows the terminal's, and the code is the guest's."""
    with at_a_terminal(caller, command=BASH) as (process, at):
        before = termios.tcgetattr(at.fd)
        work(at, lambda rows, columns: termios.tcsetwinsize(at.fd, (rows, columns)))
        at.type("exit 7\n")
        assert process.wait(PATIENCE) == 7
        assert termios.tcgetattr(at.fd) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_shell_that_is_ended_restores_the_terminal(newer: Caller, number: int) -> None:
    """Nothing of it runs afterwards."""
    with at_a_terminal(newer, command=BASH) as (process, at):
        before = termios.tcgetattr(at.fd)
        at.until(PROMPT)
        assert termios.tcgetattr(at.fd) != before
        below = launching.descendants(process.pid)
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
        assert termios.tcgetattr(at.fd) == before
        assert launching.gone(below) == {}


def test_shell_that_is_killed_leaves_nothing_running(first: Caller) -> None:
    """Not even by SIGKILL, after which nobody is there to restore the terminal."""
    with at_a_terminal(first, command=BASH) as (process, at):
        at.until(PROMPT)
        below = launching.descendants(process.pid)
        process.kill()
        process.wait(PATIENCE)
        assert launching.gone(below) == {}


def test_shell_says_why_not(first: Caller) -> None:
    """Without a terminal, with options that are not a shell's, for a program that is not there, and at a limit."""
    done = first.mode.cli("shell", *first.chosen())
    assert (done.returncode, done.stdout) == (125, "")
    assert "no terminal" in done.stderr
    with at_a_terminal(first, "--timeout", "5", command=["true"]) as (process, at):
        at.until("unrecognized arguments: --timeout")
        assert process.wait(PATIENCE) == 2
    with at_a_terminal(first, command=["no-such-program"]) as (process, at):
        at.until("was not started")
        assert process.wait(PATIENCE) == 127
    hog = ["python3", "-c", "b = []\nwhile True: b.append(bytearray(b'x') * (10 << 20))"]
    with at_a_terminal(first, "--memory", "200M", command=hog) as (process, at):
        at.until("more than 209715200 bytes of memory")
        assert process.wait(PATIENCE) == 125
