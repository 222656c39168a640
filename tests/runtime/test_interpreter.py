"""The interpreter of our own code: found, proved, and never a program that is somebody else's."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nucleus_gvisor.model.errors import StepFailed
from nucleus_gvisor.runtime import GVisorRuntime, _attendant, _child, _linux, interpreter, run
from nucleus_gvisor.runtime.steps import confine
from nucleus_gvisor.runtime.supervisor import Supervisor

IMAGE = os.path.realpath("/proc/self/exe")
TELL = "import sys, _child, _linux; print(_child.FAILED, _linux.CLONE_NEWNS, sys.argv[2:])"


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Each test has it found anew."""
    interpreter.forget()
    yield
    interpreter.forget()


@pytest.mark.parametrize("named", [sys.executable, "", None, "/no/such/python", "relative/python3", "/bin/true"])
def test_what_this_process_executes(monkeypatch: pytest.MonkeyPatch, named: str | None) -> None:
    """Whatever `sys.executable` says, the running interpreter is found, and runs our modules."""
    monkeypatch.setattr(sys, "executable", named)
    found = interpreter.find()
    assert found is not None and os.path.realpath(found) == IMAGE
    assert interpreter.run(TELL, "word").stdout == b"125 131072 ['word']\n"


def test_a_removed_interpreter(app: Path, base: Path) -> None:
    """An upgrade removes or replaces what runs: that runs on, and is started once more."""
    copy = base / "python3"
    shutil.copy(IMAGE, copy)
    program = (
        "import os, sys; from nucleus_gvisor.runtime import interpreter;"
        "os.unlink(sys.argv[1]); sys.executable = sys.argv[1];"
        "print(interpreter.find(), interpreter.run('print(6 * 7)').stdout)"
    )
    env = {"PYTHONPATH": os.fspath(app), "PYTHONHOME": sys.base_prefix}
    done = subprocess.run([copy, "-c", program, copy], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["/proc/self/exe", r"b'42\n'"], done


def packed(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Make this process look like a frozen one."""
    if how == "nuitka":
        monkeypatch.setitem(vars(sys.modules["__main__"]), "__compiled__", True)
    elif how == "compiled":
        monkeypatch.setattr(interpreter, "__compiled__", True, raising=False)
    else:
        monkeypatch.setattr(sys, how, True, raising=False)


@pytest.mark.parametrize("how", ["frozen", "_MEIPASS", "nuitka", "compiled"])
def test_a_frozen_program_is_never_started(base: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Not even to see whether it is an interpreter, and not even when it is called one."""
    packed(monkeypatch, how)
    itself, trace = base / "python3", base / "started"
    itself.write_text(f"#!/bin/sh\ntouch {trace}\n")
    itself.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(itself))
    monkeypatch.setattr(sys, "_base_executable", str(itself), raising=False)
    found = interpreter.find()
    assert found != str(itself) and not trace.exists()
    assert found is None or os.path.realpath(found) != IMAGE


def elsewhere(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """This process executes no interpreter, and these are all that there are."""
    monkeypatch.setattr(interpreter, "_own", lambda: None)
    monkeypatch.setattr(interpreter, "_others", lambda: iter(map(str, paths)))


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "text", ["exit 0", "exit 1", "echo hello", 'echo "$7" True', "cat /dev/zero | head -c 100000", f"exec {IMAGE} -V"]
)
def test_what_is_no_interpreter(base: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What does not run our modules is passed over for what does."""
    elsewhere(monkeypatch, script(base / "python3", text), Path(IMAGE))
    assert interpreter.find() == IMAGE


def test_one_that_hangs(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up."""
    monkeypatch.setattr(interpreter, "SECONDS", 1.0)
    elsewhere(monkeypatch, script(base / "python3", "exec sleep 600"))
    assert interpreter.find() is None


def test_proved_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer holds for the process."""
    counted = base / "count"
    elsewhere(monkeypatch, script(base / "python3", f'echo >>{counted}; exec {IMAGE} "$@"'))
    assert {interpreter.find() for _ in range(3)} == {str(base / "python3")}
    assert counted.read_text() == "\n"


@pytest.mark.parametrize(
    ("spoil", "path"),
    [
        (lambda home: (home / "python3").chmod(0o777), "python3"),
        (lambda home: home.chmod(0o777), "python3"),
        (lambda home: (home / "python3").rename(home / "uwsgi"), "uwsgi"),
        (lambda home: (home / "python3").unlink(), "python3"),
    ],
    ids=["its file", "its directory", "another name", "missing"],
)
def test_what_others_can_change(
    base: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object], path: str
) -> None:
    """What lies beside is judged, for it gets a launch's descriptors; so is its name."""
    home = base / "bin"
    home.mkdir(0o755)
    script(home / "python3", f'exec {IMAGE} "$@"')
    monkeypatch.setattr(interpreter, "_own", lambda: None)
    for name in ("base_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, name, "/no/such/prefix")
    monkeypatch.setattr(sys, "_base_executable", "", raising=False)
    monkeypatch.setattr(sys, "executable", str(home / "python3"))
    assert next(interpreter._others()) == str(home / "python3")
    monkeypatch.setattr(sys, "executable", str(home / path))
    spoil(home)
    assert str(home / path) not in list(interpreter._others())


def test_one_that_was_started_for_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts nothing in its turn: the chain ends with an error."""
    monkeypatch.setenv(interpreter.MARK, "1")
    with pytest.raises(StepFailed, match="would start itself again"):
        interpreter.find()


def test_the_mark_is_in_what_is_started() -> None:
    """And nothing else of the environment."""
    assert interpreter.run("import os; print(sorted(os.environ))").stdout in (
        f"['{interpreter.MARK}']\n".encode(),
        f"['LC_CTYPE', '{interpreter.MARK}']\n".encode(),  # PEP 538
    )


# ---- our modules ----


def without_files(monkeypatch: pytest.MonkeyPatch, *, source: bool) -> None:
    """Our modules as a packer keeps them: in an archive, with sources or without."""
    for module in (_child, _attendant, _linux):
        spec: Any = module.__spec__
        loader: Any = spec.loader
        name = module.__name__
        text = loader.get_source(name)
        code = loader.get_code(name)
        packer = SimpleNamespace(
            get_source=lambda _, text=text: text if source else None, get_code=lambda _, code=code: code
        )
        monkeypatch.setattr(module, "__spec__", SimpleNamespace(loader=packer))
        monkeypatch.setattr(module, "__file__", f"/no/such/archive/{name}.pyc")


@pytest.mark.parametrize("source", [True, False])
def test_modules_from_an_archive(monkeypatch: pytest.MonkeyPatch, source: bool) -> None:
    """What lies in a packer's archive reaches the interpreter through memory."""
    without_files(monkeypatch, source=source)
    assert interpreter._own() is None, "an interpreter that has our modules as files is the one that runs"
    elsewhere(monkeypatch, Path(IMAGE))
    assert interpreter.find() == IMAGE
    assert interpreter.run(TELL, "word").stdout == b"125 131072 ['word']\n"


def test_modules_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then no interpreter is any good."""
    without_files(monkeypatch, source=False)
    monkeypatch.setattr(_child, "__spec__", None)
    elsewhere(monkeypatch, Path(IMAGE))
    assert interpreter.find() is None


# ---- without one ----


def test_a_fork_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none the same program runs in a fork."""
    elsewhere(monkeypatch)
    done = interpreter.run(TELL, "word")
    assert (done.returncode, done.stdout) == (0, b"125 131072 ['word']\n")
    done = interpreter.run("raise OSError('no')")
    assert (done.returncode, done.stderr) == (1, b"OSError: no")


def test_a_fork_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended."""
    elsewhere(monkeypatch)
    monkeypatch.setattr(interpreter, "SECONDS", 1.0)
    with pytest.raises(subprocess.TimeoutExpired):
        interpreter.run("import time; time.sleep(600)")


def test_an_impostor_is_told(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not run our code ends the launch, and is not taken for a confinement that does not hold."""
    false = script(base / "python3", "exit 0")
    monkeypatch.setattr(interpreter, "find", lambda: str(false))
    plan: dict[str, Any] = {"stdio": [], "images": {}, "said": {}, "attendant": None}
    with pytest.raises(StepFailed, match="no child process") as caught:
        Supervisor.start(plan, fresh=True)
    assert "did not run our code" in str(caught.value.observed)


def test_canaries_without_the_usual_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter takes their place, never the frozen program; without one nothing can be proved."""
    assert confine.canaries()[0] == [b"/bin/true", b"-c", b":"]
    monkeypatch.setattr(confine, "CANARIES", (b"/no/such/program",))
    assert confine.canaries()[0][0] == os.fsencode(IMAGE)
    interpreter.forget()
    elsewhere(monkeypatch)
    with pytest.raises(StepFailed, match="no harmless host program"):
        confine.canaries()


@pytest.mark.parametrize("call", interpreter._CALLS)
def test_a_python_for_older_systems(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """cx_Freeze brings one that knows neither memfds nor pidfds: said at once, and by name."""
    module, name = call.split(".")
    monkeypatch.delattr(sys.modules[module], name)
    for launch in (GVisorRuntime, lambda: run(["true"])):
        with pytest.raises(StepFailed, match="lacks calls that a launch needs") as caught:
            launch()
        assert call in str(caught.value.observed) and caught.value.hint
