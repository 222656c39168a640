"""Files in and out: a guest that has put a FIFO there makes nobody wait, and every copy ends in time."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.runtime import AsyncSandbox, OutputLimit, Sandbox, TimeoutExpired
from tests.sandbox.conftest import MakeSandbox, Options

Call = Callable[[Sandbox, str, Path], Any]
CALLS: dict[str, Call] = {
    "read_file": lambda box, path, there: box.read_file(path),
    "write_file": lambda box, path, there: box.write_file(path, "data"),
    "put": lambda box, path, there: box.put(there / "source", path),
    "get": lambda box, path, there: box.get(path, there / "target"),
}
SPECIAL = ["mkfifo /tmp/x", "ln -s /dev/null /tmp/x", "python3 -c 'import socket; socket.socket(1).bind(\"/tmp/x\")'"]


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A directory of the host, with something to be copied."""
    (tmp_path / "source").write_bytes(b"source")
    return tmp_path


def is_closed(there: Path) -> bool:
    """Nothing of a copy that failed is left."""
    return [path.name for path in there.iterdir()] == ["source"]


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_regular_file(box: Sandbox, there: Path, name: str) -> None:
    """A FIFO, a device, a socket: refused at once; a link to a regular file is followed."""
    for make in SPECIAL:
        box.exec("sh", "-c", f"rm -f /tmp/x; {make}")
        with pytest.raises(shutil.SpecialFileError, match=r"no regular file.*'/tmp/x'"):
            CALLS[name](box, "/tmp/x", there)
    assert is_closed(there)
    box.exec("sh", "-c", "rm /tmp/x; echo there >/tmp/y; ln -s y /tmp/x")
    CALLS[name](box, "/tmp/x", there)


@pytest.mark.parametrize("name", ["read_file", "write_file", "put"])
def test_a_directory(box: Sandbox, there: Path, name: str) -> None:
    """It is called one where a file is wanted."""
    with pytest.raises(IsADirectoryError, match="/tmp"):
        CALLS[name](box, "/tmp", there)
    assert is_closed(there)


@pytest.mark.parametrize(
    "call",
    [
        lambda box, there, **how: box.read_file("/tmp/fifo", **how),
        lambda box, there, **how: box.write_file("/tmp/fifo", "data", **how),
        lambda box, there, **how: box.put(there / "source", "/tmp/fifo", **how),
        lambda box, there, **how: box.get("/tmp/fifo", there / "target", **how),
    ],
    ids=list(CALLS),
)
def test_one_that_is_asked_for(make: MakeSandbox, there: Path, call: Any, options: Options) -> None:
    """It is waited for, as long as there is time: sync, and on asyncio; the sandbox goes on."""
    box = make()
    box.exec("mkfifo", "/tmp/fifo")
    with pytest.raises(TimeoutExpired, match=r"timed out after 0\.5 seconds"):
        call(box, there, timeout=0.5, special=True)

    async def go() -> None:
        async with AsyncSandbox(**options) as other:
            await other.exec("mkfifo", "/tmp/fifo")
            with pytest.raises(TimeoutExpired):
                await call(other, there, timeout=0.5, special=True)
            with pytest.raises(shutil.SpecialFileError):
                await call(other, there)
            task = asyncio.create_task(call(other, there, special=True))
            while len(await other.ps()) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await other.exec("echo", "on")).stdout == "on\n"

    asyncio.run(go())
    assert is_closed(there)
    assert box.exec("echo", "on").stdout == "on\n"


def test_a_fifo_with_another_end(box: Sandbox) -> None:
    """What somebody in the guest writes there is read, and the other way round."""
    box.exec("mkfifo", "/tmp/fifo")
    with box.popen(["sh", "-c", "echo word >/tmp/fifo"]):
        assert box.read_file("/tmp/fifo", special=True, timeout=600) == b"word\n"
    with box.popen(["sh", "-c", "cat /tmp/fifo >/tmp/copy"]):
        box.write_file("/tmp/fifo", "answer", special=True, timeout=600)
    assert box.read_file("/tmp/copy") == b"answer"
    box.write_file("/dev/null", "nothing", special=True)
    assert box.read_file("/dev/null", special=True) == b""


def test_the_hosts_own_files(box: Sandbox, there: Path) -> None:
    """A FIFO of the host's is not waited for."""
    os.mkfifo(there / "fifo")
    with pytest.raises(shutil.SpecialFileError, match="fifo"):
        box.put(there / "fifo", "/tmp/x")
    with pytest.raises(FileNotFoundError):
        box.put(there / "missing", "/tmp/x")


def test_parents(box: Sandbox, there: Path, options: Options) -> None:
    """They are made when that is asked for; those that are there already are no matter."""
    with pytest.raises(FileNotFoundError):
        box.write_file("/tmp/a/b/c", "data")
    for data in ("first", "second"):
        box.write_file("/tmp/a/b/c", data, parents=True, mode=0o640)
        assert box.read_file("/tmp/a/b/c").decode() == data
    modes = "import os; print(*(oct(os.stat(path).st_mode & 0o7777) for path in ('/tmp/a', '/tmp/a/b/c')))"
    assert box.exec("python3", "-c", modes).stdout == "0o755 0o640\n"
    with pytest.raises(OSError, match="Read-only file system"):
        box.write_file("/top", "nothing above it", parents=True)
    with pytest.raises(NotADirectoryError):
        box.write_file("/tmp/a/b/c/d", "data", parents=True)
    box.put(there / "source", "/tmp/a/short")
    box.write_file("/tmp/a/short", "x")
    assert box.read_file("/tmp/a/short") == b"x"

    async def go() -> bytes:
        async with AsyncSandbox(**options) as other:
            await other.write_file("/tmp/a/b/c", "data", parents=True)
            return await other.read_file("/tmp/a/b/c")

    assert asyncio.run(go()) == b"data"


def test_an_endless_file(box: Sandbox, there: Path) -> None:
    """It ends at the limit, in memory and on the host's disk."""
    with pytest.raises(OutputLimit):
        box.read_file("/dev/zero", special=True, max_bytes=100_000)
    with pytest.raises(OutputLimit):
        box.get("/dev/zero", there / "target", special=True, max_bytes=100_000)
    assert is_closed(there)


INTERRUPTED = """
import signal, sys, threading
from nucleus_gvisor.runtime import Sandbox
with Sandbox(runsc=sys.argv[1], runtime_dir=sys.argv[2]) as box:
    box.exec("mkfifo", "/tmp/fifo")
    def strike():
        while len(box.ps()) < 2: pass
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for call in (
        lambda: box.read_file("/tmp/fifo", special=True),
        lambda: box.write_file("/tmp/fifo", "data", special=True),
        lambda: box.put(sys.argv[3], "/tmp/fifo", special=True),
        lambda: box.get("/tmp/fifo", sys.argv[3] + "x", special=True),
    ):
        thread = threading.Thread(target=strike)
        thread.start()
        try: call()
        except KeyboardInterrupt: print("interrupted")
        thread.join()
    print(len(box.ps()), box.exec("echo", "on").stdout.strip())
"""


def test_an_interrupt(options: Options, there: Path) -> None:
    """KeyboardInterrupt ends the copy, and nothing else."""
    argv = [sys.executable, "-c", INTERRUPTED, options["runsc"], options["runtime_dir"], there / "source"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert done.stdout == "interrupted\n" * 4 + "1 on\n", done.stderr
    assert is_closed(there)


MEMORY = """
import resource, sys
from nucleus_gvisor.runtime import Sandbox
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
SIZE = 100 << 20
with Sandbox(runsc=sys.argv[1], runtime_dir=sys.argv[2]) as box:
    box.exec("sh", "-c", f"head -c {SIZE} /dev/zero >/tmp/big")
    before = peak()
    data = box.read_file("/tmp/big", max_bytes=SIZE)
    print(len(data) == SIZE, (peak() - before) / SIZE)
"""


def test_memory(options: Options) -> None:
    """A file at the limit takes little more than itself."""
    argv = [sys.executable, "-c", MEMORY, options["runsc"], options["runtime_dir"]]
    whole, times = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=True).stdout.split()
    assert whole == "True" and float(times) < 1.3
