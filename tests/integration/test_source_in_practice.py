"""Git steps as real configurations write them: logins, keys, subclasses, several repositories."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from buildbot.plugins import steps, util
from conftest import DEBIAN
from git_server import DaemonServer, HttpServer, Repository, SshServer, Submodule
from real_master import BuildResult, RealMaster, one_builder_each, running_master, shell
from runtime import SandboxPolicy

from sandboxworker import SandboxLatentWorker

pytestmark = pytest.mark.engine

LOGIN = ("robot", "p@ss/word")
#: The same before the host of a URL.
IN_URL = "robot:p%40ss%2Fword"

#: The password as it is and encoded, any private key, and files that would hold them.
SECRETS_INSIDE = r"""{ grep -rIlE 'p@ss.word|p%40ss|PRIVATE.KEY' /build /run/secrets
find /build -name '*credentials*' -o -name 'ssh-*'; env | grep -iE 'p@ss|p%40ss'; } >>/tmp/found
"""

#: Looks while git runs with what it has: Buildbot removes keys when the step is over.
WATCH = f"""mkdir /tmp/hooks; cat >/tmp/hooks/post-checkout <<'END'
#!/bin/sh
touch /tmp/watched
{SECRETS_INSIDE}exit 0
END
chmod +x /tmp/hooks/post-checkout"""
WATCHED = {"core.hooksPath": "/tmp/hooks"}


@attrs.frozen
class Host:
    """Repositories ``outer``, with ``inner`` for its submodule, and what serves them."""

    outer: Repository
    inner: Repository
    http: HttpServer
    ssh: SshServer
    daemon: DaemonServer


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    root = tmp_path / "served"
    inner = Repository(root / "group" / "inner.git")
    inner.commit({"name": "inner\n"})
    inner.pull_request(3, {"name": "inner, changed\n"})
    outer = Repository(root / "group" / "outer.git")
    outer.commit({"name": "outer\n"})
    outer.annotated_tag("v1")
    outer.commit({"lib/inner": Submodule("../inner.git", inner.id())})
    with (
        HttpServer(root, login=LOGIN) as http,
        SshServer(tmp_path) as ssh,
        DaemonServer(root, tmp_path) as daemon,
    ):
        yield Host(outer, inner, http, ssh, daemon)


@pytest_twisted.async_yield_fixture(scope="module")
async def master(
    left_over: Any, engine_client: Any, tmp_path_factory: Any
) -> AsyncIterator[RealMaster]:
    sources = ("http://127.0.0.1:*/*", "git://127.0.0.1:*/*", "ssh://127.0.0.1:*/*")
    policy = SandboxPolicy(DEBIAN, memory="256m", disk="64m", sources=sources)
    config = one_builder_each([SandboxLatentWorker("practice", policy=policy)])
    async with running_master(tmp_path_factory.mktemp("master"), config, left_over) as running:
        yield running


def git(**arguments: Any) -> Any:
    """Buildbot's own step, under watch."""
    return steps.Git(config=WATCHED, **arguments)


async def built(master: RealMaster, source: list[Any], look: str, **properties: Any) -> BuildResult:
    """A build of these source steps and a look at what they made; nothing secret is inside."""
    secrets = f"{SECRETS_INSIDE}cat /tmp/found; [ ! -e /tmp/watched ] || echo /tmp/watched"
    build = await master.run(
        "practice",
        [
            shell(WATCH, "watch", workdir="."),
            *source,
            shell(look, "look", workdir="."),
            shell(secrets, "secrets", workdir=".", alwaysRun=True),
        ],
        **properties,
    )
    assert build["secrets"].out == ("/tmp/watched" if build["git"].result == "success" else "")
    assert LOGIN[1] not in build.log
    assert "PRIVATE KEY" not in build.log
    assert not master.errors, "\n".join(master.errors)
    return build


# ---- logins and keys -----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("way", ["credentials", "in the URL"])
async def test_a_password_is_used_and_stays_on_the_master(
    master: RealMaster, host: Host, way: str
) -> None:
    if way == "credentials":
        source = git(repourl=host.http.url(host.inner), auth_credentials=LOGIN)
    else:
        source = git(repourl=host.http.url(host.inner, IN_URL))
    build = await built(master, [source], "cat build/name; git -C build remote get-url origin")
    assert build.result == "success", build.log
    assert build["look"].out.splitlines() == ["inner", host.http.url(host.inner)]


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_fails_the_step_with_gits_words(
    master: RealMaster, host: Host
) -> None:
    source = git(repourl=host.http.url(host.inner), auth_credentials=("robot", "wrong"))
    build = await built(master, [source], "ls build")
    assert (build.result, build["git"].result) == ("failure", "failure")
    assert "Authentication failed" in build["git"].err


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("known_by", ["sshHostKey", "sshKnownHosts"])
async def test_an_ssh_key_is_used_and_stays_on_the_master(
    master: RealMaster, host: Host, known_by: str
) -> None:
    known = {"sshHostKey": host.ssh.host_key, "sshKnownHosts": host.ssh.known_hosts}[known_by]
    source = git(
        repourl=host.ssh.url(host.inner),
        branch="refs/pull/3/head",
        sshPrivateKey=host.ssh.private_key,
        **{known_by: known},
    )
    build = await built(master, [source], "cat build/name")
    assert build.result == "success", build.log
    assert build["look"].out == "inner, changed"
    assert build.properties["got_revision"] == host.inner.id("refs/pull/3/head")


@pytest_twisted.ensureDeferred
async def test_a_server_with_another_host_key_is_not_asked(master: RealMaster, host: Host) -> None:
    other = f"[127.0.0.1]:{host.ssh.port} {host.ssh.public_key}"
    source = git(
        repourl=host.ssh.url(host.inner),
        sshPrivateKey=host.ssh.private_key,
        sshKnownHosts=other,
    )
    build = await built(master, [source], "ls build")
    assert (build.result, build["git"].result) == ("failure", "failure")
    assert "Host key verification failed" in build["git"].err
    assert "Accepted publickey" not in host.ssh.log


@pytest_twisted.ensureDeferred
async def test_git_daemon_is_asked(master: RealMaster, host: Host) -> None:
    build = await built(master, [git(repourl=host.daemon.url(host.inner))], "cat build/name")
    assert (build.result, build["look"].out) == ("success", "inner")


# ---- as people write it --------------------------------------------------------------------------


class GitOfProject(steps.Git):
    """As in many a master.cfg: where from is decided when the build is there."""

    def run_vc(self, branch: Any, revision: Any, patch: Any) -> Any:
        self.repourl = self.build.getProperty("project_url")
        return super().run_vc(branch, revision, patch)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("way", ["subclass", "renderable"])
async def test_the_url_may_come_from_a_property(master: RealMaster, host: Host, way: str) -> None:
    url = host.daemon.url(host.inner)
    source: Any = GitOfProject(
        repourl="https://server.invalid/never-asked.git", name="git", config=WATCHED
    )
    if way == "renderable":
        source = git(repourl=util.Interpolate("%(prop:project_url)s"))
    build = await built(master, [source], "cat build/name", project_url=url)
    assert (build.result, build["look"].out) == ("success", "inner")


@pytest_twisted.ensureDeferred
async def test_submodules_come_with_the_steps_login(master: RealMaster, host: Host) -> None:
    url = host.http.url(host.outer)
    source = git(
        repourl=url, auth_credentials=LOGIN, submodules=True, getDescription=True, mode="full"
    )
    look = "cd build && cat lib/inner/name && git submodule status && git describe"
    build = await built(master, [source], look)
    assert build.result == "success", build.log
    name, status, description = build["look"].out.splitlines()
    assert name == "inner"
    assert status.split()[0] == host.inner.id()
    assert description == build.properties["commit-description"]
    assert description.startswith("v1-1-g")


@pytest_twisted.ensureDeferred
async def test_several_repositories_lie_side_by_side(master: RealMaster, host: Host) -> None:
    source = [
        git(repourl=host.daemon.url(host.outer), workdir="outer"),
        git(repourl=host.daemon.url(host.inner), workdir="outer/extra", name="extra"),
    ]
    build = await built(master, source, "cat outer/name outer/extra/name")
    assert (build.result, build["look"].out) == ("success", "outer\ninner")


@pytest_twisted.ensureDeferred
async def test_a_server_that_fails_once_is_asked_again(master: RealMaster, host: Host) -> None:
    host.http.fail(1)
    source = git(repourl=host.http.url(host.inner), auth_credentials=LOGIN, retry=(0, 2))
    build = await built(master, [source], "cat build/name")
    assert (build.result, build["look"].out) == ("success", "inner")
    assert "503" in build["git"].err
