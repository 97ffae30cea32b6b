"""Configurations that mix trust are refused, all their faults at once.

Two workers are of one trust when both release secrets, or neither does; a worker without a
sandbox is a third kind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from buildbot.config import error
from buildbot.config.master import MasterConfig

from sandboxworker.errors import PolicyError
from sandboxworker.factory_secrets import ON_MASTER, secret_paths, uses
from sandboxworker.policies import PROPERTY, SandboxPolicies
from sandboxworker.policy import SandboxPolicy
from sandboxworker.secrets import placed, where_it_belongs

#: A worker's policies by its name; None for a worker without a sandbox.
Workers = Mapping[str, SandboxPolicies | None]


def check_trust(policies_of: Callable[[Any], SandboxPolicies | None]) -> None:
    """Have Buildbot's check of a configuration's builders look at their trust as well."""
    check_builders = MasterConfig.check_builders

    def check(self: Any) -> None:
        check_builders(self)
        workers = {str(worker.workername): policies_of(worker) for worker in self.workers}
        for fault in trust_faults(self.builders, workers):
            error(fault)

    MasterConfig.check_builders = check


def trust_faults(builders: Iterable[Any], workers: Workers) -> list[str]:
    """Everything that mixes trust; ``builders``: a configuration's `BuilderConfig` objects.

    Builders with a worker that is unknown, or whose policy is faulty, are left out: these are
    faults of their own, told elsewhere.
    """
    judged = [builder for builder in builders if _can_be_judged(builder, workers)]
    faults = [fault for builder in judged for fault in _builder_faults(builder, workers)]
    return [*faults, *_sharing_faults(judged, workers)]


def ignored_choice(name: str, properties: Any) -> str | None:
    """What to say of a property that asks for another policy than the builder's configuration."""
    asked = properties.getProperty(PROPERTY, name)
    if asked == name:
        return None
    return (
        f"the property {PROPERTY}={str(asked)[:80]!r} from "
        f"{properties.getPropertySource(PROPERTY)!r} is ignored: only a builder's configuration "
        f"picks a policy, and this build has {name!r}"
    )


# ---- one builder ---------------------------------------------------------------------------------


def _can_be_judged(builder: Any, workers: Workers) -> bool:
    if builder.factory is None or not set(builder.workernames) <= set(workers):
        return False
    return not any(policies.faults() for policies in _sandboxes(builder, workers).values())


def _sandboxes(builder: Any, workers: Workers) -> dict[str, SandboxPolicies]:
    found = ((name, workers[name]) for name in builder.workernames)
    return {name: policies for name, policies in found if policies is not None}


def _builder_faults(builder: Any, workers: Workers) -> Iterator[str]:
    sandboxes = _sandboxes(builder, workers)
    if not sandboxes:
        return
    faults = (
        *_mixed(builder, workers),
        *_ways_to_pick(builder),
        *_picked(builder, sandboxes),
        *_misplaced(builder),
        *_not_released(builder, sandboxes),
    )
    yield from (f"builder {builder.name!r}: {fault}" for fault in faults)


def _mixed(builder: Any, workers: Workers) -> Iterator[str]:
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for name in builder.workernames:
        kinds[_trust(workers[name])].append(name)
    if len(kinds) > 1:
        told = "; ".join(f"{_list(names)} {kind}" for kind, names in kinds.items())
        yield (
            f"its workers differ in trust: {told}. Whichever is free would get the build: "
            "give the builder workers of one kind"
        )


def _trust(policies: SandboxPolicies | None) -> str:
    if policies is None:
        return "without a sandbox"
    return "with secrets= in the policy" if policies.release_secrets else "without any secrets"


def _ways_to_pick(builder: Any) -> Iterator[str]:
    if PROPERTY in builder.defaultProperties:
        yield (
            f"{PROPERTY} in defaultProperties gives way to what a change says of itself (T19): "
            "put it into properties"
        )
    value = builder.properties.get(PROPERTY)
    if value is not None and not isinstance(value, str):
        yield (
            f"{PROPERTY}={value!r} is not a plain name: what is worked out when a build begins "
            "could be chosen by the build (T19)"
        )


def _picked(builder: Any, sandboxes: Mapping[str, SandboxPolicies]) -> Iterator[str]:
    for name, policies in sandboxes.items():
        if isinstance(builder.properties.get(PROPERTY), str):
            try:
                policies.pick(builder.properties[PROPERTY])
            except PolicyError as fault:
                yield f"worker {name!r}: {fault}"


def _misplaced(builder: Any) -> Iterator[str]:
    for step, path in secret_paths(builder):
        if placed(path) is None:
            yield (
                f"step {step!r} puts a secret at {path!r}, which is not on the secrets tmpfs. "
                f"{where_it_belongs(path)}"
            )


_NO_FILE = (
    "; and factory.withSecrets, since commands and environments are no place for it. "
    f"A step class that keeps it on the master says so by the attribute {ON_MASTER} = True"
)


def _not_released(builder: Any, sandboxes: Mapping[str, SandboxPolicies]) -> Iterator[str]:
    for use in uses(builder):
        refusing = [
            name
            for name, policies in sandboxes.items()
            if not _policy(builder, policies).releases(use.secret)
        ]
        if refusing:
            yield (
                f"{use.where} uses the secret {use.secret!r}, which the policy of worker "
                f"{_list(refusing)} does not release (T15). To allow it: SandboxPolicy(..., "
                f"secrets=[{use.secret!r}]), for trusted builds only"
                f"{'' if use.as_file else _NO_FILE}"
            )


def _policy(builder: Any, policies: SandboxPolicies) -> SandboxPolicy:
    """The builder's; where its choice is a fault, which is told already, the default."""
    wanted = builder.properties.get(PROPERTY)
    known = isinstance(wanted, str) and wanted in policies.policies
    return policies.pick(wanted if known else None)[1]


# ---- builders beside each other ------------------------------------------------------------------


def _sharing_faults(builders: list[Any], workers: Workers) -> Iterator[str]:
    """Workers that release secrets, and serve builders with and without."""
    using: defaultdict[str, list[str]] = defaultdict(list)
    others: defaultdict[str, list[str]] = defaultdict(list)
    for builder in builders:
        side = using if uses(builder) else others
        for name, policies in _sandboxes(builder, workers).items():
            if policies.release_secrets:
                side[name].append(builder.name)
    shared: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name in using:
        if name in others:
            shared[_list(using[name]), _list(others[name])].append(name)
    for (using_names, other_names), names in shared.items():
        yield (
            f"worker {_list(names)} releases secrets and is shared by builders that use some "
            f"({using_names}) and builders that use none ({other_names}). Give each kind workers "
            "of its own: they cost nothing while idle"
        )


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
