"""Which secrets a builder's factory hands to its worker, as far as its configuration shows.

What renderers written as functions will do cannot be seen beforehand; `secrets.decide` judges
that when the step runs.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
from buildbot.process.buildstep import BuildStep
from buildbot.process.properties import Interpolate, Secret
from buildbot.steps import http, master, trigger
from buildbot.steps.download_secret_to_worker import (
    DownloadSecretsToWorker,
    RemoveWorkerFileSecret,
)
from buildbot.util.git import GitStepMixin

#: Steps that ask nothing of a worker.
MASTER_STEPS = (
    master.Assert,
    master.LogRenderable,
    master.MasterShellCommand,
    master.SetProperties,
    master.SetProperty,
    http.HTTPStep,
    trigger.Trigger,
)
#: A step class of the operator's own says by this attribute that it asks nothing of a worker.
ON_MASTER = "sandbox_on_master"

#: Arguments of the git steps that stay on the master, which fetches for them.
GIT_ARGUMENTS = frozenset(
    {
        "repourl",
        "auth_credentials",
        "git_credentials",
        "sshPrivateKey",
        "sshHostKey",
        "sshKnownHosts",
    }
)


@attrs.frozen
class Use:
    """A secret that would come to the worker.

    ``where``: the step, or the builder's ``env``; ``as_file``: through ``withSecrets``.
    """

    where: str
    secret: str
    as_file: bool = False


def uses(builder: Any) -> list[Use]:
    """The secrets that a builder (`BuilderConfig`) hands to its worker, in the factory's order."""
    found = [
        Use(f"step {_name(step)!r}", secret, issubclass(step.step_class, DownloadSecretsToWorker))
        for step in _steps(builder)
        for secret in sorted(secrets_in(_what_comes_to_the_worker(step)))
    ]
    found += [Use("its env", secret) for secret in sorted(secrets_in(builder.env))]
    return list(dict.fromkeys(found))


def secret_paths(builder: Any) -> Iterator[tuple[str, str]]:
    """Step and path of each ``withSecrets`` file whose path is plain text."""
    for step in _steps(builder):
        if issubclass(step.step_class, DownloadSecretsToWorker):
            files = _arguments(step).get("populated_secret_list")
            for entry in files if isinstance(files, (list, tuple)) else ():
                if isinstance(entry, (list, tuple)) and entry and isinstance(entry[0], str):
                    yield _name(step), entry[0]


def secrets_in(value: Any) -> set[str]:
    """The names of the secrets in a value, however deep, renderables included."""
    names: set[str] = set()
    seen: dict[int, Any] = {}  # Holds on to what it has seen, so that no number comes twice.
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) not in seen:
            seen[id(item)] = item
            names.update(_named(item))
            waiting.extend(_parts(item))
    return names


def _named(item: Any) -> Iterator[str]:
    if isinstance(item, Secret):
        yield item.secret_name
    elif isinstance(item, Interpolate) and not item.args:
        for key in item.interpolations:
            selector, _, rest = key.partition(":")
            if selector == "secret":
                yield rest.partition(":")[0]


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, Mapping):
        return [*item.keys(), *item.values()]
    if isinstance(item, (list, tuple, set, frozenset)):
        return item
    # Transform, Property with a default, ShellArg, GitCredentialOptions within one, and so on.
    if hasattr(type(item), "getRenderingFor"):
        return list(getattr(item, "__dict__", {}).values())
    return ()


def _steps(builder: Any) -> Iterator[Any]:
    """The factory's steps as Buildbot keeps them; what is made otherwise shows nothing."""
    return (step for step in builder.factory.steps if hasattr(step, "step_class"))


def _name(step: Any) -> str:
    name = step.kwargs.get("name", step.step_class.name)
    tells = isinstance(name, str) and name != BuildStep.name
    return str(name if tells else step.step_class.__name__)


def _what_comes_to_the_worker(step: Any) -> Mapping[str, Any]:
    kind = step.step_class
    # The step that removes the files names their secrets as well, and sends none.
    if issubclass(kind, (*MASTER_STEPS, RemoveWorkerFileSecret)) or getattr(kind, ON_MASTER, False):
        return {}
    stays = GIT_ARGUMENTS if issubclass(kind, GitStepMixin) else frozenset()
    return {name: value for name, value in _arguments(step).items() if name not in stays}


def _arguments(step: Any) -> dict[str, Any]:
    """A step's arguments by name, and what its class says in place of those not given."""
    return {
        **_class_attributes(step.step_class),
        **dict(zip(_positions(step.step_class), step.args, strict=False)),
        **step.kwargs,
    }


def _class_attributes(kind: Any) -> dict[str, Any]:
    rendered = {name for base in kind.__mro__ for name in vars(base).get("renderables", ())}
    return {name: getattr(kind, name, None) for name in rendered}


def _positions(kind: Any) -> Iterator[Any]:
    """The names of the arguments in their order; where there are no names, numbers."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    yield from (each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD)
    yield from itertools.count()
