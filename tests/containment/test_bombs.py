"""Bombs (threat model, T6 to T10): what one sandbox piles up, its host and neighbours do not feel.

Asserted are outcomes and limits, never times; ``SANDBOXWORKER_TEST_RECORD=FILE`` writes what was
measured as the rows of docs/containment.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from conftest import DEBIAN
from escapes.bombs import BOMBS, LIMITS, Bomb
from memory_engine import within
from real_master import pause, until
from slow import SLOW, withstood_the_kill
from twisted.internet import task

from sandboxworker.engine import docker as docker_engine
from sandboxworker.engine.address import resolve
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.errors import SocketsFull
from sandboxworker.policy import SandboxPolicy
from sandboxworker.process import run
from sandboxworker.sandbox import Owner, Sandbox, State
from sandboxworker.seccomp import load
from sandboxworker.sockets import LOOK_EVERY
from sandboxworker.spec import build_spec

pytestmark = pytest.mark.engine

MIB = 1024 * 1024
SECONDS = 120
#: Seconds that a bomb is watched for once it has gone off.
WATCHED = 2.0
POLICY = SandboxPolicy(DEBIAN, **LIMITS)
#: It is there for all bombs, which take many minutes on a slow machine.
NEIGHBOURS = SandboxPolicy(DEBIAN, **{**LIMITS, "max_runtime": "2h"})
#: Processes that the engine itself puts into a full cgroup.
ENGINES_OWN = 5


@attrs.frozen
class Figures:
    """One look at the host. Memory in MiB, latencies in ms."""

    available: int
    disk_free: int
    processes: int
    latencies: tuple[float, ...]

    def __str__(self) -> str:
        median, worst = statistics.median(self.latencies), max(self.latencies)
        return (
            f"{self.available} / {self.disk_free} / {self.processes} / {median:.0f} ({worst:.0f})"
        )


class Site:
    """The host, a neighbour on it, and sandboxes to set bombs off in."""

    def __init__(self, engine: DockerEngine, client: Any, owner: Owner) -> None:
        self._engine, self._client, self._owner = engine, client, owner
        self._root = client.info()["DockerRootDir"]
        self.made: list[Sandbox] = []

    async def sandbox(self, policy: SandboxPolicy = POLICY) -> Sandbox:
        from twisted.internet import reactor

        image = await self._engine.image(DEBIAN)
        spec = build_spec(policy, image, load(policy.seccomp))
        sandbox = Sandbox(self._engine, self._engine.uids, spec, self._owner, reactor)
        self.made.append(sandbox)
        await within(SECONDS, sandbox.start())
        return sandbox

    async def open(self) -> None:
        self.neighbour = await self.sandbox(NEIGHBOURS)

    async def figures(self, times: int = 5) -> Figures:
        latencies = tuple([await self._latency() for _ in range(times)])
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = os.statvfs(self._root)
        return Figures(
            int(facts["MemAvailable"].split()[0]) // 1024,
            free.f_bavail * free.f_frsize // MIB,
            sum(name.isdigit() for name in os.listdir("/proc")),
            latencies,
        )

    async def _latency(self) -> float:
        """How long the neighbour takes to answer, an exec of the engine's included."""
        begin = time.monotonic()
        answer = await within(SECONDS, run(self.neighbour, ("/bin/echo", "here")))
        assert answer.stdout == b"here\n", answer
        return (time.monotonic() - begin) * 1000

    def group(self, sandbox: Sandbox, controller: str) -> Path:
        """The sandbox's cgroup of that controller."""
        keeper = self._client.inspect_container(sandbox.container)["State"]["Pid"]
        for line in Path(f"/proc/{keeper}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                group = Path(f"/sys/fs/cgroup/{controllers and controller}{path}")
                if (group / "cgroup.procs").is_file():
                    return group
        raise AssertionError(f"no cgroup of {controller}")

    def written(self, sandbox: Sandbox) -> int:
        """Bytes of the container's that the engine keeps on the host's disk."""
        found = self._client.inspect_container(sandbox.container)
        places = (
            found["GraphDriver"]["Data"]["UpperDir"],
            f"{self._root}/containers/{found['Id']}",
        )
        files = [path for place in places for path in Path(place).rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)

    async def close(self) -> None:
        for sandbox in self.made:
            await sandbox.destroy()
        await self._engine.close()


@pytest_twisted.async_yield_fixture(scope="module")
async def site(engine_client: Any, left_over: Any) -> AsyncIterator[Site]:
    from twisted.internet import reactor

    engine = DockerEngine(resolve(None), reactor)
    opened = Site(engine, engine_client, Owner(min(left_over.masters), "bombs"))
    await opened.open()
    yield opened
    await opened.close()


def read(group: Path, *names: str) -> int:
    """The first of these files that the cgroup's version has."""
    for name in names:
        if (group / name).is_file():
            return int((group / name).read_text())
    raise AssertionError(f"none of {names} in {group}")


def peak_of(group: Path) -> int:
    """Bytes of memory at its peak."""
    return read(group, "memory.max_usage_in_bytes", "memory.peak")


def in_sockets(group: Path) -> int:
    """Bytes that waited in sockets at most, where that is no part of the peak of memory."""
    file = group / "memory.kmem.tcp.max_usage_in_bytes"
    return int(file.read_text()) if file.is_file() else 0


def counts_sockets(group: Path) -> bool:
    """Whether what waits in sockets is part of this cgroup's memory, as with cgroup v2."""
    return (group / "memory.peak").is_file()


@attrs.define
class Most:
    """The most that was seen of a sandbox while it was there; memory in bytes."""

    processes: int = 0
    memory: int = 0
    sockets: int = 0

    def look(self, pids: Path, memory: Path) -> None:
        """A sandbox that has been ended has no cgroups any more."""
        with contextlib.suppress(FileNotFoundError, AssertionError):
            self.processes = max(self.processes, read(pids, "pids.current"))
            self.memory = max(self.memory, peak_of(memory))
            self.sockets = max(self.sockets, in_sockets(memory))


async def watch(site: Site, pids: Path, memory: Path) -> tuple[Figures, Most]:
    """The worst of what is seen while a bomb is going off, and the most of its sandbox."""
    seen, most = [], Most()
    end = time.monotonic() + WATCHED
    while len(seen) < 3 or time.monotonic() < end:
        most.look(pids, memory)
        seen.append(await site.figures(2))
    latencies = tuple(latency for each in seen for latency in each.latencies)
    worst = Figures(
        min(each.available for each in seen),
        min(each.disk_free for each in seen),
        max(each.processes for each in seen),
        latencies,
    )
    return worst, most


async def ended(pids: Path) -> bool:
    """Whether nothing but the keeper (a shell and its `cat`) is left in time."""
    from twisted.internet import reactor

    deadline = time.monotonic() + SECONDS
    while read(pids, "pids.current") > 2 and time.monotonic() < deadline:
        await task.deferLater(reactor, 0.1, lambda: None)
    return read(pids, "pids.current") == 2


def living(group: Path) -> list[str]:
    """The programs of the processes in a cgroup."""
    try:
        found = (group / "cgroup.procs").read_text().split()
        return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in found]
    except FileNotFoundError:
        return ["one that has just ended"]


def own_memory() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGESIZE")


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("bomb", [pytest.param(bomb, id=bomb.id) for bomb in BOMBS])
async def test_a_bomb_stays_in_its_sandbox(site: Site, bomb: Bomb) -> None:
    sandbox = await site.sandbox()
    pids, memory = site.group(sandbox, "pids"), site.group(sandbox, "memory")
    before, own, counts = await site.figures(), own_memory(), counts_sockets(memory)

    exploding = run(sandbox, bomb.argv, directory="/build/bomb")
    during, most = await watch(site, pids, memory)
    is_past = isinstance(sandbox.lost, SocketsFull)
    if is_past or (bomb.ends_sandbox and not counts):
        await gone(sandbox)
        done = await within(SECONDS, exploding)
        assert isinstance(sandbox.lost, SocketsFull)
        assert sandbox.state is State.GONE
        assert not pids.exists()
    else:
        most.look(pids, memory)
        await within(SECONDS, sandbox.kill_all())
        done = await within(SECONDS, exploding)
        if withstood_the_kill(sandbox.lost):
            await gone(sandbox)
        else:
            assert site.written(sandbox) < MIB
            assert await ended(pids), f"{living(pids)} outlived the kill; {sandbox} {sandbox.lost}"
            assert sandbox.is_ready

    assert re.fullmatch(bomb.told, done.stdout.decode()) or not bomb.told, done
    assert most.processes <= POLICY.pids + ENGINES_OWN
    assert is_past or most.memory <= POLICY.cgroup_memory
    assert own_memory() - own < 100 * MIB
    record(bomb, before, during, await site.figures(), most)


async def gone(sandbox: Sandbox) -> None:
    """Until one that has been ended is confirmed gone."""
    await until(lambda: sandbox.state is State.GONE, "its end", SECONDS)


#: 900 sockets that hold 200 KiB each, where the kernel lets them, for so many seconds.
DATAGRAMS = """
import socket, sys, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setblocking(False)
held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(900)]
for one in held:
    one.bind(("127.0.0.1", 0))
    try:
        for _ in range(9): sender.sendto(bytes(60000), one.getsockname())
    except OSError: pass
print("sent", flush=True)
time.sleep(int(sys.argv[1]))
"""
SMALL = SandboxPolicy(DEBIAN, **{**LIMITS, "memory": "32m", "disk": "1m", "tmp": "1m", "shm": "1m"})


@pytest_twisted.ensureDeferred
async def test_datagrams_that_wait_are_bounded_by_the_memory(site: Site) -> None:
    sandbox = await site.sandbox(SMALL)
    memory = site.group(sandbox, "memory")
    counts = counts_sockets(memory)
    done = await within(SECONDS, run(sandbox, ("python3", "-c", DATAGRAMS, "5")))
    if counts:
        # The kernel does not refuse them (Linux 6.1): then the sandbox is ended.
        if sandbox.is_ready:
            await pause(4 * LOOK_EVERY * SLOW)
        assert isinstance(sandbox.lost, SocketsFull) or peak_of(memory) <= SMALL.cgroup_memory
        return
    peak = peak_of(memory)
    assert done.stdout == b"sent\n", done
    assert peak <= SMALL.cgroup_memory
    assert in_sockets(memory) <= SMALL.cgroup_memory
    held = in_sockets(memory) or peak
    assert held > SMALL.cgroup_memory / 2, "the test sent nothing that waits"


@pytest_twisted.ensureDeferred
async def test_datagrams_are_bounded_where_only_the_engine_tells_of_them(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a master in a container, or on another machine."""
    if not counts_sockets(site.group(site.neighbour, "memory")):
        pytest.skip("with cgroup v1 such a master is refused its sandboxes")
    monkeypatch.setattr(docker_engine, "bound_sockets", lambda *_: None)
    sandbox = await site.sandbox(SMALL)
    memory = site.group(sandbox, "memory")
    running = run(sandbox, ("python3", "-c", DATAGRAMS, "600"))
    await until(lambda: sandbox.lost is not None, "the sandbox's end", SECONDS)
    assert isinstance(sandbox.lost, SocketsFull), sandbox.lost
    assert SMALL.cgroup_memory < sandbox.lost.waiting < 300 * MIB
    assert (await within(SECONDS, running)).exit_code == -1
    await gone(sandbox)
    assert not memory.exists()


def record(bomb: Bomb, before: Figures, during: Figures, after: Figures, most: Most) -> None:
    """A row for the document, where one is asked for."""
    name = os.environ.get("SANDBOXWORKER_TEST_RECORD")
    if name:
        row = f"| {bomb.row} | {bomb.what} | {before} | {during} | {after} | {most.processes} | "
        sockets = f", and {most.sockets // MIB} in sockets" if most.sockets >= MIB else ""
        with open(name, "a") as file:
            file.write(f"{row}{most.memory // MIB} of {POLICY.cgroup_memory // MIB}{sockets} |\n")
