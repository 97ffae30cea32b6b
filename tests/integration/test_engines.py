"""Pools over several engines: a second one over TLS, one behind ssh, one that goes and comes."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from certificates import Authority
from git_server import SshServer
from memory_engine import Recorder, within
from real_master import RealMaster, configuration, running_master, shell, until
from runtime import SandboxPolicy
from second_engine import SecondEngine
from twisted.internet import reactor

from sandboxworker import sandbox_pool
from sandboxworker.engine import health
from sandboxworker.engine.address import EngineAddress, resolve
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.engine.stats import TOLD_EVERY
from sandboxworker.errors import EngineError, EngineUnreachable
from sandboxworker.process import run
from sandboxworker.sandbox import Sandbox
from sandboxworker.seccomp import load
from sandboxworker.spec import build_spec

BUSYBOX = "sandboxworker/busybox:latest"
POLICY = SandboxPolicy(BUSYBOX, memory="64m", disk="16m", tmp="16m", shm="8m", pids=64)
SECONDS = 60.0


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are asked more often than in practice."""
    monkeypatch.setattr(health, "UP_SECONDS", 0.5)
    monkeypatch.setattr(health, "DOWN_SECONDS", 0.5)


# ---- two engines, one over TLS -------------------------------------------------------------------


@attrs.frozen
class Second:
    """The second engine, and the folder of a client that it takes."""

    engine: SecondEngine
    address: EngineAddress


@pytest.fixture(scope="module")
def second(engine_client: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Second]:
    """One for this module: it takes some seconds to start."""
    if os.geteuid() != 0 or shutil.which("dockerd", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("only root, with dockerd, can start a second engine")
    folder = tmp_path_factory.mktemp("second")
    made = SecondEngine(folder)
    made.start()
    try:
        made.load_from(engine_client, BUSYBOX)
        yield Second(made, EngineAddress(made.url, made.authority.folder(folder / "client")))
    finally:
        made.forget()


@pytest_twisted.ensureDeferred
async def test_pool_builds_on_both_engines_and_on_what_is_left_when_one_is_gone(
    engine: DockerEngine, second: Second, left_over: Any, tmp_path: Path, soon: None
) -> None:
    pool = sandbox_pool("p", 2, POLICY, engines=[resolve(None), second.address])
    first_up, second_up = (
        lambda worker=worker: worker._engine.health.is_up for worker in pool.workers
    )
    config = configuration(list(pool.workers), [shell("sleep 1", "s")])
    async with running_master(tmp_path, config, left_over) as master:
        both = [await master.submit(), await master.submit()]
        assert await _workers_of(master, both) == {"p-1", "p-2"}

        second.engine.stop()
        await until(lambda: not second_up(), "the second engine's absence to be noticed")
        assert first_up()
        few = [await master.submit(), await master.submit()]
        assert await _workers_of(master, few) == {"p-1"}

        second.engine.start()
        await until(second_up, "the second engine to be noticed again")
        again = [await master.submit(), await master.submit()]
        assert await _workers_of(master, again) == {"p-1", "p-2"}


async def _workers_of(master: RealMaster, requests: list[int]) -> set[str]:
    """Who built them; all succeeded at the first attempt."""
    names = set()
    for request in requests:
        build = await master.finished(request)
        assert build.result == "success", build.log
        assert len(await master.builds(request)) == 1
        names.add(build.properties["workername"])
    return names


@pytest.mark.parametrize("client", ["stranger", "none"])
@pytest_twisted.ensureDeferred
async def test_engine_over_tls_refuses_a_wrong_client_and_one_without_certificate(
    engine: DockerEngine, second: Second, tmp_path: Path, client: str
) -> None:
    if client == "stranger":
        folder = Authority("stranger").folder(tmp_path / "c", trusted=second.engine.authority)
        address = EngineAddress(second.address.url, folder)
    else:
        address = EngineAddress(second.address.url)
    other = DockerEngine(address, reactor)
    try:
        with pytest.raises(EngineError):
            await within(SECONDS, other.image(BUSYBOX))
    finally:
        await within(SECONDS, other.close())


# ---- an engine that goes and comes ---------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_builds_wait_while_an_engine_is_down_and_start_when_it_is_back(
    engine_client: Any, left_over: Any, tmp_path: Path, soon: None
) -> None:
    place = tmp_path / "engine.sock"
    pool = sandbox_pool("p", 1, POLICY, engine=f"unix://{place}")
    (worker,) = pool.workers
    config = configuration([worker], [shell("true", "s")])
    async with running_master(tmp_path, config, left_over) as master:
        await until(lambda: not worker._engine.health.is_up, "its absence to be noticed")
        request = await master.submit()
        place.symlink_to(resolve(None).socket_path)
        build = await master.finished(request)
        assert build.result == "success", build.log
        assert len(await master.builds(request)) == 1
        assert worker.quarantine_timer is None


# ---- an engine behind ssh ------------------------------------------------------------------------


class EngineSsh(SshServer):
    """sshd that runs what it is asked to, with our engine as docker's own."""

    def _settings(self, folder: Path) -> str:
        kept = [
            line for line in super()._settings(folder).splitlines()
            if not line.startswith("ForceCommand")
        ]  # fmt: skip
        host = resolve(None).url
        path = f"PATH={os.environ['PATH']}"
        kept.append(
            f'ForceCommand exec env DOCKER_HOST={host} {path} sh -c "$SSH_ORIGINAL_COMMAND"'
        )
        return "\n".join(kept) + "\n"


@attrs.frozen
class Ssh:
    """An engine behind sshd, and the configuration of ssh that reaches it as ``far-engine``."""

    server: EngineSsh
    config: Path

    def configure(self, *lines: str) -> None:
        self.config.write_text("\n".join(("Host far-engine", *lines)) + "\n")


@pytest.fixture
def ssh(engine_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ssh]:
    """The user's own configuration is this test's: ``ssh`` is started with ``-F``."""
    server = EngineSsh(tmp_path)
    config = tmp_path / "ssh_config"
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "known_hosts").write_text(server.known_hosts + "\n")
    with server:
        made = Ssh(server, config)
        made.configure(
            "HostName 127.0.0.1",
            f"Port {server.port}",
            f"User {server.user}",
            f"IdentityFile {tmp_path}/user_key",
            "IdentitiesOnly yes",
            f"UserKnownHostsFile {tmp_path}/known_hosts",
        )
        yield made


@contextlib.asynccontextmanager
async def started_on(far: DockerEngine, owner: Any) -> AsyncIterator[Sandbox]:
    """A sandbox there, for the length of a block; the engine object ends with it."""
    try:
        spec = build_spec(POLICY, await within(SECONDS, far.image(BUSYBOX)), load("build"))
        sandbox = Sandbox(far, far.uids, spec, owner, reactor)
        try:
            await within(SECONDS, sandbox.start())
            yield sandbox
        finally:
            await within(SECONDS, sandbox.destroy())
    finally:
        await within(SECONDS, far.close())


@pytest_twisted.ensureDeferred
async def test_over_ssh_a_sandbox_lives_works_and_dies(ssh: Ssh, owner: Any) -> None:
    far = DockerEngine(resolve("ssh://far-engine", {}), reactor)
    async with started_on(far, owner) as sandbox:
        data = bytes(range(256)) * 20000
        counted = await within(SECONDS, run(sandbox, ["wc", "-c"], stdin=io.BytesIO(data)))
        assert int(counted.stdout) == len(data)
        done = await within(SECONDS, run(sandbox, ["sh", "-c", "echo out; echo no >&2; exit 3"]))
        assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"no\n", 3)
        many = await within(SECONDS, run(sandbox, ["seq", "100000"]))
        assert many.stdout.endswith(b"100000\n")
        silent = await within(SECONDS, run(sandbox, ["cat"]))
        assert (silent.stdout, silent.exit_code) == (b"", 0)
    assert _ssh_processes() == []


@pytest.mark.parametrize("way", ["tls", "ssh"])
@pytest_twisted.ensureDeferred
async def test_engine_elsewhere_tells_what_a_container_uses(
    request: pytest.FixtureRequest, owner: Any, host_says: Any, way: str
) -> None:
    """Where its kernel counts what waits in sockets as memory; here it is said to."""
    if way == "tls":
        address = request.getfixturevalue("second").address
    else:
        request.getfixturevalue("ssh")
        address = resolve("ssh://far-engine", {})
    far = DockerEngine(address, reactor)
    await host_says(far, counts_sockets=True)
    async with started_on(far, owner) as sandbox:
        gauge = await within(
            SECONDS, far.bound_sockets(str(sandbox.container), sandbox.spec.memory)
        )
        assert gauge.delay == TOLD_EVERY
        await until(lambda: gauge() > 0, "a figure")
        gauge.close()
        await within(SECONDS, run(sandbox, ["sleep", "3"]))
        assert sandbox.is_ready


@pytest_twisted.ensureDeferred
async def test_over_ssh_the_keeper_ends_when_ssh_does(
    engine: DockerEngine, ssh: Ssh, owner: Any
) -> None:
    far = DockerEngine(resolve("ssh://far-engine", {}), reactor)
    spec = build_spec(POLICY, await within(SECONDS, far.image(BUSYBOX)), load("build"))
    sandbox = Sandbox(far, far.uids, spec, owner, reactor)
    await within(SECONDS, sandbox.start())
    for pid in _ssh_processes():
        os.kill(pid, signal.SIGKILL)

    async def gone() -> bool:
        return await engine.inspect(sandbox.container) is None

    await until(gone, "the keeper's end")
    await within(SECONDS, sandbox.destroy())
    await within(SECONDS, far.close())
    assert _ssh_processes() == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("IdentityFile /nonexistent", "Permission denied"),
        ("UserKnownHostsFile /dev/null", "Host key verification failed"),
        ("Port 9", "Connection refused"),
    ],
    ids=["no key", "unknown host", "nobody listens"],
)
@pytest_twisted.ensureDeferred
async def test_over_ssh_what_ssh_says_is_why_an_engine_does_not_answer(
    ssh: Ssh, setting: str, said: str
) -> None:
    ssh.config.write_text(
        ssh.config.read_text().replace("Host far-engine", f"Host far-engine\n{setting}")
    )
    if setting.startswith("IdentityFile"):
        lines = ssh.config.read_text().splitlines()
        ssh.config.write_text("\n".join(line for line in lines if "user_key" not in line) + "\n")
    far = DockerEngine(resolve("ssh://far-engine", {}), reactor)
    try:
        with pytest.raises(EngineUnreachable) as raised:
            await within(SECONDS, far.image(BUSYBOX))
        assert said in str(raised.value)
        with pytest.raises(EngineUnreachable) as raised:
            await within(SECONDS, far.attach("x", Recorder()))
        assert said in str(raised.value)
    finally:
        await within(SECONDS, far.close())
    assert _ssh_processes() == []


def _ssh_processes() -> list[int]:
    """Children of this process that are ssh."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = folder.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            words = folder.joinpath("cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid() and b"dial-stdio" in words:
            found.append(int(folder.name))
    return found
