"""What names are looked up in: two files that the engine keeps for all sandboxes."""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from bad_engine import behind_a_proxy, refusal
from memory_engine import within
from runtime import HAS_OWN_KERNEL, SandboxPolicy
from twisted.internet import reactor

from sandboxworker.engine import etcfiles
from sandboxworker.engine.address import EngineAddress, resolve
from sandboxworker.engine.answers import host_facts
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.errors import EngineRefused, NotConformant
from sandboxworker.process import run
from sandboxworker.sandbox import Owner, Sandbox
from sandboxworker.seccomp import load
from sandboxworker.spec import ETC_FILES, build_spec

pytestmark = pytest.mark.engine

SECONDS = 60.0
BUSYBOX = "sandboxworker/busybox:latest"


async def said(sandbox: Sandbox, script: str) -> str:
    done = await within(SECONDS, run(sandbox, ("sh", "-c", script), directory="/build"))
    return (done.stdout + done.stderr).decode()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("image", [BUSYBOX, "sandboxworker/debian:bookworm"])
async def test_localhost_is_known_and_no_network_was_made(
    make_sandbox: Any, engine_client: Any, image: str
) -> None:
    sandbox = await make_sandbox(image)
    inspected = engine_client.inspect_container(sandbox.container)
    assert inspected["NetworkSettings"]["Networks"] == {}
    for name, text in ETC_FILES.items():
        assert await said(sandbox, f"cat /etc/{name}") == text
    assert "127.0.0.1" in await said(sandbox, "ping -c 1 localhost || getent ahosts localhost")
    devices = (await said(sandbox, "cat /proc/net/dev")).splitlines()[2:]
    assert [line.partition(":")[0].strip() for line in devices] == ["lo"]
    outside = str(Path(f"/proc/{inspected['State']['Pid']}/ns/net").readlink())
    assert outside != str(Path("/proc/self/ns/net").readlink())
    if not HAS_OWN_KERNEL:
        assert (await said(sandbox, "readlink /proc/self/ns/net")).strip() == outside


@pytest_twisted.ensureDeferred
async def test_nobody_inside_can_change_them(make_sandbox: Any) -> None:
    sandbox = await make_sandbox()
    # gVisor asks whose the file is first.
    refusal = "Permission denied" if HAS_OWN_KERNEL else "Read-only file system"
    for name in ETC_FILES:
        assert refusal in await said(sandbox, f"echo x >/etc/{name}")
    mounts = await said(sandbox, "grep /etc/ /proc/self/mountinfo")
    ours = [
        line for line in mounts.splitlines() if line.split()[4].removeprefix("/etc/") in ETC_FILES
    ]
    assert len(ours) == len(ETC_FILES)
    assert all("ro" in line.split()[5].split(",") for line in ours)


class Own:
    """Sandboxes on an engine object that knows nothing yet."""

    def __init__(self, url: str, owner: Owner) -> None:
        self.engine = DockerEngine(EngineAddress(url), reactor)
        self._owner = owner

    async def start(self) -> Sandbox:
        facts = await self.engine.image(BUSYBOX)
        spec = build_spec(SandboxPolicy(BUSYBOX, disk="4m", memory="64m"), facts, load("build"))
        sandbox = Sandbox(self.engine, self.engine.uids, spec, self._owner, reactor)
        await within(SECONDS, sandbox.start())
        return sandbox


@pytest_twisted.async_yield_fixture
async def own(owner: Owner) -> AsyncIterator[Callable[[str], Own]]:
    made: list[Own] = []

    def make(url: str) -> Own:
        made.append(Own(url, owner))
        return made[-1]

    yield make
    for each in made:
        await each.engine.close()


@pytest.fixture
def volume(engine_client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a volume that is no other test's."""
    name = f"{etcfiles.VOLUME}-{secrets.token_hex(4)}"
    monkeypatch.setattr(etcfiles, "VOLUME", name)
    yield name
    engine_client.remove_volume(name)


def write(client: Any, volume: str, name: str, text: str) -> None:
    """Somebody with access to the engine has other contents in a volume."""
    mount = {"Type": "volume", "Source": volume, "Target": "/v"}
    container = client.create_container_from_config(
        {"Image": BUSYBOX, "Cmd": ["true"], "HostConfig": {"Mounts": [mount]}}
    )["Id"]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text.encode()))
    client.put_archive(container, "/v", packed.getvalue())
    client.remove_container(container, force=True)


@pytest_twisted.ensureDeferred
async def test_other_contents_are_noticed_and_the_next_engine_object_puts_them_right(
    own: Any, engine_client: Any, volume: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(resolve(None))
    first = own(url)
    sandbox = await first.start()
    await sandbox.destroy()
    write(engine_client, volume, "hosts", "192.0.2.7\tlocalhost\n")
    monkeypatch.setattr(first.engine.proven, "_until", {})  # As after an hour.
    with pytest.raises(NotConformant, match="hosts"):
        await first.start()
    sandbox = await own(url).start()
    assert await said(sandbox, "cat /etc/hosts") == ETC_FILES["hosts"]
    await sandbox.destroy()


@pytest_twisted.ensureDeferred
async def test_a_volume_that_was_removed_fails_one_start_and_is_made_anew(
    own: Any, engine_client: Any, volume: str
) -> None:
    mine = own(str(resolve(None)))
    sandbox = await mine.start()
    await sandbox.destroy()
    engine_client.remove_volume(volume)
    with pytest.raises(EngineRefused, match=volume):
        await mine.start()
    sandbox = await mine.start()
    assert await said(sandbox, "cat /etc/hosts") == ETC_FILES["hosts"]
    await sandbox.destroy()


@pytest_twisted.ensureDeferred
async def test_where_volumes_are_not_allowed_the_engine_makes_the_files(
    own: Any, engine_client: Any
) -> None:
    async with behind_a_proxy(resolve(None).socket_path) as proxy:
        fault = proxy.strike(r"POST /volumes/create", answer=refusal(403, "authorization denied"))
        sandbox = await own(proxy.url).start()
        assert "localhost" in await said(sandbox, "cat /etc/hosts")
        inspected = engine_client.inspect_container(sandbox.container)
        assert list(inspected["NetworkSettings"]["Networks"]) == ["none"]
        await sandbox.destroy()
        assert fault.struck == 1


@pytest_twisted.ensureDeferred
async def test_an_engine_that_fails_at_it_fails_the_start(own: Any) -> None:
    """It may do better next time; nothing is given up for good."""
    async with behind_a_proxy(resolve(None).socket_path) as proxy:
        once = {"answer": refusal(500, "no space left"), "times": 1}
        proxy.strike(r"GET /containers/[^/]+/archive", **once)
        mine = own(proxy.url)
        with pytest.raises(EngineRefused, match="no space left"):
            await mine.start()
        sandbox = await mine.start()
        assert await said(sandbox, "cat /etc/hosts") == ETC_FILES["hosts"]
        await sandbox.destroy()


def test_under_selinux_the_engine_makes_the_files() -> None:
    assert host_facts({"SecurityOptions": ["name=seccomp", "name=selinux"]}).selinux
    assert not host_facts({"SecurityOptions": ["name=seccomp"]}).selinux
