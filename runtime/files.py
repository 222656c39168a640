"""What is asked of a guest's files: of an agent, a process of ours in the guest that waits for requests.

An agent is `guest.PROGRAM` with the word `a`, started as a command is; its standard input and output are kept. It is
asked one thing at a time. A request is a frame as trees have them (`trees.FRAME`): its kind, a flag, the length of a
path, a number, and the path.

    r  what is in a file                            w  make or overwrite a file: pieces follow, as a tree's files have
    s  a file's ENTRY, or with the flag the ENTRY of what a link leads to
    l  the ENTRY of each file in a directory        d  make a directory, with the number for its mode
    m  change a mode to the number                  u  remove; with the flag a directory and all that is in it
    v  rename; one piece follows, the new path

The answer is pieces, each with its length before it, and then 0, or an errno that is negative.

The agent has the guest's user, and the guest may kill it or take it over: what it answers is the guest's to choose. It
is checked and bounded, and never a path of the host's. One that was not heard to its end is not asked again.
"""

import errno
import fnmatch
import os
import posixpath
import re
import select
import stat
import struct
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

from nucleus_gvisor.runtime.capture import CHUNK, Data, TooLarge, milliseconds, readable
from nucleus_gvisor.runtime.descriptor import File
from nucleus_gvisor.runtime.errors import CopyFailed, OutputLimit
from nucleus_gvisor.runtime.request import deadline_of
from nucleus_gvisor.runtime.trees import FRAME, LONGEST, PIECE, SIZE, ReceivedFile, bad

if TYPE_CHECKING:
    from nucleus_gvisor.runtime.sandbox import Sandbox

Result = TypeVar("Result")
Names = list[str]

STATUS = struct.Struct("<i")
ENTRY = struct.Struct("<HHIIIQqII")
"""Lengths of the name and of where it leads, mode, uid, gid, size, seconds and nanoseconds of its last change."""
MAX_FILE = 1 << 30
"""Bytes of a file that is read into memory, unless the caller says otherwise."""
MAX_LISTING = 8 << 20
"""Bytes of what is told of a directory: some 150,000 entries."""
MAX_MATCHES = 1_000_000
"""Files that a `glob` looks at."""
MOST_IDLE = 4
"""Agents that wait for the next request; more are there only while so many threads or tasks ask at once."""
FAREWELL = 2.0
"""Seconds that an agent may take to end."""
MOST_UNHEARD = 1 << 20
"""Bytes that are read of an answer which nobody wants any more."""


class FileKind(StrEnum):
    """What a file of the guest is."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    FIFO = "fifo"
    SOCKET = "socket"
    DEVICE = "device"


_KINDS = {
    stat.S_IFREG: FileKind.FILE,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.LINK,
    stat.S_IFIFO: FileKind.FIFO,
    stat.S_IFSOCK: FileKind.SOCKET,
    stat.S_IFCHR: FileKind.DEVICE,
    stat.S_IFBLK: FileKind.DEVICE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileStat:
    """What the guest says of a file."""

    name: str
    """In its directory; bytes that are no UTF-8 are there as `surrogateescape` has them."""
    kind: FileKind
    size: int
    """Bytes."""
    mode: int
    """Permission bits, set-id bits among them."""
    uid: int
    gid: int
    mtime_ns: int
    """When it was changed last, by the guest's clock."""
    target: str | None = None
    """Where a link leads."""


# ---- what is asked ----


@dataclass(kw_only=True)
class Ask:
    """One request, and what takes the answer."""

    kind: str
    path: str
    flag: bool = False
    number: int = 0
    more: Iterable[bytes | memoryview] = ()
    """What follows the frame."""
    limit: int = 0
    """Bytes of the answer, where nothing else takes it."""
    sink: ReceivedFile | None = None

    def __post_init__(self) -> None:
        self._path = encoded(self.path)  # at once: it is the caller's error, and not one of copying

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The request as it is sent: in one piece, where it is short."""
        begin = FRAME.pack(ord(self.kind), self.flag, len(self._path), self.number) + self._path
        for piece in self.more:
            if begin and len(piece) <= PIECE:
                piece, begin = begin + piece, b""
            if begin:
                yield begin
                begin = b""
            yield piece
        if begin:
            yield begin


Steps = Generator[Ask, bytes, Result]
"""Asks one thing after the other, and is sent the answers, or thrown the guest's OSError."""


def encoded(path: str) -> bytes:
    """A path of the guest as its kernel has it."""
    data = path.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ValueError("embedded null byte")
    if len(data) >= LONGEST:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    return data


def reading(path: str, limit: int) -> Steps[bytes]:
    return (yield Ask(kind="r", path=path, limit=limit))


def receiving(path: str, file: ReceivedFile, limit: int) -> Steps[None]:
    yield Ask(kind="r", path=path, sink=file, limit=limit)


def writing(path: str, data: Data, mode: int | None, parents: bool) -> Steps[None]:
    if parents:
        yield from making_parents(path)
    yield from sending(path, as_pieces(data.encode() if isinstance(data, str) else data))
    if mode is not None:
        yield from changing_mode(path, mode)


def sending(path: str, pieces: Iterable[bytes | memoryview]) -> Steps[None]:
    yield Ask(kind="w", path=path, more=pieces)


def as_pieces(data: bytes) -> Iterator[bytes | memoryview]:
    """A file as pieces with their lengths, and a length of 0."""
    if len(data) < PIECE - 2 * SIZE.size:
        yield (SIZE.pack(len(data)) + data if data else b"") + SIZE.pack(0)
        return
    for at in range(0, len(data), 1 << 30):
        part = memoryview(data)[at : at + (1 << 30)]
        yield SIZE.pack(len(part))
        yield part
    yield SIZE.pack(0)


def changing_mode(path: str, mode: int) -> Steps[None]:
    yield Ask(kind="m", path=path, number=_mode(mode))


def _mode(mode: int) -> int:
    if not 0 <= mode <= 0o7777:
        raise ValueError(f"mode {mode:#o}: expected permission bits")
    return mode


def making_parents(path: str) -> Steps[None]:
    """What is no directory there is met by whoever comes next."""
    above = posixpath.dirname(path)
    if above != "/":
        with suppress(FileExistsError):
            yield from making(above, 0o777, parents=True, exist_ok=True)


def making(path: str, mode: int, parents: bool, exist_ok: bool) -> Steps[None]:
    """A directory, as pathlib makes them: those above get the default mode."""
    try:
        yield Ask(kind="d", path=path, number=_mode(mode))
    except FileNotFoundError:
        if not parents or path == "/":
            raise
        yield from making(posixpath.dirname(path), 0o777, parents=True, exist_ok=True)
        yield from making(path, mode, parents=False, exist_ok=exist_ok)
    except OSError:
        # Not by the error alone: a directory that is there may be on a file system that is read-only.
        if not exist_ok or (yield from _kind(path)) is not FileKind.DIRECTORY:
            raise


def _kind(path: str) -> Steps[FileKind | None]:
    """What it is, or what it leads to; None when there is nothing, or nothing that can be reached."""
    try:
        return (yield from status(path, True)).kind
    except OSError:
        return None


def removing(path: str, recursive: bool, missing_ok: bool) -> Steps[None]:
    try:
        yield Ask(kind="u", path=path, flag=recursive)
    except FileNotFoundError:
        if not missing_ok:
            raise


def moving(source: str, target: str) -> Steps[None]:
    to = encoded(target)
    try:
        yield Ask(kind="v", path=source, more=[SIZE.pack(len(to)) + to])
    except OSError as error:
        error.filename2 = target
        raise


def status(path: str, follow: bool) -> Steps[FileStat]:
    found = parsed((yield Ask(kind="s", path=path, flag=follow, limit=ENTRY.size + LONGEST)), posixpath.basename(path))
    if len(found) != 1:
        raise bad("not one file")
    return found[0]


def listing(path: str) -> Steps[tuple[FileStat, ...]]:
    """A directory's entries by name."""
    return tuple(sorted(parsed((yield Ask(kind="l", path=path, limit=MAX_LISTING))), key=lambda found: found.name))


def parsed(data: bytes, name: str | None = None) -> list[FileStat]:
    """What was told of files, each with a name of its own; OSError when it is not told so. `name`: of one without."""
    found: dict[str, FileStat] = {}
    at = 0
    while at < len(data):
        if len(data) - at < ENTRY.size:
            raise bad("no entry")
        size, more, mode, uid, gid, length, seconds, nanoseconds, zero = ENTRY.unpack_from(data, at)
        at += ENTRY.size + size + more
        own, target = data[at - size - more : at - more], data[at - more : at]
        kind = _KINDS.get(stat.S_IFMT(mode))
        if at > len(data) or kind is None or mode >> 16 or nanoseconds >= 10**9 or zero:
            raise bad("no entry")
        if own in (b"", b".", b"..") or b"/" in own or b"\0" in own if name is None else own:
            raise bad("no name")
        if (more and kind is not FileKind.LINK) or more > LONGEST or b"\0" in target:
            raise bad("no link")
        one = own.decode("utf-8", "surrogateescape") if name is None else name
        found[one] = FileStat(
            name=one,
            kind=kind,
            size=length,
            mode=stat.S_IMODE(mode),
            uid=uid,
            gid=gid,
            mtime_ns=seconds * 10**9 + nanoseconds,
            target=target.decode("utf-8", "surrogateescape") if more else None,
        )
    return list(found.values())


@dataclass(frozen=True)
class Page:
    """A directory as `os.walk` has it."""

    directories: list[str]
    others: list[str]
    links: frozenset[str]
    """Those of the directories that are links: nobody walks there."""


def paging(path: str) -> Steps[Page]:
    entries = yield from listing(path)
    links, directories = set(), set()
    for entry in entries:
        if entry.kind is FileKind.DIRECTORY:
            directories.add(entry.name)
        elif entry.kind is FileKind.LINK and (yield from _kind(posixpath.join(path, entry.name))) is FileKind.DIRECTORY:
            directories.add(entry.name)
            links.add(entry.name)
    names = [entry.name for entry in entries]
    inside = [name for name in names if name in directories]
    return Page(inside, [name for name in names if name not in directories], frozenset(links))


def globbing(base: str, pattern: str) -> Steps[tuple[str, ...]]:
    """The paths that match, sorted; `base` is where a relative pattern begins."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not pattern:
        raise ValueError("unacceptable pattern: ''")
    if any("**" in part and part != "**" for part in parts):
        raise ValueError(f"invalid pattern {pattern!r}: '**' can only be an entire part of it")
    found: set[str] = set()
    looked = [0]
    yield from _select("/" if pattern.startswith("/") else base, parts, found, looked)
    return tuple(sorted(found))


def _select(path: str, parts: list[str], found: set[str], looked: list[int]) -> Steps[None]:
    """Add to `found` what matches `parts` from `path` on."""
    if not parts:
        found.add(path)
        return
    part, rest = parts[0], parts[1:]
    if part != "**" and not any(sign in part for sign in "*?["):
        below = posixpath.normpath(posixpath.join(path, part))
        if rest or (yield from _kind(below)) is not None:
            yield from _select(below, rest, found, looked)
        return
    try:
        entries = yield from listing(path)
    except OSError:  # no directory, or none that can be read: as pathlib has it, nothing matches there
        return
    looked[0] += len(entries)
    if looked[0] > MAX_MATCHES:
        raise OSError(errno.E2BIG, f"more than {MAX_MATCHES} files would be looked at", path)
    if part == "**":
        yield from _select(path, rest, found, looked)
        for entry in entries:
            if entry.kind is FileKind.DIRECTORY:
                yield from _select(posixpath.join(path, entry.name), parts, found, looked)
        return
    matches = re.compile(fnmatch.translate(part)).match
    for entry in entries:
        if matches(entry.name) and (not rest or entry.kind in (FileKind.DIRECTORY, FileKind.LINK)):
            yield from _select(posixpath.join(path, entry.name), rest, found, looked)


# ---- an agent ----


class Agent:
    """Our ends of the pipes of one."""

    def __init__(self, pid: int, requests: int, answers: int, started: tuple[float, float] = (0, 0)) -> None:
        self.pid = pid
        """Its process id in the guest."""
        self.started = started
        """Between which two moments of time.monotonic."""
        self.requests: File = File(requests)
        self.answers: File = File(answers)
        for file in (self.requests, self.answers):
            os.set_blocking(file.fileno(), False)
        _agents[id(self)] = self

    @property
    def waits(self) -> bool:
        """Is it there, and silent; otherwise it is of no use."""
        try:
            return not readable(self.answers.fileno(), time.monotonic())
        except ValueError:  # closed
            return False

    def close(self) -> None:
        """It ends, when it reads or writes again."""
        self.requests.close()
        self.answers.close()

    def dismiss(self, patience: float = FAREWELL) -> bool:
        """Close it, and wait for its end; False when it has not ended after `patience` seconds."""
        self.requests.close()
        deadline, unheard = time.monotonic() + patience, 0
        try:
            while unheard < MOST_UNHEARD and readable(self.answers.fileno(), deadline):
                piece = os.read(self.answers.fileno(), CHUNK)
                if not piece:
                    return True
                unheard += len(piece)
            return unheard >= MOST_UNHEARD  # it writes: and so ends when we have closed our end
        except ValueError:  # somebody else has closed it
            return True
        finally:
            self.close()


_agents = weakref.WeakValueDictionary[int, Agent]()


def _living(agents: weakref.WeakValueDictionary[int, Agent]) -> list[Agent]:
    return [agent for reference in agents.valuerefs() if (agent := reference()) is not None]


def _after_fork() -> None:
    for agent in _living(_agents):  # pragma: no cover - in a fork, which ends without telling what it has measured
        agent.close()  # or it would not hear of its owner's end


os.register_at_fork(after_in_child=_after_fork)


class Agents:
    """A sandbox's agents. Nobody waits here for another: who finds none that is idle starts one."""

    def __init__(self) -> None:
        self._idle: list[Agent] = []
        # Weak: one whose user was interrupted between two lines is nobody's, and closed.
        self._busy = weakref.WeakValueDictionary[int, Agent]()

    @property
    def busy(self) -> list[Agent]:
        """Those that do something."""
        return _living(self._busy)

    @property
    def there(self) -> set[int]:
        """The process ids of all that have not ended."""
        return {agent.pid for agent in (*self.busy, *(agent for agent in list(self._idle) if agent.waits))}

    def take(self) -> Agent | None:
        """One that waits for a request, if there is one."""
        while self._idle:
            agent = self._idle.pop()
            if agent.waits:
                return self.use(agent)
            agent.close()
        return None

    def use(self, agent: Agent) -> Agent:
        self._busy[id(agent)] = agent
        return agent

    def give_back(self, agent: Agent, keep: bool) -> None:
        """It was heard to its end."""
        self._busy.pop(id(agent), None)
        if keep and len(self._idle) < MOST_IDLE:
            self._idle.append(agent)
        else:
            agent.close()

    def end(self, agent: Agent, patience: float) -> bool:
        """`Agent.dismiss` of one that was not heard out: it is busy until then, and no longer."""
        try:
            return agent.dismiss(patience)
        finally:
            self._busy.pop(id(agent), None)

    def dismiss(self, patience: float = FAREWELL) -> set[int]:
        """End those that are idle; the process ids of those that would not."""
        left = set()
        while self._idle:
            agent = self._idle.pop()
            if not agent.dismiss(patience):
                left.add(agent.pid)
        return left


class Lost(Exception):
    """The agent has ended before its answer."""


class _Whole:
    """An answer in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts = BytesIO()

    def take(self, piece: memoryview) -> None:
        room = self._limit - self._parts.tell()
        self._parts.write(piece[:room])
        if len(piece) > room:
            raise TooLarge

    def end(self) -> None:
        """That was all of it."""

    def value(self) -> bytes:
        return self._parts.getvalue()


class Conversation:
    """A request and its answer. It waits for nothing itself: an event loop can, as well as poll(2)."""

    def __init__(self, agent: Agent, ask: Ask, said: tuple[str, str]) -> None:
        self._agent, self._said = agent, said
        self._pieces: Iterator[bytes | memoryview] | None = ask.pieces()
        self._left = memoryview(b"")
        self._limit = ask.limit
        self._whole = _Whole(ask.limit)
        self._sink: ReceivedFile | _Whole = ask.sink or self._whole
        self._head = bytearray()
        self._due = 0
        """Bytes of a piece that are to come."""
        self.code: int | None = None
        """The guest's errno, or 0, once it is known."""
        self.can_repeat: bool = ask.kind in ("r", "s", "l")
        """May it be asked again of another agent: it changes nothing, and nothing of the answer was heard."""

    def answer(self) -> bytes:
        return self._whole.value()

    def step(self) -> tuple[int, int] | None:
        """Go on for as long as nothing has to be waited for: a descriptor and its event of poll(2); None at the end.

        Lost; OSError when it is no answer; OutputLimit when there is too much of it; CopyFailed when the host cannot
        give what is sent, or take what comes.
        """
        while self._pieces is not None:
            try:
                if not self._left:
                    self._left = memoryview(self._next(self._pieces))
                    if not self._left:
                        self._pieces = None
                        break
                self._left = self._left[os.write(self._agent.requests.fileno(), self._left) :]
            except BlockingIOError:
                return self._agent.requests.fileno(), select.POLLOUT
            except BrokenPipeError:
                raise Lost from None
        while self.code is None:
            try:
                data = os.read(self._agent.answers.fileno(), CHUNK)
            except BlockingIOError:
                return self._agent.answers.fileno(), select.POLLIN
            if not data:
                raise Lost
            self.can_repeat = False
            self._hear(memoryview(data))
        return None

    def _next(self, pieces: Iterator[bytes | memoryview]) -> bytes | memoryview:
        try:
            return next(pieces, b"")
        except OSError as error:
            raise CopyFailed(self._said, "stdin", error, None, None) from error

    def _hear(self, data: memoryview) -> None:
        at = 0
        while at < len(data):
            if self._due:
                part = data[at : at + self._due]
                self._give(self._sink.take, part)
                self._due -= len(part)
                at += len(part)
                continue
            begin = data[at : at + STATUS.size - len(self._head)]
            self._head += begin
            at += len(begin)
            if len(self._head) < STATUS.size:
                return
            (size,) = STATUS.unpack(self._head)
            self._head.clear()
            if size > PIECE or size < -LONGEST:
                raise bad("no piece")
            if size <= 0:
                self.code = -size
                if at < len(data):
                    raise bad("more than an answer")
                if not size:
                    self._give(self._sink.end)
            self._due = max(0, size)

    def _give(self, take: Callable[..., None], *part: memoryview) -> None:
        try:
            take(*part)
        except TooLarge:
            raise OutputLimit(self._said, self._limit, self.answer(), None) from None
        except OSError as error:
            raise CopyFailed(self._said, "stdout", error, None, None) from error


def ready(fd: int, event: int, deadline: float | None) -> bool:
    """Wait for the event; False when `deadline` came first."""
    poll = select.poll()
    poll.register(fd, event)
    while not poll.poll(milliseconds(deadline)):
        if deadline is not None and time.monotonic() >= deadline:
            return False
    return True


# ---- for Python programs ----


class Files:
    """The files of a living sandbox, as its guest sees them: `Sandbox.files`.

    A path that is not absolute begins at the sandbox's working directory, as it does for a command. What the guest
    cannot do is its OSError, with the path there: FileNotFoundError, PermissionError, FileExistsError ... Each takes
    `timeout` in seconds, and raises TimeoutExpired. Names of any bytes are str, as `surrogateescape` has them.
    """

    def __init__(self, box: "Sandbox") -> None:
        self._box = box

    def read(self, path: str, *, max_bytes: int = MAX_FILE, timeout: float | None = None) -> bytes:
        """The bytes of a regular file; see `Sandbox.read_file`."""
        return self._box.read_file(self._at(path), max_bytes=max_bytes, timeout=timeout)

    def read_text(
        self,
        path: str,
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        max_bytes: int = MAX_FILE,
        timeout: float | None = None,
    ) -> str:
        """The text of a regular file."""
        return self.read(path, max_bytes=max_bytes, timeout=timeout).decode(encoding, errors)

    def write(
        self, path: str, data: Data, *, mode: int | None = None, parents: bool = False, timeout: float | None = None
    ) -> None:
        """Make or overwrite a regular file with bytes, or with text as UTF-8; see `Sandbox.write_file`."""
        self._box.write_file(self._at(path), data, mode=mode, parents=parents, timeout=timeout)

    def stat(self, path: str, *, follow_symlinks: bool = True, timeout: float | None = None) -> FileStat:
        """What the guest says of a file, or of what a link leads to."""
        return self._do("stat", status(self._at(path), follow_symlinks), timeout)

    def list(self, path: str = ".", *, timeout: float | None = None) -> tuple[FileStat, ...]:
        """A directory's entries, sorted by name; links are not followed. OutputLimit beyond MAX_LISTING bytes."""
        return self._do("list", listing(self._at(path)), timeout)

    def mkdir(
        self,
        path: str,
        mode: int = 0o777,
        *,
        parents: bool = False,
        exist_ok: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Make a directory, and with `parents` those above it, as `pathlib.Path.mkdir` does."""
        self._do("mkdir", making(self._at(path), mode, parents, exist_ok), timeout)

    def remove(
        self, path: str, *, recursive: bool = False, missing_ok: bool = False, timeout: float | None = None
    ) -> None:
        """Remove a file, a link or an empty directory; with `recursive` a directory with all that is in it."""
        self._do("remove", removing(self._at(path), recursive, missing_ok), timeout)

    def move(self, source: str, target: str, *, timeout: float | None = None) -> None:
        """Rename a file or a directory, as rename(2) does: a file that is there is replaced, an empty directory by a
        directory. EXDEV from one mount of the guest to another."""
        self._do("move", moving(self._at(source), self._at(target)), timeout)

    def glob(self, pattern: str, *, timeout: float | None = None) -> tuple[str, ...]:
        """The absolute paths that match, sorted: `*`, `?` and `[...]` within a name, a dot's at its beginning too, and
        `**` for any directories, as pathlib has them. At the end `**` is directories alone. Links are followed but by
        `**`; what cannot be read does not match."""
        return self._do("glob", globbing(self._at("."), pattern), timeout)

    def walk(self, path: str = ".", *, timeout: float | None = None) -> Iterator[tuple[str, Names, Names]]:
        """A directory's path, its directories and its other files, and the same for each directory below, as `os.walk`
        does: each is read when it is wanted, by when the caller may have taken names from the list of directories.
        `timeout` is for each."""
        walk = Walk(self._at(path))
        while (where := walk.next()) is not None:
            try:
                page = self._do("walk", paging(where), timeout)
            except OSError:
                walk.failed(where)
            else:
                yield where, page.directories, page.others
                walk.enter(where, page)

    def _do(self, name: str, steps: Steps[Result], timeout: float | None) -> Result:
        return self._box._do(name, steps, timeout, deadline_of(timeout))

    def _at(self, path: str) -> str:
        return self._box._from_working_dir(path)

    def __repr__(self) -> str:
        return f"<Files of {self._box!r}>"


class Walk:
    """Where a walk goes on."""

    def __init__(self, top: str) -> None:
        self._top = top
        self._pending = [top]

    def next(self) -> str | None:
        return self._pending.pop() if self._pending else None

    def failed(self, where: str) -> None:
        """Within an `except`: what cannot be read is passed over, but for the first."""
        if where == self._top:
            raise

    def enter(self, where: str, page: Page) -> None:
        self._pending += [posixpath.join(where, name) for name in reversed(page.directories) if name not in page.links]
