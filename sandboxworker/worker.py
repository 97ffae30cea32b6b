"""``SandboxLatentWorker``: one line of ``master.cfg`` that gives every build its own sandbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from buildbot import config
from buildbot.interfaces import LatentWorkerFailedToSubstantiate
from buildbot.worker.latent import AbstractLatentWorker, States
from twisted.internet import defer
from twisted.python import log
from twisted.python.failure import Failure

from sandboxworker import seccomp
from sandboxworker.audit import Audit
from sandboxworker.connection import SandboxConnection
from sandboxworker.early import LONGEST_EARLY, EarlyStart, begin, build_begun
from sandboxworker.ending import Ending
from sandboxworker.engine.address import EngineAddress, resolve
from sandboxworker.engine.docker import ENGINES, DockerEngine
from sandboxworker.errors import (
    Actor,
    EngineError,
    EngineUnreachable,
    NotDestroyed,
    SandboxworkerError,
)
from sandboxworker.housekeeping import Housekeeping, housekeeping
from sandboxworker.migrating import argument_faults, worker_arguments
from sandboxworker.osrelease import OS_NAMES
from sandboxworker.policies import PROPERTY, SandboxPolicies, as_policies
from sandboxworker.policy import SandboxPolicy
from sandboxworker.portless import allow_no_protocols
from sandboxworker.properties import give
from sandboxworker.reconfigured import Reconfigured
from sandboxworker.retries import MAX_RETRIES
from sandboxworker.sandbox import Owner, Sandbox
from sandboxworker.spec import ContainerSpec, build_spec
from sandboxworker.trust import check_trust, ignored_choice
from sandboxworker.unexpected import unexpected
from sandboxworker.worker_faults import worker_faults

_SOURCE = "SandboxLatentWorker"


class SandboxLatentWorker(Reconfigured, AbstractLatentWorker):
    """A worker that makes a locked-down container for every build, and destroys it afterwards.

    ``policy``: a `SandboxPolicy`, or `SandboxPolicies` of which each builder picks one.
    ``engine``: a URL (``unix:///path``, ``tcp://host:port``, ``ssh://host``) or `EngineAddress`;
    without one ``DOCKER_HOST`` is taken, and without that Docker's own socket.
    ``max_retries``: times that a build is built again after faults that are not its own: an engine
    that could not make its sandbox, or lost it; 0 for never.
    ``standby``: sandboxes kept ready for each of its policies, shared with all workers of the same
    engine and policy, of which the largest number counts; 0 for none.
    The rest are `AbstractWorker`'s: ``properties``, ``defaultProperties``, ``locks``,
    ``notify_on_missing``, ``missing_timeout``, ``machine_name``.
    Nothing listens: ``c['protocols']`` may stay empty, and there is no password.
    """

    _address: EngineAddress | None = None
    _engine: DockerEngine | None = None
    #: Ends the watch over the engine's health.
    _unwatch: Callable[[], None] | None = None
    _sandbox: Sandbox | None = None
    _build_address: EngineAddress | None = None
    #: What starts for a build that has not asked for it yet.
    _early: EarlyStart | None = None
    _build: Any = None
    #: What there is to pick from.
    policies: SandboxPolicies
    _house: Housekeeping
    #: The current build's properties on their way to the database.
    _given: defer.Deferred[None]
    #: The destruction of the sandbox before this one.
    _going: defer.Deferred[None] | None = None
    _max_retries = MAX_RETRIES
    #: Of the current build, or of the last one.
    _ending: Ending | None = None

    #: Seconds that Buildbot's pauses after failed starts grow to; an engine may soon be back.
    quarantine_max_timeout = 60

    # configuration

    def checkConfig(
        self,
        name: str,
        *positional: Any,
        policy: Any = None,
        engine: Any = None,
        max_retries: Any = MAX_RETRIES,
        standby: Any = 0,
        **kwargs: Any,
    ) -> None:
        for fault in (
            *argument_faults(positional, kwargs),
            *worker_faults(policy, engine, max_retries, standby),
        ):
            config.error(f"SandboxLatentWorker {name!r}: {fault}")
        self.policies = as_policies(policy)
        super().checkConfig(name, None, **worker_arguments(kwargs))

    @defer.inlineCallbacks
    def reconfigService(
        self,
        name: str,
        policy: Any = None,
        engine: Any = None,
        max_retries: int = MAX_RETRIES,
        standby: int = 0,
        **kwargs: Any,
    ) -> Any:
        yield super().reconfigService(name, None, **worker_arguments(kwargs))
        self.policies, self._max_retries = as_policies(policy), max_retries
        self._house = yield defer.ensureDeferred(housekeeping(self.master))
        address = resolve(engine)
        yield self._use_engine(address)
        yield self._keep_ready(address, standby)
        self._deferwaiter.add(defer.ensureDeferred(self._look_ahead()))

    async def _use_engine(self, address: EngineAddress) -> None:
        if address == self._address:
            return
        previous, self._address = self._address, address
        self._watch_no_more()
        self._engine = ENGINES.acquire(address, self.master.reactor)
        self._unwatch = self._engine.health.watch(self._engine_changed)
        if previous is not None:
            await ENGINES.release(previous)

    def _watch_no_more(self) -> None:
        unwatch, self._unwatch = self._unwatch, None
        if unwatch is not None:
            unwatch()

    def canStartBuild(self) -> bool:
        """Not while its engine does not answer: other workers' engines may."""
        is_up = self._engine is not None and self._engine.health.is_up
        return is_up and bool(super().canStartBuild())

    def _engine_changed(self, is_up: bool) -> None:
        """What failed while the engine was going down says nothing of it when it is back."""
        if is_up:
            self.resetQuarantine()
            self.stopQuarantineTimer()
            self._deferwaiter.add(defer.ensureDeferred(self._look_ahead()))
            self.botmaster.maybeStartBuildsForWorker(self.name)

    def _keep_ready(self, address: EngineAddress, count: int) -> defer.Deferred[None]:
        policies = self.policies.policies.values()
        return self._house.keep_ready(str(self.name), address, policies, count)

    async def _look_ahead(self) -> None:
        """Say now what would refuse the next build; builds may not come for hours."""
        try:
            for policy in self.policies.policies.values():
                await self._spec(policy)
        except EngineUnreachable:
            return  # Its health is told once for all workers, and looked at again.
        except SandboxworkerError as error:
            log.msg(f"sandboxworker: worker {self.name!r} cannot start builds: {error}")

    @defer.inlineCallbacks
    def stopService(self) -> Any:
        yield super().stopService()
        self._give_up_early()
        yield self._going
        self._watch_no_more()
        if self._address is not None:
            address, self._address, self._engine = self._address, None, None
            yield self._keep_ready(address, 0)
            yield defer.ensureDeferred(ENGINES.release(address))

    # before a build

    def buildStarted(self, wfb: Any) -> None:
        """A build will be this worker's, and soon ask for its sandbox, which begins to start now.

        Not while the former one is going: a worker has two containers at most.
        """
        super().buildStarted(wfb)
        build = build_begun(wfb.builder)
        is_free = self._going is None or self._going.called
        if build is None or self._engine is None or self._early is not None or not is_free:
            return
        if self.state is States.NOT_SUBSTANTIATED:
            engine = self._engine
            self._early = EarlyStart(
                build,
                ENGINES.acquire(engine.address, self.master.reactor).address,
                self.master.reactor,
                lambda: self._make_early(build, engine),
                self._give_up_early,
            )

    async def _make_early(self, build: Any, engine: DockerEngine) -> Sandbox | None:
        """None where one is kept ready, which the build will claim."""
        _, policy = self.policies.pick(build.builder.config.properties.get(PROPERTY))
        spec = await self._spec(policy)
        if self._early is not None:
            self._early.know(policy, spec)
        if self._house.has_ready(engine.address, spec):
            return None
        await build.get_buildid()  # All that is told of the sandbox is told as this build's.
        if build.stopped or not build.do_build:
            return None
        audit, reactor = self._house.audit_of(build), self.master.reactor
        return Sandbox(engine, engine.uids, spec, self._owner, reactor, audit, waits=LONGEST_EARLY)

    def _give_up_early(self) -> None:
        early, self._early = self._early, None
        if early is not None:
            early.end()
            self._let_go(early.sandbox, early.address)

    # a build

    def start_instance(self, build: Any) -> defer.Deferred[bool]:
        self._build = build
        audit = self._house.audit_of(build)
        self._ending = ending = Ending(str(self.name), build, audit, self._max_retries)
        return defer.ensureDeferred(self._start_instance(ending, audit))

    async def _start_instance(self, ending: Ending, audit: Audit) -> bool:
        try:
            await self._pick_policy(ending)
            sandbox = await self._ready_sandbox(ending, audit)
        except SandboxworkerError as error:
            early = self._early
            if ending.sandbox is None and early is not None and early.build is self._build:
                ending.sandbox = early.sandbox  # It never got to it, and its end is told of it.
            await ending.refused(error)
            if error.actor is Actor.ENGINE:
                # It may pass; what Buildbot calls quarantine is the pause before the next try.
                self.putInQuarantine()
            raise LatentWorkerFailedToSubstantiate(str(error)) from None
        # Buildbot takes a connection only after this has returned.
        self.master.reactor.callLater(0, self._attach, sandbox, ending)
        return True

    async def _pick_policy(self, ending: Ending) -> None:
        """By the builder's configuration alone, whatever the build's properties say (T19)."""
        builder = self._build.builder.config
        name, ending.policy = self.policies.pick(builder.properties.get(PROPERTY))
        ignored = ignored_choice(name, self._build.getProperties())
        if ignored is not None:
            log.msg(f"sandboxworker: worker {self.name!r}: {ignored}")
            await self._build._preparation_step.addCompleteLog("sandboxworker", f"{ignored}\n")
        self._build.setProperty(PROPERTY, name, "SandboxLatentWorker")

    async def _ready_sandbox(self, ending: Ending, audit: Audit) -> Sandbox:
        """One that starts already, one kept ready, or a new one: nobody waits for another's."""
        spec = self._known_spec(ending.policy) or await self._spec(ending.policy)
        sandbox = self._take_early(spec) or self._take_ready(spec, audit) or self._new(spec, audit)
        self._sandbox = ending.sandbox = sandbox
        self._given = defer.ensureDeferred(self._give_properties(self._build, sandbox))
        sandbox.on_lost = ending.lost
        sandbox.on_deadline = ending.expired
        await sandbox.started()
        return sandbox

    def _known_spec(self, policy: SandboxPolicy) -> ContainerSpec | None:
        """Where the image was asked for this very build, some writes to the database ago."""
        if self._early is None:
            return None
        return self._early.spec(self._build, self._running_engine().address, policy)

    def _take_early(self, spec: ContainerSpec) -> Sandbox | None:
        early = self._early
        if early is None or not early.fits(self._build, self._running_engine().address, spec):
            self._give_up_early()
            return None
        early.end()
        self._early, self._build_address, sandbox = None, early.address, early.sandbox
        if sandbox is not None:
            sandbox.adopt()
        return sandbox

    def _take_ready(self, spec: ContainerSpec, audit: Audit) -> Sandbox | None:
        address = self._running_engine().address
        sandbox = self._house.take_ready(address, spec)
        if sandbox is not None:
            self._engine_for_build()
            sandbox.claim(self._owner, audit)
        return sandbox

    def _new(self, spec: ContainerSpec, audit: Audit) -> Sandbox:
        engine = self._engine_for_build()
        sandbox = Sandbox(engine, engine.uids, spec, self._owner, self.master.reactor, audit)
        begin(sandbox)
        return sandbox

    @property
    def _owner(self) -> Owner:
        return Owner(self._house.identity.id, str(self.name))

    async def _spec(self, policy: SandboxPolicy) -> ContainerSpec:
        image = await self._running_engine().image(policy.image)
        return build_spec(policy, image, seccomp.load(policy.seccomp))

    def _running_engine(self) -> DockerEngine:
        if self._engine is None:
            raise EngineError(f"worker {self.name!r} is shutting down")
        return self._engine

    def _attach(self, sandbox: Sandbox, ending: Ending) -> None:
        if sandbox is self._sandbox:
            attaching = defer.ensureDeferred(self._attach_connection(sandbox, ending))
            attaching.addErrback(self._not_attached, sandbox)
            self._deferwaiter.add(attaching)

    def _not_attached(self, failure: Failure, sandbox: Sandbox) -> Any:
        """Buildbot would wait an hour for it (``missing_timeout``)."""
        unexpected(f"worker {self.name!r}: attaching to sandbox {sandbox.id}")(failure)
        return self._substantiation_failed(failure)

    async def _attach_connection(self, sandbox: Sandbox, ending: Ending) -> None:
        """As Buildbot's own `LocalWorker` does."""
        os_name = await OS_NAMES.of(sandbox)
        if sandbox is not self._sandbox:  # The build was stopped meanwhile.
            return
        await self._given
        if sandbox is not self._sandbox:
            return
        connection = SandboxConnection(self, sandbox, ending.policy, os_name)
        if not await self.master.workers.newConnection(connection, self.name):
            raise LatentWorkerFailedToSubstantiate(f"worker {self.name!r} takes no connection")
        await self.attached(connection)
        ending.attached(connection)
        await self._publish(connection)

    async def _publish(self, connection: SandboxConnection) -> None:
        """The worker's info for the web interface; Buildbot stores but four fields of it."""
        if self.conn is connection:
            await self.master.data.updates.workerConnected(
                workerid=self.workerid,
                masterid=self.master.masterid,
                workerinfo=connection.shown_info(),
            )

    async def _give_properties(self, build: Any, sandbox: Sandbox) -> None:
        """So that a build can be told apart, and found in the audit log, by its sandbox."""
        properties = {
            PROPERTY: build.getProperty(PROPERTY),
            "sandbox_id": sandbox.id,
            "sandbox_image_id": sandbox.spec.image_id,
            "sandbox_spec": sandbox.spec.digest,
        }
        await give(build, properties, _SOURCE)

    def _engine_for_build(self) -> DockerEngine:
        """The engine, held until this build's sandbox is gone, whatever a reconfigure changes."""
        self._build_address = address = self._running_engine().address
        return ENGINES.acquire(address, self.master.reactor)

    def stop_instance(self, fast: bool = False) -> defer.Deferred[None]:
        """Destroy the sandbox; bounded in time, since Buildbot's shutdown waits for it."""
        return defer.ensureDeferred(self._stop_instance())

    async def _stop_instance(self) -> None:
        """The next build need not wait for this sandbox's end, only for that of the one before."""
        sandbox, self._sandbox, self._build = self._sandbox, None, None
        address, self._build_address = self._build_address, None
        before = self._going
        self._let_go(sandbox, address)
        if before is not None:
            await before

    def _let_go(self, sandbox: Sandbox | None, address: EngineAddress | None) -> None:
        self._going = defer.ensureDeferred(self._destroy(sandbox, address))
        self._going.addErrback(unexpected(f"worker {self.name!r}: destroying its sandbox"))

    async def _destroy(self, sandbox: Sandbox | None, address: EngineAddress | None) -> None:
        try:
            if sandbox is not None:
                await sandbox.destroy()
        except NotDestroyed as error:
            log.msg(f"sandboxworker: worker {self.name!r}: {error}")
            if sandbox is not None and address is not None:
                self._house.adopt(sandbox, address)
        finally:
            if address is not None:
                await ENGINES.release(address)

    def buildFinished(self, wfb: Any) -> None:
        """Upstream forgets that a worker may have left the configuration meanwhile."""
        self._give_up_early()
        if self.master is not None:
            super().buildFinished(wfb)

    def putInQuarantine(self) -> None:
        """For what went wrong before a build began; Buildbot would for each exception of a build's.

        So no build can have its worker withheld from the next one.
        """
        if self._ending is None or not self._ending.is_over:
            super().putInQuarantine()


allow_no_protocols(lambda worker: isinstance(worker, SandboxLatentWorker))
check_trust(lambda worker: worker.policies if isinstance(worker, SandboxLatentWorker) else None)
