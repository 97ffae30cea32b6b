"""What is still to be done when a build's last step is over.

Buildbot has no hook between a build's last step and its being marked finished, and reporters look
at the properties right then; so its method is wrapped, for this one build.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from buildbot.process.results import FAILURE, Results, worst_status
from twisted.internet import defer

from sandboxworker.unexpected import unexpected


def before_finish(
    build: Any, work: Callable[[str], Awaitable[None]], why_failed: Callable[[], str | None]
) -> None:
    """Have ``work(result)`` done before this build is marked finished.

    ``result``: Buildbot's word for what it will be.
    ``why_failed()``: a sentence where the build is a failure, whatever its last step ended as: an
    interrupted one as a rule counts as an exception, for which Buildbot blames the worker.
    Called again, the new work takes the old one's place.
    """
    finish = type(build).buildFinished

    @defer.inlineCallbacks
    def build_finished(text: Any, results: int) -> Any:
        reason = why_failed()
        if reason is not None:
            build.results = results = FAILURE
            text = ["failed", f"({reason})"]
        result = Results[worst_status(build.results, results)]
        working = defer.ensureDeferred(_done(work(result)))
        working.addErrback(unexpected("telling what a build has used"))
        yield working
        yield finish(build, text, results)

    build.buildFinished = build_finished


async def _done(work: Awaitable[None]) -> None:
    await work
