"""What every engine does: one suite for the real one and for its double in memory."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from memory_engine import IMAGE, Command, MemoryEngine, Recorder, within
from real_master import until
from runtime import SandboxPolicy, differs
from twisted.internet import reactor, task

from sandboxworker.conformance import deviations
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.engine.interface import STDOUT, Created, Engine, ExecRequest
from sandboxworker.errors import EngineRefused, ImageNotFound
from sandboxworker.sandbox import Owner
from sandboxworker.seccomp import load
from sandboxworker.spec import Identity, build_spec, create_body

SECONDS = 30.0
NOBODY = "0123456789abcdef" * 4


@attrs.define
class World:
    """An engine under test, an image that it has, and containers to be removed afterwards."""

    engine: Engine
    image: str
    owner: Owner
    made: list[str] = attrs.Factory(list)

    async def body(self, **labels: str) -> dict[str, Any]:
        facts = await self.engine.image(self.image)
        spec = build_spec(SandboxPolicy(self.image, memory="64m"), facts, load("build"))
        own = {"sandboxworker.master": self.owner.master, **labels}
        return create_body(spec, Identity("", 20500, 20500, tuple(own.items())))

    async def create(self, name: str = "", **labels: str) -> Created:
        name = name or f"contract-{secrets.token_hex(6)}"
        created = await self.engine.create(name, await self.body(**labels))
        self.made.append(created.id)
        return created

    async def running(self) -> tuple[str, Recorder, Any]:
        """A started container, its keeper's receiver and stream."""
        created, receiver = await self.create(), Recorder()
        stream = await self.engine.attach(created.id, receiver)
        await self.engine.start(created.id)
        return created.id, receiver, stream

    async def gone(self, container: str) -> bool:
        """Whether it goes; bounded."""
        for _ in range(100):
            if await self.engine.inspect(container) is None:
                return True
            await task.deferLater(reactor, 0.1, lambda: None)
        return False

    async def run(self, container: str, request: ExecRequest) -> tuple[str, Recorder]:
        """A command to its end."""
        receiver = Recorder()
        exec_id, _ = await self.engine.exec(container, request, receiver)
        await within(SECONDS, receiver.ended)
        return exec_id, receiver

    async def status(self, exec_id: str) -> int | None:
        for _ in range(100):
            status = await self.engine.exec_status(exec_id)
            if status is not None:
                return status
            await task.deferLater(reactor, 0.05, lambda: None)
        return None


def shell(script: str, **fields: Any) -> ExecRequest:
    return ExecRequest(("/bin/sh", "-c", script), "20500:20500", **fields)


TALK = shell("echo out; echo err >&2; exit 3")
ECHO = shell("exec cat", stdin=True)
ENDLESS = shell("while :; do sleep 1; done")
COMMANDS = {
    TALK.argv: Command(b"out\n", b"err\n", 3),
    ECHO.argv: Command(echoes=True),
    ENDLESS.argv: Command(status=None),
}


def memory_world(owner: Owner) -> World:
    double = MemoryEngine(reactor)
    double.commands.update(COMMANDS)
    return World(double, IMAGE.reference, owner)


@pytest_twisted.async_yield_fixture(
    params=["memory", pytest.param("docker", marks=pytest.mark.engine)]
)
async def world(request: pytest.FixtureRequest, owner: Owner) -> AsyncIterator[World]:
    if request.param == "memory":
        yield memory_world(owner)
        return
    from sandboxworker.engine.address import resolve

    request.getfixturevalue("engine_client")
    engine = DockerEngine(resolve(None), reactor)
    real = World(engine, request.getfixturevalue("debian"), owner)
    yield real
    for container in real.made:
        await engine.remove(container)
        assert await real.gone(container)
    await engine.close()


# ---- sockets -----------------------------------------------------------------------------------

WAITING = 1 << 16
#: Datagrams that nobody reads.
DATAGRAMS = f"""
import socket, time
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
held.bind(("127.0.0.1", 0))
for _ in range(4): held.sendto(bytes({WAITING // 4}), held.getsockname())
print("sent", flush=True)
time.sleep(600)
"""


@differs("sockets")
@pytest_twisted.ensureDeferred
async def test_what_waits_in_sockets_is_bounded_or_part_of_the_memory(world: World) -> None:
    container, _, _ = await world.running()
    gauge = await world.engine.bound_sockets(container, 1 << 20)
    before = gauge()
    assert before == 0 or (await world.engine.host()).counts_sockets
    if not isinstance(world.engine, MemoryEngine):
        receiver = Recorder()
        request = ExecRequest(("python3", "-c", DATAGRAMS), "20500:20500")
        await world.engine.exec(container, request, receiver)
        await until(lambda: b"sent" in receiver.output[STDOUT], "the datagrams", SECONDS)
        assert before + WAITING <= gauge()
    await world.engine.remove(container)
    assert await world.gone(container)
    with pytest.raises(OSError, match=r"No such (file|device)"):
        gauge()
    gauge.close()


@pytest_twisted.ensureDeferred
async def test_sockets_of_a_container_that_does_not_run_are_not_told_as_unbounded(
    world: World,
) -> None:
    created = await world.create()
    with pytest.raises(EngineRefused):
        await world.engine.bound_sockets(created.id, 1 << 20)


# ---- images ------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_image_has_facts(world: World) -> None:
    facts = await world.engine.image(world.image)
    assert facts.reference == world.image
    assert facts.id.startswith("sha256:")
    assert facts.volumes == ()
    assert any(line.startswith("PATH=") for line in facts.env)


@pytest_twisted.ensureDeferred
async def test_image_that_is_not_there_is_said_so_and_not_pulled(world: World) -> None:
    with pytest.raises(ImageNotFound) as caught:
        await world.engine.image("sandboxworker/no-such-image:1")
    assert "sandboxworker/no-such-image:1" in str(caught.value)
    assert world.engine.name in str(caught.value)


# ---- create and inspect ------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_created_container_is_exactly_what_was_asked_for(world: World) -> None:
    created = await world.create()
    inspected = await world.engine.inspect(created.id)
    assert inspected is not None
    assert deviations(await world.body(), inspected, created.warnings) == ()


@pytest_twisted.ensureDeferred
async def test_started_container_is_still_what_was_asked_for(world: World) -> None:
    container, _, _ = await world.running()
    inspected = await world.engine.inspect(container)
    assert inspected is not None
    assert inspected["State"]["Running"] is True
    assert deviations(await world.body(), inspected) == ()


@pytest_twisted.ensureDeferred
async def test_name_can_be_taken_only_once(world: World) -> None:
    name = f"contract-{secrets.token_hex(6)}"
    await world.create(name)
    with pytest.raises(EngineRefused) as caught:
        await world.create(name)
    assert caught.value.status == 409
    assert len(world.made) == 1


@pytest_twisted.ensureDeferred
async def test_container_that_is_not_there_is_inspected_as_none(world: World) -> None:
    assert await world.engine.inspect(NOBODY) is None


@pytest_twisted.ensureDeferred
async def test_what_an_image_has_at_a_path_is_told_before_the_start(world: World) -> None:
    created = await world.create()
    directory = await world.engine.entry(created.id, "/build")
    program = await world.engine.entry(created.id, "/bin/sh")
    assert directory is not None
    assert directory.is_directory
    assert program is not None
    assert not program.is_directory
    assert await world.engine.entry(created.id, "/no/such/place") is None


@pytest_twisted.ensureDeferred
async def test_containers_are_listed_by_all_their_labels(world: World) -> None:
    mark = secrets.token_hex(6)
    one = await world.create(mark=mark, number="1")
    other = await world.create(mark=mark, number="2")
    found = await world.engine.list({"mark": mark})
    assert {each.id for each in found} == {one.id, other.id}
    assert all(each.labels["mark"] == mark for each in found)
    assert all(each.name.startswith("contract-") for each in found)
    assert [each.id for each in await world.engine.list({"mark": mark, "number": "2"})] == [
        other.id
    ]
    assert await world.engine.list({"mark": mark, "number": "3"}) == []


# ---- the keeper --------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_container_goes_when_the_keepers_stream_is_cut(world: World) -> None:
    container, _, stream = await world.running()
    assert await world.engine.inspect(container) is not None
    stream.abort()
    assert await world.gone(container)


@pytest_twisted.ensureDeferred
async def test_container_goes_when_the_keepers_stdin_ends(world: World) -> None:
    container, receiver, stream = await world.running()
    assert stream.close_write()
    assert await world.gone(container)
    await within(SECONDS, receiver.ended)
    assert len(receiver.ends) == 1


@pytest_twisted.ensureDeferred
async def test_keepers_stream_ends_with_the_container(world: World) -> None:
    container, receiver, _ = await world.running()
    await world.engine.remove(container)
    await within(SECONDS, receiver.ended)
    assert len(receiver.ends) == 1
    assert receiver.stdout == b""


@pytest_twisted.ensureDeferred
async def test_nobody_can_attach_to_a_container_that_is_not_there(world: World) -> None:
    with pytest.raises(EngineRefused) as caught:
        await world.engine.attach(NOBODY, Recorder())
    assert caught.value.status == 404


@pytest_twisted.ensureDeferred
async def test_container_that_is_not_there_cannot_be_started(world: World) -> None:
    with pytest.raises(EngineRefused) as caught:
        await world.engine.start(NOBODY)
    assert caught.value.status == 404


# ---- exec --------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_command_gives_output_errors_and_exit_status(world: World) -> None:
    container, _, _ = await world.running()
    exec_id, heard = await world.run(container, TALK)
    assert (heard.stdout, heard.stderr) == (b"out\n", b"err\n")
    assert heard.ends == [None]
    assert await world.status(exec_id) == 3


@pytest_twisted.ensureDeferred
async def test_status_of_a_running_command_is_not_known(world: World) -> None:
    container, _, _ = await world.running()
    exec_id, _ = await world.engine.exec(container, ENDLESS, Recorder())
    assert await world.engine.exec_status(exec_id) is None


@pytest_twisted.ensureDeferred
async def test_command_reads_what_is_written_and_ends_with_its_stdin(world: World) -> None:
    container, _, _ = await world.running()
    receiver = Recorder()
    exec_id, stream = await world.engine.exec(container, ECHO, receiver)
    stream.write(b"some ")
    stream.write(b"input")
    assert stream.close_write()
    await within(SECONDS, receiver.ended)
    assert receiver.stdout == b"some input"
    assert await world.status(exec_id) == 0


@pytest_twisted.ensureDeferred
async def test_paused_stream_gives_nothing_until_resumed(world: World) -> None:
    container, _, _ = await world.running()
    receiver = Recorder()
    _, stream = await world.engine.exec(container, ECHO, receiver)
    stream.pause()
    stream.write(b"input")
    stream.close_write()
    for _ in range(10):
        await task.deferLater(reactor, 0.02, lambda: None)
        assert receiver.stdout == b""
        assert receiver.ends == []
    stream.resume()
    await within(SECONDS, receiver.ended)
    assert receiver.stdout == b"input"


@pytest_twisted.ensureDeferred
async def test_aborted_stream_gives_nothing_more(world: World) -> None:
    container, _, _ = await world.running()
    receiver = Recorder()
    _, stream = await world.engine.exec(container, ECHO, receiver)
    stream.abort()
    await world.run(container, TALK)
    assert receiver.ends == []


@pytest_twisted.ensureDeferred
async def test_command_ends_with_its_container(world: World) -> None:
    container, _, _ = await world.running()
    receiver = Recorder()
    await world.engine.exec(container, ENDLESS, receiver)
    await world.engine.remove(container)
    await within(SECONDS, receiver.ended)
    assert len(receiver.ends) == 1


@pytest_twisted.ensureDeferred
async def test_no_command_runs_in_a_container_that_does_not(world: World) -> None:
    created = await world.create()
    with pytest.raises(EngineRefused) as caught:
        await world.engine.exec(created.id, TALK, Recorder())
    assert caught.value.status == 409
    with pytest.raises(EngineRefused) as caught:
        await world.engine.exec(NOBODY, TALK, Recorder())
    assert caught.value.status == 404


@pytest_twisted.ensureDeferred
async def test_status_of_a_command_that_never_was_is_refused(world: World) -> None:
    with pytest.raises(EngineRefused) as caught:
        await world.engine.exec_status(NOBODY)
    assert caught.value.status == 404


@pytest_twisted.ensureDeferred
async def test_running_container_has_used_something(world: World) -> None:
    container, _, _ = await world.running()
    usage = await world.engine.usage(container)
    assert usage.cpu_seconds is not None
    assert usage.cpu_seconds > 0
    assert usage.memory_peak is not None
    assert usage.memory_peak > 0


# ---- the end -----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_removed_container_is_gone(world: World) -> None:
    container, _, _ = await world.running()
    await world.engine.remove(container)
    assert await world.gone(container)
    assert await world.engine.list({"sandboxworker.master": world.owner.master}) == []


@pytest_twisted.ensureDeferred
async def test_container_that_never_started_can_be_removed(world: World) -> None:
    created = await world.create()
    await world.engine.remove(created.id)
    assert await world.gone(created.id)


@pytest_twisted.ensureDeferred
async def test_removing_again_or_what_never_was_is_no_error(world: World) -> None:
    created = await world.create()
    await world.engine.remove(created.id)
    await world.engine.remove(created.id)
    await world.engine.remove(NOBODY)
    assert await world.gone(created.id)
