"""What a builder's configuration says about its workers: directories, and who builds what when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from buildbot.plugins import steps, util, worker
from conftest import BUSYBOX, DEBIAN
from real_master import configuration, pause, running_master, shell, until
from runtime import SandboxPolicy, differs

from sandboxworker import SandboxLatentWorker

pytestmark = pytest.mark.engine

DIRECTORIES = ["plain", "nested/deep", "with space", "/tmp/absolute"]

LOOK = [
    steps.StringDownload("text", workerdest="f"),
    shell("pwd; cat f", "look"),
    shell(["echo", util.Property("builddir")], "builddir"),
    steps.FileExists(file="build/f"),
    steps.CopyDirectory(src="build", dest="copy"),
    steps.SetPropertyFromCommand(command="ls ../copy", property="copied"),
    steps.RemoveDirectory(dir="copy"),
    shell("ls ..", "left"),
]


@differs("statx")
@pytest_twisted.ensureDeferred
async def test_worker_build_directories_of_every_kind_do_the_same(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    workers = {
        "local": worker.LocalWorker("local"),
        "sandbox": SandboxLatentWorker("sandbox", policy=SandboxPolicy(DEBIAN, disk="16m")),
    }
    bases = {"local": str(tmp_path / "workers/local"), "sandbox": "/build"}
    config = configuration(list(workers.values()), [], protocols={"null": {}})
    # The master's machine is no place for tests to write anywhere.
    elsewhere = {"local": str(tmp_path), "sandbox": "/tmp"}
    places = {
        (kind, directory): directory.replace("/tmp", elsewhere[kind])
        for kind in workers
        for directory in DIRECTORIES
    }
    config["builders"] = [
        util.BuilderConfig(
            name=f"{kind} {directory}",
            builddir=f"{kind}{index}",
            workerbuilddir=place,
            workernames=[kind],
            factory=util.BuildFactory(LOOK),
        )
        for index, ((kind, directory), place) in enumerate(places.items())
    ]
    config["schedulers"] = []
    async with running_master(tmp_path, config, left_over) as master:
        for (kind, directory), place in places.items():
            build = await master.build(f"{kind} {directory}")
            assert build.result == "success", build.log
            whole = Path(bases[kind], place)
            assert build["look"].out.split("\n") == [f"{whole}/build", "text"]
            assert build["builddir"].out == str(whole)
            assert build.properties["copied"] == "f"
            assert build["left"].out == "build"
        assert master.errors == []


@pytest_twisted.ensureDeferred
async def test_next_worker_and_can_start_build_choose_among_sandboxes(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    policy = SandboxPolicy(BUSYBOX, memory="64m", disk="8m")
    workers = [SandboxLatentWorker(f"w{n}", policy=policy) for n in range(3)]
    may_start = False
    asked: list[str] = []

    def next_worker(_builder: Any, available: list[Any], request: Any) -> Any:
        wanted = request.properties.getProperty("wanted")
        return next((each for each in available if each.worker.name == wanted), None)

    def can_start(_builder: Any, workerforbuilder: Any, request: Any) -> bool:
        asked.append(workerforbuilder.worker.name)
        return may_start or not request.properties.getProperty("waits")

    config = configuration(workers, [shell("true", "true")])
    (builder,) = config["builders"]
    builder.nextWorker, builder.canStartBuild = next_worker, can_start
    async with running_master(tmp_path, config, left_over) as master:
        for name in ("w2", "w1", "w2"):
            build = await master.build(wanted=name)
            assert (build.result, build.properties["workername"]) == ("success", name)
        waiting = await master.submit(wanted="w0", waits=True)
        await until(lambda: "w0" in asked, "the question whether it may start")
        await pause(0.5)
        assert await master.builds(waiting) == []
        may_start = True
        master.master.botmaster.maybeStartBuildsForBuilder("b")
        build = await master.finished(waiting)
        assert (build.result, build.properties["workername"]) == ("success", "w0")
        assert master.errors == []


@pytest_twisted.ensureDeferred
async def test_a_builder_s_lock_is_kept_across_sandboxes(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    policy = SandboxPolicy(BUSYBOX, memory="64m", disk="8m")
    workers = [SandboxLatentWorker(f"w{n}", policy=policy) for n in range(2)]
    lock = util.MasterLock("one build at a time")
    config = configuration(workers, [shell("sleep 1", "sleep")])
    config["builders"][0].locks = [lock.access("exclusive")]
    async with running_master(tmp_path, config, left_over) as master:
        requests = [await master.submit() for _ in range(2)]
        builds = [await master.finished(request) for request in requests]
        assert [build.result for build in builds] == ["success"] * 2
        data = master.master.data
        found = [await data.get(("builds", build.id, "steps", "sleep")) for build in builds]
        first, second = sorted(found, key=lambda step: step["started_at"])
        assert first["complete_at"] <= second["started_at"]
        assert master.errors == []
