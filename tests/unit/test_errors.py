"""Every error says what happened, and what to do where something can be done."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxworker import errors
from sandboxworker.errors import Actor, Fault, PolicyError, SandboxworkerError

ENGINE = "unix:///run/engine.sock"

#: An error, what its message must say, and what to do about it.
ERRORS: list[tuple[SandboxworkerError, list[str], str]] = [
    (PolicyError([Fault("memory", -1, "a size"), Fault("pids", 0, "a number")]),
     ["wrong policy", "memory=-1: a size", "pids=0: a number"], ""),
    (errors.SeccompError("mine.json", ["not JSON", "too large"]),
     ["'mine.json'", "not JSON", "too large"], "packaged profile"),
    (errors.ImageRefused("image", ["it declares volumes"]),
     ["'image'", "it declares volumes"], "Rebuild"),
    (errors.ImageNotFound("image", ENGINE), ["'image'", ENGINE], "Pull it"),
    (errors.EngineAddressError("ssh://x", "not spoken", "Give unix:///path"),
     ["'ssh://x'", "not spoken"], "Give unix:///path"),
    (errors.EngineUnreachable(ENGINE, "Connection refused"),
     [ENGINE, "Connection refused"], "DOCKER_HOST"),
    (errors.EngineTimeout(ENGINE, "start container", 1.5),
     [ENGINE, "'start container'", "1.5 s"], "engine's own log"),
    (errors.EngineRefused(ENGINE, "create container", 409, "name in use"),
     [ENGINE, "'create container'", "409", "name in use"], ""),
    (errors.EngineUnsupported(ENGINE, "Podman Engine 4.3.1"),
     [ENGINE, "Podman Engine 4.3.1"], "Docker Engine"),
    (errors.NotConformant(ENGINE, ["PidsLimit: asked for 1, got None"]),
     [ENGINE, "PidsLimit: asked for 1, got None"], "The build was not run"),
    (errors.DiskRefused(ENGINE, "it is on another machine"),
     [ENGINE, "it is on another machine"], "disk_backing='tmpfs'"),
    (errors.DiskUnbounded(ENGINE, "of 9 files it let 99 be made"),
     [ENGINE, "of 9 files it let 99 be made"], "disk_backing='tmpfs'"),
    (errors.DiskFull(ENGINE, "/var/lib/docker"), [ENGINE, "/var/lib/docker is full"], "Make room"),
    (errors.NoFreeUid(ENGINE, 32), [ENGINE, "32 tried"], "fewer sandboxes"),
    (errors.ExecFailed("s1", "no answer"), ["s1", "no answer"], ""),
    (errors.Hindered("s1"), ["s1", "withstands being killed"], ""),
    (errors.SandboxGone("s1", "destroying"), ["s1", "destroying"], ""),
    (errors.NotDestroyed("s1", "0123456789abcdef", ENGINE, "it hangs"),
     ["s1", ENGINE, "it hangs"], "docker rm -f 0123456789ab'"),
    (errors.SourceRefused("ext::x", "it is no URL", "Write it out"),
     ["'ext::x'", "it is no URL"], "Write it out"),
    (errors.SourceFailed("git fetch", "no such ref"), ["git fetch failed", "no such ref"], ""),
    (errors.StartTimeout("s1", ENGINE, "attach", 90),
     ["s1", ENGINE, "90 s", "'attach'"], "engine's own log"),
    (errors.OutOfMemory("s1"), ["s1", "used up the memory", "policy's memory"], ""),
    (errors.SocketsFull("s1", 300 << 20, 256 << 20),
     ["s1", "300 MiB", "256 MiB", "policy's memory"], ""),
    (errors.SocketsUnbounded(ENGINE), [ENGINE, "cgroup v1"], "sockets='unbounded'"),
    (errors.SocketsUnbounded(ENGINE, "refused it (403)"), [ENGINE, "refused it (403)"], "stats"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "said", "todo"), ERRORS, ids=lambda each: type(each).__name__)
def test_message_says_what_happened_and_what_to_do(
    error: SandboxworkerError, said: list[str], todo: str
) -> None:
    message = str(error)
    assert all(part in message for part in said)
    assert todo in error.resolution
    assert message.endswith(error.resolution)
    assert "\n" not in message


def every_error() -> set[type]:
    return {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, SandboxworkerError)
    }


def test_every_kind_of_error_is_tried_here() -> None:
    roots = {SandboxworkerError, errors.EngineError}
    assert {type(error) for error, *_ in ERRORS} == every_error() - roots


def test_engine_must_act_on_its_own_faults_and_the_operator_on_all_others() -> None:
    """A container that is not as asked is the operator's: a kernel or a policy has to change.

    What a build brings about while the engine is sound is the build's own.
    """
    engines = {type(error) for error, *_ in ERRORS if error.actor is Actor.ENGINE}
    operators = {type(error) for error, *_ in ERRORS if error.actor is Actor.OPERATOR}
    own = {kind for kind in every_error() if issubclass(kind, errors.EngineError)}
    builds = {type(error) for error, *_ in ERRORS if error.actor is Actor.BUILD}
    wrong = {errors.NotConformant, errors.EngineUnsupported}
    wrong |= {errors.DiskRefused, errors.DiskUnbounded, errors.SocketsUnbounded}
    assert builds == {errors.Hindered, errors.OutOfMemory, errors.SocketsFull}
    assert engines == own - {errors.EngineError} - builds - wrong
    assert operators == every_error() - own - {SandboxworkerError} | wrong


@pytest.mark.parametrize(
    ("error", "field", "value"),
    [
        (ERRORS[1][0], "profile", "mine.json"),
        (ERRORS[2][0], "reference", "image"),
        (ERRORS[6][0], "call", "start container"),
        (ERRORS[7][0], "status", 409),
        (ERRORS[7][0], "message", "name in use"),
        (ERRORS[9][0], "deviations", ("PidsLimit: asked for 1, got None",)),
    ],
)
def test_error_carries_fields_for_programs(
    error: SandboxworkerError, field: str, value: Any
) -> None:
    assert getattr(error, field) == value


def test_long_values_are_shortened() -> None:
    assert len(str(Fault("image", "x" * 10000, "a reference"))) < 150


def test_policy_error_does_not_show_what_variables_are_set_to() -> None:
    """An operator may well have put a token there; checkconfig's output is mailed around."""
    from sandboxworker.policy import SandboxPolicy

    faults = SandboxPolicy("image", env={"TOKEN": "hunter2", "BAD": 1}).faults()
    assert [fault.field for fault in faults] == ["env"]
    assert "hunter2" not in str(faults[0])
