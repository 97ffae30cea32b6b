"""T5–T9: every quota is exceeded in a sandbox, and holds."""

from __future__ import annotations

import re
from typing import Any

import attrs
import pytest
import pytest_twisted
from memory_engine import within

from sandboxworker.policy import MIB
from sandboxworker.process import run

pytestmark = pytest.mark.engine
SECONDS = 90


async def say(sandbox: Any, script: str) -> str:
    """What a shell script prints, on both channels."""
    done = await within(SECONDS, run(sandbox, ["sh", "-c", f"exec 2>&1; {script}"]))
    return done.stdout.decode(errors="replace").strip()


#: Writes well past a size: "said SIZE" is how much a place took.
FILL = "head -c {0} /dev/zero >{1}/full; echo said $(wc -c <{1}/full); rm {1}/full"


def said(output: str) -> int:
    return int(re.search(r"said (\d+)", output)[1])  # type: ignore[index]


@pytest_twisted.ensureDeferred
async def test_a_view(make_sandbox: Any) -> None:
    sandbox = await make_sandbox(disk_backing="disk", disk="32m", disk_inodes=500)
    print(await say(sandbox, "df; df -i; nproc; cat /proc/self/mountinfo; ls -la /build; id"))
