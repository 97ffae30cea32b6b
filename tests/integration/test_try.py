"""``sandboxworker try``, as a person runs it: a program of its own against a real engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import BUSYBOX

from sandboxworker.engine.address import resolve
from sandboxworker.engine.sdk import sdk_client

pytestmark = pytest.mark.engine

PROGRAM = [sys.executable, "-c", "from sandboxworker.cli import main; main()", "try"]
SECONDS = 60


@pytest.fixture(autouse=True)
def _nothing_is_left() -> object:
    yield
    assert containers() == set()


def containers() -> set[str]:
    """The sandboxes of all tries on this engine."""
    client = sdk_client(resolve(None))
    try:
        found = client.containers(all=True, filters={"label": "sandboxworker.master"})
    finally:
        client.close()
    return {
        each["Id"] for each in found if each["Labels"]["sandboxworker.master"].startswith("try-")
    }


def tried(
    directory: Path, *arguments: str, image: str = BUSYBOX, **environ: str
) -> tuple[int, str, str]:
    completed = subprocess.run(
        [*PROGRAM, "--image", image, *arguments],
        cwd=directory,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert "Traceback" not in completed.stderr
    return completed.returncode, completed.stdout, completed.stderr


def test_command_runs_on_the_files_and_its_exit_code_is_ours(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("content\n")
    (tmp_path / "run.sh").write_text("#!/bin/sh\ncat f; echo err >&2; exit 7\n")
    (tmp_path / "run.sh").chmod(0o755)
    code, out, err = tried(tmp_path, "--", "./run.sh")
    assert (code, out) == (7, "content\n")
    assert err.startswith("err\nsandboxworker: exit code 7, ")
    assert "peak memory" in err
    assert "CPU" in err


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["sh", "-c", "kill -9 $$"], 137, "killed by signal 9"),
        (["no-such-command"], 127, "not found"),
        (["/etc/passwd"], 126, "ermission denied"),
        (["sh", "-c", "touch /x"], 1, "Read-only file system"),
    ],
)
def test_other_ends_are_told(tmp_path: Path, command: list[str], code: int, said: str) -> None:
    got, _, err = tried(tmp_path, "--", *command)
    assert got == code
    assert said in err


def test_limits_of_the_policy_end_the_command(tmp_path: Path) -> None:
    policy = tmp_path / "p.toml"
    policy.write_text('max_runtime = 3\nmax_step_output = "4k"\n')
    code, _, err = tried(tmp_path, "--policy", str(policy), "--", "sleep", "50")
    assert (code, "max_runtime of 3s is over" in err) == (137, True)
    code, out, err = tried(tmp_path, "--policy", str(policy), "--", "yes")
    assert (code, len(out)) == (137, 4096)
    assert "max_step_output" in err


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["--nope", "--", "true"], {}, "No such option"),
        ([], {}, "Missing argument"),
        (["--policy", "missing.toml", "--", "true"], {}, "cannot be read"),
        (["--engine", "tcp://192.0.2.1:1", "--", "true"], {}, "plain TCP"),
        (["--", "true"], {"DOCKER_HOST": "unix:///nowhere/docker.sock"}, "does not answer"),
    ],
)
def test_own_failures_are_125_and_one_message(
    tmp_path: Path, arguments: list[str], environ: dict[str, str], said: str
) -> None:
    code, out, err = tried(tmp_path, *arguments, **environ)
    assert (code, out) == (125, "")
    assert said in err


def test_missing_image_is_125_and_says_how_to_get_it(tmp_path: Path) -> None:
    code, _, err = tried(tmp_path, "--", "true", image="no/such:image")
    assert code == 125
    assert "sandboxworker image build" in err


def test_files_that_do_not_fit_are_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('disk = "1m"\n')
    (tmp_path / "big").write_bytes(bytes(2 * 1024 * 1024))
    code, _, err = tried(tmp_path, "--policy", "p.toml", "--", "true")
    assert code == 125
    assert "do not fit" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_destroys_the_sandbox(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = [*PROGRAM, "--image", BUSYBOX, "--", "sh", "-c", "echo up; sleep 100"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        assert len(containers()) == 1
        program.send_signal(number)
        assert program.wait(SECONDS) == code


def test_killed_program_takes_its_sandbox_along(tmp_path: Path) -> None:
    command = [*PROGRAM, "--image", BUSYBOX, "--", "sh", "-c", "echo up; sleep 100"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        program.kill()
    until = time.monotonic() + 10
    while containers() and time.monotonic() < until:
        time.sleep(0.1)
