"""A proxy in front of an engine's socket that can be as bad as an engine gets.

It knows where one call ends and the next begins, and strikes chosen ones: never passes a call on,
answers in the engine's stead, keeps the answer back, passes on only its first bytes, and then
hangs or cuts.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import select
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import attrs
from twisted.internet import interfaces, protocol, reactor
from zope.interface import implementer

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_NUMBERS = itertools.count()

#: The calls that a sandbox's life consists of, as patterns for `Fault.call`.
VERSION = r"GET /version"
CREATE = r"POST /containers/create"
INSPECT = r"GET /containers/[^/]+/json"
ATTACH = r"POST /containers/[^/]+/attach"
START = r"POST /containers/[^/]+/start"
REMOVE = r"DELETE /containers/"
LIST = r"GET /containers/json"
EXEC_CREATE = r"POST /containers/[^/]+/exec"
EXEC_START = r"POST /exec/[^/]+/start"
EXEC_INSPECT = r"GET /exec/[^/]+/json"
EXEC = r"POST (/containers/[^/]+/exec|/exec/[^/]+/start)"
ANY = ""


@attrs.define(eq=False)
class Fault:
    """What becomes of the calls that match.

    ``call``: a pattern for the beginning of ``METHOD /path``, without the API's version.
    ``answer``: sent instead of the engine's own; the engine never hears of the call.
    ``delay``: seconds until the call is passed on.
    ``after``: bytes of the answer, its head included, that are passed on; then ``then`` happens:
    ``"hang"`` or ``"cut"``. With 0 the engine does what it is asked and nobody learns of it.
    ``is_lost``: the call itself does not reach the engine, and is never answered.
    ``times``: how many calls it strikes; None for all of them.
    """

    call: str
    answer: bytes | None = None
    delay: float = 0.0
    after: int | None = None
    then: str = "cut"
    is_lost: bool = False
    times: int | None = None
    struck: int = 0

    def strikes(self, call: str) -> bool:
        """Whether it is this call's turn; counts."""
        if self.times is not None and self.struck >= self.times:
            return False
        if re.match(self.call, call) is None:
            return False
        self.struck += 1
        return True


def refusal(status: int, message: str) -> bytes:
    """An engine's answer that it could not do it."""
    return _answer(status, json.dumps({"message": message}).encode() + b"\n")


def half_json(text: str = '{"Id": "0123', status: int = 200) -> bytes:
    """A whole answer with half of what should be in it."""
    return _answer(status, text.encode())


def _answer(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} Told\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


OUT_OF_DISK = refusal(
    500, "mkdir /var/lib/docker/overlay2/0123456789abcdef-init: no space left on device"
)
OUT_OF_PIDS = refusal(
    500,
    "failed to create shim: OCI runtime create failed: runc create failed: unable to start "
    "container process: can't copy bootstrap data to pipe: fork/exec: resource temporarily "
    "unavailable: unknown",
)


class BadEngine:
    """Listens at ``path`` for the engine at ``target``; both are paths of Unix sockets.

    ``seen`` counts the calls that came.
    """

    def __init__(self, target: str, path: str) -> None:
        self.target = target
        self.path = path
        self.faults: list[Fault] = []
        self.seen: Counter[str] = Counter()
        self._connections: set[_FromMaster] = set()
        self._port: Any = None

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    @property
    def connected(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def up(self) -> None:
        """Listen."""
        factory = protocol.Factory.forProtocol(lambda: _FromMaster(self))
        factory.noisy = False
        self._port = reactor.listenUNIX(self.path, factory)  # type: ignore[attr-defined]

    async def down(self) -> None:
        """Nobody listens any more, and what was open is cut."""
        port, self._port = self._port, None
        if port is not None:
            await port.stopListening()
        self.cut()

    def strike(self, call: str, **more: Any) -> Fault:
        """From now on; of several faults that match the first one strikes."""
        fault = Fault(call, **more)
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """No fault strikes any more; what hangs goes on hanging."""
        self.faults.clear()

    def cut(self, call: str = ANY) -> int:
        """Cut the connections whose latest call matches: how many."""
        cut = [each for each in self._connections if re.match(call, each.call)]
        for connection in cut:
            connection.cut()
        return len(cut)

    def cut_one(self, call: str, chance: random.Random) -> None:
        """Cut one of them, by chance."""
        found = [each for each in self._connections if re.match(call, each.call)]
        if found:
            chance.choice(sorted(found, key=lambda each: each.number)).cut()

    def fault_of(self, call: str) -> Fault | None:
        self.seen[call.partition(" ")[0]] += 1
        return next((fault for fault in self.faults if fault.strikes(call)), None)


@implementer(interfaces.IHalfCloseableProtocol)
class _FromMaster(protocol.Protocol):
    """One connection of the master's, and through `_ToEngine` its other half."""

    transport: Any

    def __init__(self, bad: BadEngine) -> None:
        self._bad = bad
        self._buffer = b""
        self._body_left = 0
        self._is_raw = self._upgrades = False
        self._engine = _ToEngine(self)
        self.call = ""
        self.number = next(_NUMBERS)

    def connectionMade(self) -> None:
        self._bad._connections.add(self)
        factory = protocol.ClientFactory()
        factory.noisy = False
        factory.protocol = lambda: self._engine  # type: ignore[assignment]
        factory.clientConnectionFailed = lambda *_: self.cut()  # type: ignore[method-assign]
        reactor.connectUNIX(self._bad.target, factory)  # type: ignore[attr-defined]

    def connectionLost(self, reason: Any = None) -> None:
        self._bad._connections.discard(self)
        self._engine.give_up()

    def cut(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()
        self._engine.give_up()

    def readConnectionLost(self) -> None:
        """It sends no more, or is gone: then nobody waits for what the engine may never answer."""
        self._engine.end_of_input()
        if self._is_gone():
            reactor.callLater(1, self.cut)  # type: ignore[attr-defined]

    def _is_gone(self) -> bool:
        if self.transport.fileno() < 0:
            return False  # It is us who are gone, as after `cut`.
        looking = select.poll()
        looking.register(self.transport.fileno(), 0)
        return any(event & select.POLLHUP for _, event in looking.poll(0))

    def writeConnectionLost(self) -> None:
        """We said it ourselves."""

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer and self._one_part():
            pass

    def _one_part(self) -> bool:
        """A head, or some of a body; whether there may be more."""
        if self._is_raw or self._body_left:
            size = len(self._buffer) if self._is_raw else self._body_left
            part, self._buffer = self._buffer[:size], self._buffer[size:]
            self._body_left = 0 if self._is_raw else self._body_left - len(part)
            self._is_raw = self._is_raw or (self._upgrades and not self._body_left)
            self._engine.send(part)
            return True
        head, end, _ = self._buffer.partition(_HEAD_END)
        if not end:
            return False
        self._buffer = self._buffer[len(head) + len(end) :]
        self._head(head + end)
        return True

    def _head(self, head: bytes) -> None:
        method, path, _ = head.split(b" ", 2)
        length = _LENGTH.search(head)
        self._body_left = int(length[1]) if length else 0
        self._upgrades = _UPGRADE.search(head) is not None
        self._is_raw = self._upgrades and not self._body_left
        self.call = f"{method.decode()} {re.sub(r'^/v[0-9.]+', '', path.decode())}"
        self._strike(self._bad.fault_of(self.call), head)

    def _strike(self, fault: Fault | None, head: bytes) -> None:
        self._engine.begin(fault)
        if fault is not None and fault.answer is not None:
            self._is_raw = False
            self.transport.write(fault.answer)
            if self._upgrades:
                self.transport.loseConnection()
        elif fault is not None and fault.delay:
            reactor.callLater(fault.delay, self._engine.release)  # type: ignore[attr-defined]
        self._engine.send(head)


@implementer(interfaces.IHalfCloseableProtocol)
class _ToEngine(protocol.Protocol):
    """The same connection's way to the engine; what the current call's fault lets through."""

    transport: Any

    def __init__(self, client: _FromMaster) -> None:
        self._client = client
        self._waiting = b""
        self._is_held = False
        self._fault: Fault | None = None
        self._left: int | None = None
        self._input_is_over = self._output_is_over = False
        self._is_over = False

    # towards the engine

    def begin(self, fault: Fault | None) -> None:
        """A call begins."""
        self._fault = fault
        self._left = None if fault is None else fault.after
        self._is_held = fault is not None and fault.delay > 0

    def release(self) -> None:
        """It was delayed long enough."""
        self._is_held = False
        self._flush()

    def send(self, data: bytes) -> None:
        if self._fault is not None and (self._fault.answer is not None or self._fault.is_lost):
            return
        self._waiting += data
        self._flush()

    def end_of_input(self) -> None:
        self._input_is_over = True
        self._flush()

    def _flush(self) -> None:
        if self.transport is None or self._is_held or self._is_over:
            return
        data, self._waiting = self._waiting, b""
        self.transport.write(data)
        if self._input_is_over:
            self.transport.loseWriteConnection()
            self._close_if_over()

    def _close_if_over(self) -> None:
        """Twisted does not close what is half-closed on both sides."""
        if self._input_is_over and self._output_is_over:
            self._client.transport.loseConnection()
            self.transport.loseConnection()

    def give_up(self) -> None:
        self._is_over = True
        if self.transport is not None:
            self.transport.abortConnection()

    # from the engine

    def connectionMade(self) -> None:
        if self._is_over:
            self.transport.abortConnection()
            return
        self.transport.registerProducer(self._client.transport, True)
        self._client.transport.registerProducer(self.transport, True)
        self._flush()

    def dataReceived(self, data: bytes) -> None:
        if self._is_over:
            return
        if self._left is None:
            self._client.transport.write(data)
            return
        part, self._left = data[: self._left], max(0, self._left - len(data))
        self._client.transport.write(part)
        if len(part) < len(data) or not self._left:
            self._passed_on()

    def _passed_on(self) -> None:
        """So much of the answer, and no more."""
        if self._fault is not None and self._fault.then == "cut":
            # What was passed on is to arrive: no reset.
            self._client.transport.unregisterProducer()
            self._client.transport.loseConnection()
            self.give_up()

    def readConnectionLost(self) -> None:
        self._output_is_over = True
        self._client.transport.loseWriteConnection()
        self._close_if_over()

    def writeConnectionLost(self) -> None:
        """We said it ourselves."""

    def connectionLost(self, reason: Any = None) -> None:
        if self._client.transport is not None:
            self._client.transport.unregisterProducer()
            if not self._is_over:
                self._client.transport.loseConnection()
        self._is_over = True


@contextlib.asynccontextmanager
async def behind_a_proxy(target: str) -> AsyncIterator[BadEngine]:
    """The engine at a socket's path behind a proxy, for the length of a block."""
    folder = tempfile.mkdtemp(prefix="bad-")  # A socket's path has to be short.
    proxy = BadEngine(target, f"{folder}/sock")
    proxy.up()
    try:
        yield proxy
    finally:
        await proxy.down()
        shutil.rmtree(folder)
