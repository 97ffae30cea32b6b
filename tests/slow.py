"""How much slower than others this machine is, for what a test waits at most.

``SANDBOXWORKER_SLOW``: a factor; an emulated machine says 16.
Only what tests wait for is stretched: sandboxworker's own deadlines are what they are.
"""

from __future__ import annotations

import os
from typing import Any

from sandboxworker.errors import Hindered

SLOW = float(os.environ.get("SANDBOXWORKER_SLOW") or 1)


def withstood_the_kill(sandbox: Any) -> bool:
    """Whether a sandbox was given up since its full pids limit kept the kill from starting.

    On an emulated machine that is an end as well (docs/containment.md, "Another kernel").
    """
    return SLOW > 1 and isinstance(sandbox.lost, Hindered)
