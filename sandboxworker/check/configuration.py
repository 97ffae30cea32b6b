"""A master's configuration as Buildbot has loaded it, and the questions that rules ask of it."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from buildbot.www.auth import NoAuth
from buildbot.www.authz import Authz

from sandboxworker.check.addresses import Listening, PublicUrl, listening
from sandboxworker.errors import PolicyError
from sandboxworker.policies import PROPERTY
from sandboxworker.policy import SandboxPolicy
from sandboxworker.worker import SandboxLatentWorker


@attrs.frozen(eq=False, slots=False)
class Configuration:
    """``master``: the `MasterConfig`; ``file``: its file; ``sources``: it, and what it imports
    from its own directory."""

    master: Any
    file: Path
    sources: tuple[Path, ...]

    @functools.cached_property
    def workers(self) -> dict[str, Any]:
        return {str(worker.workername): worker for worker in self.master.workers}

    @property
    def open_workers(self) -> list[Any]:
        """Those without a sandbox."""
        return [worker for worker in self.master.workers if not is_sandboxed(worker)]

    @functools.cached_property
    def builders(self) -> dict[str, Any]:
        return {str(builder.name): builder for builder in self.master.builders}

    def workers_of(self, builder: str) -> list[Any]:
        names = self.builders[builder].workernames
        return [self.workers[name] for name in names if name in self.workers]

    def open_workers_of(self, builder: str) -> list[Any]:
        return [worker for worker in self.workers_of(builder) if not is_sandboxed(worker)]

    def policies_of(self, builder: str) -> Iterator[tuple[str, SandboxPolicy]]:
        """Each sandboxed worker of a builder, and the policy that its builds get there."""
        wanted = self.builders[builder].properties.get(PROPERTY)
        for worker in filter(is_sandboxed, self.workers_of(builder)):
            # What is not in the list is told by Buildbot's own check of the configuration.
            with contextlib.suppress(PolicyError):
                yield str(worker.workername), worker.policies.pick(wanted)[1]

    # web

    @property
    def www(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.master.www
        return found

    @property
    def web_port(self) -> Listening | None:
        return listening(self.www.get("port"))

    @property
    def web_url(self) -> PublicUrl:
        return PublicUrl(str(self.master.buildbotURL))

    @property
    def web_is_public(self) -> bool:
        """Other machines reach the web interface: by its port, or through a proxy."""
        port = self.web_port
        return port is not None and (port.is_public or self.web_url.is_public)

    @property
    def has_login(self) -> bool:
        return not isinstance(self.www.get("auth"), (NoAuth, type(None)))

    @property
    def authz_rules(self) -> list[Any]:
        authz = self.www.get("authz")
        return list(authz.allowRules) if isinstance(authz, Authz) else []

    @property
    def hooks(self) -> dict[str, Mapping[str, Any]]:
        """The webhook dialects with their options."""
        dialects = self.www.get("change_hook_dialects") or {}
        return {
            str(name): options if isinstance(options, Mapping) else {}
            for name, options in dialects.items()
            if options is not False
        }

    @property
    def hooks_have_login(self) -> bool:
        return bool(self.www.get("change_hook_auth"))


def is_sandboxed(worker: Any) -> bool:
    return isinstance(worker, SandboxLatentWorker)


def arguments(service: Any) -> dict[str, Any]:
    """What one of Buildbot's services was given, by name: most keep it for their start only."""
    given = getattr(service, "_config_args", ())
    names = list(inspect.signature(type(service).checkConfig).parameters)[1:]
    return {**dict(zip(names, given, strict=False)), **getattr(service, "_config_kwargs", {})}


def kind(thing: Any) -> str:
    """The name of its class, for people."""
    return type(thing).__name__
