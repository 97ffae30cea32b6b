"""Buildbot's own git steps in a sandbox without a network, against real servers.

The same steps run on a `LocalWorker` with a network: results, revisions, files and properties are
the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from buildbot.plugins import steps, util, worker
from conftest import BUSYBOX, DEBIAN
from git_server import DaemonServer, HttpServer, Program, Repository, SshServer, Submodule
from real_master import BuildResult, RealMaster, one_builder_each, running_master, shell, until
from runtime import SandboxPolicy

from sandboxworker import SandboxLatentWorker
from sandboxworker.source.mirror import DIRECTORY
from sandboxworker.steps import SandboxGit

pytestmark = pytest.mark.engine

SANDBOX, LOCAL, TINY, CLOSED = "sandbox", "local", "tiny", "closed"
SMALL, CRAMPED, ON_DISK = "small", "cramped", "on-disk"

#: What the tree is like: its files with their modes and contents, and the state of git.
LOOK = """find . -name .git -prune -o \\( -type f -o -type l \\) -printf '%p %M %l\\n' | sort
find . -name .git -prune -o -type f -print | sort | xargs cat
"""
STATE = "git status --short --branch; git log --format='%H %s' -3; git remote -v | wc -l"


@attrs.frozen
class Served:
    """A repository with a history, and what serves it."""

    repository: Repository
    server: HttpServer
    root: Path

    @property
    def url(self) -> str:
        return self.server.url(self.repository)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    root = tmp_path / "served"
    repository = Repository(root / "project.git")
    repository.commit({"README": "one\n", "run": Program("#!/bin/sh\necho ran\n")})
    repository.annotated_tag("v1.0")
    repository.commit({"README": "two\n"})
    repository.commit({"other": "branch\n"}, on="feature/x", after=repository.id())
    repository.pull_request(7, {"pr": "from a stranger\n"})
    repository.merge_request(3, {"mr": "from a stranger\n"})
    with HttpServer(root) as server:
        yield Served(repository, server, root)


@pytest_twisted.async_yield_fixture(scope="module")
async def master(
    tmp_path_factory: pytest.TempPathFactory, left_over: Any
) -> AsyncIterator[RealMaster]:
    everywhere = ("http://127.0.0.1:*/*", "git://127.0.0.1:*/*", "ssh://*@127.0.0.1:*/*")
    workers = [
        worker.LocalWorker(LOCAL),
        SandboxLatentWorker(SANDBOX, policy=SandboxPolicy(DEBIAN, sources=everywhere)),
        SandboxLatentWorker(TINY, policy=SandboxPolicy(BUSYBOX, sources=everywhere)),
        SandboxLatentWorker(CLOSED, policy=SandboxPolicy(DEBIAN)),
        SandboxLatentWorker(SMALL, policy=SandboxPolicy(DEBIAN, max_source="1m")),
        SandboxLatentWorker(CRAMPED, policy=SandboxPolicy(DEBIAN, disk="4m")),
    ]
    policy = SandboxPolicy(DEBIAN, sources=[f"file://{tmp_path_factory.getbasetemp()}/disk-*"])
    workers.append(SandboxLatentWorker(ON_DISK, policy=policy))
    basedir = tmp_path_factory.mktemp("master")
    config = one_builder_each(workers, protocols={"null": {}})
    async with running_master(basedir, config, left_over) as running:
        yield running


def afresh() -> list[Any]:
    """A `LocalWorker` keeps its directories."""
    return [steps.RemoveDirectory(directory) for directory in ("build", "source")]


def after(git: Any) -> list[Any]:
    """A git step, and what shows what it made."""
    return [
        git,
        steps.ShellCommand(command=["sh", "-c", LOOK], name="look", logEnviron=False),
        steps.ShellCommand(command=["sh", "-c", STATE], name="state", logEnviron=False),
    ]


def seen(build: BuildResult) -> Mapping[str, Any]:
    of_source = ("got_revision", "commit-description", "revision")
    return {
        "result": build.result,
        "steps": [(step.name, step.result) for step in build.steps],
        "output": [step.out for step in build.steps if step.name in ("look", "state")],
        "properties": {name: build.properties.get(name) for name in of_source},
    }


async def same_on_both(
    master: RealMaster, make: Any, stamps: Any = ({},), result: str = "success"
) -> BuildResult:
    """The sandbox's build, after a look that the `LocalWorker`'s was the same."""
    builds = {
        name: await master.run(name, [*afresh(), *make()], stamps) for name in (LOCAL, SANDBOX)
    }
    sandbox, local = builds[SANDBOX], builds[LOCAL]
    assert seen(sandbox) == seen(local), (sandbox.log, local.log)
    assert sandbox.result == result, sandbox.log
    return sandbox


# ---- as on any worker ----------------------------------------------------------------------------

GIT_STEPS = {
    "default": {},
    "clobber": {"mode": "full", "method": "clobber"},
    "fresh": {"mode": "full", "method": "fresh"},
    "clean": {"mode": "full", "method": "clean"},
    "copy": {"mode": "full", "method": "copy"},
    "shallow": {"mode": "full", "method": "clobber", "shallow": True},
    "shallow 2": {"mode": "full", "method": "clobber", "shallow": 2},
    "tags": {"tags": True, "getDescription": {"always": True, "tags": True}},
    "description": {"getDescription": True},
    "branch": {"branch": "feature/x"},
    "tag": {"branch": "v1.0"},
    "origin": {"origin": "upstream"},
    "filters": {"filters": ["blob:none"]},
    "config": {"config": {"user.name": "me"}},
    "env": {"env": {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "a.b", "GIT_CONFIG_VALUE_0": "c"}},
}


@pytest.mark.parametrize("arguments", GIT_STEPS.values(), ids=GIT_STEPS.keys())
@pytest_twisted.ensureDeferred
async def test_git_does_what_it_does_anywhere(
    master: RealMaster, served: Served, arguments: dict[str, Any]
) -> None:
    await same_on_both(master, lambda: after(steps.Git(repourl=served.url, **arguments)))


STAMPS = {
    "pull request": {"branch": "refs/pull/7/head"},
    "merge": {"branch": "refs/pull/7/merge"},
    "merge request": {"branch": "refs/merge-requests/3/head"},
    "branch": {"branch": "feature/x"},
    "patch": {
        "patch_body": b"--- a/README\n+++ b/README\n@@ -1 +1 @@\n-two\n+tried\n",
        "patch_level": 1,
        "patch_subdir": "",
        "patch_author": "me",
        "patch_comment": "try",
    },
}


@pytest.mark.parametrize("stamp", STAMPS.values(), ids=STAMPS.keys())
@pytest_twisted.ensureDeferred
async def test_a_source_stamp_is_built(master: RealMaster, served: Served, stamp: Any) -> None:
    stamp = {"branch": "main", **stamp}
    await same_on_both(master, lambda: after(steps.Git(repourl=served.url)), [stamp])


@pytest.mark.parametrize("kind", [steps.GitHub, steps.GitLab])
@pytest_twisted.ensureDeferred
async def test_steps_that_build_upon_git_work_as_well(
    master: RealMaster, served: Served, kind: Any
) -> None:
    stamp = {"branch": "refs/pull/7/merge", "revision": served.repository.id("refs/pull/7/head")}
    await same_on_both(master, lambda: after(kind(repourl=served.url)), [stamp])


@pytest.mark.parametrize("branch", ["pull/7/head", "no/such", "refs/pull/9/head"])
@pytest_twisted.ensureDeferred
async def test_a_branch_that_is_not_there_fails_as_anywhere(
    master: RealMaster, served: Served, branch: str
) -> None:
    build = await same_on_both(
        master, lambda: [steps.Git(repourl=served.url)], [{"branch": branch}], "failure"
    )
    assert branch in build["git"].err


@pytest_twisted.ensureDeferred
async def test_a_revision_of_its_own_is_built(master: RealMaster, served: Served) -> None:
    revision = served.repository.id("main~1")
    build = await same_on_both(
        master,
        lambda: after(steps.Git(repourl=served.url)),
        [{"branch": "main", "revision": revision}],
    )
    assert build.properties["got_revision"] == revision


@pytest_twisted.ensureDeferred
async def test_codebases_have_their_own_repositories(master: RealMaster, served: Served) -> None:
    other = Repository(served.root / "other.git")
    other.commit({"other": "one\n"})
    url = served.server.url(other)
    build = await same_on_both(
        master,
        lambda: [
            steps.Git(repourl=served.url, codebase="a", workdir="build/a"),
            steps.Git(repourl=url, codebase="b", workdir="build/b", alwaysUseLatest=True),
            steps.ShellCommand(command=["sh", "-c", LOOK], name="look", logEnviron=False),
        ],
        [{"codebase": "a", "branch": "main"}, {"codebase": "b"}],
    )
    assert build.properties["got_revision"] == {"a": served.repository.id(), "b": other.id()}


@pytest.mark.parametrize("more", [{}, {"remoteSubmodules": True}, {"shallow": True}])
@pytest_twisted.ensureDeferred
async def test_submodules_come_each_from_its_own_mirror(
    master: RealMaster, served: Served, more: dict[str, Any]
) -> None:
    inner, middle = (Repository(served.root / f"{name}.git") for name in ("inner", "middle"))
    inner.commit({"deep": "est\n"})
    middle.commit({"mid": "dle\n", "in": Submodule("./../inner.git", inner.id(), branch="main")})
    link = Submodule("../middle.git", middle.id(), branch="main")
    served.repository.commit({"sub": link, "again": link})
    middle.commit({"mid": "later\n"})
    arguments = {"mode": "full", "method": "clobber", "submodules": True, **more}
    build = await same_on_both(master, lambda: after(steps.Git(repourl=served.url, **arguments)))
    assert "est" in build["look"].out


# ---- what the operator allows --------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_submodule_that_is_not_listed_is_not_fetched(
    master: RealMaster, served: Served
) -> None:
    inner = Repository(served.root / "inner.git")
    inner.commit({"f": "x"})
    served.repository.commit({"sub": Submodule("../inner.git", inner.id())})
    git = steps.Git(repourl=served.url, submodules=True)
    build = await master.run(CLOSED, [git])
    assert build.result == "failure"
    assert f"sources=['{served.server.url(inner)}', ...]" in build.log
    assert "the submodule 'sub' names it" in build.log
    assert not any("inner" in request.path for request in served.server.requests)


@pytest_twisted.ensureDeferred
async def test_a_url_of_a_change_must_be_listed(master: RealMaster, served: Served) -> None:
    git = steps.Git(repourl=util.Interpolate("%(src::repository)s"))
    stamps = [{"repository": served.url, "branch": "main"}]
    refused = await master.run(CLOSED, [git], stamps)
    assert refused.result == "failure"
    assert "it does not stand in the configuration as it is" in refused.log
    assert not served.server.requests
    assert (await master.run(SANDBOX, [git], stamps)).result == "success"


@pytest_twisted.ensureDeferred
async def test_without_a_list_the_configured_url_is_fetched(
    master: RealMaster, served: Served
) -> None:
    assert (await master.run(CLOSED, [steps.Git(repourl=served.url)])).result == "success"


@pytest.mark.parametrize(
    "url", ["ext::sh -c touch% /tmp/owned", "ftp://127.0.0.1/x", "http://127.0.0.1/a/../b", "-c"]
)
@pytest_twisted.ensureDeferred
async def test_a_url_that_git_must_not_see_is_refused(master: RealMaster, url: str) -> None:
    build = await master.run(SANDBOX, [steps.Git(repourl=url)])
    assert build.result in ("failure", "exception")
    assert not Path("/tmp/owned").exists()


@pytest_twisted.ensureDeferred
async def test_a_place_of_the_masters_is_none_of_the_builds(
    master: RealMaster, served: Served
) -> None:
    build = await master.run(SANDBOX, [steps.Git(repourl=str(served.repository.path))])
    assert build.result == "failure"
    assert "does not exist" in build.log


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest_twisted.ensureDeferred
async def test_a_place_of_the_masters_is_mirrored_if_listed(
    master: RealMaster, tmp_path_factory: pytest.TempPathFactory, scheme: str
) -> None:
    repository = Repository(tmp_path_factory.mktemp("disk-") / "project.git")
    repository.commit({"README": "on the master's disk\n"})
    git = steps.Git(repourl=f"{scheme}{repository.path}")
    build = await master.run(ON_DISK, [git, shell("cat README", "look")])
    assert build["look"].out == "on the master's disk", build.log


@pytest.mark.parametrize("branch", ["--upload-pack=touch /tmp/owned", "a..b", "a b", "x\ny"])
@pytest_twisted.ensureDeferred
async def test_a_branch_that_is_none_never_reaches_the_masters_git(
    master: RealMaster, served: Served, branch: str
) -> None:
    build = await master.run(SANDBOX, [steps.Git(repourl=served.url)], [{"branch": branch}])
    assert build.result == "failure"
    assert "is no name of a branch" in build.log
    assert not served.server.requests


@pytest_twisted.ensureDeferred
async def test_a_push_is_refused_with_a_reason(master: RealMaster, served: Served) -> None:
    push = steps.GitPush(repourl=served.url, branch="main", workdir="build")
    build = await master.run(SANDBOX, [steps.Git(repourl=served.url), push])
    assert build.result == "failure"
    assert "a sandbox cannot push" in build.log


# ---- fetched once, sent as needed ----------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_second_fetch_transfers_what_is_new_only(
    master: RealMaster, served: Served
) -> None:
    served.repository.grow(4)
    first = await master.run(SANDBOX, [steps.Git(repourl=served.url)])
    before = served.server.bytes_fetched
    served.repository.commit({"new": "small\n"})
    second = await master.run(SANDBOX, [steps.Git(repourl=served.url)])
    assert (first.result, second.result) == ("success", "success")
    assert second.properties["got_revision"] == served.repository.id()
    assert before > 4 * 1024 * 1024
    assert served.server.bytes_fetched - before < 64 * 1024


@pytest_twisted.ensureDeferred
async def test_what_was_pushed_away_does_not_travel(master: RealMaster, served: Served) -> None:
    gone = served.repository.commit({"secret": "pushed by mistake\n"}, on="oops")
    look = steps.ShellCommand(
        command="git -C /build/.sandboxworker/source/*.git cat-file -t $LOST || true",
        env={"LOST": gone},
        name="look",
    )
    git = steps.Git(repourl=served.url)
    before = await master.run(SANDBOX, [git, look])
    served.repository.delete("refs/heads/oops")
    after_ = await master.run(SANDBOX, [git, look])
    assert before["look"].out.strip() == "commit"
    assert after_["look"].out.strip() == ""


@pytest_twisted.ensureDeferred
async def test_a_server_that_fails_is_asked_again_as_the_step_says(
    master: RealMaster, served: Served
) -> None:
    served.server.fail(times=2)
    arguments = {"mode": "full", "method": "clobber", "retry": (0, 2)}
    build = await master.run(SANDBOX, [steps.Git(repourl=served.url, **arguments)])
    assert build.result == "success"
    assert "503" in build["git"].err


@pytest_twisted.ensureDeferred
async def test_a_stopped_build_does_not_wait_for_a_server(
    master: RealMaster, served: Served
) -> None:
    with served.server.held():
        request = await master.begin(SANDBOX, [steps.Git(repourl=served.url)])
        await until(lambda: served.server.requests, "a request to the server")
        await master.stop_build(request)
        build = await master.finished(request)
    assert build.result == "cancelled"
    assert (await master.run(SANDBOX, [steps.Git(repourl=served.url)])).result == "success"


@pytest_twisted.ensureDeferred
async def test_a_repository_that_is_too_large_is_refused(
    master: RealMaster, served: Served
) -> None:
    served.repository.grow(3)
    build = await master.run(SMALL, [steps.Git(repourl=served.url)])
    assert build.result == "failure"
    assert "larger than the policy's max_source (1m)" in build.log


# ---- other ways to the server --------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_gits_own_protocol(master: RealMaster, served: Served, tmp_path: Path) -> None:
    with DaemonServer(served.root, tmp_path) as daemon:
        url = daemon.url(served.repository)
        await same_on_both(master, lambda: after(steps.Git(repourl=url)))


@pytest_twisted.ensureDeferred
async def test_a_key_is_used_on_the_master_and_never_comes_into_the_sandbox(
    master: RealMaster, served: Served, tmp_path: Path
) -> None:
    with SshServer(tmp_path) as ssh:
        arguments = {"sshPrivateKey": ssh.private_key, "sshKnownHosts": ssh.known_hosts}
        git = steps.Git(repourl=ssh.url(served.repository), **arguments)
        look = shell("find / -xdev -name 'ssh-key*' 2>/dev/null; grep -rl PRIVATE /build", "look")
        build = await master.run(SANDBOX, [git, look])
    assert build["git"].result == "success", build.log
    assert build["look"].out.strip() == ""
    assert not list((master.basedir / DIRECTORY).glob("home-*"))


# ---- SandboxGit ----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_an_image_without_git_gets_the_commits_files(
    master: RealMaster, served: Served
) -> None:
    inner = Repository(served.root / "inner.git")
    inner.commit({"deep": "est\n"})
    served.repository.commit(
        {".gitattributes": "other export-ignore\n", "other": "kept\n", "sub/x": "y\n"}
    )
    served.repository.commit({"mod": Submodule("../inner.git", inner.id())})
    git = SandboxGit(repourl=served.url, submodules=True, getDescription={"tags": True})
    look = shell("find . -type f | sort; cat README mod/deep; ls -l run", "look")
    build = await master.run(TINY, [git, look])
    assert build.result == "success", build.log
    assert build["look"].out.split()[:6] == [
        *("./.gitattributes", "./.gitmodules", "./README", "./mod/deep", "./other", "./run")
    ]
    assert "two\nest\n-rwxr-xr-x" in build["look"].out
    assert build.properties["got_revision"] == served.repository.id()
    assert build.properties["commit-description"].startswith("v1.0-3-g")


@pytest_twisted.ensureDeferred
async def test_a_patch_is_applied_to_what_is_sent(master: RealMaster, served: Served) -> None:
    build = await master.run(
        TINY, [SandboxGit(repourl=served.url), shell("cat README", "look")], [STAMPS["patch"]]
    )
    assert build["look"].out == "tried", build.log


@pytest_twisted.ensureDeferred
async def test_a_patch_that_does_not_apply_fails_the_step(
    master: RealMaster, served: Served
) -> None:
    stamp = {**STAMPS["patch"], "patch_body": b"--- a/no\n+++ b/no\n@@ -1 +1 @@\n-x\n+y\n"}
    build = await master.run(TINY, [SandboxGit(repourl=served.url)], [stamp])
    assert build.result == "failure"
    assert "git apply failed" in build.log


@pytest_twisted.ensureDeferred
async def test_a_pull_request_is_sent(master: RealMaster, served: Served) -> None:
    build = await master.run(
        TINY,
        [SandboxGit(repourl=served.url), shell("cat pr", "look")],
        [{"branch": "refs/pull/7/head"}],
    )
    assert build["look"].out == "from a stranger", build.log


@pytest_twisted.ensureDeferred
async def test_elsewhere_the_step_says_where_it_works(master: RealMaster, served: Served) -> None:
    build = await master.run(LOCAL, [SandboxGit(repourl=served.url)])
    assert build.result == "exception"
    assert "SandboxGit works on a SandboxLatentWorker" in build.log


@pytest_twisted.ensureDeferred
async def test_a_full_disk_is_told(master: RealMaster, served: Served) -> None:
    served.repository.grow(8)
    for kind in (steps.Git, SandboxGit):
        build = await master.run(CRAMPED, [kind(repourl=served.url)])
        assert build.result == "failure"
        assert "No space left on device" in build.log
        assert "the policy's disk is what to change" in build.log
