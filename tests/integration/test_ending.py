"""What a build's end leaves behind: how it ended and what it used; and what its worker shows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from buildbot.plugins import steps, util
from conftest import BUSYBOX, DEBIAN
from real_master import BuildResult, RealMaster, one_builder_each, running_master, shell, until
from runtime import SandboxPolicy
from twisted.internet import defer

from sandboxworker import SandboxLatentWorker

pytestmark = pytest.mark.engine

MIB = 1024 * 1024

POLICIES = {
    "debian": SandboxPolicy(DEBIAN, memory="256m", disk="64m", cpus=0.5, env={"TOKEN": "s3cret"}),
    "busybox": SandboxPolicy(BUSYBOX, disk="16m", secrets=["a", "b"]),
    "brief": SandboxPolicy(BUSYBOX, disk="16m", max_runtime="3s"),
    "absent": SandboxPolicy("sandboxworker/no-such-image:1", disk="16m"),
}


@pytest_twisted.async_yield_fixture(scope="module")
async def master(
    engine_client: Any, left_over: Any, tmp_path_factory: Any
) -> AsyncIterator[RealMaster]:
    workers = [SandboxLatentWorker(name, policy=policy) for name, policy in POLICIES.items()]
    basedir = tmp_path_factory.mktemp("master")
    async with running_master(basedir, one_builder_each(workers), left_over) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_logged_errors(master: RealMaster) -> Any:
    yield
    errors, master.errors = master.errors, []
    assert not errors, "\n".join(errors)


async def last_words(master: RealMaster, build: BuildResult) -> dict[str, Any]:
    """The audit event with which its sandbox went."""
    sandbox = build.properties["sandbox_id"]

    def found() -> list[dict[str, Any]]:
        return [
            event
            for event in master.audit
            if event["sandbox"] == sandbox and event["event"] == "sandbox.gone"
        ]

    await until(found, "the sandbox's last audit event")
    return found()[-1]


# ---- properties ----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_build_knows_what_it_used(master: RealMaster) -> None:
    busy = "head -c 40000000 /dev/zero >file; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
    build = await master.run("debian", [shell(busy, "busy")])
    assert build.properties["sandbox_outcome"] == "completed"
    assert 40 * MIB * 0.9 < build.properties["sandbox_memory_peak"] < 512 * MIB
    assert 0 < build.properties["sandbox_cpu_seconds"] < 60
    gone = await last_words(master, build)
    assert gone["outcome"] == "completed"
    assert gone["build"] == build.id
    assert gone["memory_peak"] == build.properties["sandbox_memory_peak"]
    assert gone["cpu_seconds"] == build.properties["sandbox_cpu_seconds"]


@pytest_twisted.ensureDeferred
async def test_the_properties_are_there_when_the_build_is_marked_finished(
    master: RealMaster,
) -> None:
    """Reporters look at them on that very event."""
    seen: list[Any] = []

    async def look(_key: Any, message: Any) -> None:
        seen.append(await master.master.data.get(("builds", message["buildid"], "properties")))

    consumer = await master.master.mq.startConsuming(
        lambda key, message: defer.ensureDeferred(look(key, message)), ("builds", None, "finished")
    )
    build = await master.run("debian", [shell("true", "true")])
    await until(lambda: seen, "the event")
    consumer.stopConsuming()
    assert seen[0]["sandbox_outcome"] == ("completed", "SandboxLatentWorker")
    assert seen[0]["sandbox_memory_peak"][0] == build.properties["sandbox_memory_peak"]


@pytest_twisted.ensureDeferred
async def test_a_build_that_fails_says_failed(master: RealMaster) -> None:
    build = await master.run("debian", [shell("exit 1", "fail")])
    assert build.result == "failure"
    assert build.properties["sandbox_outcome"] == "failed"
    assert build.properties["sandbox_cause"] == "exit"
    gone = await last_words(master, build)
    assert (gone["outcome"], gone["cause"]) == ("failed", "exit")


@pytest_twisted.ensureDeferred
async def test_a_build_that_is_stopped_says_stopped(master: RealMaster, engine_client: Any) -> None:
    request = await master.begin("debian", [shell("sleep 301", "hang")])
    await master.process_runs(engine_client, "sleep 301")
    await master.stop_build(request)
    build = await master.finished(request)
    assert build.result == "cancelled"
    assert build.properties["sandbox_outcome"] == "stopped"
    assert build.properties["sandbox_cpu_seconds"] > 0


@pytest_twisted.ensureDeferred
async def test_a_build_past_its_deadline_failed_by_it(master: RealMaster) -> None:
    build = await master.run("brief", [shell("sleep 302", "hang")])
    assert build.result == "failure"
    assert build.properties["sandbox_outcome"] == "failed"
    assert build.properties["sandbox_cause"] == "deadline"
    assert build.properties["sandbox_limits"] == ["max_runtime"]


@pytest_twisted.ensureDeferred
async def test_a_build_whose_sandbox_is_lost_says_lost(
    master: RealMaster, engine_client: Any
) -> None:
    request = await master.begin("debian", [shell("sleep 303", "hang")])
    container = await master.process_runs(engine_client, "sleep 303")
    engine_client.remove_container(container, force=True)

    async def outcome() -> Any:
        first = (await master.builds(request))[0]
        found = await master.master.data.get(("builds", first["buildid"], "properties"))
        return first["complete"] and found["sandbox_outcome"][0] == "lost"

    await until(outcome, "the outcome of the build that lost its sandbox")

    async def is_tried_again() -> bool:
        return len(await master.builds(request)) > 1

    await until(is_tried_again, "the second attempt")
    await master.stop_build(request)
    await master.finished(request)


@pytest_twisted.ensureDeferred
async def test_a_build_that_gets_no_sandbox_says_refused(master: RealMaster) -> None:
    build = await master.run("absent", [shell("true", "true")])
    assert build.result == "exception"
    assert build.properties["sandbox_outcome"] == "refused"
    assert "sandbox_memory_peak" not in build.properties


# ---- the worker ----------------------------------------------------------------------------------


async def worker_info(master: RealMaster, name: str) -> dict[str, Any]:
    """As the REST API gives it, and the web interface shows it."""
    workers = await master.master.data.get(("workers",))
    (found,) = [each["workerinfo"] for each in workers if each["name"] == name]
    return dict(found)


@pytest_twisted.ensureDeferred
async def test_worker_info_tells_the_truth_about_the_sandbox(master: RealMaster) -> None:
    names = ["os", "cpus", "numcpus", "policy"]
    tell = [steps.ShellCommand(command=["echo", util.Interpolate(f"%(worker:{name})s")], name=name)
            for name in names]  # fmt: skip
    build = await master.run("debian", [shell(". /etc/os-release; echo $PRETTY_NAME", "os"), *tell])
    info = await worker_info(master, "debian")
    assert info["image"] == DEBIAN
    assert info["image_id"] == build.properties["sandbox_image_id"]
    assert info["spec_digest"] == build.properties["sandbox_spec"]
    assert info["os"] == build["os"].out == build["os_1"].out
    assert (info["cpus"], info["numcpus"]) == (0.5, 1)
    assert build["policy"].out == info["policy"]
    assert "memory=256m, disk=64m, pids=1024, max_runtime=1h" in info["policy"]
    assert "s3cret" not in str(info)
    # What the web interface cannot show would break its list of workers.
    assert all(isinstance(value, (str, int, float)) for value in info.values())


@pytest_twisted.ensureDeferred
async def test_an_image_that_does_not_name_its_system_is_unknown(master: RealMaster) -> None:
    await master.run("busybox", [shell("true", "true")])
    info = await worker_info(master, "busybox")
    assert info["os"] == "unknown"
    assert "secrets=a b" in info["policy"]
