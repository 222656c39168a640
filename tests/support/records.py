"""A pytest plugin that keeps every record of the session and lets two judges judge them all when it ends.

Kept is what this process removes, empties or unmounts (an audit hook sees it, whoever does it), what lies in pytest's
own temporary directory at the end, and what a `Record` has in memory, also one in another user's process that never had
a file. All is judged by the offline verifier and, in one run, by TLC. The session fails, with file, test, line and
reason, when the two differ, when a record is rejected that no test declared `seeded`, and when one so declared is not.

A pytest process that one of these starts adds to the same collection, which the first judges when it ends.
"""

import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nucleus_gvisor.model.replay import Judgement, judge, split
from nucleus_gvisor.runtime.audit import SUFFIX, Record
from nucleus_gvisor.spec import tlc, trace

SPOOL = "NUCLEUS_GVISOR_TESTS_SPOOL"
"""Names the file where all processes of a session write down what they find."""
FIRST = b'{"action":'
"""How a record begins, whatever its name."""
MOST = 64 << 20
"""Bytes of a file that are looked at."""

# Tests replace these by ones that fail.
_open, _close, _write, _pread, _fstat, _stat = os.open, os.close, os.write, os.pread, os.fstat, os.stat


def seeded(text: bytes) -> bytes:
    """Declare that a test makes this record, which both judges are to reject alike; the text comes back."""
    _note(text, "seeded", seeded=True)
    return text


# ---- to keep ----


@dataclass
class _Session:
    pid: int = -1
    owner: bool = False
    test: str = "no test"
    made: list[Record] = field(default_factory=list)
    known: set[tuple[bytes, bool]] = field(default_factory=set)
    folders: set[Path] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    report: list[str] = field(default_factory=list)
    failed: bool = False


_session = _Session()


def _note(text: bytes, where: str, *, seeded: bool = False) -> None:
    key = (hashlib.sha256(text).digest(), seeded)
    if SPOOL not in os.environ or key in _session.known:
        return
    _session.known.add(key)
    told = {"test": _session.test, "where": where, "seeded": seeded, "text": text.decode("latin-1")}
    fd = _open(os.environ[SPOOL], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        _write(fd, json.dumps(told).encode() + b"\n")
    finally:
        _close(fd)


def _look(path: str | bytes | os.PathLike[str], folder: int | None = None) -> None:
    """Keep the file, if it is a record."""
    try:
        if not stat.S_ISREG(_stat(path, dir_fd=folder, follow_symlinks=False).st_mode):
            return
        fd = _open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except (OSError, ValueError):
        return  # it is not there, and cannot be thrown away either
    try:
        where = os.readlink(f"/proc/self/fd/{fd}")
        # pytest throws away what earlier sessions left, and judged, under such names.
        if "/garbage-" not in where and (where.endswith(SUFFIX) or _pread(fd, len(FIRST), 0) == FIRST):
            _note(_pread(fd, MOST, 0), where)
    finally:
        _close(fd)


def sweep(folder: Path) -> None:
    """Keep all records below `folder`."""
    for place, _, names in os.walk(folder):
        for name in names:
            _look(os.path.join(place, name))


def _watch(event: str, args: tuple[object, ...]) -> None:
    """The audit hook. rmtree is seen as the removal of each file."""
    if event not in ("os.remove", "open", "subprocess.Popen") or os.getpid() != _session.pid:
        return
    try:
        match event, args:
            case "os.remove", (str() | bytes() | os.PathLike() as path, int() as folder):
                _look(path, None if folder == -1 else folder)
            case "open", (str() | bytes() | os.PathLike() as path, _, int() as flags) if flags & os.O_TRUNC:
                _look(path)
            case "subprocess.Popen", (_, [first, *_, last], _, _) if str(first) == "umount":
                sweep(Path(str(last)))
    except OSError as error:  # which must not reach who removes
        _session.lost.append(f"{_session.test}: a file could not be looked at: {error}")


def _watch_memory() -> None:
    begin = Record.__init__

    def __init__(self: Record) -> None:
        begin(self)
        if os.getpid() == _session.pid:
            _session.made.append(self)

    Record.__init__ = __init__  # type: ignore[method-assign]


IN_MEMORY = f'''

# ---- added by tests/support/records.py ----

if os.environ.get("{SPOOL}"):
    import atexit
    import tempfile

    _made: list[Record] = []
    _begin = Record.__init__

    def _init(self: Record) -> None:
        _begin(self)
        _made.append(self)

    def _tell() -> None:
        for record in _made:
            if record.path is None and record.lines:
                with suppress(OSError):
                    fd, _ = tempfile.mkstemp(suffix="{SUFFIX}", dir=os.environ["{SPOOL}"])
                    os.write(fd, b"".join(line.line() + b"\\n" for line in record.lines))
                    os.close(fd)

    Record.__init__ = _init  # type: ignore[method-assign]
    atexit.register(_tell)
'''


def equip(app: Path, folder: Path) -> None:
    """Have processes of other users that import the copy of our packages in `app`, and are given SPOOL=`folder`, leave
    there, when they end, the records that they never put on disk."""
    with (app / "nucleus_gvisor/runtime/audit.py").open("a") as file:
        file.write(IN_MEMORY)
    _session.folders.add(folder)


def _gather() -> None:
    """What the test that has just ended left in memory, and in other processes' memory."""
    for record in _session.made:
        if record.lines:
            _note(b"".join(line.line() + b"\n" for line in record.lines), "in memory")
    _session.made.clear()
    for folder in _session.folders:
        for path in folder.glob(f"*{SUFFIX}"):
            path.unlink()  # which the hook sees


# ---- pytest ----


def pytest_configure() -> None:
    if _session.pid == os.getpid():
        return
    _session.pid = os.getpid()
    if SPOOL not in os.environ:
        _session.owner = True
        os.environ[SPOOL] = os.path.join(tempfile.mkdtemp(prefix="nucleus-gvisor-records-"), "spool")
        Path(os.environ[SPOOL]).touch()
    _watch_memory()
    sys.addaudithook(_watch)


def pytest_runtest_logstart(nodeid: str) -> None:
    _session.test = nodeid


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    if isinstance(item, pytest.Function) and isinstance(folder := item.funcargs.get("tmp_path"), Path):
        sweep(folder)
    try:
        return (yield)
    finally:
        _gather()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    _gather()
    factory = getattr(session.config, "_tmp_path_factory", None)
    if factory is not None and factory._basetemp is not None:
        sweep(factory._basetemp)
    _session.pid = -1
    if not _session.owner:
        return
    spool = Path(os.environ.pop(SPOOL))
    try:
        _judge_all(spool)
    except (tlc.ToolMissing, tlc.TlcFailed) as error:
        _session.report, _session.failed = [f"not judged: {error}"], True
    finally:
        shutil.rmtree(spool.parent)
    if _session.failed and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _session.failed:
        terminalreporter.section("records", red=True)
    for line in _session.report:
        terminalreporter.write_line(line)


# ---- to judge ----


@dataclass
class _Kept:
    test: str
    where: str
    seeded: bool = False


def _read(spool: Path) -> dict[bytes, _Kept]:
    found: dict[bytes, _Kept] = {}
    with spool.open() as file:
        for line in file:
            told = json.loads(line)
            kept = found.setdefault(told["text"].encode("latin-1"), _Kept(told["test"], told["where"]))
            kept.seeded |= told["seeded"]
    return found


def _judge_all(spool: Path) -> None:
    found = _read(spool)
    if not found:
        return
    began = time.monotonic()
    parts = {text: split(text) for text in found}
    launches = list(dict.fromkeys(part for pieces in parts.values() for part in pieces))
    offline = {text: judge(text) for text in launches}
    middle = time.monotonic()
    by_tlc = dict(zip(launches, trace.judge(launches), strict=True))
    spent = middle - began, time.monotonic() - middle
    counts: Counter[str] = Counter()
    problems = []
    for text, kept in found.items():
        verdicts = [(offline[part], by_tlc[part]) for part in parts[text]]
        counts["seeded"] += kept.seeded
        problems += [f"{kept.where}: {kept.test}: {why}" for why in _problems(verdicts, kept.seeded)]
    accepted = [text for text in launches if offline[text].accepted]
    lines = sum(text.count(b"\n") for text in launches)
    problems += _session.lost
    _session.failed = bool(problems)
    _session.report = [
        *problems,
        f"records: {len(found)} kept, {len(launches)} launches, {lines} lines; both judges accept {len(accepted)} "
        f"and reject {len(launches) - len(accepted)}; {counts['seeded']} were made to be rejected"
        f" ({spent[0]:.1f} s offline, {spent[1]:.1f} s TLC)",
    ]


def _problems(verdicts: list[tuple[Judgement, Judgement]], seeded: bool) -> Iterator[str]:
    for mine, tlcs in verdicts:
        if mine != tlcs:
            told = f"line {mine.line}, {mine.reason} ({mine.words or 'accepted'})"
            yield f"the judges differ: offline says {told}; TLC says line {tlcs.line}, {tlcs.reason}"
    rejected = [mine for mine, _ in verdicts if not mine.accepted]
    if seeded and not rejected:
        yield "accepted, and was made to be rejected"
    if not seeded:
        yield from (f"REJECTED at line {mine.line}, {mine.reason}: {mine.words}" for mine in rejected)
