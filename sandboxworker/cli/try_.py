"""``sandboxworker try``: a command, or a builder's steps, in the very sandbox of a build."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from sandboxworker.cli.failures import own_failures
from sandboxworker.cli.policyfile import DEFAULT_IMAGE, load_policy


def _pairs(_context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> object:
    for each in given:
        if not each.partition("=")[0] or "=" not in each:
            raise click.BadParameter(f"{each!r} is not {option.metavar}")
    return given


_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("try", context_settings={"allow_interspersed_args": False})
@click.option("--image", metavar="REF", help=f"The image to run in.  [default: {DEFAULT_IMAGE}]")
@click.option(
    "--policy",
    metavar="FILE|PRESET",
    help="A TOML file with the fields of SandboxPolicy, or 'untrusted' or 'trusted'.",
)
@click.option("--engine", metavar="URL", help="The engine to use instead of DOCKER_HOST.")
@click.option(
    "--directory",
    "-C",
    metavar="DIR",
    type=_DIRECTORY,
    default=".",
    help="Take this directory's files instead of the current one's.",
)
@click.option(
    "--builder", "-b", metavar="NAME", help="Run this builder's steps instead of a command."
)
@click.option(
    "--master-cfg",
    "-m",
    metavar="FILE",
    type=click.Path(exists=True, path_type=Path),
    help="Where the builder is: a master.cfg, or a master's directory.  [default: master.cfg]",
)
@click.option(
    "--repository",
    metavar="URL",
    help="Which of the builder's repositories the directory stands for, if that is not clear.",
)
@click.option(
    "--property",
    "-p",
    "properties",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_pairs,
    help="A property of the build; may be repeated.",
)
@click.option(
    "--secret",
    "secrets",
    metavar="NAME=FILE",
    multiple=True,
    callback=_pairs,
    help="A secret of the build, from a file; may be repeated.",
)
@click.option("--master-steps", is_flag=True, help="Also run the steps that act from the master.")
@click.option("--shell", is_flag=True, help="Open a shell in the sandbox, after the steps if any.")
@click.option("--keep-on-failure", is_flag=True, help="Open one if it fails.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Put what the builder's steps upload here, or what --artifact names.",
)
@click.option(
    "--artifact",
    "artifacts",
    metavar="PATH",
    multiple=True,
    help="With a command and --out: bring this file or directory back; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, at the end.")
@click.option("--print-spec", is_flag=True, help="Print what the engine would be asked, and stop.")
@click.option(
    "--explain-denied",
    is_flag=True,
    help="Name the system calls that the profile refused; the image needs strace.",
)
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]")
def try_(
    image: str | None,
    policy: str | None,
    engine: str | None,
    directory: Path,
    builder: str | None,
    master_cfg: Path | None,
    repository: str | None,
    properties: tuple[str, ...],
    secrets: tuple[str, ...],
    master_steps: bool,
    shell: bool,
    keep_on_failure: bool,
    out: Path | None,
    artifacts: tuple[str, ...],
    as_json: bool,
    print_spec: bool,
    explain_denied: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND, or a builder's steps, on the current directory's files, in a build's sandbox.

    Inside a git work tree the tracked files, and the untracked ones that are not ignored, are
    taken as they are now; elsewhere the whole directory.
    Nothing comes back but the output, the exit code and what --out asks for.

    With --builder the steps of that builder run under its worker's policy, on a master that is
    made for it and thrown away; the directory takes the place of its git repository. The
    master.cfg is run, as Buildbot does; nothing of it is started.

    \b
    Examples:
      sandboxworker try -- make check
      sandboxworker try --shell
      sandboxworker try --policy untrusted --out built --artifact dist -- make dist
      sandboxworker try -m ci/master.cfg -b linux --keep-on-failure
      sandboxworker try -b release --secret key=~/key.txt -p channel=beta --json
      sandboxworker try --policy strict.toml --print-spec

    \b
    Exit codes:
      the command's own; 128+N when signal N ended it
      with --builder: 0 success, 1 failure
      125  sandboxworker itself failed; the reason stands on standard error
      126  the command could not be started
      127  the command was not found
      130  Ctrl-C; 143 SIGTERM
      137  also: a limit of the policy was passed (time, output), and the command killed
    """
    _check(
        builder is not None,
        {"COMMAND": command, "--artifact": artifacts, "--explain-denied": explain_denied},
        {
            "--master-cfg": master_cfg,
            "--repository": repository,
            "--property": properties,
            "--secret": secrets,
            "--master-steps": master_steps,
        },
    )
    if builder is None and not (command or shell or print_spec):
        raise click.UsageError("Missing COMMAND; --shell or --builder do without.")
    if builder is None and bool(out) != bool(artifacts):
        raise click.UsageError("--out and --artifact need each other.")
    if as_json and (shell or keep_on_failure):
        raise click.UsageError("--json shows no shell.")
    with own_failures():
        # Late, so that --help and wrong options answer at once.
        if builder is None:
            from sandboxworker.cli.attempt import Ways, run_attempt
            from sandboxworker.cli.denied import explained

            command = explained(command) if explain_denied and command else command
            ways = Ways(
                shell=shell,
                keep_on_failure=keep_on_failure,
                as_json=as_json,
                print_spec=print_spec,
                out=out,
                artifacts=artifacts,
            )
            sys.exit(run_attempt(load_policy(policy, image), engine, directory, command, ways))
        from sandboxworker.cli.rehearsal import Asked
        from sandboxworker.cli.rehearse import BuilderWays, run_builder, secrets_of

        asked = Asked(
            config=master_cfg or Path("master.cfg"),
            builder=builder,
            directory=directory,
            engine=engine,
            image=image,
            policy=None if policy is None else load_policy(policy, image),
            repository=repository,
            properties=dict(each.split("=", 1) for each in properties),
            secrets=secrets_of(secrets),
            master_steps=master_steps,
            out=None if out is None else out.resolve(),
        )
        sys.exit(run_builder(asked, BuilderWays(shell, keep_on_failure, as_json, print_spec)))


def _check(
    has_builder: bool, of_commands: dict[str, object], of_builders: dict[str, object]
) -> None:
    """Options that would have no meaning are wrong."""
    foreign, word = (
        (of_commands, "does not go with --builder")
        if has_builder
        else (of_builders, "needs --builder")
    )
    given: Iterable[str] = [name for name, value in foreign.items() if value]
    for name in given:
        raise click.UsageError(f"{name} {word}.")
