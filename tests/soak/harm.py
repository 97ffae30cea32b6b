"""Who does harm: to single builds, and to the engine under all of them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import bad_engine
import docker.errors
from bad_engine import BadEngine
from own_daemon import OwnDaemon
from real_master import pause
from twisted.internet import reactor, threads

from soak.kinds import SLEEP
from soak.verdict import Harm


def now() -> float:
    return float(reactor.seconds())  # type: ignore[attr-defined]


class EngineHarm:
    """A hiccup of the engine's every few builds, until it is told to stop.

    ``daemon`` and ``bad`` are what is harmed; ``completed()`` tells how many builds there were.
    ``every``: builds between two; every ``restarts``th is one of the whole daemon.
    """

    def __init__(
        self,
        chance: random.Random,
        daemon: OwnDaemon,
        bad: BadEngine,
        completed: Callable[[], int],
        every: float,
        restarts: int,
    ) -> None:
        self.done: list[Harm] = []
        self.times: Counter[str] = Counter()
        self.is_over = False
        self._chance = chance
        self._daemon = daemon
        self._bad = bad
        self._completed = completed
        self._every = every
        self._restarts = restarts
        self._hiccups: dict[str, Callable[[], Awaitable[None]]] = {
            "a command's stream is cut": lambda: self._cut(bad_engine.EXEC_START),
            "a keeper's stream is cut": lambda: self._cut(bad_engine.ATTACH),
            "any connection is cut": lambda: self._cut(bad_engine.ANY),
            "create: out of disk": lambda: self._once(
                bad_engine.CREATE, answer=bad_engine.OUT_OF_DISK
            ),
            "start: out of pids": lambda: self._once(
                bad_engine.START, answer=bad_engine.OUT_OF_PIDS
            ),
            "create: its answer is lost": lambda: self._once(bad_engine.CREATE, after=0),
            "inspect: half an answer": lambda: self._once(
                bad_engine.INSPECT, answer=bad_engine.half_json()
            ),
            "any answer is cut in its head": lambda: self._once(bad_engine.ANY, after=9),
            "any answer is cut in its body": lambda: self._once(bad_engine.ANY, after=200),
            "remove: never answered": lambda: self._once(bad_engine.REMOVE, after=0, then="hang"),
            "start: never answered": lambda: self._once(bad_engine.START, is_lost=True),
            "slow for a while": self._slow,
            "down for a second": self._down,
        }
        self._restart: dict[str, Callable[[], Awaitable[None]]] = {
            "the daemon is killed and started again": self._crash,
            "the daemon is stopped and started again": self._stop,
            "the daemon is frozen for some seconds": self._freeze,
        }

    async def run(self) -> None:
        count = 0
        while not self.is_over:
            await self._wait(self._every * self._chance.uniform(0.5, 1.5))
            count += 1
            chosen = self._hiccups if count % self._restarts else self._restart
            if not self.is_over:
                await self._do(*self._chance.choice(sorted(chosen.items())))

    async def _wait(self, builds: float) -> None:
        enough = self._completed() + builds
        while self._completed() < enough and not self.is_over:
            await pause(0.1)

    async def _do(self, what: str, hiccup: Callable[[], Awaitable[None]]) -> None:
        began = now()
        self.times[what] += 1
        # Its end is not known yet; builds that end meanwhile are judged at the very end.
        await hiccup()
        self.done.append(Harm(what, began, now()))

    async def _cut(self, call: str) -> None:
        self._bad.cut_one(call, self._chance)

    async def _once(self, call: str, **fault: Any) -> None:
        struck = self._bad.strike(call, times=1, **fault)
        give_up = now() + 10
        while not struck.struck and now() < give_up:
            await pause()
        self._bad.faults.remove(struck)

    async def _slow(self) -> None:
        delay = self._bad.strike(bad_engine.ANY, delay=self._chance.uniform(0.5, 2))
        await pause(2)
        self._bad.faults.remove(delay)

    async def _down(self) -> None:
        await self._bad.down()
        await pause(1)
        self._bad.up()

    async def _crash(self) -> None:
        await threads.deferToThread(self._daemon.crash)
        await threads.deferToThread(self._daemon.relaunch)

    async def _stop(self) -> None:
        await threads.deferToThread(self._daemon.stop)
        await threads.deferToThread(self._daemon.relaunch)

    async def _freeze(self) -> None:
        self._daemon.freeze()
        await pause(self._chance.uniform(1, 5))
        self._daemon.thaw()


def kill_victim(client: Any, container: str) -> bool:
    """Kill the process of a build's step, as the kernel might; whether there was one."""
    with contextlib.suppress(docker.errors.DockerException, OSError):
        for process in client.top(container)["Processes"] or ():
            if process[-1] == SLEEP:
                os.kill(int(process[1]), signal.SIGKILL)
                return True
    return False


def remove_sandbox(client: Any, container: str) -> bool:
    """As somebody with too much power might; whether it was there."""
    with contextlib.suppress(docker.errors.DockerException, OSError):
        client.remove_container(container, force=True)
        return True
    return False
