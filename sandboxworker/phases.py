"""How long each phase of some work took."""

from __future__ import annotations

from collections.abc import Callable


class Phases:
    """Seconds by phase, each from the end of the one before.

    ``clock``: seconds, from whenever.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self.seconds: dict[str, float] = {}

    def begin(self) -> None:
        """The first phase begins now."""
        self._since = self._clock()

    def over(self, phase: str) -> None:
        """This phase ends now, and the next one begins."""
        now = self._clock()
        self.seconds[phase] = round(now - self._since, 4)
        self._since = now
