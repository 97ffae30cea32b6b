"""A master's unique id: what its containers carry, and what no other living master may share.

The id is kept in the master's directory.
Directories are copied, restored and cloned, and their ids with them; so the file says where it
was made as well, and an id in another place is not used but renewed.
A lock on the file, held while the master lives, tells other programs that it does.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import attrs

from sandboxworker.errors import SandboxworkerError

#: Where a master keeps its unique id, in its own directory.
ID_FILE = "sandboxworker.id"

#: Seconds, and how many of them, that a start waits for a lock.
_MOMENT, _MOMENTS = 0.01, 5

_MACHINE_ID = Path("/etc/machine-id")


class NoIdentity(SandboxworkerError):
    """A directory whose containers cannot be told from those of others."""

    def __init__(self, basedir: Path, problem: str, resolution: str) -> None:
        super().__init__(f"{basedir} tells no master's id", details=problem, resolution=resolution)


@attrs.define
class Identity:
    """A master's id, claimed for as long as it lives.

    ``is_kept``: whether the next start will have the same id; False where another living master
    holds the directory.
    ``former``: the id that stood in the file and belongs to another place, if one did.
    """

    id: str
    is_kept: bool
    former: str | None = None
    _lock: int | None = None

    def release(self) -> None:
        """The master has ended."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def claim(basedir: Path) -> Identity | None:
    """This master's id, made when it is first asked for; None while another process holds it.

    Raises `OSError` where it cannot be kept or locked.
    """
    lock = os.open(basedir / ID_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        is_ours = _locked_at_last(lock)
    except OSError:
        os.close(lock)
        raise
    if not is_ours:
        os.close(lock)
        return None
    known, here = _read(lock), _place(basedir, lock)
    if known is not None and known["place"] == here:
        return Identity(known["id"], is_kept=True, lock=lock)
    made = str(uuid.uuid4())
    _write(lock, {"id": made, "place": here})
    return Identity(made, is_kept=True, former=None if known is None else known["id"], lock=lock)


def stand_in() -> Identity:
    """An id for a master whose directory is held by another one."""
    return Identity(str(uuid.uuid4()), is_kept=False)


def master_id(basedir: Path) -> str:
    """The id of the master in a directory; made when there is none yet."""
    claimed = claim(basedir)
    if claimed is None:
        return read_id(basedir)
    claimed.release()
    return claimed.id


def read_id(basedir: Path) -> str:
    """The id that the directory's master has, without making one.

    Raises `NoIdentity` where there is none, or where it is another directory's.
    """
    try:
        file = os.open(basedir / ID_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NoIdentity(
            basedir,
            f"{ID_FILE}: {error.strerror}",
            "Name the directory of a master that has had a sandboxed worker, "
            "and be its user or root",
        ) from None
    try:
        known, here = _read(file), _place(basedir, file)
    finally:
        os.close(file)
    if known is None:
        raise NoIdentity(
            basedir, f"{ID_FILE} cannot be read as one", "The master makes a new one on its start"
        )
    if known["place"] != here:
        raise NoIdentity(
            basedir,
            f"{ID_FILE} was made in another place, {known['place'].get('directory')}; "
            "what carries its id belongs to the master there",
            "The master in this directory gets an id of its own on its start",
        )
    return str(known["id"])


def is_living(basedir: Path) -> bool:
    """Whether a master holds this directory now; so too where that cannot be found out."""
    try:
        file = os.open(basedir / ID_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return not _locked(file, fcntl.LOCK_SH)
    except OSError:
        return True
    finally:
        os.close(file)


def _locked_at_last(file: int) -> bool:
    """`is_living` holds the lock for a moment, in which no master may take it for another one."""
    for _ in range(_MOMENTS):
        if _locked(file):
            return True
        time.sleep(_MOMENT)
    return False


def _locked(file: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Take the lock unless somebody has it; it goes with the descriptor, however the process ends.

    Not inherited by programs that are started: the descriptor is closed for them.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _place(basedir: Path, file: int) -> dict[str, Any]:
    """What a copy of the directory, on this machine or another, does not share."""
    found = os.fstat(file)
    return {
        "machine": _machine(),
        "directory": os.path.realpath(basedir),
        "device": found.st_dev,
        "inode": found.st_ino,
    }


def _machine() -> str:
    try:
        return _MACHINE_ID.read_text().strip()
    except OSError:
        return ""


def _read(file: int) -> dict[str, Any] | None:
    try:
        known = json.loads(os.pread(file, 65536, 0))
        if isinstance(known["place"], dict) and str(uuid.UUID(known["id"])) == known["id"]:
            return dict(known)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return None


def _write(file: int, content: dict[str, Any]) -> None:
    """In place: a file put in its stead would be another inode, without the lock."""
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(content, indent=1).encode() + b"\n", 0)
    os.fsync(file)
