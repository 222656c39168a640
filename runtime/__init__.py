"""The front door: launch untrusted programs under gVisor, verified and on record."""

from nucleus_gvisor.runtime.bundle import Mount, OciBundle
from nucleus_gvisor.runtime.gvisor import GVisorRuntime, SandboxProcess
from nucleus_gvisor.runtime.options import GVisorOciRunOptions, NetworkMode, Platform
