"""``make profile``: where the master's own thread spends its time while it builds all it can."""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from twisted.internet import defer, task

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "tests")]

from cases import true  # noqa: E402
from masters import DEMAND, READY, configuration, cpu_seconds, running  # noqa: E402

#: Parts of the paths of modules, and whose time that is; the first that fits counts.
OWNERS = (
    ("/sandboxworker/", "sandboxworker"),
    ("/buildbot/db/", "Buildbot: database"),
    ("/buildbot/data/", "Buildbot: data API"),
    ("/buildbot/mq/", "Buildbot: messages"),
    ("/buildbot/", "Buildbot: the rest"),
    ("/buildbot_worker/", "Buildbot: worker half"),
    ("/sqlalchemy/", "SQLAlchemy"),
    ("/twisted/", "Twisted"),
    ("epoll", "waiting"),
)


def owner(function: tuple[str, int, str]) -> str:
    """Whose time a function's own is."""
    path, _, name = function
    return next((who for part, who in OWNERS if part in path or part in name), "Python itself")


async def load(workers: int, builds: int) -> tuple[cProfile.Profile, float, float]:
    """The profile of so many builds of one step, their seconds and the master's CPU seconds."""
    small = {"memory": "64m", "disk": "16m", "tmp": "16m", "shm": "8m"}
    kinds = (DEMAND, READY)
    config = configuration(
        kinds, {"one": lambda: [true()]}, "", count=workers, standby=workers, **small
    )
    profile = cProfile.Profile()
    async with running(config) as bench:
        await bench.are_ready(workers)
        await bench.together(f"{DEMAND}/one", workers)
        await bench.are_ready(workers)
        begin, cpu = time.monotonic(), cpu_seconds()
        profile.enable()
        await bench.together(f"{READY}/one", builds)
        profile.disable()
        return profile, time.monotonic() - begin, cpu_seconds() - cpu


def show(profile: cProfile.Profile, seconds: float, cpu: float, builds: int) -> None:
    console = Console()
    stats: Any = pstats.Stats(profile)
    own: dict[str, float] = {}
    for function, (_, _, time_of_its_own, _, _) in stats.stats.items():
        own[owner(function)] = own.get(owner(function), 0.0) + time_of_its_own
    console.print(
        f"{builds} builds in {seconds:.1f} s, {60 * builds / seconds:.0f} a minute; "
        f"master's CPU {cpu / builds:.3f} s a build, all threads"
    )
    table = Table("whose", "ms a build", "share")
    busy = sum(value for name, value in own.items() if name != "waiting")
    for name, value in sorted(own.items(), key=lambda entry: -entry[1]):
        share = "" if name == "waiting" else f"{value / busy:.0%}"
        table.add_row(name, f"{1000 * value / builds:.1f}", share)
    console.print(table)
    top = Table("function", "calls a build", "own ms a build")
    most = sorted(stats.stats.items(), key=lambda entry: -entry[1][2])[:25]
    for (path, line, name), (_, calls, time_of_its_own, _, _) in most:
        where = f"{'/'.join(Path(path).parts[-2:])}:{line} {name}"
        top.add_row(where, f"{calls / builds:.0f}", f"{1000 * time_of_its_own / builds:.2f}")
    console.print(top)


@click.command()
@click.option("--workers", default=8, show_default=True)
@click.option("--builds", default=48, show_default=True)
def main(workers: int, builds: int) -> None:
    """Profile a master that builds."""

    async def run() -> None:
        profile, seconds, cpu = await load(workers, builds)
        show(profile, seconds, cpu, builds)

    task.react(lambda _reactor: defer.ensureDeferred(run()))


if __name__ == "__main__":
    main()
