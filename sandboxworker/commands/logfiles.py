"""``logfiles``: files that a command writes, read while it runs."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable
from typing import Any

from buildbot_worker.runprocess import LogFileWatcher
from twisted.internet import defer, task

from sandboxworker.process import run
from sandboxworker.sandbox import Sandbox
from sandboxworker.unexpected import unexpected

#: Bytes that one look takes; what is left is for the next.
_PORTION = 256 * 1024
#: A look that takes longer saw nothing: whoever took over ``tail`` shall not hold up the step.
_LOOK_SECONDS = 20.0

#: $1 the file, $2 where to begin (the first byte is 1), $3 how much: a line of ctime, mtime and
#: size, and then the bytes. GNU's stat fails under a gVisor that does not know all of statx(2)'s
#: flags (Debian 12's), and GNU's find does not.
_LOOK = """\
[ -f "$1" ] || exit 0
stat -L -c '%Z %Y %s' -- "$1" ||
find -L "$1" -maxdepth 0 -printf '%C@ %T@ %s\\n' | sed 's/\\.[0-9]*//g'
tail -c "+$2" -- "$1" | head -c "$3"
"""


class SandboxLogFile:
    """One file, by the rules of Buildbot's own `LogFileWatcher`.

    A file that is there before the command counts only once it has changed; ``follow`` leaves
    out what it held at that moment.
    """

    def __init__(
        self, sandbox: Sandbox, path: str, follow: bool, add: Callable[[str], None]
    ) -> None:
        self._sandbox = sandbox
        self._path = path
        self._follow = follow
        self._add = add
        self._decode = getincrementaldecoder("utf-8")(errors="replace").decode
        self._offset = 0
        self._before: bytes | None = None
        self._started = False
        self._poller = task.LoopingCall(self._poll)
        self._polling: defer.Deferred[Any] = defer.succeed(None)

    async def look_before(self) -> None:
        """Remember how it was; before the command starts."""
        self._before, _ = await self._look()

    def start(self) -> None:
        """Look again and again."""
        self._polling = self._poller.start(LogFileWatcher.POLL_INTERVAL, now=False)
        self._polling.addErrback(unexpected(f"following {self._path}"))

    def stop(self) -> None:
        """For `RunProcess`, which would have the rest read at once; see `last`."""

    async def last(self, is_enough: Callable[[], bool]) -> None:
        """Stop, and read what is left, until that is enough: who still writes may never end."""
        if self._poller.running:
            self._poller.stop()
        await self._polling
        while not is_enough() and await self._poll():
            pass

    def _poll(self) -> defer.Deferred[bool]:
        return defer.ensureDeferred(self._read())

    async def _read(self) -> bool:
        """Take a portion; whether there may be more."""
        state, data = await self._look()
        if not self._started and not self._begins(state):
            return False
        if self._follow and self._offset == 0 and state is not None:
            self._follow, self._offset = False, int(state.split()[2])
            return True
        self._offset += len(data)
        if data:
            self._add(self._decode(data))
        return len(data) == _PORTION

    def _begins(self, state: bytes | None) -> bool:
        if state == self._before:
            return False
        if state is None:  # It was there and is gone: the command makes a new one.
            self._before = None
            return False
        self._started = True
        return True

    async def _look(self) -> tuple[bytes | None, bytes]:
        """Its state (ctime, mtime, size) and what stands behind the offset; None if not there."""
        argv = ("/bin/sh", "-c", _LOOK, "sh", self._path, str(self._offset + 1), str(_PORTION))
        looking = run(self._sandbox, argv, limit=_PORTION + 128)
        looking.addTimeout(_LOOK_SECONDS, self._sandbox.reactor)
        completed = await looking
        state, newline, data = completed.stdout.partition(b"\n")
        if not newline or len(state.split()) != 3 or not state.replace(b" ", b"").isdigit():
            return None, b""
        return state, data
