"""``sandboxworker try``: its options, and their completion."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from sandboxworker.cli import main

PROGRAM = [
    sys.executable,
    "-c",
    "from sandboxworker.cli import main; main(prog_name='sandboxworker')",
]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_shells_are_given_a_script_that_completes(shell: str) -> None:
    done = subprocess.run(
        PROGRAM,
        env={**os.environ, "_SANDBOXWORKER_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "_SANDBOXWORKER_COMPLETE" in done.stdout


def test_options_are_completed() -> None:
    done = subprocess.run(
        PROGRAM,
        env={
            **os.environ,
            "_SANDBOXWORKER_COMPLETE": "bash_complete",
            "COMP_WORDS": "sandboxworker try --keep",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "--keep-on-failure" in done.stdout


def test_help_has_examples_and_exit_codes() -> None:
    told = CliRunner().invoke(main, ["try", "--help"]).output
    for word in (
        "Examples:",
        "Exit codes:",
        "125",
        "--keep-on-failure",
        "sandboxworker try --shell",
    ):
        assert word in told
