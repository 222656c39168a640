"""Two signals, at pairs of neighbouring calls of an ending; the sweep has all of them (`--pairs`)."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import subreaper  # noqa: F401
from tests.hostile.sweep import pairs
from tests.hostile.sweep.pairs import Ended, Mark

pytestmark = pytest.mark.slow
KINDS = tuple(pairs.kinds(Path(), Path()))


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.real
def test_an_ending_comes_to_its_end(runsc_new: Path, base: Path, name: str, step: int) -> None:
    """Nothing hangs, and nothing is left."""
    work, always = pairs.kinds(runsc_new, base)[name]
    struck = list(pairs.pairs(work, base, always, step))
    assert len(struck) > 1 and struck[0][1].sent == 2 + len(always)
    assert {at: found for at, ended in struck if (found := pairs.problems(name, ended))} == {}


# ---- the harness itself ----

LOCK = threading.Lock()


def busy(mark: Mark, handler: Callable[[], object], held: bool = False) -> str:
    signal.signal(signal.SIGTERM, lambda *_: handler())
    mark()
    for _ in range(3):
        if held:
            with LOCK:
                os.getppid()
        os.getppid()
    return ""


def waits() -> None:
    with LOCK:
        os.getppid()


def struck(work: pairs.Work, base: Path, *at: int) -> Ended:
    return pairs.end(work, base, signal.SIGTERM, at, seconds=3)


def test_a_handler_that_waits_is_found(base: Path) -> None:
    """For a lock that what it has interrupted holds; and for one that it holds itself, which takes two signals."""
    assert struck(lambda mark: busy(mark, waits, held=True), base, 1).code is None
    once = struck(lambda mark: busy(mark, waits), base, 1)
    assert (once.sent, once.code, once.left) == (1, 0, [])
    assert struck(lambda mark: busy(mark, waits), base, 1, 2).code is None


def test_what_is_left_is_found(base: Path) -> None:
    """A directory, and a code of another kind."""

    def leaves(mark: Mark) -> int:
        os.makedirs(base / "locks" / "x")
        mark()
        return os.getppid()

    ended = struck(leaves, base, 1)
    assert ended.left == [f"{base}/locks/x"] and ended.code == -signal.SIGTERM
    assert pairs.problems(KINDS[0], ended) == [f"left {base}/locks/x"]
    assert pairs.problems(KINDS[0], Ended(code=3, said="why")) == ["it ends with 3: 'why'"]
    assert pairs.problems(KINDS[0], Ended()) == ["it hangs"]
