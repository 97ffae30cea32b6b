"""A builder's factory as ``try`` runs it: nothing of it touches the master's own surroundings.

Uploads go to a directory of the caller's choice, downloads come from beside the ``master.cfg``,
and steps that act from the master are left out unless they are asked for.
"""

from __future__ import annotations

import copy
import os
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from buildbot.interfaces import IBuildStepFactory, IRenderable
from buildbot.process.buildstep import BuildStep
from buildbot.process.results import SKIPPED, SUCCESS
from buildbot.steps.http import HTTPStep
from buildbot.steps.master import MasterShellCommand
from buildbot.steps.transfer import (
    DirectoryUpload,
    FileDownload,
    FileUpload,
    MultipleFileUpload,
)
from buildbot.steps.trigger import Trigger
from buildbot.util.git import GitStepMixin
from twisted.internet import defer
from zope.interface import implementer

from sandboxworker.factory_secrets import ON_MASTER

#: What acts from the master: a command there, a request to some server, other builders.
ACTING = (HTTPStep, MasterShellCommand, Trigger)


@attrs.frozen
class Surroundings:
    """``config``: the directory of the ``master.cfg``; ``out``: where uploads go;
    ``master_steps``: whether steps that act from the master are run;
    ``last``: a step after all others, for a shell."""

    config: Path
    out: Path
    master_steps: bool = False
    last: Any = None


def adapted(factory: Any, around: Surroundings) -> Any:
    """The factory's copy whose steps are adapted when they are made."""
    copied = copy.copy(factory)
    steps = [_Adapted(each, lambda step: _adapt(step, around)) for each in factory.steps]
    copied.steps = steps if around.last is None else [*steps, around.last]
    return copied


def git_steps(factory: Any) -> list[Any]:
    """The factory's git steps, as its configuration has them."""
    made = [each.buildStep() for each in factory.steps]
    return [step for step in made if isinstance(step, GitStepMixin)]


@implementer(IBuildStepFactory)
@attrs.frozen
class _Adapted:
    """A step's factory; whoever looks into it sees the original's arguments."""

    original: Any
    adapt: Callable[[Any], Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def buildStep(self) -> Any:
        return self.adapt(self.original.buildStep())


def _adapt(step: Any, around: Surroundings) -> Any:
    acts = isinstance(step, ACTING) or getattr(type(step), ON_MASTER, False)
    if acts and not around.master_steps:
        return _LeftOut(name=step.name).get_step_factory().buildStep()
    if isinstance(step, (FileUpload, DirectoryUpload, MultipleFileUpload)):
        step.masterdest = _Moved(step.masterdest, lambda path: below(around.out, path))
    if isinstance(step, FileDownload):
        step.mastersrc = _Moved(step.mastersrc, lambda path: around.config / path)
    return step


def below(out: Path, path: str) -> Path:
    """A path of the master's, absolute or not, below another directory."""
    rooted = os.path.normpath("/" + os.path.expanduser(path))
    return out / rooted.lstrip("/")


@implementer(IRenderable)
@attrs.frozen(eq=False)
class _Moved:
    """What was a path on the master, rendered, then moved."""

    original: Any
    move: Callable[[str], Path]

    def getRenderingFor(self, props: Any) -> defer.Deferred[str]:
        rendering: defer.Deferred[Any] = props.render(self.original)
        return rendering.addCallback(lambda path: str(self.move(str(path))))


class _LeftOut(BuildStep):
    """In the place of a step that acts from the master."""

    flunkOnFailure = False

    def run(self) -> defer.Deferred[int]:
        return defer.succeed(SKIPPED)

    def getResultSummary(self) -> dict[str, str]:
        return {"step": "it acts from the master: left out (--master-steps runs it)"}


class ShellStep(BuildStep):
    """The caller's shell in the build's sandbox, after all else.

    ``open_shell``: runs one in a sandbox and a directory; ``only_after_failure``: when to.
    """

    name = "shell"
    alwaysRun = True
    flunkOnFailure = haltOnFailure = False

    def __init__(self, open_shell: Any, only_after_failure: bool) -> None:
        super().__init__()
        self._open_shell = open_shell
        self._only_after_failure = only_after_failure

    def doStepIf(self, step: Any) -> bool:
        return not self._only_after_failure or bool(self.build.results != SUCCESS)

    async def run(self) -> int:
        connection = self.build.workerforbuilder.worker.conn
        directory = posixpath.join(self.build.getProperty("builddir"), self.build.workdir)
        await self._open_shell(connection.sandbox, directory)
        return int(SUCCESS)
