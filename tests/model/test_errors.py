"""Errors: their text is one line that no terminal obeys, and their fields survive."""

import inspect
import json
import os
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nucleus_gvisor.model.errors import GuardRefused, LaunchError, StepFailed, shown
from tests.model.launches import all_errors, made

any_text = st.text(st.characters(), max_size=40)
hostile = st.lists(
    st.sampled_from(
        [
            "\x1b[2J",
            "\x1b]0;title\x07",
            "\r",
            "\n",
            "\t",
            "\0",
            "\x7f",
            "\x85",
            "\u2028",
            "\u202e",
            "\ud800",
            "\udcff",
            "a",
            "é",
        ]
    ),
    max_size=6,
).map("".join)
texts = any_text | hostile
paths = st.none() | st.binary(max_size=30) | st.binary(max_size=30).map(os.fsdecode)
values = (
    st.none()
    | texts
    | st.binary(max_size=20)
    | st.integers()
    | st.lists(texts, max_size=2)
    | st.dictionaries(texts, texts, max_size=2)
)


def harmless(text: str) -> bool:
    """One line, without anything that a terminal, a log or a reader's eye takes for more than text."""
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


@given(message=texts, path=paths, observed=values, expected=values, hint=texts)
def test_text_is_one_harmless_line(
    message: str, path: str | bytes | None, observed: object, expected: object, hint: str
) -> None:
    """Whatever the world put into an error's fields, its text is one line without control characters."""
    error = LaunchError(message, step="Resolve", path=path, observed=observed, expected=expected, hint=hint)
    assert harmless(str(error))
    assert json.loads(json.dumps(error.as_dict()))["step"] == "Resolve"


@given(action=texts, state=texts, guard=texts, observed=values)
@example(action="\x1b[2J", state="", guard="", observed=None)
def test_refusals_are_one_harmless_line(action: str, state: str, guard: str, observed: object) -> None:
    """An action may come from a record that somebody forged; it cannot write to the reader's terminal."""
    assert harmless(str(GuardRefused(action, state, guard, observed=observed)))


@given(text=texts | st.binary(max_size=40))
def test_shown_is_one_harmless_line(text: object) -> None:
    """Quoting leaves nothing that is not printable."""
    assert harmless(shown(text))


@given(text=st.text(st.characters(categories=["L", "N", "P"]), max_size=600))
def test_shown_leaves_plain_text_alone(text: str) -> None:
    """What can be printed is shown as it is."""
    assert shown(text) == text


@pytest.mark.parametrize("size", [601, 10_000, 100_000])
def test_shown_is_bounded(size: int) -> None:
    """A value of any size is cut, and says how long it was."""
    assert len(shown("\x1b" * size)) < 700 and str(size) in shown("\x1b" * size)


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_explains_itself(kind: type[LaunchError]) -> None:
    """Each class says when it is raised, and is an error of a launch that can be raised and read."""
    assert inspect.cleandoc(kind.__doc__ or "").endswith(".")
    with pytest.raises(LaunchError) as caught:
        raise made(kind)
    data = caught.value.as_dict()
    assert data["error"] == kind.__name__ and data["cause"] == kind.cause
    assert caught.value.record is None


def test_text_has_all_fields_in_order() -> None:
    """Step, message, path, what was there, what should be, what to do."""
    error = StepFailed(
        "system call failed", step="Prepare", path=b"/run/x", observed="mode 0777", expected=0o700, hint="chmod"
    )
    assert str(error) == "Prepare: system call failed: /run/x; observed: mode 0777; expected: 448; hint: chmod"


def test_path_is_not_said_twice() -> None:
    """A message that has the path in it does not get it again."""
    assert str(LaunchError("cannot open /run/x", path="/run/x")).count("/run/x") == 1


def test_path_is_bytes() -> None:
    """A path that is not UTF-8 is kept as it is, and shown so that it can be told from others."""
    error = LaunchError("refused", path=b"/run/\xff")
    assert error.path == b"/run/\xff" == LaunchError("refused", path=os.fsdecode(b"/run/\xff")).path
    assert str(error) != str(LaunchError("refused", path=b"/run/\xfe"))
    assert "\\xff" in str(error.as_dict()["path"]) or "\\udcff" in str(error.as_dict()["path"])


def test_errno_is_that_of_the_call() -> None:
    """The system call's answer lies behind the failure, by number and by name; None where there was no call."""
    with pytest.raises(StepFailed) as caught:
        try:
            os.open("/nonexistent/x", os.O_RDONLY)
        except OSError as error:
            raise StepFailed("system call failed") from error
    assert caught.value.errno == 2 and caught.value.as_dict()["errno"] == "ENOENT"
    assert StepFailed("no call").errno is None and StepFailed("no call").as_dict()["errno"] is None


def test_unknown_errno_is_a_number() -> None:
    """An errno that has no name is still told."""
    error = StepFailed("odd")
    error.__cause__ = OSError(9999, "odd")
    assert error.as_dict()["errno"] == "9999"
