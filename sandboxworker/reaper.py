"""What nobody owns any more is found by its labels, and removed.

A container of this master's id without a sandbox in this process is left from a master that was
killed, or from an engine that answered too late.
One that is past the deadline in its label cannot be in use, whoever made it.
What carries another id is never touched.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
from twisted.internet import defer, task

from sandboxworker.audit import Audit, Event
from sandboxworker.engine.interface import Engine, Listed
from sandboxworker.errors import (
    EngineError,
    EngineTimeout,
    EngineUnreachable,
    NotDestroyed,
    SandboxGone,
)
from sandboxworker.sandbox import LABEL, LIVING, Sandbox, State
from sandboxworker.unexpected import unexpected

#: Seconds for a removed container to be confirmed gone.
REMOVE_DEADLINE = 20.0
#: Containers that one sweep of an engine takes on; the rest waits for the next.
SWEEP_LIMIT = 100
#: Seconds until what could not be removed is tried again: doubled each time, up to the last.
FIRST_PAUSE, LAST_PAUSE = 30.0, 3600.0

#: Why a container is removed.
ORPHAN, DEADLINE, STUCK = "orphan", "deadline", "stuck"


@attrs.frozen
class Found:
    """A container that has to go. ``why``: `ORPHAN` or `DEADLINE`."""

    engine: str
    container: Listed
    why: str

    @property
    def sandbox(self) -> str:
        """Its sandbox's id, as in the audit log."""
        return _sandbox_id(self.container)

    def fields(self) -> dict[str, Any]:
        """What is known about it, for the audit log."""
        labels = self.container.labels
        return {
            "worker": labels.get(f"{LABEL}.worker") or None,
            "engine": self.engine,
            "container": self.container.id,
            "name": self.container.name,
            "state": self.container.state,
            "spec": labels.get(f"{LABEL}.spec"),
            "why": self.why,
        }


@attrs.frozen
class Reaped:
    """What became of one of them. ``problem``: why it is still there; None where it is gone."""

    found: Found
    problem: str | None


@attrs.frozen
class _Tried:
    """How often a removal failed, and when it is due again."""

    found: Found
    attempt: int
    due: float


def is_living(container: Listed) -> bool:
    """Whether a sandbox of this process owns it; also one whose create call has not returned."""
    return _sandbox_id(container) in LIVING


class Reaper:
    """Removes what one master left behind.

    ``master``: its id; ``by``: who is at work, for the audit log.
    ``is_owned``: asked after an engine has listed its containers, never before: a container that
    came into being meanwhile must have its owner known by then.
    """

    def __init__(
        self,
        master: str,
        reactor: Any,
        audit: Audit,
        *,
        by: str = "master",
        is_owned: Callable[[Listed], bool] = is_living,
    ) -> None:
        self._master = master
        self._reactor = reactor
        self._audit = audit
        self._by = by
        self._is_owned = is_owned
        self._tried: dict[str, _Tried] = {}
        self._unreachable: set[str] = set()
        self._stuck: dict[Sandbox, defer.Deferred[None]] = {}

    # orphans

    async def find(self, engine: Engine) -> list[Found]:
        """What has to go from an engine. Raises `EngineError`."""
        listed = await engine.list({f"{LABEL}.master": self._master})
        judged = ((container, self._why(container)) for container in listed)
        return [Found(engine.name, container, why) for container, why in judged if why]

    def _why(self, container: Listed) -> str | None:
        if self._is_past_deadline(container):
            return DEADLINE
        return None if self._is_owned(container) else ORPHAN

    def _is_past_deadline(self, container: Listed) -> bool:
        deadline = container.labels.get(f"{LABEL}.deadline", "")
        return deadline.isdecimal() and int(deadline) < self._reactor.seconds()

    async def sweep(self, engine: Engine) -> list[Reaped]:
        """Remove from an engine what has to go and is due; what became of each.

        Ends early where the engine does not answer. Never fails.
        """
        try:
            found = await self.find(engine)
        except EngineError as error:
            self._cannot_ask(engine, error)
            return []
        self._unreachable.discard(engine.name)
        self._note_those_that_went(engine, {each.container.id for each in found})
        due = [each for each in found if self._is_due(each)]
        reaped = await self.reap(engine, due[:SWEEP_LIMIT])
        await self.tidy_volumes(engine)
        return reaped

    async def tidy_volumes(self, engine: Engine) -> None:
        """Remove the records of workspaces on disk that an engine kept when it was killed.

        They hold nothing: the disk went with its container. What fails waits for the next sweep.
        """
        try:
            listed = await engine.volumes({f"{LABEL}.master": self._master})
            for volume in listed[:SWEEP_LIMIT]:
                if not self._is_owned(volume):
                    await engine.remove_volume(volume.id)
        except EngineError as error:
            self._cannot_ask(engine, error)

    def _cannot_ask(self, engine: Engine, error: EngineError) -> None:
        if engine.name not in self._unreachable:
            self._unreachable.add(engine.name)
            self._tell("reap.unreachable", "", engine=engine.name, reason=str(error))

    def _note_those_that_went(self, engine: Engine, still_there: set[str]) -> None:
        """A removal that nobody confirmed in time has come about since."""
        for container, tried in list(self._tried.items()):
            if tried.found.engine == engine.name and container not in still_there:
                self._gone(tried.found)

    def _is_due(self, found: Found) -> bool:
        tried = self._tried.get(found.container.id)
        return tried is None or tried.due <= self._reactor.seconds()

    async def reap(self, engine: Engine, found: Sequence[Found]) -> list[Reaped]:
        """Remove these, one after the other; as far as the engine answers."""
        reaped: list[Reaped] = []
        for each in found:
            try:
                problem = await self._reap(engine, each)
            except (EngineTimeout, EngineUnreachable) as error:
                # It would be so with each that follows.
                self._failed(each, str(error))
                return [*reaped, Reaped(each, str(error))]
            reaped.append(Reaped(each, problem))
        return reaped

    async def _reap(self, engine: Engine, found: Found) -> str | None:
        owner = LIVING.get(found.sandbox)
        if owner is not None and self._is_owned(found.container):
            self._end_overdue(owner, engine)
            return "its own sandbox destroys it"
        try:
            is_gone = await self._removed(engine, found.container.id)
        except (EngineTimeout, EngineUnreachable):
            raise
        except EngineError as error:
            return self._failed(found, str(error))
        if not is_gone:
            return self._failed(found, f"still there after {REMOVE_DEADLINE:g} s")
        self._gone(found)
        return None

    async def _removed(self, engine: Engine, container: str) -> bool:
        """Ask for its removal, and whether it is gone; bounded."""
        pause, give_up = 0.05, self._reactor.seconds() + REMOVE_DEADLINE
        await engine.remove(container)
        while await engine.inspect(container) is not None:
            if self._reactor.seconds() >= give_up:
                return False
            await task.deferLater(self._reactor, pause, _nothing)
            pause = min(pause * 2, 1.0)
        return True

    def _end_overdue(self, sandbox: Sandbox, engine: Engine) -> None:
        """One of ours that its own clock should have ended."""
        if sandbox in self._stuck or sandbox.state in (State.DESTROYING, State.STUCK):
            return
        sandbox.lose(SandboxGone(sandbox.id, "past its deadline"))
        destroying = sandbox.destroy()
        destroying.addErrback(lambda failure: failure.trap(NotDestroyed) and None)

    def _gone(self, found: Found) -> None:
        self._tried.pop(found.container.id, None)
        self._tell("reap.removed", found.sandbox, **found.fields())

    def _failed(self, found: Found, problem: str) -> str:
        former = self._tried.get(found.container.id)
        attempt = 1 if former is None else former.attempt + 1
        again_in = pause_after(attempt)
        due = self._reactor.seconds() + again_in
        self._tried[found.container.id] = _Tried(found, attempt, due)
        fields = {**found.fields(), "reason": problem, "attempt": attempt, "again_in": again_in}
        self._tell("reap.failed", found.sandbox, **fields)
        return problem

    def _tell(self, event: str, sandbox: str, **fields: Any) -> None:
        self._audit(Event(event, sandbox, {**fields, "by": self._by}))

    # sandboxes whose destruction failed

    def adopt(self, sandbox: Sandbox, let_go: Callable[[], Awaitable[None]]) -> None:
        """Go on destroying a sandbox that its build could not wait for any longer.

        ``let_go`` is called when it is gone, or when the reaper stops: the engine is not needed
        any more.
        """
        work = defer.ensureDeferred(self._destroy_at_last(sandbox, let_go))
        self._stuck[sandbox] = work
        work.addErrback(_unless_cancelled)
        work.addErrback(unexpected(f"destroying {sandbox}"))
        work.addBoth(lambda _: self._stuck.pop(sandbox, None) and None)

    async def _destroy_at_last(
        self, sandbox: Sandbox, let_go: Callable[[], Awaitable[None]]
    ) -> None:
        attempt = 1
        try:
            while sandbox.state is not State.GONE:
                await task.deferLater(self._reactor, pause_after(attempt), _nothing)
                attempt += 1
                try:
                    await sandbox.destroy()
                except NotDestroyed as error:
                    self._tell(
                        "reap.failed",
                        sandbox.id,
                        **_fields_of(sandbox),
                        reason=str(error),
                        attempt=attempt,
                        again_in=pause_after(attempt),
                    )
            self._tell("reap.removed", sandbox.id, **_fields_of(sandbox))
        finally:
            LIVING.pop(sandbox.id, None)
            await let_go()

    async def stop(self) -> None:
        """Leave what could not be destroyed yet to the reaper of the next start."""
        stuck = list(self._stuck.values())
        for work in stuck:
            work.cancel()
        await defer.DeferredList(stuck)


def pause_after(attempt: int) -> float:
    """Seconds until the next attempt."""
    return min(FIRST_PAUSE * (1 << min(attempt - 1, 20)), LAST_PAUSE)


def _sandbox_id(container: Listed) -> str:
    return container.labels.get(f"{LABEL}.sandbox", "")


def _fields_of(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "worker": sandbox.owner.worker or None,
        "engine": sandbox.engine.name,
        "container": sandbox.container,
        "spec": sandbox.spec.digest,
        "why": STUCK,
    }


def _unless_cancelled(failure: Any) -> None:
    failure.trap(defer.CancelledError)


def _nothing() -> None:
    return None
