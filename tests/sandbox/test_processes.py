"""The processes of ours: told apart by more than their numbers, apart from the caller's own, and reaped by us."""

from tests.conftest import Release
from tests.e2e.launching import Caller

NUMBER_GIVEN_AGAIN = """
import os, signal, subprocess, sys
from nucleus_gvisor.runtime import Sandbox
box = Sandbox(runsc=sys.argv[1], pin=sys.argv[2] or None)
number = box._attendant._pid
os.kill(box.pid, signal.SIGKILL)
while os.path.exists(f"/proc/{number}"):  # this process reaps whoever ends, as some services do
    os.waitpid(-1, 0)
with open("/proc/sys/kernel/ns_last_pid", "w") as file:
    file.write(str(number - 1))
innocent = subprocess.Popen(["sleep", "600"])
assert innocent.pid == number, (innocent.pid, number)
box.close()
box.close()
print(box.closed, innocent.poll())
innocent.kill()
innocent.wait()
"""


def test_an_attendant_that_others_have_reaped(first: Caller, release: Release) -> None:
    """Who has its number by then is neither killed nor waited for."""
    caller = Caller(first.mode, release.path)
    namespace = ["unshare", "--pid", "--fork", "--mount-proc", "--"]
    user = [] if caller.mode.account.pw_uid == 0 else ["unshare", "--user", "--map-root-user", "--"]
    script = [caller.mode.python, "-W", "error", "-c", NUMBER_GIVEN_AGAIN, str(caller.runsc), caller.pin or ""]
    done = caller.mode.run([*user, *namespace, *script])
    assert (done.stdout, done.stderr, done.returncode) == ("True None\n", "", 0)
