"""What binaries answered, remembered for the launches that follow: in this process, and in the caller's cache.

Equal bytes answer alike where they are asked alike. What a trial shows depends on the kernel and on what the caller may
do as well; so what is remembered on disk is known by all of that, and by the boot, as by the bytes and by our own
version. It lies in a cache that nobody else can write (`kept`), and serves only launches that cannot write it either.

What would weaken a launch is never read from disk: a trial that did not end well is had again in each process.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nucleus_gvisor.model.errors import LaunchError
from nucleus_gvisor.runtime import _child, kept
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.version import VERSION

_SELF = ("uid_map", "gid_map", "setgroups", "attr/current")
_SYSCTLS = (
    "user/max_user_namespaces", "user/max_mnt_namespaces", "user/max_net_namespaces", "user/max_ipc_namespaces",
    "kernel/unprivileged_userns_clone", "kernel/apparmor_restrict_unprivileged_userns", "kernel/yama/ptrace_scope",
    "vm/memfd_noexec",
)  # fmt: skip
_MOUNTS = re.compile(rb"/(?:(?:proc|sys|dev)(?:/.*)?)?\Z", re.DOTALL)
"""Mounts whose options and covers decide what a sandbox may do, proc(5)."""
_STATUS = re.compile(rb"^(?:Uid|Gid|Groups|Cap\w+|NoNewPrivs|Seccomp\w*):.*$", re.MULTILINE)


@dataclass(frozen=True)
class Question:
    """Who was asked, and how."""

    image: str
    """The digests of runsc and what lies beside it."""
    questions: int
    """How many there were."""
    confinement: str | None
    ranges: bool
    """Were subordinate ids to be had."""
    uid: int


@dataclass(frozen=True)
class Told:
    """What came of it: the ids that there were, and each answer as wait status and output."""

    ids: str | None
    answers: tuple[tuple[int, bytes], ...]

    @property
    def lasts(self) -> bool:
        """Is it what may be believed tomorrow: the trial's sandbox was executed, and as the caller."""
        return bool(self.answers) and self.answers[-1][1].endswith(_child.AS_CALLER)


_known: dict[Question, Told] = {}


def recall(question: Question, identity: Identity | None) -> Told | None:
    """What was told before; with `identity` also on disk, by an earlier process of the caller's."""
    if question not in _known and identity is not None and (told := _read(question, identity)):
        _known[question] = told
    return _known.get(question)


def remember(question: Question, told: Told, identity: Identity | None) -> None:
    """For the next launches of this process; with `identity` and where it lasts for those of others too."""
    _known[question] = told
    if identity is not None and told.lasts:
        answers = [[status, said.decode("latin-1")] for status, said in told.answers]
        note(question, {"ids": told.ids, "answers": answers}, identity)


def forget(identity: Identity | None = None) -> None:
    """Have the next launch ask again; with `identity` also those of the caller's other processes."""
    _known.clear()
    if identity is None:
        return
    with suppress(LaunchError, OSError):
        folder = _open(identity, create=False)
        try:
            for name in os.listdir(folder):
                os.unlink(name, dir_fd=folder)
        finally:
            linux.close(folder)


def surroundings() -> bytes:
    """All that a trial's outcome may depend on beside the bytes that are tried."""
    parts = ["\0".join(os.uname()).encode(), VERSION.encode(), _content("/proc/sys/kernel/random/boot_id")]
    parts += [_content(f"/proc/self/{name}") for name in _SELF]
    parts += _STATUS.findall(_content("/proc/self/status"))
    parts += [_content(f"/proc/sys/{name}") for name in _SYSCTLS]
    for line in _content("/proc/self/mountinfo").splitlines():
        fields = line.split(b" ")
        if _MOUNTS.match(fields[4]):
            parts += fields[4:6]
    return b"\0".join(parts)


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 16)
    except OSError:
        return b"-"


def _open(identity: Identity, *, create: bool) -> int:
    path = kept.cache_path(identity)
    cache = kept.open_cache(path, identity, create=create)
    try:
        if create:
            with suppress(FileExistsError):
                os.mkdir(kept.ANSWERS, 0o700, dir_fd=cache)
        folder = linux.open(kept.ANSWERS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=cache)
    finally:
        linux.close(cache)
    try:
        status = os.fstat(folder)
        if status.st_uid != identity.uid or status.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "others can write it", kept.ANSWERS)
    except BaseException:
        linux.close(folder)
        raise
    return folder


def _name(question: object) -> str:
    return hashlib.sha256(repr(question).encode()).hexdigest()


def _where() -> str:
    return hashlib.sha256(surroundings()).hexdigest()


def noted(question: object, identity: Identity) -> dict[str, Any]:
    """What was noted of `question` where all was as it is here; nothing for what we would not have written."""
    try:
        folder = _open(identity, create=False)
    except (LaunchError, OSError):
        return {}
    try:
        data = json.loads(kept.read_small(folder, _name(question), limit=4 * _child.ANSWER_LIMIT))
        return dict(data["told"]) if data["where"] == _where() else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    finally:
        linux.close(folder)


def note(question: object, told: Mapping[str, Any], identity: Identity) -> None:
    """Have other processes of the caller's know it; nothing depends on that, and it may fail."""
    with suppress(LaunchError, OSError):
        folder = _open(identity, create=True)
        try:
            # What a crash of the machine tears is of another boot.
            text = json.dumps({"where": _where(), "told": dict(told)}).encode()
            kept.write_small(folder, _name(question), text, sync=False)
        finally:
            linux.close(folder)


def _read(question: Question, identity: Identity) -> Told | None:
    data = noted(question, identity)
    try:
        answers = tuple((int(status), str(said).encode("latin-1")) for status, said in data["answers"])
        told = Told(None if data["ids"] is None else str(data["ids"]), answers)
    except (ValueError, TypeError, KeyError):
        return None
    return told if told.lasts else None


__all__ = ["Question", "Told", "forget", "note", "noted", "recall", "remember", "surroundings"]
