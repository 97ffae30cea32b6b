"""Which of a policy's limits a command has met, from what the kernel and ``df`` say; and the words.

Pure.
What is read inside a sandbox a build can fake; it decides what its own log says, no more.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from sandboxworker.policy import MIB, SandboxPolicy, show_size

#: What programs say when a file system is full (``strerror`` of ``ENOSPC`` and ``EDQUOT``).
FULL_WORDS = ("No space left on device", "Disk quota exceeded")
#: Told on stdout by two ``df``: bytes, and inodes behind an empty line.
DF = 'df -kP "$@" 2>/dev/null; echo; df -iP "$@" 2>/dev/null'


@attrs.frozen
class Counts:
    """What the kernel has counted in a sandbox from its start.

    ``oom_kills``: processes killed for the memory limit; ``refused_forks``: processes and threads
    refused for the pids limit; ``memory_peak``: bytes, 0 where the kernel does not say.
    """

    oom_kills: int = 0
    refused_forks: int = 0
    memory_peak: int = 0

    @classmethod
    def told(cls, words: list[str]) -> Counts:
        """From the words behind a command's end; none where no limit was met."""
        if len(words) != 3 or not all(map(_is_number, words)):
            return cls()
        return cls(*map(int, words))

    def with_(self, other: Counts) -> Counts:
        """The later of two; counts never fall, but a build may say so."""
        return Counts(*map(max, attrs.astuple(self), attrs.astuple(other)))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16


@attrs.frozen
class Strike:
    """A limit that was met: the policy's field, what it is set to, what happened, and the peak."""

    field: str
    value: int
    what: str
    peak: int | None = None

    def __str__(self) -> str:
        peak = "" if self.peak is None else f", its peak {_mib(self.peak)}"
        return (
            f"sandboxworker: limit reached: {self.what}{peak}; "
            f"the limit is the policy's {self.field} ({_value(self.field, self.value)})"
        )


def _value(field: str, value: int) -> str:
    return str(value) if field in ("pids", "disk_inodes") else show_size(value)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


def counted(before: Counts, after: Counts, policy: SandboxPolicy) -> Iterator[Strike]:
    """The limits that were met between two countings."""
    killed = after.oom_kills - before.oom_kills
    if killed > 0:
        yield out_of_memory(policy, after.memory_peak or None, killed)
    if after.refused_forks > before.refused_forks:
        yield out_of_pids(policy)


def out_of_memory(policy: SandboxPolicy, peak: int | None, killed: int = 1) -> Strike:
    """The kernel has killed processes for the cgroup's limit."""
    processes = "a process was" if killed == 1 else f"{killed} processes were"
    what = (
        f"out of memory, {processes} killed; the sandbox may use "
        f"{_mib(policy.cgroup_memory)} with its file systems in memory"
    )
    return Strike("memory", policy.memory, what, peak)


def out_of_pids(policy: SandboxPolicy) -> Strike:
    """A process or thread was refused."""
    what = "a process or thread could not be started"
    return Strike("pids", policy.pids, what)


def places(policy: SandboxPolicy) -> dict[str, str]:
    """The writable places whose size a policy sets: path to field."""
    return {policy.workspace: "disk", "/tmp": "tmp", "/dev/shm": "shm"}


def full(df: str, policy: SandboxPolicy) -> Iterator[Strike]:
    """The places that are full, from what `DF` said."""
    sizes, _, inodes = df.partition("\n\n")
    fields = places(policy)
    for path in _without_any_left(sizes, fields):
        field = fields[path]
        yield Strike(field, getattr(policy, field), f"{path} is full")
    for path in _without_any_left(inodes, fields):
        yield Strike("disk_inodes", policy.disk_inodes, f"{path} can take no more files")


def _without_any_left(table: str, known: dict[str, str]) -> Iterator[str]:
    """The mount points of a ``df -P`` that have some, and none left in the fourth column.

    gVisor counts no inodes, and has 0 of them.
    """
    for line in table.splitlines():
        columns = line.split(None, 5)
        has_none_left = len(columns) == 6 and columns[1] != "0" and columns[3] == "0"
        if has_none_left and columns[5] in known:
            yield columns[5]


def was_full(policy: SandboxPolicy) -> Strike:
    """Something was full when a program said so, and is not any more."""
    sizes = ", ".join(
        f"{field} {show_size(getattr(policy, field))}" for field in ("disk", "tmp", "shm")
    )
    return Strike("disk", policy.disk, f"a file system was full for a time ({sizes})")
