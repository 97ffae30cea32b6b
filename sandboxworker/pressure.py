"""Whether this machine is short of memory, by what its kernel says."""

from __future__ import annotations

import re
from pathlib import Path

#: Of all memory: less than this available, and nothing is kept for builds that may come.
LEAST_AVAILABLE = 0.1
#: Percent of the last ten seconds in which some process waited for memory
#: (kernel: Documentation/accounting/psi.rst).
MOST_STALLED = 10.0

_FIELD = re.compile(r"^(MemTotal|MemAvailable): +(\d+) kB$", re.MULTILINE)
_STALLED = re.compile(r"^some avg10=([\d.]+)", re.MULTILINE)


def is_short(meminfo: str, stalled: str) -> bool:
    """From the texts of ``/proc/meminfo`` and ``/proc/pressure/memory``.

    What a kernel does not tell, or tells in other words, is no shortage.
    """
    fields = {name: int(value) for name, value in _FIELD.findall(meminfo)}
    total, available = fields.get("MemTotal"), fields.get("MemAvailable")
    if total and available is not None and available < total * LEAST_AVAILABLE:
        return True
    share = _STALLED.search(stalled)
    return share is not None and float(share[1]) >= MOST_STALLED


def is_short_here() -> bool:
    """Of this machine, now."""
    return is_short(_read("/proc/meminfo"), _read("/proc/pressure/memory"))


def _read(path: str) -> str:
    """Its text; none where the kernel has no such file, or lets nobody read it."""
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
