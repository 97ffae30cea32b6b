"""Which limits a command met: asked of the sandbox only where it failed and nobody knows yet."""

from __future__ import annotations

from sandboxworker.limits import DF, Strike, full, out_of_pids, places, was_full
from sandboxworker.process import Completed, run
from sandboxworker.sandbox import Sandbox
from sandboxworker.struck import Struck

#: Seconds that a failed command waits for each of two answers that tell which limit it met.
LOOK_DEADLINE = 5.0
#: Bytes of the answer; six lines, as a rule.
_LONGEST_LOOK = 16 * 1024
#: How the engine says that it could not start a command.
_NOT_STARTED = 126
#: Processes and threads that a start may need: some of the runtime's, and our shell lines'.
_ROOM = 16


async def limits_met(
    sandbox: Sandbox, struck: Struck, *, may_look: bool, said_full: bool
) -> list[Strike]:
    """The limits that the command which has just ended has met.

    The kernel's counts came with its end and cost nothing.
    ``may_look``: it failed, and not since we killed it; then what is full is looked for.
    ``said_full``: its output has the words for a full file system.
    """
    strikes = struck.since_told(sandbox.counts)
    if strikes or not may_look or not sandbox.is_ready:
        return strikes
    strikes = await _look(sandbox, struck)
    if not strikes and said_full:
        strikes = [was_full(struck.policy)]
    return strikes


async def _look(sandbox: Sandbox, struck: Struck) -> list[Strike]:
    argv = ("/bin/sh", "-c", DF, "sh", *places(struck.policy))
    looking = run(sandbox, argv, limit=_LONGEST_LOOK)
    looking.addTimeout(LOOK_DEADLINE, sandbox.reactor, _gave_up)
    completed = await looking
    strikes = struck.since_told(sandbox.counts)
    strikes += full(completed.stdout.decode(errors="replace"), struck.policy)
    if not strikes and sandbox.is_ready and await _had_no_room(sandbox, completed):
        strikes = [out_of_pids(struck.policy)]
    return strikes


def _gave_up(result: object, _seconds: float) -> object:
    """Cancelled, `run` has an answer of its own."""
    return result


async def _had_no_room(sandbox: Sandbox, completed: Completed) -> bool:
    """Whether not even our own look could be started, and for want of processes."""
    if b"fork" in completed.stderr:
        return True
    if completed.exit_code != _NOT_STARTED:
        return False
    # An engine that is in trouble of its own refuses as well.
    pids = (await sandbox.usage(LOOK_DEADLINE)).pids
    return pids is not None and pids > sandbox.spec.pids - _ROOM
