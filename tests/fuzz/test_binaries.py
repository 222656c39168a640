"""ELF headers and wrapper scripts: what we read in them is what binutils and a shell's splitter read."""

import os
import re
import shlex
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from nucleus_gvisor.model.errors import BadPath, NotElf
from nucleus_gvisor.runtime import elf
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.steps.resolve import MAX_WRAPPER, _wrapped_target, judge
from tests.fuzz.budget import budget

HEADER = struct.Struct("<4sBBBBB7xHHIQQQIHHHHHH")  # Elf64_Ehdr, elf(5)
SEGMENT = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr
HERE = elf.MACHINES[os.uname().machine]
NAMES = {62: "Advanced Micro Devices X86-64", 183: "AArch64"}  # readelf's


@contextmanager
def held(content: bytes) -> Iterator[int]:
    """A descriptor of a file with this content; executable, never executed."""
    fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        os.fchmod(fd, 0o755)
        yield fd
    finally:
        os.close(fd)


@dataclass
class Image:
    """An ELF file, field by field."""

    bits: int = 2
    order: int = 1
    kind: int = 2
    machine: int = HERE
    table: int = HEADER.size
    entry_size: int = SEGMENT.size
    entries: int | None = None
    segments: list[tuple[int, int, int]] = field(default_factory=lambda: [(1, 0, 120)])
    """(p_type, p_offset, p_filesz)."""
    padding: int = 200

    def encoded(self) -> bytes:
        count = len(self.segments) if self.entries is None else self.entries
        head = HEADER.pack(
            b"\x7fELF", self.bits, self.order, 1, 0, 0, self.kind, self.machine, 1, 0x400000, self.table, 0, 0,
            HEADER.size, self.entry_size, count, 64, 0, 0,
        )  # fmt: skip
        body = b"".join(SEGMENT.pack(kind, 5, at, 0x400000, 0, size, size, 4096) for kind, at, size in self.segments)
        return head + body + bytes(self.padding)


small = st.integers(0, 400)
numbers = small | st.sampled_from([2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
half = st.integers(0, 2**16 - 1)
images = st.builds(
    Image,
    bits=st.sampled_from([2, 2, 2, 0, 1, 3]),
    order=st.sampled_from([1, 1, 1, 0, 2]),
    kind=st.sampled_from([2, 3]) | st.integers(0, 5) | half,
    machine=st.just(HERE) | st.sampled_from([3, 40, 62, 183, 243]) | half,
    table=st.just(HEADER.size) | numbers,
    entry_size=st.just(SEGMENT.size) | st.sampled_from([0, 32, 55, 57]) | half,
    entries=st.none() | st.integers(0, 4) | st.sampled_from([128, 129, 65535]),
    segments=st.lists(st.tuples(st.sampled_from([1, 1, 2, 6, 0x6474E551]), numbers, numbers), max_size=5),
    padding=st.integers(0, 600),
)
sound_images = st.builds(
    Image,
    kind=st.sampled_from([2, 3]),
    segments=st.lists(st.tuples(st.sampled_from([2, 4, 6]), st.just(0), st.integers(0, 100)), max_size=4).map(
        lambda others: [*others, (1, 0, 120)]
    ),
)


def readelf(content: bytes) -> tuple[str, list[tuple[int, int]]]:
    """Type and machine, and (offset, size) of each LOAD, as binutils has them; it must not complain of the header."""
    with held(content) as fd:
        done = subprocess.run(
            ["readelf", "--wide", "--file-header", "--program-headers", f"/proc/self/fd/{fd}"],
            pass_fds=[fd], capture_output=True, text=True, env={"LC_ALL": "C", "PATH": os.defpath},
        )  # fmt: skip
    assert "Class:                             ELF64" in done.stdout, done
    assert "2's complement, little endian" in done.stdout, done
    shown = "".join(re.findall(r"(?:Type|Machine): +(.*)\n", done.stdout))
    loads = re.findall(r"(?m)^ +LOAD +0x([0-9a-f]+) 0x[0-9a-f]+ 0x[0-9a-f]+ 0x([0-9a-f]+)", done.stdout)
    return shown, [(int(offset, 16), int(size, 16)) for offset, size in loads]


@given(image=sound_images)
@budget(60)
def test_a_sound_header_is_accepted(image: Image) -> None:
    """Whatever else is in its table, an executable for this machine with something to load passes."""
    content = image.encoded()
    with held(content) as fd:
        assert elf.fault(fd, len(content)) is None


@given(image=images, size=st.none() | small)
@example(image=Image(segments=[(1, 2**64 - 1, 2)]), size=None)
@example(image=Image(table=2**64 - 1), size=None)
@example(image=Image(table=2**63 - 1), size=2**63 - 1)
@budget(150)
def test_what_is_accepted_is_so_for_binutils(image: Image, size: int | None) -> None:
    """No header makes the judgement fail; what passes is this machine's for readelf too, and lies within the file."""
    content = image.encoded()
    with held(content) as fd:
        problem = elf.fault(fd, len(content) if size is None else size)
    if problem is not None or size is not None:
        assert problem is None or ("\n" not in problem and problem)
        return
    shown, loads = readelf(content)
    assert NAMES.get(HERE, "") in shown and shown.startswith(("EXEC", "DYN"))
    assert loads and all(offset + length <= len(content) for offset, length in loads)


TRUE = Path("/bin/true").read_bytes()


@given(
    edits=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4), cut=st.none() | st.integers(0, 800)
)
@budget(150)
def test_a_real_header_spoilt_is_itself_or_refused(edits: list[tuple[int, int]], cut: int | None) -> None:
    """Bytes changed in a real program: refused, or still of this machine, of a type that can be executed, and whole."""
    content = bytearray(TRUE)
    for place, value in edits:
        content[place] = value
    if cut is not None:
        del content[cut:]
    with held(bytes(content)) as fd:
        if elf.fault(fd, len(content)) is not None:
            return
    assert content[:6] == b"\x7fELF\2\1" and cut is None
    assert struct.unpack_from("<HH", content, 16)[0] in (2, 3)
    assert struct.unpack_from("<HH", content, 16)[1] == HERE
    offset, size, count = struct.unpack_from("<Q", content, 32)[0], *struct.unpack_from("<HH", content, 54)
    table = [struct.unpack_from("<IIQQQQ", content, offset + n * size) for n in range(count)]
    assert any(row[0] == 1 for row in table) and all(row[2] + row[5] <= len(content) for row in table)


# ---- wrappers ----

# Of what bash gives a meaning, quotes, blanks, dollars and comments; nothing that could do anything.
letters = st.text("ab/.\"' \t$@0\\#-runsc", max_size=14)
paths = st.sampled_from(
    ["/nix/store/x/bin/.runsc-wrapped", "/opt/runsc", "/opt/other", "/a/runsc/b", "runsc", "/x/../runsc"]
)
commands = st.one_of(
    st.builds('exec -a "$0" "{}"  "$@"'.format, paths),
    st.builds('exec "{}" "$@"'.format, paths),
    st.builds("exec {} {}".format, paths, paths),
    st.builds("exec {} {} {}".format, letters, paths, letters),
    st.builds("{} exec {}".format, letters, paths),
    letters,
)
scripts = st.lists(commands, max_size=4).map(lambda lines: "\n".join(["#! /bin/bash -e", *lines, ""]).encode())


def target(script: bytes) -> bytes | None:
    with held(script) as fd:
        return _wrapped_target(fd, os.fstat(fd), b"/wrapper")


def split(line: str) -> Iterator[str]:
    """The words of a line, as far as quotes are closed."""
    words = shlex.shlex(line, posix=True, punctuation_chars=False)
    words.whitespace_split = True
    try:
        yield from words
    except ValueError:
        return


# Examples are what was found: an argument, an expansion, a quoted blank and a comment were taken for the command.
@given(script=scripts)
@example(script=b"#!/bin/sh\n# a comment\rexec /opt/runsc\n")
@example(script=b"#!/bin/sh\nexec /opt/runsc\r\n")
@example(script=b'#!/bin/sh\nexec "/bin/other" /opt/runsc\n')
@example(script=b"#!/bin/sh\nexec /opt/other /opt/runsc\n")
@example(script=b'#!/bin/sh\nexec -a "$0" "/opt/$0/runsc" "$@"\n')
@example(script=b"#!/bin/sh\nexec /opt/runsc\\ x\n")
@budget(150)
def test_a_wrappers_target_is_what_it_would_execute(script: bytes) -> None:
    """What we take for the target is the command word of an `exec` for whoever splits words as a shell does."""
    try:
        found = target(script)
    except BadPath:
        return
    if found is None:
        return
    assert found.startswith(b"/") and b"runsc" in found
    words = [list(split(line)) for line in script.decode().split("\n")]
    named = [
        w[3] if w[1:2] == ["-a"] else w[1]
        for w in words
        if w[:1] == ["exec"] and len(w) > (3 if w[1:2] == ["-a"] else 1)
    ]
    assert found.decode() in named


targets = st.from_regex(r"/nix/store/[a-z0-9]{4}-[a-z0-9.+-]{1,8}/bin/\.?runsc[a-z-]{0,8}", fullmatch=True)
preambles = st.sampled_from(["# a comment", "export PATH='/nix/store/y/bin'${PATH:+':'}$PATH", "exec 3>&1", ""])


@given(path=targets, named=st.booleans(), before=st.lists(preambles))
@budget(60)
def test_what_nix_writes_is_followed(path: str, named: bool, before: list[str]) -> None:
    """A wrapper as makeWrapper writes it leads where bash would go."""
    command = f"""exec {'-a "$0" ' if named else ""}"{path}"  "$@" """
    script = "\n".join(["#! /nix/store/z/bin/bash -e", *before, command, ""]).encode()
    assert target(script) == path.encode()


@given(script=scripts, mode=st.sampled_from([0o755, 0o777, 0o775, 0o4755]))
@budget(20)
def test_no_script_is_ever_judged_a_program(base: Path, script: bytes, mode: int) -> None:
    """Judged as a file it is refused, or leads to a file that is judged itself; here there is none."""
    place = base / "runsc"
    place.write_bytes(script)
    place.chmod(mode)
    try:
        judged = judge(os.fsencode(place), Identity.current(), pin=None)
    except Exception as error:
        assert type(error).__module__ == NotElf.__module__, repr(error)
    else:
        judged.close()
        raise AssertionError(script)


def test_a_wrapper_is_read_to_its_limit() -> None:
    """One byte more than the limit is no wrapper any more."""
    script = b"#!/bin/sh\nexec /opt/runsc\n"
    assert target(script.ljust(MAX_WRAPPER, b"\n")) == b"/opt/runsc"
    assert target(script.ljust(MAX_WRAPPER + 1, b"\n")) is None
