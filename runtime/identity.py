"""Who the caller is, decided once, before any namespace is entered."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from nucleus_gvisor.model.errors import StepFailed
from nucleus_gvisor.runtime import _linux

_INITIAL_USER_NAMESPACE = "user:[4026531837]"  # PROC_USER_INIT_INO, linux/proc_ns.h
_LINE = re.compile(rb" *([0-9]{1,10}) +([0-9]{1,10}) +([0-9]{1,10})")
_MAX_ID = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The caller's ids and what they are worth."""

    uid: int
    gid: int
    host_root: bool
    """Root in the initial user namespace: a namespace that maps root to root is not the host's (gvisor.rs:545)."""
    unmapped: int | None
    """The uid that files of ids without a mapping appear to have, or None where every id is mapped."""
    elevated: bool
    """A set-id or capability-raised program: its environment is not to be believed."""

    @classmethod
    def current(cls) -> "Identity":
        """The caller's identity, from /proc/self; StepFailed when /proc is absent or makes no sense."""
        try:
            mapping = parse_uid_map(_read("/proc/self/uid_map"))
            namespace = os.readlink("/proc/self/ns/user")
            overflow = int(_read("/proc/sys/kernel/overflowuid"))
            if os.readlink("/proc/self") != str(os.getpid()):  # where a child has one number here, and another there
                raise ValueError("/proc is of another pid namespace")
        except (OSError, ValueError) as error:
            raise StepFailed(
                "cannot tell which user namespace this is",
                step="Resolve",
                path="/proc/self/uid_map",
                observed=str(error),
                expected="a /proc of this pid namespace",
                hint="mount /proc: mount -t proc proc /proc, as seen from this chroot and this pid namespace",
            ) from error
        uid = os.geteuid()
        complete = mapping == ((0, 0, _MAX_ID),)
        return cls(
            uid=uid,
            gid=os.getegid(),
            host_root=uid == 0 and complete and namespace == _INITIAL_USER_NAMESPACE,
            unmapped=None if complete else overflow,
            elevated=_linux.elevated(),
        )

    def environment(self) -> Mapping[str, str]:
        """The environment as far as it may be believed: nothing of it in an elevated program."""
        return {} if self.elevated else os.environ


def parse_uid_map(text: bytes) -> tuple[tuple[int, int, int], ...]:
    """The (inside, outside, length) ranges of a uid_map; ValueError for anything that the kernel would not write.

    The reference skips lines that it does not understand (gvisor.rs:551) and may so take a stranger for host root.
    """
    ranges = []
    for line in text.removesuffix(b"\n").split(b"\n"):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"uid_map line {line[:60]!r}")
        inside, outside, length = (int(group) for group in match.groups())
        if not length or max(inside, outside) + length > _MAX_ID:  # 2^32 - 1 is nobody's id
            raise ValueError(f"uid_map range {line[:60]!r}")
        ranges.append((inside, outside, length))
    for side in (0, 1):
        ordered = sorted((entry[side], entry[2]) for entry in ranges)
        if any(start + length > following for (start, length), (following, _) in pairwise(ordered)):
            raise ValueError("uid_map ranges overlap")
    return tuple(ranges)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(1 << 16)
