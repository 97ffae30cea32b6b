"""Carries out an image's recipe: from Debian's packages with mmdebstrap, or from a registry.

Blocking throughout; only the command line uses it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from sandboxworker import images
from sandboxworker.errors import SandboxworkerError
from sandboxworker.images import Recipe

_LAST_LINES = 8
_SECONDS_BETWEEN_SIGNS_OF_LIFE = 5.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FROM_PACKAGES, _FROM_REGISTRY, AUTO = "packages", "registry", "auto"
ORIGINS = (AUTO, _FROM_REGISTRY, _FROM_PACKAGES)


@attrs.define
class Progress:
    """Short lines with the time since the start; a talkative program gets one now and then."""

    write: Callable[[str], None]
    started: float = attrs.field(factory=time.monotonic)
    _last: float = 0.0

    def step(self, what: str) -> None:
        self._last = time.monotonic()
        self.write(f"    {self._last - self.started:4.0f}s  {what}")

    def sign_of_life(self, what: str) -> None:
        if what and time.monotonic() - self._last >= _SECONDS_BETWEEN_SIGNS_OF_LIFE:
            self.step(what[:100])


def choose_origin(wanted: str) -> str:
    """What ``auto`` means on this machine; refuses what cannot work on it."""
    has_mmdebstrap = shutil.which("mmdebstrap", path=_PATH) is not None
    is_root = os.geteuid() == 0
    if wanted == AUTO:
        return _FROM_PACKAGES if has_mmdebstrap and is_root else _FROM_REGISTRY
    if wanted == _FROM_PACKAGES and not has_mmdebstrap:
        raise SandboxworkerError(
            "mmdebstrap is not installed", resolution="apt-get install mmdebstrap"
        )
    if wanted == _FROM_PACKAGES and not is_root:
        raise SandboxworkerError(
            "only root can make an image from packages",
            resolution="Run it as root, or use --from registry",
        )
    return wanted


def build(client: Any, recipe: Recipe, origin: str, progress: Progress) -> None:
    """Makes the image on the engine behind ``client``, a ``docker.APIClient``."""
    if origin == _FROM_PACKAGES:
        _build_from_packages(client, recipe, progress)
    else:
        _build_from_registry(client, recipe, progress)


# ---- from packages --------------------------------------------------------------------------


def _build_from_packages(client: Any, recipe: Recipe, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix="sandboxworker-image-") as scratch:
        tree, archive = Path(scratch) / "tree", Path(scratch) / "image.tar"
        _make_tree(recipe, tree, progress)
        progress.step("packing")
        _run(images.tar_command(tree, archive), progress)
        _check(archive)
        progress.step(f"importing {archive.stat().st_size / 1e6:.0f} MB into the engine")
        _import(client, recipe, archive)


def _make_tree(recipe: Recipe, tree: Path, progress: Progress) -> None:
    sources = images.debian_sources(_output_of(images.INDEX_TARGETS), recipe.suite)
    options = images.apt_options(_output_of(images.APT_CONFIGURATION))
    progress.step(f"fetching {len(recipe.packages)} packages and what they need (mmdebstrap)")
    _run(images.mmdebstrap_command(recipe, tree, sources, options), progress)
    progress.step("removing manuals, set-uid bits and traces of this machine")
    for script in recipe.scripts:
        _run(["sh", str(script), str(tree)], progress)


def _output_of(command: Sequence[str]) -> str:
    """The output, or none where the program is missing or fails: then defaults do."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=False, env=_environment()
        )
    except OSError:
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _environment() -> dict[str, str]:
    fixed = {"PATH": _PATH, "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": str(images.EPOCH)}
    return {**os.environ, **fixed}


def _run(command: Sequence[str], progress: Progress) -> None:
    """Runs a program to its end; its last lines are the explanation if it fails."""
    last: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(),
        )
    except OSError as error:
        raise SandboxworkerError(f"cannot run {command[0]}", details=str(error)) from None
    with process:
        for line in process.stdout or ():
            last.append(line.rstrip())
            progress.sign_of_life(line.strip())
    if process.returncode:
        raise _failed(command[0], process.returncode, last)


def _failed(program: str, code: int, last: Sequence[str]) -> SandboxworkerError:
    lines = "".join(f"\n    {line}" for line in last)
    return SandboxworkerError(f"{program} failed with exit code {code}", details=lines)


def _check(archive: Path) -> None:
    with tarfile.open(archive) as opened:
        faults = images.archive_faults(opened)
    if faults:
        raise SandboxworkerError(
            "the image would carry privileges and was not imported", details="; ".join(faults[:5])
        )


def _import(client: Any, recipe: Recipe, archive: Path) -> None:
    repository, _, tag = recipe.tag.rpartition(":")
    answer = client.import_image(
        str(archive), repository=repository, tag=tag, changes=recipe.configuration()
    )
    if '"error"' in answer:
        raise SandboxworkerError("the engine refused the image", details=answer.strip()[-500:])


# ---- from a registry ------------------------------------------------------------------------


def _build_from_registry(client: Any, recipe: Recipe, progress: Progress) -> None:
    progress.step("building from the Dockerfile")
    last: deque[str] = deque(maxlen=_LAST_LINES)
    for event in _docker_build(client, recipe):
        if "error" in event:
            raise SandboxworkerError(
                "the engine could not build the Dockerfile",
                details="".join(f"\n    {line}" for line in (*last, event["error"])) + "\n",
                resolution="Without a registry: as root, with mmdebstrap, use --from packages",
            )
        line = str(event.get("stream") or event.get("status") or "").strip()
        if line:
            last.append(line)
            progress.sign_of_life(line)


def _docker_build(client: Any, recipe: Recipe) -> Any:
    context = recipe.folder.parent
    return client.build(
        path=str(context.resolve()),
        dockerfile=str(recipe.dockerfile.relative_to(context)),
        tag=recipe.tag,
        buildargs={"PACKAGES": " ".join(recipe.packages)},
        labels=recipe.labels(),
        network_mode=_network_for_builds(client),
        decode=True,
        rm=True,
        forcerm=True,
    )


def _network_for_builds(client: Any) -> str | None:
    """An engine without a bridge (our private one) would build without any network."""
    has_bridge = any(network["Name"] == "bridge" for network in client.networks())
    return None if has_bridge else "host"
