"""A real Buildbot master in the test's own process: real configuration, database and scheduler.

Does not import ``buildbot.test``, which would turn every warning of the process into an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from buildbot.config.master import MasterConfig
from buildbot.master import BuildMaster
from buildbot.process.factory import BuildFactory
from buildbot.process.results import Results
from buildbot.schedulers.triggerable import Triggerable
from twisted.internet import defer, reactor, task
from zope.interface import implementer
from buildbot.interfaces import IConfigLoader

BUILD_DEADLINE = 120.0


@implementer(IConfigLoader)
@attrs.define
class DictionaryLoader:
    """A configuration that a test made; may be replaced before a reconfigure."""

    config: dict[str, Any]

    def loadConfig(self) -> MasterConfig:  # noqa: N802
        return MasterConfig.loadFromDict(self.config, "<test>")


@attrs.frozen
class StepResult:
    """One step as the database has it."""

    name: str
    result: str
    state: str
    logs: Mapping[str, str]

    @property
    def stdio(self) -> str:
        return self.logs.get("stdio", "")


@attrs.frozen
class BuildResult:
    """One finished build as the database has it."""

    id: int
    result: str
    state: str
    steps: tuple[StepResult, ...]
    properties: Mapping[str, Any]

    def step(self, name: str) -> StepResult:
        return next(step for step in self.steps if step.name == name)

    @property
    def log(self) -> str:
        """Everything that any step logged."""
        return "\n".join(text for step in self.steps for text in step.logs.values())


def configuration(
    workers: list[Any], steps: list[Any] | BuildFactory, **more: Any
) -> dict[str, Any]:
    """A master with one builder, ``b``, that runs these steps on these workers."""
    from buildbot.plugins import util

    factory = steps if isinstance(steps, BuildFactory) else util.BuildFactory(steps)
    return {
        "workers": workers,
        "builders": [
            util.BuilderConfig(
                name="b", workernames=[worker.name for worker in workers], factory=factory
            )
        ],
        "schedulers": [Triggerable(name="go", builderNames=["b"])],
        "protocols": {},
        "buildbotNetUsageData": None,
        "multiMaster": True,
        "db": {"db_url": "sqlite://"},
        "title": "test",
        **more,
    }


class RealMaster:
    """One running master; `stop` it."""

    def __init__(self, basedir: Path, config: dict[str, Any]) -> None:
        config.setdefault("db", {})
        self.basedir = basedir
        self.loader = DictionaryLoader({**config, "db": {"db_url": f"sqlite:///{basedir}/db"}})
        self.master = BuildMaster(str(basedir), reactor=reactor, config_loader=self.loader)

    async def start(self) -> RealMaster:
        master = self.master
        (self.basedir / "buildbot.tac").write_text("")
        master.config.db.db_url = self.loader.config["db"]["db_url"]
        await master.db.setup(check_version=False)
        await master.db.model.upgrade()
        master.db.setup = lambda *_, **__: None
        await master.startService()
        return self

    async def stop(self) -> None:
        await self.master.stopService()
        await self.master.db.pool.stop()

    async def reconfigure(self, config: dict[str, Any]) -> None:
        self.loader.config = {**config, "db": self.loader.config["db"]}
        await self.master.reconfig()

    async def submit(self, builder: str = "b", **properties: Any) -> int:
        """Ask for a build: the build request's id."""
        master = self.master
        builder_id = await master.data.updates.findBuilderId(builder)
        _, requests = await master.data.updates.addBuildset(
            waited_for=False,
            scheduler="go",
            sourcestamps=[{"codebase": "", "repository": "", "branch": None, "revision": None,
                           "project": ""}],
            reason="test",
            properties={name: (value, "test") for name, value in properties.items()},
            builderids=[builder_id],
        )
        return int(requests[builder_id])

    async def build(self, builder: str = "b", **properties: Any) -> BuildResult:
        """Ask for a build and wait for its end."""
        return await self.finished(await self.submit(builder, **properties))

    async def running(self, request: int) -> Mapping[str, Any]:
        """The build of a request, once it has begun."""
        return await self._until(request, lambda build: True)

    async def step_started(self, request: int, name: str) -> Mapping[str, Any]:
        """The build of a request, once its step of that name runs."""
        for _ in range(int(BUILD_DEADLINE / 0.05)):
            for build in await self._builds(request):
                steps = await self.master.data.get(("builds", build["buildid"], "steps"))
                if any(s["name"] == name and s["started_at"] for s in steps):
                    return build
            await _pause()
        raise AssertionError(f"step {name} of request {request} has not begun")

    async def finished(self, request: int) -> BuildResult:
        """The last build of a request, when it is complete and was no retry."""
        build = await self._until(request, lambda build: build["complete"])
        return await self._result(build)

    async def _until(self, request: int, condition: Any) -> Mapping[str, Any]:
        for _ in range(int(BUILD_DEADLINE / 0.05)):
            for build in reversed(await self._builds(request)):
                if condition(build):
                    return build
            await _pause()
        raise AssertionError(f"the build of request {request} did not get there")

    async def _builds(self, request: int) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = await self.master.data.get(
            ("buildrequests", request, "builds")
        )
        return found

    async def _result(self, build: Mapping[str, Any]) -> BuildResult:
        data = self.master.data
        steps = await data.get(("builds", build["buildid"], "steps"))
        properties = await data.get(("builds", build["buildid"], "properties"))
        return BuildResult(
            id=build["buildid"],
            result=Results[build["results"]],
            state=build["state_string"],
            steps=tuple([await self._step(step) for step in steps]),
            properties={name: value for name, (value, _) in properties.items()},
        )

    async def _step(self, step: Mapping[str, Any]) -> StepResult:
        logs = await self.master.data.get(("steps", step["stepid"], "logs"))
        texts = {}
        for log in logs:
            content = await self.master.data.get(("logs", log["logid"], "contents"))
            texts[log["slug"]] = content["content"]
        result = "none" if step["results"] is None else Results[step["results"]]
        return StepResult(step["name"], result, step["state_string"], texts)


def _pause() -> defer.Deferred[None]:
    return task.deferLater(reactor, 0.05, lambda: None)
