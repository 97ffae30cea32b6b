"""How long a build takes, against Buildbot's ``LocalWorker``: the floor, with no isolation.

Interleaved in one run on one machine; prints medians, spread, and the ratio to the floor.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
from buildbot.plugins import steps, util, worker
from rich.console import Console
from rich.table import Table
from twisted.internet import defer, task

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from real_master import RealMaster, configuration

from sandboxworker import SandboxLatentWorker, SandboxPolicy

IMAGE = "sandboxworker/busybox:latest"
FLOOR = "LocalWorker"
LENGTHS = (1, 20)


def make_config() -> dict[str, object]:
    """A master with each kind of worker, and a builder for each kind and length."""
    workers = {
        FLOOR: worker.LocalWorker("local"),
        "sandbox, on demand": SandboxLatentWorker("sandbox", policy=SandboxPolicy(IMAGE)),
    }
    config = configuration(list(workers.values()), [], protocols={"null": {}})
    config["builders"] = [
        util.BuilderConfig(
            name=f"{name} {length}",
            workernames=[each.name],
            factory=util.BuildFactory([steps.ShellCommand(command=["true"])] * length),
        )
        for name, each in workers.items()
        for length in LENGTHS
    ]
    config["schedulers"] = []
    return config


async def measure(repeat: int) -> dict[str, list[float]]:
    """Seconds from submitting to finish, by builder."""
    config = make_config()
    names = [builder.name for builder in config["builders"]]  # type: ignore[attr-defined]
    times: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as directory:
        master = await RealMaster(Path(directory), config).start()
        try:
            for turn in range(repeat + 1):
                for name in names:
                    begin = time.monotonic()
                    result = await master.build(name)
                    if result.result != "success":
                        raise SystemExit(f"{name}: {result.result}: {result.log}")
                    if turn:  # The first one warms up.
                        times[name].append(time.monotonic() - begin)
        finally:
            await master.stop()
    return times


def show(times: dict[str, list[float]]) -> None:
    table = Table("builder and steps", "median s", "min", "max", f"÷ {FLOOR}")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        floor = statistics.median(times[f"{FLOOR} {name.rsplit(' ', 1)[1]}"])
        table.add_row(
            name,
            f"{median:.3f}",
            f"{min(seconds):.3f}",
            f"{max(seconds):.3f}",
            f"{median / floor:.2f}",
        )
    Console().print(table)


@click.command()
@click.option("--repeat", default=7, show_default=True, help="Builds of each kind.")
def main(repeat: int) -> None:
    """Measure builds of one and of twenty steps."""

    def started(_reactor: object) -> defer.Deferred[None]:
        return defer.ensureDeferred(measure(repeat)).addCallback(show)

    task.react(started)


if __name__ == "__main__":
    main()
