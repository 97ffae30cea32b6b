"""Commands in a shell that waited for them: as in one of their own, whatever a build does to it."""

from __future__ import annotations

import io
from typing import Any

import pytest
import pytest_twisted
from memory_engine import within
from runtime import differs
from twisted.internet import defer, reactor, task

from sandboxworker import launch, shells
from sandboxworker.engine.docker import DockerEngine
from sandboxworker.process import Completed, run
from sandboxworker.sandbox import Sandbox

SECONDS = 90.0
#: The waiting shell's process, as any other of the build's user finds it.
FIND = """
for p in /proc/[0-9]*; do
    [ "$(tr '\\0' ' ' <"$p/cmdline" 2>/dev/null | head -c 23)" != "/bin/sh -c printf '%s\\n" ] ||
    found=${p#/proc/}
done
"""


class Execs:
    """Counts what an engine is asked to run."""

    def __init__(self, engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.argvs: list[tuple[str, ...]] = []
        real = engine.exec

        async def counted(container: str, request: Any, receiver: Any) -> Any:
            self.argvs.append(request.argv)
            return await real(container, request, receiver)

        monkeypatch.setattr(engine, "exec", counted)


@pytest.fixture
def execs(engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> Execs:
    return Execs(engine, monkeypatch)


async def sh(sandbox: Sandbox, script: str, **options: Any) -> Completed:
    return await within(SECONDS, run(sandbox, ("/bin/sh", "-c", script), **options))


async def _waits(sandbox: Sandbox) -> None:
    """Until a shell waits for the next command."""
    give_up = reactor.seconds() + SECONDS  # type: ignore[attr-defined]
    while sandbox.waiting is None or sandbox.waiting.pid is None:
        assert reactor.seconds() < give_up  # type: ignore[attr-defined]
        await task.deferLater(reactor, 0.02, lambda: None)  # type: ignore[arg-type]


@pytest_twisted.ensureDeferred
async def test_each_command_finds_a_shell_that_waited(
    make_sandbox: Any, image: str, execs: Execs
) -> None:
    sandbox = await make_sandbox(image, anticipates=True)
    for number in range(4):
        await _waits(sandbox)
        done = await sh(sandbox, f"echo {number}; echo err >&2; exit {number}")
        expected = (f"{number}\n".encode(), b"err\n", number)
        assert (done.stdout, done.stderr, done.exit_code) == expected
    # Each was one exec, begun before its command came.
    scripts = [argv[2] for argv in execs.argvs]
    assert scripts.count(launch.WAIT) <= 5
    assert launch.LAUNCH not in scripts


@pytest_twisted.ensureDeferred
async def test_environment_directory_and_stdin_are_as_in_a_shell_of_its_own(
    make_sandbox: Any, image: str
) -> None:
    outputs = []
    for anticipates in (False, True):
        sandbox = await make_sandbox(image, anticipates=anticipates)
        if anticipates:
            await _waits(sandbox)
        done = await sh(
            sandbox,
            "env | sort; pwd; cat; ls -l /proc/self/fd | wc -l",
            directory="/build/a b",
            stdin=io.BytesIO(b"given\n" * 1000),
        )
        outputs.append((done.stdout, done.exit_code))
    assert outputs[0] == outputs[1]


@pytest_twisted.ensureDeferred
async def test_after_the_last_command_no_shell_waits(make_sandbox: Any) -> None:
    sandbox = await make_sandbox(anticipates=True)
    sandbox.anticipates = False
    await sh(sandbox, "true")
    assert sandbox.waiting is None
    assert (await sh(sandbox, FIND + 'echo "<$found>"')).stdout == b"<>\n"


@pytest_twisted.ensureDeferred
async def test_one_that_is_not_needed_ends_with_its_stdin(make_sandbox: Any) -> None:
    sandbox = await make_sandbox(anticipates=True)
    await _waits(sandbox)
    sandbox.anticipates = False
    sandbox.waiting.drop()
    script = FIND + '[ -z "$found" ]'
    give_up = reactor.seconds() + SECONDS  # type: ignore[attr-defined]
    while (await sh(sandbox, f"found=; {script}")).exit_code:
        assert reactor.seconds() < give_up  # type: ignore[attr-defined]


TAMPERINGS = {
    "killed": "kill -9 $found",
    "terminated": "kill $found",
    "stopped": "kill -STOP $found",
    "talkative": "echo 99999 >/proc/$found/fd/1",
    "complaining": "echo no >/proc/$found/fd/2",
    "robbed": "(trap '' HUP; cat /proc/$found/fd/0 >/dev/null) >/dev/null 2>&1 &",
    "given other lines": "printf 'x\\nexit 0\\nx\\n' >/proc/$found/fd/0",
    "given half a command": "printf 'x\\n' >/proc/$found/fd/0",
}


#: Those that write into another process's pipe.
INTO_PIPES = {"given other lines", "given half a command"}


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=[differs("pipes")] if how in INTO_PIPES else [])
        for how in sorted(TAMPERINGS)
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_shell_that_the_build_tampered_with_costs_time_and_nothing_else(
    make_sandbox: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(shells, "ANSWER_DEADLINE", 2.0)
    sandbox = await make_sandbox(anticipates=True)
    # A command of a shell of its own, beside which another waits.
    sandbox.anticipates = False
    await sh(sandbox, "true")
    sandbox.anticipates = True
    await shells.prepare(sandbox)
    await _waits(sandbox)
    waiting, sandbox.waiting = sandbox.waiting, None
    sandbox.anticipates = False
    tampered = await sh(sandbox, f'{FIND} [ -n "$found" ] || exit 7; {TAMPERINGS[how]}')
    assert tampered.exit_code == 0, tampered
    sandbox.waiting = waiting
    once = await sh(sandbox, "echo run >>/tmp/times; exit 3")
    if once.exit_code == 126:
        # The shell ended as if it had run the command: nobody can tell, and it is a failure.
        assert how == "given other lines"
    else:
        assert once.exit_code == 3
        assert (await sh(sandbox, "cat /tmp/times")).stdout == b"run\n"


@pytest_twisted.ensureDeferred
async def test_a_shell_whose_streams_the_build_holds_is_no_success_and_no_hang(
    make_sandbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shells, "ANSWER_DEADLINE", 2.0)
    sandbox = await make_sandbox(anticipates=True)
    await _waits(sandbox)
    waiting, sandbox.waiting = sandbox.waiting, None
    sandbox.anticipates = False
    lost: list[Exception] = []
    sandbox.on_lost = lost.append
    hold = 'trap "" HUP; kill -STOP $found; sleep 300 >/proc/$found/fd/1 2>/proc/$found/fd/2 &'
    await sh(sandbox, f"{FIND} {hold}")
    sandbox.waiting = waiting
    done = await sh(sandbox, "true")
    if lost:
        assert done.exit_code == -1
    else:  # The engine ended the streams all the same.
        assert done.exit_code == 0


@pytest_twisted.ensureDeferred
async def test_killing_all_ends_the_one_that_waits_and_the_next_command_runs(
    make_sandbox: Any,
) -> None:
    sandbox = await make_sandbox(anticipates=True)
    await _waits(sandbox)
    await sandbox.kill_all()
    assert (await sh(sandbox, "echo there")).stdout == b"there\n"


@pytest_twisted.ensureDeferred
async def test_two_commands_at_once_share_nothing(make_sandbox: Any) -> None:
    sandbox = await make_sandbox(anticipates=True)
    await _waits(sandbox)
    both = [run(sandbox, ("/bin/sh", "-c", f"sleep 0.2; echo {word}")) for word in ("a", "b")]
    done = [each for _, each in await within(SECONDS, defer.DeferredList(both))]
    assert [each.stdout for each in done] == [b"a\n", b"b\n"]
