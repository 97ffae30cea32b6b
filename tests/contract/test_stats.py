"""What an engine tells of a container each second, where the kernel's own files cannot be read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import attrs
import bad_engine
import pytest
import pytest_twisted
from bad_engine import BadEngine, behind_a_proxy
from memory_engine import Recorder, within
from real_master import until
from twisted.internet import reactor, task

from sandboxworker.engine import docker as docker_engine
from sandboxworker.engine import stats
from sandboxworker.engine.address import EngineAddress, resolve
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.engine.interface import SocketGauge
from sandboxworker.engine.stats import TOLD_EVERY
from sandboxworker.errors import EngineRefused, EngineUnreachable, SocketsUnbounded
from sandboxworker.sandbox import Sandbox

SECONDS = 60.0
MIB = 1 << 20
STATS = r"GET /containers/[^/]+/stats"


@attrs.frozen
class Remote:
    """A sandbox of an engine whose files cannot be read from here, and what may spoil answers."""

    engine: DockerEngine
    bad: BadEngine
    sandbox: Sandbox

    async def gauge(self) -> SocketGauge:
        """Of the sandbox."""
        return await within(SECONDS, self.engine.bound_sockets(str(self.sandbox.container), MIB))


@pytest_twisted.async_yield_fixture
async def remote(
    make_sandbox: Any, host_says: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Remote]:
    """As a master in a container has it, on a host with cgroup v2."""
    sandbox = await make_sandbox()
    monkeypatch.setattr(docker_engine, "bound_sockets", lambda *_: None)
    async with behind_a_proxy(resolve(None).socket_path) as bad:
        engine = DockerEngine(EngineAddress(bad.url), reactor)
        await host_says(engine, counts_sockets=True)
        yield Remote(engine, bad, sandbox)
        await within(SECONDS, engine.close())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first figure has to come soon."""
    monkeypatch.setattr(docker_engine, "FIRST_DEADLINE", 1.0)


@pytest_twisted.ensureDeferred
async def test_engine_tells_all_memory_of_a_container_each_second(remote: Remote) -> None:
    gauge = await remote.gauge()
    assert 0 < gauge() < 32 * MIB
    assert gauge.delay == TOLD_EVERY
    fill = Recorder()
    await remote.sandbox.exec(("/bin/sh", "-c", "head -c 33554432 /dev/zero >/dev/shm/f"), fill)
    await within(SECONDS, fill.ended)
    await until(lambda: gauge() >= 32 * MIB, "a figure with all of it", 10)
    gauge.close()


@pytest_twisted.ensureDeferred
async def test_first_figure_is_waited_for_once(remote: Remote) -> None:
    (await remote.gauge()).close()
    late = remote.bad.strike(STATS, delay=2.0)
    gauge = await remote.gauge()
    assert gauge() == 0
    await until(lambda: gauge() > 0, "a figure", 10)
    assert late.struck == 1
    gauge.close()


@pytest_twisted.ensureDeferred
async def test_nobody_listens_after_a_gauge_is_closed(remote: Remote) -> None:
    gauges = [await remote.gauge() for _ in range(20)]
    await until(lambda: all(gauge() for gauge in gauges), "their figures", 10)
    assert remote.bad.connected >= 20
    for gauge in gauges:
        gauge.close()
    await until(lambda: remote.bad.connected < 10, "the connections' end", 10)


@pytest_twisted.ensureDeferred
async def test_figures_end_with_the_container(remote: Remote) -> None:
    gauge = await remote.gauge()
    await within(SECONDS, remote.sandbox.destroy())
    with pytest.raises(EngineUnreachable, match="ended"):
        await until(lambda: gauge() < 0, "the end", 10)
    with pytest.raises(EngineRefused) as refused:
        await remote.gauge()
    assert refused.value.status == 404
    gauge.close()


@pytest.mark.parametrize("status", [403, 405, 501])
@pytest_twisted.ensureDeferred
async def test_engine_that_does_not_let_its_figures_be_had_is_refused_and_says_why(
    remote: Remote, status: int
) -> None:
    remote.bad.strike(STATS, answer=bad_engine.refusal(status, "not from here"))
    with pytest.raises(SocketsUnbounded, match=r"not from here.*may refuse.*sockets='unbounded'"):
        await remote.gauge()


@pytest_twisted.ensureDeferred
async def test_engine_that_fails_is_asked_again_by_the_next_build(remote: Remote) -> None:
    remote.bad.strike(STATS, answer=bad_engine.refusal(500, "out of luck"), times=1)
    with pytest.raises(EngineRefused, match="out of luck"):
        await remote.gauge()
    (await remote.gauge()).close()


#: A figure without a memory, after which another could come.
_WITHOUT = json.dumps({"name": "/x", "memory_stats": {}}) + "\n"
NOTHING = (
    f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{len(_WITHOUT):x}\r\n{_WITHOUT}\r\n"
)


@pytest.mark.parametrize(
    "answer",
    [{"is_lost": True}, {"answer": NOTHING.encode()}],
    ids=["no answer", "no memory in it"],
)
@pytest_twisted.ensureDeferred
async def test_engine_that_tells_no_figure_is_refused(
    remote: Remote, impatient: None, answer: dict[str, Any]
) -> None:
    remote.bad.strike(STATS, **answer)
    with pytest.raises(SocketsUnbounded, match="none within 1 s"):
        await remote.gauge()


@pytest.mark.parametrize("answer", ["{half\n", "3\n", '{"memory_stats": {"usage": []}}\n'])
@pytest_twisted.ensureDeferred
async def test_figures_that_are_none_are_not_understood(remote: Remote, answer: str) -> None:
    remote.bad.strike(STATS, answer=bad_engine.half_json(answer))
    with pytest.raises(EngineRefused, match="not understood"):
        await remote.gauge()


@pytest_twisted.ensureDeferred
async def test_figures_that_are_cut_off_or_cannot_be_asked_for_are_an_engine_out_of_reach(
    remote: Remote,
) -> None:
    gauge = await remote.gauge()
    await within(SECONDS, remote.bad.down())
    with pytest.raises(EngineUnreachable):
        await until(lambda: gauge() < 0, "the cut", 10)
    late = await within(SECONDS, remote.engine._stats(str(remote.sandbox.container)))
    with pytest.raises(EngineUnreachable):
        await until(lambda: late() < 0, "the refused connection", 10)
    gauge.close()
    late.close()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"after": 0}, "hung up during 'stats'"),
        ({"answer": b"220 hi\r\n\r\n"}, "is no HTTP"),
    ],
    ids=["hangs up", "no HTTP"],
)
@pytest_twisted.ensureDeferred
async def test_answer_that_is_none_is_told_in_words(
    remote: Remote, fault: dict[str, Any], said: str
) -> None:
    remote.bad.strike(STATS, **fault)
    with pytest.raises(EngineUnreachable, match=said) as told:
        await remote.gauge()
    assert "Failure" not in str(told.value)
    assert "\n" not in str(told.value)


@pytest.fixture
def told() -> Iterator[tuple[stats.StatsGauge, task.Clock]]:
    """A gauge that has heard of 7 bytes, and its clock."""
    clock = task.Clock()
    gauge = stats.StatsGauge("engine", clock)
    gauge.lineReceived(b'{"memory_stats": {"usage": 7}}')
    yield gauge, clock
    gauge.close()


def test_the_last_figure_counts_for_a_while_and_then_nobody_can_tell(
    told: tuple[stats.StatsGauge, task.Clock],
) -> None:
    gauge, clock = told
    clock.advance(stats.SILENT)
    gauge.lineReceived(b'{"memory_stats": {}}')
    assert gauge() == 7
    clock.advance(1)
    with pytest.raises(EngineUnreachable, match="told no figures for 61 s"):
        gauge()
    gauge.lineReceived(b'{"memory_stats": {"usage": 9}}')
    assert gauge() == 9
