"""The images that this project makes: their recipes, and what an image must not contain.

Reads and decides; `sandboxworker.cli.build_image` carries it out.
A recipe is a folder below ``images/`` with a ``recipe.toml``; ``harden.sh`` beside the folders
is part of every recipe.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "_images"
RECIPE_LABEL = "sandboxworker.recipe"
USER = "20000:20000"
COMMAND = '["/bin/sh"]'
# Every file gets this time, so that the same packages make the same image.
EPOCH = 1_700_000_000

_HARDEN = "harden.sh"
_CUSTOMIZE = "customize.sh"
_NOT_PART = {"README.md"}
_APT_OPTIONS = re.compile(
    r'^(Acquire::(?:https?::(?:Proxy|CAInfo)|Check-Valid-Until|Check-Date) ".+");$', re.MULTILINE
)
_CAPABILITY = "SCHILY.xattr.security.capability"
_SET_ID_BITS = 0o6000


@attrs.frozen
class Recipe:
    """How one image is made: what is in its ``recipe.toml``, and where that is.

    ``on_request``: it is so large that it is made only where it is asked for by name.
    """

    name: str
    folder: Path
    tag: str
    description: str
    suite: str
    variant: str
    packages: tuple[str, ...]
    environment: tuple[str, ...] = ()
    on_request: bool = False

    @property
    def scripts(self) -> tuple[Path, ...]:
        """Run over the unpacked tree in this order: the image's own, then what all get."""
        own = self.folder / _CUSTOMIZE
        return (*([own] if own.is_file() else []), self.folder.parent / _HARDEN)

    @property
    def dockerfile(self) -> Path:
        """The same image for where a registry is reachable; its context is the folder above."""
        return self.folder / "Dockerfile"

    def digest(self) -> str:
        """Names the recipe's files as they are now, so that a change makes the image anew."""
        files = [path for path in self.folder.iterdir() if _is_part(path)]
        files.append(self.folder.parent / _HARDEN)
        total = hashlib.sha256()
        for path in sorted(files, key=lambda path: path.name):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.name} {content}\n".encode())
        return f"sha256:{total.hexdigest()}"

    def labels(self) -> dict[str, str]:
        """By this a later run knows that nothing is to be done."""
        return {RECIPE_LABEL: self.digest()}

    def configuration(self) -> list[str]:
        """The image's settings, as the Dockerfile instructions that an import takes."""
        labels = [f"LABEL {key}={value}" for key, value in self.labels().items()]
        return [*_env(self.environment), f"USER {USER}", f"CMD {COMMAND}", *labels]


def _is_part(path: Path) -> bool:
    return path.is_file() and path.name not in _NOT_PART and not path.name.startswith(".")


def _env(environment: Iterable[str]) -> list[str]:
    return [f"ENV {assignment}" for assignment in environment]


def load(folder: Path) -> Recipe:
    """The recipe in a folder; a fault in it is ours, not an operator's, and raises as it is."""
    fields: dict[str, Any] = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    return Recipe(name=folder.name, folder=folder, **{**fields, **lists})


def recipes(folder: Path = RECIPES) -> dict[str, Recipe]:
    """Every recipe there is, by name."""
    found = sorted(folder.glob("*/recipe.toml"))
    return {path.parent.name: load(path.parent) for path in found}


# ---- making one from Debian's packages ----------------------------------------------------

INDEX_TARGETS = (
    "apt-get",
    "indextargets",
    "--format",
    "$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)|$(RELEASE)",
    "Created-By: Packages",
)
APT_CONFIGURATION = ("apt-config", "dump")


def debian_sources(index_targets: str, suite: str) -> tuple[str, ...]:
    """The machine's own sources for that suite of Debian, from the output of `INDEX_TARGETS`.

    Mirrors and snapshots that the machine was set up with go on working that way.
    Empty where it has none (another suite, or its lists were never fetched): mmdebstrap then
    takes its default mirror.
    """
    lines = [line.split("|") for line in index_targets.splitlines() if line.count("|") == 4]
    return tuple(
        dict.fromkeys(
            f"deb {uri} {release} {component}"
            for origin, codename, component, uri, release in lines
            if origin == "Debian" and component == "main" and _is_of_suite(codename, suite)
        )
    )


def _is_of_suite(codename: str, suite: str) -> bool:
    return codename in {suite, f"{suite}-updates", f"{suite}-security"}


def apt_options(apt_configuration: str) -> tuple[str, ...]:
    """The machine's proxy and date settings, from the output of `APT_CONFIGURATION`."""
    return tuple(_APT_OPTIONS.findall(apt_configuration))


def mmdebstrap_command(
    recipe: Recipe, tree: Path, sources: Sequence[str], options: Sequence[str]
) -> list[str]:
    """Unpacks (and for most variants installs) the recipe's packages into a new tree."""
    return [
        "mmdebstrap",
        "--mode=root",
        "--format=directory",
        f"--variant={recipe.variant}",
        f"--include={','.join(recipe.packages)}",
        *(f"--aptopt={option}" for option in options),
        recipe.suite,
        str(tree),
        *sources,
    ]


def tar_command(tree: Path, archive: Path) -> list[str]:
    """Packs a tree without devices, sockets of the moment, times or extended attributes."""
    return [
        "tar",
        "--create",
        f"--file={archive}",
        f"--directory={tree}",
        "--exclude=./dev/*",
        "--numeric-owner",
        "--sort=name",
        f"--mtime=@{EPOCH}",
        "--format=gnu",
        ".",
    ]


def archive_faults(archive: tarfile.TarFile) -> list[str]:
    """What a build could try to gain privileges with; an image of ours has none of it."""
    return [f"{member.name}: {fault}" for member in archive if (fault := _fault(member))]


def _fault(member: tarfile.TarInfo) -> str:
    if member.mode & _SET_ID_BITS and not member.issym():
        return f"set-uid or set-gid bit (mode {member.mode:o})"
    if member.ischr() or member.isblk():
        return "device"
    if _CAPABILITY in member.pax_headers:
        return "file capabilities"
    return ""
