"""``sandbox_pool()``: several workers of one trust level."""

from __future__ import annotations

from typing import Any

import attrs
from buildbot import config

from sandboxworker.policies import SandboxPolicies
from sandboxworker.policy import SandboxPolicy
from sandboxworker.worker import SandboxLatentWorker


@attrs.frozen
class SandboxPool:
    """Workers that differ in nothing but their names, ``PREFIX-1`` to ``PREFIX-N``.

    ``workers``: for ``c['workers']``; ``names``: for a builder's ``workernames``.
    """

    workers: tuple[SandboxLatentWorker, ...]

    @property
    def names(self) -> list[str]:
        return [str(worker.name) for worker in self.workers]


def sandbox_pool(
    prefix: str,
    count: int,
    policy: SandboxPolicy | SandboxPolicies,
    engine: Any = None,
    **arguments: Any,
) -> SandboxPool:
    """``count`` workers under one policy: as many builds at once.

    ``engine`` and ``arguments`` as for `SandboxLatentWorker`.
    A wrong ``count`` is a configuration error; so is whatever is wrong with a worker.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        config.error(f"sandbox_pool({prefix!r}): count={count!r}: a whole number from 1")
        count = 1
    return SandboxPool(
        tuple(
            SandboxLatentWorker(f"{prefix}-{number}", policy=policy, engine=engine, **arguments)
            for number in range(1, count + 1)
        )
    )
