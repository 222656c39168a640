"""A launch on trial: a guest of ours, run by the staged binary as the launch would run the caller's.

doctor asks so what a host can do; a launch does where nothing else would tell that a guest never runs.
"""

import errno
import os
import secrets
import time
from contextlib import suppress

from nucleus_gvisor.model.errors import Unsupported
from nucleus_gvisor.runtime import _child, _linux, answers
from nucleus_gvisor.runtime.bundle import OciBundle
from nucleus_gvisor.runtime.capture import readable
from nucleus_gvisor.runtime.cleanup import Place
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.launch import Launch
from nucleus_gvisor.runtime.options import Confinement, GVisorOciRunOptions, Platform
from nucleus_gvisor.runtime.steps import confine, exec_, prepare, stage

PLACES = ("/srv", "/mnt", "/media", "/run", "/var/tmp", "/tmp")
"""Directories that the trial's tmpfs may cover, in its own mount namespace; the first that is there."""
SECONDS = 30.0
"""Within which a guest has to have started and ended."""
KVM_SECONDS = 10.0
"""The same for a guest that says a word, under KVM: with it the processor runs it, or does not."""
STARTED = b"the guest runs"
ORDINARY = ("ls /", "stat /", "find / -maxdepth 0", "cp /bin/sh /tmp/copy", "python3 -c pass")
"""What programs of every user land do; those that the host does not have are not tried."""
GUEST = f"echo {STARTED.decode()}; cd /; " + "".join(
    f"if command -v {words.split()[0]} >/dev/null; then"
    f" {words} >/dev/null 2>/tmp/why || {{ echo; echo 'cannot {words}'; cat /tmp/why; }}; fi; "
    for words in ORDINARY
)
_ends = set[str]()
"""Digests of what was staged where a guest under KVM came to an end."""


class Trial(Launch):
    """A launch's own child, confined over an existing directory: it is asked, and may become the supervisor of a guest,
    GUEST unless another `script` is given. Each ends with `end`.
    """

    def __init__(
        self,
        identity: Identity,
        options: GVisorOciRunOptions,
        staged: stage.Staged,
        *,
        in_place: bool = False,
        script: str | None = None,
    ) -> None:
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        stdio = (self._null, self._writer, self._writer)
        bundle = OciBundle.build(["sh", "-c", script or GUEST])
        super().__init__(secrets.token_hex(16), bundle, options, stdio=stdio, in_place=in_place, die_with_parent=True)
        self._identity, self._staged = identity, staged
        self._forked = 0
        """What was replaced in place by runsc."""

    def run(self, asker: str = "") -> confine.Confined:
        """What the child showed and answered, to this `asker` alone. Raises what a launch raises in Confine."""
        where = next((p for p in PLACES if os.path.isdir(p) and not os.path.islink(p)), None)
        if where is None:
            raise FileNotFoundError(errno.ENOENT, f"none of {', '.join(PLACES)} is there to try it on")
        assert isinstance(self._bundle, OciBundle) and self._staged is not None
        self._guest = prepare.look_at_bundle(self._bundle)
        above, _, name = where.rpartition("/")
        directory = os.open(where, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self.place: Place | None = Place(-1, os.fsencode(above), name, directory=directory)
            self._plan = self._child_plan(Confinement.MOUNT_LOCKED)
            self.confined = confine.start(self._plan, self._staged.digests, self.options, fresh=None, asker=asker)
            return self.confined
        finally:
            os.close(directory)

    def launch(self, seconds: float = SECONDS) -> bytes:
        """What the guest and runsc said, with STARTED at the beginning where it ran.

        Raises what a launch raises in Exec, and TimeoutError for a guest that has not ended in time.
        """
        assert self.confined is not None
        if self._in_place:
            self._become()
        else:
            exec_.in_child(self.confined, *self._command())
        self._close("_writer")
        output, end = b"", time.monotonic() + seconds
        while len(output) < 1 << 16:
            if not readable(self._reader, end):
                raise TimeoutError(f"no end of the guest within {seconds:g} s")
            if not (piece := os.read(self._reader, 1 << 12)):
                break
            output += piece
        return output

    def _become(self) -> None:
        """Have a fork of this process, which has no other threads, be replaced by runsc."""
        assert self.confined is not None
        if (pid := os.fork()) == 0:
            try:
                for target, fd in enumerate((self._null, self._writer, self._writer)):
                    os.dup2(fd, target)
                command = self._command()
                exec_.join(self.confined, self._plan)
                exec_.in_place(self._image_in_place(), *command)
            except BaseException as error:
                os.write(1, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(_child.FAILED)
        self._forked = pid
        self.confined.child.hang_up()  # the fork has the link too, until it is in the child's namespaces

    def _close(self, name: str) -> None:
        if (fd := getattr(self, name)) >= 0:
            setattr(self, name, -1)
            os.close(fd)

    def end(self) -> None:
        """End the child, if there is one."""
        for name in ("_null", "_reader", "_writer"):
            self._close(name)
        pid, self._forked = self._forked, 0
        if pid:
            with suppress(OSError):  # it was waited for by nobody else: the number is its own
                pidfd = os.pidfd_open(pid)
                try:
                    _linux.kill_with_all_below(pid, pidfd)
                finally:
                    os.close(pidfd)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        if self.confined is not None:
            self.confined.child.end()
            self.confined = None


def see_that_kvm_answers(staged: stage.Staged, identity: Identity, caller: Identity | None) -> None:
    """Unsupported where a guest of what is staged neither runs nor fails under the host's KVM.

    Releases before 2026 do so where the processor is itself a virtual machine's and refuses them a state, and say of
    their guest that it runs. Equal bytes are tried once in a process; what ran is remembered in `caller`'s cache.
    """
    key = " ".join(sorted(staged.digests.values()))
    question = f"kvm {key}"
    if key in _ends or (caller is not None and answers.noted(question, caller)):
        return
    options = GVisorOciRunOptions(platform=Platform.KVM)
    trial = Trial(identity, options, staged, script=f"echo {STARTED.decode()}")
    try:
        trial.run()
        said = trial.launch(KVM_SECONDS)
    except TimeoutError as error:
        raise Unsupported(
            "the host's KVM runs no guest of this runsc",
            step="Confine",
            path="/dev/kvm",
            observed=f"a trial under it neither ran nor failed: {error}",
            expected="a guest that says a word",
            hint='platform="auto" needs no KVM; a newer release of runsc says what the processor lacks',
        ) from error
    finally:
        trial.end()
    _ends.add(key)
    if caller is not None and said.startswith(STARTED):
        answers.note(question, {"ran": True}, caller)
