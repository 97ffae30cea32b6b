"""``sandboxworker doctor``: what an engine can enforce."""

from __future__ import annotations

import sys

import click

from sandboxworker.cli.failures import own_failures
from sandboxworker.cli.policyfile import DEFAULT_IMAGE


@click.command("doctor")
@click.option("--engine", metavar="URL", help="The engine to use instead of DOCKER_HOST.")
@click.option(
    "--image",
    metavar="REF",
    default=DEFAULT_IMAGE,
    show_default=True,
    help="The image of the two sandboxes; it needs a shell and the usual small tools.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--strict", is_flag=True, help="Let warnings and what is unknown fail as well.")
def doctor(engine: str | None, image: str, as_json: bool, strict: bool) -> None:
    """Find out what an engine enforces, by trying to exceed it.

    Two small sandboxes are started, one after the other; in them every limit is exceeded, which
    the engine has to stop. What it says of itself, and its versions, are looked at beside.

    \b
    Examples:
      sandboxworker doctor
      sandboxworker doctor --engine ssh://build2.example --strict
      sandboxworker doctor --json | jq '.rows[] | select(.status != "ok")'

    \b
    Exit codes:
      0    nothing fails
      1    something fails, or with --strict is a warning or unknown
      125  sandboxworker itself failed; the reason stands on standard error
    """
    with own_failures():
        # Late, so that --help and wrong options answer at once.
        from sandboxworker.cli.doctorview import report

        sys.exit(report(engine, image, as_json=as_json, strict=strict))
