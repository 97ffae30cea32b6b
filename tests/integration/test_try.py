"""``sandboxworker try``, as a person runs it: a program of its own against a real engine."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import docker.errors
import pytest
from conftest import BUSYBOX, DEBIAN

from sandboxworker.engine.address import resolve
from sandboxworker.engine.sdk import sdk_client

pytestmark = pytest.mark.engine

PROGRAM = [sys.executable, "-c", "from sandboxworker.cli import main; main()", "try"]
SECONDS = 60


class Runs:
    """Programs that a test has started, and what of theirs is on the engine."""

    def __init__(self) -> None:
        self._pids: list[int] = []

    def begin(self, command: list[str], **how: Any) -> subprocess.Popen[str]:
        """Start a program."""
        program = subprocess.Popen(command, **how)
        self._pids.append(program.pid)
        return program

    def run(self, command: list[str], **how: Any) -> tuple[int, str, str]:
        """One to its end: its exit code, and what it wrote."""
        program = self.begin(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
        )
        with program:
            try:
                out, err = program.communicate(timeout=3 * SECONDS)
            finally:
                program.kill()
        assert "Traceback" not in out + err
        return program.returncode, out, err

    def containers(self) -> set[str]:
        """Their sandboxes: tests beside this one have tries of their own."""
        client = sdk_client(resolve(None))
        try:
            return {
                each["Id"]
                for pid in self._pids
                for each in client.containers(
                    all=True, filters={"label": f"sandboxworker.worker=try-{pid}"}
                )
            }
        finally:
            client.close()

    def run_inside(self, name: str) -> bool:
        """Whether one of their sandboxes runs a program."""
        client = sdk_client(resolve(None))
        try:
            return any(
                name in process[-1]
                for container in self.containers()
                for process in client.top(container)["Processes"] or ()
            )
        except docker.errors.APIError:  # It is not started yet.
            return False
        finally:
            client.close()


RUNS = Runs()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> object:
    yield
    assert RUNS.containers() == set()


def tried(
    directory: Path, *arguments: str, image: str = BUSYBOX, **environ: str
) -> tuple[int, str, str]:
    return RUNS.run(
        [*PROGRAM, "--image", image, *arguments], cwd=directory, env={**os.environ, **environ}
    )


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
        ([], {}, "Missing COMMAND"),
        (["--policy", "missing.toml", "--", "true"], {}, "cannot be read"),
        (["--shell"], {}, "needs a terminal"),
        (["--keep-on-failure", "--", "true"], {}, "needs a terminal"),
        (["--json", "--shell"], {}, "--json shows no shell"),
        (["--out", "o", "--", "true"], {}, "need each other"),
        (["--secret", "a=b", "--", "true"], {}, "--secret needs --builder"),
        (["--builder", "b", "--", "true"], {}, "COMMAND does not go with --builder"),
        (["--builder", "b", "--property", "x"], {}, "'x' is not NAME=VALUE"),
        (["--builder", "b"], {}, "there is no configuration"),
        (["--builder", "b", "-m", "missing.cfg"], {}, "does not exist"),
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
    with RUNS.begin(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        assert len(RUNS.containers()) == 1
        program.send_signal(number)
        assert program.wait(SECONDS) == code


def test_killed_program_takes_its_sandbox_along(tmp_path: Path) -> None:
    command = [*PROGRAM, "--image", BUSYBOX, "--", "sh", "-c", "echo up; sleep 100"]
    with RUNS.begin(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        program.kill()
    until = time.monotonic() + 10
    while RUNS.containers() and time.monotonic() < until:
        time.sleep(0.1)


def test_json_is_one_object_with_all_there_is_to_know(tmp_path: Path) -> None:
    code, out, err = tried(tmp_path, "--json", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    told = json.loads(out)
    assert (code, told["exit_code"], told["result"]) == (3, 3, "exit code 3")
    assert (told["stdout"], told["stderr"], told["interrupted"]) == ("out\n", "err\n", False)
    assert told["seconds"] > 0
    assert err == ""


def test_json_says_so_when_it_was_interrupted(tmp_path: Path) -> None:
    command = [*PROGRAM, "--image", BUSYBOX, "--json", "--", "sleep", "100"]
    with RUNS.begin(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as program:
        deadline = time.monotonic() + SECONDS
        while not RUNS.run_inside("sleep") and time.monotonic() < deadline:
            time.sleep(0.1)
        program.send_signal(signal.SIGTERM)
        out, _ = program.communicate(timeout=SECONDS)
    told = json.loads(out)
    assert (program.returncode, told["exit_code"], told["interrupted"]) == (143, 143, True)


def test_artifacts_come_back_and_nothing_else(tmp_path: Path) -> None:
    script = "mkdir -p d/e; echo 1 > d/e/f; ln -s /etc/passwd d/link; echo 2 > top; echo 3 > not"
    code, _, err = tried(
        tmp_path, "--out", "got", "--artifact", "d", "--artifact", "top", "--", "sh", "-c", script
    )
    assert code == 0, err
    got = sorted(str(path.relative_to(tmp_path / "got")) for path in tmp_path.glob("got/**/*"))
    assert got == ["d", "d/e", "d/e/f", "top"]
    assert (tmp_path / "got/d/e/f").read_text() == "1\n"


@pytest.mark.parametrize(
    ("artifact", "script", "said"),
    [("none", "true", "none"), ("big", "head -c 2000000 /dev/zero > big", "max_upload")],
)
def test_artifacts_that_cannot_come_back_are_told(
    tmp_path: Path, artifact: str, script: str, said: str
) -> None:
    (tmp_path / "p.toml").write_text('max_upload = "1m"\n')
    code, _, err = tried(
        tmp_path, "--policy", "p.toml", "--out", "got", "--artifact", artifact,
        "--", "sh", "-c", script,
    )  # fmt: skip
    assert code == 125
    assert "could not be brought back" in err
    assert said in err


def test_spec_is_printed_and_nothing_started(tmp_path: Path) -> None:
    code, out, _ = tried(tmp_path, "--policy", "untrusted", "--print-spec")
    told = json.loads(out)
    assert code == 0
    assert told["pids"] == 512
    assert len(told["digest"]) > 20


# ---- with a terminal -----------------------------------------------------------------------------


class Typist:
    """A person at a terminal of 30 rows and 90 columns."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self._fit(30, 90)
        self.program = RUNS.begin(
            [*PROGRAM, *arguments], cwd=directory, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def sees(self, text: str) -> None:
        """Wait until this has been shown since the last time."""
        deadline = time.monotonic() + SECONDS
        while text not in self.seen:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._ours], [], [], max(0, left))
            assert ready, f"{text!r} was not shown, but {self.seen!r}"
            self.seen += os.read(self._ours, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]

    def types(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def resizes(self, rows: int, columns: int) -> None:
        self._fit(rows, columns)
        self.program.send_signal(signal.SIGWINCH)

    def _fit(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def ends(self) -> int:
        try:
            return self.program.wait(SECONDS)
        finally:
            os.close(self._ours)


def test_shell_has_a_terminal_whose_size_follows(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("content\n")
    typist = Typist(tmp_path, "--image", DEBIAN, "--shell")
    typist.sees("$ ")
    typist.types("tty; cat f; stty size; echo do''ne\n")
    typist.sees("/dev/pts/")
    typist.sees("content")
    typist.sees("30 90")
    typist.sees("done")
    typist.resizes(40, 100)
    typist.types("until [ \"$(stty size)\" = '40 100' ]; do sleep 0.1; done; echo res''ized\n")
    typist.sees("resized")
    # What is shown by then is in the foreground; the echo of what was typed says nothing of it.
    typist.types("sh -c 'echo sta\"\"rted; exec sleep 1000'\n")
    typist.sees("started")
    typist.types("\x03")
    typist.sees("$ ")
    typist.types("exit 5\n")
    assert typist.ends() == 5


def test_failed_command_leaves_one_in_the_shell(tmp_path: Path) -> None:
    typist = Typist(
        tmp_path, "--image", BUSYBOX, "--keep-on-failure", "--", "sh", "-c", "echo x > left; exit 3"
    )
    typist.sees("$ ")
    typist.types("cat left; exit\n")
    typist.sees("x\r\n")
    assert typist.ends() == 3
