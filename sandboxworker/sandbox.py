"""One container's life: created, verified, started, used once, destroyed and proved gone."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import attrs
from twisted.internet import defer, task
from twisted.python.failure import Failure

from sandboxworker.audit import Audit, Event, unheard
from sandboxworker.conformance import deviations
from sandboxworker.engine.exitcode import STATUS_DEADLINE, exit_code
from sandboxworker.engine.interface import (
    Created,
    Engine,
    ExecRequest,
    Stream,
    StreamReceiver,
    Usage,
)
from sandboxworker.engine.uids import UidRange
from sandboxworker.errors import (
    EngineError,
    EngineRefused,
    EngineTimeout,
    ExecFailed,
    Hindered,
    NoFreeUid,
    NotConformant,
    NotDestroyed,
    OutOfMemory,
    SandboxGone,
    SocketsUnbounded,
    StartTimeout,
)
from sandboxworker.limits import Counts
from sandboxworker.phases import Phases
from sandboxworker.proof import prove_disk, prove_image, prove_kernel
from sandboxworker.resources import Resources
from sandboxworker.shared import follow
from sandboxworker.sockets import SocketWatch, bound_sockets
from sandboxworker.spec import ContainerSpec, Identity, create_body, exec_environ

LABEL = "sandboxworker"
_CONFLICT = 409

#: Seconds within which a destroyed container must be confirmed gone.
DESTROY_DEADLINE = 30.0
#: Seconds for one attempt to kill every process of a build, and how many attempts.
#: Under a fork bomb at the pids limit one took 0.7 s.
KILL_DEADLINE = 10.0
KILL_ATTEMPTS = 5
#: Seconds within which the keeper's end is heard of, where a killed container has ended with it.
KEEPER_SECONDS = 0.5
#: Seconds from the first call to a sandbox that is ready for commands.
START_DEADLINE = 90.0
#: Seconds that finding out why a sandbox ended may take, and for which the engine's clock may be
#: behind what we think.
POST_MORTEM_DEADLINE = 10.0
_CLOCK_SLACK = 2.0
#: Seconds past `max_runtime` after which a sandbox is destroyed whatever its build does.
DEADLINE_GRACE = 30.0
#: Seconds past `max_runtime` that a start, the grace and a destruction take at their slowest: after
#: that a container cannot be in use any more.
HARD_DEADLINE_SLACK = 600.0
#: Names that another master's sandbox may hold before we give up.
_UID_ATTEMPTS = 32


class State(enum.Enum):
    """Where a sandbox is in its life."""

    NEW = "new"
    CREATED = "created"
    READY = "ready"
    LOST = "lost"
    DESTROYING = "destroying"
    GONE = "gone"
    STUCK = "stuck"


_TRANSITIONS = {
    State.NEW: {State.CREATED, State.DESTROYING},
    State.CREATED: {State.READY, State.LOST, State.DESTROYING},
    State.READY: {State.LOST, State.DESTROYING},
    State.LOST: {State.DESTROYING},
    # Stuck: the engine did not confirm in time; asked again, it may yet.
    State.DESTROYING: {State.GONE, State.STUCK},
    State.STUCK: {State.DESTROYING},
    State.GONE: set(),
}


@attrs.frozen
class Owner:
    """Whose sandbox it is, for labels and messages.

    ``master``: this master's persisted unique id.
    """

    master: str
    worker: str = ""


def _nobody(*_: Any) -> None:
    return None


#: The sandboxes of this process by id, from before the engine is asked for a container until it has
#: confirmed that there is none: what the reaper must spare.
LIVING: dict[str, Sandbox] = {}


class Sandbox:
    """One locked-down container.

    ``waits``: seconds that it may be kept ready until a build claims it; 0 where it is a build's
    from its start.
    ``on_lost(reason)`` is called when it ends without being asked to;
    ``on_deadline()`` when ``max_runtime`` is over, `DEADLINE_GRACE` seconds before it is
    destroyed regardless.
    """

    def __init__(
        self,
        engine: Engine,
        uids: UidRange,
        spec: ContainerSpec,
        owner: Owner,
        reactor: Any,
        audit: Audit = unheard,
        *,
        waits: float = 0.0,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.engine = engine
        self.spec = spec
        self.owner = owner
        self.reactor = reactor
        self.state = State.NEW
        self.on_lost: Callable[[Exception], None] = _nobody
        self.on_deadline: Callable[[], None] = _nobody
        #: Whether another command is expected after the one that runs.
        self.anticipates = False
        #: What waits inside for that command (`shells.WaitingShell`), if anything.
        self.waiting: Any = None
        #: What the kernel has counted, as the last command's end told.
        self.counts = Counts()
        self._uids = uids
        self._resources = Resources(engine, spec)
        self._sockets = SocketWatch(self.id, spec.memory, self.lose, reactor)
        self._is_probe = False
        self._audit = audit
        self._waits = waits
        self._runs = False
        self._ready_at: float | None = None
        self._phases = Phases(reactor.seconds)
        self._identity: Identity | None = None
        self._container: str | None = None
        self._keeper: Stream | None = None
        self._streams: dict[Stream, StreamReceiver] = {}
        self._timer: Any = None
        self._starting: defer.Deferred[None] | None = None
        self._destroying: defer.Deferred[Exception | None] | None = None
        self._lost: Exception | None = None
        self._conclusion: dict[str, Any] = {}
        #: What is being asked of the engine while it starts; its clock against ours.
        self._doing = ""
        self._engine_ahead = 0.0

    def __repr__(self) -> str:
        return f"<Sandbox {self.id} {self.state.value}>"

    @property
    def is_ready(self) -> bool:
        """Whether commands can be run in it now."""
        return self.state is State.READY

    @property
    def age(self) -> float:
        """Seconds since it was ready; 0 before."""
        return 0.0 if self._ready_at is None else float(self.reactor.seconds() - self._ready_at)

    @property
    def lost(self) -> Exception | None:
        """Why it ended, or had to be given up, without our asking; None if it did not."""
        return self._lost

    @property
    def container(self) -> str | None:
        """The engine's id of the container, once there is one."""
        return self._container

    @property
    def identity(self) -> Identity:
        """Its name, user and labels; only once it is created."""
        if self._identity is None:
            raise SandboxGone(self.id, self.state.value)
        return self._identity

    def _move(self, state: State, **fields: Any) -> None:
        """The only way from one state to another."""
        if state not in _TRANSITIONS[self.state]:
            raise AssertionError(f"sandbox {self.id}: {self.state.value} -> {state.value}")
        self.state = state
        if state is State.GONE:
            LIVING.pop(self.id, None)
        self.record(
            f"sandbox.{state.value}", engine=self.engine.name, container=self._container, **fields
        )

    def record(self, event: str, **fields: Any) -> None:
        """Tell the audit log what happened in this sandbox."""
        self._audit(Event(event, self.id, {"worker": self.owner.worker, **fields}))

    def conclude(self, **fields: Any) -> None:
        """What is known at its build's end: told with its last event, or now if that has been."""
        self._conclusion = fields
        if self.state is State.GONE:
            self.record("sandbox.concluded", **fields)

    # start

    def start(self) -> defer.Deferred[None]:
        """Create, verify and start; ready for commands when the result fires.

        On any failure its destruction is under way when the error is given; past `START_DEADLINE`
        it fails with `StartTimeout`.
        """
        LIVING[self.id] = self
        self._phases.begin()
        self._starting = defer.ensureDeferred(self._start())
        self._starting.addTimeout(START_DEADLINE, self.reactor, self._start_timed_out)
        self._starting.addErrback(self._not_started)
        return self._starting

    def _not_started(self, failure: Failure) -> Failure:
        if self._lost is None and isinstance(failure.value, Exception):
            self._lost = failure.value
        return failure

    async def started(self) -> None:
        """Wait until it is ready, or raise what keeps it from that; any number of times."""
        if self._starting is not None and not self._starting.called:
            await _settled(self._starting)
        if self.state is not State.READY:
            raise self._lost or SandboxGone(self.id, self.state.value)

    def _start_timed_out(self, _result: Any, _seconds: float) -> Any:
        raise StartTimeout(self.id, self.engine.name, self._doing, START_DEADLINE)

    async def _start(self) -> None:
        try:
            self._doing = "prove disk"
            if self.spec.disk is not None and not self._is_probe:
                await prove_disk(self.engine, self.spec, self._probe, self.reactor)
            self._doing = "create container"
            created = await self._create()
            self._phases.over("create")
            self._move(State.CREATED, spec=self.spec.digest)
            self._doing = "inspect container"
            await self._verify(created)
            await prove_image(self.engine, created.id, self.spec)
            self._phases.over("verify")
            self._doing = "attach"
            self._keeper = await self.engine.attach(created.id, _Keeper(self))
            self._phases.over("attach")
            self._doing = "start container"
            await self.engine.start(created.id)
            self._phases.over("start")
            self._runs = True
            self._start_clock()
            self._doing = "prove the limits"
            await self._prove(created)
            if self._lost is not None:
                raise self._lost
            self._ready_at = self.reactor.seconds()
            self._move(State.READY, phases=self._phases.seconds)
        except BaseException:
            self._starting = None
            self._destroy_unasked()
            raise

    def claim(self, owner: Owner, audit: Audit) -> None:
        """Give what was kept ready to a build, whose time begins now.

        Raises `SandboxGone` where it is not ready any more.
        """
        self._require(State.READY)
        self.owner, self._audit, waited = owner, audit, round(self.age, 3)
        self.adopt()
        self.record(
            "sandbox.claimed", engine=self.engine.name, container=self._container, waited=waited
        )

    def adopt(self) -> None:
        """A build has asked for it: the build's time begins, or will when the container runs."""
        self._waits = 0.0
        self._start_clock()

    async def _create(self) -> Created:
        for _ in range(_UID_ATTEMPTS):
            identity = self._identity = await self._resources.take(self._new_identity())
            try:
                created = await self.engine.create(identity.name, create_body(self.spec, identity))
            except EngineRefused as error:
                self._give_back_uid()
                if error.status != _CONFLICT:
                    raise
                continue  # Another master's sandbox has this uid.
            self._container = created.id
            return created
        raise NoFreeUid(self.engine.name, _UID_ATTEMPTS)

    async def _prove(self, created: Created) -> None:
        """It is as asked in the kernel's eyes too."""
        self._resources.started()
        await self._bound_sockets(created)
        await prove_kernel(self.engine, created.id, self.spec, self.identity, self.reactor)
        self._phases.over("prove")

    async def _bound_sockets(self, created: Created) -> None:
        try:
            gauge = await bound_sockets(self.engine, created.id, self.spec)
        except SocketsUnbounded:
            if self.spec.bounds_sockets:
                raise
            self.record("limit.waived", limit="sockets")
            return
        if gauge is not None:
            self._sockets.begin(gauge)

    def _probe(self, spec: ContainerSpec) -> Sandbox:
        """Another one, in which to try what this one relies on."""
        probe = Sandbox(self.engine, self._uids, spec, self.owner, self.reactor, self._audit)
        probe._is_probe = True
        return probe

    def _new_identity(self) -> Identity:
        labels = (
            (f"{LABEL}.master", self.owner.master),
            (f"{LABEL}.worker", self.owner.worker),
            (f"{LABEL}.sandbox", self.id),
            (f"{LABEL}.spec", self.spec.digest),
            (f"{LABEL}.deadline", str(int(self._hard_deadline()))),
        )
        if self.spec.user != "auto":
            uid, gid = map(int, self.spec.user.split(":"))
            self._identity = Identity(f"sandboxworker-{self.id}", uid, gid, labels)
            return self._identity
        own = self._uids.take()
        if own is None:
            raise NoFreeUid(self.engine.name, 0)
        # The name makes the engine itself refuse a second sandbox with this uid.
        self._identity = Identity(f"sandboxworker-{own}", own, own, labels)
        return self._identity

    def _hard_deadline(self) -> float:
        longest = self._waits + self.spec.max_runtime + HARD_DEADLINE_SLACK
        return float(self.reactor.seconds() + longest)

    def _give_back_uid(self) -> None:
        self._resources.give_back()
        if self.spec.user == "auto" and self._identity is not None:
            self._uids.give_back(self._identity.uid)
        self._identity = None

    async def _verify(self, created: Created) -> None:
        inspected = await self.engine.inspect(created.id)
        self._engine_ahead = _clock(inspected or {}, self.reactor.seconds())
        body = create_body(self.spec, self.identity)
        found = deviations(body, inspected or {}, created.warnings)
        if found:
            raise NotConformant(self.engine.name, map(str, found))

    def _require(self, *states: State) -> None:
        if self.state not in states:
            raise SandboxGone(self.id, self.state.value)

    # deadline

    def _start_clock(self) -> None:
        """From when it runs and is a build's."""
        if not self._runs or self._waits or self._timer is not None:
            return
        self._timer = self.reactor.callLater(self.spec.max_runtime, self._deadline)

    def _deadline(self) -> None:
        self._timer = self.reactor.callLater(DEADLINE_GRACE, self._destroy_unasked)
        self.record("limit.struck", limit="max_runtime", value=self.spec.max_runtime)
        self.on_deadline()

    def _stop_clock(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    # use

    async def exec(
        self,
        argv: tuple[str, ...],
        receiver: StreamReceiver,
        *,
        environ: dict[str, str] | None = None,
        tty: bool = False,
        stdin: bool = False,
    ) -> tuple[str, Stream]:
        """Run a command as the build's user from ``/``: its exec id and its stream.

        ``environ``: exactly what the process sees; None for the sandbox's minimal one.
        """
        self._require(State.READY)
        lines = () if environ is None else tuple(exec_environ(self.spec, environ))
        request = ExecRequest(argv, self.identity.user, lines, tty, stdin)
        exec_id, stream = await self.engine.exec(str(self._container), request, receiver)
        if self.state is not State.READY:
            stream.abort()
            raise SandboxGone(self.id, self.state.value)
        self._streams[stream] = receiver
        return exec_id, stream

    def release(self, stream: Stream) -> None:
        """A command's stream is over: close it and forget it."""
        self._streams.pop(stream, None)
        stream.abort()

    async def kill_all(self) -> None:
        """Kill every process of the build at once, wherever it hides; the keeper stays.

        One ``kill -9 -1`` is atomic against forks (kernel: ``kill(2)``, "If pid equals -1"),
        so it needs no second look, only to be started, which a fork bomb can hinder.
        Where it cannot be started the sandbox is lost and destroyed.
        """
        failed: Exception | None = None
        for _ in range(KILL_ATTEMPTS):
            failed = await self._kill_once()
            if failed is None:
                return
            await task.deferLater(self.reactor, 0.2, _nobody)
        self.lose(failed or Hindered(self.id))

    async def _kill_once(self) -> Exception | None:
        """Why the kill did not come to its end; None where it did, or where there is no need."""
        try:
            killing = defer.ensureDeferred(self.signal("KILL", -1))
            killing.addTimeout(KILL_DEADLINE, self.reactor)
            # 1: there was nobody left to kill.
            if await killing in (0, 1):
                return None
        except (SandboxGone, defer.CancelledError):
            return None
        except (defer.TimeoutError, ExecFailed, EngineRefused):
            return await self.blame(EngineTimeout(self.engine.name, "kill", KILL_DEADLINE))
        except EngineError as error:
            return error
        return Hindered(self.id)

    async def blame(self, reason: Exception) -> Exception:
        """Why a command did not start, or end, in time: the engine, or what the build runs.

        A build can stop what the engine runs inside before that becomes the command; Docker
        Engine then answers no question about this container, but does for all others.
        """
        if not isinstance(reason, EngineTimeout):
            return reason
        try:
            await self.engine.list({f"{LABEL}.sandbox": self.id})
        except EngineError:
            return reason
        return Hindered(self.id)

    async def signal(self, name: str, pid: int) -> int | None:
        """Send a signal to a process (-1: all, other negatives: a group); kill's exit code."""
        over: defer.Deferred[None] = defer.Deferred()
        # Not "kill -s NAME -- PID": busybox knows no "--" there, and dash needs it.
        argv = ("/bin/sh", "-c", 'kill "-$1" "$2"', "sh", name, str(pid))
        exec_id, stream = await self.exec(argv, _Waiter(over))
        over.addTimeout(KILL_DEADLINE, self.reactor)
        try:
            await over
        except defer.TimeoutError:
            raise ExecFailed(self.id, f"no answer to SIG{name} for {KILL_DEADLINE:g} s") from None
        finally:
            self.release(stream)
        return await self.exec_status(exec_id)

    async def exec_status(self, exec_id: str) -> int | None:
        """The exit code of a command whose stream has ended; None if the engine does not know."""
        return await exit_code(self.engine, exec_id, self.reactor, STATUS_DEADLINE)

    async def still_runs(self) -> bool:
        """Whether it has outlived a command that was killed; lost if not.

        When a container is killed, the ends of its commands and of its keeper come in any order.
        """
        await task.deferLater(self.reactor, KEEPER_SECONDS, _nobody)
        try:
            self._require(State.READY)
            found = await self.engine.inspect(str(self._container)) or {}
        except EngineError as error:
            self.lose(error)
            return False
        if not found.get("State", {}).get("Running", False):
            self.lose(SandboxGone(self.id, "ended (its container does not run)"))
        return self.state is State.READY

    async def usage(self, seconds: float | None = None) -> Usage:
        """What the sandbox has used so far, from the engine; nothing when it does not say.

        ``seconds``: how long it has to; without, as long as any call to it.
        """
        try:
            self._require(State.READY)
            asking = defer.ensureDeferred(self.engine.usage(str(self._container)))
            if seconds is not None:
                asking.addTimeout(seconds, self.reactor)
            return await asking
        except (EngineError, defer.TimeoutError):
            return Usage()

    def lose(self, reason: Exception) -> None:
        """It ended, or cannot be used any more, without our asking: tell, and clean up."""
        if self.state not in (State.CREATED, State.READY):
            return
        was_ready = self.state is State.READY
        self._lost = reason
        self._move(State.LOST, reason=str(reason))
        if was_ready:
            self.on_lost(reason)
            self._destroy_unasked()

    async def post_mortem(self, reason: Exception) -> Exception:
        """Why it ended: what we were told, or `OutOfMemory` where the engine knows that."""
        if not isinstance(reason, SandboxGone) or self._container is None:
            return reason
        until = self.reactor.seconds() + self._engine_ahead + _CLOCK_SLACK
        asking = defer.ensureDeferred(self.engine.died_of_memory(self._container, until))
        asking.addTimeout(POST_MORTEM_DEADLINE, self.reactor)
        try:
            return OutOfMemory(self.id) if await asking else reason
        except (EngineError, defer.TimeoutError):
            return reason

    # destroy

    def destroy(self) -> defer.Deferred[None]:
        """End the sandbox and have the engine confirm that it is gone.

        May be called at any time and any number of times; ends within `DESTROY_DEADLINE`
        seconds and the engine's call deadline.
        Fails with `NotDestroyed` if the engine does not confirm; a further call tries again.
        """
        if self._destroying is None or self.state is State.STUCK:
            # There before it begins: who hears of it may ask for it as well.
            self._destroying = defer.Deferred()
            defer.ensureDeferred(self._destroy()).chainDeferred(self._destroying)
        return follow(self._destroying)

    def _destroy_unasked(self) -> None:
        """Nobody waits for it; that it failed is told by `State.STUCK`."""
        self.destroy().addErrback(_nobody)

    async def _destroy(self) -> Exception | None:
        self._stop_clock()
        if self._starting is not None and not self._starting.called:
            await _settled(self._starting)
            self._stop_clock()
        self._sockets.end()
        self._move(State.DESTROYING)
        self._shut_streams()
        try:
            await self._remove()
        except NotDestroyed as error:
            self._move(State.STUCK, reason=str(error))
            return error
        self._give_back_uid()
        self._move(State.GONE, **self._conclusion)
        return None

    def _shut_streams(self) -> None:
        """First of all: an unread stream makes the engine's own kill and remove hang."""
        if self._keeper is not None:
            self._keeper.abort()
            self._keeper = None
        streams, self._streams = self._streams, {}
        for stream, receiver in streams.items():
            stream.abort()
            receiver.stream_ended(SandboxGone(self.id, self.state.value))

    async def _remove(self) -> None:
        """Ask until the engine says that there is no such container."""
        give_up = self.reactor.seconds() + DESTROY_DEADLINE
        pause, reason = 0.01, "it is still there"
        while self.reactor.seconds() < give_up:
            try:
                for container in await self._containers():
                    await self.engine.remove(container)
                if await self._is_gone():
                    return
            except EngineError as error:
                reason = str(error)
            await task.deferLater(self.reactor, pause, _nobody)
            pause = min(pause * 2, 1.0)
        raise NotDestroyed(self.id, self._container or "", self.engine.name, reason)

    async def _containers(self) -> list[str]:
        """Our container; found by label where a create call's own answer was lost."""
        if self._container is not None:
            return [self._container]
        labels = {f"{LABEL}.sandbox": self.id}
        return [found.id for found in await self.engine.list(labels)]

    async def _is_gone(self) -> bool:
        if self._container is None:
            return not await self._containers()
        return await self.engine.inspect(self._container) is None


def _clock(inspected: Mapping[str, Any], now: float) -> float:
    """Seconds by which the engine's clock is ahead of ours, from a container made just now."""
    try:
        # Nanoseconds are more than Python reads.
        made = datetime.fromisoformat(str(inspected["Created"])[:19] + "+00:00")
    except (KeyError, ValueError):
        return 0.0
    return made.timestamp() - now


class _Keeper:
    """Hears the keeper's stream: it must not end while the sandbox lives."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def stream_received(self, channel: int, data: bytes) -> None:
        """The keeper says nothing."""

    def stream_ended(self, reason: Exception | None) -> None:
        self._sandbox.lose(SandboxGone(self._sandbox.id, f"ended ({reason or 'keeper gone'})"))


class _Waiter:
    """Waits for a stream's end; what it says does not matter."""

    def __init__(self, over: defer.Deferred[None]) -> None:
        self._over = over

    def stream_received(self, channel: int, data: bytes) -> None:
        """Ignored."""

    def stream_ended(self, reason: Exception | None) -> None:
        if not self._over.called:
            self._over.callback(None)


async def _settled(other: defer.Deferred[None]) -> None:
    """Wait until another Deferred has ended, however it ended."""
    over: defer.Deferred[None] = defer.Deferred()

    def tell(result: Any) -> Any:
        over.callback(None)
        return result

    other.addBoth(tell)
    await over
