"""Which of the sweep's errors each system call can return, by its manual page in section 2, and by what answers for it.

Only calls that are named here are given errors; at every other call (getpid, umask, brk ...) a signal can still end the
process. A container engine's seccomp profile answers EPERM or ENOSYS for calls that it does not know: hence both for
calls that it commonly denies.
"""

import errno

SIGNALS = ("SIGKILL", "SIGTERM")
BURST = 50
"""How often "from then on" means EINTR: a call that is interrupted for ever is a signal storm, and is to be retried."""

_DENIED = "EPERM ENOSYS"
_TABLE = {
    # path_resolution(7) and open(2); EIO is any file system's.
    "open openat": "EIO ENOSPC ENOMEM EMFILE EACCES EPERM EINTR",
    "access faccessat faccessat2": "EIO ENOMEM EACCES",
    "chdir fchdir": "EIO ENOMEM EACCES",
    "chmod fchmod fchmodat": "EIO ENOMEM EACCES EPERM",
    "getcwd": "ENOMEM EACCES",
    "mkdir mkdirat": "EIO ENOSPC ENOMEM EACCES EPERM",
    "readlink readlinkat": "EIO ENOMEM EACCES",
    "rename renameat renameat2 link linkat symlink symlinkat": "EIO ENOSPC ENOMEM EACCES EPERM",
    "rmdir unlink unlinkat": "EIO ENOMEM EACCES EPERM",
    "stat lstat newfstatat statx": "EIO ENOMEM EACCES",
    "statfs fstatfs": "EIO ENOMEM EACCES EINTR",
    # Descriptors.
    "close": "EIO ENOSPC EINTR",
    "close_range": f"ENOMEM EMFILE {_DENIED}",
    "dup dup2 dup3": "EMFILE EINTR",
    "fcntl": "EMFILE EACCES EPERM EINTR",
    "fdatasync fsync": "EIO ENOSPC EINTR",
    "fgetxattr getxattr": "EIO ENOMEM EACCES EPERM",
    "flock": "EINTR ENOMEM",
    "fstat": "EIO ENOMEM",
    "ftruncate": "EIO EPERM EINTR",
    "getdents64": "EIO ENOMEM",
    "ioctl": "EIO ENOMEM EPERM",
    "pipe2": "EMFILE ENOMEM",
    "poll ppoll": "ENOMEM EINTR",
    "read pread64": "EIO ENOMEM EINTR",
    "sendfile": "EIO ENOSPC ENOMEM EINTR",
    "write pwrite64": "EIO ENOSPC ENOMEM EPERM EINTR",
    # Sockets.
    "getsockname": "ENOMEM",
    "recvfrom recvmsg": "ENOMEM EINTR",
    "sendto sendmsg": "ENOMEM EACCES EINTR",
    "socket socketpair": "ENOMEM EMFILE EACCES EPERM",
    # Memory: mmap only, and only for want of it.
    "mmap mremap": "ENOMEM",
    "memfd_create": f"ENOMEM EMFILE EACCES {_DENIED}",
    # Processes.
    "clone clone3 fork vfork": f"ENOMEM {_DENIED}",
    "execve execveat": f"EIO ENOMEM EMFILE EACCES {_DENIED}",
    "getrandom": "EINTR",
    "kill tgkill": "EPERM",
    "pidfd_open": f"ENOMEM EMFILE {_DENIED}",
    "pidfd_send_signal": _DENIED,
    "prctl": "EACCES EPERM",
    "prlimit64": "EPERM",
    "setns unshare": f"ENOSPC ENOMEM {_DENIED}",
    "wait4 waitid": "EINTR",
    # Mounts and confinement.
    "fsconfig": f"EIO ENOSPC ENOMEM EACCES {_DENIED}",
    "fsmount": f"ENOSPC ENOMEM EMFILE {_DENIED}",
    "fsopen": f"ENOMEM EMFILE {_DENIED}",
    "landlock_add_rule landlock_create_ruleset landlock_restrict_self": f"ENOMEM EMFILE {_DENIED}",
    "mount_setattr": f"ENOSPC ENOMEM EACCES {_DENIED}",
    "move_mount": f"ENOSPC ENOMEM EACCES {_DENIED}",
    "open_tree": f"ENOSPC ENOMEM EMFILE EACCES {_DENIED}",
}
ERRORS: dict[str, tuple[str, ...]] = {
    call: tuple(names.split()) for calls, names in _TABLE.items() for call in calls.split()
}
"""System call -> the errors that it is given."""

assert all(hasattr(errno, name) for names in ERRORS.values() for name in names)
