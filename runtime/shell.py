"""A guest's terminal, shown on the caller's own.

The guest gets a terminal of its own, never the caller's: whoever holds a terminal can type into it and change it.
"""

import os
import select
import signal
import termios
import tty
from contextlib import suppress
from typing import Any

from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.capture import CHUNK
from nucleus_gvisor.runtime.sandbox import GuestProcess
from nucleus_gvisor.runtime.streams import handling


class _Ended(Exception):
    """A signal asks us to end."""


def interact(process: GuestProcess[Any], stdin: int = 0, stdout: int = 1) -> int:
    """Connect terminal `stdin` and `stdout` with that of `process` until it ends; its exit code.

    What ends this process before (SIGTERM, SIGHUP, an interruption) ends the guest's; 128 + the signal is then the
    code. In any case but SIGKILL the terminal is as it was. For the main thread: it handles SIGWINCH.
    """
    before = termios.tcgetattr(stdin)
    handlers = {signal.SIGWINCH: lambda *_: _fit(process, stdin), signal.SIGTERM: _end, signal.SIGHUP: _end}
    with handling(handlers) as signalled:
        try:
            tty.setraw(stdin, termios.TCSANOW)
            _fit(process, stdin)  # it may have changed before we were told of changes
            _relay(process, stdin, stdout, signalled)
            return process.wait()
        except _Ended as end:
            process.kill()
            return 128 + int(end.args[0])
        finally:
            with suppress(termios.error):  # the terminal may have gone
                termios.tcsetattr(stdin, termios.TCSANOW, before)


def _end(number: int, _: object) -> None:
    raise _Ended(number)


def _fit(process: GuestProcess[Any], terminal: int) -> None:
    with suppress(termios.error, OSError):
        process.resize(*termios.tcgetwinsize(terminal))


def _relay(process: GuestProcess[Any], stdin: int, stdout: int, signalled: int) -> None:
    """Copy both ways until the process has ended and what it wrote is shown."""
    assert process.terminal is not None
    guest, ended = process.terminal.fileno(), process.command.channel
    os.set_blocking(guest, False)  # a guest that does not read must not keep us from what it writes
    typed = b""
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(signalled, select.POLLIN)
    while True:
        poll.register(guest, select.POLLIN | (select.POLLOUT if typed else 0))
        poll.register(stdin, 0 if typed else select.POLLIN)
        ready = dict(poll.poll())
        if signalled in ready:
            _read(signalled)
        if stdin in ready and not typed:
            typed = _read(stdin)
            if not typed:
                raise _Ended(signal.SIGHUP)
        if typed:
            with suppress(BlockingIOError):
                typed = typed[os.write(guest, typed) :]
        if guest in ready:
            linux.write_all(stdout, _read(guest))
        if ended in ready:
            while shown := _read(guest):
                linux.write_all(stdout, shown)
            return


def _read(fd: int) -> bytes:
    """What there is; nothing at the end, which a terminal whose other end is closed tells by EIO."""
    try:
        return os.read(fd, CHUNK)
    except OSError:
        return b""
