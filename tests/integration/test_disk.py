"""Builds whose workspace is on disk, by a real master."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from conftest import loop_files
from real_master import one_builder_each, running_master, shell
from runtime import HAS_OWN_KERNEL, SandboxPolicy

from sandboxworker import SandboxLatentWorker

pytestmark = pytest.mark.engine
DISK = SandboxPolicy(
    "sandboxworker/debian:bookworm",
    memory="64m",
    disk="192m",
    disk_inodes=2000,
    disk_backing="disk",
)


@pytest_twisted.ensureDeferred
async def test_build_on_disk_may_keep_more_than_its_memory(
    engine_client: Any, left_over: Any, tmp_path: Any
) -> None:
    workers = [SandboxLatentWorker("disk", policy=DISK)]
    steps = [
        shell("head -c 160m /dev/zero >big; stat -f -c %T .", "write"),
        shell("wc -c <big; echo 'int main(){}' >x.c && gcc x.c && ./a.out && echo ran", "read"),
        shell("df --output=fstype,target /build | tail -n 1; nproc", "where"),
    ]
    async with running_master(tmp_path, one_builder_each(workers), left_over) as master:
        build = await master.run("disk", steps)
    assert build.result == "success", build.log
    assert build["read"].out.split() == [str(160 << 20), "ran"]
    # gVisor reaches the disk through a file server of its own.
    kinds = ("v9fs", "9p") if HAS_OWN_KERNEL else ("ext2/ext3", "ext4")
    assert build["write"].out == kinds[0]
    assert build["where"].out.split() == [kinds[1], "/build", "1"]
    assert not loop_files(str(tmp_path))
