"""``sandboxworker doctor``: whether what is there holds what it should."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sandboxworker.cli.failures import own_failures
from sandboxworker.cli.policyfile import load_policy


@click.command()
@click.option("--sandbox", "image", metavar="IMAGE", required=True, help="The image to start.")
@click.option(
    "--policy",
    "policy_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A TOML file with the fields of SandboxPolicy.",
)
@click.option("--engine", metavar="URL", help="The engine to use instead of DOCKER_HOST.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list instead of a table.")
def doctor(image: str, policy_file: Path | None, engine: str | None, as_json: bool) -> None:
    """Start one sandbox of IMAGE and hold it against the standards.

    These are the CIS Docker Benchmark's section on containers, the "restricted" level of
    Kubernetes' Pod Security Standards, and the rows of the threat model, each with what was seen.

    \b
    Exit codes:
      0    every row holds that one sandbox can show
      1    a row does not hold
      125  no sandbox could be started
    """
    with own_failures():
        policy = load_policy(policy_file, image)
        from sandboxworker.cli.doctor_sandbox import examine

        sys.exit(examine(policy, engine, as_json=as_json))
