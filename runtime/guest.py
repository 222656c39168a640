"""What of ours is in a guest: trees of files, and our own program, its init and the one that copies files.

The program is one static ELF file of a few kilobytes, so that a rootfs need have neither `sleep` nor `cat` nor `tar`.
The source of its code is tests/sandbox/guest.c, and a test builds it again.
"""

import binascii
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from nucleus_gvisor.model.errors import Unsupported
from nucleus_gvisor.runtime import _guest

DIRECTORY = "/.nucleus-gvisor"
NAME = "init"
PROGRAM = f"{DIRECTORY}/{NAME}"
"""Alone, it says READY, and waits for ever while orphans are reaped. `a` is an agent (`files`). `r PATH` copies the
file to standard output and `w PATH` standard input to the file; the exit status is errno, or SPECIAL when that is no
regular file. `R` and `W` take any but a directory, and wait for a FIFO's other end. `k SIGNAL PID...` sends signals, in
decimal. `g PATH` writes a file or a tree to standard output, `G` whatever it is, and `p PATH` makes a tree of standard
input (`trees`). `s PROGRAM ARG...` starts a program whose streams are /dev/null, and is then as alone; the exit status
is errno where the program cannot be started.
"""
READY = b"\x01"
SPECIAL = 200

CODE = {machine: binascii.a2b_base64(text) for machine, text in _guest.CODE.items()}
_MACHINE = {"x86_64": 62, "aarch64": 183}  # EM_X86_64, EM_AARCH64, elf.h
_BASE = 0x400000
_HEADERS = 64 + 56


@dataclass(frozen=True)
class Tree:
    """A read-only directory of ours at `target` of the guest, made anew for each launch. Names are relative to it.

    `sources` are files and directories of the host that lie in it.
    """

    target: str
    files: Mapping[str, tuple[int, bytes]]
    """Mode and content."""
    links: Mapping[str, str] = field(default_factory=dict)
    directories: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)


def program(machine: str | None = None) -> bytes:
    """The ELF file for `machine`, by default this one; Unsupported for those that runsc does not run on either."""
    machine = machine or os.uname().machine
    if machine not in CODE:
        raise Unsupported(
            "no guest program for this machine",
            step="Prepare",
            observed=machine,
            expected=", ".join(CODE),
            hint="gVisor runs on those machines alone",
        )
    code = CODE[machine]
    size = _HEADERS + len(code)
    # ELF64, little-endian: the file header, and one segment that is the whole file, readable and executable (elf(5)).
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, _MACHINE[machine], 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x10000)
    return header + segment + code
