"""A real C project as a git repository, and the two pull requests that the demo submits to it.

The project is Zstandard, from the source package of the Debian release that this machine runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

SOURCE_PACKAGE = "libzstd"
HERE = Path(__file__).resolve().parent
APT_SOURCES = Path("/etc/apt")

#: GNU make prefers this file to the project's own Makefile, whose defaults build far more.
GNUMAKEFILE = """\
# What the build of every pull request runs.
.PHONY: build check

build:
\t$(MAKE) -f Makefile zstd
\t$(MAKE) -C tests datagen

check:
\tcd tests && ZSTD_BIN=../programs/zstd DATAGEN_BIN=./datagen ./playTests.sh
"""

#: What the honest pull request changes: two slips in the text of ``zstd --help``.
SLIPS = {"printing ouput": "printing output", "passed-through through": "passed through"}


class DemoError(Exception):
    """The demo cannot go on; the text says why and what to do."""


# ---- the source package --------------------------------------------------------------------------


def fetch_source(cache: Path) -> Path:
    """The project's original source archive, as its Debian source package has it."""
    cache.mkdir(parents=True, exist_ok=True)
    if not _archives(cache):
        if shutil.which("apt-get") is None:
            raise DemoError(
                f"There is no apt-get to fetch the source package {SOURCE_PACKAGE} with: "
                f"put its .orig.tar archive into {cache} yourself."
            )
        _download(cache)
    return _archives(cache)[0]


def _archives(cache: Path) -> list[Path]:
    """The signature beside an archive is none."""
    return [path for path in sorted(cache.glob("*.orig.tar.*")) if path.suffix != ".asc"]


def _download(cache: Path) -> None:
    """Fetch into a directory of its own first: what is in the cache is whole."""
    with tempfile.TemporaryDirectory(prefix="sandboxworker-apt-") as private:
        environ = _private_apt(Path(private))
        downloads = Path(private, "downloads")
        downloads.mkdir()
        tried = [_apt(environ, "update")]
        for package in _versions(environ):
            tried.append(_apt(environ, "source", "--download-only", package, cwd=downloads))
            if _archives(downloads):
                break
        else:
            raise DemoError(
                f"apt cannot fetch the source package {SOURCE_PACKAGE}:\n" + _complaints(*tried)
            )
        for path in downloads.iterdir():
            shutil.move(path, cache / path.name)


def _versions(environ: dict[str, str]) -> list[str]:
    """What to ask apt for, one after the other: a mirror may list more than it has."""
    shown = subprocess.run(
        ["apt-cache", "showsrc", "--only-source", SOURCE_PACKAGE],
        env=environ, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    versions = re.findall(r"^Version: (\S+)$", shown, re.MULTILINE)
    return [f"{SOURCE_PACKAGE}={version}" for version in versions] or [SOURCE_PACKAGE]


def _private_apt(directory: Path) -> dict[str, str]:
    """An apt that knows this machine's archives by their sources, and leaves its state alone."""
    for name in ("parts", "state/lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True)
    (directory / "state/status").touch()
    for number, (suffix, text) in enumerate(_source_entries()):
        (directory / f"parts/{number}{suffix}").write_text(text)
    config = directory / "apt.conf"
    config.write_text(
        f'Dir::Etc::sourcelist "/dev/null";\n'
        f'Dir::Etc::sourceparts "{directory}/parts";\n'
        f'Dir::State "{directory}/state";\n'
        f'Dir::State::status "{directory}/state/status";\n'
        f'Dir::Cache "{directory}/cache";\n'
        f'APT::Sandbox::User "root";\n'
    )
    return {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C"}


def _source_entries() -> Iterator[tuple[str, str]]:
    """The machine's own apt entries, turned from binary packages to sources."""
    lists = [APT_SOURCES / "sources.list", *(APT_SOURCES / "sources.list.d").glob("*.list")]
    for path in filter(Path.is_file, lists):
        lines = path.read_text().splitlines()
        wanted = ["deb-src" + line[3:] for line in lines if line.startswith(("deb ", "deb\t"))]
        yield ".list", "\n".join([*wanted, ""])
    for path in (APT_SOURCES / "sources.list.d").glob("*.sources"):
        lines = path.read_text().splitlines()
        yield (
            ".sources",
            "\n".join("Types: deb-src" if _is_types(line) else line for line in lines) + "\n",
        )


def _is_types(line: str) -> bool:
    return line.lower().startswith("types:")


def _apt(
    environ: dict[str, str], *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["apt-get", "--quiet", *arguments],
        env=environ,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def _complaints(*runs: subprocess.CompletedProcess[str]) -> str:
    lines = (line for run in runs for line in run.stderr.splitlines())
    return "\n".join(f"  {line}" for line in lines if line.startswith(("E:", "W:")))


# ---- the repository ------------------------------------------------------------------------------


class Project:
    """A bare repository, and a work tree beside it that pull requests are made in."""

    def __init__(self, directory: Path) -> None:
        self.bare = directory / "project.git"
        self._tree = directory / "work"

    def create(self, source: Path) -> None:
        """The main branch: the source as it came, then what its builds run."""
        self._tree.mkdir(parents=True)
        _unpack(source, self._tree)
        self._git("init", "--quiet", "--initial-branch=main")
        self._git("init", "--quiet", "--bare", "--initial-branch=main", str(self.bare))
        self._commit(f"Import {source.name}")
        (self._tree / "GNUmakefile").write_text(GNUMAKEFILE)
        self._commit("Say what the build of a pull request runs")
        self._push("refs/heads/main")

    def submit(self, number: int, title: str, change: Callable[[Path], None]) -> str:
        """Push one commit as a pull request; returns its ref."""
        ref = f"refs/pull/{number}/head"
        self._git("checkout", "--quiet", "-B", f"pull-{number}", "main")
        change(self._tree)
        self._commit(title)
        self._push(ref)
        return ref

    def _commit(self, title: str) -> None:
        self._git("add", "--all", "--force")
        self._git("commit", "--quiet", "--message", title)

    def _push(self, ref: str) -> None:
        self._git("push", "--quiet", str(self.bare), f"HEAD:{ref}")

    def _git(self, *arguments: str) -> None:
        """Run git as nobody in particular, whatever the user's own git is told to do."""
        run = subprocess.run(
            ["git", *arguments],
            cwd=self._tree,
            env={**_clean_environ(), **_NOBODY},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            raise DemoError(f"git {arguments[0]} failed: {run.stderr.strip()}")


_NOBODY = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "A Contributor",
    "GIT_AUTHOR_EMAIL": "contributor@example.org",
    "GIT_COMMITTER_NAME": "A Contributor",
    "GIT_COMMITTER_EMAIL": "contributor@example.org",
}


def _clean_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def _unpack(source: Path, into: Path) -> None:
    """Unpack without the archive's single top directory."""
    with tempfile.TemporaryDirectory(dir=into.parent) as unpacked:
        with tarfile.open(source) as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(unpacked)
        [top] = Path(unpacked).iterdir()
        top.replace(into)


# ---- the two changes -----------------------------------------------------------------------------


def honest_change(tree: Path) -> None:
    """What most pull requests are: something small, made better."""
    path = tree / "programs/zstdcli.c"
    before = after = path.read_text()
    for slip, better in SLIPS.items():
        after = after.replace(slip, better)
    path.write_text(after if after != before else f"{before}\n/* Reviewed. */\n")


def hostile_change(tree: Path) -> None:
    """The same project, whose make tries to break out before it builds."""
    shutil.copytree(HERE / "hostile", tree / "hostile")
    (tree / "hostile/GNUmakefile").replace(tree / "GNUmakefile")
