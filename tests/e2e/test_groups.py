"""What is sent to a caller's whole process group, and the caller ignores: Ctrl-C, the end of a terminal, a stop."""

import fcntl
import os
import signal
import subprocess
import termios

import pytest

from tests.e2e.launching import Caller

pytestmark = pytest.mark.real

NAMES = ("HUP", "INT", "QUIT", "TERM", "TSTP")
GUEST = ["sh", "-c", "echo begun >&2; cat; exit 7"]
LIBRARY = f"""
import signal, sys
from nucleus_gvisor.runtime import run
path, pin, *names = sys.argv[1:]
for name in names:
    signal.signal(signal.Signals["SIG" + name], signal.SIG_IGN)
print(run({GUEST}, stdin=0, stderr=2, runsc=path, pin=pin or None).returncode)
"""


def survives(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """The code and the output of a caller in a group of its own, which was sent them all while its guest ran."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    with process:
        assert process.stderr.readline() == "begun\n"
        for name in NAMES:
            os.killpg(process.pid, signal.Signals[f"SIG{name}"])
        process.stdin.close()
        output = process.stdout.read()
        assert process.stderr.read() == ""
    return process.returncode, output


def test_a_caller_that_ignores_them(either: Caller) -> None:
    """Its guest goes on, as a child of its own would."""
    words = [either.mode.python, "-c", LIBRARY, str(either.runsc), either.pin or "", *NAMES]
    assert survives(either.mode.popen(words, stdin=subprocess.PIPE, start_new_session=True)) == (0, "7\n")


def test_a_command_line_that_ignores_them(either: Caller) -> None:
    """The same under nohup(1), and in a shell's background."""
    words = [either.mode.python, *either.arguments(command=GUEST)]
    deaf = ["env", f"--ignore-signal={','.join(NAMES)}", *words]
    assert survives(either.mode.popen(deaf, stdin=subprocess.PIPE, start_new_session=True)) == (7, "")


def test_one_that_ignores_the_end_of_its_terminal_alone(first: Caller) -> None:
    """Ctrl-C ends its guest still, which has a session of its own."""
    keys, terminal = os.openpty()
    words = [first.mode.python, *first.arguments(command=["sh", "-c", "echo begun >&2; sleep 600"])]
    process = first.mode.popen(
        ["env", "--ignore-signal=HUP", *words],
        stdin=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    assert process.stderr is not None
    with process:
        assert process.stderr.readline() == "begun\n"
        os.write(keys, b"\x03")
        assert process.wait(300) == 128 + signal.SIGINT
    os.close(keys)
