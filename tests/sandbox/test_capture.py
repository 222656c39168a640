"""Captured output is bounded in memory, complete up to its bound, and does not deadlock with what is fed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from nucleus_gvisor.runtime.capture import PIPE, Capture, Pipes, milliseconds, readable


def shell(script: str) -> tuple[subprocess.Popen[bytes], int, int, int]:
    """A program with pipes; the process, our ends of its standard streams but the error stream, and its pidfd."""
    process = subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None and process.stdout is not None
    return process, os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno()), os.pidfd_open(process.pid)


def captured(script: str, data: bytes, limit: int, deadline: float | None = None) -> tuple[bool, bool, bytes]:
    """(in time, exceeded, output) of a program that is given `data`."""
    process, feed, out, pidfd = shell(script)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    try:
        with Capture({out: limit}, feed, data) as capture:
            in_time = capture.run(pidfd, deadline)
            return in_time, capture.exceeded, capture.output[out]
    finally:
        os.close(pidfd)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 3_000_000])
def test_all_that_is_fed_comes_back(size: int) -> None:
    """More than both pipes hold goes through, whoever waits for whom."""
    data = os.urandom(size)
    assert captured("cat", data, size or 1) == (True, False, data)


def test_one_byte_too_much() -> None:
    """The bound itself is allowed, one more is not, and what is kept is the bound."""
    assert captured("printf 12345", b"", 5) == (True, False, b"12345")
    in_time, exceeded, output = captured("printf 123456", b"", 5)
    assert (exceeded, output) == (True, b"12345")
    assert not in_time


def test_endless_output_is_stopped() -> None:
    """A program that never stops writing is not waited for."""
    assert captured("yes", b"", 1000)[1:] == (True, b"y\n" * 500)


def test_a_program_that_reads_nothing_is_no_failure() -> None:
    """What it does not want is dropped when it ends."""
    assert captured("exec echo done", b"x" * 1_000_000, 100) == (True, False, b"done\n")


def test_a_deadline_keeps_what_was_written() -> None:
    """Output until then is there."""
    assert captured("echo first; sleep 60", b"", 100, time.monotonic() + 0.5) == (False, False, b"first\n")


def test_background_processes_are_not_waited_for() -> None:
    """The program's end counts, not the end of a pipe that something else holds."""
    in_time, _, output = captured("sleep 60 & echo here", b"", 100)
    assert (in_time, output) == (True, b"here\n")


def test_a_moment_far_away_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """poll(2) takes 24 days at most; a later deadline is waited for in parts."""
    assert milliseconds(None) is None
    assert milliseconds(time.monotonic() - 5) == 0
    assert milliseconds(float("inf")) == milliseconds(time.monotonic() + 1e12)
    monkeypatch.setattr("nucleus_gvisor.runtime.capture._LONGEST", 1)
    reader, writer = os.pipe()
    try:
        assert not readable(reader, time.monotonic() + 0.05)
        os.write(writer, b"x")
        assert readable(reader, float("inf"))
    finally:
        os.close(reader)
        os.close(writer)


def test_a_pipe_that_somebody_else_fills() -> None:
    """Whoever shares the pipe may have taken the room that poll(2) told of: nothing is lost, and nothing blocks."""
    reader, feed = os.pipe()
    other = os.dup(feed)
    try:
        with Capture({}, feed, b"ours") as capture:
            with suppress(BlockingIOError):
                while True:
                    os.write(other, b"x" * 4096)
            assert capture.move(feed)
            assert set(os.read(reader, 1 << 20)) == {ord("x")}
            assert not capture.move(feed)
            assert os.read(reader, 1 << 20) == b"ours"
    finally:
        os.close(reader)
        os.close(other)


def test_streams_that_are_refused_leave_nothing_open() -> None:
    """Pipes that were made for the others are closed again."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Bad file descriptor"):
        Pipes.redirected("input", None, PIPE, 1 << 20, True)
    assert os.listdir("/proc/self/fd") == before


def test_memory_stays_bounded() -> None:
    """A gigabyte of output costs no more than is kept."""
    source = """
import os, resource, subprocess
from nucleus_gvisor.runtime.capture import Capture
def size(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
process = subprocess.Popen(["head", "-c", "1000000000", "/dev/zero"], stdout=subprocess.PIPE)
before, out, pidfd = size(), os.dup(process.stdout.fileno()), os.pidfd_open(process.pid)
with Capture({out: 1 << 20}) as capture:
    capture.run(pidfd, None)
    process.kill()
print(capture.exceeded, len(capture.output[out]), size() - before < 20 << 20)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "True 1048576 True\n"
