"""What is built: honest and hostile builds, and how each has to end."""

from __future__ import annotations

import enum

import attrs
from buildbot.plugins import steps

from sandboxworker import SandboxPolicies, SandboxPolicy

IMAGE = "sandboxworker/busybox:latest"

#: The step to which a deed is done, and what its process is known by.
VICTIM, SLEEP = "victim", "sleep 62"

_SIZES = {
    "disk": "8m",
    "disk_inodes": 1000,
    "memory": "48m",
    "pids": 48,
    "tmp": "1m",
    "shm": "1m",
    "max_output": "512k",
    "max_step_output": "256k",
}
POLICIES = SandboxPolicies(
    {
        "plain": SandboxPolicy(IMAGE, max_runtime="10m", **_SIZES),
        "brief": SandboxPolicy(IMAGE, max_runtime=4, **_SIZES),
    },
    default="plain",
)


class Deed(enum.Enum):
    """What is done to a build from outside, when its step `VICTIM` runs."""

    NONE = "none"
    STOP = "the Stop button"
    KILL = "its process is killed"
    REMOVE = "its sandbox is removed, at its first try"


@attrs.frozen
class Kind:
    """One kind of build.

    ``commands``: a step each; where something is done to it, there is but one.
    ``result``: Buildbot's word for how it has to end; ``ended``: ours (docs/outcomes.md), outcome
    and cause; ``share``: how often it is chosen.
    """

    name: str
    commands: tuple[str, ...]
    result: str
    ended: str
    share: int
    deed: Deed = Deed.NONE
    policy: str = "plain"

    def steps(self) -> list[object]:
        return [
            steps.ShellCommand(
                command=command,
                name=f"step{number}" if self.deed is Deed.NONE else VICTIM,
                logEnviron=False,
                haltOnFailure=True,
            )
            for number, command in enumerate(self.commands)
        ]


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "honest",
            ("echo fine > file", "cat file && test $(cat file) = fine"),
            "success",
            "completed",
            40,
        ),
        Kind("longer", ("sleep 1", "seq 1 2000", "true"), "success", "completed", 14),
        Kind("fails", ("echo no >&2; exit 3",), "failure", "failed: exit", 10),
        Kind("memory", ("tail -c 1000m /dev/zero",), "failure", "failed: memory", 5),
        Kind("forks", ("b() { b | b & }; b; wait; sleep 1; exit 1",), "failure", "failed: pids", 4),
        Kind("floods", ("yes",), "failure", "failed: output", 5),
        Kind("fills", ("dd if=/dev/zero of=big bs=64k",), "failure", "failed: disk", 5),
        Kind(
            "deadline",
            ("trap '' TERM; sleep 63",),
            "failure",
            "failed: deadline",
            4,
            policy="brief",
        ),
        Kind("kills", ("kill -9 -1", "true"), "failure", "failed: signal", 4),
        Kind("stopped", (f"trap '' TERM; {SLEEP}",), "cancelled", "stopped", 4, Deed.STOP),
        Kind("killed", (SLEEP,), "failure", "failed: signal", 5, Deed.KILL),
        # Long enough to be removed at its first try, and to end at its second.
        Kind("removed", ("sleep 3",), "success", "completed", 5, Deed.REMOVE),
    )
}
