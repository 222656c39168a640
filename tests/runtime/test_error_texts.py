"""What an error tells its reader: what was seen, what was expected, and what to do, in the reader's own terms."""

import ast
import re

import pytest

from nucleus_gvisor.runtime.options import as_flags
from tests.support.modes import Mode
from tests.support.places import ROOT

INSIDE = ["unshare", "--user", "--map-root-user", "--mount", "--"]
# How a launch is asked for -> what it says; {base} is a private directory.
PLACES = {
    "a wrong HOME": ([], {"HOME": "/nonexistent"}, "/nonexistent"),
    "no HOME": ([], {"HOME": ""}, "neither XDG_RUNTIME_DIR"),
    "another's XDG_RUNTIME_DIR": ([], {"XDG_RUNTIME_DIR": "/run"}, "/run/nucleus-gvisor"),
    "a file for a base": ([], {"NUCLEUS_GVISOR_ARTIFACT_BASE": "/etc/passwd"}, "/etc/passwd"),
    "others' base": ([], {"NUCLEUS_GVISOR_ARTIFACT_BASE": "/etc"}, "owner uid 0"),
    "a relative path with ..": ([], {"NUCLEUS_GVISOR_ARTIFACT_BASE": "/run/../tmp"}, "/run/../tmp"),
    "a read-only place": (
        [*INSIDE, "sh", "-c", 'mount -t tmpfs -o ro,mode=755 none {base}; exec "$@"', "sh"],
        {"NUCLEUS_GVISOR_ARTIFACT_BASE": "{base}/below"},
        "Read-only file system",
    ),
    "no /proc": ([*INSIDE, "sh", "-c", 'mount -t tmpfs none /proc; exec "$@"', "sh"], {}, "/proc/self/uid_map"),
    "another's /proc": (["unshare", "--user", "--map-root-user", "--pid", "--fork", "--"], {}, "/proc/self/uid_map"),
}
WHOLE = re.compile(r"[^;]+; observed: [^;]+; expected: [^;]+; hint: .+")
LIBRARY = """
import sys
from nucleus_gvisor.runtime import run
from nucleus_gvisor.model.errors import LaunchError
try:
    run(["true"])
except LaunchError as error:
    print(error)
"""


@pytest.mark.parametrize("place", PLACES)
def test_every_text_is_whole(modes: dict[str, Mode], place: str) -> None:
    """Where a launch finds no place for itself, and no /proc: all four parts, by the library and the command line."""
    prefix, env, seen = PLACES[place]
    mode = modes["user"]
    words = [word.format(base=mode.base) for word in prefix]
    given = {k: v for k, v in mode.env().items() if k != "NUCLEUS_GVISOR_ARTIFACT_BASE"}
    given |= {name: value.format(base=mode.base) for name, value in env.items()}
    library = mode.run([*words, mode.python, "-c", LIBRARY], env=given).stdout.strip()
    flags = mode.run([*words, mode.python, "-m", "nucleus_gvisor.runtime.cli", "run", "--", "true"], env=given)
    assert flags.returncode == 125, flags
    for text in (library, flags.stderr.strip()):
        assert WHOLE.fullmatch(text), text
        assert seen in text, text
    assert "--" not in library.partition("hint: ")[2]
    assert flags.stderr.strip() == f"nucleus-gvisor: {as_flags(library)}"


def test_hints_of_the_library_name_no_flags() -> None:
    """A program has options, not flags; the command line has them put into its own words."""
    for path in [*(ROOT / "runtime").rglob("*.py"), *(ROOT / "model").glob("*.py")]:
        if path.stem in ("cli", "explain", "doctor", "shell", "rehearsal"):
            continue  # these speak to who types
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "hint":
                text = ast.unparse(node.value)
                assert not re.search(r"(?<!run )(?<!\w)--[a-z]", text) or "systemd-run" in text, f"{path}: {text}"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ('hint: stage="copy"', "hint: --stage copy"),
        ('artifact_base="DIR", or', "--artifact-base DIR, or"),
        ("leave runsc_rootless=True away", "leave --rootless away"),
        ('network="none" or network="host"', "--network none or --network host"),
        ("storage='stage' xstage=\"copy\" stage=copy", "storage='stage' xstage=\"copy\" stage=copy"),
    ],
)
def test_options_as_flags(text: str, flags: str) -> None:
    """What names an option with its value, and nothing else."""
    assert as_flags(text) == flags
