"""Directories that hold a checkpoint: made for one, and judged before one is restored.

An image is as good as the guest's memory: whoever writes it writes what the sentry reads back. So it lies where only
the caller can write, and is judged again when it is used. Below that directory are

    image/      what runsc writes; it and the supervisor have this directory alone, and no way out of it
    note        what the image was made with and the digest of each of its files, as JSON. It is ours, written once
                runsc has ended, and nobody else ever has a descriptor of where it lies.

A supervisor that was taken over may write into `image/` what it likes, as long as it lives. So at a restore runsc sees
the files that a release writes and no others, by names of ours, and only with the digests that the note has. The note
orders nothing: what it says is compared with what the caller asks for, and a difference is refused by name.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from nucleus_gvisor.model.errors import BadArgument, BadPath, NotFound, Unsupported, Untrusted, remedy
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime import guest, interpreter
from nucleus_gvisor.runtime.bundle import HostPath, OciBundle
from nucleus_gvisor.runtime.errors import RunscFailed
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import FileId, Walk, calls, described, file_id, make_directory, remove_tree

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CLONE = """
import sys, _child, _linux, os, socket
if _child.privileged():
    _linux.unshare(_linux.CLONE_NEWNS)
else:
    _child.enter_user_namespace(_linux.CLONE_NEWNS)
mount = _linux.open_tree(_child._reopen(os.fsencode(sys.argv[2]), tuple(map(int, sys.argv[3:]))))
_linux.mount_setattr(mount, b"", set=_child.CLOSED)
socket.send_fds(_linux.packets(0), [b"mount"], [mount])
"""


IMAGE, NOTE = "image", "note"
FILES = ("checkpoint.img", "pages.img", "pages_meta.img")
"""All that any release writes: the first, or all three."""
VERSION = 1
"""Of the note's format."""
MAX_NOTE = 4 << 20
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NAMES = (
    "network",
    "rootfs",
    "writable",
    "user",  # these three choose mounts too
    "working_dir",
    "env",
    "mounts",
    "service",
    "secret_files",
    "args",
    "hostname",
    "rlimits",
)
"""What has to be as it was, in the order in which it is compared; the callers' own names."""


@dataclass(frozen=True)
class Image:
    """A judged image: its files as (path without links, identity, name), and its note."""

    files: tuple[tuple[bytes, FileId, str], ...]
    note: Mapping[str, Any]

    def compare(self, wanted: Mapping[str, Any]) -> None:
        """BadArgument for the first option that differs from what the image was made with."""
        for name in _NAMES:
            was, now = self.note.get(name), _plain(wanted[name])
            if was != now:
                if name == "env":  # its values may be secrets
                    was = was or {}
                    names = sorted(key for key in {**was, **now} if was.get(key) != now.get(key))
                    was, now = "those that it was made with", f"other values of {', '.join(names)}"
                raise BadArgument(
                    f"the checkpoint was made with another {name}",
                    step="Prepare",
                    observed=_said(now),
                    expected=_said(was),
                    hint="restore with the options of the sandbox that was checkpointed",
                )

    def judge_runsc(self, version: str, digest: str) -> None:
        """Unsupported unless the runsc that is to restore it is the one that wrote it."""
        if (self.note.get("release"), self.note.get("runsc")) != (version, digest):
            raise Unsupported(
                "the checkpoint was made by another runsc",
                step="Confine",
                observed=f"release {version}, sha256 {digest}",
                expected=f"release {self.note.get('release')}, sha256 {self.note.get('runsc')}",
                hint="restore with that runsc, or take the checkpoint again with this one",
            )


def description(bundle: OciBundle, network: str, root: str) -> dict[str, Any]:
    """What a sandbox is made with, as far as a restore must have it again, in the callers' names."""
    config = bundle.config
    process = config["process"]
    args, service = process["args"], []
    if args[0].endswith(f"/{guest.NAME}") and args[1:2] in ([], ["s"]):
        args, service = args[:1], args[2:]
    user = process.get("user") or {}
    return {
        "network": network,
        "rootfs": None if bundle.rootfs is None else os.fsdecode(bundle.rootfs),
        "writable": root,
        "mounts": [_mount(mount) for mount in config.get("mounts") or []],
        "service": service,
        # What they held may be in the guest's memory. None in the notes of earlier versions.
        "secret_files": sorted(secret.target for secret in bundle.secret_files) or None,
        "args": args,
        "user": [user.get("uid") or 0, user.get("gid") or 0],
        "env": dict(entry.split("=", 1) for entry in process.get("env") or []),
        "working_dir": process["cwd"],
        "hostname": config.get("hostname"),
        "rlimits": process.get("rlimits") or [],
    }


def _mount(mount: Mapping[str, Any]) -> str:
    options = mount.get("options") or []
    return f"{mount['destination']} {mount.get('type') or 'none'} {'ro' if 'ro' in options else 'rw'}"


def _plain(value: object) -> Any:
    """As it is once it was written and read."""
    return json.loads(json.dumps(value))


def _said(value: object) -> str:
    return "none" if value in (None, []) else value if isinstance(value, str) else json.dumps(value)


@contextmanager
def made(directory: HostPath, made_with: Mapping[str, Any]) -> Iterator[str]:
    """A new directory of mode 0700, or an empty one of the caller's, for an image: the path, without links, of the
    directory in it that runsc is to write to.

    FileExistsError for anything else that is there, Untrusted where others can change it. What was written when the
    block ends is an image, and `made_with` goes into its note; when the block raises, it is removed, and with it the
    directory that was made.
    """
    path = os.path.abspath(os.fsdecode(directory))
    try:
        os.mkdir(path, 0o700)
        new = True
    except FileExistsError:
        if not os.path.isdir(path) or os.listdir(path):
            raise
        new = False
    try:
        fd, path = _opened(path)
        try:
            os.fchmod(fd, 0o700)
            make_directory(fd, IMAGE)
            yield f"{path}/{IMAGE}"
            _write_note(fd, path, made_with)
        except BaseException:
            for name in os.listdir(fd):
                remove_tree(fd, os.fsencode(name), lambda _: None)  # the first error counts
            raise
        finally:
            os.close(fd)
    except BaseException:
        if new:
            with suppress(OSError):
                os.rmdir(path)
        raise


def _write_note(fd: int, path: str, made_with: Mapping[str, Any]) -> None:
    """The note, whole or not at all."""
    folder = os.open(IMAGE, _DIRECTORY, dir_fd=fd)
    try:
        where = f"{path}/{IMAGE}"
        names = sorted(os.listdir(folder))
        if not names:
            raise BadPath(
                "not a checkpoint",
                step="Prepare",
                path=where,
                observed="an empty directory",
                expected="the files of a checkpoint",
                hint="take the checkpoint again",
            )
        files = {}
        for name in names:
            if name not in FILES:
                raise Untrusted(
                    "not a file of a checkpoint",
                    step="Prepare",
                    path=f"{where}/{name}",
                    observed="a name that no release of runsc writes",
                    expected=", ".join(FILES),
                    hint="take the checkpoint again, into a new directory",
                )
            files[name] = _content(folder, name, where)[1]
    finally:
        os.close(folder)
    text = json.dumps({"version": VERSION, **made_with, "files": files}, indent=1).encode()
    note = os.open(f".{NOTE}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
    with open(note, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(note)
    os.rename(f".{NOTE}", NOTE, src_dir_fd=fd, dst_dir_fd=fd)
    os.fsync(fd)


def judged(directory: HostPath) -> Image:
    """The image in `directory`, that nobody but root and the caller can have changed, and that is as it was written;
    Untrusted otherwise, NotFound and BadPath where there is none."""
    fd, path = _opened(os.path.abspath(os.fsdecode(directory)))
    try:
        note = _read_note(fd, path)
        files = note["files"]
        where = f"{path}/{IMAGE}"
        try:
            folder = os.open(IMAGE, _DIRECTORY, dir_fd=fd)
        except OSError as error:
            raise BadPath(
                "not a checkpoint",
                step="Prepare",
                path=where,
                observed=error.strerror,
                expected=f"{IMAGE}/, as `checkpoint` writes it",
                hint="take the checkpoint again",
            ) from error
        try:
            _judge_owner(os.fstat(folder), where)
            found = []
            for name, written in files.items():
                identity, content = _content(folder, name, where)
                if content != written:
                    raise Untrusted(
                        "a checkpoint's file is not what was written",
                        step="Prepare",
                        path=f"{where}/{name}",
                        observed=_said(content),
                        expected=_said(written),
                        hint="take the checkpoint again",
                    )
                found.append((os.fsencode(f"{where}/{name}"), identity, name))
        finally:
            os.close(folder)
    finally:
        os.close(fd)
    return Image(tuple(found), note)


def _read_note(fd: int, path: str) -> dict[str, Any]:
    where = f"{path}/{NOTE}"
    try:
        file = os.open(NOTE, _FILE, dir_fd=fd)
    except FileNotFoundError as error:
        names = os.listdir(fd)
        raise BadPath(
            "not a checkpoint",
            step="Prepare",
            path=path,
            observed="no note of what it was made with" if names else "an empty directory",
            expected=f"{NOTE} and {IMAGE}/, as `checkpoint` writes them",
            hint="an image without a note is of an earlier version: take the checkpoint again"
            if names
            else "name the directory that `checkpoint` was given",
        ) from error
    except OSError as error:
        raise Untrusted(
            "not a checkpoint's note",
            step="Prepare",
            path=where,
            observed=error.strerror,
            expected=f"{NOTE}, a file that this user can read",
            hint=remedy(error),
        ) from error
    with open(file, "rb") as opened_:
        _judge_file(os.fstat(file), where)
        text = opened_.read(MAX_NOTE + 1)
    try:
        note = json.loads(text) if len(text) <= MAX_NOTE else None
    except (ValueError, RecursionError):
        note = None
    files = note.get("files") if isinstance(note, dict) and note.get("version") == VERSION else None
    if not isinstance(note, dict) or not isinstance(files, dict) or not files or not set(files) <= set(FILES):
        raise BadPath(
            "not a checkpoint's note",
            step="Prepare",
            path=where,
            observed=f"{len(text)} bytes",
            expected=f"JSON of version {VERSION}",
            hint="take the checkpoint again with this version",
        )
    return note


def _content(folder: int, name: str, where: str) -> tuple[FileId, dict[str, Any]]:
    """Which file it is, and its size and digest. It is read, not mapped: truncation would kill a mapping's reader."""
    try:
        fd = os.open(name, _FILE, dir_fd=folder)
    except FileNotFoundError as error:
        raise NotFound(
            "not a whole checkpoint",
            step="Prepare",
            path=f"{where}/{name}",
            observed="missing",
            expected="every file that the note names",
            hint="take the checkpoint again",
        ) from error
    except OSError as error:
        raise Untrusted(
            "not a file of a checkpoint",
            step="Prepare",
            path=f"{where}/{name}",
            observed=error.strerror,
            expected="a plain file that this user can read",
            hint=remedy(error),
        ) from error
    try:
        status = os.fstat(fd)
        _judge_file(status, f"{where}/{name}")
        digest, left = hashlib.sha256(), status.st_size
        while left > 0 and (piece := os.read(fd, min(left, 1 << 20))):
            digest.update(piece)
            left -= len(piece)
        return file_id(status), {"size": status.st_size, "sha256": digest.hexdigest()}
    finally:
        os.close(fd)


def _opened(path: str) -> tuple[int, str]:
    identity = Identity.current()
    try:
        found = Walk(identity).to(os.fsencode(path))
    except Untrusted as error:
        if type(error) is Untrusted:  # a directory above: whose it is, is not for us to change
            error.step, error.hint = "Prepare", _PRIVATE
        raise
    try:
        with calls("Prepare", found.path, expected="a directory"):
            fd = os.open(found.name, _DIRECTORY, dir_fd=found.parent)
    finally:
        linux.close(found.parent)
    try:
        _judge_owner(os.fstat(fd), os.fsdecode(found.path))
    except BaseException:
        os.close(fd)
        raise
    return fd, os.fsdecode(found.path)


def _judge_owner(status: os.stat_result, path: str) -> None:
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Untrusted(
            "a checkpoint's directory can be changed by others",
            step="Prepare",
            path=path,
            observed=described(status),
            expected=f"owner uid {os.geteuid()}, not writable by group or others",
            hint=_PRIVATE,
        )


_PRIVATE = "choose a directory of your own that nobody else can write, nor any directory above it: one below your home"


def _judge_file(status: os.stat_result, path: str) -> None:
    """A plain file of the caller's: what a sandbox was taken over to leave there instead leads nowhere."""
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Untrusted(
            "not a file of a checkpoint",
            step="Prepare",
            path=path,
            observed=f"{stat.filemode(status.st_mode)}, owner uid {status.st_uid}",
            expected=f"a file of uid {os.geteuid()}'s, not writable by group or others",
            hint="take the checkpoint again, as the user who restores it",
        )


def opened(path: str, *, alone: bool) -> int:
    """A descriptor by which runsc can write into directory `path`.

    With `alone` nothing else can be reached by it: of a directory's own descriptor the parent is one `..` away, and
    whoever has taken over the supervisor takes descriptors from runsc's other commands too (ptrace(2)). The root of a
    detached mount has no parent.
    """
    fd = os.open(path, _DIRECTORY)
    if not alone:
        return fd
    try:
        return _detached(path, file_id(os.fstat(fd)))
    finally:
        os.close(fd)


def _detached(path: str, identity: FileId) -> int:
    """A detached mount of `path`, made in a mount namespace of its own: only there may the caller without privilege."""
    ours, theirs = linux.socketpair()
    try:
        done = interpreter.run(_CLONE, path, *map(str, identity), stdin=theirs.fileno())
        theirs.close()
        _, fds = linux.receive(ours, 16, 1)
    finally:
        theirs.close()
        ours.close()
    if not fds:
        raise RunscFailed("runsc checkpoint cannot be given its directory", done.stderr.strip().splitlines()[-1])
    return fds[0]
