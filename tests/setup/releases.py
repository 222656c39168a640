"""The releases of runsc that Debian does not have, built from gVisor's Go module. Standard library only.

`releases.json` pins each: the module's pseudo-version, the toolchain, and the digest of every file that they make.
`move_pin.py` moves a pin. What is built is kept in the test base, and is built anew when it is not what is pinned.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.setup.problem import Problem, quiet, say

PINS = Path(__file__).with_name("releases.json")
FOLDER = "releases"
"""Below the test base: a directory for each release."""
ONE_FILE, TODAY, ALONE = "20250428", "20260831", "20260831-alone"
"""One file; runsc with its side binaries in `gvisor-bin`; the same runsc without them."""
SENTRY = "gvisor_sentry"
PREWARMER = "gvisor-sentry-prewarmer"
SIDE = "gvisor-bin"
MODULE = "gvisor.dev/gvisor"

# gVisor's own main of this program is not in the branch that `go get` can read.
SENTRY_MAIN = f"""package main

import (
	"{MODULE}/runsc/cli"
	"{MODULE}/runsc/cmd/sentry/sentrycmd"
	"{MODULE}/runsc/cmd/util"
	"{MODULE}/runsc/gvisorbinaries"
	"{MODULE}/runsc/version"

	"github.com/google/subcommands"
)

var _ = version.Version // what the linker is told of the release

func main() {{
	commands := map[util.SubCommand]string{{new(sentrycmd.Boot): "", new(sentrycmd.Umount): ""}}
	var _ subcommands.Command = new(sentrycmd.Boot)
	cli.Run(&gvisorbinaries.GvisorSentry, commands, nil)
}}
"""
# A C program of gVisor's, which executes the rest of its arguments. STRICT wants one to be there.
PREWARMER_MAIN = """package main

import (
	"os"
	"syscall"
)

func main() { panic(syscall.Exec(os.Args[1], os.Args[2:], os.Environ())) }
"""


@dataclass(frozen=True)
class Pin:
    """What one release is built from, and what that makes."""

    version: str
    """What it says of itself: `release-20260831.0`."""
    module: str
    """The pseudo-version of gVisor's Go module."""
    toolchain: str
    sha256: Mapping[str, Mapping[str, str]]
    """For each architecture, as Go names it, the digest of each file by its name below the release's directory."""


def pins() -> dict[str, Pin]:
    """The pinned releases, by the name of their directory."""
    data = json.loads(PINS.read_text())
    return {name: Pin(**one, toolchain=data["toolchain"]) for name, one in data["releases"].items()}


def digests(folder: Path) -> dict[str, str]:
    """The digest of each file below `folder`, by its name there."""
    return {
        os.fspath(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _go() -> str:
    """Go's command, on PATH or where its own archive is unpacked."""
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if found is None:
        raise Problem(
            "there is no Go, and gVisor's releases of 2025 and 2026 are built for the tests with it: unpack Go 1.21 or "
            "newer into /usr/local/go (https://go.dev/doc/install); it fetches the release of Go that is pinned"
        )
    return found


class Toolchain:
    """The Go that a pin names, with nothing of the caller's settings that would change what it makes."""

    def __init__(self, name: str) -> None:
        self._go = _go()
        self._env = {"GOTOOLCHAIN": name, "GOWORK": "off", "GO111MODULE": "on", "GOFLAGS": "-mod=mod -buildvcs=false"}
        self._env |= {"CGO_ENABLED": "0", "GOOS": "linux", "GOAMD64": "v1", "GOARM64": "v8.0"}
        self._env |= {"GOEXPERIMENT": "", "GODEBUG": "", "GOFIPS140": "off"}
        self._env |= {} if "HOME" in os.environ else {"HOME": "/root"}
        said = quiet([self._go, "env", "GOVERSION", "GOHOSTARCH"], env=self._env).split()
        if said[:1] != [name]:
            raise Problem(f"{self._go} is {' '.join(said)}, and no {name} can be had from it: install Go 1.21 or newer")
        self.arch = said[1]
        self._env["GOARCH"] = self.arch

    def __call__(self, *arguments: str, cwd: Path) -> str:
        return quiet([self._go, *arguments], cwd=cwd, env=self._env)


def build(pin: Pin, toolchain: Toolchain, work: Path) -> Path:
    """Build what `pin` names in the empty directory `work`, and answer the directory with the files."""
    source, made = work / "module", work / "made"
    source.mkdir()
    toolchain("mod", "init", "releases", cwd=source)
    toolchain("get", f"{MODULE}/runsc@{pin.module}", cwd=source)
    own = toolchain("list", "-m", "-f", "{{.GoVersion}}", MODULE, cwd=source).strip()
    if tuple(map(int, own.split(".")[:2])) < (1, 25):
        # From then on Go's runtime asks each second which processors it has. The filter of an older sentry knows no
        # such call of its own, and the kernel kills it.
        toolchain("mod", "edit", "-godebug=updatemaxprocs=0", cwd=source)
    flags = ["-trimpath", "-ldflags", f"-s -w -X {MODULE}/runsc/version.version={pin.version}"]

    def one(package: str, name: str) -> None:
        toolchain("build", *flags, "-o", os.fspath(made / name), package, cwd=source)
        (made / name).chmod(0o755)

    one(f"{MODULE}/runsc", "runsc")
    module = toolchain("list", "-m", "-f", "{{.Dir}}", MODULE, cwd=source).strip()
    if Path(module, "runsc/gvisorbinaries").is_dir():
        for name, text in ((SENTRY, SENTRY_MAIN), (PREWARMER, PREWARMER_MAIN)):
            (source / name).mkdir()
            (source / name / "main.go").write_text(text)
            one(f"./{name}", f"{SIDE}/{name}")
    return made


def _pinned(pin: Pin, folder: Path, arch: str) -> bool:
    """Is what lies in `folder` what is pinned; on an architecture without a pin whatever was built there."""
    return digests(folder) == pin.sha256.get(arch, digests(folder) or None)


def _replace(made: Path, folder: Path, work: Path) -> None:
    """Put `made` in the place of `folder`, which exists whole or not at all; `work` takes the one before."""
    if folder.exists():
        os.rename(folder, work / "before")
    folder.parent.mkdir(exist_ok=True)
    os.rename(made, folder)


def absent(base: Path, arch: str) -> Iterator[tuple[str, Pin]]:
    """The pinned releases that are not below `base`, or are there and not as pinned."""
    return ((name, pin) for name, pin in pins().items() if not _pinned(pin, base / FOLDER / name, arch))


def make(base: Path) -> None:
    """Have every release below `base`, whose lock the caller holds: those which are not there are built."""
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    for name, pin in list(absent(base, arch)):
        say(f"building gVisor's {pin.version} into {base / FOLDER / name} (about a minute)")
        with tempfile.TemporaryDirectory(dir=base, prefix="build-") as folder:
            made = build(pin, Toolchain(pin.toolchain), Path(folder))
            if not _pinned(pin, made, arch):
                raise Problem(
                    f"{pin.version} is not what {PINS.name} pins for {arch}: made {json.dumps(digests(made))}, "
                    f"pinned {json.dumps(pin.sha256[arch])}; python3 tests/setup/move_pin.py moves the pin"
                )
            _replace(made, base / FOLDER / name, Path(folder))
    today, alone = base / FOLDER / TODAY, base / FOLDER / ALONE
    if digests(alone) != {"runsc": digests(today)["runsc"]}:
        with tempfile.TemporaryDirectory(dir=base, prefix="build-") as folder:
            made = Path(folder, "alone")
            made.mkdir(mode=0o755)
            shutil.copy(today / "runsc", made / "runsc")
            _replace(made, alone, Path(folder))
