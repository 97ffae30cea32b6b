"""Runs tests in the virtual machine: ``python -m tests.vm [options] [-- pytest's arguments]``."""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import docker
import docker.errors

from sandboxworker.engine.address import resolve

from . import acceleration, disks, machine, packages, tasks
from .acceleration import Acceleration
from .console import Console, Outcome
from .disks import Failed, say

IMAGES = ("sandboxworker/debian:bookworm", "sandboxworker/busybox:latest")
#: What the machine is there for, and what else can be told of a kernel or an engine.
EVERYTHING = ("tests/containment", "tests/contract", "tests/integration/test_sandbox_inside.py")
_BOMBS = "tests/containment/test_bombs.py"
SHORT = (
    "tests/containment/test_debian_kernel.py",
    "tests/containment/test_seccomp_probe.py",
    "tests/contract/test_engine_contract.py::test_running_container_has_used_something",
    "tests/contract/test_stats.py::test_engine_tells_all_memory_of_a_container_each_second",
    f"{_BOMBS}::test_datagrams_are_bounded_where_only_the_engine_tells_of_them",
)
#: Of the variables that switch tests on.
_SWITCHES = "SANDBOXWORKER_TEST_"
_READ_ONLY, _FORGOTTEN, _WRITTEN = "readonly=on", "snapshot=on,cache=unsafe", "cache=unsafe"


def main(arguments: Sequence[str]) -> int:
    wanted = _parser().parse_args(arguments)
    missing = _missing()
    if missing and wanted.if_possible:
        print(f"SKIPPED: no test runs in a virtual machine ({missing})", flush=True)
        return 0
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        return 1
    try:
        return _run(wanted)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the machine is off", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm",
        description="Run tests in a virtual machine with Debian's own kernel.",
    )
    parser.add_argument("--short", action="store_true", help="a small selection, for every run")
    parser.add_argument(
        "--if-possible", action="store_true", help="no fault where QEMU is not installed; said so"
    )
    parser.add_argument("--minutes", type=float, help="until the machine is switched off")
    parser.add_argument(
        "--accel",
        choices=acceleration.CHOICES,
        default="auto",
        help="kvm: by the processor; tcg: emulated; auto: kvm where it works, else tcg",
    )
    parser.add_argument("--image", action="append", default=[], help="one more image to take along")
    parser.add_argument("--make-only", action="store_true", help="make the disks and run nothing")
    parser.add_argument("tests", nargs="*", help="pytest's arguments; options of it behind --")
    return parser


def _missing() -> str | None:
    """What stands in the way, and what to do about it."""
    if not packages.is_possible():
        return "the virtual machine is made for x86-64 alone"
    tools = (machine.PROGRAM, "mmdebstrap", "mkfs.ext4", "setpriv")
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    lacking = [tool for tool in tools if shutil.which(tool, path=path) is None]
    return f"not installed: {', '.join(lacking)}; run: scripts/setup vm" if lacking else None


def _run(wanted: argparse.Namespace) -> int:
    started = time.monotonic()
    system = disks.system()
    accel = _acceleration(wanted.accel, system)
    data = _data(system, [*IMAGES, *wanted.image], accel)
    say(f"the machine's disks are there after {time.monotonic() - started:.0f} s")
    if wanted.make_only:
        return 0
    selected = wanted.tests or (SHORT if wanted.short else EVERYTHING)
    task = tasks.tests(selected, _environ(accel))
    minutes = wanted.minutes or (10 if wanted.short else 180)
    say(f"starting the machine: pytest {shlex.join(selected)} (at most {minutes:g} min)")
    return _tell(*_boot(system, data, task, minutes * 60, accel, with_project=True))


def _environ(accel: Acceleration) -> dict[str, object]:
    """What the tests in there are told by variables: also what those here would be told."""
    here = {name: text for name, text in os.environ.items() if name.startswith(_SWITCHES)}
    return {**here, "SANDBOXWORKER_SLOW": accel.slow, "SANDBOXWORKER_VM": 1}


def _acceleration(wanted: str, system: Path) -> Acceleration:
    chosen, why_not = acceleration.choose(
        wanted, lambda: acceleration.kvm_refusal(system / "vmlinuz")
    )
    say(f"acceleration: {chosen.name}" + (f" (no KVM: {why_not})" if why_not else ""))
    return chosen


def _data(system: Path, tags: Sequence[str], accel: Acceleration) -> Path:
    def prepare(data: Path, archives: list[Path]) -> None:
        say("starting the machine to load the images into its engine")
        more = [(archive, _READ_ONLY) for archive in archives]
        outcome, code = _boot(system, data, tasks.PREPARE, 600, accel, more, keeps_data=True)
        if outcome is not Outcome.FINISHED or code:
            raise Failed(f"the machine's engine did not load the images ({outcome.words}, {code})")

    try:
        client = docker.APIClient(**resolve(None).sdk_arguments(), timeout=600)
        try:
            return disks.data(client, tags, prepare)
        finally:
            client.close()
    except docker.errors.DockerException as error:
        raise Failed(f"the engine does not give its images ({error}); run: make images") from None


def _boot(
    system: Path,
    data: Path,
    task: str,
    seconds: float,
    accel: Acceleration,
    more: Sequence[tuple[Path, str]] = (),
    *,
    keeps_data: bool = False,
    with_project: bool = False,
) -> tuple[Outcome, int | None]:
    """One run of the machine: how it went, and the exit code that it told."""
    word = secrets.token_hex(12)
    with (
        disks.payload(word, task, with_project=with_project) as (payload, swap),
        (disks.CACHE / "console.log").open("w") as log,
    ):
        console = Console(word, lambda line: _show(line, log))
        drives = (
            (system / "root.img", _FORGOTTEN),
            (data, _WRITTEN if keeps_data else _FORGOTTEN),
            (payload, _READ_ONLY),
            (swap, _WRITTEN),
            *more,
        )
        outcome = machine.run(machine.command(system, drives, accel.options), console, seconds)
        return outcome, console.code


def _show(line: str, log: TextIO) -> None:
    print(line, flush=True)
    print(line, file=log, flush=True)


def _tell(outcome: Outcome, code: int | None) -> int:
    if outcome is not Outcome.FINISHED or code is None:
        print(f"error: {outcome.words}; all that it said: .cache/vm/console.log", file=sys.stderr)
        return outcome.value
    if code == tasks.NO_ENGINE:
        print("error: the machine's container engine did not start", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
