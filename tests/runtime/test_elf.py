"""The ELF judge: never surprised, agrees with the kernel, refuses what is cut."""

import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nucleus_gvisor.runtime.elf import fault

TRUE = Path("/bin/true").read_bytes()
HEAD = 64 + 56 * 20


@contextmanager
def memory(content: bytes) -> Iterator[int]:
    """A descriptor of `content`."""
    fd = os.memfd_create("elf")
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        yield fd
    finally:
        os.close(fd)


def judged(content: bytes) -> str | None:
    with memory(content) as fd:
        return fault(fd, len(content))


@pytest.mark.parametrize("path", ["/bin/true", "/bin/sh", "/usr/bin/env", "/proc/self/exe"])
def test_programs_of_this_machine_pass(path: str) -> None:
    """What the host itself executes is not refused."""
    assert judged(Path(path).read_bytes()) is None


def test_runsc_passes(runsc_old: Path, runsc_new: Path) -> None:
    """Both releases of the real thing are sound, static as they are."""
    for path in (runsc_old, runsc_new):
        fd = os.open(path, os.O_RDONLY)
        try:
            assert fault(fd, path.stat().st_size) is None
        finally:
            os.close(fd)


def _patched(offset: int, layout: str, value: int) -> bytes:
    content = bytearray(TRUE)
    struct.pack_into(layout, content, offset, value)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\x7f", "no ELF"),
        (b"#!/bin/sh\n", "script"),
        (b"#!" + TRUE[2:], "script"),
        (b"MZ" + TRUE[2:], "no ELF"),
        (b"garbage" * 100, "no ELF"),
        (b"\0" * 4096, "no ELF"),
        (TRUE[:4], "truncated"),
        (TRUE[:63], "truncated"),
        (TRUE[:64], "truncated"),
        (_patched(4, "<B", 1), "64-bit"),
        (_patched(5, "<B", 2), "little-endian"),
        (_patched(18, "<H", 3), "machine 3"),
        (_patched(18, "<H", 183 if os.uname().machine != "aarch64" else 62), "machine"),
        (_patched(16, "<H", 1), "type 1"),
        (_patched(16, "<H", 4), "type 4"),
        (_patched(16, "<H", 0), "type 0"),
        (_patched(56, "<H", 0), "program headers"),
        (_patched(56, "<H", 0xFFFF), "program headers"),
        (_patched(54, "<H", 32), "program headers"),
        (_patched(32, "<Q", len(TRUE)), "truncated"),
        (_patched(32, "<Q", len(TRUE) - 8), "truncated"),
        (_patched(32, "<Q", 2**63), "truncated"),
        (_patched(32, "<Q", 2**64 - 1), "truncated"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_executed_is_named(content: bytes, reason: str) -> None:
    """Each way in which a file is no program for this machine has its own words."""
    assert reason in (judged(content) or "")


def _loads() -> list[tuple[int, int]]:
    """Where /bin/true's loadable parts lie in the file, from its own program headers, by readelf's account."""
    shown = subprocess.check_output(["readelf", "-lW", "/bin/true"], text=True)
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] == ["LOAD"]]
    return [(int(row[1], 16), int(row[4], 16)) for row in rows]


def test_a_program_without_its_end_is_refused_at_every_length() -> None:
    """As long as a byte that the kernel would map is missing, the file is refused, whatever its length."""
    end = max(offset + size for offset, size in _loads())
    assert end <= len(TRUE)
    with memory(TRUE) as fd:
        for length in (*range(0, 1024), *range(1024, end, 97), *range(end - 64, end)):
            os.ftruncate(fd, 0)
            os.pwrite(fd, TRUE[:length], 0)
            assert fault(fd, length) is not None, f"{length} of {len(TRUE)} bytes pass; {end} are needed"
    assert judged(TRUE[:end]) is None


@pytest.mark.parametrize("length", range(0, len(TRUE), max(1, len(TRUE) // 40)))
def test_what_passes_does_execute(length: int, base: Path) -> None:
    """Where a cut file passes, the kernel can execute it: the judge is not softer than execve."""
    if judged(TRUE[:length]) is None:
        program = base / "program"
        program.write_bytes(TRUE[:length])
        program.chmod(0o755)
        assert subprocess.run([program], check=False).returncode == 0


@given(
    edits=st.lists(st.tuples(st.integers(0, HEAD - 9), st.integers(0, 2**64 - 1), st.sampled_from("BHIQ")), max_size=6)
)
@example([(32, 2**64 - 1, "Q"), (56, 128, "H")])
@example([(64 + 8, 2**64 - 1, "Q"), (64 + 32, 2**64 - 1, "Q")])
def test_a_bent_header_is_judged_calmly(edits: list[tuple[int, int, str]]) -> None:
    """Whatever stands in the headers, the answer is None or a line of text."""
    content = bytearray(TRUE)
    for offset, value, kind in edits:
        struct.pack_into(f"<{kind}", content, offset, value & ((1 << (8 * struct.calcsize(kind))) - 1))
    answer = judged(bytes(content))
    assert answer is None or (isinstance(answer, str) and answer and "\n" not in answer)


@given(content=st.binary(max_size=300).map(lambda rest: b"\x7fELF\x02\x01\x01" + rest) | st.binary(max_size=300))
def test_any_bytes_are_judged_calmly(content: bytes) -> None:
    """Files of a few hundred bytes are never programs that load anything beyond their end, and never an exception."""
    answer = judged(content)
    assert answer is None or isinstance(answer, str)


@given(size=st.integers(0, 2 * len(TRUE)))
def test_the_size_that_was_judged_counts(size: int) -> None:
    """A file that is shorter now than when its size was taken, or longer, is judged without an exception."""
    with memory(TRUE) as fd:
        answer = fault(fd, size)
    assert answer is None or isinstance(answer, str)
