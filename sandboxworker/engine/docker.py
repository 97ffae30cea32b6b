"""Docker Engine: control calls through its SDK in threads of our own, streams in the reactor.

The only module that knows the SDK. Podman's Docker-compatible socket is told apart and refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import docker.errors
import requests.exceptions
from twisted.internet import defer, endpoints, ssl, threads
from twisted.internet.protocol import Factory
from twisted.python import log
from twisted.python.threadpool import ThreadPool

from sandboxworker.engine import etcfiles
from sandboxworker.engine.address import EngineAddress
from sandboxworker.engine.answers import (
    entry_of,
    host_facts,
    image_facts,
    listed,
    memory_ended_it,
    unsupported,
    usage_of,
)
from sandboxworker.engine.cgroup import bound_sockets, memory_peak
from sandboxworker.engine.cores import Cores
from sandboxworker.engine.health import Health
from sandboxworker.engine.interface import (
    Created,
    Entry,
    ExecRequest,
    Host,
    HostDisk,
    Listed,
    SocketGauge,
    StreamReceiver,
    Usage,
)
from sandboxworker.engine.loopdisk import LoopDisk
from sandboxworker.engine.loopdisk import make as make_disk
from sandboxworker.engine.proven import Proven
from sandboxworker.engine.relay import SshRelay
from sandboxworker.engine.sdk import root_cause, sdk_client
from sandboxworker.engine.stats import FIRST_DEADLINE, StatsGauge
from sandboxworker.engine.stream import EngineStream, upgrade_request
from sandboxworker.engine.uids import UidRange
from sandboxworker.errors import (
    DiskRefused,
    EngineError,
    EngineRefused,
    EngineTimeout,
    EngineUnreachable,
    EngineUnsupported,
    ImageNotFound,
    SocketsUnbounded,
)
from sandboxworker.figures import failures_told
from sandboxworker.spec import ImageFacts

T = TypeVar("T")

#: Threads for control calls, for all sandboxes of one engine together.
MAX_THREADS = 8
#: Seconds after the last control call until no more than one thread is kept.
REST_AFTER = 2.0
#: Seconds for one control call; a start or a removal takes well under one on a sound engine.
CALL_DEADLINE = 30
CONNECT_DEADLINE = 10.0
#: How an engine, or what stands before it, says that it will never do that.
_NOT_ALLOWED = (403, 405, 501)
#: What an engine has been seen to do, for `Proven`.
_TELLS = "tells what a container uses"


class DockerEngine:
    """One Docker Engine (see `interface.Engine`).

    Nothing is contacted on construction. ``reactor`` is Twisted's.
    """

    def __init__(self, address: EngineAddress, reactor: Any) -> None:
        self.address = address
        self._reactor = reactor
        self._pool = ThreadPool(0, MAX_THREADS, f"sandboxworker {address}")
        self._stop_trigger: Any = None
        self._rest_call: Any = None
        self._client: Any = None
        self._client_lock = threading.Lock()
        self._relay = SshRelay(address, reactor) if address.is_ssh else None
        self.uids = UidRange()
        self.proven = Proven(reactor)
        self.cores = Cores()
        self._host: Host | None = None
        self._etc: str | None = None
        self.health = Health(self.name, self.ping, reactor)

    @property
    def name(self) -> str:
        return str(self.address)

    def __repr__(self) -> str:
        return f"<DockerEngine {self.address}>"

    # control calls

    async def host(self) -> Host:
        if self._host is None:
            self._host = host_facts(await self._call("info", lambda sdk: sdk.info()))
        return self._host

    async def new_disk(self, size: int, inodes: int, owner: str) -> HostDisk:
        if not self.address.is_unix:
            raise DiskRefused(self.name, "it is on another machine")
        folder = (await self.host()).folder
        made: LoopDisk = await self._call(
            "make a disk", lambda _: make_disk(self.name, folder, size, inodes, owner)
        )
        return made

    async def etc(self, image: str, labels: Mapping[str, str]) -> str:
        if self._etc is None:
            # SELinux would not let a container read another's files.
            is_readable = not (await self.host()).selinux
            self._etc = await self._put_etc(image, labels) if is_readable else ""
        return self._etc

    async def _put_etc(self, image: str, labels: Mapping[str, str]) -> str:
        try:
            folder: str = await self._call(
                "put files", lambda sdk: etcfiles.put(sdk, image, labels)
            )
        except EngineRefused as error:
            if error.status not in _NOT_ALLOWED:
                raise
            log.msg(f"sandboxworker: sandboxes will start slower: {error}")
            return ""
        return folder

    async def ping(self) -> None:
        """Answers if the engine does."""
        await self._call("ping", lambda sdk: sdk.ping())

    async def info(self) -> Mapping[str, Any]:
        """What the engine says of itself and its kernel."""
        found: Mapping[str, Any] = await self._call("info", lambda sdk: sdk.info())
        return found

    async def version(self) -> Mapping[str, Any]:
        """The versions of the engine and its parts."""
        found: Mapping[str, Any] = await self._call("version", lambda sdk: sdk.version())
        return found

    async def image(self, reference: str) -> ImageFacts:
        try:
            found = await self._call("inspect image", lambda sdk: sdk.inspect_image(reference))
        except EngineRefused as error:
            if error.status == 404:
                raise ImageNotFound(reference, self.name) from None
            raise
        return image_facts(reference, found)

    async def create(self, name: str, body: Mapping[str, Any]) -> Created:
        try:
            answer = await self._call(
                "create container", lambda sdk: sdk.create_container_from_config(body, name)
            )
        except EngineRefused as error:
            if self._etc and self._etc in error.message:
                self._etc = None  # Somebody removed them; the next start puts them there anew.
            raise
        return Created(answer["Id"], tuple(answer.get("Warnings") or ()))

    async def inspect(self, container: str) -> Mapping[str, Any] | None:
        try:
            found: Mapping[str, Any] = await self._call(
                "inspect container", lambda sdk: sdk.inspect_container(container)
            )
        except EngineRefused as error:
            if error.status == 404:
                return None
            raise
        return found

    async def entry(self, container: str, path: str) -> Entry | None:
        try:
            told = await self._call("look at a path", lambda sdk: sdk.path_stat(container, path))
        except EngineRefused as error:
            if error.status == 404:
                return None
            raise
        return entry_of(told)

    async def start(self, container: str) -> None:
        await self._call("start container", lambda sdk: sdk.start(container))

    async def bound_sockets(self, container: str, limit: int) -> SocketGauge:
        counts = (await self.host()).counts_sockets
        if self.address.is_unix or not counts:
            gauge: SocketGauge | None = await self._call(
                "inspect container",
                lambda sdk: bound_sockets(container, _pid(sdk, container), limit),
            )
            if gauge is not None:
                return gauge
        if counts:
            return await self._stats(container)
        await self._require_running(container)
        raise SocketsUnbounded(self.name)

    async def _stats(self, container: str) -> StatsGauge:
        path = f"/v{await self._api_version()}/containers/{container}/stats?stream=1"
        gauge = StatsGauge(self.name, self._reactor)
        gauge.open(self._endpoint(), path)
        try:
            if not self.proven.holds(_TELLS):
                await self._first_figure(gauge, container)
        except BaseException:
            gauge.close()
            raise
        return gauge

    async def _first_figure(self, gauge: StatsGauge, container: str) -> None:
        """It is waited for once, to see that this engine tells any."""
        try:
            await gauge.told().addTimeout(FIRST_DEADLINE, self._reactor)
        except defer.TimeoutError:
            await self._require_running(container)
            raise SocketsUnbounded(self.name, f"none within {FIRST_DEADLINE:g} s") from None
        except EngineRefused as error:
            if error.status in _NOT_ALLOWED:
                raise SocketsUnbounded(self.name, str(error)) from None
            raise
        self.proven.note(_TELLS)

    async def _require_running(self, container: str) -> None:
        if not await self._call("inspect container", lambda sdk: _pid(sdk, container)):
            raise EngineRefused(self.name, "bound sockets", 409, "the container has ended")

    async def exec_status(self, exec_id: str) -> int | None:
        found = await self._call("inspect exec", lambda sdk: sdk.exec_inspect(exec_id))
        return None if found.get("Running") else found.get("ExitCode")

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        await self._call("resize", lambda sdk: sdk.exec_resize(exec_id, rows, columns))

    async def usage(self, container: str) -> Usage:
        stats = await self._call(
            "stats", lambda sdk: sdk.stats(container, stream=False, one_shot=True)
        )
        usage = usage_of(stats)
        if usage.memory_peak is None and self.address.is_unix:
            peak = await self._call("inspect container", lambda sdk: _local_peak(sdk, container))
            return attrs.evolve(usage, memory_peak=peak)
        return usage

    async def died_of_memory(self, container: str, until: float) -> bool:
        filters = {"container": [container], "event": ["oom", "die"]}
        # The engine keeps its latest 256 events; it answers when "until" has come.
        found = await self._call(
            "events",
            lambda sdk: list(
                sdk.events(since=1, until=f"{until:.9f}", filters=filters, decode=True)
            ),
        )
        return memory_ended_it(found)

    async def remove(self, container: str) -> None:
        try:
            await self._call(
                "remove container", lambda sdk: sdk.remove_container(container, v=True, force=True)
            )
        except EngineRefused as error:
            # 404: gone already; 409: its removal is under way.
            if error.status not in (404, 409):
                raise

    async def volumes(self, labels: Mapping[str, str]) -> Sequence[Listed]:
        filters = {"label": [f"{name}={value}" for name, value in labels.items()]}
        found = await self._call("list volumes", lambda sdk: sdk.volumes(filters=filters))
        return [
            Listed(entry["Name"], entry["Name"], entry.get("Labels") or {}, "")
            for entry in found.get("Volumes") or ()
        ]

    async def remove_volume(self, name: str) -> None:
        try:
            await self._call("remove volume", lambda sdk: sdk.remove_volume(name))
        except EngineRefused as error:
            # 404: gone already; 409: a container has it.
            if error.status not in (404, 409):
                raise

    async def list(self, labels: Mapping[str, str]) -> list[Listed]:
        filters = {"label": [f"{name}={value}" for name, value in labels.items()]}
        found = await self._call(
            "list containers", lambda sdk: sdk.containers(all=True, filters=filters)
        )
        # Docker Engine 20.10 that was killed during a removal may go on to list the container, dead
        # and without a name, and know nothing of it when asked.
        return [
            each
            for each in map(listed, found)
            if each.name or await self.inspect(each.id) is not None
        ]

    # streams

    async def attach(self, container: str, receiver: StreamReceiver) -> EngineStream:
        path = f"/containers/{container}/attach?stream=1&stdin=1&stdout=1"
        return await self._open("attach", path, None, receiver, tty=False)

    async def exec(
        self, container: str, request: ExecRequest, receiver: StreamReceiver
    ) -> tuple[str, EngineStream]:
        answer = await self._call(
            "create exec",
            lambda sdk: sdk.exec_create(
                container,
                list(request.argv),
                stdin=request.stdin,
                tty=request.tty,
                user=request.user,
                environment=list(request.environ),
                workdir="/",
            ),
        )
        body = {"Detach": False, "Tty": request.tty}
        path = f"/exec/{answer['Id']}/start"
        stream = await self._open("start exec", path, body, receiver, tty=request.tty)
        return answer["Id"], stream

    async def close(self) -> None:
        if self._stop_trigger is not None:
            self._reactor.removeSystemEventTrigger(self._stop_trigger)
            self._stop_trigger = None
            if self._rest_call.active():
                self._rest_call.cancel()
            # Joining may wait for a hung call; never in the reactor's thread.
            await threads.deferToThread(self._pool.stop)
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._relay is not None:
            await self._relay.close()

    # how

    @failures_told
    async def _call(self, call: str, work: Callable[[Any], T]) -> T:
        """Run one SDK call in a thread of ours; answer or raise within `CALL_DEADLINE`."""
        self._start_threads()
        self._rest_later()
        given_up = threading.Event()
        pending = threads.deferToThreadPool(
            self._reactor, self._pool, self._work, call, work, given_up
        )

        def timed_out(_result: Any, _seconds: float) -> Any:
            given_up.set()
            raise self._timeout(call)

        pending.addTimeout(CALL_DEADLINE, self._reactor, timed_out)
        try:
            return await pending
        except defer.CancelledError:
            given_up.set()
            raise
        except EngineUnreachable as error:
            self.health.failed(error)
            raise

    def _rest_later(self) -> None:
        """Threads that nothing was asked of for a while end, all but one."""
        if self._rest_call is not None and self._rest_call.active():
            self._rest_call.reset(REST_AFTER)
        else:
            self._rest_call = self._reactor.callLater(REST_AFTER, self._rest)

    def _rest(self) -> None:
        self._pool.adjustPoolsize(0, 1)
        self._pool.adjustPoolsize(0, MAX_THREADS)

    def _timeout(self, call: str) -> EngineTimeout:
        return EngineTimeout(self.name, call, CALL_DEADLINE)

    def _start_threads(self) -> None:
        """Once; and have them stopped with the reactor, should nobody close this engine."""
        if self._relay is not None:
            self._relay.listen()
        if self._stop_trigger is None:
            self._pool.start()
            self._stop_trigger = self._reactor.addSystemEventTrigger(
                "during", "shutdown", self._pool.stop
            )

    def _work(self, call: str, work: Callable[[Any], T], given_up: threading.Event) -> T:
        """In a thread: the SDK's errors become ours."""
        try:
            with self._client_lock:
                # It waited for a thread, or for the lock, past its deadline: it must not act now.
                if given_up.is_set():
                    raise self._timeout(call)
                sdk = self._sdk()
            return work(sdk)
        except docker.errors.APIError as error:
            status = getattr(error.response, "status_code", 0) or 0
            raise EngineRefused(self.name, call, status, _explanation(error)) from None
        except requests.exceptions.InvalidJSONError as error:  # One of the next ones, too.
            raise self._not_understood(call, error) from None
        except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
            cause = root_cause(error)
            if isinstance(cause, TimeoutError):
                raise self._timeout(call) from None
            raise EngineUnreachable(self.name, self._why(_words(cause))) from None
        except (ValueError, KeyError, OSError) as error:  # Half an answer, or none that is JSON.
            raise self._not_understood(call, error) from None

    def _not_understood(self, call: str, error: Exception) -> EngineRefused:
        return EngineRefused(self.name, call, 0, f"answer not understood: {error}")

    def _sdk(self) -> Any:
        """In a thread, under the lock: the client; making one asks the engine what it is."""
        if self._client is None:
            client = sdk_client(self._wire(), timeout=CALL_DEADLINE, max_pool_size=MAX_THREADS)
            product = unsupported(client.version())
            if product is not None:
                client.close()
                raise EngineUnsupported(self.name, product)
            self._client = client
        return self._client

    def _wire(self) -> EngineAddress:
        """Where we connect to: the engine's address, or our end of its relay."""
        return self.address if self._relay is None else EngineAddress(f"unix://{self._relay.path}")

    def _why(self, words: str) -> str:
        """Why it does not answer: ssh knows better than who waits behind it."""
        return words if self._relay is None else self._relay.complaint or words

    async def _open(
        self,
        call: str,
        path: str,
        body: dict[str, Any] | None,
        receiver: StreamReceiver,
        *,
        tty: bool,
    ) -> EngineStream:
        """Connect and upgrade; the stream is open when this returns."""
        version = await self._api_version()
        request = upgrade_request(f"/v{version}{path}", "docker", body)
        stream = EngineStream(self.name, call, request, receiver, tty=tty)
        opening = defer.ensureDeferred(_connected(self._endpoint(), stream, self.name))

        def timed_out(_result: Any, _seconds: float) -> Any:
            stream.abort()
            raise self._timeout(call)

        opening.addTimeout(CALL_DEADLINE, self._reactor, timed_out)
        try:
            return await opening
        except defer.CancelledError:
            stream.abort()
            raise

    async def _api_version(self) -> str:
        if self._client is None:
            await self._call("version", lambda sdk: None)
        return str(self._client.api_version)

    def _endpoint(self) -> Any:
        address, deadline = self._wire(), CONNECT_DEADLINE
        if address.is_unix:
            unix: Any = endpoints.UNIXClientEndpoint
            return unix(self._reactor, address.socket_path, deadline)
        tcp: Any = endpoints.HostnameEndpoint(self._reactor, address.host, address.port, deadline)
        if address.cert_path is None:
            return tcp
        return endpoints.wrapClientTLS(_tls_options(address), tcp)


async def _connected(endpoint: Any, stream: EngineStream, engine: str) -> EngineStream:
    try:
        factory = Factory.forProtocol(lambda: stream)
        factory.noisy = False
        await endpoint.connect(factory)
    except EngineError:
        raise
    except Exception as error:
        raise EngineUnreachable(engine, str(error)) from None
    return await stream.opened


def _tls_options(address: EngineAddress) -> Any:
    def pem(name: str) -> bytes:
        with open(address.certificate(name), "rb") as file:
            return file.read()

    client: Any = ssl.PrivateCertificate
    return ssl.optionsForClientTLS(
        address.host,
        trustRoot=ssl.Certificate.loadPEM(pem("ca.pem")),
        clientCertificate=client.loadPEM(pem("cert.pem") + b"\n" + pem("key.pem")),
    )


def _explanation(error: docker.errors.APIError) -> str:
    return str(error.explanation or error).strip()


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _local_peak(sdk: Any, container: str) -> int | None:
    """In a thread: the peak of memory, as this machine's kernel has it."""
    return memory_peak(container, _pid(sdk, container))


def _pid(sdk: Any, container: str) -> int:
    """In a thread: the keeper's, on the engine's host; 0 where it does not run."""
    return int(sdk.inspect_container(container)["State"]["Pid"])


class EnginePool:
    """The engines of one process: workers with the same address share one, and its threads."""

    def __init__(self) -> None:
        self._engines: dict[EngineAddress, tuple[DockerEngine, int]] = {}

    @property
    def addresses(self) -> tuple[EngineAddress, ...]:
        """Of the engines that are in use now."""
        return tuple(self._engines)

    @property
    def engines(self) -> tuple[DockerEngine, ...]:
        """Those that are in use now."""
        return tuple(engine for engine, _ in self._engines.values())

    def acquire(self, address: EngineAddress, reactor: Any) -> DockerEngine:
        """The engine at an address; each acquire wants a `release`."""
        engine, users = self._engines.get(address) or (DockerEngine(address, reactor), 0)
        self._engines[address] = (engine, users + 1)
        return engine

    def release(self, address: EngineAddress) -> Coroutine[Any, Any, None]:
        """Give it back; the last one closes it."""
        engine, users = self._engines[address]
        if users > 1:
            self._engines[address] = (engine, users - 1)
            return _nothing()
        del self._engines[address]
        return engine.close()


async def _nothing() -> None:
    return None


ENGINES = EnginePool()
