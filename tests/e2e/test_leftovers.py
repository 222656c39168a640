"""Many launches, many of which fail or are killed, leave nothing but their records."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.errors import LaunchError
from nucleus_gvisor.model.record import parse_all
from nucleus_gvisor.model.replay import fold
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle, Platform
from nucleus_gvisor.runtime.options import Confinement, Enforcement, Program
from tests.e2e import launching
from tests.e2e.launching import READY, Caller, digest
from tests.support import places
from tests.support.modes import Mode

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]
SHELL = "/bin/sh"
AT_ONCE = 4
KEPT = ["locks", "records"]

EXEC_REFUSED = """
import sys
from nucleus_gvisor.model.errors import LaunchError
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle
from nucleus_gvisor.runtime.options import Program
options = GVisorOciRunOptions(program=Program.PLAIN)
try:
    GVisorRuntime.with_path(sys.argv[1], pin=sys.argv[2] or None).spawn(sys.argv[3], OciBundle.build(["x"]), options)
except LaunchError as error:
    print(type(error).__name__, error.errno)
    sys.exit(125)
"""
DENIED = 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"'


class Campaign:
    """So many launches of all kinds in one mode and one base: a quarter and more fail, some by a killed launcher."""

    def __init__(self, count: int, mode: Mode, old: Path, new: Path, without_loader: Path) -> None:
        self.count, self.killed = count, count // 13
        self.mode = mode
        self.old, self.new = Caller(mode, old), Caller(mode, new)
        self.without_loader = Caller(mode, without_loader)
        self.chance = random.Random(20240729)
        self.codes: Counter[str] = Counter()
        self.wrong: list[tuple[str, object]] = []
        self.failures: dict[str, Callable[[str], tuple[int, int]]] = {
            "bad id": lambda _: self.cli(125, "--id", "../id"),
            "no runsc": lambda name: self.cli(125, "--id", name, "--runsc", "/no/runsc"),
            "open base": lambda name: self.cli(125, "--id", name, "--artifact-base", "/tmp"),
            "busy": lambda _: self.cli(125, "--id", "occupied"),
            "no bundle": lambda name: self.cli(125, "--id", name, "--mount", "/no/thing:/here"),
            "other bytes": lambda name: self.cli(125, "--id", name, "--pin", "0" * 64),
            "unfit": lambda name: self.cli(125, "--id", name, "--runsc", "/usr/bin/true", "--pin", self.of_true),
            "platform": lambda name: self.cli(125, "--id", name, "--runsc", old, "--platform", "systrap"),
            "no namespaces": self.denied,
            "execve": self.refused,
            "killed guest": lambda name: self.cli(137, "--id", name, command=[SHELL, "-c", "kill -9 $$"]),
            "timeout": lambda name: self.cli(124, "--id", name, "--timeout", "0.1", command=["sleep", "60"]),
        }
        self.failing = max(count // 4 - self.killed, len(self.failures))
        self.good = count - self.killed - self.failing

    @property
    def of_true(self) -> str:
        return digest(Path("/usr/bin/true").resolve())

    def cli(self, expected: int, *flags: object, command: list[str] | None = None) -> tuple[int, int]:
        done = self.new.run(*map(str, flags), command=command or ["true"])
        return expected, done.returncode

    def denied(self, name: str) -> tuple[int, int]:
        words = [self.mode.python, *self.new.arguments("--id", name, "--pin", digest(self.new.runsc), command=["true"])]
        done = self.mode.run(["unshare", "--user", "--map-root-user", SHELL, "-c", DENIED, SHELL, *words])
        return 125, done.returncode

    def refused(self, name: str) -> tuple[int, int]:
        done = self.without_loader.script(EXEC_REFUSED, name)
        return (125 if done.stdout == "ExecFailed 2\n" else 0), done.returncode

    def succeed(self, name: str, release: Caller) -> tuple[int, int]:
        return 0, release.run("--id", name, command=["true"]).returncode

    def kill(self, name: str, after: float) -> tuple[int, int]:
        """SIGKILL of the launcher at some moment, from its first steps to a guest that runs."""
        process = self.new.popen("--id", name, command=["sleep", "600"])
        time.sleep(after)
        process.kill()
        process.communicate(timeout=60)
        return -signal.SIGKILL, process.returncode

    def launch(self, number: int, kind: str) -> None:
        name = f"launch-{number}"
        if kind == "killed launcher":
            expected, code = self.kill(name, self.chance.random() * 0.6)
        elif kind == "good":
            expected, code = self.succeed(name, self.old if number % 2 else self.new)
        else:
            expected, code = self.failures[kind](name)
        self.codes[kind] += 1
        if code != expected:
            self.wrong.append((f"{kind} {number}", code))

    def plan(self) -> list[str]:
        kinds = ["killed launcher"] * self.killed
        names = list(self.failures)
        kinds += [names[number % len(names)] for number in range(self.failing)]
        kinds += ["good"] * self.good
        self.chance.shuffle(kinds)
        return kinds


def traces(base: Path) -> dict[str, object]:
    """What a launch could leave on the machine, as far as it can be told from what others do there."""
    scattered = [
        path for folder in ("/tmp", "/var/tmp", "/dev/shm") for path in Path(folder).iterdir() if "runsc" in path.name
    ]
    return {"mounts": places.mounts_below(base), "scattered": sorted(scattered)}


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.campaign)])
@pytest.mark.root_first
def test_many_launches(count: int, mode: Mode, runsc_old: Path, runsc_new: Path, without_loader: Path) -> None:
    """Some fail at different steps or are killed; the next launch finds and leaves records alone."""
    campaign = Campaign(count, mode, runsc_old, runsc_new, without_loader)
    before = traces(mode.base)
    occupied = campaign.new.popen("--id", "occupied", command=[SHELL, "-c", f"echo {READY}; exec sleep 900"])
    with launching.started(occupied):
        plan = campaign.plan()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(campaign.launch, range(len(plan)), plan))
        assert campaign.wrong == []
        assert campaign.codes.total() == count and campaign.codes["good"] == campaign.good >= count // 2
        running = launching.descendants(os.getpid())
        assert set(running) <= {occupied.pid, *launching.descendants(occupied.pid)}, running
    # The launcher of `occupied` was killed as well; now nothing runs, and a launch collects what is left.
    assert launching.gone(launching.descendants(os.getpid())) == {}
    left = set(os.listdir(mode.base)) - set(KEPT)
    assert len(left) <= campaign.killed + 1
    assert campaign.succeed("last", campaign.new) == (0, 0)
    assert sorted(os.listdir(mode.base)) == KEPT
    assert os.listdir(mode.base / "locks") == []
    assert traces(mode.base) == before
    texts = [path.read_bytes() for path in (mode.base / "records").glob("*.ndjson")]
    assert texts.count(b"") <= campaign.killed  # of launchers that were killed before their first line
    ends = Counter(str(fold(parse_all(text)).state) for text in texts if text)
    assert ends["Exec'd"] >= campaign.good + 1
    assert ends["Failed"] >= campaign.failing // 4 and set(ends) <= {*launching.STATES, "Failed"}


def failures(runsc: Path, without_loader: Path, probe: Path) -> list[tuple[Path, OciBundle, dict[str, Any]]]:
    """Launches that fail in this process, as (runsc, bundle, options)."""
    good = OciBundle.build(["true"])
    return [
        (Path("/no/runsc"), good, {}),
        (runsc, good, {"artifact_base": Path("/tmp")}),
        (runsc, OciBundle.build(["true"], mounts=["/no/thing:/here"]), {}),
        (runsc, good, {"pin": "0" * 64}),
        (Path("/usr/bin/true"), good, {}),
        (runsc, good, {"confinement": Confinement.LANDLOCK}),
        (without_loader, good, {"program": Program.PLAIN}),
        (without_loader, good, {"program": Program.PLAIN, "enforcement": Enforcement.OFF}),
        (probe, good, {"platform": Platform.PTRACE, "pin": "1" * 64}),
    ]


def test_long_lived_launcher(base: Path, runsc_new: Path, without_loader: Path, probe: Path) -> None:
    """A process that launches again and again keeps its sealed copies, and no other descriptor, child or file."""
    own: dict[str, Any] = {"platform": Platform.AUTO, "artifact_base": base}
    wrong = failures(runsc_new, without_loader, probe)

    def rounds(count: int) -> None:
        for number in range(count):
            program, bundle, more = wrong[number % len(wrong)]
            with pytest.raises(LaunchError):
                GVisorRuntime.with_path(program).spawn("job", bundle, GVisorOciRunOptions(**{**own, **more}))
            good = GVisorRuntime.with_path(runsc_new).spawn(
                "job", OciBundle.build(["true"]), GVisorOciRunOptions(**own)
            )
            with good:
                assert good.wait(60) == 0 and good.problems == ()

    rounds(len(wrong))
    before, mounts = sorted(os.listdir("/proc/self/fd")), places.mounts_below(base)
    rounds(3 * len(wrong))
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert launching.descendants(os.getpid()) == {}
    assert (places.mounts_below(base), sorted(os.listdir(base))) == (mounts, KEPT)
    assert os.listdir(base / "locks") == []


@pytest.mark.parametrize("after", [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6])
def test_killed_launcher_is_collected(newer: Caller, after: float) -> None:
    """Whenever the launcher is killed, nothing runs on, and the next launch of that id works and takes all away."""
    process = newer.popen("--id", "job", command=["sleep", "600"])
    time.sleep(after)
    below = launching.descendants(process.pid)
    process.kill()
    process.communicate(timeout=60)
    assert launching.gone(below) == {}
    done = newer.run("--id", "job", command=[SHELL, "-c", "exit 3"])
    assert done.returncode == 3, done.stderr
    assert sorted(os.listdir(newer.mode.base)) == KEPT and os.listdir(newer.mode.base / "locks") == []
    shutil.rmtree(newer.mode.base / "records")
