"""Ordinary programs in the default guest: each does there what it does on any machine."""

import json
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import PLACES, Release, release_of
from tests.support.modes import NAMES, Mode
from tests.support.pins import pin_of

pytestmark = [pytest.mark.real, pytest.mark.slow]

PYTHON = {
    "tempfile": "import tempfile; tempfile.NamedTemporaryFile().write(b'x')",
    "getpass": "import getpass; print(getpass.getuser())",
    "home": """
import os, pwd
assert os.path.expanduser("~") == pwd.getpwuid(os.getuid()).pw_dir == os.environ["HOME"]
open(os.path.expanduser("~/f"), "w")
""",
    "localhost": """
import socket, threading
server = socket.create_server(("localhost", 0))
threading.Thread(target=lambda: server.accept()[0].sendall(b"hi")).start()
assert socket.create_connection(("localhost", server.getsockname()[1])).recv(2) == b"hi"
""",
    "web server": """
import http.server, threading, urllib.request
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
assert urllib.request.urlopen(f"http://localhost:{server.server_port}/").status == 200
""",
    "own name": "import socket; assert socket.gethostbyname(socket.gethostname()).startswith('127.')",
    "Unix socket": "import socket; socket.socket(socket.AF_UNIX).bind('socket')",
    "services": "import socket; assert socket.getservbyname('https') == 443",
    "fork": "import multiprocessing as m; assert m.get_context('fork').Pool(2).map(abs, [-1, 2]) == [1, 2]",
    "lock": "import multiprocessing as m; m.Lock().acquire(); assert m.Value('i', 3).value == 3",
    "shared memory": "from multiprocessing.shared_memory import SharedMemory as S; S(create=True, size=9).unlink()",
    "asyncio": "import asyncio; asyncio.run(asyncio.create_subprocess_exec('true'))",
    "sqlite": """
import sqlite3
base = sqlite3.connect("base")
base.execute("pragma journal_mode=wal"); base.execute("create table t(a)")
""",
    "certificates": "import ssl; assert ssl.create_default_context().get_ca_certs()",
    "time zone": "import zoneinfo; zoneinfo.ZoneInfo('Europe/Paris')",
    "locale": "import locale; locale.setlocale(locale.LC_ALL, 'C.UTF-8')",
    "threads": "import threading; [threading.Thread(target=int).start() for _ in range(20)]",
    "signals": "import os, signal; signal.signal(10, lambda *_: print(1)); os.kill(os.getpid(), 10)",
    "pseudo terminal": "import pty; assert pty.spawn(['tty']) == 0",
    "mmap": "import mmap; mmap.mmap(-1, 4096).write(b'x')",
    "inotify": "import ctypes; assert ctypes.CDLL(None).inotify_init() >= 0",
    "numpy": "import numpy; assert numpy.linalg.det(numpy.eye(9)) == 1",
    "pandas": """
import pandas
pandas.DataFrame({"a": [1, 2]}).to_csv("frame.csv")
assert pandas.read_csv("frame.csv").a.sum() == 3
""",
    "matplotlib": """
import matplotlib; matplotlib.use("Agg")
import matplotlib.pyplot as plot
plot.plot([1, 2]); plot.title("title"); plot.savefig("plot.png")
""",
    "flask": """
import flask
app = flask.Flask("x"); app.route("/")(lambda: "hello")
assert app.test_client().get("/").text == "hello"
""",
}  # fmt: skip
"""What python3 runs."""

WHEEL = """
import zipfile
with zipfile.ZipFile("hello-1-py3-none-any.whl", "w") as wheel:
    wheel.writestr("hello.py", "")
    for name, text in (
        ("METADATA", "Metadata-Version: 2.1\\nName: hello\\nVersion: 1\\n"),
        ("WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"),
        ("RECORD", ""),
    ):
        wheel.writestr(f"hello-1.dist-info/{name}", text)
"""
MAIN = """
import multiprocessing as m
if __name__ == "__main__":
    with m.get_context("spawn").Pool(2) as pool, m.Manager() as manager:
        assert pool.map(abs, [-1, 2]) == [1, 2]
        assert list(manager.list([1])) == [1]
"""
CLASS = 'class A { public static void main(String[] a) { System.out.println(System.getProperty("user.home")); } }'

SHELL = {
    "working directory": "echo x >out.csv && cat out.csv",
    "names": 'test "$(id -un) $(id -gn)" = "$WHO $WHO" && getent hosts "$(hostname)"',
    "spawn and manager": f"cat >main.py <<'.'\n{MAIN}.\npython3 main.py",
    "venv": "python3 -m venv --without-pip env && env/bin/python -c ''",
    "pip": f"python3 - <<'.'\n{WHEEL}.\npython3 -m pip install --no-index --target lib ./hello-1-py3-none-any.whl",
    "git": "git init -q repo && cd repo && git config user.email a@b && git config user.name n && echo 1 >f"
    " && git add f && git commit -qm m && git log --oneline",
    "java": f"echo '{CLASS}' >A.java && java A.java",
    "javac": f"echo '{CLASS}' >A.java && javac A.java && java -cp . A",
    "node": "node -e 'require(\"fs\").writeFileSync(\"n\", require(\"os\").userInfo().username)' && test -s n",
    "gcc": "echo 'int main() { return 0; }' >c.c && gcc -g c.c -o c && ./c",
    "g++": "printf '#include <iostream>\\nint main() { std::cout << 1; }' >d.cc && g++ d.cc -o d && ./d",
    "make": "printf 'a:\\n\\techo made >a\\n' >Makefile && make && cat a",
    "gdb": "gdb -batch -ex 'break main' -ex run -ex bt ./c",
    "strace": "strace -o calls true && grep -q execve calls",
    "perl": "perl -MFile::Temp=tempfile -e '($f) = tempfile(); print $f, getpwuid($<)'",
    "sqlite3": "echo 'select 1;' | sqlite3",
    "openssl": "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -keyout key -out crt",
    "ssh-keygen": "ssh-keygen -q -t ed25519 -N '' -f identity",
    "curl": "echo x >f && curl -s file://$PWD/f",
    "apt-config": "apt-config dump APT::Architecture",
    "dpkg": "dpkg --print-architecture",
    "tar": "mkdir -p tree/x && tar czf tree.tgz tree && tar tzf tree.tgz",
    "bash": "bash -lc 'shopt -s extglob; [[ a == @(a|b) ]]; echo $HOME'",
    "mounts": "df . && mount && cat /etc/mtab",
    "script": "script -qc 'echo hi' /dev/null",
    **{name: f"python3 - <<'.'\n{text}\n." for name, text in PYTHON.items()},
}  # fmt: skip
"""What a shell runs, in an order in which some use what others have made."""

DOCKER = {
    "names": SHELL["names"],
    "chown": "touch f && chown 5:6 f && python3 -c 'import os; assert os.stat(\"f\")[4:6] == (5, 6)'",
    "su": 'test "$(su -s /bin/sh user -c whoami)" = user',
    "runuser": 'test "$(runuser -u nobody -- id -u)" = 65534',
    "setuid": "python3 -c 'import os; os.setgid(7); os.setuid(7)'",
    "low port": "python3 -c 'import socket; socket.create_server((\"\", 80))'",
    "chroot": "mkdir root && ! chroot root true && python3 -c 'import os; os.chroot(\"root\")'",
    "pip": SHELL["pip"],
}
"""What takes root, and what Docker lets it do."""


LACKS: Mapping[str, Mapping[str, str]] = {
    "ptrace": {"pseudo terminal": "a read from a terminal's master does not end with the last of its slaves"},
    "systrap": {},
}
"""By a release's platform, what it does for no launcher, and why."""

RUN = """
import json, sys
from nucleus_gvisor.runtime import Sandbox
table, options = json.loads(sys.argv[1])
failed = {}
with Sandbox(**options) as box:
    for name, text in table.items():
        words = ["timeout", "-k", "1", "60", "sh", "-ec", text]
        done = box.exec(words, check=False, env={"WHO": options["user"]})
        if done.returncode:
            failed[name] = [done.returncode, done.stdout[-300:], done.stderr[-300:]]
json.dump(failed, sys.stdout)
"""


def failing(mode: Mode, release: Release, table: Mapping[str, str], user: str, capabilities: str) -> dict[str, object]:
    """Code and last words of those that failed."""
    options = {"runsc": str(release.path), "pin": pin_of(release.path), "user": user, "capabilities": capabilities}
    done = mode.run([mode.python, "-c", RUN, json.dumps([table, options])], timeout=600)
    assert done.returncode == 0, done.stderr
    failed: dict[str, object] = json.loads(done.stdout)
    return failed


def able(table: Mapping[str, str], release: Release) -> dict[str, str]:
    return {name: text for name, text in table.items() if name not in LACKS[release.platform]}


def combinations() -> list[object]:
    """Release, kind of caller, and who the guest's user is: in every run each pair of values, the others a campaign."""
    found: list[object] = []
    for number, name in enumerate(PLACES):
        for turn, caller in enumerate(NAMES):
            for user in ("user", "root"):
                everyday = ((number + turn) % len(NAMES) == 0) == (user == "user")
                found.append(pytest.param(name, caller, user, marks=() if everyday else pytest.mark.campaign))
    return found


@pytest.mark.parametrize(("name", "caller", "user"), combinations())
def test_programs(name: str, caller: str, user: str, modes: Mapping[str, Mode]) -> None:
    """As the guest's ordinary user with no capability, and as its root with what Docker gives it."""
    release = release_of(name)
    table, capabilities = (SHELL, "none") if user == "user" else (DOCKER, "docker")
    assert failing(modes[caller], release, able(table, release), user, capabilities) == {}


@pytest.mark.campaign
@pytest.mark.parametrize(("platform", "name"), [(platform, name) for platform in LACKS for name in LACKS[platform]])
def test_what_a_release_lacks_is_its_own(platform: str, name: str, runsc_old: Path, runsc_new: Path) -> None:
    """Bare runsc fails at the same on the host's own root."""
    path = {"ptrace": runsc_old, "systrap": runsc_new}[platform]
    command = [str(path), f"-platform={platform}", "-network=none", "-ignore-cgroups", "do", "sh", "-ec"]
    text = f"cd /tmp; timeout -k 1 30 sh -ec {shlex.quote({**SHELL, **DOCKER}[name])}; echo well"
    done = subprocess.run(["unshare", "-m", *command, text], capture_output=True, text=True, timeout=120)
    assert "well" not in done.stdout
