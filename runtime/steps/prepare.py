"""Prepare: the artifact base, the lock, the container's directory, and the bundle (gvisor.rs:482)."""

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from nucleus_gvisor.model.errors import BadBundle, LaunchError, Refused, Unsupported, remedy
from nucleus_gvisor.runtime import _child, cleanup
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.bundle import OciBundle
from nucleus_gvisor.runtime.cleanup import Place, state_component
from nucleus_gvisor.runtime.guest import Tree
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.options import Writable
from nucleus_gvisor.runtime.paths import (
    MAX_LINKS,
    FileId,
    Walk,
    described,
    enter,
    file_id,
    is_ours,
    judge_owner,
    open_base,
)

RECORDS = "records"
_WHOLE = (b"/proc", b"/sys", b"/dev", b"/run")
SENTRYS = ("/proc", "/sys", "/dev", "/tmp")
"""What runsc mounts in every guest."""


@dataclass(frozen=True)
class Source:
    """A host file or directory that the guest is to see: where it is, what it is, and where the launch puts it."""

    path: bytes
    """Without links."""
    asked: bytes
    """As it was named."""
    identity: FileId
    target: str
    """Below the container's directory: `rootfs` or `mnt/N`."""
    readonly: bool
    recursive: bool
    is_directory: bool
    copied: int = 0
    """The guest has a copy of it, of so many bytes at most: it is read, and is written when that is synchronised."""


@dataclass(frozen=True)
class MadeTree:
    """A tree of ours: the name of its directory below the container's, and where others are mounted in it."""

    tree: Tree
    name: str
    points: tuple[tuple[str, bool], ...]

    @property
    def planned(self) -> tuple[str, dict[str, tuple[int, bytes]], dict[str, str], list[tuple[str, bool]]]:
        """As the child makes it."""
        points = [*((name, True) for name in self.tree.directories), *self.points]
        return self.name, dict(self.tree.files), dict(self.tree.links), points


@dataclass(frozen=True)
class Guest:
    """The judged bundle, with its sources looked up."""

    bundle: OciBundle
    sources: tuple[Source, ...]
    binds: dict[int, str]
    """Index of a bind in the bundle's mounts -> its source's target."""
    skeleton: tuple[tuple[str, bool], ...] | None
    """Mount points (path, is it a directory) of the empty root that is made when the bundle has none of its own."""
    missing: tuple[tuple[str, bool], ...]
    """Mount points that runsc would make in the bundle's own root, which is to stay as it is."""
    writable: Writable | None
    """Where writes to the root go; None when it is read-only."""
    covers: tuple[tuple[str, bytes], ...] = ()
    """What is hidden from the guest: a source's target, and the directory of ours below it."""
    trees: tuple[MadeTree, ...] = ()
    """What of ours it sees."""
    fill: Mapping[str, tuple[int, bytes]] = field(default_factory=dict)
    """Mode and content of files that its root lacks, by place."""

    @property
    def led(self) -> dict[str, str]:
        """Where links of the sources have led, by what was named."""
        found = {source.asked: source.path for source in self.sources}
        return {
            name.decode("utf-8", "backslashreplace"): path.decode("utf-8", "backslashreplace")
            for name, path in found.items()
            if os.path.normpath(name) != path
        }

    @property
    def root(self) -> str:
        """The same in a word, for records and callers."""
        return "read-only" if self.writable is None else self.writable.value


def take_place(container_id: str, explicit: os.PathLike[str] | None, identity: Identity) -> Place:
    """The open artifact base and the taken lock of this id; BadBase or Busy. What dead launches left is collected.

    Spec: GVisorRuntime!Prepare.
    """
    base, path, shared = open_base(explicit, identity)
    place = Place(base, path, state_component(container_id), shared=shared)
    try:
        place.take()
        cleanup.collect(place.base, place.base_path, place.locks, cleanup.LOOKS)
        return place
    except BaseException:
        place.remove()
        place.close()
        raise


def records(place: Place) -> int:
    """A descriptor of the base's records directory."""
    return enter(place.base, RECORDS.encode(), place.base_path + b"/" + RECORDS.encode(), create=True)


def look_at_bundle(
    bundle: OciBundle, writable: Writable = Writable.MEMORY, *own: Tree, ours: Sequence[bytes] = (), fills: bool = False
) -> Guest:
    """The bundle with every host path in it resolved once and identified; BadBundle for one that is not there.

    `writable` says what a root that is not read-only means, `own` are trees of ours beside the bundle's. `ours` are the
    host's directories that no guest may write or see: bases and caches. `fills`: can files be shown that a root lacks.

    Spec: GVisorRuntime!Prepare.
    """
    sources: list[Source] = []
    config = bundle.config
    _judge_annotations(config.get("annotations") or {})
    how = None if config["root"].get("readonly", False) else writable
    if bundle.rootfs is not None:
        # Read-only whatever the guest may write: what is kept elsewhere never reaches the directory.
        root = _source(os.fsencode(bundle.rootfs), "rootfs", how is not Writable.HOST, True)
        if not root.is_directory:
            raise BadBundle(
                "rootfs is not a directory",
                step="Prepare",
                path=root.path,
                observed="a file",
                expected="a directory",
                hint="name the directory that holds the guest's files",
            )
        sources.append(root)
    if how is Writable.HOST:
        _judge_written(sources[0].path if sources else None)
    binds: dict[int, str] = {}
    for bind in bundle.binds():
        target = f"mnt/{len(binds)}"
        sources.append(_source(bind.source, target, bind.readonly, bind.recursive, bind.copied))
        if not bind.meant:
            _judge_given_away(sources[-1])
        binds[bind.index] = target
    trees = (*bundle.trees, *own)
    for number, tree in enumerate(trees):
        sources += [
            _source(os.fsencode(path), f"{_child.TREE}{number}/{name}", True, True)
            for name, path in tree.sources.items()
        ]
    covers = _covers(sources, ours)
    by_target = {source.target: source for source in sources}
    points = [
        _Point(str(mount["destination"]), by_target.get(binds.get(index, "")))
        for index, mount in enumerate(config.get("mounts") or [])
    ]
    cwd = _linked(str(config["process"]["cwd"]), bundle.links)
    own_places = [(target, True) for target in (*(tree.target for tree in trees), cwd) if target.strip("/.")]
    secrets = [(secret.target, False) for secret in bundle.secret_files]
    made = tuple(_made(f"{_child.TREE}{number}", tree, points, secrets, by_target) for number, tree in enumerate(trees))
    own_places += secrets
    _judge_in_memory(cwd, points, config.get("mounts") or [])
    if _around(cwd, points) is None:
        _judge_in_trees(cwd, trees)
    if bundle.rootfs is None:
        places = [(point.target, point.is_directory) for point in points]
        places += own_places
        _missing(None, how, points, own_places)
        return Guest(bundle, tuple(sources), binds, tuple(places), (), how, covers, made)
    missing = _missing(sources[0], how, points, own_places)
    fill = _lacking(sources[0].path, bundle.fill) if fills and how is not Writable.HOST else {}
    return Guest(bundle, tuple(sources), binds, None, missing, how, covers, made, fill)


def _judge_given_away(source: Source) -> None:
    """Refused for what is the host itself, rather than some files of it."""
    path = source.path
    kind = os.stat(path, follow_symlinks=False).st_mode  # for the error's sake: the child compares what it binds
    if path == b"/" or path in _WHOLE:
        what = "all of it"
    elif path.startswith(tuple(whole + b"/" for whole in _WHOLE[:3])) and not path.startswith(b"/dev/shm/"):
        what = "the kernel's own files"
    elif stat.S_ISSOCK(kind) or stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
        what = "a socket" if stat.S_ISSOCK(kind) else "a device"
    else:
        return
    raise Refused(
        "a mount of what would give the host away",
        step="Prepare",
        path=path,
        observed=what,
        expected="files and directories of its own for the guest",
        hint="name what it needs alone, or say that it is meant: SRC:DST:ro,meant",
    )


def _lacking(rootfs: bytes, files: Mapping[str, tuple[int, bytes]]) -> dict[str, tuple[int, bytes]]:
    """Those of `files` that the directory has not, or, as engines leave them there, empty; each at its place."""
    found = {}
    for path, file in files.items():
        with suppress(BadBundle):  # something else lies on the way
            place, there = _inside(rootfs, os.fsencode(path))
            if not there or _is_empty(os.path.join(rootfs, place.lstrip(b"/"))):
                found[os.fsdecode(place.lstrip(b"/"))] = file
    return found


def _is_empty(path: bytes) -> bool:
    status = os.stat(path, follow_symlinks=False)
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _made(
    name: str,
    tree: Tree,
    points: Sequence["_Point"],
    files: Sequence[tuple[str, bool]],
    by_target: Mapping[str, Source],
) -> MadeTree:
    """The tree with a place for each that is mounted in it."""
    inside = [
        (target[len(tree.target) + 1 :], is_directory)
        for target, is_directory in [*((point.target, point.is_directory) for point in points), *files]
        if target.startswith(f"{tree.target}/")
    ]
    inside += [(path, by_target[f"{name}/{path}"].is_directory) for path in tree.sources]
    return MadeTree(tree, name, tuple(inside))


def _covers(sources: Sequence[Source], ours: Sequence[bytes]) -> tuple[tuple[str, bytes], ...]:
    """What of `ours` is to be hidden in which source. Refused for what a guest could write, or be planted where it is
    not yet: a lock, a record, and above all a file that a later launch executes.
    """
    found = []
    for path in ours:
        above = _above(path)
        ids = [identity for _, identity in above]
        for source in sources:
            if source.identity in ids:
                below = path[len(above[ids.index(source.identity)][0].rstrip(b"/")) :].strip(b"/")
            elif _lies_in(source.path, above[0], path):
                below = b""
            else:
                continue
            if not source.readonly or not source.is_directory or (below and not source.recursive):
                raise Refused(
                    "a source that is, has in it or lies in a directory of ours is refused",
                    step="Prepare",
                    path=source.path,
                    observed=f"{'read-only' if source.readonly else 'writable'}: {os.fsdecode(path)}",
                    expected="none that a guest could write to, and nothing of ours in what it reads",
                    hint="give a directory beside it, or name another base (artifact_base) or cache"
                    " (NUCLEUS_GVISOR_CACHE)",
                )
            found.append((source.target, below))
    return tuple(found)


def _above(path: bytes) -> list[tuple[bytes, FileId]]:
    """`path` and the directories above it that are there, by what they are: another path may lead to them."""
    found = []
    while True:
        with suppress(*(() if path == b"/" else (FileNotFoundError, NotADirectoryError, PermissionError))):
            found.append((path, file_id(os.stat(path))))
        if path == b"/":
            return found
        path = os.path.dirname(path)


def _lies_in(source: bytes, there: tuple[bytes, FileId], ours: bytes) -> bool:
    """Does it lie in what launches make in our directory `ours`; the caller may keep things of his own beside that."""
    if there[0] != ours:
        return False
    inside = source
    for path, identity in _above(source):
        if identity == there[1]:
            return is_ours(os.path.basename(inside))
        inside = path
    return False


@dataclass(frozen=True)
class _Point:
    """Where something is mounted in the guest, and the host's source of it; None for what the sentry has itself."""

    target: str
    source: Source | None

    @property
    def is_directory(self) -> bool:
        return self.source is None or self.source.is_directory

    def has(self, target: str) -> bool:
        return target.startswith(self.target.rstrip("/") + "/")


def _judge_annotations(annotations: Mapping[str, str]) -> None:
    """Refused for what would have runsc keep writes elsewhere than was asked for, however flags are allowed."""
    for name in annotations:
        if name in ("dev.gvisor.flag.overlay", "dev.gvisor.flag.overlay2"):
            raise Refused(
                f"annotation {name} refused",
                step="Prepare",
                observed=annotations[name],
                expected="no such annotation: what a writable root means is an option of the launch",
                hint='writable="memory", or another of its values',
            )


def _judge_written(rootfs: bytes | None) -> None:
    """BadBundle unless root and the caller alone can write the directory that the guest is to write."""
    if rootfs is None:
        raise BadBundle(
            "the guest's root is none of the host's directories, and cannot be written there",
            step="Prepare",
            observed="writable: host, and no rootfs",
            expected="a rootfs",
            hint="give a rootfs, or let its writes go to memory",
        )
    identity = Identity.current()
    try:
        found = Walk(identity).to(rootfs)
    except LaunchError as error:
        raise BadBundle(
            "others can change the rootfs that the guest is to write",
            step="Prepare",
            path=error.path or rootfs,
            observed=error.observed,
            expected=error.expected,
            hint="let its writes go to memory, or move it to a directory that only you can write",
        ) from error
    linux.close(found.parent)
    # SAFETY: by path, for nobody but root and the caller can change where it leads; the child compares what it opens.
    status = os.stat(rootfs, follow_symlinks=False)
    if not judge_owner(status, identity) or status.st_mode & 0o022:
        raise BadBundle(
            "others can write the rootfs that the guest is to write",
            step="Prepare",
            path=rootfs,
            observed=described(status),
            expected=f"owner root or uid {identity.uid}, not writable by group or others",
            hint="let its writes go to memory, or use a copy of your own",
        )


def require_disk(fd: int, path: bytes) -> None:
    """Unsupported where a directory is in memory, or could not be named to runsc: nothing large is to be kept there."""
    kind = _file_system(fd)
    if kind in ("tmpfs", "ramfs", "hugetlbfs", "devtmpfs") or set(path) & set(b":,"):
        raise Unsupported(
            "no place on disk for what the guest writes",
            step="Prepare",
            path=path,
            observed=f"{kind}, which is memory" if kind else "a file system that is not told",
            expected="an artifact base on disk, with no : or , in its path",
            hint='name one: artifact_base="DIR", which is runtime_dir of a Sandbox',
        )


def _file_system(fd: int) -> str:
    """The kind of file system that `fd` is on, proc(5)."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        (mount,) = (line.split()[1] for line in file if line.startswith("mnt_id:"))
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        return next((line.partition(" - ")[2].split()[0] for line in file if line.split()[0] == mount), "")


def _linked(path: str, links: Mapping[str, str]) -> str:
    """Where it leads by the guest's own links."""
    for name, target in links.items():
        if f"{path}/".startswith(f"{name}/"):
            return target + path[len(name) :]
    return path


def _judge_in_trees(cwd: str, trees: Sequence[Tree]) -> None:
    """BadBundle for a working directory that lies in one of our own trees, which are read-only, and is not there."""
    for tree in trees:
        name = cwd.removeprefix(f"{tree.target}/")
        made = (*tree.files, *tree.links, *tree.directories, *tree.sources)
        above = {os.fspath(path) for entry in made for path in PurePosixPath(entry).parents}
        of_host = [source + name[len(at) :] for at, source in tree.sources.items() if f"{name}/".startswith(f"{at}/")]
        if name != cwd and name not in {*above, *tree.directories} and not any(map(os.path.isdir, of_host)):
            raise BadBundle(
                f"no working directory in the guest: {cwd}",
                step="Prepare",
                observed=f"no directory: {tree.target} is generated, and read-only",
                expected="a directory that is there",
                hint="choose another, or mount a directory there",
            )


def _judge_in_memory(cwd: str, points: list[_Point], mounts: Sequence[Mapping[str, Any]]) -> None:
    """BadBundle for a working directory in a tmpfs, where nothing is yet but what is mounted there."""
    around = _around(cwd, points)
    if around is None or around.source is not None or around.target.rstrip("/") == "/dev":
        return
    inside = [point for point in points if (point.target + "/").startswith(cwd.rstrip("/") + "/")]
    if mounts[points.index(around)].get("type") == "tmpfs" and not inside:
        raise BadBundle(
            f"no working directory in the guest: {cwd}",
            step="Prepare",
            observed=f"missing: {around.target} is a tmpfs, and empty when the guest starts",
            expected="a directory that is there",
            hint="choose another, mount a directory there, or have the guest's program make it",
        )


def _judge_kind(target: str, path: bytes, is_directory: bool) -> None:
    """BadBundle unless what is there is of the kind that runsc needs there."""
    # SAFETY: by path, and only for the sake of the error: runsc refuses what does not fit as well.
    if stat.S_ISDIR(os.stat(path, follow_symlinks=False).st_mode) != is_directory:
        wanted, found = ("a directory", "a file") if is_directory else ("a file", "a directory")
        raise BadBundle(
            f"{target} of the guest is {found}",
            step="Prepare",
            path=path,
            observed=found,
            expected=f"{wanted}, as what is mounted there, or the working directory, is",
            hint="name another place in the guest",
        )


def no_place(target: str, directory: bytes, place: bytes, is_directory: bool) -> BadBundle:
    """The error for a place of the guest that runsc would have to make in the caller's directory."""
    return BadBundle(
        f"{target} of the guest has no place in the host's directory",
        step="Prepare",
        path=os.path.join(directory, place.lstrip(b"/")),
        observed="missing",
        expected=f"a {'directory' if is_directory else 'file'}: nothing is made in a directory of the caller's",
        hint="make it there",
    )


def _source(path: bytes, target: str, readonly: bool, recursive: bool, copied: int = 0) -> Source:
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real, follow_symlinks=False)
    except OSError as error:
        raise BadBundle(
            "what the guest is to see is not there",
            step="Prepare",
            path=path,
            observed=error.strerror,
            expected="a file or directory of the host",
            hint="make it, or name another",
        ) from error
    is_directory = stat.S_ISDIR(status.st_mode)
    if copied and not is_directory:
        raise BadBundle(
            "the workspace is no directory",
            step="Prepare",
            path=real,
            observed=stat.filemode(status.st_mode)[0],
            expected="a directory",
            hint="name the directory that it lies in, or mount the file",
        )
    return Source(real, path, file_id(status), target, readonly, recursive and is_directory, is_directory, copied)


def _missing(
    root: Source | None, how: Writable | None, points: list[_Point], own: Sequence[tuple[str, bool]]
) -> tuple[tuple[str, bool], ...]:
    """The places, without links, that runsc would make in the bundle's own root. BadBundle for one that it would make
    in another directory of the host's, or where the guest writes to the root itself.

    The gofer makes a place for each bind, and what is our `own`, in what is bound around it; the sentry makes one
    for what it mounts itself, where it can write, and else makes it up.
    """
    by_gofer = [(p.target, p.is_directory) for p in points if p.source is not None]
    by_gofer += own
    by_sentry = [p.target for p in points if p.source is None]
    if how is Writable.HOST:  # what it mounts in any case, boot/vfs.go
        by_sentry += [target for target in SENTRYS if target not in [p.target for p in points]]
    missing = []
    for target, is_directory in by_gofer:
        around = _around(target, [p for p in points if p.source is not None])
        directory = root if around is None else around.source
        if directory is None:
            continue
        place, there = _inside(directory.path, os.fsencode(target[len(around.target) if around else 0 :]))
        if not there and (around is not None or how is Writable.HOST):
            raise no_place(target, directory.path, place, is_directory)
        if not there:
            missing.append((os.fsdecode(place), is_directory))
        else:
            _judge_kind(target, os.path.join(directory.path, place.lstrip(b"/")), is_directory)
    for target in by_sentry:
        around = _around(target, points)
        directory = root if around is None else around.source
        if directory is not None and not directory.readonly:
            place, there = _inside(directory.path, os.fsencode(target[len(around.target) if around else 0 :]))
            if not there:
                raise no_place(target, directory.path, place, True)
    return tuple(missing)


def _around(target: str, points: list[_Point]) -> _Point | None:
    """The innermost of `points` that `target` lies in."""
    return max((point for point in points if point.has(target)), key=lambda point: len(point.target), default=None)


def _inside(rootfs: bytes, point: bytes) -> tuple[bytes, bool]:
    """Where `point` is in the tree `rootfs`, links taken as the guest takes them, and is anything there."""
    pending = [name for name in point.split(b"/") if name][::-1]
    here: list[bytes] = []
    links = 0
    there = True
    while pending:
        name = pending.pop()
        if name in (b".", b".."):  # from a link's target only
            del here[len(here) - (name == b"..") :]
            continue
        here.append(name)
        if not there:
            continue
        path = os.path.join(rootfs, *here)
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            there = False
            continue
        except OSError as error:
            raise BadBundle(
                "a mount's place cannot be looked at",
                step="Prepare",
                path=path,
                observed=str(error),
                expected="a path in the rootfs",
                hint=remedy(error),
            ) from error
        if stat.S_ISLNK(status.st_mode) and (links := links + 1) <= MAX_LINKS:
            target = os.readlink(path)
            here = [] if target.startswith(b"/") else here[:-1]
            pending += [name for name in target.split(b"/") if name][::-1]
        elif pending and not stat.S_ISDIR(status.st_mode):
            raise BadBundle(
                "a mount has no place in the rootfs",
                step="Prepare",
                path=path,
                observed=f"{stat.filemode(status.st_mode)}, on the way to {os.fsdecode(point)}",
                expected="a directory",
                hint="choose another target, or mend the rootfs",
            )
    return b"/" + b"/".join(here), there
