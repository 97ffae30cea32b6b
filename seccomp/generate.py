#!/usr/bin/env python3
"""Make the profiles and the tables of README.md from source.ini and syscalls.tsv.

Without arguments the files are written; with --check they are only compared.
Needs nothing but the standard library, so that it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import configparser
import csv
import errno
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROFILES = ("build", "strict")
ARCHITECTURES = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")
DEFAULT_ERRNO = "EPERM"
KINDS = ("allowed", "filtered", "refused")
DOCKERS = ("docker-20.10", "docker-2026")
CONDITION = re.compile(
    r"(?P<index>[0-5])(?: & (?P<mask>\w+))? (?P<op>=|!=|>|notin) (?P<values>\w+(?: \w+)*)"
)

Rule = dict[str, Any]


class SourceError(Exception):
    """The source contradicts itself or the table of known calls."""


@dataclass(frozen=True)
class Line:
    """One line of a filter: alternatives of conditions, and why."""

    alternatives: tuple[tuple[Rule, ...], ...]
    text: str
    why: str


@dataclass(frozen=True)
class Section:
    """One section of the source: calls that share a decision and its reason."""

    kind: str
    title: str
    calls: tuple[str, ...]
    why: str
    cve: tuple[str, ...]
    errno: str
    profiles: tuple[str, ...]
    without: str
    like_docker: bool
    lines: dict[str, tuple[Line, ...]]

    def decision(self, profile: str) -> str:
        """What this section means for one profile: allow, filter or refuse."""
        return self.kind if profile in self.profiles else "refuse"


def errno_number(name: str) -> int:
    """The number that a rule's errnoRet carries; it is the same on x86-64 and arm64."""
    return 0 if name == "OK" else int(getattr(errno, name))


# --- reading -----------------------------------------------------------------


def read_sections(text: str) -> list[Section]:
    """Every section of the source, in its order."""
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string(text)
    return [_section(name, dict(parser[name])) for name in parser.sections()]


def _section(name: str, fields: dict[str, str]) -> Section:
    kind, _, title = name.partition(":")
    if kind not in ("allow", "filter", "refuse") or "why" not in fields:
        raise SourceError(f"[{name}] is not allow, filter or refuse with a reason")
    return Section(
        kind=kind,
        title=title,
        calls=tuple(fields.get("calls", title).split()),
        why=" ".join(fields["why"].split()),
        cve=tuple(fields.get("cve", "").split()),
        errno=fields.get("errno", DEFAULT_ERRNO),
        profiles=tuple(fields.get("profiles", " ".join(PROFILES)).split()),
        without=fields.get("without", ""),
        like_docker="like-docker" in fields,
        lines={key: _lines(value) for key, value in fields.items() if _is_filter(key)},
    )


def _is_filter(key: str) -> bool:
    return key == "allow" or re.fullmatch(r"E[A-Z0-9]+", key) is not None


def _lines(value: str) -> tuple[Line, ...]:
    return tuple(_line(line) for line in value.strip().splitlines())


def _line(text: str) -> Line:
    conditions, _, why = text.partition(" -- ")
    alternatives: tuple[tuple[Rule, ...], ...] = ((),)
    for condition in conditions.split(", "):
        options = list(_condition(condition))
        alternatives = tuple((*done, option) for done in alternatives for option in options)
    return Line(alternatives, conditions, why)


def _condition(text: str) -> Iterator[Rule]:
    """The engine's form of one condition; several where any of them may hold."""
    match = CONDITION.fullmatch(text)
    if match is None:
        raise SourceError(f"not a condition: {text!r}")
    index, values = int(match["index"]), [int(value, 0) for value in match["values"].split()]
    if match["op"] == "notin":
        for mask, value in complement(values, int(match["mask"], 0)):
            yield _argument(index, "MASKED_EQ", mask, value)
    elif match["mask"]:
        yield _argument(index, "MASKED_EQ", int(match["mask"], 0), values[0])
    else:
        yield _argument(index, {"=": "EQ", "!=": "NE", ">": "GT"}[match["op"]], values[0])


def _argument(index: int, operator: str, value: int, second: int = 0) -> Rule:
    return {"index": index, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{operator}"}


def complement(values: Iterable[int], mask: int) -> Iterator[tuple[int, int]]:
    """Pairs (mask, value) that together match everything under ``mask`` but the values.

    A number that differs from every value leaves the tree of their bits somewhere,
    seen from the top; each pair is one such branch, so no two overlap.
    """
    yield from _branches(sorted(set(values)), 0, 0, mask.bit_length() - 1)


def _branches(values: list[int], seen: int, prefix: int, bit: int) -> Iterator[tuple[int, int]]:
    if not values:
        yield seen, prefix
    elif bit >= 0:
        for side in (0, 1):
            inside = [value for value in values if value >> bit & 1 == side]
            yield from _branches(inside, seen | 1 << bit, prefix | side << bit, bit - 1)


def read_calls(text: str) -> dict[str, dict[str, str]]:
    """The table of calls that x86-64 or arm64 know, by name."""
    return {row["name"]: row for row in csv.DictReader(text.splitlines(), delimiter="\t")}


def check_complete(sections: list[Section], known: Iterable[str]) -> None:
    """Every known call is decided exactly once, and no unknown one is."""
    decided = [call for section in sections for call in section.calls]
    problems = [f"decided twice: {call}" for call in set(decided) if decided.count(call) > 1]
    problems += [f"unknown call: {call}" for call in set(decided) - set(known)]
    problems += [f"undecided call: {call}" for call in set(known) - set(decided)]
    if problems:
        raise SourceError("; ".join(sorted(problems)))


# --- the profiles ------------------------------------------------------------


def make_profile(sections: list[Section], profile: str) -> dict[str, Any]:
    """One profile in the form that Docker reads.

    No 32-bit architecture is named beside the native one, and calls refused with the default
    errno get no rule: the runtime would skip a rule that says what the default says.
    """
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": name, "subArchitectures": []} for name in ARCHITECTURES],
        "syscalls": [rule for section in sections for rule in _rules(section, profile)],
    }


def _rules(section: Section, profile: str) -> Iterator[Rule]:
    decision = section.decision(profile)
    if decision == "filter":
        yield from _filter_rules(section)
    elif decision == "allow":
        yield _rule(section.calls, "allow")
    elif section.errno != DEFAULT_ERRNO:
        yield _rule(section.calls, section.errno)


def _filter_rules(section: Section) -> Iterator[Rule]:
    for outcome, lines in section.lines.items():
        for line in lines:
            for arguments in line.alternatives:
                yield {**_rule(section.calls, outcome), "args": list(arguments)}


def _rule(calls: Iterable[str], outcome: str) -> Rule:
    names = {"names": sorted(calls)}
    if outcome == "allow":
        return {**names, "action": "SCMP_ACT_ALLOW"}
    return {**names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno_number(outcome)}


def profile_text(profile: dict[str, Any]) -> str:
    """JSON with one rule a line, so that a change shows as the rules it changes."""
    head = {key: value for key, value in profile.items() if key != "syscalls"}
    rules = ",\n".join("    " + json.dumps(rule) for rule in profile["syscalls"])
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
    return f'{{\n{lines},\n  "syscalls": [\n{rules}\n  ]\n}}\n'


# --- the tables --------------------------------------------------------------


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(heads)]
    lines.append(["---"] * len(lines[0]))
    lines.extend([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _code(words: Iterable[str]) -> str:
    return " ".join(f"`{word}`" for word in words)


def _errno_cell(section: Section) -> str:
    return "success, nothing done" if section.errno == "OK" else f"`{section.errno}`"


def allowed_table(sections: list[Section]) -> str:
    """Each group of calls that are allowed whatever their arguments."""
    return _table(
        ("group", "calls", "in", "why"),
        (
            (s.title, _code(s.calls), ", ".join(s.profiles), f"{s.why} {s.without}".strip())
            for s in sections
            if s.kind == "allow"
        ),
    )


def filter_table(sections: list[Section]) -> str:
    """Each line of each argument filter."""
    return _table(
        ("call", "outcome", "when", "what that is"),
        (
            (_code(s.calls), outcome, f"`{line.text}`", line.why)
            for s in sections
            if s.kind == "filter"
            for outcome, lines in s.lines.items()
            for line in lines
        ),
    )


def filter_reasons(sections: list[Section]) -> str:
    """Why each filter is there."""
    return _table(
        ("call", "why", "would have stopped"),
        ((_code(s.calls), s.why, ", ".join(s.cve)) for s in sections if s.kind == "filter"),
    )


def refused_table(sections: list[Section]) -> str:
    """Each group of calls that are refused whatever their arguments."""
    return _table(
        ("group", "calls", "answer", "why", "would have stopped"),
        (
            (s.title, _code(s.calls), _errno_cell(s), s.why, ", ".join(s.cve))
            for s in sections
            if s.kind == "refuse"
        ),
    )


def difference_table(sections: list[Section], calls: dict[str, dict[str, str]]) -> str:
    """The calls that a Docker default lets through further than we do."""
    rows = [
        (_code(names), *dockers, *_outcome(section), section.why, ", ".join(section.cve))
        for section in sections
        for dockers, names in _by_docker(section, calls).items()
        if _narrower(section) and dockers != ("-", "-")
    ]
    return _table(("calls", *DOCKERS, *PROFILES, "why", "would have stopped"), rows)


def _by_docker(
    section: Section, calls: dict[str, dict[str, str]]
) -> dict[tuple[str, ...], list[str]]:
    """The calls of a section by what the Docker defaults do with them."""
    found: dict[tuple[str, ...], list[str]] = {}
    for call in section.calls:
        found.setdefault(tuple(calls[call][docker] for docker in DOCKERS), []).append(call)
    return found


def _narrower(section: Section) -> bool:
    """Whether some profile of ours is narrower than Docker's default can be."""
    decisions = {section.decision(profile) for profile in PROFILES}
    return not section.like_docker and decisions != {"allow"}


def _outcome(section: Section) -> Iterator[str]:
    for profile in PROFILES:
        decision = section.decision(profile)
        yield _errno_cell(section) if decision == "refuse" else decision


def counts_table(sections: list[Section], calls: dict[str, dict[str, str]]) -> str:
    """How many calls each profile allows, on each architecture."""
    counted = {docker: {name: row[docker] for name, row in calls.items()} for docker in DOCKERS}
    for profile in PROFILES:
        counted[profile] = {c: s.decision(profile) for s in sections for c in s.calls}
    return _table(
        ("profile", *(f"{name}: {what}" for name in ("x86-64", "arm64") for what in KINDS)),
        ((name, *_counts(decisions, calls)) for name, decisions in counted.items()),
    )


def _counts(decisions: dict[str, str], calls: dict[str, dict[str, str]]) -> Iterator[str]:
    for architecture in ("x86-64", "arm64"):
        native = [decisions[call] for call, row in calls.items() if row[architecture] != "-"]
        allowed, filtered = native.count("allow"), native.count("filter")
        yield from map(str, (allowed, filtered, len(native) - allowed - filtered))


def fill(text: str, tables: dict[str, str]) -> str:
    """The prose with each marked table replaced."""
    for name, table in tables.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SourceError(f"README.md has no place for {name}")
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)  # type: ignore[misc]
    return text


# --- the files ---------------------------------------------------------------


def make_files(read: Callable[[str], str]) -> dict[str, str]:
    """The text of every generated file, from the texts of the source files."""
    sections, calls = read_sections(read("source.ini")), read_calls(read("syscalls.tsv"))
    check_complete(sections, calls)
    tables = {
        "counts": counts_table(sections, calls),
        "allowed": allowed_table(sections),
        "filters": filter_table(sections),
        "filter-reasons": filter_reasons(sections),
        "refused": refused_table(sections),
        "differences": difference_table(sections, calls),
    }
    files = {f"{name}.json": profile_text(make_profile(sections, name)) for name in PROFILES}
    return {**files, "README.md": fill(read("README.md"), tables)}


def stale(files: dict[str, str]) -> list[str]:
    """The names of the files that are not what they would be if made now."""
    return [name for name, text in files.items() if not _is(HERE / name, text)]


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def main(arguments: list[str] | None = None) -> int:
    """Write what is out of date, or with --check only name it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    options = parser.parse_args(arguments)
    files = make_files(lambda name: (HERE / name).read_text())
    old = stale(files)
    for name in old:
        print(f"out of date: {name}" if options.check else f"written: {name}")
        if not options.check:
            (HERE / name).write_text(files[name])
    return 1 if options.check and old else 0


if __name__ == "__main__":
    sys.exit(main())
