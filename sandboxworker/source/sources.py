"""What the source steps of one sandbox's build ask for, and what was put there for them."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
from buildbot.steps.source.base import Source
from buildbot.util.git import GitStepMixin

from sandboxworker.errors import SourceFailed, SourceRefused
from sandboxworker.policy import SandboxPolicy, show_size
from sandboxworker.sandbox import Sandbox
from sandboxworker.source.access import Access, access_of
from sandboxworker.source.archive import Patch, archive_of, describe
from sandboxworker.source.configured import is_configured
from sandboxworker.source.delivery import deliver, packed
from sandboxworker.source.git import Git, Limits, prepared
from sandboxworker.source.gitargs import GitCommand, parse
from sandboxworker.source.mirror import Mirror, Mirrors, Update, Wanted, is_object
from sandboxworker.source.request import Request, placing, request_of
from sandboxworker.source.submodules import MOST, Submodule, submodules_of
from sandboxworker.source.urls import Written, is_allowed, is_inside, read, submodule_url

#: In the workspace: where git inside finds what was sent.
_DEPOTS = ".sandboxworker/source"

#: The command of `SandboxGit`, which no other worker has.
PLACE_SOURCE = "sandboxSource"

#: Where other source steps keep what names their repository.
_REPOSITORY_ATTRIBUTES = ("repourl", "baseURL", "cvsroot", "p4port", "manifestURL")

#: What they begin with when it is inside, beside paths: CVS's and Perforce's own ways.
_INSIDE = (":local:", ":fork:", "rsh:")

Tell = Callable[[str], None]


@attrs.frozen
class _Depot:
    """What lies in the sandbox for one URL: brought for which step, and what of it."""

    url: str
    path: str
    step: Any
    wanted: Wanted

    def covers(self, step: Any, wanted: Wanted) -> bool:
        """A later step asks the server anew, as it would on any worker."""
        mine = self.wanted
        return (
            self.step is step
            and mine.depth == wanted.depth
            and wanted.refs <= mine.refs
            and wanted.commits <= mine.commits
        )


@attrs.frozen
class _Placed:
    """A commit of a repository, and the path that it has in the tree."""

    path: str
    written: Written
    mirror: Mirror
    commit: str


def _by_url(placed: Iterable[_Placed]) -> Iterable[list[_Placed]]:
    together: defaultdict[str, list[_Placed]] = defaultdict(list)
    for each in placed:
        together[each.written.clean].append(each)
    return together.values()


@attrs.define
class Sources:
    """The repositories in one sandbox.

    ``mirrors``: the master's; asked for when the first source step comes.
    """

    sandbox: Sandbox
    policy: SandboxPolicy
    mirrors: Callable[[], Mirrors]
    _depots: dict[str, _Depot] = attrs.Factory(dict)

    async def arguments(
        self, step: Any, command: str, args: dict[str, Any], tell: Tell
    ) -> dict[str, Any]:
        """A command's arguments as the sandbox gets them, what it reads being there by then.

        Raises `SourceRefused` for what may not be had, `SourceFailed` for what could not be had.
        """
        if command != "shell" or not isinstance(step, (Source, GitStepMixin)):
            return args
        if not isinstance(step, GitStepMixin):
            _require_inside(step)
            return args
        git = parse(args.get("command"))
        if git is None:
            return args
        if git.name == "push":
            raise SourceRefused(
                _shown(step), "a sandbox cannot push: it has no network", _PUSH_ELSEWHERE
            )
        if git.asks_server:
            await self._bring(step, request_of(step, git), tell)
        elif git.updates_submodules:
            await self._bring_submodules(step, git, tell)
        return self._led(step, args)

    # the step's own repository

    async def _bring(self, step: Any, request: Request, tell: Tell) -> None:
        if (written := self._mirrored(step, request.url)) is None:
            return
        depot = self._depots.get(written.clean)
        if depot is not None and depot.covers(step, request.wanted):
            return
        mirror = await self._updated(step, written, request.special, tell)
        with self._git() as git:
            await self._require_names(step, written, mirror, git, request, tell)
            await self._deliver(git, mirror, written, step, request.wanted, tell)

    def _mirrored(self, step: Any, url: str) -> Written | None:
        """The URL taken apart; None for a place inside the sandbox, which is git's own affair."""
        listed = self.policy.sources
        if is_inside(url):
            if listed is None or not url.startswith(("/", "file:///")):
                return None
            written = read(url)
            return written if is_allowed(written.repository, listed) else None
        written = read(url)
        if listed is None and not is_configured(step, written.repository):
            raise _not_listed(written, "it does not stand in the configuration as it is, and ")
        if listed is not None and not is_allowed(written.repository, listed):
            raise _not_listed(written)
        return written

    async def _updated(
        self, step: Any, written: Written, refs: frozenset[str], tell: Tell
    ) -> Mirror:
        mirror = self.mirrors().of(written.repository)
        is_own = self.policy.sources is not None
        if mirror.stand_in is None:
            access = await access_of(step, written, is_own=is_own)
        else:
            access = Access()
        tell(f"sandboxworker: the master fetches {written.clean}")
        await mirror.update(Update(access, self._limits, refs), _sometimes(self.sandbox, tell))
        return mirror

    async def _require_names(
        self, step: Any, written: Written, mirror: Mirror, git: Git, request: Request, tell: Tell
    ) -> None:
        """A short name may stand for a ref that is neither branch nor tag: ``pull/7/head``.

        One that is not there either is told by git inside, in the words that people know.
        """
        short = {name for name in request.names if not name.startswith("refs/")} - {"HEAD"}
        missing = {name for name in short if await mirror.commit(git, name) is None}
        missing = {f"refs/{name}" for name in missing if not is_object(name)}
        if missing:
            try:
                await self._updated(step, written, request.special | missing, tell)
            except SourceFailed as error:
                tell(f"sandboxworker: {error}")

    # submodules

    async def _bring_submodules(self, step: Any, command: GitCommand, tell: Tell) -> None:
        if (written := self._mirrored(step, str(step.repourl))) is None:
            return
        mirror = self.mirrors().of(written.repository)
        newest = "--remote" in command.arguments
        with self._git() as git:
            commit = await mirror.commit(git, step.revision or step.branch)
            if commit is None:
                return  # git inside will say so, in the words that people know.
            found = await self._placed(
                git, step, _Placed("", written, mirror, commit), tell, newest
            )
            for inner, *others in _by_url(found):
                commits = frozenset(each.commit for each in (inner, *others))
                wanted = Wanted(None, commits=commits)
                await self._deliver(git, inner.mirror, inner.written, step, wanted, tell)

    async def _placed(
        self, git: Git, step: Any, root: _Placed, tell: Tell, newest: bool = False
    ) -> list[_Placed]:
        """Every submodule of a commit, and those of submodules, mirrored."""
        found: list[_Placed] = []
        todo = [root]
        while todo:
            parent = todo.pop(0)
            listed = await submodules_of(git, parent.mirror, parent.commit)
            if len(found) + len(listed) > MOST:
                url = root.written.clean
                raise SourceRefused(url, f"more than {MOST} submodules", "Use fewer")
            for submodule in listed:
                inner = self._submodule(parent, submodule)
                if inner is None:
                    continue
                found.append(inner)
                is_there = not newest and await inner.mirror.has(git, inner.commit)
                if is_there or await self._fetch_submodule(git, step, inner, tell):
                    todo.append(inner)
        return found

    def _submodule(self, parent: _Placed, submodule: Submodule) -> _Placed | None:
        written = self._listed(parent.written, submodule)
        if written is None:
            return None
        path = posixpath.join(parent.path, submodule.path)
        return _Placed(path, written, self.mirrors().of(written.repository), submodule.commit)

    def _listed(self, parent: Written, submodule: Submodule) -> Written | None:
        """What a build's own files name is mirrored only if the operator lists it."""
        url = submodule_url(parent.clean, submodule.url)
        if is_inside(url) and not url.startswith(("/", "file:///")):
            return None
        written = read(url)
        if not is_allowed(written.repository, self.policy.sources or ()):
            raise _not_listed(written, f"the submodule {submodule.path!r} names it, and ")
        return written

    async def _fetch_submodule(self, git: Git, step: Any, inner: _Placed, tell: Tell) -> bool:
        """Whether its commit is there now."""
        await self._updated(step, inner.written, frozenset(), tell)
        if await inner.mirror.has(git, inner.commit):
            return True
        # On no branch: a server may give it nevertheless; else git inside will say so.
        try:
            await self._updated(step, inner.written, frozenset({inner.commit}), tell)
        except SourceFailed as error:
            tell(f"sandboxworker: {error}")
        return await inner.mirror.has(git, inner.commit)

    # for images without git

    async def place(
        self, step: Any, directory: str, args: Mapping[str, Any], tell: Tell
    ) -> dict[str, Any]:
        """Make ``directory`` the files of the commit that a `SandboxGit` step asks for.

        What the step learns: ``got_revision``, and ``description`` if it asked for one.
        """
        if (written := self._mirrored(step, str(step.repourl))) is None:
            raise SourceRefused(
                str(step.repourl), "it is a place inside the sandbox", "Use the step Git"
            )
        request = placing(step, args)
        mirror = await self._updated(step, written, request.special, tell)
        with self._git() as git:
            await self._require_names(step, written, mirror, git, request, tell)
            name = args["revision"] or args["branch"]
            commit = await mirror.commit(git, name)
            if commit is None:
                raise SourceFailed(written.clean, f"it has no branch, tag or commit {name!r}")
            root = _Placed("", written, mirror, commit)
            await self._unpack(git, root, directory, args["patch"], tell)
            for inner in await self._placed(git, step, root, tell) if args["submodules"] else ():
                await self._unpack(git, inner, posixpath.join(directory, inner.path), None, tell)
            description = await describe(git, mirror, commit, args["describe"])
        return {"got_revision": commit, "description": description}

    async def _unpack(
        self, git: Git, placed: _Placed, directory: str, patch: Patch | None, tell: Tell
    ) -> None:
        with self.mirrors().scratch() as scratch:
            archive = scratch / "files.tar"
            await archive_of(git, placed.mirror, placed.commit, patch, archive)
            size = await deliver(self.sandbox, archive, directory)
        tell(f"sandboxworker: put {show_size(size)} of {placed.commit} into {directory}")

    # into the sandbox

    async def _deliver(
        self, git: Git, mirror: Mirror, written: Written, step: Any, wanted: Wanted, tell: Tell
    ) -> None:
        workspace = self.sandbox.spec.workspace
        path = posixpath.join(workspace, _DEPOTS, written.repository.directory)
        commits = frozenset([each for each in wanted.commits if await mirror.has(git, each)])
        with self.mirrors().scratch() as scratch:
            depot = scratch / "depot"
            depot.mkdir()
            await mirror.export(git, attrs.evolve(wanted, commits=commits), depot)
            size = await deliver(self.sandbox, await packed(git.reactor, depot), path)
        self._depots[written.clean] = _Depot(written.clean, path, step, wanted)
        tell(f"sandboxworker: put {show_size(size)} of it into the sandbox")

    def _led(self, step: Any, args: dict[str, Any]) -> dict[str, Any]:
        """git's settings lead each URL to its depot; a credential in the URL stays here."""
        clean = self._cleaned(step, args)
        environ = dict(clean.get("env") or {})
        if not self._depots:
            return clean
        settings = [
            ("protocol.file.allow", "always"),
            *((f"url.file://{depot.path}.insteadOf", depot.url) for depot in self._depots.values()),
        ]
        first = int(environ.get("GIT_CONFIG_COUNT") or 0)
        for number, (name, value) in enumerate(settings, first):
            environ[f"GIT_CONFIG_KEY_{number}"] = name
            environ[f"GIT_CONFIG_VALUE_{number}"] = value
        environ["GIT_CONFIG_COUNT"] = str(first + len(settings))
        return {**clean, "env": environ}

    def _cleaned(self, step: Any, args: dict[str, Any]) -> dict[str, Any]:
        """The command with the URL as git inside is to have it."""
        text = str(getattr(step, "repourl", "") or "")
        if is_inside(text) and f"file://{text}" not in self._depots:
            return args
        clean = read(text).clean
        command = [word.replace(text, clean) if text != clean else word for word in args["command"]]
        return {**args, "command": command}

    # how

    @property
    def _limits(self) -> Limits:
        return Limits(self.policy.max_runtime, self.policy.max_source)

    @contextmanager
    def _git(self) -> Iterator[Git]:
        mirrors = self.mirrors()
        with prepared(mirrors.reactor, mirrors.root, self._limits) as git:
            yield git


_PUSH_ELSEWHERE = "Push from a builder of trusted code on a worker with a network"


def _not_listed(written: Written, why: str = "") -> SourceRefused:
    return SourceRefused(
        written.clean,
        f"{why}the policy's sources do not list it",
        f"To allow it: SandboxPolicy(..., sources=[{written.repository.url!r}, ...])",
    )


def _require_inside(step: Any) -> None:
    """Other systems than git work on a repository that is in the sandbox already."""
    named = [getattr(step, name, None) for name in _REPOSITORY_ATTRIBUTES]
    places = [str(place) for place in named if place]
    if places and all(is_inside(place) or place.startswith(_INSIDE) for place in places):
        return
    raise SourceRefused(
        ", ".join(places) or type(step).__name__,
        f"a sandbox has no network, and the master mirrors git repositories only, "
        f"not those of {type(step).__name__}",
        "Use a git repository, bring the files with FileDownload, "
        "or name a repository inside the sandbox by its path",
    )


def _shown(step: Any) -> str:
    try:
        return read(str(step.repourl)).clean
    except SourceRefused:
        return "repository"


def _sometimes(sandbox: Sandbox, tell: Tell, seconds: float = 10) -> Tell:
    """Progress is worth a line now and then."""
    told = sandbox.reactor.seconds()

    def maybe(line: str) -> None:
        nonlocal told
        if sandbox.reactor.seconds() - told >= seconds:
            told = sandbox.reactor.seconds()
            tell(f"sandboxworker: {line}")

    return maybe
