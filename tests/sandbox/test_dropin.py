"""One program text for Google's `gvisor` package and for ours: only the import differs, and the outcomes do not."""

import importlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nucleus_gvisor.runtime import dropin
from tests.conftest import Release
from tests.support import places

pytestmark = pytest.mark.real
GOOGLE = importlib.import_module("gvisor")
PUBLIC = ["Error", "Mount", "MountType", "NetworkMode", "Sandbox"]
NAMES = ("id", "bundle_dir", "exec", "close", "__enter__", "__exit__")

SESSION = {
    "pair": "box.exec('sh', '-c', 'echo out; echo err >&2')",
    "stdout": "box.exec('echo', 'a b', '', '$HOME')[0]",
    "no arguments": "box.exec('true')",
    "unpacks": "(lambda out, err: (type(out), type(err)))(*box.exec('true'))",
    "environment": "box.exec('sh', '-c', 'echo $A $B $PATH')[0]",
    "environment of a command": "box.exec('sh', '-c', 'echo $A $B', env={'B': 3, 'C': ''})[0]",
    "environment as a list": "box.exec('sh', '-c', 'echo $A $B', env=['B=x=y'])[0]",
    "environment as a tuple": "box.exec('sh', '-c', 'echo $A $B', env=('B=t',))[0]",
    "nothing of the caller's environment": "box.exec('sh', '-c', 'echo ${CALLER-none}')[0]",
    "working directory": "box.exec('pwd')[0]",
    "directory of a command": "box.exec('pwd', cwd='bin/../usr')[0]",
    "root directory": "box.exec('pwd', cwd='/')[0]",
    "user": "box.exec('id', '-u')[0]",
    "failure": "box.exec('sh', '-c', 'echo said >&2; exit 3')",
    "no such program": "box.exec('no-such-program')",
    "no such directory": "box.exec('true', cwd='/no/such')",
    "timeout": "box.exec('sleep', '60', timeout=0.5)",
    "after a timeout": "box.exec('echo', 'x', timeout=30)",
    "cwd is empty": "box.exec('true', cwd=' ')",
    "cwd is no str": "box.exec('true', cwd=1)",
    "env without =": "box.exec('true', env=['A'])",
    "env with a bad name": "box.exec('true', env={'A=B': 'c'})",
    "env is no list": "box.exec('true', env=1)",
    "read-only bind": "box.exec('sh', '-c', 'cat /ro/file; echo x >/ro/new')",
    "writable bind": "box.exec('sh', '-c', 'cat /rw/file; echo x >/rw/new; cat /rw/new')",
    "what a bind wrote": "__import__('pathlib').Path(base, 'rw/new').read_text()",
    "mount of a dict": "box.exec('cat', '/dict/file')[0]",
    "tmpfs": "box.exec('sh', '-c', 'echo x >/scratch/x; cat /scratch/x')[0]",
    "proc": "box.exec('sh', '-c', 'cat /proc2/self/comm')[0]",
    "host's programs": "box.exec('ls', '-d', '/bin', '/usr', '/lib')[0]",
    "no network": "box.exec('sh', '-c', 'cat /proc/net/dev | grep -c eth')",
    "root is read-only": "box.exec('sh', '-c', 'echo x >/new')",
    "identity": "(box.id, isinstance(box.bundle_dir, str))",
    "enter": "box.__enter__() is box",
    "close": "box.close()",
    "close again": "box.close()",
    "after close": "box.exec('true')",
}
SANDBOX = """Sandbox(sandbox_id="same-id", env={"A": "1", "B": 2}, working_dir="usr/bin/..", mounts=[
    Mount.bind(base + "/ro", "/ro", readonly=True), Mount.bind(base + "/rw", "rw"), Mount.tmpfs("/scratch"),
    Mount.proc("/proc2"), {"destination": "/dict/", "source": base + "/ro", "type": "BIND", "readonly": 1}])"""
STARTS = [
    "used(Sandbox(network='HOST'), 'true')",
    "used(Sandbox(runtime_dir=base + '/run'), 'true')",
    "used(Sandbox(env=['A=1', 'A=2']), 'sh', '-c', 'echo $A')",
    "used(Sandbox(env=None, mounts=None, working_dir=None), 'pwd')",
    "used(Sandbox(mounts=(Mount(base + '/ro', base + '/ro', 'Bind', True),)), 'ls', base + '/ro')",
    "Sandbox(mounts=[Mount('/d', base + '/missing')])",
    "Sandbox(sandbox_id='a/b')",
    "Sandbox(sandbox_id='--help')",
    "Sandbox(network='bridge')",
    "Sandbox(network=1)",
    "Sandbox(env=['A'])",
    "Sandbox(env={'A=': 1})",
    "Sandbox(env=1)",
    "Sandbox(working_dir=' ')",
    "Sandbox(working_dir=1)",
    "Sandbox(mounts='x')",
    "Sandbox(mounts=[1])",
    "Sandbox(mounts=[{'destination': '/d', 'what': 1}])",
    "Sandbox(mounts=[{'source': '/usr'}])",
    "Sandbox(mounts=[Mount(' ', '/usr')])",
    "Sandbox(mounts=[Mount('/d', ' ')])",
    "Sandbox(mounts=[Mount('/d')])",
    "Sandbox(mounts=[Mount('/d', '/usr', 'overlay')])",
    "Sandbox(mounts=[Mount('/d', '/usr', 1)])",
    "Mount('/d') == Mount('/d', None, MountType.BIND, False)",
    "[(m.destination, m.source, m.type, m.readonly) for m in (Mount.bind('a', 'b'), Mount.tmpfs('c'))]",
    "sorted(member.value for kind in (MountType, NetworkMode) for member in kind)",
    "issubclass(Error, ValueError)",
]


def used(box: Any, *words: str) -> Any:
    """What a command gives in a sandbox that is closed then."""
    with box:
        return box.exec(*words)


def outcome(module: ModuleType, text: str, **names: Any) -> Any:
    """What an expression gives in a program that has imported `module`'s names, or which of the errors it raises."""
    imported = {name: getattr(module, name) for name in PUBLIC}
    try:
        return eval(text, imported | names)
    except (ValueError, TypeError) as error:
        return "ValueError" if isinstance(error, ValueError) else "TypeError"
    except module.Error:
        return "Error"


@pytest.fixture(autouse=True)
def subreaper() -> None:
    """Google's package detaches its sandboxes, and closes them only when somebody, the machine's init, reaps them."""


@pytest.fixture
def host(release: Release, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same runsc for both packages, and files to mount."""
    with places.private_directory() as path:
        for name in ("ro", "rw", "run", "artifacts"):
            (path / name).mkdir(0o700)
            (path / name / "file").write_text(f"{name}\n")
        (path / "artifacts/file").unlink()
        monkeypatch.setenv("RUNSC_PATH", os.fspath(release.path))
        monkeypatch.setenv("CALLER", "caller")
        monkeypatch.setenv("NUCLEUS_GVISOR_ARTIFACT_BASE", os.fspath(path / "artifacts"))
        yield path


def test_the_same_names_and_signatures() -> None:
    """Every public name is here, and takes what it takes there: the same words in the same order, with defaults."""
    assert dropin.__all__ == [name for name in dir(GOOGLE) if name in PUBLIC] == PUBLIC
    for name in NAMES:
        assert hasattr(dropin.Sandbox, name)
    for theirs, ours in ((GOOGLE.Sandbox, dropin.Sandbox), (GOOGLE.Mount, dropin.Mount)):
        wanted, given = (
            [(p.name, p.kind, p.default) for p in inspect.signature(made).parameters.values()]
            for made in (theirs, ours)
        )
        assert given == wanted
    promised = list(inspect.signature(GOOGLE.Sandbox.exec).parameters)
    assert list(inspect.signature(dropin.Sandbox.exec).parameters)[: len(promised)] == promised


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="Google's package starts sandboxes as root only")
def test_a_session_has_the_same_outcomes(host: Path) -> None:
    """All that a sandbox's documentation promises, step by step."""
    found: list[dict[str, Any]] = []
    for module in (GOOGLE, dropin):
        (host / "rw/new").unlink(missing_ok=True)
        box = eval(SANDBOX, {**vars(module), "base": os.fspath(host)})
        try:
            found.append({name: outcome(module, text, box=box, base=os.fspath(host)) for name, text in SESSION.items()})
        finally:
            box.close()
    assert found[1] == found[0]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="Google's package starts sandboxes as root only")
def test_starts_have_the_same_outcomes(host: Path) -> None:
    """Arguments are taken and refused alike."""
    found: list[dict[str, Any]] = []
    for module in (GOOGLE, dropin):
        found.append({text: outcome(module, text, used=used, base=os.fspath(host)) for text in STARTS})
    assert found[1] == found[0]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Sandbox(runtime_dir=base + '/open/x')", "Error"),
        ("Sandbox(sandbox_id='_' + 64 * 'x')", "Error"),
        ("Sandbox(mounts=[Mount('/proc', base)])", "ValueError"),
        ("Sandbox(mounts=[Mount('/dev', base)])", "ValueError"),
    ],
)
def test_what_is_refused_here(host: Path, text: str, error: str) -> None:
    """The exceptions that the documentation names: nothing runs."""
    (host / "open").mkdir()
    (host / "open").chmod(0o777)
    assert outcome(dropin, text, base=os.fspath(host)) == error


def test_a_runsc_that_others_can_write(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RUNSC_PATH counts, and what it names is judged."""
    (host / "rw/runsc").write_bytes(b"\x7fELF")
    (host / "rw/runsc").chmod(0o777)
    monkeypatch.setenv("RUNSC_PATH", os.fspath(host / "rw/runsc"))
    with pytest.raises(dropin.Error, match="rw/runsc"):
        dropin.Sandbox()


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("Sandbox(network='x')", "Invalid network mode 'x'. Valid options are 'none', 'host', 'sandbox'."),
        ("Sandbox(env=['A'])", "Invalid environment variable format"),
        ("Sandbox(env={'A=B': 'c'})", "Environment variable key cannot contain '='"),
        ("Sandbox(env=123)", "env must be a list of 'KEY=VALUE' strings or a dict"),
        ("Sandbox(working_dir='')", "working directory cannot be empty"),
        ("Sandbox(working_dir=1)", "working_dir must be a str"),
        ("Sandbox(mounts=[Mount('')])", "Mount destination cannot be empty"),
        ("Sandbox(mounts=[Mount.bind('', '/mnt')])", "Bind mount source cannot be empty"),
        ("Sandbox(mounts=[{'destination': '/mnt', 'type': 'what'}])", "Invalid mount type"),
        ("Sandbox(mounts=[{'destination': '/mnt', 'what': 1}])", "Unrecognized keys in mount dict: ['what']"),
        ("Sandbox(mounts=[{'source': '/mnt'}])", "Mount dictionary missing 'destination'"),
        ("Sandbox(mounts='what')", "mounts must be a list or tuple"),
        ("Sandbox(mounts=[1])", "Mount item must be a Mount instance or dict"),
    ],
)
def test_errors_of_arguments_begin_alike(text: str, begins: str) -> None:
    """Programs that were written for one package tell its errors by their words: there is nothing else."""
    told = []
    for module in (GOOGLE, dropin):
        with pytest.raises((ValueError, TypeError)) as error:
            eval(text, {name: getattr(module, name) for name in PUBLIC})
        told.append((type(error.value), str(error.value).startswith(begins)))
    assert told == [(told[0][0], True)] * 2


def test_words_of_a_command_that_failed(host: Path) -> None:
    """The two that callers look for, and the two of a bad directory."""
    with dropin.Sandbox(working_dir="tmp/custom") as box:
        assert box.exec("pwd") == ("/tmp/custom\n", "")
        assert box.exec("pwd", cwd="usr").stdout == "/usr\n"
        for words, how, told in (
            (("sleep", "600"), {"timeout": 0.5}, "exec timed out after 0.5 seconds"),
            (("no-such-program",), {}, "exec failed"),
            (("cat", "--no-such-flag"), {}, "exec failed"),
        ):
            with pytest.raises(dropin.Error, match=told):
                box.exec(*words, **how)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="cwd cannot be empty"):
            box.exec("pwd", cwd="")
        with pytest.raises(TypeError, match="cwd must be a str"):
            box.exec("pwd", cwd=1)  # type: ignore[call-overload]


def test_a_working_dir_that_is_not_there_is_made(host: Path) -> None:
    """The guest's root is ours."""
    for where in ("/workspace/deep", "/tmp/custom/deep"):
        with dropin.Sandbox(working_dir=where) as box:
            assert box.exec("pwd").stdout == f"{where}\n"
    with dropin.Sandbox(working_dir="/tmp/custom") as box:
        assert box.exec("sh", "-c", "echo x >file; cat /tmp/custom/file").stdout == "x\n"


def test_a_bare_name_in_runsc_path(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for as any program is, and judged."""
    runsc = Path(os.environ["RUNSC_PATH"])
    monkeypatch.setenv("PATH", f"/nonexistent:{runsc.parent}")
    monkeypatch.setenv("RUNSC_PATH", runsc.name)
    with dropin.Sandbox() as box:
        assert box.exec("/bin/echo", "x").stdout == "x\n"
    monkeypatch.setenv("RUNSC_PATH", "no-such-runsc")
    with pytest.raises(dropin.Error, match="runsc binary is not found"):
        dropin.Sandbox()
