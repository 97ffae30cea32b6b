"""An image for Buildbot's own ``DockerLatentWorker``: ours with a Debian system, and its worker.

``buildbot-worker`` comes from PyPI, of this environment's own version, for the image's Python.
"""

from __future__ import annotations

import importlib.metadata
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

BASE = "sandboxworker/debian:bookworm"
REPOSITORY = "sandboxworker-benchmarks/worker"
_PLACE = "opt/worker"
#: Of the base image, whatever this process runs under.
_PYTHON = ("--python-version", "3.11", "--implementation", "cp", "--only-binary", ":all:")
_PLATFORMS = ("--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64")

_TAC = """\
import os
from buildbot_worker.bot import Worker
from twisted.application import service
application = service.Application("worker")
get = os.environ.get
Worker(
    get("BUILDMASTER"), int(get("BUILDMASTER_PORT")), get("WORKERNAME"), get("WORKERPASS"),
    "/tmp", keepalive=600, umask=None, maxdelay=300, allow_shutdown=None,
).setServiceParent(application)
"""
_RUN = "from twisted.scripts.twistd import run; run()"
#: What the container runs: as Buildbot's published image, without a file for log or pid.
COMMAND = ["python3", "-c", _RUN, "--pidfile=", "-ny", f"/{_PLACE}/buildbot.tac"]


def make(client: Any) -> str:
    """Its reference; made if the engine does not have it."""
    tag = importlib.metadata.version("buildbot-worker")
    reference = f"{REPOSITORY}:{tag}"
    if not client.images(reference):
        container = client.create_container(BASE, "true")["Id"]
        try:
            client.put_archive(container, "/", _worker(tag))
            client.commit(container, REPOSITORY, tag, changes=[f"ENV PYTHONPATH=/{_PLACE}"])
        finally:
            client.remove_container(container)
    return reference


def _worker(version: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder]
        subprocess.run([*command, *_PYTHON, *_PLATFORMS, f"buildbot-worker=={version}"], check=True)
        (target / "buildbot.tac").write_text(_TAC)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(target, _PLACE, filter=_for_everybody)
        return archive.getvalue()


def _for_everybody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The folder was this user's alone."""
    member.mode |= 0o755 if member.isdir() else 0o644
    member.uid = member.gid = 0
    return member
