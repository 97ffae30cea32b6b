"""``sandboxworker check``: what is unsafe in a master.cfg."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sandboxworker.cli.failures import own_failures

_LEVELS = ("low", "medium", "high", "critical", "never")


@click.command("check")
@click.argument(
    "file", metavar="[FILE]", type=click.Path(path_type=Path), default="master.cfg", required=False
)
@click.option(
    "--fail-on",
    type=click.Choice(_LEVELS),
    default="low",
    show_default=True,
    help="End with 1 if there is a finding of this severity or a higher one.",
)
@click.option(
    "--ignore", "ignored", multiple=True, metavar="RULE", help="Leave a rule out; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--list", "as_list", is_flag=True, help="List the rules, and read no file.")
@click.option("--explain", metavar="RULE", help="Explain a rule, and read no file.")
def check(
    file: Path,
    fail_on: str,
    ignored: tuple[str, ...],
    as_json: bool,
    as_list: bool,
    explain: str | None,
) -> None:
    """Report what is unsafe in a Buildbot master's configuration, and the cure.

    FILE is a master.cfg, or a master's directory; without it, the master.cfg here.
    It is loaded in the way of 'buildbot checkconfig', which runs it: check only what you would
    start. Workers, ports, the web interface, webhooks, schedulers and the file's own text are
    looked at; nothing is connected to, and no secret is printed.

    \b
    Examples:
      sandboxworker check /var/lib/buildbot/master
      sandboxworker check --fail-on high --json master.cfg
      sandboxworker check --explain webhook-not-strict

    \b
    Exit codes:
      0    nothing was found, or nothing as severe as --fail-on says
      1    something was
      125  sandboxworker itself failed, or Buildbot refuses the file; the reason stands on
           standard error
    """
    with own_failures():
        # Late, so that --help and wrong options answer at once.
        from sandboxworker.cli.checkview import explain_rule, list_rules, report

        if explain is not None:
            explain_rule(explain, as_json=as_json)
        elif as_list:
            list_rules(as_json=as_json)
        else:
            sys.exit(report(file, fail_on, ignored, as_json=as_json))
