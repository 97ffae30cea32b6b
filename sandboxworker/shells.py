"""A shell that waits in the sandbox for the next command, started while the one before runs.

An exec costs the engine some tens of milliseconds, which a command that finds a shell waiting does
not pay.
The build can kill, stop or rob that shell, as it can any process of its own; so whoever gives it a
command waits for its answer no longer than `ANSWER_DEADLINE`, and starts a shell of its own only
when this one is surely dead.
"""

from __future__ import annotations

import contextlib
import secrets

from twisted.internet import defer

from sandboxworker.engine.exitcode import STATUS_DEADLINE
from sandboxworker.engine.interface import STDOUT, Stream, StreamReceiver
from sandboxworker.errors import EngineError, SandboxGone
from sandboxworker.launch import waiting
from sandboxworker.sandbox import Sandbox
from sandboxworker.unexpected import unexpected

#: Seconds that a command waits for a shell that was begun and does not wait yet.
BEGIN_DEADLINE = 5.0
#: Seconds for a waiting shell to take a command.
ANSWER_DEADLINE = 10.0
#: Bytes of the pid that it tells.
_LONGEST_PID = 12


class WaitingShell:
    """One exec of a shell that waits for `launch.lines`.

    ``pid`` is what it told, or what its build made of that; None before it waits.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self.pid: int | None = None
        self._sandbox = sandbox
        self._exec_id = ""
        self._stream: Stream | None = None
        self._heir: StreamReceiver | None = None
        self._said = b""
        self._is_over = False
        self._begun: defer.Deferred[None] = defer.Deferred()

    async def begin(self) -> None:
        """Have the engine start it."""
        argv = waiting(secrets.token_hex(4))
        try:
            self._exec_id, self._stream = await self._sandbox.exec(argv, self, stdin=True)
        except EngineError:
            self.drop()  # The next command starts its own, and tells what hinders it.
        if self._is_over:
            self.drop()

    async def is_waiting(self) -> bool:
        """Whether it waits for a command; soon, if it was only just begun."""
        if not self._is_over and self.pid is None:
            self._begun.addTimeout(BEGIN_DEADLINE, self._sandbox.reactor)
            with contextlib.suppress(defer.TimeoutError):
                await self._begun
        return not self._is_over and self.pid is not None

    def hand_over(self, heir: StreamReceiver) -> tuple[str, Stream]:
        """Its exec id and its stream, of which ``heir`` hears from now on; only while it waits."""
        if self._stream is None:
            raise SandboxGone(self._sandbox.id, self._sandbox.state.value)
        self._heir = heir
        return self._exec_id, self._stream

    async def kill(self) -> None:
        """So that it takes no command any more; the build may have seen to it that this fails."""
        with contextlib.suppress(EngineError):
            await self._sandbox.signal("KILL", self.pid or 0)

    def drop(self) -> None:
        """Not needed: its stdin ends, and with it the shell."""
        self._is_over = True
        if self._stream is not None:
            self._sandbox.release(self._stream)
        if not self._begun.called:
            self._begun.callback(None)

    # the engine's side (see `interface.StreamReceiver`)

    def stream_received(self, channel: int, data: bytes) -> None:
        if self._heir is not None:
            self._heir.stream_received(channel, data)
        elif not self._is_over:
            self._hear(channel, data)

    def _hear(self, channel: int, data: bytes) -> None:
        """Its pid, once; whatever else comes is its build's doing, or a shell in trouble."""
        self._said += data
        pid, end, more = self._said.partition(b"\n")
        is_bad = channel != STDOUT or self.pid is not None or len(self._said) > _LONGEST_PID
        if is_bad or (end and (more or not pid.isdigit())):
            self.drop()
        elif end:
            self.pid = int(pid)
            if not self._begun.called:
                self._begun.callback(None)

    def stream_ended(self, reason: Exception | None) -> None:
        if self._heir is not None:
            self._heir.stream_ended(reason)
        else:
            self.drop()


class Offer:
    """A command that a waiting shell was given: whether it takes it."""

    def __init__(self, sandbox: Sandbox, shell: WaitingShell) -> None:
        self._sandbox = sandbox
        self._shell = shell
        self.reason: Exception | None = None
        self._is_taken: bool | None = None
        self._told: defer.Deferred[None] = defer.Deferred()

    def tell(self, is_taken: bool, reason: Exception | None = None) -> None:
        """It told the command's pid, or its streams ended; why, where not in order."""
        if self._is_taken is None:
            self.reason = reason
            self._is_taken = is_taken
            if not self._told.called:
                self._told.callback(None)

    def give_up(self) -> None:
        """Wait for no answer any more: it behaves as no shell of ours does."""
        if not self._told.called:
            self._told.callback(None)

    async def answer(self) -> bool | None:
        """True when it took the command, False when its streams ended without a word.

        One that does neither in time is killed; None if its streams stay open even then.
        """
        await self._wait(ANSWER_DEADLINE)
        if self._is_taken is None:
            await self._shell.kill()
            await self._wait(STATUS_DEADLINE)
        return self._is_taken

    async def _wait(self, seconds: float) -> None:
        if self._is_taken is None:
            self._told = defer.Deferred()
            self._told.addTimeout(seconds, self._sandbox.reactor)
            with contextlib.suppress(defer.TimeoutError):
                await self._told


def prepare(sandbox: Sandbox) -> defer.Deferred[None]:
    """Have a shell wait for the next command, unless one does; fires when the engine has begun it.

    Never fails.
    """
    if sandbox.waiting is not None or not sandbox.is_ready:
        return defer.succeed(None)
    sandbox.waiting = shell = WaitingShell(sandbox)
    beginning = defer.ensureDeferred(shell.begin())
    beginning.addErrback(unexpected(f"sandbox {sandbox.id}: preparing a shell"))
    return beginning


async def take(sandbox: Sandbox) -> WaitingShell | None:
    """The shell that waits, for this command alone; None where there is none."""
    shell: WaitingShell | None = sandbox.waiting
    sandbox.waiting = None
    if shell is None or await shell.is_waiting():
        return shell
    shell.drop()
    return None
