"""A work tree as it is now, as a commit of a repository of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from sandboxworker.errors import SandboxworkerError
from sandboxworker.source.mirror import is_ref

_SECONDS = 300
_NOBODY = {
    "GIT_AUTHOR_NAME": "sandboxworker try",
    "GIT_AUTHOR_EMAIL": "try@localhost",
    "GIT_COMMITTER_NAME": "sandboxworker try",
    "GIT_COMMITTER_EMAIL": "try@localhost",
}


@attrs.frozen
class Snapshot:
    """``repository``: a bare one; ``commit``: what the work tree holds now, at the end of
    ``branch``; ``remotes``: the URLs that the work tree knows."""

    repository: Path
    commit: str
    branch: str
    remotes: tuple[str, ...]


def snapshot(directory: Path, place: Path, branches: Iterable[str] = ()) -> Snapshot:
    """Make a bare repository at ``place``; nothing of the work tree is changed.

    Its history is the work tree's own, by reference. What git ignores is left out.
    ``branches``: further names that shall lead to the commit.
    Raises `SandboxworkerError`.
    """
    inside = _git(directory, "rev-parse", "--show-toplevel", may_fail=True)
    if not inside:
        _git(directory, "init", "--quiet", "--bare", "--initial-branch=main", str(place))
        return _committed(directory, place, None, "main", branches, ())
    top = Path(inside)
    _git(top, "clone", "--quiet", "--bare", "--shared", "--", str(top), str(place))
    is_shallow = _git(top, "rev-parse", "--is-shallow-repository") == "true"
    head = _git(top, "rev-parse", "--verify", "-q", "HEAD", may_fail=True)
    branch = _git(top, "symbolic-ref", "--short", "-q", "HEAD", may_fail=True) or "main"
    if is_shallow:  # Nobody may fetch its history; the commit stands alone.
        (place / "shallow").unlink(missing_ok=True)
    parent = None if is_shallow else head or None
    return _committed(top, place, parent, branch, branches, _remotes(top))


def _committed(
    tree: Path,
    place: Path,
    parent: str | None,
    branch: str,
    branches: Iterable[str],
    remotes: tuple[str, ...],
) -> Snapshot:
    environ = {
        **_NOBODY,
        "GIT_DIR": str(place),
        "GIT_WORK_TREE": str(tree),
        "GIT_INDEX_FILE": str(place / "index-of-try"),
    }
    if parent is not None:
        _git(tree, "read-tree", parent, environ=environ)
    _git(tree, "-c", "core.bare=false", "add", "--all", "--", ".", environ=environ)
    written = _git(tree, "write-tree", environ=environ)
    parents = () if parent is None else ("-p", parent)
    message = "The work tree as it is now"
    commit = _git(tree, "commit-tree", *parents, "-m", message, written, environ=environ)
    for name in {branch, *filter(is_ref, branches)}:
        _git(tree, "update-ref", f"refs/heads/{name}", commit, environ={"GIT_DIR": str(place)})
    _git(tree, "symbolic-ref", "HEAD", f"refs/heads/{branch}", environ={"GIT_DIR": str(place)})
    return Snapshot(place, commit, branch, remotes)


def _remotes(top: Path) -> tuple[str, ...]:
    listed = _git(top, "config", "--get-regexp", r"^remote\..*\.url$", may_fail=True) or ""
    return tuple(line.split(" ", 1)[1] for line in listed.splitlines() if " " in line)


def _git(
    directory: Path, *words: str, may_fail: bool = False, environ: Mapping[str, str] | None = None
) -> str:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=directory,
            env={**inherited, **(environ or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise SandboxworkerError("git is not installed", resolution="Install it") from None
    except subprocess.TimeoutExpired:
        raise SandboxworkerError(f"git did not end within {_SECONDS} s", details=words[0]) from None
    if done.returncode == 0:
        return done.stdout.strip()
    if may_fail:
        return ""
    said = done.stderr.strip().splitlines()[-1:]
    raise SandboxworkerError(
        f"the work tree {directory} cannot be taken", details="".join(said) or f"git {words[0]}"
    )
