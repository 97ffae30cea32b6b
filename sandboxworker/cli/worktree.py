"""The files that ``try`` takes along: a git work tree as it is now, or a whole directory."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import attrs

from sandboxworker.errors import SandboxworkerError


@attrs.frozen
class Packed:
    """A tar archive in a temporary file at its beginning, and what is in it."""

    archive: IO[bytes]
    files: int
    size: int


def pack(directory: Path) -> Packed:
    """Put a directory's files into an archive that is gone when it is closed.

    Inside a git work tree: the tracked files and the untracked ones that are not ignored, with
    their present content, changed or not; elsewhere everything.
    Sockets, FIFOs and devices are left out.
    """
    archive = tempfile.TemporaryFile(prefix="sandboxworker-")  # noqa: SIM115
    files = size = 0
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(set(_names(directory))):
            info = _member(tar, directory / name, name)
            if info is None:
                continue
            _add(tar, info, directory / name)
            files, size = files + 1, size + info.size
    archive.seek(0)
    return Packed(archive, files, size)


def _names(directory: Path) -> Iterator[str]:
    listed = _git_names(directory)
    if listed is None:
        yield from _all_names(directory)
        return
    for name in listed:
        path = directory / name
        if path.is_dir() and not path.is_symlink():  # A submodule: git names only its directory.
            yield from (os.path.join(name, below) for below in _names(path))
        else:
            yield name


def _git_names(directory: Path) -> list[str] | None:
    """What git would take along; None outside of a work tree, or without git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=directory, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    if listed.returncode != 0:
        return None
    return [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]


def _all_names(directory: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(directory):
        here = os.path.relpath(folder, directory)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*files, *links):
            yield os.path.normpath(os.path.join(here, name))


def _member(tar: tarfile.TarFile, path: Path, name: str) -> tarfile.TarInfo | None:
    """A member without its owner; None for what is gone, or is neither file nor link."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:  # Tracked, and deleted in the work tree.
        return None
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        return None
    info = tar.gettarinfo(path, name)
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    if info.islnk():  # A second name of a file that is in already: give it its own content.
        info.type, info.linkname, info.size = tarfile.REGTYPE, "", path.stat().st_size
    return info


def _add(tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> None:
    if not info.isreg():
        tar.addfile(info)
        return
    try:
        with path.open("rb") as content:
            tar.addfile(info, content)
    except OSError as error:
        raise SandboxworkerError(
            f"{path} cannot be read", details=str(error.strerror or error)
        ) from None
