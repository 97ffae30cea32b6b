"""A soak: stress-ng's ``os`` class inside a sandbox, the host as it was afterwards.

``SANDBOXWORKER_TEST_SOAK=SECONDS`` says for how long; without it 20 s, and only where the engine
has the image that ``sandboxworker image build workbench`` makes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from escapes.watcher import Watcher
from memory_engine import within

from sandboxworker.process import run
from sandboxworker.sandbox import State

pytestmark = pytest.mark.engine

IMAGE = "sandboxworker/workbench:bookworm"
ASKED = os.environ.get("SANDBOXWORKER_TEST_SOAK")
SECONDS = int(ASKED or 20)
#: One stressor of each kind after the other would take hours: all at once, one process each.
SOAK = f"""\
stress-ng --class os --all 1 --timeout {SECONDS} --oom-avoid --quiet --temp-path /build/s \
    >log 2>&1
"""


@pytest_twisted.ensureDeferred
@pytest.mark.timeout(SECONDS + 240)
async def test_the_host_is_as_it_was_after_a_soak(
    make_sandbox: Any, engine_client: Any, tmp_path: Path
) -> None:
    if not engine_client.images(IMAGE):
        refuse = pytest.fail if ASKED else pytest.skip
        refuse("the engine has no workbench: run 'sandboxworker image build workbench'")
    limits = {"memory": "512m", "pids": 2048, "disk": "256m", "max_runtime": SECONDS + 200}
    sandbox = await make_sandbox(IMAGE, **limits)
    neighbour = await make_sandbox()
    watcher = Watcher(engine_client, tmp_path, [str(neighbour.container)])
    try:
        soak = run(sandbox, ("sh", "-c", SOAK), directory="/build/s")
        # Its stressors kill each other, and at times the shell that began them.
        await within(SECONDS + 180, soak)
        usage = await sandbox.usage()
        assert (usage.cpu_seconds or 0) > SECONDS / 10, "the soak did not run"
        # Where nothing can be started in it any more, this gives the sandbox up.
        await within(120, sandbox.kill_all())
        await within(120, sandbox.destroy())
        assert sandbox.state is State.GONE
        assert watcher.changes() == []
        answer = await within(60, run(neighbour, ("echo", "here")))
        assert answer.stdout == b"here\n"
    finally:
        watcher.bait.close()
