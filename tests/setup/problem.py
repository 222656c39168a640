"""What the set-up says when it cannot go on, and how it runs commands."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class Problem(Exception):
    """What is missing, and what the reader can do about it."""


def say(line: str) -> None:
    print(f"setup: {line}", flush=True)


def quiet(argv: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a command silently; its whole output becomes the Problem when it fails."""
    done = subprocess.run(
        argv,
        cwd=cwd,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise Problem(f"{shlex.join(argv)} failed ({done.returncode}):\n{done.stdout}")
    return done.stdout
