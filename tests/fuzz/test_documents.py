"""config.json as an attacker writes it: what is accepted means to others what it means to us."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nucleus_gvisor.model.errors import BadBundle
from nucleus_gvisor.runtime.bundle import OciBundle, check_config
from tests.fuzz.budget import budget
from tests.runtime.test_bundle import oci_schema as oci_schema  # the fixture
from tests.runtime.test_bundle import write

RICH: dict[str, Any] = {
    **OciBundle.build(["true", "x"], rootfs="/srv/root", mounts=["/data:/data"], rlimits={"RLIMIT_CPU": (1, 2)}).config,
    "annotations": {"dev.gvisor.spec.mount.a.type": "bind", "other": "x"},
    "hooks": {"prestart": []},
    "domainname": "d",
}
RICH["process"] |= {"user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]}, "oomScoreAdj": 1}
RICH["linux"]["namespaces"].append({"type": "network", "path": "/proc/1/ns/net"})
JUDGED = {
    *("ociVersion", "process", "root", "mounts", "hostname", "domainname", "linux", "hooks", "annotations"),
    *("args", "env", "cwd", "user", "uid", "gid", "umask", "additionalGids", "terminal", "noNewPrivileges"),
    *("oomScoreAdj", "capabilities", "rlimits", "type", "soft", "hard", "path", "readonly", "source", "destination"),
    *("options", "namespaces", "bounding", "effective", "inheritable", "permitted", "ambient", "timeout"),
}
"""Names that decide something, by the OCI runtime-spec."""

Path_ = tuple[str | int, ...]


def nodes(node: Any, here: Path_ = ()) -> Iterator[Path_]:
    """The way to every value in a document."""
    yield here
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from nodes(child, (*here, key))


PLACES = [place for place in nodes(RICH) if place]
texts = st.text(max_size=8) | st.sampled_from(
    ["", "/", "/..", "../x", "a/../b", "\0", "\udc80", "rbind", "ro", "rw", "bind"]
)
leaves = st.none() | st.booleans() | st.integers(-2, 2**64 + 1) | st.floats() | texts
values = st.recursive(leaves, lambda c: st.lists(c, max_size=3) | st.dictionaries(texts, c, max_size=3), max_leaves=6)
cases = st.sampled_from([str.upper, str.title, lambda s: s.replace("k", "\u212a"), lambda s: s.replace("s", "\u017f")])


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """A sound configuration, spoilt in a few places."""
    document = deepcopy(RICH)
    for place in draw(st.lists(st.sampled_from(PLACES), max_size=3)):
        parent: Any = document
        try:
            for key in place[:-1]:
                parent = parent[key]
            old = parent[place[-1]]
        except (LookupError, TypeError):
            continue  # an earlier change took it away
        match draw(st.integers(0, 3)):
            case 0:
                parent[place[-1]] = draw(values)
            case 1:
                del parent[place[-1]]
            case 2 if isinstance(parent, dict):
                parent[draw(cases)(place[-1])] = draw(values | st.just(old))
            case _ if isinstance(old, list):
                old.append(draw(values))
            case _ if isinstance(old, dict):
                old[draw(texts | st.sampled_from(sorted(JUDGED)))] = draw(values)
    return document


def accepted(document: Any) -> OciBundle | None:
    """The bundle, or None for a document that is refused as it should be: typed, on one line."""
    try:
        return OciBundle("/srv/bundle", document)
    except BadBundle as error:
        assert "\n" not in str(error) and len(str(error)) < 4000
        return None


def structs(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects that Go reads into structs of its own: where the case of a key is nothing to it."""
    process = config["process"]
    yield from (config, process, config["root"])
    for name in ("linux", "hooks"):
        yield config.get(name) or {}
    for part in ("user", "capabilities"):
        yield process.get(part) or {}
    yield from process.get("rlimits") or ()
    yield from config.get("mounts") or ()
    yield from (config.get("linux") or {}).get("namespaces") or ()
    for hooks in (config.get("hooks") or {}).values():
        yield from hooks or ()


def folded(name: str) -> str:
    """As encoding/json compares names: ASCII case, and the two letters that fold into ASCII."""
    return name.lower().replace("\u212a", "k").replace("\u017f", "s")


def without_nulls(node: Any) -> Any:
    """null is absent to Go, and a fault to the schema."""
    if isinstance(node, dict):
        return {key: without_nulls(child) for key, child in node.items() if child is not None}
    return [without_nulls(child) for child in node] if isinstance(node, list) else node


@given(document=documents())
@budget(250)
def test_what_is_accepted_stays_what_it_is(document: Any) -> None:
    """Serialised and judged again it is the same; in runsc's copy nothing differs but the private paths."""
    bundle = accepted(document)
    if bundle is None:
        return
    assert bundle.config == json.loads(json.dumps(document))
    again = OciBundle("/srv/bundle", bundle.config)
    assert (again.config, again.binds(), again.rootfs) == (bundle.config, bundle.binds(), bundle.rootfs)
    private = json.loads(
        bundle.private_config("/p/rootfs", {bind.index: f"/p/{bind.index}" for bind in bundle.binds()})
    )
    check_config(private)
    assert private["root"].pop("path") == "/p/rootfs"
    expected = bundle.config
    for name in ("hooks", "linux"):
        assert name not in private or not {"devices", "resources", "cgroupsPath", "prestart"} & set(private[name] or ())
    expected.pop("hooks", None)  # what the launch itself keeps
    expected["process"].pop("selinuxLabel", None)
    if capabilities := expected["process"].get("capabilities"):  # some releases write an empty list to no checkpoint
        expected["process"]["capabilities"] = {name: held for name, held in capabilities.items() if held}
    for name in ("resources", "cgroupsPath", "devices"):
        (expected.get("linux") or {}).pop(name, None)
    del expected["root"]["path"]
    for bind in bundle.binds():
        assert private["mounts"][bind.index].pop("source") == f"/p/{bind.index}"
        del expected["mounts"][bind.index]["source"]
    assert private == expected


@given(document=documents())
@budget(250)
def test_what_is_accepted_does_not_act_on_the_host(document: Any) -> None:
    """No hook in any spelling, no annotation that sets flags; every bind of the host is ours to replace."""
    bundle = accepted(document)
    if bundle is None:
        return
    config = bundle.config
    for struct in structs(config):
        for name in struct:
            assert name in JUDGED or folded(name) not in {folded(known) for known in JUDGED}, name
    assert not any((config.get("hooks") or {}).values())
    for name in config.get("annotations") or {}:
        assert not name.startswith(("dev.gvisor.flag.", "dev.gvisor.bundle.", "dev.gvisor.spec.rootfs.")), name
    replaced = {bind.index for bind in bundle.binds()}
    for index, mount in enumerate(config.get("mounts") or ()):
        binds = mount.get("type") == "bind" or {"bind", "rbind"} & set(mount.get("options") or ())
        assert bool(binds) == (index in replaced)
        assert ".." not in mount["destination"].split("/")


Complaints = Callable[[Any], list[str]]


@pytest.fixture(scope="module")
def complaints(oci_schema: Any) -> Complaints:
    """What the schema of the Open Container Initiative says of a document."""
    return lambda document: [error.message[:500] for error in oci_schema.iter_errors(document)]


@given(document=documents())
@example(document={**RICH, "process": {**RICH["process"], "user": {"additionalGids": [None]}}})
@budget(120)
def test_what_is_accepted_is_valid_for_the_oci_schema(complaints: Complaints, document: Any) -> None:
    """Whatever the judgement covers, the Open Container Initiative's own schema accepts as well."""
    bundle = accepted(document)
    if bundle is not None:
        assert complaints(without_nulls(bundle.config)) == []


edits = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 6), st.binary(max_size=6)), max_size=4)


@given(edits=edits, pretty=st.booleans())
@example(edits=[(0, 0, b"\xef\xbb\xbf")], pretty=False)
@budget(150)
def test_spoilt_bytes_are_refused_or_mean_the_same(
    bundle_directory: Path, edits: list[tuple[int, int, bytes]], pretty: bool
) -> None:
    """A file with bytes changed, lost and added is refused, or is JSON that leaves no reader a choice."""
    raw = json.dumps(RICH, indent=1 if pretty else None).encode()
    for place, lost, added in edits:
        raw = raw[:place] + added + raw[place + lost :]
    write(bundle_directory, None, raw=raw)
    try:
        loaded = OciBundle.load(bundle_directory)
    except BadBundle as error:
        assert "\n" not in str(error)
        return

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    text = raw.decode("utf-8")
    assert not text.startswith("\ufeff")  # which Go does not read
    assert loaded.config == json.loads(text, object_pairs_hook=once)
    assert loaded.config == OciBundle(bundle_directory, loaded.config).config


@pytest.fixture
def bundle_directory(base: Path) -> Path:
    return base / "bundle"
