"""Whether the engine applied what was asked: the create request against its own ``inspect``.

Pure. Engines drop settings that their kernel lacks, some with a warning in the create answer
and some without a word; either way the sandbox is not the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

#: Inspect answers these by other means, or an engine may fill them in by its own default.
_NOT_COMPARED = frozenset({"Image", "Cmd", "AttachStdin", "AttachStdout", "AttachStderr"})

#: Lists whose order means nothing; an engine may sort them.
_SETS = frozenset({"Env", "MaskedPaths", "ReadonlyPaths", "SecurityOpt", "Ulimits", "CapDrop"})

#: What must not be there although nobody asked for it.
_MUST_BE_EMPTY = ("Binds", "Devices", "VolumesFrom", "CapAdd", "PortBindings")


@attrs.frozen
class Deviation:
    """One setting that is not as asked."""

    setting: str
    asked: object
    applied: object

    def __str__(self) -> str:
        return f"{self.setting}: asked for {_short(self.asked)}, got {_short(self.applied)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def deviations(
    request: Mapping[str, Any], inspected: Mapping[str, Any], warnings: Iterable[str] | None = ()
) -> tuple[Deviation, ...]:
    """Everything in which the created container differs from the create request.

    ``request``: the create request; ``inspected``: the engine's inspect answer;
    ``warnings``: of the create answer.
    Empty when the container is exactly what was asked for.
    """
    return (
        *_warnings(warnings or ()),
        *_image(request, inspected),
        *_compare("", request, inspected.get("Config") or {}, _NOT_COMPARED | {"HostConfig"}),
        *_compare(
            "HostConfig.", request["HostConfig"], inspected.get("HostConfig") or {}, frozenset()
        ),
        *_unasked(request, inspected),
    )


def _warnings(warnings: Iterable[str]) -> Iterable[Deviation]:
    for warning in warnings:
        yield Deviation("the engine warned", "no warning", warning)


def _image(request: Mapping[str, Any], inspected: Mapping[str, Any]) -> Iterable[Deviation]:
    if inspected.get("Image") != request["Image"]:
        yield Deviation("Image", request["Image"], inspected.get("Image"))


def _compare(
    prefix: str,
    asked: Mapping[str, Any],
    applied: Mapping[str, Any],
    left_out: frozenset[str],
) -> Iterable[Deviation]:
    for name, value in asked.items():
        if name not in left_out and not _same(name, value, applied.get(name)):
            yield Deviation(prefix + name, value, applied.get(name))


def _same(name: str, asked: Any, applied: Any) -> bool:
    if name == "Labels":
        return _includes(asked, applied)
    if name == "Healthcheck":  # With the test NONE there is none, whatever times the image has.
        return isinstance(applied, Mapping) and bool(applied.get("Test") == asked["Test"])
    if _is_empty(asked):
        return _is_empty(applied)
    if name in _SETS and isinstance(applied, list):
        return sorted(map(repr, _normal(asked))) == sorted(map(repr, _normal(applied)))
    return bool(_normal(asked) == _normal(applied))


def _includes(asked: Mapping[str, Any], applied: Any) -> bool:
    """The image's own labels stand beside ours, and change nothing."""
    return isinstance(applied, Mapping) and asked.items() <= applied.items()


def _is_empty(value: Any) -> bool:
    """Engines say "not set" as null, as zero or as an empty value, as it suits them."""
    return value is None or value is False or value in ("", 0) or value == [] or value == {}


def _normal(value: Any) -> Any:
    """Order of keys is no difference."""
    if isinstance(value, Mapping):
        return sorted((key, repr(_normal(item))) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return [_normal(item) for item in value]
    return value


def _unasked(request: Mapping[str, Any], inspected: Mapping[str, Any]) -> Iterable[Deviation]:
    host = inspected.get("HostConfig") or {}
    for name in _MUST_BE_EMPTY:
        if host.get(name):
            yield Deviation(f"HostConfig.{name}", None, host[name])
    asked = _asked_mounts(request["HostConfig"])
    for mount in inspected.get("Mounts") or ():
        if (mount.get("Type"), mount.get("Destination")) not in asked:
            yield Deviation("Mounts", "nothing else", mount.get("Destination"))


def _asked_mounts(host: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Kind and place of each."""
    volumes = {(mount["Type"], mount["Target"]) for mount in host.get("Mounts") or ()}
    return volumes | {("tmpfs", place) for place in host.get("Tmpfs") or ()}
