"""A master's life with sandboxes: configured, reconfigured, stopped, and told what is wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from buildbot.config.errors import ConfigErrors, capture_config_errors
from buildbot.config.master import MasterConfig
from real_master import (
    HOLD,
    RealMaster,
    configuration,
    let_go,
    one_builder_each,
    pause,
    running_master,
    shell,
    until,
)
from runtime import SandboxPolicy
from twisted.logger import formatEvent, globalLogPublisher

from sandboxworker import SandboxLatentWorker
from sandboxworker.engine.address import resolve

pytestmark = pytest.mark.engine

BUSYBOX = "sandboxworker/busybox:latest"
PLAIN: dict[str, Any] = {"disk": "8m", "memory": "64m"}


def worker(name: str = "w", engine: str | None = None, **policy: Any) -> SandboxLatentWorker:
    return SandboxLatentWorker(
        name, policy=SandboxPolicy(**{"image": BUSYBOX, **PLAIN, **policy}), engine=engine
    )


# ---- a running master ----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("protocols", [{}, {"null": {}}], ids=["empty", "null"])
async def test_a_master_without_protocols_builds_and_listens_nowhere(
    engine_client: Any, left_over: Any, tmp_path: Path, protocols: dict[str, Any]
) -> None:
    before = _listening()
    config = configuration([worker()], [shell("echo fine", "s")], protocols=protocols)
    async with running_master(tmp_path, config, left_over) as master:
        build = await master.build()
        assert _listening() == before
        assert build["s"].out == "fine"
        assert master.errors == []


def _listening() -> set[str]:
    """The inodes of this process's sockets that listen for TCP."""
    own = {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link)}
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path("/proc/self/net", table).read_text().splitlines()[1:]
    ]
    return {line[9] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own}


def test_listening_sockets_are_seen() -> None:
    """The test above could not fail otherwise."""
    before = _listening()
    with socket.create_server(("127.0.0.1", 0)):
        assert len(_listening() - before) == 1


@pytest_twisted.ensureDeferred
async def test_a_reconfigure_leaves_running_builds_alone_and_takes_hold_for_the_next(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    hold = f"echo begun; {HOLD}; echo done; echo $WHAT"

    def config(*workers: SandboxLatentWorker) -> dict[str, Any]:
        return one_builder_each(list(workers))

    def workers(what: str) -> list[SandboxLatentWorker]:
        return [worker("same"), worker("changed", env={"WHAT": what})]

    first = config(*workers("old"), worker("removed"))
    async with running_master(tmp_path, first, left_over) as master:
        requests = {
            name: await master.begin(name, [shell(hold, "hold")])
            for name in ("same", "changed", "removed")
        }
        for request in requests.values():
            await master.step_started(request, "hold")
        await until(lambda: len(master.containers(engine_client)) == 3, "three containers")
        containers = {each["Id"] for each in master.containers(engine_client)}

        await master.reconfigure(config(*workers("new")))
        for _ in range(10):
            await pause()
        left = {each["Labels"]["sandboxworker.worker"]: each["Id"]
                for each in master.containers(engine_client)}  # fmt: skip
        # The build of a removed worker may go on or end; that of others goes on where it was.
        assert set(left) - {"removed"} == {"same", "changed"}
        assert set(left.values()) <= containers

        for container in left.values():
            let_go(engine_client, container)
        builds = {name: await master.finished(requests[name]) for name in ("same", "changed")}
        assert builds["same"].result == builds["changed"].result == "success"
        assert builds["changed"]["hold"].out.split() == ["begun", "done", "old"]
        again = await master.run("changed", [shell("echo $WHAT", "s")])
        assert again["s"].out == "new"
        await until(lambda: not master.containers(engine_client), "end of all containers")
        assert "removed" not in master.master.workers.workers


@pytest_twisted.ensureDeferred
async def test_a_policy_that_was_loosened_and_is_made_strict_again_is_strict(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    """Buildbot by itself compares with what the worker was made with, and would keep the loose."""

    def config(what: str) -> dict[str, Any]:
        return one_builder_each([worker(env={"WHAT": what})])

    async with running_master(tmp_path, config("strict"), left_over) as master:
        for what in ("loose", "strict", "strict", "loose"):
            await master.reconfigure(config(what))
            build = await master.run("w", [shell("echo $WHAT", "s")])
            assert build["s"].out == what


@pytest_twisted.ensureDeferred
async def test_a_shutdown_ends_running_builds_and_leaves_no_container(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    workers = [worker("one"), worker("two")]
    async with running_master(tmp_path, one_builder_each(workers), left_over) as master:
        stubborn = "trap '' HUP INT TERM; while :; do echo flood; done"
        await master.begin("one", [shell(stubborn, "s")])
        await master.begin("two", [shell("sleep 300", "s")])
        await master.process_runs(engine_client, "flood")
        await master.process_runs(engine_client, "sleep 300")
        await master.stop()
        assert not master.containers(engine_client)
        assert master.errors == []
    await until(lambda: not _engine_threads(), "end of the engine's threads", 10)


def _engine_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "sandboxworker " in thread.name]


@pytest_twisted.ensureDeferred
async def test_a_shutdown_while_a_sandbox_starts_leaves_no_container(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    async with running_master(tmp_path, one_builder_each([worker()]), left_over) as master:
        request = await master.begin("w", [shell("sleep 300", "s")])
        await until(lambda: master.builds(request), "the build")
        await master.stop()
        assert not master.containers(engine_client)


@pytest_twisted.ensureDeferred
async def test_an_image_that_is_not_there_refuses_the_build_in_one_sentence(
    engine_client: Any, left_over: Any, tmp_path: Path, logged: list[str]
) -> None:
    config = configuration([worker(image="sandboxworker/no-such:1")], [shell("true", "s")])
    async with running_master(tmp_path, config, left_over) as master:
        await until(lambda: "no-such" in "\n".join(logged), "the word of it, before any build")
        (early,) = [line for line in logged if "no-such" in line]
        request = await master.submit()
        build = await master.finished(request)
        assert build.result == "exception"
        assert len(await master.builds(request)) == 1
        assert not master.containers(engine_client)
    for text in (early, build.log):
        assert "image 'sandboxworker/no-such:1' is not on the engine" in text
        assert "sandboxworker image build" in text
    assert "Traceback" not in build.log


@pytest_twisted.ensureDeferred
async def test_an_engine_that_is_down_is_named_once_and_its_workers_take_no_builds(
    left_over: Any, tmp_path: Path, logged: list[str]
) -> None:
    silent = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(silent))  # And nobody listens.
    workers = [worker(name, engine=f"unix://{silent}") for name in ("w", "v")]
    config = configuration(workers, [shell("true", "s")])
    async with running_master(tmp_path, config, left_over) as master:
        await until(lambda: "does not answer" in "\n".join(logged), "the word of it")
        request = await master.submit()
        await pause(1.0)
        assert await master.builds(request) == []
        (told,) = [line for line in logged if "does not answer" in line]
        assert str(silent) in told
        assert "take no builds" in told


@pytest_twisted.ensureDeferred
async def test_a_build_that_meets_an_engine_just_gone_says_so_and_is_tried_again(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    place = tmp_path / "engine.sock"
    place.symlink_to(resolve(None).socket_path)
    config = configuration([worker(engine=f"unix://{place}")], [shell("true", "s")])
    async with running_master(tmp_path, config, left_over) as master:
        await pause(1.0)  # It has been looked at.
        place.unlink()
        # The SDK keeps its connections open; those of a gone engine would be closed.
        (running,) = master.master.workers.workers.values()
        running._engine._client.close()
        request = await master.submit()
        await until(lambda: _complete(master, request), "end of the first attempt")
        (build,) = await master.builds(request)
        first = await master._result(build)
        assert first.result == "retry"
        assert "does not answer" in first.log
        assert str(place) in first.log
        assert "Traceback" not in first.log


async def _complete(master: RealMaster, request: int) -> bool:
    builds = await master.builds(request)
    return bool(builds) and bool(builds[0]["complete"])


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Every line that goes to the master's log."""
    lines: list[str] = []

    def note(event: dict[str, Any]) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    yield lines
    globalLogPublisher.removeObserver(note)


# ---- what is wrong is said at configuration time -------------------------------------------------


def faults(*workers: Any, **more: Any) -> list[str]:
    """What Buildbot says against a configuration with this in it."""
    with pytest.raises(ConfigErrors) as raised:
        MasterConfig.loadFromDict(
            {**configuration(list(workers), [shell("true", "s")]), **more}, "<test>"
        )
    return list(raised.value.errors)


def refused(**arguments: Any) -> list[str]:
    """What a worker with these arguments is refused for."""
    with pytest.raises(ConfigErrors) as raised, capture_config_errors(raise_on_error=True):
        SandboxLatentWorker("w", **arguments)
    return list(raised.value.errors)


def test_every_wrong_policy_value_is_an_error_of_its_own_that_names_field_value_and_allowed() -> (
    None
):
    told = refused(
        policy=SandboxPolicy(
            BUSYBOX, memory="lots", cpus=0, user="0:0", privileged=True, network="host"
        )
    )
    for field, value, allowed in (
        ("memory", "'lots'", "a size from"),
        ("cpus", "0", "cores from"),
        ("user", "'0:0'", "never root"),
        ("privileged", "True", "never privileged"),
        ("network", "'host'", "'none' is the only value"),
    ):
        (line,) = [each for each in told if f"policy: {field}={value}" in each]
        assert allowed in line
        assert "SandboxLatentWorker 'w'" in line
    assert len(told) == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("this is not JSON {", "JSON"),
        ("[]", ""),
        (None, ""),
        (json.dumps({"defaultAction": "SCMP_ACT_ALLOW"}), ""),
    ],
    ids=["text", "list", "absent", "allows all"],
)
def test_a_seccomp_file_that_is_no_profile_is_one_error_that_names_it(
    tmp_path: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "profile.json"
    if content is not None:
        file.write_text(content)
    (told,) = refused(policy=SandboxPolicy(BUSYBOX, seccomp=str(file)))
    assert str(file) in told
    assert said in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("http://localhost:2375", "only unix://, tcp:// and ssh://"),
        ("unix://relative.sock", "not absolute"),
        ("tcp://192.0.2.1:2375", "Use TLS"),
        ("tcp://localhost:notaport", "port"),
        (42, "not a URL"),
    ],
)
def test_an_engine_address_that_cannot_be_is_one_error_that_names_it(
    engine: Any, said: str
) -> None:
    (told,) = refused(policy=SandboxPolicy(BUSYBOX), engine=engine)
    assert said in told
    assert str(engine) in told


def test_arguments_that_cannot_be_are_told_with_the_reason() -> None:
    told = refused(
        policy={"image": BUSYBOX}, build_wait_timeout=600, max_builds=2, docker_host="x", password=1
    )
    assert len(told) == 5
    for word in ("policy=", "build_wait_timeout=600", "max_builds=2", "docker_host=", "password="):
        assert sum(f": {word}" in line for line in told) == 1, word
    assert "SandboxPolicy is required" in "\n".join(told)


def test_fixed_arguments_may_be_written_out() -> None:
    SandboxLatentWorker(
        "w", policy=SandboxPolicy(BUSYBOX), build_wait_timeout=0, max_builds=1, properties={"a": 1}
    )


def test_faults_of_several_workers_are_told_together(tmp_path: Path) -> None:
    output = checkconfig(
        tmp_path,
        """
        c["workers"] = [
            worker.SandboxLatentWorker("a", policy=util.SandboxPolicy("UPPER", pids=1)),
            worker.SandboxLatentWorker("b", policy=util.SandboxPolicy("x", seccomp="/no/such")),
            worker.SandboxLatentWorker("c", policy=util.SandboxPolicy("x"), engine="http://x"),
        ]
        """,
    )
    lines = [line for line in output.splitlines() if "SandboxLatentWorker" in line]
    assert len(lines) == 4, output
    for name, word in (("a", "image="), ("a", "pids=1"), ("b", "/no/such"), ("c", "http://x")):
        assert sum(f"'{name}'" in line and word in line for line in lines) == 1, (name, output)


def test_workers_of_other_kinds_still_need_a_protocol() -> None:
    from buildbot.plugins import worker as workers

    told = faults(worker(), workers.LocalWorker("local"), protocols={})
    assert any("c['protocols']" in line for line in told)


# ---- buildbot checkconfig ------------------------------------------------------------------------

BUILDBOT = "from buildbot.scripts.runner import run; run()"
HEADER = """\
from buildbot.plugins import schedulers, steps, util, worker
c = BuildmasterConfig = {"protocols": {}, "buildbotNetUsageData": None}
c["db"] = {"db_url": "sqlite:///state.sqlite"}
"""
FOOTER = """
c.setdefault("builders", [
    util.BuilderConfig(
        name="b", workernames=[w.name for w in c["workers"]],
        factory=util.BuildFactory([steps.ShellCommand(command="true")]),
    )
])
names = [builder.name for builder in c["builders"]]
c["schedulers"] = [schedulers.Triggerable(name="go", builderNames=names)]
"""


def checkconfig(folder: Path, workers: str, *, good: bool = False) -> str:
    """What ``buildbot checkconfig`` says; it must fail, or not, and never with a traceback."""
    (folder / "master.cfg").write_text(HEADER + textwrap.dedent(workers) + FOOTER)
    done = subprocess.run(
        [sys.executable, "-c", BUILDBOT, "checkconfig", "master.cfg"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == (0 if good else 1), output
    assert "Traceback" not in output
    return output


def test_checkconfig_accepts_a_good_configuration(tmp_path: Path) -> None:
    output = checkconfig(
        tmp_path,
        'c["workers"] = [worker.SandboxLatentWorker("w", policy=util.SandboxPolicy("a/b:1"))]',
        good=True,
    )
    assert "Config file is good!" in output


def test_checkconfig_tells_every_fault_on_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("not JSON")
    output = checkconfig(
        tmp_path,
        f"""
        policy = util.SandboxPolicy(
            "a/b:1", memory="lots", cpu=3, max_runtime="soon", seccomp="{tmp_path}/bad.json",
        )
        c["workers"] = [
            worker.SandboxLatentWorker("w", policy=policy, engine="http://x", max_builds=9),
        ]
        """,
    )
    wanted = [
        "memory='lots'",
        "cpu=3",
        "max_runtime='soon'",
        "bad.json",
        "http://x",
        "max_builds=9",
    ]
    lines = [line for line in output.splitlines() if "SandboxLatentWorker 'w'" in line]
    assert len(lines) == len(wanted), output
    for word in wanted:
        assert sum(word in line for line in lines) == 1, (word, output)


def test_checkconfig_tells_every_mixture_of_trust(tmp_path: Path) -> None:
    output = checkconfig(
        tmp_path,
        """
        sizes = util.SandboxPolicies(
            {"small": util.SandboxPolicy("a/b:1"), "big": util.SandboxPolicy("a/b:1", cpus=4)},
            default="small",
        )
        c["workers"] = [
            worker.SandboxLatentWorker("sizes", policy=sizes),
            worker.SandboxLatentWorker("own", policy=util.SandboxPolicy.trusted("a/b:1")),
            worker.LocalWorker("local"),
        ]
        secret = util.BuildFactory()
        secret.addSteps([steps.ShellCommand(command="true")], [("/build/k", util.Secret("key"))])
        plain = util.BuildFactory([steps.ShellCommand(command="true")])
        c["builders"] = [
            util.BuilderConfig(name="asks", workernames=["sizes"], factory=secret),
            util.BuilderConfig(name="mixes", workernames=["sizes", "local"], factory=plain),
            util.BuilderConfig(
                name="huge", workernames=["sizes"], factory=plain,
                properties={"sandbox_policy": "huge"},
            ),
            util.BuilderConfig(name="uses", workernames=["own"], factory=secret),
            util.BuilderConfig(name="shares", workernames=["own"], factory=plain),
        ]
        """,
    )
    wanted = [
        "builder 'asks': step 'DownloadSecretsToWorker' uses the secret 'key'",
        "builder 'asks': step 'DownloadSecretsToWorker' puts a secret at '/build/k'",
        "builder 'mixes': its workers differ in trust",
        "builder 'huge': worker 'sizes': wrong policy: sandbox_policy='huge'",
        "builder 'uses': step 'DownloadSecretsToWorker' puts a secret at '/build/k'",
        "worker 'own' releases secrets and is shared",
    ]
    for line in wanted:
        assert output.count(line) == 1, (line, output)
