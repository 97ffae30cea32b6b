"""Looks at the host from outside while hostile programs run: what must not have changed.

Everything that it looks at belongs to this engine or to the kernel's settings, so that other
engines and other tests may work beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SETTINGS = (
    "kernel/core_pattern", "kernel/hostname", "kernel/modprobe", "kernel/randomize_va_space",
    "kernel/printk", "kernel/panic", "vm/overcommit_memory", "fs/suid_dumpable",
    "net/ipv4/ip_forward", "fs/binfmt_misc/status",
)  # fmt: skip
_HOST_FILES = ("/etc/passwd", "/etc/shadow", "/etc/ld.so.preload", "/etc/crontab", "/bin/sh")
_LIMITS = (
    "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "pids.max", "cpu.cfs_quota_us",
    "cpuset.cpus", "memory.max", "memory.swap.max", "cpu.max",
)  # fmt: skip


class Bait:
    """Listeners of the host's that no sandbox may reach: on its loopback and by abstract name."""

    def __init__(self) -> None:
        self.abstract = f"bait-{secrets.token_hex(6)}"
        self._sockets = [
            self._listen(socket.AF_INET, ("127.0.0.1", 0)),
            self._listen(socket.AF_INET6, ("::1", 0)),
            self._listen(socket.AF_UNIX, f"\0{self.abstract}"),
            self._listen(socket.AF_INET, ("0.0.0.0", 0)),
        ]

    @staticmethod
    def _listen(family: int, address: Any) -> socket.socket:
        bait = socket.socket(family)
        bait.bind(address)
        bait.listen()
        bait.setblocking(False)
        return bait

    def ports(self) -> tuple[int, int]:
        """Of IPv4 and of IPv6."""
        return self._sockets[0].getsockname()[1], self._sockets[1].getsockname()[1]

    def taken(self) -> list[str]:
        """Who has come."""
        found = []
        for bait in self._sockets:
            with contextlib.suppress(BlockingIOError):
                found.append(f"somebody connected to {bait.accept()[0].getsockname()!r}")
        return found

    def close(self) -> None:
        for bait in self._sockets:
            bait.close()


class Watcher:
    """``before`` is taken when it is made; ``changes`` says what is otherwise now."""

    def __init__(self, client: Any, folder: Path, containers: list[str]) -> None:
        self._client, self._folder = client, folder
        self.root = client.info()["DockerRootDir"]
        self.bait = Bait()
        (folder / "canary").write_text("untouched")
        self._containers = {one: _Container(client, one) for one in containers}
        self._before = self._look()

    def changes(self) -> list[str]:
        """One line for each thing that is not as it was, or that must not be at all."""
        after = self._look()
        found = [
            f"{name} was {self._before.get(name)!r} and is {after.get(name)!r}"
            for name in sorted(self._before.keys() | after.keys())
            if self._before.get(name) != after.get(name)
        ]
        for container in self._containers.values():
            found += container.strays()
        return found + self.bait.taken()

    def replace(self, old: str, new: str) -> None:
        """A sandbox that its runtime gave up has a successor."""
        self._containers.pop(old, None)
        self._containers[new] = _Container(self._client, new)
        self._before = self._look()

    def pids(self, container: str) -> list[int]:
        """The host's pids of a sandbox's processes."""
        return self._containers[container].pids()

    def _look(self) -> dict[str, Any]:
        found: dict[str, Any] = dict(_host())
        found["canary"] = sorted((p.name, p.read_text()) for p in self._folder.iterdir())
        for container in self._containers.values():
            found |= container.look()
        return found


def _host() -> Iterator[tuple[str, Any]]:
    for name in _SETTINGS:
        yield name, _read(f"/proc/sys/{name}")
    for name in _HOST_FILES:
        yield name, hashlib.sha256(_read(name).encode()).hexdigest()
    yield "swap", _swaps()
    yield "host name", os.uname().nodename


def _swaps() -> list[list[str]]:
    """What memory may be swapped to; how much of it is in use changes by itself."""
    rows = [line.split() for line in _read("/proc/swaps").splitlines()[1:]]
    return [[*row[:3], *row[4:]] for row in rows]


def _mounts_below(*places: str) -> list[str]:
    """The host's own mounts in these places."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return sorted(line for line in lines if line.split()[1].startswith(places))


class _Container:
    """One sandbox, as the host's kernel and the engine see it."""

    def __init__(self, client: Any, name: str) -> None:
        self._name = name
        found = client.inspect_container(name)
        self._keeper = found["State"]["Pid"]
        self._layer = Path(found["GraphDriver"]["Data"]["UpperDir"])
        self._folders = (str(self._layer.parent), str(Path(found["HostsPath"]).parent))
        self._groups = [path for path in _cgroups(self._keeper) if path.is_dir()]

    def look(self) -> dict[str, Any]:
        """Limits, mounts and namespaces, and what was written to the image."""
        short = self._name[:12]
        found = {
            f"{short} {path}": path.read_text()
            for group in self._groups
            for path in (group / name for name in _LIMITS)
            if path.is_file()
        }
        found[f"{short} mounts"] = _read(f"/proc/{self._keeper}/mountinfo")
        found[f"{short} namespaces"] = _namespaces(self._keeper)
        found[f"{short} outside"] = _mounts_below(*self._folders)
        found[f"{short} files"] = self._written()
        found[f"{short} own cgroups"] = [
            str(path) for group in self._groups for path in group.iterdir() if path.is_dir()
        ]
        return found

    def pids(self) -> list[int]:
        return sorted({
            int(pid) for group in self._groups for pid in _read(group / "cgroup.procs").split()
        })  # fmt: skip

    def strays(self) -> list[str]:
        """Processes of it that are in other namespaces, or are more than nobody."""
        return [
            f"process {pid} of {self._name[:12]}: {fault}"
            for pid in self.pids()
            for fault in self._faults(pid)
        ]

    def _faults(self, pid: int) -> Iterator[str]:
        status = dict(line.split(":", 1) for line in _read(f"/proc/{pid}/status").splitlines())
        if not status or "sentry" in _read(f"/proc/{pid}/cmdline") or _is_runsc(pid):
            return
        if "0" in status["Uid"].split():
            yield f"uids {status['Uid'].split()}"
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            if int(status[name], 16):
                yield f"{name} {status[name].strip()}"
        if (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) != ("1", "2"):
            yield "without no_new_privs or seccomp"
        if _namespaces(pid) not in ({}, _namespaces(self._keeper)):
            yield "in other namespaces"

    def _written(self) -> list[str]:
        """What lies in the container's own layer, which is read-only."""
        return sorted(str(path) for path in self._layer.rglob("*") if path.is_file())


def _is_runsc(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "runsc" in os.readlink(f"/proc/{pid}/exe")
    return False


def _cgroups(pid: int) -> Iterator[Path]:
    """A process's cgroups, by controller (v1) or the only one (v2)."""
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(",") if controllers else ("", "unified"):
            if path != "/":
                yield Path(f"/sys/fs/cgroup/{name}{path}".replace("//", "/"))


def _namespaces(pid: int) -> dict[str, str]:
    try:
        return {
            name: os.readlink(f"/proc/{pid}/ns/{name}")
            for name in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
        }  # fmt: skip
    except OSError:
        return {}


def _read(path: str | Path) -> str:
    """A file of /proc or of a cgroup; nothing where its process has gone meanwhile."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
