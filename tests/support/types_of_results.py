"""What type checkers are to know of results: `assert_type` fails where they know less. Checked, and never run."""

from subprocess import DEVNULL, PIPE, STDOUT
from typing import IO, assert_type

from nucleus_gvisor.runtime import AsyncSandbox, Completed, CompletedRun, GuestProcess, Sandbox, arun, run


def runs(words: list[str], text: bool) -> None:
    """Of `run`."""
    assert_type(run(words), CompletedRun[str])
    assert_type(run(words).stdout, str)
    assert_type(run(words, text=False, timeout=3, memory=1 << 20).stderr, bytes)
    assert_type(run(words, capture_output=False), CompletedRun[str | None])
    assert_type(run(words, stdout=DEVNULL, text=False).stdout, bytes | None)
    assert_type(run(words, stderr=STDOUT).stdout, str | None)
    assert_type(run(words, text=text), CompletedRun[str | None] | CompletedRun[bytes | None])
    out, err = run(words)
    assert_type(out, str)
    assert_type(err, str)


async def runs_async(words: list[str]) -> None:
    """Of `arun`."""
    assert_type(await arun(words), CompletedRun[str])
    assert_type((await arun(words, text=False)).stdout, bytes)
    assert_type((await arun(words, stdout=PIPE)).stdout, str | None)


def commands(box: Sandbox, text: bool) -> None:
    """Of a sandbox's commands."""
    assert_type(box.exec("ls", "-l"), Completed[str])
    assert_type(box.exec(["ls", "-l"], text=False), Completed[bytes])
    assert_type(box.exec("ls", text=text), Completed[str] | Completed[bytes])
    assert_type(box.popen(["cat"], stdin=PIPE), GuestProcess[bytes])
    with box.popen("cat", "-", stdin=PIPE, text=True) as process:
        assert_type(process, GuestProcess[str])
        assert_type(process.stdin, IO[str] | None)
        assert_type(process.communicate("text"), tuple[str | None, str | None])
    assert_type(box.read_file("/etc/passwd"), bytes)


async def commands_async(box: AsyncSandbox) -> None:
    """Of an asynchronous sandbox's."""
    assert_type(await box.exec("ls"), Completed[str])
    assert_type(await box.exec("ls", text=False), Completed[bytes])
    out, _ = await box.exec(["ls"])
    assert_type(out, str)


def values(done: Completed[str]) -> Completed[str | None]:
    """A result that is known better stands where one is wanted that is known less."""
    return done
