"""``uploadFile`` and ``downloadFile``: streamed, bounded, and never trusted."""

from __future__ import annotations

import io
import posixpath
import tempfile
from typing import IO, Any

from buildbot_worker.commands.transfer import (
    TransferCommand,
    WorkerDirectoryUploadCommand,
    WorkerFileDownloadCommand,
    WorkerFileUploadCommand,
)
from twisted.internet import defer, threads
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from sandboxworker.commands.archive import ArchiveRefused, Limits, rewrite
from sandboxworker.commands.base import last_words, told_by_stat
from sandboxworker.commands.feed import Feed, known_size
from sandboxworker.limits import FULL_WORDS, was_full
from sandboxworker.process import SandboxProcess, spawn_process
from sandboxworker.secrets import found_in, refuse_content

#: Bytes of a download that go through one exec, and are held in memory meanwhile.
_PORTION = 8 * 1024 * 1024

#: Regular files only: a FIFO would keep us waiting, and a device has no end.
_READ = '[ -f "$1" ] && [ -r "$1" ] || exit 66; exec cat -- "$1"'
_NO_FILE = 66

_PACK = '[ -d "$1" ] || exit 66; cd -- "$1" && exec tar -cf - .'
#: GNU tar's exit code when a file changed while it was read.
_CHANGED_MEANWHILE = 1
_FETCH_BLOCK = 256 * 1024
#: Bytes that are held before they are passed on, whatever a step asks for.
_LARGEST_BLOCK = 1024 * 1024
#: Bytes that two times take.
_MAX_TIMES = 64
#: Bytes of headers and padding a member may have, long names included.
_TAR_OVERHEAD = 8 * 1024

#: $1 the file, $2 its mode or nothing. A file with a mode of its own is never wider on the way.
_CREATE = """\
d=${1%/*}; [ -d "$d" ] || mkdir -p -- "$d" || exit 1
[ -z "$2" ] || umask 077
: >"$1" || exit 1
[ -z "$2" ] || chmod "$2" -- "$1" || exit 1
cat >"$1"
"""
_APPEND = 'cat >>"$1"'


class UploadFile(WorkerFileUploadCommand):
    """``uploadFile``: a regular file of the sandbox's, to the master's writer.

    Stops at the step's ``maxsize`` and at the policy's limits while the bytes arrive.
    """

    stderr: str | None
    _process: SandboxProcess | None = None

    def start(self) -> defer.Deferred[Any]:
        self.sendStatus([("header", f"sending {self.path}\n")])
        uploading = defer.ensureDeferred(self._upload())
        uploading.addBoth(self.finished)
        return uploading

    async def _upload(self) -> None:
        budget = self.protocol_command.budget
        self._fail(budget.upload_file())
        times = await self._times() if self.keepstamp else None
        try:
            if self.stderr is None:
                await self._send()
        finally:
            await self.protocol_command.protocol_update_upload_file_close(self.writer)
        if times is not None:
            await self.protocol_command.protocol_update_upload_file_utime(self.writer, *times)

    async def _times(self) -> tuple[int, int] | None:
        run = self.protocol_command.run
        words = (await told_by_stat(run, self.path, "%X %Y", _MAX_TIMES)).stdout.split()
        if len(words) != 2 or not all(word.isdigit() and len(word) < 11 for word in words):
            return None
        return int(words[0]), int(words[1])

    async def _send(self) -> None:
        sender = _Sender(self.blocksize, self._write)
        argv = ("/bin/sh", "-c", _READ, "sh", self.path)
        self._process = spawn_process(self.protocol_command.sandbox, sender, argv)
        code = await sender.over
        if code != 0 and self.stderr is None:
            self._fail(
                f"Cannot open file '{self.path}' for upload"
                if code == _NO_FILE
                else f"Cannot read file '{self.path}' for upload"
            )

    async def _write(self, block: bytes) -> bool:
        """Hand a block to the master; whether more is wanted."""
        if self.interrupted:
            return False
        # A file of exactly that size fails as well, as it does on Buildbot's own worker.
        too_much = self.remaining is not None and len(block) >= self.remaining
        if too_much:
            block = block[: self.remaining]
            self._fail(f"Maximum filesize reached, truncating file '{self.path}'")
        self._fail(self.protocol_command.budget.upload(len(block)))
        if self.stderr is not None and not too_much:
            return False
        if self.remaining is not None:
            self.remaining -= len(block)
        if block:
            await self.do_protocol_write(block)
        return not too_much

    def _fail(self, why: str | None) -> None:
        if why is not None and self.stderr is None:
            self.stderr, self.rc = why, 1

    def interrupt(self) -> None:
        super().interrupt()
        self.protocol_command.drop_tools()
        if self._process is not None:
            self._process.abandon()


class _Sender(ProcessProtocol):
    """Passes a process's output on in whole blocks, and lets it wait while one is under way."""

    transport: Any

    def __init__(self, blocksize: int, write: Any) -> None:
        self._blocksize = min(blocksize, _LARGEST_BLOCK)
        self._write = write
        self._buffer = bytearray()
        self._busy = False
        self._ended: Failure | None = None
        self.over: defer.Deferred[int | None] = defer.Deferred()

    def connectionMade(self) -> None:
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self._buffer += data
        if not self._busy and len(self._buffer) >= self._blocksize:
            self.transport.pauseProducing()
            self._begin()

    def _begin(self) -> None:
        self._busy = True
        passing = defer.ensureDeferred(self._pass_on())
        passing.addErrback(self._failed)

    def _is_due(self) -> bool:
        """Whether there is a whole block, or the last one."""
        is_last = self._ended is not None and bool(self._buffer)
        return is_last or len(self._buffer) >= self._blocksize

    async def _pass_on(self) -> None:
        while self._is_due():
            block = bytes(self._buffer[: self._blocksize])
            del self._buffer[: len(block)]
            if not await self._write(block):
                self._stop()
                return
        self._busy = False
        self._finish_or_go_on()

    def _stop(self) -> None:
        """No more is wanted."""
        self._end_reader()
        self._tell(0)

    def _failed(self, failure: Failure) -> None:
        self._end_reader()
        if not self.over.called:
            self.over.errback(failure)

    def _end_reader(self) -> None:
        """The process inside may have far to read yet; it is not waited for."""
        self.transport.abandon()

    def processEnded(self, reason: Failure) -> None:
        self._ended = reason
        if not self._busy:
            self._begin()

    def _finish_or_go_on(self) -> None:
        if self._ended is None:
            self.transport.resumeProducing()
        else:
            self._tell(getattr(self._ended.value, "exitCode", None))

    def _tell(self, code: int | None) -> None:
        if not self.over.called:
            self.over.callback(code)


class UploadDirectory(WorkerDirectoryUploadCommand):
    """``uploadDirectory``: regular files and directories, in an archive that is written here.

    The image's ``tar`` fills a temporary file up to the policy's limits; what is in it is checked
    and written anew (`archive.rewrite`), in a thread; Buildbot unpacks only the result.
    """

    stderr: str | None
    _process: SandboxProcess | None = None

    def start(self) -> defer.Deferred[Any]:
        uploading = defer.ensureDeferred(self._upload())
        uploading.addErrback(self._refused)
        uploading.addBoth(lambda result: TransferCommand.finished(self, result))
        return uploading

    async def _upload(self) -> None:
        limits = self._limits()
        with tempfile.TemporaryFile() as raw, tempfile.TemporaryFile() as checked:
            await self._fetch(raw, limits.size + limits.files * _TAR_OVERHEAD)
            left_out: list[str] = []
            await threads.deferToThread(
                rewrite, raw, checked, self.compress, limits, left_out.append
            )
            self._count(limits)
            self.sendStatus([("header", f"sending {self.path}\n")])
            self._tell(left_out)
            checked.seek(0)
            await self._send(checked)
        await self._unpack()

    async def _unpack(self) -> None:
        try:
            await self.protocol_command.protocol_update_upload_directory(self.writer)
        except OSError as error:
            # What an earlier build left there may contradict: no more than a step that fails.
            raise ArchiveRefused(f"the master cannot unpack it: {error.strerror}") from None

    def _limits(self) -> Limits:
        budget = self.protocol_command.budget
        size = max(0, budget.policy.max_upload - budget.uploaded)
        files = max(0, budget.policy.max_upload_files - budget.uploaded_files)
        return Limits(size if self.remaining is None else min(size, self.remaining), files)

    async def _fetch(self, raw: IO[bytes], limit: int) -> None:
        async def write(block: bytes) -> bool:
            raw.write(block)
            return raw.tell() <= limit and not self.interrupted

        sender = _Sender(_FETCH_BLOCK, write)
        argv = ("/bin/sh", "-c", _PACK, "sh", self.path)
        self._process = spawn_process(self.protocol_command.sandbox, sender, argv)
        code = await sender.over
        if code == _NO_FILE:
            raise ArchiveRefused(f"[Errno 2] No such file or directory: '{self.path}'")
        if raw.tell() > limit:
            raise ArchiveRefused("it is larger than the policy's max_upload, or the step's maxsize")
        if code not in (0, _CHANGED_MEANWHILE):
            raise ArchiveRefused(f"the image's tar failed ({code})")
        raw.seek(0)

    def _count(self, limits: Limits) -> None:
        before, budget = self._limits(), self.protocol_command.budget
        budget.uploaded += before.size - limits.size
        budget.uploaded_files += before.files - limits.files

    def _tell(self, left_out: list[str]) -> None:
        if left_out:
            names = ", ".join(left_out[:10]) + (", …" if len(left_out) > 10 else "")
            self.sendStatus([("header", f"sandboxworker: no regular files, left out: {names}\n")])

    async def _send(self, checked: IO[bytes]) -> None:
        while not self.interrupted and (block := checked.read(self.blocksize)):
            await self.do_protocol_write(block)

    def interrupt(self) -> None:
        super().interrupt()
        if self._process is not None:
            self._process.abandon()

    def _refused(self, failure: Failure) -> None:
        failure.trap(ArchiveRefused)
        self.rc = 1
        self.stderr = f"Cannot read directory '{self.path}' for upload: {failure.value}"


class DownloadFile(WorkerFileDownloadCommand):
    """``downloadFile``: from the master's reader to a file in the sandbox.

    With its length told first, through one exec: that works over every transport.
    What has no length beforehand goes portion by portion, each through an exec of its own, and no
    more than one portion is held in memory.
    """

    _before = ""

    def interrupt(self) -> None:
        super().interrupt()
        self.protocol_command.drop_tools()

    def start(self) -> defer.Deferred[Any]:
        downloading = defer.ensureDeferred(self._download())
        downloading.addBoth(self.finished)
        return downloading

    async def _download(self) -> None:
        try:
            portion, more = await self._read_portion()
            size = known_size(self.reader) if more else None
            if size is not None:
                await self._put_whole(portion, size)
                return
            await self._put(_CREATE, portion)
            while more and self.rc == 0 and not self.interrupted:
                portion, more = await self._read_portion()
                if portion:
                    await self._put(_APPEND, portion)
        finally:
            await self.protocol_command.protocol_update_read_file_close(self.reader)

    def _carries_a_secret(self, portion: bytes) -> bool:
        """Whether it, or what stands across the border to the portion before, is withheld."""
        withheld = self.protocol_command.withheld
        if not withheld:
            return False
        text = self._before + portion.decode("utf-8", "replace")
        names = found_in(withheld, [text])
        self._before = text[-max(map(len, withheld)) :]
        for name in names:
            self.protocol_command.struck.refused.add("secret")
            self.protocol_command.sandbox.record("secret.refused", secret=name, path=self.path)
        if names:
            self.stderr, self.rc = f"sandboxworker: {refuse_content(names)}", 1
        return bool(names)

    async def _read_portion(self) -> tuple[bytes, bool]:
        """Up to a portion of the file, and whether there may be more."""
        portion = bytearray()
        while len(portion) < _PORTION and not self.interrupted:
            wanted = self._wanted()
            if wanted <= 0:
                self._too_large()
                return bytes(portion), False
            data = await self._read_block(wanted)
            if not data:
                return bytes(portion), False
            if self.bytes_remaining is not None:
                self.bytes_remaining -= len(data)
            portion += data
        return bytes(portion), True

    async def _put_whole(self, begin: bytes, left: int) -> None:
        """All in one exec: what was read already, and as much as the file has yet."""
        if self._carries_a_secret(begin):
            return
        most = left if self.bytes_remaining is None else min(left, self.bytes_remaining)
        is_cut = most < left
        waiting = [begin]

        async def read(wanted: int) -> bytes:
            if waiting:
                return waiting.pop()
            data = b"" if self.interrupted else await self._read_block(wanted)
            return b"" if self._carries_a_secret(data) else data

        feed = Feed(len(begin) + most, read, self.protocol_command.drop_tools)
        await self._run_put(_CREATE, feed)
        if is_cut and self.rc == 0:
            self._too_large()

    async def _read_block(self, most: int) -> bytes:
        wanted = min(self.blocksize, most)
        data = await self.protocol_command.protocol_update_read_file(self.reader, wanted)
        return data.encode() if isinstance(data, str) else bytes(data)

    def _too_large(self) -> None:
        self.stderr, self.rc = f"Maximum filesize reached, truncating file '{self.path}'", 1

    def _wanted(self) -> int:
        left = self.bytes_remaining
        return int(self.blocksize if left is None else min(self.blocksize, left))

    async def _put(self, script: str, portion: bytes) -> None:
        if not self._carries_a_secret(portion):
            await self._run_put(script, io.BytesIO(portion))

    async def _run_put(self, script: str, stdin: Any) -> None:
        mode = "" if self.mode is None else f"{self.mode:o}"
        completed = await self.protocol_command.run(
            ("/bin/sh", "-c", script, "sh", posixpath.normpath(self.path), mode),
            stdin=stdin,
        )
        if completed.exit_code != 0 and self.rc == 0:
            said = last_words(completed.stderr).rpartition(": ")[2]
            self.stderr = f"Cannot open file '{self.path}' for download" + (
                f": {said}" if said else ""
            )
            self.rc = 1
            self._tell_full(said)

    def _tell_full(self, said: str) -> None:
        struck = self.protocol_command.struck
        if said in FULL_WORDS:
            strike = was_full(struck.policy)
            self.stderr = f"{self.stderr}\n{strike}"
            struck.command_ended([strike], exit_code=self.rc, signal=None)
