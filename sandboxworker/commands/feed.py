"""A download's bytes on their way into a command's stdin, read as the sandbox takes them."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet import defer


def known_size(reader: Any) -> int | None:
    """Bytes that a master's reader has yet to give; None where it reads no regular file."""
    try:
        file = reader.impl.fp
        status = os.fstat(file.fileno())
        return status.st_size - int(file.tell()) if stat.S_ISREG(status.st_mode) else None
    except (AttributeError, OSError, ValueError):
        return None


class Feed:
    """``size`` bytes for a command's stdin (see `process.SandboxProcess`), as a push producer.

    ``read(most)``: the next bytes, at most so many; nothing where no more will come.
    ``give_up()`` is called when that is before ``size``: the command waits in vain.
    """

    def __init__(
        self, size: int, read: Callable[[int], Awaitable[bytes]], give_up: Callable[[], None]
    ) -> None:
        self.size = size
        self._read = read
        self._give_up = give_up
        self._is_over = False
        self._paused: defer.Deferred[None] | None = None

    def begin(self, consumer: Any) -> defer.Deferred[None]:
        """Send it all to a Twisted consumer; fires when there is nothing more to send.

        Fails with `EOFError` where it ended early, or with what ``read`` raised.
        """
        consumer.registerProducer(self, True)
        return defer.ensureDeferred(self._send(consumer))

    async def _send(self, consumer: Any) -> None:
        left = self.size
        try:
            while left and not self._is_over:
                left -= await self._send_some(consumer, left)
        finally:
            if left and not self._is_over:
                self._give_up()
            consumer.unregisterProducer()

    async def _send_some(self, consumer: Any, most: int) -> int:
        """How many bytes. Raises `EOFError` where there are none."""
        data = await self._read(most)
        if not data:
            raise EOFError
        consumer.write(data)
        if self._paused is not None:
            await self._paused
        return len(data)

    def pauseProducing(self) -> None:
        if self._paused is None:
            self._paused = defer.Deferred()

    def resumeProducing(self) -> None:
        paused, self._paused = self._paused, None
        if paused is not None:
            paused.callback(None)

    def stopProducing(self) -> None:
        self._is_over = True
        self.resumeProducing()
