"""What the kernel of this machine can do for a container and the engine does not.

With cgroup v1 what waits in sockets is no part of the memory limit; the limit for it,
``memory.kmem.tcp.limit_in_bytes``, is for UDP as well, in spite of its name.
Docker Engine 20.10 takes it (``KernelMemoryTCP``) and tells it back, but runc has ignored it since
1.0: so it is written here.

With cgroup v2 it is part of the memory, and Linux lets it pass that limit as well: since 6.1 what
arrives is charged as an atomic allocation, which is never refused.

With cgroup v2 engines leave the peak of memory out of their figures; the kernel has it in
``memory.peak`` (since Linux 5.19).
It is read outside of the container: no program of the image has a say in it.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs

_V2 = "0::"
_MEMORY_V1 = re.compile(r"^\d+:(?:[^:\n]*,)?memory(?:,[^:\n]*)?:/(.*)$", re.MULTILINE)
_HIERARCHY_V1 = "sys/fs/cgroup/memory"
_SOCKETS_V1 = "memory.kmem.tcp"


@attrs.frozen
class FileGauge:
    """An `interface.SocketGauge` that reads one of the kernel's files."""

    file: Path
    delay: float = 0.0

    def __call__(self) -> int:
        return int(self.file.read_text())

    def close(self) -> None:
        """Nothing is open between two looks."""


def memory_peak(container: str, pid: int, root: Path = Path("/")) -> int | None:
    """Bytes at the peak of a container whose keeper has this pid here; None where that is unknown.

    ``container``: the engine's id, which must stand in the cgroup's path: an engine behind a local
    socket may have its processes on another machine, where the pid is somebody else's.
    ``root``: below which ``proc`` and ``sys`` are.
    """
    try:
        path = _group((root / f"proc/{pid}/cgroup").read_text())
        if container not in path:
            return None
        return int((root / f"sys/fs/cgroup/{path}/memory.peak").read_text())
    except (OSError, ValueError):
        return None


def bound_sockets(container: str, pid: int, limit: int, root: Path = Path("/")) -> FileGauge | None:
    """Bound what waits in a container's sockets from now on, by ``limit`` bytes.

    What tells how many bytes count; None where nobody here can.
    See `memory_peak` for the arguments.
    With cgroup v1 it takes root's rights on this machine, and is for sockets that are made later.
    """
    try:
        told = (root / f"proc/{pid}/cgroup").read_text()
        found = _MEMORY_V1.search(told)
        path = _group(told) if found is None else found[1]
        if container not in path:
            return None
        if found is not None:
            return _bounded_v1(root / _HIERARCHY_V1 / path, limit)
        current = root / f"sys/fs/cgroup/{path}/memory.current"
        if not current.is_file():
            return None
    except (OSError, ValueError):
        return None
    return FileGauge(current)


def _bounded_v1(group: Path, limit: int) -> FileGauge | None:
    file = group / f"{_SOCKETS_V1}.limit_in_bytes"
    file.write_text(str(limit))
    if int(file.read_text()) > limit:
        return None
    return FileGauge(group / f"{_SOCKETS_V1}.usage_in_bytes")


def _group(cgroups: str) -> str:
    """The path of the unified hierarchy in the text of ``/proc/PID/cgroup``; empty if none."""
    lines = [line for line in cgroups.splitlines() if line.startswith(_V2)]
    return lines[0].removeprefix(_V2).lstrip("/") if lines else ""
