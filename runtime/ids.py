"""Which ids of the host a launch has beside the caller's own, and so whose the files of its guest can be.

Root maps all that it has (`steps.confine.map_all_ids`). An ordinary caller maps his own id alone, as root inside,
unless an administrator gave him subordinate ids (subuid(5), subgid(5)): newuidmap(1) and newgidmap(1) map those.
"""

import os
import select
import signal
import stat
from collections.abc import Mapping
from contextlib import suppress

from nucleus_gvisor.model.errors import StepFailed, Unsupported

KINDS = ("uid", "gid")
TOOLS: Mapping[str, str] = {"uid": "/usr/bin/newuidmap", "gid": "/usr/bin/newgidmap"}
FILES: Mapping[str, str] = {"uid": "/etc/subuid", "gid": "/etc/subgid"}
LARGEST_FILE = 1 << 20
SECONDS = 10.0
"""After which a tool is ended, which takes a millisecond: both are given descriptors of ours, and wait for nobody."""

Ranges = dict[str, list[tuple[int, int]]]
"""By kind, (first id outside, how many), in the order in which they come inside, from 1 on."""


def subordinate() -> Ranges | None:
    """What this process's user may map with the tools that are here; None when that is nothing."""
    if not all(map(_is_roots, TOOLS.values())):
        return None
    names = {b"%d" % os.getuid()}
    with suppress(KeyError, ImportError):  # an id without a name; a Python without the module
        import pwd

        names.add(os.fsencode(pwd.getpwuid(os.getuid()).pw_name))
    found = {kind: _granted(FILES[kind], names) for kind in KINDS}
    return found if all(found.values()) else None


def _is_roots(path: str) -> bool:
    """Is it a program that root alone can change: what it maps is decided there."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == 0 and not status.st_mode & 0o022


def _granted(path: str, names: set[bytes]) -> list[tuple[int, int]]:
    try:
        with open(path, "rb") as file:
            lines = file.read(LARGEST_FILE).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        name, _, numbers = line.partition(b":")
        first, _, count = numbers.partition(b":")
        if name in names and first.isdigit() and count.isdigit() and int(count):
            found.append((int(first), int(count)))
    return found


def map_subordinate(pid: int, ranges: Ranges) -> bool:
    """Give the user namespace of child `pid`, new and still without ids, the caller as root and then `ranges`.

    False when nothing has been done, whatever the tool said; StepFailed when half of it was, which cannot be undone.
    """
    for kind, own in zip(KINDS, (os.geteuid(), os.getegid()), strict=True):
        words, inside = [TOOLS[kind], str(pid), "0", str(own), "1"], 1
        for first, count in ranges[kind]:
            words += [str(inside), str(first), str(count)]
            inside += count
        _run(words)
        if sum(map(len, held(kind, f"/proc/{pid}"))) < inside:
            if kind == KINDS[0]:
                return False
            raise StepFailed(
                "ids cannot be mapped",
                step="Confine",
                path=words[0],
                observed=f"no map by {' '.join(words)}",
                expected=f"one that {FILES[kind]} grants",
                hint=f"see that {TOOLS[kind]} works, or take the grant out of {FILES[KINDS[0]]}",
            )
    return True


def _run(words: list[str]) -> None:
    """Run a tool to its end, in bounded time, without a stream."""
    actions = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    defaults = [signal.SIGPIPE, signal.SIGINT, signal.SIGCHLD]
    pid = os.posix_spawn(words[0], words, {}, file_actions=actions, setsigdef=defaults, setsigmask=())
    # Ours alone until it is waited for; an application that waits for all children may be first, and what the tool has
    # done is seen by itself.
    with suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(SECONDS * 1000):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        finally:
            os.close(pidfd)


def held(kind: str, process: str = "/proc/self") -> list[range]:
    """The ids, "uid" or "gid", that there are in a process's user namespace; none where nobody has mapped any yet."""
    with open(f"{process}/{kind}_map", "rb") as file:
        lines = [(int(inside), int(count)) for inside, _, count in map(bytes.split, file)]
    return [range(inside, inside + count) for inside, count in lines]


class Owners:
    """Whose the files of a guest can be that it makes on the host."""

    def __init__(self, ids: str | None, ranges: Ranges | None, written: bytes | str | None) -> None:
        """`ids` is what the confinement reports, None without one; `written` the first host path that is writable."""
        self._held: list[list[range]] = [[], []]
        if ids == "all":
            self._held = [held(kind) for kind in KINDS]
        elif ids == "subordinate" and ranges is not None:
            self._held = [[range(1 + sum(count for _, count in ranges[kind]))] for kind in KINDS]
        self._written = written if ids is not None else None

    def judge(self, uid: int, gid: int) -> None:
        """Unsupported where that user of the guest could not own what it makes on the host."""
        own = all(any(one in ids for ids in held) for one, held in zip((uid, gid), self._held, strict=True))
        if self._written is None or own or (uid, gid) == (0, 0):
            return
        raise Unsupported(
            "the guest's user is none that its files could belong to",
            step="Confine",
            path=self._written,
            observed=f"user {uid}:{gid}, which the launch's user namespace does not have",
            expected="user 0:0, where something of the host is writable",
            hint="give user=0, or mount it read-only, or launch as root or with subordinate ids: newuidmap, and a line"
            " in /etc/subuid and /etc/subgid (Linux 6.12 and later)",
        )
