"""Pools of workers, and the presets of policies."""

from __future__ import annotations

from typing import Any

import pytest
from buildbot.config.errors import ConfigErrors, capture_config_errors

from sandboxworker import SandboxLatentWorker, SandboxPolicy, sandbox_pool
from sandboxworker.engine.address import EngineAddress

IMAGE = "sandboxworker/debian:bookworm"


def test_pool_has_that_many_workers_and_their_names() -> None:
    policy = SandboxPolicy.untrusted(IMAGE)
    pool = sandbox_pool("pr", 3, policy=policy, properties={"a": 1})
    assert pool.names == ["pr-1", "pr-2", "pr-3"]
    assert [worker.name for worker in pool.workers] == pool.names
    assert all(worker.properties.getProperty("a") == 1 for worker in pool.workers)


@pytest.mark.parametrize("count", [0, -1, "3", 1.5, True, None])
def test_wrong_count_is_a_configuration_error(count: object) -> None:
    with pytest.raises(ConfigErrors, match="a whole number from 1"), capture_config_errors(True):
        sandbox_pool("pr", count, policy=SandboxPolicy(IMAGE))  # type: ignore[arg-type]


def test_workers_are_dealt_to_the_engines_in_turn() -> None:
    one, other = EngineAddress("unix:///run/one"), "unix:///run/other"
    pool = sandbox_pool("pr", 3, SandboxPolicy(IMAGE), engines=[one, other])
    engines = [worker._config_kwargs["engine"] for worker in pool.workers]
    assert engines == [one, other, one]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"engines": ["unix:///a"], "engine": "unix:///b"}, "give one of them"),
        ({"engines": []}, "a list of engines"),
        ({"engines": "unix:///a"}, "a list of engines"),
        ({"engines": ["unix:///a", "unix:///b", "unix:///c"]}, "fewer workers than"),
        ({"engines": ["unix:///a", "nonsense"]}, "nonsense"),
    ],
)
def test_wrong_list_of_engines_is_a_configuration_error(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigErrors, match=said), capture_config_errors(True):
        sandbox_pool("pr", 2, SandboxPolicy(IMAGE), **arguments)


def test_fault_of_the_policy_is_told_of_each_worker() -> None:
    with pytest.raises(ConfigErrors) as caught, capture_config_errors(True):
        sandbox_pool("pr", 2, policy=SandboxPolicy(IMAGE, pids=1))
    assert [error.split("'")[1] for error in caught.value.errors] == ["pr-1", "pr-2"]


def test_untrusted_policy_is_valid_and_releases_nothing() -> None:
    policy = SandboxPolicy.untrusted(IMAGE, memory="2g")
    assert policy.faults() == ()
    assert not policy.releases("token")
    assert policy.memory == 2 * 1024**3
    assert policy.max_runtime < SandboxPolicy(IMAGE).max_runtime


def test_untrusted_policy_refuses_to_be_given_secrets() -> None:
    (fault,) = SandboxPolicy.untrusted(IMAGE, secrets=["token"]).faults()
    assert "an untrusted build gets no secret" in str(fault)


def test_trusted_policy_is_valid_and_releases_secrets() -> None:
    policy = SandboxPolicy.trusted(IMAGE)
    assert policy.faults() == ()
    assert policy.releases("token")
    assert not SandboxPolicy.trusted(IMAGE, secrets=["other"]).releases("token")


@pytest.mark.parametrize("standby", [-1, True, "3", 1.5, 513])
def test_wrong_number_of_sandboxes_kept_ready_is_a_configuration_error(standby: object) -> None:
    with pytest.raises(ConfigErrors, match=r"standby=.*from 0 to 512"), capture_config_errors(True):
        sandbox_pool("pr", 1, policy=SandboxPolicy(IMAGE), standby=standby)


def test_workspace_on_disk_of_another_machine_is_a_configuration_fault() -> None:
    policy = SandboxPolicy("image", disk_backing="disk")
    with pytest.raises(ConfigErrors, match="another machine"), capture_config_errors(True):
        SandboxLatentWorker("w", policy=policy, engine="ssh://ci@build.example.org")
    SandboxLatentWorker("w", policy=policy, engine="unix:///run/engine.sock")
