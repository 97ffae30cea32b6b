"""What befell one build's commands: the limits they met, what was refused, how they ended.

Gathered while it runs, for the words at its end (see `outcome`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from sandboxworker.errors import OutOfMemory
from sandboxworker.limits import Counts, Strike, counted
from sandboxworker.outcome import LIMITS, Cause
from sandboxworker.policy import SandboxPolicy

#: Tells the audit log of a limit: field, value, peak where there is one.
Record = Callable[[str, int, int | None], None]


def _nobody(_field: str, _value: int, _peak: int | None) -> None:
    return None


@attrs.define
class Struck:
    """``fields``: the policy's fields whose limits were met, in that order, each once.

    ``counts``: the kernel's, as far as they have been told.
    ``refused``: a secret or a source that a step asked for was kept from it; which of the two.
    """

    policy: SandboxPolicy
    record: Record = _nobody
    fields: list[str] = attrs.Factory(list)
    counts: Counts = attrs.Factory(Counts)
    refused: set[str] = attrs.Factory(set)
    _limit: Cause | None = None
    _end: Cause | None = None

    @property
    def cause(self) -> Cause | None:
        """Why a command failed: the first limit that made one, else the end of the last such."""
        return self._limit or self._end

    def met(self, field: str, value: int, peak: int | None = None) -> None:
        """A limit was met."""
        if field not in self.fields:
            self.fields.append(field)
        self.record(field, value, peak)

    def ended_by(self, field: str, value: int) -> None:
        """A limit was met, and a command ended for it."""
        self.met(field, value)
        self._failed_by([field])

    def expired(self) -> None:
        """``max_runtime`` is over, which the sandbox itself has told the audit log."""
        self.fields.append("max_runtime")
        self._failed_by(["max_runtime"])

    def since_told(self, now: Counts) -> list[Strike]:
        """The limits that the kernel says were met, and that nobody has been told of."""
        before, self.counts = self.counts, self.counts.with_(now)
        return list(counted(before, self.counts, self.policy))

    def command_ended(
        self, strikes: Iterable[Strike], *, exit_code: int | None, signal: int | None
    ) -> None:
        """A command has ended, and met these limits; a code of 0 is no failure."""
        strikes = list(strikes)
        for strike in strikes:
            self.met(strike.field, strike.value, strike.peak)
        if signal is None and exit_code == 0:
            return
        self._end = Cause.EXIT if signal is None else Cause.SIGNAL
        self._failed_by([strike.field for strike in strikes])

    def died_of(self, reason: Exception) -> None:
        """The build's doing ended its sandbox."""
        if isinstance(reason, OutOfMemory):
            self.ended_by("memory", self.policy.memory)
        else:
            self._limit = self._limit or Cause.HINDERED

    def _failed_by(self, fields: list[str]) -> None:
        if fields and self._limit is None:
            self._limit = LIMITS[fields[0]]
