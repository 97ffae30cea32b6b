"""What is measured: each case gives samples by name, and ratios with their targets."""

from __future__ import annotations

import gc
import io
import os
import tarfile
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import floor
from buildbot.plugins import steps
from masters import (
    DEMAND,
    DOCKER,
    IMAGE,
    KINDS,
    LOCAL,
    READY,
    Bench,
    TimedCommand,
    configuration,
    cpu_seconds,
    pause,
    running,
)

#: Seconds between two builds: destruction and refill of the one before are over.
REST = 1.6
MB = 1000 * 1000
#: Workers of the cases that ask how cost grows, and sandboxes that wait at once.
TOGETHER, GROWTH, IDLE = (1, 4, 16), (1, 16, 64, 256), 200


@attrs.frozen
class Ratio:
    """A quotient of two medians. ``target``: its most, or with ``least`` its least."""

    name: str
    of: str
    by: str
    target: float | None = None
    least: bool = False


@attrs.frozen
class Outcome:
    """What a case measured. ``unit``: of its samples."""

    unit: str
    samples: dict[str, list[float]]
    ratios: Sequence[Ratio] = ()
    notes: Sequence[str] = ()


@attrs.frozen
class Setting:
    """What a case may use. ``worker_image``: for Buildbot's own Docker worker."""

    client: Any
    worker_image: str
    rounds: int


#: The engine without Buildbot and without us.
ALONE = "the engine alone"

Case = Callable[[Setting], Awaitable[Outcome]]


def samples() -> dict[str, list[float]]:
    return {}


def note(into: dict[str, list[float]], name: str, value: float) -> None:
    into.setdefault(name, []).append(value)


async def _each_kind(
    bench: Bench, kinds: Sequence[str], build: str, rounds: int, warm: int = 1
) -> Any:
    """Builds of each kind in turn; the first rounds warm up."""
    first: dict[str, list[float]] = {}
    finish: dict[str, list[float]] = {}
    for turn in range(rounds + warm):
        for kind in kinds:
            if READY in kinds:
                await bench.are_ready(1)
            await pause(REST)
            times = await bench.timed(f"{kind}/{build}")
            if turn >= warm:
                note(first, kind, times.first_step)
                note(finish, kind, times.finish)
    return first, finish


async def one(setting: Setting) -> Outcome:
    """A build of one step, to its first step and to its finish."""
    config = configuration(KINDS, {"one": lambda: [true()]}, setting.worker_image)
    async with running(config) as bench:
        first, finish = await _each_kind(bench, KINDS, "one", setting.rounds)
    return Outcome(
        "s",
        {**{f"{kind}, first step": each for kind, each in first.items()}, **finish},
        (
            Ratio("one step, ready ÷ LocalWorker", READY, LOCAL, 1.10),
            Ratio("one step, on demand ÷ DockerLatentWorker", DEMAND, DOCKER, 0.60),
        ),
    )


async def twenty(setting: Setting) -> Outcome:
    """A build of 20 short steps."""
    config = configuration(
        KINDS, {"twenty": lambda: [true() for _ in range(20)]}, setting.worker_image
    )
    async with running(config) as bench:
        _, finish = await _each_kind(bench, KINDS, "twenty", max(3, setting.rounds - 2))
    return Outcome("s", finish, (Ratio("20 steps, ready ÷ LocalWorker", READY, LOCAL, 1.10),))


def true() -> Any:
    return TimedCommand(command=["true"], logEnviron=False)


# ---- a real project ------------------------------------------------------------------------------


async def project(setting: Setting) -> Outcome:
    """GNU hello: unpacked, configured, built and tested, by the machine's and the image's gcc."""
    from debian_packages import upstream_source

    cpus = os.cpu_count() or 1
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(_as_tar(upstream_source(setting.client, IMAGE, "hello")))
        file.flush()

        def build() -> list[Any]:
            return [
                steps.FileDownload(mastersrc=file.name, workerdest="/tmp/hello.tar"),
                sh("rm -rf hello && mkdir hello && tar -xf /tmp/hello.tar -C hello --strip 1"),
                sh("cd hello && ./configure --quiet"),
                sh(f"cd hello && make -s -j{cpus}"),
                sh(f"cd hello && make -s -j{cpus} check"),
            ]

        kinds = (LOCAL, READY)
        config = configuration(
            kinds, {"project": build}, setting.worker_image, cpus=cpus, memory="2g", tmp="512m"
        )
        async with running(config) as bench:
            _, finish = await _each_kind(bench, kinds, "project", 2, warm=0)
    return Outcome(
        "s",
        finish,
        (Ratio("C project, ready ÷ LocalWorker", READY, LOCAL, 1.03),),
        (f"{cpus} CPUs; LocalWorker has the machine's compiler, the sandbox the image's",),
    )


def _as_tar(archive: Any) -> bytes:
    """A source archive without its compression, which is not what is measured."""
    packed = archive if isinstance(archive, bytes) else Path(archive).read_bytes()
    plain = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(packed)) as given,
        tarfile.open(fileobj=plain, mode="w") as made,
    ):
        for member in given:
            made.addfile(member, given.extractfile(member) if member.isfile() else None)
    return plain.getvalue()


def sh(command: str) -> Any:
    return steps.ShellCommand(command=["sh", "-c", command], logEnviron=False)


# ---- streams -------------------------------------------------------------------------------------


async def log(setting: Setting) -> Outcome:
    """100 MB of log, in lines of 100 bytes."""
    line = "123456789." * 9 + "123456789"
    text = f"yes {line} | head -c {100 * MB}"
    kinds = (LOCAL, READY)
    config = configuration(
        kinds,
        {"log": lambda: [sh(text)]},
        setting.worker_image,
        max_output="200m",
        max_step_output="200m",
    )
    async with running(config) as bench:
        _, finish = await _each_kind(bench, kinds, "log", 2, warm=0)
    return Outcome("s", finish, (Ratio("100 MB of log, ready ÷ LocalWorker", READY, LOCAL, 1.2),))


async def transfer(setting: Setting) -> Outcome:
    """500 MB to the master, and 500 MB from it."""
    kinds = (LOCAL, READY)
    with tempfile.TemporaryDirectory(prefix="sandboxworker-bench-") as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        with source.open("wb") as file:
            for _ in range(500):
                file.write(os.urandom(MB))

        def down() -> list[Any]:
            return [
                steps.FileDownload(mastersrc=str(source), workerdest="big", blocksize=256 * 1024),
                sh(f"test $(wc -c <big) = {500 * MB}; rm big"),
            ]

        def up() -> list[Any]:
            return [
                sh(f"head -c {500 * MB} /dev/zero >big"),
                steps.FileUpload(workersrc="big", masterdest=str(target), blocksize=256 * 1024),
                sh("rm big"),
            ]

        config = configuration(
            kinds,
            {"down": down, "up": up},
            setting.worker_image,
            disk="600m",
            memory="512m",
            max_upload="1g",
        )
        async with running(config) as bench:
            _, downs = await _each_kind(bench, kinds, "down", 2, warm=0)
            _, ups = await _each_kind(bench, kinds, "up", 2, warm=0)
    downs[ALONE], ups[ALONE] = floor.transfer(setting.client, 500, 3)
    return Outcome(
        "s",
        {
            **{f"{kind}, download": each for kind, each in downs.items()},
            **{f"{kind}, upload": each for kind, each in ups.items()},
        },
        tuple(
            Ratio(f"500 MB {way}, {of} ÷ {by}", f"{of}, {way}", f"{by}, {way}", target)
            for way in ("download", "upload")
            for of, by, target in ((READY, LOCAL, 1.0), (ALONE, LOCAL, None))
        ),
    )


# ---- many ----------------------------------------------------------------------------------------


async def throughput(setting: Setting) -> Outcome:
    """Short builds a minute with 1, 4 and 16 workers, and the master's CPU seconds for each."""
    rates: dict[str, list[float]] = {}
    for count in TOGETHER:
        config = configuration(
            KINDS,
            {"one": lambda: [true()]},
            setting.worker_image,
            count=count,
            standby=count,
            memory="64m",
            disk="16m",
            tmp="16m",
            shm="8m",
        )
        async with running(config) as bench:
            for kind in KINDS:
                await bench.are_ready(count)
                await pause(REST)
                builds = max(4, 2 * count)
                before = cpu_seconds()
                seconds = await bench.together(f"{kind}/one", builds)
                name = f"{kind}, {count} workers"
                note(rates, name, 60 * builds / seconds)
                each = (cpu_seconds() - before) / builds
                note(rates, f"{name}, master's CPU s a build", each)
    note(rates, f"{ALONE}, containers", floor.containers_a_minute(setting.client, 60))
    return Outcome(
        "builds a minute",
        rates,
        (
            Ratio(
                "16 workers, ready ÷ DockerLatentWorker",
                f"{READY}, 16 workers",
                f"{DOCKER}, 16 workers",
                2.5,
                least=True,
            ),
            Ratio(
                "16 workers, LocalWorker ÷ DockerLatentWorker",
                f"{LOCAL}, 16 workers",
                f"{DOCKER}, 16 workers",
            ),
            Ratio(
                "16 workers, on demand ÷ DockerLatentWorker",
                f"{DEMAND}, 16 workers",
                f"{DOCKER}, 16 workers",
            ),
        ),
    )


def _memory(pid: int | str = "self") -> float:
    """kB of its own, shared pages counted in parts; 0 where it ended meanwhile."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return float(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])


def _engine_memory() -> float:
    """kB of all engines' processes on this machine and their shims; 0 for one elsewhere."""
    names = ("dockerd", "containerd", "containerd-shim")
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "comm").read_text().strip()
        except OSError:
            continue
        if name.startswith(names):
            total += _memory(folder.name)
    return total


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def idle(setting: Setting) -> Outcome:
    """Many sandboxes that wait: memory, threads, descriptors of the master, memory of engines."""
    told: dict[str, list[float]] = {}
    small = {"memory": "16m", "disk": "1m", "tmp": "1m", "shm": "1m"}
    state: dict[int, tuple[float, float, int, int]] = {}
    for count in (1, IDLE):
        config = configuration(
            (READY,), {"one": lambda: [true()]}, setting.worker_image, standby=count, **small
        )
        async with running(config) as bench:
            begin = time.monotonic()
            await bench.are_ready(count)
            note(told, f"s until {count} wait", time.monotonic() - begin)
            await pause(3)
            gc.collect()
            state[count] = (_memory(), _engine_memory(), threading.active_count(), _descriptors())
    more = IDLE - 1
    note(told, "master's kB a sandbox", (state[IDLE][0] - state[1][0]) / more)
    note(told, "engine's kB a sandbox", (state[IDLE][1] - state[1][1]) / more)
    note(told, "master's threads beyond those at 1", state[IDLE][2] - state[1][2])
    note(told, "master's descriptors a sandbox", (state[IDLE][3] - state[1][3]) / more)
    note(told, "limit", 1.0)
    return Outcome(
        "",
        told,
        (
            Ratio("200 idle: master's kB a sandbox", "master's kB a sandbox", "limit", 200.0),
            Ratio(
                "200 idle: threads beyond those at 1",
                "master's threads beyond those at 1",
                "limit",
                0.0,
            ),
        ),
        ("the engines' memory is that of all of this machine's",),
    )


async def growth(setting: Setting) -> Outcome:
    """What 1 to 256 workers cost a master that builds nothing, and one short build on it."""
    told: dict[str, list[float]] = {}
    for count in GROWTH:
        for kind in (DEMAND, DOCKER):
            config = configuration(
                (kind,), {"one": lambda: [true()]}, setting.worker_image, count=count
            )
            gc.collect()
            memory, begin = _memory(), time.monotonic()
            async with running(config) as bench:
                note(told, f"{kind}, {count} workers, s to start", time.monotonic() - begin)
                gc.collect()
                note(told, f"{kind}, {count} workers, master's MB", (_memory() - memory) / 1000)
                note(told, f"{kind}, {count} workers, threads", threading.active_count())
                before = cpu_seconds()
                await bench.timed(f"{kind}/one")
                note(told, f"{kind}, {count} workers, CPU s a build", cpu_seconds() - before)
    return Outcome("", told)


CASES: Mapping[str, Case] = {
    "one": one,
    "twenty": twenty,
    "project": project,
    "log": log,
    "transfer": transfer,
    "throughput": throughput,
    "idle": idle,
    "growth": growth,
}
