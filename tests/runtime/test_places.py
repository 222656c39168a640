"""Places that no guest can have are refused before the launch: what is of the wrong kind, and what is not there."""

import os
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.errors import BadBundle, Refused
from nucleus_gvisor.runtime import Mount, OciBundle
from nucleus_gvisor.runtime.paths import file_id
from nucleus_gvisor.runtime.steps import prepare

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.fixture
def root(base: Path) -> Path:
    """A guest's root with directories, a file and a link."""
    for name in ("etc/inner", "empty"):
        (base / name).mkdir(parents=True)
    (base / "etc/file").touch()
    (base / "link").symlink_to("/etc/inner")
    return base


def look(root: Path, mounts: list[Any], **options: Any) -> None:
    prepare.look_at_bundle(OciBundle.build(["true"], rootfs=root, mounts=mounts, **options))


REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "directory on file": (["/etc:/etc/file"], {}, "/etc/file of the guest is a file: .*expected: a directory"),
    "file on directory": (["/etc/hostname:/empty"], {}, "/empty of the guest is a directory: .*expected: a file"),
    "cwd is a file": ([], {"cwd": "/etc/file"}, "/etc/file of the guest is a file: .*the working directory"),
    "cwd in tmpfs": ([], {"cwd": "/tmp/x"}, "no working directory in the guest: /tmp/x; observed: missing: /tmp is"),
    "cwd deep in tmpfs": ([Mount.tmpfs("/empty")], {"cwd": "/empty/a/b/"}, "no working directory.*: /empty/a/b/; "),
    "cwd in a bind": (["/etc:/empty"], {"cwd": "/empty/hostname"}, "/empty/hostname of the guest is a file: /etc/host"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(root: Path, case: str) -> None:
    """Each refusal says what is there, what has to be, and what to do."""
    mounts, options, words = REFUSED[case]
    with pytest.raises(BadBundle, match=words) as caught:
        look(root, mounts, **options)
    assert caught.value.step == "Prepare" and caught.value.observed and caught.value.hint


ACCEPTED: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "there": ([Mount(source="/etc/hostname", target="/etc/file"), "/etc:/link"], {"cwd": "/link"}),
    "made": ([Mount.tmpfs("/dev/shm")], {"cwd": "/else/where"}),
    "the kernel's": ([], {"cwd": "/proc/self"}),
    "a tmpfs itself": ([], {"cwd": "/tmp"}),
    "in /dev": ([], {"cwd": "/dev/pts"}),
    "mounted in a tmpfs": (["/etc:/tmp/a/b"], {"cwd": "/tmp/a"}),
    "below what is mounted in a tmpfs": (["/etc:/tmp/a"], {"cwd": "/tmp/a/alternatives"}),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_can_be_passes(root: Path, case: str) -> None:
    """What is there, is made when the guest starts, or is for the guest's kernel to say."""
    mounts, options = ACCEPTED[case]
    look(root, mounts, **options)
    assert sorted(os.listdir(root)) == ["empty", "etc", "link"]


def covers(base: Path, source: str, *, rw: bool = False) -> list[str]:
    """What of the base `base/a/base` and of a cache that is not there is hidden in the bind of `source`."""
    mounts = [Mount(source=f"{base}/{source}", target="/x", readonly=not rw)]
    ours = [os.fsencode(base / "a/base"), os.fsencode(base / "b/none/cache")]
    guest = prepare.look_at_bundle(OciBundle.build(["true"], mounts=mounts), ours=ours)
    return [below.decode() for _, below in guest.covers]


def test_what_is_ours_is_hidden_and_never_written(base: Path) -> None:
    """Binds that are, have in them, or lie in what launches make; what else lies beside that is the caller's."""
    for name in ("a/base/records", "a/base/mine", "b/records", "c"):
        (base / name).mkdir(parents=True)
    (base / "a/base/locks").touch()
    for source, below in {"": ["a/base", "b/none/cache"], "a": ["base"], "a/base": [""], "a/base/records": [""],
                          "b": ["none/cache"]}.items():  # fmt: skip
        assert covers(base, source) == below
        with pytest.raises(Refused, match=r"directory of ours is refused: .*observed: writable"):
            covers(base, source, rw=True)
    for source in ("a/base/mine", "b/records", "c"):
        assert covers(base, source) == covers(base, source, rw=True) == []
    with pytest.raises(Refused, match="read-only"):
        covers(base, "a/base/locks")
    alone = prepare.Source(
        os.fsencode(base / "a"), os.fsencode(base / "a"), file_id((base / "a").stat()), "mnt/0", True, False, True
    )
    with pytest.raises(Refused, match="read-only"):  # what is mounted over it would not come along
        prepare._covers([alone], [os.fsencode(base / "a/base")])
