"""What is kept is tampered with: it never runs, whatever was done to it and when."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.errors import BadArgument, BadCache, KeptChanged, PinMismatch
from nucleus_gvisor.runtime import kept
from nucleus_gvisor.runtime.options import Confinement, Enforcement, StageMethod
from nucleus_gvisor.runtime.steps import confine, stage
from tests.conformance.world import STRANGER
from tests.hostile.bench import Bench, before_call, owned
from tests.hostile.test_weaknesses import digest, mounted
from tests.support.pins import pin_of

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")


@pytest.fixture(autouse=True)
def cache(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, which is used whoever owns runsc."""
    monkeypatch.setenv("NUCLEUS_GVISOR_CACHE", os.fspath(base / "cache"))
    monkeypatch.setattr(kept, "_of_root", lambda *_: None)
    monkeypatch.setattr(kept, "_are_roots", lambda *_: False)
    return base / "cache"


def file_of(cache: Path, name: str = "runsc") -> Path:
    """A file of the only set that is kept."""
    [folder] = (cache / "sets").iterdir()
    return folder / name


def forged(bench: Bench) -> bytes:
    """A program that would tell whose it is."""
    return bench.install(bench.base / "forged", brand="forged").read_bytes()


def rewritten(bench: Bench, path: Path) -> None:
    path.chmod(0o755)
    path.write_bytes(forged(bench))
    path.chmod(0o555)


def swapped(bench: Bench, path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(forged(bench))
    new.chmod(0o555)
    new.rename(path)


def swapped_set(bench: Bench, path: Path) -> None:
    """Another release's set, whole, under this one's name."""
    folder = path.parent if path.name == "runsc" else path.parents[1]
    new = folder.with_name("new")
    new.mkdir()
    (new / "gvisor-bin").mkdir()
    for name in ("runsc", "gvisor-bin/helper"):
        (new / name).write_bytes(forged(bench))
        (new / name).chmod(0o555)
    folder.rename(bench.base / "old")
    new.rename(folder)


WAYS: dict[str, Callable[[Bench, Path], Any]] = {
    "bytes": rewritten,
    "swap": swapped,
    "another set": swapped_set,
    "mode": lambda _, path: path.chmod(0o777),
    "link": lambda _, path: os.link(path, path.with_name("another")),
    **({"owner": lambda _, path: owned(path, STRANGER)} if os.geteuid() == 0 else {}),
}


def with_side(bench: Bench) -> str:
    """Put a side binary beside runsc; the name of it in the set."""
    bench.install(bench.runsc.parent / "gvisor-bin/helper", brand="side")
    return "gvisor-bin/helper"


@pytest.mark.parametrize("side", [False, True], ids=["runsc", "side"])
@pytest.mark.parametrize("how", WAYS)
def test_a_change_before_a_launch(bench: Bench, cache: Path, how: str, side: bool) -> None:
    """It is made anew from what was judged, which runs; and the record says so."""
    name = with_side(bench) if side else "runsc"
    bench.launch(brand="genuine")
    WAYS[how](bench, file_of(cache, name))
    bench.witness.reports()
    with bench.spawn(id="next") as process:
        assert process.wait() == 0
        assert process.record.evidence("StageKept")["kept"] == "replaced"
    assert {report["brand"].rstrip(".") for report in bench.witness.reports()} == {"genuine"}


@pytest.mark.parametrize("side", [False, True], ids=["runsc", "side"])
@pytest.mark.parametrize("how", WAYS)
def test_a_change_between_the_comparison_and_the_bind(
    bench: Bench, cache: Path, monkeypatch: pytest.MonkeyPatch, how: str, side: bool
) -> None:
    """The child compares what it binds: nothing is executed, the launch is refused, and the next one runs."""
    name = with_side(bench) if side else "runsc"
    bench.launch(brand="genuine")
    before_call(monkeypatch, confine, "start", lambda: WAYS[how](bench, file_of(cache, name)))
    error = bench.refuse(KeptChanged)
    assert error.cause == "kept_changed" and str(cache) in str(error)
    bench.launch(brand="genuine")


def test_a_pin_is_of_the_bytes(bench: Bench, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the manifest lies about the digests, whoever wrote it, a pin finds the bytes out; and it is of the set."""
    with_side(bench)
    pin = pin_of(bench.runsc)
    bench.launch(pin=pin)
    error = bench.refuse(PinMismatch, pin=digest(bench.runsc))
    assert "gvisor-bin/helper" in str(error.observed)
    monkeypatch.setattr(kept, "_hashes", {})
    monkeypatch.setattr(stage, "sha256", lambda *_: "0" * 64)
    bench.refuse(PinMismatch, pin=pin)


@needs_root
@pytest.mark.parametrize("side", [False, True], ids=["runsc", "side"])
def test_a_full_disk_keeps_nothing(bench: Bench, cache: Path, side: bool) -> None:
    """The launch goes on from memory, and its record says why."""
    if side:
        with_side(bench)
    with mounted(cache, "size=64k"), bench.spawn() as process:
        assert process.wait() == 0
        told = process.record.evidence("StageSet" if side else "StageSealed")
        assert told["kept"] == "none" and "No space" in str(told["not_kept"])


def test_a_cache_of_others(bench: Bench, cache: Path) -> None:
    """It is refused where it was asked for, and not used where it was not."""
    bench.launch()
    cache.chmod(0o777)
    bench.refuse(BadCache, stage=StageMethod.KEPT)
    with bench.spawn() as process:
        assert process.wait() == 0
        assert "others can change" in str(process.record.evidence("StageSealed")["not_kept"])


def test_weaker_launches_do_not_use_it(bench: Bench, cache: Path) -> None:
    """Whose supervisor could write the cache executes nothing from it; a set is copied for such a launch."""
    with_side(bench)
    bench.launch()
    before = sorted((path, path.stat().st_mtime_ns) for path in cache.rglob("*"))
    for how in (Enforcement.OFF, Enforcement.BEST_EFFORT):
        report = bench.launch(enforcement=how)
        assert str(cache) not in report["exe"]
        bench.refuse(BadArgument, stage=StageMethod.KEPT, enforcement=how)
    bench.refuse(BadArgument, stage=StageMethod.KEPT, confinement=Confinement.LANDLOCK)
    assert sorted((path, path.stat().st_mtime_ns) for path in cache.rglob("*")) == before
