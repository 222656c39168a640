"""What runs in the child between fork and execve: confine, prove, report, wait, execute.

It runs in two ways: forked from a caller with one thread, or in a fresh interpreter (`python -I -S`) started for a
caller with several, because other threads' locks do not survive a fork. So it imports only what is cheap, uses
nothing of its caller but the plan, and talks through one sequenced-packet socket whose end of file is the proof of
execve.

The order is the point. Descriptors are closed before the first unshare: one that was opened outside would reach
around everything that follows. Sources of binds are cloned before the host's mounts lose execution, and attached
afterwards, to a root of the launch's own; the host's is detached. The nested user namespace comes last: it is what
turns the flags into locked ones. Then signals and abstract sockets are scoped, and canaries try what must be refused.
Kernel rules: mount_namespaces(7) "Restrictions on mount namespaces", mount_setattr(2), pivot_root(2), landlock(7).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal without its enumerations: a millisecond less
import marshal
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # a fresh interpreter does without these modules, and the dozen that they import
    from collections.abc import Callable
    from typing import Any, NoReturn

try:
    from nucleus_gvisor.runtime import _attendant
    from nucleus_gvisor.runtime import _linux as linux
except ImportError:  # the fresh interpreter knows this folder only, not the packages
    import _attendant  # type: ignore[import-not-found,no-redef,unused-ignore]
    import _linux as linux  # type: ignore[import-not-found,no-redef,unused-ignore]

FAILED = 125
MAX_PACKET = 1 << 17
SCOPE = "scope of signals"
"""The step of what only newer kernels have."""
WAITING = b"ngv-before-exec"
"""The process's name until execve gives it another: a dead process still has its name, so that it can be told apart."""
IMAGE = "image"
"""Where, below the container's directory, the files of a checkpoint are that is restored."""
STORE = "store"
"""Where, below the container's directory, the layer of a guest is that writes to disk."""
SECRETS = "secrets"
"""Where, below the container's directory, secret files are, by their numbers."""
TREE = "tree"
"""How the directories of trees of ours are called there, before their numbers."""
IMAGE_NAME = "memfd:runsc"
"""What a launch's root has at the place that a staged image's name in /proc/self/exe names."""
AS_CALLER, AS_ANOTHER = b"the sandbox runs as its caller", b"the sandbox runs as another user"
"""What is added to the words of a trial whose sandbox does."""
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

Plan = dict[str, "Any"]
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
        if plan.get("mark"):
            linux.set_mark(plan["mark"])
        if plan["lives"] or linux.ignores_its_group():
            # A sandbox that lives on: what a terminal or a shell sends to its owner's process group, Ctrl-C and Ctrl-Z
            # above all, is its owner's to answer. A `run` ends with its caller, and may use the caller's terminal;
            # unless what ends the group is not to end the caller (nohup(1), a shell's background).
            os.setsid()
        step = "close descriptors"
        attendant = set() if plan["attendant"] is None else {plan["attendant"]}
        linux.close_all_but({link, *attendant, *plan["images"].values(), *plan["said"].values()})
        step = plan["confinement"] or "off"
        plan["link"] = link
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
            if plan.get("scoped"):
                # SAFETY: a scope of its own: a supervisor that was taken over can neither signal nor trace the
                # attendant and runsc's other commands, which are outside of it; they can signal it.
                linux.landlock_scope()
        if plan.get("mark"):
            linux.set_mark(plan["mark"] - 1)
        _send(link, ("executing", named))
        # A runsc without the flag for a log gets none, nor does a program that is not runsc.
        said = [fd for fd in plan["said"].values() if b"/proc/self/fd/%d" % fd in argv]
        linux.close_all_but({link, image, *said})
        for fd in said:
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
    # Only an outermost root, not one of a namespace that this process makes: nobody else could write its map.
    is_root = privileged() and os.geteuid() == os.getegid() == 0
    try:
        ranged = False
        if privileged():
            linux.unshare(linux.CLONE_NEWNS)
        else:
            ask = (lambda: _ask_for_ids(plan["link"])) if plan["ranges"] else None
            ranged = enter_user_namespace(linux.CLONE_NEWNS, ask)
        linux.mount_setattr(linux.AT_FDCWD, b"/", propagation=linux.MS_PRIVATE, recursive=True)
        # Both the sources and the place are opened again in this namespace and compared with what was judged: a
        # descriptor from outside is on a mount of the old namespace, and a path may have changed its meaning.
        step = "clone the bundle's binds"
        binds = [_clone(*bind) for bind in plan["binds"]]
        binds += [(_clone_file(path, identity), f"{IMAGE}/{name}") for path, identity, name in plan["image"]]
        kept = {name: _clone_executable(*file) for name, file in plan["bound"].items()}
        place = _reopen(plan["place"], plan["place_identity"])
        if plan["store"]:
            binds.append((_clone_store(place), STORE))
        devices = [(_device(path), path) for path in plan["devices"] if os.path.exists(path)]
        whole_proc = linux.open_tree(linux.AT_FDCWD, b"/proc") if plan["host_root"] else -1
        step = "close the host's mounts"
        _close_host()
        if plan["host_root"]:
            _close_kernel_settings()
        # On mounts that are closed by now; what is detached below can be reached by these alone, and is tried by them.
        plan["opened"] = [os.open(argv[0], os.O_PATH | os.O_CLOEXEC) for argv in plan["canaries"]]
        step = "root"
        root = _own_root(plan["place"], place, devices)
        step = "private tmpfs"
        work = linux.new_tmpfs(CLOSED, mode="0700", size="64m")
        place = os.open(plan["place"], DIRECTORY)
        linux.move_mount(work, place)
        os.close(place)
        linux.mount_setattr(root, b"", set=CLOSED | linux.MOUNT_ATTR_RDONLY)
        os.close(root)
        step = "lay out"
        lay_out(work, plan)
        if plan["host_root"]:
            _keep_whole_proc(whole_proc, work)
        image = _attach(work, plan, binds)
        _cover(work, plan["covers"])
        if kept:
            image = _bind_executables(work, plan["bound"], kept)
        os.close(work)
        step = "lock"
        more = linux.CLONE_NEWNS | linux.CLONE_NEWIPC | (linux.CLONE_NEWNET if plan["network"] else 0)
        # SAFETY: other ids only where neither their files nor their processes can be reached.
        scoped = linux.landlock_has_scope()
        ask = _mapper() if ranged and scoped else (lambda: _ask_for_ids(plan["link"])) if is_root and scoped else None
        mapped = enter_user_namespace(more, ask)
        plan["ids"] = "one" if not mapped else "subordinate" if ranged else "all"
        if plan["set"] or kept:
            image = _again_here(image, plan["place"] + b"/set/runsc")
        if plan["network"]:
            step = "network namespace"
            _loopback_up()
            _hide_root_network_mark()
        linux.no_new_privs()
        # The parent is to look at this process through /proc, and in-place to enter its namespaces.
        linux.set_dumpable()
        step = SCOPE
        plan["scoped"] = _scope(plan)
    except OSError as error:
        raise Refused("call", step, error.errno or 0, str(error)) from error
    return image, _prove(plan)


def _scope(plan: Plan) -> list[dict[str, str]]:
    """Neither signal nor reach by an abstract socket what is outside; what was tried of it.

    Nothing is tried, and nothing of it in force, where the kernel has no such scope and none was required.
    """
    listener = linux.unix_socket()
    try:
        listener.bind("")  # an abstract name that the kernel chooses, unix(7)
        listener.listen(1)
        try:
            linux.landlock_scope()
        except OSError:
            if plan["signal_scope"] or plan["ids"] != "one":
                raise
            return []
        return [_no_signal(plan["parent"]), _no_connection(listener.getsockname())]
    finally:
        listener.close()


def _no_signal(pid: int) -> dict[str, str]:
    """A canary: the process outside that would always permit it is asked whether it would take a signal."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return {"path": "signal to the parent", "answer": "EPERM"}
    raise Refused("proof", "signal", 0, "a process outside can be signalled")


def _no_connection(name: bytes) -> dict[str, str]:
    """A canary: connect to a socket that was made outside of the scope."""
    caller = linux.unix_socket()
    try:
        caller.connect(name)
    except PermissionError:
        return {"path": "abstract socket", "answer": "EPERM"}
    finally:
        caller.close()
    raise Refused("proof", "abstract socket", 0, "one from outside can be connected to")


_CONFINE = {None: _off, "landlock": _landlock, "mount-locked": _locked}


def privileged() -> bool:
    """Is CAP_SYS_ADMIN effective in the current user namespace (capabilities(7), /proc/self/status)."""
    lines = _read(b"/proc/self/status").split(b"\n")
    return any(line.startswith(b"CapEff:") and int(line.split()[1], 16) >> 21 & 1 for line in lines)


def enter_user_namespace(more: int, ask: Callable[[], bool] | None = None) -> bool:
    """A user namespace (and those in `more`) in which the caller's ids are root's and no other id exists.

    Or one with more ids, which somebody outside has mapped when `ask` says so, who alone may. Was it that.
    """
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER | more)
    if ask is not None and ask():
        return True
    # user_namespaces(7): without CAP_SETGID outside, gid_map may be written only once setgroups is denied.
    if _read(b"/proc/self/setgroups").strip() != b"deny":
        _write(b"/proc/self/setgroups", b"deny")
    _write(b"/proc/self/uid_map", b"0 %d 1" % uid)
    _write(b"/proc/self/gid_map", b"0 %d 1" % gid)
    return False


def _ask_for_ids(link: int) -> bool:
    """Have the parent map ids."""
    _send(link, ("map",))
    return _receive(link) == ("mapped", True)


def _mapper() -> Callable[[], bool]:
    """Have a process that stays in this user namespace map all its ids, each as itself, in the one entered next.

    The parent is in none of the two, and may not.
    """
    entering = os.getpid()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writer)
            if os.read(reader, 1):
                for kind in (b"uid", b"gid"):
                    ranges = [line.split() for line in _read(b"/proc/self/%s_map" % kind).splitlines()]
                    text = b"".join(b"%s %s %s\n" % (inside, inside, count) for inside, _, count in ranges)
                    _write(b"/proc/%d/%s_map" % (entering, kind), text)
                os._exit(0)
        finally:
            os._exit(FAILED)
    os.close(reader)

    def ask() -> bool:
        os.write(writer, b"m")
        os.close(writer)
        return os.waitpid(pid, 0)[1] == 0

    return ask


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


def _clone_executable(path: bytes, numbers: tuple[int, ...], kind: str) -> int:
    """A detached mount of a file that will be executed, which nobody writes by it."""
    try:
        source = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Refused(kind, os.fsdecode(path), error.errno or 0, "it is gone") from error
    _compare(source, path, numbers, kind)
    clone = linux.open_tree(source)
    os.close(source)
    linux.mount_setattr(
        clone,
        b"",
        set=linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV,
        clear=linux.MOUNT_ATTR_NOEXEC,
    )
    return clone


def _compare(fd: int, path: bytes, numbers: tuple[int, ...], kind: str) -> None:
    """Refused unless the file is what it was when its bytes were verified: a write, another mode or name changes it."""
    status = os.fstat(fd)
    seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if seen != tuple(numbers):
        raise Refused(kind, os.fsdecode(path), 0, "another file, or another size, mode, name or time")


def _cover(work: int, covers: list[tuple[str, bytes]]) -> None:
    """Hide directories of ours in what the guest is given to read, and so in what the supervisor reads."""
    for target, below in covers:
        onto = os.open(target, DIRECTORY, dir_fd=work)
        try:
            for name in below.split(b"/") if below else ():
                inner = os.open(name, DIRECTORY, dir_fd=onto)
                os.close(onto)
                onto = inner
        except FileNotFoundError:
            os.close(onto)
            continue
        cover = linux.new_tmpfs(CLOSED | linux.MOUNT_ATTR_RDONLY, mode="0755", size="4k")
        linux.move_mount(cover, onto)
        os.close(cover)
        os.close(onto)


def _bind_executables(work: int, files: dict[str, tuple[bytes, tuple[int, ...], str]], clones: dict[str, int]) -> int:
    """The files where runsc looks for them, in a directory that cannot be changed; returns its runsc.

    What is bound is compared once more: from here on only who could write the file itself could change what runs.
    """
    os.mkdir("set", 0o700, dir_fd=work)
    onto = os.open("set", DIRECTORY, dir_fd=work)
    tree = linux.new_tmpfs(CLOSED, mode="0755", size="64k")
    _mount_points(tree, [(name, False) for name in files])
    linux.move_mount(tree, onto)
    os.close(onto)
    image = -1
    for name, (path, numbers, kind) in files.items():
        onto = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=tree)
        linux.move_mount(clones[name], onto)
        os.close(onto)
        os.close(clones[name])
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=tree)
        _compare(fd, path, numbers, kind)
        if name == "runsc":
            image = fd
        else:
            os.close(fd)
    linux.mount_setattr(tree, b"", set=CLOSED | linux.MOUNT_ATTR_RDONLY)
    os.close(tree)
    return image


def _clone_file(path: bytes, identity: tuple[int, int]) -> int:
    """A detached mount of file `path`, to be read and nothing else."""
    source = _reopen(path, identity)
    clone = linux.open_tree(source)
    os.close(source)
    linux.mount_setattr(clone, b"", set=CLOSED | linux.MOUNT_ATTR_RDONLY)
    return clone


def _clone_store(place: int) -> int:
    """A detached mount of the one directory on disk that the supervisor may write."""
    source = os.open(STORE, DIRECTORY, dir_fd=place)
    clone = linux.open_tree(source)
    os.close(source)
    linux.mount_setattr(clone, b"", set=CLOSED)
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


def _own_root(path: bytes, place: int, devices: list[tuple[int, bytes]]) -> int:
    """Have a root with nothing in it but /proc, a /dev of its own, and what is empty; the host's is detached.

    What lies at `place` on the host meanwhile covers nothing that is used. Returns the root's descriptor.
    """
    proc = linux.open_tree(linux.AT_FDCWD, b"/proc", recursive=True)
    root = linux.new_tmpfs(CLOSED, mode="0755", size="64k")
    linux.move_mount(root, place)
    os.close(place)
    for name in ("proc", "dev", "tmp"):
        os.mkdir(name, 0o755, dir_fd=root)
    # A runsc whose sandbox does not start looks whether others could execute its file, by the name that a memfd has in
    # /proc/self/exe, and would say that this is not there instead of why.
    file = os.open(IMAGE_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o500, dir_fd=root)
    os.fchmod(file, 0o555)
    os.close(file)
    onto = os.open("proc", DIRECTORY, dir_fd=root)
    linux.move_mount(proc, onto)
    os.close(onto)
    os.close(proc)
    tree = _own_devices(root, devices)
    linux.pivot_root(root)
    parts = path.strip(b"/").split(b"/")
    for number in range(1, len(parts) + 1):
        try:
            os.mkdir(b"/".join(parts[:number]), 0o755, dir_fd=root)
        except FileExistsError:
            pass  # a base below /dev
    linux.mount_setattr(tree, b"", set=CLOSED | linux.MOUNT_ATTR_RDONLY)
    os.close(tree)
    return root


def _device(path: bytes) -> int:
    """A detached mount of one device node, taken while devices still work."""
    return linux.open_tree(linux.AT_FDCWD, path)


def _own_devices(root: int, devices: list[tuple[int, bytes]]) -> int:
    """A /dev with harmless devices alone, and terminals of its own, below `root`; still writable.

    Root's supervisor is root to device nodes: a disk is the host.
    """
    tree = linux.new_tmpfs(linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC, mode="0755", size="64k")
    place = os.open("dev", DIRECTORY, dir_fd=root)
    linux.move_mount(tree, place)
    os.close(place)
    os.mkdir("pts", 0o755, dir_fd=tree)
    os.symlink("pts/ptmx", "ptmx", dir_fd=tree)
    terminals = linux.new_mount(
        b"devpts", linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC, mode="0620", ptmxmode="0666"
    )
    place = os.open("pts", DIRECTORY, dir_fd=tree)
    linux.move_mount(terminals, place)
    os.close(place)
    os.close(terminals)
    for clone, path in devices:
        name = os.path.basename(path)
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=tree))
        onto = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=tree)
        linux.move_mount(clone, onto)
        os.close(onto)
        os.close(clone)
    return tree


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
    linux.write_all(config, plan["config"])
    os.close(config)
    os.close(bundle)
    if plan["trial"]:
        _lay_out_trial(work)
    if plan["skeleton"] is not None and plan["confinement"] != "mount-locked":
        rootfs = os.open("rootfs", DIRECTORY, dir_fd=work)
        _fill(rootfs, {}, plan["links"], plan["skeleton"])
        os.close(rootfs)
    if plan["confinement"] != "mount-locked":
        for name, files, links, points in plan["trees"]:
            os.mkdir(name, 0o755, dir_fd=work)
            tree = os.open(name, DIRECTORY, dir_fd=work)
            os.chmod(name, 0o755, dir_fd=work)  # whatever the umask
            _fill(tree, files, links, points)
            os.close(tree)


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


def _own_tree(files: dict[str, tuple[int, bytes]], links: dict[str, str], points: list[tuple[str, bool]]) -> int:
    """A tree of ours for the guest, on a read-only file system of its own: below the launch's directories it could be
    written by one path and executed by the other.
    """
    tree = linux.new_tmpfs(0, mode="0755", size="2m")
    _fill(tree, files, links, points)
    linux.mount_setattr(tree, b"", set=linux.MOUNT_ATTR_RDONLY)
    return tree


def _fill(
    tree: int, files: dict[str, tuple[int, bytes]], links: dict[str, str], points: list[tuple[str, bool]]
) -> None:
    """Have files, links and empty places in directory `tree`, each with the directories above it."""
    above = [path.rpartition("/")[0] for path in (*files, *links)]
    _mount_points(tree, [*points, *((path, True) for path in above if path)])
    for path, (mode, content) in files.items():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=tree)
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        os.fchmod(fd, mode)
        os.close(fd)
    for path, target in links.items():
        os.symlink(target, path.strip("/"), dir_fd=tree)


def _attach(work: int, plan: Plan, binds: list[tuple[int, str]]) -> int:
    """Attach the clones below `work`; returns the descriptor that will be executed."""
    trees = [(_own_tree(*tree), name) for name, *tree in plan["trees"]]
    if plan["skeleton"] is not None:
        trees.append((_own_tree({}, plan["links"], plan["skeleton"]), "rootfs"))
    if plan["secrets"]:
        trees.append((_own_secrets(plan["secrets"]), SECRETS))
    # Empty: whoever started this process fills them before anything is executed.
    trees += [
        (linux.new_tmpfs(0, mode="0700", size=str(size), nr_inodes=str(entries)), name)
        for name, size, entries in plan["copies"]
    ]
    binds = [*trees, *binds]  # first, for some of the binds lie in them
    if plan["missing"] or plan["fill"]:
        binds = [(_completed(work, c, plan["missing"], plan["fill"]) if t == "rootfs" else c, t) for c, t in binds]
    for clone, target in binds:
        onto = _target(work, target, os.fstat(clone).st_mode)
        linux.move_mount(clone, onto)
        os.close(onto)
        os.close(clone)
    if plan["set"]:
        return _materialise(work, plan["images"])
    return int(plan["images"]["runsc"])


def _own_secrets(secrets: list[tuple[bytes, int]]) -> int:
    """Files with what is secret, each its user's alone to read; what is secret is forgotten here then."""
    size = sum(len(content) + (1 << 12) for content, _ in secrets)
    tree = linux.new_tmpfs(0, mode="0755", size=str(size + (1 << 16)))
    for number, (content, uid) in enumerate(secrets):
        fd = os.open(str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400, dir_fd=tree)
        linux.write_all(fd, content)
        try:
            os.fchown(fd, uid, -1)
        except OSError:  # no id of this namespace: the launch is refused for it, by name (`Launch._judge_user`)
            pass
        os.close(fd)
    linux.mount_setattr(tree, b"", set=linux.MOUNT_ATTR_RDONLY)
    secrets.clear()  # neither the attendant, which is a fork of this process, nor an error's frames need it
    return tree


def _completed(work: int, root: int, points: list[tuple[str, bool]], fill: dict[str, tuple[int, bytes]]) -> int:
    """The tree `root`, which becomes read-only, with the mount points that it lacks, which runsc would make in it, and
    with files that are not there, or empty.
    """
    layers = [("root", root)]
    if fill:  # above it, for an empty file is there
        layers.insert(0, ("fill", _own_tree(fill, {}, [])))
    if points:
        layers.append(("points", _own_tree({}, {}, points)))
    for name, tree in layers:
        onto = _target(work, name, 0o040000)
        linux.move_mount(tree, onto)
        os.close(onto)
        os.close(tree)
    os.fchdir(work)  # so no part of a path has to be escaped
    try:
        lower = ":".join(name for name, _ in layers)
        return linux.new_mount(b"overlay", linux.MOUNT_ATTR_RDONLY, lowerdir=lower)
    except OSError as error:
        lacks = points[0][0] if points else next(iter(fill))
        raise Refused("points", lacks, error.errno or 0, str(error)) from error
    finally:
        os.chdir("/")


def _target(work: int, target: str, mode: int) -> int:
    """An O_PATH descriptor of the place `target`, made as directory or file to match what goes there.

    What is mounted in a tree of ours has its place there.
    """
    if target != "rootfs" and not (target.startswith(TREE) and "/" in target):
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
    import _socket
    import fcntl
    import struct

    anything = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(anything, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(anything, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
    finally:
        anything.close()


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
    canaries = [_canary(argv, fd) for argv, fd in zip(plan["canaries"], plan["opened"], strict=True)]
    canaries += [_out_of_reach(path) for argv in plan["canaries"] for path in _ways_to(argv[0], plan["parent"])]
    canaries += plan["scoped"]
    for attribute, name in ((linux.MOUNT_ATTR_NOEXEC, "noexec"), (linux.MOUNT_ATTR_NOSUID, "nosuid")):
        try:
            linux.mount_setattr(linux.AT_FDCWD, b"/", clear=attribute)
        except PermissionError:
            continue
        raise Refused("proof", "undo", 0, f"{name} of / could be cleared from inside")
    mounts, foreign = _mounts(plan["place"])
    if foreign:
        raise Refused(
            "proof", os.fsdecode(foreign[0]), 0, "a mount that is not the launch's own, or not closed, is left"
        )
    return {
        "confined": "mount-locked",
        "no_new_privs": True,
        "canaries": canaries,
        "undo": "EPERM",
        "mounts": mounts,
        "ids": plan["ids"],
        "scope": "signals+abstract" if plan["scoped"] else "none",
        "user_namespace": os.readlink("/proc/self/ns/user"),
        "mount_namespace": os.readlink("/proc/self/ns/mnt"),
        # What is open by nature is said, not hidden: whoever can mount can execute from a memfd or a new tmpfs.
        "open": ["memfd", "tmpfs"],
    }


def _canary(argv: list[bytes], fd: int | None = None) -> dict[str, str]:
    """Execute a host program in place, by `fd` where no path leads to it: it must be refused.

    If it is not, this process becomes it, and nothing runs.
    """
    try:
        os.execve(argv[0] if fd is None else fd, argv, {})
    except PermissionError:
        return {"path": os.fsdecode(argv[0]), "answer": "EACCES"}
    except OSError as error:
        raise Refused("proof", os.fsdecode(argv[0]), error.errno or 0, "was not refused by the confinement") from error


def _ways_to(path: bytes, parent: int) -> list[bytes]:
    """Paths by which a file of the host might be had: its own, and through a process outside."""
    return [path, b"/proc/%d/root%s" % (parent, path)]


def _out_of_reach(path: bytes) -> dict[str, str]:
    """A canary: a file of the host must not be there, nor be reached through another process (ptrace(2))."""
    try:
        os.close(os.open(path, os.O_PATH | os.O_CLOEXEC))
    except FileNotFoundError:
        return {"path": os.fsdecode(path), "answer": "ENOENT"}
    except PermissionError:
        return {"path": os.fsdecode(path), "answer": "EACCES"}
    raise Refused("proof", os.fsdecode(path), 0, "a file of the host can be reached")


def _mounts(place: bytes) -> tuple[int, list[bytes]]:
    """How many mounts there are, and those that are not the launch's own, or lack a flag (proc(5), mountinfo).

    Below `place` and /dev lie those that the guest and runsc may execute and open.
    """
    foreign, count = [], 0
    for line in _read(b"/proc/self/mountinfo").splitlines():
        fields = line.split(b" ")
        point = _unescaped(fields[4])
        if point.startswith((place + b"/", b"/dev/")):
            continue
        count += 1
        known = point in (b"/", b"/dev", b"/proc", place) or point.startswith(b"/proc/")
        if not known or not {b"nosuid", b"nodev", b"noexec"} <= set(fields[5].split(b",")):
            foreign.append(point)
    return count, foreign


def _unescaped(point: bytes) -> bytes:
    r"""A mount point as it is: \040 stands for a space. Python's own codec is a file of the host's, out of reach."""
    first, *rest = point.split(b"\\")
    return first + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in rest)


def ask(
    image: int, questions: list[list[bytes]], env: dict[bytes, bytes], trial: list[bytes] | None = None, tries: int = 20
) -> list[tuple[int, bytes]]:
    """Run the image with each argv, where it is confined; (wait status, output) of each, bounded in time and size.

    What is asked of another file has a path as its first word, from the image's directory.

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
                        execute(_beside(image, argv[0]) if b"/" in argv[0] else image, argv, env)
                finally:
                    os._exit(FAILED)
            started.append((pid, reader))
            os.close(writer)
        end = time.monotonic() + ANSWER_SECONDS
        seen = _end_with_its_sandbox(*started[-1], end) if trial else b""
        answers = [_answer(pid, reader, end) for pid, reader in started]
        if seen is None and b"waiting for sandbox to start" in answers[-1][1] and tries > 1:
            # It was executed, and had ended before it could be looked at: the machine is busy.
            answers[-1:] = ask(image, [], env, trial, tries - 1)
        elif seen:
            answers[-1] = (answers[-1][0], answers[-1][1] + seen)
        return answers
    except BaseException:
        for pid, _ in started:  # nothing of a launch outlives its failure
            _end(pid)
        raise


def _beside(image: int, name: bytes) -> int:
    """The file `name` where runsc looks for it: from the directory of its own path."""
    path = os.readlink(b"/proc/self/fd/%d" % image)
    return os.open(path.rpartition(b"/")[0] + b"/" + name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _end_with_its_sandbox(pid: int, _reader: int, end: float) -> bytes | None:
    """Kill runsc, and all below it, once it has executed its sandbox; or do nothing, once it has ended.

    AS_CALLER, or AS_ANOTHER when it runs that as another user than this, who cannot enter the launch's own directory;
    None when it was not seen.
    """
    import select

    seen = None
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while not poll.poll(1) and time.monotonic() < end:
            if boots := [child for child in linux.children(pid) if b"\0boot\0" in _about(child, b"cmdline")]:
                status = _about(boots[0], b"status")
                if status:
                    seen = AS_CALLER if b"\nUid:\t%d\t" % os.geteuid() in status else AS_ANOTHER
                break
        linux.kill_with_all_below(pid, pidfd)
    except ProcessLookupError:
        pass  # it has ended
    finally:
        os.close(pidfd)
    return seen


def _about(pid: int, name: bytes) -> bytes:
    try:
        return _read(b"/proc/%d/%s" % (pid, name))
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
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            os.kill(pid, _signal.SIGKILL)
    finally:
        os.close(pidfd)
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
