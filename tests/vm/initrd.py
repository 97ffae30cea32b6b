"""The machine's first file system: busybox, and the modules without which there is no disk.

Debian's own initrd holds a hundred times as many, and every one costs time in an emulated machine.
"""

from __future__ import annotations

import gzip
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

#: What is needed for the disks; what these need in turn is found in ``modules.dep``.
WANTED = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
_BLOCK = 4
_END = "TRAILER!!!"


def load_order(dependencies: str, wanted: Iterable[str] = WANTED) -> list[str]:
    """Paths of modules, each behind all that it needs, from the text of ``modules.dep``."""
    needs: dict[str, list[str]] = {}
    for line in dependencies.splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {_name(path): path for path in needs}
    order: dict[str, None] = {}

    def add(path: str) -> None:
        for other in needs[path]:
            add(other)
        order.setdefault(path)

    for name in wanted:
        add(by_name[name])
    return list(order)


def _name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def archive(members: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A gzipped cpio archive ("newc", Documentation/driver-api/early-userspace/buffer-format).

    Each member is its path, its mode with the file's type, and its content.
    """
    parts: list[bytes] = []
    for number, (path, mode, content) in enumerate([*members, (_END, 0, b"")], start=1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields)
        parts += [_padded(head + name), _padded(content)]
    return gzip.compress(b"".join(parts), compresslevel=1)


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % _BLOCK)


def members(tree: Path, release: str, init: Path) -> Iterator[tuple[str, int, bytes]]:
    """The files for a kernel's release, from the tree where it is installed."""
    folder, program = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    for name in ("bin", "dev", "proc", "root", "modules"):
        yield name, folder, b""
    yield "bin/busybox", program, (tree / "bin/busybox").read_bytes()
    yield "init", program, init.read_bytes()
    modules = tree / "lib/modules" / release
    for number, path in enumerate(load_order((modules / "modules.dep").read_text())):
        yield f"modules/{number:02}-{Path(path).name}", program, (modules / path).read_bytes()
