"""The same factory on Buildbot's `LocalWorker` and in a sandbox: the same results and logs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from buildbot.plugins import steps, util, worker
from buildbot.process.buildstep import BuildStep
from buildbot.process.remotecommand import RemoteCommand
from buildbot.steps.worker import CompositeStepMixin
from conftest import BUSYBOX, DEBIAN
from real_master import BuildResult, RealMaster, configuration
from runtime import SandboxPolicy, differs

from sandboxworker import SandboxLatentWorker

pytestmark = pytest.mark.engine

GO_ON = {"haltOnFailure": False, "flunkOnFailure": False}

MAKE_TREE = r"""mkdir -p t/sub t/empty; cd t; echo hi >a.txt; echo yo >sub/b.txt; : >e.txt
ln a.txt hard.txt; echo h >.hid.txt; echo w >"we ird -n
x.txt"; chmod 750 sub; chmod +x a.txt
"""


class Look(BuildStep, CompositeStepMixin):
    """What ``glob`` and ``listdir`` answer, as a log."""

    name = "look"
    logEnviron = False
    rendered = True

    async def run(self) -> int:
        log = await self.addLog("stdio")
        found = sorted(await self.runGlob("build/**/*.txt")) + await self.runGlob("nothere/*")
        await log.addStdout(f"{[name.split('/build/t/')[-1] for name in found]}\n")
        for directory in ("build/t", "build/nothere"):
            command = RemoteCommand("listdir", {"dir": directory})
            await self.runCommand(command)
            files = command.updates.get("files", [[]])[0]
            await log.addStdout(f"{directory} {command.rc} {sorted(files)}\n")
        return 0


def file_steps(out: Path) -> list[Any]:
    return [
        steps.ShellCommand(command=MAKE_TREE, name="tree"),
        Look(),
        steps.CopyDirectory(src="build/t", dest="build/c/t2"),
        steps.DirectoryUpload(workersrc="c", masterdest=str(out / "plain")),
        steps.DirectoryUpload(workersrc="t", masterdest=str(out / "gz"), compress="gz"),
        steps.DirectoryUpload(workersrc="t", masterdest=str(out / "bz2"), compress="bz2"),
        steps.DirectoryUpload(workersrc="no", masterdest=str(out / "no"), name="no", **GO_ON),
        steps.MultipleFileUpload(
            workersrcs=["t/*.txt", "t/sub"], glob=True, masterdest=str(out / "several")
        ),
        steps.RemovePYCs(),
    ]


LOG_FILES = {
    "new": "new.log",
    "followed": {"filename": "followed.log", "follow": True},
    "changed": "changed.log",
    "unchanged": "unchanged.log",
    "never": "never.log",
    "big": "big.log",
}
WRITE_LOGS = """sleep 1; echo one >new.log; echo new >>followed.log; sleep 3; echo two >>new.log
echo more >>followed.log; echo changed >>changed.log; sleep 2.5; seq 1 100000 >big.log
echo last >>followed.log; echo done
"""


def shell_steps(_out: Path) -> list[Any]:
    return [
        steps.ShellCommand(
            command="for f in followed changed unchanged; do echo old >$f.log; done", name="before"
        ),
        steps.ShellCommand(command=WRITE_LOGS, logfiles=LOG_FILES, name="logs"),
        steps.ShellCommand(
            # Both look for the file every two seconds.
            command="sleep 30",
            timeout=5,
            logfiles={"new": "new.log"},
            name="timeout",
            **GO_ON,
        ),
        steps.ShellCommand(
            command=["printf", "%s|", "\xe9", "a b", "q'x", "n\nl", "-n"], name="arguments"
        ),
        steps.ShellCommand(command="kill -TERM $$", name="signal", **GO_ON),
        steps.ShellCommand(command="exit 3", name="three", **GO_ON),
        steps.ShellCommand(
            command="echo $LISTED-$GONE-$SET",
            env={"LISTED": ["a", "b"], "GONE": None, "SET": "${NOWHERE}x"},
            name="environment",
        ),
        steps.SetPropertyFromCommand(command="echo hello", property="p"),
        steps.ShellCommand(command=["echo", util.Property("p")], name="property"),
        steps.ShellSequence(
            commands=[
                util.ShellArg(command=["true"], logname="one"),
                util.ShellArg(command="exit 2", logname="two"),
            ],
            name="sequence",
            **GO_ON,
        ),
        steps.ShellCommand(command="cat", initialStdin="from stdin", name="stdin"),
        steps.ShellCommand(
            command=r'printf "\377\000bad\033[2Jx\rb\r\nc"', name="control characters"
        ),
        steps.StringDownload("text", workerdest="d/s.txt", mode=0o640),
        steps.JSONStringDownload({"a": 1}, workerdest="j.json"),
        steps.JSONPropertiesDownload(workerdest="p.json", hideStepIf=True),
        steps.ShellCommand(
            command="cat d/s.txt j.json; find d -mindepth 1 -printf '%M\\n' | sort",
            name="downloaded",
        ),
    ]


@pytest.fixture
def master(tmp_path: Path) -> Any:
    return _Masters(tmp_path)


class _Masters:
    """Runs the same steps on both kinds of worker."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def both(self, image: str, make: Any) -> tuple[BuildResult, BuildResult]:
        workers = {
            "local": worker.LocalWorker("local"),
            "sandbox": SandboxLatentWorker("sandbox", policy=SandboxPolicy(image, disk="64m")),
        }
        config = configuration(list(workers.values()), [], protocols={"null": {}})
        config["builders"] = [
            util.BuilderConfig(
                name=name, workernames=[name], factory=util.BuildFactory(make(self.out(name)))
            )
            for name in workers
        ]
        config["schedulers"] = []
        master = await RealMaster(self.directory, config).start()
        try:
            return await master.build("local"), await master.build("sandbox")
        finally:
            await master.stop()

    def out(self, name: str) -> Path:
        (self.directory / f"out-{name}").mkdir(exist_ok=True)
        return self.directory / f"out-{name}"

    def written(self, name: str) -> dict[str, tuple[int, bytes]]:
        """Every file that came out: its mode and content, by its path."""
        out = self.out(name)
        return {
            str(path.relative_to(out)): (path.stat().st_mode, path.read_bytes())
            if path.is_file()
            else (path.stat().st_mode, b"")
            for path in sorted(out.rglob("*"))
        }


#: What must differ: times, the environment, and where the worker's directory is.
_OWN_LINES = re.compile(r"^h( environment:|  \w+=|elapsedTime=| in dir ).*\n", re.MULTILINE)


def comparable(build: BuildResult) -> list[tuple[Any, ...]]:
    shown = []
    for step in build.steps:
        logs = {
            name: _normal(text) for name, text in step.logs.items() if step.name != "JSONProperties"
        }
        shown.append((step.name, step.result, _normal(step.state), logs))
    return shown


def _normal(text: str) -> str:
    text = _OWN_LINES.sub("", text)
    text = re.sub(r"\S*/(?:local|sandbox)/build", "BUILD", text)
    return re.sub(r"worker (?:local|sandbox) ready", "worker ready", text)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "image",
    [
        pytest.param(DEBIAN, id="debian", marks=differs("statx")),
        pytest.param(BUSYBOX, id="busybox"),
    ],
)
async def test_file_steps_do_the_same(master: _Masters, image: str) -> None:
    local, sandbox = await master.both(image, file_steps)
    assert [step[:3] for step in comparable(sandbox)] == [step[:3] for step in comparable(local)]
    assert sandbox["look"].logs == local["look"].logs
    assert master.written("sandbox") == master.written("local")
    assert len(master.written("sandbox")) > 20


@pytest_twisted.ensureDeferred
async def test_shell_steps_and_their_logs_are_the_same(master: _Masters) -> None:
    local, sandbox = await master.both(DEBIAN, shell_steps)
    for ours, theirs in zip(comparable(sandbox), comparable(local), strict=True):
        assert ours == theirs
    assert sandbox.result == local.result == "success"
