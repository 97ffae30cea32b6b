"""``SandboxMetrics``: what the sandboxes of a master do, for Prometheus to fetch."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from buildbot import config
from buildbot.util.service import BuildbotService
from twisted.internet import defer
from twisted.internet.error import CannotListenError
from twisted.python import log
from twisted.web.resource import Resource
from twisted.web.server import Site

from sandboxworker import figures
from sandboxworker.engine.docker import ENGINES
from sandboxworker.housekeeping import Housekeeping, housekeeping
from sandboxworker.sandbox import LIVING

if TYPE_CHECKING:
    from sandboxworker.meters import Meters

#: Of the numbers that Prometheus' exporters use, one that nothing common has.
PORT = 9188
#: Seconds that a connection may be idle.
_IDLE = 60
_LOOPBACK = "127.0.0.1"


class SandboxMetrics(BuildbotService):
    """Answers ``http://127.0.0.1:PORT/metrics``; in ``c['services']``.

    ``port``: a number from 1 to 65535; 0 lets the system choose (`port_in_use` tells).
    It listens on loopback alone, since it knows no passwords and no TLS.
    Needs ``prometheus_client`` (``pip install 'sandboxworker[metrics]'``).
    """

    name = "SandboxMetrics"
    _meters: Meters | None = None
    _house: Housekeeping | None = None
    _listening: Any = None
    _wanted: int | None = None

    def checkConfig(self, port: Any = PORT) -> None:
        if self.name != SandboxMetrics.name:
            config.error(
                f"SandboxMetrics: name={self.name!r}: there is one, and it has no other name"
            )
        if type(port) is not int or not 0 <= port <= 65535:
            config.error(f"SandboxMetrics: port={port!r}: a number from 1 to 65535")
        if find_spec("prometheus_client") is None:
            config.error(
                "SandboxMetrics: prometheus_client is not there: "
                "pip install 'sandboxworker[metrics]'"
            )

    @property
    def port_in_use(self) -> int:
        """The port that it listens on."""
        return int(self._listening.getHost().port)

    @defer.inlineCallbacks
    def reconfigService(self, port: int = PORT) -> Any:
        if self._meters is None:
            self._house = yield defer.ensureDeferred(housekeeping(self.master))
            self._measure()
        if port != self._wanted:
            yield self._close()
            self._open(port)

    def _open(self, port: int) -> None:
        """Where the port is taken the builds go on; the next reconfigure tries again."""
        try:
            site = _site(self._meters)
            self._listening = self.master.reactor.listenTCP(port, site, interface=_LOOPBACK)
            self._wanted = port
        except CannotListenError as error:
            reason = error.socketError.strerror
            log.msg(
                f"sandboxworker: no metrics: {_LOOPBACK}:{port} cannot be listened on ({reason}). "
                "Give SandboxMetrics another port, or free this one, and reconfigure"
            )

    def _measure(self) -> None:
        from sandboxworker.meters import Meters, Now

        if self._house is not None:
            now = Now(self._living, self._house.ready_by_engine, _engines)
            self._meters = meters = Meters(now)
            self._house.audit.listeners.append(meters.event)
            figures.LISTENERS.append(meters)

    def _living(self) -> list[tuple[str, str]]:
        """Engine and state of each sandbox of this master."""
        master = self._house.identity.id if self._house is not None else ""
        return [
            (each.engine.name, each.state.value)
            for each in LIVING.values()
            if each.owner.master == master
        ]

    @defer.inlineCallbacks
    def stopService(self) -> Any:
        yield self._close()
        if self._meters is not None and self._house is not None:
            self._house.audit.listeners.remove(self._meters.event)
            figures.LISTENERS.remove(self._meters)
            self._meters = None
        yield super().stopService()

    def _close(self) -> defer.Deferred[None]:
        listening, self._listening, self._wanted = self._listening, None, None
        return defer.maybeDeferred(listening.stopListening if listening else lambda: None)


def _engines() -> dict[str, bool]:
    """Whether each engine that is in use answers."""
    return {engine.name: engine.health.is_up for engine in ENGINES.engines}


def _site(meters: Any) -> Any:
    """``/metrics``, and nothing else."""
    site: Any = _QuietSite  # Twisted's constructors carry no types.
    page: Any = _Metrics
    root: Any = Resource()
    root.putChild(b"metrics", page(meters))
    return site(root, timeout=_IDLE)


class _QuietSite(Site):
    """A request every few seconds is nothing for the log."""

    noisy = False
    displayTracebacks = False

    def log(self, request: Any) -> None:
        """Not told."""


class _Metrics(Resource):
    """The exposition, made in the reactor's thread: 50 KB in some 10 ms for 20 workers."""

    isLeaf = True

    def __init__(self, meters: Any) -> None:
        Resource.__init__(self)
        self.meters = meters

    def render_GET(self, request: Any) -> bytes:
        from prometheus_client.exposition import choose_encoder

        accept = request.getHeader(b"accept") or b""
        encode, content_type = choose_encoder(accept.decode("latin-1"))
        request.setHeader(b"content-type", content_type.encode())
        text: bytes = encode(self.meters.registry)
        return text
