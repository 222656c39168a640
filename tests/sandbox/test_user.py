"""Guests with a user of their own: which ids there are, whose files are made on the host, and /dev/shm."""

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus_gvisor.runtime import Unsupported, ids
from tests.conftest import Release
from tests.support.modes import ROOT_MODE, USER_MODE, Mode

pytestmark = pytest.mark.real

WRITES = """
import os, sys
from nucleus_gvisor.runtime import Unsupported, run
runsc, pin, data, user = sys.argv[1:]
script = "echo x >/data/new && cat /data/kept && echo x >/dev/shm/x && echo x >/tmp/x && echo done"
try:
    done = run(["sh", "-c", script], user=int(user), mounts=[f"{data}:/data:rw"], runsc=runsc, pin=pin)
    print(done.stdout + done.stderr, end="")
except Unsupported as error:
    print("refused", error.path, error.observed, error.hint)
"""


def shared(mode: Mode, owner: int) -> Path:
    """A directory that everybody may write to, with a file that only `owner` may read."""
    data = mode.base / "data"
    data.mkdir()
    data.chmod(0o777)
    kept = data / "kept"
    kept.write_text("kept\n")
    kept.chmod(0o600)
    os.chown(kept, owner, owner)
    return data


def granted(mode: Mode, kind: str) -> int:
    """The first subordinate id of the mode's user."""
    lines = Path(f"/etc/sub{kind}").read_text().splitlines()
    return next(int(line.split(":")[1]) for line in lines if line.startswith(f"{mode.account.pw_name}:"))


def writes(mode: Mode, release: Release, data: Path, user: int) -> str:
    pin = hashlib.sha256(release.path.read_bytes()).hexdigest()
    done = mode.run([mode.python, "-c", WRITES, release.path, pin, data, str(user)])
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_files_belong_to_the_guests_user(mode: Mode, release: Release) -> None:
    """As root, a guest's user 1000 is the host's: it makes files, and reads one of its own of mode 0600. As an ordinary
    user it is the thousandth of his subordinate ids.

    Where that id cannot be had, the launch is refused, and says why.
    """
    owner = {ROOT_MODE: 1000, USER_MODE: granted(mode, "uid") + 999 if mode.name == USER_MODE else 0}.get(
        mode.name, mode.account.pw_uid
    )
    data = shared(mode, owner)
    told = writes(mode, release, data, 1000)
    if mode.name in (ROOT_MODE, USER_MODE):
        assert told == "kept\ndone\n"
        assert (data / "new").stat().st_uid == owner
        assert (data / "new").stat().st_gid == (1000 if mode.name == ROOT_MODE else granted(mode, "gid") + 999)
    else:
        assert told.startswith("refused ") and os.fspath(data) in told and "user 1000:1000" in told and "user=0" in told
        assert not (data / "new").exists()


COMMANDS = """
import os, sys
from nucleus_gvisor.runtime import Sandbox, Unsupported
runsc, pin, data = sys.argv[1:]
with Sandbox(mounts=[f"{data}:/data:rw"], runsc=runsc, pin=pin) as box:
    box.exec("sh", "-c", "echo x >/data/root")
    for user in (1000, 70000):
        try:
            print(box.exec("sh", "-c", "echo x >/data/$(id -u); stat -c %u /data/$(id -u)", user=user).stdout, end="")
        except Unsupported as error:
            print("refused", error.observed)
    print(next(line.evidence["ids"] for line in box.record.lines if line.action.startswith("Confine")))
"""


def test_commands_of_other_users(mode: Mode, runsc_new: Path) -> None:
    """The same for each command of a living sandbox: what its files could not belong to is refused by name."""
    data = shared(mode, mode.account.pw_uid)
    pin = hashlib.sha256(runsc_new.read_bytes()).hexdigest()
    done = mode.run([mode.python, "-c", COMMANDS, runsc_new, pin, data])
    refused = "refused user {0}:{0}, which the launch's user namespace does not have"
    assert done.stdout.splitlines() == {
        ROOT_MODE: ["1000", "70000", "all"],
        USER_MODE: ["1000", refused.format(70000), "subordinate"],
    }.get(mode.name, [refused.format(1000), refused.format(70000), "all"]), done.stderr
    assert (data / "root").stat().st_uid == mode.account.pw_uid


TOOLS = """
import os, sys
from nucleus_gvisor.model.errors import StepFailed
from nucleus_gvisor.runtime import Unsupported, ids, run
runsc, data, broken = sys.argv[1:]
exec(broken)
try:
    run(["touch", "/data/x"], user=1000, mounts=[f"{data}:/data:rw"], runsc=runsc)
except (StepFailed, Unsupported) as error:
    print(error.observed, error.expected, error.hint)
"""


@pytest.mark.parametrize(
    "broken",
    [
        "ids.FILES = {'uid': '/none', 'gid': '/etc/subgid'}",
        "ids.TOOLS = {'uid': '/none', 'gid': '/usr/bin/newgidmap'}",
        "ids.TOOLS = {'uid': '/usr/bin/newuidmap', 'gid': '/usr/bin/false'}",
        "ids.TOOLS, ids.SECONDS = {'uid': '/usr/bin/yes', 'gid': '/usr/bin/newgidmap'}, 0.01",
    ],
)
def test_subordinate_ids_that_cannot_be_had(modes: dict[str, Mode], runsc_new: Path, broken: str) -> None:
    """Without a grant or a tool, or with one that fails, or does not end, the launch is refused; nothing is left."""
    mode = modes[USER_MODE]
    data = shared(mode, mode.account.pw_uid)
    done = mode.run([mode.python, "-c", TOOLS, runsc_new, data, broken])
    assert "/etc/subuid" in done.stdout, done.stderr
    assert ("no map by /usr/bin/false" if "false" in broken else "user 1000:1000") in done.stdout


def test_ids_with_gaps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A namespace may have 0 and 1000 and nothing between: each id is one that it has, or not."""
    for kind in ids.KINDS:
        (tmp_path / f"{kind}_map").write_text("0 0 1\n1000 1000 5\n")
    found = {kind: ids.held(kind, os.fspath(tmp_path)) for kind in ids.KINDS}
    assert found["uid"] == [range(1), range(1000, 1005)]
    monkeypatch.setattr(ids, "held", lambda kind: found[kind])
    owners = ids.Owners("all", None, "/data")
    owners.judge(1004, 1000)
    for user in ((999, 1000), (1000, 1005)):
        with pytest.raises(Unsupported, match="files could belong to"):
            owners.judge(*user)


@given(st.binary(max_size=80))
def test_any_grant(text: bytes) -> None:
    """Whatever lies in /etc/subuid: numbers that are some, or nothing."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(text + b"\nuser:100:5\nother:7:7\n1000:5:x\nuser:200:0\n")
        file.flush()
        found = ids._granted(file.name, {b"user", b"1000"})
    assert (100, 5) in found and all(count > 0 for _, count in found) and (7, 7) not in found


def test_files_of_the_guests_root_belong_to_the_caller(mode: Mode, release: Release) -> None:
    """So it is in any case."""
    data = shared(mode, mode.account.pw_uid)
    assert writes(mode, release, data, 0) == "kept\ndone\n"
    assert (data / "new").stat().st_uid == mode.account.pw_uid


@pytest.mark.parametrize("user", [0, 1000])
def test_shared_memory_is_everybodys(mode: Mode, release: Release, user: int) -> None:
    """Without anything writable of the host any user will do, and /dev/shm is there for it."""
    done = mode.cli("run", "--runsc", release.path, "--pin", hashlib.sha256(release.path.read_bytes()).hexdigest(),
                    "--user", f"{user}", "--", "sh", "-c", "echo x >/dev/shm/x && cat /dev/shm/x")  # fmt: skip
    assert (done.stdout, done.returncode) == ("x\n", 0), done.stderr
