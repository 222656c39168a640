"""Make the guest's own program from `guest.c`: `python -m tests.sandbox.build_guest` writes runtime/_guest.py."""

import base64
import os
import shutil
import subprocess
import tempfile
import textwrap
from pathlib import Path

from tests.support.places import ROOT

SOURCE = Path(__file__).with_name("guest.c")
TARGET = ROOT / "runtime/_guest.py"
MACHINES = {"x86_64": ("-fcf-protection=none", "-mno-sse"), "aarch64": ("-mgeneral-regs-only",)}
"""No machine's vectors: their registers are saved and restored for nothing."""
FLAGS = (
    *("-Os", "-Wall", "-Wextra", "-Werror", "-std=c11", "-ffreestanding", "-fno-builtin", "-fno-pie"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-tree-loop-distribute-patterns"),
)
LAYOUT = (
    "SECTIONS { . = 0x400078; .text : { *(.text.start) *(.text .text.*) *(.rodata .rodata.*) } /DISCARD/ : { *(*) } }"
)
"""After the headers of an ELF file, `runtime.guest` puts them before it; the first instruction first."""
HEAD = '''"""The code of `guest`, as tests/sandbox/build_guest.py makes it from guest.c beside it, by {compiler}."""

COMPILER = "{compiler}"
CODE = {{
'''


def tool(machine: str, name: str) -> str:
    """A tool for `machine`: the system's own, or the cross tool."""
    path = shutil.which(name if machine == os.uname().machine else f"{machine.replace('_', '-')}-linux-gnu-{name}")
    if path is None:
        raise FileNotFoundError(f"{name} for {machine} is missing; run: python3 tests/setup/provision.py test")
    return path


def compiler(machine: str) -> str:
    """Which compiler it is: another one makes other bytes of the same source."""
    told = subprocess.run([tool(machine, "gcc"), "-dumpfullversion"], check=True, capture_output=True, text=True)
    return f"gcc {told.stdout.strip()}"


def build(machine: str) -> bytes:
    """What this machine's compiler makes of the source."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "layout").write_text(LAYOUT)
        o, linked, code = (folder / name for name in ("o", "linked", "code"))
        commands: list[list[str | Path]] = [
            [tool(machine, "gcc"), *FLAGS, *MACHINES[machine], "-c", "-o", o, SOURCE],
            [tool(machine, "ld"), "-T", folder / "layout", "-o", linked, o],
            [tool(machine, "objcopy"), "-O", "binary", "-j", ".text", linked, code],
        ]
        for command in commands:
            subprocess.run(command, check=True)
        return code.read_bytes()


def main() -> None:
    """Write the module anew."""
    text = HEAD.format(compiler=compiler(os.uname().machine))
    for machine in MACHINES:
        lines = textwrap.wrap(base64.b64encode(build(machine)).decode(), 112)
        text += f'    "{machine}": (\n' + "".join(f'        "{line}"\n' for line in lines) + "    ),\n"
    TARGET.write_text(text + "}\n")


if __name__ == "__main__":
    main()
