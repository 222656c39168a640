"""Prepare: the artifact base, the lock, the container's directory, and the bundle (gvisor.rs:482)."""

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nucleus_gvisor.model.errors import BadBundle
from nucleus_gvisor.runtime import cleanup
from nucleus_gvisor.runtime.bundle import OciBundle
from nucleus_gvisor.runtime.cleanup import Place, state_component
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import FileId, artifact_base, enter, file_id, open_private

RECORDS = "records"


@dataclass(frozen=True)
class Source:
    """A host file or directory that the guest is to see: where it is, what it is, and where the launch puts it."""

    path: bytes
    """Without links."""
    identity: FileId
    target: str
    """Below the container's directory: `rootfs` or `mnt/N`."""
    readonly: bool
    recursive: bool
    is_directory: bool


@dataclass(frozen=True)
class Guest:
    """The judged bundle, with its sources looked up."""

    bundle: OciBundle
    sources: tuple[Source, ...]
    binds: dict[int, str]
    """Index of a bind in the bundle's mounts -> its source's target."""
    skeleton: tuple[tuple[str, bool], ...] | None
    """Mount points (path, is it a directory) of the empty root that is made when the bundle has none of its own."""


def take_place(container_id: str, explicit: os.PathLike[str] | None, identity: Identity) -> Place:
    """The open artifact base and the taken lock of this id; BadBase or Busy. What dead launches left is collected.

    Spec: GVisorRuntime!Prepare.
    """
    path = artifact_base(explicit, identity)
    place = Place(open_private(path, identity), path, state_component(container_id))
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


def look_at_bundle(bundle: OciBundle) -> Guest:
    """The bundle with every host path in it resolved once and identified; BadBundle for one that is not there.

    Spec: GVisorRuntime!Prepare.
    """
    sources: list[Source] = []
    config = bundle.config
    readonly = bool(config["root"].get("readonly", False))
    if bundle.rootfs is not None:
        root = _source(os.fsencode(bundle.rootfs), "rootfs", readonly, True)
        if not root.is_directory:
            raise BadBundle("rootfs is not a directory", step="Prepare", path=root.path)
        sources.append(root)
    binds: dict[int, str] = {}
    for bind in bundle.binds():
        target = f"mnt/{len(binds)}"
        sources.append(_source(bind.source, target, bind.readonly, bind.recursive))
        binds[bind.index] = target
    guest = Guest(bundle, tuple(sources), binds, None)
    points = _mount_points(config, guest)
    if bundle.rootfs is None:
        return Guest(bundle, tuple(sources), binds, points)
    if readonly:
        _judge_mount_points(sources[0].path, points)
    return guest


def _source(path: bytes, target: str, readonly: bool, recursive: bool) -> Source:
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real, follow_symlinks=False)
    except OSError as error:
        raise BadBundle(
            "a path of the bundle is not there",
            step="Prepare",
            path=path,
            observed=error.strerror,
            expected="a file or directory of the host",
        ) from error
    is_directory = stat.S_ISDIR(status.st_mode)
    return Source(real, file_id(status), target, readonly, recursive and is_directory, is_directory)


def _mount_points(config: Mapping[str, Any], guest: Guest) -> tuple[tuple[str, bool], ...]:
    by_target = {source.target: source for source in guest.sources}
    points = []
    for index, mount in enumerate(config.get("mounts") or []):
        target = guest.binds.get(index)
        points.append((str(mount["destination"]), target is None or by_target[target].is_directory))
    return tuple(points)


def _judge_mount_points(rootfs: bytes, points: tuple[tuple[str, bool], ...]) -> None:
    """A read-only root has to have every mount point: runsc cannot make one there, and says so late and badly."""
    for point, _ in points:
        if point in ("/proc", "/dev", "/sys", "/tmp") or point.startswith(("/dev/", "/proc/")):
            continue  # the sentry mounts these itself, over directories that it makes up
        here = os.path.join(rootfs, os.fsencode(point.lstrip("/")))
        with suppress(OSError):
            os.stat(here)
            continue
        raise BadBundle(
            "a mount has no place in the read-only rootfs",
            step="Prepare",
            path=here,
            observed="missing",
            expected="a directory or file to mount over",
            hint="make it in the rootfs, or make the rootfs writable",
        )
