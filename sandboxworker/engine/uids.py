"""A uid of its own for every living sandbox.

The kernel counts inotify instances, pipe buffers and more per uid: sandboxes that share one
could starve each other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sandboxworker.spec import UID_RANGE


class UidRange:
    """The uids of one engine, as far as this process knows.

    Another master on the same engine is kept apart by the container's name, which carries the
    uid: the engine refuses a second container of the same name.
    """

    def __init__(self, uids: Sequence[int] = UID_RANGE) -> None:
        self._free = list(uids)
        # Two masters on one engine rarely meet, and a uid rests before it is used again.
        random.shuffle(self._free)

    def __len__(self) -> int:
        return len(self._free)

    def take(self) -> int | None:
        """A uid that no living sandbox of this process has; None when all are taken."""
        return self._free.pop(0) if self._free else None

    def give_back(self, uid: int) -> None:
        """The sandbox is gone."""
        self._free.append(uid)
