"""Sandboxes that start before Buildbot asks for them, on a real engine and a real master."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import bad_engine
import pytest
import pytest_twisted
from bad_engine import BadEngine, behind_a_proxy, refusal
from buildbot.plugins import steps, util
from buildbot.process.results import Results
from conftest import BUSYBOX
from real_master import RealMaster, configuration, one_builder_each, running_master, shell, until
from twisted.internet import defer

from sandboxworker import SandboxLatentWorker, SandboxPolicy, early
from sandboxworker.engine.address import resolve
from sandboxworker.engine.docker import ENGINES

pytestmark = pytest.mark.engine

POLICY = SandboxPolicy(BUSYBOX, disk="8m", memory="64m")
#: What Buildbot writes of a build between `buildStarted` and `start_instance`: before its steps
#: are made, and last of all.
EARLY, LAST = "starting", "preparing worker"


def worker(name: str = "w", **more: Any) -> SandboxLatentWorker:
    return SandboxLatentWorker(name, **{"policy": POLICY, **more})


@pytest_twisted.async_yield_fixture
async def bad() -> AsyncIterator[BadEngine]:
    """The engine behind a proxy."""
    async with behind_a_proxy(resolve(None).socket_path) as proxy:
        yield proxy


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``hold(master, state, meanwhile)``: the first build's writing of that state waits for it."""

    def install(master: RealMaster, state: str, meanwhile: Callable[[], Any]) -> None:
        updates, held = master.master.data.updates, []
        tell = updates.setBuildStateString

        async def told(buildid: int, text: str) -> None:
            if text == state and not held:
                held.append(buildid)
                await meanwhile()
            await tell(buildid, text)

        monkeypatch.setattr(
            updates, "setBuildStateString", lambda *words: defer.ensureDeferred(told(*words))
        )

    return install


def events(master: RealMaster, name: str) -> list[dict[str, Any]]:
    return [entry for entry in master.audit if entry["event"] == f"sandbox.{name}"]


async def heard(master: RealMaster, name: str, count: int = 1) -> None:
    await until(lambda: len(events(master, name)) >= count, f"{count} sandbox.{name}")


def held_by(count: int) -> bool:
    """Whether the engine is held so many times: once by each worker and each sandbox."""
    return [users for _, users in ENGINES._engines.values()] == [count]


# ---- begun, and taken ----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_it_is_ready_before_its_build_asks_and_is_the_only_one(
    engine_client: Any, left_over: Any, tmp_path: Path, hold: Any
) -> None:
    config = configuration([worker()], [shell("echo fine", "s")])
    async with running_master(tmp_path, config, left_over) as master:

        async def meanwhile() -> None:
            await heard(master, "ready")
            assert len(master.containers(engine_client)) == 1

        hold(master, LAST, meanwhile)
        build = await master.build()
        assert (build.result, build["s"].out) == ("success", "fine")
        await heard(master, "gone")
        (created,) = events(master, "created")
        assert created["sandbox"] == build.properties["sandbox_id"]
        assert {(each["builder"], each["build"], each["buildid"], each["worker"])
                for each in master.audit} == {("b", 1, build.id, "w")}  # fmt: skip
        await until(lambda: held_by(1), "that the build's hold of the engine is over")
        assert master.errors == []


@pytest_twisted.ensureDeferred
async def test_its_time_is_its_builds_from_when_that_asks(
    engine_client: Any, left_over: Any, tmp_path: Path, hold: Any
) -> None:
    brief = SandboxPolicy(BUSYBOX, disk="8m", memory="64m", max_runtime="3s")
    config = configuration([worker(policy=brief)], [shell("sleep 300", "s")])
    async with running_master(tmp_path, config, left_over) as master:
        hold(master, LAST, lambda: heard(master, "ready"))
        build = await master.build()
        assert build.result == "failure"
        assert build.properties["sandbox_cause"] == "deadline"


@pytest_twisted.ensureDeferred
async def test_a_start_that_was_refused_is_told_where_and_as_any_other(
    bad: BadEngine, engine_client: Any, left_over: Any, tmp_path: Path, hold: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(SandboxLatentWorker, "quarantine_initial_timeout", 0.2)
    monkeypatch.setattr(SandboxLatentWorker, "quarantine_timeout", 0.2)
    config = configuration([worker(engine=bad.url)], [shell("echo fine", "s")])
    async with running_master(tmp_path, config, left_over) as master:
        bad.strike(bad_engine.START, answer=refusal(500, "no such luck"), times=1)
        hold(master, LAST, lambda: heard(master, "gone"))
        request = await master.submit()
        await until(lambda: _results(master, request, ["retry", "success"]), "both tries")
        first = await master._result((await master.builds(request))[0])
        assert first.properties["sandbox_outcome"] == "engine-error"
        assert (
            "refused 'start container' (500): no such luck" in first.steps[0].logs["sandboxworker"]
        )
        assert "Traceback" not in first.log
        assert master.errors == []


@pytest_twisted.ensureDeferred
async def test_one_that_does_not_get_to_its_build_ends_as_that_does(
    bad: BadEngine, left_over: Any, tmp_path: Path, hold: Any, monkeypatch: Any
) -> None:
    """Each sandbox that was ready has one outcome, also where its build failed to ask."""
    # As after a reconfigure: the image is asked anew.
    monkeypatch.setattr(early.EarlyStart, "spec", lambda *_: None)
    monkeypatch.setattr(SandboxLatentWorker, "quarantine_initial_timeout", 0.2)
    monkeypatch.setattr(SandboxLatentWorker, "quarantine_timeout", 0.2)
    config = one_builder_each([worker(engine=bad.url)])
    async with running_master(tmp_path, config, left_over) as master:

        async def meanwhile() -> None:
            await heard(master, "ready")
            bad.strike("GET /images/", answer=refusal(500, "a fault of the engine's"), times=1)

        hold(master, LAST, meanwhile)
        request = await master.begin("w", [shell("true", "s")])
        wanted = ["retry", "success"]
        await until(lambda: _results(master, request, wanted), "a retry that succeeds", 60)
        await heard(master, "gone", 2)
        outcomes = [each.get("outcome") for each in events(master, "gone")]
        assert sorted(outcomes) == ["completed", "engine-error"]
        assert not [each for each in master.audit if each["event"] == "build.concluded"]


async def _results(master: RealMaster, request: int, wanted: list[str]) -> bool:
    builds = await master.builds(request)
    return [Results[each["results"]] for each in builds if each["complete"]] == wanted


@pytest_twisted.ensureDeferred
async def test_what_is_kept_ready_is_taken_and_none_started(
    engine_client: Any, left_over: Any, tmp_path: Path, hold: Any
) -> None:
    config = configuration([worker(standby=1)], [shell("echo fine", "s")])
    async with running_master(tmp_path, config, left_over) as master:
        await heard(master, "ready")

        async def meanwhile() -> None:
            running = master.master.workers.workers["w"]
            await until(lambda: running._early._making.called, "what would be started")
            assert running._early.sandbox is None

        hold(master, LAST, meanwhile)
        build = await master.build()
        (claimed,) = events(master, "claimed")
        assert claimed["sandbox"] == build.properties["sandbox_id"]


# ---- begun, and not taken ------------------------------------------------------------------------


class Unmakeable(steps.ShellCommand):
    """A step that its builds cannot be made with."""

    is_spared = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if not Unmakeable.is_spared:
            raise ValueError("not today")


@pytest_twisted.ensureDeferred
async def test_of_a_build_that_never_asks_it_is_destroyed(
    engine_client: Any, left_over: Any, tmp_path: Path, hold: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Unmakeable, "is_spared", True)
    factory = util.BuildFactory([Unmakeable(command=["echo", "fine"])])
    monkeypatch.setattr(Unmakeable, "is_spared", False)
    async with running_master(tmp_path, configuration([worker()], factory), left_over) as master:
        hold(master, EARLY, lambda: heard(master, "created"))
        build = await master.build()
        assert build.result == "exception"
        await heard(master, "gone")
        assert not master.containers(engine_client)
        await until(lambda: held_by(1), "that the engine is not held for it any more")
        monkeypatch.setattr(Unmakeable, "is_spared", True)
        assert (await master.build()).result == "success"
        assert len(events(master, "created")) == 2


@pytest_twisted.ensureDeferred
async def test_a_build_that_is_skipped_starts_none(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    config = configuration([worker()], [shell("echo fine", "s")])
    config["builders"][0].do_build_if = lambda _: False
    async with running_master(tmp_path, config, left_over) as master:
        assert (await master.build()).result == "skipped"
        await until(lambda: held_by(1), "that the engine is not held for it any more")
        assert master.audit == []


@pytest_twisted.ensureDeferred
async def test_one_that_nobody_asks_for_in_time_is_destroyed_and_the_build_gets_another(
    engine_client: Any, left_over: Any, tmp_path: Path, hold: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(early, "LONGEST_EARLY", 0.5)
    config = configuration([worker()], [shell("echo fine", "s")])
    async with running_master(tmp_path, config, left_over) as master:
        hold(master, LAST, lambda: heard(master, "gone"))
        build = await master.build()
        assert build.result == "success"
        assert [each["sandbox"] for each in events(master, "created")][1:] == [
            build.properties["sandbox_id"]
        ]


@pytest_twisted.ensureDeferred
async def test_after_a_reconfigure_the_build_gets_what_holds_now(
    engine_client: Any, left_over: Any, tmp_path: Path, hold: Any
) -> None:
    def config(what: str) -> dict[str, Any]:
        policy = SandboxPolicy(BUSYBOX, disk="8m", memory="64m", env={"WHAT": what})
        return one_builder_each([worker(policy=policy)])

    async with running_master(tmp_path, config("loose"), left_over) as master:

        async def meanwhile() -> None:
            await heard(master, "created")
            await master.reconfigure(config("strict"))

        request = await master.begin("w", [shell("echo $WHAT", "s")])
        hold(master, LAST, meanwhile)
        build = await master.finished(request)
        assert build["s"].out == "strict"
        await heard(master, "gone", 2)
        assert not master.containers(engine_client)
        await until(lambda: held_by(1), "that the engine is held by the worker alone")


@pytest.mark.parametrize("state", [EARLY, LAST])
@pytest_twisted.ensureDeferred
async def test_a_shutdown_meanwhile_leaves_none(
    engine_client: Any, left_over: Any, tmp_path: Path, hold: Any, state: str
) -> None:
    config = configuration([worker()], [shell("sleep 300", "s")])
    async with running_master(tmp_path, config, left_over) as master:
        stopped: list[Any] = []

        async def meanwhile() -> None:
            await heard(master, "created")
            stopped.append(defer.ensureDeferred(master.stop()))

        hold(master, state, meanwhile)
        await master.submit()
        await until(lambda: stopped, "the shutdown")
        await stopped[0]
        assert not master.containers(engine_client)
        assert not ENGINES._engines
