"""The audit log's events and `figures`, counted in Prometheus' terms.

No label has a value that a build controls: engines, workers and fields of the policy are the
operator's, the other words our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily

from sandboxworker.audit import Event
from sandboxworker.figures import FAILURES
from sandboxworker.outcome import Outcome
from sandboxworker.policy import SandboxPolicy

PREFIX = "sandboxworker"
#: Seconds: a start takes 0.2 on an idle machine, a command 0.05.
_START_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60)
_COMMAND_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_MEMORY_BUCKETS = tuple(2**power for power in range(22, 36))  # 4 MiB to 32 GiB

_DECISIONS = ("released", "refused")
_OUTCOMES = frozenset(outcome.value for outcome in Outcome)
_LIMITS = frozenset(field.name for field in attrs.fields(SandboxPolicy))


@attrs.frozen
class Now:
    """How to know what is so at this moment.

    ``living()``: each sandbox's engine and state; ``ready()``: how many are kept ready, by engine;
    ``engines()``: whether each engine answers.
    """

    living: Callable[[], list[tuple[str, str]]]
    ready: Callable[[], Mapping[str, int]]
    engines: Callable[[], Mapping[str, bool]]


class Meters:
    """What one master's sandboxes did, since the master's start.

    ``now``: asked when somebody looks.
    """

    def __init__(self, now: Now) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Gauges(now))
        self._created = self._counter("sandboxes_created", "Containers made", "engine")
        self._claimed = self._counter("sandboxes_claimed", "Kept ready, then taken", "engine")
        self._lost = self._counter("sandboxes_lost", "Ended without our asking", "engine")
        self._gone = self._counter("sandboxes_gone", "Confirmed to be gone", "engine")
        self._stuck = self._counter("sandboxes_stuck", "Not confirmed in time", "engine")
        self._start = self._histogram("start_seconds", "Create to ready", _START_BUCKETS, "engine")
        self._command = self._histogram(
            "command_start_seconds", "A command asked for to begun", _COMMAND_BUCKETS, "engine"
        )
        self._builds = self._counter("builds", "Builds that ended", "worker", "outcome")
        self._cpu = self._counter("build_cpu_seconds", "CPU that builds used", "worker")
        self._memory = self._histogram(
            "build_memory_peak_bytes", "Memory of builds at its peak", _MEMORY_BUCKETS, "worker"
        )
        self._limits = self._counter("limits_struck", "Limits reached", "worker", "limit")
        self._secrets = self._counter("secrets", "Secrets asked for", "worker", "decision")
        self._sources = self._counter("sources_refused", "Repositories not fetched", "worker")
        self._reaped = self._counter("reaped", "Leftovers removed", "engine", "why")
        self._reap_failures = self._counter("reap_failures", "Leftovers that stay", "engine")
        self._errors = self._counter("engine_errors", "Engine calls failed", "engine", "kind")
        self._output = self._counter("output_bytes", "Written to builds' logs")
        self._audit_lost = self._counter("audit_entries_lost", "Audit entries given up")
        self._told_by_event: dict[str, Callable[[Event], None]] = {
            "sandbox.created": self._made,
            "sandbox.ready": self._ready,
            "sandbox.claimed": self._counts(self._claimed, "engine"),
            "sandbox.lost": self._counts(self._lost, "engine"),
            "sandbox.gone": self._counts(self._gone, "engine"),
            "sandbox.stuck": self._counts(self._stuck, "engine"),
            "secret.released": self._secret("released"),
            "secret.refused": self._secret("refused"),
            "source.refused": self._counts(self._sources, "worker"),
            "limit.struck": self._limit,
            "reap.removed": self._counts(self._reaped, "engine", "why"),
            "reap.failed": self._counts(self._reap_failures, "engine"),
            "audit.lost": lambda event: self._audit_lost.inc(event.fields["count"]),
        }

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Any, *labels: str) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, labels, buckets=buckets, registry=self.registry)

    # the audit log

    def event(self, event: Event) -> None:
        """An event of the audit log."""
        told = self._told_by_event.get(event.name)
        if told is not None:
            told(event)
        # With the sandbox's last event, or after it, or of a build that never had one.
        if event.fields.get("outcome") is not None:
            self._ended(event)

    def _made(self, event: Event) -> None:
        """What is rare begins at 0, or Prometheus would not see it become 1."""
        engine, worker = _label(event, "engine"), _label(event, "worker")
        self._created.labels(engine).inc()
        for counter in (self._lost, self._stuck, self._reap_failures):
            counter.labels(engine)
        for kind in FAILURES:
            self._errors.labels(engine, kind)
        for decision in _DECISIONS:
            self._secrets.labels(worker, decision)

    def _counts(self, counter: Counter, *labels: str) -> Callable[[Event], None]:
        def count(event: Event) -> None:
            counter.labels(*(_label(event, name) for name in labels)).inc()

        return count

    def _ready(self, event: Event) -> None:
        phases = event.fields.get("phases") or {}
        if phases:
            self._start.labels(_label(event, "engine")).observe(sum(phases.values()))

    def _secret(self, decision: str) -> Callable[[Event], None]:
        return lambda event: self._secrets.labels(_label(event, "worker"), decision).inc()

    def _limit(self, event: Event) -> None:
        limit = _known(_label(event, "limit"), _LIMITS)
        self._limits.labels(_label(event, "worker"), limit).inc()

    def _ended(self, event: Event) -> None:
        worker = _label(event, "worker")
        self._builds.labels(worker, _known(_label(event, "outcome"), _OUTCOMES)).inc()
        self._cpu.labels(worker).inc(event.fields.get("cpu_seconds") or 0)
        if event.fields.get("memory_peak") is not None:
            self._memory.labels(worker).observe(event.fields["memory_peak"])

    # figures

    def command_started(self, engine: str, seconds: float) -> None:
        self._command.labels(engine).observe(seconds)

    def output(self, size: int) -> None:
        self._output.inc(size)

    def engine_failed(self, engine: str, kind: str) -> None:
        self._errors.labels(engine, kind).inc()


def _label(event: Event, name: str) -> str:
    return str(event.fields.get(name, ""))


def _known(word: str, words: frozenset[str]) -> str:
    """What is not in our own list would be a label that somebody else chose."""
    return word if word in words else "other"


class _Gauges:
    """What is so at this moment."""

    def __init__(self, now: Now) -> None:
        self._now = now

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield self._sandboxes(self._now.living())
        yield _by_engine("sandboxes_kept_ready", "Waiting for a build", self._now.ready())
        yield _by_engine("engine_up", "1 while it answers", self._now.engines())

    def _sandboxes(self, living: list[tuple[str, str]]) -> GaugeMetricFamily:
        sandboxes = GaugeMetricFamily(
            f"{PREFIX}_sandboxes", "Sandboxes there are", labels=("engine", "state")
        )
        for engine, state in sorted(set(living)):
            sandboxes.add_metric((engine, state), living.count((engine, state)))
        return sandboxes


def _by_engine(name: str, text: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=("engine",))
    for engine, value in values.items():
        gauge.add_metric((engine,), float(value))
    return gauge
