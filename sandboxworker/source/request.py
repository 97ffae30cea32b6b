"""What a git step's command needs from a repository, before it can run without a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from sandboxworker.errors import SourceRefused
from sandboxworker.source.gitargs import GitCommand
from sandboxworker.source.mirror import Wanted, is_object, is_ref

_ON_EVERY_MIRROR = ("refs/heads/", "refs/tags/", "HEAD")


@attrs.frozen
class Request:
    """``url``: as the command has it; ``names``: branches, tags, refs and commits that it names."""

    url: str
    names: frozenset[str]
    depth: int | None = None

    @property
    def special(self) -> frozenset[str]:
        """What a mirror does not have without being asked for it."""
        return frozenset(
            name
            for name in self.names
            if is_object(name)
            or (name.startswith("refs/") and not name.startswith(_ON_EVERY_MIRROR))
        )

    @property
    def wanted(self) -> Wanted:
        commits = frozenset(filter(is_object, self.names))
        refs = self.names - commits
        if self.depth is not None:
            return Wanted(self.depth, refs or frozenset({"HEAD"}), commits)
        return Wanted(None, self.special - commits, commits)


def request_of(step: Any, git: GitCommand) -> Request:
    """What a command of this step reads; raises `SourceRefused` for a name that git must not see.

    The step's own branch goes along, since its next command will ask for it.
    """
    words = git.positional
    is_url = bool(words) and ("/" in words[0] or ":" in words[0])
    url = words[0] if is_url and git.asks_server else str(step.repourl)
    names = {*_named(git), *filter(None, [getattr(step, "branch", None)])}
    return Request(url, _checked(url, names), git.depth)


def placing(step: Any, args: Mapping[str, Any]) -> Request:
    """As `request_of`, for what `SandboxGit` asks for."""
    url = str(step.repourl)
    return Request(url, _checked(url, {args["branch"]}))


def _checked(url: str, names: Iterable[str]) -> frozenset[str]:
    for name in names:
        if name != "HEAD" and not is_ref(name.removesuffix("/*")):
            raise SourceRefused(
                url, f"{name!r} is no name of a branch, tag or ref", "Rename the branch"
            )
    return frozenset(names)


def _named(git: GitCommand) -> Iterator[str]:
    if git.name == "clone":
        yield git.branch or "HEAD"
    elif git.name in ("fetch", "pull"):
        for refspec in git.positional[1:]:
            yield refspec.lstrip("+").partition(":")[0] or "HEAD"
