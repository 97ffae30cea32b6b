"""What the operator writes: how much a build may use, and what it may see.

A `SandboxPolicy` holds what ``master.cfg`` says; it judges itself only when asked, so that
every fault of a configuration is reported at once and none as a traceback.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from sandboxworker.errors import Fault, PolicyError

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4

#: The keeper's own uid and gid: never a build's (see ARCHITECTURE.md, "The keeper").
KEEPER_UID = 65533

_SIZE = re.compile(r"(\d{1,30}(?:\.\d{1,9})?)\s*([kmgt]?)i?b?", re.IGNORECASE | re.ASCII)
_SIZE_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
_SECONDS = re.compile(r"(\d{1,30}(?:\.\d{1,9})?)\s*([smhd]?)", re.IGNORECASE | re.ASCII)
_SECOND_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

#: An OCI reference: [registry[:port]/]path[:tag][@sha256:digest]
#: (github.com/opencontainers/distribution-spec, "Pulling manifests"; Docker's own grammar).
_REFERENCE = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::\d+)?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
_DIGEST = re.compile(r"(?:^|@)sha256:[0-9a-f]{64}$")
_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SOURCE = re.compile(r"\*|(?:https|http|ssh|git)://[^/\s]+/\S*|file:///\S*", re.ASCII)
#: Vault's have a path and a key in them: ``ci/deploy|token``.
_SECRET_NAME = re.compile(r"[A-Za-z0-9_][!-~]*")
_PATH = re.compile(r"(?:/[A-Za-z0-9_.+-]+)+")

#: Places that belong to the system or to another of the sandbox's own mounts.
_RESERVED = (
    *("/proc", "/sys", "/dev", "/tmp", "/run", "/var/run", "/boot"),
    *("/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64"),
)


def parse_size(value: object) -> int | None:
    """Bytes from a number or from text such as ``"512m"``, ``"1.5g"``; None if it is neither."""
    return _parse(value, _SIZE, _SIZE_UNITS)


def parse_seconds(value: object) -> int | None:
    """Whole seconds from a number or from text such as ``"90s"``, ``"1h"``; None if neither."""
    return _parse(value, _SECONDS, _SECOND_UNITS)


def _parse(value: object, pattern: re.Pattern[str], units: Mapping[str, int]) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) else None
    match = pattern.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    amount = float(match[1]) if "." in match[1] else int(match[1])
    return int(amount * units[match[2].lower()])


def show_size(size: int) -> str:
    """A size as an operator would write it: ``512m``, ``2g``, ``1000`` (bytes)."""
    for unit, factor in (("t", TIB), ("g", GIB), ("m", MIB), ("k", KIB)):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def show_seconds(seconds: int) -> str:
    """A time as an operator would write it: ``90s``, ``1h``."""
    for unit, factor in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= factor and seconds % factor == 0:
            return f"{seconds // factor}{unit}"
    return f"{seconds}s"


@attrs.frozen
class _Kind:
    """How one field is read and judged.

    ``convert`` gives the value, or hands back what it could not read;
    ``accepts`` judges the result, and ``allowed`` says what it would have accepted.
    """

    convert: Callable[[Any], Any]
    accepts: Callable[[Any], bool]
    allowed: str


def _lenient(parse: Callable[[object], Any]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        parsed = parse(value)
        return value if parsed is None else parsed

    return convert


def _within(low: float, high: float, types: Any) -> Callable[[Any], bool]:
    def accepts(value: Any) -> bool:
        return isinstance(value, types) and not isinstance(value, bool) and low <= value <= high

    return accepts


def _same(value: Any) -> Any:
    return value


def _cores(value: Any) -> Any:
    """Whole cores may be written as integers; they are the same policy."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _size(low: int, high: int) -> _Kind:
    allowed = f"a size from {show_size(low)} to {show_size(high)}, such as 1048576 or '512m'"
    return _Kind(_lenient(parse_size), _within(low, high, int), allowed)


def _seconds(low: int, high: int) -> _Kind:
    allowed = f"a time from {show_seconds(low)} to {show_seconds(high)}, such as 90 or '1h'"
    return _Kind(_lenient(parse_seconds), _within(low, high, int), allowed)


def _count(low: int, high: int) -> _Kind:
    return _Kind(_same, _within(low, high, int), f"a whole number from {low} to {high}")


def _text(pattern: re.Pattern[str], allowed: str) -> _Kind:
    return _Kind(
        _same, lambda value: isinstance(value, str) and bool(pattern.fullmatch(value)), allowed
    )


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and bool(
        _REFERENCE.fullmatch(value) or _IMAGE_ID.fullmatch(value)
    )


def _is_user(value: Any) -> bool:
    if value == "auto":
        return True
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,5}:\d{1,5}", value, re.ASCII):
        return False
    return all(1 <= int(part) < KEEPER_UID for part in value.split(":"))


def _is_workspace(value: Any) -> bool:
    if not isinstance(value, str) or not _PATH.fullmatch(value):
        return False
    parts = value.split("/")
    return not {".", ".."} & set(parts) and not any(
        value == place or value.startswith(place + "/") for place in _RESERVED
    )


def _is_env(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and _ENV_NAME.fullmatch(name)
        and isinstance(text, str)
        and "\0" not in text
        for name, text in value.items()
    )


def _patterns(value: Any) -> Any:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    return tuple(value)


def _are_patterns(value: Any) -> bool:
    return value is None or (
        isinstance(value, tuple)
        and all(isinstance(text, str) and _SOURCE.fullmatch(text) for text in value)
    )


def _secret_names(value: Any) -> Any:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    names = list(value)
    return tuple(sorted(names)) if all(isinstance(name, str) for name in names) else value


def _are_secret_names(value: Any) -> bool:
    return value == "*" or (
        isinstance(value, tuple) and all(_SECRET_NAME.fullmatch(name) for name in value)
    )


_IMAGE = _Kind(
    _same, _is_reference, "an OCI image reference, such as 'sandboxworker/debian:bookworm'"
)
_USER = _Kind(
    _same,
    _is_user,
    f"'auto', or 'uid:gid' in numbers from 1 to {KEEPER_UID - 1}: "
    f"a build is never root (T3) nor the keeper ({KEEPER_UID})",
)
_CPUS = _Kind(_cores, _within(0.01, 1024, (int, float)), "cores from 0.01 to 1024, fractions too")
_WORKSPACE = _Kind(
    _same, _is_workspace, "an absolute path of plain names outside the system's own directories"
)
_ENV = _Kind(
    lambda value: dict(value) if isinstance(value, Mapping) else value,
    _is_env,
    "a dictionary of names to text, without NUL",
)
_SECRETS = _Kind(_secret_names, _are_secret_names, "a list of secret names, or '*' for every one")
_SOURCES = _Kind(
    _patterns,
    _are_patterns,
    "a list of URLs, '*' for any text in them, such as 'https://git.example.org/project/*'",
)
_PROFILE = _text(re.compile(r"[^\0]+"), "a packaged profile ('build', 'strict') or a file's path")
_RUNTIME = _Kind(
    _same,
    lambda value: (
        value is None or (isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9_.-]+", value)))
    ),
    "the name of an OCI runtime that the engine knows, such as 'runsc'",
)
_NETWORK = _Kind(
    _same, lambda value: value == "none", "'none' is the only value: a build has no network (T1)"
)
_BACKING = _Kind(
    _same,
    lambda value: value in ("tmpfs", "disk"),
    "'tmpfs' (in memory), or 'disk' (a file system of its own on the engine's disk)",
)
_CPUSET = _Kind(
    _same,
    lambda value: value in ("auto", "none"),
    "'auto' (a build sees as many processors as its cpus say), or 'none' (it sees all of them)",
)
_SOCKETS = _Kind(
    _same,
    lambda value: value in ("bounded", "unbounded"),
    "'bounded' (what waits in a build's sockets is bounded by its memory), or 'unbounded' (by the "
    "host's own limits where that cannot be had)",
)
_YES_NO = _Kind(_same, lambda value: isinstance(value, bool), "True or False")


def _field(kind: _Kind, default: Any) -> Any:
    return attrs.field(default=default, converter=kind.convert, metadata={"kind": kind})


#: What people coming from other workers ask for, and why there is no field for it.
_NEVER = {
    "untrusted.secrets": "an untrusted build gets no secret (T15); use SandboxPolicy.trusted",
    "privileged": "a sandbox is never privileged (T3)",
    "capabilities": "a sandbox has no capability (T3)",
    "cap_add": "a sandbox has no capability (T3)",
    "binds": "nothing of the host is mounted into a sandbox (T2)",
    "volumes": "nothing writable is shared between sandboxes (T13)",
    "mounts": "nothing of the host is mounted into a sandbox (T2)",
    "devices": "a sandbox has no device of the host (T5)",
    "network_mode": "a build has no network (T1)",
    "ports": "a build has no network (T1)",
    "pid_mode": "a sandbox has namespaces of its own (T4)",
    "ipc_mode": "a sandbox has namespaces of its own (T13)",
    "read_only": "the root file system is always read-only (T5)",
    "hostconfig": "no raw create request passes a policy",
    "host_config": "no raw create request passes a policy",
    "security_opt": "use seccomp= to name a profile; no_new_privs is always on (T3)",
}


@attrs.frozen(kw_only=True, init=False, hash=False)
class SandboxPolicy:
    """How much a build may use and what it may see; named in ``master.cfg`` for each worker.

    Sizes are bytes, or text such as ``"512m"``; times are seconds, or text such as ``"90s"``.
    Nothing is judged on construction: `faults` lists everything that is wrong, and
    `require_valid` raises `PolicyError` with all of it.
    Two policies are equal when all their fields are.
    """

    image: str = _field(_IMAGE, "")
    #: Refuse tags: only ``name@sha256:…`` or an image's id will do.
    require_digest: bool = _field(_YES_NO, False)
    #: ``auto``: a uid of its own for every living sandbox.
    user: str = _field(_USER, "auto")
    cpus: float = _field(_CPUS, 1)
    #: ``auto``: it runs on, and sees, as many processors as ``cpus`` rounded up.
    cpuset: str = _field(_CPUSET, "auto")
    #: For processes; the sizes of the tmpfs mounts come on top (see `cgroup_memory`).
    memory: int = _field(_size(16 * MIB, 16 * TIB), GIB)
    #: Processes and threads.
    pids: int = _field(_count(16, 65536), 1024)
    disk: int = _field(_size(MIB, 16 * TIB), 2 * GIB)
    disk_inodes: int = _field(_count(64, 1_000_000_000), 200_000)
    #: Where the workspace is: in memory, or on the disk of the engine's host.
    disk_backing: str = _field(_BACKING, "tmpfs")
    workspace: str = _field(_WORKSPACE, "/build")
    shm: int = _field(_size(64 * KIB, TIB), 64 * MIB)
    tmp: int = _field(_size(64 * KIB, TIB), 256 * MIB)
    secrets_size: int = _field(_size(64 * KIB, 64 * MIB), MIB)
    nofile: int = _field(_count(64, 1_048_576), 16384)
    memlock: int = _field(_size(0, TIB), 8 * MIB)
    #: ``unbounded``: also where what waits in sockets cannot be bounded by ``memory``.
    sockets: str = _field(_SOCKETS, "bounded")
    core: int = _field(_size(0, TIB), 0)
    #: From start to destroy.
    max_runtime: int = _field(_seconds(1, 30 * 86400), 3600)
    max_output: int = _field(_size(KIB, TIB), 64 * MIB)
    max_step_output: int = _field(_size(KIB, TIB), 16 * MIB)
    max_upload: int = _field(_size(0, 16 * TIB), 256 * MIB)
    max_upload_files: int = _field(_count(0, 10_000_000), 10_000)
    seccomp: str = _field(_PROFILE, "build")
    runtime: str | None = _field(_RUNTIME, None)
    env: Mapping[str, str] = _field(_ENV, attrs.Factory(dict))
    secrets: tuple[str, ...] | str = _field(_SECRETS, ())
    network: str = _field(_NETWORK, "none")
    #: Which repositories the master fetches for a build; None: what its source steps name.
    sources: tuple[str, ...] | None = _field(_SOURCES, None)
    #: A repository's size on the master's disk.
    max_source: int = _field(_size(MIB, 16 * TIB), 4 * GIB)
    #: Names that are no fields; kept so that they can be refused by name.
    _unknown: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    #: What the operator wrote, before it was read; for messages.
    _written: Mapping[str, Any] = attrs.field(factory=dict, repr=False, eq=False)

    def __init__(self, image: str = "", **fields: Any) -> None:
        known = {name: fields.pop(name) for name in FIELDS if name in fields}
        written = {"image": image, **known}
        self.__attrs_init__(unknown=fields, written=written, **written)

    @classmethod
    def untrusted(cls, image: str, **fields: Any) -> SandboxPolicy:
        """For strangers' pull requests: no secrets, and limits tighter than the defaults.

        ``fields`` take the place of the preset's; it takes no ``secrets``.
        """
        limits: dict[str, Any] = {
            "pids": 512,
            "disk": "1g",
            "max_runtime": "30m",
            "max_output": "16m",
            "max_step_output": "4m",
            "max_upload": "64m",
        }
        if "secrets" in fields:
            # Not a field of this preset, so `faults` tells it as one that there is not.
            fields["untrusted.secrets"] = fields.pop("secrets")
        return cls(image, **{**limits, **fields})

    @classmethod
    def trusted(cls, image: str, **fields: Any) -> SandboxPolicy:
        """For an own project's branches: every secret may be released, and more of everything."""
        limits: dict[str, Any] = {
            "secrets": "*",
            "cpus": 2,
            "memory": "4g",
            "disk": "8g",
            "pids": 4096,
            "max_runtime": "3h",
        }
        return cls(image, **{**limits, **fields})

    @property
    def cgroup_memory(self) -> int:
        """The cgroup's limit in bytes: `memory` and every tmpfs, which the kernel charges to it.

        So a full workspace gives ``ENOSPC`` and not an OOM kill; and it is what one sandbox
        can cost its host.
        """
        in_memory = 0 if self.disk_backing == "disk" else self.disk
        return self.memory + in_memory + self.tmp + self.shm + self.secrets_size

    def releases(self, secret: str) -> bool:
        """Whether this policy hands that secret to a build."""
        return self.secrets == "*" or secret in self.secrets

    def summary(self) -> str:
        """The limits that people ask for first, in one line; no value of ``env`` is in it."""
        shown = {
            "cpus": f"{self.cpus:g}",
            "memory": show_size(self.memory),
            "disk": show_size(self.disk),
            "pids": str(self.pids),
            "max_runtime": show_seconds(self.max_runtime),
            "seccomp": self.seccomp,
            **({"runtime": self.runtime} if self.runtime else {}),
            "secrets": self.secrets if isinstance(self.secrets, str) else " ".join(self.secrets),
        }
        return ", ".join(f"{name}={value or 'none'}" for name, value in shown.items())

    def faults(self) -> tuple[Fault, ...]:
        """Everything that is wrong with this policy; empty when it can be used."""
        return (*self._value_faults(), *self._digest_faults(), *self._unknown_faults())

    def require_valid(self) -> None:
        """Raise `PolicyError` with every fault, if there is any."""
        faults = self.faults()
        if faults:
            raise PolicyError(faults)

    def _value_faults(self) -> Iterable[Fault]:
        for name, kind in FIELDS.items():
            value = getattr(self, name)
            if not kind.accepts(value):
                yield Fault(name, self._written.get(name, value), kind.allowed)

    def _digest_faults(self) -> Iterable[Fault]:
        if self.require_digest is True and not _DIGEST.search(str(self.image)):
            yield Fault("image", self.image, "a reference with @sha256:…, as require_digest asks")

    def _unknown_faults(self) -> Iterable[Fault]:
        for name, value in self._unknown.items():
            yield Fault(name, value, _NEVER.get(name, f"no such field; there are {_NAMES}"))


FIELDS: Mapping[str, _Kind] = {
    field.name: field.metadata["kind"]
    for field in attrs.fields(SandboxPolicy)
    if "kind" in field.metadata
}
_NAMES = ", ".join(FIELDS)
