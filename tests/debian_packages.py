"""What tests take from Debian: source packages as real projects, and an image with more packages.

Everything goes through this machine's own apt with its own mirrors and proxies, into folders of
this work tree's ``.cache``: nothing is installed, and apt's own lists and cache are left alone.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker.errors
from git_server import Content, Link, Program

from sandboxworker import images

_CACHE = Path(__file__).resolve().parents[1] / ".cache" / "debian"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_REPOSITORY = "sandboxworker-tests"
_IMAGES_STATUS = "/var/lib/dpkg/status"
_IMAGES_SOURCES = "/etc/apt/sources.list"
_MINUTES = 60

#: What the image of `image_with_more` has that ours has not: for real projects, and for the source
#: steps of other systems than git.
MORE_PACKAGES = (
    *("cmake", "help2man", "ninja-build"),
    *("python3-markupsafe", "python3-pytest", "python3-setuptools", "python3-wheel"),
    *("bzr", "cvs", "darcs", "mercurial", "subversion"),
)

#: The image's own PATH has no sbin, where dpkg looks for what it runs.
_DOCKERFILE = """\
FROM {base}
USER root
COPY . /tmp/packages
RUN export DEBIAN_FRONTEND=noninteractive PATH=$PATH:/usr/sbin:/sbin; \\
    dpkg --unpack /tmp/packages/*.deb && dpkg --configure --pending && rm -r /tmp/packages
{rest}
"""
#: As an image to build in is left, and as one to install more in is.
_TO_BUILD_IN = f"USER {images.USER}"
_TO_INSTALL_IN = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root"


# ---- apt -----------------------------------------------------------------------------------------


class PrivateApt:
    """This machine's apt, with lists, cache and idea of what is installed of its own.

    ``status``: what counts as installed, as dpkg's file of that name has it;
    ``sources``: lines of a sources list, of binary packages.
    """

    def __init__(self, root: Path, sources: Sequence[str], status: bytes = b"") -> None:
        self._root = root
        for folder in ("lists/partial", "cache/archives/partial"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "sources.list").write_text("".join(map(_both_kinds, sources)))
        (root / "status").write_bytes(status)

    def update(self) -> None:
        self._run("update")

    def packages(self, names: Iterable[str]) -> list[Path]:
        """Fetch these packages and what they need that is not installed."""
        only = ("--yes", "--no-install-recommends", "--download-only")
        self._run("clean")
        self._run("install", *only, *names)
        return sorted((self._root / "cache" / "archives").glob("*.deb"))

    def source(self, name: str, folder: Path) -> None:
        """Fetch a source package's files into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tried = []
        for version in self._versions(name):
            tried.append(self._try("source", "--download-only", version, folder=folder))
            if list(folder.glob("*.orig.tar.?z*")):
                return
        raise AssertionError([done.stdout + done.stderr for done in tried])

    def _versions(self, name: str) -> list[str]:
        """What to ask apt for, one after the other: a mirror may list more than it has."""
        shown = self._try("showsrc", "--only-source", name, program="apt-cache").stdout
        found = re.findall(r"^Version: (\S+)$", shown, re.MULTILINE)
        return [f"{name}={version}" for version in found] or [name]

    def _run(self, *arguments: str) -> None:
        done = self._try(*arguments)
        assert done.returncode == 0, (arguments, done.stdout + done.stderr)

    def _try(
        self, *arguments: str, folder: Path | None = None, program: str = "apt-get"
    ) -> subprocess.CompletedProcess[str]:
        settings = {
            "Dir::Etc::SourceList": self._root / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": self._root / "lists",
            "Dir::State::Status": self._root / "status",
            "Dir::Cache": self._root / "cache",
            "APT::Sandbox::User": "",
            "Acquire::Retries": 3,
            "Debug::NoLocking": "true",
        }
        options = [f"-o{name}={value}" for name, value in settings.items()]
        return subprocess.run(
            [program, "--quiet", *options, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10 * _MINUTES,
            check=False,
        )


def _both_kinds(line: str) -> str:
    """A line of binary packages, and the same for source packages."""
    signed = f" [signed-by={_KEYRING}]" if _KEYRING.exists() else ""
    place = line.removeprefix("deb ")
    return f"deb{signed} {place}\ndeb-src{signed} {place}\n"


@functools.cache
def _apt_like(client: Any, base: str) -> PrivateApt:
    """An apt for an image of ours: this machine's mirrors, else those that the image names."""
    suite = images.recipes()["debian"].suite
    told = subprocess.run(images.INDEX_TARGETS, capture_output=True, text=True, check=False).stdout
    sources = images.debian_sources(told, suite)
    if not sources:
        listed = _read(client, base, _IMAGES_SOURCES).decode().splitlines()
        sources = tuple(line for line in listed if line.startswith("deb "))
    apt = PrivateApt(_CACHE / "apt", sources, _read(client, base, _IMAGES_STATUS))
    apt.update()
    return apt


def _read(client: Any, image: str, path: str) -> bytes:
    """A file of an image, which need not run for it."""
    container = client.create_container(image, ["/bin/true"], network_disabled=True)
    try:
        stream, _ = client.get_archive(container, path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            member = archive.extractfile(Path(path).name)
            assert member
            return member.read()
    finally:
        client.remove_container(container, force=True)


# ---- projects ------------------------------------------------------------------------------------


def upstream_source(client: Any, base: str, name: str) -> Path:
    """The archive of a source package as its authors published it, fetched once."""
    folder = _CACHE / "source" / name
    if not list(folder.glob("*.orig.tar.*")):
        _apt_like(client, base).source(name, folder)
    return min(folder.glob("*.orig.tar.?z*"))


def files_of(archive: Path) -> Mapping[str, Content]:
    """An archive's members below its top folder, for `Repository.commit`."""
    files: dict[str, Content] = {}
    with tarfile.open(archive) as opened:
        for member in opened:
            name = member.name.removeprefix("./").partition("/")[2]
            if member.issym():
                files[name] = Link(member.linkname)
            elif member.isfile():
                stream = opened.extractfile(member)
                assert stream
                files[name] = _content(stream.read(), bool(member.mode & 0o100))
    return files


def _content(content: bytes, may_run: bool) -> Content:
    return Program(content) if may_run else content


# ---- an image with more packages -----------------------------------------------------------------


def image_with_more(client: Any, base: str) -> str:
    """The tag of ``base`` with `MORE_PACKAGES`, made when the engine does not have it yet.

    The way that ``images/README.md`` shows, but for the network: an engine need not have one.
    """
    return _image_with(client, base, "projects", MORE_PACKAGES, _TO_BUILD_IN)


def image_to_install_in(client: Any, base: str, packages: Sequence[str]) -> str:
    """The same with these packages, and with root as its user."""
    return _image_with(client, base, "base", packages, _TO_INSTALL_IN)


def _image_with(client: Any, base: str, name: str, packages: Sequence[str], rest: str) -> str:
    dockerfile = _DOCKERFILE.format(base=base, rest=rest)
    made_of = (client.inspect_image(base)["Id"], dockerfile, *packages)
    repository = f"{_REPOSITORY}/{name}"
    tag = f"{repository}:{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}"
    try:
        client.inspect_image(tag)
    except docker.errors.ImageNotFound:
        for before in client.images(repository):
            client.remove_image(before["Id"], force=True)
        _build(client, tag, dockerfile, _apt_like(client, base).packages(packages))
    return tag


def _build(client: Any, tag: str, dockerfile: str, debs: Iterable[Path]) -> None:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for deb in debs:
            archive.add(deb, deb.name)
        about = tarfile.TarInfo("Dockerfile")
        about.size = len(dockerfile)
        archive.addfile(about, io.BytesIO(dockerfile.encode()))
    context.seek(0)
    told = list(
        client.build(
            fileobj=context,
            custom_context=True,
            tag=tag,
            network_mode="none",
            rm=True,
            forcerm=True,
            decode=True,
            timeout=10 * _MINUTES,
        )
    )
    assert not any("error" in line for line in told), told[-5:]
