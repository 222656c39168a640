"""Programs whose `sys.executable` is not Python: frozen ones, and those that embed it."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import Release
from tests.e2e.launching import Caller
from tests.support import places

USE = """
import os, shutil, sys, threading
from nucleus_gvisor.runtime import Sandbox, interpreter, run

options = {{"runsc": sys.argv[1], "pin": sys.argv[2] or None}}
end = threading.Event()
thread = threading.Thread(target=end.wait)
thread.start()
try:
    {before}
    print(run(["echo", "run"], **options).stdout, end="")
    with Sandbox(**options) as box:
        print(box.exec("echo", "exec").stdout, end="")
        if "{checkpoint}":
            box.checkpoint("{checkpoint}")
            print("checkpoint")
    print(interpreter.find())
finally:
    end.set()
    thread.join()
"""


def test_without_an_interpreter(caller: Caller) -> None:
    """A process with threads, where no interpreter is to be had, forks: commands run as ever."""
    before = "interpreter._own = lambda: None; interpreter._others = lambda: iter(())"
    image = caller.mode.base / "image" if "trixie" in str(caller.runsc) else ""
    done = caller.script(USE.format(before=before, checkpoint=image), timeout=300)
    assert (done.stdout.split(), done.stderr) == (["run", "exec", *(["checkpoint"] if image else []), "None"], "")


def test_a_program_that_starts_itself(first: Caller) -> None:
    """Should one be taken for an interpreter all the same, it is started once, says why, and is not started again."""
    program = first.mode.base / "python3"
    trace = first.mode.base / "starts"
    words = f"{first.mode.python} -c \"$(cat {first.mode.base}/program)\" {first.runsc} ''"
    program.write_text(f"#!/bin/sh\necho start >>{trace}\nexec {words}\n")
    program.chmod(0o755)
    # As if it had passed every test: what is left is the mark.
    before = f"interpreter.find.__globals__['_own'] = lambda: {str(program)!r}"
    source = USE.format(before=before, checkpoint="")
    (first.mode.base / "program").write_text(source)
    done = first.script(source, timeout=300)
    assert done.returncode == 1
    assert trace.read_text() == "start\n"
    assert "did not run our code" in done.stderr


EMBEDDING = """
#include <Python.h>

int main(int argc, char **argv) {
    /* As uWSGI does: the program's own name is Python's. */
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.parse_argv = 0;
    PyConfig_SetBytesString(&config, &config.program_name, argv[0]);
    PyConfig_SetBytesString(&config, &config.executable, argv[0]);
    PyConfig_SetBytesArgv(&config, argc - 1, argv + 1);
    if (PyStatus_Exception(Py_InitializeFromConfig(&config))) return 2;
    FILE *file = fopen(argv[1], "r");
    return file == NULL ? 3 : PyRun_SimpleFileEx(file, argv[1], 1) != 0;
}
"""
HEADERS = Path(f"/usr/include/python{sys.version_info[0]}.{sys.version_info[1]}/Python.h")


@pytest.mark.campaign
def test_a_server_that_embeds_python(first: Caller, release: Release) -> None:
    """`sys.executable` is the server: an interpreter beside it is found and proved."""
    assert HEADERS.is_file(), "the campaign needs Python's headers: apt-get install libpython3-dev"
    with places.private_directory() as folder:
        folder.chmod(0o755)
        source, server, script = folder / "server.c", folder / "server", folder / "script.py"
        source.write_text(EMBEDDING)
        flags = ["-I", os.fspath(HEADERS.parent), f"-l{HEADERS.parent.name}"]
        subprocess.run(["gcc", "-o", server, source, *flags], check=True)
        script.write_text(USE.format(before="assert sys.executable == " + repr(str(server)), checkpoint=""))
        done = first.mode.run([server, script, release.path, ""], timeout=300)
    assert (done.stdout.split()[:2], done.stderr) == (["run", "exec"], "")
    assert done.stdout.split()[2].startswith("/usr/bin/python3")


@pytest.mark.campaign
@pytest.mark.parametrize("kind", ["--onedir", "--onefile"])
def test_frozen_by_pyinstaller(caller: Caller, kind: str) -> None:
    """A frozen program, with an interpreter on the host and without one, starts itself never."""
    packer = shutil.which("pyinstaller", path=os.path.dirname(sys.executable))
    assert packer is not None, "the campaign needs PyInstaller: .venv/bin/pip install pyinstaller"
    with places.private_directory() as folder:
        folder.chmod(0o755)
        source = USE.format(before="print('start')", checkpoint="")
        (folder / "frozen.py").write_text(textwrap.dedent(source))
        flags: list[str | os.PathLike[str]] = [
            kind,
            "-y",
            "--log-level",
            "ERROR",
            "--paths",
            caller.mode.app,
            "--specpath",
            folder,
        ]
        ways: list[str | os.PathLike[str]] = ["--distpath", folder / "dist", "--workpath", folder / "build"]
        subprocess.run([packer, *flags, *ways, folder / "frozen.py"], check=True, timeout=600)
        program = folder / "dist/frozen" / ("frozen" if kind == "--onedir" else "")
        done = caller.mode.run([program, caller.runsc, caller.pin or ""], timeout=300)
    assert (done.stdout.split()[:3], done.stderr) == (["start", "run", "exec"], "")
    assert done.stdout.split()[3] != str(program)
