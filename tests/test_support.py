"""The test support does what tests rely on."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from tests.setup import provision, releases
from tests.setup.problem import Problem
from tests.support import app as support_app
from tests.support import places
from tests.support.modes import NAMES, Mode

ARCHIVE = "http://archive.invalid/pool"
DEB822 = f"""\
# Types: deb
Types: deb deb-src
URIs: {ARCHIVE}
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/Some-Key.gpg

Types: deb
URIs: http://archive.invalid/security
Suites: bookworm-security
Components: main
"""
SEEN = """
import os, pathlib, nucleus_gvisor.model.states as states
print(os.getuid(), os.environ["HOME"], states.__file__)
print(*pathlib.Path("/proc/self/uid_map").read_text().split())
pathlib.Path("written").touch()
"""


def test_mode_is_who_it_says(mode: Mode) -> None:
    """Each mode has its uid, its namespace, its home, the shared packages and a base it can write."""
    done = mode.run([mode.python, "-W", "error", "-c", SEEN])
    assert done.returncode == 0, done.stderr
    first, uid_map = done.stdout.splitlines()
    uid, home, module = first.split()
    account = mode.account
    assert int(uid) == (account.pw_uid if mode.name == "user" else 0)
    assert home == account.pw_dir
    assert Path(module).is_relative_to(mode.app)
    assert (uid_map.split() == ["0", str(account.pw_uid), "1"]) == (mode.name == "userns")
    assert (mode.base / "written").stat().st_uid == account.pw_uid


def test_mode_inherits_no_groups(mode: Mode) -> None:
    """An ordinary user's process keeps none of root's groups."""
    groups = mode.run(["id", "-G"]).stdout.split()
    if mode.name == "user" and os.geteuid() == 0:
        assert groups == [str(mode.account.pw_gid)]
    assert mode.name == "root" or os.geteuid() or (mode.name == "userns") == ("0" in groups)


def test_mode_options_can_be_overridden(mode: Mode) -> None:
    """What a test gives to `run` wins over the mode's own arguments."""
    done = mode.run(["cat"], stdin=None, input="text", stderr=subprocess.STDOUT)
    assert (done.stdout, done.stderr) == ("text", None)


def test_modes_have_their_own_bases(modes: dict[str, Mode]) -> None:
    """The bases differ, are private, and lie below no directory that others can write."""
    assert tuple(modes) == NAMES
    assert len({mode.base for mode in modes.values()}) == len(NAMES)
    for mode in modes.values():
        status = mode.base.stat()
        assert (status.st_mode & 0o7777, status.st_uid) == (0o700, mode.account.pw_uid)
        assert not any(parent.stat().st_mode & 0o022 for parent in mode.base.parents)


def test_base_is_private(base: Path) -> None:
    """The caller's own base is mode 0700 and below no directory that others can write."""
    assert (base.stat().st_mode & 0o7777, base.stat().st_uid) == (0o700, os.geteuid())
    assert not any(parent.stat().st_mode & 0o022 for parent in base.parents)


def test_user_is_ordinary(user: pwd.struct_passwd) -> None:
    """The ordinary user is not root and has a home."""
    assert user.pw_uid != 0 and Path(user.pw_dir).is_dir()


def test_other_users_cannot_change_the_app(app: Path, user: pwd.struct_passwd) -> None:
    """All of the shared copy can be read by all and written by its owner alone, but for the coverage folder."""
    for path in app.rglob("*"):
        if path.relative_to(app).parts[0] != support_app.DATA:
            assert path.stat().st_mode & 0o022 == 0 and path.stat().st_mode & 0o004, path


@pytest.mark.real
def test_releases_differ(runsc_old: Path, runsc_new: Path) -> None:
    """The two runsc are two releases, and both run here."""
    versions = [subprocess.check_output([path, "--version"], text=True) for path in (runsc_old, runsc_new)]
    assert all(version.startswith("runsc version") for version in versions)
    assert versions[0] != versions[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_removal_spares_what_is_mounted(base: Path) -> None:
    """A tree is removed without the files of a directory that is bound into it, and the mount is reported."""
    (base / "host").mkdir()
    (base / "host/file").touch()
    (base / "tree/a b").mkdir(parents=True)
    subprocess.run(["mount", "--bind", base / "host", base / "tree/a b"], check=True)
    assert places.remove(base / "tree") == [base / "tree/a b"]
    assert (base / "host/file").exists() and not (base / "tree").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("debian.sources", DEB822),
        ("sources.list", f"# deb x y z\ndeb http://archive.invalid/other sid main\ndeb {ARCHIVE} bookworm main # why"),
        ("sources.list", f"deb [arch=amd64 signed-by=/usr/share/keyrings/Some-Key.gpg] {ARCHIVE} stable contrib main"),
    ],
)
def test_archive_is_found_in_apt_sources(name: str, text: str) -> None:
    """The machine's own archive is read from either format, security and foreign suites left aside."""
    found = provision.debian_archive([(name, text)], "bookworm")
    assert found.uri == ARCHIVE
    assert found.options.get("signed-by", "/usr/share/keyrings/Some-Key.gpg") == "/usr/share/keyrings/Some-Key.gpg"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", ""),
        ("sources.list", f"deb-src {ARCHIVE} bookworm main"),
        ("debian.sources", DEB822.replace("deb deb-src", "deb-src")),
        ("debian.sources", DEB822.replace("Types: deb deb-src", "Types: deb\nEnabled: no")),
        ("debian.sources", DEB822.replace("main", "contrib")),
    ],
)
def test_no_archive_is_a_problem(name: str, text: str) -> None:
    """Without a usable archive the message says what was looked for."""
    with pytest.raises(Problem, match="no Debian archive with the suite bookworm"):
        provision.debian_archive([(name, text)], "bookworm")


def test_provision_says_how_it_is_used() -> None:
    """A wrong argument prints the usage and fails."""
    done = subprocess.run([sys.executable, provision.__file__, "x"], capture_output=True, text=True)
    assert done.returncode == 2 and "provision.py test" in done.stderr


def test_without_go_the_setup_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line: what it is needed for, and where it comes from."""
    monkeypatch.setattr("tests.setup.releases.shutil.which", lambda *_, **__: None)
    with pytest.raises(Problem, match=r"there is no Go.*https://go.dev/doc/install"):
        releases.Toolchain("go1.26.8")


@pytest.mark.real
def test_what_is_built_is_what_is_pinned(tmp_path: Path) -> None:
    """Each release is there, as pinned, says that it is itself, and nothing is built again; a changed one would be."""
    base, arch = provision.test_base(), {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    for name, pin in releases.pins().items():
        folder = base / releases.FOLDER / name
        assert releases.digests(folder) == pin.sha256[arch]
        for path in filter(Path.exists, (folder / "runsc", folder / releases.SIDE / releases.SENTRY)):
            assert subprocess.check_output([path, "--version"], text=True).startswith(f"runsc version {pin.version}\n")
        (tmp_path / name).mkdir()
        (tmp_path / name / "runsc").write_bytes(b"another")
    assert list(releases.absent(base, arch)) == []
    assert [name for name, _ in releases.absent(tmp_path, arch)] == list(releases.pins())
