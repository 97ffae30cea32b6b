"""Real builds under the profiles: what projects do every day is not refused.

A short selection with the ordinary image always runs; ``SANDBOXWORKER_TEST_REAL_WORK=1`` runs all,
with the image that ``sandboxworker image build workbench`` makes.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import pytest_twisted
from memory_engine import within
from real_work import BRIEF, WHOLE, WORKBENCH, Work

from sandboxworker.process import run

pytestmark = pytest.mark.engine

SECONDS = 200
ALL = bool(os.environ.get("SANDBOXWORKER_TEST_REAL_WORK"))
WORKS = (*BRIEF, *(WHOLE if ALL else ()))
RUNTIME = os.environ.get("SANDBOXWORKER_RUNTIME")
CASES = [
    pytest.param(work, profile, id=f"{work.id}-{profile}")
    for work in WORKS
    for profile in ("build", "strict")
]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(("work", "profile"), CASES)
async def test_it_works(make_sandbox: Any, engine_client: Any, work: Work, profile: str) -> None:
    if work.image == WORKBENCH and not engine_client.images(WORKBENCH):
        pytest.fail("the engine has no workbench: run 'sandboxworker image build workbench'")
    sandbox = await make_sandbox(
        work.image, seccomp=profile, runtime=RUNTIME, cpus=2, memory="3g", disk="1g", tmp="512m",
        max_runtime="10m",
    )  # fmt: skip
    script = f"export HOME=/build\n{work.script}"
    done = await within(SECONDS, run(sandbox, ("sh", "-ec", script), directory="/build/w"))
    told = (done.stdout + done.stderr).decode(errors="replace")
    works = done.exit_code == 0 and work.told in told
    assert works is (work.strict or profile == "build"), told[-3000:]
