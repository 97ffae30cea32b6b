"""The ``sandboxworker`` command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from sandboxworker.cli.audit import audit
from sandboxworker.cli.check import check
from sandboxworker.cli.doctor import doctor
from sandboxworker.cli.failures import OWN_FAILURE
from sandboxworker.cli.gc import gc
from sandboxworker.cli.image import image
from sandboxworker.cli.try_ import try_


class _Group(click.Group):
    """Wrong usage exits as our other failures do: 2 may be the tried command's own code."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _usage_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _usage_errors():
            return super().invoke(ctx)


@contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        vars(error)["exit_code"] = OWN_FAILURE
        raise


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="sandboxworker")
def main() -> None:
    """Locked-down, throw-away containers for Buildbot builds.

    The engine is the one that DOCKER_HOST names, else Docker's own socket.
    """


main.add_command(audit)
main.add_command(check)
main.add_command(doctor)
main.add_command(gc)
main.add_command(image)
main.add_command(try_)
