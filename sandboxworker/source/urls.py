"""Repository URLs: read, compared with what the operator allows, and cleaned of credentials.

One strict grammar, since a URL that two programs read differently is the way around a list.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

import attrs

from sandboxworker.errors import SourceRefused

#: What git speaks over a network, with each scheme's own port. No ``ext::``, no ``ftp``.
_PORTS = {"https": 443, "http": 80, "ssh": 22, "git": 9418}

_NAME = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
_HOST = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_PLAIN = r"[A-Za-z0-9._~/+,=@:!()-]"
#: Escapes only where a path needs them: for a space, and for letters beyond ASCII.
_PATH = rf"(?:{_PLAIN}|%20|%[89A-Fa-f][0-9A-Fa-f])*"
_URL = re.compile(
    # What would end the host's place for one program must not stand in the login for another.
    r"(?P<scheme>https|http|ssh|git)://(?:(?P<userinfo>[^@/\\?#\[\]\x00-\x20\x7f]*)@)?"
    rf"(?P<host>{_HOST}|\[[0-9A-Fa-f:]+\])(?::(?P<port>\d{{1,5}}))?(?P<path>/{_PATH})",
    re.ASCII,
)
_FILE = re.compile(rf"(?:file://)?(?P<path>/{_PLAIN}*)", re.ASCII)
#: ``user@host:path``, as ssh's own tools write it; ``name::`` is git's way to start a program.
_SCP = re.compile(
    rf"(?:(?P<user>{_NAME})@)?(?P<host>{_HOST}):(?P<path>(?!//|:){_PLAIN}+)", re.ASCII
)
#: What stays the same however far a relative URL goes up.
_SERVER = re.compile(r"[a-z]+://[^/]*/|[^/]*:/?|/")
#: git takes escapes in an ssh URL's login for what they stand for: ``%2F`` would end it.
_SSH_LOGIN = re.compile(rf"(?:{_NAME})?(?::[^%]*)?", re.ASCII)


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
        # git takes a bare path for a place on its own disk, whatever its settings say.
        place = Repository("file", "", _one_place(text, local["path"]))
        return Written(place, f"file://{local['path']}")
    if scp := _SCP.fullmatch(text):
        user = f"{scp['user']}@" if scp["user"] else ""
        ssh = read(f"ssh://{user}{scp['host']}/{scp['path'].lstrip('/')}")
        return attrs.evolve(ssh, clean=text)
    match = _URL.fullmatch(text)
    if match is None:
        raise _refused(text, "it is no plain https, http, ssh or git URL")
    return _network(text, match)


def _network(text: str, match: re.Match[str]) -> Written:
    scheme, path = match["scheme"], _one_place(text, match["path"])
    userinfo = match["userinfo"] or ""
    username, _, password = userinfo.partition(":")
    host = match["host"].lower() + _port(text, match)
    if scheme != "ssh":
        return Written(Repository(scheme, host, path), _without_login(text), username, password)
    if not _SSH_LOGIN.fullmatch(userinfo):
        raise _refused(text, "its user is no plain name")
    clean = text.replace(f"{userinfo}@", f"{username}@", 1)
    return Written(Repository(scheme, host, path, username), clean)


def _port(text: str, match: re.Match[str]) -> str:
    usual = _PORTS[match["scheme"]]
    port = int(match["port"] or usual)
    if not 0 < port < 65536:
        raise _refused(text, "its port is none")
    return "" if port == usual else f":{port}"


def _one_place(text: str, path: str) -> str:
    """A path that means one place only."""
    if {".", ".."} & set(path.split("/")):
        raise _refused(text, "its path goes up and down")
    try:
        unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise _refused(text, "its escapes are no text") from None
    return path.rstrip("/") or "/"


def _refused(text: str, problem: str) -> SourceRefused:
    return SourceRefused(
        _shown(text), problem, "Write it as scheme://host/path, without query, spaces or escapes"
    )


def _shown(text: str) -> str:
    """What nobody could read may have its login, or a token, anywhere before its last ``@``."""
    shown = re.sub(r"^([A-Za-z0-9+.-]*://)?.*@", r"\1", text, flags=re.DOTALL)
    return re.sub(r"[?#].*", "", shown, flags=re.DOTALL)


def _without_login(text: str) -> str:
    return re.sub(r"^([a-z]+://)[^@/]*@", r"\1", text)


def is_inside(text: str) -> bool:
    """Whether a URL names a place in the file system that git runs in: a path, or ``file://``.

    As git decides it: a colon before any slash makes it another machine's.
    """
    head, colon, _ = text.partition(":")
    return text.startswith("file://") or not colon or "/" in head


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
    if scheme != repository.scheme or (at and not _covers(user, repository.user)):
        return False
    host = host.lower().removesuffix(f":{_PORTS.get(scheme)}")
    return _covers(host, repository.host) and _covers(
        (slash + path).rstrip("/") or "/", repository.path
    )


def _covers(pattern: str, text: str) -> bool:
    """``*`` is the only special character: IPv6 addresses have brackets of their own."""
    wanted = ".*".join(map(re.escape, pattern.split("*")))
    return re.fullmatch(wanted, text) is not None


def submodule_url(parent: str, url: str) -> str:
    """The URL of a submodule: ``./`` and ``../`` count from its parent's, as git reckons them."""
    server = _SERVER.match(parent)
    if server is None or not url.startswith(("./", "../")):
        return url
    path = parent[server.end() :].rstrip("/")
    parts = path.split("/") if path else []
    while url.startswith(("./", "../")):
        step, _, url = url.partition("/")
        if step == ".." and not parts:
            raise SourceRefused(
                parent, "a submodule's relative URL leaves the server", "Mend its .gitmodules"
            )
        parts = parts[:-1] if step == ".." else parts
    return server[0] + "/".join((*parts, url))
