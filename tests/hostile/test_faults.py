"""What hardly ever fails, made to fail at one moment: each is a typed error, with nothing run and nothing left.

The sweep does so at every call. Here it happens to the launch's own second looks, which no single call deceives.
"""

import mmap
import os
import platform
from collections.abc import Callable
from typing import Any

import pytest

from nucleus_gvisor.model.errors import (
    BadBundle,
    Changed,
    GuardRefused,
    NoSpace,
    SafetyViolation,
    StepFailed,
    Untrusted,
)
from nucleus_gvisor.runtime import GVisorOciRunOptions, OciBundle, Platform
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.launch import Launch
from nucleus_gvisor.runtime.options import NetworkMode, StageMethod
from nucleus_gvisor.runtime.paths import Walk
from nucleus_gvisor.runtime.steps import resolve, stage
from tests.hostile.bench import Bench, before_call, children, files, forget_answers, needs_root, nothing_left, put, runs
from tests.hostile.test_weaknesses import NO_NAMESPACES, digest, mounted, write_bundle
from tests.support.modes import ROOT_MODE
from tests.support.places import ROOT

KERNEL = (ROOT / "tests/conformance/kernel.py").read_text() + "\n_libc.prctl(38, 1, 0, 0, 0)\n"
PRCTL = {"x86_64": 157, "aarch64": 167}[platform.machine()]
MEMFD_CREATE = {"x86_64": 319, "aarch64": 279}[platform.machine()]
STEPS = """
import errno
from nucleus_gvisor.runtime import _child, audit, launch as launches
from nucleus_gvisor.runtime.steps import confine, exec_, stage

def failing(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))
    return call

def around(place, name, before=None, after=None):
    real = getattr(place, name)
    def call(*given, **more):
        if before: before(*given)
        answer = real(*given, **more)
        if after: after(*given)
        return answer
    setattr(place, name, call)

def kill(confined, _):
    os.kill(confined.child.pid, signal.SIGKILL)
    os.waitid(os.P_PIDFD, confined.child.pidfd, os.WEXITED | os.WNOWAIT)

def once(error):
    left = [error]
    def strike(*_):
        while left:
            raise left.pop()
    return strike
"""
"""For the driver, which is another process: there a launch always forks, and a child has what its parent has."""
LIES = "lambda confined, _: confined.shown.update(user_namespace='user:[1]')"
SLEEPS = "lambda *_: os.execve('/bin/sleep', ['sleep', '600'], {})"
OFF = {"enforcement": "off"}
COPY = {"stage": "copy"}
FAULTS: dict[str, tuple[str, dict[str, Any], tuple[str, str | None, str]]] = {
    "a child that says other namespaces than it has": (
        f"around(confine, 'look_again', {LIES})", {}, ("SafetyViolation", None, "not in the namespaces")),
    "a child that was killed before it was looked at": (
        "around(confine, 'look_again', kill)", {}, ("StepFailed", None, "cannot be looked at")),
    "a defect in the child": (
        "_child._CONFINE['mount-locked'] = lambda plan: {}[1]", {}, ("StepFailed", None, "the child failed")),
    "a child that executes something else": (
        f"around(_child, '_obey', lambda *_: setattr(_child, 'execute', {SLEEPS}))", OFF,
        ("SafetyViolation", None, "something else is executed")),
    "a call that fails where a step looks": (
        "os.getxattr = failing(errno.EIO)", {}, ("StepFailed", "EIO", "system call failed")),
    "a call that fails where a step acts": (
        "around(confine, 'look_again', failing(errno.EIO))", {}, ("StepFailed", "EIO", "system call failed")),
    "a directory that cannot be laid out": (
        "_child.lay_out = failing(errno.ENOSPC)", OFF, ("StepFailed", "ENOSPC", "cannot lay out")),
    "a disk that cannot sync the copy": ("os.fsync = failing(errno.EIO)", COPY, ("StepFailed", "EIO", "cannot stage")),
    "a disk that changes the copy": (
        "around(os, 'fsync', after=lambda fd: os.pwrite(fd, b'x', 99))", COPY,
        ("SafetyViolation", None, "not what was written")),
    "a stage that cannot be made": (
        "stage.make_directory = failing(errno.EIO)", COPY, ("StepFailed", "EIO", "system call failed")),
    "no memory while it is unmade": (
        "around(launches.Launch, '_keep_record', once(MemoryError()))", {"pin": "0" * 64},
        ("PinMismatch", None, "not the pinned")),
    "no memory right after execve": (
        "around(audit.Record, 'close', once(MemoryError()))", OFF, ("MemoryError", None, "")),
    "no memory right after a line was written": (
        "strike = once(MemoryError())\n"
        "around(audit.Record, 'append', after=lambda _, line: line.action == 'Prepare' and strike())", {},
        ("MemoryError", None, "")),
    "no memory before the launch began": (
        "around(launches, 'LaunchMachine', once(MemoryError()))", {}, ("MemoryError", None, "")),
}  # fmt: skip
"""What it is -> (how the driver is spoilt, options, (error, errno, words))."""


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_at_one_moment(bench: Bench, what: str) -> None:
    """A typed error, the caller as it was, no file and no process of the launch's, and a sound record."""
    spoil, options, expected = FAULTS[what]
    driven = bench.drive(before=STEPS + spoil, options=options)
    told = driven["driver"]
    assert (told["error"], told.get("errno")) == expected[:2] and expected[2] in told.get("message", ""), told
    assert driven["before"] == driven["after"] and files(bench.artifacts) == []
    if "execve" not in what:  # after which the sandbox may have begun; it was ended
        assert runs(driven["reports"]) == []
    assert bench.spawn(id="next").wait() == 0 and files(bench.artifacts) == []


def test_in_place_other_namespaces_are_entered(bench: Bench) -> None:
    """What was entered is compared with what the child proved; the process runs nothing, and has to exit."""
    lies = f"around(exec_, 'join', {LIES})"
    driven = bench.drive(before=STEPS + lies, in_place=True)
    assert driven["driver"]["error"] == "SafetyViolation" and "entered other" in driven["driver"]["message"]
    assert runs(driven["reports"]) == []
    assert bench.spawn(id="next").wait() == 0 and files(bench.artifacts) == []


# ---- a kernel that is less ----


@pytest.mark.parametrize(
    "less", [f"answer({PRCTL}, errno.EPERM, (0, EQUAL, 15))", f"answer({PRCTL}, errno.EPERM, (0, EQUAL, 1))",
             f"answer({MEMFD_CREATE}, errno.EINVAL, (1, ANY_BIT, 0x10))"],
    ids=["no names", "no signal at a parent's end", "no MFD_EXEC"],
)  # fmt: skip
def test_what_can_be_done_without(bench: Bench, less: str) -> None:
    """PR_SET_NAME and PR_SET_PDEATHSIG under a filter, and a flag that kernels before 6.3 do not know."""
    bench.drive_run(before=KERNEL + less)
    assert files(bench.artifacts) == []


def test_descriptors_that_cannot_be_closed_end_the_launch(bench: Bench) -> None:
    """close_range(2) without memory closed nothing: the child does not go on with what it has inherited."""
    driven = bench.drive(before=KERNEL + "answer(436, errno.ENOMEM)")
    assert (driven["driver"]["error"], driven["driver"]["errno"]) == ("ConfineFailed", "ENOMEM"), driven["driver"]
    assert "close descriptors" in driven["driver"]["message"] and driven["before"] == driven["after"]
    assert runs(driven["reports"]) == [] and files(bench.artifacts) == []


@needs_root
def test_a_read_only_proc_stays_read_only(bench: Bench) -> None:
    """What the caller's container holds read-only is not opened again for runsc, not even by root."""
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
              'mount -o remount,bind,ro /proc && exec "$@"', "sh"]  # fmt: skip
    driven = bench.drive(prefix=prefix)
    assert (driven["driver"]["error"], driven["driver"]["errno"]) == ("ConfineFailed", "EROFS"), driven["driver"]
    assert runs(driven["reports"]) == [] and files(bench.artifacts) == []


@needs_root
def test_a_set_is_not_staged_without_its_confinement(bench: Bench) -> None:
    """Best effort does not put the set somewhere else where there is no private tmpfs for it."""
    options = {"stage": "set", "enforcement": "best_effort", "pin": digest(bench.runsc)}
    driven = bench.drive(prefix=NO_NAMESPACES, options=options)
    assert driven["driver"]["error"] == "Unsupported" and driven["driver"]["hint"] == 'stage="copy"', driven["driver"]
    assert driven["reports"] == [] and files(bench.artifacts) == [] and driven["before"] == driven["after"]


@needs_root
def test_a_mount_whose_flags_are_locked_is_not_shown(mode_bench: Bench) -> None:
    """Without privilege a bind from a noexec mount cannot be had as the guest needs it; the error names it."""
    assert mode_bench.mode is not None
    seen = mode_bench.base / "seen"
    command = [mode_bench.mode.python, "-m", "nucleus_gvisor.runtime.cli", "run", "--runsc", str(mode_bench.runsc),
               "--mount", f"{seen}:/seen:ro", "--pin", digest(mode_bench.runsc), "--", "true"]  # fmt: skip
    with mounted(seen, "mode=755,noexec"):
        done = mode_bench.mode.run(command)
    if mode_bench.mode.name == ROOT_MODE:
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert done.returncode == 125 and str(seen) in done.stderr and "noexec" in done.stderr, done
    assert runs(mode_bench.witness.reports()) == []


# ---- before anything is confined ----


def test_a_network_namespace_of_the_bundle_s_is_not_entered_locked(bench: Bench) -> None:
    """It belongs to another user namespace than the supervisor's own."""
    spaces = {"namespaces": [{"type": "network", "path": "/run/netns/other"}]}
    folder = write_bundle(bench.base / "bundle", linux=spaces)
    error = bench.refuse(BadBundle, bundle=folder, network_mode=NetworkMode.SANDBOX)
    assert error.path == b"/run/netns/other" and 'enforcement="off"' in error.hint


def test_a_rootfs_that_is_a_file(bench: Bench) -> None:
    """A bundle's root is a directory."""
    error = bench.refuse(BadBundle, bundle=OciBundle.build(["true"], rootfs=str(bench.runsc)))
    assert error.path == os.fsencode(bench.runsc) and "not a directory" in str(error)


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_is_exchanged_while_it_is_opened(bench: Bench, monkeypatch: pytest.MonkeyPatch, gone: bool) -> None:
    """What is opened to be read is what was looked at, or the launch is refused."""
    found = Walk(Identity.current()).to(os.fsencode(bench.runsc))
    other = bench.install(bench.base / "other", brand="forged")
    act: Callable[[], object] = bench.runsc.unlink if gone else lambda: put(bench.runsc, other)
    before_call(monkeypatch, linux, "close", act)  # of what it was looked at through
    try:
        with pytest.raises(Untrusted, match="cannot be read" if gone else "replaced"):
            resolve._open_regular(found)
    finally:
        os.close(found.parent)


def test_too_many_side_binaries(bench: Bench) -> None:
    """Each would be judged, copied and hashed: there is an end to it."""
    folder = bench.runsc.parent / "gvisor-bin"
    for number in range(resolve.MAX_SIDE_BINARIES + 1):
        bench.install(folder / f"side-{number}")
    error = bench.refuse(Untrusted)
    assert error.observed == resolve.MAX_SIDE_BINARIES + 1


@needs_root
def test_no_room_for_all_of_a_set(bench: Bench) -> None:
    """A copy that gets half of a set is unmade as one that gets nothing."""
    bench.install(bench.runsc.parent / "gvisor-bin/helper", brand="side-helper")
    room = 3 * bench.runsc.stat().st_size // 2
    with mounted(bench.artifacts, f"size={room}"):
        error = bench.refuse(NoSpace, stage=StageMethod.COPY)
        assert "No space" in str(error.observed)


@pytest.mark.parametrize(("when", "where"), [("sendfile", 0), ("compared", 4096)])
def test_a_write_that_leaves_no_time_is_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, when: str, where: int
) -> None:
    """Through a mapping whose page has been written before, a file changes without its times: the bytes tell."""
    with bench.runsc.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        for page in range(0, len(view), mmap.PAGESIZE):
            view[page] = view[page]
        judged = resolve.judge(os.fsencode(bench.runsc), Identity.current(), pin=None)
        stage.forget()

        def write() -> None:
            view[where] ^= 0xFF

        before_call(monkeypatch, os if when == "sendfile" else stage, when, write)
        try:
            with pytest.raises((Changed, SafetyViolation)) as caught:
                stage.seal_all(judged)
            assert caught.value.path == os.fsencode(bench.runsc)
            assert type(caught.value) is (SafetyViolation if when == "sendfile" else Changed)
        finally:
            judged.close()


def test_an_action_that_was_not_asked_for_starts_nothing_that_stays(bench: Bench) -> None:
    """It is looked at before it is refused: the child that was made for the look ends with the next one."""
    forget_answers()
    options = GVisorOciRunOptions(platform=Platform.AUTO, artifact_base=bench.artifacts, stage=StageMethod.SEALED)
    with nothing_left(bench.artifacts):
        launch = Launch("job", OciBundle.build(["true"]), options, runsc_path=os.fsencode(bench.runsc))
        ledger = linux.ledger()
        launch._ledger.use()
        try:
            machine = launch.begin()
            for action in ("Resolve", "Prepare", "StageSealed"):
                machine.fire(action)
            with pytest.raises(GuardRefused):
                machine.fire("ConfineSkipped")
            assert len(children()) == 1
            machine.fire("ConfineLocked")
            assert len(children()) == 1 and launch.confined is not None
            assert launch.confined.shown["confined"] == "mount-locked"
        finally:
            launch.undo()
            ledger.use()


@needs_root
def test_a_disk_without_room_for_the_stage(bench: Bench) -> None:
    """The copy's own directory cannot be made: said so, and every descriptor is closed."""
    with mounted(bench.artifacts, "nr_inodes=2") as container:
        directory = os.open(container, os.O_PATH | os.O_DIRECTORY)
        try:
            before = os.listdir("/proc/self/fd")
            with pytest.raises(StepFailed) as caught:
                stage._copy({}, {}, directory, os.fsencode(container))
            assert caught.value.step == "Stage" and os.listdir(container) == ["exec-allow"]
            assert os.listdir("/proc/self/fd") == before
        finally:
            os.close(directory)
