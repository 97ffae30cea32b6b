"""``/etc/hosts`` and ``/etc/resolv.conf``, kept by the engine for all sandboxes.

An engine makes these files itself for a container whose network it looks after, and that takes it
half of a start.
One that is told to leave the network alone gives the same empty namespace and no files.
So they lie in a volume of the engine's own, the same for every sandbox, and are mounted read-only
from there. Everything here blocks, and belongs into a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import posixpath
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

from sandboxworker.spec import ETC_FILES

#: The volume's name tells what is in it: whoever has other contents has another volume.
VOLUME = (
    "sandboxworker-etc-" + hashlib.sha256(repr(sorted(ETC_FILES.items())).encode()).hexdigest()[:8]
)
_PLACE = "/etc-files"
#: Pieces of an archive that are looked at, of 2 MiB at most each.
_CHUNKS = 2


def put(sdk: Any, image: str, labels: Mapping[str, str]) -> str:
    """See that the volume has what it should, and tell where the engine's host keeps it.

    ``labels``: of the container that this takes for a moment, by which it is found if we die.
    What is right is not touched: sandboxes may be starting with it.
    """
    folder: str = sdk.create_volume(VOLUME, labels={"sandboxworker.etc": ""})["Mountpoint"]
    volume = {"Type": "volume", "Source": VOLUME, "Target": _PLACE, "ReadOnly": False}
    body = {
        "Image": image,
        "Entrypoint": ["/bin/sh"],
        "NetworkDisabled": True,
        "Labels": dict(labels),
        "HostConfig": {"NetworkMode": "none", "Mounts": [volume]},
    }
    container = sdk.create_container_from_config(body)["Id"]
    try:
        packed = sdk.get_archive(container, _PLACE)[0]
        with contextlib.closing(packed):  # The connection is held until then.
            is_right = _found(packed) == ETC_FILES
        if not is_right:
            sdk.put_archive(container, _PLACE, _archive())
    finally:
        sdk.remove_container(container, force=True)
    return folder


def _found(packed: Iterable[bytes]) -> Mapping[str, str]:
    """The files of an archive; none where it is larger than ours can be."""
    begin = io.BytesIO(b"".join(itertools.islice(packed, _CHUNKS)))
    try:
        with tarfile.open(fileobj=begin) as archive:
            files = {member.name: archive.extractfile(member) for member in archive}
            return {
                posixpath.basename(name): file.read().decode(errors="replace")
                for name, file in files.items()
                if file is not None
            }
    except tarfile.TarError:
        return {}


def _archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in ETC_FILES.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), 0o644
            archive.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()
