"""Closed standard descriptors and few descriptors: what a daemon or a service starts with."""

import json
import resource
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pytest

from nucleus_gvisor.runtime.launch import LIMITS
from tests.conftest import Release
from tests.e2e.launching import Caller

CLOSED = [numbers for count in range(4) for numbers in combinations(range(3), count)]
every_combination = pytest.mark.parametrize("closed", CLOSED, ids=lambda numbers: "".join(map(str, numbers)) or "none")
HEAD = """
import os, sys
from pathlib import Path
from nucleus_gvisor.runtime import AsyncSandbox, GVisorOciRunOptions, GVisorRuntime, OciBundle, Sandbox, arun, run

options = {"runsc": sys.argv[1], "pin": sys.argv[2] or None}
"""
CLOSING = """
told = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
os.dup2(told, 99, inheritable=False)
os.close(told)
closed = [int(number) for number in sys.argv[4].split(",") if number]
for number in closed:
    os.close(number)

def say(*words):
    os.write(99, repr(words).encode() + b"\\n")

def main():
"""
RAN = """
try:
    main()
except BaseException as error:
    say(type(error).__name__, str(error))
"""
SYNC = """
with Sandbox(**options) as box:
    say(run(["echo", "run"], **options).stdout, box.exec("echo", "exec").stdout)
    for number in closed:
        os.close(number)  # as a service does that becomes a daemon late
    say(box.exec("echo", "late").stdout, run(["cat"], **options).stdout)
    with box.popen(["cat"], stdout=-1) as process:
        say(process.stdout.read(), process.wait())
"""
ASYNC = """
import asyncio
async def both():
    async with AsyncSandbox(**options) as box:
        say((await arun(["echo", "run"], **options)).stdout, (await box.exec("echo", "exec")).stdout)
asyncio.run(both())
"""
LAUNCH = """
if options["pin"] is None:
    GVisorRuntime.resolve_path()  # which keeps a sealed copy
record = Path(sys.argv[3] + ".ndjson")
say(run(["sh", "-c", "echo run; cat"], record=record, stdin=0, **options).stdout)
runtime = GVisorRuntime.with_path(options["runsc"], pin=options["pin"])
reader, writer = os.pipe()
bundle = OciBundle.build(["sh", "-c", "cat; echo spawn"])
with runtime.spawn("plain", bundle, GVisorOciRunOptions(platform="auto"), stdout=writer) as process:
    os.close(writer)
    say(process.wait(30), os.read(reader, 100))
"""


def told_by(caller: Caller, program: str, closed: tuple[int, ...]) -> list[str]:
    """What a program says that runs with these descriptors closed."""
    body = "".join(f"    {line}\n" for line in program.strip().splitlines())
    file = caller.mode.base / "told"
    done = caller.script(HEAD + CLOSING + body + RAN, file, ",".join(map(str, closed)), timeout=300)
    assert not done.stderr, done
    return file.read_text().splitlines()


@pytest.mark.root_first
@every_combination
def test_closed_descriptors(caller: Caller, closed: tuple[int, ...]) -> None:
    """Whichever are closed, at the start or later: commands run, and nothing of ours is taken for a stream."""
    assert told_by(caller, SYNC, closed) == [r"('run\n', 'exec\n')", r"('late\n', '')", "(b'', 0)"]


@every_combination
def test_closed_descriptors_on_asyncio(first: Caller, closed: tuple[int, ...]) -> None:
    """The same on an event loop, whose own descriptors then have the numbers of the standard streams."""
    assert told_by(first, ASYNC, closed) == [r"('run\n', 'exec\n')"]


@every_combination
def test_closed_descriptors_of_a_launch(first: Caller, closed: tuple[int, ...]) -> None:
    """What a launch keeps, a record that the caller names and the copy of runsc, is never what the guest reads."""
    assert told_by(first, LAUNCH, closed) == [r"('run\n',)", r"(0, b'spawn\n')"]


@pytest.mark.root_first
@every_combination
def test_closed_descriptors_of_the_command_line(caller: Caller, closed: tuple[int, ...]) -> None:
    """The command line too: what is open gets its part, and what is closed is /dev/null."""
    words = [caller.mode.python, *caller.arguments(command=["sh", "-c", "cat; echo out; echo err >&2"])]
    shut = " ".join(f"{number}>&-" for number in closed)
    done = caller.mode.run(["bash", "-c", f'exec "$@" {shut}', "bash", *words], input="in\n", stdin=None)
    assert done.returncode == 0, done
    assert done.stdout == ("" if 1 in closed else ("" if 0 in closed else "in\n") + "out\n")
    assert done.stderr == ("" if 2 in closed else "err\n")


# ---- limits ----

LIMITED = """
import json, resource
from nucleus_gvisor.runtime import launch

number, soft, hard = map(int, sys.argv[3:6])
most = resource.getrlimit(number)[1]
launch.LIMITS.clear()  # to see what becomes of what it would refuse
resource.setrlimit(number, (soft, hard or most))
told = {}
try:
    done = run(["echo", "run"], **options)
    told["run"] = done.stdout or done.stderr or str(done.returncode)
    with Sandbox(**options) as box:
        told["exec"] = box.exec("echo", "exec").stdout
        many = "f = [open('/proc/self/status') for _ in range(200)]; print(len(f))"
        told["open"] = box.exec("python3", "-c", many, check=False).stdout
except Exception as error:
    told["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(told))
"""


def under(caller: Caller, number: int, soft: int, hard: int = 0) -> Mapping[str, Any]:
    """What a launch and a sandbox come to under these limits, which are not judged before; 0 is as it is."""
    done = caller.script(HEAD + LIMITED, number, soft, hard, timeout=300)
    told: Mapping[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("number", LIMITS, ids=lambda number: LIMITS[number].name)
def test_the_least_soft_limit_is_enough(first: Caller, release: Release, number: int) -> None:
    """With what the preflight asks for, and no more, a launch and a sandbox work, and the guest may open more files."""
    caller = Caller(first.mode, release.path)
    assert under(caller, number, LIMITS[number].soft) == {"run": "run\n", "exec": "exec\n", "open": "200\n"}


def test_the_least_hard_limit_of_descriptors(caller: Caller) -> None:
    """It is enough, and with one fewer the sentry does not start: the number is neither too small nor too great."""
    least = LIMITS[resource.RLIMIT_NOFILE].hard
    told = under(caller, resource.RLIMIT_NOFILE, least, least)
    assert (told["run"], told["exec"]) == ("run\n", "exec\n")
    told = under(caller, resource.RLIMIT_NOFILE, least - 1, least - 1)
    assert told.get("run") != "run\n" and "exec" not in told


@pytest.mark.parametrize("hard", [128, 200, 256, 258])
def test_a_low_hard_limit_is_refused(caller: Caller, hard: int) -> None:
    """Before anything runs, with what would be enough."""
    words = [caller.mode.python, *caller.arguments(command=["true"])]
    done = caller.mode.run(["bash", "-c", f'ulimit -n {hard}; exec "$@"', "bash", *words])
    assert done.returncode == 125
    assert f"the hard RLIMIT_NOFILE is too low; observed: {hard}; expected: at least 259; hint: raise it" in done.stderr
