"""Whether each build request ended as it had to, given what was done to it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

#: Seconds for which a fault of the engine's goes on being felt: a call that hangs is given up after
#: 30 s, and the sandbox that it belonged to takes as long again to be given up.
AFTERMATH = 65.0


@attrs.define
class Try:
    """One build of a request; times in seconds."""

    build: int
    began: float
    ended: float | None = None
    result: str = ""


@attrs.define
class Wanted:
    """One build request: how it has to end, and what became of it.

    ``outcome``: what its last build says of itself, in our words, and ``wanted_outcome``.
    ``removed``: its tries whose sandbox was removed from outside.
    """

    request: int
    kind: str
    result: str
    tries: list[Try] = attrs.Factory(list)
    removed: list[int] = attrs.Factory(list)
    wanted_outcome: str = ""
    outcome: str = ""
    #: Buildbot's word for the request itself.
    final: str = ""


@attrs.frozen
class Harm:
    """Something that was wrong with the engine for all builds, from when to when."""

    what: str
    began: float
    ended: float

    @property
    def is_cut(self) -> bool:
        """Whether it took a stream or connection that was open."""
        return self.what.endswith("is cut")

    def happened_during(self, attempt: Try) -> bool:
        ended = float("inf") if attempt.ended is None else attempt.ended
        return self.began <= ended and attempt.began <= self.ended

    def touches(self, attempt: Try) -> bool:
        ended = float("inf") if attempt.ended is None else attempt.ended
        return self.began <= ended and attempt.began <= self.ended + AFTERMATH


def complaints(
    wanted: Wanted, harms: Sequence[Harm], max_retries: int | None = None
) -> Iterable[str]:
    """One line for each thing that is not as it has to be."""
    name = f"request {wanted.request} ({wanted.kind})"
    if not wanted.tries or not wanted.final:
        yield f"{name} has no end"
        return
    last = wanted.tries[-1]
    if wanted.final != last.result:
        yield f"{name}: it ended as {wanted.final}, its last build as {last.result}"
    for attempt in wanted.tries[:-1]:
        yield from _not_for_nothing(name, wanted, attempt, harms)
    if last.result == wanted.result:
        if wanted.outcome not in ("", wanted.wanted_outcome):
            yield f"{name}: it says {wanted.outcome}, and not {wanted.wanted_outcome}"
        return
    if _was_cut_at_its_end(wanted, last, harms):
        return
    if last.result == "exception" and len(wanted.tries) - 1 == max_retries:
        yield from _not_for_nothing(name, wanted, last, harms, "exception")
        return
    yield f"{name}: build {last.build} ended as {last.result}, not {wanted.result}"


def _was_cut_at_its_end(wanted: Wanted, last: Try, harms: Sequence[Harm]) -> bool:
    """A stream that is cut within the last second of a command cannot be told from mischief.

    It is a failure then, as docs/reliability.md has it.
    """
    failed = last.result == "failure" and wanted.outcome in ("", "failed: exit")
    return failed and any(harm.is_cut and harm.happened_during(last) for harm in harms)


def _not_for_nothing(
    name: str, wanted: Wanted, attempt: Try, harms: Sequence[Harm], result: str = "retry"
) -> Iterable[str]:
    """A build that was tried again must have had a reason from outside."""
    if attempt.result != result:
        yield f"{name}: build {attempt.build} ended as {attempt.result} and was built again"
    is_removed = attempt.build in wanted.removed
    if not is_removed and not any(harm.touches(attempt) for harm in harms):
        yield f"{name}: build {attempt.build} was tried again though nothing was wrong"
