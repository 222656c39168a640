"""The driver for the real runtime: each action is the real step, each disturbance a real one, each look at a real host.

The launcher lives in a process of its own, forked from the test for each walk, because it is to be killed, starved and
put under filters that never come off. In it `Launch` is taken through its steps one by one, in the order and with the
answers to failure of `Launch.drive`. What is compared is seen from outside of that process, through /proc and the file
system. Two disturbances, RefuseExecve and BreakCall, are of the kind "some call will fail": they strike in the step
that is to meet them, because a step that does not need the call is not touched by it.
"""

import errno
import json
import os
import pickle
import resource
import select
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nucleus_gvisor.model import errors
from nucleus_gvisor.model.conformance import Refused, Unsupported, one_of
from nucleus_gvisor.model.errors import LaunchError
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.guards import RequestSound
from nucleus_gvisor.model.replay import judge
from nucleus_gvisor.model.states import PATH, LaunchState
from nucleus_gvisor.model.table import CONFINE, ROWS, STAGE
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime import cleanup
from nucleus_gvisor.runtime.launch import Launch
from nucleus_gvisor.runtime.options import GVisorOciRunOptions
from nucleus_gvisor.runtime.steps import stage as stage_step
from tests.conformance import kernel
from tests.conformance.world import CONTAINER, Site, World, digest
from tests.support.records import seeded

S = LaunchState
NEXT = {S.UNRESOLVED: "Resolve", S.RESOLVED: "Prepare", S.CONFINED: "Exec"}
PATIENCE = 20
"""Seconds for one step; more is a hang."""
Descriptor = tuple[int, os.stat_result, str]
"""Its number, what it refers to, and by which name."""


class Hang(Exception):
    """The launcher, or its guest, does not answer. Not a refusal: nothing may hang."""


# ---- the launcher's process ----


class Launcher:
    """The other end: `Launch` in a process of its own, told what to do over a socket."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    def serve(self, link: socket.socket) -> None:
        """Do what is asked until nobody asks any more."""
        while packet := link.recv(1 << 16):
            name, *arguments = pickle.loads(packet)
            link.send(pickle.dumps(getattr(self, name)(*arguments)))

    def filter(self, name: str) -> bool:
        """Put this process under a filter of `kernel`; did it take."""
        if name == "break_promises":
            # What a launch mounts is nobody else's, also when the filter keeps it from saying so itself.
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount_setattr(linux.AT_FDCWD, b"/", propagation=linux.MS_PRIVATE, recursive=True)
        getattr(kernel, name)()
        return {"deny_user_namespaces": kernel.user_namespaces, "deny_landlock": kernel.landlock}.get(name, bool)()

    def fire(self, action: str) -> tuple[str, ...]:
        """Take one step; a refusal leaves the launch where it is."""
        try:
            self._step(action)
        except LaunchError as error:
            return "refused", str(error)
        finally:
            stage_step.forget()  # what a long-lived process keeps for its next launch is not this launch's
        return ("done",)

    def tell(self, cause: str) -> tuple[str, ...]:
        """Fail for a reason that is given, which the launcher itself would not get to."""
        if self._launch.machine is None:
            self._launch.begin()
        error = next(c for c in vars(errors).values() if isinstance(c, type) and vars(c).get("cause") == cause)
        reason = error("so it was told")
        self._launch.failed(reason)
        stage_step.forget()
        return "failed", reason.cause, str(reason)

    def fail(self, fault: str) -> tuple[str, ...]:
        """Take the step that `Launch.drive` would take now, and answer to its failure as `drive` does."""
        if fault == "interrupted" and self._launch.machine is None:
            self._launch.begin()
        machine = self._launch.machine
        state = S.UNRESOLVED if machine is None else machine.state
        confine = state is S.STAGED
        try:
            with _FAULTS[fault]():
                self._confine() if confine else self._step(NEXT.get(state) or STAGE[self._launch.options.stage.value])
        except BaseException as error:
            reason = self._launch.failed(error)
            return "failed", reason.cause if isinstance(reason, LaunchError) else "fault", str(reason)
        finally:
            stage_step.forget()
        return ("done",)

    def _step(self, action: str) -> None:
        if self._launch.machine is None:
            self._launch.begin()
        assert self._launch.machine is not None
        if action == "ConfineSkipped":  # a best effort is tried first
            self._confine()
        else:
            self._launch.machine.fire(action)

    def _confine(self) -> None:
        assert self._launch.machine is not None
        self._launch._fire_confine(self._launch.machine)


@contextmanager
def _no_descriptors() -> Iterator[None]:
    """EMFILE for whatever opens anything."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = min(128, limits[0])
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextmanager
def _interrupted() -> Iterator[None]:
    """Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)
    yield


@contextmanager
def _nothing() -> Iterator[None]:
    yield


_FAULTS: Mapping[str, Callable[[], Any]] = {
    "": _nothing,
    "no descriptors": _no_descriptors,
    "interrupted": _interrupted,
}


# ---- the driver ----


class RealDriver:
    """`nucleus_gvisor.runtime`, with a binary that stands in for runsc or is it."""

    def __init__(
        self, site: Site, binary: Path | None = None, other: Path | None = None, *, told: bool = False
    ) -> None:
        """`told`: failures are not to be found by the launcher, but given to it."""
        self._site, self._binary, self._other, self._told = site, binary or site.standin, other, told
        self.world: World | None = None
        self.robbed = False
        """A check was taken out of the runtime, so its records may show what it let pass."""
        self.rejected: list[str] = []
        """What was wrong with the records that were not accepted."""
        self.records = 0
        """How many launches left a record; each was accepted."""
        self._pid = 0
        self._link: socket.socket | None = None
        self._stdin = self._stdout = -1

    # ---- Driver ----

    def reset(self, facts: Facts) -> None:
        self.close()
        self.world = World(self._site, self._binary, facts, self._other)
        self._facts, self._state, self._cause, self._guest = facts, S.UNRESOLVED, "none", "none"
        self._digests: dict[tuple[int, int, int], str] = {}
        self._swapped = False
        self.proof: dict[str, Any] = {}
        self._start()
        if facts.pin != "none":
            self.world.open_window()

    def fire(self, action: str) -> None:
        if action == "GuestStarts":
            self._start_guest()
        elif action == "Collect":
            self._collect()
        elif not self._pid:
            raise Refused("the launcher is dead")
        elif action.startswith("Fail") and self._meets(action):
            self._fail(action)
        else:
            self._fire(action)

    def disturb(self, action: str) -> None:
        world = self._world
        if action == "Kill":
            self._kill()
        elif action == "MalformRequest":
            hard = resource.prlimit(self._pid, resource.RLIMIT_NOFILE)[1]
            resource.prlimit(self._pid, resource.RLIMIT_NOFILE, (64, hard))
        elif action in _FILTERS:
            if self._ask("filter", _FILTERS[action]):
                raise AssertionError(f"{action} has no effect")
        elif action not in ("RefuseExecve", "BreakCall"):
            world.strike(action)
            self._swapped |= action == "SwapKept" and self._state is S.STAGED
            return
        world.history.append(action)

    def observe(self) -> Mapping[str, object]:
        # The host's own variables nobody but the environment changes: `disturb` saw to it that they did.
        struck = self._world.history
        return {
            **self._world.look(),
            **self._look_at_launcher(),
            "lock": self._lock(),
            "request": "MalformRequest" not in struck,
            "userns": "DenyUserns" not in struck,
            "landlock": "DenyLandlock" not in struck,
            "holds": "LeakConfinement" not in struck,
            "execve": "RefuseExecve" not in struck,
            "calls": "BreakCall" not in struck,
            "cause": self._cause,
            "guest": self._guest,
        }

    def close(self) -> None:
        """End the launch and its guest."""
        if self._pid > 0:
            self._kill()
        for fd in (self._stdin, self._stdout):
            if fd >= 0:
                os.close(fd)
        self._stdin = self._stdout = -1
        if self.world is not None:
            for path in self.world.base.glob("records/*.ndjson"):
                judgement = judge(path.read_bytes())  # what the launch wrote down is a behaviour, however it went
                assert judgement.accepted or self.robbed, judgement
                if not judgement.accepted:
                    seeded(path.read_bytes())
                    self.rejected.append(judgement.words)
                self.records += 1
            self.world.close()
            self.world = None

    # ---- the launcher's process ----

    @property
    def _world(self) -> World:
        assert self.world is not None
        return self.world

    def _options(self) -> GVisorOciRunOptions:
        f = self._facts
        return GVisorOciRunOptions(
            enforcement=f.enforcement,  # type: ignore[arg-type]
            confinement=f.confinement,  # type: ignore[arg-type]
            stage=f.method,  # type: ignore[arg-type]
            program=f.program,  # type: ignore[arg-type]
            platform="auto",  # type: ignore[arg-type]
            pin=None if f.pin == "none" else self._world.pin,
            artifact_base=self._world.base,
            runsc_rootless=True,  # unconfined, an older release needs it; confined, it is rootless in any case
            ignore_cgroups=True,
        )

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        guest_in, self._stdin = os.pipe2(os.O_CLOEXEC)
        self._stdout, guest_out = os.pipe2(os.O_CLOEXEC)
        log = os.open(self._site.path / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        pid = os.fork()
        if pid == 0:
            try:
                linux.close_all_but({theirs.fileno(), guest_in, guest_out, log})
                os.environ["NUCLEUS_GVISOR_CACHE"] = os.fspath(self._world.cache)
                stage_step._kept.clear()  # what the test's own process has kept is closed here
                launch = Launch(
                    CONTAINER,
                    os.fspath(self._world.bundle),
                    self._options(),
                    runsc_path=os.fsencode(self._world.path),
                    stdio=(guest_in, guest_out, log),
                )
                Launcher(launch).serve(theirs)
            except BaseException:
                import traceback

                with open(self._site.path / "stderr", "a") as file:
                    traceback.print_exc(file=file)
            finally:
                os._exit(1)
        for fd in (guest_in, guest_out, log):
            os.close(fd)
        theirs.close()
        self._pid, self._link = pid, ours

    def _ask(self, *words: str) -> Any:
        assert self._link is not None
        self._link.send(pickle.dumps(words))
        if not select.select([self._link], [], [], PATIENCE)[0]:
            raise Hang(f"{words} takes more than {PATIENCE} s")
        packet = self._link.recv(1 << 16)
        if not packet:
            raise Hang(f"the launcher died over {words}: {(self._site.path / 'stderr').read_text()}")
        return pickle.loads(packet)

    def _kill(self) -> None:
        child = self.child()
        pidfd = -1
        if child:
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(child)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        if pidfd >= 0:  # it ends by itself, unless it is the guest by now
            if self._state is S.EXECD:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            ended = select.select([pidfd], [], [], PATIENCE)[0]
            os.close(pidfd)
            if not ended:
                raise Hang("the child outlives its launcher")
        assert self._link is not None
        self._link.close()
        self._pid = 0

    def child(self) -> int:
        """The launcher's child, 0 when there is none."""
        if not self._pid:
            return 0
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def next_fails(self) -> str:
        """The cause of the failure that the launcher's next step ends in."""
        word, *rest = self._ask("fail", "")
        assert word == "failed", word
        return str(rest[0])

    # ---- actions ----

    def _fire(self, action: str) -> None:
        asked, row = self._facts, ROWS[action]
        here = self._state in row.sources
        if here and action in ways(asked):
            raise Unsupported("no launcher tries a way that was not asked for")
        if here and action == "Resolve":
            self._world.judged()
        if here and action in STAGE.values():
            self._world.shut_window()
        word, *rest = self._ask("fire", action)
        if word == "refused":
            raise Refused(rest[0])
        assert row.dest is not None
        self._state = row.dest

    def _fail(self, action: str) -> None:
        world = self._world
        if self._state is S.UNRESOLVED:
            world.judged()
        if self._state is S.PREPARED:
            world.shut_window()
        fault = ""
        if action in ("FailFault", "FailDirty"):
            # These are found out before anything is opened; an interrupt comes before them.
            sooner = {"MalformRequest", "RewriteInPlace"} & set(world.history) or not RequestSound(self._facts)
            incompatible = self._state is S.STAGED and not self._compatible
            fault = "interrupted" if sooner or incompatible else world.choose("no descriptors", "interrupted")
        if action == "FailDirty":
            for place in (world.directory, *world.stages):
                kernel.set_immutable(place, True)
        if action == "FailExec":
            self._refuse_execve()
        word, *rest = self._ask("tell", ROWS[action].cause) if self._told else self._ask("fail", fault)
        if word != "failed":
            raise Refused(f"nothing failed: {action}")
        self._state = S.FAILED
        # That something was left is what anybody can see; the error says it in a note.
        self._cause = "left_behind" if world.directory.is_dir() else rest[0]

    def _refuse_execve(self) -> None:
        """The image loses its right to be executed, or the child that is to execute it its life."""
        world, child = self._world, self.child()
        way = "kill" if self._facts.method in ("set", "kept") else world.choose("mode", "kill")
        if way == "kill":
            pidfd = os.pidfd_open(child)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], PATIENCE)
            os.close(pidfd)
            return
        images = {"copy": [s / "runsc" for s in world.stages], "store": [world.home / "bin/runsc", world.release]}
        for path in images.get(self._facts.method, self._memfds(self._descriptors())):
            with suppress(FileNotFoundError):
                path.chmod(0o444)

    def _meets(self, action: str) -> bool:
        """Has something happened that the launcher's next step fails with as `action` says."""
        f, struck = self._facts, self._world.history
        if self._state not in ROWS[action].sources:
            return False
        required = f.enforcement == "required"
        compatible = self._compatible
        denied = ("DenyLandlock" if f.confinement == "landlock" else "DenyUserns") in struck
        match action:
            case "FailRequest":
                return "MalformRequest" in struck or not RequestSound(f)
            case "FailKept":
                return self._swapped
            case "FailSpace":
                return "FillDisk" in struck and f.method == "copy"
            case "FailIncompatible":
                return required and not compatible
            case "FailConfine":
                return required and compatible and denied
            case "FailUnproved":
                return required and compatible and not denied and "LeakConfinement" in struck
            case "FailDirty":
                return "BreakCall" in struck and PATH.index(self._state) >= PATH.index(S.PREPARED)
        return _TWINS[action] in struck

    @property
    def _compatible(self) -> bool:
        return not (self._facts.confinement == "landlock" and self._facts.program == "runsc")

    def _start_guest(self) -> None:
        if self._state is not S.EXECD or self._guest != "none":
            raise Refused("there is nothing to start")
        os.write(self._stdin, b".")
        poll = select.select([self._stdout], [], [], PATIENCE)[0]
        text = os.read(self._stdout, 1 << 16) if poll else b""
        if not text:
            raise Hang(f"no proof of life: {(self._site.path / 'stderr').read_text()[-2000:]}")
        proof = json.loads(text)
        needs_mount = self._facts.program == "runsc" and "guest" not in proof
        self._guest = "stuck" if needs_mount and proof["mount"] else "running"
        self.proof = proof

    def _collect(self) -> None:
        """A later launch, or `nucleus-gvisor gc`; whatever kept the directory from going is gone by then."""
        world = self._world
        for place in (world.directory, *world.stages):
            with suppress(FileNotFoundError):
                kernel.set_immutable(place, False)
        try:
            base = os.open(world.base, os.O_RDONLY | os.O_DIRECTORY)
            locks = os.open("locks", os.O_RDONLY | os.O_DIRECTORY, dir_fd=base)
        except FileNotFoundError as error:
            raise Refused("there is no base") from error
        try:
            if not cleanup.collect(base, os.fsencode(world.base), locks) or self._state is S.EXECD:
                raise Refused("nothing to collect")
        finally:
            os.close(locks)
            os.close(base)

    # ---- looking ----

    def _look_at_launcher(self) -> dict[str, object]:
        if not self._pid:
            return {"alive": False, **_NOTHING}
        descriptors = self._descriptors()
        child = self.child()
        seen: dict[str, object] = {
            "alive": True,
            "held": self._world.is_held({fd: status for fd, status, _ in descriptors}),
            "staged": self._staged(descriptors),
            "image": "none",
            "confined": "none",
            "proved": False,
        }
        if child:
            seen |= self._look_at_child(child)
        seen["state"] = self._seen_state(seen, child)
        return seen

    def _descriptors(self) -> list[Descriptor]:
        found = []
        for path in Path(f"/proc/{self._pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found.append((int(path.name), path.stat(), os.readlink(path)))
        return found

    def _memfds(self, descriptors: Sequence[Descriptor]) -> list[Path]:
        folder = f"/proc/{self._pid}/fd"
        return [Path(folder, str(fd)) for fd, _, name in descriptors if name.startswith("/memfd:runsc")]

    def _staged(self, descriptors: Sequence[Descriptor]) -> object:
        """The bytes that the launcher holds where nobody can change them, or in its own directory."""
        images = self._memfds(descriptors)
        if self._facts.method == "copy":
            copies = [os.fspath(stage / "runsc") for stage in self._world.stages]
            images = [Path(name) for _, _, name in descriptors if name in copies]
        elif self._facts.method == "kept":
            place = os.fspath(self._world.cache / "sets")
            images = [Path(f"/proc/{self._pid}/fd/{fd}") for fd, _, name in descriptors if name.startswith(place)]
            if images and self._swapped:  # the very bytes that are held may have been written to
                return one_of("trusted", "rewritten")
        if not images:
            return "nothing"
        # Of a set, one is runsc.
        return "trusted" if "trusted" in map(self._are_they, images) else "rewritten"

    def _are_they(self, image: Path) -> str:
        """Are these the bytes that were installed. What is staged does not change: it is read once in a walk."""
        status = image.stat()
        known = status.st_dev, status.st_ino, status.st_mtime_ns
        if known not in self._digests:
            self._digests[known] = digest(image)
        return "trusted" if self._digests[known] == self._world.digest else "rewritten"

    def _look_at_child(self, child: int) -> dict[str, object]:
        seen: dict[str, object] = {}
        executes = os.stat(f"/proc/{child}/exe").st_ino != os.stat(f"/proc/{self._pid}/exe").st_ino
        if executes:
            seen["image"] = self._are_they(Path(f"/proc/{child}/exe"))
        proof = self._proof_on_record()
        # What the executed image could do, by its own word; before there is one, the kernel's word alone.
        refused = self.proof.get("host_exec", errno.EACCES)
        held_back = refused == errno.EACCES
        # Locked, it has a root in which the host's programs are not even to be found.
        if (
            self._is_locked(child)
            and refused in (errno.EACCES, errno.ENOENT)
            and self.proof.get("undo", errno.EPERM) == errno.EPERM
        ):
            seen |= {"confined": "mount-locked", "proved": proof}
        elif self._facts.confinement == "landlock" and proof:
            # Nothing in /proc shows a Landlock domain: only what the executed image may do shows it.
            if not self.proof:
                seen |= {"confined": one_of("landlock", "none"), "proved": one_of(True, False)}
            elif held_back:
                seen |= {"confined": "landlock", "proved": True}
        return seen

    def _is_locked(self, child: int) -> bool:
        """In namespaces of its own, without new privileges, and no host mount that can be executed from."""
        ours, theirs = f"/proc/{self._pid}/ns", f"/proc/{child}/ns"
        if any(os.readlink(f"{ours}/{kind}") == os.readlink(f"{theirs}/{kind}") for kind in ("mnt", "user")):
            return False
        if "NoNewPrivs:\t1" not in Path(f"/proc/{child}/status").read_text():
            return False
        for line in Path(f"/proc/{child}/mountinfo").read_text().splitlines():
            point, flags = line.split()[4:6]
            if {"noexec", "nosuid"} <= set(flags.split(",")) or Path(point).is_relative_to(self._world.directory):
                continue
            if not stat.S_ISCHR(os.stat(f"/proc/{child}/root{point}").st_mode):  # a device is nothing to execute
                return False
        return True

    def _proof_on_record(self) -> bool:
        """Does the record on disk tell what the canaries answered."""
        for path in self._world.base.glob("records/*.ndjson"):
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                if entry["action"] in CONFINE.values() and entry["evidence"].get("canaries"):
                    return True
        return False

    def _seen_state(self, seen: Mapping[str, object], child: int) -> str:
        """Where a launch is that shows this much."""
        if self._state is S.FAILED:  # it told its caller why
            return S.FAILED
        if seen["image"] != "none":
            return S.EXECD
        if child:
            return S.CONFINED
        if seen["staged"] != "nothing":
            return S.STAGED
        if self._world.directory.is_dir():
            return S.PREPARED
        return S.UNRESOLVED if seen["held"] == "nothing" else S.RESOLVED

    def _lock(self) -> str:
        if not self._world.is_locked():
            return "free"
        # Not from /proc/locks: whoever reads that holds up every lock of the machine for a moment.
        for fd, _, name in self._descriptors() if self._pid else ():
            if name == os.fspath(self._world.lock) and "FLOCK" in Path(f"/proc/{self._pid}/fdinfo/{fd}").read_text():
                return "ours"
        return "theirs"


def ways(asked: Facts) -> frozenset[str]:
    """Actions that a launch with these options never tries."""
    other = {*STAGE.values(), *CONFINE.values()} - {STAGE[asked.method], CONFINE[asked.confinement]}
    if asked.enforcement == "off":
        other.add(CONFINE[asked.confinement])
    if asked.enforcement == "required":
        other.add("ConfineSkipped")
    return frozenset(other)


_NOTHING = {"held": "nothing", "staged": "nothing", "confined": "none", "proved": False, "image": "none"}
_FILTERS = {
    "DenyUserns": "deny_user_namespaces",
    "DenyLandlock": "deny_landlock",
    "LeakConfinement": "break_promises",
}
_TWINS = {
    "FailNotFound": "RemoveBinary",
    "FailUntrusted": "SwapBinary",
    "FailBase": "SpoilBase",
    "FailBundle": "SpoilBundle",
    "FailBusy": "OtherTakesLock",
    "FailChanged": "RewriteInPlace",
    "FailPin": "OtherRelease",
    "FailCache": "OpenCache",
    "FailUnfit": "Impostor",
    "FailExec": "RefuseExecve",
    "FailFault": "BreakCall",
}

__all__ = ["RealDriver", "ways"]
