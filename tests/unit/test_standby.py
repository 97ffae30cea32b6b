"""Sandboxes kept ready: what is decided, and what is done on a double of the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_engine import IMAGE, MemoryEngine
from twisted.internet import defer, task

from sandboxworker.audit import Event
from sandboxworker.errors import EngineRefused
from sandboxworker.policy import SandboxPolicy
from sandboxworker.sandbox import LIVING, Owner, Sandbox, State
from sandboxworker.seccomp import load
from sandboxworker.spec import ContainerSpec, ImageFacts, build_spec
from sandboxworker.standby import (
    AT_ONCE,
    LAST_PAUSE,
    LONGEST_WAIT,
    LOOK_SECONDS,
    Standby,
    plan,
    wanted_policies,
)

DIGESTS = st.sampled_from(["a", "b", "c"])


# ---- deciding ------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(DIGESTS, st.floats(0, 2 * LONGEST_WAIT)), max_size=8),
    st.lists(DIGESTS, max_size=AT_ONCE),
    st.dictionaries(DIGESTS, st.integers(1, 4)),
)
def test_what_stays_is_wanted_and_fresh_and_never_too_much(
    ages: list[tuple[str, float]], starting: list[str], wanted: dict[str, int]
) -> None:
    ready = [(number, digest, age) for number, (digest, age) in enumerate(ages)]
    todo = plan(ready, starting, wanted)
    stays = [entry for entry in ready if entry[0] not in todo.drop]
    assert all(age < LONGEST_WAIT for _, _, age in stays)
    for digest, count in Counter(digest for _, digest, _ in stays).items():
        assert count + Counter(starting)[digest] <= max(
            wanted.get(digest, 0), Counter(starting)[digest]
        )
    assert len(starting) + len(todo.start) <= AT_ONCE
    after = Counter([digest for _, digest, _ in stays] + starting + list(todo.start))
    complete = all(after[digest] >= count for digest, count in wanted.items())
    assert complete or len(starting) + len(todo.start) == AT_ONCE


def test_of_too_many_the_oldest_go() -> None:
    ready = [("old", "a", 30.0), ("new", "a", 1.0)]
    assert plan(ready, [], {"a": 1}).drop == ("old",)


def test_workers_with_one_policy_share_the_largest_number() -> None:
    one, other = SandboxPolicy("i"), SandboxPolicy("i", cpus=2)
    wanted = wanted_policies([((one,), 2), ((one, other), 3), ((one,), 1)])
    assert sorted(count for _, count in wanted) == [3, 3]
    assert len(wanted) == 2


# ---- doing ---------------------------------------------------------------------------------------


class Kept:
    """A `Standby` on a double, with a clock of its own."""

    def __init__(self) -> None:
        self.clock = task.Clock()
        self.engine = MemoryEngine(self.clock)
        self.events: list[Event] = []
        self.adopted: list[Sandbox] = []
        self.short = False
        self.standby = Standby(
            self.engine,
            self.engine.uids,
            "master",
            self.clock,
            self.events.append,
            is_short=lambda: self.short,
            adopt=self.adopted.append,
        )
        self.policy = SandboxPolicy(IMAGE.reference)

    def wish(self, count: int, policy: SandboxPolicy | None = None, who: str = "w") -> None:
        self.standby.wish(who, [policy or self.policy], count)
        self.pass_time()

    def pass_time(self, seconds: float = 2.0) -> None:
        self.clock.pump([0.01] * 100)
        self.clock.pump([1.0] * int(seconds))
        self.clock.pump([0.01] * 100)

    def spec(self, policy: SandboxPolicy | None = None, image: ImageFacts = IMAGE) -> ContainerSpec:
        return build_spec(policy or self.policy, image, load("build"))

    def take(self, policy: SandboxPolicy | None = None, image: ImageFacts = IMAGE) -> Any:
        return self.standby.take(self.spec(policy, image))

    @property
    def ready(self) -> int:
        return self.standby.ready


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    stopping = defer.ensureDeferred(made.standby.stop())
    made.pass_time(60)
    assert stopping.called
    assert made.engine.containers == {}
    assert not [each for each in LIVING.values() if each.engine is made.engine]


def test_as_many_as_are_wished_are_started_and_wait(kept: Kept) -> None:
    kept.wish(3)
    assert kept.ready == 3
    assert [each.state for each in kept.engine.containers.values()] == ["running"] * 3


def test_never_more_than_a_few_start_at_once(kept: Kept) -> None:
    kept.engine.hanging.add("start")
    kept.wish(6)
    assert len(kept.engine.containers) == AT_ONCE


def test_one_that_is_taken_is_replaced_and_never_comes_back(kept: Kept) -> None:
    kept.wish(1)
    taken = kept.take()
    assert taken is not None
    assert kept.take() is None
    kept.pass_time()
    other = kept.take()
    assert other is not None
    assert other is not taken
    taken.destroy()
    other.destroy()
    kept.pass_time()


def test_what_differs_in_anything_is_not_given(kept: Kept) -> None:
    kept.wish(1)
    assert kept.take(SandboxPolicy(IMAGE.reference, pids=99)) is None
    assert kept.take(image=ImageFacts(IMAGE.reference, "sha256:" + "6" * 64, env=IMAGE.env)) is None
    assert kept.ready == 1


def test_a_claim_tells_worker_and_waiting_and_begins_the_builds_time(kept: Kept) -> None:
    kept.wish(1)
    kept.pass_time(100)
    taken = kept.take()
    heard: list[Event] = []
    reached: list[bool] = []
    taken.on_deadline = lambda: reached.append(True)
    taken.claim(Owner("master", "worker-7"), heard.append)
    assert heard[0].name == "sandbox.claimed"
    assert heard[0].fields["worker"] == "worker-7"
    assert heard[0].fields["waited"] >= 100
    kept.clock.advance(kept.policy.max_runtime - 1)
    assert reached == []
    kept.clock.advance(2)
    assert reached == [True]
    taken.destroy()
    kept.pass_time()


def test_the_label_of_the_hard_deadline_allows_for_the_waiting(kept: Kept) -> None:
    kept.wish(1)
    (container,) = kept.engine.containers.values()
    deadline = int(container.body["Labels"]["sandboxworker.deadline"])
    assert deadline > LONGEST_WAIT + kept.policy.max_runtime


def test_a_changed_image_replaces_what_waits(kept: Kept) -> None:
    kept.wish(2)
    changed = ImageFacts(IMAGE.reference, "sha256:" + "7" * 64, env=IMAGE.env)
    kept.engine.images[IMAGE.reference] = changed
    kept.pass_time(2 * LOOK_SECONDS)
    assert kept.ready == 2
    assert {each.body["Image"] for each in kept.engine.containers.values()} == {changed.id}


def test_a_changed_policy_replaces_what_waits(kept: Kept) -> None:
    kept.wish(2)
    kept.wish(1, SandboxPolicy(IMAGE.reference, pids=77))
    kept.pass_time()
    limits = [each.body["HostConfig"]["PidsLimit"] for each in kept.engine.containers.values()]
    assert limits == [77]


def test_what_waited_long_is_replaced(kept: Kept) -> None:
    kept.wish(1)
    (before,) = kept.engine.containers
    kept.pass_time(LONGEST_WAIT + 2 * LOOK_SECONDS)
    (after,) = kept.engine.containers
    assert before != after
    assert kept.ready == 1


def test_short_of_memory_all_is_given_up_and_comes_back_afterwards(kept: Kept) -> None:
    kept.wish(2)
    kept.short = True
    kept.pass_time(2 * LOOK_SECONDS)
    assert kept.engine.containers == {}
    kept.short = False
    kept.pass_time(2 * LOOK_SECONDS)
    assert kept.ready == 2


def test_one_that_ends_by_itself_is_replaced_and_never_given(kept: Kept) -> None:
    kept.wish(1)
    (container,) = kept.engine.containers
    kept.engine.end_container(container)
    kept.clock.advance(0)
    assert kept.take() is None
    kept.pass_time(2 * LOOK_SECONDS)
    assert kept.ready == 1


def test_an_engine_that_cannot_start_any_is_asked_again_ever_more_rarely(kept: Kept) -> None:
    kept.engine.failures["start"] = [EngineRefused("memory", "start", 500, "no")] * 100
    kept.wish(1)
    kept.pass_time(3600)
    assert 3 < kept.engine.calls.count("create") < 15
    kept.engine.failures.clear()
    kept.pass_time(2 * LAST_PAUSE)
    assert kept.ready == 1


def test_a_missing_image_keeps_no_other_policy_from_being_ready(kept: Kept) -> None:
    kept.standby.wish("w", [SandboxPolicy("missing"), kept.policy], 1)
    kept.pass_time()
    assert kept.ready == 1


def test_without_a_wish_nothing_is_kept_and_nothing_is_asked(kept: Kept) -> None:
    kept.wish(2)
    kept.wish(0)
    kept.pass_time()
    assert kept.engine.containers == {}
    kept.pass_time(3 * LOOK_SECONDS)
    calls = len(kept.engine.calls)
    kept.pass_time(10 * LOOK_SECONDS)
    assert len(kept.engine.calls) == calls


def test_stopping_in_the_middle_of_a_start_leaves_nothing(kept: Kept) -> None:
    kept.engine.gates["attach"] = gate = defer.Deferred[None]()
    kept.wish(1)
    stopping = defer.ensureDeferred(kept.standby.stop())
    kept.pass_time()
    gate.callback(None)
    kept.pass_time(5)
    assert stopping.called
    assert kept.engine.containers == {}


def test_what_is_not_confirmed_gone_is_handed_on(kept: Kept) -> None:
    kept.wish(1)
    kept.engine.deaf = True
    kept.short = True
    kept.pass_time(60)
    (stuck,) = kept.adopted
    assert stuck.state is State.STUCK
    kept.engine.deaf = False
    stuck.destroy()
    kept.pass_time()
