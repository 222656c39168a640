"""The host around one launch: a runsc to swap, a bundle to spoil, a base to fill; and what can be seen of it all.

Everything lies on file systems of its own: `host` for what others install, `disk` for the artifact base, and `store`,
which is `host` again, read-only, for what is executed where it lies.
"""

import fcntl
import hashlib
import json
import mmap
import os
import shutil
import socket
import stat
import subprocess
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nucleus_gvisor.model.conformance import Unsupported, one_of
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.record import set_digest
from nucleus_gvisor.runtime import kept
from nucleus_gvisor.runtime.bundle import OciBundle
from nucleus_gvisor.runtime.cleanup import owner_line
from nucleus_gvisor.runtime.steps.resolve import Snapshot
from tests.conformance import kernel
from tests.support.places import private_directory

PROBES = Path(__file__).resolve().parent / "probes"
STRANGER = 65534
"""A uid that is neither root's nor the launcher's."""
ROOM = 64 << 10
"""Bytes that a full disk has still: enough for a record and a lock, not for a copy."""
TICK = 0.012
"""Seconds after which the times of a file differ on any kernel."""
CONTAINER = "c0ffee00" * 4


class Mood:
    """A word to the stand-in, wherever it is confined: a port of the loopback at which somebody listens, or nobody."""

    def __init__(self) -> None:
        self._kept = self._bound(0)
        self._listens: socket.socket | None = None
        self.port: int = self._kept.getsockname()[1]

    @staticmethod
    def _bound(port: int) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
        return made

    @property
    def spoilt(self) -> bool:
        return self._listens is not None

    def spoil(self) -> None:
        """Have the stand-in answer as something else."""
        if self._listens is None:
            self._listens = self._bound(self.port)
            self._listens.listen(4096)

    def mend(self) -> None:
        if self._listens is not None:
            self._listens.close()
            self._listens = None

    def close(self) -> None:
        self.mend()
        self._kept.close()


@dataclass(frozen=True)
class Site:
    """Where worlds are made, and what is put in them."""

    path: Path
    standin: Path
    """Answers as runsc does until `mood` is spoilt."""
    mood: Mood

    @property
    def host(self) -> Path:
        return self.path / "host"

    @property
    def disk(self) -> Path:
        return self.path / "disk"

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def guest(self) -> Path:
        """The stand-in once more, for guests' roots."""
        return self.host / "guest"


@contextmanager
def site(size: str = "8m") -> Iterator[Site]:
    """A place for worlds; its file systems are gone afterwards."""
    with private_directory() as path:
        made = Site(path, path / "standin", Mood())
        try:
            for folder in (made.host, made.disk, made.store):
                folder.mkdir(mode=0o700)
            for folder in (made.host, made.disk):
                _call("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", folder)
            _call("mount", "--bind", made.host, made.store)
            _call("mount", "-o", "remount,bind,ro", made.store)
            compile_standin(made)
            shutil.copy(made.standin, made.guest)
            made.guest.chmod(0o755)
            yield made
        finally:
            made.mood.close()
            for folder in (made.store, made.disk, made.host):
                if folder.is_mount():
                    _call("umount", "--lazy", folder)


def _call(*argv: str | os.PathLike[str]) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def compile_standin(made: Site) -> None:
    """The stand-in, static, as small as it gets."""
    mood = f"-DMOOD={made.mood.port}"
    source = PROBES / "standin.c"
    _call("gcc", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", mood, "-o", made.standin, source)


class World:
    """One launch's host. `strike` is the environment; `look` what anybody can see."""

    def __init__(self, site: Site, binary: Path, facts: Facts, other: Path | None = None) -> None:
        self.site, self.facts, self._other = site, facts, other or binary
        self._real = binary != site.standin
        self.history: list[str] = []
        self.held: os.stat_result | None = None
        """The file that was judged, as it was then."""
        self._lock = -1
        self._window: mmap.mmap | None = None
        self.home, self.base = site.host / "w", site.disk / "base"
        self.release = self.home / "release"
        self._clear()
        (self.home / "bin").mkdir(parents=True)
        self._install(binary, "installed", self.home / "bin/runsc")
        os.link(self.home / "bin/runsc", self.release)  # what was installed, whatever becomes of its name
        self.digest = digest(self.release)
        if facts.method == "set":
            (self.home / "bin/gvisor-bin").mkdir()
            os.link(site.guest, self.home / "bin/gvisor-bin/side")
        self.bundle = self.home / "bundle"
        self._make_bundle()

    @property
    def path(self) -> Path:
        """Where the launcher is told that runsc lies."""
        root = self.site.store if self.facts.method == "store" else self.site.host
        return root / "w/bin/runsc"

    @property
    def directory(self) -> Path:
        """The container's directory, as launchers name it."""
        return self.base / CONTAINER

    @property
    def pin(self) -> str:
        """What names the bytes that were installed, those beside runsc as well."""
        side = self.home / "bin/gvisor-bin/side"
        beside = {"gvisor-bin/side": digest(side)} if side.exists() else {}
        return set_digest({"runsc": self.digest, **beside})

    @property
    def cache(self) -> Path:
        """Where the launcher is told to keep things; not on the disk that is filled."""
        return self.site.host / "cache"

    @property
    def stages(self) -> list[Path]:
        return sorted(self.directory.glob("exec-allow/stage-*"))

    def _install(self, source: Path, brand: str, target: Path) -> None:
        """A copy of `source` with a digest of its own: equal bytes are answered for once and for all."""
        with open(source, "rb") as file, open(target, "wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 22)
            copy.write(f"{brand} {len(os.listdir(self.home))}\n".encode().ljust(64, b"."))
        target.chmod(0o755)

    def _make_bundle(self) -> None:
        root = self.bundle / "rootfs"
        root.mkdir(parents=True)
        os.link(self.site.guest, root / "standin")
        config = OciBundle.build(["/standin", "guest"], rootfs=root).config
        (self.bundle / "config.json").write_text(json.dumps(config))
        for path in (self.bundle, root):
            path.chmod(0o755)
        (self.bundle / "config.json").chmod(0o644)

    def _clear(self) -> None:
        self.site.mood.mend()
        for place in (self.directory, *self.stages):
            with suppress(OSError):
                kernel.set_immutable(place, False)
        for entry in (*self.site.host.iterdir(), *self.site.disk.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != self.site.guest:
                entry.unlink()

    def close(self) -> None:
        """Undo what has to be undone."""
        self.shut_window()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self._clear()

    # ---- the environment ----

    def strike(self, action: str) -> None:
        """Do it, really."""
        self.history.append(action)
        getattr(self, f"_{action}")()

    def choose(self, *ways: str) -> str:
        """One of several ways to do the same, by what has happened so far: always the same for the same walk."""
        return ways[zlib.crc32(repr((self.facts.as_dict(), self.history)).encode()) % len(ways)]

    def _SwapBinary(self) -> None:
        path = self._make_room()
        # A pin names the bytes, whoever they belong to.
        way = self.choose("loose", "script", *(["foreign"] if self.facts.pin == "none" else []))
        new = self.home / "new"
        self._install(self.site.standin, "forged", new)
        if way == "loose":
            new.chmod(0o777)
        elif way == "foreign":
            os.chown(new, STRANGER, STRANGER)
        else:
            new.write_text("#!/bin/sh\nexec /bin/true\n")
        new.rename(path)

    def _RemoveBinary(self) -> None:
        self._make_room().unlink(missing_ok=True)

    def _make_room(self) -> Path:
        """The name to put another file at: the binary's own, or, once it is held, perhaps in a directory swapped in."""
        folder = self.home / "bin"
        if self.held is not None and self.choose("name", "directory") == "directory":
            folder.rename(self.home / "bin-before")
            folder.mkdir()
        return folder / "runsc"

    def _RewriteInPlace(self) -> None:
        time.sleep(TICK)
        with open(self.release, "r+b") as file:
            file.seek(-64, os.SEEK_END)
            file.write(b"rewritten".ljust(64, b"."))

    def _OtherRelease(self) -> None:
        if self.held is None:
            new = self.home / "new"
            self._install(self._other, "another", new)
            self.release.unlink()
            os.link(new, self.release)
            if self._look_at_path() == "trusted":
                new.rename(self.home / "bin/runsc")
            self.shut_window()
        else:
            # What the owner writes through a mapping that was dirty before leaves no trace in the file's times.
            assert self._window is not None
            self._window[-64:] = b"another".ljust(64, b".")

    def open_window(self) -> None:
        """Have the installer keep a mapping of the file, written to before anybody judges it."""
        with open(self.release, "r+b") as file:
            self._window = mmap.mmap(file.fileno(), 0)
        self._window[-1] = self._window[-1]

    def shut_window(self) -> None:
        """A file that is mapped for writing cannot be executed."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def _Impostor(self) -> None:
        if not self._real:
            self.site.mood.spoil()
            return
        if self.held is not None or self.facts.pin != "none":
            raise Unsupported("what is real runsc once judged stays so; only the stand-in can change its mind")
        new = self.home / "new"
        self.site.mood.spoil()
        self._install(self.site.standin, "impostor", new)
        self.release.unlink()
        os.link(new, self.release)
        new.rename(self.home / "bin/runsc")
        self.digest = digest(self.release)

    def _SpoilBase(self) -> None:
        if self.base.exists():
            self.base.chmod(0o777)
            return
        way = self.choose("link", "foreign", "loose")
        if way == "link":
            elsewhere = self.site.disk / "elsewhere"
            elsewhere.mkdir(mode=0o700)
            self.base.symlink_to(elsewhere)
        else:
            self.base.mkdir(mode=0o700)
            if way == "foreign":
                os.chown(self.base, STRANGER, STRANGER)
            else:
                self.base.chmod(0o777)

    def _SpoilBundle(self) -> None:
        way = self.choose("loose", "foreign", "hooks")
        if way == "loose":
            self.bundle.chmod(0o777)
        elif way == "foreign":
            os.chown(self.bundle, STRANGER, STRANGER)
        else:
            config = json.loads((self.bundle / "config.json").read_text())
            config["hooks"] = {"prestart": [{"path": "/bin/true"}]}
            (self.bundle / "config.json").write_text(json.dumps(config))

    def _OtherTakesLock(self) -> None:
        """This process is the second launcher."""
        (self.base / "locks").mkdir(mode=0o700, parents=True, exist_ok=True)
        if "SpoilBase" not in self.history:
            self.base.chmod(0o700)
        self._lock = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(self._lock, owner_line(os.getpid()))

    def _FillDisk(self) -> None:
        now = os.statvfs(self.site.disk)
        with open(self.site.disk / "filler", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, now.f_bavail * now.f_bsize - ROOM)

    def _OpenCache(self) -> None:
        self.cache.mkdir(mode=0o700, exist_ok=True)
        if self.choose("loose", "foreign") == "loose":
            self.cache.chmod(0o777)
        else:
            os.chown(self.cache, STRANGER, STRANGER)

    def _SwapKept(self) -> None:
        """Where nothing is kept yet, something else lies there under the digest that it will have."""
        name = digest(self.release)
        folder = self.cache / "sets" / name
        file = folder / "runsc"
        if not folder.exists():
            folder.mkdir(parents=True)
            (self.cache / "sources").mkdir()
            now = Snapshot.of_status(os.stat(self.release))
            (self.cache / "sources" / kept.key({"runsc": now})).write_text(name)
            (folder / "manifest").write_text(json.dumps({"runsc": [name, *now.numbers]}))
            self._install(self.site.standin, "planted", file)
            file.chmod(kept.MODE)
            return
        way = self.choose("rename", "rewrite", "link", "mode", "foreign")
        if way == "rename":
            self._install(self.site.standin, "swapped", folder / "new")
            (folder / "new").chmod(kept.MODE)
            (folder / "new").rename(file)
        elif way == "rewrite":
            with open(file, "r+b") as opened:
                opened.write(b"\x7fELF, and not")
        elif way == "link":
            os.link(file, folder / "another")
        elif way == "mode":
            file.chmod(0o755)
        else:
            os.chown(file, STRANGER, STRANGER)

    # ---- what can be seen ----

    def judged(self) -> None:
        """The launcher is about to look: note what it will hold."""
        if self.held is None and "SwapBinary" not in self.history and "RemoveBinary" not in self.history:
            self.held = os.stat(self.release)

    def look(self) -> dict[str, object]:
        """The world's variables."""
        return {
            "path": self._look_at_path(),
            "pin": self._look_at_pin(),
            "fit": not self.site.mood.spoilt,
            "base": self._look_at_base(),
            "bundle": self._look_at_bundle(),
            "cache": self._look_at_cache(),
            "space": self._room() > os.stat(self.release).st_size,
            "residue": self.residue(),
        }

    def residue(self) -> frozenset[str]:
        """What is on disk of the container."""
        found = {"directory"} if self.directory.is_dir() else set()
        return frozenset(found | ({"stage"} if self.stages else set()))

    def _look_at_path(self) -> str:
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return "absent"
        with open(self.path, "rb") as file:
            sound = file.read(4) == b"\x7fELF"
        return "trusted" if sound and status.st_uid == 0 and not status.st_mode & 0o6022 else "forged"

    def _look_at_pin(self) -> object:
        if self.facts.pin == "none":
            return "none"
        if self.held is not None and "RewriteInPlace" in self.history:
            return one_of("match", "mismatch")  # what was written tells nothing of what was installed
        return "match" if digest(self.release) == self.digest else "mismatch"

    def _look_at_base(self) -> object:
        try:
            status = os.lstat(self.base)
        except FileNotFoundError:
            return "absent"
        if not os.path.isdir(self.base) or self.base.is_symlink() or status.st_uid or status.st_mode & 0o022:
            return "hostile"
        # An empty base that is private shows nothing of this container.
        return "private" if self.directory.is_dir() else one_of("absent", "private")

    def _look_at_cache(self) -> str:
        if not self.cache.exists():
            return "private"
        status = self.cache.stat()
        if status.st_uid or status.st_mode & 0o022:
            return "hostile"
        for file in self.cache.glob("sets/*/runsc"):
            status = file.stat()
            plain = (status.st_uid, status.st_nlink, stat.S_IMODE(status.st_mode)) == (0, 1, kept.MODE)
            if not plain or digest(file) != file.parent.name:
                return "changed"
        return "private"

    def _look_at_bundle(self) -> str:
        status = self.bundle.stat()
        hooks = "hooks" in json.loads((self.bundle / "config.json").read_text())
        return "hostile" if hooks or status.st_uid or status.st_mode & 0o022 else "sound"

    def _room(self) -> int:
        now = os.statvfs(self.site.disk)
        return now.f_bavail * now.f_bsize

    @property
    def lock(self) -> Path:
        """The file of the container's lock."""
        return self.base / "locks" / CONTAINER

    def is_locked(self) -> bool:
        """Is it taken, as whoever tries to take it finds."""
        try:
            fd = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def is_held(self, descriptors: Mapping[int, os.stat_result]) -> object:
        """What the judged file looks like through the launcher's descriptors."""
        if self.held is None:
            return "nothing"
        for status in descriptors.values():
            if (status.st_dev, status.st_ino) == (self.held.st_dev, self.held.st_ino):
                return "trusted" if _times(status) == _times(self.held) else "rewritten"
        return "nothing"


def _times(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
