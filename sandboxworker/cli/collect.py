"""One run of ``sandboxworker gc``: look, remove, tell."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandboxworker.audit import Audit, Event
from sandboxworker.auditfile import FILE, AuditFile
from sandboxworker.cli.react import react
from sandboxworker.engine.address import resolve
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.errors import SandboxworkerError
from sandboxworker.identity import is_living, read_id
from sandboxworker.reaper import Found, Reaped, Reaper

REMOVED, WOULD_REMOVE = "removed", "would remove"


@attrs.frozen
class Container:
    """One container, and what became of it: `REMOVED`, `WOULD_REMOVE`, or a problem."""

    found: Found
    result: str

    def record(self) -> dict[str, Any]:
        """For ``--json``; ``sandbox`` is its id in the audit log."""
        return {**self.found.fields(), "sandbox": self.found.sandbox, "result": self.result}


@attrs.frozen
class Result:
    """What a run found on an engine; ``is_living``: whether the master runs."""

    engine: str
    master: str
    is_living: bool
    containers: tuple[Container, ...]

    @property
    def has_failed(self) -> bool:
        """Whether something is left that should be gone."""
        return any(each.result not in (REMOVED, WOULD_REMOVE) for each in self.containers)


def collect(basedir: Path, engine: str | None, audit_file: Path | None, *, dry_run: bool) -> Result:
    """Do it, with a reactor of its own.

    Raises `SandboxworkerError` where the directory is no master's or the engine does not answer.
    """
    address, master = resolve(engine), read_id(basedir)
    file = AuditFile(audit_file or basedir / FILE, is_shared=True)

    async def run(reactor: Any) -> Result:
        opened = DockerEngine(address, reactor)
        # Asked once the engine has told what it has: a master that starts later owns none of it.
        reaper = Reaper(
            master, reactor, _audit(file, master), by="gc", is_owned=lambda _: is_living(basedir)
        )
        try:
            found = await reaper.find(opened)
            containers = [Container(each, WOULD_REMOVE) for each in found]
            if found and not dry_run:
                _begin(file)
                containers = _results(found, await reaper.reap(opened, found))
            if not dry_run:
                await reaper.tidy_volumes(opened)
            return Result(opened.name, master, is_living(basedir), tuple(containers))
        finally:
            await opened.close()

    try:
        return react(run)
    finally:
        file.close()


def _results(found: list[Found], reaped: list[Reaped]) -> list[Container]:
    results = {each.found.container.id: each.problem or REMOVED for each in reaped}
    untried = "not tried, as the engine does not answer"
    return [Container(each, results.get(each.container.id, untried)) for each in found]


def _begin(file: AuditFile) -> None:
    """Nothing is removed that could not be written down."""
    try:
        file.open()
    except OSError as error:
        raise SandboxworkerError(
            f"the audit log {file.path} cannot be written, so nothing was removed",
            details=str(error.strerror),
            resolution="Be the master's user or root, or name another with --audit-file",
        ) from None


def _audit(file: AuditFile, master: str) -> Audit:
    def write(event: Event) -> None:
        line = event.json_line(time.time(), master)
        try:
            file.write(line)
        except OSError as error:
            raise SandboxworkerError(
                f"the audit log {file.path} cannot be written any more",
                details=str(error.strerror),
                resolution=f"What it does not have is: {line}",
            ) from None

    return write


def show(result: Result) -> None:
    """A table of what was found, and a line that sums it up."""
    console = Console(highlight=False)
    if result.containers:
        console.print(_table(result))
    state = "runs" if result.is_living else "does not run"
    count = len(result.containers)
    console.print(
        f"{count} container{'' if count == 1 else 's'} to remove on {result.engine}; "
        f"the master {result.master} {state}",
        markup=False,
        soft_wrap=True,
    )


def _table(result: Result) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("container", "name", "worker", "state", "why", "result"):
        table.add_column(heading, overflow="fold")
    for each in result.containers:
        known = each.record()
        cells = (known["container"][:12], *(known[key] for key in ("name", "worker", "state")))
        table.add_row(*(Text(str(cell or "")) for cell in (*cells, known["why"], each.result)))
    return table
