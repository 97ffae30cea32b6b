"""A directory from a build, as an archive of our own.

Pure but for the two files that it reads and writes.
What the image's ``tar`` says is taken apart and checked; Buildbot gets an archive that Python's
``tarfile`` wrote here, of members that were accepted one by one.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import IO, cast

import attrs

from sandboxworker.commands.globbing import is_forged

#: Directories below each other; deeper ones are nobody's build result.
_MAX_DEPTH = 100
#: Bytes of a name; the whole path on the master has room for twice as many.
_MAX_NAME = 2048
#: Bytes of headers that one member may have; a long name takes a few thousand.
_MAX_HEADERS = 256 * 1024


class ArchiveRefused(Exception):
    """The directory cannot be taken: too much of something, or no archive at all."""


@attrs.define
class Limits:
    """What may be in the archive: ``size`` bytes after decompression, ``files`` members."""

    size: int
    files: int
    _has_root: bool = False

    def take(self, size: int) -> None:
        self.size -= size
        if self.size < 0:
            raise ArchiveRefused("it is larger than the policy's max_upload, or the step's maxsize")

    def take_member(self) -> None:
        self.files -= 1
        if self.files < 0:
            raise ArchiveRefused("it holds more files than the policy's max_upload_files")

    def take_root(self) -> None:
        """The directory itself, which is no file; but only once."""
        if self._has_root:
            self.take_member()
        self._has_root = True


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
    headers = _Headers(source)
    try:
        with (
            tarfile.open(fileobj=cast(IO[bytes], headers), mode="r:") as old,
            _new(target, compress) as new,
        ):
            originals: dict[str, tarfile.TarInfo] = {}
            names = _Names()
            for member in old:
                headers.end()
                if member.isreg():
                    originals[member.name] = member
                _copy(old, new, member, originals, names, limits, left_out)
                headers.begin()
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise ArchiveRefused(f"what the image's tar wrote is no archive: {error}") from None


class _Names:
    """The names that have been accepted: what contradicts them cannot be unpacked."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._directories: set[str] = set()

    def take(self, name: str, *, is_directory: bool) -> None:
        above = {str(place) for place in PurePosixPath(name).parents} - {"."}
        if self._names & (above - self._directories) or name in self._names | self._directories:
            raise ArchiveRefused(f"a name in it contradicts another: {name!r}")
        self._names.add(name)
        self._directories |= above | ({name} if is_directory else set())


class _Headers:
    """The archive's file, in which the headers of one member may be only so long.

    ``tarfile`` takes names, extended headers and maps of sparse files of any length into memory.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left: int | None = _MAX_HEADERS
        self.seek, self.tell = file.seek, file.tell

    def begin(self) -> None:
        """What is read now are headers."""
        self._left = _MAX_HEADERS

    def end(self) -> None:
        """What is read now is content."""
        self._left = None

    def read(self, size: int = -1) -> bytes:
        if self._left is not None:
            if not 0 <= size <= self._left:
                raise ArchiveRefused("a header in it is too long")
            self._left -= size
        return self._file.read(size)


def _new(target: IO[bytes], compress: str | None) -> tarfile.TarFile:
    if compress == "gz":
        return tarfile.open(fileobj=target, mode="w|gz")
    if compress == "bz2":
        # Small blocks: who unpacks them holds a whole one in memory, at 50 times its size.
        return tarfile.open(fileobj=target, mode="w:bz2", compresslevel=1)
    return tarfile.open(fileobj=target, mode="w|")


def _copy(
    old: tarfile.TarFile,
    new: tarfile.TarFile,
    member: tarfile.TarInfo,
    originals: Mapping[str, tarfile.TarInfo],
    names: _Names,
    limits: Limits,
    left_out: Callable[[str], None],
) -> None:
    name = member.name.removeprefix("./").rstrip("/")
    if name in ("", "."):
        limits.take_root()
        return
    if is_forged(name):
        raise ArchiveRefused(f"a name in it leaves the directory: {member.name!r}")
    if name.count("/") > _MAX_DEPTH or _is_too_long(name):
        raise ArchiveRefused(f"a name in it is too long or too deep: {member.name[:80]!r}")
    limits.take_member()
    if member.islnk():  # A second name of a file before it: with that one's content.
        member = originals.get(member.linkname, member)
    if member.isdir():
        names.take(name, is_directory=True)
        new.addfile(_plain(name, member, tarfile.DIRTYPE))
    elif member.isreg():
        names.take(name, is_directory=False)
        limits.take(member.size)
        new.addfile(_plain(name, member, tarfile.REGTYPE), old.extractfile(member))
    else:
        left_out(name)


def _is_too_long(name: str) -> bool:
    """Whether a file system may refuse it, below any directory of the master's."""
    raw = os.fsencode(name)
    return len(raw) > _MAX_NAME or any(len(part) > 255 for part in raw.split(b"/"))


def _plain(name: str, member: tarfile.TarInfo, kind: bytes) -> tarfile.TarInfo:
    """A member with nothing of the old one but what is harmless."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = member.size if kind == tarfile.REGTYPE else 0
    info.mtime = max(0, min(int(member.mtime), 2**33))
    info.mode = stat.S_IMODE(member.mode) & 0o777
    return info
