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
`w PATH` standard input to the file; the exit status is errno. `k SIGNAL PID...` sends signals,
`m MODE PATH` changes a mode (numbers in decimal). `s PROGRAM ARG...` starts a program whose streams are /dev/null, and
is then as alone; the exit status is errno where the program cannot be started."""
READY = b"\x01"

CODE = {
    "x86_64": bytes.fromhex(
        "48833c24030f826f010000488b442410488b7c241880386b0f84ad00000080386d0f848f0000008038730f84de0000004531e44531ed"
        "be000008008038777505be410208004889c3bab6010000b8020000000f0585c07853803b7775054189c5eb094189c441bd0100000048"
        "81ec000001004489e74889e6ba0000010031c00f0585c0782674264189c64889e34489ef4889de4489f2b8010000000f0585c0780a48"
        "01c34129c675e4ebc7f7d889c7b8e70000000f05e83e00000089c6488b7c2420b85a0000000f05ebe0e8290000004189c4488d5c2420"
        "488b3b31c04885ff74cb4883c308e80e00000089c74489e6b83e0000000f05ebdf31c00fb60f83e930780a6bc00a01c848ffc7ebeec3"
        "6a00b83a0000000f0585c078907552488d3d91000000be02000800b8020000000f0585c078314189c431f64489e7b8210000000f05ff"
        "c683fe0372ef488b7c2420488d742420488b442408488d54c418b83b0000000f05890424b83c0000000f058b042485c00f8831ffffff"
        "31c05050506a01bf110000004889e631d241ba08000000b80d0000000f05bf010000004889e6ba01000000b8010000000f05b8220000"
        "000f05ebf72f6465762f6e756c6c00"
    ),
    "aarch64": bytes.fromhex(
        "e00340f91f0c00f1c30d0054f30b40f973024039e10f40f97fae0171600600547fb60171400500547fce017140080054600c80920201"
        "a0527fde017161000054234880524200032ac3368052080780d2010000d46003f8b7140080d2f50300aa7fde017160000054f40300aa"
        "350080d2ff4340d1e00314aae10300912200a0d2e80780d2010000d4c001f8b7c00100b4f60300aaf7030091e00315aae10317aae203"
        "16aa080880d2010000d4a000f8b7f702008bd60200eb01ffff54eeffff17e00300cbc80b80d2010000d412000094e20300aae11340f9"
        "600c8092a80680d2010000d4f7ffff170b000094f50300aaf4830091818640f8000080d241feffb405000094e10315aa281080d20100"
        "00d4f9ffff17000080d2430180d22214403842c00071640000540008039bfcffff17c0035fd6ff0f1ff8202288d2010080d2881b80d2"
        "010000d4c0fbffb7600300b5600c8092210600100201a05242001f32080780d2010000d42002f8b7f40300aa010080d2020080d2e003"
        "14aa080380d2010000d4210400913f0c00f163ffff54e1a30091200040f9e20b40f9220c028b422000d1a81b80d2010000d4e00300f9"
        "a80b80d2010000d4e00340f920f8ffb7200080d2e07fbea9ff7f01a9200280d2e1030091020080d2030180d2c81080d2010000d42000"
        "80d2e1030091220080d2080880d2010000d4000080d2010080d2020080d2030080d2040180d2280980d2010000d4f9ffff172f646576"
        "2f6e756c6c00"
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
            "no guest program for this machine", step="Prepare", observed=machine, expected=", ".join(CODE)
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
