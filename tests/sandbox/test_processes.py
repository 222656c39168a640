"""The processes of ours: told apart by more than their numbers, apart from the caller's own, and reaped by us."""

import os

from nucleus_gvisor.runtime import Sandbox
from tests.conftest import Release
from tests.e2e import launching
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


TO_THE_GROUP = """
import os, signal, sys
from nucleus_gvisor.runtime import Sandbox, run
os.setpgid(0, 0)
chosen = {"runsc": sys.argv[1], "pin": sys.argv[2] or None}
STRAY = "import os, signal, sys; signal.signal({0}, signal.SIG_IGN); sys.stdin.read(1); os.killpg(os.getpgid({1}), {0})"
def struck(number, work):
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    os.dup2(reader, 0)
    script = STRAY.format(int(number), os.getpid())
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", script], {}, setsid=True)
    os.close(reader)
    try:
        work(writer)
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    finally:
        os.waitpid(pid, 0)
        os.close(writer)
def command(go):
    with box.popen(["sh", "-c", "echo begun; sleep 600"], stdout=-1) as process:
        process.stdout.readline()
        os.write(go, b"x")
        process.wait()
def asked(go):
    os.write(go, b"x")
    box.exec("sleep", "600")
def answered(number, _):
    got.append(number)
with Sandbox(**chosen) as box:
    box.exec("sh", "-c", "echo state >/tmp/state")
    other = box.popen(["sleep", "601"])
    print(struck(signal.SIGINT, command), struck(signal.SIGINT, asked))
    left = [one.command for one in box.ps() if one.command == "sleep"]
    print(box.exec("cat", "/tmp/state").stdout, left, other.poll())
    for number in (signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP, signal.SIGTERM):
        got = []
        signal.signal(number, answered)
        def waits(go):
            os.write(go, b"x")
            while not got:
                box.exec("true")
        struck(number, waits)
        print(signal.Signals(number).name, box.exec("cat", "/tmp/state").stdout, end="")
    other.kill()
"""


def test_what_is_sent_to_the_owners_process_group(caller: Caller) -> None:
    """Ctrl-C ends the command that is waited for, and nothing else; other signals are the owner's own."""
    done = caller.script(TO_THE_GROUP, timeout=180)
    assert done.stderr == ""
    answers = [f"{name} state" for name in ("SIGQUIT", "SIGTSTP", "SIGHUP", "SIGTERM")]
    interrupted = "KeyboardInterrupt KeyboardInterrupt"
    assert done.stdout.splitlines() == [interrupted, "state", " ['sleep'] None", *answers]


def test_sessions(box: Sandbox) -> None:
    """The supervisor, its attendant and each command have a session of their own, and no terminal of the caller's."""
    with box.popen(["sleep", "600"]) as process:
        ours = {os.getsid(0)}
        sessions = {pid: os.getsid(pid) for pid in launching.descendants(os.getpid())}
        assert not ours & set(sessions.values())
        commands = set(launching.descendants(box._attendant._pid))
        assert {sessions[pid] for pid in commands} == commands
        process.kill()


ORPHANS = """
import ctypes, os, signal, subprocess, sys
from nucleus_gvisor.runtime import Sandbox, TimeoutExpired, run
if os.getpid() != 1:
    assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
chosen = {"runsc": sys.argv[1], "pin": sys.argv[2] or None}
own = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {})
os.waitid(os.P_PID, own, os.WEXITED | os.WNOWAIT)
living = subprocess.Popen(["sleep", "600"])
run(["true"], **chosen)
try:
    run(["sleep", "600"], timeout=0.1, **chosen)
except TimeoutExpired:
    pass
for last in ("close", "kill", "attendant", "supervisor"):
    with Sandbox(**chosen) as box:
        box.exec("true")
        box.popen(["sleep", "600"], stderr=subprocess.DEVNULL)
        if last == "attendant":
            os.kill(box._attendant._pid, signal.SIGKILL)
        elif last == "supervisor":
            os.kill(box.pid, signal.SIGKILL)
        elif last == "kill":
            box.kill()
with open(f"/proc/self/task/{os.getpid()}/children") as file:
    left = {int(pid) for pid in file.read().split()} - {own, living.pid}
print(left, os.waitstatus_to_exitcode(os.waitpid(own, 0)[1]), living.poll())
living.kill()
living.wait()
"""


def test_a_caller_that_gets_orphans(caller: Caller) -> None:
    """It keeps no dead process of ours, whatever ends a sandbox; its own children are its own to wait for."""
    done = caller.script(ORPHANS, timeout=180)
    assert (done.stdout, done.stderr, done.returncode) == ("set() 7 None\n", "", 0)


def test_a_caller_that_is_the_first_process(first: Caller, release: Release) -> None:
    """As a container's entry point is."""
    caller = Caller(first.mode, release.path)
    user = [] if caller.mode.account.pw_uid == 0 else ["--user", "--map-root-user"]
    script = [caller.mode.python, "-W", "error", "-c", ORPHANS, str(caller.runsc), caller.pin or ""]
    done = caller.mode.run(["unshare", *user, "--pid", "--fork", "--mount-proc", "--", *script], timeout=180)
    assert (done.stdout, done.stderr, done.returncode) == ("set() 7 None\n", "", 0)
