"""``sandboxworker audit``: what happened to which sandbox, read from the audit log."""

from __future__ import annotations

from pathlib import Path

import click

from sandboxworker.auditfile import FILE
from sandboxworker.cli.failures import own_failures


@click.command("audit")
@click.argument("file", metavar="[FILE]", required=False)
@click.option(
    "--basedir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    help=f"The master's directory; FILE is {FILE} in it.  [default: the current directory]",
)
@click.option("--build", "-b", metavar="BUILD", help="Of one build: 12, or BUILDER/12.")
@click.option("--worker", "-w", metavar="NAME", help="Of one worker; * stands for any characters.")
@click.option("--sandbox", "-s", metavar="ID", help="Of one sandbox, by its id or its beginning.")
@click.option(
    "--event",
    "-e",
    "events",
    multiple=True,
    metavar="EVENT",
    help="Only such events, for instance reap.removed or 'secret.*'; may be given several times.",
)
@click.option(
    "--outcome",
    "-o",
    metavar="OUTCOME",
    help="Everything about the sandboxes whose build ended so, for instance lost.",
)
@click.option("--since", metavar="WHEN", help="Not before: 2026-03-31, 2026-03-31T12:30, or 2h.")
@click.option("--until", metavar="WHEN", help="Before: as for --since.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of a table.")
def audit(
    file: str | None,
    basedir: Path,
    build: str | None,
    worker: str | None,
    sandbox: str | None,
    events: tuple[str, ...],
    outcome: str | None,
    since: str | None,
    until: str | None,
    as_json: bool,
) -> None:
    """Show what the audit log has: transitions, secrets, limits, what was reaped.

    FILE's rotated files (FILE.1, FILE.2, …) are read with it, the oldest entries first.
    - reads standard input instead, for a log that went to syslog or the journal.
    Filters add up: an entry is shown if all of them fit.

    A time is one of this machine's, or with a Z or an offset (2026-03-31T12:30+02:00) another's;
    90s, 30m, 2h and 7d are so long ago.

    \b
    Examples:
      sandboxworker audit --basedir /var/lib/buildbot/master --since 2h
      sandboxworker audit --build linux/12
      sandboxworker audit --event 'secret.*' --worker 'pr-*' --json
      sandboxworker audit --outcome lost --since 2026-03-31
      journalctl -t sandboxworker -o cat | sandboxworker audit -

    \b
    Exit codes:
      0    also where nothing fits
      125  sandboxworker itself failed; the reason stands on standard error
    """
    with own_failures():
        # Late, so that --help and wrong options answer at once.
        from sandboxworker.cli.auditview import Wanted, show

        wanted = Wanted.parse(
            build=build,
            worker=worker,
            sandbox=sandbox,
            events=events,
            outcome=outcome,
            since=since,
            until=until,
        )
        show(file or str(basedir / FILE), wanted, as_json=as_json)
