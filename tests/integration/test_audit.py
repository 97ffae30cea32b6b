"""The audit log of a real master: what it has of a build, where it goes, what it never has."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from buildbot.config.errors import ConfigErrors, capture_config_errors
from conftest import BUSYBOX
from real_master import assert_valid, one_builder_each, running_master, shell, until
from runtime import SandboxPolicy
from twisted.internet.threads import deferToThread
from twisted.logger import formatEvent, globalLogPublisher

from sandboxworker import SandboxAudit, SandboxLatentWorker
from sandboxworker.auditfile import FILE, reading, rotated

pytestmark = pytest.mark.engine


def config(*audit: SandboxAudit, **policy: Any) -> dict[str, Any]:
    wanted = SandboxPolicy(BUSYBOX, **{"disk": "8m", "memory": "64m", **policy})
    worker = SandboxLatentWorker("w", policy=wanted)
    return one_builder_each([worker], services=list(audit))


def entries(path: Path) -> list[dict[str, Any]]:
    found = list(reading(path))
    for entry in found:
        assert_valid(entry)
    return found


@pytest_twisted.ensureDeferred
async def test_each_transition_is_one_entry_with_its_build_in_a_file_for_the_master_alone(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    async with running_master(tmp_path, config(), left_over) as master:
        builds = [await master.run("w", [shell("echo fine", "s")]) for _ in range(2)]
        await until(lambda: len(master.audit) >= 8, "the last sandbox's end")
        for number, build in enumerate(builds, 1):
            own = [each for each in master.audit if each["buildid"] == build.id]
            assert [each["event"] for each in own] == [
                f"sandbox.{state}" for state in ("created", "ready", "destroying", "gone")
            ]
            assert {each["sandbox"] for each in own} == {build.properties["sandbox_id"]}
            assert {(each["builder"], each["build"], each["worker"]) for each in own} == {
                ("w", number, "w")
            }
        assert len(master.audit) == 8
        assert {each["master"] for each in master.audit} == {master.id}
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


@pytest_twisted.ensureDeferred
async def test_each_limit_that_was_struck_is_one_entry_with_field_and_value(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    limits = {"max_step_output": 1024, "max_output": 3000, "max_runtime": "3s"}
    async with running_master(tmp_path, config(**limits), left_over) as master:
        flood = "while :; do echo flood flood flood flood flood flood; done"
        build = await master.run(
            "w", [shell(flood, "one", haltOnFailure=False), shell("sleep 60", "two")]
        )
        assert build.result == "failure"
        await until(lambda: master.audit[-1]["event"] == "sandbox.gone", "its end")
        struck = [each for each in master.audit if each["event"] == "limit.struck"]
        assert [(each["limit"], each["value"]) for each in struck] == [
            ("max_step_output", 1024),
            ("max_runtime", 3),
        ]
        assert {each["buildid"] for each in struck} == {build.id}


@pytest_twisted.ensureDeferred
async def test_the_operator_says_where_it_goes_and_a_reconfigure_takes_hold(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere" / "audit"
    elsewhere.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "syslog"))
        daemon.settimeout(20)
        first = SandboxAudit(
            file=str(elsewhere), rotate_at="4k", keep=2, syslog=str(tmp_path / "syslog")
        )
        async with running_master(tmp_path, config(first), left_over) as master:
            for _ in range(6):
                assert (await master.run("w", [shell("true", "s")])).result == "success"
            await until(lambda: len(entries(elsewhere)) >= 6, "entries")
            assert not (tmp_path / FILE).exists()
            assert rotated(elsewhere, 1).exists()
            assert not rotated(elsewhere, 3).exists()
            received = (await deferToThread(daemon.recv, 65536)).decode()
            entry = json.loads(received.partition("sandboxworker: ")[2])
            assert_valid(entry)
            assert entry["event"] == "sandbox.created"

            await master.reconfigure(config())
            before = len(entries(elsewhere))
            await master.run("w", [shell("true", "s")])
            await until(lambda: len(master.audit) >= 4, "entries in the default file")
            assert len(entries(elsewhere)) == before
            assert master.errors == []


@pytest_twisted.ensureDeferred
async def test_a_log_that_cannot_be_written_is_said_once_and_builds_go_on(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    lines: list[str] = []

    def note(event: dict[str, Any]) -> None:
        lines.append(formatEvent(event))

    directory = tmp_path / "no" / "such"
    globalLogPublisher.addObserver(note)
    try:
        audit = SandboxAudit(file=str(directory / "audit"))
        async with running_master(tmp_path, config(audit), left_over) as master:
            for _ in range(2):
                assert (await master.run("w", [shell("true", "s")])).result == "success"
            (told,) = [line for line in lines if "audit log" in line]
            assert f"{directory / 'audit'}: No such file or directory" in told
            directory.mkdir(parents=True)
            await master.run("w", [shell("true", "s")])
            await until(lambda: len(entries(directory / "audit")) == 12, "all that was kept")
            assert len([line for line in lines if "audit log" in line]) == 2
    finally:
        globalLogPublisher.removeObserver(note)


def test_wrong_arguments_are_errors_of_the_configuration_all_at_once() -> None:
    with pytest.raises(ConfigErrors) as raised, capture_config_errors(raise_on_error=True):
        SandboxAudit(file=3, rotate_at="lots", faults="red", name="other")
    told = list(raised.value.errors)
    assert len(told) == 4
    assert all(line.startswith("SandboxAudit: ") for line in told)
    for word in ("file=3", "rotate_at='lots'", "faults=: no such argument", "name='other'"):
        assert any(word in line for line in told)


def test_buildbot_knows_it_by_name() -> None:
    from buildbot.plugins import util

    assert util.SandboxAudit is SandboxAudit


@pytest_twisted.ensureDeferred
async def test_the_command_finds_a_build_in_a_living_masters_log(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    async with running_master(tmp_path, config(), left_over) as master:
        for _ in range(2):
            build = await master.run("w", [shell("true", "s")])
        await until(lambda: len(master.audit) >= 8, "its end")
        program = [sys.executable, "-c", "from sandboxworker.cli import main; main()", "audit"]

        def run() -> str:
            return subprocess.run(
                [*program, "--basedir", str(tmp_path), "--build", "w/2"],
                capture_output=True, text=True, check=True, timeout=60,
                env={**os.environ, "COLUMNS": "60"},
            ).stdout  # fmt: skip

        rows = (await deferToThread(run)).splitlines()[1:]
        assert len(rows) == 4
        assert all(str(build.properties["sandbox_id"]) in row for row in rows)
