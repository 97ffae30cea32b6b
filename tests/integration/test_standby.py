"""Sandboxes kept ready by a real master on a real engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest_twisted
from real_master import RealMaster, configuration, one_builder_each, running_master, shell, until
from runtime import SandboxPolicy

from sandboxworker import SandboxLatentWorker, sandbox_pool
from sandboxworker.engine.address import resolve
from sandboxworker.housekeeping import housekeeping

IMAGE = "sandboxworker/busybox:latest"
POLICY = SandboxPolicy(IMAGE)


def _worker(name: str = "w", **options: Any) -> SandboxLatentWorker:
    return SandboxLatentWorker(name, policy=options.pop("policy", POLICY), **options)


async def _are_ready(master: RealMaster, engine_client: Any, count: int) -> None:
    """Wait until exactly this many wait for a build."""
    house = await housekeeping(master.master)
    address = resolve(None)
    await until(
        lambda: house.ready_on(address) == count == len(master.containers(engine_client)),
        f"{count} ready",
    )


@pytest_twisted.ensureDeferred
async def test_each_build_gets_one_that_no_build_had(
    tmp_path: Path, engine_client: Any, left_over: Any
) -> None:
    traces = [shell("ls -A /build /tmp; touch /tmp/trace /build/trace", "look")]
    config = configuration([_worker(standby=1)], traces)
    async with running_master(tmp_path, config, left_over) as master:
        ids = set()
        for _ in range(3):
            await _are_ready(master, engine_client, 1)
            result = await master.build()
            assert result.result == "success"
            assert "trace" not in result["look"].out
            ids.add(result.properties["sandbox_id"])
        assert len(ids) == 3
        claims = [entry for entry in master.audit if entry["event"] == "sandbox.claimed"]
        assert {entry["sandbox"] for entry in claims} == ids
        assert {entry["worker"] for entry in claims} == {"w"}
        ready = [entry for entry in master.audit if entry["event"] == "sandbox.ready"]
        assert all(set(entry["phases"]) >= {"create", "start"} for entry in ready)


@pytest_twisted.ensureDeferred
async def test_workers_of_one_policy_share_them_and_the_others_start_their_own(
    tmp_path: Path, engine_client: Any, left_over: Any
) -> None:
    pool = sandbox_pool("p", 3, POLICY, standby=2)
    config = configuration(list(pool.workers), [shell("true", "t")])
    async with running_master(tmp_path, config, left_over) as master:
        await _are_ready(master, engine_client, 2)
        requests = [await master.submit() for _ in range(3)]
        for request in requests:
            assert (await master.finished(request)).result == "success"
        events = [entry["event"] for entry in master.audit]
        assert events.count("sandbox.claimed") >= 2
        await _are_ready(master, engine_client, 2)


@pytest_twisted.ensureDeferred
async def test_a_reconfigure_replaces_them_and_a_build_gets_the_policy_it_asks_for(
    tmp_path: Path, engine_client: Any, left_over: Any
) -> None:
    config = one_builder_each([_worker("a", standby=1)])
    async with running_master(tmp_path, config, left_over) as master:
        await _are_ready(master, engine_client, 1)
        other = SandboxPolicy(IMAGE, env={"WHICH": "second"})
        await master.reconfigure(one_builder_each([_worker("a", standby=1, policy=other)]))
        # At once: what waits is the former policy's, and no build may get it.
        result = await master.run("a", [shell("echo $WHICH", "which")])
        assert result["which"].out.strip() == "second"
        await _are_ready(master, engine_client, 1)
        await master.reconfigure(one_builder_each([_worker("a", policy=other)]))
        await _are_ready(master, engine_client, 0)


@pytest_twisted.ensureDeferred
async def test_a_stopped_master_leaves_none(
    tmp_path: Path, engine_client: Any, left_over: Any
) -> None:
    async with running_master(tmp_path, configuration([_worker(standby=2)]), left_over) as master:
        await _are_ready(master, engine_client, 2)
    assert master.containers(engine_client) == []


@pytest_twisted.ensureDeferred
async def test_the_reaper_spares_those_that_wait(
    tmp_path: Path, engine_client: Any, left_over: Any
) -> None:
    config = configuration([_worker(standby=1)], [shell("true", "t")])
    async with running_master(tmp_path, config, left_over) as master:
        await _are_ready(master, engine_client, 1)
        (container,) = master.containers(engine_client)
        await master.reconfigure(config)  # Sets off a sweep a second later.
        sweeps = len(master.audit)
        house = await housekeeping(master.master)
        house._sweep()
        await until(lambda: not house._sweeps, "the sweep's end")
        assert [each["Id"] for each in master.containers(engine_client)] == [container["Id"]]
        assert not [entry for entry in master.audit[sweeps:] if "reap" in entry["event"]]
