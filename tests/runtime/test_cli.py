"""The command line by itself: who reads it, who interrupts it, and what it says when it cannot go on."""

import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import cli
from tests.support.modes import Mode

F_SETPIPE_SZ = 1031  # linux/fcntl.h


@pytest.mark.parametrize("verb", [["explain", "--", "true"], ["ps"], ["ps", "--json"], ["doctor"]], ids=" ".join)
def test_a_reader_that_has_gone(modes: dict[str, Mode], verb: list[str]) -> None:
    """It ends as SIGPIPE would end it, without a word; where there was nothing to print, nobody was missed."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = modes["user"].cli(*verb, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0 if verb == ["ps", "--json"] else 128 + signal.SIGPIPE, "")


def test_an_interruption(modes: dict[str, Mode]) -> None:
    """Ctrl-C ends it, with the code that a shell gives for it and without a traceback."""
    mode = modes["user"]
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
    command = [mode.python, "-m", "nucleus_gvisor.runtime.cli", "explain", "--", "true"]
    with mode.popen(command, stdout=writer) as process:
        os.close(writer)
        deadline = time.monotonic() + 60
        # It prints more than the pipe takes, and nobody reads: then it waits in write(2), pipe(7).
        while "pipe_write" not in Path(f"/proc/{process.pid}/wchan").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        while os.read(reader, 1 << 16):
            pass
        os.close(reader)
        assert process.stderr is not None
        assert (process.wait(30), process.stderr.read()) == (128 + signal.SIGINT, "")


@pytest.mark.parametrize(
    ("verb", "code", "words"), [("run", 125, "a relative path needs a current directory"), ("explain", 1, "BadPath")]
)
def test_a_working_directory_that_is_gone(
    base: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], verb: str, code: int, words: str
) -> None:
    """A relative runsc needs a directory; without one it is refused, not traced back."""
    (base / "gone").mkdir()
    monkeypatch.chdir(base / "gone")
    (base / "gone").rmdir()
    assert cli.main([verb, "--artifact-base", os.fspath(base), "--runsc", "x", "--", "true"]) == code
    out, err = capfd.readouterr()
    assert words in (err if verb == "run" else out)
    assert list(base.iterdir()) == []


def test_spec_says_what_it_cannot_read(capfd: pytest.CaptureFixture[str]) -> None:
    """A file that is not there is one line, and no verdict."""
    assert cli.main(["spec", "trace", "/nowhere/record.ndjson"]) == cli.OURS
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("nucleus-gvisor: spec trace: ") and "/nowhere" in err
