"""Workspaces on disk: what they hold, where they cannot be had, and that nothing of them stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from conftest import loop_files
from memory_engine import within
from twisted.internet import reactor, task

from sandboxworker.audit import unheard
from sandboxworker.engine.address import EngineAddress
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.engine.loopdisk import file_size, make
from sandboxworker.errors import DiskFull, DiskRefused
from sandboxworker.policy import MIB, TIB
from sandboxworker.process import run
from sandboxworker.proof import PROBE_INODES, PROBE_SIZE, disk_fault
from sandboxworker.reaper import Reaper

SECONDS = 90.0


async def until(is_so: Callable[[], bool], what: str) -> None:
    """Kernel and engine let go in their own time."""
    for _ in range(600):
        if is_so():
            return
        await task.deferLater(reactor, 0.1, lambda: None)  # type: ignore[arg-type]
    raise AssertionError(f"never came: {what}")


def behind(device: str) -> str:
    """The file that a loop device holds; it has no name, but a number that is its own."""
    return Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().strip()


def volume_of(client: Any, container: str | None) -> tuple[str, str]:
    """The one volume of a container, and its device."""
    mounts = client.inspect_container(container)["Mounts"]
    (mount,) = [mount for mount in mounts if mount["Type"] == "volume"]
    return mount["Name"], client.inspect_volume(mount["Name"])["Options"]["device"]


def volumes(client: Any) -> list[str]:
    return [volume["Name"] for volume in client.volumes()["Volumes"] or ()]


async def until_gone(client: Any, file: str, volume: str) -> None:
    await until(lambda: file not in loop_files(), f"the end of {file}")
    await until(lambda: volume not in volumes(client), f"the end of volume {volume}")


# ---- with an engine ----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_disk_holds_more_than_memory_and_is_gone_with_its_sandbox(
    make_sandbox: Any, engine: DockerEngine, engine_client: Any
) -> None:
    sandbox = await make_sandbox(disk_backing="disk", memory="48m", disk="256m", disk_inodes=5000)
    volume, device = volume_of(engine_client, sandbox.container)
    file = behind(device)
    assert file.startswith((await engine.host()).folder)
    # Were it memory, as page cache that cannot be dropped is, this would be an OOM kill.
    write = ["sh", "-c", "head -c 240m /dev/zero >f && ls -A && wc -c <f"]
    done = await within(SECONDS, run(sandbox, write, directory=sandbox.spec.workspace))
    assert done.stdout.decode().split() == ["f", str(240 * MIB)], done.stderr
    await within(SECONDS, sandbox.destroy())
    await within(SECONDS, until_gone(engine_client, file, volume))


@pytest_twisted.ensureDeferred
async def test_limits_are_tried_once_for_an_engine(make_sandbox: Any) -> None:
    events: list[Any] = []
    for _ in range(2):
        await make_sandbox(audit=events.append, disk_backing="disk", disk="16m", disk_inodes=100)
    ready = [event.sandbox for event in events if event.name == "sandbox.ready"]
    # Two probes, one without a disk and one with, and then the two that were asked for.
    assert len(set(ready)) == 4


HOLDER = """
import sys, time
from sandboxworker.engine.loopdisk import make
disk = make("engine", sys.argv[1], 1 << 20, 100, "1:1")
print(disk.device, flush=True)
time.sleep(600)
"""


@pytest_twisted.ensureDeferred
async def test_disk_that_no_container_has_mounted_goes_with_the_process_that_made_it(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().startswith("/dev/loop")
        assert len(loop_files(str(tmp_path))) == 1
        assert list(tmp_path.iterdir()) == []
        holder.kill()
    await within(SECONDS, until(lambda: not loop_files(str(tmp_path)), "the device's end"))


MASTER = """
import sys
from twisted.internet import defer, task
from sandboxworker import SandboxPolicy
from sandboxworker.engine.address import resolve
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.sandbox import Owner, Sandbox
from sandboxworker.seccomp import load
from sandboxworker.spec import build_spec

async def main(reactor):
    engine = DockerEngine(resolve(None), reactor)
    policy = SandboxPolicy(sys.argv[1], disk_backing="disk", disk="8m")
    spec = build_spec(policy, await engine.image(policy.image), load("build"))
    sandbox = Sandbox(engine, engine.uids, spec, Owner(sys.argv[2]), reactor)
    await sandbox.start()
    print(sandbox.container, flush=True)
    await defer.Deferred()

task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
"""


@pytest_twisted.ensureDeferred
async def test_nothing_of_it_is_left_when_its_master_is_killed(
    engine_client: Any, owner: Any, debian: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MASTER, debian, owner.master], stdout=subprocess.PIPE, text=True
    ) as master:
        assert master.stdout is not None
        volume, device = volume_of(engine_client, master.stdout.readline().strip())
        file = behind(device)
        os.kill(master.pid, signal.SIGKILL)
    await within(SECONDS, until_gone(engine_client, file, volume))


# ---- where it cannot be had --------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_engine_on_another_machine_is_refused() -> None:
    engine = DockerEngine(EngineAddress("tcp://127.0.0.1:1", "/certificates"), reactor)
    with pytest.raises(DiskRefused, match="another machine"):
        await within(SECONDS, engine.new_disk(MIB, 64, "1:1"))


def test_disk_beyond_the_hosts_room_is_refused_before_it_takes_any(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=str(tmp_path)):
        make("engine", str(tmp_path), 4096 * TIB, 64, "1:1")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiskRefused, match="No such file"):
        make("engine", f"{tmp_path}/none", MIB, 64, "1:1")


def test_process_that_may_not_use_loop_devices_is_refused(tmp_path: Path) -> None:
    """As nobody else than root may; nothing stays behind."""
    tmp_path.chmod(0o777)
    script = textwrap.dedent(
        """
        import os, sys
        from sandboxworker.engine.loopdisk import make
        from sandboxworker.errors import DiskRefused
        os.setgid(65534), os.setuid(65534)
        try:
            make("engine", sys.argv[1], 1 << 20, 64, "1:1")
        except DiskRefused as error:
            print(error.reason)
        """
    )
    folder = f"/proc/self/fd/{os.open(tmp_path, os.O_RDONLY)}"
    told = subprocess.run(
        [sys.executable, "-c", script, folder],
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
        pass_fds=[int(folder.rpartition("/")[2])],
    )
    os.close(int(folder.rpartition("/")[2]))
    assert told.stdout.strip() == "/dev/loop-control: Permission denied"
    assert list(tmp_path.iterdir()) == []


def test_missing_programs_are_said_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sandboxworker.engine import loopdisk

    monkeypatch.setattr(loopdisk, "format_command", lambda *_: ["mkfs.none"])
    with pytest.raises(DiskRefused, match=r"mkfs\.none"):
        make("engine", str(tmp_path), MIB, 64, "1:1")


# ---- the parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "inodes"), [(MIB, 64), (MIB, 256), (16 * MIB, 256), (300 * MIB, 76800)]
)
def test_disk_has_the_bytes_and_inodes_that_were_asked_for(
    tmp_path: Path, size: int, inodes: int
) -> None:
    disk = make("engine", str(tmp_path), size, inodes, "20001:20001")
    try:
        told = subprocess.run(
            ["dumpe2fs", "-h", disk.device], capture_output=True, text=True, check=True,
            env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
        ).stdout  # fmt: skip
        fields = dict(line.partition(":")[::2] for line in told.splitlines() if ":" in line)
        free = int(fields["Free blocks"]) * int(fields["Block size"])
        assert 0.97 * size <= free <= size + MIB
        assert inodes <= int(fields["Free inodes"]) <= inodes + 64
        assert int(fields["Reserved block count"]) == 0
        # All of it is there already: nobody else can take it.
        (held,) = loop_files(str(tmp_path))
        assert held.endswith("(deleted)")
        assert not disk.is_mounted()
    finally:
        disk.let_go()
    assert file_size(size, inodes) % 4096 == 0


@pytest.mark.parametrize(
    ("filled", "word"),
    [
        ("", "bytes"),
        (f"bytes {2 * PROBE_SIZE}\nfiles {PROBE_INODES}", "bytes"),
        (f"bytes {PROBE_SIZE // 2}\nfiles {PROBE_INODES}", "bytes"),
        (f"bytes {PROBE_SIZE}\nfiles {4 * PROBE_INODES}", "files"),
        (f"bytes {PROBE_SIZE}\nfiles 0", "files"),
        (f"bytes {PROBE_SIZE}\nnonsense", "files"),
    ],
)
def test_disk_whose_limit_does_not_hold_is_told(filled: str, word: str) -> None:
    assert word in disk_fault(filled)


def test_disk_whose_limits_hold_has_no_fault() -> None:
    assert disk_fault(f"bytes {PROBE_SIZE - 9000}\nfiles {PROBE_INODES + 5}") == ""


@pytest_twisted.ensureDeferred
async def test_record_that_an_engine_kept_is_removed_and_no_other_masters(
    engine: DockerEngine, engine_client: Any, owner: Any
) -> None:
    ours, others = (
        engine_client.create_volume(labels={"sandboxworker.master": master})["Name"]
        for master in (owner.master, f"not-{owner.master}")
    )
    try:
        await within(SECONDS, Reaper(owner.master, reactor, unheard).sweep(engine))
        assert ours not in volumes(engine_client)
        assert others in volumes(engine_client)
    finally:
        engine_client.remove_volume(others)
