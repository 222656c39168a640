"""An agent in a guest: fast and nobody's burden, and whatever the guest, a thread, a signal or an ending does to it."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.runtime import (
    AsyncSandbox,
    CopyFailed,
    OutputLimit,
    RunscFailed,
    Sandbox,
    SandboxGone,
    TimeoutExpired,
)
from tests.e2e import launching
from tests.e2e.launching import Caller
from tests.sandbox.conftest import MakeSandbox, Options
from tests.sandbox.test_interrupts import At, descriptors, interrupt, lines

pytestmark = pytest.mark.real


def agents(box: Sandbox) -> list[int]:
    """The guest's process ids of its agents."""
    return [process.pid for process in box._ps() if process.command == "init" and process.pid != 1]


def agent(box: Sandbox) -> int:
    box.files.stat("/")
    (pid,) = agents(box)
    return pid


AS_CALLER = """
import os, sys, tempfile, time
from pathlib import Path
from nucleus_gvisor.runtime import Sandbox
with tempfile.TemporaryDirectory() as name, Sandbox(runsc=sys.argv[1], pin=sys.argv[2] or None) as box:
    files = box.files
    files.write("a/b/text", "line", parents=True, mode=0o640)
    print(files.read("a/b/text"), files.read_text("/workspace/a/b/text"))
    found = files.stat("a/b/text")
    print(found.name, found.kind, found.size, oct(found.mode), found.uid, abs(found.mtime_ns / 1e9 - time.time()) < 600)
    box.exec("ln", "-s", "b/text", "a/link")
    print([(one.name, one.kind.value, one.target) for one in files.list("a")])
    print(list(files.walk()), files.glob("**/t*"))
    files.move("a/b", "c")
    files.mkdir("a/d/e", parents=True)
    print(files.glob("*"), files.remove("a", recursive=True), [one.name for one in files.list()])
    for call in (lambda: files.list("no"), lambda: files.remove("c"), lambda: files.mkdir("c")):
        try: call()
        except OSError as error: print(type(error).__name__, error.filename)
    host = Path(name, "file")
    host.write_bytes(bytes(range(256)) * 1000)
    before = os.stat(host)
    print(box.put(host, "/tmp/copy"), box.get("/tmp/copy", host.with_name("back")))
    print(box.get("/workspace/c", host.with_name("tree")))
    print(host.with_name("back").read_bytes() == host.read_bytes(), os.stat(host).st_mtime_ns == before.st_mtime_ns)
    print(sorted(os.listdir(name)), Path(name, "tree/text").read_text())
    print(os.stat(host.with_name("back")).st_uid == os.geteuid())
    print([process.command for process in box.ps()])
"""


def test_each_kind_of_caller(caller: Caller) -> None:
    """All that can be asked, and that host files are as they were."""
    done = caller.script(AS_CALLER)
    assert done.stdout.splitlines() == [
        "b'line' line",
        "text file 4 0o640 0 True",
        "[('b', 'directory', None), ('link', 'link', 'b/text')]",
        "[('/workspace', ['a'], []), ('/workspace/a', ['b'], ['link']), ('/workspace/a/b', [], ['text'])]"
        " ('/workspace/a/b/text',)",
        "('/workspace/a', '/workspace/c') None ['c']",
        "FileNotFoundError /workspace/no",
        "OSError /workspace/c",
        "FileExistsError /workspace/c",
        "() ()",
        "()",
        "True True",
        "['back', 'file', 'tree'] line",
        "True",
        "['init']",
    ], done.stderr


def test_on_asyncio(options: Options, tmp_path: Path) -> None:
    """The same there, by several tasks at once; to be cancelled ends what was asked."""

    async def go() -> None:
        async with AsyncSandbox(**options) as box:
            files = box.files
            await files.write("a/b", "text", parents=True)
            assert (await files.read("a/b"), await files.read_text("a/b")) == (b"text", "text")
            assert (await files.stat("a")).kind == "directory"
            assert [found.name for found in await files.list("a")] == ["b"]
            assert [page async for page in files.walk()] == [("/workspace", ["a"], []), ("/workspace/a", [], ["b"])]
            await files.mkdir("c")
            await files.move("a/b", "c/d")
            assert await files.glob("*/*") == ("/workspace/c/d",)
            await files.remove("c", recursive=True)
            with pytest.raises(FileNotFoundError, match="'/workspace/c'"):
                await files.list("c")
            with pytest.raises(FileNotFoundError):
                [page async for page in files.walk("c")]
            (tmp_path / "file").write_bytes(os.urandom(300_000))
            await box.put(tmp_path / "file", "/tmp/file")
            await box.get("/tmp/file", tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()

            async def one(number: int) -> bool:
                data = str(number).encode() * 50_000
                await files.write(str(number), data)
                return await files.read(str(number)) == data

            assert all(await asyncio.gather(*map(one, range(12))))
            await box.pause()
            with pytest.raises(TimeoutExpired, match="stat"):
                await files.stat("/", timeout=0.1)
            await box.resume()
            inner = box._box

            async def stopped(work: Coroutine[Any, Any, object]) -> tuple[int, asyncio.Task[object]]:
                """An agent that was stopped, and what waits for it."""
                inner._end_agents()
                await files.stat("/")
                (pid,) = inner._agents.there
                await box.signal(signal.SIGSTOP, pid)
                task = asyncio.create_task(work)
                while not inner._agents.busy:
                    await asyncio.sleep(0)
                return pid, task

            pid, task = await stopped(files.read("0"))
            await box.signal(signal.SIGKILL, pid)
            assert await task == b"0" * 50_000  # another was asked
            pid, task = await stopped(files.mkdir("again"))
            await box.signal(signal.SIGKILL, pid)
            with pytest.raises(RunscFailed, match="mkdir: the guest has ended"):
                await task
            _, task = await stopped(files.stat("/", timeout=0.1))
            with pytest.raises(TimeoutExpired, match="stat"):
                await task
            _, task = await stopped(files.stat("/"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert inner._agents.there == set() and repr(files).startswith("<AsyncFiles of <AsyncSandbox")
            await box.write_file("/tmp/s/x", "y", special=True, parents=True, mode=0o600)
            assert (await files.stat("/tmp/s/x")).mode == 0o600
            assert await files.read("0") == b"0" * 50_000
            assert (await box.exec("echo", "on")).stdout == "on\n"

    asyncio.run(go())


def test_it_is_nobodys_burden(box: Sandbox) -> None:
    """No process of the host's, and none among the guest's commands; it is started once, and ends with the sandbox."""
    deadline = time.monotonic() + 60
    clients = box._attendant._pid
    pid = agent(box)
    for _ in range(5):
        box.files.list("/")
    assert agents(box) == [pid] and [process.pid for process in box.ps()] == [1]
    while len(launching.descendants(clients)) > 1 and time.monotonic() < deadline:
        pass  # the client that has started it goes; another one waits for the next command
    assert len(launching.descendants(clients)) <= 1
    with pytest.raises(TimeoutExpired):
        box.exec("sh", "-c", "setsid sleep 60 & sleep 61", timeout=0.5)
    assert [process.pid for process in box._ps()] == [1] and not box.closed


def test_a_guest_that_ends_it(box: Sandbox) -> None:
    """Another is started, and is asked what changes nothing; else it is said, and the next request is answered."""
    box.write_file("/tmp/x", "there")
    told: list[object] = []

    def ask(work: Callable[[], object]) -> None:
        try:
            told.append(work())
        except RunscFailed as error:
            told.append(str(error))

    works: list[Callable[[], object]] = [lambda: box.read_file("/tmp/x"), lambda: box.files.mkdir("/tmp/d")]
    for work in works:
        box.exec("kill", "-9", str(agent(box)))
        assert box.read_file("/tmp/x") == b"there"
        pid = agent(box)
        box.signal(signal.SIGSTOP, pid)
        asking = threading.Thread(target=ask, args=(work,))
        asking.start()
        while not box._agents.busy:
            pass
        box.signal(signal.SIGKILL, pid)
        asking.join(60)
    assert told == [b"there", "mkdir: the guest has ended the program of ours that does it: /tmp/d"]
    assert box.read_file("/tmp/x") == b"there"
    box.files.mkdir("/tmp/d", exist_ok=True)


def test_a_guest_that_stops_it(box: Sandbox) -> None:
    """There is a time for everything, and what had none left is ended before that is said."""
    box.write_file("/tmp/x", "there")
    box.signal(signal.SIGSTOP, agent(box))
    with pytest.raises(TimeoutExpired, match=r"timed out after 0\.1 seconds: read_file") as kept:
        box.read_file("/tmp/x", timeout=0.1)
    assert kept.value.timeout == 0.1 and box._agents.busy == []  # though its error is there still
    assert agents(box) == [] and box.read_file("/tmp/x") == b"there"
    box.signal(signal.SIGSTOP, agent(box))
    box.pause()
    box.resume()
    assert agents(box) == []


def test_a_gate_that_is_closed_meanwhile(box: Sandbox) -> None:
    """One that was taken goes back, and the request waits."""
    pid = agent(box)
    box._close_gate()
    assert box._idle_agent() is None and box._agents.there == {pid} and box._agents.busy == []
    with pytest.raises(TimeoutExpired):
        box.files.stat("/", timeout=0.1)
    box._open_gate()
    assert box.files.stat("/").kind == "directory" and repr(box.files).startswith("<Files of <Sandbox")


def test_what_may_be_waited_for(box: Sandbox) -> None:
    """A command writes it; directories and modes are the same."""
    box.write_file("/tmp/s/x", "y", special=True, parents=True, mode=0o600)
    assert (box.files.stat("/tmp/s/x").mode, box.read_file("/tmp/s/x", special=True)) == (0o600, b"y")


def test_a_guest_that_answers_for_it(box: Sandbox) -> None:
    """What it writes to the agent's pipe, where its kernel lets it, is no answer: the agent is not asked again."""
    box.write_file("/tmp/x", "there")
    forged = "import struct; open('/proc/{}/fd/1', 'wb').write(struct.pack('<i', 3) + b'lie' + bytes(4))"
    box.exec("python3", "-c", forged.format(agent(box)), check=False)  # newer releases refuse it
    assert box.read_file("/tmp/x") == b"there"


def test_bounds_and_what_the_host_cannot(box: Sandbox, tmp_path: Path) -> None:
    """A file that is too large, sparse or not, a listing, a full disk: the next request is answered."""
    box.exec("sh", "-c", "truncate -s 1T /tmp/large; mkdir /tmp/many; cd /tmp/many; seq 300 | xargs touch")
    with pytest.raises(OutputLimit, match="read_file wrote more than 100000 bytes"):
        box.read_file("/tmp/large", max_bytes=100_000)
    with pytest.raises(OutputLimit, match="get wrote more than 100000 bytes"):
        box.get("/tmp/large", tmp_path / "x", max_bytes=100_000)
    with pytest.raises(CopyFailed, match="get: copying stdout failed"):
        box.get("/tmp/many/1", tmp_path / "no/where")
    assert os.listdir(tmp_path) == [] and len(box.files.list("/tmp/many")) == 300


def test_a_command_that_ends_beside_a_request(make: MakeSandbox) -> None:
    """It ends with what it has detached, and neither the request nor the sandbox does."""
    box = make()
    pid = agent(box)
    process = box.popen(["sh", "-c", "(setsid sleep 600 &); sleep 601"])
    box.signal(signal.SIGSTOP, pid)
    asking = threading.Thread(target=box.files.stat, args=("/",))
    asking.start()
    while not box._agents.busy:
        pass
    process.kill()
    assert agents(box) == [pid] and not box.closed and [one.pid for one in box.ps()] == [1]
    box.signal(signal.SIGCONT, pid)
    asking.join(60)
    assert agents(box) == [pid]


def test_a_number_that_is_an_agents_alone(box: Sandbox) -> None:
    """Another process with it is none: it has not started as the agent has."""
    found = box._agents.use(_taken(box))
    start = box._start_time(found.pid)
    assert box._is_agent(found.pid, start)
    assert not box._is_agent(found.pid, start + 1000) and not box._is_agent(1, start)
    box._agents.give_back(found, keep=True)
    assert not box._is_agent(found.pid, start)


def _taken(box: Sandbox) -> Any:
    agent(box)
    return box._agents.take()


def test_pauses_and_images(new_options: Options, base: Path) -> None:
    """A request waits while the guest does; no image has an agent, and a sandbox that was restored has its own."""
    with Sandbox(**new_options) as box:
        box.files.write("x", "kept")
        box.pause()
        with pytest.raises(TimeoutExpired):
            box.files.read("x", timeout=0.1)
        box.resume()
        assert box.files.read("x") == b"kept" and agents(box) != []
        box.checkpoint(base / "one", leave_running=True)
        assert agents(box) == [] and box.files.read("x") == b"kept"
        box.checkpoint(base / "two")
    for name in ("one", "two"):
        with Sandbox.restore(base / name, **new_options) as again:
            assert [process.pid for process in again._ps()] == [1]
            assert again.files.read("x") == b"kept" and [found.name for found in again.files.list()] == ["x"]


def test_no_image_while_something_is_asked(new_options: Options, base: Path) -> None:
    """It is refused, as beside a command."""
    with Sandbox(**new_options) as box:
        box._agents.use(found := _taken(box))
        with pytest.raises(RunscFailed, match="runs, and its streams cannot be kept"):
            box.checkpoint(base / "image")
        box._agents.give_back(found, keep=False)
        box.checkpoint(base / "image")


def test_threads(make: MakeSandbox) -> None:
    """Many at once, each with its own file; few agents stay."""
    box = make()
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(20):
            data = f"{number} {turn} ".encode() * 3000
            box.write_file(f"/tmp/{number}", data)
            if box.read_file(f"/tmp/{number}") != data:
                wrong.append(f"{number} {turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and 0 < len(box._agents.there) <= 4


FORKED = """
import os, sys
from nucleus_gvisor.runtime import Sandbox, SandboxGone
with Sandbox(runsc=sys.argv[1], runtime_dir=sys.argv[2]) as box:
    box.write_file("/tmp/x", "there")
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try: box.read_file("/tmp/x")
        except SandboxGone as error: os.write(1, f"{error}\\n".encode())
        os.read(0, 1)
        os._exit(0)
    print(box.read_file("/tmp/x"), flush=True)
    box.pause()  # the agent hears of its end, whatever the fork has
    box.resume()
    print([process.pid for process in box._ps()], box.read_file("/tmp/x"))
    os.kill(pid, 9)
    os.waitpid(pid, 0)
"""


def test_a_fork(new_options: Options) -> None:
    """The sandbox is its owner's alone."""
    argv = [sys.executable, "-c", FORKED, new_options["runsc"], new_options["runtime_dir"]]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=300)
    expected = {"the sandbox belongs to another process, which forked this one", "b'there'", "[1] b'there'"}
    assert set(out.splitlines()) == expected


def test_of_a_sandbox_that_has_ended(make: MakeSandbox) -> None:
    """SandboxGone, whether an agent was there or not, and when it goes meanwhile."""
    calls: list[Callable[[Sandbox], object]] = [lambda box: box.files.list("/"), lambda box: box.read_file("/x")]
    for call in calls:
        box = make()
        call_first = box.files.stat("/")
        assert call_first.kind == "directory"
        box.kill()
        box.wait(60)
        with pytest.raises(SandboxGone):
            call(box)
        box.close()
        with pytest.raises(SandboxGone):
            call(box)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Exception ignored in.*(FileIO|socket):pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_every_line(new_options: Options) -> None:
    """The next request has its own answer, and no other's."""
    with Sandbox(**new_options) as box:
        box.write_file("/tmp/a", b"a" * 100_000)
        box.write_file("/tmp/b", b"b" * 1000)

        def work() -> None:
            box.read_file("/tmp/a")
            box.write_file("/tmp/c", b"c" * 70_000)

        for number in lines(7):
            before = descriptors()
            at = At(number, interrupt)
            at.during(work)
            assert box.read_file("/tmp/b") == b"b" * 1000 and not box.closed, at.where
            box.write_file("/tmp/c", b"d")
            assert box.read_file("/tmp/c") == b"d" and box.files.list("/tmp")[0].size == 100_000, at.where
            assert len(descriptors().keys() - before.keys()) <= 4, at.where
            if not at.where:
                break
        assert len(agents(box)) <= 2
