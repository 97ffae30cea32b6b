"""A file system of fixed size on the disk of the engine's host, with nothing to tidy up.

A file without a name is reserved in full, formatted, and held by a loop device that lets go of it
when nothing uses it any more; this process uses it until the container has it mounted.
So whatever ends, in whatever order, the kernel gives the room back.
Everything here blocks, and belongs into a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from sandboxworker.errors import DiskFull, DiskRefused
from sandboxworker.spec import BLOCK, DISK_TYPE

#: Seconds for one program; each takes a few hundredths.
PROGRAM_DEADLINE = 20
#: Bytes that ext4 takes for an inode, and for what does not grow with files.
_INODE, _FIXED = 256, 1 << 20
#: Inodes that ext4 keeps for itself.
_RESERVED_INODES = 11

# <linux/loop.h>: LOOP_CTL_GET_FREE, LOOP_CONFIGURE (since Linux 5.8), LO_FLAGS_AUTOCLEAR,
# struct loop_config {fd, block_size, struct loop_info64 {…}, reserved[8]}.
_GET_FREE, _CONFIGURE, _AUTOCLEAR = 0x4C82, 0x4C0A, 4
_LOOP_CONFIG = struct.Struct("<II QQQQQIIII64s64s32sQQ 64s")
#: Another process may be given the same free device.
_ATTEMPTS = 16


@attrs.define
class LoopDisk:
    """One such file system, held by this process until `let_go`."""

    device: str
    _held: list[int]

    def __del__(self) -> None:
        """Made too late for whoever wanted it."""
        self.let_go()

    def is_mounted(self) -> bool:
        """Whether this kernel has it mounted, wherever."""
        return Path(f"/sys/fs/{DISK_TYPE}/{Path(self.device).name}").exists()

    def let_go(self) -> None:
        """Whoever has it mounted keeps it; if nobody has, it is gone."""
        while self._held:
            os.close(self._held.pop())


def make(engine: str, folder: str, size: int, inodes: int, owner: str) -> LoopDisk:
    """A new one: ``size`` bytes for files, ``inodes`` of them, below a folder of this machine.

    ``owner``: ``uid:gid`` of its top directory.
    Raises `DiskFull` where there is no room, and `DiskRefused` where it cannot be done at all.
    """
    total = file_size(size, inodes)
    with _refusing(engine, folder), tempfile.TemporaryFile(dir=folder) as file:
        path = f"/proc/self/fd/{file.fileno()}"
        _check_room(file.fileno(), total)
        _run(file.fileno(), "fallocate", "--length", str(total), path)
        _run(file.fileno(), *format_command(path, inodes, owner))
        # Nobody will ever look for lost files here, and builds expect an empty directory.
        _run(file.fileno(), "debugfs", "-w", "-R", "rmdir lost+found", path)
        return LoopDisk(*_attach(file.fileno()))


def _check_room(file: int, total: int) -> None:
    """Before the attempt, which would leave the host without room until it has failed."""
    found = os.fstatvfs(file)
    if total > found.f_bavail * found.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def file_size(size: int, inodes: int) -> int:
    """Bytes of the file behind so many bytes for content."""
    total = size + (inodes + _RESERVED_INODES) * _INODE + _FIXED
    return -(-total // BLOCK) * BLOCK


def format_command(path: str, inodes: int, owner: str) -> Sequence[str]:
    """No journal, as it does not outlive a crash; no discard, which would undo the reservation."""
    options = f"nodiscard,lazy_itable_init=1,root_owner={owner}"
    return (
        *("mkfs.ext4", "-q", "-F", "-b", str(BLOCK), "-I", str(_INODE), "-m", "0"),
        *("-N", str(inodes + _RESERVED_INODES), "-O", "^has_journal,^resize_inode"),
        *("-E", options, path),
    )


@contextmanager
def _refusing(engine: str, folder: str) -> Iterator[None]:
    try:
        yield
    except subprocess.CalledProcessError as error:
        words = (error.stderr or b"").decode(errors="replace").strip().replace("\n", "; ")
        if os.strerror(errno.ENOSPC) in words:
            raise DiskFull(engine, folder) from None
        raise DiskRefused(engine, f"{error.cmd[0]}: {words or error}") from None
    except subprocess.TimeoutExpired as error:
        raise DiskRefused(engine, f"{error.cmd[0]}: no end within {error.timeout:g} s") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull(engine, folder) from None
        raise DiskRefused(engine, f"{error.filename or folder}: {error.strerror}") from None


def _run(descriptor: int, *command: str) -> None:
    """With system directories in ``PATH``, which a service's may lack."""
    environ = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"}
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=PROGRAM_DEADLINE,
        pass_fds=[descriptor],
        env=environ,
    )


def _attach(file: int) -> tuple[str, list[int]]:
    """The device that holds the file, and the descriptors that hold the device."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            device = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            opened = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(opened, _CONFIGURE, _configuration(file))
            except OSError as error:
                os.close(opened)
                if error.errno != errno.EBUSY:
                    raise
                continue
            return device, [opened]
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device", "/dev/loop-control")


def _configuration(file: int) -> bytes:
    name = b"sandboxworker"
    info = (0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, name, b"", b"", 0, 0)
    return _LOOP_CONFIG.pack(file, 0, *info, b"")
