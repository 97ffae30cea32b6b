"""Sandboxes kept ready: verified and started before any build asks, and used once.

Equal specs are interchangeable, so all workers of an engine share what is kept for a spec.
A sandbox that a build has taken never comes back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet import defer
from twisted.python import log

from sandboxworker import seccomp, shells
from sandboxworker.audit import Audit
from sandboxworker.engine.interface import Engine
from sandboxworker.engine.uids import UidRange
from sandboxworker.errors import NotDestroyed, SandboxworkerError
from sandboxworker.osrelease import OS_NAMES
from sandboxworker.policy import SandboxPolicy
from sandboxworker.sandbox import Owner, Sandbox
from sandboxworker.spec import ContainerSpec, build_spec
from sandboxworker.unexpected import unexpected

#: Seconds that a sandbox waits for a build before another takes its place.
LONGEST_WAIT = 1800.0
#: Sandboxes that are started at once, so that refilling leaves the engine to the builds.
AT_ONCE = 2
#: Seconds between a claim and the refill: by then a build has begun, and a short one is over.
REFILL_AFTER = 3.0
#: Seconds between two looks at what has changed: policies, profiles, images, memory.
LOOK_SECONDS = 10.0
#: Seconds until a start is tried again after one that failed: doubled each time, up to the last.
FIRST_PAUSE, LAST_PAUSE = 10.0, 600.0


@attrs.frozen
class Plan:
    """What to do with what is kept: sandboxes to destroy, and digests of specs to start."""

    drop: tuple[Any, ...] = ()
    start: tuple[str, ...] = ()


def plan(
    ready: Sequence[tuple[Any, str, float]],
    starting: Sequence[str],
    wanted: Mapping[str, int],
) -> Plan:
    """Compare what is there with what is wanted. Pure.

    ``ready``: each sandbox with its spec's digest and its age in seconds, the oldest first;
    ``starting``: digests of those under way; ``wanted``: how many of which digest.
    """
    drop, kept = [], Counter(starting)
    for sandbox, digest, age in reversed(ready):
        if age >= LONGEST_WAIT or kept[digest] >= wanted.get(digest, 0):
            drop.append(sandbox)
        else:
            kept[digest] += 1
    missing = [digest for digest in wanted for _ in range(wanted[digest] - kept[digest])]
    return Plan(tuple(drop), tuple(missing[: max(0, AT_ONCE - len(starting))]))


def wanted_policies(
    wishes: Iterable[tuple[Iterable[SandboxPolicy], int]],
) -> list[tuple[SandboxPolicy, int]]:
    """Each policy once, with the largest number that anybody wishes of it. Pure."""
    wanted: list[tuple[SandboxPolicy, int]] = []
    for policies, count in wishes:
        for policy in policies:
            known = max((number for each, number in wanted if each == policy), default=0)
            wanted = [entry for entry in wanted if entry[0] != policy]
            wanted.append((policy, max(known, count)))
    return wanted


class Standby:
    """What one master keeps ready on one engine.

    ``is_short``: whether the engine's machine is short of memory; then nothing is kept.
    ``adopt``: given a sandbox that the engine did not confirm to be gone in time.
    """

    def __init__(
        self,
        engine: Engine,
        uids: UidRange,
        master: str,
        reactor: Any,
        audit: Audit,
        *,
        is_short: Callable[[], bool],
        adopt: Callable[[Sandbox], None],
    ) -> None:
        self._engine = engine
        self._uids = uids
        self._owner = Owner(master)
        self._reactor = reactor
        self._audit = audit
        self._is_short = is_short
        self._adopt = adopt
        self._wishes: dict[str, tuple[tuple[SandboxPolicy, ...], int]] = {}
        self._ready: list[Sandbox] = []
        self._starting: dict[Sandbox, str] = {}
        self._going: set[defer.Deferred[None]] = set()
        self._looking: defer.Deferred[None] | None = None
        self._look_again = False
        self._due: Any = None
        self._failures = 0
        self._not_before = 0.0
        self._told = ""
        self._is_stopped = False

    # wishes

    def wish(self, who: str, policies: Iterable[SandboxPolicy], count: int) -> None:
        """Have ``count`` sandboxes of each of these policies ready; 0 takes the wish back."""
        self._wishes.pop(who, None)
        if count > 0:
            self._wishes[who] = (tuple(policies), count)
        self._look_in(0)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody wishes anything."""
        return bool(self._wishes)

    @property
    def ready(self) -> int:
        """How many sandboxes wait for a build now."""
        return len(self._ready)

    def take(self, spec: ContainerSpec) -> Sandbox | None:
        """One that is exactly this, and now the caller's; None where none is ready."""
        sandbox = self._find(spec)
        if sandbox is not None:
            self._ready.remove(sandbox)
            self._look_in(REFILL_AFTER)
        return sandbox

    def has(self, spec: ContainerSpec) -> bool:
        """Whether one that is exactly this is ready."""
        return self._find(spec) is not None

    def _find(self, spec: ContainerSpec) -> Sandbox | None:
        for sandbox in self._ready:
            if sandbox.is_ready and sandbox.spec == spec and sandbox.age < LONGEST_WAIT:
                return sandbox
        return None

    # looking after them

    def _look_in(self, seconds: float) -> None:
        """The next look, unless an earlier one is due."""
        if self._is_stopped:
            return
        if self._due is not None and self._due.active():
            if self._due.getTime() <= self._reactor.seconds() + seconds:
                return
            self._due.cancel()
        self._due = self._reactor.callLater(seconds, self._look)

    def _look(self) -> None:
        """One at a time; what changes meanwhile is seen by another."""
        if self._looking is not None:
            self._look_again = True
            return
        self._looking = looking = defer.ensureDeferred(self._mind())
        looking.addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
        looking.addErrback(unexpected(f"keeping sandboxes ready on {self._engine.name}"))
        looking.addCallback(self._looked)

    def _looked(self, _: None) -> None:
        self._looking = None
        again, self._look_again = self._look_again, False
        if again or self._wishes or self._ready:
            self._look_in(0 if again else LOOK_SECONDS)

    async def _mind(self) -> None:
        specs = {} if self._is_short() else await self._specs()
        if self._is_stopped:
            return
        ready = [(each, each.spec.digest, each.age) for each in self._ready]
        wanted = {digest: count for digest, (_, count) in specs.items()}
        todo = plan(ready, list(self._starting.values()), wanted)
        for sandbox in todo.drop:
            self._drop(sandbox)
        if self._reactor.seconds() >= self._not_before:
            for digest in todo.start:
                self._begin(specs[digest][0], digest)

    async def _specs(self) -> dict[str, tuple[ContainerSpec, int]]:
        """What is wanted, as image and profile are now; what cannot be started is left out."""
        specs: dict[str, tuple[ContainerSpec, int]] = {}
        for policy, count in wanted_policies(self._wishes.values()):
            try:
                image = await self._engine.image(policy.image)
                spec = build_spec(policy, image, seccomp.load(policy.seccomp))
            except SandboxworkerError as error:
                self._tell(error)
                continue
            _, known = specs.get(spec.digest, (spec, 0))
            specs[spec.digest] = (spec, max(known, count))
        return specs

    def _begin(self, spec: ContainerSpec, digest: str) -> None:
        sandbox = Sandbox(
            self._engine,
            self._uids,
            spec,
            self._owner,
            self._reactor,
            self._audit,
            waits=LONGEST_WAIT,
        )
        sandbox.on_lost = lambda _: self._lost(sandbox)
        self._starting[sandbox] = digest
        starting = defer.ensureDeferred(self._start(sandbox))
        starting.addErrback(unexpected(f"starting a sandbox ahead on {self._engine.name}"))

    async def _start(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.start()
            await OS_NAMES.of(sandbox)  # Now, so that no build waits for it.
            await shells.prepare(sandbox)
        except SandboxworkerError as error:
            self._not_started(sandbox, error)
        else:
            self._started(sandbox)
        finally:
            self._starting.pop(sandbox, None)

    def _started(self, sandbox: Sandbox) -> None:
        if self._is_stopped or not sandbox.is_ready:
            self._drop(sandbox)
            return
        self._failures = 0
        self._told = ""
        self._ready.append(sandbox)
        self._look_in(0)

    def _not_started(self, sandbox: Sandbox, error: SandboxworkerError) -> None:
        self._tell(error)
        pause = min(FIRST_PAUSE * (1 << min(self._failures, 20)), LAST_PAUSE)
        self._failures += 1
        self._not_before = self._reactor.seconds() + pause
        self._drop(sandbox)

    def _tell(self, error: SandboxworkerError) -> None:
        """Once, until it is another."""
        if str(error) != self._told:
            self._told = str(error)
            log.msg(f"sandboxworker: no sandbox can be kept ready: {error}")

    def _lost(self, sandbox: Sandbox) -> None:
        """It ended before a build came. Another is started with the next look."""
        self._drop(sandbox)
        self._look_in(LOOK_SECONDS)

    # the end

    def _drop(self, sandbox: Sandbox) -> None:
        if sandbox in self._ready:
            self._ready.remove(sandbox)
        going = sandbox.destroy()
        self._going.add(going)
        going.addErrback(self._not_destroyed, sandbox)
        going.addBoth(lambda _: self._going.discard(going))

    def _not_destroyed(self, failure: Any, sandbox: Sandbox) -> None:
        failure.trap(NotDestroyed)
        log.msg(f"sandboxworker: {failure.value}")
        self._adopt(sandbox)

    async def stop(self) -> None:
        """Destroy all that nobody has taken; over when the engine has confirmed it, or in time."""
        self._is_stopped = True
        if self._due is not None and self._due.active():
            self._due.cancel()
        for sandbox in [*self._ready, *self._starting]:
            self._drop(sandbox)
        if self._looking is not None:
            self._looking.cancel()
        await defer.DeferredList(list(self._going))
