"""How much slower than others this machine is, for what a test waits at most.

``SANDBOXWORKER_SLOW``: a factor; an emulated machine says 16.
Only what tests wait for is stretched: sandboxworker's own deadlines are what they are.
"""

from __future__ import annotations

import os

SLOW = float(os.environ.get("SANDBOXWORKER_SLOW") or 1)
