"""Which policy a build runs under, and who may say so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from buildbot.plugins import schedulers, steps, util
from buildbot.process.factory import BuildFactory
from buildbot.schedulers.triggerable import Triggerable
from real_master import BuildResult, RealMaster, running_master, shell, until
from runtime import SandboxPolicy

from sandboxworker import SandboxLatentWorker, SandboxPolicies

pytestmark = pytest.mark.engine

BUSYBOX = "sandboxworker/busybox:latest"


def sized(nofile: int, **fields: Any) -> Any:
    return SandboxPolicy(BUSYBOX, disk="8m", memory="64m", nofile=nofile, **fields)


SIZES = SandboxPolicies({"small": sized(500), "big": sized(600)}, default="small")
OTHER_SIZES = SandboxPolicies({"small": sized(501), "huge": sized(700)}, default="small")


def config(policies: SandboxPolicies = SIZES) -> dict[str, Any]:
    """One worker for builders that pick nothing, ``small`` and ``big``."""
    measure = [
        shell("ulimit -n", "before"),
        shell(util.Interpolate("echo %(prop:sandbox_policy)s"), "name"),
        # What a step says afterwards changes nothing but the property.
        steps.SetProperty(property="sandbox_policy", value="big"),
        shell("ulimit -n", "after"),
    ]
    picks: dict[str, dict[str, str]] = {
        "plain": {},
        "small": {"sandbox_policy": "small"},
        "big": {"sandbox_policy": "big"},
    }
    if "big" not in policies.policies:
        del picks["big"]
    return {
        "workers": [SandboxLatentWorker("w", policy=policies)],
        "builders": [
            util.BuilderConfig(
                name=name, workernames=["w"], factory=BuildFactory(measure), properties=properties
            )
            for name, properties in picks.items()
        ],
        "schedulers": [
            Triggerable(name="go", builderNames=list(picks)),
            schedulers.AnyBranchScheduler(name="changes", builderNames=["plain"]),
        ],
        "protocols": {},
        "buildbotNetUsageData": None,
        "collapseRequests": False,
        "multiMaster": True,
        "title": "test",
    }


@pytest_twisted.async_yield_fixture(scope="module")
async def master(
    engine_client: Any, left_over: Any, tmp_path_factory: Any
) -> AsyncIterator[RealMaster]:
    async with running_master(tmp_path_factory.mktemp("master"), config(), left_over) as running:
        yield running


def limits(build: BuildResult) -> list[str]:
    assert build.result == "success", build.log
    return [build["before"].out, build["after"].out]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("builder", "name", "nofile"),
    [("plain", "small", "500"), ("small", "small", "500"), ("big", "big", "600")],
)
async def test_a_builder_has_the_policy_that_its_configuration_picks(
    master: RealMaster, builder: str, name: str, nofile: str
) -> None:
    build = await master.build(builder)
    assert limits(build) == [nofile] * 2
    assert build["name"].out == name
    assert "ignored" not in build.log


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "source", ["Builder", "Change", "Force Build Form", "try build", "Trigger", "Scheduler"]
)
async def test_what_a_request_says_of_the_policy_is_ignored_and_told(
    master: RealMaster, source: str
) -> None:
    """Whatever source it claims: a rebuild brings its properties with their old sources."""
    build = await master.finished(await master.submit("plain", source=source, sandbox_policy="big"))
    assert limits(build) == ["500"] * 2
    assert build["name"].out == "small"
    told = build["worker_preparation"].logs["sandboxworker"]
    assert f"'big' from {source!r} is ignored" in told
    assert "this build has 'small'" in told


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("asked", ["../../etc", "", 7, ["big"], {"big": 1}, "x" * 5000])
async def test_nonsense_neither_stops_a_build_nor_the_worker(
    master: RealMaster, asked: Any
) -> None:
    build = await master.build("plain", sandbox_policy=asked)
    assert limits(build) == ["500"] * 2
    assert master.master.workers.workers["w"].quarantine_timer is None


@pytest_twisted.ensureDeferred
async def test_a_builders_own_choice_wins_over_a_requests(master: RealMaster) -> None:
    assert limits(await master.build("big", sandbox_policy="small")) == ["600"] * 2
    assert limits(await master.build("small", sandbox_policy="big")) == ["500"] * 2


@pytest_twisted.ensureDeferred
async def test_what_a_change_says_of_the_policy_is_ignored(master: RealMaster) -> None:
    data = master.master.data
    await data.updates.addChange(
        files=["x"], author="stranger", comments="sandbox_policy: big", branch="sandbox_policy=big",
        revision="1", repository="", properties={"sandbox_policy": "big"},
    )  # fmt: skip
    found: list[Any] = []

    async def is_requested() -> bool:
        requests = await data.get(("buildrequests",))
        for request in requests:
            properties = await data.get(("buildsets", request["buildsetid"], "properties"))
            if properties.get("scheduler", ("",))[0] == "changes":
                found.append(request["buildrequestid"])
        return bool(found)

    await until(is_requested, "the change's build request")
    build = await master.finished(found[-1])
    assert limits(build) == ["500"] * 2
    assert "'big' from 'Change' is ignored" in build.log


@pytest_twisted.ensureDeferred
async def test_a_reconfigure_changes_the_list_for_the_builds_that_follow(
    engine_client: Any, left_over: Any, tmp_path: Any
) -> None:
    async with running_master(tmp_path, config(), left_over) as master:
        assert limits(await master.build("big")) == ["600"] * 2
        await master.reconfigure(config(OTHER_SIZES))
        assert limits(await master.build("plain")) == ["501"] * 2


@pytest_twisted.ensureDeferred
async def test_a_list_that_has_lost_the_builders_choice_fails_its_builds_with_the_reason(
    engine_client: Any, left_over: Any, tmp_path: Any
) -> None:
    """As between the two halves of a reconfigure; a configuration as a whole is refused."""
    async with running_master(tmp_path, config(), left_over) as master:
        master.master.workers.workers["w"].policies = OTHER_SIZES
        build = await master.build("big")
        assert build.result == "exception"
        assert "sandbox_policy='big': one of 'small', 'huge'" in build.log
        assert limits(await master.build("plain")) == ["501"] * 2
