"""What a sandbox takes of its host beside its uid: processors, a disk, its files in /etc."""

from __future__ import annotations

import attrs

from sandboxworker.engine.interface import Engine, HostDisk
from sandboxworker.errors import DiskRefused
from sandboxworker.spec import ContainerSpec, Identity


class Resources:
    """Of one sandbox; taken before its container is created, given back when it is gone."""

    def __init__(self, engine: Engine, spec: ContainerSpec) -> None:
        self._engine = engine
        self._spec = spec
        self._cpuset = ""
        self._disk: HostDisk | None = None

    async def take(self, identity: Identity) -> Identity:
        """The identity with its place on the host. Raises `EngineError`."""
        if self._spec.processors is not None:
            available = (await self._engine.host()).processors
            self._cpuset = self._engine.cores.take(self._spec.processors, available)
        if (disk := self._spec.disk) is not None:
            self._disk = await self._engine.new_disk(disk.size, disk.inodes, identity.user)
        device = self._disk.device if self._disk is not None else ""
        etc = await self._engine.etc(self._spec.image_id, dict(identity.labels))
        return attrs.evolve(identity, device=device, cpuset=self._cpuset, etc=etc)

    def started(self) -> None:
        """The container runs, and its end is now the disk's end.

        Raises `DiskRefused` where the disk is not the one that was made here.
        """
        if self._disk is None:
            return
        if not self._disk.is_mounted():
            raise DiskRefused(self._engine.name, f"it did not mount {self._disk.device} of here")
        self._let_go_of_disk()

    def give_back(self) -> None:
        """The container is gone, or never came to be."""
        self._engine.cores.give_back(self._cpuset)
        self._cpuset = ""
        self._let_go_of_disk()

    def _let_go_of_disk(self) -> None:
        disk, self._disk = self._disk, None
        if disk is not None:
            disk.let_go()
