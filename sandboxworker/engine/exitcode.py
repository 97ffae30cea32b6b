"""The exit code of a command whose stream has ended."""

from __future__ import annotations

from typing import Any

from twisted.internet import task

from sandboxworker.engine.interface import Engine

#: Seconds for the exit code to be known after a command's stream has ended.
STATUS_DEADLINE = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.5


async def exit_code(
    engine: Engine, exec_id: str, clock: Any, seconds: float = STATUS_DEADLINE
) -> int | None:
    """What the engine says, asked for so long; None if it does not know it even then.

    An engine closes the stream a moment before it notes the exit code.
    ``clock``: Twisted's ``IReactorTime``.
    """
    pause, give_up = _FIRST_PAUSE, clock.seconds() + seconds
    status = await engine.exec_status(exec_id)
    while status is None and clock.seconds() < give_up:
        await task.deferLater(clock, pause, lambda: None)
        pause = min(pause * 2, _LONGEST_PAUSE)
        status = await engine.exec_status(exec_id)
    return status
