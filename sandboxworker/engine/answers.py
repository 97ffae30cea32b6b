"""What Docker Engine's answers say, in our words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sandboxworker.engine.interface import Entry, Host, Listed, Usage
from sandboxworker.spec import ImageFacts


def image_facts(reference: str, inspected: Mapping[str, Any]) -> ImageFacts:
    """The facts in an image inspect answer."""
    config = inspected.get("Config") or {}
    digests = inspected.get("RepoDigests") or ()
    return ImageFacts(
        reference=reference,
        id=inspected["Id"],
        digest=digests[0].partition("@")[2] if digests else None,
        env=tuple(config.get("Env") or ()),
        volumes=tuple(sorted(config.get("Volumes") or ())),
        os=inspected.get("Os") or "linux",
        architecture=inspected.get("Architecture") or "",
    )


#: Bits of a mode in a path's stat (Go's ``io/fs.FileMode``).
_DIRECTORY, _LINK = 1 << 31, 1 << 27


def entry_of(stat: Mapping[str, Any]) -> Entry:
    """The facts in a path's stat (Docker Engine API, ``ContainerArchiveInfo``)."""
    mode = int(stat["mode"])
    link = str(stat.get("linkTarget") or "?") if mode & _LINK else ""
    return Entry(bool(mode & _DIRECTORY), link)


def host_facts(info: Mapping[str, Any]) -> Host:
    """The facts in an info answer."""
    return Host(
        folder=info.get("DockerRootDir") or "",
        processors=info.get("NCPU") or 0 if info.get("CPUSet") else 0,
        lsm=_has_option(info, "name=apparmor"),
        selinux=_has_option(info, "name=selinux"),
        counts_sockets=str(info.get("CgroupVersion")) == "2",
    )


def _has_option(info: Mapping[str, Any], name: str) -> bool:
    return any(name in option for option in info.get("SecurityOptions") or ())


def unsupported(version: Mapping[str, Any]) -> str | None:
    """The product in a version answer, if it is one that cannot apply a sandbox."""
    for component in version.get("Components") or ():
        if component.get("Name") == "Podman Engine":
            return f"Podman Engine {component.get('Version', '')}".strip()
    return None


def usage_of(stats: Mapping[str, Any]) -> Usage:
    """The figures in a stats answer; with cgroup v2 engines leave the peak out, or give 0."""
    memory = stats.get("memory_stats") or {}
    cpu = (stats.get("cpu_stats") or {}).get("cpu_usage") or {}
    total = cpu.get("total_usage")
    return Usage(
        memory_peak=memory.get("max_usage") or None,
        cpu_seconds=None if total is None else round(total / 1e9, 3),
        pids=(stats.get("pids_stats") or {}).get("current"),
    )


def memory_of(stats: Mapping[str, Any]) -> int | None:
    """Bytes that a container has now, by a stats answer; None where it tells none."""
    used = (stats.get("memory_stats") or {}).get("usage")
    return None if used is None else int(used)


def listed(entry: Mapping[str, Any]) -> Listed:
    """One entry of a list of containers."""
    names = entry.get("Names") or [""]
    return Listed(
        id=entry["Id"],
        name=names[0].lstrip("/"),
        labels=entry.get("Labels") or {},
        state=entry.get("State") or "",
    )


#: Seconds between the kernel's last kill for memory and the end of a container that it brought.
OOM_TO_END = 5.0


def memory_ended_it(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a container's ``oom`` events came right before its end, or before now."""
    times: dict[str, list[float]] = {"oom": [], "die": []}
    for event in events:
        times.setdefault(str(event.get("Action")), []).append(event.get("timeNano", 0) / 1e9)
    if not times["oom"]:
        return False
    return not times["die"] or times["die"][-1] - times["oom"][-1] <= OOM_TO_END
