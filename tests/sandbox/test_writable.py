"""Where a guest's writes go: nowhere, to a layer of its own, or to the directory; and nothing of ours lies in that."""

import os
import signal
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import (
    BadArgument,
    BadBundle,
    Enforcement,
    GVisorOciRunOptions,
    GVisorRuntime,
    Limits,
    OciBundle,
    OutOfDisk,
    Platform,
    Refused,
    Sandbox,
    StepFailed,
    Unsupported,
    Writable,
    run,
    runsc,
)
from nucleus_gvisor.runtime.sandbox import limited
from nucleus_gvisor.runtime.steps import confine, prepare
from nucleus_gvisor.runtime.supervisor import Supervisor
from tests.e2e import launching
from tests.e2e.launching import Caller
from tests.sandbox.conftest import MakeSandbox, Options

pytestmark = pytest.mark.real

PROGRAMS = [f"{os.path.realpath('/' + name)}:/{name}" for name in ("bin", "usr", "lib", "lib64")]
"""A guest's programs, from the host."""
TREE = """
import os, sys
from nucleus_gvisor.runtime import Sandbox, TimeoutExpired, run
options = dict(runsc=sys.argv[1], pin=sys.argv[2] or None)
base = os.environ["NUCLEUS_GVISOR_ARTIFACT_BASE"]
root = os.path.join(base, "tree")

def tree():
    found = []
    for folder, names, files in os.walk(root):
        for path in (folder, *(os.path.join(folder, name) for name in names + files)):
            status = os.lstat(path)
            found.append((path, status.st_mode, status.st_uid, status.st_ino, status.st_mtime_ns, status.st_size))
    return sorted(found)

def make(*places):
    for name in ("etc", "out", "proc", "dev", "tmp", *places):
        os.makedirs(os.path.join(root, name), mode=0o755)
    with open(os.path.join(root, "etc/mark"), "w") as file:
        file.write("here")
"""
LAYER = f"""{TREE}
make()
mounts = [*{PROGRAMS!r}, "/etc/hostname:/etc/inner/name", "tmpfs:/scratch"]
before = tree()
for writable in (False, True, "memory", "disk"):
    done = run(
        ["sh", "-c", "cat /etc/mark; test -s /etc/inner/name && echo x >/scratch/x; echo x >/out/x && cat /out/x"],
        rootfs=root, mounts=mounts, working_dir="/not/there", writable=writable, **options,
    )
    print(done.achieved_root, done.returncode, done.stdout.split(), tree() == before)
    with Sandbox(rootfs=root, mounts=mounts, writable=writable, **options) as box:
        out = box.exec("sh", "-c", "echo x >/new && cat /new", check=False).stdout
        print(box.achieved_root, out.split(), tree() == before)
        os.kill(box.pid, 9)
        box.wait()
    print(tree() == before)
try:
    run(["sleep", "60"], rootfs=root, mounts=mounts, writable=True, timeout=2, **options)
except TimeoutExpired:
    print(tree() == before)
"""
HOST = f"""{TREE}
make("sys", "bin", "usr", "lib", "lib64", ".nucleus-gvisor")
mounts = {PROGRAMS!r}
before = {{path for path, *_ in tree()}}
done = run(["sh", "-c", "echo run >/out/x"], rootfs=root, mounts=mounts, writable="host", **options)
print(done.achieved_root, done.returncode, done.stderr)
with Sandbox(rootfs=root, mounts=mounts, writable="host", **options) as box:
    box.exec("sh", "-c", "echo box >>/out/x")
print(open(os.path.join(root, "out/x")).read().split(), sorted(path for path, *_ in tree() if path not in before))
"""
LEFT = f"""{TREE}
make()
box = Sandbox(rootfs=root, mounts={PROGRAMS!r}, writable=sys.argv[3], **options)
before = tree()
box.exec("sh", "-c", "echo secret >/out/x")
print("{launching.READY}", flush=True)
print(sys.stdin.readline(), tree() == before, flush=True)
"""


def test_a_layer_of_its_own(caller: Caller) -> None:
    """For each kind of caller and release, the directory is as it was: after a read, a write, and each kind of end."""
    done = caller.script(LAYER)
    assert done.returncode == 0, done.stderr
    kept = ["read-only 2 ['here'] True", "read-only [] True", "True"]
    layer = ["memory 0 ['herex'] True", "memory ['x'] True", "True"]
    on_disk = [line.replace("memory", "disk") for line in layer]
    assert done.stdout.splitlines() == [*kept, *layer, *layer, *on_disk, "True"]
    assert sorted(path.name for path in caller.mode.base.iterdir()) == ["locks", "records", "tree"]


def test_the_directory_itself(caller: Caller) -> None:
    """What the guest has written is there, and nothing else."""
    done = caller.script(HOST)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["host 0 ", f"['run', 'box'] ['{caller.mode.base}/tree/out/x']"]


@pytest.mark.parametrize("writable", ["memory", "disk"])
def test_an_owner_that_is_killed(caller: Caller, writable: str) -> None:
    """Nothing of ours, and of the guest's, lies in the directory then either, nor anywhere on the disk."""
    argv = [caller.mode.python, "-c", LEFT, os.fspath(caller.runsc), caller.pin or "", writable]
    process = caller.mode.popen(argv, stdin=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == launching.READY + "\n"
    below = launching.descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert launching.gone(below) == {}
    tree = caller.mode.base / "tree"
    stores = list(caller.mode.base.glob("*/store"))
    assert len(stores) == (writable == "disk")
    assert [path for store in stores for path in store.iterdir()] == []
    assert sorted(os.fspath(path.relative_to(tree)) for path in tree.rglob("*")) == [
        "dev", "etc", "etc/mark", "out", "proc", "tmp",
    ]  # fmt: skip


def test_a_layer_on_disk_has_a_limit(make: MakeSandbox, base: Path) -> None:
    """Whoever writes more ends with it; what was written counts, and not how often."""
    (base / "tree").mkdir()
    more: Options = {"rootfs": base / "tree", "mounts": PROGRAMS, "writable": "disk"}
    box = make(**more, disk=32 << 20)
    assert box.achieved_limits == {"disk": "watch"}
    for _ in range(4):
        box.exec("sh", "-c", "head -c 10000000 /dev/zero >/x")
    with pytest.raises(OutOfDisk, match=str(32 << 20)):
        box.exec("sh", "-c", "head -c 100000000 /dev/zero >/y; sleep 60")
    with pytest.raises(BadArgument, match="writable='disk'"):
        make(disk=1 << 30)


def test_a_layer_on_disk_is_no_memory(base: Path) -> None:
    """A base that is in memory, or that no flag can name, is refused."""
    for folder, path, text in (("/dev/shm", b"/base", "tmpfs"), (os.fspath(base), b"/a:b", ": or ,")):
        fd = os.open(folder, os.O_RDONLY)
        try:
            with pytest.raises(Unsupported, match=text):
                prepare.require_disk(fd, path)
        finally:
            os.close(fd)


def test_a_layer_on_disk_is_kept_by_a_checkpoint(new_options: Options, base: Path) -> None:
    """And goes on as one."""
    (base / "tree").mkdir()
    options: Options = {**new_options, "rootfs": base / "tree", "mounts": PROGRAMS, "writable": "disk"}
    with Sandbox(**options) as box:
        box.write_file("/x", b"kept")
        box.checkpoint(base / "image")
    with Sandbox.restore(base / "image", **options) as box:
        assert (box.read_file("/x"), box.achieved_root) == (b"kept", "disk")
    assert list((base / "tree").iterdir()) == []


def test_the_command_line_names_a_layer(first: Caller) -> None:
    """`--writable=disk` has a limit in any case, and `--disk` is nothing without it."""
    tree = first.mode.base / "tree"
    tree.mkdir()
    flags = ["--json", "--rootfs", os.fspath(tree), *(word for bind in PROGRAMS for word in ("--mount", bind))]
    for writable in ("--writable", "--writable=disk"):
        done = first.run(*flags, writable, command=["sh", "-c", "echo x >/x && cat /x"])
        assert done.stdout.startswith("x\n"), done.stderr
        told = launching.summary(done)
        on_disk = writable.endswith("disk")
        assert (told["root"], told["limits"]) == (("disk", {"disk": "watch"}) if on_disk else ("memory", {}))
    assert first.run(*flags, "--disk", "1G", command=["true"]).returncode == 125
    assert list(tree.iterdir()) == []


def test_nothing_is_made_in_a_bind(make: MakeSandbox, base: Path) -> None:
    """Neither for what is mounted in it, nor for the working directory: they are asked for."""
    (base / "data").mkdir()
    for how in ("ro", "rw"):
        data = f"{base}/data:/data:{how}"
        with pytest.raises(BadBundle, match=f"/data/x of the guest has no place.*{base}/data/x"):
            make(mounts=[data, f"{base}:/data/x"])
        with pytest.raises(BadBundle, match="/data/cwd of the guest"):
            make(mounts=[data], working_dir="/data/cwd")
    with pytest.raises(BadBundle, match="/data/cache of the guest"):
        make(mounts=[data, "tmpfs:/data/cache"])
    assert list((base / "data").iterdir()) == []
    (base / "data/cache").mkdir()
    box = make(mounts=[data, "tmpfs:/data/cache"])
    box.write_file("/data/cache/x", b"")
    assert list((base / "data/cache").iterdir()) == []


def test_directories_that_the_guest_may_not_write(new_options: Options, base: Path) -> None:
    """A root that others write too is not for a guest; nor is one where something would have to be made."""
    root = base / "tree"
    for name in ("proc", "sys", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    options = {**new_options, "rootfs": root, "writable": "host"}
    with pytest.raises(BadBundle, match="/bin of the guest has no place"):
        run(["true"], mounts=PROGRAMS, **options)
    with pytest.raises(BadBundle, match=r"/\.nucleus-gvisor of the guest has no place"):
        Sandbox(**options)
    (root / "sys").rmdir()
    with pytest.raises(BadBundle, match="/sys of the guest has no place"):
        run(["true"], **options)
    before = len(os.listdir("/proc/self/fd"))
    for folder, text in ((root, "others can write the rootfs"), (base, "others can change the rootfs")):
        folder.chmod(0o777)
        with pytest.raises(BadBundle, match=text):
            run(["true"], **options)
        folder.chmod(0o700)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(BadBundle, match="no rootfs"):
        run(["true"], writable="host", **new_options)
    with pytest.raises(BadArgument, match="memory, disk, host"):
        run(["true"], writable="elsewhere", **new_options)
    assert sorted(path.name for path in root.iterdir()) == ["dev", "proc", "tmp"]


def test_without_a_tree_of_its_own(new_options: Options, base: Path) -> None:
    """An unconfined launch has only the caller's directory: what is not in it is asked for."""
    options = {**new_options, "rootfs": base, "writable": True, "enforcement": "off"}
    with pytest.raises(BadBundle, match="/bin of the guest has no place"):
        run(["true"], mounts=PROGRAMS, **options)
    for name in ("bin", "usr", "lib", "lib64"):
        (base / name).mkdir()
    before = sorted(path.name for path in base.rglob("*"))
    done = run(["sh", "-c", "echo x >/x && cat /x"], mounts=PROGRAMS, **options)
    assert (done.stdout, done.achieved_root) == ("x\n", "memory"), done.stderr
    assert sorted(path.name for path in base.rglob("*")) == before


@pytest.mark.parametrize("writable", list(Writable))
def test_what_a_bundles_writable_root_means(release: object, writable: Writable, base: Path, options: Options) -> None:
    """What the launch says, whatever the release's own default is; the record and its handle say it too."""
    root = base / "tree"
    for name in ("proc", "sys", "dev", "tmp", "bin", "usr", "lib", "lib64"):
        (root / name).mkdir(parents=True)
    bundle = OciBundle.build(["/bin/sh", "-c", "echo x >/x"], rootfs=root, mounts=PROGRAMS, readonly=False)
    launch = GVisorOciRunOptions(platform=Platform.AUTO, artifact_base=options["runtime_dir"], writable=writable)
    runtime = GVisorRuntime.with_path(options["runsc"])
    if writable is Writable.DISK:
        with pytest.raises(BadArgument, match="has to have a limit"):
            runtime.spawn("bundled", bundle, launch)
    limits = Limits(disk=1 << 30 if writable is Writable.DISK else None)
    with limited(limits, runtime, "bundled", bundle, launch, (0, 1, 2)) as process:
        assert process.wait() == 0
    assert (root / "x").exists() == (writable is Writable.HOST)
    assert process.achieved_root == writable
    assert any(line.evidence.get("root") == writable for line in process.record.lines)


@pytest.mark.parametrize("name", ["overlay", "overlay2"])
def test_an_annotation_that_says_otherwise(name: str, base: Path) -> None:
    """No flag of a bundle's changes what a writable root means, whichever flags are allowed."""
    bundle = OciBundle(
        None,
        {
            "ociVersion": "1.0.2",
            "process": {"args": ["x"], "cwd": "/"},
            "root": {"path": os.fspath(base)},
            "annotations": {f"dev.gvisor.flag.{name}": "x"},
        },
        allow_flag_annotations=True,
    )
    with pytest.raises(Refused, match=f"annotation dev.gvisor.flag.{name}"):
        prepare.look_at_bundle(bundle)


def test_a_release_without_the_flag() -> None:
    """What it cannot do is refused, and what it does anyway is not asked for."""
    release = runsc.Release("20220101.0", "", (), "")
    assert runsc.overlay(release, None) is runsc.overlay(release, Writable.HOST) is None
    for writable in (Writable.MEMORY, Writable.DISK):
        with pytest.raises(Unsupported, match=f"in a layer .{writable}"):
            runsc.overlay(release, writable)


@pytest.mark.parametrize(
    ("point", "place"),
    [
        ("/a", None),
        ("/a/b", "/a/b"),
        ("/link/b", "/a/b"),
        ("/back/b", "/a/b"),
        ("/none/b/c", "/none/b/c"),
    ],
)
def test_where_a_place_is(base: Path, point: str, place: str | None) -> None:
    """Links are those of the guest: none leads out of its root."""
    (base / "a").mkdir()
    (base / "link").symlink_to("/a")
    (base / "back").symlink_to("../../a")
    found, there = prepare._inside(os.fsencode(base), os.fsencode(point))
    assert (None if there else os.fsdecode(found)) == place
    (base / "file").touch()
    with pytest.raises(BadBundle, match="on the way to"):
        prepare._inside(os.fsencode(base), b"/file/x")
    (base / "loop").symlink_to("loop")
    with pytest.raises(BadBundle, match="on the way to"):
        prepare._inside(os.fsencode(base), b"/loop/x")


def test_an_unconfined_program_sees_its_place(new_options: Options, base: Path) -> None:
    """Where a directory cannot be made beside the rootfs, an empty one is taken."""
    (base / "mnt").mkdir()
    with Sandbox(**new_options, rootfs=base, writable=True, enforcement=Enforcement.OFF) as box:
        assert [process.command for process in box.ps()] == ["init"]
    assert [path.name for path in base.rglob("*")] == ["mnt"]


def test_what_has_no_overlay() -> None:
    """It is told which place is missing, and what to do: no confinement has failed, and none is gone without."""
    child = Supervisor.__new__(Supervisor)
    error = confine._refusal(child, {}, "refused", ["points", "/data", 19, "fsopen: No such device"])
    assert isinstance(error, StepFailed)
    assert (error.path, error.hint) == (b"/data", 'make it in the rootfs; etc="none" asks for no file of /etc')
    assert "No such device" in str(error)
