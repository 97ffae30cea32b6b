"""Three sandboxes that try to exceed every limit, and what they tell."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs

from sandboxworker import seccomp
from sandboxworker.doctor.rows import ENDED, NOT_SHOWN, Facts
from sandboxworker.errors import (
    DiskRefused,
    DiskUnbounded,
    EngineUnsupported,
    NotConformant,
    SandboxworkerError,
    SocketsUnbounded,
)
from sandboxworker.kernelview import unseen_by
from sandboxworker.policy import SandboxPolicy
from sandboxworker.process import Completed, run
from sandboxworker.sandbox import Owner, Sandbox
from sandboxworker.sockets import bound_sockets
from sandboxworker.spec import build_spec

_KIB = 1024
_DISK, _INODES, _SHM, _NOFILE, _CPUS = 2 * _KIB, 200, _KIB, 256, 0.5
_CPU_SECONDS = 2
#: Seconds for each of the scripts below, which take two at most.
PROBE_SECONDS = 20
#: Seconds within which an engine has heard of a process that the kernel killed for memory.
_HEARD_WITHIN = 5.0
#: What is tolerated beyond a processor share: its periods are 0.1 s long.
_CPU_SLACK = 1.4


@attrs.frozen
class _Room:
    """What a sandbox is given of what a runtime may need for itself.

    ``pids``: processes; ``memory``: MiB of the sandbox whose memory is used up.
    """

    pids: int
    memory: int


_ROOM = _Room(pids=64, memory=16)
#: A kernel of the runtime's own lives in the sandbox's memory, and its threads are processes of it.
_ROOM_WITH_KERNEL = _Room(pids=512, memory=128)


#: What the shell can see by itself, and how far it comes with each limit: lines ``NAME FOUND``.
_LOOK = f"""\
p() {{ printf '%s %s\\n' "$1" "$2"; }}
caps=
nnp='{NOT_SHOWN}'
while read -r k v; do
case $k in
NoNewPrivs:) nnp=$v;;
Seccomp:) p seccomp "$v";;
Cap*) caps=$caps$v;;
Uid:) set -- $v; p uid "$1";;
esac
done </proc/self/status
p no_new_privs "$nnp"
case $caps in *[!0]*) p capabilities "$caps";; *) p capabilities 0;; esac
if (true >/sandboxworker-probe) 2>/dev/null; then p root possible; else p root refused; fi
net=
while read -r l; do case $l in *:*) net="$net,${{l%%:*}}";; esac; done </proc/net/dev
p network "${{net#,}}"
p nofile "$(ulimit -Hn)/{_NOFILE}"
if command -v unshare >/dev/null; then
if unshare -U true 2>/dev/null; then p namespaces possible; else p namespaces refused; fi
fi
fill() {{
head -c $(($3 * 2048)) /dev/zero >"$2" 2>/dev/null
p "$1" "$(($(wc -c <"$2") / 1024))/$3"
rm -f "$2"
}}
fill disk ./full {_DISK}
fill shm /dev/shm/full {_SHM}
i=0
while [ "$i" -lt {2 * _INODES} ] && true >"./f$i"; do i=$((i + 1)); done 2>/dev/null
p inodes "$i/{_INODES}"
rm -f ./f*
df -Pk / 2>/dev/null | {{ read -r _; read -r _ _ _ free _; p space "$free"; }}
"""
_SPIN = f"""\
(while :; do :; done) & a=$!
(while :; do :; done) & b=$!
sleep {_CPU_SECONDS}
kill "$a" "$b"
"""
#: With the number that is allowed.
_FORK = """\
( i=0; while [ "$i" -lt $((3 * $1)) ]; do sleep 30 & i=$((i + 1)); echo "$i" >/tmp/n; done ) \\
2>/dev/null
read -r n </tmp/n
echo "pids $n/$1"
"""
#: One buffer that is far more than a sandbox may use, and filled.
_GROW = "exec dd if=/dev/zero of=/dev/null bs=300M count=1"


class _Timed:
    """An engine whose calls are timed, the first of each kind."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.seconds: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._engine, name)
        if name not in ("create", "start", "exec", "remove"):
            return found

        async def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.monotonic()
            answer = await found(*args, **kwargs)
            self.seconds.setdefault(name, time.monotonic() - begin)
            return answer

        return timed


@attrs.define
class _Told:
    """What has been found out so far."""

    probed: dict[str, str] = attrs.Factory(dict)
    problem: str = ""
    deviations: tuple[str, ...] = ()


async def examine(engine: Any, image: str, reactor: Any, runtime: str | None = None) -> Facts:
    """Ask the engine, then start three sandboxes, one after the other; nothing of them is left.

    ``runtime``: the OCI runtime to try, None for the engine's own.
    Raises `SandboxworkerError` where the engine does not answer, or has not the image.
    """
    begin = time.time()
    info = await engine.info()
    skew = _skew(info, (begin + time.time()) / 2)
    version = await engine.version()
    timed, told = _Timed(engine), _Told()
    SandboxPolicy(image, runtime=runtime).require_valid()
    facts = await engine.image(image)
    for policy, work in _trials(image, runtime):
        spec = build_spec(policy, facts, seccomp.load(policy.seccomp))
        owner = Owner(f"doctor-{secrets.token_hex(8)}")
        sandbox = Sandbox(timed, engine.uids, spec, owner, reactor)
        await _within(sandbox, work, told)
    return Facts(
        info, version, told.probed, timed.seconds, skew, told.problem, told.deviations,
        runtime or "",
    )  # fmt: skip


def _trials(image: str, runtime: str | None) -> list[tuple[SandboxPolicy, Any]]:
    """The sandboxes, and what is done in each."""
    room = _ROOM_WITH_KERNEL if unseen_by(runtime) else _ROOM
    # Where sockets are not bounded one row fails; the others are found out all the same.
    every: dict[str, Any] = {"max_runtime": "2m", "runtime": runtime, "sockets": "unbounded"}
    small = {"disk": "1m", "shm": "1m", "tmp": "1m", **every}
    wide = SandboxPolicy(
        image, memory=f"{room.memory * 4}m", disk=f"{_DISK}k", disk_inodes=_INODES,
        shm=f"{_SHM}k", tmp="4m", pids=room.pids, nofile=_NOFILE, cpus=_CPUS, **every,
    )  # fmt: skip
    narrow = SandboxPolicy(image, memory=f"{room.memory}m", **small)
    on_disk = SandboxPolicy(
        image, memory=f"{room.memory * 4}m", **{**small, "disk": "16m"}, disk_backing="disk"
    )
    return [(wide, _limits), (narrow, _memory), (on_disk, _disk)]


async def _within(sandbox: Sandbox, work: Any, told: _Told) -> None:
    try:
        await sandbox.start()
        told.probed["sandbox"] = "ready"
        await work(sandbox, told.probed)
    except EngineUnsupported:
        raise
    except DiskUnbounded as error:
        told.probed["disk_backing"] = f"unbounded {error.reason}"
    except DiskRefused as error:
        told.probed["disk_backing"] = f"refused {error.reason}"
    except NotConformant as error:
        told.deviations = tuple(dict.fromkeys((*told.deviations, *error.deviations)))
        told.problem = "no sandbox was used, since settings were not applied"
    except SandboxworkerError as error:
        told.problem = str(error)
    finally:
        await sandbox.destroy()


def _skew(info: Mapping[str, Any], now: float) -> float | None:
    text = str(info.get("SystemTime") or "")
    try:
        # Nanoseconds are more than Python reads.
        then = datetime.fromisoformat(text[:19] + "+00:00")
    except ValueError:
        return None
    return float(then.timestamp() - int(now)) if text.endswith("Z") else None


async def _limits(sandbox: Sandbox, probed: dict[str, str]) -> None:
    workspace = sandbox.spec.workspace
    probed.update(_lines(await _shell(sandbox, _LOOK, workspace)))
    probed["sockets"] = await _sockets(sandbox)
    before, begin = (await sandbox.usage()).cpu_seconds, time.monotonic()
    await _shell(sandbox, _SPIN)
    after, seconds = (await sandbox.usage()).cpu_seconds, time.monotonic() - begin
    if before is not None and after is not None:
        allowed = _CPUS * seconds * _CPU_SLACK
        probed["cpu"] = f"{after - before:.2f}/{allowed:.2f}"
    probed.update(_lines(await _shell(sandbox, _FORK, "/", str(sandbox.spec.pids))))
    if not sandbox.is_ready:
        probed["pids"] = ENDED


async def _sockets(sandbox: Sandbox) -> str:
    try:
        gauge = await bound_sockets(sandbox.engine, str(sandbox.container), sandbox.spec)
    except SocketsUnbounded as error:
        return f"unbounded {error.details}"
    if gauge is None:
        return "bounded 0"
    gauge.close()
    return f"bounded {gauge.delay:g}"


async def _memory(sandbox: Sandbox, probed: dict[str, str]) -> None:
    done, is_over = await _ended(sandbox, _GROW)
    told = await _is_told(sandbox, 0.0) or await _is_told(sandbox, _HEARD_WITHIN)
    probed["oom"] = str(told).lower()
    if is_over:
        probed["memory"] = _memory_end(done, is_told=told or sandbox.is_ready)
    inspected = await sandbox.engine.inspect(str(sandbox.container)) or {}
    host = inspected.get("HostConfig") or {}
    same = host.get("MemorySwap") == host.get("Memory")
    probed["swap"] = "same" if same and probed.get("memory") == "killed" else "swap may be used"


async def _is_told(sandbox: Sandbox, seconds: float) -> bool:
    """Whether the engine tells of the kernel's killing within so many seconds."""
    return await sandbox.engine.died_of_memory(str(sandbox.container), time.time() + seconds)


def _memory_end(done: Completed, *, is_told: bool) -> str:
    """``is_told``: whether the kernel's killing is all that can have ended it."""
    if done.exit_code == 0:
        return "it had 300 MiB"
    if done.exit_code == -1 and is_told:
        return "killed"
    return f"it ended with {done.exit_code}: {done.stderr.decode(errors='replace').strip()}"


async def _disk(_sandbox: Sandbox, probed: dict[str, str]) -> None:
    """Its start has proved it: `proof.prove_disk` wrote to a smaller one until that refused."""
    probed["disk_backing"] = "held"


async def _shell(sandbox: Sandbox, script: str, directory: str = "/", *arguments: str) -> Completed:
    """What does not end has told what it had to tell by then."""
    return (await _ended(sandbox, script, directory, *arguments))[0]


async def _ended(
    sandbox: Sandbox, script: str, directory: str = "/", *arguments: str
) -> tuple[Completed, bool]:
    """What a script told, and whether it has come to an end."""
    late: list[float] = []

    def give_up(given_up: Any, seconds: float) -> Any:
        late.append(seconds)
        return given_up

    running = run(sandbox, ("/bin/sh", "-c", script, "sh", *arguments), directory=directory)
    running.addTimeout(PROBE_SECONDS, sandbox.reactor, give_up)
    return await running, not late


def _lines(done: Completed) -> dict[str, str]:
    pairs = (line.split(" ", 1) for line in done.stdout.decode(errors="replace").splitlines())
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
