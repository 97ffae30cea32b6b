"""Engines that are down, slow, hung, full or break off: what becomes of builds and workers."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import bad_engine
import pytest
import pytest_twisted
from bad_engine import OUT_OF_DISK, OUT_OF_PIDS, BadEngine, behind_a_proxy, half_json, refusal
from buildbot.process.results import Results
from conftest import BUSYBOX
from own_daemon import OwnDaemon, why_not
from reactor_stall import Stall
from real_master import (
    HOLD,
    RealMaster,
    let_go,
    one_builder_each,
    pause,
    running_master,
    shell,
    until,
)
from runtime import SandboxPolicy
from twisted.internet import defer, reactor, threads

from sandboxworker import SandboxLatentWorker, housekeeping, reaper, sandbox
from sandboxworker.engine import docker as docker_engine
from sandboxworker.engine.address import resolve
from sandboxworker.engine.docker import MAX_THREADS

pytestmark = pytest.mark.engine

#: So that a test takes seconds; the long one leaves them as they are.
SHORT = 2.0
#: Far above what is seen (docs/reliability.md), since machines are busy at times.
MAX_STALL = 2.0
LONG = bool(os.environ.get("SANDBOXWORKER_LONG"))
POLICY = SandboxPolicy(BUSYBOX, disk="8m", memory="64m")


def workers(*names: str, engine: str | None = None) -> list[SandboxLatentWorker]:
    return [SandboxLatentWorker(name, policy=POLICY, engine=engine) for name in names]


def set_deadlines(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(docker_engine, "CALL_DEADLINE", SHORT)
    patch.setattr(sandbox, "DESTROY_DEADLINE", 2 * SHORT)
    patch.setattr(sandbox, "STATUS_DEADLINE", SHORT)
    patch.setattr(sandbox, "KILL_DEADLINE", SHORT)
    patch.setattr(reaper, "FIRST_PAUSE", 0.5)
    patch.setattr(housekeeping, "SWEEP_SECONDS", 2.0)
    patch.setattr(SandboxLatentWorker, "quarantine_initial_timeout", 0.2)
    patch.setattr(SandboxLatentWorker, "quarantine_timeout", 0.2)
    patch.setattr(SandboxLatentWorker, "quarantine_max_timeout", 1)


@pytest.fixture(scope="module")
def short_deadlines() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        set_deadlines(patch)
        yield


@pytest_twisted.async_yield_fixture(scope="module")
async def bad(engine_client: Any, short_deadlines: None) -> AsyncIterator[BadEngine]:
    """The engine behind a proxy."""
    async with behind_a_proxy(resolve(None).socket_path) as proxy:
        yield proxy


@pytest_twisted.async_yield_fixture(scope="module")
async def master(
    bad: BadEngine, left_over: Any, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RealMaster]:
    """``w`` has the bad engine, ``other`` a good one."""
    config = one_builder_each([*workers("w", engine=bad.url), *workers("other")])
    async with running_master(tmp_path_factory.mktemp("bad"), config, left_over) as running:
        # What is done once for an engine is not what these tests are about.
        assert (await running.run("w", [shell("true", "first")])).result == "success"
        yield running


@pytest_twisted.async_yield_fixture(autouse=True)
async def no_harm_done(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Whatever an engine does, the reactor goes on, threads are few, and nothing stays."""
    stall = Stall().start()
    yield
    longest = stall.stop()
    assert longest < MAX_STALL
    if "master" in request.fixturenames:
        request.getfixturevalue("bad").heal()
        running = request.getfixturevalue("master")
        client = request.getfixturevalue("engine_client")
        await until(lambda: not running.containers(client), "end of all containers")
    print(f"longest stall of the reactor: {longest:.3f} s")


def engine_threads(url: str) -> int:
    return sum(f"sandboxworker {url}-" in thread.name for thread in threading.enumerate())


async def ended(master: RealMaster, request: int, seconds: float = 90.0) -> list[str]:
    """The results of all tries of a request, once it is complete."""

    async def is_complete() -> bool:
        found = await master.master.data.get(("buildrequests", request))
        return bool(found["complete"])

    await until(is_complete, f"end of request {request}", seconds)
    return [Results[build["results"]] for build in await master.builds(request)]


async def logs(master: RealMaster, request: int) -> str:
    """Of the first try."""
    return (await master._result((await master.builds(request))[0])).log


async def assert_other_builds(master: RealMaster) -> None:
    request = await master.begin("other", [shell("true", "s")])
    assert await ended(master, request) == ["success"]


# ---- before a build has its sandbox --------------------------------------------------------------

#: What happens once while a sandbox is made, and what the first try's log says of it.
AT_START: dict[str, tuple[str, dict[str, Any], str]] = {
    "create never arrives": (bad_engine.CREATE, {"is_lost": True}, "did not answer 'create"),
    "create is done and never answered": (
        bad_engine.CREATE,
        {"after": 0, "then": "hang"},
        "did not answer 'create",
    ),
    "the answer to create is lost": (bad_engine.CREATE, {"after": 0}, "does not answer"),
    "half an answer to create": (bad_engine.CREATE, {"after": 60, "then": "hang"}, "did not"),
    "create is answered with half of a JSON": (
        bad_engine.CREATE,
        {"answer": half_json(status=201)},
        "not understood",
    ),
    "create: out of disk": (bad_engine.CREATE, {"answer": OUT_OF_DISK}, "no space left"),
    "inspect is cut in its head": (bad_engine.INSPECT, {"after": 9}, "does not answer"),
    "inspect is cut in its body": (bad_engine.INSPECT, {"after": 700}, "container engine"),
    "inspect is answered with half of a JSON": (
        bad_engine.INSPECT,
        {"answer": half_json()},
        "not understood",
    ),
    "attach never answers": (bad_engine.ATTACH, {"is_lost": True}, "did not answer 'attach'"),
    "attach is cut in its head": (bad_engine.ATTACH, {"after": 9}, "does not answer"),
    "start never answers": (bad_engine.START, {"is_lost": True}, "did not answer 'start"),
    "start is done and never answered": (
        bad_engine.START,
        {"after": 0, "then": "hang"},
        "did not answer 'start",
    ),
    "start: out of pids": (bad_engine.START, {"answer": OUT_OF_PIDS}, "temporarily unavailable"),
}


@pytest.mark.parametrize("fault", AT_START)
@pytest_twisted.ensureDeferred
async def test_a_fault_while_a_sandbox_is_made_is_named_and_the_build_tried_again(
    master: RealMaster, bad: BadEngine, fault: str
) -> None:
    call, what, said = AT_START[fault]
    bad.strike(call, times=1, **what)
    request = await master.begin("w", [shell("echo fine", "s")])
    await assert_other_builds(master)
    assert await ended(master, request) == ["retry", "success"]
    assert said in await logs(master, request)
    assert "Traceback" not in await logs(master, request)
    assert engine_threads(bad.url) <= MAX_THREADS


@pytest_twisted.ensureDeferred
async def test_a_slow_engine_makes_builds_slow_and_nothing_else(
    master: RealMaster, bad: BadEngine
) -> None:
    bad.strike(bad_engine.ANY, delay=SHORT / 8)
    request = await master.begin("w", [shell("echo one", "one"), shell("echo two", "two")])
    await assert_other_builds(master)
    assert await ended(master, request) == ["success"]


@pytest_twisted.ensureDeferred
async def test_builds_of_an_engine_that_is_down_wait_until_it_is_up(
    master: RealMaster, bad: BadEngine
) -> None:
    """One that begins before it is known that the engine is down is tried again."""
    await bad.down()
    request = await master.begin("w", [shell("echo fine", "s")])
    try:
        await assert_other_builds(master)
        assert set(await _results(master, request)) <= {"retry"}
    finally:
        bad.up()
    results = await ended(master, request)
    assert results[-1] == "success"
    assert set(results[:-1]) <= {"retry"}


async def _results(master: RealMaster, request: int) -> list[str]:
    """Of the tries that have ended."""
    builds = await master.builds(request)
    return [Results[build["results"]] for build in builds if build["complete"]]


@pytest_twisted.ensureDeferred
async def test_a_sandbox_that_is_lost_between_buildbots_ping_and_its_first_step_is_tried_again(
    master: RealMaster, engine_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buildbot does not listen for it just then, and would leave the build without an end."""
    updates = master.master.data.updates
    tell, removed = updates.setStepStateString, []

    async def tell_and_remove(stepid: int, text: str) -> None:
        if text == "worker w ready" and not removed:
            (container,) = master.containers(engine_client)
            removed.append(container["Id"])
            await threads.deferToThread(engine_client.remove_container, container, force=True)
            worker = master.master.workers.workers["w"]
            await until(lambda: worker._sandbox.lost, "its loss")
            # Until the worker has lost its connection, had it been let.
            give_up = reactor.seconds() + 5
            while worker.conn is not None and reactor.seconds() < give_up:
                await pause()
        await tell(stepid, text)

    monkeypatch.setattr(
        updates, "setStepStateString", lambda *told: defer.ensureDeferred(tell_and_remove(*told))
    )
    request = await master.begin("w", [shell("echo fine", "s")])
    assert await ended(master, request) == ["retry", "success"]
    assert removed


# ---- while a build runs --------------------------------------------------------------------------

HELD = f"echo begun; {HOLD}; echo done"


@pytest.mark.parametrize(
    "call",
    [bad_engine.EXEC_START, bad_engine.ATTACH, bad_engine.ANY],
    ids=["the command's", "the keeper's", "every"],
)
@pytest_twisted.ensureDeferred
async def test_a_build_whose_stream_is_cut_is_tried_again(
    master: RealMaster, bad: BadEngine, engine_client: Any, call: str
) -> None:
    request = await master.begin("w", [shell(HELD, "s")])
    first = await master.process_runs(engine_client, "tmp/go")
    assert bad.cut(call)
    await assert_other_builds(master)
    await until(lambda: _is_gone(master, engine_client, first), "end of the first sandbox")
    let_go(engine_client, await master.process_runs(engine_client, "tmp/go"))
    assert await ended(master, request) == ["retry", "success"]


def _is_gone(master: RealMaster, engine_client: Any, container: str) -> bool:
    return container not in {each["Id"] for each in master.containers(engine_client)}


@pytest_twisted.ensureDeferred
async def test_a_stream_that_is_cut_inside_a_frame_is_no_end_of_a_command(
    master: RealMaster, bad: BadEngine
) -> None:
    cut = bad.strike(bad_engine.EXEC_START, after=100_003, times=1)
    request = await master.begin("w", [shell("head -c 300000 /dev/zero; exit 0", "s")])
    assert (await ended(master, request))[-1] == "success"
    assert cut.struck == 1


@pytest_twisted.ensureDeferred
async def test_a_stream_that_is_cut_just_before_the_end_is_told_is_no_success(
    master: RealMaster, bad: BadEngine
) -> None:
    """The command ends with 0, and so says the engine, but the end of its output is missing."""
    request = await master.begin("w", [shell("echo begun; sleep 1; echo done", "s")])
    await until(lambda: bad.cut(bad_engine.EXEC_START), "a stream")
    results = await ended(master, request)
    build = await master._result((await master.builds(request))[-1])
    assert results[-1] == "failure" or build["s"].out == "begun\ndone"


@pytest.mark.parametrize(
    "call", [bad_engine.EXEC_CREATE, bad_engine.EXEC_START], ids=["create", "start"]
)
@pytest_twisted.ensureDeferred
async def test_a_command_that_the_engine_never_starts_is_given_up_and_the_build_tried_again(
    master: RealMaster, bad: BadEngine, call: str
) -> None:
    bad.strike(call, is_lost=True)
    bad.strike(bad_engine.LIST, is_lost=True)  # Else it would be the build that hinders it.
    request = await master.begin("w", [shell("echo fine", "s")])
    await assert_other_builds(master)

    async def was_tried() -> bool:
        return [build["complete"] for build in await master.builds(request)][:1] == [True]

    await until(was_tried, "the first try")
    bad.heal()
    results = await ended(master, request)
    assert (results[0], results[-1]) == ("retry", "success")


@pytest_twisted.ensureDeferred
async def test_an_engine_that_refuses_to_say_why_a_command_failed_is_no_limit_that_it_met(
    master: RealMaster, bad: BadEngine, engine_client: Any
) -> None:
    """A sandbox that is full of processes refuses as well."""
    request = await master.begin("w", [shell(f"{HOLD}; exit 3", "s")])
    container = await master.process_runs(engine_client, "tmp/go")
    refused = bad.strike(bad_engine.EXEC, answer=refusal(500, "OCI runtime exec failed"))
    let_go(engine_client, container)
    build = await master.finished(request)
    assert refused.struck
    assert build.result == "failure"
    assert (build.properties["sandbox_outcome"], build.properties["sandbox_cause"]) == (
        "failed",
        "exit",
    )
    assert "limit reached" not in build.log


@pytest.mark.parametrize("how", ["remove", "kill"])
@pytest_twisted.ensureDeferred
async def test_a_build_whose_sandbox_is_taken_from_outside_is_tried_again(
    master: RealMaster, bad: BadEngine, engine_client: Any, how: str
) -> None:
    """Whether the command's end or the keeper's is heard of first."""
    request = await master.begin("w", [shell(HELD, "s")])
    first = await master.process_runs(engine_client, "tmp/go")
    if how == "remove":
        await threads.deferToThread(engine_client.remove_container, first, force=True)
    else:
        await threads.deferToThread(engine_client.kill, first)
    await until(lambda: _is_gone(master, engine_client, first), "end of the first sandbox")
    let_go(engine_client, await master.process_runs(engine_client, "tmp/go"))
    assert await ended(master, request) == ["retry", "success"]


# ---- when a sandbox has to go --------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"is_lost": True, "times": 1},
        {"after": 0, "then": "hang", "times": 1},
        {"after": 0, "times": 1},
        {"answer": refusal(500, "device or resource busy"), "times": 3},
        {"answer": half_json(), "times": 1},
    ],
    ids=["never arrives", "is done and never answered", "is cut", "is refused", "half of a JSON"],
)
@pytest_twisted.ensureDeferred
async def test_a_removal_that_goes_wrong_is_tried_again_and_harms_no_build(
    master: RealMaster, bad: BadEngine, engine_client: Any, fault: dict[str, Any]
) -> None:
    struck = bad.strike(bad_engine.REMOVE, **fault)
    for _ in range(2):
        request = await master.begin("w", [shell("echo fine", "s")])
        assert await ended(master, request) == ["success"]
    await until(lambda: not master.containers(engine_client), "end of all containers")
    assert struck.struck


@pytest_twisted.ensureDeferred
async def test_destruction_goes_on_being_tried_after_its_build_could_not_wait(
    master: RealMaster, bad: BadEngine, engine_client: Any
) -> None:
    """The worker builds on meanwhile."""
    bad.strike(bad_engine.REMOVE, answer=refusal(500, "device or resource busy"))
    for _ in range(2):
        request = await master.begin("w", [shell("echo fine", "s")])
        assert await ended(master, request) == ["success"]
    await until(
        lambda: any(entry["event"] == "sandbox.stuck" for entry in master.audit), "a stuck one"
    )
    await until(
        lambda: any(entry["event"] == "reap.failed" for entry in master.audit), "another attempt"
    )
    bad.heal()
    await until(
        lambda: any(entry["event"] == "reap.removed" for entry in master.audit), "the last one"
    )


# ---- an engine that hangs as a whole -------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_while_an_engine_hangs_threads_are_few_and_afterwards_all_workers_are_back(
    bad: BadEngine, engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    names = [f"w{number}" for number in range(12)]
    config = one_builder_each(workers(*names, engine=bad.url))
    async with running_master(tmp_path, config, left_over) as master:
        bad.strike(bad_engine.ANY, is_lost=True)
        requests = [await master.begin(name, [shell("echo fine", "s")]) for name in names]
        for _ in range(20):
            await pause(SHORT / 20)
            assert engine_threads(bad.url) <= MAX_THREADS
        bad.heal()
        for request in requests:
            results = await ended(master, request)
            assert results[-1] == "success"
            assert set(results[:-1]) <= {"retry"}
        await until(lambda: not master.containers(engine_client), "end of all containers")


@pytest_twisted.ensureDeferred
async def test_a_master_stops_in_bounded_time_while_its_engine_hangs(
    bad: BadEngine, engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    """What it cannot remove ends by itself, since its keepers lose their stdin."""
    config = one_builder_each(workers("w", engine=bad.url))
    async with running_master(tmp_path, config, left_over) as master:
        await master.begin("w", [shell("sleep 300", "s")])
        await master.process_runs(engine_client, "sleep 300")
        bad.strike(bad_engine.ANY, is_lost=True)
        await master.stop()
        bad.heal()
        await until(lambda: not master.containers(engine_client), "end of all containers", 20)


# ---- the daemon itself ---------------------------------------------------------------------------


@pytest_twisted.async_yield_fixture
async def daemon(engine_client: Any) -> AsyncIterator[OwnDaemon]:
    """One of the test's own."""
    problem = why_not()
    if problem is not None:
        pytest.skip(problem)
    own = OwnDaemon()
    try:
        await threads.deferToThread(own.start, engine_client, BUSYBOX)
        yield own
    finally:
        await threads.deferToThread(own.end)


@pytest.mark.parametrize("how", ["crash", "stop"])
@pytest_twisted.ensureDeferred
async def test_builds_of_a_daemon_that_is_restarted_are_tried_again(
    daemon: OwnDaemon, short_deadlines: None, left_over: Any, tmp_path: Path, how: str
) -> None:
    names = ["one", "two", "three"]
    config = one_builder_each([*workers(*names, engine=daemon.url), *workers("other")])
    async with running_master(tmp_path, config, left_over) as master:
        requests = [await master.begin(name, [shell("sleep 3", "s")]) for name in names]
        for request in requests:
            await master.step_started(request, "s")
        await threads.deferToThread(getattr(daemon, how))
        await assert_other_builds(master)
        await threads.deferToThread(daemon.relaunch)
        for request in requests:
            results = await ended(master, request)
            assert results[-1] == "success"
            assert results[0] == "retry"
        assert master.errors == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "seconds",
    [
        8,
        pytest.param(
            60, marks=pytest.mark.skipif(not LONG, reason="two minutes: SANDBOXWORKER_LONG=1")
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_8_builds_on_a_daemon_that_is_stopped_with_sigstop_end_well_and_all_workers_return(
    daemon: OwnDaemon, left_over: Any, tmp_path: Path, seconds: int, monkeypatch: Any
) -> None:
    if seconds < 60:
        set_deadlines(monkeypatch)
    names = [f"w{number}" for number in range(8)]
    config = one_builder_each([*workers(*names, engine=daemon.url), *workers("other")])
    steps = [shell("sleep 1", f"s{number}") for number in range(3)]
    # Half of them want something of the engine while it is stopped, half only afterwards.
    patient = [shell(f"sleep {seconds + 4}", "s0")]
    async with running_master(tmp_path, config, left_over) as master:
        requests = [
            await master.begin(name, steps if number % 2 else patient)
            for number, name in enumerate(names)
        ]
        for request in requests:
            await master.step_started(request, "s0")
        await pause(0.5)
        stall = Stall().start()
        daemon.freeze()
        await assert_other_builds(master)
        for _ in range(seconds):
            await pause(1)
            assert engine_threads(daemon.url) <= MAX_THREADS
        daemon.thaw()
        for number, request in enumerate(requests):
            results = await ended(master, request, 240)
            assert results == ["success"] if number % 2 == 0 else results[-1] == "success"
            assert len(results) <= 3
        again = [await master.begin(name, [shell("true", "s")]) for name in names]
        for request in again:
            assert await ended(master, request, 240) == ["success"]
        print(f"engine stopped for {seconds} s: longest stall {stall.stop():.3f} s")
        assert master.errors == []
