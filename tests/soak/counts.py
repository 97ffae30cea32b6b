"""What there is of each thing that could be left behind, and the master's memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
_NOT_A_CONTAINERS = {"dockerd", "containerd"}


def counts(client: Any, place: str) -> Mapping[str, int]:
    """``client``: a plain one of the daemon; ``place``: what its paths have in common."""
    return {
        "containers": len(client.containers(all=True)),
        "volumes": len(client.volumes()["Volumes"] or ()),
        "mounts": sum(place in line for line in _lines("/proc/self/mountinfo")),
        "processes of the daemon's": sum(1 for words in _commands() if _is_shim(words, place)),
        "processes of the master's": len(_descendants(os.getpid())),
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def listing(client: Any, place: str) -> list[str]:
    """What the containers, processes and descriptors that `counts` counts are, a line each."""
    containers = [
        f"container {each['Names']} {each['State']}, made {time.ctime(each['Created'])}"
        for each in client.containers(all=True)
    ]
    shims = [" ".join(words) for words in _commands() if _is_shim(words, place)]
    ours = [_read(Path(f"/proc/{pid}/cmdline")) for pid in _descendants(os.getpid())]
    told = [*containers, *shims, *(words.replace("\0", " ") for words in ours)]
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


def _commands() -> list[list[str]]:
    return [_read(folder / "cmdline").split("\0") for folder in Path("/proc").glob("[0-9]*")]


def _read(file: Path) -> str:
    """Nothing of a process that has just ended."""
    try:
        return file.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _is_shim(words: list[str], place: str) -> bool:
    name = os.path.basename(words[0])
    return name not in _NOT_A_CONTAINERS and any(place in word for word in words)


def _descendants(pid: int) -> list[int]:
    """The living ones, but for a daemon that this process has launched anew."""
    tasks = Path(f"/proc/{pid}/task").glob("*")
    children = [int(each) for task in tasks for each in _read(task / "children").split()]
    ours = [each for each in children if "dockerd" not in _read(Path(f"/proc/{each}/comm"))]
    return [found for each in ours for found in (each, *_descendants(each))]
