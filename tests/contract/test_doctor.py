"""``sandboxworker doctor`` on a real engine, and on ones that are crippled on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import pytest_twisted
from conftest import BUSYBOX, DEBIAN
from memory_engine import within
from twisted.internet import reactor

from sandboxworker.doctor.probe import examine
from sandboxworker.doctor.rows import Facts, Status, judge
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.errors import DiskRefused, DiskUnbounded, PolicyError, SocketsUnbounded

SECONDS = 120.0


class Crippled:
    """The real engine behind somebody who drops settings of the create request.

    ``lies``: whether its inspect answer tells what was asked for nevertheless.
    """

    def __init__(self, engine: DockerEngine, lies: bool, **changed: Any) -> None:
        self._engine = engine
        self._lies = lies
        self._changed = changed
        self._asked: Mapping[str, Any] = {}
        self.said: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def create(self, name: str, body: Mapping[str, Any]) -> Any:
        self._asked = body["HostConfig"]
        host = {**self._asked, **self._changed}
        created = await self._engine.create(name, {**body, "HostConfig": host})
        return attrs.evolve(created, warnings=()) if self._lies else created

    async def inspect(self, container: str) -> Any:
        found = await self._engine.inspect(container)
        if found is None or not self._lies:
            return found
        told = {name: self._asked[name] for name in self._changed}
        return {**found, "HostConfig": {**found["HostConfig"], **told}}

    async def new_disk(self, *arguments: Any) -> Any:
        if "new_disk" in self.said:
            raise self.said["new_disk"]
        return await self._engine.new_disk(*arguments)

    async def bound_sockets(self, container: str, limit: int) -> Any:
        if "bound_sockets" in self.said:
            raise self.said["bound_sockets"]
        return await self._engine.bound_sockets(container, limit)

    async def version(self) -> Mapping[str, Any]:
        return self.said.get("version") or await self._engine.version()

    async def info(self) -> Mapping[str, Any]:
        return {**await self._engine.info(), **self.said.get("info", {})}


def failing(facts: Facts) -> dict[str, str]:
    return {row.name: row.found for row in judge(facts) if row.status is Status.FAILS}


@pytest_twisted.ensureDeferred
async def test_good_engine_holds_every_limit(engine: DockerEngine) -> None:
    rows = judge(await within(SECONDS, examine(engine, DEBIAN, reactor)))
    assert {row.name: row.found for row in rows if row.status is Status.FAILS} == {}
    assert {row.name for row in rows if row.status is Status.UNKNOWN} <= {"namespaces"}
    assert {row.name for row in rows if row.status is Status.WARNING} <= {
        "versions", "space", "latency create", "latency start", "latency exec", "latency remove"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "rows"),
    [
        ({"SecurityOpt": ["no-new-privileges", "seccomp=unconfined"]}, {"seccomp"}),
        (
            {
                "CapDrop": [],
                "PidsLimit": 4096,
                "ReadonlyRootfs": False,
                # All that is not named here is the engine's own, which is another on each host.
                "Ulimits": [
                    {"Name": "nofile", "Soft": 4096, "Hard": 4096},
                    {"Name": "core", "Soft": 0, "Hard": 0},
                ],
            },
            {"capabilities", "pids", "root", "nofile"},
        ),
    ],
    ids=["seccomp", "several"],
)
@pytest_twisted.ensureDeferred
async def test_engine_that_lies_about_a_setting_is_found_out(
    engine: DockerEngine, changed: dict[str, Any], rows: set[str]
) -> None:
    crippled = Crippled(engine, True, **changed)
    found = failing(await within(SECONDS, examine(crippled, DEBIAN, reactor)))
    assert set(found) == rows, found


@pytest_twisted.ensureDeferred
async def test_engine_that_drops_a_setting_is_told_and_nothing_runs_there(
    engine: DockerEngine,
) -> None:
    crippled = Crippled(engine, False, PidsLimit=None)
    facts = await within(SECONDS, examine(crippled, BUSYBOX, reactor))
    assert "PidsLimit" in failing(facts)["pids"]
    assert facts.probed == {}


@pytest_twisted.ensureDeferred
async def test_old_runtime_and_missing_controller_are_named(engine: DockerEngine) -> None:
    crippled = Crippled(engine, False)
    crippled.said = {
        "version": {"Components": [{"Name": "runc", "Version": "1.0.0-rc6"}]},
        "info": {"MemoryLimit": False, "SwapLimit": False},
    }
    found = failing(await within(SECONDS, examine(crippled, BUSYBOX, reactor)))
    assert set(found) == {"versions", "memory", "swap"}
    assert "CVE-2019-5736" in found["versions"]


@pytest_twisted.ensureDeferred
async def test_gvisor_holds_every_limit_and_what_it_hides_is_noted(
    engine: DockerEngine, gvisor: str
) -> None:
    facts = await within(SECONDS, examine(engine, DEBIAN, reactor, gvisor))
    rows = {row.name: row for row in judge(facts)}
    found = {name: row.found for name, row in rows.items()}
    assert [name for name, row in rows.items() if row.status is Status.FAILS] == [], found
    assert [name for name, row in rows.items() if row.status is Status.UNKNOWN] == [], found
    assert rows["memory"].status is rows["pids"].status is rows["cpu"].status is Status.OK
    assert rows["disk_backing"].status is Status.OK
    noted = {name for name, row in rows.items() if row.status is Status.NOTED}
    assert noted == {"seccomp", "no_new_privs", "namespaces", "inodes"}
    assert all(gvisor in rows[name].found for name in noted)


@pytest_twisted.ensureDeferred
async def test_runtime_that_the_engine_does_not_know_fails(engine: DockerEngine) -> None:
    found = failing(await within(SECONDS, examine(engine, BUSYBOX, reactor, "no-such-runtime")))
    assert set(found) >= {"sandbox"}
    assert "no-such-runtime" in found["sandbox"]


@pytest_twisted.ensureDeferred
async def test_name_that_no_runtime_has_is_refused_before_anything_starts(
    engine: DockerEngine,
) -> None:
    with pytest.raises(PolicyError, match="runtime"):
        await within(SECONDS, examine(engine, BUSYBOX, reactor, "../runsc"))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DiskRefused("engine", "no loop devices"), Status.NOTED),
        (DiskUnbounded("engine", "of 16 bytes it let 99 be written"), Status.FAILS),
    ],
    ids=["refused", "unbounded"],
)
@pytest_twisted.ensureDeferred
async def test_workspace_on_disk_that_is_not_to_be_had_or_not_bounded_is_told(
    engine: DockerEngine, error: DiskRefused, status: Status
) -> None:
    crippled = Crippled(engine, False)
    crippled.said["new_disk"] = error
    facts = await within(SECONDS, examine(crippled, BUSYBOX, reactor))
    (row,) = [row for row in judge(facts) if row.name == "disk_backing"]
    assert row.status is status
    assert error.reason in row.found
    assert set(failing(facts)) == ({"disk_backing"} if status is Status.FAILS else set())


@pytest_twisted.ensureDeferred
async def test_sockets_that_cannot_be_bounded_fail_their_row_and_no_other(
    engine: DockerEngine,
) -> None:
    crippled = Crippled(engine, False)
    crippled.said["bound_sockets"] = SocketsUnbounded("engine")
    facts = await within(SECONDS, examine(crippled, BUSYBOX, reactor))
    assert set(failing(facts)) == {"sockets"}


# ---- the command ---------------------------------------------------------------------------------


def command(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", "from sandboxworker.cli import main; main()", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.engine
def test_command_tells_all_rows_as_json(engine_client: Any) -> None:
    code, out, _ = command("--json", "--image", BUSYBOX)
    told = json.loads(out)
    assert (code, told["exit_code"]) == (0, 0), out
    assert {row["name"] for row in told["rows"]} > {"memory", "seccomp", "versions"}
    assert all(row["meaning"] and row["fix"] for row in told["rows"])


@pytest.mark.engine
def test_command_tries_the_runtime_that_it_is_told(gvisor: str) -> None:
    code, out, _ = command("--runtime", gvisor)
    assert code == 0, out
    assert f"tried {gvisor}" in out
    assert f"{Status.NOTED.value:8} seccomp" in out
    assert out.splitlines()[-1].endswith("0 fails, 0 unknown"), out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nope"], "No such option"),
        (["--engine", "unix:///nowhere.sock"], "does not answer"),
        (["--image", "no/such:image"], "is not on the engine"),
        (["--runtime", "../runsc"], "runtime"),
        (["--engine", "tcp://192.0.2.1:1"], "plain TCP"),
    ],
)
def test_wrong_uses_are_one_message_and_125(
    engine_client: Any, arguments: list[str], said: str
) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (125, "")
    assert said in err
