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
from tests.support.places import ROOT, remove

OURS = ("model", "runtime", "spec")
DEPENDENCIES = ("transitions", "six", "rich", "markdown_it", "mdurl", "pygments")
MEASURED = "COVERAGE_PROCESS_START"
"""The variable that makes a child measure itself, by the configuration it names."""
DATA = "coverage-data"

# A child that another user runs cannot use the checkout's configuration or write beside it. It measures the copy
# and writes into a folder of the copy; at the end the files are moved to where `coverage combine` looks, and
# [tool.coverage.paths] of pyproject.toml gives the copy's files the checkout's names.
COVERAGE_CONFIG = """\
[run]
branch = true
parallel = true
data_file = {data}/.coverage
source_dirs =
    {app}/nucleus_gvisor/model
    {app}/nucleus_gvisor/runtime
    {app}/nucleus_gvisor/spec
"""
# PYTHONPATH directories have no working .pth files; sitecustomize is what Python imports from there by itself.
SITECUSTOMIZE = f"""\
import os

if {MEASURED!r} in os.environ:
    import coverage

    coverage.process_startup()
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
            (app / "sitecustomize.py").write_text(SITECUSTOMIZE)
            (app / "coveragerc").write_text(COVERAGE_CONFIG.format(app=app, data=app / DATA))
        compileall.compile_dir(app / "nucleus_gvisor", quiet=2)
        make_readable(app)
        (app / DATA).mkdir()
        (app / DATA).chmod(0o1777)  # each user writes its own files; no launcher path lies in here
        yield app
        if measured is not None:
            for path in (app / DATA).glob(".coverage.*"):
                shutil.move(path, measured.with_name(measured.name + path.name.removeprefix(".coverage")))
    finally:
        remove(app)
