"""Options: what is asked for is judged before anything is touched."""

import re
from dataclasses import FrozenInstanceError, fields
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nucleus_gvisor.model.errors import BadArgument, BadId, BadRequest
from nucleus_gvisor.runtime.options import (
    Confinement,
    Enforcement,
    GVisorOciRunOptions,
    NetworkMode,
    Platform,
    Program,
    StageMethod,
    judge_id,
    judge_pin,
)

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
RUNSC_ID = re.compile(r"^[\w+-\.]+$")
"""runsc's own rule, as it stands in its source: `+-\\.` is a range there, and `$` admits a newline here."""
sound_ids = st.builds(
    lambda first, rest: first + rest, st.sampled_from(LETTERS), st.text(st.sampled_from(LETTERS + "_.+-"), max_size=63)
)


@given(container=sound_ids)
def test_sound_ids_pass_unchanged(container: str) -> None:
    """A letter or digit, then up to 63 of those and `_.+-`: the id itself is returned."""
    assert judge_id(container) == container
    assert not container.startswith("-")


@given(
    container=st.text(max_size=70)
    | st.from_regex(RUNSC_ID)
    | sound_ids.flatmap(
        lambda i: st.tuples(st.integers(0, len(i)), st.characters()).map(lambda p: i[: p[0]] + p[1] + i[p[0] :])
    )
)
@example("a\n")
@example("a٣")
@example("\uff41")
@example("\u017f")
@example("é")
def test_what_passes_is_safe_for_runsc_and_for_paths(container: str) -> None:
    """Any id that passes is ASCII, one path component, no flag, short, and one that runsc takes; others are BadId."""
    try:
        judge_id(container)
    except BadId as error:
        assert "\n" not in str(error) and error.cause == "bad_request"
        assert not (0 < len(container) <= 64 and container[0] in LETTERS and set(container) <= set(LETTERS + "_.+-"))
        return
    assert container.isascii() and container.isprintable() and 1 <= len(container) <= 64
    assert container[0].isalnum() and "/" not in container and container not in (".", "..")
    assert re.fullmatch(r"[\w+.-]+", container, re.ASCII)


@pytest.mark.parametrize(
    "container",
    [
        "",
        ".",
        "..",
        "-",
        "--",
        "--help",
        "-x",
        "+a",
        "_a",
        ".a",
        "a/b",
        "/",
        "a\0",
        "a\n",
        "\na",
        "a b",
        " a",
        "a ",
        "a\t",
        "a\r",
        "é",
        "aé",
        "a٣",
        "٣",
        "²",
        "a\u200b",
        "\uff41",
        "a" * 65,
        "a" * (128 << 10),
        "a\ud800",
        "a\x1b[2J",
        "a:b",
        "a,b",
        "a@b",
    ],
    ids=lambda c: ascii(c)[:20],
)
def test_bad_ids_are_refused(container: str) -> None:
    """The catalogue: flags, path parts, separators, other alphabets' letters and digits, line ends, lengths."""
    with pytest.raises(BadId) as caught:
        judge_id(container)
    assert len(str(caught.value)) < 400 and caught.value.step == "Resolve"


@pytest.mark.parametrize("container", [None, 7, True, b"a", ["a"], ("a",), object()])
def test_an_id_is_text(container: Any) -> None:
    """Nothing but a text is an id."""
    with pytest.raises(BadId):
        judge_id(container)


@given(
    digest=st.binary(min_size=32, max_size=32), upper=st.booleans(), prefix=st.sampled_from(["", "sha256:", "SHA256:"])
)
def test_pins_are_read_in_either_case(digest: bytes, upper: bool, prefix: str) -> None:
    """A digest with or without its prefix, in either case, becomes 64 lower-case digits."""
    text = digest.hex().upper() if upper else digest.hex()
    assert judge_pin(prefix + text) == digest.hex()
    assert GVisorOciRunOptions(pin=prefix + text).pin == digest.hex()


@given(
    pin=st.text(max_size=80) | st.text("0123456789abcdef", min_size=60, max_size=70) | st.from_regex(r"[0-9a-f]{64}\n?")
)
@example("0" * 64 + "\n")
@example("0" * 63 + "٣")
@example("sha256:sha256:" + "0" * 64)
@example("md5:" + "0" * 64)
def test_a_pin_is_a_digest_or_refused(pin: str) -> None:
    """Whatever else is given as a pin is BadArgument, never a pin that nothing matches."""
    try:
        judged = judge_pin(pin)
    except BadArgument:
        return
    assert len(judged) == 64 and bytes.fromhex(judged).hex() == judged and judged in pin.lower()


@pytest.mark.parametrize("pin", [7, b"0" * 64, ["0" * 64], True])
def test_a_pin_is_text(pin: Any) -> None:
    """A pin of another type is refused as what it is, not with an error of Python's."""
    with pytest.raises(BadArgument):
        GVisorOciRunOptions(pin=pin)


def test_defaults_are_the_references_and_the_safe_ones() -> None:
    """The reference's five fields have its defaults; ours are the strictest."""
    options = GVisorOciRunOptions()
    assert [field.name for field in fields(options)][:5] == [
        "network_mode", "ignore_cgroups", "runsc_rootless", "require_supervisor_exec_policy", "platform",
    ]  # fmt: skip
    assert (options.network_mode, options.platform) == ("none", "systrap")
    assert not (options.ignore_cgroups or options.runsc_rootless or options.require_supervisor_exec_policy)
    assert (options.confinement, options.enforcement, options.stage) == ("mount-locked", "required", "auto")
    assert not (options.allow_hooks or options.allow_flag_annotations) and options.pin is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [("network_mode", NetworkMode), ("platform", Platform), ("confinement", Confinement), ("enforcement", Enforcement),
     ("stage", StageMethod), ("program", Program)],
)  # fmt: skip
def test_choices_are_given_as_text_or_member(name: str, kind: type[StrEnum]) -> None:
    """Each value can be given either way and becomes the member; what is none is refused with all that there are."""
    for member in kind:
        for given_as in (member, member.value):
            assert getattr(GVisorOciRunOptions(**{name: given_as}), name) is member  # type: ignore[arg-type]
    for wrong in ("", "NONE", "none ", None, 0, True, [], {}, b"none", object()):
        with pytest.raises(BadArgument) as caught:
            GVisorOciRunOptions(**{name: wrong})  # type: ignore[arg-type]
        assert all(member.value in str(caught.value.expected) for member in kind) and name in str(caught.value)


@pytest.mark.parametrize("enforcement", [Enforcement.BEST_EFFORT, Enforcement.OFF])
@pytest.mark.parametrize("rootless", [True, False])
def test_requiring_the_policy_is_never_ignored(enforcement: Enforcement, rootless: bool) -> None:
    """The reference forgets it unless rootless (gvisor.rs:363); ours refuses the contradiction, rootless or not."""
    with pytest.raises(BadArgument, match="contradicts"):
        GVisorOciRunOptions(require_supervisor_exec_policy=True, runsc_rootless=rootless, enforcement=enforcement)
    options = GVisorOciRunOptions(require_supervisor_exec_policy=True, runsc_rootless=rootless)
    assert options.enforcement is Enforcement.REQUIRED


def test_options_are_frozen_and_named() -> None:
    """They cannot be changed after they were judged, nor be confused by position."""
    options = GVisorOciRunOptions()
    with pytest.raises(FrozenInstanceError):
        options.enforcement = Enforcement.OFF  # type: ignore[misc]
    with pytest.raises(TypeError):
        GVisorOciRunOptions(NetworkMode.HOST)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        GVisorOciRunOptions(**{"network": "host"})  # type: ignore[arg-type]


@pytest.mark.parametrize("platform", list(Platform))
def test_platform_as_flag(platform: Platform) -> None:
    """The seed's method gives the flag's value."""
    assert platform.as_flag() == str(platform)


def test_refusals_of_requests_are_one_family() -> None:
    """A caller can tell a bad request from everything else with one class."""
    assert issubclass(BadId, BadRequest) and issubclass(BadArgument, BadRequest)


def test_a_required_scope_needs_what_gives_it() -> None:
    """It goes with a required mount-locked launch, with nothing weaker; to want none has no name."""
    assert GVisorOciRunOptions(signal_scope=Enforcement.REQUIRED).signal_scope is Enforcement.REQUIRED
    for weaker in ({"enforcement": Enforcement.BEST_EFFORT}, {"confinement": Confinement.LANDLOCK}):
        assert GVisorOciRunOptions(**weaker).signal_scope is Enforcement.BEST_EFFORT
        with pytest.raises(BadArgument, match="signal_scope contradicts"):
            GVisorOciRunOptions(signal_scope=Enforcement.REQUIRED, **weaker)
    with pytest.raises(BadArgument, match="signal_scope refused; observed: off"):
        GVisorOciRunOptions(signal_scope=Enforcement.OFF)
