"""Bring a machine to where `make run` or `make test` can work. Says one line for each thing it does, else nothing.

    provision.py run      a runsc, when none is installed
    provision.py test     every release of runsc, the Debian packages and the ordinary user that tests need

Standard library only: it runs before there is a virtual environment. It can be run again at any time; what is
there already is left alone.
"""

import fcntl
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[2]))  # it is run by its path

from tests.setup import releases
from tests.setup.problem import Problem, quiet, say

USER = "ngv-test"
"""The ordinary user that tests run as, beside root."""
SUBORDINATE = "2000000-2065535"
"""Subordinate ids of his, where useradd(8) gave none (subuid(5))."""
RUNSC_PLACES = tuple(map(Path, ("/usr/local/bin/runsc", "/usr/bin/runsc", "/opt/gvisor/runsc")))
OLDER = Path("/usr/bin/runsc")
NEWER = Path("runsc-trixie/usr/bin/runsc")
"""Below the test base: the release of Debian 13."""
PACKAGES = (
    *("runsc", "gcc", "libc6-dev", "strace", "uidmap", "util-linux", "golang-github-opencontainers-specs-dev"),
    # What the guest runs in tests of ordinary programs.
    *("curl", "default-jdk-headless", "g++", "gdb", "git", "make", "nodejs", "openssh-client", "openssl", "sqlite3"),
    *("python3-flask", "python3-matplotlib", "python3-pandas", "python3-pip", "python3-venv"),
    *(("gcc-aarch64-linux-gnu", "qemu-user-static") if os.uname().machine == "x86_64" else ()),
)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def test_base() -> Path:
    """Where tests keep what outlives one test.

    Not below a world-writable directory, or the launcher would rightly refuse everything in it.
    """
    if named := os.environ.get("NUCLEUS_GVISOR_TEST_BASE"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/nucleus-gvisor-tests")
    return Path(pwd.getpwuid(os.geteuid()).pw_dir, ".local/state/nucleus-gvisor-tests")


# ---- Debian's packages ----


def missing(packages: Sequence[str]) -> list[str]:
    """Those of `packages` that are not installed."""
    if shutil.which("dpkg-query") is None:
        raise Problem(f"this is not Debian: install by hand what these packages have: {' '.join(packages)}")
    asked = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *packages],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    here = {line.removesuffix(" installed") for line in asked.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in here]


def install(packages: Sequence[str]) -> None:
    """Install with apt-get; fresh lists are fetched only when the first attempt fails."""
    names = " ".join(packages)
    if os.geteuid():
        raise Problem(f"not installed: {names}; as root: apt-get install {names}")
    if shutil.which("apt-get") is None:
        raise Problem(f"not installed: {names}, and there is no apt-get here")
    say(f"apt-get install {names}")
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends", *packages]
    try:
        quiet(command)
    except Problem:
        try:
            quiet(["apt-get", "update"])
        except Problem:
            pass  # One unreachable third-party list must not hide that Debian's own was fetched: install decides.
        quiet(command)


# ---- the newer runsc ----


class Source(NamedTuple):
    """One archive that apt reads binary packages from."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: dict[str, str]


def sources(name: str, text: str) -> Iterator[Source]:
    """The archives that one apt source file names, in either of apt's two formats (sources.list(5))."""
    if not name.endswith(".sources"):
        for line in text.splitlines():
            if found := re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line.strip()):
                options = [pair.split("=", 1) for pair in (found[1] or "").split() if "=" in pair]
                fields = {key.lower(): value for key, value in options}
                yield Source(found[2], (found[3],), tuple(found[4].split()), fields)
        return
    for stanza in re.split(r"\n\s*\n", text):
        lines = "\n".join(line for line in stanza.splitlines() if not line.startswith("#"))
        fields = {key.lower(): value.strip() for key, value in re.findall(r"(?m)^([\w-]+):(.*(?:\n[ \t].*)*)", lines)}
        if fields.get("enabled", "yes").lower() == "no" or "deb" not in fields.get("types", "").split():
            continue
        for uri in fields.get("uris", "").split():
            suites, components = fields.get("suites", "").split(), fields.get("components", "").split()
            yield Source(uri, tuple(suites), tuple(components), fields)


def debian_archive(files: Sequence[tuple[str, str]], release: str) -> Source:
    """The archive that this machine takes Debian itself from: the one with the plain suite of its `release`."""
    for name, text in files:
        for source in sources(name, text):
            if {release, "stable", "oldstable"} & set(source.suites) and "main" in source.components:
                return source
    raise Problem(f"no Debian archive with the suite {release} in this machine's apt sources")


def machine_archive() -> Source:
    """`debian_archive` of this machine's files."""
    release = re.search(r"(?m)^VERSION_CODENAME=(\S+)", Path("/etc/os-release").read_text())
    parts = sorted(Path("/etc/apt/sources.list.d").glob("*"))
    paths = [path for path in (Path("/etc/apt/sources.list"), *parts) if path.suffix in {".list", ".sources"}]
    readable = [(path.name, path.read_text(errors="replace")) for path in paths if path.is_file()]
    return debian_archive(readable, release[1] if release else "stable")


def fetch_newer(base: Path) -> None:
    """Unpack Debian 13's runsc below `base`, from this machine's own archive; nothing is installed.

    apt checks the signature and the hashes; a private list and state keep the machine's own apt untouched.
    """
    if (base / NEWER).is_file():
        return
    say(f"unpacking Debian 13's runsc into {base / NEWER.parts[0]}")
    archive = machine_archive()
    options = {"signed-by": KEYRING} if Path(KEYRING).is_file() else {}
    kept = {key: archive.options.get(key, "\n") for key in ("signed-by", "trusted")}
    options |= {key: value for key, value in kept.items() if "\n" not in value}  # a key written out in the file
    bracket = " ".join(f"{key}={value}" for key, value in options.items())
    with tempfile.TemporaryDirectory(dir=base) as folder:
        work = Path(folder)
        (work / "lists/partial").mkdir(parents=True)
        (work / "sources.list").write_text(f"deb [{bracket}] {archive.uri} trixie main\n")
        apt = ["apt-get", "-o", f"Dir::Etc::SourceList={work / 'sources.list'}"]
        apt += ["-o", "Dir::Etc::SourceParts=/nonexistent", "-o", f"Dir::State::Lists={work / 'lists'}"]
        apt += ["-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]
        if os.geteuid() == 0:
            apt += ["-o", "APT::Sandbox::User=root"]  # user _apt cannot enter the private folder
        for command in (["update"], ["download", "runsc/trixie"]):
            try:
                quiet([*apt, *command], cwd=work)
            except Problem:
                time.sleep(2)
                quiet([*apt, *command], cwd=work)
        quiet(["dpkg", "-x", str(next(work.glob("runsc_*.deb"))), str(work / "tree")])
        os.rename(work / "tree", base / NEWER.parts[0])


# ---- what the Makefile calls ----


def make_user() -> None:
    """An ordinary user without login, whose home lies where only root can rename it."""
    try:
        pwd.getpwnam(USER)
    except KeyError:
        say(f"useradd {USER}")
        quiet(["useradd", "--create-home", "--user-group", "--shell", "/usr/sbin/nologin", USER])
    for kind in ("uid", "gid"):
        if not any(line.startswith(f"{USER}:") for line in Path(f"/etc/sub{kind}").read_text().splitlines()):
            quiet(["usermod", f"--add-sub{kind}s", SUBORDINATE, USER])


def for_run() -> None:
    """What `make run` needs."""
    if not any(place.exists() for place in RUNSC_PLACES):
        install(["runsc"])


def for_tests() -> None:
    """What `make test` needs."""
    if absent := missing(PACKAGES):
        install(absent)
    base = test_base()
    base.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two checkouts may be tested at once
        fetch_newer(base)
        releases.make(base)
        if os.geteuid() == 0:
            make_user()


def main(arguments: Sequence[str]) -> int:
    if list(arguments) not in (["run"], ["test"]):
        print(__doc__, file=sys.stderr)
        return 2
    os.umask(0o022)
    try:
        for_run() if arguments[0] == "run" else for_tests()
    except (Problem, OSError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
