"""``sandboxworker doctor --sandbox``: one sandbox, started and held against the standards."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

import attrs
import click
from rich.console import Console
from rich.table import Table

from sandboxworker import kernelview, seccomp, standards
from sandboxworker.cli.react import react
from sandboxworker.engine.address import resolve
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.errors import SandboxworkerError
from sandboxworker.policy import SandboxPolicy
from sandboxworker.process import run
from sandboxworker.sandbox import Owner, Sandbox
from sandboxworker.spec import build_spec

#: Exit code where a row does not hold.
SOMETHING_FAILS = 1
_STYLES = {"holds": "green", "fails": "bold red", "elsewhere": "dim"}
_WIDTH_OF_A_FILE = 160
_LONGEST_LOOK = 4 * 1024 * 1024


def examine(policy: SandboxPolicy, engine: str | None, *, as_json: bool) -> int:
    """Start a sandbox of that policy, print every row, destroy it; the exit code.

    Raises `SandboxworkerError` where no sandbox could be started or looked into.
    """
    address = resolve(engine)
    found = react(lambda reactor: _rows(DockerEngine(address, reactor), reactor, policy))
    print_rows(found, as_json=as_json)
    return SOMETHING_FAILS if standards.failures(found) else 0


async def _rows(engine: DockerEngine, reactor: Any, policy: SandboxPolicy) -> list[standards.Row]:
    try:
        spec = build_spec(policy, await engine.image(policy.image), seccomp.load(policy.seccomp))
        sandbox = Sandbox(
            engine, engine.uids, spec, Owner(f"doctor-{secrets.token_hex(8)}"), reactor
        )
        try:
            await sandbox.start()
            return standards.rows(await _look(engine, sandbox))
        finally:
            await sandbox.destroy()
    finally:
        await engine.close()


async def _look(engine: DockerEngine, sandbox: Sandbox) -> standards.Seen:
    look = ("/bin/sh", "-c", kernelview.LOOK, "sh", *kernelview.LOOKED_AT)
    told = await run(sandbox, look, limit=_LONGEST_LOOK)
    if told.exit_code != 0:
        raise SandboxworkerError(
            "the sandbox could not be looked into",
            details=told.stderr.decode(errors="replace").strip() or "the command did not end",
        )
    inspected = await engine.inspect(str(sandbox.container)) or {}
    view = kernelview.parse(told.stdout.decode(errors="replace"))
    return standards.Seen(sandbox.spec, sandbox.identity, inspected, view)


def print_rows(found: Sequence[standards.Row], *, as_json: bool) -> None:
    """A table for people, or one JSON list."""
    if as_json:
        values = [{**attrs.asdict(row), "verdict": row.verdict.value} for row in found]
        click.echo(json.dumps(values, indent=2))
        return
    table = Table("standard", "row", "requirement", "", box=None, pad_edge=False)
    table.add_column("seen", overflow="fold")
    for row in found:
        word = row.verdict.value
        style = _STYLES[word]
        table.add_row(row.standard, row.id, row.requirement, f"[{style}]{word}[/]", row.seen)
    console = Console(highlight=False)
    console.print(table, width=None if console.is_terminal else _WIDTH_OF_A_FILE)
    counts = {
        verdict: sum(row.verdict is verdict for row in found) for verdict in standards.Verdict
    }
    click.echo(", ".join(f"{count} {verdict.value}" for verdict, count in counts.items()))
