"""A reader that stalls keeps the command line from nothing but its own output."""

import fcntl
import hashlib
import os
import select
import signal
import subprocess
import termios
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import cli
from tests.conftest import Release
from tests.support.modes import Mode

MUCH = 5_000_000
"""Bytes that no pipe and no socket holds."""


def begun(mode: Mode, release: Release, count: int, *options: str, stdout: int = -1) -> "subprocess.Popen[str]":
    """The command line, whose guest writes `count` bytes."""
    pin = hashlib.sha256(release.path.read_bytes()).hexdigest()  # root's own files belong to nobody in a namespace
    words = ["--runsc", os.fspath(release.path), "--pin", pin, "--max-output", "1G", *options]
    argv = ["run", *words, "--", "head", "-c", str(count), "/dev/zero"]
    return mode.popen([mode.python, "-m", "nucleus_gvisor.runtime.cli", *argv], stdout=stdout)


def children(pid: int) -> str:
    """The numbers of the child processes of all its threads."""
    return "".join((task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir())


def await_output(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None and select.select([process.stdout], [], [], 300)[0]


def test_a_timeout_and_a_pipe(mode: Mode, release: Release) -> None:
    """The guest is ended at its time, and so is the command, though nobody reads."""
    with begun(mode, release, MUCH, "--timeout", "2") as process:
        assert process.wait(300) == cli.TIMED_OUT
        assert process.stderr is not None and "ended after 2 s" in process.stderr.read()


def test_a_timeout_and_a_terminal(mode: Mode, release: Release) -> None:
    """One that shows nothing more, because its user has stopped it."""
    ours, theirs = os.openpty()
    try:
        with begun(mode, release, MUCH, "--timeout", "2", stdout=theirs) as process:
            assert process.wait(300) == cli.TIMED_OUT
        assert os.get_blocking(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal(mode: Mode, release: Release, number: signal.Signals) -> None:
    """One is enough: it reaches the guest, which it ends."""
    with begun(mode, release, MUCH) as process:
        await_output(process)
        process.send_signal(number)
        assert process.wait(300) == 128 + number


def test_a_signal_when_the_guest_has_ended(mode: Mode, release: Release) -> None:
    """Its last words fill the pipe, and it has ended: the signal ends the command, which waits for the reader."""
    with begun(mode, release, 130_000) as process:
        await_output(process)
        while children(process.pid):
            select.select([], [], [], 0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 128 + signal.SIGTERM


def test_time_runs_out_when_the_guest_has_ended(mode: Mode, release: Release) -> None:
    """What nobody has read in time is told of."""
    with begun(mode, release, 130_000, "--timeout", "5") as process:
        assert process.wait(300) == cli.TIMED_OUT
        assert process.stderr is not None and "within 5 s" in process.stderr.read()


def test_a_slow_reader_gets_all(mode: Mode, release: Release) -> None:
    """Nothing is lost while there is time."""
    with begun(mode, release, MUCH) as process:
        await_output(process)
        assert process.stdout is not None
        size = 0
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            size += len(piece)
        assert (process.wait(300), size) == (0, MUCH)


def test_a_disk_that_is_full(mode: Mode, release: Release) -> None:
    """One line, and a code that is not the guest's."""
    with open("/dev/full", "wb") as full, begun(mode, release, MUCH, stdout=full.fileno()) as process:
        assert process.wait(300) == cli.OURS
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
    assert [line for line in lines if "nucleus-gvisor" in line] == [
        "nucleus-gvisor: copying stdout failed: No space left on device"
    ]


# ---- Ctrl-C at a terminal, which the kernel sends to the guest's supervisor as well ----


def typed(mode: Mode, release: Release, *words: str) -> "tuple[subprocess.Popen[str], int]":
    """The command line with a terminal of its own as standard input, and a pipe to which it writes; and its keys."""
    pin = hashlib.sha256(release.path.read_bytes()).hexdigest()
    keys, terminal = os.openpty()
    argv = ["run", "--runsc", os.fspath(release.path), "--pin", pin, "--max-output", "1G", "--", *words]
    try:
        process = mode.popen(
            [mode.python, "-m", "nucleus_gvisor.runtime.cli", *argv],
            stdin=terminal,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
    finally:
        os.close(terminal)
    return process, keys


@pytest.mark.parametrize("count", [MUCH, 130_000])
def test_a_key(mode: Mode, release: Release, count: int) -> None:
    """While the guest runs, and once it has ended: it ends the command, which waits for the reader."""
    process, keys = typed(mode, release, "head", "-c", str(count), "/dev/zero")
    with process:
        await_output(process)
        while count != MUCH and children(process.pid):
            select.select([], [], [], 0.02)
        os.write(keys, b"\x03")
        assert process.wait(300) == 128 + signal.SIGINT
    os.close(keys)
