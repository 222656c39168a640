"""What we know of runsc: its arguments, its environment, and how to read its answers. No effects."""

import os
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from nucleus_gvisor.model.errors import NotRunsc, Unsupported
from nucleus_gvisor.runtime import _child
from nucleus_gvisor.runtime.options import GVisorOciRunOptions, NetworkMode, Platform, Writable

SAFE_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
QUESTIONS = ([b"runsc", b"--version"], [b"runsc", b"flags"])
"""What the staged binary is asked, where it is confined; `read_answers` reads the outputs."""
VERSIONED = ("gvisor-bin/gvisor_sentry", "gvisor-bin/checkpointgofer")
"""The side binaries that say of which release they are; the others' word is runsc's own ALWAYS."""
LOGS = (b"--log", b"--panic-log", b"--debug")
"""The flags that only a launch has, the last before its verb: they name files that it alone is given."""
VERBS = (b"run", b"restore")
"""What a launch has runsc do."""

_VERSION = re.compile(r"runsc version (?:release-)?(?:0\.0~)?(\S+)")
_DATE = re.compile(r"\d{8}")
_FLAG = re.compile(r"^  -(\S+).*\n((?:    .*\n?)*)", re.MULTILINE)
_PLATFORM = re.compile(r"-platform \w+\n\s+specifies which platform to use: (.*?)\. \(default \"(\w+)\"\)", re.DOTALL)


@dataclass(frozen=True)
class Capability:
    """Something that not every release has, and that a launch needs or has to work around."""

    flag: str
    """The flag of `runsc flags` that shows it: any build says so, one without a date as well."""
    known: int | None
    """A dated release from which on it is there, whatever becomes of the flag."""
    what: str


CAPABILITIES = {
    "overlay2": Capability("overlay2", None, "what the root's layer is has to be said: its default changed; 20221107"),
    "oci-seccomp": Capability("oci-seccomp", None, "the guest's kernel enforces a bundle's filter"),
    "leave-running": Capability(
        "net-disconnect-ok", 20240729, "a checkpoint lets its sandbox go on, and can be restored; 20221219 has neither"
    ),
    "stderr-apart": Capability(
        "net-disconnect-ok", 20240729, "`runsc exec --pass-fd`: its own words are not on the process's standard error"
    ),
    "gofer-namespace": Capability(
        "gofer-network-namespace",
        None,
        "from 20260810 on the gofer's empty network namespace stays mounted below --root, unless each gets its own",
    ),
    "side-binaries": Capability(
        "sidecar-usage-policy",
        None,
        "from 20260810 on the sandbox is a program in gvisor-bin; alone it is slower, and from 2026-09 on refused",
    ),
    "hasty-client": Capability(
        "sidecar-usage-policy", None, "`runsc exec` ends at once where its container does not run yet; it waited before"
    ),
}
"""What was seen of releases is here, and nowhere else; what a flag does not show is tried (`needs_rootless`)."""
RUN_BY_SANDBOXES = ("gvisor-bin/gvisor_sentry", "gvisor-bin/gvisor-sentry-prewarmer")
"""The side binaries without which the policy STRICT refuses to start a sandbox."""
WHOLE = {"sidecar-usage-policy": b"STRICT", "sidecar-release-enforcement-policy": b"ALWAYS"}
"""What runsc is told of a set that has those, by the name of the flag."""
ALONE_REFUSED = 20260914
"""The first dated release that does not run without its side binaries; an undated one is tried."""
INSTALL_SET = (
    "unpack the whole archive of the release, with gvisor-bin beside runsc, or install Google's apt package:"
    " https://gvisor.dev/docs/user_guide/install/"
)


@dataclass(frozen=True)
class Release:
    """What a runsc says of itself."""

    version: str
    """The first line of `--version`, without its preamble: "20240729.0"."""
    text: str
    """All that `--version` prints, stripped."""
    platforms: tuple[str, ...]
    default_platform: str
    flags: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Its flags, and what it says of each."""

    @property
    def date(self) -> int | None:
        """YYYYMMDD, where the version is a dated one."""
        match = _DATE.fullmatch(self.version.partition(".")[0])
        return int(match[0]) if match else None

    def has(self, name: str) -> bool:
        """Has it this one of CAPABILITIES."""
        capability = CAPABILITIES[name]
        known = capability.known is not None and (self.date or 0) >= capability.known
        return capability.flag in self.flags or known


def environment(runtime_dir: bytes) -> dict[bytes, bytes]:
    """The six variables that runsc gets, and no other (gvisor.rs:423)."""
    return {
        b"PATH": SAFE_PATH,
        b"TMPDIR": runtime_dir,
        b"XDG_RUNTIME_DIR": runtime_dir,
        b"HOME": b"/root",
        b"USER": b"root",
        b"LOGNAME": b"root",
    }


def run_arguments(
    container_id: str,
    bundle: bytes,
    root: bytes,
    options: GVisorOciRunOptions,
    *,
    platform: str,
    rootless: bool | None = None,
    ignore_cgroups: bool | None = None,
    overlay: str | None = None,
    seccomp: bool = False,
    image: bytes | None = None,
    logs: Sequence[bytes] = (),
    release: Release | None = None,
    side: Collection[str] = (),
    program: bytes = b"runsc",
) -> list[bytes]:
    """runsc's argument vector, in the reference's order: global flags before the subcommand (gvisor.rs:918).

    `rootless` and `ignore_cgroups` default to what the options ask for; `overlay` is from `overlay`, and `logs` are
    those of `said.Said.arguments`. With `image` a checkpoint is restored, from that directory. With `seccomp` the
    guest's kernel enforces the bundle's filter, which it passes over otherwise. `release` has flags that others lack.
    `side` are the side binaries that are staged beside it: where they are all that a run executes, runsc is told to do
    without none of them, and to take none of another release.
    """
    arguments = [program, b"--root", root]
    if options.runsc_rootless if rootless is None else rootless:
        arguments.append(b"--rootless")
    if options.ignore_cgroups if ignore_cgroups is None else ignore_cgroups:
        arguments.append(b"--ignore-cgroups")
    if seccomp:
        arguments.append(b"--oci-seccomp")
    if release is not None and release.has("gofer-namespace"):
        arguments.append(b"--gofer-network-namespace=new")
    if release is not None and set(RUN_BY_SANDBOXES) <= set(side):
        arguments += [b"--%s=%s" % (name.encode(), word) for name, word in WHOLE.items() if name in release.flags]
    return [
        *arguments,
        b"--network",
        options.network_mode.value.encode(),
        b"--platform",
        platform.encode(),
        *(() if overlay is None else (b"--overlay2", overlay.encode())),
        *logs,
        *((b"run",) if image is None else (b"restore", b"--image-path", image)),
        b"--bundle",
        bundle,
        container_id.encode(),
    ]


def trial_arguments(place: bytes) -> list[bytes]:
    """Of a runsc that would create the sandbox of `_child.TRIAL`; `needs_rootless` reads what it says."""
    trial = place + b"/trial"
    where = [b"--root", trial + b"/root", b"--ignore-cgroups", b"--network", b"none"]
    # Up to 2023 its name is an abstract socket's too: all launches of the network namespace share them.
    name = b"trial-" + secrets.token_hex(8).encode()
    return [b"runsc", *where, b"create", b"--bundle", trial, name]


def needs_rootless(output: bytes) -> bool:
    """Could the sandbox not even be executed without `--rootless`, or only as somebody who cannot enter its directory.

    Releases up to 2023 run their sandbox as nobody, and the kernel lets them have no id that the namespace lacks
    (user_namespaces(7)). With the flag they run it as the caller. It is not for those which can do without: they would
    keep the host's /proc mounted in the sandbox's root.
    """
    return b"starting sandbox: fork/exec" in output or output.endswith(_child.AS_ANOTHER)


def judge_alone(release: Release, trial: bytes) -> None:
    """Unsupported where this runsc, which has no side binaries beside it, starts no guest; `trial`: what it said."""
    refuses = b'sidecar "' in trial and b"not usable" in trial
    if refuses or (release.date or 0) >= ALONE_REFUSED:
        said = " ".join(trial.decode("utf-8", "replace").split())
        raise Unsupported(
            "this runsc starts no guest without its side binaries",
            step="Confine",
            observed=said[:300] if refuses else f"release {release.version}, and no gvisor-bin beside runsc",
            expected="gvisor-bin beside runsc",
            hint=INSTALL_SET,
        )


def after_flags(command: Sequence[bytes]) -> int:
    """Where, in the arguments of a launch, those of runsc's own flags end that its other commands have too."""
    return min(command.index(word) for word in (*LOGS, *VERBS) if word in command)


def questions(names: Collection[str]) -> list[list[bytes]]:
    """What is asked of the staged files `names`: QUESTIONS, and the version of each side binary that has one."""
    return [*QUESTIONS, *([name.encode(), b"--version"] for name in VERSIONED if name in names)]


def judge_set(release: Release, answers: Sequence[tuple[int, bytes]], names: Collection[str]) -> None:
    """Unsupported where a side binary, by what it answered to `questions`, is not of runsc's own release."""
    sides = [name for name in VERSIONED if name in names]
    theirs = answers[len(QUESTIONS) : len(QUESTIONS) + len(sides)]
    for name, (status, said) in zip(sides, theirs, strict=True):
        match = _VERSION.match(said.decode("utf-8", "replace"))
        if status != 0 or match is None or match[1] != release.version:
            told = f"wait status {status}, {said[:120]!r}" if match is None else match[1]
            raise Unsupported(
                "a side binary is not of runsc's release",
                step="Confine",
                path=name,
                observed=f"runsc {release.version}, {name} {told}",
                expected="one release",
                hint=INSTALL_SET,
            )


def read_answers(answers: list[tuple[int, bytes]]) -> Release:
    """The release that gave `answers` to QUESTIONS; NotRunsc when they are not those of a runsc."""
    (status, version), (_, listed), *_ = answers
    match = _VERSION.match(version.decode("utf-8", "replace"))
    if status != 0 or match is None:
        raise NotRunsc(
            "the binary does not answer as runsc does",
            step="Confine",
            observed=f"--version: wait status {status}, {version[:120]!r}",
            expected="runsc version ...",
            hint="name gVisor's own runsc",
        )
    text = listed.decode("utf-8", "replace")
    flags = {flag: " ".join(says.split()) for flag, says in _FLAG.findall(text)}
    return Release(match[1], version.decode("utf-8", "replace").strip(), *_platforms(text), flags)


def _platforms(flags: str) -> tuple[tuple[str, ...], str]:
    match = _PLATFORM.search(flags)
    if match is None:
        raise NotRunsc(
            "runsc does not tell its platforms",
            step="Confine",
            observed=flags[:120],
            expected="-platform in the output of `runsc flags`",
            hint="name gVisor's own runsc",
        )
    names = tuple(name.split()[0] for name in match[1].split(",") if name.split())
    return names, match[2]


def choose_platform(release: Release, wanted: Platform) -> str:
    """The value for --platform: what was asked for, or for `auto` the release's own default; Unsupported otherwise.

    A default of kvm needs the device, and hangs for a minute without it: then the first that needs none.
    """
    if wanted is not Platform.AUTO:
        if wanted.value not in release.platforms:
            raise Unsupported(
                f"this runsc has no platform {wanted.value}",
                step="Confine",
                observed=f"release {release.version} with {', '.join(release.platforms)}",
                expected=wanted.value,
                hint='platform="auto" takes what the release has',
            )
        if wanted is Platform.KVM:
            _require_kvm()
        return wanted.value
    if release.default_platform == Platform.KVM and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        others = [name for name in release.platforms if name != Platform.KVM]
        if not others:
            _require_kvm()
        return others[0]
    return release.default_platform


def _require_kvm() -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise Unsupported(
            "the host has no usable /dev/kvm",
            step="Confine",
            path="/dev/kvm",
            observed="missing or not readable and writable",
            expected="a KVM device",
            hint='platform="auto"',
        )


def overlay(release: Release, writable: Writable | None, store: str = "") -> str | None:
    """The value for --overlay2, which is passed whatever the release's default, for it changed; None where there is no
    such flag, and so nothing but what it would have to ask for. Unsupported where the release lacks what is asked for.

    `writable` is None for a root that is read-only; `store` is the directory of a layer on disk.
    """
    if not release.has("overlay2"):
        if writable in (Writable.MEMORY, Writable.DISK):
            raise Unsupported(
                f"this runsc cannot keep a guest's writes in a layer ({writable})",
                step="Confine",
                observed=f"release {release.version} without --overlay2",
                expected="release 20221107 or later",
                hint="use a newer runsc, or leave the root read-only",
            )
        return None
    if writable is Writable.DISK:
        return f"root:dir={store}" if "dir=" in release.flags["overlay2"] else f"root:{store}"
    return "root:memory" if writable is Writable.MEMORY else "none"


def judge_network(release: Release, options: GVisorOciRunOptions, *, rootless: bool) -> None:
    """Unsupported when this release cannot have the network asked for; `rootless`: it starts only with that flag."""
    if options.network_mode is not NetworkMode.SANDBOX:
        return
    if options.runsc_rootless:
        raise Unsupported(
            "runsc has no sandbox network when rootless",
            step="Confine",
            observed="runsc_rootless=True",
            hint='leave runsc_rootless=True away, or take network="none" or network="host"',
            expected="a runsc that is not told to be rootless",
        )
    if rootless:
        raise Unsupported(
            "this runsc has no sandbox network in a locked user namespace",
            step="Confine",
            observed=f"release {release.version}: it runs its sandbox as nobody, an id that the namespace lacks",
            expected="a release that starts without --rootless, such as 20240729 or later",
            hint='use a newer runsc, or network="none" or network="host"',
        )


def judge_restore(release: Release, options: GVisorOciRunOptions, *, rootless: bool) -> None:
    """Unsupported when this release cannot restore a checkpoint; `rootless`: it starts only with that flag."""
    if options.runsc_rootless:
        raise Unsupported(
            "runsc restores no checkpoint when rootless",
            step="Confine",
            observed="runsc_rootless=True",
            hint="leave runsc_rootless=True away",
            expected="a runsc that is not told to be rootless",
        )
    if rootless:
        raise Unsupported(
            "this runsc cannot restore a checkpoint in a locked user namespace",
            step="Confine",
            observed=f"release {release.version}: it runs its sandbox as nobody, an id that the namespace lacks",
            expected="a release that starts without --rootless, such as 20240729 or later",
            hint="use a newer runsc",
        )
