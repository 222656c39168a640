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
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from types import BuiltinFunctionType
from typing import Any

from nucleus_gvisor.model.errors import StepFailed, remedy
from nucleus_gvisor.runtime import _child, interpreter, orphans
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.descriptor import Descriptor, Kept
from nucleus_gvisor.runtime.paths import FileId, file_id

PATIENCE = 60.0
"""Seconds after which a child that says nothing is given up."""
_BOOT = interpreter.BOOT + "import _child; _child.fresh()"


class Supervisor:
    """One child process, from its start to the moment it is the image (or is gone)."""

    def __init__(self) -> None:
        self.pid: int = -1
        self.mark: int = 0
        """What its processes are told by when they become the caller's children; see `orphans`."""
        self._pidfd: Descriptor | None = None
        self._spare: Descriptor | None = None
        """Keeps a descriptor's number free for the pidfd, which is made when the child is there already."""
        self._ends: tuple[Any, ...] = ()
        self._mask: set[signal.Signals | int] | None = None

    @property
    def pidfd(self) -> int:
        """-1 as long as there is none, and once it was waited for."""
        return -1 if self._pidfd is None else self._pidfd.number

    @pidfd.setter
    def pidfd(self, fd: int) -> None:
        self._pidfd = Descriptor(fd)

    def use(self) -> AbstractContextManager[int]:
        """The pidfd, which stays open within; -1 when there is none any more."""
        return nullcontext(-1) if self._pidfd is None else self._pidfd.use()

    def forget(self) -> None:
        """It was waited for, and nobody has its number."""
        for fd in (self._pidfd, self._spare):
            if fd is not None:
                fd.close()
        self.pid = -1

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
            child._see_pidfds()
            child.mark = orphans.new_mark()
            plan = {**plan, "mark": child.mark}
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
            lacking = child.pid <= 0 and error.errno in (errno.ENOSYS, errno.EINVAL, errno.EPERM)
            child.end()
            raise StepFailed(
                "no child process",
                step="Confine",
                observed=str(error),
                hint="pidfds need Linux 5.4, and a seccomp filter that knows them" if lacking else remedy(error),
                expected="a process with a pidfd",
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
            kept = (*plan["images"].values(), *plan["said"].values())
            keep = {0, 1, 2, link, memory.fileno(), *fds, *plan["stdio"], *kept}
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

    def _see_pidfds(self) -> None:
        """See, before there is a child, that all works which is later relied on: a kernel or a filter may lack it."""
        self._spare = Descriptor()
        self._spare.owner = Kept(os.pidfd_open(os.getpid()))
        signal.pidfd_send_signal(self._spare.number, 0)
        with suppress(ChildProcessError):  # the right answer: nobody is a child of itself
            os.waitid(os.P_PIDFD, self._spare.number, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def _open_pidfd(self) -> None:
        """Have the pidfd, right after the child was made; ProcessLookupError when the number is a stranger's already.

        An application that reaps every child of its may have reaped ours, and a number is given out again once all
        others were.
        """
        if self._spare is not None:
            self._spare.close()
        self._pidfd = Descriptor()
        self._pidfd.owner = Kept(os.pidfd_open(self.pid))
        try:
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            # It has ended, and was reaped. SAFETY: one that lives and is no child of ours is somebody else.
            try:
                signal.pidfd_send_signal(self.pidfd, 0)
            except OSError:
                return
            self.forget()
            raise ProcessLookupError(errno.ESRCH, "the child ended at once, and its number is another's") from None

    def hear(self) -> tuple[Any, ...]:
        """The child's next message; ("end",) when it closed the link by dying or by execve."""
        try:
            self._link.settimeout(PATIENCE)
            packet = self._link.recv(_child.MAX_PACKET)
        except TimeoutError:
            self.end()
            raise StepFailed(
                "the child does not answer",
                step="Confine",
                observed=f"silent for {PATIENCE:.0f} s",
                expected="an answer",
                hint="launch again when the host is less busy",
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
            raise StepFailed(
                "the child cannot be told",
                step="Exec",
                observed=error.strerror,
                expected="no error",
                hint=remedy(error),
            ) from error

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
        """Kill and reap it, which can be done again, wherever it was interrupted."""
        self._unmask()
        for end in self._ends:
            _close(end)
        with self.use() as pidfd:
            if pidfd >= 0:
                # Where a filter that came later refuses the signal, one that is not the image yet ends by itself:
                # nobody speaks to it any more. SAFETY: never by its number, which another has once it was reaped.
                with suppress(OSError):
                    linux.kill_with_all_below(self.pid, pidfd)
                with suppress(ChildProcessError):
                    if orphans.await_end(pidfd, PATIENCE):
                        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            elif self.pid > 0:
                self._await_end_unseen()
        self.end_below()
        orphans.reap(self.mark, living=True)
        self.forget()

    def end_below(self) -> None:
        """End and reap what it left, once it has ended: see `orphans`."""
        if self.mark:
            orphans.reap(self.mark - 1, living=True)

    def _await_end_unseen(self) -> None:
        """Reap one whose pidfd could not be had, in the moments in which it ends.

        It was never waited for before, so the number is its own until it is reaped, here or by somebody else; and for
        long after that, for the kernel gives out all the others first. That is why this does not last, and never waits.
        """
        end = time.monotonic() + PATIENCE
        with suppress(ChildProcessError):
            while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG) is None and time.monotonic() < end:
                time.sleep(0.001)


def _close(link: Any) -> None:
    try:
        link.close()  # at once in one call; a second one does nothing
    except OSError as error:
        if error.errno == errno.EBADF:
            raise


def may_fork() -> bool:
    """May a fork go on as the launch's child: of a process with one thread, whose system calls are Python's own. gevent
    puts others in their place, which wait for a loop that no fork has."""
    return threads() == 1 and all(
        isinstance(call, BuiltinFunctionType) for call in (os.fork, os.waitpid, getattr(select, "poll", None))
    )


def threads() -> int:
    """How many threads this process has, native ones included; they are not all Python's."""
    return len(os.listdir("/proc/self/task"))
