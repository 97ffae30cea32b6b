"""Where a port of the master listens, as far as its configuration says."""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit

import attrs

_ENCRYPTED = frozenset({"ssl", "tls", "le", "lets", "txacme"})
_PLAIN = frozenset({"tcp", "tcp4", "tcp6"})


@attrs.frozen
class Listening:
    """One listening port.

    ``is_public``: other machines reach it; ``is_encrypted``: by TLS.
    Kinds that do not tell (``systemd:``, ``fd:``) count as neither public nor plain.
    """

    text: str
    is_public: bool
    is_encrypted: bool

    @property
    def is_exposed(self) -> bool:
        """Other machines reach it, and everybody on the way can read along."""
        return self.is_public and not self.is_encrypted


def listening(port: Any) -> Listening | None:
    """What a port of Buildbot's (a number, or Twisted's server string) means; None for no port."""
    if port is None or port == "":
        return None
    text = str(port)
    if text.isdigit():
        text = f"tcp:{text}"
    kind, *parts = [part.replace("\\:", ":") for part in re.split(r"(?<!\\):", text)]
    options = dict(part.partition("=")[::2] for part in parts if "=" in part)
    is_known = kind in _PLAIN | _ENCRYPTED
    is_public = is_known and not is_loopback(options.get("interface", ""))
    return Listening(text, is_public, kind in _ENCRYPTED or not is_known)


def is_loopback(host: str) -> bool:
    """Whether only this machine is behind a host's name or number."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@attrs.frozen
class PublicUrl:
    """The address that people are told."""

    text: str

    @property
    def is_public(self) -> bool:
        host = urlsplit(self.text).hostname
        return host is not None and not is_loopback(host)

    @property
    def is_exposed(self) -> bool:
        return self.is_public and urlsplit(self.text).scheme != "https"
