"""Judge whether bytes are a whole ELF executable for this machine (elf(5))."""

import os
import struct

MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "ppc64le": 21, "s390x": 22}  # e_machine, elf.h
ET_EXEC, ET_DYN = 2, 3
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
MAX_PROGRAM_HEADERS = 128
PT_LOAD = 1


def fault(fd: int, size: int) -> str | None:
    """What keeps the file behind `fd`, `size` bytes long, from being executed here; None when nothing does."""
    header = os.pread(fd, _HEADER.size, 0)
    if not header:
        return "empty file"
    if header[:2] == b"#!":
        return "a script"
    if header[:4] != b"\x7fELF":
        return "no ELF header"
    if len(header) < _HEADER.size:
        return "truncated ELF header"
    ident, kind, machine, _, _, offset, _, _, _, entry_size, entries, *_ = _HEADER.unpack(header)
    if ident[4] != 2 or ident[5] != 1:
        return "not a 64-bit little-endian ELF"
    if machine != MACHINES.get(os.uname().machine):
        return f"ELF for machine {machine}"
    if kind not in (ET_EXEC, ET_DYN):
        return f"ELF of type {kind}, not an executable"
    if not 0 < entries <= MAX_PROGRAM_HEADERS or entry_size != _PROGRAM.size:
        return "ELF without sound program headers"
    return _fault_in_programs(os.pread(fd, entries * entry_size, offset) if offset < size else b"", entries, size)


def _fault_in_programs(table: bytes, entries: int, size: int) -> str | None:
    if len(table) != entries * _PROGRAM.size:
        return "truncated ELF"
    loads = 0
    for kind, _, offset, _, _, in_file, _, _ in _PROGRAM.iter_unpack(table):
        if offset + in_file > size:
            return "truncated ELF"
        loads += kind == PT_LOAD
    return None if loads else "ELF with nothing to load"
