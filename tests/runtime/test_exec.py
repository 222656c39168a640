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
        held = os.listdir("/proc/self/fd")
        with pytest.raises(ExecFailed, match="cannot be executed") as caught:
            exec_.in_place(image, [b"x"], {})
        assert caught.value.restricted and "must exit" in str(caught.value.hint)
        assert os.getcwd() == "/usr" and os.listdir("/proc/self/fd") == held
        assert signal.getsignal(signal.SIGUSR1) is handler
        assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGUSR2}

    assert code(forked(body)) == 0


def handler(*_: object) -> None:
    """A handler that a test can know again."""
