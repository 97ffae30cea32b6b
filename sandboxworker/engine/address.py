"""Where an engine listens, and how to speak to it safely.

``engine=`` arguments and the environment variables of Docker's own client
(``DOCKER_HOST``, ``DOCKER_TLS_VERIFY``, ``DOCKER_CERT_PATH``) give the same kind of address.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from sandboxworker.errors import EngineAddressError

DEFAULT_SOCKET = "/var/run/docker.sock"
TLS_PORT = 2376
_CERTIFICATES = ("ca.pem", "cert.pem", "key.pem")
_SSH_URL = re.compile(
    r"ssh://([A-Za-z0-9_][A-Za-z0-9_.-]*@)?([A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])"
    r"(:[0-9]+)?(/[A-Za-z0-9_./-]*)?"
)


@attrs.frozen
class EngineAddress:
    """One engine's address: the URL, and for TLS the folder of its three PEM files.

    ``url``: ``unix:///path``, ``tcp://host:port`` or ``ssh://user@host:port``, the last perhaps
    with the path of the engine's socket on that machine.
    ``cert_path``: a folder with ``ca.pem``, ``cert.pem`` and ``key.pem`` (the names that
    Docker's own client uses), or ``None`` where no TLS is spoken.
    """

    url: str
    cert_path: str | None = None

    @property
    def is_unix(self) -> bool:
        return self.url.startswith("unix://")

    @property
    def is_ssh(self) -> bool:
        return self.url.startswith("ssh://")

    @property
    def user(self) -> str:
        """Whom ssh logs in as; empty: whom the user's own ssh configuration says."""
        return urlsplit(self.url).username or ""

    @property
    def ssh_port(self) -> int | None:
        """None: what the user's own ssh configuration says."""
        return urlsplit(self.url).port

    @property
    def remote_socket(self) -> str:
        """The engine's socket on the machine behind ssh; empty: the one that docker takes."""
        path = urlsplit(self.url).path
        return "" if path == "/" else path

    @property
    def socket_path(self) -> str:
        """The socket's path, for ``unix://`` addresses."""
        return self.url.removeprefix("unix://")

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or TLS_PORT

    def certificate(self, name: str) -> str:
        """The path of one of the three PEM files."""
        return str(Path(self.cert_path or "") / name)

    def sdk_arguments(self) -> dict[str, Any]:
        """The arguments of ``docker.APIClient`` that reach this address."""
        return {"base_url": self.url, "tls": self._sdk_tls(), "version": "auto"}

    def _sdk_tls(self) -> Any:
        if self.cert_path is None:
            return False
        from docker.tls import TLSConfig

        return TLSConfig(
            client_cert=(self.certificate("cert.pem"), self.certificate("key.pem")),
            ca_cert=self.certificate("ca.pem"),
            verify=True,
        )

    def __str__(self) -> str:
        return self.url


def resolve(
    engine: str | EngineAddress | None, environ: Mapping[str, str] | None = None
) -> EngineAddress:
    """The address meant by an ``engine=`` argument, or by the environment without one.

    Raises `EngineAddressError` for an address that is malformed, unsupported or unsafe.
    """
    environ = os.environ if environ is None else environ
    if isinstance(engine, EngineAddress):
        return _checked(engine)
    if engine is not None and not isinstance(engine, str):
        raise EngineAddressError(
            repr(engine), "it is not a URL", "Give unix:///path, tcp://host:port or ssh://host"
        )
    url = engine or environ.get("DOCKER_HOST") or _default_url()
    return _checked(EngineAddress(url, _cert_path(url, environ)))


def _cert_path(url: str, environ: Mapping[str, str]) -> str | None:
    if not url.startswith(("tcp://", "https://")):
        return None
    if environ.get("DOCKER_CERT_PATH"):
        return environ["DOCKER_CERT_PATH"]
    if environ.get("DOCKER_TLS_VERIFY"):
        return str(Path(environ.get("HOME", "~")).expanduser() / ".docker")
    return None


def _default_url() -> str:
    """Docker's own socket, else the private engine that ``make engine`` noted in this venv."""
    noted = Path(sys.prefix) / "etc" / "sandboxworker" / "engine"
    if not Path(DEFAULT_SOCKET).exists() and noted.is_file():
        return noted.read_text().strip()
    return f"unix://{DEFAULT_SOCKET}"


def _checked(address: EngineAddress) -> EngineAddress:
    if address.is_unix:
        if not address.socket_path.startswith("/"):
            raise EngineAddressError(
                address.url, "the socket's path is not absolute", "Write unix:///path"
            )
        return address
    if address.is_ssh:
        _check_ssh(address)
        return address
    if not address.url.startswith("tcp://"):
        raise EngineAddressError(
            address.url,
            "only unix://, tcp:// and ssh:// are spoken",
            "Give unix:///path, tcp://host:port with client certificates, or ssh://user@host",
        )
    _check_tcp(address)
    return address


def _check_ssh(address: EngineAddress) -> None:
    """Only what neither ssh nor the shell on the other side can take for anything else."""
    if not _SSH_URL.fullmatch(address.url) or not _port_is_valid(address.url):
        raise EngineAddressError(
            address.url,
            "user, host, port or path cannot be those of an engine",
            "Write ssh://user@host:port, or set them in ssh's own configuration",
        )


def _check_tcp(address: EngineAddress) -> None:
    if not address.host or not _port_is_valid(address.url):
        raise EngineAddressError(
            address.url, "host or port is missing or wrong", "Write tcp://host:port"
        )
    if address.cert_path is None:
        _check_loopback(address)
        return
    missing = [name for name in _CERTIFICATES if not Path(address.certificate(name)).is_file()]
    if missing:
        raise EngineAddressError(
            address.url,
            f"{address.cert_path} has no {', '.join(missing)}",
            "Put the CA, the client certificate and its key there",
        )


def _port_is_valid(url: str) -> bool:
    try:
        port = urlsplit(url).port
    except ValueError:
        return False
    return port is None or port > 0


def _check_loopback(address: EngineAddress) -> None:
    """Plain TCP gives root on the engine's host to whoever reaches the port."""
    if not _is_loopback(address.host):
        raise EngineAddressError(
            address.url,
            "plain TCP beyond loopback hands the engine's host to anyone on the network",
            "Use TLS: set DOCKER_CERT_PATH to a folder with ca.pem, cert.pem and key.pem",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
