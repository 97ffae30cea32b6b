"""Shows a build's steps as they run, as Buildbot's own log view does."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
from buildbot.process.results import Results
from rich.console import Console
from rich.text import Text
from twisted.internet import defer

from sandboxworker.unexpected import unexpected

_COLOURS = {"success": "green", "warnings": "yellow", "skipped": "dim", "failure": "red"}
#: The same as another log beside it, for browsers.
_HTML = "h"
_STYLES = {"h": "cyan", "e": "red"}
#: Whatever would do more to a terminal than show text; colours are dealt with before.
_COMMAND = re.compile(r"\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)")
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: Where Buildbot waits for its worker: of interest if it has something to tell.
_PREPARATION = "worker_preparation"


@attrs.define
class Step:
    """One step as far as it is known."""

    id: int
    name: str
    result: str = "unknown"
    state: str = ""
    seconds: float = 0.0
    logs: dict[str, list[str]] = attrs.Factory(dict)
    is_shown: bool = False


@attrs.define
class _Log:
    """``slug``, and how many of its lines have been shown."""

    id: int
    step: Step
    slug: str
    shown: int = 0


class StepView:
    """Follows the only build of a master; ``finished`` fires with it.

    ``console``: where to show it, None for nowhere.
    """

    def __init__(self, master: Any, console: Console | None) -> None:
        self._master = master
        self._console = console
        self._steps: dict[int, Step] = {}
        self._logs: dict[int, _Log] = {}
        self._lock = defer.DeferredLock()
        self._consumers: list[Any] = []
        self.build: int | None = None
        self.finished: defer.Deferred[Any] = defer.Deferred()

    @property
    def steps(self) -> list[Step]:
        return [self._steps[number] for number in sorted(self._steps)]

    async def follow(self) -> None:
        """Hear of everything from here on."""
        heard: list[tuple[tuple[str | None, ...], Callable[[Any], Any]]] = [
            (("builds", None, "new"), self._build_new),
            (("builds", None, "finished"), self._build_finished),
            (("steps", None, "started"), self._step_started),
            (("steps", None, "finished"), self._step_finished),
            (("logs", None, "new"), self._log_new),
            (("logs", None, "append"), self._log_grew),
            (("logs", None, "finished"), self._log_grew),
        ]
        for key, act in heard:
            self._consumers.append(await self._master.mq.startConsuming(self._ordered(act), key))

    def _ordered(self, act: Callable[[Any], Any]) -> Callable[[Any, Any], None]:
        """One after the other, in the order in which they came."""

        def heard(_key: Any, message: Any) -> None:
            acting = self._lock.run(lambda: defer.ensureDeferred(act(message)))
            acting.addErrback(unexpected("showing a build"))

        return heard

    def stop(self) -> None:
        for consumer in self._consumers:
            consumer.stopConsuming()
        self._consumers.clear()

    # what is heard

    async def _build_new(self, build: Any) -> None:
        self.build = build["buildid"]

    async def _build_finished(self, build: Any) -> None:
        if not self.finished.called:
            self.finished.callback(build)

    async def _step_started(self, found: Any) -> None:
        step = self._step(found)
        if step.name != _PREPARATION:
            self._head(step)

    async def _step_finished(self, found: Any) -> None:
        step = self._step(found)
        step.result = str(Results[found["results"]])
        step.state = found["state_string"]
        step.seconds = _seconds(found)
        if step.result not in ("success", "skipped"):
            self._head(step)
        if step.is_shown:
            colour = _COLOURS.get(step.result, "magenta")
            self._say(f"    {step.result}: {step.state} ({step.seconds:.0f} s)", colour)

    async def _log_new(self, found: Any) -> None:
        step = self._steps.get(found["stepid"])
        if step is not None and found["type"] != _HTML:
            self._logs[found["logid"]] = _Log(found["logid"], step, found["slug"])
            step.logs[found["slug"]] = []

    async def _log_grew(self, found: Any) -> None:
        log = self._logs.get(found["logid"])
        if log is None:
            return
        last = found["num_lines"] - 1
        if last >= log.shown:
            text = await self._master.db.logs.getLogLines(log.id, log.shown, last)
            log.shown = last + 1
            self._show(log, text.splitlines(), is_stream=found["type"] == "s")

    # showing

    def _step(self, found: Any) -> Step:
        number = found["stepid"]
        return self._steps.setdefault(number, Step(number, found["name"]))

    def _head(self, step: Step) -> None:
        if not step.is_shown:
            step.is_shown = True
            self._say(f"==> {step.name}", "bold")

    def _show(self, log: _Log, lines: list[str], *, is_stream: bool) -> None:
        log.step.logs[log.slug] += lines
        self._head(log.step)
        for line in lines:
            channel, text = (line[:1], line[1:]) if is_stream else ("h", line)
            self._line(text, _STYLES.get(channel, ""))

    def _say(self, text: str, style: str) -> None:
        self._line(text, style)

    def _line(self, text: str, style: str) -> None:
        console = self._console
        if console is None:
            return
        text = _COMMAND.sub("", text)
        shown = Text.from_ansi(text) if console.is_terminal else Text(text)
        plain = _CONTROL.sub("", shown.plain)
        if plain != shown.plain:
            shown = Text(plain)
        if style:
            shown.stylize_before(style)
        console.print(shown, soft_wrap=True, highlight=False)


def _seconds(found: Any) -> float:
    begun, ended = found["started_at"], found["complete_at"]
    return (ended - begun).total_seconds() if begun and ended else 0.0
