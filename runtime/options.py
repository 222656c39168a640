"""What a caller can ask for: frozen, keyword-only, judged before any path is touched."""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from nucleus_gvisor.model.errors import BadArgument, BadId
from nucleus_gvisor.runtime.bounds import KEPT, RecordBounds


class NetworkMode(StrEnum):
    """runsc's `--network` (gvisor.rs:17)."""

    NONE = "none"
    """Loopback inside the sandbox only; the default."""
    HOST = "host"
    """The host's stack, shared."""
    SANDBOX = "sandbox"
    """gVisor's own stack over a network namespace made for this launch."""


class Platform(StrEnum):
    """runsc's `--platform` (gvisor.rs:28)."""

    SYSTRAP = "systrap"
    KVM = "kvm"
    PTRACE = "ptrace"
    AUTO = "auto"
    """What the judged binary itself calls its default; ours, not the reference's."""

    def as_flag(self) -> str:
        """The flag's value (gvisor.rs:48)."""
        return self.value


class StageMethod(StrEnum):
    """How the judged bytes are kept from changing until execve."""

    AUTO = "auto"
    """`kept` under a required mount-locked. Elsewhere, and where nothing can be kept: `sealed`; or, with side binaries
    in `gvisor-bin/` beside runsc, `set` under a required mount-locked and else `copy`."""
    KEPT = "kept"
    """The files verified once, kept on disk by digest, compared at each launch and bound read-only; see `kept`."""
    SEALED = "sealed"
    """A sealed memfd of exactly the judged bytes."""
    SET = "set"
    """runsc and its `gvisor-bin/`, copied from sealed memfds to a private read-only tmpfs."""
    COPY = "copy"
    """The reference's private copy in `exec-allow/` (gvisor.rs:471)."""
    STORE = "store"
    """The judged file itself, in a read-only immutable store (gvisor.rs:467)."""


class Confinement(StrEnum):
    """What the supervisor is held by."""

    MOUNT_LOCKED = "mount-locked"
    """A private view of the host's mounts: read-only, no execution, no set-id, locked by a nested user namespace."""
    LANDLOCK = "landlock"
    """The reference's execute-only Landlock allowlist (gvisor.rs:893); not for runsc, which must mount."""


class Enforcement(StrEnum):
    """What happens where the confinement cannot be had."""

    REQUIRED = "required"
    """The launch fails; the default."""
    BEST_EFFORT = "best_effort"
    """The launch goes on unconfined and the record says so."""
    OFF = "off"
    """No confinement is tried."""


class Writable(StrEnum):
    """Where the guest's writes go when its root may be written."""

    MEMORY = "memory"
    """To a layer of that sandbox alone, in its memory; gone with it."""
    DISK = "disk"
    """The same, in a file without a name below the artifact base, which is on disk, up to `Limits.disk`."""
    HOST = "host"
    """To the directory itself, which is refused where others can write it too."""

    @classmethod
    def asked(cls, value: object) -> "Writable | None":
        """What a caller's `writable` means: None for False, MEMORY for True, else the name; BadArgument."""
        if isinstance(value, bool):
            return cls.MEMORY if value else None
        try:
            return cls(value)  # type: ignore[arg-type]
        except ValueError:
            raise BadArgument(
                "writable refused",
                step="Resolve",
                observed=repr(value)[:120],
                expected=f"a bool, {', '.join(cls)}",
                hint='True means writable="memory"',
            ) from None


class Audit(StrEnum):
    """What happens where the launch's record cannot be written."""

    REQUIRED = "required"
    """The launch fails; the default."""
    BEST_EFFORT = "best_effort"
    """The launch goes on without one, and `Record.problem` says why."""
    OFF = "off"
    """No record is written; the lines are in memory all the same."""


class Program(StrEnum):
    """What the supervisor is."""

    RUNSC = "runsc"
    PLAIN = "plain"
    """A supervisor that never mounts: the reference's Landlock policy can hold it."""


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def judge_id(container_id: str) -> str:
    """The id itself, or BadId: runsc takes `.`, `..` and `--help` as ids, some of them as flags."""
    if not isinstance(container_id, str) or not _ID.fullmatch(container_id):
        raise BadId(
            "container id refused",
            step="Resolve",
            observed=repr(container_id)[:120],
            expected="1 to 64 of A-Z a-z 0-9 _ . + -, the first a letter or digit",
            hint="leave the id away to have one made",
        )
    return container_id


def unfit(name: str, value: object, expected: str) -> BadArgument:
    """The error for an option whose value is not what it may be."""
    return BadArgument(
        f"{name} refused",
        step="Resolve",
        observed=repr(value)[:120],
        expected=expected,
        hint=f"leave {name} away to have its default",
    )


def judge_pin(pin: str) -> str:
    """The pin as 64 lower-case hex digits, or BadArgument."""
    text = pin.lower().removeprefix("sha256:") if isinstance(pin, str) else ""
    if not _SHA256.fullmatch(text):
        raise BadArgument(
            "pin refused",
            step="Resolve",
            observed=repr(pin)[:120],
            expected="a SHA-256 in hex",
            hint="`sha256sum RUNSC` prints it",
        )
    return text


@dataclass(frozen=True, kw_only=True)
class GVisorOciRunOptions:
    """Options of one launch. The first five are the reference's, with its defaults (gvisor.rs:60).

    `runsc_rootless` and `ignore_cgroups` ask runsc for `--rootless` and `--ignore-cgroups`. Under `mount-locked` the
    second is passed in any case, because the supervisor then lives in a user namespace of its own, and the first where
    a trial shows that this release does not start there without it. `require_supervisor_exec_policy=True` is the same
    as `enforcement=REQUIRED`, rootless or not.
    """

    network_mode: NetworkMode = NetworkMode.NONE
    ignore_cgroups: bool = False
    runsc_rootless: bool = False
    require_supervisor_exec_policy: bool = False
    platform: Platform = Platform.SYSTRAP

    confinement: Confinement = Confinement.MOUNT_LOCKED
    enforcement: Enforcement = Enforcement.REQUIRED
    signal_scope: Enforcement = Enforcement.BEST_EFFORT
    """Must the supervisor be kept from signalling processes outside, and from their abstract sockets (Linux 6.12)?"""
    stage: StageMethod = StageMethod.AUTO
    program: Program = Program.RUNSC
    pin: str | None = None
    """SHA-256 of the runsc that may run, in hex."""
    writable: Writable = Writable.MEMORY
    """Where writes to the guest's root go, when it may be written: when the bundle's root.readonly is not true."""
    artifact_base: Path | None = None
    """Where the launch keeps its directories; see `nucleus_gvisor.runtime.paths.artifact_base`."""
    record: Path | Literal[False] | None = None
    """File that the record is appended to; default: one file a launch in `records/` of the artifact base. False is the
    same as `audit=OFF`."""
    audit: Audit = Audit.REQUIRED
    keep_records: RecordBounds = KEPT
    """How many records of other launches stay in `records/`; see `nucleus_gvisor.runtime.retention`."""
    debug_dir: Path | None = None
    """Where runsc's own debug and panic logs of this launch are kept: a directory that only the caller can change."""
    allow_hooks: bool = False
    """Accept a bundle's hooks. They run on the host, as the caller."""
    allow_flag_annotations: bool = False
    """Accept `dev.gvisor.flag.*` annotations, which change runsc's own flags."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("network_mode", NetworkMode),
            ("platform", Platform),
            ("confinement", Confinement),
            ("enforcement", Enforcement),
            ("signal_scope", Enforcement),
            ("stage", StageMethod),
            ("program", Program),
            ("writable", Writable),
            ("audit", Audit),
        ):
            try:
                object.__setattr__(self, name, kind(getattr(self, name)))
            except ValueError as error:
                raise BadArgument(
                    f"{name} refused",
                    step="Resolve",
                    observed=getattr(self, name),
                    expected=", ".join(kind),
                    hint=f"leave {name} away to have its default",
                ) from error
        if self.pin is not None:
            object.__setattr__(self, "pin", judge_pin(self.pin))
        self._judge_audit()
        if self.require_supervisor_exec_policy and self.enforcement is not Enforcement.REQUIRED:
            raise BadArgument(
                "require_supervisor_exec_policy contradicts enforcement",
                step="Resolve",
                observed=self.enforcement.value,
                expected="required",
                hint='enforcement="required", or no require_supervisor_exec_policy',
            )
        self._judge_scope()

    def _judge_audit(self) -> None:
        if self.record is False:
            if self.audit is Audit.BEST_EFFORT:
                raise self._contradicts_audit("record=False", "no record at all is audit off")
            object.__setattr__(self, "record", None)
            object.__setattr__(self, "audit", Audit.OFF)
        if self.audit is Audit.OFF and self.record is not None:
            raise self._contradicts_audit(f"record {self.record}", "where nothing is written no file is named")
        if self.audit is Audit.OFF and self.keep_records != KEPT:
            raise self._contradicts_audit("keep_records", "bounds are looked after by launches that leave a record")

    def _contradicts_audit(self, what: str, why: str) -> BadArgument:
        return BadArgument(
            f"{what} contradicts audit", step="Resolve", observed=self.audit.value, expected="one of the two", hint=why
        )

    def _judge_scope(self) -> None:
        if self.signal_scope is Enforcement.OFF:
            raise BadArgument(
                "signal_scope refused",
                step="Resolve",
                observed="off",
                expected="required or best_effort",
                hint='signal_scope="best_effort" launches where the kernel has none, and says so',
            )
        locked = self.confinement is Confinement.MOUNT_LOCKED and self.enforcement is Enforcement.REQUIRED
        if self.signal_scope is Enforcement.REQUIRED and not locked:
            raise BadArgument(
                "signal_scope contradicts enforcement or confinement",
                step="Resolve",
                observed=f"{self.enforcement.value}, {self.confinement.value}",
                expected="enforcement required and confinement mount-locked",
                hint='signal_scope="best_effort"',
            )


_OPTION = re.compile(
    r"\b(allow_hooks|artifact_base|confinement|debug_dir|enforcement|limits|network|pin|platform|record|rootfs|runsc"
    r"|runsc_rootless|signal_scope|stage|writable)=(?:\"([^\"]*)\"|True\b)"
)


def as_flags(text: str) -> str:
    """An error's text with the options that it names as the command line has them: stage="copy" is --stage copy."""

    def flag(found: re.Match[str]) -> str:
        name = "--" + found[1].removeprefix("runsc_").replace("_", "-")
        return f"{name} {found[2]}" if found[2] else name

    return _OPTION.sub(flag, text)
