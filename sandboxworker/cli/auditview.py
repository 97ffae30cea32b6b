"""Which entries of the audit log are wanted, and how they are shown."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs
import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandboxworker.auditfile import Reading, reading
from sandboxworker.errors import SandboxworkerError
from sandboxworker.policy import parse_seconds

Entry = Mapping[str, Any]

#: What has a column of its own, or is of no use to people.
_ELSEWHERE = frozenset(
    {"schema", "time", "master", "event", "sandbox", "worker", "builder", "build", "buildid"}
    | {"container", "spec"}
)


# ---- what is wanted ------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Wanted:
    """Filters that an entry has to pass, all of them; None or empty lets everything through.

    ``since``, ``until``: seconds since the epoch.
    """

    builder: str | None = None
    build: int | None = None
    worker: str | None = None
    sandbox: str | None = None
    events: tuple[str, ...] = ()
    outcome: str | None = None
    since: float | None = None
    until: float | None = None

    @classmethod
    def parse(
        cls,
        *,
        build: str | None,
        worker: str | None,
        sandbox: str | None,
        events: tuple[str, ...],
        outcome: str | None,
        since: str | None,
        until: str | None,
    ) -> Wanted:
        """From the words of a command line. Raises `SandboxworkerError` for the first wrong one."""
        builder, number = _parse_build(build)
        _check_events(events)
        wanted = cls(
            builder=builder,
            build=number,
            worker=worker,
            sandbox=sandbox,
            events=events,
            outcome=outcome,
            since=_parse_time("--since", since),
            until=_parse_time("--until", until),
        )
        if wanted.since and wanted.until and wanted.since >= wanted.until:
            raise SandboxworkerError(
                f"--since {since} is not before --until {until}",
                resolution="Exchange them",
            )
        return wanted

    def fits(self, entry: Entry) -> bool:
        """Whether an entry passes; `outcome` apart, which is not known from one entry."""
        return all(
            (
                self.builder in (None, entry.get("builder")),
                self.build in (None, entry.get("build")),
                self.worker is None or fnmatchcase(str(entry.get("worker", "")), self.worker),
                self.sandbox is None or str(entry.get("sandbox", "")).startswith(self.sandbox),
                not self.events or any(fnmatchcase(entry["event"], each) for each in self.events),
                self.since is None or entry["time"] >= self.since,
                self.until is None or entry["time"] < self.until,
            )
        )


def _parse_build(text: str | None) -> tuple[str | None, int | None]:
    if text is None:
        return None, None
    builder, _, number = text.rpartition("/")
    if not number.isdecimal():
        raise SandboxworkerError(
            f"--build {text}: no build's number", resolution="Write 12, or BUILDER/12"
        )
    return builder or None, int(number)


def _check_events(events: Iterable[str]) -> None:
    known = known_events()
    for event in events:
        if not any(fnmatchcase(each, event) for each in known):
            raise SandboxworkerError(
                f"--event {event}: there is no such event", details=f"known: {', '.join(known)}"
            )


def known_events() -> list[str]:
    """The names of all events, from the schema."""
    schema = json.loads(files("sandboxworker").joinpath("audit.schema.json").read_text())
    return [kind["properties"]["event"]["const"] for kind in schema["oneOf"]]


def _parse_time(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    ago = parse_seconds(text)
    if ago is not None and not text.isdecimal():
        return time.time() - ago
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        raise SandboxworkerError(
            f"{option} {text}: no time",
            resolution="Write 2026-03-31, 2026-03-31T12:30, or how long ago: 90s, 30m, 2h, 7d",
        ) from None


# ---- reading -------------------------------------------------------------------------------------


def show(file: str, wanted: Wanted, *, as_json: bool) -> None:
    """Print the entries of a log that are wanted; ``-`` is standard input.

    Raises `SandboxworkerError` where it cannot be read.
    """
    source = _reading(file)
    entries = _with_outcome(source, wanted) if wanted.outcome else filter(wanted.fits, source)
    shown = (_print_json if as_json else _print_table)(entries)
    for remark in _remarks(file, source, shown):
        click.echo(f"sandboxworker: {remark}", err=True)


def _reading(file: str) -> Reading:
    if file == "-":
        return Reading([sys.stdin.buffer])
    try:
        return reading(Path(file))
    except OSError as error:
        raise SandboxworkerError(
            f"no audit log can be read from {file}",
            details=str(error.strerror),
            resolution="Name the file, or the master's directory with --basedir; "
            "it begins with the first sandbox",
        ) from None


def _with_outcome(entries: Iterable[Entry], wanted: Wanted) -> Iterator[Entry]:
    """All about the sandboxes that ended so; which they are is known only at the end."""
    fitting, ended_so = [], set()
    for entry in entries:
        if entry.get("outcome") == wanted.outcome:
            ended_so.add(entry.get("sandbox"))
        if "sandbox" in entry and wanted.fits(entry):
            fitting.append(entry)
    yield from (entry for entry in fitting if entry["sandbox"] in ended_so)


def _remarks(file: str, source: Reading, shown: int) -> Iterator[str]:
    if source.unreadable:
        yield f"{source.unreadable} lines in {file} are no entries, and were passed over"
    if not shown:
        yield f"none of the {source.entries} entries in {file} fits"


# ---- showing -------------------------------------------------------------------------------------


def _print_json(entries: Iterable[Entry]) -> int:
    count = 0
    for entry in entries:
        click.echo(json.dumps(entry, separators=(",", ":")))
        count += 1
    return count


def _print_table(entries: Iterable[Entry]) -> int:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in _COLUMNS:
        table.add_column(heading, overflow="fold", no_wrap=heading in ("time", "event"))
    for entry in entries:
        # `Text`: what stands in the log is no markup.
        table.add_row(*(Text(cell(entry)) for cell in _COLUMNS.values()))
    if table.row_count:
        _console().print(table)
    return table.row_count


def _console() -> Console:
    """As wide as the terminal; in a pipe, as wide as it takes."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=400)


def _when(entry: Entry) -> str:
    try:
        return datetime.fromtimestamp(entry["time"]).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(entry["time"])


def _build(entry: Entry) -> str:
    return f"{entry['builder']}/{entry.get('build')}" if "builder" in entry else ""


def _details(entry: Entry) -> str:
    return " ".join(
        _printable(f"{name}={value}") for name, value in entry.items() if name not in _ELSEWHERE
    )


def _printable(text: str) -> str:
    """Without line ends and what steers a terminal: parts of it came from engines and builds."""
    return "".join(each if each.isprintable() else "�" for each in text)


_COLUMNS: dict[str, Callable[[Entry], str]] = {
    "time": _when,
    "event": lambda entry: _printable(entry["event"]),
    "build": lambda entry: _printable(_build(entry)),
    "worker": lambda entry: _printable(str(entry.get("worker", ""))),
    "sandbox": lambda entry: _printable(str(entry.get("sandbox", ""))),
    "details": _details,
}
