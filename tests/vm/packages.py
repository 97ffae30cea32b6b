"""What the machine's system is made of, and the digests by which it is kept.

Reads and decides; `disks` carries it out.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
INSIDE = HERE / "inside"

SUITE = "bookworm"
VARIANT = "apt"
#: Debian 12's Python, for which wheels are fetched.
PYTHON = "3.11"
#: Newest first is not needed: pip knows the order of these names.
_PLATFORMS = (
    "manylinux2014_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_34_x86_64",
)
#: Kernel and programs for the boot; engines and runtimes; what the tests call.
PACKAGES = (
    *("linux-image-amd64", "busybox-static", "kmod", "mount", "procps", "iproute2"),
    *("docker.io", "crun", "podman", "apparmor", "iptables", "xfsprogs", "e2fsprogs"),
    *("python3", "python3-venv", "ca-certificates"),
    *("git", "openssh-client", "openssh-server", "gnupg", "pass"),
)
_LEFT_OUT = ("doc", "man", "locale", "info")


@attrs.frozen
class System:
    """As much as `sandboxworker.images.mmdebstrap_command` wants to know of a recipe."""

    suite: str = SUITE
    variant: str = VARIANT
    packages: tuple[str, ...] = PACKAGES


def requirements(project: Path = PROJECT) -> list[str]:
    """What the project and its tests need of Python packages."""
    with (project / "pyproject.toml").open("rb") as file:
        about: dict[str, Any] = tomllib.load(file)["project"]
    return [*about["dependencies"], *_extra(about, "test")]


def _extra(about: Mapping[str, Any], name: str) -> Iterator[str]:
    """An extra's packages, and those of the project's other extras that it names."""
    own = re.compile(rf"{re.escape(about['name'])}\[(\w+)\]")
    for wanted in about["optional-dependencies"][name]:
        match = own.fullmatch(wanted)
        if match:
            yield from _extra(about, match[1])
        else:
            yield wanted


def download_command(python: str, folder: Path, wanted: Iterable[str]) -> list[str]:
    """Fetch wheels for the machine's Python, whichever Python this one is."""
    return [
        *(python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"),
        *(f"--platform={name}" for name in _PLATFORMS),
        f"--dest={folder}",
        *wanted,
    ]


def without_documents() -> list[str]:
    """Options of mmdebstrap that leave manuals and translations out."""
    return [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT]


def digest(*parts: str | Path) -> str:
    """Names these words and these files' contents."""
    total = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()[:16]


def system_digest() -> str:
    """Of all that the root file system is made from."""
    files = [HERE / "packages.py", HERE / "disks.py", HERE / "initrd.py", INSIDE / "initrd-init"]
    return digest(*requirements(), *files)


def is_possible() -> bool:
    """Whether this processor is the one that the machine is made for."""
    return platform.machine() == "x86_64"
