"""What a source step may log in to a server with; it stays on the master.

Buildbot's git steps write keys and passwords to the worker before they run git there. Here git
asks the server on the master's side, so what would have gone to the worker is taken over instead.
All names that are private to Buildbot's git steps are in this file.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import attrs
from buildbot.process.properties import Properties
from buildbot.util.git import GitStepMixin, ensureSshKeyNewline, getSshKnownHostsContents

from sandboxworker.errors import SourceRefused
from sandboxworker.source.gitargs import parse
from sandboxworker.source.urls import Written


@attrs.frozen
class Access:
    """What git on the master logs in with.

    ``credentials``: each as git-credential's input; ``use_http_path``: git's
    ``credential.useHttpPath``; ``private_key`` and ``known_hosts``: the texts of ssh's files;
    ``is_own``: whether the master's own ssh keys and agent may be used as well.
    """

    credentials: tuple[str, ...] = attrs.field(default=(), repr=False)
    use_http_path: bool | None = None
    private_key: str | None = attrs.field(default=None, repr=False)
    known_hosts: str | None = attrs.field(default=None, repr=False)
    is_own: bool = False


def _authentication(step: Any) -> Any:
    return getattr(step, "_git_auth", None)


def is_authentication(step: Any, command: str, args: Mapping[str, Any]) -> bool:
    """Whether a command of a git step would write, use or remove its keys on the worker."""
    auth = _authentication(step)
    if not isinstance(step, GitStepMixin) or auth is None or not auth.is_auth_needed:
        return False
    if command == "shell":
        git = parse(args.get("command"))
        return git is not None and git.name == "credential"
    place = auth._get_auth_data_path(step._get_auth_data_workdir())
    return any(_is_at(place, path) for path in _paths(args))


def _paths(args: Mapping[str, Any]) -> list[str]:
    workdir = str(args.get("workdir") or "")
    named = [args.get(name) for name in ("dir", "path", "workerdest", "slavedest")]
    several = args.get("paths") or ()
    return [posixpath.join(workdir, str(path)) for path in (*named, *several) if path]


def _is_at(place: str, path: str) -> bool:
    return path == place or path.startswith(place + "/")


async def access_of(step: Any, written: Written, *, is_own: bool) -> Access:
    """A git step's keys and passwords, rendered, with those that its URL carries."""
    auth = _authentication(step)
    properties = Properties()
    properties.master = step.master
    given = list(_in_url(written))
    key = hosts = use_http_path = None
    if auth is not None:
        key = await properties.render(auth.ssh_private_key)
        hosts = await _known_hosts(auth, properties)
        options = auth.git_credential_options
        if options is not None:
            use_http_path = options.use_http_path
            given += [await properties.render(each) for each in options.credentials]
    return Access(
        credentials=tuple(each for each in given if each),
        use_http_path=use_http_path,
        private_key=None if key is None else ensureSshKeyNewline(key),
        known_hosts=hosts,
        is_own=is_own,
    )


async def _known_hosts(auth: Any, properties: Properties) -> str | None:
    known_hosts: str | None = await properties.render(auth.ssh_known_hosts)
    if known_hosts is not None:
        return known_hosts
    host_key = await properties.render(auth.ssh_host_key)
    return None if host_key is None else str(getSshKnownHostsContents(host_key)) + "\n"


def _in_url(written: Written) -> tuple[str, ...]:
    if not written.username or written.repository.scheme not in ("http", "https"):
        return ()
    lines = {
        "protocol": written.repository.scheme,
        "host": written.repository.host,
        # As git reads them.
        "username": unquote(written.username),
        "password": unquote(written.password),
    }
    if any("\n" in value or "\0" in value for value in lines.values()):
        raise SourceRefused(written.clean, "its login has a line break", "Mend the URL")
    return ("".join(f"{name}={value}\n" for name, value in lines.items()),)
