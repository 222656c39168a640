"""The command line. Policy is elsewhere: this parses, prints, and turns outcomes into exit codes."""

import argparse
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nucleus_gvisor.model.errors import BadArgument, LaunchError, RecordRejected
from nucleus_gvisor.model.record import parse_all
from nucleus_gvisor.model.replay import by_launch, complete, fold
from nucleus_gvisor.runtime.audit import Record
from nucleus_gvisor.runtime.bundle import OciBundle
from nucleus_gvisor.runtime.gvisor import GVisorRuntime, SandboxProcess
from nucleus_gvisor.runtime.options import (
    Confinement,
    Enforcement,
    GVisorOciRunOptions,
    NetworkMode,
    Platform,
    StageMethod,
)
from nucleus_gvisor.runtime.streams import Relay, open_standard_descriptors

OURS = 125
"""Exit code when the launch failed; the guest never ran."""
TIMED_OUT = 124
"""Exit code when --timeout ended the guest, as timeout(1) has it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    open_standard_descriptors()
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = given.command
        return command(given)
    except LaunchError as error:
        _complain(error)
        return OURS
    except BrokenPipeError:
        # Whoever read our output has gone; that is no failure of the launch, and there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _complain(error: LaunchError) -> None:
    line = f"nucleus-gvisor: {error}"
    coloured = sys.stderr is not None and sys.stderr.isatty()
    print(_red(line) if coloured else line, file=sys.stderr)


def _flush() -> None:
    """What we have printed goes out before what the guest prints. Without descriptor 1, Python has no stdout."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _red(text: str) -> str:
    return f"\033[31m{text}\033[0m"


# ---- arguments ----


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nucleus-gvisor", description="Launch untrusted programs under gVisor, verified and on record."
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    run = verbs.add_parser(
        "run",
        help="run a command in a new sandbox",
        description="Run COMMAND in a new sandbox and exit with its exit code (125: the launch failed, 124: timeout).",
    )
    _add_launch(run)
    run.add_argument("--json", action="store_true", help="print one JSON object, last on standard output")
    run.add_argument("--show", action="store_true", help="show the states passed and the record, on standard error")
    run.set_defaults(command=_run)
    explain = verbs.add_parser(
        "explain",
        help="show what `run` would do, and do nothing",
        description="Print every operation of a launch with these arguments, in order. Nothing is executed or made.",
    )
    _add_launch(explain)
    explain.add_argument("--json", action="store_true", help="print one JSON object")
    explain.set_defaults(command=_explain)
    doctor = verbs.add_parser("doctor", help="what this host can do, why not, and how to mend it")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument("--runsc", metavar="PATH", help="judge this runsc instead of searching")
    doctor.add_argument("--artifact-base", metavar="DIR", type=Path, help="judge this artifact base")
    doctor.add_argument("--pin", metavar="SHA256", help="the runsc that may run")
    doctor.set_defaults(command=_doctor)
    audit = verbs.add_parser("audit", help="judge records").add_subparsers(required=True, metavar="VERB")
    verify = audit.add_parser("verify", help="say whether records are behaviours of the specification")
    verify.add_argument("files", nargs="+", metavar="FILE", type=Path)
    verify.set_defaults(command=_verify)
    spec = verbs.add_parser("spec", help="check the specification and judge records by TLC (needs the extra: verify)")
    spec.add_argument(
        "verb",
        choices=["check", "graph", "mutants", "trace", "correspondence"],
        help="model checking; the state graph; the kill matrix; records; code and specification side by side",
    )
    spec.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="the verb's own arguments; try --help")
    spec.set_defaults(command=_spec)
    return parser


def _add_launch(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--id", metavar="ID", help="container id (default: 32 random hex digits)")
    root = parser.add_mutually_exclusive_group()
    root.add_argument("--bundle", metavar="DIR", type=Path, help="run this OCI bundle; it brings its own command")
    root.add_argument("--rootfs", metavar="DIR", type=Path, help="the guest's root (default: the host's programs)")
    add("--writable", action="store_true", help="let the guest write to --rootfs")
    add("--platform", choices=[str(p) for p in Platform], default="auto", help="gVisor platform (default: auto)")
    add("--network", choices=[str(n) for n in NetworkMode], default="none", help="network (default: none)")
    add("--rootless", action="store_true", help="pass runsc --rootless (implied by mount-locked)")
    add("--ignore-cgroups", action="store_true", help="pass runsc --ignore-cgroups (implied by mount-locked)")
    add("--confinement", choices=[str(c) for c in Confinement], default="mount-locked", help="default: mount-locked")
    add("--enforcement", choices=[str(e) for e in Enforcement], default="required", help="default: required")
    add("--stage", choices=[str(s) for s in StageMethod], default="auto", help="how the binary is kept (default: auto)")
    add("--pin", metavar="SHA256", help="run no other runsc than the one with this digest")
    add("--artifact-base", metavar="DIR", type=Path, help="where launches keep their directories")
    add("--runsc", metavar="PATH", help="use this runsc instead of searching")
    add("--record", metavar="FILE", type=Path, help="append the record to FILE")
    add("--mount", metavar="SRC:DST[:ro|rw]", action="append", default=[], help="show a host path to the guest (ro)")
    add(
        "--env", metavar="NAME=VALUE", action="append", default=[], help="set a guest variable; NAME alone passes it on"
    )
    add("--cwd", metavar="DIR", default="/", help="the guest's working directory (default: /)")
    add("--hostname", metavar="NAME", default="gvisor", help="the guest's host name (default: gvisor)")
    add("--user", metavar="UID[:GID]", default="0:0", help="the guest's user (default: 0:0)")
    add("--timeout", metavar="SECONDS", type=float, help="end the guest after this time, with exit code 124")
    add("--allow-hooks", action="store_true", help="accept the bundle's hooks; they run on the host")
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
        stage=given.stage,
        pin=given.pin,
        artifact_base=given.artifact_base,
        record=given.record,
        allow_hooks=given.allow_hooks,
    )


def bundle_of(given: argparse.Namespace) -> OciBundle | Path:
    """The bundle that the arguments mean: built, or the directory to load at launch."""
    words = given.words[1:] if given.words[:1] == ["--"] else given.words
    if given.bundle is not None:
        if words or given.mount or given.env or given.cwd != "/":
            raise BadArgument(
                "a bundle brings its own command, mounts, environment and directory",
                step="Resolve",
                observed=" ".join(words) or "--mount, --env or --cwd",
                expected="nothing beside --bundle",
            )
        return Path(_absolute(given.bundle))
    if not words:
        raise BadArgument("no command", step="Resolve", expected="-- COMMAND [ARGUMENT...]")
    uid, gid = _user(given.user)
    return OciBundle.build(
        words,
        rootfs=None if given.rootfs is None else _absolute(given.rootfs),
        readonly=not given.writable,
        mounts=given.mount,
        env=_environment(given.env),
        cwd=given.cwd,
        hostname=given.hostname,
        uid=uid,
        gid=gid,
        terminal=False,
    )


def _user(text: str) -> tuple[int, int]:
    uid, _, gid = text.partition(":")
    if not (uid.isdecimal() and (gid or "0").isdecimal()):
        raise BadArgument("user refused", step="Resolve", observed=text, expected="UID or UID:GID, in digits")
    return int(uid), int(gid or uid)


def _environment(entries: Sequence[str]) -> dict[str, str] | None:
    """The guest's variables, added to the default ones; None when none was asked for."""
    from nucleus_gvisor.runtime.bundle import DEFAULT_ENV

    if not entries:
        return None
    env = dict(DEFAULT_ENV)
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals:
            if name not in os.environ:
                raise BadArgument("no such variable to pass on", step="Resolve", observed=name, expected="NAME=VALUE")
            value = os.environ[name]
        env[name] = value
    return env


def runtime_of(runsc: str | None) -> GVisorRuntime:
    return GVisorRuntime.searching() if runsc is None else GVisorRuntime.with_path(_absolute(runsc))


def _absolute(path: str | Path) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise BadArgument("a relative path needs a current directory", step="Resolve", path=path) from error


# ---- run ----


def _run(given: argparse.Namespace) -> int:
    container = given.id if given.id is not None else secrets.token_hex(16)
    _flush()
    relay = None
    try:
        runtime, bundle, options = runtime_of(given.runsc), bundle_of(given), options_of(given)
        relay = Relay()
        stdin, stdout, stderr = relay.stdio
        process = runtime.spawn(
            container, bundle, options, stdin=stdin, stdout=stdout, stderr=stderr, die_with_thread=True
        )
    except LaunchError as error:
        if relay is not None:
            relay.drain()
        _report(given, container, error.record, error=error)
        _complain(error)
        return OURS
    relay.started()
    code = _wait(process, relay, given.timeout)
    _report(given, container, process.record, process=process, code=code)
    return code


def _wait(process: SandboxProcess, relay: Relay, timeout: float | None) -> int:
    """The exit code for the guest's end. What would end us is the guest's to answer: we pass it on and wait."""

    def forward(number: int, _: object) -> None:
        process.send_signal(number)

    # From a terminal, SIGINT and SIGQUIT reach the guest's supervisor by themselves.
    keyboard = signal.SIG_IGN if sys.stdin is not None and sys.stdin.isatty() else forward
    handlers = dict.fromkeys((signal.SIGINT, signal.SIGQUIT), keyboard)
    handlers |= dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2), forward)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        in_time = relay.run(process.pidfd, timeout)
        if not in_time:
            process.kill()
        code = process.wait()
        relay.drain()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for problem in process.problems:
        print(f"nucleus-gvisor: left behind: {problem}", file=sys.stderr)
    if not in_time:
        print(f"nucleus-gvisor: ended after {timeout:g} s", file=sys.stderr)
        return TIMED_OUT
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
        "requested": {"confinement": last.get("confinement"), "enforcement": last.get("enforcement")},
        "achieved": {"confinement": last.get("confined"), "proved": last.get("proved")},
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
    error: LaunchError | None = None,
) -> None:
    data = summary(
        container,
        record,
        exit=code,
        pid=None if process is None else process.pid,
        error=None if error is None else error.as_dict(),
    )
    if given.show:
        _show(data)
    if given.json:
        _flush()
        print(json.dumps(data), flush=True)


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
    console.print(f"confinement {achieved['confinement']}, {proved}", highlight=False)
    console.print(f"record      {data['record'] or data['record_problem']}", highlight=False, soft_wrap=True)


# ---- explain, doctor, audit ----


def _explain(given: argparse.Namespace) -> int:
    from nucleus_gvisor.runtime import explain

    return explain.command(given, options_of(given), bundle_of(given))


def _doctor(given: argparse.Namespace) -> int:
    from nucleus_gvisor.runtime import doctor

    return doctor.command(given)


def _spec(given: argparse.Namespace) -> int:
    from nucleus_gvisor.spec import check, correspondence, graph, mutants, tlc, trace

    verbs = {
        "check": check.main,
        "graph": graph.main,
        "mutants": mutants.main,
        "trace": trace.main,
        "correspondence": correspondence.main,
    }
    try:
        return verbs[given.verb](given.rest)
    except (tlc.ToolMissing, tlc.TlcFailed, OSError) as error:
        print(f"nucleus-gvisor: spec {given.verb}: {error}", file=sys.stderr)
        return OURS


def _verify(given: argparse.Namespace) -> int:
    """One line a file: what it ends in, or the first line that no behaviour has. 1 when any is rejected."""
    bad = 0
    for path in given.files:
        try:
            launches = by_launch(parse_all(path.read_bytes()))
            if not launches:
                raise RecordRejected("empty: a launch leaves at least its first line")
        except OSError as error:
            print(f"{path}: cannot be read: {error.strerror}")
            bad += 1
            continue
        except RecordRejected as error:
            print(f"{path}: REJECTED: {error}")
            bad += 1
            continue
        for launch, records in launches.items():
            try:
                facts = fold(records)
            except RecordRejected as error:
                print(f"{path}: launch {launch}: REJECTED: {error}")
                bad += 1
            else:
                end = "complete" if complete(records) else "INCOMPLETE: a killed launch, or a cut tail"
                print(
                    f"{path}: launch {launch}: accepted, {len(records)} lines, ends in {facts.state}, {end}, "
                    f"head {records[-1].digest()}"
                )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
