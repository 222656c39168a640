"""The sweep's quick version, the sweep's own soundness, and what it has found."""

import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.hostile.sweep import sweep
from tests.hostile.sweep.by_strace import chosen
from tests.hostile.sweep.faults import ERRORS, SIGNALS
from tests.hostile.sweep.sweep import Result, Worker
from tests.hostile.sweep.trap import Fault
from tests.support.modes import NAMES

WORKERS = len(os.sched_getaffinity(0)) + 1


def shown(result: Result) -> str:
    """The violations, each with the command that shows it again."""
    lines = [f"{sweep.command(result.mode, fault)}\n    {found}" for fault, found in result.violations]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def pool() -> Iterator[list[Worker]]:
    """Warm processes for the caller that this process is."""
    with sweep.workers(NAMES[0], WORKERS) as made:
        yield made


@pytest.mark.slow
@pytest.mark.timeout(900)  # a launch that hangs is bounded by itself, and told as what it is
def test_one_fault_at_each_point(pool: Sequence[Worker]) -> None:
    """Whatever call fails, or is the last: a typed error or an unaffected launch, nothing left, and again at once."""
    seed = int(os.environ.get("NUCLEUS_GVISOR_SWEEP_SEED", secrets.randbits(32)))
    print(f"NUCLEUS_GVISOR_SWEEP_SEED={seed}")
    result = sweep.run(pool, NAMES[0], lambda found: sweep.quick(found, seed, 50))
    print(f"{result.points} points, {result.injections} injections, {len(result.violations)} violations")
    assert result.points > 500 and result.injections + result.alike >= result.points - len(result.unreached)
    assert not result.violations, shown(result)


# ---- what it has found ----

FOUND = {
    "a descriptor that close(2) reports an error for is closed": ("caller", "close", "EIO"),
    "a lock that cannot be taken leaves no descriptor": ("caller", "flock", "ENOMEM"),
    "a lock that cannot be made readable leaves no descriptor": ("caller", "fchmod", "EACCES"),
    "a record that cannot be written ends in Failed all the same": ("caller", "fdatasync", "EIO"),
    "a child that cannot be told anything is not waited for": ("caller", "sendto", "ENOMEM"),
    "a child without a pidfd does not stay": ("caller", "pidfd_open", "EMFILE"),
    "a link that cannot be read is a typed error of the bundle": ("caller", "readlink", "EIO"),
    "capabilities that cannot be read are not taken for none": ("caller", "fgetxattr", "EIO"),
}


@pytest.mark.parametrize(("role", "call", "what"), FOUND.values(), ids=FOUND)
def test_found(pool: Sequence[Worker], role: str, call: str, what: str) -> None:
    """What the sweep found once stays mended: this error, once and from then on, at each such call."""

    def these(found: Iterable[sweep.Point]) -> list[Fault]:
        return [f for f in sweep.everything(found) if (f.role, f.call, f.what) == (role, call, what)]

    result = sweep.run(pool, NAMES[0], these)
    assert result.injections and not result.unreached
    assert not result.violations, shown(result)


def test_what_lasts_is_tried_where_it_is_another_fault(pool: Sequence[Worker]) -> None:
    """A call that fails for good fails alike when it fails once; one that is made again does not."""
    made = {"unshare": Fault("child", "unshare", 1, "EPERM"), "openat": Fault("caller", "openat", 1, "EINTR")}
    for fault in made.values():
        result = Result(NAMES[0])
        sweep.inject(pool, result, [replace(fault, lasting=True), fault], {})
        assert result.injections + result.alike == 2 and not result.violations, shown(result)
        assert result.alike == (fault.call == "unshare")


def test_what_cannot_be_looked_at_is_not_trusted(pool: Sequence[Worker]) -> None:
    """The file's capabilities may be there: when fgetxattr(2) fails, the launch does."""
    told = pool[0].ask(vars(Fault("caller", "fgetxattr", 1, "EIO")))
    assert told["hit"] and told["outcome"].startswith("StepFailed"), told


# ---- the sweep itself ----


@contextmanager
def spoilt(before: str) -> Iterator[list[Worker]]:
    """A launcher that was broken on purpose, and seals its image."""
    with sweep.workers(NAMES[0], 1, before=NOTHING_KEPT + before) as made:
        yield made


NOTHING_KEPT = (
    "from nucleus_gvisor.model.errors import StepFailed\nfrom nucleus_gvisor.runtime import kept\n"
    "def provide(*_): raise StepFailed('nothing is kept')\n"
    "kept.provide = provide\n"
)
STAGE = Fault("caller", "memfd_create", 3, "EMFILE")
"""Where the image is staged: the first two are for runsc's logs."""
BREAKS = {
    "a dropped close": (
        "from nucleus_gvisor.runtime.steps.resolve import Judged\nJudged.close = lambda self: None",
        STAGE,
        "descriptors was",
    ),
    "a limit left lowered": (
        "import resource\nfrom nucleus_gvisor.runtime.launch import Launch\nreal = Launch.failed\n"
        "def failed(self, error):\n    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))\n"
        "    return real(self, error)\nLaunch.failed = failed",
        STAGE,
        "the same process cannot launch again",
    ),
    "a dropped unlink": (
        "from nucleus_gvisor.runtime import cleanup\ncleanup.remove_tree = lambda *a: None",
        STAGE,
        "left behind",
    ),
    "a child that nobody waits for": (
        "from nucleus_gvisor.runtime.supervisor import Supervisor\nSupervisor.end = lambda self: None",
        Fault("child", "unshare", 1, "EPERM"),
        "children was",
    ),
    "a confining call whose failure is passed over": (
        "from nucleus_gvisor.runtime import _child\nfrom nucleus_gvisor.runtime import _linux\n"
        "real = _linux.mount_setattr\n"
        "def careless(*a, **k):\n    try: real(*a, **k)\n    except OSError: pass\n"
        "_linux.mount_setattr = careless\n"
        "ns = lambda kind: os.readlink(f'/proc/self/ns/{kind}')\n"
        "_child._prove = lambda plan: {'confined': 'mount-locked', 'no_new_privs': True, 'canaries': [],"
        " 'user_namespace': ns('user'), 'mount_namespace': ns('mnt')}",
        Fault("child", "mount_setattr", 1, "EPERM", lasting=True),
        "unconfined",
    ),
    "no new privileges, passed over": (
        "from nucleus_gvisor.runtime import _child\nfrom nucleus_gvisor.runtime import _linux\n"
        "real = _linux.no_new_privs\n"
        "def careless():\n    try: real()\n    except OSError: pass\n"
        "_linux.no_new_privs = careless\n_linux.has_no_new_privs = lambda: True",
        Fault("child", "prctl", 1, "EPERM"),
        "it may gain privileges",
    ),
    "another program instead": (
        "from nucleus_gvisor.runtime import _child\n"
        "_child.execute = lambda image, argv, env: os.execve('/bin/echo', ['echo'], {})",
        Fault("child", "unshare", 1, "EPERM"),
        "which was not verified",
    ),
    "an image that can be changed": (
        "from nucleus_gvisor.runtime.steps import stage as staging\nstaging.SEALS = 0",
        Fault("child", "unshare", 1, "EPERM"),
        "can be changed",
    ),
    "an error of no type": (
        "from nucleus_gvisor.runtime.steps import stage as staging\nreal = staging._memfd\n"
        "def bare():\n    try: return real()\n    except OSError as error: raise ValueError(error)\n"
        "staging._memfd = bare",
        STAGE,
        "no typed error",
    ),
    "a line that is not in the record": (
        "from nucleus_gvisor.runtime.audit import Record\nreal = Record.append\n"
        "Record.append = lambda self, line: None if line.action == 'Prepare' else real(self, line)",
        STAGE,
        "is no behaviour",
    ),
    "a signal left blocked": (
        "from nucleus_gvisor.runtime import supervisor\nreal = signal.pthread_sigmask\n"
        "supervisor.signal = type('S', (), {**vars(signal), 'pthread_sigmask': staticmethod("
        "lambda how, mask: real(signal.SIG_BLOCK, mask))})",
        Fault("caller", "pidfd_open", 1, "EMFILE"),
        "mask was",
    ),
}


@pytest.mark.parametrize(("before", "fault", "word"), BREAKS.values(), ids=BREAKS)
def test_broken_launcher_is_found(before: str, fault: Fault, word: str) -> None:
    """A launcher that breaks a part of the invariant on purpose is a violation, which says which part."""
    with spoilt(before) as [worker]:
        told = worker.ask(vars(fault))
    assert told["hit"]
    assert any(word in text for text in told["violations"]), told


def test_hang_is_found() -> None:
    """A launch that does not come to its end is a violation, and its processes are ended."""
    before = "from nucleus_gvisor.runtime.supervisor import Supervisor\nSupervisor.hear = lambda self: signal.pause()"
    with sweep.workers(NAMES[0], 1, before=before, seconds=1) as [worker]:
        told = worker.ask(vars(Fault("child", "unshare", 1, "EPERM")))
        assert any("hangs" in text for text in told["violations"]), told
        again = worker.ask(vars(Fault("caller", "openat", 1, "SIGKILL")))
        assert any("hangs" in text for text in again["violations"]), again


def test_points_are_told_apart(pool: Sequence[Worker]) -> None:
    """A point is one call of one process: the caller, its child, and those whom the child asks, each counted."""
    first = sweep.points(pool[0].ask(None)["calls"])
    assert {role for role, _, _ in first} == {"caller", "child", "child-waits", "asked-1", "asked-2", "asked-3"}
    assert len(set(first)) == len(first)
    found = sweep.discover(pool, Result(NAMES[0]))
    # The child looks at its trial as often as there is time for.
    steady = [known for (role, _, _), known in found.items() if role != "child-waits"]
    assert sum(steady) > 0.9 * len(steady)


def test_every_error_at_every_point() -> None:
    """What is injected at a point: each error of the call, once and from then on, and the signals."""
    faults = list(sweep.faults(("child", "openat", 3)))
    assert [(f.what, f.lasting) for f in faults if not f.what.startswith("SIG")] == [
        (error, lasting) for error in ERRORS["openat"] for lasting in (False, True)
    ]
    assert [f.what for f in sweep.faults(("caller", "getpid", 1))] == list(SIGNALS)


def test_same_seed_same_faults() -> None:
    """The quick sweep's choice follows from its seed, and covers every point."""
    found = [("caller", "openat", n) for n in range(1, 40)]
    assert sweep.quick(found, 7, 5) == sweep.quick(found, 7, 5) != sweep.quick(found, 8, 5)
    assert {(f.role, f.call, f.number) for f in sweep.quick(found, 7, 0)} == set(found)


def test_point_that_is_not_reached_is_told(pool: Sequence[Worker]) -> None:
    """A fault that strikes nowhere is no success."""
    result = Result(NAMES[0])
    sweep.inject(pool, result, [Fault("caller", "openat", 999, "EIO")], {})
    assert result.injections == 0 and len(result.unreached) == len(result.violations) == 1


@pytest.mark.slow
def test_strace_agrees(pool: Sequence[Worker]) -> None:
    """Where strace can single a call out, the launch comes to the same end under it."""
    result = Result(NAMES[0])
    sweep.compare(pool, result)
    assert result.by_strace > 30
    assert not result.violations, shown(result)


def test_strace_is_given_what_it_can_single_out() -> None:
    """A call that another process makes as often cannot be hit alone."""
    calls = [("1", "openat"), ("1", "sched_yield"), ("1", "openat"), ("1", "read"), ("2", "read"), ("2", "unshare")]
    calls += [("2", "sched_yield"), ("2", "lseek"), ("2", "sched_yield")]
    told = {(fault.point, number) for fault, number in chosen(calls)}
    assert told == {("caller:openat:1", 2), ("child:unshare:1", 1)}
