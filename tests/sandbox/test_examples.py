"""The programs in the guide to sandboxes print what it says."""

import os
import re

import pytest

from tests.e2e.launching import Caller
from tests.support.places import ROOT

pytestmark = pytest.mark.real

GUIDE = (ROOT / "runtime/SANDBOX.md").read_text()
EXAMPLES = re.findall(r"(?ms)^## ([^\n]+)\n.*?^```python\n(.*?)^```\n\n```text\n(.*?)^```\n", GUIDE)


def test_each_section_has_its_example() -> None:
    """None is left out by how it is written."""
    assert [title for title, _, _ in EXAMPLES] == re.findall(r"(?m)^## (.+)$", GUIDE)


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
