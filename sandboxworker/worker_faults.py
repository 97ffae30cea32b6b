"""What is wrong with a worker's arguments: told when its configuration is read, not by a build."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sandboxworker import seccomp
from sandboxworker.engine.address import resolve
from sandboxworker.errors import DiskRefused, SandboxworkerError
from sandboxworker.policies import SandboxPolicies, as_policies
from sandboxworker.policy import SandboxPolicy
from sandboxworker.retries import retries_faults
from sandboxworker.spec import UID_RANGE


def worker_faults(policy: Any, engine: Any, max_retries: Any, standby: Any) -> Iterator[str]:
    """A sentence for each fault; the arguments are those of `SandboxLatentWorker`."""
    yield from _policy_faults(policy)
    yield from _engine_faults(engine)
    yield from _disk_faults(policy, engine)
    yield from retries_faults(max_retries)
    yield from _standby_faults(standby)


def _policy_faults(policy: Any) -> list[str]:
    if not isinstance(policy, (SandboxPolicy, SandboxPolicies)):
        return [f"policy={policy!r}: a SandboxPolicy is required"]
    faults = [f"policy: {fault}" for fault in policy.faults()]
    profiles = map(_profile_fault, sorted(as_policies(policy).profiles))
    return [*faults, *(f"policy: {fault}" for fault in profiles if fault)]


def _disk_faults(policy: Any, engine: Any) -> list[str]:
    """What is known before any build; the rest is found out with the first one."""
    if _policy_faults(policy) or _engine_faults(engine) or resolve(engine).is_unix:
        return []
    on_disk = any(each.disk_backing == "disk" for each in as_policies(policy).policies.values())
    return [str(DiskRefused(str(resolve(engine)), "it is on another machine"))] * on_disk


def _profile_fault(name: str) -> str | None:
    try:
        seccomp.load(name)
    except SandboxworkerError as error:
        return str(error)
    return None


def _standby_faults(standby: Any) -> list[str]:
    is_number = isinstance(standby, int) and not isinstance(standby, bool)
    if is_number and 0 <= standby <= len(UID_RANGE):
        return []
    return [f"standby={standby!r}: a whole number from 0 to {len(UID_RANGE)}"]


def _engine_faults(engine: Any) -> list[str]:
    try:
        resolve(engine)
    except SandboxworkerError as error:
        return [str(error)]
    return []
