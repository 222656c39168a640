"""The catalogue, executed: each case that no other test shows, by each kind of caller that it concerns.

What came of each is told to `observe`, and stands in the table at the end of the test run.
"""

import ctypes
import fcntl
import itertools
import json
import os
import platform
import re
import select
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.kernel import set_immutable
from tests.hostile.bench import (
    SIX,
    STRANGER,
    Bench,
    Report,
    asked,
    files,
    needs_root,
    opened,
    owned,
    runs,
    status,
    variables,
)
from tests.hostile.catalogue.table import BY_ID, CASES, ELSEWHERE, EVERY, FILE, Case, Observe, case
from tests.hostile.sweep import trap
from tests.hostile.test_weaknesses import (
    DEAF,
    LEAKS,
    LOCKING_CALLS,
    NOT_PROGRAMS,
    SPECIAL,
    STRACE,
    digest,
    write_bundle,
)
from tests.support.modes import NAMES, NAMESPACE_MODE, ROOT_MODE
from tests.support.places import ROOT

LINES = Path(__file__).with_name("lines.py").read_text()

RETRY = """
once = launch
def launch():
    outcome = once()
    given.update({mended})
    outcome["retried"] = once()
    return outcome
"""


# ---- one fault, one typed error, one launch without it ----


@dataclass(frozen=True)
class Attack:
    """What is spoilt before a launch; how it asks, as `Bench.drive` takes it, or what `spoil` answers of that."""

    spoil: Callable[[Bench], dict[str, Any] | object] = lambda bench: None
    how: dict[str, Any] = field(default_factory=dict)
    mend: Callable[[Bench], object] = lambda bench: None
    executed: bool = False
    """May the binary have been asked what it is."""


def runsc_is(make: Callable[[Path], object]) -> Attack:
    def spoil(bench: Bench) -> None:
        bench.runsc.unlink()
        make(bench.runsc)

    return Attack(spoil)


def write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def changed(mode: int, path: Path) -> None:
    path.chmod(mode)


def runsc_has(change: Callable[[Path], object]) -> Attack:
    return Attack(lambda bench: change(bench.runsc))


def bundle_with(change: Callable[[Path], object] = lambda config: None, **more: Any) -> Attack:
    """A bundle of the caller's own, with `change` made to its config.json."""

    def spoil(bench: Bench) -> dict[str, Any]:
        folder = write_bundle(bench.base / "bundle", **more)
        assert bench.mode is not None
        if os.geteuid() == 0:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, bench.mode.account.pw_uid, bench.mode.account.pw_gid)
        change(folder / "config.json")
        return {"bundle": str(folder)}

    return Attack(spoil)


def config_is(make: Callable[[Path], object]) -> Attack:
    def change(config: Path) -> None:
        config.rename(config.with_name("moved.json"))
        make(config)

    return bundle_with(change)


def base_is(make: Callable[[Path], object]) -> Attack:
    def spoil(bench: Bench) -> dict[str, Any]:
        make(bench.base / "spoilt")
        return {"artifacts": str(bench.base / "spoilt")}

    return Attack(spoil)


def directory(path: Path, mode: int = 0o700, uid: int | None = None) -> Path:
    path.mkdir()
    path.chmod(mode)
    if uid is not None:
        os.chown(path, uid, uid)
    return path


def linked(path: Path, target: str | Path, uid: int | None = None) -> Path:
    path.symlink_to(target)
    if uid is not None:
        os.chown(path, uid, uid, follow_symlinks=False)
    return path


def above(change: Callable[[Path], object]) -> Attack:
    """runsc below two directories, of which the upper is changed."""

    def spoil(bench: Bench) -> dict[str, Any]:
        runsc = bench.install(bench.base / "above/below/runsc")
        change(runsc.parents[1])
        return {"runsc": str(runsc)}

    return Attack(spoil)


def parent_of_runsc(change: Callable[[Path], object]) -> Attack:
    def spoil(bench: Bench) -> dict[str, Any]:
        runsc = bench.install(bench.base / "above/below/runsc")
        change(runsc.parent)
        return {"runsc": str(runsc)}

    return Attack(spoil)


def hard_link(bench: Bench) -> dict[str, Any]:
    """A second name of a file with the bytes of another program."""
    other = bench.base / "other"
    other.write_bytes(Path("/usr/bin/env").read_bytes())
    other.chmod(0o755)
    bench.runsc.unlink()
    os.link(other, bench.runsc)
    return {}


def wrong_pin(bench: Bench) -> dict[str, Any]:
    pin = digest(bench.runsc)
    return {"options": {"pin": ("0" if pin[0] != "0" else "1") + pin[1:]}}


def read_only_base(bench: Bench) -> dict[str, Any]:
    point = directory(bench.base / "spoilt")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700,ro", "test", point], check=True)
    return {"artifacts": str(point)}


def immutable_base(bench: Bench) -> dict[str, Any]:
    set_immutable(directory(bench.base / "spoilt"), True)
    return {"artifacts": str(bench.base / "spoilt")}


TYPES: dict[str, Any] = {"process": {"args": "true", "user": []}, "root": {"path": 7}, "mounts": {"a": 1}}
NO_PROC = """
seen = launch
def launch():
    def blind():
        libc = ctypes.CDLL(None)
        libc.unshare(0x20000)
        libc.mount(None, b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
        libc.umount2(b"/proc", 2)  # MNT_DETACH
        return seen()
    return apart(blind) if given["id"] == "job" else seen()
"""
GONE = "gone = tempfile.mkdtemp(dir={base!r}); os.chdir(gone); os.rmdir(gone)\n"
KILLED = """
from nucleus_gvisor.runtime import _child
send = _child._send
def dying(link, message):
    if given["id"] == "job" and message[0] == {word!r}:
        {death}
    send(link, message)
_child._send = dying
"""


def child_that(word: str, death: str) -> Attack:
    """The launch's child comes to its end when it is to say `word`."""
    return Attack(how={"before": KILLED.format(word=word, death=death)}, executed=True)


BAD_IDS = ("", ".", "..", "-", "--help", "-x", "a/b", "a\0b", "a\n", "a b", "\u00e9", "a" * 65, "a" * 70000)

ATTACKS: dict[str, Attack] = {
    "U-runsc-absent": Attack(lambda bench: bench.runsc.unlink()),
    **{f"U-runsc-{kind}": runsc_is(SPECIAL[kind]) for kind in ("directory", "fifo", "device", "socket")},
    **{
        f"U-runsc-{kind.replace(' ', '-')}": runsc_has(partial(write, NOT_PROGRAMS[kind]))
        for kind in ("empty", "script", "text", "half", "other machine")
    },
    **{
        f"U-mode-{mode}": runsc_has(partial(changed, int(mode, 8)))
        for mode in ("0666", "0775", "0777")
    },
    "U-owner": runsc_has(lambda path: owned(path, STRANGER)),
    "U-no-x": runsc_has(lambda path: path.chmod(0o644)),
    "U-setuid": runsc_has(lambda path: path.chmod(0o4755)),
    "U-setgid": runsc_has(lambda path: path.chmod(0o2755)),
    "S-pin-wrong": Attack(wrong_pin),
    "P-config-link": config_is(lambda path: path.symlink_to("moved.json")),
    "P-config-fifo": config_is(lambda path: os.mkfifo(path, 0o600)),
    "P-config-huge": bundle_with(lambda config: os.truncate(config, 2 << 30)),
    "P-config-text": bundle_with(lambda config: config.write_text("no JSON")),
    "P-config-twice": bundle_with(lambda config: config.write_text('{"ociVersion": "1.0.2", "ociVersion": "1.0.2"}')),
    "P-config-types": bundle_with(**TYPES),
    "P-config-absent": bundle_with(lambda config: config.unlink()),
    "P-hooks": bundle_with(hooks={"prestart": [{"path": "/bin/true"}]}),
    "P-flag-annotation": bundle_with(annotations={"dev.gvisor.flag.debug": "true"}),
    "U-parent-owner": parent_of_runsc(lambda path: os.chown(path, STRANGER, STRANGER)),
    "U-grandparent-0777": above(lambda path: path.chmod(0o777)),
    "U-link-loop": runsc_is(lambda path: path.symlink_to("runsc")),
    "U-link-foreign": runsc_is(lambda path: linked(path, "/usr/bin/env", STRANGER)),
    "U-link-env": runsc_is(lambda path: path.symlink_to("/usr/bin/env")),
    "U-hard-link": Attack(hard_link),
    "S-hard-link-pinned": Attack(lambda bench: {"options": {"pin": digest(bench.runsc)}, **hard_link(bench)}),
    "U-dots": Attack(lambda bench: {"runsc": f"{bench.base}/bin/../bin/runsc"}),
    "P-dots-base": Attack(lambda bench: {"artifacts": f"{bench.base}/bin/../artifacts"}),
    "P-base-file": base_is(lambda path: path.touch()),
    "P-base-link": base_is(lambda path: path.symlink_to("bin")),
    "P-base-foreign": base_is(lambda path: directory(path, 0o755, STRANGER)),
    "P-base-0777": base_is(lambda path: directory(path, 0o777)),
    "P-base-read-only": Attack(
        read_only_base, mend=lambda bench: subprocess.run(["umount", bench.base / "spoilt"], check=True)
    ),
    "P-base-immutable": Attack(immutable_base, mend=lambda bench: set_immutable(bench.base / "spoilt", False)),
    "P-base-shared": base_is(lambda path: directory(directory(path, 0o755) / "other").parent),
    "P-bundle-foreign": bundle_with(lambda config: os.chown(config.parent, STRANGER, STRANGER)),
    "P-bundle-writable": bundle_with(lambda config: config.parent.chmod(0o777)),
    "P-cwd-deleted": Attack(
        lambda bench: {"artifacts": "relative", "before": "import tempfile\n" + GONE.format(base=str(bench.base))}
    ),
    "U-proc-absent": Attack(how={"before": f"import ctypes\n{LINES}\n{NO_PROC}"}),
    "C-child-killed": child_that("confined", "os.kill(os.getpid(), signal.SIGKILL)"),
    "X-child-killed": child_that("executing", "os.kill(os.getpid(), signal.SIGKILL)"),
    "C-link-broken": child_that("confined", "os._exit(0)"),
}  # fmt: skip


NEED_ROOT = ("U-runsc-device", "U-owner", "U-parent-owner", "U-link-foreign", "P-base-foreign", "P-bundle-foreign")


def judged(case: Case, driven: Report, *, executed: bool = False) -> str:
    """What came of a launch that had to fail, after it was seen that nothing else did; and its retry succeeded."""
    outcome = driven["driver"]
    retried = outcome.pop("retried")
    assert outcome.get("error"), outcome
    assert not outcome["states"] or outcome["states"][-1] == "Failed", outcome
    assert driven["before"] == driven["after"]
    assert retried.get("code") == 0, retried
    assert len(runs(driven["reports"])) == 1 and runs(driven["reports"])[0]["brand"].startswith("genuine")
    # Two questions to the genuine binary, and a trial, which are the retry's if they were not the launch's.
    assert executed or asked(driven["reports"]) == ["--version", "create", "flags"]
    return f"F:{outcome['error']}"


@case(*ATTACKS)
def test_catalogue(case: Case, mode_bench: Bench, observe: Observe) -> None:
    """The fault is told as the catalogue says, nothing is left, and the same process launches without it at once."""
    if os.geteuid() and case.id in NEED_ROOT:
        pytest.skip("needs root: it gives files to other users, or makes a device")
    bench, attack = mode_bench, ATTACKS[case.id]
    spare = bench.install(bench.base / "spare/runsc")
    pinned = {"pin": digest(spare)} if bench.mode is not None and bench.mode.name == NAMESPACE_MODE else {}
    spoilt = attack.spoil(bench)
    how = {**attack.how, **(spoilt if isinstance(spoilt, dict) else {})}
    how["options"] = {"platform": "auto", **pinned, **how.get("options", {})}
    mended = {"runsc": str(spare), "bundle": None, "artifacts": str(bench.artifacts), "id": "again",
              "options": {"platform": "auto", **pinned}}  # fmt: skip
    how["before"] = how.get("before", "") + RETRY.format(mended=repr(mended))
    try:
        driven = bench.drive(**how)
        observed = judged(case, driven, executed=attack.executed)
        observe(observed)
        assert observed == case.expected
        assert files(bench.artifacts) == []
    finally:
        attack.mend(bench)


@case("U-id")
def test_ids(case: Case, mode_bench: Bench, observe: Observe) -> None:
    """Each id that runsc would take for something else is refused before anything on disk is touched."""
    several = f"""
once = launch
def launch():
    told = []
    for given["id"] in {BAD_IDS!r}:
        told.append(once()["error"])
    told.append(os.path.exists(given["artifacts"]))
    given["id"] = "again"
    return {{"told": told, **once()}}
"""
    driven = mode_bench.drive(before=several)
    *errors, exists = driven["driver"]["told"]
    assert set(errors) == {"BadId"} and len(errors) == len(BAD_IDS) and not exists
    assert driven["driver"]["code"] == 0 and driven["before"] == driven["after"]
    observe("F:BadId")


# ---- inherited state ----

EVIL = {
    "LD_PRELOAD": "/nonexistent.so",
    "GODEBUG": "x=1",
    "GVISOR_SIDECAR_BINARIES_DIR": "/evil",
    "RUNSC_PATH": "/evil",
}
INHERITED = {"X-leaked": LEAKS, "X-signals": DEAF, "X-environment": f"os.environ.update({EVIL!r})"}


@case(*INHERITED)
def test_inherited(case: Case, mode_bench: Bench, observe: Observe) -> None:
    """Of what the caller has open, blocks, ignores or has in its environment nothing reaches runsc."""
    report = mode_bench.drive_run(before=INHERITED[case.id])
    assert set(opened(report)) == {"0", "1", "2"}
    assert int(status(report, "SigIgn"), 16) == 0 and int(status(report, "SigBlk"), 16) == 0
    assert set(variables(report)) == SIX
    observe("OK")


# ---- confinement ----


@pytest.mark.root_first
@case("C-required")
def test_required_with_every_combination(case: Case, mode_bench: Bench, observe: Observe) -> None:
    """With `required`, a launch is confined as asked for, or fails: no combination of options is a way around."""
    combinations = [
        dict(zip(("network_mode", "confinement", "program", "stage", "runsc_rootless", "ignore_cgroups",
                  "require_supervisor_exec_policy"), values, strict=True))
        for values in itertools.product(("none", "sandbox", "host"), ("mount-locked", "landlock"), ("runsc", "plain"),
                                        ("auto", "set", "copy", "store"), *[(False, True)] * 3)
    ]  # fmt: skip
    all_of_them = f"""
once = launch
def launch():
    ended, common = [], given["options"]
    for options in {combinations!r}:
        given["id"], given["options"] = "brief-each", {{**common, **options}}
        outcome = once()
        ended.append(outcome.get("error") or outcome["achieved"])
    return {{"ended": ended, "code": 0}}
"""
    driven = mode_bench.drive(before=all_of_them, popen={"timeout": 250})
    ended = driven["driver"]["ended"]
    assert len(ended) == len(combinations) == 384 and driven["before"] == driven["after"]
    for options, end in zip(combinations, ended, strict=True):
        assert end == options["confinement"] or re.fullmatch("[A-Z][A-Za-z]+", end), (options, end)
        assert end != "GuardRefused" and end != "SafetyViolation", (options, end)
    confined = [end for end in ended if end in ("mount-locked", "landlock")]
    assert {"mount-locked"} <= set(confined) and files(mode_bench.artifacts) == []
    observe(f"{len(confined)} confined, {len(ended) - len(confined)} F")


@case("C-enospc")
def test_enospc_at_each_confining_call(case: Case, mode_bench: Bench, observe: Observe) -> None:
    """A confining call for which the kernel has no room ends the launch: nothing runs without it."""
    for call in LOCKING_CALLS:
        fault = [*STRACE, "-e", f"trace={call}", "-e", f"inject={call}:error=ENOSPC"]
        driven = mode_bench.drive(prefix=fault)
        assert driven["driver"]["error"] in ("ConfineFailed", "StepFailed"), (call, driven["driver"])
        assert driven["driver"]["states"][-2:] == ["Staged", "Failed"] and runs(driven["reports"]) == []
        assert driven["before"] == driven["after"] and files(mode_bench.artifacts) == []
    observe("F:ConfineFailed")


# ---- a directory above is another one, from any call on ----

PATH_CALLS = {
    "x86_64": {
        "access": 21, "chdir": 80, "chmod": 90, "execve": 59, "execveat": 322, "faccessat": 269, "faccessat2": 439,
        "fchmodat": 268, "getxattr": 191, "lgetxattr": 192, "lstat": 6, "mkdir": 83, "mkdirat": 258, "mount": 165,
        "newfstatat": 262, "open": 2, "openat": 257, "openat2": 437, "open_tree": 428, "move_mount": 429,
        "mount_setattr": 442, "readlink": 89, "readlinkat": 267, "rename": 82, "renameat2": 316, "rmdir": 84, "stat": 4,
        "statfs": 137, "statx": 332, "truncate": 76, "unlink": 87, "unlinkat": 263,
    },
    "aarch64": {
        "chdir": 49, "execve": 221, "execveat": 281, "faccessat": 48, "faccessat2": 439, "fchmodat": 53, "getxattr": 8,
        "lgetxattr": 9, "mkdirat": 34, "mount": 40, "newfstatat": 79, "openat": 56, "openat2": 437, "open_tree": 428,
        "move_mount": 429, "mount_setattr": 442, "readlinkat": 78, "renameat2": 276, "statfs": 43, "statx": 291,
        "truncate": 45, "unlinkat": 35,
    },
}[platform.machine()]  # fmt: skip
"""Calls that take a path. A swap between two others is the same as one before the next of these."""
SECCOMP = {"x86_64": 317, "aarch64": 277}[platform.machine()]
PIDFD_GETFD = 438
WATCHED = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]
once = launch
def launch():
    for line in sys.stdin:
        given["id"] = line.strip()
        pid = os.fork()
        if pid == 0:
            libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
            code = bytes.fromhex({code!r})
            program = Filter(len(code) // 8, code)
            print(os.getpid(), libc.syscall({seccomp}, 1, 8, ctypes.byref(program)), flush=True)
            sys.stdin.readline()
            outcome = once()
            print(json.dumps({{"error": outcome.get("error"), "code": outcome.get("code")}}), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        print("end", flush=True)
    return {{"code": 0}}
"""
RENAME_EXCHANGE = 2


def exchange(one: Path, other: Path) -> None:
    """Each has the other's place, from one instant to the next; renameat2(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


@dataclass
class Twins:
    """A directory with a genuine runsc and an artifact base, and one like it of an attacker's."""

    bench: Bench
    here: Path
    there: Path

    @classmethod
    def below(cls, bench: Bench) -> "Twins":
        here, there = bench.base / "here", bench.base / "there"
        bench.runsc = bench.install(here / "bin/runsc")
        forged = bench.install(there / "bin/runsc", brand="forged")
        assert bench.mode is not None
        account = bench.mode.account
        for folder in (here, here / "artifacts"):
            folder.mkdir(exist_ok=True)
            os.chown(folder, account.pw_uid, account.pw_gid)
            folder.chmod(0o755)
        (here / "artifacts").chmod(0o700)
        bench.artifacts = here / "artifacts"
        bench.install(there / "artifacts/exec-allow/runsc", brand="forged")
        for path in (there, *there.rglob("*")):
            if os.geteuid() == 0:
                os.chown(path, STRANGER, STRANGER)
        forged.chmod(0o755)
        return cls(bench, here, there)

    def swap(self) -> None:
        exchange(self.here, self.there)

    def untouched(self) -> list[tuple[str, int]]:
        return sorted((str(path.relative_to(self.there)), path.lstat().st_mode) for path in self.there.rglob("*"))


@contextmanager
def served(twins: Twins, stage: str) -> Iterator[Callable[[int], tuple[bool, dict[str, Any]]]]:
    """A function that launches with the swap before the N-th path call, and answers whether there was such a call."""
    bench = twins.bench
    assert bench.mode is not None
    code = trap.program(sorted(PATH_CALLS.values()), platform.machine()).hex()
    command = bench.command(before=WATCHED.format(code=code, seccomp=SECCOMP), options={"stage": stage})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with bench.mode.popen(command, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None

        def launch(number: int) -> tuple[bool, dict[str, Any]]:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"brief-{number}\n")
            process.stdin.flush()
            pid, fd = map(int, process.stdout.readline().split())
            listener = trap.take_descriptor(pid, fd, PIDFD_GETFD)
            try:
                process.stdin.write("\n")
                process.stdin.flush()
                struck = pass_all(listener, number, twins.swap)
            finally:
                os.close(listener)
            outcome = json.loads(process.stdout.readline())
            assert process.stdout.readline() == "end\n"
            if struck:
                twins.swap()
            return struck, outcome

        yield launch
        process.stdin.close()
        process.wait(30)


def receive(listener: int) -> int | None:
    """The next call's number for its answer; None when its maker has died."""
    buffer = bytearray(80)  # struct seccomp_notif, which must be zeros
    try:
        fcntl.ioctl(listener, trap.NOTIF_RECV, buffer)
    except FileNotFoundError:
        return None
    return int(struct.unpack_from("=Q", buffer)[0])


def let_pass(listener: int, key: int) -> None:
    with suppress(FileNotFoundError):
        fcntl.ioctl(listener, trap.NOTIF_SEND, struct.pack("=QqiI", key, 0, 0, trap.USER_NOTIF_FLAG_CONTINUE))


def pass_all(listener: int, number: int, act: Callable[[], object]) -> bool:
    """Let all calls pass until nobody is left who could make one, and `act` before the N-th; was there one."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    seen = 0
    while True:
        [(_, events)] = poll.poll(60_000) or [(0, 0)]
        if not events & select.POLLIN:
            assert events, "the launch hangs"
            return seen >= number
        key = receive(listener)
        if key is None:
            continue
        seen += 1
        if seen == number:
            act()
        let_pass(listener, key)


@pytest.mark.campaign
@needs_root
@case("PX-swap")
@pytest.mark.parametrize("method", ["auto", "copy"])
def test_swap_before_each_call(case: Case, mode_bench: Bench, method: str, observe: Observe) -> None:
    """Whenever a directory above runsc and base becomes another: judged bytes run, or none, and nothing is left."""
    twins = Twins.below(mode_bench)
    before = twins.untouched()
    ends: dict[str, int] = {}
    with served(twins, method) as launch:
        for number in itertools.count(1):
            struck, outcome = launch(number)
            end = outcome["error"] or f"code {outcome['code']}"
            ends[end] = ends.get(end, 0) + 1
            assert outcome["error"] or outcome["code"] == 0, (number, outcome)
            assert files(mode_bench.artifacts) == [], (number, outcome)
            assert twins.untouched() == before, (number, outcome)
            if not struck:
                break
    brands = {report["brand"].rstrip(".") for report in mode_bench.witness.reports() if "brand" in report}
    assert brands == {"genuine"} and number > 50
    observe(", ".join(f"{end}: {count}" for end, count in sorted(ends.items())))


@pytest.mark.root_first
@needs_root
@case("PX-exchange")
def test_exchanged_all_the_time(case: Case, mode_bench: Bench, observe: Observe) -> None:
    """The same as a race that nobody directs: every outcome is a launch of the judged bytes, or a typed error."""
    twins = Twins.below(mode_bench)
    before = twins.untouched()
    assert mode_bench.mode is not None
    # Taken now: later the path may lead to the attacker's.
    pinned = {"pin": digest(mode_bench.runsc)} if mode_bench.mode.name == NAMESPACE_MODE else {}
    end = threading.Event()
    flips = itertools.count()

    def flip() -> None:
        while not end.is_set():
            twins.swap()
            next(flips)

    several = """
once = launch
def launch():
    ended = []
    for number in range(60):
        given["id"] = f"race-{number}"
        outcome = once()
        ended.append(outcome.get("error") or outcome["code"])
    return {"ended": ended, "code": 0}
"""
    thread = threading.Thread(target=flip)
    thread.start()
    try:
        driven = mode_bench.drive(before=several, options=pinned)
    finally:
        end.set()
        thread.join()
    if next(flips) % 2:
        twins.swap()
    ended = driven["driver"]["ended"]
    allowed = {0, "Untrusted", "Changed", "PinMismatch", "NotFound", "BadPath", "BadBase"}
    allowed |= {"StepFailed", "ConfineFailed", "NotProved", "SafetyViolation"}
    assert set(ended) <= allowed and driven["before"] == driven["after"]
    assert {report["brand"].rstrip(".") for report in driven["reports"]} <= {"genuine"}
    assert twins.untouched() == before and len(ended) == 60
    observe(", ".join(f"{name}: {ended.count(name)}" for name in sorted(set(ended), key=str)))


# ---- every Python line ----


def struck(bench: Bench, errors: list[str], first: int, step: int, options: dict[str, Any]) -> dict[str, Any]:
    """Lines of a launch, every `step`-th from `first` on, struck with each of the errors; see lines.py."""
    text = f"""
def launch():
    traced(given | {{"id": "brief-warm"}}, None)
    found = lines(given)
    chosen = found[{first}::{step}]
    told = {{"lines": len(found), "child": sum(child for child, _, _ in found)}}
    return {{"code": 0, **told, "struck": list(strikes(given, state, chosen, {errors!r}))}}
"""
    driven = bench.drive(before=LINES + text, options=options, popen={"timeout": 900})
    ran = {report["argv"][-1] for report in runs(driven["reports"])}
    return {**driven["driver"], "ran": ran}


PARTS = 4
MINUTES = [pytest.mark.campaign, pytest.mark.timeout(1200)]
EVERY_LINE = [pytest.param(part, PARTS, marks=MINUTES) for part in range(PARTS)]


@pytest.mark.slow
@pytest.mark.root_first
@case("UX-lines")
@pytest.mark.parametrize(("first", "step"), [(7, 40), *EVERY_LINE])
def test_interrupted_at_every_line(case: Case, mode_bench: Bench, first: int, step: int, observe: Observe) -> None:
    """KeyboardInterrupt or MemoryError on any line that a launch executes, in its child too, leaves nothing behind.

    Root's launches meet both on each line; the others, whose lines are the same, one of the two on each.
    """
    assert mode_bench.mode is not None
    both = ["KeyboardInterrupt", "MemoryError"]
    errors = both if mode_bench.mode.name == ROOT_MODE else [both[first % 2]]
    told = struck(mode_bench, errors, first, step, {})
    assert len(told["struck"]) >= told["lines"] // step * len(errors) and told["lines"] > 1000
    assert told["child"] > 100
    wrong = [json.dumps(strike) for strike in told["struck"] if strike.get("wrong") or "crash" in strike]
    assert not wrong, "\n".join(wrong)
    # Which of the lines that wait for a process are reached is a matter of time.
    missed = [strike["line"] for strike in told["struck"] if not strike["reached"]]
    assert len(missed) <= 4, missed
    # Past execve the guest may have begun, and is ended; before, nothing was executed but to be asked.
    late = {strike["id"] for strike in told["struck"] if strike["id"] in told["ran"] and strike["ended"] != "0"}
    assert len(late) <= told["lines"] // step // 4
    observe(f"{len(told['struck'])} strikes on {told['lines']} lines, all clean")


WRITTEN_DOWN = ("paths", "cleanup", "bundle", "launch", "steps/resolve", "steps/stage", "steps/prepare", "steps/exec_")


def test_descriptors_are_opened_and_closed_by_the_ledger() -> None:
    """What is opened past the ledger leaks if the next line is interrupted; what is closed past it is closed twice."""
    for name in WRITTEN_DOWN:
        text = (ROOT / f"runtime/{name}.py").read_text()
        assert re.findall(r"\bos\.(?:open|close|dup|memfd_create)\(", text) == [], name


# ---- the table itself ----


def is_there(function: str, path: Path) -> bool:
    return bool(re.search(rf"(?m)^def {re.escape(function)}\w*\(", path.read_text()))


def test_every_case_has_its_test_and_the_other_way_round(request: pytest.FixtureRequest) -> None:
    """A case of the table is run here or shown elsewhere; what is run here stands in the table."""
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids)
    source = Path(__file__).read_text()
    ran = {*ATTACKS, *INHERITED, *re.findall(r'@case\("([^"]+)"', source)}
    ran |= set(re.findall(r'@case\("([^"]+)"', (ROOT / "tests/hostile/catalogue/test_kernel.py").read_text()))
    assert ran == {case.id for case in CASES if case.modes}
    assert [case.id for case in CASES if not case.modes and not case.shown] == []
    missing = []
    for one in CASES:
        assert set(one.modes) <= set(EVERY)
        for name in one.shown:
            file, _, test = name.partition("::")
            if not is_there(test.partition("[")[0], ROOT / file):
                missing.append(name)
    assert missing == []


@pytest.mark.slow
def test_the_table_tells_what_tests_elsewhere_showed(tmp_path: Path) -> None:
    """Of a case that only another file's test shows, the table has how that went, not that nothing was run."""
    here, there = Path(__file__).relative_to(ROOT), BY_ID["U-runsc-nowhere"].shown[0]
    table = tmp_path / "table.md"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"{here}::test_catalogue", there, "-k", "U-runsc-absent or weakness"],
        cwd=ROOT, env={**os.environ, FILE: os.fspath(table)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.read_text().splitlines()]
    seen = {(row[0], row[1]): row[3] for row in rows if len(row) == 5}
    assert seen["U-runsc-nowhere", ELSEWHERE] == "1 of 1 passed"
    assert seen["U-runsc-absent", NAMES[0]] == "F:NotFound"


def test_the_checks_can_fail(bench: Bench) -> None:
    """A launch that succeeds where it had to fail, or leaves a trace, is no catalogue case passed."""
    driven = bench.drive(before=RETRY.format(mended="{}"))
    with pytest.raises(AssertionError):
        judged(BY_ID["U-owner"], driven)
    driven = bench.drive(runsc="/nonexistent", before=RETRY.format(mended=repr({"runsc": str(bench.runsc)})))
    driven["after"]["umask"] = -1
    with pytest.raises(AssertionError):
        judged(BY_ID["U-owner"], driven)
