"""`nucleus-gvisor run` does what its user expects, with both releases of runsc and for every kind of caller."""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.runtime.options import as_flags
from tests.conftest import Release
from tests.e2e.launching import READY, STATES, Caller, guest_output, started, summary
from tests.support.modes import NAMESPACE_MODE, Mode, ordinary_user
from tests.support.records import seeded

pytestmark = pytest.mark.real
SHELL = "/bin/sh"


# ---- what the guest is, and what the record says ----


LOCKED = {"confinement": "mount-locked", "proved": True}


def test_boot_messages_and_summary(newer: Caller) -> None:
    """The guest's kernel is gVisor, and the summary tells the proved confinement, the states and their times."""
    done = newer.run("--json", command=["dmesg"])
    assert done.returncode == 0, done.stderr
    assert "Starting gVisor..." in guest_output(done)
    data = summary(done)
    assert data["achieved"] == {**LOCKED, "scope": "signals+abstract", "audit": "file"}
    asked = {"confinement": "mount-locked", "enforcement": "required", "scope": "best_effort", "audit": "required"}
    assert data["requested"] == asked
    assert data["states"] == STATES
    assert data["actions"] == ["Init", "Resolve", "Prepare", "StageKept", "ConfineLocked", "Exec"]
    assert set(data["ms"]) == set(data["actions"]) and all(ms >= 0 for ms in data["ms"].values())
    assert (data["exit"], data["error"], data["runsc"]) == (0, None, os.fspath(newer.runsc))
    assert (newer.mode.base / "records").is_dir() and Path(data["record"]).is_relative_to(newer.mode.base)
    judged = newer.mode.cli("audit", "verify", data["record"])
    assert judged.returncode == 0 and "ends in Exec'd, complete" in judged.stdout
    assert data["head"] in judged.stdout


def test_platform_of_each_release(first: Caller, release: Release) -> None:
    """Without a wish the platform is the release's own; the one that is asked for is taken where it exists."""
    done = Caller(first.mode, release.path).run("--json", "--platform", release.platform, command=["true"])
    assert summary(done)["platform"] == release.platform
    done = Caller(first.mode, release.path).run("--json", command=["true"])
    assert (done.returncode, summary(done)["platform"]) == (0, release.platform)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a runsc whose owner is not the ordinary user")
def test_unknown_owner_needs_a_pin(modes: dict[str, Mode], runsc_new: Path) -> None:
    """In a user namespace a runsc outside the system paths is refused without a pin, for its owner has no id there."""
    done = modes[NAMESPACE_MODE].cli("run", "--runsc", runsc_new, "--", "true")
    assert done.returncode == 125
    assert done.stderr.startswith("nucleus-gvisor: Resolve: refused: it belongs to an id without a mapping")
    assert os.fspath(runsc_new) in done.stderr and "--pin" in done.stderr


# ---- exit codes, signals, time ----


def test_exit_codes(caller: Caller) -> None:
    """The guest's exit code, or 128 and the signal that ended it, is the command's own."""
    expected = {"exit 0": 0, "exit 1": 1, "exit 42": 42, "kill -9 $$": 137, "kill -TERM $$": 143}
    running = {script: caller.popen(command=[SHELL, "-c", script]) for script in expected}
    ended = {script: (process.communicate(timeout=60), process.returncode) for script, process in running.items()}
    assert {script: code for script, (_, code) in ended.items()} == expected, ended


def test_command_that_is_not_there(first: Caller) -> None:
    """A command that the guest does not have makes the launch's exit code non-zero, and says so."""
    done = first.run(command=["/no/such/program"])
    assert done.returncode not in (0, 124, 125)
    assert "/no/such/program" in done.stderr


def test_timeout(either: Caller) -> None:
    """--timeout ends the guest with code 124; that no process stays is checked after every test."""
    done = either.run("--json", "--timeout", "0.5", command=["sleep", "60"])
    assert (done.returncode, summary(done)["exit"]) == (124, 124)
    assert done.stderr == "nucleus-gvisor: ended after 0.5 s\n"
    assert os.listdir(either.mode.base / "locks") == []


TRAP = f"trap 'echo caught; exit 7' TERM; echo {READY}; while :; do sleep 0.05; done"


def test_sigterm_ends_the_sandbox(either: Caller) -> None:
    """SIGTERM to the command ends it with 143 and takes the sandbox along: runsc passes none on without a terminal."""
    process = either.popen(command=[SHELL, "-c", TRAP])
    with started(process):
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + signal.SIGTERM, ""), errors


def test_sigkill_of_the_command_ends_the_sandbox(either: Caller) -> None:
    """A command that is killed takes all of its sandbox with it."""
    process = either.popen(command=[SHELL, "-c", f"echo {READY}; sleep 600"])
    with started(process) as below:
        assert len(below) >= 3, below  # runsc, gofer, sandbox
        process.kill()
        assert process.wait(30) == -signal.SIGKILL


# ---- streams ----


def test_streams_pass_through(caller: Caller) -> None:
    """A binary megabyte comes back unchanged, and what the guest writes to standard error is not mixed into it."""
    data = random.Random(1).randbytes(1 << 20)
    done = caller.run(command=[SHELL, "-c", "cat; echo aside >&2"], stdin=None, input=data, text=False)
    assert (done.returncode, done.stderr) == (0, b"aside\n")
    assert len(done.stdout) == len(data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_files_as_streams(either: Caller, tmp_path: Path) -> None:
    """Input is read on from where the caller stopped, output goes where the caller stopped, and the caller goes on."""
    (tmp_path / "in").write_text("taken\nrest\n")
    with (tmp_path / "in").open("rb", 0) as source, (tmp_path / "out").open("wb", 0) as target:
        target.write(b"before\n")
        assert source.read(6) == b"taken\n"
        done = either.run(command=[SHELL, "-c", "cat; echo aside >&2"], stdin=source, stdout=target, stderr=target)
        target.write(b"after\n")
    assert done.returncode == 0
    lines = (tmp_path / "out").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert sorted(lines[1:-1]) == ["aside", "rest"]


def test_reader_that_goes_away(first: Caller) -> None:
    """A guest whose reader has gone ends as a program on the host would, and the command with it."""
    process = first.popen(command=[SHELL, "-c", "while :; do echo line || exit 9; done"])
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.wait(30) in (9, 128 + signal.SIGPIPE)
    process.stderr.close()


# ---- options ----


def test_options_of_the_process(newer: Caller) -> None:
    """Environment, directory, user and host name are those that were asked for, and nothing of the caller's own."""
    script = 'echo "$A|$B|$HOME|${LOGNAME-}|$PWD|$(id -u):$(id -g)|$(cat /proc/sys/kernel/hostname)"'
    flags = ["--env", "A=1 2", "--env", "B", "--cwd", "/usr/lib", "--user", "1000:1001", "--hostname", "boxed"]
    environment = {**newer.mode.env(), "B": "passed on"}
    done = newer.run(*flags, command=[SHELL, "-c", script], env=environment)
    assert done.stdout == "1 2|passed on|/home/user||/usr/lib|1000:1001|boxed\n", done.stderr


def test_guest_environment_is_the_default_one(first: Caller) -> None:
    """Without --env the guest has PATH and HOME."""
    done = first.run(command=["env"], env={**first.mode.env(), "SECRET": "x", "LD_PRELOAD": ""})
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert names == {"PATH", "HOME"}, done.stderr


def test_mounts(either: Caller) -> None:
    """A mount is read-only unless it says rw, and what the guest writes to that one is on the host."""
    for name in ("ro", "rw"):
        folder = either.mode.base / name
        folder.mkdir()
        (folder / "file").write_text(f"{name}\n")
        for path in (folder, folder / "file"):
            os.chown(path, either.mode.account.pw_uid, either.mode.account.pw_gid)
    script = "cat /a/file /b/file; echo x >/a/file; echo y >/b/new; echo x >/a/new; ! echo x >/usr/new"
    flags = ["--mount", f"{either.mode.base}/ro:/a", "--mount", f"{either.mode.base}/rw:/b:rw"]
    done = either.run(*flags, command=[SHELL, "-c", script])
    assert (done.returncode, done.stdout) == (0, "ro\nrw\n"), done.stderr
    assert done.stderr.count("Read-only file system") >= 2
    assert (either.mode.base / "rw/new").read_text() == "y\n"
    assert sorted(os.listdir(either.mode.base / "ro")) == ["file"]
    assert (either.mode.base / "ro/file").read_text() == "ro\n"


def make_rootfs(mode: Mode, probe: Path) -> Path:
    """A root for the guest with one static program, in the mode's own directory."""
    rootfs = mode.base / "rootfs"
    rootfs.mkdir()
    (rootfs / "probe").write_bytes(probe.read_bytes())
    for path in (rootfs, rootfs / "probe"):
        path.chmod(0o755)
        os.chown(path, mode.account.pw_uid, mode.account.pw_gid)
    return rootfs


def test_rootfs(either: Caller, probe: Path) -> None:
    """--rootfs is the guest's whole root."""
    rootfs = make_rootfs(either.mode, probe)
    done = either.run("--rootfs", rootfs, command=["/probe", "say", "hello", "7"])
    assert (done.returncode, done.stdout) == (7, "hello\n"), done.stderr
    assert either.run("--rootfs", rootfs, command=["/bin/true"]).returncode not in (0, 125)


def make_bundle(mode: Mode, probe: Path, **more: object) -> Path:
    """An OCI bundle on disk, as another tool would leave it."""
    bundle = mode.base / "a-bundle"
    bundle.mkdir()
    make_rootfs(mode, probe).rename(bundle / "rootfs")
    config = {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/probe", "say", "bundled", "9"], "cwd": "/"},
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
        **more,
    }
    (bundle / "config.json").write_text(json.dumps(config))
    for path in (bundle, bundle / "config.json"):
        os.chown(path, mode.account.pw_uid, mode.account.pw_gid)
    bundle.chmod(0o755)
    (bundle / "config.json").chmod(0o644)
    return bundle


def test_bundle(either: Caller, probe: Path) -> None:
    """--bundle runs what the bundle says."""
    done = either.run("--bundle", make_bundle(either.mode, probe))
    assert (done.returncode, done.stdout) == (9, "bundled\n"), done.stderr


def test_bundle_with_a_hook_is_refused(first: Caller, probe: Path) -> None:
    """A hook would run on the host: it is refused, and does not run."""
    hook = {"path": "/usr/bin/touch", "args": ["touch", os.fspath(first.mode.base / "ran")]}
    bundle = make_bundle(first.mode, probe, hooks={"prestart": [hook], "createRuntime": [hook]})
    done = first.run("--json", "--bundle", bundle)
    assert (done.returncode, summary(done)["error"]["error"]) == (125, "Refused")
    assert not (first.mode.base / "ran").exists()


def test_record_file(newer: Caller) -> None:
    """--record appends to the file that it names, of a failed launch too, and each part of it can be verified."""
    path = newer.mode.base / "launches.ndjson"
    done = newer.run("--json", "--record", path, command=["true"])
    assert done.returncode == 0, done.stderr
    assert summary(done)["record"] == os.fspath(path)
    first = path.read_bytes()
    judged = newer.mode.cli("audit", "verify", path)
    assert (judged.returncode, "ends in Exec'd" in judged.stdout) == (0, True)
    assert not (newer.mode.base / "records").exists()
    assert newer.run("--record", path, "--id", "..", command=["true"]).returncode == 125
    assert path.read_bytes().startswith(first)
    path.write_bytes(seeded(first.replace(b'"image":"trusted"', b'"image":"none"')))
    assert newer.mode.cli("audit", "verify", path).returncode == 1


# ---- network ----

LOOPBACK = """
import json, socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname(), timeout=5)
client.sendall(b"over loopback")
print(server.accept()[0].recv(100).decode())
print(json.dumps([name for _, name in socket.if_nameindex()]))
"""


def host_interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def test_no_network(first: Caller) -> None:
    """Without a wish the guest has a loopback of its own and nothing of the host's."""
    done = first.run(command=["python3", "-c", LOOPBACK])
    assert done.returncode == 0, done.stderr
    said, names = done.stdout.splitlines()
    assert (said, json.loads(names)) == ("over loopback", ["lo"])


def test_host_network(newer: Caller) -> None:
    """--network host shares the host's stack."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        heard: list[bytes] = []

        def hear() -> None:
            connection, _ = server.accept()
            with connection:
                heard.append(connection.recv(100))

        thread = threading.Thread(target=hear)
        thread.start()
        script = f"import socket; socket.create_connection({server.getsockname()!r}, 5).sendall(b'out of the guest')"
        done = newer.run("--json", "--network", "host", command=["python3", "-c", script])
        thread.join(40)
    assert done.returncode == 0, done.stderr
    assert heard == [b"out of the guest"]
    assert summary(done)["achieved"]["proved"] is True


def test_sandbox_network(newer: Caller) -> None:
    """--network sandbox gives the guest a stack and a loopback of its own, and none of the host's interfaces."""
    done = newer.run("--json", "--network", "sandbox", command=["python3", "-c", LOOPBACK])
    assert done.returncode == 0, done.stderr
    said, names = guest_output(done).splitlines()
    assert said == "over loopback"
    assert set(json.loads(names)).isdisjoint(host_interfaces() - {"lo"})
    assert summary(done)["achieved"] == {**LOCKED, "scope": "signals+abstract", "audit": "file"}


def test_sandbox_network_is_refused_before_exec(mode: Mode, runsc_old: Path) -> None:
    """A release that would fail with it is refused before anything runs, and the reader is told what is missing."""
    done = Caller(mode, runsc_old).run("--json", "--network", "sandbox", command=["true"])
    data = summary(done)
    assert (done.returncode, data["error"]["error"], data["error"]["step"]) == (125, "Unsupported", "Confine")
    assert data["states"] == ["Unresolved", "Resolved", "Prepared", "Staged", "Failed"]
    assert "20221219" in done.stderr and "20240729 or later" in done.stderr
    assert "--network none" in data["error"]["hint"]


# ---- error lines ----

Case = Callable[[Caller, Path], tuple[list[Any], list[str]]]


def _copy(caller: Caller, probe: Path, mode: int) -> Path:
    path = caller.mode.base / "copied"
    path.write_bytes(probe.read_bytes())
    path.chmod(mode)
    return path


def _base(caller: Caller) -> Path:
    path = caller.mode.base / "open"
    path.mkdir()
    path.chmod(0o777)
    return path


def _linked_bundle(caller: Caller, probe: Path) -> Path:
    bundle = make_bundle(caller.mode, probe)
    (bundle / "config.json").rename(bundle / "real.json")
    (bundle / "config.json").symlink_to("real.json")
    return bundle


def _open_bundle(caller: Caller, probe: Path) -> Path:
    bundle = make_bundle(caller.mode, probe)
    bundle.chmod(0o777)
    return bundle


ALL = "path observed expected hint"
TRUE = ["true"]
ERRORS: dict[str, tuple[str, str, str, Case]] = {
    "id": ("BadId", "Resolve", "observed expected", lambda c, p: (["--id", "../x"], TRUE)),
    "no command": ("BadArgument", "Resolve", "expected", lambda c, p: ([], [])),
    "mount": ("BadArgument", "Resolve", "observed expected", lambda c, p: (["--mount", "x"], TRUE)),
    "pin": ("BadArgument", "Resolve", "observed expected", lambda c, p: (["--pin", "12"], TRUE)),
    "no runsc": ("NotFound", "Resolve", "observed expected hint", lambda c, p: (["--runsc", "/no/runsc"], TRUE)),
    "runsc for all": ("Untrusted", "Resolve", ALL, lambda c, p: (["--runsc", _copy(c, p, 0o777)], TRUE)),
    "set-id runsc": ("Untrusted", "Resolve", ALL, lambda c, p: (["--runsc", _copy(c, p, 0o4755)], TRUE)),
    "runsc without x": ("NotExecutable", "Resolve", ALL, lambda c, p: (["--runsc", _copy(c, p, 0o644)], TRUE)),
    "script": ("NotElf", "Resolve", "path observed expected", lambda c, p: (["--runsc", "/usr/bin/ldd"], TRUE)),
    "open base": ("BadBase", "Prepare", ALL, lambda c, p: (["--artifact-base", _base(c)], TRUE)),
    "copy in /tmp": (
        "BadBase", "Prepare", ALL, lambda c, p: (["--stage", "copy", "--artifact-base", "/tmp/ngv/base"], TRUE)
    ),
    "no bundle": ("BadBundle", "Prepare", "path observed expected", lambda c, p: (["--bundle", "/no/bundle"], [])),
    "linked bundle": (
        "BadBundle", "Prepare", "path observed expected", lambda c, p: (["--bundle", _linked_bundle(c, p)], [])
    ),
    "open bundle": ("BadBundle", "Prepare", ALL, lambda c, p: (["--bundle", _open_bundle(c, p)], [])),
    "mount point": (
        "BadBundle", "Prepare", ALL,
        lambda c, p: (["--rootfs", make_rootfs(c.mode, p), "--mount", "/etc:/probe"], ["/probe"]),
    ),
    "source": ("BadBundle", "Prepare", "path observed expected", lambda c, p: (["--mount", "/no/thing:/here"], TRUE)),
    "other runsc": ("PinMismatch", "Stage", "path observed expected", lambda c, p: (["--pin", "0" * 64], TRUE)),
    "not runsc": ("NotRunsc", "Confine", "observed expected", lambda c, p: (["--runsc", "/usr/bin/true"], TRUE)),
    "landlock": (
        "Incompatible", "Confine", "observed expected hint", lambda c, p: (["--confinement", "landlock"], TRUE)
    ),
    "platform": (
        "Unsupported", "Confine", "observed expected hint",
        lambda c, p: (["--runsc", "/usr/bin/runsc", "--platform", "systrap"], TRUE),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_error_line(first: Caller, probe: Path, case: str) -> None:
    """A launch that fails prints one line with the step and all that the error knows, and runs nothing."""
    kind, step, fields, given = ERRORS[case]
    flags, command = given(first, probe)
    done = first.run("--json", *flags, command=command)
    error = summary(done)["error"]
    assert (done.returncode, error["error"], error["step"]) == (125, kind, step), done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n")
    assert done.stderr.startswith(f"nucleus-gvisor: {step}: ")
    for field in fields.split():
        assert error[field], f"{field} is missing: {error}"
    for field in ("path", "observed", "expected", "hint"):
        if error[field] is not None:
            assert as_flags(error[field]) in done.stderr
    assert guest_output(done) == "" and "Exec'd" not in summary(done)["states"]


def test_error_line_cannot_be_forged(first: Caller) -> None:
    """What an attacker writes into a name appears in the line quoted, never as a second line or a colour."""
    done = first.run("--runsc", "/no/runsc\n\x1b[32mall is well", command=["true"])
    assert done.returncode == 125
    assert done.stderr.count("\n") == 1 and "\x1b" not in done.stderr and "\\n\\x1b[32m" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_foreign_base(first: Caller) -> None:
    """An artifact base that belongs to someone else is refused, with owner and mode in the line."""
    path = first.mode.base / "theirs"
    path.mkdir(mode=0o700)
    os.chown(path, ordinary_user().pw_uid, -1)
    done = first.run("--artifact-base", path, command=["true"])
    assert done.returncode == 125
    assert f"observed: owner uid {ordinary_user().pw_uid}, mode 0700" in done.stderr


@pytest.mark.parametrize(
    ("limit", "value"), [("-n", "64"), ("-f", "1000"), ("-v", "4000000"), ("-u", "10")], ids=lambda v: str(v)
)
def test_low_limits_are_refused(first: Caller, limit: str, value: str) -> None:
    """Too low a resource limit is found before the launch, and named."""
    words = [first.mode.python, *first.arguments(command=["true"])]
    done = first.mode.run(["bash", "-c", f'ulimit {limit} {value}; exec "$@"', "bash", *words])
    assert done.returncode == 125, done
    assert " RLIMIT_" in done.stderr and "hint: raise it" in done.stderr


def test_busy_id(first: Caller) -> None:
    """A second launch of an id that runs is refused, and the first goes on."""
    process = first.popen("--id", "one", command=[SHELL, "-c", f"echo {READY}; read line; exit 5"],
                          stdin=subprocess.PIPE)  # fmt: skip
    with started(process):
        done = first.run("--json", "--id", "one", command=["true"])
        assert (done.returncode, summary(done)["error"]["error"]) == (125, "Busy")
        process.communicate("go\n", timeout=30)
        assert process.returncode == 5
    assert first.run("--id", "one", command=["true"]).returncode == 0


def test_show(first: Caller) -> None:
    """States, digest, confinement and record are shown on standard error, of a launch that failed as well."""
    done = first.run("--show", "--json", command=["echo", "out"])
    data = summary(done)
    assert done.stdout.startswith("out\n")
    shown = done.stderr.split()
    assert [word for word in shown if word in STATES] == STATES
    assert {data["digests"]["runsc"], data["record"], data["runsc"], "mount-locked,"} <= set(shown)
    failed = first.run("--show", "--pin", "0" * 64, command=["true"])
    assert failed.returncode == 125
    assert "Failed" in failed.stderr.split() and "not proved" in failed.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts where the launcher cannot unmount")
def test_what_is_left_behind_is_told(first: Caller) -> None:
    """A directory that cannot be removed costs the guest's code nothing, and is named; `gc` takes it later."""
    guest = ["sh", "-c", "echo ready; read line; exit 3"]
    with first.popen("--id", "0" * 32, command=guest, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        place = first.mode.base / ("0" * 32)
        subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
        try:
            _, said = process.communicate("go\n", timeout=60)
        finally:
            subprocess.run(["umount", place], check=True)
    assert process.returncode == 3
    assert said.startswith("nucleus-gvisor: left behind: ") and "busy" in said
    # What it removes from the cache, which is all launches', comes after.
    assert first.mode.cli("gc").stdout.splitlines()[0] == "0" * 32
    assert not place.exists()
