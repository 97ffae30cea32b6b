"""The audit log's ways out: every event once, a word when one fails, nothing lost in silence."""

from __future__ import annotations

import importlib.resources
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from real_master import assert_valid, until
from twisted.internet import defer, task

from sandboxworker.audit import SCHEMA, Event
from sandboxworker.auditlog import PENDING, RETRY_SECONDS, AuditLog, AuditSettings, SyslogSink
from sandboxworker.sandbox import State

EVENT = Event("audit.lost", fields={"sink": "s", "count": 1})


@attrs.define
class FlakySink:
    """Takes lines, or fails."""

    error: OSError | None = None
    torn: str = ""
    lines: list[str] = attrs.Factory(list)
    is_closed: bool = False
    name: str = "somewhere"

    def open(self) -> str:
        self._fail()
        return self.torn

    def write(self, line: str) -> None:
        self._fail()
        self.lines.append(line)

    async def close(self) -> int:
        self.is_closed = True
        return 0

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@attrs.define
class World:
    """An audit log with a clock, and what it said to ``twistd.log``."""

    clock: task.Clock = attrs.Factory(task.Clock)
    said: list[str] = attrs.Factory(list)
    log: AuditLog = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.log = AuditLog("m", self.clock, self.said.append, now=lambda: 7.0)

    def use(self, *sinks: FlakySink) -> None:
        defer.ensureDeferred(self.log.use(sinks))

    def close(self) -> None:
        defer.ensureDeferred(self.log.close())


@pytest.fixture
def world() -> World:
    return World()


FULL = OSError(28, "No space left on device")


def test_every_event_goes_to_every_sink_before_the_call_returns(world: World) -> None:
    one, other = FlakySink(), FlakySink()
    world.use(one, other)
    world.log.record(EVENT)
    assert one.entries == other.entries
    stamp = {"schema": SCHEMA, "time": 7.0, "master": "m"}
    assert one.entries[0] == {**stamp, "event": "audit.lost", "sink": "s", "count": 1}
    assert world.said == []


def test_a_sink_that_fails_is_told_once_and_keeps_no_other_from_its_lines(world: World) -> None:
    bad, good = FlakySink(FULL), FlakySink()
    world.use(bad, good)
    for _ in range(5):
        world.log.record(EVENT)
    assert len(good.lines) == 5
    (told,) = world.said
    assert "cannot be written to somewhere: No space left on device" in told


def test_what_a_sink_did_not_take_is_written_when_it_works_again_without_a_new_event(
    world: World,
) -> None:
    sink = FlakySink(FULL)
    world.use(sink)
    for _ in range(5):
        world.log.record(EVENT)
    world.clock.advance(RETRY_SECONDS)
    assert sink.lines == []
    sink.error = None
    world.clock.advance(RETRY_SECONDS)
    assert len(sink.lines) == 5
    assert len(world.said) == 2
    assert "again; 0 entries were lost" in world.said[1]
    assert world.clock.getDelayedCalls() == []


def test_what_is_kept_is_bounded_and_what_is_lost_is_told_in_the_log_itself(world: World) -> None:
    sink = FlakySink(FULL)
    world.use(sink)
    for number in range(PENDING + 5):
        world.log.record(Event("e", fields={"number": number}))
    sink.error = None
    world.log.record(Event("e", fields={"number": PENDING + 5}))
    *kept, lost = sink.entries
    assert [entry["number"] for entry in kept] == list(range(6, PENDING + 6))
    assert (lost["event"], lost["count"]) == ("audit.lost", 6)
    assert_valid(lost)
    assert "6 entries were lost" in world.said[-1]


def test_a_torn_line_is_told_in_the_log(world: World) -> None:
    sink = FlakySink(torn='{"schema":1,"ti')
    world.use(sink)
    (entry,) = sink.entries
    assert (entry["event"], entry["torn"]) == ("audit.mended", '{"schema":1,"ti')
    assert_valid(entry)


def test_what_never_reached_a_sink_is_told_at_the_end(world: World) -> None:
    sink = FlakySink(FULL)
    world.use(sink)
    world.log.record(EVENT)
    world.close()
    assert sink.is_closed
    assert "1 entries of the audit log never reached somewhere" in world.said[-1]
    assert world.clock.getDelayedCalls() == []


def test_other_sinks_take_over_from_the_former(world: World) -> None:
    former, later = FlakySink(), FlakySink()
    world.use(former)
    world.use(later)
    world.log.record(EVENT)
    assert (former.is_closed, former.lines, len(later.lines)) == (True, [], 1)


# ---- what the operator may ask for -------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"file": 7},
        {"file": ""},
        {"rotate_at": "lots"},
        {"rotate_at": 100},
        {"keep": -1},
        {"keep": True},
        {"syslog": "relative"},
        {"syslog": None},
        {"file": None},
    ],
)
def test_a_wrong_argument_is_one_fault_that_names_it_and_its_value(
    arguments: dict[str, Any],
) -> None:
    (fault,) = AuditSettings(**arguments).faults()
    ((name, value),) = arguments.items()
    assert fault.startswith(f"{name}={value!r}")


def test_defaults_are_right_and_make_a_file_in_the_masters_directory(tmp_path: Path) -> None:
    settings = AuditSettings()
    assert settings.faults() == []
    (sink,) = settings.sinks(tmp_path, is_shared=False)
    assert sink.name == str(tmp_path / "sandboxworker-audit.jsonl")


def test_file_and_syslog_may_go_together_or_alone(tmp_path: Path) -> None:
    both = AuditSettings(file="/var/log/x", syslog=True, rotate_at="1m", keep=0)
    assert both.faults() == []
    assert [sink.name for sink in both.sinks(tmp_path, is_shared=False)] == [
        "/var/log/x",
        "syslog at /dev/log",
    ]
    alone = AuditSettings(file=None, syslog="/run/x")
    assert alone.faults() == []
    assert [sink.name for sink in alone.sinks(tmp_path, is_shared=False)] == ["syslog at /run/x"]


# ---- syslog ------------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    """Listens as a syslog daemon, or the journal, does."""
    with _listening(tmp_path / "log") as listener:
        yield listener


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    listener.settimeout(20)
    return listener


@pytest_twisted.ensureDeferred
async def test_syslog_gets_each_line_under_our_name(daemon: socket.socket, tmp_path: Path) -> None:
    sink = SyslogSink(str(tmp_path / "log"))
    sink.open()
    long = "x" * 3000
    for line in ("one", long):
        sink.write(line)
    received = [daemon.recv(65536).decode() for _ in range(2)]
    # <14>: facility user, severity info (RFC 3164).
    assert received == ["<14>sandboxworker: one", f"<14>sandboxworker: {long}"]
    assert await sink.close() == 0


@pytest_twisted.ensureDeferred
async def test_syslog_that_is_down_loses_nothing_that_it_can_take_later(
    world: World, tmp_path: Path
) -> None:
    sink = SyslogSink(str(tmp_path / "log"))
    await world.log.use([sink])
    world.log.record(EVENT)
    await until(lambda: sink._error is not None, "a failed attempt", 20)
    world.log.record(EVENT)
    assert "cannot be written to syslog" in world.said[0]
    with _listening(tmp_path / "log") as listener:
        await until(lambda: sink._error is None, "its return", 20)
        world.clock.advance(RETRY_SECONDS)
        entries = [listener.recv(65536).decode().partition(": ")[2] for _ in range(2)]
        await world.log.close()
    assert [json.loads(entry)["event"] for entry in entries] == ["audit.lost"] * 2
    assert "again; 0 entries were lost" in world.said[1]


@pytest_twisted.ensureDeferred
async def test_syslog_that_takes_nothing_is_not_waited_for_and_its_loss_is_told(
    world: World, daemon: socket.socket, tmp_path: Path
) -> None:
    """Its socket's queue fills up, and a sender would wait for ever."""
    sink = SyslogSink(str(tmp_path / "log"))
    await world.log.use([sink])
    for _ in range(3 * PENDING):
        world.log.record(EVENT)
    assert "it takes none, or not fast enough" in world.said[0]
    await world.log.close()
    assert "never reached syslog" in world.said[-1]
    daemon.close()  # Whoever still sends gets an error, and ends.
    await until(lambda: not sink._thread.is_alive(), "the thread's end", 20)


# ---- the schema --------------------------------------------------------------------------------


def _schema() -> dict[str, Any]:
    text = importlib.resources.files("sandboxworker").joinpath("audit.schema.json").read_text()
    schema: dict[str, Any] = json.loads(text)
    return schema


def test_the_schema_is_of_the_version_that_is_written() -> None:
    schema = _schema()
    assert schema["properties"]["schema"]["const"] == SCHEMA
    assert schema["$id"].endswith(f":{SCHEMA}")


def test_the_schema_knows_each_state_of_a_sandbox_and_each_field_that_it_asks_for() -> None:
    schema = _schema()
    events = {kind["properties"]["event"]["const"] for kind in schema["oneOf"]}
    assert {f"sandbox.{state.value}" for state in State} - events == {"sandbox.new"}
    for kind in schema["oneOf"]:
        assert set(kind["required"]) <= set(schema["properties"])


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"event": "sandbox.flying"},
        {"value": "the secret"},
        {"secret": None},
        {"sandbox": "../../etc"},
        {"password": "x"},
    ],
)
def test_an_entry_that_is_not_as_documented_is_found_out(change: dict[str, Any]) -> None:
    good = json.loads(
        Event(
            "secret.released", "0123456789abcdef", {"worker": "w", "secret": "n", "step": "s"}
        ).json_line(1.0, "m")
    )
    assert_valid(good)
    with pytest.raises(AssertionError):
        assert_valid({**good, **change})


DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "audit.md"


@pytest.mark.skipif(not DOCUMENT.is_file(), reason="the documents are not part of a wheel")
def test_the_document_tells_each_event_and_field_as_the_schema_does() -> None:
    schema, text = _schema(), DOCUMENT.read_text()
    for kind in schema["oneOf"]:
        name = kind["properties"]["event"]["const"]
        assert f"| `{name}` | {kind['description']} |" in text
    for name, field in schema["properties"].items():
        (row,) = [row for row in text.splitlines() if row.startswith(f"| `{name}` |")]
        assert row.endswith(f"| {field['description']} |")
