"""The Buildbot connection with no wire: what the master sends is done here, in a sandbox."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Sequence
from functools import partial
from typing import Any

import buildbot_worker
from buildbot.process.buildstep import BuildStepCancelled, BuildStepFailed
from buildbot.worker.protocols import null
from buildbot_worker.commands.base import command_version
from twisted.internet import defer
from twisted.python import log
from twisted.python.failure import Failure

from sandboxworker.commands import COMMANDS
from sandboxworker.commands.base import SandboxCommand
from sandboxworker.commands.budget import Budget
from sandboxworker.errors import SourceFailed, SourceRefused
from sandboxworker.osrelease import UNKNOWN
from sandboxworker.policy import SandboxPolicy
from sandboxworker.sandbox import Sandbox
from sandboxworker.secrets import SecretRefused, decide, too_short
from sandboxworker.source.access import is_authentication
from sandboxworker.source.mirror import mirrors_of
from sandboxworker.source.sources import PLACE_SOURCE, Sources
from sandboxworker.struck import Struck
from sandboxworker.unexpected import unexpected


class SandboxConnection(null.Connection):
    """What Buildbot holds as the connection to a worker, for the life of one sandbox.

    ``worker``: the `AbstractWorker` that it is attached to;
    ``os_name``: what the image says that it holds.
    """

    def __init__(
        self, worker: Any, sandbox: Sandbox, policy: SandboxPolicy, os_name: str = UNKNOWN
    ) -> None:
        super().__init__(worker)
        self.sandbox = sandbox
        self._policy = policy
        self._os_name = os_name
        #: What befell its commands, for the build's end.
        self.struck = Struck(policy, self._record_limit)
        self._budget = Budget(policy, on_struck=self.struck.ended_by)
        self._builddirs: dict[str, str] = {}
        self._sources = Sources(sandbox, policy, partial(mirrors_of, worker.master))
        self._commands: dict[str, SandboxCommand] = {}
        #: Those whose source is still on its way.
        self._starting: dict[str, defer.Deferred[None]] = {}
        self._lost = False
        self._expired: str | None = None
        self._warned: set[str] = set()
        #: What was asked and may not have ended yet.
        self._asked: list[Any] = []
        self._is_suspended = False

    def get_peer(self) -> str:
        return f"sandbox/{self.sandbox.id}"

    def loseConnection(self) -> None:
        """Once: the commands that run are told nothing, since the master interrupts them itself."""
        if self._lost:
            return
        self._lost = True
        for command in self._commands.values():
            command.builder_is_running = False
        self._stop_starting()
        self.notifyDisconnected()

    def _stop_starting(self) -> None:
        for starting in list(self._starting.values()):
            starting.cancel()

    def refuse(self, reason: str) -> None:
        """The build is over, whatever it still asks for: each further command fails with this."""
        self._expired = reason

    def suspend(self) -> None:
        """Nothing is told, and nothing begins, until it is known why the sandbox ended.

        Either `fail` or `loseConnection` follows.
        """
        self._is_suspended = True
        for command in self._commands.values():
            command.builder_is_running = False
        self._stop_starting()

    def fail(self, reason: str) -> None:
        """The build is over by its own doing: what runs, and what may come, fails with this."""
        self.suspend()
        self.refuse(reason)
        for remote in self._asked:
            if remote.active:
                _refuse(remote, reason)

    def expire(self, reason: str) -> bool:
        """Time is over: what runs is killed, what comes is refused; whether anything ran."""
        self.refuse(reason)
        running = list(self._commands.values())  # Each forgets itself when it has ended.
        ran = bool(running or self._starting)
        for command in running:
            command.end(reason)
        self._stop_starting()
        return ran

    # what the master asks

    def remotePrint(self, message: str) -> defer.Deferred[None]:
        log.msg(f"{self.get_peer()}: message from master: {message}")
        return defer.succeed(None)

    def remoteGetWorkerInfo(self) -> defer.Deferred[dict[str, Any]]:
        """The sandbox's own facts; nothing of the master's."""
        spec = self.sandbox.spec
        return defer.succeed(
            {
                **self.shown_info(),
                "environ": dict(spec.environ),
                "system": "posix",
                "basedir": spec.workspace,
                "worker_commands": dict.fromkeys((*COMMANDS, PLACE_SOURCE), command_version),
            }
        )

    def shown_info(self) -> dict[str, str | int | float]:
        """What is for people: Buildbot's web interface shows it, and takes text and numbers."""
        spec = self.sandbox.spec
        return {
            "version": buildbot_worker.version,
            "host": f"sandbox of image {spec.image}",
            "image": spec.image,
            "image_id": spec.image_id,
            "os": self._os_name,
            "cpus": spec.cpus,
            # What builds take for "make -j".
            "numcpus": max(1, round(spec.cpus)),
            "policy": self._policy.summary(),
            "spec_digest": spec.digest,
        }

    def remoteSetBuilderList(
        self, builders: Sequence[tuple[str, str]]
    ) -> defer.Deferred[list[str]]:
        self._builddirs = dict(builders)
        return defer.succeed(list(self._builddirs))

    def remoteStartBuild(self, builderName: str) -> defer.Deferred[None]:
        return defer.succeed(None)

    def remoteStartCommand(
        self,
        remoteCommand: Any,
        builderName: str,
        commandId: str,
        commandName: str,
        args: dict[str, Any],
    ) -> defer.Deferred[None]:
        self._asked = [*filter(lambda asked: asked.active, self._asked), remoteCommand]
        starting = defer.ensureDeferred(
            self._start_command(remoteCommand, builderName, commandId, commandName, dict(args))
        )
        self._starting[commandId] = starting
        starting.addBoth(self._started, commandId)
        return starting

    def _started(self, result: Any, command_id: str) -> Any:
        del self._starting[command_id]
        return result

    def remoteInterruptCommand(
        self,
        builderName: str,
        commandId: str,
        why: str,
    ) -> defer.Deferred[None]:
        command = self._commands.get(commandId)
        if command is not None:
            command.command.doInterrupt()
        elif commandId in self._starting:
            self._starting[commandId].cancel()
        return defer.succeed(None)

    def remoteShutdown(self) -> defer.Deferred[None]:
        """ "Shut the worker down": its sandbox is destroyed by what the disconnection sets off."""
        self.loseConnection()
        return defer.succeed(None)

    # how

    async def _start_command(
        self, remote: Any, builder: str, command_id: str, name: str, args: dict[str, Any]
    ) -> None:
        if self._is_suspended and self._expired is None:
            return
        if self._is_answered(remote, name, args):
            return
        self._budget.enter(remote.step)
        try:
            arguments = await self._with_source(remote, builder, name, args)
            if arguments is not None:
                self._carry_out(remote, builder, command_id, name, arguments)
        except defer.CancelledError:
            self._cancelled(remote)
        except SecretRefused as refusal:
            self.struck.refused.add("secret")
            self._record_secrets("refused", refusal.names, remote)
            _refuse(remote, f"sandboxworker: {refusal}")
        except SourceRefused as refusal:
            self.struck.refused.add("source")
            self.sandbox.record("source.refused", reason=str(refusal), step=str(remote.step.name))
            _refuse(remote, f"sandboxworker: {refusal}")
        except SourceFailed as failure:
            self._source_failed(remote, failure)

    def _is_answered(self, remote: Any, name: str, args: dict[str, Any]) -> bool:
        """Whether that was all, without a word to the sandbox."""
        if self._expired is not None:
            _refuse(remote, self._expired)
            return True
        if is_authentication(remote.step, name, args):
            # Its keys and passwords stay on the master, which uses them itself.
            _complete(remote, 0)
            return True
        return False

    async def _with_source(
        self, remote: Any, builder: str, name: str, args: dict[str, Any]
    ) -> dict[str, Any] | None:
        """The arguments with which the command finds its source; None where that was all."""
        tell = partial(self._tell, remote)
        if name != PLACE_SOURCE:
            return await self._sources.arguments(remote.step, name, args, tell)
        directory = self._directory(builder, str(args["workdir"]))
        updates = await self._sources.place(remote.step, directory, args, tell)
        remote.remote_update([(updates, 0)])
        _complete(remote, 0)
        return None

    def _directory(self, builder: str, workdir: str) -> str:
        workspace = self.sandbox.spec.workspace
        return posixpath.join(workspace, self._builddirs[builder], workdir)

    def _tell(self, remote: Any, line: str) -> None:
        if remote.active and "stdio" in remote.logs:
            remote.remote_update([({"header": f"{line}\n"}, 0)])

    def _source_failed(self, remote: Any, failure: SourceFailed) -> None:
        """As git would have failed: the step's own rules for another try apply."""
        if remote.interrupted or self._lost or self._expired is not None:
            self._cancelled(remote)
            return
        remote.remote_update([({"stderr": f"sandboxworker: {failure}\n"}, 0)])
        _complete(remote, GIT_FAILED)

    def _cancelled(self, remote: Any) -> None:
        if self._lost or self._is_suspended:
            return  # The master knows, or will.
        if self._expired is not None:
            _refuse(remote, self._expired)
            return
        self._tell(remote, "command interrupted")
        _complete(remote, -1)

    def _carry_out(
        self, remote: Any, builder: str, command_id: str, name: str, args: dict[str, Any]
    ) -> None:
        # So that no shell is prepared that nobody will use: its start would be the build's to wait.
        self.sandbox.anticipates = bool(remote.step.build.steps)
        decision = decide(remote.step, name, args, self._policy)
        self._record_secrets("released", decision.released, remote)
        self._warn_of_short(decision.short, remote)
        command = SandboxCommand(
            self.sandbox,
            self._budget,
            self.struck,
            decision.withheld,
            COMMANDS,
            builddir=self._builddirs[builder],
            on_complete=lambda: self._forget(command_id),
            name=name,
            command_id=command_id,
            args=self.createArgsProxies(dict(decision.args)),
            remote=null.RemoteCommandProxy(remote),
        )
        self._commands[command_id] = command
        running = command.command.doStart()
        running.addCallback(lambda _: None)
        running.addBoth(command.command_complete)

    def _record_limit(self, field: str, value: int, peak: int | None) -> None:
        self.sandbox.record("limit.struck", limit=field, value=value, memory_peak=peak)

    def _record_secrets(self, what: str, names: Sequence[str], remote: Any) -> None:
        for name in names:
            self.sandbox.record(f"secret.{what}", secret=name, step=str(remote.step.name))

    def _warn_of_short(self, names: Sequence[str], remote: Any) -> None:
        """Once a build for each secret."""
        new = [name for name in names if name not in self._warned]
        self._warned.update(new)
        self._record_secrets("short", new, remote)
        if new:
            text = "".join(f"{too_short(name)}\n" for name in new)
            telling = defer.ensureDeferred(_tell(remote, "warnings", text))
            telling.addErrback(unexpected("warning of a short secret"))

    def _forget(self, command_id: str) -> None:
        self._commands.pop(command_id, None)


#: git's own exit code for what it cannot do.
GIT_FAILED = 128


def _complete(remote: Any, code: int) -> None:
    """End a command that nothing in the sandbox was asked for."""
    remote.remote_update([({"rc": code}, 0)])
    remote.remote_complete(None)


def _refuse(remote: Any, reason: str) -> None:
    """Fail the step with the reason, without a word to the sandbox."""
    log.msg(f"{remote.step}: {reason}")
    telling = defer.ensureDeferred(_tell_refusal(remote, reason))
    telling.addErrback(unexpected("telling why a command is refused"))


async def _tell(remote: Any, log_name: str, text: str) -> None:
    """In the step's log, or where it has none in one of that name."""
    if "stdio" in remote.logs:
        remote.remote_update([({"header": text}, 0)])
    else:
        with contextlib.suppress(BuildStepCancelled):  # It is being interrupted.
            await remote.step.addCompleteLog(log_name, text)


async def _tell_refusal(remote: Any, reason: str) -> None:
    await _tell(remote, "refused", f"{reason}\n")
    remote.remote_update([({"rc": 1}, 0)])
    # Some steps, withSecrets' own among them, overlook a command's failure; none overlooks this.
    remote.remote_complete(Failure(BuildStepFailed(reason)))
