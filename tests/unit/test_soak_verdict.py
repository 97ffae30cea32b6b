"""What the soak takes for a wrong end of a build request."""

from __future__ import annotations

from typing import Any

from soak.verdict import AFTERMATH, Harm, Try, Wanted, complaints

CUT = Harm("a command's stream is cut", 5.0, 5.0)
LOST = Harm("create: its answer is lost", 5.0, 6.0)


def wanted(*results: str, final: str = "", outcome: str = "", **more: Any) -> Wanted:
    """An honest request whose builds took from 0 to 10 s each, one after the other."""
    tries = [Try(n, 10.0 * n, 10.0 * n + 10, result) for n, result in enumerate(results)]
    return Wanted(
        1, "honest", "success", tries, wanted_outcome="completed",
        outcome=outcome or "completed", final=final or results[-1], **more,
    )  # fmt: skip


def told(request: Wanted, *harms: Harm) -> list[str]:
    return list(complaints(request, harms, 2))


def test_an_end_as_wanted_is_right() -> None:
    assert told(wanted("success")) == []


def test_another_end_is_wrong_and_so_is_another_outcome() -> None:
    assert len(told(wanted("failure", outcome="failed: exit"))) == 1
    assert len(told(wanted("success", outcome="lost"))) == 1
    assert len(told(wanted("success", final="failure"))) == 1


def test_a_request_without_an_end_is_wrong() -> None:
    assert told(Wanted(1, "honest", "success")) == ["request 1 (honest) has no end"]


def test_a_retry_needs_a_reason_from_outside() -> None:
    assert len(told(wanted("retry", "success"))) == 1
    assert told(wanted("retry", "success"), LOST) == []
    assert told(wanted("retry", "success", removed=[0])) == []
    assert len(told(wanted("retry", "success"), Harm("x", -AFTERMATH - 1, -AFTERMATH - 1))) == 1


def test_an_exception_is_right_after_the_last_retry_alone() -> None:
    assert told(wanted("retry", "retry", "exception"), Harm("down", 0, 30)) == []
    assert len(told(wanted("retry", "exception"), LOST)) == 1


def test_a_stream_cut_at_a_builds_end_may_make_it_a_failure() -> None:
    failed = wanted("failure", outcome="failed: exit")
    assert told(failed, CUT) == []
    assert len(told(failed, LOST)) == 1
    assert len(told(failed, Harm(CUT.what, 11, 11))) == 1
    assert len(told(wanted("failure", outcome="failed: memory"), CUT)) == 1
