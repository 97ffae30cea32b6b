"""``sandboxworker doctor --sandbox`` with a real engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engine
COMMAND = str(Path(sys.executable).with_name("sandboxworker"))


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "doctor", *arguments], capture_output=True, text=True, timeout=120,
        env=dict(os.environ), check=False,
    )  # fmt: skip


def test_every_row_holds(engine_client: Any, image: str) -> None:
    done = doctor("--sandbox", image, "--json")
    rows = json.loads(done.stdout)
    assert [row for row in rows if row["verdict"] == "fails"] == []
    assert (done.returncode, done.stderr) == (0, "")
    assert {"CIS Docker 5", "Pod Security", "Threat model"} == {row["standard"] for row in rows}


def test_the_table_ends_with_the_counts(engine_client: Any, debian: str) -> None:
    done = doctor("--sandbox", debian)
    assert done.stdout.splitlines()[-1] == "55 holds, 0 fails, 9 elsewhere"


def test_every_row_holds_under_gvisor(gvisor: str, debian: str) -> None:
    done = doctor("--sandbox", debian, "--runtime", gvisor, "--json")
    rows = json.loads(done.stdout)
    assert [row for row in rows if row["verdict"] == "fails"] == []
    (seccomp,) = [row for row in rows if row["id"] == "5.22"]
    assert "Seccomp is 0" in seccomp["seen"]


def test_an_image_that_is_not_there_is_one_message(engine_client: Any) -> None:
    done = doctor("--sandbox", "no/such:image")
    assert done.returncode == 125
    assert done.stderr.startswith("sandboxworker: error: ")
    assert "Traceback" not in done.stderr
