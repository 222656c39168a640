"""What type checkers make of the public packages, and of the programs in the guides."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

GUIDES = ("README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/*.md")))
BLOCKS = [
    (f"{guide.replace('/', '_').removesuffix('.md').lower()}_{number}", source)
    for guide in GUIDES
    for number, source in enumerate(re.findall(r"(?ms)^```python\n(.*?)^```\n", (ROOT / guide).read_text()))
]
TYPES = Path(__file__).parent / "support/types_of_results.py"
"""What the overloads promise, in `assert_type`."""


def checked(*command: str, folder: Path) -> str:
    """What a checker says; nothing when it accepts all. It sees the packages as an install would show them."""
    packages = os.fspath(ROOT / ".venv/typing")
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "MYPYPATH": packages, "PYTHONPATH": packages},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr if done.returncode else ""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guides' programs, and ours, each a file."""
    folder = tmp_path_factory.mktemp("programs")
    for name, source in BLOCKS:
        (folder / f"{name}.py").write_text(source)
    (folder / TYPES.name).write_text(TYPES.read_text())
    return folder


def test_guides_have_programs() -> None:
    """The pattern finds what there is."""
    assert {"readme_0", "runtime_sandbox_0"} <= {name for name, _ in BLOCKS}


def test_programs_pass_mypy_strict(programs: Path) -> None:
    """Each by itself; the cache is the checkout's own, which has the packages already."""
    cache = os.fspath(ROOT / ".mypy_cache/programs")
    command = (sys.executable, "-m", "mypy", "--strict", "--explicit-package-bases", "--cache-dir", cache)
    assert checked(*command, "--python-version", "3.11", *sorted(os.listdir(programs)), folder=programs) == ""


def test_programs_pass_pyright(programs: Path) -> None:
    """The other checker, with its own defaults."""
    command = (sys.executable, "-m", "pyright", "--pythonpath", sys.executable)
    assert checked(*command, *sorted(os.listdir(programs)), folder=programs) == ""
