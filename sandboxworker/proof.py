"""Whether limits hold, tried where it counts: in a container, before any build is in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import attrs
from twisted.internet import defer

from sandboxworker import kernelview
from sandboxworker.engine.exitcode import exit_code
from sandboxworker.engine.interface import STDOUT, Engine, Entry, ExecRequest
from sandboxworker.errors import (
    DiskRefused,
    DiskUnbounded,
    ExecFailed,
    ImageRefused,
    NotConformant,
)
from sandboxworker.kept import Kept
from sandboxworker.policy import MIB
from sandboxworker.spec import ContainerSpec, Disk, Identity, Tmpfs

#: Seconds for one look, which takes a tenth, and for filling a disk, which takes half a second;
#: under gVisor on a busy machine many times that.
LOOK_DEADLINE = 20.0
FILL_DEADLINE = 120.0
#: Bytes of what is read.
_LONGEST_LOOK = 4 * MIB
#: Characters of what is said instead.
_COMPLAINT = 300

#: What a disk is tried with.
PROBE_SIZE, PROBE_INODES = 16 * MIB, 256
#: Files that ext4 may give beyond what was asked for: it rounds up to whole blocks of inodes.
_INODE_SLACK = 64
#: Goes on well past both limits, and says how far it came.
_FILL = """\
cd "$1" || exit
head -c "$2" /dev/zero >full; echo "bytes $(wc -c <full)"; rm full
i=0; while [ $i -lt "$3" ] && true >"n$i"; do i=$((i + 1)); done; echo "files $i"
"""


class Probe(Protocol):
    """A sandbox, as far as a proof needs one."""

    @property
    def container(self) -> str | None:
        """The engine's id of it."""

    @property
    def identity(self) -> Identity:
        """Its user."""

    def start(self) -> defer.Deferred[None]:
        """Make it ready."""

    def destroy(self) -> defer.Deferred[None]:
        """End it."""


async def prove_image(engine: Engine, container: str, spec: ContainerSpec) -> None:
    """See that no link of an image leads a mount elsewhere, once for each image and workspace.

    ``container`` is created and not started: some engines cannot start it, others mount over what
    the link leads to. Raises `ImageRefused` with every such link.
    """
    what = f"places {spec.image_id} {spec.workspace}"
    if engine.proven.holds(what):
        return
    found = {place: await engine.entry(container, place) for place in _mount_points(spec)}
    faults = [fault for place, entry in found.items() if (fault := _place_fault(place, entry))]
    if faults:
        raise ImageRefused(spec.image, faults)
    engine.proven.note(what)


def _mount_points(spec: ContainerSpec) -> list[str]:
    """What is mounted over, and all above it."""
    places = {"/proc", "/sys", "/dev/shm", spec.workspace, *(mount.path for mount in spec.tmpfs)}
    above = {str(parent) for place in places for parent in PurePosixPath(place).parents}
    return sorted((places | above) - {"/"})


def _place_fault(place: str, entry: Entry | None) -> str:
    """What the image has there is a directory, or nothing; else what is wrong."""
    if entry is None or entry.is_directory:
        return ""
    what = f"a link to {entry.link}" if entry.link else "no directory"
    return f"{place} is {what}, and a sandbox has a place of its own there"


async def prove_kernel(
    engine: Engine, container: str, spec: ContainerSpec, identity: Identity, reactor: Any
) -> None:
    """Hold the kernel's view of a new sandbox against its spec, once for each spec.

    Raises `NotConformant` with every deviation.
    """
    what = proved_by(spec, identity)
    if engine.proven.holds(what):
        return
    look = ("/bin/sh", "-c", kernelview.LOOK, "sh", *kernelview.LOOKED_AT)
    view = kernelview.parse(await ask(engine, container, identity.user, look, reactor))
    own = kernelview.outside(_boot_id(), _link, view)
    expected = kernelview.Expected(spec, identity, own, (await engine.host()).lsm)
    found = kernelview.kernel_deviations(view, expected)
    if found:
        raise NotConformant(engine.name, map(str, found))
    engine.proven.note(what)


def proved_by(spec: ContainerSpec, identity: Identity) -> str:
    """What one look shows for all sandboxes that are made alike."""
    return f"{spec.digest} {identity.etc}"


async def prove_disk(
    engine: Engine, spec: ContainerSpec, probe: Callable[[ContainerSpec], Probe], reactor: Any
) -> None:
    """Write to a small disk until it refuses, once for each engine and runtime.

    ``probe`` makes a sandbox of a spec. Raises `DiskRefused` where this process is not on the
    engine's host, `DiskUnbounded` where a limit does not hold.
    """
    what = f"disk {spec.runtime or ''}"
    if engine.proven.holds(what):
        return
    # First of all without one: elsewhere the device of that name would be somebody else's.
    boot_id = await _inside(engine, probe(_without_disk(spec)), ("cat", _BOOT_ID), reactor)
    if not boot_id.strip() or boot_id.strip() != _boot_id():
        raise DiskRefused(engine.name, "this master is not on its host")
    fill = (
        "/bin/sh",
        "-c",
        _FILL,
        "sh",
        spec.workspace,
        str(2 * PROBE_SIZE),
        str(4 * PROBE_INODES),
    )
    filled = await _inside(engine, probe(_with_small_disk(spec)), fill, reactor)
    fault = disk_fault(filled)
    if fault:
        raise DiskUnbounded(engine.name, fault)
    engine.proven.note(what)


def disk_fault(filled: str) -> str:
    """What is wrong with the limits of a disk that was filled; empty if nothing is."""
    lines = (line.partition(" ") for line in filled.splitlines())
    came = {name: int(number) for name, _, number in lines if number.isdecimal()}
    size, files = came.get("bytes", 0), came.get("files", 0)
    if not 0.9 * PROBE_SIZE <= size <= PROBE_SIZE + MIB:
        return f"of {PROBE_SIZE} bytes it let {size} be written"
    if not PROBE_INODES <= files <= PROBE_INODES + _INODE_SLACK:
        return f"of {PROBE_INODES} files it let {files} be made"
    return ""


async def ask(
    engine: Engine,
    container: str,
    user: str,
    argv: tuple[str, ...],
    reactor: Any,
    deadline: float = LOOK_DEADLINE,
) -> str:
    """What a command in a new container prints, within so many seconds.

    Raises `ExecFailed` where it has no end in time, none that the engine told, or fails: what a
    runtime that could not start it complains of comes on the same stream, and is no answer.
    """
    listener = _Listener(container[:12])
    exec_id, stream = await engine.exec(container, ExecRequest(argv, user), listener)
    listener.over.addTimeout(deadline, reactor)
    try:
        await listener.over
    except defer.TimeoutError:
        reason = f"a first look has no end within {deadline:g} s"
        raise ExecFailed(container[:12], reason) from None
    finally:
        stream.abort()
    said = listener.heard.data.decode(errors="replace")
    status = await exit_code(engine, exec_id, reactor)
    if status != 0:
        reason = f"a first look ended with {status}: {said.strip()[:_COMPLAINT]}"
        raise ExecFailed(container[:12], reason)
    return said


class _Listener:
    """Keeps what a command prints on stdout; what it prints beside may come in between."""

    def __init__(self, container: str) -> None:
        self._container = container
        self.heard = Kept(_LONGEST_LOOK)
        self.over: defer.Deferred[None] = defer.Deferred()

    def stream_received(self, channel: int, data: bytes) -> None:
        if channel == STDOUT:
            self.heard.add(data)

    def stream_ended(self, reason: Exception | None) -> None:
        if self.over.called:
            return
        if reason is None:
            self.over.callback(None)
        else:
            self.over.errback(ExecFailed(self._container, f"a first look was cut off: {reason}"))


async def _inside(engine: Engine, probe: Probe, argv: tuple[str, ...], reactor: Any) -> str:
    """What a command prints in a sandbox made for it."""
    try:
        await probe.start()
        user = probe.identity.user
        return await ask(engine, str(probe.container), user, argv, reactor, FILL_DEADLINE)
    finally:
        await probe.destroy()


def _without_disk(spec: ContainerSpec) -> ContainerSpec:
    """Under the engine's own runtime, as others may have a kernel of their own."""
    place = Tmpfs(spec.workspace, MIB, 64, executable=True, mode="0755")
    return attrs.evolve(spec, disk=None, tmpfs=(*spec.tmpfs, place), runtime=None)


def _with_small_disk(spec: ContainerSpec) -> ContainerSpec:
    return attrs.evolve(spec, disk=Disk(spec.workspace, PROBE_SIZE, PROBE_INODES))


_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def _boot_id() -> str:
    try:
        return Path(_BOOT_ID).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
