"""A big repository: it neither fills the master's memory nor holds the reactor up.

``SANDBOXWORKER_TEST_BIG`` sets its size in MiB; without it it is small enough for every day.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from buildbot.plugins import steps
from conftest import DEBIAN
from git_server import MIB, HttpServer, Repository
from memory_growth import MAX_GROWTH, Growth
from real_master import RealMaster, one_builder_each, running_master, shell, until
from runtime import SandboxPolicy
from twisted.internet import reactor, task

from sandboxworker import SandboxLatentWorker
from sandboxworker.steps import SandboxGit

pytestmark = pytest.mark.engine

SIZE = int(os.environ.get("SANDBOXWORKER_TEST_BIG") or 96)
#: Where it stands in the sandbox: what was sent, git's own objects, and the files.
COPIES = 3
PATIENCE = 600


@pytest_twisted.async_yield_fixture(scope="module")
async def master(
    engine_client: Any, left_over: Any, tmp_path_factory: Any
) -> AsyncIterator[RealMaster]:
    policy = SandboxPolicy(DEBIAN, memory="512m", disk=(SIZE * COPIES + 32) * MIB)
    workers = [SandboxLatentWorker(name, policy=policy) for name in ("big", "small")]
    basedir = tmp_path_factory.mktemp("master")
    async with running_master(basedir, one_builder_each(workers), left_over) as running:
        yield running
        assert running.errors == []


class Pulse:
    """The reactor's own work at short intervals: how many times it was late, and by how much."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = reactor.seconds()
        self._loop = task.LoopingCall(self._beat)
        self._loop.start(0.02, now=False)

    def _beat(self) -> None:
        now = reactor.seconds()
        self.longest = max(self.longest, now - self._last - 0.02)
        self._last = now

    def stop(self) -> None:
        self._loop.stop()
        print(f"longest stall of the reactor: {self.longest:.3f} s")


@pytest_twisted.ensureDeferred
async def test_a_big_repository_takes_little_memory_and_others_go_on(
    master: RealMaster, tmp_path: Path
) -> None:
    root = tmp_path / "served"
    big, small = (Repository(root / f"{name}.git") for name in ("big", "small"))
    big.grow(SIZE)
    small.commit({"f": "x"})
    count = shell("find data -type f | wc -l", "count")
    with HttpServer(root) as server:
        growth, pulse = Growth(), Pulse()
        request = await master.begin("big", [steps.Git(repourl=server.url(big)), count])
        await until(lambda: server.fetches, "the fetch of the big repository")
        other = await master.run("small", [steps.Git(repourl=server.url(small))])
        assert other.result == "success"
        first = await master.finished(request, seconds=PATIENCE)
        fetched = server.bytes_fetched
        request = await master.begin("big", [SandboxGit(repourl=server.url(big)), count])
        second = await master.finished(request, seconds=PATIENCE)
        pulse.stop()
        peak = growth.peak()
    for build in (first, second):
        assert build.result == "success", build.log
        assert build["count"].out.strip() == str(SIZE)
    assert server.bytes_fetched - fetched < MIB
    assert peak < MAX_GROWTH
