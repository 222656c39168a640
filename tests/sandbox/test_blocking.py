"""What an application has done to sockets, and to Python's waiting calls, is no matter of ours."""

import hashlib
import subprocess
import sys

import pytest

from tests.conftest import Release
from tests.sandbox.conftest import Options
from tests.support.modes import Mode

WORK = """
import asyncio, os, socket, sys, threading
from nucleus_gvisor.runtime import AsyncSandbox, Sandbox, arun, run
socket.setdefaulttimeout(float(sys.argv[1]))
own = {"runsc": sys.argv[2], "pin": sys.argv[3]}
def sync():
    told = [run(["echo", "run"], **own).stdout.strip()]
    with Sandbox(**own) as box:
        told += [box.exec("echo", "exec").stdout.strip(), box.exec("cat", input="fed").stdout]
        box.write_file("/tmp/file", "file")
        told += [box.read_file("/tmp/file").decode(), str(len(box.ps()) > 0)]
    return told
async def asynchronous():
    told = [(await arun(["echo", "run"], **own)).stdout.strip()]
    async with AsyncSandbox(**own) as box:
        told += [(await box.exec("echo", "exec")).stdout.strip(), (await box.exec("cat", input="fed")).stdout]
        await box.write_file("/tmp/file", "file")
        told += [(await box.read_file("/tmp/file")).decode(), str(len(await box.ps()) > 0)]
    return told
print(*sync())
stop = threading.Event()
threading.Thread(target=stop.wait).start()
print(*sync())
stop.set()
print(*asyncio.run(asynchronous()))
"""
TOLD = "run exec fed file True\n"

PATCHED = """
from gevent import monkey; monkey.patch_all()
import gevent, os, socket, subprocess, sys, traceback
from nucleus_gvisor.runtime import Sandbox, TimeoutExpired, run
own = {"runsc": sys.argv[1], "runtime_dir": sys.argv[2]}
def work():
    told = [run(["echo", "run"], **own).stdout.strip()]
    with Sandbox(**own) as box:
        told += [box.exec("echo", "exec").stdout.strip(), box.exec("cat", input="fed").stdout]
        with box.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            told.append(process.communicate(b"popen")[0].decode())
        try:
            box.exec("sleep", "60", timeout=0.1)
        except TimeoutExpired:
            told.append("timeout")
        box.write_file("/tmp/file", "file")
        told.append(box.read_file("/tmp/file").decode())
    return told
print(*work())
theirs, ours = os.pipe()
waits = gevent.spawn(run, ["cat"], stdin=theirs, **own)
jobs = [gevent.spawn(work) for _ in range(2)]  # at once, and beside one that waits
gevent.joinall(jobs, raise_error=True)
print(*(" ".join(job.value) for job in jobs), waits.dead, sep="\\n")
os.write(ours, b"more")
os.close(ours)
waits.join()
print(waits.value.stdout)
"""


@pytest.mark.parametrize("seconds", ["0", "30"])
def test_a_default_timeout_of_sockets(mode: Mode, release: Release, seconds: str) -> None:
    """Whatever the application has set for its own sockets: with one thread, with several, and on asyncio."""
    pin = hashlib.sha256(release.path.read_bytes()).hexdigest()  # root's own files belong to nobody in a namespace
    done = mode.run([mode.python, "-c", WORK, seconds, release.path, pin], timeout=600)
    assert (done.stdout, done.returncode) == (TOLD * 3, 0), done.stderr


def test_under_gevent(options: Options) -> None:
    """Its waiting calls stand in place of Python's: what waits for a guest lets the others go on."""
    argv = [sys.executable, "-c", PATCHED, options["runsc"], options["runtime_dir"]]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
    line = "run exec fed popen timeout file\n"
    assert (done.stdout, done.returncode) == (f"{line * 3}False\nmore\n", 0), done.stderr
