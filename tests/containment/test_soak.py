"""A soak: stress-ng's ``os`` class inside a sandbox, the host as it was afterwards.

``SANDBOXWORKER_TEST_RECORD=FILE`` writes what was measured.
``SANDBOXWORKER_TEST_SOAK=SECONDS`` says for how long; without it 20 s, and only where the engine
has the image that ``sandboxworker image build workbench`` makes.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from escapes.watcher import Watcher
from memory_engine import within
from real_master import pause

from sandboxworker.process import run
from sandboxworker.sandbox import State

pytestmark = pytest.mark.engine

IMAGE = "sandboxworker/workbench:bookworm"
ASKED = os.environ.get("SANDBOXWORKER_TEST_SOAK")
SECONDS = int(ASKED or 20)
#: One stressor of each kind after the other would take hours: all at once, one process each.
SOAK = """\
stress-ng --class os --all 1{} --timeout {} --oom-avoid --quiet --temp-path /build/s >log 2>&1
"""
#: Instructions at random, which an emulated processor does not carry out as a real one does: for
#: one of them it read the program's stack with the kernel's rights, and the kernel stumbled.
LEFT_OUT = " --exclude opcode" if os.environ.get("SANDBOXWORKER_VM") else ""


@attrs.define
class Figures:
    """What was seen from outside. Memory in MiB, answers in ms."""

    sandboxes: int = 0
    #: Why sandboxes were lost, and how often.
    lost: Counter[str] = attrs.Factory(Counter)
    cpu_seconds: float = 0.0
    least: int = attrs.Factory(lambda: available())
    answers: list[float] = attrs.Factory(list)


@pytest_twisted.ensureDeferred
@pytest.mark.timeout(2 * SECONDS + 240)
async def test_the_host_is_as_it_was_after_a_soak(
    make_sandbox: Any, engine_client: Any, tmp_path: Path
) -> None:
    if not engine_client.images(IMAGE):
        refuse = pytest.fail if ASKED else pytest.skip
        refuse("the engine has no workbench: run 'sandboxworker image build workbench'")
    neighbour = await make_sandbox()
    watcher = Watcher(engine_client, tmp_path, [str(neighbour.container)])
    seen, before, end = Figures(), available(), time.monotonic() + SECONDS
    try:
        # It may take its sandbox with it: then another goes on.
        while (left := end - time.monotonic()) > 0:
            limits = {"memory": "512m", "pids": 2048, "disk": "256m", "max_runtime": SECONDS + 200}
            await soak(await make_sandbox(IMAGE, **limits), neighbour, int(left) + 1, seen)
        assert seen.cpu_seconds > SECONDS / 10, "the soak did not run"
        assert watcher.changes() == []
        await answered(neighbour, seen)
        record(seen, before)
    finally:
        watcher.bait.close()


async def soak(sandbox: Any, neighbour: Any, seconds: int, seen: Figures) -> None:
    """One sandbox's, until it is over or the sandbox lost; gone at the end."""
    seen.sandboxes += 1
    used = 0.0
    # Its stressors kill each other, and at times the shell that began them.
    running = run(sandbox, ("sh", "-c", SOAK.format(LEFT_OUT, seconds)), directory="/build/s")
    give_up = time.monotonic() + seconds + 180
    while not running.called:
        assert time.monotonic() < give_up, "the soak has no end"
        await answered(neighbour, seen)
        used = (await sandbox.usage()).cpu_seconds or used
        await pause(1.0)
    seen.cpu_seconds += (await sandbox.usage()).cpu_seconds or used
    # Where nothing can be started in it any more, this gives the sandbox up.
    await within(120, sandbox.kill_all())
    if sandbox.lost is not None:
        reason = await within(60, sandbox.post_mortem(sandbox.lost))
        seen.lost[str(reason).replace(sandbox.id, "…")] += 1
    await within(120, sandbox.destroy())
    assert sandbox.state is State.GONE


async def answered(neighbour: Any, seen: Figures) -> None:
    """A neighbour's sandbox does."""
    begin = time.monotonic()
    answer = await within(60, run(neighbour, ("echo", "here")))
    assert answer.stdout == b"here\n"
    seen.answers.append((time.monotonic() - begin) * 1000)
    seen.least = min(seen.least, available())


def available() -> int:
    """Memory that the host has to give, in MiB."""
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(facts["MemAvailable"].split()[0]) // 1024


def record(seen: Figures, before: int) -> None:
    """For docs/containment.md, where a file is asked for."""
    name = os.environ.get("SANDBOXWORKER_TEST_RECORD")
    if name:
        median, worst = statistics.median(seen.answers), max(seen.answers)
        with open(name, "a") as file:
            file.write(
                f"| {SECONDS} | {seen.sandboxes}, of which lost: {seen.lost.total()} | "
                f"{seen.cpu_seconds:.0f} | {before} / {seen.least} / {available()} | "
                f"{len(seen.answers)}: {median:.0f} ({worst:.0f}) |\n"
            )
            file.writelines(f"{count} lost: {why}\n" for why, count in seen.lost.most_common())
