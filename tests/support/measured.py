"""Coverage of what ends in execve or _exit: between fork and execve, and in place.

coverage.py writes its data when a process exits, into a file. Neither call is an exit; and where the launcher's child
makes them every file is read-only and every descriptor closed. So a process that is measured here keeps its data in
memory, and copies it, right before either call, into a shared mapping of a file that it made at its start: a mapping
needs no descriptor, and no mount flag reaches it. `collect` turns those files into coverage's own.

Nothing here is imported unless the tests are run under coverage. Standard library and coverage only: copies of this
file serve interpreters that know nothing else.
"""

import atexit
import ctypes
import os
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import coverage

SLOT = 1 << 18
"""Bytes for one process's data; compressed, it has some thousands."""
SLOTS = 16
"""Processes that share a file: those which were forked where none can be made."""
SUFFIX = ".coverage-slots"
PROT_READ_WRITE, MAP_SHARED, MAP_FAILED = 3, 1, 2**64 - 1  # asm-generic/mman-common.h

FRESH = """\
import sys
sys.path[:0] = {places!r}
try:
    import measured
    measured.start({folder!r}, {roots!r}).talk()
except OSError:
    pass  # coverage asks for a working directory, which need not be there
del sys.path[:2]
"""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def mapping(fd: int, size: int) -> int:
    """The address of a shared mapping. Python's own keeps a descriptor, which tests would find."""
    address = _libc.mmap(None, size, PROT_READ_WRITE, MAP_SHARED, fd, 0)
    if address in (None, MAP_FAILED):
        raise OSError(ctypes.get_errno(), "mmap")
    return int(address)


class Measured:
    """This process and the children that it forks, or starts as `python -c`."""

    def __init__(self, folder: str, roots: Sequence[str]) -> None:
        self.folder, self.roots = folder, list(roots)
        self.coverage: coverage.Coverage | None = None
        self._data = coverage.CoverageData(no_disk=True)
        self._map = 0
        self._slot = 0
        self._given = 0
        os.register_at_fork(before=self._before_fork, after_in_child=self._after_fork)
        self._exit, self._execve, self._posix_spawn = os._exit, os.execve, os.posix_spawn
        self._read, self._write = os.read, os.write
        for name in ("_exit", "execve", "posix_spawn"):
            setattr(os, name, getattr(self, name.lstrip("_") + "_measured"))

    def start(self) -> None:
        """Measure this process from now on."""
        include = [f"{root}/*" for root in self.roots]
        self.coverage = coverage.Coverage(data_file=None, config_file=False, branch=True, include=include)
        self.coverage._warn_no_data = False  # a child need not have run anything of ours
        self.coverage.start()
        self._keep_apart()

    def _keep_apart(self) -> None:
        """What is run from now on goes to memory, and from there to a file of this process's own.

        After a fork the tracer goes on as it was: a new one would not see the rest of the functions that have begun.
        """
        self._open()
        self.coverage = coverage.Coverage.current()
        if self.coverage is not None and self.coverage._collector is not None:
            self.coverage._auto_save = False
            self._data = coverage.CoverageData(no_disk=True)
            self.coverage._collector.use_data(self._data, None)

    def save(self) -> None:
        """Copy what was run so far; never in the way of what is measured."""
        if self.coverage is None or self.coverage._collector is None or not self._map:
            return
        with suppress(Exception):
            self.coverage._collector.flush_data()
            data = self._data.dumps()
            if len(data) + 8 <= SLOT:
                text = len(data).to_bytes(8, "little") + data
                ctypes.memmove(self._map + self._slot * SLOT, text, len(text))

    def _open(self) -> None:
        with suppress(OSError):
            fd, _ = tempfile.mkstemp(suffix=SUFFIX, dir=self.folder)
            try:
                os.ftruncate(fd, SLOT * SLOTS)
                self._map, self._slot, self._given = mapping(fd, SLOT * SLOTS), 0, 0
            finally:
                os.close(fd)

    # ---- what ends a process, or starts one ----

    def _before_fork(self) -> None:
        self._given = self._given % (SLOTS - 1) + 1  # 0 is the file's maker

    def _after_fork(self) -> None:
        self._slot = self._given
        self.talk()
        with suppress(Exception):
            self._keep_apart()

    def talk(self) -> None:
        """This is a child that hears and says words: who hears its last one may kill it before it ends."""
        os.read, os.write = self.read_measured, self.write_measured

    def read_measured(self, fd: int, size: int) -> bytes:
        """Who waits for a word, in a child, may be killed while it waits; nobody waits for a file, as /proc's are."""
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            self.save()
        return self._read(fd, size)

    def write_measured(self, fd: int, data: Any) -> int:
        """Who hears the last word of a child may kill it before it comes to its end."""
        self.save()
        return self._write(fd, data)

    def exit_measured(self, status: int) -> None:
        self.save()
        self._exit(status)

    def execve_measured(self, path: Any, argv: Any, env: Any) -> None:
        self.save()
        self._execve(path, argv, env)

    def posix_spawn_measured(self, path: Any, argv: Any, env: Any, **how: Any) -> int:
        """The launcher's fresh interpreter has neither site nor environment: its program starts the measurement."""
        words = [os.fsdecode(word) for word in argv]
        if "-c" in words and "_child.fresh()" in (program := words[words.index("-c") + 1]):
            places = [str(Path(__file__).parent), str(Path(coverage.__file__).parents[1])]
            words[words.index("-c") + 1] = FRESH.format(places=places, folder=self.folder, roots=self.roots) + program
            argv = words
        return self._posix_spawn(path, argv, env, **how)


def follow(folder: Path, roots: Sequence[Path]) -> None:
    """Measure the children of this process, which coverage measures already."""
    Measured(os.fspath(folder), [os.fspath(root) for root in roots])


def start(folder: str, roots: Sequence[str]) -> Measured:
    """Measure this process and its children."""
    measured = Measured(folder, roots)
    atexit.register(measured.save)
    measured.start()
    return measured


def collect(folder: Path, data_file: Path) -> None:
    """Make one of coverage's own files, beside `data_file`, of all that was copied into `folder`."""
    whole = coverage.CoverageData(os.fspath(data_file), suffix=f"{folder.name}.{os.getpid()}")
    for path in folder.glob(f"*{SUFFIX}"):
        with path.open("rb") as file:
            for slot in range(SLOTS):
                file.seek(slot * SLOT)
                if size := int.from_bytes(file.read(8), "little"):
                    part = coverage.CoverageData(no_disk=True)
                    part.loads(file.read(size))
                    whole.update(part)
        path.unlink()
    whole.write()
