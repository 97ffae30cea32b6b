"""Which processors a sandbox runs on, where it shall see fewer than there are."""

from __future__ import annotations

import random


class Cores:
    """The processors of one engine's host, and how many of our sandboxes run on each.

    Other masters' sandboxes are not known; chance keeps them from choosing alike.
    """

    def __init__(self) -> None:
        self._users: dict[int, int] = {}

    def take(self, wanted: int | None, available: int) -> str:
        """The least used ``wanted`` of them, in the kernel's list format.

        Empty where no choice is to be made: None is wanted, or all of them.
        """
        if wanted is None or wanted >= available:
            return ""
        cores = list(range(available))
        random.shuffle(cores)
        chosen = sorted(cores, key=lambda core: self._users.get(core, 0))[:wanted]
        for core in chosen:
            self._users[core] = self._users.get(core, 0) + 1
        return ",".join(map(str, sorted(chosen)))

    def give_back(self, cpuset: str) -> None:
        """The sandbox is gone."""
        for core in map(int, filter(None, cpuset.split(","))):
            self._users[core] = max(self._users.get(core, 0) - 1, 0)
