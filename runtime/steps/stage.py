"""Stage: keep exactly the judged bytes until execve (gvisor.rs:456, 800).

Every method begins with a sealed memfd: a copy that nobody can change any more, compared with the file's own word
before and after, and hashed once it is sealed. `set` and `copy` are written from that memfd, never from the path
again. A long-lived process keeps its sealed copies and uses one again as long as the file's identity, size and times
are unchanged.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nucleus_gvisor.model.errors import Changed, LaunchError, NoSpace, PinMismatch, SafetyViolation, StepFailed, remedy
from nucleus_gvisor.model.record import set_digest
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime import elf
from nucleus_gvisor.runtime.paths import calls, enter, exists, file_id, make_directory
from nucleus_gvisor.runtime.steps.resolve import Judged, JudgedFile, Snapshot

if TYPE_CHECKING:  # it stages too
    from nucleus_gvisor.runtime.kept import Kept

SEALS = linux.F_SEAL_SEAL | linux.F_SEAL_SHRINK | linux.F_SEAL_GROW | linux.F_SEAL_WRITE
MFD_EXEC = 0x10  # linux/memfd.h, Linux 6.3; without it vm.memfd_noexec=1 makes a memfd that cannot be executed
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MAX_KEPT = 8
CHUNK = 1 << 18


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
    bound: Mapping[str, tuple[bytes, tuple[int, ...], str]] = field(default_factory=dict)
    """Files that a locked child binds where runsc looks for them, by name in the set: path, what fstat says of it, and
    what it means when that differs."""

    def close(self) -> None:
        for fd in self.owned:
            with suppress(OSError):
                linux.close(fd)


_kept: dict[Snapshot, Sealed] = {}
_lock = threading.Lock()


def sealed(file: JudgedFile) -> Sealed:
    """The judged file's bytes, sealed. Changed when the file is no longer what was judged."""
    with _lock:
        see_untouched(file)
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


def changed(file: JudgedFile) -> LaunchError:
    """The error for a file that is no longer what was judged."""
    return Changed(
        "changed after it was judged",
        step="Stage",
        path=file.path,
        expected=f"{file.snapshot.size} bytes, untouched",
        observed="another size or time",
        hint="launch again when its installation has finished",
    )


def see_untouched(file: JudgedFile) -> None:
    """Changed when the file is no longer what was judged, as far as its descriptor tells."""
    if not _untouched(file):
        raise changed(file)


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
            copy(file.fd, fd, file.snapshot.size)
            # runsc re-executes itself as nobody, and ptrace needs to read it: 0500 (gvisor.rs:859) breaks both.
            os.fchmod(fd, 0o555)
            fcntl.fcntl(fd, linux.F_ADD_SEALS, SEALS)
            size = os.fstat(fd).st_size
            # The times have the grain of a clock tick: a copy that a writer tore shows only in the bytes themselves.
            if size != file.snapshot.size or not _untouched(file) or not (digest := compared(fd, file.fd, size)):
                raise changed(file)
            see_program(fd, size, file.path)
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


def copy(source: int, target: int, size: int) -> None:
    """The first `size` bytes of `source`, and one more where there are more: what grows meanwhile has another size."""
    offset = 0
    while offset <= size and (done := _copied(source, target, offset, size + 1 - offset)):
        offset += done


def _copied(source: int, target: int, offset: int, size: int) -> int:
    """Between files of one file system their blocks may be shared (copy_file_range(2)); sendfile(2) takes the rest."""
    try:
        if done := os.copy_file_range(source, target, size, offset, offset):
            return done
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            raise
    os.lseek(target, offset, os.SEEK_SET)
    return os.sendfile(target, source, offset, size)


def compared(image: int, source: int, size: int) -> str | None:
    """SHA-256 of the `size` bytes of `image`, in hex; None when `source` does not hold the same now.

    It is read, not mapped: truncation would kill a mapping's reader.
    """
    whole = hashlib.sha256()
    buffers = [bytearray(CHUNK), bytearray(CHUNK)]
    for offset in range(0, size, CHUNK):
        if size - offset < CHUNK:
            buffers = [bytearray(size - offset), bytearray(size - offset)]
        for fd, buffer in zip((image, source), buffers, strict=True):
            if os.preadv(fd, [buffer], offset) != len(buffer):
                return None
        if buffers[0] != buffers[1]:
            return None
        whole.update(buffers[0])
    return whole.hexdigest()


def see_program(fd: int, size: int, path: bytes) -> None:
    """SafetyViolation when the copied bytes are no program for this machine: they were judged to be one."""
    if problem := elf.fault(fd, size):
        raise SafetyViolation(
            "the copied bytes are no program",
            step="Stage",
            path=path,
            observed=problem,
            expected="an ELF executable",
        )


def sha256(fd: int, size: int) -> str:
    """SHA-256 of the first `size` bytes behind `fd`, in hex."""
    whole, buffer = hashlib.sha256(), bytearray(CHUNK)
    with memoryview(buffer) as view:
        offset = 0
        while offset < size and (count := os.preadv(fd, [buffer], offset)):
            count = min(count, size - offset)
            whole.update(view[:count])
            offset += count
    return whole.hexdigest()


def named(judged: Judged) -> dict[str, JudgedFile]:
    """The judged files, by the name that each has in the set: `runsc`, `gvisor-bin/NAME`."""
    side = {"gvisor-bin/" + os.fsdecode(os.path.basename(file.path)): file for file in judged.side}
    return {"runsc": judged.runsc, **side}


def see_pinned(judged: Judged, digests: Mapping[str, str]) -> None:
    """PinMismatch when these are not the files that the pin names."""
    if judged.pin is not None and (found := set_digest(digests)) != judged.pin:
        side = f" with {', '.join(sorted(set(digests) - {'runsc'}))} beside it" if len(digests) > 1 else ""
        raise PinMismatch(
            "not the pinned runsc",
            step="Stage",
            path=judged.runsc.path,
            observed=found + side,
            expected=judged.pin,
            **(
                {"hint": "a pin names runsc and all that it executes: `nucleus-gvisor doctor` prints it"}
                if side
                else {}
            ),
        )


def seal_all(judged: Judged) -> dict[str, Sealed]:
    """Every judged file sealed, by the name that it has in the set; PinMismatch when runsc is not the pinned one."""
    held: dict[str, Sealed] = {}
    try:
        for name, file in named(judged).items():
            held[name] = sealed(file)
        see_pinned(judged, {name: item.sha256 for name, item in held.items()})
        return held
    except BaseException:
        close(held)
        raise


def close(held: dict[str, Sealed]) -> None:
    for item in held.values():
        with suppress(OSError):
            linux.close(item.fd)


def stage(
    method: str, judged: Judged, held: dict[str, Sealed], container: int, path: bytes, *, kept: "Kept | None" = None
) -> Staged:
    """What will be executed, staged by `method`; `container` is the container's directory, at `path`.

    Spec: GVisorRuntime!StageSealed, StageSet, StageCopy, StageStore, StageKept.
    """
    if kept is not None:
        files = {name: file.fd for name, file in kept.files.items()}
        bound = {name: (file.path, file.snapshot.numbers, "kept") for name, file in kept.files.items()}
        return Staged({"runsc": files["runsc"]}, kept.digests, method, tuple(files.values()), bound=bound)
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
    bound: dict[str, tuple[bytes, tuple[int, ...], str]] = {}
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
            bound[target] = (directory + b"/" + target.encode(), Snapshot.of(fd).numbers, "changed")
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
    # runsc alone is executed by its descriptor; with others, they have to be beside it wherever it is confined.
    return Staged({"runsc": image}, digests, "copy", (image,), directory, bound if len(bound) > 1 else {})


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
