"""One run of ``sandboxworker try COMMAND``: pack, start, copy, run, sum up, destroy."""

from __future__ import annotations

import json
import secrets
import signal
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click
from rich.console import Console
from twisted.internet import defer
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from sandboxworker import seccomp
from sandboxworker.cli.artifacts import bring_back
from sandboxworker.cli.printspec import print_spec
from sandboxworker.cli.react import catch_signals, react, run_name
from sandboxworker.cli.terminal import open_shell, require_terminal
from sandboxworker.cli.worktree import Packed, pack
from sandboxworker.commands.budget import Budget
from sandboxworker.engine.address import resolve
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.engine.interface import Usage
from sandboxworker.errors import NotDestroyed, SandboxworkerError
from sandboxworker.policy import SandboxPolicy, show_seconds, show_size
from sandboxworker.process import run, spawn_process
from sandboxworker.sandbox import Owner, Sandbox
from sandboxworker.spec import build_spec

#: As if SIGKILL had ended it, which it has.
_LIMIT_PASSED = 128 + signal.SIGKILL
_UNKNOWN_END = 125

#: Where the files are put, below the workspace.
_WORK = "work"


@attrs.frozen
class Outcome:
    """How a command ended: what to tell, and the exit code."""

    text: str
    exit_code: int


@attrs.frozen(kw_only=True)
class Ways:
    """How to run it, what to bring back and how to show it; see ``sandboxworker try --help``."""

    shell: bool = False
    keep_on_failure: bool = False
    as_json: bool = False
    print_spec: bool = False
    out: Path | None = None
    artifacts: tuple[str, ...] = ()


def run_attempt(
    policy: SandboxPolicy,
    engine: str | None,
    directory: Path,
    command: Sequence[str],
    ways: Ways,
) -> int:
    """Do it all, with a reactor of its own; the exit code.

    Raises `SandboxworkerError` for what is not the command's own doing.
    """
    if ways.print_spec:
        return print_spec(policy, engine)
    if ways.shell or ways.keep_on_failure:
        require_terminal()
    address = resolve(engine)
    attempt = _Attempt(policy, command, ways)
    packed = pack(directory)
    with packed.archive:
        return react(lambda reactor: attempt.run(DockerEngine(address, reactor), reactor, packed))


class _Attempt:
    """The steps of one run, in their order."""

    def __init__(self, policy: SandboxPolicy, command: Sequence[str], ways: Ways) -> None:
        self._policy = policy
        self._command = command
        self._ways = ways
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self._brought: list[str] = []
        self._console = Console(stderr=True, highlight=False)
        self._interrupted: defer.Deferred[Outcome] = defer.Deferred()

    async def run(self, engine: DockerEngine, reactor: Any, packed: Packed) -> int:
        reactor.callWhenRunning(catch_signals, reactor, self._interrupt)
        try:
            return await self._with_sandbox(engine, reactor, packed)
        finally:
            await engine.close()

    def _interrupt(self, number: int) -> None:
        if not self._interrupted.called:
            self._interrupted.callback(Outcome("interrupted", 128 + number))

    async def _with_sandbox(self, engine: DockerEngine, reactor: Any, packed: Packed) -> int:
        policy = self._policy
        image = await engine.image(policy.image)
        spec = build_spec(policy, image, seccomp.load(policy.seccomp))
        owner = Owner(f"try-{secrets.token_hex(8)}", run_name())
        sandbox = Sandbox(engine, engine.uids, spec, owner, reactor)
        begin = time.monotonic()
        try:
            outcome = await self._or_interrupted(self._use(sandbox, packed))
            usage = await sandbox.usage()
        finally:
            await self._destroy(sandbox)
        self._sum_up(outcome, time.monotonic() - begin, usage)
        return outcome.exit_code

    async def _or_interrupted(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """The work's outcome, or that of Ctrl-C, whichever is first."""
        working = defer.ensureDeferred(work)
        first = defer.DeferredList(
            [working, self._interrupted],
            fireOnOneCallback=True,
            fireOnOneErrback=True,
            consumeErrors=True,
        )
        try:
            outcome, _ = await first
        except defer.FirstError as error:
            error.subFailure.raiseException()
        return outcome

    async def _use(self, sandbox: Sandbox, packed: Packed) -> Outcome:
        policy = self._policy
        if packed.size > policy.disk:
            raise SandboxworkerError(
                f"the directory's files ({_megabytes(packed.size)}) do not fit",
                details=f"the policy's disk is {show_size(policy.disk)}",
                resolution="Raise disk in the policy, or have git ignore what is not needed",
            )
        with self._console.status(f"starting a sandbox of {policy.image}"):
            await sandbox.start()
        text = f"copying {packed.files} files, {_megabytes(packed.size)}"
        with self._console.status(text):
            await self._copy(sandbox, packed)
        return await self._run(sandbox)

    async def _run(self, sandbox: Sandbox) -> Outcome:
        """The command if there is one, its artifacts, and a shell if one is wanted."""
        ways, outcome = self._ways, None
        if self._command:
            outcome = await self._run_command(sandbox)
            if ways.out is not None and sandbox.is_ready:
                self._brought = await bring_back(
                    sandbox, self._directory(), ways.artifacts, ways.out, self._policy
                )
        failed = outcome is not None and outcome.exit_code != 0
        if (ways.shell or (ways.keep_on_failure and failed)) and sandbox.is_ready:
            code = await open_shell(sandbox, self._directory(), sandbox.reactor)
            return outcome or Outcome(f"the shell ended with {code}", code)
        return outcome or Outcome("the sandbox ended", _UNKNOWN_END)

    async def _copy(self, sandbox: Sandbox, packed: Packed) -> None:
        completed = await run(
            sandbox, ("tar", "-xpf", "-"), directory=self._directory(), stdin=packed.archive
        )
        if completed.exit_code != 0:
            said = completed.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise SandboxworkerError(
                "the files could not be copied into the sandbox",
                details="".join(said) or "tar said nothing",
                resolution="The image needs tar; the policy's disk and disk_inodes must suffice",
            )

    def _directory(self) -> str:
        return f"{self._policy.workspace}/{_WORK}"

    async def _run_command(self, sandbox: Sandbox) -> Outcome:
        output = _Output(Budget(self._policy), self._kept if self._ways.as_json else None)
        sandbox.on_deadline = output.deadline
        sandbox.on_lost = output.lost
        environ = {**dict(sandbox.spec.environ), "PWD": self._directory()}
        spawn_process(sandbox, output, self._command, environ, self._directory())
        outcome = await output.outcome
        if output.deadline_over:
            return Outcome(
                f"max_runtime of {show_seconds(self._policy.max_runtime)} is over", _LIMIT_PASSED
            )
        return outcome

    async def _destroy(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.destroy()
        except NotDestroyed as error:
            self._console.print(
                f"sandboxworker: {error}", style="red", markup=False, soft_wrap=True
            )

    def _sum_up(self, outcome: Outcome, seconds: float, usage: Usage) -> None:
        if self._ways.as_json:
            click.echo(json.dumps(self._record(outcome, seconds, usage), indent=1))
            return
        parts = [outcome.text, f"{seconds:.1f} s"]
        if usage.memory_peak is not None:
            parts.append(f"peak memory {_megabytes(usage.memory_peak)}")
        if usage.cpu_seconds is not None:
            parts.append(f"CPU {usage.cpu_seconds:.1f} s")
        style = "green" if outcome.exit_code == 0 else "red"
        self._console.print(
            "sandboxworker: " + ", ".join(parts), style=style, markup=False, soft_wrap=True
        )

    def _record(self, outcome: Outcome, seconds: float, usage: Usage) -> dict[str, Any]:
        return {
            "result": outcome.text,
            "exit_code": outcome.exit_code,
            "interrupted": self._interrupted.called,
            "seconds": round(seconds, 3),
            "memory_peak": usage.memory_peak,
            "cpu_seconds": usage.cpu_seconds,
            **{name: data.decode(errors="replace") for name, data in self._kept.items()},
            "artifacts": self._brought,
        }


class _Output(ProcessProtocol):
    """Passes a command's output on to ours, within the policy's limits."""

    transport: Any

    def __init__(self, budget: Budget, kept: Mapping[str, bytearray] | None) -> None:
        self._budget = budget
        self._kept = kept
        self._passed: str | None = None
        self._lost: Exception | None = None
        self.deadline_over = False
        self.outcome: defer.Deferred[Outcome] = defer.Deferred()

    def connectionMade(self) -> None:
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self._pass_on("stdout", data)

    def errReceived(self, data: bytes) -> None:
        self._pass_on("stderr", data)

    def _pass_on(self, name: str, data: bytes) -> None:
        if self._passed is not None:
            return
        fits, self._passed = self._budget.output(len(data))
        if self._kept is not None:
            self._kept[name] += data[:fits]
        else:
            stream = getattr(sys, name)
            stream.buffer.write(data[:fits])
            stream.buffer.flush()
        if self._passed is not None:
            self._kill()

    def _kill(self) -> None:
        if not self.transport.is_over:
            self.transport.signalProcess("KILL")

    def deadline(self) -> None:
        self.deadline_over = True
        self._kill()

    def lost(self, reason: Exception) -> None:
        self._lost = reason

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        if self._lost is not None:
            self.outcome.errback(self._lost)
        elif self._passed is not None:
            self.outcome.callback(
                Outcome(self._passed.removeprefix("sandboxworker: "), _LIMIT_PASSED)
            )
        elif value.signal is not None:
            self.outcome.callback(
                Outcome(f"killed by signal {value.signal}", 128 + int(value.signal))
            )
        else:
            code = _UNKNOWN_END if value.exitCode is None else int(value.exitCode)
            self.outcome.callback(Outcome(f"exit code {code}", code))


def _megabytes(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MiB"
