"""Mirrors with the real git, against real servers and hostile repositories."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from git_server import MIB, HttpServer, Repository, Submodule, run_git
from real_master import until
from runtime import SandboxPolicy
from twisted.internet import defer, reactor

from sandboxworker.errors import SourceFailed, SourceRefused
from sandboxworker.source import submodules
from sandboxworker.source.access import Access
from sandboxworker.source.git import Limits, prepared
from sandboxworker.source.mirror import DIRECTORY, Mirror, Mirrors, Update, Wanted
from sandboxworker.source.sources import Sources, _Placed
from sandboxworker.source.submodules import submodules_of
from sandboxworker.source.urls import Repository as Place
from sandboxworker.source.urls import read

LIMITS = Limits(60, 64 * MIB)
SECRET = "correct-horse-battery"


def unheard(_: str) -> None:
    """Progress is of no interest."""


@attrs.define
class World:
    """A server with one repository, and a master's directory."""

    root: Path
    basedir: Path
    server: HttpServer
    repository: Repository
    mirrors: Mirrors

    @property
    def mirror(self) -> Mirror:
        return self.mirrors.of(read(self.server.url(self.repository)).repository)

    def update(self, mirror: Mirror | None = None, **access: Any) -> defer.Deferred[None]:
        return (mirror or self.mirror).update(Update(Access(**access), LIMITS), unheard)

    @property
    def rounds(self) -> int:
        """How often a mirror asked the server: once for its HEAD, once for what is new."""
        return sum(request.method == "GET" for request in self.server.requests) // 2

    def git(self) -> Any:
        return prepared(reactor, self.mirrors.root, LIMITS)

    @property
    def homes(self) -> list[Path]:
        return list(self.mirrors.root.glob("home-*"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    root, basedir = tmp_path / "served", tmp_path / "master"
    basedir.mkdir()
    repository = Repository(root / "project.git")
    repository.commit({"README": "one\n"})
    repository.commit({"README": "two\n"})
    with HttpServer(root) as server:
        yield World(root, basedir, server, repository, Mirrors(reactor, basedir))


def has(path: Path, commit: str) -> bool:
    argv = ["git", "-c", "safe.directory=*", "-C", str(path), "cat-file", "-e", commit]
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0


# ---- one fetch for many --------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_who_comes_before_a_fetch_begins_shares_it(world: World) -> None:
    with world.server.held():
        first = world.update()
        await until(lambda: world.server.requests, "a request to the server")
        # Too late for the first one, which may have been told the old state already.
        waiting = [world.update() for _ in range(3)]
        new = world.repository.commit({"README": "three\n"})
    await defer.gatherResults([first, *waiting])
    assert has(world.mirror.path, new)
    assert world.rounds == 2
    await world.update()
    assert world.rounds == 3


@pytest_twisted.ensureDeferred
async def test_who_stops_waiting_stops_nothing(world: World) -> None:
    with world.server.held():
        waiting, other = world.update(), world.update()
        await until(lambda: world.server.requests, "a request to the server")
        waiting.cancel()
        with pytest.raises(defer.CancelledError):
            await waiting
        other.addErrback(lambda _: None).cancel()
    await world.update()
    assert has(world.mirror.path, world.repository.id())
    assert world.rounds == 2


@pytest_twisted.ensureDeferred
async def test_all_who_wait_hear_of_a_failure_and_the_next_may_succeed(world: World) -> None:
    world.server.fail(times=1)
    with world.server.held():
        first = world.update()
        await until(lambda: world.server.requests, "a request to the server")
        second = world.update()
    with pytest.raises(SourceFailed, match="503"):
        await first
    await second


@pytest_twisted.ensureDeferred
async def test_nobody_waits_for_ever_for_what_nobody_expected(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        "sandboxworker.source.mirror.unexpected", lambda doing: lambda _: told.append(doing)
    )
    with pytest.raises(UnicodeEncodeError):
        await world.update(credentials=("password=\udcff\n",))
    await until(lambda: told, "the log's last resort")
    assert told == [f"fetching {world.mirror.repository.url}"]
    await world.update()


# ---- what a dead master left ---------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_what_a_dead_master_left_is_swept(world: World) -> None:
    await world.update()
    path, root = world.mirror.path, world.mirrors.root
    left = [
        *(path / "HEAD.lock", path / "config.lock", path / "packed-refs.lock"),
        *(path / "refs/heads/main.lock", path / "refs/heads/deep/er.lock"),
        *(path / "objects/pack/tmp_pack_abc", path / "objects/pack/.tmp-1-pack-abc.pack"),
        *(path / "objects/tmp_objdir-incoming-1/x", root / "home-x/ssh-key"),
        root / "export-x/objects/pack/x",
    ]
    for each in left:
        each.parent.mkdir(parents=True, exist_ok=True)
        each.write_text("left")
    new = world.repository.commit({"README": "three\n"})
    world.mirrors = Mirrors(reactor, world.basedir)
    await world.update()
    assert has(world.mirror.path, new)
    assert [each for each in left if each.exists()] == []
    assert not (root / "home-x").exists()


@pytest_twisted.ensureDeferred
async def test_a_mirror_that_was_deleted_is_made_again(world: World) -> None:
    await world.update()
    run_git("-C", world.basedir, "init", "--quiet", "elsewhere")
    for file in sorted(world.mirror.path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    world.mirror.path.rmdir()
    world.mirrors = Mirrors(reactor, world.basedir)
    await world.update()
    assert has(world.mirror.path, world.repository.id())


# ---- keys, logins and the master's own -----------------------------------------------------------


def processes(below: Path) -> dict[str, str]:
    """The environments and command lines of what works in a directory."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(below):
                words = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
                found[words[0].replace(b"\0", b" ").decode()] = words[1].decode()
        except OSError:  # noqa: PERF203 -- it has ended meanwhile
            continue
    return found


@pytest_twisted.ensureDeferred
async def test_a_login_is_used_and_stands_in_no_process_list(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTERS_OWN", "something")
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", "'core.pager=x'")
    world.server.login = ("user", SECRET)
    url = world.server.url(world.repository)
    approved = f"url={url}\nusername=user\npassword={SECRET}\n"
    with world.server.held():
        fetching = world.update(credentials=(approved,), private_key="a key\n", known_hosts="h\n")
        await until(lambda: world.server.requests, "a request to the server")
        (home,) = world.homes
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in home.iterdir()}
        running = processes(world.mirror.path)
    await fetching
    assert {name: oct(mode) for name, mode in modes.items() if name != ".gitconfig"} == {
        "credentials": "0o600", "ssh-key": "0o600", "known-hosts": "0o600",
    }  # fmt: skip
    assert running
    for argv, environ in running.items():
        assert SECRET not in argv + environ
        assert "a key" not in argv + environ
        # git sets variables of these names itself, for its helpers.
        assert not any(word in environ for word in ("MASTERS_OWN", "/nonexistent", "core.pager"))
        assert f"HOME={home}" in environ
    assert world.homes == []
    everything = (file for file in world.mirrors.root.rglob("*") if file.is_file())
    assert not any(SECRET.encode() in file.read_bytes() for file in everything)


@pytest_twisted.ensureDeferred
async def test_keys_are_removed_after_a_failure_as_well(world: World) -> None:
    world.server.login = ("user", SECRET)
    with pytest.raises(SourceFailed) as caught:
        await world.update(private_key="a key\n", credentials=("username=x\n",))
    assert SECRET not in str(caught.value)
    assert world.homes == []
    assert stat.S_IMODE(world.mirrors.root.stat().st_mode) == 0o700
    assert world.mirrors.root.name == DIRECTORY


@pytest_twisted.ensureDeferred
async def test_the_masters_own_logins_are_not_used(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "masters-home"
    home.mkdir()
    server = world.server.url(world.repository, f"user:{SECRET}").removesuffix("/project.git")
    (home / ".git-credentials").write_text(server + "\n")
    (home / ".gitconfig").write_text("[credential]\n\thelper = store\n")
    (home / ".netrc").write_text(f"machine 127.0.0.1 login user password {SECRET}\n")
    monkeypatch.setenv("HOME", str(home))
    world.server.login = ("user", SECRET)
    with pytest.raises(SourceFailed):
        await world.update()
    assert not any(request.user for request in world.server.requests)


# ---- hostile repositories ------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_nothing_that_a_repository_configures_is_run(world: World, tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$0" >> {owned}\nexit 0\n')
    program.chmod(0o755)
    for key in ("core.fsmonitor", "uploadpack.packObjectsHook", "core.sshCommand", "core.pager",
                "core.gitProxy", "core.alternateRefsCommand", "core.askPass"):  # fmt: skip
        world.repository.git("config", key, str(program))
    world.repository.git("config", "core.hooksPath", str(tmp_path / "hooks"))
    mirror = world.mirrors.of(Place("file", "", str(world.repository.path)))
    hooks = [tmp_path / "hooks", world.repository.path / "hooks", mirror.path / "hooks"]
    for directory in hooks:
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("reference-transaction", "post-checkout", "pre-auto-gc", "post-update"):
            (directory / name).unlink(missing_ok=True)
            (directory / name).symlink_to(program)
    await world.update(mirror)
    with world.git() as git, world.mirrors.scratch() as scratch:
        await mirror.export(git, Wanted(1, frozenset({"HEAD"})), scratch)
    assert has(mirror.path, world.repository.id())
    assert not owned.exists()
    # The trap works: the mirror's hooks are run by a git that is not told otherwise.
    run_git("-C", mirror.path, "update-ref", "refs/heads/trap", world.repository.id())
    assert owned.exists()


@pytest_twisted.ensureDeferred
async def test_an_object_that_attacks_git_is_refused(world: World) -> None:
    path = world.repository.path
    blob = world.repository.git("rev-parse", "main:README")
    tree = b"100644 .git\0" + bytes.fromhex(blob)
    made = subprocess.run(
        ["git", "-C", str(path), "hash-object", "-t", "tree", "-w", "--literally", "--stdin"],
        input=tree, capture_output=True, check=True,
    )  # fmt: skip
    who = {f"GIT_{role}_{what}": "x@y" for role in ("AUTHOR", "COMMITTER")
           for what in ("NAME", "EMAIL")}  # fmt: skip
    tree_id = made.stdout.decode().strip()
    bad = run_git("-C", path, "commit-tree", tree_id, "-m", "bad", **who)
    world.repository.ref("refs/heads/bad", bad)
    with pytest.raises(SourceFailed, match="hasDotgit"):
        await world.update()
    assert not has(world.mirror.path, bad)


@pytest_twisted.ensureDeferred
async def test_a_giant_gitmodules_is_refused(world: World) -> None:
    commit = world.repository.commit({".gitmodules": "#" * 300_000})
    await world.update()
    with world.git() as git, pytest.raises(SourceFailed, match="more than 262144 bytes"):
        await submodules_of(git, world.mirror, commit)


@pytest_twisted.ensureDeferred
async def test_submodules_are_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert submodules.MOST == 256
    inner = Repository(world.root / "inner.git")
    link = Submodule("../inner.git", inner.commit({"f": "x"}))
    commit = world.repository.commit({f"s{number}": link for number in range(257)})
    await world.update()
    written = read(world.server.url(world.repository))
    policy = SandboxPolicy("x", sources=["http://127.0.0.1:*/*"])
    sources = Sources(_WithReactor(), policy, lambda: world.mirrors)
    with world.git() as git:
        root = _Placed("", written, world.mirror, commit)
        with pytest.raises(SourceRefused, match="more than 256 submodules"):
            await sources._placed(git, _Step(), root, unheard)


class _WithReactor:
    reactor = reactor


class _Step:
    master = None


@pytest_twisted.ensureDeferred
async def test_gits_words_do_not_tell_where_the_master_is(world: World) -> None:
    await world.update()
    with world.git() as git, pytest.raises(SourceFailed) as caught:
        await git.run("ls-tree", "main", "--", "../../up", directory=world.mirror.path)
    assert world.mirror.path.name in str(caught.value)
    assert str(world.basedir) not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_a_submodule_without_a_commit_is_none(world: World) -> None:
    lies = '[submodule "a"]\n\tpath = ../../up\n\turl = ../x\n[submodule "b"]\n\tpath = README\n'
    commit = world.repository.commit({".gitmodules": lies + "\turl = ../x\n"})
    await world.update()
    with world.git() as git:
        assert await submodules_of(git, world.mirror, commit) == []


# ---- what goes into a sandbox --------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_an_export_has_what_can_be_reached_and_nothing_else(world: World) -> None:
    gone = world.repository.commit({"secret": "pushed by mistake\n"}, on="oops")
    await world.update()
    world.repository.delete("refs/heads/oops")
    await world.update()
    assert has(world.mirror.path, gone)
    with world.git() as git, world.mirrors.scratch() as scratch:
        await world.mirror.export(git, Wanted(), scratch)
        assert not has(scratch, gone)
        assert has(scratch, world.repository.id())
        assert run_git("-C", scratch, "fsck", "--strict") == ""
        assert run_git("-C", scratch, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
        text = "".join(file.read_text() for file in scratch.iterdir() if file.is_file())
        assert str(world.basedir) not in text
    assert list(world.mirrors.root.glob("export-*")) == []


@pytest.mark.parametrize("depth", [1, 2])
@pytest_twisted.ensureDeferred
async def test_a_shallow_export_is_shallow(world: World, depth: int) -> None:
    for number in range(3):
        world.repository.commit({"README": f"{number}\n"})
    await world.update()
    with world.git() as git, world.mirrors.scratch() as scratch:
        await world.mirror.export(git, Wanted(depth, frozenset({"HEAD"})), scratch)
        assert run_git("-C", scratch, "rev-list", "--count", "main") == str(depth)
        assert not has(scratch, world.repository.id("main~2"))
        assert (scratch / "shallow").exists()
