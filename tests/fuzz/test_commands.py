"""The command line under any arguments: an exit code and one line, and never a traceback."""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nucleus_gvisor.runtime import cli
from tests.fuzz.budget import budget

odd = st.text(max_size=12) | st.sampled_from(
    [
        "",
        "-",
        "--",
        "--help",
        "/",
        "..",
        "\0",
        "a\0b",
        "\udcff",
        "\n",
        "nan",
        "inf",
        "-1",
        "1e400",
        "9" * 5000,
        "\u0660",
        "a:b:c",
    ]
)
paths = odd | st.sampled_from(
    ["/nonexistent", "/dev/null", "/dev/full", "/proc/self/mem", "/etc", "relative", "/bin/true"]
)
choices = {
    "--platform": ["auto", "systrap", "x"], "--network": ["none", "host", "x"],
    "--confinement": ["mount-locked", "landlock"],
    "--enforcement": ["required", "off", "x"], "--stage": ["auto", "copy", "store", "x"],
}  # fmt: skip
VALUED: dict[str, st.SearchStrategy[str]] = {
    **{name: st.sampled_from(values) for name, values in choices.items()},
    **dict.fromkeys(["--id", "--pin", "--mount", "--env", "--cwd", "--hostname", "--user", "--timeout"], odd),
    **dict.fromkeys(["--bundle", "--rootfs", "--artifact-base"], paths),
}
BARE = ["--writable", "--rootless", "--ignore-cgroups", "--allow-hooks", "--json"]
launch_flags = st.one_of(
    st.sampled_from(BARE).map(lambda flag: [flag]),
    st.sampled_from(sorted(VALUED)).flatmap(lambda flag: VALUED[flag].map(lambda value: [flag, value])),
)
launches = st.tuples(st.lists(launch_flags, max_size=4), st.lists(odd, max_size=3)).map(
    lambda parts: [word for flag in parts[0] for word in flag] + (["--", *parts[1]] if parts[1] else [])
)


def told(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `nucleus-gvisor ARGUMENTS`, in this process."""
    # As a process has them: strict UTF-8 out, and errors that always get through.
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(arguments)
        except SystemExit as leaving:  # argparse: usage
            code = leaving.code if isinstance(leaving.code, int) else 1
        out.flush()
        err.flush()
    return code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def judge(code: int, output: str, errors: str) -> None:
    """Usage, or one line and 125, or an answer without a complaint."""
    assert "Traceback" not in errors
    if code == 2:
        assert errors.startswith("usage: ")
    elif code == cli.OURS:
        assert errors.startswith("nucleus-gvisor: ") and errors.count("\n") == 1 and errors.endswith("\n")
    else:
        assert errors == "" and output


@pytest.fixture
def quiet(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the test machine's own is touched."""
    monkeypatch.setenv("NUCLEUS_GVISOR_ARTIFACT_BASE", os.fspath(base / "artifacts"))
    monkeypatch.chdir(base)
    return base


@given(arguments=launches)
@example(arguments=["--user", "9" * 5000, "--", "true"])
@example(arguments=["--user", "\u0660", "--", "true"])
@example(arguments=["--timeout", "nan", "--", "true"])
@example(arguments=["--timeout", "1e300", "--", "true"])
@budget(120)
def test_run(quiet: Path, arguments: list[str]) -> None:
    """Without a runsc, `run` ends in usage or in one line; with --json in one object besides. Nothing is made."""
    code, output, errors = told(["run", "--runsc", "/nonexistent/runsc", *arguments])
    judge(code, output, errors)
    assert code in (2, cli.OURS) or "--help" in arguments
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if code == cli.OURS and "--json" in words and output:
        assert json.loads(output)["exit"] == cli.OURS


@given(arguments=launches, runsc=st.sampled_from(["/bin/true", "/nonexistent", "/dev/null", "/usr/bin/runsc"]) | paths)
@example(arguments=["--", ""], runsc="--")
@budget(60)
def test_explain(quiet: Path, arguments: list[str], runsc: str) -> None:
    """`explain` tells a plan or a refusal of anything, makes nothing, and its JSON is one object on one line."""
    code, output, errors = told(["explain", f"--runsc={runsc}", *arguments])
    judge(code, output, errors)
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if code in (0, 1) and "--json" in words and "usage:" not in output:
        document: dict[str, Any] = json.loads(output)
        assert output.count("\n") == 1 and document["refused"] == (code == 1)
        assert document["refused"] == any(operation["refused"] for operation in document["operations"])
    assert list(quiet.iterdir()) == []


@given(verb=odd, rest=st.lists(odd | st.sampled_from(["verify", "trace", "--json", "--pin"]), max_size=3))
@budget(60)
def test_other_words(quiet: Path, verb: str, rest: list[str]) -> None:
    """What is no command is usage."""
    code, _, errors = told([verb, *rest])
    assert "Traceback" not in errors and (code == 2 or "--help" in (verb, *rest) or verb in ("doctor", "audit"))


@given(runsc=paths, base=paths, pin=odd)
@example(runsc="/bin/true", base="/nonexistent", pin="a" * 64)
@budget(5)
def test_doctor(quiet: Path, runsc: str, base: str, pin: str) -> None:
    """Whatever it is to judge, `doctor --json` prints one object, or one line says why not; nothing is made."""
    code, output, errors = told(["doctor", "--json", f"--runsc={runsc}", f"--artifact-base={base}", f"--pin={pin}"])
    judge(code, output, errors)
    if code in (0, 1):
        assert isinstance(json.loads(output), dict) and output.count("\n") == 1
    assert list(quiet.iterdir()) == []
