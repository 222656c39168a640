"""The attendant by itself: the commands that it runs and those that wait, and what can go wrong with them."""

import marshal
import os
import resource
import select
import signal
import socket
import subprocess
import tempfile
import time

import pytest

from nucleus_gvisor.runtime import _attendant
from nucleus_gvisor.runtime import _linux as linux
from tests.support.forks import code, forked, no_child, pair


def test_an_attendant_whose_owner_is_gone_ends_the_sandbox() -> None:
    """It knows by its parent's number: `boss` may be anyone by then."""
    with pair() as (ours, theirs):

        def sandbox() -> None:
            _attendant.start(theirs.fileno(), 1, theirs.fileno(), {})
            signal.pause()  # until the attendant ends it

        def owner() -> None:
            assert code(forked(sandbox)) == -signal.SIGKILL
            assert code(-1) == 0  # the attendant, a child of the same parent

        assert code(forked(owner)) == 0
        theirs.close()
        assert len(ours.recv(64)) in (_attendant.HELLO.size, 0)  # of who made it, if that was not ended first
        assert ours.recv(1) == b""


def channels() -> tuple[int, int]:
    """A command's channel, its owner's end and the attendant's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ours.detach(), theirs.detach()


def start(ours: socket.socket, *argv: bytes, output: int | None = None) -> int:
    """Ask for a command; its channel."""
    reader, writer = channels()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    given = [writer, null, null if output is None else output, null]
    socket.send_fds(ours, [marshal.dumps(("start", list(argv), False))], given)
    os.close(writer)
    os.close(null)
    return reader


def held() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def commands(image: str | int) -> _attendant.Commands:
    """An attendant's commands, in this process."""
    file = os.open(image, os.O_RDONLY | os.O_CLOEXEC) if isinstance(image, str) else image
    return _attendant.Commands(file, {b"PATH": os.environb[b"PATH"]}, select.poll())


def hear(it: _attendant.Commands, until: int) -> bytes:
    """Let them be heard of until there is a packet on the channel `until`; the packet. b"" at its end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=os.dup(until)) as channel:
        channel.setblocking(False)
        while True:
            try:
                packet, ends = linux.receive(channel, 32, _attendant.MAX_DESCRIPTORS)
            except BlockingIOError:
                for fd, _ in it._poll.poll(20_000):
                    it.hear(fd)
                it.provide()
                continue
            for fd in ends:
                os.close(fd)
            return packet


ENDED = _attendant.STATUS.pack(0)
ASKED = [b"sh", b"-c", b"read name </proc/self/fd/3; echo $name >/proc/self/fd/4; exit 0"]
"""As runsc does: it reads what to start, and says a number."""


def executed(it: _attendant.Commands, process: bytes, argv: list[bytes] | None = None) -> int:
    """Ask for a process in a guest; the command's channel."""
    reader, writer = channels()
    file = os.memfd_create("process")
    os.write(file, process)
    it.take("exec", [argv or ASKED, False, False], [writer, file])
    return reader


def kill_ahead(it: _attendant.Commands) -> None:
    """Kill the one that waits, and let that be heard of."""
    (command,) = it._ahead.values()
    os.kill(command.pid, signal.SIGKILL)
    while it._ahead:
        for fd, _ in it._poll.poll(20_000):
            it.hear(fd)


def ended(it: _attendant.Commands, argv: list[bytes]) -> int:
    """The exit code of a command that is started without anything to read or write."""
    reader, writer = channels()
    it.take("start", [argv, False], [writer, *(os.open("/dev/null", os.O_RDWR) for _ in range(3))])
    return os.waitstatus_to_exitcode(*_attendant.STATUS.unpack(hear(it, reader)))


def test_a_command_that_cannot_be_executed() -> None:
    """It ends with the code that says so."""

    def body() -> None:
        it = commands(os.memfd_create("no program"))
        assert ended(it, [b"x"]) == 125

    assert code(forked(body)) == 0


def test_a_command_that_cannot_be_watched_is_not_started() -> None:
    """Without a descriptor for its pidfd, or for all that came with it, it is ended, and its owner is told."""

    def body() -> None:
        linux.close_range(3, 0x7FFFFFFF)
        it = commands("/bin/sleep")
        before = held()
        reader, writer = channels()
        given = [writer, *(os.open("/dev/null", os.O_RDWR) for _ in range(3))]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (given[-1] + 1, hard))
        it.take("start", [[b"sleep", b"600"], False], given)
        assert no_child()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [hear(it, reader), hear(it, reader)] == [_attendant.FAILED + b"24", b""]
        os.close(reader)
        assert held() == before
        reader, writer = channels()
        it.take("start", [[b"sleep", b"600"], False], [writer], whole=False)
        assert [hear(it, reader), hear(it, reader)] == [_attendant.FAILED + b"24", b""] and no_child()

    assert code(forked(body)) == 0


def test_a_process_waits_ahead() -> None:
    """It is told what to start; one that has ended meanwhile, or cannot take all of it, makes way for one that can."""

    def body() -> None:
        linux.close_range(3, 0x7FFFFFFF)
        it = commands("/bin/sh")
        before = held()
        for number, process in enumerate((b"1\n", b"2\n", b"3\n", b"4\n" + b" " * 100_000, b"5\n")):
            waiting = {command.pid for command in it._ahead.values()}
            assert len(waiting) == (number > 0)
            if number == 2:
                (pid,) = waiting
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            channel = executed(it, process)
            began = {command.pid for command in it._waited.values() if command.channel >= 0}
            assert (began == waiting) is (number in (1, 4)), number
            assert hear(it, channel) == process[:2]
            assert hear(it, channel) == ENDED
            os.close(channel)
        kill_ahead(it)
        assert no_child() and held() == before

    assert code(forked(body)) == 0


def test_where_none_can_be_had_ahead_there_is_none() -> None:
    """Without descriptors for one, nothing stays of the attempt, and a command is started when it is asked for."""

    def body() -> None:
        linux.close_range(3, 0x7FFFFFFF)
        it = commands("/bin/sh")
        before = held()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        low = os.dup(0)
        os.close(low)
        rooms = 0
        while not it._ahead:  # each of the descriptors that it needs is lacking in turn
            resource.setrlimit(resource.RLIMIT_NOFILE, (low + rooms, hard))
            it._wanted.add((False, tuple(ASKED)))
            it.provide()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert it._ahead or (no_child() and held() == before), rooms
            rooms += 1
        assert rooms > 8
        kill_ahead(it)  # it was not left enough to execute anything
        channel = executed(it, b"7\n")
        assert (hear(it, channel), hear(it, channel)) == (b"7\n", ENDED)

    assert code(forked(body)) == 0


def test_a_process_that_is_not_started() -> None:
    """Its owner hears so when runsc ends, also where something that runsc left behind could still say a number."""

    def body() -> None:
        for argv in (b"exit 0", b"sleep 600 & exit 0"):
            it = commands("/bin/sh")
            channel = executed(it, b"", [b"sh", b"-c", argv])
            assert (hear(it, channel), hear(it, channel)) == (_attendant.REFUSED, ENDED)
            assert not it._wanted and not it._ahead

    child = forked(body)
    try:
        assert code(child) == 0
    finally:
        subprocess.run(["pkill", "-9", "-x", "sleep", "-g", str(os.getpgid(0))], check=False)


def test_an_attendant_that_ends_while_it_starts_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that comes too late to ask the kernel for its end, ends by itself."""

    def body() -> None:
        it = commands("/bin/true")
        own = os.getpid()
        monkeypatch.setattr(os, "getppid", lambda: own + 1)
        assert ended(it, [b"true"]) == 125

    assert code(forked(body)) == 0


def test_a_guest_whose_memory_cannot_be_seen_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather no guest than one that nobody watches; a cgroup that is gone has killed nobody."""
    watch = _attendant.Watch(os.getpid())
    watch.begin({"memory": 1 << 50}, [os.open("/dev/null", os.O_RDONLY)])
    assert watch.met() == ""
    monkeypatch.setattr(_attendant, "BLIND", -1.0)
    watch.begin({"memory": 1 << 50}, [])
    assert watch.met() == "memory"


def test_nobody_waits_for_a_command() -> None:
    """A command whose reader hangs up is killed, and the attendant, who has nobody to tell, goes on."""
    with pair() as (ours, theirs):
        image = os.open("/bin/sleep", os.O_RDONLY | os.O_CLOEXEC)

        def body() -> None:
            ours.close()
            _attendant.start(theirs.fileno(), os.getppid(), image, {})
            signal.pause()

        sandbox = forked(body)
        attendant = _attendant.HELLO.unpack(ours.recv(_attendant.HELLO.size))[0]
        output, theirs_too = os.pipe2(os.O_CLOEXEC)
        beside = start(ours, b"sleep", b"600")
        unread, last = start(ours, b"sleep", b"600", output=theirs_too), start(ours, b"sleep", b"0")
        os.close(theirs_too)
        assert os.waitstatus_to_exitcode(*_attendant.STATUS.unpack(os.read(last, _attendant.STATUS.size))) == 0
        os.close(unread)
        assert os.read(output, 1) == b""  # the command, who held the other end, is gone
        another = start(ours, b"sleep", b"0")
        assert len(os.read(another, _attendant.STATUS.size)) == _attendant.STATUS.size
        ours.close()
        assert (code(sandbox), code(attendant)) == (-signal.SIGKILL, 0)
        for fd in (beside, last, output, another, image):
            os.close(fd)


def test_commands_have_default_signals() -> None:
    """The first, and those that wait ahead: nothing is ignored or blocked, whatever the attendant's own are."""
    with pair() as (ours, theirs):
        image = os.open("/bin/sh", os.O_RDONLY | os.O_CLOEXEC)

        def body() -> None:
            ours.close()
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            _attendant.start(theirs.fileno(), os.getppid(), image, {})
            signal.pause()

        sandbox = forked(body)
        attendant = _attendant.HELLO.unpack(ours.recv(_attendant.HELLO.size))[0]
        asked = (
            b"while read line; do echo $line; done </proc/self/status; read x </proc/self/fd/3; echo 1 >/proc/self/fd/4"
        )
        for number in range(3):
            reader, writer = channels()
            with tempfile.TemporaryFile() as process:
                process.write(b"process\n")
                process.flush()
                packet = marshal.dumps(("exec", [b"sh", b"-c", asked], False, False))
                socket.send_fds(ours, [packet], [writer, process.fileno()])
            os.close(writer)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=reader) as channel:
                said, (output, errors) = linux.receive(channel, 32, 8)
                assert said == b"1\n"
                assert os.waitstatus_to_exitcode(*_attendant.STATUS.unpack(channel.recv(8))) == 0
            lines = os.read(output, 1 << 16).decode().splitlines()
            kept = [line.split() for line in lines if line.startswith(("SigBlk", "SigIgn"))]
            assert [words[1] for words in kept] == ["0" * 16] * 2, number
            while not linux.children(attendant):  # until one waits ahead
                time.sleep(0.001)
            for fd in (output, errors):
                os.close(fd)
        ours.close()
        assert (code(sandbox), code(attendant)) == (-signal.SIGKILL, 0)
        os.close(image)
