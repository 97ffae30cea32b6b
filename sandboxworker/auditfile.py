"""The audit log as a file: one write a line, rotated by size, and read again across rotations.

Not a `logging` handler's file: those buffer what they could not write and repeat it later, in the
middle of another line.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import attrs

#: In the master's directory.
FILE = "sandboxworker-audit.jsonl"
#: Bytes of one file, and how many full ones are kept beside it.
ROTATE_AT = 16 * 1024 * 1024
KEEP = 8
#: Bytes looked at for the end of the last whole line.
_TAIL = 1024 * 1024


@attrs.define
class AuditFile:
    """Appends lines; each is one ``write``, so that a crash can tear no line but the last.

    ``rotate_at``: bytes that a file may reach; ``keep``: full files kept, as ``FILE.1`` (the
    newest) to ``FILE.N``.
    ``is_shared``: another process, the master, writes to it and looks after it; here lines are
    appended and no more.
    Every method raises `OSError` where the file cannot be written.
    """

    path: Path
    rotate_at: int = ROTATE_AT
    keep: int = KEEP
    is_shared: bool = False
    _file: int | None = None

    def open(self) -> str:
        """Begin where the last one ended: the part of a line that a crash left there, cut off."""
        self.close()
        created = not self.path.exists()
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if created:
            _give_to_the_directorys_owner(self._file, self.path.parent)
        return "" if self.is_shared else _cut_torn_line(self._file)

    def write(self, line: str) -> None:
        """Append one line; it is written whole, or not at all and an error raised."""
        data = line.encode() + b"\n"
        file = self._there()
        if not self.is_shared and self._is_full(file, len(data)):
            file = self._rotate()
        with _locked(file) if self.is_shared else contextlib.nullcontext():
            _append(file, data if _ends_a_line(file) else b"\n" + data)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _there(self) -> int:
        """The file of that name; what we have open may have been moved or removed meanwhile."""
        if self._file is None or not _is_at(self._file, self.path):
            self.open()
        return cast(int, self._file)

    def _is_full(self, file: int, more: int) -> bool:
        size = os.fstat(file).st_size
        return size > 0 and size + more > self.rotate_at

    def _rotate(self) -> int:
        for number in range(self.keep, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(rotated(self.path, number - 1), rotated(self.path, number))
        if self.keep == 0:
            self.path.unlink()
        return self._there()


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def rotated(path: Path, number: int) -> Path:
    """The file of that age; 0 is the one that is written to."""
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


def _append(file: int, data: bytes) -> None:
    before = os.fstat(file).st_size
    written = os.write(file, data)
    if written == len(data):
        return
    # The disk is full: no half line may stay for the next one to run into.
    if os.fstat(file).st_size == before + written:
        os.ftruncate(file, before)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _ends_a_line(file: int) -> bool:
    size = os.fstat(file).st_size
    return size == 0 or os.pread(file, 1, size - 1) == b"\n"


def _cut_torn_line(file: int) -> str:
    try:
        with _locked(file, fcntl.LOCK_NB):
            size = os.fstat(file).st_size
            tail = os.pread(file, _TAIL, max(0, size - _TAIL))
            torn = tail[tail.rfind(b"\n") + 1 :]
            if torn:
                os.ftruncate(file, size - len(torn))
            return torn.decode(errors="replace")
    except BlockingIOError:  # Another program is just writing its line.
        return ""


@contextlib.contextmanager
def _locked(file: int, how: int = 0) -> Iterator[None]:
    """Whoever cuts and whoever shares keep out of each other's way; the master waits for nobody."""
    fcntl.flock(file, fcntl.LOCK_EX | how)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _give_to_the_directorys_owner(file: int, directory: Path) -> None:
    """So that a file which root began, with ``gc``, does not shut the master out."""
    if os.geteuid() == 0:
        found = directory.stat()
        os.fchown(file, found.st_uid, found.st_gid)


# ---- reading -------------------------------------------------------------------------------------


@attrs.define
class Reading:
    """The entries of a log in their order, and what was found on the way.

    ``entries``: how many were read; ``unreadable``: lines that are none, such as one torn by a
    crash.
    """

    _files: Sequence[IO[bytes]]
    entries: int = 0
    unreadable: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for file in self._files:
            with file:
                yield from self._parsed(file)

    def _parsed(self, lines: IO[bytes]) -> Iterator[dict[str, Any]]:
        for line in lines:
            if not line.strip():
                continue
            entry = _entry(line)
            if entry is None:
                self.unreadable += 1
            else:
                self.entries += 1
                yield entry


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    is_one = isinstance(entry, dict) and isinstance(entry.get("time"), (int, float))
    return entry if is_one and isinstance(entry.get("event"), str) else None


def reading(path: Path) -> Reading:
    """A log with its rotated files, the oldest first.

    Raises `OSError` where the newest cannot be read.
    """
    files = [path.open("rb")]
    seen = {_inode(files[0])}
    # From the newest to the oldest: one that is rotated meanwhile comes by again, and none is
    # missed.
    for number in range(1, _oldest(path) + 2):
        with contextlib.suppress(FileNotFoundError):
            file = rotated(path, number).open("rb")
            if _inode(file) in seen:
                file.close()
                continue
            seen.add(_inode(file))
            files.append(file)
    return Reading(files[::-1])


def _oldest(path: Path) -> int:
    found = (file.name.removeprefix(f"{path.name}.") for file in path.parent.glob(f"{path.name}.*"))
    return max((int(number) for number in found if re.fullmatch("[0-9]{1,4}", number)), default=0)


def _inode(file: IO[bytes]) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino
