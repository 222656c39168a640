"""The programs in the guide to sandboxes print what it says."""

import os
import re

import pytest

from tests.conftest import Release
from tests.e2e.launching import Caller
from tests.support.places import ROOT

pytestmark = pytest.mark.real

GUIDE = (ROOT / "runtime/SANDBOX.md").read_text()
SECTIONS = re.findall(r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)", GUIDE)
EXAMPLES = [
    (title, source, printed)
    for title, body in SECTIONS
    for source, printed in re.findall(r"(?ms)^```python\n(.*?)^```\n\n```text\n(.*?)^```\n", body)
]


def test_each_section_has_its_examples() -> None:
    """None is left out by how it is written."""
    assert list(dict.fromkeys(title for title, _, _ in EXAMPLES)) == re.findall(r"(?m)^## (.+)$", GUIDE)
    assert len(EXAMPLES) == GUIDE.count("```python")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("source", "printed"), [(s, p) for _, s, p in EXAMPLES], ids=[t[:9] for t, _, _ in EXAMPLES])
def test_example(first: Caller, source: str, printed: str) -> None:
    """A whole program, with the runsc that is installed, or the newer where it names one; fewer submissions, in the
    same parts."""
    source = source.replace("SUBMISSIONS = 100", "SUBMISSIONS = 12")
    source = source.replace("/usr/local/bin/runsc", os.fspath(first.runsc))
    printed = printed.replace("75", "9").replace("25", "3")
    done = first.mode.run([first.mode.python, "-W", "error", "-c", source], timeout=250)
    assert (done.stdout, done.stderr) == (printed, "")


README = re.findall(r"(?ms)^```python\n(.*?)^```\n", (ROOT / "README.md").read_text())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("source", README, ids=range(len(README)))
def test_readme(first: Caller, release: Release, source: str) -> None:
    """What README shows runs with each release, the one that `make run` installs first of all."""
    folder = first.mode.base / "data"
    folder.mkdir()
    (folder / "input.txt").write_text("data\n")
    source = source.replace("/data:/data", f"{folder}:/data").replace(
        "GVisorRuntime()", "GVisorRuntime.with_path(RUNSC)"
    )
    # The examples look for the installed one: here each is given by name.
    given = (
        "import functools, sys\nfrom nucleus_gvisor import runtime as given\nRUNSC = sys.argv[1]\n"
        "given.run = functools.partial(given.run, runsc=RUNSC)\n"
        "given.Sandbox = functools.partial(given.Sandbox, runsc=RUNSC)\n"
    )
    words: list[str | os.PathLike[str]] = [first.mode.python, "-W", "error", "-c", given + source, release.path]
    done = first.mode.run(words, timeout=250)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith(("42\n", "42 "))
