"""The soak, short: a few dozen builds while their engine and their sandboxes are tormented."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from own_daemon import why_not

pytestmark = pytest.mark.engine

TESTS = Path(__file__).resolve().parents[1]
SECONDS = 400
#: A hiccup every five builds, and every third of them one of the whole daemon.
ARGUMENTS = ("--builds=32", "--workers=4", "--every=5", "--restarts=3", "--seed=7")


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_each_build_ends_as_it_has_to_and_nothing_is_left(
    engine_client: Any, tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "soak", *ARGUMENTS, "--json", str(figures)]
    environ = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        output = _until_over(running)
    assert figures.exists(), output
    told = json.loads(figures.read_text())
    assert told["faults"] == [], output
    assert sum(told["harm"].values()) > 0
    assert running.returncode == 0


def _until_over(running: subprocess.Popen[str]) -> str:
    """All that it says; it is told to end, and cleans up, where that takes too long."""
    try:
        return running.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGTERM)
    try:
        output = running.communicate(timeout=50)[0]
    except subprocess.TimeoutExpired:
        running.kill()
        output = running.communicate()[0]
    pytest.fail(f"not over after {SECONDS} s:\n{output}")
