"""A directory from a build, as an archive of our own.

Pure but for the two files that it reads and writes.
What the image's ``tar`` says is taken apart and checked; Buildbot gets an archive that Python's
``tarfile`` wrote here, of members that were accepted one by one.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Callable
from typing import IO

import attrs

from sandboxworker.commands.globbing import is_forged

#: Directories below each other; deeper ones are nobody's build result.
_MAX_DEPTH = 100


class ArchiveRefused(Exception):
    """The directory cannot be taken: too much of something, or no archive at all."""


@attrs.define
class Limits:
    """What may be in the archive: ``size`` bytes after decompression, ``files`` members."""

    size: int
    files: int

    def take(self, size: int) -> None:
        self.size -= size
        if self.size < 0:
            raise ArchiveRefused("it is larger than the policy's max_upload, or the step's maxsize")

    def take_member(self) -> None:
        self.files -= 1
        if self.files < 0:
            raise ArchiveRefused("it holds more files than the policy's max_upload_files")


def rewrite(
    source: IO[bytes],
    target: IO[bytes],
    compress: str | None,
    limits: Limits,
    left_out: Callable[[str], None],
) -> None:
    """Copy the regular files and directories of a tar archive into a new one.

    ``compress``: ``"gz"``, ``"bz2"`` or None; ``left_out`` hears of links, devices and the like.
    Raises `ArchiveRefused` for names that leave the directory, for what passes the limits, and
    for what is no archive.
    """
    try:
        with (
            tarfile.open(fileobj=source, mode="r:") as old,
            _new(target, compress) as new,
        ):
            for member in old:
                _copy(old, new, member, limits, left_out)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise ArchiveRefused(f"what the image's tar wrote is no archive: {error}") from None


def _new(target: IO[bytes], compress: str | None) -> tarfile.TarFile:
    if compress == "gz":
        return tarfile.open(fileobj=target, mode="w|gz")
    if compress == "bz2":
        return tarfile.open(fileobj=target, mode="w|bz2")
    return tarfile.open(fileobj=target, mode="w|")


def _copy(
    old: tarfile.TarFile,
    new: tarfile.TarFile,
    member: tarfile.TarInfo,
    limits: Limits,
    left_out: Callable[[str], None],
) -> None:
    name = member.name.removeprefix("./").rstrip("/")
    if name in ("", "."):
        return
    if is_forged(name) or name.count("/") > _MAX_DEPTH:
        raise ArchiveRefused(f"a name in it leaves the directory: {member.name!r}")
    limits.take_member()
    if member.islnk():  # A second name of a file that is in the archive: with its own content.
        member = _linked(old, member)
    if member.isdir():
        new.addfile(_plain(name, member, tarfile.DIRTYPE))
    elif member.isreg():
        limits.take(member.size)
        new.addfile(_plain(name, member, tarfile.REGTYPE), old.extractfile(member))
    else:
        left_out(name)


def _linked(old: tarfile.TarFile, link: tarfile.TarInfo) -> tarfile.TarInfo:
    try:
        target = old.getmember(link.linkname)
    except KeyError:
        return link
    return target if target.isreg() else link


def _plain(name: str, member: tarfile.TarInfo, kind: bytes) -> tarfile.TarInfo:
    """A member with nothing of the old one but what is harmless."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = member.size if kind == tarfile.REGTYPE else 0
    info.mtime = max(0, min(int(member.mtime), 2**33))
    info.mode = stat.S_IMODE(member.mode) & 0o777
    return info
