"""Files that a guest's streams are copied from and to: by our own descriptors, and what cannot be copied is told."""

import asyncio
import errno
import fcntl
import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from nucleus_gvisor.runtime import AsyncSandbox, CopyFailed, Sandbox, arun, run
from nucleus_gvisor.runtime.capture import PIPE, Pipes
from tests.sandbox.conftest import Options

SPEAKS = ["sh", "-c", "read line; echo from the guest"]


def refuses_to_grow() -> IO[bytes]:
    """A regular file that takes no more: it is sealed, and write(2) fails with EPERM."""
    file = open(os.memfd_create("sealed", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC), "w+b", buffering=0)  # noqa: SIM115
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return file


def test_a_file_that_the_caller_has_closed(box: Sandbox, tmp_path: Path) -> None:
    """The idiom of subprocess: the number goes to another file, which gets nothing; the file has it all."""
    log, precious = tmp_path / "log", tmp_path / "precious"
    with log.open("w") as file:
        number = file.fileno()
        process = box.popen(SPEAKS, stdin=PIPE, stdout=file)
    assert process.stdin is not None
    with precious.open("w") as file:
        assert file.fileno() == number
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.wait() == 0
    assert (log.read_text(), precious.read_text()) == ("from the guest\n", "")


def test_what_takes_the_number_is_not_read(box: Sandbox, tmp_path: Path) -> None:
    """Input that is more than a pipe holds goes on to come from the file that was given."""
    (tmp_path / "secret").write_text("of the host\n" * 10)
    (tmp_path / "big").write_bytes(b"x" * (1 << 20))
    with (tmp_path / "big").open("rb") as file:
        number = file.fileno()
        process = box.popen(["sh", "-c", "sleep 0.5; cat"], stdin=file, stdout=PIPE)
    with (tmp_path / "secret").open("rb") as file:
        assert file.fileno() == number
        out, _ = process.communicate()
    assert out == b"x" * (1 << 20)


def test_on_asyncio(options: Options, tmp_path: Path) -> None:
    """While a call waits, another task may close the file."""

    async def go() -> int:
        async with AsyncSandbox(**options) as box:
            with (tmp_path / "log").open("w") as file:
                process = await box.popen(SPEAKS, stdin=PIPE, stdout=file)
            with (tmp_path / "precious").open("w"):
                assert process.stdin is not None
                await process.stdin.write(b"go\n")
                process.stdin.close()
                code = await process.wait()
        reader, writer = os.pipe()
        with (tmp_path / "run").open("w") as file:
            task = asyncio.create_task(arun(SPEAKS, stdin=reader, stdout=file, **options))
            await asyncio.sleep(0)  # it has begun
        os.close(reader)
        os.write(writer, b"go\n")
        os.close(writer)
        with (tmp_path / "precious").open("a"):
            return code + (await task).returncode

    assert asyncio.run(go()) == 0
    texts = [(tmp_path / name).read_text() for name in ("log", "run", "precious")]
    assert texts == ["from the guest\n", "from the guest\n", ""]


def test_streams_are_duplicates(tmp_path: Path) -> None:
    """Of whatever kind, close-on-exec, never below 3; and none is left open."""
    before = os.listdir("/proc/self/fd")
    with (tmp_path / "file").open("w") as file:
        pipes = Pipes.redirected(None, None, file, 2, False)
        given = [*pipes.guest, *pipes.copies.values()]
        assert not {0, 1, 2, file.fileno()} & set(given)
        assert not any(os.get_inheritable(fd) for fd in given)
        pipes.close()
    assert os.listdir("/proc/self/fd") == before


def call_run(options: Options, file: Any, **more: Any) -> None:
    run(["head", "-c", "100000", "/dev/zero"], stdout=file, **more, **options)


def call_arun(options: Options, file: Any, **more: Any) -> None:
    asyncio.run(arun(["head", "-c", "100000", "/dev/zero"], stdout=file, **more, **options))


def call_popen(options: Options, file: Any, **more: Any) -> None:
    with Sandbox(**options) as box:
        process = box.popen(["head", "-c", "100000", "/dev/zero"], stdout=file, **more)
        for _ in range(2):
            with pytest.raises(CopyFailed):
                process.wait()
        assert process.returncode is not None
        with pytest.raises(CopyFailed):
            process.poll()
        process.kill()
        process.wait()


def call_communicate(options: Options, file: Any, **more: Any) -> None:
    with Sandbox(**options) as box:
        box.popen(["head", "-c", "100000", "/dev/zero"], stdout=file, **more).communicate()


def call_async(options: Options, file: Any, **more: Any) -> None:
    async def go(method: str) -> None:
        async with AsyncSandbox(**options) as box:
            process = await box.popen(["head", "-c", "100000", "/dev/zero"], stdout=file, **more)
            await getattr(process, method)()

    with pytest.raises(CopyFailed):
        asyncio.run(go("communicate"))
    asyncio.run(go("wait"))


CALLS = [call_run, call_arun, call_popen, call_communicate, call_async]


@pytest.mark.parametrize("call", CALLS)
def test_what_cannot_be_written(options: Options, call: Callable[..., None]) -> None:
    """It is an error of the process, for whoever waits for it."""
    with refuses_to_grow() as file, pytest.raises(CopyFailed) as caught:
        call(options, file)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.stream, error.errno) == ("stdout", errno.EPERM)
    assert str(error) == "head: copying stdout failed: Operation not permitted"
    assert isinstance(error.__cause__, PermissionError)


@pytest.mark.parametrize("call", CALLS[:2])
def test_a_file_that_cannot_be_read(options: Options, tmp_path: Path, call: Callable[..., None]) -> None:
    """Input from a file that is open for writing alone."""
    with (tmp_path / "file").open("wb") as file, pytest.raises(CopyFailed, match="stdin") as caught:
        call(options, None, stdin=file)
    assert caught.value.errno == errno.EBADF


FULL = """
import errno, sys
from nucleus_gvisor.runtime import CopyFailed, Sandbox, run
own = {"runsc": sys.argv[1], "pin": sys.argv[2], "runtime_dir": sys.argv[3]}
with open(sys.argv[4] + "/log", "wb") as log:
    try: run(["head", "-c", "3000000", "/dev/zero"], stdout=log, **own)
    except CopyFailed as error: print(error.stream, errno.errorcode[error.errno])
    with Sandbox(**own) as box:
        process = box.popen(["head", "-c", "3000000", "/dev/zero"], stderr=-3, stdout=log)
        try: process.wait()
        except CopyFailed as error: print(error.stream, errno.errorcode[error.errno], process.returncode is None)
        print(box.exec("echo", "goes on").stdout.strip())
"""


def test_a_full_file_system(options: Options, base: Path, tmp_path: Path) -> None:
    """The guest's program is cut off, as from a reader that has gone; its sandbox goes on."""
    pin = hashlib.sha256(Path(options["runsc"]).read_bytes()).hexdigest()
    become = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = 'mount -t tmpfs -o size=64k none "$1" && shift && exec "$@"'
    argv: list[str | Path] = ["unshare", *become, "--mount", "sh", "-c", script, "sh", tmp_path]
    done = subprocess.run(
        [*argv, sys.executable, "-c", FULL, options["runsc"], pin, base, tmp_path], capture_output=True, text=True
    )
    assert done.stdout == "stdout ENOSPC\nstdout ENOSPC False\ngoes on\n", done.stderr


def test_to_communicate_after_the_end(options: Options) -> None:
    """What a command has written is there when its end was waited for before."""

    async def go() -> tuple[bytes | None, bytes | None]:
        async with AsyncSandbox(**options) as box:
            process = await box.popen(["echo", "word"], stdout=PIPE)
            await process.wait()
            return await process.communicate()

    with Sandbox(**options) as box:
        process = box.popen(["echo", "word"], stdin=PIPE, stdout=PIPE)
        process.wait()
        assert process.communicate(b"nobody reads") == (b"word\n", None)
    assert asyncio.run(go()) == (b"word\n", None)
