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
from buildbot.steps.download_secret_to_worker import (
    DownloadSecretsToWorker,
    RemoveWorkerFileSecret,
)

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

    ``args``: the command's, with the paths of secrets on their tmpfs;
    ``withheld``: value to name; ``short``: names of secrets too short to look for in a text.
    """

    args: Mapping[str, Any]
    released: tuple[str, ...] = ()
    withheld: Mapping[str, str] = attrs.Factory(dict)
    short: tuple[str, ...] = ()


def used_secrets(properties: Any) -> Mapping[str, str]:
    """The secrets that this build's renderables have asked for so far: value to name."""
    used: Mapping[str, str] = properties._used_secrets
    return {value: name.removeprefix("<").removesuffix(">") for value, name in used.items()}


def decide(step: Any, command: str, args: Mapping[str, Any], policy: SandboxPolicy) -> Decision:
    """Release or refuse the secrets that a command would carry into the sandbox.

    Raises `SecretRefused` before a byte of them has left the master.
    """
    used = used_secrets(step.build.properties)
    withheld = {value: name for value, name in used.items() if len(value) >= SHORTEST}
    short = tuple(sorted({name for value, name in used.items() if value not in withheld}))
    if isinstance(step, DownloadSecretsToWorker) and command == "downloadFile":
        released = _released(step, str(args["workerdest"]), used, policy)
        return Decision(_with_placed(args, "workerdest"), released, short=short)
    names = found_in(withheld, _texts(args))
    if names:
        raise SecretRefused(
            names,
            f"it stands in the arguments of {command!r}, where every process could read it",
            _AS_A_FILE,
        )
    if isinstance(step, RemoveWorkerFileSecret) and command == "rmfile":
        args = _with_placed(args, "path")
    return Decision(args, withheld=withheld, short=short)


def placed(path: str) -> str | None:
    """Where the file of a ``withSecrets`` path is, or None if that is not on the secrets tmpfs.

    A relative path is one below `SECRETS_PATH`.
    """
    place = posixpath.normpath(posixpath.join(SECRETS_PATH, path))
    # What begins with ~ means a home directory, which is no place for a secret.
    inside = place.startswith(SECRETS_PATH + "/") and not path.startswith("~")
    return place if inside else None


def where_it_belongs(path: str) -> str:
    """What to do about a path that is not on the secrets tmpfs."""
    return f"Put it under {SECRETS_PATH}, for instance {SECRETS_PATH}/{posixpath.basename(path)}"


def too_short(name: str) -> str:
    """The warning about a secret that would take half of an innocent log with it."""
    return (
        f"sandboxworker: secret {name} is shorter than {SHORTEST} characters: what the build "
        f"prints is not redacted of it, nor are commands and files searched for it. "
        f"Use a longer one"
    )


def _with_placed(args: Mapping[str, Any], argument: str) -> dict[str, Any]:
    path = str(args[argument])
    return {**args, argument: placed(path) or path}


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
    if placed(path) is None:
        raise SecretRefused(names, f"{path} is not on the secrets tmpfs", where_it_belongs(path))
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
