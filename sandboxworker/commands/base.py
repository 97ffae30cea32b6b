"""Buildbot's worker commands, carried out from outside: the frame they stand in."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import attrs
from buildbot_worker.pb import ProtocolCommandPb
from twisted.internet import defer, threads
from twisted.internet.defer import DeferredLock

from sandboxworker.commands.budget import Budget
from sandboxworker.process import Completed, run
from sandboxworker.sandbox import Sandbox
from sandboxworker.struck import Struck

ENCODING = "utf-8"

# The buffering that Buildbot's own worker does (buildbot_worker.base.BotBase):
# logs look and flow the same.
_BUFFER_SIZE = 64 * 1024
#: ``sandboxworker try`` shows what comes sooner.
BUFFER_SECONDS = 5.0
_MAX_LINE_LENGTH = 4096
_NEWLINE_RE = r"(\r\n|\r(?=.)|\033\[u|\033\[[0-9]+;[0-9]+[Hf]|\033\[2J|\x08+)"

#: Arguments that the master leaves to the worker to expand ``~`` in.
_HOME_ARGUMENTS = ("path", "workersrc", "workerdest")


class SandboxCommand(ProtocolCommandPb):
    """One command of the master's, with the sandbox to do it in.

    Upstream's own class is made first: it refuses unknown names and missing arguments in its own
    words, and joins the paths. Ours then takes the place of its command.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        budget: Budget,
        struck: Struck,
        withheld: Mapping[str, str],
        commands: dict[str, Callable[..., Any]],
        *,
        builddir: str,
        on_complete: Callable[[], None],
        name: str,
        command_id: str,
        args: dict[str, Any],
        remote: Any,
    ) -> None:
        self.sandbox = sandbox
        self.budget = budget
        self.struck = struck
        #: Secrets that no file may carry into the workspace: value to name.
        self.withheld = withheld
        self._tools: set[defer.Deferred[Completed]] = set()
        workspace = sandbox.spec.workspace
        super().__init__(
            ENCODING,
            workspace,
            posixpath.join(workspace, builddir),
            _BUFFER_SIZE,
            BUFFER_SECONDS,
            _MAX_LINE_LENGTH,
            _NEWLINE_RE,
            True,
            on_complete,
            lambda _: None,
            name,
            command_id,
            args,
            remote,
        )
        self.command = commands[name](self, command_id, args)

    def protocol_args_setup(self, command: str, args: dict[str, Any]) -> None:
        """Expand ``~`` as the sandbox would; upstream would take the master's home."""
        for name in _HOME_ARGUMENTS:
            if isinstance(args.get(name), str):
                args[name] = self._expanded(args[name])
        super().protocol_args_setup(command, args)

    def protocol_update_upload_directory(self, writer: Any) -> defer.Deferred[None]:
        """In a thread: upstream unpacks in the reactor's, which a large archive would hold up."""
        return threads.deferToThread(writer.impl.remote_unpack)

    @property
    def log_lock(self) -> DeferredLock:
        """Held by the master while it writes a log; updates queue up behind it."""
        lock: DeferredLock = self.command_ref.impl.loglock
        return lock

    def end(self, reason: str) -> None:
        """End the command as a failure of its own, not as the Stop button would."""
        kill = getattr(getattr(self.command, "command", None), "kill", None)
        if kill is not None:
            kill(reason)
        else:
            # Interrupted it tells nothing any more.
            self.command.sendStatus([("header", f"{reason}\n"), ("rc", 1)])
            self.command.doInterrupt()

    def run(self, argv: Sequence[str], **options: Any) -> defer.Deferred[Completed]:
        """Run a small tool of the image's (see `process.run`), until `drop_tools`."""
        running = run(self.sandbox, argv, **options)
        self._tools.add(running)
        running.addBoth(self._over, running)
        return running

    def _over(self, result: Any, running: defer.Deferred[Completed]) -> Any:
        self._tools.discard(running)
        return result

    def drop_tools(self) -> None:
        """Wait for none of them any more."""
        for running in list(self._tools):
            running.cancel()

    def _expanded(self, path: str) -> str:
        if path != "~" and not path.startswith("~/"):
            # No other user has a home here; and the master's users are none of the build's.
            return posixpath.join(".", path) if path.startswith("~") else path
        home = dict(self.sandbox.spec.environ)["HOME"]
        return home + path[1:]


_ERRNO_BY_MESSAGE = {os.strerror(number): number for number in errno.errorcode}


#: Bytes of what a tool said that may hold the reason; a build could make it longer without end.
_LAST_WORDS = 8192


def last_words(stderr: bytes) -> str:
    """The last line of what a tool said, as far as it may be shown."""
    lines = stderr[-_LAST_WORDS:].decode(ENCODING, "replace").strip().splitlines()
    return lines[-1][-200:] if lines else ""


def told_error(stderr: bytes) -> tuple[int, str]:
    """The errno and its text from what a tool such as ``mkdir`` said: ``…: No such file …``.

    ``EIO`` where it said nothing that is known.
    """
    for line in reversed(stderr[-_LAST_WORDS:].decode(ENCODING, "replace").splitlines()):
        text = line.rpartition(": ")[2].strip()
        if text in _ERRNO_BY_MESSAGE:
            return _ERRNO_BY_MESSAGE[text], text
    return errno.EIO, os.strerror(errno.EIO)


#: What GNU's find calls the fields of GNU's stat; the mode is a type's letter and octal digits.
_OF_FIND = {
    "%f": "%y%m", "%i": "%i", "%d": "%D", "%h": "%n", "%u": "%U", "%g": "%G", "%s": "%s",
    "%X": "%A@", "%Y": "%T@", "%Z": "%C@",
}  # fmt: skip
_TYPES = {
    b"f": stat.S_IFREG, b"d": stat.S_IFDIR, b"p": stat.S_IFIFO, b"s": stat.S_IFSOCK,
    b"c": stat.S_IFCHR, b"b": stat.S_IFBLK,
}  # fmt: skip
_INVALID = os.strerror(errno.EINVAL).encode()


async def told_by_stat(
    run_tool: Callable[..., Awaitable[Completed]], path: str, fields: str, limit: int
) -> Completed:
    """What ``stat -L -c FIELDS`` says of a file; where its very call is refused, find is asked.

    GNU's stat uses flags of statx(2) that Debian 12's gVisor does not know, and find does not.
    """
    told = await run_tool(("stat", "-L", "-c", fields, "--", path), limit=limit)
    if told.exit_code == 0 or _INVALID not in told.stderr:
        return told
    place = path if path.startswith("/") else f"./{path}"
    words = " ".join(_OF_FIND[field] for field in fields.split())
    found = await run_tool(("find", "-L", place, "-maxdepth", "0", "-printf", words), limit=limit)
    if found.stdout.startswith(b"l"):  # Where a link leads to nothing it is told of itself.
        return attrs.evolve(
            found, exit_code=1, stderr=f"stat: {os.strerror(errno.ENOENT)}".encode()
        )
    return attrs.evolve(found, stdout=b" ".join(map(_as_stat_says, found.stdout.split())))


def _as_stat_says(word: bytes) -> bytes:
    """A mode in hexadecimal digits, a time without its fraction; all else as it is."""
    kind, mode = _TYPES.get(word[:1]), word[1:]
    if kind is not None and mode.isdigit() and len(mode) < 6 and not mode.strip(b"01234567"):
        return b"%x" % (kind | int(mode, 8))
    return word.partition(b".")[0]
