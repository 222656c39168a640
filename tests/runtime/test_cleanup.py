"""Locks and leftovers: one launch an id, the dead are collected, the living are left alone."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus_gvisor.model.errors import Busy, LaunchError
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime import cleanup, limits
from nucleus_gvisor.runtime.cleanup import Place, collect, owner_line, owner_lives, state_component
from tests.support import places
from tests.support.modes import Mode

ID = "0123456789abcdef" * 2
HOLD = """
import os, sys
from nucleus_gvisor.runtime.cleanup import Place
base = sys.argv[1]
place = Place(os.open(base, os.O_RDONLY), os.fsencode(base), sys.argv[2])
place.take()
place.make()
if sys.argv[3:]:
    place.own(int(sys.argv[3]))
print("held", flush=True)
sys.stdin.read()
place.close()
"""


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@contextmanager
def place(base: Path, component: str = ID) -> Iterator[Place]:
    """A place that has taken nothing yet, closed at the end."""
    it = Place(os.open(base, os.O_RDONLY | os.O_DIRECTORY), os.fsencode(base), component)
    try:
        yield it
    finally:
        it.close()


def taken(base: Path, component: str = ID) -> bool:
    """Is the id taken, as a launch finds it; left as it was found."""
    with place(base, component) as it:
        try:
            it.take()
        except Busy:
            return True
        os.close(it.lock)
        it.lock = -1
        return False


def leave(base: Path, component: str, owner: bytes) -> None:
    """What a launcher leaves that wrote `owner` into its lock and was killed."""
    with place(base, component) as it:
        it.take()
        it.make()
        (base / component / "file").write_text("left")
        os.pwrite(it.lock, owner, 0)


def collected(base: Path) -> list[str]:
    """What the collector removed."""
    with place(base) as it:
        locks = os.open(base / "locks", os.O_RDONLY)
        try:
            return sorted(collect(it.base, it.base_path, locks))
        finally:
            os.close(locks)


@contextmanager
def holder(base: Path, component: str = ID, *owner: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the id, until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, base, component, *owner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            with suppress(BrokenPipeError):
                process.communicate(timeout=20)


@contextmanager
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that does nothing, killed at the end."""
    with subprocess.Popen(["sleep", "300"]) as process:
        try:
            yield process
        finally:
            process.kill()


def dead_line() -> bytes:
    """The owner line of a process that has ended."""
    with sleeper() as process:
        line = owner_line(process.pid)
    assert not owner_lives(line)
    return line


# ---- names ----


def test_the_directory_is_named_by_the_id_or_its_digest() -> None:
    """32 lower-case hex digits stand for themselves; everything else is the whole SHA-256, so that none can meet."""
    assert state_component(ID) == ID
    for other in (ID.upper(), ID[:-1], ID + "0", ID + "\n", "job-1", "JOB-1", "g" * 32, "٣" * 32):
        assert state_component(other) == "id-" + hashlib.sha256(other.encode()).hexdigest()


@given(
    first=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", fullmatch=True),
    second=st.from_regex(r"[A-Fa-f0-9]{32}", fullmatch=True),
)
def test_two_ids_have_two_directories(first: str, second: str) -> None:
    """Different ids never share a directory, not even by case; each is one sound path component."""
    names = {state_component(container) for container in (first, second, first.swapcase(), second.swapcase())}
    assert len(names) == len({first, second, first.swapcase(), second.swapcase()})
    assert not any("/" in name or name.startswith(".") or len(name) > 80 for name in names)


# ---- who holds it ----


def test_an_owner_line_names_one_process() -> None:
    """A running process is alive by its line; once it has ended it is not, be it reaped or a zombie."""
    with sleeper() as process:
        line = owner_line(process.pid)
        assert owner_lives(line) and line.endswith(b"\n")
        process.send_signal(signal.SIGSTOP)
        assert owner_lives(line), "a stopped process is alive"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not owner_lives(line), "a zombie runs nothing"
        process.wait()
        assert not owner_lives(line)
    assert owner_lives(owner_line(os.getpid()))


def test_a_number_that_was_given_again_is_another_process() -> None:
    """The same pid with another start time is not the owner."""
    pid, started, boot, space = owner_line(os.getpid()).split()
    for other in (b"0", b"1", str(int(started) + 1).encode(), b""):
        assert not owner_lives(b" ".join([pid, other, boot, space]) + b"\n")


def test_an_owner_of_another_boot_is_dead() -> None:
    """No process lives through a boot, whatever runs under its number now."""
    pid, started, _, space = owner_line(os.getpid()).split()
    assert not owner_lives(b" ".join([pid, started, b"00000000-0000-0000-0000-000000000000", space]))


def test_an_owner_elsewhere_is_alive() -> None:
    """A number of another pid namespace says nothing here: better to refuse than to run twice."""
    pid, started, boot, _ = owner_line(os.getpid()).split()
    assert owner_lives(b" ".join([pid, started, boot, b"pid:[1]"]))
    assert owner_lives(b" ".join([b"999999999", started, boot, b"pid:[1]"]))


@given(line=st.binary(max_size=80))
def test_any_bytes_in_a_lock_are_read_calmly(line: bytes) -> None:
    """Half a line, or garbage, names nobody."""
    assert owner_lives(line) is False


@given(first=st.binary(max_size=12), second=st.binary(max_size=12))
def test_garbage_with_a_sound_boot_is_read_calmly(first: bytes, second: bytes) -> None:
    """Also when what stands behind it looks right."""
    pid, started, boot, space = owner_line(os.getpid()).split()
    if (first.strip(), second.strip()) != (pid, started):
        assert owner_lives(b" ".join([first, second, boot, space])) is False


def test_the_owner_can_be_named_again(base: Path) -> None:
    """The last owner that was written counts, though its line be shorter than the one before."""
    with place(base) as it:
        it.take()
        it.own(os.getpid())
        it.own(1)
    assert taken(base), "process 1 is the owner, and runs"


# ---- taking ----


def test_an_id_is_taken_once(base: Path) -> None:
    """A second launch of the id is refused as busy, in the same process, and another id is free."""
    with place(base) as first:
        first.take()
        with place(base) as second:
            with pytest.raises(Busy) as caught:
                second.take()
        assert caught.value.path == os.fsencode(base / ID) and caught.value.hint
        assert not taken(base, "f" * 32)
    assert not taken(base)


def test_a_refused_launch_disturbs_nothing(base: Path) -> None:
    """Being refused, unwinding and collecting leave the holder's lock and directory alone."""
    with holder(base):
        (base / ID / "file").write_text("live")
        with place(base) as it:
            with pytest.raises(Busy):
                it.take()
            assert it.remove() == []
        assert collected(base) == []
        assert (base / ID / "file").read_text() == "live" and (base / "locks" / ID).exists()
        assert taken(base)


def test_another_process_holds_it(base: Path) -> None:
    """The lock is the kernel's: it holds between processes, and ends with the holder, however it ends."""
    with holder(base) as process:
        assert taken(base)
        process.kill()
        process.wait()
        assert not taken(base)


def test_the_owner_keeps_it_when_the_launcher_is_gone(base: Path) -> None:
    """A sandbox that outlives its launcher keeps the id and its directory; once it ends both are free."""
    with sleeper() as sandbox:
        with holder(base, ID, str(sandbox.pid)):
            pass
        assert taken(base) and collected(base) == []
        assert (base / ID).is_dir()
        sandbox.kill()
        sandbox.wait()
        assert collected(base) == [ID]
        assert not (base / ID).exists() and not taken(base)


@pytest.mark.parametrize("owner", [b"", b"garbage", b"1 2 3", b"\xff" * 200], ids=repr)
def test_a_stale_lock_is_taken(base: Path, owner: bytes) -> None:
    """What a dead launch left does not keep the id, and its old directory is gone before the new one is made."""
    leave(base, ID, owner)
    with place(base) as it:
        it.take()
        it.make()
        assert os.listdir(it.directory) == [] and os.fstat(it.directory).st_mode & 0o7777 == 0o700
        assert os.pread(it.lock, 100, 0) == b"", "the dead owner's line is gone"


def test_twenty_takers_have_one_winner(base: Path) -> None:
    """Of twenty processes that take one id at once, nineteen are told that it is busy."""
    _one_winner(base)


@pytest.mark.parametrize("repetition", range(3))
def test_twenty_takers_of_a_stale_lock_have_one_winner(base: Path, repetition: int) -> None:
    """Also when what they find was left by a dead launch."""
    leave(base, ID, dead_line())
    _one_winner(base)


RACE = """
import os, sys, time
from nucleus_gvisor.model.errors import Busy
from nucleus_gvisor.runtime.cleanup import Place
base = sys.argv[1]
children = []
ready, done = os.pipe(), os.pipe()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        place = Place(os.open(base, os.O_RDONLY), os.fsencode(base), sys.argv[2])
        os.close(ready[1])
        os.read(ready[0], 1)
        try:
            place.take()
            place.make()
            code = 1
        except Busy:
            code = 2
        except BaseException:
            code = 3
        os.write(done[1], b"x")
        os.close(done[1])
        while code == 1 and os.path.exists(sys.argv[3]):
            time.sleep(0.005)
        os._exit(code)
    children.append(pid)
time.sleep(0.05)
os.close(ready[1])
for _ in children:
    os.read(done[0], 1)
os.unlink(sys.argv[3])
print(sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


def _one_winner(base: Path) -> None:
    going = base / "going"
    going.touch()
    done = subprocess.run(
        [sys.executable, "-c", RACE, base, ID, going], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == str([1] + [2] * 19), done.stderr


def test_twenty_threads_take_twenty_ids(base: Path) -> None:
    """Different ids do not hinder each other, collectors at work included."""
    failures: list[BaseException] = []
    start = threading.Barrier(21)

    def work(number: int) -> None:
        try:
            start.wait(20)
            with place(base, f"{number:032x}") as it:
                for _ in range(5):
                    it.take()
                    it.make()
                    assert os.listdir(it.directory) == []
                    assert it.remove() == []
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    (base / "locks").mkdir(mode=0o700)
    for thread in threads:
        thread.start()
    start.wait(20)
    while any(thread.is_alive() for thread in threads):
        collected(base)
    for thread in threads:
        thread.join(20)
    assert not failures
    assert os.listdir(base / "locks") == [] and os.listdir(base) == ["locks"]


def test_a_lock_that_was_removed_locks_nothing(base: Path) -> None:
    """Whoever waited for a lock whose name is gone must not hold it beside the next one."""
    stop = time.monotonic() + 1.5
    inside = [0]
    guard = threading.Lock()
    problems: list[str] = []
    wins = [0]

    def work() -> None:
        while time.monotonic() < stop:
            with place(base) as it:
                try:
                    it.take()
                except Busy:
                    continue
                with guard:
                    inside[0] += 1
                    wins[0] += 1
                    if inside[0] != 1:
                        problems.append("two hold one id")
                with guard:
                    inside[0] -= 1
                it.remove()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not problems and wins[0] > 4


@pytest.mark.parametrize("umask", ["0", "077", "0777"])
def test_any_umask_will_do(umask: str, mode: Mode) -> None:
    """Lock and directory are made and can be used under every umask that a caller may have."""
    script = (
        "import os, sys\nos.umask(int(sys.argv[2], 8))\nfrom nucleus_gvisor.runtime.cleanup import Place\n"
        "base = sys.argv[1]\nplace = Place(os.open(base, os.O_RDONLY), os.fsencode(base), 'a' * 32)\n"
        "place.take()\nplace.make()\nprint(oct(os.fstat(place.directory).st_mode & 0o7777))\n"
        "os.close(os.open('x', os.O_CREAT | os.O_WRONLY, dir_fd=place.directory))\nplace.own(os.getpid())\n"
        "assert place.remove() == [], place.problems\nplace.take()\n"
    )
    done = mode.run([mode.python, "-c", script, mode.base, umask])
    assert (done.returncode, done.stdout) == (0, "0o700\n"), done.stderr


# ---- collecting ----


def test_only_the_dead_are_collected(base: Path) -> None:
    """Held by a process, owned by a process, owned elsewhere, or dead: only the last goes, with its lock."""
    held, owned, elsewhere, dead, older = (c * 32 for c in "abcde")
    pid, started, boot, _ = owner_line(os.getpid()).split()
    leave(base, owned, owner_line(os.getpid()))
    leave(base, elsewhere, b" ".join([pid, started, boot, b"pid:[1]\n"]))
    leave(base, dead, dead_line())
    leave(base, older, b" ".join([pid, started, b"another-boot", b"pid:[1]\n"]))
    with holder(base, held):
        assert collected(base) == [dead, older]
        assert sorted(os.listdir(base)) == [held, owned, elsewhere, "locks"]
        assert sorted(os.listdir(base / "locks")) == [held, owned, elsewhere]
        assert (base / owned / "file").read_text() == "left"


def test_collecting_twice_is_collecting_once(base: Path) -> None:
    """The second time there is nothing, and what is no launch's is never touched."""
    leave(base, ID, b"")
    (base / "records").mkdir()
    (base / "records/kept").write_text("kept")
    (base / ("f" * 32)).mkdir()
    assert collected(base) == [ID] and collected(base) == []
    assert sorted(os.listdir(base)) == ["f" * 32, "locks", "records"] and (base / "records/kept").exists()


@pytest.mark.parametrize("kind", ["directory", "link", "fifo"])
def test_what_is_no_lock_stops_no_collector(base: Path, kind: str) -> None:
    """Something odd among the locks is passed over; the others are collected."""
    leave(base, ID, b"")
    odd = base / "locks" / "0odd"
    (base / "victim").write_text("kept")
    if kind == "directory":
        odd.mkdir()
    elif kind == "link":
        odd.symlink_to(base / "victim")
    else:
        os.mkfifo(odd)
    before = len(os.listdir("/proc/self/fd"))
    assert ID in collected(base)
    assert (base / "victim").read_text() == "kept"
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_cannot_be_removed_stays_collectable(base: Path) -> None:
    """When the directory has to stay its lock stays as well, so that a later collector finds it."""
    if os.geteuid():
        pytest.fail("run as root: something has to be mounted")
    leave(base, ID, b"")
    subprocess.run(["mount", "-t", "tmpfs", "none", base / ID], check=True)
    try:
        assert collected(base) == []
        assert (base / "locks" / ID).exists()
        with place(base) as it:
            it.take()
            problems = it.remove()
        assert problems and (base / "locks" / ID).exists()
    finally:
        subprocess.run(["umount", base / ID], check=True)
    assert collected(base) == [ID] and os.listdir(base) == ["locks"]


def test_what_is_mounted_below_is_detached_and_not_removed(base: Path) -> None:
    """What gVisor leaves mounted in its place goes first, one mount on another too, and what it shows stays whole."""
    if os.geteuid():
        pytest.fail("run as root: something has to be mounted")
    leave(base, ID, b"")
    shown, odd, link = base / "shown", base / ID / "a b" / "c", base / ID / "link"
    (shown / "d").mkdir(parents=True)
    (shown / "d/file").touch()
    odd.mkdir(parents=True)
    link.symlink_to(shown)
    (base / ID / "null-netns").touch()
    (base / "net").touch()
    for source, target in ((shown, odd), (shown / "d", odd / "d"), (base / "net", base / ID / "null-netns")):
        subprocess.run(["mount", "--bind", source, target], check=True)
    assert collected(base) == [ID]
    assert places.mounts_below(base) == [] and (shown / "d/file").exists()
    assert sorted(os.listdir(base)) == ["locks", "net", "shown"]


def refuse(_: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_mount_that_cannot_be_detached_stays(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is removed then: the tree's walk would go into it."""
    if os.geteuid():
        pytest.fail("run as root: something has to be mounted")
    leave(base, ID, b"")
    (base / ID / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", base / ID / "mnt"], check=True)
    (base / ID / "mnt/file").touch()
    with monkeypatch.context() as patch:
        patch.setattr("nucleus_gvisor.runtime._linux.detach", refuse)
        assert collected(base) == [] and (base / ID / "mnt/file").exists()
    assert collected(base) == [ID] and not (base / ID).exists()


def test_unwinding_leaves_nothing(base: Path) -> None:
    """Removing what was taken and made leaves neither directory nor lock, and twice is once."""
    with place(base) as it:
        it.take()
        it.make()
        it.own(os.getpid())
        (base / ID / "file").write_text("x")
        assert it.remove() == [] and it.remove() == []
        assert os.listdir(base) == ["locks"] and os.listdir(base / "locks") == []
        it.take()


def test_a_lock_can_be_opened_again_whatever_the_umask(base: Path) -> None:
    """Left by a launch that was killed, a lock without a mode would be an ordinary user's for ever."""
    before = os.umask(0o777)
    try:
        with place(base) as it:
            it.take()
            assert (base / "locks" / ID).stat().st_mode & 0o7777 == 0o600
            assert it.remove() == []
    finally:
        os.umask(before)


def test_a_lock_leads_to_its_file_or_locks_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once the file has been removed, nor when there is another; a collector then lets it be."""
    with place(base) as it:
        it.take()
        path, fd = base / "locks" / ID, it.lock
        assert cleanup._leads_to(ID, it.locks, fd)
        path.rename(base / "locks/aside")
        assert not cleanup._leads_to(ID, it.locks, fd)
        path.touch(mode=0o600)
        assert not cleanup._leads_to(ID, it.locks, fd)
        monkeypatch.setattr(cleanup, "_leads_to", lambda *_: False)
        assert cleanup.take_lock(it.locks, ID, b"", create=False) is None


def test_what_could_not_be_removed_is_told_once(base: Path) -> None:
    """A later attempt that can remove it does, and tells of no old trouble."""
    with place(base) as it:
        it.take()
        it.make()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", base / ID], check=True)
        try:
            assert it.remove() != []
        finally:
            subprocess.run(["umount", base / ID], check=True)
        assert it.remove() == []
    assert os.listdir(base) == ["locks"] and os.listdir(base / "locks") == []


def test_a_lock_that_cannot_be_removed(base: Path) -> None:
    """It is an error, but where a signal handler has closed all meanwhile: then there is none any more."""
    with place(base) as it:
        it.take()
        it.make()
        os.rename(base / "locks" / ID, base / "locks" / "other")
        os.mkdir(base / "locks" / ID)
        with pytest.raises(IsADirectoryError):
            it.remove()
        os.rmdir(base / "locks" / ID)
        linux.close_of(it.__dict__, "locks")
        assert it.remove() == []


def test_a_list_of_what_is_still_there_stays(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a cgroup cannot be removed, the directory that names it stays, for a later collector."""
    monkeypatch.setattr(limits, "PATIENCE", 0.0)
    busy = base / f"{limits.PREFIX}busy"  # stands for a cgroup with a process in it: rmdir(2) refuses both
    (busy / "more").mkdir(parents=True)
    leave(base, ID, b"")
    (base / ID / limits.LIST).write_text(f"{busy}\n")
    assert collected(base) == [] and (base / ID / limits.LIST).exists() and (base / "locks" / ID).exists()
    (busy / "more").rmdir()
    assert collected(base) == [ID] and not busy.exists()


def test_a_lock_that_was_taken_on_the_line_of_an_interrupt(base: Path) -> None:
    """The descriptor that nobody knows is closed, for else the file could not be taken again and removed."""
    with place(base) as it:
        it.take()
        it.lock = -1
        assert it.remove() == [] and os.listdir(base / "locks") == []


def test_a_collector_without_memory_does_not_go_on(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that cannot be looked at is passed over; but with no memory left the lock may have been taken."""
    leave(base, ID, b"")
    for error in (PermissionError, MemoryError):

        def failing(*_: object, error: type[Exception] = error, **__: object) -> int:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(cleanup, "take_lock", failing)
            if error is MemoryError:
                with pytest.raises(MemoryError):
                    collected_by_descriptor(base)
            else:
                assert collected_by_descriptor(base) == []
    assert collected(base) == [ID]


def collected_by_descriptor(base: Path) -> list[str]:
    """What the collector removed, without a lock of our own."""
    fds = [os.open(path, os.O_RDONLY) for path in (base, base / "locks")]
    try:
        return collect(fds[0], os.fsencode(base), fds[1])
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_was_planted_in_the_directorys_place_is_replaced(base: Path, kind: str) -> None:
    """A file or link under the container's name is not used and not followed."""
    (base / "victim").mkdir()
    (base / "victim/file").write_text("kept")
    if kind == "file":
        (base / ID).write_text("x")
    else:
        (base / ID).symlink_to("victim")
    with place(base) as it:
        it.take()
        try:
            it.make()
        except LaunchError:
            return
        assert os.path.samestat(os.fstat(it.directory), os.lstat(base / ID)) and os.listdir(it.directory) == []
    assert (base / "victim/file").read_text() == "kept"
