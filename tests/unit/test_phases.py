"""Phases, each from the end of the one before."""

from __future__ import annotations

from twisted.internet.task import Clock

from sandboxworker.phases import Phases


def test_each_phase_is_counted_from_the_end_of_the_one_before() -> None:
    clock = Clock()
    phases = Phases(clock.seconds)
    clock.advance(5)
    phases.begin()
    clock.advance(1)
    phases.over("create")
    clock.advance(0.25)
    phases.over("start")
    assert phases.seconds == {"create": 1.0, "start": 0.25}
