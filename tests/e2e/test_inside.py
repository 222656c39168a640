"""What the supervisor could do, if it were hostile: a probe in runsc's place tries it and reports each answer.

The launching process does all it can to leak: descriptors, a directory of the host, ignored and blocked signals,
a hostile environment. What is open by nature is asserted too, so that nobody takes it for closed.
"""

import json
import os
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
    """A host file that the caller could write, and a program of its own, beside the container's directory."""
    for name, text, bits in (("host-file", b"untouched", 0o600), ("host-program", probe.read_bytes(), 0o700)):
        path = mode.base / name
        path.write_bytes(text)
        path.chmod(bits)
        os.chown(path, mode.account.pw_uid, mode.account.pw_gid)


def launch(mode: Mode, probe: Path, *flags: str, **more: str) -> tuple[Report, dict[str, Any]]:
    """The probe's report and the launch's summary, launched by a process that leaks all it can."""
    prepare(mode, probe)
    arguments = Caller(mode, probe).arguments("--json", "--id", f"probe-{os.getpid()}", *flags, command=["true"])
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
    assert data["achieved"] == {"confinement": "mount-locked", "proved": True}
    assert seen["exe"].startswith("/memfd:runsc")
    assert seen["argv"][:2] == ["runsc", "--root"]


def test_host_programs_cannot_be_executed(seen: Report) -> None:
    """Neither execve, nor the dynamic loader, nor mapping a host file as code works, in any directory of the host."""
    assert seen["exec"] == {
        "/bin/true": "EACCES",
        "/usr/bin/true": "EACCES",
        "/usr/bin/su": "EACCES",
        "/bin/sh": "EACCES",
        "/usr/bin/python3": "EACCES",
        "loader": "EACCES",
        "mmap": "EPERM",
        "mprotect": "EACCES",
        "own program": "EACCES",
    }


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
    """Only the standard streams are open, though the launcher leaked files and the host's root."""
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
    "bind / recursively, run": "EACCES",
    "bind / recursively, clear": "EPERM",
    "clone /": "EINVAL",
    "clone / recursively, run": "EACCES",
    "clone / recursively, clear": "EPERM",
    "nested namespace, clear": "EPERM",
    "nested namespace, run": "EACCES",
    "fresh proc": "EPERM",
    "overlay of /usr/bin, run": "EACCES",
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
    assert answers.pop("/etc/hostname") in ("EROFS", "EACCES")  # root's, whoever the caller is
    assert answers.pop("/dev/shm") in ("EROFS", "ENOENT")  # hidden where /dev is the launch's own
    assert answers == dict.fromkeys(answers, "EROFS") and len(answers) == 9


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
    assert [canary["answer"] for canary in evidence["canaries"]] == ["EACCES"] * len(evidence["canaries"])
    assert evidence["canaries"] and evidence["undo"] == "EPERM"


def test_network_namespace_changes_nothing_of_it(mode: Mode, probe: Path) -> None:
    """With --network sandbox, where runsc is not rootless, the same is refused."""
    report, data = launch(mode, probe, "--network", "sandbox")
    assert data["achieved"]["proved"] is True and "--rootless" not in report["argv"]
    assert report["undo"] == UNDO
    assert set(report["exec"].values()) == {"EACCES", "EPERM"}
    assert report["descriptors"] == [0, 1, 2]
