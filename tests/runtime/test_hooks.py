"""Hooks by themselves: what is judged, what they are given, how they end. Real programs, real processes."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.errors import BadBundle
from nucleus_gvisor.runtime import HookFailed, OciBundle, hooks
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.hooks import Hooks
from nucleus_gvisor.runtime.identity import Identity

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

Made = Callable[..., Hooks]


@pytest.fixture
def script(base: Path) -> Callable[[str], Path]:
    """Write a program of /bin/sh's, sound unless a test makes it otherwise."""
    names = iter(range(100))

    def written(body: str) -> Path:
        path = base / f"hook-{next(names)}"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return written


def made(base: Path, **listed: Any) -> Hooks:
    """The judged hooks of a bundle in `base`."""
    linux.Ledger().use()
    config = OciBundle.build(["true"], rootfs="/srv").config
    config["hooks"] = listed
    config["annotations"] = {"a": "b"}
    return hooks.judge("job", OciBundle(base, config, allow_hooks=True), Identity.current())


def refused(base: Path, hook: object, words: str) -> BadBundle:
    with pytest.raises(BadBundle, match=words) as caught:
        made(base, prestart=[{"path": "/bin/true"}, hook])
    error = caught.value
    assert error.step == "Prepare" and error.path and error.expected and error.hint
    assert error.message.startswith("hooks.prestart[1] refused")
    return error


def test_what_a_hook_is_given(base: Path, script: Callable[[str], Path]) -> None:
    """The state on standard input, its own arguments and environment, `/`, three descriptors, a session of its own."""
    out = base / "out"
    os.environ["NGV_TEST_SECRET"] = "x"
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    probe = script(
        f"exec >{out}; cat; echo; echo \"$1:$2\"; env; echo; pwd; ls /proc/$$/fd; cut -d' ' -f1,5,6 /proc/$$/stat"
    )
    try:
        found = made(
            base, createRuntime=[{"path": str(probe), "args": ["zero", "one", "two"], "env": ["A=1", "B=x=y"]}]
        )
        assert found.create(42) == [{"hook": "createRuntime[0]", "path": str(probe)}]
        found.stop()
        assert found.problems == []
    finally:
        del os.environ["NGV_TEST_SECRET"]
        os.close(reader)
        os.close(writer)
    state, words, *rest = out.read_text().splitlines()
    assert json.loads(state) == {
        "ociVersion": "1.0.2", "id": "job", "status": "creating", "pid": 42, "bundle": str(base),
        "annotations": {"a": "b"},
    }  # fmt: skip
    assert words == "one:two"
    variables = set(rest[: rest.index("")]) - {"PWD=/"}  # which sh sets
    assert variables == {"A=1", "B=x=y"}
    cwd, *descriptors, session = rest[rest.index("") + 1 :]
    assert cwd == "/"
    assert set(descriptors) - {"10"} == {"0", "1", "2"}  # 10 is sh's own, of the script that it reads
    pid, group, sid = session.split()[0], *session.split()[1:]
    assert group == sid == pid


def test_all_kinds_in_order_and_once(base: Path, script: Callable[[str], Path]) -> None:
    """prestart before createRuntime, then poststart; poststop once, and only when something had begun."""
    out = base / "out"
    path = str(script(f'echo "$0 $1 $(cut -d"," -f5 | tr -dc a-z)" >>{out}'))
    listed = {kind: [{"path": path, "args": ["x", f"{kind}-{n}"]} for n in (0, 1)] for kind in
              ("poststop", "createRuntime", "poststart", "prestart")}  # fmt: skip
    found = made(base, **listed)
    found.create(7)
    found.start(7)
    found.stop()
    found.stop()
    assert found.problems == []
    told = [line.split()[1] for line in out.read_text().splitlines()]
    assert told == [f"{k}-{n}" for k in ("prestart", "createRuntime", "poststart", "poststop") for n in (0, 1)]
    assert [line.split()[2] for line in out.read_text().splitlines()][-1] == "statusstopped"
    out.unlink()
    untouched = made(base, **listed)
    assert untouched and untouched.awaits_start
    untouched.stop()
    assert not out.exists()


def test_a_binary_is_executed_by_its_descriptor(base: Path) -> None:
    """A program that is no script has no descriptor of itself either, and an argument list of its path alone."""
    found = made(base, prestart=[{"path": "/usr/bin/test"}], poststop=[{"path": "/bin/true"}])
    with pytest.raises(HookFailed, match=r"hooks.prestart\[0\] failed: /usr/bin/test; observed: exit code 1"):
        found.create(1)
    found.stop()
    assert found.problems == []


def test_what_it_said_is_told(base: Path, script: Callable[[str], Path]) -> None:
    """Standard error is in the error, in one line, up to a bound; so is a signal; those after it do not run."""
    out = base / "out"
    loud, after = script("yes no | head -c 100000 >&2; echo hidden; exit 3"), script(f"touch {out}")
    found = made(base, prestart=[{"path": str(loud)}, {"path": str(after)}], poststop=[{"path": str(after)}] * 2)
    with pytest.raises(HookFailed, match=r"exit code 3: no\\nno\\n") as caught:
        found.create(1)
    assert len(str(caught.value.observed)) < hooks.MAX_SAID + 100 and "hidden" not in str(caught.value)
    assert not out.exists()
    found.stop()
    assert found.problems == [] and out.exists()  # something had begun
    killed = made(base, poststop=[{"path": str(script("kill -9 $$"))}, {"path": str(loud)}])
    killed.create(1)
    killed.stop()
    assert [str(problem.observed)[:11] for problem in killed.problems] == ["signal 9", "exit code 3"]


def test_one_that_hangs_is_ended_with_its_session(base: Path, script: Callable[[str], Path]) -> None:
    """Its children go with it, in other groups of the session too; its own time-out counts."""
    pids = base / "pids"
    hanging = script(f"set -m; sleep 1000 & echo $! >{pids}; sleep 1000 & echo $! >>{pids}; echo $$ >>{pids}; wait")
    found = made(base, prestart=[{"path": str(hanging), "timeout": 2}])
    with pytest.raises(HookFailed, match="longer than 2 s"):
        found.create(1)
    found.stop()
    numbers = [int(line) for line in pids.read_text().split()]
    assert len(numbers) == 3
    until = time.monotonic() + 60
    while any(_runs(pid) for pid in numbers) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(_runs(pid) for pid in numbers)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_it_leaves_behind_on_purpose_is_let_alone(base: Path, script: Callable[[str], Path]) -> None:
    """A hook that ends is not waited for any longer because a child holds its standard error."""
    pids = base / "pids"
    found = made(base, prestart=[{"path": str(script(f"sleep 1000 & echo $! >{pids}"))}])
    found.create(1)
    found.stop()
    pid = int(pids.read_text())
    assert _runs(pid)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_ends_it(
    base: Path, script: Callable[[str], Path], kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever interrupts the wait, no process of the hook's is left."""
    pids = base / "pids"
    found = made(base, prestart=[{"path": str(script(f"echo $$ >{pids}.new; mv {pids}.new {pids}; sleep 1000"))}])

    def interrupted(*_: object) -> bool:
        while not pids.exists():
            time.sleep(0.01)
        raise kind

    monkeypatch.setattr(hooks._Running, "wait", interrupted)
    with pytest.raises(kind):
        found.create(1)
    found.stop()
    assert not _runs(int(pids.read_text()))


def test_an_interrupted_stop_goes_on(
    base: Path, script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook that was interrupted does not run twice, those after it run once, and all are closed."""
    out = base / "out"
    path = str(script(f"echo $1 >>{out}; exit 3"))
    found = made(base, poststop=[{"path": path, "args": ["x", str(number)]} for number in range(3)])
    found.create(1)
    honest = hooks._Running.reap

    def interrupted(self: Any) -> int | None:
        honest(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hooks._Running, "reap", interrupted)
        with pytest.raises(KeyboardInterrupt):
            found.stop()
    found.stop()
    assert out.read_text().split() == ["0", "1", "2"]
    assert len(found.problems) == 2


def test_somebody_else_s_wait_is_no_success(
    base: Path, script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that waits for all its children takes the hook's end too; what is unknown is not 0."""
    found = made(base, prestart=[{"path": str(script("exit 7"))}])
    honest = hooks._Running.wait

    def stolen(self: Any, deadline: float) -> bool:
        ended = honest(self, deadline)
        os.waitpid(self._process.pid, 0)
        return ended

    monkeypatch.setattr(hooks._Running, "wait", stolen)
    monkeypatch.setattr(linux, "pidfd_exit_status", lambda _: None)
    with pytest.raises(HookFailed, match="its end is unknown"):
        found.create(1)
    monkeypatch.setattr(linux, "pidfd_exit_status", lambda _: 7 << 8)
    with pytest.raises(HookFailed, match="exit code 7"):
        found.create(1)
    found.stop()


def test_from_several_threads(base: Path, script: Callable[[str], Path]) -> None:
    """poststop runs once, whoever hears of the end first."""
    out = base / "out"
    found = made(base, poststop=[{"path": str(script(f"echo once >>{out}"))}])
    found.create(1)
    threads = [threading.Thread(target=found.stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out.read_text() == "once\n"


def test_what_is_put_in_its_place_later_does_not_run(base: Path, script: Callable[[str], Path]) -> None:
    """The program that was judged is the one that runs; one that was written to is refused."""
    out = base / "out"
    judged, other = script(f"echo judged >>{out}"), script(f"echo other >>{out}")
    found = made(base, prestart=[{"path": str(judged)}])
    other.rename(judged)
    found.create(1)
    assert out.read_text() == "judged\n"
    found.stop()
    rewritten = script(f"echo judged >>{out}")
    found = made(base, prestart=[{"path": str(rewritten)}])
    rewritten.write_text(f"#!/bin/sh\necho rewritten >>{out}\n")
    with pytest.raises(HookFailed, match="another size or time"):
        found.create(1)
    found.stop()
    assert out.read_text() == "judged\n"


def test_what_cannot_be_executed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's refusal is the hook's failure."""
    found = made(base, prestart=[{"path": "/bin/true", "args": ["x" * 131071, *["y" * 131000] * 100]}])
    with pytest.raises(HookFailed, match="Argument list too long"):
        found.create(1)
    found.stop()


def test_paths_are_judged_as_runsc_s(base: Path, script: Callable[[str], Path]) -> None:
    """Nobody but root and the caller can change what runs, on the way there or in it."""
    sound = script("true")
    refused(base, {"path": str(base / "none")}, "not found")
    refused(base, {"path": str(base)}, "leads to a directory|not a regular file")
    for mode, words in ((0o775, "written by others"), (0o757, "written by others"), (0o644, "no execute bit"),
                        (0o4755, "set-id"), (0o2755, "set-id")):  # fmt: skip
        sound.chmod(mode)
        refused(base, {"path": str(sound)}, words)
    sound.chmod(0o755)
    (base / "open").mkdir()
    (base / "open").chmod(0o777)
    (base / "open/hook").write_bytes(sound.read_bytes())
    (base / "open/hook").chmod(0o755)
    error = refused(base, {"path": str(base / "open/hook")}, "a directory above can be changed by others")
    assert error.path == os.fsencode(base / "open")
    (base / "link").symlink_to(base / "open/hook")
    refused(base, {"path": str(base / "link")}, "a directory above can be changed")
    os.mkfifo(base / "fifo")
    refused(base, {"path": str(base / "fifo")}, "not a regular file")


def test_another_s_program_is_refused(base: Path, script: Callable[[str], Path]) -> None:
    """It can be changed by its owner, who is neither root nor the caller."""
    program = script("true")
    if os.geteuid() == 0:
        os.chown(program, 12345, 12345)
    stranger = replace(Identity.current(), uid=54321)
    config = OciBundle.build(["true"], rootfs="/srv").config
    config["hooks"] = {"prestart": [{"path": os.fspath(program)}]}
    linux.Ledger().use()
    with pytest.raises(BadBundle, match=r"belongs to someone else|can be changed by others"):
        hooks.judge("job", OciBundle(base, config, allow_hooks=True), stranger)


def test_what_is_no_program_is_refused(base: Path, script: Callable[[str], Path]) -> None:
    """Text without an interpreter, an interpreter that is not judged sound, a truncated binary."""
    path = script("true")
    for content, words in (
        (b"echo hello\n", "neither a program nor a script"),
        (b"", "neither a program nor a script"),
        (Path("/bin/true").read_bytes()[:100], "neither a program nor a script"),
        (b"#! \n", "without an interpreter"),
        (b"#!sh\n", "without an interpreter"),
        (b"#!/bin/sh", "without an interpreter"),
        (b"#!/no/such/interpreter\n", "not found"),
    ):
        path.write_bytes(content)
        refused(base, {"path": str(path)}, words)
    interpreter = script("true")
    interpreter.chmod(0o777)
    path.write_text(f"#!{interpreter} -x\n")
    assert refused(base, {"path": str(path)}, "written by others").path == os.fsencode(interpreter)
