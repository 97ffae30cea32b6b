"""``shell``: Buildbot's own ``RunProcess``, with the process in a sandbox."""

from __future__ import annotations

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from buildbot_worker.commands.shell import WorkerShellCommand
from buildbot_worker.runprocess import RunProcess
from twisted.internet import defer
from twisted.internet.error import ProcessExitedAlready

from sandboxworker.commands.base import ENCODING
from sandboxworker.commands.logfiles import SandboxLogFile
from sandboxworker.commands.reasons import limits_met
from sandboxworker.limits import FULL_WORDS, Strike
from sandboxworker.process import SandboxProcess, spawn_process
from sandboxworker.redact import Redactor
from sandboxworker.sandbox import KILL_ATTEMPTS, KILL_DEADLINE
from sandboxworker.unexpected import unexpected

#: Updates, of up to 64 KiB each, that may wait for the master to write them, and those that still
#: wait when a command that was held back goes on: neither then waits for the other.
_MAX_BACKLOG, _LEFT_OVER = 8, 4

_VARIABLE = re.compile(r"\${([0-9a-zA-Z_]*)}")


class SandboxPath(os.PathLike[str]):
    """A directory in the sandbox: its text is the path inside.

    To the master's ``os.path`` it is ``/``, since `RunProcess` looks whether its directory exists
    and would make it, on the master.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return "/"

    def __str__(self) -> str:
        return self.path


class _Environment(dict[str, str]):
    """A command's environment, whose PWD `RunProcess` must not take from the master's path."""

    def __setitem__(self, name: str, value: str) -> None:
        if name != "PWD":
            super().__setitem__(name, value)


def merge_environ(base: Mapping[str, str], wanted: Mapping[str, Any]) -> dict[str, str]:
    """A step's ``env`` upon the sandbox's environment, by the rules of Buildbot's worker.

    Lists are joined with ``:``, None deletes, ``${NAME}`` stands for the sandbox's own value,
    and a ``PYTHONPATH`` is put in front of the one that is there.
    Raises `RuntimeError`, in upstream's words, for a value that is none of these.
    """
    merged = dict(base)
    for name, value in wanted.items():
        if value is None:
            merged.pop(name, None)
            continue
        text = ":".join(value) if isinstance(value, list) else value
        if not isinstance(text, str):
            raise RuntimeError(f"'env' values must be strings or lists; key '{name}' is incorrect")
        if name == "PYTHONPATH":
            text += ":${PYTHONPATH}"
        merged[name] = _VARIABLE.sub(lambda match: base.get(match[1], ""), text)
    return merged


class SandboxRunProcess(RunProcess):
    """`RunProcess` as it is, but for where the process runs and how it is signalled.

    ``environ`` is a step's ``env``; ``options`` are `RunProcess`'s own.
    """

    interruptSignal: str
    #: Fires with the exit code; upstream's.
    deferred: defer.Deferred[int] | None

    # Longer than the sandbox tries to kill: where that fails it is destroyed, which ends all.
    BACKUP_TIMEOUT = KILL_ATTEMPTS * (KILL_DEADLINE + 1) + 10

    def __init__(
        self,
        protocol_command: Any,
        command_id: str,
        command: Any,
        workdir: str,
        environ: Mapping[str, Any] | None = None,
        logfiles: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.sandbox = protocol_command.sandbox
        self.budget = protocol_command.budget
        self._struck = protocol_command.struck
        self._said_full = False
        self._redactors: defaultdict[str, Redactor] = defaultdict(
            partial(Redactor, protocol_command.withheld)
        )
        self._log_lock = protocol_command.log_lock
        self._adders: dict[str, Callable[[str], None]] = {}
        self._held_back = self._is_marked = False
        self._ended_before: str | None = None
        self._passed_limit = False
        path = SandboxPath(workdir)
        super().__init__(
            command_id, command, path, ENCODING, protocol_command.send_update, **options
        )
        merged = merge_environ(dict(self.sandbox.spec.environ), environ or {})
        self.environ = _Environment({**merged, "PWD": workdir})
        # Not given to upstream's own, which would read the master's files of these names.
        self.logfiles = dict(logfiles or {})
        self.logFileWatchers = list(self._watch(self.logfiles))

    def start(self) -> defer.Deferred[int]:
        """As upstream's, after a look at the files that are to be followed."""
        if not self.logFileWatchers:
            running: defer.Deferred[int] = super().start()
            return running
        return defer.ensureDeferred(self._start_watched())

    async def _start_watched(self) -> int:
        for file in self.logFileWatchers:
            await file.look_before()
        if self._ended_before is not None:
            self.send_update([("header", self._ended_before + "\n"), ("rc", -1)])
            return -1
        code: int = await super().start()
        return code

    def kill(self, msg: str) -> None:
        if self.process is None and self.logFileWatchers:
            self._ended_before = msg
        else:
            super().kill(msg)

    def _watch(self, logfiles: Mapping[str, Any]) -> Iterator[SandboxLogFile]:
        for name, value in logfiles.items():
            options = value if isinstance(value, dict) else {"filename": value}
            yield SandboxLogFile(
                self.sandbox,
                posixpath.join(str(self.workdir), options["filename"]),
                options.get("follow", False),
                partial(self._add_logfile, name),
            )

    def _add_logfile(self, name: str, data: str) -> None:
        self._add(partial(self.addLogfile, name), f"log {name}", data)

    def _spawnProcess(
        self,
        processProtocol: Any,
        executable: Any,
        args: Any = (),
        env: Any = None,
        path: Any = None,
        uid: Any = None,
        gid: Any = None,
        usePTY: bool = False,
        childFDs: Any = None,
    ) -> SandboxProcess:
        argv = [os.fsdecode(arg) for arg in args]
        return spawn_process(self.sandbox, processProtocol, argv, dict(env), str(path), tty=usePTY)

    # signals

    def isDead(self) -> bool:
        return bool(self.process.is_over)

    def sendSig(self, interruptSignal: str | None) -> int:
        if interruptSignal is None:
            return 0
        try:
            self.process.signalProcess(interruptSignal)
        except (ProcessExitedAlready, KeyError):
            self.log_msg(f"cannot send SIG{interruptSignal}")
            return 0
        return 1

    def doBackupTimeout(self) -> None:
        """A signal that asks was not obeyed: kill; only if that fails too, give up as upstream."""
        if self.interruptSignal == "KILL":
            super().doBackupTimeout()
            return
        self.interruptSignal = "KILL"
        self.killTimer = self._reactor.callLater(self.BACKUP_TIMEOUT, self.doBackupTimeout)
        self.sendSig("KILL")

    def finished(self, sig: int | None, rc: int | None) -> None:
        """Nothing that an interrupted command started outlives it; files are read to their end.

        The limits that it met are the last that its log says.
        """
        finishing = defer.ensureDeferred(self._before_finish(sig, rc))
        finishing.addErrback(unexpected("finishing a command"))
        finishing.addCallback(lambda strikes: self._finish(sig, rc, strikes or ()))

    async def _before_finish(self, sig: int | None, rc: int | None) -> list[Strike]:
        self._cancelTimers()
        if self.pp.killed:
            await self.sandbox.kill_all()
        for file in self.logFileWatchers:
            await file.last(lambda: self._passed_limit)
        self._flush()
        failed = sig is not None or rc != 0
        strikes = await limits_met(
            self.sandbox,
            self._struck,
            may_look=failed and not self.pp.killed,
            said_full=self._said_full,
        )
        self._struck.command_ended(strikes, exit_code=rc, signal=sig)
        return strikes

    def _finish(self, sig: int | None, rc: int | None, strikes: Iterable[Strike]) -> None:
        """Upstream's part; it tells how the command ended, so the end is passed on after ours."""
        upstreams_end: defer.Deferred[int] = defer.Deferred()
        ended, self.deferred = self.deferred, upstreams_end
        super().finished(sig, rc)
        self.send_update([("header", f"{strike}\n") for strike in strikes])
        if ended is not None:
            upstreams_end.chainDeferred(ended)

    # output

    def addStdout(self, data: str) -> None:
        self._add(super().addStdout, "stdout", data)

    def addStderr(self, data: str) -> None:
        self._add(super().addStderr, "stderr", data)

    def _add(self, add: Callable[[str], None], stream: str, data: str) -> None:
        """To the log, without the values of secrets, and as far as the limits let it."""
        self._adders[stream] = add
        self._within_limits(self._redactors[stream].feed(data), add)

    def _flush(self) -> None:
        """What was kept back since it might have become a secret's value."""
        for stream, add in self._adders.items():
            self._within_limits(self._redactors[stream].flush(), add)

    def _within_limits(self, data: str, add: Callable[[str], None]) -> None:
        if self._passed_limit:
            return
        raw = data.encode(ENCODING)
        self._said_full = self._said_full or any(words in data for words in FULL_WORDS)
        fits, passed = self.budget.output(len(raw))
        if fits:
            add(data if fits == len(raw) else raw[:fits].decode(ENCODING, "ignore"))
        if passed is not None:
            self._passed_limit = True
            self.kill(passed)
        elif self.process is not None and len(self._log_lock.waiting) > _LEFT_OVER:
            # Without one it could not be started, and this says why.
            self._mind_backlog()

    def _mind_backlog(self) -> None:
        """Let the command wait while the master has much to write."""
        if not self._is_marked:
            self._is_marked = True
            # Who asks for the lock now gets it behind all updates that wait for it.
            self._log_lock.run(self._go_on).addErrback(unexpected("writing a log"))
        if len(self._log_lock.waiting) > _MAX_BACKLOG and not self._held_back:
            self._held_back = True
            self.process.pauseProducing()

    def _go_on(self) -> None:
        """What waited at the mark is written."""
        self._is_marked = False
        if self._held_back:
            self._held_back = False
            if not self.process.is_over:
                self.process.resumeProducing()

    def doTimeout(self) -> None:
        """Silence that we imposed is not the command's."""
        if self._held_back:
            self.ioTimeoutTimer = self._reactor.callLater(self.timeout, self.doTimeout)
        else:
            super().doTimeout()


class Shell(WorkerShellCommand):
    """The ``shell`` command (see Buildbot's developer documentation, "Shell command")."""

    def start(self) -> defer.Deferred[int]:
        args = self.args
        self.command = SandboxRunProcess(
            self.protocol_command,
            self.command_id,
            args["command"],
            args["workdir"],
            environ=args.get("env"),
            logfiles=args.get("logfiles"),
            timeout=args.get("timeout"),
            maxTime=args.get("maxTime"),
            max_lines=args.get("max_lines"),
            sigtermTime=args.get("sigtermTime"),
            sendStdout=args.get("want_stdout", True),
            sendStderr=args.get("want_stderr", True),
            initialStdin=args.get("initial_stdin"),
            usePTY=args.get("usePTY", False),
            logEnviron=args.get("logEnviron", True),
        )
        if args.get("interruptSignal"):
            self.command.interruptSignal = args["interruptSignal"]
        running: defer.Deferred[int] = self.command.start()
        return running
