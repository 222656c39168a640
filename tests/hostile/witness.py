"""Where executions of a probe, and processes that a test cannot trust with its standard output, tell what they saw."""

import json
import select
import socket
import time
from collections.abc import Callable
from typing import Any

Report = dict[str, Any]
"""What one execution of the probe told; see probes/probe.c."""


class Witness:
    """The end of the socket that every execution of a probe reports to.

    No thread reads it: a process with several launches in another way. Reports wait in the kernel.
    """

    def __init__(self, listening: socket.socket | None = None) -> None:
        """`listening` is a socket that another process has made.

        Of the loopback's: a Unix socket, abstract or not, is out of a confined probe's reach.
        """
        self._socket = listening or socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port: int = self._socket.getsockname()[1]
        self._kept: list[Report] = []

    def fileno(self) -> int:
        """The listening socket's descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _accept(self, timeout: float) -> bool:
        if not select.select([self._socket], [], [], timeout)[0]:
            return False
        link, _ = self._socket.accept()
        with link, link.makefile("rb") as file:
            link.settimeout(10)
            text = file.read()
        try:
            self._kept.append(json.loads(text))
        except ValueError:
            self._kept.append({"torn": text.decode(errors="replace")})  # it was killed while it told
        return True

    def reports(self) -> list[Report]:
        """What came since the last call, in order."""
        while self._accept(0):
            pass
        taken, self._kept = self._kept, []
        return taken

    def wait(self, wanted: Callable[[Report], bool], *, count: int = 1, timeout: float = 20) -> list[Report]:
        """The first `count` reports that are `wanted`; they and all before stay for `reports`."""
        end = time.monotonic() + timeout
        while len(found := [report for report in self._kept if wanted(report)]) < count:
            assert self._accept(max(0, end - time.monotonic())), f"{len(found)} of {count} came: {self._kept}"
        return found


def is_run(report: Report) -> bool:
    """Is it an execution as a sandbox, not one that was only asked for its version and flags, or tried."""
    return "--bundle" in report.get("argv", ()) and "create" not in report["argv"]
