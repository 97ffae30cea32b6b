"""A sandbox that starts while Buildbot makes its build ready.

Buildbot says first which worker a build goes to, and asks for its sandbox only after some eight
writes to its database; meanwhile the engine can begin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet import defer

from sandboxworker import shells
from sandboxworker.engine.address import EngineAddress
from sandboxworker.errors import SandboxworkerError
from sandboxworker.policy import SandboxPolicy
from sandboxworker.sandbox import Sandbox
from sandboxworker.spec import ContainerSpec
from sandboxworker.unexpected import unexpected

#: Seconds that a sandbox waits for Buildbot to ask for it.
LONGEST_EARLY = 60.0


class EarlyStart:
    """One build's sandbox, for which the build has not asked yet.

    ``build``: Buildbot's; ``address``: of the engine, which whoever makes this holds;
    ``make``: gives a sandbox that is not started, or None where none shall be;
    ``give_up``: called when nobody has asked for `LONGEST_EARLY` seconds.
    ``sandbox`` is set once it starts.
    """

    def __init__(
        self,
        build: Any,
        address: EngineAddress,
        reactor: Any,
        make: Callable[[], Awaitable[Sandbox | None]],
        give_up: Callable[[], None],
    ) -> None:
        self.build = build
        self.address = address
        self.sandbox: Sandbox | None = None
        self._known: tuple[SandboxPolicy, ContainerSpec] | None = None
        self._timer = reactor.callLater(LONGEST_EARLY, give_up)
        self._making = defer.ensureDeferred(self._begin(make))
        # What is wrong is met again, and told, when the build asks.
        self._making.addErrback(lambda why: why.trap(SandboxworkerError, defer.CancelledError))
        self._making.addErrback(unexpected("starting a sandbox early"))

    async def _begin(self, make: Callable[[], Awaitable[Sandbox | None]]) -> None:
        sandbox = await make()
        if sandbox is not None:
            self.sandbox = sandbox
            begin(sandbox)

    def know(self, policy: SandboxPolicy, spec: ContainerSpec) -> None:
        """What the image was found to be for this build."""
        self._known = policy, spec

    def spec(
        self, build: Any, address: EngineAddress, policy: SandboxPolicy
    ) -> ContainerSpec | None:
        """What this build's sandbox is under a policy, where that was asked for it already."""
        if self._known is None or not self._is_for(build, address):
            return None
        asked_for, spec = self._known
        return spec if asked_for == policy else None

    def fits(self, build: Any, address: EngineAddress, spec: ContainerSpec) -> bool:
        """Whether it is what the build asks for now: a reconfigure may have come between."""
        is_spec = self.sandbox is not None and self.sandbox.spec == spec
        return is_spec and self._is_for(build, address)

    def _is_for(self, build: Any, address: EngineAddress) -> bool:
        return self.build is build and self.address == address

    def end(self) -> None:
        """It was asked for, or is given up."""
        self._making.cancel()
        if self._timer.active():
            self._timer.cancel()


def begin(sandbox: Sandbox) -> None:
    """Have it start, and a shell wait in it as soon as it is ready; `Sandbox.started` tells how."""
    starting = sandbox.start()
    starting.addCallbacks(lambda _: _prepare(sandbox), lambda _: None)


def _prepare(sandbox: Sandbox) -> None:
    """Nobody waits for it: the first command does, where it is sooner."""
    shells.prepare(sandbox)


def build_begun(builder: Any) -> Any:
    """The build of which a worker is just being told; None where Buildbot has none yet."""
    return builder.building[-1] if builder.building else None
