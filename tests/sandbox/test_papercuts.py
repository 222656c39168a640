"""Small things that every user meets: words, directories, variables, times, flags, and who says which version it is."""

import asyncio
import errno
import math
import subprocess
import sys
import warnings
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Any

import pytest

import nucleus_gvisor.runtime as api
from nucleus_gvisor.runtime import AsyncSandbox, NoEventLoop, arun, cli, run
from nucleus_gvisor.runtime.bundle import DEFAULT_ENV
from nucleus_gvisor.runtime.options import Platform
from nucleus_gvisor.runtime.request import merged, request, words_of
from tests.e2e.launching import Caller, summary
from tests.sandbox.conftest import MakeSandbox, Options

# ---- words ----


@pytest.mark.parametrize("given", [("ls", "-l"), (["ls", "-l"],), (("ls", "-l"),)])
def test_words_in_both_forms(given: tuple[Any, ...]) -> None:
    """One by one, and as a sequence."""
    assert tuple(words_of(given[0], given[1:])) == ("ls", "-l")


def test_words_in_two_forms_at_once() -> None:
    """Nobody means that."""
    with pytest.raises(TypeError, match="one by one"):
        words_of(["ls"], ["-l"])


@pytest.mark.real
def test_exec_and_popen_take_both(make: MakeSandbox) -> None:
    """With one meaning."""
    box = make()
    words = ["echo", "a", "b"]
    assert box.exec(*words) == box.exec(words) == box.exec(tuple(words))
    for process in (box.popen(words, stdout=subprocess.PIPE), box.popen(*words, stdout=subprocess.PIPE)):
        assert process.communicate() == (b"a b\n", None)


@pytest.mark.real
def test_the_same_on_asyncio(options: Options) -> None:
    """With the same meaning."""

    async def both() -> list[Any]:
        async with AsyncSandbox(**options) as box:
            process = await box.popen("echo", "a", stdout=subprocess.PIPE)
            out, _ = await process.communicate()
            return [await box.exec("echo", "a"), await box.exec(["echo", "a"]), out]

    assert asyncio.run(both()) == [("a\n", ""), ("a\n", ""), b"a\n"]


# ---- where, and with what ----


def test_cwd_is_working_dir() -> None:
    """One thing, by the name that `exec` has for it; two at once are refused."""
    assert request(cwd="tmp").working_dir == request(working_dir="tmp").working_dir == "/tmp"
    with pytest.raises(ValueError, match="give one"):
        request(cwd="/tmp", working_dir="/usr")
    with pytest.raises(ValueError, match="cwd cannot be empty"):
        request(cwd=" ")


def test_none_takes_a_variable_away() -> None:
    """Also one of the defaults."""
    assert merged({"A": "1", "B": "2"}, {"A": None, "C": "3", "D": None}) == {"B": "2", "C": "3"}
    assert "HOME" in DEFAULT_ENV
    assert "HOME" not in request(env={"HOME": None}).env


@pytest.mark.real
def test_directory_and_variables_in_a_guest(options: Options, make: MakeSandbox) -> None:
    """As asked for, by `run` and by one more command."""
    assert run(["pwd"], cwd="/tmp", **options).stdout == "/tmp\n"
    # HOME is not tried: runsc gives its own to a guest that has none.
    done = run(["/usr/bin/env"], env={"PATH": None, "A": "1"}, **options)
    assert sorted(done.stdout.split()) == ["A=1", "HOME=/root"]
    box = make(env={"A": "1", "B": "2"})
    assert box.exec("sh", "-c", "echo ${A-none} ${B-none}", env={"A": None}).stdout == "none 2\n"


# ---- times ----

BAD_TIMES = [("3", TypeError), (True, TypeError), ([], TypeError), (-1, ValueError), (math.nan, ValueError)]


@pytest.mark.parametrize(("timeout", "kind"), BAD_TIMES)
def test_a_timeout_that_is_none_is_refused_before_anything(timeout: Any, kind: type[Exception]) -> None:
    """There is no such runsc: who had begun would have met that first."""
    with pytest.raises(kind, match="timeout"):
        run(["true"], timeout=timeout, runsc="/nonexistent/runsc")
    with pytest.raises(kind, match="timeout"):
        asyncio.run(arun(["true"], timeout=timeout, runsc="/nonexistent/runsc"))


@pytest.mark.real
@pytest.mark.parametrize(("timeout", "kind"), BAD_TIMES)
def test_of_a_command_likewise(make: MakeSandbox, timeout: Any, kind: type[Exception]) -> None:
    """Nothing was started; the sandbox is as it was."""
    box = make()
    with pytest.raises(kind, match="timeout"):
        box.exec("touch", "/tmp/begun", timeout=timeout)
    with box.popen(["cat"], stdin=subprocess.PIPE) as process:
        with pytest.raises(kind, match="timeout"):
            process.wait(timeout)
        with pytest.raises(kind, match="timeout"):
            process.communicate(timeout=timeout)
        process.communicate()
    with pytest.raises(kind, match="timeout"):
        box.wait(timeout)
    box.exec("sh", "-c", "[ ! -e /tmp/begun ]")


# ---- outside asyncio ----


def driven(coroutine: Coroutine[Any, Any, Any]) -> None:
    """As another event loop would, or somebody by hand."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a coroutine that is never awaited warns
        try:
            coroutine.send(None)
        finally:
            coroutine.close()


@pytest.mark.parametrize("how", ["run", "sandbox"])
def test_asynchronous_calls_need_asyncio(how: str) -> None:
    """They are refused before anything is begun: there is no such runsc."""
    options: Any = {"runsc": "/nonexistent/runsc"}

    async def enter() -> None:
        async with AsyncSandbox(**options):
            pass

    with pytest.raises(NoEventLoop, match=r"asyncio\.run"):
        driven(arun(["true"], **options) if how == "run" else enter())


# ---- 2 MiB of arguments ----


@pytest.mark.real
def test_as_many_arguments_as_linux_takes(options: Options, make: MakeSandbox) -> None:
    """Almost 2 MiB, by `run` and by one more command, whose runsc waits ahead."""
    many = ["x" * 130_000] * 15 + ["y" * 100_000]
    count = ["sh", "-c", "echo $# ${#1}", "sh", *many]
    assert run(count, **options).stdout == "16 130000\n"
    box = make()
    assert box.exec("echo", "ready").stdout == "ready\n"
    assert box.exec(count).stdout == "16 130000\n"
    with pytest.raises(api.BadArgument, match="at most 2097152 bytes together"):
        box.exec([*count, *many])


# ---- the command line ----


def test_platform_is_auto_but_in_the_references_own() -> None:
    """Everywhere else the verified binary is asked."""
    assert request().options.platform is Platform.AUTO
    assert api.GVisorOciRunOptions().platform is Platform.SYSTRAP
    for verb in ("run", "explain", "shell"):
        assert cli._parser().parse_args([verb, "--", "true"]).platform == "auto"


@pytest.mark.real
def test_spawn_without_options_asks_the_binary(options: Options) -> None:
    """The older release has no systrap."""
    with api.GVisorRuntime.with_path(options["runsc"]).spawn("papercut", api.OciBundle.build(["true"])) as process:
        assert process.wait() == 0
    process.record.path.unlink()  # type: ignore[union-attr]


def test_shell_has_no_flag_that_it_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor one that it passes over."""
    for flags in (["--bundle", "/b"], ["--stage", "copy"], ["--allow-hooks"], ["--timeout", "3"], ["--rootless"]):
        with pytest.raises(SystemExit):
            cli._parser().parse_args(["shell", *flags, "--"])
    given = cli._parser().parse_args(["shell", "--service", "/bin/sleep '1 2'", "--lifetime", "5", "--"])
    assert (given.service, given.lifetime) == (("/bin/sleep", "1 2"), 5)


@pytest.mark.parametrize(
    "flags",
    [
        ["run", "--rlimit", "NOFILE"],
        ["run", "--rlimit", "NOFILE=many"],
        ["run", "--lifetime", "0"],
        ["shell", "--service", "sleep 5"],
        ["shell", "--service", "'"],
    ],
)
def test_flags_that_say_nothing_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With the usage, and before anything is done."""
    with pytest.raises(SystemExit) as end:
        cli._parser().parse_args([*flags, "--", "true"])
    assert end.value.code == 2
    assert flags[-1] in capsys.readouterr().err


@pytest.mark.real
def test_limits_on_the_command_line(caller: Caller) -> None:
    """Those of each process, and of the sandbox's life."""
    done = caller.run("--rlimit", "NOFILE=77:88", command=["sh", "-c", "ulimit -Sn; ulimit -Hn"])
    assert (done.stdout, done.returncode) == ("77\n88\n", 0), done.stderr
    done = caller.run("--lifetime", "3", "--json", command=["sleep", "600"])
    assert (done.returncode, summary(done)["limit"]) == (137, "lifetime"), done.stderr


# ---- the version ----


@pytest.mark.real
def test_version_everywhere(options: Options) -> None:
    """One number: the package's, the command line's, and that of whoever wrote the record."""
    assert api.__version__ == version("nucleus-gvisor")
    for command in (["-m", "nucleus_gvisor.runtime"], ["-m", "nucleus_gvisor.runtime.cli"]):
        done = subprocess.run([sys.executable, *command, "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"nucleus-gvisor {api.__version__}\n")
    done_ = run(["true"], **options)
    assert done_.record.lines[0].evidence == {"version": api.__version__}


def test_errno_of_what_cannot_be_executed() -> None:
    """A field, None where nobody knows."""
    assert api.CannotExec(("x",), b"", errno.ENOENT).errno == errno.ENOENT
    assert api.CannotExec(("x",), b"what else").errno is None
