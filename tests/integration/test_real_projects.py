"""Real projects, from Debian's source packages, through a git server into a sandbox and out again.

Each is configured, built, tested and taken out by the steps that people use for such a project,
in an image that is ours with the packages which the project wants.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from buildbot.plugins import steps
from conftest import DEBIAN
from debian_packages import files_of, image_with_more, upstream_source
from git_server import HttpServer, Repository
from real_master import RealMaster, one_builder_each, running_master, shell
from runtime import SandboxPolicy, differs

from sandboxworker import SandboxLatentWorker

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

BUILD_SECONDS = 400.0


@attrs.frozen
class Project:
    """A source package, the steps between source and artifact, and what they say when all is well.

    ``artifact``: a glob below the work directory that one file matches;
    ``said``: by a step's name, a pattern that its output contains.
    """

    package: str
    build: Callable[[], list[Any]]
    artifact: str
    said: dict[str, str]


def autotools() -> list[Any]:
    """Git keeps no times: without equal ones, make would run autoconf to make `configure` anew."""
    return [
        shell("find . -exec touch -r configure {} +", "times"),
        steps.Configure(command=["./configure", "--quiet"]),
        steps.Compile(command=["make", "-j2"]),
        steps.Test(command=["make", "check"]),
    ]


def cmake() -> list[Any]:
    there = {"workdir": "build/out"}
    return [
        steps.CMake(path="..", generator="Ninja", definitions={"BUILD_SHARED_LIBS": "On"}, **there),
        steps.Compile(command=["cmake", "--build", "."], **there),
        steps.Test(command=["ctest", "--output-on-failure"], **there),
    ]


def python() -> list[Any]:
    """The tests use a way of pytest's that its next release drops, and mind its warning."""
    quiet = ["-W", "ignore::pytest.PytestRemovedIn8Warning"]
    return [
        steps.Test(command=["python3", "-m", "pytest", *quiet], env={"PYTHONPATH": "src"}),
        steps.ShellCommand(command=["python3", "setup.py", "bdist_wheel"], name="wheel"),
    ]


PROJECTS = [
    pytest.param(
        Project("hello", autotools, "hello", {"test": r"# PASS: +[1-9]\d*\n[^=]*# FAIL: +0\n"}),
        marks=differs("statx"),  # Its configure asks "ls -di .".
    ),
    Project(
        "cjson", cmake, "out/libcjson.so.1.*", {"test": r"100% tests passed, 0 tests failed out of"}
    ),
    Project("jinja2", python, "dist/*.whl", {"test": r"=== [1-9]\d+ passed in "}),
]


def artifact_steps(project: Project, to: Path) -> list[Any]:
    """What was built: its digest as the sandbox has it, and the file itself."""
    return [
        steps.SetPropertyFromCommand(
            command=f"cp {project.artifact} artifact && sha256sum <artifact | cut -d' ' -f1",
            property="sha256",
        ),
        steps.FileUpload(workersrc="artifact", masterdest=str(to)),
    ]


@pytest.fixture(scope="module")
def image(engine_client: Any) -> str:
    """Ours, with what these projects need."""
    return image_with_more(engine_client, DEBIAN)


@pytest.fixture(scope="module", params=PROJECTS, ids=lambda project: project.package)
def project(request: pytest.FixtureRequest) -> Project:
    found: Project = request.param
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: Any) -> Iterator[HttpServer]:
    with HttpServer(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="module")
def repository(engine_client: Any, project: Project, served: HttpServer) -> Repository:
    """The project's published source, as one commit with a tag."""
    made = Repository(served.root / f"{project.package}.git")
    archive = upstream_source(engine_client, DEBIAN, project.package)
    made.commit(files_of(archive), message="the published source")
    made.annotated_tag("published")
    return made


@pytest_twisted.async_yield_fixture(scope="module")
async def master(left_over: Any, image: str, tmp_path_factory: Any) -> AsyncIterator[RealMaster]:
    policy = SandboxPolicy(image, cpus=2, memory="768m", disk="512m", disk_inodes=20_000)
    config = one_builder_each([SandboxLatentWorker("projects", policy=policy)])
    async with running_master(tmp_path_factory.mktemp("master"), config, left_over) as running:
        yield running


SOURCES = {
    "Git": lambda url: steps.Git(repourl=url, branch="main", mode="full", method="clobber"),
    "SandboxGit": lambda url: steps.SandboxGit(repourl=url, branch="main"),
}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("source", SOURCES)
async def test_a_real_project_is_built_tested_and_taken_out(
    master: RealMaster,
    project: Project,
    repository: Repository,
    served: HttpServer,
    source: str,
    tmp_path: Path,
) -> None:
    taken = tmp_path / "taken"
    request = await master.begin(
        "projects",
        [
            SOURCES[source](served.url(repository)),
            *project.build(),
            *artifact_steps(project, taken),
        ],
    )
    build = await master.finished(request, BUILD_SECONDS)
    assert build.result == "success", build.log
    assert build.properties["got_revision"] == repository.id()
    for name, pattern in project.said.items():
        assert re.search(pattern, build[name].out), build[name].out
    assert hashlib.sha256(taken.read_bytes()).hexdigest() == build.properties["sha256"]
    assert not master.errors, "\n".join(master.errors)
