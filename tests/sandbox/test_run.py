"""`run`: subprocess.run's manners around one guest, of which nothing outlives the call."""

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import (
    BadArgument,
    Error,
    GuestFailed,
    LaunchError,
    NotFound,
    OutputLimit,
    PinMismatch,
    TimeoutExpired,
    run,
)
from tests.e2e.launching import Caller
from tests.sandbox.conftest import Options

pytestmark = pytest.mark.real

BOMB = ":(){ :|:& };:; sleep 60"
AS_CALLER = """
import sys
from nucleus_gvisor.runtime import TimeoutExpired, run
options = {"runsc": sys.argv[1], "pin": sys.argv[2] or None}
done = run(["sh", "-c", "cat; id -u; exit 3"], input="in ", **options)
print(done.returncode, done.stdout.split(), done.achieved, done.record.lines[-1].dest)
try:
    run(["sh", "-c", "echo begun; trap '' TERM; sleep 60"], timeout=1.5, **options)
except TimeoutExpired as error:
    print(repr(error.stdout))
"""


@contextmanager
def file_with(data: bytes) -> Iterator[int]:
    """A descriptor of a pipe that has `data` in it."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    try:
        yield reader
    finally:
        os.close(reader)


def test_each_kind_of_caller_with_each_release(either: Caller) -> None:
    """Output, input, code, confinement and timeout are there for root, a user, and a user in a namespace."""
    done = either.script(AS_CALLER)
    assert done.stdout.splitlines() == ["3 ['in', '0'] mount-locked Exec'd", r"'begun\n'"], done.stderr


def test_output_and_code(options: Options) -> None:
    """Both streams are apart, the code is the guest's, and the pair unpacks."""
    done = run(["sh", "-c", "echo out; echo err >&2; exit 7"], **options)
    out, err = done
    assert (out, err, done.returncode) == ("out\n", "err\n", 7) == (done.stdout, done.stderr, 7)
    assert done.args == ("sh", "-c", "echo out; echo err >&2; exit 7")
    assert done.achieved == "mount-locked"
    assert done.record.path is not None and done.record.path.exists()
    with pytest.raises(GuestFailed):
        done.check_returncode()


def test_check_raises_with_code_and_output(new_options: Options) -> None:
    """As subprocess raises it, and as an Error of ours."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(["sh", "-c", "echo out; echo err >&2; exit 7"], check=True, **new_options)
    error = caught.value
    assert isinstance(error, GuestFailed) and isinstance(error, Error)
    assert (error.returncode, error.stdout, error.stderr) == (7, "out\n", "err\n")
    assert str(error) == "exec failed: sh: exit code 7: err"


def test_a_signal_is_128_more(new_options: Options) -> None:
    """A guest that a signal ended has the shell's code for it."""
    assert run(["sh", "-c", "kill -9 $$"], **new_options).returncode == 137


@pytest.mark.parametrize("data", [b"", b"\0\xff\xfe\r\n\x80" * 50_000])
def test_bytes_go_through_unchanged(new_options: Options, data: bytes) -> None:
    """With text=False nothing is decoded, and more than the pipes hold goes both ways."""
    assert run(["cat"], input=data, text=False, **new_options).stdout == data


def test_text_never_fails(new_options: Options) -> None:
    """What is not UTF-8 is replaced, and line ends are the host's."""
    assert run(["printf", r"a\377b\r\nc"], **new_options).stdout == "a�b\nc"


def test_nothing_to_read_unless_given(new_options: Options) -> None:
    """The caller's own standard input is not the guest's."""
    with file_with(b"secret") as reader:
        before = os.dup(0)
        try:
            os.dup2(reader, 0)
            assert run(["cat"], **new_options).stdout == ""
            assert run(["cat"], stdin=reader, **new_options).stdout == "secret"
        finally:
            os.dup2(before, 0)
            os.close(before)
    with pytest.raises(ValueError, match="stdin and input"):
        run(["cat"], stdin=subprocess.DEVNULL, input="x", **new_options)


def test_streams_of_the_callers(new_options: Options) -> None:
    """A stream that is given gets the output, STDOUT joins both, DEVNULL drops it."""
    reader, writer = os.pipe()
    done = run(["sh", "-c", "echo out; echo err >&2"], stdout=writer, **new_options)
    os.close(writer)
    assert (os.read(reader, 100), done.stdout, done.stderr) == (b"out\n", None, "err\n")
    os.close(reader)
    both = run(["sh", "-c", "echo out; echo err >&2"], stderr=subprocess.STDOUT, **new_options)
    assert tuple(both) == ("out\nerr\n", None)
    assert tuple(run(["echo", "x"], stdout=subprocess.DEVNULL, **new_options)) == (None, "")


def test_a_file_takes_output_where_it_stands(new_options: Options) -> None:
    """gVisor keeps an offset of its own for a file: what was written before must stay."""
    with tempfile.TemporaryFile() as file:
        file.write(b"before\n")
        file.flush()
        run(["echo", "after"], stdout=file, **new_options)
        file.seek(0, os.SEEK_END)
        file.seek(0)
        assert file.read() == b"before\nafter\n"


def test_nothing_of_the_callers_environment(new_options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is given, over the defaults; and it is on no command line of the host."""
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "x")
    done = run(["env"], env={"GIVEN": "a b"}, **new_options)
    assert "SECRET" not in done.stdout
    assert "GIVEN=a b\n" in done.stdout


def test_timeout_ends_the_whole_tree_and_keeps_the_output(options: Options) -> None:
    """A guest that ignores SIGTERM and has children in other sessions is gone, with partial output on the error."""
    script = "trap '' TERM; echo begun; echo err >&2; setsid sleep 60 & sleep 60"
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run(["sh", "-c", script], timeout=1.5, **options)
    error = caught.value
    assert isinstance(error, TimeoutExpired)
    assert [error.stdout, error.stderr, error.timeout] == ["begun\n", "err\n", 1.5]
    assert str(error) == "exec timed out after 1.5 seconds: sh"


def test_a_fork_bomb_ends_with_its_time(new_options: Options) -> None:
    """However many processes there are, they are all inside, and end with the sandbox."""
    with pytest.raises(TimeoutExpired):
        run(["bash", "-c", BOMB], timeout=3, rlimits={"RLIMIT_NPROC": 200}, **new_options)


def test_output_is_bounded(options: Options) -> None:
    """A guest that writes without end is ended, and what it wrote first is on the error."""
    with pytest.raises(OutputLimit) as caught:
        run(["sh", "-c", "echo oops >&2; exec yes"], max_output=100_000, **options)
    assert (caught.value.stdout, caught.value.stderr, caught.value.limit) == ("y\n" * 50_000, "oops\n", 100_000)


def test_a_gigabyte_of_output_costs_what_is_kept(newer: Caller) -> None:
    """The caller's memory is bounded by the limit, whatever the guest writes."""
    source = """
import resource, sys
from nucleus_gvisor.runtime import OutputLimit, run
options = {"runsc": sys.argv[1], "pin": sys.argv[2] or None}
run(["true"], **options)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    run(["head", "-c", "1000000000", "/dev/zero"], max_output=1 << 20, text=False, **options)
except OutputLimit as error:
    print(len(error.stdout), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10)
"""
    done = newer.script(source)
    assert done.stdout == "1048576 True\n", done.stderr


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"runsc": "/no/runsc"}, NotFound),
        ({"pin": "0" * 64}, PinMismatch),
        ({"sandbox_id": "--help"}, LaunchError),
        ({"mounts": ["/no/such/thing:/x"]}, LaunchError),
        ({"hostname": "x" * 65}, BadArgument),
    ],
)
def test_what_cannot_be_launched(new_options: Options, options: Options, error: type[Exception]) -> None:
    """A typed error, nothing ran, and no descriptor is left open."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(error) as caught:
        run(["true"], **(new_options | options))
    assert isinstance(caught.value, Error)
    assert os.listdir("/proc/self/fd") == before


def test_an_interruption_leaves_nothing(new_options: Options) -> None:
    """KeyboardInterrupt ends the guest; the fixture looks for its processes, this test for descriptors."""
    import signal

    before = os.listdir("/proc/self/fd")
    timer = threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run(["sleep", "60"], **new_options)
    timer.join()
    assert os.listdir("/proc/self/fd") == before


def test_many_threads_at_once(new_options: Options) -> None:
    """Runs from several threads do not meet."""
    with ThreadPoolExecutor(4) as pool:
        outputs = pool.map(lambda n: run(["echo", str(n)], **new_options).stdout, range(12))
        assert list(outputs) == [f"{n}\n" for n in range(12)]


def test_a_rootfs_of_the_callers(new_options: Options, base: Path) -> None:
    """The guest's root is what it is said to be."""
    for name in ("bin", "usr", "lib", "lib64", "etc"):
        (base / name).mkdir()
    (base / "etc/mark").write_text("here")
    binds = [f"{os.path.realpath('/' + name)}:/{name}" for name in ("bin", "usr", "lib", "lib64")]
    done = run(["cat", "/etc/mark"], rootfs=base, mounts=binds, **new_options)
    assert done.stdout == "here", done.stderr
