"""System calls by themselves: what is done about answers that a sound kernel hardly ever gives."""

import errno
import os
import select
import signal
import subprocess
import sys

import pytest

from nucleus_gvisor.runtime import _linux as linux


def test_what_a_launch_leaves_open_is_closed() -> None:
    """Whatever line it was interrupted on: what it opened is in its ledger."""
    before = linux.ledger()
    held = linux.Ledger()
    try:
        held.use()
        fds = [linux.open("/dev/null", os.O_RDONLY), linux.memfd_create("x", os.MFD_CLOEXEC)]
        held.release()
        held.release()
    finally:
        before.use()
    for fd in fds:
        with pytest.raises(OSError):
            os.fstat(fd)


def test_closing_fails_only_for_what_was_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """EBADF is a defect of ours; with any other answer the descriptor is gone all the same."""
    fd = os.open("/dev/null", os.O_RDONLY)
    linux.close(fd)
    with pytest.raises(OSError) as caught:
        linux.close(fd)
    assert caught.value.errno == errno.EBADF
    close = os.close

    def failing(number: int) -> None:
        close(number)
        raise OSError(errno.EIO, "a disk that fails")

    fd = linux.open("/dev/null", os.O_RDONLY)
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", failing)
        linux.close(fd)
    assert fd not in linux.ledger().descriptors


def test_an_exit_that_nobody_can_tell() -> None:
    """A kernel before 6.15 answers as it does for what is no pidfd: the status stays unknown."""
    with open("/dev/null", "rb") as file:
        assert linux.pidfd_exit_status(file.fileno()) is None
    with subprocess.Popen(["sleep", "600"]) as process:
        pidfd = os.pidfd_open(process.pid)
        assert linux.pidfd_exit_status(pidfd) is None  # it has not ended
        process.kill()
        os.close(pidfd)


FAMILY = """
import os, signal, time
reader, writer = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    os.write(writer, b"1")
    time.sleep(600)
os.read(reader, 1)
print("begun", flush=True)
time.sleep(600)
"""


def test_what_is_below_a_process_is_killed_with_it() -> None:
    """Whatever it does, stopped or not, and although nobody has asked the kernel for that; and nobody else is."""
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "begun\n"
        [child] = linux.children(parent.pid)
        [grandchild] = linux.children(child)
        pidfds = [os.pidfd_open(pid) for pid in (parent.pid, child, grandchild)]
        linux.kill_with_all_below(parent.pid, pidfds[0])
        for fd in pidfds:
            assert select.select([fd], [], [], 30)[0] == [fd]
    before = os.listdir("/proc/self/fd")
    with subprocess.Popen(["sleep", "600"]) as stranger:
        with pytest.raises(ProcessLookupError):  # its number has become another's: ours, who have a child
            linux.kill_with_all_below(os.getpid(), pidfds[0])
        assert stranger.poll() is None
        stranger.kill()
    assert os.listdir("/proc/self/fd") == before
    for fd in pidfds:
        os.close(fd)


def test_what_ends_by_itself_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was found, and has gone before it could be killed."""
    with subprocess.Popen(["sleep", "600"]) as process, subprocess.Popen(["sleep", "600"]) as other:
        with subprocess.Popen(["true"]) as gone:
            ended = os.pidfd_open(gone.pid)
        monkeypatch.setattr(linux, "_open_below", lambda _, below: below.extend([ended, os.pidfd_open(other.pid)]))
        pidfd = os.pidfd_open(process.pid)
        linux.kill_with_all_below(process.pid, pidfd)
        assert (process.wait(30), other.wait(30)) == (-signal.SIGKILL, -signal.SIGKILL)
        os.close(pidfd)


def test_a_process_that_has_gone_has_no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends while it is looked for is not killed by its number."""
    assert linux.children(2**22) == []
    answers = iter([[os.getpid()], []])
    monkeypatch.setattr(linux, "children", lambda pid: next(answers, []))
    with subprocess.Popen(["sleep", "600"]) as process:
        pidfd = os.pidfd_open(process.pid)
        linux.kill_with_all_below(process.pid, pidfd)  # we are not its child any more at the second look, and live
        os.close(pidfd)
    monkeypatch.setattr(linux, "children", lambda pid: [2**22] if pid == process.pid else [])
    with subprocess.Popen(["sleep", "600"]) as process:
        pidfd = os.pidfd_open(process.pid)
        linux.kill_with_all_below(process.pid, pidfd)
        os.close(pidfd)
