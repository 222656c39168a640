"""What the sandbox API accepts and refuses, which for Google's arguments is what Google's package does."""

import enum
import inspect
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nucleus_gvisor.model.errors import BadArgument
from nucleus_gvisor.runtime import Error, Mount, NetworkMode, Sandbox, SandboxOptions, dropin
from nucleus_gvisor.runtime.bundle import DEFAULT_ENV, WORKSPACE
from nucleus_gvisor.runtime.request import OwnOptions, Request, request


class TheirMode(str, enum.Enum):  # as that package declares its modes, not as a StrEnum  # noqa: UP042
    """A member of an enumeration of another package."""

    HOST = "host"


class TheirMount(NamedTuple):
    """A mount object of another package."""

    destination: str
    source: str | None = None
    type: str = "bind"
    readonly: bool = False


def mounts(asked: Request) -> list[tuple[str, str, str, bool]]:
    """(target, source, type, read-only) of the mounts asked for."""
    return [(m.target, os.fsdecode(m.source), str(m.type), m.readonly) for m in asked.how["mounts"]]


def test_the_first_arguments_are_googles() -> None:
    """By position, name and default, so that a call written for that package means the same; but for the directory,
    which is a writable one here, and `/` in the class of that package's name."""
    parameters = list(inspect.signature(Sandbox).parameters.values())
    assert [(p.name, p.default) for p in parameters[:6]] == [
        ("runtime_dir", None),
        ("sandbox_id", None),
        ("network", "none"),
        ("env", None),
        ("mounts", None),
        ("working_dir", None),
    ]
    assert inspect.signature(dropin.Sandbox).parameters["working_dir"].default == "/"
    assert [(p.name, p.kind) for p in parameters[6:]] == [
        ("service", inspect.Parameter.KEYWORD_ONLY),
        ("own", inspect.Parameter.VAR_KEYWORD),
    ]
    exec_ = list(inspect.signature(Sandbox.exec).parameters.values())
    assert [p.name for p in exec_[:6]] == ["self", "cmd", "args", "env", "cwd", "timeout"]
    mount = inspect.signature(dropin.Mount).parameters.values()
    assert [(p.name, p.default) for p in mount][1:] == [("source", None), ("type", "bind"), ("readonly", False)]


def test_sandbox_run_and_request_take_the_same_options() -> None:
    """No option is forgotten in one of the places that list them, and Google's have the same defaults in both."""
    judged = list(inspect.signature(request).parameters.values())
    assert sorted(SandboxOptions.__annotations__) == sorted(p.name for p in judged)
    assert list(OwnOptions.__annotations__) == [p.name for p in judged[6:]]
    made = list(inspect.signature(Sandbox).parameters.values())
    assert [(p.name, p.default) for p in made[:6]] == [(p.name, p.default) for p in judged[:6]]


@pytest.mark.parametrize("network", ["host", "HOST", NetworkMode.HOST, TheirMode.HOST])
def test_network_modes(network: Any) -> None:
    """A mode is taken by name in any case, and from any enumeration of strings."""
    assert request(network=network).options.network_mode is NetworkMode.HOST


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (None, {}),
        ([], {}),
        ({"A": "1", "B": ""}, {"A": "1", "B": ""}),
        ({"N": 1}, {"N": "1"}),
        (["A=1", "B=", "A=2=3"], {"A": "2=3", "B": ""}),
        (("A=1",), {"A": "1"}),
        ({"HOME": "/"}, {"HOME": "/"}),
    ],
)
def test_environment(env: Any, expected: dict[str, str]) -> None:
    """Variables come over the default ones, the last of a name counts, and nothing of the caller's own is there."""
    assert request(env=env).env == {**DEFAULT_ENV, **expected}


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/", "/"), ("usr", "/usr"), ("/a/../b/./c//", "/b/c"), ("../..", "/"), ("//x", "/x"), (None, WORKSPACE)],
)
def test_working_directory(path: Any, expected: str) -> None:
    """A relative path is taken from the guest's root, and cannot leave it."""
    assert request(working_dir=path).working_dir == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"destination": "/d", "source": "/usr"}, ("/d", "/usr", "bind", False)),
        ({"destination": "d", "source": "/usr/../usr", "readonly": True}, ("/d", "/usr", "bind", True)),
        ({"destination": "/d", "type": "TMPFS"}, ("/d", "tmpfs", "tmpfs", False)),
        ({"destination": "/d", "type": "proc", "readonly": True}, ("/d", "proc", "proc", False)),
        (TheirMount("/d/../e", "/usr"), ("/e", "/usr", "bind", False)),
        (dropin.Mount.bind("/usr", "/d", True), ("/d", "/usr", "bind", True)),
        (dropin.Mount.tmpfs("/d"), ("/d", "tmpfs", "tmpfs", False)),
        (dropin.Mount("/d", "/usr"), ("/d", "/usr", "bind", False)),
        (Mount(source="/usr", target="/d"), ("/d", "/usr", "bind", True)),
        ({"target": "/d", "source": "/usr"}, ("/d", "/usr", "bind", True)),
        ("/usr:/d:ro", ("/d", "/usr", "bind", True)),
    ],
)
def test_mounts(given: Any, expected: tuple[str, str, str, bool]) -> None:
    """Google's spelling is writable by default, as there; ours is read-only."""
    assert mounts(request(mounts=[given])) == [expected]


def test_relative_sources_are_taken_from_the_current_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As everywhere on the host."""
    monkeypatch.chdir(tmp_path)
    assert mounts(request(mounts=[{"destination": "/d", "source": "x"}]))[0][1] == os.fspath(tmp_path / "x")


def test_mounts_that_are_there_anyway_or_covered_are_left_out() -> None:
    """/proc and /dev are always there, and of two mounts at one place the later counts."""
    given: list[Any] = [
        dropin.Mount.proc("/proc"),
        dropin.Mount.tmpfs("/dev"),
        dropin.Mount.bind("/usr", "/d"),
        "tmpfs:/d",
    ]
    assert mounts(request(mounts=given)) == [("/d", "tmpfs", "tmpfs", False)]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"network": "bridge"}, ValueError, "bridge.*'none', 'host', 'sandbox'"),
        ({"network": 1}, TypeError, "network"),
        ({"network": None}, TypeError, "network"),
        ({"env": ["A"]}, ValueError, "KEY=VALUE: 'A'"),
        ({"env": [1]}, ValueError, "KEY=VALUE: 1"),
        ({"env": {"A=B": "c"}}, ValueError, "A=B"),
        ({"env": "A=B"}, TypeError, "env"),
        ({"env": 1}, TypeError, "env"),
        ({"working_dir": ""}, ValueError, "working directory"),
        ({"working_dir": " "}, ValueError, "working directory"),
        ({"working_dir": 1}, TypeError, "working_dir"),
        ({"working_dir": b"/"}, TypeError, "working_dir"),
        ({"mounts": "tmpfs:/x"}, TypeError, "mounts"),
        ({"mounts": [1]}, TypeError, "Mount"),
        ({"mounts": [{"source": "/usr"}]}, ValueError, "destination"),
        ({"mounts": [{"destination": "/d", "source": "/usr", "options": ["ro"]}]}, ValueError, "options"),
        ({"mounts": [{"destination": " ", "source": "/usr"}]}, ValueError, "destination"),
        ({"mounts": [{"destination": 1, "source": "/usr"}]}, ValueError, "destination"),
        ({"mounts": [{"destination": "/d"}]}, ValueError, "source"),
        ({"mounts": [{"destination": "/d", "source": " "}]}, ValueError, "source"),
        ({"mounts": [{"destination": "/d", "source": "/usr", "type": "nfs"}]}, ValueError, "nfs"),
        ({"mounts": [{"destination": "/d", "source": "/usr", "type": 1}]}, TypeError, "type"),
        ({"user": "nonesuch"}, ValueError, "nonesuch"),
        ({"user": "1:x"}, ValueError, "digits"),
        ({"user": "root:nonesuch"}, ValueError, "no group 'nonesuch'"),
        ({"user": True}, TypeError, "user"),
        ({"capabilities": "everything"}, ValueError, "everything"),
        ({"etc": "host"}, ValueError, "generated, none"),
        ({"user": "\N{ARABIC-INDIC DIGIT ONE}"}, ValueError, "digits"),
        ({"user": 1.5}, TypeError, "user"),
        ({"user": (1, 2, 3)}, TypeError, "user"),
        ({"platform": "xen"}, ValueError, "platform"),
        ({"confinement": "hope"}, ValueError, "confinement"),
        ({"pin": "abc"}, ValueError, "pin"),
    ],
)
def test_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    """Wrong values are a ValueError and wrong types a TypeError, before anything on disk is touched."""
    with pytest.raises(error, match=words):
        request(**options)


def test_bad_arguments_are_both() -> None:
    """What our own judges refuse is a ValueError and an Error of ours."""
    assert issubclass(BadArgument, ValueError)
    assert issubclass(BadArgument, Error)


@pytest.mark.parametrize(
    ("user", "expected"), [(0, (0, 0)), (5, (5, 5)), ((5, 6), (5, 6)), ("5", (5, 5)), ("5:6", (5, 6)), ("5:", (5, 5))]
)
def test_users(user: Any, expected: tuple[int, int]) -> None:
    """A user is a number, a pair, or both in text."""
    assert request(user=user).user == expected


def test_ids() -> None:
    """An id is made where none is given, and another one each time."""
    assert request(sandbox_id="x").sandbox_id == "x"
    first, second = request().sandbox_id, request(sandbox_id="").sandbox_id
    assert first != second
    assert {len(first), len(second)} == {32}


def test_processes_start_from_the_sandboxes_own_settings() -> None:
    """Environment, directory and user of a command come over those of the sandbox."""
    asked = request(env={"A": "1", "B": "2"}, working_dir="w", user=(5, 6), rlimits={"RLIMIT_NOFILE": 64})
    own = asked.process(["x"], None, None, None)
    assert own["cwd"] == "/w"
    assert (own["user"]["uid"], own["user"]["gid"]) == (5, 6)
    assert own["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}]
    assert own["noNewPrivileges"] is True
    assert not any(own["capabilities"].values())
    other = asked.process(["x"], ["B=3"], "v", 7)
    assert {"A=1", "B=3"} <= set(other["env"])
    assert (other["cwd"], other["user"]["uid"]) == ("/v", 7)


def test_commands_are_judged() -> None:
    """What no process can be given is refused before runsc sees it."""
    for args in ([], ["a\0b"], ["x" * (1 << 18)]):
        with pytest.raises(BadArgument):
            request().process(args, None, None, None)


@pytest.mark.parametrize(
    ("where", "mounts", "made"),
    [
        ("/tmp", [], False),
        ("/tmp/a", [], True),
        ("/tmpfs", [], False),
        ("/a/b", [], False),
        ("/tmp/a", ["/usr:/tmp/a/b:ro"], False),
        ("/tmp/a", ["/usr:/tmp:ro"], False),
        ("/tmp/a/b", ["/usr:/tmp/a:ro"], False),
        ("/s/a", ["tmpfs:/s"], True),
    ],
)
def test_a_directory_in_a_tmpfs_is_one(where: str, mounts: list[str], made: bool) -> None:
    """Nobody could make it there before the guest runs; all others are made in the root, or are there."""
    how = request(working_dir=where, mounts=mounts).how["mounts"]
    assert (where in [mount.target for mount in how[len(mounts) :]]) == made
