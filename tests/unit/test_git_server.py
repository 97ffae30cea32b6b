"""The git servers that other tests use, asked by plain git."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from git_server import (
    MIB,
    DaemonServer,
    HttpServer,
    Link,
    Program,
    Repository,
    SshServer,
    Submodule,
    environment,
    run_git,
)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "served" / "group" / "project.git")
    made.commit({"README": "hello\n", "run": Program("#!/bin/sh\n"), "link": Link("README")})
    made.annotated_tag("v1.0")
    made.commit({"README": "more\n", 'odd "name"\n': b"\0\xff"})
    return made


@pytest.fixture
def http(tmp_path: Path, repository: Repository) -> Iterator[HttpServer]:
    with HttpServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[SshServer]:
    with SshServer(tmp_path) as server:
        yield server


def clone(url: str, to: Path, *more: str, **variables: str) -> Path:
    run_git("clone", "--quiet", *more, url, to, **variables)
    return to


def failure(*arguments: str, **variables: str) -> str:
    """What a git command that fails says."""
    done = subprocess.run(
        ["git", *arguments], env=environment(**variables), capture_output=True, text=True
    )
    assert done.returncode != 0
    return done.stderr


# ---- repositories --------------------------------------------------------------------------------


def test_the_same_calls_give_the_same_ids(tmp_path: Path) -> None:
    ids = set()
    for name in ("one", "two"):
        made = Repository(tmp_path / name)
        made.commit({"f": "x"})
        made.grow(2)
        made.annotated_tag("t")
        ids.add((made.id(), made.id("t")))
    assert len(ids) == 1


def test_files_links_programs_and_names_are_as_given(
    tmp_path: Path, http: HttpServer, repository: Repository
) -> None:
    tree = clone(http.url(repository), tmp_path / "tree")
    assert (tree / "link").readlink() == Path("README")
    assert (tree / "run").stat().st_mode & 0o111
    assert (tree / 'odd "name"\n').read_bytes() == b"\0\xff"
    assert run_git("-C", tree, "describe") == f"v1.0-1-g{repository.id()[:7]}"


def test_pull_requests_have_the_refs_of_hosting_services(
    tmp_path: Path, http: HttpServer, repository: Repository
) -> None:
    head = repository.pull_request(7, {"new": "7"})
    other = repository.merge_request(8, {"new": "8"})
    tree = clone(http.url(repository), tmp_path / "tree")
    for ref, commit in (("refs/pull/7/head", head), ("refs/merge-requests/8/head", other)):
        run_git("-C", tree, "fetch", "--quiet", "origin", ref)
        assert run_git("-C", tree, "rev-parse", "FETCH_HEAD") == commit
    assert repository.id("refs/pull/7/merge^1") == repository.id("main")
    assert repository.id("refs/pull/7/merge^2") == head


def test_a_forced_push_leaves_another_history(repository: Repository) -> None:
    old = repository.id()
    repository.commit({"README": "other\n"}, after=f"{old}~1")
    assert repository.id("main~1") == f"{repository.id(old + '~1')}"
    assert repository.id() != old
    repository.branch("main", old)
    assert repository.id() == old


def test_submodules_are_found_by_relative_and_absolute_urls(
    tmp_path: Path, http: HttpServer, repository: Repository
) -> None:
    inner = Repository(tmp_path / "served" / "group" / "inner.git")
    inner.commit({"deep": "down\n"})
    middle = Repository(tmp_path / "served" / "group" / "middle.git")
    middle.commit({"inner": Submodule("../inner.git", inner.id())})
    repository.commit({"a/middle": Submodule(http.url(middle), middle.id())})
    repository.commit({"b": Submodule("../inner.git", inner.id(), name="other")})
    tree = clone(http.url(repository), tmp_path / "tree", "--recurse-submodules")
    assert (tree / "a" / "middle" / "inner" / "deep").read_text() == "down\n"
    assert (tree / "b" / "deep").read_text() == "down\n"


# ---- http ----------------------------------------------------------------------------------------


def test_http_counts_what_is_fetched(
    tmp_path: Path, http: HttpServer, repository: Repository
) -> None:
    repository.grow(3)
    tree = clone(http.url(repository), tmp_path / "tree")
    first = http.bytes_fetched
    assert 3 * MIB < first < 4 * MIB
    assert http.fetches == 1
    repository.commit({"small": "x"})
    run_git("-C", tree, "fetch", "--quiet")
    assert 0 < http.bytes_fetched - first < 10_000


@pytest.mark.parametrize("version", ["0", "2"])
def test_http_shallow_clone_and_push_work(
    tmp_path: Path, http: HttpServer, repository: Repository, version: str
) -> None:
    repository.git("config", "http.receivepack", "true")
    protocol = ("-c", f"protocol.version={version}")
    tree = tmp_path / "tree"
    run_git(*protocol, "clone", "-q", "--depth=1", http.url(repository), tree)
    who = ("-c", "user.name=t", "-c", "user.email=t@example.invalid")
    (tree / "large").write_bytes(bytes(range(256)) * 8192)
    run_git("-C", tree, "add", "large")
    run_git("-C", tree, *who, "commit", "--quiet", "-m", "x")
    run_git("-C", tree, *protocol, "-c", "http.postBuffer=65536", "push", "-q", "origin", "main")
    assert repository.id() == run_git("-C", tree, "rev-parse", "HEAD")


def test_http_asks_for_the_password(tmp_path: Path, repository: Repository) -> None:
    with HttpServer(tmp_path / "served", login=("me", "p@ss")) as server:
        assert "could not read Username" in failure("ls-remote", server.url(repository))
        assert "Authentication failed" in failure("ls-remote", server.url(repository, "me:no"))
        clone(server.url(repository, "me:p%40ss"), tmp_path / "tree")
        assert {request.status for request in server.requests} == {401, 200}


def test_http_fails_when_told(http: HttpServer, repository: Repository) -> None:
    http.fail(1, 503)
    assert "503" in failure("ls-remote", http.url(repository))
    run_git("ls-remote", http.url(repository))


def test_http_redirects_where_told(http: HttpServer, repository: Repository) -> None:
    http.redirects["/old.git"] = http.url(repository)
    assert run_git("ls-remote", http.url(repository).replace("group/project", "old"))


def test_http_holds_requests_until_let_go(http: HttpServer, repository: Repository) -> None:
    with http.held():
        waiting = subprocess.Popen(["git", "ls-remote", http.url(repository)], env=environment())
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.3)
    assert waiting.wait(60) == 0


def test_http_serves_nothing_outside_its_folder(tmp_path: Path, http: HttpServer) -> None:
    Repository(tmp_path / "outside.git").commit({"f": "x"})
    assert "not found" in failure("ls-remote", f"http://127.0.0.1:{http.port}/../outside.git")


# ---- git daemon, ssh -----------------------------------------------------------------------------


def test_git_daemon_serves_the_same(tmp_path: Path, repository: Repository) -> None:
    with DaemonServer(tmp_path / "served", tmp_path) as server:
        tree = clone(server.url(repository), tmp_path / "tree")
    assert run_git("-C", tree, "rev-parse", "HEAD") == repository.id()
    assert server.connections == 1


def _ssh(tmp_path: Path, key: str, known: str) -> dict[str, str]:
    (tmp_path / "key").write_text(key)
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "known").write_text(known + "\n")
    command = (
        f"ssh -F none -i {tmp_path}/key -o UserKnownHostsFile={tmp_path}/known"
        " -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes -o BatchMode=yes"
    )
    return {"GIT_SSH_COMMAND": command}


def test_ssh_lets_the_key_in(tmp_path: Path, ssh: SshServer, repository: Repository) -> None:
    with_key = _ssh(tmp_path, ssh.private_key, ssh.known_hosts)
    tree = clone(ssh.url(repository), tmp_path / "tree", **with_key)
    assert run_git("-C", tree, "rev-parse", "HEAD") == repository.id()


def test_ssh_lets_no_other_key_in_and_runs_git_alone(
    tmp_path: Path, ssh: SshServer, repository: Repository
) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    variables = _ssh(tmp_path, other.read_text(), ssh.known_hosts)
    assert "Permission denied" in failure("ls-remote", ssh.url(repository), **variables)
    right = _ssh(tmp_path, ssh.private_key, ssh.known_hosts)["GIT_SSH_COMMAND"].split()
    command: list[Any] = [*right, "-p", str(ssh.port), f"{ssh.user}@127.0.0.1", "echo in"]
    assert subprocess.run(command, capture_output=True).returncode != 0


def test_ssh_is_refused_by_a_client_that_knows_another_host_key(
    tmp_path: Path, ssh: SshServer, repository: Repository
) -> None:
    known = f"[127.0.0.1]:{ssh.port} {ssh.public_key}"
    variables = _ssh(tmp_path, ssh.private_key, known)
    assert "Host key verification failed" in failure("ls-remote", ssh.url(repository), **variables)
