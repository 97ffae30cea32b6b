"""How ``sandboxworker doctor`` asks, and shows what it found."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console

from sandboxworker.cli.react import react
from sandboxworker.doctor.probe import examine
from sandboxworker.doctor.rows import Row, Status, judge
from sandboxworker.engine.address import resolve
from sandboxworker.engine.docker import DockerEngine

_COLOURS = {
    Status.OK: "green",
    Status.NOTED: "cyan",
    Status.WARNING: "yellow",
    Status.FAILS: "red",
    Status.UNKNOWN: "magenta",
}
_FAILED = 1


def report(
    url: str | None, image: str, *, as_json: bool, strict: bool, runtime: str | None = None
) -> int:
    """Examine an engine and show the rows; the exit code. Raises `SandboxworkerError`."""
    address = resolve(url)

    async def asked(reactor: Any) -> list[Row]:
        engine = DockerEngine(address, reactor)
        try:
            return judge(await examine(engine, image, reactor, runtime))
        finally:
            await engine.close()

    rows = react(asked)
    code = exit_code(rows, strict=strict)
    if as_json:
        found = {"engine": address.url, "exit_code": code, "rows": [_record(row) for row in rows]}
        click.echo(json.dumps(found, indent=1))
    else:
        _show(address.url, rows)
    return code


def exit_code(rows: list[Row], *, strict: bool) -> int:
    """As documented."""
    bad = {Status.FAILS} | ({Status.WARNING, Status.UNKNOWN} if strict else set())
    return _FAILED if any(row.status in bad for row in rows) else 0


def _record(row: Row) -> dict[str, str]:
    return {
        "name": row.name,
        "status": row.status.value,
        "found": row.found,
        "meaning": row.meaning,
        "fix": row.fix,
    }


def _show(engine: str, rows: list[Row]) -> None:
    console = Console(highlight=False)
    for row in rows:
        line = f"{row.status.value:8} {row.name:15} {row.found}"
        console.print(line, style=_COLOURS[row.status], markup=False, soft_wrap=True)
        if row.status is not Status.OK:
            console.print(f"{'':8} {'':15} Means: {row.meaning}.", markup=False, soft_wrap=True)
            console.print(f"{'':8} {'':15} Fix: {row.fix}.", markup=False, soft_wrap=True)
    counts = [f"{sum(row.status is status for row in rows)} {status.value}" for status in Status]
    console.print(f"{engine}: {', '.join(counts)}", markup=False, soft_wrap=True)
