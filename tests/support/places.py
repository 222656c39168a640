"""Where tests put things, and how they take them away again."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.setup.provision import test_base

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""


def home_base(user: pwd.struct_passwd) -> Path:
    """The folder for a user's private directories: below the home, because nobody else can write above it."""
    folder = Path(user.pw_dir, ".local/state/nucleus-gvisor-tests")
    for path in [*reversed(folder.relative_to(user.pw_dir).parents), folder.relative_to(user.pw_dir)]:
        directory = Path(user.pw_dir, path)
        if not directory.exists():
            directory.mkdir(mode=0o700)
            os.chown(directory, user.pw_uid, user.pw_gid)
    return folder


def mounts_below(path: Path) -> list[Path]:
    """Mount points at or below `path`, the innermost first."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    points = [Path(os.fsdecode(line.split()[4].decode("unicode_escape").encode("latin-1"))) for line in lines]
    return sorted((point for point in points if point.is_relative_to(path)), key=lambda p: len(p.parts), reverse=True)


def remove(path: Path) -> list[Path]:
    """Remove a tree, and answer the mounts that were found in it.

    A mount goes first: a tree walk that enters a bind mount would delete the host's own files.
    """
    found = mounts_below(path)
    for point in found:
        subprocess.run(["umount", "--lazy", os.fspath(point)], check=True)
    if os.geteuid():
        for folder, names, _ in os.walk(path):
            for name in names:
                inner = Path(folder, name)
                if not inner.is_symlink():
                    inner.chmod(0o700)  # only root enters a directory of mode 0
    shutil.rmtree(path)
    return found


@contextmanager
def private_directory(owner: pwd.struct_passwd | None = None) -> Iterator[Path]:
    """A fresh directory of mode 0700, of the caller or of `owner`; gone afterwards, and no mount may be left in it."""
    if owner is None and os.geteuid() == 0:
        folder = test_base()
    else:
        folder = home_base(owner or pwd.getpwuid(os.geteuid()))
    path = Path(tempfile.mkdtemp(prefix="base-", dir=folder))
    if owner is not None:
        os.chown(path, owner.pw_uid, owner.pw_gid)
    try:
        yield path
    finally:
        left = remove(path) if path.exists() else []
    assert not left, f"the test left mounts behind: {left}"


def sweep() -> None:
    """Remove what test runs that were killed have left, once it is a day old."""
    for path in (*test_base().glob("app-*"), *test_base().glob("base-*")):
        if time.time() - path.lstat().st_mtime > 86_400:
            remove(path)
