"""What only the real engine can show: deadlines, threads, TLS, and a reader that does not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from bad_engine import LIST, behind_a_proxy, half_json
from certificates import Authority
from memory_engine import Recorder, within
from real_master import until
from twisted.internet import defer, protocol, reactor, task

from sandboxworker.engine import docker as docker_engine
from sandboxworker.engine.address import EngineAddress, resolve
from sandboxworker.engine.docker import ENGINES, MAX_THREADS, DockerEngine
from sandboxworker.engine.sdk import sdk_client
from sandboxworker.errors import EngineError, EngineTimeout, EngineUnreachable, SocketsUnbounded
from sandboxworker.sandbox import State

SECONDS = 60.0
DEADLINE = 0.5


def threads_of_engines() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "sandboxworker " in thread.name]


class Silent(protocol.Protocol):
    """Takes connections and never answers, but for the version if it is told to."""

    def dataReceived(self, data: bytes) -> None:
        self.factory.connections.append(self)  # type: ignore[union-attr]
        asks = re.match(rb"GET (/v[0-9.]+)?/version", data) is not None
        if asks and self.factory.tells_version:  # type: ignore[union-attr]
            body = b'{"ApiVersion": "1.41"}'
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
            self.transport.write(head % len(body) + body)  # type: ignore[union-attr]


@pytest_twisted.async_yield_fixture(params=["from the first", "after the version"])
async def hung(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DockerEngine]:
    """An engine that hangs: for every call, or for all but the one that asks for its version."""
    factory = protocol.Factory.forProtocol(Silent)
    factory.connections = []  # type: ignore[attr-defined]
    factory.tells_version = request.param == "after the version"  # type: ignore[attr-defined]
    path = f"{tmp_path}/s"
    port = reactor.listenUNIX(path, factory)  # type: ignore[attr-defined]
    engine = DockerEngine(EngineAddress(f"unix://{path}"), reactor)
    yield engine
    await port.stopListening()
    for connection in factory.connections:  # type: ignore[attr-defined]
        connection.transport.abortConnection()
    await within(SECONDS, engine.close())


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is over before that of the SDK."""
    set_deadlines(monkeypatch, ours=DEADLINE, of_the_sdk=3 * DEADLINE)


@pytest.fixture
def short_deadline_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the SDK is over before ours."""
    set_deadlines(monkeypatch, ours=SECONDS / 2, of_the_sdk=DEADLINE)


def set_deadlines(patch: pytest.MonkeyPatch, *, ours: float, of_the_sdk: float) -> None:
    def client(address: EngineAddress, **options: Any) -> Any:
        return sdk_client(address, **options | {"timeout": of_the_sdk})

    patch.setattr(docker_engine, "CALL_DEADLINE", ours)
    patch.setattr(docker_engine, "sdk_client", client)


def calls(engine: DockerEngine) -> dict[str, Any]:
    """Every call of the interface, not yet made."""
    from sandboxworker.engine.interface import ExecRequest

    return {
        "image": lambda: engine.image("x"),
        "create": lambda: engine.create("x", {}),
        "inspect": lambda: engine.inspect("x"),
        "attach": lambda: engine.attach("x", Recorder()),
        "start": lambda: engine.start("x"),
        "exec": lambda: engine.exec("x", ExecRequest(("true",), "1:1"), Recorder()),
        "exec_status": lambda: engine.exec_status("x"),
        "resize": lambda: engine.resize("x", 1, 1),
        "usage": lambda: engine.usage("x"),
        "died_of_memory": lambda: engine.died_of_memory("x", 1.0),
        "entry": lambda: engine.entry("x", "/x"),
        "etc": lambda: engine.etc("x", {}),
        "remove": lambda: engine.remove("x"),
        "list": lambda: engine.list({}),
        "volumes": lambda: engine.volumes({}),
        "remove_volume": lambda: engine.remove_volume("x"),
    }


CALLS = sorted(calls(None))  # type: ignore[arg-type]
#: They hold no thread.
STREAMS = ("attach", "exec")


async def failure(waited_for: Awaitable[Any]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await within(SECONDS, waited_for)
    return caught.value


@pytest_twisted.ensureDeferred
async def test_sockets_that_this_process_cannot_bound_are_said_so(
    make_sandbox: Any, host_says: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a master that is not root on the engine's host, which has cgroup v1."""
    sandbox = await make_sandbox()
    engine, container = sandbox.engine, sandbox.container
    monkeypatch.setattr(docker_engine, "bound_sockets", lambda *_: None)
    await host_says(engine, counts_sockets=False)
    with pytest.raises(SocketsUnbounded, match=re.escape(engine.name)):
        await within(SECONDS, engine.bound_sockets(container, 1 << 20))


# ---- an engine that is not well ----------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
@pytest_twisted.ensureDeferred
async def test_call_to_a_hung_engine_ends_at_its_deadline(
    hung: DockerEngine, short_deadline: None, call: str
) -> None:
    error = await failure(calls(hung)[call]())
    assert isinstance(error, EngineTimeout)
    assert hung.name in str(error)


@pytest.mark.parametrize("call", [call for call in CALLS if call not in STREAMS])
@pytest_twisted.ensureDeferred
async def test_timeout_of_the_sdk_is_told_as_one_and_no_thread_stays_in_it(
    hung: DockerEngine, short_deadline_of_the_sdk: None, call: str
) -> None:
    assert isinstance(await failure(calls(hung)[call]()), EngineTimeout)
    await until(lambda: not hung._pool.working, "the end of the thread's work", DEADLINE)


@pytest_twisted.ensureDeferred
async def test_hung_engine_costs_a_bounded_number_of_threads_and_every_call_ends(
    hung: DockerEngine, short_deadline: None
) -> None:
    waiting = [defer.ensureDeferred(hung.inspect(str(number))) for number in range(50)]
    for each in waiting:
        each.addErrback(lambda failed: failed.value)
    ends = await within(SECONDS, defer.gatherResults(waiting))
    assert {type(end) for end in ends} == {EngineTimeout}
    assert 0 < len(threads_of_engines()) <= MAX_THREADS


@pytest_twisted.ensureDeferred
async def test_reactor_goes_on_while_an_engine_hangs(
    hung: DockerEngine, short_deadline: None
) -> None:
    waiting = defer.ensureDeferred(hung.inspect("x"))
    waiting.addErrback(lambda failed: failed.value)
    beats = 0
    while not waiting.called:
        await task.deferLater(reactor, 0.01, lambda: None)
        beats += 1
    assert beats > 5


@pytest.mark.parametrize("call", CALLS)
@pytest_twisted.ensureDeferred
async def test_engine_that_is_not_there_is_said_so_in_one_clear_sentence(
    tmp_path: Path, call: str
) -> None:
    engine = DockerEngine(EngineAddress(f"unix://{tmp_path}/none"), reactor)
    error = await failure(calls(engine)[call]())
    await within(SECONDS, engine.close())
    assert isinstance(error, EngineUnreachable)
    assert str(error) == (
        f"container engine unix://{tmp_path}/none does not answer: No such file or directory. "
        "Start it, or set DOCKER_HOST or engine= to one that runs"
    )


@pytest_twisted.ensureDeferred
async def test_engine_that_refuses_connections_is_said_so(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        engine = DockerEngine(resolve(address, {}), reactor)
        error = await failure(engine.inspect("x"))
        await within(SECONDS, engine.close())
    assert isinstance(error, EngineUnreachable)
    assert "Connection refused" in str(error)
    assert "\n" not in str(error)


@pytest_twisted.ensureDeferred
async def test_engine_that_hangs_up_is_unreachable(tmp_path: Path) -> None:
    class HangUp(protocol.Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.transport.loseConnection()  # type: ignore[union-attr]

    path = f"{tmp_path}/s"
    port = reactor.listenUNIX(path, protocol.Factory.forProtocol(HangUp))  # type: ignore[attr-defined]
    engine = DockerEngine(EngineAddress(f"unix://{path}"), reactor)
    error = await failure(engine.inspect("x"))
    await within(SECONDS, engine.close())
    await port.stopListening()
    assert isinstance(error, EngineUnreachable)


@pytest_twisted.ensureDeferred
async def test_engine_may_come_back(engine: DockerEngine, tmp_path: Path, debian: str) -> None:
    late = DockerEngine(EngineAddress(f"unix://{tmp_path}/late"), reactor)
    assert isinstance(await failure(late.image(debian)), EngineUnreachable)
    (tmp_path / "late").symlink_to(resolve(None).socket_path)
    assert (await within(SECONDS, late.image(debian))).reference == debian
    await within(SECONDS, late.close())


# ---- threads -----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_closed_engine_has_no_threads(engine: DockerEngine, debian: str) -> None:
    other = DockerEngine(resolve(None), reactor)
    before = len(threads_of_engines())
    await other.image(debian)
    assert len(threads_of_engines()) > before
    await within(SECONDS, other.close())
    assert len(threads_of_engines()) == before
    await within(SECONDS, other.close())


def test_unused_engine_has_no_threads_and_contacts_nobody() -> None:
    before = threads_of_engines()
    DockerEngine(EngineAddress("unix:///nowhere"), reactor)
    assert threads_of_engines() == before


@pytest_twisted.ensureDeferred
async def test_many_calls_and_commands_share_few_threads(make_sandbox: Any) -> None:
    sandbox = await make_sandbox()
    receivers = [Recorder() for _ in range(30)]
    starting = [
        defer.ensureDeferred(sandbox.exec(("/bin/sh", "-c", "echo x; sleep 1"), receiver))
        for receiver in receivers
    ]
    await within(SECONDS, defer.gatherResults(starting))
    assert len(threads_of_engines()) <= MAX_THREADS
    for receiver in receivers:
        await within(SECONDS, receiver.ended)
        assert receiver.stdout == b"x\n"


@pytest_twisted.ensureDeferred
async def test_workers_at_the_same_address_share_one_engine_until_the_last_is_done(
    engine: DockerEngine, debian: str
) -> None:
    address = resolve(None)
    one, other = ENGINES.acquire(address, reactor), ENGINES.acquire(address, reactor)
    assert one is other
    await within(SECONDS, defer.ensureDeferred(ENGINES.release(address)))
    assert (await one.image(debian)).reference == debian
    await within(SECONDS, defer.ensureDeferred(ENGINES.release(address)))
    fresh = ENGINES.acquire(address, reactor)
    assert fresh is not one
    await within(SECONDS, defer.ensureDeferred(ENGINES.release(address)))


# ---- back-pressure -----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_flood_with_a_reader_that_does_not_read_is_held_back_and_can_be_destroyed(
    make_sandbox: Any, image: str
) -> None:
    sandbox, receiver = await make_sandbox(image), Recorder()
    _, stream = await sandbox.exec(("/bin/sh", "-c", "exec yes 0123456789abcdef"), receiver)
    stream.pause()
    for _ in range(20):
        await task.deferLater(reactor, 0.05, lambda: None)
        assert len(receiver.stdout) + len(stream._buffer) < 1024 * 1024
    heard = len(receiver.stdout)
    await task.deferLater(reactor, 0.2, lambda: None)
    assert len(receiver.stdout) == heard
    await within(SECONDS, sandbox.destroy())
    assert sandbox.state is State.GONE


@pytest_twisted.ensureDeferred
async def test_input_is_held_back_while_a_command_does_not_read(make_sandbox: Any) -> None:
    """A producer is asked for no more than the buffers on the way can take."""

    class Endless:
        asked = 0

        def resumeProducing(self) -> None:
            self.asked += 1
            stream.write(bytes(65536))

        def stopProducing(self) -> None:
            """The test is over."""

    sandbox, producer = await make_sandbox(), Endless()
    _, stream = await sandbox.exec(("/bin/sleep", "1000"), Recorder(), stdin=True)
    stream.register_producer(producer, False)
    seen = -1
    for _ in range(100):
        if seen == producer.asked:
            break
        seen = producer.asked
        await task.deferLater(reactor, 0.3, lambda: None)
    assert producer.asked == seen
    assert 0 < producer.asked < 1000
    stream.unregister_producer()


# ---- TLS ---------------------------------------------------------------------------------------


class TlsProxy(threading.Thread):
    """TLS with client certificates in front of the engine's own socket, in a loop of its own."""

    def __init__(self, socket_path: str, options: ssl.SSLContext) -> None:
        super().__init__(name="tls-proxy", daemon=True)
        self._socket_path = socket_path
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._done = asyncio.Event()
        self.port: Future[int] = Future()

    def run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self.join(SECONDS)

    async def _serve(self) -> None:
        serving = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._options)
        self.port.set_result(serving.sockets[0].getsockname()[1])
        await self._done.wait()
        serving.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        far, to_far = await asyncio.open_unix_connection(self._socket_path)
        ways = ((near, to_far), (far, to_near))
        both = [asyncio.ensure_future(self._pass_on(*way)) for way in ways]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for writer in (to_near, to_far):
            writer.close()
        for each in both:
            each.cancel()

    @staticmethod
    async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()


@attrs.define
class TlsEngine:
    """The engine behind TLS, and clients of it that are closed after the test."""

    url: str
    authority: Authority
    folder: Path
    made: list[DockerEngine] = attrs.Factory(list)

    def engine(self, cert_path: str | None) -> DockerEngine:
        environ = {"DOCKER_CERT_PATH": cert_path} if cert_path else {}
        self.made.append(DockerEngine(resolve(self.url, environ), reactor))
        return self.made[-1]


#: What the SDK's HTTP library would take from the environment.
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@pytest_twisted.async_yield_fixture
async def tls(
    engine_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TlsEngine]:
    for name in (*BUNDLES, *PROXIES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    authority = Authority("test authority")
    certificate, key = authority.issue("engine")
    (tmp_path / "engine.pem").write_bytes(certificate + key)
    (tmp_path / "ca.pem").write_bytes(authority.pem())
    options = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tmp_path / "ca.pem"))
    options.load_cert_chain(tmp_path / "engine.pem")
    options.verify_mode = ssl.CERT_REQUIRED
    proxy = TlsProxy(resolve(None).socket_path, options)
    proxy.start()
    world = TlsEngine(f"tcp://127.0.0.1:{proxy.port.result(SECONDS)}", authority, tmp_path)
    yield world
    for engine in world.made:
        await within(SECONDS, engine.close())
    proxy.stop()


@pytest.mark.engine
@pytest_twisted.ensureDeferred
async def test_over_tls_with_the_right_certificate_a_sandbox_lives_works_and_dies(
    tls: TlsEngine, owner: Any, debian: str
) -> None:
    import io

    from runtime import SandboxPolicy

    from sandboxworker.process import run
    from sandboxworker.sandbox import Sandbox
    from sandboxworker.seccomp import load
    from sandboxworker.spec import build_spec

    engine = tls.engine(tls.authority.folder(tls.folder / "right"))
    spec = build_spec(SandboxPolicy(debian), await engine.image(debian), load("build"))
    sandbox = Sandbox(engine, engine.uids, spec, owner, reactor)
    try:
        await within(SECONDS, sandbox.start())
        done = await within(SECONDS, run(sandbox, ["sh", "-c", "echo out; echo err >&2; exit 3"]))
        assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 3)
        data = bytes(range(256)) * 20000
        counted = await within(SECONDS, run(sandbox, ["wc", "-c"], stdin=io.BytesIO(data)))
        assert int(counted.stdout) == len(data)
        silent = await within(SECONDS, run(sandbox, ["cat"]))
        assert (silent.stdout, silent.exit_code) == (b"", 0)
    finally:
        await within(SECONDS, sandbox.destroy())
    assert sandbox.state is State.GONE


@pytest.mark.engine
@pytest_twisted.ensureDeferred
async def test_over_tls_a_certificate_of_another_authority_is_refused(tls: TlsEngine) -> None:
    stranger = Authority("stranger")
    cert_path = stranger.folder(tls.folder / "wrong", trusted=tls.authority)
    engine = tls.engine(cert_path)
    for call in ("inspect", "attach"):
        assert isinstance(await failure(calls(engine)[call]()), EngineUnreachable)


@pytest.mark.engine
@pytest_twisted.ensureDeferred
async def test_over_tls_an_engine_of_another_authority_is_not_trusted(tls: TlsEngine) -> None:
    stranger = Authority("stranger")
    cert_path = tls.authority.folder(tls.folder / "wrong", trusted=stranger)
    engine = tls.engine(cert_path)
    assert isinstance(await failure(engine.inspect("x")), EngineUnreachable)


@pytest.mark.engine
@pytest.mark.parametrize("bundle", BUNDLES)
@pytest_twisted.ensureDeferred
async def test_over_tls_the_environments_authorities_do_not_stand_in_for_the_operators(
    tls: TlsEngine, monkeypatch: pytest.MonkeyPatch, bundle: str
) -> None:
    stranger = Authority("stranger")
    trusting = tls.authority.folder(tls.folder / "right")
    distrusting = tls.authority.folder(tls.folder / "wrong", trusted=stranger)
    monkeypatch.setenv(bundle, f"{trusting}/ca.pem")
    assert isinstance(await failure(tls.engine(distrusting).inspect("x")), EngineUnreachable)
    monkeypatch.setenv(bundle, f"{distrusting}/ca.pem")
    assert await within(SECONDS, tls.engine(trusting).inspect("x")) is None


@pytest.mark.engine
@pytest.mark.parametrize("proxy", PROXIES)
@pytest_twisted.ensureDeferred
async def test_over_tls_the_environments_proxies_are_not_used(
    tls: TlsEngine, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    engine = tls.engine(tls.authority.folder(tls.folder / "right"))
    assert await within(SECONDS, engine.inspect("x")) is None


@pytest.mark.engine
@pytest_twisted.ensureDeferred
async def test_stream_over_tls_checks_the_engine_by_itself(
    tls: TlsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams have a TLS connection of their own, beside that of the SDK."""
    stranger = Authority("stranger")
    cert_path = tls.authority.folder(tls.folder / "half", trusted=tls.authority)
    engine = tls.engine(cert_path)
    await within(SECONDS, engine.inspect("x"))
    (Path(cert_path) / "ca.pem").write_bytes(stranger.pem())
    assert isinstance(await failure(engine.attach("x", Recorder())), EngineUnreachable)


@pytest.mark.engine
@pytest_twisted.ensureDeferred
async def test_plain_tcp_to_an_engine_that_speaks_tls_is_refused(tls: TlsEngine) -> None:
    assert isinstance(await failure(tls.engine(None).inspect("x")), EngineError)


@pytest_twisted.ensureDeferred
async def test_threads_that_nothing_is_asked_of_end(
    engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_engine, "REST_AFTER", 0.2)

    def count() -> int:
        return sum(str(engine.address) in thread.name for thread in threading.enumerate())

    asking = [defer.ensureDeferred(engine.list({"no": "such"})) for _ in range(6)]
    await within(60, defer.DeferredList(asking))
    give_up = reactor.seconds() + 60  # type: ignore[attr-defined]
    while count() > 1:
        assert reactor.seconds() < give_up  # type: ignore[attr-defined]
        await task.deferLater(reactor, 0.05, lambda: None)  # type: ignore[arg-type]
    assert await engine.list({"no": "such"}) == []


# ---- what it lists -------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_what_an_engine_lists_without_a_name_counts_where_it_knows_it(
    make_sandbox: Any,
) -> None:
    """As Docker Engine 20.10 may after it was killed during a removal."""
    sandbox = await make_sandbox()
    entries = [
        {"Id": name, "Names": None, "State": "dead", "Labels": {}}
        for name in (sandbox.container, "5" * 64)
    ]
    async with behind_a_proxy(resolve(None).socket_path) as proxy:
        engine = DockerEngine(EngineAddress(proxy.url), reactor)
        proxy.strike(LIST, answer=half_json(json.dumps(entries)))
        (found,) = await within(SECONDS, engine.list({}))
        await within(SECONDS, engine.close())
    assert (found.id, found.state) == (sandbox.container, "dead")
