"""The Buildbot connection with no wire: what the master sends is done here, in a sandbox."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
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
from sandboxworker.osrelease import UNKNOWN
from sandboxworker.policy import SandboxPolicy
from sandboxworker.sandbox import Sandbox
from sandboxworker.secrets import SecretRefused, decide
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
        self._budget = Budget(policy)
        self._builddirs: dict[str, str] = {}
        self._commands: dict[str, SandboxCommand] = {}
        self._lost = False
        self._expired: str | None = None

    def get_peer(self) -> str:
        return f"sandbox/{self.sandbox.id}"

    def loseConnection(self) -> None:
        """Once: the commands that run are told nothing, since the master interrupts them itself."""
        if self._lost:
            return
        self._lost = True
        for command in self._commands.values():
            command.builder_is_running = False
        self.notifyDisconnected()

    def refuse(self, reason: str) -> None:
        """The build is over, whatever it still asks for: each further command fails with this."""
        self._expired = reason

    def expire(self, reason: str) -> bool:
        """Time is over: what runs is killed, what comes is refused; whether anything ran."""
        self.refuse(reason)
        running = list(self._commands.values())  # Each forgets itself when it has ended.
        for command in running:
            command.end(reason)
        return bool(running)

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
                "worker_commands": dict.fromkeys(COMMANDS, command_version),
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
        return defer.maybeDeferred(
            self._start_command, remoteCommand, builderName, commandId, commandName, dict(args)
        )

    def remoteInterruptCommand(
        self,
        builderName: str,
        commandId: str,
        why: str,
    ) -> defer.Deferred[None]:
        command = self._commands.get(commandId)
        if command is not None:
            command.command.doInterrupt()
        return defer.succeed(None)

    def remoteShutdown(self) -> defer.Deferred[None]:
        """ "Shut the worker down": its sandbox is destroyed by what the disconnection sets off."""
        self.loseConnection()
        return defer.succeed(None)

    # how

    def _start_command(
        self, remote: Any, builder: str, command_id: str, name: str, args: dict[str, Any]
    ) -> None:
        if self._expired is not None:
            _refuse(remote, self._expired)
            return
        try:
            decision = decide(remote.step, name, args, self._policy)
        except SecretRefused as refusal:
            self._record_secrets("refused", refusal.names, remote)
            _refuse(remote, f"sandboxworker: {refusal}")
            return
        self._record_secrets("released", decision.released, remote)
        self._budget.enter(remote.step)
        command = SandboxCommand(
            self.sandbox,
            self._budget,
            decision.withheld,
            COMMANDS,
            builddir=self._builddirs[builder],
            on_complete=lambda: self._forget(command_id),
            name=name,
            command_id=command_id,
            args=self.createArgsProxies(args),
            remote=null.RemoteCommandProxy(remote),
        )
        self._commands[command_id] = command
        running = command.command.doStart()
        running.addCallback(lambda _: None)
        running.addBoth(command.command_complete)

    def _record_secrets(self, what: str, names: Sequence[str], remote: Any) -> None:
        for name in names:
            self.sandbox.record(f"secret.{what}", secret=name, step=str(remote.step.name))

    def _forget(self, command_id: str) -> None:
        self._commands.pop(command_id, None)


def _refuse(remote: Any, reason: str) -> None:
    """Fail the step with the reason, without a word to the sandbox."""
    log.msg(f"{remote.step}: {reason}")
    telling = defer.ensureDeferred(_tell_refusal(remote, reason))
    telling.addErrback(unexpected("telling why a command is refused"))


async def _tell_refusal(remote: Any, reason: str) -> None:
    if "stdio" in remote.logs:
        remote.remote_update([({"header": f"{reason}\n"}, 0)])
    else:
        with contextlib.suppress(BuildStepCancelled):  # It is being interrupted.
            await remote.step.addCompleteLog("refused", f"{reason}\n")
    remote.remote_update([({"rc": 1}, 0)])
    # Some steps, withSecrets' own among them, overlook a command's failure; none overlooks this.
    remote.remote_complete(Failure(BuildStepFailed(reason)))
