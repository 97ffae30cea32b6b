"""Attach and exec streams, driven by the reactor.

Speaks the HTTP upgrade of the Docker Engine API (``ContainerAttach``, ``ExecStart``) and takes
the connection over from there, so that no byte that arrives with the response head is lost
and no thread waits for output.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any

from twisted.internet import defer, error, interfaces, protocol
from twisted.python.failure import Failure

from sandboxworker.engine.interface import STDERR, STDOUT, StreamReceiver
from sandboxworker.errors import EngineError, EngineRefused, EngineUnreachable

_HEAD_END = b"\r\n\r\n"
_MAX_HEAD = 64 * 1024
#: Bytes that one look at the connection takes at most; Twisted's own is 64 KiB.
_READ_SIZE = 256 * 1024
_FRAME = struct.Struct(">BxxxI")


def upgrade_request(path: str, host: str, body: dict[str, Any] | None) -> bytes:
    """The request that turns an HTTP connection into a raw stream."""
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def engines_words(body: bytes) -> str:
    """Why an engine refused, by its answer: ``{"message": "…"}``, perhaps chunked."""
    start, end = body.find(b"{"), body.rfind(b"}")
    try:
        return str(json.loads(body[start : end + 1])["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace").strip() or "no reason given"


class EngineStream(protocol.Protocol):
    """One hijacked connection: first the answer's head, then frames (or raw bytes on a terminal).

    ``opened`` fires with this object when the engine has accepted, or fails with an
    `EngineError`; only after that does the receiver hear anything.
    """

    transport: Any

    def __init__(
        self, engine: str, call: str, request: bytes, receiver: StreamReceiver, *, tty: bool
    ) -> None:
        self._engine = engine
        self._call = call
        self._request = request
        self._receiver: StreamReceiver | None = receiver
        self._tty = tty
        self._buffer = bytearray()
        self._channel = STDOUT
        self._frame_left = 0
        self.opened: defer.Deferred[EngineStream] = defer.Deferred(lambda _: self.abort())
        self._is_open = False

    # Twisted's side

    def connectionMade(self) -> None:
        self.transport.bufferSize = _READ_SIZE
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        if self._is_open:
            self._deliver(data)
            return
        self._buffer += data
        if _HEAD_END in self._buffer:
            self._head_received()
        if not self._is_open and len(self._buffer) > _MAX_HEAD:
            self._refuse(0, "its answer is no HTTP, or has no end")

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        if not self._is_open:
            self._hung_up()
        elif self._receiver is not None:
            receiver, self._receiver = self._receiver, None
            cut = self._frame_left > 0 or bool(self._buffer)
            clean = reason.check(error.ConnectionDone) and not cut
            receiver.stream_ended(None if clean else _why(reason, cut))

    def _hung_up(self) -> None:
        """Before the stream was open: with a refusal that ended by the hang-up, or with nothing."""
        head, end, rest = bytes(self._buffer).partition(_HEAD_END)
        if end and self._status(head):
            self._refuse(self._status(head), engines_words(rest))
        else:
            self._fail(EngineUnreachable(self._engine, f"it hung up during {self._call!r}"))

    # the answer's head

    def _head_received(self) -> None:
        head, _, rest = bytes(self._buffer).partition(_HEAD_END)
        status = self._status(head)
        if status not in (101, 200):
            if self._is_whole(head, rest):
                self._refuse(status, engines_words(rest))
            return
        self._buffer.clear()
        self._is_open = True
        opened = self.opened
        opened.callback(self)
        if rest:
            self._deliver(rest)

    @staticmethod
    def _status(head: bytes) -> int:
        parts = head.split(b"\r\n", 1)[0].split(b" ", 2)
        return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0

    @staticmethod
    def _is_whole(head: bytes, body: bytes) -> bool:
        """Whether the whole of a refusal has arrived, and with it the reason."""
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        return len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")

    def _refuse(self, status: int, message: str) -> None:
        self._fail(EngineRefused(self._engine, self._call, status, message))
        self.abort()

    def _fail(self, why: EngineError) -> None:
        if not self.opened.called:
            self.opened.errback(why)

    # the stream

    def _deliver(self, data: bytes) -> None:
        """Frames of one channel that arrived together are given together."""
        if self._tty:
            self._give(data)
            return
        data = bytes(self._buffer) + data if self._buffer else data
        self._buffer.clear()
        at, parts = 0, list[bytes]()
        while at < len(data) and self._receiver is not None:
            if self._frame_left:
                part = data[at : at + self._frame_left]
                parts.append(part)
                at += len(part)
                self._frame_left -= len(part)
                continue
            if len(data) - at < _FRAME.size:
                self._buffer += data[at:]
                break
            channel, self._frame_left = _FRAME.unpack_from(data, at)
            at += _FRAME.size
            if channel != self._channel:
                self._give(b"".join(parts))
                parts, self._channel = [], channel
            if channel not in (STDOUT, STDERR):
                self._garbled()
        self._give(b"".join(parts))

    def _garbled(self) -> None:
        """What comes is no frame: nothing that follows can be told apart."""
        receiver, self._receiver = self._receiver, None
        self.transport.abortConnection()
        if receiver is not None:
            receiver.stream_ended(error.ConnectionLost(f"a frame of channel {self._channel} came"))

    def _give(self, data: bytes) -> None:
        if self._receiver is not None and data:
            self._receiver.stream_received(STDOUT if self._tty else self._channel, data)

    # our side (see `interface.Stream`)

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def register_producer(self, producer: Any, streaming: bool) -> None:
        self.transport.registerProducer(producer, streaming)

    def unregister_producer(self) -> None:
        self.transport.unregisterProducer()

    def close_write(self) -> bool:
        # Over TLS the descriptor below would be half-closed behind TLS's back.
        if interfaces.ISSLTransport.providedBy(self.transport):
            return False
        self.transport.loseWriteConnection()
        return True

    def pause(self) -> None:
        self.transport.pauseProducing()

    def resume(self) -> None:
        self.transport.resumeProducing()

    def abort(self) -> None:
        self._receiver = None
        if self.transport is not None:
            self.transport.abortConnection()


def _why(reason: Failure, cut: bool) -> Exception:
    """Why a stream is over that should not be."""
    if cut and reason.check(error.ConnectionDone):
        return error.ConnectionLost("it was cut inside a frame")
    return reason.value if isinstance(reason.value, Exception) else error.ConnectionLost()
