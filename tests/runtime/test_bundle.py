"""OCI bundles: what `build` makes is valid for everyone, and nothing on disk gets past `load` unjudged."""

import errno
import json
import os
import resource
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from referencing import Registry
from referencing.jsonschema import DRAFT4

from nucleus_gvisor.model.errors import BadArgument, BadBundle, Refused
from nucleus_gvisor.runtime.bundle import (
    DEFAULT_ENV,
    MAX_CONFIG,
    MAX_STRING,
    MAX_STRINGS,
    Mount,
    OciBundle,
    check_config,
)

SCHEMA = Path("/usr/share/gocode/src/github.com/opencontainers/runtime-spec/schema/config-schema.json")


class Release(Protocol):
    """A release of runsc, as the fixture gives it."""

    @property
    def path(self) -> Path: ...


Change = Callable[[dict[str, Any]], object]
NOBODY = 65534


@pytest.fixture(scope="module")
def oci_schema() -> Any:
    """A validator for the Open Container Initiative's own schema of config.json."""
    if not SCHEMA.exists():
        pytest.fail(f"{SCHEMA} is missing: apt-get install golang-github-opencontainers-specs-dev")
    schemas = {path.name: json.loads(path.read_text()) for path in SCHEMA.parent.glob("*.json")}
    parts = [(f"{SCHEMA.parent.as_uri()}/{name}", DRAFT4.create_resource(part)) for name, part in schemas.items()]
    registry: Any = Registry().with_resources(parts)
    return jsonschema.Draft4Validator({**schemas[SCHEMA.name], "id": SCHEMA.as_uri()}, registry=registry)


@pytest.fixture
def bundle(base: Path) -> Path:
    """A directory with a sound config.json."""
    return write(base / "bundle", sound())


def sound(change: Change | None = None) -> dict[str, Any]:
    """A configuration that passes, after `change`."""
    config = OciBundle.build(["true"], rootfs="/srv/root", mounts=["/data:/data"]).config
    config["root"]["path"] = "rootfs"
    if change is not None:
        change(config)
    return config


def write(directory: Path, content: object, *, raw: bytes | None = None) -> Path:
    """`directory` with `content` as its config.json."""
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    (directory / "config.json").write_bytes(json.dumps(content).encode() if raw is None else raw)
    (directory / "config.json").chmod(0o644)
    return directory


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- build ----

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1, max_size=10)
parts = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda part: part.strip(".") != ""
)
ids = st.integers(0, 2**32 - 2)
targets = st.lists(parts, min_size=1, max_size=3).map(lambda p: "/guest/" + "/".join(p))
sources = st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=3).map(
    lambda p: b"/host/" + b"/".join(part.replace(b"\0", b"_").replace(b"/", b"_").replace(b".", b"_") for part in p)
)
mounts = st.lists(
    st.builds(lambda s, t, r: Mount(source=s, target=t, readonly=r), sources, targets, st.booleans())
    | st.builds(Mount.tmpfs, targets),
    max_size=4,
    unique_by=lambda mount: mount.target,
)
shapes = st.fixed_dictionaries(
    {"args": st.lists(words, min_size=1, max_size=5), "mounts": mounts, "uid": ids, "gid": ids},
    optional={
        "rootfs": sources,
        "env": st.dictionaries(names, words, max_size=4),
        "cwd": targets,
        "hostname": st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True),
        "rlimits": st.dictionaries(st.sampled_from(["RLIMIT_NOFILE", "RLIMIT_CPU"]), st.integers(0, 2**64 - 1)),
        "readonly": st.booleans(),
        "terminal": st.booleans(),
    },
)


@given(shape=shapes)
@settings(max_examples=150, deadline=None)
def test_what_runsc_gets_is_valid_oci(oci_schema: Any, shape: dict[str, Any]) -> None:
    """Whatever was asked for, the bytes for runsc are JSON that OCI's own schema and our own check accept."""
    bundle = OciBundle.build(**shape)
    raw = bundle.private_config("/private/root", {bind.index: f"/private/{bind.index}" for bind in bundle.binds()})
    config = json.loads(raw.decode("utf-8"))
    oci_schema.validate(config)
    check_config(config)
    assert config["process"]["args"] == shape["args"]
    assert not any(config["process"]["capabilities"].values())


@given(shape=shapes)
@settings(max_examples=100, deadline=None)
def test_private_places_hide_every_host_path_and_nothing_else_changes(shape: dict[str, Any]) -> None:
    """runsc's copy names no host path, while every other field is as it was judged."""
    bundle = OciBundle.build(**shape)
    places = {bind.index: f"/private/{bind.index}" for bind in bundle.binds()}
    config, private = bundle.config, json.loads(bundle.private_config("/private/root", places))
    assert private["root"].pop("path") == "/private/root"
    config["root"].pop("path")
    for index, place in places.items():
        assert private["mounts"][index].pop("source") == place
        config["mounts"][index].pop("source")
    assert config["process"].pop("capabilities") and private["process"].pop("capabilities") == {}  # no empty lists
    assert private == config
    asked = {mount.source for mount in shape["mounts"] if mount.type == "bind"}
    assert {os.fsencode(str(source)) for source in map(os.fsdecode, asked)} <= {bind.source for bind in bundle.binds()}


def test_a_bundle_without_a_rootfs_shows_the_host_read_only() -> None:
    """Every directory of the host is bound read-only from its real path, or a link into another, as it is there; and
    the root is left to the launcher."""
    bundle = OciBundle.build(["true"])
    mounts = bundle.config["mounts"]
    assert bundle.rootfs is None
    assert bundle.config["root"] == {"path": "rootfs", "readonly": True}
    bound = {mount["destination"] for mount in mounts}
    assert {"/usr", "/proc", "/dev", "/tmp"} <= bound
    for name in ("/bin", "/sbin", "/lib"):
        assert (name in bound) != (name in bundle.links)
    for name, target in bundle.links.items():
        assert target == os.path.realpath(name)
    assert "/bin" not in OciBundle.build(["true"], mounts=["/data:/bin/data"]).links
    for bind in bundle.binds():
        assert bind.readonly
        assert os.path.realpath(bind.source) == bind.source
        assert os.path.samefile(bind.source, mounts[bind.index]["destination"])


def test_a_representation_tells_no_secrets() -> None:
    """Arguments and environment do not get into logs."""
    shown = repr(OciBundle.build(["login", "hunter2"], env={"TOKEN": "s3cret"}, mounts=["/data:/data"], rootfs="/r"))
    assert shown == "<OciBundle in memory, 1 binds>"


def test_host_directories_that_cannot_be_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link among them that cannot be read is an error of the bundle, and none is left out."""

    def failing(*_: object, **__: object) -> str:
        raise OSError(errno.EIO, "Input/output error", "/lib64")

    monkeypatch.setattr(os, "readlink", failing)
    with pytest.raises(BadBundle, match="the host's directories") as caught:
        OciBundle.build(["true"])
    assert caught.value.errno == errno.EIO and caught.value.path == b"/lib64"


def test_nothing_of_the_callers_environment_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default environment is fixed, and a given one is the whole of it."""
    monkeypatch.setenv("LD_PRELOAD", "/secret.so")
    monkeypatch.setenv("HOME", "/home/secret")
    assert OciBundle.build(["true"]).config["process"]["env"] == [f"{k}={v}" for k, v in DEFAULT_ENV.items()]
    assert OciBundle.build(["true"], env={"A": "1"}).config["process"]["env"] == ["A=1"]
    assert "secret" not in OciBundle.build(["true"]).private_config("/r", dict_of_places()).decode()


def dict_of_places() -> dict[int, str]:
    return {bind.index: f"/p/{bind.index}" for bind in OciBundle.build(["true"]).binds()}


def test_host_paths_need_not_be_text() -> None:
    """A source and a rootfs that are not UTF-8 come out of the bundle as the bytes that went in."""
    bundle = OciBundle.build(["true"], rootfs=b"/r\xff", mounts=[Mount(source=b"/d\xfe", target="/d")])
    assert bundle.rootfs == b"/r\xff"
    assert [bind.source for bind in bundle.binds()] == [b"/d\xfe"]
    assert b"dcfe" not in bundle.private_config("/r", {bundle.binds()[0].index: "/p"})


def test_a_callers_mount_takes_the_place_of_a_default() -> None:
    """A directory mounted at /tmp (however spelt) is the only mount there."""
    bundle = OciBundle.build(["true"], rootfs="/r", mounts=["/work://tmp/./:rw"])
    at_tmp = [mount for mount in bundle.config["mounts"] if mount["destination"].endswith("tmp")]
    assert [mount["source"] for mount in at_tmp] == ["/work"]
    assert not bundle.binds()[0].readonly


def test_what_is_handed_out_is_a_copy() -> None:
    """Neither the document given to the constructor nor the one handed out can change a judged bundle."""
    given_config = sound()
    bundle = OciBundle("/bundle", given_config)
    given_config["hooks"] = bundle.config["hooks"] = {"prestart": [{"path": "/bin/evil"}]}
    bundle.config["process"]["args"].append("evil")
    assert "evil" not in json.dumps(bundle.config)
    assert (str(bundle.bundle_path), bundle.rootfs) == ("/bundle", b"/bundle/rootfs")


def test_the_network_namespace_is_added_or_replaced() -> None:
    """A launcher's network namespace is the only one, whether or not the bundle named another."""
    for before in ([], [{"type": "network"}], [{"type": "network", "path": "/proc/1/ns/net"}]):
        config = sound(lambda c, n=before: c["linux"]["namespaces"].extend(n))  # type: ignore[misc]
        private = json.loads(OciBundle("/b", config).private_config("/r", {4: "/p"}, netns="/run/ns/x"))
        found = [n for n in private["linux"]["namespaces"] if n["type"] == "network"]
        assert found == [{"type": "network", "path": "/run/ns/x"}]
        assert len(private["linux"]["namespaces"]) == 5
    bare = OciBundle("/b", sound(lambda c: c.pop("linux"))).private_config("/r", {4: "/p"}, netns="/n")
    assert json.loads(bare)["linux"] == {"namespaces": [{"type": "network", "path": "/n"}]}


@pytest.mark.parametrize("places", [{}, {4: "relative"}, {4: "/a/../b"}, {4: "/p\udcff"}, {4: "/p", 5: "/q"}])
def test_private_places_are_complete_and_sound(places: dict[int, str]) -> None:
    """A bind that is left out, or a place that is no plain absolute path, is refused."""
    with pytest.raises(BadArgument, match="private source"):
        OciBundle("/b", sound()).private_config("/r", places)


BUILD_REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no arguments", {"args": []}, "process.args refused.*at least one"),
    ("a string for a list", {"args": "ls -l"}, "args refused.*a list of strings"),
    ("a number for an argument", {"args": ["a", 1]}, r"args\[1\] refused.*a string"),
    ("NUL in an argument", {"args": ["a\0b"]}, r"process.args\[0\] refused.*without NUL"),
    ("bytes that are not UTF-8", {"args": [b"\xff"]}, r"process.args\[0\] refused.*UTF-8"),
    ("a surrogate", {"args": ["\ud800"]}, r"process.args\[0\] refused.*UTF-8"),
    ("128 KiB in one argument", {"args": ["x" * MAX_STRING]}, "131072 bytes.*less than 131072 bytes"),
    ("2 MiB of arguments", {"args": ["x" * (MAX_STRING - 1)] * 16}, "at most 2097152 bytes together"),
    ("2 MiB of empty arguments", {"args": [""] * (MAX_STRINGS // 8)}, "at most 2097152 bytes together"),
    ("128 KiB in the environment", {"env": {"A": "x" * MAX_STRING}}, r"process.env\[0\] refused"),
    ("= in a name", {"env": {"A=B": "x"}}, "environment name refused.*without ="),
    ("an empty name", {"env": {"": "x"}}, r"process.env\[0\] refused.*NAME=VALUE"),
    ("a number in the environment", {"env": {"A": 1}}, "environment entry A refused"),
    ("a relative cwd", {"cwd": "tmp"}, "process.cwd refused.*absolute"),
    ("uid -1", {"uid": 2**32 - 1}, "process.user.uid refused.*4294967294"),
    ("True for a uid", {"uid": True}, "process.user.uid refused.*True"),
    ("a vast gid", {"gid": 10**5000}, "refused"),
    ("an unknown limit", {"rlimits": {"NOFILE": 1}}, r"rlimits\[0\].type refused.*RLIMIT_"),
    ("soft above hard", {"rlimits": {"RLIMIT_NOFILE": (2, 1)}}, r"rlimits\[0\].soft refused.*0 to 1"),
    ("a negative limit", {"rlimits": {"RLIMIT_CPU": -1}}, r"rlimits\[0\].hard refused"),
    ("a long host name", {"hostname": "h" * 65}, "hostname refused.*64 bytes"),
    ("no host name", {"hostname": None}, "hostname refused.*nothing.*a string"),
    ("no capabilities", {"capabilities": None}, "capabilities refused.*nothing.*a list of names"),
    ("an empty word for etc", {"etc": ""}, "etc refused; observed: ''; expected: generated, none"),
    ("a name that no file has", {"cwd": "/" + "n" * 256}, "process.cwd refused.*at most 255 bytes"),
    ("NUL in the directory", {"cwd": "/a\0b"}, "process.cwd refused.*without NUL"),
    ("a target with such a name", {"mounts": ["/a:/t/" + "n" * 256]}, "refused.*at most 255 bytes"),
    ("a number for readonly", {"readonly": 1}, "root.readonly refused.*true or false"),
    ("a relative rootfs", {"rootfs": "root"}, "rootfs refused.*absolute"),
    ("a rootfs that climbs", {"rootfs": "/a/../b"}, "rootfs refused"),
    ("a mount over /proc", {"mounts": ["/a:/proc"]}, "mount target refused.*neither /proc"),
    ("a mount over /", {"mounts": ["/a:/./"]}, "mount target refused.*rootfs="),
    ("one target twice", {"mounts": ["/a:/t", "/b:/t/"]}, "mount target refused.*once"),
    ("a relative source", {"mounts": ["a:/t"]}, "mount source refused.*absolute"),
    ("a source that climbs", {"mounts": ["/a/..:/t"]}, "mount source refused"),
    ("a target that climbs", {"mounts": ["/a:/t/../proc"]}, "mount target refused"),
    ("no target", {"mounts": ["/a"]}, "mount refused.*SRC:DST"),
    ("an unknown mode", {"mounts": ["/a:/t:rx"]}, "mount refused.*SRC:DST"),
    ("ro and rw", {"mounts": [{"source": "/a", "target": "/t", "options": ["ro", "rw"]}]}, "mount options refused"),
    (
        "rw but readonly",
        {"mounts": [{"source": "/a", "target": "/t", "options": ["rw"], "readonly": True}]},
        "readonly",
    ),
    ("an unknown key", {"mounts": [{"source": "/a", "target": "/t", "mode": 1}]}, "mount refused.*mode"),
    ("an unknown type", {"mounts": [{"source": "/a", "target": "/t", "type": "erofs"}]}, "mount type refused"),
    ("a mount that is none", {"mounts": [7]}, "mount refused"),
]


@pytest.mark.parametrize(("asked", "words"), [row[1:] for row in BUILD_REFUSED], ids=[row[0] for row in BUILD_REFUSED])
def test_build_refuses_what_cannot_be_passed_on(asked: dict[str, Any], words: str) -> None:
    """Each request that no guest can be given is a BadArgument that names the field and what it should be."""
    with pytest.raises(BadArgument, match=words) as caught:
        OciBundle.build(**{"args": ["true"], **asked})
    assert caught.value.step == "Resolve"
    assert caught.value.expected


@pytest.mark.parametrize(
    ("mount", "readonly"),
    [
        ("/a:/t", True),
        ("/a:/t:ro", True),
        ("/a:/t:rw", False),
        ({"source": "/a", "destination": "/t"}, True),
        ({"source": "/a", "destination": "/t", "type": "bind", "options": ["rbind", "rw"]}, False),
        ({"source": "/a", "destination": "/t", "options": ["bind", "ro", "nosuid"]}, True),
        ({"source": "/a", "target": "/t", "readonly": False}, False),
        (Mount(source=Path("/a"), target="/t"), True),
    ],
)
def test_every_way_to_name_a_bind(mount: Any, readonly: bool) -> None:
    """Command line, OCI object and dataclass mean the same mount, and writable only where they say so."""
    (bind,) = OciBundle.build(["true"], rootfs="/r", mounts=[mount]).binds()
    assert (bind.source, bind.readonly, bind.recursive) == (b"/a", readonly, True)


@pytest.mark.parametrize("mount", ["tmpfs:/t", {"type": "tmpfs", "target": "/t", "options": ["mode=700"]}])
def test_a_tmpfs_has_no_host_path(mount: Any) -> None:
    """Scratch space is writable and nothing to rebind."""
    bundle = OciBundle.build(["true"], rootfs="/r", mounts=[mount])
    assert bundle.binds() == ()
    assert "ro" not in bundle.config["mounts"][-1]["options"]


# ---- load: what is accepted ----


def test_a_sound_bundle_loads(bundle: Path) -> None:
    """What was written is what is held, with the rootfs and the binds as absolute host paths."""
    loaded = OciBundle.load(bundle)
    assert loaded.config == sound()
    assert loaded.bundle_path == bundle
    assert loaded.rootfs == os.fsencode(bundle / "rootfs")
    status = bundle.stat()
    assert loaded.identity == (status.st_dev, status.st_ino)


def test_a_relative_source_belongs_to_the_bundle(base: Path) -> None:
    """A bind source without a leading slash lies below the bundle (OCI runtime-spec, Mounts)."""
    change: Change = lambda c: c["mounts"][4].update(source="data", options=["bind"])  # noqa: E731
    directory = write(base / "bundle", sound(change))
    (bind,) = OciBundle.load(directory).binds()
    assert (bind.source, bind.readonly, bind.recursive) == (os.fsencode(directory / "data"), False, False)
    with pytest.raises(BadBundle, match=r"mounts\[4\].source refused.*no bundle"):
        OciBundle(None, sound(change))


@pytest.mark.parametrize("name", [b"b\xff\xfe", b"new\nline", b"sp ace"])
def test_a_bundle_path_need_not_be_text(base: Path, name: bytes) -> None:
    """A directory whose name is not UTF-8, or not printable, is a directory like any other."""
    directory = write(Path(os.fsdecode(os.fsencode(base) + b"/" + name)), sound())
    assert OciBundle.load(os.fsencode(directory)).rootfs == os.fsencode(directory) + b"/rootfs"


def test_a_link_to_the_directory_is_resolved_once(bundle: Path, base: Path) -> None:
    """The bundle's path is the directory itself, so that a link swapped later changes nothing."""
    (base / "link").symlink_to(bundle)
    assert OciBundle.load(base / "link").bundle_path == bundle


def test_a_relative_path_and_one_with_dots(bundle: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`..` is followed as the kernel does, also behind a link."""
    monkeypatch.chdir(bundle)
    (bundle / "sub").mkdir()
    (base / "link").symlink_to(bundle / "sub")
    assert OciBundle.load(".").bundle_path == bundle
    assert OciBundle.load("../link/..").bundle_path == bundle


def test_null_means_absent(base: Path) -> None:
    """Optional fields may be null, as Docker writes them and as Go reads them."""
    absent: Change = lambda c: c.update(hooks=None, annotations=None, linux=None, mounts=None, hostname=None)  # noqa: E731
    assert OciBundle.load(write(base / "bundle", sound(absent))).binds() == ()


def test_what_runsc_itself_generates_loads(base: Path, release: Release) -> None:
    """The document that `runsc spec` writes passes as it is."""
    directory = base / "bundle"
    directory.mkdir(mode=0o755)
    subprocess.run([release.path, "spec"], cwd=directory, check=True, capture_output=True)
    (directory / "config.json").chmod(0o644)
    assert OciBundle.load(directory).config["process"]["args"]


# ---- load: the directory and the file ----


def refused(path: Path | bytes | str, words: str, **options: Any) -> BadBundle:
    """The BadBundle, matching `words`, that `path` gives: at once, and with every descriptor closed."""
    before, start = descriptors(), time.monotonic()
    with pytest.raises(BadBundle, match=words) as caught:
        OciBundle.load(path, **options)
    assert time.monotonic() - start < 1
    assert descriptors() == before
    assert caught.value.expected
    assert caught.value.path
    return caught.value


def test_a_directory_that_is_exchanged_while_it_is_opened(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name has to lead to what was opened: later steps go by the name."""
    realpath = os.path.realpath

    def exchanged(path: str, **how: bool) -> str:
        if bundle.exists() and not bundle.with_name("moved").exists():
            bundle.rename(bundle.with_name("moved"))
            write(bundle, sound())
        return realpath(path, **how)

    monkeypatch.setattr(os.path, "realpath", exchanged)
    assert refused(bundle, "another directory").observed == "another directory"


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_bundle_that_others_can_write_is_refused(bundle: Path, mode: int, name: str) -> None:
    """Group or other write on directory or file is refused, with owner, mode and the cure; sticky is no excuse."""
    (bundle / name).chmod(mode)
    error = refused(bundle, "others can change")
    assert error.observed == f"owner uid 0 mode {mode:04o}"
    assert "copy it to" in error.hint
    assert error.path == os.fsencode(bundle / name)


@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_foreign_owner_is_refused(bundle: Path, name: str) -> None:
    """A directory or file of another user is refused, unless that user was named."""
    os.chown(bundle / name, NOBODY, NOBODY)
    error = refused(bundle, "others can change")
    assert "owner uid 65534 mode 0" in str(error.observed)
    assert "owner uid 0" in str(error.expected)
    assert OciBundle.load(bundle, owners=[0, NOBODY]).config == sound()


@pytest.fixture
def fifo(bundle: Path) -> Iterator[Path]:
    """A bundle whose config.json is a FIFO that nobody writes to."""
    (bundle / "config.json").unlink()
    os.mkfifo(bundle / "config.json")
    yield bundle
    (bundle / "config.json").unlink()


def test_a_fifo_answers_at_once(fifo: Path) -> None:
    """A FIFO in place of config.json cannot hang the launcher."""
    refused(fifo, "file type p.*a regular file")


def test_a_link_to_a_sound_file_is_refused(bundle: Path, base: Path) -> None:
    """config.json may not be a symbolic link, wherever it leads."""
    (bundle / "config.json").rename(base / "elsewhere.json")
    (bundle / "config.json").symlink_to(base / "elsewhere.json")
    error = refused(bundle, "a symbolic link")
    assert error.errno == errno.ELOOP


def test_other_things_in_its_place(bundle: Path) -> None:
    """A directory, a device and nothing at all are refused by name."""
    config = bundle / "config.json"
    config.unlink()
    assert refused(bundle, "No such file").errno == errno.ENOENT
    config.mkdir()
    refused(bundle, "file type d.*a regular file")
    config.rmdir()
    os.mknod(config, 0o20600, os.makedev(1, 5))  # /dev/zero: endless, if it were read
    refused(bundle, "file type c.*a regular file")


def test_places_that_are_no_bundle(bundle: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing directory, a file, a loop of links, NUL and a deleted working directory are refused."""
    (base / "loop").symlink_to("loop")
    refused(base / "none", "No such file")
    refused(bundle / "config.json", "Not a directory")
    refused(base / "loop", "a symbolic link")
    refused(b"/\0", "a path without NUL")
    with pytest.raises(BadBundle, match="the file system can spell"):
        OciBundle.load("/\ud800")
    (base / "gone").mkdir()
    monkeypatch.chdir(base / "gone")
    (base / "gone").rmdir()
    refused("bundle", "working directory is gone")


def test_a_failing_system_call_is_told_as_it_is(bundle: Path) -> None:
    """With no descriptor left for the file, the refusal carries the kernel's answer, and a retry succeeds."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/", os.O_RDONLY)
    os.close(lowest)
    for room in (0, 1):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + room, limits[1]))
        try:
            with pytest.raises(BadBundle, match="Too many open files") as caught:
                OciBundle.load(bundle)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert caught.value.errno == errno.EMFILE
    assert OciBundle.load(bundle).config == sound()


@pytest.mark.parametrize("size", [2 << 30, MAX_CONFIG + 1])
def test_a_vast_file_costs_nothing(bundle: Path, size: int) -> None:
    """A sparse file of 2 GB is refused without being read."""
    os.truncate(bundle / "config.json", size)
    tracemalloc.start()
    refused(bundle, f"{size} bytes.*at most 1048576 bytes")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "Expecting value"),
        (b"{", "refused.*JSON"),
        (b"#!/bin/sh\n", "Expecting value"),
        (b"{}{}", "Extra data"),
        (b'{"a": "\xff"}', "UTF-8"),
        ("{}".encode("utf-16"), "UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a": NaN}', "no NaN"),
        (b'{"a": -Infinity}', "no NaN"),
        (b'{"a": 1e999}', "no NaN"),
        (b'{"a": ' + b"9" * 5000 + b"}", "refused"),
        (b'{"hooks": {}, "hooks": {}}', "key 'hooks' twice"),
        (b'{"process": {"args": [], "\\u0061rgs": []}}', "key 'args' twice"),
        (b"{" + b",".join(b'"%d":0' % i for i in range(90000)) + b',"7":0}', "key '7' twice"),
        (b"[" * 100_000, "refused"),
        (b'{"a":' * 100_000, "refused"),
        (b"[" * 70 + b"]" * 70, "nesting"),
        (b'{"a": "\\udc80"}', "lone surrogate"),
        (b"[]", "an object"),
        (b"null", "an object"),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_a_document_that_is_not_plain_json_is_refused(bundle: Path, raw: bytes, words: str) -> None:
    """Whatever Python and Go could read differently, or not at all, is refused, quickly."""
    (bundle / "config.json").write_bytes(raw)
    assert refused(bundle, words).path == os.fsencode(bundle / "config.json")


# ---- check: the document ----


def put(where: str, value: object) -> Change:
    """A change that puts `value` at the dotted path `where`; numbers index lists."""

    def change(config: dict[str, Any]) -> None:
        *path, last = [int(key) if key.isdigit() else key for key in where.split(".")]
        node: Any = config
        for key in path:
            node = node[key]
        node[last] = value

    return change


LIMIT = {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}
WRONG: list[tuple[str, object, str]] = [
    ("ociVersion", None, "ociVersion refused.*1.x.y"),
    ("ociVersion", "2.0.0", "ociVersion refused"),
    ("ociVersion", "1.0.2\n", "ociVersion refused"),
    ("process", None, "process refused.*nothing.*an object"),
    ("process.args", [], "process.args refused"),
    ("process.args", "true", "process.args refused.*a list"),
    ("process.args", [["true"]], r"process.args\[0\] refused"),
    ("process.args", ["a\0"], r"process.args\[0\] refused.*NUL"),
    ("process.env", ["A"], r"process.env\[0\] refused.*NAME=VALUE"),
    ("process.env", ["=A"], r"process.env\[0\] refused.*NAME=VALUE"),
    ("process.env", {"A": "1"}, "process.env refused.*a list"),
    ("process.cwd", "", "process.cwd refused"),
    ("process.cwd", None, "process.cwd refused"),
    ("process.terminal", 1, "process.terminal refused.*true or false"),
    ("process.user", [], "process.user refused"),
    ("process.user.uid", "0", "process.user.uid refused"),
    ("process.user.uid", False, "process.user.uid refused"),
    ("process.user.gid", 1.0, "process.user.gid refused"),
    ("process.user.gid", -1, "process.user.gid refused"),
    ("process.user.additionalGids", [2**32 - 1], r"additionalGids\[0\] refused"),
    ("process.user.umask", 0o1000, "umask refused.*511"),
    ("process.user.umask", False, "umask refused"),
    ("process.oomScoreAdj", -1001, "oomScoreAdj refused"),
    ("process.capabilities.effective", "CAP_SYS_ADMIN", "capabilities.effective refused"),
    ("process.rlimits", [LIMIT, LIMIT], r"rlimits\[1\].type refused.*once"),
    ("process.rlimits", [{**LIMIT, "type": "RLIMIT_FOO"}], r"rlimits\[0\].type refused"),
    ("process.rlimits", [{**LIMIT, "soft": 2}], r"rlimits\[0\].soft refused"),
    ("process.rlimits", [{**LIMIT, "hard": 2**64}], r"rlimits\[0\].hard refused"),
    ("process.rlimits", [{"type": "RLIMIT_CPU"}], r"rlimits\[0\].hard refused.*nothing"),
    ("root", None, "root refused"),
    ("root.path", "", "root.path refused"),
    ("root.path", "../../etc", "root.path refused.*without .."),
    ("root.path", "/srv/..", "root.path refused"),
    ("root.path", "a\0b", "root.path refused"),
    ("root.readonly", "false", "root.readonly refused"),
    ("hostname", "a\0b", "hostname refused"),
    ("hostname", 0, "hostname refused"),
    ("mounts", {}, "mounts refused.*a list"),
    ("mounts.0", "proc", r"mounts\[0\] refused.*an object"),
    ("mounts.0.destination", "proc", r"mounts\[0\].destination refused.*absolute"),
    ("mounts.0.destination", "/a/../..", r"mounts\[0\].destination refused"),
    ("mounts.0.type", "erofs", r"mounts\[0\].type refused.*tmpfs"),
    ("mounts.0.type", 0, r"mounts\[0\].type refused"),
    ("mounts.0.options", "ro", r"mounts\[0\].options refused"),
    ("mounts.4.source", None, r"mounts\[4\].source refused"),
    ("mounts.4.source", "../../etc", r"mounts\[4\].source refused"),
    ("mounts.4.options", ["ro", "rw"], r"mounts\[4\].options refused.*one of"),
    ("mounts.4", {"destination": "/d", "type": "none", "options": ["rbind"]}, r"mounts\[4\].source refused"),
    ("linux", [], "linux refused"),
    ("linux.namespaces", [{"type": "pidd"}], r"namespaces\[0\].type refused.*cgroup, ipc"),
    ("linux.namespaces", [{"type": "pid"}, {"type": "pid"}], r"namespaces\[1\].type refused.*once"),
    ("linux.namespaces", [{"type": "network", "path": "net"}], r"namespaces\[0\].path refused"),
    ("linux.devices", {}, "linux.devices refused.*a list"),
    ("linux.devices", [{"path": "null", "type": "c"}], r"devices\[0\].path refused"),
    ("linux.devices", [{"path": "/dev/null", "type": "x"}], r"devices\[0\].type refused.*c, b, u or p"),
    ("linux.devices", [{"path": "/dev/null", "type": "c", "major": "1"}], r"devices\[0\].major refused"),
    ("linux.seccomp", [], "linux.seccomp refused"),
    ("linux.seccomp", {"syscalls": []}, "seccomp.defaultAction refused"),
    ("linux.seccomp", {"defaultAction": "A", "syscalls": [{}]}, r"syscalls\[0\].action refused"),
    ("linux.resources", [], "linux.resources refused"),
    ("linux.resources", {"memory": {"limit": "1g"}}, "memory.limit refused.*an integer"),
    ("linux.resources", {"memory": {"limit": 4096}}, "memory.limit refused.*4096.*1.04858e"),
    ("linux.resources", {"cpu": {"quota": 1.5}}, "cpu.quota refused"),
    ("linux.resources", {"cpu": {"quota": 1, "period": 1_000_000}}, "cpu.quota refused.*0.01"),
    ("linux.resources", {"cpu": {"period": -1}}, "cpu.period refused"),
    ("linux.resources", {"pids": {"limit": True}}, "pids.limit refused"),
    ("linux.resources", {"unified": {"memory.max": 4096}}, "unified.memory.max refused.*a string"),
    ("linux.resources", {"unified": {"memory.max": "4k"}}, "unified.memory.max refused.*a number or max"),
    ("linux.resources", {"unified": {"pids.max": "1 2"}}, "unified.pids.max refused"),
    ("linux.resources", {"unified": {"cpu.max": "1000 max"}}, "unified.cpu.max refused.*a period"),
    ("linux.resources", {"unified": {"cpu.max": "1000 0"}}, "unified.cpu.max refused.*a period"),
    ("linux.resources", {"unified": {"cpu.max": ""}}, "unified.cpu.max refused"),
    ("annotations", [], "annotations refused"),
    ("annotations", {"a": 1}, "annotations.a refused"),
    ("hooks", [], "hooks refused"),
]


@pytest.mark.parametrize(("where", "value", "words"), WRONG, ids=[f"{row[0]}={str(row[1])[:30]!a}" for row in WRONG])
def test_a_field_of_the_wrong_kind_is_refused(bundle: Path, where: str, value: object, words: str) -> None:
    """Each field that the launch depends on is refused by its name when it cannot mean what it should."""
    error = refused(write(bundle, sound(put(where, value))), words)
    assert not isinstance(error, Refused)
    assert error.step == "Prepare"


@pytest.mark.parametrize(
    ("where", "key"),
    [
        ("", "Hooks"),
        ("", "hoo\u212as"),
        ("", "Root"),
        ("root", "PATH"),
        ("process", "arg\u017f"),
        ("linux", "NameSpaces"),
        ("linux", "Devices"),
        ("linux", "secComp"),
        ("mounts.0", "UIDMappings"),
    ],
)
def test_a_key_that_only_go_would_know_is_refused(bundle: Path, where: str, key: str) -> None:
    """Go takes keys in any case: one that is judged under another spelling would not be judged at all."""
    config = sound(put(f"{where}.{key}" if where else key, {"prestart": [{"path": "/bin/evil"}]}))
    refused(write(bundle, config), f"key {key} refused")


def test_hooks_are_refused_unless_allowed(bundle: Path) -> None:
    """A hook runs on the host: only a caller who says so gets it; an empty list is harmless."""
    for kind in ("prestart", "createRuntime", "poststart", "poststop"):
        write(bundle, sound(put("hooks", {kind: [{"path": "/bin/evil"}]})))
        error = refused(bundle, f"hooks.{kind} refused.*allow_hooks=True")
        assert isinstance(error, Refused)
        assert OciBundle.load(bundle, allow_hooks=True).hooks == [(f"{kind}[0]", {"path": "/bin/evil"})]
    assert OciBundle.load(write(bundle, sound(put("hooks", {"prestart": [], "createContainer": None}))))


@pytest.mark.parametrize("kind", ["createContainer", "startContainer", "someday"])
def test_hooks_that_nobody_could_run_are_refused_in_any_case(bundle: Path, kind: str) -> None:
    """What belongs in the container, and what OCI does not have, is refused by name, allowed or not."""
    write(bundle, sound(put("hooks", {kind: [{"path": "/bin/evil"}]})))
    for allowed in (False, True):
        assert isinstance(refused(bundle, f"hooks.{kind} refused.*prestart", allow_hooks=allowed), Refused)


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ({"path": "evil"}, "path refused"),
        ({"path": "/bin/true", "args": "x"}, "args refused"),
        ({"path": "/bin/true", "env": ["A"]}, "env refused.*NAME=VALUE"),
        ({"path": "/bin/true", "timeout": 0}, "timeout refused.*1 to 86400"),
        ({"path": "/bin/true", "timeout": True}, "timeout refused"),
    ],
)
def test_a_hook_that_is_none_is_refused(bundle: Path, hook: dict[str, Any], words: str) -> None:
    """Each part of a hook has to be what OCI says."""
    write(bundle, sound(put("hooks", {"prestart": [hook]})))
    refused(bundle, rf"hooks.prestart\[0\].{words}", allow_hooks=True)


@pytest.mark.parametrize(
    "name",
    [
        "dev.gvisor.flag.platform",
        "dev.gvisor.flag.",
        "dev.gvisor.bundle.experimental",
        "dev.gvisor.spec.rootfs.source",
        "dev.gvisor.internal.nvproxy",
    ],
)
def test_annotations_that_reach_the_host_are_refused_unless_allowed(bundle: Path, name: str) -> None:
    """An annotation that sets runsc's flags, or opens host files and devices, needs the caller's word."""
    write(bundle, sound(put("annotations", {name: "true"})))
    assert isinstance(refused(bundle, f"annotation {name} refused.*allow_flag_annotations=True"), Refused)
    assert OciBundle.load(bundle, allow_flag_annotations=True)


def test_other_annotations_pass(bundle: Path) -> None:
    """Mount hints and other tools' annotations are left alone, whatever their case."""
    notes = {"dev.gvisor.spec.mount.a.type": "tmpfs", "io.kubernetes.cri.container-type": "sandbox", "PATH": "x"}
    assert OciBundle.load(write(bundle, sound(put("annotations", notes)))).config["annotations"] == notes


# ---- fuzz ----

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from([row[0] for row in WRONG])


def only_a_bundle_or_a_refusal(directory: Path) -> None:
    try:
        loaded = OciBundle.load(directory)
    except BadBundle as error:
        assert str(error).isprintable()
    else:
        check_config(loaded.config)
        places = {bind.index: f"/p/{bind.index}" for bind in loaded.binds()}
        json.loads(loaded.private_config("/r", places).decode("utf-8"))


@given(raw=st.binary(max_size=200))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_bundle_or_a_refusal(bundle: Path, raw: bytes) -> None:
    """No content of config.json raises anything but BadBundle."""
    only_a_bundle_or_a_refusal(write(bundle, None, raw=raw))


@given(where=fields, value=json_values)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_anywhere_gives_a_bundle_or_a_refusal(bundle: Path, where: str, value: object) -> None:
    """Any JSON value, alone or in place of any judged field, is held as a valid bundle or refused as BadBundle."""
    only_a_bundle_or_a_refusal(write(bundle, value))
    only_a_bundle_or_a_refusal(write(bundle, sound(put(where, value))))


@given(cut=st.integers(0, 600), flip=st.integers(0, 255))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_gives_a_bundle_or_a_refusal(bundle: Path, cut: int, flip: int) -> None:
    """A sound document that was cut short, or has one wrong byte, is a bundle or refused."""
    raw = bytearray(json.dumps(sound()).encode())
    only_a_bundle_or_a_refusal(write(bundle, None, raw=bytes(raw[:cut])))
    raw[cut % len(raw)] = flip
    only_a_bundle_or_a_refusal(write(bundle, None, raw=bytes(raw)))
