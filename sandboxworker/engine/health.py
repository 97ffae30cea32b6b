"""Whether an engine answers, asked again and again: builds go only where they can run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet import defer, task
from twisted.python import log

from sandboxworker.errors import Actor, SandboxworkerError
from sandboxworker.unexpected import unexpected

#: Seconds between two questions: to an engine that answered, and to one that did not.
UP_SECONDS = 10.0
DOWN_SECONDS = 3.0

Changed = Callable[[bool], None]


class Health:
    """Of one engine, which counts as up until it did not answer.

    It is asked only while somebody watches.
    ``ask``: a small call to the engine that ends within its own deadline.
    """

    def __init__(
        self, engine: str, ask: Callable[[], Coroutine[Any, Any, Any]], reactor: Any
    ) -> None:
        self.is_up = True
        self._engine = engine
        self._ask = ask
        self._reactor = reactor
        self._watchers: list[Changed] = []
        self._clock: Any = None

    def watch(self, changed: Changed) -> Callable[[], None]:
        """Call ``changed(is_up)`` at every change; what is returned ends that."""
        self._watchers.append(changed)
        if self._clock is None:
            self._start_clock(now=True)

        def stop() -> None:
            self._watchers.remove(changed)
            if not self._watchers:
                self._stop_clock()

        return stop

    def failed(self, error: SandboxworkerError) -> None:
        """Some call found nobody; the engine counts as down until it answers a question."""
        if self.is_up and self._clock is not None:
            log.msg(f"sandboxworker: {error}; its workers take no builds until it answers")
            self._turn(False)

    def _start_clock(self, *, now: bool) -> None:
        self._clock = task.LoopingCall(self._look)
        self._clock.clock = self._reactor
        running = self._clock.start(UP_SECONDS if self.is_up else DOWN_SECONDS, now=now)
        running.addErrback(unexpected(f"asking whether {self._engine} answers"))

    def _stop_clock(self) -> None:
        if self._clock is not None and self._clock.running:
            self._clock.stop()
        self._clock = None

    def _look(self) -> defer.Deferred[None]:
        return defer.ensureDeferred(self._answer())

    async def _answer(self) -> None:
        try:
            await self._ask()
        except SandboxworkerError as error:
            # What the operator has to mend is told to the build that meets it.
            if error.actor is Actor.ENGINE:
                self.failed(error)
                return
        if not self.is_up and self._clock is not None:
            log.msg(f"sandboxworker: container engine {self._engine} answers again")
            self._turn(True)

    def _turn(self, is_up: bool) -> None:
        self.is_up = is_up
        self._clock.interval = UP_SECONDS if is_up else DOWN_SECONDS
        for changed in list(self._watchers):
            changed(is_up)
