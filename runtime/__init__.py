"""The front door: launch untrusted programs under gVisor, verified and on record.

    from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle, Platform

    with GVisorRuntime().spawn("job-1", OciBundle.build(["dmesg"]), GVisorOciRunOptions(platform=Platform.AUTO)) as job:
        code = job.wait(timeout=30)
    print(code, job.achieved, job.record.path)

Or, for whoever wants a program's output rather than a launch:

    from nucleus_gvisor.runtime import Sandbox, run

    print(run(["python3", "-c", "print(6 * 7)"], timeout=10).stdout)
    with Sandbox(env={"LANG": "C.UTF-8"}) as box:
        out, err = box.exec("cat", "/proc/version")

`arun` and `AsyncSandbox` are the same on asyncio. Every public name is here; what is not here may change.
"""

from typing import TYPE_CHECKING, Any

from nucleus_gvisor.model.errors import (
    BadArgument,
    BadBase,
    BadBundle,
    BadId,
    BadPath,
    BadRequest,
    Busy,
    Changed,
    ChildDied,
    ConfineFailed,
    Error,
    ExecFailed,
    GuardRefused,
    Incompatible,
    LaunchError,
    Limit,
    NoSpace,
    NotElf,
    NotExecutable,
    NotFound,
    NotProved,
    NotRegular,
    NotRunsc,
    PinMismatch,
    RecordRejected,
    Refused,
    SafetyViolation,
    StepFailed,
    Symlink,
    TooBig,
    Unfit,
    Unsupported,
    Untrusted,
)
from nucleus_gvisor.runtime.audit import Record
from nucleus_gvisor.runtime.bounds import RecordBounds
from nucleus_gvisor.runtime.bundle import Mount, MountType, OciBundle
from nucleus_gvisor.runtime.errors import (
    CannotExec,
    CopyFailed,
    GuestFailed,
    HookFailed,
    LifetimeExpired,
    LimitUnavailable,
    NoEventLoop,
    OutOfDisk,
    OutOfMemory,
    OutputLimit,
    PoststartFailed,
    RecordsFull,
    RunscFailed,
    SandboxError,
    SandboxGone,
    StartFailed,
    SyncFailed,
    TimeoutExpired,
    TooManyProcesses,
    WorkspaceConflict,
)
from nucleus_gvisor.runtime.files import FileKind, Files, FileStat
from nucleus_gvisor.runtime.gvisor import GVisorRuntime, RunscPath, SandboxProcess
from nucleus_gvisor.runtime.limits import Limits
from nucleus_gvisor.runtime.options import (
    Audit,
    Confinement,
    Enforcement,
    GVisorOciRunOptions,
    NetworkMode,
    Platform,
    Program,
    StageMethod,
    Writable,
)
from nucleus_gvisor.runtime.request import SandboxOptions
from nucleus_gvisor.runtime.runsc import Release
from nucleus_gvisor.runtime.sandbox import Completed, CompletedRun, GuestProcess, LivingOptions, Process, Sandbox, run
from nucleus_gvisor.runtime.secret_files import Credential, SecretSource
from nucleus_gvisor.runtime.version import VERSION as __version__
from nucleus_gvisor.runtime.workspace import Changes, Sync, WorkspaceMode

if TYPE_CHECKING:
    from nucleus_gvisor.runtime.aio import AsyncFiles, AsyncGuestProcess, AsyncSandbox, arun

__all__ = [
    "AsyncFiles",
    "AsyncGuestProcess",
    "AsyncSandbox",
    "Audit",
    "BadArgument",
    "BadBase",
    "BadBundle",
    "BadId",
    "BadPath",
    "BadRequest",
    "Busy",
    "CannotExec",
    "Changed",
    "Changes",
    "ChildDied",
    "Completed",
    "CompletedRun",
    "ConfineFailed",
    "Confinement",
    "CopyFailed",
    "Credential",
    "Enforcement",
    "Error",
    "ExecFailed",
    "FileKind",
    "FileStat",
    "Files",
    "GVisorOciRunOptions",
    "GVisorRuntime",
    "GuardRefused",
    "GuestFailed",
    "GuestProcess",
    "HookFailed",
    "Incompatible",
    "LaunchError",
    "LifetimeExpired",
    "Limit",
    "LimitUnavailable",
    "Limits",
    "LivingOptions",
    "Mount",
    "MountType",
    "NetworkMode",
    "NoEventLoop",
    "NoSpace",
    "NotElf",
    "NotExecutable",
    "NotFound",
    "NotProved",
    "NotRegular",
    "NotRunsc",
    "OciBundle",
    "OutOfDisk",
    "OutOfMemory",
    "OutputLimit",
    "PinMismatch",
    "Platform",
    "PoststartFailed",
    "Process",
    "Program",
    "Record",
    "RecordBounds",
    "RecordRejected",
    "RecordsFull",
    "Refused",
    "Release",
    "RunscFailed",
    "RunscPath",
    "SafetyViolation",
    "Sandbox",
    "SandboxError",
    "SandboxGone",
    "SandboxOptions",
    "SandboxProcess",
    "SecretSource",
    "StageMethod",
    "StartFailed",
    "StepFailed",
    "Symlink",
    "Sync",
    "SyncFailed",
    "TimeoutExpired",
    "TooBig",
    "TooManyProcesses",
    "Unfit",
    "Unsupported",
    "Untrusted",
    "WorkspaceConflict",
    "WorkspaceMode",
    "Writable",
    "__version__",
    "arun",
    "run",
]


def __getattr__(name: str) -> Any:
    # asyncio takes longer to import than all else here: only whoever wants it pays for it.
    if name in ("AsyncFiles", "AsyncGuestProcess", "AsyncSandbox", "arun"):
        from nucleus_gvisor.runtime import aio

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
