"""What all tests share: the engine they use, sandboxes that are destroyed again, the last look.

The engine is the one of ``DOCKER_HOST``, else the one that ``make engine`` noted.
A test that uses the fixture ``engine`` gets the marker of that name; without an engine it fails.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import docker
import hypothesis
import pytest
import pytest_twisted

_TESTS = Path(__file__).resolve().parent
sys.path.append(str(_TESTS))  # For "from memory_engine import …".

_NOTED = _TESTS.parent / ".engine" / "host"
if not os.environ.get("DOCKER_HOST") and _NOTED.is_file():
    os.environ["DOCKER_HOST"] = _NOTED.read_text().strip()

from runtime import SandboxPolicy  # noqa: E402
from slow import SLOW  # noqa: E402

from sandboxworker import shells  # noqa: E402
from sandboxworker.audit import unheard  # noqa: E402
from sandboxworker.engine.address import resolve  # noqa: E402
from sandboxworker.engine.docker import DockerEngine  # noqa: E402
from sandboxworker.engine.etcfiles import VOLUME  # noqa: E402
from sandboxworker.sandbox import Owner, Sandbox  # noqa: E402
from sandboxworker.seccomp import load  # noqa: E402
from sandboxworker.spec import build_spec  # noqa: E402

DEBIAN = "sandboxworker/debian:bookworm"
BUSYBOX = "sandboxworker/busybox:latest"

#: No test asserts a time, and machines are slow at times.
hypothesis.settings.register_profile("sandboxworker", deadline=None, print_blob=True)
hypothesis.settings.load_profile("sandboxworker")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "engine" in getattr(item, "fixturenames", ()):
            item.add_marker("engine")
        if SLOW > 1:
            item.add_marker(pytest.mark.timeout(_time_limit(item) * SLOW), append=False)


def _time_limit(item: pytest.Item) -> float:
    """In seconds, as the test's own marker has it, or pyproject.toml."""
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0] if marker else item.config.getini("timeout"))


def loop_files(folder: str = "/") -> set[str]:
    """The files below a folder that a loop device of this machine holds."""
    held = set()
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # It was let go of meanwhile.
            held.add(file.read_text().strip())
    return {name for name in held if Path(folder) in Path(name).parents}


def volumes(client: Any, **filters: bool) -> set[str]:
    """An engine's, but for the one that stays by design, and test_etc_files'."""
    names = {each["Name"] for each in client.volumes(filters=filters)["Volumes"] or ()}
    return {name for name in names if not name.startswith(VOLUME)}


# ---- what is left ------------------------------------------------------------------------------


class LeftOver:
    """What tests may leave behind, looked for after the last one.

    ``masters``: the ids in the label ``sandboxworker.master``; tests with masters of their own
    add theirs.
    """

    def __init__(self) -> None:
        self.masters = {f"tests-{secrets.token_hex(6)}"}
        self._client: Any = None
        self._volumes: set[str] = set()
        self._mounts: set[str] = set()
        self._loops: set[str] = set()

    def watch(self, client: Any) -> None:
        """An engine is used from now on."""
        self._client = client
        self._volumes = volumes(self._client, dangling=True)
        self._mounts = self._mounts_now()
        self._loops = self._loops_now()

    def found(self) -> list[str]:
        """One line for each thing that is left."""
        lines = [
            f"thread {thread.name!r}"
            for thread in threading.enumerate()
            if "sandboxworker " in thread.name
        ]
        if self._client is not None:
            lines += [f"volume {name}" for name in self._volumes_left()]
            lines += self._containers_now()
            lines += self._mounts_left()
            self._client.close()
        return lines

    def _volumes_left(self) -> list[str]:
        """The same for a while: a test of another process may just be making or removing one."""
        left = volumes(self._client, dangling=True) - self._volumes
        give_up = time.monotonic() + 10
        while left and time.monotonic() < give_up:
            time.sleep(0.5)
            left &= volumes(self._client, dangling=True)
        return sorted(left)

    def _mounts_now(self) -> set[str]:
        """The engine's mounts on this machine."""
        root = self._client.info()["DockerRootDir"]
        mounted = {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}
        return {place for place in mounted if place.startswith(root + "/")}

    def _mounts_left(self) -> list[str]:
        """What is mounted that was not before, unless it may be some other container's."""
        if self._client.containers(all=True):
            return []
        loops = sorted(self._loops_now() - self._loops)
        mounts = sorted(self._mounts_now() - self._mounts)
        return [*(f"loop device {file}" for file in loops), *(f"mount {place}" for place in mounts)]

    def _loops_now(self) -> set[str]:
        """The files below the engine's folder that a loop device of this machine holds."""
        return loop_files(self._client.info()["DockerRootDir"])

    def _containers_now(self) -> list[str]:
        return [
            f"container {container['Id'][:12]} {container['Names']} {container['Status']}"
            for master in sorted(self.masters)
            for container in self._client.containers(
                all=True, filters={"label": f"sandboxworker.master={master}"}
            )
        ]


@pytest.fixture(scope="session", autouse=True)
def left_over() -> Iterator[LeftOver]:
    """Fails the run when tests left a container, volume, mount or engine's thread behind."""
    left = LeftOver()
    yield left
    found = left.found()
    if found:
        pytest.fail("left after the tests: " + "; ".join(found))


# ---- the engine --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def engine_client(left_over: LeftOver) -> Any:
    """A plain docker client, for looking at what the engine has; fails where there is none."""
    address = resolve(None)
    try:
        client = docker.APIClient(**address.sdk_arguments(), timeout=20 * SLOW)
        tags = {tag for image in client.images() for tag in image["RepoTags"] or ()}
    except docker.errors.DockerException as error:
        pytest.fail(f"no container engine answers at {address} ({error}): run 'make engine'")
    missing = {DEBIAN, BUSYBOX} - tags
    if missing:
        pytest.fail(f"the engine has no {', '.join(sorted(missing))}: run 'make images'")
    left_over.watch(client)
    return client


@pytest_twisted.async_yield_fixture
async def engine(engine_client: Any) -> AsyncIterator[DockerEngine]:
    """A real engine, closed after the test."""
    from twisted.internet import reactor

    opened = DockerEngine(resolve(None), reactor)
    yield opened
    await opened.close()


@pytest.fixture
def gvisor(engine_client: Any) -> str:
    """The name of gVisor's runtime, where the engine knows it."""
    if "runsc" not in engine_client.info()["Runtimes"]:
        pytest.skip("the engine does not know runsc")
    return "runsc"


@pytest.fixture
def debian() -> str:
    """The image with a Debian system."""
    return DEBIAN


@pytest.fixture(params=[DEBIAN, BUSYBOX], ids=["debian", "busybox"])
def image(request: pytest.FixtureRequest) -> str:
    """Each image in turn."""
    return str(request.param)


# ---- sandboxes ---------------------------------------------------------------------------------


@pytest.fixture
def owner(left_over: LeftOver) -> Owner:
    """This test session as a master."""
    return Owner(min(left_over.masters, key=lambda name: not name.startswith("tests-")), "tester")


MakeSandbox = Callable[..., Awaitable[Sandbox]]


@pytest.fixture
def host_says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[None]]:
    """``await host_says(engine, **facts)``: what the engine's host is taken for from now on."""

    async def say(engine: DockerEngine, **facts: Any) -> None:
        monkeypatch.setattr(engine, "_host", attrs.evolve(await engine.host(), **facts))

    return say


@pytest_twisted.async_yield_fixture
async def make_sandbox(engine: DockerEngine, owner: Owner) -> AsyncIterator[MakeSandbox]:
    """``await make_sandbox(image, **policy)``: a started sandbox, destroyed after the test.

    ``anticipates``: a shell waits in it for each next command.
    """
    from twisted.internet import reactor

    made: list[Sandbox] = []

    async def make(
        image: str = DEBIAN,
        *,
        start: bool = True,
        anticipates: bool = False,
        audit: Any = unheard,
        **policy: Any,
    ) -> Sandbox:
        wanted = SandboxPolicy(image, **policy)
        spec = build_spec(wanted, await engine.image(image), load(wanted.seccomp))
        sandbox = Sandbox(engine, engine.uids, spec, owner, reactor, audit)
        made.append(sandbox)
        if start:
            await sandbox.start()
        sandbox.anticipates = anticipates
        if anticipates:
            await shells.prepare(sandbox)
        return sandbox

    yield make
    for sandbox in made:
        await sandbox.destroy()
