"""``sandboxworker audit``: filters, table, JSON, rotated files, and what it says to wrong input."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sandboxworker.auditfile import FILE, rotated
from sandboxworker.cli import main

NOON = 1_790_000_000  # Some day of 2026.
ENTRIES: list[dict[str, Any]] = [
    {"event": "sandbox.created", "sandbox": "aa", "worker": "pr-1", "builder": "b", "build": 1},
    {"event": "secret.refused", "sandbox": "aa", "worker": "pr-1", "builder": "b", "build": 1,
     "secret": "token", "step": "[bold]deploy[/bold]"},
    {"event": "sandbox.gone", "sandbox": "aa", "worker": "pr-1", "builder": "b", "build": 1,
     "outcome": "completed"},
    {"event": "sandbox.created", "sandbox": "bb", "worker": "pr-2", "builder": "c", "build": 1},
    {"event": "sandbox.lost", "sandbox": "bb", "worker": "pr-2", "builder": "c", "build": 1,
     "reason": "gone\x1b[2J\nforged"},
    {"event": "sandbox.gone", "sandbox": "bb", "worker": "pr-2", "builder": "c", "build": 1,
     "outcome": "lost"},
    {"event": "reap.removed", "sandbox": "cc", "why": "orphan", "by": "master"},
    {"event": "audit.lost", "sink": "f", "count": 2},
]  # fmt: skip
for _number, _entry in enumerate(ENTRIES):
    _entry.update(schema=1, time=NOON + 60 * _number, master="m")


def lines(*entries: dict[str, Any]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


@pytest.fixture
def basedir(tmp_path: Path) -> Path:
    """Its log was rotated twice."""
    path = tmp_path / FILE
    rotated(path, 2).write_text(lines(*ENTRIES[:2]))
    rotated(path, 1).write_text(lines(*ENTRIES[2:5]))
    path.write_text(lines(*ENTRIES[5:]))
    return tmp_path


def run(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(main, ["audit", *arguments], input=stdin)
    assert result.exit_code == code, result.output
    return result


def found(basedir: Path, *arguments: str) -> list[int]:
    """The places of the entries that are shown."""
    output = run("--basedir", str(basedir), "--json", *arguments).stdout
    return [ENTRIES.index(json.loads(line)) for line in output.splitlines()]


ALL = list(range(len(ENTRIES)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ALL),
        (("--build", "1"), [0, 1, 2, 3, 4, 5]),
        (("--build", "c/1"), [3, 4, 5]),
        (("--build", "c/2"), []),
        (("--worker", "pr-2"), [3, 4, 5]),
        (("--worker", "pr-*"), [0, 1, 2, 3, 4, 5]),
        (("--sandbox", "a"), [0, 1, 2]),
        (("--event", "secret.refused"), [1]),
        (("--event", "secret.*", "--event", "reap.*"), [1, 6]),
        (("--outcome", "lost"), [3, 4, 5]),
        (("--outcome", "lost", "--event", "sandbox.created"), [3]),
        (("--outcome", "stopped"), []),
        (("--since", "2200-01-01"), []),
        (("--until", "2020-01-01T00:00Z"), []),
        (("--since", "2020-01-01", "--until", "2200-01-01"), ALL),
    ],
)
def test_entries_are_shown_that_pass_every_filter_the_oldest_first(
    basedir: Path, arguments: tuple[str, ...], expected: list[int]
) -> None:
    assert found(basedir, *arguments) == expected


def test_a_range_of_time_begins_with_its_first_moment_and_ends_before_its_last(
    basedir: Path,
) -> None:
    def at(number: int) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOON + 60 * number))

    assert found(basedir, "--since", at(2), "--until", at(5)) == [2, 3, 4]
    local = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(NOON + 60 * 6))
    assert found(basedir, "--since", local) == [6, 7]


def test_how_long_ago_is_a_time_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        lines(*({"time": time.time() - ago, "event": "sandbox.ready"} for ago in (7300, 7000)))
    )
    assert len(run(str(log), "--json", "--since", "2h").stdout.splitlines()) == 1


def test_the_table_has_what_tells_entries_apart(basedir: Path) -> None:
    rows = run("--basedir", str(basedir)).stdout.splitlines()
    assert rows[0].split() == ["time", "event", "build", "worker", "sandbox", "details"]
    assert len(rows) == 1 + len(ENTRIES)
    assert "secret.refused" in rows[2]
    for word in ("b/1", "pr-1", "aa", "secret=token", "step=[bold]deploy[/bold]"):
        assert word in rows[2]
    assert "reason=gone\ufffd[2J\ufffdforged" in rows[5]


def test_a_log_may_come_through_a_pipe() -> None:
    output = run("-", "--json", "--event", "reap.*", stdin=lines(*ENTRIES)).stdout
    assert [json.loads(line) for line in output.splitlines()] == [ENTRIES[6]]


def test_lines_that_are_no_entries_are_counted_and_no_failure(basedir: Path) -> None:
    with (basedir / FILE).open("a") as file:
        file.write('{"time":1,"ev\n')
    result = run("--basedir", str(basedir), "--json")
    assert len(result.stdout.splitlines()) == len(ENTRIES)
    assert "1 lines" in result.stderr
    assert "no entries" in result.stderr


def test_that_nothing_fits_is_said(basedir: Path) -> None:
    result = run("--basedir", str(basedir), "--worker", "nobody")
    assert result.stdout == ""
    assert f"none of the {len(ENTRIES)} entries" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--build", "x"), ("--build x", "BUILDER/12")),
        (("--build", "b/"), ("--build b/", "BUILDER/12")),
        (("--event", "sandbox.flies"), ("sandbox.flies", "known: sandbox.created")),
        (("--since", "yesterday"), ("--since yesterday", "2026-03-31T12:30", "2h")),
        (("--until", "12"), ("--until 12",)),
        (("--since", "1h", "--until", "2h"), ("--since 1h is not before --until 2h",)),
        (("/no/such/file",), ("/no/such/file", "No such file", "--basedir")),
        (("/",), ("Is a directory",)),
    ],
)
def test_wrong_input_is_one_sentence_that_says_what_would_be_right(
    arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    result = run(*arguments, code=125)
    assert result.stdout == ""
    assert result.stderr.startswith("sandboxworker: error: ")
    assert len(result.stderr.splitlines()) == 1
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize("command", ["audit", "gc"])
def test_help_teaches_by_examples_and_tells_the_exit_codes(command: str) -> None:
    output = CliRunner().invoke(main, [command, "--help"]).stdout
    for word in ("Examples:", f"sandboxworker {command} --", "Exit codes:", "125"):
        assert word in output
