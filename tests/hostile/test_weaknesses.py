"""The weaknesses of the reference, one by one, each shown to be absent.

The number is that of the list of weaknesses; the line after it is where the reference (`gvisor.rs`) has it.
"""

import errno
import fcntl
import hashlib
import json
import mmap
import os
import pwd
import re
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.errors import (
    BadArgument,
    BadBase,
    BadBundle,
    BadId,
    BadPath,
    Busy,
    Changed,
    ConfineFailed,
    LaunchError,
    NoSpace,
    NotElf,
    NotExecutable,
    NotRegular,
    NotRunsc,
    PinMismatch,
    Refused,
    SafetyViolation,
    StepFailed,
    Symlink,
    TooBig,
    Untrusted,
)
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle, Platform, _child, kept, supervisor
from nucleus_gvisor.runtime.cleanup import state_component
from nucleus_gvisor.runtime.identity import Identity, parse_uid_map
from nucleus_gvisor.runtime.options import Confinement, Enforcement, NetworkMode, Program, StageMethod
from nucleus_gvisor.runtime.steps import confine, exec_, prepare, resolve, stage
from tests.conftest import Release
from tests.hostile.bench import (
    SIX,
    STRANGER,
    Bench,
    asked,
    before_call,
    children,
    compiled,
    files,
    is_run,
    needs_root,
    nothing_left,
    opened,
    owned,
    put,
    runs,
    status,
    threaded,
    variables,
)
from tests.support.modes import USER_MODE, Mode
from tests.support.places import private_directory

STRACE = ("strace", "-f", "-qq", "-o", "/dev/null")


def me() -> Identity:
    return Identity.current()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- 1 and 2: fail-open ----

NO_NAMESPACES = ("unshare", "--user", "--map-root-user", "sh", "-c",
                 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"', "sh")  # fmt: skip
"""Runs a command where the kernel grants no further user namespace: the limit is the namespace's own."""


@needs_root
@pytest.mark.parametrize("rootless", [False, True])
@pytest.mark.parametrize("required", [False, True])
def test_weakness_01_required_policy_is_not_ignored(bench: Bench, rootless: bool, required: bool) -> None:
    """Where no confinement can be had nothing runs, rootless or not (gvisor.rs:363 asks only if rootless)."""
    options = {"runsc_rootless": rootless, "require_supervisor_exec_policy": required, "pin": digest(bench.runsc)}
    driven = bench.drive(prefix=NO_NAMESPACES, options=options)
    assert driven["driver"]["error"] == "ConfineFailed" and driven["driver"]["errno"] == "ENOSPC"
    assert "user namespaces" in driven["driver"]["hint"]
    assert driven["driver"]["states"][-2:] == ["Staged", "Failed"]
    assert driven["reports"] == [] and files(bench.artifacts) == [] and driven["before"] == driven["after"]
    # The contrast: without a confinement asked for, the same place runs it.
    assert bench.drive_run(prefix=NO_NAMESPACES, options={"enforcement": "off", "pin": digest(bench.runsc)})


def test_weakness_01_contradiction_is_refused() -> None:
    """A caller cannot ask for the policy and for no enforcement in one breath."""
    for enforcement in (Enforcement.BEST_EFFORT, Enforcement.OFF):
        with pytest.raises(BadArgument):
            GVisorOciRunOptions(require_supervisor_exec_policy=True, enforcement=enforcement)


LOCKING_CALLS = ("unshare", "mount_setattr", "open_tree", "move_mount", "fsopen", "fsmount", "prctl")
LANDLOCK_CALLS = ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self")


@pytest.mark.parametrize("call", [*LOCKING_CALLS, *LANDLOCK_CALLS])
def test_weakness_02_no_fault_of_a_confining_call_launches_unconfined(bench: Bench, call: str) -> None:
    """Each confining call that fails ends a launch; best effort goes on, and its record says what it is worth."""
    options: dict[str, Any] = {}
    if call in LANDLOCK_CALLS:
        options = {"confinement": "landlock", "program": "plain", "stage": "copy"}
    fault = [*STRACE, "-e", f"trace={call}", "-e", f"inject={call}:error=EPERM"]
    driven = bench.drive(prefix=fault, options=options)
    assert driven["driver"]["error"] in ("ConfineFailed", "StepFailed"), driven["driver"]
    assert driven["driver"]["states"][-2:] == ["Staged", "Failed"]
    assert runs(driven["reports"]) == [] and files(bench.artifacts) == [] and driven["before"] == driven["after"]
    if driven["driver"]["error"] == "ConfineFailed" and call != "prctl":  # without which the binary is not asked either
        driven = bench.drive(prefix=fault, options={**options, "enforcement": "best_effort"})
        assert (driven["driver"].get("code"), driven["driver"].get("achieved")) == (0, "none"), driven["driver"]


# ---- 3: no writable executable place ----


def test_weakness_03_nothing_writable_can_be_executed(mode_bench: Bench) -> None:
    """The supervisor can execute neither the host's programs nor a copy that it makes; what is open is said."""
    driven = mode_bench.drive(id="escape")
    [report] = runs(driven["reports"])
    attempts = dict(report["attempts"])
    assert {"copy to TMPDIR", "copy to --root", "exec init's root", "map /bin/true", "undo /"} <= set(attempts)
    # Whoever can mount can make a memfd and execute it: the record does not hide it.
    memfd = attempts.pop("memfd ")
    [shown] = [e["open"] for e in driven["driver"]["evidence"] if "open" in e]
    assert (memfd == "ran") == ("memfd" in shown)
    assert {way: answer for way, answer in attempts.items() if answer == "ran"} == {}
    assert not [r for r in driven["reports"] if r["argv"] == ["escaped"]]
    assert not report["exe_writable"] and status(report, "NoNewPrivs") == "1"


def test_weakness_03_what_was_staged_cannot_be_written(bench: Bench) -> None:
    """Neither write, truncation nor a shared mapping changes what will be executed."""
    judged = resolve.resolve(os.fsencode(bench.runsc), me())
    held = stage.sealed(judged.runsc)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(held.fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.truncate(held.fd, 1)
        with pytest.raises(PermissionError):
            mmap.mmap(held.fd, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            fcntl.fcntl(held.fd, 1033, 0)  # F_ADD_SEALS: the seals themselves are sealed
        assert held.sha256 == digest(bench.runsc)
    finally:
        os.close(held.fd)
        judged.close()


def test_weakness_03_the_confinement_can_fail_its_own_proof(bench: Bench) -> None:
    """The contrast: unconfined, the same attempts succeed, so that the test above can fail."""
    report = bench.launch(id="escape", enforcement=Enforcement.OFF)
    ran = {way for way, answer in report["attempts"].items() if answer == "ran"}
    assert {"exec /bin/true", "map /bin/true", "copy to TMPDIR", "memfd "} <= ran


# ---- 4, 9 and 10: the Nix store ----

NEW_ROOT = """
root=/mnt
mount -t tmpfs -o mode=755 root $root
for item in /*; do
    if [ -L $item ]; then cp -P $item $root$item
    elif [ -d $item ]; then mkdir -m 755 $root$item; [ $item = /mnt ] || mount --rbind $item $root$item
    fi
done
mkdir -p $root/nix/store
cd $root; pivot_root . mnt; umount -l /mnt
mount --rbind "$1" /nix/store
mount -o remount,bind,$2 /nix/store
cd /; shift 2; exec "$@"
"""


def store_prefix(store: Path, access: str) -> list[str]:
    """Runs a command where `store` is /nix/store, mounted `ro` or `rw`."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", NEW_ROOT, "sh", str(store), access]


@pytest.fixture
def store(bench: Bench) -> Path:
    """A Nix store with two packages; all in it read-only by mode, and the files nobody's."""
    store = bench.base / "store"
    for name in ("gvisor", "other"):
        program = bench.install(store / name / "bin/runsc", mode=0o555)
        owned(program, 65534)
        for folder in program.parents[:2]:
            folder.chmod(0o555)
    return store


NIX_RUNSC = "/nix/store/gvisor/bin/runsc"


@needs_root
def test_weakness_04_a_store_binary_is_staged_like_any_other(bench: Bench, store: Path) -> None:
    """From a read-only store a sealed copy runs, not the file in place (gvisor.rs:467 stages nothing)."""
    report = bench.drive_run(prefix=store_prefix(store, "ro"), runsc=NIX_RUNSC, options={"stage": "sealed"})
    assert report["exe"].startswith("/memfd:") and report["exe_seals"] & 15 == 15


@needs_root
def test_weakness_04_the_store_method_allows_the_package_alone(bench: Bench, store: Path) -> None:
    """Under Landlock a package of the store does not bring the rest of the store with it."""
    options = {"stage": "store", "confinement": "landlock", "program": "plain"}
    driven = bench.drive(prefix=store_prefix(store, "ro"), runsc=NIX_RUNSC, options=options)
    assert driven["driver"]["code"] == 0, driven["driver"]
    [allow] = [evidence["allow"] for evidence in driven["driver"]["evidence"] if "allow" in evidence]
    assert allow == ["/nix/store/gvisor/bin"]
    driven = bench.drive(prefix=store_prefix(store, "rw"), runsc=NIX_RUNSC, options=options)
    assert driven["driver"]["error"] == "Untrusted" and not driven["reports"]


# ---- 5: a path is not a verdict ----


@needs_root
def test_weakness_05_a_given_path_is_judged(bench: Bench) -> None:
    """`with_path` trusts nothing: launch and version judge what lies there (gvisor.rs:118)."""
    bench.runsc.chmod(0o777)
    error = bench.refuse(Untrusted)
    assert error.path == os.fsencode(bench.runsc) and "0777" in str(error) and error.step == "Resolve"
    bench.runsc.chmod(0o755)
    os.chown(bench.runsc, STRANGER, STRANGER)
    assert str(STRANGER) in str(bench.refuse(Untrusted))
    with nothing_left(bench.artifacts), pytest.raises(Untrusted):
        GVisorRuntime.with_path(bench.runsc).version()
    os.chown(bench.runsc, 0, 0)
    bench.launch()


def test_weakness_05_only_judging_makes_the_evidence(bench: Bench) -> None:
    """There is no constructor for a judged binary but the judgement."""
    judged = resolve.resolve(os.fsencode(bench.runsc), me())
    with pytest.raises(TypeError):
        resolve.Judged(judged.runsc, (), None, object())
    judged.close()


# ---- 6: judged and used are one file ----

SEAMS = [(prepare, "take_place"), (stage, "seal_all"), (kept, "provide"), (kept, "still"), (stage, "stage"),
         (confine, "start"), (exec_, "in_child")]  # fmt: skip


AFTER_PREPARE = [seam for seam in SEAMS if seam[1] not in ("take_place", "provide")]


def staged(name: str) -> dict[str, Any]:
    """The way to stage that comes by the seam `name`."""
    return {"stage": StageMethod.SEALED} if name == "seal_all" else {}


@pytest.mark.parametrize(("module", "name"), SEAMS, ids=[name for _, name in SEAMS])
def test_weakness_06_a_swapped_path_does_not_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    """After the judgement the path may lead anywhere: the judged bytes run (gvisor.rs:834 opens it again)."""
    forged = bench.install(bench.base / "forged", brand="forged")
    before_call(monkeypatch, module, name, lambda: put(bench.runsc, forged))
    genuine_or_changed(bench, **staged(name))
    bench.launch(brand="forged")  # the contrast: the swap took place, and a new launch judges what lies there now


def genuine_or_changed(bench: Bench, **how: Any) -> None:
    """A launch runs the genuine bytes, or is told that the file changed: losing its name changes an inode's time."""
    try:
        bench.launch(brand="genuine", **how)
    except Changed:
        assert runs(bench.witness.reports()) == []


@needs_root
def test_weakness_06_a_race_on_the_path_never_wins(bench: Bench) -> None:
    """While the path changes all the time between a trusted file and a stranger's, the stranger's never runs."""
    genuine = bench.install(bench.base / "genuine")
    forged = owned(bench.install(bench.base / "forged", brand="forged"), STRANGER)
    end = threading.Event()

    def race() -> None:
        while not end.is_set():
            put(bench.runsc, forged)
            put(bench.runsc, genuine)

    thread = threading.Thread(target=race)
    thread.start()
    try:
        for number in range(12):
            try:
                assert bench.spawn(id=f"race-{number}").wait() == 0
            except (Untrusted, Changed):
                pass
    finally:
        end.set()
        thread.join()
    assert {report["brand"].rstrip(".") for report in bench.witness.reports()} <= {"genuine"}
    assert files(bench.artifacts) == []
    put(bench.runsc, genuine)
    bench.launch()


# ---- 7: directories above ----


@needs_root
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("spoil", ["0777", "0775", "1777", "owner"])
def test_weakness_07_every_directory_above_is_judged(bench: Bench, level: int, spoil: str) -> None:
    """A directory above that others can change is refused, however far above, and is named (gvisor.rs:180)."""
    runsc = bench.install(bench.base / "a/b/c/runsc")
    folder = runsc.parents[level]
    if spoil == "owner":
        os.chown(folder, STRANGER, STRANGER)
    else:
        folder.chmod(int(spoil, 8))
    error = bench.refuse(Untrusted, runsc)
    assert error.path == os.fsencode(folder)
    os.chown(folder, 0, 0)
    folder.chmod(0o755)
    bench.launch(runsc)


# ---- 8: wrappers ----


def wrapper(bench: Bench, target: Path | str, *, mode: int = 0o755, lines: int = 1) -> Path:
    """A Nix wrapper in runsc's place. Executed as a script it would be seen: a probe is its interpreter."""
    interpreter = bench.install(bench.base / "interpreter", brand="script")
    bench.runsc.unlink()
    bench.runsc.write_text(f"#!{interpreter}\n" + f'exec -a "$0" "{target}"  "$@"\n' * lines)
    bench.runsc.chmod(mode)
    return bench.runsc


@needs_root
def test_weakness_08_a_wrapper_is_judged_before_it_is_read(bench: Bench) -> None:
    """A script that others can write decides nothing; neither does one of a stranger (gvisor.rs:186)."""
    payload = bench.install(bench.base / "payload/runsc-real", brand="payload")
    script = wrapper(bench, payload, mode=0o777)
    assert bench.refuse(Untrusted).path == os.fsencode(script)
    script.chmod(0o755)
    os.chown(script, STRANGER, STRANGER)
    assert bench.refuse(Untrusted).path == os.fsencode(script)
    os.chown(script, 0, 0)
    # The contrast: a sound wrapper leads to its target, which is judged as well.
    assert bench.launch(brand="payload")["exe"].endswith("/set/runsc")
    payload.chmod(0o777)
    assert bench.refuse(Untrusted).path == os.fsencode(payload)


def test_weakness_08_a_wrapper_is_no_program(bench: Bench) -> None:
    """Ten thousand exec lines, a wrapper of a wrapper, and a target that is no ELF are refused."""
    payload = bench.install(bench.base / "payload/runsc-real", brand="payload")
    wrapper(bench, payload, lines=10_000)
    assert bench.refuse(NotElf).path == os.fsencode(bench.runsc)
    wrapper(bench, payload)
    payload.write_text(f"#!{bench.base}/interpreter\nexec {bench.probe.with_name('runsc')}\n")
    bench.refuse(NotElf)


# ---- 9 and 10: no trust from a prefix ----


def test_weakness_09_dots_are_refused(bench: Bench) -> None:
    """A path that climbs out of the store, given or in a wrapper, is refused (gvisor.rs:228)."""
    climbing = f"/nix/store/../..{bench.runsc}"
    assert bench.refuse(BadPath, climbing).path == os.fsencode(climbing)
    bench.refuse(BadPath, f"{bench.base}/bin/../bin/runsc")
    wrapper(bench, f"/nix/store/../..{bench.install(bench.base / 'payload/runsc-real')}")
    bench.refuse(BadPath)


@needs_root
def test_weakness_09_a_climbing_path_in_a_real_store(bench: Bench, store: Path) -> None:
    """Where there is a store, `/nix/store/..` is no part of it, and a link out of it takes no trust along."""
    stranger = owned(bench.install(bench.base / "stranger/runsc", mode=0o555), STRANGER)
    stranger.parent.chmod(0o555)
    (store / "link").symlink_to(stranger.parent)
    for path, error in ((f"/nix/store/..{stranger}", "BadPath"), ("/nix/store/link/runsc", "Untrusted")):
        driven = bench.drive(prefix=store_prefix(store, "ro"), runsc=path)
        assert driven["driver"]["error"] == error and driven["reports"] == [], path


@needs_root
def test_weakness_10_a_store_that_can_be_written_gives_no_trust(bench: Bench, store: Path) -> None:
    """Another owner's file passes only from a store mounted read-only, or by pin; modes are not enough."""
    driven = bench.drive(prefix=store_prefix(store, "rw"), runsc=NIX_RUNSC)
    assert driven["driver"]["error"] == "Untrusted" and driven["reports"] == []
    assert bench.drive_run(prefix=store_prefix(store, "rw"), runsc=NIX_RUNSC, options={"pin": digest(bench.runsc)})
    assert bench.drive_run(prefix=store_prefix(store, "ro"), runsc=NIX_RUNSC)
    (store / "gvisor").chmod(0o777)  # the grandparent, at which the reference does not look
    for access in ("ro", "rw"):
        driven = bench.drive(prefix=store_prefix(store, access), runsc=NIX_RUNSC)
        assert driven["driver"]["error"] == "Untrusted" and driven["reports"] == []


# ---- 11: bytes ----


def test_weakness_11_names_are_bytes(bench: Bench) -> None:
    """A path that is not UTF-8 leads to the file of that name, not to the one that a lossy decoding spells."""
    genuine = bench.install(Path(os.fsdecode(bytes(bench.base) + b"/run\xffsc/runsc")))
    bench.install(bench.base / "run\ufffdsc/runsc", brand="forged")
    bench.launch(bytes(genuine), brand="genuine")
    judged = resolve.resolve(bytes(genuine), me())
    assert judged.runsc.path == bytes(genuine)
    judged.close()


def test_weakness_11_bundles_and_bases_are_bytes(bench: Bench) -> None:
    """So it is with a bundle's path, and with the artifact base's: that one runs, or is refused by name."""
    folder = Path(os.fsdecode(bytes(bench.base) + b"/bun\xffdle"))
    write_bundle(folder)
    report = bench.launch(bundle=folder)
    assert json.loads(report["config"])["process"]["args"] == ["true"]
    base = Path(os.fsdecode(bytes(bench.base) + b"/ba\xffse"))
    try:
        assert bench.launch(artifact_base=base)["argv"][2].encode("latin-1").startswith(bytes(base))
    except LaunchError as error:
        assert isinstance(error, BadArgument | BadBase), repr(error)
    assert not (bench.base / "ba\ufffdse").exists() and files(base) == []


# ---- 12: links ----


@needs_root
def test_weakness_12_a_link_is_judged(bench: Bench) -> None:
    """A stranger's link and a loop are refused; a trusted link is followed to what is judged (gvisor.rs:175)."""
    link = bench.base / "link"
    link.symlink_to(bench.runsc)
    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    assert bench.refuse(Symlink, link).path == os.fsencode(link)
    middle = bench.base / "middle"
    middle.symlink_to(bench.runsc.parent)
    os.chown(middle, STRANGER, STRANGER, follow_symlinks=False)
    assert bench.refuse(Symlink, middle / "runsc").path == os.fsencode(middle)
    for path in (link, middle):
        os.chown(path, 0, 0, follow_symlinks=False)
    bench.launch(link)
    bench.launch(middle / "runsc")
    loop = bench.base / "loop"
    loop.symlink_to("loop2")
    (bench.base / "loop2").symlink_to("loop")
    bench.refuse(Symlink, loop)
    stranger = owned(bench.install(bench.base / "stranger/runsc"), STRANGER)
    (bench.base / "sound").symlink_to(stranger)
    bench.refuse(Untrusted, bench.base / "sound")


@pytest.mark.parametrize("target", ["/usr/bin/env", "/bin/true", "/bin/cat"])
def test_weakness_12_a_link_to_another_program_is_not_runsc(bench: Bench, target: str) -> None:
    """Root's own program that is not runsc never becomes the sandbox, by link or by copy, and not past a pin."""
    link = bench.base / "runsc"
    link.symlink_to(target)
    assert bench.refuse(NotRunsc, link).step == "Confine"
    bench.refuse(PinMismatch, link, pin=digest(bench.runsc))
    copy = bench.base / "copy"
    copy.write_bytes(Path(target).read_bytes())
    copy.chmod(0o755)
    bench.refuse(NotRunsc, copy)
    bench.refuse(NotRunsc, bench.install(bench.base / "liar", brand="other"), executed=True)


# ---- 13 and 14: the search ----

SEARCHED = """
upper="$1"; shift
mount -t tmpfs -o mode=755 over /mnt; mkdir /mnt/up /mnt/work
mount -t overlay -o lowerdir=/usr/bin,upperdir=/mnt/up,workdir=/mnt/work over /usr/bin
rm -f /usr/bin/runsc
mount -t tmpfs -o mode=755 local /usr/local/bin
eval "$upper"
exec "$@"
"""


def search_prefix(setup: str, user: pwd.struct_passwd | None = None) -> list[str]:
    """Runs a command where no runsc is installed but what `setup` makes; as `user` if given."""
    then = [] if user is None else ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", SEARCHED, "sh", setup, *then]


@pytest.fixture
def user_bench(user: pwd.struct_passwd, app: Path, probe: Path, bench: Bench) -> Iterator[Bench]:
    """A bench of the ordinary user's, below the user's home."""
    with private_directory(user) as base:
        yield Bench(base, probe, bench.witness, Mode(USER_MODE, app, base))


def as_root(bench: Bench, **more: Any) -> dict[str, Any]:
    """Arguments for a driver that is started by root in another user's environment."""
    assert bench.mode is not None
    environment = {**bench.mode.env(), **more.pop("env", {})}
    return {"user": 0, "group": 0, "env": environment, **more}


@needs_root
def test_weakness_13_only_absolute_items_of_path_count(user_bench: Bench, user: pwd.struct_passwd) -> None:
    """The current directory and what is relative to it are never searched (gvisor.rs:153)."""
    bench = user_bench
    forged = bench.install(bench.base / "here/runsc", brand="forged")
    bench.install(bench.base / "here/below/runsc", brand="forged")
    for path in ("", ":", ".", "below", ":below:.", "./below", ":/nonexistent:"):
        popen = as_root(bench, env={"PATH": path}, cwd=forged.parent)
        driven = bench.drive(prefix=["/usr/bin/env", f"PATH={os.defpath}", *search_prefix("", user), "/usr/bin/env",
                                     f"PATH={path}"], popen=popen, runsc=None)  # fmt: skip
        assert driven["driver"]["error"] == "NotFound" and driven["reports"] == [], path
        for place in ("/usr/local/bin/runsc", "/usr/bin/runsc", "/opt/gvisor/runsc"):
            assert f"{place}: absent" in driven["driver"]["observed"]


@needs_root
def test_weakness_13_a_bad_candidate_does_not_end_the_search(user_bench: Bench, user: pwd.struct_passwd) -> None:
    """A stranger's runsc earlier in the search is passed over; when it is the only one its verdict is told."""
    bench = user_bench
    good = bench.runsc
    spoil = f"cp {good} /usr/local/bin/runsc; chmod 0777 /usr/local/bin/runsc"
    run = search_prefix(spoil, user)
    path = f"relative::/nonexistent:{good.parent}"
    driven = bench.drive(prefix=[*run, "/usr/bin/env", f"PATH={path}"], popen=as_root(bench), runsc=None)
    assert driven["driver"].get("code") == 0, driven["driver"]
    [report] = runs(driven["reports"])
    assert report["brand"].startswith("genuine")
    driven = bench.drive(prefix=[*run, "/usr/bin/env", "PATH=/nonexistent"], popen=as_root(bench), runsc=None)
    assert driven["driver"]["error"] == "Untrusted" and driven["driver"]["path"] == "/usr/local/bin/runsc"


@needs_root
def test_weakness_13_root_does_not_search_path(bench: Bench) -> None:
    """What PATH names is nothing to root."""
    run = [*search_prefix(""), "/usr/bin/env", f"PATH={bench.runsc.parent}:{os.defpath}"]
    driven = bench.drive(prefix=run, runsc=None)
    assert driven["driver"]["error"] == "NotFound" and driven["reports"] == []


@needs_root
def test_weakness_14_what_cannot_be_looked_at_is_not_absent(user_bench: Bench) -> None:
    """EACCES, ELOOP and ENAMETOOLONG are told, not called "not installed" (gvisor.rs:168)."""
    closed = user_bench.base / "closed"
    closed.mkdir()
    closed.chmod(0o700)
    user_bench.install(closed / "runsc")
    loop = user_bench.base / "loop"
    loop.symlink_to(loop)
    for path, error, observed in (
        (closed / "runsc", "BadPath", "Permission denied"),
        (loop, "Symlink", None),
        (user_bench.base / ("n" * 300), "BadPath", "File name too long"),
        (user_bench.base / "none/runsc", "NotFound", None),
        (user_bench.runsc / "runsc", "NotFound", None),
    ):
        driven = user_bench.drive(runsc=str(path))
        assert (driven["driver"]["error"], driven["reports"]) == (error, []), path
        assert observed is None or driven["driver"]["observed"] == observed


def test_weakness_14_an_io_error_is_not_absence(bench: Bench) -> None:
    """A file system that answers EIO for the binary's directory is told as such."""
    fault = [*STRACE, "-P", str(bench.runsc.parent), "-e", "trace=openat", "-e", "inject=openat:error=EIO"]
    driven = bench.drive(prefix=fault)
    assert driven["driver"]["error"] not in ("NotFound", None) and "Input/output error" in str(driven["driver"])
    assert driven["reports"] == [] and files(bench.artifacts) == []


# ---- 15 to 19: the file ----

MEASURED = """
import resource
def measured(function):
    def wrapped():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome = function()
        outcome["kilobytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return outcome
    return wrapped
launch = measured(launch)
"""


def sparse(path: Path, head: bytes, size: int) -> Path:
    """A file of `size` bytes that takes no room."""
    path.write_bytes(head)
    os.truncate(path, size)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("gigabytes", [3, 8])
@pytest.mark.parametrize("kind", ["script", "elf"])
def test_weakness_15_18_a_huge_file_costs_nothing(bench: Bench, gigabytes: int, kind: str) -> None:
    """Neither a script nor an ELF of gigabytes is read to be refused (gvisor.rs:261, 869)."""
    head = b"#!/bin/sh\nexec /runsc\n" if kind == "script" else bench.branded("genuine")
    huge = sparse(bench.base / "huge", head, gigabytes << 30)
    began = time.monotonic()
    driven = bench.drive(runsc=str(huge), before=MEASURED)
    assert driven["driver"]["error"] == "TooBig" and driven["reports"] == []
    assert driven["driver"]["kilobytes"] < 100 << 10 and time.monotonic() - began < 10


def test_weakness_15_a_script_just_too_long_is_not_read(bench: Bench) -> None:
    """A wrapper is read up to its limit and no further."""
    payload = bench.install(bench.base / "payload/runsc-real", brand="payload")
    wrapper(bench, payload)
    text = bench.runsc.read_bytes()
    bench.runsc.write_bytes(text.ljust(resolve.MAX_WRAPPER, b"\n"))
    bench.launch(brand="payload")
    bench.runsc.write_bytes(text.ljust(resolve.MAX_WRAPPER + 1, b"\n"))
    bench.refuse(NotElf)


def test_weakness_18_the_cap_is_exact(bench: Bench) -> None:
    """One byte above the cap is too big."""
    os.truncate(bench.runsc, resolve.MAX_SIZE + 1)
    error = bench.refuse(TooBig)
    assert error.observed == resolve.MAX_SIZE + 1
    bench.install()
    bench.launch()


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(f"/proc/self/fd/{os.open(path.parent, os.O_PATH)}/{path.name}")


SPECIAL: dict[str, Callable[[Path], object]] = {
    "fifo": lambda path: os.mkfifo(path, 0o755),
    "directory": lambda path: path.mkdir(),
    "socket": make_socket,
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o755, os.makedev(1, 5)),
    "terminal": lambda path: os.mknod(path, stat.S_IFCHR | 0o755, os.makedev(5, 2)),
}


@needs_root
@pytest.mark.parametrize("kind", SPECIAL)
def test_weakness_16_a_special_file_is_refused_at_once(bench: Bench, kind: str) -> None:
    """Neither a FIFO without a writer nor a device is opened (gvisor.rs:835 waits for ever)."""
    bench.runsc.unlink()
    SPECIAL[kind](bench.runsc)
    owner = bench.runsc
    began = time.monotonic()
    fds = os.listdir("/proc/self/fd")
    with pytest.raises(NotRegular):
        resolve.resolve(os.fsencode(owner), me())
    assert time.monotonic() - began < 1 and len(os.listdir("/proc/self/fd")) == len(fds)
    assert bench.refuse(NotRegular).path == os.fsencode(bench.runsc)
    bench.runsc.rmdir() if kind == "directory" else bench.runsc.unlink()
    bench.install()
    bench.launch()


def test_weakness_16_a_fifo_beside_or_in_the_bundle_does_not_hang(bench: Bench) -> None:
    """So it is with a side binary and with config.json."""
    side = bench.runsc.parent / "gvisor-bin"
    side.mkdir()
    side.chmod(0o755)
    os.mkfifo(side / "helper", 0o755)
    began = time.monotonic()
    assert bench.refuse(NotRegular).path == os.fsencode(side / "helper")
    (side / "helper").unlink()
    side.rmdir()
    folder = bench.base / "bundle"
    folder.mkdir(mode=0o700)
    os.mkfifo(folder / "config.json", 0o600)
    bench.refuse(BadBundle, bundle=folder)
    assert time.monotonic() - began < 5


def truncate(path: Path) -> None:
    os.truncate(path, 4096)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    """The same length, and the time of modification put back."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"x" * 1000)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [truncate, append, rewrite])
def test_weakness_17_a_change_during_the_copy_is_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    """A file that is cut, grows or is rewritten while it is copied does not run (gvisor.rs:869)."""
    real, seen = os.sendfile, []

    def sendfile(out: int, into: int, offset: int, count: int) -> int:
        seen.append(offset)
        if len(seen) == 2:
            change(bench.runsc)
        return real(out, into, offset, min(count, 1 << 16))

    time.sleep(0.02)  # more than the clock's tick between the file's own making and its change
    stage.forget()
    monkeypatch.setattr(os, "sendfile", sendfile)
    error = bench.refuse(Changed, stage=StageMethod.SEALED)
    assert error.path == os.fsencode(bench.runsc) and len(seen) >= 2
    monkeypatch.undo()
    bench.install()
    bench.launch()


@pytest.mark.parametrize("change", [truncate, append, rewrite])
def test_weakness_17_a_change_after_the_judgement_is_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    """It is the same when it changes before the copy, also when a sealed or kept copy is there from another launch."""
    time.sleep(0.02)
    for method, module, seam in ((StageMethod.SEALED, stage, "seal_all"), (StageMethod.KEPT, kept, "provide")):
        with bench.spawn(id="earlier", stage=method):
            pass
        with monkeypatch.context() as patch:
            before_call(patch, module, seam, lambda: change(bench.runsc))
            bench.refuse(Changed, stage=method)
        bench.install()


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.rename(path.with_name("moved"))])
def test_weakness_17_removal_during_the_copy_does_no_harm(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    """A file that only loses its name, as when a package is replaced, is still the judged one."""
    time.sleep(0.02)
    before_call(monkeypatch, os, "sendfile", lambda: change(bench.runsc))
    bench.launch(stage=StageMethod.SEALED)


ELF = Path("/bin/true").read_bytes()
NOT_PROGRAMS = {
    "empty": b"",
    "text": b"runsc version 1\n",
    "script": b"#!/bin/sh\necho runsc version 1\n",
    "zeros": bytes(8192),
    "magic": b"\x7fELF",
    "header": ELF[:64],
    "half": ELF[: len(ELF) // 2],
    "other machine": ELF[:18] + struct.pack("<H", 40) + ELF[20:],
    "32 bits": ELF[:4] + b"\1" + ELF[5:],
    "object": ELF[:16] + struct.pack("<H", 1) + ELF[18:],
}


@pytest.mark.parametrize("kind", NOT_PROGRAMS)
def test_weakness_19_what_is_no_program_is_not_staged(bench: Bench, kind: str) -> None:
    """Empty, text, script and broken or foreign ELF are refused before the artifact base exists (gvisor.rs:834)."""
    bench.runsc.write_bytes(NOT_PROGRAMS[kind])
    error = bench.refuse(NotElf)
    assert error.step == "Resolve" and error.path == os.fsencode(bench.runsc)
    assert {path.name for path in bench.artifacts.iterdir()} <= {"records"}
    bench.runsc.chmod(0o644)
    bench.refuse(NotExecutable)


# ---- 20: nothing stays ----


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("method", [StageMethod.SEALED, StageMethod.SET, StageMethod.COPY, StageMethod.KEPT])
def test_weakness_20_no_launch_leaves_a_copy(bench: Bench, method: StageMethod, threads: bool) -> None:
    """Whatever the method, disk, descriptors, mounts and processes are as before when the guest has ended."""
    with threaded() if threads else nothing_left(bench.artifacts):
        for _ in range(2):
            bench.launch(stage=method)


@pytest.mark.parametrize("method", [StageMethod.SEALED, StageMethod.SET, StageMethod.COPY, StageMethod.KEPT])
def test_weakness_20_no_failed_launch_leaves_a_copy(bench: Bench, method: StageMethod) -> None:
    """A launch that fails when all has been staged unmakes it, and the id is free again."""
    liar = bench.install(bench.base / "liar", brand="other")
    for _ in range(2):
        bench.refuse(NotRunsc, liar, executed=True, stage=method)
    bench.launch(stage=method)


def test_weakness_20_a_killed_launch_is_collected(bench: Bench) -> None:
    """What a launcher killed by SIGKILL leaves on disk is removed by the next launch, of any id."""
    assert bench.mode is not None
    command = bench.command(id="wait-killed", options={"stage": "copy"})
    reader, writer = os.pipe()
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # its sandbox holds them after its death
    with killed(bench.mode.popen(command, stdin=reader, **silent)) as launcher:
        [report] = bench.witness.wait(is_run)
        left = files(bench.artifacts)
        assert any("exec-allow" in name for name in left)
        bench.launch(id="meanwhile")  # a launch that lives is left alone
        launcher.kill()
        launcher.wait()
    bench.launch(id="orphan")  # its sandbox still runs, and is left alone
    assert files(bench.artifacts) == left
    os.close(writer)
    os.close(reader)
    wait_until(lambda: not alive(report["pid"]))
    bench.witness.reports()
    bench.spawn(id="next").wait()
    assert files(bench.artifacts) == []


@contextmanager
def killed(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """The process, which does not outlive the block."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(true: Callable[[], bool], timeout: float = 20) -> None:
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- 21 and 22: the disk ----


@contextmanager
def mounted(point: Path, options: str) -> Iterator[Path]:
    """A tmpfs at `point`."""
    point.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "test", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


@needs_root
def test_weakness_21_noexec_is_found_before_execve(bench: Bench) -> None:
    """A base mounted noexec does not matter to the sealed stage; the copy is refused while staging (gvisor.rs:515)."""
    with mounted(bench.artifacts, "noexec"):
        for method in (StageMethod.AUTO, StageMethod.SET):
            bench.launch(stage=method)
        error = bench.refuse(StepFailed, stage=StageMethod.COPY)
        assert error.step == "Stage" and error.observed == "mounted noexec"
        assert error.record.states[-2:] == ("Prepared", "Failed")  # type: ignore[attr-defined]


@needs_root
@pytest.mark.parametrize("limit", ["size=512k", "nr_inodes=12"])
def test_weakness_22_a_full_disk_leaves_no_partial_file(bench: Bench, limit: str) -> None:
    """Without room for the copy there is a typed error and no part of it (gvisor.rs:869); a sealed one needs none."""
    with mounted(bench.artifacts, limit):
        bench.launch()
        fillers = [bench.artifacts / "records" / str(number) for number in range(12)] if "inodes" in limit else []
        with suppress(OSError):
            for path in fillers:
                path.touch()
        # Out of inodes it is the record, or the first directory, that cannot be made.
        error = bench.refuse(StepFailed if fillers else NoSpace, stage=StageMethod.COPY)
        assert error.errno == errno.ENOSPC and "No space" in str(error.observed)
        subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=1k", bench.artifacts], check=True)
        bench.launch(stage=StageMethod.COPY)


@pytest.mark.parametrize("method", ["auto", "copy"])
def test_weakness_22_a_file_size_limit_does_not_kill(bench: Bench, method: str) -> None:
    """A limit on file sizes is found before anything is written, and the launcher lives to say so."""
    spoil = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))"
    spoil += "\nsignal.signal(signal.SIGXFSZ, signal.SIG_DFL)"
    driven = bench.drive(before=spoil, options={"stage": method})
    assert driven["driver"]["error"] == "Limit" and "RLIMIT_FSIZE" in driven["driver"]["message"]
    assert driven["reports"] == [] and not bench.artifacts.exists()


# ---- 23: real releases ----


@pytest.mark.real
@pytest.mark.parametrize("method", [StageMethod.SEALED, StageMethod.SET, StageMethod.COPY, StageMethod.KEPT])
def test_weakness_23_real_runsc_runs_from_every_stage(bench: Bench, release: Release, method: StageMethod) -> None:
    """runsc re-executes itself as nobody: what is staged has mode 0555, not 0500 (gvisor.rs:859)."""
    reader, writer = os.pipe()
    options = bench.options(stage=method, platform=Platform(release.platform))
    with nothing_left(bench.artifacts):
        runtime = GVisorRuntime.with_path(release.path)
        with runtime.spawn("real", OciBundle.build(["echo", "hello"]), options, stdout=writer) as process:
            assert process.wait(60) == 0
    os.close(writer)
    with open(reader) as output:
        assert output.read() == "hello\n"


@pytest.mark.parametrize("method", [StageMethod.SEALED, StageMethod.SET, StageMethod.COPY, StageMethod.KEPT])
def test_weakness_23_the_staged_mode_is_0555(bench: Bench, method: StageMethod) -> None:
    """The image is readable and executable by all, and writable by none, from inside as well."""
    report = bench.launch(stage=method)
    assert report["exe_mode"] == 0o555 and not report["exe_writable"]
    assert report["exe_size"] == bench.runsc.stat().st_size


# ---- 24 to 27: the artifact base ----


@pytest.mark.parametrize("mask", [0, 0o777])
@pytest.mark.parametrize("method", ["auto", "copy"])
def test_weakness_24_the_umask_decides_nothing(mode_bench: Bench, mask: int, method: str) -> None:
    """With any umask all is private while it is there, the sandbox has 077, and the caller keeps its own."""
    bench = mode_bench
    assert bench.mode is not None
    command = bench.command(id="wait", before=f"os.umask({mask})", options={"stage": method})
    reader, writer = os.pipe()
    with killed(bench.mode.popen(command, stdin=reader)) as launcher:
        os.close(reader)
        bench.witness.wait(lambda report: is_run(report) or "driver" in report)
        modes = {}
        for folder, names, plain in os.walk(bench.artifacts):
            for name in [*names, *plain]:
                path = Path(folder, name)
                modes[str(path.relative_to(bench.artifacts))] = stat.S_IMODE(path.lstat().st_mode)
        os.close(writer)
        launcher.communicate(timeout=30)
    reports = bench.witness.reports()
    [driver] = [report for report in reports if "driver" in report]
    assert driver["driver"].get("code") == 0, driver["driver"]
    assert driver["before"] == driver["after"] and driver["after"]["umask"] == mask
    assert "locks" in modes and len(modes) >= 4
    loose = {name: oct(mode) for name, mode in modes.items() if mode & 0o077 and not name.endswith("/runsc")}
    assert loose == {}
    assert {mode for name, mode in modes.items() if name.endswith("/runsc")} <= {0o555}
    [report] = runs(reports)
    assert status(report, "Umask") == "0077"


@needs_root
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("spoil", ["0777", "0775", "1777", "1777 owner", "owner", "link", "file"])
def test_weakness_25_every_directory_above_the_base_is_judged(bench: Bench, level: int, spoil: str) -> None:
    """The base and all above it are the caller's own, plain directories, or refused (gvisor.rs:664).

    Above a base that is named, root's own sticky directory is no danger to locks and records; to a copy it is.
    """
    base = bench.base / "a/b/c"
    base.mkdir(parents=True, mode=0o755)
    for folder in base.parents[:2]:
        folder.chmod(0o755)
    folder = (base, *base.parents)[level]
    match spoil:
        case "owner":
            os.chown(folder, STRANGER, STRANGER)
        case "link":
            folder.rename(bench.base / "elsewhere")
            folder.symlink_to(bench.base / "elsewhere")
        case "file":
            folder.rename(bench.base / "elsewhere")
            folder.touch()
        case _:
            folder.chmod(int(spoil.partition(" ")[0], 8))
            if spoil.endswith("owner"):
                os.chown(folder, STRANGER, STRANGER)
    how: dict[str, Any] = {}
    if spoil == "1777" and level:
        bench.launch(artifact_base=base)
        how = {"stage": StageMethod.COPY}

    def content() -> list[Path]:
        return sorted(path for path in bench.base.rglob("*") if path.parent.name != "records")

    before = content()
    error = bench.refuse(BadBase, artifact_base=base, **how)
    assert error.path == os.fsencode(folder) and error.step == "Prepare"
    assert content() == before


SWAP_SEAMS = [(prepare, "look_at_bundle"), (stage, "seal_all"), (stage, "stage"), (confine, "start")]


@pytest.mark.parametrize("method", [StageMethod.SEALED, StageMethod.COPY])
@pytest.mark.parametrize(("module", "name"), SWAP_SEAMS, ids=[name for _, name in SWAP_SEAMS])
def test_weakness_25_a_swapped_grandparent_is_not_followed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, method: StageMethod
) -> None:
    """A directory above that is exchanged during the launch ends it, and nothing is made in the other one."""
    base = bench.base / "a/b/base"
    base.mkdir(parents=True, mode=0o700)
    trap = bench.base / "trap/b/base"

    def exchange() -> None:
        (bench.base / "a").rename(bench.base / "moved")
        trap.mkdir(parents=True)
        component = trap / state_component("job")
        forged = bench.install(component / "exec-allow/stage/runsc", brand="forged")
        assert forged.exists()
        (bench.base / "trap").rename(bench.base / "a")

    before_call(monkeypatch, module, name, exchange)
    bench.witness.reports()
    with nothing_left(bench.artifacts), pytest.raises(LaunchError) as caught:
        bench.spawn(artifact_base=base, stage=method).wait()
    assert isinstance(caught.value, SafetyViolation | StepFailed), repr(caught.value)
    assert runs(bench.witness.reports()) == []
    component = base / state_component("job")
    assert [str(path.relative_to(component)) for path in sorted(component.rglob("*"))] == [
        "exec-allow", "exec-allow/stage", "exec-allow/stage/runsc",
    ]  # fmt: skip
    assert sorted(path.name for path in base.iterdir()) == [component.name]
    assert files(bench.base / "moved/b/base") == []


@needs_root
def test_weakness_26_there_is_no_fallback_below_tmp(user_bench: Bench, user: pwd.struct_passwd) -> None:
    """Nothing named by the user alone is used in a place that all can write (gvisor.rs:517)."""
    squat = Path(f"/tmp/nucleus-gvisor-{user.pw_uid}")
    squat.mkdir(mode=0o777)
    try:
        assert user_bench.mode is not None
        bare = {key: value for key, value in user_bench.mode.env().items()
                if key not in ("HOME", "NUCLEUS_GVISOR_ARTIFACT_BASE")}  # fmt: skip
        driven = user_bench.drive(artifacts=None, popen={"env": bare})
        assert driven["driver"]["error"] == "BadBase" and "NUCLEUS_GVISOR_ARTIFACT_BASE" in driven["driver"]["hint"]
        assert driven["reports"] == [] and driven["driver"]["path"] is None  # not even looked at
        for name in ("HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):  # the contrast: the squatter denies nothing
            report = user_bench.drive_run(artifacts=None, popen={"env": {**bare, name: str(user_bench.base)}})
            assert report["argv"][2].startswith(f"{user_bench.base}/"), name
        assert list(squat.iterdir()) == []
    finally:
        squat.rmdir()


BASE_OF_ELEVATED = """
import sys; sys.path.insert(0, sys.argv[1])
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import artifact_base
from nucleus_gvisor.runtime.steps.resolve import candidates
identity = Identity.current()
try:
    base = artifact_base(None, identity).decode()
except Exception as error:
    base = type(error).__name__
print(identity.elevated, base, *(path.decode() for path in candidates(None, identity)))
"""


@needs_root
@pytest.mark.parametrize("owner", ["root", "user"])
@pytest.mark.parametrize("bits", [0o4755, 0o2755])
def test_weakness_27_elevated_programs_do_not_believe_the_environment(
    bench: Bench, user: pwd.struct_passwd, owner: str, bits: int
) -> None:
    """Neither base nor binary is taken from the environment of a set-id program (gvisor.rs:501)."""
    assert bench.mode is not None
    folder = bench.base / "set-id"
    folder.mkdir()
    folder.chmod(0o755)
    elevate = compiled("elevate", folder)
    owned(elevate, 0 if owner == "root" else user.pw_uid, mode=bits)
    invoker = user.pw_uid if owner == "root" else STRANGER
    bench.base.chmod(0o755)  # the invoker must reach it
    environment = {**bench.mode.env(), "NUCLEUS_GVISOR_ARTIFACT_BASE": "/evil", "XDG_RUNTIME_DIR": "/evil",
                   "PATH": "/evil", "HOME": "/evil", "XDG_STATE_HOME": "/evil"}  # fmt: skip
    call = [bench.mode.python, "-c", BASE_OF_ELEVATED, str(bench.mode.app)]

    def asked(*prefix: str | Path) -> str:
        return subprocess.run([*prefix, *call], user=invoker, group=invoker, extra_groups=[], env=environment, cwd="/",
                              check=True, capture_output=True, text=True).stdout  # fmt: skip

    believed = asked()
    assert believed.startswith("False /evil ") and "/evil/runsc" in believed  # the contrast
    told = asked(elevate)
    assert told.startswith("True ") and "/evil" not in told


# ---- 28: who is root ----

WHO = """
from nucleus_gvisor.runtime.identity import Identity
i = Identity.current()
print(i.uid, i.host_root, i.unmapped)
"""


def test_weakness_28_a_nested_root_is_not_the_host_s(own_mode: Mode) -> None:
    """Root of a namespace whose map says `0 0 1` is not host root, however deep it is (gvisor.rs:545)."""
    environment = {**own_mode.env()}
    enter = ["unshare", "--user", "--map-root-user"]

    def asked(*prefix: str) -> str:
        return str(own_mode.run([*prefix, own_mode.python, "-c", WHO], env=environment, check=True).stdout).strip()

    for depth in (1, 2, 3):
        assert asked(*enter * depth) == "0 False 65534"
    map_of_two = own_mode.run([*enter * 2, "cat", "/proc/self/uid_map"]).stdout.split()
    assert map_of_two == ["0", "0", "1"]  # what the reference takes for the host's
    if os.geteuid() == 0:
        assert asked() == "0 True None"


@needs_root
def test_weakness_28_a_complete_map_does_not_make_the_host_s_root(own_mode: Mode) -> None:
    """A nested namespace that maps every id to itself is another namespace all the same; before its map, nobody."""
    script = 'echo ready; read go; exec "$@"'
    command = ["unshare", "--user", "sh", "-c", script, "sh", own_mode.python, "-c", WHO]
    for text, answer in (("0 0 4294967295", "0 False None"), (None, "StepFailed")):
        with own_mode.popen(command, stdin=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            if text is not None:
                Path(f"/proc/{child.pid}/uid_map").write_text(text)
            output, errors = child.communicate("go\n", timeout=30)
        assert answer in output + errors


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\n", b"junk\n0 1000 1\n", b"0 0\n0 1000 1\n", b"0 0 4294967295 0\n", b"0 0 0\n", b"+0 0 1\n",
        b"0x0 0 1\n", b"0 0 4294967297\n", b"4294967295 0 2\n", b"0 4294967296 1\n", b"0 0 99999999999\n", b"-0 0 1\n",
        "\u0660 0 1\n".encode(), b"0 0 1\0\n", b"\t0 0 1\n",
    ],
)  # fmt: skip
def test_weakness_28_a_map_is_parsed_strictly(text: bytes) -> None:
    """What the kernel does not write is no map: nothing of it is skipped."""
    with pytest.raises(ValueError, match="uid_map"):
        parse_uid_map(text)


def test_weakness_28_the_kernel_s_own_maps_are_parsed() -> None:
    """The contrast: real maps, in the kernel's own columns."""
    assert parse_uid_map(b"         0          0 4294967295\n") == ((0, 0, 4294967295),)
    two = b"         0       1000          1\n         1     100000      65536\n"
    assert parse_uid_map(two) == ((0, 1000, 1), (1, 100000, 65536))


# ---- 29 and 30: what is asked for ----

BAD_IDS = ["", ".", "..", "-", "--help", "-x", "a/b", "/", "../x", "a\0b", "a\n", "\na", "a b", "\u00e9", "\u0660",
           "a" * 65, "a" * (128 << 10), "_a", "+a", ".a", "a\x7f", "a\udcff"]  # fmt: skip


@pytest.mark.parametrize("name", BAD_IDS, ids=lambda name: ascii(name)[:12])
def test_weakness_29_ids_are_judged_before_the_disk(bench: Bench, name: str) -> None:
    """An id that runsc would take for a flag or a path is refused before anything is touched (gvisor.rs:529)."""
    assert bench.refuse(BadId, id=name).step == "Resolve"
    assert not bench.artifacts.exists()


def test_weakness_29_no_two_ids_share_a_directory(bench: Bench) -> None:
    """Neither case nor a half digest makes two ids one; both run at the same time."""
    lower, upper = "ab" * 16, "AB" * 16
    assert state_component(lower) == lower
    assert state_component(upper) == "id-" + hashlib.sha256(upper.encode()).hexdigest()
    half = "id-" + hashlib.sha256(b"victim").hexdigest()[:32]  # what the reference makes of `victim`
    names = [lower, upper, lower.title(), "victim", half, "Victim"]
    assert len({state_component(name) for name in names}) == len(names)
    reader, writer = os.pipe()
    with nothing_left(bench.artifacts):
        sandboxes = [bench.spawn(id=name, stdin=reader) for name in (lower, upper, "victim", half)]
        roots = {report["argv"][2] for report in bench.witness.wait(is_run, count=4)}
        assert len(roots) == 4
        for sandbox in sandboxes:
            sandbox.kill()
            sandbox.wait()
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: OciBundle.build(["a\0b"]),
        lambda: OciBundle.build(["true", "x" * (128 << 10)]),
        lambda: OciBundle.build(["true"] * 200_000),
        lambda: OciBundle.build(["true"], env={"A": "x" * (128 << 10)}),
        lambda: OciBundle.build(["true"], env={f"V{n}": "x" * 1000 for n in range(2100)}),
        lambda: OciBundle.build(["true"], env={"A\0": ""}),
        lambda: OciBundle.build(["true"], cwd="/\0"),
        lambda: GVisorOciRunOptions(pin="0" * 63),
        lambda: GVisorOciRunOptions(network_mode="none\0"),  # type: ignore[arg-type]
    ],
)
def test_weakness_30_what_cannot_be_passed_on_is_no_request(ask: Callable[[], object]) -> None:
    """NUL and what execve would answer E2BIG to are found before there is a launch (gvisor.rs:344)."""
    with pytest.raises(BadArgument) as caught:
        ask()
    assert caught.value.step == "Resolve"


def test_weakness_30_nul_in_paths_is_found_before_staging(bench: Bench) -> None:
    """So it is in the paths of runsc, bundle and base, and in a bundle on disk: nothing was staged."""
    bench.refuse(BadPath, f"{bench.runsc}\0x")
    bench.refuse(BadBase, artifact_base=Path(f"{bench.artifacts}\0x"))
    error = bench.refuse(BadBundle, bundle=f"{bench.base}/bundle\0x")
    assert "Staged" not in error.record.states  # type: ignore[attr-defined]
    for args in (["a\0b"], ["true", "x" * (128 << 10)], ["true"] * 200_000):
        folder = bench.base / "bundle"
        write_bundle(folder, process={"args": args})
        error = bench.refuse(BadBundle, bundle=folder)
        assert "Staged" not in error.record.states  # type: ignore[attr-defined]


# ---- 31 to 34: inherited state ----

WAYS: dict[str, dict[str, Any]] = {"fork": {}, "fresh": {"threads": True}, "in place": {"in_place": True}}
ways = pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)

LEAKS = """
for number, path in ((3, "/"), (9, "/etc/passwd"), (200, "/"), (1000, "/dev/null")):
    fd = os.open(path, os.O_RDONLY)
    if fd != number:
        os.dup2(fd, number, inheritable=True)
    os.set_inheritable(number, True)
left, right = socket.socketpair()
left.set_inheritable(True)
"""


@ways
@pytest.mark.parametrize("method", ["auto", "set", "copy"])
def test_weakness_31_no_descriptor_is_inherited(bench: Bench, how: dict[str, Any], method: str) -> None:
    """Of the caller's open files none but the standard streams reaches runsc (gvisor.rs:371)."""
    report = bench.drive_run(before=LEAKS, options={"stage": method}, **how)
    assert set(opened(report)) == {"0", "1", "2"}, report["descriptors"]


@pytest.mark.parametrize("how", [{}, {"threads": True}], ids=["fork", "fresh"])
def test_weakness_31_no_log_is_given_to_a_runsc_that_takes_none(bench: Bench, how: dict[str, Any]) -> None:
    """Two files in memory reach a runsc that has the flags for its logs; one without them gets nothing of ours."""
    report = bench.drive_run(**how)
    assert set(opened(report)) == {"0", "1", "2"} and len(report["descriptors"]) == 5
    short = bench.drive_run(runsc=str(bench.install(bench.base / "short", brand="short")), **how)
    assert set(short["descriptors"]) == {"0", "1", "2"}
    plain = bench.drive_run(options={"program": "plain", "confinement": "landlock", "stage": "copy"}, **how)
    assert set(plain["descriptors"]) == {"0", "1", "2"}


def test_weakness_31_a_plain_exec_leaks_them(bench: Bench) -> None:
    """The contrast: executed as the reference does it, the same process shows them all to the probe."""
    driven = bench.drive(before=LEAKS + f"os.execv({str(bench.runsc)!r}, ['runsc', 'run', '--bundle', '/', 'x'])",
                         in_place=True)  # fmt: skip
    [report] = driven["reports"]
    assert {"3", "9", "200", "1000"} <= set(report["descriptors"])


CLOSED = {"0": "<&-", "1": ">&-", "2": "2>&-", "0 1": "<&- >&-", "all": "<&- >&- 2>&-"}


@ways
@pytest.mark.parametrize("which", CLOSED)
def test_weakness_32_closed_standard_descriptors_do_no_harm(bench: Bench, which: str, how: dict[str, Any]) -> None:
    """With 0 to 2 closed, /dev/null stands there for runsc, and never a file of the launch."""
    report = bench.drive_run(prefix=["sh", "-c", f'exec "$@" {CLOSED[which]}', "sh"], **how)
    assert set(opened(report)) == {"0", "1", "2"}
    for number in "012" if which == "all" else which.replace(" ", ""):
        assert report["descriptors"][number] == "/dev/null"


@pytest.mark.parametrize("which", CLOSED)
def test_weakness_32_the_command_line_bears_it(bench: Bench, which: str) -> None:
    """So does `nucleus-gvisor run`."""
    assert bench.mode is not None
    command = [bench.mode.python, "-m", "nucleus_gvisor.runtime.cli", "run", "--runsc", str(bench.runsc),
               "--artifact-base", str(bench.artifacts), "--", "true"]  # fmt: skip
    done = bench.mode.run(["sh", "-c", f'exec "$@" {CLOSED[which]}', "sh", *command])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    [report] = runs(bench.witness.reports())
    assert set(opened(report)) == {"0", "1", "2"}


DEAF = """
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
"""


@ways
def test_weakness_33_signals_are_reset(bench: Bench, how: dict[str, Any]) -> None:
    """A caller that ignores and blocks every signal starts a runsc that does neither (gvisor.rs:371)."""
    driven = bench.drive(before=DEAF, **how)
    [report] = runs(driven["reports"])
    assert int(status(report, "SigIgn"), 16) == 0 and int(status(report, "SigBlk"), 16) == 0
    if "in_place" not in how:
        assert driven["before"] == driven["after"]


@ways
def test_weakness_33_sigchld_ignored_does_no_harm(bench: Bench, how: dict[str, Any]) -> None:
    """A caller that ignores SIGCHLD, whose children the kernel reaps, can launch, and learns of the end."""
    report = bench.drive_run(before="signal.signal(signal.SIGCHLD, signal.SIG_IGN)", **how)
    assert int(status(report, "SigIgn"), 16) == 0


DEAF_TO_ALL = """
import ctypes
class Action(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulong) for name in ("handler", "flags", "restorer", "mask")]
libc = ctypes.CDLL(None)
for number in (32, 33):  # the C library keeps these two for itself: Python cannot name them
    assert libc.syscall(13, number, ctypes.byref(Action(1, 0, 0, 0)), None, 8) == 0
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of rt_sigaction(2) on x86-64")
@ways
def test_weakness_33_signals_without_a_name_are_reset(bench: Bench, how: dict[str, Any]) -> None:
    """So do 32 and 33, which the C library hides: ignored once, they stay so across execve."""
    report = bench.drive_run(before=DEAF_TO_ALL, **how)
    assert int(status(report, "SigIgn"), 16) == 0


LIMITED = [("NOFILE", 3), ("NOFILE", 16), ("NOFILE", 64), ("FSIZE", 0), ("FSIZE", 1 << 20), ("AS", 1 << 30),
           ("NPROC", 0), ("NPROC", 8)]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), LIMITED)
def test_weakness_34_limits_are_judged(bench: Bench, name: str, value: int) -> None:
    """A limit under which runsc fails or hangs is an error before there is anything to undo (gvisor.rs:371)."""
    # The driver itself needs descriptors to report: the limit holds for the launch alone.
    spoil = f"""
import resource
unlimited, hard = launch, resource.getrlimit(resource.RLIMIT_{name})[1]
def launch():
    resource.setrlimit(resource.RLIMIT_{name}, ({value}, hard))
    try:
        return unlimited()
    finally:
        resource.setrlimit(resource.RLIMIT_{name}, (hard, hard))
"""
    driven = bench.drive(before=spoil)
    assert driven["driver"]["error"] == "Limit" and f"RLIMIT_{name}" in driven["driver"]["message"], driven["driver"]
    assert driven["reports"] == [] and not bench.artifacts.exists()


@ways
def test_weakness_34_the_working_directory_is_the_root(bench: Bench, how: dict[str, Any]) -> None:
    """runsc starts in `/`, wherever its caller stands, even where that is no longer; limits are on record."""
    for spoil in ("os.chdir('/usr')", f"os.mkdir({str(bench.base / 'gone')!r}); os.chdir({str(bench.base / 'gone')!r});"
                  f" os.rmdir({str(bench.base / 'gone')!r})"):  # fmt: skip
        driven = bench.drive(before=spoil, **how)
        [report] = runs(driven["reports"])
        assert report["cwd"] == "/"
        if "in_place" not in how:
            assert driven["before"] == driven["after"]
            [limits] = [e["limits"] for e in driven["driver"]["evidence"] if "limits" in e]
            assert set(limits) == {"RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_AS", "RLIMIT_NPROC"}


def test_weakness_34_a_relative_base_in_a_deleted_directory(bench: Bench) -> None:
    """What is relative to a directory that is gone is refused by name."""
    gone = str(bench.base / "gone")
    driven = bench.drive(before=f"os.mkdir({gone!r}); os.chdir({gone!r}); os.rmdir({gone!r})", artifacts="relative")
    assert driven["driver"]["error"] in ("BadBase", "BadPath") and driven["reports"] == []


@ways
def test_weakness_34_the_environment_is_the_six(bench: Bench, how: dict[str, Any]) -> None:
    """Of the caller's variables none reaches runsc, whatever it is called; the image is asked with the same six."""
    spoil = {"LD_PRELOAD": "/nonexistent.so", "GODEBUG": "x=1", "GVISOR_SIDECAR_BINARIES_DIR": "/evil",
             "RUNSC_PATH": "/evil", "PATH": "/evil", "HOME": "/evil", "TMPDIR": "/evil", "SECRET": "s"}  # fmt: skip
    driven = bench.drive(before=f"os.environ.update({spoil!r})", **how)
    assert len(driven["reports"]) >= 1
    for report in driven["reports"]:
        assert set(variables(report)) == SIX and "/evil" not in str(report["environ"])
        assert len(report["environ"]) == len(SIX)


# ---- 35: asking ----


def test_weakness_35_the_sealed_bytes_are_asked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """`version` executes the judged bytes, confined, with the six variables and nothing else (gvisor.rs:410)."""
    forged = bench.install(bench.base / "forged", brand="forged")
    monkeypatch.setenv("SECRET", "s")
    before_call(monkeypatch, confine, "start", lambda: put(bench.runsc, forged))
    with nothing_left(bench.artifacts):
        version = GVisorRuntime.with_path(bench.runsc).version()
    assert version.startswith("runsc version 0.0~20240729.0")
    reports = bench.witness.reports()
    assert asked(reports) == ["--version", "create", "flags"]  # one is the trial, whether it needs --rootless
    for report in reports:
        assert report["brand"].startswith("genuine") and report["exe"].endswith("/set/runsc")
        assert set(variables(report)) == SIX and set(opened(report)) == {"0", "1", "2"}
        assert report["cwd"] == "/" and status(report, "NoNewPrivs") == "1"
        assert int(status(report, "SigIgn"), 16) == 0 and int(status(report, "SigBlk"), 16) == 0


@needs_root
def test_weakness_35_an_unjudged_path_is_not_asked(bench: Bench) -> None:
    """What is not trusted is not executed to learn its version."""
    for spoil in (lambda: bench.runsc.chmod(0o777), lambda: owned(bench.install(), STRANGER)):
        spoil()
        with nothing_left(bench.artifacts), pytest.raises(Untrusted):
            GVisorRuntime.with_path(bench.runsc).version()
        assert bench.witness.reports() == []


@pytest.mark.parametrize("brand", ["silent", "stubborn"])
def test_weakness_35_asking_is_bounded_in_time(bench: Bench, monkeypatch: pytest.MonkeyPatch, brand: str) -> None:
    """A binary that does not answer ends the question, also when it ignores the alarm; no process stays."""
    monkeypatch.setattr(_child, "ANSWER_SECONDS", 1)
    monkeypatch.setattr(supervisor, "PATIENCE", 3)
    bench.install(brand=brand)
    began = time.monotonic()
    with nothing_left(bench.artifacts), pytest.raises((NotRunsc, StepFailed)):
        GVisorRuntime.with_path(bench.runsc).version()
    assert time.monotonic() - began < 8
    left = [report["pid"] for report in bench.witness.reports()]
    patience = time.monotonic() + 10  # PR_SET_PDEATHSIG's signal is on its way when the parent is gone
    while (left := [pid for pid in left if alive(pid)]) and time.monotonic() < patience:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


# ---- 36: bundles ----


def write_bundle(folder: Path, **more: Any) -> Path:
    """A bundle on disk, with a private rootfs."""
    (folder / "rootfs").mkdir(parents=True, exist_ok=True)
    for name in ("proc", "dev", "tmp"):
        (folder / "rootfs" / name).mkdir(exist_ok=True)
    folder.chmod(0o755)
    process = {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}, **more.pop("process", {})}
    config = {"ociVersion": "1.0.2", "process": process, "root": {"path": "rootfs"}, "mounts": [], **more}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "config.json").chmod(0o644)
    return folder


@needs_root
def test_weakness_36_a_bundle_that_others_can_change_is_refused(bench: Bench) -> None:
    """Owner and mode of the bundle and of its config.json are judged (gvisor.rs:319)."""
    folder = write_bundle(bench.base / "bundle")
    config = folder / "config.json"
    for path, spoil in (
        (folder, lambda path: path.chmod(0o777)),
        (folder, lambda path: os.chown(path, STRANGER, STRANGER)),
        (config, lambda path: path.chmod(0o666)),
        (config, lambda path: os.chown(path, STRANGER, STRANGER)),
    ):
        spoil(path)
        error = bench.refuse(BadBundle, bundle=folder)
        assert error.step == "Prepare" and "Prepared" not in error.record.states  # type: ignore[attr-defined]
        os.chown(path, 0, 0)
        path.chmod(0o755)
    config.rename(bench.base / "elsewhere")
    config.symlink_to(bench.base / "elsewhere")
    bench.refuse(BadBundle, bundle=folder)
    config.unlink()
    (bench.base / "elsewhere").rename(config)
    bench.launch(bundle=folder)


@pytest.mark.parametrize("absent", [{"mounts": None}, {"linux": None}, {"mounts": None, "linux": None}])
def test_weakness_36_a_bundle_without_optional_parts_runs(bench: Bench, absent: dict[str, None]) -> None:
    """What the OCI specification makes optional may be null, or missing, and is no surprise to the launch."""
    folder = write_bundle(bench.base / "bundle", **absent)
    config = json.loads((folder / "config.json").read_text())
    for document in (config, {name: part for name, part in config.items() if part is not None}):
        (folder / "config.json").write_text(json.dumps(document))
        bench.launch(bundle=folder)
        bench.refuse(BadBundle, bundle=folder, network_mode=NetworkMode.SANDBOX, enforcement=Enforcement.OFF)


HOOKS = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]


@pytest.mark.parametrize("name", HOOKS)
def test_weakness_36_hooks_are_refused(bench: Bench, name: str) -> None:
    """A bundle with hooks does not run unless they are allowed, in any spelling that runsc would read."""
    hooks = {name: [{"path": str(bench.runsc), "args": ["hook"]}]}
    folder = write_bundle(bench.base / "bundle", hooks=hooks)
    bench.refuse(Refused, bundle=folder)
    write_bundle(folder, Hooks=hooks)
    bench.refuse(BadBundle, bundle=folder)
    write_bundle(folder, annotations={"dev.gvisor.flag.debug": "true"})
    bench.refuse(Refused, bundle=folder)
    write_bundle(folder)
    bench.launch(bundle=folder)


@pytest.mark.parametrize(("module", "name"), AFTER_PREPARE, ids=[name for _, name in AFTER_PREPARE])
def test_weakness_36_runsc_reads_a_private_copy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    """A config.json that is exchanged after it was judged is not what runsc reads."""
    folder = write_bundle(bench.base / "bundle")
    hooks = {"prestart": [{"path": str(bench.runsc)}]}
    before_call(monkeypatch, module, name, lambda: write_bundle(folder, process={"args": ["evil"]}, hooks=hooks))
    report = bench.launch(bundle=folder, **staged(name))
    config = json.loads(report["config"])
    assert config["process"]["args"] == ["true"] and "hooks" not in config
    assert not report["argv"][report["argv"].index("--bundle") + 1].startswith(str(folder))
    bench.refuse(Refused, bundle=folder)


# ---- 37: a failed execve ----


def unloadable(bench: Bench) -> Path:
    """An ELF that passes every judgement, and that the kernel refuses: its interpreter does not exist."""
    program = Path("/bin/true").read_bytes()
    interpreter = b"/lib64/ld-linux-x86-64.so.2\0"
    assert program.count(interpreter) == 1
    path = bench.base / "unloadable"
    path.write_bytes(program.replace(interpreter, b"/lib64/ld-linux-x86-64.so.0\0"))
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("threads", [False, True])
def test_weakness_37_a_refused_execve_leaves_the_caller_free(bench: Bench, threads: bool) -> None:
    """The child was confined, not the caller: it gets a typed error and goes on as before (gvisor.rs:365)."""
    driven = bench.drive(runsc=str(unloadable(bench)), options={"program": "plain"}, threads=threads)
    assert driven["driver"]["error"] == "ExecFailed" and driven["driver"]["errno"] == "ENOENT"
    assert not driven["driver"]["restricted"] and driven["driver"]["states"][-2:] == ["Confined", "Failed"]
    assert driven["before"] == driven["after"] and files(bench.artifacts) == []


@pytest.mark.parametrize("error", ["ENOEXEC", "EACCES", "ENOMEM", "E2BIG", "EIO"])
def test_weakness_37_every_answer_of_execve_is_told(bench: Bench, error: str) -> None:
    """Whatever the kernel answers is what the typed error carries; those of the canaries, which come before, aside."""
    canaries = len(confine.canaries())
    fault = [*STRACE, "-e", "trace=execveat", "-e", f"inject=execveat:error={error}:when={canaries + 1}"]
    driven = bench.drive(prefix=fault, options={"program": "plain"})
    assert (driven["driver"]["error"], driven["driver"]["errno"]) == ("ExecFailed", error)
    assert driven["before"] == driven["after"] and files(bench.artifacts) == [] and driven["reports"] == []


def test_weakness_37_in_place_the_process_is_told_that_it_must_exit(bench: Bench) -> None:
    """In place, an execve that fails after the confinement was entered says so, and what was made is unmade."""
    driven = bench.drive(runsc=str(unloadable(bench)), options={"program": "plain"}, in_place=True)
    assert driven["driver"]["error"] == "ExecFailed" and driven["driver"]["restricted"]
    assert "Exec'd" not in driven["driver"]["states"] and driven["driver"]["states"][-1] == "Failed"
    assert driven["after"]["children"] == [] and driven["after"]["mask"] == driven["before"]["mask"]
    assert driven["after"]["handlers"] == driven["before"]["handlers"]
    # The confinement that it cannot leave keeps it from removing what it made: it says so, and the next launch does.
    assert files(bench.artifacts) == [] or any("left behind" in note for note in driven["driver"]["notes"])
    assert bench.spawn(id="next").wait() == 0
    assert files(bench.artifacts) == []


@pytest.mark.parametrize("how", [{}, {"threads": True}], ids=["fork", "fresh"])
def test_weakness_37_a_guest_that_ends_at_once_has_been_executed(bench: Bench, how: dict[str, Any]) -> None:
    """A program that is gone before anyone can look is not taken for one that was never executed."""
    again = """
once = launch
def launch():
    outcomes = [once() for _ in range(24)]
    return next((outcome for outcome in outcomes if outcome.get("code") != 0), outcomes[0])
"""
    driven = bench.drive(id="brief", before=again, **how)
    assert driven["driver"].get("code") == 0, driven["driver"]


def test_weakness_37_in_place_failures_before_leave_the_caller_free(bench: Bench) -> None:
    """What fails before that, a caller with threads among it, leaves it unrestricted."""
    for how in ({"threads": True}, {"runsc": str(bench.install(bench.base / "liar", brand="other"))}):
        driven = bench.drive(in_place=True, **how)
        assert driven["driver"]["error"] in ("ExecFailed", "NotRunsc") and not driven["driver"]["restricted"]
        assert driven["before"] == driven["after"] and runs(driven["reports"]) == []
        assert files(bench.artifacts) == []


# ---- 38: allow roots ----


@pytest.mark.parametrize("spoil", ["exchanged", "removed", "link"])
def test_weakness_38_an_allowed_place_is_not_reached_by_path_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    """A place of the Landlock allowlist that is another one now, or gone, ends the launch; none is skipped."""
    place = bench.artifacts / state_component("job") / "exec-allow"

    def change() -> None:
        place.rename(place.with_name("moved"))
        if spoil == "exchanged":
            bench.install(place / "stage/runsc", brand="forged")
        elif spoil == "link":
            place.symlink_to("/usr/bin")

    before_call(monkeypatch, confine, "start", change)
    options: dict[str, Any] = {"confinement": Confinement.LANDLOCK, "program": Program.PLAIN, "stage": StageMethod.COPY}
    bench.refuse(ConfineFailed if spoil == "removed" else SafetyViolation, **options)
    assert bench.spawn(**options).wait() == 0


# ---- 39: ETXTBSY ----


def test_weakness_39_a_binary_open_for_writing_can_be_launched(bench: Bench) -> None:
    """What runs is a sealed memfd, which is nobody's to write: no execve meets ETXTBSY (gvisor.rs:856)."""
    with bench.runsc.open("r+b"):
        with pytest.raises(OSError, match="Text file busy"):  # the contrast
            subprocess.run([bench.runsc, "--version"], check=False)
        bench.launch()


@pytest.mark.slow
@pytest.mark.parametrize("method", [StageMethod.SEALED, StageMethod.SET, StageMethod.COPY, StageMethod.KEPT])
def test_weakness_39_threads_that_fork_do_not_disturb(bench: Bench, method: StageMethod) -> None:
    """Launches from threads, while others start programs all the time, all run."""
    end = threading.Event()
    problems: list[BaseException] = []

    def noise() -> None:
        while not end.is_set():
            subprocess.run(["/bin/true"], check=True)

    def launches(name: str) -> None:
        try:
            for number in range(5):
                stage.forget()
                assert bench.spawn(id=f"{name}-{number}", stage=method).wait() == 0
        except BaseException as error:
            problems.append(error)

    noisy = [threading.Thread(target=noise) for _ in range(2)]
    busy = [threading.Thread(target=launches, args=(f"thread-{number}",)) for number in range(4)]
    for thread in (*noisy, *busy):
        thread.start()
    for thread in busy:
        thread.join()
    end.set()
    for thread in noisy:
        thread.join()
    assert problems == [] and len(runs(bench.witness.reports())) == 20
    assert files(bench.artifacts) == [] and children() == []


# ---- 40 and 41: one id, one launch ----


def test_weakness_40_of_many_launches_of_one_id_one_runs(bench: Bench) -> None:
    """Twenty launches of an id at the same time: one runs, the others are told that it is busy (gvisor.rs:493)."""
    outcomes: list[object] = []
    lock = threading.Lock()

    def go() -> None:
        try:
            outcome: object = bench.spawn(id="wait-one", stdin=reader)
        except LaunchError as error:
            outcome = error
        with lock:
            outcomes.append(outcome)

    with nothing_left(bench.artifacts):
        reader, writer = os.pipe()
        threads = [threading.Thread(target=go) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ran = [outcome for outcome in outcomes if not isinstance(outcome, LaunchError)]
        assert len(ran) == 1 and {type(o) for o in outcomes if isinstance(o, LaunchError)} == {Busy}, outcomes
        os.close(writer)
        os.close(reader)
        [sandbox] = ran
        assert sandbox.wait(20) == 0  # type: ignore[attr-defined]
    assert len(runs(bench.witness.reports())) == 1
    with open("/dev/null") as nothing:
        bench.launch(id="wait-one", stdin=nothing.fileno())


@pytest.mark.slow
def test_weakness_40_different_ids_all_run(bench: Bench) -> None:
    """Twenty launches of different ids from threads all run."""
    codes: list[object] = []

    def go(number: int) -> None:
        try:
            codes.append(bench.spawn(id=f"many-{number}").wait())
        except LaunchError as error:
            codes.append(error)

    threads = [threading.Thread(target=go, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 20 and len(runs(bench.witness.reports())) == 20 and files(bench.artifacts) == []


@pytest.mark.parametrize("method", [StageMethod.SEALED, StageMethod.SET, StageMethod.COPY, StageMethod.KEPT])
def test_weakness_40_a_stale_binary_is_not_executed(bench: Bench, method: StageMethod) -> None:
    """What lies in the container's directory from earlier is removed, never used."""
    bench.launch()
    place = bench.artifacts / state_component("job")
    for name in ("exec-allow/runsc", "exec-allow/stage-1-1-0/runsc", "set/runsc", "runsc"):
        bench.install(place / name, brand="stale")
    (place / "bundle").mkdir()
    (place / "bundle/config.json").write_text("{}")
    bench.witness.reports()
    assert bench.spawn(stage=method).wait() == 0
    reports = bench.witness.reports()
    assert {report["brand"].rstrip(".") for report in reports} == {"genuine"} and len(runs(reports)) == 1
    assert files(bench.artifacts) == []


def test_weakness_41_no_name_comes_from_the_clock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the clock stopped, names of stages differ as before; the default stage has none (gvisor.rs:801)."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "time_ns", lambda: int(now * 1e9))
    names = [bench.launch(stage=StageMethod.COPY)["exe"] for _ in range(3)]
    assert len(set(names)) == 3
    for name in names:
        assert re.fullmatch(r"stage-[0-9a-f]{32}", Path(name).parent.name)
    assert bench.launch(stage=StageMethod.SEALED)["exe"].startswith("/memfd:")


# ---- 42: privilege ----


def capable(path: Path) -> None:
    """cap_net_raw, permitted and effective (capability.h, struct vfs_cap_data)."""
    os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0))


PRIVILEGES: dict[str, Callable[[Path], object]] = {
    "4755": lambda path: path.chmod(0o4755),
    "2755": lambda path: path.chmod(0o2755),
    "6555": lambda path: path.chmod(0o6555),
    "capability": capable,
}


@needs_root
@pytest.mark.parametrize("where", ["runsc", "gvisor-bin/helper"])
@pytest.mark.parametrize("privilege", PRIVILEGES)
def test_weakness_42_privileged_binaries_are_refused(bench: Bench, privilege: str, where: str) -> None:
    """A set-id bit or a file capability on runsc or a side binary is refused (gvisor.rs:192)."""
    helper = bench.install(bench.runsc.parent / "gvisor-bin/helper", brand="helper")
    path = bench.runsc.parent / where
    PRIVILEGES[privilege](path)
    error = bench.refuse(Untrusted)
    assert error.path == os.fsencode(path)
    path.unlink()
    bench.install(path, brand="helper" if path == helper else "genuine")
    bench.launch()


# ---- 43: the set ----


@pytest.fixture
def set_bench(bench: Bench) -> Bench:
    """A runsc with two side binaries."""
    for name in ("helper", "other"):
        bench.install(bench.runsc.parent / "gvisor-bin" / name, brand=f"side-{name}")
    return bench


@pytest.mark.parametrize("how", [{}, {"threads": True}], ids=["fork", "fresh"])
def test_weakness_43_the_set_is_staged(set_bench: Bench, how: dict[str, Any]) -> None:
    """Side binaries are kept beside runsc, read-only, with their own digests, and can be executed there."""
    driven = set_bench.drive(id="helper", before="os.environ['GVISOR_SIDECAR_BINARIES_DIR'] = '/evil'", **how)
    [report] = runs(driven["reports"])
    assert sorted(report["beside"]) == ["gvisor-bin", "runsc"] and report["helper"] == "ran"
    [helper] = [r for r in driven["reports"] if r["argv"] == ["helper"]]
    assert helper["brand"].startswith("side-helper") and not helper["exe_writable"] and helper["exe_mode"] == 0o555
    assert sorted(helper["beside"]) == ["helper", "other"]
    side = set_bench.runsc.parent / "gvisor-bin"
    [digests] = [e["digests"] for e in driven["driver"]["evidence"] if "digests" in e]
    assert digests == {"runsc": digest(set_bench.runsc), "gvisor-bin/helper": digest(side / "helper"),
                       "gvisor-bin/other": digest(side / "other")}  # fmt: skip
    assert all("GVISOR_SIDECAR_BINARIES_DIR" not in variables(r) for r in runs(driven["reports"]))
    driven = set_bench.drive(id="escape")
    [report] = runs(driven["reports"])
    assert report["attempts"]["copy to beside the image"] not in ("ran", "EACCES")
    assert not [way for way, answer in report["attempts"].items() if answer == "ran" and way != "memfd "]


@needs_root
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda path: path.chmod(0o777), Untrusted),
        (lambda path: os.chown(path, STRANGER, STRANGER), Untrusted),
        (lambda path: path.chmod(0o644), NotExecutable),
        (lambda path: path.write_text("#!/bin/sh\n"), NotElf),
        (lambda path: os.truncate(path, 8 << 30), TooBig),
        (lambda path: (path.unlink(), path.mkdir()), NotRegular),
        (lambda path: (path.unlink(), path.symlink_to("other")), NotRegular),
        (lambda path: path.parent.chmod(0o777), Untrusted),
        (lambda path: os.chown(path.parent, STRANGER, STRANGER), Untrusted),
        (lambda path: (path.parent.rename(f"{path.parent}2"), path.parent.symlink_to("gvisor-bin2")), Untrusted),
    ],
)
def test_weakness_43_side_binaries_are_judged(
    set_bench: Bench, spoil: Callable[[Path], object], error: type[LaunchError]
) -> None:
    """Whatever would be refused in runsc's place is refused beside it."""
    spoil(set_bench.runsc.parent / "gvisor-bin/helper")
    set_bench.refuse(error)


@pytest.mark.parametrize(("module", "name"), [*SEAMS[:2], SEAMS[3]], ids=["take_place", "seal_all", "start"])
def test_weakness_43_a_swapped_side_binary_does_not_run(
    set_bench: Bench, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    """A side binary that is exchanged after the judgement is not the one that is staged."""
    forged = set_bench.install(set_bench.base / "forged", brand="forged")
    path = set_bench.runsc.parent / "gvisor-bin/helper"
    before_call(monkeypatch, module, name, lambda: put(path, forged))
    try:
        with set_bench.spawn(id="helper") as sandbox:
            assert sandbox.wait() == 0
    except Changed:
        pass
    reports = set_bench.witness.reports()
    assert {report["brand"].rstrip(".") for report in reports} <= {"genuine", "side-helper"}


def test_weakness_43_a_set_is_not_staged_without_its_parts(set_bench: Bench) -> None:
    """The sealed stage, which has no place beside runsc, refuses a runsc that would look there."""
    set_bench.refuse(BadArgument, stage=StageMethod.SEALED)
    report = set_bench.launch(id="helper", stage=StageMethod.COPY, enforcement=Enforcement.OFF)
    assert report["helper"] == "ran"
