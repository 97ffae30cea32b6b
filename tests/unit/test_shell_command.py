"""``shell`` where there is nothing to run it in any more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from memory_engine import MemoryEngine
from twisted.internet import defer, task

from sandboxworker.commands.budget import Budget
from sandboxworker.commands.shell import SandboxRunProcess
from sandboxworker.policy import SandboxPolicy
from sandboxworker.sandbox import Owner, Sandbox
from sandboxworker.seccomp import load
from sandboxworker.spec import ImageFacts, build_spec
from sandboxworker.struck import Struck

IMAGE = ImageFacts("image", "sha256:" + "0" * 64)
POLICY = SandboxPolicy(IMAGE.reference)


def test_what_cannot_be_started_says_so_though_the_log_is_far_behind() -> None:
    """The reason comes within the very call that was to give a process."""
    clock = task.Clock()
    engine = MemoryEngine(clock)
    spec = build_spec(POLICY, IMAGE, load("build"))
    sandbox = Sandbox(engine, engine.uids, spec, Owner("m", "w"), clock, lambda event: None)
    told: list[Any] = []
    lock = defer.DeferredLock()
    for _ in range(20):
        lock.acquire()
    asked = SimpleNamespace(
        sandbox=sandbox,
        budget=Budget(POLICY, on_struck=lambda *_: None),
        struck=Struck(POLICY, lambda *_: None),
        withheld={},
        log_lock=lock,
        send_update=told.extend,
    )
    command = SandboxRunProcess(asked, "1", ["true"], "/build", logEnviron=False)
    ended = command.start()
    clock.pump([0.1] * 20)
    assert ended.called
    said = [text for name, text in told if name == "stderr"]
    assert said == [f"sandboxworker: sandbox {sandbox.id} is new\n"]
