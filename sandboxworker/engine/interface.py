"""What a container engine must be able to do for a sandbox.

Everything is asynchronous and has a deadline.
Control calls are coroutines (for Twisted's ``ensureDeferred``); streams are driven by the
reactor and push back when their reader or writer is slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs

from sandboxworker.engine.cores import Cores
from sandboxworker.engine.proven import Proven
from sandboxworker.spec import ImageFacts

#: Channels of a demultiplexed stream (Docker Engine API, "Stream format").
STDIN, STDOUT, STDERR = 0, 1, 2


@attrs.frozen
class Created:
    """The engine's answer to a create request."""

    id: str
    warnings: tuple[str, ...] = ()


@attrs.frozen
class Listed:
    """One container of a list answer."""

    id: str
    name: str
    labels: Mapping[str, str]
    state: str


@attrs.frozen
class Usage:
    """What a container has used so far; None where the engine does not say.

    ``memory_peak`` in bytes, ``cpu_seconds`` in seconds of all processors together; ``pids``: the
    processes and threads that it has now.
    """

    memory_peak: int | None = None
    cpu_seconds: float | None = None
    pids: int | None = None


@attrs.frozen
class ExecRequest:
    """One command to run in a container, always from ``/``.

    ``user``: ``uid:gid``; ``environ``: lines ``NAME=value``, or ``NAME`` to remove one.
    """

    argv: tuple[str, ...]
    user: str
    environ: tuple[str, ...] = ()
    tty: bool = False
    stdin: bool = False


@attrs.frozen
class Host:
    """What an engine says of the machine it runs on.

    ``folder``: where it keeps its files; ``processors``: how many a container may use, 0 where
    they cannot be chosen; ``lsm``: whether it confines containers by AppArmor; ``selinux``: or by
    SELinux; ``counts_sockets``: whether what waits in sockets is part of their memory, as with
    cgroup v2.
    """

    folder: str = ""
    processors: int = 0
    lsm: bool = False
    selinux: bool = False
    counts_sockets: bool = False


@attrs.frozen
class Entry:
    """What stands at a path of an image; ``link``: where it leads, empty for what is no link."""

    is_directory: bool
    link: str = ""


class SocketGauge(Protocol):
    """Tells how many bytes wait in a container's sockets, with all its memory where the kernel
    counts them as one."""

    @property
    def delay(self) -> float:
        """Seconds by which what it tells may be late."""

    def __call__(self) -> int:
        """Raises `EngineError`, `OSError` or `ValueError` where nobody can tell, as when the
        container is gone."""

    def close(self) -> None:
        """It is not asked any more."""


class HostDisk(Protocol):
    """A file system of fixed size on the engine's host, for one sandbox (see `Engine.new_disk`)."""

    @property
    def device(self) -> str:
        """The block device to mount."""

    def is_mounted(self) -> bool:
        """Whether a container has it now."""

    def let_go(self) -> None:
        """It goes with the container that has it mounted, or at once if none has."""


class StreamReceiver(Protocol):
    """Who listens to a stream. All calls come from the reactor."""

    def stream_received(self, channel: int, data: bytes) -> None:
        """Bytes arrived on ``STDOUT`` or ``STDERR`` (``STDOUT`` only with a terminal)."""

    def stream_ended(self, reason: Exception | None) -> None:
        """Nothing more will come. ``reason`` is None where the engine closed it in order."""


class Stream(Protocol):
    """Our end of an attach or exec stream."""

    def write(self, data: bytes) -> None:
        """Send to the process's stdin."""

    def register_producer(self, producer: Any, streaming: bool) -> None:
        """Twisted's ``registerProducer``: the producer is told when to pause."""

    def unregister_producer(self) -> None:
        """Twisted's ``unregisterProducer``."""

    def close_write(self) -> bool:
        """End the process's stdin; False where this transport cannot half-close."""

    def pause(self) -> None:
        """Stop reading: the engine, and then the process, will wait."""

    def resume(self) -> None:
        """Read again."""

    def abort(self) -> None:
        """Close at once. ``stream_ended`` is not called any more."""


class Engine(Protocol):
    """A container engine. Every call raises an `EngineError` within its deadline, or answers."""

    @property
    def name(self) -> str:
        """The engine's address, for people."""

    #: What it has been seen to do; and which processors its sandboxes run on.
    proven: Proven
    cores: Cores

    async def host(self) -> Host:
        """What is known of its machine; asked once."""

    async def new_disk(self, size: int, inodes: int, owner: str) -> HostDisk:
        """A file system of so many bytes and inodes, whose top directory is ``uid:gid``'s.

        Raises `DiskRefused` where this engine, or this process, cannot have one, and `DiskFull`.
        """

    async def etc(self, image: str, labels: Mapping[str, str]) -> str:
        """The folder on its host with `spec.ETC_FILES`; empty where it is to make them itself.

        ``image``: any that it has; ``labels``: of what this needs for a moment.
        """

    async def image(self, reference: str) -> ImageFacts:
        """The facts of an image. Raises `ImageNotFound`; nothing is ever pulled."""

    async def create(self, name: str, body: Mapping[str, Any]) -> Created:
        """Create a container. Raises `EngineRefused` with status 409 if the name is taken."""

    async def inspect(self, container: str) -> Mapping[str, Any] | None:
        """What the engine says of a container; None where there is none."""

    async def entry(self, container: str, path: str) -> Entry | None:
        """What a created container's image has at an absolute path, None for nothing.

        Links on the way to it are followed, one at its end is not.
        """

    async def attach(self, container: str, receiver: StreamReceiver) -> Stream:
        """Attach to the container's own stdin and stdout."""

    async def start(self, container: str) -> None:
        """Start a created container."""

    async def bound_sockets(self, container: str, limit: int) -> SocketGauge:
        """Bound what waits in a running container's sockets by so many bytes.

        What tells how much it is, since the kernel lets some of it pass; who asked closes it.
        Raises `SocketsUnbounded` where it does not count as the container's memory and this process
        cannot bound it, or nobody tells how much it is.
        """

    async def exec(
        self, container: str, request: ExecRequest, receiver: StreamReceiver
    ) -> tuple[str, Stream]:
        """Run a command in a running container: its exec id, and its stream."""

    async def exec_status(self, exec_id: str) -> int | None:
        """A command's exit code; None while it runs or where the engine does not know."""

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        """Tell a command's terminal its size."""

    async def usage(self, container: str) -> Usage:
        """What a running container has used so far."""

    async def died_of_memory(self, container: str, until: float) -> bool:
        """Whether the kernel killed something in a container for its memory limit when it ended.

        ``until``: seconds since the epoch by the engine's clock, not later than a few from now.
        The container may be gone already.
        """

    async def remove(self, container: str) -> None:
        """Ask for a container's end, by force. It may still be there on return."""

    async def volumes(self, labels: Mapping[str, str]) -> Sequence[Listed]:
        """The volumes that carry all these labels; id and name are the same."""

    async def remove_volume(self, name: str) -> None:
        """Remove a volume, unless a container has it."""

    async def list(self, labels: Mapping[str, str]) -> list[Listed]:
        """The containers, also stopped ones, that carry all these labels."""

    async def close(self) -> None:
        """Let go of threads and connections."""
