"""``sandbox_pool()``: several workers of one trust level."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
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
    engines: Sequence[Any] | None = None,
    **arguments: Any,
) -> SandboxPool:
    """``count`` workers under one policy: as many builds at once.

    ``engines``: several engines, to which the workers are dealt in turn; one that is named twice
    gets twice as many. Those of an engine that does not answer take no builds until it does.
    ``engine`` and ``arguments`` as for `SandboxLatentWorker`.
    A wrong ``count`` or list is a configuration error; so is whatever is wrong with a worker.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        config.error(f"sandbox_pool({prefix!r}): count={count!r}: a whole number from 1")
        count = 1
    fault = _engines_fault(count, engine, engines)
    if fault is not None:
        config.error(f"sandbox_pool({prefix!r}): {fault}")
        engines = None
    dealt = itertools.cycle(engines or [engine])
    return SandboxPool(
        tuple(
            SandboxLatentWorker(f"{prefix}-{number}", policy=policy, engine=each, **arguments)
            for number, each in zip(range(1, count + 1), dealt, strict=False)
        )
    )


def _engines_fault(count: int, engine: Any, engines: Any) -> str | None:
    if engines is None:
        return None
    if engine is not None:
        return "engine= and engines=: give one of them"
    if not isinstance(engines, (list, tuple)) or not engines:
        return f"engines={engines!r}: a list of engines"
    if len(engines) > count:
        return f"count={count}: fewer workers than the {len(engines)} engines"
    return None
