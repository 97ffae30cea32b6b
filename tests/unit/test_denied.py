"""The command line that names what the profile refused."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandboxworker.cli.denied import explained, refusals
from sandboxworker.seccomp import DANGEROUS

SOURCE = (Path(__file__).resolve().parents[2] / "seccomp" / "source.ini").read_text()

Run = Callable[..., Any]

#: Writes what strace would have, and runs the command.
STRACE = """\
#!/bin/sh
[ "$1" = -qq ] && exit 0
while [ "$1" != -o ]; do shift; done
printf '%s\\n' "$TRACED" >"$2"
shift 2
exec "$@"
"""


def test_everything_dangerous_has_its_reason() -> None:
    known = {call for refusal in refusals(SOURCE) for call in refusal.calls}
    gone = {"clock_settime64", "stime", "umount"}  # of other architectures
    assert DANGEROUS.keys() - known == gone
    assert all(refusal.why for refusal in refusals(SOURCE))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "strace").write_text(STRACE)
    (tmp_path / "strace").chmod(0o755)

    def ran(traced: str, *command: str, path: str = f"{tmp_path}:/usr/bin:/bin") -> Any:
        environ = {"PATH": path, "TRACED": traced}
        return subprocess.run(explained(command), env=environ, capture_output=True, text=True)

    return ran


def test_a_refused_call_is_named_once_with_its_reason(run: Run) -> None:
    line = '7  add_key("user", "x", NULL, 0, 1)   = -1 EPERM (Operation not permitted)'
    done = run(f"{line}\n{line}", "sh", "-c", "echo out; exit 3")
    assert (done.stdout, done.returncode) == ("out\n", 3)
    assert done.stderr.splitlines()[0] == "sandboxworker: calls that the profile refused:"
    (told,) = done.stderr.splitlines()[1:]
    assert told.startswith('sandboxworker: 2 times: add_key("user", "x", NULL, 0, 1) = EPERM -- ')


def test_where_nothing_was_refused_that_is_said(run: Run) -> None:
    done = run("", "true")
    assert (done.stderr, done.returncode) == ("sandboxworker: the profile refused no call\n", 0)


def test_without_strace_the_command_runs_and_that_is_said(run: Run) -> None:
    done = run("", "/bin/sh", "-c", "exit 4", path="/nowhere")
    assert "the image has no strace" in done.stderr
    assert done.returncode == 4
