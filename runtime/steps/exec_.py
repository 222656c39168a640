"""Exec: the confined child, or the calling process itself, becomes the staged image (gvisor.rs:374)."""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

from nucleus_gvisor.model.errors import ChildDied, ExecFailed, SafetyViolation, remedy
from nucleus_gvisor.runtime import _child, _linux
from nucleus_gvisor.runtime.options import Confinement
from nucleus_gvisor.runtime.paths import FileId
from nucleus_gvisor.runtime.steps.confine import Confined
from nucleus_gvisor.runtime.supervisor import Supervisor, threads


def in_child(confined: Confined, argv: list[bytes], env: dict[bytes, bytes]) -> dict[str, object]:
    """Tell the child to execute, and return the evidence that it did.

    End of file on the link, which is close-on-exec, says so; that the process executes the staged inode, or has
    ended as only a program can, confirms it. Raises ExecFailed when the kernel refused, ChildDied when the child
    cannot be shown to have executed. Spec: GVisorRuntime!Exec.
    """
    child = confined.child
    image: FileId = (confined.shown["image"][0], confined.shown["image"][1])
    child.tell("exec", argv, env)
    word, *rest = child.hear()
    if word == "executing":
        named = bool(rest[0])
        word, *rest = child.hear()
        if word == "exec failed":
            number, text = rest
            raise ExecFailed(
                "the image cannot be executed",
                step="Exec",
                observed=text,
                expected="the sealed image to be executed",
                hint=remedy(OSError(number, text)),
            ) from OSError(number, text)
        executable = child.executable()
        status = child.exit_status()
        if executable == image or (executable is None and _ended_as_a_program(child, status, named)):
            child.hang_up()
            return {"pid": child.pid, "image": list(image), "exe_seen": executable == image}
        if executable is not None:
            raise SafetyViolation("something else is executed", step="Exec", observed=executable, expected=image)
    status = child.await_exit_status()
    how = f"signal {status.si_status}" if status and status.si_code != os.CLD_EXITED else "it exited"
    raise ChildDied(
        "the child died before execve",
        step="Exec",
        observed=how,
        expected="that it executes runsc",
        hint="was it killed for memory? the kernel's log says so",
    )


def _ended_as_a_program(child: Supervisor, status: os.waitid_result | None, named: bool) -> bool:
    """Did a process that is gone already execute the image first: its name is no longer the one it had before.

    Reaped by the kernel, it has no name; then only a normal exit is sure, which nothing but the image could make.
    """
    name = child.name() if named else None
    if name is not None:
        return name != _child.WAITING
    ended = _linux.pidfd_exit_status(child.pidfd) if status is None else None
    return os.WIFEXITED(ended) if ended is not None else status is not None and status.si_code == os.CLD_EXITED


def join(confined: Confined, plan: Mapping[str, Any]) -> None:
    """Enter the namespaces that the child made and proved, for an in-place exec; the child is gone afterwards.

    Until here the caller was unrestricted, and whatever failed left it so. ExecFailed says, in `restricted`, when
    that is no longer true.
    """
    child = confined.child
    if threads() > 1:
        raise ExecFailed(
            "a process with several threads cannot be replaced in place",
            step="Exec",
            observed=f"{threads()} threads",
            hint="use spawn, or run in a process of its own",
            expected="one thread",
        )
    locked = plan["confinement"] == Confinement.MOUNT_LOCKED.value
    try:
        if locked:
            flags = _linux.CLONE_NEWUSER | _linux.CLONE_NEWNS | _linux.CLONE_NEWIPC
            if child.namespace("net") != os.readlink("/proc/self/ns/net"):
                flags |= _linux.CLONE_NEWNET
            _linux.setns(child.pidfd, flags)
            _linux.no_new_privs()
            if confined.shown["scope"] != "none":
                _linux.landlock_scope()
        elif plan["confinement"] == Confinement.LANDLOCK.value:
            _child.restrict(plan["allow"])
    except OSError as error:
        raise ExecFailed(
            "cannot enter the confinement", step="Exec", observed=str(error), expected="no error", hint=remedy(error)
        ) from error
    finally:
        child.end()
    if locked:
        told = {"mnt": confined.shown["mount_namespace"], "user": confined.shown["user_namespace"]}
        seen = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in told}
        if seen != told:
            raise SafetyViolation("entered other namespaces", step="Exec", observed=seen, expected=told)


def in_place(image: int, argv: list[bytes], env: dict[bytes, bytes]) -> NoReturn:
    """Become the image; only failure returns, as ExecFailed with `restricted`, after which the process must exit.

    Spec: GVisorRuntime!Exec.
    """
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    cwd = _linux.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Marked, not closed: a refused execve must find the caller's descriptors as they were.
        _linux.close_range(3, 0x7FFFFFFF, _linux.CLOSE_RANGE_CLOEXEC)
        _child.execute(image, argv, env)
    except OSError as error:
        for number, handler in before.items():
            if handler is not None:  # pragma: no branch - None is a C program's, which Python is a library of
                with suppress(OSError, ValueError):
                    signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with suppress(OSError):
            os.fchdir(cwd)
        failed = ExecFailed(
            "the image cannot be executed",
            step="Exec",
            observed=error.strerror,
            hint="this process has entered the confinement: it must exit",
            expected="the sealed image to be executed",
        )
        failed.restricted = True
        raise failed from error
    finally:
        _linux.close(cwd)
