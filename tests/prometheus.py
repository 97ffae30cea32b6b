"""A real Prometheus on a free loopback port, which asks one address; and its questions."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

_PATIENCE = 60


def program(name: str) -> str:
    """Where a program of Debian's package is; without it the test fails."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} cannot be found: run 'scripts/setup tests', or install prometheus")
    return found


class Prometheus:
    """Answers over its HTTP API."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def query(self, expression: str) -> list[Any]:
        """An expression's value now; fails if it does not parse."""
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found

    def ask(self, path: str, **query: str) -> Any:
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(query)}", timeout=30) as answer:
            return json.load(answer)["data"]

    @property
    def is_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


@contextlib.contextmanager
def running_prometheus(directory: Path, target: int, rules: Path) -> Iterator[Prometheus]:
    """One that asks ``127.0.0.1:target`` every half second, as the job ``sandboxworker``."""
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": "sandboxworker",
                "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
            }
        ],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML.
    port = _free_port()
    command = [
        program("prometheus"),
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        found = Prometheus(port)
        give_up = time.monotonic() + _PATIENCE
        while not found.is_ready:
            said = (directory / "prometheus.log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < give_up, said
            time.sleep(0.1)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port
