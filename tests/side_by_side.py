"""The same steps on Buildbot's `LocalWorker` and in a sandbox, and what became of them.

What is compared: each step's result, state, visibility and logs, the build's own result and
state, and its properties; with what must differ (paths, times, environments) told apart.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping
from difflib import ndiff
from pathlib import Path
from pprint import pformat
from typing import Any

import attrs
import pytest
from buildbot.plugins import util, worker
from buildbot.process.factory import BuildFactory
from buildbot.schedulers.triggerable import Triggerable
from real_master import BuildResult, RealMaster, one_builder_each, running_master
from runtime import SandboxPolicy

from sandboxworker import SandboxLatentWorker

KINDS = ("local", "sandbox")

#: What must differ: the environment, and how long it took.
_OWN_LINES = re.compile(r"^h( environment:|  \w+=|elapsedTime=).*\n", re.MULTILINE)

#: Of the build and its worker, not of the steps.
_OWN_PROPERTIES = re.compile(r"sandbox_\w+|workername|buildername|builderid|buildnumber")

#: In the environment of both kinds of worker.
VISIBLE = {"SIDE_BY_SIDE": "seen by both"}


@attrs.frozen
class Side:
    """One build on one kind of worker."""

    kind: str
    build: BuildResult
    steps: tuple[Mapping[str, Any], ...]
    properties: Mapping[str, tuple[Any, str]]
    paths: tuple[tuple[str, str], ...]

    @property
    def told(self) -> list[Any]:
        """What must be equal, step by step; the last entry is of the build itself."""
        steps = [
            {
                "name": step["name"],
                "result": result.result,
                "state": self.plain(step["state_string"]),
                "hidden": step["hidden"],
                "logs": {name: self.plain(_by_stream(text)) for name, text in result.logs.items()},
            }
            for step, result in zip(self.steps, self.build.steps, strict=True)
        ]
        # The first one tells how the worker was made ready.
        properties = {
            name: (self.plain(value) if isinstance(value, str) else value, source)
            for name, (value, source) in self.properties.items()
            if not _OWN_PROPERTIES.fullmatch(name)
        }
        return [*steps[1:], (self.build.result, self.plain(self.build.state), properties)]

    def plain(self, text: str) -> str:
        """Without what must differ."""
        text = _OWN_LINES.sub("", text)
        words = dict(self.paths)
        # Not within a longer path; but behind the letter that a log's lines begin with.
        begin = r"(?:(?<=^[oeh])|(?<!\w))"
        pattern = "|".join(begin + re.escape(path) for path in words)
        return re.sub(pattern, lambda match: words[match[0]], text, flags=re.MULTILINE)


def _by_stream(log: str) -> str:
    """Between two headers first what came from stdout, then stderr: they have no common order."""
    parts = itertools.groupby(log.split("\n"), key=lambda line: line[:1] in ("o", "e"))
    lines = [
        sorted(part, key=lambda line: line[:1], reverse=True) if is_output else list(part)
        for is_output, part in parts
    ]
    return "\n".join(itertools.chain.from_iterable(lines))


class SideBySide:
    """A running master with a worker of each kind, and builders of their names."""

    def __init__(self, master: RealMaster, out: Path) -> None:
        self.master = master
        self._out = out

    async def both(
        self, make: Callable[[Path], Iterable[Any] | BuildFactory], **properties: Any
    ) -> tuple[Side, Side]:
        """Run the steps that ``make(out)`` gives on both: the local one, and the sandbox's."""
        for kind in KINDS:  # A sandbox begins empty; so shall the other.
            for left in Path(self.base(kind), kind).glob("*"):
                shutil.rmtree(left)
            shutil.rmtree(self.out(kind))
        requests = [
            await self.master.begin(kind, _built(make, self.out(kind)), **properties)
            for kind in KINDS
        ]
        local, sandbox = [
            await self.side(kind, request) for kind, request in zip(KINDS, requests, strict=True)
        ]
        return local, sandbox

    async def side(self, kind: str, request: int) -> Side:
        """What became of a request."""
        build = await self.master.finished(request)
        data = self.master.master.data
        return Side(
            kind,
            build,
            tuple(await data.get(("builds", build.id, "steps"))),
            await data.get(("builds", build.id, "properties")),
            self._paths(kind),
        )

    def base(self, kind: str) -> str:
        """The worker's directory."""
        return "/build" if kind == "sandbox" else f"{self.master.basedir}/workers/{kind}"

    def _paths(self, kind: str) -> tuple[tuple[str, str], ...]:
        return (
            (f"{self.base(kind)}/{kind}", "BUILDER"),
            (self.base(kind), "WORKER"),
            (str(self.out(kind)), "OUT"),
        )

    def out(self, kind: str) -> Path:
        """Where the master's side of a build's files goes."""
        (self._out / kind).mkdir(exist_ok=True, parents=True)
        return self._out / kind

    def written(self, kind: str) -> dict[str, tuple[int, bytes]]:
        """Every file that came out: its mode and content, by its path."""
        out = self.out(kind)
        return {
            str(path.relative_to(out)): (path.stat().st_mode, path.read_bytes())
            if path.is_file()
            else (path.stat().st_mode, b"")
            for path in sorted(out.rglob("*"))
        }


def _built(make: Any, out: Path) -> BuildFactory:
    made = make(out)
    return made if isinstance(made, BuildFactory) else BuildFactory(made)


@contextlib.asynccontextmanager
async def side_by_side(
    basedir: Path, image: str, left_over: Any, **more: Any
) -> AsyncIterator[SideBySide]:
    """`SideBySide` on one image, for the length of a block.

    Builders ``local-child`` and ``sandbox-child``, with workers and schedulers of these names,
    are there to be triggered.
    """
    policy = SandboxPolicy(image, disk="96m", env=VISIBLE)
    workers = [
        worker.LocalWorker("local"),
        worker.LocalWorker("local-child"),
        SandboxLatentWorker("sandbox", policy=policy),
        SandboxLatentWorker("sandbox-child", policy=policy),
    ]
    schedulers = [
        Triggerable(name=f"{kind}-child", builderNames=[f"{kind}-child"]) for kind in KINDS
    ]
    config = one_builder_each(workers, **{"schedulers": schedulers, **more})
    config["protocols"] = {"null": {}}
    for builder in config["builders"]:
        builder.factory = util.BuildFactory()
    previous = {name: os.environ.get(name) for name in VISIBLE}
    os.environ.update(VISIBLE)
    try:
        async with running_master(basedir, config, left_over) as master:
            yield SideBySide(master, basedir / "out")
    finally:
        for name, value in previous.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def assert_same(sides: tuple[Side, Side], unordered: Container[str] = ()) -> None:
    """Fails with every difference.

    ``unordered``: the names of steps whose logs may have their lines in another order.
    """
    local, sandbox = [
        [pformat(_sorted(each, unordered), width=100) for each in side.told] for side in sides
    ]
    assert len(local) == len(sandbox)
    differences = [
        "\n".join(ndiff(theirs.splitlines(), ours.splitlines()))
        for theirs, ours in zip(local, sandbox, strict=True)
        if theirs != ours
    ]
    if differences:
        pytest.fail("local (-) and sandbox (+) differ:\n" + "\n\n".join(differences))


def _sorted(told: Any, unordered: Container[str]) -> Any:
    if not isinstance(told, dict) or told["name"] not in unordered:
        return told
    logs = {name: "\n".join(sorted(text.split("\n"))) for name, text in told["logs"].items()}
    return {**told, "logs": logs}
