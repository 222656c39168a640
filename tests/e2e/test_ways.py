"""The ways to launch: in place and in a child, every way to stage, every confinement and enforcement."""

import errno
import fcntl
import json
import os
import secrets
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.errors import BadArgument, Busy, ExecFailed, Incompatible, LaunchError
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle, Platform, SandboxProcess
from nucleus_gvisor.runtime.options import Confinement, Enforcement, Program, StageMethod
from tests.e2e import launching
from tests.e2e.launching import READY, STATES, Caller, digest, guest_output, summary
from tests.support.modes import NAMESPACE_MODE, ROOT_MODE, USER_MODE, Mode

pytestmark = pytest.mark.real
SHELL = "/bin/sh"
TMPFS_MAGIC = 0x01021994  # linux/magic.h
F_GET_SEALS, ALL_SEALS = 1034, 0xF  # linux/fcntl.h: SEAL, SHRINK, GROW, WRITE


def options(base: Path, **more: Any) -> GVisorOciRunOptions:
    """Options with a base of the test's own and whatever platform the release has."""
    return GVisorOciRunOptions(**{"platform": Platform.AUTO, "artifact_base": base, **more})


def bundle(script: str) -> OciBundle:
    return OciBundle.build([SHELL, "-c", script])


class Reader:
    """The reading end of a pipe that a guest writes to."""

    def __init__(self) -> None:
        reader, self.writer = os.pipe()
        self._file = os.fdopen(reader, encoding="utf-8")

    def started(self) -> None:
        os.close(self.writer)
        self.writer = -1

    def line(self) -> str:
        return self._file.readline()

    def rest(self) -> str:
        return self._file.read()

    def close(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
        self._file.close()


@pytest.fixture
def pipe() -> Iterator[Reader]:
    """A pipe for the guest's standard output."""
    reader = Reader()
    yield reader
    reader.close()


def report_of(pipe: Reader) -> dict[str, Any]:
    """What the probe wrote into the pipe."""
    data: dict[str, Any] = json.loads(pipe.rest())
    return data


def spawn_probe(program: Path, pipe: Reader, chosen: GVisorOciRunOptions) -> tuple[dict[str, Any], SandboxProcess]:
    """The report of a probe that is spawned from here, and its handle."""
    bundle = OciBundle.build(["true"])
    runtime = GVisorRuntime.with_path(program)
    with runtime.spawn(f"probe-{os.getpid()}", bundle, chosen, stdout=pipe.writer) as process:
        pipe.started()
        report = report_of(pipe)
        assert process.wait(30) == 0
    return report, process


# ---- in place ----

IN_PLACE = """
import os, sys
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle, Platform
path, pin, script = sys.argv[1:4]
runtime = GVisorRuntime.with_path(path, pin=pin or None)
options = GVisorOciRunOptions(platform=Platform.AUTO)
runtime.exec_with_oci_bundle_options("in-place", OciBundle.build(["/bin/sh", "-c", script]), options)
"""


def test_in_place(either: Caller) -> None:
    """The calling process itself becomes the verified runsc, and the guest's exit code is its own."""
    words = [either.mode.python, "-c", IN_PLACE, os.fspath(either.runsc), either.pin or ""]
    process = either.mode.popen([*words, f"echo {READY}; read line; exit 42"], stdin=subprocess.PIPE)
    with launching.started(process) as below:
        assert os.readlink(f"/proc/{process.pid}/exe").endswith("/set/runsc")
        assert Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"runsc\0--root\0")
        assert "NoNewPrivs:\t1" in Path(f"/proc/{process.pid}/status").read_text()
        assert os.readlink(f"/proc/{process.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
        assert below
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        names = {Path(f"/proc/{child}/comm").read_text().strip() for child in children}
        assert not any(name.startswith(("python", "ngv")) for name in names)  # who proved it is gone, and reaped
        _, errors = process.communicate("go\n", timeout=30)
    assert process.returncode == 42, errors
    # Nobody was left to take the directory away: the next launch does.
    left = sorted(os.listdir(either.mode.base))
    assert len(left) == 3 and left[1:] == ["locks", "records"]
    judged = either.mode.cli("audit", "verify", *(either.mode.base / "records").iterdir())
    assert judged.returncode == 0 and "ends in Exec'd, complete" in judged.stdout
    assert either.run(command=["true"]).returncode == 0
    assert sorted(os.listdir(either.mode.base)) == ["locks", "records"]
    assert os.listdir(either.mode.base / "locks") == []


IN_PLACE_AS_THE_REFERENCE = """
import sys
from nucleus_gvisor.runtime import GVisorRuntime, NetworkMode, OciBundle, Platform
runtime = GVisorRuntime.with_path(sys.argv[1], pin=sys.argv[2] or None)
bundle = OciBundle.build(["/bin/sh", "-c", "exit 43"])
if sys.argv[3] == "defaults":
    runtime.exec_with_oci_bundle("in-place", bundle)
runtime.exec_with_oci_bundle_network("in-place", bundle, NetworkMode.NONE, True, True, True, Platform.PTRACE)
"""


@pytest.mark.parametrize("form", ["defaults", "network"])
def test_in_place_as_the_reference_has_it(first: Caller, form: str) -> None:
    """The reference's two other forms do the same."""
    done = first.script(IN_PLACE_AS_THE_REFERENCE, form)
    assert (done.returncode, done.stdout) == (43, ""), done.stderr
    (command,) = (first.mode.base / "records").iterdir()
    argv = json.loads(command.read_text().splitlines()[-1])["evidence"]["argv"]
    assert argv[argv.index("--platform") + 1] == ("systrap" if form == "defaults" else "ptrace")


IN_PLACE_WITH_NETWORK = IN_PLACE.replace("=Platform.AUTO", "=Platform.AUTO, network_mode='sandbox'")


def test_in_place_with_a_network_of_its_own(newer: Caller) -> None:
    """The namespace that was made for the launch is entered with the others: there is a loopback, and nothing else."""
    script = "tail -n +3 /proc/net/dev | cut -d: -f1; exit 44"
    done = newer.script(IN_PLACE_WITH_NETWORK, script)
    assert (done.returncode, done.stdout.split()) == (44, ["lo"]), done.stderr


IN_PLACE_REFUSED = """
import os, pathlib, sys
from nucleus_gvisor.model.errors import LaunchError
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle, Platform
def state():
    spaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "user", "net")]
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    masks = [line for line in status if line.startswith(("SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "CapEff", "Uid"))]
    return sorted(os.listdir("/proc/self/fd")), os.getcwd(), spaces, masks
options = GVisorOciRunOptions(platform=Platform.AUTO, pin="0" * 64)
seen = []
for _ in range(2):  # the first leaves a sealed copy, on purpose, for the second
    try:
        GVisorRuntime.with_path(sys.argv[1]).exec_with_oci_bundle_options("x", OciBundle.build(["true"]), options)
    except LaunchError as error:
        print(type(error).__name__, getattr(error, "restricted", False), error.record.states[-1])
    seen.append(state())
assert seen[0] == seen[1], seen
"""


def test_in_place_refused(newer: Caller) -> None:
    """A launch in place that is refused returns to an unrestricted caller with its descriptors and directory."""
    done = newer.script(IN_PLACE_REFUSED)
    assert (done.returncode, done.stdout) == (0, "PinMismatch False Failed\n" * 2), done.stderr


def test_in_place_needs_one_thread(base: Path, runsc_new: Path) -> None:
    """A process with several threads cannot be replaced: it is told so, and nothing has happened to it."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        with pytest.raises(ExecFailed, match="several threads") as caught:
            GVisorRuntime.with_path(runsc_new).exec_with_oci_bundle_options("x", bundle("exit 0"), options(base))
    finally:
        over.set()
        thread.join()
    assert not caught.value.restricted and "spawn" in caught.value.hint
    assert sorted(os.listdir(base)) == ["locks", "records"] and os.listdir(base / "locks") == []


# ---- in a child, from threads ----

THREADS = """
import os, sys, threading
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle, Platform
forks = []
os.register_at_fork(before=lambda: forks.append(threading.get_ident()))
runtime = GVisorRuntime.with_path(sys.argv[1], pin=sys.argv[2] or None)
options = GVisorOciRunOptions(platform=Platform.AUTO)
codes = {}
ready = threading.Barrier(8)
def launch(number):
    ready.wait()
    bundle = OciBundle.build(["/bin/sh", "-c", f"exit {number + 10}"])
    with runtime.spawn(f"thread-{number}", bundle, options) as process:
        codes[number] = process.wait(60), process.achieved, process.record.states[-1]
threads = [threading.Thread(target=launch, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert codes == {number: (number + 10, "mount-locked", "Exec'd") for number in range(8)}, codes
assert not forks, "a threaded process was forked"
with runtime.spawn("alone", OciBundle.build(["true"]), options) as process:
    assert process.wait(60) == 0
assert len(forks) == 1, "a process with one thread need not start an interpreter"
print("done")
"""


def test_eight_threads_at_once(newer: Caller) -> None:
    """Eight threads launch at once, each through a fresh interpreter, and each gets its own guest's exit code."""
    done = newer.script(THREADS, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert os.listdir(newer.mode.base / "locks") == []


# ---- the handle ----


def test_handle_of_a_running_sandbox(base: Path, runsc_new: Path, pipe: Reader) -> None:
    """The handle has the process, waits in bounded time, polls, kills, and tells how it ended; twice is once."""
    runtime = GVisorRuntime.with_path(runsc_new)
    process = runtime.spawn("job", bundle(f"echo {READY}; exec sleep 600"), options(base), stdout=pipe.writer)
    pipe.started()
    assert pipe.line().strip() == READY
    assert os.path.exists(f"/proc/{process.pid}") and process.pid in launching.descendants(os.getpid())
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"sandbox job still runs after 0\.2 s"):
        process.wait(0.2)
    assert 0.15 < time.monotonic() - began < 5
    assert (process.poll(), process.returncode) == (None, None)
    assert process.achieved == "mount-locked" and list(process.record.states) == STATES
    assert "job" in repr(process) and "returncode=None" in repr(process)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert process.poll() == process.returncode == process.wait(0) == -signal.SIGKILL
    process.kill()
    process.send_signal(signal.SIGTERM)
    assert (process.pidfd, process.problems) == (-1, ())
    process.record.verify()
    assert sorted(os.listdir(base)) == ["locks", "records"] and os.listdir(base / "locks") == []


def test_handle_as_context_manager(base: Path, runsc_new: Path, pipe: Reader) -> None:
    """Leaving the block ends a sandbox that still runs and takes away what it had; one that ended keeps its code."""
    runtime = GVisorRuntime.with_path(runsc_new)
    with runtime.spawn("job", bundle(f"echo {READY}; exec sleep 600"), options(base), stdout=pipe.writer) as process:
        pipe.started()
        assert pipe.line().strip() == READY
        with pytest.raises(Busy):
            runtime.spawn("job", bundle("exit 0"), options(base))
        below = launching.descendants(os.getpid())
    assert process.returncode == -signal.SIGKILL
    assert launching.gone(below) == {}
    with runtime.spawn("job", bundle("exit 3"), options(base)) as process:
        assert process.wait(60) == 3
    assert process.returncode == 3
    assert os.listdir(base / "locks") == []


def test_failed_spawn_leaves_the_caller_as_it_was(base: Path, runsc_new: Path) -> None:
    """A failed launch leaves the caller's descriptors and no child; the error has the record, and a retry works."""
    runtime = GVisorRuntime.with_path(runsc_new)
    runtime.spawn("warm", bundle("exit 0"), options(base)).wait(60)  # its sealed copy is kept for the next
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(LaunchError) as caught:
        runtime.spawn("job", os.fspath(base / "no-bundle"), options(base))
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert launching.descendants(os.getpid()) == {}
    record: Any = caught.value.record
    assert record.states[-1] == "Failed" and record.path.parent == base / "records"
    record.verify()
    assert runtime.spawn("job", bundle("exit 4"), options(base)).wait(60) == 4
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_release(base: Path, runsc_old: Path, runsc_new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runsc is asked what it is from its sealed bytes, confined, without a launch and without a trace."""
    monkeypatch.setenv("NUCLEUS_GVISOR_ARTIFACT_BASE", os.fspath(base))
    old, new = (GVisorRuntime.with_path(path).release() for path in (runsc_old, runsc_new))
    assert (old.date, new.date) == (20221219, 20240729)
    assert "systrap" not in old.platforms and "systrap" in new.platforms
    assert GVisorRuntime.with_path(runsc_new).version().startswith("runsc version")
    assert os.listdir(base / "locks") == []
    assert GVisorRuntime.is_available() and GVisorRuntime.resolve_path() == os.fspath(runsc_old)


# ---- staging ----


def test_sealed(base: Path, runsc_new: Path, pipe: Reader) -> None:
    """The process executes a memfd with all four seals and the digest in the record, whoever opens it anew."""
    process = GVisorRuntime.with_path(runsc_new).spawn(
        "job", bundle(f"echo {READY}; exec sleep 600"), options(base, stage=StageMethod.SEALED), stdout=pipe.writer
    )
    with process:
        pipe.started()
        assert pipe.line().strip() == READY
        assert os.readlink(f"/proc/{process.pid}/exe").startswith("/memfd:runsc")
        fd = os.open(f"/proc/{process.pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert fcntl.fcntl(fd, F_GET_SEALS) & ALL_SEALS == ALL_SEALS
            assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o555
            assert digest(Path(f"/proc/self/fd/{fd}")) == digest(runsc_new)
        finally:
            os.close(fd)
        with pytest.raises(OSError, match=r"Operation not permitted|Text file busy"):
            os.close(os.open(f"/proc/{process.pid}/exe", os.O_WRONLY | os.O_CLOEXEC))
    evidence: Any = process.record.evidence("StageSealed")
    assert evidence["sha256"] == digest(runsc_new)


@pytest.mark.parametrize("method", ["auto", "set"])
def test_set(mode: Mode, probe_set: Path, method: str) -> None:
    """A release with side binaries runs from a read-only directory with all of them, where nothing can be changed."""
    caller = Caller(mode, probe_set)
    done = caller.run("--json", "--stage", method, "--id", f"probe-{os.getpid()}", command=["true"])
    data = summary(done)
    kept = method == "auto"
    assert (done.returncode, data["stage"]) == (0, "kept" if kept else "set"), done.stderr
    assert data["achieved"]["proved"] is True
    assert data["digests"] == {name: digest(probe_set) for name in ("runsc", "gvisor-bin/helper")}
    report = json.loads(guest_output(done))
    assert report["exe"].endswith("/set/runsc") and report["exe"].startswith(os.fspath(mode.base))
    for name in ("write runsc", "write helper"):  # an ordinary caller may write neither of root's files in any case
        assert report["beside"].pop(name) in ("EROFS", "ETXTBSY", *(["EACCES"] if kept else []))
    assert report["beside"] == {
        "type": TMPFS_MAGIC,
        "readonly": 1,
        "helper": "OK",
        "chmod helper": "EROFS",
        "remove helper": "EROFS",
        "add helper": "EROFS",
        "clear rdonly": "EPERM",
    }
    assert report["exec"]["/bin/true"] == "ENOENT" and report["exec"]["own program"] == "ENOENT"


def test_set_cannot_be_torn_apart(first: Caller, probe_set: Path) -> None:
    """A method that would leave the side binaries behind is refused."""
    done = Caller(first.mode, probe_set).run("--json", "--stage", "sealed", command=["true"])
    assert done.returncode == 125, done.stderr
    error = summary(done)["error"]
    assert (error["error"], error["hint"]) == ("BadArgument", "--stage auto") and "side binaries" in error["message"]


def test_changed_side_binary_is_refused(first: Caller, probe: Path) -> None:
    """A side binary that others could change spoils the whole release."""
    folder = first.mode.base / "set"
    (folder / "gvisor-bin").mkdir(parents=True)
    for path in (folder / "runsc", folder / "gvisor-bin/helper"):
        path.write_bytes(probe.read_bytes())
        path.chmod(0o755)
    (folder / "gvisor-bin/helper").chmod(0o777)
    done = first.mode.cli("run", "--json", "--runsc", folder / "runsc", "--", "true")
    error = summary(done)["error"]
    assert (done.returncode, error["error"]) == (125, "Untrusted")
    assert error["path"] == os.fspath(folder / "gvisor-bin/helper")


def test_copy_unconfined(newer: Caller) -> None:
    """The private copy lies read-only for all below exec-allow/stage-*, is what runs, and is gone afterwards."""
    process = newer.popen("--stage", "copy", "--enforcement", "off", "--rootless", "--ignore-cgroups",
                          command=[SHELL, "-c", f"echo {READY}; exec sleep 600"])  # fmt: skip
    with launching.started(process) as below:
        stages = list(newer.mode.base.glob("*/exec-allow/stage-*"))
        assert len(stages) == 1 and stat.S_IMODE(stages[0].stat().st_mode) == 0o700
        copy = stages[0] / "runsc"
        assert (stat.S_IMODE(copy.stat().st_mode), digest(copy)) == (0o555, digest(newer.runsc))
        assert os.fspath(copy) in {os.readlink(f"/proc/{pid}/exe") for pid in below}
        process.terminate()
        process.communicate(timeout=30)
    assert sorted(os.listdir(newer.mode.base)) == ["locks", "records"]


def test_copy_under_landlock(base: Path, probe: Path, pipe: Reader) -> None:
    """The reference's policy: beneath the private copy's directory may be executed, nowhere else."""
    if os.geteuid():
        pytest.skip("needs CAP_SYS_ADMIN: Landlock without no_new_privs")
    chosen = options(base, stage=StageMethod.COPY, confinement=Confinement.LANDLOCK, program=Program.PLAIN)
    report, process = spawn_probe(probe, pipe, chosen)
    assert "/exec-allow/stage-" in report["exe"] and report["exe"].startswith(os.fspath(base))
    assert report["itself"] == "OK"
    assert report["exec"]["/bin/true"] == "EACCES" and report["no_new_privs"] == 0
    assert process.achieved == "landlock"


@pytest.mark.parametrize("confinement", ["mount-locked", "off"])
def test_store(newer: Caller, confinement: str) -> None:
    """From a store on a read-only mount the judged file itself runs; on a writable one the method is refused."""
    store = newer.mode.base / "store"
    store.mkdir()
    (store / "runsc").write_bytes(newer.runsc.read_bytes())
    (store / "runsc").chmod(0o755)
    for path in (store, store / "runsc"):
        os.chown(path, newer.mode.account.pw_uid, newer.mode.account.pw_gid)
    caller = Caller(newer.mode, store / "runsc")
    flags = ["--json", "--stage", "store"]
    if confinement == "off":
        flags += ["--enforcement", "off", "--rootless", "--ignore-cgroups"]
    refused = caller.run(*flags, command=["true"])
    assert refused.returncode == 125 and "the store can be written" in refused.stderr
    words = [caller.mode.python, *caller.arguments(*flags, command=[SHELL, "-c", "exit 6"])]
    outer = [] if caller.mode.name == ROOT_MODE else ["--user", "--map-root-user"]
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    pinned = words if caller.needs_pin or not outer else [*words[:-4], "--pin", digest(caller.runsc), *words[-4:]]
    done = caller.mode.run(["unshare", *outer, "--mount", SHELL, "-c", script, os.fspath(store), *pinned])
    assert done.returncode == 6, done.stderr
    assert (summary(done)["stage"], summary(done)["runsc"]) == ("store", os.fspath(store / "runsc"))


def test_execve_that_is_refused(base: Path, without_loader: Path) -> None:
    """When the kernel refuses execve the caller is told so and is as it was; nothing is left, and a retry is alike."""
    for _ in range(2):
        with pytest.raises(ExecFailed, match="No such file") as caught:
            GVisorRuntime.with_path(without_loader).spawn("x", bundle("exit 0"), options(base, program=Program.PLAIN))
        assert (caught.value.errno, caught.value.restricted) == (errno.ENOENT, False)
        record: Any = caught.value.record
        assert record.states == (*STATES[:-1], "Failed")
        record.verify()
        assert sorted(os.listdir(base)) == ["locks", "records"] and os.listdir(base / "locks") == []


# ---- confinement and enforcement ----


def test_landlock_around_a_plain_program(base: Path, probe: Path, pipe: Reader) -> None:
    """The reference's execute-only allowlist holds a program that does not mount, without no_new_privs."""
    if os.geteuid():
        pytest.skip("needs CAP_SYS_ADMIN: Landlock without no_new_privs")
    chosen = options(base, confinement=Confinement.LANDLOCK, program=Program.PLAIN)
    report, process = spawn_probe(probe, pipe, chosen)
    assert set(report["exec"].values()) <= {"EACCES", "ENOENT", "OK"}
    assert {name: report["exec"][name] for name in ("/bin/true", "/usr/bin/su", "/bin/sh", "loader")} == dict.fromkeys(
        ("/bin/true", "/usr/bin/su", "/bin/sh", "loader"), "EACCES"
    )
    assert (report["itself"], report["no_new_privs"]) == ("OK", 0)
    assert (report["descriptors"], report["leaked"]) == ([0, 1, 2], [])
    assert len(report["env"]) == 6
    assert {answers.get("exec") for answers in report["planted"].values()} <= {"EACCES", None}
    assert process.achieved == "landlock"
    process.record.verify()
    evidence: Any = process.record.evidence("ConfineLandlock")
    assert evidence["abi"] >= 1 and evidence["canaries"][0]["answer"] == "EACCES"


LANDLOCK_IN_PLACE = """
import sys
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle
from nucleus_gvisor.runtime.options import Confinement, Program
options = GVisorOciRunOptions(confinement=Confinement.LANDLOCK, program=Program.PLAIN, artifact_base=sys.argv[2])
GVisorRuntime.with_path(sys.argv[1]).exec_with_oci_bundle_options("in-place", OciBundle.build(["true"]), options)
"""


def test_landlock_in_place(base: Path, probe: Path) -> None:
    """The caller restricts itself, last of all, and is then held as a child would be."""
    if os.geteuid():
        pytest.skip("needs CAP_SYS_ADMIN: Landlock without no_new_privs")
    words = [sys.executable, "-c", LANDLOCK_IN_PLACE, os.fspath(probe), os.fspath(base)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {report["exec"][name] for name in ("/bin/true", "/usr/bin/su", "/bin/sh", "loader")} == {"EACCES"}
    assert (report["itself"], report["no_new_privs"]) == ("OK", 0)


LANDLOCK = """
import sys
from nucleus_gvisor.model.errors import LaunchError
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle
from nucleus_gvisor.runtime.options import Confinement, Program
runtime = GVisorRuntime.with_path(sys.argv[1], pin=sys.argv[2] or None)
options = GVisorOciRunOptions(confinement=Confinement.LANDLOCK, program=Program.PLAIN)
try:
    with runtime.spawn("probe-1", OciBundle.build(["true"]), options) as process:
        process.wait(60)
    print(process.achieved)
except LaunchError as error:
    print(type(error).__name__, error.errno)
"""


def test_landlock_needs_a_capability(mode: Mode, probe: Path) -> None:
    """Without no_new_privs Landlock needs CAP_SYS_ADMIN: root and a namespace's root have it, a user is refused."""
    done = Caller(mode, probe).script(LANDLOCK)
    assert done.returncode == 0, done.stderr
    expected = "ConfineFailed 1" if mode.name == USER_MODE else "landlock"
    assert done.stdout.splitlines()[-1] == expected


def test_landlock_around_runsc_is_refused(first: Caller) -> None:
    """runsc would hang or fail under Landlock: it is refused before, with the reason and what to take instead."""
    done = first.run("--json", "--confinement", "landlock", command=["true"])
    data = summary(done)
    assert (done.returncode, data["error"]["error"], data["states"][-1]) == (125, "Incompatible", "Failed")
    assert "must mount" in data["error"]["observed"] and data["error"]["hint"] == "--confinement mount-locked"


DENIED = 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"'


def without_namespaces(mode: Mode, runsc: Path, *flags: str, command: str = "true") -> tuple[int, str, dict[str, Any]]:
    """A launch where no user namespace can be made, as (exit code, output, summary)."""
    caller = Caller(mode, runsc)
    arguments = caller.arguments("--json", "--id", f"probe-{os.getpid()}", *flags, command=[command])
    done = mode.run([SHELL, "-c", DENIED, SHELL, mode.python, *arguments])
    return done.returncode, guest_output(done) or done.stderr, summary(done)


@pytest.fixture
def namespaced(modes: dict[str, Mode]) -> Mode:
    """The mode that can deny user namespaces to itself without changing the host."""
    return modes[NAMESPACE_MODE]


def test_required_without_namespaces(namespaced: Mode, probe: Path) -> None:
    """Where user namespaces are denied, enforcement `required` fails, runs nothing, and says what to change."""
    code, errors, data = without_namespaces(namespaced, probe)
    assert (code, data["error"]["error"], data["states"][-1]) == (125, "ConfineFailed", "Failed")
    assert data["error"]["errno"] == "ENOSPC" and "user.max_user_namespaces" in data["error"]["hint"]
    assert errors.count("\n") == 1 and "user.max_user_namespaces" in errors
    assert sorted(os.listdir(namespaced.base)) == ["locks", "records"] and os.listdir(namespaced.base / "locks") == []


def test_best_effort_without_namespaces(namespaced: Mode, probe: Path) -> None:
    """There `best_effort` launches unconfined, and the record says that nothing was achieved or proved."""
    code, output, data = without_namespaces(namespaced, probe, "--enforcement", "best_effort")
    assert code == 0, output
    assert data["actions"][-2:] == ["ConfineSkipped", "Exec"]
    assert data["achieved"] == {**{"confinement": "none", "proved": False}, "scope": None, "audit": "file"}
    assert data["requested"] == {
        "confinement": "mount-locked",
        "enforcement": "best_effort",
        "scope": "best_effort",
        "audit": "required",
    }
    report = json.loads(output)
    assert (report["exec"]["/bin/true"], report["no_new_privs"]) == ("OK", 0)
    # What needs no permission of the host holds all the same.
    assert (report["descriptors"], len(report["env"]), report["exe"][:12]) == ([0, 1, 2], 6, "/memfd:runsc")
    judged = namespaced.cli("audit", "verify", data["record"])
    assert judged.returncode == 0, judged.stdout


def test_required_policy_is_not_dropped_for_root(base: Path, runsc_new: Path) -> None:
    """The reference drops its policy when runsc is not rootless; here it confines, and no option undoes it."""
    chosen = options(base, require_supervisor_exec_policy=True, runsc_rootless=False)
    with GVisorRuntime.with_path(runsc_new).spawn(secrets.token_hex(16), bundle("exit 0"), chosen) as process:
        assert (process.wait(60), process.achieved) == (0, "mount-locked")
    with pytest.raises(BadArgument, match="contradicts"):
        options(base, require_supervisor_exec_policy=True, enforcement=Enforcement.OFF)
    with pytest.raises(Incompatible):
        GVisorRuntime.with_path(runsc_new).spawn("x", bundle("exit 0"), options(base, confinement=Confinement.LANDLOCK))
