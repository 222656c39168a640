"""The names of Google's `gvisor` package, for programs that were written for it: only the import changes.

    from nucleus_gvisor.runtime.dropin import Error, Mount, MountType, NetworkMode, Sandbox

Two kinds of thing that work there are refused here, because they are not safe:

* A place that others than the caller decide about: a `runtime_dir` that they can replace, or a runsc, in RUNSC_PATH
  or found, that others can write or replace. Without a `runtime_dir` a private one is taken, below the artifact base.
* What would stand in for a part of the launch: a `sandbox_id` that runsc could take for a flag or a path (it must
  be `[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}`), and a bind over the guest's own /proc or /dev.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from nucleus_gvisor.model.errors import Error, NotFound
from nucleus_gvisor.runtime import sandbox
from nucleus_gvisor.runtime.bundle import HostPath, MountType
from nucleus_gvisor.runtime.options import NetworkMode
from nucleus_gvisor.runtime.request import AnyMount, Environment, environment

__all__ = ["Error", "Mount", "MountType", "NetworkMode", "Sandbox"]


@dataclass(frozen=True)
class Mount:
    """A mount as that package has it: `source` of the host at `destination` in the guest, writable by default."""

    destination: str
    source: str | None = None
    type: MountType | str = MountType.BIND
    readonly: bool = False

    @classmethod
    def bind(cls, source: str, destination: str, readonly: bool = False) -> Self:
        """A file or directory of the host."""
        return cls(destination, source, MountType.BIND, readonly)

    @classmethod
    def tmpfs(cls, destination: str) -> Self:
        """Empty memory-backed space."""
        return cls(destination, "tmpfs", MountType.TMPFS)

    @classmethod
    def proc(cls, destination: str) -> Self:
        """The guest's own /proc."""
        return cls(destination, "proc", MountType.PROC)


class Sandbox(sandbox.Sandbox):
    """`nucleus_gvisor.runtime.Sandbox` with that package's arguments and PATH, and with RUNSC_PATH: which runsc to use,
    judged as any other; a bare name is looked for in PATH, for root as well."""

    def __init__(
        self,
        runtime_dir: HostPath | None = None,
        sandbox_id: str | None = None,
        network: NetworkMode | str = NetworkMode.NONE,
        env: Environment | None = None,
        mounts: Sequence[AnyMount] | None = None,
        working_dir: str = "/",
    ) -> None:
        env = {"PATH": "/bin:/usr/bin:/usr/local/bin", **environment(env)}
        runsc = os.environ.get("RUNSC_PATH")
        if runsc is not None and "/" not in runsc:  # a name, which is looked for as for any other program
            found = shutil.which(runsc)
            if found is None:
                raise NotFound(
                    "runsc binary is not found",
                    step="Resolve",
                    observed=f"RUNSC_PATH={runsc}, and no such program in PATH",
                    expected="a name that is in PATH, or a path",
                    hint="install gVisor, or set RUNSC_PATH to the path of its runsc",
                )
            runsc = found
        super().__init__(
            runtime_dir, sandbox_id, network, env, mounts, "/" if working_dir is None else working_dir, runsc=runsc
        )
