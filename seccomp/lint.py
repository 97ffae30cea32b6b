#!/usr/bin/env python3
"""Find mistakes in seccomp profiles that engines accept in silence.

Each check is one way in which a profile does something else than it seems to say,
as seen with Docker 20.10, runc 1.1.5 and libseccomp 2.5.4. Needs only the standard library.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ALLOW = "SCMP_ACT_ALLOW"
ERRNO = "SCMP_ACT_ERRNO"
NATIVE = {"SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"}
OPERATORS = {f"SCMP_CMP_{name}" for name in ("EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ")}
# Calls through which a 32-bit program makes other calls, out of the filters' sight.
MULTIPLEXERS = {"socketcall", "ipc"}
EPERM = 1
WORD = (1 << 64) - 1

Json = dict[str, Any]


def known_calls(path: Path = HERE / "syscalls.tsv") -> frozenset[str]:
    """The names that x86-64 or arm64 know."""
    with path.open(newline="") as file:
        return frozenset(row["name"] for row in csv.DictReader(file, delimiter="\t"))


def lint(profile: Json, known: Collection[str]) -> list[str]:
    """Every finding, a sentence each."""
    findings = [finding for check in CHECKS for finding in check(profile)]
    return findings + list(misspelt(profile, known))


def rules(profile: Json) -> Iterator[tuple[int, Json]]:
    """The rules with their places."""
    yield from enumerate(profile.get("syscalls") or ())


def by_call(profile: Json) -> dict[str, list[Json]]:
    """The rules for each call, in their order."""
    found: dict[str, list[Json]] = {}
    for _, rule in rules(profile):
        for name in names(rule):
            found.setdefault(name, []).append(rule)
    return found


def names(rule: Json) -> list[str]:
    """The calls of a rule; the older form names one."""
    return rule.get("names") or [rule["name"]]


def result(rule: Json) -> tuple[str, int]:
    """What a rule answers: its action and errno."""
    return rule["action"], rule.get("errnoRet", EPERM) if rule["action"] == ERRNO else 0


def misspelt(profile: Json, known: Collection[str]) -> Iterator[str]:
    """An unknown name is no error to any engine: there just is no rule."""
    for name in by_call(profile):
        if name not in known:
            yield f"{name}: no such call on x86-64 or arm64, so this makes no rule"


def overruled_refusals(profile: Json) -> Iterator[str]:
    """A call that is allowed outright is allowed, whatever other rules say of its arguments."""
    for name, found in by_call(profile).items():
        outright = [rule for rule in found if not rule.get("args")]
        if any(rule["action"] == ALLOW for rule in outright) and len(found) > 1:
            yield f"{name}: allowed outright, which beats its other rules"


def contradictions(profile: Json) -> Iterator[str]:
    """Two rules with the same conditions and different answers: which one holds is not said."""
    for name, found in by_call(profile).items():
        for one, other in itertools.combinations(found, 2):
            if result(one) != result(other) and _same_conditions(one, other):
                yield f"{name}: two rules with the same conditions and different answers"


def _same_conditions(one: Json, other: Json) -> bool:
    return _conditions(one) == _conditions(other)


def _conditions(rule: Json) -> list[tuple[int, str, int, int]]:
    return sorted(map(_condition, rule.get("args") or ()))


def _condition(argument: Json) -> tuple[int, str, int, int]:
    return argument["index"], argument["op"], argument["value"], argument.get("valueTwo", 0)


def split_conditions(profile: Json) -> Iterator[str]:
    """Two conditions on one argument: runc makes two rules of them, so either suffices."""
    for place, rule in rules(profile):
        counted = Counter(argument["index"] for argument in rule.get("args") or ())
        for index, times in counted.items():
            if times > 1:
                yield f"syscalls[{place}]: {times} conditions on argument {index} hold as 'or'"


def several_not_equals(profile: Json) -> Iterator[str]:
    """Two allowances, each "not this value" of one argument, together allow every value."""
    for name, found in by_call(profile).items():
        counted = Counter(
            (argument["index"], rule["action"])
            for rule in found
            for argument in rule.get("args") or ()
            if argument["op"] == "SCMP_CMP_NE"
        )
        for (index, action), times in counted.items():
            if times > 1 and action == ALLOW:
                yield f"{name}: {times} 'not equal' rules on argument {index} allow everything"


def idle_rules(profile: Json) -> Iterator[str]:
    """A rule that says what the default says is skipped by the runtime."""
    default = profile.get("defaultAction", ""), profile.get("defaultErrnoRet", EPERM)
    for place, rule in rules(profile):
        action, number = result(rule)
        if action == default[0] and (action != ERRNO or number == default[1]):
            yield f"syscalls[{place}]: answers what the default answers, so it is skipped"


def default_errno(profile: Json) -> Iterator[str]:
    """Docker 20.10 does not know it and answers EPERM."""
    if "defaultErrnoRet" in profile:
        yield "defaultErrnoRet: older engines ignore it; give rules an errnoRet"


def other_architectures(profile: Json) -> Iterator[str]:
    """A second architecture is a second set of entry points, past the argument filters."""
    for name in _architectures(profile):
        if name not in NATIVE:
            yield f"{name}: its entry points pass the filters on arguments"


def _architectures(profile: Json) -> Iterator[str]:
    yield from profile.get("architectures") or ()
    for entry in profile.get("archMap") or ():
        yield entry["architecture"]
        yield from entry.get("subArchitectures") or ()


def two_architecture_lists(profile: Json) -> Iterator[str]:
    """Docker refuses to start with both."""
    if profile.get("architectures") and profile.get("archMap"):
        yield "architectures and archMap: engines take one of them"


def multiplexers(profile: Json) -> Iterator[str]:
    """They carry other calls behind a pointer."""
    for name in sorted(MULTIPLEXERS & by_call(profile).keys()):
        yield f"{name}: carries other calls that no filter sees"


def wrong_conditions(profile: Json) -> Iterator[str]:
    """Conditions that can never hold, or that no library knows."""
    for place, rule in rules(profile):
        for argument in rule.get("args") or ():
            problem = _wrong(argument)
            if problem:
                yield f"syscalls[{place}]: {problem}"


def _wrong(argument: Json) -> str:
    index, operator, value, second = _condition(argument)
    if operator not in OPERATORS:
        return f"no such comparison: {operator}"
    if not 0 <= index <= 5:
        return f"there is no argument {index}"
    if not (0 <= value <= WORD and 0 <= second <= WORD):
        return "a value does not fit 64 bits"
    if operator == "SCMP_CMP_MASKED_EQ" and second & ~value:
        return f"{second:#x} has bits outside the mask {value:#x}, so this never holds"
    return ""


def cut_refusals(profile: Json) -> Iterator[str]:
    """Allowing "not this number" of an argument that the kernel reads as 32 bits.

    The same number with a high bit set is another number to the filter and the same to the kernel.
    """
    for place, rule in rules(profile):
        if rule["action"] != ALLOW:
            continue
        for argument in rule.get("args") or ():
            if argument["op"] in ("SCMP_CMP_NE", "SCMP_CMP_GT", "SCMP_CMP_GE"):
                yield (
                    f"syscalls[{place}]: allows numbers with high bits set, which the kernel "
                    f"may cut to refused ones (argument {argument['index']})"
                )


CHECKS: tuple[Callable[[Json], Iterable[str]], ...] = (
    overruled_refusals,
    contradictions,
    split_conditions,
    several_not_equals,
    idle_rules,
    default_errno,
    other_architectures,
    two_architecture_lists,
    multiplexers,
    wrong_conditions,
    cut_refusals,
)


def main(paths: list[str]) -> int:
    """Print the findings for each file; 1 if there are any."""
    known, found = known_calls(), 0
    for path in paths:
        for finding in lint(json.loads(Path(path).read_text()), known):
            print(f"{path}: {finding}")
            found = 1
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
