"""Every field of an OCI configuration has a row, the guide shows them all, and what nobody keeps is found by name."""

import re
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.runtime import OciBundle, fields
from nucleus_gvisor.runtime.fields import FIELDS, Kept
from tests.support.places import ROOT

STRUCTS = Path("/usr/share/gocode/src/github.com/opencontainers/runtime-spec/specs-go/config.go")
GUIDE = ROOT / "runtime/BUNDLE.md"
LATER = {
    "process.scheduler", "process.ioPriority", "process.execCPUAffinity", "linux.timeOffsets", "linux.netDevices",
    "linux.memoryPolicy", "freebsd",
}  # fmt: skip
"""Fields of OCI 1.1 to 1.3, which the packaged structs are older than."""


def structs() -> dict[str, list[tuple[str, str]]]:
    """Go struct -> (JSON name, Go type) of its fields; an embedded struct's name is ""."""
    if not STRUCTS.exists():
        pytest.fail(f"{STRUCTS} is missing: apt-get install golang-github-opencontainers-specs-dev")
    found = {}
    for name, body in re.findall(r"(?ms)^type (\w+) struct \{\n(.*?)^\}", STRUCTS.read_text()):
        rows = re.findall(r"(?m)^\t\w+\s+(\S+)\s+`json:\"(\w+)", body)
        found[name] = [(json, kind) for kind, json in rows] + [("", embedded) for embedded in
                       re.findall(r"(?m)^\t(\w+)$", body)]  # fmt: skip
    return found


def leaves(kind: str = "Spec", where: str = "") -> list[str]:
    """Every field below a struct, as FIELDS names them."""
    known = structs()
    name = kind.lstrip("[]*")
    if name not in known or (where and where in FIELDS):
        return [where]
    mark = "[]" if kind.startswith("[]") and where else ""
    found = []
    for json, inner in known[name]:
        below = f"{where}{mark}.{json}".lstrip(".") if json else where
        found += leaves(inner, below)
    return found


def test_every_field_of_the_specification_has_a_row() -> None:
    """Each field of the packaged Go structs is a row, or lies below one that tells of all of it."""
    every = leaves()
    assert len(every) > 80 and "linux.seccomp" in every and "process.capabilities.ambient" in every
    plain = {name.replace("[]", "") for name in FIELDS}
    missing = [
        field
        for field in every
        if not any(field.replace("[]", "") == row or field.replace("[]", "").startswith(f"{row}.") for row in plain)
    ]
    assert missing == []


def test_no_row_is_of_a_field_that_does_not_exist() -> None:
    """A row is a field of the structs, or one of those that came later."""
    known, every = structs(), set()

    def walk(kind: str, where: str) -> None:
        name = kind.lstrip("[]*")
        every.add(where.replace("[]", ""))
        for json, inner in known.get(name, ()):
            walk(inner, f"{where}.{json}".lstrip(".") if json else where)

    walk("Spec", "")
    assert {name.replace("[]", "") for name in FIELDS} - every == LATER


def test_the_guide_has_the_table() -> None:
    """BUNDLE.md ends with the rows as they are in the code."""
    assert GUIDE.read_text().endswith(f"## Every field\n\n{fields.table()}")


def test_the_guide_ships() -> None:
    """It is beside SANDBOX.md, which the package's data has by its suffix."""
    assert GUIDE.parent == (ROOT / "runtime/SANDBOX.md").parent


def document(change: dict[str, Any]) -> dict[str, Any]:
    """A configuration that asks for nothing special, with values at dotted places."""
    config = OciBundle.build(["true"], rootfs="/srv", mounts=["/data:/data"]).config
    for where, value in change.items():
        node: Any = config
        *way, last = where.split(".")
        for key in way:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        node[last] = value
    return config


SECCOMP = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"}]}
LOST: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"process.user.umask": 0o022}, []),
    ({"process.user.umask": 0o027}, ["process.user.umask"]),
    ({"process.consoleSize": {"height": 24, "width": 80}}, []),
    ({"process.consoleSize": {"height": 24, "width": 80}, "process.terminal": True}, ["process.consoleSize"]),
    ({"process.consoleSize": {"height": 0, "width": 0}, "process.terminal": True}, []),
    ({"process.scheduler": {"policy": "SCHED_FIFO"}}, ["process.scheduler"]),
    ({"process.apparmorProfile": "docker-default", "process.selinuxLabel": "system_u:x:y:s0"}, []),
    ({"domainname": "example"}, ["domainname"]),
    ({"mounts.0.options": ["ro", "noexec"]}, []),
    ({"mounts.0.options": ["rro", "noexec"]}, ["mounts[0].options"]),
    ({"mounts.1.uidMappings": [{"containerID": 0, "hostID": 7, "size": 1}]}, ["mounts[1].uidMappings"]),
    ({"linux.devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}]}, []),
    ({"linux.devices": [{"path": "/dev/null", "type": "c", "major": 8, "minor": 3}]}, ["linux.devices[0]"]),
    ({"linux.devices": [{"path": "/dev/nvidiactl", "type": "c", "major": 195, "minor": 255}]}, ["linux.devices[0]"]),
    ({"linux.sysctl": {"net.core.somaxconn": "1"}}, ["linux.sysctl"]),
    ({"linux.maskedPaths": ["/proc/kcore", "/sys/firmware"]}, []),
    ({"linux.maskedPaths": ["/proc/kcore", "/etc/shadow"]}, ["linux.maskedPaths"]),
    ({"linux.readonlyPaths": ["/procession"]}, ["linux.readonlyPaths"]),
    ({"linux.rootfsPropagation": "rslave"}, []),
    ({"linux.rootfsPropagation": "shared"}, ["linux.rootfsPropagation"]),
    ({"linux.personality": {"domain": "LINUX"}}, []),
    ({"linux.personality": {"domain": "LINUX32"}}, ["linux.personality"]),
    ({"linux.namespaces": [{"type": "network", "path": "/run/netns/x"}]}, []),
    ({"linux.namespaces": [{"type": "ipc", "path": "/proc/1/ns/ipc"}]}, ["linux.namespaces[0].path"]),
    ({"linux.seccomp": SECCOMP}, []),
    ({"linux.seccomp": {**SECCOMP, "defaultAction": "SCMP_ACT_LOG"}}, ["linux.seccomp"]),
    ({"linux.seccomp": {**SECCOMP, "listenerPath": "/run/x"}}, ["linux.seccomp"]),
    ({"linux.seccomp": {**SECCOMP, "listenerMetadata": "x"}}, ["linux.seccomp"]),
    ({"linux.seccomp": {**SECCOMP, "flags": ["SECCOMP_FILTER_FLAG_TSYNC"]}}, []),
    ({"linux.seccomp": {**SECCOMP, "flags": ["SECCOMP_FILTER_FLAG_LOG"]}}, ["linux.seccomp"]),
    ({"linux.seccomp": {**SECCOMP, "defaultErrnoRet": 1}}, []),
    ({"linux.seccomp": {**SECCOMP, "defaultErrnoRet": 38}}, ["linux.seccomp.defaultErrnoRet"]),
    ({"linux.seccomp": {**SECCOMP, "syscalls": [{"names": [], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}},
     ["linux.seccomp.syscalls[0].errnoRet"]),
    ({"linux.seccomp": {**SECCOMP, "syscalls": [{"names": [], "action": "SCMP_ACT_NOTIFY", "errnoRet": 38}]}},
     ["linux.seccomp"]),
    ({"linux.resources": {"devices": [{"allow": False, "access": "rwm"}]}}, []),
    ({"linux.resources": {"memory": {"limit": 1 << 30, "swap": 1 << 30, "disableOOMKiller": False}}}, []),
    ({"linux.resources": {"memory": {"reservation": 1 << 30}}}, ["linux.resources.memory.reservation"]),
    ({"linux.resources": {"memory": {"reservation": -1, "kernel": -1}}}, []),
    ({"linux.resources": {"memory": {"swappiness": 10}}}, ["linux.resources.memory.swappiness"]),
    ({"linux.resources": {"cpu": {"shares": 1024}}}, []),
    ({"linux.resources": {"cpu": {"shares": 2, "cpus": "0-3"}}},
     ["linux.resources.cpu.shares", "linux.resources.cpu.cpus"]),
    ({"linux.resources": {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}}, []),
    ({"linux.resources": {"blockIO": {"weight": 10}}}, ["linux.resources.blockIO"]),
    ({"linux.resources": {"blockIO": {"weight": 0, "weightDevice": []}}}, []),
    ({"linux.resources": {"unified": {"memory.max": "max"}}}, []),
    ({"linux.resources": {"unified": {"io.weight": "10"}}}, ["linux.resources.unified"]),
    ({"linux.intelRdt": {"closID": "x"}}, ["linux.intelRdt"]),
    ({"windows": {"servicing": True}}, ["windows"]),
    ({"linux.someday": {"x": 1}}, []),
]  # fmt: skip


@pytest.mark.parametrize(("change", "names"), LOST, ids=[str(change)[:60] for change, _ in LOST])
def test_what_nobody_keeps_is_found_by_name(change: dict[str, Any], names: list[str]) -> None:
    """What a field asks for is found when nobody keeps it, and not when somebody does or it asks for nothing."""
    config = document(change)
    found = fields.lost(config, locked=True)
    assert list(found) == names
    fields.without(config, list(found))
    assert fields.lost(config, locked=True) == {}
    OciBundle("/b", config)


def test_what_only_the_lock_cannot_keep() -> None:
    """Ids of the bundle's are gVisor's to map, but not in a namespace that has others."""
    config = document({"linux.uidMappings": [{"containerID": 0, "hostID": 0, "size": 10}]})
    assert list(fields.lost(config, locked=True)) == ["linux.uidMappings"]
    assert fields.lost(config, locked=False) == {}


def test_of_several_each_is_taken_out_at_its_place() -> None:
    """The items of a list are told apart, and of mount options those that are kept stay."""
    devices = [{"path": "/dev/a", "type": "c"}, {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
               {"path": "/dev/b", "type": "c"}]  # fmt: skip
    config = document({"linux.devices": devices, "mounts.0.options": ["ro", "rro", "noexec"]})
    names = list(fields.lost(config, locked=True))
    assert names == ["mounts[0].options", "linux.devices[0]", "linux.devices[2]"]
    fields.without(config, names)
    assert [device["path"] for device in config["linux"]["devices"]] == ["/dev/null"]
    assert config["mounts"][0]["options"] == ["ro", "noexec"]


def test_refusals_say_what_is_kept() -> None:
    """The words for a field come from its row, whatever item of a list it is."""
    assert fields.told("linux.devices[3]").startswith("/dev/null, ")
    assert fields.told("linux.intelRdt") == "nothing there: nobody sets it"
    assert fields.told("linux.resources") == "what the launch can keep"
    assert {row.kept for row in FIELDS.values()} == set(Kept)


LIMITS: list[tuple[dict[str, Any], dict[str, float]]] = [
    ({}, {}),
    ({"memory": {"limit": -1, "swap": 0}, "cpu": {"quota": -1, "period": 0}, "pids": {"limit": 0}}, {}),
    ({"memory": {"limit": 1 << 30, "swap": 1 << 29}}, {"memory": 1 << 29}),
    ({"memory": {"limit": 1 << 30, "swap": -1}}, {"memory": 1 << 30}),
    ({"cpu": {"quota": 50_000}}, {"cpus": 0.5}),
    ({"cpu": {"quota": 30_000, "period": 10_000}, "pids": {"limit": 7}}, {"cpus": 3, "pids": 7}),
    ({"unified": {"memory.max": "1048576", "pids.max": "max", "memory.swap.max": "0"}}, {"memory": 1 << 20}),
    ({"unified": {"cpu.max": "max 100000"}, "cpu": {"period": 5}}, {}),
    ({"unified": {"cpu.max": "150000"}}, {"cpus": 1.5}),
    ({"unified": {"cpu.max": "1000 2000", "pids.max": "9"}, "pids": {"limit": 7}}, {"cpus": 0.5, "pids": 7}),
]


@pytest.mark.parametrize(("resources", "limits"), LIMITS)
def test_limits_are_read_as_cgroups_mean_them(resources: dict[str, Any], limits: dict[str, float]) -> None:
    """-1, 0 and max are none; of two for the same the lower counts; a period has the kernel's default."""
    assert OciBundle("/b", document({"linux.resources": resources})).limits == limits


def test_runsc_is_told_nothing_that_the_launch_keeps() -> None:
    """Hooks, resources, devices and labels are not in the private configuration; what was left out is not either."""
    config = document({
        "hooks": {"prestart": [{"path": "/bin/true"}]}, "linux.resources": {"pids": {"limit": 7}},
        "linux.cgroupsPath": "/x", "linux.devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}],
        "process.selinuxLabel": "x", "linux.sysctl": {"kernel.shmmax": "1"}, "linux.seccomp": SECCOMP,
    })  # fmt: skip
    bundle = OciBundle("/b", config, allow_hooks=True)
    private = bundle.private_config(
        "/r", {bind.index: "/p" for bind in bundle.binds()}, without=list(bundle.lost(locked=True))
    )
    text = private.decode()
    assert not any(word in text for word in ("hooks", "resources", "cgroupsPath", "devices", "selinuxLabel", "sysctl"))
    assert "getcwd" in text
    assert bundle.config["hooks"] and bundle.hooks == [("prestart[0]", {"path": "/bin/true"})]


@pytest.mark.parametrize(
    "config",
    [
        {"linux.resources.memory.reservation": "-1"},
        {"linux.maskedPaths": [1]},
        {"linux.devices[0]": "/dev/null"},
        {"linux.seccomp": ["SCMP_ACT_ALLOW"]},
        {"linux.resources.unified": ["memory.max"]},
    ],
    ids=lambda config: next(iter(config)),
)
def test_a_value_of_another_kind_is_kept_by_nobody(config: dict[str, Any]) -> None:
    """Whoever writes the bundle chooses what stands there: it is told by its name, and nothing fails over it."""
    ((name, value),) = config.items()
    document: Any = value
    for part in reversed(name.removesuffix("[0]").split(".")):
        document = {part: [document] if name.endswith("[0]") and part == "devices" else document}
    assert fields.lost(document, locked=True) == config


def test_a_text_has_no_fields() -> None:
    """One that contains a field's name neither."""
    assert fields.lost({"linux": "resources", "mounts": ["options"]}, locked=True) == {}
