"""The child as its parent sees it: started, heard, told, looked at, ended.

A caller with one thread forks. A caller with several starts a fresh interpreter, because a fork copies other
threads' locks in whatever state they are; it costs some milliseconds more, and the same code runs in it. So does one
whose system calls gevent has replaced. Where no interpreter is to be had (`interpreter`), it forks all the same.
"""

import errno
import marshal
import os
import select
import signal
from collections.abc import Mapping
from contextlib import suppress
from types import BuiltinFunctionType
from typing import Any

from nucleus_gvisor.model.errors import StepFailed
from nucleus_gvisor.runtime import _child, interpreter
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.paths import FileId, file_id

PATIENCE = 60.0
"""Seconds after which a child that says nothing is given up."""
_BOOT = interpreter.BOOT + "import _child; _child.fresh()"


class Supervisor:
    """One child process, from its start to the moment it is the image (or is gone)."""

    def __init__(self) -> None:
        self.pid: int = -1
        self.pidfd: int = -1
        self._ends: tuple[Any, ...] = ()
        self._mask: set[signal.Signals | int] | None = None

    @property
    def _link(self) -> Any:
        return self._ends[0]

    @classmethod
    def start(cls, plan: Mapping[str, Any], *, fresh: bool | None = None) -> "Supervisor":
        """Start a child on `plan`. `fresh` chooses the fresh interpreter; None: unless the caller `may_fork`."""
        if fresh is None:
            fresh = not may_fork()
        fresh = fresh and interpreter.find() is not None
        child = cls()
        linux.ledger().processes.append(child)
        try:
            # A line that makes something is the line that keeps it: whatever interrupts finds it in `child`.
            child._ends = linux.socketpair()
            # No signal of the caller's may run one of its handlers in the child.
            child._mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            link = child._ends[1].fileno()
            if fresh:
                child._spawn(plan, link)
            else:
                child.pid = interpreter.fork()
                if child.pid == 0:
                    _child.main(dict(plan), link)
            child._open_pidfd()
            if fresh:
                child._see_fresh()
            return child
        except OSError as error:
            made = child.pid > 0
            child.end()
            lacking = made and error.errno in (errno.ENOSYS, errno.EINVAL, errno.EPERM)
            raise StepFailed(
                "no child process",
                step="Confine",
                observed=str(error),
                hint="pidfds need Linux 5.4, and a seccomp filter that knows them" if lacking else "",
            ) from error
        finally:
            # Interrupted before it was in `main`, whose end is its own: never its caller's code.
            if child.pid == 0:  # pragma: no cover - the test that strikes every line takes the tracing from coverage
                os._exit(_child.FAILED)
            child._unmask()
            for end in child._ends[1:]:
                _close(end)

    def _unmask(self) -> None:
        if self._mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            self._mask = None

    def _spawn(self, plan: Mapping[str, Any], link: int) -> None:
        """The fresh interpreter."""
        program = interpreter.find()
        assert program is not None
        with (
            interpreter.library() as (library, fds),
            open(os.memfd_create("plan", os.MFD_CLOEXEC), "wb", buffering=0) as memory,
        ):
            text = marshal.dumps(dict(plan))
            while text:
                text = text[memory.write(text) :]
            keep = {0, 1, 2, link, memory.fileno(), *fds, *plan["stdio"], *plan["images"].values()}
            if plan["attendant"] is not None:
                keep.add(plan["attendant"])
            actions = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in sorted(keep)]
            argv = [program, "-I", "-S", "-c", _BOOT, library, str(memory.fileno()), str(link)]
            self.pid = os.posix_spawn(program, argv, {interpreter.MARK: "1"}, file_actions=actions)

    def _see_fresh(self) -> None:
        """Hear that it runs our code: whatever else was started must not be asked for the proof of a confinement."""
        _close(self._ends[1])  # so that its end is the link's
        if self.hear() != ("fresh",):
            raise ChildProcessError(errno.ECHILD, f"{interpreter.find()} was started, and did not run our code")

    def _open_pidfd(self) -> None:
        """Have the pidfd, and see that all works which is later relied on: a kernel or a filter may lack a part."""
        self.pidfd = os.pidfd_open(self.pid)
        try:
            signal.pidfd_send_signal(self.pidfd, 0)
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except (ProcessLookupError, ChildProcessError):
            pass  # it has ended, and the caller ignores SIGCHLD
        except OSError:
            linux.close(self.pidfd)
            self.pidfd = -1
            raise

    def hear(self) -> tuple[Any, ...]:
        """The child's next message; ("end",) when it closed the link by dying or by execve."""
        try:
            self._link.settimeout(PATIENCE)
            packet = self._link.recv(_child.MAX_PACKET)
        except TimeoutError:
            self.end()
            raise StepFailed(
                "the child does not answer", step="Confine", observed=f"silent for {PATIENCE:.0f} s"
            ) from None
        except ConnectionResetError:  # it died with our last word unread
            packet = b""
        return tuple(marshal.loads(packet)) if packet else ("end",)

    def tell(self, *word: Any) -> None:
        try:
            self._link.send(marshal.dumps(word))
        except (BrokenPipeError, ConnectionResetError):
            pass  # a dead child is heard of by `hear`
        except OSError as error:  # one that lives would be waited for
            raise StepFailed("the child cannot be told", step="Exec", observed=error.strerror) from error

    def hang_up(self) -> None:
        _close(self._link)

    def exit_status(self) -> os.waitid_result | None:
        """How it ended, without reaping it; None while it runs, and when nobody can know (SIGCHLD ignored)."""
        try:
            return os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return None

    def await_exit_status(self) -> os.waitid_result | None:
        """The same, once it has ended."""
        try:
            return os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return None

    def executable(self) -> FileId | None:
        """What it executes now, as the kernel has it; None when that can no longer be seen."""
        try:
            return file_id(os.stat(f"/proc/{self.pid}/exe"))
        except OSError:
            return None

    def name(self) -> bytes | None:
        """What the kernel calls it; a dead process keeps its name until it is reaped."""
        try:
            with open(f"/proc/{self.pid}/comm", "rb") as file:
                return file.read().strip()
        except OSError:
            return None

    def namespace(self, kind: str) -> str | None:
        try:
            return os.readlink(f"/proc/{self.pid}/ns/{kind}")
        except OSError:
            return None

    def end(self) -> None:
        """Kill and reap it; nothing happens when that has been done."""
        self._unmask()
        for end in self._ends:
            _close(end)
        if self.pidfd >= 0:
            try:
                linux.kill_with_all_below(self.pid, self.pidfd)
            except ProcessLookupError:
                pass  # it was waited for, and the number may be another's by now
            except OSError:
                with suppress(OSError):
                    os.kill(self.pid, signal.SIGKILL)  # nobody has waited for it: the number is still its own
            with suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
            linux.close(self.pidfd)
            self.pidfd = -1
        elif self.pid > 0:  # no pidfd could be had: nobody speaks to it any more, and then it ends
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        self.pid = -1


def _close(link: Any) -> None:
    if link.fileno() >= 0:
        linux.close(link.detach())


def may_fork() -> bool:
    """May a fork go on as the launch's child: of a process with one thread, whose system calls are Python's own. gevent
    puts others in their place, which wait for a loop that no fork has."""
    return threads() == 1 and all(
        isinstance(call, BuiltinFunctionType) for call in (os.fork, os.waitpid, getattr(select, "poll", None))
    )


def threads() -> int:
    """How many threads this process has, native ones included; they are not all Python's."""
    return len(os.listdir("/proc/self/task"))
