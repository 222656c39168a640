"""A copy of the packages that every user of the machine can import.

A checkout may lie below a directory that others cannot enter, and its `.venv` with it. So tests that run the
launcher as another user use this copy: ours, and the pure-Python packages that it imports.
"""

import compileall
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.setup.provision import test_base
from tests.support import records
from tests.support.places import ROOT, remove

OURS = ("model", "runtime", "spec")
DEPENDENCIES = ("transitions", "six", "rich", "markdown_it", "mdurl", "pygments")
MEASURED = "NUCLEUS_GVISOR_TESTS_MEASURED"
"""The variable that makes a child measure itself."""
DATA = "coverage-data"

# A child that another user runs cannot use the checkout's configuration or write beside it. It measures the copy
# and writes into a folder of the copy (see measured.py); at the end that is collected where `coverage combine` looks,
# and [tool.coverage.paths] of pyproject.toml gives the copy's files the checkout's names.
# PYTHONPATH directories have no working .pth files; sitecustomize is what Python imports from there by itself.
SITECUSTOMIZE = f"""\
import os

if {MEASURED!r} in os.environ:
    import measured

    app = os.path.dirname(__file__)
    measured.start(app + "/{DATA}", [app + "/nucleus_gvisor"])
"""


def copy_package(name: str, into: Path) -> None:
    """Copy an importable top-level package or module, its valid byte code with it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} is not installed here"
    origin = Path(spec.origin)
    if origin.name == "__init__.py":
        shutil.copytree(origin.parent, into / name)
    else:
        shutil.copy2(origin, into)


def copy_dependencies(into: Path) -> None:
    """Copy what our packages import at run time."""
    for name in DEPENDENCIES:
        copy_package(name, into)


def coverage_data() -> Path | None:
    """The data file of the coverage measurement that this process is under, if it is under one."""
    if "coverage" not in sys.modules:
        return None
    import coverage

    current = coverage.Coverage.current()
    return None if current is None else Path(os.path.abspath(current.config.data_file))


def make_readable(tree: Path) -> None:
    """Others may read and enter, only the owner may write."""
    for folder, _, names in os.walk(tree):
        os.chmod(folder, 0o755)
        for name in names:
            path = Path(folder, name)
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


@contextmanager
def installed_app() -> Iterator[Path]:
    """The directory to name in PYTHONPATH; removed afterwards."""
    test_base().mkdir(parents=True, exist_ok=True)
    app = Path(tempfile.mkdtemp(prefix="app-", dir=test_base()))
    measured = coverage_data()
    try:
        for name in OURS:
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(ROOT / name, app / "nucleus_gvisor" / name, ignore=ignored)
        copy_dependencies(app)
        if measured is not None:
            copy_package("coverage", app)
            shutil.copy2(Path(__file__).with_name("measured.py"), app)
            (app / "sitecustomize.py").write_text(SITECUSTOMIZE)
        records.equip(app, app / DATA)
        compileall.compile_dir(app / "nucleus_gvisor", quiet=2)
        make_readable(app)
        (app / DATA).mkdir()
        (app / DATA).chmod(0o1777)  # each user writes its own files; no launcher path lies in here
        yield app
        if measured is not None:
            from tests.support.measured import collect

            collect(app / DATA, measured)
    finally:
        remove(app)


@contextmanager
def measured_children() -> Iterator[None]:
    """Under coverage, what this process's own children run before they end in execve or _exit is measured as well."""
    data = coverage_data()
    if data is None:
        yield
        return
    from tests.support import measured

    test_base().mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="app-", dir=test_base()))
    measured.follow(folder, [ROOT / name for name in OURS])
    try:
        yield
    finally:
        measured.collect(folder, data)
        remove(folder)
