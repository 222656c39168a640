"""The reference launcher, re-enacted: the checks of `gvisor.rs`, their order and paths, and where they fail open.

It stands where `driver.py` stands: run as `python -c SOURCE JSON`, the same request in, the same report out. So what
tries our launcher can be turned on the reference, and must find there what it says it can find. What the reference
does right is done right here. Requests that it does not know (pin, stage, confinement, enforcement) do nothing.

Numbers in brackets are lines of `gvisor.rs`. Two things lie outside of that file: what writes a bundle, and what
manages the Landlock ruleset; of the latter is known that it opens the allowed roots by path, and passes over those that
it cannot open.
"""

import errno
import fcntl
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from nucleus_gvisor.runtime import OciBundle, _linux

given = json.loads(sys.argv[1])


class GVisorError(Exception):
    """The reference's error: a sentence, and nothing else."""


class LandlockError(GVisorError):
    """Its other one."""


def lossy(path: str) -> str:
    """`to_string_lossy` [215, 335, 946]."""
    return os.fsencode(path).decode("utf-8", "replace")


def fallible(what: str, call: Callable[..., Any], *arguments: Any, **how: Any) -> Any:
    """`map_err`: the call's answer, or GVisorError."""
    try:
        return call(*arguments, **how)
    except OSError as error:
        raise GVisorError(f"{what}: {error}") from error


def in_store(path: str) -> bool:
    """`Path::starts_with("/nix/store")`: by components, `..` being one like any other [228, 467]."""
    return path.startswith("/") and [part for part in path.split("/") if part not in ("", ".")][:2] == ["nix", "store"]


# ---- finding runsc ----


def find_runsc() -> str:
    """[130-165]"""
    for path in ("/usr/local/bin/runsc", "/usr/bin/runsc", "/opt/gvisor/runsc"):
        if found := validate_runsc_path(path):
            return found
    if os.geteuid() == 0:
        raise GVisorError("runsc binary not found in trusted system paths")
    if "PATH" in os.environ:
        for folder in os.environ["PATH"].split(":"):
            if found := validate_runsc_path(os.path.join(folder, "runsc")):
                return found
    raise GVisorError("runsc binary not found. Please install gVisor.")


def validate_runsc_path(path: str) -> str | None:
    """[167-216]"""
    if not os.path.exists(path) or not os.path.isfile(path):
        return None
    canonical = fallible("Failed to canonicalize runsc path", os.path.realpath, path, strict=True)
    resolved = unwrap_nix_wrapper(canonical) or canonical
    metadata = fallible("Failed to stat runsc path", os.stat, resolved)
    if metadata.st_mode & 0o022:
        raise GVisorError(f"Refusing insecure runsc binary permissions at {resolved!r} (mode {metadata.st_mode:o})")
    if not metadata.st_mode & 0o111:
        return None
    if not is_trusted_runsc_owner(resolved, metadata.st_uid, os.geteuid()):
        raise GVisorError(f"Refusing runsc binary at {resolved!r} owned by uid {metadata.st_uid}")
    return lossy(resolved)


def is_trusted_runsc_owner(path: str, owner: int, current: int) -> bool:
    """[218-253]"""
    if owner in (0, current):
        return True
    if not in_store(path):
        return False
    try:
        return not os.stat(path).st_mode & 0o200 and not os.stat(os.path.dirname(path)).st_mode & 0o222
    except OSError:
        return False


def unwrap_nix_wrapper(path: str) -> str | None:
    """[260-287]"""
    try:
        content = Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None
    if len(content.encode()) > 4096 or not content.startswith("#!"):
        return None
    for line in reversed(content.split("\n")):
        if line.strip().startswith("exec "):
            for token in line.split():
                unquoted = token.strip('"')
                if unquoted.startswith("/") and "runsc" in unquoted and os.path.isfile(unquoted):
                    return unquoted
    return None


def version(runsc: str) -> str:
    """[410-424]"""
    done = fallible("Failed to get version", subprocess.run, [runsc, "--version"], capture_output=True)
    if done.returncode != 0:
        raise GVisorError("Failed to get runsc version")
    return str(done.stdout.decode("utf-8", "replace").strip())


# ---- directories ----


def secure_runsc_root(container: str) -> str:
    """[482-499]"""
    base = gvisor_artifact_base()
    directory = os.path.join(base, runsc_state_component(container))
    if os.geteuid() == 0 and not root_uid_maps_to_unprivileged_host_uid():  # [585]
        ensure_trusted_host_root_runsc_ancestry(base)
    ensure_secure_runsc_dir(base, "gVisor runsc artifact base")
    ensure_secure_runsc_dir(directory, "gVisor runsc artifact directory")
    root = os.path.join(directory, "runsc-root")
    ensure_secure_runsc_dir(root, "runsc root directory")
    return root


def gvisor_artifact_base() -> str:
    """[501-519]"""
    if base := os.environ.get("NUCLEUS_GVISOR_ARTIFACT_BASE"):
        return absolute_path(base)
    root = os.geteuid() == 0
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if (not root or root_uid_maps_to_unprivileged_host_uid()) and os.path.isabs(runtime):
        return os.path.join(runtime, "nucleus-gvisor")
    if root:
        return "/run/nucleus-gvisor"
    return os.path.join(os.environ.get("TMPDIR") or "/tmp", f"nucleus-gvisor-{os.geteuid()}")


def absolute_path(path: str) -> str:
    """[521-534]"""
    return (
        path if os.path.isabs(path) else os.path.join(fallible("Failed to resolve current directory", os.getcwd), path)
    )


def runsc_state_component(container: str) -> str:
    """[536-543]"""
    data = container.encode("utf-8", "surrogateescape")
    if len(data) == 32 and all(byte in b"0123456789abcdefABCDEF" for byte in data):
        return container
    return "id-" + hashlib.sha256(data).hexdigest()[:32]


def root_uid_maps_to_unprivileged_host_uid() -> bool:
    """[545-583]"""
    try:
        text = Path("/proc/self/uid_map").read_text()
    except (OSError, UnicodeDecodeError):
        return False
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and all(field.removeprefix("+").isdecimal() and field.isascii() for field in fields):
            inside, outside, length = map(int, fields)
            if inside == 0 and length > 0 and max(inside, outside, length) < 2**64:
                return outside != 0
    return False


def ensure_trusted_host_root_runsc_ancestry(path: str) -> None:
    """[589-662]"""
    current = "/"
    for name in path.split("/"):
        if name == "..":
            raise GVisorError(f"{path!r} contains a parent-directory component")
        if name in ("", "."):
            continue
        current = os.path.join(current, name)
        try:
            metadata = os.lstat(current)
        except FileNotFoundError:
            break
        except OSError as error:
            raise GVisorError(f"Failed to stat ancestor {current!r}: {error}") from error
        if not stat.S_ISDIR(metadata.st_mode):
            raise GVisorError(f"Refusing ancestor {current!r}: a symlink, or not a directory")
        if metadata.st_uid != 0:
            raise GVisorError(f"ancestor {current!r} is owned by uid {metadata.st_uid} (expected root)")
        if metadata.st_mode & 0o022 and not metadata.st_mode & stat.S_ISVTX:
            raise GVisorError(f"ancestor {current!r} has unsafe permissions {metadata.st_mode & 0o7777:o}")


def ensure_secure_runsc_dir(path: str, label: str) -> None:
    """[664-760]"""
    if parent := os.path.dirname(path):
        ensure_trusted_runsc_parent(parent, label)
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise GVisorError(f"Refusing {label} {path!r}: a symlink, or not a directory")
    except FileNotFoundError:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise GVisorError(f"Failed to create {label} {path!r}: {error}") from error
        else:
            fallible(f"Failed to secure {label}", os.chmod, path, 0o700)
    except OSError as error:
        raise GVisorError(f"Failed to stat {label} {path!r}: {error}") from error
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECTORY
    folder = fallible(f"Failed to open {label} {path!r} without following symlinks", os.open, path, flags)
    try:
        metadata = os.fstat(folder)
        if metadata.st_uid != os.geteuid():
            raise GVisorError(f"{label} {path!r} is owned by uid {metadata.st_uid} (expected {os.geteuid()})")
        if metadata.st_mode & 0o777 != 0o700:
            fallible(f"Failed to secure {label}", os.fchmod, folder, 0o700)
    finally:
        os.close(folder)


def ensure_trusted_runsc_parent(parent: str, label: str) -> None:
    """[762-798]"""
    metadata = fallible(f"Failed to stat parent for {label}", os.lstat, parent)
    if not stat.S_ISDIR(metadata.st_mode):
        raise GVisorError(f"Refusing parent {parent!r} for {label}: a symlink, or not a directory")
    writable = metadata.st_mode & 0o022 and not metadata.st_mode & stat.S_ISVTX
    if metadata.st_uid not in (0, os.geteuid()) or writable:
        raise GVisorError(f"Parent {parent!r} for {label} is not trusted")


# ---- staging ----


def prepare_supervisor_runsc_program(runsc: str, root: str) -> tuple[str, list[str]]:
    """[456-480]"""
    canonical = fallible("Failed to canonicalize runsc path", os.path.realpath, runsc, strict=True)
    if in_store(canonical):
        return canonical, ["/nix/store"]
    ensure_secure_runsc_dir(root, "runsc root directory")
    private = os.path.join(root, "exec-allow")
    ensure_secure_runsc_dir(private, "private runsc exec directory")
    staged = os.path.join(create_unique_runsc_stage_dir(private), "runsc")
    copy_runsc_nofollow(canonical, staged)
    return staged, [private]


def create_unique_runsc_stage_dir(private: str) -> str:
    """[800-832]"""
    nonce = time.time_ns()
    for attempt in range(100):
        folder = os.path.join(private, f"stage-{os.getpid()}-{nonce}-{attempt}")
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise GVisorError(f"Failed to create runsc stage directory {folder!r}: {error}") from error
        ensure_secure_runsc_dir(folder, "runsc stage directory")
        return folder
    raise GVisorError("Failed to create unique runsc stage directory")


def copy_runsc_nofollow(source: str, staged: str) -> None:
    """[834-891]; `io::copy` asks the kernel for as much as there is, until there is no more."""
    reader = fallible("Failed to open runsc source", os.open, source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(reader).st_mode):
            raise GVisorError(f"runsc source {source!r} is not a regular file")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        writer = fallible("Failed to create staged runsc binary", os.open, staged, flags, 0o500)
        try:
            offset = 0
            while sent := fallible("Failed to stage runsc binary", os.sendfile, writer, reader, offset, 1 << 30):
                offset += sent
            fallible("Failed to secure staged runsc binary", os.fchmod, writer, 0o500)
            fallible("Failed to sync staged runsc binary", os.fsync, writer)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


# ---- the launch ----


def exec_with_oci_bundle_options(runsc: str, container: str, bundle: str, told: Callable[[str], None]) -> NoReturn:
    """[306-374]; `told` hears which policy was applied, for the report."""
    options = given["options"]
    root = secure_runsc_root(container)
    runtime = os.path.join(root, "runtime")
    ensure_secure_runsc_dir(runtime, "runsc runtime directory")
    program, allowed = prepare_supervisor_runsc_program(runsc, root)
    arguments = [program, *build_oci_run_args(container, bundle, root)]
    words = [c_string(argument) for argument in arguments]
    environment = exec_environment(runtime)
    if options.get("runsc_rootless"):  # [363]
        told(apply_supervisor_exec_policy(allowed, bool(options.get("require_supervisor_exec_policy"))))
    os.execve(words[0], words, environment)


def c_string(text: str) -> bytes:
    """`CString::new(to_string_lossy)` [335-347]"""
    if "\0" in text:
        raise GVisorError("Invalid argument: nul byte found in provided data")
    return lossy(text).encode()


def exec_environment(runtime: str) -> dict[bytes, bytes]:
    """[426-454]"""
    return {
        b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        b"TMPDIR": c_string(runtime),
        b"XDG_RUNTIME_DIR": c_string(runtime),
        b"HOME": b"/root",
        b"USER": b"root",
        b"LOGNAME": b"root",
    }


def apply_supervisor_exec_policy(allowed: list[str], required: bool) -> str:
    """[893-916]; without no_new_privs [354], so that only who has CAP_SYS_ADMIN gets it."""
    roots = []
    try:
        for path in allowed:
            try:
                roots.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
            except OSError:
                continue
        _linux.landlock_execute_only(roots)
    except OSError as error:
        if required:
            raise LandlockError(f"Required gVisor supervisor execute allowlist was not applied: {error}") from error
        return "none"
    finally:
        for root in roots:
            os.close(root)
    return "landlock"


def build_oci_run_args(container: str, bundle: str, root: str) -> list[str]:
    """[918-951]"""
    options = given["options"]
    platform = options.get("platform", "systrap")
    return [
        "--root", root,
        *(["--rootless"] if options.get("runsc_rootless") else []),
        *(["--ignore-cgroups"] if options.get("ignore_cgroups") else []),
        "--network", options.get("network_mode", "none"),
        "--platform", "systrap" if platform == "auto" else platform,  # it has no `auto` [28]
        "run", "--bundle", bundle, container,
    ]  # fmt: skip


def attempt(told: Callable[[str], None]) -> NoReturn:
    """What a caller of the reference does: a runtime, a bundle, and exec."""
    runsc = find_runsc() if given["runsc"] is None else lossy(given["runsc"])  # `with_path` takes a String [118]
    bundle = given["bundle"]
    if bundle is None:
        bundle = tempfile.mkdtemp(prefix="bundle-", dir=os.path.dirname(given["artifacts"] or "") or None)
        Path(bundle, "config.json").write_text(json.dumps(OciBundle.build(["true"]).config))
    exec_with_oci_bundle_options(runsc, given["id"], bundle, told)


def told_error(error: Exception, policy: list[str]) -> dict[str, Any]:
    """The report of a failure. The error does not say whether the process is restricted: nothing does."""
    cause = error if isinstance(error, OSError) else error.__cause__
    number = errno.errorcode.get(cause.errno or 0) if isinstance(cause, OSError) else None
    return {"error": type(error).__name__, "message": str(error), "errno": number, "step": "", "path": None,
            "hint": None, "observed": None, "notes": [], "states": [], "record": None, "begun": False,
            "restricted": False, "achieved": policy[-1]}  # fmt: skip


def launch() -> dict[str, Any]:
    """The reference's only way is in place; `spawn` is a caller who forks, and hears of an error through a pipe."""
    if given["artifacts"] is not None:
        os.environ["NUCLEUS_GVISOR_ARTIFACT_BASE"] = given["artifacts"]
    policy = ["none"]
    os.sched_yield()  # marks, as in driver.py
    if given["in_place"]:
        try:
            attempt(policy.append)
        except (GVisorError, OSError, ValueError) as error:
            os.sched_yield()
            return told_error(error, policy)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            attempt(policy.append)
        except Exception as error:
            os.write(writer, json.dumps(told_error(error, policy)).encode())
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as file:
        failed = file.read()
    os.sched_yield()
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        code = 0  # the caller ignores SIGCHLD
    return json.loads(failed) if failed else {"code": code, "achieved": None, "evidence": []}


# ---- the process, before and after, as driver.py tells it ----


def state() -> dict[str, object]:
    """What a launch could have changed in its caller."""
    mask = os.umask(0)
    os.umask(mask)
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass  # the listing's own
    try:
        cwd = os.getcwd()
    except OSError:
        cwd = ""
    return {
        "children": "".join(Path(task, "children").read_text() for task in Path("/proc/self/task").iterdir()).split(),
        "cwd": cwd,
        "descriptors": descriptors,
        "handlers": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "pid", "user")},
        "no_new_privs": "NoNewPrivs:\t1" in Path("/proc/self/status").read_text(),
        "umask": mask,
    }


signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, Rust does not
for number in range(3):  # Rust opens /dev/null where a standard descriptor is closed
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
exec(given["before"])
if given["threads"]:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
before = state()
outcome = launch()
after = state()
retried = {}
if given.get("again") and "error" in outcome:
    retried = {"again": launch(), "after_again": state()}
with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as link:  # which needs no module: there may be no file any more
    link.connect(("127.0.0.1", given["witness"]))
    link.sendall(json.dumps({"driver": outcome, "before": before, "after": after, **retried}).encode())
