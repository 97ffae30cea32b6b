"""A reactor for the length of one coroutine."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from twisted.internet import defer, task
from twisted.python.failure import Failure

from sandboxworker.errors import SandboxworkerError

T = TypeVar("T")


def react(main: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end; its result, or its error."""
    ended: list[Any] = []

    def started(reactor: Any) -> defer.Deferred[None]:
        running = defer.ensureDeferred(main(reactor))
        return running.addBoth(ended.append)

    with contextlib.suppress(SystemExit):  # What it exits with says no more than `ended`.
        task.react(started)
    if not ended:  # A signal stopped the reactor.
        raise SandboxworkerError("interrupted")
    if isinstance(ended[0], Failure):
        ended[0].raiseException()
    return cast(T, ended[0])


def run_name() -> str:
    """The worker of this run of ``try``, in its containers' label ``sandboxworker.worker``."""
    return f"try-{os.getpid()}"


def catch_signals(reactor: Any, act: Callable[[int], None]) -> None:
    """From here on ``act(number)`` is called in the reactor for Ctrl-C and SIGTERM.

    Not before the reactor runs: it takes SIGTERM for itself when it starts.
    """

    def caught(number: int, _frame: Any) -> None:
        reactor.callFromThread(act, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, caught)
