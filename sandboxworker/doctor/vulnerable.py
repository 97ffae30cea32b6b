"""Versions of engine, runtime and kernel that are known to let a build out, as of `AS_OF`.

Only what bears on a build in a container; each entry's reference is its advisory.
Left out is what such a build has no way to: the engine's own image builder (CVE-2024-23651 to
23653), authorization plug-ins (CVE-2024-41110), and Kubernetes' way into containerd
(CVE-2022-23648).
A distribution mends without raising the version: what it is known to have mended is listed, and
for the rest of its packages a number proves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

AS_OF = "2026-11-29"

Version = tuple[int, ...]

#: Of a release candidate, below every release.
_RELEASE = 10**6
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:[-.]?rc[-.]?(\d+))?")
#: A package's own number, or a kernel whose number is a distribution's.
_PACKAGED = re.compile(r"[+~](ds|dfsg)|-\d+(\+|~|ubuntu|deb)|ubuntu|\.el\d|\.fc\d|^\d+\.\d+\.0-\d")


@attrs.frozen
class Known:
    """``since``: the first version that has it, a release candidate perhaps, None for the first
    of all; ``fixed``: the first
    version of each line of releases that has not; ``packages``: versions of packages that have
    not, though their number says so."""

    product: str
    name: str
    fixed: tuple[str, ...]
    what: str
    reference: str
    since: str | None = None
    packages: tuple[str, ...] = ()


KNOWN = (
    Known(
        "runc", "CVE-2019-5736", ("1.0.0-rc7",),
        "a build as root could replace the runtime's own program on the host",
        "https://www.openwall.com/lists/oss-security/2019/02/11/2",
    ),
    Known(
        "runc", "CVE-2021-30465", ("1.0.0-rc95",),
        "a mount's place could be exchanged for a link to the host",
        "https://github.com/opencontainers/runc/security/advisories/GHSA-c3xm-pvg7-gh7r",
    ),
    Known(
        "runc", "CVE-2022-29162", ("1.1.2",),
        "an exec gave its process inheritable capabilities",
        "https://github.com/opencontainers/runc/security/advisories/GHSA-f3fp-gc8g-vw66",
    ),
    Known(
        "runc", "CVE-2023-27561", ("1.1.5",),
        "a link in the image could take /proc out of its protection",
        "https://github.com/advisories/GHSA-vpvm-3wq2-2wvm", since="1.0.0-rc95",
    ),
    Known(
        "runc", "CVE-2024-21626", ("1.1.12",),
        "a working directory behind a leaked descriptor led to the host's files",
        "https://github.com/opencontainers/runc/security/advisories/GHSA-xr7r-f8xq-vfvv",
        since="1.0.0-rc93", packages=("1.1.5+ds1-1+deb12u1",),
    ),
    Known(
        "runc", "CVE-2025-31133", ("1.2.8", "1.3.3", "1.4.0-rc.3"),
        "what masks a path could be exchanged for a link, and the host's /proc written to",
        "https://github.com/opencontainers/runc/security/advisories/GHSA-9493-h29p-rfm2",
    ),
    Known(
        "runc", "CVE-2025-52565", ("1.2.8", "1.3.3", "1.4.0-rc.3"),
        "a terminal could be exchanged for a link, and the host's /proc written to",
        "https://github.com/opencontainers/runc/security/advisories/GHSA-qw9x-cqr3-wc7r",
        since="1.0.0-rc3",
    ),
    Known(
        "runc", "CVE-2025-52881", ("1.2.8", "1.3.3", "1.4.0-rc.3"),
        "what the runtime itself writes to /proc could be led astray, by containers that share one",
        "https://github.com/opencontainers/runc/security/advisories/GHSA-cgrx-mc8f-2prm",
    ),
    Known(
        "containerd", "CVE-2020-15257", ("1.3.9", "1.4.3"),
        "containers in the host's network reached the shim's socket",
        "https://github.com/containerd/containerd/security/advisories/GHSA-36xw-fx78-c5r4",
    ),
    Known(
        "Engine", "CVE-2021-41091", ("20.10.9",),
        "users of the host could walk through containers' files and run set-uid programs there",
        "https://github.com/moby/moby/security/advisories/GHSA-3fwx-pjgw-3558",
    ),
    Known(
        "kernel", "CVE-2022-0847", ("5.10.102", "5.15.25", "5.16.11"),
        "splice wrote to files that were only open for reading",
        "https://dirtypipe.cm4all.com/", since="5.8",
    ),
    Known(
        "kernel", "CVE-2022-0185", ("5.4.173", "5.10.93", "5.15.16", "5.16.2"),
        "fsconfig in a user namespace overflowed the kernel's heap",
        "https://www.openwall.com/lists/oss-security/2022/01/18/7", since="5.1",
    ),
)  # fmt: skip


@attrs.frozen
class Match:
    """``is_certain``: by the number of a release; else a package that may have been mended."""

    known: Known
    version: str
    is_certain: bool

    def __str__(self) -> str:
        return f"{self.known.product} {self.version}: {self.known.name}, {self.known.what}"


def parse(text: str) -> Version | None:
    """A version as numbers to compare; None for what is none."""
    found = _VERSION.match(text.removeprefix("v"))
    if found is None:
        return None
    major, minor, patch, candidate = found.groups()
    return int(major), int(minor), int(patch or 0), int(candidate or _RELEASE)


def affects(known: Known, version: Version) -> bool:
    """Whether a release of that number has it."""
    if known.since and version < _first(known.since):
        return False
    fixed = [each for each in map(parse, known.fixed) if each is not None]
    own_line = [each for each in fixed if each[:2] == version[:2]]
    return version < (own_line[0] if own_line else max(fixed))


def _first(since: str) -> Version:
    """Below every candidate of a release, or the very candidate that is named."""
    parsed = parse(since) or ()
    return parsed if parsed[-1:] != (_RELEASE,) else parsed[:3]


def matches(versions: Mapping[str, Iterable[str]]) -> list[Match]:
    """What is known of these products, each with the words that tell its version."""
    found = []
    for known in KNOWN:
        told = [each for each in versions.get(known.product, ()) if each]
        parsed = parse(told[0]) if told else None
        if parsed is None or set(told) & set(known.packages) or not affects(known, parsed):
            continue
        is_package = any(_PACKAGED.search(each) for each in told)
        found.append(Match(known, told[-1], is_certain=not is_package))
    return found


def versions_of(version: Mapping[str, Any]) -> dict[str, list[str]]:
    """The products in an engine's version answer; packages tell theirs as a commit."""
    told: dict[str, list[str]] = {}
    for component in version.get("Components") or ():
        commit = (component.get("Details") or {}).get("GitCommit") or ""
        names = [component.get("Version") or ""]
        told[component.get("Name") or ""] = names + [commit] * ("-" in commit)
    told["kernel"] = [version.get("KernelVersion") or ""]
    return told
