"""A sandbox that lives: commands, streams, files, signals, and its end."""

import inspect
import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.runtime import (
    BadArgument,
    BadBase,
    BadBundle,
    BadId,
    Busy,
    CannotExec,
    Error,
    GuestFailed,
    NotFound,
    OutputLimit,
    RunscFailed,
    Sandbox,
    SandboxGone,
    TimeoutExpired,
    dropin,
    guest,
)
from tests.e2e import launching
from tests.e2e.launching import Caller
from tests.sandbox.conftest import MakeSandbox, Options

pytestmark = pytest.mark.real

AS_CALLER = """
import os, sys
from nucleus_gvisor.runtime import Sandbox, TimeoutExpired
with Sandbox(runsc=sys.argv[1], pin=sys.argv[2] or None, network=sys.argv[3], env={"A": "1"}) as box:
    print(box.exec("sh", "-c", "cat; id -u; echo $A$B", input="in ", env={"B": "2"}).stdout.split(), box.achieved)
    try:
        box.exec("sleep", "60", timeout=0.5)
    except TimeoutExpired:
        print([process.command for process in box.ps()])
    box.write_file("/tmp/file", b"x" * 100_000)
    print(len(box.read_file("/tmp/file")))
    box.pause()
    box.resume()
    with box.popen(["cat"], stdin=-1, stdout=-1, text=True) as process:
        print(process.communicate("through"))
print(box.closed)
"""
EXPECTED = ["['in', '0', '12'] mount-locked", "['init']", "100000", "('through', None)", "True"]


def open_descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def commands(box: Sandbox) -> list[str]:
    """The names of the guest's processes but for our own."""
    return [process.command for process in box.ps() if process.pid != 1]


def test_each_kind_of_caller_with_each_release(either: Caller) -> None:
    """All of it works for root, a user, and a user in a namespace."""
    done = either.script(AS_CALLER, "none")
    assert done.stdout.splitlines() == EXPECTED, done.stderr


@pytest.mark.parametrize("network", ["host", "sandbox"])
def test_the_other_networks(newer: Caller, network: str) -> None:
    """Commands reach a sandbox with any network."""
    done = newer.script(AS_CALLER, network)
    assert done.stdout.splitlines() == EXPECTED, done.stderr


# ---- exec ----


def test_exec_is_a_pair_and_more(box: Sandbox) -> None:
    """As Google's: (stdout, stderr); and the code besides."""
    done = box.exec("sh", "-c", "echo out; echo err >&2")
    out, err = done
    assert (done.returncode, done.args[0]) == (0, "sh")
    assert (out, err) == ("out\n", "err\n") == done


def test_exec_has_the_sandboxes_settings_and_its_own(make: MakeSandbox) -> None:
    """Environment and directory come over those of the sandbox, for this command alone."""
    box = make(env=["A=1", "B=2"], working_dir="usr", user=(65534, 65534), hostname="named")
    script = "echo $A $B $PWD $(id -u) $(hostname)"
    assert box.exec("sh", "-c", script).stdout == "1 2 /usr 65534 named\n"
    assert box.exec("sh", "-c", script, env={"B": "3"}, cwd="/usr", user=0).stdout == "1 3 /usr 0 named\n"
    assert box.exec("sh", "-c", script).stdout == "1 2 /usr 65534 named\n"


def test_a_failure_keeps_code_and_output(box: Sandbox) -> None:
    """It is raised, as Google's package does, and all that was written is on it."""
    with pytest.raises(GuestFailed) as caught:
        box.exec("sh", "-c", "echo out; echo err >&2; exit 128")
    assert [caught.value.returncode, caught.value.stdout, caught.value.stderr] == [128, "out\n", "err\n"]
    assert isinstance(caught.value, Error)
    assert box.exec("sh", "-c", "kill -9 $$", check=False).returncode == 137


@pytest.mark.parametrize(
    ("words", "more", "said"),
    [
        (["no-such-program"], {}, "no-such-program"),
        (["/etc"], {}, "/etc"),
        (["true"], {"cwd": "/no/such/directory"}, "/no/such/directory"),
    ],
)
def test_what_cannot_be_started(box: Sandbox, words: list[str], more: Options, said: str) -> None:
    """It is told apart from a program that failed, and the sandbox is as before."""
    with pytest.raises(CannotExec, match=said):
        box.exec(*words, **more)
    with pytest.raises(CannotExec, match=said):
        box.popen(words, stdout=-1, stderr=-1, **more)
    assert commands(box) == []


@pytest.mark.parametrize(
    ("more", "error"),
    [({"cwd": ""}, ValueError), ({"cwd": 1}, TypeError), ({"env": ["x"]}, ValueError), ({"env": 1}, TypeError)],
)
def test_wrong_arguments_of_a_command(box: Sandbox, more: Options, error: type[Exception]) -> None:
    """Google's ValueError and TypeError, and the sandbox is as before."""
    before = open_descriptors()
    with pytest.raises(error):
        box.exec("true", **more)
    with pytest.raises(BadArgument):
        box.exec("a\0b")
    assert open_descriptors() == before
    assert box.exec("echo", "x").stdout == "x\n"


def test_nothing_of_a_command_is_on_a_command_line(box: Sandbox) -> None:
    """Arguments and environment may hold secrets, and every user can read the host's command lines."""
    words = ["sh", "-c", "echo started; exec sleep 60; : secret-argument"]
    with box.popen(words, stdout=-1, env={"SECRET": "secret-variable"}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        seen = b""
        for pid in launching.descendants(os.getpid()):
            for name in ("cmdline", "environ"):
                try:
                    seen += Path(f"/proc/{pid}/{name}").read_bytes()
                except OSError:
                    continue  # it is the attendant, which nobody may look into, or has ended
        assert b"exec" in seen
        assert b"secret" not in seen
        process.kill()


def test_timeout_ends_the_command_and_all_that_it_started(box: Sandbox) -> None:
    """Also children in sessions of their own, of another user, and that ignore SIGTERM; others go on."""
    with box.popen(["sleep", "60"]) as other:
        script = "trap '' TERM; echo begun; setsid sh -c 'sleep 61 & sleep 62' & sleep 63 | sleep 64"
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            box.exec("sh", "-c", script, timeout=1, user=1)
        error: Any = caught.value
        assert (type(error), error.stdout) == (TimeoutExpired, "begun\n")
        assert commands(box) == ["sleep"]
        assert other.poll() is None
        other.kill()


def test_a_timeout_that_is_over_before_the_command_runs(box: Sandbox) -> None:
    """Nothing of it stays."""
    with pytest.raises(TimeoutExpired):
        box.exec("sleep", "60", timeout=0)
    assert commands(box) == []


def test_a_command_that_cannot_be_ended_ends_the_sandbox(box: Sandbox) -> None:
    """A fork bomb has more processes than are ended one by one: the whole sandbox goes, and says so."""
    with pytest.raises(TimeoutExpired):
        box.exec("sh", "-c", "i=0; while [ $i -lt 80 ]; do sleep 60 & i=$((i+1)); done; wait", timeout=4)
    box.wait(timeout=30)
    with pytest.raises(SandboxGone):
        box.exec("true")


def test_output_of_a_command_is_bounded(box: Sandbox) -> None:
    """The command ends, the sandbox does not."""
    with pytest.raises(OutputLimit) as caught:
        box.exec("yes", max_output=1000)
    assert caught.value.stdout == "y\n" * 500
    assert commands(box) == []


def test_bytes_and_input(box: Sandbox) -> None:
    """Binary data goes through unchanged, more than the pipes hold."""
    data = os.urandom(500_000)
    assert box.exec("cat", input=data, text=False).stdout == data
    assert box.exec("true", input=data).returncode == 0


def test_background_processes_are_not_waited_for(box: Sandbox) -> None:
    """They go on in the sandbox, until it ends."""
    assert box.exec("sh", "-c", "sleep 60 & echo here").stdout == "here\n"
    assert commands(box) == ["sleep"]


def test_orphans_are_reaped(box: Sandbox) -> None:
    """The guest's init takes those whose parents are gone."""
    box.exec("sh", "-c", "for i in 1 2 3; do (sleep 0.1 &) ; done; sleep 0.5")
    assert commands(box) == []


def test_commands_from_many_threads(box: Sandbox) -> None:
    """They run at once, and their outputs are their own."""
    with ThreadPoolExecutor(8) as pool:
        outputs = pool.map(lambda n: box.exec("sh", "-c", f"sleep 0.1; echo {n}").stdout, range(24))
        assert list(outputs) == [f"{n}\n" for n in range(24)]


# ---- popen ----


def test_popen_streams(box: Sandbox) -> None:
    """Lines go to and fro while the command runs."""
    with box.popen(["cat"], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        for word in ("one\n", "two\n"):
            process.stdin.write(word)
            process.stdin.flush()
            assert process.stdout.readline() == word
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=30) == 0
    assert process.returncode == 0


def test_popen_signals(box: Sandbox) -> None:
    """A signal reaches the command itself, which may answer it."""
    script = "trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.1; done"
    with box.popen(["sh", "-c", script], stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(TimeoutExpired):
            process.wait(timeout=0.1)
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "got\n"
        assert process.wait(timeout=30) == 5
    process.send_signal(signal.SIGTERM)  # nothing happens


def test_popen_terminate_and_kill(box: Sandbox) -> None:
    """The code says which signal it was."""
    for end, code in (("terminate", 143), ("kill", 137)):
        with box.popen(["sleep", "60"]) as process:
            getattr(process, end)()
            assert process.wait(timeout=30) == code


def test_popen_communicate(box: Sandbox) -> None:
    """Bounded in time and size, and the command ends with it."""
    process = box.popen(["sh", "-c", "cat; echo err >&2"], stdin=-1, stdout=-1, stderr=-1)
    assert process.communicate(b"in") == (b"in", b"err\n")
    with pytest.raises(TimeoutExpired):
        box.popen(["sleep", "60"], stdout=-1).communicate(timeout=0.3)
    with pytest.raises(OutputLimit):
        box.popen(["yes"], stdout=-1).communicate(max_output=10)
    assert commands(box) == []


def test_popen_into_files(box: Sandbox) -> None:
    """A file takes the output where it stands, all of it by the time that the command was waited for."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as log:
        source.write(b"abcdef")
        source.seek(3)
        log.write(b"before\n")
        log.flush()
        for _ in range(2):
            with box.popen(["sh", "-c", "cat; seq 20000"], stdin=source, stdout=log) as process:
                assert process.wait() == 0
        log.seek(0)
        numbers = "".join(f"{n}\n" for n in range(1, 20001)).encode()
        assert log.read() == b"before\ndef" + numbers + numbers


def test_an_exception_in_the_block_ends_the_command(box: Sandbox) -> None:
    """It is not waited for, and nothing of it stays."""
    with pytest.raises(ZeroDivisionError), box.popen(["sleep", "60"]):
        raise ZeroDivisionError
    assert commands(box) == []


# ---- files ----


def test_files(box: Sandbox, base: Path) -> None:
    """Bytes and modes get there and back, and relative paths are taken from the root."""
    data = os.urandom(200_000)
    box.write_file("tmp/a", data, mode=0o4751)
    assert box.read_file("/tmp/a") == data
    assert box.exec("python3", "-c", "import os; print(oct(os.stat('/tmp/a').st_mode))").stdout == "0o104751\n"
    box.write_file("/tmp/a", "té")
    assert box.read_file("/tmp/a") == "té".encode()
    (base / "source").write_bytes(data * 10)
    box.put(base / "source", "/tmp/b")
    box.get("/tmp/b", base / "target")
    assert (base / "target").read_bytes() == data * 10


def test_file_errors_are_the_guests(box: Sandbox, base: Path) -> None:
    """OSError with the guest's errno and path; on the host nothing is left of a copy that failed."""
    (base / "source").write_bytes(bytes(200_000))
    with pytest.raises(FileNotFoundError, match="/no/file"):
        box.read_file("/no/file")
    with pytest.raises(IsADirectoryError):
        box.write_file("/tmp", b"")
    with pytest.raises(OSError, match="Read-only"):
        box.put(base / "source", "/usr/file")
    with pytest.raises(FileNotFoundError):
        box.get("/no/file", base / "target")
    with pytest.raises(FileNotFoundError):
        box.put(base / "missing", "/tmp/x")
    box.exec("truncate", "-s", "1G", "/tmp/big")
    for call in (
        lambda: box.read_file("/tmp/big", max_bytes=1000),
        lambda: box.get("/tmp/big", base / "x", max_bytes=9),
    ):
        with pytest.raises(OutputLimit):
            call()
    assert [path.name for path in base.iterdir()] == ["source"]
    assert commands(box) == []


# ---- the sandbox as a whole ----


def test_unconfined_on_request(new_options: Options) -> None:
    """Without a private tmpfs our programs for the guest lie in the launch's own directory, and work from there."""
    with Sandbox(enforcement="off", **new_options) as box:
        assert (box.achieved, box.exec("echo", "x").stdout) == ("none", "x\n")
        with box.popen(["sleep", "60"]) as process:
            process.kill()
            assert process.returncode == 137


def test_ps_and_signals(box: Sandbox) -> None:
    """Each process has its numbers, and can be signalled by them; a name cannot pass for the init."""
    with box.popen(["sleep", "60"], user=5) as process:
        (found,) = [p for p in box.ps() if p.pid == process.pid]
        assert (found.uid, found.command) == (5, "sleep")
        box.signal(signal.SIGTERM, process.pid)
        assert process.wait(timeout=30) == 143
    with pytest.raises(RunscFailed):
        box.signal(signal.SIGTERM, 9999)


def test_pause_stops_time_for_the_guest(box: Sandbox) -> None:
    """No output while it is paused; it goes on where it was. What cannot end while paused ends with the sandbox."""
    script = "while :; do echo x; sleep 0.05; done"
    with box.popen(["sh", "-c", script], stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        box.pause()
        os.set_blocking(process.stdout.fileno(), False)
        process.stdout.read()
        time.sleep(0.5)
        assert not process.stdout.read()
        os.set_blocking(process.stdout.fileno(), True)
        box.resume()
        assert process.stdout.readline() == b"x\n"
        box.pause()
        process.kill()
    assert box.closed


def test_what_it_says_of_itself(make: MakeSandbox) -> None:
    """Its id, its bundle, its record and its confinement."""
    box = make(sandbox_id="my-box")
    assert box.id == "my-box"
    assert box.bundle_dir.endswith("/bundle")
    assert box.achieved == "mount-locked"
    assert box.record.lines[-1].dest == "Exec'd"
    assert "my-box" in repr(box)
    with pytest.raises(Busy):
        make(sandbox_id="my-box")
    box.close()
    assert "closed" in repr(box)
    assert make(sandbox_id="my-box").exec("echo", "again").stdout == "again\n"


def test_close_leaves_nothing(options: Options) -> None:
    """Twice is once; descriptors, processes and files are as before; and nothing more can be done."""
    Sandbox(**options).close()  # the sealed image is kept open for the next launch
    before = open_descriptors(), launching.descendants(os.getpid())
    box = Sandbox(**options)
    process = box.popen(["sleep", "60"], stdout=-1)
    box.close()
    box.close()
    box.kill()
    for call in (lambda: box.exec("true"), box.ps, box.pause, lambda: box.read_file("/x"), process.wait):
        with pytest.raises(SandboxGone):
            call()
    assert process.stdout is not None
    process.stdout.close()
    assert (open_descriptors(), launching.gone(launching.descendants(os.getpid()))) == before


def test_a_guest_that_ends_its_sandbox(box: Sandbox) -> None:
    """When the init is killed from within, that is said, and what runs then is told of it."""
    with pytest.raises((SandboxGone, GuestFailed)):
        box.exec("sh", "-c", "kill -9 1; sleep 60", user=0)
        box.wait(timeout=30)
        box.exec("true")
    box.wait(timeout=30)
    assert box.closed


def test_a_forked_child_of_the_owner_cannot_end_it(box: Sandbox) -> None:
    """A copy of the object in another process has no power over the sandbox."""

    def child() -> None:
        try:
            box.exec("true")
        except SandboxGone:
            box.kill()
            box.close()
            os._exit(42)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 42
    assert box.exec("echo", "alive").stdout == "alive\n"


def test_a_dropped_sandbox_ends(options: Options) -> None:
    """Nobody who could use it, nothing that runs."""
    before = open_descriptors(), launching.descendants(os.getpid())
    box = Sandbox(**options)
    with pytest.warns(ResourceWarning, match=box.id):
        del box
    assert (open_descriptors(), launching.gone(launching.descendants(os.getpid()))) == before


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"runsc": "/no/runsc"}, NotFound),
        ({"sandbox_id": "--help"}, BadId),
        ({"runtime_dir": "/tmp/x", "enforcement": "best_effort"}, BadBase),
        ({"mounts": [dropin.Mount("/d", "/no/such/thing")]}, BadBundle),
        ({"mounts": ["/etc/hostname:/proc"]}, BadArgument),
        ({"user": -1}, BadArgument),
    ],
)
def test_what_cannot_be_started_as_a_sandbox(options: Options, more: Options, error: type[Exception]) -> None:
    """A typed Error that says why, and nothing is left."""
    before = open_descriptors()
    with pytest.raises(error) as caught:
        Sandbox(**(options | more))
    assert isinstance(caught.value, Error)
    assert open_descriptors() == before


# ---- mounts and roots ----


def test_mounts_as_google_has_them(make: MakeSandbox, base: Path) -> None:
    """Binds are writable unless they say otherwise, and tmpfs and proc are the guest's own."""
    for name in ("rw", "ro"):
        (base / name).mkdir()
        (base / name / "file").write_text(name)
    box = make(
        mounts=[
            dropin.Mount.bind(os.fspath(base / "rw"), "/rw"),
            {"destination": "/ro", "source": os.fspath(base / "ro"), "readonly": True},
            dropin.Mount.tmpfs("/scratch"),
            dropin.Mount.proc("/proc2"),
        ]
    )
    assert box.exec("cat", "/rw/file", "/ro/file").stdout == "rwro"
    box.exec("sh", "-c", "echo new >/rw/new; echo x >/scratch/x; cat /proc2/self/comm >/scratch/y")
    assert (base / "rw/new").read_text() == "new\n"
    assert box.exec("sh", "-c", "echo x >/ro/x", check=False).returncode != 0
    assert sorted(p.name for p in base.rglob("*")) == ["file", "file", "new", "ro", "rw"]


def test_an_empty_root(make: MakeSandbox, base: Path) -> None:
    """A rootfs need have nothing in it but a place: then there is nothing to run, but files and a life."""
    (base / "place").mkdir()
    box = make(rootfs=base)
    box.write_file("/tmp/x", b"data")
    assert box.read_file("/tmp/x") == b"data"
    with pytest.raises(CannotExec):
        box.exec("sh")


def test_a_root_without_a_place(make: MakeSandbox, base: Path) -> None:
    """The guest sees one all the same; an unconfined launch could only make it there, and says what is missing."""
    (base / "full").mkdir()
    (base / "full/file").touch()
    assert make(rootfs=base).ps()[0].command == guest.NAME
    assert sorted(path.name for path in base.rglob("*")) == ["file", "full"]
    with pytest.raises(BadBundle, match=guest.DIRECTORY):
        make(rootfs=base, enforcement="off")
    (base / guest.DIRECTORY[1:]).mkdir()
    assert make(rootfs=base).ps()[0].command == guest.NAME


def test_the_guest_cannot_change_our_program(box: Sandbox) -> None:
    """Not even its root."""
    program = f"{guest.DIRECTORY}/{guest.NAME}"
    for script in ("echo x >$0", "rm $0", "mv $0 /tmp/x", "chmod 777 $0", "echo x >${0%/*}/new"):
        assert box.exec("sh", "-c", script, program, check=False).returncode != 0
    assert box.read_file(program) == guest.program()


def test_every_method_is_documented() -> None:
    """Each public name of the interface says what the caller gets."""
    public = [value for name, value in vars(Sandbox).items() if not name.startswith("_")]
    assert [value for value in public if not inspect.getdoc(value)] == []


def test_timeout_ends_what_the_command_detached(box: Sandbox) -> None:
    """Children of the init by then, in sessions of their own; what an earlier command left goes on."""
    box.exec("sh", "-c", "(setsid sleep 600 &)")
    script = "echo begun; (setsid sh -c 'sleep 61 & sleep 62' &); (env -i sleep 63 &); sleep 64"
    with pytest.raises(TimeoutExpired) as caught:
        box.exec("sh", "-c", script, timeout=1.5)
    written: object = caught.value.stdout
    assert written == "begun\n"
    assert len(commands(box)) == 1
    assert not box.closed


def test_what_cannot_be_told_apart_ends_with_the_sandbox(box: Sandbox) -> None:
    """A detached process may be that of either of two commands which ran at the same time."""
    other = box.popen(["sleep", "60"])
    with pytest.raises(TimeoutExpired):
        box.exec("sh", "-c", "(setsid sleep 61 &); sleep 62", timeout=1.5)
    box.wait(timeout=30)
    with pytest.raises(SandboxGone):
        other.wait()
