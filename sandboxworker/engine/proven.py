"""What an engine has been seen to do, so that it is not tried before every build."""

from __future__ import annotations

from typing import Any

#: Seconds for which what was seen holds: an engine may be replaced at its address.
HOLDS = 3600.0


class Proven:
    """One for each engine object; ``clock``: Twisted's ``IReactorTime``."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def holds(self, what: str) -> bool:
        """Whether it was seen, and not too long ago."""
        return bool(self._until.get(what, 0.0) > self._clock.seconds())

    def note(self, what: str) -> None:
        """It was seen just now."""
        now = self._clock.seconds()
        self._until = {name: until for name, until in self._until.items() if until > now}
        self._until[what] = now + HOLDS
