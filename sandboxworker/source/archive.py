"""The files of a commit as a tar archive, for images without git."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

from sandboxworker.source.git import Git
from sandboxworker.source.mirror import Mirror


@attrs.frozen
class Patch:
    """``level``: path components to strip, as ``-p``; ``root``: the directory it counts from."""

    level: int
    diff: bytes
    root: str = ""


async def archive_of(
    git: Git, mirror: Mirror, commit: str, patch: Patch | None, archive: Path
) -> None:
    """Write what a checkout of ``commit``, with a patch upon it, would have.

    Raises `SourceFailed`, for instance where the patch does not apply.
    """
    tree = commit
    if patch is not None:
        git = _aside(git, mirror, archive.parent)
        tree = await _patched(git, mirror, commit, patch)
    await git.run("archive", "--format=tar", f"--output={archive}", tree, directory=mirror.path)


def _aside(git: Git, mirror: Mirror, scratch: Path) -> Git:
    """An index and objects of one's own: a mirror has only what its server has."""
    objects = scratch / "objects"
    objects.mkdir()
    environ = {
        "GIT_INDEX_FILE": str(scratch / "index"),
        "GIT_OBJECT_DIRECTORY": str(objects),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(mirror.path / "objects"),
    }
    return attrs.evolve(git, environ={**git.environ, **environ})


async def _patched(git: Git, mirror: Mirror, commit: str, patch: Patch) -> str:
    await git.run("read-tree", commit, directory=mirror.path)
    directory = [f"--directory={patch.root}"] if patch.root else []
    await git.run(
        *("apply", "--cached", f"-p{patch.level}", *directory, "-"),
        directory=mirror.path,
        stdin=patch.diff,
    )
    return (await git.run("write-tree", directory=mirror.path)).decode().strip()


async def describe(
    git: Git, mirror: Mirror, commit: str, flags: Iterable[str] | None
) -> str | None:
    """``git describe`` with these options; None if it was not asked for, or git finds no name."""
    if flags is None:
        return None
    found = await git.attempt("describe", *flags, commit, directory=mirror.path)
    return None if found is None else found.decode(errors="replace").strip()
