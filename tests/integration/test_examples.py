"""The smaller examples as real masters, and the files that put a master onto a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import yaml
from buildbot.config.master import loadConfigDict
from real_master import running_master

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="the examples are not part of a wheel"
)
DEPLOY = EXAMPLES / "deploy"
TRY = [sys.executable, "-c", "from sandboxworker.cli import main; main()", "try"]
UNIT = DEPLOY / "systemd" / "buildbot-master.service"


def config(name: str) -> dict[str, Any]:
    """An example's configuration, without its port."""
    _, found = loadConfigDict(str(EXAMPLES / name), "master.cfg")
    return {**found, "www": {}}


@pytest.mark.engine
@pytest_twisted.ensureDeferred
async def test_the_minimal_example_builds(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    async with running_master(tmp_path, config("minimal"), left_over) as master:
        build = await master.build("hello")
    assert build.result == "success", build.log
    assert [step.name for step in build.steps][-1] == "test"
    assert master.errors == []


@pytest.mark.engine
@pytest_twisted.ensureDeferred
async def test_the_local_example_starts(engine_client: Any, left_over: Any, tmp_path: Path) -> None:
    async with running_master(tmp_path, config("local"), left_over) as master:
        assert list(master.master.botmaster.builders) == ["check"]
    assert master.errors == []


@pytest.mark.engine
def test_the_local_example_tries_a_work_tree(engine_client: Any, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("all:\n\t@echo made\ncheck:\n\t@echo checked\n")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True, timeout=60)
    done = subprocess.run(
        [*TRY, "--master-cfg", str(EXAMPLES / "local" / "master.cfg"), "--builder", "check"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "made" in said
    assert "checked" in said


# ---- deploy --------------------------------------------------------------------------------------


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_systemd_understands_the_whole_unit(tmp_path: Path) -> None:
    """With programs and folders that exist here, since it looks for them as well."""
    text = UNIT.read_text().replace("/opt/sandboxworker/bin/buildbot", sys.executable)
    here = tmp_path / UNIT.name
    here.write_text(text)
    done = analyze("verify", "--man=no", str(here))
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert ours == []


def test_systemd_counts_few_rights_that_the_unit_leaves() -> None:
    """Its own measure, from 0 (none) to 10; below 3 it says OK."""
    done = analyze("security", "--offline=yes", "--threshold=25", str(UNIT))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_the_composed_master_has_no_more_rights_than_it_needs() -> None:
    composed = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    (master,) = composed["services"].values()
    assert master["read_only"] is True
    assert master["cap_drop"] == ["ALL"]
    assert master["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc"} & set(master)
    assert int(master["user"].partition(":")[0]) > 0
    assert [each.partition(":")[0] for each in master["volumes"]] == [
        "master",
        "/var/run/docker.sock",
    ]


def test_the_composed_masters_image_has_a_user_of_its_own() -> None:
    lines = (DEPLOY / "compose" / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER buildbot"]
