"""``sandboxworker doctor``: what an engine can enforce, or what one sandbox of it holds."""

from __future__ import annotations

import sys

import click

from sandboxworker.cli.failures import own_failures
from sandboxworker.cli.policyfile import DEFAULT_IMAGE, load_policy


@click.command("doctor")
@click.option("--engine", metavar="URL", help="The engine to use instead of DOCKER_HOST.")
@click.option(
    "--image",
    metavar="REF",
    help="The image of the sandboxes; it needs a shell and the usual small tools.  "
    f"[default: {DEFAULT_IMAGE}]",
)
@click.option(
    "--sandbox",
    metavar="IMAGE",
    help="Hold one sandbox of this image against the standards instead.",
)
@click.option(
    "--policy",
    metavar="FILE|PRESET",
    help="With --sandbox: a TOML file with the fields of SandboxPolicy, or a preset.",
)
@click.option(
    "--runtime",
    metavar="NAME",
    help="The OCI runtime of the sandboxes, such as runsc, instead of the engine's own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--strict", is_flag=True, help="Let warnings and what is unknown fail as well.")
def doctor(
    engine: str | None,
    image: str | None,
    sandbox: str | None,
    policy: str | None,
    runtime: str | None,
    as_json: bool,
    strict: bool,
) -> None:
    """Find out what an engine enforces, by trying to exceed it.

    Three small sandboxes are started, one after the other; in them every limit is exceeded, which
    the engine has to stop. What it says of itself, and its versions, are looked at beside.

    A row that is "noted" could not be shown, and says what holds instead: a runtime such as gVisor
    has a kernel of its own, and a workspace on disk is to be had on the engine's host alone.

    With --sandbox one sandbox of an image is held against the CIS Docker Benchmark's section on
    containers, the "restricted" level of Kubernetes' Pod Security Standards, and the rows of the
    threat model, each with what was seen.

    \b
    Examples:
      sandboxworker doctor
      sandboxworker doctor --engine ssh://build2.example --strict
      sandboxworker doctor --runtime runsc
      sandboxworker doctor --json | jq '.rows[] | select(.status != "ok")'
      sandboxworker doctor --sandbox sandboxworker/debian:bookworm --policy untrusted

    \b
    Exit codes:
      0    nothing fails
      1    something fails, or with --strict is a warning or unknown
      125  sandboxworker itself failed; the reason stands on standard error
    """
    if sandbox is None and policy is not None:
        raise click.UsageError("--policy needs --sandbox.")
    if sandbox is not None and (image is not None or strict):
        raise click.UsageError("--image and --strict do not go with --sandbox.")
    with own_failures():
        # Late, so that --help and wrong options answer at once.
        if sandbox is not None:
            from sandboxworker.cli.doctor_sandbox import examine

            sys.exit(examine(load_policy(policy, sandbox, runtime), engine, as_json=as_json))
        from sandboxworker.cli.doctorview import report

        sys.exit(
            report(engine, image or DEFAULT_IMAGE, as_json=as_json, strict=strict, runtime=runtime)
        )
