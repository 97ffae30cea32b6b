"""What the sandboxed workers of one master share: identity, audit log, reaper, sandboxes ready.

Made by the first worker that needs it; stopped after the last one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import attrs
from buildbot import config
from buildbot.util.service import BuildbotService, ReconfigurableServiceMixin, SharedService
from twisted.internet import defer, task
from twisted.python import log

from sandboxworker import identity, pressure
from sandboxworker.audit import Audit, Event
from sandboxworker.auditlog import AuditLog, AuditSettings
from sandboxworker.engine.address import EngineAddress
from sandboxworker.engine.docker import ENGINES
from sandboxworker.identity import Identity
from sandboxworker.policy import SandboxPolicy
from sandboxworker.reaper import Reaper
from sandboxworker.sandbox import Sandbox
from sandboxworker.spec import ContainerSpec
from sandboxworker.standby import Standby
from sandboxworker.unexpected import unexpected

#: Seconds between two looks at the engines, and until the first one after a start or reconfigure.
SWEEP_SECONDS = 180.0
FIRST_SWEEP_SECONDS = 1.0


class SandboxAudit(BuildbotService):
    """Where the audit log goes; in ``c['services']``, and not needed for the default.

    Arguments as for `AuditSettings`: ``file``, ``rotate_at``, ``keep``, ``syslog``.
    """

    name = "SandboxAudit"
    settings = AuditSettings()

    def checkConfig(self, **arguments: Any) -> None:
        if self.name != SandboxAudit.name:
            config.error(
                f"SandboxAudit: name={self.name!r}: there is one, and it has no other name"
            )
        names = {field.name for field in attrs.fields(AuditSettings)}
        known = {name: value for name, value in arguments.items() if name in names}
        for name in sorted(set(arguments) - set(known)):
            config.error(f"SandboxAudit: {name}=: no such argument")
        self.settings = AuditSettings(**known)
        for fault in self.settings.faults():
            config.error(f"SandboxAudit: {fault}")

    def reconfigService(self, **_arguments: Any) -> defer.Deferred[None]:
        """`Housekeeping` reads it from the configuration, whichever of them comes first."""
        return defer.succeed(None)


async def housekeeping(master: Any) -> Housekeeping:
    """The one of this master."""
    found: Housekeeping = await Housekeeping.getService(master)
    return found


class Housekeeping(ReconfigurableServiceMixin, SharedService):
    """One for each master; `identity` and `audit` are there once it is started."""

    #: Before the workers (`BuildbotService`'s is 128): what they tell goes where it belongs now.
    reconfig_priority = 1000

    identity: Identity
    audit: AuditLog

    def __init__(self) -> None:
        super().__init__()
        self._settings: AuditSettings | None = None
        self._reaper: Reaper | None = None
        self._clock: Any = None
        self._first: Any = None
        self._sweeps: dict[EngineAddress, defer.Deferred[None]] = {}
        self._standbys: dict[EngineAddress, Standby] = {}

    @property
    def basedir(self) -> Path:
        return Path(self.master.basedir)

    # life

    @defer.inlineCallbacks
    def startService(self) -> Any:
        reactor = self.master.reactor
        self.identity = _claimed(self.basedir)
        self.audit = AuditLog(self.identity.id, reactor, log.msg)
        yield defer.ensureDeferred(self._use_sinks(self.master.config))
        self._tell_identity()
        self._reaper = Reaper(self.identity.id, reactor, self.audit.record)
        self._clock = task.LoopingCall(self._sweep)
        self._clock.clock = reactor
        self._clock.start(SWEEP_SECONDS, now=False).addErrback(unexpected("reaping"))
        self._sweep_soon()
        yield super().startService()

    def reconfigServiceWithBuildbotConfig(self, new_config: Any) -> defer.Deferred[None]:
        self._sweep_soon()
        return defer.ensureDeferred(self._use_sinks(new_config))

    @defer.inlineCallbacks
    def stopService(self) -> Any:
        yield super().stopService()
        self._clock.stop()
        yield self._stop_standbys(list(self._standbys))
        if self._first.active():
            self._first.cancel()
        for sweep in list(self._sweeps.values()):
            sweep.cancel()
        if self._reaper is not None:
            yield defer.ensureDeferred(self._reaper.stop())
        yield defer.DeferredList(list(self._sweeps.values()))
        yield defer.ensureDeferred(self.audit.close())
        self.identity.release()

    async def _use_sinks(self, new_config: Any) -> None:
        service = new_config.services.get(SandboxAudit.name)
        settings = AuditSettings() if service is None else service.settings
        if settings != self._settings:
            self._settings = settings
            await self.audit.use(settings.sinks(self.basedir, is_shared=not self.identity.is_kept))

    def _tell_identity(self) -> None:
        reason = _why_new(self.identity)
        if reason is not None:
            log.msg(f"sandboxworker: {reason}")
            self.audit.record(
                Event(
                    "master.identified", fields={"reason": reason, "former": self.identity.former}
                )
            )

    # for workers

    def audit_of(self, build: Any) -> Audit:
        """The audit log, with each event told as this build's."""
        known = {
            "builder": str(build.builder.name),
            "build": build.number,
            "buildid": build.buildid,
        }
        return lambda event: self.audit.record(event.also(**known))

    def adopt(self, sandbox: Sandbox, address: EngineAddress) -> None:
        """Go on destroying what its engine did not confirm to be gone in time."""
        if self._reaper is not None:
            ENGINES.acquire(address, self.master.reactor)
            self._reaper.adopt(sandbox, lambda: ENGINES.release(address))

    # sandboxes kept ready

    def keep_ready(
        self, worker: str, address: EngineAddress, policies: Iterable[SandboxPolicy], count: int
    ) -> defer.Deferred[None]:
        """Have this many ready for a worker, and none elsewhere; 0 where it wishes none.

        The result fires when what nobody wishes any more is gone.
        """
        if count > 0 and address not in self._standbys:
            self._standbys[address] = self._new_standby(address)
        for place, standby in self._standbys.items():
            standby.wish(worker, policies, count if place == address else 0)
        unwanted = [place for place, each in self._standbys.items() if not each.is_wanted]
        return self._stop_standbys(unwanted)

    def take_ready(self, address: EngineAddress, spec: ContainerSpec) -> Sandbox | None:
        """A sandbox that is exactly this, if one is ready."""
        standby = self._standbys.get(address)
        return None if standby is None else standby.take(spec)

    def has_ready(self, address: EngineAddress, spec: ContainerSpec) -> bool:
        """Whether a sandbox that is exactly this is ready."""
        standby = self._standbys.get(address)
        return standby is not None and standby.has(spec)

    def ready_on(self, address: EngineAddress) -> int:
        """How many sandboxes wait for a build on this engine."""
        return self._standbys[address].ready if address in self._standbys else 0

    def ready_by_engine(self) -> dict[str, int]:
        """How many sandboxes wait for a build, by the engine's address."""
        return {str(address): each.ready for address, each in self._standbys.items()}

    def _new_standby(self, address: EngineAddress) -> Standby:
        engine = ENGINES.acquire(address, self.master.reactor)
        return Standby(
            engine,
            engine.uids,
            self.identity.id,
            self.master.reactor,
            self.audit.record,
            # What another machine has left is not known here.
            is_short=pressure.is_short_here if address.is_unix else lambda: False,
            adopt=lambda sandbox: self.adopt(sandbox, address),
        )

    def _stop_standbys(self, places: Iterable[EngineAddress]) -> defer.Deferred[None]:
        stopping = [self._stop_standby(place, self._standbys.pop(place)) for place in places]
        over: Any = defer.DeferredList([defer.ensureDeferred(each) for each in stopping])
        return cast(defer.Deferred[None], over.addCallback(lambda _: None))

    async def _stop_standby(self, address: EngineAddress, standby: Standby) -> None:
        try:
            await standby.stop()
        finally:
            await ENGINES.release(address)

    # the reaper

    def _sweep_soon(self) -> None:
        """Not at once: the workers may be about to name their engines."""
        if self._first is None or not self._first.active():
            self._first = self.master.reactor.callLater(FIRST_SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Each engine apart from the others, as one may hang."""
        for address in ENGINES.addresses:
            if address not in self._sweeps:
                self._sweeps[address] = sweep = defer.ensureDeferred(self._sweep_engine(address))
                sweep.addErrback(_unless_cancelled)
                sweep.addErrback(unexpected(f"reaping on {address}"))
                sweep.addBoth(self._swept, address)

    def _swept(self, _: Any, address: EngineAddress) -> None:
        self._sweeps.pop(address, None)

    async def _sweep_engine(self, address: EngineAddress) -> None:
        engine = ENGINES.acquire(address, self.master.reactor)
        try:
            if self._reaper is not None:
                await self._reaper.sweep(engine)
        finally:
            await ENGINES.release(address)


def _unless_cancelled(failure: Any) -> None:
    failure.trap(defer.CancelledError)


def _claimed(basedir: Path) -> Identity:
    try:
        return identity.claim(basedir) or identity.stand_in()
    except OSError as error:
        log.msg(
            f"sandboxworker: {basedir / identity.ID_FILE} cannot be kept ({error.strerror}): "
            "what this master may leave behind is not found after its next start. "
            "Let its user write to that directory"
        )
        return identity.stand_in()


def _why_new(claimed: Identity) -> str | None:
    if not claimed.is_kept:
        return (
            f"this master's id is {claimed.id} for this run only, since another process holds "
            f"{identity.ID_FILE}; give each master a directory of its own"
        )
    if claimed.former is not None:
        return (
            f"this master's id is {claimed.id} from now on; {claimed.former} was made in another "
            "place, of which this directory is a copy, or from which it was moved"
        )
    return None
