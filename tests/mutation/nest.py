"""Where mutants are let loose: a private copy of the tree, and namespaces of their own for each run of tests.

A mutant may lack the very line that keeps a launch from closing the host's mounts, or from removing what a link leads
to. So pytest runs in its own mount and process namespace, where only what tests need can be written, and all that it
started is killed with it. For that it has to be root.

One process is forked for each run, from a parent that has imported what takes long and does not change.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from tests.mutation.mutants import Mutant
from tests.setup import releases
from tests.setup.provision import NEWER, test_base
from tests.support.app import OURS, copy_dependencies, make_readable
from tests.support.places import ROOT, remove

PRELOADED = ("pytest", "coverage", "hypothesis.stateful", "transitions", "rich.table", "jsonschema")
NOT_COPIED = ("__pycache__", ".*", "*.egg-info", "build", "dist", "htmlcov")
WRITABLE = frozenset({"dev", "proc", "sys", "run", "tmp", "var", "home", "lost+found"})
TEST_SECONDS = 60
"""After which a test is taken to hang, when it is not known to take long."""
NOT_FOUND, NONE_LEFT = 4, 5  # pytest.ExitCode
NO_TESTS, NO_NEST = 70, 71
"""Exit codes: pytest could not even begin, because of the mutant; it was never asked to, because of this machine."""
PR_SET_PDEATHSIG = 1  # linux/prctl.h
CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000  # linux/sched.h
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18  # linux/mount.h


@dataclass(frozen=True)
class Outcome:
    """How a run of tests ended."""

    passed: bool
    test: str = ""
    """The first test that failed; "" when none could begin."""
    hung: bool = False


class Nest:
    """A copy of the tree in which one file at a time is a mutant's."""

    def __init__(self, root: Path = ROOT) -> None:
        if os.geteuid():
            raise PermissionError("mutants run as root only: they are held by namespaces of their own")
        test_base().mkdir(parents=True, exist_ok=True)
        self.home = Path(tempfile.mkdtemp(prefix="base-mutants-", dir=test_base()))
        self.tree = self.home / "tree"
        self.packages = self.home / "packages"
        self.base = self.home / "base"
        """What tests in the nest take for their test base."""
        self.log = self.home / "log"
        self.home.chmod(0o755)
        shutil.copytree(root, self.tree, ignore=shutil.ignore_patterns(*NOT_COPIED))
        (self.packages / "nucleus_gvisor").mkdir(parents=True)
        for name in OURS:
            (self.packages / "nucleus_gvisor" / name).symlink_to(self.tree / name)
        # Byte code is valid for the bytes that it was made from: a mutant is as long, and as old, as another.
        compile_all = import_module("compileall").compile_dir
        mode = import_module("py_compile").PycInvalidationMode.CHECKED_HASH
        for name in OURS:
            compile_all(self.tree / name, quiet=2, invalidation_mode=mode)
        self.dependencies = self.home / "dependencies"
        self.dependencies.mkdir()
        copy_dependencies(self.dependencies)
        make_readable(self.dependencies)
        for name in PRELOADED:
            import_module(name)

    def close(self) -> None:
        remove(self.home)

    @contextmanager
    def with_mutant(self, mutant: Mutant) -> Iterator[None]:
        """The copy with the mutant's change in it."""
        path = self.tree / mutant.file
        whole = path.read_bytes()
        path.write_bytes(mutant.apply(whole))
        try:
            yield
        finally:
            path.write_bytes(whole)

    def run(self, tests: Sequence[str], *, seconds: float, test_seconds: int = TEST_SECONDS) -> Outcome:
        """Run `tests` in their order up to the first that fails; all must end within `seconds`."""
        ended, lines = self._told(tests, tests, seconds, test_seconds)
        if ended == NOT_FOUND and not lines:  # tests whose parameters the mutant changed are not there
            ended, lines = self._told(sorted({test.partition("::")[0] for test in tests}), tests, seconds, test_seconds)
        failed = next((line for line in lines if "failed" in line), None)
        if failed is not None:
            return Outcome(False, str(failed["failed"]), bool(failed["hung"]))
        if ended in (0, NONE_LEFT):
            return Outcome(True)
        return Outcome(False, str(lines[-1]["began"]) if lines else "", ended is None)

    def _told(
        self, places: Sequence[str], tests: Sequence[str], seconds: float, test_seconds: int
    ) -> tuple[int | None, list[dict[str, object]]]:
        told = self.home / "told"
        told.write_text("")
        arguments = ["-x", f"--timeout={test_seconds}", *places]
        ended = self.apart(lambda: self.pytest(arguments, [Teller(told, self, tests)]), seconds)
        return ended, [json.loads(line) for line in told.read_text().splitlines()]

    def apart(self, work: Callable[[], int], seconds: float) -> int | None:
        """The exit status of `work`, done in namespaces of its own in the copy; None when it took too long."""
        pid = os.fork()
        if pid == 0:
            _guarded(lambda: _separate(self, work))
        pidfd = os.pidfd_open(pid)
        try:
            in_time = select.select([pidfd], [], [], seconds)[0]
            if not in_time:  # the first of a process namespace takes all others with it
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            assert status is not None
            if in_time and status.si_status == NO_NEST:
                raise RuntimeError(f"no namespaces for mutants here:\n{self.log.read_text()}")
            return status.si_status if in_time else None
        finally:
            os.close(pidfd)

    def pytest(self, arguments: Sequence[str], plugins: Sequence[object]) -> int:
        """Run pytest on the copy, in this process, which is good for nothing else afterwards."""
        for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "nucleus_gvisor")]:
            del sys.modules[name]
        sys.path[:] = [str(self.packages), *(path for path in sys.path if path not in ("", os.getcwd(), str(ROOT)))]
        os.environ |= {"PYTHONPATH": str(self.packages), "NUCLEUS_GVISOR_TEST_BASE": str(self.base)}
        # Whoever finds this set leaves it to another to judge the records: see tests/support/records.py.
        (self.home / "spool").write_text("")
        os.environ["NUCLEUS_GVISOR_TESTS_SPOOL"] = str(self.home / "spool")
        kept = self.home / "hypothesis"  # examples that another mutant failed with are not this one's
        shutil.rmtree(kept, ignore_errors=True)
        import_module("hypothesis.configuration").set_hypothesis_home_dir(kept)
        os.chdir(self.tree)
        preloaded = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
        always = ["-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-W", preloaded]
        return int(import_module("pytest").main([*always, *arguments], plugins=list(plugins)))


class Teller:
    """A plugin that writes down which test began, and which failed."""

    def __init__(self, path: Path, nest: Nest, tests: Sequence[str]) -> None:
        self._path, self._nest = path, nest
        self._order = {test: number for number, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Those that were asked for, in the order in which they were."""
        order = [
            next((self._order[name] for name in _names(item.nodeid) if name in self._order), None) for item in items
        ]
        chosen = sorted((number, n) for n, number in enumerate(order) if number is not None)
        items[:] = [items[n] for _, n in chosen]

    def pytest_collection(self) -> None:
        """What is the same for all mutants is not made anew for the copy that other users import."""

        def link(into: Path) -> None:
            for path in self._nest.dependencies.iterdir():
                (into / path.name).symlink_to(path)

        def copy_byte_code(into: Path, **_: object) -> None:
            for path in self._nest.tree.glob("*/**/__pycache__"):
                if (into / path.parent.relative_to(self._nest.tree)).is_dir():
                    shutil.copytree(path, into / path.relative_to(self._nest.tree), dirs_exist_ok=True)

        app = vars(import_module("tests.support.app"))
        app |= {"copy_dependencies": link, "compileall": SimpleNamespace(compile_dir=copy_byte_code)}

    def _tell(self, **what: object) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(what) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._tell(began=nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._tell(failed=report.nodeid, hung="Timeout (>" in str(report.longrepr))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._tell(failed=report.nodeid, hung=False)


def _names(test: str) -> list[str]:
    """What a test can be asked for by: itself, all of its parameters, or its file."""
    return [test, test.partition("[")[0], test.partition("::")[0]]


def _guarded(work: Callable[[], int], status: int = NO_NEST) -> NoReturn:
    try:
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _separate(nest: Nest, work: Callable[[], int]) -> int:
    """Fork the first process of a new namespace, end with it, and have it end with us."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    log = os.open(nest.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for fd in (1, 2):
        os.dup2(log, fd)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.closerange(3, 1024)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "unshare")
    first = os.fork()
    if first == 0:
        _guarded(lambda: _first(libc, nest, work))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(first, signal.SIGKILL))
    return os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF


def _first(libc: ctypes.CDLL, nest: Nest, work: Callable[[], int]) -> int:
    """Process 1: make the namespaces safe, have a child do `work`, and reap whoever is left to us."""

    def mount(source: str, target: str, kind: str | None, flags: int) -> None:
        if libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, None):
            raise OSError(ctypes.get_errno(), f"mount {target}")

    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", 0)
    for entry in os.scandir("/"):
        if entry.is_dir(follow_symlinks=False) and entry.name not in WRITABLE:
            mount(entry.path, entry.path, None, MS_BIND | MS_REC)
            mount("none", entry.path, None, MS_BIND | MS_REMOUNT | MS_RDONLY)
    # Every runsc that is not installed, where tests look for it, and the place where it is.
    for folder in (NEWER.parts[0], releases.FOLDER):
        theirs, ours = (os.fspath(base / folder) for base in (test_base(), nest.base))
        os.makedirs(ours, exist_ok=True)
        for path in (theirs, ours):
            mount(theirs, path, None, MS_BIND)
            mount("none", path, None, MS_BIND | MS_REMOUNT | MS_RDONLY)
    worker = os.fork()
    if worker == 0:
        _guarded(work, status=NO_TESTS)
    while True:
        pid, status = os.wait()
        if pid == worker:
            return os.waitstatus_to_exitcode(status) & 0xFF
