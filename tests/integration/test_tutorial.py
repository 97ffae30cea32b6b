"""The tutorial, pasted block by block into one shell."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, blocks
from real_master import containers_of

from sandboxworker.identity import read_id

pytestmark = pytest.mark.engine

MINE = f"tried by: {Path(__file__).relative_to(ROOT)}"
#: Whatever becomes of it, its master ends.
AROUND = 'set -eu\ntrap "buildbot stop --no-wait master >/dev/null 2>&1 || true" EXIT\n'

REFUSALS = (
    *("Permission denied", "Network is unreachable", "No space left on device"),
    *("output limit reached", "max_step_output"),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: Any) -> Path:
    """Where it is pasted."""
    return Path(tmp_path_factory.mktemp("tutorial"))


@pytest.fixture(scope="module")
def told(engine_client: Any, left_over: Any, directory: Path) -> str:
    """All that the tutorial's commands print."""
    pasted = [b.text for b in blocks(ROOT / "docs" / "tutorial.md") if b.mark == MINE]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", AROUND + "\n".join(pasted)],
        cwd=directory,
        env={**os.environ, "PATH": path, "PORT": str(free_port())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    left_over.masters.add(read_id(directory / "tutorial" / "master"))
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_first_sandbox_says_hello(told: str) -> None:
    assert "hello from a sandbox" in told


def test_the_pull_request_is_built_from_its_source(told: str) -> None:
    honest = told.partition("== git:")[2].partition("== git:")[0]
    assert "cc     hello.c   -o hello" in honest
    assert "./hello | grep -q hello\nprogram finished with exit code 0" in honest


@pytest.mark.parametrize("words", REFUSALS)
def test_the_hostile_one_is_refused(told: str, words: str) -> None:
    assert words in told.rpartition("== git:")[2]


def test_no_container_is_left(told: str, directory: Path, engine_client: Any) -> None:
    """Its own list shows those of tests that run beside this one as well."""
    audited = told.rpartition("CONTAINER ID")[2].partition("\ntime ")[2]
    assert audited.count("sandbox.gone") == 2
    assert containers_of(engine_client, read_id(directory / "tutorial" / "master")) == []
