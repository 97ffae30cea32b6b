"""What only the virtual machine can show (``docs/vm.md``): AppArmor, swap, cgroup v2, crun."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from memory_engine import within

from sandboxworker.errors import NotConformant
from sandboxworker.process import Completed, run

pytestmark = pytest.mark.skipif(
    not os.environ.get("SANDBOXWORKER_VM"), reason="needs Debian's own kernel: make vm"
)
SECONDS = 60.0
MIB = 1 << 20
#: `memory` and all tmpfs mounts together are what the cgroup may have.
SMALL = {"memory": "64m", "disk": "8m", "tmp": "8m", "shm": "1m", "secrets_size": "1m"}


async def ran(sandbox: Any, script: str) -> Completed:
    return await within(SECONDS, run(sandbox, ["sh", "-c", script]))


def test_machine_is_what_these_tests_are_about() -> None:
    assert platform.release().startswith("6.1.")
    assert Path("/sys/module/apparmor/parameters/enabled").read_text() == "Y\n"
    assert Path("/sys/fs/cgroup/cgroup.controllers").exists()
    assert len(Path("/proc/swaps").read_text().splitlines()) == 2
    [data] = [line for line in Path("/proc/mounts").read_text().splitlines() if " xfs " in line]
    assert "prjquota" in data


@pytest_twisted.ensureDeferred
async def test_build_is_confined_by_the_engines_apparmor_profile(make_sandbox: Any) -> None:
    sandbox = await make_sandbox()
    told = await ran(sandbox, "cat /proc/self/attr/current")
    assert told == Completed(b"docker-default (enforce)\n", b"", 0)


@pytest_twisted.ensureDeferred
async def test_kernel_has_the_limits_of_the_policy(make_sandbox: Any) -> None:
    sandbox = await make_sandbox(**SMALL, pids=50, cpus=0.5)
    files = ("memory.max", "memory.swap.max", "pids.max", "cpu.max")
    told = await ran(sandbox, f"cd /sys/fs/cgroup; cat {' '.join(files)}")
    memory, swap, pids, cpu = told.stdout.decode().splitlines()
    assert (int(memory), swap, pids) == (82 * MIB, "0", "50")
    quota, period = map(int, cpu.split())
    assert quota / period == 0.5
    status = await ran(sandbox, "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status")
    assert status.stdout.split() == [
        *(b"CapBnd:", b"0000000000000000"),
        *(b"NoNewPrivs:", b"1"),
        *(b"Seccomp:", b"2"),
    ]


@pytest.mark.parametrize(
    ("backing", "left_out"),
    [("tmpfs", ["build's OomScoreAdj"]), ("disk", ["options of /build", "build's OomScoreAdj"])],
)
@pytest_twisted.ensureDeferred
async def test_crun_is_refused_by_name_of_what_it_leaves_out_and_of_nothing_else(
    make_sandbox: Any, backing: str, left_out: list[str]
) -> None:
    with pytest.raises(NotConformant) as refused:
        await make_sandbox(**SMALL, runtime="crun", disk_backing=backing)
    told = [each.partition(" (as the kernel sees it)")[0] for each in refused.value.deviations]
    assert told == left_out


@pytest_twisted.ensureDeferred
async def test_memory_beyond_the_limit_is_not_swapped(make_sandbox: Any) -> None:
    sandbox = await make_sandbox(**SMALL)
    much = await ran(sandbox, "head -c 200000000 /dev/zero | tail -c 199999999 | wc -c; echo over")
    assert much.stdout == b"0\nover\n"
    assert (await ran(sandbox, "grep '^oom_kill ' /sys/fs/cgroup/memory.events")).stdout == (
        b"oom_kill 1\n"
    )
    usage = await within(SECONDS, sandbox.usage())
    assert 64 * MIB < usage.memory_peak <= 82 * MIB
