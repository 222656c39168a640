"""runsc: its arguments in the reference's order, its environment, and its own account of itself."""

import os
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nucleus_gvisor.model.errors import NotRunsc, Unfit, Unsupported
from nucleus_gvisor.runtime import _child, runsc
from nucleus_gvisor.runtime.options import GVisorOciRunOptions, NetworkMode, Platform, Writable
from nucleus_gvisor.runtime.runsc import Release

FLAGS = b"""\
  -overlay2 value
\tsomething else
  -platform string
    \tspecifies which platform to use: systrap (default), ptrace, kvm. (default "systrap")
  -port int
"""
NEW = Release("20240729.0", "runsc version release-20240729.0", ("systrap", "ptrace", "kvm"), "systrap")
OLD = Release("20221219.0", "runsc version 0.0~20221219.0", ("ptrace", "kvm"), "ptrace")


def arguments(options: GVisorOciRunOptions, **more: bool | None) -> list[str]:
    items = runsc.run_arguments("job-1", b"/b", b"/r", options, platform="systrap", **more)  # type: ignore[arg-type]
    return [item.decode() for item in items]


@pytest.mark.parametrize(
    ("options", "more", "expected"),
    [
        ({}, {}, "runsc --root /r --network none --platform systrap run --bundle /b job-1"),
        (
            {"runsc_rootless": True},
            {},
            "runsc --root /r --rootless --network none --platform systrap run --bundle /b job-1",
        ),
        (
            {"ignore_cgroups": True},
            {},
            "runsc --root /r --ignore-cgroups --network none --platform systrap run --bundle /b job-1",
        ),
        (
            {"runsc_rootless": True, "ignore_cgroups": True, "network_mode": "host"},
            {},
            "runsc --root /r --rootless --ignore-cgroups --network host --platform systrap run --bundle /b job-1",
        ),
        (
            {},
            {"ignore_cgroups": True, "seccomp": True},
            "runsc --root /r --ignore-cgroups --oci-seccomp --network none --platform systrap run --bundle /b job-1",
        ),
        (
            {"network_mode": "sandbox"},
            {"rootless": True, "ignore_cgroups": True},
            "runsc --root /r --rootless --ignore-cgroups --network sandbox --platform systrap run --bundle /b job-1",
        ),
        (
            {"runsc_rootless": True, "ignore_cgroups": True},
            {"rootless": False, "ignore_cgroups": False},
            "runsc --root /r --network none --platform systrap run --bundle /b job-1",
        ),
        (
            {"runsc_rootless": True},
            {"rootless": None, "ignore_cgroups": True},
            "runsc --root /r --rootless --ignore-cgroups --network none --platform systrap run --bundle /b job-1",
        ),
    ],
    ids=str,
)
def test_arguments_have_the_references_order(
    options: dict[str, object], more: dict[str, bool | None], expected: str
) -> None:
    """Global flags, then the subcommand, then its own flags, then the id (gvisor.rs:918)."""
    assert arguments(GVisorOciRunOptions(**options), **more) == expected.split()  # type: ignore[arg-type]


def test_arguments_are_bytes_end_to_end() -> None:
    """Paths that are not UTF-8 and paths with spaces reach runsc as they are, one argument each."""
    items = runsc.run_arguments(
        "a", b"/b \xff", b"/r\n\xfe", GVisorOciRunOptions(), platform="kvm", program=b"/proc/self/fd/9"
    )
    assert items[0] == b"/proc/self/fd/9" and items[items.index(b"--bundle") + 1] == b"/b \xff"
    assert items[items.index(b"--root") + 1] == b"/r\n\xfe" and items[items.index(b"--platform") + 1] == b"kvm"


def test_real_runsc_understands_the_arguments(runsc_old: Path, runsc_new: Path, base: Path) -> None:
    """Both releases accept every flag and stop only at the bundle that is not there."""
    options = GVisorOciRunOptions(runsc_rootless=True, ignore_cgroups=True)
    for path, platform in ((runsc_old, "ptrace"), (runsc_new, "systrap")):
        items = runsc.run_arguments("job-1", bytes(base / "none"), bytes(base / "root"), options, platform=platform)
        env = runsc.environment(bytes(base))
        done = subprocess.run(items, executable=path, env=env, capture_output=True, timeout=60, check=False)
        assert done.returncode != 0 and b"none/config.json" in done.stderr, done.stderr
        assert b"flag provided but not defined" not in done.stderr


def test_environment_is_six_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly these, whatever the caller's own environment says."""
    for name in (
        "LD_PRELOAD",
        "GODEBUG",
        "GVISOR_SIDECAR_BINARIES_DIR",
        "RUNSC_PATH",
        "PATH",
        "HOME",
        "TMPDIR",
        "USER",
    ):
        monkeypatch.setenv(name, "/planted")
    assert runsc.environment(b"/run/x\xff") == {
        b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        b"TMPDIR": b"/run/x\xff",
        b"XDG_RUNTIME_DIR": b"/run/x\xff",
        b"HOME": b"/root",
        b"USER": b"root",
        b"LOGNAME": b"root",
    }


# ---- answers ----


def answers(path: Path) -> list[tuple[int, bytes]]:
    """What the binary answers to our questions."""
    found = []
    for question in runsc.QUESTIONS:
        done = subprocess.run(question, executable=path, stdout=-1, stderr=-2, env={}, timeout=60, check=False)
        found.append((done.returncode, done.stdout))
    return found


def test_the_older_release_is_read(runsc_old: Path) -> None:
    """Debian 12's runsc: its version without the packager's preamble, its date, and its two platforms."""
    release = runsc.read_answers(answers(runsc_old))
    assert (release.version, release.date) == ("20221219.0", 20221219)
    assert release.text.splitlines()[0] == "runsc version 0.0~20221219.0"
    assert set(release.platforms) == {"ptrace", "kvm"} and release.default_platform == "ptrace"


def test_the_newer_release_is_read(runsc_new: Path) -> None:
    """Debian 13's runsc has systrap, and it is the default."""
    release = runsc.read_answers(answers(runsc_new))
    assert (release.version, release.date) == ("20240729.0", 20240729)
    assert {"systrap", "kvm"} <= set(release.platforms) and release.default_platform == "systrap"


def test_flags_are_read(runsc_old: Path, runsc_new: Path) -> None:
    """Each flag that is listed, by its name, and nothing of what is said of it."""
    assert runsc.read_answers([(0, b"runsc version 1\n"), (0, FLAGS)]).flags.keys() == {"overlay2", "platform", "port"}
    for path in (runsc_old, runsc_new):
        listed = subprocess.run([path, "flags"], capture_output=True, check=False)
        answers = [(0, b"runsc version 1\n"), (0, listed.stdout + listed.stderr)]
        flags = runsc.read_answers(answers).flags.keys()
        assert {"oci-seccomp", "rootless", "platform_device_path", "TESTONLY-unsafe-nonroot"} <= flags
        assert len(flags) > 60


@pytest.mark.parametrize("path", ["/bin/true", "/bin/cat", "/bin/echo", "/bin/sh"])
def test_other_programs_are_not_runsc(path: str) -> None:
    """A trusted program of the host in runsc's place is found out by what it says."""
    with pytest.raises(NotRunsc):
        runsc.read_answers(answers(Path(path)))


@pytest.mark.parametrize(
    ("version", "expected", "date"),
    [
        (b"runsc version release-20231009.0\nspec: 1.1.0\n", "20231009.0", 20231009),
        (b"runsc version release-20231009.0-12-gdeadbeef\n", "20231009.0-12-gdeadbeef", 20231009),
        (b"runsc version 0.0~20221219.0\n", "20221219.0", 20221219),
        (b"runsc version VERSION_MISSING\n", "VERSION_MISSING", None),
        (b"runsc version v1.2\xff\n", "v1.2\N{REPLACEMENT CHARACTER}", None),
    ],
)
def test_versions_are_read(version: bytes, expected: str, date: int | None) -> None:
    """Releases, builds between releases, distributions' own forms, and builds without a version."""
    release = runsc.read_answers([(0, version), (0, FLAGS)])
    assert (release.version, release.date) == (expected, date)
    assert (release.platforms, release.default_platform) == (("systrap", "ptrace", "kvm"), "systrap")


@pytest.mark.parametrize(
    "given_answers",
    [
        [(0, b""), (0, FLAGS)],
        [(0, b"\n"), (0, FLAGS)],
        [(1, b"runsc version 1\n"), (0, FLAGS)],
        [(9, b"runsc version 1\n"), (0, FLAGS)],
        [(-9, b"runsc version 1\n"), (0, FLAGS)],
        [(0, b" runsc version 1\n"), (0, FLAGS)],
        [(0, b"x\nrunsc version 1\n"), (0, FLAGS)],
        [(0, b"runc version 1.1.5\n"), (0, FLAGS)],
        [(0, b"runsc version \n"), (0, b"")],
        [(0, b"runsc version 1\n"), (0, b"")],
        [(0, b"runsc version 1\n"), (0, b"-platform string\n")],
        [(0, b"runsc version 1\n"), (0, FLAGS.replace(b"specifies", b"says"))],
    ],
)
def test_wrong_answers_are_not_runscs(given_answers: list[tuple[int, bytes]]) -> None:
    """A failed, empty or foreign answer to either question."""
    with pytest.raises(NotRunsc):
        runsc.read_answers(given_answers)


@given(status=st.integers(-64, 255), version=st.binary(max_size=80), flags=st.binary(max_size=200))
def test_garbage_is_not_runsc(status: int, version: bytes, flags: bytes) -> None:
    """Any bytes give a release or NotRunsc, whose text is one line."""
    for first in (version, b"runsc version " + version):
        for second in (flags, FLAGS + flags, FLAGS.replace(b"ptrace", flags)):
            try:
                runsc.read_answers([(status, first), (0, second)])
            except NotRunsc as error:
                assert "\n" not in str(error)


# ---- what a release can do ----


def test_a_platform_that_the_release_has_is_taken() -> None:
    """What was asked for by name is given by name; what is missing is refused with what there is."""
    assert runsc.choose_platform(NEW, Platform.SYSTRAP) == "systrap"
    assert runsc.choose_platform(OLD, Platform.PTRACE) == "ptrace"
    with pytest.raises(Unsupported) as caught:
        runsc.choose_platform(OLD, Platform.SYSTRAP)
    assert "ptrace, kvm" in str(caught.value) and 'platform="auto"' in caught.value.hint


def test_auto_is_the_releases_own_default() -> None:
    """Systrap of the newer release, ptrace of the older."""
    assert [runsc.choose_platform(release, Platform.AUTO) for release in (NEW, OLD)] == ["systrap", "ptrace"]


def test_kvm_needs_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /dev/kvm it is refused when asked for, and passed over when it is only the default."""
    kvm_first = Release("1", "1", ("kvm", "ptrace"), "kvm")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(Unsupported, match="/dev/kvm"):
        runsc.choose_platform(NEW, Platform.KVM)
    assert runsc.choose_platform(kvm_first, Platform.AUTO) == "ptrace"
    assert runsc.choose_platform(Release("1", "1", ("kvm", "ptrace", "systrap"), "systrap"), Platform.AUTO) == "systrap"
    for granted in (os.R_OK, os.W_OK):  # both are needed
        monkeypatch.setattr(os, "access", lambda path, mode, granted=granted: not mode & ~granted)
        with pytest.raises(Unsupported, match="/dev/kvm"):
            runsc.choose_platform(NEW, Platform.KVM)
        assert runsc.choose_platform(kvm_first, Platform.AUTO) == "ptrace"
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert runsc.choose_platform(NEW, Platform.KVM) == "kvm"
    assert runsc.choose_platform(kvm_first, Platform.AUTO) == "kvm"


def test_a_release_with_kvm_alone_is_refused_without_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to choose then, and that is said."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(Unsupported):
        runsc.choose_platform(Release("1", "1", ("kvm",), "kvm"), Platform.AUTO)


@given(
    platforms=st.lists(st.sampled_from(["systrap", "ptrace", "kvm", "new"]), max_size=4, unique=True),
    default=st.sampled_from(["systrap", "ptrace", "kvm", "new"]),
    wanted=st.sampled_from(list(Platform)),
)
@example(platforms=[], default="kvm", wanted=Platform.AUTO)
def test_any_release_gives_a_platform_of_its_own_or_is_unfit(
    platforms: list[str], default: str, wanted: Platform
) -> None:
    """Whatever a release says of its platforms, the answer is one of them or an error of the launch's kind."""
    release = Release("1", "1", tuple(platforms), default)
    try:
        chosen = runsc.choose_platform(release, wanted)
    except Unfit:
        return
    assert chosen in (*platforms, default)
    assert wanted is Platform.AUTO or chosen == wanted.value


@pytest.mark.parametrize(
    ("mode", "asked", "needed", "fine"),
    [
        ("none", True, True, True),
        ("host", True, True, True),
        ("sandbox", False, False, True),
        ("sandbox", False, True, False),
        ("sandbox", True, True, False),
        ("sandbox", True, False, False),
    ],
)
def test_networks(mode: str, asked: bool, needed: bool, fine: bool) -> None:
    """A sandbox network there is only without --rootless, asked for or needed; others have no needs."""
    options = GVisorOciRunOptions(network_mode=NetworkMode(mode), runsc_rootless=asked)
    if fine:
        runsc.judge_network(NEW, options, rootless=needed)
    else:
        with pytest.raises(Unsupported) as caught:
            runsc.judge_network(NEW, options, rootless=needed)
        assert caught.value.hint


@pytest.mark.parametrize("name", ["job-1", "run", "restore"])
@pytest.mark.parametrize(("image", "words"), [(None, ["run"]), (b"/i", ["restore", "--image-path", "/i"])])
def test_a_checkpoint_is_restored_in_place_of_a_run(image: bytes | None, words: list[str], name: str) -> None:
    """Nothing else differs; and where the flags end is known, whatever the container is called."""
    options = GVisorOciRunOptions()
    command = runsc.run_arguments(name, b"/b", b"/r", options, platform="systrap", image=image)
    flags = ["runsc", "--root", "/r", "--network", "none", "--platform", "systrap"]
    assert [item.decode() for item in command] == [*flags, *words, "--bundle", "/b", name]
    assert runsc.after_flags(command) == len(flags)


def test_releases_that_cannot_restore() -> None:
    """One that starts only with --rootless, whatever its date, and any that is told to."""
    options = GVisorOciRunOptions()
    runsc.judge_restore(OLD, options, rootless=False)
    with pytest.raises(Unsupported, match=r"nobody.*without --rootless"):
        runsc.judge_restore(NEW, options, rootless=True)
    with pytest.raises(Unsupported, match="rootless"):
        runsc.judge_restore(NEW, GVisorOciRunOptions(runsc_rootless=True), rootless=False)


@pytest.mark.parametrize(
    ("said", "needed"),
    [
        (b"creating container: cannot create sandbox: cannot create sandbox process: starting sandbox: fork/exec"
         b" /proc/self/exe: operation not permitted", True),
        (b"creating container: cannot create sandbox: cannot read client sync file: waiting for sandbox to start: EOF",
         False),
        (_child.AS_ANOTHER, True),
        (b"", False),
        (b"junk", False),
    ],
)  # fmt: skip
def test_what_a_trial_shows(said: bytes, needed: bool) -> None:
    """--rootless is passed only where the kernel kept the sandbox from being executed without it."""
    assert runsc.needs_rootless(said) is needed


GOFER = Release("nightly-2026-09-29", "", ("systrap",), "systrap", {"gofer-network-namespace": ""})


def test_a_release_has_what_its_flags_show_whatever_its_date() -> None:
    """Of an undated one the flags say all; of a dated one what has been seen of it as well."""
    assert GOFER.date is None and GOFER.has("gofer-namespace") and not GOFER.has("leave-running")
    assert not NEW.flags and NEW.has("leave-running") and not OLD.has("leave-running")
    assert not NEW.has("gofer-namespace")


@pytest.mark.parametrize(("release", "there"), [(GOFER, True), (NEW, False), (None, False)])
def test_a_gofers_namespace_of_its_own_is_asked_for_where_there_is_the_flag(
    release: Release | None, there: bool
) -> None:
    """Nothing stays mounted then, and no release is given a flag that it has not."""
    arguments = runsc.run_arguments("a", b"/b", b"/r", GVisorOciRunOptions(), platform="systrap", release=release)
    assert (b"--gofer-network-namespace=new" in arguments) is there


SET = ("runsc", *runsc.RUN_BY_SANDBOXES)


@pytest.mark.parametrize(
    ("side", "flags", "told"),
    [
        (SET, {"sidecar-usage-policy": "", "sidecar-release-enforcement-policy": ""}, 2),
        (SET, {"sidecar-usage-policy": ""}, 1),
        (SET, {}, 0),
        (SET[:2], {"sidecar-usage-policy": "", "sidecar-release-enforcement-policy": ""}, 0),
        (("runsc",), {"sidecar-usage-policy": "", "sidecar-release-enforcement-policy": ""}, 0),
    ],
)
def test_a_whole_set_is_to_be_used_and_of_one_release(side: tuple[str, ...], flags: dict[str, str], told: int) -> None:
    """Where the release has the flags; a set in part goes as far as runsc lets it."""
    release = Release("20260831.0", "", ("systrap",), "systrap", flags)
    arguments = runsc.run_arguments(
        "a", b"/b", b"/r", GVisorOciRunOptions(), platform="systrap", release=release, side=side
    )
    policies = {b"--sidecar-usage-policy=STRICT", b"--sidecar-release-enforcement-policy=ALWAYS"}
    assert len(policies & set(arguments)) == told
    arguments = runsc.run_arguments("a", b"/b", b"/r", GVisorOciRunOptions(), platform="systrap", side=side)
    assert not policies & set(arguments)


REFUSED = b'FATAL ERROR: sidecar "gvisor_sentry" not usable: stat /memfd:runsc (deleted)'


@pytest.mark.parametrize(
    ("version", "trial", "refused"),
    [
        ("20260831.0", b"ok", False),
        ("20260913.9", b"ok", False),
        ("20260914.0", b"ok", True),
        ("20260831.0", REFUSED, True),
        ("VERSION_MISSING", REFUSED, True),
        ("VERSION_MISSING", b"ok", False),
        ("nightly-2026-09-29", b"", False),
        ("google-714859633", b"", False),
    ],
)
def test_a_runsc_that_does_not_run_alone(version: str, trial: bytes, refused: bool) -> None:
    """By what it says when it is tried, dated or not; or by its date. The hint tells how to have all of it."""
    release = Release(version, "", ("systrap",), "systrap")
    if not refused:
        runsc.judge_alone(release, trial)
        return
    with pytest.raises(Unsupported, match="starts no guest without its side binaries") as caught:
        runsc.judge_alone(release, trial)
    assert "whole archive" in (caught.value.hint or "") and "apt package" in (caught.value.hint or "")


def test_a_layer_needs_the_flag_for_it() -> None:
    """Where a guest's writes would go to the caller's files instead, the launch is refused."""
    with pytest.raises(Unsupported, match="cannot keep a guest's writes in a layer"):
        runsc.overlay(OLD, Writable.MEMORY)


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ((0, b"runsc version release-20260831.0\nspec: 1.2.1\n"), False),
        ((0, b"runsc version release-20260831.1\n"), True),
        ((256, b"runsc version release-20260831.0\n"), True),
        ((0, b"panic: no such file\n"), True),
        ((0, b""), True),
    ],
)
def test_a_side_binary_is_of_the_same_release(said: tuple[int, bytes], refused: bool) -> None:
    """What it answers is read as runsc's own answer is; what is not staged is not asked."""
    release = Release("20260831.0", "", ("systrap",), "systrap", {})
    answered = [(0, b""), (0, b""), said, (9, b"the trial")]
    assert len(runsc.questions(SET)) == 3 and len(runsc.questions(["runsc"])) == 2
    runsc.judge_set(release, answered, ["runsc"])
    with pytest.raises(Unsupported, match="gvisor_sentry") if refused else nullcontext():
        runsc.judge_set(release, answered, SET)
    with pytest.raises(ValueError, match="shorter"):
        runsc.judge_set(release, answered[:2], SET)
