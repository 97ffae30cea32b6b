"""What an engine tells of a container each second, for a master that cannot read its cgroup.

Docker Engine gathers the figures of all containers that somebody listens to in one round, and so
this is one connection for each and no thread; a question for one figure would wait for the next
round as well (20.10), for up to a second of a thread.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet import defer, protocol
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseFailed
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from sandboxworker.engine.answers import memory_of
from sandboxworker.engine.stream import engines_words
from sandboxworker.errors import EngineError, EngineRefused, EngineUnreachable
from sandboxworker.kept import Kept
from sandboxworker.shared import follow

#: Seconds between two figures (Docker Engine's own).
TOLD_EVERY = 1.0
#: Seconds for the first figure of the first container.
FIRST_DEADLINE = 10.0
#: Seconds without a figure after which nobody can tell. A build that stops what the engine runs in
#: its container can hold up everybody's, for as long as a call and a destruction take.
SILENT = 60.0
_CALL, _OK = "stats", 200
#: Bytes.
_LONGEST_REFUSAL = 64 * 1024


class StatsGauge(LineOnlyReceiver):
    """An `interface.SocketGauge`: all memory of a container, as the engine told it last.

    ``clock``: Twisted's ``IReactorTime``.
    """

    delimiter = b"\n"
    #: A host of hundreds of processors and disks has tens of KiB.
    MAX_LENGTH = 1 << 20
    delay = TOLD_EVERY
    transport: Any

    def __init__(self, engine: str, clock: Any) -> None:
        self._engine = engine
        self._clock = clock
        self._heard_at = clock.seconds()
        self._memory = 0
        self._over: EngineError | None = None
        self._first: defer.Deferred[Exception | None] = defer.Deferred()
        self._opening: defer.Deferred[Any] | None = None
        self._status = 0
        self._refusal = Kept(_LONGEST_REFUSAL)

    def open(self, endpoint: Any, path: str) -> None:
        """Ask at ``path`` of the engine's API; nothing is waited for."""
        agent = Agent.usingEndpointFactory(self._clock, _Always(endpoint))
        self._opening = agent.request(b"GET", f"http://docker{path}".encode())
        self._opening.addCallback(self._answered)
        self._opening.addErrback(self._not_answered)

    def told(self) -> defer.Deferred[None]:
        """Fires when there is a figure; fails with an `EngineError` where none will come."""
        return follow(self._first)

    def __call__(self) -> int:
        if self._over is not None:
            raise self._over
        silent = self._clock.seconds() - self._heard_at
        if silent > SILENT:
            raise EngineUnreachable(self._engine, f"it told no figures for {silent:.0f} s")
        return self._memory

    def close(self) -> None:
        """Listen no more."""
        if self._opening is not None:
            self._opening.cancel()
        if self.transport is not None:
            self.transport.loseConnection()

    # Twisted's side

    def dataReceived(self, data: bytes) -> None:
        if self._status == _OK:
            super().dataReceived(data)  # type: ignore[no-untyped-call]
        else:
            self._refusal.add(data)

    def lineReceived(self, line: bytes) -> None:
        try:
            memory = memory_of(json.loads(line))
        except (ValueError, AttributeError, TypeError):
            self._end(EngineRefused(self._engine, _CALL, 0, "answer not understood"))
            self.close()
            return
        # It tells nothing of a container whose figures it could not get this time.
        if memory is not None:
            self._memory, self._heard_at = memory, self._clock.seconds()
            if not self._first.called:
                self._first.callback(None)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        if self._status == _OK:
            self._end(EngineUnreachable(self._engine, "it ended what it told of a container"))
        else:
            why = engines_words(bytes(self._refusal.data))
            self._end(EngineRefused(self._engine, _CALL, self._status, why))

    # how

    def _answered(self, response: Any) -> None:
        self._status = response.code
        response.deliverBody(self)

    def _not_answered(self, failure: Failure) -> None:
        self._end(EngineUnreachable(self._engine, _words(failure)))

    def _end(self, error: EngineError) -> None:
        if self._over is None:
            self._over = error
            if not self._first.called:
                self._first.callback(error)


def _words(failure: Failure) -> str:
    """Why there was no answer, in those of `EngineStream` where the HTTP client has none."""
    error = failure.value
    if not isinstance(error, ResponseFailed):
        return failure.getErrorMessage()
    if error.reasons[0].check(ConnectionDone, ConnectionLost):
        return f"it hung up during {_CALL!r}"
    return "its answer is no HTTP"


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Always:
    """Leads an HTTP client to one engine, whatever the address says, and does not log that."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    def endpointForURI(self, uri: Any) -> Any:
        return self

    def connect(self, factory: Any) -> Any:
        factory.noisy = False
        return self._endpoint.connect(factory)
