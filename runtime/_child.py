"""What runs in the child between fork and execve: confine, prove, report, wait, execute.

It runs in two ways: forked from a caller with one thread, or in a fresh interpreter (`python -I -S`) started for a
caller with several, because other threads' locks do not survive a fork. So it imports only what is cheap, uses
nothing of its caller but the plan, and talks through one sequenced-packet socket whose end of file is the proof of
execve.

The order is the point. Descriptors are closed before the first unshare: one that was opened outside would reach
around everything that follows. Sources of binds are cloned before the host's mounts lose execution, and attached
afterwards. The nested user namespace comes last: it is what turns the flags into locked ones. Then canaries try
what must be refused. Kernel rules: mount_namespaces(7) "Restrictions on mount namespaces", mount_setattr(2).
"""

import _signal  # type: ignore[import-not-found]  # signal without its enumerations: a millisecond less
import marshal
import os
import sys
import time
from typing import Any, NoReturn

try:
    from nucleus_gvisor.runtime import _attendant
    from nucleus_gvisor.runtime import _linux as linux
except ImportError:  # the fresh interpreter knows this folder only, not the packages
    import _attendant  # type: ignore[import-not-found,no-redef,unused-ignore]
    import _linux as linux  # type: ignore[import-not-found,no-redef,unused-ignore]

FAILED = 125
MAX_PACKET = 1 << 17
WAITING = b"ngv-before-exec"
"""The process's name until execve gives it another: a dead process still has its name, so that it can be told apart."""
IMAGE = "image"
"""Where, below the container's directory, the files of a checkpoint are that is restored."""
PROGRAMS = "programs"
"""Where, below the container's directory, our own programs for the guest lie."""
ANSWER_LIMIT = 1 << 16
ANSWER_SECONDS = 10
CLOSED = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOEXEC
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h
TRIAL = (
    b'{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"args":["/none"],"env":[],"cwd":"/"},'
    b'"root":{"path":"rootfs","readonly":true},"linux":{"namespaces":[]}}'
)
"""The config.json of a sandbox that only shows whether it would be executed."""
KERNEL_SETTINGS = (b"/proc/sys", b"/proc/sysrq-trigger", b"/proc/irq", b"/proc/bus", b"/proc/fs")
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Plan = dict[str, Any]
"""Marshal data; the keys are those of runtime/steps/confine.py."""


class Refused(Exception):
    """A part of the confinement failed: (kind, what was done, errno, text), kind a word that the parent maps."""


def main(plan: Plan, link: int) -> None:
    """Do all of it; returns only by _exit or by becoming the image."""
    step = "start"
    try:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)  # ignored, it would have the kernel reap whom we wait for
        os.umask(0o077)
        linux.arrange(plan["stdio"])
        if plan["die_with_parent"]:
            linux.die_with_parent(_signal.SIGKILL)
            if os.getppid() != plan["parent"]:
                os._exit(FAILED)
        if plan["programs"]:
            # A sandbox that lives on: what a terminal or a shell sends to its owner's process group, Ctrl-C and Ctrl-Z
            # above all, is its owner's to answer. A `run` ends with its caller, and may use the caller's terminal.
            os.setsid()
        step = "close descriptors"
        attendant = set() if plan["attendant"] is None else {plan["attendant"]}
        linux.close_all_but({link, *attendant, *plan["images"].values(), *plan["said"].values()})
        step = plan["confinement"] or "off"
        image, evidence = _CONFINE[plan["confinement"]](plan)
        status = os.fstat(image)
        evidence["image"] = [status.st_dev, status.st_ino]
        step = "ask"
        answers = ask(image, plan["questions"], plan["env"], plan["trial"])
        _send(link, ("confined", evidence, answers))
        _obey(link, image, plan)
    except Refused as error:
        _send(link, ("refused", *error.args))
    except OSError as error:
        _send(link, ("refused", "call", step, error.errno or 0, str(error)))
    except BaseException as error:  # whatever it is must reach the parent, and never its caller's code
        _send(link, ("refused", "defect", step, 0, f"{type(error).__name__}: {error}"))
    finally:
        os._exit(FAILED)


def _send(link: int, message: tuple[Any, ...]) -> None:
    try:
        os.write(link, marshal.dumps(message))
    except OSError:
        os._exit(FAILED)  # nobody is there to be told


def _receive(link: int) -> tuple[Any, ...]:
    packet = os.read(link, MAX_PACKET)
    return tuple(marshal.loads(packet)) if packet else ("end",)


def _obey(link: int, image: int, plan: Plan) -> None:
    """Wait for the word. A parent that dies says nothing, and then nothing is executed.

    Nor does one that executes in place: it enters the namespaces that this process keeps meanwhile, and ends it.
    """
    word = _receive(link)
    if word[0] == "exec":
        argv, env = word[1], word[2]
        try:
            linux.set_name(WAITING)
            named = True
        except OSError:
            named = False
        if plan["attendant"] is not None:
            _attendant.start(plan["attendant"], plan["parent"], image, env)
        _send(link, ("executing", named))
        linux.close_all_but({link, image, *plan["said"].values()})
        for fd in plan["said"].values():
            os.set_inheritable(fd, True)
        os.set_inheritable(link, False)
        os.set_inheritable(image, False)
        try:
            execute(image, argv, env)
        except OSError as error:
            _send(link, ("exec failed", error.errno or 0, str(error)))


def execute(image: int, argv: list[bytes], env: dict[bytes, bytes]) -> NoReturn:
    """Become `image`, with default signals, in `/`. Python ignores SIGPIPE and SIGXFSZ; execve would keep that."""
    os.chdir("/")
    linux.default_signals()
    os.execve(image, argv, env)


# ---- confinements: each returns the descriptor to execute and the evidence ----


def _off(plan: Plan) -> tuple[int, dict[str, object]]:
    return plan["images"]["runsc"], {"confined": "none"}


def _landlock(plan: Plan) -> tuple[int, dict[str, object]]:
    """The reference's execute-only allowlist, without no_new_privs (gvisor.rs:893).

    Spec: GVisorRuntime!ConfineLandlock.
    """
    try:
        restrict(plan["allow"])
    except PermissionError as error:
        text = f"{error}; without no_new_privs it needs CAP_SYS_ADMIN in the user namespace"
        raise Refused("call", "landlock", error.errno or 0, text) from error
    canaries = [_canary(argv) for argv in plan["canaries"]]
    evidence = {
        "confined": "landlock",
        "abi": linux.landlock_abi(),
        "canaries": canaries,
        "allow": [os.fsdecode(path) for path, _ in plan["allow"]],
    }
    return plan["images"]["runsc"], evidence


def restrict(allow: list[tuple[bytes, tuple[int, int]]]) -> None:
    """Landlock: execute nothing but what lies beneath `allow`; each reopened and compared, none skipped."""
    roots = [_reopen(path, identity) for path, identity in allow]
    linux.landlock_execute_only(roots)
    for fd in roots:
        os.close(fd)


def _locked(plan: Plan) -> tuple[int, dict[str, object]]:
    """The private, locked mount namespace. Spec: GVisorRuntime!ConfineLocked."""
    step = "private mount namespace"
    try:
        if privileged():
            linux.unshare(linux.CLONE_NEWNS)
        else:
            enter_user_namespace(linux.CLONE_NEWNS)
        linux.mount_setattr(linux.AT_FDCWD, b"/", propagation=linux.MS_PRIVATE, recursive=True)
        # Both the sources and the place are opened again in this namespace and compared with what was judged: a
        # descriptor from outside is on a mount of the old namespace, and a path may have changed its meaning.
        step = "clone the bundle's binds"
        binds = [_clone(*bind) for bind in plan["binds"]]
        binds += [(_clone_file(path, identity), f"{IMAGE}/{name}") for path, identity, name in plan["image"]]
        place = _reopen(plan["place"], plan["place_identity"])
        devices = [(_device(path), path) for path in plan["devices"] if os.path.exists(path)]
        whole_proc = linux.open_tree(linux.AT_FDCWD, b"/proc") if plan["host_root"] else -1
        step = "close the host's mounts"
        _close_host()
        if plan["host_root"]:
            _close_kernel_settings()
        step = "devices"
        _own_devices(devices)
        step = "private tmpfs"
        work = linux.new_tmpfs(CLOSED, mode="0700", size="64m")
        linux.move_mount(work, place)
        os.close(place)
        step = "lay out"
        lay_out(work, plan)
        if plan["host_root"]:
            _keep_whole_proc(whole_proc, work)
        image = _attach(work, plan, binds)
        os.close(work)
        step = "lock"
        enter_user_namespace(linux.CLONE_NEWNS | (linux.CLONE_NEWNET if plan["network"] else 0))
        if plan["set"]:
            image = _again_here(image, plan["place"] + b"/set/runsc")
        if plan["network"]:
            step = "network namespace"
            _loopback_up()
            _hide_root_network_mark()
        linux.no_new_privs()
        # The parent is to look at this process through /proc, and in-place to enter its namespaces.
        linux.set_dumpable()
    except OSError as error:
        raise Refused("call", step, error.errno or 0, str(error)) from error
    return image, _prove(plan)


_CONFINE = {None: _off, "landlock": _landlock, "mount-locked": _locked}


def privileged() -> bool:
    """Is CAP_SYS_ADMIN effective in the current user namespace (capabilities(7), /proc/self/status)."""
    lines = _read(b"/proc/self/status").split(b"\n")
    return any(line.startswith(b"CapEff:") and int(line.split()[1], 16) >> 21 & 1 for line in lines)


def enter_user_namespace(more: int) -> None:
    """A user namespace (and those in `more`) in which the caller's ids are root's and no other id exists."""
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER | more)
    # user_namespaces(7): without CAP_SETGID outside, gid_map may be written only once setgroups is denied.
    if _read(b"/proc/self/setgroups").strip() != b"deny":
        _write(b"/proc/self/setgroups", b"deny")
    _write(b"/proc/self/uid_map", b"0 %d 1" % uid)
    _write(b"/proc/self/gid_map", b"0 %d 1" % gid)


def _read(path: bytes) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _write(path: bytes, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def _reopen(path: bytes, identity: tuple[int, int]) -> int:
    """An O_PATH descriptor of `path` in this namespace; Refused unless it is still the object that was judged."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) != tuple(identity):
        raise Refused("changed", os.fsdecode(path), 0, "another object lies there than the one that was judged")
    return fd


def _clone(path: bytes, identity: tuple[int, int], target: str, readonly: bool, recursive: bool) -> tuple[int, str]:
    """A detached mount of `path`, executable for the guest, writable only if the bundle says so."""
    source = _reopen(path, identity)
    clone = linux.open_tree(source, recursive=recursive)
    os.close(source)
    try:
        # All of them: releases before mid-2025 remount read-only without naming flags that are locked, and get EPERM.
        linux.mount_setattr(
            clone,
            b"",
            clear=CLOSED,
            set=linux.MOUNT_ATTR_RDONLY if readonly else 0,
            recursive=recursive,
        )
    except PermissionError as error:
        text = "the host holds it on a mount whose noexec, nosuid or nodev cannot be cleared in a user namespace"
        raise Refused("bind", os.fsdecode(path), error.errno or 0, text) from error
    return clone, target


def _clone_file(path: bytes, identity: tuple[int, int]) -> int:
    """A detached mount of file `path`, to be read and nothing else."""
    source = _reopen(path, identity)
    clone = linux.open_tree(source)
    os.close(source)
    linux.mount_setattr(clone, b"", set=CLOSED | linux.MOUNT_ATTR_RDONLY)
    return clone


def _close_host() -> None:
    """Nothing of the host can be executed, gain privilege, reach a device or be written.

    /proc stays writable: runsc writes its children's id maps there.
    """
    proc_is_readonly = os.statvfs("/proc").f_flag & os.ST_RDONLY
    linux.mount_setattr(linux.AT_FDCWD, b"/", set=CLOSED | linux.MOUNT_ATTR_RDONLY, recursive=True)
    if not proc_is_readonly:
        linux.mount_setattr(linux.AT_FDCWD, b"/proc", clear=linux.MOUNT_ATTR_RDONLY)


def _close_kernel_settings() -> None:
    """Cover what root owns in /proc with itself, read-only: one line in core_pattern would be host code."""
    for name in KERNEL_SETTINGS:
        if os.path.exists(name):
            place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            cover = linux.open_tree(place, recursive=True)
            linux.mount_setattr(cover, b"", set=CLOSED | linux.MOUNT_ATTR_RDONLY, recursive=True)
            linux.move_mount(cover, place)
            os.close(cover)
            os.close(place)


def _keep_whole_proc(proc: int, work: int) -> None:
    """A read-only /proc without covers, out of the way: the kernel lets a user namespace mount a proc of its own, as
    runsc must, only where one is wholly visible (mount_too_revealing in fs/namespace.c).
    """
    linux.mount_setattr(proc, b"", set=CLOSED | linux.MOUNT_ATTR_RDONLY)
    os.mkdir("proc", 0o700, dir_fd=work)
    place = os.open("proc", DIRECTORY, dir_fd=work)
    linux.move_mount(proc, place)
    os.close(place)
    os.close(proc)


def _device(path: bytes) -> int:
    """A detached mount of one device node, taken while devices still work."""
    return linux.open_tree(linux.AT_FDCWD, path)


def _own_devices(devices: list[tuple[int, bytes]]) -> None:
    """A /dev with harmless devices alone. Root's supervisor is root to device nodes: a disk is the host."""
    tree = linux.new_tmpfs(linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC, mode="0755", size="64k")
    place = os.open("/dev", DIRECTORY)
    linux.move_mount(tree, place)
    os.close(place)
    for clone, path in devices:
        name = os.path.basename(path)
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=tree))
        onto = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=tree)
        linux.move_mount(clone, onto)
        os.close(onto)
        os.close(clone)
    linux.mount_setattr(tree, b"", set=CLOSED | linux.MOUNT_ATTR_RDONLY)
    os.close(tree)


def _again_here(image: int, path: bytes) -> int:
    """`image` opened again by path: runsc looks beside what /proc/self/exe names, and that must be in its namespace."""
    again = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not os.path.samestat(os.fstat(again), os.fstat(image)):  # pragma: no cover - only this process reaches the tmpfs
        raise Refused("changed", os.fsdecode(path), 0, "another file than the one that was staged")
    os.close(image)
    return again


def lay_out(work: int, plan: Plan) -> None:
    """The launch's own directories and the private config.json, below directory `work`; all 0700 and 0600."""
    for name in ("runsc-root", "runtime", "bundle", "rootfs", "mnt"):
        os.mkdir(name, 0o700, dir_fd=work)
        os.chmod(name, 0o700, dir_fd=work)  # whatever the umask: on disk it is the caller's
    if plan["image"]:
        os.mkdir(IMAGE, 0o700, dir_fd=work)
        if plan["confinement"] != "mount-locked":
            for path, _, name in plan["image"]:  # the directory itself may hold names that runsc must not see
                os.symlink(path, f"{IMAGE}/{name}", dir_fd=work)
    bundle = os.open("bundle", DIRECTORY, dir_fd=work)
    config = os.open(
        "config.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=bundle
    )
    left = memoryview(plan["config"])
    while left:
        left = left[os.write(config, left) :]
    os.close(config)
    os.close(bundle)
    if plan["trial"]:
        _lay_out_trial(work)
    if plan["skeleton"] is not None and plan["confinement"] != "mount-locked":
        rootfs = os.open("rootfs", DIRECTORY, dir_fd=work)
        _mount_points(rootfs, plan["skeleton"])
        os.close(rootfs)
    if plan["programs"] and plan["confinement"] != "mount-locked":
        os.mkdir(PROGRAMS, 0o700, dir_fd=work)
        programs = os.open(PROGRAMS, DIRECTORY, dir_fd=work)
        _write_programs(programs, plan["programs"])
        os.close(programs)


def _lay_out_trial(work: int) -> None:
    """A bundle of nothing."""
    for name in ("trial", "trial/root", "trial/rootfs"):
        os.mkdir(name, 0o700, dir_fd=work)
    config = os.open("trial/config.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=work)
    os.write(config, TRIAL)
    os.close(config)


def _mount_points(root: int, points: list[tuple[str, bool]]) -> None:
    """Empty directories (or, for a bind of a file, empty files) at each of `points`, relative to `root`."""
    for path, is_directory in points:
        parts = [part for part in path.split("/") if part]
        parent = os.dup(root)
        for number, name in enumerate(parts):
            try:
                if is_directory or number < len(parts) - 1:
                    os.mkdir(name, 0o755, dir_fd=parent)
                    os.chmod(name, 0o755, dir_fd=parent)
                else:
                    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent))
            except FileExistsError:
                pass
            if number < len(parts) - 1:
                below = os.open(name, DIRECTORY, dir_fd=parent)
                os.close(parent)
                parent = below
        os.close(parent)


def _own_files(files: dict[str, bytes]) -> int:
    """Programs of ours for the guest, on a read-only file system of their own."""
    tree = linux.new_tmpfs(0, mode="0755", size="64k")
    _write_programs(tree, files)
    linux.mount_setattr(tree, b"", set=linux.MOUNT_ATTR_RDONLY)
    return tree


def _write_programs(directory: int, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o500, dir_fd=directory)
        os.write(fd, content)
        os.fchmod(fd, 0o555)
        os.close(fd)


def _attach(work: int, plan: Plan, binds: list[tuple[int, str]]) -> int:
    """Attach the clones below `work`; returns the descriptor that will be executed."""
    if plan["skeleton"] is not None:
        # A file system of its own: below `work` it could be written by one path and executed by the other.
        skeleton = linux.new_tmpfs(0, mode="0755", size="1m")
        _mount_points(skeleton, plan["skeleton"])
        linux.mount_setattr(skeleton, b"", set=linux.MOUNT_ATTR_RDONLY)
        binds = [(skeleton, "rootfs"), *binds]
    if plan["programs"]:
        binds = [*binds, (_own_files(plan["programs"]), PROGRAMS)]
    if plan["missing"]:
        binds = [(_with_points(work, c, plan["missing"]) if t == "rootfs" else c, t) for c, t in binds]
    for clone, target in binds:
        onto = _target(work, target, os.fstat(clone).st_mode)
        linux.move_mount(clone, onto)
        os.close(onto)
        os.close(clone)
    if plan["set"]:
        return _materialise(work, plan["images"])
    return int(plan["images"]["runsc"])


def _with_points(work: int, root: int, points: list[tuple[str, bool]]) -> int:
    """The tree `root`, which becomes read-only, with the mount points that it lacks: runsc would make them in it."""
    below = linux.new_tmpfs(0, mode="0755", size="1m")
    _mount_points(below, points)
    linux.mount_setattr(below, b"", set=linux.MOUNT_ATTR_RDONLY)
    for name, tree in (("root", root), ("points", below)):
        onto = _target(work, name, 0o040000)
        linux.move_mount(tree, onto)
        os.close(onto)
        os.close(tree)
    os.fchdir(work)  # so no part of a path has to be escaped
    try:
        return linux.new_mount(b"overlay", linux.MOUNT_ATTR_RDONLY, lowerdir="root:points")
    except OSError as error:
        raise Refused("points", points[0][0], error.errno or 0, str(error)) from error
    finally:
        os.chdir("/")


def _target(work: int, target: str, mode: int) -> int:
    """An O_PATH descriptor of the place `target`, made as directory or file to match what goes there."""
    if target != "rootfs":
        if mode & 0o170000 == 0o040000:
            os.mkdir(target, 0o700, dir_fd=work)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=work))
    return os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work)


def _materialise(work: int, images: dict[str, int]) -> int:
    """The set on a tmpfs of its own, read-only before anything can run from it; returns its runsc."""
    size = sum(os.fstat(fd).st_size for fd in images.values())
    tree = linux.new_tmpfs(0, mode="0755", size=str(size + (1 << 20)))
    os.mkdir("gvisor-bin", 0o755, dir_fd=tree)
    os.chmod("gvisor-bin", 0o755, dir_fd=tree)
    for name, source in images.items():
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o500, dir_fd=tree)
        os.fchmod(fd, 0o555)  # runsc may re-execute itself as nobody
        offset = 0
        while sent := os.sendfile(fd, source, offset, 1 << 30):
            offset += sent
        while part := os.pread(source, 1 << 20, offset - os.fstat(source).st_size):
            copied = os.pread(fd, len(part), offset - os.fstat(source).st_size)
            if copied != part:  # pragma: no cover - the tmpfs is this process's own: only bad memory would differ
                raise Refused("changed", name, 0, "the copy on the tmpfs differs from the sealed bytes")
            offset += len(part)
        os.close(fd)
    linux.mount_setattr(tree, b"", set=linux.MOUNT_ATTR_RDONLY)
    os.mkdir("set", 0o700, dir_fd=work)
    onto = os.open("set", DIRECTORY, dir_fd=work)
    linux.move_mount(tree, onto)
    os.close(onto)
    image = os.open("runsc", os.O_RDONLY | os.O_CLOEXEC, dir_fd=tree)
    os.close(tree)
    return image


def _loopback_up() -> None:
    """A new network namespace has its loopback down, and runsc copies what is up (netdevice(7))."""
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as anything:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(anything, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(anything, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def _hide_root_network_mark() -> None:
    """Releases up to 2024 take a namespace for the host's when net/core/rmem_max is there; of late it always is.

    The network namespace was made a moment ago by this process: it is not the host's.
    """
    core = b"/proc/sys/net/core"
    if os.path.exists(core + b"/rmem_max"):  # pragma: no branch - older kernels show it to the host alone
        onto = os.open(core, DIRECTORY)
        cover = linux.new_tmpfs(CLOSED | linux.MOUNT_ATTR_RDONLY, size="4k")
        linux.move_mount(cover, onto)
        os.close(cover)
        os.close(onto)


# ---- proof, from inside ----


def _prove(plan: Plan) -> dict[str, object]:
    """Try what must be refused, and read the kernel's own list of mounts."""
    if not linux.has_no_new_privs():
        raise Refused("proof", "no_new_privs", 0, "is not set")
    canaries = [_canary(argv) for argv in plan["canaries"]]
    for attribute, name in ((linux.MOUNT_ATTR_NOEXEC, "noexec"), (linux.MOUNT_ATTR_NOSUID, "nosuid")):
        try:
            linux.mount_setattr(linux.AT_FDCWD, b"/", clear=attribute)
        except PermissionError:
            continue
        raise Refused("proof", "undo", 0, f"{name} of / could be cleared from inside")
    mounts, open_ones = _mounts(plan["place"])
    if open_ones:
        raise Refused("proof", os.fsdecode(open_ones[0]), 0, "a host mount without nosuid,nodev,noexec is left")
    return {
        "confined": "mount-locked",
        "no_new_privs": True,
        "canaries": canaries,
        "undo": "EPERM",
        "host_mounts": mounts,
        "user_namespace": os.readlink("/proc/self/ns/user"),
        "mount_namespace": os.readlink("/proc/self/ns/mnt"),
        # What is open by nature is said, not hidden: whoever can mount can execute from a memfd or a new tmpfs.
        "open": ["memfd", "tmpfs"],
    }


def _canary(argv: list[bytes]) -> dict[str, str]:
    """Execute a host program in place: it must be refused. If it is not, this process becomes it, and nothing runs."""
    try:
        os.execve(argv[0], argv, {})
    except PermissionError:
        return {"path": os.fsdecode(argv[0]), "answer": "EACCES"}
    except OSError as error:
        raise Refused("proof", os.fsdecode(argv[0]), error.errno or 0, "was not refused by the confinement") from error


def _mounts(place: bytes) -> tuple[int, list[bytes]]:
    """How many host mounts there are, and those that lack a flag; ours lie below `place` (proc(5), mountinfo)."""
    open_ones, count = [], 0
    for line in _read(b"/proc/self/mountinfo").splitlines():
        fields = line.split(b" ")
        point = fields[4]
        if b"\\" in point:  # \040 for a space; each child would import that codec anew
            point = point.decode("unicode_escape").encode("latin-1")
        if point.startswith((place + b"/", b"/dev/")):
            continue
        count += 1
        if not {b"nosuid", b"nodev", b"noexec"} <= set(fields[5].split(b",")):
            open_ones.append(point)
    return count, open_ones


def ask(
    image: int, questions: list[list[bytes]], env: dict[bytes, bytes], trial: list[bytes] | None = None
) -> list[tuple[int, bytes]]:
    """Run the image with each argv, where it is confined; (wait status, output) of each, bounded in time and size.

    `trial` is one more argv, that of a sandbox: it is ended as soon as that is executed, and leaves none.
    """
    started: list[tuple[int, int]] = []
    asker = os.getpid()
    try:
        for argv in [*questions, *([trial] if trial else [])]:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
            if pid == 0:
                try:
                    null = os.open("/dev/null", os.O_RDWR)
                    for target, fd in enumerate((null, writer, writer)):
                        os.dup2(fd, target)
                    try:
                        linux.die_with_parent(_signal.SIGKILL)
                    except OSError:
                        pass  # the deadline ends it all the same
                    if argv is trial:
                        # No sandbox comes up, whatever becomes of us: its memory is a large file (MemoryFile in
                        # gVisor's pkg/sentry/pgalloc).
                        linux.limit_file_size(1 << 20)
                    # Who died before that call sends no signal.
                    if os.getppid() == asker:  # pragma: no branch - the asker would have to die in these microseconds
                        execute(image, argv, env)
                finally:
                    os._exit(FAILED)
            started.append((pid, reader))
            os.close(writer)
        end = time.monotonic() + ANSWER_SECONDS
        if trial:
            _end_with_its_sandbox(*started[-1], end)
        return [_answer(pid, reader, end) for pid, reader in started]
    except BaseException:
        for pid, _ in started:  # nothing of a launch outlives its failure
            _end(pid)
        raise


def _end_with_its_sandbox(pid: int, reader: int, end: float) -> None:
    """Kill runsc, and all below it, once it has executed its sandbox; or do nothing, once it has ended."""
    import select

    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while not poll.poll(1) and time.monotonic() < end:
            if any(b"\0boot\0" in _arguments(child) for child in linux.children(pid)):
                break
        linux.kill_with_all_below(pid, pidfd)
    except ProcessLookupError:
        pass  # it has ended
    finally:
        os.close(pidfd)


def _arguments(pid: int) -> bytes:
    try:
        return _read(b"/proc/%d/cmdline" % pid)
    except OSError:
        return b""  # it has ended


def _end(pid: int) -> None:
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == 0:  # pragma: no branch - whether it has ended by itself is chance
            os.kill(pid, _signal.SIGKILL)
            os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # it was waited for


def _answer(pid: int, reader: int, end: float) -> tuple[int, bytes]:
    import select

    output = b""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while len(output) < ANSWER_LIMIT and poll.poll(max(0.0, end - time.monotonic()) * 1000):
        part = os.read(reader, ANSWER_LIMIT)
        if not part:
            break
        output += part
    os.close(reader)
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status, output
        time.sleep(0.0005)
    os.kill(pid, _signal.SIGKILL)
    return os.waitpid(pid, 0)[1], output


def fresh() -> None:
    """Entry of the fresh interpreter: the plan is in the memfd, the socket beside it (argv: library, plan, link)."""
    plan_fd, link = int(sys.argv[2]), int(sys.argv[3])
    _send(link, ("fresh",))
    # What came through execve would go through the next one too, to the image when it is asked.
    linux.close_range(3, 0x7FFFFFFF, linux.CLOSE_RANGE_CLOEXEC)
    size = os.fstat(plan_fd).st_size
    plan = marshal.loads(os.pread(plan_fd, size, 0))
    main(plan, link)
