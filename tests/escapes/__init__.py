"""The escape suite's table: what a hostile build tries, and in which words it must fail."""

from __future__ import annotations

from escapes import host, neighbours, network, privileges
from escapes.attempt import Attempt

ATTEMPTS: tuple[Attempt, ...] = (
    *network.ATTEMPTS,
    *privileges.ATTEMPTS,
    *host.ATTEMPTS,
    *neighbours.ATTEMPTS,
)


def differences() -> str:
    """What comes out otherwise under gVisor, as the rows of docs/threat-model.md."""
    rows = [
        f"| `{attempt.id}` | {attempt.what} | {attempt.under_gvisor.because} |"
        for attempt in ATTEMPTS
        if attempt.under_gvisor is not None and attempt.under_gvisor.because
    ]
    return "\n".join(["| attempt | tries to | under gVisor |", "|---|---|---|", *rows])
