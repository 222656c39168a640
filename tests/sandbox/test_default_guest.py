"""What a guest finds: its own directories, an /etc of its own, and nothing of the host that was not meant."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import BadArgument, BadBundle, GuestFailed, Refused, SandboxGone, TimeoutExpired, run
from nucleus_gvisor.runtime.bundle import HOST_DIRECTORIES, Mount
from tests.sandbox.conftest import MakeSandbox, Options
from tests.support import places

pytestmark = pytest.mark.real

OWNERS = """
import os, stat, sys
for name in sys.argv[1:]:
    status = os.stat(name)
    print(name, oct(stat.S_IMODE(status.st_mode)), status.st_uid, len(os.listdir(name)))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that only we can change."""
    with places.private_directory() as path:
        yield path


def test_directories_of_its_own(make: MakeSandbox) -> None:
    """Where it starts and where it is at home are empty, private, and the guest's to write; its /etc is not."""
    box = make(user="user")
    said = box.exec("python3", "-c", OWNERS, "/workspace", "/home/user", "/dev/shm").stdout
    assert said == "/workspace 0o1777 0 0\n/home/user 0o700 1000 0\n/dev/shm 0o1777 0 0\n"
    assert box.exec("sh", "-c", "pwd; touch here ~/there /dev/shm/x /tmp/x").stdout == "/workspace\n"
    with pytest.raises(GuestFailed, match=r"Read-only|Permission"):
        box.exec("sh", "-c", "echo x >>/etc/hosts")
    assert box.exec("touch", "/workspace/other", user=7).stdout == ""


def test_another_directory_to_start_in(options: Options) -> None:
    """It is the guest's own too, unless something is mounted there."""
    done = run(["sh", "-c", "touch x; pwd; ls /"], cwd="/srv/job", **options)
    assert done.stdout.startswith("/srv/job\n")
    assert "workspace" not in done.stdout
    done = run(["sh", "-c", "touch x"], cwd="/usr", **options)
    assert done.returncode == 1


def test_a_directory_that_is_there_already(options: Options) -> None:
    """By a link of the host's, and in what is generated: it is as it was; what is not there is refused."""
    done = run(["sh", "-c", "ls | grep -x sh"], cwd="/bin", **options)
    assert done.stdout == "sh\n", done.stderr
    done = run(["sh", "-c", "cat passwd; cd ssl && pwd"], cwd="/etc", **options)
    assert done.stdout.startswith("root:x:0:0:") and done.stdout.endswith("/etc/ssl\n")
    assert run(["pwd"], cwd="/etc/pam.d", **options).stdout == "/etc/pam.d\n"
    for cwd in ("/etc/none", "/etc/passwd", "/etc/localtime"):
        with pytest.raises(BadBundle, match=f"no working directory in the guest: {cwd}"):
            run(["true"], cwd=cwd, **options)
    with pytest.raises(BadArgument, match=r"process\.cwd refused.*names of at most 255 bytes"):
        run(["true"], cwd="/" + "n" * 256, **options)


def test_a_home_that_nobody_names(make: MakeSandbox) -> None:
    """Without the variable it is the user's own all the same; a user that is not in passwd has nobody else's."""
    box = make(env={"HOME": None})
    assert box.exec("sh", "-c", "touch ~/x && echo ~").stdout == "/root\n"
    assert make().exec("sh", "-c", "echo $HOME", user=7).stdout == "/\n"


def test_who_a_command_is(make: MakeSandbox) -> None:
    """A name is the guest's own; another user's HOME comes along unless the caller has said what it is."""
    box = make()
    script = "echo $(id -un) $(id -gn) $HOME"
    assert box.exec("sh", "-c", script).stdout == "root root /root\n"
    assert box.exec("sh", "-c", script, user="user").stdout == "user user /home/user\n"
    assert box.exec("sh", "-c", script, user="nobody:users").stdout == "nobody users /nonexistent\n"
    assert box.exec("sh", "-c", script, user=1000, env={"HOME": "/tmp"}).stdout == "user user /tmp\n"
    with pytest.raises(BadArgument, match="no user 'nonesuch' in the guest"):
        box.exec("true", user="nonesuch")


def test_a_bare_guest(options: Options) -> None:
    """Nothing is made for it, and it starts in its root."""
    done = run(["python3", "-c", "import os; print(os.getcwd(), *sorted(os.listdir('/')))"], etc="none", **options)
    where, *names = done.stdout.split()
    assert where == "/"
    assert not {"workspace", "root", "home"} & set(names)


def test_links_into_the_programs(options: Options) -> None:
    """Where the host's /bin is a link, the guest's is: unless something is mounted below it, which then has a place."""
    links = {name: os.path.realpath(name) for name in HOST_DIRECTORIES if os.path.islink(name)}
    ask = "import os, sys; print(*map(os.readlink, sys.argv[1:]))"
    assert run(["python3", "-c", ask, *links], **options).stdout.split() == list(links.values())


def test_the_callers_own_files_of_etc(options: Options, folder: Path) -> None:
    """A mount below /etc takes the place of what is generated there; one at /etc, of all of it."""
    (folder / "hosts").write_text("127.0.0.9 mine\n")
    done = run(["sh", "-c", "cat /etc/hosts; id -un"], mounts=[f"{folder}/hosts:/etc/hosts"], **options)
    assert done.stdout == "127.0.0.9 mine\nroot\n"
    assert run(["sh", "-c", "cat /etc/*"], mounts=[f"{folder}:/etc"], **options).stdout == "127.0.0.9 mine\n"


def test_what_a_root_lacks(options: Options, folder: Path) -> None:
    """Files of names that are not there, or are empty as engines leave them, are there for the guest; the root's own
    stay, and in the directory nothing is made."""
    (folder / "etc").mkdir()
    (folder / "etc/passwd").write_text("app:x:1001:1001::/srv:/bin/sh\n")
    (folder / "etc/hosts").touch()
    mounts = [f"{os.path.realpath(name)}:{name}" for name in HOST_DIRECTORIES]
    ask = "import getpass, socket; print(getpass.getuser(), socket.gethostbyname('localhost'), socket.gethostname())"
    for writable in (False, "memory"):
        done = run(["python3", "-c", ask], rootfs=folder, mounts=mounts, user="app", writable=writable, **options)
        assert done.stdout == "app 127.0.0.1 gvisor\n", done.stderr
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["etc", "etc/hosts", "etc/passwd"]
    assert (folder / "etc/hosts").read_bytes() == b""
    done = run(["sh", "-c", "cat /etc/hosts /etc/hostname"], rootfs=folder, mounts=mounts, etc="none", **options)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("make_source", "what"),
    [
        (lambda _: "/", "all of it"),
        (lambda _: "/proc", "all of it"),
        (lambda _: "/var/run", "all of it"),
        (lambda _: "/sys/kernel", "the kernel's own files"),
        (lambda _: "/dev/null", "the kernel's own files"),
        (lambda folder: folder / "link", "all of it"),
        (lambda folder: folder / "socket", "a socket"),
    ],
    ids=["root", "proc", "run by a link", "below sys", "a device", "a link of the caller's", "a socket"],
)
def test_the_host_is_not_given_away(
    new_options: Options, folder: Path, make_source: Callable[[Path], object], what: str
) -> None:
    """Not by its name, and not by a link that leads there."""
    (folder / "link").symlink_to("/")
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(os.fspath(folder / "socket"))
    with pytest.raises(Refused, match=what):
        run(["true"], mounts=[f"{make_source(folder)}:/mnt"], **new_options)


def test_what_is_meant_is_given(new_options: Options) -> None:
    """Whoever says so has it."""
    for mount in ("/proc/version:/mnt:ro,meant", Mount(source="/proc/version", target="/mnt", meant=True)):
        assert run(["cat", "/mnt"], mounts=[mount], **new_options).stdout == Path("/proc/version").read_text()


def test_the_record_tells_where_a_link_led(new_options: Options, folder: Path) -> None:
    """By what the caller named."""
    (folder / "data").mkdir()
    (folder / "link").symlink_to("data")
    done = run(["true"], mounts=[f"{folder}/link:/mnt"], **new_options)
    assert done.record.path is not None
    lines = [json.loads(line) for line in done.record.path.read_text().splitlines()]
    (led,) = (line["evidence"]["led"] for line in lines if line["action"] == "Prepare")
    assert led[f"{folder}/link"] == f"{folder}/data"


def test_a_tmpfs_has_its_size_and_its_mode(options: Options) -> None:
    """What does not fit is ENOSPC in the guest."""
    script = "dd if=/dev/zero of=/mnt/x bs=1M count=8; python3 -c 'import os; print(oct(os.stat(\"/mnt\").st_mode))'"
    done = run(["sh", "-c", script], mounts=["tmpfs:/mnt:size=4M,mode=0750"], **options)
    assert "No space left" in done.stderr
    assert done.stdout == "0o40750\n"


def test_capabilities(options: Options) -> None:
    """Those that were asked for are the guest's; none of them reaches what is mounted from the host."""
    ask = "grep -h Cap /proc/self/status; touch f; chown 5 f && echo chowned; touch /usr/x"
    done = run(["sh", "-c", ask], **options)
    assert {line.split()[1] for line in done.stdout.splitlines()} == {"0" * 16}
    done = run(["sh", "-c", ask], capabilities="docker", **options)
    assert "chowned" in done.stdout
    assert "CapEff:\t00000000a80405fb" in done.stdout
    assert "Read-only" in done.stderr
    done = run(["sh", "-c", ask], capabilities=["chown", "CAP_KILL"], **options)
    assert "CapEff:\t0000000000000021" in done.stdout
    done = run(["sh", "-c", ask], capabilities="docker", user="user", **options)
    assert "CapEff:\t0000000000000000" in done.stdout
    assert "CapBnd:\t00000000a80405fb" in done.stdout


def test_who_may_be_anybody_ends_with_its_sandbox(make: MakeSandbox) -> None:
    """A command out of time that can pass for another user is not looked for: the sandbox ends, and says so."""
    box = make(capabilities="docker")
    with pytest.raises(TimeoutExpired):
        box.exec("sleep", "600", timeout=0.5)
    with pytest.raises(SandboxGone):
        box.exec("true")
    box = make(capabilities=["CHOWN", "NET_BIND_SERVICE"])
    with pytest.raises(TimeoutExpired):
        box.exec("sleep", "600", timeout=0.5)
    assert box.exec("echo", "lives").stdout == "lives\n"
