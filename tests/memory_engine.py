"""`MemoryEngine`, an in-memory double of the `Engine` interface, and who listens in tests.

The contract suite (``contract/test_engine_contract.py``) runs against it and the real engine.
It can be told to misbehave in ways that a real engine does not on demand.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import attrs
from slow import SLOW
from twisted.internet import defer, task

from sandboxworker.engine.cores import Cores
from sandboxworker.engine.interface import (
    STDERR,
    STDOUT,
    Created,
    Entry,
    ExecRequest,
    Host,
    Listed,
    SocketGauge,
    StreamReceiver,
    Usage,
)
from sandboxworker.engine.proven import Proven
from sandboxworker.engine.uids import UidRange
from sandboxworker.errors import EngineRefused, EngineTimeout, ImageNotFound, SocketsUnbounded
from sandboxworker.spec import ImageFacts

T = TypeVar("T")

#: Seconds after which a hanging call fails, as every engine's calls must.
CALL_DEADLINE = 30.0

IMAGE = ImageFacts("memory/image:1", "sha256:" + "5" * 64, env=("PATH=/bin", "A=b"))


async def within(seconds: float, waited_for: Awaitable[T]) -> T:
    """The result, or a failed test: no wait is without an end."""
    from twisted.internet import reactor

    if isinstance(waited_for, defer.Deferred):
        result: defer.Deferred[T] = waited_for
    else:
        assert isinstance(waited_for, Coroutine)
        result = defer.ensureDeferred(waited_for)
    result.addTimeout(seconds * SLOW, reactor)  # type: ignore[arg-type]
    return await result


class Recorder:
    """A `StreamReceiver` that keeps what it hears."""

    def __init__(self) -> None:
        self.output = {STDOUT: bytearray(), STDERR: bytearray()}
        self.ends: list[Exception | None] = []
        self.ended: defer.Deferred[None] = defer.Deferred()
        self.on_data: Callable[[int, bytes], None] = lambda channel, data: None

    @property
    def stdout(self) -> bytes:
        return bytes(self.output[STDOUT])

    @property
    def stderr(self) -> bytes:
        return bytes(self.output[STDERR])

    def stream_received(self, channel: int, data: bytes) -> None:
        self.output[channel] += data
        self.on_data(channel, data)

    def stream_ended(self, reason: Exception | None) -> None:
        self.ends.append(reason)
        if len(self.ends) == 1:
            self.ended.callback(None)


@attrs.frozen
class Command:
    """What a scripted command does.

    ``status``: its exit code, None while it runs on; ``echoes``: it gives back its stdin.
    """

    stdout: bytes = b""
    stderr: bytes = b""
    status: int | None = 0
    echoes: bool = False


class MemoryStream:
    """One stream between a receiver and a double's process."""

    def __init__(
        self,
        reactor: Any,
        receiver: StreamReceiver,
        on_write: Callable[[bytes], None],
        on_close: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._receiver: StreamReceiver | None = receiver
        self._on_write = on_write
        self._on_close = on_close
        self._waiting: list[Callable[[], None]] = []
        self._paused = False

    @property
    def is_open(self) -> bool:
        return self._receiver is not None

    # the process's side

    def give(self, channel: int, data: bytes) -> None:
        self._soon(lambda: self._receiver and self._receiver.stream_received(channel, data))

    def end(self, reason: Exception | None = None) -> None:
        self._soon(lambda: self._end(reason))

    def _end(self, reason: Exception | None) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.stream_ended(reason)

    def _soon(self, step: Callable[[], Any]) -> None:
        self._waiting.append(step)
        self._reactor.callLater(0, self._deliver)

    def _deliver(self) -> None:
        while self._waiting and not self._paused:
            self._waiting.pop(0)()

    # our side (see `interface.Stream`)

    def write(self, data: bytes) -> None:
        if self.is_open:
            self._on_write(data)

    def register_producer(self, producer: Any, streaming: bool) -> None:
        if not streaming:
            producer.resumeProducing()

    def unregister_producer(self) -> None:
        """Nobody to forget."""

    def close_write(self) -> bool:
        self._reactor.callLater(0, self._on_close)
        return True

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._reactor.callLater(0, self._deliver)

    def abort(self) -> None:
        self._receiver = None
        self._waiting.clear()
        self._reactor.callLater(0, self._on_close)


@attrs.define(eq=False)
class MemoryContainer:
    """One container of the double."""

    id: str
    name: str
    body: dict[str, Any]
    state: str = "created"
    keeper: MemoryStream | None = None
    streams: list[MemoryStream] = attrs.Factory(list)

    def inspected(self, dropped: set[str]) -> dict[str, Any]:
        """The create request, in the way that an engine's inspect answers it."""
        config = copy.deepcopy(self.body)
        host = config.pop("HostConfig")
        return {
            "Id": self.id,
            "Name": f"/{self.name}",
            "Image": config["Image"],
            "Config": {name: value for name, value in config.items() if name not in dropped},
            "HostConfig": {name: value for name, value in host.items() if name not in dropped},
            "State": {"Status": self.state, "Running": self.state == "running"},
            "Mounts": [],
        }


class TakenOnTrust(Proven):
    """No kernel is below the double that could be looked at."""

    def holds(self, what: str) -> bool:
        return True


@attrs.define
class MemoryDisk:
    """A disk that is mounted, or not, as a test says."""

    device: str
    mounted: bool
    is_held: bool = True

    def is_mounted(self) -> bool:
        return self.mounted

    def let_go(self) -> None:
        self.is_held = False


@attrs.frozen
class MemoryGauge:
    """Nothing waits in a container's sockets, while there is one."""

    containers: Mapping[str, MemoryContainer]
    container: str
    delay: float = 0.0

    def __call__(self) -> int:
        if self.container not in self.containers:
            raise OSError(19, "No such device")
        return 0

    def close(self) -> None:
        pass


class MemoryEngine:
    """Containers as dictionaries; no process, no file.

    ``commands``: what each argv does, for `exec`; a function decides for all others.
    ``dropped``: settings that are silently not applied; ``warnings``: of the create answers.
    ``failures``: errors that the next calls of a name raise, before they have any effect.
    ``lost_answers``: calls that take effect and whose answer never comes.
    ``hanging``: calls that have no effect and never answer; ``gates``: calls that wait.
    ``mounts_disks``: whether containers have the disks that were made for them.
    ``deaf``: containers stay although their removal was asked for.
    ``out_of_memory``: containers of which `died_of_memory` says so.
    ``entries``: what its images have, by path.
    ``in_sockets``: tells what waits in a container's sockets, None where that is part of its
    memory; ``bounds_sockets``: whether that can be bounded.
    """

    name = "memory"

    def __init__(self, reactor: Any) -> None:
        self.uids = UidRange()
        self.proven = TakenOnTrust(reactor)
        self.cores = Cores()
        self.images = {IMAGE.reference: IMAGE}
        self.containers: dict[str, MemoryContainer] = {}
        self.commands: dict[tuple[str, ...], Command] = {}
        self.script: Callable[[ExecRequest], Command] = lambda request: Command()
        self.dropped: set[str] = set()
        self.warnings: tuple[str, ...] = ()
        self.failures: dict[str, list[Exception]] = {}
        self.lost_answers: set[str] = set()
        self.hanging: set[str] = set()
        self.gates: dict[str, defer.Deferred[None]] = {}
        self.deaf = False
        self.out_of_memory: set[str] = set()
        self.entries = {"/build": Entry(is_directory=True), "/bin/sh": Entry(is_directory=False)}
        self.calls: list[str] = []
        self.executed: list[ExecRequest] = []
        self.disks: list[MemoryDisk] = []
        self.mounts_disks = True
        self.in_sockets: SocketGauge | None = None
        self.bounds_sockets = True
        self._reactor = reactor
        self._ids = itertools.count(1)
        self._statuses: dict[str, int | None] = {}

    # misbehaviour

    async def _begin(self, call: str) -> None:
        self.calls.append(call)
        if call in self.gates:
            gate, self.gates[call] = self.gates[call], defer.Deferred()
            await gate
            del self.gates[call]
        if call in self.hanging:
            await self._time_out(call)
        if self.failures.get(call):
            raise self.failures[call].pop(0)

    async def _answer(self, call: str) -> None:
        if call in self.lost_answers:
            await self._time_out(call)

    async def _time_out(self, call: str) -> None:
        await task.deferLater(self._reactor, CALL_DEADLINE, lambda: None)
        raise EngineTimeout(self.name, call, CALL_DEADLINE)

    def end_container(self, container: str) -> None:
        """The keeper ends, and with it, by auto-remove, the container."""
        ended = self.containers.pop(container, None)
        if ended is not None:
            ended.state = "exited"
            for stream in [*ended.streams, *filter(None, [ended.keeper])]:
                stream.end()

    # control calls (see `interface.Engine`)

    async def host(self) -> Host:
        return Host()

    async def new_disk(self, size: int, inodes: int, owner: str) -> MemoryDisk:
        await self._begin("new_disk")
        self.disks.append(MemoryDisk(f"/dev/memory{len(self.disks)}", self.mounts_disks))
        return self.disks[-1]

    async def image(self, reference: str) -> ImageFacts:
        await self._begin("image")
        if reference not in self.images:
            raise ImageNotFound(reference, self.name)
        return self.images[reference]

    async def create(self, name: str, body: Mapping[str, Any]) -> Created:
        await self._begin("create")
        if any(container.name == name for container in self.containers.values()):
            raise EngineRefused(self.name, "create", 409, f"the name {name} is in use")
        made = MemoryContainer(f"{next(self._ids):064x}", name, copy.deepcopy(dict(body)))
        self.containers[made.id] = made
        await self._answer("create")
        return Created(made.id, self.warnings)

    async def inspect(self, container: str) -> Mapping[str, Any] | None:
        await self._begin("inspect")
        found = self.containers.get(container)
        return None if found is None else found.inspected(self.dropped)

    async def entry(self, container: str, path: str) -> Entry | None:
        await self._begin("entry")
        self._existing("entry", container)
        return self.entries.get(path)

    async def start(self, container: str) -> None:
        await self._begin("start")
        self._existing("start", container).state = "running"
        await self._answer("start")

    async def bound_sockets(self, container: str, limit: int) -> SocketGauge:
        await self._begin("bound_sockets")
        if self._existing("bound_sockets", container).state != "running":
            raise EngineRefused(self.name, "bound_sockets", 409, "the container has ended")
        if not self.bounds_sockets:
            raise SocketsUnbounded(self.name)
        return self.in_sockets or MemoryGauge(self.containers, container)

    async def exec_status(self, exec_id: str) -> int | None:
        await self._begin("exec_status")
        if exec_id not in self._statuses:
            raise EngineRefused(self.name, "exec_status", 404, f"no such exec {exec_id}")
        return self._statuses[exec_id]

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        await self._begin("resize")

    async def usage(self, container: str) -> Usage:
        await self._begin("usage")
        self._existing("usage", container)
        return Usage(1024, 0.1)

    async def died_of_memory(self, container: str, until: float) -> bool:
        await self._begin("died_of_memory")
        return container in self.out_of_memory

    async def remove(self, container: str) -> None:
        await self._begin("remove")
        if not self.deaf:
            self.end_container(container)
        await self._answer("remove")

    async def etc(self, image: str, labels: Mapping[str, str]) -> str:
        return ""

    async def volumes(self, labels: Mapping[str, str]) -> list[Listed]:
        return []

    async def remove_volume(self, name: str) -> None:
        """There is none."""

    async def list(self, labels: Mapping[str, str]) -> list[Listed]:
        await self._begin("list")
        return [
            Listed(container.id, container.name, container.body["Labels"], container.state)
            for container in self.containers.values()
            if labels.items() <= container.body["Labels"].items()
        ]

    async def close(self) -> None:
        """Nothing is held."""

    def _existing(self, call: str, container: str) -> MemoryContainer:
        if container not in self.containers:
            raise EngineRefused(self.name, call, 404, f"no such container {container}")
        return self.containers[container]

    # streams

    async def attach(self, container: str, receiver: StreamReceiver) -> MemoryStream:
        await self._begin("attach")
        found = self._existing("attach", container)
        found.keeper = MemoryStream(
            self._reactor, receiver, lambda data: None, lambda: self._keeper_ends(container)
        )
        return found.keeper

    def _keeper_ends(self, container: str) -> None:
        """Its stdin ended. A container that never started has no keeper that could notice."""
        found = self.containers.get(container)
        if found is not None and found.state == "running" and not self.deaf:
            self.end_container(container)

    async def exec(
        self, container: str, request: ExecRequest, receiver: StreamReceiver
    ) -> tuple[str, MemoryStream]:
        await self._begin("exec")
        found = self._existing("exec", container)
        if found.state != "running":
            raise EngineRefused(self.name, "exec", 409, f"container {container} is not running")
        self.executed.append(request)
        command = self.commands.get(request.argv) or self.script(request)
        exec_id = f"exec-{next(self._ids)}"
        self._statuses[exec_id] = None
        stream = self._process(exec_id, command, receiver)
        found.streams.append(stream)
        return exec_id, stream

    def _process(self, exec_id: str, command: Command, receiver: StreamReceiver) -> MemoryStream:
        def end() -> None:
            self._statuses[exec_id] = command.status
            stream.end()

        def echo(data: bytes) -> None:
            if command.echoes:
                stream.give(STDOUT, data)

        stream = MemoryStream(self._reactor, receiver, echo, end if command.echoes else _nothing)
        for channel, data in ((STDOUT, command.stdout), (STDERR, command.stderr)):
            if data:
                stream.give(channel, data)
        if command.status is not None and not command.echoes:
            end()
        return stream


def _nothing() -> None:
    return None
