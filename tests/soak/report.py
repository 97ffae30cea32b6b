"""What a soak has shown, for people and for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from soak.counts import MIB

#: How far memory may grow from the first quarter of the builds to the end.
MAX_GROWTH = 24 * MIB


@attrs.frozen
class Report:
    """``memory``: seconds, builds completed and bytes, every ten seconds.

    ``remaining``: which containers and processes there were in the end, a line each.
    ``forgotten``: shims that a killed daemon has left (see `counts.forgotten`).
    """

    options: Mapping[str, Any]
    seconds: float
    results: Counter[str]
    tries: Counter[int]
    harm: Counter[str]
    deeds: Counter[str]
    outcomes: Counter[str]
    before: Mapping[str, int]
    after: Mapping[str, int]
    remaining: list[str]
    forgotten: int
    memory: list[tuple[float, int, int]]
    stall: float
    errors: list[str]
    complaints: list[str]

    @property
    def left(self) -> list[str]:
        """What there is more of than there was."""
        return [
            f"{self.after[name]} {name}, {count} before"
            for name, count in self.before.items()
            if self.after[name] > count
        ]

    @property
    def growth(self) -> int:
        """Bytes by which the master grew from the first quarter of the samples to the end."""
        sizes = [size for _, _, size in self.memory]
        return sizes[-1] - sizes[len(sizes) // 4] if sizes else 0

    @property
    def faults(self) -> list[str]:
        """What is not as it has to be."""
        grown = [f"the master grew by {self.growth / MIB:.1f} MiB"] * (self.growth > MAX_GROWTH)
        return [*self.complaints, *self.left, *grown, *self.errors]

    def save(self, file: Path) -> None:
        figures = {
            **attrs.asdict(self),
            "left": self.left,
            "growth": self.growth,
            "faults": self.faults,
        }
        file.write_text(json.dumps(figures, indent=1))

    def lines(self) -> list[str]:
        count = self.results.total()
        sizes = [size / MIB for _, _, size in self.memory]
        return [
            f"{count} builds in {self.seconds:.0f} s, {count / self.seconds:.2f} a second",
            *_table("builds by kind and result", self.results),
            *_table("builds by number of tries", self.tries),
            *_table("sandboxes by outcome", self.outcomes),
            *_table("what was done to single builds", self.deeds),
            *_table("what was wrong with the engine", self.harm),
            *_table("counts before", self.before),
            *_table("counts after", self.after),
            *(f"  remaining: {what}" for what in self.remaining),
            f"shims that a killed daemon forgot: {self.forgotten}",
            "memory of the master: "
            + (f"{sizes[0]:.0f} to {sizes[-1]:.0f} MiB, at most {max(sizes):.0f}" if sizes else "-")
            + f"; since the first quarter {self.growth / MIB:+.1f} MiB",
            f"longest stall of the reactor: {self.stall:.3f} s",
            *(f"WRONG: {fault}" for fault in self.faults[:40]),
            f"{len(self.faults)} faults" if self.faults else "all as it has to be",
        ]


def _table(title: str, counts: Mapping[Any, int]) -> list[str]:
    return [f"{title}:", *(f"  {count:6}  {name}" for name, count in sorted(counts.items()))]
