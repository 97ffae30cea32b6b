"""Where a master's audit log goes: each event to every sink, and a word when one fails.

An event is written before the call that told of it returns, so that the file has everything up to
the moment of a crash; ``twistd.log`` beside it is written in the same way.
Syslog may stall, so its lines go through a thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging.handlers
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import attrs
from twisted.internet import threads
from twisted.python.failure import Failure

from sandboxworker.audit import Event
from sandboxworker.auditfile import FILE, KEEP, ROTATE_AT, AuditFile
from sandboxworker.policy import parse_size
from sandboxworker.unexpected import unexpected

#: Lines kept for a sink that fails; the oldest are given up.
PENDING = 1000
#: Seconds until a sink that fails is tried again without a new event.
RETRY_SECONDS = 30.0
#: Seconds that syslog has for what is left at the end.
_SYSLOG_END = 2.0
_SYSLOG_LOOK = 0.5
SYSLOG_SOCKET = "/dev/log"
#: What ``journalctl -t`` and syslog's own filters know the lines by.
SYSLOG_NAME = "sandboxworker"

_SMALLEST, _LARGEST = 4096, 2**40


class Sink(Protocol):
    """One place that lines go to."""

    @property
    def name(self) -> str:
        """For people."""

    def open(self) -> str:
        """Begin; what was found torn at the end of it. Raises `OSError`."""

    def write(self, line: str) -> None:
        """Take a line, whole, or raise `OSError`."""

    async def close(self) -> int:
        """Nothing more will come; how many lines that it took got nowhere."""


# ---- what the operator asks for ------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class AuditSettings:
    """Where the audit log goes.

    ``file``: a path, relative to the master's directory; None for no file.
    ``rotate_at``: size of a file, such as ``"16m"``; ``keep``: full files kept beside it.
    ``syslog``: True for the machine's own syslog or journal (``/dev/log``), or another Unix
    socket's path.
    """

    file: Any = FILE
    rotate_at: Any = ROTATE_AT
    keep: Any = KEEP
    syslog: Any = False

    def faults(self) -> list[str]:
        """Everything that is wrong with it, a sentence each."""
        checks = [
            (
                self.file is None or (isinstance(self.file, str) and self.file != ""),
                f"file={self.file!r}: a path, or None for no file",
            ),
            (
                (parse_size(self.rotate_at) or 0) in range(_SMALLEST, _LARGEST),
                f"rotate_at={self.rotate_at!r}: a size from 4k to 1t, such as '16m'",
            ),
            (
                type(self.keep) is int and 0 <= self.keep <= 9999,
                f"keep={self.keep!r}: a number of files from 0 to 9999",
            ),
            (
                isinstance(self.syslog, bool) or str(self.syslog).startswith("/"),
                f"syslog={self.syslog!r}: True, False, or the absolute path of a Unix socket",
            ),
            (
                self.file is not None or self.syslog is not False,
                "file=None without syslog=: the audit log has to go somewhere",
            ),
        ]
        return [fault for is_right, fault in checks if not is_right]

    def sinks(self, basedir: Path, *, is_shared: bool) -> list[Sink]:
        """``is_shared``: another master has the directory, and looks after its file."""
        sinks: list[Sink] = []
        if self.file is not None:
            rotate_at = parse_size(self.rotate_at) or ROTATE_AT
            file = AuditFile(basedir / self.file, rotate_at, self.keep, is_shared)
            sinks.append(_FileSink(file))
        if self.syslog is not False:
            sinks.append(SyslogSink(SYSLOG_SOCKET if self.syslog is True else str(self.syslog)))
        return sinks


# ---- the log -------------------------------------------------------------------------------------


class AuditLog:
    """The audit log of one master.

    ``say``: writes a line to ``twistd.log``; ``now``: seconds since the epoch.
    """

    def __init__(
        self,
        master: str,
        reactor: Any,
        say: Callable[[str], Any],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._master = master
        self._reactor = reactor
        self._say = say
        self._now = now
        self._outlets: list[_Outlet] = []
        self._retry: Any = None
        #: Told of each event in this process, once it is written.
        self.listeners: list[Callable[[Event], None]] = []

    async def use(self, sinks: Iterable[Sink]) -> None:
        """Write to these from now on, and to no other."""
        former, self._outlets = self._outlets, [_Outlet(sink, self._say) for sink in sinks]
        for outlet in former:
            await outlet.close()
        for outlet in self._outlets:
            torn = outlet.open()
            if torn:
                self.record(Event("audit.mended", fields={"sink": outlet.name, "torn": torn}))

    def record(self, event: Event) -> None:
        """Write an event down; never fails."""
        line = self._line(event)
        for outlet in self._outlets:
            outlet.give(line)
        self._drain()
        self._tell(event)

    def _tell(self, event: Event) -> None:
        try:
            for listener in self.listeners:
                listener(event)
        except Exception:  # Whoever tells of an event must not fail for it.
            unexpected(f"counting {event.name}")(Failure())

    def _line(self, event: Event) -> str:
        return event.json_line(self._now(), self._master)

    def _drain(self) -> None:
        for outlet in self._outlets:
            lost = outlet.drain()
            if lost:
                told = Event("audit.lost", fields={"sink": outlet.name, "count": lost})
                outlet.give(self._line(told))
                outlet.drain()
                self._tell(told)
        if self._retry is None and any(outlet.has_pending for outlet in self._outlets):
            self._retry = self._reactor.callLater(RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._drain()

    async def close(self) -> None:
        """Write what is left, and let go of every sink."""
        self._drain()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        await self.use(())


class _Outlet:
    """One sink, and what it has not taken yet; tells once that it fails, and once that it works."""

    def __init__(self, sink: Sink, say: Callable[[str], Any]) -> None:
        self._sink = sink
        self._say = say
        self._pending: deque[str] = deque()
        self._given_up = 0
        self._is_failing = False

    @property
    def name(self) -> str:
        return self._sink.name

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    def open(self) -> str:
        try:
            return self._sink.open()
        except OSError as error:
            self._fails(error)
            return ""

    def give(self, line: str) -> None:
        self._pending.append(line)
        if len(self._pending) > PENDING:
            self._pending.popleft()
            self._given_up += 1

    def drain(self) -> int:
        """Write what waits; once that works again, how many lines were given up meanwhile."""
        try:
            while self._pending:
                self._sink.write(self._pending[0])
                self._pending.popleft()
        except OSError as error:
            self._fails(error)
            return 0
        given_up, self._given_up = self._given_up, 0
        if self._is_failing:
            self._is_failing = False
            self._say(
                f"sandboxworker: the audit log is written to {self.name} again; "
                f"{given_up} entries were lost"
            )
        return given_up

    def _fails(self, error: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            self._say(
                f"sandboxworker: the audit log cannot be written to {self.name}: "
                f"{error.strerror or error}. Builds go on; the last {PENDING} entries are kept "
                "until it can"
            )

    async def close(self) -> None:
        lost = self._given_up + len(self._pending) + await self._sink.close()
        if lost:
            self._say(f"sandboxworker: {lost} entries of the audit log never reached {self.name}")


# ---- sinks ---------------------------------------------------------------------------------------


class _FileSink:
    """A file; blocking, as ``twistd.log`` is."""

    def __init__(self, file: AuditFile) -> None:
        self._file = file

    @property
    def name(self) -> str:
        return str(self._file.path)

    def open(self) -> str:
        return self._file.open()

    def write(self, line: str) -> None:
        self._file.write(line)

    async def close(self) -> int:
        self._file.close()
        return 0


class _Handler(logging.handlers.SysLogHandler):
    """Lets its errors out: this is called where they are being handled."""

    append_nul = False
    ident = f"{SYSLOG_NAME}: "

    def handleError(self, record: logging.LogRecord) -> None:
        raise


class SyslogSink:
    """A syslog daemon's Unix socket, or the journal's, which is the same.

    A thread waits for it; a line that it does not take stays in the thread's hands until it does.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lines: queue.Queue[str | None] = queue.Queue(PENDING)
        self._ends = threading.Event()
        self._error: OSError | None = None
        self._unsent = 0
        self._handler: _Handler | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"sandboxworker audit {path}", daemon=True
        )

    @property
    def name(self) -> str:
        return f"syslog at {self._path}"

    def open(self) -> str:
        self._thread.start()
        return ""

    def write(self, line: str) -> None:
        # What is in the thread's hands is not lost, but that it cannot go on has to be told.
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror)
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            raise OSError(errno.EAGAIN, "it takes none, or not fast enough") from None

    async def close(self) -> int:
        self._ends.set()
        with contextlib.suppress(queue.Full):  # Then it looks by itself.
            self._lines.put_nowait(None)
        await threads.deferToThread(self._thread.join, _SYSLOG_END)
        return self._unsent

    # in the thread

    def _run(self) -> None:
        while not (self._ends.is_set() and self._lines.empty()):
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=_SYSLOG_LOOK)
                if line is not None:
                    self._send(line)
        if self._handler is not None:
            self._handler.close()

    def _send(self, line: str) -> None:
        """Send a line, however often it takes, unless the end comes first."""
        self._unsent += 1
        while not self._is_sent(line):
            if self._ends.wait(_SYSLOG_LOOK):
                return
        self._unsent -= 1

    def _is_sent(self, line: str) -> bool:
        try:
            self._handler = self._handler or _Handler(self._path)
            self._handler.emit(_record(line))
        except OSError as error:
            self._error = error
            return False
        self._error = None
        return True


def _record(line: str) -> logging.LogRecord:
    return logging.LogRecord(SYSLOG_NAME, logging.INFO, "", 0, line, None, None)
