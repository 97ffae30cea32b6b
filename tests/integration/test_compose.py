"""``examples/deploy/compose`` with Debian's docker-compose: built, started, and a build in it.

What differs from the example: its base comes from Debian's packages and not from a registry, its
wheels from this work tree, and it has no network but its own loopback, as the engine has none.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DEBIAN
from debian_packages import image_to_install_in
from documents import ROOT

from sandboxworker.engine.answers import host_facts

COMPOSE = ROOT / "examples" / "deploy" / "compose"
MINIMAL = ROOT / "examples" / "minimal" / "master.cfg"
pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not COMPOSE.is_dir(), reason="the examples are not part of a wheel"),
    pytest.mark.skipif(not shutil.which("docker-compose"), reason="there is no docker-compose"),
]

MINUTE = 60
#: What the Dockerfile has apt install.
PACKAGES = ("ca-certificates", "git", "gnupg", "openssh-client", "pass", "python3-venv")
PYTHON = "/opt/sandboxworker/bin/python"
#: Asks the master's API inside the container: for its state, or for the end of a forced build.
ASK = """
import json, sys, time
from urllib.request import Request, urlopen
api = "http://127.0.0.1:8010/api/v2"
def get(path): return json.load(urlopen(f"{api}/{path}", timeout=10))
for _ in range(60):
    try:
        get("masters")
        break
    except OSError:
        time.sleep(1)
print("active", get("masters")["masters"][0]["active"])
call = {"jsonrpc": "2.0", "method": "force", "id": 1, "params": {}}
header = {"Content-Type": "application/json"}
urlopen(Request(f"{api}/forceschedulers/force", json.dumps(call).encode(), header), timeout=10)
for _ in range(120):
    builds = get("builds")["builds"]
    if builds and builds[0]["complete"]:
        sys.exit(print(builds[0]["state_string"]))
    time.sleep(1)
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: Any) -> Iterator[str]:
    """The address of a page with the wheels of this work tree and of all that it needs."""
    folder = tmp_path_factory.mktemp("wheels")
    build = ["-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder)]
    ran(sys.executable, *build, f"{ROOT}[metrics]", "buildbot-www")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


class Composed:
    """The example as a project of its own; ``override``: what the test has otherwise."""

    def __init__(self, override: Path, group: int) -> None:
        self._files = ("-f", str(COMPOSE / "compose.yaml"), "-f", str(override))
        self._project = ("-p", f"tests{secrets.token_hex(4)}")
        self._environ = {**os.environ, "DOCKER_GROUP": str(group)}

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        command = ["docker-compose", "--ansi", "never", *self._files, *self._project, *arguments]
        return ran(*command, environ=self._environ, stdin=stdin)


def ran(*command: str, environ: Any = None, stdin: str = "") -> str:
    """What a command prints; the test fails where that does."""
    done = subprocess.run(
        command, env=environ, input=stdin, text=True, timeout=10 * MINUTE, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, (command, done.stdout[-3000:])
    return done.stdout


@pytest.fixture(scope="module")
def composed(engine_client: Any, wheels: str, tmp_path_factory: Any) -> Iterator[Composed]:
    socket = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")[len("unix://") :])
    if not socket.is_socket():
        pytest.skip("the engine is not on this machine")
    arguments = {
        "BASE": image_to_install_in(engine_client, DEBIAN, PACKAGES),
        "PIP_FIND_LINKS": wheels,
        "PIP_NO_INDEX": "1",
    }
    master = {
        "build": {"context": str(COMPOSE), "network": "host", "args": arguments},
        "network_mode": "none",
        "volumes": [f"{socket}:/var/run/docker.sock"],
        "restart": "no",
    }
    override = tmp_path_factory.mktemp("compose") / "override.yaml"
    override.write_text(yaml.safe_dump({"services": {"master": master}}))
    project = Composed(override, socket.stat().st_gid)
    project("build")
    yield project
    project("down", "--volumes", "--rmi", "local", "--timeout", "60")


def test_the_example_is_understood_as_it_stands() -> None:
    told = yaml.safe_load(ran("docker-compose", "-f", str(COMPOSE / "compose.yaml"), "config"))
    assert told["services"]["master"]["read_only"] is True


def test_a_master_in_it_has_sandboxes_where_it_need_not_be_root_to_bound_them(
    composed: Composed, engine_client: Any
) -> None:
    command = f"/opt/sandboxworker/bin/sandboxworker try --image {DEBIAN} -- echo hello"
    told = composed("run", "--rm", "-T", "master", "sh", "-c", f"{command}; echo exit $?")
    if host_facts(engine_client.info()).counts_sockets:
        assert "hello" in told
        assert "exit 0" in told
    else:
        assert "does not bound what waits in a sandbox's sockets" in told
        assert "exit 125" in told


def test_a_master_in_it_builds_in_sandboxes_beside_it(
    composed: Composed, engine_client: Any
) -> None:
    buildbot = "/opt/sandboxworker/bin/buildbot"
    composed("run", "--rm", "-T", "master", buildbot, "create-master", "/master")
    config = MINIMAL.read_text()
    if not host_facts(engine_client.info()).counts_sockets:
        config = config.replace(f'"{DEBIAN}"', f'"{DEBIAN}", sockets="unbounded"')
    composed("run", "--rm", "-T", "master", "sh", "-c", "cat >/master/master.cfg", stdin=config)
    composed("run", "--rm", "-T", "master", buildbot, "checkconfig", "/master")
    composed("up", "-d")
    told = composed("exec", "-T", "master", PYTHON, "-c", ASK)
    assert told.splitlines() == ["active True", "build successful"], composed("logs")
    assert composed("exec", "-T", "master", "id", "-u").strip() == "10001"
    composed("stop")
    left = engine_client.containers(filters={"label": "sandboxworker.worker=sandbox-1"})
    assert left == []
