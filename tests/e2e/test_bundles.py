"""What a bundle asks for is kept, refused by name, or left out and said so: real guests of both releases."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.runtime import OciBundle
from nucleus_gvisor.runtime.fields import DEVICES
from tests.e2e.launching import Caller, guest_output, summary

pytestmark = pytest.mark.real

SECCOMP = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"}]}
HOG = "b = []\nfor _ in range(30): b.append(bytearray(b'x') * (10 << 20))\nprint(len(b))"
CREATE = ("prestart", "createRuntime")


def bundle(caller: Caller, args: list[str], **change: Any) -> Path:
    """A bundle on disk of the host's programs, as another tool would leave it; `linux` is added to."""
    where = caller.mode.base / "a-bundle"
    config = OciBundle.build(args, etc="none").config
    config["linux"] |= change.pop("linux", {})
    config |= change
    for mount in config["mounts"]:
        (where / "rootfs" / mount["destination"][1:]).mkdir(parents=True, exist_ok=True)
    (where / "config.json").write_text(json.dumps(config))
    given(caller, where)
    return where


def given(caller: Caller, path: Path) -> None:
    """Make it the caller's, and nobody else's to write."""
    for each in [path, *path.rglob("*")]:
        if not each.is_symlink():
            os.chown(each, caller.mode.account.pw_uid, caller.mode.account.pw_gid)
            each.chmod(0o755 if each.is_dir() or os.access(each, os.X_OK) else 0o644)


def hook(caller: Caller, name: str, body: str) -> dict[str, Any]:
    """A hook that is a script of the caller's."""
    path = caller.mode.base / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    given(caller, path)
    return {"path": os.fspath(path), "args": [name]}


def test_a_profile_is_enforced_in_the_guest(caller: Caller) -> None:
    """The guest's kernel denies what the profile denies, and the record says who keeps it."""
    program = "import os\nprint(os.getpid() > 0)\ntry: print(os.getcwd())\nexcept OSError as e: print(e.errno)"
    where = bundle(caller, ["python3", "-c", program], linux={"seccomp": SECCOMP})
    done = caller.run("--json", "--bundle", where)
    data = summary(done)
    assert (data["exit"], guest_output(done)) == (0, "True\n1\n"), done.stderr
    assert data["limits"] == {"linux.seccomp": "runsc"}


def test_a_profile_that_no_release_can_keep(first: Caller) -> None:
    """An action that runsc's filter has not is refused by name; best_effort goes on without, and says so."""
    where = bundle(first, ["pwd"], linux={"seccomp": {**SECCOMP, "defaultAction": "SCMP_ACT_LOG"}})
    done = first.run("--json", "--bundle", where)
    error = summary(done)["error"]
    assert (done.returncode, error["error"], error["step"]) == (125, "BadBundle", "Prepare")
    assert error["message"] == "linux.seccomp refused: nobody keeps it here"
    assert "SCMP_ACT_LOG" in error["observed"] and "SCMP_ACT_ERRNO" in error["expected"] and error["hint"]
    done = first.run("--json", "--limits", "best_effort", "--bundle", where)
    data = summary(done)
    assert (data["exit"], guest_output(done), data["limits"]) == (0, "/\n", {"linux.seccomp": "none"})
    lines = [json.loads(line) for line in Path(data["record"]).read_text().splitlines()]
    assert [line["evidence"].get("lost") for line in lines if line["action"] == "Prepare"] == [["linux.seccomp"]]
    assert "--oci-seccomp" not in lines[-1]["evidence"]["argv"]


def test_memory_and_processes_of_the_bundle_are_limits(caller: Caller) -> None:
    """A guest that takes more than its bundle may ends as with the options, whoever launched it."""
    resources = {
        "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "access": "rwm"}],
        "memory": {"limit": 128 << 20, "swap": 128 << 20, "disableOOMKiller": False},
        "pids": {"limit": 5},
    }
    where = bundle(caller, ["python3", "-c", HOG], linux={"resources": resources, "cgroupsPath": "/nobody"})
    done = caller.run("--json", "--bundle", where)
    data = summary(done)
    assert (done.returncode, data["limit"], guest_output(done)) == (137, "memory", ""), done.stderr
    assert set(data["limits"]) == {"memory", "pids"} and "none" not in data["limits"].values()


def test_of_two_limits_the_lower_counts(first: Caller) -> None:
    """The option's and the bundle's; what is plenty ends nothing."""
    where = bundle(first, ["python3", "-c", HOG], linux={"resources": {"memory": {"limit": 1 << 30}}})
    done = first.run("--json", "--bundle", where)
    assert (done.returncode, guest_output(done)) == (0, "30\n"), done.stderr
    done = first.run("--json", "--memory", "128M", "--bundle", where)
    assert (done.returncode, summary(done)["limit"]) == (137, "memory"), done.stderr


def test_processor_time_of_the_bundle(caller: Caller) -> None:
    """Enforced, or refused with the field's name; best_effort says which it was."""
    where = bundle(caller, ["true"], linux={"resources": {"cpu": {"quota": 50_000, "period": 100_000}}})
    done = caller.run("--json", "--limits", "best_effort", "--bundle", where)
    how = summary(done)["limits"]["cpus"]
    assert done.returncode == 0 and how in ("cgroup", "none"), done.stderr
    done = caller.run("--json", "--bundle", where)
    if how == "cgroup":
        assert (done.returncode, summary(done)["limits"]) == (0, {"cpus": "cgroup"})
    else:
        assert (done.returncode, summary(done)["error"]["error"]) == (125, "LimitUnavailable")
        assert "cpus (linux.resources)" in done.stderr


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("linux.devices[0]", {"linux": {"devices": [{"path": "/dev/nvidiactl", "type": "c", "major": 195}]}}),
        ("linux.sysctl", {"linux": {"sysctl": {"kernel.shmmax": "1"}}}),
        ("linux.maskedPaths", {"linux": {"maskedPaths": ["/etc/alternatives"]}}),
        ("linux.resources.blockIO", {"linux": {"resources": {"blockIO": {"weight": 10}}}}),
        ("domainname", {"domainname": "example"}),
    ],
)
def test_what_nobody_keeps_is_refused_by_name(first: Caller, field: str, change: dict[str, Any]) -> None:
    """Nothing runs, and the line says which field; best_effort runs the guest without it, and the record says so."""
    where = bundle(first, ["echo", "ran"], **change)
    done = first.run("--bundle", where)
    assert (done.returncode, done.stdout) == (125, "")
    assert f"Prepare: {field} refused: nobody keeps it here" in done.stderr and "best_effort" in done.stderr
    done = first.run("--json", "--limits", "best_effort", "--bundle", where)
    assert (guest_output(done), summary(done)["limits"]) == ("ran\n", {field: "none"}), done.stderr


def test_the_default_devices_are_gvisor_s_own(caller: Caller) -> None:
    """What engines list of them is there in any case; so a bundle that names them runs with both releases."""
    listed = [{"path": path, "type": t, "major": a, "minor": b} for path, (t, a, b) in DEVICES.items()]
    program = "import os\nfor p in %r: s = os.stat(p); print(p, os.major(s.st_rdev), os.minor(s.st_rdev))" % [*DEVICES]
    done = caller.run("--bundle", bundle(caller, ["python3", "-c", program], linux={"devices": listed}))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{path} {a} {b}" for path, (_, a, b) in DEVICES.items()]


def test_words_that_gvisor_keeps(caller: Caller) -> None:
    """Groups, limits, name, no new privileges and noexec, as the table says; labels mean nothing, and harm nothing."""
    program = (
        "import ctypes, os, resource, shutil, subprocess\n"
        "print(os.getgroups(), resource.getrlimit(resource.RLIMIT_NOFILE), os.uname().nodename, os.umask(0))\n"
        "print(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))\n"
        "shutil.copy('/bin/true', '/tmp/true')\n"
        "try: subprocess.run(['/tmp/true'])\n"
        "except OSError as e: print(e.errno)\n"
    )
    config = OciBundle.build(["python3", "-c", program], rlimits={"RLIMIT_NOFILE": (100, 200)}, etc="none").config
    process = config["process"] | {
        "noNewPrivileges": False, "selinuxLabel": "system_u:object_r:x_t:s0", "apparmorProfile": "docker-default",
        "oomScoreAdj": 500,
    }  # fmt: skip
    process["user"]["additionalGids"] = [7, 8]
    mounts = [
        m | ({"options": [*m["options"], "noexec"]} if m["destination"] == "/tmp" else {}) for m in config["mounts"]
    ]
    done = caller.run("--bundle", bundle(caller, ["true"], process=process, mounts=mounts, hostname="named"))
    assert done.stdout.splitlines() == ["[7, 8] (100, 200) named 18", "1", "13"], done.stderr


# ---- hooks ----


def test_hooks_run_on_the_host_in_their_order(caller: Caller) -> None:
    """Each kind once, around the guest, with the state that it then has; the record names them."""
    out = caller.mode.base / "out"
    body = f"""status=$(sed 's/.*"status": "\\([a-z]*\\)".*/\\1/'); echo "$1 $status" >>{out}"""
    listed = {kind: [hook(caller, kind, body) | {"args": ["x", kind]}] for kind in (*CREATE, "poststart", "poststop")}
    done = caller.run("--json", "--allow-hooks", "--bundle", bundle(caller, ["sleep", "1"], hooks=listed))
    data = summary(done)
    assert (data["exit"], data["problems"]) == (0, []), done.stderr
    assert out.read_text().splitlines() == [
        "prestart creating", "createRuntime creating", "poststart running", "poststop stopped",
    ]  # fmt: skip
    lines = [json.loads(line)["evidence"] for line in Path(data["record"]).read_text().splitlines()]
    assert [hook["hook"] for hook in lines[-1]["hooks"]] == ["prestart[0]", "createRuntime[0]"]
    assert next(e for e in lines if "sources" in e)["hooks"][-1]["path"] == listed["poststop"][0]["path"]


def test_a_create_hook_sees_the_supervisor_before_it_executes(either: Caller) -> None:
    """Its number in the state is that of a process which is confined and waits; it has not become runsc."""
    out = either.mode.base / "out"
    body = (
        f'pid=$(sed "s/.*pid\\": \\([0-9]*\\).*/\\1/"); cat /proc/$pid/comm >{out}; readlink /proc/$pid/ns/net >>{out}'
    )
    listed = {"createRuntime": [hook(either, "look", body)]}
    done = either.run("--allow-hooks", "--bundle", bundle(either, ["true"], hooks=listed))
    assert done.returncode == 0, done.stderr
    name, network = out.read_text().splitlines()
    assert not name.startswith(("runsc", "memfd")) and network.startswith("net:[")


@pytest.mark.parametrize("kind", CREATE)
def test_a_create_hook_that_fails_fails_the_launch(caller: Caller, kind: str) -> None:
    """Nothing runs, nothing is left, the launch is in Failed and says why; poststop runs, for something had begun."""
    out = caller.mode.base / "out"
    listed = {
        kind: [hook(caller, "bad", "echo no network >&2; exit 1")],
        "poststart": [hook(caller, "never", f"echo started >>{out}")],
        "poststop": [hook(caller, "after", f"echo stopped >>{out}")],
    }
    done = caller.run("--json", "--allow-hooks", "--bundle", bundle(caller, ["echo", "ran"], hooks=listed))
    data = summary(done)
    assert (done.returncode, guest_output(done), data["states"][-1]) == (125, "", "Failed")
    error = data["error"]
    assert (error["error"], error["step"], error["cause"]) == ("HookFailed", "Exec", "fault")
    assert error["observed"] == "exit code 1: no network" and f"hooks.{kind}[0]" in error["message"]
    assert out.read_text() == "stopped\n"
    assert sorted(p.name for p in caller.mode.base.iterdir() if p.is_dir()) == ["a-bundle", "locks", "records"]
    assert list((caller.mode.base / "locks").iterdir()) == []


def test_a_hook_that_hangs_is_ended(either: Caller) -> None:
    """Its time-out counts, and nothing of its session is left (no_process_left sees to that)."""
    listed = {"prestart": [hook(either, "hangs", "sleep 1000 & sleep 1000") | {"timeout": 1}]}
    done = either.run("--allow-hooks", "--bundle", bundle(either, ["echo", "ran"], hooks=listed))
    assert (done.returncode, done.stdout) == (125, "")
    assert "longer than 1 s" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_poststart_hook_that_fails_ends_the_sandbox(caller: Caller) -> None:
    """The guest runs by then; it is ended, poststop runs, and the caller is told."""
    out = caller.mode.base / "out"
    listed = {
        "poststart": [hook(caller, "bad", "exit 4")],
        "poststop": [hook(caller, "after", f"echo stopped >>{out}")],
    }
    done = caller.run("--json", "--allow-hooks", "--bundle", bundle(caller, ["sleep", "1000"], hooks=listed))
    assert (done.returncode, summary(done)["error"]["error"]) == (125, "PoststartFailed"), done.stderr
    assert "exit code 4" in done.stderr and "hooks.poststart[0]" in done.stderr
    assert out.read_text() == "stopped\n"


def test_a_poststop_hook_that_fails_is_told(either: Caller) -> None:
    """The guest's code counts, the other hooks run, and each problem is in the report and on standard error."""
    out = either.mode.base / "out"
    listed = {"poststop": [hook(either, "bad", "exit 4"), hook(either, "after", f"echo stopped >>{out}")]}
    done = either.run("--json", "--allow-hooks", "--bundle", bundle(either, ["sh", "-c", "exit 3"], hooks=listed))
    data = summary(done)
    assert (done.returncode, out.read_text()) == (3, "stopped\n")
    assert len(data["problems"]) == 1 and "hooks.poststop[0] failed" in data["problems"][0]
    assert re.fullmatch(r"nucleus-gvisor: .*hooks.poststop\[0\] failed.*exit code 4.*\n", done.stderr)


def test_a_guest_that_is_ended_has_its_poststop_too(first: Caller) -> None:
    """A time-out is an end like another."""
    out = first.mode.base / "out"
    listed = {"poststop": [hook(first, "after", f"echo stopped >>{out}")]}
    where = bundle(first, ["sleep", "1000"], hooks=listed)
    done = first.run("--allow-hooks", "--timeout", "2", "--bundle", where)
    assert (done.returncode, out.read_text()) == (124, "stopped\n"), done.stderr


def test_hooks_that_others_can_change_are_refused(either: Caller) -> None:
    """Before anything of the bundle runs, and with the path of what is wrong."""
    listed = {"prestart": [hook(either, "open", "true")]}
    where = bundle(either, ["echo", "ran"], hooks=listed)
    Path(listed["prestart"][0]["path"]).chmod(0o777)
    done = either.run("--json", "--allow-hooks", "--bundle", where)
    error = summary(done)["error"]
    assert (done.returncode, error["error"], error["step"]) == (125, "BadBundle", "Prepare")
    assert error["path"] == listed["prestart"][0]["path"] and error["hint"]


IN_PLACE = """
import sys
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, LaunchError
runtime = GVisorRuntime.with_path(sys.argv[1], pin=sys.argv[2] or None)
options = GVisorOciRunOptions(platform="auto", allow_hooks=True)
try:
    runtime.exec_with_oci_bundle_options("in-place", sys.argv[3], options)
except LaunchError as error:
    print(type(error).__name__, error)
"""


def test_in_place_nobody_is_left(either: Caller) -> None:
    """Hooks and limits are refused by name; a profile is enforced all the same."""
    where = bundle(either, ["echo", "ran"], hooks={"poststop": [hook(either, "after", "true")]})
    done = either.script(IN_PLACE, where)
    assert "Refused Prepare: hooks refused: nobody is left to run them" in done.stdout, done.stderr
    assert "poststop[0]" in done.stdout
    where = bundle(either, ["echo", "ran"], linux={"resources": {"pids": {"limit": 5}}})
    assert "BadBundle Prepare: linux.resources refused: nobody keeps it here" in either.script(IN_PLACE, where).stdout
    program = "import os\ntry: os.getcwd()\nexcept OSError as e: print(e.errno)"
    where = bundle(either, ["python3", "-c", program], linux={"seccomp": SECCOMP})
    assert either.script(IN_PLACE, where).stdout == "1\n"


SPAWNED = """
import sys
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime
runtime = GVisorRuntime.with_path(sys.argv[1], pin=sys.argv[2] or None)
options = GVisorOciRunOptions(platform="auto", allow_hooks=True)
with runtime.spawn("spawned", sys.argv[3], options) as process:
    code = process.wait()
print(code != 0, process.held.met(), sorted(process.achieved_limits), process.problems)
"""


def test_spawn_brings_what_the_limits_need(caller: Caller) -> None:
    """A bundle's limit that is watched has somebody who watches, without the caller's doing."""
    where = bundle(caller, ["python3", "-c", HOG], linux={"resources": {"memory": {"limit": 128 << 20}}})
    done = caller.script(SPAWNED, where)
    assert done.stdout == "True memory ['memory'] ()\n", done.stderr


def test_explain_tells_hooks_and_limits(first: Caller) -> None:
    """What would run on the host, when, and what would be left out; nothing runs."""
    out = first.mode.base / "out"
    listed = {kind: [hook(first, kind, f"touch {out}")] for kind in ("prestart", "poststart", "poststop")}
    linux = {"resources": {"pids": {"limit": 5}, "blockIO": {"weight": 10}}, "seccomp": SECCOMP}
    where = bundle(first, ["true"], hooks=listed, linux=linux)
    words = [*first.chosen(), "--bundle", os.fspath(where), "--allow-hooks"]
    done = first.mode.cli("explain", *words)
    assert done.returncode == 1 and "linux.resources.blockIO refused" in done.stdout
    done = first.mode.cli("explain", "--limits", "best_effort", *words)
    assert done.returncode == 0, done.stdout
    told = done.stdout
    where_at = [told.index(f"execve            hooks.{kind}[0]") for kind in ("prestart", "poststart", "poststop")]
    assert where_at == sorted(where_at) and where_at[0] < told.index("exec, argv and env") < where_at[1]
    assert "leave out         linux.resources.blockIO" in told and "pids 5: " in told and "--oci-seccomp" in told
    assert not out.exists()
