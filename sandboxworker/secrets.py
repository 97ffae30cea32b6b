"""Whether a secret is released to a build, and whether its place is safe.

A secret reaches a build only as a file that Buildbot's ``withSecrets`` step writes to the
secrets tmpfs, and only if the policy names it.
Everything else that carries a secret's value towards the sandbox is refused.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from buildbot.steps.download_secret_to_worker import DownloadSecretsToWorker

from sandboxworker.errors import Actor, SandboxworkerError
from sandboxworker.policy import SandboxPolicy
from sandboxworker.spec import SECRETS_PATH


class SecretRefused(SandboxworkerError):
    """A secret that must not reach this build this way; carries names, never values."""

    actor = Actor.OPERATOR

    def __init__(self, names: Iterable[str], problem: str, resolution: str) -> None:
        self.names = tuple(names)
        super().__init__(
            f"secret {', '.join(self.names) or '(literal)'} is refused",
            details=problem,
            resolution=resolution,
        )


def used_secrets(properties: Any) -> Mapping[str, str]:
    """The secrets that this build's renderables have asked for so far: value to name."""
    used: Mapping[str, str] = properties._used_secrets
    return {value: name.strip("<>") for value, name in used.items()}


def check_command(step: Any, command: str, args: Mapping[str, Any], policy: SandboxPolicy) -> None:
    """Refuse a command that would carry a secret where it must not go.

    Raises `SecretRefused` before a byte of it has left the master.
    """
    used = used_secrets(step.build.properties)
    if isinstance(step, DownloadSecretsToWorker) and command == "downloadFile":
        _check_file(step, str(args["workerdest"]), used, policy)
        return
    names = sorted({used[value] for value in used for text in _texts(args) if value in text})
    if names:
        raise SecretRefused(
            names,
            f"it stands in the arguments of {command!r}, where every process could read it",
            "Hand it over as a file: BuildFactory(..., withSecrets=[(path, Secret(name))])",
        )


def _check_file(step: Any, path: str, used: Mapping[str, str], policy: SandboxPolicy) -> None:
    content = _content(step, path)
    names = sorted({name for value, name in used.items() if value in content})
    if not _is_below_secrets(path):
        raise SecretRefused(
            names,
            f"{path} is not on the secrets tmpfs",
            f"Put it under {SECRETS_PATH}, for instance {SECRETS_PATH}/{posixpath.basename(path)}",
        )
    refused = [name for name in names if not policy.releases(name)]
    if refused:
        raise SecretRefused(
            refused,
            "the policy of this worker does not release it",
            f"To allow it: SandboxPolicy(..., secrets={refused!r}), for trusted builds only",
        )


def _content(step: Any, path: str) -> str:
    return "".join(str(value) for where, value in step.secret_to_be_populated if where == path)


def _is_below_secrets(path: str) -> bool:
    return posixpath.normpath(path) == path and path.startswith(SECRETS_PATH + "/")


def _texts(value: Any) -> Iterable[str]:
    """Every text in a command's arguments, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode(errors="replace")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
