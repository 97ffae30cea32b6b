"""What the machine writes to its serial line, and what is to be made of it.

Pure: no clock, no process.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable

import attrs


class Outcome(enum.Enum):
    """How it went; the value is what the program outside exits with, unless pytest's own counts."""

    FINISHED = 0
    NO_BOOT = 121
    CRASHED = 122
    HUNG = 123

    @property
    def words(self) -> str:
        return _WORDS[self]


_WORDS = {
    Outcome.FINISHED: "the machine ran to its end",
    Outcome.NO_BOOT: "the machine did not come up",
    Outcome.CRASHED: "the machine went down before the tests were over",
    Outcome.HUNG: "the tests were not over in time; the machine was switched off",
}
_LINE_LIMIT = 1 << 16
#: What a terminal would obey; the firmware clears the screen.
_ESCAPES = re.compile(r"\x1b(?:c|\[[0-9;?]*[A-Za-z])")


@attrs.define
class Console:
    """Parts the machine's words into lines and looks for those that begin with ``word``.

    ``show`` gets every other line, without its end.
    ``word`` is drawn for each run, so that no test can say it by chance.
    """

    word: str
    show: Callable[[str], None]
    has_begun: bool = False
    #: The exit code that the machine told; None before its end.
    code: int | None = None
    _rest: bytes = b""

    def received(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-_LINE_LIMIT:]
        for line in lines:
            self._line(_ESCAPES.sub("", line.rstrip(b"\r").decode(errors="replace")))

    def _line(self, line: str) -> None:
        word, _, told = line.partition(" ")
        if word != self.word:
            self.show(line)
        elif told == "begin":
            self.has_begun = True
        elif told.startswith("end ") and told[4:].isdigit():
            self.code = int(told[4:])

    def outcome(self, *, in_time: bool) -> Outcome:
        """Once the machine is off, by itself (``in_time``) or because nobody waited longer."""
        if self.code is not None:
            return Outcome.FINISHED
        if not self.has_begun:
            return Outcome.NO_BOOT
        return Outcome.CRASHED if in_time else Outcome.HUNG
