"""The relay: every byte arrives once and in order, nothing hangs, and no descriptor is written to that is not ours."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nucleus_gvisor.runtime.streams import CHUNK, Relay, handling
from tests.runtime.conftest import nothing_left_open

BIG = bytes(range(256)) * 4096  # 1 MiB: more than any pipe holds
COPY = "import sys, shutil; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"


@contextmanager
def standard(stdin: int, stdout: int, stderr: int) -> Iterator[None]:
    """These as the process's own descriptors 0, 1 and 2, for as long as the block runs."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(fd) for fd in (0, 1, 2)]
    try:
        for fd, target in ((stdin, 0), (stdout, 1), (stderr, 2)):
            os.dup2(fd, target)
        yield
    finally:
        for fd, target in zip(saved, (0, 1, 2), strict=True):
            os.dup2(fd, target)
            os.close(fd)


@contextmanager
def files(base: Path, content: bytes, offset: int) -> Iterator[tuple[int, int, int]]:
    """A file to read from `offset`, and two to write to, of which the first has something in it."""
    (base / "in").write_bytes(content)
    (base / "out").write_bytes(b"before\n")
    fds = [
        os.open(base / "in", os.O_RDONLY),
        *(os.open(base / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("out", "err")),
    ]
    os.lseek(fds[0], offset, os.SEEK_SET)
    try:
        yield fds[0], fds[1], fds[2]
    finally:
        for fd in fds:
            os.close(fd)


def play(program: str, timeout: float | None = 20, limit: float = 5, relayed: tuple[int, int, int] = (0, 1, 2)) -> bool:
    """Run Python `program` on a relay as the command line does; False when it was ended by the timeout.

    When all this takes longer than `limit`, the program is killed, and the test fails.
    """
    hung = threading.Event()
    with nothing_left_open():
        relay = Relay(relayed)
        stdin, stdout, stderr = relay.stdio
        process = subprocess.Popen([sys.executable, "-c", program], stdin=stdin, stdout=stdout, stderr=stderr)
        pidfd = os.pidfd_open(process.pid)
        relay.started()

        def rescue() -> None:
            hung.set()
            process.kill()

        watch = threading.Timer(limit, rescue)
        watch.start()
        try:
            with handling({}) as signalled:
                in_time = relay.run(pidfd, timeout, signalled)
            if not in_time:
                process.kill()
            process.wait()
            relay.drain()
        finally:
            watch.cancel()
            process.kill()
            process.wait()
            os.close(pidfd)
            assert not hung.is_set(), f"the relay was still busy after {limit} s"
    return in_time


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, len(BIG)])
@pytest.mark.parametrize("offset", [0, 1, 100])
def test_files_are_copied_whole(base: Path, size: int, offset: int) -> None:
    """What is left of the input arrives at the output, after what the output had, and nothing else."""
    with files(base, b"x" * offset + BIG[:size], offset) as fds, standard(*fds):
        assert play(COPY)
    assert (base / "out").read_bytes() == b"before\n" + BIG[:size]


def test_output_and_errors_go_their_own_ways(base: Path) -> None:
    """Each of the two is written to where it belongs, in the order in which it came."""
    program = "import sys\nfor n in range(200):\n    print(n, flush=True); print(-n, file=sys.stderr, flush=True)"
    with files(base, b"", 0) as fds, standard(*fds):
        assert play(program)
    assert (base / "out").read_text().split()[1:] == [str(n) for n in range(200)]
    assert (base / "err").read_text().split() == [str(-n) for n in range(200)]


def test_last_words_are_kept(base: Path) -> None:
    """What a program wrote just before it ended is copied, however it ended."""
    program = (
        f"import os, sys\nsys.stdout.buffer.write({b'last' * 10_000!r}); sys.stdout.flush(); os.kill(os.getpid(), 9)"
    )
    with files(base, b"", 0) as fds, standard(*fds):
        assert play(program)
    assert (base / "out").read_bytes() == b"before\n" + b"last" * 10_000


def test_an_unread_file_at_its_start_is_given_as_it_is(base: Path) -> None:
    """Pipes, terminals, devices, and files that the sentry can read from zero need no help."""
    reader, writer = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    with files(base, b"content", 0) as (stdin, _, _):
        for given_fds in ((reader, writer, writer), (stdin, null, writer)):
            relay = Relay(given_fds)
            assert relay.stdio == given_fds
            relay.drain()
    for fd in (reader, writer, null):
        os.fstat(fd)
        os.close(fd)


def test_a_program_that_does_not_read_ends(base: Path) -> None:
    """A guest that leaves a long input alone, or closes it, is waited for, and its output is whole."""
    for program in ("print('done')", "import os, time; os.close(0); time.sleep(0.2); print('done')"):
        with files(base, b"x" + BIG, 1) as fds, standard(*fds):
            assert play(program)
        assert (base / "out").read_text() == "before\ndone\n"


def test_nothing_is_written_to_a_strangers_descriptor(base: Path) -> None:
    """After the guest has closed its input, that descriptor's number may be somebody else's."""
    with files(base, b"x" + BIG, 1) as fds, standard(*fds), nothing_left_open():
        relay = Relay()
        guest = relay.stdio
        with subprocess.Popen(["true"], stdin=guest[0], stdout=guest[1], stderr=guest[2]) as process:
            ended = os.pidfd_open(process.pid)
            relay.started()
        with handling({}) as signalled:
            relay.run(ended, 5, signalled)
        others = [os.open(base / "other", os.O_WRONLY | os.O_CREAT) for _ in range(8)]
        try:
            relay.drain()
        finally:
            for fd in (*others, ended):
                os.close(fd)
            assert (base / "other").read_bytes() == b""


def test_output_is_copied_while_input_waits(base: Path) -> None:
    """A guest that writes much before it reads does not stand still: the relay waits for neither side alone."""
    program = f"import sys\nsys.stdout.buffer.write(b'y' * {len(BIG)}); sys.stdout.flush(); {COPY}"
    with files(base, b"x" + BIG, 1) as fds, standard(*fds):
        assert play(program)
    assert (base / "out").read_bytes() == b"before\n" + b"y" * len(BIG) + BIG


def test_the_timeout_holds_while_input_waits(base: Path) -> None:
    """A guest that sleeps and never reads is ended in time."""
    start = time.monotonic()
    with files(base, b"x" + BIG, 1) as fds, standard(*fds):
        assert not play("import time; time.sleep(60)", timeout=0.5)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("timeout", [0.0, 0.2])
def test_the_timeout_holds(base: Path, timeout: float) -> None:
    """A guest that goes on is given up after the time, with what it wrote until then."""
    program = "import time; print('begun', flush=True); time.sleep(60)"
    with files(base, b"", 0) as fds, standard(*fds):
        assert not play(program, timeout=timeout)
    assert (base / "out").read_text() in ("before\nbegun\n", "before\n")


def test_the_timeout_holds_for_a_guest_that_writes_for_ever(base: Path) -> None:
    """A stream of output does not put the end off."""
    start = time.monotonic()
    with files(base, b"", 0) as fds, standard(*fds):
        assert not play("while True: print('y', flush=True)", timeout=0.3)
    assert time.monotonic() - start < 10


def test_a_full_disk_is_no_endless_loop(base: Path) -> None:
    """When an output file takes no more, the relay ends with an error or with the guest, not later."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with files(base, b"", 0) as fds, standard(*fds):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with suppress(OSError):
                play("print('y' * 100_000)")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(b"before\n") < (base / "out").stat().st_size <= 1000


def test_descriptors_of_the_callers_choice(base: Path) -> None:
    """Streams need not be 0, 1 and 2: the copies are whole, and the caller's descriptors stay open and are its own."""
    with files(base, b"x" + BIG[:1000], 1) as fds:
        os.lseek(fds[1], 0, os.SEEK_SET)
        assert play(COPY, relayed=fds)
        for fd in fds:
            os.fstat(fd)
    assert (base / "out").read_bytes() == b"before\n" + BIG[:1000]


def test_draining_without_a_guest_closes_everything(base: Path) -> None:
    """When the launch fails there is nobody on the other side: no wait, nothing written, nothing left open."""
    with files(base, b"x" + BIG, 1) as fds, standard(*fds):
        before = len(os.listdir("/proc/self/fd"))
        relay = Relay()
        assert len(os.listdir("/proc/self/fd")) > before
        relay.drain()
        relay.drain()
        assert len(os.listdir("/proc/self/fd")) == before
    assert (base / "out").read_bytes() == b"before\n"


@given(pieces=st.lists(st.binary(max_size=200), max_size=12), offset=st.integers(0, 50))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_pieces_arrive_in_order(base: Path, pieces: list[bytes], offset: int) -> None:
    """However the guest cuts its output, the file has it whole; and of the input exactly what was not yet read."""
    content = b"".join(pieces)
    program = (
        f"import os\nfor piece in {pieces!r}: os.write(1, piece)\nwhile piece := os.read(0, 7): os.write(2, piece)"
    )
    (base / "err").unlink(missing_ok=True)
    with files(base, content, min(offset, len(content))) as fds, standard(*fds):
        assert play(program)
    assert (base / "out").read_bytes() == b"before\n" + content
    assert (base / "err").read_bytes() == content[offset:]


def test_a_signal_that_interrupts_no_wait_is_handled() -> None:
    """As when it comes just before poll(2) waits. Here another thread receives it, which does not wake ours either."""
    masked = threading.Event()

    def receive() -> None:
        masked.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    receiver = threading.Thread(target=receive)
    receiver.start()
    with nothing_left_open(), subprocess.Popen(["sleep", "60"]) as process:
        pidfd = os.pidfd_open(process.pid)
        before = signal.getsignal(signal.SIGUSR1)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        try:
            with handling({signal.SIGUSR1: lambda *_: process.kill()}) as signalled:
                masked.set()
                relay = Relay()
                assert relay.run(pidfd, 30, signalled)
        finally:
            relay.drain()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            process.kill()
            receiver.join()
            os.close(pidfd)
        assert signal.getsignal(signal.SIGUSR1) == before


def test_what_is_left_in_the_pipe_is_drained() -> None:
    """A guest may write and end before anybody has looked."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as output:
        relay = Relay((0, writer, writer), limit=1 << 20)
        os.write(relay.stdio[1], b"last words")
        relay.drain()
        os.close(writer)
        assert output.read() == b"last words"
