"""Small texts that decide something: each is read as a grammar of its own has it, written here a second time."""

import errno
import json
import os
import re
import socket
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nucleus_gvisor.model.errors import BadArgument, BadId, LaunchError, NotRunsc, StepFailed
from nucleus_gvisor.runtime import _linux
from nucleus_gvisor.runtime.bundle import Mount
from nucleus_gvisor.runtime.cleanup import owner_line, owner_lives, state_component
from nucleus_gvisor.runtime.identity import Identity, parse_uid_map
from nucleus_gvisor.runtime.options import Platform, judge_id, judge_pin
from nucleus_gvisor.runtime.runsc import Release, choose_platform, read_answers
from nucleus_gvisor.runtime.steps.resolve import SYSTEM_PATHS, candidates
from tests.fuzz.budget import budget
from tests.hostile.bench import needs_root

ALPHANUMERIC = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
likely = st.text("aB0_.+-/\n \0\u0660\u00e9\u212a\udc80", max_size=66)
words = st.text(max_size=20) | likely


@given(text=likely | st.text(max_size=70))
@example(text="a\n")
@example(text="a" * 64)
@example(text="a" * 65)
@budget(150)
def test_ids(text: str) -> None:
    """An id is 1 to 64 of the letters that the documentation names, none of which means anything to runsc or a path."""
    documented = 1 <= len(text) <= 64 and text[0] in ALPHANUMERIC and set(text) <= ALPHANUMERIC | set("_.+-")
    try:
        assert judge_id(text) == text and documented
    except BadId as error:
        assert not documented and "\n" not in str(error)
    else:
        assert re.fullmatch(r"[A-Za-z0-9_+,\-.]+", text)  # runsc's own: ^[\w+-\.]+$ in Go


@given(one=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", fullmatch=True) | st.sampled_from(["ab" * 16, "AB" * 16]))
@budget(60)
def test_components(one: str) -> None:
    """An id's directory is one plain name, of its own even where case does not count, and no other id's."""
    component = state_component(one)
    assert re.fullmatch(r"[0-9a-f]{32}|id-[0-9a-f]{64}", component)
    others = {one.lower(), one.upper(), one.title(), component, one[:-1] + "x"} - {one}
    assert component.lower() not in {state_component(other).lower() for other in others}


@given(text=st.text("0123456789abcdefABCDEFsh:\n ", max_size=75) | st.from_regex(r"(sha256:)?[0-9a-fA-F]{64}\n?"))
@budget(60)
def test_pins(text: str) -> None:
    """A pin is 64 hex digits, in either case and with or without its prefix; what is kept has one spelling."""
    digits = text[7:] if text.lower().startswith("sha256:") else text
    documented = len(digits) == 64 and set(digits.lower()) <= set("0123456789abcdef")
    try:
        assert judge_pin(text) == digits.lower() and documented
    except BadArgument:
        assert not documented


# ---- id maps ----

ids = st.integers(0, 6) | st.sampled_from([2**31, 2**32 - 2, 2**32 - 1, 2**32])
ranges = st.lists(st.tuples(ids, ids, st.integers(0, 4) | st.sampled_from([2**32 - 1, 2**32])), max_size=5)


def as_the_kernel_writes(entries: list[tuple[int, int, int]]) -> bytes:
    """user_namespaces(7), uid_m_show in kernel/user_namespace.c."""
    return b"".join(b"%10d %10d %10d\n" % entry for entry in entries)


def sound(entries: list[tuple[int, int, int]]) -> bool:
    """Could a kernel have this map: ranges of its ids, of which 2^32 - 1 is none, and none twice on either side."""
    within = all(length and max(inside, outside) + length < 2**32 for inside, outside, length in entries)
    apart = all(
        a[side] + a[2] <= b[side] or b[side] + b[2] <= a[side] for a, b in combinations(entries, 2) for side in (0, 1)
    )
    return bool(entries) and within and apart


@given(entries=ranges)
@budget(150)
def test_id_maps(entries: list[tuple[int, int, int]]) -> None:
    """A map in the kernel's columns is read as it is, if a kernel could have it."""
    try:
        assert parse_uid_map(as_the_kernel_writes(entries)) == tuple(entries) and sound(entries)
    except ValueError:
        assert not sound(entries)


@given(text=st.binary(max_size=40) | st.text("0123456789 \t\n+-x\u0660", max_size=40).map(str.encode))
@budget(150)
def test_other_texts_are_no_maps(text: bytes) -> None:
    """What is read of any text is all of it: written again as the kernel does, it has the same numbers."""
    try:
        entries = parse_uid_map(text)
    except ValueError as error:
        assert "uid_map" in str(error)
        return
    assert as_the_kernel_writes(list(entries)).split() == text.split() and b"\n\n" not in text


def mapped_by_the_kernel(text: bytes) -> bytes | None:
    """What a new user namespace has for its map once `text` was written; None where the kernel refused it."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            _linux.unshare(_linux.CLONE_NEWUSER)
            theirs.send(b"x")
            theirs.recv(1)
        finally:
            os._exit(0)
    try:
        assert ours.recv(1) == b"x"
        place = Path(f"/proc/{pid}/uid_map")
        place.write_bytes(text)
        return place.read_bytes()
    except OSError as error:
        assert error.errno == errno.EINVAL
        return None
    finally:
        ours.send(b"x")
        ours.close()
        theirs.close()
        os.waitpid(pid, 0)


@needs_root
@given(entries=ranges.filter(lambda entries: entries and max(map(max, entries)) < 2**32))  # beyond, it counts from 0
@example(entries=[(0, 0, 2**32 - 1)])
@example(entries=[(0, 1, 2**32 - 1)])
@example(entries=[(2**32 - 1, 0, 1)])
@budget(25)
def test_the_kernel_agrees(entries: list[tuple[int, int, int]]) -> None:
    """The running kernel takes the maps that we could read, gives them back as we read them, and refuses the others."""
    given_back = mapped_by_the_kernel(as_the_kernel_writes(entries))
    if given_back is None:
        assert not sound(entries)
    else:
        assert parse_uid_map(given_back) == tuple(entries)


# ---- the rest ----


@given(path=st.text("/ab:.\udcff", max_size=24), uid=st.sampled_from([0, 1000]), elevated=st.booleans())
@budget(100)
def test_search_path(path: str, uid: int, elevated: bool) -> None:
    """The system's places first; of PATH the absolute items, in order, each once, and only for whom it counts."""
    identity = Identity(uid=uid, gid=uid, host_root=uid == 0, unmapped=None, elevated=elevated)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        found = candidates(None, identity)
    assert found[:3] == list(SYSTEM_PATHS) and len(set(found)) == len(found)
    assert all(candidate.startswith(b"/") and candidate.endswith(b"/runsc") for candidate in found)
    items = [item for item in path.split(":") if item[:1] == "/"] if uid and not elevated else []
    once = dict.fromkeys(item.rstrip("/") for item in items)
    assert [os.fsdecode(candidate).removesuffix("/runsc") for candidate in found[3:]] == list(once)


@given(text=st.text("/a:.ro tmpfsw\0\n", max_size=24) | st.builds("{}:{}:{}".format, words, words, words))
@example(text="tmpfs:/x")
@example(text="/:/:ro")
@budget(200)
def test_mounts(text: str) -> None:
    """A mount as written is refused with one line, or survives its OCI form; it is writable only if it says so."""
    try:
        mount = Mount.parse(text)
    except BadArgument as error:
        assert "\n" not in str(error)
        return
    source, target, *access = text.split(":")
    assert Mount.from_mapping(mount.as_oci()) == mount
    assert mount.readonly == (access == ["ro"] if source == "tmpfs" else access != ["rw"])
    assert mount.target.startswith("/") and "//" not in mount.target and len(mount.target) > 1
    assert {".", ".."}.isdisjoint(mount.target.split("/")) and ".." not in target.split("/")
    assert source in ("tmpfs", os.fsdecode(mount.source))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | words, lambda c: st.lists(c, max_size=3), max_leaves=4
)
keys = st.sampled_from(["source", "destination", "target", "type", "options", "readonly", "other"])


@given(mapping=st.dictionaries(keys, json_values | st.sampled_from(["bind", "tmpfs", "/a", ["ro"], ["rw", "rbind"]])))
@example(mapping={"destination": "/a", "type": "tmpfs", "options": ["ro", "rw"]})
@budget(200)
def test_mount_objects(mapping: dict[str, object]) -> None:
    """A mount object is refused with one line, or says the same after another turn."""
    try:
        mount = Mount.from_mapping(mapping)
    except BadArgument as error:
        assert "\n" not in str(error)
        return
    json.dumps(mount.as_oci())
    again = Mount.from_mapping(mount.as_oci())
    assert (again.readonly, again.target, again.source) == (mount.readonly, mount.target, mount.source)


FLAGS = b"""\
Usage:
  -panic-signal int
    \tsignal (default -1)
  -platform string
    \tspecifies which platform to use: kvm, ptrace, systrap (default), a b. (default "systrap")
  -profile
"""
splices = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 30), st.binary(max_size=8)), max_size=3)


def spliced(text: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, lost, added in edits:
        text = text[:place] + added + text[place + lost :]
    return text


@given(status=st.sampled_from([0, 0, 256, 9]), version=splices, flags=splices, junk=st.none() | st.binary(max_size=300))
@example(status=0, version=[], flags=[], junk=b" " * 60000)
@budget(200)
def test_answers(
    status: int, version: list[tuple[int, int, bytes]], flags: list[tuple[int, int, bytes]], junk: bytes | None
) -> None:
    """Whatever runsc prints is no runsc's, or gives a release whose choices are words on one line."""
    text = spliced(b"runsc version release-20240729.0\nspec: 1.1.0\n", version)
    try:
        release = read_answers([(status, text), (0, spliced(FLAGS, flags) if junk is None else junk)])
    except NotRunsc as error:
        assert "\n" not in str(error)
        return
    assert status == 0 and release.version and not re.search(r"\s", release.version)
    assert all(name and not re.search(r"\s", name) for name in release.platforms)
    assert release.date is None or len(str(release.date)) <= 8
    for wanted in Platform:
        try:
            chosen = choose_platform(release, wanted)
        except LaunchError as error:
            assert "\n" not in str(error)
        else:
            assert chosen in {*release.platforms, release.default_platform} and re.fullmatch(r"\S+", chosen)


def test_the_answers_above_are_a_runscs() -> None:
    """Unspoilt they are read as they are."""
    release = read_answers([(0, b"runsc version release-20240729.0\n"), (0, FLAGS)])
    assert release == Release(
        "20240729.0", "runsc version release-20240729.0", ("kvm", "ptrace", "systrap", "a"), "systrap"
    )


@given(line=st.binary(max_size=60) | st.tuples(st.integers(), st.integers()).map(lambda p: b"%d %d" % p))
@budget(150)
def test_lock_owners(line: bytes) -> None:
    """No owner line makes the reader fail; none but a living process's own counts as alive."""
    mine = owner_line(os.getpid())
    assert owner_lives(mine)
    assert not owner_lives(line)
    pid, started, boot, namespace = mine.split()
    for spoilt in ((b"9" * 400, started, boot, namespace), (pid, started + b"0", boot, namespace)):
        assert not owner_lives(b" ".join(spoilt))
    assert not owner_lives(line + b" " + boot + b" " + namespace) or line.split() == [pid, started]


def test_current_identity_reads_its_own_map() -> None:
    """The caller's own map is one that passes."""
    try:
        assert Identity.current().uid == os.geteuid()
    except StepFailed:
        pytest.fail("the kernel's map was not read")
