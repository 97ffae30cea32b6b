"""Buildbot workers that build strangers' pull requests in locked-down, throw-away containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandboxworker.housekeeping import SandboxAudit as SandboxAudit
    from sandboxworker.metrics import SandboxMetrics as SandboxMetrics
    from sandboxworker.policies import SandboxPolicies as SandboxPolicies
    from sandboxworker.policy import SandboxPolicy as SandboxPolicy
    from sandboxworker.pool import sandbox_pool as sandbox_pool
    from sandboxworker.worker import SandboxLatentWorker as SandboxLatentWorker

__all__ = [
    "SandboxAudit",
    "SandboxLatentWorker",
    "SandboxMetrics",
    "SandboxPolicies",
    "SandboxPolicy",
    "sandbox_pool",
]

_HOMES = {
    "SandboxAudit": "sandboxworker.housekeeping",
    "SandboxLatentWorker": "sandboxworker.worker",
    "SandboxMetrics": "sandboxworker.metrics",
    "SandboxPolicies": "sandboxworker.policies",
    "SandboxPolicy": "sandboxworker.policy",
    "sandbox_pool": "sandboxworker.pool",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: ``import sandboxworker`` stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
