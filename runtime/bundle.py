"""OCI bundles: build one in memory, or judge one that somebody else made; pure until the launcher writes.

Whatever is held in an `OciBundle` has passed `check_config`. What runsc reads is never the file that was judged, but
`OciBundle.private_config`: canonical JSON of the judged document in which every host path is a private one.

A document is read here by Python and later by Go. Where the two disagree, a check made here would say nothing about
what runsc does, so each disagreement is refused: duplicate keys, keys that differ from a known one only in case
(Go's encoding/json takes `Hooks`, and even a Kelvin sign in place of the k, for `hooks`), lone surrogates, NaN.
"""

import collections
import errno
import json
import math
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

from nucleus_gvisor.model.errors import BadArgument, BadBundle, Refused, remedy
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime import etc as etc_
from nucleus_gvisor.runtime import fields
from nucleus_gvisor.runtime.accounts import MAX_ID
from nucleus_gvisor.runtime.fields import FIELDS
from nucleus_gvisor.runtime.guest import Tree
from nucleus_gvisor.runtime.secret_files import SecretFile

P = ParamSpec("P")
T = TypeVar("T")

HostPath = str | bytes | os.PathLike[str]
"""A path on the host; bytes that are not UTF-8 survive, as surrogate escapes in a str."""

DEFAULT_ENV: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}
"""The guest's environment when none is given. Nothing of the caller's own environment is in it."""

HOST_DIRECTORIES = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
"""What a bundle without a rootfs shows of the host, read-only, where it exists; as links into the first, where they are
that on the host."""

WORKSPACE = "/workspace"
"""The working directory of a guest that has no root of its own, unless another is asked for: empty, and its own."""

MAX_CONFIG = 1 << 20
"""Bytes of a config.json."""
MAX_STRINGS = 2 << 20
"""Bytes of the arguments and environment together, each with its NUL and its pointer: a quarter of the usual stack
limit, execve(2), and gVisor's own limit."""
MAX_STRING = 32 * 4096
"""Bytes of one argument or environment entry with its NUL: MAX_ARG_STRLEN, linux/binfmts.h."""
MAX_NAME = 255
"""Bytes of the name of a file: NAME_MAX, limits.h."""
_MAX_DEPTH = 64
_ROOTFS = "rootfs"  # root.path of a bundle without a rootfs; the launcher makes that directory


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_RLIMITS = _words(
    "RLIMIT_AS RLIMIT_CORE RLIMIT_CPU RLIMIT_DATA RLIMIT_FSIZE RLIMIT_LOCKS RLIMIT_MEMLOCK RLIMIT_MSGQUEUE RLIMIT_NICE"
    " RLIMIT_NOFILE RLIMIT_NPROC RLIMIT_RSS RLIMIT_RTPRIO RLIMIT_RTTIME RLIMIT_SIGPENDING RLIMIT_STACK"
)
_NAMESPACES = _words("cgroup ipc mount network pid time user uts")
# `erofs` is not among them: runsc opens its source, an image, on the host.
_MOUNT_TYPES = _words("bind cgroup cgroup2 devpts devtmpfs mqueue none proc sysfs tmpfs")
_CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
# The only `dev.gvisor.` annotations that cannot name a host path, a device or a flag. Others can: `flag.` and `bundle.`
# set flags, `spec.rootfs.` opens an image on the host, `internal.` switches device proxies and checkpoints on.
_HARMLESS = ("dev.gvisor.spec.mount.", "dev.gvisor.container-name-remap.", "dev.gvisor.internal.seccomp.")
_SIZE = re.compile(r"[1-9][0-9]{0,17}[KkMmGg]?", re.ASCII)
_MODE = re.compile(r"0?[0-7]{1,4}", re.ASCII)
_VERSION = re.compile(r"1\.[0-9]{1,4}\.[0-9]{1,4}([-+][0-9A-Za-z.+-]{1,64})?", re.ASCII)
_WITHIN = _words(
    "path args env timeout type major minor fileMode uid gid defaultAction names action flags listenerPath"
)
_JUDGED = {part.removesuffix("[]") for field in FIELDS for part in field.split(".")} | set(_WITHIN)
_SPELLING = {name.casefold(): name for name in _JUDGED}
_FREE = _words("annotations sysctl unified rdma netDevices")
"""Objects whose keys are anybody's."""
_GIVEN = ("bounding", "effective", "permitted")
"""The sets that hold what the guest's root is given; execve(2) takes it from any other user."""
CAPABILITIES: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "docker": _words(
        "CAP_AUDIT_WRITE CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_MKNOD CAP_NET_BIND_SERVICE"
        " CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT"
    ),
}
"""What the names of sets mean. Docker's has CAP_NET_RAW too, which runsc takes from every guest unless it is told not
to (--net-raw); it is told nothing, and the name is refused."""
ALL_CAPABILITIES = frozenset(
    "CAP_" + name
    for name in _words(
        "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH"
        " FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN"
        " NET_BIND_SERVICE NET_BROADCAST PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT"
        " SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM"
    )
)
"""capabilities(7), but for CAP_NET_RAW."""
HOOKS = ("prestart", "createRuntime", "poststart", "poststop")
"""The hooks that a launch runs, on the host."""
CPU_PERIOD = 100_000
"""Microseconds over which processor time is counted where a bundle does not say, as the kernel has it."""


# ---- mounts, as a caller names them ----


class Etc(StrEnum):
    """What a guest without a root of its own finds in /etc."""

    GENERATED = "generated"
    """Users, its name, name servers where it can reach them, and how the host's programs are set up (`etc`)."""
    NONE = "none"
    """Nothing but links of alternatives."""


class MountType(StrEnum):
    """What lies behind a mount that a caller asks for."""

    BIND = "bind"
    TMPFS = "tmpfs"
    PROC = "proc"


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One mount of the guest: `source` on the host (binds only) at `target` in the guest (OCI runtime-spec, Mounts).

    Read-only unless it says otherwise; use `Mount.tmpfs` for scratch space. `options` are passed to runsc as they are.
    A launch refuses a source that would give the host away (`/`, what is in /proc, /sys and /dev, /run itself, a
    socket) unless it is `meant`. Raises BadArgument for a path that is relative, empty, has `..` or NUL, or for a
    target of `/`.
    """

    source: HostPath = ""
    target: str
    readonly: bool = True
    type: MountType = MountType.BIND
    options: tuple[str, ...] = ()
    meant: bool = False

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "type", MountType(self.type))
        except ValueError:
            raise _unfit("mount type", self.type, ", ".join(MountType)) from None
        for name in ("readonly", "meant"):
            if type(getattr(self, name)) is not bool:
                raise _unfit(f"mount {name}", getattr(self, name), "true or false")
        object.__setattr__(self, "options", tuple(self.options))
        target = _argument(_path, _string_of(self.target, "mount target"), "mount target")
        if not target.strip("/."):
            raise _unfit("mount target", target, "a directory below /", "give rootfs= for the guest's root")
        object.__setattr__(self, "target", _clean(target))
        if self.type is not MountType.BIND:
            object.__setattr__(self, "source", str(self.type))
            return
        source = _string_of(self.source, "mount source")
        object.__setattr__(self, "source", _argument(_path, source, "mount source", host=True))

    @classmethod
    def parse(cls, text: str) -> Self:
        """A mount from `SRC:DST[:OPTION,...]`, or `tmpfs:DST[:OPTION,...]`; binds are read-only and a tmpfs writable by
        default.

        Options are `ro`, `rw`, `meant` (see `Mount`) for a bind, and for a tmpfs `size=BYTES` (with K, M or G) and
        `mode=OCTAL`.
        Raises BadArgument. A path that has a colon cannot be written so; use `Mount(source=..., target=...)`.
        """
        source, *rest = text.split(":")
        words = rest[1].split(",") if rest[1:] else []
        ways = [word for word in words if word in ("ro", "rw")]
        kind = MountType.TMPFS if source == "tmpfs" else MountType.BIND
        others = dict(word.partition("=")[::2] for word in words if word not in ways)
        known = {"size", "mode"} if kind is MountType.TMPFS else {"meant"}
        if len(rest) not in (1, 2) or len(ways) > 1 or not set(others) <= known or others.get("meant"):
            more = "meant" if kind is MountType.BIND else "size=BYTES, mode=OCTAL"
            raise _unfit(
                "mount",
                text,
                f"{'SRC' if kind is MountType.BIND else 'tmpfs'}:DST[:OPTION,...] with ro or rw, {more}",
                "a path with a colon needs Mount(source=..., target=...)",
            )
        readonly = ways == ["ro"] if ways else kind is MountType.BIND
        if kind is MountType.TMPFS:
            return cls.tmpfs(rest[0], readonly=readonly, **others)
        return cls(source=source, target=rest[0], readonly=readonly, type=kind, meant="meant" in others)

    @classmethod
    def tmpfs(
        cls,
        target: str,
        *,
        size: int | str | None = None,
        mode: int | str | None = None,
        readonly: bool = False,
        options: Sequence[str] = (),
    ) -> Self:
        """Writable memory-backed scratch space at `target`.

        `size` is how many bytes it may hold, as a number or with K, M or G; `mode` its permission bits, as a number or
        in octal digits.
        """
        more = []
        if size is not None:
            if isinstance(size, bool) or not _SIZE.fullmatch(str(size)):
                raise _unfit("tmpfs size", size, "a number of bytes, or one with K, M or G")
            more.append(f"size={str(size).lower()}")
        if mode is not None:
            digits = mode if isinstance(mode, str) else f"{mode:o}" if type(mode) is int and mode >= 0 else ""
            if not _MODE.fullmatch(digits):
                raise _unfit("tmpfs mode", mode, "permission bits: 0o1777, or 1777 in text")
            more.append(f"mode={digits}")
        return cls(target=target, readonly=readonly, type=MountType.TMPFS, options=(*options, *more))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object]) -> Self:
        """A mount from an OCI mount object: `source`, `destination` or `target`, `type`, `options` or `readonly`.

        Without `type` it is a bind. As in OCI, `options` without `ro` make it writable; with neither `options` nor
        `readonly` a bind is read-only. Raises BadArgument for unknown keys and contradictions.
        """
        fields: dict[str, Any] = dict(mapping)
        kind = fields.pop("type", "bind")
        target = fields.pop("target", None) if "target" in fields else fields.pop("destination", None)
        source = fields.pop("source", "")
        meant = fields.pop("meant", False)
        listed = "options" in fields
        options = _argument(_strings, fields.pop("options", None), "mount options")
        asked = fields.pop("readonly", None)
        default = "ro" in options if listed else kind == "bind"
        if fields:
            raise _unfit(
                "mount", ", ".join(map(str, fields)), "source, destination or target, type, options, readonly, meant"
            )
        if {"ro", "rw"} <= set(options) or (asked is not None and asked != default and {"ro", "rw"} & set(options)):
            raise _unfit("mount options", ",".join(options), "one of ro and rw, agreeing with readonly")
        extra = tuple(o for o in options if o not in ("ro", "rw", "bind", "rbind"))
        readonly = default if asked is None else asked
        return cls(source=source, target=target, readonly=readonly, type=kind, options=extra, meant=meant)

    def as_oci(self) -> dict[str, object]:
        """The OCI `mounts` entry."""
        # rbind: the kernel refuses a plain bind of a tree with mounts locked by a user namespace (EINVAL).
        # Writable is the absence of `ro`: older releases of runsc toggle the read-only flag on `rw`.
        options = ["rbind"] if self.type is MountType.BIND else []
        options += [*(["ro"] if self.readonly else []), *self.options]
        source = os.fsdecode(self.source)
        return {"destination": self.target, "type": str(self.type), "source": source, "options": options}


@dataclass(frozen=True)
class Bind:
    """A bind mount that the launcher rebinds at a private place."""

    index: int
    """Position in `config["mounts"]`."""
    source: bytes
    """Absolute host path."""
    readonly: bool
    recursive: bool
    copied: int = 0
    """The guest has a copy of its own instead, of so many bytes at most."""
    meant: bool = True
    """Did whoever named the source mean it, whatever it is: a bundle's author says so by naming it."""


# ---- the bundle ----


class OciBundle:
    """A judged OCI configuration, and the directory that it belongs to if there is one. Immutable.

    `OciBundle(path, config)` is the reference's constructor (gvisor.rs:1126): it judges `config` and does not read
    `path`. Use `OciBundle.build` for a command, `OciBundle.load` for a bundle on disk. Raises BadBundle or Refused.
    """

    __slots__ = ("_binds", "_fill", "_identity", "_links", "_path", "_secret_files", "_text", "_trees")

    def __init__(
        self,
        path: HostPath | None,
        config: Mapping[str, Any],
        *,
        allow_hooks: bool = False,
        allow_flag_annotations: bool = False,
    ) -> None:
        # A detour through text: what is judged is exactly what is kept, and the caller cannot change it afterwards.
        document = _decode(_encode(config))
        check_config(document, allow_hooks=allow_hooks, allow_flag_annotations=allow_flag_annotations)
        self._keep(None if path is None else _absolute(path), None, document)

    def _keep(self, path: str | None, identity: tuple[int, int] | None, document: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._identity = identity
        self._text = _encode(document)
        self._binds = tuple(self._find_binds(document))
        self._trees: tuple[Tree, ...] = ()
        self._fill: Mapping[str, tuple[int, bytes]] = {}
        self._links: Mapping[str, str] = {}
        self._secret_files: tuple[SecretFile, ...] = ()

    @property
    def bundle_path(self) -> Path | None:
        """The bundle's directory, absolute; None when built in memory."""
        return self._path

    @property
    def config(self) -> dict[str, Any]:
        """A fresh copy of the judged document."""
        document: dict[str, Any] = json.loads(self._text)
        return document

    @property
    def rootfs(self) -> bytes | None:
        """Absolute path of the guest's root on the host; None where the launcher must make an empty one."""
        return self._host_path(self.config["root"]["path"])

    @property
    def identity(self) -> tuple[int, int] | None:
        """(st_dev, st_ino) of the directory that `load` judged, for whoever reaches it by path again; else None."""
        return self._identity

    @property
    def trees(self) -> tuple[Tree, ...]:
        """What of ours the guest is to see beside its mounts: its /etc."""
        return self._trees

    @property
    def fill(self) -> Mapping[str, tuple[int, bytes]]:
        """Mode and content of files, by their paths, that the guest is to find where its rootfs has none, or an empty
        one."""
        return self._fill

    @property
    def links(self) -> Mapping[str, str]:
        """Links in the empty root that the launcher makes, by their place."""
        return self._links

    @property
    def secret_files(self) -> tuple[SecretFile, ...]:
        """What the guest's user alone is to read. It is no part of `config`."""
        return self._secret_files

    def binds(self) -> tuple[Bind, ...]:
        """The bind mounts, in mounting order (OCI runtime-spec, Mounts)."""
        return self._binds

    @property
    def hooks(self) -> list[tuple[str, dict[str, Any]]]:
        """(name, hook) of each hook, in the order of HOOKS: `prestart[0]` ... They are the launch's to run."""
        listed = self.config.get("hooks") or {}
        return [(f"{kind}[{i}]", hook) for kind in HOOKS for i, hook in enumerate(listed.get(kind) or [])]

    @property
    def limits(self) -> dict[str, int | float]:
        """The limits of `linux.resources`, by the names of `Limits`."""
        return _limits_of((self.config.get("linux") or {}).get("resources") or {})

    def lost(self, *, locked: bool) -> dict[str, Any]:
        """The fields that ask for something that nobody keeps, by name, with their values (`fields`)."""
        return fields.lost(self.config, locked=locked)

    def private_config(
        self,
        rootfs: str,
        sources: Mapping[int, str],
        *,
        netns: str | None = None,
        without: Collection[str] = (),
    ) -> bytes:
        """The bytes of the config.json that runsc gets: canonical JSON, with private host paths.

        `rootfs` replaces root.path, `sources` the source of each bind (keys: `Bind.index`, every one of them), `netns`
        the path of the network namespace. The fields `without` are left out, and so is what the launch keeps itself:
        hooks, resources, the cgroup's path, and devices, on whose default ones releases of runsc fail. Nothing else
        changes. Raises BadArgument for a missing or unfit path.
        """
        config = self.config
        fields.without(config, list(without))
        config.pop("hooks", None)
        config["process"].pop("selinuxLabel", None)  # runsc refuses to start
        for name in ("resources", "cgroupsPath", "devices"):
            (config.get("linux") or {}).pop(name, None)
        # From 20250127 to 20250428 at least, a restore takes an empty list for another one than none.
        if capabilities := config["process"].get("capabilities"):
            config["process"]["capabilities"] = {name: listed for name, listed in capabilities.items() if listed}
        config["root"]["path"] = _argument(_path, rootfs, "private rootfs")
        # A bind left out would reach runsc with the caller's path, which JSON may not even be able to spell.
        if set(sources) != {bind.index for bind in self._binds}:
            raise _unfit("private sources", sorted(sources), [bind.index for bind in self._binds])
        for index, source in sources.items():
            config["mounts"][index]["source"] = _argument(_path, source, f"private source {index}")
        if netns is not None:
            linux = config["linux"] = config.get("linux") or {}
            others = [n for n in linux.get("namespaces") or [] if n["type"] != "network"]
            linux["namespaces"] = [*others, {"type": "network", "path": _argument(_path, netns, "netns")}]
        return _encode(config).encode("ascii")

    @classmethod
    def build(
        cls,
        args: Sequence[HostPath],
        *,
        rootfs: HostPath | None = None,
        mounts: Iterable[Mount | str | Mapping[str, object]] = (),
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        hostname: str = "gvisor",
        uid: int = 0,
        gid: int = 0,
        groups: Sequence[int] = (),
        rlimits: Mapping[str, int | tuple[int, int]] | None = None,
        readonly: bool = True,
        terminal: bool = False,
        etc: Etc | str = Etc.GENERATED,
        resolver: bool = False,
        capabilities: str | Iterable[str] = "none",
        secret_files: Sequence[SecretFile] = (),
        copied: int = 0,
    ) -> Self:
        """A bundle in memory that runs `args`.

            OciBundle.build(["python3", "-c", "print(6*7)"], mounts=["/data:/data:ro"], rlimits={"RLIMIT_NOFILE": 256})

        `rootfs` is an absolute host directory; without it the guest sees the host's HOST_DIRECTORIES read-only (they
        are looked up now), a generated /etc, and a tmpfs of its own where it starts (`cwd`, WORKSPACE when None) and at
        its HOME. A guest with a `rootfs` starts in `/`, and has generated those of /etc/passwd, group, hosts, hostname,
        nsswitch.conf and resolv.conf that are not there or are empty, where the launch is confined and the guest does
        not write to the directory itself. `etc="none"` leaves all of this away: `config` is then the whole guest.
        `/proc`, `/dev` and a tmpfs at `/dev/shm` and `/tmp` are always there; a mount at one of the other default
        targets takes its place. `resolver` says that the guest's network reaches the host's name servers.
        `env` is the whole environment; when None, DEFAULT_ENV with the user's home. `rlimits` maps `RLIMIT_*` to
        one limit or to (soft, hard). `capabilities`, in the guest alone, of its root and of its set-id programs are
        "none", "docker" (what Docker gives) or names; any other user has none, for gVisor keeps no ambient ones.
        With `copied` the mount at WORKSPACE shows a copy of the directory, of so many bytes at most.
        `secret_files` are the guest's user's alone to read (`secret_files.secret_files` reads them).

        Raises BadArgument for what cannot be passed on: NUL, not UTF-8, one string of 128 KiB, 2 MiB of strings
        together, an option out of range (OCI runtime-spec, Process).
        """
        if isinstance(args, str | bytes) or not isinstance(args, Sequence):
            raise _unfit("args", args, "a list of strings")
        if not isinstance(hostname, str):
            raise _unfit("hostname", hostname, "a string")
        # Numbers that are none are refused below, with the rest of the configuration.
        whole = etc_of(etc) is Etc.GENERATED and all(type(n) is int and 0 <= n <= MAX_ID for n in (uid, gid))
        own = rootfs is None and whole
        held = capabilities_of(capabilities)
        if env is None:
            env = {**DEFAULT_ENV, "HOME": etc_.accounts(uid, gid).find(uid).directory} if own else DEFAULT_ENV
        if cwd is None:
            cwd = WORKSPACE if own or copied else "/"
        mine = [_as_mount(mount) for mount in mounts]
        binds, links = ([], {}) if rootfs is not None else _host_binds([mount.target for mount in mine], linked=own)
        trees = []
        fill: dict[str, tuple[int, bytes]] = {}
        if whole and not own:
            names = etc_.names(uid=uid, gid=gid, hostname=hostname, resolver=resolver)
            fill = {f"{etc_.TARGET}/{name}": file for name, file in names.items()}
        if own:
            targets = [mount.target for mount in mine]
            # Without the variable runsc takes it from passwd.
            home = env.get("HOME", etc_.accounts(uid, gid).find(uid).directory)
            there = [*targets, *links, etc_.TARGET, *(mount.target for mount in [*binds, *_pseudo()])]
            mine += _private(cwd, home, uid, gid, there)
            if etc_.TARGET not in targets:
                taken = [target.removeprefix(f"{etc_.TARGET}/") for target in targets]
                trees = [etc_.generated(uid=uid, gid=gid, hostname=hostname, resolver=resolver, taken=taken)]
        process = {
            "terminal": terminal,
            "user": {"uid": uid, "gid": gid, **({"additionalGids": list(groups)} if groups else {})},
            "args": [_string_of(arg, f"args[{i}]") for i, arg in enumerate(args)],
            "env": [_entry(name, value) for name, value in env.items()],
            "cwd": cwd,
            "capabilities": {name: held if name in _GIVEN else [] for name in _CAPABILITY_SETS},
            "rlimits": [_rlimit(kind, limit) for kind, limit in (rlimits or {}).items()],
            "noNewPrivileges": not held,
        }
        mounted = _mounts(mine, binds, [secret.target for secret in secret_files])
        root = _ROOTFS if rootfs is None else _argument(_path, _string_of(rootfs, "rootfs"), "rootfs", host=True)
        config = {
            "ociVersion": "1.0.2",
            "process": process,
            "root": {"path": root, "readonly": readonly},
            "hostname": hostname,
            "mounts": mounted,
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
        }
        bundle = _argument(cls, None, config)
        bundle._trees, bundle._links, bundle._fill = tuple(trees), links, fill
        bundle._secret_files = tuple(secret_files)
        meant = {mount.target: mount.meant for mount in [*binds, *mine]}
        bundle._binds = tuple(
            replace(
                bind,
                meant=meant[(target := str(mounted[bind.index]["destination"]))],
                copied=copied if target == WORKSPACE else 0,
            )
            for bind in bundle._binds
        )
        return bundle

    @classmethod
    def load(
        cls,
        path: HostPath,
        *,
        allow_hooks: bool = False,
        allow_flag_annotations: bool = False,
        owners: Collection[int] | None = None,
    ) -> Self:
        """The bundle that somebody else left in the directory `path` (gvisor.rs:319 takes it unjudged).

        The directory and its config.json must belong to root or the effective uid (or one of `owners`, uids as seen in
        this user namespace) and be writable by the owner alone. config.json is read once, through the directory's
        descriptor, up to 1 MiB. Raises BadBundle, or Refused for hooks and annotations that act on the host.
        """
        trusted = frozenset((0, os.geteuid()) if owners is None else owners)
        where = _absolute(path)
        try:
            where, identity, raw = _read_config(where, trusted)
            document = _decode(_utf8(raw))
            _spelled(document)
            check_config(document, allow_hooks=allow_hooks, allow_flag_annotations=allow_flag_annotations)
            bundle = cls.__new__(cls)
            bundle._keep(where, identity, document)
        except BadBundle as error:
            error.path = error.path or os.fsencode(os.path.join(where, "config.json"))
            raise
        except (OSError, RecursionError) as error:
            # One funnel for EIO, ENOMEM, ELOOP and whatever else a hostile or failing file system answers.
            link = isinstance(error, OSError) and error.errno == errno.ELOOP
            seen = "a symbolic link" if link else error
            raise _wrong(
                "bundle",
                seen,
                "a readable directory with a regular config.json",
                hint="name the directory that config.json lies in",
                path=where,
            ) from error
        return bundle

    def _host_path(self, path: str) -> bytes | None:
        if os.path.isabs(path):
            return os.fsencode(path)
        return None if self._path is None else os.fsencode(self._path / path)

    def _find_binds(self, config: dict[str, Any]) -> Iterable[Bind]:
        for index, mount in enumerate(config.get("mounts") or []):
            if _is_bind(mount):
                source = self._host_path(mount["source"])
                if source is None:
                    raise _wrong(f"mounts[{index}].source", mount["source"], "an absolute path: there is no bundle")
                options = mount.get("options") or []
                yield Bind(index, source, "ro" in options, "rbind" in options)

    def __repr__(self) -> str:
        # Neither arguments nor environment: they may hold secrets, and a repr ends up in logs.
        return f"<OciBundle {self._path or 'in memory'}, {len(self._binds)} binds>"


# ---- building ----


def capabilities_of(asked: str | Iterable[str]) -> list[str]:
    """The names that a caller's `capabilities` mean, as capabilities(7) has them; BadArgument for what is none."""
    words = CAPABILITIES.get(asked, (asked,)) if isinstance(asked, str) else asked
    if not isinstance(words, Iterable):
        raise _unfit("capabilities", asked, f"{', '.join(CAPABILITIES)}, or a list of names (capabilities(7))")
    names = []
    for word in words:
        name = str(word).upper()
        name = name if name.startswith("CAP_") else f"CAP_{name}"
        if name not in ALL_CAPABILITIES:
            raise _unfit("capability", word, f"{', '.join(CAPABILITIES)}, or names such as CAP_CHOWN (capabilities(7))")
        if name not in names:
            names.append(name)
    return names


def etc_of(asked: Etc | str) -> Etc:
    """What a caller's `etc` means; BadArgument for what is none."""
    try:
        return Etc(asked)
    except ValueError:
        raise _unfit("etc", asked, ", ".join(Etc)) from None


_ARGUMENTS = "`nucleus-gvisor run --help` and `help(OciBundle.build)` have what each argument takes"
_FIELDS = "config.md of the OCI runtime specification has what each field takes"


def _unfit(what: str, value: object, expected: object, hint: str = _ARGUMENTS) -> BadArgument:
    return BadArgument(f"{what} refused", step="Resolve", observed=_seen(value), expected=expected, hint=hint)


def _argument(judge: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `judge` answers; its BadBundle becomes a BadArgument, for what a caller gave us is no bundle yet."""
    try:
        return judge(*args, **kwargs)
    except BadBundle as error:
        hint = _ARGUMENTS if error.hint == _FIELDS else error.hint
        raise BadArgument(
            error.message, step="Resolve", observed=error.observed, expected=error.expected, hint=hint
        ) from error.__cause__


def _string_of(value: object, what: str) -> str:
    try:
        return os.fsdecode(value)  # type: ignore[arg-type]
    except (TypeError, UnicodeError):
        raise _unfit(what, value, "a string or a path") from None


def _clean(path: str) -> str:
    """An absolute path as runsc cleans it; os.path.normpath would keep a leading `//`."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _entry(name: object, value: object) -> str:
    text = _string_of(name, "environment name")
    if "=" in text:
        raise _unfit("environment name", text, "a name without =")
    return f"{text}={_string_of(value, f'environment entry {text}')}"


def _rlimit(kind: str, limit: object) -> dict[str, object]:
    soft, hard = limit if isinstance(limit, tuple) and len(limit) == 2 else (limit, limit)
    return {"type": kind, "soft": soft, "hard": hard}


def _host_binds(targets: Collection[str], *, linked: bool) -> tuple[list[Mount], dict[str, str]]:
    """The host's directories of programs. `linked`: each once; where one is a link into another, as today /bin is, it
    is a link in the guest as well, unless something is to be mounted below it."""
    binds: list[Mount] = []
    links: dict[str, str] = {}
    for name in HOST_DIRECTORIES if linked else (*HOST_DIRECTORIES, "/etc/alternatives"):
        try:
            # The real path, for a link cannot be bound.
            real = os.path.realpath(name)
            is_directory = os.path.isdir(real)
        except OSError as error:
            raise _wrong(
                "the host's directories", error, "to be looked at", hint=remedy(error), path=error.filename
            ) from error
        taken = any(f"{target}/".startswith(f"{name}/") for target in targets)
        if is_directory and linked and not taken and any(real.startswith(f"{bind.target}/") for bind in binds):
            links[name] = real
        elif is_directory:
            binds.append(Mount(source=real, target=name, meant=True))
    return binds, links


def _private(cwd: str, home: str, uid: int, gid: int, taken: Sequence[str]) -> list[Mount]:
    """Directories of the guest's own, where it starts and where it is at home, unless something is mounted there."""
    found = {
        path: Mount.tmpfs(path, options=("nosuid", "nodev", *options))
        for path, options in ((home, ("mode=0700", f"uid={uid}", f"gid={gid}")), (cwd, ("mode=1777",)))
        if path.startswith("/") and path.strip("/.") and _can_be(path) and not etc_.overlaps(path, taken)
    }
    return [found[path] for path in sorted(found)]


def _can_be(path: str) -> bool:
    """Can there be something of that path, path_resolution(7)."""
    return "\0" not in path and all(len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME for name in path.split("/"))


def _pseudo() -> list[Mount]:
    return [
        Mount(target="/proc", type=MountType.PROC, readonly=False, options=("nosuid", "noexec", "nodev")),
        Mount.tmpfs("/dev", options=("nosuid", "strictatime", "mode=755")),
        Mount.tmpfs("/dev/shm", options=("nosuid", "nodev", "mode=1777")),
        Mount.tmpfs("/tmp", options=("nosuid", "nodev", "mode=1777")),
    ]


def _mounts(mine: list[Mount], binds: list[Mount], files: Sequence[str]) -> list[dict[str, object]]:
    targets = [mount.target for mount in mine]
    for target in (taken := [*targets, *files]):
        if target in ("/proc", "/dev") or taken.count(target) > 1:
            raise _unfit("mount target", target, "each target once, and neither /proc nor /dev")
    defaults = [mount for mount in [*binds, *_pseudo()] if mount.target not in targets]
    return [mount.as_oci() for mount in [*defaults, *mine]]


def _as_mount(mount: object) -> Mount:
    if isinstance(mount, str):
        return Mount.parse(mount)
    if isinstance(mount, Mapping):
        return Mount.from_mapping(mount)
    if not isinstance(mount, Mount):
        raise _unfit("mount", mount, "a Mount, SRC:DST[:ro|rw] or an OCI mount object")
    return mount


# ---- reading ----


def _absolute(path: HostPath) -> str:
    text = os.fsdecode(path)
    if "\0" in text or not text:
        raise _wrong(
            "bundle path", text, "a path without NUL", hint="name the directory that config.json lies in", path=text
        )
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise _wrong(
            "bundle path",
            repr(text),
            "a path that the file system can spell",
            hint="give its bytes through os.fsdecode",
        ) from error
    try:
        # Not os.path.abspath: it takes `..` away by its spelling, and so leaves a link's target by the wrong door.
        return text if os.path.isabs(text) else os.path.join(os.getcwd(), text)
    except OSError as error:
        raise _wrong(
            "bundle path",
            error,
            "an absolute path, for the working directory is gone",
            hint="name the path from /",
            path=text,
        ) from error


def _read_config(path: str, trusted: frozenset[int]) -> tuple[str, tuple[int, int], bytes]:
    """The directory's real path and identity, and the bytes of its config.json, all from judged descriptors."""
    directory = linux.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(directory)
        _judge_owner(status, trusted, path)
        where, identity = os.path.realpath(path, strict=True), (status.st_dev, status.st_ino)
        # SAFETY: a racy read; the name is for people and for `identity`'s holder, the descriptor is what was judged.
        if not os.path.samestat(status, os.stat(where)):
            raise _wrong(
                "bundle",
                "another directory",
                "the same one twice",
                hint="launch again once nobody replaces it",
                path=path,
            )
        return where, identity, _read_file(directory, trusted, os.path.join(where, "config.json"))
    finally:
        linux.close(directory)


def _read_file(directory: int, trusted: frozenset[int], shown: str) -> bytes:
    # NONBLOCK: open(2) of a FIFO would wait for a writer for ever. NOCTTY: a terminal would become ours.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    file = linux.open("config.json", flags, dir_fd=directory)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise _wrong("config.json", f"file type {stat.filemode(status.st_mode)[0]}", "a regular file", path=shown)
        _judge_owner(status, trusted, shown)
        # The size is judged before the read (a sparse file of 2 GB is free to make) and again by it (it may grow).
        size, chunks = status.st_size, list[bytes]()
        while size <= MAX_CONFIG and (chunk := os.read(file, MAX_CONFIG + 1)):
            chunks.append(chunk)
            size = max(size, sum(map(len, chunks)))
        if size > MAX_CONFIG:
            raise _wrong("config.json", f"{size} bytes or more", f"at most {MAX_CONFIG} bytes", path=shown)
        return b"".join(chunks)
    finally:
        linux.close(file)


def _judge_owner(status: os.stat_result, trusted: frozenset[int], path: str) -> None:
    # Group and other write also stand for POSIX ACLs: with one, the group bits are its mask.
    if status.st_uid in trusted and not status.st_mode & 0o022:
        return
    owners = " or ".join(map(str, sorted(trusted)))
    raise _wrong(
        "bundle that others can change",
        f"owner uid {status.st_uid} mode {stat.S_IMODE(status.st_mode):04o}",
        f"owner uid {owners}, not writable by group or others",
        hint="copy it to a directory that only whoever launches it, or root, can write",
        path=path,
    )


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _wrong("config.json", error, "UTF-8") from error


def _spelled(document: object) -> None:
    # An escape like \\udc80 is a file name's byte 0x80 to us, and U+FFFD to Go.
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _wrong("config.json", "a lone surrogate", "Unicode text") from error


def _decode(text: str) -> Any:
    """The JSON document in `text`, with nothing in it that Go would read in another way."""
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise _wrong("config.json", error, "JSON of moderate depth") from error
    level, depth = [document], 0
    while level := [child for node in level for child in _children(node)]:
        if (depth := depth + 1) > _MAX_DEPTH:
            raise _wrong("config.json", "deeper nesting", f"nesting of at most {_MAX_DEPTH}")
    return document


def _children(node: object) -> Iterable[object]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Python and Go both keep the last of two equal keys, but Go merges objects: whoever judges one judges nothing.
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _wrong("config.json", f"key {twice!r} twice", "each key once")
    return fields


def _no_number(text: str) -> object:
    raise _wrong("config.json", text, "JSON, which has no NaN and no Infinity")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else float(_no_number(text))  # type: ignore[arg-type]


def _encode(document: object) -> str:
    """Canonical JSON, in ASCII."""
    try:
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _wrong("config.json", error, "JSON data") from error


# ---- judging ----


def check_config(config: object, *, allow_hooks: bool = False, allow_flag_annotations: bool = False) -> None:
    """Return for a configuration that runsc can be given; else raise BadBundle, or Refused for what acts on the host.

    Everything that the launcher or the sandbox's safety depends on is judged, by the OCI runtime-spec's sections
    Specification version, Root, Mounts, Process, Hostname, POSIX-platform Hooks, Annotations, and of Linux Namespaces,
    Devices and Control groups. Whether anybody keeps what a sound field asks for is another question: `OciBundle.lost`.
    """
    top = _object(config, "config.json")
    _judge_spelling(top, "")
    version = top.get("ociVersion")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise _wrong("ociVersion", version, "1.x.y")
    _judge_process(_object(top.get("process"), "process"))
    root = _object(top.get("root"), "root")
    _path(root.get("path"), "root.path", host=True, relative=True)
    _boolean(root.get("readonly"), "root.readonly")
    for index, mount in enumerate(_list(top.get("mounts"), "mounts")):
        _judge_mount(_object(mount, f"mounts[{index}]"), f"mounts[{index}]")
    for name in ("hostname", "domainname"):
        if len(_text(_or(top.get(name), ""), name).encode()) > 64:  # __NEW_UTS_LEN, linux/utsname.h
            raise _wrong(name, top[name], "at most 64 bytes")
    on_linux = _optional(top.get("linux"), "linux")
    _judge_namespaces(on_linux.get("namespaces"))
    _judge_devices(on_linux.get("devices"))
    _judge_resources(_optional(on_linux.get("resources"), "linux.resources"))
    _judge_seccomp(_optional(on_linux.get("seccomp"), "linux.seccomp"))
    _judge_hooks(_optional(top.get("hooks"), "hooks"), allow_hooks)
    _judge_annotations(top.get("annotations"), allow_flag_annotations)


def _judge_process(process: dict[str, Any]) -> None:
    args, env = _strings(process.get("args"), "process.args"), _strings(process.get("env"), "process.env")
    if not args:
        raise _wrong("process.args", process.get("args"), "at least one string")
    for index, entry in enumerate(env):
        if entry.find("=") < 1:
            raise _wrong(f"process.env[{index}]", f"{len(entry)} characters", "NAME=VALUE")  # it may be a secret
    # As execve counts: each string with its NUL and its pointer.
    if (total := sum(len(string.encode()) + 9 for string in args + env)) > MAX_STRINGS:
        raise _wrong("process.args and process.env", f"{total} bytes", f"at most {MAX_STRINGS} bytes together")
    _path(process.get("cwd"), "process.cwd")
    user = _optional(process.get("user"), "process.user")
    # 2^32 - 1 is (uid_t) -1, which setresuid(2) takes for "leave as it is".
    ids = {f"process.user.additionalGids[{i}]": n for i, n in enumerate(_list(user.get("additionalGids"), "gids"))}
    ids |= {f"process.user.{name}": _or(user.get(name), 0) for name in ("uid", "gid")}
    for where, number in ids.items():  # in the list null is not absent: Go makes the group root's of it
        _integer(number, where, 0, 2**32 - 2)
    _integer(_or(user.get("umask"), 0), "process.user.umask", 0, 0o777)
    _integer(_or(process.get("oomScoreAdj"), 0), "process.oomScoreAdj", -1000, 1000)
    for flag in ("terminal", "noNewPrivileges"):
        _boolean(process.get(flag), f"process.{flag}")
    capabilities = _optional(process.get("capabilities"), "process.capabilities")
    for name in _CAPABILITY_SETS:
        _strings(capabilities.get(name), f"process.capabilities.{name}")
    _judge_rlimits(_list(process.get("rlimits"), "process.rlimits"))


def _judge_rlimits(rlimits: list[object]) -> None:
    seen = set[str]()
    for index, value in enumerate(rlimits):
        where = f"process.rlimits[{index}]"
        limit = _object(value, where)
        kind = _text(limit.get("type"), f"{where}.type")
        if kind not in _RLIMITS or kind in seen:
            raise _wrong(f"{where}.type", kind, "a Linux RLIMIT_ name, each once")
        seen.add(kind)
        hard = _integer(limit.get("hard"), f"{where}.hard", 0, 2**64 - 1)
        _integer(limit.get("soft"), f"{where}.soft", 0, hard)


def _judge_mount(mount: dict[str, Any], where: str) -> None:
    _path(mount.get("destination"), f"{where}.destination")
    kind, options = mount.get("type"), _strings(mount.get("options"), f"{where}.options")
    if _text(_or(kind, "none"), f"{where}.type") not in _MOUNT_TYPES:
        raise _wrong(f"{where}.type", kind, ", ".join(_MOUNT_TYPES))
    # Releases of runsc differ in which of the two wins.
    if {"ro", "rw"} <= set(options):
        raise _wrong(f"{where}.options", ",".join(options), "one of ro and rw")
    if _is_bind(mount):
        _path(mount.get("source"), f"{where}.source", host=True, relative=True)
    else:
        _text(_or(mount.get("source"), ""), f"{where}.source")


def _is_bind(mount: dict[str, Any]) -> bool:
    # With either option the type is a dummy (OCI runtime-spec, Mounts), and runsc goes by that.
    return mount.get("type") == "bind" or not {"bind", "rbind"}.isdisjoint(mount.get("options") or ())


def _judge_namespaces(namespaces: object) -> None:
    seen = set[str]()
    for index, value in enumerate(_list(namespaces, "linux.namespaces")):
        where = f"linux.namespaces[{index}]"
        namespace = _object(value, where)
        kind = _text(namespace.get("type"), f"{where}.type")
        if kind not in _NAMESPACES or kind in seen:
            raise _wrong(f"{where}.type", kind, f"one of {', '.join(_NAMESPACES)}, each once")
        seen.add(kind)
        if namespace.get("path", "") not in ("", None):
            _path(namespace["path"], f"{where}.path")


def _judge_devices(devices: object) -> None:
    for index, value in enumerate(_list(devices, "linux.devices")):
        where = f"linux.devices[{index}]"
        device = _object(value, where)
        _path(device.get("path"), f"{where}.path")
        if _text(device.get("type"), f"{where}.type") not in ("c", "b", "u", "p"):
            raise _wrong(f"{where}.type", device["type"], "c, b, u or p")
        for name in ("major", "minor"):
            _integer(_or(device.get(name), 0), f"{where}.{name}", -1, 2**32 - 1)


def _judge_resources(resources: dict[str, Any]) -> None:
    """The limits that the launch enforces have to be ones that it can read; -1 and 0 are none."""
    where = "linux.resources"
    memory, cpu, pids = (_optional(resources.get(name), f"{where}.{name}") for name in ("memory", "cpu", "pids"))
    for name in ("limit", "swap", "reservation"):
        _integer(_or(memory.get(name), -1), f"{where}.memory.{name}", -(2**63), 2**63 - 1)
    _integer(_or(cpu.get("quota"), -1), f"{where}.cpu.quota", -(2**63), 2**63 - 1)
    _integer(_or(cpu.get("period"), 0), f"{where}.cpu.period", 0, 2**63 - 1)
    _integer(_or(pids.get("limit"), -1), f"{where}.pids.limit", -(2**63), 2**63 - 1)
    for name, value in _optional(resources.get("unified"), f"{where}.unified").items():
        _text(value, f"{where}.unified.{name}")
    _limits_of(resources)


def _limits_of(resources: Mapping[str, Any]) -> dict[str, int | float]:
    where = "linux.resources"
    memory, cpu, pids = (resources.get(name) or {} for name in ("memory", "cpu", "pids"))
    unified = resources.get("unified") or {}
    quota, period = cpu.get("quota") or -1, cpu.get("period") or CPU_PERIOD
    asked: list[tuple[str, str, int | float]] = [
        ("memory", f"{where}.memory.limit", memory.get("limit") or -1),
        # Of a sandbox without swap, memory and swap together are its memory.
        ("memory", f"{where}.memory.swap", memory.get("swap") or -1),
        ("cpus", f"{where}.cpu.quota", quota / period if quota > 0 else -1),
        ("pids", f"{where}.pids.limit", pids.get("limit") or -1),
    ]
    for name, limit in (("memory.max", "memory"), ("pids.max", "pids")):
        asked.append((limit, f"{where}.unified.{name}", _setting(unified, name)[0]))
    _setting(unified, "memory.swap.max")
    quota, period = (*_setting(unified, "cpu.max"), CPU_PERIOD)[:2]
    asked.append(("cpus", f"{where}.unified.cpu.max", quota / period if quota > 0 else -1))
    found: dict[str, int | float] = {}
    for limit, field, value in asked:
        if value > 0:
            least, most = _RANGES[limit]
            if not least <= value <= most:
                raise _wrong(field, value, f"{limit} from {least:g} to {most:g}")
            found[limit] = min(value, found.get(limit, value))
    return found


_RANGES = {"memory": (1 << 20, 1 << 50), "cpus": (0.01, 1 << 16), "pids": (1, 1 << 20)}
"""What `Limits` takes."""


def _setting(unified: Mapping[str, str], name: str) -> list[int]:
    """The numbers of a cgroup v2 setting; -1 for `max`, and where there is none."""
    words = unified.get(name, "max").split()
    if not 1 <= len(words) <= (2 if name == "cpu.max" else 1) or not all(map(_NUMBER.fullmatch, words)):
        raise _wrong(f"linux.resources.unified.{name}", unified[name], "a number or max, as in cgroup v2")
    if words[1:] and not (words[1].isdecimal() and int(words[1])):
        raise _wrong(f"linux.resources.unified.{name}", unified[name], "a period in microseconds")
    return [-1 if word == "max" else int(word) for word in words]


_NUMBER = re.compile(r"max|[0-9]{1,18}", re.ASCII)


def _judge_seccomp(profile: dict[str, Any]) -> None:
    where = "linux.seccomp"
    if profile:
        _text(profile.get("defaultAction"), f"{where}.defaultAction")
    _strings(profile.get("flags"), f"{where}.flags")
    for index, rule in enumerate(_list(profile.get("syscalls"), f"{where}.syscalls")):
        rule = _object(rule, f"{where}.syscalls[{index}]")
        _strings(rule.get("names"), f"{where}.syscalls[{index}].names")
        _text(rule.get("action"), f"{where}.syscalls[{index}].action")


def _judge_hooks(hooks: dict[str, Any], allowed: bool) -> None:
    for kind, listed in hooks.items():
        where = f"hooks.{kind}"
        if listed and kind not in HOOKS:
            why = "it belongs in the container, where only the guest runs" if kind in _INSIDE else "no such hook"
            raise _wrong(where, listed, ", ".join(HOOKS), hint=why, kind=Refused)
        if listed and not allowed:
            hint = "hooks run on the host as the caller; allow_hooks=True (--allow-hooks) accepts them"
            raise _wrong(where, listed, "no hooks", hint=hint, kind=Refused)
        for index, value in enumerate(_list(listed, where)):
            hook = _object(value, f"{where}[{index}]")
            _path(hook.get("path"), f"{where}[{index}].path")
            _strings(hook.get("args"), f"{where}[{index}].args")
            for entry in _strings(hook.get("env"), f"{where}[{index}].env"):
                if entry.find("=") < 1:
                    raise _wrong(f"{where}[{index}].env", f"{len(entry)} characters", "NAME=VALUE")
            if hook.get("timeout") is not None:
                _integer(hook["timeout"], f"{where}[{index}].timeout", 1, 86_400)


_INSIDE = ("createContainer", "startContainer")


def _judge_spelling(node: object, where: str) -> None:
    """Everywhere that Go looks for keys, which it takes in any case: what nobody judged, runsc would read."""
    if isinstance(node, dict):
        _object(node, where or "config.json")
        for key, value in node.items():
            if key not in _FREE:
                _judge_spelling(value, f"{where}.{key}" if where else key)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _judge_spelling(value, f"{where}[{index}]")


def _judge_annotations(annotations: object, allowed: bool) -> None:
    if not isinstance(annotations, dict | None):
        raise _wrong("annotations", annotations, "an object of strings")
    for name, value in (annotations or {}).items():
        _text(value, f"annotations.{name}")
        if name.startswith("dev.gvisor.") and not name.startswith(_HARMLESS) and not allowed:
            hint = "it changes runsc's own flags or reaches the host; allow_flag_annotations=True accepts it"
            raise _wrong(f"annotation {name}", value, "no such annotation", hint=hint, kind=Refused)


# ---- JSON types; null is absent, as in Go ----


def _wrong(
    what: str,
    value: object,
    expected: str,
    *,
    hint: str = _FIELDS,
    path: HostPath | None = None,
    kind: type[BadBundle] = BadBundle,
) -> BadBundle:
    seen = _seen(value)
    return kind(f"{what} refused", step="Prepare", path=path, observed=seen, expected=expected, hint=hint)


def _seen(value: object) -> str:
    """What lies there, in few words: never a whole document, nor a deep one."""
    if isinstance(value, Exception):
        return str(value)
    if isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, str) and value and value.isprintable():
        return value
    return "nothing" if value is None else repr(value)[:200]


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _wrong(where, value, "an object")
    for key in value:
        # Go matches keys in any case; without this, `Hooks` would be judged by nobody and run by runsc.
        if _SPELLING.get(key.casefold(), key) != key:
            raise _wrong(f"{where}: key {key}", key, _SPELLING[key.casefold()])
    return value


def _or(value: object, default: object) -> object:
    return default if value is None else value


def _optional(value: object, where: str) -> dict[str, Any]:
    return {} if value is None else _object(value, where)


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list | None):
        raise _wrong(where, value, "a list")
    return value or []


def _strings(value: object, where: str) -> list[str]:
    return [_text(item, f"{where}[{index}]") for index, item in enumerate(_list(value, where))]


def _text(value: object, where: str, *, host: bool = False) -> str:
    """`value` as text that a kernel takes; `host` also lets bytes pass that are not UTF-8."""
    if not isinstance(value, str) or "\0" in value:
        raise _wrong(where, value, "a string without NUL")
    try:
        size = len(os.fsencode(value) if host else value.encode())
    except UnicodeEncodeError as error:
        raise _wrong(where, repr(value)[:200], "UTF-8 text") from error
    if size >= MAX_STRING:
        raise _wrong(where, f"{size} bytes", f"less than {MAX_STRING} bytes")
    return value


def _path(value: object, where: str, *, host: bool = False, relative: bool = False) -> str:
    path = _text(value, where, host=host)
    if not path or ".." in path.split("/") or not (relative or path.startswith("/")):
        raise _wrong(where, path, "a path without .." if relative else "an absolute path without ..")
    if not _can_be(path):
        raise _wrong(where, path[:200], f"names of at most {MAX_NAME} bytes")
    return path


def _boolean(value: object, where: str) -> None:
    if not isinstance(value, bool | None):
        raise _wrong(where, value, "true or false")


def _integer(value: object, where: str, least: int, most: int) -> int:
    # bool is an int to Python, and not to Go.
    if type(value) is not int or not least <= value <= most:
        raise _wrong(where, value, f"an integer from {least} to {most}")
    return value
