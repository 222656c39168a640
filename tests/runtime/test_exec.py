"""An in-place execve that the kernel refuses: the process is as it was, but for the confinement that it has entered."""

import subprocess
import sys

REFUSED = """
import os, signal
from nucleus_gvisor.model.errors import ExecFailed
from nucleus_gvisor.runtime.steps import exec_

def handler(*_):
    pass

def known():
    # What the kernel knows of the signals that are set here: Python keeps a list of its own, and knows not of all.
    ours = sum(1 << (number - 1) for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGPIPE))
    with open("/proc/self/status") as file:
        fields = dict(line.split(":") for line in file)
    return [int(fields[name], 16) & ours for name in ("SigIgn", "SigCgt", "SigBlk")]

os.chdir("/usr")
signal.signal(signal.SIGUSR1, handler)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM})
image = os.memfd_create("text")
os.write(image, b"no program")
os.fchmod(image, 0o555)
held, before = os.listdir("/proc/self/fd"), known()
try:
    exec_.in_place(image, [b"x"], {})
except ExecFailed as error:
    print(error.restricted, "must exit" in str(error.hint), "cannot be executed" in str(error))
print(os.getcwd(), os.listdir("/proc/self/fd") == held, known() == before)
print(signal.getsignal(signal.SIGUSR1) is handler, signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN)
"""


def test_a_refused_execve_gives_everything_back() -> None:
    """Handlers, what is ignored, the mask, the directory and the descriptors; and it says that it must exit."""
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True True True\n/usr True True\nTrue True\n", "")
