"""The OCI runtime that the tests' sandboxes are run under, and what differs there.

``SANDBOXWORKER_RUNTIME=runsc`` has every sandbox of the contract and integration suites run under
gVisor; a test that it fails by gVisor's own nature says `differs` and is skipped with the reason,
which docs/engines.md has as well.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from sandboxworker import policy
from sandboxworker.kernelview import unseen_by

#: None for the engine's own.
RUNTIME = os.environ.get("SANDBOXWORKER_RUNTIME") or None
HAS_OWN_KERNEL = bool(unseen_by(RUNTIME))

#: What gVisor needs for itself: the least of these fields that a policy of the tests gets there.
LEAST = {"memory": "256m", "pids": 1024}

#: What tests see otherwise under gVisor, as docs/engines.md has it.
DIFFERENCES = {
    "environment": "a command that is given no environment sees the container's own",
    "bomb": "a fork bomb ends the whole sandbox, as gVisor gives up where it gets no process",
    "inodes": "files are not counted",
    "keeper": "the keeper's environment and memory can be read, and hold nothing",
    "kernel": "of its own kernel it shows no cgroup, no limits, no `NoNewPrivs`",
    "memory": "exceeded, the whole sandbox ends",
    "sockets": "what waits in them is part of its memory whatever the host counts",
    "statx": "GNU `ls NAME` and `stat` fail with Invalid argument",
    "pipes": "the pipe of another process cannot be written to through `/proc/PID/fd`",
    "terminal": "`tty` does not find the name of a terminal",
}


def SandboxPolicy(image: str, **fields: Any) -> policy.SandboxPolicy:
    """A policy under the chosen runtime, with room for what a kernel of its own takes."""
    wanted = policy.SandboxPolicy(image, **{"runtime": RUNTIME, **fields})
    if not unseen_by(wanted.runtime) or wanted.faults():
        return wanted
    room = policy.SandboxPolicy(image, **LEAST)
    raised = {name: max(getattr(wanted, name), getattr(room, name)) for name in LEAST}
    return policy.SandboxPolicy(image, **{"runtime": RUNTIME, **fields, **raised})


def differs(name: str) -> pytest.MarkDecorator:
    """Skips a test, or one of its cases, under gVisor, with the reason of that name."""
    return pytest.mark.skipif(HAS_OWN_KERNEL, reason=f"gVisor: {DIFFERENCES[name]}")
