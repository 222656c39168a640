"""Users by name: a guest's passwd and group may be anything, and are read as the guest would read them."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus_gvisor.runtime import BadArgument, accounts, etc
from nucleus_gvisor.runtime.accounts import Account, Accounts, Who, of_rootfs

PASSWD = "root:x:0:0::/root:/bin/sh\napp:x:1001:1002:An app:/srv/app:/bin/false\nodd:x:-1:0::/:/\nshort:x:5\n"
GROUP = "root:x:0:\napp:x:1002:\nusers:x:100:app,other\nlogs:x:7:app\n"


@pytest.fixture
def root(base: Path) -> Path:
    (base / "etc").mkdir()
    (base / "etc/passwd").write_text(PASSWD)
    (base / "etc/group").write_text(GROUP)
    return base


def found(root: Path) -> Accounts:
    return of_rootfs(os.fsencode(root))


def test_names(root: Path) -> None:
    """A name brings its group, its supplementary groups and its home; what is given beside it counts instead."""
    known = found(root)
    assert known.find("app") == Who(1001, 1002, (7, 100), "/srv/app")
    assert known.find("app:users") == Who(1001, 100, (7, 100), "/srv/app")
    assert known.find("app:5") == Who(1001, 5, (7, 100), "/srv/app")
    assert known.find("1001") == Who(1001, 1001, (), "/srv/app")
    assert known.find(4) == Who(4, 4, (), "")
    assert known.find((0, 9)) == Who(0, 9, (), "/root")
    assert [user.name for user in known.users] == ["root", "app"]


def test_a_home_that_nothing_names(root: Path) -> None:
    """It is not root's, which nobody else may enter."""
    (root / "etc/passwd").write_bytes(b"app:x:5:5:::/bin/sh\nnul:x:6:6::/\0:/bin/sh\nlast:x:7:7::/l:/bin/sh\n")
    assert [found(root).find(user).directory for user in ("app", "last", 9, 0)] == ["/", "/l", "/", "/root"]
    with pytest.raises(BadArgument, match="app, last"):  # no process can have a NUL in its environment
        found(root).find("nul")


@pytest.mark.parametrize("user", ["nobody", "odd", "short", "app:none", "", " app"])
def test_names_that_are_not_there(root: Path, user: str) -> None:
    """The error names the file, and those that are."""
    with pytest.raises(BadArgument, match="root, app") as caught:
        found(root).find(user)
    assert caught.value.path == os.fsencode(root / "etc/passwd")


def test_a_link_leads_within_the_root(root: Path) -> None:
    """An absolute one too, and one that climbs: the host's own files are never read."""
    (root / "usr").mkdir()
    (root / "etc/passwd").rename(root / "usr/passwd")
    for target in ("/usr/passwd", "../../../../usr/passwd"):
        (root / "etc/passwd").symlink_to(target)
        assert found(root).find("app").uid == 1001
        (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("/etc/hosts")
    assert found(root).users == ()


def test_no_plain_files(root: Path) -> None:
    """A FIFO is not waited for; that, a loop and a vast file are refused when a name is asked for, and only then."""
    path = root / "etc/passwd"
    for make in (
        lambda: os.mkfifo(path),
        lambda: path.mkdir(),
        lambda: path.symlink_to("passwd"),
        lambda: path.write_bytes(b"x" * (accounts.MAX_FILE + 1)),
    ):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        make()
        known = found(root)
        assert known.find(7) == Who(7, 7)
        with pytest.raises(BadArgument, match="cannot be read") as caught:
            known.find("app")
        assert caught.value.hint == "give the user as a number" and "openat2" not in str(caught.value)


def test_no_root_at_all(base: Path) -> None:
    """The launch says so; here there are only numbers."""
    assert found(base / "none").find(3) == Who(3, 3)


@given(st.binary(max_size=400))
def test_any_bytes(text: bytes) -> None:
    """Whatever lies there, names are found or refused, and every number is one that a process can have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "_text", lambda *_: text.decode("utf-8", "replace"))
        known = of_rootfs(b"/")
    for user in known.users:
        assert 0 <= user.uid <= accounts.MAX_ID
        assert 0 <= user.gid <= accounts.MAX_ID


@pytest.mark.parametrize("uid", [0, 1, 1000, 65534])
def test_generated_names_are_what_is_known(uid: int) -> None:
    """The C library finds in the generated files whom `user=` finds by name."""
    tree = etc.generated(uid=uid, gid=uid, hostname="box", resolver=False)
    known = etc.accounts(uid, uid)
    lines = [line.split(":") for line in tree.files["passwd"][1].decode().splitlines()]
    assert [Account(a, int(u), int(g), home, shell) for a, _, u, g, _, home, shell in lines] == list(known.users)
    groups = {line.split(":")[0]: int(line.split(":")[2]) for line in tree.files["group"][1].decode().splitlines()}
    assert groups == {name: number for name, (number, _) in known.groups.items()}
    assert uid in groups.values()
    assert sum(user.uid == uid for user in known.users) == 1
    assert tree.files["shadow"][0] == 0o600


def test_nothing_of_the_hosts_names_is_shown() -> None:
    """No user, name, network or secret of the host's; and what is shown every user of the host may read."""
    tree = etc.generated(uid=0, gid=0, hostname="box", resolver=False)
    assert not {"passwd", "group", "shadow", "hosts", "hostname", "resolv.conf", "ssh", "ssl/private"} & set(
        tree.sources
    )
    assert "resolv.conf" not in tree.files
    for path in tree.sources.values():
        assert os.stat(path).st_mode & 0o004, path
    assert not any(path.startswith("/etc/ssl/private") for path in tree.sources.values())


def test_name_servers_where_they_can_be_asked() -> None:
    """The host's own."""
    tree = etc.generated(uid=0, gid=0, hostname="box", resolver=True)
    assert tree.files["resolv.conf"][1] == Path("/etc/resolv.conf").read_bytes()


def test_what_the_caller_mounts_below_etc_takes_the_place() -> None:
    """Of a file, of a directory and of all that is in it."""
    tree = etc.generated(
        uid=0, gid=0, hostname="box", resolver=False, taken=["hosts", "ssl", "pam.d/su/x", "localtime"]
    )
    names = {*tree.files, *tree.links, *tree.directories, *tree.sources}
    assert not {"hosts", "pam.d/su", "localtime"} & names
    assert not any(name.startswith("ssl") for name in names)
    assert "passwd" in names


def test_hosts() -> None:
    """The guest's own name and localhost are of the loopback."""
    text = etc.names(uid=0, gid=0, hostname="box", resolver=False)["hosts"][1].decode()
    lines = [line.split() for line in text.splitlines()]
    assert [line[0] for line in lines if "localhost" in line] == ["127.0.0.1", "::1"]
    assert [line[0] for line in lines if "box" in line] == ["127.0.1.1"]


@pytest.mark.parametrize("name", ["", "localhost", "a b", "box\n127.0.0.9 other", "a#b", "\t"])
def test_a_name_that_hosts_cannot_have(name: str) -> None:
    """It adds no line, and no other name."""
    text = etc.names(uid=0, gid=0, hostname=name, resolver=False)["hosts"][1].decode()
    assert text == "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


@pytest.mark.parametrize("user", [True, None, 1.5, b"root", (1,), (1, 2, 3), ["root"]])
def test_what_is_no_user(root: Path, user: Any) -> None:
    """It is a mistake of the program's, and said before anything is looked for."""
    with pytest.raises(TypeError, match="user must be"):
        found(root).find(user)


@pytest.mark.parametrize("user", ["4294967295", "1:4294967295", "0" * 11])
def test_numbers_that_no_process_has(root: Path, user: str) -> None:
    """As text."""
    with pytest.raises(BadArgument, match=r"user refused.*numbers from 0 to 4294967294"):
        found(root).find(user)


def test_a_host_with_little_in_etc(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is shown as it is: a plain file as a copy, up to a size; what is not there is left away."""
    monkeypatch.setattr(etc, "TARGET", os.fspath(base / "none"))
    tree = etc.generated(uid=0, gid=0, hostname="box", resolver=True)
    assert not tree.sources and not {"localtime", "timezone", "resolv.conf"} & {*tree.files, *tree.links}
    monkeypatch.setattr(etc, "TARGET", os.fspath(base))
    (base / "localtime").write_bytes(b"TZif")
    (base / "timezone").write_bytes(b"x" * (etc.MAX_FILE + 1))
    os.mkfifo(base / "resolv.conf")
    tree = etc.generated(uid=0, gid=0, hostname="box", resolver=True)
    assert tree.files["localtime"] == (0o644, b"TZif")
    assert not {"timezone", "resolv.conf"} & set(tree.files)
