"""The escape suite (threat model, T1 to T5, T9, T12 to T16): each attempt fails as the table says.

The table is ``tests/escapes``; a watcher outside compares the host before and after each attempt.
``SANDBOXWORKER_RUNTIME=runsc`` runs all of it under gVisor; else a short selection of it runs there
as well, where the engine knows that runtime.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from conftest import DEBIAN
from escapes import ATTEMPTS
from escapes.attempt import EXAMPLES, FOLDER, Attempt
from escapes.watcher import Watcher
from memory_engine import within
from twisted.internet import task

from sandboxworker.engine.address import resolve
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.policy import SandboxPolicy
from sandboxworker.process import Completed, run
from sandboxworker.sandbox import Owner, Sandbox
from sandboxworker.seccomp import load
from sandboxworker.spec import MASKED_PATHS, build_spec

pytestmark = pytest.mark.engine

SECONDS = 120
CHOSEN = os.environ.get("SANDBOXWORKER_RUNTIME")
RUNTIMES = [CHOSEN] if CHOSEN else ["runc", "runsc"]
#: In the environment of the master's process, for no build to find.
MARKER = f"master-{secrets.token_hex(8)}"

#: What a neighbour has that somebody could want: files, memory, a semaphore, a queue, sockets.
NEIGHBOUR = """\
import ctypes, os, socket, sys, time
token, key = sys.argv[1], int(sys.argv[2])
for place in ("/build", "/tmp", "/dev/shm"):
    open(f"{place}/{token}", "w").write(token)
libc = ctypes.CDLL(None)
print(libc.shmget(key, 4096, 0o1666) >= 0, libc.semget(key, 1, 0o1666) >= 0)
print(libc.msgget(key, 0o1666) >= 0)
abstract = socket.socket(socket.AF_UNIX); abstract.bind("\\0" + token); abstract.listen()
port = socket.create_server(("127.0.0.1", 0))
print(port.getsockname()[1], flush=True)
if os.fork() == 0:
    os.setsid()
    os.dup2(os.open("/dev/null", os.O_RDWR), 1); os.dup2(1, 2)
    time.sleep(100000)
"""


def selected(runtime: str) -> list[Attempt]:
    """All of them, or the short selection where gVisor was not asked for."""
    brief = runtime == "runsc" and not CHOSEN
    return [attempt for attempt in ATTEMPTS if attempt.brief or not brief]


CASES = [
    pytest.param(runtime, attempt, id=f"{runtime}-{attempt.id}")
    for runtime in RUNTIMES
    for attempt in selected(runtime)
]


class Arena:
    """An attacker's sandbox, a neighbour's, and the watcher."""

    def __init__(self, engine: DockerEngine, runtime: str, owner: Owner, watched: Any) -> None:
        self.runtime, self._engine, self._owner = runtime, engine, owner
        self._client, self._folder = watched
        self._made: list[Sandbox] = []
        self._pulse: Any = None

    async def open(self) -> None:
        self.neighbour = await self.sandbox()
        self._token, self._key = f"token-{secrets.token_hex(6)}", 1 + secrets.randbelow(2**30)
        arguments = (self._token, str(self._key))
        began = await self.run(self.neighbour, ("python3", "-c", NEIGHBOUR, *arguments))
        words = began.stdout.decode().split()
        assert words[:3] == ["True"] * 3, began.stderr
        self._port = int(words[3])
        self.attacker = await self.sandbox()
        names = [str(self.attacker.container), str(self.neighbour.container)]
        self.watcher = Watcher(self._client, self._folder, names)
        await self._arm()
        self._pulse = _Pulse()

    async def sandbox(self) -> Sandbox:
        from twisted.internet import reactor

        # gVisor's own threads, and what it keeps for each process, count against these.
        policy = SandboxPolicy(
            DEBIAN, runtime=None if self.runtime == "runc" else self.runtime,
            memory="1g", pids=1024, disk="64m", disk_inodes=4000, max_runtime="20m",
        )  # fmt: skip
        spec = build_spec(policy, await self._engine.image(DEBIAN), load(policy.seccomp))
        sandbox = Sandbox(self._engine, self._engine.uids, spec, self._owner, reactor)
        self._made.append(sandbox)
        await within(SECONDS, sandbox.start())
        return sandbox

    async def _arm(self) -> None:
        """Give the attacker its programs, and all that it could know of the world outside."""
        files = {path.name: path.read_bytes() for path in EXAMPLES.iterdir()}
        files["inside.py"] = Path(__file__).parents[1].joinpath("escapes/inside.py").read_bytes()
        files["facts.json"] = json.dumps(self._facts()).encode()
        unpack = await self.run(self.attacker, ("tar", "-xf", "-"), stdin=_archive(files))
        assert unpack.exit_code == 0, unpack.stderr
        compiled = await self.run(self.attacker, ("sh", "-c", "gcc -O1 -o attempts *.c"))
        assert compiled.exit_code == 0, compiled.stderr

    def _facts(self) -> dict[str, Any]:
        port, port_v6 = self.watcher.bait.ports()
        # Small ones are those of processes in the sandbox as well.
        pids = [p for p in self.watcher.pids(str(self.neighbour.container)) if p > 1000]
        assert pids, "this machine's pids are too small to be told from a sandbox's"
        return {
            "port": port, "port_v6": port_v6, "abstract": self.watcher.bait.abstract,
            "addresses": _addresses(), "canary": str(self._folder / "canary"),
            "root": self.watcher.root, "masters": [MARKER, str(Path.cwd())],
            "masked": list(MASKED_PATHS), "token": self._token, "key": self._key,
            "neighbour_port": self._port, "neighbour_uid": self.neighbour.identity.uid,
            "neighbour_pids": pids,
        }  # fmt: skip

    async def run(self, sandbox: Sandbox, argv: tuple[str, ...], stdin: Any = None) -> Completed:
        return await within(SECONDS, run(sandbox, argv, directory=FOLDER, stdin=stdin))

    async def attempt(self, attempt: Attempt) -> str:
        """What came of it, with what it complained of."""
        done = await self.run(self.attacker, attempt.argv)
        return (done.stdout + done.stderr).decode(errors="replace").rstrip("\n")

    async def answers(self) -> list[str]:
        """What the neighbour, the attacker itself and the master's reactor say when asked."""
        asked = [
            (await self.run(one, ("/bin/sh", "-c", "echo answers"))).stdout
            for one in (self.neighbour, self.attacker)
        ]
        return [line.decode().strip() for line in asked]

    async def neighbours_files(self) -> bytes:
        names = [f"{place}/{self._token}" for place in ("/build", "/tmp", "/dev/shm")]
        return (await self.run(self.neighbour, ("cat", *names))).stdout

    def slowest(self) -> float:
        """The longest pause of the master's reactor, in seconds."""
        return float(self._pulse.longest)

    @property
    def token(self) -> bytes:
        return self._token.encode()

    async def close(self) -> None:
        if self._pulse is not None:
            self._pulse.stop()
            self.watcher.bait.close()
        for sandbox in self._made:
            await sandbox.destroy()
        await self._engine.close()


class _Pulse:
    """Notes the longest pause between two beats of the reactor."""

    def __init__(self) -> None:
        from twisted.internet import reactor

        self._reactor: Any = reactor
        self._last, self.longest = self._reactor.seconds(), 0.0
        self._loop = task.LoopingCall(self._beat)
        self._loop.start(0.1)

    def _beat(self) -> None:
        now = self._reactor.seconds()
        self.longest = max(self.longest, now - self._last)
        self._last = now

    def stop(self) -> None:
        self._loop.stop()


def _addresses() -> list[str]:
    """The host's own IPv4 addresses; one of the documentation's where it has none."""
    told = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout
    return [word for word in told.split() if "." in word] or ["192.0.2.1"]


def _archive(files: dict[str, bytes]) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    packed.seek(0)
    return packed


class Arenas:
    """One arena for each runtime, opened when the first attempt needs it."""

    def __init__(self, owner: Owner, client: Any, folders: Any) -> None:
        self._owner, self._client, self._folders = owner, client, folders
        self._opened: dict[str, Arena] = {}

    async def of(self, runtime: str) -> Arena:
        if runtime not in self._opened:
            self._require(runtime)
            await self._open(runtime)
        return self._opened[runtime]

    def _require(self, runtime: str) -> None:
        if runtime not in self._client.info()["Runtimes"]:
            refuse = pytest.fail if CHOSEN else pytest.skip
            refuse(f"the engine knows no runtime {runtime}")

    async def _open(self, runtime: str) -> None:
        from twisted.internet import reactor

        watched = (self._client, self._folders.mktemp("host"))
        arena = Arena(DockerEngine(resolve(None), reactor), runtime, self._owner, watched)
        self._opened[runtime] = arena
        await arena.open()

    async def close(self) -> None:
        for arena in self._opened.values():
            await arena.close()


@pytest_twisted.async_yield_fixture(scope="module")
async def arenas(
    engine_client: Any, left_over: Any, tmp_path_factory: Any
) -> AsyncIterator[Arenas]:
    os.environ["SANDBOXWORKER_TEST_MARKER"] = MARKER
    opened = Arenas(Owner(min(left_over.masters), "escapes"), engine_client, tmp_path_factory)
    yield opened
    await opened.close()
    del os.environ["SANDBOXWORKER_TEST_MARKER"]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(("runtime", "attempt"), CASES)
async def test_an_attempt_fails_and_the_host_is_as_it_was(
    arenas: Arenas, runtime: str, attempt: Attempt
) -> None:
    arena = await arenas.of(runtime)
    told = await arena.attempt(attempt)
    assert re.fullmatch(attempt.expected(runtime), told), told
    assert arena.watcher.changes() == []


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_after_all_attempts_everybody_answers(arenas: Arenas, runtime: str) -> None:
    arena = await arenas.of(runtime)
    assert await arena.answers() == ["answers", "answers"]
    assert await arena.neighbours_files() == arena.token * 3
    assert arena.watcher.changes() == []
    # Nothing that the attempts did held up the master's own loop.
    assert arena.slowest() < SECONDS
