"""``sandboxworker try``: a command in the very sandbox that a build would get."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sandboxworker.cli.failures import own_failures
from sandboxworker.cli.policyfile import DEFAULT_IMAGE, load_policy


@click.command("try", context_settings={"allow_interspersed_args": False})
@click.option("--image", metavar="REF", help=f"The image to run in.  [default: {DEFAULT_IMAGE}]")
@click.option(
    "--policy",
    "policy_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A TOML file with the fields of SandboxPolicy.",
)
@click.option("--engine", metavar="URL", help="The engine to use instead of DOCKER_HOST.")
@click.option(
    "--directory",
    "-C",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    help="Take this directory's files instead of the current one's.",
)
@click.option(
    "--explain-denied",
    is_flag=True,
    help="Name the system calls that the profile refused; the image needs strace.",
)
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND...")
def try_(
    image: str | None,
    policy_file: Path | None,
    engine: str | None,
    directory: Path,
    explain_denied: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND on the current directory's files, in the sandbox that a build would get.

    Inside a git work tree the tracked files, and the untracked ones that are not ignored, are
    copied into the sandbox as they are now; elsewhere the whole directory.
    Nothing comes back but the output and the exit code.

    \b
    Examples:
      sandboxworker try -- make check
      sandboxworker try --image sandboxworker/busybox:latest -- sh -c 'id; cat /proc/mounts'
      sandboxworker try --policy strict.toml -- ./configure

    \b
    Exit codes:
      the command's own; 128+N when signal N ended it
      125  sandboxworker itself failed; the reason stands on standard error
      126  the command could not be started
      127  the command was not found
      130  Ctrl-C
      137  also: a limit of the policy was passed (time, output), and the command killed
    """
    with own_failures():
        policy = load_policy(policy_file, image)
        # Late, so that --help and wrong options answer at once.
        from sandboxworker.cli.attempt import run_attempt
        from sandboxworker.cli.denied import explained

        command = explained(command) if explain_denied else command
        sys.exit(run_attempt(policy, engine, directory, command))
