"""Configurations that mix trust, and those that do not."""

from __future__ import annotations

from typing import Any

import pytest
from buildbot.config.errors import ConfigErrors
from buildbot.config.master import MasterConfig
from buildbot.plugins import schedulers, steps, util
from buildbot.process.factory import BuildFactory
from buildbot.process.properties import Properties
from buildbot.worker import Worker

from sandboxworker import SandboxLatentWorker, SandboxPolicies, SandboxPolicy
from sandboxworker.trust import ignored_choice

STRANGERS = SandboxPolicy.untrusted("a/b:1")
TOKEN = SandboxPolicy("a/b:1", secrets=["token"])
TRUSTED = SandboxPolicy.trusted("a/b:1")
SIZES = SandboxPolicies({"small": STRANGERS, "big": STRANGERS}, default="small")
MIXED_SECRETS = SandboxPolicies({"a": TOKEN, "b": TRUSTED}, default="a")


def sandbox(name: str, policy: Any) -> SandboxLatentWorker:
    return SandboxLatentWorker(name, policy=policy)


def builder(name: str, *workers: str, secret: str | None = None, **more: Any) -> Any:
    files = [("file", util.Secret(secret))] if secret else []
    factory = BuildFactory()
    factory.addSteps([steps.ShellCommand(command="true")], withSecrets=files)
    return util.BuilderConfig(name=name, workernames=list(workers), **{"factory": factory, **more})


def faults(workers: list[Any], builders: list[Any]) -> list[str]:
    """What the real check of a whole configuration says."""
    config = {
        "workers": workers,
        "builders": builders,
        "schedulers": [
            schedulers.ForceScheduler(name="f", builderNames=[each.name for each in builders])
        ],
        "protocols": {"null": {}},
    }
    try:
        MasterConfig.loadFromDict(config, "<test>")
    except ConfigErrors as errors:
        return list(errors.errors)
    return []


@pytest.mark.parametrize(
    ("workers", "builders"),
    [
        ([sandbox("s", STRANGERS)], [builder("b", "s")]),
        ([sandbox("s", STRANGERS)], [builder("b", "s"), builder("c", "s")]),
        ([sandbox("t", TOKEN)], [builder("b", "t", secret="token")]),
        ([sandbox("t", TOKEN)], [builder("b", "t")]),
        ([sandbox("t", TRUSTED)], [builder("b", "t", secret="any")]),
        ([sandbox("t", TOKEN), sandbox("u", TRUSTED)], [builder("b", "t", "u", secret="token")]),
        ([sandbox("s", STRANGERS), Worker("w", "p")], [builder("b", "s"), builder("c", "w")]),
        ([Worker("w", "p")], [builder("b", "w", secret="any"), builder("c", "w")]),
        ([sandbox("s", SIZES)], [builder("b", "s", properties={"sandbox_policy": "big"})]),
        ([Worker("w", "p")], [builder("b", "w", properties={"sandbox_policy": 7})]),
        (
            [sandbox("t", MIXED_SECRETS)],
            [builder("b", "t", secret="any", properties={"sandbox_policy": "b"})],
        ),
    ],
)
def test_what_does_not_mix_is_accepted(workers: list[Any], builders: list[Any]) -> None:
    assert faults(workers, builders) == []


def test_a_secret_that_a_policy_does_not_release_is_told_with_all_names_and_the_cure() -> None:
    workers = [sandbox("s", STRANGERS), sandbox("t", STRANGERS)]
    (told,) = faults(workers, [builder("b", "s", "t", secret="token")])
    for word in ("builder 'b'", "step '", "'token'", "worker 's', 't'", "secrets=['token']"):
        assert word in told, told
    assert "sandbox_on_master" not in told


def test_a_secret_in_a_command_is_told_with_what_else_to_do() -> None:
    factory = BuildFactory([steps.ShellCommand(command=["x", util.Secret("k")], name="deploy")])
    (told,) = faults([sandbox("t", TOKEN)], [builder("b", "t", factory=factory)])
    for word in ("step 'deploy'", "'k'", "secrets=['k']", "withSecrets", "sandbox_on_master"):
        assert word in told, told


def test_each_policy_of_a_list_is_asked_for_itself() -> None:
    (told,) = faults([sandbox("t", MIXED_SECRETS)], [builder("b", "t", secret="any")])
    assert "secrets=['any']" in told


@pytest.mark.parametrize(
    ("workers", "kinds"),
    [
        ([sandbox("x", STRANGERS), sandbox("y", TOKEN)],
         ["'x' without any secrets", "'y' with secrets="]),
        ([sandbox("x", STRANGERS), Worker("y", "p")],
         ["'x' without any secrets", "'y' without a sandbox"]),
        ([sandbox("x", TRUSTED), Worker("y", "p")],
         ["'x' with secrets=", "'y' without a sandbox"]),
    ],
)  # fmt: skip
def test_workers_of_one_builder_are_of_one_trust(workers: list[Any], kinds: list[str]) -> None:
    (told,) = faults(workers, [builder("b", "x", "y")])
    assert told.startswith("builder 'b': its workers differ in trust")
    for kind in kinds:
        assert kind in told


def test_a_worker_that_releases_secrets_is_not_shared_with_who_uses_none() -> None:
    workers = [sandbox("t", TOKEN), sandbox("u", TOKEN)]
    (told,) = faults(
        workers, [builder("b", "t", "u", secret="token"), builder("c", "t", "u"), builder("d", "u")]
    )[:1]
    for word in ("'t'", "use some ('b')", "use none ('c')", "cost nothing while idle"):
        assert word in told, told


def test_builders_that_use_no_secret_may_share_what_releases_none() -> None:
    assert faults([sandbox("s", STRANGERS)], [builder("b", "s"), builder("c", "s")]) == []


def test_a_secret_that_stays_on_the_master_makes_no_builder_a_user() -> None:
    git = steps.Git("git@x.example:y", sshPrivateKey=util.Secret("key"))
    builders = [builder("b", "s", factory=BuildFactory([git])), builder("c", "s")]
    assert faults([sandbox("s", STRANGERS)], builders) == []


@pytest.mark.parametrize("path", ["/build/token", "../token", "~/token", "/run/secrets"])
def test_a_path_outside_the_secrets_tmpfs_is_told(path: str) -> None:
    factory = BuildFactory()
    factory.addSteps([], withSecrets=[(path, util.Secret("token")), ("good", util.Secret("token"))])
    (told,) = faults([sandbox("t", TOKEN)], [builder("b", "t", factory=factory)])
    assert repr(path) in told
    assert "Put it under /run/secrets" in told
    assert faults([Worker("w", "p")], [builder("b", "w", factory=factory)]) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"properties": {"sandbox_policy": "huge"}}, "one of 'small', 'big'"),
        ({"properties": {"sandbox_policy": ""}}, "one of 'small', 'big'"),
        ({"properties": {"sandbox_policy": 7}}, "not a plain name"),
        ({"properties": {"sandbox_policy": util.Property("size")}}, "not a plain name"),
        ({"properties": {"sandbox_policy": util.Interpolate("big")}}, "not a plain name"),
        ({"defaultProperties": {"sandbox_policy": "big"}}, "put it into properties"),
    ],
)
def test_a_builder_picks_by_a_plain_name_of_the_list(more: dict[str, Any], said: str) -> None:
    (told,) = faults([sandbox("s", SIZES)], [builder("b", "s", **more)])
    assert told.startswith("builder 'b': ")
    assert said in told


def test_a_name_must_be_in_the_list_of_every_worker_of_the_builder() -> None:
    big = {"sandbox_policy": "big"}
    workers = [sandbox("s", SIZES), sandbox("t", STRANGERS)]
    (told,) = faults(workers, [builder("b", "s", "t", properties=big)])
    assert "worker 't'" in told
    assert "'big'" in told


def test_every_fault_is_told_at_once() -> None:
    factory = BuildFactory([steps.ShellCommand(command=["x", util.Secret("k")], name="deploy")])
    factory.addSteps([], withSecrets=[("/build/x", util.Secret("token"))])
    bad = builder("b", "s", "w", factory=factory, properties={"sandbox_policy": "huge"})
    told = faults([sandbox("s", SIZES), Worker("w", "p")], [bad])
    assert len(told) == 5, told


def test_unknown_workers_and_faulty_policies_are_told_as_they_are_and_no_more() -> None:
    (told,) = faults([sandbox("s", STRANGERS)], [builder("b", "s", "nobody", secret="token")])
    assert "unknown workers" in told


def test_an_idle_worker_is_no_fault() -> None:
    assert faults([sandbox("s", STRANGERS), sandbox("t", TRUSTED)], [builder("b", "s")]) == []


def test_a_property_that_is_not_the_builders_is_ignored_with_a_sentence() -> None:
    properties = Properties()
    assert ignored_choice("small", properties) is None
    properties.setProperty("sandbox_policy", "small", "Builder")
    assert ignored_choice("small", properties) is None
    properties.setProperty("sandbox_policy", "big" * 1000, "Change")
    told = ignored_choice("small", properties)
    assert told is not None
    assert "'Change' is ignored" in told
    assert "'small'" in told
    assert len(told) < 400
