"""``SandboxMetrics`` of a real master, asked by a real Prometheus with the dashboard's queries."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import attrs
import pytest
import pytest_twisted
from buildbot.plugins import util
from buildbot.process.factory import BuildFactory
from prometheus import Prometheus, program, running_prometheus
from prometheus_client.parser import text_string_to_metric_families
from real_master import RealMaster, one_builder_each, running_master, shell, until
from runtime import SandboxPolicy
from twisted.internet import threads

from sandboxworker import SandboxLatentWorker, SandboxMetrics
from sandboxworker.engine.address import resolve

pytestmark = pytest.mark.engine

BUSYBOX = "sandboxworker/busybox:latest"
DEPLOY = Path(__file__).resolve().parents[2] / "examples" / "deploy"
needs_examples = pytest.mark.skipif(
    not DEPLOY.is_dir(), reason="the examples are not part of a wheel"
)


#: A sample's name without its prefix, and the values of its labels.
Key = tuple[str, frozenset[str]]


def at(name: str, *labels: str) -> Key:
    return name, frozenset(labels)


@attrs.frozen
class Running:
    """A master with metrics, which has built a few builds."""

    master: RealMaster
    service: Any

    @property
    def port(self) -> int:
        return int(self.service.port_in_use)

    async def figures(self) -> dict[Key, float]:
        text = await threads.deferToThread(fetch, f"http://127.0.0.1:{self.port}/metrics")
        return {
            at(sample.name.removeprefix("sandboxworker_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def fetch(url: str) -> str:
    with urlopen(url, timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def config(**more: Any) -> dict[str, Any]:
    policy = SandboxPolicy(
        BUSYBOX, disk="8m", memory="64m", max_step_output="64k", secrets=["token"]
    )
    plain = SandboxPolicy(BUSYBOX, disk="8m", memory="64m", max_step_output="64k")
    workers = [
        SandboxLatentWorker("trusted", policy=policy),
        SandboxLatentWorker("pr", policy=plain, standby=1),
    ]
    return one_builder_each(workers, **more)


@pytest_twisted.async_yield_fixture(scope="module")
async def running(
    engine_client: Any, left_over: Any, tmp_path_factory: Any
) -> AsyncIterator[Running]:
    secrets = tmp_path_factory.mktemp("secrets")
    (secrets / "token").write_text("a-value-of-the-token")
    (secrets / "token").chmod(0o600)
    made = config(
        services=[SandboxMetrics(port=0)],
        secretsProviders=[_in_files(secrets)],
    )
    async with running_master(tmp_path_factory.mktemp("m"), made, left_over) as master:
        service = master.master.namedServices["services"].namedServices["SandboxMetrics"]
        found = Running(master, service)
        await _build_all_sorts(found)
        yield found


def _in_files(directory: Path) -> Any:
    from buildbot.secrets.providers.file import SecretInAFile

    return SecretInAFile(str(directory))


async def _build_all_sorts(running: Running) -> None:
    async def one_is_ready() -> bool:
        return bool((await running.figures()).get(at("sandboxes_kept_ready", engine())) == 1)

    await until(one_is_ready, "a sandbox kept ready")
    run = running.master.run
    assert (await run("pr", [shell("echo hello", "one"), shell("true", "two")])).result == "success"
    assert (await run("pr", [shell("yes", "flood")])).result == "failure"
    for worker, result in (("trusted", "success"), ("pr", "failure")):
        factory = BuildFactory()
        factory.addSteps([shell("true", "x")], withSecrets=[("t", util.Secret("token"))])
        assert (await run(worker, factory)).result == result
    await until(lambda: _gone(running.master) == 4, "the end of four sandboxes")


def _gone(master: RealMaster) -> int:
    gone = {entry["sandbox"] for entry in master.audit if entry["event"] == "sandbox.gone"}
    claimed = {entry["sandbox"] for entry in master.audit if entry.get("build") is not None}
    return len(gone & claimed)


def engine() -> str:
    return str(resolve(None))


@pytest_twisted.ensureDeferred
async def test_what_the_builds_did_is_told(running: Running) -> None:
    found = await running.figures()
    assert found[at("builds_total", "pr", "completed")] == 1
    assert found[at("limits_struck_total", "pr", "max_step_output")] == 1
    assert found[at("secrets_total", "trusted", "released")] >= 1
    assert found[at("secrets_total", "pr", "refused")] >= 1
    assert sum(value for (name, _), value in found.items() if name == "builds_total") == 4
    assert found[at("start_seconds_count", engine())] >= 4
    assert found[at("start_seconds_sum", engine())] > 0
    assert found[at("command_start_seconds_count", engine())] >= 5
    assert found[at("sandboxes_claimed_total", engine())] >= 1
    assert found[at("output_bytes_total")] >= 65536
    assert found[at("build_cpu_seconds_total", "pr")] > 0


@pytest_twisted.ensureDeferred
async def test_the_gauges_tell_of_this_moment(running: Running) -> None:
    async def so() -> bool:
        found = await running.figures()
        return (
            found.get(at("sandboxes_kept_ready", engine())) == 1
            and found.get(at("sandboxes", engine(), "ready")) == 1
            and found.get(at("engine_up", engine())) == 1
        )

    await until(so, "one ready sandbox, which is kept ready")


@pytest_twisted.ensureDeferred
async def test_the_counters_agree_with_the_audit_log(running: Running) -> None:
    found = await running.figures()
    events = [entry["event"] for entry in running.master.audit]
    assert found[at("sandboxes_created_total", engine())] == events.count("sandbox.created")
    assert found[at("sandboxes_gone_total", engine())] == events.count("sandbox.gone")


@pytest_twisted.ensureDeferred
async def test_it_listens_on_loopback_alone_and_answers_one_page(running: Running) -> None:
    assert running.service._listening.getHost().host == "127.0.0.1"
    with pytest.raises(HTTPError) as caught:
        await threads.deferToThread(fetch, f"http://127.0.0.1:{running.port}/secrets")
    assert caught.value.code == 404


# ---- Prometheus ----------------------------------------------------------------------------------


def _queries() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "sandboxworker.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    return [*shown, *re.findall(r"^ +expr: (.*)", rules, re.M)]


@needs_examples
@pytest_twisted.ensureDeferred
async def test_each_query_parses_and_gives_data_where_there_is_some(
    running: Running, tmp_path: Path
) -> None:
    rules = DEPLOY / "prometheus" / "alerts.yml"
    with running_prometheus(tmp_path, running.port, rules) as asked:
        await threads.deferToThread(_wait_for_samples, asked)
        empty = await threads.deferToThread(_empty_ones, asked)
        loaded = await threads.deferToThread(asked.ask, "rules")
    assert empty == []
    (group,) = loaded["groups"]
    assert len(group["rules"]) == len(re.findall(r"- alert:", rules.read_text()))
    assert {rule["health"] for rule in group["rules"]} == {"ok"}


def _wait_for_samples(asked: Prometheus) -> None:
    import time

    give_up = time.monotonic() + 60
    wanted = "count_over_time(sandboxworker_output_bytes_total[1m]) >= 4"
    healthy = "count(ALERTS) or vector(0)"
    while not (asked.query(wanted) and asked.query(healthy)):
        assert time.monotonic() < give_up, asked.ask("targets")
        time.sleep(0.2)
    time.sleep(2)  # So that the rules were looked at as well.


def _empty_ones(asked: Prometheus) -> list[str]:
    """The queries that say nothing though all that they ask for has data."""
    found = []
    for expression in _queries():
        query = expression.replace("$__rate_interval", "1m")
        names = set(re.findall(r"sandboxworker_\w+", query))
        has_data = names and all(asked.query(f"count({name})") for name in names)
        # A comparison says nothing while it does not hold.
        whole = re.sub(r" [<>=]+ \d+$", "", query)
        if not asked.query(whole) and has_data:
            found.append(query)
        asked.query(query)
    return found


@needs_examples
def test_the_alerts_are_raised_when_they_must_be() -> None:
    done = subprocess.run(
        [program("promtool"), "test", "rules", "alerts.test.yml"],
        cwd=DEPLOY / "prometheus",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---- configuration -------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_another_port_after_a_reconfigure_and_none_where_it_is_taken(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = config(services=[SandboxMetrics(port=taken.getsockname()[1])])
        async with running_master(tmp_path, busy, left_over) as master:
            services = master.master.namedServices["services"].namedServices
            assert services["SandboxMetrics"]._listening is None
            await master.reconfigure(config(services=[SandboxMetrics(port=0)]))
            assert (await Running(master, services["SandboxMetrics"]).figures()) is not None
            port = services["SandboxMetrics"].port_in_use
            await master.reconfigure(config())
            with pytest.raises(OSError, match="refused"):
                await threads.deferToThread(fetch, f"http://127.0.0.1:{port}/metrics")
            assert master.errors == []
