"""What coverage leaves out: each place says why, and what ends in execve or _exit is not among it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.app import OURS
from tests.support.places import ROOT

PRAGMA = re.compile(r"#\s*pragma:?\s*no\s*(?:cover|branch)", re.IGNORECASE)  # as coverage.py recognises it
REASONED = re.compile(r"# pragma: no (?:cover|branch) - \w.{10,}")


def unreasoned(source: str) -> Iterator[int]:
    """Lines that are left out of the measurement without a reason beside it."""
    for number, line in enumerate(source.splitlines(), 1):
        if PRAGMA.search(line) and not REASONED.search(line):
            yield number


def test_what_is_left_out_says_why() -> None:
    """Every `pragma: no cover` and `no branch` is followed by its reason."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in OURS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in unreasoned(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    ["x()  # pragma: no cover", "x()  #pragma:nocover", "if x:  # pragma: no branch -", "# PRAGMA: NO COVER - why"],
)
def test_a_missing_reason_is_found(line: str) -> None:
    """Without a reason, or with a word for one, a place is found in whatever spelling coverage takes."""
    assert list(unreasoned(f"first\n{line}\n")) == [2]


def test_a_reason_is_a_reason() -> None:
    """The check is content with what it asks for."""
    assert list(unreasoned("x()  # pragma: no cover - only kernels before 5.9 answer so\n")) == []


LAUNCHER = """
import os, sys
sys.path.insert(0, {support!r})
import measured
measured.start({folder!r}, [{root!r}])
sys.path.insert(0, {root!r})
import program
"""
PROGRAM = """
import os

def child(how):
    os.fchdir(os.open("/", os.O_RDONLY))
    os.closerange(3, 256)
    if how == "exec":
        os.execve("/bin/true", ["true"], {})
    try:
        os.execve("/nonexistent", ["x"], {})
    except OSError:
        after = 1
    os._exit(0)

for how in ("exec", "exit"):
    pid = os.fork()
    if pid == 0:
        child(how)
    os.waitpid(pid, 0)
os.execve("/bin/true", ["true"], {})
"""


def test_what_ends_in_execve_is_measured(base: Path) -> None:
    """Children that end in execve or _exit with everything closed, and a process that is replaced, are all measured."""
    coverage = pytest.importorskip("coverage")
    root, folder = base / "root", base / "data"
    for path in (root, folder):
        path.mkdir()
    (root / "program.py").write_text(PROGRAM)
    program = LAUNCHER.format(support=str(ROOT / "tests/support"), folder=str(folder), root=str(root))
    subprocess.run([sys.executable, "-c", program], check=True, env={"PATH": os.defpath}, timeout=60)
    collect = f"import sys; sys.path.insert(0, {str(ROOT / 'tests/support')!r}); import measured, pathlib;"
    collect += f"measured.collect(pathlib.Path({str(folder)!r}), pathlib.Path({str(base / '.coverage')!r}))"
    subprocess.run([sys.executable, "-c", collect], check=True, timeout=60)
    [file] = base.glob(".coverage.*")
    data = coverage.CoverageData(os.fspath(file))
    data.read()
    lines = set(data.lines(os.fspath(root / "program.py")))
    code = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.strip()}
    assert lines == code
    assert list(folder.iterdir()) == []


def test_pytest_cov_measures_from_the_first_line(base: Path) -> None:
    """No plugin of ours imports what is to be measured before pytest-cov can: lines that run at import count."""
    environment = {**os.environ, "COVERAGE_FILE": os.fspath(base / "data")}
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--cov", "--cov-report="]
    done = subprocess.run(
        [*argv, "tests/model/test_facts.py"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout
    coverage = pytest.importorskip("coverage")
    data = coverage.CoverageData(os.fspath(base / "data"))
    data.read()
    for name in ("__init__", "facts", "states", "machine"):
        source = (ROOT / f"model/{name}.py").read_text().splitlines()
        imports = {number for number, line in enumerate(source, 1) if line.startswith(("from ", "import ", "class "))}
        assert imports <= set(data.lines(os.fspath(ROOT / f"model/{name}.py"))), name
