"""How often a build is built again after faults of the infrastructure, and what is told of it.

Buildbot keeps the build request of a build that ends as a retry, so the former attempts are found
in the database, also after a restart of the master.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from buildbot.process.results import RETRY

from sandboxworker.outcome import Outcome

#: Times that a build request is built again, where the worker says nothing else.
MAX_RETRIES = 2
#: The properties that tell of an attempt.
OUTCOME, FAULT = "sandbox_outcome", "sandbox_fault"

_FAULTS = {outcome.value for outcome in Outcome if outcome.is_fault}


def retries_faults(value: Any) -> list[str]:
    """What is wrong with a ``max_retries``."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return []
    return [f"max_retries={value!r}: a number of times, 0 or more"]


@attrs.frozen
class Fault:
    """One attempt that a fault of the infrastructure ended: its build's number, and why."""

    number: int
    reason: str


async def former_faults(build: Any) -> list[Fault]:
    """The faults that ended the former builds of this one's request, the oldest first.

    What a shutdown or the master's own death ended is none.
    """
    data = build.master.data
    builds = await data.get(("buildrequests", build.requests[0].id, "builds"))
    found = []
    for each in sorted(builds, key=lambda one: one["buildid"]):
        if each["buildid"] >= build.buildid or each["results"] != RETRY:
            continue
        properties = await data.get(("builds", each["buildid"], "properties"))
        if properties.get(OUTCOME, ("",))[0] in _FAULTS:
            reason = properties.get(FAULT, ("not known",))[0]
            found.append(Fault(each["number"], str(reason)))
    return found


def may_retry(faults: int, max_retries: int) -> bool:
    """Whether it is built again after so many faults, the latest included."""
    return faults <= max_retries


def history(faults: Sequence[Fault], max_retries: int) -> str:
    """What the build's log says of them, the latest last."""
    if may_retry(len(faults), max_retries):
        verdict = (
            "the build is not to blame and is built again "
            f"(retry {len(faults)} of max_retries={max_retries})"
        )
    else:
        verdict = f"it is not built again, as max_retries={max_retries} is used up"
    lines = [f"sandboxworker: a fault of the infrastructure ended this build; {verdict}."]
    lines += [f"build {fault.number}: {fault.reason}" for fault in faults]
    return "\n".join(lines) + "\n"
