"""The kernel's own view of a sandbox on the real engine, held against specs that it is not of."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import pytest_twisted
from memory_engine import Command, MemoryEngine, within
from runtime import differs
from twisted.internet import defer, reactor
from twisted.internet.error import ConnectionLost

from sandboxworker.engine.docker import DockerEngine
from sandboxworker.errors import ExecFailed, NotConformant
from sandboxworker.policy import MIB
from sandboxworker.proof import ask, prove_kernel, proved_by
from sandboxworker.spec import ContainerSpec

SECONDS = 60.0


def other(spec: ContainerSpec, change: str) -> ContainerSpec:
    """A spec of which a sandbox would differ in one thing."""
    workspace, *rest = spec.tmpfs
    changes: dict[str, dict[str, Any]] = {
        "keeper's Uid": {"keeper_uid": 65532},
        "memory": {"memory": spec.memory - MIB},
        "pids": {"pids": spec.pids - 1},
        "cpus": {"cpus": spec.cpus / 2},
        "Max open files": {"nofile": spec.nofile - 1},
        "Max core file size": {"core": MIB},
        "size of /dev/shm": {"shm": spec.shm // 2},
        "size of /build": {"tmpfs": (attrs.evolve(workspace, size=workspace.size // 2), *rest)},
        "inodes of /build": {"tmpfs": (attrs.evolve(workspace, inodes=77), *rest)},
        "/proc/meminfo": {"masked_paths": (*spec.masked_paths, "/proc/meminfo")},
        "/proc/self": {"readonly_paths": (*spec.readonly_paths, "/proc/self")},
        "/elsewhere": {"tmpfs": (attrs.evolve(workspace, path="/elsewhere"), *rest)},
    }
    return attrs.evolve(spec, **changes[change])


CHANGES = (
    "keeper's Uid", "memory", "pids", "cpus", "Max open files", "Max core file size",
    "size of /dev/shm", "size of /build", "inodes of /build", "/proc/meminfo", "/proc/self",
    "/elsewhere",
)  # fmt: skip


@differs("kernel")
@pytest_twisted.ensureDeferred
async def test_sandbox_of_another_spec_is_told_by_what_differs(
    make_sandbox: Any, engine: DockerEngine
) -> None:
    sandbox = await make_sandbox()
    for change in CHANGES:
        spec = other(sandbox.spec, change)
        with pytest.raises(NotConformant) as caught:
            await within(
                SECONDS,
                prove_kernel(engine, sandbox.container, spec, sandbox.identity, reactor),
            )
        told = caught.value.deviations
        assert any(each.startswith(f"{change} (as the kernel sees it)") for each in told), told
        # What is missing in one place is too much in another; nothing else differs.
        assert len(told) <= 5, told
        assert not engine.proven.holds(proved_by(spec, sandbox.identity))


@differs("kernel")
@pytest_twisted.ensureDeferred
async def test_processors_of_another_sandbox_are_told(
    make_sandbox: Any, engine: DockerEngine
) -> None:
    sandbox = await make_sandbox()
    spec = attrs.evolve(sandbox.spec, image="another name")
    identity = attrs.evolve(sandbox.identity, cpuset="63")
    with pytest.raises(NotConformant, match="processors"):
        await within(SECONDS, prove_kernel(engine, sandbox.container, spec, identity, reactor))


@pytest_twisted.ensureDeferred
async def test_view_is_read_once_for_a_spec(
    make_sandbox: Any, engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    real = DockerEngine.exec

    async def counted(self: Any, container: str, request: Any, receiver: Any) -> Any:
        looks.append(container)
        return await real(self, container, request, receiver)

    monkeypatch.setattr(DockerEngine, "exec", counted)
    first, second = await make_sandbox(shm="9m"), await make_sandbox(shm="9m")
    assert looks == [first.container]
    assert engine.proven.holds(proved_by(second.spec, second.identity))
    third = await make_sandbox(shm="10m")
    assert looks == [first.container, third.container]


@pytest_twisted.ensureDeferred
async def test_look_without_an_end_is_given_up(make_sandbox: Any, engine: DockerEngine) -> None:
    sandbox = await make_sandbox()
    user, sleep = sandbox.identity.user, ("sleep", "60")
    with pytest.raises(ExecFailed, match=r"no end within 0\.5 s"):
        await within(SECONDS, ask(engine, sandbox.container, user, sleep, reactor, 0.5))


@pytest_twisted.ensureDeferred
async def test_gvisor_passes_with_what_it_shows(make_sandbox: Any, gvisor: str) -> None:
    for backing in ("tmpfs", "disk"):
        sandbox = await make_sandbox(runtime=gvisor, disk="16m", disk_backing=backing)
        assert sandbox.is_ready


@pytest_twisted.ensureDeferred
async def test_look_that_is_cut_off_shows_nothing() -> None:
    """What has come by then would be taken for all that there is."""
    memory = MemoryEngine(reactor)
    memory.commands[("look",)] = Command(stdout=b"half of it", status=None)
    container = (await memory.create("n", {"Labels": {}, "HostConfig": {}})).id
    await memory.start(container)
    asking = defer.ensureDeferred(ask(memory, container, "1:1", ("look",), reactor))
    (stream,) = memory.containers[container].streams
    stream.end(ConnectionLost("it was cut inside a frame"))
    with pytest.raises(ExecFailed, match="cut off"):
        await within(SECONDS, asking)
