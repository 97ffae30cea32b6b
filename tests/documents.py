"""The documents' code blocks, and how each is known to be true.

Python, TOML and JSON are parsed, ``text`` is what something prints; every other block says before
it, in a comment of its own line, ``run`` (a test runs it as it stands), ``tried by: FILE`` (that
test does what it says) or ``not run: REASON``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parents[1]

#: The folders of documents; each README is one as well.
_PLACES = ("*.md", "docs/**/*.md", "images/*.md", "seccomp/*.md", "examples/**/*.md",
           "benchmarks/*.md")  # fmt: skip
_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>[\w{}-]*)[^\n]*\n"
    r"(?P<text>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"<!-- (run|tried by: [^>]+|not run: [^>]+) -->\s*$")


@attrs.frozen
class Block:
    """One code block of a document, by the line that it begins on."""

    path: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def place(self) -> str:
        """As an editor takes it, and the same in every process."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def documents() -> list[Path]:
    """Every document of the project."""
    return sorted({path for place in _PLACES for path in ROOT.glob(place)})


def blocks(path: Path) -> Iterator[Block]:
    """A document's code blocks in their order."""
    text = path.read_text()
    for found in _FENCE.finditer(text):
        mark = _MARK.search(text, 0, found.start())
        yield Block(
            path=path,
            line=text.count("\n", 0, found.start()) + 1,
            language=found["language"],
            mark=mark[1] if mark else "",
            text=found["text"],
        )


def all_blocks() -> list[Block]:
    return [block for path in documents() for block in blocks(path)]
