"""Whether a secret is released to a build, and whether its place is safe.

A secret reaches a build only as a file that Buildbot's ``withSecrets`` step writes to the
secrets tmpfs, and only if the policy names it.
Everything else that carries a secret's value towards the sandbox is refused.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
from buildbot.steps.download_secret_to_worker import DownloadSecretsToWorker

from sandboxworker.errors import Actor, SandboxworkerError
from sandboxworker.policy import SandboxPolicy
from sandboxworker.redact import SHORTEST
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


@attrs.frozen
class Decision:
    """What a command may carry: names that are released with it, values that it must not have.

    ``withheld``: value to name.
    """

    released: tuple[str, ...] = ()
    withheld: Mapping[str, str] = attrs.Factory(dict)


def used_secrets(properties: Any) -> Mapping[str, str]:
    """The secrets that this build's renderables have asked for so far: value to name."""
    used: Mapping[str, str] = properties._used_secrets
    return {value: name.strip("<>") for value, name in used.items()}


def decide(step: Any, command: str, args: Mapping[str, Any], policy: SandboxPolicy) -> Decision:
    """Release or refuse the secrets that a command would carry into the sandbox.

    Raises `SecretRefused` before a byte of them has left the master.
    """
    used = used_secrets(step.build.properties)
    if isinstance(step, DownloadSecretsToWorker) and command == "downloadFile":
        return Decision(released=_released(step, str(args["workerdest"]), used, policy))
    withheld = {value: name for value, name in used.items() if len(value) >= SHORTEST}
    names = found_in(withheld, _texts(args))
    if names:
        raise SecretRefused(
            names,
            f"it stands in the arguments of {command!r}, where every process could read it",
            _AS_A_FILE,
        )
    return Decision(withheld=withheld)


_AS_A_FILE = (
    f"Hand it over as a file: factory.withSecrets([('{SECRETS_PATH}/name', Secret('name'))])"
)


def found_in(withheld: Mapping[str, str], texts: Iterable[str]) -> list[str]:
    """The names of the secrets whose values stand in these texts."""
    return sorted({name for text in texts for value, name in withheld.items() if value in text})


def refuse_content(names: Iterable[str]) -> SecretRefused:
    """For a file on its way to the workspace that has a secret in it."""
    return SecretRefused(names, "a file on its way to the workspace contains it", _AS_A_FILE)


def _released(
    step: Any, path: str, used: Mapping[str, str], policy: SandboxPolicy
) -> tuple[str, ...]:
    names = found_in(used, [_content(step, path)])
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
    return tuple(names)


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
