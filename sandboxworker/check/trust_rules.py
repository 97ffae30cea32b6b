"""What strangers' builds reach: machines, secrets, other builds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from buildbot.steps.source.git import Git

from sandboxworker.check.configuration import Configuration, kind
from sandboxworker.check.rule import Found, Severity, rule
from sandboxworker.check.strangers import pushers, strangers
from sandboxworker.factory_secrets import GIT_ARGUMENTS, secrets_in, uses


@rule(
    "pull-request-unsandboxed",
    Severity.CRITICAL,
    what="a worker without a sandbox runs pull requests",
    why=(
        "A pull request is a program by somebody whom nobody has vetted. Without a sandbox it has "
        "the worker's user, network and files, and what it leaves there meets the next build"
    ),
    cure=(
        "Give the builder SandboxLatentWorkers alone, or a change_filter on its scheduler that "
        "leaves pull requests out"
    ),
)
def _unsandboxed(configuration: Configuration) -> Iterator[Found]:
    for reached in strangers(configuration):
        for worker in configuration.open_workers_of(reached.builder):
            yield Found(
                f"builder {reached.builder!r}, worker {worker.workername!r}",
                f"gets pull requests ({reached}) on a {kind(worker)}{_danger(worker)}",
            )


def _danger(worker: Any) -> str:
    if kind(worker) == "LocalWorker":
        return ", which runs them as the master's own user"
    if "Latent" in kind(worker):
        return ", whose builds speak to the master and have a network"
    return ""


@rule(
    "pull-request-secrets",
    Severity.CRITICAL,
    what="a pull request can get at secrets",
    why="Whatever a build is given it can send away in its output or its artifacts, encoded",
    cure=(
        "Take the secrets out of the builder's factory and its policy's secrets=; what needs them "
        "goes to a builder of its own, which only reviewed branches reach"
    ),
)
def _secrets(configuration: Configuration) -> Iterator[Found]:
    for reached in strangers(configuration):
        builder = configuration.builders[reached.builder]
        for worker, policy in configuration.policies_of(reached.builder):
            if policy.secrets:
                names = "every secret" if policy.secrets == "*" else ", ".join(policy.secrets)
                yield Found(
                    f"builder {reached.builder!r}, worker {worker!r}",
                    f"gets pull requests ({reached}) and its policy releases {names}",
                )
        if configuration.open_workers_of(reached.builder):
            for name in _secrets_handed_out(builder):
                yield Found(
                    f"builder {reached.builder!r}",
                    f"gets pull requests ({reached}) and hands the secret {name!r} to its worker",
                )


def _secrets_handed_out(builder: Any) -> list[str]:
    """To a worker without a sandbox also the logins of git steps go."""
    git = [step for step in builder.factory.steps if _is_git(step)]
    logins = secrets_in([step.kwargs.get(name) for step in git for name in GIT_ARGUMENTS])
    return sorted({use.secret for use in uses(builder)} | logins)


def _is_git(step: Any) -> bool:
    return issubclass(getattr(step, "step_class", object), Git)


@rule(
    "pull-request-neighbours",
    Severity.HIGH,
    what="a worker without a sandbox serves pull requests and other builds",
    why=(
        "A pull request can leave a process, a git hook or a changed tool on the machine, for the "
        "next trusted build to run with its secrets"
    ),
    cure="Give the pull requests workers of their own, and make them SandboxLatentWorkers",
)
def _neighbours(configuration: Configuration) -> Iterator[Found]:
    untrusted = {reached.builder for reached in strangers(configuration)}
    for worker in configuration.open_workers:
        served = [
            name for name in configuration.builders if worker in configuration.workers_of(name)
        ]
        mixed = [name for name in served if name in untrusted]
        if mixed and len(mixed) < len(served):
            others = [name for name in served if name not in untrusted]
            yield Found(
                f"worker {worker.workername!r}",
                f"runs pull requests ({_list(mixed)}) and beside them {_list(others)}",
            )


@rule(
    "unknown-branch",
    Severity.MEDIUM,
    what="a poller brings branches that nobody has named to a builder with something to lose",
    why=(
        "Whoever may push a branch, however new, has it built: with the secrets of that builder, "
        "or on a worker without a sandbox"
    ),
    cure="Name the branches in the poller, or filter them at the scheduler",
)
def _unknown_branch(configuration: Configuration) -> Iterator[Found]:
    for reached in pushers(configuration):
        open_workers = configuration.open_workers_of(reached.builder)
        secrets = [
            name for name, policy in configuration.policies_of(reached.builder) if policy.secrets
        ]
        if open_workers or secrets:
            risk = "its policy releases secrets" if secrets else "its worker has no sandbox"
            yield Found(
                f"builder {reached.builder!r}", f"builds any new branch ({reached}), and {risk}"
            )


@rule(
    "policy-generous",
    Severity.LOW,
    what="a policy for pull requests allows more than 6 hours or 1 GiB of log",
    why="A few pull requests could keep every worker busy for a day, or fill the master's disk",
    cure="Lower max_runtime, max_output in the SandboxPolicy to what an honest build needs",
)
def _generous(configuration: Configuration) -> Iterator[Found]:
    for reached in strangers(configuration):
        for worker, policy in configuration.policies_of(reached.builder):
            for field, limit in (("max_runtime", 6 * 3600), ("max_output", 2**30)):
                if getattr(policy, field) > limit:
                    yield Found(
                        f"builder {reached.builder!r}, worker {worker!r}",
                        f"gets pull requests with {field} over {limit}",
                    )


@rule(
    "log-unlimited",
    Severity.MEDIUM,
    what="a step on a worker without a sandbox has no limit on its log",
    why=(
        "One endless loop that prints fills the master's database; Buildbot 4 reads logMaxSize "
        "and enforces it nowhere"
    ),
    cure="Set max_lines= on the step, or use a SandboxLatentWorker, whose policy has max_output",
)
def _log_unlimited(configuration: Configuration) -> Iterator[Found]:
    for name, builder in configuration.builders.items():
        if configuration.open_workers_of(name):
            steps = [_step_name(step) for step in builder.factory.steps if _is_endless(step)]
            if steps:
                yield Found(f"builder {name!r}", f"no max_lines on {_list(steps)}")


def _is_endless(step: Any) -> bool:
    made = getattr(step, "step_class", None)
    if made is None:  # Made by a factory of the operator's own, which shows nothing.
        return False
    has_command = "command" in step.kwargs or hasattr(made, "command")
    return has_command and not step.kwargs.get("max_lines", getattr(made, "max_lines", None))


def _step_name(step: Any) -> str:
    return str(step.kwargs.get("name", step.step_class.__name__))


def _list(names: list[str]) -> str:
    return ", ".join(map(repr, names))
