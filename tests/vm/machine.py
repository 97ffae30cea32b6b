"""QEMU: one run of the machine, with an end in every case."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from .console import Console, Outcome

PROGRAM = "qemu-system-x86_64"
CPUS, MEMORY_MIB = 2, 4096
#: Seconds; under 5 on an idle machine.
BOOT_DEADLINE = 180.0
#: Seconds that it has for switching itself off when all is said.
OFF_DEADLINE = 30.0
_APPEND = "console=ttyS0 quiet panic=-1 mitigations=off"


def bare(program: str, acceleration: Sequence[str], memory_mib: int = MEMORY_MIB) -> list[str]:
    """A machine with processors, memory and a serial line on our stdout; it never starts twice.

    ``setpriv`` has the kernel end QEMU when the program that started it dies, however it dies.
    """
    return [
        *("setpriv", "--pdeathsig", "KILL", program, *acceleration),
        *("-smp", str(CPUS), "-m", str(memory_mib)),
        *("-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"),
    ]


def command(
    system: Path, disks: Sequence[tuple[Path, str]], acceleration: Sequence[str]
) -> list[str]:
    """The command line; each disk comes with the options that say how it is used.

    ``acceleration``: QEMU's options for it.
    """
    drives = [f"file={path},if=virtio,format=raw,{options}" for path, options in disks]
    return [
        *bare(PROGRAM, acceleration),
        *("-kernel", str(system / "vmlinuz"), "-initrd", str(system / "initrd.gz")),
        *("-append", _APPEND),
        *(word for drive in drives for word in ("-drive", drive)),
    ]


def run(command: Sequence[str], console: Console, seconds: float) -> Outcome:
    """Start it, hear it to its end, and see that it is gone; ``seconds`` for all after the boot."""
    with _process(command) as process:
        in_time = _hear(process, console, seconds)
        outcome = console.outcome(in_time=in_time)
        if outcome is Outcome.FINISHED:
            _await_end(process)
    return outcome


@contextmanager
def _process(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """SIGTERM ends us like Ctrl-C does: through this ``finally``."""
    before = signal.signal(signal.SIGTERM, _interrupted)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()
        signal.signal(signal.SIGTERM, before)


def _interrupted(_signal: int, _frame: FrameType | None) -> Any:
    raise KeyboardInterrupt


def _hear(process: subprocess.Popen[bytes], console: Console, seconds: float) -> bool:
    """Until it has told its end, or went; False when the time is over."""
    assert process.stdout
    give_up, begun = time.monotonic() + BOOT_DEADLINE, False
    while console.code is None:
        if console.has_begun and not begun:
            give_up, begun = time.monotonic() + seconds, True
        left = give_up - time.monotonic()
        if left <= 0:
            return False
        if select.select([process.stdout], [], [], min(left, 1.0))[0]:
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return True
            console.received(data)
    return True


def _await_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(OFF_DEADLINE)
    except subprocess.TimeoutExpired:
        print("the machine did not switch itself off", flush=True)
