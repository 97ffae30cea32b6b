"""What waits in a sandbox's sockets, which the kernel lets pass its limits.

With cgroup v1 the limit for it holds datagrams, and each TCP connection gets a little more; with v2
it is part of the memory, and what arrives is never refused (figures in docs/containment.md).
So somebody has to look, and end a sandbox that is past it like one that used up its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall

from sandboxworker.engine.interface import Engine, SocketGauge
from sandboxworker.errors import EngineError, SandboxGone, SocketsFull
from sandboxworker.kernelview import unseen_by
from sandboxworker.spec import ContainerSpec
from sandboxworker.unexpected import unexpected

#: Seconds between two looks; a sandbox of one core got 220 MiB more in each second.
LOOK_EVERY = 0.25
#: What may be past the limit: the kernel adds before it refuses, on each processor.
_SLACK = 17 / 16


async def bound_sockets(engine: Engine, container: str, spec: ContainerSpec) -> SocketGauge | None:
    """Bound what waits by the spec's memory; what has to be looked at for that, if anything.

    Raises `SocketsUnbounded` where it is not bounded.
    """
    if unseen_by(spec.runtime):
        # What waits in a kernel of the runtime's own is that kernel's memory, and so the sandbox's.
        return None
    return await engine.bound_sockets(container, spec.memory)


class SocketWatch:
    """Looks at one sandbox's sockets from `begin` until `end`.

    ``limit``: in bytes; ``lose(reason)`` is called once: when more waits, or nobody can tell.
    """

    def __init__(
        self, sandbox: str, limit: int, lose: Callable[[Exception], None], clock: Any
    ) -> None:
        self._sandbox = sandbox
        self._limit = limit
        self._lose = lose
        self._clock = clock
        self._looking: tuple[LoopingCall, SocketGauge] | None = None

    def begin(self, gauge: SocketGauge) -> None:
        """Look from now on; `end` closes the gauge."""
        looking = LoopingCall(self._look, gauge)
        looking.clock = self._clock
        self._looking = looking, gauge
        running = looking.start(LOOK_EVERY, now=False)
        running.addErrback(unexpected("looking at what waits in a sandbox's sockets"))

    def end(self) -> None:
        """Look no more; also where it never began."""
        if self._looking is not None:
            (looking, gauge), self._looking = self._looking, None
            looking.stop()
            gauge.close()

    def _look(self, gauge: SocketGauge) -> None:
        try:
            waiting = gauge()
        except EngineError as error:
            reason: Exception = self._untold(error.details or error.brief)
        except (OSError, ValueError) as error:
            reason = self._untold(getattr(error, "strerror", None) or error)
        else:
            if waiting <= self._limit * _SLACK:
                return
            reason = SocketsFull(self._sandbox, waiting, self._limit)
        self.end()
        self._lose(reason)

    def _untold(self, why: object) -> SandboxGone:
        return SandboxGone(self._sandbox, f"ended (its sockets: {why})")
