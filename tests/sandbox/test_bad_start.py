"""What runsc cannot start is never taken for a guest that ended, and what a guest writes never for runsc's word."""

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus_gvisor.model.errors import BadBase
from nucleus_gvisor.runtime import CannotExec, OciBundle, Sandbox, SandboxGone, StartFailed, run
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.said import Said, reason_of
from tests.e2e.launching import Caller, guest_output, summary
from tests.sandbox.conftest import Options
from tests.support import places

NOT_THERE = 'error finding executable "nope" in PATH [/bin]: no such file or directory'
BEFORE = "running container: starting container: starting root container: starting sandbox: "
EOF = "running container: creating container: cannot create sandbox: waiting for sandbox to start: EOF"
FORGED = "running container: starting container: starting root container: starting sandbox: creating process: no"


@pytest.fixture
def said(base: Path) -> Iterator[Said]:
    """The files of a launch that keeps its logs."""
    one = Said.made(base / "logs", "job.1", Identity.current())
    yield one
    one.close()


def told(said: Said, *messages: str, panic: str = "") -> None:
    """runsc's processes end, the first of them first."""
    for message in messages:
        os.write(said.log, json.dumps({"msg": message, "level": "error", "time": "now"}).encode())
    os.write(said.panic, panic.encode())


# ---- what its words mean ----


def test_nothing_said_is_no_failure(said: Said) -> None:
    """The guest's own end."""
    assert said.failure(("sh",)) is None


@pytest.mark.parametrize(
    ("cause", "number"),
    [
        (NOT_THERE, errno.ENOENT),
        ("creating process: failed to load /etc: permission denied", errno.EACCES),
        ("creating process: failed to load /x: exec format error", errno.ENOEXEC),
        ("creating process: failed to load /x: something else again", None),
    ],
)
def test_a_program_that_cannot_be_executed(said: Said, cause: str, number: int | None) -> None:
    """Its errno, and no more of runsc's words than those about it."""
    told(said, BEFORE + cause)
    failure = said.failure(("nope", "-x"))
    assert isinstance(failure, CannotExec)
    assert (failure.cmd, failure.errno) == (("nope", "-x"), number)
    assert BEFORE not in str(failure)
    assert cause.removeprefix("creating process: ") in str(failure)


def test_the_first_error_is_the_cause(said: Said) -> None:
    """What follows says only that somebody has ended; the way that leads to our copy of runsc is nobody's business."""
    told(
        said,
        'setting up root FS: mkdir "/x": read-only',
        f"{EOF}: stat file: stat /memfd:runsc: no such file or directory",
    )
    failure = said.failure(("true",))
    assert isinstance(failure, StartFailed)
    assert 'mkdir "/x": read-only' in str(failure)
    assert str(said.kept[0]) in str(failure)
    assert "EOF" not in str(failure)


def test_a_sandbox_that_broke_says_why(said: Said) -> None:
    """Where the waiting runsc knows of an end alone, Go's own words are the cause."""
    told(
        said, f"{EOF}: stat file: stat /memfd:runsc: no such file or directory", panic="panic: no memory\n\ngoroutine 1"
    )
    text = str(said.failure(("true",)))
    assert "panic: no memory" in text
    assert "goroutine" not in text
    assert "memfd" not in text


def test_an_end_that_comes_later_is_no_bad_start(said: Said) -> None:
    """The guest ran, and nobody knows its code."""
    told(said, "running container: waiting on container: EOF")
    assert isinstance(said.failure(("true",)), SandboxGone)


@pytest.mark.parametrize("text", ["{", "[1]", "null", '{"level": 1}', "\x00\xff", "[" * 20_000, "text"])
def test_what_is_no_message_is_told_as_it_is(said: Said, text: str) -> None:
    """A sentry that was taken over writes what it likes: no exception comes of it."""
    os.write(said.log, text.encode("utf-8", "surrogateescape"))
    failure = said.failure(("true",))
    assert isinstance(failure, SandboxGone | StartFailed)
    assert str(failure).isprintable()


def test_no_more_is_read_than_a_bounded_part(said: Said) -> None:
    """However much is written."""
    told(said, *["starting container: x" * 1000] * 20)
    assert len(str(said.failure(("true",)))) < 2000 * 1000


def test_closed_twice(base: Path) -> None:
    """The numbers may be somebody else's by then."""
    one = Said.made(None, "job", Identity.current())
    one.close()
    with open(os.devnull) as file:
        one.close()
        os.fstat(file.fileno())
    assert one.descriptors == {}
    assert one.failure() is None


def test_logs_are_kept_where_only_the_caller_writes(base: Path, said: Said) -> None:
    """Files that are new, for their owner alone; a directory of others' is refused."""
    assert [stat.S_IMODE(path.stat().st_mode) for path in said.kept] == [0o600, 0o600]
    assert stat.S_IMODE((base / "logs").stat().st_mode) == 0o700
    (base / "open").mkdir()
    (base / "open").chmod(0o777)
    with pytest.raises(BadBase, match="debug_dir refused"):
        Said.made(base / "open/below", "job", Identity.current())


def test_only_flags_that_are_listed_are_passed(said: Said) -> None:
    """Another release may lack any of them."""
    assert said.arguments(()) == []
    assert said.arguments(("log", "log-format"))[::2] == [b"--log", b"--log-format"]
    words = said.arguments(("log", "log-format", "panic-log", "debug-log"))
    assert [word for word in words if word.startswith(b"--")] == [
        *(b"--log", b"--log-format", b"--panic-log", b"--debug", b"--debug-log")
    ]


def test_reason_of_an_exec() -> None:
    """The same of what runsc says of one more command."""
    prefix = b'executing processes for container: executing command "nope" in sandbox: '
    assert reason_of(prefix + NOT_THERE.encode() + b"\n") == errno.ENOENT
    assert reason_of(b"something else") is None


# ---- with real runs ----


@pytest.mark.real
@pytest.mark.parametrize(
    ("words", "number"), [(["nope"], errno.ENOENT), (["/usr/bin/none"], errno.ENOENT), (["/usr"], errno.EACCES)]
)
def test_run_of_no_program(options: Options, words: list[str], number: int) -> None:
    """`run` and `exec` say the same; nothing comes back."""
    with pytest.raises(CannotExec) as failure:
        run(words, **options)
    assert (failure.value.cmd, failure.value.errno) == (tuple(words), number)
    with Sandbox(**options) as box, pytest.raises(CannotExec) as failure:
        box.exec(words)
    assert (failure.value.cmd, failure.value.errno) == (tuple(words), number)


@pytest.mark.real
def test_every_code_and_every_word_may_be_the_guests(options: Options) -> None:
    """Also those that look like runsc's."""
    done = run(["sh", "-c", f"echo '{FORGED}' >&2; exit 128"], **options)
    assert (done.returncode, done.stderr) == (128, FORGED + "\n")


@pytest.mark.real
def test_guest_gets_none_of_the_files(options: Options) -> None:
    """They are runsc's alone."""
    look = "for n in 3 4 5 6 7 8 9 10 11 12 13 14 15; do [ ! -e /proc/self/fd/$n ] || echo $n; done"
    assert run(["sh", "-c", look], **options) == ("", "")


@pytest.mark.real
def test_logs_of_a_launch(options: Options, base: Path) -> None:
    """They are there, and the record names them."""
    done = run(["true"], debug_dir=base / "logs", **options)
    named = done.record.evidence("Exec")["debug"]
    assert sorted(map(os.fspath, (base / "logs").iterdir())) == sorted(named)  # type: ignore[call-overload]
    (log,) = (path for path in (base / "logs").iterdir() if path.name.endswith(".debug.log"))
    assert b"sentry" in log.read_bytes().lower() or log.stat().st_size > 1000


@pytest.mark.real
def test_no_descriptor_stays(options: Options) -> None:
    """Of a run that ends, of one that does not start, of a sandbox."""

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    run(["true"], **options)
    before = count()
    run(["true"], **options)
    with pytest.raises(CannotExec):
        run(["nope"], **options)
    with Sandbox(**options):
        pass
    assert count() == before


@pytest.mark.real
def test_handle_tells_it_too(options: Options) -> None:
    """Below `run`: the code is runsc's, and the handle knows why."""
    from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, Platform

    runtime = GVisorRuntime.with_path(options["runsc"])
    how = GVisorOciRunOptions(platform=Platform.AUTO, artifact_base=options["runtime_dir"])
    with open(os.devnull, "wb") as null:
        with runtime.spawn("bad-start", OciBundle.build(["nope"]), how, stderr=null) as process:
            assert process.wait() == 128
    assert isinstance(process.failure(), CannotExec)
    with runtime.spawn("good-start", OciBundle.build(["sh", "-c", "exit 128"]), how) as process:
        assert process.wait() == 128
    assert process.failure() is None


@pytest.mark.real
@pytest.mark.timeout(600)
def test_codes_of_the_command_line(caller: Caller) -> None:
    """As env(1) and shells have them; the JSON object tells ours from the guest's."""
    for command, code, kind in (
        (["nope"], 127, "CannotExec"),
        (["/usr"], 126, "CannotExec"),
        (["sh", "-c", "exit 127"], 127, None),
        (["sh", "-c", "echo out; exit 128"], 128, None),
    ):
        done = caller.run("--json", command=command)
        error = summary(done)["error"]
        assert (done.returncode, summary(done)["exit"]) == (code, code), done.stderr
        assert (error and error["error"]) == kind
        assert guest_output(done) == ("out\n" if "echo out; exit 128" in command else "")
        last = done.stderr.splitlines()[-1:]
        assert bool(last and last[0].startswith("nucleus-gvisor: exec failed: ")) == (kind is not None)


@pytest.mark.real
def test_a_root_that_does_not_fit(caller: Caller) -> None:
    """Everything else that keeps runsc from starting a guest is told in its own words, and never with 128."""
    with places.private_directory(caller.mode.account) as root:
        for name in ("proc", "dev", "tmp", "etc"):
            (root / name).mkdir()
            os.chown(root / name, caller.mode.account.pw_uid, caller.mode.account.pw_gid)
        os.chown(root, caller.mode.account.pw_uid, caller.mode.account.pw_gid)
        done = caller.run("--rootfs", root, "--json", command=["/bin/true"])
    assert done.returncode in (125, 127), done.stderr
    assert "memfd" not in json.dumps(summary(done)["error"])
