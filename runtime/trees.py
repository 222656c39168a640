"""Files and trees between host and guest, as `guest.PROGRAM` writes (`g`) and reads (`p`) them.

A tree is a sequence of frames (little-endian): kind, a zero, the length of the name, a mode, and the name, which begins
at the tree's root. A directory (`d`) is before what is in it, and the root, or a file in its place, has no name. After
a file's (`f`) come pieces, each with its length before it, and a length of 0; after a link's (`l`) one piece, where it
leads. `s` is a special file, `m` a mode to be set once all is in place, `x` an error, `e` the end.

What comes from the guest is the guest's to choose: every name, number and order is checked before the host does
anything with it, and memory and disk are bounded.
"""

import errno
import os
import stat
import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.bundle import HostPath
from nucleus_gvisor.runtime.capture import DEVNULL, PIPE, Pipes, TooLarge

FRAME = struct.Struct("<BBHI")
SIZE = struct.Struct("<I")
LONGEST = 4096
"""Bytes of a name, and of where a link leads (PATH_MAX)."""
DEEPEST = 256
"""Directories below one another: each is a descriptor."""
PIECE = 1 << 16
ENTRY = 4096
"""What an entry counts against the bound, whatever is in it: a block of a file system."""
MOST_LEFT_OUT = 10_000
MODES = 0o777
"""No set-id bits: the copy has another owner."""


def stays_inside(name: bytes, target: bytes) -> bool:
    """Does link `name` of a tree lead to what is in the tree, wherever the tree lies and whatever its other links are.

    `..` may only come first: after a name it would be taken from where that leads, if that is a link.
    """
    if not target or target.startswith(b"/") or b"\0" in target:
        return False
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    above = 0
    while parts[above : above + 1] == [b".."]:
        above += 1
    return above <= name.count(b"/") and b".." not in parts[above:]


@dataclass
class Copying:
    """One run of the guest's program that copies: its word for it, and its streams."""

    word: str
    pipes: Pipes
    pieces: Iterator[bytes] | None = None
    """A file's, with its length before each, where an agent is to write it (`files`)."""
    left_out: list[str] = field(default_factory=list)
    """Links that lead out of the tree, and special files, by their names in it."""
    failed_at: bytes = b""
    """The name in the tree of what the guest could not read."""

    def place(self, path: str, told: bytes | None) -> str:
        """What of `path` could not be copied, when the program told so much: where it makes a tree, it tells a name."""
        name = os.fsdecode((told if self.word == "p" else None) or self.failed_at)
        return f"{path}/{name}" if name else path


# ---- host to guest ----


@contextmanager
def to_put(source: HostPath, special: bool) -> Iterator[Copying]:
    """How `source`, a file or a directory of the host, is copied into the guest."""
    # A FIFO there makes nobody wait either.
    fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            copying = Copying("p", Pipes.redirected(None, PIPE, PIPE, DEVNULL, False))
            copying.pipes.pieces = packed(fd, os.fsencode(source), copying.left_out)
            yield copying
        elif stat.S_ISREG(mode) and special:
            yield Copying("W", Pipes.redirected(None, fd, DEVNULL, DEVNULL, False))
        elif stat.S_ISREG(mode):
            yield Copying("w", Pipes(), pieces=_pieces(fd))
        else:
            raise no_regular(os.fsdecode(source))
    finally:
        os.close(fd)


def no_regular(path: str) -> OSError:
    """That a path leads to no regular file, as shutil has it."""
    from shutil import SpecialFileError  # some milliseconds, and seldom needed

    return SpecialFileError(errno.EINVAL, "no regular file, but a FIFO, a device or a socket", path)


def packed(fd: int, path: bytes, left_out: list[str]) -> Generator[bytes, None, None]:
    """The host's tree at `path`, open as `fd`, in pieces; `left_out` gets what is not to be copied."""
    batch = bytearray()
    for piece in _packed(fd, path, left_out):
        batch += piece
        if len(batch) >= PIECE:
            yield bytes(batch)
            batch.clear()
    yield bytes(batch) + _frame("e")


def _packed(fd: int, path: bytes, left_out: list[str]) -> Iterator[bytes]:
    yield _frame("d")
    yield from _packed_below(fd, path, b"", 0, left_out)
    yield _frame("m", b"", os.fstat(fd).st_mode)


def _pieces(file: int) -> Iterator[bytes]:
    while piece := os.read(file, PIECE):
        yield SIZE.pack(len(piece)) + piece
    yield SIZE.pack(0)


def _frame(kind: str, name: bytes = b"", mode: int = 0) -> bytes:
    return FRAME.pack(ord(kind), 0, len(name), mode & MODES) + name


def _packed_below(fd: int, path: bytes, above: bytes, depth: int, left_out: list[str]) -> Iterator[bytes]:
    """What is in directory `above` of the tree at `path`, `fd`."""
    for entry in sorted(map(os.fsencode, os.listdir(fd))):
        name = above + b"/" + entry if above else entry
        try:
            if len(name) > LONGEST or depth == DEEPEST:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            mode = os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                target = os.readlink(entry, dir_fd=fd)
                if stays_inside(name, target):
                    yield _frame("l", name, MODES) + SIZE.pack(len(target)) + target
                else:
                    left_out.append(os.fsdecode(name))
                continue
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                left_out.append(os.fsdecode(name))
                continue
            # O_NOFOLLOW, and no waiting: another may have put something else there meanwhile.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            file = os.open(entry, flags, dir_fd=fd)
            try:
                if stat.S_ISDIR(mode := os.fstat(file).st_mode):
                    yield _frame("d", name)
                    yield from _packed_below(file, path, name, depth + 1, left_out)
                    yield _frame("m", name, mode)
                else:
                    yield _frame("f", name, mode)
                    yield from _pieces(file)
            finally:
                os.close(file)
        except FileNotFoundError:
            continue  # it has gone meanwhile
        except OSError as error:
            error.filename = error.filename if isinstance(error.filename, str) else os.fsdecode(path + b"/" + name)
            raise


# ---- guest to host ----


@contextmanager
def to_get(target: HostPath, bound: int, special: bool) -> Iterator[tuple[Copying, "ReceivedFile"]]:
    """How a file or a directory of the guest becomes `target`, which is there only if all of it is: the program that
    copies either, and what takes a file where an agent sends one.

    Otherwise nothing is left of it. `bound` are the bytes that it may take on the host.
    """
    final = Path(os.fsdecode(target))
    if final.is_dir() and not final.is_symlink() and any(final.iterdir()):
        raise FileExistsError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), os.fspath(final))
    part = final.with_name(f".{final.name}.{os.urandom(8).hex()}")
    copying = Copying("G" if special else "g", Pipes.redirected(None, None, PIPE, DEVNULL, False))
    copying.pipes.sink = received = Received(part, bound, copying)
    try:
        yield copying, ReceivedFile(received)
        received.see_that_it_is_whole()
        os.replace(part, final)
    finally:
        copying.pipes.close()
        received.close()
        with suppress(FileNotFoundError):
            if received.is_tree:
                from shutil import rmtree  # some milliseconds, and only where there was a tree

                rmtree(part)
            else:
                os.unlink(part)


class ReceivedFile:
    """Makes a file of what an agent sends of one."""

    def __init__(self, received: "Received") -> None:
        self._received = received
        self._begin = _frame("f")

    def take(self, piece: memoryview) -> None:
        """The next piece of it."""
        self._received.take(memoryview(self._begin + SIZE.pack(len(piece)) + piece))
        self._begin = b""

    def end(self) -> None:
        """That was all of it."""
        self._received.take(memoryview(self._begin + SIZE.pack(0) + _frame("e")))


class Received:
    """Makes at `part` what comes from the guest, piece by piece (`capture.Sink`)."""

    def __init__(self, part: Path, bound: int, copying: Copying) -> None:
        self._part, self._left, self._copying = part, bound, copying
        self._buffer = bytearray()
        self._file = -1
        self._root = -1
        self.is_tree: bool = False
        self._above: list[tuple[bytes, int]] = []
        """The directories that lead to the last entry, root first, each with its name and the mode that it gets."""
        self._ended = False
        self._reader = self._read()
        self._wanted = next(self._reader)

    def take(self, piece: memoryview) -> None:
        """The next piece of it; OSError when it cannot be made or is none, TooLarge at the bound."""
        self._buffer += piece
        at = 0
        while len(self._buffer) - at >= self._wanted:
            part = bytes(memoryview(self._buffer)[at : at + self._wanted])
            at += self._wanted
            self._wanted = self._reader.send(part)
        del self._buffer[:at]

    def see_that_it_is_whole(self) -> None:
        """OSError unless it came to its end, and no further."""
        if not self._ended or self._buffer:
            raise bad("not whole")

    def close(self) -> None:
        """Close what is open; once is enough."""
        self._reader.close()
        for fd in (self._file, self._root):
            if fd >= 0:
                os.close(fd)
        self._file = self._root = -1

    def _read(self) -> Generator[int, bytes, None]:
        """Asks for so many bytes at a time as it yields, and is sent them."""
        first = True
        while True:
            kind, zero, length, mode = FRAME.unpack((yield FRAME.size))
            if zero or length > LONGEST or self._ended:
                raise bad("no frame")
            name = (yield length) if length else b""
            if kind == ord("x"):  # its exit status says why
                self._copying.failed_at = name
            elif first:
                if name or kind not in b"df":
                    raise bad("no root")
                if kind == ord("d"):
                    self._begin_tree(mode)
                else:
                    yield from self._take_file(os.fspath(self._part), 0o666)
            elif kind == ord("e") and not name:
                self._finish_directories(None)
                self._ended = True
            elif not self.is_tree:
                raise bad("more than a file")
            else:
                yield from self._take_entry(kind, name, mode)
            first = False

    def _begin_tree(self, mode: int) -> None:
        os.mkdir(self._part, 0o700)
        self.is_tree = True
        self._root = os.open(self._part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._above.append((b"", mode))

    def _take_entry(self, kind: int, name: bytes, mode: int) -> Generator[int, bytes, None]:
        self._count(ENTRY)
        folder, _, last = name.rpartition(b"/")
        # SAFETY: what is above it must be a directory that we made, by that very name, whose parts were judged here: so
        # no name leads through a link, up, or to the host's root.
        if last in (b"", b".", b"..") or b"\0" in name or name.startswith(b"/"):
            raise bad("no name")
        self._finish_directories(folder)
        if kind == ord("d"):
            if len(self._above) > DEEPEST:
                raise bad("too deep")
            os.mkdir(name, 0o700, dir_fd=self._root)
            self._above.append((name, mode))
        elif kind == ord("f"):
            yield from self._take_file(name, mode & MODES)
        elif kind == ord("l"):
            (size,) = SIZE.unpack((yield SIZE.size))
            if not 0 < size <= LONGEST:
                raise bad("no link")
            target = yield size
            if stays_inside(name, target):
                os.symlink(target, name, dir_fd=self._root)
            else:
                self._leave_out(name)
        elif kind == ord("s"):
            self._leave_out(name)
        else:
            raise bad("no kind")

    def _take_file(self, name: str | bytes, mode: int) -> Generator[int, bytes, None]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = self._root if self.is_tree else None
        self._file = os.open(name, flags, mode if folder is None else 0o600, dir_fd=folder)
        while True:
            (size,) = SIZE.unpack((yield SIZE.size))
            if size > PIECE:
                raise bad("no piece")
            if not size:
                break
            self._count(size)
            linux.write_all(self._file, (yield size))
        if folder is not None:
            os.fchmod(self._file, mode)
        file, self._file = self._file, -1
        os.close(file)

    def _finish_directories(self, folder: bytes | None) -> None:
        """Those that do not lead to `folder` get their modes: nothing more comes into them."""
        while self._above and self._above[-1][0] != folder:
            name, mode = self._above.pop()
            os.chmod(name or b".", mode & MODES | stat.S_IRWXU, dir_fd=self._root)
        if folder is not None and not self._above:
            raise bad("no directory above")

    def _leave_out(self, name: bytes) -> None:
        if len(self._copying.left_out) == MOST_LEFT_OUT:
            raise OSError(errno.E2BIG, f"more than {MOST_LEFT_OUT} links and special files would be left out")
        self._copying.left_out.append(os.fsdecode(name))

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise TooLarge


def bad(what: str) -> OSError:
    """The guest's program was tampered with, or is another one."""
    return OSError(errno.EBADMSG, f"the guest does not send files as they are sent: {what}")
