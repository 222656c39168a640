"""What the hostile tests work with: a probe in runsc's place, a witness of all that it does, and a launch to spoil.

A test is about a weakness of the reference; `gvisor.rs:NNN` in it is where that lies.
"""

import json
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nucleus_gvisor.model.errors import LaunchError
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle, Platform, SandboxProcess, answers
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.steps import stage
from tests.hostile.witness import Report as Report
from tests.hostile.witness import Witness as Witness
from tests.hostile.witness import is_run as is_run
from tests.setup.provision import test_base
from tests.support.modes import NAMESPACE_MODE, Mode
from tests.support.pins import pin_of

PROBES = Path(__file__).with_name("probes")
DRIVER = Path(__file__).with_name("driver.py").read_text()
BRAND = b"brand:genuine"
SIX = {"PATH", "TMPDIR", "XDG_RUNTIME_DIR", "HOME", "USER", "LOGNAME"}
"""The variables that runsc gets."""
STRANGER = 4242
"""A uid and gid that are nobody's here."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives files to other users, or mounts")

E = TypeVar("E", bound=LaunchError)


def compiled(name: str, into: Path, *options: str) -> Path:
    """A static program from `probes/NAME.c`."""
    program = into / name
    flags = ["-static", "-O1", "-Wall", "-Wextra", "-Werror", *options]
    subprocess.run(["gcc", *flags, "-o", program, PROBES / f"{name}.c"], check=True)
    return program


def runs(reports: Sequence[Report]) -> list[Report]:
    return [report for report in reports if is_run(report)]


def asked(reports: Sequence[Report]) -> list[str]:
    """What was asked of the binary, in other executions than as a sandbox: "create" is the trial of one."""
    words = ("--version", "flags", "create")
    return sorted(next(word for word in report["argv"] if word in words) for report in reports if not is_run(report))


def status(report: Report, field: str) -> str:
    """A field of the execution's /proc/self/status."""
    [line] = [line for line in report["status"].splitlines() if line.startswith(f"{field}:")]
    return str(line.partition(":")[2].strip())


def opened(report: Report) -> dict[str, str]:
    """The descriptors of an execution, but for those of runsc's own logs: one each, in memory, which an argument names.

    Whatever else is open is in the answer, a log's descriptor that is not named, or named twice, among it.
    """
    found = dict(report["descriptors"])
    argv = report["argv"]
    for flag, memory in (("--log", "log"), ("--panic-log", "panic")):
        for named in [argv[at + 1].removeprefix("/proc/self/fd/") for at, word in enumerate(argv) if word == flag]:
            assert found.pop(named, None) == f"/memfd:{memory} (deleted)", (argv, report["descriptors"])
    return found


def variables(report: Report) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in report["environ"])


# ---- what may be left ----


def files(base: Path) -> list[str]:
    """All below an artifact base but records, and the empty directory of locks, which are there to stay."""
    found = []
    for folder, names, plain in os.walk(os.fsencode(base)):
        found += [os.path.relpath(os.path.join(folder, name), os.fsencode(base)) for name in [*names, *plain]]
    return sorted(repr(name) for name in found if name != b"locks" and name.split(b"/")[0] != b"records")


def _mounts(base: Path) -> list[str]:
    # Other tests, in other processes, mount things below their own directories.
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    others = (str(test_base()), "/nucleus-gvisor-tests/", " /run/netns")
    return [line for line in lines if str(base) in line or not any(other in line for other in others)]


def _descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the listing's own
    return found


def children() -> list[str]:
    """Child processes, dead ones that nobody waited for included."""
    tasks = list(Path("/proc/self/task").iterdir())
    return [pid for task in tasks for pid in (task / "children").read_text().split()]


def traces(base: Path) -> dict[str, object]:
    """What a launch could leave behind in the world and in this process."""
    stage.forget()
    mask = os.umask(0)
    os.umask(mask)
    return {
        "files": files(base),
        "mounts": _mounts(base),
        "descriptors": _descriptors(),
        "children": children(),
        "cwd": os.getcwd(),
        "umask": mask,
        "namespaces": [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "user")],
        "no_new_privs": "NoNewPrivs:\t1" in Path("/proc/self/status").read_text(),
    }


@contextmanager
def nothing_left(base: Path) -> Iterator[None]:
    """What the block does leaves no trace below `base`, nor in this process."""
    before = traces(base)
    yield
    after = traces(base)
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, f"before and after: {changed}"


@contextmanager
def threaded() -> Iterator[None]:
    """A second thread: launches start a fresh interpreter instead of forking."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


# ---- the bench ----


class Bench:
    """A private directory with a probe in runsc's place, and launches from it."""

    def __init__(self, base: Path, probe: Path, witness: Witness, mode: Mode | None = None) -> None:
        self.base, self.probe, self.witness, self.mode = base, probe, witness, mode
        self.artifacts = base / "artifacts"
        self.runsc = self.install()

    def install(self, path: Path | None = None, *, brand: str = "genuine", mode: int = 0o755) -> Path:
        """A copy of the probe at `path`, with directories of mode 0755 above it."""
        path = path or self.base / "bin/runsc"
        for folder in reversed(path.parents):
            if not folder.exists():
                folder.mkdir()
                folder.chmod(0o755)
        path.write_bytes(self.branded(brand))
        path.chmod(mode)
        return path

    def branded(self, brand: str) -> bytes:
        text = self.probe.read_bytes()
        assert text.count(BRAND) == 1 and len(brand) <= 15
        return text.replace(BRAND + b".........", f"brand:{brand}".encode().ljust(22, b"."))

    def options(self, **more: Any) -> GVisorOciRunOptions:
        return GVisorOciRunOptions(**{"platform": Platform.AUTO, "artifact_base": self.artifacts, **more})

    def spawn(
        self,
        path: str | bytes | Path | None = None,
        *,
        id: str = "job",
        bundle: OciBundle | str | Path | None = None,
        stdin: int | None = None,
        **options: Any,
    ) -> SandboxProcess:
        runtime = GVisorRuntime.with_path(path or self.runsc)
        return runtime.spawn(id, bundle or OciBundle.build(["true"]), self.options(**options), stdin=stdin)

    def launch(self, path: str | bytes | Path | None = None, *, brand: str = "genuine", **how: Any) -> Report:
        """Launch to the end: it leaves nothing, and one sandbox ran, of this brand."""
        self.witness.reports()
        with nothing_left(self.artifacts):
            assert self.spawn(path, **how).wait() == 0
        [report] = runs(self.witness.reports())
        assert report["brand"].rstrip(".") == brand
        return report

    def refuse(
        self, error: type[E], path: str | bytes | Path | None = None, *, executed: bool = False, **how: Any
    ) -> E:
        """The error with which a launch is refused: exactly of this class. Nothing is left.

        Nothing was executed either, unless the probe may have been `executed` to ask it what it is; and never as a
        sandbox.
        """
        self.witness.reports()
        with nothing_left(self.artifacts):
            with pytest.raises(LaunchError) as caught:
                self.spawn(path, **how).wait()
            refused = caught.value
            assert type(refused) is error, repr(refused)
        reports = self.witness.reports()
        assert not (runs(reports) if executed else reports), reports
        return refused

    # ---- in a process of its own ----

    def command(self, **how: Any) -> list[str]:
        """The driver's command line: one launch as `how` says, see driver.py; `driver` is the source of another."""
        driver = how.pop("driver", DRIVER)
        options = {"platform": "auto", **how.pop("options", {})}
        given = {
            "artifacts": str(self.artifacts), "before": "", "bundle": None, "id": "job", "in_place": False,
            "options": options, "runsc": str(self.runsc), "threads": False, "witness": self.witness.port, **how,
        }  # fmt: skip
        assert self.mode is not None
        # Where root's files have no owner that could be told from anyone's.
        if self.mode.name == NAMESPACE_MODE and "pin" not in options:
            options["pin"] = pin_of(self.runsc)
        return [self.mode.python, "-c", driver, json.dumps(given)]

    def drive(self, *, prefix: Sequence[str | Path] = (), popen: Mapping[str, Any] | None = None, **how: Any) -> Report:
        """How a launch in a process of its own ended: the driver's report, with those of the probe as `reports`."""
        assert self.mode is not None
        self.witness.reports()
        done = self.mode.run([*prefix, *self.command(**how)], **(popen or {}))
        reports = self.witness.reports()
        driver: Report = next((report for report in reports if "driver" in report), {"driver": None})
        driver |= {"reports": [report for report in reports if "driver" not in report], "done": done}
        if driver["driver"] is None and not how.get("in_place"):
            pytest.fail(f"the driver said nothing: {done}")
        return driver

    def drive_run(self, **how: Any) -> Report:
        """The sandbox's report of a launch in a process of its own, which succeeds."""
        driven = self.drive(**how)
        assert how.get("in_place") or driven["driver"].get("code") == 0, driven["driver"]
        [report] = runs(driven["reports"])
        return report


def owned(path: Path, uid: int, gid: int | None = None, *, mode: int | None = None) -> Path:
    """Give `path` to another user; its mode again afterwards, which chown(2) takes set-id bits from."""
    bits = stat.S_IMODE(path.lstat().st_mode)
    os.chown(path, uid, uid if gid is None else gid, follow_symlinks=False)
    if not path.is_symlink():
        path.chmod(bits if mode is None else mode)
    return path


def put(path: Path, source: Path) -> None:
    """Have `path` lead to the file `source` from one instant to the next."""
    aside = path.with_name(f"{path.name}.aside")
    os.link(source, aside)
    aside.rename(path)


def before_call(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, act: Callable[[], object]) -> None:
    """Do `act` once, right before the launch calls `module.name`: a race that is always won."""
    original = getattr(module, name)
    pending = [act]

    def acting(*args: Any, **kwargs: Any) -> Any:
        while pending:
            pending.pop()()
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, acting)


def forget_answers() -> None:
    """Have the next launch ask the binary again what it is."""
    answers.forget(Identity.current())
