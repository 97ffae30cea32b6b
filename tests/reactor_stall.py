"""How long the reactor was kept from its work, at the longest."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor, task

_BEAT = 0.01


class Stall:
    """Beats from `start` to `stop`; ``longest``: seconds by which a beat came too late."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = 0.0
        self._beating: Any = None

    def start(self) -> Stall:
        self._last = reactor.seconds()  # type: ignore[attr-defined]
        self._beating = task.LoopingCall(self._beat)
        self._beating.start(_BEAT, now=False)
        return self

    def _beat(self) -> None:
        now = reactor.seconds()  # type: ignore[attr-defined]
        self.longest = max(self.longest, now - self._last - _BEAT)
        self._last = now

    def stop(self) -> float:
        """The longest one."""
        if self._beating is not None and self._beating.running:
            self._beating.stop()
        return self.longest
