"""How a build in a sandbox ended, in one word, and where it failed by itself, by what.

Pure; the words are those of the build's properties ``sandbox_outcome`` and ``sandbox_cause`` and of
the audit log, and stay.
``docs/outcomes.md`` says what each means for the build's result.
"""

from __future__ import annotations

import enum

import attrs

from sandboxworker.errors import Actor


class Outcome(enum.Enum):
    """How a build in a sandbox ended."""

    #: Its steps ran as they were meant to, with or without warnings.
    COMPLETED = "completed"
    #: By its own doing; a `Cause` says which.
    FAILED = "failed"
    #: Somebody stopped it, or the master took it back (a shutdown, a worker that was removed).
    STOPPED = "stopped"
    #: Policy, image or conformance refuse it a sandbox, or a step the source that it asked for.
    REFUSED = "refused"
    #: A step asked for a secret that the policy does not release.
    SECRET_REFUSED = "secret-refused"  # noqa: S105
    #: It got no sandbox: the engine could not make one.
    ENGINE_ERROR = "engine-error"
    #: Its sandbox ended without being asked to, and not by the build's doing.
    LOST = "lost"

    @property
    def is_fault(self) -> bool:
        """Whether another attempt may help: the infrastructure's fault, not the build's."""
        return self in (Outcome.ENGINE_ERROR, Outcome.LOST)


class Cause(enum.Enum):
    """By what a build failed that failed by its own doing."""

    #: A command's exit code.
    EXIT = "exit"
    #: A signal that ended a command.
    SIGNAL = "signal"
    #: ``memory``: the kernel killed a process, or what waits in sockets went past it.
    MEMORY = "memory"
    #: ``pids``: a process or thread was refused.
    PIDS = "pids"
    #: ``disk``, ``disk_inodes``, ``tmp`` or ``shm`` were full.
    DISK = "disk"
    #: ``max_output`` or ``max_step_output``: too much log.
    OUTPUT = "output"
    #: ``max_upload`` or ``max_upload_files``: too much taken out.
    UPLOAD = "upload"
    #: ``max_runtime`` was over.
    DEADLINE = "deadline"
    #: What it ran withstood being killed.
    HINDERED = "hindered"
    #: A step failed on the master's side.
    STEP = "step"


#: The policy's fields by the cause that they are.
LIMITS = {
    "memory": Cause.MEMORY,
    "pids": Cause.PIDS,
    "disk": Cause.DISK,
    "disk_inodes": Cause.DISK,
    "tmp": Cause.DISK,
    "shm": Cause.DISK,
    "max_output": Cause.OUTPUT,
    "max_step_output": Cause.OUTPUT,
    "max_upload": Cause.UPLOAD,
    "max_upload_files": Cause.UPLOAD,
    "max_runtime": Cause.DEADLINE,
}

_COMPLETED = frozenset({"success", "warnings", "skipped"})


@attrs.frozen
class Known:
    """What is known when a build's last step is over.

    ``result``: Buildbot's own word for it;
    ``refused_by``: who must act since no sandbox could be started, None where one was;
    ``is_lost``: its sandbox ended, or never came, by no doing of the build's;
    ``withheld``: what was kept from a step: ``secret``, ``source``;
    ``cause``: what is known of why a command failed, None where none did.
    """

    result: str
    refused_by: Actor | None = None
    is_lost: bool = False
    withheld: frozenset[str] = frozenset()
    cause: Cause | None = None


@attrs.frozen
class Verdict:
    """The word, and for a failure the cause."""

    outcome: Outcome
    cause: Cause | None = None


def judge(known: Known) -> Verdict:
    """What became of a build."""
    if known.refused_by is not None:
        by_engine = known.refused_by is Actor.ENGINE
        return Verdict(Outcome.ENGINE_ERROR if by_engine else Outcome.REFUSED)
    if known.result in _COMPLETED:
        # Also where the sandbox went after the last step.
        return Verdict(Outcome.COMPLETED)
    if known.result == "cancelled":
        return Verdict(Outcome.STOPPED)
    if known.is_lost:
        return Verdict(Outcome.LOST)
    if known.result == "retry":
        return Verdict(Outcome.STOPPED)
    if known.withheld and known.cause not in LIMITS.values():
        is_secret = "secret" in known.withheld
        return Verdict(Outcome.SECRET_REFUSED if is_secret else Outcome.REFUSED)
    return Verdict(Outcome.FAILED, known.cause or Cause.STEP)
