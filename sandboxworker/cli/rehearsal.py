"""A builder of a ``master.cfg`` on a throw-away master: its real factory, under its real policy.

The configuration is loaded as Buildbot loads it; of what it makes only the builder's factory,
environment and properties and its worker's policies are taken over. No worker, scheduler, service,
database or web interface of it is started, and no port is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from buildbot.config.builder import BuilderConfig
from buildbot.config.errors import ConfigErrors
from buildbot.config.master import MasterConfig
from buildbot.interfaces import IConfigLoader
from buildbot.master import BuildMaster
from buildbot.process.results import Results
from buildbot.schedulers.triggerable import Triggerable
from buildbot.scripts.upgrade_master import upgradeDatabase
from buildbot.secrets.providers.base import SecretProviderBase
from buildbot.util.git import scp_style_to_url_syntax
from twisted.internet import defer
from zope.interface import implementer

from sandboxworker.check.reading import read as read_configuration
from sandboxworker.cli.adapted import Surroundings, adapted, git_steps
from sandboxworker.cli.react import run_name
from sandboxworker.cli.snapshot import Snapshot, snapshot
from sandboxworker.errors import SandboxworkerError, SourceRefused
from sandboxworker.factory_secrets import uses
from sandboxworker.policies import PROPERTY, SandboxPolicies, as_policies
from sandboxworker.policy import SandboxPolicy
from sandboxworker.source.mirror import mirrors_of
from sandboxworker.source.urls import Repository, read
from sandboxworker.worker import SandboxLatentWorker

_SCHEDULER = "try"


@attrs.frozen(kw_only=True)
class Asked:
    """What of which configuration shall be tried; see ``sandboxworker try --help``.

    ``policy`` and ``image`` take the place of the worker's.
    """

    config: Path
    builder: str
    directory: Path
    engine: str | None = None
    image: str | None = None
    policy: SandboxPolicy | None = None
    repository: str | None = None
    properties: Mapping[str, str] = attrs.field(factory=dict)
    secrets: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    master_steps: bool = False
    out: Path | None = None


@attrs.frozen
class Part:
    """What is taken over from a configuration."""

    builder: Any
    policies: SandboxPolicies
    policy: SandboxPolicy
    directory: Path


def part_of(asked: Asked) -> Part:
    """Load the configuration and find the builder; raises `SandboxworkerError`."""
    configuration = read_configuration(asked.config)
    builders = {each.name: each for each in configuration.master.builders}
    builder = builders.get(asked.builder)
    if builder is None:
        raise SandboxworkerError(
            f"{configuration.file} has no builder {asked.builder!r}",
            resolution=f"It has {', '.join(sorted(builders)) or 'none'}",
        )
    policies = _policies(configuration.master.workers, builder)
    _, policy = policies.pick(builder.properties.get(PROPERTY))
    if asked.policy is not None or asked.image is not None:
        policy = asked.policy or attrs.evolve(policy, image=asked.image or policy.image)
        policies = as_policies(policy)
        builder.properties.pop(PROPERTY, None)
    missing = sorted({use.secret for use in uses(builder)} - set(asked.secrets))
    if missing:
        raise SandboxworkerError(
            f"builder {asked.builder!r} uses the secret {missing[0]!r}, which is not given",
            resolution=f"Give one for this try: --secret {missing[0]}=FILE",
        )
    return Part(builder, policies, policy, configuration.file.parent)


def _policies(workers: Any, builder: Any) -> SandboxPolicies:
    for worker in workers:
        if worker.name in builder.workernames and isinstance(worker, SandboxLatentWorker):
            return worker.policies
    raise SandboxworkerError(
        f"builder {builder.name!r} has no SandboxLatentWorker",
        details=f"its workers are {', '.join(builder.workernames)}",
        resolution="Only sandboxed builders can be tried",
    )


# ---- the source ----------------------------------------------------------------------------------


@attrs.frozen
class Source:
    """The work tree as a repository, and which repository of the builder's it stands for."""

    snapshot: Snapshot
    repository: Repository | None
    url: str
    codebases: tuple[str, ...]


def source_of(asked: Asked, part: Part, place: Path) -> Source:
    """Snapshot the work tree; raises `SandboxworkerError`."""
    steps = git_steps(part.builder.factory)
    branches = [step.branch for step in steps if isinstance(step.branch, str) and step.branch]
    taken = snapshot(asked.directory, place, branches)
    url, repository = _stood_for(asked, steps, taken)
    codebases = {str(getattr(step, "codebase", "")) for step in steps} or {""}
    return Source(taken, repository, url, tuple(sorted(codebases)))


def _stood_for(asked: Asked, steps: list[Any], taken: Snapshot) -> tuple[str, Repository | None]:
    """Which of the builder's repositories the work tree is."""
    if asked.repository is not None:
        return asked.repository, read(asked.repository).repository
    written = {}
    for step in steps:
        if isinstance(step.repourl, str) and (found := _read(step.repourl, step)) is not None:
            written[found] = step.repourl
    if not written:
        remote = next((url for url in taken.remotes if _read(url) is not None), "")
        return remote, _read(remote)
    if len(written) > 1:
        known = {_read(url) for url in taken.remotes}
        written = {found: url for found, url in written.items() if found in known}
    if len(written) != 1:
        raise SandboxworkerError(
            f"builder {asked.builder!r} takes several repositories, and the work tree is "
            "none of them by its remotes",
            resolution="Say which it stands for: --repository URL",
        )
    ((repository, url),) = written.items()
    return url, repository


def _read(url: str, step: Any = None) -> Repository | None:
    try:
        port = getattr(step, "port", None)
        return read(scp_style_to_url_syntax(url, port)).repository
    except (SourceRefused, ValueError):
        return None


# ---- the master ----------------------------------------------------------------------------------


class GivenSecrets(SecretProviderBase):
    """The secrets of ``--secret``."""

    name = "GivenSecrets"

    def checkConfig(self, values: Mapping[str, str]) -> None:
        """There is nothing to get wrong."""

    def reconfigService(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def get(self, entry: str) -> defer.Deferred[str | None]:
        return defer.succeed(self._values.get(entry))


@implementer(IConfigLoader)
@attrs.frozen
class _Loader:
    config: Mapping[str, Any]

    def loadConfig(self) -> MasterConfig:
        return MasterConfig.loadFromDict(dict(self.config), "try")


def configuration(asked: Asked, part: Part, basedir: Path, last: Any) -> dict[str, Any]:
    """The throw-away master's: one worker, one builder, and nothing else."""
    builder = part.builder
    around = Surroundings(
        part.directory, asked.out or basedir / "uploads", asked.master_steps, last
    )
    return {
        "workers": [SandboxLatentWorker(run_name(), policy=part.policies, engine=asked.engine)],
        "builders": [
            BuilderConfig(
                name=builder.name,
                workernames=[run_name()],
                factory=adapted(builder.factory, around),
                workerbuilddir=builder.workerbuilddir,
                env=builder.env,
                properties=builder.properties,
                defaultProperties=builder.defaultProperties,
            )
        ],
        "schedulers": [Triggerable(name=_SCHEDULER, builderNames=[builder.name])],
        "secretsProviders": [GivenSecrets(asked.secrets)],
        "protocols": {},
        "buildbotNetUsageData": None,
        "db": {"db_url": f"sqlite:///{basedir}/state.sqlite"},
    }


class Rehearsal:
    """One throw-away master, from `start` to `stop`."""

    def __init__(self, asked: Asked, part: Part, source: Source, basedir: Path) -> None:
        self._asked = asked
        self._source = source
        self._basedir = basedir
        self._builder = part.builder.name
        self._part = part
        self.master: Any = None

    async def start(self, reactor: Any, last: Any = None) -> None:
        """Make its database and start it; raises `SandboxworkerError`."""
        loader = _Loader(configuration(self._asked, self._part, self._basedir, last))
        try:
            config = loader.loadConfig()
        except ConfigErrors as error:
            raise SandboxworkerError(
                f"builder {self._builder!r} cannot be tried", details="; ".join(error.errors)
            ) from None
        (self._basedir / "buildbot.tac").write_text("")
        options = {"basedir": str(self._basedir), "quiet": True}
        await upgradeDatabase(options, config)
        self.master = BuildMaster(str(self._basedir), reactor=reactor, config_loader=loader)
        await self.master.startService()
        if self._source.repository is not None:
            mirrors = mirrors_of(self.master)
            mirrors.replace(self._source.repository, self._source.snapshot.repository)

    async def submit(self) -> int:
        """Ask for the build: its request's id."""
        updates = self.master.data.updates
        builder_id = await updates.findBuilderId(self._builder)
        taken = self._source.snapshot
        stamp = {
            "repository": self._source.url,
            "branch": taken.branch,
            "revision": taken.commit,
            "project": "",
        }
        _, requests = await updates.addBuildset(
            waited_for=False,
            scheduler=_SCHEDULER,
            sourcestamps=[{**stamp, "codebase": name} for name in self._source.codebases],
            reason="sandboxworker try",
            properties={name: (value, "try") for name, value in self._asked.properties.items()},
            builderids=[builder_id],
        )
        return int(requests[builder_id])

    async def interrupt(self, build: int | None, request: int) -> None:
        """What the Stop button does."""
        control = self.master.data.control
        reason = {"reason": "interrupted"}
        if build is not None:
            await control("stop", reason, ("builds", build))
        await control("cancel", reason, ("buildrequests", request))

    async def stop(self) -> None:
        """Let go of everything; the sandbox is destroyed."""
        if self.master is not None and self.master.running:
            await self.master.stopService()
            await self.master.db.pool.stop()


def result_word(results: int | None) -> str:
    """``success``, ``failure`` and so on."""
    return "unknown" if results is None else str(Results[results])
