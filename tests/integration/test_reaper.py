"""Orphans on a real engine: made by hand, as a master that was killed would leave them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker.errors
import pytest
import pytest_twisted
from conftest import BUSYBOX, volumes
from real_master import (
    HOLD,
    RealMaster,
    assert_valid,
    let_go,
    one_builder_each,
    running_master,
    shell,
    until,
)
from runtime import SandboxPolicy
from twisted.internet import defer

from sandboxworker import SandboxLatentWorker, housekeeping
from sandboxworker.auditfile import reading
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.identity import ID_FILE, claim, master_id
from sandboxworker.sandbox import Sandbox

pytestmark = pytest.mark.engine

PROGRAM = [sys.executable, "-c", "from sandboxworker.cli import main; main()"]

Orphan = Callable[..., str]


@pytest.fixture
def orphan(engine_client: Any) -> Iterator[Orphan]:
    """``orphan(master, past=…, start=…)``: a container that carries a master's id; its id."""
    made: list[str] = []

    def make(master: str, *, past: bool = False, start: bool = False, volume: bool = False) -> str:
        labels = {
            "sandboxworker.master": master,
            "sandboxworker.worker": "w",
            "sandboxworker.sandbox": secrets.token_hex(8),
            "sandboxworker.deadline": str(int(time.time()) + (-1 if past else 3600)),
        }
        container = engine_client.create_container(
            BUSYBOX,
            ["sleep", "600"],
            labels=labels,
            volumes=["/data"] if volume else None,
            host_config=engine_client.create_host_config(network_mode="none"),
        )
        made.append(container["Id"])
        if start:
            engine_client.start(container["Id"])
        return str(container["Id"])

    yield make
    for container in made:
        if exists(engine_client, container):
            engine_client.remove_container(container, force=True, v=True)


def exists(engine_client: Any, container: str) -> bool:
    try:
        engine_client.inspect_container(container)
    except docker.errors.NotFound:
        return False
    return True


def config() -> dict[str, Any]:
    policy = SandboxPolicy(BUSYBOX, disk="8m", memory="64m")
    return one_builder_each([SandboxLatentWorker("w", policy=policy)])


@pytest.fixture
def basedir(tmp_path: Path) -> Path:
    made = tmp_path / "master"
    made.mkdir()
    return made


def reaped(master: RealMaster) -> dict[str, dict[str, Any]]:
    return {entry["container"]: entry for entry in master.audit if entry["event"] == "reap.removed"}


# ---- the master ----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_master_removes_on_its_start_what_one_that_was_killed_left(
    engine_client: Any, left_over: Any, basedir: Path, orphan: Orphan
) -> None:
    own, other = master_id(basedir), f"other-{secrets.token_hex(6)}"
    before = volumes(engine_client)
    created = orphan(own)
    running = orphan(own, start=True, volume=True)
    ended = orphan(own, start=True)
    engine_client.kill(ended)
    foreign = [orphan(other), orphan(other, past=True, start=True), orphan(f"{own}x")]
    assert len(volumes(engine_client) - before) == 1
    async with running_master(basedir, config(), left_over) as master:
        await until(lambda: len(reaped(master)) == 3, "three entries in the audit log", 30)
        entries = reaped(master)
        assert {entry["why"] for entry in entries.values()} == {"orphan"}
        assert entries[created]["state"] == "created"
        assert entries[running]["state"] == "running"
        assert not any(exists(engine_client, each) for each in (created, running, ended))
        assert all(exists(engine_client, each) for each in foreign)
        assert volumes(engine_client) == before
        assert master.errors == []


@pytest_twisted.ensureDeferred
async def test_a_reconfigure_reaps_again_and_spares_what_builds(
    engine_client: Any, left_over: Any, basedir: Path, orphan: Orphan
) -> None:
    async with running_master(basedir, config(), left_over) as master:
        request = await master.begin("w", [shell(HOLD, "hold")])
        await master.step_started(request, "hold")
        (living,) = master.containers(engine_client)
        late = orphan(master.id)
        await master.reconfigure(config())
        await until(lambda: late in reaped(master), "the reaper", 30)
        assert [each["Id"] for each in master.containers(engine_client)] == [living["Id"]]
        let_go(engine_client, living["Id"])
        assert (await master.finished(request)).result == "success"


@pytest_twisted.ensureDeferred
async def test_a_master_reaps_every_few_minutes(
    engine_client: Any,
    left_over: Any,
    basedir: Path,
    orphan: Orphan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(housekeeping, "SWEEP_SECONDS", 0.5)
    async with running_master(basedir, config(), left_over) as master:
        for _ in range(2):
            late = orphan(master.id)
            await until(lambda late=late: late in reaped(master), "the reaper", 30)


@pytest_twisted.ensureDeferred
async def test_what_is_just_being_created_is_spared(
    engine_client: Any,
    left_over: Any,
    basedir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The container is there and the create call has not returned, while the reaper sweeps."""
    swept, create = defer.Deferred(), DockerEngine.create
    monkeypatch.setattr(housekeeping, "SWEEP_SECONDS", 0.05)
    sweeps: list[int] = []

    async def slow(engine: DockerEngine, name: str, body: Any) -> Any:
        created = await create(engine, name, body)
        await swept
        return created

    async def counted(reaper: Any, engine: DockerEngine) -> Any:
        listed = await engine.list({"sandboxworker.master": reaper._master})
        found = await sweep(reaper, engine)
        sweeps.append(len(listed))
        if sweeps[-3:] == [1, 1, 1] and not swept.called:
            swept.callback(None)
        return found

    sweep = housekeeping.Reaper.sweep
    monkeypatch.setattr(DockerEngine, "create", slow)
    monkeypatch.setattr(housekeeping.Reaper, "sweep", counted)
    async with running_master(basedir, config(), left_over) as master:
        build = await master.run("w", [shell("echo fine", "s")])
        assert build.result == "success"
        assert swept.called
        assert reaped(master) == {}


@pytest_twisted.ensureDeferred
async def test_a_copied_directory_reaps_nothing_of_its_model(
    engine_client: Any, left_over: Any, basedir: Path, tmp_path: Path, orphan: Orphan
) -> None:
    model = master_id(basedir)
    containers = [orphan(model), orphan(model, past=True)]
    copy = tmp_path / "copy"
    shutil.copytree(basedir, copy)
    async with running_master(copy, config(), left_over) as master:
        assert master.id != model
        own = orphan(master.id)
        await until(lambda: own in reaped(master), "the reaper", 30)
        assert list(reaped(master)) == [own]
        assert all(exists(engine_client, each) for each in containers)


@pytest_twisted.ensureDeferred
async def test_a_second_master_in_the_same_directory_reaps_nothing_of_the_first(
    engine_client: Any, left_over: Any, basedir: Path, orphan: Orphan
) -> None:
    first = claim(basedir)
    assert first is not None
    containers = [orphan(first.id), orphan(first.id, past=True)]
    async with running_master(basedir, config(), left_over) as master:
        build = await master.run("w", [shell("echo fine", "s")])
        assert build.result == "success"
        (told,) = [each for each in master.audit if each["event"] == "master.identified"]
        assert "another process holds" in told["reason"]
        assert {each["master"] for each in master.audit} == {told["master"]} != {first.id}
        house = await housekeeping.housekeeping(master.master)
        own = orphan(house.identity.id)
        house._sweep()
        await until(lambda: own in reaped(master), "the reaper", 30)
        assert list(reaped(master)) == [own]
        assert all(exists(engine_client, each) for each in containers)
    first.release()


@pytest_twisted.ensureDeferred
async def test_what_could_not_be_destroyed_in_time_is_destroyed_by_the_reaper(
    engine_client: Any,
    left_over: Any,
    basedir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine says yes and removes nothing, until it does."""
    monkeypatch.setattr("sandboxworker.sandbox.DESTROY_DEADLINE", 1.0)
    monkeypatch.setattr("sandboxworker.reaper.FIRST_PAUSE", 0.2)
    remove, obeys = DockerEngine.remove, False
    held: dict[str, Sandbox] = {}

    async def maybe_remove(engine: DockerEngine, container: str) -> None:
        if obeys:
            await remove(engine, container)

    def keep_alive(sandbox: Sandbox) -> None:
        held[sandbox.id] = sandbox
        sandbox._keeper = None

    shut = Sandbox._shut_streams
    monkeypatch.setattr(DockerEngine, "remove", maybe_remove)
    monkeypatch.setattr(Sandbox, "_shut_streams", lambda self: (keep_alive(self), shut(self)))
    async with running_master(basedir, config(), left_over) as master:
        build = await master.run("w", [shell("echo fine", "s")])
        assert build.result == "success"

        def told(event: str) -> list[dict[str, Any]]:
            return [entry for entry in master.audit if entry["event"] == event]

        await until(lambda: len(told("reap.failed")) >= 2, "attempts", 60)
        assert len(master.containers(engine_client)) == 1
        assert told("sandbox.stuck")[0]["buildid"] == build.id
        obeys = True
        await until(lambda: told("reap.removed"), "its end", 60)
        (entry,) = told("reap.removed")
        assert entry["why"] == "stuck"
        assert told("sandbox.gone")
        assert not master.containers(engine_client)
        assert (await master.run("w", [shell("echo again", "s")])).result == "success"


# ---- as a program ------------------------------------------------------------------------------


def gc(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*PROGRAM, "gc", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def audited(basedir: Path) -> list[dict[str, Any]]:
    entries = list(reading(basedir / "sandboxworker-audit.jsonl"))
    for entry in entries:
        assert_valid(entry)
    return entries


def test_gc_shows_and_then_removes_all_that_a_master_left_which_does_not_run(
    engine_client: Any, basedir: Path, orphan: Orphan
) -> None:
    own = master_id(basedir)
    left = [orphan(own), orphan(own, start=True), orphan(own, past=True)]
    foreign = orphan(f"other-{secrets.token_hex(6)}", past=True)

    shown = json.loads(gc("--dry-run", "--json", "--basedir", str(basedir)).stdout)
    assert {each["container"] for each in shown} == set(left)
    assert {each["result"] for each in shown} == {"would remove"}
    assert {each["why"] for each in shown} == {"orphan", "deadline"}
    assert all(exists(engine_client, each) for each in left)
    assert not (basedir / "sandboxworker-audit.jsonl").exists()

    table = gc("--basedir", str(basedir)).stdout
    for container in left:
        assert container[:12] in table
        assert not exists(engine_client, container)
    assert "3 containers to remove" in table
    assert "does not run" in table
    assert exists(engine_client, foreign)
    assert {(each["event"], each["by"], each["container"]) for each in audited(basedir)} == {
        ("reap.removed", "gc", container) for container in left
    }
    assert "0 containers" in gc("--basedir", str(basedir)).stdout


@pytest_twisted.ensureDeferred
async def test_gc_beside_a_living_master_spares_its_sandboxes_and_removes_what_is_overdue(
    engine_client: Any,
    left_over: Any,
    basedir: Path,
    orphan: Orphan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from twisted.internet.threads import deferToThread

    # The master's own reaper would be as quick.
    monkeypatch.setattr(housekeeping, "FIRST_SWEEP_SECONDS", 3600)
    async with running_master(basedir, config(), left_over) as master:
        request = await master.begin("w", [shell(HOLD, "hold")])
        await master.step_started(request, "hold")
        (living,) = master.containers(engine_client)
        young, old = orphan(master.id), orphan(master.id, past=True)
        done = await deferToThread(gc, "--basedir", str(basedir))
        assert "the master" in done.stdout
        assert " runs" in done.stdout
        assert exists(engine_client, living["Id"])
        assert exists(engine_client, young)
        assert not exists(engine_client, old)
        assert [each["container"] for each in master.audit if each.get("by") == "gc"] == [old]
        let_go(engine_client, living["Id"])
        assert (await master.finished(request)).result == "success"


def test_gc_in_a_copied_directory_removes_nothing_and_says_why(
    engine_client: Any, basedir: Path, tmp_path: Path, orphan: Orphan
) -> None:
    container = orphan(master_id(basedir), past=True)
    shutil.copytree(basedir, tmp_path / "copy")
    told = gc("--basedir", str(tmp_path / "copy"), code=125).stderr
    assert str(basedir) in told
    assert "made in another place" in told
    assert exists(engine_client, container)


def test_gc_without_an_id_or_an_engine_says_what_to_do(basedir: Path) -> None:
    told = gc("--basedir", str(basedir), code=125).stderr
    assert "tells no master's id" in told
    assert not (basedir / ID_FILE).exists()
    master_id(basedir)
    told = gc("--basedir", str(basedir), "--engine", f"unix://{basedir}/none", code=125).stderr
    assert "does not answer" in told
    assert str(basedir) in told


def test_gc_that_cannot_write_down_what_it_does_removes_nothing(
    engine_client: Any, basedir: Path, orphan: Orphan
) -> None:
    container = orphan(master_id(basedir))
    log = basedir / "no" / "such" / "file"
    told = gc("--basedir", str(basedir), "--audit-file", str(log), code=125).stderr
    assert str(log) in told
    assert "nothing was removed" in told
    assert exists(engine_client, container)


def test_a_file_that_gc_begins_is_its_directorys_owners(
    engine_client: Any, basedir: Path, orphan: Orphan
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    orphan(master_id(basedir))
    os.chown(basedir, 12345, 12345)
    gc("--basedir", str(basedir))
    found = (basedir / "sandboxworker-audit.jsonl").stat()
    assert (found.st_uid, found.st_gid) == (12345, 12345)
