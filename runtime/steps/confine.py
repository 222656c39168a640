"""Confine: start the child, let it confine itself and prove it, and judge what it says (gvisor.rs:354, 893).

The parent stays as it is. What the child does, in order, is in `_child`.
"""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nucleus_gvisor.model.errors import (
    ConfineFailed,
    Incompatible,
    KeptChanged,
    LaunchError,
    NotProved,
    SafetyViolation,
    StepFailed,
    remedy,
)
from nucleus_gvisor.runtime import _child, _linux, answers, interpreter, runsc
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.ids import Ranges, map_subordinate
from nucleus_gvisor.runtime.options import Confinement, Enforcement, GVisorOciRunOptions, NetworkMode, Platform, Program
from nucleus_gvisor.runtime.supervisor import Supervisor

CANARIES = (b"/bin/true", b"/usr/bin/su", b"/bin/sh")
"""Host programs that must be refused; the first is also what a launch becomes, harmlessly, if it is not."""


DEVICES = (b"/dev/null", b"/dev/zero", b"/dev/full", b"/dev/random", b"/dev/urandom", b"/dev/tty")
"""All that the supervisor keeps of /dev; /dev/kvm where that platform may be used."""


@dataclass(frozen=True)
class Confined:
    """The evidence of Confine: the child that waits to execute, what it showed, and what the binary answered."""

    child: Supervisor
    shown: Mapping[str, Any]
    release: runsc.Release | None
    platform: str | None
    rootless: bool
    """Does this runsc start here only with `--rootless`."""


def canaries() -> list[list[bytes]]:
    """Argument vectors of host programs that exist; an interpreter where none of the usual ones does.

    StepFailed where there is none either: whatever else is there might do something, should it not be refused.
    """
    if found := [[path, b"-c", b":"] for path in CANARIES if os.access(path, os.X_OK)]:
        return found
    if (program := interpreter.find()) is None:
        raise StepFailed(
            "no harmless host program to prove the confinement with",
            step="Confine",
            observed="none of " + ", ".join(map(os.fsdecode, CANARIES)) + ", and no Python interpreter",
            expected="one of them",
            hint="have /bin/true, or run unconfined with enforcement off",
        )
    return [[os.fsencode(os.path.realpath(program)), b"-I", b"-S", b"-c", b""]]


def start(
    plan: dict[str, Any],
    digests: Mapping[str, str],
    options: GVisorOciRunOptions,
    *,
    fresh: bool | None,
    identity: Identity | None = None,
    asker: str = "",
) -> Confined:
    """A child that is confined as `plan` says and has answered for its image, and for what is staged beside it.

    With `identity` it need not be asked what an earlier process of that caller's has asked; with an `asker` nothing
    counts but what the same one has.

    Raises ConfineFailed, NotProved, Incompatible, NotRunsc, Unsupported, SafetyViolation or StepFailed; then no
    child is left. Spec: GVisorRuntime!ConfineLocked, ConfineLandlock, ConfineSkipped.
    """
    locked = plan["confinement"] == Confinement.MOUNT_LOCKED.value
    questions = runsc.questions(digests)
    staged = asker + " ".join(f"{name}={digest}" for name, digest in sorted(digests.items()))
    question = answers.Question(staged, len(questions), plan["confinement"], bool(plan["ranges"]), os.geteuid())
    plain = options.program is Program.PLAIN
    told = None if plain else answers.recall(question, identity if locked else None)
    asked = told is None and not plain
    plan["questions"] = questions if asked else []
    plan["trial"] = runsc.trial_arguments(plan["place"]) if asked and locked else None
    child = Supervisor.start(plan, fresh=fresh)
    try:
        word, *rest = child.hear()
        if word == "map":
            ranges = plan["ranges"]
            child.tell("mapped", map_subordinate(child.pid, ranges) if ranges else map_all_ids(child.pid))
            word, *rest = child.hear()
        if word != "confined":
            raise _refusal(child, plan, word, rest)
        shown, said = rest
        if plain:
            return Confined(child, shown, None, None, False)
        if told is not None and told.ids != shown.get("ids"):  # it was asked where there were others
            answers.forget(identity)
            child.end()
            return start(plan, digests, options, fresh=fresh, identity=identity, asker=asker)
        if told is None:
            told = answers.Told(shown.get("ids"), tuple(said))
        release = runsc.read_answers(list(told.answers))
        answers.remember(question, told, identity if locked and asked else None)
        runsc.judge_set(release, told.answers, digests)
        rootless = locked and runsc.needs_rootless(told.answers[-1][1])
        if len(digests) == 1:
            runsc.judge_alone(release, told.answers[-1][1] if locked else b"")
        runsc.judge_network(release, options, rootless=rootless)
        return Confined(child, shown, release, runsc.choose_platform(release, options.platform), rootless)
    except BaseException:
        child.end()
        raise


def map_all_ids(pid: int) -> bool:
    """Give the user namespace of child `pid`, new and still without ids, all that this one has, each as itself.

    False when this process may not, and nothing has been done: it needs CAP_SETUID, CAP_SETGID and, from Linux 5.12 on,
    CAP_SETFCAP (user_namespaces(7)).
    """
    done = False
    try:
        for kind in ("uid", "gid"):
            with open(f"/proc/self/{kind}_map", "rb") as file:
                ranges = [line.split() for line in file]
            # The number is its own: nobody but us waits for it.
            with open(f"/proc/{pid}/{kind}_map", "wb", buffering=0) as file:
                file.write(b"".join(b"%s %s %s\n" % (inside, inside, count) for inside, _, count in ranges))
            done = True
    except OSError as error:
        if done:
            raise StepFailed(
                "ids cannot be mapped",
                step="Confine",
                observed=str(error),
                expected="a map that the kernel takes",
                hint=remedy(error),
            ) from error
    return done


def refuse_incompatible(options: GVisorOciRunOptions) -> None:
    """Incompatible for Landlock around runsc: any ruleset that handles a file-system right forbids mount(2)."""
    if options.confinement is Confinement.LANDLOCK and options.program is Program.RUNSC:
        raise Incompatible(
            "runsc cannot start under Landlock",
            step="Confine",
            observed="a process under any Landlock file-system ruleset is denied mount and pivot_root, and runsc must"
            " mount (landlock(7)); the launch would end with 'waiting for sandbox to start: EOF'",
            expected="confinement mount-locked",
            hint='confinement="mount-locked"',
        )
    if options.confinement is Confinement.LANDLOCK and not _linux.landlock_abi():
        raise ConfineFailed(
            "the kernel has no Landlock",
            step="Confine",
            expected="Linux 5.13 with lsm=landlock",
            observed="none",
            hint='confinement="mount-locked" needs none',
        )


def look_again(confined: Confined, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Check through /proc what the child said of itself; SafetyViolation when the kernel says otherwise."""
    child, shown = confined.child, confined.shown
    if plan["confinement"] != Confinement.MOUNT_LOCKED.value:
        return {}
    seen = {kind: child.namespace(kind) for kind in ("mnt", "user")}
    told = {"mnt": shown["mount_namespace"], "user": shown["user_namespace"]}
    ours = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in seen}
    if None in seen.values():
        raise StepFailed(
            "the child cannot be looked at", step="Confine", observed=seen, hint="was it killed?", expected=told
        )
    if seen != told or any(seen[kind] == ours[kind] for kind in seen):
        raise SafetyViolation(
            "the child is not in the namespaces that it says", step="Confine", observed=seen, expected=told
        )
    return {"seen_from_outside": seen}


def _refusal(child: Supervisor, plan: Mapping[str, Any], word: str, rest: list[Any]) -> LaunchError:
    """What the child's message means."""
    if word == "end":
        status = child.await_exit_status()
        if status is not None and status.si_code != os.CLD_EXITED:
            return StepFailed(
                "the child was killed",
                step="Confine",
                observed=f"signal {status.si_status}",
                expected="an answer",
                hint="was it killed for memory? the kernel's log says so",
            )
        return NotProved(
            "a host program could be executed from inside",
            step="Confine",
            path=plan["canaries"][0][0] if plan["canaries"] else None,
            observed="it ran",
            expected="EACCES",
        )
    kind, what, number, text = rest
    if kind == "proof":
        return NotProved(
            "the confinement does not hold",
            step="Confine",
            path=what,
            observed=text,
            expected="that nothing outside can be reached",
        )
    if kind == "changed":
        return SafetyViolation(
            "changed after it was judged", step="Confine", path=what, observed=text, expected="what was judged"
        )
    if kind == "kept":
        return KeptChanged(
            "a kept file was changed before it was bound",
            step="Confine",
            path=what,
            observed=text,
            expected="the file that was compared a moment ago",
            hint="launch again: it is made anew",
        )
    if kind == "bind":
        return StepFailed(
            "cannot be shown to the guest",
            step="Confine",
            path=what,
            observed=text,
            hint="copy it to a file system that is not mounted noexec or nosuid",
            expected="a path that can be mounted for the guest",
        )
    if kind == "points":
        return StepFailed(
            "a mount has no place in the rootfs, and none can be made beside it",
            step="Confine",
            path=what,
            observed=f"missing, and overlayfs: {text}",
            expected="Linux 5.11 with overlayfs, or the mount point",
            hint='make it in the rootfs; etc="none" asks for no file of /etc',
        )
    if kind == "defect":
        return StepFailed(
            "the child failed",
            step="Confine",
            observed=text,
            expected="no exception",
            hint="report it: it is a defect of this library",
        )
    hint = "see `nucleus-gvisor doctor`"
    if "unshare" in text:
        hint = (
            "user namespaces are denied: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, or the"
            " caller's own container"
        )
    if what == _child.SCOPE:
        hint = "the scope of signals needs Linux 6.12 with Landlock: see `nucleus-gvisor doctor`, or do not require it"
    elif number == errno.ENOSYS:
        hint = "the kernel is too old, or a seccomp filter hides the call: see `nucleus-gvisor doctor`"
    error = ConfineFailed(
        f"cannot confine: {what}",
        step="Confine",
        observed=text,
        hint=hint,
        expected="a kernel and a host that permit it",
    )
    error.__cause__ = OSError(number, text)
    return error


def plan(
    options: GVisorOciRunOptions,
    *,
    confinement: Confinement | None,
    images: dict[str, int],
    staged_set: bool,
    bound: Mapping[str, tuple[bytes, tuple[int, ...], str]],
    place: bytes,
    place_identity: tuple[int, int],
    binds: list[tuple[bytes, tuple[int, int], str, bool, bool]],
    skeleton: list[tuple[str, bool]] | None,
    missing: list[tuple[str, bool]],
    fill: dict[str, tuple[int, bytes]],
    covers: list[tuple[str, bytes]],
    config: bytes,
    allow: list[tuple[bytes, tuple[int, int]]],
    stdio: tuple[int, int, int],
    die_with_parent: bool,
    host_root: bool,
    attendant: int | None,
    lives: bool,
    links: dict[str, str],
    trees: list[tuple[str, dict[str, tuple[int, bytes]], dict[str, str], list[tuple[str, bool]]]],
    said: Mapping[str, int],
    image: list[tuple[bytes, tuple[int, int], str]],
    store: bool,
    ranges: Ranges | None,
    secrets: list[tuple[bytes, int]],
    copies: list[tuple[str, int, int]],
) -> dict[str, Any]:
    """The child's plan as marshal data, every key that `_child` reads."""
    return {
        "confinement": confinement.value if confinement else None,
        "images": images,
        "set": staged_set,
        "bound": dict(bound),
        "place": place,
        "place_identity": place_identity,
        "binds": binds,
        "skeleton": skeleton,
        "missing": missing,
        "fill": fill,
        "covers": covers,
        "config": config,
        "network": options.network_mode is NetworkMode.SANDBOX,
        "allow": allow,
        "canaries": canaries() if confinement else [],
        "env": runsc.environment(place + b"/runtime"),
        "stdio": list(stdio),
        "die_with_parent": die_with_parent,
        "host_root": host_root,
        "devices": [*DEVICES, *([b"/dev/kvm"] if options.platform in (Platform.KVM, Platform.AUTO) else [])],
        "parent": os.getpid(),
        "attendant": attendant,
        "lives": lives,
        "links": links,
        "trees": trees,
        "said": dict(said),
        "image": image,
        "signal_scope": options.signal_scope is Enforcement.REQUIRED,
        "store": store,
        "ranges": ranges,
        "secrets": secrets,
        "copies": copies,
        "questions": [],
        "trial": None,
    }


def lay_out_on_disk(directory: int, child_plan: dict[str, Any]) -> None:
    """What the child lays out on its private tmpfs, in the container's own directory: for the other confinements."""
    try:
        _child.lay_out(directory, child_plan)
    except OSError as error:
        raise StepFailed(
            "cannot lay out the container's directory",
            step="Confine",
            path=child_plan["place"],
            observed=error.strerror,
            expected="no error",
            hint=remedy(error),
        ) from error
