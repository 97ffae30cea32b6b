"""A rule, what it finds, and the list of all rules."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from sandboxworker.check.configuration import Configuration


class Severity(enum.IntEnum):
    """How much is at stake; they compare."""

    #: Worth a thought.
    LOW = 1
    #: Opens the way for something worse, or harms the service.
    MEDIUM = 2
    #: Whoever is on the network, or can push, gains what is not theirs.
    HIGH = 3
    #: A stranger gains the master, its secrets or a machine of it.
    CRITICAL = 4

    @property
    def word(self) -> str:
        return self.name.lower()


@attrs.frozen
class Found:
    """One place that a rule objects to.

    ``where``: the worker, builder or setting; ``reason``: what is wrong there, for people, never
    with a secret in it; ``file`` and ``line`` where a line of the source is meant.
    """

    where: str
    reason: str
    file: str | None = None
    line: int | None = None


Search = Callable[["Configuration"], Iterable[Found]]


@attrs.frozen
class Rule:
    """``what`` it looks for, ``why`` that is dangerous, and the ``cure``."""

    id: str
    severity: Severity
    what: str
    why: str
    cure: str
    search: Search

    @property
    def order(self) -> tuple[int, str]:
        """The worst first."""
        return (-self.severity, self.id)


@attrs.frozen
class Finding:
    """What a rule found."""

    rule: Rule
    found: Found


#: Every rule by its id: filled by the modules of rules; `rules` has them in order.
RULES: dict[str, Rule] = {}


def rule(id: str, severity: Severity, *, what: str, why: str, cure: str) -> Callable[..., Search]:  # noqa: A002
    """Make a search a rule."""

    def made(search: Search) -> Search:
        RULES[id] = Rule(id, severity, what, why, cure, search)
        return search

    return made


def judge(configuration: Configuration, ignored: Iterable[str] = ()) -> list[Finding]:
    """Everything that any rule finds, the worst first."""
    wanted = [each for each in RULES.values() if each.id not in set(ignored)]
    found = list(_all(wanted, configuration))
    return sorted(found, key=lambda finding: finding.rule.order)


def _all(rules: Iterable[Rule], configuration: Configuration) -> Iterator[Finding]:
    for each in rules:
        for found in each.search(configuration):
            yield Finding(each, found)
