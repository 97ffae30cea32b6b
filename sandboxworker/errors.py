"""What can go wrong, worded once, and who must act.

Every error says what happened (``brief``), what is known about it (``details``)
and what to do next (``resolution``); ``actor`` names whose move it is.
Errors carry fields; the sentences are made here and nowhere else.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import attrs


class Actor(enum.Enum):
    """Whose move it is after an error."""

    OPERATOR = "operator"
    BUILD = "build"
    ENGINE = "engine"


class SandboxworkerError(Exception):
    """The root of the tree: one line for people, fields for programs."""

    actor = Actor.OPERATOR

    def __init__(self, brief: str, *, details: str = "", resolution: str = "") -> None:
        super().__init__(brief, details, resolution)
        self.brief = brief
        self.details = details
        self.resolution = resolution

    def __str__(self) -> str:
        sentence = f"{self.brief}: {self.details}" if self.details else self.brief
        return f"{sentence}. {self.resolution}" if self.resolution else sentence


@attrs.frozen
class Fault:
    """One wrong thing in a policy: the field, what it was set to, what is allowed."""

    field: str
    value: object
    allowed: str

    def __str__(self) -> str:
        return f"{self.field}={_shown(self.value)}: {self.allowed}"


def _shown(value: object) -> str:
    # Of a dictionary the names are enough: a value may be a secret that somebody put there.
    text = repr(list(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= 80 else text[:77] + "..."


class PolicyError(SandboxworkerError):
    """A policy that cannot be enforced as written; carries every fault at once."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("wrong policy", details="; ".join(map(str, self.faults)))


class SeccompError(SandboxworkerError):
    """A seccomp profile that cannot be read, or would not protect."""

    def __init__(self, profile: str, faults: Iterable[str]) -> None:
        self.profile = profile
        self.faults = tuple(faults)
        super().__init__(
            f"seccomp profile {profile!r} cannot be used",
            details="; ".join(self.faults),
            resolution="Name a packaged profile ('build', 'strict') or mend the file",
        )


class ImageRefused(SandboxworkerError):
    """An image whose own settings would open the sandbox."""

    def __init__(self, reference: str, faults: Iterable[str]) -> None:
        self.reference = reference
        self.faults = tuple(faults)
        super().__init__(
            f"image {reference!r} is refused",
            details="; ".join(self.faults),
            resolution="Rebuild the image without them",
        )


class ImageNotFound(SandboxworkerError):
    """The engine does not have the image."""

    def __init__(self, reference: str, engine: str) -> None:
        self.reference = reference
        super().__init__(
            f"image {reference!r} is not on the engine {engine}",
            resolution=(
                "Pull it, or make one with 'sandboxworker image build'; "
                "sandboxworker never pulls by itself"
            ),
        )


class EngineAddressError(SandboxworkerError):
    """An engine address that is wrong, or that would be unsafe to use."""

    def __init__(self, url: str, problem: str, resolution: str) -> None:
        super().__init__(
            f"engine address {url!r} cannot be used", details=problem, resolution=resolution
        )


class EngineError(SandboxworkerError):
    """The container engine could not, or would not, do what was asked."""

    actor = Actor.ENGINE


class EngineUnreachable(EngineError):
    """Nothing answers at the engine's address."""

    def __init__(self, engine: str, reason: str) -> None:
        super().__init__(
            f"container engine {engine} does not answer",
            details=reason,
            resolution="Start it, or set DOCKER_HOST or engine= to one that runs",
        )


class EngineUnsupported(EngineError):
    """An engine that answers, and cannot do what a sandbox needs."""

    actor = Actor.OPERATOR

    def __init__(self, engine: str, product: str) -> None:
        self.product = product
        super().__init__(
            f"container engine {engine} is {product}, which cannot apply a sandbox as asked",
            details="its Docker-compatible API refuses the limits of the writable places",
            resolution="Use Docker Engine; docs/engines.md lists what is missing",
        )


class EngineTimeout(EngineError):
    """An engine call passed its deadline; whether it took effect is unknown."""

    def __init__(self, engine: str, call: str, deadline: float) -> None:
        self.call = call
        super().__init__(
            f"container engine {engine} did not answer {call!r} within {deadline:g} s",
            resolution="Look at the engine's own log; a broken runtime makes such calls hang",
        )


class StartTimeout(EngineError):
    """A sandbox was not ready in time."""

    def __init__(self, sandbox: str, engine: str, call: str, deadline: float) -> None:
        self.call = call
        super().__init__(
            f"sandbox {sandbox} was not ready on {engine} within {deadline:g} s",
            details=f"the engine was at {call!r}",
            resolution="Look at the engine's own log",
        )


class EngineRefused(EngineError):
    """The engine answered a call with an error.

    ``status`` is the HTTP status of its answer.
    """

    def __init__(self, engine: str, call: str, status: int, message: str) -> None:
        self.call = call
        self.status = status
        self.message = message
        super().__init__(f"container engine {engine} refused {call!r} ({status})", details=message)


class NotConformant(EngineError):
    """The engine did not apply what was asked for; the sandbox was not used."""

    actor = Actor.OPERATOR

    def __init__(self, engine: str, deviations: Iterable[str]) -> None:
        self.deviations = tuple(deviations)
        super().__init__(
            f"container engine {engine} does not apply the sandbox as asked",
            details="; ".join(self.deviations),
            resolution=(
                "The build was not run. Give the kernel or engine what it lacks, "
                "or change the policy field"
            ),
        )


class SocketsUnbounded(EngineError):
    """What waits in a sandbox's sockets cannot be bounded by its memory from here.

    With cgroup v1 the kernel's limit for it is root's to set, on that host; with v2 somebody has to
    tell how much it is. ``untold``: why the engine, which could, does not; empty with v1.
    """

    actor = Actor.OPERATOR

    def __init__(self, engine: str, untold: str = "") -> None:
        if untold:
            why = f"no figures of its memory: {untold}"
            cure = (
                "Let this master have the engine's stats of a container (a proxy before it may "
                "refuse them), or run it on the engine's host"
            )
        else:
            why = "its host has cgroup v1, and this master is not root on that host"
            cure = (
                "Boot the host with cgroup v2 (systemd.unified_cgroup_hierarchy=1), or run the "
                "master as root there"
            )
        super().__init__(
            f"container engine {engine} does not bound what waits in a sandbox's sockets",
            details=why,
            resolution=f"{cure}; sockets='unbounded' in the policy takes it as it is",
        )


class DiskRefused(EngineError):
    """``disk_backing="disk"`` cannot be had, or its limit not be enforced, with this engine."""

    actor = Actor.OPERATOR

    def __init__(self, engine: str, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"no workspace on disk with the container engine {engine}",
            details=reason,
            resolution=(
                "It takes a master that is root on the engine's own host, with loop devices and "
                "e2fsprogs; else set disk_backing='tmpfs' in the policy"
            ),
        )


class DiskUnbounded(DiskRefused):
    """A workspace on disk took more bytes, or more files, than it was made for."""


class DiskFull(EngineError):
    """The engine's host has no room for one more workspace."""

    def __init__(self, engine: str, folder: str) -> None:
        super().__init__(
            f"no room for a workspace on disk with the container engine {engine}",
            details=f"{folder} is full",
            resolution="Make room there, run fewer sandboxes at once, or set a smaller disk=",
        )


class NoFreeUid(EngineError):
    """Every uid of the engine's range belongs to a living sandbox."""

    def __init__(self, engine: str, tried: int) -> None:
        super().__init__(
            f"no free uid for a sandbox on {engine}",
            details=f"{tried} tried",
            resolution="Run fewer sandboxes at once on this engine",
        )


class ExecFailed(EngineError):
    """A command could not be started in the sandbox, or its end is unknown."""

    def __init__(self, sandbox: str, problem: str) -> None:
        super().__init__(f"sandbox {sandbox} cannot run the command", details=problem)


class Hindered(ExecFailed):
    """Commands neither start nor end in a sandbox though the engine answers: its build's doing."""

    actor = Actor.BUILD

    def __init__(self, sandbox: str) -> None:
        super().__init__(sandbox, "what the build runs hinders it and withstands being killed")


class SandboxGone(EngineError):
    """The sandbox is not there (any more) to run a command in."""

    def __init__(self, sandbox: str, state: str) -> None:
        super().__init__(f"sandbox {sandbox} is {state}")


class OutOfMemory(SandboxGone):
    """The kernel killed the keeper for the memory limit: what its build keeps is no process's."""

    actor = Actor.BUILD

    def __init__(self, sandbox: str, how: str = "used up the memory, and kept it") -> None:
        super().__init__(sandbox, f"ended: its build {how}; see the policy's memory")


class SocketsFull(OutOfMemory):
    """What waits in a build's sockets went past its memory, and the kernel did not stop it.

    ``waiting``, ``limit``: bytes.
    """

    def __init__(self, sandbox: str, waiting: int, limit: int) -> None:
        self.waiting = waiting
        self.limit = limit
        super().__init__(
            sandbox,
            f"let memory pile up in sockets, {waiting >> 20} MiB where it may use "
            f"{limit >> 20} MiB",
        )


class NotDestroyed(EngineError):
    """A container that the engine did not confirm to be gone in time."""

    def __init__(self, sandbox: str, container: str, engine: str, reason: str) -> None:
        super().__init__(
            f"sandbox {sandbox} is not confirmed gone from {engine}",
            details=reason,
            resolution=(
                f"Its keeper ends by itself; if the container stays, "
                f"remove it with 'docker rm -f {container[:12]}'"
            ),
        )


class SourceRefused(SandboxworkerError):
    """A repository that is not fetched for a build."""

    def __init__(self, url: str, problem: str, resolution: str) -> None:
        super().__init__(f"source {url!r} is refused", details=problem, resolution=resolution)


class SourceFailed(SandboxworkerError):
    """git could not do something on the master's side, or the sandbox could not take it."""

    def __init__(self, doing: str, reason: str) -> None:
        super().__init__(f"{doing} failed", details=reason)
