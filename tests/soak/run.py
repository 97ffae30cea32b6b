"""One master, its builds, what is done to them, and the judgement."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import bad_engine
from bad_engine import BadEngine
from buildbot.plugins import util
from buildbot.process.factory import BuildFactory
from buildbot.process.results import Results
from own_daemon import OwnDaemon
from reactor_stall import Stall
from real_master import RealMaster, configuration, pause, until
from twisted.internet import defer, reactor, threads

from sandboxworker import SandboxLatentWorker
from sandboxworker.auditfile import FILE, reading
from sandboxworker.engine.docker import MAX_THREADS
from sandboxworker.housekeeping import SWEEP_SECONDS
from sandboxworker.sandbox import LIVING
from soak.counts import MIB, containers, counts, forgotten, listing, memory
from soak.harm import EngineHarm, kill_victim, now, remove_sandbox
from soak.kinds import KINDS, POLICIES, VICTIM, Deed, Kind
from soak.report import Report
from soak.verdict import Try, Wanted, complaints

#: Seconds for the last builds, and for all that they leave to be gone.
END_SECONDS = 600.0
#: A call that hangs is given up after 30 s, and then the sandbox is asked for again; what an engine
#: makes after it was asked whether it is there is the reaper's.
SETTLE_SECONDS = SWEEP_SECONDS + 40
_SAMPLE_SECONDS = 10.0
#: Builds for each worker before the first count: what is made once is made by then.
_WARM_UP = 3


@attrs.frozen
class Options:
    builds: int
    workers: int
    seed: int
    every: float
    restarts: int
    minutes: float
    max_retries: int


class Soak:
    """``client``: a plain one of the daemon that `daemon` is, past the proxy."""

    def __init__(self, options: Options, daemon: OwnDaemon, client: Any, folder: Path) -> None:
        self._options = options
        self._daemon = daemon
        self._client = client
        self._chance = random.Random(options.seed)
        self._bad = BadEngine(daemon.socket, str(folder / "engine.sock"))
        workers = [
            SandboxLatentWorker(f"w{number}", policy=POLICIES, engine=self._bad.url)
            for number in range(options.workers)
        ]
        self._master = RealMaster(folder, _configuration(workers))
        self._wanted: dict[int, Wanted] = {}
        self._tries: dict[int, Try] = {}
        self._builders: dict[int, Kind] = {}
        self._harm = EngineHarm(
            random.Random(options.seed),
            daemon,
            self._bad,
            lambda: self._completed,
            options.every,
            options.restarts,
        )
        self._deeds: set[defer.Deferred[None]] = set()
        self._completed = 0
        self._samples: list[tuple[float, int, int]] = []
        self._began = 0.0

    async def run(self) -> Report:
        self._bad.up()
        try:
            await pause(0)  # The reactor runs from here on, and its handlers are there.
            on_terminate = signal.getsignal(signal.SIGTERM)
            await self._master.start()
            # Buildbot's own would end a process that is nothing but a master.
            signal.signal(signal.SIGTERM, on_terminate)
            await self._listen()
            return await self._soak()
        finally:
            await self._master.stop()
            await self._bad.down()

    async def _soak(self) -> Report:
        warm_up = self._options.workers * _WARM_UP
        await self._build([KINDS["honest"]] * warm_up)
        await self._fill_pools()
        before = await self._settled({})
        harm = self._harm
        stall, self._began = Stall().start(), now()
        self._samples.clear()
        harming = defer.ensureDeferred(harm.run())
        sampling = defer.ensureDeferred(self._sample())
        sampling.addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
        try:
            kinds = list(KINDS.values())
            shares = [kind.share for kind in kinds]
            await self._build(self._chance.choices(kinds, shares, k=self._options.builds))
        finally:
            harm.is_over = True
            await harming
            self._bad.heal()
            seconds = now() - self._began
            sampling.cancel()
        await defer.DeferredList(list(self._deeds))
        await self._ask_for_outcomes()
        after = await self._settled(before)
        stall.stop()
        remaining = await self._listing()
        place = self._daemon.root.name
        lost = len(await threads.deferToThread(forgotten, self._client, place))
        return self._report(seconds, before, after, remaining, lost, harm, stall.longest)

    # builds

    async def _build(self, kinds: list[Kind]) -> None:
        """All of them, with never more waiting than there are workers."""
        asked, give_up = self._completed, now() + 60 * self._options.minutes
        for kind in kinds:
            if now() > give_up:
                break
            await self._master.submit(kind.name)
            asked += 1
            room = asked - 2 * self._options.workers
            await until(lambda room=room: self._completed >= room, "a free worker", END_SECONDS)
        await until(lambda: self._completed >= asked, "the last builds", END_SECONDS)

    async def _listen(self) -> None:
        master = self._master.master
        for kind in KINDS.values():
            self._builders[await master.data.updates.findBuilderId(kind.name)] = kind
        for callback, pattern in (
            (self._build_began, ("builds", None, "new")),
            (self._build_ended, ("builds", None, "finished")),
            (self._step_began, ("steps", None, "started")),
            (self._request_ended, ("buildrequests", None, "complete")),
        ):
            await master.mq.startConsuming(callback, pattern)

    def _build_began(self, _key: Any, build: Any) -> None:
        request = build["buildrequestid"]
        kind = self._builders[build["builderid"]]
        wanted = self._wanted.setdefault(request, Wanted(request, kind.name, kind.result))
        self._tries[build["buildid"]] = attempt = Try(build["buildid"], now())
        wanted.tries.append(attempt)

    def _build_ended(self, _key: Any, build: Any) -> None:
        attempt = self._tries[build["buildid"]]
        attempt.ended, attempt.result = now(), Results[build["results"]]

    def _request_ended(self, _key: Any, request: Any) -> None:
        wanted = self._wanted.get(request["buildrequestid"])
        if wanted is not None:
            wanted.final = Results[request["results"]]
        self._completed += 1

    # what is done to single builds

    def _step_began(self, _key: Any, step: Any) -> None:
        if step["name"] == VICTIM:
            deed = defer.ensureDeferred(self._do(step["buildid"]))
            self._deeds.add(deed)
            deed.addBoth(lambda _: self._deeds.discard(deed))

    async def _do(self, build: int) -> None:
        (wanted,) = [each for each in self._wanted.values() if build in _builds(each)]
        deed = KINDS[wanted.kind].deed
        await pause(self._chance.uniform(0, 1))
        while not self._tries[build].ended:
            if await self._done(deed, wanted, build):
                return
            await pause(0.5)

    async def _done(self, deed: Deed, wanted: Wanted, build: int) -> bool:
        """Whether it is done, or has not to be."""
        if deed is Deed.STOP:
            await self._master.stop_build(wanted.request)
            return True
        container = self._container(build)
        if container is None:
            return False
        if deed is Deed.KILL:
            return bool(await threads.deferToThread(kill_victim, self._client, container))
        if build != wanted.tries[0].build:
            return True
        wanted.removed.append(build)
        return bool(await threads.deferToThread(remove_sandbox, self._client, container))

    def _container(self, build: int) -> str | None:
        for worker in self._workers():
            if worker._build is not None and worker._build.buildid == build and worker._sandbox:
                return str(worker._sandbox.container)
        return None

    # measuring

    async def _fill_pools(self) -> None:
        """Bounded pools of threads and connections grow when they are needed: wholly, now."""
        (engine,) = {worker._engine for worker in self._workers()}
        for pool in (reactor.getThreadPool(), engine._pool):  # type: ignore[attr-defined]
            pool.adjustPoolsize(minthreads=pool.max)
        delay = self._bad.strike(bad_engine.ANY, delay=1.0)
        asked = [defer.ensureDeferred(engine.ping()) for _ in range(MAX_THREADS)]
        await defer.gatherResults(asked)
        self._bad.faults.remove(delay)

    def _workers(self) -> list[Any]:
        return list(self._master.master.workers.workers.values())

    async def _ask_for_outcomes(self) -> None:
        for wanted in self._wanted.values():
            path = ("builds", wanted.tries[-1].build, "properties")
            found = await self._master.master.data.get(path)
            words = [found.get(f"sandbox_{name}", ("",))[0] for name in ("outcome", "cause")]
            wanted.outcome = ": ".join(word for word in words if word) or "nothing"
            wanted.wanted_outcome = KINDS[wanted.kind].ended

    def _wrong(self) -> list[str]:
        """What can be said by now against the requests that have ended."""
        over = [each for each in self._wanted.values() if each.final]
        return [
            line
            for each in over
            for line in complaints(each, self._harm.done, self._options.max_retries)
        ]

    async def _sample(self) -> None:
        while True:
            seconds, size, wrong = now() - self._began, memory(), self._wrong()
            told = f"{self._completed} builds, {size // MIB} MiB, wrong: {wrong[-3:]}"
            print(f"{seconds:5.0f} s: {told}", file=sys.stderr)
            self._samples.append((seconds, self._completed, size))
            await pause(_SAMPLE_SECONDS)

    async def _settled(self, wanted: Any) -> Any:
        """The counts once there is no container any more and nothing above what is wanted."""

        async def look() -> Any:
            return await threads.deferToThread(counts, self._client, self._daemon.root.name)

        async def is_settled() -> bool:
            found = await look()
            few = all(found[name] <= wanted[name] for name in wanted)
            return few and not found["containers"] and not LIVING

        with contextlib.suppress(AssertionError):  # What is left is told.
            await until(is_settled, "all to be gone", SETTLE_SECONDS)
        return await look()

    async def _listing(self) -> list[str]:
        """What is left, and what the audit log has of the sandboxes of containers that are."""
        left = await threads.deferToThread(containers, self._client)
        found = await threads.deferToThread(listing, left, self._daemon.root.name)
        labels = [each["Labels"].get("sandboxworker.sandbox") for each in left]
        ids = list(filter(None, labels))
        told = (self._master.basedir / FILE).read_text().splitlines()
        return [*found, *(line for line in told if any(each in line for each in ids))]

    def _report(
        self,
        seconds: float,
        before: Any,
        after: Any,
        remaining: list[str],
        lost: int,
        harm: EngineHarm,
        stall: float,
    ) -> Report:
        endless = [
            f"request {each.request} has no end" for each in self._wanted.values() if not each.final
        ]
        sandboxes, unclear = _outcomes(self._master.basedir / FILE)
        return Report(
            options=attrs.asdict(self._options),
            seconds=seconds,
            results=Counter(f"{each.kind}: {each.final}" for each in self._wanted.values()),
            tries=Counter(len(each.tries) for each in self._wanted.values()),
            harm=harm.times,
            deeds=Counter(
                KINDS[each.kind].deed.value
                for each in self._wanted.values()
                if KINDS[each.kind].deed is not Deed.NONE
            ),
            outcomes=sandboxes,
            before=dict(before),
            after=dict(after),
            remaining=remaining,
            forgotten=lost,
            memory=self._samples,
            stall=stall,
            errors=[each for each in self._master.errors if not _is_buildbots_own(each)],
            complaints=[*self._wrong(), *endless, *unclear],
        )


def _is_buildbots_own(error: str) -> bool:
    """A step that is interrupted twice, as by the Stop button and by the loss of its sandbox."""
    return "_interrupt_impl" in error and "BuildStepCancelled" in error


def _builds(wanted: Wanted) -> set[int]:
    return {attempt.build for attempt in wanted.tries}


def _configuration(workers: list[Any]) -> dict[str, Any]:
    names = [worker.name for worker in workers]
    config = configuration(workers)
    config["builders"] = [
        util.BuilderConfig(
            name=kind.name,
            workernames=names,
            factory=BuildFactory(kind.steps()),
            properties={} if kind.policy == "plain" else {"sandbox_policy": kind.policy},
        )
        for kind in KINDS.values()
    ]
    config["schedulers"] = []
    return config


def _outcomes(audit: Path) -> tuple[Counter[str], list[str]]:
    """How the sandboxes ended, and a complaint for each that has not ended with one outcome."""
    made: set[str] = set()
    used: set[str] = set()
    ends: dict[str, list[str]] = {}
    gone: Counter[str] = Counter()
    for entry in reading(audit):
        sandbox = entry.get("sandbox")
        if sandbox is None:  # A build that got none.
            continue
        if entry["event"] == "sandbox.created":
            made.add(sandbox)
        if entry["event"] == "sandbox.ready":
            used.add(sandbox)
        if entry["event"] == "sandbox.gone":
            gone[sandbox] += 1
        if "outcome" in entry:
            ends.setdefault(sandbox, []).append(entry["outcome"])
    told = [f"sandbox {each} was never gone" for each in sorted(made) if not gone[each]]
    told += [f"sandbox {each} is twice gone" for each in sorted(made) if gone[each] > 1]
    told += [
        f"sandbox {each} ended as {ends.get(each, [])}"
        for each in sorted(used)
        if len(ends.get(each, [])) != 1
    ]
    return Counter(ends.get(each, ["never ready"])[0] for each in made), told
