"""Real launches keep their records within bounds, and say as data where there is none."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import audit
from nucleus_gvisor.runtime.cli import OURS
from nucleus_gvisor.runtime.retention import LEDGER
from tests.e2e.launching import Caller

MANY = """
import sys
from nucleus_gvisor.runtime import run
from nucleus_gvisor.runtime.bounds import RecordBounds
for number in range(4):
    done = run(["true"], runsc=sys.argv[1], pin=sys.argv[2] or None, keep_records=RecordBounds(count=2))
    assert (done.returncode, done.record.achieved, done.record.audit) == (0, "file", "required"), done
done = run(["true"], runsc=sys.argv[1], pin=sys.argv[2] or None, audit="off")
print(done.returncode, done.record.achieved, done.record.path, done.record.problem, len(done.record.lines))
done = run(["true"], runsc=sys.argv[1], pin=sys.argv[2] or None, record="/dev/null", audit="best_effort")
print(done.returncode, done.record.achieved, done.record.path, len(done.record.lines))
"""


def records(caller: Caller) -> list[Path]:
    return sorted(path for path in (caller.mode.base / "records").iterdir() if path.name != LEDGER)


def test_a_service_does_not_fill_its_place(caller: Caller) -> None:
    """Of four launches two records stay, with a list of the others; a caller may go on without any."""
    done = caller.script(MANY)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["0 memory None not asked for: audit is off 6", "0 memory None 6"]
    assert len(records(caller)) == 2
    findings = list(audit.verify([caller.mode.base / "records"]))
    assert [finding.verdict for finding in findings] == ["accepted"] * 3
    assert "removed records" in findings[-1].words


def test_the_command_line_says_what_was_achieved(first: Caller) -> None:
    """Where failures alone reach the bound the launch fails and adds none; without a record it goes on, and says so."""
    for _ in range(2):
        assert first.mode.cli("run", "--runsc", "/nowhere/runsc", "--", "true").returncode == OURS
    words = ["run", "--runsc", os.fspath(first.runsc), "--keep-records", "count=2", "--json"]
    full = first.mode.cli(*words, "--", "true")
    assert full.returncode == OURS and "reach the bounds" in full.stderr and "Traceback" not in full.stderr
    assert json.loads(full.stdout)["error"]["error"] == "RecordsFull" and len(records(first)) == 2
    on = first.mode.cli(*words, "--audit", "best_effort", "--", "true")
    told = json.loads(on.stdout)
    assert (on.returncode, told["requested"]["audit"], told["achieved"]["audit"]) == (0, "best_effort", "memory")
    assert "reach the bounds" in told["record_problem"] and len(records(first)) == 2
    refused = first.mode.cli("run", "--audit", "off", "--record", "x", "--", "true")
    assert refused.returncode == OURS and "record x contradicts audit" in refused.stderr


FILL = """
import sys
from nucleus_gvisor.runtime import run
for number in range(14):
    done = run(["echo", "hi"], runtime_dir=sys.argv[3] + "/base", runsc=sys.argv[1], pin=sys.argv[2] or None)
    assert done.stdout == "hi\\n", done
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_small_file_system_is_not_filled(first: Caller) -> None:
    """More launches than it has room for records: the oldest have gone, and the launches went on."""
    small = first.mode.base / "small"
    small.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k,mode=755", "small", small], check=True)
    try:
        done = first.script(FILL, os.fspath(small))
        assert (done.returncode, done.stderr) == (0, "")
        assert 1 < len(os.listdir(small / "base/records")) < 10
        assert all(finding.verdict == "accepted" for finding in audit.verify([small / "base/records"]))
    finally:
        subprocess.run(["umount", small], check=True)
