"""GVisorRuntime: the reference's public interface, on the verified launch (gvisor.rs:96)."""

import errno
import json
import os
import secrets
import select
import signal as signals
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, NoReturn, Self

from nucleus_gvisor.model.errors import LaunchError
from nucleus_gvisor.model.record import set_digest
from nucleus_gvisor.runtime import _linux, interpreter, orphans, runsc, said
from nucleus_gvisor.runtime.audit import Record
from nucleus_gvisor.runtime.bundle import HostPath, OciBundle
from nucleus_gvisor.runtime.cleanup import state_component
from nucleus_gvisor.runtime.errors import HookFailed, PoststartFailed, SandboxError, SandboxGone
from nucleus_gvisor.runtime.guest import Tree
from nucleus_gvisor.runtime.hooks import Hooks
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.ids import Owners
from nucleus_gvisor.runtime.launch import Launch
from nucleus_gvisor.runtime.limits import Held, Limits
from nucleus_gvisor.runtime.options import (
    Enforcement,
    GVisorOciRunOptions,
    NetworkMode,
    Platform,
    judge_id,
)
from nucleus_gvisor.runtime.paths import artifact_base
from nucleus_gvisor.runtime.said import Said
from nucleus_gvisor.runtime.steps import resolve, stage
from nucleus_gvisor.runtime.streams import open_standard_descriptors
from nucleus_gvisor.runtime.supervisor import Supervisor
from nucleus_gvisor.runtime.workspace import Copy

START_PATIENCE, START_GLANCE = 30.0, 0.003
"""Seconds to wait for the guest's start before its poststart hooks are run all the same, and between two looks."""
Bundle = OciBundle | str | os.PathLike[str]
Stream = int | IO[bytes] | IO[str] | None
"""A descriptor, an object with `fileno()`, or None for the caller's own."""


class RunscPath(str):
    """A path that `resolve_path` judged; `sha256` names the bytes that lay there, for `with_path` to pin: those of
    runsc, or of the set that it is with its side binaries (what `nucleus-gvisor doctor` calls the pin).

    Resolved before entering a user namespace, where root's files have no owner that can be told from anyone's.
    """

    sha256: str

    def __new__(cls, path: str, sha256: str) -> Self:
        self = super().__new__(cls, path)
        self.sha256 = sha256
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        return type(self), (str(self), self.sha256)


class SandboxProcess:
    """A running sandbox: the supervisor's process, and the launch's record. Made by `GVisorRuntime.spawn` alone.

    Safe to use from several threads, and from signal handlers, which may raise. `wait` (or a `with` block) removes what
    the launch had on disk; a handle that is dropped leaves that to the next launch.
    """

    def __init__(self, launch: Launch) -> None:
        assert launch.confined is not None and launch.place is not None
        self._child: Supervisor = launch.confined.child
        self._place = launch.place
        assert launch.said is not None
        self._said: Said = launch.said
        self._words = launch.words
        self._failure: SandboxError | None = None
        assert launch.limits is not None
        self.held: Held = launch.limits
        """Its limits, and those of its bundle."""
        self._hooks: Hooks | None = launch.hooks
        self.owners: Owners = launch.owners
        """Whose the files can be that the guest makes on the host."""
        self._settling = threading.RLock()
        """Keeps other threads out. What this thread was interrupted in, a handler may do as well, and do to its end."""
        self.container_id: str = launch.container_id
        self.pid: int = self._child.pid
        """Process id of the supervisor (runsc)."""
        self.command: tuple[bytes, ...] = launch.command
        """The arguments that runsc was given."""
        self.release: runsc.Release | None = launch.confined.release
        """What runsc says of itself."""
        self.workspace: Copy | None = launch.workspace
        """The copy that the guest works on, where it has one."""
        self.made_with: Mapping[str, object] = launch.made_with
        """What a checkpoint of it must be restored with."""
        self.achieved_root: str = launch.root
        """What the guest's root is: `read-only`, or where its writes go (`Writable`)."""
        self.record: Record = launch.record
        """What the launch left in writing."""
        self.returncode: int | None = None
        """The guest's exit status (128 + signal when a signal ended it), -N when signal N ended the supervisor
        itself; None while it runs."""
        self.problems: tuple[OSError | HookFailed, ...] = ()
        """What could not be removed afterwards, which the next launch collects, and poststop hooks that failed."""

    @property
    def pidfd(self) -> int:
        """Descriptor that becomes readable when it ends; -1 once it was waited for."""
        return self._child.pidfd

    def use(self) -> AbstractContextManager[int]:
        """`pidfd`, which stays open within."""
        return self._child.use()

    @property
    def achieved(self) -> str:
        """The confinement that was achieved and proved: `mount-locked`, `landlock` or `none`."""
        return str(self.record.lines[-1].facts["confined"])

    @property
    def achieved_scope(self) -> str:
        """`signals+abstract` where the supervisor can signal nobody outside, nor reach their abstract sockets, which
        was tried; else `none`."""
        shown = next(line.evidence for line in self.record.lines if line.action.startswith("Confine"))
        return str(shown.get("scope", "none"))

    @property
    def achieved_limits(self) -> Mapping[str, str]:
        """Each limit that was asked for, and who enforces it (`limits`)."""
        return dict(self.held.achieved)

    def poll(self) -> int | None:
        """`returncode`, looking whether there is one."""
        self._hear(os.WNOHANG)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The returncode, when the sandbox has ended; TimeoutError after `timeout` seconds, with it still running.

        ChildProcessError where someone else reaped it (the caller ignores SIGCHLD) and the kernel, before Linux 6.15,
        no longer knows the code.
        """
        with self._child.use() as pidfd:
            if pidfd >= 0:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                # In milliseconds, of which poll(2) counts 24 days.
                if not poll.poll(None if timeout is None else min(max(0, timeout) * 1000, 2**31 - 1)):
                    raise TimeoutError(f"sandbox {self.container_id} still runs after {timeout} s")
        self._hear(0)
        assert self.returncode is not None
        return self.returncode

    def _hear(self, flags: int) -> None:
        """`_look`, and when it has ended the bundle's poststop hooks, each once; other threads wait for that."""
        try:
            self._look(flags)
        finally:
            if self._child.pidfd < 0:
                self._run_poststop()

    def _run_poststop(self) -> None:
        if self._hooks is not None:
            with self._settling:
                self._hooks.stop()
                left = [problem for problem in self.problems if isinstance(problem, OSError)]
                self.problems = (*left, *self._hooks.problems)

    def _run_poststart(self) -> None:
        """The bundle's poststart hooks, once the guest runs; PoststartFailed, and the sandbox ended, when one fails."""
        if self._hooks is None or not self._hooks.awaits_start or not self._has_started():
            return
        try:
            self._hooks.start(self.pid)
        except HookFailed as error:
            self.end()
            failed = PoststartFailed(f"the sandbox was ended: {error}")
            failed.record = self.record
            raise failed from error

    def _has_started(self) -> bool:
        """Wait until the guest runs, by runsc's own account; False when it never did.

        The account is a file in runsc's root, which is written before the guest's process is started and after, and
        lies in the supervisor's mount namespace. A guest that ended before it was seen to run did run, unless it
        is known why it could not.
        """
        root = f"/proc/{self.pid}/root{os.fsdecode(self._place.path)}/runsc-root"
        poll = select.poll()
        with self._child.use() as pidfd:
            poll.register(pidfd, select.POLLIN)
            deadline = time.monotonic() + START_PATIENCE
            while not poll.poll(START_GLANCE * 1000):
                if _says_running(root) or time.monotonic() > deadline:
                    return True
        self.wait()
        return self.failure() is None

    def _look(self, flags: int) -> None:
        """Learn the returncode, once there is one, and clean up. No line here does harm when it is done again."""
        with self._child.use() as pidfd:
            if pidfd < 0:
                if self.returncode is None:  # pragma: no cover - only kernels before Linux 6.15 forget it
                    raise ChildProcessError(errno.ECHILD, os.strerror(errno.ECHILD))
                return
            if self.returncode is None:
                status = self._status(pidfd, flags)
                if status is not None:
                    self.returncode = status
                elif self.returncode is None:
                    return
            with self._settling:
                if self._child.pidfd >= 0:
                    self._settle(pidfd)

    def _status(self, pidfd: int, flags: int) -> int | None:
        """How it ended, which it can be asked again; None while it runs, and when another thread was faster."""
        try:
            result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | flags)
        except ChildProcessError:
            if self.returncode is not None:
                return None
            # The caller ignores SIGCHLD, or waits for all its children: the kernel may still know what became of it.
            status = _linux.pidfd_exit_status(pidfd)
            if status is None:  # pragma: no cover - only kernels before Linux 6.15 forget it
                with self._settling:
                    self._settle(pidfd)
                raise
            return os.waitstatus_to_exitcode(status)
        if result is None:
            return None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def _settle(self, pidfd: int) -> None:
        """Reap it, and remove what it had on disk; the pidfd goes last, and says that all is done."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        self._child.hang_up()
        self._child.end_below()
        if self.returncode == said.FAILED and self._failure is None:
            self._failure = self._said.failure(self._words)
        self._said.close()
        met = self.held.met()  # the cgroups know, and go now
        if met is None and self.returncode == -signals.SIGKILL and self._failure is None and self.held.unwatched():
            self._failure = SandboxGone("who watched its limits was killed, and so the sandbox was ended")
        self.end_orphans(living=False)  # the attendant may have something to do still
        self.problems = tuple(self._place.remove())
        self._place.close()
        self._child.forget()

    def failure(self) -> SandboxError | None:
        """Why there is no end of the guest's own, once the supervisor has ended: CannotExec where its program could
        not be executed, StartFailed where runsc could not start it, SandboxGone where the sandbox ended first.

        `returncode` is 128 then, as runsc has it. None where the code is the guest's.
        """
        return self._failure

    def end_orphans(self, *, living: bool) -> None:
        """Reap what of the launch has become this process's child, and with `living` end it first: `orphans`."""
        orphans.reap(self._child.mark, living=living)

    def send_signal(self, number: int) -> None:
        """Send `number` to the supervisor (runsc), which ends on it, and its sandbox with it.

        runsc passes signals on to the guest only where it has a terminal. Nothing happens once it has ended.
        """
        with self._child.use() as pidfd, suppress(ProcessLookupError):
            if pidfd >= 0 and self.returncode is None:
                signals.pidfd_send_signal(pidfd, number)

    def kill(self) -> None:
        """End the sandbox at once: the supervisor and all below it by SIGKILL."""
        with self._child.use() as pidfd, suppress(ProcessLookupError):
            if pidfd >= 0 and self.returncode is None:
                _linux.kill_with_all_below(self.pid, pidfd)

    def end(self) -> None:
        """End it now, if it has not ended, and wait for that. An interrupted one is done again, or goes on."""
        self.kill()
        with suppress(ChildProcessError):  # it has ended, and nobody knows how
            self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end()
        finally:
            if self.workspace is not None:
                self.workspace.close()

    def __repr__(self) -> str:
        return f"<SandboxProcess {self.container_id} pid={self.pid} returncode={self.returncode}>"


def _says_running(root: str) -> bool:
    """Does runsc's account of the container, below its `root`, say that it runs."""
    try:
        for name in os.listdir(root):
            if name.endswith(".state") and json.loads(Path(root, name).read_bytes()).get("status") == "running":
                return True
    except (OSError, ValueError, AttributeError):
        pass  # not there yet, or half written
    return False


class GVisorRuntime:
    """A judged runsc, and the ways to launch it (gvisor.rs:96).

    `GVisorRuntime()` looks for it in the system paths (and, unprivileged, in PATH) and raises NotFound or Untrusted.
    Each launch judges it anew: what is kept is where it was, not a verdict.
    """

    def __init__(self) -> None:
        self._path: str | None = self.resolve_path()
        self._pin: str | None = None

    @classmethod
    def searching(cls) -> Self:
        """A runtime that searches at each launch, so that a runsc which is not there is that launch's failure."""
        self = cls.__new__(cls)
        self._path = self._pin = None
        return self

    @classmethod
    def with_path(cls, path: str | bytes | os.PathLike[str], *, pin: str | None = None) -> Self:
        """A runtime that uses the runsc at `path` and no other (gvisor.rs:115). It is judged at each launch.

        A path from `resolve_path` brings the digest of what lay there as its pin.
        """
        self = cls.__new__(cls)
        self._path = os.fsdecode(path)
        self._pin = pin or getattr(path, "sha256", None)
        return self

    @staticmethod
    def resolve_path() -> RunscPath:
        """Where the trusted runsc lies (gvisor.rs:122). Call it before entering a user namespace."""
        interpreter.judge_calls()
        open_standard_descriptors()  # the sealed copy is kept
        judged = resolve.resolve(None, Identity.current())
        try:
            digests = {name: stage.sha256(file.fd, file.snapshot.size) for name, file in stage.named(judged).items()}
            for file in judged.files:
                stage.see_untouched(file)
            return RunscPath(os.fsdecode(judged.runsc.path), set_digest(digests))
        finally:
            judged.close()

    @staticmethod
    def is_available() -> bool:
        """Is there a runsc that would be used (gvisor.rs:402)."""
        try:
            resolve.resolve(None, Identity.current()).close()
        except LaunchError:
            return False
        return True

    @property
    def path(self) -> str | None:
        """Where this runtime's runsc lies; None when each launch searches."""
        return self._path

    def release(
        self, *, enforcement: Enforcement = Enforcement.REQUIRED, artifact_base: Path | None = None
    ) -> runsc.Release:
        """What the binary says of itself, asked from its sealed bytes in a confined child, bounded in time.

        Raises what a launch raises up to Confined; with enforcement `off` the child is not confined.
        """
        options = GVisorOciRunOptions(
            platform=Platform.AUTO, enforcement=enforcement, pin=self._pin, artifact_base=artifact_base
        )
        launch = self._launch(secrets.token_hex(16), OciBundle.build(["true"]), options)
        try:
            return launch.ask()
        finally:
            launch.abandon()

    def version(self) -> str:
        """What `runsc --version` prints, stripped (gvisor.rs:407)."""
        return self.release().text

    def exec_with_oci_bundle(self, container_id: str, bundle: Bundle) -> NoReturn:
        """Replace the calling process with the sandbox, with default options (gvisor.rs:294)."""
        self.exec_with_oci_bundle_options(container_id, bundle, GVisorOciRunOptions())

    def exec_with_oci_bundle_options(self, container_id: str, bundle: Bundle, options: GVisorOciRunOptions) -> NoReturn:
        """Replace the calling process, which must have one thread, with the sandbox (gvisor.rs:310).

        Returns only by raising a LaunchError. The caller is then as it was, unless the error is an ExecFailed whose
        `restricted` is set: the process has then entered the confinement, and must exit.
        """
        self._launch(container_id, bundle, options, in_place=True).drive()
        raise AssertionError("an in-place launch returned")  # pragma: no cover - it does not; for the type checker

    def exec_with_oci_bundle_network(
        self,
        container_id: str,
        bundle: Bundle,
        network_mode: NetworkMode,
        ignore_cgroups: bool,
        runsc_rootless: bool,
        require_supervisor_exec_policy: bool,
        platform: Platform,
    ) -> NoReturn:
        """The same with the reference's positional options (gvisor.rs:377)."""
        self.exec_with_oci_bundle_options(
            container_id,
            bundle,
            GVisorOciRunOptions(
                network_mode=network_mode,
                ignore_cgroups=ignore_cgroups,
                runsc_rootless=runsc_rootless,
                require_supervisor_exec_policy=require_supervisor_exec_policy,
                platform=platform,
            ),
        )

    def spawn(
        self,
        container_id: str,
        bundle: Bundle,
        options: GVisorOciRunOptions | None = None,
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        die_with_thread: bool = False,
        attendant: int | None = None,
        tree: Tree | None = None,
        limits: Limits | None = None,
        checkpoint: HostPath | None = None,
    ) -> SandboxProcess:
        """Launch in a child process and return its handle once the kernel executes the verified image.

        Without `options` the platform is `auto`.

        Safe in a process with several threads. `die_with_thread` has the kernel kill the sandbox when the calling
        thread ends, however it ends. Raises a LaunchError with the record on it; the caller is then as it was.

        `attendant` and `tree` are the sandbox API's: the socket of an `Attendant`, and what it shows the guest.
        Without one, a launch whose `limits`, or whose bundle's, are watched brings its own, and the sandbox ends with
        the calling process. With `checkpoint`, a directory, runsc restores the image in it (`runsc restore`): the guest
        goes on where that was taken. PoststartFailed when such a hook of the bundle's failed; the guest had run.
        """
        own = None
        if attendant is None and _with_bundle(limits or Limits(), bundle, options or GVisorOciRunOptions()).watched:
            from nucleus_gvisor.runtime.attendant import Attendant  # which knows this module's streams

            own = Attendant()
            attendant = own.theirs.fileno()
        launch = process = None
        try:
            streams = (stdin, stdout, stderr)
            launch = self._launch(
                container_id,
                bundle,
                options or GVisorOciRunOptions(platform=Platform.AUTO),
                stdio=tuple(_descriptor(stream, number) for number, stream in enumerate(streams)),
                die_with_parent=die_with_thread,
                # A fork would keep a copy of all the caller's memory for as long as the sandbox lives.
                fresh_interpreter=None if attendant is None else True,
                attendant=attendant,
                tree=tree,
                limits=Held(limits or Limits(), attendant is not None),
                checkpoint=checkpoint,
            )
            launch.drive()
            launch.release()
            handle = SandboxProcess(launch)
            handle.end_orphans(living=False)  # of the trials that the launch made
            launch.hand_over()
            process = handle
            if own is not None:
                process.held.told, process.held.unwatched = own.last_word, own.was_killed
                with suppress(SandboxGone):  # the guest may have ended already
                    own.meet()
                    own.watch(process.held)
            process._run_poststart()
            return process
        except BaseException:
            # It may be interrupted when the guest runs already, and nobody would hold it.
            if process is not None:
                process.end()
            elif launch is not None:
                launch.undo()
            if own is not None:
                own.dismiss()
            raise

    def _launch(self, container_id: str, bundle: Bundle, options: GVisorOciRunOptions, **how: object) -> Launch:
        if options.pin is None and self._pin is not None:
            options = replace(options, pin=self._pin)
        path = None if self._path is None else os.fsencode(self._path)
        return Launch(container_id, bundle, options, runsc_path=path, **how)  # type: ignore[arg-type]

    # ---- what the reference keeps private and its tests use ----

    @staticmethod
    def runsc_root(container_id: str, base: os.PathLike[str] | None = None) -> Path:
        """runsc's own root for this id (gvisor.rs:482): ARTIFACT_BASE/COMPONENT/runsc-root."""
        path = os.fsdecode(artifact_base(base, Identity.current()))
        return Path(path) / state_component(judge_id(container_id)) / "runsc-root"

    @staticmethod
    def exec_environment(runtime_dir: os.PathLike[str]) -> Mapping[bytes, bytes]:
        """The environment that runsc gets (gvisor.rs:423)."""
        return runsc.environment(os.fsencode(runtime_dir))


def _with_bundle(limits: Limits, bundle: Bundle, options: GVisorOciRunOptions) -> Limits:
    """These limits and the bundle's, as far as that can be told before the launch, which judges the bundle itself."""
    try:
        if not isinstance(bundle, OciBundle):
            bundle = OciBundle.load(
                os.fspath(bundle),
                allow_hooks=options.allow_hooks,
                allow_flag_annotations=options.allow_flag_annotations,
            )
        return limits.with_those_of(bundle.limits)
    except LaunchError:
        return limits


def _descriptor(stream: Stream, default: int) -> int:
    if stream is None:
        return default
    return stream if isinstance(stream, int) else stream.fileno()
