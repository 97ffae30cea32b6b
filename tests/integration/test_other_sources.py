"""Source steps on a repository inside the sandbox; those of other systems than git outside it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import pytest
import pytest_twisted
from buildbot.plugins import steps, util
from conftest import DEBIAN
from debian_packages import image_with_more
from real_master import RealMaster, one_builder_each, running_master, shell
from runtime import SandboxPolicy

from sandboxworker import SandboxLatentWorker

pytestmark = pytest.mark.engine


@pytest_twisted.async_yield_fixture(scope="module")
async def master(
    left_over: Any, engine_client: Any, tmp_path_factory: Any
) -> AsyncIterator[RealMaster]:
    image = image_with_more(engine_client, DEBIAN)
    policy = SandboxPolicy(image, memory="256m", disk="64m")
    config = one_builder_each([SandboxLatentWorker("others", policy=policy)])
    async with running_master(tmp_path_factory.mktemp("master"), config, left_over) as running:
        yield running


@attrs.frozen
class System:
    """A version control system, with a repository that other steps make in ``/tmp/repo``.

    ``begin`` makes it with a file ``f`` of ``one``, ``go_on`` changes that to ``two``;
    ``step``: its source step, for some mode; ``modes``: of the first time and of the last, the one
    between them being incremental; ``revision``: what ``got_revision`` looks like after the first.
    """

    name: str
    begin: str
    go_on: str
    step: Callable[..., Any]
    modes: tuple[dict[str, str], dict[str, str]]
    revision: str


COPY = {"mode": "full", "method": "copy"}
CLOBBER = {"mode": "full", "method": "clobber"}
EXPORT = {"mode": "full", "method": "export"}
INCREMENTAL = {"mode": "incremental"}

SYSTEMS = [
    System(
        "git",
        "git init -b main /tmp/repo && cd /tmp/repo && git config user.name me"
        " && git config user.email me@example.invalid && echo one >f && git add f"
        " && git commit -m one",
        "cd /tmp/repo && echo two >f && git commit -a -m two",
        lambda **how: steps.Git(repourl="/tmp/repo", branch="main", **how),
        (INCREMENTAL, CLOBBER),
        "[0-9a-f]{40}",
    ),
    System(
        "mercurial",
        "hg init /tmp/repo && cd /tmp/repo && echo one >f && hg commit -A -m one -u me",
        "cd /tmp/repo && echo two >f && hg commit -m two -u me",
        lambda **how: steps.Mercurial(repourl="/tmp/repo", branchType="inrepo", **how),
        (INCREMENTAL, CLOBBER),
        "[0-9a-f]{40}",
    ),
    System(
        "subversion",
        "svnadmin create /tmp/repo && mkdir t && echo one >t/f"
        " && svn import -m one t file:///tmp/repo/trunk",
        "svn checkout file:///tmp/repo/trunk w && cd w && echo two >f && svn commit -m two",
        lambda **how: steps.SVN(repourl="file:///tmp/repo/trunk", **how),
        (INCREMENTAL, EXPORT),
        "1",
    ),
    System(
        "cvs",
        "export TMPDIR=/tmp; cvs -d /tmp/repo init && mkdir t && cd t && echo one >f"
        " && cvs -d /tmp/repo import -m one module vendor start",
        "export TMPDIR=/tmp; cvs -d /tmp/repo checkout -d w module"
        " && cd w && echo two >f && cvs commit -m two",
        lambda **how: steps.CVS(cvsroot=":local:/tmp/repo", cvsmodule="module", **how),
        (INCREMENTAL, COPY),
        r"\d{4}-\d\d-\d\d .*",
    ),
    System(
        "darcs",
        "darcs init /tmp/repo && cd /tmp/repo && echo one >f && darcs record -l -a -m one -A me",
        "cd /tmp/repo && echo two >f && darcs record -a -m two -A me",
        lambda **how: steps.Darcs(repourl="/tmp/repo", **how),
        (CLOBBER, COPY),
        "(?s)patch [0-9a-f]{40}.*one.*",
    ),
    System(
        "bzr",
        "export BZR_EMAIL=me; bzr init /tmp/repo && cd /tmp/repo && echo one >f"
        " && bzr add f && bzr commit -m one",
        "export BZR_EMAIL=me; cd /tmp/repo && echo two >f && bzr commit -m two",
        lambda **how: steps.Bzr(repourl="/tmp/repo", **how),
        (INCREMENTAL, CLOBBER),
        "1",
    ),
]


def in_home(commands: str, name: str) -> Any:
    """A step in a directory of its own, which is not the source's."""
    return shell(commands, name, workdir="/tmp/home", haltOnFailure=True)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
async def test_a_repository_inside_the_sandbox_is_checked_out_and_followed(
    master: RealMaster, system: System
) -> None:
    build = await master.run(
        "others",
        [
            in_home(system.begin, "begin"),
            system.step(**system.modes[0]),
            shell("cat f", "first"),
            steps.SetProperty(property="first_revision", value=util.Property("got_revision")),
            in_home(system.go_on, "go on"),
            system.step(**INCREMENTAL, name="again"),
            shell("cat f", "second"),
            system.step(**system.modes[1], name="whole"),
            shell("cat f", "third"),
        ],
    )
    assert build.result == "success", build.log
    assert [build[name].out for name in ("first", "second", "third")] == ["one", "two", "two"]
    assert re.fullmatch(system.revision, build.properties["first_revision"].strip())
    assert not master.errors, "\n".join(master.errors)


# ---- outside -------------------------------------------------------------------------------------

#: By the step's class: its step with a repository that lies outside the sandbox, and its place.
OUTSIDE = {
    "Mercurial": (lambda url: steps.Mercurial(repourl=url), "https://server.invalid/repo"),
    "SVN": (lambda url: steps.SVN(repourl=url), "svn+ssh://me@server.invalid/repo/trunk"),
    "CVS": (lambda url: steps.CVS(cvsroot=url, cvsmodule="m"), ":pserver:me@server.invalid:/repo"),
    "Darcs": (lambda url: steps.Darcs(repourl=url), "me@server.invalid:repo"),
    "Bzr": (lambda url: steps.Bzr(baseURL=url, defaultBranch="trunk"), "lp:project"),
    "P4": (lambda url: steps.P4(p4port=url, p4base="//depot"), "ssl:server.invalid:1666"),
    "Repo": (lambda url: steps.Repo(manifestURL=url), "https://server.invalid/manifests"),
    "Monotone": (lambda url: steps.Monotone(repourl=url, branch="b"), "mtn://server.invalid/repo"),
}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("name", OUTSIDE)
async def test_a_repository_outside_is_refused_before_anything_runs(
    master: RealMaster, name: str
) -> None:
    make, url = OUTSIDE[name]
    build = await master.run("others", [make(url)])
    assert (build.result, build.steps[-1].result) == ("failure", "failure"), build.log
    for words in (url, f"not those of {name}", "Use a git repository", "FileDownload"):
        assert words in build.log
    assert set(re.findall(r"argv: \[b'(\w+)'", build.log)) <= {"rm"}  # Repo empties its directory.
    assert "Traceback" not in build.log
    refused = [entry for entry in master.audit if entry["event"] == "source.refused"]
    assert url in refused[-1]["reason"]
    assert not master.errors, "\n".join(master.errors)


@pytest_twisted.ensureDeferred
async def test_a_perforce_server_that_nobody_named_is_refused(master: RealMaster) -> None:
    build = await master.run("others", [steps.P4(p4base="//depot")])
    assert build.result == "failure"
    assert "not those of P4" in build.log
    assert "argv:" not in build.log
