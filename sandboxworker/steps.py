"""``SandboxGit``: Buildbot's ``Git``, for images that have no git."""

from __future__ import annotations

from typing import Any

from buildbot.interfaces import WorkerSetupError
from buildbot.process.buildstep import BuildStepFailed
from buildbot.process.remotecommand import RemoteCommand
from buildbot.process.results import SUCCESS
from buildbot.steps.source.git import Git, git_describe_flags
from twisted.internet import defer, task

from sandboxworker.source.archive import Patch
from sandboxworker.source.sources import PLACE_SOURCE


class SandboxGit(Git):
    """As `Git`, with its arguments, but the sandbox gets the commit's files and no repository.

    The image needs ``tar`` and no git; the master fetches the repository, checks submodules out,
    applies a ``try`` patch, and sets ``got_revision`` and ``commit-description``.
    There is no history inside: for that, or for ``filters`` and ``reference``, use `Git`.
    """

    name = "git"

    @defer.inlineCallbacks
    def run_vc(self, branch: Any, revision: Any, patch: Any) -> Any:
        self.setup_repourl()
        self.branch = branch or "HEAD"
        self.revision = revision
        self.stdio_log = yield self.addLogForRemoteCommands("stdio")
        if not self.workerVersion(PLACE_SOURCE):
            raise WorkerSetupError("SandboxGit works on a SandboxLatentWorker; use Git elsewhere")
        command = yield self._run_repeatedly(self._arguments(patch))
        self.updateSourceProperty("got_revision", command.updates["got_revision"][0])
        description = command.updates["description"][0]
        if description is not None:
            self.updateSourceProperty("commit-description", description)
        return SUCCESS

    @defer.inlineCallbacks
    def _run_repeatedly(self, arguments: dict[str, Any]) -> Any:
        """As often as ``retry`` says."""
        delay, again = self.retry or (0, 0)
        while True:
            command = RemoteCommand(PLACE_SOURCE, arguments)
            command.useLog(self.stdio_log, False)
            yield self.runCommand(command)
            if not command.didFail():
                return command
            if again <= 0 or self.stopped:
                raise BuildStepFailed
            again -= 1
            yield task.deferLater(self.master.reactor, delay, _nothing)

    def _arguments(self, patch: Any) -> dict[str, Any]:
        return {
            "workdir": self.workdir,
            "branch": self.branch,
            "revision": self.revision,
            "patch": _patch(patch),
            "submodules": bool(self.submodules),
            "describe": self._describe_flags(),
        }

    def _describe_flags(self) -> list[str] | None:
        """Without ``--dirty``: what is sent is the commit."""
        if not self.getDescription:
            return None
        wanted = self.getDescription if isinstance(self.getDescription, dict) else {}
        flags: list[str] = []
        for option, words in git_describe_flags:
            flags += words(wanted.get(option)) or ()
        return [flag for flag in flags if not flag.startswith("--dirty")]


def _patch(patch: Any) -> Patch | None:
    """A source stamp's patch: level, diff, and a root if it has one."""
    if not patch:
        return None
    level, diff, *root = patch
    data = diff.encode() if isinstance(diff, str) else diff
    return Patch(int(level), data, (root[0] or "") if root else "")


def _nothing() -> None:
    """After a pause."""
