"""Which submodules a commit has: read from the mirror, not from the build."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from sandboxworker.errors import SourceFailed
from sandboxworker.source.git import Git
from sandboxworker.source.mirror import Mirror, is_object

_MOST_BYTES = 256 * 1024
#: In all, with those of submodules.
MOST = 256


@attrs.frozen
class Submodule:
    """``path``: where it stands; ``url``: as ``.gitmodules`` has it; ``commit``: what is wanted."""

    path: str
    url: str
    commit: str


async def submodules_of(git: Git, mirror: Mirror, commit: str) -> list[Submodule]:
    """A commit's own submodules; those that say ``update = none`` left out, as git does."""
    blob = f"{commit}:.gitmodules"
    size = await git.attempt("cat-file", "-s", blob, directory=mirror.path)
    if size is None:
        return []
    if int(size) > _MOST_BYTES:
        raise SourceFailed("reading .gitmodules", f"it has more than {_MOST_BYTES} bytes")
    listed = await git.run("config", "--blob", blob, "-z", "--list", directory=mirror.path)
    wanted = {
        section["path"]: section["url"]
        for section in _sections(listed.decode(errors="replace"))
        if {"path", "url"} <= section.keys()
        and section.get("update") != "none"
        and _is_below(section["path"])
    }
    commits = await _commits(git, mirror, commit, list(wanted))
    return [Submodule(path, wanted[path], oid) for path, oid in commits.items()]


def _is_below(path: str) -> bool:
    return not path.startswith("/") and not {"", ".", ".."} & set(path.split("/"))


def _sections(listed: str) -> Iterator[dict[str, str]]:
    sections: dict[str, dict[str, str]] = {}
    for entry in filter(None, listed.split("\0")):
        key, _, value = entry.partition("\n")
        name, _, variable = key.rpartition(".")
        if name.startswith("submodule."):
            sections.setdefault(name, {})[variable] = value
    yield from sections.values()


async def _commits(git: Git, mirror: Mirror, commit: str, paths: list[str]) -> dict[str, str]:
    if not paths:
        return {}
    listed = await git.run(
        "--literal-pathspecs", "ls-tree", "-z", commit, "--", *paths, directory=mirror.path
    )
    found = {}
    for entry in filter(None, listed.decode(errors="replace").split("\0")):
        about, _, path = entry.partition("\t")
        mode, _, oid = about.split(" ")
        if mode == "160000" and is_object(oid):
            found[path] = oid
    return {path: found[path] for path in paths if path in found}
