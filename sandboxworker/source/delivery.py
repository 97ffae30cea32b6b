"""Putting a directory of the master's into a sandbox: one tar stream through an exec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from buildbot.util.runprocess import run_process

from sandboxworker.errors import SourceFailed
from sandboxworker.policy import show_size
from sandboxworker.process import run
from sandboxworker.sandbox import Sandbox

#: $1 is replaced by what the tar on stdin has.
_UNPACK = 'rm -rf -- "$1" && mkdir -p -- "$1" && cd -- "$1" && exec tar -xf -'
_MOST_TOLD = 500


async def deliver(sandbox: Sandbox, archive: Path, directory: str) -> int:
    """Make ``directory`` in the sandbox what a tar file has: the bytes that were sent.

    Raises `SourceFailed` with what the sandbox's tools said, for instance of a full disk.
    """
    argv = ("/bin/sh", "-c", _UNPACK, "sh", directory)
    size = archive.stat().st_size
    with archive.open("rb") as opened:
        completed = await run(sandbox, argv, stdin=opened, limit=_MOST_TOLD)
    if completed.exit_code != 0:
        words = completed.stderr.decode(errors="replace").strip() or "its tools gave no reason"
        raise SourceFailed(
            f"putting {show_size(size)} of source into {directory}",
            f"{words}. If its disk is full, the policy's disk is what to change",
        )
    return size


async def packed(reactor: Any, directory: Path) -> Path:
    """A tar file, beside a directory, of what is in it."""
    archive = directory.with_suffix(".tar")
    argv = ["tar", "-C", str(directory), "-cf", str(archive), "."]
    code, errors = await run_process(reactor, argv, collect_stdout=False)
    if code != 0:
        raise SourceFailed("tar", errors.decode(errors="replace").strip()[:_MOST_TOLD])
    return archive
