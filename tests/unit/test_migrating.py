"""The arguments of Buildbot's workers: every one has its sentence, here and in the documents."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from buildbot.config.errors import ConfigErrors, capture_config_errors
from buildbot.worker.base import AbstractWorker, Worker
from buildbot.worker.docker import DockerLatentWorker
from buildbot.worker.kubernetes import KubeLatentWorker
from buildbot.worker.latent import AbstractLatentWorker
from buildbot.worker.local import LocalWorker

from sandboxworker import SandboxLatentWorker, SandboxPolicy
from sandboxworker.migrating import FIXED, POSITIONAL, REFUSED, SAME

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "migrating.md"
POLICY = SandboxPolicy("a/b:1")


def upstream_arguments(worker: type) -> set[str]:
    """What a worker class and its bases take, less the name and what is passed on as a whole."""
    return {
        name
        for base in worker.__mro__
        for method in ("checkConfig", "reconfigService")
        if method in vars(base) and base.__module__.startswith("buildbot.worker")
        for name, parameter in inspect.signature(vars(base)[method]).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and name not in ("self", "name")
    }


def refused(*positional: Any, **arguments: Any) -> list[str]:
    with pytest.raises(ConfigErrors) as caught, capture_config_errors(True):
        SandboxLatentWorker("w", *positional, **{"policy": POLICY, **arguments})
    return [error.removeprefix("SandboxLatentWorker 'w': ") for error in caught.value.errors]


def documented() -> dict[str, str]:
    """The rows ``| `argument` | sentence |`` of the document."""
    rows = (line.split(" | ") for line in DOCUMENT.read_text().splitlines() if line[:3] == "| `")
    return {row[0].strip("| `"): row[1].removesuffix(" |") for row in rows if len(row) == 2}


@pytest.mark.parametrize(
    "worker",
    [AbstractWorker, Worker, AbstractLatentWorker, LocalWorker, DockerLatentWorker,
     KubeLatentWorker],
)  # fmt: skip
def test_every_argument_of_buildbots_workers_is_accounted_for(worker: type) -> None:
    assert upstream_arguments(worker) <= {*SAME, *FIXED, *REFUSED}


def test_nothing_is_accounted_for_that_buildbot_does_not_have() -> None:
    workers = (DockerLatentWorker, KubeLatentWorker, LocalWorker)
    taken = set().union(*map(upstream_arguments, workers))
    assert {*SAME, *FIXED, *REFUSED} == taken


@pytest.mark.skipif(not DOCUMENT.is_file(), reason="the documents are not part of a wheel")
def test_the_document_says_the_same_sentences() -> None:
    said = documented()
    assert {name: said[name] for name in REFUSED} == REFUSED
    assert {name: said[name] for name in SAME} == dict.fromkeys(SAME, "the same")
    for name, (value, why) in FIXED.items():
        assert said[name] == f"always `{value!r}`; {why}"
    assert POSITIONAL in DOCUMENT.read_text()


def test_all_arguments_that_are_not_taken_are_told_at_once_and_their_values_never() -> None:
    told = refused(**dict.fromkeys(REFUSED, "a-value-5e1f"))
    assert sorted(told) == sorted(f"{name}=: {why}" for name, why in REFUSED.items())
    assert "a-value-5e1f" not in "".join(told)


def test_a_password_in_its_old_place_is_told_and_not_shown() -> None:
    assert refused("a-value-5e1f") == [POSITIONAL]
    assert refused("a-value-5e1f", "unix:///x", image="y") == [
        POSITIONAL,
        f"image=: {REFUSED['image']}",
    ]


def test_an_argument_that_nobody_knows_is_a_fault_too() -> None:
    (told,) = refused(memory="1g")
    assert told.startswith("memory=: no such argument")


def test_what_is_the_same_is_taken() -> None:
    SandboxLatentWorker(
        "w", policy=POLICY, properties={"a": 1}, locks=[], notify_on_missing=[], machine_name=None
    )
