"""How much slower than others this machine is, for what a test waits at most.

``SANDBOXWORKER_SLOW``: a factor; an emulated machine says 16.
Only what tests wait for is stretched: sandboxworker's own deadlines are what they are.
"""

from __future__ import annotations

import os

SLOW = float(os.environ.get("SANDBOXWORKER_SLOW") or 1)


def withstood_the_kill(told: object) -> bool:
    """Whether a full pids limit kept the kill from starting, by a sandbox's end or a step's log.

    On an emulated machine that is an end as well (docs/containment.md, "Another kernel").
    """
    return SLOW > 1 and "withstands being killed" in str(told)
