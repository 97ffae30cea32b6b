"""Commands in a real sandbox, with either image, as Twisted's process protocol tells them."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from memory_engine import within
from runtime import differs
from slow import withstood_the_kill
from twisted.internet import defer, error, reactor, task
from twisted.internet.protocol import ProcessProtocol

from sandboxworker.process import Completed, SandboxProcess, run, spawn_process
from sandboxworker.sandbox import Sandbox

SECONDS = 60.0


class Heard(ProcessProtocol):
    """Keeps what a command's protocol is told, and what it reads is what the test gives it."""

    def __init__(self, *, close_stdin: bool = True) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.calls: list[str] = []
        self.ended: defer.Deferred[Any] = defer.Deferred()
        self._close_stdin = close_stdin
        self._waiting: list[tuple[Callable[[], bool], defer.Deferred[None]]] = []

    def connectionMade(self) -> None:
        if self._close_stdin:
            self.transport.closeStdin()  # type: ignore[union-attr]

    def outReceived(self, data: bytes) -> None:
        self.stdout += data
        self._look()

    def errReceived(self, data: bytes) -> None:
        self.stderr += data
        self._look()

    def childConnectionLost(self, childFD: int) -> None:
        self.calls.append(f"lost {childFD}")

    def processExited(self, reason: Any) -> None:
        self.calls.append("exited")

    def processEnded(self, reason: Any) -> None:
        self.calls.append("ended")
        self.ended.callback(reason.value)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait, for a bounded time, until what was heard is so."""
        if not condition():
            waiting: defer.Deferred[None] = defer.Deferred()
            self._waiting.append((condition, waiting))
            await within(SECONDS, waiting)

    def _look(self) -> None:
        for entry in [entry for entry in self._waiting if entry[0]()]:
            self._waiting.remove(entry)
            entry[1].callback(None)


def spawned(
    sandbox: Sandbox, argv: list[str], *, close_stdin: bool = True, **options: Any
) -> tuple[Heard, SandboxProcess]:
    heard = Heard(close_stdin=close_stdin)
    return heard, spawn_process(sandbox, heard, argv, **options)


async def ended(heard: Heard) -> tuple[int | None, int | None]:
    """Exit code and signal."""
    reason = await within(SECONDS, heard.ended)
    assert isinstance(reason, (error.ProcessDone, error.ProcessTerminated))
    return reason.exitCode, reason.signal


async def ran(sandbox: Sandbox, script: str, **options: Any) -> Completed:
    return await within(SECONDS, run(sandbox, ["sh", "-c", script], **options))


async def pause(seconds: float) -> None:
    await task.deferLater(reactor, seconds, lambda: None)


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait, for a bounded time, until an asynchronous look says so."""
    for _ in range(100):
        if await condition():
            return
        await pause(0.1)
    raise AssertionError("it never came true")


@pytest_twisted.async_yield_fixture
async def sandbox(make_sandbox: Any, image: str) -> Any:
    yield await make_sandbox(image)


@pytest_twisted.async_yield_fixture
async def one_sandbox(make_sandbox: Any) -> Any:
    """Where the image makes no difference."""
    yield await make_sandbox()


# ---- output and the end ------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_stdout_and_stderr_come_apart_and_the_end_is_told_in_twisteds_order(
    sandbox: Sandbox,
) -> None:
    heard, process = spawned(sandbox, ["sh", "-c", "echo out; echo err >&2"])
    assert await ended(heard) == (0, None)
    assert (bytes(heard.stdout), bytes(heard.stderr)) == (b"out\n", b"err\n")
    assert heard.calls == ["exited", "lost 1", "lost 2", "ended"]
    assert process.pid is None


@pytest_twisted.ensureDeferred
async def test_output_comes_while_the_command_runs(sandbox: Sandbox) -> None:
    heard, process = spawned(
        sandbox, ["sh", "-c", "printf first; read line; printf '<%s>' $line"], close_stdin=False
    )
    await heard.until(lambda: heard.stdout == b"first")
    assert not heard.ended.called
    process.write(b"second\n")
    assert await ended(heard) == (0, None)
    assert heard.stdout == b"first<second>"


@pytest_twisted.ensureDeferred
async def test_every_byte_of_output_is_passed_on(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 4096 + b"\x1e\x1eno newline"
    heard, _ = spawned(sandbox, ["sh", "-c", "cat; cat /dev/null"], stdin=io.BytesIO(data))
    assert await ended(heard) == (0, None)
    assert heard.stdout == data


@pytest.mark.parametrize("code", [0, 1, 3, 126, 127, 128, 137, 143, 255])
@pytest_twisted.ensureDeferred
async def test_exit_code_is_an_exit_code_whatever_its_number(
    one_sandbox: Sandbox, code: int
) -> None:
    heard, _ = spawned(one_sandbox, ["sh", "-c", f"exit {code}"])
    assert await ended(heard) == (code, None)


@pytest_twisted.ensureDeferred
async def test_death_by_signal_is_told_apart_from_exit_codes(sandbox: Sandbox) -> None:
    for number in (9, 15, 11, 6, 1):
        heard, _ = spawned(sandbox, ["sh", "-c", f"kill -{number} $$; sleep 60"])
        assert await ended(heard) == (None, number)
        assert heard.stdout == b""
    for code in (3, 137, 143, 139):
        heard, _ = spawned(sandbox, ["sh", "-c", f"exit {code}"])
        assert await ended(heard) == (code, None)


@pytest_twisted.ensureDeferred
async def test_command_that_is_not_there_is_exit_127_and_says_so(sandbox: Sandbox) -> None:
    heard, _ = spawned(sandbox, ["/no/such/command", "x"])
    assert await ended(heard) == (127, None)
    assert b"/no/such/command" in heard.stderr
    assert heard.stdout == b""


@pytest_twisted.ensureDeferred
async def test_command_that_is_no_program_is_exit_126(sandbox: Sandbox) -> None:
    heard, _ = spawned(sandbox, ["/etc/passwd"])
    assert await ended(heard) == (126, None)


@pytest_twisted.ensureDeferred
async def test_many_commands_at_once_do_not_mix(one_sandbox: Sandbox) -> None:
    many = [spawned(one_sandbox, ["sh", "-c", f"echo {n}; exit {n}"])[0] for n in range(20)]
    for number, heard in enumerate(many):
        assert await ended(heard) == (number, None)
        assert heard.stdout == f"{number}\n".encode()


@pytest_twisted.ensureDeferred
async def test_words_of_a_build_that_look_like_ours_are_its_output(sandbox: Sandbox) -> None:
    fake = b"\x1e0123456789abcdef exit 0\n\x1e0123456789abcdef 17\n"
    heard, _ = spawned(sandbox, ["sh", "-c", "cat; exit 3"], stdin=io.BytesIO(fake))
    assert await ended(heard) == (3, None)
    assert heard.stdout == fake


# ---- arguments, environment, directory ---------------------------------------------------------

UGLY = [
    "a b", "'", '"', "\\", "$HOME", "$(touch /build/oops)", "`id`", "new\nline", "-n", "--", "-c",
    "*", "~", "", " ", "é☃", "\t", "%s", "a=b", ";exit 3",
]  # fmt: skip


@pytest_twisted.ensureDeferred
async def test_arguments_arrive_unchanged(sandbox: Sandbox) -> None:
    heard, _ = spawned(sandbox, ["printf", "<%s>", *UGLY])
    assert await ended(heard) == (0, None)
    assert heard.stdout.decode() == "".join(f"<{word}>" for word in UGLY)
    assert (await ran(sandbox, "cd /build; ls")).stdout == b""


@pytest_twisted.ensureDeferred
async def test_program_may_have_an_ugly_name(sandbox: Sandbox) -> None:
    for name in ("a b", "-dash", "quo'te", "new\nline"):
        made = await within(
            SECONDS,
            run(sandbox, ["sh", "-c", 'printf "#!/bin/sh\\necho ran" >"$1"; chmod +x "$1"', "sh",
                          f"/build/{name}"]),
        )  # fmt: skip
        assert made.exit_code == 0
        heard, _ = spawned(sandbox, [f"/build/{name}"])
        assert await ended(heard) == (0, None)
        assert heard.stdout == b"ran\n"


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, marks=differs("environment")),
        {"PATH": "/bin:/usr/bin"},
        {"PATH": "/bin:/usr/bin", "HOME": "/tmp", "LANG": "C", "A": "b c", "E": "", "N": "x\ny"},
        {"PATH": "/bin:/usr/bin", **dict.fromkeys("abcdefgklmnostuwx", "its own")},
    ],
    ids=["empty", "path", "more", "letters"],
)
@pytest_twisted.ensureDeferred
async def test_command_sees_exactly_the_environment_given(
    sandbox: Sandbox, environ: dict[str, str]
) -> None:
    """But for PWD, which the shell that changes the directory sets."""
    argv = ["/bin/cat", "/proc/self/environ"]
    heard, _ = spawned(sandbox, argv, environ=environ, directory="/build/sub")
    assert await ended(heard) == (0, None), heard.stderr
    seen = dict(line.split("=", 1) for line in heard.stdout.decode().split("\0") if line)
    assert seen.pop("PWD", "/build/sub") == "/build/sub"
    assert seen == environ


@pytest_twisted.ensureDeferred
async def test_without_an_environment_it_is_the_sandboxs_minimal_one(sandbox: Sandbox) -> None:
    seen = (await ran(sandbox, "env")).stdout.decode()
    names = {line.partition("=")[0] for line in seen.splitlines()}
    assert {"PATH", "HOME"} <= names
    assert names <= {"PATH", "HOME", "LANG", "HOSTNAME", "PWD", "SHLVL", "_", "OLDPWD"}


@pytest_twisted.ensureDeferred
async def test_directory_is_made_and_the_command_starts_there(sandbox: Sandbox) -> None:
    for directory in ("/build", "/build/a/b", "/build/with space/ü", "/build/-dash"):
        heard, _ = spawned(sandbox, ["pwd"], directory=directory)
        assert await ended(heard) == (0, None)
        assert heard.stdout.decode() == f"{directory}\n"


@pytest_twisted.ensureDeferred
async def test_directory_that_cannot_be_made_is_an_error_and_nothing_runs(
    sandbox: Sandbox,
) -> None:
    for directory in ("/etc/oops", "/proc/oops", "/etc/passwd"):
        heard, _ = spawned(sandbox, ["echo", "ran"], directory=directory)
        code, signal = await ended(heard)
        assert (signal, code) != (None, 0)
        assert heard.stdout == b""
        assert heard.stderr != b""
    assert sandbox.is_ready


@pytest_twisted.ensureDeferred
async def test_user_is_the_sandboxs_own_and_never_root(sandbox: Sandbox) -> None:
    """The busybox image has no passwd entry for it: numbers are enough."""
    uid = sandbox.identity.uid
    seen = (await ran(sandbox, "id -u; id -g; echo x >/build/x && cat /build/x")).stdout
    assert seen.split() == [f"{uid}".encode(), f"{uid}".encode(), b"x"]
    assert uid != 0


# ---- stdin -------------------------------------------------------------------------------------


class Pattern(io.RawIOBase):
    """A file of so many bytes that are nowhere in memory at once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        count = min(size if size >= 0 else self._size, self._size - self._at)
        block = bytes(range(251))
        data = (block * (count // 251 + 2))[self._at % 251 :][:count]
        self._at += count
        return data


@pytest_twisted.ensureDeferred
async def test_fifty_megabytes_of_stdin_arrive_byte_for_byte(sandbox: Sandbox) -> None:
    size = 50 * 1024 * 1024
    heard, _ = spawned(sandbox, ["sha256sum"], stdin=Pattern(size))
    assert await ended(heard) == (0, None)
    wanted, whole = hashlib.sha256(), Pattern(size)
    while data := whole.read(1 << 20):
        wanted.update(data)
    assert heard.stdout.split()[0].decode() == wanted.hexdigest()


@pytest_twisted.ensureDeferred
async def test_stdin_written_before_the_start_arrives_and_ends(sandbox: Sandbox) -> None:
    class Writes(Heard):
        def connectionMade(self) -> None:
            self.transport.write(b"some\n")  # type: ignore[union-attr]
            self.transport.write(b"input\n")  # type: ignore[union-attr]
            self.transport.closeStdin()  # type: ignore[union-attr]

    heard = Writes()
    spawn_process(sandbox, heard, ["cat"])
    assert await ended(heard) == (0, None)
    assert heard.stdout == b"some\ninput\n"


@pytest_twisted.ensureDeferred
async def test_stdin_may_be_written_and_closed_later(sandbox: Sandbox) -> None:
    heard, process = spawned(sandbox, ["cat"], close_stdin=False)
    for part in (b"one", b"two", b"three"):
        process.write(part)
        await heard.until(lambda part=part: heard.stdout.endswith(part))
    process.closeStdin()
    assert await ended(heard) == (0, None)
    assert heard.stdout == b"onetwothree"


@pytest_twisted.ensureDeferred
async def test_closed_stdin_is_at_its_end(sandbox: Sandbox) -> None:
    heard, _ = spawned(sandbox, ["cat"])
    assert await ended(heard) == (0, None)
    assert heard.stdout == b""


@pytest_twisted.ensureDeferred
async def test_empty_file_as_stdin_is_at_its_end(sandbox: Sandbox) -> None:
    heard, _ = spawned(sandbox, ["cat"], stdin=io.BytesIO())
    assert await ended(heard) == (0, None)


@pytest_twisted.ensureDeferred
async def test_command_that_does_not_read_its_stdin_ends_all_the_same(sandbox: Sandbox) -> None:
    heard, _ = spawned(sandbox, ["sh", "-c", "exit 4"], stdin=Pattern(20 * 1024 * 1024))
    assert await ended(heard) == (4, None)


# ---- signals -----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_signal_reaches_the_whole_group_and_its_trap_cleans_up(sandbox: Sandbox) -> None:
    script = (
        "trap 'rm /build/lock; echo cleaned; exit 5' TERM; touch /build/lock; echo ready;"
        " while :; do sleep 1; done"
    )
    heard, process = spawned(sandbox, ["sh", "-c", script])
    await heard.until(lambda: b"ready" in heard.stdout)
    process.signalProcess("TERM")
    assert await ended(heard) == (5, None)
    assert heard.stdout == b"ready\ncleaned\n"
    assert (await ran(sandbox, "cd /build; ls")).stdout == b""


@pytest.mark.parametrize(
    ("name", "number"), [("TERM", 15), ("INT", 2), ("HUP", 1), ("SIGTERM", 15)]
)
@pytest_twisted.ensureDeferred
async def test_command_ended_by_our_signal_says_which(
    sandbox: Sandbox, name: str, number: int
) -> None:
    heard, process = spawned(sandbox, ["sh", "-c", "echo ready; exec sleep 600"])
    await heard.until(lambda: b"ready" in heard.stdout)
    process.signalProcess(name)
    assert await ended(heard) == (None, number)
    assert sandbox.is_ready


ESCAPEES = """
(trap '' HUP INT TERM QUIT USR1; while :; do sleep 1; done) &
setsid sh -c "trap '' HUP TERM; sleep 1001" &
setsid setsid sleep 1002 &
(setsid sh -c 'sleep 1003 & sleep 1004' >/dev/null 2>&1 </dev/null &)
sleep 1005 &
trap '' TERM INT HUP
sleep 0.3 2>/dev/null || sleep 1
echo ready
while :; do sleep 1; done
"""

#: The command lines of all processes, one a line.
PROCESSES = "for each in /proc/[0-9]*; do tr '\\0' ' ' <$each/cmdline 2>/dev/null; echo; done"


async def sleepers(sandbox: Sandbox) -> list[str]:
    listed = (await ran(sandbox, PROCESSES)).stdout.decode()
    return sorted(re.findall(r"^sleep 100\d(?= $)", listed, re.MULTILINE))


@pytest_twisted.ensureDeferred
async def test_kill_ends_every_descendant_and_later_commands_still_run(sandbox: Sandbox) -> None:
    heard, process = spawned(sandbox, ["sh", "-c", ESCAPEES])
    await heard.until(lambda: b"ready" in heard.stdout)
    assert await sleepers(sandbox) == [f"sleep {number}" for number in range(1001, 1006)]
    process.signalProcess("KILL")
    assert await ended(heard) == (None, 9)
    assert await sleepers(sandbox) == []
    assert (await ran(sandbox, "echo later")).stdout == b"later\n"


@pytest_twisted.ensureDeferred
async def test_kill_ends_stopped_processes_too(sandbox: Sandbox) -> None:
    heard, process = spawned(sandbox, ["sh", "-c", "echo ready; kill -STOP $$"])
    await heard.until(lambda: b"ready" in heard.stdout)
    process.signalProcess("KILL")
    assert await ended(heard) == (None, 9)
    assert (await ran(sandbox, "echo later")).stdout == b"later\n"


FORK_BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        os.write(1, b"full")
        os.close(1)
        while True:
            try:
                os.fork()
            except OSError:
                pass
"""


@differs("bomb")
@pytest_twisted.ensureDeferred
async def test_kill_ends_a_fork_bomb(make_sandbox: Any) -> None:
    sandbox = await make_sandbox(pids=64)
    heard, process = spawned(sandbox, ["python3", "-c", FORK_BOMB])
    await heard.until(lambda: b"full" in heard.stdout)
    process.signalProcess("KILL")
    end = await ended(heard)
    if withstood_the_kill(sandbox.lost):
        return
    assert end == (None, 9)
    assert (await ran(sandbox, "echo later")).stdout == b"later\n"


@pytest_twisted.ensureDeferred
async def test_ended_command_cannot_be_signalled(one_sandbox: Sandbox) -> None:
    heard, process = spawned(one_sandbox, ["true"])
    await ended(heard)
    with pytest.raises(error.ProcessExitedAlready):
        process.signalProcess("TERM")


@pytest_twisted.ensureDeferred
async def test_command_killed_at_once_ends(sandbox: Sandbox) -> None:
    heard, process = spawned(sandbox, ["sleep", "600"])
    process.signalProcess("KILL")
    await ended(heard)
    assert (await ran(sandbox, "echo later")).stdout == b"later\n"


@pytest_twisted.ensureDeferred
async def test_command_terminated_at_once_ends(sandbox: Sandbox) -> None:
    heard, process = spawned(sandbox, ["sleep", "600"])
    process.signalProcess("TERM")
    assert await ended(heard) != (0, None)
    assert (await ran(sandbox, "echo later")).stdout == b"later\n"


@pytest_twisted.ensureDeferred
async def test_command_ends_with_its_sandbox_and_not_with_success(sandbox: Sandbox) -> None:
    heard, _ = spawned(sandbox, ["sh", "-c", "echo ready; exec sleep 600"])
    await heard.until(lambda: b"ready" in heard.stdout)
    await within(SECONDS, sandbox.destroy())
    assert await ended(heard) == (None, None)


@pytest_twisted.ensureDeferred
async def test_command_in_a_sandbox_that_is_gone_is_no_success(one_sandbox: Sandbox) -> None:
    await within(SECONDS, one_sandbox.destroy())
    heard, _ = spawned(one_sandbox, ["true"])
    assert await ended(heard) != (0, None)
    assert one_sandbox.id.encode() in heard.stderr


# ---- background --------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_background_child_that_holds_the_output_does_not_hold_up_the_end(
    sandbox: Sandbox,
) -> None:
    script = "(while :; do date >/build/alive; sleep 1; done) & echo started; exit 6"
    heard, _ = spawned(sandbox, ["sh", "-c", script])
    assert await ended(heard) == (6, None)
    assert heard.stdout == b"started\n"

    async def lives() -> bool:
        await ran(sandbox, "rm -f /build/alive")
        await pause(1.5)
        return (await ran(sandbox, "cd /build; ls")).stdout == b"alive\n"

    assert await lives()


@pytest_twisted.ensureDeferred
async def test_background_childs_later_output_does_no_harm(sandbox: Sandbox) -> None:
    script = "(sleep 1; echo late; touch /build/said) & echo started"
    heard, _ = spawned(sandbox, ["sh", "-c", script])
    assert await ended(heard) == (0, None)

    async def said() -> bool:
        return (await ran(sandbox, "sleep 1; cd /build; ls")).stdout == b"said\n"

    await eventually(said)
    assert heard.stdout == b"started\n"
    assert heard.calls.count("ended") == 1


# ---- terminal ----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_command_has_a_terminal_when_asked(sandbox: Sandbox) -> None:
    heard, _ = spawned(sandbox, ["sh", "-c", "test -t 1 && echo terminal; exit 3"], tty=True)
    assert await ended(heard) == (3, None)
    assert heard.stdout.replace(b"\r\n", b"\n") == b"terminal\n"
    plain, _ = spawned(sandbox, ["sh", "-c", "test -t 1 && echo terminal; exit 3"])
    assert await ended(plain) == (3, None)
    assert plain.stdout == b""


@pytest_twisted.ensureDeferred
async def test_terminal_takes_input_and_size_and_signals(one_sandbox: Sandbox) -> None:
    script = "stty size; echo ready; read line; echo got $line; stty size; exec sleep 600"
    heard, process = spawned(one_sandbox, ["sh", "-c", script], tty=True, close_stdin=False)
    await heard.until(lambda: b"ready" in heard.stdout)
    await within(SECONDS, process.resize(40, 132))
    process.write(b"word\n")
    await heard.until(lambda: b"40 132" in heard.stdout)
    assert b"got word" in heard.stdout
    process.signalProcess("TERM")
    assert await ended(heard) == (None, 15)


# ---- back-pressure -----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_paused_flood_stops_and_goes_on_without_loss(sandbox: Sandbox) -> None:
    size = 64 * 1024 * 1024
    heard = Heard()
    counted = [0]
    heard.outReceived = lambda data: counted.__setitem__(0, counted[0] + len(data))  # type: ignore[method-assign]
    process = spawn_process(sandbox, heard, ["head", "-c", str(size), "/dev/zero"])
    for _ in range(5):
        process.pauseProducing()
        await pause(0.3)
        before = counted[0]
        await pause(0.3)
        assert counted[0] == before
        process.resumeProducing()
        await pause(0.01)
    assert await ended(heard) == (0, None)
    assert counted[0] == size


@pytest_twisted.ensureDeferred
async def test_paused_endless_flood_can_be_killed(sandbox: Sandbox) -> None:
    heard, process = spawned(sandbox, ["yes"])
    await heard.until(lambda: len(heard.stdout) > 0)
    process.pauseProducing()
    await pause(0.5)
    process.signalProcess("KILL")
    assert await ended(heard) == (None, 9)
    assert (await ran(sandbox, "echo later")).stdout == b"later\n"


@pytest_twisted.ensureDeferred
async def test_closed_outputs_are_not_told_any_more(sandbox: Sandbox) -> None:
    heard, process = spawned(
        sandbox, ["sh", "-c", "read x; echo out; echo err >&2; exit 3"], close_stdin=False
    )
    process.closeChildFD(1)
    process.write(b"go\n")
    assert await ended(heard) == (3, None)
    assert (heard.stdout, heard.stderr) == (b"", b"err\n")


# ---- small commands of ours --------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_run_gives_output_and_exit_code_and_cuts_off_what_is_too_much(
    sandbox: Sandbox,
) -> None:
    assert await ran(sandbox, "echo out; echo err >&2; exit 3") == Completed(b"out\n", b"err\n", 3)
    much = await ran(sandbox, "head -c 1000000 /dev/zero", limit=1000)
    assert much == Completed(bytes(1000), b"", -1, is_cut=True)
    assert (await ran(sandbox, "kill -9 $$")).exit_code == -1


@pytest_twisted.ensureDeferred
async def test_arguments_and_directory_that_are_no_utf8_come_through(sandbox: Sandbox) -> None:
    arguments = [os.fsdecode(b"\xff\xfe a\n"), "\xe9", "\\0101", "-n", "q'\"$x", ""]
    directory = "/build/" + os.fsdecode(b"d\xff")
    completed = await within(
        SECONDS, run(sandbox, ["printf", "%s|", *arguments], directory=directory)
    )
    assert completed.stdout == b"".join(os.fsencode(text) + b"|" for text in arguments)
    assert (await ran(sandbox, "pwd", directory=directory)).stdout == b"/build/d\xff\n"
