"""What an error tells its reader: what was seen, what was expected, and what to do, in the reader's own terms."""

import ast
import errno
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import nucleus_gvisor.model.errors
import nucleus_gvisor.runtime.errors
from nucleus_gvisor.model.errors import Error, GuardRefused, LaunchError, StepFailed, remedy
from nucleus_gvisor.runtime import cli
from nucleus_gvisor.runtime.errors import CannotExec, CopyFailed, RunscFailed, SandboxError
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


# What is typed -> what of it the error shows. {dir} is a private directory.
TYPED = {
    "no command": ("run", "nothing after the options"),
    "no such runsc": ("run --runsc {dir}/none -- true", "{dir}/none: absent"),
    "a directory for runsc": ("run --runsc {dir} -- true", "type 'd'"),
    "runsc below a file": ("run --runsc /etc/passwd/runsc -- true", "/etc/passwd/runsc"),
    "the root for runsc": ("run --runsc / -- true", "no name in it"),
    "no ELF": ("run --runsc {dir}/script -- true", "not an executable"),
    "not executable": ("run --runsc {dir}/text -- true", "{dir}/text"),
    "others' runsc": ("run --runsc {dir}/theirs -- true", "mode 0777"),
    "a FIFO for runsc": ("run --runsc {dir}/fifo -- true", "type 'p'"),
    "links without end": ("run --runsc {dir}/loop -- true", "too many links"),
    "a pin that is none": ("run --pin 12 -- true", "SHA-256"),
    "another pin": ("run --pin " + "0" * 64 + " -- true", "0" * 64),
    "an id that is none": ("run --id .. -- true", "'..'"),
    "a user by name": ("run --user nonesuch -- true", "nonesuch"),
    "a variable without a name": ("run --env =x -- true", "no name"),
    "a variable that is not set": ("run --env NOT_SET_AT_ALL -- true", "NOT_SET_AT_ALL"),
    "no such --env-file": ("run --env-file {dir}/none -- true", "No such file"),
    "others' --env-file": ("run --env-file {dir}/theirs -- true", "mode 0777"),
    "a wrong --env-file": ("run --env-file {dir}/words -- true", "no name"),
    "--disk alone": ("run --disk 1048576 -- true", "--writable=disk"),
    "a relative cwd": ("run --cwd tmp -- true", "tmp"),
    "no such mount": ("run --mount type=bind,source={dir}/none,target=/mnt -- true", "{dir}/none"),
    "no such rootfs": ("run --rootfs {dir}/none -- true", "{dir}/none"),
    "a file for a rootfs": ("run --rootfs {dir}/text -- true", "a file"),
    "no such bundle": ("run --bundle {dir}", "config.json"),
    "a bundle and a command": ("run --bundle {dir} -- true", "nothing beside"),
    "a bundle that is no JSON": ("run --bundle {dir}/broken", "config.json"),
    "a record in no directory": ("run --record {dir}/none/record -- true", "No such file"),
    "a record that is a directory": ("run --record {dir} -- true", "Is a directory"),
    "a record that is a device": ("run --record /dev/null -- true", "a regular file"),
    "contradictions": ("run --signal-scope required --enforcement off -- true", "off"),
    "a shell without a terminal": ("shell", "a pipe or a file"),
    "no such sandbox": ("kill {dir}", "no such sandbox"),
}


@pytest.fixture(scope="module")
def wrong() -> Iterator[Path]:
    """A directory with what a launch refuses."""
    base = Path("/run") / f"ngv-wrong-{os.getpid()}"
    (base / "broken").mkdir(0o755, parents=True)
    (base / "broken/config.json").write_text("{")
    for name, mode, text in (
        ("script", 0o755, "#!/bin/sh\n"),
        ("text", 0o644, "text"),
        ("theirs", 0o777, "A=1"),
        ("words", 0o600, " =x"),
    ):
        (base / name).write_text(text)
        (base / name).chmod(mode)
    os.mkfifo(base / "fifo")
    (base / "loop").symlink_to("loop")
    yield base
    shutil.rmtree(base)


@pytest.mark.parametrize("case", TYPED)
def test_what_is_typed_wrong(
    wrong: Path, case: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before anything runs, in one line that has all parts; each flag in it is one."""
    text, seen = TYPED[case]
    monkeypatch.setenv("NUCLEUS_GVISOR_ARTIFACT_BASE", str(wrong / "base"))
    code = cli.main(text.format(dir=wrong).split())
    told = capfd.readouterr().err.strip()
    assert code in (1, 125) and len(told.splitlines()) == 1, told
    assert re.fullmatch(r"nucleus-gvisor: .+; observed: .+; expected: .+; hint: .+", told), told
    assert seen.format(dir=wrong) in told


# ---- every place that makes an error ----

KINDS = {
    name: kind
    for module in (nucleus_gvisor.model.errors, nucleus_gvisor.runtime.errors)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Error) and kind.__module__ == module.__name__
}
# A file and a function -> what its error does not bring, and why.
WITHOUT: dict[tuple[str, str], tuple[set[str], str]] = {}


def made() -> list[tuple[str, str, ast.Call, type[Error]]]:
    """File, innermost function, call and class, of each place that makes an error."""
    found = []
    for path in [*sorted((ROOT / "runtime").rglob("*.py")), *sorted((ROOT / "model").glob("*.py"))]:
        tree = ast.parse(path.read_text())
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}  # namesakes that are no errors
        pending: list[tuple[ast.AST, str]] = [(tree, "")]
        while pending:
            node, function = pending.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                function = node.name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                found += (
                    [(str(path.relative_to(ROOT)), function, node, KINDS[name])] if name in KINDS.keys() - own else []
                )
            pending += [(child, function) for child in ast.iter_child_nodes(node)]
    return found


def test_every_place_brings_all_parts() -> None:
    """Each launch error is made with what was observed, what was expected, and a hint: its own, or its class's."""
    lacking, places = {}, [place for place in made() if issubclass(place[-1], LaunchError)]
    assert len(places) > 150
    for file, function, call, kind in places:
        assert issubclass(kind, LaunchError)
        given = {word.arg for word in call.keywords if ast.unparse(word.value) not in ("None", "''")}
        if kind.advice:
            given.add("hint")
        if missing := {"observed", "expected", "hint"} - given:
            lacking[file, function] = missing
    assert lacking == {place: missing for place, (missing, _) in WITHOUT.items()}


def test_every_error_of_a_sandbox_has_a_hint() -> None:
    """What would have been well and what to do about it are the class's, where the error brings none of its own."""
    for kind in KINDS.values():
        if issubclass(kind, SandboxError) and kind not in (SandboxError, CopyFailed):
            assert kind.expected and kind.hint, kind
    full = CopyFailed(("head",), "stdout", OSError(errno.ENOSPC, "No space left on device"), None, None)
    assert (full.observed, full.hint) == ("head: copying stdout failed: No space left on device", "make room there")
    assert RunscFailed("it does not answer").hint == RunscFailed.hint
    assert pickle.loads(pickle.dumps(RunscFailed("it does not answer", hint="wait"))).hint == "wait"
    assert CannotExec(("sh",), b"no such file").observed == "exec failed: sh was not started: no such file"


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_answer_of_a_system_call_has_a_remedy(number: int) -> None:
    """Never nothing."""
    assert remedy(OSError(number, "it failed"))


def test_a_part_with_nothing_behind_it_is_not_named() -> None:
    """An empty text is none; zero is one."""
    assert str(StepFailed("it failed", observed="", expected="", hint="")) == "it failed"
    assert str(StepFailed("it failed", observed=0, expected=1)) == "it failed; observed: 0; expected: 1"
    assert GuardRefused("Exec", "Staged", "source").hint == GuardRefused.advice


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
