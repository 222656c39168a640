"""A bundle's hooks, which the launch runs itself: programs of the host's, on the host, as the caller.

runsc is told of none: it would look for them where the host's programs cannot be executed. A hook's path is judged as
runsc's own is, when the bundle is: what only root and the caller can change, opened once, executed by that descriptor.
It gets the container's state (OCI runtime-spec, State) on standard input, the environment that it asks for and nothing
else of the caller's, and a session of its own, which is ended with it when its time is up.

    prestart, createRuntime   before the guest's supervisor executes; a failure is the launch's, and nothing runs
    poststart                 once the guest runs; a failure ends the sandbox
    poststop                  once it has ended and its directories are gone, or the launch has failed after the first
                              of the above; a failure is told, and the others run

A script is executed as `/proc/PID/fd/N`, which is how its interpreter opens it, and what it sees as its own name. Its
interpreter is judged too.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nucleus_gvisor.model.errors import BadBundle, LaunchError
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime import elf
from nucleus_gvisor.runtime.bundle import OciBundle
from nucleus_gvisor.runtime.errors import HookFailed
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import Walk
from nucleus_gvisor.runtime.steps import resolve
from nucleus_gvisor.runtime.steps.resolve import Snapshot

PATIENCE = 60.0
"""Seconds that a hook without a timeout of its own may take: one that hangs must not hold a launch for ever."""
MAX_SAID = 2000
"""Bytes that an error quotes of what a hook wrote to standard error."""
ROUNDS = 20
"""How often what is left of a session is looked for; who forks faster than it is killed outlives that."""
_HEAD = 256  # as much of a script as the kernel reads, BINPRM_BUF_SIZE
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True)
class Hook:
    """One hook that was judged, and is held open."""

    name: str
    """As `prestart[0]`."""
    path: bytes
    fd: int
    snapshot: Snapshot
    args: tuple[str, ...]
    """With the word for the program itself; where the bundle has none, its path."""
    env: dict[bytes, bytes]
    timeout: float

    @property
    def shown(self) -> dict[str, str]:
        return {"hook": self.name, "path": os.fsdecode(self.path).encode("utf-8", "backslashreplace").decode()}


class Hooks:
    """The hooks of one launch, and the container's state as they are told it."""

    def __init__(self, hooks: Sequence[Hook], container_id: str, bundle: OciBundle) -> None:
        self._hooks: tuple[Hook, ...] = tuple(hooks)
        config = bundle.config
        self._state: dict[str, Any] = {
            "ociVersion": config["ociVersion"],
            "id": container_id,
            "bundle": "" if bundle.bundle_path is None else os.fspath(bundle.bundle_path),
            "annotations": config.get("annotations") or {},
        }
        self._begun: bool = False
        self._left: list[Hook] = [*self._of("poststart", "createRuntime", "prestart"), *self._of("poststop")[::-1]]
        """Those held open. Who takes one out closes it, and nobody else; poststop come out first, in their order."""
        self.problems: list[HookFailed] = []
        """What poststop hooks failed with."""

    def __bool__(self) -> bool:
        return bool(self._hooks)

    @property
    def shown(self) -> list[dict[str, str]]:
        return [hook.shown for hook in self._hooks]

    def create(self, pid: int) -> list[dict[str, str]]:
        """Run prestart and createRuntime for supervisor `pid`, which waits; what was run. HookFailed for the first."""
        self._begun = True
        mine = self._of("prestart", "createRuntime")
        for hook in mine:
            _run(hook, {**self._state, "status": "creating", "pid": pid})
        return [hook.shown for hook in mine]

    @property
    def awaits_start(self) -> bool:
        """Is there a poststart hook."""
        return bool(self._of("poststart"))

    def start(self, pid: int) -> None:
        """Run poststart; HookFailed for the first that fails."""
        for hook in self._of("poststart"):
            _run(hook, {**self._state, "status": "running", "pid": pid})

    def stop(self) -> None:
        """Run poststop, unless nothing had begun, and close all; `problems` has their failures.

        Each runs once at most: an interrupted stop goes on after the one that was interrupted, when it is done again.
        """
        while self._left:
            try:
                hook = self._left.pop()
            except IndexError:  # pragma: no cover - another thread was faster, between these two lines
                return
            try:
                if self._begun and hook.name.startswith("poststop["):
                    _run(hook, {**self._state, "status": "stopped"})
            except HookFailed as error:
                self.problems.append(error)
            finally:
                close((hook,))

    def _of(self, *kinds: str) -> list[Hook]:
        return [hook for kind in kinds for hook in self._hooks if hook.name.partition("[")[0] == kind]


def close(hooks: Iterable[Hook]) -> None:
    for hook in hooks:
        with suppress(OSError):
            linux.close(hook.fd)


# ---- judging ----


def judge(container_id: str, bundle: OciBundle, identity: Identity) -> Hooks:
    """The bundle's hooks, each opened once and judged; BadBundle for one that is not sound."""
    found = list[Hook]()
    try:
        for name, hook in bundle.hooks:
            found.append(_judged(name, hook, identity))
        return Hooks(found, container_id, bundle)
    except BaseException:
        close(found)
        raise


def _judged(name: str, hook: dict[str, Any], identity: Identity) -> Hook:
    path = os.fsencode(hook["path"])
    try:
        fd, real = _opened(path, identity)
        try:
            head = os.pread(fd, _HEAD, 0)
            if head.startswith(b"#!"):
                linux.close(_opened(_interpreter(head, path), identity)[0])
            elif problem := elf.fault(fd, os.fstat(fd).st_size):
                raise BadBundle(
                    "neither a program nor a script",
                    path=path,
                    observed=problem,
                    expected="an ELF executable, or a script that begins with #!",
                    hint="name a program of this machine in the bundle's hooks",
                )
            args = tuple(hook.get("args") or [hook["path"]])
            pairs = (os.fsencode(entry).partition(b"=") for entry in hook.get("env") or [])
            env = {variable: value for variable, _, value in pairs}
            return Hook(name, real, fd, Snapshot.of(fd), args, env, hook.get("timeout") or PATIENCE)
        except BaseException:
            linux.close(fd)
            raise
    except LaunchError as error:
        raise BadBundle(
            f"hooks.{name} refused: {error.message.removeprefix('refused: ')}",
            step="Prepare",
            path=error.path or path,
            observed=error.observed,
            expected=error.expected or "a program that only root and the caller can change",
            hint="a hook's program, and each directory above it, belongs to root or the caller: chown, chmod go-w",
        ) from error.__cause__


def _interpreter(head: bytes, path: bytes) -> bytes:
    """What a script's first line names."""
    line, newline, _ = head.removeprefix(b"#!").partition(b"\n")
    words = line.split()
    if not newline or not words or not words[0].startswith(b"/"):
        raise BadBundle(
            "a script without an interpreter",
            path=path,
            observed=line[:80],
            expected="#!/ABSOLUTE/PATH",
            hint="begin the script with #! and its interpreter's path",
        )
    return words[0]


def _opened(path: bytes, identity: Identity) -> tuple[int, bytes]:
    """A readable descriptor of the program at `path`, every directory and link on the way judged; its real path."""
    found = Walk(identity).to(path)
    try:
        fd = resolve._open_regular(found)
        try:
            # In a user namespace root's files have no owner that can be told from anyone's, but where only root writes;
            # so have the directories above the caller's own, which is its own all the same. A hook has no pin.
            status = os.fstat(fd)
            known = found.path.startswith(b"/usr/") or status.st_uid != identity.unmapped
            resolve._judge_file(fd, status, found, identity, pinned=False, system=known)
        except BaseException:
            linux.close(fd)
            raise
        return fd, found.path
    finally:
        linux.close(found.parent)


# ---- running ----


def _run(hook: Hook, state: dict[str, Any]) -> None:
    """Run it to its end; HookFailed unless it ends in time, and with 0."""
    if not Snapshot.of(hook.fd).unwritten_since(hook.snapshot):
        raise _failed(hook, "another size or time than when it was judged", "an untouched program")
    running = _Running(hook, json.dumps(state).encode())
    linux.ledger().processes.append(running)
    try:
        running.start()
        in_time = running.wait(time.monotonic() + hook.timeout)
        if not in_time:
            raise _failed(hook, f"it ran for longer than {hook.timeout:g} s, and was ended", "an end in time")
        code = running.reap()
    finally:
        running.end()
        linux.ledger().processes.remove(running)
    if code is None:
        raise _failed(hook, "another part of this program waited for it, so that its end is unknown", "exit code 0")
    if code:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        said = running.said.strip()
        text = f"{how}: {os.fsdecode(said)}" if said else how
        raise _failed(hook, text, "exit code 0")


def _failed(hook: Hook, observed: str, expected: str) -> HookFailed:
    return HookFailed(
        f"hooks.{hook.name} failed",
        step="Exec",
        path=hook.path,
        observed=observed,
        expected=expected,
        hint="mend the hook, or take it out of the bundle",
    )


class _Running:
    """One hook's process."""

    def __init__(self, hook: Hook, state: bytes) -> None:
        self._hook, self._state = hook, state
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = self._reader = -1
        self.said: bytes = b""

    def start(self) -> None:
        # Through our own /proc entry, so that neither program nor interpreter keeps a descriptor of it.
        own = os.readlink("/proc/self")
        standard_input = os.memfd_create("state", os.MFD_CLOEXEC)
        writer = -1
        try:
            os.write(standard_input, self._state)
            os.lseek(standard_input, 0, os.SEEK_SET)
            self._reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(writer, True)
            self._process = subprocess.Popen(
                self._hook.args,
                executable=f"/proc/{own}/fd/{self._hook.fd}",
                env=self._hook.env,
                cwd="/",
                stdin=standard_input,
                stdout=subprocess.DEVNULL,
                stderr=writer,
                start_new_session=True,
            )
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError as error:
            raise _failed(self._hook, str(error), "to be executed") from error
        finally:
            os.close(standard_input)
            if writer >= 0:
                os.close(writer)

    def wait(self, deadline: float) -> bool:
        """Does it end before `deadline`. What it says is read meanwhile, and no longer: its children may keep on."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.register(self._reader, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            ready = dict(poll.poll(max(0.0, left) * 1000))
            if self._reader in ready and not self._read():
                poll.unregister(self._reader)
            if self._pidfd in ready:
                while self._read():
                    pass
                return True
            if left <= 0:
                return False

    def _read(self) -> bool:
        """Read some of what it says; was there more to be had."""
        try:
            part = os.read(self._reader, 1 << 16)
        except BlockingIOError:
            return False
        self.said = (self.said + part)[:MAX_SAID]
        return bool(part)

    def reap(self) -> int | None:
        """Its exit status, -N for signal N; None when somebody else reaped it and the kernel knows it no more."""
        assert self._process is not None
        code: int | None
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            assert result is not None
            code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        except ChildProcessError:
            status = linux.pidfd_exit_status(self._pidfd)
            code = None if status is None else os.waitstatus_to_exitcode(status)
        self._process.returncode = 0 if code is None else code
        return code

    def end(self) -> None:
        """End it and its session, if it has not ended, and close all; a second time nothing happens."""
        process = self._process
        if process is not None and process.returncode is None:
            if self._pidfd >= 0 and self._is_ours():
                self._kill_session(process.pid)
            if self._pidfd >= 0:
                self.reap()
        for name in ("_pidfd", "_reader"):
            if (fd := getattr(self, name)) >= 0:
                setattr(self, name, -1)
                os.close(fd)

    def _is_ours(self) -> bool:
        """Is it not reaped yet: until then its number is nobody else's, as a session's either."""
        try:
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def _kill_session(self, session: int) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        for _ in range(ROUNDS):
            others = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_in(pid, session)]
            if not others:
                return
            for pid in others:
                with suppress(OSError):  # it has ended
                    fd = os.pidfd_open(pid)
                    try:
                        if _is_in(pid, session):
                            signal.pidfd_send_signal(fd, signal.SIGKILL)
                    finally:
                        os.close(fd)


def _is_in(pid: int, session: int) -> bool:
    """Is process `pid` another one of `session`, and not dead (proc(5), /proc/PID/stat)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return pid != session and fields[3] == b"%d" % session and fields[0] not in (b"Z", b"X")
