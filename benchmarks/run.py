"""Measure launches side by side: `make bench`. Medians of one run, and ratios; never a timed assertion.

Each round takes every contender once, in turn, so that a drift of the machine's speed meets all alike. The bare
contender is `runsc run` of the same guest with the same binds, from a bundle on disk, unverified and unconfined.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle

Contender = Callable[[], dict[str, float]]


def timed(function: Callable[[], object]) -> dict[str, float]:
    """Milliseconds that `function` took."""
    began = time.perf_counter()
    function()
    return {"whole": (time.perf_counter() - began) * 1000}


def bare(runsc: Path, platform: str, directory: Path) -> Contender:
    """`runsc run` of `true` in a guest with the same mounts as ours: a tree of ours is one of theirs here too."""
    bundle = OciBundle.build(["true"])
    config = bundle.config
    rootfs = directory / "rootfs"
    rootfs.mkdir(exist_ok=True)
    for place, target in bundle.links.items():
        (rootfs / place.lstrip("/")).symlink_to(target)
    for tree in bundle.trees:
        source = directory / tree.target.lstrip("/")
        source.mkdir()
        options = ["rbind", "ro"]
        mount = {"destination": tree.target, "type": "bind", "source": os.fspath(source), "options": options}
        config["mounts"].insert(0, mount)
    for mount in config["mounts"]:
        (rootfs / str(mount["destination"]).lstrip("/")).mkdir(parents=True, exist_ok=True)
        if "bind" in mount.get("options", ()) or "rbind" in mount.get("options", ()):
            mount["source"] = os.path.realpath(mount["source"])
    config["root"]["path"] = os.fspath(rootfs)
    (directory / "config.json").write_text(json.dumps(config))
    number = iter(range(10_000))

    def run() -> None:
        subprocess.run(
            [runsc, "--root", directory / "root", "--rootless", "--ignore-cgroups", "--network", "none", "--platform",
             platform, "run", "--bundle", directory, f"bench-{os.getpid()}-{next(number)}"],
            check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return lambda: timed(run)


def library(runsc: Path) -> Contender:
    """`GVisorRuntime.spawn` and `wait` in this process."""
    runtime, bundle = GVisorRuntime.with_path(runsc), OciBundle.build(["true"])
    options = GVisorOciRunOptions(platform="auto")  # type: ignore[arg-type]

    def run() -> dict[str, float]:
        began = time.perf_counter()
        process = runtime.spawn("bench", bundle, options)
        spawned = time.perf_counter()
        if process.wait() != 0:
            raise SystemExit("the guest failed")
        ms = {line.action: line.ms for line in process.record.lines}
        before = sum(v for action, v in ms.items() if action != "Exec")
        if process.record.path is not None:
            process.record.path.unlink()
        return {
            **ms,
            "Unresolved..Confined": before,
            "spawn": (spawned - began) * 1000,
            "whole": (time.perf_counter() - began) * 1000,
        }

    return run


def threaded(inner: Contender) -> Contender:
    """The same while the process has a second thread: the child is then a fresh interpreter."""

    def run() -> dict[str, float]:
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        try:
            return inner()
        finally:
            stop.set()
            thread.join()

    return run


def command(runsc: Path) -> Contender:
    """The command line, a cold interpreter and all."""
    argv = [sys.executable, "-m", "nucleus_gvisor.runtime.cli", "run", "--runsc", os.fspath(runsc), "--", "true"]
    return lambda: timed(lambda: subprocess.run(argv, check=True, stdin=subprocess.DEVNULL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runsc", type=Path, default=Path(shutil.which("runsc") or "/usr/bin/runsc"))
    given = parser.parse_args()
    runtime = GVisorRuntime.with_path(given.runsc)
    release = runtime.release()
    scratch = Path(tempfile.mkdtemp(prefix="nucleus-gvisor-bench-"))
    spawn = library(given.runsc)
    contenders: dict[str, Contender] = {
        "bare runsc run": bare(given.runsc, release.default_platform, scratch),
        "library, warm": spawn,
        "library, warm, threads": threaded(spawn),
        "command line": command(given.runsc),
    }
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    try:
        for number in range(given.rounds + 2):
            for name, contender in contenders.items():
                figures = contender()
                if number >= 2:  # the first two rounds warm up
                    measured[name].append(figures)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report(release.version, release.default_platform, given.rounds, measured)


def report(version: str, platform: str, rounds: int, measured: dict[str, list[dict[str, float]]]) -> None:
    """Medians, minima and maxima in milliseconds, and each contender's ratio to the bare one, round by round."""
    print(f"runsc {version} ({platform}), {rounds} rounds, milliseconds: median (min .. max)")
    reference = [figures["whole"] for figures in measured["bare runsc run"]]
    for name, rows in measured.items():
        whole = [figures["whole"] for figures in rows]
        ratio = statistics.median(w / r for w, r in zip(whole, reference, strict=True))
        print(f"{name:24} {shown(whole)}   {ratio:.2f} x bare")
    for name in ("library, warm", "library, warm, threads"):
        print(f"{name}, per step:")
        for step in measured[name][0]:
            print(f"    {step:22} {shown([figures[step] for figures in measured[name]])}")


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):8.2f} ({min(values):.2f} .. {max(values):.2f})"


if __name__ == "__main__":
    main()
