"""Stage: keep exactly the judged bytes until execve (gvisor.rs:456, 800).

Every method begins with a sealed memfd: a copy that nobody can change any more, compared with the file's own word
before and after, and hashed once it is sealed. `set` and `copy` are written from that memfd, never from the path
again. A long-lived process keeps its sealed copies and uses one again as long as the file's identity, size and times
are unchanged.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass

from nucleus_gvisor.model.errors import Changed, LaunchError, NoSpace, PinMismatch, SafetyViolation, StepFailed, remedy
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime import elf
from nucleus_gvisor.runtime.paths import calls, enter, exists, file_id, make_directory
from nucleus_gvisor.runtime.steps.resolve import Judged, JudgedFile, Snapshot

SEALS = linux.F_SEAL_SEAL | linux.F_SEAL_SHRINK | linux.F_SEAL_GROW | linux.F_SEAL_WRITE
MFD_EXEC = 0x10  # linux/memfd.h, Linux 6.3; without it vm.memfd_noexec=1 makes a memfd that cannot be executed
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MAX_KEPT = 8
CHUNK = 1 << 20


@dataclass(frozen=True)
class Sealed:
    """A sealed memfd and the SHA-256 of its bytes, in hex."""

    fd: int
    sha256: str
    size: int


@dataclass(frozen=True)
class Staged:
    """The evidence of Stage: what will be executed, by name (`runsc`, `gvisor-bin/NAME`), as open descriptors."""

    images: dict[str, int]
    digests: dict[str, str]
    method: str
    owned: tuple[int, ...] = ()
    """Descriptors that end with the launch; sealed ones are kept for the next."""
    directory: bytes | None = None
    """The private copy's own directory, below the container's."""

    def close(self) -> None:
        for fd in self.owned:
            with suppress(OSError):
                linux.close(fd)


_kept: dict[Snapshot, Sealed] = {}
_lock = threading.Lock()


def sealed(file: JudgedFile) -> Sealed:
    """The judged file's bytes, sealed. Changed when the file is no longer what was judged."""
    with _lock:
        if not _untouched(file):
            raise _changed(file)
        known = _kept.get(file.snapshot)
        if known is None:
            known = _seal(file)
            while len(_kept) >= MAX_KEPT:
                linux.close(_kept.pop(next(iter(_kept))).fd)
            # The process's from here on, not the launch's: in one line, as all that is written down or crossed out.
            held = linux.ledger().descriptors
            _kept[file.snapshot], _ = known, held.pop(known.fd, None)
        # The launch's own descriptor: another thread may drop the kept one meanwhile.
        return Sealed(linux.dup(known.fd), known.sha256, known.size)


def forget() -> None:
    """Close all kept copies."""
    with _lock:
        while _kept:
            linux.close(_kept.popitem()[1].fd)


def _changed(file: JudgedFile) -> LaunchError:
    return Changed(
        "changed after it was judged",
        step="Stage",
        path=file.path,
        expected=f"{file.snapshot.size} bytes, untouched",
        observed="another size or time",
        hint="launch again when its installation has finished",
    )


def _untouched(file: JudgedFile) -> bool:
    """Is the file as it was judged. Losing its name is no harm: what a package manager does to the old version.

    That changes ctime, as a write with its mtime put back does; so ctime may differ only where the name is gone.
    """
    now = Snapshot.of(file.fd)
    if now == file.snapshot:
        return True
    if not now.unwritten_since(file.snapshot):
        return False
    # SAFETY: looked at by path, but only to excuse a change of ctime; the bytes come from the descriptor.
    try:
        there = os.stat(file.path, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return file_id(there) != (now.device, now.inode)


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return linux.memfd_create("runsc", flags | MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return linux.memfd_create("runsc", flags)


def _seal(file: JudgedFile) -> Sealed:
    try:
        fd = _memfd()
    except OSError as error:
        hidden = error.errno in (errno.ENOSYS, errno.EPERM)
        raise StepFailed(
            "no memfd for the image",
            step="Stage",
            path=file.path,
            observed=error.strerror,
            hint="memfd_create needs Linux 3.17, and a seccomp filter that passes it" if hidden else remedy(error),
            expected="a file in memory",
        ) from error
    try:
        with calls("Stage", file.path):
            offset = 0
            while sent := os.sendfile(fd, file.fd, offset, 1 << 30):
                offset += sent
                if offset > file.snapshot.size:
                    break
            # runsc re-executes itself as nobody, and ptrace needs to read it: 0500 (gvisor.rs:859) breaks both.
            os.fchmod(fd, 0o555)
            fcntl.fcntl(fd, linux.F_ADD_SEALS, SEALS)
            size = os.fstat(fd).st_size
            # The times have the grain of a clock tick: a copy that a writer tore shows only in the bytes themselves.
            if size != file.snapshot.size or not _untouched(file) or not _same_bytes(file.fd, fd, size):
                raise _changed(file)
            if problem := elf.fault(fd, size):
                raise SafetyViolation(
                    "the sealed bytes are no program",
                    step="Stage",
                    path=file.path,
                    observed=problem,
                    expected="an ELF executable",
                )
            digest = sha256(fd, size)
        if fcntl.fcntl(fd, linux.F_GET_SEALS) & SEALS != SEALS:  # pragma: no cover - the kernel has just set them
            raise SafetyViolation(
                "the memfd is not sealed",
                step="Stage",
                path=file.path,
                observed="seals are missing",
                expected="all seals",
            )
        return Sealed(fd, digest, size)
    except BaseException:
        linux.close(fd)
        raise


def _same_bytes(source: int, image: int, size: int) -> bool:
    """Is what `source` holds now what was copied. It is read, not mapped: truncation would kill a mapping's reader."""
    with mmap.mmap(image, size, prot=mmap.PROT_READ) as view, memoryview(view) as sealed_bytes:
        offset = 0
        while offset < size:
            piece = os.pread(source, CHUNK, offset)
            if not piece or sealed_bytes[offset : offset + len(piece)] != piece:
                return False
            offset += len(piece)
    return True


def sha256(fd: int, size: int) -> str:
    """SHA-256 of the first `size` bytes behind `fd`, in hex."""
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as view:
        return hashlib.sha256(view).hexdigest()


def seal_all(judged: Judged) -> dict[str, Sealed]:
    """Every judged file sealed, by the name that it has in the set; PinMismatch when runsc is not the pinned one."""
    held: dict[str, Sealed] = {}
    try:
        for file in judged.files:
            name = "runsc" if file is judged.runsc else "gvisor-bin/" + os.fsdecode(os.path.basename(file.path))
            held[name] = sealed(file)
        if judged.pin is not None and held["runsc"].sha256 != judged.pin:
            raise PinMismatch(
                "not the pinned runsc",
                step="Stage",
                path=judged.runsc.path,
                observed=held["runsc"].sha256,
                expected=judged.pin,
            )
        return held
    except BaseException:
        close(held)
        raise


def close(held: dict[str, Sealed]) -> None:
    for item in held.values():
        with suppress(OSError):
            linux.close(item.fd)


def stage(method: str, judged: Judged, held: dict[str, Sealed], container: int, path: bytes) -> Staged:
    """What will be executed, staged by `method`; `container` is the container's directory, at `path`.

    Spec: GVisorRuntime!StageSealed, StageSet, StageCopy, StageStore.
    """
    images = {name: item.fd for name, item in held.items()}
    digests = {name: item.sha256 for name, item in held.items()}
    owned = tuple(images.values())
    if method == "sealed":
        return Staged({"runsc": images["runsc"]}, digests, method, owned)
    if method == "set":  # made from the sealed images, on a tmpfs of the child's own
        return Staged(images, digests, method, owned)
    if method == "store":
        return Staged({"runsc": judged.runsc.fd}, digests, method, owned)
    return _copy(held, digests, container, path)


def _copy(held: dict[str, Sealed], digests: dict[str, str], container: int, path: bytes) -> Staged:
    """The reference's private copy: exec-allow/stage-RANDOM/runsc (gvisor.rs:471), for its Landlock allowlist."""
    allow = enter(container, b"exec-allow", path + b"/exec-allow", create=True)
    name = b"stage-" + secrets.token_hex(16).encode()
    directory = path + b"/exec-allow/" + name
    stage_fd = image = -1
    try:
        with calls("Stage", directory):
            make_directory(allow, name)
            stage_fd = enter(allow, name, directory, create=False)
        if os.fstatvfs(stage_fd).f_flag & os.ST_NOEXEC:
            raise StepFailed(
                "nothing can be executed from the artifact base",
                step="Stage",
                path=directory,
                observed="mounted noexec",
                hint="use the sealed stage, or another artifact base",
                expected="a file system that programs can be executed from",
            )
        for target, item in held.items():
            if "/" in target and not exists(stage_fd, "gvisor-bin"):
                make_directory(stage_fd, "gvisor-bin")
            fd = _write_copy(item, stage_fd, target, directory)
            if target == "runsc":
                image = fd
            else:
                linux.close(fd)
    except BaseException:
        if image >= 0:
            linux.close(image)
        raise
    finally:
        linux.close(allow)
        if stage_fd >= 0:
            linux.close(stage_fd)
    close(held)
    return Staged({"runsc": image}, digests, "copy", (image,), directory)


def _write_copy(item: Sealed, parent: int, name: str, directory: bytes) -> int:
    """A read-only descriptor of the copy `name`, written out, synced, and hashed again."""
    try:
        fd = linux.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o500, dir_fd=parent)
        try:
            offset = 0
            while offset < item.size and (sent := os.sendfile(fd, item.fd, offset, 1 << 30)):
                offset += sent
            os.fchmod(fd, 0o555)
            os.fsync(fd)
            written = file_id(os.fstat(fd))
        finally:
            linux.close(fd)
        again = linux.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace(
                "no room for the private copy",
                step="Stage",
                path=directory,
                observed=error.strerror,
                expected=f"{item.size} bytes",
                hint="use the sealed stage",
            ) from error
        raise StepFailed(
            "cannot stage",
            step="Stage",
            path=directory,
            observed=error.strerror,
            expected="no error",
            hint=remedy(error),
        ) from error
    try:
        status = os.fstat(again)
        if file_id(status) != written or status.st_size != item.size or sha256(again, item.size) != item.sha256:
            raise SafetyViolation(
                "the private copy is not what was written",
                step="Stage",
                path=directory,
                observed="another file, or other bytes",
                expected="the sealed bytes",
            )
    except BaseException:
        linux.close(again)
        raise
    return again
