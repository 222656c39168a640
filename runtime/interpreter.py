"""The interpreter for our own code that needs a process of its own, and that code where an interpreter can read it.

`sys.executable` need not be one. In a frozen program (PyInstaller, cx_Freeze, Nuitka) it is the program, which would
start itself again and again; in one that embeds Python (uWSGI, mod_wsgi) it is the server or a guess; it can be empty,
or have been removed. So an interpreter is taken for one only when it is what this very process executes and its name is
Python's, or when, once in a process, it has shown that it runs our modules. And a process that was started for one, yet
wants to start one, is told so: nothing repeats without end.
"""

import fcntl
import io
import marshal
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nucleus_gvisor.model.errors import LaunchError, StepFailed
from nucleus_gvisor.runtime import _attendant, _child, _linux
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import Walk

MARK = "NUCLEUS_GVISOR_HELPER"
"""A variable of every interpreter that is started here: one that takes us for a program of its own knows it by that."""
BOOT = "import sys; sys.path.append(sys.argv[1]); "
"""How the program of one begins; its first argument is the `library`."""
SECONDS = 30.0
"""Within which a program that is run here has to end."""
_NAME = re.compile(r"(python|pypy)(3(\.\d+)?)?[a-z]{0,2}", re.ASCII)  # python3.13td: free threads, debug
_PROOF = BOOT + "import _attendant, _child; print(sys.argv[2][::-1], sys.version_info >= (3, 11))"
_CALLS = ("os.memfd_create", "os.pidfd_open", "os.P_PIDFD", "signal.pidfd_send_signal", "fcntl.F_ADD_SEALS")
_lock = threading.Lock()
_known: list[str | None] = []
"""The answer, once there is one."""


def judge_calls() -> None:
    """StepFailed in a Python that was built without the calls that a launch is made of; the kernel is not asked."""
    modules = {"os": os, "signal": signal, "fcntl": fcntl}
    names = [call.split(".") for call in _CALLS]
    lacking = [f"{module}.{name}" for module, name in names if not hasattr(modules[module], name)]
    if lacking:
        raise StepFailed(
            "this Python was built for older systems, and lacks calls that a launch needs",
            step="Resolve",
            observed=f"no {', '.join(lacking)} in Python {sys.version.split()[0]}",
            expected="a Python built with the headers of Linux 5.4 or later",
            hint="pack the program with a Python of the distribution's or of python.org's sources (what comes with"
            " cx_Freeze has not these calls; PyInstaller takes the Python that it runs in)",
        )


def frozen() -> bool:
    """Is this a program that a packer made of Python code, of which `sys.executable` is the program itself."""
    main = vars(sys.modules.get("__main__", sys))
    packed = bool(getattr(sys, "frozen", False)) or hasattr(sys, "_MEIPASS")  # PyInstaller, cx_Freeze and others
    return packed or "__compiled__" in main or "__compiled__" in globals()  # Nuitka


def find() -> str | None:
    """An interpreter that can run our modules; None where there is none: then what needs one is forked.

    StepFailed in a process that was itself started as one.
    """
    if MARK in os.environ:
        raise StepFailed(
            "this program was started in place of a Python interpreter, and would start itself again",
            step="Confine",
            path=sys.executable or None,
            observed=f"{MARK} is set",
            expected="a Python interpreter that takes -I -S -c",
            hint="report it, with what packed or embeds this program",
        )
    with _lock:
        if not _known:
            _known.append(_own() or next(filter(_proved, _others()), None))
        return _known[0]


def forget() -> None:
    """Look anew when it is asked for again."""
    with _lock:
        _known.clear()


def _own() -> str | None:
    """A path of what this process executes, if that is an interpreter which can read our modules."""
    if frozen() or _folder() is None:
        return None
    try:
        image = os.readlink("/proc/self/exe").removesuffix(" (deleted)")
        running = os.stat("/proc/self/exe")
    except OSError:
        return None
    if not _NAME.fullmatch(os.path.basename(image)):
        return None
    # By the name that it was started by, should it lead there: an environment is found by that.
    for path in (sys.executable, image):
        with suppress(OSError, TypeError, ValueError):
            if os.path.isabs(path) and os.path.samestat(os.stat(path), running):
                return path
    return "/proc/self/exe"  # it was removed or replaced, and runs on


def _others() -> Iterator[str]:
    """Paths where interpreters lie, those of this version first; each is judged, and is none that we execute."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    places = [f"{sys.base_prefix}/bin", f"{sys.base_exec_prefix}/bin", "/usr/local/bin", "/usr/bin"]
    named = [] if frozen() else [sys.executable, getattr(sys, "_base_executable", "")]
    seen = {_real("/proc/self/exe")}
    for path in [*named, *(f"{place}/{name}" for name in (version, "python3") for place in places)]:
        real = _real(path) if path and os.path.isabs(path) else None
        if real is None or real in seen or not _NAME.fullmatch(os.path.basename(real)):
            continue
        seen.add(real)
        # SAFETY: it gets the plan and the descriptors of a launch; what others can change is not for that.
        with suppress(LaunchError, OSError):
            found = Walk(Identity.current()).to(os.fsencode(real))
            try:
                status = os.stat(found.name, dir_fd=found.parent, follow_symlinks=False)
            finally:
                _linux.close(found.parent)
            if not status.st_mode & 0o022:
                yield real


def _real(path: str) -> str | None:
    try:
        return os.path.realpath(path, strict=True)
    except (OSError, ValueError):
        return None


def _proved(path: str) -> bool:
    """Does it run our modules, and say so in time."""
    word = secrets.token_hex(16)
    try:
        done = _run(path, _PROOF, (word,), subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError, NoLibrary):
        return False
    return done.stdout.split() == [word[::-1].encode(), b"True"]


# ---- our modules, for it ----


class NoLibrary(Exception):
    """Our modules can be had neither as files nor as code."""


def _folder() -> str | None:
    folder = Path(getattr(_child, "__file__", "") or "/nowhere").parent
    return str(folder) if any((folder / f"_child.{kind}").is_file() for kind in ("py", "pyc")) else None


@contextmanager
def library() -> Iterator[tuple[str, tuple[int, ...]]]:
    """What an interpreter is to have in `sys.path`, and the descriptors that it must inherit for that; NoLibrary."""
    if (folder := _folder()) is not None:
        yield folder, ()
        return
    fd = os.memfd_create("modules", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(_packed())
        yield f"/proc/self/fd/{fd}", (fd,)
    finally:
        os.close(fd)


def _packed() -> bytes:
    """A zip archive of the modules: sources where there are any, else code, which another version cannot read."""
    import zipfile
    from importlib.util import MAGIC_NUMBER

    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for module in (_child, _attendant, _linux):
            name, loader = module.__name__, module.__spec__.loader if module.__spec__ is not None else None
            short = name.rpartition(".")[2]
            source = code = None
            with suppress(Exception):  # each packer has a loader of its own
                source = loader.get_source(name)  # type: ignore[union-attr]
            with suppress(Exception):
                code = loader.get_code(name)  # type: ignore[union-attr]
            if source:
                archive.writestr(f"{short}.py", source)
            elif code is not None:
                archive.writestr(f"{short}.pyc", MAGIC_NUMBER + bytes(12) + marshal.dumps(code))
            else:
                raise NoLibrary(name)
    return memory.getvalue()


# ---- to run something to its end ----


def run(source: str, *arguments: str, stdin: int = subprocess.DEVNULL) -> "subprocess.CompletedProcess[bytes]":
    """What program `source`, which can import our modules by their short names, prints; sys.argv has `arguments` from 2
    on. In a process of its own, half a minute at most.
    """
    program = find()
    if program is None:
        return _forked(source, arguments, stdin)
    return _run(program, BOOT + source, arguments, stdin)


def _run(program: str, source: str, arguments: tuple[str, ...], stdin: int) -> "subprocess.CompletedProcess[bytes]":
    with library() as (place, fds):
        argv = [program, "-I", "-S", "-B", "-c", source, place, *arguments]
        how = {"env": {MARK: "1"}, "cwd": "/", "stdin": stdin, "pass_fds": fds, "timeout": SECONDS}
        return subprocess.run(argv, capture_output=True, **how)  # type: ignore[call-overload,no-any-return]


def fork() -> int:
    """fork(2) in a process that may have threads: the child must do what `_child` does, and end without returning.

    The locks that other threads hold stay taken in it. The C library mends its own, and Python its; `_child` takes no
    others, and one that hangs all the same is given up by whoever waits for it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what Python 3.12 has to say about it
        return os.fork()


def _forked(source: str, arguments: tuple[str, ...], stdin: int) -> "subprocess.CompletedProcess[bytes]":
    """The same in a fork."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pidfd = -1
    output = b""
    try:
        pid = fork()
        if pid == 0:  # pragma: no cover - what measures is not there, where an interpreter would not be found
            _play(source, arguments, stdin, writer)
        pidfd = os.pidfd_open(pid)
        os.close(writer)
        writer = -1
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        end = time.monotonic() + SECONDS
        while poll.poll(max(0.0, end - time.monotonic()) * 1000):
            if not (piece := os.read(reader, 1 << 16)):
                ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
                status = 0 if ended is None else ended.si_status
                return subprocess.CompletedProcess("fork", status, output, output)
            output += piece
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        raise subprocess.TimeoutExpired("fork", SECONDS, output)
    finally:
        for fd in (reader, writer, pidfd):
            if fd >= 0:
                os.close(fd)


def _play(
    source: str, arguments: tuple[str, ...], stdin: int, writer: int
) -> None:  # pragma: no cover - likewise in a fork of its own
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for target, fd in enumerate((null if stdin == subprocess.DEVNULL else stdin, writer, writer)):
            os.dup2(fd, target)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["-c", "", *arguments]
        sys.modules |= {"_child": _child, "_attendant": _attendant, "_linux": _linux}
        exec(source, {"__name__": "helper"})
        sys.stdout.flush()
        code = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(code)
