"""A real Buildbot master in the test's own process: real configuration, database and scheduler.

Does not import ``buildbot.test``, which would turn every warning of the process into an error.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import docker
import docker.errors
import jsonschema
from buildbot.config.master import MasterConfig
from buildbot.interfaces import IConfigLoader
from buildbot.master import BuildMaster
from buildbot.plugins import steps, util
from buildbot.process.factory import BuildFactory
from buildbot.process.results import Results
from buildbot.schedulers.triggerable import Triggerable
from runtime import HAS_OWN_KERNEL
from slow import SLOW
from twisted.internet import defer, reactor, task
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from sandboxworker.auditfile import FILE as AUDIT_FILE
from sandboxworker.auditfile import reading
from sandboxworker.identity import master_id

BUILD_DEADLINE = 90.0
_PAUSE = 0.03
_STAMP = {"codebase": "", "repository": "", "branch": None, "revision": None, "project": ""}


# ---- what a master builds ------------------------------------------------------------------------


def shell(command: Any, name: str, **more: Any) -> Any:
    """A shell step; a failing one fails the build but lets the next step run."""
    return steps.ShellCommand(command=command, name=name, logEnviron=False, **more)


def configuration(
    workers: list[Any], build: Iterable[Any] | BuildFactory = (), **more: Any
) -> dict[str, Any]:
    """A master with a builder ``b`` that runs these steps on any of these workers."""
    factory = build if isinstance(build, BuildFactory) else BuildFactory(build)
    return _configuration(workers, {"b": ([worker.name for worker in workers], factory)}, more)


def one_builder_each(workers: list[Any], **more: Any) -> dict[str, Any]:
    """A master with a builder of each worker's name; `RealMaster.run` gives it its steps."""
    builders = {worker.name: ([worker.name], BuildFactory()) for worker in workers}
    return _configuration(workers, builders, more)


def _configuration(
    workers: list[Any], builders: Mapping[str, tuple[list[str], BuildFactory]], more: dict[str, Any]
) -> dict[str, Any]:
    return {
        "workers": workers,
        "builders": [
            util.BuilderConfig(name=name, workernames=names, factory=factory)
            for name, (names, factory) in builders.items()
        ],
        "schedulers": [Triggerable(name="go", builderNames=list(builders))],
        "protocols": {},
        "buildbotNetUsageData": None,
        "collapseRequests": False,
        "multiMaster": True,
        "title": "test",
        **more,
    }


#: What a step runs until `let_go`.
HOLD = "while [ ! -f /tmp/go ]; do sleep 0.1; done"


def let_go(engine_client: Any, container: str) -> None:
    """End the `HOLD` in a container, as nobody but the build's own user could."""
    options = engine_client.inspect_container(container)["HostConfig"]["Tmpfs"]["/tmp"]
    fields = dict(option.partition("=")[::2] for option in options.split(","))
    user = f"{fields['uid']}:{fields['gid']}"
    made = engine_client.exec_create(container, ["touch", "/tmp/go"], user=user)
    engine_client.exec_start(made["Id"])


# ---- what became of it ---------------------------------------------------------------------------


@attrs.frozen
class StepResult:
    """One step as the database has it."""

    name: str
    result: str
    state: str
    logs: Mapping[str, str]

    def _part(self, channel: str) -> str:
        lines = self.logs.get("stdio", "").split("\n")
        return "\n".join(line[1:] for line in lines if line.startswith(channel))

    @property
    def out(self) -> str:
        """What it wrote to stdout."""
        return self._part("o")

    @property
    def err(self) -> str:
        """What it wrote to stderr."""
        return self._part("e")

    @property
    def headers(self) -> str:
        """What Buildbot and the worker said about it."""
        return self._part("h")


@attrs.frozen
class BuildResult:
    """One finished build as the database has it."""

    id: int
    result: str
    state: str
    steps: tuple[StepResult, ...]
    properties: Mapping[str, Any]

    def __getitem__(self, name: str) -> StepResult:
        return {step.name: step for step in self.steps}[name]

    @property
    def log(self) -> str:
        """Everything that any step logged."""
        return "\n".join(text for step in self.steps for text in step.logs.values())


@functools.cache
def _validator() -> Any:
    text = importlib.resources.files("sandboxworker").joinpath("audit.schema.json").read_text()
    schema = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def assert_valid(entry: Mapping[str, Any]) -> None:
    """An entry of the audit log is what its schema says."""
    errors = [error.message for error in _validator().iter_errors(entry)]
    assert errors == [], entry


# ---- the master ----------------------------------------------------------------------------------


@implementer(IConfigLoader)
@attrs.define
class _DictionaryLoader:
    """A configuration that a test made; may be replaced before a reconfigure."""

    config: dict[str, Any]

    def loadConfig(self) -> MasterConfig:
        return MasterConfig.loadFromDict(self.config, "<test>")


class RealMaster:
    """One running master; `stop` it, or use `running_master`.

    ``errors``: every error that anything in this process has logged meanwhile.
    """

    def __init__(self, basedir: Path, config: dict[str, Any]) -> None:
        self.basedir = basedir
        self.id = master_id(basedir)
        self.errors: list[str] = []
        self._audit: list[dict[str, Any]] = []
        self._audited = 0
        self._database = {"db_url": f"sqlite:///{basedir}/db"}
        self._loader = _DictionaryLoader({**config, "db": self._database})
        self.master = BuildMaster(str(basedir), reactor=reactor, config_loader=self._loader)

    async def start(self) -> RealMaster:
        master = self.master
        globalLogPublisher.addObserver(self._note)
        (self.basedir / "buildbot.tac").write_text("")
        master.config.db.db_url = self._database["db_url"]
        await master.db.setup(check_version=False)
        await master.db.model.upgrade()
        # Buildbot does this once more on start, and then refuses what is open already.
        master.db.setup = lambda *_, **__: None
        await master.startService()
        return self

    async def stop(self) -> None:
        if self.master.running:
            await self.master.stopService()
        await self.master.db.pool.stop()
        globalLogPublisher.removeObserver(self._note)

    @property
    def audit(self) -> list[dict[str, Any]]:
        """The audit log's entries so far, or since the list was cleared; each is valid."""
        file = self.basedir / AUDIT_FILE
        if file.exists():
            entries = list(reading(file))
            for entry in entries[self._audited :]:
                assert_valid(entry)
            self._audit += entries[self._audited :]
            self._audited = len(entries)
        return self._audit

    def _note(self, event: dict[str, Any]) -> None:
        failure = event.get("log_failure")
        if isinstance(failure, Failure):
            self.errors.append(f"{event.get('why') or ''} {failure.getTraceback()}")

    async def reconfigure(self, config: dict[str, Any]) -> None:
        self._loader.config = {**config, "db": self._database}
        await self.master.reconfig()

    # builds

    async def run(
        self,
        builder: str,
        build: Iterable[Any] | BuildFactory,
        stamps: Iterable[Mapping[str, Any]] = ({},),
        **properties: Any,
    ) -> BuildResult:
        """Have a builder of `one_builder_each` run these steps, and wait for their end."""
        return await self.finished(await self.begin(builder, build, stamps, **properties))

    async def begin(
        self,
        builder: str,
        build: Iterable[Any] | BuildFactory,
        stamps: Iterable[Mapping[str, Any]] = ({},),
        **properties: Any,
    ) -> int:
        """As `run`, without waiting: the build request's id."""
        factory = build if isinstance(build, BuildFactory) else BuildFactory(build)
        self.master.botmaster.builders[builder].config.factory.steps = factory.steps
        return await self.submit(builder, stamps, **properties)

    async def submit(
        self,
        builder: str = "b",
        stamps: Iterable[Mapping[str, Any]] = ({},),
        source: str = "test",
        **properties: Any,
    ) -> int:
        """Ask for a build, with properties from that source: the build request's id.

        ``stamps``: what its source stamps have (``branch``, ``revision``, ``patch_body``, …).
        """
        master = self.master
        builder_id = await master.data.updates.findBuilderId(builder)
        _, requests = await master.data.updates.addBuildset(
            waited_for=False,
            scheduler="go",
            sourcestamps=[{**_STAMP, **stamp} for stamp in stamps],
            reason="test",
            properties={name: (value, source) for name, value in properties.items()},
            builderids=[builder_id],
        )
        return int(requests[builder_id])

    async def build(self, builder: str = "b", **properties: Any) -> BuildResult:
        """Ask for a build and wait for its end."""
        return await self.finished(await self.submit(builder, **properties))

    async def stop_build(self, request: int) -> None:
        """What the Stop button does."""
        build = (await self.builds(request))[-1]
        await self.master.data.control("stop", {"reason": "enough"}, ("builds", build["buildid"]))

    async def step_started(self, request: int, name: str) -> None:
        """Wait until the request's build has started its step of that name."""

        async def has_started() -> bool:
            builds = await self.builds(request)
            if not builds:
                return False
            running = await self.master.data.get(("builds", builds[-1]["buildid"], "steps"))
            return any(step["name"] == name and step["started_at"] for step in running)

        await until(has_started, f"start of step {name}")

    async def finished(self, request: int, seconds: float = BUILD_DEADLINE) -> BuildResult:
        """The last build of a request when it is complete; it is stopped if that takes long."""
        await self.ended(request, seconds)
        return await self._result((await self.builds(request))[-1])

    async def ended(self, request: int, seconds: float = BUILD_DEADLINE) -> None:
        """As `finished`, but nothing is read: a log of many lines takes Buildbot its time."""

        async def is_complete() -> bool:
            builds = await self.builds(request)
            return bool(builds) and bool(builds[-1]["complete"])

        try:
            await until(is_complete, f"end of build request {request}", seconds)
        except AssertionError:
            await self._give_up(request)
            raise

    async def _give_up(self, request: int) -> None:
        """Free the worker for the tests that follow."""
        if await self.builds(request):
            await self.stop_build(request)
        await self.master.data.control(
            "cancel", {"reason": "the test gave up"}, ("buildrequests", request)
        )

    async def builds(self, request: int) -> list[Mapping[str, Any]]:
        """A request's builds; more than one after a retry."""
        found: list[Mapping[str, Any]] = await self.master.data.get(
            ("buildrequests", request, "builds")
        )
        return sorted(found, key=lambda build: build["buildid"])

    async def _result(self, build: Mapping[str, Any]) -> BuildResult:
        data = self.master.data
        found = await data.get(("builds", build["buildid"], "steps"))
        properties = await data.get(("builds", build["buildid"], "properties"))
        return BuildResult(
            id=build["buildid"],
            result=_result_name(build["results"]),
            state=build["state_string"],
            steps=tuple([await self._step(step) for step in found]),
            properties={name: value for name, (value, _) in properties.items()},
        )

    async def _step(self, step: Mapping[str, Any]) -> StepResult:
        texts = {}
        for log in await self.master.data.get(("steps", step["stepid"], "logs")):
            content = await self.master.data.get(("logs", log["logid"], "contents"))
            texts[log["slug"]] = content["content"]
        return StepResult(step["name"], _result_name(step["results"]), step["state_string"], texts)

    # what the engine has of it

    def containers(self, engine_client: Any) -> list[Mapping[str, Any]]:
        """This master's containers, running or not."""
        return containers_of(engine_client, self.id)

    async def process_runs(self, engine_client: Any, text: str) -> str:
        """Wait until a process with this in its command line runs: its container.

        Buildbot takes up to 5 s to log what a command says; this is sooner, and sure.
        """
        found: list[str] = []

        def runs() -> bool:
            for container in self.containers(engine_client):
                with contextlib.suppress(docker.errors.APIError):  # It may end meanwhile.
                    if any(text in line for line in _command_lines(engine_client, container)):
                        found.append(container["Id"])
            return bool(found)

        await until(runs, f"a process {text!r}")
        return found[0]


def _command_lines(engine_client: Any, container: Mapping[str, Any]) -> list[str]:
    """Of a container's processes; those of a kernel of its own are seen from inside alone."""
    if not HAS_OWN_KERNEL:
        return [process[-1] for process in engine_client.top(container["Id"])["Processes"] or ()]
    look = ["sh", "-c", 'for f in /proc/[0-9]*/cmdline; do tr "\\0" " " <$f; echo; done']
    made = engine_client.exec_create(container["Id"], look, user="0")
    return engine_client.exec_start(made["Id"]).decode(errors="replace").splitlines()


def containers_of(engine_client: Any, master: str) -> list[Mapping[str, Any]]:
    """The containers with this master's label, running or not."""
    found: list[Mapping[str, Any]] = engine_client.containers(
        all=True, filters={"label": f"sandboxworker.master={master}"}
    )
    return found


@contextlib.asynccontextmanager
async def running_master(
    basedir: Path, config: dict[str, Any], left_over: Any
) -> AsyncIterator[RealMaster]:
    """A master for the length of a block; its containers are looked for after the last test."""
    master = RealMaster(basedir, config)
    left_over.masters.add(master.id)
    try:
        yield await master.start()
    finally:
        await master.stop()


def _result_name(results: int | None) -> str:
    return "none" if results is None else str(Results[results])


def pause(seconds: float = _PAUSE) -> defer.Deferred[None]:
    return task.deferLater(reactor, seconds, lambda: None)


async def until(condition: Callable[[], Any], what: str, seconds: float = BUILD_DEADLINE) -> None:
    """Wait until a condition (a function, or one that gives an awaitable) holds; bounded."""
    give_up = reactor.seconds() + seconds * SLOW
    while True:
        holds = condition()
        if hasattr(holds, "__await__"):
            holds = await holds
        if holds:
            return
        if reactor.seconds() > give_up:
            raise AssertionError(f"waited {seconds:g} s in vain for: {what}")
        await pause()
