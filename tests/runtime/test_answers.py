"""What binaries answered: believed where told alike, by bytes, caller and boot, and where nobody could forge it."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import _child, answers, kept
from nucleus_gvisor.runtime.answers import Question, Told
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.version import VERSION
from tests.runtime.conftest import nothing_left_open

QUESTION = Question("runsc=1", 2, "mount-locked", False, os.geteuid())
TOLD = Told("all", ((0, b"runsc version \xff"), (0, b"flags"), (9, _child.AS_CALLER)))


@pytest.fixture(autouse=True)
def cache(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own; this process knows nothing, and nothing stays open."""
    monkeypatch.setenv("NUCLEUS_GVISOR_CACHE", os.fspath(base / "cache"))
    monkeypatch.setattr(answers, "_known", {})
    with nothing_left_open():
        yield base / "cache"


def recalled(question: Question = QUESTION) -> Told | None:
    """What another process of the caller's would know."""
    answers.forget()
    return answers.recall(question, Identity.current())


def test_another_process_knows_it(cache: Path) -> None:
    """To the byte; only where it may look on disk, and only what was asked alike."""
    answers.remember(QUESTION, TOLD, Identity.current())
    assert recalled() == TOLD
    answers.forget()
    assert answers.recall(QUESTION, None) is None
    for other in (
        Question("runsc=2", QUESTION.questions, QUESTION.confinement, QUESTION.ranges, QUESTION.uid),
        Question(QUESTION.image, QUESTION.questions, None, QUESTION.ranges, QUESTION.uid),
        Question(QUESTION.image, QUESTION.questions, QUESTION.confinement, True, QUESTION.uid),
        Question(QUESTION.image, QUESTION.questions, QUESTION.confinement, QUESTION.ranges, QUESTION.uid + 1),
    ):
        assert recalled(other) is None
    answers.forget(Identity.current())
    assert recalled() is None and list((cache / "answers").iterdir()) == []


def test_of_another_kernel_it_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor of another boot, another version of ours, or a caller who may do other things."""
    answers.remember(QUESTION, TOLD, Identity.current())
    real = answers.surroundings()
    for part in (os.uname().release, Path("/proc/sys/kernel/random/boot_id").read_text().strip(), VERSION):
        assert part.encode() in real
    for field in (b"\0Uid:\t", b"\0CapEff:\t", b"\0NoNewPrivs:\t", b"\0Seccomp:\t"):
        assert field in real
    monkeypatch.setattr(answers, "surroundings", lambda: real + b"!")
    assert recalled() is None


@pytest.mark.parametrize(
    "said",
    [b"", b"timed out", _child.AS_ANOTHER, b"starting sandbox: fork/exec /proc/self/exe: no space left on device"],
)
def test_what_weakens_a_launch_is_tried_again(said: bytes) -> None:
    """Or may: what did not show a sandbox of the caller's is known to this process alone, and not read from disk."""
    weak = Told("one", (*TOLD.answers[:2], (9, said)))
    answers.remember(QUESTION, weak, Identity.current())
    assert answers.recall(QUESTION, Identity.current()) == weak
    assert recalled() is None


def forged(cache: Path, text: str) -> None:
    [file] = (cache / "answers").iterdir()
    file.write_text(text)


def weak() -> str:
    said = [[0, "runsc version 1"], [0, ""], [9, _child.AS_ANOTHER.decode()]]
    return json.dumps({"where": answers._where(), "told": {"ids": "one", "answers": said}})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda cache: forged(cache, ""),
        lambda cache: forged(cache, "[]"),
        lambda cache: forged(cache, json.dumps({"where": answers._where()})),
        lambda cache: forged(cache, json.dumps({"where": answers._where(), "told": {"ids": 1, "answers": [[1]]}})),
        lambda cache: forged(cache, "[" * 5000),
        lambda cache: forged(cache, weak()),
        lambda cache: (cache / "answers").chmod(0o777),
        lambda cache: cache.chmod(0o777),
        lambda cache: (cache / "answers").rename(cache / "aside") and (cache / "answers").symlink_to("aside"),
    ],
)
def test_what_is_not_ours_is_not_believed(cache: Path, spoil: Callable[[Path], object]) -> None:
    """Neither what we would not write, nor what others could have."""
    answers.remember(QUESTION, TOLD, Identity.current())
    spoil(cache)
    assert recalled() is None
    if (cache.stat().st_mode | (cache / "answers").stat().st_mode) & 0o022 == 0 and not (
        cache / "answers"
    ).is_symlink():
        answers.remember(QUESTION, TOLD, Identity.current())
        assert recalled() == TOLD


def test_old_ones_go(cache: Path) -> None:
    """A cache does not grow with what was asked once."""
    for number in range(2):
        answers.remember(Question(str(number), 2, None, False, 0), TOLD, Identity.current())
    old = next((cache / "answers").iterdir())
    os.utime(old, (old.stat().st_mtime - 2 * kept.ANSWERS_STAY,) * 2)
    kept.collect(Identity.current())
    assert len(list((cache / "answers").iterdir())) == 1


def test_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch goes on; the next process asks again."""
    monkeypatch.setenv("NUCLEUS_GVISOR_CACHE", "/proc/none")
    answers.remember(QUESTION, TOLD, Identity.current())
    assert answers.recall(QUESTION, None) == TOLD and recalled() is None
