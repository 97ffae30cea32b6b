"""How the commands fail: one message, a documented exit code, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from sandboxworker.errors import SandboxworkerError

#: Our own failures, as Docker's and ``env``'s own are.
OWN_FAILURE = 125


class CommandFailed(click.ClickException):
    """A failure of ours, as one message without a traceback."""

    exit_code = OWN_FAILURE

    def show(self, file: Any = None) -> None:
        click.echo(f"sandboxworker: error: {self.message}", err=True, file=file)


@contextmanager
def own_failures() -> Iterator[None]:
    """Turn our errors into messages."""
    try:
        yield
    except SandboxworkerError as error:
        raise CommandFailed(str(error)) from None
