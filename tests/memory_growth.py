"""How much memory this process, the master in it included, takes meanwhile."""

from __future__ import annotations

from pathlib import Path

MIB = 1024 * 1024

#: What a transfer may cost the master; far less than the files, whatever their size.
MAX_GROWTH = 100 * MIB


class Growth:
    """How far this process's memory grew beyond what it was, at its highest."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # Forget the peak (proc(5)).
        self._before = self._field("VmRSS")

    def peak(self) -> int:
        """In bytes."""
        return self._field("VmHWM") - self._before

    def _field(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith(f"{name}:")]
        return int(line.split()[1]) * 1024
