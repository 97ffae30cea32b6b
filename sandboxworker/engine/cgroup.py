"""What the kernel knows of a container on this machine and the engine does not tell.

With cgroup v2 engines leave the peak of memory out of their figures; the kernel has it in
``memory.peak`` (since Linux 5.19).
It is read outside of the container: no program of the image has a say in it.
"""

from __future__ import annotations

from pathlib import Path

_V2 = "0::"


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


def _group(cgroups: str) -> str:
    """The path of the unified hierarchy in the text of ``/proc/PID/cgroup``; empty if none."""
    lines = [line for line in cgroups.splitlines() if line.startswith(_V2)]
    return lines[0].removeprefix(_V2).lstrip("/") if lines else ""
