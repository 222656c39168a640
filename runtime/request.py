"""What a caller of the sandbox API asks for, judged as Google's `gvisor` package judges it, and made into a launch.

ValueError and TypeError are raised for what that package raises them for, in words that begin as its own do, for their
callers have nothing else to tell them by; what can be told only later is a LaunchError.
"""

import numbers
import os
import posixpath
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

from nucleus_gvisor.model.errors import BadArgument
from nucleus_gvisor.runtime import etc as etc_
from nucleus_gvisor.runtime.accounts import Accounts, User, Who, of_rootfs
from nucleus_gvisor.runtime.bounds import KEPT, RecordBounds
from nucleus_gvisor.runtime.bundle import (
    DEFAULT_ENV,
    WORKSPACE,
    Etc,
    HostPath,
    Mount,
    MountType,
    OciBundle,
    capabilities_of,
    etc_of,
)
from nucleus_gvisor.runtime.gvisor import GVisorRuntime
from nucleus_gvisor.runtime.limits import DISK_DEFAULT, Limits
from nucleus_gvisor.runtime.options import (
    Audit,
    Confinement,
    Enforcement,
    GVisorOciRunOptions,
    NetworkMode,
    Platform,
    Writable,
    unfit,
)
from nucleus_gvisor.runtime.secret_files import SecretSource
from nucleus_gvisor.runtime.secret_files import secret_files as secrets_of
from nucleus_gvisor.runtime.workspace import SIZE as WORKSPACE_SIZE
from nucleus_gvisor.runtime.workspace import Sync, WorkspaceMode

Environment = Mapping[str, str | None] | Sequence[str]
"""Variables by name, None for one that is not to be there, or a list of NAME=VALUE."""


@runtime_checkable
class MountLike(Protocol):
    """What Google's `gvisor.Mount` has: any object with these is taken for one, writable unless it says otherwise."""

    @property
    def destination(self) -> str: ...
    @property
    def source(self) -> str | None: ...
    @property
    def type(self) -> str: ...
    @property
    def readonly(self) -> bool: ...


DECEIVING = frozenset(
    ("CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_SYS_RAWIO")
)
"""With these a process of the guest can become another user's, trace one, mount over /proc, or gain the others."""
AnyMount = Mount | MountLike | Mapping[str, Any] | str
Words = HostPath | Sequence[HostPath]
"""A command: its first word, which others follow, or all of them."""


class OwnOptions(TypedDict, total=False):
    """The keyword arguments of `Sandbox` that Google's package has not; `request` has their defaults."""

    rootfs: HostPath | None
    writable: bool | str
    user: User
    hostname: str
    rlimits: Mapping[str, int | tuple[int, int]] | None
    memory: int | None
    cpus: float | None
    pids: int | None
    lifetime: float | None
    disk: int | None
    limits: Enforcement | str
    runsc: HostPath | None
    pin: str | None
    platform: Platform | str
    confinement: Confinement | str
    enforcement: Enforcement | str
    signal_scope: Enforcement | str
    record: HostPath | Literal[False] | None
    audit: Audit | str
    keep_records: RecordBounds
    debug_dir: HostPath | None
    cwd: str | None
    etc: Etc | str
    capabilities: str | Sequence[str]
    secret_files: Mapping[str, SecretSource] | None
    workspace: HostPath | None
    workspace_mode: WorkspaceMode | str
    workspace_size: int | None


class SandboxOptions(OwnOptions, total=False):
    """The keyword arguments that `Sandbox`, `run` and their asynchronous twins share; see `Sandbox`."""

    runtime_dir: HostPath | None
    sandbox_id: str | None
    network: NetworkMode | str
    env: Environment | None
    mounts: Sequence[AnyMount] | None
    working_dir: str | None


@dataclass(frozen=True)
class Request:
    """A judged request."""

    sandbox_id: str
    env: Mapping[str, str]
    working_dir: str
    who: Who
    home: bool
    """Is HOME that of the user, rather than the caller's word."""
    accounts: Accounts
    runtime: GVisorRuntime
    options: GVisorOciRunOptions
    limits: Limits
    how: Mapping[str, Any]
    """Keyword arguments of `OciBundle.build`."""

    @property
    def user(self) -> tuple[int, int]:
        """(uid, gid) of the guest's processes."""
        return self.who.uid, self.who.gid

    @property
    def may_deceive(self) -> bool:
        """Can the guest's processes pass for others."""
        return not DECEIVING.isdisjoint(self.how["capabilities"])

    def bundle(self, args: Sequence[HostPath]) -> OciBundle:
        """The bundle that runs `args`."""
        who = self.who
        return OciBundle.build(
            args, env=self.env, cwd=self.working_dir, uid=who.uid, gid=who.gid, groups=who.groups, **self.how
        )

    def process(
        self, args: Sequence[HostPath], env: Environment | None, cwd: str | None, user: User | None
    ) -> dict[str, Any]:
        """One more process of the guest, as OCI has it; judged like a bundle's own."""
        who = self.who if user is None else self.accounts.find(user)
        home = {"HOME": who.directory} if self.home and user is not None else {}
        bundle = OciBundle.build(
            args,
            rootfs="/",
            env=merged({**self.env, **home}, env),
            cwd=self.working_dir if cwd is None else directory(cwd, "cwd"),
            uid=who.uid,
            gid=who.gid,
            groups=who.groups,
            rlimits=self.how["rlimits"],
            capabilities=self.how["capabilities"],
            etc=Etc.NONE,  # the guest has one already
        )
        process: dict[str, Any] = bundle.config["process"]
        return process


def request(
    runtime_dir: HostPath | None = None,
    sandbox_id: str | None = None,
    network: NetworkMode | str = NetworkMode.NONE,
    env: Environment | None = None,
    mounts: Sequence[AnyMount] | None = None,
    working_dir: str | None = None,
    *,
    rootfs: HostPath | None = None,
    writable: bool | str = False,
    user: User = 0,
    hostname: str = "gvisor",
    rlimits: Mapping[str, int | tuple[int, int]] | None = None,
    memory: int | None = None,
    cpus: float | None = None,
    pids: int | None = None,
    lifetime: float | None = None,
    disk: int | None = None,
    limits: Enforcement | str = Enforcement.REQUIRED,
    runsc: HostPath | None = None,
    pin: str | None = None,
    platform: Platform | str = Platform.AUTO,
    confinement: Confinement | str = Confinement.MOUNT_LOCKED,
    enforcement: Enforcement | str = Enforcement.REQUIRED,
    signal_scope: Enforcement | str = Enforcement.BEST_EFFORT,
    record: HostPath | Literal[False] | None = None,
    audit: Audit | str = Audit.REQUIRED,
    keep_records: RecordBounds = KEPT,
    debug_dir: HostPath | None = None,
    cwd: str | None = None,
    etc: Etc | str = Etc.GENERATED,
    capabilities: str | Sequence[str] = "none",
    secret_files: Mapping[str, SecretSource] | None = None,
    workspace: HostPath | None = None,
    workspace_mode: WorkspaceMode | str = WorkspaceMode.COPY,
    workspace_size: int | None = None,
) -> Request:
    """Judge the arguments that `Sandbox` documents."""
    where = Writable.asked(writable)
    if cwd is not None and working_dir not in (None, "/"):
        raise ValueError("working_dir and cwd are the same: give one of them")
    etc = etc_of(etc)
    own = rootfs is None and etc is Etc.GENERATED
    start = directory(working_dir, "working_dir") if cwd is None else directory(cwd, "cwd")
    work, copied = workspace_of(workspace, workspace_mode, workspace_size)
    if (own or work) and cwd is None and working_dir is None:
        start = WORKSPACE
    asked = [*_mounts(mounts), *work]
    if disk is None and where is Writable.DISK:
        disk = DISK_DEFAULT
    elif disk is not None and where is not Writable.DISK:
        raise BadArgument(
            "disk refused",
            step="Resolve",
            observed=f"writable {writable}",
            expected="writable='disk'",
            hint='writable="disk", or no bound for the disk',
        )
    how = {
        "rootfs": rootfs,
        "mounts": [*asked, *_scratch(start, asked)],
        "hostname": hostname,
        "rlimits": rlimits,
        "readonly": where is None,
        "etc": etc,
        "resolver": network_mode(network) is NetworkMode.HOST,
        "capabilities": capabilities_of(capabilities),
        "secret_files": secrets_of(secret_files),
        "copied": copied,
    }
    accounts = accounts_of(rootfs, own, user)
    who = accounts.find(user)
    variables = environment(env)
    options = GVisorOciRunOptions(
        network_mode=network_mode(network),
        platform=platform,  # type: ignore[arg-type]
        confinement=confinement,  # type: ignore[arg-type]
        enforcement=enforcement,  # type: ignore[arg-type]
        signal_scope=signal_scope,  # type: ignore[arg-type]
        pin=pin,
        writable=where or Writable.MEMORY,
        artifact_base=None if runtime_dir is None else Path(os.path.abspath(os.fsdecode(runtime_dir))),
        record=record if record is None or record is False else Path(os.fsdecode(record)),
        audit=audit,  # type: ignore[arg-type]
        keep_records=keep_records,
        debug_dir=None if debug_dir is None else Path(os.path.abspath(os.fsdecode(debug_dir))),
    )
    return Request(
        secrets.token_hex(16) if sandbox_id is None or sandbox_id == "" else sandbox_id,
        merged({**DEFAULT_ENV, "HOME": who.directory}, env),
        start,
        who,
        "HOME" not in variables,
        accounts,
        GVisorRuntime.searching() if runsc is None else GVisorRuntime.with_path(os.path.abspath(os.fsdecode(runsc))),
        options,
        Limits(memory=memory, cpus=cpus, pids=pids, lifetime=lifetime, disk=disk, enforcement=limits),  # type: ignore[arg-type]
        how,
    )


def workspace_of(directory: HostPath | None, mode: object, size: object) -> tuple[list[Mount], int]:
    """The mount of a caller's workspace, if he has any, and how many bytes a copy of it may have, or 0 for none."""
    try:
        how = WorkspaceMode(mode)  # type: ignore[arg-type]
    except ValueError:
        raise unfit("workspace_mode", mode, ", ".join(WorkspaceMode)) from None
    if size is not None and (type(size) is not int or not 1 << 16 <= size <= 1 << 50):
        raise unfit("workspace_size", size, "a number of bytes, from 64 KiB on")
    if directory is None or how is not WorkspaceMode.COPY:
        if size is not None:
            raise unfit("workspace_size", size, "a workspace that is copied")
        if directory is None and how is not WorkspaceMode.COPY:
            raise unfit("workspace_mode", mode, "a workspace")
    if directory is None:
        return [], 0
    mount = Mount(source=os.path.abspath(os.fsdecode(directory)), target=WORKSPACE, readonly=how is WorkspaceMode.RO)
    return [mount], (size or WORKSPACE_SIZE) if how is WorkspaceMode.COPY else 0


def sync_of(asked: object, copied: int) -> Sync:
    """What a caller's `sync` means; BadArgument for what is none, or where nothing is copied."""
    try:
        sync = Sync(asked)  # type: ignore[arg-type]
    except ValueError:
        raise unfit("sync", asked, ", ".join(Sync)) from None
    if sync is not Sync.NEVER and not copied:
        raise unfit("sync", sync.value, "a workspace that is copied")
    return sync


def words_of(first: Words, more: Sequence[HostPath]) -> Sequence[HostPath]:
    """A command's words, which are given one by one or as a sequence."""
    if isinstance(first, str | bytes | os.PathLike):
        return (first, *more)
    if more:
        raise TypeError("a command's words are given one by one, or as a sequence, not both")
    return first


def seconds(timeout: object) -> float | None:
    """A time to wait that is one, before anything is begun: TypeError and ValueError for what is none."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real):
        raise TypeError(f"timeout must be a number of seconds, not {type(timeout).__name__}")
    if not float(timeout) >= 0:  # which nan is not either
        raise ValueError(f"timeout {timeout}: expected 0 or more seconds")
    return float(timeout)


def deadline_of(timeout: object) -> float | None:
    """When it is over, of time.monotonic."""
    wait = seconds(timeout)
    return None if wait is None else time.monotonic() + wait


def left(deadline: float | None) -> float | None:
    """Seconds until then."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def network_mode(network: object) -> NetworkMode:
    """The mode; names in any case."""
    if not isinstance(network, str):
        raise TypeError(f"network must be a NetworkMode or str, not {type(network).__name__}")
    try:
        # A member of another package's str enumeration is a str whose value counts, not its name.
        return NetworkMode(str.__str__(network).lower())
    except ValueError:
        raise ValueError(f"Invalid network mode {str(network)!r}. Valid options are {_listed(NetworkMode)}.") from None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in map(str, names))


def merged(base: Mapping[str, str], env: Environment | None) -> dict[str, str]:
    """`base` with what `env` says over it."""
    return {name: value for name, value in {**base, **environment(env)}.items() if value is not None}


def environment(env: Environment | None) -> dict[str, str | None]:
    """Variables by name; ValueError for an entry without `=` or a name with one."""
    if not env:
        return {}
    if isinstance(env, Mapping):
        if bad := [name for name in env if "=" in str(name)]:
            raise ValueError(f"Environment variable key cannot contain '=': {bad[0]!r}")
        return {str(name): None if value is None else str(value) for name, value in env.items()}
    if not isinstance(env, list | tuple):
        raise TypeError(f"env must be a list of 'KEY=VALUE' strings or a dict, not {type(env).__name__}")
    found: dict[str, str | None] = {}
    for entry in env:
        if not isinstance(entry, str) or "=" not in entry:
            raise ValueError(f"Invalid environment variable format, expected KEY=VALUE: {entry!r}")
        name, _, value = entry.partition("=")
        found[name] = value
    return found


def directory(path: object, name: str) -> str:
    """An absolute path in the guest; a relative one is taken from the guest's root."""
    if path is None:
        return "/"
    if not isinstance(path, str):
        raise TypeError(f"{name} must be a str, not {type(path).__name__}")
    if not path.strip():
        raise ValueError(f"{'working directory' if name == 'working_dir' else name} cannot be empty")
    return _absolute(path)


def _absolute(path: str) -> str:
    return "/" + posixpath.normpath(posixpath.join("/", path)).lstrip("/")


def accounts_of(rootfs: HostPath | None, own: bool, user: User) -> Accounts:
    """Whom the guest knows by name."""
    if rootfs is not None:
        return of_rootfs(os.fsencode(rootfs))
    if not own:
        return Accounts((), {})
    who = etc_.accounts(0, 0).find(user)
    return etc_.accounts(who.uid, who.gid)


def _mounts(mounts: object) -> list[Mount]:
    if not mounts:
        return []
    if not isinstance(mounts, list | tuple):
        raise TypeError(f"mounts must be a list or tuple, not {type(mounts).__name__}")
    # A later mount at the same place covers the earlier one, which then need not be made.
    found = {mount.target: mount for mount in map(_mount, mounts)}
    # Both are there in any case.
    always = (("/proc", MountType.PROC), ("/dev", MountType.TMPFS))
    return [mount for mount in found.values() if (mount.target, mount.type) not in always]


def _scratch(where: str, mounts: Sequence[Mount]) -> list[Mount]:
    """A tmpfs of its own at the directory `where` that lies in a tmpfs, for nobody could make it there before the guest
    runs. Any other that is missing is made in the guest's root."""
    kinds = {"/tmp": MountType.TMPFS} | {mount.target: mount.type for mount in mounts}
    above = max((target for target in kinds if where.startswith(f"{target}/")), key=len, default=None)
    made = any(f"{target}/".startswith(f"{where}/") for target in kinds)
    if above is None or made or kinds[above] is not MountType.TMPFS:
        return []
    return [Mount.tmpfs(where, options=("nosuid", "nodev", "mode=1777"))]


def _mount(mount: object) -> Mount:
    if isinstance(mount, Mount):
        return mount
    if isinstance(mount, str):
        return Mount.parse(mount)
    if isinstance(mount, Mapping):
        if "target" in mount:
            return Mount.from_mapping(mount)
        if extra := sorted(set(mount) - {"destination", "source", "type", "readonly"}):
            raise ValueError(f"Unrecognized keys in mount dict: {extra}")
        if "destination" not in mount:
            raise ValueError(f"Mount dictionary missing 'destination': {mount!r}")
        fields = {"source": None, "type": MountType.BIND, "readonly": False, **mount}
        return _spelled(fields["destination"], fields["source"], fields["type"], fields["readonly"])
    if isinstance(mount, MountLike):
        return _spelled(mount.destination, mount.source, mount.type, mount.readonly)
    raise TypeError(f"Mount item must be a Mount instance or dict, or SRC:DST[:ro|rw], not {type(mount).__name__}")


def _spelled(destination: object, source: object, kind: object, readonly: object) -> Mount:
    """A mount in OCI's and Google's spelling: writable unless it says otherwise, relative to the guest's root."""
    if not isinstance(destination, str) or not destination.strip():
        raise ValueError(f"Mount destination cannot be empty: {destination!r}")
    if not isinstance(kind, str):
        raise TypeError(f"Mount type must be a MountType or str, not {type(kind).__name__}")
    try:
        type_ = MountType(str.__str__(kind).lower())
    except ValueError:
        raise ValueError(f"Invalid mount type {str(kind)!r}. Valid types are {_listed(MountType)}.") from None
    target = _absolute(destination)
    if type_ is not MountType.BIND:
        return Mount(target=target, type=type_, readonly=False)
    if not isinstance(source, str) or not source.strip():
        raise ValueError(f"Bind mount source cannot be empty: {source!r}")
    return Mount(source=os.path.abspath(source), target=target, readonly=bool(readonly))
