"""What a host is like that lets a launch come to runsc, and runsc not to a guest."""

import os

PROC_MENDS = (
    "let this process see a whole /proc: without ProtectKernelTunables=, ProtectKernelLogs=, ProtectControlGroups= or"
    " ProcSubset= of the systemd service, or with the container's /proc unmasked; a release of runsc from 2024 on needs"
    " none; or launch as root of the host"
)


def start_cause() -> tuple[str, str] | None:
    """A known cause, as this host is, why runsc does not start a guest, and its mend; None where none is known."""
    for kind in ("net", "pid", "ipc", "uts"):
        limit = f"user.max_{kind}_namespaces"
        if _sysctl(limit) == "0":
            return f"{limit} is 0, and runsc makes such a namespace for each guest", f"sysctl -w {limit}=15000"
    covered = proc_covers()
    if not covered:
        return None
    names = ", ".join(map(os.fsdecode, covered[:4])) + (", ..." if len(covered) > 4 else "")
    cause = (
        f"parts of /proc are covered or read-only ({names}): there the kernel lets no user namespace have a proc of its"
        " own, which this release of runsc mounts (mount_too_revealing in fs/namespace.c)"
    )
    return cause, PROC_MENDS


def _sysctl(name: str) -> str:
    try:
        with open("/proc/sys/" + name.replace(".", "/")) as file:
            return file.read().strip()
    except OSError:
        return ""


def proc_covers() -> list[bytes]:
    """What hides or write-protects parts of /proc here: the mount points below it, and itself where it is read-only.

    A mount over a directory that is always empty hides nothing, as the kernel sees it.
    """
    covers = []
    with open("/proc/self/mountinfo", "rb") as file:
        for fields in map(bytes.split, file):
            point, read_only = fields[4], b"ro" in fields[5].split(b",")
            below = point.startswith(b"/proc/") and point != b"/proc/sys/fs/binfmt_misc"
            if below or (point == b"/proc" and read_only):
                covers.append(point)
    return covers
