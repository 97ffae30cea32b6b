"""An image whose every tool may lie, as a build that takes over its helpers would make them.

Each tool is a script that does what ``/tmp/lie`` says, or works as ever where there is none; so a
build is honest until one of its steps writes that file.
In ``/usr/bin`` all but the shell is what it was.
"""

from __future__ import annotations

import io
import tarfile
from typing import Any

from conftest import DEBIAN

IMAGE = "sandboxworker-tests/lying-tools"

TOOLS = ("cat", "chmod", "cp", "find", "head", "ls", "mkdir", "rm", "stat", "tail", "tar")

#: First in the search path.
_PLACES = [f"usr/local/{folder}/{tool}" for folder in ("bin", "sbin") for tool in TOOLS]

#: ``$T`` is the tool's name in a lie; where that neither exits nor execs, the tool does its work.
#: The shell of the keeper stays honest: without a keeper there is no sandbox.
_TOOL = """\
#!/usr/bin/dash
T=${0##*/}
case $T$2 in "shuntil "*) exec /usr/bin/dash "$@";; esac
[ ! -r /tmp/lie ] || . /tmp/lie
[ "$T" != sh ] || exec /usr/bin/dash "$@"
exec "/usr/bin/$T" "$@"
"""


def make_lying_image(client: Any) -> str:
    """Made of the image with a Debian system; its reference."""
    container = client.create_container(DEBIAN, "true")["Id"]
    try:
        client.put_archive(container, "/", _tools())
        client.commit(container, IMAGE, "latest")
    finally:
        client.remove_container(container)
    return f"{IMAGE}:latest"


def _tools() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for place in ("usr/bin/sh", *_PLACES):
            info = tarfile.TarInfo(place)
            info.mode, info.size = 0o755, len(_TOOL)
            tar.addfile(info, io.BytesIO(_TOOL.encode()))
    return archive.getvalue()
