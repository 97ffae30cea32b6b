"""A further private Docker Engine of a test's own, which it may stop and start as it likes."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from pathlib import Path
from typing import Any

import docker
from certificates import Authority

_SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "engine"
_SECONDS = 120


class SecondEngine:
    """Made by ``scripts/engine``, and listening with TLS on loopback beside its own socket.

    ``authority``: who signs the certificates of the engine, and of the clients that it takes;
    ``url``: its TCP address; ``socket``: its own, for the test's use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"second-{secrets.token_hex(4)}"
        self.authority = Authority("test authority")
        certificate, key = self.authority.issue("engine")
        for name, content in (("ca", self.authority.pem()), ("cert", certificate), ("key", key)):
            (folder / f"{name}.pem").write_bytes(content)
        self.port = _free_port()
        self.url = f"tcp://127.0.0.1:{self.port}"
        self.socket = ""

    def start(self) -> None:
        """Start it, or start it again; its images and containers are kept."""
        said = self._script("start")
        self.socket = said.strip().rpartition("DOCKER_HOST=")[2]

    def stop(self) -> None:
        """Stop it with its containers."""
        self._script("stop")

    def forget(self) -> None:
        """Stop it, and leave nothing of it."""
        self._script("clean")

    def load_from(self, client: Any, image: str) -> None:
        """Take over an image from another engine."""
        archive = b"".join(client.get_image(image))
        own = docker.APIClient(base_url=self.socket, version="auto", timeout=_SECONDS)
        own.load_image(archive)
        own.close()

    def _script(self, command: str) -> str:
        folder = self._folder
        flags = (
            f"--host={self.url} --tlsverify --tlscacert={folder}/ca.pem "
            f"--tlscert={folder}/cert.pem --tlskey={folder}/key.pem"
        )
        environ = {name: value for name, value in os.environ.items() if name != "DOCKER_HOST"}
        done = subprocess.run(
            [str(_SCRIPT), command],
            env={**environ, "ENGINE_NAME": self._name, "ENGINE_FLAGS": flags},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
