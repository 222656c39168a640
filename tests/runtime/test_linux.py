"""System calls by themselves: what is done about answers that a sound kernel hardly ever gives."""

import errno
import os
import subprocess

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
