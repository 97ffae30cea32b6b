"""``sandboxworker try --builder``: a real factory on a master that is thrown away."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from conftest import DEBIAN
from git_server import run_git

from tests.integration.test_try import PROGRAM, RUNS, SECONDS, Typist

pytestmark = pytest.mark.engine

URL = "https://git.invalid/project.git"

CONFIG = f"""
import pathlib
from buildbot.plugins import *
c = BuildmasterConfig = {{}}
policy = util.SandboxPolicy.untrusted({DEBIAN!r}, disk="64m", tmp="16m")
own = util.SandboxPolicy.trusted({DEBIAN!r}, disk="64m", memory="512m", cpus=1)
c["workers"] = [
    worker.SandboxLatentWorker("w", policy=policy),
    worker.SandboxLatentWorker("t", policy=own),
    worker.LocalWorker("local"),
]
c["www"] = {{"port": PORT}}
c["protocols"] = {{"pb": {{"port": "tcp:PORT:interface=127.0.0.1"}}}}
c["db"] = {{"db_url": "sqlite:////nonexistent/never.sqlite"}}
c["secretsProviders"] = [secrets.SecretInAFile(str(pathlib.Path(basedir) / "none"))]
git = steps.Git(repourl={URL!r}, branch="main", mode="full", logEnviron=False)
sh = lambda name, command: steps.ShellCommand(name=name, command=command, logEnviron=False)
good = util.BuildFactory([
    git,
    sh("show", "cat a b; git log --oneline | wc -l; test ! -e ignored"),
    sh("told", ["echo", util.Interpolate("%(prop:channel)s of %(src::branch)s")]),
    steps.MasterShellCommand(command="touch MARK"),
    steps.FileUpload(workersrc="a", masterdest="/nonexistent/a.txt"),
    steps.DirectoryUpload(workersrc="d", masterdest="built"),
    steps.FileDownload(mastersrc="beside.txt", workerdest="beside.txt"),
    sh("beside", "cat beside.txt"),
])
titled = "printf '\\\\033]0;title\\\\007\\\\033[31mred\\\\033[0m\\\\n'; exit 4"
bad = util.BuildFactory([git, sh("fails", titled)])
waits = util.BuildFactory([sh("waits", "echo up; sleep 1000")])
keyed = util.BuildFactory()
with keyed.withSecrets([("/run/secrets/k", util.Secret("key"))]):
    keyed.addStep(sh("uses", "wc -c < /run/secrets/k"))
two = util.BuildFactory([git, steps.Git(repourl="https://git.invalid/other.git", codebase="o")])
def builder(name, factory, worker="w"):
    return util.BuilderConfig(name=name, workernames=[worker], factory=factory)
c["builders"] = [
    builder("good", good), builder("bad", bad), builder("waits", waits),
    builder("keyed", keyed, "t"), builder("two", two), builder("unsafe", waits, "local"),
]
names = [each.name for each in c["builders"]]
c["schedulers"] = [schedulers.AnyBranchScheduler(name="s", builderNames=names)]
"""


@attrs.frozen
class World:
    """A configuration, and a work tree that has changed since its last commit."""

    config: Path
    tree: Path

    def run(self, *arguments: str) -> tuple[int, str, str]:
        command = [*PROGRAM, "-m", str(self.config), *arguments]
        return RUNS.run(command, cwd=self.tree)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Nothing is left by what uses it: no container, no temporary directory, no listener."""
    with socket.socket() as taken:  # Whatever would open a port of the configuration's fails.
        taken.bind(("127.0.0.1", 0))
        config = tmp_path / "ci" / "master.cfg"
        config.parent.mkdir()
        config.write_text(textwrap.dedent(CONFIG).replace("PORT", str(taken.getsockname()[1])))
        (config.parent / "none").mkdir()
        (config.parent / "beside.txt").write_text("beside\n")
        here = tmp_path / "tmp"
        here.mkdir()
        monkeypatch.setenv("TMPDIR", str(here))
        yield World(config, _tree(tmp_path / "tree"))
    assert RUNS.containers() == set()
    assert list(here.iterdir()) == []
    assert not (config.parent / "MARK").exists()


def _tree(path: Path) -> Path:
    path.mkdir()
    (path / "a").write_text("committed\n")
    (path / ".gitignore").write_text("ignored\n")
    run_git("-C", path, "init", "--quiet", "--initial-branch=feature")
    run_git("-C", path, "add", "--all")
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a"}
    run_git("-C", path, "commit", "--quiet", "-m", "first", GIT_COMMITTER_EMAIL="a", **who)
    run_git("-C", path, "remote", "add", "origin", URL)
    (path / "a").write_text("changed\n")
    (path / "b").write_text("new\n")
    (path / "ignored").write_text("ignored\n")
    (path / "d").mkdir()
    (path / "d" / "f").write_text("deep\n")
    return path


def test_builder_builds_the_work_tree_as_it_is_now(world: World, tmp_path: Path) -> None:
    status = run_git("-C", world.tree, "status", "--porcelain")
    code, out, err = world.run("-b", "good", "-p", "channel=beta", "--out", str(tmp_path / "out"))
    assert code == 0, out + err
    for line in ("changed", "new", "2", "beta of feature", "beside", "==> show"):
        assert line in out.splitlines(), line
    assert "left out (--master-steps runs it)" in out
    assert "\x1b" not in out
    assert "sandboxworker: success, " in err
    assert (tmp_path / "out/nonexistent/a.txt").read_text() == "changed\n"
    assert (tmp_path / "out/built/f").read_text() == "deep\n"
    assert run_git("-C", world.tree, "status", "--porcelain") == status
    assert not (world.tree / "MARK").exists()


def test_failing_builder_is_told_and_what_a_build_prints_cannot_steer_the_terminal(
    world: World,
) -> None:
    code, out, err = world.run("-b", "bad")
    assert code == 1
    assert "red" in out.splitlines()
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "failure: " in out
    assert "sandboxworker: failure, " in err


def test_json_has_every_step_with_its_logs(world: World) -> None:
    code, out, err = world.run("-b", "bad", "--json")
    told = json.loads(out)
    assert (code, err) == (1, "")
    assert (told["result"], told["exit_code"], told["interrupted"]) == ("failure", 1, False)
    steps = {step["name"]: step for step in told["steps"]}
    assert steps["git"]["result"] == "success"
    assert steps["fails"]["result"] == "failure"
    assert "exit code 4" in steps["fails"]["logs"]["stdio"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_ends_the_build_in_order(
    world: World, number: signal.Signals, code: int
) -> None:
    command = [*PROGRAM, "-m", str(world.config), "-b", "waits", "--json"]
    with RUNS.begin(command, cwd=world.tree, stdout=subprocess.PIPE, text=True) as program:
        until = time.monotonic() + SECONDS
        while not RUNS.run_inside("sleep 1000") and time.monotonic() < until:
            time.sleep(0.1)
        program.send_signal(number)
        try:
            out, _ = program.communicate(timeout=2 * SECONDS)
        finally:
            program.kill()
    told = json.loads(out)
    assert (program.returncode, told["exit_code"], told["interrupted"]) == (code, code, True)


def test_secret_is_asked_for_by_name_and_taken_from_a_file(world: World, tmp_path: Path) -> None:
    code, _, err = world.run("-b", "keyed")
    assert code == 125
    assert "--secret key=FILE" in err
    (tmp_path / "key").write_text("0123456789\n")
    code, out, _ = world.run("-b", "keyed", "--secret", f"key={tmp_path}/key")
    assert code == 0, out
    assert "10" in out.splitlines()
    assert "0123456789" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-b", "none"], "no builder 'none'"),
        (["-b", "unsafe"], "has no SandboxLatentWorker"),
        (["-b", "good", "--secret", "key=/no/such"], "the secret 'key' cannot be read"),
        (["-b", "good", "--image", "no/such:image"], "is not on the engine"),
        (["-b", "good", "--engine", "unix:///no/such.sock"], "does not answer"),
        (["-b", "good", "--keep-on-failure"], "needs a terminal"),
        (["-b", "good", "--policy", "/no/such.toml"], "cannot be read"),
    ],
)
def test_wrong_uses_are_one_line_and_125(world: World, arguments: list[str], said: str) -> None:
    code, out, err = world.run(*arguments)
    assert (code, out) == (125, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_broken_configuration_is_told_in_buildbots_words(tmp_path: Path) -> None:
    config = tmp_path / "master.cfg"
    config.write_text("c = BuildmasterConfig = {'nonsense': 1}\n")
    world: Any = World(config, tmp_path)
    code, _, err = world.run("-b", "good")
    assert code == 125
    assert "nonsense" in err
    assert len(err.strip().splitlines()) == 1


def test_repository_that_is_not_clear_is_asked_for(world: World) -> None:
    run_git("-C", world.tree, "remote", "remove", "origin")
    code, _, err = world.run("-b", "two")
    assert code == 125
    assert "--repository URL" in err


def test_failed_build_leaves_one_in_the_shell_of_its_sandbox(world: World) -> None:
    typist = Typist(world.tree, "-m", str(world.config), "-b", "bad", "--keep-on-failure")
    typist.sees("==> shell")
    typist.sees("$ ")
    typist.types("pwd; cat b; exit\n")
    typist.sees("/build/bad/build")
    typist.sees("new")
    assert typist.ends() == 1
