"""Podman's Docker-compatible socket: it is refused by name, and this is why."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
import pytest_twisted
from conftest import BUSYBOX
from memory_engine import within
from twisted.internet import reactor

from sandboxworker.engine.address import EngineAddress
from sandboxworker.engine.answers import image_facts
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.errors import EngineUnsupported
from sandboxworker.policy import SandboxPolicy
from sandboxworker.seccomp import load
from sandboxworker.spec import Identity, build_spec, create_body

SECONDS = 180.0
MIB = 1024 * 1024

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        shutil.which("podman") is None or os.geteuid() != 0, reason="only root, with podman"
    ),
]


#: crun refuses a host that has cgroup v1 as well.
HAS_CGROUP_V2_ALONE = Path("/sys/fs/cgroup/cgroup.controllers").exists()
RUNTIMES = ["runc", *(["crun"] if HAS_CGROUP_V2_ALONE and shutil.which("crun") else [])]
#: Run by an ordinary user, whose containers have but that one uid.
ROOTLESS, NOBODY = "rootless", 65534


@pytest.fixture(scope="module", params=[*RUNTIMES, ROOTLESS])
def podman(engine_client: Any, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a Podman of this module's own, with the small image."""
    is_rootless = request.param == ROOTLESS
    runtime = "runc" if is_rootless else request.param
    with _service(engine_client, runtime, NOBODY if is_rootless else 0) as url:
        yield url


@contextlib.contextmanager
def _service(engine_client: Any, runtime: str, uid: int = 0) -> Iterator[str]:
    # Its run folder's path must have less than 50 characters.
    folder = Path(tempfile.mkdtemp(prefix="podman-"))
    url = f"unix://{folder}/s"
    command = [
        "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
        "podman", "--root", folder / "root", "--runroot", folder / "run",
        "--tmpdir", folder / "tmp",
        "--cgroup-manager=cgroupfs", "--storage-driver=vfs", f"--runtime={runtime}",
        "system", "service", "--time=0", url,
    ]  # fmt: skip
    home = {} if uid == 0 else {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    with (folder / "log").open("w") as log:
        os.chown(folder, uid, uid)
        service = subprocess.Popen(
            list(map(str, command)),
            stdout=log,
            stderr=log,
            cwd=folder,
            env={"PATH": os.environ["PATH"], **home},
            start_new_session=True,
        )
    try:
        client = _client(url)
        client.load_image(b"".join(engine_client.get_image(BUSYBOX)))
        client.close()
        yield url
    finally:
        # One without root has made itself a child in a namespace of its own, and one that keeps it.
        os.killpg(service.pid, signal.SIGTERM)
        service.wait(SECONDS)
        for keeper in folder.rglob("pause.pid"):
            os.kill(int(keeper.read_text()), signal.SIGKILL)
        shutil.rmtree(folder)


def _client(url: str) -> Any:
    place, deadline = Path(url.removeprefix("unix://")), time.monotonic() + SECONDS
    while not place.exists():
        assert time.monotonic() < deadline, "podman makes no socket"
        time.sleep(0.1)
    return docker.APIClient(base_url=url, version="auto", timeout=SECONDS)


def test_podman_runs_what_it_can(podman: str) -> None:
    """So that what it refuses is not refused because nothing works."""
    client = _client(podman)
    try:
        (found,) = client.images()
        body = {
            "Image": found["RepoTags"][0],
            "User": "0:0",
            "Entrypoint": ["/bin/sh", "-c", "exit 7"],
            "HostConfig": {
                "NetworkMode": "none",
                "Ulimits": [
                    {"Name": name, "Soft": 1024, "Hard": 1024} for name in ("nofile", "nproc")
                ],
            },
        }
        container = client.create_container_from_config(body, "plain")["Id"]
        client.start(container)
        assert client.wait(container)["StatusCode"] == 7
        client.remove_container(container, force=True)
    finally:
        client.close()


@pytest_twisted.ensureDeferred
async def test_podman_is_refused_by_name(podman: str) -> None:
    engine = DockerEngine(EngineAddress(podman), reactor)
    try:
        for call in (engine.image(BUSYBOX), engine.list({}), engine.ping()):
            with pytest.raises(EngineUnsupported, match=r"Podman Engine [0-9]"):
                await within(SECONDS, call)
    finally:
        await within(SECONDS, engine.close())


def test_commands_say_so_in_one_line(podman: str, tmp_path: Path) -> None:
    for words in (["doctor", "--engine", podman], ["try", "--engine", podman, "--", "true"]):
        done = subprocess.run(
            [sys.executable, "-c", "from sandboxworker.cli import main; main()", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 125
        assert "is Podman Engine" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_what_a_sandbox_asks_for_is_not_to_be_had(podman: str) -> None:
    """A version that takes it all would let this test fail, and the refusal be thought over."""
    client = _client(podman)
    try:
        (found,) = client.images()
        reference = found["RepoTags"][0]
        facts = image_facts(reference, client.inspect_image(reference))
        spec = build_spec(SandboxPolicy(reference), facts, load("build"))
        body = create_body(spec, Identity("sandboxworker-probe", 20001, 20001))
        with pytest.raises(docker.errors.APIError, match="opening seccomp profile failed"):
            client.create_container_from_config(body, "whole")
        unfiltered = json.loads(json.dumps(body))
        unfiltered["HostConfig"]["SecurityOpt"] = ["no-new-privileges"]
        with pytest.raises(docker.errors.APIError, match='unknown mount option "nr_inodes='):
            client.create_container_from_config(unfiltered, "unfiltered")
    finally:
        client.close()


@pytest.mark.parametrize("podman", [ROOTLESS], indirect=True)
@pytest.mark.skipif(HAS_CGROUP_V2_ALONE, reason="there it depends on what the user was given")
def test_a_rootless_podman_takes_limits_and_drops_them(podman: str) -> None:
    """An ordinary user has no cgroups of version 1."""
    client = _client(podman)
    try:
        (found,) = client.images()
        limits = {"Memory": 32 * MIB, "PidsLimit": 50, "NanoCpus": 10**9}
        body = {"Image": found["RepoTags"][0], "User": "0:0", "HostConfig": limits}
        container = client.create_container_from_config(body, "limited")["Id"]
        host = client.inspect_container(container)["HostConfig"]
        assert {name: host[name] for name in limits} == dict.fromkeys(limits, 0)
    finally:
        client.close()
