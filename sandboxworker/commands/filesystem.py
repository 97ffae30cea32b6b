"""``mkdir``, ``rmdir``, ``rmfile``, ``stat``: the image's own tools, in Buildbot's words."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any

from buildbot_worker.commands import fs
from buildbot_worker.commands.base import Command
from twisted.internet import defer

from sandboxworker.commands.base import told_by_stat, told_error
from sandboxworker.commands.shell import SandboxRunProcess
from sandboxworker.process import Completed


class Tool(Command):
    """A command that is one small tool's work."""

    header = ""

    def start(self) -> defer.Deferred[None]:
        return defer.ensureDeferred(self.work())

    async def work(self) -> None:
        """Do it, and send the result."""
        raise NotImplementedError

    async def tool(self, *argv: str, **options: Any) -> Completed:
        completed: Completed = await self.protocol_command.run(argv, **options)
        return completed

    def interrupt(self) -> None:
        self.protocol_command.drop_tools()

    def failed(self, path: str, completed: Completed) -> None:
        """Upstream's answer to an ``OSError``: its text in the header, its errno as the code."""
        number, text = told_error(completed.stderr)
        self.sendStatus([("header", f"{self.header}: {text}: {path}"), ("rc", number)])


class MakeDirectory(Tool):
    """``mkdir``: make directories, with those above them."""

    header = "mkdir"
    requiredArgs = ["paths"]

    async def work(self) -> None:
        for path in self.args["paths"]:
            completed = await self.tool("mkdir", "-p", "--", path)
            if completed.exit_code != 0:
                self.failed(path, completed)
                return
        self.sendStatus([("rc", 0)])


class RemoveFile(Tool):
    """``rmfile``: remove one file."""

    header = "rmfile"
    requiredArgs = ["path"]

    async def work(self) -> None:
        path = self.args["path"]
        completed = await self.tool("rm", "--", path)
        if completed.exit_code != 0:
            self.failed(path, completed)
            return
        self.sendStatus([("rc", 0)])


#: The fields of ``os.stat`` in its order; the mode is hexadecimal.
_STAT_FORMAT = "%f %i %d %h %u %g %s %X %Y %Z"
_MAX_STAT_BYTES = 4096


class StatFile(Tool):
    """``stat``: the ten numbers of ``os.stat``."""

    header = "stat"
    requiredArgs = ["path"]

    async def work(self) -> None:
        path = self.args["path"]
        completed = await told_by_stat(
            self.protocol_command.run, path, _STAT_FORMAT, _MAX_STAT_BYTES
        )
        fields = _stat_fields(completed.stdout)
        if completed.exit_code != 0 or fields is None:
            self.failed(path, completed)
            return
        self.sendStatus([("stat", fields), ("rc", 0)])


def _stat_fields(line: bytes) -> tuple[int, ...] | None:
    """The numbers that ``stat`` printed; None for anything else, since a build can fake it."""
    words = line.decode(errors="replace").split()
    try:
        fields = (int(words[0], 16), *map(int, words[1:]))
    except (ValueError, IndexError):
        return None
    # The master's own ``stat`` module raises for more bits than these.
    is_sane = 0 <= fields[0] < 2**32 and all(abs(field) < 2**64 for field in fields)
    return fields if is_sane and len(fields) == len(_STAT_FORMAT.split()) else None


class RemoveDirectory(fs.RemoveDirectory):
    """``rmdir``: ``rm -rf``, once more after ``chmod`` where that fails, as upstream does."""

    command: Any = None

    def removeSingleDir(self, path: str) -> defer.Deferred[int]:
        return defer.ensureDeferred(self._remove(path))

    async def _remove(self, path: str) -> int:
        code = await self._run(["rm", "-rf", path])
        if code != 0:
            await self._run(["chmod", "-Rf", "u+rwx", path])
            code = await self._run(["rm", "-rf", path])
        return code

    async def _run(self, argv: Sequence[str]) -> int:
        self.command = SandboxRunProcess(
            self.protocol_command,
            self.command_id,
            list(argv),
            self.protocol_command.worker_basedir,
            sendRC=0,
            timeout=self.timeout,
            maxTime=self.maxTime,
            logEnviron=self.logEnviron,
            usePTY=False,
        )
        code: int = await self.command.start()
        return code


class CopyDirectory(fs.CopyDirectory):
    """``cpdir``: ``cp -R -P -p``, into a parent that is made if it is not there."""

    command: Any = None

    def start(self) -> defer.Deferred[None]:
        return defer.ensureDeferred(self._copy())

    async def _copy(self) -> None:
        source, target = self.args["from_path"], self.args["to_path"]
        self.command = SandboxRunProcess(
            self.protocol_command,
            self.command_id,
            ["cp", "-R", "-P", "-p", source, target],
            # Made where it is missing, as every command's directory is.
            posixpath.dirname(target),
            sendRC=False,
            timeout=self.args.get("timeout", 120),
            maxTime=self.args.get("maxTime"),
            logEnviron=self.logEnviron,
            usePTY=False,
        )
        code = await self.command.start()
        self.sendStatus([("rc", code)])
