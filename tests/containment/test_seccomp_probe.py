"""T1, T4: every system call that the profiles refuse is tried in a sandbox."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from memory_engine import within

from sandboxworker.process import run

PROBE = Path(__file__).with_name("probe_seccomp.c")
SECONDS = 60


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("profile", ["build", "strict"])
async def test_every_attempt_comes_out_as_the_profile_promises(
    make_sandbox: Any, profile: str
) -> None:
    sandbox = await make_sandbox(seccomp=profile)
    compile_it = ["sh", "-c", "cat >probe.c && gcc -o probe probe.c"]
    source = io.BytesIO(PROBE.read_bytes())
    compiled = await within(SECONDS, run(sandbox, compile_it, directory="/build/p", stdin=source))
    assert compiled.exit_code == 0, compiled.stderr
    tried = await within(SECONDS, run(sandbox, ["./probe", profile], directory="/build/p"))
    lines = tried.stdout.decode().splitlines()
    assert [line for line in lines if "UNEXPECTED" in line] == []
    assert (tried.exit_code, lines[-1]) == (0, "0 unexpected")
    assert len(lines) > 400


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("profile", ["build", "strict"])
async def test_grep_that_would_splice_its_input_away_reads_it(
    make_sandbox: Any, profile: str
) -> None:
    """As every ``configure`` has it: the rest of a pipe, after a match, with output to nowhere."""
    sandbox = await make_sandbox(seccomp=profile)
    pipe = "seq 100000 | grep 5 >/dev/null; echo $?; seq 100000 | grep no >/dev/null; echo $?"
    done = await within(SECONDS, run(sandbox, ["sh", "-c", pipe]))
    assert (done.stdout, done.stderr) == (b"0\n1\n", b"")
