"""An engine behind ``ssh``: a socket here, of which each connection is an ssh process of its own.

OpenSSH's own client does it, with the user's configuration, keys and known hosts; on the other
side runs ``docker system dial-stdio``, as for Docker's own client.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import defer, error, interfaces
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from sandboxworker.engine.address import EngineAddress

#: Connections at once; each is one ssh process. A sandbox needs one, and one for each command.
MAX_CONNECTIONS = 512
#: Handshakes at once: sshd drops more than ten at random (``MaxStartups``).
MAX_STARTING = 8
#: Seconds for ssh to connect, between its signs of life, and to end when it is asked to.
CONNECT_SECONDS = 10
ALIVE_SECONDS = 15
END_SECONDS = 3.0
#: Bytes of what ssh says that are kept to tell why it failed.
_KEPT = 1024


def ssh_command(address: EngineAddress) -> list[str]:
    """The arguments that reach an engine; nothing asks for a password or a terminal."""
    port = ["-p", str(address.ssh_port)] if address.ssh_port else []
    user = ["-l", address.user] if address.user else []
    remote = ["docker", "system", "dial-stdio"]
    if address.remote_socket:
        remote[1:1] = ["--host", f"unix://{address.remote_socket}"]
    return [
        "ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}",
        "-o", f"ServerAliveInterval={ALIVE_SECONDS}", *port, *user, "--", address.host, *remote,
    ]  # fmt: skip


class SshRelay:
    """Listens on a Unix socket that only this user can reach, from `listen` to `close`."""

    def __init__(self, address: EngineAddress, reactor: Any) -> None:
        self.command = ssh_command(address)
        self.reactor = reactor
        self.starting = defer.DeferredSemaphore(MAX_STARTING)
        self.connections: set[_Near] = set()
        #: What ssh said last; empty since a connection has worked.
        self.complaint = ""
        self._port: Any = None
        self._folder = ""

    @property
    def path(self) -> str:
        """The socket's path; `listen` first."""
        return str(Path(self._folder) / "engine")

    def listen(self) -> None:
        """Once; any further call does nothing."""
        if self._port is None:
            self._folder = tempfile.mkdtemp(prefix="sandboxworker-ssh-")
            factory: Any = Factory.forProtocol(lambda: _Near(self))
            factory.noisy = False
            self._port = self.reactor.listenUNIX(self.path, factory, mode=0o600)

    async def close(self) -> None:
        """End every connection and its process, within `END_SECONDS` and a little."""
        if self._port is None:
            return
        port, self._port = self._port, None
        await port.stopListening()
        ends = [near.end() for near in list(self.connections)]
        await defer.gatherResults(ends)
        shutil.rmtree(self._folder, ignore_errors=True)


@implementer(interfaces.IHalfCloseableProtocol, interfaces.IPushProducer)
class _Near(Protocol):
    """One connection to the socket: what arrives goes to its ssh, and back."""

    transport: Any

    def __init__(self, relay: SshRelay) -> None:
        self._relay = relay
        self._far: _Far | None = None
        self._is_lost = False
        self._ended: list[defer.Deferred[None]] = []

    def connectionMade(self) -> None:
        if len(self._relay.connections) >= MAX_CONNECTIONS:
            self._relay.complaint = f"{MAX_CONNECTIONS} connections are open already"
            self.transport.abortConnection()
            return
        self._relay.connections.add(self)
        self.transport.pauseProducing()
        self._relay.starting.acquire().addCallback(self._start)

    def _start(self, slot: defer.DeferredSemaphore) -> None:
        if self._is_lost:
            slot.release()
            self.far_ended("")
            return
        self._far = _Far(self, slot)
        command = self._relay.command
        self._relay.reactor.spawnProcess(self._far, command[0], command, env=dict(os.environ))
        self.transport.registerProducer(self._far, True)
        self._far.transport.registerProducer(self, True)
        self.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        if self._far is not None:
            self._far.transport.write(data)

    def readConnectionLost(self) -> None:
        if self._far is not None:
            self._far.transport.closeStdin()

    def writeConnectionLost(self) -> None:
        """The far side has told all it had; `connectionLost` follows."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_lost = True
        if self._far is not None:
            self._far.end()

    def pauseProducing(self) -> None:
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The process takes no more; why is told when it has ended."""

    # what the process has to tell

    def far_received(self, data: bytes) -> None:
        self._relay.complaint = ""
        self.transport.write(data)

    def far_ended(self, complaint: str) -> None:
        """``complaint``: why ssh failed, if it did."""
        if complaint:
            self._relay.complaint = complaint
        self._far = None
        self._relay.connections.discard(self)
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        for waiting in self._ended:
            waiting.callback(None)
        self._ended.clear()

    def end(self) -> defer.Deferred[None]:
        """Hang up; fires when the process is gone."""
        ended: defer.Deferred[None] = defer.Deferred()
        self._ended.append(ended)
        self.transport.abortConnection()
        return ended


@implementer(interfaces.IPushProducer)
class _Far(ProcessProtocol):
    """One ssh process; what it says is held back while nobody takes it."""

    transport: Any

    def __init__(self, near: _Near, slot: defer.DeferredSemaphore) -> None:
        self._near = near
        self._slot: defer.DeferredSemaphore | None = slot
        self._said = b""
        self._has_answered = False
        self._killing: Any = None

    def outReceived(self, data: bytes) -> None:
        self._has_answered = True
        self._give_slot_back()
        self._near.far_received(data)

    def errReceived(self, data: bytes) -> None:
        self._said = (self._said + data)[-_KEPT:]

    def outConnectionLost(self) -> None:
        """Where nothing came at all, why is told first: see `processEnded`."""
        if self._has_answered:
            self._near.transport.loseConnection()

    def pauseProducing(self) -> None:
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Who took it is gone; `_Near.connectionLost` ends this."""

    def end(self) -> None:
        """Close its pipes and ask it to end; kill it if it does not."""
        self.transport.loseConnection()
        self._signal("TERM")
        reactor = self._near._relay.reactor
        self._killing = reactor.callLater(END_SECONDS, self._signal, "KILL")

    def _signal(self, name: str) -> None:
        try:
            self.transport.signalProcess(name)
        except error.ProcessExitedAlready:
            return

    def _give_slot_back(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()

    def processEnded(self, reason: Failure) -> None:
        self._give_slot_back()
        if self._killing is not None and self._killing.active():
            self._killing.cancel()
        said = self._said.decode(errors="replace").strip().splitlines()
        self._near.far_ended("" if self._has_answered or not said else f"ssh: {said[-1]}")
