"""``sandboxworker gc``: what the reaper does, by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from sandboxworker.cli.failures import own_failures


@click.command("gc")
@click.option(
    "--basedir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    help="The master's directory, which has its id.  [default: the current directory]",
)
@click.option("--dry-run", "-n", is_flag=True, help="Show what would be removed, and remove none.")
@click.option("--engine", metavar="URL", help="The engine to use instead of DOCKER_HOST.")
@click.option(
    "--audit-file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The audit log, where SandboxAudit(file=…) names another than the default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
def gc(
    basedir: Path, dry_run: bool, engine: str | None, audit_file: Path | None, as_json: bool
) -> None:
    """Remove the containers that a master left on an engine.

    A running master does so by itself, on its start and every few minutes; this is for a master
    that is not started any more, and for a look.
    Only containers that carry this master's own id are considered:

    \b
      while the master runs   those past the deadline in their label
      while it does not       all of them: nobody owns them

    Whether it runs is told by a lock that it holds in its directory.
    What is removed is written to the audit log.

    \b
    Examples:
      sandboxworker gc --dry-run --basedir /var/lib/buildbot/master
      sandboxworker gc --basedir /var/lib/buildbot/master --engine unix:///run/docker.sock

    \b
    Exit codes:
      0    nothing is left that had to go (with --dry-run: always)
      1    something could not be removed
      125  sandboxworker itself failed; the reason stands on standard error
    """
    with own_failures():
        # Late, so that --help and wrong options answer at once.
        from sandboxworker.cli.collect import collect

        result = collect(basedir, engine, audit_file, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps([each.record() for each in result.containers], indent=1))
    else:
        from sandboxworker.cli.collect import show

        show(result)
    sys.exit(1 if result.has_failed else 0)
