"""What a step's git command will ask of a server, read from its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

#: git's own options, before the command's name, that take a word of their own.
_GLOBAL_WITH_VALUE = frozenset(
    {"-c", "-C", "--git-dir", "--work-tree", "--namespace", "--config-env"}
)
#: Options of the commands below that take a word of their own.
_WITH_VALUE = frozenset(
    {
        *("--depth", "--deepen", "--shallow-since", "--shallow-exclude", "--filter"),
        *("-b", "--branch", "-o", "--origin", "--reference", "--reference-if-able"),
        *("-c", "--config", "-j", "--jobs", "--upload-pack", "-u", "--server-option"),
        *("--refmap", "--negotiation-tip", "--template", "--separate-git-dir"),
    }
)
_FROM_SERVER = frozenset({"clone", "fetch", "pull", "ls-remote", "remote"})


@attrs.frozen
class GitCommand:
    """A git command: its name and what stood behind it."""

    name: str
    arguments: tuple[str, ...]

    @property
    def asks_server(self) -> bool:
        """Whether it reads from the repository's own URL."""
        return self.name in _FROM_SERVER

    @property
    def updates_submodules(self) -> bool:
        return self.name == "submodule" and "update" in self.positional[:1]

    @property
    def positional(self) -> tuple[str, ...]:
        """Its arguments without the options."""
        return tuple(word for option, word in self._words() if option is None)

    @property
    def depth(self) -> int | None:
        """``--depth``; None for the whole history."""
        text = self._option("--depth")
        return int(text) if text is not None and text.isascii() and text.isdigit() else None

    @property
    def branch(self) -> str | None:
        """``clone --branch``."""
        return self._option("--branch", "-b")

    def _option(self, *names: str) -> str | None:
        return next((word for option, word in self._words() if option in names), None)

    def _words(self) -> Iterator[tuple[str | None, str]]:
        """Each option with its value, and each other word with None."""
        words = iter(self.arguments)
        for word in words:
            if word == "--":
                yield from ((None, rest) for rest in words)
            elif not word.startswith("-") or word == "-":
                yield None, word
            elif word in _WITH_VALUE:
                yield word, next(words, "")
            else:
                name, _, value = word.partition("=")
                yield name, value


def parse(argv: object) -> GitCommand | None:
    """The git command that an argv runs; None where it is none."""
    if not isinstance(argv, Sequence) or isinstance(argv, (str, bytes)):
        return None
    words = [word for word in argv if isinstance(word, str)]
    if len(words) != len(argv) or not words or words[0] != "git":
        return None
    at = 1
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at] in _GLOBAL_WITH_VALUE else 1
    return GitCommand(words[at], tuple(words[at + 1 :])) if at < len(words) else None
