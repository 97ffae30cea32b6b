"""The ``sandboxworker`` command."""

from __future__ import annotations

import click

from sandboxworker.cli.image import image
from sandboxworker.cli.try_ import try_


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sandboxworker")
def main() -> None:
    """Locked-down, throw-away containers for Buildbot builds.

    The engine is the one that DOCKER_HOST names, else Docker's own socket.
    """


main.add_command(image)
main.add_command(try_)
