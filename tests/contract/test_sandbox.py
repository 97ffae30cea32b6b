"""One container's life: the corners on the double, the main path on the real engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import pytest_twisted
from memory_engine import CALL_DEADLINE, IMAGE, Command, MemoryEngine, Recorder, within
from twisted.internet import defer, reactor, task
from twisted.python.failure import Failure

from sandboxworker.audit import Event
from sandboxworker.engine.interface import ExecRequest, Usage
from sandboxworker.engine.uids import UidRange
from sandboxworker.errors import (
    DiskFull,
    DiskRefused,
    EngineRefused,
    EngineTimeout,
    EngineUnreachable,
    ExecFailed,
    NoFreeUid,
    NotConformant,
    NotDestroyed,
    OutOfMemory,
    SandboxGone,
    SocketsFull,
    SocketsUnbounded,
    StartTimeout,
)
from sandboxworker.policy import SandboxPolicy
from sandboxworker.proof import ask
from sandboxworker.sandbox import (
    DEADLINE_GRACE,
    DESTROY_DEADLINE,
    POST_MORTEM_DEADLINE,
    START_DEADLINE,
    Owner,
    Sandbox,
    State,
)
from sandboxworker.seccomp import Profile
from sandboxworker.sockets import LOOK_EVERY
from sandboxworker.spec import UID_RANGE, build_spec

PROFILE = Profile("build", '{"defaultAction":"SCMP_ACT_ERRNO"}', "sha256:" + "1" * 64)
SLEEP = ("/bin/sh", "-c", "sleep 1000")


@attrs.define
class World:
    """A clock, an engine in memory and what the audit log was told."""

    clock: task.Clock = attrs.Factory(task.Clock)
    events: list[Event] = attrs.Factory(list)
    engine: MemoryEngine = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.engine = MemoryEngine(self.clock)
        self.engine.uids = UidRange([20001, 20002])
        self.engine.commands[SLEEP] = Command(status=None)

    def sandbox(self, master: str = "m", **policy: Any) -> Sandbox:
        spec = build_spec(SandboxPolicy(IMAGE.reference, **policy), IMAGE, PROFILE)
        owner = Owner(master, "w")
        return Sandbox(self.engine, self.engine.uids, spec, owner, self.clock, self.events.append)

    def ready(self, **policy: Any) -> Sandbox:
        sandbox = self.sandbox(**policy)
        self.result(sandbox.start())
        assert sandbox.is_ready
        return sandbox

    def pump(self, seconds: float = 0.0, steps: int = 20) -> None:
        """Let everything happen that is due within so many seconds."""
        for _ in range(steps):
            self.clock.advance(seconds / steps)

    def result(self, waited_for: Any, seconds: float = 0.0) -> Any:
        """What a Deferred or coroutine gives within that time; its error is raised."""
        outcome = Outcome(waited_for)
        self.pump(seconds)
        return outcome.value()

    def states(self) -> list[str]:
        return [event.name.removeprefix("sandbox.") for event in self.events]

    @property
    def free(self) -> int:
        return len(self.engine.uids)


class Outcome:
    """What becomes of a Deferred or coroutine."""

    def __init__(self, waited_for: Any) -> None:
        self.results: list[Any] = []
        pending = waited_for
        if not isinstance(pending, defer.Deferred):
            pending = defer.ensureDeferred(pending)
        pending.addBoth(self.results.append)

    @property
    def is_there(self) -> bool:
        return bool(self.results)

    def value(self) -> Any:
        assert self.results, "no result yet"
        if isinstance(self.results[0], Failure):
            self.results[0].raiseException()
        return self.results[0]


@pytest.fixture
def world() -> World:
    return World()


# ---- start -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("create", "create container"),
        ("attach", "attach"),
        ("start", "start container"),
        ("bound_sockets", "prove the limits"),
    ],
)
def test_a_start_that_takes_too_long_says_what_the_engine_was_at_and_leaves_nothing(
    world: World, call: str, told: str
) -> None:
    world.engine.gates[call] = defer.Deferred()
    sandbox = world.sandbox()
    with pytest.raises(StartTimeout, match=f"'{told}'"):
        world.result(sandbox.start(), START_DEADLINE + 1)
    world.engine.gates.clear()
    world.pump(DESTROY_DEADLINE)
    assert sandbox.state is State.GONE
    assert not world.engine.containers
    assert world.free == 2


# ---- why it ended ------------------------------------------------------------------------------


def lost(world: World) -> tuple[Sandbox, str, Exception]:
    """A sandbox whose keeper has ended, its container, and what was told."""
    sandbox = world.ready()
    told: list[Exception] = []
    sandbox.on_lost = told.append
    container = str(sandbox.container)
    world.engine.end_container(container)
    world.pump(1)
    return sandbox, container, told[0]


def test_a_keeper_that_died_of_memory_is_the_builds_doing(world: World) -> None:
    sandbox, container, reason = lost(world)
    world.engine.out_of_memory.add(container)
    found = world.result(sandbox.post_mortem(reason), 1)
    assert isinstance(found, OutOfMemory)


def test_a_keeper_that_ended_otherwise_is_not(world: World) -> None:
    sandbox, _, reason = lost(world)
    assert world.result(sandbox.post_mortem(reason), 1) is reason


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_where_the_engine_does_not_say_why_it_is_not_the_builds_doing(
    world: World, how: str
) -> None:
    sandbox, _, reason = lost(world)
    if how == "hangs":
        world.engine.gates["died_of_memory"] = defer.Deferred()
    else:
        world.engine.failures["died_of_memory"] = [EngineUnreachable("memory", "down")]
    assert world.result(sandbox.post_mortem(reason), POST_MORTEM_DEADLINE + 1) is reason


# ---- what waits in its sockets -----------------------------------------------------------------


@attrs.define
class Gauge:
    """Tells what waits; ``looks``: how often it was asked."""

    waiting: int = 0
    error: Exception | None = None
    looks: int = 0
    delay: float = 0.0
    is_closed: bool = False

    def __call__(self) -> int:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return self.waiting

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


def looked_at(world: World, gauge: Gauge) -> tuple[Sandbox, list[Exception]]:
    """A sandbox whose sockets are looked at, and the reasons for which it was lost."""
    world.engine.in_sockets = gauge
    sandbox = world.ready()
    told: list[Exception] = []
    sandbox.on_lost = told.append
    return sandbox, told


def test_more_in_sockets_than_it_may_use_ends_a_sandbox_by_its_builds_doing(world: World) -> None:
    gauge = Gauge()
    sandbox, told = looked_at(world, gauge)
    gauge.waiting = sandbox.spec.memory
    world.pump(10 * LOOK_EVERY)
    assert sandbox.is_ready
    gauge.waiting = 2 * sandbox.spec.memory
    world.pump(2 * LOOK_EVERY)
    (reason,) = told
    assert isinstance(reason, SocketsFull)
    assert gauge.is_closed
    assert (reason.waiting, reason.limit) == (2 * sandbox.spec.memory, sandbox.spec.memory)
    assert sandbox.state is State.GONE
    assert world.result(sandbox.post_mortem(reason), 1) is reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(19, "No such device"), "No such device"),
        (ValueError("no number"), "no number"),
        (EngineUnreachable("engine", "it told nothing"), "it told nothing"),
    ],
    ids=["file", "number", "engine"],
)
def test_sockets_that_cannot_be_looked_at_end_a_sandbox_by_nobodys_doing(
    world: World, error: Exception, said: str
) -> None:
    gauge = Gauge()
    sandbox, told = looked_at(world, gauge)
    gauge.error = error
    world.pump(2 * LOOK_EVERY)
    (reason,) = told
    assert type(reason) is SandboxGone
    assert f"(its sockets: {said})" in str(reason)
    assert sandbox.state is State.GONE
    assert gauge.is_closed


def test_nobody_looks_at_the_sockets_of_a_sandbox_that_is_over(world: World) -> None:
    gauge = Gauge()
    sandbox, told = looked_at(world, gauge)
    world.pump(4 * LOOK_EVERY)
    assert 3 <= gauge.looks <= 5
    world.result(sandbox.destroy(), 1)
    looks = gauge.looks
    assert gauge.is_closed
    world.pump(10 * LOOK_EVERY)
    assert gauge.looks == looks
    assert not told
    assert not world.clock.getDelayedCalls()


def test_sockets_that_cannot_be_bounded_refuse_the_sandbox(world: World) -> None:
    world.engine.bounds_sockets = False
    sandbox = world.sandbox()
    with pytest.raises(SocketsUnbounded, match="sockets='unbounded'"):
        world.result(sandbox.start())
    world.pump(1)
    assert not sandbox.is_ready
    assert world.engine.containers == {}


def test_a_policy_can_take_sockets_that_are_not_bounded_and_the_audit_log_says_so(
    world: World,
) -> None:
    world.engine.bounds_sockets = False
    assert world.ready(sockets="unbounded").is_ready
    (waived,) = [event for event in world.events if event.name == "limit.waived"]
    assert waived.fields["limit"] == "sockets"


def test_a_runtime_with_a_kernel_of_its_own_needs_no_bound_for_sockets(world: World) -> None:
    world.engine.bounds_sockets = False
    assert world.ready(runtime="runsc").is_ready
    assert "bound_sockets" not in world.engine.calls


def test_what_can_be_bounded_is_whatever_the_policy_takes(world: World) -> None:
    gauge = Gauge(waiting=1 << 40)
    world.engine.in_sockets = gauge
    sandbox = world.ready(sockets="unbounded")
    world.pump(2 * LOOK_EVERY)
    assert isinstance(sandbox.lost, SocketsFull)
    assert "limit.waived" not in world.states()


def test_started_sandbox_is_created_verified_attached_and_only_then_started(world: World) -> None:
    sandbox = world.ready()
    assert world.engine.calls == ["create", "inspect", "attach", "start", "bound_sockets"]
    assert sandbox.state is State.READY
    assert list(world.engine.containers) == [sandbox.container]
    assert world.states() == ["created", "ready"]


def test_container_carries_its_uid_in_its_name_and_its_owner_in_labels(world: World) -> None:
    sandbox = world.ready()
    (container,) = world.engine.containers.values()
    uid = sandbox.identity.uid
    assert container.name == f"sandboxworker-{uid}"
    labels = container.body["Labels"]
    assert labels["sandboxworker.master"] == "m"
    assert labels["sandboxworker.worker"] == "w"
    assert labels["sandboxworker.sandbox"] == sandbox.id
    assert labels["sandboxworker.spec"] == sandbox.spec.digest
    assert int(labels["sandboxworker.deadline"]) > world.clock.seconds() + 3600
    assert f"uid={uid},gid={uid}" in container.body["HostConfig"]["Tmpfs"]["/build"]


def test_living_sandboxes_have_different_uids_and_ids(world: World) -> None:
    one, other = world.ready(), world.ready()
    assert {one.identity.uid, other.identity.uid} == {20001, 20002}
    assert one.id != other.id


def test_fixed_user_takes_no_uid_of_the_range(world: World) -> None:
    sandbox = world.ready(user="1000:1001")
    assert (sandbox.identity.uid, sandbox.identity.gid) == (1000, 1001)
    assert world.free == 2
    world.result(sandbox.destroy())
    assert world.free == 2


@pytest.mark.parametrize("setting", ["PidsLimit", "SecurityOpt", "Memory", "Tmpfs", "User"])
def test_container_that_deviates_is_never_started_and_is_removed(
    world: World, setting: str
) -> None:
    world.engine.dropped = {setting}
    sandbox = world.sandbox()
    with pytest.raises(NotConformant, match=setting):
        world.result(sandbox.start())
    world.pump(1)
    assert "start" not in world.engine.calls
    assert world.engine.containers == {}
    assert sandbox.state is State.GONE
    assert world.free == 2


def test_warning_of_the_engine_refuses_the_sandbox(world: World) -> None:
    world.engine.warnings = ("Your kernel does not support swap limit capabilities",)
    with pytest.raises(NotConformant, match="swap limit"):
        world.result(world.sandbox().start())
    world.pump(1)
    assert world.engine.containers == {}


def test_container_that_vanished_before_it_was_verified_is_no_sandbox(world: World) -> None:
    gate: defer.Deferred[None] = defer.Deferred()
    world.engine.gates["inspect"] = gate
    outcome = Outcome(world.sandbox().start())
    world.engine.end_container(next(iter(world.engine.containers)))
    gate.callback(None)
    world.pump(1)
    with pytest.raises(NotConformant):
        outcome.value()
    assert world.free == 2


@pytest.mark.parametrize("call", ["create", "inspect", "attach", "start"])
def test_failure_at_any_call_of_the_start_is_told_and_leaves_nothing(
    world: World, call: str
) -> None:
    refusal = EngineRefused("memory", call, 500, "no")
    world.engine.failures[call] = [refusal]
    sandbox = world.sandbox()
    with pytest.raises(EngineRefused) as caught:
        world.result(sandbox.start())
    assert caught.value is refusal
    world.pump(1)
    assert sandbox.state is State.GONE
    assert world.engine.containers == {}
    assert world.free == 2


@pytest.mark.parametrize("call", ["create", "start"])
def test_call_that_took_effect_without_an_answer_leaves_nothing(world: World, call: str) -> None:
    world.engine.lost_answers = {call}
    sandbox = world.sandbox()
    outcome = Outcome(sandbox.start())
    assert len(world.engine.containers) == 1
    world.pump(CALL_DEADLINE + 1)
    with pytest.raises(EngineTimeout):
        outcome.value()
    world.pump(2)
    assert world.engine.containers == {}
    assert sandbox.state is State.GONE


def test_container_of_a_lost_create_answer_is_found_by_its_label_among_others(
    world: World,
) -> None:
    other = world.ready(user="1000:1000")
    world.engine.lost_answers = {"create"}
    sandbox = world.sandbox()
    outcome = Outcome(sandbox.start())
    world.pump(CALL_DEADLINE + 2)
    with pytest.raises(EngineTimeout):
        outcome.value()
    assert list(world.engine.containers) == [other.container]


@pytest.mark.parametrize("call", ["create", "inspect", "attach", "start"])
def test_engine_that_hangs_at_the_start_is_given_up(world: World, call: str) -> None:
    world.engine.hanging = {call}
    sandbox = world.sandbox()
    outcome = Outcome(sandbox.start())
    world.engine.hanging = set()
    world.pump(CALL_DEADLINE + 1)
    with pytest.raises(EngineTimeout):
        outcome.value()
    world.pump(2)
    assert world.engine.containers == {}
    assert sandbox.state is State.GONE


# ---- uids --------------------------------------------------------------------------------------


def test_uid_of_another_masters_sandbox_is_passed_over(world: World) -> None:
    world.engine.uids = UidRange([20001, 20002])
    world.engine.uids._free.sort()
    Outcome(world.engine.create("sandboxworker-20001", {"Labels": {}, "HostConfig": {}}))
    sandbox = world.ready()
    assert sandbox.identity.uid == 20002
    world.result(sandbox.destroy())
    assert world.free == 2


def test_sandboxes_beyond_the_range_are_refused(world: World) -> None:
    world.ready()
    world.ready()
    with pytest.raises(NoFreeUid):
        world.result(world.sandbox().start())


def test_engine_full_of_other_masters_sandboxes_is_refused_in_the_end(world: World) -> None:
    for uid in (20001, 20002):
        Outcome(world.engine.create(f"sandboxworker-{uid}", {"Labels": {}, "HostConfig": {}}))
    with pytest.raises(NoFreeUid):
        world.result(world.sandbox().start())
    assert world.free == 2


def test_uid_is_given_back_only_when_the_container_is_gone(world: World) -> None:
    sandbox = world.ready()
    world.engine.deaf = True
    outcome = Outcome(sandbox.destroy())
    world.pump(5)
    assert not outcome.is_there
    assert world.free == 1
    world.engine.deaf = False
    world.pump(5)
    outcome.value()
    assert world.free == 2


def test_uid_of_a_stuck_sandbox_stays_taken(world: World) -> None:
    sandbox = world.ready()
    world.engine.deaf = True
    outcome = Outcome(sandbox.destroy())
    world.pump(DESTROY_DEADLINE + 2, steps=100)
    with pytest.raises(NotDestroyed):
        outcome.value()
    assert world.free == 1


# ---- a disk ------------------------------------------------------------------------------------


def held(world: World) -> list[bool]:
    return [disk.is_held for disk in world.engine.disks]


def test_disk_is_held_until_the_container_has_it(world: World) -> None:
    world.engine.gates["start"] = gate = defer.Deferred[None]()
    outcome = Outcome(world.sandbox(disk_backing="disk").start())
    world.pump(1)
    assert held(world) == [True]
    (container,) = world.engine.containers.values()
    (mount,) = container.body["HostConfig"]["Mounts"]
    device = mount["VolumeOptions"]["DriverConfig"]["Options"]["device"]
    assert device == world.engine.disks[0].device
    gate.callback(None)
    world.pump(1)
    outcome.value()
    assert held(world) == [False]


def test_container_that_did_not_mount_its_disk_is_refused(world: World) -> None:
    world.engine.mounts_disks = False
    with pytest.raises(DiskRefused, match="did not mount"):
        world.result(world.sandbox(disk_backing="disk").start())
    world.pump(2)
    assert world.engine.containers == {}
    assert held(world) == [False]


def test_every_try_at_a_uid_has_a_disk_of_its_own(world: World) -> None:
    world.engine.uids._free.sort()
    Outcome(world.engine.create("sandboxworker-20001", {"Labels": {}, "HostConfig": {}}))
    assert world.ready(disk_backing="disk").identity.uid == 20002
    assert held(world) == [False, False]


def test_disk_that_cannot_be_had_leaves_no_container_and_no_uid_taken(world: World) -> None:
    world.engine.failures["new_disk"] = [DiskFull("memory", "/x")]
    with pytest.raises(DiskFull):
        world.result(world.sandbox(disk_backing="disk").start())
    world.pump(2)
    assert world.engine.containers == {}
    assert world.free == 2


def test_disk_of_a_sandbox_that_never_started_is_let_go(world: World) -> None:
    world.engine.failures["create"] = [EngineRefused("memory", "create", 500, "no")]
    with pytest.raises(EngineRefused):
        world.result(world.sandbox(disk_backing="disk").start())
    world.pump(2)
    assert held(world) == [False]


# ---- destroy -----------------------------------------------------------------------------------


def test_destroyed_sandbox_is_gone_and_takes_no_more_commands(world: World) -> None:
    sandbox = world.ready()
    world.result(sandbox.destroy())
    assert sandbox.state is State.GONE
    assert world.engine.containers == {}
    with pytest.raises(SandboxGone, match="gone"):
        world.result(sandbox.exec(SLEEP, Recorder()))


def test_sandbox_that_never_started_can_be_destroyed(world: World) -> None:
    sandbox = world.sandbox()
    world.result(sandbox.destroy())
    assert sandbox.state is State.GONE


def test_destroying_again_is_the_same_destroying(world: World) -> None:
    sandbox = world.ready()
    outcomes = [Outcome(sandbox.destroy()) for _ in range(3)]
    world.pump(1)
    outcomes.append(Outcome(sandbox.destroy()))
    assert [outcome.value() for outcome in outcomes] == [None] * 4
    assert world.engine.calls.count("remove") <= 1
    assert world.states().count("destroying") == 1
    assert world.states().count("gone") == 1


def test_one_who_gives_up_waiting_does_not_stop_the_destroying(world: World) -> None:
    sandbox = world.ready()
    world.engine.deaf = True
    waiting = sandbox.destroy()
    waiting.addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
    waiting.cancel()
    world.engine.deaf = False
    world.result(sandbox.destroy(), seconds=5)
    assert sandbox.state is State.GONE


def test_destroying_shuts_the_streams_first_and_tells_their_receivers(world: World) -> None:
    sandbox, receiver = world.ready(), Recorder()
    world.result(sandbox.exec(SLEEP, receiver))
    world.engine.hanging = {"remove", "inspect"}
    Outcome(sandbox.destroy())
    assert [type(end) for end in receiver.ends] == [SandboxGone]
    (container,) = world.engine.containers.values()
    assert container.keeper is not None
    assert not container.keeper.is_open
    assert not any(stream.is_open for stream in container.streams)


def test_a_receiver_that_hears_of_the_destroying_may_ask_for_it_as_well(world: World) -> None:
    sandbox, receiver, asked = world.ready(), Recorder(), []
    receiver.ended.addCallback(lambda _: asked.append(Outcome(sandbox.destroy())))
    world.result(sandbox.exec(SLEEP, receiver))
    world.result(sandbox.destroy())
    assert [outcome.value() for outcome in asked] == [None]
    assert world.states().count("destroying") == 1


def test_destroying_during_the_start_waits_for_the_call_under_way(world: World) -> None:
    gate: defer.Deferred[None] = defer.Deferred()
    world.engine.gates["start"] = gate
    sandbox = world.sandbox()
    starting, destroying = Outcome(sandbox.start()), Outcome(sandbox.destroy())
    world.pump(1)
    assert not destroying.is_there
    gate.callback(None)
    world.pump(2)
    assert starting.is_there
    destroying.value()
    assert sandbox.state is State.GONE
    assert world.engine.containers == {}
    assert world.free == 2


@pytest.mark.parametrize("call", ["create", "inspect", "attach", "start"])
def test_destroying_during_a_start_that_fails_leaves_nothing(world: World, call: str) -> None:
    gate: defer.Deferred[None] = defer.Deferred()
    world.engine.gates[call] = gate
    world.engine.failures[call] = [EngineRefused("memory", call, 500, "no")]
    sandbox = world.sandbox()
    starting, destroying = Outcome(sandbox.start()), Outcome(sandbox.destroy())
    gate.callback(None)
    world.pump(2)
    with pytest.raises(EngineRefused):
        starting.value()
    destroying.value()
    assert sandbox.state is State.GONE
    assert world.engine.containers == {}
    assert world.states().count("destroying") == 1


@pytest.mark.parametrize("call", ["create", "inspect", "attach"])
def test_destroying_early_in_the_start_leaves_nothing(world: World, call: str) -> None:
    gate: defer.Deferred[None] = defer.Deferred()
    world.engine.gates[call] = gate
    sandbox = world.sandbox()
    starting, destroying = Outcome(sandbox.start()), Outcome(sandbox.destroy())
    gate.callback(None)
    world.pump(2)
    assert starting.is_there
    destroying.value()
    assert world.engine.containers == {}


def test_engine_that_does_not_confirm_is_reported_and_asked_again(world: World) -> None:
    sandbox = world.ready()
    world.engine.deaf = True
    outcome = Outcome(sandbox.destroy())
    world.pump(DESTROY_DEADLINE + 2, steps=100)
    with pytest.raises(NotDestroyed, match="docker rm -f"):
        outcome.value()
    assert sandbox.state is State.STUCK
    world.engine.deaf = False
    world.result(sandbox.destroy(), seconds=5)
    assert sandbox.state is State.GONE
    assert world.states() == ["created", "ready", "destroying", "stuck", "destroying", "gone"]
    assert world.free == 2


def test_unreachable_engine_is_asked_until_it_answers(world: World) -> None:
    sandbox = world.ready()
    world.engine.failures["inspect"] = [EngineUnreachable("memory", "down")] * 3
    world.result(sandbox.destroy(), seconds=5)
    assert sandbox.state is State.GONE


def test_destroying_is_bounded_where_every_call_hangs(world: World) -> None:
    sandbox = world.ready()
    world.engine.hanging = {"remove", "inspect", "list"}
    outcome = Outcome(sandbox.destroy())
    world.pump(DESTROY_DEADLINE + 2 * CALL_DEADLINE, steps=100)
    with pytest.raises(NotDestroyed):
        outcome.value()


def test_container_that_nobody_could_create_needs_no_removal(world: World) -> None:
    world.engine.failures["create"] = [EngineUnreachable("memory", "down")]
    sandbox = world.sandbox()
    with pytest.raises(EngineUnreachable):
        world.result(sandbox.start())
    world.pump(1)
    assert sandbox.state is State.GONE
    assert "remove" not in world.engine.calls


# ---- lost --------------------------------------------------------------------------------------


def watched(sandbox: Sandbox) -> list[Exception]:
    reasons: list[Exception] = []
    sandbox.on_lost = reasons.append
    return reasons


def test_keepers_end_is_told_once_and_cleaned_up(world: World) -> None:
    sandbox, receiver = world.ready(), Recorder()
    reasons = watched(sandbox)
    world.result(sandbox.exec(SLEEP, receiver))
    world.engine.end_container(str(sandbox.container))
    world.pump(2)
    assert [type(reason) for reason in reasons] == [SandboxGone]
    assert receiver.ends
    assert sandbox.state is State.GONE
    assert world.states() == ["created", "ready", "lost", "destroying", "gone"]
    assert world.free == 2


def test_connection_to_the_keeper_cut_is_a_loss_with_the_reason(world: World) -> None:
    sandbox = world.ready()
    reasons = watched(sandbox)
    (container,) = world.engine.containers.values()
    assert container.keeper is not None
    container.keeper.end(ConnectionError("reset by peer"))
    world.pump(2)
    assert len(reasons) == 1
    assert "reset by peer" in str(reasons[0])
    assert world.engine.containers == {}


def test_keeper_that_ends_during_the_start_fails_the_start_and_is_not_a_loss(
    world: World,
) -> None:
    gate: defer.Deferred[None] = defer.Deferred()
    world.engine.gates["start"] = gate
    sandbox = world.sandbox()
    reasons = watched(sandbox)
    outcome = Outcome(sandbox.start())
    (container,) = world.engine.containers.values()
    assert container.keeper is not None
    container.keeper.end()
    world.pump(1)
    gate.callback(None)
    world.pump(2)
    with pytest.raises(SandboxGone):
        outcome.value()
    assert reasons == []
    assert sandbox.state is State.GONE
    assert world.engine.containers == {}


def test_destruction_that_was_asked_for_is_no_loss(world: World) -> None:
    sandbox = world.ready()
    reasons = watched(sandbox)
    world.result(sandbox.destroy(), seconds=1)
    sandbox.lose(RuntimeError("too late"))
    assert reasons == []
    assert "lost" not in world.states()


def test_keepers_end_while_it_is_being_destroyed_is_no_loss(world: World) -> None:
    sandbox = world.ready()
    reasons = watched(sandbox)
    world.engine.deaf = True
    outcome = Outcome(sandbox.destroy())
    assert sandbox.state is State.DESTROYING
    sandbox.lose(RuntimeError("meanwhile"))
    world.engine.deaf = False
    world.pump(5)
    outcome.value()
    assert reasons == []
    assert world.states() == ["created", "ready", "destroying", "gone"]


def test_losing_twice_is_one_loss(world: World) -> None:
    sandbox = world.ready()
    reasons = watched(sandbox)
    first = RuntimeError("first")
    sandbox.lose(first)
    sandbox.lose(RuntimeError("second"))
    world.pump(1)
    assert reasons == [first]
    assert sandbox.state is State.GONE


def test_loss_whose_listener_destroys_it_is_cleaned_up_once(world: World) -> None:
    sandbox = world.ready()
    outcomes: list[Outcome] = []
    sandbox.on_lost = lambda reason: outcomes.append(Outcome(sandbox.destroy()))
    sandbox.lose(RuntimeError("gone"))
    world.pump(1)
    outcomes[0].value()
    assert world.states().count("destroying") == 1


# ---- deadline ----------------------------------------------------------------------------------


def test_sandbox_is_told_of_its_deadline_and_destroyed_after_it(world: World) -> None:
    sandbox = world.ready(max_runtime=100)
    told: list[State] = []
    sandbox.on_deadline = lambda: told.append(sandbox.state)
    world.pump(99)
    assert told == []
    world.pump(2)
    assert told == [State.READY]
    world.pump(DEADLINE_GRACE + 2)
    assert sandbox.state is State.GONE
    (struck,) = [event for event in world.events if event.name == "limit.struck"]
    assert struck.fields == {"worker": "w", "limit": "max_runtime", "value": 100}


def test_nothing_is_due_any_more_after_the_end(world: World) -> None:
    sandbox = world.ready(max_runtime=100)
    world.result(sandbox.destroy(), seconds=1)
    assert world.clock.getDelayedCalls() == []


# ---- use ---------------------------------------------------------------------------------------


def test_commands_run_as_the_builds_user_with_exactly_the_environment_given(world: World) -> None:
    sandbox = world.ready()
    world.result(sandbox.exec(SLEEP, Recorder(), environ={"A": "b"}, tty=True, stdin=True))
    (request,) = world.engine.executed
    uid = sandbox.identity.uid
    assert (request.argv, request.user) == (SLEEP, f"{uid}:{uid}")
    assert (request.tty, request.stdin) == (True, True)
    assert {line for line in request.environ if "=" in line} == {"A=b"}


def test_command_that_starts_while_the_sandbox_ends_is_cut_off(world: World) -> None:
    sandbox, receiver = world.ready(), Recorder()
    gate: defer.Deferred[None] = defer.Deferred()
    world.engine.gates["exec"] = gate
    outcome = Outcome(sandbox.exec(SLEEP, receiver))
    world.engine.deaf = True
    Outcome(sandbox.destroy())
    gate.callback(None)
    with pytest.raises(SandboxGone):
        outcome.value()
    (container,) = world.engine.containers.values()
    assert not any(stream.is_open for stream in container.streams)
    assert receiver.ends == []
    world.engine.deaf = False
    world.pump(5)


def kills(answer: Callable[[int], Command]) -> Callable[[ExecRequest], Command]:
    """A script that answers each kill in turn."""
    count = iter(range(1000))
    return lambda request: answer(next(count))


@pytest.mark.parametrize("status", [0, 1])
def test_all_processes_of_the_build_are_killed_by_one_command(world: World, status: int) -> None:
    sandbox = world.ready()
    world.engine.script = kills(lambda _: Command(status=status))
    world.result(sandbox.kill_all(), seconds=1)
    (request,) = world.engine.executed
    assert request.argv[-2:] == ("KILL", "-1")
    assert request.user == sandbox.identity.user
    assert sandbox.is_ready


def test_kill_that_cannot_be_started_is_tried_again(world: World) -> None:
    sandbox = world.ready()
    world.engine.script = kills(lambda _: Command())
    world.engine.failures["exec"] = [EngineRefused("memory", "exec", 500, "no pids left")] * 2
    world.result(sandbox.kill_all(), seconds=5)
    assert sandbox.is_ready
    assert len(world.engine.executed) == 1


def test_sandbox_whose_processes_cannot_be_killed_is_lost(world: World) -> None:
    sandbox = world.ready()
    reasons = watched(sandbox)
    world.engine.failures["exec"] = [EngineRefused("memory", "exec", 500, "no pids left")] * 100
    world.result(sandbox.kill_all(), seconds=20)
    world.pump(5)
    assert len(reasons) == 1
    assert sandbox.state is State.GONE


def test_kill_that_never_answers_is_bounded(world: World) -> None:
    sandbox = world.ready()
    world.engine.script = kills(lambda _: Command(status=None))
    world.result(sandbox.kill_all(), seconds=300)
    world.pump(5)
    assert sandbox.state is State.GONE


@pytest.mark.parametrize("status", [1, 126, 127, None])
def test_complaint_of_a_runtime_is_no_answer_of_a_first_look(
    world: World, status: int | None
) -> None:
    container = world.ready().container
    words = b"OCI runtime exec failed: exec failed: no such file"
    world.engine.script = kills(lambda _: Command(stdout=words, status=status))
    outcome = Outcome(ask(world.engine, str(container), "1:1", ("/bin/look",), world.clock))
    world.pump(60)
    with pytest.raises(ExecFailed, match="OCI runtime exec failed" if status else "no end"):
        outcome.value()


def test_exit_code_is_asked_for_until_the_engine_knows_it(world: World) -> None:
    sandbox, receiver = world.ready(), Recorder()
    exec_id, _ = world.result(sandbox.exec(SLEEP, receiver))
    outcome = Outcome(sandbox.exec_status(exec_id))
    world.pump(1)
    assert not outcome.is_there
    world.engine._statuses[exec_id] = 3
    world.pump(1)
    assert outcome.value() == 3


def test_exit_code_that_the_engine_never_knows_is_unknown(world: World) -> None:
    sandbox = world.ready()
    exec_id, _ = world.result(sandbox.exec(SLEEP, Recorder()))
    assert world.result(sandbox.exec_status(exec_id), seconds=10) is None


def test_usage_is_empty_where_there_is_none_to_ask(world: World) -> None:
    sandbox = world.ready()
    assert world.result(sandbox.usage()) == Usage(1024, 0.1)
    world.engine.failures["usage"] = [EngineUnreachable("memory", "down")]
    assert world.result(sandbox.usage()) == Usage()
    world.result(sandbox.destroy(), seconds=1)
    assert world.result(sandbox.usage()) == Usage()


# ---- audit -------------------------------------------------------------------------------------


def test_every_transition_is_audited_with_its_sandbox_worker_and_container(world: World) -> None:
    sandbox = world.ready()
    sandbox.lose(RuntimeError("why"))
    world.pump(1)
    assert world.states() == ["created", "ready", "lost", "destroying", "gone"]
    for event in world.events:
        record = json.loads(event.json_line(0, "m"))
        assert record["sandbox"] == sandbox.id
        assert record["worker"] == "w"
        assert record["engine"] == "memory"
        assert record["container"] == sandbox.container
    assert world.events[0].fields["spec"] == sandbox.spec.digest
    assert "why" in world.events[2].fields["reason"]


def test_no_transition_is_possible_out_of_gone(world: World) -> None:
    sandbox = world.ready()
    world.result(sandbox.destroy(), seconds=1)
    for state in State:
        with pytest.raises(AssertionError):
            sandbox._move(state)


# ---- on the real engine ------------------------------------------------------------------------


def state_of(client: Any, sandbox: Sandbox) -> str:
    """What the engine says, asked by other means than ours."""
    found = client.containers(all=True, filters={"label": f"sandboxworker.sandbox={sandbox.id}"})
    return found[0]["State"] if found else "none"


async def is_gone(client: Any, sandbox: Sandbox, seconds: float) -> bool:
    for _ in range(int(seconds * 10)):
        if state_of(client, sandbox) == "none":
            return True
        await task.deferLater(reactor, 0.1, lambda: None)
    return False


@pytest_twisted.ensureDeferred
async def test_sandbox_runs_on_the_engine_until_destroyed(
    make_sandbox: Any, engine_client: Any, image: str
) -> None:
    events: list[Event] = []
    sandbox = await make_sandbox(image, audit=events.append)
    assert state_of(engine_client, sandbox) == "running"
    await within(40, sandbox.destroy())
    assert state_of(engine_client, sandbox) == "none"
    assert [event.name for event in events] == [
        f"sandbox.{state}" for state in ("created", "ready", "destroying", "gone")
    ]


@pytest_twisted.ensureDeferred
async def test_living_sandboxes_on_the_engine_have_uids_of_their_own(
    make_sandbox: Any, engine: Any
) -> None:
    five = [await make_sandbox() for _ in range(5)]
    uids = {sandbox.identity.uid for sandbox in five}
    assert len(uids) == 5
    assert uids <= set(UID_RANGE)
    for sandbox in five:
        receiver = Recorder()
        await sandbox.exec(("/bin/sh", "-c", "id -u; id -g"), receiver)
        await within(30, receiver.ended)
        assert receiver.stdout.split() == [str(sandbox.identity.uid).encode()] * 2


@pytest_twisted.ensureDeferred
async def test_sandbox_of_another_master_on_the_engine_keeps_its_uid(
    make_sandbox: Any, engine: Any
) -> None:
    one = await make_sandbox()
    engine.uids = UidRange([one.identity.uid, *(uid for uid in UID_RANGE if uid > 20400)])
    engine.uids._free.sort(key=lambda uid: uid != one.identity.uid)
    other = await make_sandbox()
    assert other.identity.uid != one.identity.uid
    assert other.is_ready


@pytest_twisted.ensureDeferred
async def test_sandbox_dies_by_itself_when_nobody_holds_its_keeper(
    make_sandbox: Any, engine_client: Any, image: str
) -> None:
    sandbox = await make_sandbox(image)
    await sandbox.exec(("/bin/sh", "-c", "trap '' HUP TERM INT; sleep 1000"), Recorder())
    sandbox._keeper.abort()
    assert await is_gone(engine_client, sandbox, 10)


@pytest_twisted.ensureDeferred
async def test_build_cannot_hold_its_keepers_stdin_open(
    make_sandbox: Any, engine_client: Any
) -> None:
    sandbox, receiver = await make_sandbox(), Recorder()
    script = "exec 9>/proc/1/fd/0 && echo held; kill -STOP 1 && echo stopped; sleep 1000"
    await sandbox.exec(("/bin/bash", "-c", script), receiver)
    await task.deferLater(reactor, 0.5, lambda: None)
    assert receiver.stdout == b""
    sandbox._keeper.abort()
    assert await is_gone(engine_client, sandbox, 10)


@pytest_twisted.ensureDeferred
async def test_container_removed_by_somebody_else_is_a_loss(
    make_sandbox: Any, engine_client: Any
) -> None:
    sandbox, lost = await make_sandbox(), defer.Deferred()
    sandbox.on_lost = lost.callback
    engine_client.remove_container(sandbox.container, force=True)
    assert isinstance(await within(30, lost), SandboxGone)
    await within(40, sandbox.destroy())
    assert sandbox.state is State.GONE


@pytest_twisted.ensureDeferred
async def test_sandbox_of_an_engine_that_runs_still_has_used_something(make_sandbox: Any) -> None:
    usage = await (await make_sandbox()).usage()
    assert usage.cpu_seconds is not None
    assert usage.cpu_seconds > 0
