"""What a guest finds in /etc: who it is, what it is called, and how the host's programs that it is shown are set up.

It is generated, for the host's own tells a guest about the host: its users, its name, its networks, and what else lies
there. Of the host are only entries that programs below /usr need and that hold neither names nor secrets, by the lists
below. They are looked up when the guest is described, like the directories of programs themselves.
"""

import os
import re
import stat
from collections.abc import Iterable, Mapping

from nucleus_gvisor.runtime.accounts import NOBODY, Account, Accounts
from nucleus_gvisor.runtime.guest import Tree

TARGET = "/etc"
HOME = "/home"
MAX_FILE = 1 << 16
"""Bytes of a file of the host that is copied: resolv.conf, a time zone."""

_DIRECTORIES = (
    "alternatives",
    "ca-certificates",
    "crypto-policies",
    "fonts",
    "gdb",
    "ld.so.conf.d",
    "perl",
    "pki/ca-trust/extracted",
    "pki/java",
    "pki/tls/certs",
    "R",
    "ssl/certs",
    "terminfo",
    "vim",
)
_FILES = (
    "bash.bashrc",
    "debian_version",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "locale.alias",
    "magic",
    "matplotlibrc",
    "mime.types",
    "protocols",
    "rpc",
    "services",
    "ssl/openssl.cnf",
)
_VERSIONED = re.compile(r"java.*|python[0-9].*", re.ASCII)
"""Directories with a number in their names. None of all these is one that any user of the host may not read."""

_WORD = re.compile(r"[^\s#]+")
_NSSWITCH = """\
passwd:   files
group:    files
shadow:   files
gshadow:  files
hosts:    files dns
networks: files
protocols: files
services: files
rpc:      files
"""
# Root of the guest may become anybody there; nobody else has a password.
_PAM = """\
auth     sufficient pam_rootok.so
auth     required   pam_unix.so
account  required   pam_permit.so
session  required   pam_permit.so
password required   pam_deny.so
"""
_PAM_OTHER = "".join(f"{kind:8} required   pam_deny.so\n" for kind in ("auth", "account", "password", "session"))
_GROUPS = {
    "root": 0,
    "daemon": 1,
    "bin": 2,
    "sys": 3,
    "adm": 4,
    "tty": 5,
    "disk": 6,
    "mail": 8,
    "staff": 50,
    "users": 100,
    "nogroup": NOBODY,
}
"""The names that programs ask for, with Debian's numbers."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TEXTS = {
    "host.conf": "multi on\n",
    "shells": "/bin/sh\n/bin/bash\n",
    "environment": "",
    "login.defs": f"ENV_PATH PATH={_PATH}\nENV_SUPATH PATH={_PATH}\nUMASK 022\n",
    "pam.d/other": _PAM_OTHER,
    **dict.fromkeys(("pam.d/su", "pam.d/su-l", "pam.d/runuser", "pam.d/runuser-l"), _PAM),
}
"""Files that are always the same."""
_EMPTY = ("apt/apt.conf.d", "apt/preferences.d", "apt/sources.list.d", "dpkg/dpkg.cfg.d", "opt", "security", "skel")


def accounts(uid: int, gid: int) -> Accounts:
    """The users and groups that a generated /etc has: root, nobody, and `user`, which is the guest's own where that is
    neither, and otherwise 1000."""
    own = (uid, gid) if uid not in (0, NOBODY) else (1000, 1000)
    users = (
        Account("root", 0, 0, "/root"),
        Account("user", *own, f"{HOME}/user"),
        Account("nobody", NOBODY, NOBODY, "/nonexistent", "/usr/sbin/nologin"),
    )
    groups = dict(_GROUPS)
    for name, number in (("user", own[1]), ("group", gid)):
        if number not in groups.values():
            groups[name] = number
    return Accounts(users, {name: (number, ()) for name, number in groups.items()})


def names(*, uid: int, gid: int, hostname: str, resolver: bool) -> dict[str, tuple[int, bytes]]:
    """Mode and content of the files without which names mean nothing: of users, of hosts, and of the guest itself.

    `resolver`: has the guest a network on which the host's name servers can be asked.
    """
    known = accounts(uid, gid)
    # Only what is one word of hosts(5): what else a name says would be read as other names, or other lines.
    own = f"127.0.1.1\t{hostname}\n" if _WORD.fullmatch(hostname) and hostname != "localhost" else ""
    texts = {
        "passwd": "".join(f"{a.name}:x:{a.uid}:{a.gid}:{a.name}:{a.home}:{a.shell}\n" for a in known.users),
        "group": "".join(f"{name}:x:{number}:\n" for name, (number, _) in known.groups.items()),
        "hosts": f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}",
        "hostname": f"{hostname}\n",
        "nsswitch.conf": _NSSWITCH,
    }
    files = _readable(texts)
    if resolver:
        _copy("resolv.conf", files)
    return files


def generated(*, uid: int, gid: int, hostname: str, resolver: bool, taken: Iterable[str] = ()) -> Tree:
    """The /etc of a guest that has no root of its own, for this user and this name.

    `taken` are places below /etc where the caller mounts something himself.
    """
    covered = tuple(taken)
    directories = [*_DIRECTORIES, *filter(_VERSIONED.fullmatch, _listed())]
    kinds = {**dict.fromkeys(directories, stat.S_IFDIR), **dict.fromkeys(_FILES, stat.S_IFREG)}
    sources = {
        name: f"{TARGET}/{name}"
        for name, kind in kinds.items()
        if not overlaps(name, covered) and _shown(f"{TARGET}/{name}", kind)
    }
    files = names(uid=uid, gid=gid, hostname=hostname, resolver=resolver)
    files |= _readable(_TEXTS)
    files["shadow"] = (0o600, "".join(f"{user.name}:*:::::::\n" for user in accounts(uid, gid).users).encode())
    links = {"mtab": "/proc/self/mounts"}
    for name in ("localtime", "os-release"):
        _like_host(name, files, links)
    _copy("timezone", files)
    return Tree(
        TARGET,
        {name: file for name, file in files.items() if not overlaps(name, covered)},
        links={name: target for name, target in links.items() if not overlaps(name, covered)},
        directories=tuple(name for name in _EMPTY if not overlaps(name, covered)),
        sources=sources,
    )


def _listed() -> list[str]:
    try:
        return os.listdir(TARGET)
    except OSError:
        return []


def _readable(texts: Mapping[str, str]) -> dict[str, tuple[int, bytes]]:
    return {name: (0o644, text.encode()) for name, text in texts.items()}


def overlaps(name: str, places: Iterable[str]) -> bool:
    """Is one of `places` at `name`, around it or in it."""
    return any(f"{name}/".startswith(f"{place}/") or f"{place}/".startswith(f"{name}/") for place in places)


def _shown(path: str, kind: int) -> bool:
    """Is it there, of its kind, and open to every user of the host."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    wanted = 0o005 if kind == stat.S_IFDIR else 0o004
    return stat.S_IFMT(mode) == kind and mode & wanted == wanted


def _like_host(name: str, files: dict[str, tuple[int, bytes]], links: dict[str, str]) -> None:
    """A link into /usr, which the guest has, as a link; anything else as a copy."""
    path = f"{TARGET}/{name}"
    try:
        target = os.path.normpath(os.path.join(TARGET, os.readlink(path)))
    except OSError:
        target = ""
    if target.startswith("/usr/"):
        links[name] = target
    else:
        _copy(name, files)


def _copy(name: str, files: dict[str, tuple[int, bytes]]) -> None:
    """The host's file, where it is a plain one that every user may read and is no larger than MAX_FILE."""
    path = f"{TARGET}/{name}"
    if not _shown(path, stat.S_IFREG):
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError:
        return
    if len(content) <= MAX_FILE:
        files[name] = (0o644, content)
