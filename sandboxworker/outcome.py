"""One word for how a build ended, from what is known when its last step is over.

Pure; the words are those of the build's property ``sandbox_outcome`` and of the audit log.
"""

from __future__ import annotations

import enum

from sandboxworker.errors import Actor


class Outcome(enum.Enum):
    """How a build in a sandbox ended."""

    #: Its steps ran as they were meant to, with or without warnings.
    COMPLETED = "completed"
    #: A step failed, or raised an exception.
    FAILED = "failed"
    #: Somebody stopped it.
    STOPPED = "stopped"
    #: The policy's ``max_runtime`` was over.
    EXPIRED = "expired"
    #: Its sandbox ended without being asked to.
    LOST = "lost"
    #: It got no sandbox: policy, image or conformance refuse it.
    REFUSED = "refused"
    #: It got no sandbox: the engine could not make one.
    ENGINE_ERROR = "engine-error"


_COMPLETED = frozenset({"success", "warnings", "skipped"})


def outcome(
    result: str,
    *,
    refused_by: Actor | None = None,
    is_expired: bool = False,
    is_lost: bool = False,
) -> Outcome:
    """What became of a build.

    ``result``: Buildbot's own word for it; ``refused_by``: who must act since no sandbox could be
    started, None where one was; ``is_expired``: the deadline came; ``is_lost``: its sandbox did
    not wait for its end.
    """
    if refused_by is not None:
        return Outcome.ENGINE_ERROR if refused_by is Actor.ENGINE else Outcome.REFUSED
    if is_expired:
        return Outcome.EXPIRED
    if is_lost:
        return Outcome.LOST
    if result == "cancelled":
        return Outcome.STOPPED
    return Outcome.COMPLETED if result in _COMPLETED else Outcome.FAILED
