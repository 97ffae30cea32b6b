"""How a build ended, in one word."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxworker.errors import Actor
from sandboxworker.outcome import Outcome, outcome


@pytest.mark.parametrize(
    ("result", "known", "expected"),
    [
        ("success", {}, Outcome.COMPLETED),
        ("warnings", {}, Outcome.COMPLETED),
        ("skipped", {}, Outcome.COMPLETED),
        ("failure", {}, Outcome.FAILED),
        ("exception", {}, Outcome.FAILED),
        ("cancelled", {}, Outcome.STOPPED),
        ("failure", {"is_expired": True}, Outcome.EXPIRED),
        ("retry", {"is_lost": True}, Outcome.LOST),
        ("success", {"is_lost": True}, Outcome.LOST),
        ("exception", {"refused_by": Actor.OPERATOR}, Outcome.REFUSED),
        ("retry", {"refused_by": Actor.ENGINE}, Outcome.ENGINE_ERROR),
        # What came first is what counts: an expired sandbox is destroyed in the end.
        ("failure", {"is_expired": True, "is_lost": True}, Outcome.EXPIRED),
        ("retry", {"refused_by": Actor.ENGINE, "is_lost": True}, Outcome.ENGINE_ERROR),
    ],
)
def test_every_end_has_its_word(result: str, known: dict[str, Any], expected: Outcome) -> None:
    assert outcome(result, **known) is expected
