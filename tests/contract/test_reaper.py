"""The reaper on the double: what it removes, what it spares, and how it goes on trying."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from memory_engine import CALL_DEADLINE, IMAGE, MemoryContainer, MemoryEngine
from real_master import assert_valid
from runtime import SandboxPolicy
from twisted.internet import defer, task
from twisted.python.failure import Failure

from sandboxworker.audit import Event
from sandboxworker.engine.interface import Listed
from sandboxworker.engine.uids import UidRange
from sandboxworker.errors import EngineRefused, EngineUnreachable, NotDestroyed
from sandboxworker.reaper import (
    FIRST_PAUSE,
    LAST_PAUSE,
    REMOVE_DEADLINE,
    SWEEP_LIMIT,
    Reaped,
    Reaper,
    pause_after,
)
from sandboxworker.sandbox import DESTROY_DEADLINE, LIVING, Owner, Sandbox, State
from sandboxworker.seccomp import Profile
from sandboxworker.spec import build_spec

PROFILE = Profile("build", '{"defaultAction":"SCMP_ACT_ERRNO"}', "sha256:" + "1" * 64)
NOW = 1_000_000


@attrs.define
class World:
    """An engine in memory, a reaper of master ``m``, and what the audit log was told."""

    clock: task.Clock = attrs.Factory(task.Clock)
    events: list[Event] = attrs.Factory(list)
    engine: MemoryEngine = attrs.field(init=False)
    reaper: Reaper = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.clock.advance(NOW)
        self.engine = MemoryEngine(self.clock)
        self.engine.uids = UidRange([20001, 20002])
        self.reaper = Reaper("m", self.clock, self.events.append)

    def container(
        self, master: str = "m", deadline: Any = NOW + 100, state: str = "running"
    ) -> str:
        """One that no sandbox of this process owns."""
        number = len(self.engine.containers) + 1
        labels = {
            "sandboxworker.master": master,
            "sandboxworker.worker": "w",
            "sandboxworker.sandbox": f"{number:016x}",
            "sandboxworker.deadline": str(deadline),
        }
        container = f"{number:064x}"
        self.engine.containers[container] = MemoryContainer(
            container,
            f"sandboxworker-{number}",
            {"Image": "i", "Labels": labels, "HostConfig": {}},
            state,
        )
        return container

    def sandbox(self, **policy: Any) -> Sandbox:
        spec = build_spec(SandboxPolicy(IMAGE.reference, **policy), IMAGE, PROFILE)
        return Sandbox(self.engine, self.engine.uids, spec, Owner("m", "w"), self.clock)

    def ready(self, **policy: Any) -> Sandbox:
        sandbox = self.sandbox(**policy)
        self.result(sandbox.start())
        return sandbox

    def pump(self, seconds: float = 0.0, steps: int = 50) -> None:
        for _ in range(steps):
            self.clock.advance(seconds / steps)

    def result(self, waited_for: Any, seconds: float = 0.0) -> Any:
        results: list[Any] = []
        pending = waited_for
        if not isinstance(pending, defer.Deferred):
            pending = defer.ensureDeferred(pending)
        pending.addBoth(results.append)
        self.pump(seconds)
        assert results, "no result yet"
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def sweep(self, seconds: float = 0.0) -> list[Reaped]:
        found: list[Reaped] = self.result(self.reaper.sweep(self.engine), seconds)
        return found

    def told(self, name: str) -> list[dict[str, Any]]:
        """What the audit log has of one kind; each is as its schema says."""
        for event in self.events:
            assert_valid(json.loads(event.json_line(0, "m")))
        return [dict(event.fields) for event in self.events if event.name == name]


@pytest.fixture
def world() -> Iterator[World]:
    before = dict(LIVING)
    yield World()
    LIVING.clear()
    LIVING.update(before)


# ---- what goes and what stays ------------------------------------------------------------------


@pytest.mark.parametrize("state", ["created", "running", "exited", "dead", "paused"])
def test_an_orphan_is_removed_in_whatever_state_it_is_and_audited(world: World, state: str) -> None:
    container = world.container(state=state)
    (reaped,) = world.sweep()
    assert reaped.problem is None
    assert world.engine.containers == {}
    (told,) = world.told("reap.removed")
    assert told["container"] == container
    assert (told["why"], told["by"], told["state"], told["worker"]) == (
        "orphan",
        "master",
        state,
        "w",
    )


def test_another_masters_containers_stay_even_past_their_deadline(world: World) -> None:
    other = world.container(master="m2", deadline=1)
    prefix = world.container(master="m-", deadline=1)
    assert world.sweep() == []
    assert set(world.engine.containers) == {other, prefix}
    assert world.events == []


def test_living_sandboxes_stay(world: World) -> None:
    sandbox = world.ready()
    assert world.sweep() == []
    assert sandbox.is_ready
    world.result(sandbox.destroy(), 1)


@pytest.mark.parametrize("call", ["create", "inspect", "attach", "start"])
def test_a_sandbox_that_is_being_started_stays(world: World, call: str) -> None:
    """The engine has the container and lists it, while our call has not returned yet."""
    world.engine.lost_answers = {"create"} if call == "create" else set()
    gate: defer.Deferred[None] = defer.Deferred()
    if call != "create":
        world.engine.gates[call] = gate
    sandbox = world.sandbox()
    starting = sandbox.start()
    starting.addErrback(lambda _: None)
    assert len(world.engine.containers) == 1
    assert sandbox.state is (State.NEW if call == "create" else State.CREATED)
    assert world.sweep() == []
    assert len(world.engine.containers) == 1
    gate.callback(None)
    world.pump(2 * CALL_DEADLINE)


def test_a_sandbox_that_is_created_while_the_engine_lists_stays(world: World) -> None:
    """Its owner is asked for after the list has come, when it is known for sure."""
    gate: defer.Deferred[None] = defer.Deferred()
    world.engine.gates["list"] = gate
    sweeping = defer.ensureDeferred(world.reaper.sweep(world.engine))
    sandbox = world.ready()
    gate.callback(None)
    assert world.result(sweeping) == []
    assert sandbox.is_ready


def test_a_container_that_the_engine_made_after_its_sandbox_was_given_up_goes(
    world: World,
) -> None:
    sandbox = world.ready()
    (late,) = world.engine.containers.values()
    world.result(sandbox.destroy(), 1)
    world.engine.containers[late.id] = late
    (reaped,) = world.sweep()
    assert reaped.found.container.id == late.id
    assert world.engine.containers == {}


@pytest.mark.parametrize("deadline", ["", "soon", "-5", "1e9"])
def test_a_deadline_that_is_no_number_is_none(world: World, deadline: str) -> None:
    owned = Reaper("m", world.clock, world.events.append, is_owned=lambda _: True)
    world.container(deadline=deadline)
    assert world.result(owned.find(world.engine)) == []


def test_past_its_deadline_a_container_goes_though_its_master_may_live(world: World) -> None:
    """As ``gc`` beside a living master: it cannot know what is owned, and spares the rest."""
    gc = Reaper("m", world.clock, world.events.append, by="gc", is_owned=lambda _: True)
    young, old = world.container(), world.container(deadline=NOW - 1, state="created")
    (found,) = world.result(gc.find(world.engine))
    assert (found.container.id, found.why) == (old, "deadline")
    assert world.events == []
    world.result(gc.sweep(world.engine))
    assert set(world.engine.containers) == {young}
    (told,) = world.told("reap.removed")
    assert (told["why"], told["by"]) == ("deadline", "gc")


def test_who_owns_what_is_asked_after_the_list(world: World) -> None:
    asked: list[str] = []

    def is_owned(container: Listed) -> bool:
        asked.append(world.engine.calls[-1])
        return True

    world.container()
    gc = Reaper("m", world.clock, world.events.append, is_owned=is_owned)
    world.result(gc.find(world.engine))
    assert asked == ["list"]


def test_a_sandbox_of_ours_past_its_hard_deadline_is_lost_and_destroyed(world: World) -> None:
    """Its own clock failed; the build is told by the loss."""
    sandbox = world.ready(max_runtime=100)
    lost: list[Exception] = []
    sandbox.on_lost = lost.append
    sandbox._stop_clock()
    world.pump(5000)
    world.sweep()
    world.pump(5)
    assert sandbox.state is State.GONE
    assert "past its deadline" in str(lost[0])


# ---- how ---------------------------------------------------------------------------------------


def test_one_sweep_is_bounded_and_the_next_goes_on(world: World) -> None:
    for _ in range(SWEEP_LIMIT + 3):
        world.container()
    assert len(world.sweep()) == SWEEP_LIMIT
    assert len(world.sweep()) == 3
    assert world.engine.containers == {}


def test_an_engine_that_refuses_is_tried_again_later_and_less_often(world: World) -> None:
    world.container()
    refusal = EngineRefused("memory", "remove", 500, "driver failed to remove root filesystem")
    world.engine.failures["remove"] = [refusal] * 100
    attempts = 0
    for _ in range(100):
        attempts += len(world.sweep())
        world.clock.advance(180)
    assert attempts == 100 - len(world.engine.failures["remove"])
    told = world.told("reap.failed")
    assert [each["attempt"] for each in told] == list(range(1, attempts + 1))
    assert [each["again_in"] for each in told[:4]] == [30, 60, 120, 240]
    assert told[-1]["again_in"] == LAST_PAUSE
    assert attempts < 14  # In five hours.
    assert "root filesystem" in told[0]["reason"]


def test_what_could_not_be_removed_is_told_when_it_is_gone_after_all(world: World) -> None:
    container = world.container()
    world.engine.failures["remove"] = [EngineRefused("memory", "remove", 500, "no")]
    (reaped,) = world.sweep()
    assert reaped.problem is not None
    del world.engine.containers[container]
    world.sweep()
    (told,) = world.told("reap.removed")
    assert told["container"] == container
    world.sweep()
    assert len(world.told("reap.removed")) == 1


def test_a_container_that_stays_though_the_engine_said_yes_is_not_told_as_removed(
    world: World,
) -> None:
    world.container()
    world.engine.deaf = True
    (reaped,) = world.sweep(REMOVE_DEADLINE + 2)
    assert reaped.problem is not None
    assert "still there" in reaped.problem
    assert world.told("reap.removed") == []


def test_an_engine_that_hangs_ends_the_sweep_at_the_first_container(world: World) -> None:
    for _ in range(5):
        world.container()
    world.engine.hanging = {"remove"}
    (reaped,) = world.sweep(CALL_DEADLINE + 1)
    assert "did not answer" in str(reaped.problem)
    assert world.engine.calls.count("remove") == 1
    world.engine.hanging = set()
    assert len(world.sweep()) == 4
    world.clock.advance(FIRST_PAUSE)
    assert len(world.sweep()) == 1


def test_an_engine_that_does_not_answer_is_told_once_until_it_does(world: World) -> None:
    world.engine.failures["list"] = [EngineUnreachable("memory", "down")] * 3
    for _ in range(4):
        assert world.sweep() == []
    world.engine.failures["list"] = [EngineUnreachable("memory", "down")]
    world.sweep()
    assert len(world.told("reap.unreachable")) == 2


# ---- what could not be destroyed ---------------------------------------------------------------


def stuck(world: World) -> Sandbox:
    sandbox = world.ready()
    world.engine.deaf = True
    with pytest.raises(NotDestroyed):
        world.result(sandbox.destroy(), DESTROY_DEADLINE + 2)
    assert sandbox.state is State.STUCK
    return sandbox


def test_a_stuck_sandbox_is_destroyed_when_the_engine_obeys_again(world: World) -> None:
    sandbox, let_go = stuck(world), []

    async def release() -> None:
        let_go.append(sandbox.state)

    world.reaper.adopt(sandbox, release)
    world.pump(600)
    assert sandbox.state is State.STUCK
    attempts = [each["attempt"] for each in world.told("reap.failed")]
    assert attempts == list(range(2, 2 + len(attempts)))
    assert 2 <= len(attempts) <= 5
    assert world.sweep() == []  # It has its owner.
    world.engine.deaf = False
    world.pump(LAST_PAUSE)
    assert sandbox.state is State.GONE
    assert let_go == [State.GONE]
    assert len(world.engine.uids) == 2
    (told,) = world.told("reap.removed")
    assert (told["why"], told["container"]) == ("stuck", sandbox.container)
    assert world.clock.getDelayedCalls() == []


def test_a_reaper_that_stops_lets_go_and_leaves_the_rest_to_the_next_start(world: World) -> None:
    sandbox, let_go = stuck(world), []

    async def release() -> None:
        let_go.append(sandbox)

    world.reaper.adopt(sandbox, release)
    world.result(world.reaper.stop())
    assert let_go == [sandbox]
    assert world.clock.getDelayedCalls() == []
    world.engine.deaf = False
    (reaped,) = world.sweep()
    assert reaped.found.why == "orphan"


def test_pauses_grow_to_a_bound() -> None:
    pauses = [pause_after(attempt) for attempt in range(1, 10_000)]
    assert pauses[0] == FIRST_PAUSE
    assert sorted(pauses) == pauses
    assert pauses[-1] == LAST_PAUSE
