"""Who carries out the machine's instructions: this processor (KVM) where it really does, else QEMU.

A ``/dev/kvm`` that opens proves little: some hosts run none but kernels that are made for them.
So the machine's own kernel is tried first, without a disk, until it complains that it has none.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from .machine import PROGRAM, bare

DEVICE = Path("/dev/kvm")
CHOICES = ("auto", "kvm", "tcg")
#: Seconds that the kernel may take to its complaint; 2 emulated, under 1 by a processor.
TRIAL_DEADLINE = 20.0
#: What a kernel says last when it finds no root file system (``init/do_mounts.c``).
_NO_ROOT = "Unable to mount root fs"
_LONGEST_REASON = 200


@attrs.frozen
class Acceleration:
    """``options``: QEMU's; ``slow``: by how much a container starts slower than on this machine."""

    name: str
    options: tuple[str, ...]
    slow: int


KVM = Acceleration("kvm", ("-accel", "kvm", "-cpu", "host"), slow=4)
TCG = Acceleration("tcg", ("-accel", "tcg,thread=multi", "-cpu", "max"), slow=16)


def choose(wanted: str, refusal: Callable[[], str | None]) -> tuple[Acceleration, str | None]:
    """One of `CHOICES` → what is used, and why it is not KVM where that was to be found out.

    ``refusal`` says why KVM cannot be used, None where it can; it is asked under ``auto`` alone.
    """
    if wanted != "auto":
        return (KVM if wanted == "kvm" else TCG), None
    reason = refusal()
    return (TCG, reason) if reason else (KVM, None)


def kvm_refusal(kernel: Path) -> str | None:
    """Why this machine's processor does not run that kernel; None if it does."""
    try:
        DEVICE.open("r+b", buffering=0).close()
    except OSError as error:
        return f"{DEVICE}: {error.strerror}"
    return trial(trial_command(KVM, kernel))


def trial_command(acceleration: Acceleration, kernel: Path) -> list[str]:
    """QEMU with a kernel and nothing else; it ends as soon as the kernel has no more to do."""
    return [
        *bare(PROGRAM, acceleration.options, memory_mib=512),
        *("-kernel", str(kernel), "-append", "console=ttyS0 quiet panic=-1"),
    ]


def trial(command: Sequence[str], seconds: float = TRIAL_DEADLINE) -> str | None:
    """What went wrong, or None where the kernel came to its end within that many seconds."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"a kernel does not boot within {seconds:g} s"
    said = done.stdout.decode(errors="replace")
    if _NO_ROOT in said:
        return None
    last = said.strip().splitlines()[-1:] or ["it said nothing"]
    return f"a kernel does not boot: exit code {done.returncode}, {last[0][:_LONGEST_REASON]}"
