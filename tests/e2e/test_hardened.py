"""A service as systemd hardens it: what a launch says where the kernel lets it have no /proc of its own."""

import pytest

from tests.conftest import Release
from tests.e2e.launching import Caller
from tests.support.modes import Mode

HARDENED = 'mount --rbind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec "$@"'
LIBRARY = """
import sys
from nucleus_gvisor.runtime import Error, Sandbox, run
for start in (lambda: run(["echo", "ran"], **options).stdout, lambda: Sandbox(**options)):
    try:
        print(start())
    except Error as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("way", ["library", "command line"])
def test_the_cause_is_told(modes: dict[str, Mode], release: Release, way: str) -> None:
    """The older release mounts a proc, and is told from a guest that failed: with the cause, and how to mend it."""
    caller = Caller(modes["user"], release.path)
    inside = Caller(modes.get("userns", modes["user"]), release.path)
    words = ["unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-c", HARDENED, "sh", caller.mode.python]
    if way == "library":
        options = f"options = {{'runsc': {str(release.path)!r}, 'pin': {inside.pin!r}}}\n"
        done = caller.mode.run([*words, "-c", options + LIBRARY], timeout=120)
        said = done.stdout
    else:
        done = caller.mode.run([*words, *inside.arguments(command=["echo", "ran"])], timeout=120)
        said = done.stdout + done.stderr
    if release.platform == "systrap":  # since 2024 none is mounted
        assert "ran" in said and "StartFailed" not in said, done
        return
    line = said.splitlines()[-1]
    assert "mounting proc: operation not permitted; parts of /proc are covered or read-only (/proc/sys" in line, done
    assert "hint: let this process see a whole /proc" in line and "memfd" not in line
