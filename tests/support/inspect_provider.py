"""Our sandboxes as a provider of inspect_ai's, no more than its names for what ours do."""

import errno
import posixpath
from typing import Any, Literal, overload

from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxEnvironment,
    SandboxEnvironmentLimits,
    SandboxUserUnsupportedError,
)

from nucleus_gvisor.runtime import AsyncSandbox, CannotExec, OutputLimit, TimeoutExpired


class Provider(SandboxEnvironment):
    """`box`, whose commands and relative paths start in `home`."""

    def __init__(self, box: AsyncSandbox, home: str) -> None:
        self._box, self._home = box, home

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        if user is not None:  # ours are numbers: names would be the guest's own files' to give
            raise SandboxUserUnsupportedError(f"user {user}: expected numbers")
        try:
            done = await self._box.exec(
                *cmd,
                input=input,
                cwd=posixpath.join(self._home, cwd or ""),
                env=env,
                timeout=timeout,
                check=False,
                max_output=SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE,
            )
        except TimeoutExpired as error:
            raise TimeoutError(str(error)) from error
        except OutputLimit as error:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR, error.stdout) from error
        except CannotExec as error:
            if error.errno == errno.EACCES:
                raise PermissionError(*error.args) from error
            return ExecResult(False, 127, "", str(error))
        return ExecResult(done.returncode == 0, done.returncode, done.stdout, done.stderr)

    async def write_file(self, file: str, contents: str | bytes) -> None:
        await self._box.write_file(posixpath.join(self._home, file), contents, parents=True)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        limit = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        try:
            data = await self._box.read_file(posixpath.join(self._home, file), max_bytes=limit)
        except OutputLimit as error:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None) from error
        return data.decode() if text else data

    @classmethod
    async def sample_cleanup(cls, *_: Any, **__: Any) -> None:
        """The sandbox is its maker's to close."""
