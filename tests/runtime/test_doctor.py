"""The doctor: it promises what a launch then keeps, says why not, and changes nothing."""

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nucleus_gvisor.runtime import GVisorOciRunOptions, _linux, doctor, trial
from nucleus_gvisor.runtime.launch import LIMITS
from nucleus_gvisor.runtime.steps.stage import forget
from tests.e2e.launching import digest
from tests.support.modes import ROOT_MODE, Mode
from tests.support.places import mounts_below

TEXT = {"type": "string", "minLength": 1}
MAYBE = {"type": ["string", "null"]}
CHECK = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "ok", "found", "cause", "mend", "needed_by", "details"],
    "properties": {
        "name": {"enum": list(doctor._CHECKS)},
        "ok": {"enum": ["yes", "no", "unknown"]},
        "found": TEXT,
        "cause": MAYBE,
        "mend": MAYBE,
        "needed_by": {"type": "array", "minItems": 1, "items": {"enum": [feature.value for feature in doctor.Feature]}},
        "details": {"type": "object"},
    },
    "if": {"properties": {"ok": {"const": "no"}}},
    "then": {"properties": {"cause": TEXT, "mend": TEXT}},
}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["launch", "blockers", "confinement", "stage", "platform", "checks"],
    "properties": {
        "launch": {"type": "boolean"},
        "blockers": {"type": "array", "items": {"enum": list(doctor._CHECKS)}},
        "confinement": {"enum": ["mount-locked", None]},
        "stage": {"enum": ["kept", "sealed", "set", None]},
        "platform": MAYBE,
        "checks": {"type": "array", "minItems": len(doctor._CHECKS), "maxItems": len(doctor._CHECKS), "items": CHECK},
    },
}
IN_PLACE_OF_PROC = "mount -t tmpfs none /proc"


class Told:
    """What `doctor --json` said."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert done.stderr == "", done.stderr
        self.code, self.data = done.returncode, json.loads(done.stdout)
        jsonschema.validate(self.data, SCHEMA)
        assert self.code == (0 if self.data["launch"] else 1)
        assert self.data["launch"] == (not self.data["blockers"])

    def __getitem__(self, name: str) -> dict[str, Any]:
        check: dict[str, Any] = next(check for check in self.data["checks"] if check["name"] == name)
        return check

    def blocked_by(self, name: str) -> dict[str, Any]:
        """The check `name`, which has to be the only one that keeps a launch from succeeding."""
        assert self.data["blockers"] == [name]
        assert self[name]["ok"] == "no"
        return self[name]


def ask(mode: Mode, *arguments: str | os.PathLike[str], **options: Any) -> Told:
    return Told(mode.cli("doctor", "--json", *arguments, **options))


def within(mode: Mode, setup: str, *arguments: str, namespaces: str = "--user --map-root-user --mount") -> Told:
    """The doctor's answer after the shell commands `setup`, in namespaces of its own."""
    argv = [mode.python, "-m", "nucleus_gvisor.runtime.cli", "doctor", "--json", *arguments]
    script = f"set -e; {setup}; exec {shlex.join(argv)}"
    return Told(mode.run(["unshare", *namespaces.split(), "--", "/bin/sh", "-c", script]))


INNER = "--user --map-root-user --mount"


@pytest.fixture
def first_mode(modes: dict[str, Mode]) -> Mode:
    """The most privileged caller that there is here."""
    return next(iter(modes.values()))


def listing(*folders: Path) -> list[tuple[str, int, int, int]]:
    """What lies below `folders`, as far as a launch could have changed it."""
    paths = [path for folder in folders for path in (folder, *sorted(folder.rglob("*")))]
    return [(str(p), (s := p.lstat()).st_mode, s.st_size, s.st_mtime_ns) for p in paths]


# ---- a host that can ----


def test_a_yes_is_kept(mode: Mode) -> None:
    """For each kind of caller, a host that the doctor finds good runs a sandbox as the doctor said it would."""
    told = ask(mode)
    assert told.data["launch"], told.data["blockers"]
    done = mode.cli("run", "--json", "--", "true")
    launch = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert told.data["confinement"] == launch["achieved"]["confinement"]
    assert (told.data["stage"], told.data["platform"]) == (launch["stage"], launch["platform"])
    assert told["runsc"]["details"]["digests"] == launch["digests"]
    assert told["release"]["details"]["version"] == launch["release"]


def test_nothing_changes(mode: Mode) -> None:
    """Nothing is made or mounted, in the artifact base or in the places that the trial covers."""
    places = [Path(place) for place in ("/srv", "/mnt", "/media") if os.path.isdir(place)]

    def seen() -> object:
        # In the places only what stands there itself: others live below them, this test run perhaps.
        names = [sorted(path.name for path in place.iterdir()) for place in places]
        return listing(mode.base), names, [mounts_below(place) for place in (mode.base, *places)]

    before = seen()
    assert ask(mode).data["launch"]
    assert seen() == before


def test_the_caller_is_named(modes: dict[str, Mode]) -> None:
    """Root, an ordinary user and root of a user namespace are told apart."""
    for name, mode in modes.items():
        details = ask(mode)["caller"]["details"]
        assert details["host_root"] == (name == ROOT_MODE)
        assert details["user_namespace"] == (name == "userns")


def test_each_candidate_has_its_verdict(modes: dict[str, Mode]) -> None:
    """Every place that is searched is listed, absent ones too, and exactly one is chosen."""
    candidates = ask(modes["user"])["runsc"]["details"]["candidates"]
    verdicts = {candidate["path"]: candidate["verdict"] for candidate in candidates}
    assert {"/usr/local/bin/runsc", "/usr/bin/runsc", "/opt/gvisor/runsc", "/usr/sbin/runsc"} <= set(verdicts)
    assert verdicts["/opt/gvisor/runsc"] == "absent"
    assert [candidate["verdict"][:7] for candidate in candidates if candidate["chosen"]] == ["trusted"]


def test_both_releases_are_asked(mode: Mode, runsc_old: Path, runsc_new: Path) -> None:
    """The platforms are the binary's own words, and the library's default platform is judged by them."""
    old, new = ask(mode, "--runsc", runsc_old), ask(mode, "--runsc", runsc_new)
    assert "systrap" not in old["release"]["details"]["platforms"]
    assert old["default platform"]["ok"] == "no"
    assert old.data["launch"], "the command line's default is auto, which does without"
    if new["runsc"]["ok"] == "yes":  # in a user namespace, only the system's paths are surely root's
        assert "systrap" in new["release"]["details"]["platforms"]
        assert new["default platform"]["ok"] == "yes"
    else:
        assert mode.name == "userns"


def test_it_works_among_threads(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library function does not fork a process with threads, and finds the same."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        report = doctor.examine(base=base)
    finally:
        done.set()
        thread.join()
    assert report.launch, report.blockers
    assert report["confinement"].details["undo"] == "EPERM"


def test_no_descriptor_is_left_open(base: Path) -> None:
    """Looking twice leaves as many descriptors as looking once."""
    doctor.examine(base=base)
    before = len(os.listdir("/proc/self/fd"))
    doctor.examine(base=base)
    doctor.examine(base=base / "missing", runsc_path="/nowhere/runsc")
    # The sealed copies of a harmless program are kept, as a launch's are.
    assert len(os.listdir("/proc/self/fd")) == before


# ---- a real guest ----


def test_a_hardened_service(modes: dict[str, Mode], runsc_old: Path, runsc_new: Path) -> None:
    """With systemd's ProtectKernelTunables= an ordinary user's launch cannot have a /proc of its own: the older release
    needs one, so the answer is no, with why and how to mend it; the newer one starts. And so it is.
    """
    mode = modes["user"]
    hardened = "mount --rbind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys"
    for release, starts in ((runsc_old, False), (runsc_new, True)):
        told = within(mode, hardened, "--runsc", str(release), "--pin", digest(release), namespaces=INNER)
        assert told.data["launch"] is starts, told.data
        if not starts:
            assert told.data["blockers"] == ["launch"]
            assert "covered or read-only (/proc/sys" in told["launch"]["cause"]
            assert "ProtectKernelTunables" in told["launch"]["mend"]


def test_what_a_release_cannot_do(first_mode: Mode, runsc_old: Path, runsc_new: Path) -> None:
    """Debian 12's answers EINVAL to what `ls DIR` asks: that is found in a guest, and no launch is refused for it."""
    old, new = ask(first_mode, "--runsc", runsc_old), ask(first_mode, "--runsc", runsc_new)
    assert old.data["launch"] and new.data["launch"]
    assert "ls /" in old["programs"]["details"]["failed"] and "Invalid argument" in old["programs"]["cause"]
    assert new["programs"]["ok"] == "yes"


def test_each_way_is_tried(first_mode: Mode, runsc_old: Path, runsc_new: Path) -> None:
    """The sandbox network with a guest on it, and the refusal of a release that has none."""
    new, old = (ask(first_mode, "--again", "--runsc", runsc) for runsc in (runsc_new, runsc_old))
    for way in ("network sandbox", "network host", "in place"):
        assert new[way]["found"] == "a guest ran and ended", new[way]
    assert "no sandbox network" in old["network sandbox"]["cause"]
    assert old["network host"]["ok"] == old["in place"]["ok"] == "yes"


def test_what_ran_is_remembered(modes: dict[str, Mode], base: Path, runsc_new: Path) -> None:
    """With when it ran; not by who may do other things, and not when all is to be tried again."""
    mode = modes["user"]

    def told(*more: str | Path) -> dict[str, Any]:
        return ask(mode, "--runsc", runsc_new, *more)["launch"]

    assert "tried" not in told("--again")["details"]
    again = told()
    assert again["ok"] == "yes" and again["details"]["tried"] in again["found"] and "--again" in again["found"]
    limited = Told(mode.run(["prlimit", "--nofile=5000:5000", mode.python, "-m", "nucleus_gvisor.runtime.cli", "doctor",
                             "--json", "--runsc", str(runsc_new)]))  # fmt: skip
    assert limited["launch"]["ok"] == "yes" and "tried" not in limited["launch"]["details"]
    assert "tried" not in told("--again")["details"]


def test_an_attempt_that_is_killed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody found out is no answer."""
    monkeypatch.setattr(doctor, "_other_launch", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    attempt = doctor._Attempt(doctor._Patient(None, base, None), GVisorOciRunOptions(), 1)
    assert attempt.finding().ok is doctor.Answer.UNKNOWN


@pytest.mark.parametrize(
    ("said", "answer"), [(b"", "runsc said nothing"), (b"one\ncannot start: EOF\n", "cannot start: EOF")]
)
def test_a_guest_that_does_not_start(base: Path, monkeypatch: pytest.MonkeyPatch, said: bytes, answer: str) -> None:
    """No promise then, whatever all else says; the programs are not told of, nor other ways tried."""
    monkeypatch.setattr(trial.Trial, "launch", lambda *_: said)
    report = doctor.examine(base=base)
    assert report.blockers == ("launch",)
    assert answer in report["launch"].cause
    assert report["programs"].ok is report["network sandbox"].ok is doctor.Answer.UNKNOWN


def test_a_guest_that_does_not_end(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up and ended; nobody can promise a launch then."""
    monkeypatch.setattr(trial, "GUEST", "sleep 1000")
    real = doctor._tried_launch
    monkeypatch.setattr(doctor, "_tried_launch", lambda trial, _=0: real(trial, 1))
    report = doctor.examine(base=base)
    assert report["launch"].ok is doctor.Answer.UNKNOWN and report.blockers == ("launch",)


# ---- runsc ----


def test_no_runsc(mode: Mode) -> None:
    """A runsc that is not there is the only thing in the way, and the rest is found out all the same."""
    told = ask(mode, "--runsc", "/nowhere/runsc")
    check = told.blocked_by("runsc")
    assert "/nowhere/runsc" in check["cause"]
    assert "apt-get install runsc" in check["mend"]
    assert told.data["confinement"] == "mount-locked"
    assert (told["release"]["ok"], told["stage"]["ok"]) == ("unknown", "unknown")


def test_a_runsc_that_others_can_write(base: Path, runsc_old: Path) -> None:
    """The refusal is the launch's own, with its mend."""
    copy = base / "runsc"
    shutil.copy(runsc_old, copy)
    copy.chmod(0o777)
    check = doctor.examine(runsc_path=copy, base=base)["runsc"]
    assert check.ok is doctor.Answer.NO
    assert "can be written by others" in check.cause
    assert "install it anew" in check.mend


def test_something_else_than_runsc(base: Path) -> None:
    """A trusted program that is not runsc is found out by asking it, where it is confined."""
    copy = base / "runsc"
    shutil.copy("/bin/true", copy)
    report = doctor.examine(runsc_path=copy, base=base)
    assert report["runsc"].ok is doctor.Answer.YES
    assert report["release"].ok is doctor.Answer.NO
    assert "does not answer as runsc" in report["release"].cause
    assert report.blockers == ("release",)


def test_the_pin(modes: dict[str, Mode]) -> None:
    """The right pin is a yes, a wrong one and one that is no digest are a no with the cause."""
    mode = modes["user"]
    digest = ask(mode)["runsc"]["details"]["digests"]["runsc"]
    assert ask(mode, "--pin", digest).data["launch"]
    assert digest in ask(mode, "--pin", "0" * 64).blocked_by("runsc")["cause"]
    assert "SHA-256" in ask(mode, "--pin", "junk").blocked_by("runsc")["cause"]


def test_side_binaries_belong_to_the_set(base: Path, runsc_old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runsc with gvisor-bin beside it is kept, or staged as a set, and asked from it; the pin is of all of it."""
    (base / "gvisor-bin").mkdir(mode=0o755)
    shutil.copy(runsc_old, base / "runsc")
    shutil.copy("/bin/true", base / "gvisor-bin" / "side")
    report = doctor.examine(runsc_path=base / "runsc", base=base)
    assert report.stage == "kept"
    assert set(report["runsc"].details["digests"]) == {"runsc", "gvisor-bin/side"}
    assert report.launch, report.blockers
    pin = report["runsc"].details["pin"]
    assert doctor.examine(runsc_path=base / "runsc", base=base, pin=pin)["runsc"].details["pin"] == pin
    assert pin not in report["runsc"].details["digests"].values()
    monkeypatch.setenv("NUCLEUS_GVISOR_CACHE", "/tmp")
    assert doctor.examine(runsc_path=base / "runsc", base=base).stage == "set"


# ---- the artifact base ----


def test_a_base_that_others_can_write(mode: Mode) -> None:
    """A base of mode 0777 is refused, and stays as it is."""
    mode.base.chmod(0o777)
    check = ask(mode).blocked_by("artifact base")
    assert "0777" in check["cause"]
    assert "only you can write" in check["mend"]
    assert mode.base.stat().st_mode & 0o7777 == 0o777


def test_a_base_that_would_be_mended(mode: Mode) -> None:
    """A launch makes a base of mode 0755 private; the doctor only says so."""
    mode.base.chmod(0o755)
    check = ask(mode)["artifact base"]
    assert check["ok"] == "yes"
    assert "mode 0755, would be made 0700" in check["found"]
    assert mode.base.stat().st_mode & 0o7777 == 0o755


def test_a_base_that_would_be_made(mode: Mode) -> None:
    """A missing base is no obstacle, all directories to be made are named, and none is made."""
    told = ask(mode, "--artifact-base", mode.base / "a" / "b")
    assert told.data["launch"]
    assert told["artifact base"]["details"]["missing"] == [str(mode.base / "a"), str(mode.base / "a/b")]
    assert list(mode.base.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text(""), "not a directory"),
        (lambda path: path.symlink_to("/"), "symbolic link"),
        (lambda path: path.mkdir(mode=0o500) or path.chmod(0o2722), "not private"),
    ],
)
def test_a_base_that_is_none(modes: dict[str, Mode], make: Callable[[Path], object], words: str) -> None:
    """A file, a link and a directory with odd bits in the base's place are refused with what was seen."""
    mode = modes["userns"]
    make(mode.base / "x")
    os.chown(mode.base / "x", mode.account.pw_uid, mode.account.pw_gid, follow_symlinks=False)
    if words == "not private":
        (mode.base / "x").chmod(0o2722)
    assert words in ask(mode, "--artifact-base", mode.base / "x").blocked_by("artifact base")["cause"]


def test_a_base_below_tmp(mode: Mode) -> None:
    """A world-writable directory is nobody's base; below one that is not root's own and sticky, none is made."""
    check = ask(mode, "--artifact-base", "/tmp").blocked_by("artifact base")
    assert "/tmp" in check["cause"]
    assert "only you can write" in check["mend"]


@pytest.mark.parametrize(
    ("options", "cause"),
    [("ro,mode=700", "mounted read-only"), ("size=4k,mode=700", "is full"), ("nr_inodes=1,mode=700", "no inodes left")],
)
def test_a_base_where_nothing_can_be_made(modes: dict[str, Mode], options: str, cause: str) -> None:
    """A read-only, a full and an inode-less file system are told before a launch runs into them."""
    mode = modes["userns"]
    fill = "" if "size" not in options else f"; head -c 4096 /dev/zero > {mode.base}/fill"
    told = within(mode, f"mount -t tmpfs -o {options} none {mode.base}{fill}", namespaces="--mount")
    check = told.blocked_by("artifact base")
    assert cause in check["cause"]
    assert check["mend"]


def test_noexec_matters_to_the_copy_only(modes: dict[str, Mode]) -> None:
    """A base on a noexec mount is a no that does not keep a default launch from succeeding."""
    mode = modes["userns"]
    told = within(mode, f"mount -t tmpfs -o noexec,mode=700 none {mode.base}", namespaces="--mount")
    assert told.data["launch"]
    assert told["mount flags"]["ok"] == "no"
    assert told["mount flags"]["needed_by"] == ["--stage copy"]


# ---- the kernel and its limits ----


@pytest.mark.parametrize("least", [20, 100])
def test_few_descriptors(mode: Mode, least: int) -> None:
    """A low RLIMIT_NOFILE is named with what a launch needs."""
    argv = [mode.python, "-m", "nucleus_gvisor.runtime.cli", "doctor", "--json"]
    told = Told(mode.run(["/bin/sh", "-c", f"ulimit -Sn {least}; exec {shlex.join(argv)}"]))
    assert "limits" in told.data["blockers"]
    assert f"the soft RLIMIT_NOFILE is {least}, a launch needs 128" in told["limits"]["cause"]
    assert "RLIMIT_NOFILE" in told["limits"]["mend"]


def test_each_limit_is_reported(base: Path) -> None:
    """The limits are those that a launch judges, no more and no fewer."""
    assert set(doctor.examine(base=base)["limits"].details) == {least.name for least in LIMITS.values()}


def test_no_user_namespaces(modes: dict[str, Mode]) -> None:
    """Where the sysctl allows none, the probe says so, the trial says so, and the mend names the sysctl."""
    told = within(modes["user"], "echo 0 > /proc/sys/user/max_user_namespaces", namespaces="--user --map-root-user")
    assert set(told.data["blockers"]) == {"user namespaces", "confinement"}
    check = told["user namespaces"]
    assert "user.max_user_namespaces is 0" in check["cause"]
    assert "sysctl -w user.max_user_namespaces" in check["mend"]
    assert "unshare" in told["confinement"]["cause"]
    assert told["network namespaces"]["ok"] == "no"
    assert told.data["confinement"] is None
    assert told["release"]["ok"] == "unknown", "it is asked in a confined child only"


def test_no_network_namespaces(modes: dict[str, Mode]) -> None:
    """Without network namespaces no guest starts, for runsc gives each one of its own; the sysctl is named."""
    told = within(modes["user"], "echo 0 > /proc/sys/user/max_net_namespaces", namespaces="--user --map-root-user")
    assert told.data["blockers"] == ["launch"]
    assert "user.max_net_namespaces is 0" in told["launch"]["cause"]
    assert told["network namespaces"]["ok"] == "no"
    assert "user.max_net_namespaces is 0" in told["network namespaces"]["cause"]
    assert told["network namespaces"]["needed_by"] == ["--network sandbox"]


def test_memfds_may_not_be_executed(modes: dict[str, Mode]) -> None:
    """vm.memfd_noexec=2, here in a pid namespace of its own, forbids what the sealed stage rests on, and is named."""
    if ROOT_MODE not in modes:
        pytest.skip("needs root: the sysctl's file is root's")
    told = within(modes[ROOT_MODE], "echo 2 > /proc/sys/vm/memfd_noexec", namespaces="--pid --fork --mount-proc")
    assert told["memfd"]["ok"] == "no"
    assert told["memfd"]["cause"] == "vm.memfd_noexec is 2: no memfd may be executed"
    assert "sysctl -w vm.memfd_noexec" in told["memfd"]["mend"]
    assert "memfd" in told.data["blockers"]


def test_memfds_may_not_be_made(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox that denies memfd_create is told from the sysctl."""

    def denied(*_: object) -> int:
        raise PermissionError(errno.EPERM, "denied")

    monkeypatch.setattr(os, "memfd_create", denied)
    forget()  # the copies that other tests sealed
    check = doctor.examine(base=base)["memfd"]
    assert check.ok is doctor.Answer.NO
    assert check.found.startswith("cannot create")
    assert "security module or sandbox" in check.cause


def test_no_proc(modes: dict[str, Mode]) -> None:
    """Without /proc nearly nothing can be known; it is said, not traced back."""
    told = within(modes["user"], IN_PLACE_OF_PROC)
    assert not told.data["launch"]
    assert told["caller"]["ok"] == "no"
    assert told["caller"]["mend"].startswith("mount /proc")


@pytest.mark.parametrize("name", ["mount_setattr", "open_tree", "move_mount"])
def test_a_kernel_without_the_mount_calls(base: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """ENOSYS is told from every other answer, with the kernel version that has the call."""

    def unknown(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSYS, "unknown")

    monkeypatch.setattr(_linux, name, unknown)
    report = doctor.examine(base=base)
    check = report["mount calls"]
    assert check.ok is doctor.Answer.NO
    assert name in check.cause
    assert check.mend.startswith(f"Linux {doctor._KERNEL[name][0]}")
    assert not report.launch


# A filter that answers one system call with ENOSYS, as a container engine's does for those that it does not know:
# load the number, compare it, SECCOMP_RET_ERRNO or SECCOMP_RET_ALLOW (linux/seccomp.h, linux/filter.h).
FILTERED = """
import ctypes, errno, os, struct, sys
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[1])), (6, 0, 0, 0x50000 | errno.ENOSYS), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-m", "nucleus_gvisor.runtime.cli", "doctor", "--json"])
"""


@pytest.mark.parametrize(("number", "name"), [(442, "mount calls"), (424, "pidfd")])
def test_a_seccomp_filter_is_named(modes: dict[str, Mode], number: int, name: str) -> None:
    """A call that the kernel has and a filter denies: the filter is told of, for it may be what has to be mended."""
    mode = modes["user"]
    told = Told(mode.run([mode.python, "-c", FILTERED, str(number)]))
    assert told[name]["ok"] == "no"
    assert "a seccomp filter is in force" in told[name]["cause"]
    assert "seccomp profile" in told[name]["mend"]


def test_no_place_for_the_trial(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without any of the usual directories: not found out, and so no promise."""
    monkeypatch.setattr(trial, "PLACES", ("/nowhere",))
    report = doctor.examine(base=base)
    assert not report.launch
    assert "none of /nowhere is there" in report["confinement"].found


def test_a_probe_that_breaks_is_unknown(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no interpreter answers nothing, and says so."""
    monkeypatch.setattr(doctor.interpreter, "find", lambda: "/bin/false")  # type: ignore[attr-defined]
    report = doctor.examine(base=base)
    assert report["user namespaces"].ok is doctor.Answer.UNKNOWN
    assert "the probe ended with 1" in report["user namespaces"].found


@pytest.mark.parametrize(
    ("sysctls", "number", "cause"),
    [
        ({"user.max_user_namespaces": "0"}, errno.ENOSPC, "user.max_user_namespaces is 0"),
        ({"kernel.unprivileged_userns_clone": "0"}, errno.EPERM, "kernel.unprivileged_userns_clone is 0"),
        ({"kernel.apparmor_restrict_unprivileged_userns": "1"}, errno.EACCES, "AppArmor"),
        ({}, errno.EUSERS, "user.max_*_namespaces"),
        ({}, errno.EINVAL, "built without"),
        ({}, errno.EPERM, "container"),
    ],
)
def test_why_a_namespace_is_denied(sysctls: dict[str, str], number: int, cause: str) -> None:
    """Each likely cause is told from the sysctls and the errno, and none is without a mend."""
    told, mend = doctor._why_no_namespace("user", number, sysctls)
    assert cause in told
    assert mend


def test_no_landlock_is_no_obstacle(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ABI 0 is a no with a mend that no default launch needs."""
    monkeypatch.setattr(_linux, "landlock_abi", lambda: 0)
    report = doctor.examine(base=base)
    assert report["landlock"].ok is doctor.Answer.NO
    assert "lsm=" in report["landlock"].mend
    assert report.launch


def test_kvm_is_looked_at_only(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's right of access is the whole of the check, with a cause for each way of not having it."""
    real = os.access
    for there in (True, False):
        monkeypatch.setattr(os, "access", lambda path, mode, **_: False if path == "/dev/kvm" else real(path, mode))
        monkeypatch.setattr(os.path, "exists", lambda path, there=there: there)
        check = doctor._kvm(doctor._Patient(None, base, None))
        assert check.ok is doctor.Answer.NO
        assert ("group" in check.mend) == there


def test_cgroup_hierarchies(modes: dict[str, Mode]) -> None:
    """Each mounted hierarchy is listed with its version; an ordinary user may write in none that is not delegated."""
    check = ask(modes["user"])["cgroups"]
    mounted = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup" in line]
    assert len(check["details"]["hierarchies"]) == len(mounted)
    assert all(row["version"] in ("v1", "v2") for row in check["details"]["hierarchies"])


def test_a_check_that_breaks_is_unknown(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a check raises becomes its answer; a needed proof that is unknown is no promise."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("odd host")

    monkeypatch.setattr(trial.Trial, "run", broken)
    report = doctor.examine(base=base)
    assert report["confinement"].ok is doctor.Answer.UNKNOWN
    assert "ZeroDivisionError: odd host" in report["confinement"].found
    assert report.blockers == ("confinement", "release", "launch")


def test_a_broken_limit_check_is_not_a_no(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown that no proof rests on does not turn a launch that was proved into a no."""
    monkeypatch.setattr(doctor, "_filtered", lambda: "")

    def broken(*_: object) -> None:
        raise OSError("no process")

    monkeypatch.setattr(doctor.interpreter, "run", broken)  # type: ignore[attr-defined]
    report = doctor.examine(base=base)
    assert report["user namespaces"].ok is doctor.Answer.UNKNOWN
    assert report.launch, report.blockers


# ---- printing ----


def test_plain_lines_when_piped(modes: dict[str, Mode]) -> None:
    """Without a terminal there is one aligned line for each check, no colour, and the summary last."""
    done = modes["user"].cli("doctor")
    lines = done.stdout.splitlines()
    heads = [line for line in lines if line.startswith(("yes ", "no ", "unknown "))]
    assert len(heads) == len(doctor._CHECKS)
    assert len({len(line) - len(line[9:].split("  ", 1)[1].lstrip()) for line in heads}) == 1
    assert "\x1b" not in done.stdout
    assert lines[-1] == "a launch would succeed  yes"


def test_a_table_on_a_terminal(modes: dict[str, Mode]) -> None:
    """On a terminal it is a coloured table."""
    mode = modes["user"]
    argv = [mode.python, "-m", "nucleus_gvisor.runtime.cli", "doctor"]
    env = {**mode.env(), "TERM": "xterm", "COLUMNS": "100"}
    done = mode.run(["script", "-qec", shlex.join(argv), "/dev/null"], env=env)
    assert done.returncode == 0
    assert "\x1b[" in done.stdout
    assert "┃" in done.stdout


@pytest.mark.parametrize("name", ["/nowhere/\x1b[31m[bold]x", "/nowhere/\udcff\n"])
def test_a_name_cannot_forge_the_report(modes: dict[str, Mode], name: str) -> None:
    """Control characters, markup and bytes that are no UTF-8 come out escaped, in every form."""
    mode = modes["user"]
    for form in ([], ["--json"]):
        done = mode.cli("doctor", "--runsc", name, *form)
        assert done.returncode == 1
        assert done.stderr == ""
        assert "\x1b" not in done.stdout
        assert "/nowhere/\n" not in done.stdout


def test_closed_standard_descriptors(mode: Mode) -> None:
    """With nothing to write to, the exit code still tells."""
    argv = [mode.python, "-m", "nucleus_gvisor.runtime.cli", "doctor"]
    assert mode.run(["/bin/sh", "-c", f"exec {shlex.join(argv)} <&- >&- 2>&-"]).returncode == 0
    argv += ["--runsc", "/nowhere"]
    assert mode.run(["/bin/sh", "-c", f"exec {shlex.join(argv)} <&- >&- 2>&-"]).returncode == 1


def test_a_working_directory_that_is_gone(modes: dict[str, Mode]) -> None:
    """Relative names need a directory; without one the answer is a refusal, not a traceback."""
    mode = modes["user"]
    argv = [mode.python, "-m", "nucleus_gvisor.runtime.cli", "doctor", "--json", "--runsc", "x", "--artifact-base", "y"]
    script = f"mkdir gone; cd gone; rmdir ../gone; exec {shlex.join(argv)}"
    told = Told(mode.run(["/bin/sh", "-c", script], env=mode.unmeasured()))
    assert told["artifact base"]["ok"] == "no"
    assert not told.data["launch"]
