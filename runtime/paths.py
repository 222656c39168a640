"""Descriptor-anchored opening and judging: nothing is reached twice by path.

A path is walked from `/`, component by component, each opened without following links and judged on its descriptor.
What only root and the caller can change is trusted; group or world write is not, and the sticky bit is no excuse
above an executable: it keeps others from removing an entry, not from making one first.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nucleus_gvisor.model.errors import BadBase, BadPath, LaunchError, NotFound, StepFailed, Symlink, Untrusted, remedy
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.identity import Identity

MAX_LINKS = 40  # as many as the kernel follows, path_resolution(7)
NAME_A_BASE = 'name a directory that only you can write: artifact_base="DIR", or NUCLEUS_GVISOR_ARTIFACT_BASE'
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_OURS = re.compile(
    r"locks|records|sets|sources|lock|tmp-[0-9a-f]+|sync-[0-9a-f]{32}|id-[0-9a-f]{64}|[0-9a-f]{32}", re.ASCII
)
"""What launches make in an artifact base, or in a cache."""


def is_ours(name: bytes) -> bool:
    """Is it what launches make in an artifact base, or in a cache."""
    return bool(_OURS.fullmatch(os.fsdecode(name)))


FileId = tuple[int, int]
"""(st_dev, st_ino)."""


def file_id(status: os.stat_result) -> FileId:
    return status.st_dev, status.st_ino


def described(status: os.stat_result) -> str:
    """Owner and mode, for an error's `observed`."""
    return f"owner uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"


@contextmanager
def calls(step: str, path: bytes, *, expected: str = "no error", hint: str = "") -> Iterator[None]:
    """Turn an OSError in the block into StepFailed that names the step and the path."""
    try:
        yield
    except OSError as error:
        observed = error.strerror or str(error)
        raise StepFailed(
            "system call failed", step=step, path=path, observed=observed, expected=expected, hint=hint or remedy(error)
        ) from error


@dataclass(frozen=True)
class Found:
    """What lies at the end of a walk: an O_PATH descriptor of its directory, its name there, and what was seen."""

    parent: int
    name: bytes
    path: bytes
    """The path without links."""
    unmapped: bool
    """Some owner on the way has no id in this user namespace: root of the host, or anyone."""


def components(path: bytes, error: type[LaunchError], step: str) -> list[bytes]:
    """The names in an absolute path; `error` for a relative one or one with `..` or NUL."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if not path.startswith(b"/") or b".." in names or b"\0" in path:
        raise error(
            "path refused",
            step=step,
            path=path,
            observed="a relative path" if not path.startswith(b"/") else ".. in it" if b".." in names else "NUL in it",
            expected="an absolute path without ..",
            hint="name the path that it leads to",
        )
    return names


def judge_owner(status: os.stat_result, identity: Identity) -> bool:
    """Is the owner root, the caller, or (in a user namespace) someone whose id is not mapped."""
    return status.st_uid in (0, identity.uid) or status.st_uid == identity.unmapped


def judge_directory(status: os.stat_result, path: bytes, identity: Identity) -> None:
    """Untrusted when others than root and the caller can change what the directory's names mean."""
    if not judge_owner(status, identity) or status.st_mode & 0o022:
        raise Untrusted(
            "a directory above can be changed by others",
            step="Resolve",
            path=path,
            observed=described(status),
            expected=f"owner root or uid {identity.uid}, not writable by group or others",
            # Not to change it: whoever shares a directory, as all do /tmp, relies on its owner and mode.
            hint=f"put it where only root and uid {identity.uid} can write, and in every directory above",
        )


class Walk:
    """A walk from `/` that judges each directory and each link on its own descriptor."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._stack: list[tuple[bytes, int]] = []
        self._unmapped = False

    def to(self, path: bytes) -> Found:
        """Where `path` leads. NotFound when nothing is there, Untrusted and its kinds when the way is not safe.

        Only ENOENT and ENOTDIR mean absence; what cannot be looked at is an error (gvisor.rs:168 calls it absent).
        """
        pending = components(path, BadPath, "Resolve")[::-1]
        if not pending:
            raise BadPath(
                "path refused",
                step="Resolve",
                path=path,
                expected="a file",
                observed="no name in it",
                hint="name the file itself",
            )
        links = 0
        try:
            self._restart()
            while pending:
                name = pending.pop()
                if name == b"..":  # from a link's target only
                    if len(self._stack) > 1:
                        linux.close(self._stack.pop()[1])
                    continue
                fd = linux.open(name, _PATH, dir_fd=self._stack[-1][1])
                self._stack.append((name, fd))  # at once: whatever fails now, `_close` finds it there
                status = os.fstat(fd)
                here = b"/".join(n for n, _ in self._stack)
                if stat.S_ISLNK(status.st_mode):
                    links += 1
                    pending += self._link(status, here, links)
                elif not pending:
                    self._note(status)
                    return Found(linux.dup(self._stack[-2][1]), name, here, self._unmapped)
                else:
                    if not stat.S_ISDIR(status.st_mode):
                        raise NotFound(
                            "not found",
                            step="Resolve",
                            path=path,
                            observed="not a directory on the way",
                            expected="a file",
                            hint="name a path that is there",
                        )
                    self._note(status)
                    judge_directory(status, here, self._identity)
            raise BadPath(
                "path refused",
                step="Resolve",
                path=path,
                observed="leads to a directory",
                expected="a file",
                hint="name the file itself",
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(
                "not found",
                step="Resolve",
                path=path,
                observed=error.strerror,
                expected="a file",
                hint="name a path that is there",
            ) from error
        except OSError as error:
            raise BadPath(
                "cannot be looked at",
                step="Resolve",
                path=path,
                observed=error.strerror,
                expected="a path that this user can look at",
                hint=remedy(error),
            ) from error
        finally:
            self._close()

    def _restart(self) -> None:
        self._close()
        fd = linux.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._stack.append((b"", fd))
        status = os.fstat(fd)
        self._note(status)
        judge_directory(status, b"/", self._identity)

    def _note(self, status: os.stat_result) -> None:
        self._unmapped |= status.st_uid == self._identity.unmapped

    def _link(self, status: os.stat_result, here: bytes, links: int) -> list[bytes]:
        """What to follow instead of the link that was entered last."""
        if not judge_owner(status, self._identity):
            raise Symlink(
                "a link on the way was made by someone else",
                step="Resolve",
                path=here,
                observed=described(status),
                expected=f"owner root or uid {self._identity.uid}",
                hint="name the path that it leads to",
            )
        if links > MAX_LINKS:
            raise Symlink(
                "too many links",
                step="Resolve",
                path=here,
                observed=links,
                expected=MAX_LINKS,
                hint="name the path that they lead to",
            )
        self._note(status)
        target = os.readlink(b"", dir_fd=self._stack[-1][1])
        linux.close(self._stack.pop()[1])
        if target.startswith(b"/"):
            self._restart()
        return [name for name in target.split(b"/") if name not in (b"", b".")][::-1]

    def _close(self) -> None:
        while self._stack:
            linux.close(self._stack.pop()[1])


# ---- the artifact base ----


def artifact_base(explicit: os.PathLike[str] | None, identity: Identity) -> bytes:
    """Where launches keep their directories, as an absolute path (gvisor.rs:500).

    In order: the argument; `NUCLEUS_GVISOR_ARTIFACT_BASE`; `XDG_RUNTIME_DIR`/nucleus-gvisor unless host root;
    `/run/nucleus-gvisor` for host root; `/run/user/UID` where it exists; `XDG_STATE_HOME` or `HOME`/.local/state.
    Nothing is taken from the environment of an elevated program. BadBase where all that names nothing: there is no
    fallback below /tmp, where anyone may squat on the name (gvisor.rs:517).

    One that is named as systemd's RUNTIME_DIRECTORY or STATE_DIRECTORY, which may be several, is a directory of its own
    in the first: the service keeps other things there.
    """
    env = identity.environment()
    if named := is_named(explicit, identity):
        for variable in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
            first = os.fsencode(env.get(variable, "")).split(b":")[0]
            if first.startswith(b"/") and named.rstrip(b"/") in (os.fsencode(env[variable]), first):
                return _without_links(first, identity) + b"/nucleus-gvisor"
        return _absolute(named)
    if identity.host_root:
        return b"/run/nucleus-gvisor"
    places = [env.get("XDG_RUNTIME_DIR", "")]
    if identity.unmapped is None:
        places.append(f"/run/user/{identity.uid}")
    places.append(env.get("XDG_STATE_HOME", ""))
    if env.get("HOME", "").startswith("/"):
        places.append(f"{env['HOME']}/.local/state")
    for place in places:
        if place.startswith("/") and (os.path.isdir(place) or place.endswith("/.local/state")):
            return os.fsencode(place) + b"/nucleus-gvisor"
    raise BadBase(
        "no place for an artifact base",
        step="Prepare",
        observed="neither XDG_RUNTIME_DIR, /run/user, XDG_STATE_HOME nor HOME is usable",
        expected="a directory that the caller can enter and write",
        hint=NAME_A_BASE,
    )


def is_named(explicit: os.PathLike[str] | None, identity: Identity) -> bytes:
    """The base that the caller has named; nothing where it is ours to choose."""
    if explicit is not None:
        return os.fsencode(explicit)
    return os.fsencode(identity.environment().get("NUCLEUS_GVISOR_ARTIFACT_BASE", ""))


def _without_links(path: bytes, identity: Identity) -> bytes:
    """Where `path` leads by root's links and the caller's; with DynamicUser= systemd makes it a link into private/."""
    # SAFETY: looked at by path, as a name is; what it leads to is judged on descriptors.
    for _ in range(MAX_LINKS):
        try:
            if not stat.S_ISLNK((status := os.lstat(path)).st_mode) or status.st_uid not in (0, identity.uid):
                return path
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        except OSError:
            return path
    return path


def _absolute(path: bytes) -> bytes:
    if path.startswith(b"/"):
        return path
    try:
        return os.path.join(os.getcwdb(), path)
    except OSError as error:
        raise BadBase(
            "a relative artifact base needs a current directory",
            step="Prepare",
            path=path,
            observed=error.strerror,
            expected="an absolute path, or a current directory that is there",
            hint=NAME_A_BASE,
        ) from error


def open_base(explicit: os.PathLike[str] | None, identity: Identity) -> tuple[int, bytes, bytes]:
    """The artifact base: a descriptor of it, its path, and the directory above that is shared with others, or nothing.

    A shared one is taken only where the caller has named the base: whoever is first there can keep him from it.
    """
    path = artifact_base(explicit, identity)
    shared: list[bytes] = []
    fd = open_private(path, identity, shared if is_named(explicit, identity) else None)
    return fd, path, shared[0] if shared else b""


def open_private(path: bytes, identity: Identity, shared: list[bytes] | None = None) -> int:
    """A descriptor of directory `path`, made 0700 where it is missing, and private to the caller.

    Every directory above is judged on its descriptor; links are refused (gvisor.rs:588, 664). BadBase says which one
    is wrong; StepFailed carries the errno of a call that failed. With `shared` a directory above may be one that others
    write, as /tmp, and is put there.
    """
    fd = open_walked(path, identity, shared)
    try:
        make_private(fd, path, identity)
    except BaseException:
        linux.close(fd)
        raise
    return fd


def open_walked(path: bytes, identity: Identity, shared: list[bytes] | None = None, *, create: bool = True) -> int:
    """The same, with nothing asked of the last directory but that it is one."""
    names = components(path, BadBase, "Prepare")
    if not names:
        raise BadBase(
            "path refused", step="Prepare", path=path, observed="/", expected="a directory below /", hint=NAME_A_BASE
        )
    with calls("Prepare", path):
        fd = linux.open(b"/", _DIRECTORY)
    here = b""
    try:
        judge_above(os.fstat(fd), b"/", identity, shared)
        for number, name in enumerate(names):
            here += b"/" + name
            below = enter(fd, name, here, create=create)
            mounted = is_mounted(fd, below)
            linux.close(fd)
            fd = below
            if number < len(names) - 1:
                judge_above(os.fstat(fd), here, identity, shared, mounted=mounted)
    except BaseException:
        linux.close(fd)
        raise
    return fd


def enter(parent: int, name: bytes, path: bytes, *, create: bool) -> int:
    """A descriptor of directory `name` in `parent`; BadBase for a link or anything that is no directory."""
    with calls("Prepare", path, expected="a directory that the caller can enter and write", hint=NAME_A_BASE):
        if create:
            try:
                make_directory(parent, name)
            except FileExistsError:
                pass
            except OSError as error:
                # mkdir on a read-only NFS answers EROFS even for a directory that is there: it does not look first.
                if not exists(parent, name):  # pragma: no branch - no NFS is here
                    raise error from None
        try:
            return linux.open(name, _DIRECTORY, dir_fd=parent)
        except (NotADirectoryError, OSError) as error:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                raise
            kind = "symbolic link" if stat.S_ISLNK(status.st_mode) else "not a directory"
            raise BadBase(
                "the artifact base is not a plain directory",
                step="Prepare",
                path=path,
                observed=f"{kind}, {described(status)}",
                expected="a directory",
                hint="name a path without links",
            ) from error


def make_directory(parent: int, name: bytes | str) -> None:
    """A new directory of mode 0700, whatever the umask: under 0777 its own maker could not enter it."""
    os.mkdir(name, 0o700, dir_fd=parent)
    os.chmod(name, 0o700, dir_fd=parent)


def exists(parent: int, name: bytes | str) -> bool:
    """Is there anything under `name` in the open directory."""
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return True


def is_mounted(parent: int, fd: int) -> bool:
    """Is the open directory, which lies in `parent`, the root of a mount of its own."""
    mounts = []
    for number in (parent, fd):
        try:
            with open(f"/proc/self/fdinfo/{number}") as file:
                mounts.append(next((line for line in file if line.startswith("mnt_id:")), ""))
        except OSError:  # no /proc: the launch is refused for it later, by name
            return False
    return mounts[0] != mounts[1]


def judge_above(
    status: os.stat_result,
    path: bytes,
    identity: Identity,
    shared: list[bytes] | None = None,
    *,
    mounted: bool = False,
) -> None:
    """BadBase unless nobody but root and the caller can change what the directory's names mean.

    With `shared`, root's own directory may be written by others, and is put there, if it is sticky or a volume that is
    `mounted` there (a Kubernetes emptyDir). What lies in a sticky one is renamed and removed by its owner and root
    alone (unlink(2)), but anyone may be the first to make it; in a volume, whoever has it mounted may rename it too. So
    what lies directly in it has to be the caller's. For root of a user namespace the same holds of a directory that
    belongs to another id of its map: a home, in a container that runs as root.
    """
    trusted = status.st_uid == 0 if identity.host_root else judge_owner(status, identity)
    others = status.st_mode & 0o022
    volume = status.st_uid == 0 and others and (mounted or status.st_mode & stat.S_ISVTX)
    # Root of a user namespace may do in it whatever its other ids may: they are no strangers to the caller.
    ours = not identity.host_root and identity.uid == 0 and not trusted and not others
    if shared is not None and (volume or ours):
        shared.append(path)
        return
    if shared and os.path.dirname(path) == shared[-1]:
        trusted = status.st_uid == identity.uid
    if not trusted or others:
        raise BadBase(
            "a directory above the artifact base can be changed by others",
            step="Prepare",
            path=path,
            observed=described(status),
            expected="owner root"
            + ("" if identity.host_root else f" or uid {identity.uid}")
            + ", not writable by group or others",
            hint=NAME_A_BASE,
        )


def make_private(fd: int, path: bytes, identity: Identity) -> None:
    """See that the open directory is the caller's and 0700. One that others could write may hold planted entries."""
    status = os.fstat(fd)
    if status.st_uid != identity.uid or status.st_mode & 0o022:
        raise BadBase(
            "not private to the caller",
            step="Prepare",
            path=path,
            observed=described(status),
            expected=f"owner uid {identity.uid}, mode 0700",
            hint=NAME_A_BASE,
        )
    if stat.S_IMODE(status.st_mode) != 0o700:
        with calls("Prepare", path):
            strange = [name for name in os.listdir(fd) if not _OURS.fullmatch(name)]
            if strange:  # root who names /etc must not lock everybody out of it
                raise BadBase(
                    "holds other things than launches",
                    step="Prepare",
                    path=path,
                    observed=f"{described(status)}, with {strange[0]} in it",
                    expected="a directory of its own",
                    hint=NAME_A_BASE,
                )
            os.fchmod(fd, 0o700)


@dataclass
class _Doomed:
    """A directory that is being removed: its name, what it is, what is still in it, and its descriptor while open."""

    name: bytes
    identity: FileId
    left: list[str]
    fd: int


def detach_below(parent: int, name: bytes, on_error: Callable[[OSError], None]) -> None:
    """Detach what is mounted below directory `name`, the innermost first; a failure goes to `on_error`.

    runsc leaves mounts where nobody has a mount namespace of its own; what they show must not be removed with the rest.
    """
    try:
        where = os.readlink(b"/proc/self/fd/%d" % parent) + b"/" + name + b"/"
        with open("/proc/self/mountinfo", "rb") as file:
            points = [_unescaped(line.split()[4]) for line in file]
    except OSError as error:  # a signal handler that came between has closed `parent`, perhaps
        on_error(error)
        return
    for point in sorted((point for point in points if point.startswith(where)), key=len, reverse=True):
        fd = -1
        try:
            fd = linux.dup(parent)
            # SAFETY: step by step and through no link: what a supervisor put there must not lead elsewhere.
            for part in (name, *point.removeprefix(where).split(b"/")):
                below = linux.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                linux.close(fd)
                fd = below
            linux.detach(fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            on_error(error)
        finally:
            if fd >= 0:
                linux.close(fd)


def _unescaped(path: bytes) -> bytes:
    """A path as proc(5) writes it in mountinfo, with \\040 for a blank."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), path)


def remove_tree(parent: int, name: bytes, on_error: Callable[[OSError], None]) -> None:
    """Remove `name` below `parent` and all in it, by descriptors; a failure goes to `on_error`.

    A tree can be deeper than stack and descriptors last: one directory of it is open at a time.
    """
    above: list[_Doomed] = []
    here = _enter_or_remove(parent, name, on_error)
    while here is not None:
        if here.left:
            below = _enter_or_remove(here.fd, os.fsencode(here.left.pop()), on_error)
            if below is not None:
                above.append(here)
                linux.close(here.fd)
                here.fd, here = -1, below
            continue
        done, here = here, above.pop() if above else None
        try:
            if here is not None:
                here.fd = _parent(done.fd, here)
            os.rmdir(done.name, dir_fd=parent if here is None else here.fd)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                on_error(error)
            if here is not None and here.fd < 0:  # there is no way back: nothing that is not ours is touched
                return
        finally:
            linux.close(done.fd)


def _enter_or_remove(parent: int, name: bytes, on_error: Callable[[OSError], None]) -> _Doomed | None:
    """The open directory `name`; None for what is none, which is removed, and for what cannot be entered."""
    fd = -1
    try:
        try:
            fd = linux.open(name, _DIRECTORY, dir_fd=parent)
            return _Doomed(name, file_id(os.fstat(fd)), os.listdir(fd), fd)
        except NotADirectoryError:
            os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except OSError as error:
        if fd >= 0:
            linux.close(fd)
        on_error(error)
    return None


def _parent(fd: int, wanted: _Doomed) -> int:
    """The directory that `fd` was entered from. SAFETY: it may have been moved meanwhile, into what must not go."""
    up = linux.open(b"..", _DIRECTORY, dir_fd=fd)
    if file_id(os.fstat(up)) != wanted.identity:
        linux.close(up)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    return up
