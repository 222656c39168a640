"""The command line. Policy is elsewhere: this parses, prints, and turns outcomes into exit codes."""

import argparse
import errno
import json
import os
import re
import secrets
import shlex
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from nucleus_gvisor.model.errors import BadArgument, Error, LaunchError, remedy, shown
from nucleus_gvisor.runtime import audit
from nucleus_gvisor.runtime._linux import ignores_its_group
from nucleus_gvisor.runtime.audit import Record
from nucleus_gvisor.runtime.bounds import KEPT, RecordBounds
from nucleus_gvisor.runtime.bundle import CAPABILITIES, DEFAULT_ENV, WORKSPACE, Etc, OciBundle, capabilities_of
from nucleus_gvisor.runtime.capture import NAMES
from nucleus_gvisor.runtime.errors import CannotExec, HookFailed, PoststartFailed, SandboxError, SyncFailed
from nucleus_gvisor.runtime.gvisor import GVisorRuntime, SandboxProcess
from nucleus_gvisor.runtime.limits import DISK_DEFAULT, Limits
from nucleus_gvisor.runtime.options import (
    Audit,
    Confinement,
    Enforcement,
    GVisorOciRunOptions,
    NetworkMode,
    Platform,
    StageMethod,
    Writable,
    as_flags,
)
from nucleus_gvisor.runtime.paths import described
from nucleus_gvisor.runtime.request import accounts_of, sync_of, workspace_of
from nucleus_gvisor.runtime.sandbox import Sandbox, limited, synchronise
from nucleus_gvisor.runtime.secret_files import SecretSource, parsed, secret_files
from nucleus_gvisor.runtime.streams import Relay, handling, open_standard_descriptors
from nucleus_gvisor.runtime.version import VERSION
from nucleus_gvisor.runtime.workspace import Changes, Sync, WorkspaceMode

OURS = 125
"""Exit code when the launch failed, or runsc did not start the guest, which never ran; or when a stream of it that is
copied could not be."""
CANNOT = 126
"""Exit code when the guest's program may not, or cannot, be executed, as env(1) and shells have it."""
NO_PROGRAM = 127
"""Exit code when the guest's program is not there."""
TIMED_OUT = 124
"""Exit code when --timeout ended the guest, as timeout(1) has it."""
BY_LIMIT = 137
"""Exit code when a limit ended the guest, 128 + SIGKILL, as container engines have it."""
LOST = 74
"""Exit code when our own output could not be written (a full disk), whatever came of the rest: EX_IOERR, sysexits.h."""
MAX_SECONDS = 2_000_000
"""The longest --timeout, 23 days."""
_RLIMIT = re.compile(r"([A-Za-z_]{1,32})=([0-9]{1,19})(?::([0-9]{1,19}))?", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,15})([KMGkmg]?)", re.ASCII)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    open_standard_descriptors()
    if arguments is None:
        _in_utf8()
    try:
        try:
            given = _parser().parse_args(arguments)
        except SystemExit:
            _flush()  # of --help
            raise
        command: Callable[[argparse.Namespace], int] = given.command
        code = command(given)
        _flush()  # a reader that has gone is noticed here, and not when the interpreter ends
        return code
    except LaunchError as error:
        _complain(error)
        return OURS
    except BrokenPipeError:
        # Whoever read our output has gone; that is no failure of the launch, and there is nobody to tell.
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        # What a launch meets is a LaunchError: this is what we print to, or a file that was named beside it.
        what = "the output cannot be written: " if error.filename is None else ""
        with suppress(OSError):
            print(f"nucleus-gvisor: {what}{shown(error)}", file=sys.stderr)
        _drop_output()
        return LOST
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _in_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale has another encoding.

    Words, paths and the guest's output are bytes, which that mode alone takes and gives as they are; under LC_ALL=C
    with PYTHONUTF8=0 what is not ASCII could be neither passed on nor printed.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.flags.utf8_mode or getattr(sys, "frozen", False):
        return
    if sys.executable and len(sys.orig_argv) > 1:  # pragma: no branch - an embedding program has none
        words = [sys.orig_argv[0], "-X", "utf8", *sys.orig_argv[1:]]
        with suppress(OSError):  # as it was, then
            os.execv(sys.executable, words)


def _drop_output() -> None:
    """Nothing more is written to descriptor 1, not even when the interpreter ends and tries once more."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _complain(error: Error) -> None:
    text, hint = str(error), getattr(error, "hint", "")
    if hint and "hint: " not in text:
        text = f"{text}; hint: {hint}"
    line = f"nucleus-gvisor: {as_flags(text)}"
    coloured = sys.stderr is not None and sys.stderr.isatty()
    with suppress(OSError):
        print(_red(line) if coloured else line, file=sys.stderr)


def _flush() -> None:
    """What we have printed goes out before what the guest prints. Without descriptor 1, Python has no stdout."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _red(text: str) -> str:
    return f"\033[31m{text}\033[0m"


# ---- arguments ----


class _Parser(argparse.ArgumentParser):
    """Refuses `--option=--`, of which argparse makes an empty list, whatever type the value should have."""

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and arg_strings == ["--"]:
            self.error(f"argument {'/'.join(action.option_strings)}: expected a value, not --")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """Exit with 2; the message has the caller's words, which may be somebody else's."""
        super().error(shown(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nucleus-gvisor", description="Launch untrusted programs under gVisor, verified and on record."
    )
    parser.add_argument("--version", action="version", version=f"nucleus-gvisor {VERSION}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    run = verbs.add_parser(
        "run",
        help="run a command in a new sandbox",
        description="Run COMMAND in a new sandbox and exit with its exit code (125: the launch failed, 126: COMMAND "
        "cannot be executed, 127: it is not there, 124: timeout).",
    )
    _add_launch(run)
    _add_limits(run)
    run.add_argument("--max-output", metavar="BYTES", type=_size, help="end the guest when it writes more to a stream")
    run.add_argument("--json", action="store_true", help="print one JSON object, last on standard output")
    run.add_argument("--show", action="store_true", help="show the states passed and the record, on standard error")
    run.set_defaults(command=_run)
    shell = verbs.add_parser(
        "shell",
        help="work in a new sandbox on a terminal",
        description="Run COMMAND (default: sh) on a terminal in a new sandbox, and exit with its exit code.",
    )
    _add_launch(shell, lives=True)
    _add_limits(shell)
    shell.add_argument("--service", metavar="COMMAND", type=_service, default=(), help="an absolute path in the guest, "
        "and arguments, quoted as for a shell: the guest's init starts it beside")  # fmt: skip
    shell.set_defaults(command=_shell)
    explain = verbs.add_parser(
        "explain",
        help="show what `run` would do, and do nothing",
        description="Print every operation of a launch with these arguments, in order. Nothing is executed or made.",
    )
    _add_launch(explain)
    _add_limits(explain)
    explain.add_argument("--json", action="store_true", help="print one JSON object")
    explain.set_defaults(command=_explain)
    doctor = verbs.add_parser("doctor", help="what this host can do, why not, and how to mend it")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument("--runsc", metavar="PATH", help="judge this runsc instead of searching")
    doctor.add_argument("--artifact-base", metavar="DIR", type=Path, help="judge this artifact base")
    doctor.add_argument("--pin", metavar="SHA256", help="the runsc that may run")
    doctor.add_argument(
        "--again", action="store_true", help="try all anew, and believe nothing of what was tried before"
    )
    doctor.set_defaults(command=_doctor)
    _add_owner(verbs)
    audits = verbs.add_parser("audit", help="judge records").add_subparsers(required=True, metavar="VERB")
    verify = audits.add_parser(
        "verify",
        help="say whether records are behaviours of the specification",
        description="Judge launch records. Exit code 0: each is accepted to its end, or to its --head; 1: something is "
        "rejected, or cannot be read; 3: neither, but a launch has no end: it was killed, or its tail was cut.",
    )
    verify.add_argument(
        "files", nargs="+", metavar="FILE", type=Path, help=f"a record, or a directory with *{audit.SUFFIX} below it"
    )
    verify.add_argument(
        "--head", metavar="SHA256", action="append", default=[], type=_digest,
        help="the last line's hash, as the launch's `head` had it: some record must end there; can be repeated",
    )  # fmt: skip
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.set_defaults(command=_verify)
    spec = verbs.add_parser("spec", help="check the specification and judge records by TLC (needs the extra: verify)")
    spec.add_argument(
        "verb",
        choices=["check", "graph", "mutants", "trace", "correspondence"],
        help="all that joins specification and code; the state graph; the kill matrix; records; both sides in a table",
    )
    spec.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="the verb's own arguments; try --help")
    spec.set_defaults(command=_spec)
    return parser


def _add_owner(verbs: Any) -> None:
    ps = verbs.add_parser("ps", help="list the sandboxes that run")
    ps.add_argument("--json", action="store_true", help="print one JSON object a line")
    ps.set_defaults(command=_ps)
    kill = verbs.add_parser("kill", help="end sandboxes")
    kill.add_argument("ids", nargs="+", metavar="ID")
    kill.set_defaults(command=_kill)
    gc = verbs.add_parser("gc", help="remove what launches that were killed left, and old files in the cache")
    gc.add_argument(
        "--records", action="store_true", help="also remove records over --keep-records, and print their names"
    )
    gc.set_defaults(command=_gc)
    listed, pruned = _add_records(verbs)
    for verb in (gc, pruned):
        verb.add_argument("--keep-records", metavar="BOUNDS", type=_bounds, default=KEPT, help="as for run")
    for verb in (ps, kill, gc, listed, pruned):
        verb.add_argument("--artifact-base", metavar="DIR", type=Path, help="where launches keep their directories")


def _add_records(verbs: Any) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    from nucleus_gvisor.runtime import records

    both = verbs.add_parser("records", help="list and remove records").add_subparsers(required=True, metavar="VERB")
    listed = both.add_parser("list", help="list the records of an artifact base, the oldest first")
    listed.add_argument("--json", action="store_true", help="print one JSON object a line")
    listed.add_argument("--id", metavar="ID", help="of this container alone")
    listed.add_argument("--state", metavar="STATE", help="whose last line leads there: Exec'd, Failed, Confined ...")
    listed.add_argument("--older", metavar="DAYS", type=float, default=0, help="whose last line is older")
    listed.set_defaults(command=records.list_)
    pruned = both.add_parser(
        "prune",
        help="remove records over --keep-records",
        description="Remove records of launches that came to their guest, whose sandbox has ended, the oldest first. "
        f"What is removed is written to {records.LEDGER} beside them before, which `audit verify` judges.",
    )
    pruned.add_argument("--dry-run", action="store_true", help="print what would be removed, and remove nothing")
    pruned.add_argument("--json", action="store_true", help="print one JSON object a line")
    pruned.set_defaults(command=records.prune)
    return listed, pruned


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--memory", metavar="BYTES", type=_size, help="memory of the whole sandbox (suffixes: K, M, G)")
    add("--cpus", metavar="NUMBER", type=float, help="processors, 0.5 being half of one's time")
    add("--pids", metavar="NUMBER", type=int, help="processes and threads of the guest")
    add("--lifetime", metavar="SECONDS", type=_seconds, help="how long the sandbox may live")
    add("--disk", metavar="BYTES", type=_size, help="what the guest may write to disk, with --writable=disk")
    add("--limits", choices=["required", "best_effort"], default="required", help="what cannot be enforced, a "
        "bundle's words that nobody keeps among it, fails (default), or goes without")  # fmt: skip


def limits_of(given: argparse.Namespace) -> Limits:
    """The limits that the arguments mean."""
    disk = given.disk
    if getattr(given, "writable", None) == Writable.DISK:
        disk = disk or DISK_DEFAULT
    elif disk is not None:
        raise BadArgument(
            "--disk refused",
            step="Resolve",
            observed="no --writable=disk",
            expected="--writable=disk",
            hint="add --writable=disk, or leave --disk away",
        )
    return Limits(
        memory=given.memory,
        cpus=given.cpus,
        pids=given.pids,
        lifetime=given.lifetime,
        disk=disk,
        enforcement=given.limits,
    )


def _rlimit(text: str) -> tuple[str, tuple[int, int]]:
    match = _RLIMIT.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=SOFT[:HARD], numbers")
    name, soft, hard = match.groups()
    return f"RLIMIT_{name.upper().removeprefix('RLIMIT_')}", (int(soft), int(hard or soft))


def _capabilities(text: str) -> str | tuple[str, ...]:
    asked = text if text in CAPABILITIES else tuple(text.split(","))
    try:
        capabilities_of(asked)
    except BadArgument as error:
        raise argparse.ArgumentTypeError(f"{shown(str(error.observed))}: expected {error.expected}") from None
    return asked


def _workspace(text: str) -> tuple[str, WorkspaceMode]:
    path, colon, mode = text.rpartition(":")
    if colon and path and mode in list(WorkspaceMode):
        return path, WorkspaceMode(mode)
    if not text:
        raise argparse.ArgumentTypeError("expected DIR[:MODE], the mode copy, ro or rw")
    return text, WorkspaceMode.COPY


def _secret(text: str) -> tuple[str, SecretSource]:
    try:
        return parsed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def _service(text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    if not words or not words[0].startswith("/"):
        raise argparse.ArgumentTypeError(f"{text}: expected an absolute path in the guest, and arguments")
    return words


def _bounds(text: str) -> RecordBounds:
    try:
        return RecordBounds.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text}: expected a number of bytes, or one with K, M or G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()]


def _add_launch(parser: argparse.ArgumentParser, *, lives: bool = False) -> None:
    """Arguments of a launch; `lives`: of a sandbox that takes commands, which has no bundle of others' and no end."""
    add = parser.add_argument
    add("--id", metavar="ID", help="container id (default: 32 random hex digits)")
    root = parser.add_mutually_exclusive_group()
    if not lives:
        root.add_argument("--bundle", metavar="DIR", type=Path, help="run this OCI bundle; it brings its own command")
    root.add_argument("--rootfs", metavar="DIR", type=Path, help="the guest's root (default: the host's programs)")
    add("--writable", nargs="?", const="memory", choices=[str(w) for w in Writable], help="let the guest write to its "
        "root: in memory (default), on disk or in the directory itself; so a bundle's writable root")  # fmt: skip
    add("--platform", choices=[str(p) for p in Platform], default="auto", help="gVisor platform (default: auto)")
    add("--network", choices=[str(n) for n in NetworkMode], default="none", help="network (default: none)")
    if not lives:
        add("--rootless", action="store_true", help="pass runsc --rootless (it is passed where it is needed)")
        add("--ignore-cgroups", action="store_true", help="pass runsc --ignore-cgroups (implied by mount-locked)")
    add("--confinement", choices=[str(c) for c in Confinement], default="mount-locked", help="default: mount-locked")
    add("--enforcement", choices=[str(e) for e in Enforcement], default="required", help="default: required")
    scopes = [str(e) for e in Enforcement if e is not Enforcement.OFF]
    add("--signal-scope", choices=scopes, default="best_effort", help="no signals to processes outside (Linux 6.12)")
    if not lives:
        add(
            "--stage",
            choices=[str(s) for s in StageMethod],
            default="auto",
            help="how the binary is kept (default: auto)",
        )
    add("--pin", metavar="SHA256", help="run no other runsc than the one with this digest")
    add("--artifact-base", metavar="DIR", type=Path, help="where launches keep their directories")
    add("--runsc", metavar="PATH", help="use this runsc instead of searching")
    add("--record", metavar="FILE", type=Path, help="append the record to FILE")
    add("--debug-dir", metavar="DIR", type=Path, help="keep runsc's own debug and panic logs of this launch there")
    add("--audit", choices=[str(a) for a in Audit], default="required", help="what happens when the record cannot be "
        "written: the launch fails (default), or goes without; off: none is written")  # fmt: skip
    add("--keep-records", metavar="BOUNDS", type=_bounds, default=KEPT, help="how many records of other launches stay, "
        "as count=N,days=N,size=BYTES; 0: no bound (default: count=10000,days=30,size=256M)")  # fmt: skip
    add("--mount", metavar="SRC:DST[:ro|rw]", action="append", default=[], help="show a host path to the guest (ro)")
    add("--env", metavar="NAME[=VALUE]", action="append", default=[], help="set a guest variable; NAME alone passes on "
        "ours. A VALUE written here can be seen by every user of the host, in this process's arguments")  # fmt: skip
    add("--env-file", metavar="FILE", action="append", default=[], help="set the guest variables in FILE: NAME=VALUE "
        "or NAME, one a line, without quotes; empty lines and those with # in front are left out")  # fmt: skip
    add("--secret-file", metavar="TARGET=SOURCE", type=_secret, action="append", default=[], help="a file "
        "that the guest's user alone reads, on no disk: from PATH, fd:NUMBER or credential:NAME")  # fmt: skip
    add("--workspace", metavar="DIR[:MODE]", type=_workspace, help="a directory of the host, at /workspace, where the "
        "guest starts: as a copy (default), ro or rw")  # fmt: skip
    add("--workspace-size", metavar="BYTES", type=_size, help="what a copy of it may have (default: 1G)")
    add("--sync", choices=[str(s) for s in Sync], default="never", help="write back what was changed in the copy: "
        "never (default), on success, or always")  # fmt: skip
    add("--cwd", metavar="DIR", help="the guest's working directory (default: /workspace, its own; / with --rootfs)")
    add("--hostname", metavar="NAME", default="gvisor", help="the guest's host name (default: gvisor)")
    add("--user", metavar="USER[:GROUP]", default="0:0", help="the guest's user, by number or by a name that it knows "
        "(default: 0:0)")  # fmt: skip
    add("--capabilities", metavar="SET", type=_capabilities, default="none", help="what the guest's user may do there "
        "beyond others: none (default), docker, or names with commas between")  # fmt: skip
    add("--etc", choices=[str(e) for e in Etc], default="generated", help="what a guest without --rootfs finds in /etc "
        "(default: generated); none: nothing, and no directories of its own")  # fmt: skip
    add("--rlimit", metavar="NAME=SOFT[:HARD]", type=_rlimit, action="append", default=[], help="a limit of each "
        "process of the guest's, such as NOFILE=256")  # fmt: skip
    if not lives:
        add("--timeout", metavar="SECONDS", type=_seconds, help="end the guest after this time, with exit code 124")
        add("--allow-hooks", action="store_true", help="run the bundle's hooks, on the host, as you")
    add("words", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command and its arguments, after --")


def options_of(given: argparse.Namespace) -> GVisorOciRunOptions:
    """The launch options that the arguments mean; BadArgument for ones that contradict."""
    return GVisorOciRunOptions(
        network_mode=given.network,
        ignore_cgroups=given.ignore_cgroups,
        runsc_rootless=given.rootless,
        platform=given.platform,
        confinement=given.confinement,
        enforcement=given.enforcement,
        signal_scope=given.signal_scope,
        stage=given.stage,
        pin=given.pin,
        writable=given.writable or Writable.MEMORY,
        artifact_base=given.artifact_base,
        record=given.record,
        debug_dir=None if given.debug_dir is None else Path(_absolute(given.debug_dir)),
        audit=given.audit,
        keep_records=given.keep_records,
        allow_hooks=given.allow_hooks,
    )


def bundle_of(given: argparse.Namespace) -> OciBundle | Path:
    """The bundle that the arguments mean: built, or the directory to load at launch."""
    words = given.words[1:] if given.words[:1] == ["--"] else given.words
    if given.bundle is not None:
        beside = (given.mount, given.env, given.env_file, given.cwd, given.rlimit, given.secret_file, given.workspace)
        if words or any(beside):
            raise BadArgument(
                "a bundle brings its own command, mounts, environment and directory",
                step="Resolve",
                observed=" ".join(words) or "--mount, --env, --cwd, --rlimit, --secret-file or --workspace",
                expected="nothing beside --bundle",
                hint="write them into the bundle's config.json",
            )
        return Path(_absolute(given.bundle))
    if not words:
        raise BadArgument(
            "no command",
            step="Resolve",
            expected="-- COMMAND [ARGUMENT...]",
            observed="nothing after the options",
            hint="name the program: nucleus-gvisor run -- echo hello",
        )
    rootfs = None if given.rootfs is None else _absolute(given.rootfs)
    work, copied = workspace_of(*_workspace_of(given))
    sync_of(given.sync, copied)
    who = accounts_of(rootfs, given.etc == "generated", given.user).find(given.user)
    return OciBundle.build(
        words,
        rootfs=rootfs,
        readonly=given.writable is None,
        mounts=[*given.mount, *work],
        env={
            **DEFAULT_ENV,
            "HOME": who.directory,
            **_environment(given.env, given.env_file),
        },
        cwd=WORKSPACE if work and given.cwd is None else given.cwd,
        hostname=given.hostname,
        uid=who.uid,
        gid=who.gid,
        groups=who.groups,
        rlimits=dict(given.rlimit),
        terminal=False,
        etc=given.etc,
        resolver=given.network == NetworkMode.HOST,
        capabilities=given.capabilities,
        secret_files=secret_files(_secrets_of(given)),
        copied=copied,
    )


def _workspace_of(given: argparse.Namespace) -> tuple[str | None, WorkspaceMode, int | None]:
    path, mode = given.workspace or (None, WorkspaceMode.COPY)
    return None if path is None else _absolute(path), mode, given.workspace_size


def _secrets_of(given: argparse.Namespace) -> dict[str, SecretSource]:
    found: dict[str, SecretSource] = {}
    for target, source in given.secret_file:
        if found.setdefault(target, source) is not source:
            raise BadArgument(
                "--secret-file refused",
                step="Resolve",
                observed=f"{target} twice",
                expected="each target once",
                hint="name another",
            )
    return found


def _seconds(text: str) -> float:
    """A time to wait: nan, inf and what poll(2) cannot count in milliseconds are no times."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text}: expected more than 0 and at most {MAX_SECONDS} seconds")
    return seconds


def _environment(entries: Sequence[str], files: Sequence[str] = ()) -> dict[str, str]:
    """The guest's variables that were asked for. `entries` come after `files`."""
    env: dict[str, str] = {}
    for file in files:
        for number, line in enumerate(_env_lines(file), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                _set(env, line, f"{file}, line {number}")
    for entry in entries:
        _set(env, entry, "--env")
    return env


def _set(env: dict[str, str], entry: str, where: str) -> None:
    name, equals, value = entry.partition("=")
    if not name or name != name.strip() or "\0" in entry:
        # Not the entry itself: its value may be secret.
        why = "a NUL" if "\0" in entry else "no name, or white space around it"
        raise BadArgument(
            f"{where}: not a variable",
            step="Resolve",
            observed=why,
            expected="NAME=VALUE or NAME",
            hint="NAME=VALUE sets it, NAME alone passes the caller's own on",
        )
    if not equals:
        if name not in os.environ:
            raise BadArgument(
                f"{where}: no such variable to pass on",
                step="Resolve",
                observed=name,
                expected="NAME=VALUE",
                hint="export it, or give its value",
            )
        value = os.environ[name]
    env[name] = value


MAX_ENV_FILE = 1 << 20


def _env_lines(file: str) -> list[str]:
    """The lines of a file that others cannot have written, or of what a program writes to a pipe."""
    expected = "a file or a pipe that only you, or root, can write"
    try:
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NOCTTY)) as stream:
            status = os.fstat(stream.fileno())
            pipe = stat.S_ISFIFO(status.st_mode)
            if (
                not (stat.S_ISREG(status.st_mode) or pipe)
                or status.st_mode & 0o022
                or status.st_uid not in (0, os.geteuid())
            ):
                raise BadArgument(
                    "--env-file refused",
                    step="Resolve",
                    path=file,
                    observed=described(status),
                    expected=expected,
                    hint="own it, with mode 0600: who can write it chooses the guest's variables",
                )
            text = stream.read(MAX_ENV_FILE + 1)
    except OSError as error:
        raise BadArgument(
            "--env-file cannot be read",
            step="Resolve",
            path=file,
            observed=error.strerror,
            expected=expected,
            hint=remedy(error),
        ) from error
    if len(text) > MAX_ENV_FILE:
        raise BadArgument(
            "--env-file refused",
            step="Resolve",
            path=file,
            observed="longer",
            expected=f"{MAX_ENV_FILE} bytes at most",
            hint="keep the guest's variables alone in it",
        )
    return [os.fsdecode(line) for line in text.split(b"\n")]


def runtime_of(runsc: str | None) -> GVisorRuntime:
    return GVisorRuntime.searching() if runsc is None else GVisorRuntime.with_path(_absolute(runsc))


def _absolute(path: str | Path) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise BadArgument(
            "a relative path needs a current directory",
            step="Resolve",
            path=path,
            observed=error.strerror,
            expected="a directory that is still there",
            hint="go to one, or name the path from /",
        ) from error


# ---- run ----


def _run(given: argparse.Namespace) -> int:
    container = given.id if given.id is not None else secrets.token_hex(16)
    _flush()
    relay = None
    try:
        runtime, bundle, options = runtime_of(given.runsc), bundle_of(given), options_of(given)
        limits = limits_of(given)
        relay = Relay(limit=given.max_output)
        process = limited(limits, runtime, container, bundle, options, relay.stdio)
    except (LaunchError, PoststartFailed) as error:
        if relay is not None:
            relay.drain()
        _report(given, container, error.record, error=error)
        _complain(error)
        return OURS
    relay.started()
    code = _wait(process, relay, given.timeout)
    failure: SandboxError | None = process.failure()
    changes, synchronised = None, False
    if failure is not None:
        code = _code_of(failure)
    elif process.workspace is not None:
        try:
            # What ended it other than by itself is no end of the program's own.
            ended = process.returncode is not None and process.returncode >= 0 and code == process.returncode
            changes, synchronised = synchronise(process, code, Sync(given.sync) if ended else Sync.NEVER)
        except (SandboxError, OSError) as error:
            failure = error if isinstance(error, SandboxError) else SyncFailed("/workspace", error)
            code = OURS
    if changes and not synchronised:
        told = ", ".join(f"{len(names)} {word}" for word, names in vars(changes).items() if names)
        print(f"nucleus-gvisor: the workspace has {told}, which is not written back: --sync", file=sys.stderr)
    _report(
        given,
        container,
        process.record,
        process=process,
        code=code,
        error=failure,
        changes=changes,
        synchronised=synchronised,
    )
    if failure is not None:
        _complain(failure)
    return code


def _code_of(error: SandboxError) -> int:
    """The exit code for what went wrong once the launch had succeeded."""
    if not isinstance(error, CannotExec):
        return OURS
    return NO_PROGRAM if error.errno == errno.ENOENT else CANNOT


def _shell(given: argparse.Namespace) -> int:
    from nucleus_gvisor.runtime.shell import interact

    if not (os.isatty(0) and os.isatty(1)):
        raise BadArgument(
            "no terminal",
            step="Resolve",
            expected="one as standard input and output",
            hint="run",
            observed="a pipe or a file",
        )
    words = (given.words[1:] if given.words[:1] == ["--"] else given.words) or ["sh"]
    try:
        with _sandbox_of(given) as box:
            sync = sync_of(given.sync, box.copied)
            with box.popen(words, pty=True, window=_window()) as process:
                code = interact(process)
            if sync is Sync.ALWAYS or (sync is Sync.SUCCESS and code == 0):
                box.sync()
            return code
    except SandboxError as error:
        _complain(error)
        return _code_of(error)


def _sandbox_of(given: argparse.Namespace) -> Sandbox:
    limits = limits_of(given)
    workspace, mode, size = _workspace_of(given)
    return Sandbox(
        given.artifact_base,
        given.id,
        given.network,
        # What the guest's programs draw on is the terminal of whoever sees it.
        {"TERM": os.environ.get("TERM", "dumb"), **_environment(given.env, given.env_file)},
        given.mount,
        given.cwd,
        rootfs=None if given.rootfs is None else _absolute(given.rootfs),
        writable=given.writable or False,
        user=given.user,
        etc=given.etc,
        capabilities=given.capabilities,
        secret_files=_secrets_of(given),
        workspace=workspace,
        workspace_mode=mode,
        workspace_size=size,
        hostname=given.hostname,
        memory=limits.memory,
        cpus=limits.cpus,
        pids=limits.pids,
        lifetime=limits.lifetime,
        disk=limits.disk,
        limits=limits.enforcement,
        rlimits=dict(given.rlimit),
        service=given.service,
        runsc=given.runsc,
        pin=given.pin,
        platform=given.platform,
        confinement=given.confinement,
        enforcement=given.enforcement,
        signal_scope=given.signal_scope,
        record=given.record,
        debug_dir=given.debug_dir,
        audit=given.audit,
        keep_records=given.keep_records,
    )


def _window() -> tuple[int, int]:
    """Rows and columns; a terminal that does not know says 0."""
    size = os.get_terminal_size(0)
    return size.lines or 24, size.columns or 80


def _wait(process: SandboxProcess, relay: Relay, timeout: float | None) -> int:
    """The exit code for the guest's end. What would end us is the guest's to answer: we pass it on and wait."""

    def forward(number: int, _: object) -> None:
        process.send_signal(number)

    # From a terminal, SIGINT and SIGQUIT reach the guest's supervisor by themselves, where it is of our session.
    theirs = sys.stdin is not None and sys.stdin.isatty() and not ignores_its_group()
    keyboard = (lambda *_: None) if theirs else forward
    handlers = dict.fromkeys((signal.SIGINT, signal.SIGQUIT), keyboard)
    handlers |= dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2), forward)
    with handling(handlers) as signalled:
        in_time = relay.run(process.pidfd, timeout, signalled)
        if not in_time:
            process.kill()
        code = process.wait()
        number = relay.drain(signalled, in_time=in_time)
    for problem in process.problems:
        what = "" if isinstance(problem, HookFailed) else "left behind: "
        print(f"nucleus-gvisor: {what}{shown(problem)}", file=sys.stderr)
    if relay.exceeded:
        print("nucleus-gvisor: ended for more output than --max-output", file=sys.stderr)
        return BY_LIMIT
    met = process.held.met()
    if code and met is not None:
        print(f"nucleus-gvisor: ended for its limit: --{met}", file=sys.stderr)
        return BY_LIMIT
    if not in_time:
        print(f"nucleus-gvisor: ended after {timeout:g} s", file=sys.stderr)
        return TIMED_OUT
    if number:
        return 128 + number
    if relay.unread:
        print(f"nucleus-gvisor: the output was not read within {timeout:g} s", file=sys.stderr)
        return TIMED_OUT
    if relay.failed is not None:
        stream, error = relay.failed
        print(f"nucleus-gvisor: copying {NAMES[stream]} failed: {error.strerror}", file=sys.stderr)
        return OURS
    return code if code >= 0 else 128 - code


def summary(container: str, record: Record | None, **more: Any) -> dict[str, Any]:
    """One launch as JSON data: states, digests, requested and achieved confinement, milliseconds per step."""
    lines = record.lines if record is not None else ()
    evidence = {line.action: line.evidence for line in lines}
    stage = next((e for a, e in evidence.items() if a.startswith("Stage")), {})
    confine = next((e for a, e in evidence.items() if a.startswith("Confine")), {})
    last = lines[-1].facts if lines else {}
    files: Any = evidence.get("Resolve", {}).get("files", ())
    return {
        "id": container,
        "launch": lines[0].launch if lines else None,
        "states": [line.dest for line in lines],
        "actions": [line.action for line in lines],
        "runsc": next((file["path"] for file in files), None),
        "digests": stage.get("digests"),
        "stage": stage.get("method"),
        "requested": {
            "confinement": last.get("confinement"),
            "enforcement": last.get("enforcement"),
            "scope": confine.get("signal_scope"),
            "audit": None if record is None else record.audit,
        },
        "achieved": {
            "confinement": last.get("confined"),
            "proved": last.get("proved"),
            "scope": confine.get("scope"),
            "audit": None if record is None else record.achieved,
        },
        "platform": confine.get("platform"),
        "release": confine.get("release"),
        "ms": {line.action: line.ms for line in lines},
        "record": None if record is None or record.path is None else os.fspath(record.path),
        "record_problem": None if record is None else record.problem,
        "head": None if record is None else record.head,
        **more,
    }


def _report(
    given: argparse.Namespace,
    container: str,
    record: Any,
    *,
    process: SandboxProcess | None = None,
    code: int = OURS,
    error: Error | None = None,
    changes: Changes | None = None,
    synchronised: bool = False,
) -> None:
    data = summary(
        container,
        record,
        exit=code,
        pid=None if process is None else process.pid,
        root=None if process is None else process.achieved_root,
        limits=None if process is None else process.achieved_limits,
        limit=None if process is None else process.held.met(),
        problems=[] if process is None else list(map(str, process.problems)),
        changes=None if changes is None else changes.as_dict(),
        synchronised=synchronised,
        error=None if error is None else _described(error),
    )
    if given.show:
        _show(data)
    if given.json:
        _flush()
        print(json.dumps(data), flush=True)


def _described(error: Error) -> dict[str, object]:
    """Its fields, with the hint in the command line's own words."""
    if isinstance(error, LaunchError):
        return {**error.as_dict(), "hint": as_flags(shown(error.hint)) if error.hint else None}
    number = getattr(error, "errno", None)
    return {
        "error": type(error).__name__,
        "message": as_flags(str(error)),
        "observed": shown(getattr(error, "observed", error)),
        "expected": getattr(error, "expected", None),
        "hint": as_flags(hint) if (hint := getattr(error, "hint", None)) else None,
        "errno": None if number is None else errno.errorcode.get(number, str(number)),
    }


def _show(data: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True)
    table = Table(title=f"launch {data['id']}", title_justify="left")
    for heading in ("action", "state", "ms"):
        table.add_column(heading, justify="right" if heading == "ms" else "left")
    for action, state in zip(data["actions"], data["states"], strict=True):
        table.add_row(action, state, f"{data['ms'][action]:.2f}")
    console.print(table)
    achieved, digests = data["achieved"], data["digests"] or {}
    what = f"release {data['release']}, platform {data['platform']}"
    console.print(f"runsc       {data['runsc']} ({what})", highlight=False)
    console.print(f"sha256      {digests.get('runsc')}", highlight=False)
    proved = "proved from inside" if achieved["proved"] else "not proved"
    scope = f"scope of signals {achieved['scope'] or 'none'}"
    console.print(f"confinement {achieved['confinement']}, {proved}, {scope}", highlight=False)
    console.print(f"record      {data['record'] or data['record_problem']}", highlight=False, soft_wrap=True)


# ---- ps, kill, gc ----


def _ps(given: argparse.Namespace) -> int:
    from nucleus_gvisor.runtime import owner

    found = owner.running(given.artifact_base)
    if given.json:
        for one in found:
            print(json.dumps({"id": one.id, "pid": one.pid, "owner": one.owner, "seconds": round(one.seconds, 2)}))
        return 0
    print(f"{'PID':>8} {'OWNER':>8} {'SECONDS':>10}  ID")
    for one in found:
        print(f"{one.pid:8} {one.owner:8} {one.seconds:10.1f}  {shown(one.id)}")
    return 0


def _kill(given: argparse.Namespace) -> int:
    from nucleus_gvisor.runtime import owner

    bad = 0
    for container in given.ids:
        try:
            owner.kill(container, given.artifact_base)
        except LaunchError as error:
            _complain(error)
            bad = OURS
    return bad


def _gc(given: argparse.Namespace) -> int:
    from nucleus_gvisor.model.errors import BadCache
    from nucleus_gvisor.runtime import kept, owner
    from nucleus_gvisor.runtime.identity import Identity

    for name in owner.gc(given.artifact_base):
        print(name)
    with suppress(BadCache):  # one that others can write is none of ours
        for name in kept.collect(Identity.current()):
            print(name)
    if given.records:
        from nucleus_gvisor.runtime import retention

        for one in retention.prune(given.keep_records, given.artifact_base):
            print(one.kept.name)
    return 0


# ---- explain, doctor, audit ----


def _explain(given: argparse.Namespace) -> int:
    from nucleus_gvisor.runtime import explain

    return explain.command(given, options_of(given), bundle_of(given), limits_of(given))


def _doctor(given: argparse.Namespace) -> int:
    from nucleus_gvisor.runtime import doctor

    return doctor.command(given)


def _spec(given: argparse.Namespace) -> int:
    from nucleus_gvisor.spec import correspondence, graph, mutants, ties, tlc, trace

    verbs = {
        "check": ties.main,
        "graph": graph.main,
        "mutants": mutants.main,
        "trace": trace.main,
        "correspondence": correspondence.main,
    }
    try:
        return verbs[given.verb](given.rest)
    except (
        tlc.ToolMissing,
        tlc.TlcFailed,
        graph.GraphError,
        mutants.RewriteError,
        correspondence.Unreadable,
        OSError,
    ) as error:
        print(f"nucleus-gvisor: spec {given.verb}: {shown(error)}", file=sys.stderr)
        return OURS


UNFINISHED = 3
"""Exit code of `audit verify` when records are accepted, but not all of them to an end."""


def _digest(text: str) -> str:
    digest = text.strip().lower()
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"no SHA-256 in hex: {text!r}")
    return digest


def _verify(given: argparse.Namespace) -> int:
    """One line a finding, as it is found; see the parser for the exit code."""
    findings, verdicts = [], set()
    for finding in audit.verify(given.files, frozenset(given.head)):
        verdicts.add(finding.verdict)
        if given.json:
            findings.append(finding.as_dict())
        else:
            print(finding)
    if given.json:
        print(json.dumps({"findings": findings}))
    return 1 if "rejected" in verdicts else UNFINISHED if "unfinished" in verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
