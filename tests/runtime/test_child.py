"""The child and the attendant beside it by themselves: what can go wrong in them, and what its parent makes of it."""

import errno
import marshal
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nucleus_gvisor.model.errors import ChildDied, StepFailed
from nucleus_gvisor.runtime import _child, interpreter
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.steps import exec_
from nucleus_gvisor.runtime.steps.exec_ import _ended_as_a_program
from nucleus_gvisor.runtime.supervisor import Supervisor
from tests.support.forks import code, forked, no_child, pair


def supervised(pid: int) -> Supervisor:
    """What a parent has of the child `pid`."""
    child = Supervisor()
    child.pid, child.pidfd = pid, os.pidfd_open(pid)
    return child


@contextmanager
def sleeping() -> Iterator[Supervisor]:
    """A child that sleeps."""
    child = supervised(forked(signal.pause))
    try:
        yield child
    finally:
        child.end()


# ---- the child ----


def test_a_child_whose_parent_is_gone_ends() -> None:
    """A parent that died before it could be asked for a signal is known by its number; nothing is said or done."""
    with pair() as (ours, theirs):
        plan = {"stdio": [0, 1, 2], "die_with_parent": True, "parent": 1}
        assert code(forked(lambda: _child.main(plan, theirs.fileno()))) == _child.FAILED
        theirs.close()
        assert ours.recv(1) == b""


def test_a_child_whose_parent_hangs_up_executes_nothing() -> None:
    """The end of the link is no word."""
    with pair() as (ours, theirs):

        def body() -> None:
            ours.close()
            _child._obey(theirs.fileno(), -1, {})

        pid = forked(body)
        ours.close()
        assert code(pid) == 0


def in_new_mounts(then: Callable[[], None]) -> None:
    """Run `then` in a private mount namespace that is not locked."""
    if _child.privileged():
        linux.unshare(linux.CLONE_NEWNS)
    else:
        _child.enter_user_namespace(linux.CLONE_NEWNS)
    linux.mount_setattr(linux.AT_FDCWD, b"/", propagation=linux.MS_PRIVATE, recursive=True)
    then()


def refused(plan: dict[str, Any]) -> str:
    """What the proof finds missing."""
    with pytest.raises(_child.Refused) as caught:
        _child._prove(plan)
    kind, what, _, text = caught.value.args
    return f"{kind}: {what} {text}"


def test_the_proof_finds_what_is_missing() -> None:
    """Where privileges can be gained, a host program answers anything but EACCES, flags can be cleared again, or
    files, processes or sockets outside can be reached."""

    def unlocked() -> None:
        plan: dict[str, Any] = {"canaries": [], "opened": [], "scoped": [], "parent": 1, "place": b"/nowhere"}
        assert refused(plan) == "proof: no_new_privs is not set"
        linux.no_new_privs()
        assert refused(plan) == "proof: undo noexec of / could be cleared from inside"
        told = "proof: /no/such/program was not refused by the confinement"
        assert refused(plan | {"canaries": [[b"/no/such/program"]], "opened": [None]}) == told
        for way in (b"/bin/true", b"/proc/%d/root/bin/true" % os.getpid()):
            with pytest.raises(_child.Refused, match="a file of the host can be reached"):
                _child._out_of_reach(way)
        with pytest.raises(_child.Refused, match="can be signalled"):
            _child._no_signal(os.getpid())
        listener = linux.unix_socket()
        listener.bind("")
        listener.listen(1)
        with pytest.raises(_child.Refused, match="can be connected to"):
            _child._no_connection(listener.getsockname())

    assert code(forked(lambda: in_new_mounts(unlocked))) == 0


def test_mount_points_below_each_other() -> None:
    """What is there is no obstacle: a bind below another, or the same place twice."""

    def lay_out() -> None:
        tree = linux.new_tmpfs(0, mode="0755", size="64k")
        _child._mount_points(tree, [("a", True), ("a/b/file", False), ("/a/b", True), ("a", True)])
        place = os.open("a/b", _child.DIRECTORY, dir_fd=tree)
        assert os.listdir(os.open(".", os.O_RDONLY, dir_fd=place)) == ["file"]

    assert code(forked(lambda: in_new_mounts(lay_out))) == 0


def test_mount_points_with_odd_names(base: Path) -> None:
    """A space, or a byte that is no text, is written in octal there; what lies below such a place is ours."""

    def lay_out() -> None:
        for name in (b"odd \xff", b"odd"):
            place = os.fsencode(base) + b"/" + name
            os.makedirs(place + b"/below")
            before, foreign = _child._mounts(place)
            subprocess.run([b"mount", b"-t", b"tmpfs", b"none", place + b"/below"], check=True)
            assert _child._mounts(place) == (before, foreign)
            assert _child._mounts(b"/elsewhere") == (before + 1, [*foreign, place + b"/below"])

    assert code(forked(lambda: in_new_mounts(lay_out))) == 0


# ---- those whom it asks ----


def ask(*questions: list[bytes], image: str = "/bin/sleep") -> list[tuple[int, bytes]]:
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    return _child.ask(fd, list(questions), {})


def test_who_is_asked_does_not_outlive_a_failure() -> None:
    """Without descriptors for the second question the first is not left running."""

    def body() -> None:
        used = max(map(int, os.listdir("/proc/self/fd")))
        # The image, one pipe whose writing end is closed again, and one end of the next.
        linux.close_range(3, used)
        resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6))
        with pytest.raises(OSError) as caught:
            ask([b"sleep", b"600"], [b"sleep", b"600"])
        assert caught.value.errno == errno.EMFILE and no_child()

    assert code(forked(body)) == 0


def test_who_does_not_answer_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is silent with its streams open, or closed; and one that never stops talking has its answer cut."""
    monkeypatch.setattr(_child, "ANSWER_SECONDS", 0.3)

    def body() -> None:
        assert ask([b"sleep", b"600"]) == [(signal.SIGKILL, b"")]
        [(status, output)] = ask([b"yes"], image="/usr/bin/yes")
        assert os.WIFSIGNALED(status) and _child.ANSWER_LIMIT <= len(output) < 2 * _child.ANSWER_LIMIT
        assert no_child()

    assert code(forked(body)) == 0


def test_whom_the_kernel_reaps_cannot_be_asked() -> None:
    """That is why the child does not ignore SIGCHLD; no answer is made up."""

    def body() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with pytest.raises((ChildProcessError, ProcessLookupError)):
            ask([b"sleep", b"0"])

    assert code(forked(body)) == 0


# ---- its parent ----


def test_a_word_that_is_too_long() -> None:
    """What does not fit into a packet is an error: the child, which hears nothing, would be waited for."""
    child = Supervisor()
    child._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with pytest.raises(StepFailed, match="cannot be told") as caught:
        child.tell("exec", [b"x" * (64 << 20)], {})
    assert caught.value.errno == errno.EMSGSIZE
    child.end()


def test_a_child_that_is_gone() -> None:
    """Somebody else has waited for it: nothing is known of it, and ending it again reaches nobody."""
    with sleeping() as child:
        assert child.name() and child.namespace("mnt") == os.readlink("/proc/self/ns/mnt")
        assert child.exit_status() is None
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        assert (child.name(), child.namespace("mnt"), child.executable()) == (None, None, None)
        assert (child.exit_status(), child.await_exit_status()) == (None, None)


def test_a_number_is_not_killed_when_its_process_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another process's by now. Without pidfds one that nobody speaks to ends by itself."""
    killed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda pid, _: killed.append(pid))
        child = supervised(forked(lambda: 0))
        os.waitpid(child.pid, 0)
        child.end()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def listen() -> None:
            ours.close()
            theirs.recv(1)

        child = supervised(pid := forked(listen))
        theirs.close()
        child._ends = (ours,)

        def denied(*_: object) -> None:
            raise PermissionError(errno.EPERM, "a filter that came later")

        patch.setattr("_signal.pidfd_send_signal", denied)
        child.end()
    assert killed == []
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


def test_a_child_that_ends_before_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reaped by the kernel right after its pidfd was made: its end is told later, by its silence."""
    child = Supervisor()
    child.pid = forked(signal.pause)
    send = signal.pidfd_send_signal

    def after_its_end(pidfd: int, number: int) -> None:
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        send(pidfd, number)

    monkeypatch.setattr(signal, "pidfd_send_signal", after_its_end)
    child._open_pidfd()
    assert child.pidfd >= 0 and child.exit_status() is None
    monkeypatch.undo()
    child.end()


@pytest.mark.parametrize(("end", "ran"), [(lambda: 3, True), (lambda: os.kill(os.getpid(), signal.SIGKILL), False)])
@pytest.mark.parametrize("reaped", [False, True])
def test_how_a_nameless_process_ended_says_whether_it_was_a_program(
    end: Callable[[], object], ran: bool, reaped: bool
) -> None:
    """Only what it executed can have exited; a signal may have come before. Where none can tell, it did not."""
    child = supervised(forked(end))
    status = child.await_exit_status()
    if reaped:
        os.waitpid(child.pid, 0)
        ran = ran and linux.pidfd_exit_status(child.pidfd) is not None
        status = None
    assert _ended_as_a_program(child, status, named=False) is ran
    child.end()


@pytest.mark.parametrize(("name", "ran"), [(_child.WAITING, False), (b"runsc", True)])
def test_a_name_says_whether_a_process_was_a_program(name: bytes, ran: bool) -> None:
    """One that ended with the name that it had before execve has not executed, whatever code it ended with."""

    def body() -> None:
        linux.set_name(name)

    child = supervised(forked(body))
    status = child.await_exit_status()
    assert status is not None and status.si_code == os.CLD_EXITED
    assert _ended_as_a_program(child, status, named=True) is ran
    child.end()


def test_a_child_that_dies_before_it_is_the_image() -> None:
    """It has said that it executes, and nobody can see that it did."""
    program = subprocess.Popen(["sleep", "600"])
    child = Supervisor()
    child.pid, child.pidfd = program.pid, os.pidfd_open(program.pid)
    program.kill()
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child._ends = (ours,)
    theirs.send(marshal.dumps(("executing", False)))
    theirs.close()
    with pytest.raises(ChildDied) as caught:
        exec_.in_child(SimpleNamespace(child=child, shown={"image": [0, 0]}), [], {})  # type: ignore[arg-type]
    assert caught.value.observed == "signal 9"
    child.end()
    program.wait()


def test_a_fresh_interpreter_imports_little() -> None:
    """Each launch of a process with threads waits for it, and each living sandbox keeps it, as its companion."""
    with interpreter.library() as (folder, _):
        code = "import sys; sys.path.append(sys.argv[1]); import _child; print(*sys.modules)"
        command = [sys.executable, "-I", "-S", "-c", code, folder]
        modules = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert "_child" in modules
    assert not {"collections", "enum", "re", "signal", "socket", "typing"} & set(modules)
