"""Places that no guest can have are refused before the launch: what is of the wrong kind, and what is not there."""

import os
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.errors import BadBundle
from nucleus_gvisor.runtime import Mount, OciBundle
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
