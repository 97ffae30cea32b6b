"""Each row of ``docs/outcomes.md`` on a real engine and master: result, words, log, retries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from buildbot.plugins import steps, util
from buildbot.process import buildstep
from buildbot.secrets.providers.file import SecretInAFile
from conftest import BUSYBOX, DEBIAN
from real_master import (
    HOLD,
    BuildResult,
    RealMaster,
    configuration,
    let_go,
    one_builder_each,
    running_master,
    shell,
    until,
)
from runtime import SandboxPolicy, differs
from twisted.internet import defer

from sandboxworker import SandboxLatentWorker
from sandboxworker.engine.answers import host_facts

pytestmark = pytest.mark.engine

SMALL: dict[str, Any] = {
    "memory": "48m", "disk": "4m", "tmp": "4m", "shm": "4m", "disk_inodes": 200, "pids": 40,
}  # fmt: skip

THE_LIMIT = "the limit is the policy's "

POLICIES = {
    "busybox": SandboxPolicy(BUSYBOX, **SMALL),
    "debian": SandboxPolicy(DEBIAN, **SMALL),
    "quiet": SandboxPolicy(BUSYBOX, **SMALL, max_output="128k", max_step_output="64k"),
    "frugal": SandboxPolicy(BUSYBOX, **SMALL, max_upload="16k"),
    "brief": SandboxPolicy(BUSYBOX, **SMALL, max_runtime="4s"),
    "never-again": SandboxPolicy(BUSYBOX, **SMALL),
    "roomy": SandboxPolicy(DEBIAN, **{**SMALL, "memory": "128m"}),
}


@pytest_twisted.async_yield_fixture(scope="module")
async def master(
    engine_client: Any, left_over: Any, tmp_path_factory: Any
) -> AsyncIterator[RealMaster]:
    workers = [
        SandboxLatentWorker(
            name, policy=policy, **({"max_retries": 0} if name == "never-again" else {})
        )
        for name, policy in POLICIES.items()
    ]
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "key").write_text("5ecret-0f-many")
    (folder / "key").chmod(0o600)
    config = one_builder_each(workers, secretsProviders=[SecretInAFile(str(folder))])
    async with running_master(tmp_path_factory.mktemp("master"), config, left_over) as running:
        yield running


def words(build: BuildResult) -> tuple[str, Any, Any]:
    known = build.properties
    return known["sandbox_outcome"], known.get("sandbox_cause"), known.get("sandbox_limits")


async def ended(master: RealMaster, worker: str, build: Any) -> BuildResult:
    """A build's end: once tried, no container of it left to wait for, and the next one at once."""
    request = await master.begin(worker, build)
    result = await master.finished(request)
    assert len(await master.builds(request)) == 1
    assert master.master.workers.workers[worker].quarantine_timer is None
    assert (await master.run(worker, [shell("true", "next")])).result == "success"
    return result


def last_header(build: BuildResult, step: str) -> str:
    """The log's last line."""
    lines = [line for line in build[step].logs["stdio"].split("\n") if line]
    assert lines[-1].startswith("h")
    return lines[-1][1:]


# ---- what a build does to itself -----------------------------------------------------------------


@differs("memory")
@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("worker", ["busybox", "debian"])
async def test_memory(master: RealMaster, worker: str) -> None:
    build = await ended(
        master, worker, [shell("exec dd if=/dev/zero of=/dev/null bs=200M count=1", "bomb")]
    )
    assert build.result == "failure"
    assert words(build) == ("failed", "memory", ["memory"])
    header = last_header(build, "bomb")
    assert header.startswith("sandboxworker: limit reached: out of memory")
    assert "its peak 61.0 MiB; the limit is the policy's memory (48m)" in header


@differs("memory")
@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("command", "result", "cause"),
    [
        ("dd if=/dev/zero of=/dev/null bs=200M count=1; exit 3", "failure", "memory"),
        ("dd if=/dev/zero of=/dev/null bs=200M count=1; true", "success", None),
    ],
    ids=["other-code", "no-code"],
)
async def test_memory_that_a_child_died_of_behind_the_steps_own_exit_code(
    master: RealMaster, command: str, result: str, cause: str | None
) -> None:
    build = await ended(master, "busybox", [shell(command, "bomb"), shell("true", "after")])
    assert build.result == result
    outcome = "failed" if cause else "completed"
    assert words(build) == (outcome, cause, ["memory"])
    assert "the policy's memory (48m)" in last_header(build, "bomb")
    assert "limit" not in build["after"].headers


@differs("bomb")
@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("worker", ["busybox", "debian"])
async def test_pids(master: RealMaster, worker: str) -> None:
    bomb = "i=0; while [ $i -lt 60 ]; do sleep 30 & i=$((i+1)); done"
    build = await ended(master, worker, [shell(bomb, "bomb")])
    assert build.result == "failure"
    assert words(build) == ("failed", "pids", ["pids"])
    assert last_header(build, "bomb") == (
        "sandboxworker: limit reached: a process or thread could not be started; "
        "the limit is the policy's pids (40)"
    )


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("worker", ["busybox", "debian"])
@pytest.mark.parametrize(
    ("command", "field", "said"),
    [
        ("cat /dev/zero >file", "disk", "/build is full; {}disk (4m)"),
        ("cat /dev/zero >/tmp/f", "tmp", "/tmp is full; {}tmp (4m)"),
        ("cat /dev/zero >/dev/shm/f", "shm", "/dev/shm is full; {}shm (4m)"),
        pytest.param(
            "for i in $(seq 300); do : >f$i || exit 1; done",
            "disk_inodes",
            "/build can take no more files; {}disk_inodes (200)",
            marks=differs("inodes"),
        ),
        (
            "cat /dev/zero >file; rm file; exit 1",
            "disk",
            "a file system was full for a time (disk 4m, tmp 4m, shm 4m); {}disk (4m)",
        ),
    ],
    ids=["workspace", "tmp", "shm", "inodes", "for-a-time"],
)  # fmt: skip
async def test_disk(master: RealMaster, worker: str, command: str, field: str, said: str) -> None:
    build = await ended(master, worker, [shell(command, "bomb")])
    assert build.result == "failure"
    assert words(build) == ("failed", "disk", [field])
    assert last_header(build, "bomb") == "sandboxworker: limit reached: " + said.format(THE_LIMIT)


@pytest_twisted.ensureDeferred
async def test_a_download_that_finds_no_room(master: RealMaster) -> None:
    step = steps.StringDownload("x" * 5_000_000, workerdest="file", name="bomb")
    build = await ended(master, "busybox", [step])
    assert build.result == "failure"
    assert words(build) == ("failed", "disk", ["disk"])
    assert "the limit is the policy's disk (4m)" in build["bomb"].logs["stdio"]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("field", ["max_step_output", "max_output"])
async def test_output(master: RealMaster, field: str) -> None:
    much = [shell("head -c 60000 /dev/zero | tr '\\0' x", f"some{i}") for i in range(3)]
    build = await ended(
        master, "quiet", [shell("yes", "bomb")] if field == "max_step_output" else much
    )
    assert build.result == "failure"
    assert words(build) == ("failed", "output", [field])
    assert f"the limit is the policy's {field}" in build.log


@pytest_twisted.ensureDeferred
async def test_upload(master: RealMaster, tmp_path: Path) -> None:
    make = shell("head -c 100000 /dev/zero >file", "make")
    take = steps.FileUpload(workersrc="file", masterdest=str(tmp_path / "file"), name="take")
    build = await ended(master, "frugal", [make, take])
    assert build.result == "failure"
    assert words(build) == ("failed", "upload", ["max_upload"])
    assert "the limit is the policy's max_upload" in build["take"].logs["stdio"]


@pytest_twisted.ensureDeferred
async def test_deadline(master: RealMaster) -> None:
    build = await ended(master, "brief", [shell("trap '' TERM HUP INT; sleep 304", "hang")])
    assert build.result == "failure"
    assert words(build) == ("failed", "deadline", ["max_runtime"])
    assert "the policy's max_runtime of 4s is over" in build["hang"].headers


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("command", "cause"),
    [("exit 7", "exit"), ("kill -SEGV $$", "signal"), ("kill -9 -1; sleep 5", "signal")],
    ids=["exit", "signal", "kills-everything"],
)
async def test_exit_and_signal(master: RealMaster, command: str, cause: str) -> None:
    build = await ended(master, "debian", [shell(command, "fail")])
    assert build.result == "failure"
    assert words(build) == ("failed", cause, None)
    assert "limit" not in build["fail"].headers


@pytest_twisted.ensureDeferred
async def test_a_secret_that_is_not_released(master: RealMaster) -> None:
    step = shell(["echo", util.Secret("key")], "greedy")
    build = await ended(master, "busybox", [step])
    assert build.result == "failure"
    assert words(build) == ("secret-refused", None, None)
    assert "secret key is refused" in build.log


class Broken(buildstep.BuildStep):
    """A step whose own code is at fault."""

    name = "broken"

    async def run(self) -> int:
        raise ValueError("a fault of the step's")


@pytest_twisted.ensureDeferred
async def test_a_step_that_raises_does_not_keep_the_worker_from_the_next_build(
    master: RealMaster,
) -> None:
    build = await ended(master, "busybox", [Broken()])
    master.errors.clear()
    assert build.result == "exception"
    assert words(build) == ("failed", "step", None)


#: Fills memory that is no process's, from a process that is smaller than any shell: so the kernel
#: kills all others first, the sandbox's keeper among them.
KEEPER_KILLER = r"""
static long call(long n, long a, long b, long c) {
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return r;
}
void _start(void) {
    for (;;) {
        long id = call(29, 0, 65536, 01600);
        if (id < 0) call(60, 1, 0, 0);
        volatile char *page = (volatile char *)call(30, id, 0, 0);
        for (long i = 0; i < 65536; i += 4096) page[i] = 1;
        call(67, (long)page, 0, 0);
    }
}
"""


@differs("memory")
@pytest_twisted.ensureDeferred
async def test_memory_that_is_no_process_s_kills_the_keeper_and_fails_the_build(
    master: RealMaster,
) -> None:
    build = await ended(
        master,
        "roomy",
        [
            steps.StringDownload(KEEPER_KILLER, workerdest="k.c", name="write"),
            shell("gcc -O1 -nostdlib -static -o k k.c", "compile", haltOnFailure=True),
            shell("(trap '' HUP; ./k & ./k & ./k; wait); sleep 60", "bomb"),
            shell("sleep 60", "after"),
        ],
    )
    assert build.result == "failure"
    assert words(build) == ("failed", "memory", ["memory"])
    sandbox = build.properties["sandbox_id"]
    told = [entry["event"] for entry in master.audit if entry.get("sandbox") == sandbox]
    assert "sandbox.lost" in told  # The keeper did die.


#: Connections to itself that nobody reads.
CONNECTIONS = """
import os, socket, time
os.fork(), os.fork()
server = socket.create_server(("127.0.0.1", 0), backlog=1000)
held = []
while True:
    held += [socket.create_connection(server.getsockname()), server.accept()[0]]
    for end in held[-2:]:
        end.setblocking(False)
        try:
            while end.send(bytes(1 << 20)): pass
        except BlockingIOError: pass
"""


@differs("memory")
@pytest_twisted.ensureDeferred
async def test_more_in_sockets_than_it_may_use_fails_the_build(
    master: RealMaster, engine_client: Any
) -> None:
    if host_facts(engine_client.info()).counts_sockets:
        pytest.skip("where it is part of the memory the kernel may end a process for it first")
    bomb = [shell(f"exec python3 -c '{CONNECTIONS}'", "bomb"), shell("sleep 60", "after")]
    build = await ended(master, "roomy", bomb)
    assert build.result == "failure"
    assert words(build) == ("failed", "memory", ["memory"])
    assert "memory pile up in sockets" in build["bomb"].headers
    assert "MiB where it may use 141 MiB" in build["bomb"].headers


class Deaf(buildstep.BuildStep):
    """A step on the master's side that nothing ends."""

    name = "deaf"

    def run(self) -> Any:
        return defer.Deferred()


@pytest_twisted.ensureDeferred
async def test_a_step_on_the_master_that_does_not_end_keeps_no_build_past_its_deadline(
    master: RealMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandboxworker.ending.FINISH_DEADLINE", 5.0)
    build = await ended(master, "brief", [Deaf()])
    assert build.result == "failure"
    assert words(build) == ("failed", "deadline", ["max_runtime"])


# ---- what others do to it ------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_stop_button(master: RealMaster, engine_client: Any) -> None:
    request = await master.begin("busybox", [shell("sleep 305", "hang")])
    await master.process_runs(engine_client, "sleep 305")
    await master.stop_build(request)
    build = await master.finished(request)
    assert build.result == "cancelled"
    assert words(build) == ("stopped", None, None)
    assert len(await master.builds(request)) == 1


async def lose(master: RealMaster, engine_client: Any, command: str) -> None:
    """Take the sandbox away from under a running command, as no build could."""
    container = await master.process_runs(engine_client, command)
    engine_client.remove_container(container, force=True)


async def complete(master: RealMaster, request: int, count: int) -> None:
    async def is_complete() -> bool:
        builds = await master.builds(request)
        return len(builds) >= count and bool(builds[count - 1]["complete"])

    await until(is_complete, f"attempt {count}")


@pytest_twisted.ensureDeferred
async def test_a_lost_sandbox_is_retried_twice_and_then_an_exception_with_the_history(
    master: RealMaster, engine_client: Any
) -> None:
    request = await master.begin("busybox", [shell("sleep 306", "hang")])
    for attempt in (1, 2, 3):
        await lose(master, engine_client, "sleep 306")
        await complete(master, request, attempt)
    builds = [await master._result(build) for build in await master.builds(request)]
    assert [build.result for build in builds] == ["retry", "retry", "exception"]
    assert {words(build) for build in builds} == {("lost", None, None)}
    numbers = [build["number"] for build in await master.builds(request)]
    assert "retry 1 of max_retries=2" in builds[0].log
    assert "max_retries=2 is used up" in builds[2].log
    for number in numbers:
        assert f"build {number}: worker 'busybox' lost its sandbox" in builds[2].log
    assert (await master.run("busybox", [shell("true", "next")])).result == "success"
    master.errors.clear()


@pytest_twisted.ensureDeferred
async def test_a_build_that_is_well_after_a_retry_is_completed(
    master: RealMaster, engine_client: Any
) -> None:
    request = await master.begin("busybox", [shell(f"{HOLD}; echo done", "once")])
    await lose(master, engine_client, "/tmp/go")
    await complete(master, request, 1)
    let_go(engine_client, await master.process_runs(engine_client, "/tmp/go"))
    build = await master.finished(request)
    assert (build.result, words(build)) == ("success", ("completed", None, None))
    assert len(await master.builds(request)) == 2
    master.errors.clear()


@pytest_twisted.ensureDeferred
async def test_no_retry_where_the_worker_says_so(master: RealMaster, engine_client: Any) -> None:
    request = await master.begin("never-again", [shell("sleep 308", "hang")])
    await lose(master, engine_client, "sleep 308")
    build = await master.finished(request)
    assert build.result == "exception"
    assert "max_retries=0 is used up" in build.log
    assert len(await master.builds(request)) == 1
    master.errors.clear()


@pytest_twisted.ensureDeferred
async def test_an_engine_that_makes_no_sandbox_is_tried_so_often_and_no_more(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    policy = SandboxPolicy(BUSYBOX, **SMALL, runtime="no-such-runtime")
    worker = SandboxLatentWorker("w", policy=policy, max_retries=1)
    worker.quarantine_initial_timeout = worker.quarantine_timeout = 1
    config = configuration([worker], [shell("true", "s")])
    async with running_master(tmp_path, config, left_over) as master:
        request = await master.submit()
        await complete(master, request, 2)
        first, last = [await master._result(build) for build in await master.builds(request)]
        assert (first.result, last.result) == ("retry", "exception")
        assert words(first) == words(last) == ("engine-error", None, None)
        assert last.log.count("no-such-runtime") >= 3
        assert "max_retries=1 is used up" in last.log
        told = [entry["outcome"] for entry in master.audit if "outcome" in entry]
        assert told == ["engine-error"] * 2


@pytest_twisted.ensureDeferred
async def test_a_policy_that_cannot_be_fulfilled_is_no_fault_to_retry(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    policy = SandboxPolicy("sandboxworker/no-such-image:1", **SMALL)
    config = configuration([SandboxLatentWorker("w", policy=policy)], [shell("true", "s")])
    async with running_master(tmp_path, config, left_over) as master:
        request = await master.submit()
        build = await master.finished(request)
        assert build.result == "exception"
        assert words(build) == ("refused", None, None)
        assert len(await master.builds(request)) == 1
        assert master.master.workers.workers["w"].quarantine_timer is None
