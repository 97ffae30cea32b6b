"""What is counted as it happens and is no event of the audit log: told to whoever listens."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from sandboxworker.errors import EngineError, EngineRefused, EngineTimeout, EngineUnreachable

T = TypeVar("T")


class Listener(Protocol):
    """Called in the reactor's thread; must not fail, and must not take long."""

    def command_started(self, engine: str, seconds: float) -> None:
        """A command of a build began to run that long after it was asked for."""

    def output(self, size: int) -> None:
        """So many bytes were written to a build's logs."""

    def engine_failed(self, engine: str, kind: str) -> None:
        """A call to the engine failed in one of the ways of `FAILURES`."""


FAILURES = ("timeout", "unreachable", "refused", "other")

#: Those of this process. Nobody listens where no metrics are asked for.
LISTENERS: list[Listener] = []


def command_started(engine: str, seconds: float) -> None:
    for listener in LISTENERS:
        listener.command_started(engine, max(0.0, seconds))


def output(size: int) -> None:
    for listener in LISTENERS:
        listener.output(size)


def failures_told(call: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    """For an engine's method, whose first argument has the engine's ``name``."""

    @functools.wraps(call)
    async def told(engine: Any, *arguments: Any, **named: Any) -> T:
        try:
            return await call(engine, *arguments, **named)
        except EngineError as error:
            kind = _kind(error)
            if kind is not None:
                for listener in LISTENERS:
                    listener.engine_failed(engine.name, kind)
            raise

    return told


def _kind(error: EngineError) -> str | None:
    """None for an answer in the usual course of things: no such container, a name in use."""
    if isinstance(error, EngineRefused):
        return None if 300 <= error.status < 500 else "refused"
    if isinstance(error, EngineTimeout):
        return "timeout"
    return "unreachable" if isinstance(error, EngineUnreachable) else "other"
