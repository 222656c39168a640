"""A launcher as most callers write it, and the driver that lets it be judged. The example to copy for another one.

The launcher is `launch`: it runs what lies at the path, as it is, from where it is, unconfined. The driver below it is
all that the harness needs: the launcher has one step that does anything, so the others do nothing, and only what it
really shows is observed. The environment's twins come from `world`; what they cannot do to this launcher is said.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from nucleus_gvisor.model.conformance import Refused, Unsupported
from nucleus_gvisor.model.facts import Facts
from tests.conformance.world import CONTAINER, Site, World, digest


def launch(runsc: Path, bundle: Path) -> subprocess.Popen[bytes]:
    """The second launcher, whole."""
    argv = [str(runsc), "--network", "none", "run", "--bundle", str(bundle), CONTAINER]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class PlainDriver:
    """`launch`, to be judged."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._process: subprocess.Popen[bytes] | None = None

    def reset(self, facts: Facts) -> None:
        self.close()
        self._world, self._guest = World(self._site, self._site.standin, facts), "none"

    def fire(self, action: str) -> None:
        if action == "Exec":
            try:
                self._process = launch(self._world.path, self._world.bundle)
            except OSError as error:
                raise Refused(str(error)) from error
        elif action == "GuestStarts" and self._process is not None:
            out, _ = self._process.communicate(b".", timeout=10)
            self._guest = "running" if out else "none"

    def disturb(self, action: str) -> None:
        if action not in ("SwapBinary", "RemoveBinary", "OtherRelease", "SpoilBundle", "Impostor"):
            raise Unsupported(f"{action} does nothing to a launcher that has no such thing")
        self._world.strike(action)

    def observe(self) -> Mapping[str, object]:
        world = self._world.look()
        seen = {name: world[name] for name in ("path", "pin", "bundle", "fit")} | {"guest": self._guest}
        if self._process is None:
            return seen | {"image": "none", "cause": "none"}  # it never says that it failed
        if self._guest != "none":
            return seen
        return seen | {"image": self._image(self._process.pid), "confined": "none", "proved": False}

    def _image(self, pid: int) -> str:
        try:
            return "trusted" if digest(f"/proc/{pid}/exe") == self._world.digest else "rewritten"
        except OSError:  # the stand-in would wait: something else ran, and is gone
            return "rewritten"

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
            self._world.close()
