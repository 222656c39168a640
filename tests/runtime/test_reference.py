"""What the reference's own unit tests show (gvisor.rs:1004-1257), shown of ours; names and defaults kept."""

import inspect
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import (
    BadBase,
    GVisorOciRunOptions,
    GVisorRuntime,
    NetworkMode,
    OciBundle,
    Platform,
    StageMethod,
    Untrusted,
    runsc,
)
from nucleus_gvisor.runtime.cleanup import Place, state_component
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import open_private
from nucleus_gvisor.runtime.steps import resolve, stage
from tests.support.modes import Mode


def _judged(path: Path) -> resolve.Judged:
    return resolve.resolve(os.fsencode(path), Identity.current())


def _place(base: Path, container: str) -> Place:
    path = os.fsencode(base)
    place = Place(open_private(path, Identity.current()), path, state_component(container))
    place.take()
    place.make()
    return place


def test_defaults_are_the_references() -> None:
    """The five options of gvisor.rs:60 have its names, order and defaults."""
    names = list(inspect.signature(GVisorOciRunOptions).parameters)[:5]
    assert names == [
        "network_mode",
        "ignore_cgroups",
        "runsc_rootless",
        "require_supervisor_exec_policy",
        "platform",
    ]
    options = GVisorOciRunOptions()
    assert [getattr(options, name) for name in names] == ["none", False, False, False, "systrap"]
    assert [p.as_flag() for p in (Platform.SYSTRAP, Platform.KVM, Platform.PTRACE)] == ["systrap", "kvm", "ptrace"]


def test_positional_interface_keeps_its_order() -> None:
    """exec_with_oci_bundle_network takes the reference's seven arguments in its order (gvisor.rs:380)."""
    assert list(inspect.signature(GVisorRuntime.exec_with_oci_bundle_network).parameters)[1:] == [
        "container_id",
        "bundle",
        "network_mode",
        "ignore_cgroups",
        "runsc_rootless",
        "require_supervisor_exec_policy",
        "platform",
    ]


def test_search_order_is_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three system paths come first, and PATH counts only for callers that are not root."""
    monkeypatch.setenv("PATH", "/opt/a:/opt/b")
    root = Identity(uid=0, gid=0, host_root=True, unmapped=None, elevated=False)
    user = Identity(uid=1001, gid=1001, host_root=False, unmapped=None, elevated=False)
    system = [b"/usr/local/bin/runsc", b"/usr/bin/runsc", b"/opt/gvisor/runsc"]
    assert resolve.candidates(None, root) == system
    assert resolve.candidates(None, user) == [*system, b"/opt/a/runsc", b"/opt/b/runsc"]


def test_available_and_versioned(runsc_old: Path) -> None:
    """With Debian's runsc installed there is a runtime, and it knows where and what its runsc is."""
    assert GVisorRuntime.is_available()
    runtime = GVisorRuntime()
    assert runtime.path == str(runsc_old) == GVisorRuntime.resolve_path()
    said = subprocess.run([runsc_old, "--version"], capture_output=True, text=True, check=True).stdout
    assert runtime.version() == said.strip()


def test_not_available(modes: dict[str, Mode]) -> None:
    """What lies in its place, and is no program, is no runtime."""
    mode = modes["user"]
    asked = "from nucleus_gvisor.runtime import GVisorRuntime; print(GVisorRuntime.is_available())"
    script = f"mount --bind /etc/hostname /usr/bin/runsc; exec {mode.python} -c '{asked}'"
    done = mode.run(["unshare", "--user", "--map-root-user", "--mount", "--", "/bin/sh", "-c", script])
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_writable_by_others_is_refused(base: Path, mode: int) -> None:
    """A runsc that group or others can write is refused, with its owner and mode in the error."""
    fake = base / "runsc"
    shutil.copy("/usr/bin/true", fake)
    fake.chmod(mode)
    with pytest.raises(Untrusted, match="can be written by others") as caught:
        _judged(fake)
    assert caught.value.path == os.fsencode(fake)
    assert f"mode {mode:04o}" in str(caught.value)


def test_owner_that_is_neither_root_nor_self_is_refused(base: Path) -> None:
    """A runsc of a third party is refused (gvisor.rs:217)."""
    fake = base / "runsc"
    shutil.copy("/usr/bin/true", fake)
    os.chown(fake, 4242, 4242)
    with pytest.raises(Untrusted, match="belongs to someone else"):
        _judged(fake)


_STORE = """
import os, subprocess, sys
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.steps import resolve
source, readonly = sys.argv[1], sys.argv[2] == "ro"
os.makedirs("/nix/store", exist_ok=True)
subprocess.run(["mount", "--bind", source, "/nix/store"], check=True)
if readonly:
    subprocess.run(["mount", "-o", "remount,bind,ro", "/nix/store"], check=True)
try:
    print(os.fsdecode(resolve.resolve(sys.argv[3].encode(), Identity.current()).runsc.path))
except Exception as error:
    print(type(error).__name__)
"""


def _in_store(source: Path, writable: bool, path: str) -> str:
    """What comes of resolving `path` with `source` mounted at /nix/store, in a mount namespace of its own."""
    existed = Path("/nix").exists()
    try:
        return subprocess.run(
            ["unshare", "--mount", sys.executable, "-c", _STORE, source, "rw" if writable else "ro", path],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    finally:
        if not existed:
            os.removedirs("/nix/store")


@pytest.mark.parametrize(("writable", "expected"), [(False, "/nix/store/abc-runsc/bin/runsc"), (True, "Untrusted")])
def test_store_owner_is_trusted_in_an_immutable_store_only(base: Path, writable: bool, expected: str) -> None:
    """A store file of `nobody` passes when the store's mount is read-only; the path alone proves nothing."""
    program = base / "abc-runsc/bin/runsc"
    program.parent.mkdir(parents=True)
    shutil.copy("/usr/bin/true", program)
    for path in (program, program.parent, program.parent.parent):
        path.chmod(0o555)
    base.chmod(0o755)
    os.chown(program, 65534, 65534)
    assert _in_store(base, writable, "/nix/store/abc-runsc/bin/runsc") == expected


def test_nix_wrapper_is_followed_once_judged(base: Path) -> None:
    """A wrapper script leads to the ELF that its last exec line names; an open wrapper leads nowhere."""
    target = base / ".runsc-wrapped"
    shutil.copy("/usr/bin/true", target)
    wrapper = base / "runsc"
    wrapper.write_text(f'#!/bin/sh\nexport A=1\nexec -a "$0" "{target}"  "$@"\n')
    wrapper.chmod(0o755)
    judged = _judged(wrapper)
    assert judged.runsc.path == os.fsencode(target)
    judged.close()
    wrapper.chmod(0o777)
    with pytest.raises(Untrusted, match="can be written by others"):
        _judged(wrapper)


def test_environment_is_hardcoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """runsc's PATH is the reference's constant, whatever the caller's is (gvisor.rs:436)."""
    monkeypatch.setenv("PATH", "/tmp/evil-inject/bin")
    env = GVisorRuntime.exec_environment(Path("/run/x"))
    assert env == {
        b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        b"TMPDIR": b"/run/x",
        b"XDG_RUNTIME_DIR": b"/run/x",
        b"HOME": b"/root",
        b"USER": b"root",
        b"LOGNAME": b"root",
    }


@pytest.mark.parametrize("rootless", [True, False])
def test_arguments_in_the_references_order(rootless: bool) -> None:
    """--root, --rootless, --ignore-cgroups, --network, --platform, run, --bundle, id (gvisor.rs:925)."""
    options = GVisorOciRunOptions(
        network_mode=NetworkMode.HOST, ignore_cgroups=True, runsc_rootless=rootless, platform=Platform.SYSTRAP
    )
    argv = runsc.run_arguments("container-id", b"/b", b"/r", options, platform="systrap")
    flags = [b"--rootless"] if rootless else []
    assert argv == [
        b"runsc", b"--root", b"/r", *flags, b"--ignore-cgroups", b"--network", b"host", b"--platform", b"systrap",
        b"run", b"--bundle", b"/b", b"container-id",
    ]  # fmt: skip


def test_copy_stage_is_private_and_of_the_same_bytes(base: Path, runsc_old: Path) -> None:
    """The copy lies in exec-allow/stage-*/runsc below the container's directory, with the mode that runsc needs."""
    place = _place(base, "c")
    judged = _judged(runsc_old)
    staged = stage.stage("copy", judged, stage.seal_all(judged), place.directory, place.path)
    assert staged.directory is not None
    copy = Path(os.fsdecode(staged.directory)) / "runsc"
    assert copy.parent.parent == Path(os.fsdecode(place.path)) / "exec-allow"
    assert copy.read_bytes() == runsc_old.read_bytes()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o555
    assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
    staged.close()
    judged.close()
    assert place.remove() == []
    place.close()


def test_copy_stage_refuses_a_linked_exec_allow(base: Path, runsc_old: Path) -> None:
    """A symbolic link in exec-allow's place is refused, and nothing is written where it leads (gvisor.rs:1212)."""
    victim = base / "victim"
    victim.mkdir()
    place = _place(base, "c")
    os.symlink(victim, "exec-allow", dir_fd=place.directory)
    judged = _judged(runsc_old)
    held = stage.seal_all(judged)
    with pytest.raises(BadBase, match="symbolic link"):
        stage.stage("copy", judged, held, place.directory, place.path)
    assert list(victim.iterdir()) == []
    stage.close(held)
    judged.close()
    place.remove()
    place.close()


def test_root_is_in_the_artifact_base_not_beside_the_bundle(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runsc's root comes from the artifact base's variable, never from where a bundle lies (gvisor.rs:1189)."""
    monkeypatch.setenv("NUCLEUS_GVISOR_ARTIFACT_BASE", str(base / "artifacts"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert (
        GVisorRuntime.runsc_root("container-id") == base / "artifacts" / state_component("container-id") / "runsc-root"
    )
    assert GVisorRuntime.runsc_root("0" * 32) == base / "artifacts" / ("0" * 32) / "runsc-root"


def test_state_directory_names_are_whole_digests() -> None:
    """Ids that are not 32 lower-case hex digits get the whole SHA-256, so that no two share a directory."""
    names = {state_component(name) for name in ("job", "JOB", "a" * 32, "A" * 32, "a" * 31)}
    assert len(names) == 5
    assert all(len(name) in (32, 67) for name in names)


def test_stage_methods_keep_their_names() -> None:
    """The reference's private copy and store path are named methods."""
    assert {StageMethod.COPY, StageMethod.STORE} == {"copy", "store"}


def test_every_caller_runs_the_default_launch(mode: Mode) -> None:
    """Each kind of caller gets Debian's runsc, confined by default, from the same short command."""
    done = mode.cli("run", "--", "sh", "-c", "exit 42")
    assert (done.returncode, done.stderr) == (42, "")


def test_bundle_has_the_references_accessor(base: Path) -> None:
    """A loaded bundle knows its directory (the reference's bundle_path)."""
    (base / "rootfs").mkdir()
    built = OciBundle.build(["true"], rootfs=base / "rootfs")
    sources = {bind.index: "/usr" for bind in built.binds()}
    (base / "config.json").write_bytes(built.private_config(str(base / "rootfs"), sources))
    (base / "config.json").chmod(0o600)
    assert OciBundle.load(base).bundle_path == base
