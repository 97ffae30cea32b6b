"""How ``sandboxworker check`` shows rules and findings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from twisted.logger import globalLogBeginner

from sandboxworker.check.reading import read
from sandboxworker.check.rules import RULES, Finding, Rule, Severity, judge
from sandboxworker.errors import SandboxworkerError

_COLOURS = {
    Severity.CRITICAL: "bold red",
    Severity.HIGH: "red",
    Severity.MEDIUM: "yellow",
    Severity.LOW: "cyan",
}


def report(path: Path, fail_on: str, ignored: Iterable[str], *, as_json: bool) -> int:
    """Judge a configuration and show what was found; the exit code."""
    left_out = [_known(name).id for name in ignored]
    # What goes wrong while the file is run is told as our error, without a traceback.
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    configuration = read(path)
    findings = judge(configuration, left_out)
    if as_json:
        _echo_json(_record(configuration.file, findings, left_out))
    else:
        _show(configuration.file, findings, len(RULES) - len(set(left_out)))
    threshold = 1 + max(Severity) if fail_on == "never" else Severity[fail_on.upper()]
    return int(any(finding.rule.severity >= threshold for finding in findings))


def list_rules(*, as_json: bool) -> None:
    rules = list(RULES.values())
    if as_json:
        _echo_json([_rule_record(rule) for rule in rules])
        return
    table = Table("rule", "severity", "what", box=None, pad_edge=False)
    for rule in rules:
        table.add_row(
            rule.id, f"[{_COLOURS[rule.severity]}]{rule.severity.word}", escape(rule.what)
        )
    _console().print(table)


def explain_rule(name: str, *, as_json: bool) -> None:
    rule = _known(name)
    if as_json:
        _echo_json(_rule_record(rule))
        return
    click.echo(f"{rule.id} ({rule.severity.word}): {rule.what}\n")
    click.echo(f"Why:  {rule.why}.\n\nCure: {rule.cure}.")


def _known(name: str) -> Rule:
    if name not in RULES:
        raise SandboxworkerError(
            f"there is no rule {name!r}", resolution="'sandboxworker check --list' has all of them"
        )
    return RULES[name]


def _show(file: Path, findings: list[Finding], count: int) -> None:
    console = _console()
    for finding in findings:
        rule = finding.rule
        colour = _COLOURS[rule.severity]
        console.print(
            f"[{colour}]{rule.severity.word:8}[/{colour}]  {rule.id}: "
            f"{escape(finding.found.where)}: {escape(finding.found.reason)}"
        )
    for rule in dict.fromkeys(finding.rule for finding in findings):
        console.print(f"\n{rule.id}: {escape(rule.why)}.\n  Cure: {escape(rule.cure)}.")
    what = f"{len(findings)} finding{'s' * (len(findings) != 1)}" if findings else "nothing found"
    console.print(f"{chr(10) * bool(findings)}{escape(str(file))}: {what} ({count} rules)")


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _record(file: Path, findings: list[Finding], ignored: list[str]) -> dict[str, Any]:
    return {
        "file": str(file),
        "ignored": ignored,
        "findings": [
            {
                **_rule_record(finding.rule),
                "where": finding.found.where,
                "reason": finding.found.reason,
                "file": finding.found.file,
                "line": finding.found.line,
            }
            for finding in findings
        ],
    }


def _rule_record(rule: Rule) -> dict[str, Any]:
    return {
        "rule": rule.id,
        "severity": rule.severity.word,
        "what": rule.what,
        "why": rule.why,
        "cure": rule.cure,
    }


def _echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))
