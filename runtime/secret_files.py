"""Secret files: where a caller keeps them, and how they are read, once, before anything else is done for a launch.

What was read is in memory alone: the caller's, and a tmpfs of the launch's own (`_child`). It is in no argument, no
variable and no file of the host, and nothing here, errors above all, ever shows it.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nucleus_gvisor.model.errors import BadArgument, LaunchError, remedy
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import Walk, described, judge_directory, judge_owner

MAX_SECRET, MAX_SECRETS, MOST_SECRETS = 1 << 20, 4 << 20, 64
"""Bytes of one, of all together, and how many a guest may have."""
DIRECTORY = "CREDENTIALS_DIRECTORY"
"""The variable by which systemd says where a service's credentials are, systemd.exec(5)."""
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TAKEN = ("/proc", "/sys", "/dev")


@dataclass(frozen=True)
class Credential:
    """A credential that systemd has given this service (`LoadCredential=`, `SetCredentialEncrypted=`), by its name."""

    name: str


SecretSource = str | os.PathLike[str] | int | bytes | Credential
"""Where a secret file's content is: in a file, behind a descriptor, which is read to its end, or in a credential.
bytes are the content itself."""


@dataclass(frozen=True, repr=False)
class SecretFile:
    """What is to be at `target` of the guest."""

    target: str
    content: bytes

    def __repr__(self) -> str:
        return f"<SecretFile {self.target}>"


def secret_files(asked: object) -> tuple[SecretFile, ...]:
    """The caller's `secret_files`, read; BadArgument for a target or a source that is refused, TypeError."""
    if asked is None:
        return ()
    if not isinstance(asked, Mapping):
        raise TypeError(f"secret_files must be a mapping of targets to sources, not {type(asked).__name__}")
    if len(asked) > MOST_SECRETS:
        raise _unfit("too many secret files", "", len(asked), f"{MOST_SECRETS} at most", "put them into one")
    found: dict[str, SecretFile] = {}
    left = MAX_SECRETS
    for target, source in asked.items():
        place = _target(target)
        if place in found:
            raise _unfit("two secret files", place, "the same target twice", "each target once", "name another")
        content = _content(place, source)
        if len(content) > min(MAX_SECRET, left):
            most = f"{MAX_SECRET} bytes at most, and {MAX_SECRETS} of all"
            raise _unfit("secret file refused", place, "more bytes", most, "mount a directory for what is large")
        left -= len(content)
        found[place] = SecretFile(place, content)
    return tuple(found.values())


def parsed(text: str) -> tuple[str, SecretSource]:
    """Target and source from `TARGET=PATH`, `TARGET=fd:NUMBER` or `TARGET=credential:NAME`; ValueError."""
    target, equals, source = text.partition("=")
    if not target.startswith("/") or not equals or not source:
        raise ValueError("expected TARGET=PATH, TARGET=fd:NUMBER or TARGET=credential:NAME")
    kind, colon, rest = source.partition(":")
    if colon and kind == "credential":
        return target, Credential(rest)
    if colon and kind == "fd":
        if not (rest.isascii() and rest.isdecimal() and len(rest) < 8):
            raise ValueError("expected a descriptor's number after fd:")
        return target, int(rest)
    return target, source


def _target(target: object) -> str:
    if not isinstance(target, str):
        raise TypeError(f"a secret file's target must be a str, not {type(target).__name__}")
    parts = [part for part in target.split("/") if part not in ("", ".")]
    path = "/" + "/".join(parts)
    bad = not target.startswith("/") or ".." in parts or "\0" in target or target.endswith("/") or not parts
    try:
        bad = bad or len(target.encode()) > 4096
    except UnicodeEncodeError:
        bad = True
    if bad or any(f"{path}/".startswith(f"{taken}/") for taken in _TAKEN):
        raise _unfit(
            "secret file's target refused",
            target,
            repr(target)[:200],
            "an absolute path of a file in the guest, not below /proc, /sys or /dev",
            "/run/secrets/NAME is where programs look",
        )
    return path


def _content(target: str, source: object) -> bytes:
    """No more than one byte more than is allowed."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, Credential):
        return _read_file(target, _credential(target, source))
    if isinstance(source, bool) or not isinstance(source, int | str | os.PathLike):
        raise TypeError(
            f"a secret file's source must be a path, a descriptor, bytes or a Credential, not {type(source).__name__}"
        )
    if not isinstance(source, int):
        return _read_file(target, os.path.abspath(os.fsencode(source)))
    try:
        return _read(source)
    except (OSError, OverflowError) as error:
        raise _unreadable(target, f"descriptor {source}", error) from error


def _credential(target: str, credential: Credential) -> bytes:
    name = credential.name
    folder = Identity.current().environment().get(DIRECTORY, "")
    if not isinstance(name, str) or not name or "/" in name or "\0" in name or name in (".", ".."):
        raise _unfit("credential refused", target, repr(name)[:200], "a credential's name", "systemd.exec(5) has them")
    if not folder.startswith("/"):
        raise _unfit(
            "no credentials",
            target,
            f"no directory in {DIRECTORY}",
            "a service of systemd's with LoadCredential= or its like",
            "start it as such a service, or name a file",
        )
    return os.path.join(os.fsencode(folder), os.fsencode(name))


def _read_file(target: str, path: bytes) -> bytes:
    """The bytes of a plain file that root and the caller alone can have put there, and not everybody can read.

    SAFETY: what others could swap for a link would give the guest any file that the caller can read.
    """
    identity = Identity.current()
    try:
        folder = _folder(os.path.dirname(path), identity)
        try:
            fd = linux.open(os.path.basename(path), _OPEN, dir_fd=folder)
        finally:
            linux.close(folder)
    except LaunchError as error:
        if error.errno is not None:
            raise _unreadable(target, path, error.__cause__) from error
        raise _unfit("secret file refused", error.path or path, error.observed, error.expected, error.hint) from error
    except OSError as error:
        raise _unreadable(target, path, error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not judge_owner(status, identity) or status.st_mode & 0o027:
            raise _unfit(
                "secret file refused",
                path,
                f"{stat.filemode(status.st_mode)[0]}, {described(status)}",
                "a plain file of root's or the caller's, which others cannot read and a group not write",
                "own it, with mode 0600",
            )
        return _read(fd)
    except OSError as error:
        raise _unreadable(target, path, error) from error
    finally:
        linux.close(fd)


def _folder(path: bytes, identity: Identity) -> int:
    """The directory, which root and the caller alone can change, and lead to."""
    if path == b"/":
        return linux.open(path, _FOLDER)
    found = Walk(identity).to(path)
    try:
        folder = linux.open(found.name, _FOLDER, dir_fd=found.parent)
    finally:
        linux.close(found.parent)
    try:
        judge_directory(os.fstat(folder), found.path, identity)
    except BaseException:
        linux.close(folder)
        raise
    return folder


def _read(fd: int) -> bytes:
    text = bytearray()
    while len(text) <= MAX_SECRET and (piece := os.read(fd, MAX_SECRET + 1 - len(text))):
        text += piece
    return bytes(text)


def _unfit(message: str, path: str | bytes, observed: object, expected: object, hint: str) -> BadArgument:
    return BadArgument(message, step="Resolve", path=path or None, observed=observed, expected=expected, hint=hint)


def _unreadable(target: str, source: str | bytes, error: Any) -> BadArgument:
    text = os.fsdecode(source)
    linked = isinstance(error, OSError) and isinstance(source, bytes) and os.path.islink(source)
    return BadArgument(
        f"the secret file for {target} cannot be read",
        step="Resolve",
        path=text,
        observed="a symbolic link" if linked else getattr(error, "strerror", None) or str(error),
        expected="a file, a descriptor or a credential that this user can read",
        hint="name the file that it leads to" if linked else remedy(error) if isinstance(error, OSError) else "",
    )
