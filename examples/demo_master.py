"""A real Buildbot master for the demo: started, asked over its REST API, and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from demo_project import DemoError

from sandboxworker.identity import read_id

HERE = Path(__file__).resolve().parent
BUILDBOT = Path(sys.executable).with_name("buildbot")

START_SECONDS = 60
STOP_SECONDS = 60
PID_SECONDS = 5
#: No log of the demo is longer: a step's output is limited by the policy.
LOG_BYTES = 16 * 1024 * 1024


class Master:
    """One master in a directory of its own, with a copy of ``examples/master.cfg``."""

    def __init__(self, directory: Path, repository: Path) -> None:
        self.directory = directory
        self.port = _free_port()
        self._launched = False
        self._environ = {
            **os.environ,
            "DEMO_REPOSITORY": f"file://{repository}",
            "DEMO_PORT": str(self.port),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def id(self) -> str:
        """What the labels of its containers call it."""
        return read_id(self.directory)

    # ---- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Create it, check its configuration, start it, and wait until it knows the main branch."""
        if find_spec("buildbot_www") is None:
            raise DemoError("The demo asks the master over its REST API: pip install buildbot-www")
        self._buildbot("create-master", "--quiet", str(self.directory))
        shutil.copy(HERE / "master.cfg", self.directory)
        self._buildbot("checkconfig", str(self.directory))
        self._launched = True
        self._buildbot("start", f"--start_timeout={START_SECONDS}", str(self.directory))
        self._wait_until_watching()

    def stop(self) -> bool:
        """Whether the master ended in time when it was asked to; it is ended in any case."""
        pid = self._pid_after_start()
        if pid is None:
            return True
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if _gone_within(pid, STOP_SECONDS):
            return True
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return False

    def _pid_after_start(self) -> int | None:
        """Interrupted while it was starting, a master has yet to write its pid."""
        deadline = time.monotonic() + (PID_SECONDS if self._launched else 0)
        while (pid := self._pid()) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return pid

    def _pid(self) -> int | None:
        try:
            return int((self.directory / "twistd.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _buildbot(self, *arguments: str) -> None:
        run = subprocess.run(
            [str(BUILDBOT), *arguments],
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            raise DemoError(f"buildbot {arguments[0]} failed:\n{run.stdout.strip()}")

    def _wait_until_watching(self) -> None:
        """A pull request that comes before the first look at the repository would be old news."""
        deadline = time.monotonic() + START_SECONDS
        while "gitpoller: processing changes" not in self.log():
            if time.monotonic() > deadline:
                raise DemoError(f"The master does not poll the repository:\n{self.log()[-2000:]}")
            time.sleep(0.2)

    def log(self) -> str:
        """What the master wrote to its log so far."""
        return (self.directory / "twistd.log").read_text(errors="replace")

    # ---- questions ---------------------------------------------------------------------------

    def builds(self) -> dict[str, dict[str, Any]]:
        """The newest build of each branch; one that only just began has no branch yet."""
        builds = self._ask("builds?property=branch&order=buildid")["builds"]
        return {
            build["properties"]["branch"][0]: build
            for build in builds
            if "branch" in build["properties"]
        }

    def steps(self, build: dict[str, Any]) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = self._ask(f"builds/{build['buildid']}/steps")["steps"]
        return steps

    def step_log(self, step: dict[str, Any]) -> str:
        """The whole text of a step's log, as the API gives it."""
        logs = self._ask(f"steps/{step['stepid']}/logs")["logs"]
        return "".join(self._get(f"logs/{log['logid']}/raw_inline") for log in logs)

    def _ask(self, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._get(path))
        return answer

    def _get(self, path: str) -> str:
        try:
            with urlopen(f"{self.url}/api/v2/{path}", timeout=30) as answer:
                text: str = answer.read(LOG_BYTES).decode(errors="replace")
        except (URLError, OSError) as error:
            raise DemoError(f"The master does not answer: {error}\n{self.log()[-2000:]}") from error
        return text


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def _gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
