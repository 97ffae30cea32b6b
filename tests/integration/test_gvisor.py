"""An honest and a hostile build under gVisor, by a real master.

``SANDBOXWORKER_RUNTIME=runsc`` runs the whole suite so; this much of it always runs, where the
engine knows that runtime.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from buildbot.plugins import steps
from conftest import DEBIAN
from real_master import RealMaster, one_builder_each, running_master, shell, until
from runtime import SandboxPolicy

from sandboxworker import SandboxLatentWorker

pytestmark = pytest.mark.engine

#: gVisor's kernel tells so in its log; under runc nobody may read the kernel's.
WHOSE_KERNEL = "dmesg | grep -m 1 -o gVisor"


@pytest_twisted.async_yield_fixture
async def master(gvisor: str, left_over: Any, tmp_path: Any) -> AsyncIterator[RealMaster]:
    policy = SandboxPolicy(
        DEBIAN, runtime=gvisor, memory="256m", pids=1024, disk="32m", tmp="16m", shm="16m"
    )
    workers = [SandboxLatentWorker("gvisor", policy=policy)]
    async with running_master(tmp_path, one_builder_each(workers), left_over) as running:
        yield running


@pytest_twisted.ensureDeferred
async def test_an_honest_build_is_built(master: RealMaster, tmp_path: Any) -> None:
    program = '#include <stdio.h>\nint main(void) { return puts("built") < 0; }\n'
    build = await master.run(
        "gvisor",
        [
            shell(WHOSE_KERNEL, "kernel"),
            steps.StringDownload(program, workerdest="main.c"),
            shell("make main", "compile"),
            shell("./main", "test"),
            steps.FileUpload(workersrc="main", masterdest=str(tmp_path / "main")),
        ],
    )
    assert build.result == "success", build.log
    assert build["kernel"].out == "gVisor"
    assert build["test"].out == "built"
    assert (tmp_path / "main").read_bytes().startswith(b"\x7fELF")
    assert build.properties["sandbox_outcome"] == "completed"


@pytest_twisted.ensureDeferred
async def test_a_hostile_build_gets_nowhere(master: RealMaster) -> None:
    build = await master.run(
        "gvisor",
        [
            shell("touch /usr/x; touch /etc/x; echo 1 >/proc/sys/kernel/printk", "write"),
            shell("mount -t tmpfs none /tmp; mknod d b 8 0; chown 0 /tmp; cat /dev/mem", "root"),
            shell("cat /proc/net/dev; git ls-remote https://192.0.2.1/x", "network"),
            shell("head -c 64m /dev/zero >full; s=$?; wc -c <full; exit $s", "disk"),
        ],
    )
    assert build.result == "failure"
    assert build["write"].out == build["root"].out == ""
    interfaces = [line.partition(":")[0].strip() for line in build["network"].out.splitlines()[2:]]
    assert interfaces == ["lo"]
    assert int(build["disk"].out) <= 32 << 20
    assert build.properties["sandbox_cause"] == "disk"


#: What ends gVisor as a whole: its own memory and processes are the sandbox's.
BOMBS = {
    "memory": "dd if=/dev/zero of=/dev/null bs=800M count=1",
    "pids": "i=0; while [ $i -lt 4000 ]; do sleep 60 & i=$((i + 1)); done",
}
#: Who is out of processes takes the keeper along, and looks like a fault of the infrastructure.
RESULTS = {"memory": "failure", "pids": "retry"}


@pytest.mark.parametrize("limit", BOMBS)
@pytest_twisted.ensureDeferred
async def test_a_bomb_ends_its_own_sandbox_alone_and_the_next_build_is_built(
    master: RealMaster, engine_client: Any, limit: str
) -> None:
    build = await master.finished(await master.begin("gvisor", [shell(BOMBS[limit], "bomb")]))
    assert build.result == RESULTS[limit], build.log
    assert master.master.workers.workers["gvisor"].quarantine_timer is None
    assert (await master.run("gvisor", [shell("true", "next")])).result == "success"
    await until(lambda: not master.containers(engine_client), "the end of every sandbox")
