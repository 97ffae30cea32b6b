"""Repository URLs: read, compared with what the operator allows, and cleaned of credentials.

One strict grammar, since a URL that two programs read differently is the way around a list.
"""

from __future__ import annotations

import fnmatch
import hashlib
import posixpath
import re
from collections.abc import Iterable

import attrs

from sandboxworker.errors import SourceRefused

#: What git speaks over a network, with each scheme's own port. No ``ext::``, no ``ftp``.
_PORTS = {"https": 443, "http": 80, "ssh": 22, "git": 9418}

_PATH = r"[A-Za-z0-9._~/%+,=@:!()-]*"
_URL = re.compile(
    r"(?P<scheme>https|http|ssh|git)://(?:(?P<userinfo>[^@/\\\s]*)@)?"
    r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(?::(?P<port>\d{1,5}))?(?P<path>/" + _PATH + ")",
    re.ASCII,
)
_FILE = re.compile(r"(?:file://)?(?P<path>/" + _PATH + ")", re.ASCII)
#: ``user@host:path``, as ssh's own tools write it.
_SCP = re.compile(r"(?:(?P<user>[\w.-]+)@)?(?P<host>[\w.-]+):(?P<path>(?!//)[^\\\s]+)", re.ASCII)


@attrs.frozen
class Repository:
    """Where a repository is: the same for every way to write it, and without a credential.

    ``scheme``: ``https``, ``http``, ``ssh``, ``git`` or ``file``; ``host``: with the port where
    it is not the scheme's own; ``user``: ssh's only.
    """

    scheme: str
    host: str
    path: str
    user: str = ""

    @property
    def url(self) -> str:
        at = f"{self.user}@" if self.user else ""
        return f"{self.scheme}://{at}{self.host}{self.path}"

    @property
    def directory(self) -> str:
        """A name for its mirror: readable, and its own."""
        name = posixpath.basename(self.path).removesuffix(".git") or "repository"
        return f"{name[:40]}-{hashlib.sha256(self.url.encode()).hexdigest()[:16]}.git"


@attrs.frozen
class Written:
    """A URL as somebody wrote it, taken apart.

    ``clean``: the same without a credential, for the sandbox to see;
    ``username`` and ``password``: the credential, for the master only.
    """

    repository: Repository
    clean: str
    username: str = attrs.field(default="", repr=False)
    password: str = attrs.field(default="", repr=False)


def read(text: str) -> Written:
    """Take a URL apart; raises `SourceRefused` for one that is not of the strict grammar."""
    if local := _FILE.fullmatch(text):
        return Written(Repository("file", "", _plain(text, local["path"])), text)
    match = _URL.fullmatch(text)
    if match is None and (scp := _SCP.fullmatch(text)):
        user = f"{scp['user']}@" if scp["user"] else ""
        ssh = read(f"ssh://{user}{scp['host']}/{scp['path'].lstrip('/')}")
        return attrs.evolve(ssh, clean=text)
    if match is None:
        raise SourceRefused(
            _without_userinfo(text),
            "it is no plain https, http, ssh or git URL",
            "Write it as scheme://host/path, without query, spaces or escapes",
        )
    return _network(text, match)


def _network(text: str, match: re.Match[str]) -> Written:
    scheme, path = match["scheme"], _plain(text, match["path"])
    username, _, password = (match["userinfo"] or "").partition(":")
    port = int(match["port"] or _PORTS[scheme])
    host = match["host"].lower() + ("" if port == _PORTS[scheme] else f":{port}")
    if scheme == "ssh":
        clean = text.replace(f":{password}@", "@", 1) if password else text
        return Written(Repository(scheme, host, path, username), clean)
    return Written(Repository(scheme, host, path), _without_userinfo(text), username, password)


def _plain(text: str, path: str) -> str:
    """A path that means one place only."""
    parts = path.split("/")
    if {".", ".."} & set(parts) or "%2e" in path.lower() or "%2f" in path.lower():
        raise SourceRefused(
            _without_userinfo(text), "its path goes up and down", "Write the path itself"
        )
    return path.rstrip("/") or "/"


def _without_userinfo(text: str) -> str:
    return re.sub(r"^([a-z]+://)[^@/]*@", r"\1", text)


def is_inside(text: str) -> bool:
    """Whether a URL names a place in the file system that git runs in: a path, or ``file://``."""
    if text.startswith("file://"):
        return True
    return "://" not in text and (text.startswith((".", "/", "~")) or ":" not in text)


def is_allowed(repository: Repository, patterns: Iterable[str]) -> bool:
    """Whether one of the operator's patterns covers a repository.

    ``*`` stands for any text, within the user, the host or the path; a pattern's scheme is taken
    literally, and one without a user means any. ``*`` alone allows every network URL.
    """
    return any(_matches(repository, pattern) for pattern in patterns)


def _matches(repository: Repository, pattern: str) -> bool:
    if pattern == "*":
        return repository.scheme != "file"
    scheme, _, rest = pattern.partition("://")
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")
    if scheme != repository.scheme or (at and not fnmatch.fnmatchcase(repository.user, user)):
        return False
    port = f":{_PORTS.get(scheme)}"
    return fnmatch.fnmatchcase(
        repository.host, host.lower().removesuffix(port)
    ) and fnmatch.fnmatchcase(repository.path, (slash + path).rstrip("/") or "/")


def submodule_url(parent: str, url: str) -> str:
    """The URL of a submodule: ``./`` and ``../`` count from its parent's, as git reckons them."""
    if not url.startswith(("./", "../")):
        return url
    base = parent.rstrip("/")
    while url.startswith(("./", "../")):
        if url.startswith("../"):
            base, url = _parent(base), url[3:]
        else:
            url = url[2:]
    return f"{base}/{url}"


def _parent(base: str) -> str:
    head, slash, _ = base.rpartition("/")
    if not slash or head.endswith((":/", "/")) or "/" not in head:
        raise SourceRefused(
            base, "a submodule's relative URL leaves the server", "Mend its .gitmodules"
        )
    return head
