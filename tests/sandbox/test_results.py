"""Results and errors are values: they compare, hash, copy, and pass between processes."""

import copy
import dataclasses
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import nucleus_gvisor.runtime as api
from nucleus_gvisor.model import errors as launching
from nucleus_gvisor.model.conformance import Disagreement, Refused, Unsupported, Walk, usual_launches
from nucleus_gvisor.runtime import Completed, CompletedRun, Error, LaunchError, Record, errors, run
from tests.e2e.conftest import readable  # noqa: F401
from tests.e2e.launching import Caller
from tests.sandbox.conftest import Options


def pickled(protocol: int) -> Callable[[Any], Any]:
    """There and back."""
    return lambda value: pickle.loads(pickle.dumps(value, protocol))


COPIES = {
    **{f"pickle {protocol}": pickled(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
copied = pytest.mark.parametrize("again", COPIES.values(), ids=list(COPIES))

ODD: Mapping[type[Error], Callable[[type[Any]], Error]] = {
    launching.GuardRefused: lambda kind: kind("Exec", "Staged", "confined", observed=1, expected=2),
    errors.RunscFailed: lambda kind: kind("runsc ps failed", b"what \xff it said"),
    errors.CannotExec: lambda kind: kind(("nope", "\udcff"), b"not found"),
    errors.GuestFailed: lambda kind: kind(3, ("sh", "-c", "exit 3"), "out", b"err"),
    errors.TimeoutExpired: lambda kind: kind(["sleep"], 1.5, b"out", "err"),
    errors.CopyFailed: lambda kind: kind(("cat",), "stdin", OSError(28, "No space left on device"), "out", None),
    errors.WorkspaceConflict: lambda kind: kind("/work", ["a\udcff", "b", "c", "d"]),
    errors.SyncFailed: lambda kind: kind("/work", OSError(28, "No space left on device", "a"), pending=True),
    errors.OutputLimit: lambda kind: kind(("yes",), 10, "y\n" * 5, None),
    errors.LifetimeExpired: lambda kind: kind(timeout=2, stdout="out"),
}
"""How those errors are made whose `__init__` has a signature of its own."""


def kinds(base: type[Error]) -> Iterator[type[Error]]:
    """All that derive from `base`, as far as they are the packages' own."""
    for kind in base.__subclasses__():
        if kind.__module__.startswith("nucleus_gvisor."):
            yield kind
            yield from kinds(kind)


def made(kind: type[Error]) -> Error:
    """One of that kind, with something in every field."""
    odd = next((make for of, make in ODD.items() if kind is of), None)
    if odd is not None:
        return odd(kind)
    if not issubclass(kind, LaunchError):
        return kind("what \x1b happened")
    cause = OSError(28, "No space left on device", "/some/file")
    error = kind("no", step="Stage", path=b"/p\xff", observed={"size": (1, 2)}, expected=[b"x"], hint="make room")
    error.__cause__ = cause
    error.record = Record()
    return error


def same(one: Any, other: Any) -> bool:
    """Do two errors say the same."""
    return (type(one), str(one), one.args, vars(one)) == (type(other), str(other), other.args, vars(other))


@copied
@pytest.mark.parametrize("kind", sorted(set(kinds(Error)), key=str))
def test_every_error_is_rebuilt(kind: type[Error], again: Callable[[Any], Any]) -> None:
    """Its text, its fields, its class; a note that somebody has added; and the errno of what lay behind it."""
    error = made(kind)
    error.add_note("seen on a Monday")
    twin = again(error)
    assert twin is not error
    assert same(twin, error)
    for name in ("errno", "stdout", "stderr", "output", "returncode", "timeout", "cmd", "restricted", "line"):
        assert getattr(twin, name, None) == getattr(error, name, None)


def test_fields_are_the_copys_own() -> None:
    """A change to one is not a change to the other."""
    error = made(launching.StepFailed)
    twin = copy.copy(error)
    twin.hint = "another"  # type: ignore[attr-defined]
    assert error.hint == "make room"  # type: ignore[attr-defined]


def test_cause_that_does_not_pickle_stays_behind() -> None:
    """A lock, a frame, whatever led to it: the error itself is still told."""
    error = launching.StepFailed("interrupted by MemoryError")
    error.__cause__ = type("Strange", (Exception,), {})()
    twin = pickle.loads(pickle.dumps(error))
    assert same(twin, error)
    assert twin.__cause__ is None


def test_cause_of_ours_comes_along() -> None:
    """`raise StartFailed from SandboxGone`."""
    error = errors.StartFailed("no")
    error.__cause__ = errors.SandboxGone("gone")
    assert same(pickle.loads(pickle.dumps(error)).__cause__, error.__cause__)


def test_lifetime_has_one_output() -> None:
    """`output` is `stdout`, as on every TimeoutExpired of subprocess."""
    error = errors.LifetimeExpired(timeout=1)
    error.stdout = "so far"
    assert (error.output, error.stdout) == ("so far", "so far")


@copied
def test_harness_errors_pickle(again: Callable[[Any], Any]) -> None:
    """Those of whoever judges a launcher of his own, in parallel."""
    walk = Walk(next(iter(usual_launches())), ())
    for error in (Refused("Exec"), Unsupported("pins"), Disagreement("mine", "did not move", walk)):
        twin = again(error)
        assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))


# ---- results ----

PLAIN = Completed(("sh", "-c", "x"), 3, "out", "err")
RECORD = Record()
WHOLE = CompletedRun(("true",), 0, b"", None, RECORD, "mount-locked", {"memory": "watch"}, "memory")


@copied
@pytest.mark.parametrize("value", [PLAIN, WHOLE])
def test_results_are_copied(value: Completed[Any], again: Callable[[Any], Any]) -> None:
    """All of it, and equal."""
    twin = again(value)
    assert type(twin) is type(value)
    assert (twin == value, twin != value) == (True, False)
    assert hash(twin) == hash(value)
    assert vars(twin) == vars(value)
    assert (twin.stdout, twin.stderr) == tuple(value)


@pytest.mark.parametrize(
    "other",
    [
        Completed(("sh",), 3, "out", "err"),
        Completed(PLAIN.args, 0, "out", "err"),
        Completed(PLAIN.args, 3, "", "err"),
        Completed(PLAIN.args, 3, "out", ""),
        CompletedRun(PLAIN.args, 3, "out", "err", RECORD, "none", {}, "read-only"),
        ("out", ""),
        "out",
    ],
)
def test_results_differ_by_each_field(other: object) -> None:
    """And by their kind."""
    assert (other == PLAIN, other != PLAIN) == (False, True)


@pytest.mark.parametrize(
    "changed",
    [
        {"record": None},
        {"achieved": "none"},
        {"achieved_limits": {}},
        {"achieved_root": "host"},
        {"returncode": 1},
        {"stdout": b"x"},
    ],
)
def test_runs_differ_by_each_field(changed: dict[str, Any]) -> None:
    """Those of the launch too."""
    fields: dict[str, Any] = {"args": WHOLE.args, "returncode": 0, "stdout": b"", "stderr": None}
    fields |= {
        "record": RECORD,
        "achieved": "mount-locked",
        "achieved_limits": {"memory": "watch"},
        "achieved_root": "memory",
    }
    assert CompletedRun(**fields) == WHOLE
    other = Record()
    other.problem = "another"
    if "record" in changed:
        changed = {"record": other}
    assert CompletedRun(**(fields | changed)) != WHOLE


def test_result_is_its_pair() -> None:
    """Unpacked, by index, and beside a plain pair, as the reference's callers compare it."""
    out, err = PLAIN
    assert (out, err, PLAIN[0], len(PLAIN)) == ("out", "err", "out", 2)
    assert PLAIN == ("out", "err")
    assert PLAIN == ("out", "err")
    assert {PLAIN: 1}[("out", "err")] == 1  # type: ignore[index]


def test_results_are_frozen() -> None:
    """What is hashed does not change."""
    for name in ("args", "returncode", "stdout", "anything"):
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
            setattr(PLAIN, name, 1)
        with pytest.raises(AttributeError):
            delattr(PLAIN, name)
    assert PLAIN.returncode == 3


@pytest.mark.parametrize("again", [pickled(2), pickled(pickle.HIGHEST_PROTOCOL), copy.copy, copy.deepcopy])
def test_other_values_are_copied(again: Callable[[Any], Any]) -> None:
    """All that a caller would put into a task for another process."""
    bundle = api.OciBundle.build(["true"], mounts=["/usr:/mnt"])
    twin = again(bundle)
    assert (twin.config, twin.bundle_path, twin.binds()) == (bundle.config, None, bundle.binds())
    judged = api.RunscPath("/usr/bin/runsc", "ab" * 32)
    assert (again(judged), again(judged).sha256) == ("/usr/bin/runsc", "ab" * 32)
    for value in (
        api.Mount.tmpfs("/scratch"),
        api.Limits(memory=1 << 20),
        api.GVisorOciRunOptions(artifact_base=Path("/run/x")),
        api.Process(1, 0, 0, "init"),
        api.Release("20240729.0", "runsc version", ("systrap",), "systrap"),
        api.NetworkMode.NONE,
        api.Platform.AUTO,
    ):
        assert again(value) == value


def test_records_are_compared_by_what_they_say() -> None:
    """Not by which file is open."""
    one, other, third = Record(), Record(), Record()
    third.problem = "no base"
    assert (one == other, one == third, one == "a record") == (True, False, False)


# ---- with real runs ----


@pytest.mark.real
@copied
def test_run_is_copied_as_data(options: Options, again: Callable[[Any], Any]) -> None:
    """The record too: its file and its lines, and no descriptor."""
    done = run(["echo", "hi"], **options)
    twin = again(done)
    assert twin == done
    assert twin.record.lines == done.record.lines
    assert twin.record.path == done.record.path
    assert twin.record._fd == -1
    twin.record.verify()


@pytest.mark.real
@copied
def test_failed_launch_is_copied_with_its_record(options: Options, again: Callable[[Any], Any]) -> None:
    """What a pool's parent needs to look into it."""
    with pytest.raises(api.NotFound) as failure:
        run(["true"], **(options | {"runsc": "/nonexistent/runsc"}))
    twin = again(failure.value)
    assert same(twin, failure.value)
    assert twin.record.states[-1] == "Failed"


POOLS = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor

from nucleus_gvisor.runtime import Error, run

HOW = {"runsc": sys.argv[1], "pin": sys.argv[2] or None}


def work(kind):
    if kind == "ends":
        return run(["echo", "hi"], **HOW)
    if kind == "fails":
        return run(["sh", "-c", "echo out; exit 3"], check=True, **HOW)
    if kind == "late":
        return run(["sleep", "600"], timeout=0.5, **HOW)
    return run(["true"], runsc="/nonexistent/runsc")


def told(get):
    try:
        done = get()
        return type(done).__name__, done.stdout, done.returncode, done.record.states[-1]
    except Error as error:
        return type(error).__name__, getattr(error, "stdout", None), getattr(error, "returncode", None)


if __name__ == "__main__":
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            for kind in ("ends", "fails", "late", "absent"):
                print(method, *told(pool.submit(work, kind).result))
        with context.Pool(1) as pool:
            for kind in ("ends", "fails", "late", "absent"):
                print(method, *told(pool.apply_async(work, (kind,)).get))
"""


@pytest.mark.real
@pytest.mark.timeout(600)
def test_process_pools(caller: Caller, readable: Path) -> None:  # noqa: F811
    """Of both kinds, started both ways; an error that did not come through would leave the pool waiting for ever."""
    program = readable / "pools.py"
    program.write_text(POOLS)
    program.chmod(0o644)
    done = caller.mode.run(
        [caller.mode.python, "-W", "error", program, str(caller.runsc), caller.pin or ""], timeout=500
    )
    lines = ["CompletedRun hi\n 0 Exec'd", "GuestFailed out\n 3", "TimeoutExpired  None", "NotFound None None"]
    assert done.stderr == ""
    assert done.stdout == "".join(
        f"{method} {line}\n" for method in ("fork", "spawn") for _ in range(2) for line in lines
    )
