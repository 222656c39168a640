"""Resolve: find runsc, open it once, and judge that descriptor (gvisor.rs:130).

Only this module makes a `Judged`. All later steps act on its descriptor; the path is never opened again.
"""

import errno
import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from nucleus_gvisor.model.errors import (
    BadPath,
    LaunchError,
    NotElf,
    NotExecutable,
    NotFound,
    NotRegular,
    TooBig,
    Untrusted,
)
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime import elf
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import Found, Walk, described, file_id, judge_directory, judge_owner

SYSTEM_PATHS = (b"/usr/local/bin/runsc", b"/usr/bin/runsc", b"/opt/gvisor/runsc")
"""Where runsc is looked for, in order (gvisor.rs:132)."""
MAX_SIZE = 256 << 20
"""Bytes; releases have 24 to 80 million."""
MAX_WRAPPER = 4096
"""Bytes of a Nix wrapper script (gvisor.rs:263)."""
MAX_SIDE_BINARIES = 64
SIDE_DIRECTORY = b"gvisor-bin"
NOT_EXECUTED = (b"runsc-metric-server", b"checkpointgofer")
"""What lies there and no launch runs: it is neither judged nor kept, so that whoever touches it disturbs none."""
STORE = b"/nix/store/"
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# The command word of an exec, of characters that mean themselves to a shell: what an argument names, or an expansion
# makes, is not what the wrapper would execute.
_TARGET = re.compile(
    rb'exec[ \t]+(?:-a[ \t]+(?:"[^"\\]*"|[\w$.-]+)[ \t]+)?("?)(/[\w./+,:=@%-]*runsc[\w.+,:=@%-]*)\1(?:[ \t].*)?',
    re.ASCII,
)


@dataclass(frozen=True)
class Snapshot:
    """What a file's descriptor says about its bytes; two equal snapshots are of a file that nobody touched."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, fd: int) -> "Snapshot":
        return cls.of_status(os.fstat(fd))

    @classmethod
    def of_status(cls, s: os.stat_result) -> "Snapshot":
        """The same, of what stat(2) said."""
        return cls(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)

    @property
    def numbers(self) -> tuple[int, ...]:
        """All of it, as plain data."""
        return self.device, self.inode, self.size, self.modified, self.changed

    def unwritten_since(self, other: "Snapshot") -> bool:
        """Was nothing written in between, as far as the times tell: removing or renaming the file changes `changed`."""
        return replace(self, changed=0) == replace(other, changed=0)


@dataclass(frozen=True)
class JudgedFile:
    """One executable that passed: its descriptor, where it was, and what it was then."""

    path: bytes
    fd: int
    snapshot: Snapshot


_MINT = object()


class Judged:
    """The evidence of Resolve: runsc and its side binaries, judged and held open. Only `resolve` makes one."""

    def __init__(self, runsc: JudgedFile, side: Sequence[JudgedFile], pin: str | None, mint: object) -> None:
        if mint is not _MINT:
            raise TypeError("a Judged is made by judging a descriptor: call resolve()")
        self.runsc: JudgedFile = runsc
        self.side: tuple[JudgedFile, ...] = tuple(side)
        self.pin: str | None = pin
        self._open = True

    @property
    def files(self) -> tuple[JudgedFile, ...]:
        return (self.runsc, *self.side)

    def close(self) -> None:
        """Close what is held; a second time closes nothing, for the numbers may be someone else's by then."""
        held, self._open = self.files if self._open else (), False
        for file in held:
            with suppress(OSError):
                linux.close(file.fd)


@dataclass
class Search:
    """What was looked at and what was found wrong with it, in order."""

    verdicts: list[tuple[bytes, str]] = field(default_factory=list)
    refusals: list[LaunchError] = field(default_factory=list)

    def note(self, path: bytes, error: LaunchError) -> None:
        self.verdicts.append((path, "absent" if isinstance(error, NotFound) else str(error)))
        if not isinstance(error, NotFound):
            self.refusals.append(error)


def candidates(explicit: bytes | None, identity: Identity) -> list[bytes]:
    """Paths to try, in order. `PATH` counts for an unprivileged, unelevated caller, and only its absolute items."""
    if explicit is not None:
        return [explicit]
    found = list(SYSTEM_PATHS)
    if identity.uid != 0:
        for item in os.fsencode(identity.environment().get("PATH", "")).split(b":"):
            if item.startswith(b"/"):
                found.append(item.rstrip(b"/") + b"/runsc")
    return list(dict.fromkeys(found))


def resolve(explicit: bytes | None, identity: Identity, *, pin: str | None = None, store: bool = False) -> Judged:
    """The judged runsc. A candidate that is refused does not end the search (gvisor.rs:180 lets it).

    Raises the first refusal when every candidate that is there was refused, else NotFound with the whole list.
    Spec: GVisorRuntime!Resolve.
    """
    search = Search()
    for path in candidates(explicit, identity):
        try:
            return judge(path, identity, pin=pin, store=store, system=path in SYSTEM_PATHS)
        except LaunchError as error:
            search.note(path, error)
    verdicts = "; ".join(f"{os.fsdecode(path)}: {verdict}" for path, verdict in search.verdicts)
    if search.refusals:
        if len(search.verdicts) > 1:
            search.refusals[0].add_note(f"looked at: {verdicts}")
        raise search.refusals[0]
    raise NotFound(
        "runsc not found",
        step="Resolve",
        observed=verdicts,
        expected="an executable at one of these",
        hint="apt-get install runsc, or name the binary",
    )


def judge(path: bytes, identity: Identity, *, pin: str | None, store: bool = False, system: bool = False) -> Judged:
    """Open what lies at `path` once and judge that descriptor, its side binaries, and all directories above."""
    first = _open_judged(path, identity, pin is not None, system)
    # A Nix wrapper's target answers to the same rules; a wrapper's wrapper does not exist.
    opened = _open_judged(first, identity, pin is not None, system, wrapped=True) if isinstance(first, bytes) else first
    if isinstance(opened, bytes):  # pragma: no cover - with `wrapped` there is no target; the type cannot say it
        raise NotElf(
            "a wrapper of a wrapper",
            step="Resolve",
            path=path,
            observed="a script",
            expected="an ELF executable",
            hint="name the program that it ends in",
        )
    runsc, found = opened
    try:
        if store and not os.fstatvfs(runsc.fd).f_flag & os.ST_RDONLY:
            raise Untrusted(
                "the store can be written",
                step="Resolve",
                path=found.path,
                observed="read-write mount",
                expected="an immutable store on a read-only mount",
                hint="use the sealed stage",
            )
        return Judged(runsc, _side_binaries(found, identity, pinned=pin is not None, system=system), pin, _MINT)
    except BaseException:
        linux.close(runsc.fd)
        raise
    finally:
        linux.close(found.parent)


def _open_judged(
    path: bytes, identity: Identity, pinned: bool, system: bool, *, wrapped: bool = False
) -> tuple[JudgedFile, Found] | bytes:
    """The judged file and where it was found, or the target of the wrapper that it is; the caller closes both."""
    found = Walk(identity).to(path)
    fd = -1
    kept = False
    try:
        fd = _open_regular(found)
        status = os.fstat(fd)
        _judge_file(fd, status, found, identity, pinned=pinned, system=system)
        if not wrapped and (target := _wrapped_target(fd, status, found.path)) is not None:
            return target
        _judge_program(fd, status, found.path)
        judged = JudgedFile(found.path, fd, Snapshot.of(fd))
        kept = True
        return judged, found
    finally:
        if not kept:
            linux.close(found.parent)
            if fd >= 0:
                linux.close(fd)


def _open_regular(found: Found) -> int:
    """A readable descriptor of the file. Looked at through O_PATH first: opening a FIFO or device can act or hang."""
    probe = linux.open(found.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=found.parent)
    try:
        status = os.fstat(probe)
        if not stat.S_ISREG(status.st_mode):
            kind = stat.filemode(status.st_mode)[0]
            raise NotRegular(
                "not a regular file",
                step="Resolve",
                path=found.path,
                observed=f"type {kind!r}",
                expected="a regular file",
                hint="name runsc itself",
            )
    finally:
        linux.close(probe)
    try:
        fd = linux.open(found.name, _FILE, dir_fd=found.parent)
    except OSError as error:
        raise Untrusted(
            "cannot be read",
            step="Resolve",
            path=found.path,
            observed=error.strerror,
            hint="it must be readable to be verified",
            expected="a file that this user can read",
        ) from error
    try:
        if file_id(os.fstat(fd)) != file_id(status):
            raise Untrusted(
                "replaced while it was opened",
                step="Resolve",
                path=found.path,
                observed="another file",
                expected="the file that was judged",
                hint="launch again once its installation is over",
            )
    except BaseException:
        linux.close(fd)
        raise
    return fd


def _judge_file(
    fd: int, status: os.stat_result, found: Found, identity: Identity, *, pinned: bool, system: bool
) -> None:
    mode = stat.S_IMODE(status.st_mode)
    problem = None
    expected = f"owner root or uid {identity.uid}, not writable by group or others, no set-id bit or file capability"
    if mode & 0o022:
        problem = "can be written by others"
    elif mode & 0o6000:
        problem = "is set-id"
    elif _has_capabilities(fd):
        problem = "has file capabilities"
    elif not judge_owner(status, identity) and not _in_store(fd, found.path) and not pinned:
        problem = "belongs to someone else"
    elif (found.unmapped or status.st_uid == identity.unmapped) and not (system or pinned):
        # Root of the host and any other user look alike here; only the three system directories are surely root's.
        problem = "belongs to an id without a mapping in this user namespace"
        expected = "a pin, or one of the system paths"
    if problem:
        raise Untrusted(
            f"refused: it {problem}",
            step="Resolve",
            path=found.path,
            observed=described(status),
            expected=expected,
            # Not to make it root's: who could change it may have done so.
            hint='install it anew, as root\'s and of mode 0755; or pin="SHA256" where the owner is unknown',
        )
    if not mode & 0o111:
        raise NotExecutable(
            "has no execute bit",
            step="Resolve",
            path=found.path,
            observed=described(status),
            expected="mode 0755",
            hint=f"chmod a+x {os.fsdecode(found.path)}",
        )


def _in_store(fd: int, path: bytes) -> bool:
    """In a Nix store that is really immutable here: the prefix alone proves nothing (gvisor.rs:228)."""
    return path.startswith(STORE) and bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)


def _has_capabilities(fd: int) -> bool:
    try:
        return bool(os.getxattr(fd, "security.capability"))
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):  # the latter: a file system that cannot carry them
            raise
        return False


def _judge_program(fd: int, status: os.stat_result, path: bytes) -> None:
    if status.st_size > MAX_SIZE:
        raise TooBig(
            "too large",
            step="Resolve",
            path=path,
            observed=status.st_size,
            expected=f"<= {MAX_SIZE} bytes",
            hint="name gVisor's own runsc",
        )
    if problem := elf.fault(fd, status.st_size):
        raise NotElf(
            "not an executable for this machine",
            step="Resolve",
            path=path,
            observed=problem,
            expected=f"ELF for {os.uname().machine}",
            hint="install gVisor for this machine",
        )


def _wrapped_target(fd: int, status: os.stat_result, path: bytes) -> bytes | None:
    """Where a Nix wrapper script leads, or None for anything that is not one (gvisor.rs:260).

    The script has been judged by now: the reference reads it first, and a 0777 script decided what root ran. It is
    read no further than it is long; only the last `exec` line counts.
    """
    if status.st_size > MAX_WRAPPER:
        return None
    text = os.pread(fd, MAX_WRAPPER, 0)
    if not text.startswith(b"#!"):
        return None
    for line in reversed(text.split(b"\n")):
        if (command := line.strip(b" \t")).startswith(b"exec "):
            match = _TARGET.fullmatch(command)
            if match is None:
                break
            if b".." in match[2].split(b"/"):
                raise BadPath(
                    "the wrapper's target has ..",
                    step="Resolve",
                    path=path,
                    observed=match[2],
                    expected="an absolute path without ..",
                    hint="name the program that it starts",
                )
            return match[2]
    return None


def _side_binaries(found: Found, identity: Identity, *, pinned: bool, system: bool) -> list[JudgedFile]:
    """The executables in `gvisor-bin/` beside runsc, each judged as runsc is; none when there is no such directory.

    runsc after 2026-08 runs them, so that an unjudged one would be a way in (google/gvisor#13718).
    """
    try:
        directory = linux.open(
            SIDE_DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=found.parent
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Untrusted(
            "gvisor-bin is not a plain directory",
            step="Resolve",
            path=found.path,
            observed=error.strerror,
            expected="a directory, not a link",
            hint="install gVisor again",
        ) from error
    here = os.path.dirname(found.path) + b"/" + SIDE_DIRECTORY
    files: list[JudgedFile] = []
    opened: list[int] = []
    try:
        judge_directory(os.fstat(directory), here, identity)
        names = sorted(os.fsencode(name) for name in os.listdir(directory))
        names = [name for name in names if name not in NOT_EXECUTED]
        if len(names) > MAX_SIDE_BINARIES:
            raise Untrusted(
                "too many side binaries",
                step="Resolve",
                path=here,
                observed=len(names),
                expected=f"<= {MAX_SIDE_BINARIES}",
                hint="keep gVisor's own programs alone there",
            )
        for name in names:
            side = Found(directory, name, here + b"/" + name, found.unmapped)
            fd = _open_regular(side)
            opened.append(fd)
            files.append(JudgedFile(side.path, fd, Snapshot.of(fd)))
            status = os.fstat(fd)
            _judge_file(fd, status, side, identity, pinned=pinned, system=system)
            _judge_program(fd, status, side.path)
    except BaseException:
        for fd in opened:
            linux.close(fd)
        raise
    finally:
        linux.close(directory)
    return files
