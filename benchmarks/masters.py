"""A real master in this process, with each kind of worker, whose builds are timed."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
from buildbot.plugins import steps, util, worker
from twisted.internet import defer, reactor, task

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from real_master import RealMaster
from worker_image import COMMAND

from sandboxworker import SandboxLatentWorker, SandboxPolicy
from sandboxworker.engine.address import resolve
from sandboxworker.housekeeping import housekeeping

IMAGE = "sandboxworker/debian:bookworm"
LOCAL, DOCKER, DEMAND, READY = "LocalWorker", "DockerLatentWorker", "on demand", "ready"
KINDS = (LOCAL, DOCKER, DEMAND, READY)
#: Seconds after which a build counts as hanging.
BUILD_DEADLINE = 180.0

#: Steps that began, for the time to the first one.
BEGUN: list[float] = []


class TimedCommand(steps.ShellCommand):
    """A shell step that notes when it begins."""

    async def run(self) -> int:
        BEGUN.append(time.monotonic())
        result: int = await super().run()
        return result


@attrs.frozen
class Times:
    """Seconds of one build, from asking for it."""

    first_step: float
    finish: float


def make_worker(
    kind: str, name: str, port: int, image: str, policy: SandboxPolicy, standby: int
) -> Any:
    """One worker of a kind. ``port``: where the master listens for Buildbot's own workers."""
    if kind == LOCAL:
        return worker.LocalWorker(name)
    if kind == DOCKER:
        return worker.DockerLatentWorker(
            name,
            None,
            docker_host=str(resolve(None)),
            image=image,
            command=COMMAND,
            masterFQDN=f"127.0.0.1:{port}",
            hostconfig={"network_mode": "host"},
        )
    return SandboxLatentWorker(name, policy=policy, standby=standby if kind == READY else 0)


def free_port() -> int:
    """Of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def configuration(
    kinds: Iterable[str],
    builds: Mapping[str, Callable[[], list[Any]]],
    image: str,
    *,
    count: int = 1,
    standby: int = 1,
    **policy: Any,
) -> dict[str, Any]:
    """A builder for each kind of worker and each build, named ``KIND/BUILD``."""
    port = free_port()
    workers, builders = [], []
    for number, kind in enumerate(kinds):
        # Each kind has a policy of its own, so that what is kept ready is kept for one alone.
        own = SandboxPolicy(IMAGE, **{"pids": 1024 + number, **policy})
        names = [f"w{number}-{each}" for each in range(count)]
        workers += [make_worker(kind, name, port, image, own, standby) for name in names]
        builders += [
            util.BuilderConfig(
                name=f"{kind}/{build}", workernames=names, factory=util.BuildFactory(make())
            )
            for build, make in builds.items()
        ]
    return {
        "workers": workers,
        "builders": builders,
        "schedulers": [],
        "protocols": {"pb": {"port": f"tcp:{port}:interface=127.0.0.1"}},
        "buildbotNetUsageData": None,
        "collapseRequests": False,
        "multiMaster": True,
        "title": "benchmark",
    }


class Bench:
    """A running master, whose builds are asked for and timed."""

    def __init__(self, real: RealMaster) -> None:
        self.real = real
        self._waiting: dict[int, defer.Deferred[dict[str, Any]]] = {}
        self._finished: dict[int, dict[str, Any]] = {}

    async def listen(self) -> None:
        """Builds tell their end: asking for it would be work for the master."""
        await self.real.master.mq.startConsuming(self._build_finished, ("builds", None, "finished"))

    def _build_finished(self, _key: Any, build: dict[str, Any]) -> None:
        request = build["buildrequestid"]
        self._finished[request] = build
        if request in self._waiting:
            self._waiting.pop(request).callback(build)

    async def finished(self, request: int) -> None:
        """When the build of a request is over; anything but success ends the benchmark."""
        if request not in self._finished:
            self._waiting[request] = waiting = defer.Deferred()
            waiting.addTimeout(BUILD_DEADLINE, reactor)
            await waiting
        build = self._finished.pop(request)
        if build["results"] != 0:
            raise SystemExit(f"a build failed: {await self._log(build)}")

    async def _log(self, build: Mapping[str, Any]) -> str:
        result = await self.real._result(build)
        return f"{result.state}: {result.log[-2000:]}"

    async def timed(self, builder: str) -> Times:
        """One build, alone."""
        BEGUN.clear()
        begin = time.monotonic()
        await self.finished(await self.real.submit(builder))
        end = time.monotonic()
        return Times((BEGUN or [end])[0] - begin, end - begin)

    async def together(self, builder: str, count: int) -> float:
        """Seconds that so many builds take that are asked for at once."""
        begin = time.monotonic()
        requests = [await self.real.submit(builder) for _ in range(count)]
        for request in requests:
            await self.finished(request)
        return time.monotonic() - begin

    async def are_ready(self, count: int) -> None:
        """Wait until so many sandboxes wait for a build."""
        house = await housekeeping(self.real.master)
        give_up = time.monotonic() + BUILD_DEADLINE
        while house.ready_on(resolve(None)) < count:
            if time.monotonic() > give_up:
                raise SystemExit(f"{count} sandboxes were not ready in {BUILD_DEADLINE:g} s")
            await pause(0.1)


async def pause(seconds: float) -> None:
    await task.deferLater(reactor, seconds, lambda: None)


@contextlib.asynccontextmanager
async def running(config: dict[str, Any]) -> AsyncIterator[Bench]:
    """A master for the length of a block; nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="sandboxworker-bench-") as folder:
        bench = Bench(RealMaster(Path(folder), config))
        try:
            await bench.real.start()
            await bench.listen()
            yield bench
        finally:
            await bench.real.stop()
            # It does so once more when the reactor stops, and complains that nobody owns it.
            bench.real.master.disownServiceParent = lambda: defer.succeed(None)


def cpu_seconds() -> float:
    """What this process, the master, has used of all processors."""
    times = os.times()
    return times.user + times.system
