"""The whole suite: two processes beside each other, then what failed there once more, alone.

Many tests are about what happens when somebody is late, and beside other tests anybody may be.
So a test counts as failed when it fails by itself as well; the first pass and its failures are
printed all the same.
What is left on the engine after both passes fails the run, whichever test left it.

``python tests/everything.py [pytest's arguments]``; the exit code is pytest's.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

import docker
import pytest

from sandboxworker.engine.address import resolve

#: Files are kept whole: their tests share masters.
BESIDE_EACH_OTHER = (
    *("--numprocesses=2", "--dist=loadfile", "--max-worker-restart=4"),
    *("--durations=40", "--durations-min=5"),
)
ALONE = ("--last-failed", "--last-failed-no-failures=none")
SECONDS_TO_GO = 30


def main(arguments: Sequence[str]) -> int:
    before = containers()
    code = run(*BESIDE_EACH_OTHER, *arguments)
    if code == pytest.ExitCode.TESTS_FAILED:
        print("\nOnce more, alone, what failed:", flush=True)
        code = run(*ALONE, *arguments)
    left = left_since(before)
    if left:
        print(f"left on the engine after the tests: {', '.join(sorted(left))}")
        return code or int(pytest.ExitCode.TESTS_FAILED)
    return code


def run(*arguments: str) -> int:
    """In a process of its own, as a reactor runs but once."""
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, check=False).returncode


def left_since(before: set[str]) -> set[str]:
    """What stays; the sandboxes of a master that a test killed go within seconds."""
    give_up = time.monotonic() + SECONDS_TO_GO
    while (left := containers() - before) and time.monotonic() < give_up:
        time.sleep(1)
    return left


def containers() -> set[str]:
    """The sandboxes that are on the engine, of whichever master."""
    client = docker.APIClient(**resolve(None).sdk_arguments(), timeout=60)
    try:
        found = client.containers(all=True, filters={"label": "sandboxworker.master"})
    except docker.errors.DockerException as error:
        sys.exit(f"no container engine answers ({error}): run 'make engine'")
    finally:
        client.close()
    return {container["Id"][:12] for container in found}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
