"""The front door: launch untrusted programs under gVisor, verified and on record.

    from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle

    with GVisorRuntime().spawn("job-1", OciBundle.build(["dmesg"]), GVisorOciRunOptions(platform="auto")) as job:
        code = job.wait(timeout=30)
    print(code, job.achieved, job.record.path)

Every public name is here; what is not here may change.
"""

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
from nucleus_gvisor.runtime.bundle import Mount, MountType, OciBundle
from nucleus_gvisor.runtime.gvisor import GVisorRuntime, RunscPath, SandboxProcess
from nucleus_gvisor.runtime.options import (
    Confinement,
    Enforcement,
    GVisorOciRunOptions,
    NetworkMode,
    Platform,
    Program,
    StageMethod,
)
from nucleus_gvisor.runtime.runsc import Release

__all__ = [
    "BadArgument",
    "BadBase",
    "BadBundle",
    "BadId",
    "BadPath",
    "BadRequest",
    "Busy",
    "Changed",
    "ChildDied",
    "ConfineFailed",
    "Confinement",
    "Enforcement",
    "ExecFailed",
    "GVisorOciRunOptions",
    "GVisorRuntime",
    "GuardRefused",
    "Incompatible",
    "LaunchError",
    "Limit",
    "Mount",
    "MountType",
    "NetworkMode",
    "NoSpace",
    "NotElf",
    "NotExecutable",
    "NotFound",
    "NotProved",
    "NotRegular",
    "NotRunsc",
    "OciBundle",
    "PinMismatch",
    "Platform",
    "Program",
    "Record",
    "RecordRejected",
    "Refused",
    "Release",
    "RunscPath",
    "SafetyViolation",
    "SandboxProcess",
    "StageMethod",
    "StepFailed",
    "Symlink",
    "TooBig",
    "Unfit",
    "Unsupported",
    "Untrusted",
]
