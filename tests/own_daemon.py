"""A Docker daemon for one test alone, which may stop, kill and restart it as it likes.

Made by the project's own ``scripts/engine``, run from a folder of its own; needs root.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
_START_SECONDS = 90.0


def why_not() -> str | None:
    """Why none can be started here; None where one can."""
    if not (SCRIPTS / "engine").is_file():
        return "scripts/engine is not part of a wheel or sdist"
    if os.geteuid() != 0:
        return "only root can start a daemon"
    return None if shutil.which("dockerd", path=_path()) else "dockerd is not installed"


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


class OwnDaemon:
    """`start` it, and whatever happens `end` it. All of this blocks."""

    def __init__(self) -> None:
        # Resolved, as the script does: the daemon's places are named by a digest of this.
        self._folder = Path(tempfile.mkdtemp(prefix="own-daemon-")).resolve()
        (self._folder / "scripts").mkdir()
        for name in ("engine", "lib.sh"):
            shutil.copy(SCRIPTS / name, self._folder / "scripts" / name)
        digest = hashlib.sha256(str(self._folder).encode()).hexdigest()[:8]
        self._run = Path(f"/run/sandboxworker-{digest}")
        self._command: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> str:
        return str(self._run / "docker.sock")

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        return int((self._run / "dockerd.pid").read_text())

    @property
    def root(self) -> Path:
        """Where its data is."""
        return Path("/var/lib") / self._run.name

    def start(self, client: Any, *images: str) -> None:
        """Start it, and give it these images of another engine's."""
        self._engine("start")
        command = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        self._command = command.decode().rstrip("\0").split("\0")
        with tempfile.TemporaryFile() as file:
            for image in images:
                for chunk in client.get_image(image):
                    file.write(chunk)
                file.seek(0)
                load = ["docker", "-H", self.url, "load", "-q"]
                subprocess.run(load, stdin=file, check=True, timeout=120, capture_output=True)
                # A save carries the tag only where it was asked for by tag.
                file.seek(0)
                file.truncate()

    def _engine(self, what: str) -> None:
        done = subprocess.run(
            [str(self._folder / "scripts" / "engine"), what],
            env={**os.environ, "DOCKER_HOST": self.url},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    # what may befall it

    def freeze(self) -> None:
        """Stop it with SIGSTOP, as when its machine hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def crash(self) -> None:
        """SIGKILL."""
        self._kill(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it ends its containers first."""
        self._kill(signal.SIGTERM)

    def _kill(self, number: int) -> None:
        self._kill_and_wait(self._run / "dockerd.pid", number)
        # One whose pid lives on, if only as a zombie, would be waited for by the next daemon.
        self._kill_and_wait(self._run / "exec" / "containerd" / "containerd.pid", number)

    def _kill_and_wait(self, pidfile: Path, number: int) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid = int(pidfile.read_text())
            if self._lives(pid):
                os.kill(pid, number)
            give_up = time.monotonic() + _START_SECONDS
            while self._lives(pid):
                assert time.monotonic() < give_up, f"{pidfile.stem} does not end"
                time.sleep(0.02)
            pidfile.unlink()

    def _lives(self, pid: int) -> bool:
        if self._process is not None and self._process.poll() is not None:
            self._process = None
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state != "Z"

    def relaunch(self) -> None:
        """Again after a `crash` or `stop`, as it was; answers when this returns."""
        log = self._folder / ".engine" / "dockerd.log"
        environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd="/",
                env={**environ, "PATH": _path()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_many_files,
            )
        give_up = time.monotonic() + _START_SECONDS
        while not self.answers():
            assert time.monotonic() < give_up, log.read_text()[-2000:]
            time.sleep(0.1)

    def answers(self) -> bool:
        asked = ["docker", "-H", self.url, "version", "--format", "{{.Server.Version}}"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(asked, capture_output=True, timeout=10, check=False)
            return done.returncode == 0
        return False

    def end(self) -> None:
        """It, its containers, mounts, images and files; also after a failure half-way."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            self.thaw()
        try:
            self._end_ours()
            self._engine("clean")
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _end_ours(self) -> None:
        """One that we relaunched is our child, and stays a zombie until it is waited for."""
        if self._process is None:
            return
        script = "docker -H $0 ps -aq | xargs -r docker -H $0 rm -f"
        subprocess.run(["sh", "-c", script, self.url], timeout=60, check=False, capture_output=True)
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(30)


def _many_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
