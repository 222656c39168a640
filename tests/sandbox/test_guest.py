"""The guest's own program: its bytes are those of its source, and it does what it says."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.errors import Unsupported
from nucleus_gvisor.runtime import _guest, guest
from nucleus_gvisor.runtime.elf import fault
from tests.sandbox.build_guest import build, compiler

HERE = os.uname().machine


@pytest.fixture(params=list(guest.CODE))
def program(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that runs the program of each machine; where the compiler is another, what that makes of it."""
    machine: str = request.param
    path = tmp_path / "init"
    if compiler(machine) != _guest.COMPILER:
        monkeypatch.setitem(guest.CODE, machine, build(machine))
    path.write_bytes(guest.program(machine))
    path.chmod(0o755)
    if machine == HERE:
        return [os.fspath(path)]
    emulator = shutil.which(f"qemu-{machine}-static")
    assert emulator is not None, "qemu-user-static is missing; run: python3 tests/setup/provision.py test"
    return [emulator, os.fspath(path)]


@pytest.mark.parametrize("machine", list(guest.CODE))
def test_code_is_what_its_source_is_built_to(machine: str) -> None:
    """No byte is executed in the guest that cannot be read as source. Another compiler's are not these, but do it all
    (`program`).
    """
    built, same = build(machine), compiler(machine) == _guest.COMPILER
    assert (built == guest.CODE[machine]) is same, "run: python3 -m tests.sandbox.build_guest"


def test_it_is_a_whole_elf_file_for_this_machine(tmp_path: Path) -> None:
    """Our own judge of executables finds no fault in it."""
    (tmp_path / "init").write_bytes(guest.program())
    with (tmp_path / "init").open("rb") as file:
        assert fault(file.fileno(), len(guest.program())) is None


def test_no_program_for_a_machine_without_runsc() -> None:
    """Another machine is told of, with those that there are."""
    with pytest.raises(Unsupported, match=r"sparc64.*x86_64, aarch64"):
        guest.program("sparc64")


def test_it_copies_files_whole(program: list[str], tmp_path: Path) -> None:
    """More than its buffer goes through in both directions, unchanged."""
    data = os.urandom(300_001)
    target = tmp_path / "file"
    target.write_bytes(b"x" * 400_000)
    subprocess.run([*program, "w", target], input=data, check=True)
    assert target.read_bytes() == data
    assert subprocess.run([*program, "r", target], capture_output=True, check=True).stdout == data


@pytest.mark.parametrize(("how", "path", "code"), [("r", "/no/file", 2), ("r", "/", 21), ("w", "/no/file", 2)])
def test_its_exit_status_is_errno(program: list[str], how: str, path: str, code: int) -> None:
    """What the kernel answers is what its caller gets."""
    assert subprocess.run([*program, how, path], stdin=subprocess.DEVNULL).returncode == code


def test_a_closed_reader_ends_the_copy(program: list[str], tmp_path: Path) -> None:
    """A file that nobody reads to its end does not keep it."""
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    with subprocess.Popen([*program, "r", file], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait() in (-signal.SIGPIPE, 32)


def test_it_signals_each_process(program: list[str]) -> None:
    """Those after one that is not there are signalled too."""
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    ended = subprocess.Popen(["true"])
    ended.wait()
    pids = [str(process.pid) for process in (sleepers[0], ended, sleepers[1])]
    subprocess.run([*program, "k", str(int(signal.SIGKILL)), *pids], check=True)
    assert [process.wait() for process in sleepers] == [-signal.SIGKILL] * 2


def test_it_starts_a_program_and_is_then_alone(program: list[str], tmp_path: Path) -> None:
    """With the words and the variables that it was given, and no stream; it says that it runs once the program does."""
    report = tmp_path / "report"
    script = f'echo "$$ $0 $1 $A" >{report}.part; mv {report}.part {report}; exec sleep 60'
    words = ["s", "/bin/sh", "-c", script, "zero", "one"]
    how: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {"A": "b", "PATH": "/bin"}}
    process = subprocess.Popen([*program, *words], start_new_session=True, **how)
    try:
        assert process.stdout is not None and process.stdout.read(1) == guest.READY
        deadline = time.monotonic() + 30
        while not report.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        pid, *told = report.read_text().split()
        assert told == ["zero", "one", "b"]
        assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)} == {"/dev/null"}
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_it_does_not_stay_without_its_program(tmp_path: Path) -> None:
    """Its exit status is errno of the execve; not under qemu, whose vfork shares no memory."""
    path = tmp_path / "init"
    path.write_bytes(guest.program())
    path.chmod(0o755)
    for target, code in (("/no/program", 2), (os.fspath(tmp_path), 13)):
        assert subprocess.run([path, "s", target], capture_output=True, timeout=30).returncode == code


def test_alone_it_says_that_it_runs_and_stays(program: list[str]) -> None:
    """One byte, and then it waits for its end."""
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == guest.READY
        assert process.poll() is None
        process.kill()
        assert process.stdout.read() == b""
