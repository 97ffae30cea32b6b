"""``SandboxLatentWorker``: one line of ``master.cfg`` that gives every build its own sandbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from buildbot import config
from buildbot.interfaces import LatentWorkerFailedToSubstantiate
from buildbot.process.results import EXCEPTION, FAILURE, RETRY
from buildbot.worker.latent import AbstractLatentWorker
from twisted.internet import defer
from twisted.python import log
from twisted.python.failure import Failure

from sandboxworker import seccomp, shells
from sandboxworker.connection import SandboxConnection
from sandboxworker.ending import before_finish
from sandboxworker.engine.address import EngineAddress, resolve
from sandboxworker.engine.docker import ENGINES, DockerEngine
from sandboxworker.engine.interface import Usage
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
from sandboxworker.outcome import outcome
from sandboxworker.policies import PROPERTY, SandboxPolicies, as_policies
from sandboxworker.policy import SandboxPolicy, show_seconds
from sandboxworker.portless import allow_no_protocols
from sandboxworker.properties import give
from sandboxworker.sandbox import Owner, Sandbox
from sandboxworker.spec import UID_RANGE, ContainerSpec, build_spec
from sandboxworker.trust import check_trust, ignored_choice
from sandboxworker.unexpected import unexpected

#: Seconds that a finished build waits to be told what it has used.
USAGE_DEADLINE = 5.0
#: Seconds that a step between two commands may take to end by itself when time is over.
INTERRUPT_AFTER = 2.0
_SOURCE = "SandboxLatentWorker"


class SandboxLatentWorker(AbstractLatentWorker):
    """A worker that makes a locked-down container for every build, and destroys it afterwards.

    ``policy``: a `SandboxPolicy`, or `SandboxPolicies` of which each builder picks one.
    ``engine``: a URL (``unix:///path``, ``tcp://host:port``, ``ssh://host``) or `EngineAddress`;
    without one ``DOCKER_HOST`` is taken, and without that Docker's own socket.
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
    _build: Any = None
    #: Of the running build; what a reconfigure brings is for the next one.
    _policy: SandboxPolicy
    #: What there is to pick from.
    policies: SandboxPolicies
    _house: Housekeeping
    #: Of the current build: who refused it a sandbox; its deadline came; why it is a failure
    #: whatever its steps make of it; its last step is over.
    _refused_by: Actor | None = None
    _is_expired = False
    _failure: str | None = None
    _is_ending = False
    #: The name of the current build's policy, and its properties on their way to the database.
    _picked: str | None = None
    _given: defer.Deferred[None]
    #: The destruction of the sandbox before this one.
    _going: defer.Deferred[None] | None = None

    # configuration

    def checkConfig(
        self,
        name: str,
        *positional: Any,
        policy: Any = None,
        engine: Any = None,
        standby: Any = 0,
        **kwargs: Any,
    ) -> None:
        faults = (
            *argument_faults(positional, kwargs),
            *_policy_faults(policy),
            *_engine_faults(engine),
            *_standby_faults(standby),
        )
        for fault in faults:
            config.error(f"SandboxLatentWorker {name!r}: {fault}")
        self.policies = as_policies(policy)
        super().checkConfig(name, None, **worker_arguments(kwargs))

    @defer.inlineCallbacks
    def reconfigService(
        self, name: str, policy: Any = None, engine: Any = None, standby: int = 0, **kwargs: Any
    ) -> Any:
        yield super().reconfigService(name, None, **worker_arguments(kwargs))
        self.policies = as_policies(policy)
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
        yield self._going
        self._watch_no_more()
        if self._address is not None:
            address, self._address, self._engine = self._address, None, None
            yield self._keep_ready(address, 0)
            yield defer.ensureDeferred(ENGINES.release(address))

    # a build

    def start_instance(self, build: Any) -> defer.Deferred[bool]:
        self._build = build
        self._refused_by, self._failure, self._picked = None, None, None
        self._is_expired = self._is_ending = False
        before_finish(build, lambda result: self._conclude(build, result), lambda: self._failure)
        return defer.ensureDeferred(self._start_instance())

    async def _start_instance(self) -> bool:
        try:
            await self._pick_policy()
            sandbox = await self._ready_sandbox()
        except SandboxworkerError as error:
            await self._not_started(error)
            raise LatentWorkerFailedToSubstantiate(str(error)) from None
        # Buildbot takes a connection only after this has returned.
        self.master.reactor.callLater(0, self._attach, sandbox)
        return True

    async def _pick_policy(self) -> None:
        """By the builder's configuration alone, whatever the build's properties say (T19)."""
        builder = self._build.builder.config
        name, self._policy = self.policies.pick(builder.properties.get(PROPERTY))
        ignored = ignored_choice(name, self._build.getProperties())
        if ignored is not None:
            log.msg(f"sandboxworker: worker {self.name!r}: {ignored}")
            await self._build._preparation_step.addCompleteLog("sandboxworker", f"{ignored}\n")
        self._picked = name

    async def _not_started(self, error: SandboxworkerError) -> None:
        """Tell why in the build's own log, in one sentence.

        Buildbot would show the traceback of whatever is raised here, but for a build that is
        stopped already, as this one then is.
        """
        self._refused_by = error.actor
        if self._picked is not None:
            self._build.setProperty(PROPERTY, self._picked, _SOURCE)
        build, sentence = self._build, f"worker {self.name!r}: {error}"
        log.msg(f"sandboxworker: {sentence}")
        step = build._preparation_step
        await step.addCompleteLog("sandboxworker", f"{sentence}\n")
        await self.master.data.updates.setStepStateString(step.stepid, "no sandbox could be made")
        if error.actor is Actor.ENGINE:
            # It may pass; what Buildbot calls quarantine is the pause before the next try.
            self.putInQuarantine()
        _stop(build, sentence, RETRY if error.actor is Actor.ENGINE else EXCEPTION)

    async def _ready_sandbox(self) -> Sandbox:
        """One that was kept ready, or else a new one: nobody waits for the next to be ready."""
        spec = await self._spec(self._policy)
        engine = self._engine_for_build()
        owner = Owner(self._house.identity.id, str(self.name))
        audit = self._house.audit_of(self._build)
        kept = self._house.take_ready(engine.address, spec)
        sandbox = kept or Sandbox(engine, engine.uids, spec, owner, self.master.reactor, audit)
        self._sandbox = sandbox
        self._given = defer.ensureDeferred(self._give_properties(self._build, sandbox))
        sandbox.on_lost = self._sandbox_lost
        sandbox.on_deadline = self._deadline_reached
        if kept is None:
            await sandbox.start()
            shells.prepare(sandbox)  # While Buildbot makes ready.
        else:
            kept.claim(owner, audit)
        return sandbox

    async def _spec(self, policy: SandboxPolicy) -> ContainerSpec:
        image = await self._running_engine().image(policy.image)
        return build_spec(policy, image, seccomp.load(policy.seccomp))

    def _running_engine(self) -> DockerEngine:
        if self._engine is None:
            raise EngineError(f"worker {self.name!r} is shutting down")
        return self._engine

    def _attach(self, sandbox: Sandbox) -> None:
        if sandbox is self._sandbox:
            attaching = defer.ensureDeferred(self._attach_connection(sandbox))
            attaching.addErrback(
                unexpected(f"worker {self.name!r}: attaching to sandbox {sandbox.id}")
            )
            self._deferwaiter.add(attaching)

    async def _attach_connection(self, sandbox: Sandbox) -> None:
        """As Buildbot's own `LocalWorker` does."""
        os_name = await OS_NAMES.of(sandbox)
        if sandbox is not self._sandbox:  # The build was stopped meanwhile.
            return
        await self._given
        if sandbox is not self._sandbox:
            return
        connection = SandboxConnection(self, sandbox, self._policy, os_name)
        if await self.master.workers.newConnection(connection, self.name):
            await self.attached(connection)
            if sandbox.lost is not None:  # Nobody could be told before.
                connection.loseConnection()
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
            PROPERTY: self._picked,
            "sandbox_id": sandbox.id,
            "sandbox_image_id": sandbox.spec.image_id,
            "sandbox_spec": sandbox.spec.digest,
        }
        await give(build, properties, _SOURCE)

    async def _conclude(self, build: Any, result: str) -> None:
        """Its last step is over: what it has used, and how it ended, as properties and for audit.

        What befalls the sandbox from here on does not change the build's result any more.
        """
        self._is_ending = True
        sandbox = self._sandbox
        usage = await self._usage(sandbox)
        ended = outcome(
            result,
            refused_by=self._refused_by,
            is_expired=self._is_expired,
            is_lost=sandbox is not None
            and sandbox.lost is not None
            and not _is_the_builds_doing(sandbox.lost),
        )
        figures = {
            "outcome": ended.value,
            "memory_peak": usage.memory_peak,
            "cpu_seconds": usage.cpu_seconds,
        }
        known = {name: value for name, value in figures.items() if value is not None}
        if sandbox is not None:
            sandbox.conclude(**known)
        properties = {f"sandbox_{name}": value for name, value in known.items()}
        await give(build, properties, _SOURCE)

    async def _usage(self, sandbox: Sandbox | None) -> Usage:
        if sandbox is None:
            return Usage()
        asking = defer.ensureDeferred(sandbox.usage())
        asking.addTimeout(USAGE_DEADLINE, self.master.reactor)
        try:
            return await asking
        except defer.TimeoutError:
            return Usage()

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
        before, self._going = self._going, defer.ensureDeferred(self._destroy(sandbox, address))
        self._going.addErrback(unexpected(f"worker {self.name!r}: destroying its sandbox"))
        if before is not None:
            await before

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
        if self.master is not None:
            super().buildFinished(wfb)

    # what befalls a sandbox

    def _sandbox_lost(self, reason: Exception) -> None:
        log.msg(f"sandboxworker: worker {self.name!r} lost its sandbox: {reason}")
        if self.conn is None or self._is_ending:
            return
        if _is_the_builds_doing(reason):
            # To lose the connection would have it tried again, for ever.
            self._failure = f"sandboxworker: {reason}"
            self.conn.refuse(self._failure)
            _stop(self._build, self._failure, FAILURE)
            return
        self.conn.loseConnection()

    def _deadline_reached(self) -> None:
        """The build's own doing: it fails, and is not tried again."""
        build = self._build
        if build is None or self._is_ending:
            return
        self._is_expired = True
        limit = show_seconds(self._policy.max_runtime)
        self._failure = reason = f"sandboxworker: the policy's max_runtime of {limit} is over"
        is_running = self.conn is not None and self.conn.expire(reason)
        _stop(build, reason, FAILURE)
        if not is_running:
            self._interrupt_later(build, reason)

    def _interrupt_later(self, build: Any, reason: str) -> None:
        """What a step does on the master's side is soon over, as a rule; a lock may be waited for.

        A step that is about to begin or to end does not take an interruption well.
        """
        self.master.reactor.callLater(
            INTERRUPT_AFTER, self._interrupt, build, reason, build.currentStep
        )

    def _interrupt(self, build: Any, reason: str, step: Any) -> None:
        if build is not self._build or self._is_ending:
            return
        if step is None or step.stepid is None or build.currentStep is not step:
            self._interrupt_later(build, reason)
            return
        stopping = build.stopBuild(reason, results=FAILURE)
        stopping.addErrback(self._not_interrupted, build, reason)

    def _not_interrupted(self, failure: Failure, build: Any, reason: str) -> None:
        """It was just ending, as a rule."""
        error = failure.getErrorMessage()
        log.msg(f"sandboxworker: worker {self.name!r}: a step was not interrupted: {error}")
        self._interrupt_later(build, reason)


allow_no_protocols(lambda worker: isinstance(worker, SandboxLatentWorker))
check_trust(lambda worker: worker.policies if isinstance(worker, SandboxLatentWorker) else None)


def _stop(build: Any, reason: str, results: int) -> None:
    """``stopBuild`` without its interruption of a step, which would make that CANCELLED."""
    build.stopped, build.stopped_reason, build.results = True, reason, results


def _is_the_builds_doing(reason: Exception) -> bool:
    return isinstance(reason, SandboxworkerError) and reason.actor is Actor.BUILD


def _policy_faults(policy: Any) -> list[str]:
    if not isinstance(policy, (SandboxPolicy, SandboxPolicies)):
        return [f"policy={policy!r}: a SandboxPolicy is required"]
    faults = [f"policy: {fault}" for fault in policy.faults()]
    profiles = map(_profile_fault, sorted(as_policies(policy).profiles))
    return [*faults, *(f"policy: {fault}" for fault in profiles if fault)]


def _profile_fault(name: str) -> str | None:
    try:
        seccomp.load(name)
    except SandboxworkerError as error:
        return str(error)
    return None


def _standby_faults(standby: Any) -> list[str]:
    is_number = isinstance(standby, int) and not isinstance(standby, bool)
    if is_number and 0 <= standby <= len(UID_RANGE):
        return []
    return [f"standby={standby!r}: a whole number from 0 to {len(UID_RANGE)}"]


def _engine_faults(engine: Any) -> list[str]:
    try:
        resolve(engine)
    except SandboxworkerError as error:
        return [str(error)]
    return []
