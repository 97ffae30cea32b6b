"""What there is of each thing that could be left behind, and the master's memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import docker.errors

MIB = 1024 * 1024
_NOT_A_CONTAINERS = {"dockerd", "containerd"}


def counts(client: Any, place: str) -> Mapping[str, int]:
    """``client``: a plain one of the daemon; ``place``: what its paths have in common."""
    lost = forgotten(client, place)
    mounts = [line for line in _lines("/proc/self/mountinfo") if place in line]
    return {
        "containers": len(containers(client)),
        "volumes": len(client.volumes()["Volumes"] or ()),
        # A forgotten container keeps its root file system mounted, as a rule.
        "mounts": len(mounts) - len(lost),
        "processes of the daemon's": len(_shims(place).keys() - lost),
        "processes of the master's": len(_descendants(os.getpid())),
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def containers(client: Any) -> list[Mapping[str, Any]]:
    """Those that there are: a killed daemon may list what it removed, dead and without a name."""
    return [each for each in client.containers(all=True) if each["Names"] or _exists(client, each)]


def _exists(client: Any, entry: Mapping[str, Any]) -> bool:
    try:
        client.inspect_container(entry["Id"])
    except docker.errors.NotFound:
        return False
    return True


def forgotten(client: Any, place: str) -> set[int]:
    """The shims that a killed daemon does not know any more.

    containerd's own: killed between a shim's start and its note of it, the next one never hears of
    that shim, whoever asked for the container. The engine does not list it, and what is in it has
    ended or has not begun; a shim that is younger than the daemon is none of these.
    """
    known = {each["Id"] for each in containers(client)}
    daemons = [pid for pid, words in _commands().items() if _is_daemon(words, place)]
    since = min(map(_began, daemons), default=0)
    return {
        pid
        for pid, words in _shims(place).items()
        if _id(words) not in {"", *known} and 0 < _began(pid) < since and not _runs(pid)
    }


def _runs(pid: int) -> bool:
    """Whether a shim's container runs anything but runc, which waits to be told to begin."""
    below = [_read(Path(f"/proc/{each}/comm")) for each in _descendants(pid)]
    return any(name and not name.startswith("runc:[") for name in below)


def listing(found: Iterable[Mapping[str, Any]], place: str) -> list[str]:
    """What these containers are, and the processes and descriptors that count; a line each."""
    left = [
        f"container {each['Id']} {each['Names']} {each['State']}, "
        f"made {time.ctime(each['Created'])}, {each['Labels']}"
        for each in found
    ]
    shims = [" ".join(words) for words in _shims(place).values()]
    ours = [_read(Path(f"/proc/{pid}/cmdline")) for pid in _descendants(os.getpid())]
    told = [*left, *shims, *(words.replace("\0", " ") for words in ours)]
    return [*told, *(f"{count} descriptors of {what}" for what, count in _descriptors().items())]


def _descriptors() -> Counter[str]:
    """Of this process, by what they lead to: a path, or the kind of what has none."""
    lines = [line.split() for line in _lines("/proc/net/unix")[1:]]
    sockets = {words[6]: words[7] for words in lines if len(words) > 7}
    found: Counter[str] = Counter()
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # The one of this very look.
            kind, _, number = os.readlink(file).partition(":[")
            found[sockets.get(number.rstrip("]"), kind) if kind == "socket" else kind] += 1
    return found


def memory() -> int:
    """What this process holds, in bytes."""
    (line,) = [line for line in _lines("/proc/self/status") if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _commands() -> Mapping[int, list[str]]:
    folders = Path("/proc").glob("[0-9]*")
    return {int(folder.name): _read(folder / "cmdline").split("\0") for folder in folders}


def _began(pid: int) -> int:
    """In ticks since the machine's start; 0 for one that is over."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return int(fields[19]) if fields else 0


def _read(file: Path) -> str:
    """Nothing of a process that has just ended."""
    try:
        return file.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _is_daemon(words: list[str], place: str) -> bool:
    is_one = os.path.basename(words[0]) in _NOT_A_CONTAINERS
    return is_one and any(place in word for word in words)


def _shims(place: str) -> Mapping[int, list[str]]:
    """The processes of the daemon's but itself."""
    return {
        pid: words
        for pid, words in _commands().items()
        if any(place in word for word in words) and not _is_daemon(words, place)
    }


def _id(words: list[str]) -> str:
    """Of a shim's container."""
    return words[words.index("-id") + 1] if "-id" in words[:-1] else ""


def _descendants(pid: int) -> list[int]:
    """The living ones, but for a daemon that this process has launched anew."""
    tasks = Path(f"/proc/{pid}/task").glob("*")
    children = [int(each) for task in tasks for each in _read(task / "children").split()]
    ours = [each for each in children if "dockerd" not in _read(Path(f"/proc/{each}/comm"))]
    return [found for each in ours for found in (each, *_descendants(each))]
