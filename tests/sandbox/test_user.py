"""Guests with a user of their own: which ids there are, whose files are made on the host, and /dev/shm."""

import hashlib
import os
from pathlib import Path

import pytest

from tests.conftest import Release
from tests.support.modes import ROOT_MODE, Mode

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


def writes(mode: Mode, release: Release, data: Path, user: int) -> str:
    pin = hashlib.sha256(release.path.read_bytes()).hexdigest()
    done = mode.run([mode.python, "-c", WRITES, release.path, pin, data, str(user)])
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_files_belong_to_the_guests_user(mode: Mode, release: Release) -> None:
    """As root, a guest's user 1000 is the host's: it makes files, and reads one of its own of mode 0600.

    Where that id cannot be had, the launch is refused, and says why.
    """
    data = shared(mode, 1000 if mode.name == ROOT_MODE else mode.account.pw_uid)
    told = writes(mode, release, data, 1000)
    if mode.name == ROOT_MODE:
        assert told == "kept\ndone\n"
        assert (data / "new").stat().st_uid == (data / "new").stat().st_gid == 1000
    else:
        assert told.startswith("refused ") and os.fspath(data) in told and "user 1000:1000" in told and "user=0" in told
        assert not (data / "new").exists()


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
