"""``listdir`` and ``glob``: names from a build, each checked before the master sees it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from sandboxworker.commands.base import told_error
from sandboxworker.commands.filesystem import Tool
from sandboxworker.commands.globbing import Pattern, is_forged

#: Bytes of names that are taken from a build; a directory with more is no answer to a step.
_MAX_NAMES = 16 * 1024 * 1024
#: Names; each costs the master some hundred bytes.
_MAX_COUNT = 250_000

#: $1 the directory. Hidden names too; a pattern that matched nothing is no name.
#: GNU ls says best what is wrong; where all is well it is not given a name, since it fails on each
#: under a gVisor that does not know all of statx(2)'s flags (Debian 12's).
_LIST = """\
cd -- "$1" 2>/dev/null && ls >/dev/null 2>&1 || { ls -- "$1/" >/dev/null && cd -- "$1"; exit 1; }
for n in * .*; do
case $n in .|..) continue;; esac
if [ -e "$n" ] || [ -L "$n" ]; then printf '%s\\0' "$n"; fi
done
"""

#: $1 the directory, $2 how deep (nothing: all). First the directories, an empty name, the rest.
#: Links are followed, as Python's glob does.
_FIND = """\
[ -d "$1" ] || exit 0
find -L "$1" -mindepth 1 ${2:+-maxdepth "$2"} -type d -print0 2>/dev/null
printf '\\0'
find -L "$1" -mindepth 1 ${2:+-maxdepth "$2"} ! -type d -print0 2>/dev/null
:
"""


class ForgedName(Exception):
    """A name that cannot be one below the directory that was asked for."""


class _Listing(Tool):
    """A command whose answer is a list of names."""

    requiredArgs = ["path"]

    async def work(self) -> None:
        path = self.args["path"]
        try:
            files = await self.files(path)
        except ForgedName as forged:
            self.refused(f"a name that leaves {path!r} is refused: {forged}")
            return
        if files is not None:
            self.sendStatus([("files", files), ("rc", 0)])

    async def files(self, path: str) -> list[str] | None:
        """The answer; None where a failure has been sent."""
        raise NotImplementedError

    def refused(self, why: str) -> None:
        self.sendStatus([("header", f"{self.header}: sandboxworker: {why}\n"), ("rc", 1)])

    async def names(self, script: str, *arguments: str) -> list[str] | None:
        """What a script printed, parted at NULs; None where a failure has been sent."""
        completed = await self.tool("/bin/sh", "-c", script, "sh", *arguments, limit=_MAX_NAMES)
        if completed.is_cut or completed.stdout.count(b"\0") > _MAX_COUNT:
            self.refused(f"{arguments[0]!r} holds more names than are taken from a build")
            return None
        if completed.exit_code != 0:
            number, text = told_error(completed.stderr)
            self.sendStatus([("header", f"{self.header}: {text}: {arguments[0]}"), ("rc", number)])
            return None
        return [os.fsdecode(name) for name in completed.stdout.split(b"\0")][:-1]


class ListDirectory(_Listing):
    """``listdir``: the names in one directory, in no order."""

    header = "listdir"

    async def files(self, path: str) -> list[str] | None:
        names = await self.names(_LIST, path)
        for name in names or ():
            if is_forged(name) or "/" in name:
                raise ForgedName(repr(name))
        return names


class GlobPath(_Listing):
    """``glob``: the paths that match a pattern, by the rules of Python's ``glob``."""

    header = "glob"

    async def files(self, path: str) -> list[str] | None:
        pattern = Pattern.parse(path)
        depth = "" if pattern.depth is None else str(pattern.depth)
        names = await self.names(_FIND, pattern.root, depth)
        if names is None:
            return None
        parting = names.index("") if "" in names else len(names)
        directories = _below(pattern.root, names[:parting])
        others = _below(pattern.root, names[parting + 1 :])
        return pattern.select(["", *directories] if names else [], others)


def _below(root: str, paths: Iterable[str]) -> list[str]:
    """Paths relative to the directory they must be below."""
    prefix = root.rstrip("/") + "/"
    relative = []
    for path in paths:
        name = path.removeprefix(prefix)
        if not path.startswith(prefix) or is_forged(name):
            raise ForgedName(repr(path))
        relative.append(name)
    return relative
