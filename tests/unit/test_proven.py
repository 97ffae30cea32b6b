"""What was seen of an engine holds for a while."""

from __future__ import annotations

from twisted.internet import task

from sandboxworker.engine.proven import HOLDS, Proven


def test_what_was_seen_holds_until_its_time_is_over() -> None:
    clock = task.Clock()
    clock.advance(1000)
    proven = Proven(clock)
    assert not proven.holds("a")
    proven.note("a")
    clock.advance(HOLDS - 1)
    assert proven.holds("a")
    assert not proven.holds("b")
    clock.advance(1)
    assert not proven.holds("a")


def test_what_holds_no_more_is_forgotten() -> None:
    clock = task.Clock()
    proven = Proven(clock)
    for name in "abcdef":
        proven.note(name)
        clock.advance(HOLDS)
    proven.note("g")
    assert list(proven._until) == ["g"]
