"""The launch's place where it is taken: what is collected on the way, and what a failure leaves."""

import os
from pathlib import Path

import pytest

from nucleus_gvisor.model.errors import Busy
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime import cleanup
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.steps import prepare

ID, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def take(base: Path) -> cleanup.Place:
    linux.Ledger().use()  # each launch has its own
    return prepare.take_place(ID, base, Identity.current())


def test_what_other_dead_launches_left_is_collected(base: Path) -> None:
    """Whoever takes a place clears away after those that cannot any more."""
    base.chmod(0o700)
    (base / "locks").mkdir(mode=0o700)
    (base / "locks" / OTHER).touch(mode=0o600)
    (base / OTHER / "runsc-root").mkdir(parents=True, mode=0o700)
    place = take(base)
    assert sorted(path.name for path in base.iterdir()) == ["locks"]
    assert [path.name for path in (base / "locks").iterdir()] == [ID]
    place.remove()
    place.close()


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, OSError])
def test_a_failure_gives_the_lock_back(base: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong once the lock is ours leaves neither the lock nor its file."""

    def failing(*_: object) -> list[str]:
        assert os.listdir(base / "locks") == [ID]
        raise error

    base.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(cleanup, "collect", failing)
        with pytest.raises(error):
            take(base)
    assert os.listdir(base / "locks") == []
    place = take(base)
    place.remove()
    place.close()
    place.close()  # closes nothing, for the numbers may be someone else's by now


def test_another_s_lock_is_let_alone(base: Path) -> None:
    """A launch that comes second is told so, and takes nothing of the first one's away."""
    base.chmod(0o700)
    place = take(base)
    place.own(os.getpid())
    with pytest.raises(Busy):
        take(base)
    assert os.listdir(base / "locks") == [ID]
    place.remove()
    place.close()
