"""Users and groups of a guest, by name: those of its own /etc/passwd and /etc/group.

A rootfs's are somebody else's files: they are found as the guest would find them, so that no link leads to the host's,
read once and up to a bound, and a line that makes no sense is passed over, as the C library does.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nucleus_gvisor.model.errors import BadArgument
from nucleus_gvisor.runtime import _linux as linux

MAX_FILE = 1 << 20
"""Bytes of a passwd or group file."""
MAX_ID = (1 << 32) - 2
NOBODY = 65534
User = int | tuple[int, int] | str
"""A user id, (user id, group id), or `USER[:GROUP]`, each a name of the guest's or a number; the group of a number is
the same number when there is none, that of a name what passwd says."""


@dataclass(frozen=True)
class Account:
    """A line of passwd(5)."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str = "/bin/sh"


@dataclass(frozen=True)
class Who:
    """A user of the guest's as a process has it."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Supplementary ones."""
    home: str = ""
    """Its home directory; empty where nothing says."""

    @property
    def directory(self) -> str:
        """The same, or what engines take where nothing says: root's own is nobody else's."""
        return self.home or ("/" if self.uid else "/root")


@dataclass(frozen=True)
class Accounts:
    """What a guest's passwd and group say."""

    users: tuple[Account, ...]
    groups: Mapping[str, tuple[int, Sequence[str]]]
    """Number and members by name."""
    where: str = ""
    """Path of the passwd on the host, for errors."""
    problem: BadArgument | None = None
    """Why nothing could be read."""

    def find(self, user: User) -> Who:
        """Who is meant; BadArgument for a name that is not there, TypeError for what is no user."""
        if isinstance(user, bool):
            raise TypeError("user must be a number, a pair of them or a str, not bool")
        if isinstance(user, int):
            return Who(user, user, (), self._home(user))
        if isinstance(user, tuple) and len(user) == 2 and all(isinstance(number, int) for number in user):
            return Who(*user, (), self._home(user[0]))
        if not isinstance(user, str):
            raise TypeError(f"user must be an int, a pair of them or a str, not {type(user).__name__}")
        name, _, group = user.partition(":")
        if (number := _digits(name, user)) is not None:
            found = Who(number, number, (), self._home(number))
        else:
            found = self._named(name, user)
        return found if not group else Who(found.uid, self._group(group, user), found.groups, found.home)

    def _named(self, name: str, asked: str) -> Who:
        for account in self.users:
            if account.name == name:
                more = sorted({gid for gid, members in self.groups.values() if name in members} - {account.gid})
                return Who(account.uid, account.gid, tuple(more), account.home)
        raise self._unknown("user", name, asked, [account.name for account in self.users])

    def _group(self, group: str, asked: str) -> int:
        if (number := _digits(group, asked)) is not None:
            return number
        if group not in self.groups:
            raise self._unknown("group", group, asked, list(self.groups))
        return self.groups[group][0]

    def _home(self, uid: int) -> str:
        return next((account.home for account in self.users if account.uid == uid), "")

    def _unknown(self, kind: str, name: str, asked: str, known: list[str]) -> BadArgument:
        return self.problem or BadArgument(
            f"no {kind} {name!r} in the guest",
            step="Resolve",
            path=self.where or None,
            observed=f"user={asked!r}, and {', '.join(known[:12]) or 'no names'}",
            expected="a name that is there, or UID[:GID] in digits",
            hint="give the number: any will do",
        )


def of_rootfs(rootfs: bytes) -> Accounts:
    """Those of the directory `rootfs`. None where it has no such files, or they cannot be read, which whoever asks for
    a name is then told."""
    users: list[Account] = []
    groups: dict[str, tuple[int, tuple[str, ...]]] = {}
    where = os.fsdecode(os.path.join(rootfs, b"etc/passwd"))
    try:
        for fields in _lines(rootfs, b"etc/passwd", 7):
            uid, gid = _number(fields[2]), _number(fields[3])
            if uid is not None and gid is not None:
                users.append(Account(fields[0], uid, gid, fields[5], fields[6]))
        for fields in _lines(rootfs, b"etc/group", 4):
            if (gid := _number(fields[2])) is not None:
                groups.setdefault(fields[0], (gid, tuple(fields[3].split(","))))
    except BadArgument as problem:
        return Accounts((), {}, where, problem)
    return Accounts(tuple(users), groups, where)


def _lines(rootfs: bytes, name: bytes, count: int) -> list[list[str]]:
    """The lines of a file that have `count` fields, the first of them not empty, and no NUL."""
    lines = (line.split(":") for line in _text(rootfs, name).split("\n") if "\0" not in line)
    return [fields for fields in lines if len(fields) == count and fields[0]]


def _text(rootfs: bytes, name: bytes) -> str:
    """What is in a file; nothing where there is none, BadArgument for one that is no plain file or too large."""
    try:
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ""  # the launch says what is wrong with it
    try:
        fd = linux.open_in_root(root, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise _unfit(rootfs, name, os.strerror(error.errno or 0)) from error
    finally:
        os.close(root)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _unfit(rootfs, name, "no plain file")
        text = os.read(fd, MAX_FILE + 1)
    finally:
        os.close(fd)
    if len(text) > MAX_FILE:
        raise _unfit(rootfs, name, f"more than {MAX_FILE} bytes")
    return text.decode("utf-8", "replace")


def _digits(text: str, asked: str) -> int | None:
    """The number that a caller gives as text; None for a name, BadArgument for one that no process can have."""
    if not (text.isascii() and text.isdecimal()):
        return None
    if (number := _number(text)) is None:
        raise BadArgument(
            "user refused",
            step="Resolve",
            observed=asked[:120],
            expected=f"numbers from 0 to {MAX_ID}",
            hint="give a number that a process can have",
        )
    return number


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= MAX_ID else None


def _unfit(rootfs: bytes, name: bytes, observed: str) -> BadArgument:
    return BadArgument(
        f"the guest's /{name.decode()} cannot be read",
        step="Resolve",
        path=os.path.join(rootfs, name),
        observed=observed,
        expected=f"a plain file of at most {MAX_FILE} bytes",
        hint="give the user as a number",
    )
