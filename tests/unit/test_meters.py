"""Events and figures in Prometheus' terms; no label that a build could choose."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sandboxworker import figures
from sandboxworker.audit import Event
from sandboxworker.auditlog import AuditLog
from sandboxworker.errors import (
    EngineError,
    EngineRefused,
    EngineTimeout,
    EngineUnreachable,
)
from sandboxworker.meters import Meters, Now

ENGINE, WORKER = "unix:///e.sock", "pr-1"
KNOWN = {"engine": ENGINE, "worker": WORKER}


#: A sample's name without its prefix, and the values of its labels.
Key = tuple[str, frozenset[str]]


def at(name: str, *labels: str) -> Key:
    return name, frozenset(labels)


def meters() -> Meters:
    living = [(ENGINE, "ready"), (ENGINE, "ready"), (ENGINE, "stuck")]
    return Meters(Now(lambda: living, lambda: {ENGINE: 3}, lambda: {ENGINE: True}))


def samples(made: Meters) -> dict[Key, float]:
    text = generate_latest(made.registry).decode()
    return {
        at(sample.name.removeprefix("sandboxworker_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def test_the_gauges_tell_what_is_so_when_somebody_looks() -> None:
    found = samples(meters())
    assert found[at("sandboxes", ENGINE, "ready")] == 2
    assert found[at("sandboxes", ENGINE, "stuck")] == 1
    assert found[at("sandboxes_kept_ready", ENGINE)] == 3
    assert found[at("engine_up", ENGINE)] == 1


@pytest.mark.parametrize(
    ("event", "fields", "counted"),
    [
        ("sandbox.created", {}, at("sandboxes_created_total", ENGINE)),
        ("sandbox.claimed", {"waited": 2.5}, at("sandboxes_claimed_total", ENGINE)),
        ("sandbox.lost", {"reason": "r"}, at("sandboxes_lost_total", ENGINE)),
        ("sandbox.gone", {}, at("sandboxes_gone_total", ENGINE)),
        ("sandbox.stuck", {"reason": "r"}, at("sandboxes_stuck_total", ENGINE)),
        ("sandbox.ready", {"phases": {"create": 0.1}}, at("start_seconds_count", ENGINE)),
        ("sandbox.gone", {"outcome": "completed"}, at("builds_total", WORKER, "completed")),
        ("build.concluded", {"outcome": "refused"}, at("builds_total", WORKER, "refused")),
        ("secret.released", {"secret": "s"}, at("secrets_total", WORKER, "released")),
        ("secret.refused", {"secret": "s"}, at("secrets_total", WORKER, "refused")),
        ("source.refused", {"reason": "r"}, at("sources_refused_total", WORKER)),
        ("limit.struck", {"limit": "pids"}, at("limits_struck_total", WORKER, "pids")),
        ("reap.removed", {"why": "orphan"}, at("reaped_total", ENGINE, "orphan")),
        ("reap.failed", {"why": "orphan"}, at("reap_failures_total", ENGINE)),
        ("audit.lost", {"count": 7}, at("audit_entries_lost_total")),
    ],
)
def test_an_event_is_counted(event: str, fields: dict[str, Any], counted: Any) -> None:
    made = meters()
    before = samples(made).get(counted, 0)
    made.event(Event(event, "0" * 16, {**KNOWN, **fields}))
    assert samples(made)[counted] == before + fields.get("count", 1)


def test_what_a_build_used_is_counted_with_its_end() -> None:
    made = meters()
    used = {**KNOWN, "outcome": "failed", "memory_peak": 5 * 2**20, "cpu_seconds": 1.5}
    made.event(Event("sandbox.gone", "0" * 16, used))
    found = samples(made)
    assert found[at("build_cpu_seconds_total", WORKER)] == 1.5
    assert found[at("build_memory_peak_bytes_sum", WORKER)] == 5 * 2**20


def test_what_is_rare_begins_at_0() -> None:
    """A series that begins at 1 is for Prometheus' increase() no increase."""
    made = meters()
    made.event(Event("sandbox.created", "0" * 16, KNOWN))
    found = samples(made)
    for name in ("sandboxes_stuck_total", "sandboxes_lost_total", "reap_failures_total"):
        assert found[at(name, ENGINE)] == 0
    assert found[at("secrets_total", WORKER, "refused")] == 0
    for kind in figures.FAILURES:
        assert found[at("engine_errors_total", ENGINE, kind)] == 0


@pytest.mark.parametrize(
    ("event", "field"), [("limit.struck", "limit"), ("sandbox.gone", "outcome")]
)
def test_a_word_that_is_none_of_ours_makes_no_label(event: str, field: str) -> None:
    made = meters()
    for number in range(50):
        made.event(Event(event, "0" * 16, {**KNOWN, field: f"chosen-{number}"}))
    labels = {label for _, several in samples(made) for label in several}
    assert "other" in labels
    assert not any(label.startswith("chosen") for label in labels)


def test_names_that_belong_to_a_build_are_no_labels() -> None:
    made = meters()
    theirs = {"builder": "b-x", "step": "s-x", "secret": "t-x", "reason": "r-x", "path": "p-x"}
    for event in ("secret.refused", "source.refused", "sandbox.lost", "sandbox.gone"):
        made.event(Event(event, "0" * 16, {**KNOWN, **theirs}))
    assert "-x" not in generate_latest(made.registry).decode()


def test_an_unknown_event_is_none_of_its_business() -> None:
    made = meters()
    before = samples(made)
    made.event(Event("something.new", "", {"x": 1}))
    assert samples(made) == before


def test_figures_come_to_whoever_listens() -> None:
    made = meters()
    figures.LISTENERS.append(made)
    try:
        figures.output(10)
        figures.output(5)
        figures.command_started(ENGINE, -0.5)  # The clock was set back.
    finally:
        figures.LISTENERS.remove(made)
    figures.output(99)
    found = samples(made)
    assert found[at("output_bytes_total")] == 15
    assert found[at("command_start_seconds_count", ENGINE)] == 1
    assert found[at("command_start_seconds_sum", ENGINE)] == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineTimeout(ENGINE, "start", 30), "timeout"),
        (EngineUnreachable(ENGINE, "refused"), "unreachable"),
        (EngineRefused(ENGINE, "start", 500, "no"), "refused"),
        (EngineRefused(ENGINE, "start", 0, "not understood"), "refused"),
        (EngineRefused(ENGINE, "inspect", 404, "none such"), None),
        (EngineRefused(ENGINE, "create", 409, "in use"), None),
        (EngineError("something else"), "other"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_failed_engine_call_is_counted_and_still_fails(
    error: EngineError, kind: str | None
) -> None:
    class Engine:
        name = ENGINE

        @figures.failures_told
        async def call(self) -> None:
            raise error

    made = meters()
    figures.LISTENERS.append(made)
    try:
        with pytest.raises(EngineError) as caught:
            await Engine().call()
    finally:
        figures.LISTENERS.remove(made)
    assert caught.value is error
    counted = {labels for name, labels in samples(made) if name == "engine_errors_total"}
    assert counted == ({frozenset((ENGINE, kind))} if kind else set())


def test_a_listener_that_fails_harms_no_one_who_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[Any] = []
    monkeypatch.setattr("sandboxworker.auditlog.unexpected", lambda _: failures.append)
    log = AuditLog("m", None, print)
    log.listeners.append(lambda event: event.fields["nothing like it"])
    log.record(Event("sandbox.gone", "0" * 16))
    assert len(failures) == 1


def test_the_document_has_each_metric() -> None:
    document = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
    if document.is_file():
        rows = re.findall(r"^\| `(sandboxworker_\w+)` \| (\w+) \|", document.read_text(), re.M)
        found = {
            (family.name + "_total" * (family.type == "counter"), family.type)
            for family in meters().registry.collect()
        }
        assert set(rows) == found
