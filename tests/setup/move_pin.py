"""Move what the tests' releases of gVisor are built from, and pin what that makes.

    move_pin.py                                   build every release at its pin, and pin the digests anew
    move_pin.py NAME RELEASE PSEUDO_VERSION       NAME is built from that version of gvisor.dev/gvisor, as RELEASE
    move_pin.py --toolchain go1.N.N               build with another release of Go

For example: move_pin.py 20260831 release-20260831.0 v0.0.0-20260905035102-160fafc42237. Each is built twice, in
different directories, and pinned only where both are the same and what was built says that it is RELEASE.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[2]))  # it is run by its path

from tests.setup import releases
from tests.setup.problem import Problem, quiet, say


def digests_of(pin: releases.Pin, toolchain: releases.Toolchain) -> dict[str, str]:
    """What `pin` makes, twice."""
    made = []
    for depth in ("a", "another/b"):
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder, depth)
            work.mkdir(parents=True)
            os.environ["GOCACHE"] = os.fspath(Path(folder, "cache"))  # the second is built, not remembered
            built = releases.build(pin, toolchain, work)
            for path in filter(Path.exists, (built / "runsc", built / releases.SIDE / releases.SENTRY)):
                if pin.version not in (said := quiet([os.fspath(path), "--version"])):
                    raise Problem(f"{path.name} does not say that it is {pin.version}: {said}")
            made.append(releases.digests(built))
    if made[0] != made[1]:
        raise Problem(f"{pin.version} is another one each time: {made}")
    return made[0]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="the directory's name, such as 20260831")
    parser.add_argument("release", nargs="?", help="what it says of itself: release-YYYYMMDD.N")
    parser.add_argument("module", nargs="?", help="the pseudo-version of gvisor.dev/gvisor")
    parser.add_argument("--toolchain", help="go1.N.N")
    asked = parser.parse_args(arguments)
    if asked.name and not asked.module:
        parser.error("NAME, RELEASE and PSEUDO_VERSION go together")
    data = json.loads(releases.PINS.read_text())
    if asked.toolchain and asked.toolchain != data["toolchain"]:
        data["toolchain"] = asked.toolchain
        for one in data["releases"].values():
            one["sha256"] = {}  # of every architecture
    if asked.name:
        data["releases"][asked.name] = {"version": asked.release, "module": asked.module, "sha256": {}}
    try:
        toolchain = releases.Toolchain(data["toolchain"])
        for name in [asked.name] if asked.name and not asked.toolchain else data["releases"]:
            one = data["releases"][name]
            say(f"building {one['version']} twice")
            one["sha256"][toolchain.arch] = digests_of(releases.Pin(**one, toolchain=data["toolchain"]), toolchain)
    except (Problem, OSError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    written = releases.PINS.with_suffix(".new")
    written.write_text(json.dumps(data, indent=2) + "\n")
    os.replace(written, releases.PINS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
