"""Which builders run what strangers wrote: from the sources of changes through the schedulers.

Each source of pull requests gives samples of the changes that it would make, and Buildbot's own
filters say which scheduler takes them. What cannot be known beforehand counts as taken: project,
repository and codebase, and the branch where the source tells of the branch that a pull request
is to be merged into.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
from buildbot.changes.gitpoller import GitPoller
from buildbot.process.properties import Properties
from buildbot.schedulers.basic import BaseBasicScheduler
from buildbot.schedulers.dependent import Dependent
from buildbot.schedulers.timed import Timed
from buildbot.schedulers.triggerable import Triggerable
from buildbot.steps.trigger import Trigger
from buildbot.util import NotABranch

from sandboxworker.check.configuration import Configuration, arguments, kind

#: Branches that a pull request may be for.
_TARGETS = ("main", "master", "develop", "trunk", "default")
_PULL_REFS = (
    "refs/pull/1/head",
    "refs/pull/1/merge",
    "refs/merge-requests/1/head",
    "refs/pull-requests/1/merge",
    "refs/changes/01/1/1",
)
_NEW_BRANCH = "sandboxworker-check/a-branch-that-nobody-named"


@attrs.frozen
class Origin:
    """A source of changes, and what one of them looks like.

    ``branch``: None where it may be any; ``is_stranger``: anybody may have written it, not only
    who may push.
    """

    source: str
    categories: tuple[str | None, ...]
    branches: tuple[str, ...] | None
    is_stranger: bool = True


@attrs.frozen
class Reached:
    """How the changes of an origin come to a builder."""

    builder: str
    origin: Origin
    scheduler: str

    def __str__(self) -> str:
        return f"{self.origin.source}, scheduler {self.scheduler!r}"


@attrs.define
class _Sample:
    """A change, as far as filters look at it."""

    category: str | None
    branch: str | None
    project: str = "project"
    repository: str = "https://forge.example/project"
    codebase: str = ""
    files: tuple[str, ...] = ("file",)
    comments: str = ""
    who: str = "somebody"
    author: str = "somebody"
    revision: str = "0" * 40
    revlink: str = ""
    number: int = 1
    properties: Any = attrs.Factory(Properties)


def strangers(configuration: Configuration) -> list[Reached]:
    """The builders that get pull requests, each once, with the way that they come."""
    return _reached(configuration, [each for each in origins(configuration) if each.is_stranger])


def pushers(configuration: Configuration) -> list[Reached]:
    """The builders that get branches which the configuration does not name."""
    others = [each for each in origins(configuration) if not each.is_stranger]
    return _reached(configuration, others)


# ---- origins -------------------------------------------------------------------------------------


def origins(configuration: Configuration) -> Iterator[Origin]:
    """Every source of changes whose author nobody in the configuration has named."""
    for dialect, options in configuration.hooks.items():
        yield from _hook_origins(dialect, options)
    for source in configuration.master.change_sources:
        yield from _source_origins(source)


def _hook_origins(dialect: str, options: Any) -> Iterator[Origin]:
    source = f"the {dialect} webhook"
    if "custom_class" in options:
        yield Origin(source, ("pull", "pull_request", "merge_request"), None)
    elif dialect == "github":
        ref = f"refs/pull/1/{options.get('pullrequest_ref') or 'merge'}"
        yield Origin(source, ("pull",), (ref,))
    elif dialect == "gitlab":
        yield Origin(source, ("merge_request", "note"), None)
    elif dialect == "gitea":
        yield Origin(source, ("pull_request",), None)
    elif dialect in ("bitbucketcloud", "bitbucketserver"):
        ref = "refs/pull-requests/1/merge"
        yield Origin(source, ("pull-created", "pull-updated"), (ref,))


def _source_origins(source: Any) -> Iterator[Origin]:
    given, name = arguments(source), f"{kind(source)} {source.name!r}"
    if kind(source) in ("GitHubPullrequestPoller", "BitbucketPullrequestPoller"):
        default = "pull" if kind(source).startswith("GitHub") else None
        yield Origin(name, _categories(given.get("category", default)), None)
    elif kind(source).startswith("Gerrit"):
        yield Origin(name, ("patchset-created",), None)
    elif isinstance(source, GitPoller):
        yield from _poller_origins(name, given)


def _categories(category: Any) -> tuple[str | None, ...]:
    return ("pull", None) if callable(category) else (category,)


def _poller_origins(name: str, given: dict[str, Any]) -> Iterator[Origin]:
    categories = _categories(given.get("category"))
    wanted = given.get("branches") or given.get("branch") or ()
    pull_refs = tuple(ref for ref in _PULL_REFS if _polls(wanted, ref))
    if pull_refs:
        yield Origin(name, categories, pull_refs)
    if _polls(wanted, f"refs/heads/{_NEW_BRANCH}"):
        yield Origin(name, categories, (_NEW_BRANCH,), is_stranger=False)


def _polls(wanted: Any, ref: str) -> bool:
    """Whether a GitPoller with these branches looks at a ref."""
    if wanted is True:  # Upstream: every branch, and nothing but branches.
        return ref.startswith("refs/heads/")
    if callable(wanted):
        try:
            return bool(wanted(ref))
        except Exception:  # The operator's own code; taken for a yes.
            return True
    return False  # A list has names of branches, and each was somebody's choice.


# ---- schedulers ----------------------------------------------------------------------------------


def _reached(configuration: Configuration, origins: Iterable[Origin]) -> list[Reached]:
    found: dict[str, Reached] = {}
    for origin in origins:
        for scheduler in _all_schedulers(configuration, origin):
            for builder in _builders(scheduler, configuration):
                found.setdefault(builder, Reached(builder, origin, str(scheduler.name)))
    return list(found.values())


def _all_schedulers(configuration: Configuration, origin: Origin) -> list[Any]:
    """Those that take such changes, and those that follow from them, however far."""
    schedulers = list(configuration.master.schedulers.values())
    taken = [each for each in schedulers if _takes(each, origin)]
    for scheduler in taken:  # Grows while it is gone through.
        following = [each for each in schedulers if _follows(each, scheduler, configuration)]
        taken += [each for each in following if each not in taken]
    return taken


def _builders(scheduler: Any, configuration: Configuration) -> list[str]:
    names = getattr(scheduler, "builderNames", ())
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        return [name for name in names if name in configuration.builders]
    return list(configuration.builders)  # Chosen when the time has come.


def _follows(candidate: Any, scheduler: Any, configuration: Configuration) -> bool:
    if isinstance(candidate, Dependent):
        return arguments(candidate).get("upstream") is scheduler
    if isinstance(candidate, Triggerable):
        builders = _builders(scheduler, configuration)
        return any(
            _triggers(step, candidate.name)
            for name in builders
            for step in configuration.builders[name].factory.steps
        )
    return False


def _triggers(step: Any, name: str) -> bool:
    if not issubclass(getattr(step, "step_class", object), Trigger):
        return False
    names = step.kwargs.get("schedulerNames", step.args[0] if step.args else ())
    is_plain = isinstance(names, (list, tuple)) and all(isinstance(each, str) for each in names)
    return name in names if is_plain else True


def _takes(scheduler: Any, origin: Origin) -> bool:
    given = arguments(scheduler)
    if isinstance(scheduler, BaseBasicScheduler):
        wanted = scheduler.getChangeFilter(
            branch=given.get("branch", NotABranch),
            branches=given.get("branches", NotABranch),
            change_filter=given.get("change_filter"),
            categories=given.get("categories"),
        )
    elif isinstance(scheduler, Timed):
        if not (given.get("onlyIfChanged") or given.get("createAbsoluteSourceStamps")):
            return False
        wanted = given.get("change_filter")
    else:
        return False
    return wanted is None or _passes(wanted, origin)


def _passes(wanted: Any, origin: Origin) -> bool:
    known = copy.copy(wanted)
    known.project_fn = known.repository_fn = known.codebase_fn = None
    judged = {"category"} if origin.branches is None else {"category", "branch"}
    known.filters = [each for each in known.filters if each.prop in judged]
    known.property_filters = [each for each in known.property_filters if each.prop == "event"]
    if origin.branches is None:
        known.branch_fn = None
    return any(_filter_takes(known, sample) for sample in _samples(origin))


def _samples(origin: Origin) -> Iterator[_Sample]:
    for category in origin.categories:
        for branch in origin.branches or (*_TARGETS, *_PULL_REFS):
            sample = _Sample(category, branch)
            sample.properties.setProperty("event", category, "check")
            yield sample


def _filter_takes(known: Any, sample: _Sample) -> bool:
    try:
        return bool(known.filter_change(sample))
    except Exception:  # A function of the operator's own, which wants more than is known here.
        return True
