"""What is printed arrives, or its loss is told in a line; what a guest or a file says cannot act on a terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nucleus_gvisor.model.errors import BadArgument
from nucleus_gvisor.runtime import _linux, audit, cli, errors
from nucleus_gvisor.runtime.cli import LOST, OURS
from tests.model.launches import launch, text_of
from tests.support.modes import Mode

EVIL = "/no\x1b[31m\u202e\x85\x9bprog\r\n"
QUOTED = "/no\\x1b[31m\\u202e\\x85\\x9bprog\\r\\n"


def record(base: Path) -> Path:
    path = base / "r.ndjson"
    path.write_bytes(text_of(launch(launch="a" * 32).records))
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["ps"], ["records", "list"], ["explain", "--", "true"], ["explain", "--json", "--", "true"],
        ["audit", "verify", "RECORD"], ["audit", "verify", "--json", "RECORD"], ["--help"], ["run", "--help"],
        ["run", "--json", "--runsc", "/nowhere/runsc", "--", "true"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_output_that_cannot_be_written(base: Path, words: list[str]) -> None:
    """A full disk below standard output: one line says so, with a code of its own; not for a reader that has gone."""
    argv = [
        sys.executable,
        "-m",
        "nucleus_gvisor.runtime.cli",
        *(w.replace("RECORD", str(record(base))) for w in words),
    ]
    env = {**os.environ, "NUCLEUS_GVISOR_ARTIFACT_BASE": os.fspath(base / "b"), "TERM": "dumb"}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, env=env, timeout=60)
        both = subprocess.run(argv, stdout=full, stderr=full, env=env, timeout=60)
    assert (done.returncode, both.returncode) == (LOST, LOST)
    lines = done.stderr.splitlines()
    assert len(lines) == (2 if "/nowhere/runsc" in words and len(lines) == 2 else 1), done.stderr
    assert "the output cannot be written: " in lines[-1] and "No space left on device" in lines[-1]
    reader, writer = os.pipe()
    os.close(reader)
    gone = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, env=env, timeout=60)
    os.close(writer)
    assert gone.returncode == 128 + 13 and "Traceback" not in gone.stderr and "Exception" not in gone.stderr


def test_names_cannot_act_on_a_terminal() -> None:
    """Of programs in errors, and of words in usage errors: control characters, C1 and bidi ones, line ends."""
    said = [
        str(errors.CannotExec((EVIL,), EVIL.encode())),
        str(errors.OutputLimit((EVIL,), 1, "", "")),
        str(errors.TimeoutExpired((EVIL,), 1)),
        str(errors.GuestFailed(1, (EVIL,), EVIL, EVIL)),
        str(errors.CopyFailed((EVIL,), "stdout", OSError(5, "I/O"), "", "")),
    ]
    assert all(text.isprintable() and QUOTED in text for text in said), said


def test_words_of_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """They may be somebody else's, a file's name say."""
    for words in (["ps", f"--{EVIL}"], ["run", "--memory", EVIL], ["run", "--platform", EVIL], [EVIL]):
        with pytest.raises(SystemExit):
            cli.main(words)
        error = capsys.readouterr().err.rstrip("\n").splitlines()[-1]
        assert error.isprintable() and "x1b[31m" in error


def test_a_deep_tree_of_directories_is_audited(base: Path) -> None:
    """Deeper than any call can nest; what no path is long enough for is told as not readable."""
    fd = os.open(base, os.O_RDONLY)
    for number in range(2500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        if number == 1200:
            file = os.open("r.ndjson", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd)
            os.write(file, text_of(launch(launch="b" * 32).records))
            os.close(file)
    os.close(fd)
    record(base)
    findings = list(audit.verify([base]))
    assert [finding.verdict for finding in findings] == ["unfinished", "unfinished", "rejected"]
    assert "name too long" in findings[-1].words
    subprocess.run(["rm", "-rf", base / "d"], check=True)


def test_a_deep_bundle_is_refused_in_a_line(mode: Mode) -> None:
    """Whether it is Python's own limit that it meets or ours."""
    for depth in (700, 100_000):
        config = '{"ociVersion":"1.0.0","root":{"path":"r"},"process":{"args":["a"],"cwd":"/"},"x":'
        (mode.base / "config.json").write_text(config + "[" * depth + "]" * depth + "}")
        os.chown(mode.base / "config.json", mode.account.pw_uid, mode.account.pw_gid)
        done = mode.cli("explain", "--bundle", mode.base)
        assert done.returncode == 1 and "config.json refused" in done.stdout and done.stderr == ""


def test_words_in_any_locale(mode: Mode) -> None:
    """UTF-8 is passed on as it is, and printed, where Python is told that all is ASCII or Latin-1."""
    for how in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "POSIX"}, {}):
        env = {**{k: v for k, v in mode.env().items() if k != "LANG"}, **how}
        done = mode.run(
            [mode.python, "-m", "nucleus_gvisor.runtime.cli", "explain", "--env", "Ä=ö", "--", "echo", "日本"],
            env=env, encoding="utf-8", text=None,
        )  # fmt: skip
        assert done.returncode in (0, 1) and done.stderr == "", done.stderr
        refused = mode.run(
            [mode.python, "-m", "nucleus_gvisor.runtime.cli", "run", "--id", "é", "--", "true"],
            env=env, encoding="utf-8", text=None,
        )  # fmt: skip
        assert refused.returncode == OURS and "observed: 'é'" in refused.stderr, refused.stderr


def test_variables_from_a_file(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the end of the line, as it stands; what is wrong is told with its line, and never with a value."""
    path = base / "env"
    monkeypatch.setenv("OURS", "ours")
    path.write_bytes(b'# none\n\n  # none either\nA=1 2 "x" \nOURS\nB==a=b\nC=\nD=\xff\xc3\xa9')
    found = cli._environment(["A=2"], [str(path)])
    assert found == {"A": "2", "OURS": "ours", "B": "=a=b", "C": "", "D": "\udcffé"}
    assert cli._environment([], []) == {}
    for text, line in ((b"A=1\n =secret\n", 2), (b"A =secret\n", 1), (b"\n\nA=sec\0ret\n", 3), (b"NOT_THERE\n", 1)):
        path.write_bytes(text)
        with pytest.raises(BadArgument, match=f"env, line {line}:") as caught:
            cli._environment([], [str(path)])
        assert "sec" not in str(caught.value)
    path.write_bytes(b"A=" + b"x" * cli.MAX_ENV_FILE)
    with pytest.raises(BadArgument, match="bytes at most"):
        cli._environment([], [str(path)])
    path.write_bytes(b"A=1\n")
    path.chmod(0o666)
    for bad in (path, Path("/dev/null"), base, base / "nothing"):
        with pytest.raises(BadArgument, match="--env-file"):
            cli._environment([], [str(bad)])


def test_variables_from_a_pipe() -> None:
    """As shells make one of a command's output."""
    reader, writer = os.pipe()
    os.write(writer, b"A=1\n")
    os.close(writer)
    found = cli._environment([], [f"/dev/fd/{reader}"])
    os.close(reader)
    assert found is not None and found["A"] == "1"


def test_structures_are_laid_out_as_the_kernel_has_them() -> None:
    """Packed, by both names: Python 3.14 deprecates the one without the other, and warnings may be errors."""
    import ctypes

    assert ctypes.sizeof(_linux._PathBeneath) == 12
    assert _linux._PathBeneath._layout_ == "ms"
    code = "import nucleus_gvisor.runtime, nucleus_gvisor.runtime._linux, nucleus_gvisor.runtime._child"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
