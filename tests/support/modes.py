"""The three kinds of caller that a launcher meets: root, an ordinary user, and that user as root of a namespace."""

import os
import pwd
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.setup.provision import USER
from tests.support.app import DATA, MEASURED
from tests.support.places import private_directory
from tests.support.records import SPOOL

ROOT_MODE = "root"
USER_MODE = "user"
NAMESPACE_MODE = "userns"
NAMES = (ROOT_MODE, USER_MODE, NAMESPACE_MODE) if os.geteuid() == 0 else (USER_MODE, NAMESPACE_MODE)
"""The modes that can be had from here: only root can become root."""


def ordinary_user() -> pwd.struct_passwd:
    """The user of the modes without privilege: the one made for tests, or who runs the tests when that is not root."""
    if os.geteuid():
        return pwd.getpwuid(os.geteuid())
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        raise LookupError(f"user {USER} is missing; run: python3 tests/setup/provision.py test") from None


@cache
def shared_python() -> str:
    """An interpreter that every user can execute: the one below this virtual environment, else the system's."""
    path = os.path.realpath(sys.executable)
    reachable = all(parent.stat().st_mode & 0o001 for parent in (Path(path), *Path(path).parents))
    return path if reachable else os.path.realpath("/usr/bin/python3")


@dataclass(frozen=True)
class Mode:
    """One kind of caller, with the packages it imports and a private artifact base of its own."""

    name: str
    app: Path
    base: Path

    @property
    def account(self) -> pwd.struct_passwd:
        """Whom the kernel sees outside of any namespace."""
        return pwd.getpwuid(0) if self.name == ROOT_MODE else ordinary_user()

    @property
    def python(self) -> str:
        return shared_python()

    def command(self, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
        """`argv` as it must be executed by `account`."""
        prefix = ["unshare", "--user", "--map-root-user", "--"] if self.name == NAMESPACE_MODE else []
        return [*prefix, *(os.fspath(argument) for argument in argv)]

    def env(self, base: Path | None = None) -> dict[str, str]:
        """A whole environment, with nothing inherited from the test run."""
        return {
            "HOME": self.account.pw_dir,
            "LANG": "C.UTF-8",
            "LOGNAME": self.account.pw_name,
            "NUCLEUS_GVISOR_ARTIFACT_BASE": os.fspath(base or self.base),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.fspath(self.app),
            "USER": self.account.pw_name,
            SPOOL: os.fspath(self.app / DATA),
            **self._measured(),
        }

    def unmeasured(self) -> dict[str, str]:
        """The same without what makes files of its own, coverage above all: for tests that look at every call."""
        return {name: value for name, value in self.env().items() if name not in (MEASURED, SPOOL)}

    def _measured(self) -> Mapping[str, str]:
        return {MEASURED: "1"} if (self.app / "sitecustomize.py").exists() else {}

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments for `subprocess`: the mode's own, under those which the test gives."""
        own: dict[str, Any] = {"cwd": self.base, "env": self.env(), "stdin": subprocess.DEVNULL, "text": True}
        own |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if os.geteuid() == 0 and self.account.pw_uid != 0:
            own |= {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}
        return own | dict(options)

    def popen(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[Any]:
        """Start `argv` in this mode."""
        return subprocess.Popen(self.command(argv), **self.options(options))

    def run(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run `argv` in this mode to its end, a minute at most unless `timeout` says otherwise."""
        return subprocess.run(self.command(argv), **{"timeout": 60, **self.options(options)})

    def cli(self, *arguments: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run `nucleus-gvisor ARGUMENTS` in this mode."""
        return self.run([self.python, "-m", "nucleus_gvisor.runtime.cli", *arguments], **options)


def private_base(name: str) -> AbstractContextManager[Path]:
    """An artifact base for a mode: a directory of mode 0700 that its account owns."""
    return private_directory(None if name == ROOT_MODE or os.geteuid() else ordinary_user())
