"""Python's ``glob.glob(pattern, recursive=True)``, on a list of names instead of on a disk.

Pure. The names come from a build, so each is checked (`is_forged`) before it is matched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import attrs

_MAGIC = re.compile(r"[*?[]")


@attrs.frozen
class Pattern:
    """A pattern, parted where its magic begins.

    ``root``: the directory to look into; ``parts``: the components from there on.
    """

    root: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """``text``: an absolute path with ``*``, ``?``, ``[…]``, and ``**`` for any depth."""
        parts = text.split("/")
        last = len(parts) - 1
        begin = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), last)
        return cls("/".join(parts[:begin]) or "/", tuple(parts[begin:]))

    @property
    def depth(self) -> int | None:
        """How many levels below ``root`` matter; None for all."""
        return None if "**" in self.parts else len(self.parts)

    def select(self, directories: Iterable[str], others: Iterable[str]) -> list[str]:
        """The full paths that match, of the names below ``root`` (given relative to it).

        An empty name among the directories is ``root`` itself.
        """
        below = list(directories)
        found = [self._full(name) for name in below if self._matches(name, is_directory=True)]
        found += [self._full(name) for name in others if self._matches(name, is_directory=False)]
        if self.parts[-1] == "**":  # Which also stands for nothing: the directory before it.
            before = Pattern(self.root, (*self.parts[:-1], ""))
            found += before.select(below, ())
        return found

    def _matches(self, name: str, *, is_directory: bool) -> bool:
        names = name.split("/") if name else []
        return _matches(self.parts, names, is_directory)

    def _full(self, name: str) -> str:
        """As Python gives it: a slash at the end where the pattern has one."""
        slash = "/" if name and not self.parts[-1] else ""
        return f"{self.root.rstrip('/')}/{name}{slash}"


def _matches(parts: Sequence[str], names: Sequence[str], is_directory: bool) -> bool:
    if not parts:
        return not names
    part, rest = parts[0], parts[1:]
    if part == "**":
        return _matches_any_depth(parts, names, is_directory)
    if not part and not rest:
        return not names and is_directory
    return bool(names) and _component(part, names[0]) and _matches(rest, names[1:], is_directory)


def _matches_any_depth(parts: Sequence[str], names: Sequence[str], is_directory: bool) -> bool:
    """``**``: no directory, or one more, none of them hidden; at the end also a file."""
    rest = parts[1:]
    if not rest:
        return bool(names) and not any(name.startswith(".") for name in names)
    if _matches(rest, names, is_directory):
        return True
    return bool(names) and not names[0].startswith(".") and _matches(parts, names[1:], is_directory)


def _component(part: str, name: str) -> bool:
    if not _MAGIC.search(part):
        return part == name
    # Names that begin with a dot want to be asked for.
    return (part.startswith(".") or not name.startswith(".")) and fnmatchcase(name, part)


def is_forged(name: str) -> bool:
    """Whether a name that a build gave cannot be one below the directory it was asked for."""
    return any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name
