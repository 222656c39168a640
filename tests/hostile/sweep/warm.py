"""A process that has imported everything, and forks one launch after the other under the sweep's trap.

Started by `sweep.Worker` in a bare interpreter with a fixed hash seed, so that a launch makes the same calls each time.
Its launches become the mode's user. It reads one JSON request a line, and writes one JSON answer a line.
"""

import ast
import gc
import json
import os
import platform
import shutil
import socket
import stat
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nucleus_gvisor.runtime import _child
from nucleus_gvisor.runtime import _linux as linux
from tests.hostile.sweep import trap
from tests.hostile.sweep.judge import Expected, Seen, World, violations
from tests.hostile.sweep.trap import Fault, Supervisor, Traced
from tests.hostile.witness import Witness
from tests.support.places import mounts_below


class Launcher:
    """Launches by one driver, as one kind of caller, below one directory."""

    def __init__(self, setting: Mapping[str, Any], witness: Witness) -> None:
        """`setting` is what `sweep.Worker` wrote."""
        self._setting, self._witness = setting, witness
        self._given: dict[str, Any] = setting["given"]
        self._base = Path(self._given["artifacts"])
        self._numbers: dict[str, int] = setting["numbers"]
        self._names = {number: name for name, number in self._numbers.items()}
        self._expected = Expected(setting["digest"], frozenset(setting["canaries"]))
        tree = ast.parse(setting["driver"])
        imports: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), "driver", "exec"), {})
        self._driver = compile(tree, "driver", "exec")
        self._world()  # with what that imports
        gc.collect()
        gc.freeze()

    def calls(self) -> dict[str, Any]:
        """All calls of a launch without a fault, in order, with who makes them; and what is wrong with it even so."""
        seen = self._launch(None, everything=True)
        return {"calls": seen.traced.calls, "violations": violations(seen, self._expected)}

    def inject(self, fault: Fault) -> dict[str, Any]:
        """A launch with this fault, and, where it left anything, one without by another process."""
        seen = self._launch(fault)
        if seen.driver is None or seen.after != seen.before:
            seen.fresh = self._launch(None, clean=False)
        found = violations(seen, self._expected)
        more = seen.traced.more
        return {"hit": seen.traced.hit, "more": more, "outcome": seen.outcome, "ran": seen.ran, "violations": found}

    # ---- one launch ----

    def _launch(self, fault: Fault | None, *, everything: bool = False, clean: bool = True) -> Seen:
        if clean and self._base.exists():
            shutil.rmtree(self._base)
        wanted = {trap.MARK, *trap.EXECUTES, *([fault.call] if fault is not None else [])}
        code = trap.program(None if everything else sorted(self._numbers[name] for name in wanted), platform.machine())
        output = os.memfd_create("output")
        before: World = {}
        moments: list[World] = []
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become_driver(code, writer, output)
        os.close(writer)
        number = os.read(reader, 16)
        os.close(reader)
        listener = trap.take_descriptor(pid, int(number), self._numbers["pidfd_getfd"]) if number else -1
        traced = Traced()
        try:
            if listener >= 0:
                supervisor = Supervisor(
                    listener,
                    pid,
                    self._names,
                    os.fsencode(self._base),
                    fault,
                    lambda: moments.append(self._world()),
                )
                traced = supervisor.watch(self._setting["seconds"])
        finally:
            os.close(listener)
            left = self._reap(kill=traced.hung)
        traced.hung = traced.hung or left
        text = os.pread(output, 1 << 16, 0).decode(errors="replace")
        os.close(output)
        last = self._world()
        records = [(path.name, path.read_bytes()) for path in sorted(self._base.glob("records/*"))]
        for name, _ in records:
            (self._base / "records" / name).unlink()
        after = moments[0] if moments else last
        return Seen(fault, traced, text, self._witness.reports(), before, after, last, records)

    def _become_driver(self, code: bytes, writer: int, output: int) -> None:
        """In the forked process: the filter, the caller's rights, and the driver; does not return."""
        try:
            null = os.open("/dev/null", os.O_RDWR)
            for target, fd in enumerate((null, output, output)):
                os.dup2(fd, target)
            os.dup2(writer, 3)
            os.closerange(4, 256)
            os.write(3, b"4")  # the next to be free, which the listener will have
            if os.geteuid():
                linux.no_new_privs()  # root needs not give them up for a filter
            if trap.install(code, self._numbers["seccomp"]) != 4:
                raise AssertionError("the listener has another number")
            os.sched_yield()
            os.closerange(3, 5)
            self._become_caller()
            sys.argv = ["-c", json.dumps({**self._given, "again": True})]
            exec(self._driver, {"__name__": "__main__"})
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _become_caller(self) -> None:
        uid, gid = self._setting["uid"], self._setting["gid"]
        if os.geteuid() != uid:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            linux.set_dumpable()  # setresuid(2) took what execve(2) would have given back
        if self._setting["namespace"]:
            _child.enter_user_namespace(0)
        os.chdir(self._setting["cwd"])
        os.environ.clear()
        os.environ.update(self._setting["env"])

    # ---- what is left ----

    @staticmethod
    def _reap(*, kill: bool) -> bool:
        """Wait for all that came from a launch; was any of it still running."""
        left = False
        end = time.monotonic() + 5
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return left
            if pid == 0:
                if kill or time.monotonic() > end:
                    left = True
                    for task in Path("/proc/self/task").iterdir():
                        for child in (task / "children").read_text().split():
                            os.kill(int(child), 9)
                time.sleep(0.0005)

    def _world(self) -> World:
        """All below the artifact base but records, and the directories that are there to stay; and mounts."""
        found: dict[str, object] = {f"mount on {point}": True for point in mounts_below(self._base.parent)}
        for folder, names, plain in os.walk(self._base):
            for name in (*names, *plain):
                path = os.path.join(folder, name)
                relative = os.path.relpath(path, self._base)
                if relative != "locks" and relative.partition("/")[0] != "records":
                    status = os.lstat(path)
                    found[relative] = f"{stat.filemode(status.st_mode)} uid {status.st_uid}"
        return found


def main(setting: str, listening: int) -> None:
    """Answer requests until standard input ends."""
    trap.adopt_orphans()
    given = json.loads(Path(setting).read_text())
    launcher = Launcher(given, Witness(socket.socket(fileno=listening)))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: Any = launcher.calls() if request is None else launcher.inject(Fault(**request))
        except Exception:
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer), flush=True)
