"""What this host can do, why not, and how to mend it.

Each check looks at one thing and says yes, no or unknown; a `no` comes with its cause, its mend, and the features that
need it. Nothing is guessed from sysctls or dates: a child of the launch's own kind confines itself and proves it, on a
private tmpfs over an existing directory; the judged binary is asked in it, and becomes the supervisor of a small guest,
once for each way that a check speaks of, all but the first at once. So nothing is made on the host, not even the
artifact base, and what does not start in bounded time, as kvm where its device is no good, is given up.

The command line remembers in the caller's cache which guests ran, until the same bytes would run for another caller, on
another kernel, after another boot, or under other limits (`answers`): it says when that was, and `--again` tries anew.
"""

import argparse
import errno
import json
import os
import resource
import secrets
import shutil
import signal
import stat as stat_
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from nucleus_gvisor.model.errors import BadBase, LaunchError, NotFound, PinMismatch, Unsupported, shown
from nucleus_gvisor.model.record import set_digest
from nucleus_gvisor.runtime import _child, _linux, answers, interpreter, kept, paths, runsc
from nucleus_gvisor.runtime.capture import readable
from nucleus_gvisor.runtime.host import start_cause
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.launch import LIMITS
from nucleus_gvisor.runtime.options import (
    GVisorOciRunOptions,
    NetworkMode,
    Platform,
    Program,
    StageMethod,
    as_flags,
    judge_pin,
)
from nucleus_gvisor.runtime.steps import confine, resolve, stage
from nucleus_gvisor.runtime.streams import open_standard_descriptors
from nucleus_gvisor.runtime.supervisor import threads
from nucleus_gvisor.runtime.trial import GUEST, STARTED, Trial
from nucleus_gvisor.runtime.trial import SECONDS as TRIAL_SECONDS


class Answer(StrEnum):
    """A check's answer."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Feature(StrEnum):
    """What a check is for."""

    LAUNCH = "every launch"
    LOCKED = "confinement mount-locked, the default"
    SEALED = "the sealed stage, the default"
    COPY = "--stage copy"
    LANDLOCK = "--confinement landlock (never for runsc)"
    KVM = "--platform kvm"
    SYSTRAP = "GVisorOciRunOptions() without a platform, which asks for systrap"
    SANDBOX = "--network sandbox"
    HOST = "--network host"
    IN_PLACE = "a launch in place of its caller: --in-place"
    CGROUPS = "cgroup limits of a bundle, with --enforcement off only"
    PROGRAMS = "programs of newer user lands in the guest"


KVM_SECONDS = 2.0
"""What a guest under KVM gets; the check is told apart from a launch, and does not keep who asks waiting."""
DEFAULT = frozenset((Feature.LAUNCH, Feature.LOCKED, Feature.SEALED))
"""The features that `nucleus-gvisor run` needs without options."""
PROOFS = frozenset(("runsc", "artifact base", "confinement", "release", "launch"))
"""The checks that have to say yes before a launch is promised; of the others it is enough that none says no."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found. `cause` and `mend` are there for every `no`."""

    ok: Answer
    found: str
    cause: str = ""
    mend: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def _yes(found: str, details: Mapping[str, Any] | None = None) -> Finding:
    return Finding(ok=Answer.YES, found=found, details=details or {})


def _no(found: str, cause: str, mend: str, details: Mapping[str, Any] | None = None) -> Finding:
    return Finding(ok=Answer.NO, found=found, cause=cause, mend=mend, details=details or {})


def _unknown(found: str) -> Finding:
    return Finding(ok=Answer.UNKNOWN, found=found)


@dataclass(frozen=True, kw_only=True)
class Check(Finding):
    """A finding with its name, and the features that need it."""

    name: str
    needed_by: tuple[Feature, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "name": self.name,
            "ok": self.ok.value,
            "found": shown(self.found),
            "cause": as_flags(shown(self.cause)) if self.cause else None,
            "mend": as_flags(shown(self.mend)) if self.mend else None,
            "needed_by": [feature.value for feature in self.needed_by],
            "details": _plain(self.details),
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """All checks, and what `nucleus-gvisor run` without options would use."""

    checks: tuple[Check, ...]
    confinement: str | None
    """The confinement that was had and proved, or None."""
    stage: str | None
    platform: str | None

    @property
    def blockers(self) -> tuple[str, ...]:
        """Names of the checks that keep a default launch from succeeding, or from being known to."""
        needed = [check for check in self.checks if DEFAULT & set(check.needed_by)]
        denied = tuple(check.name for check in needed if check.ok is Answer.NO)
        return denied or tuple(c.name for c in needed if c.ok is Answer.UNKNOWN and c.name in PROOFS)

    @property
    def launch(self) -> bool:
        """Would a default launch succeed."""
        return not self.blockers

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "launch": self.launch,
            "blockers": list(self.blockers),
            "confinement": self.confinement,
            "stage": self.stage,
            "platform": self.platform,
            "checks": [check.as_dict() for check in self.checks],
        }


def command(given: argparse.Namespace) -> int:
    """Print the report; 0 when a default launch would succeed, else 1."""
    open_standard_descriptors()
    if given.again:
        answers.forget(Identity.current())
    report = examine(runsc_path=given.runsc, base=given.artifact_base, pin=given.pin, remember=True)
    if given.json:
        print(json.dumps(report.as_dict()), flush=True)
    elif sys.stdout is not None and sys.stdout.isatty():
        _print_table(report)
    else:
        print("\n".join(_lines(report)), flush=True)
    return 0 if report.launch else 1


def examine(
    *,
    runsc_path: str | os.PathLike[str] | None = None,
    base: os.PathLike[str] | None = None,
    pin: str | None = None,
    remember: bool = False,
) -> Report:
    """What this host can do for the caller: `runsc_path`, `base` and `pin` as a launch would be given them.

    With `remember` the guests that ran are noted in the caller's cache, and those noted there need not run again.

    Never raises for what the host is like, and changes nothing else on it.
    """
    patient = _Patient(runsc_path, base, pin, remember=remember)
    try:
        checks = tuple(
            Check(name=name, needed_by=needs, **vars(_guarded(look, patient)))
            for name, (look, needs) in _CHECKS.items()
        )
    finally:
        patient.close()
    return Report(checks=checks, confinement=patient.confinement, stage=patient.stage, platform=patient.platform)


class _Patient:
    """What the checks tell each other: later ones build on what earlier ones found."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        base: os.PathLike[str] | None,
        pin: str | None,
        *,
        remember: bool = False,
    ) -> None:
        self.path, self.base, self.pin, self.remember = path, base, pin, remember
        self.identity: Identity | None = None
        self.judged: resolve.Judged | None = None
        self.release: runsc.Release | None = None
        self.namespaces: dict[str, list[Any] | None] = {}
        """Answers of the namespace probe: name -> None for success, or [errno, text]."""
        self.confinement: str | None = None
        self.stage: str | None = None
        self.platform: str | None = None
        self.ids: str | None = None
        """The ids of the confinement that was had."""
        self.digests: dict[str, str] = {}
        self.staged: stage.Staged | None = None
        """What is tried: the kept files, where there are any; sealed ones otherwise."""
        self.trial: Trial | None = None
        """The child that was asked, and waits to become runsc."""
        self.said = b""
        """What the guest of the trial said, and runsc."""
        self.attempts: dict[str, _Attempt] = {}
        """The other ways that are being tried, by the check that speaks of each."""
        self.key = secrets.token_hex(16)

    def who(self) -> Identity:
        """The caller's identity, or what keeps it from being known."""
        return self.identity or Identity.current()

    def question(self, way: str) -> tuple[object, ...]:
        """What the outcome of a launch depends on beside its surroundings."""
        limits = tuple(resource.getrlimit(number) for number in LIMITS)
        device: object = None
        with suppress(OSError):
            status = os.stat("/dev/kvm")
            device = status.st_rdev, status.st_mode, status.st_uid, status.st_gid
        return "doctor", way, GUEST, sorted(self.digests.items()), self.ids, limits, device

    def known(self, way: str) -> tuple[Finding, bytes] | None:
        """What came of it before, when that need not be tried again."""
        told = answers.noted(self.question(way), self.who()) if self.remember else {}
        if not told:
            return None
        try:
            finding = Finding(**{**told["finding"], "ok": Answer(told["finding"]["ok"])})
            when = str(told["when"])
            said = str(told["said"]).encode("latin-1")
        except (KeyError, TypeError, ValueError):
            return None
        found = f"{finding.found}, tried {when}: --again tries anew"
        return replace(finding, found=found, details={**finding.details, "tried": when}), said

    def learn(self, way: str, finding: Finding, said: bytes = b"") -> None:
        """Note what lasts as long as the machine is up: that a guest ran, or that its virtualisation is no good."""
        if self.remember and (finding.ok is Answer.YES or (way == "kvm" and finding.ok is Answer.NO)):
            told = {
                "finding": _as_data(finding),
                "said": said.decode("latin-1"),
                "when": time.strftime("%FT%TZ", time.gmtime()),
            }
            answers.note(self.question(way), told, self.who())

    def close(self) -> None:
        for attempt in self.attempts.values():
            attempt.close()
        if self.trial is not None:
            self.trial.end()
        if self.staged is not None:
            self.staged.close()
        if self.judged is not None:
            self.judged.close()


# ---- the caller and what it found ----


def _caller(patient: _Patient) -> Finding:
    identity = patient.identity = Identity.current()
    powers = "with" if _child.privileged() else "without"
    kind = "root of the host" if identity.host_root else "root" if identity.uid == 0 else f"uid {identity.uid}"
    where = "" if identity.unmapped is None else " in a user namespace"
    elevated = ", elevated: its environment is not believed" if identity.elevated else ""
    found = f"{kind}{where}, {powers} CAP_SYS_ADMIN{elevated}"
    details = {
        "uid": identity.uid,
        "gid": identity.gid,
        "host_root": identity.host_root,
        "user_namespace": identity.unmapped is not None,
        "elevated": identity.elevated,
    }
    return _yes(found, details)


@dataclass(frozen=True)
class Candidate:
    """One place where runsc is looked for: what was said of it, and whether it is the one that is used."""

    path: bytes
    verdict: str
    chosen: bool


def look_at_candidates(
    explicit: bytes | None, identity: Identity, pin: str | None, *, store: bool = False
) -> tuple[list[Candidate], resolve.Judged | None, LaunchError | None]:
    """Every candidate with its verdict, the judged runsc that would be used (the caller closes it), and why not."""
    found: list[Candidate] = []
    chosen: resolve.Judged | None = None
    refusal: LaunchError | None = None
    for path in resolve.candidates(explicit, identity):
        try:
            judged = resolve.judge(path, identity, pin=pin, store=store, system=path in resolve.SYSTEM_PATHS)
        except LaunchError as error:
            absent = isinstance(error, NotFound)
            found.append(Candidate(path, "absent" if absent else str(error), False))
            refusal = refusal if absent else refusal or error
            continue
        status = os.fstat(judged.runsc.fd)
        found.append(Candidate(path, f"trusted: {paths.described(status)}, {status.st_size} bytes", chosen is None))
        if chosen is None:
            chosen = judged
        else:
            judged.close()
    return found, chosen, None if chosen is not None else refusal


def _runsc(patient: _Patient) -> Finding:
    pin = None if patient.pin is None else judge_pin(patient.pin)
    explicit = None if patient.path is None else os.fsencode(os.path.abspath(patient.path))
    candidates, judged, refusal = look_at_candidates(explicit, patient.who(), pin)
    details: dict[str, Any] = {
        "candidates": [{"path": c.path, "verdict": c.verdict, "chosen": c.chosen} for c in candidates]
    }
    if judged is None:
        cause = str(refusal) if refusal else "nothing at any of " + ", ".join(os.fsdecode(c.path) for c in candidates)
        mend = (refusal.hint if refusal else "") or "apt-get install runsc, or name the binary with --runsc"
        found = "refused" if refusal else "not found"
        return _no(found, cause, mend, details)
    patient.judged = judged
    details["path"] = judged.runsc.path
    details["digests"] = digests = patient.digests = {
        name: kept.hashed(file.fd, file.snapshot) for name, file in stage.named(judged).items()
    }
    details["pin"] = set_digest(digests)
    try:
        stage.see_pinned(judged, digests)
    except PinMismatch as error:
        judged.close()
        patient.judged = None
        return _no(
            "another than the pinned one",
            str(error),
            "install the pinned release, or pin this one once you trust it",
            details,
        )
    beside = f", {len(judged.side)} side binaries" if judged.side else ""
    found = f"{os.fsdecode(judged.runsc.path)}{beside}, sha256 {details['pin']}"
    return _yes(found, details)


def _limits(_: _Patient) -> Finding:
    values = {least: resource.getrlimit(number) for number, least in LIMITS.items()}
    text = {
        least.name: "unlimited" if soft == resource.RLIM_INFINITY else soft for least, (soft, _hard) in values.items()
    }
    found = ", ".join(f"{name} {value}" for name, value in text.items())
    low = {least.name: lack for least, limits in values.items() if (lack := least.lacking(limits))}
    if not low:
        return _yes(found, text)
    cause = "; ".join(
        f"the {kind} {name} is {value}, a launch needs {enough}" for name, (kind, value, enough) in low.items()
    )
    mend = f"raise {', '.join(f'the {kind} {name}' for name, (kind, *_more) in low.items())}: "
    return _no(found, cause, mend + "ulimit, setrlimit, or LimitXXX= of the service", text)


# ---- the artifact base ----


@dataclass(frozen=True)
class Base:
    """What a launch would find at its artifact base, looked at without making anything."""

    path: bytes
    missing: tuple[bytes, ...]
    """The directories that a launch would make, outermost first."""
    note: str
    nearest: os.stat_result
    """Of the innermost directory that is there."""
    flags: int
    """Its mount's, from fstatvfs(2)."""
    shared: bytes
    """The directory above it that others write too, or nothing."""


def look_at_base(explicit: os.PathLike[str] | None, identity: Identity) -> Base:
    """The artifact base as `paths.open_private` would judge it; BadBase or StepFailed where that would."""
    path = paths.artifact_base(explicit, identity)
    names = paths.components(path, BadBase, "Prepare")
    if not names:
        raise BadBase(
            "path refused",
            step="Prepare",
            path=path,
            observed="/",
            expected="a directory below /",
            hint=paths.NAME_A_BASE,
        )
    with paths.calls("Prepare", path):
        fd = os.open(b"/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    here, missing, note = b"", list[bytes](), ""
    shared: list[bytes] | None = [] if paths.is_named(explicit, identity) else None
    try:
        paths.judge_above(os.fstat(fd), b"/", identity, shared)
        for number, name in enumerate(names):
            here += b"/" + name
            try:
                below = paths.enter(fd, name, here, create=False)
            except LaunchError as error:
                if error.errno != errno.ENOENT:
                    raise
                missing = [b"/" + b"/".join(names[: n + 1]) for n in range(number, len(names))]
                break
            mounted = paths.is_mounted(fd, below)
            os.close(fd)
            fd = below
            if number < len(names) - 1:
                paths.judge_above(os.fstat(fd), here, identity, shared, mounted=mounted)
            elif os.fstat(fd).st_mode & 0o022 or os.fstat(fd).st_uid != identity.uid:
                paths.make_private(fd, here, identity)  # it raises for these, and changes nothing before
            elif stat_.S_IMODE(os.fstat(fd).st_mode) != 0o700:
                note = f"mode {stat_.S_IMODE(os.fstat(fd).st_mode):04o}, would be made 0700"
        _judge_room(fd, here, bool(missing))
        if shared:
            note = ", ".join(filter(None, (note, f"below {os.fsdecode(shared[0])}, which others write too")))
        above = shared[0] if shared else b""
        return Base(path, tuple(missing), note, os.fstat(fd), os.fstatvfs(fd).f_flag, above)
    finally:
        os.close(fd)


def _judge_room(fd: int, path: bytes, missing: bool) -> None:
    """BadBase where nothing can be made in the open directory, for want of permission or of room."""
    # access(2) answers EROFS for root too. /proc: an O_RDONLY descriptor has no other name.
    observed = ""
    room = os.fstatvfs(fd)
    if not os.access(f"/proc/self/fd/{fd}", os.W_OK | os.X_OK):
        observed = "mounted read-only" if room.f_flag & os.ST_RDONLY else "not writable by the caller"
    elif room.f_blocks and not room.f_bavail:
        observed = "the file system is full"
    elif room.f_files and not room.f_favail:
        observed = "the file system has no inodes left"
    if observed:
        raise BadBase(
            "the artifact base cannot be made" if missing else "nothing can be made in the artifact base",
            step="Prepare",
            path=path,
            observed=observed,
            expected="a directory that the caller can write, with room",
            hint=paths.NAME_A_BASE,
        )


def _artifact_base(patient: _Patient) -> Finding:
    base = look_at_base(patient.base, patient.who())
    found = os.fsdecode(base.path)
    if base.missing:
        found += ", would be made"
    elif base.note:
        found += f", {base.note}"
    details = {"path": base.path, "missing": list(base.missing), "noexec": bool(base.flags & os.ST_NOEXEC)}
    return _yes(found, details)


def _mount_flags(patient: _Patient) -> Finding:
    """Only the copy stage executes from the artifact base; Debian mounts /run noexec."""
    flags = look_at_base(patient.base, patient.who()).flags
    where = {"the artifact base's file system": flags}
    with suppress(OSError):
        where["/run"] = os.statvfs("/run").f_flag
    names = {os.ST_RDONLY: "ro", os.ST_NOSUID: "nosuid", os.ST_NODEV: "nodev", os.ST_NOEXEC: "noexec"}
    text = {
        place: ",".join(name for flag, name in names.items() if bits & flag) or "no restriction"
        for place, bits in where.items()
    }
    found = "; ".join(f"{place}: {names_}" for place, names_ in text.items())
    if not flags & os.ST_NOEXEC:
        return _yes(found, text)
    return _no(
        found,
        "the artifact base is on a noexec mount",
        "keep the sealed stage, or choose an artifact base elsewhere",
        text,
    )


# ---- the kernel ----


def _tried(call: Callable[[], object]) -> str:
    """The call's answer: `ok`, or the errno's name."""
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return "ok"


def _new_tmpfs() -> None:
    os.close(_linux.new_tmpfs(0, size="4k"))  # detached: no path leads there


_KERNEL: Mapping[str, tuple[str, Callable[[], object]]] = {
    # A bad descriptor and an empty change: the kernel knows the call, checks the right to use it, and does nothing.
    "mount_setattr": ("5.12", lambda: _linux.mount_setattr(-1, b"")),
    "open_tree": ("5.2", lambda: _linux.open_tree(-1)),
    "move_mount": ("5.2", lambda: _linux.move_mount(-1, -1)),
    "fsopen": ("5.2", _new_tmpfs),
}


def _mount_calls(_: _Patient) -> Finding:
    answers = {name: _tried(call) for name, (_version, call) in _KERNEL.items()}
    lacking = [name for name, answer in answers.items() if answer == "ENOSYS"]
    if not lacking:
        known = ", ".join(answers)
        return _yes(f"{known} known to the kernel", answers)
    newest = max((_KERNEL[name][0] for name in lacking), key=lambda text: [*map(int, text.split("."))])
    cause = f"{', '.join(lacking)}: ENOSYS from Linux {os.uname().release}{_filtered()}"
    return _no(
        ", ".join(f"{n} {a}" for n, a in answers.items()),
        cause,
        f"Linux {newest} or later, or a seccomp profile that passes these calls",
        answers,
    )


def _filtered() -> str:
    """Says that a seccomp filter is in force, where one is: it may answer in the kernel's place (proc(5), Seccomp)."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.split() == ["Seccomp:", "2"]:
                return "; a seccomp filter is in force, and may answer in the kernel's place"
    return ""


def _sysctl(name: str) -> str | None:
    """The value of a sysctl; None where the kernel has no such one, or it cannot be read."""
    try:
        return Path("/proc/sys", name.replace(".", "/")).read_text().strip()
    except OSError:
        return None


_PROBE = """
import sys, _child, _linux, json, os
answers = {}
def attempt(name, work):
    try: work(); answers[name] = None
    except OSError as error: answers[name] = [error.errno, str(error)]
    return answers[name] is None
if sys.argv[2] == "user":
    if attempt("user", lambda: _child.enter_user_namespace(_linux.CLONE_NEWNS)):
        attempt("mount", lambda: _linux.mount_setattr(-100, b"/", propagation=_linux.MS_PRIVATE, recursive=True))
        attempt("nested", lambda: _child.enter_user_namespace(_linux.CLONE_NEWNS))
else:
    attempt("network", lambda: _child.enter_user_namespace(_linux.CLONE_NEWNS | _linux.CLONE_NEWNET))
print(json.dumps(answers))
"""


def _probe(what: str) -> dict[str, list[Any] | None]:
    """Enter namespaces in a process of its own; name -> None, or [errno, text]."""
    done = interpreter.run(_PROBE, what)
    answers = json.loads(done.stdout) if done.returncode == 0 else None
    if not isinstance(answers, dict):
        said = done.stderr[-200:].decode(errors="replace")
        raise OSError(errno.EIO, f"the probe ended with {done.returncode}: {said}")
    return answers


def _user_namespaces(patient: _Patient) -> Finding:
    answers = _probe("user")
    allowed = {
        name: _sysctl(name)
        for name in (
            "user.max_user_namespaces",
            "user.max_mnt_namespaces",
            "kernel.unprivileged_userns_clone",
            "kernel.apparmor_restrict_unprivileged_userns",
        )
    }
    details = {"answers": answers, "sysctl": allowed}
    failed = next(((name, answer) for name, answer in answers.items() if answer is not None), None)
    if failed is None:
        found = f"entered, and entered again inside (user.max_user_namespaces {allowed['user.max_user_namespaces']})"
        return _yes(found, details)
    where = {"user": "the first", "mount": "mounting inside", "nested": "the nested one"}[failed[0]]
    assert failed[1] is not None
    cause, mend = _why_no_namespace("user", failed[1][0], allowed)
    return _no(f"{where}: {failed[1][1]}", cause, mend, details)


def _why_no_namespace(kind: str, number: int, sysctls: Mapping[str, str | None]) -> tuple[str, str]:
    """The likeliest cause of a denied namespace, and its mend."""
    for name in (f"user.max_{kind}_namespaces", "user.max_user_namespaces", "user.max_mnt_namespaces"):
        if sysctls.get(name) == "0":
            return f"{name} is 0", f"sysctl -w {name}=15000, in the user namespace that set it"
    if number in (errno.ENOSPC, errno.EUSERS):
        return (
            "as many namespaces are there, or nested, as user.max_*_namespaces and the kernel allow",
            "end what holds them, or raise the sysctls user.max_*_namespaces",
        )
    if sysctls.get("kernel.unprivileged_userns_clone") == "0":
        return (
            "kernel.unprivileged_userns_clone is 0",
            "sysctl -w kernel.unprivileged_userns_clone=1, or launch as root",
        )
    if sysctls.get("kernel.apparmor_restrict_unprivileged_userns") == "1":
        return (
            "kernel.apparmor_restrict_unprivileged_userns is 1: AppArmor takes the namespace's capabilities away",
            f"an AppArmor profile with `userns,` for {interpreter.find() or sys.executable}, or that sysctl set to 0",
        )
    if number == errno.EINVAL:
        return "the kernel was built without this kind of namespace", "a kernel with CONFIG_USER_NS and CONFIG_NET_NS"
    return (
        f"denied by the caller's own container, security module or chroot{_filtered()}",
        "let the container unshare user namespaces and mount (its seccomp profile and capabilities)",
    )


def _network_namespaces(_: _Patient) -> Finding:
    answer = _probe("network")["network"]
    allowed = {name: _sysctl(name) for name in ("user.max_net_namespaces", "user.max_user_namespaces")}
    if answer is None:
        found = f"entered (user.max_net_namespaces {allowed['user.max_net_namespaces']})"
        return _yes(found, allowed)
    cause, mend = _why_no_namespace("net", answer[0], allowed)
    return _no(answer[1], cause, mend, allowed)


def _memfd(_: _Patient) -> Finding:
    """A harmless program is sealed as runsc would be, and executed from its memfd."""
    noexec = _sysctl("vm.memfd_noexec")
    text = "" if noexec is None else f" (vm.memfd_noexec {noexec})"
    program = shutil.which("true", path="/bin:/usr/bin") or interpreter.find()
    if program is None:
        return _unknown("there is no harmless program to execute")
    arguments = [] if program.endswith("true") else ["-I", "-S", "-c", ""]
    where = "create"
    details = {"vm.memfd_noexec": noexec}
    source = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    opened = [source]
    try:
        sealed = stage.sealed(resolve.JudgedFile(os.fsencode(program), source, resolve.Snapshot.of(source)))
        opened.append(sealed.fd)
        where = "execute"
        subprocess.run(
            [os.path.basename(program), *arguments],
            executable=f"/proc/self/fd/{sealed.fd}",
            pass_fds=(sealed.fd,),
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            check=True,
        )
    except (OSError, LaunchError, subprocess.SubprocessError) as error:
        cause = f"denied by a security module or sandbox{_filtered()}"
        mend = "allow memfd_create and the execution of memfds"
        if noexec == "2":
            cause, mend = (
                "vm.memfd_noexec is 2: no memfd may be executed",
                "sysctl -w vm.memfd_noexec=1, in this pid namespace",
            )
        found = f"cannot {where}: {error}"
        return _no(found, cause, mend, details)
    finally:
        for fd in opened:
            os.close(fd)
    return _yes(f"created, sealed and executed{text}", details)


def _close_range(_: _Patient) -> Finding:
    # Far above any descriptor: nothing is closed.
    plain = _tried(lambda: _linux.close_range(0x7FFFFFFE, 0x7FFFFFFE))
    marked = _tried(lambda: _linux.close_range(0x7FFFFFFE, 0x7FFFFFFE, _linux.CLOSE_RANGE_CLOEXEC))
    return _call({"close_range": plain, "CLOSE_RANGE_CLOEXEC": marked}, "5.11")


def _pidfd(_: _Patient) -> Finding:
    def send() -> None:
        fd = os.pidfd_open(os.getpid())
        try:
            signal.pidfd_send_signal(fd, 0)
            os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            pass  # the kernel knows P_PIDFD; we are not our own child
        finally:
            os.close(fd)

    return _call({"pidfd_open, pidfd_send_signal and waitid(P_PIDFD)": _tried(send)}, "5.4")


def _call(answers: Mapping[str, str], version: str) -> Finding:
    failed = [call for call, answer in answers.items() if answer != "ok"]
    found = ", ".join(answers) if not failed else ", ".join(f"{call}: {answers[call]}" for call in failed)
    if not failed:
        return _yes(found, answers)
    cause = f"Linux {os.uname().release} lacks or denies it{_filtered()}"
    mend = f"Linux {version} or later, or a seccomp profile that passes it"
    return _no(found, cause, mend, answers)


def _landlock(_: _Patient) -> Finding:
    abi = _linux.landlock_abi()
    if abi:
        found = f"ABI {abi}; runsc cannot run under it, for it must mount"
        return _yes(found, {"abi": abi})
    return _no(
        "none; runsc could not run under it anyway",
        f"the kernel was built or booted without it{_filtered()}",
        "Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK, and landlock in the boot parameter lsm=",
        {"abi": 0},
    )


def _kvm(patient: _Patient) -> Finding:
    path = "/dev/kvm"
    if os.access(path, os.R_OK | os.W_OK):
        tried = _way(patient, "kvm")
        if tried is not None and tried.ok is Answer.NO:
            return replace(tried, mend="another platform, or, in a virtual machine, nested virtualisation")
        return tried or _unknown(f"{path} can be opened; not tried: the default launch is not to be had")
    found, cause, mend = (
        f"{path} is missing",
        "no virtualisation here, or its module is not loaded",
        "modprobe kvm_intel",
    )
    mend += " or kvm_amd; in a virtual machine, nested virtualisation; or another platform"
    if os.path.exists(path):
        found, cause = f"{path} is not readable and writable", "the caller may not use the device"
        mend = "join the device's group (usually kvm)"
    return _no(found, cause, mend)


def _cgroups(_: _Patient) -> Finding:
    """Which hierarchies there are, and whether the caller may make groups in its own."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        own[controllers] = path
    rows = [row for line in Path("/proc/self/mountinfo").read_text().splitlines() if (row := _cgroup_mount(line, own))]
    writable = [row for row in rows if row["writable"]]
    versions = sorted({str(row["version"]) for row in rows})
    names = sorted({name for row in rows for name in row["controllers"]})
    found = f"{' and '.join(versions) or 'none'}; controllers {', '.join(names) or 'none'}; "
    found += f"{len(writable)} of {len(rows)} hierarchies writable"
    if writable and len(writable) == len(rows):
        return _yes(found, {"hierarchies": rows})
    cause = "no cgroup file system is mounted" if not rows else "the caller may not make groups below its own"
    return _no(
        found,
        cause,
        "have the service manager delegate a group (systemd: Delegate=yes), or do without",
        {"hierarchies": rows},
    )


def _cgroup_mount(line: str, own: Mapping[str, str]) -> dict[str, Any] | None:
    """A cgroup hierarchy from a line of mountinfo (proc(5)), or None."""
    left, _, right = line.partition(" - ")
    kind, _source, options = right.split(" ", 2)
    if kind not in ("cgroup", "cgroup2"):
        return None
    root, point = (text.encode().decode("unicode_escape") for text in left.split()[3:5])
    if kind == "cgroup2":
        path = own.get("", "/")
    else:
        path = next((own[names] for names in own if names and set(names.split(",")) <= set(options.split(","))), "/")
    # Inside a cgroup namespace, or a container without one, the mount's root may be below the path that is shown.
    relative = os.path.relpath(path, root) if path.startswith(root) else "."
    folder = os.path.normpath(os.path.join(point, relative))
    if kind == "cgroup2":
        controllers = []
        with suppress(OSError):
            controllers = Path(folder, "cgroup.controllers").read_text().split()
        needed = [folder, f"{folder}/cgroup.procs", f"{folder}/cgroup.subtree_control"]
    else:
        controllers = [o for o in options.split(",") if o not in ("rw", "ro", "clone_children", "xattr")]
        needed = [folder]
    writable = all(os.access(place, os.W_OK) for place in needed)
    return {
        "version": "v2" if kind == "cgroup2" else "v1",
        "mount": point,
        "own": path,
        "controllers": controllers,
        "writable": writable,
    }


# ---- a trial of the whole ----


def _confinement(patient: _Patient) -> Finding:
    """The default confinement, set up and proved around a harmless program."""
    program = confine.canaries()[0][0]
    source = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    images = {}
    try:
        images["runsc"] = stage.sealed(resolve.JudgedFile(program, source, resolve.Snapshot.of(source)))
        trial = Trial(patient.who(), GVisorOciRunOptions(program=Program.PLAIN), _staged(images))
        try:
            shown_ = dict(trial.run().shown)
        finally:
            trial.end()
    except LaunchError as error:
        return _no(
            "mount-locked cannot be had",
            str(error),
            error.hint or "mend what is said of user namespaces and mount calls",
            {"error": error.as_dict()},
        )
    finally:
        os.close(source)
        stage.close(images)
    patient.ids = str(shown_["ids"])
    patient.confinement = str(shown_["confined"])
    refused = len(shown_["canaries"])
    found = (
        f"{patient.confinement}, proved: {refused} host programs refused, undo {shown_['undo']}, "
        f"{shown_['mounts']} mounts of its own, scope {shown_['scope']}"
    )
    return _yes(found, shown_)


def _staged(images: Mapping[str, stage.Sealed]) -> stage.Staged:
    """Sealed files as a launch stages them that keeps nothing."""
    descriptors = {name: item.fd for name, item in images.items()}
    method = (StageMethod.SET if len(descriptors) > 1 else StageMethod.SEALED).value
    return stage.Staged(
        descriptors, {name: item.sha256 for name, item in images.items()}, method, (*descriptors.values(),)
    )


def _images(patient: _Patient) -> stage.Staged:
    """What a launch would execute: the kept files, where there are any; what it would seal otherwise."""
    assert patient.judged is not None
    if patient.staged is None:
        found = kept.find(patient.judged, patient.who())
        if found is not None and found.digests == patient.digests:
            patient.staged = stage.stage(StageMethod.KEPT.value, patient.judged, {}, -1, b"", kept=found)
        else:
            if found is not None:
                found.close()
            patient.staged = _staged(stage.seal_all(patient.judged))
    return patient.staged


def _release(patient: _Patient) -> Finding:
    """What the judged binary says of itself, from the very bytes that were judged, in the confinement."""
    if patient.judged is None or patient.confinement is None:
        missing = "there is no trusted runsc" if patient.judged is None else "there is no confinement to ask it in"
        return _unknown(f"not asked: {missing}")
    # Its answers last where the guest that ran does: each is for these bytes, here and now.
    caller = patient.who() if patient.remember else None
    told = answers.noted(patient.question("release"), caller) if caller and patient.known("launch") else {}
    try:
        if told:
            release = runsc.Release(**{**told, "platforms": tuple(told["platforms"])})
            platform: str | None = runsc.choose_platform(release, Platform.AUTO)
        else:
            patient.trial = Trial(patient.who(), GVisorOciRunOptions(platform=Platform.AUTO), _images(patient))
            confined = patient.trial.run(patient.key)
            assert confined.release is not None
            release, platform = confined.release, confined.platform
            if caller:
                data = {name: getattr(release, name) for name in ("version", "text", "platforms", "default_platform")}
                answers.note(patient.question("release"), {**data, "flags": dict(release.flags)}, caller)
    except LaunchError as error:
        return _no(
            error.message,
            str(error),
            error.hint or "install gVisor's own runsc",
            {"error": error.as_dict()},
        )
    patient.release, patient.platform = release, platform
    found = f"{release.version}, platforms {', '.join(release.platforms)}; auto takes {platform}"
    details = {
        "version": release.version,
        "text": release.text,
        "platforms": list(release.platforms),
        "default_platform": release.default_platform,
        "auto": platform,
    }
    return _yes(found, details)


def _launch(patient: _Patient) -> Finding:
    """The default launch itself: the child that was asked becomes runsc, and a guest runs; then other ways begin."""
    if patient.release is None:
        return _unknown("not tried: the release is not known")
    if patient.trial is None and (known := patient.known("launch")):
        finding, patient.said = known
    elif patient.trial is None:
        return _unknown("not tried: the release is not known")
    else:
        finding, patient.said = _tried_launch(patient.trial)
        patient.learn("launch", finding, patient.said)
    if patient.said:
        _begin_other_launches(patient)
    return finding


def _tried_launch(trial: Trial, seconds: float = TRIAL_SECONDS) -> tuple[Finding, bytes]:
    """What came of a guest, and what it said; the trial has ended, and what it held open is closed."""
    begun = time.monotonic()
    said = b""
    try:
        said = trial.launch(seconds)
    except TimeoutError as error:
        return _unknown(f"given up: {error}; runsc may hang on it"), b""
    except LaunchError as error:
        return _no("no guest started", str(error), error.hint or _why_not_started(b"")[1]), b""
    finally:
        trial.end()
    if said.startswith(STARTED):
        return _yes("a guest ran and ended", {"seconds": round(time.monotonic() - begun, 2)}), said
    cause, mend = _why_not_started(said)
    return _no("runsc did not start the guest", cause, mend, {"runsc": said}), b""


def _why_not_started(said: bytes) -> tuple[str, str]:
    """Why runsc, which said this, did not start a guest, and the mend."""
    known = start_cause()
    text = shown(said.strip().splitlines()[-1]) if said.strip() else "runsc said nothing"
    if known is not None:
        return known
    return text, "see runsc's own debug log, and try another release of runsc or another platform"


class _Attempt:
    """Another way, tried in a fork of this process; in itself, when its finding is asked for, where it has threads."""

    def __init__(
        self, patient: _Patient, options: GVisorOciRunOptions, seconds: float, *, in_place: bool = False
    ) -> None:
        self._try: Callable[[], Finding] = lambda: _other_launch(patient, options, seconds, in_place=in_place)
        self._pid, self._reader = 0, -1
        self._end = time.monotonic() + seconds + TRIAL_SECONDS
        if threads() > 1:
            return
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _linux.write_all(writer, json.dumps(_as_data(self._try())).encode())
            finally:
                os._exit(0)
        os.close(writer)

    def finding(self) -> Finding:
        """What came of it."""
        if not self._pid:
            return self._try()
        said = b""
        while readable(self._reader, self._end) and (piece := os.read(self._reader, 1 << 16)):
            said += piece
        self.close()
        try:
            data = json.loads(said)
            return Finding(**{**data, "ok": Answer(data["ok"])})
        except (ValueError, TypeError):
            return _unknown("not found out: the process that tried it has ended")

    def close(self) -> None:
        """End what is left of it."""
        pid, self._pid = self._pid, 0
        if pid:
            os.close(self._reader)
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)  # its child dies with it; what it began in place ends by itself
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _as_data(finding: Finding) -> dict[str, Any]:
    plain = _plain(vars(finding))
    return {name: plain[name] for name in ("ok", "found", "cause", "mend", "details")}


def _begin_other_launches(patient: _Patient) -> None:
    """Try the ways that the checks after this speak of, those at once that did not work out before."""
    assert patient.release is not None
    auto, network = GVisorOciRunOptions(platform=Platform.AUTO), NetworkMode
    ways = {
        "network sandbox": (replace(auto, network_mode=network.SANDBOX), TRIAL_SECONDS, False),
        "network host": (replace(auto, network_mode=network.HOST), TRIAL_SECONDS, False),
        "in place": (auto, TRIAL_SECONDS, True),
    }
    default = GVisorOciRunOptions()
    if default.platform != patient.platform and default.platform in patient.release.platforms:
        ways["default platform"] = (default, TRIAL_SECONDS, False)
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        # Where the device cannot run a guest, some releases say so, and others hang.
        ways["kvm"] = (replace(auto, platform=Platform.KVM), KVM_SECONDS, False)
    tried = {name: way for name, way in ways.items() if patient.known(name) is None}
    if tried:
        _images(patient)  # once, for all of them
    for name, (options, seconds, in_place) in tried.items():
        patient.attempts[name] = _Attempt(patient, options, seconds, in_place=in_place)


def _way(patient: _Patient, name: str) -> Finding | None:
    """What came of the launch that the check `name` speaks of; None where it is not tried."""
    if (attempt := patient.attempts.get(name)) is not None:
        finding = attempt.finding()
        patient.learn(name, finding)
        return finding
    known = patient.known(name) if patient.said else None
    return None if known is None else known[0]


def _other_launch(patient: _Patient, options: GVisorOciRunOptions, seconds: float, *, in_place: bool) -> Finding:
    """What came of a guest in another way than the default one."""
    trial = None
    try:
        if in_place and threads() > 1:
            return _unknown("not tried: this process has several threads, and can be replaced by nothing")
        trial = Trial(patient.who(), options, _images(patient), in_place=in_place)
        trial.run(patient.key)
        return _tried_launch(trial, seconds)[0]
    except LaunchError as error:
        return _no("it is refused", str(error), error.hint or "a newer release of runsc")
    except Exception as error:  # as in `_guarded`
        return _unknown(f"could not be looked at: {type(error).__name__}: {error}")
    finally:
        if trial is not None:
            trial.end()


def _tried_way(name: str) -> Callable[[_Patient], Finding]:
    def look(patient: _Patient) -> Finding:
        return _way(patient, name) or _unknown("not tried: the default launch is not to be had")

    return look


def _library_default(patient: _Patient) -> Finding:
    """The command line's default platform is auto; the library's is the reference's, systrap."""
    wanted = GVisorOciRunOptions().platform
    if patient.release is None:
        return _unknown("the release is not known")
    try:
        runsc.choose_platform(patient.release, wanted)
    except Unsupported as error:
        return _no(f"{wanted} is missing", str(error), "pass platform=Platform.AUTO, or install a newer runsc")
    if wanted == patient.platform:
        return _yes(f"{wanted} is what auto takes")
    return _way(patient, "default platform") or _unknown("not tried: the default launch is not to be had")


def _programs(patient: _Patient) -> Finding:
    """What ordinary programs could not do in the guest that ran: older releases lack calls of newer user lands."""
    if not patient.said:
        return _unknown("not tried: no guest ran")
    lines = [shown(line) for line in patient.said.splitlines() if line]
    failed = [line.removeprefix("cannot ") for line in lines if line.startswith("cannot ")]
    if not failed:
        return _yes("the usual ones run")
    cause = "; ".join(line for line in lines[1:] if not line.startswith("cannot "))
    return _no(
        f"these failed in the guest: {', '.join(failed)}",
        cause or "no reason was given",
        "a newer release of runsc; meanwhile, other programs for it (in Python: os.listdir, os.stat)",
        {"failed": failed},
    )


def _stage(patient: _Patient) -> Finding:
    """The method that `auto` takes for this runsc."""
    if patient.judged is None:
        found = "auto takes what the runsc needs, and there is none"
        return _unknown(found)
    why = f"{len(patient.judged.side)} side binaries" if patient.judged.side else "no side binaries"
    seen = kept.foresee(patient.judged, patient.who())
    details = {"kept": seen.word, "cache": seen.cache, **({"why": seen.why} if seen.why else {})}
    if seen.word == "none":
        patient.stage = (StageMethod.SET if patient.judged.side else StageMethod.SEALED).value
        return _yes(f"auto takes {patient.stage}: {why}; nothing can be kept: {seen.why}", details)
    patient.stage = StageMethod.KEPT.value
    return _yes(f"auto takes kept: {_KEPT[seen.word].format(cache=shown(seen.cache))}; {why}", details)


_KEPT = {
    "found": "found in {cache}",
    "root's": "root's, in {cache}",
    "in place": "root's installed files, where they lie",
    "made": "to be made in {cache} by the next launch",
    "replaced": "to be replaced in {cache} by the next launch, for it is not what it was",
}
"""What is kept, by the words of `kept`."""


_CHECKS: Mapping[str, tuple[Callable[[_Patient], Finding], tuple[Feature, ...]]] = {
    "caller": (_caller, (Feature.LAUNCH,)),
    "limits": (_limits, (Feature.LAUNCH,)),
    "runsc": (_runsc, (Feature.LAUNCH,)),
    "artifact base": (_artifact_base, (Feature.LAUNCH,)),
    "memfd": (_memfd, (Feature.SEALED, Feature.LAUNCH)),
    "close_range": (_close_range, (Feature.LAUNCH,)),
    "pidfd": (_pidfd, (Feature.LAUNCH,)),
    "mount calls": (_mount_calls, (Feature.LOCKED,)),
    "user namespaces": (_user_namespaces, (Feature.LOCKED,)),
    "confinement": (_confinement, (Feature.LOCKED,)),
    "release": (_release, (Feature.LAUNCH,)),
    "launch": (_launch, (Feature.LAUNCH,)),
    "programs": (_programs, (Feature.PROGRAMS,)),
    "stage": (_stage, (Feature.LAUNCH,)),
    "default platform": (_library_default, (Feature.SYSTRAP,)),
    "kvm": (_kvm, (Feature.KVM,)),
    "network namespaces": (_network_namespaces, (Feature.SANDBOX,)),
    "network sandbox": (_tried_way("network sandbox"), (Feature.SANDBOX,)),
    "network host": (_tried_way("network host"), (Feature.HOST,)),
    "in place": (_tried_way("in place"), (Feature.IN_PLACE,)),
    "landlock": (_landlock, (Feature.LANDLOCK,)),
    "cgroups": (_cgroups, (Feature.CGROUPS,)),
    "mount flags": (_mount_flags, (Feature.COPY,)),
}
"""In this order: later ones use what earlier ones found. With what needs them."""


def _guarded(look: Callable[[_Patient], Finding], patient: _Patient) -> Finding:
    """The finding, or what kept it from being made: a refusal of the launch's own is a `no`, anything else unknown."""
    try:
        return look(patient)
    except LaunchError as error:
        mend = error.hint or f"give it what it expects: {error.expected or 'see the cause'}"
        return _no("refused", str(error), mend, {"error": error.as_dict()})
    except Exception as error:  # a host can be broken in more ways than anyone can list
        return _unknown(f"could not be looked at: {type(error).__name__}: {error}")


# ---- printing ----


def _plain(value: Any) -> Any:
    """Nested data in JSON's types; bytes as text that is safe to print."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return shown(value) if isinstance(value, str | bytes) else value


def _summary(report: Report) -> list[tuple[str, str]]:
    why = "" if report.launch else f": see {', '.join(report.blockers)}"
    return [
        ("confinement", report.confinement or "none"),
        ("stage", report.stage or "none"),
        ("platform", report.platform or "unknown"),
        ("a launch would succeed", f"{'yes' if report.launch else 'no'}{why}"),
    ]


def _notes(check: Check) -> Iterable[tuple[str, str]]:
    """What is said below a check: each candidate beside the chosen one, and for a `no` its cause, mend and need."""
    for candidate in check.details.get("candidates", ()):
        if not candidate["chosen"]:
            yield shown(candidate["path"]), shown(candidate["verdict"])
    if check.ok is Answer.NO:
        yield "cause", as_flags(shown(check.cause))
        yield "mend", as_flags(shown(check.mend))
    if check.ok is not Answer.YES:
        yield "needed by", ", ".join(check.needed_by)


def _lines(report: Report) -> Iterable[str]:
    width = max(len(check.name) for check in report.checks)
    for check in report.checks:
        yield f"{check.ok:<7}  {check.name:<{width}}  {shown(check.found)}"
        for head, text in _notes(check):
            yield f"{'':<{width + 11}}{head}: {text}"
    width = max(len(name) for name, _ in _summary(report))
    yield ""
    for name, text in _summary(report):
        yield f"{name:<{width}}  {text}"


def _print_table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {Answer.YES: "green", Answer.NO: "red", Answer.UNKNOWN: "yellow"}
    table = Table(show_header=True, title="nucleus-gvisor doctor", title_justify="left")
    for heading in ("", "check", "found"):
        table.add_column(heading, overflow="fold")
    for check in report.checks:
        text = Text(shown(check.found))  # never markup: paths may have brackets
        for head, note in _notes(check):
            text.append(f"\n{head}: ", style="bold").append(note)
        needed = bool(DEFAULT & set(check.needed_by))
        colour = colours[check.ok] if needed or check.ok is Answer.YES else "yellow"
        table.add_row(Text(check.ok.value, style=colour), check.name, text)
    console = Console()
    console.print(table)
    for name, text_ in _summary(report):
        style = "" if name != "a launch would succeed" else "bold green" if report.launch else "bold red"
        console.print(Text(f"{name}: ").append(text_, style=style))
