"""Configurations without ``c['protocols']``."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from buildbot.config.errors import capture_config_errors
from buildbot.config.master import MasterConfig

from sandboxworker import SandboxLatentWorker, SandboxPolicy
from sandboxworker.portless import allow_no_protocols


class _Portless:
    name = "portless"


class _Wired:
    name = "wired"


@pytest.fixture
def _patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's own check, allowed for `_Portless`; as it was afterwards."""
    monkeypatch.setattr(MasterConfig, "check_ports", _upstream())
    allow_no_protocols(lambda worker: isinstance(worker, _Portless))


def _upstream() -> Any:
    """``check_ports`` as Buildbot has it, whatever this process has done to it."""
    found = importlib.util.find_spec("buildbot.config.master")
    assert found is not None
    assert found.loader is not None
    fresh = importlib.util.module_from_spec(found)
    found.loader.exec_module(fresh)
    return fresh.MasterConfig.check_ports


def faults(workers: list[Any], protocols: dict[str, Any]) -> list[str]:
    config = MasterConfig()
    config.workers = workers
    config.protocols = protocols
    with capture_config_errors() as errors:
        config.check_ports()
    return list(errors.errors)


@pytest.mark.usefixtures("_patched")
@pytest.mark.parametrize(
    ("workers", "protocols"),
    [
        ([], {}),
        ([_Portless()], {}),
        ([_Portless(), _Portless()], {}),
        ([_Portless()], {"null": {}}),
        ([_Portless(), _Wired()], {"pb": {"port": 9989}}),
        ([_Wired()], {"pb": {"port": 9989}}),
    ],
)
def test_what_works_without_a_port_or_with_one_is_accepted(
    workers: list[Any], protocols: dict[str, Any]
) -> None:
    assert faults(workers, protocols) == []


@pytest.mark.usefixtures("_patched")
@pytest.mark.parametrize("workers", [[_Wired()], [_Portless(), _Wired()], [_Wired(), _Portless()]])
def test_one_worker_that_needs_a_port_is_enough_to_refuse(workers: list[Any]) -> None:
    (told,) = faults(workers, {})
    assert "c['protocols']" in told


@pytest.mark.usefixtures("_patched")
def test_ports_that_are_named_are_still_checked() -> None:
    (told,) = faults([_Portless()], {"pb": {"port": 9989}, "msgpack": {"port": 9989}})
    assert "duplicated" in told


def test_the_worker_has_buildbot_accept_its_own_kind_and_no_other() -> None:
    own = SandboxLatentWorker("w", policy=SandboxPolicy("a/b:1"))
    assert faults([own], {}) == []
    assert faults([own, _Wired()], {}) != []
