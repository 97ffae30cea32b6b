"""What an engine would be asked for under a policy."""

from __future__ import annotations

import json
from typing import Any

import click

from sandboxworker import seccomp
from sandboxworker.cli.react import react
from sandboxworker.engine.address import resolve
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.policy import SandboxPolicy
from sandboxworker.spec import ContainerSpec, build_spec


def print_spec(policy: SandboxPolicy, engine: str | None) -> int:
    """Print the spec that a sandbox would be made from, with its digest; starts nothing."""
    address = resolve(engine)

    async def ask(reactor: Any) -> ContainerSpec:
        asked = DockerEngine(address, reactor)
        try:
            image = await asked.image(policy.image)
        finally:
            await asked.close()
        return build_spec(policy, image, seccomp.load(policy.seccomp))

    spec = react(ask)
    click.echo(json.dumps({"digest": spec.digest, **json.loads(spec.canonical_json())}, indent=1))
    return 0
