"""An interactive shell in a sandbox, on this terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Any

from twisted.internet import defer
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from sandboxworker.errors import SandboxworkerError
from sandboxworker.process import spawn_process
from sandboxworker.sandbox import Sandbox

_SHELL = ("/bin/sh", "-c", "if [ -x /bin/bash ]; then exec /bin/bash; else exec /bin/sh; fi")
_READ = 4096


def require_terminal() -> None:
    """Raises `SandboxworkerError` where nobody could type."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise SandboxworkerError(
            "a shell needs a terminal", resolution="Run it without a pipe, or give a command"
        )


async def open_shell(sandbox: Sandbox, directory: str, reactor: Any) -> int:
    """Run a shell until it ends; its exit code. The window's size follows this terminal's."""
    terminal = _Terminal(reactor)
    environ = {
        **dict(sandbox.spec.environ),
        "PWD": directory,
        "TERM": os.environ.get("TERM", "dumb"),
    }
    with _raw(sys.stdin.fileno()), terminal.following_the_window():
        spawn_process(sandbox, terminal, _SHELL, environ, directory, tty=True)
        return await terminal.ended


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class _Terminal(ProcessProtocol):
    """Passes on what is typed, and what comes back."""

    transport: Any

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._keyboard = _Keyboard(self)
        self._has_started = False
        self.ended: defer.Deferred[int] = defer.Deferred()

    def connectionMade(self) -> None:
        self._reactor.addReader(self._keyboard)

    def typed(self, data: bytes) -> None:
        if data:
            self.transport.write(data)
        else:
            self._reactor.removeReader(self._keyboard)
            self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        if not self._has_started:
            self._has_started = True
            self.fit()
        view = memoryview(data)
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]

    def fit(self) -> None:
        """Give the sandbox's terminal the size of ours."""
        if self._has_started and not self.transport.is_over:
            size = os.get_terminal_size(sys.stdout.fileno())
            resizing = self.transport.resize(size.lines, size.columns)
            resizing.addErrback(lambda failure: failure.trap(SandboxworkerError))

    @contextlib.contextmanager
    def following_the_window(self) -> Iterator[None]:
        def changed(_number: int, _frame: Any) -> None:
            self._reactor.callFromThread(self.fit)

        before = signal.signal(signal.SIGWINCH, changed)
        try:
            yield
        finally:
            signal.signal(signal.SIGWINCH, before)

    def processEnded(self, reason: Failure) -> None:
        self._reactor.removeReader(self._keyboard)
        value: Any = reason.value
        code = 128 + int(value.signal) if value.signal is not None else value.exitCode
        self.ended.callback(125 if code is None else int(code))


class _Keyboard:
    """Our stdin, for the reactor."""

    def __init__(self, terminal: _Terminal) -> None:
        self._terminal = terminal

    def fileno(self) -> int:
        return sys.stdin.fileno()

    def logPrefix(self) -> str:
        return "keyboard"

    def doRead(self) -> None:
        try:
            data = os.read(self.fileno(), _READ)
        except OSError:  # The terminal is gone.
            data = b""
        self._terminal.typed(data)

    def connectionLost(self, reason: Failure) -> None:
        self._terminal.typed(b"")
