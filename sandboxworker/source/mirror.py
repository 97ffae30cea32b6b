"""Bare mirrors of repositories, under the master's directory."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import defer

from sandboxworker.errors import SourceFailed
from sandboxworker.shared import follow
from sandboxworker.source.access import Access
from sandboxworker.source.git import Git, Limits, prepared
from sandboxworker.source.urls import Repository
from sandboxworker.unexpected import unexpected

#: In the master's directory.
DIRECTORY = "sandboxworker-mirrors"

_OBJECT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
#: git-check-ref-format's rules, and somewhat stricter: this text may come from a change.
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@#=,/-]*", re.ASCII)
_NEVER_IN_REF = re.compile(r"\.\.|//|/\.|@\{|\.lock(/|$)|[/.]$")
_ALWAYS = ("refs/heads/", "refs/tags/")
#: Where commits are kept that were asked for by their names alone.
_COMMITS = "refs/sandboxworker/"

#: Of a fetch or a tidying that was killed.
_LEFT = (
    *("*.lock", "refs/**/*.lock"),
    *("objects/pack/tmp_*", "objects/pack/.tmp-*", "objects/tmp_objdir*"),
)

#: An archive is what a checkout would be, whatever a project keeps out of its releases.
_ATTRIBUTES = "* -export-ignore -export-subst\n"

#: What the sandbox's git may ask of what it is given.
_DEPOT_SETTINGS = """\
[core]
\trepositoryformatversion = 0
\tbare = true
[uploadpack]
\tallowAnySHA1InWant = true
\tallowFilter = true
"""


def is_ref(name: str) -> bool:
    """Whether a branch, a tag or a full ref's name is safe to give to git."""
    return bool(_REF.fullmatch(name)) and not _NEVER_IN_REF.search(name)


def is_object(name: str) -> bool:
    """Whether it is a commit's full name."""
    return bool(_OBJECT.fullmatch(name))


@attrs.frozen
class Update:
    """What a mirror shall have, and with what to ask for it.

    ``refs``: full names of refs beyond the branches and tags, and names of commits.
    """

    access: Access
    limits: Limits
    refs: frozenset[str] = frozenset()


@attrs.frozen
class Wanted:
    """What of a mirror goes into a sandbox.

    ``depth``: None for every branch and tag with its history, else how many commits of ``refs``
    (``HEAD``, branches, tags or full names); ``refs`` and ``commits`` go along in any case.
    """

    depth: int | None = None
    refs: frozenset[str] = frozenset()
    commits: frozenset[str] = frozenset()


class Mirror:
    """One repository's mirror. It is fetched by one at a time; read by any number.

    ``stand_in``: a repository on this disk that is fetched in its place; nobody logs in to that.
    """

    def __init__(
        self, reactor: Any, root: Path, repository: Repository, stand_in: Path | None = None
    ) -> None:
        self.repository = repository
        self.stand_in = stand_in
        self.path = root / repository.directory
        self._root = root
        self._reactor = reactor
        self._fetching = defer.DeferredLock()
        self._next: dict[Update, defer.Deferred[Exception | None]] = {}
        self._is_swept = False

    # from the server

    def update(self, update: Update, told: Callable[[str], None]) -> defer.Deferred[None]:
        """Fetch what is new; one fetch serves all who asked before it began.

        Who stops waiting stops nothing: the next build needs it as well.
        Raises `SourceFailed`, in git's words.
        """
        waiting = self._next.get(update)
        if waiting is None:
            waiting = defer.Deferred()
            self._next[update] = waiting
            fetching = defer.ensureDeferred(self._update(update, told))
            fetching.addErrback(unexpected(f"fetching {self.repository.url}"))
        return follow(waiting)

    async def _update(self, update: Update, told: Callable[[str], None]) -> None:
        async with self._fetching:
            waiting = self._next.pop(update)
            try:
                await self._fetch(update, told)
            except Exception as error:
                waiting.callback(error)
                if not isinstance(error, (SourceFailed, OSError)):
                    raise
                return
            waiting.callback(None)
            await self._tidy(update.limits)

    async def _fetch(self, update: Update, told: Callable[[str], None]) -> None:
        scheme = "file" if self.stand_in is not None else self.repository.scheme
        with prepared(self._reactor, self._root, update.limits, update.access, told, scheme) as git:
            await self._make(git)
            for credential in update.access.credentials:
                await git.run(
                    "credential", "approve", directory=self.path, stdin=credential.encode()
                )
            await self._set_head(git)
            await self._receive(git, update)
            await self._require_size(git, update.limits)

    async def _receive(self, git: Git, update: Update) -> None:
        try:
            await git.run(
                *("fetch", "--force", "--prune", "--no-tags", "--no-write-fetch-head"),
                *("--no-auto-maintenance", "--progress", "--", self._asked),
                *(f"+{prefix}*:{prefix}*" for prefix in _ALWAYS),
                *map(_refspec, sorted(update.refs)),
                directory=self.path,
            )
        except SourceFailed:
            # What index-pack was writing when the kernel ended it for its size.
            sizes = [file.stat().st_size for file in self.path.glob("objects/pack/tmp_pack_*")]
            self._sweep()
            if max(sizes, default=0) >= update.limits.largest_file:
                raise SourceFailed("git fetch", update.limits.passed) from None
            raise

    @property
    def _asked(self) -> str:
        repository = self.repository
        if self.stand_in is not None:
            return str(self.stand_in)
        return repository.path if repository.scheme == "file" else repository.url

    async def _make(self, git: Git) -> None:
        if not self._is_swept:
            self._sweep()
            self._is_swept = True
        if not (self.path / "HEAD").exists():
            await git.run(
                *("init", "--bare", "--quiet", "--template=", "--", str(self.path)),
                directory=self._root,
            )
            (self.path / "info").mkdir(exist_ok=True)
            (self.path / "info" / "attributes").write_text(_ATTRIBUTES)

    def _sweep(self) -> None:
        """What a fetch left behind whose master died; nobody else writes here."""
        for pattern in _LEFT:
            for left in self.path.glob(pattern):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    async def _set_head(self, git: Git) -> None:
        """As the server's: what a clone without a branch checks out."""
        answer = await git.run(
            "ls-remote", "--symref", "--", self._asked, "HEAD", directory=self.path
        )
        for line in answer.decode(errors="replace").splitlines():
            left, _, name = line.partition("\t")
            if name == "HEAD" and left.startswith("ref: refs/heads/") and is_ref(left[5:]):
                await git.run("symbolic-ref", "HEAD", left[5:], directory=self.path)
                return

    async def _require_size(self, git: Git, limits: Limits) -> None:
        """The kernel bounds each file while it is written; this is all of them together."""
        counted = (await git.run("count-objects", "-v", directory=self.path)).decode()
        sizes = dict(line.split(": ", 1) for line in counted.splitlines() if ": " in line)
        if (int(sizes["size"]) + int(sizes["size-pack"])) * 1024 > limits.size:
            raise SourceFailed("git fetch", limits.passed)

    async def _tidy(self, limits: Limits) -> None:
        """Join the packs of many fetches; git itself decides whether there are too many.

        No fetch goes on meanwhile: the leftovers of one that fails are swept.
        """
        with prepared(self._reactor, self._root, limits) as git:
            await git.attempt("gc", "--auto", "--quiet", directory=self.path)

    # what it has

    async def has(self, git: Git, commit: str) -> bool:
        """Whether it has a commit by that name."""
        if not is_object(commit) or not (self.path / "HEAD").exists():
            return False
        found = await git.attempt("cat-file", "-e", f"{commit}^{{commit}}", directory=self.path)
        return found is not None

    async def commit(self, git: Git, name: str) -> str | None:
        """The commit that a branch, tag, ref or commit name stands for, as a fetch of it would."""
        if name != "HEAD" and not is_ref(name):
            return None
        for candidate in (name,) if is_object(name) or name == "HEAD" else _candidates(name):
            found = await git.attempt(
                *(
                    "rev-parse",
                    "--verify",
                    "--quiet",
                    "--end-of-options",
                    f"{candidate}^{{commit}}",
                ),
                directory=self.path,
            )
            if found is not None:
                return found.decode().strip()
        return None

    async def refs(self, git: Git, *prefixes: str) -> dict[str, str]:
        """Its refs, by name."""
        listed = await git.run(
            "for-each-ref", "--format=%(objectname) %(refname)", *prefixes, directory=self.path
        )
        lines = (line.split(" ", 1) for line in listed.decode().splitlines())
        return {name: value for value, name in lines}

    # into a sandbox

    async def export(self, git: Git, wanted: Wanted, scratch: Path) -> None:
        """Make ``scratch`` a bare repository with what is wanted, and nothing else."""
        await git.run("init", "--bare", "--quiet", "--template=", str(scratch), directory=scratch)
        (scratch / "config").write_text(_DEPOT_SETTINGS)
        (scratch / "HEAD").write_bytes((self.path / "HEAD").read_bytes())
        if wanted.depth is None:
            await self._export_all(git, wanted, scratch)
        else:
            await self._export_shallow(git, wanted, scratch)

    async def _export_all(self, git: Git, wanted: Wanted, scratch: Path) -> None:
        refs = await self.refs(git, *_ALWAYS, *wanted.refs)
        refs.update({_kept_as(commit): commit for commit in wanted.commits})
        lines = (f"{value} {name}\n" for name, value in sorted(refs.items()))
        (scratch / "packed-refs").write_text("".join(lines))
        objects = "".join(f"{value}\n" for value in sorted(set(refs.values())))
        packs = scratch / "objects" / "pack"
        packs.mkdir(parents=True, exist_ok=True)
        await git.run(
            *("pack-objects", "--revs", "--delta-base-offset", "-q", str(packs / "pack")),
            directory=self.path,
            stdin=objects.encode(),
        )

    async def _export_shallow(self, git: Git, wanted: Wanted, scratch: Path) -> None:
        """git itself cuts a history off; here it fetches from the mirror, on the same disk."""
        known = await self.refs(git)
        found = [await self._full_name(git, name, known) for name in sorted(wanted.refs)]
        refspecs = [f"+{name}:{name}" for name in found if name is not None]
        refspecs += [f"+{commit}:{_kept_as(commit)}" for commit in sorted(wanted.commits)]
        if not refspecs:
            return
        local = attrs.evolve(git, protocols="file")
        await local.run(
            *("fetch", "--quiet", f"--depth={wanted.depth}", "--no-write-fetch-head"),
            *("--no-auto-maintenance", "--", f"file://{self.path}", *refspecs),
            directory=scratch,
        )

    async def _full_name(self, git: Git, name: str, known: Container[str]) -> str | None:
        if name == "HEAD":
            head = await git.attempt("symbolic-ref", "--quiet", "HEAD", directory=self.path)
            return None if head is None else head.decode().strip()
        return next((full for full in _candidates(name) if full in known), None)


def _candidates(name: str) -> Sequence[str]:
    """The refs that a name may stand for; git-rev-parse's order, for what a server has."""
    if name.startswith("refs/"):
        return (name,)
    return (f"refs/heads/{name}", f"refs/tags/{name}", f"refs/{name}")


def _kept_as(commit: str) -> str:
    return _COMMITS + commit


def _refspec(name: str) -> str:
    return f"+{name}:{_kept_as(name)}" if is_object(name) else f"+{name}:{name}"


class Mirrors:
    """All mirrors of one master."""

    def __init__(self, reactor: Any, basedir: Path) -> None:
        self.reactor = reactor
        self.root = basedir / DIRECTORY
        self._mirrors: dict[Repository, Mirror] = {}
        self.root.mkdir(mode=0o700, exist_ok=True)
        # What a master left that died; a living one's are made after this.
        for left in (*self.root.glob("home-*"), *self.root.glob("export-*")):
            shutil.rmtree(left, ignore_errors=True)

    def of(self, repository: Repository) -> Mirror:
        mirror = self._mirrors.get(repository)
        if mirror is None:
            mirror = Mirror(self.reactor, self.root, repository)
            self._mirrors[repository] = mirror
        return mirror

    def replace(self, repository: Repository, stand_in: Path) -> None:
        """From here on a repository is what lies at a place on this disk."""
        self._mirrors[repository] = Mirror(self.reactor, self.root, repository, stand_in)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory for what is on its way into a sandbox."""
        path = Path(tempfile.mkdtemp(prefix="export-", dir=self.root))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


_MIRRORS: dict[Path, Mirrors] = {}


def mirrors_of(master: Any) -> Mirrors:
    """A master's mirrors: one per process and directory, since they order who fetches."""
    basedir = Path(master.basedir).resolve()
    if basedir not in _MIRRORS:
        _MIRRORS[basedir] = Mirrors(master.reactor, basedir)
    return _MIRRORS[basedir]
