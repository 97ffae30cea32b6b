"""The threat model's document: each row is proved by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from escapes import ATTEMPTS, differences

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENT = (PROJECT / "docs" / "threat-model.md").read_text()
ROWS = {match[1]: match[0] for match in re.finditer(r"^\| (T\d+) \|.*$", DOCUMENT, re.MULTILINE)}
SUITE = "tests/containment/test_escapes.py"


def test_there_is_every_row() -> None:
    assert list(ROWS) == [f"T{number}" for number in range(1, 21)]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", ROWS[row])
    assert named or "| not yet |" in ROWS[row]
    assert [name for name in named if not (PROJECT / name).is_file()] == []


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_the_escape_suite_where_that_has_attempts(row: str) -> None:
    attempts = [attempt.id for attempt in ATTEMPTS if attempt.row == row]
    assert (SUITE in ROWS[row]) is bool(attempts)


def test_attempts_have_names_of_their_own() -> None:
    names = [attempt.id for attempt in ATTEMPTS]
    assert sorted(set(names)) == sorted(names)
    assert {attempt.row for attempt in ATTEMPTS} <= set(ROWS)


def test_the_document_lists_what_differs_under_gvisor() -> None:
    (table,) = re.findall(r"<!-- gvisor -->\n(.*?)\n<!-- end -->", DOCUMENT, re.DOTALL)
    assert table == differences()
