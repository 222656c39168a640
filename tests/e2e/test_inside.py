"""What the supervisor could do, if it were hostile: a probe in runsc's place tries it and reports each answer.

The launching process does all it can to leak: descriptors, a directory of the host, ignored and blocked signals,
a hostile environment. What is open by nature is asserted too, so that nobody takes it for closed.
"""

import ctypes
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.launching import Caller, guest_output, summary
from tests.support.modes import Mode

# A launcher with everything in it that must not reach the sandbox; then it becomes the command line.
LEAKING = """
import os, signal, sys
SPARED = () if "SIGCHLD" in os.environ else (signal.SIGCHLD,)
for number in signal.valid_signals():
    if number not in (signal.SIGKILL, signal.SIGSTOP, *SPARED):
        signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
path = os.open("/", os.O_PATH | os.O_DIRECTORY)
for target, source in ((3, path), (9, root), (200, os.open("/bin/true", os.O_RDONLY))):
    os.dup2(source, target, inheritable=True)
for fd in (root, path):
    os.set_inheritable(fd, True)
os.chdir("/usr")
os.umask(0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
HOSTILE = {
    "GODEBUG": "madvdontneed=1",
    "GVISOR_SIDECAR_BINARIES_DIR": "/tmp",
    "LD_LIBRARY_PATH": "/tmp",
    "LD_PRELOAD": "",
    "RUNSC_PATH": "/tmp/runsc",
    "SECRET": "value",
}
Report = dict[str, Any]


def prepare(mode: Mode, probe: Path) -> None:
    """A host file that the caller could write, and a program of its own, beside the container's directory; and a file
    of whoever runs the tests."""
    (mode.base / "secret").write_bytes(b"secret")
    (mode.base / "secret").chmod(0o600)
    for name, text, bits in (("host-file", b"untouched", 0o600), ("host-program", probe.read_bytes(), 0o700)):
        path = mode.base / name
        path.write_bytes(text)
        path.chmod(bits)
        os.chown(path, mode.account.pw_uid, mode.account.pw_gid)


@contextmanager
def reachable() -> Iterator[None]:
    """What a process outside can be reached by: an abstract socket, and shared memory of mode 0666."""
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0nucleus-gvisor-test-{os.getpid()}")
        listener.listen()
        segment = libc.shmget(os.getpid(), 4096, 0o1000 | 0o666)  # IPC_CREAT
        assert segment >= 0
        try:
            yield
        finally:
            libc.shmctl(segment, 0, None)  # IPC_RMID


def launch(mode: Mode, probe: Path, *flags: str, **more: str) -> tuple[Report, dict[str, Any]]:
    """The probe's report and the launch's summary, launched by a process that leaks all it can."""
    prepare(mode, probe)
    arguments = Caller(mode, probe).arguments("--json", "--id", f"probe-{os.getpid()}", *flags, command=["true"])
    with reachable():
        done = mode.run([mode.python, "-c", LEAKING, *arguments], env={**mode.env(), **HOSTILE, **more})
    assert done.returncode == 0, done.stderr
    assert (mode.base / "host-file").read_bytes() == b"untouched"
    data = summary(done)
    return json.loads(guest_output(done)), {**data, "lines": Path(data["record"]).read_text().splitlines()}


@pytest.fixture(scope="module")
def reports() -> dict[str, tuple[Report, dict[str, Any]]]:
    """What the probe reported, by mode: one launch serves all the tests below."""
    return {}


@pytest.fixture
def seen(mode: Mode, probe: Path, reports: dict[str, tuple[Report, dict[str, Any]]]) -> Report:
    """The report from inside, in each mode."""
    if mode.name not in reports:
        reports[mode.name] = launch(mode, probe)
    return reports[mode.name][0]


def test_launch_was_confined(mode: Mode, seen: Report, reports: dict[str, tuple[Report, dict[str, Any]]]) -> None:
    """The launch that these tests look into says that it is confined, and that this was proved."""
    data = reports[mode.name][1]
    achieved = {name: data["achieved"][name] for name in ("confinement", "proved", "scope")}
    assert achieved == {"confinement": "mount-locked", "proved": True, "scope": "signals+abstract"}
    assert seen["exe"].endswith("/set/runsc") and seen["exe"].startswith(os.path.dirname(seen["env"]["TMPDIR"]))
    assert seen["argv"][:2] == ["runsc", "--root"]


def test_host_programs_cannot_be_executed(seen: Report) -> None:
    """Neither execve, nor the dynamic loader, nor mapping a host file as code works: no file of the host is there."""
    assert seen["exec"] == {
        "/bin/true": "ENOENT",
        "/usr/bin/true": "ENOENT",
        "/usr/bin/su": "ENOENT",
        "/bin/sh": "ENOENT",
        "/usr/bin/python3": "ENOENT",
        "loader": "ENOENT",
        "mmap": "ENOENT",
        "mprotect": "ENOENT",
        "own program": "ENOENT",
    }


def test_host_files_cannot_be_reached(mode: Mode, seen: Report) -> None:
    """No file of the host can be read, whoever may read it outside: the root holds what the launch made alone."""
    reach = seen["reach"]
    assert {reach[name] for name in ("/etc/shadow", "/etc/passwd", "secret", "/..")} == {"ENOENT"}
    place = os.path.dirname(seen["env"]["TMPDIR"])
    assert sorted(seen["root directory"]) == sorted({"dev", "memfd:runsc", "proc", "tmp", place.split("/")[1]})


def test_no_other_process_can_be_reached(seen: Report) -> None:
    """Of the processes that /proc lists, not one can be signalled, looked into, or talked to."""
    reach = seen["reach"]
    assert {reach[name] for name in ("signal outside", "signal the parent", "signal init")} == {"EPERM"}
    assert reach["abstract socket"] == "EPERM"
    assert reach["shared memory"] == "ENOENT"
    assert seen["processes"] > 0 and seen["reached"] == 0


def test_copies_cannot_be_executed(seen: Report) -> None:
    """A static program cannot be written to the host, and the launch's own tmpfs does not execute."""
    places = seen["planted"]
    assert {"/tmp", "/var/tmp", "/dev/shm", "/dev", "/run", "/root", seen["env"]["TMPDIR"]} < set(places)
    for path, answers in places.items():
        if answers["write"] == "OK":
            assert answers["exec"] == "EACCES", path
        else:
            assert answers["write"] in ("EROFS", "EACCES", "ENOENT"), path
    container = os.path.dirname(seen["env"]["TMPDIR"])
    assert {path for path, answers in places.items() if answers["write"] == "OK"} == {
        container,
        *(f"{container}/{name}" for name in ("runtime", "runsc-root", "bundle")),
    }


def test_no_descriptor_is_inherited(seen: Report) -> None:
    """The standard streams alone are open: what is no runsc is given no file to say anything in."""
    assert seen["descriptors"] == [0, 1, 2]
    assert seen["leaked"] == []


def test_processes_outside_are_no_way_around(seen: Report) -> None:
    """Through /proc neither root, nor directory, program, files or memory of a process outside can be had."""
    for who in ("outside", "parent"):
        names = ("root/bin/true", "cwd", "exe", "fd/0", "root", "mem")
        assert seen[who] == dict.fromkeys(names, "EACCES"), who


UNDO = {
    "clear noexec of /": "EPERM",
    "clear nosuid of /": "EPERM",
    "clear rdonly of /": "EPERM",
    "clear noexec of all": "EPERM",
    "clear noexec of /proc": "EPERM",
    "clear noexec of /dev": "EPERM",
    "clear noexec of the place": "EPERM",
    "remount /": "EPERM",
    "remount / rw": "EPERM",
    "remount the super block": "EPERM",
    "umount /proc": "EINVAL",
    "umount /proc lazily": "EINVAL",
    "umount the place": "EINVAL",
    "umount /": "EINVAL",
    "bind /": "EINVAL",
    "bind / recursively, run": "ENOENT",
    "bind / recursively, clear": "EPERM",
    "clone /": "EINVAL",
    "clone / recursively, run": "ENOENT",
    "clone / recursively, clear": "EPERM",
    "nested namespace, clear": "EPERM",
    "nested namespace, run": "ENOENT",
    "fresh proc": "EPERM",
    "overlay of /usr/bin, run": "ENOENT",
    "join mount namespace outside": "EACCES",
    "join user namespace outside": "EACCES",
}


def test_confinement_cannot_be_undone(seen: Report) -> None:
    """Changing flags, remounting, unmounting, binding, cloning, nested namespaces: all refused, or without gain."""
    assert seen["undo"] == UNDO


def test_host_files_cannot_be_written(seen: Report) -> None:
    """A file of the caller's own on the host can be neither changed nor removed, and none can be made."""
    answers = dict(seen["write"])
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"):  # the next test's
        del answers[path]
    assert len(answers) == 11
    # Where the artifact base was, there is a directory of ours, which cannot be written.
    assert {name: answers.pop(name) for name in ("create", "mkdir", "unlink", "rename")} == {
        "create": "EROFS",
        "mkdir": "EROFS",
        "unlink": "EROFS",
        "rename": "EROFS",
    }
    assert answers == dict.fromkeys(answers, "ENOENT")


def test_kernel_settings_cannot_be_written(seen: Report) -> None:
    """The kernel's settings, by which whoever is root outside rules the host (core_pattern(5)), cannot be opened."""
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"):
        assert seen["write"][path] in ("EROFS", "EACCES", "EPERM", "ENOENT"), path


def test_devices_cannot_be_written(seen: Report) -> None:
    """No block device can be opened for writing: beneath a read-only mount it would be the host's disk all the same."""
    opened = [path for path, answer in seen["devices"].items() if answer == "OK"]
    assert opened == []


def test_environment_is_the_six_variables(mode: Mode, seen: Report) -> None:
    """runsc's environment is exactly six variables, none of them the caller's."""
    runtime = seen["env"]["TMPDIR"]
    assert os.path.basename(runtime) == "runtime" and runtime.startswith(os.fspath(mode.base.parent))
    assert seen["env"] == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "TMPDIR": runtime,
        "XDG_RUNTIME_DIR": runtime,
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
    }


def test_process_state_is_fresh(seen: Report) -> None:
    """Default signals, empty mask, no_new_privs, in / with umask 077, whatever the launcher had."""
    assert seen["signals"] == {"ignored": 0, "handled": 0, "blocked": 0}
    assert (seen["no_new_privs"], seen["cwd"], seen["umask"]) == (1, "/", 0o77)


def test_ignored_sigchld(mode: Mode, probe: Path) -> None:
    """A launcher that ignores SIGCHLD as well, so that the kernel keeps no child's status, can launch all the same."""
    report, data = launch(mode, probe, SIGCHLD="ignored")
    assert (data["exit"], data["achieved"]["proved"]) == (0, True)
    assert report["signals"] == {"ignored": 0, "handled": 0, "blocked": 0}


def test_what_is_open_by_nature(mode: Mode, seen: Report, reports: dict[str, tuple[Report, dict[str, Any]]]) -> None:
    """A memfd and a tmpfs of one's own can be executed from; the record calls it open rather than keep silent."""
    assert seen["by nature"] == {"memfd": "OK", "tmpfs": "OK"}
    assert seen["itself"] == "OK"
    lines = [json.loads(line) for line in reports[mode.name][1]["lines"]]
    evidence = next(line["evidence"] for line in lines if line["action"] == "ConfineLocked")
    assert {"memfd", "tmpfs"} <= set(evidence["open"])
    tried = {(canary["path"], canary["answer"]) for canary in evidence["canaries"]}
    assert {("/bin/true", "EACCES"), ("/bin/true", "ENOENT")} < tried  # by a descriptor from before, and by its path
    assert {("signal to the parent", "EPERM"), ("abstract socket", "EPERM")} < tried
    through = {answer for path, answer in tried if path.startswith("/proc/")}
    assert through == {"EACCES"} and evidence["undo"] == "EPERM" and evidence["scope"] == "signals+abstract"


def test_network_namespace_changes_nothing_of_it(mode: Mode, probe: Path) -> None:
    """With --network sandbox, where runsc is not rootless, the same is refused."""
    report, data = launch(mode, probe, "--network", "sandbox")
    assert data["achieved"]["proved"] is True and "--rootless" not in report["argv"]
    assert report["undo"] == UNDO
    assert set(report["exec"].values()) == {"ENOENT"} and set(report["reach"].values()) <= {
        "ENOENT",
        "EPERM",
        "ECONNREFUSED",
    }
    assert report["descriptors"] == [0, 1, 2]


ATTENDED = """
import sys
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle
from nucleus_gvisor.runtime.attendant import Attendant
program, name, pin = sys.argv[1:]
attendant = Attendant()
options = GVisorOciRunOptions(platform="auto", pin=pin)
job = GVisorRuntime.with_path(program).spawn(
    name, OciBundle.build(["true"]), options, attendant=attendant.theirs.fileno()
)
attendant.meet()
code = job.wait(60)
attendant.dismiss()
sys.exit(code)
"""


def test_the_attendant_is_out_of_reach(mode: Mode, probe: Path) -> None:
    """The process that ends a sandbox with its owner can neither be signalled nor traced by what it ends."""
    prepare(mode, probe)
    pin = hashlib.sha256(probe.read_bytes()).hexdigest()
    done = mode.run([mode.python, "-c", ATTENDED, probe, f"attended-{os.getpid()}", pin])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["attendant"] == {"signal": "EPERM", "trace": "EPERM", "mem": "EACCES"}


def test_in_place_nothing_of_it_is_missing(mode: Mode, probe: Path) -> None:
    """So it is where the calling process itself becomes the supervisor: it enters what its child has proved."""
    prepare(mode, probe)
    pin = hashlib.sha256(probe.read_bytes()).hexdigest()
    with reachable():
        done = mode.run([mode.python, "-c", IN_PLACE, probe, f"probe-{os.getpid()}", pin])
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report["exec"].values()) == {"ENOENT"} and set(report["reach"].values()) == {"ENOENT", "EPERM"}
    assert report["reached"] == 0 and report["undo"] == UNDO


IN_PLACE = """
import sys
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle
program, name, pin = sys.argv[1:]
options = GVisorOciRunOptions(platform="auto", pin=pin)
GVisorRuntime.with_path(program).exec_with_oci_bundle_options(name, OciBundle.build(["true"]), options)
"""
