"""An in-place execve that the kernel refuses: the process is as it was, but for the confinement that it has entered."""

import os
import signal

import pytest

from nucleus_gvisor.model.errors import ExecFailed
from nucleus_gvisor.runtime.steps import exec_
from tests.runtime.test_child import code, forked


def test_a_refused_execve_gives_everything_back() -> None:
    """Handlers, what is ignored, the mask, the directory and the descriptors; and it says that it must exit."""

    def body() -> None:
        os.chdir("/usr")
        signal.signal(signal.SIGUSR1, handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR2})
        image = os.memfd_create("text")
        os.write(image, b"no program")
        os.fchmod(image, 0o555)
        held, before = os.listdir("/proc/self/fd"), known_to_the_kernel()
        with pytest.raises(ExecFailed, match="cannot be executed") as caught:
            exec_.in_place(image, [b"x"], {})
        assert caught.value.restricted and "must exit" in str(caught.value.hint)
        assert os.getcwd() == "/usr" and os.listdir("/proc/self/fd") == held
        assert known_to_the_kernel() == before and signal.getsignal(signal.SIGUSR1) is handler
        assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGUSR2}

    assert code(forked(body)) == 0


def known_to_the_kernel() -> dict[str, int]:
    """What it knows of this process's signals: Python keeps a list of its own.

    Of those with a handler only ours: pytest's own for crashes are no handlers of Python's, and are not given back.
    """
    with open("/proc/self/status") as file:
        fields = dict(line.split(":") for line in file)
    masks = {name: int(fields[name], 16) for name in ("SigIgn", "SigCgt", "SigBlk")}
    return {**masks, "SigCgt": masks["SigCgt"] & (1 << (signal.SIGUSR1 - 1) | 1 << (signal.SIGINT - 1))}


def handler(*_: object) -> None:
    """A handler that a test can know again."""
