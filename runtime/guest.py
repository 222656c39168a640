"""Our own program in the guest: its init, and the one that copies files. It needs nothing of the guest's root.

One static ELF file of a few hundred bytes, so that a rootfs need have neither `sleep` nor `cat`. The source of the code
is in tests/sandbox/guest-*.S, and a test assembles it again.
"""

import os
import struct

from nucleus_gvisor.model.errors import Unsupported

DIRECTORY = "/.nucleus-gvisor"
NAME = "init"
PROGRAM = f"{DIRECTORY}/{NAME}"
"""Alone, it says READY, and waits for ever while orphans are reaped. `r PATH` copies the file to standard output and
`w PATH` standard input to the file; the exit status is errno, or SPECIAL when that is no regular file. `R` and `W` take
any but a directory, and wait for a FIFO's other end. `d PATH...` makes directories, those that are there too.
`k SIGNAL PID...` sends signals,
`m MODE PATH` changes a mode (numbers in decimal). `s PROGRAM ARG...` starts a program whose streams are /dev/null, and
is then as alone; the exit status is errno where the program cannot be started."""
READY = b"\x01"
SPECIAL = 200

CODE = {
    "x86_64": bytes.fromhex(
        "48833c24030f820c020000488b442410488b7c241880386b0f844601000080386d0f84280100008038730f84770100008038640f84ec"
        "0000000fb6184881ec00000100be0001080089d80c203c777505be41010800f6c320740681ce00080000bab6010000b8020000000f05"
        "85c00f88a60000004189c489c74889e6b8050000000f0585c00f888f0000008b4424182500f0000089c1b81500000081f90040000074"
        "79f6c320740db8c800000081f900800000756741bd0100000080cb2080fb77751e4589e54531e481f90080000075104489ef31f6b84d"
        "0000000f0585c078394489e74889e6ba0000010031c00f0585c0782674264189c64889e34489ef4889de4489f2b8010000000f0585c0"
        "780a4801c34129c675e4ebc7f7d889c7b8e70000000f05488d5c241831c0488b3b4885ff74124883c308beff010000b8530000000f05"
        "ebe683f8ef75cf31c0ebcde83e00000089c6488b7c2420b85a0000000f05ebb6e8290000004189c4488d5c2420488b3b31c04885ff74"
        "a14883c308e80e00000089c74489e6b83e0000000f05ebdf31c00fb60f83e930780a6bc00a01c848ffc7ebeec36a00b83a0000000f05"
        "85c00f8862ffffff7552488d3d91000000be02000800b8020000000f0585c078314189c431f64489e7b8210000000f05ffc683fe0372"
        "ef488b7c2420488d742420488b442408488d54c418b83b0000000f05890424b83c0000000f058b042485c00f8803ffffff31c0505050"
        "6a01bf110000004889e631d241ba08000000b80d0000000f05bf010000004889e6ba01000000b8010000000f05b8220000000f05ebf7"
        "2f6465762f6e756c6c00"
    ),
    "aarch64": bytes.fromhex(
        "e00340f91f0c00f1a3120054f30b40f973024039e10f40f97fae0171400b00547fb60171200a00547fce0171200d00547f9201710008"
        "0054ff4340d10220805264021b329fdc0171410000542228805242000d325300283642001532600c8092c3368052080780d2010000d4"
        "e005f8b7f40300aae1030091080a80d2010000d44005f8b7e51340b9a50c1412a00280d2bf104071c004005493002836001980d2bf20"
        "407141040054350080d273021b327fde017141010054f50314aa140080d2bf204071c1000054e00315aa010080d2c80580d2010000d4"
        "8002f8b7e00314aae10300912200a0d2e80780d2010000d4c001f8b7c00100b4f60300aaf7030091e00315aae10317aae20316aa0808"
        "80d2010000d4a000f8b7f702008bd60200eb01ffff54eeffff17e00300cbc80b80d2010000d4f4630091000080d2818640f8c10000b4"
        "600c8092e23f8052480480d2010000d4faffff171f4400b161feff54000080d2f2ffff1712000094e20300aae11340f9600c8092a806"
        "80d2010000d4eaffff170b000094f50300aaf4830091818640f8000080d2a1fcffb405000094e10315aa281080d2010000d4f9ffff17"
        "000080d2430180d22214403842c00071640000540008039bfcffff17c0035fd6ff0f1ff8202288d2010080d2881b80d2010000d420fa"
        "ffb7600300b5600c8092210600100201a05242001f32080780d2010000d42002f8b7f40300aa010080d2020080d2e00314aa080380d2"
        "010000d4210400913f0c00f163ffff54e1a30091200040f9e20b40f9220c028b422000d1a81b80d2010000d4e00300f9a80b80d20100"
        "00d4e00340f980f6ffb7200080d2e07fbea9ff7f01a9200280d2e1030091020080d2030180d2c81080d2010000d4200080d2e1030091"
        "220080d2080880d2010000d4000080d2010080d2020080d2030080d2040180d2280980d2010000d4f9ffff172f6465762f6e756c6c00"
    ),
}
_MACHINE = {"x86_64": 62, "aarch64": 183}  # EM_X86_64, EM_AARCH64, elf.h
_BASE = 0x400000
_HEADERS = 64 + 56


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
