"""The child as its parent sees it: started, heard, told, looked at, ended.

A caller with one thread forks. A caller with several starts a fresh interpreter, because a fork copies other
threads' locks in whatever state they are; it costs some milliseconds more, and the same code runs in it.
"""

import marshal
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nucleus_gvisor.model.errors import StepFailed
from nucleus_gvisor.runtime import _child
from nucleus_gvisor.runtime.paths import FileId, file_id

PATIENCE = 60.0
"""Seconds after which a child that says nothing is given up."""
_BOOT = "import sys; sys.path.append(sys.argv[3]); import _child; _child.fresh()"


class Supervisor:
    """One child process, from its start to the moment it is the image (or is gone)."""

    def __init__(self, pid: int, link: socket.socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._link = link

    @classmethod
    def start(cls, plan: Mapping[str, Any], *, fresh: bool | None = None) -> "Supervisor":
        """Start a child on `plan`. `fresh` chooses the fresh interpreter; None: whenever the caller has threads."""
        if fresh is None:
            fresh = threads() > 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # No signal of the caller's may run one of its handlers in the child.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = _fresh(plan, theirs.fileno()) if fresh else _fork(plan, theirs.fileno())
            return cls(pid, ours)
        except OSError as error:
            ours.close()
            raise StepFailed("no child process", step="Confine", observed=error.strerror or str(error)) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()

    def hear(self) -> tuple[Any, ...]:
        """The child's next message; ("end",) when it closed the link by dying or by execve."""
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        if not poll.poll(PATIENCE * 1000):
            self.end()
            raise StepFailed("the child does not answer", step="Confine", observed=f"silent for {PATIENCE:.0f} s")
        try:
            packet = self._link.recv(_child.MAX_PACKET)
        except ConnectionResetError:  # it died with our last word unread
            packet = b""
        return tuple(marshal.loads(packet)) if packet else ("end",)

    def tell(self, *word: Any) -> None:
        with suppress(OSError):  # a dead child is heard of by `hear`
            self._link.send(marshal.dumps(word))

    def hang_up(self) -> None:
        self._link.close()

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
        self._link.close()
        if self.pidfd >= 0:
            with suppress(OSError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
            os.close(self.pidfd)
            self.pidfd = -1


def threads() -> int:
    """How many threads this process has, native ones included; they are not all Python's."""
    return len(os.listdir("/proc/self/task"))


def _fork(plan: Mapping[str, Any], link: int) -> int:
    pid = os.fork()
    if pid == 0:
        _child.main(dict(plan), link)
    return pid


def _fresh(plan: Mapping[str, Any], link: int) -> int:
    if not sys.executable:
        raise FileNotFoundError(2, "this program has several threads and no Python interpreter to start")
    memory = os.memfd_create("plan", os.MFD_CLOEXEC)
    try:
        text = marshal.dumps(dict(plan))
        while text:
            text = text[os.write(memory, text) :]
        keep = {0, 1, 2, link, memory, *plan["stdio"], *plan["images"].values()}
        actions = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in sorted(keep)]
        folder = str(Path(_child.__file__).parent)
        argv = [sys.executable, "-I", "-S", "-c", _BOOT, str(memory), str(link), folder]
        return os.posix_spawn(sys.executable, argv, {}, file_actions=actions)
    finally:
        os.close(memory)
