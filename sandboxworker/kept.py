"""Output of a program, as far as it is worth keeping."""

from __future__ import annotations

import attrs


@attrs.define
class Kept:
    """The first ``limit`` bytes of a stream. ``is_cut``: there were more."""

    limit: int
    data: bytearray = attrs.Factory(bytearray)
    is_cut: bool = False

    def add(self, data: bytes) -> None:
        fits = data[: self.limit - len(self.data)]
        self.data += fits
        self.is_cut = self.is_cut or len(fits) < len(data)
