"""``make bench``: this project against Buildbot's own workers, in one run on one machine.

Every case takes the kinds of workers in turn, so that what else the machine does meets all alike.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from twisted.internet import defer, task

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "tests")]

import cases  # noqa: E402
import docker  # noqa: E402
import report  # noqa: E402
import worker_image  # noqa: E402

from sandboxworker.engine.address import resolve  # noqa: E402

DOCS = _HERE.parent / "docs"


async def measure(names: list[str], rounds: int, out: Path) -> None:
    console = Console()
    client = docker.APIClient(**resolve(None).sdk_arguments(), timeout=120)
    try:
        about = report.machine(client.version())
        setting = cases.Setting(client, worker_image.make(client), rounds)
        outcomes: dict[str, cases.Outcome] = {}
        for name in names:
            begin = time.monotonic()
            outcomes[name] = await cases.CASES[name](setting)
            report.show(name, outcomes[name], console)
            console.print(f"{name}: {time.monotonic() - begin:.0f} s\n")
        report.show_ratios(outcomes, console)
        report.write(outcomes, about, out)
        console.print(f"written: {out}/benchmarks.json, {out}/benchmarks.svg")
    finally:
        client.close()


def _chosen(_context: Any, _parameter: Any, text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = sorted(set(names) - set(cases.CASES))
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: there are {', '.join(cases.CASES)}")
    return names


@click.command()
@click.option("--case", "names", default=",".join(cases.CASES), callback=_chosen, show_default=True)
@click.option("--rounds", default=7, show_default=True, help="Builds of each kind.")
@click.option(
    "--out",
    default=str(DOCS),
    type=click.Path(path_type=Path),
    show_default=False,
    help="Folder for benchmarks.json and benchmarks.svg; docs/ without.",
)
def main(names: list[str], rounds: int, out: Path) -> None:
    """Measure, and print medians, spread and ratios."""

    def started(_reactor: object) -> defer.Deferred[None]:
        return defer.ensureDeferred(measure(names, rounds, out))

    task.react(started)


if __name__ == "__main__":
    main()
