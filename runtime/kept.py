"""Files that launches execute where they lie: verified once, kept on disk by digest, compared at every launch.

A cache has `sets/DIGEST`, each with the files of one runsc and a manifest of what they were when they were hashed,
`sources/KEY`, which says for judged files, told by what their descriptors say of them, what digest they had, and
`answers`, what they said when they were asked. Whoever
may write the cache could forge all of it: root and its owner alone. So it is judged as an artifact base is; a launch
compares what every descriptor says, and its child does so again when it binds the files (`_child`); what differs is
made anew from the judged files and never executed; and only launches whose supervisor cannot write the cache use it.

An ordinary caller takes what root keeps of the same files, or root's installed files themselves, where nobody else can
change them; a cache of his own only for files that are not root's.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from nucleus_gvisor.model.errors import BadBase, BadCache, LaunchError, StepFailed, remedy
from nucleus_gvisor.model.record import set_digest
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import described, file_id, make_directory, open_walked, remove_tree
from nucleus_gvisor.runtime.steps import stage
from nucleus_gvisor.runtime.steps.resolve import SYSTEM_PATHS, Judged, JudgedFile, Snapshot

ROOTS = b"/var/cache/nucleus-gvisor"
MOST = 4
"""Sets that stay; more only while they are in use or fresh."""
FRESH = 600.0
"""Seconds since its last use in which a set stays: a launch may be about to bind it."""
PATIENCE = 20.0
"""Seconds to wait for another process that makes a set."""
MODE = 0o555
ANSWERS = "answers"
"""Below the cache: a file for each question that a binary was asked, see `answers`."""
ANSWERS_STAY = 30 * 86400.0
"""Seconds for which what was answered stays."""
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MANIFEST = 1 << 16
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HINT = 'name a directory that only you can write: NUCLEUS_GVISOR_CACHE; or stage="copy"'


@dataclass(frozen=True)
class File:
    """One file that will be bound and executed: where it is, its descriptor, and what that said when it was hashed."""

    path: bytes
    fd: int
    snapshot: Snapshot
    sha256: str


@dataclass(frozen=True)
class Kept:
    """The files of one runsc, by the name that each has in the set."""

    files: Mapping[str, File]
    word: str
    """`found`, `made`, `replaced`, `root's`, or `in place`."""
    cache: bytes = b""
    """The cache; nothing for what is bound in place."""

    @property
    def digests(self) -> dict[str, str]:
        return {name: file.sha256 for name, file in self.files.items()}

    def close(self) -> None:
        for file in self.files.values():
            with suppress(OSError):
                linux.close(file.fd)


class _Differs(Exception):
    """What is kept is not what the manifest says."""


def cache_path(identity: Identity) -> bytes:
    """Where the caller's own cache is; BadCache where nothing names a place."""
    env = identity.environment()
    for place, tail in ((env.get("NUCLEUS_GVISOR_CACHE", ""), b""), ("", ROOTS if identity.host_root else b"")):
        if place.startswith("/") or tail:
            return os.fsencode(place).rstrip(b"/") or tail
    for place, tail in ((env.get("XDG_CACHE_HOME", ""), b""), (env.get("HOME", ""), b"/.cache")):
        if place.startswith("/"):
            return os.fsencode(place).rstrip(b"/") + tail + b"/nucleus-gvisor"
    raise BadCache(
        "no place for a cache",
        step="Stage",
        observed="neither XDG_CACHE_HOME nor HOME names a directory",
        expected="a directory that the caller can write",
        hint=_HINT,
    )


def places(identity: Identity) -> list[bytes]:
    """The caches that a launch of the caller's may use, his own and root's."""
    found = [ROOTS]
    with suppress(BadCache):
        found.insert(0, cache_path(identity))
    return list(dict.fromkeys(found))


def provide(judged: Judged, identity: Identity) -> Kept:
    """The judged files, kept: found or made. BadCache where others can write the cache, Changed where the judged files
    are no longer what was judged, StepFailed where nothing can be kept.

    Spec: GVisorRuntime!StageKept.
    """
    for file in judged.files:
        stage.see_untouched(file)
    if kept := _by_root(judged, identity):
        return kept
    path = cache_path(identity)
    cache = open_cache(path, identity, create=True)
    try:
        _see_executable(cache, path, identity)
        word = "made"
        try:
            if kept := _find(cache, path, judged, identity, renew=True):
                return kept
        except _Differs:
            word = "replaced"
        with _alone(cache, path):
            if word == "made":
                try:
                    # Another process may have made it meanwhile, or the same bytes were installed elsewhere or anew.
                    if kept := _find(cache, path, judged, identity, renew=True) or _same(cache, path, judged, identity):
                        return kept
                except _Differs:
                    word = "replaced"
            return _make(cache, path, judged, identity, word)
    finally:
        linux.close(cache)


def _by_root(judged: Judged, identity: Identity) -> Kept | None:
    """What an ordinary caller executes of root's: what root keeps of these files, or root's own files in place."""
    if identity.host_root:
        return None
    if kept := _of_root(judged, identity):
        return kept
    return _in_place(judged) if _are_roots(judged, identity) else None


@dataclass(frozen=True)
class Foreseen:
    """What `provide` would do now."""

    word: str
    """As `Kept.word`; `none` where it would fail."""
    cache: bytes
    paths: Mapping[str, bytes]
    """Where the files would be executed; RANDOM and the like stand for what is not known before."""
    why: str = ""


def find(judged: Judged, identity: Identity) -> Kept | None:
    """What `provide` would find, with nothing made or changed; None where it would make it, or fail."""
    try:
        if kept := _by_root(judged, identity):
            return kept
        path = cache_path(identity)
        cache = open_cache(path, identity, create=False)
        try:
            _see_executable(cache, path, identity)
            return _find(cache, path, judged, identity, renew=False)
        finally:
            linux.close(cache)
    except (_Differs, LaunchError, OSError):
        return None


def foresee(judged: Judged, identity: Identity) -> Foreseen:
    """What a launch would execute, with nothing made or changed."""
    names = stage.named(judged)
    path = b""
    try:
        if not identity.host_root:
            if kept := _of_root(judged, identity):
                kept.close()
                return Foreseen(kept.word, ROOTS, {name: file.path for name, file in kept.files.items()})
            if _are_roots(judged, identity):
                return Foreseen("in place", b"", {name: file.path for name, file in names.items()})
        path = cache_path(identity)
        word = "made"
        if os.path.isdir(path):
            cache = open_cache(path, identity, create=False)
            try:
                _see_executable(cache, path, identity)
                if kept := _find(cache, path, judged, identity, renew=False):
                    kept.close()
                    return Foreseen("found", path, {name: file.path for name, file in kept.files.items()})
            except _Differs:
                word = "replaced"
            finally:
                linux.close(cache)
        return Foreseen(word, path, {name: path + b"/sets/DIGEST/" + os.fsencode(name) for name in names})
    except (LaunchError, OSError) as error:
        return Foreseen("none", path, {}, str(error))


def still(kept: Kept, judged: Judged, identity: Identity) -> bool:
    """Are the kept files what they were when `provide` looked, and the cache still nobody else's; BadCache, Changed."""
    for file in judged.files:
        stage.see_untouched(file)
    if kept.cache:
        linux.close(open_cache(kept.cache, identity, create=False, roots=kept.word == "root's"))
    return all(_is_plain(file) for file in kept.files.values())


def bytes_of(file: File) -> str:
    """SHA-256 of the bytes themselves, read once in a process for as long as the file's times are the same."""
    return hashed(file.fd, file.snapshot)


_hashes: dict[Snapshot, str] = {}


def hashed(fd: int, snapshot: Snapshot) -> str:
    """SHA-256 of what lies behind `fd`, read once in a process for as long as `snapshot` is true of it."""
    if snapshot not in _hashes:
        while len(_hashes) > 64:
            _hashes.pop(next(iter(_hashes)))
        _hashes[snapshot] = stage.sha256(fd, snapshot.size)
    return _hashes[snapshot]


# ---- where ----


def open_cache(path: bytes, identity: Identity, *, create: bool, roots: bool = False) -> int:
    """A descriptor of the cache, judged; with `roots` it has to be root's."""
    try:
        fd = open_walked(path, identity, create=create)
    except BadBase as error:
        raise BadCache(
            "others can change the cache",
            step="Stage",
            path=error.path,
            observed=error.observed,
            expected=error.expected,
            hint=_HINT,
        ) from error
    try:
        status = os.fstat(fd)
        if status.st_uid != (0 if roots else identity.uid) or status.st_mode & 0o022:
            raise BadCache(
                "others can change the cache",
                step="Stage",
                path=path,
                observed=described(status),
                expected=f"owner uid {0 if roots else identity.uid}, not writable by group or others",
                hint=_HINT,
            )
    except BaseException:
        linux.close(fd)
        raise
    return fd


def _see_executable(cache: int, path: bytes, identity: Identity) -> None:
    """In a user namespace a mount's noexec cannot be cleared, mount_namespaces(7)."""
    if not identity.host_root and os.fstatvfs(cache).f_flag & os.ST_NOEXEC:
        raise StepFailed(
            "nothing can be executed from the cache",
            step="Stage",
            path=path,
            observed="mounted noexec",
            expected="a file system that programs can be executed from",
            hint=_HINT,
        )


def _of_root(judged: Judged, identity: Identity) -> Kept | None:
    """What root keeps of these very files. Who is root's can be told only where every id has a mapping."""
    if identity.unmapped is not None:
        return None
    try:
        cache = open_cache(ROOTS, identity, create=False, roots=True)
    except (LaunchError, OSError):
        return None
    try:
        if os.fstatvfs(cache).f_flag & os.ST_NOEXEC:
            return None
        return _find(cache, ROOTS, judged, replace(identity, uid=0), renew=False)
    except (_Differs, LaunchError, OSError):
        return None
    finally:
        linux.close(cache)


def _are_roots(judged: Judged, identity: Identity) -> bool:
    """Are the judged files, and all directories above, root's, and may they be executed where they lie."""
    for file in judged.files:
        status = os.fstat(file.fd)
        system = judged.runsc.path in SYSTEM_PATHS and identity.unmapped is not None
        owners = {0, identity.unmapped} if system else {0} if identity.unmapped is None else set()
        if status.st_uid not in owners or os.fstatvfs(file.fd).f_flag & os.ST_NOEXEC or not status.st_mode & 0o001:
            return False
        above = os.path.dirname(file.path)
        while True:
            # SAFETY: by path; each was judged on its descriptor, and the child compares what the whole path leads to.
            if os.stat(above).st_uid not in owners:
                return False
            if above == b"/":
                break
            above = os.path.dirname(above)
    return True


def _in_place(judged: Judged) -> Kept:
    files = {}
    for name, file in stage.named(judged).items():
        files[name] = File(file.path, linux.dup(file.fd), file.snapshot, hashed(file.fd, file.snapshot))
    return Kept(files, "in place")


# ---- found ----


def _key(judged: Judged) -> str:
    """What tells the judged files from any others, and from themselves once anybody has touched them."""
    return key({name: file.snapshot for name, file in stage.named(judged).items()})


def key(snapshots: Mapping[str, Snapshot]) -> str:
    """The name under which a cache has what these files are."""
    sources = sorted((name, *snapshot.numbers) for name, snapshot in snapshots.items())
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def _find(cache: int, path: bytes, judged: Judged, identity: Identity, *, renew: bool) -> Kept | None:
    """The kept files of the judged ones, None where there are none, _Differs where they are not what they were."""
    digest = read_small(cache, f"sources/{_key(judged)}").decode("ascii", "replace").strip()
    if not _DIGEST.fullmatch(digest):
        return None
    return _open_set(cache, path, digest, judged, identity, renew=renew)


def _same(cache: int, path: bytes, judged: Judged, identity: Identity) -> Kept | None:
    """What is kept of the very bytes that were judged, where others of the same sizes are; it is theirs from now on."""
    files = stage.named(judged)
    sizes = {name: file.snapshot.size for name, file in files.items()}
    for digest in _names(cache, "sets"):
        with suppress(_Differs):
            told = _manifest(read_small(cache, f"sets/{digest}/manifest"))
            if {name: snapshot.size for name, (_, snapshot) in told.items()} == sizes:
                break
    else:
        return None
    digest = set_digest({name: stage.sha256(file.fd, file.snapshot.size) for name, file in files.items()})
    for file in files.values():
        stage.see_untouched(file)
    if kept := _open_set(cache, path, digest, judged, identity, renew=True):
        write_small(cache, f"sources/{_key(judged)}", digest.encode() + b"\n")
    return kept


def _open_set(cache: int, path: bytes, digest: str, judged: Judged, identity: Identity, *, renew: bool) -> Kept | None:
    """The set of this digest, None where there is none, _Differs where it is not what it was."""
    here = path + b"/sets/" + digest.encode()
    try:
        folder = linux.open(f"sets/{digest}", _DIRECTORY, dir_fd=cache)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Differs from error
    files: dict[str, File] = {}
    try:
        told = _manifest(read_small(folder, "manifest"))
        if set(told) != set(stage.named(judged)) or set_digest({n: t[0] for n, t in told.items()}) != digest:
            raise _Differs
        moved = False
        for name, (sha256, snapshot) in told.items():
            try:
                fd = linux.open(name, _READ, dir_fd=folder)
            except OSError as error:
                raise _Differs from error
            files[name] = file = File(here + b"/" + name.encode(), fd, Snapshot.of(fd), sha256)
            if not _is_plain(file, identity.uid):
                raise _Differs
            if file.snapshot != snapshot:
                # Another number of the device is all that a reboot or a mount changes.
                if replace(file.snapshot, device=snapshot.device) != snapshot or bytes_of(file) != sha256:
                    raise _Differs
                moved = True
        if moved and renew:
            write_small(folder, "manifest", _manifest_of(files))
        if renew:
            os.utime(folder)
        kept, files = Kept(files, "found" if renew else "root's", path), {}
        return kept
    finally:
        for file in files.values():
            linux.close(file.fd)
        linux.close(folder)


def _is_plain(file: File, uid: int | None = None) -> bool:
    """Is it one file, with one name, that nobody can write, and what it was: any change of that changes its ctime."""
    status = os.fstat(file.fd)
    plain = stat.S_ISREG(status.st_mode) and Snapshot.of(file.fd) == file.snapshot
    if uid is None:
        return plain
    return plain and status.st_nlink == 1 and status.st_uid == uid and stat.S_IMODE(status.st_mode) == MODE


def read_small(folder: int, name: str, limit: int = _MANIFEST) -> bytes:
    """A small file of ours; nothing where it is not there, or is none."""
    try:
        fd = linux.open(name, _READ, dir_fd=folder)
    except OSError:
        return b""
    try:
        return os.pread(fd, limit, 0) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        linux.close(fd)


def _manifest(text: bytes) -> dict[str, tuple[str, Snapshot]]:
    """What a manifest tells of each file; _Differs for what we would not write."""
    try:
        data: dict[str, Any] = json.loads(text)
        found = {}
        for name, (sha256, *numbers) in data.items():
            if not _DIGEST.fullmatch(sha256) or not all(type(number) is int for number in numbers):
                raise _Differs
            found[name] = (sha256, Snapshot(*numbers))
        return found
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _Differs from error


def _manifest_of(files: Mapping[str, File]) -> bytes:
    told = {name: [file.sha256, *file.snapshot.numbers] for name, file in sorted(files.items())}
    return json.dumps(told, separators=(",", ":")).encode()


# ---- made ----


@contextmanager
def _alone(cache: int, path: bytes) -> Iterator[None]:
    """No other process makes or removes anything here meanwhile. A process that dies lets go."""
    fd = linux.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=cache)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise StepFailed(
                        "the cache is busy",
                        step="Stage",
                        path=path,
                        observed=f"locked for {PATIENCE:.0f} s",
                        expected="that whoever makes something there ends",
                        hint=_HINT,
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        linux.close(fd)


def _make(cache: int, path: bytes, judged: Judged, identity: Identity, word: str) -> Kept:
    """The judged files copied, compared, hashed and on disk; then renamed in. A kill at any point leaves the old or
    the new, or a `tmp-` that the next maker removes.
    """
    files: dict[str, File] = {}
    name = "tmp-" + secrets.token_hex(8)
    folder = -1
    try:
        for below in ("sets", "sources"):
            with suppress(FileExistsError):
                os.mkdir(below, 0o700, dir_fd=cache)
        if identity.host_root:  # for everybody: what is everybody's is in it, and what is not is closed one by one
            for below in (".", "sets", "sources"):
                os.chmod(below, 0o755, dir_fd=cache)
        _sweep(cache)
        _see_room(cache, judged)
        make_directory(cache, name)
        folder = linux.open(name, _DIRECTORY, dir_fd=cache)
        for target, source in stage.named(judged).items():
            files[target] = _copy(source, folder, target, path)
        digest = set_digest({target: file.sha256 for target, file in files.items()})
        here = path + b"/sets/" + digest.encode()
        files = {target: replace(file, path=here + b"/" + target.encode()) for target, file in files.items()}
        write_small(folder, "manifest", _manifest_of(files))
        if _is_public(judged):
            os.chmod(folder, 0o755)
        os.fsync(folder)
        _rename_in(cache, name, f"sets/{digest}")
        write_small(cache, f"sources/{_key(judged)}", digest.encode() + b"\n")
        _prune(cache, digest)
        kept, files = Kept(files, word, path), {}
        return kept
    except OSError as error:
        raise StepFailed(
            "nothing can be kept in the cache",
            step="Stage",
            path=path,
            observed=error.strerror or str(error),
            expected=f"{sum(file.snapshot.size for file in judged.files)} bytes of room, and no error",
            hint=_HINT if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else remedy(error),
        ) from error
    finally:
        for file in files.values():
            linux.close(file.fd)
        if folder >= 0:
            linux.close(folder)
        with suppress(OSError):
            remove_tree(cache, name.encode(), lambda _: None)


def _see_room(cache: int, judged: Judged) -> None:
    room, need = os.fstatvfs(cache), sum(file.snapshot.size for file in judged.files)
    if room.f_bavail * room.f_frsize < need + (1 << 20):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_public(judged: Judged) -> bool:
    """May anybody read the judged files where they lie."""
    for file in judged.files:
        above = os.path.dirname(file.path)
        if not os.fstat(file.fd).st_mode & 0o004:
            return False
        while above != b"/":
            if not os.stat(above).st_mode & 0o001:
                return False
            above = os.path.dirname(above)
    return True


def _copy(source: JudgedFile, folder: int, name: str, path: bytes) -> File:
    """A copy on disk of the judged file, compared with it and hashed in one pass, and a descriptor that reads it."""
    if "/" in name:
        with suppress(FileExistsError):
            make_directory(folder, os.path.dirname(name))
            os.chmod(os.path.dirname(name), 0o755, dir_fd=folder)
    made = linux.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o500, dir_fd=folder)
    try:
        stage.copy(source.fd, made, source.snapshot.size)
        os.fchmod(made, MODE)  # runsc re-executes itself as nobody
        os.fsync(made)
        written = file_id(os.fstat(made))
    finally:
        linux.close(made)
    fd = linux.open(name, _READ, dir_fd=folder)
    try:
        size = os.fstat(fd).st_size
        digest = stage.compared(fd, source.fd, size)
        if file_id(os.fstat(fd)) != written or size != source.snapshot.size or digest is None:
            raise stage.changed(source)
        stage.see_untouched(source)
        stage.see_program(fd, size, source.path)
        if "/" in name:
            inner = linux.open(os.path.dirname(name), _DIRECTORY, dir_fd=folder)
            try:
                os.fsync(inner)
            finally:
                linux.close(inner)
        _see_no_writer(fd)
        return File(b"", fd, Snapshot.of(fd), digest)
    except BaseException:
        linux.close(fd)
        raise


def _see_no_writer(fd: int) -> None:
    """Wait until no process has it open for writing: one that was forked while it was written has, until its own
    execve, and nobody could execute the file (ETXTBSY). A read lease says so, fcntl(2).
    """
    end = time.monotonic() + 1
    while time.monotonic() < end:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return
        time.sleep(0.001)


def write_small(folder: int, name: str, text: bytes, *, sync: bool = True) -> None:
    """`text` under `name`, whole or not at all; without `sync` not where the machine crashes."""
    new = os.path.join(os.path.dirname(name), "new-" + secrets.token_hex(8))
    fd = linux.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        linux.write_all(fd, text)
        os.fchmod(fd, 0o644)
        if sync:
            os.fsync(fd)
        os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(new, dir_fd=folder)
        raise
    finally:
        linux.close(fd)


def _rename_in(cache: int, name: str, target: str) -> None:
    """`name` in the place of `target`; what was there is removed. Sandboxes that run it have it bound, and keep it."""
    old = "tmp-" + secrets.token_hex(8)
    try:
        os.rename(target, old, src_dir_fd=cache, dst_dir_fd=cache)
    except FileNotFoundError:
        old = ""
    os.rename(name, target, src_dir_fd=cache, dst_dir_fd=cache)
    sets = linux.open("sets", _DIRECTORY, dir_fd=cache)
    try:
        os.fsync(sets)
    finally:
        linux.close(sets)
    if old:
        remove_tree(cache, old.encode(), lambda _: None)


# ---- removed ----


def _sweep(cache: int) -> list[str]:
    """Remove what killed makers left, names of sources whose set is gone, and old answers. Only under `_alone`."""
    gone = [name for name in os.listdir(cache) if name.startswith("tmp-")]
    for name in gone:
        remove_tree(cache, name.encode(), lambda _: None)
    sets = set(_names(cache, "sets"))
    for name in _names(cache, "sources"):
        digest = read_small(cache, f"sources/{name}").decode("ascii", "replace").strip()
        if digest not in sets or not _DIGEST.fullmatch(name):
            with suppress(OSError):
                os.unlink(f"sources/{name}", dir_fd=cache)
    for name in _names(cache, ANSWERS):
        with suppress(OSError):
            answered = os.stat(f"{ANSWERS}/{name}", dir_fd=cache, follow_symlinks=False).st_mtime
            if time.time() - answered > ANSWERS_STAY:
                os.unlink(f"{ANSWERS}/{name}", dir_fd=cache)
    return gone


def _names(cache: int, below: str) -> list[str]:
    try:
        fd = linux.open(below, _DIRECTORY, dir_fd=cache)
    except FileNotFoundError:
        return []
    try:
        return os.listdir(fd)
    finally:
        linux.close(fd)


def _prune(cache: int, but: str, most: int = MOST) -> list[str]:
    """Remove the sets that were used longest ago, but none that is fresh, or that a process executes."""
    ages = []
    for name in _names(cache, "sets"):
        with suppress(OSError):
            ages.append((os.stat(f"sets/{name}", dir_fd=cache, follow_symlinks=False).st_mtime, name))
    gone = []
    now = time.time()
    running: set[tuple[int, int]] | None = None
    for age, name in sorted(ages)[: max(0, len(ages) - most)]:
        if name == but or now - age < FRESH:
            continue
        running = executed() if running is None else running
        if running & _identities(cache, name):
            continue
        remove_tree(cache, b"sets/" + os.fsencode(name), lambda _: None)
        gone.append(name)
    return gone


def _identities(cache: int, name: str) -> set[tuple[int, int]]:
    try:
        folder = linux.open(f"sets/{name}", _DIRECTORY, dir_fd=cache)
    except OSError:
        return set()
    try:
        told = _manifest(read_small(folder, "manifest"))
        return {file_id(os.stat(file, dir_fd=folder, follow_symlinks=False)) for file in told}
    except (_Differs, OSError):
        return set()
    finally:
        linux.close(folder)


def executed() -> set[tuple[int, int]]:
    """What processes execute, as far as this one may know."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                found.add(file_id(os.stat(f"/proc/{name}/exe")))
    return found


def collect(identity: Identity) -> list[str]:
    """Remove from the caller's cache what nobody needs; the names of what went. Nothing where there is no cache."""
    path = cache_path(identity)
    if not os.path.isdir(path):
        return []
    cache = open_cache(path, identity, create=False)
    try:
        with _alone(cache, path):
            return [*_sweep(cache), *_prune(cache, "")]
    finally:
        linux.close(cache)


__all__ = [
    "File",
    "Kept",
    "bytes_of",
    "cache_path",
    "collect",
    "executed",
    "find",
    "foresee",
    "hashed",
    "open_cache",
    "places",
    "provide",
    "read_small",
    "still",
    "write_small",
]
