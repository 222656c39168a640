"""Every record that a test leaves is judged: inner sessions whose tests leave some, in each way in which one can."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.model.launches import launch, text_of
from tests.support import records
from tests.support.app import DATA
from tests.support.modes import Mode
from tests.support.places import ROOT

HEAD = """
import os, shutil, subprocess, sys, tempfile
from nucleus_gvisor.model.replay import Judgement
from nucleus_gvisor.model.states import LaunchState as S
from nucleus_gvisor.runtime.audit import Record
from tests.model.launches import launch, text_of
from tests.support import records

def good(name):
    return text_of(launch(S.EXECD, launch=name * 32, container="job").records)

def bad(name):
    return good(name).replace(b'"image":"trusted"', b'"image":"none"')
"""


def session(base: Path, source: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A pytest session of its own with these tests and our plugin alone."""
    (base / "test_it.py").write_text(HEAD + textwrap.dedent(source))
    own = {name: value for name, value in os.environ.items() if name not in (records.SPOOL, "PYTEST_CURRENT_TEST")}
    own |= {"PYTHONPATH": os.fspath(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **env}
    options = ["-q", "-p", "tests.support.records", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={base}"]
    command = [sys.executable, "-m", "pytest", *options, f"--basetemp={base / 'tmp'}", "test_it.py"]
    done = subprocess.run(command, cwd=base, env=own, capture_output=True, text=True, timeout=200)
    subprocess.run(["rm", "-r", "-f", base / "tmp"], check=True)  # by another process: it is not for our own session
    return done


def test_a_bad_record_fails_the_session(base: Path) -> None:
    """Left, removed, overwritten, unmounted, in memory, of a pytest below: each is named with file, test and line."""
    done = session(
        base,
        """
        def test_left(tmp_path):
            (tmp_path / "any-name").write_bytes(bad("1"))

        def test_removed():
            folder = tempfile.mkdtemp()
            open(folder + "/r.ndjson", "wb").write(bad("2"))
            shutil.rmtree(folder)

        def test_overwritten(tmp_path):
            (tmp_path / "r").write_bytes(bad("3"))
            (tmp_path / "r").write_bytes(b"")

        def test_in_memory():
            record = Record()
            for line in launch(S.EXECD, launch="4" * 32).records[:3:2]:
                record.append(line)

        def test_below(tmp_path):
            (tmp_path / "test_below.py").write_text(
                "import sys; sys.path.insert(0, sys.argv[-1])\\n"
                "from test_it import bad\\n"
                "def test_deep(tmp_path): (tmp_path / 'deep').write_bytes(bad('5'))\\n"
            )
            command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.records", "-p", "no:cacheprovider"]
            env = {**os.environ, "PYTHONPATH": os.environ["PYTHONPATH"] + ":" + os.path.dirname(__file__)}
            subprocess.run([*command, "-c", "/dev/null", tmp_path / "test_below.py"], env=env, check=True, timeout=100)

        def test_declared_and_good(tmp_path):
            (tmp_path / "r").write_bytes(records.seeded(good("6")))

        def test_half(tmp_path):
            (tmp_path / "r").write_bytes(good("7")[:-9])

        def test_shared(tmp_path):
            (tmp_path / "r").write_bytes(good("8") + bad("9"))

        def test_empty(tmp_path):
            (tmp_path / "r.ndjson").touch()
        """,
    )
    assert done.returncode == 1 and "9 passed" in done.stdout, done.stdout + done.stderr
    told = {line.split("::")[-1].split(":")[0]: line for line in done.stdout.splitlines() if "test_it.py::" in line}
    removed = next(line for line in done.stdout.splitlines() if "r.ndjson: test_it.py::test_removed" in line)
    assert "REJECTED at line 5, effect" in removed and "Exec does not lead to these image" in removed
    assert "REJECTED at line 5, effect" in told["test_overwritten"]
    assert "in memory: test_it.py::test_in_memory: REJECTED at line 1, order" in done.stdout, done.stdout
    assert "accepted, and was made to be rejected" in told["test_declared_and_good"]
    for name, line, reason in (
        ("test_left0/any-name", 5, "effect"),
        ("test_deep0/deep", 5, "effect"),
        ("test_half0/r", 5, "cut"),
        ("test_shared0/r", 5, "effect"),
        ("test_empty0/r.ndjson", 0, "empty"),
    ):
        assert re.search(rf"{name}: .*REJECTED at line {line}, {reason}", done.stdout), done.stdout


def test_good_and_declared_records_pass(base: Path) -> None:
    """Behaviours, what a killed launch leaves, and bad ones that were made on purpose; equal bytes are one."""
    done = session(
        base,
        """
        def test_it(tmp_path):
            one, three = good("1"), good("3")
            for name, text in {"a": one, "b": one, "c": good("2"), "killed": three}.items():
                (tmp_path / name).write_bytes(text)
            lines = three.splitlines(keepends=True)
            for count in range(1, len(lines)):
                (tmp_path / f"killed{count}").write_bytes(b"".join(lines[:count]))
            (tmp_path / "bad").write_bytes(records.seeded(bad("4")))
            Record()
        """,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "records: 9 kept, 9 launches, 39 lines; both judges accept 8 and reject 1; 1 were made to be rejected"
        in done.stdout
    )


def test_judges_that_differ_fail_the_session(base: Path) -> None:
    """Also over a record that was made to be rejected, and over the line alone."""
    done = session(
        base,
        """
        def test_it(tmp_path):
            records.judge = lambda text: Judgement(6 if b"1" * 32 in text else 2, "accepted")
            (tmp_path / "a").write_bytes(good("1"))
            (tmp_path / "b").write_bytes(good("2"))
            (tmp_path / "c").write_bytes(records.seeded(bad("3")))
        """,
    )
    assert done.returncode == 1 and "1 passed" in done.stdout, done.stdout + done.stderr
    assert "/a: " not in done.stdout
    assert re.search(r"/b: .* offline says line 2, accepted \(accepted\); TLC says line 6, accepted", done.stdout)
    assert "offline says line 2, accepted (accepted); TLC says line 5, effect" in done.stdout


def test_without_a_judge_the_session_fails(base: Path) -> None:
    """No Java is no verdict; and where nothing is left there is nothing to judge."""
    leaves = 'def test_it(tmp_path): (tmp_path / "a").write_bytes(good("1"))'
    done = session(base, leaves, NUCLEUS_JAVA="/nonexistent/java")
    assert done.returncode == 1 and "not judged: no Java at /nonexistent/java" in done.stdout, done.stdout
    done = session(base, "def test_it(): pass", NUCLEUS_JAVA="/nonexistent/java")
    assert done.returncode == 0 and "records" not in done.stdout, done.stdout


REFUSED = """
from nucleus_gvisor.model.errors import BadRequest
from nucleus_gvisor.runtime import GVisorRuntime, OciBundle
try:
    GVisorRuntime.searching().spawn("..", OciBundle.build(["true"]))
except BadRequest as error:
    assert error.record.path is None and error.record.lines
"""


def test_what_another_user_has_in_memory_is_kept(mode: Mode) -> None:
    """A launch that is refused before anything is on disk leaves its record all the same, in each kind of process."""
    before = set((mode.app / DATA).glob("*.ndjson"))
    done = mode.run([mode.python, "-W", "error", "-c", REFUSED])
    assert done.returncode == 0, done.stderr
    (left,) = set((mode.app / DATA).glob("*.ndjson")) - before
    assert b'"action":"FailRequest"' in left.read_bytes()


def test_a_launch_is_found_by_its_bytes(base: Path) -> None:
    """Whatever the file is called."""
    text = text_of(launch(container="found").records)
    (base / "x").write_bytes(text)
    (base / "x").unlink()
    assert text.startswith(records.FIRST)
    spool = Path(os.environ[records.SPOOL]).read_text()
    assert '\\"container\\":\\"found\\"' in spool
