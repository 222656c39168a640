"""Checkpoints: what a guest had is there again, in a sandbox that was launched as any other, or nothing is."""

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.runtime import (
    AsyncSandbox,
    BadArgument,
    BadPath,
    CannotExec,
    Error,
    GVisorOciRunOptions,
    GVisorRuntime,
    LifetimeExpired,
    NotFound,
    OciBundle,
    OutOfMemory,
    Platform,
    Record,
    RunscFailed,
    Sandbox,
    StartFailed,
    StepFailed,
    Unsupported,
    Untrusted,
    guest,
    image,
)
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.capture import readable
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import file_id, judge_directory
from tests.e2e import launching
from tests.e2e.launching import Caller
from tests.sandbox.conftest import MakeSandbox, Options, client

pytestmark = pytest.mark.real

COUNTER = """
import time
number = 0
while True:
    number += 1
    print(number, flush=True)
    time.sleep(0.05)
"""
SERVICE = ("/bin/sh", "-c", f"exec python3 -c '{COUNTER}' >/tmp/count")
AS_CALLER = f"""
import os, sys
from nucleus_gvisor.runtime import RunscFailed, Sandbox, Unsupported
options = dict(runsc=sys.argv[1], pin=sys.argv[2] or None, service={SERVICE!r})
directory = os.path.join(os.environ["NUCLEUS_GVISOR_ARTIFACT_BASE"], "image")
def count(box):
    try:
        return len(box.read_file("/tmp/count").split())
    except FileNotFoundError:
        return 0
with Sandbox(**options) as box:
    while not count(box):
        pass
    box.write_file("/tmp/x", "kept")
    try:
        box.checkpoint(directory)
        mode = oct(os.stat(directory).st_mode & 0o777)
        print(box.closed, sorted(os.listdir(directory)), os.listdir(directory + "/image"), mode)
    except RunscFailed as error:
        print(type(error).__name__, box.closed, os.path.exists(directory))
        import hashlib, json
        os.makedirs(os.path.join(directory, "image"), 0o700)
        with open(os.path.join(directory, "image/checkpoint.img"), "x"):
            pass
        content = dict(size=0, sha256=hashlib.sha256().hexdigest())
        with open(os.path.join(directory, "note"), "x") as file:
            json.dump(dict(box._process.made_with, version=1, files=dict([("checkpoint.img", content)])), file)
try:
    with Sandbox.restore(directory, **options) as box:
        first = count(box)
        while count(box) <= first:
            pass
        numbers = box.read_file("/tmp/count").split()
        print(numbers == [b"%d" % n for n in range(1, len(numbers) + 1)], box.read_file("/tmp/x"), box.achieved)
        print([process.command for process in box.ps()], box.exec("cat", input="in").stdout)
except Unsupported as error:
    print(type(error).__name__)
"""


def counted(box: Sandbox) -> list[int]:
    """All that the service has counted."""
    try:
        return [int(line) for line in box.read_file("/tmp/count").split()]
    except FileNotFoundError:  # it is about to begin
        return []


def goes_on(box: Sandbox) -> bool:
    """The service counts, from where it was, and leaves no number out."""
    deadline = time.monotonic() + 30
    first = len(counted(box))
    while len(numbers := counted(box)) <= first and time.monotonic() < deadline:
        pass
    return numbers == list(range(1, len(numbers) + 1)) and len(numbers) > first


def left_below(base: Path) -> list[str]:
    """What launches have left there, but for records."""
    return [path.name for path in (base / "locks").iterdir()] + sorted(
        path.name for path in base.iterdir() if path.name not in ("locks", "records")
    )


def test_each_kind_of_caller_with_each_release(caller: Caller, runsc_old: Path) -> None:
    """A counter counts on in another sandbox; with the older release a sandbox is not ended for an image in vain."""
    done = caller.script(AS_CALLER)
    assert done.returncode == 0, done.stderr
    kept = ["True ['image', 'note'] ['checkpoint.img'] 0o700", "True b'kept' mount-locked", "['init', 'python3'] in"]
    refused = ["RunscFailed False False", "Unsupported"]
    assert done.stdout.splitlines() == (refused if caller.runsc == runsc_old else kept)
    records = sorted((caller.mode.base / "records").iterdir())
    judged = caller.mode.cli("audit", "verify", *records)
    assert judged.returncode == 0
    ends = re.findall(r"accepted, \d+ lines, ends in (\S+), complete", judged.stdout)
    assert sorted(ends) == ["Exec'd", "Failed" if caller.runsc == runsc_old else "Exec'd"]


def test_one_image_many_sandboxes(new_options: Options, base: Path) -> None:
    """The first goes on beside those that are made from it, and none knows of another."""
    with Sandbox(**new_options, service=SERVICE) as box:
        box.write_file("/tmp/x", "first")
        assert goes_on(box)
        box.checkpoint(base / "image", leave_running=True)
        assert goes_on(box)
        box.write_file("/tmp/x", "changed")
        with (
            Sandbox.restore(base / "image", **new_options, service=SERVICE) as one,
            Sandbox.restore(base / "image", **new_options, service=SERVICE) as two,
        ):
            one.write_file("/tmp/x", "one")
            assert [b.read_file("/tmp/x") for b in (box, one, two)] == [b"changed", b"one", b"first"]
            assert [goes_on(b) for b in (box, one, two)] == [True] * 3
            two.checkpoint(base / "again")
        with Sandbox.restore(base / "again", **new_options, service=SERVICE) as three:
            assert (three.read_file("/tmp/x"), goes_on(three)) == (b"first", True)
    assert sorted(path.name for path in base.iterdir()) == ["again", "image"]


def test_what_a_restored_sandbox_can_do(new_options: Options, base: Path) -> None:
    """What every other can: commands with limits, files, processes, pause, and an end of its own limits."""
    with Sandbox(**new_options) as box:
        box.popen(["sleep", "60"]).kill()
        box.checkpoint(base / "image")
    with Sandbox.restore(base / "image", **new_options, memory=400 << 20, pids=50, lifetime=30) as box:
        assert set(box.achieved_limits) == {"memory", "pids", "lifetime"}
        with pytest.raises(Error, match="timed out"):
            box.exec("sh", "-c", "sleep 60 & sleep 61", timeout=1)
        box.pause()
        box.resume()
        assert [process.command for process in box.ps()] == ["init"]
        with pytest.raises(OutOfMemory):
            box.exec("python3", "-c", "b'x' * (1 << 30)")
    with Sandbox.restore(base / "image", **new_options, sandbox_id="run", lifetime=3) as box:
        assert [process.command for process in box.ps()] == ["init"]
        with pytest.raises(LifetimeExpired):
            box.exec("sleep", "60")


def test_asynchronous(new_options: Options, base: Path) -> None:
    """The same on a loop."""

    async def body() -> None:
        async with AsyncSandbox(**new_options, service=SERVICE) as box:
            await box.write_file("/tmp/x", "kept")
            await box.checkpoint(base / "image")
            assert box.closed
        async with AsyncSandbox.restore(base / "image", **new_options, service=SERVICE) as box:
            assert await box.read_file("/tmp/x") == b"kept"
            assert goes_on(box._box)
        box = await AsyncSandbox.restore(base / "image", **new_options, service=SERVICE)
        await box.close()

    asyncio.run(body())


# ---- what is refused ----


def test_a_command_that_is_being_started(new_options: Options, base: Path) -> None:
    """Its streams would be in the image, before anybody counts it among those that run: the checkpoint is refused."""
    with Sandbox(**new_options) as box:
        box.exec("true")
        while not (waiting := linux.children(box._attendant._pid)):
            pass
        for client in waiting:
            os.kill(client, signal.SIGSTOP)
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(box.exec("true").returncode))
        thread.start()
        while not box._starts:
            pass
        with pytest.raises(RunscFailed, match="a command runs"):
            box.checkpoint(base / "image", leave_running=True)
        for client in waiting:
            os.kill(client, signal.SIGCONT)
        thread.join(60)
        assert codes == [0] and not (base / "image").exists()
        box.checkpoint(base / "image", leave_running=True)
    with Sandbox.restore(base / "image", **new_options) as again:
        assert again.exec("echo", "restored").stdout == "restored\n"


def test_a_command_whose_client_was_killed(new_options: Options, base: Path) -> None:
    """Nobody has heard of it, and its process runs on: it is ended first, or its streams would be in the image."""
    with Sandbox(**new_options) as box:
        process = box.popen(["sleep", "60"])
        os.kill(client(), signal.SIGKILL)
        assert readable(process.command.channel, time.monotonic() + 30)
        box.checkpoint(base / "image", leave_running=True)
        with pytest.raises(RunscFailed, match="client of the command was killed"):
            process.wait()
    with Sandbox.restore(base / "image", **new_options) as again:
        assert [process.pid for process in again.ps()] == [1]


def test_a_command_that_comes_while_an_image_is_written(
    new_options: Options, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits until that is done, and is not in the image; on a loop too."""

    async def body() -> None:
        async with AsyncSandbox(**new_options) as box:
            inner, ask, said = box._box, box._box._ask_exactly, list[str]()
            thread = threading.Thread(target=lambda: said.append(inner.exec("echo", "thread").stdout))
            loop = asyncio.get_running_loop()

            def slowly(name: str, *rest: Any) -> bytes:
                if name != "checkpoint":
                    return ask(name, *rest)
                asked = asyncio.run_coroutine_threadsafe(box.exec("echo", "loop"), loop)
                thread.start()
                gate = inner._gate
                while gate is None or not gate._users:
                    time.sleep(0.01)
                answer = ask(name, *rest)
                assert said == [] and not asked.done()
                return answer

            monkeypatch.setattr(inner, "_ask_exactly", slowly)
            await box.checkpoint(base / "image", leave_running=True)
            while not said:
                await asyncio.sleep(0.01)
            assert said == ["thread\n"] and (await box.exec("echo", "on")).stdout == "on\n"

    asyncio.run(body())
    with Sandbox.restore(base / "image", **new_options) as again:
        assert [process.pid for process in again.ps()] == [1]


def test_directories_that_are_refused(new_options: Options, base: Path) -> None:
    """A checkpoint overwrites nothing, and lies where others cannot change it; the sandbox goes on."""
    (base / "file").touch()
    (base / "full").mkdir()
    (base / "full/x").touch()
    (base / "link").symlink_to("full")
    (base / "open").mkdir()
    (base / "open").chmod(0o777)
    (base / "empty").mkdir(mode=0o755)
    with Sandbox(**new_options) as box:
        for name in ("file", "full", "link"):
            with pytest.raises(FileExistsError):
                box.checkpoint(base / name)
        with pytest.raises(FileNotFoundError):
            box.checkpoint(base / "none/image")
        for name in ("open", "open/image"):
            with pytest.raises(Untrusted, match="changed by others") as refused:
                box.checkpoint(base / name)
            assert "chown" not in str(refused.value) and "a directory of your own" in refused.value.hint
        assert sorted(path.name for path in base.rglob("*")) == ["empty", "file", "full", "link", "open", "x"]
        assert not box.closed
        box.checkpoint(base / "empty", leave_running=True)
        assert (base / "empty").stat().st_mode & 0o777 == 0o700
        assert box.exec("true").returncode == 0


def spoiled_by_mode(image: Path) -> None:
    image.chmod(0o770)


def spoiled_by_owner(image: Path) -> None:
    os.chown(image, 1, 1)


def spoiled_file(image: Path) -> None:
    (image / "image/checkpoint.img").chmod(0o666)


def spoiled_by_link(image: Path) -> None:
    (image / "image/checkpoint.img").rename(image / "x")
    (image / "image/checkpoint.img").symlink_to("../x")


def spoiled_content(image: Path) -> None:
    (image / "image/checkpoint.img").write_bytes(b"y")


def spoiled_folder(image: Path) -> None:
    (image / "image").chmod(0o770)


def spoiled_note(image: Path) -> None:
    (image / "note").chmod(0o620)


def spoiled_by_a_note_elsewhere(image: Path) -> None:
    (image / "note").rename(image / "x")
    (image / "note").symlink_to("x")


def spoiled_above(image: Path) -> None:
    image.parent.chmod(0o777)


@pytest.mark.parametrize(
    "spoil",
    [
        *(spoiled_by_mode, spoiled_by_owner, spoiled_file, spoiled_by_link, spoiled_above, spoiled_content),
        *(spoiled_folder, spoiled_note, spoiled_by_a_note_elsewhere),
    ],
    ids=lambda f: f.__name__,
)
def test_images_that_are_refused(spoil: Callable[[Path], None], new_options: Options, base: Path) -> None:
    """What others could have written is not read by anything."""
    folder = base / "image"
    rubbish(folder, b"x")
    spoil(folder)
    with pytest.raises(Untrusted) as refused:
        Sandbox.restore(folder, **new_options)
    assert isinstance(refused.value.record, Record)
    assert refused.value.record.states[-1] == "Failed"
    base.chmod(0o700)


def rubbish(directory: Path, content: bytes, **made_with: object) -> None:
    """An image as `checkpoint` leaves it, with a content that no runsc wrote."""
    with image.made(directory, made_with) as path:
        (Path(path) / "checkpoint.img").write_bytes(content)


def test_what_is_no_image(new_options: Options, base: Path) -> None:
    """Nothing there, nothing in it, an older version's, rubbish: each is told, the last by runsc; nothing is left."""
    (base / "empty").mkdir()
    with Sandbox(**new_options) as box:
        made_with = dict(box._process.made_with)
    rubbish(base / "rubbish", b"rubbish" * 1000, **made_with)
    with pytest.raises(StepFailed, match="Not a directory"):
        Sandbox.restore(base / "rubbish/note", **new_options)
    with pytest.raises(NotFound):
        Sandbox.restore(base / "none", **new_options)
    with pytest.raises(Untrusted, match="empty"):
        Sandbox.restore(base / "empty", **new_options)
    with pytest.raises(StartFailed, match=r"runsc did not restore the guest: .*restoring container"):
        Sandbox.restore(base / "rubbish", **new_options)
    (base / "rubbish/note").rename(base / "note")
    with pytest.raises(BadPath, match=r"no note.*earlier version"):
        Sandbox.restore(base / "rubbish", **new_options)
    for text in (
        "",
        "[]",
        "{}",
        '{"version": 2, "files": {"checkpoint.img": {}}}',
        '{"version": 1, "files": {}}',
        "[" * 99999,
    ):
        (base / "rubbish/note").write_text(text)
        with pytest.raises(BadPath, match="not a checkpoint's note"):
            Sandbox.restore(base / "rubbish", **new_options)
    (base / "rubbish/note").unlink()
    (base / "note").rename(base / "rubbish/note")
    (base / "rubbish/image/checkpoint.img").unlink()
    with pytest.raises(NotFound, match="not a whole checkpoint"):
        Sandbox.restore(base / "rubbish", **new_options)
    (base / "rubbish/image").rmdir()
    with pytest.raises(BadPath, match="not a checkpoint"):
        Sandbox.restore(base / "rubbish", **new_options)
    assert left_below(Path(new_options["runtime_dir"])) == []


def test_below_a_directory_that_all_share(new_options: Options) -> None:
    """Nobody is told to take /tmp from all others."""
    with Sandbox(**new_options) as box, pytest.raises(Untrusted) as refused:
        box.checkpoint("/tmp/nucleus-gvisor-image")
    assert "a directory of your own" in refused.value.hint
    assert not re.search("chown|chmod", str(refused.value))
    assert not os.path.exists("/tmp/nucleus-gvisor-image")
    with pytest.raises(Untrusted) as above:
        judge_directory(os.stat("/tmp"), b"/tmp", Identity.current())
    assert "put it where only root" in above.value.hint
    assert not re.search("chown|chmod", str(above.value))


# ---- the note ----


def test_what_differs_is_refused_by_name(new_options: Options, base: Path) -> None:
    """Before anything runs, and no value of a variable is told. What does not matter may differ."""
    (base / "data").mkdir()
    made_with: Options = {"env": {"TOKEN": "secret"}, "mounts": [f"{base}/data:/data"], "service": ["/bin/sleep", "60"]}
    with Sandbox(**new_options, **made_with) as box:
        box.checkpoint(base / "image")
    for change, name, text in (
        ({"service": []}, "service", "expected: .*sleep"),
        ({"service": ["/bin/sleep", "61"]}, "service", "61"),
        ({"env": {"TOKEN": "public", "A": ""}}, "env", "other values of A, TOKEN"),
        ({"mounts": []}, "mounts", "/data bind ro"),
        ({"mounts": [f"{base}/data:/data:rw"]}, "mounts", "/data bind rw"),
        ({"network": "sandbox"}, "network", "expected: none"),
        ({"user": 7}, "user", "7"),
        ({"working_dir": "/usr"}, "working_dir", "/usr"),
        ({"hostname": "other"}, "hostname", "other"),
        ({"rlimits": {"RLIMIT_NOFILE": 99}}, "rlimits", "99"),
        ({"writable": True}, "writable", "memory"),
    ):
        with pytest.raises(BadArgument, match=f"made with another {name}.*{text}") as refused:
            Sandbox.restore(base / "image", **(new_options | made_with | change))
        assert not re.search("secret|public", str(refused.value))
    elsewhere: Options = {"mounts": [f"{base}:/data"], "sandbox_id": "other", "pids": 99}
    with Sandbox.restore(base / "image", **(new_options | made_with | elsewhere)) as box:
        assert "sleep" in [process.command for process in box.ps()]


def test_another_runsc(new_options: Options, base: Path) -> None:
    """It is told by us, with both releases."""
    with Sandbox(**new_options) as box:
        made_with = dict(box._process.made_with)
    for name, value in (("release", "20200101.0"), ("runsc", "0" * 64)):
        rubbish(base / name, b"x", **made_with | {name: value})
        with pytest.raises(Unsupported, match=f"by another runsc.*expected: .*{value}"):
            Sandbox.restore(base / name, **new_options)


def test_foreign_names_never_reach_runsc(new_options: Options, base: Path) -> None:
    """A supervisor that was taken over may leave them while it lives: what runsc is shown has names of ours alone."""
    with Sandbox(**new_options) as box:
        box.checkpoint(base / "image", leave_running=True)
    (base / "image/image/gcs_opts.json").write_text("{}")
    (base / "image/image/note").write_text("{}")
    for enforcement in ("required", "off"):
        with Sandbox.restore(base / "image", **new_options, enforcement=enforcement) as box:
            command = box._process.command
            seen = Path(os.fsdecode(command[command.index(b"--image-path") + 1]))
            inside = Path(f"/proc/{box.pid}/root{seen}") if enforcement == "required" else seen
            assert [path.name for path in inside.iterdir()] == ["checkpoint.img"]


def test_a_supervisor_forges_a_note(base: Path) -> None:
    """It reaches `image/` alone: a note there is none, a foreign name fails the checkpoint, and the note is ours."""
    with (
        pytest.raises(Untrusted, match="no release of runsc writes"),
        image.made(base / "image", {"network": "none"}) as path,
    ):
        fd = image.opened(path, alone=True)
        try:
            for name in ("checkpoint.img", "note"):
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd))
            # The root of a detached mount has no parent: `..` is the directory itself.
            assert os.path.samestat(os.stat("..", dir_fd=fd), os.stat(path))
            with pytest.raises(FileNotFoundError):
                os.stat("../image/note", dir_fd=fd)
        finally:
            os.close(fd)
    assert list(base.iterdir()) == []
    rubbish(base / "image", b"x", network="none")
    assert image.judged(base / "image").note["network"] == "none"
    assert sorted(path.name for path in (base / "image").iterdir()) == ["image", "note"]


def test_a_checkpoint_that_fails_leaves_nothing(new_options: Options, base: Path) -> None:
    """What runsc cannot keep, and the streams of a command that runs; the sandbox goes on, and can be kept later."""
    with Sandbox(**new_options, network="host") as box:
        with pytest.raises(RunscFailed, match="not supported"):
            box.checkpoint(base / "image")
        assert box.exec("true").returncode == 0
    with Sandbox(**new_options) as box:
        (base / "empty").mkdir()
        with box.popen(["sleep", "60"]) as process:
            with pytest.raises(RunscFailed, match="a command runs"):
                box.checkpoint(base / "image")
            process.kill()
        assert [path.name for path in base.iterdir()] == ["empty"]
        box.checkpoint(base / "empty")
        with pytest.raises(Error, match="has ended"):
            box.checkpoint(base / "image")
    assert [path.name for path in base.iterdir()] == ["empty"]


def test_streams_that_were_left_behind(new_options: Options, base: Path) -> None:
    """An image with a stream of the host's in it is not restored, and runsc says why."""
    with Sandbox(**new_options) as box:
        box.exec("sh", "-c", "sleep 60 & exit 0")
        box.checkpoint(base / "image")
    with pytest.raises(StartFailed, match="no host FD available") as failed:
        Sandbox.restore(base / "image", **new_options)
    assert len(str(failed.value)) < 1000
    assert left_below(Path(new_options["runtime_dir"])) == []


@pytest.mark.parametrize("alone", [True, False])
def test_what_runsc_can_reach_by_the_descriptor(alone: bool, base: Path) -> None:
    """Files in the directory alone: a detached mount has no parent, and nothing is executed from it."""
    (base / "image").mkdir(mode=0o700)
    (base / "secret").touch()
    fd = image.opened(os.fspath(base / "image"), alone=alone)
    try:
        os.close(os.open("checkpoint.img", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd))
        assert (base / "image/checkpoint.img").exists()
        reached = os.open("..", os.O_PATH, dir_fd=fd)
        assert os.path.samestat(os.fstat(reached), os.fstat(fd)) == alone
        assert bool(os.statvfs(reached).f_flag & os.ST_NOEXEC) == alone
        os.close(reached)
    finally:
        os.close(fd)


def test_another_directory_than_the_one_that_was_judged(base: Path) -> None:
    """The mount that runsc is given is of the very directory, or there is none."""
    (base / "image").mkdir(mode=0o700)
    with pytest.raises(RunscFailed, match="another object"):
        image._detached(os.fspath(base / "image"), file_id(base.stat()))


def test_rootless_restores_nothing(new_options: Options, base: Path) -> None:
    """No release does; it is said before runsc does."""
    with Sandbox(**new_options) as box:
        box.checkpoint(base / "image")
    with pytest.raises(Unsupported, match="rootless"):
        GVisorRuntime.with_path(new_options["runsc"]).spawn(
            "restored",
            OciBundle.build([f"{guest.DIRECTORY}/{guest.NAME}"]),
            GVisorOciRunOptions(platform=Platform.AUTO, runsc_rootless=True, artifact_base=new_options["runtime_dir"]),
            checkpoint=base / "image",
        )


def test_what_is_put_beside_an_image_goes_with_it(base: Path) -> None:
    """Links and directories too, which a supervisor that was taken over can make; where a link leads is untouched."""
    (base / "kept").mkdir()
    (base / "kept/file").touch()
    for name in ("new", "empty"):
        with pytest.raises(Untrusted, match="not a file"), image.made(base / name, {}) as path:
            (Path(path) / "checkpoint.img/below").mkdir(parents=True)
            (Path(path) / "link").symlink_to("../kept")
        (base / "empty").mkdir(exist_ok=True)
    with pytest.raises(BadPath, match="not a checkpoint"), image.made(base / "new", {}):
        pass
    assert sorted(path.name for path in base.rglob("*")) == ["empty", "file", "kept"]


# ---- the service ----


def test_a_service_that_cannot_be_started(make: MakeSandbox) -> None:
    """The kernel's own answer, from inside the guest; and what is no path in it is refused before."""
    with pytest.raises(CannotExec, match="/no/such was not started: No such file"):
        make(service=["/no/such"])
    with pytest.raises(CannotExec, match="Permission denied"):
        make(service=["/etc", "x"])
    with pytest.raises(ValueError, match="absolute path"):
        make(service=["sh"])


def test_a_service_is_the_sandboxs_own(make: MakeSandbox) -> None:
    """Its user, its variables, its directory; no streams, and when it ends the sandbox does not."""
    report = "import os; open('/tmp/x', 'w').write(repr((os.getuid(), os.environ['A'], os.getcwd())))"
    script = f'python3 -c "{report}"; while [ ! -e /tmp/go ]; do sleep 0.1; done'
    box = make(service=["/bin/sh", "-c", script], user=7, env=["A=b"], working_dir="/usr")
    streams = [f"/proc/2/fd/{number}" for number in range(3)]
    assert box.exec("readlink", *streams).stdout == "/dev/null\n" * 3
    box.write_file("/tmp/go", "")
    deadline = time.monotonic() + 30
    while len(box.ps()) > 1 and time.monotonic() < deadline:
        pass
    assert [process.command for process in box.ps()] == ["init"]
    assert box.read_file("/tmp/x") == b"(7, 'b', '/usr')"


def test_a_restored_sandbox_ends_with_its_owner(newer: Caller) -> None:
    """However that ends."""
    source = f"""
import os, sys, time
from nucleus_gvisor.runtime import Sandbox
options = dict(runsc=sys.argv[1], pin=sys.argv[2] or None)
directory = os.path.join(os.environ["NUCLEUS_GVISOR_ARTIFACT_BASE"], "image")
box = Sandbox(**options)
box.checkpoint(directory)
box = Sandbox.restore(directory, **options)
print("{launching.READY}", flush=True)
time.sleep(60)
"""
    process = newer.mode.popen([newer.mode.python, "-c", source, os.fspath(newer.runsc), newer.pin or ""])
    assert process.stdout is not None
    assert process.stdout.readline() == launching.READY + "\n"
    below = launching.descendants(process.pid)
    process.kill()
    process.communicate()
    assert launching.gone(below) == {}
