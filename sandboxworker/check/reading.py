"""Reads a configuration in the way of a starting master."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from buildbot.config.errors import ConfigErrors
from buildbot.config.master import FileLoader
from buildbot.scripts.base import getConfigFileFromTac

from sandboxworker.check.configuration import Configuration
from sandboxworker.errors import SandboxworkerError


class ConfigurationRefused(SandboxworkerError):
    """Buildbot would not start with it either; carries its sentences."""

    def __init__(self, file: Path, faults: list[str]) -> None:
        self.faults = tuple(faults)
        super().__init__(
            f"{file} is refused by Buildbot",
            details="; ".join(" ".join(fault.split()) for fault in faults),
            resolution="'buildbot checkconfig' tells the same",
        )


def read(path: Path) -> Configuration:
    """Load a ``master.cfg``, or that of a master's directory, by running it as Buildbot does.

    What it prints goes to stderr. Raises `SandboxworkerError`.
    """
    file = _file(path)
    before = set(sys.modules)
    try:
        with _as_the_master(file.parent):
            master = FileLoader(str(file.parent), file.name).loadConfig()
            sources = (file, *_imported(file.parent, before))
    except ConfigErrors as error:
        raise ConfigurationRefused(file, error.errors) from None
    except SystemExit as error:
        raise ConfigurationRefused(file, [f"it ended the program: {error}"]) from None
    return Configuration(master, file, sources)


def _file(path: Path) -> Path:
    if path.is_dir():
        name = getConfigFileFromTac(str(path), quiet=True) or "master.cfg"
        path = path / name
    if not path.is_file():
        raise SandboxworkerError(
            f"there is no configuration {path}",
            resolution="Name a master.cfg, or a master's directory",
        )
    return path.resolve()


@contextlib.contextmanager
def _as_the_master(basedir: Path) -> Iterator[None]:
    """In its directory, as a running master is; what it imports from there is forgotten after."""
    former, path, modules = Path.cwd(), sys.path[:], set(sys.modules)
    os.chdir(basedir)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.chdir(former)
        sys.path[:] = path
        for name in _modules_from(basedir, modules):
            del sys.modules[name]


def _imported(basedir: Path, before: set[str]) -> Iterator[Path]:
    """The modules beside it that it has imported."""
    for name in _modules_from(basedir, before):
        yield Path(str(sys.modules[name].__file__)).resolve()


def _modules_from(basedir: Path, before: set[str]) -> list[str]:
    """The names of new modules whose files lie in a directory."""
    new = {name: getattr(sys.modules[name], "__file__", None) for name in set(sys.modules) - before}
    return sorted(
        name for name, file in new.items() if file and Path(file).resolve().parent == basedir
    )
