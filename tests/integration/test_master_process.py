"""A master as a process of its own, made, started and ended with Buildbot's own commands."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
from buildbot.process.results import Results
from real_master import containers_of

from sandboxworker.auditfile import FILE, reading
from sandboxworker.identity import NoIdentity, read_id

pytestmark = pytest.mark.engine

BUILDBOT = [sys.executable, "-c", "from buildbot.scripts.runner import run; run()"]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

#: Two workers that build at once what does not end by itself.
CONFIG = """\
from buildbot.plugins import schedulers, steps, util, worker

c = BuildmasterConfig = {"protocols": {}, "buildbotNetUsageData": None}
c["db"] = {"db_url": "sqlite:///state.sqlite"}
policy = util.SandboxPolicy("sandboxworker/busybox:latest", disk="8m", memory="64m")
c["workers"] = [worker.SandboxLatentWorker(name, policy=policy) for name in ("one", "two")]
COMMANDS = {
    "one": "trap '' HUP INT TERM; setsid sleep 600 & while :; do echo begun; sleep 1; done",
    "two": "trap '' HUP INT TERM; while :; do echo begun; PAUSE done",
}
c["builders"] = [
    util.BuilderConfig(
        name=name, workernames=[name],
        factory=util.BuildFactory([steps.ShellCommand(command=command, logEnviron=False)]),
    )
    for name, command in COMMANDS.items()
]
c["schedulers"] = [
    schedulers.Periodic(name="now", builderNames=list(COMMANDS), periodicBuildTimer=3600)
]
"""
PATIENT = CONFIG.replace("PAUSE", "sleep 1;")
FLOODING = CONFIG.replace("PAUSE", "")

#: As many workers as there are names; builds that end by themselves after some seconds.
ENDING = """\
from buildbot.plugins import schedulers, steps, util, worker

c = BuildmasterConfig = {"protocols": {}, "buildbotNetUsageData": None}
c["db"] = {"db_url": "sqlite:///state.sqlite"}
policy = util.SandboxPolicy("sandboxworker/busybox:latest", disk="8m", memory="32m")
names = NAMES
c["workers"] = [worker.SandboxLatentWorker(name, policy=policy) for name in names]
step = steps.ShellCommand(command="echo begun; sleep 15; echo over", logEnviron=False)
c["builders"] = [
    util.BuilderConfig(name=name, workernames=[name], factory=util.BuildFactory([step]))
    for name in names
]
c["schedulers"] = [schedulers.Periodic(name="ROUND", builderNames=names, periodicBuildTimer=36000)]
"""


def ending(*names: str, round_: int = 1) -> str:
    return ENDING.replace("NAMES", repr(list(names))).replace("ROUND", f"round {round_}")


#: Rounds of the test that kills a master under eight builds; the long one takes five minutes.
ROUNDS = 10 if os.environ.get("SANDBOXWORKER_LONG") else 1


def buildbot(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One of Buildbot's own commands, which must succeed."""
    done = subprocess.run(
        [*BUILDBOT, *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, (arguments, done.stdout + done.stderr)
    return done


class MasterProcess:
    """A master of Buildbot's own making in a directory."""

    def __init__(self, basedir: Path, engine_client: Any, left_over: Any) -> None:
        self.basedir = basedir
        self._client = engine_client
        self._left_over = left_over

    def start(self, config: str = PATIENT) -> None:
        buildbot("create-master", "--quiet", str(self.basedir))
        (self.basedir / "master.cfg").write_text(config)
        assert "good" in buildbot("checkconfig", str(self.basedir)).stdout
        buildbot("start", str(self.basedir))

    @property
    def id(self) -> str:
        return read_id(self.basedir)

    @property
    def log(self) -> str:
        return (self.basedir / "twistd.log").read_text()

    @property
    def pid(self) -> int:
        return int((self.basedir / "twistd.pid").read_text())

    def containers(self) -> list[Any]:
        return containers_of(self._client, self.id)

    def wait_until_building(self, builds: int = 2) -> None:
        """So many builds run their command."""
        wait(lambda: self._is_building(builds), f"{builds} builds", 120, lambda: self.log)
        self._left_over.masters.add(self.id)

    def _is_building(self, builds: int) -> bool:
        try:
            containers = self.containers()
        except NoIdentity:  # It has made none yet.
            return False
        return len(containers) == builds and all(self._runs_its_step(each) for each in containers)

    def _runs_its_step(self, container: Any) -> bool:
        try:
            processes = self._client.top(container["Id"])["Processes"] or ()
        except docker.errors.APIError:  # It may be starting or ending just now.
            return False
        return any("begun" in process[-1] for process in processes)

    def results(self, scheduler: str = "round 1") -> list[list[str]]:
        """The builds of each complete request of a scheduler's, in their order."""
        asked = (
            "select r.id, b.results from builds b join buildrequests r on b.buildrequestid = r.id "
            "join buildsets s on r.buildsetid = s.id "
            "where r.complete and s.reason like '%' || ? || '%' order by b.id"
        )
        found: dict[int, list[str]] = {}
        with contextlib.closing(sqlite3.connect(self.basedir / "state.sqlite")) as database:
            for request, result in database.execute(asked, (f"'{scheduler}'",)):
                found.setdefault(request, []).append(Results[result])
        return list(found.values())

    def wait_for_end(self, pid: int) -> None:
        wait(lambda: not Path(f"/proc/{pid}").exists(), "end of the master", 60, lambda: self.log)

    def kill(self) -> None:
        """As the kernel does when memory runs out; it is gone, and so are its sandboxes."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        # Until then "buildbot start" takes it for one that runs.
        wait(lambda: not Path(f"/proc/{pid}").exists(), "end of the master", 30)

    def end(self) -> None:
        """Whatever became of it."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            self.kill()
        with contextlib.suppress(NoIdentity):
            master_id = self.id
            wait(lambda: not self._running(), "end of its containers", 10)
            # It may have been killed between a create call and a start, and leaves that behind.
            for left in containers_of(self._client, master_id):
                self._client.remove_container(left["Id"], force=True)

    def _running(self) -> list[Any]:
        return [each for each in self.containers() if each["State"] != "created"]


def wait(
    condition: Callable[[], bool], what: str, seconds: float, more: Callable[[], str] = str
) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"waited {seconds:g} s in vain for {what}\n{more()}"
        time.sleep(0.05)


@pytest.fixture
def master(engine_client: Any, left_over: Any, tmp_path: Path) -> Iterator[MasterProcess]:
    process = MasterProcess(tmp_path / "master", engine_client, left_over)
    yield process
    process.end()


def test_when_the_master_is_killed_its_containers_are_gone_within_10_seconds(
    master: MasterProcess,
) -> None:
    master.start(FLOODING)
    master.wait_until_building()
    os.kill(master.pid, signal.SIGKILL)
    wait(lambda: not master.containers(), "end of its containers", 10)


def test_a_master_that_is_killed_again_and_again_keeps_its_audit_log_and_its_id(
    master: MasterProcess,
) -> None:
    """Whatever line the crash tore is cut off by the next start, and reported."""
    master.start()
    ids, log = set(), master.basedir / FILE
    for _ in range(2):
        master.wait_until_building()
        ids.add(master.id)
        master.kill()
        lines = log.read_bytes().split(b"\n")
        assert all(json.loads(line) for line in lines[:-1])
        with log.open("ab") as file:
            file.write(b'{"schema":1,"ti')
        wait(lambda: not master.containers(), "end of its containers", 10)
        buildbot("start", str(master.basedir))
    master.wait_until_building()
    found = reading(log)
    entries = list(found)
    assert found.unreadable == 0
    assert len(ids) == 1
    assert {entry["master"] for entry in entries} == ids
    events = [entry["event"] for entry in entries]
    assert events.count("audit.mended") == 2
    assert events.count("sandbox.ready") == 6
    # The interrupted builds were built again, and what was told of each is told of that one.
    assert len({entry["buildid"] for entry in entries if "buildid" in entry}) == 6


def test_what_a_master_that_was_killed_created_and_never_started_is_reaped(
    master: MasterProcess, engine_client: Any
) -> None:
    """No keeper runs in it, so that it does not end by itself."""
    master.start()
    master.wait_until_building()
    master.kill()
    wait(lambda: not master.containers(), "end of its containers", 10)
    left = engine_client.create_container(
        "sandboxworker/busybox:latest",
        ["true"],
        labels={"sandboxworker.master": master.id, "sandboxworker.sandbox": "0" * 16},
        host_config=engine_client.create_host_config(network_mode="none"),
    )["Id"]
    buildbot("start", str(master.basedir))
    wait(lambda: left not in {each["Id"] for each in master.containers()}, "the reaper", 30)
    wait(lambda: left in (master.basedir / FILE).read_text(), "word of it", 10)
    (entry,) = [each for each in reading(master.basedir / FILE) if each.get("container") == left]
    assert (entry["event"], entry["why"], entry["state"]) == ("reap.removed", "orphan", "created")


def test_a_stopped_master_has_removed_its_containers_before_it_ends(
    master: MasterProcess,
) -> None:
    master.start()
    master.wait_until_building()
    buildbot("stop", str(master.basedir))
    assert not master.containers()
    assert "Main loop terminated." in master.log
    assert "Unhandled" not in master.log


def test_signals_that_reconfigure_or_drain_do_not_harm_running_builds(
    master: MasterProcess,
) -> None:
    """SIGHUP reconfigures; SIGUSR1 ends the master after its builds, which here go on."""
    master.start()
    master.wait_until_building()
    before = {each["Id"] for each in master.containers()}
    for number, told in (
        (signal.SIGHUP, "configuration update complete"),
        (signal.SIGUSR1, "Initiating clean shutdown"),
    ):
        os.kill(master.pid, number)
        wait(lambda told=told: told in master.log, told, 30, lambda: master.log)
        assert {each["Id"] for each in master.containers()} == before


def test_a_clean_shutdown_waits_for_running_builds(master: MasterProcess) -> None:
    """SIGUSR1, or ``buildbot stop --clean``."""
    master.start(ending("one", "two"))
    master.wait_until_building()
    pid = master.pid
    os.kill(pid, signal.SIGUSR1)
    master.wait_for_end(pid)
    assert not master.containers()
    assert master.results() == [["success"], ["success"]]
    assert "Unhandled" not in master.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_quick_shutdown_cancels_running_builds_and_leaves_nothing(
    master: MasterProcess, number: signal.Signals
) -> None:
    """``buildbot stop`` sends SIGTERM. Buildbot means a retry; an interrupted step outdoes it."""
    master.start(ending("one", "two"))
    master.wait_until_building()
    pid = master.pid
    os.kill(pid, number)
    master.wait_for_end(pid)
    assert not master.containers()
    assert master.results() == [["cancelled"], ["cancelled"]]
    assert "Unhandled" not in master.log


@pytest.mark.timeout(900)
def test_a_master_that_is_killed_under_8_builds_leaves_none_and_its_successor_finishes_them(
    master: MasterProcess,
) -> None:
    """Within 10 seconds there is no container, and each build is built again once."""
    names = [f"w{number}" for number in range(8)]
    for round_ in range(1, ROUNDS + 1):
        master.start(ending(*names, round_=round_))
        master.wait_until_building(len(names))
        master.kill()
        wait(lambda: not master.containers(), "end of its containers", 10)
        buildbot("start", str(master.basedir))
        scheduler = f"round {round_}"
        wait(
            lambda scheduler=scheduler: len(master.results(scheduler)) == len(names),
            "all builds",
            120,
            lambda: master.log,
        )
        assert master.results(scheduler) == [["retry", "success"]] * len(names)
        buildbot("stop", str(master.basedir))


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not part of a wheel")
def test_the_example_passes_checkconfig_and_starts(
    engine_client: Any, left_over: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    basedir = tmp_path / "master"
    repository = tmp_path / "project.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(repository)], check=True, timeout=20)
    monkeypatch.setenv("DEMO_REPOSITORY", f"file://{repository}")
    monkeypatch.setenv("DEMO_PORT", "0")
    buildbot("create-master", "--quiet", str(basedir))
    shutil.copy(EXAMPLES / "master.cfg", basedir)
    assert "good" in buildbot("checkconfig", str(basedir)).stdout
    process = MasterProcess(basedir, engine_client, left_over)
    try:
        buildbot("start", str(basedir))
        assert "BuildMaster is running" in process.log
        assert "cannot start builds" not in process.log
        buildbot("stop", str(basedir))
    finally:
        process.end()
