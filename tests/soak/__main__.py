"""``PYTHONPATH=tests python -m soak``: needs root, dockerd, and an engine with our images."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import docker
from own_daemon import OwnDaemon, why_not
from twisted.internet import defer, task

from sandboxworker.engine.address import EngineAddress, resolve
from sandboxworker.engine.sdk import sdk_client
from soak.kinds import IMAGE
from soak.report import Report
from soak.run import Options, Soak


@click.command()
@click.option("--builds", default=2000, show_default=True)
@click.option("--workers", default=8, show_default=True)
@click.option("--seed", default=1, show_default=True, help="Of everything that is by chance.")
@click.option("--every", default=12.0, show_default=True, help="Builds between two hiccups.")
@click.option("--restarts", default=15, show_default=True, help="Every how many is a restart.")
@click.option("--minutes", default=600.0, help="No build is asked for after so many.")
@click.option("--max-retries", default=2, show_default=True, help="Of the workers.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures there.")
def main(file: Path | None, **options: Any) -> None:
    """Build a lot in one master while all goes wrong that can, and see what is left."""
    problem = why_not()
    if problem is not None:
        raise click.ClickException(problem)
    report = _run(Options(**options))
    if file is not None:
        report.save(file)
    click.echo("\n".join(report.lines()))
    sys.exit(1 if report.faults else 0)


def _run(options: Options) -> Report:
    reports: list[Report] = []
    daemon = OwnDaemon()
    try:
        daemon.start(docker.APIClient(**resolve(None).sdk_arguments()), IMAGE)
        # It keeps one connection, so that it counts none of its own.
        client = sdk_client(EngineAddress(daemon.url), max_pool_size=1)
        with tempfile.TemporaryDirectory() as folder:
            soak = Soak(options, daemon, client, Path(folder))

            def started(_reactor: Any) -> defer.Deferred[None]:
                return defer.ensureDeferred(soak.run()).addCallback(reports.append)

            try:
                task.react(started)
            except SystemExit as end:
                if end.code:
                    raise
    finally:
        daemon.end()
    if not reports:
        raise click.ClickException("ended before its time; all that it made is gone")
    return reports[0]


if __name__ == "__main__":
    main()
