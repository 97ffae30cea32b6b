"""One run of ``sandboxworker try --builder``: load, snapshot, start, build, show, stop."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs
import click
from buildbot.process.results import SUCCESS, WARNINGS
from rich.console import Console
from twisted.internet import defer
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure

from sandboxworker.cli.adapted import ShellStep
from sandboxworker.cli.printspec import print_spec
from sandboxworker.cli.react import catch_signals, react
from sandboxworker.cli.rehearsal import Asked, Part, Rehearsal, part_of, result_word, source_of
from sandboxworker.cli.stepview import StepView
from sandboxworker.cli.terminal import open_shell, require_terminal
from sandboxworker.commands import base
from sandboxworker.engine.address import resolve
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.errors import SandboxworkerError

#: Seconds that a command's output waits for more before it is shown.
_SOON = 0.2
#: Seconds that an interrupted build has to end in order.
_END_SECONDS = 60
_FAILED, _OWN_FAILURE = 1, 125


@attrs.frozen
class BuilderWays:
    """How to run and show it: ``shell`` and ``keep_on_failure`` open a shell after the steps."""

    shell: bool = False
    keep_on_failure: bool = False
    as_json: bool = False
    print_spec: bool = False


def run_builder(asked: Asked, ways: BuilderWays) -> int:
    """Do it all, with a reactor of its own; the exit code. Raises `SandboxworkerError`."""
    if ways.shell or ways.keep_on_failure:
        require_terminal()
    resolve(asked.engine)
    basedir = Path(tempfile.mkdtemp(prefix="sandboxworker-try-"))
    base.BUFFER_SECONDS = _SOON
    try:
        with (basedir / "twistd.log").open("w") as log:
            observer: Any = textFileLogObserver(log)
            globalLogBeginner.beginLoggingTo(
                [observer], discardBuffer=True, redirectStandardIO=False
            )
            part = part_of(asked)
            if ways.print_spec:
                return print_spec(part.policy, asked.engine)
            source = source_of(asked, part, basedir / "source.git")
            rehearsal = Rehearsal(asked, part, source, basedir)
            run = _Run(asked, ways, part, rehearsal)
            return react(lambda reactor: run.run(reactor))
    finally:
        shutil.rmtree(basedir, ignore_errors=True)


class _Run:
    """The steps of one run, in their order."""

    def __init__(self, asked: Asked, ways: BuilderWays, part: Part, rehearsal: Rehearsal) -> None:
        self._asked = asked
        self._ways = ways
        self._part = part
        self._rehearsal = rehearsal
        self._begin = time.monotonic()
        self._interrupted: defer.Deferred[int] = defer.Deferred()

    async def run(self, reactor: Any) -> int:
        reactor.callWhenRunning(catch_signals, reactor, self._interrupt)
        await self._require_image(reactor)
        rehearsal = self._rehearsal
        try:
            await rehearsal.start(reactor, self._last_step(reactor))
            # A master takes SIGTERM for itself when it starts.
            catch_signals(reactor, self._interrupt)
            view = StepView(rehearsal.master, None if self._ways.as_json else Console())
            await view.follow()
            build, number = await self._build(view, reactor)
            view.stop()
            return self._told(view, build, number)
        finally:
            await rehearsal.stop()

    def _interrupt(self, number: int) -> None:
        if not self._interrupted.called:
            self._interrupted.callback(number)

    async def _require_image(self, reactor: Any) -> None:
        """A build would wait for an engine that is not there."""
        engine = DockerEngine(resolve(self._asked.engine), reactor)
        try:
            await engine.image(self._part.policy.image)
        finally:
            await engine.close()

    def _last_step(self, reactor: Any) -> Any:
        ways = self._ways
        if not (ways.shell or ways.keep_on_failure):
            return None

        async def opened(sandbox: Any, directory: str) -> int:
            return await open_shell(sandbox, directory, reactor)

        return ShellStep(opened, only_after_failure=not ways.shell).get_step_factory()

    async def _build(self, view: StepView, reactor: Any) -> tuple[Any, int | None]:
        """The finished build, and the signal that ended it; None for what there is not."""
        request = await self._rehearsal.submit()
        first = defer.DeferredList(
            [view.finished, self._interrupted], fireOnOneCallback=True, consumeErrors=True
        )
        value, index = await first
        if index == 0:
            return value, None
        await self._rehearsal.interrupt(view.build, request)
        view.finished.addTimeout(_END_SECONDS, reactor)
        build = await view.finished.addErrback(_none) if view.build is not None else None
        return build, int(value)

    def _told(self, view: StepView, build: Any, number: int | None) -> int:
        results = None if build is None else build["results"]
        code = _exit_code(results, number)
        words = "interrupted" if number is not None else result_word(results)
        seconds = time.monotonic() - self._begin
        if self._ways.as_json:
            click.echo(json.dumps(_record(view, words, code, seconds), indent=1))
        else:
            colour = {0: "green"}.get(code, "red")
            text = f"sandboxworker: {words}, {len(view.steps)} steps, {seconds:.1f} s"
            Console(stderr=True, highlight=False).print(
                text, style=colour, markup=False, soft_wrap=True
            )
        sys.stdout.flush()
        return code


def _none(failure: Failure) -> None:
    failure.trap(defer.TimeoutError)


def _exit_code(results: int | None, number: int | None) -> int:
    if number is not None:
        return 128 + number
    if results in (SUCCESS, WARNINGS):
        return 0
    return _FAILED if result_word(results) in ("failure", "cancelled") else _OWN_FAILURE


def _record(view: StepView, words: str, code: int, seconds: float) -> dict[str, Any]:
    return {
        "result": words,
        "exit_code": code,
        "interrupted": words == "interrupted",
        "seconds": round(seconds, 3),
        "steps": [
            {
                "name": step.name,
                "result": step.result,
                "state": step.state,
                "seconds": round(step.seconds, 3),
                "logs": {name: "\n".join(lines) for name, lines in step.logs.items()},
            }
            for step in view.steps
        ],
    }


def secrets_of(given: tuple[str, ...]) -> dict[str, str]:
    """``NAME=FILE`` to name and content; raises `SandboxworkerError`."""
    found = {}
    for each in given:
        name, _, file = each.partition("=")
        try:
            found[name] = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SandboxworkerError(
                f"the secret {name!r} cannot be read from {file}",
                details=str(getattr(error, "strerror", None) or "it is not text"),
            ) from None
    return found
