"""The machine's disks: made once from packages, kept below ``.cache/vm``, never written to again.

``CACHE``
  ``system-DIGEST/``  ``root.img`` (ext4), ``vmlinuz``, ``initrd.gz``
  ``data-DIGEST.img``  what Docker starts with (xfs)
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sandboxworker import images

from . import initrd, packages, tasks
from .packages import INSIDE, PROJECT

CACHE = PROJECT / ".cache" / "vm"
_GIB = 1 << 30
_SECTOR = 512
#: Sparse: what is not written takes no room.
ROOT_SIZE, DATA_SIZE, SWAP_SIZE = 6 * _GIB, 12 * _GIB, _GIB // 2
_VENV = "/opt/venv"
_SITE = "/payload/site"
_COMMAND = f"""\
#!{_VENV}/bin/python
import sys
from sandboxworker.cli import main
sys.exit(main())
"""


class Failed(Exception):
    """A program that was needed did not do its work; the words are for people."""


def say(what: str) -> None:
    print(f"==> {what}", flush=True)


def run(command: Sequence[str | Path], **more: Any) -> None:
    """To its end; its own words are told if it fails."""
    environ = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        env={**environ, **more},
    )
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-15:])
        raise Failed(f"{shlex.join(words)[:300]}: exit code {done.returncode}\n{last}")


def keep(name: str, make: Callable[[Path], None]) -> Path:
    """The file or folder of that name, made if it is not there; others of its kind are removed."""
    kept = CACHE / name
    if kept.exists():
        return kept
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob(f"{name.partition('-')[0]}-*"):
        _remove(old)
    with tempfile.TemporaryDirectory(prefix="making-", dir=CACHE) as scratch:
        made = Path(scratch) / name
        make(made)
        made.rename(kept)
    return kept


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def sparse(path: Path, size: int) -> Path:
    """An empty disk."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


# ---- the system ----------------------------------------------------------------------------------


def system() -> Path:
    """The folder with root file system, kernel and initrd."""
    return keep(f"system-{packages.system_digest()}", _make_system)


def _make_system(folder: Path) -> None:
    folder.mkdir()
    with tempfile.TemporaryDirectory(prefix="tree-", dir=folder.parent) as scratch:
        tree = Path(scratch) / "tree"
        say(f"making the machine's system from {len(packages.PACKAGES)} Debian packages")
        _bootstrap(tree)
        say("installing the tests' Python packages in it")
        _install_python_packages(tree)
        say("making its disk")
        release = next((tree / "lib/modules").iterdir()).name
        shutil.copy(tree / f"boot/vmlinuz-{release}", folder / "vmlinuz")
        first = initrd.archive(initrd.members(tree, release, INSIDE / "initrd-init"))
        (folder / "initrd.gz").write_bytes(first)
        image = sparse(folder / "root.img", ROOT_SIZE)
        run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", tree, image])


def _bootstrap(tree: Path) -> None:
    sources = images.debian_sources(_output(images.INDEX_TARGETS), packages.SUITE)
    options = images.apt_options(_output(images.APT_CONFIGURATION))
    recipe: Any = packages.System()
    command = images.mmdebstrap_command(recipe, tree, sources, options)
    # The machine's first file system is ours; making Debian's takes a while.
    run([command[0], *packages.without_documents(), *command[1:]], INITRD="No")


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _install_python_packages(tree: Path) -> None:
    """Fetched out here, with this machine's index and certificates, and installed in there."""
    wanted = packages.requirements()
    wheels = tree / "wheels"
    wheels.mkdir()
    run(packages.download_command(sys.executable, wheels, wanted))
    run(["chroot", tree, "python3", "-m", "venv", _VENV])
    pip = ("chroot", tree, f"{_VENV}/bin/pip", "install", "--quiet")
    run([*pip, "--no-index", "--find-links=/wheels", *wanted], PIP_CONFIG_FILE=os.devnull)
    shutil.rmtree(wheels)
    venv = tree / _VENV.lstrip("/")
    (venv / f"lib/python{packages.PYTHON}/site-packages/sandboxworker.pth").write_text(_SITE + "\n")
    command = venv / "bin/sandboxworker"
    command.write_text(_COMMAND)
    command.chmod(0o755)


# ---- Docker's data -------------------------------------------------------------------------------


def data(client: Any, tags: Sequence[str], prepare: Callable[[Path, list[Path]], None]) -> Path:
    """The disk that Docker starts with, with these images of the engine's.

    ``prepare`` fills an empty disk from the images' archives.
    """
    ids = [client.inspect_image(tag)["Id"] for tag in tags]
    parts = (*tags, *ids, tasks.PREPARE, INSIDE / "init", packages.HERE / "disks.py")

    def make(path: Path) -> None:
        archives = [
            _exported(client, tag, path.with_name(f"{number}.tar"))
            for number, tag in enumerate(tags)
        ]
        prepare(sparse(path, DATA_SIZE), archives)

    return keep(f"data-{packages.digest(*parts)}.img", make)


def _exported(client: Any, tag: str, path: Path) -> Path:
    """One image of the engine's as an archive, in whole sectors, since it is read as a disk."""
    say(f"exporting {tag}")
    with path.open("wb") as file:
        file.writelines(client.get_image(tag))
        file.truncate(-(-file.tell() // _SECTOR) * _SECTOR)
    return path


# ---- what differs from run to run ----------------------------------------------------------------


@contextlib.contextmanager
def payload(word: str, task: str, *, with_project: bool) -> Iterator[tuple[Path, Path]]:
    """A disk with the task, and the project with its wheel; and one for swap."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=CACHE) as scratch:
        path = Path(scratch) / "payload.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
            _add(archive, "word", word)
            _add(archive, "task", task)
            archive.add(INSIDE / "init", "inside/init", filter=_owned_by_root)
            if with_project:
                _add_project(archive, Path(scratch))
        yield path, sparse(Path(scratch) / "swap.img", SWAP_SIZE)


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(text.encode())
    archive.addfile(about, io.BytesIO(text.encode()))


def _owned_by_root(about: tarfile.TarInfo) -> tarfile.TarInfo:
    about.uid = about.gid = 0
    about.uname = about.gname = "root"
    return about


def _add_project(archive: tarfile.TarFile, scratch: Path) -> None:
    """What git knows or would add, as it is now; and the wheel, unpacked."""
    listed = subprocess.run(
        ["git", "-C", PROJECT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in sorted(set(filter(None, listed.split("\0")))):
        if os.path.lexists(PROJECT / name):
            archive.add(PROJECT / name, f"project/{name}", filter=_owned_by_root)
    site = scratch / "site"
    with zipfile.ZipFile(_wheel(scratch)) as wheel:
        wheel.extractall(site)
    archive.add(site, "site", filter=_owned_by_root)


def _wheel(scratch: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check")
    run([*pip, "--no-deps", f"--wheel-dir={scratch}", PROJECT])
    return next(scratch.glob("*.whl"))
