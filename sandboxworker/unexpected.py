"""What nobody expected goes to the log, with what was being done; it is never swallowed."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger
from twisted.python.failure import Failure

_log = Logger()


def unexpected(doing: str) -> Callable[[Failure], None]:
    """An errback for work that nobody waits for."""

    def report(failure: Failure) -> None:
        _log.failure("sandboxworker: {doing}", failure, doing=doing)

    return report
