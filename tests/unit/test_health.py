"""An engine's health: asked while somebody watches, and told when it changes."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.internet import task

from sandboxworker.engine.health import DOWN_SECONDS, UP_SECONDS, Health
from sandboxworker.errors import EngineUnreachable, EngineUnsupported


@attrs.define
class World:
    """An engine of which the test says how it is."""

    error: Exception | None = None
    asked: int = 0
    told: list[bool] = attrs.Factory(list)
    clock: task.Clock = attrs.Factory(task.Clock)

    async def ask(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error

    def go_down(self) -> EngineUnreachable:
        self.error = EngineUnreachable("unix:///x", "gone")
        return self.error


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def health(world: World) -> Health:
    return Health("unix:///x", world.ask, world.clock)


def test_engine_is_up_until_it_does_not_answer(health: Health, world: World) -> None:
    health.watch(world.told.append)
    world.clock.advance(UP_SECONDS)
    assert (health.is_up, world.asked, world.told) == (True, 2, [])
    world.go_down()
    world.clock.advance(UP_SECONDS)
    assert (health.is_up, world.told) == (False, [False])


def test_engine_that_is_back_is_noticed_sooner_and_told(health: Health, world: World) -> None:
    world.go_down()
    health.watch(world.told.append)
    assert not health.is_up
    world.error = None
    world.clock.advance(DOWN_SECONDS)
    assert (health.is_up, world.told) == (True, [False, True])


def test_call_that_found_nobody_counts_at_once(health: Health, world: World) -> None:
    health.watch(world.told.append)
    health.failed(world.go_down())
    health.failed(world.go_down())
    assert (health.is_up, world.told) == (False, [False])


def test_what_the_operator_must_mend_is_no_absence(health: Health, world: World) -> None:
    """Its builds are refused with the reason instead of waiting for ever."""
    world.error = EngineUnsupported("unix:///x", "Podman Engine 4.3.1")
    health.watch(world.told.append)
    assert health.is_up


def test_nobody_is_asked_while_nobody_watches(health: Health, world: World) -> None:
    health.failed(world.go_down())
    assert (health.is_up, world.asked) == (True, 0)
    stop = health.watch(world.told.append)
    other = health.watch(world.told.append)
    stop()
    world.clock.advance(DOWN_SECONDS)
    assert world.asked == 2
    other()
    world.clock.advance(10 * UP_SECONDS)
    assert world.asked == 2
    assert world.clock.getDelayedCalls() == []


def test_each_watcher_is_told(health: Health, world: World) -> None:
    others: list[Any] = []
    health.watch(world.told.append)
    health.watch(others.append)
    health.failed(world.go_down())
    assert world.told == others == [False]
