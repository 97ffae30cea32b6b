"""Twisted's ``spawnProcess``, inside a sandbox."""

from __future__ import annotations

import contextlib
import io
import secrets
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from twisted.internet import defer, error, interfaces
from twisted.internet.protocol import ProcessProtocol
from twisted.protocols.basic import FileSender
from twisted.python.failure import Failure
from zope.interface import implementer

from sandboxworker import figures, launch, shells
from sandboxworker.engine.interface import STDERR, STDOUT, Stream
from sandboxworker.errors import (
    EngineError,
    EngineRefused,
    EngineTimeout,
    ExecFailed,
    SandboxGone,
)
from sandboxworker.kept import Kept
from sandboxworker.launch import Ended, Marked
from sandboxworker.limits import Counts
from sandboxworker.sandbox import Sandbox
from sandboxworker.unexpected import unexpected

#: How long the last output of a killed command is waited for.
_TAIL_SECONDS = 2.0

#: Seconds within which the engine knows that a command has ended whose stream it has closed itself;
#: where a stream was cut on its way the command went on.
_NOTED_WITHIN = 1.0

#: What is told of a command that ended with 0, but not with the words that it does so with: a build
#: that takes the place of our shell.
_UNTOLD = 126
_WHY_UNTOLD = (
    b"sandboxworker: the end of this command's output never came, so that it ended with 0 does not "
    b"count: its stream was cut just then, or what the build runs took the place of its shell\n"
)

#: The engine's exit code for a command that it could not start.
_NOT_STARTED = 126
#: Bytes of each output that a waiting shell may write before it takes its command.
_MOST_EARLY = 4096


@implementer(interfaces.IProcessTransport, interfaces.IConsumer, interfaces.IPushProducer)
class SandboxProcess:
    """One command in a sandbox, as a Twisted process transport.

    What the protocol writes in ``connectionMade`` and closes there is sent as a whole with its
    length, which works over every transport; what it writes later goes through as it comes.
    ``pid`` is the process group's id inside the sandbox, None before the start and after the end.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        protocol: ProcessProtocol,
        argv: Sequence[str],
        environ: Mapping[str, str] | None,
        directory: str,
        *,
        tty: bool = False,
        stdin: Any = None,
    ) -> None:
        self.pid: int | None = None
        self.sandbox = sandbox
        self.proto = protocol
        self._argv = tuple(argv)
        self._environ = None if environ is None else dict(environ)
        self._directory = directory
        self._tty = tty
        self._new_word()
        self._stdin = stdin
        self._written = bytearray()
        self._stdin_open = stdin is None
        self._stream: Stream | None = None
        self._exec_id = ""
        #: While a waiting shell has been given the command and has not said that it took it.
        self._offer: shells.Offer | None = None
        #: What came meanwhile: a complaint of the shell's, or its build's mischief.
        self._early = {channel: Kept(_MOST_EARLY) for channel in (STDOUT, STDERR)}
        self._closed: set[int] = set()
        self._signalled: int | None = None
        self._paused = False
        self._over = False
        self._asked_at = 0.0

    # start

    def start(self) -> None:
        """Tell the protocol, then run; everything further reaches the protocol."""
        self._asked_at = self.sandbox.reactor.seconds()
        self.proto.makeConnection(self)
        running = defer.ensureDeferred(self._run())
        running.addErrback(unexpected(f"sandbox {self.sandbox.id}: running a command"))

    @property
    def is_over(self) -> bool:
        """Whether the end has been told."""
        return self._over

    def _new_word(self) -> None:
        self._word = word = "\x1e" + secrets.token_hex(8)
        self._marked = {channel: Marked(word.encode() + b" ") for channel in (STDOUT, STDERR)}

    async def _run(self) -> None:
        if not await self._run_in_waiting_shell():
            await self._run_in_new_shell()

    async def _run_in_waiting_shell(self) -> bool:
        """Whether it was begun, or may have been, in a shell that waited for a command."""
        stdin, size = self._whole_stdin()
        lines = launch.lines(self._word, self._directory, self._argv, size, self._environ)
        if lines is None or self._tty or (stdin is None and self._stdin_open):
            return False
        shell = await shells.take(self.sandbox)
        if shell is None or not self.sandbox.is_ready:
            return False
        self._exec_id, self._stream = shell.hand_over(self)
        if self._over:
            self.sandbox.release(self._stream)
            return True
        self._stream.write(lines)
        if not await self._is_taken(shell):
            self.sandbox.release(self._stream)
            self._stream = None
            self._new_word()
            return False
        self._go_on(stdin)
        return True

    async def _is_taken(self, shell: shells.WaitingShell) -> bool:
        """Whether the shell took the command; False only where it is dead and has not."""
        self._offer = offer = shells.Offer(self.sandbox, shell)
        answer = await offer.answer()
        self._offer = None
        if answer is None and not self._over:
            late = EngineTimeout(self.sandbox.engine.name, "command", shells.ANSWER_DEADLINE)
            self.sandbox.lose(await self.sandbox.blame(late))
        if answer is not False or self._over:
            return True
        return not await self._is_dead(offer.reason)

    async def _is_dead(self, reason: Exception | None) -> bool:
        """Whether the shell was killed before it began; if that is not sure, its end is told.

        A stream that was cut on its way tells nothing, and a status that is none of a signal's may
        be the command's.
        """
        asked, status = self.sandbox.reactor.seconds(), None
        if reason is None and self.sandbox.is_ready and self._signalled != signal.SIGKILL:
            with contextlib.suppress(EngineError):
                status = await self.sandbox.exec_status(self._exec_id)
        is_late = self.sandbox.reactor.seconds() - asked > _NOTED_WITHIN
        is_dead = status is not None and status > 128 and not is_late and self.pid is None
        if not is_dead:
            self._give_early()
            await self._ask(reason)
        return is_dead and not self._over

    async def _run_in_new_shell(self) -> None:
        stdin, size = self._whole_stdin()
        streaming = stdin is None and self._stdin_open
        argv = launch.launch(self._word, self._directory, self._argv, size, self._environ)
        try:
            self._exec_id, self._stream = await self.sandbox.exec(
                argv,
                self,
                environ=self._environ,
                tty=self._tty,
                stdin=streaming or stdin is not None,
            )
        except EngineError as reason:
            self._not_started(await self.sandbox.blame(reason))
            return
        if self._over:
            self.sandbox.release(self._stream)
            return
        self._go_on(stdin)

    def _go_on(self, stdin: Any) -> None:
        if self._stream is None or self._over:
            return
        if self._paused:
            self._stream.pause()
        if stdin is not None:
            self._send(stdin)
        elif self._written:
            self._stream.write(bytes(self._written))

    def _whole_stdin(self) -> tuple[Any, int | None]:
        """The stdin that is known in full by now, and its length."""
        if self._stdin is not None:
            size = getattr(self._stdin, "size", None)
            return self._stdin, _length(self._stdin) if size is None else int(size)
        if self._stdin_open or not self._written:
            return None, None
        return io.BytesIO(bytes(self._written)), len(self._written)

    def _send(self, stdin: Any) -> None:
        consumer = _Consumer(self._stream)
        if hasattr(stdin, "begin"):
            sending = stdin.begin(consumer)
        else:
            sending = FileSender().beginFileTransfer(stdin, consumer)
        sending.addErrback(lambda _: None)  # The stream ended first; that is told elsewhere.

    def _not_started(self, reason: Exception) -> None:
        """A refusal is the build's own doing (its processes fill the limit); the rest is not."""
        self._give(STDERR, f"sandboxworker: {reason}\n".encode())
        if not isinstance(reason, (EngineRefused, SandboxGone)):
            self.sandbox.lose(reason)
        ended = Ended(exit_code=126) if isinstance(reason, EngineRefused) else Ended()
        # Not within the call that started it: nobody expects an end before a beginning.
        self.sandbox.reactor.callLater(0, self._end, ended)

    # the engine's side (see `interface.StreamReceiver`)

    def stream_received(self, channel: int, data: bytes) -> None:
        marked = self._marked[channel]
        output = marked.feed(data)
        if channel == STDOUT and self.pid is None and marked.words:
            self.pid = _number(marked.words.pop(0))
            self._begun()
        if output and self._offer is not None and self.pid is None:
            self._keep_early(channel, output)
        elif output:
            self._give(channel, output)
        if self._is_told():
            kind, _, numbers = self._marked[STDOUT].words[0].partition(" ")
            status, *counts = numbers.split(" ")
            self.sandbox.counts = self.sandbox.counts.with_(Counts.told(counts))
            self._end(self._told(kind, min(_number(status), 255)))

    def _keep_early(self, channel: int, output: bytes) -> None:
        """Bounded, since nobody may be told to wait before the answer has come."""
        self._early[channel].add(output)
        if self._offer is not None and self._early[channel].is_cut:
            self._offer.give_up()

    def _give_early(self) -> None:
        for channel, kept in self._early.items():
            if kept.data:
                self._give(channel, bytes(kept.data))
                kept.data.clear()

    def _begun(self) -> None:
        """It told its pid."""
        seconds = self.sandbox.reactor.seconds() - self._asked_at
        figures.command_started(self.sandbox.engine.name, seconds)
        if self._offer is not None:
            self._offer.tell(True)
            self._give_early()
        if self.sandbox.anticipates:
            shells.prepare(self.sandbox)
        self._send_early_signal()

    def _is_told(self) -> bool:
        """The end is told on each stream behind the last byte of that stream."""
        channels = (STDOUT,) if self._tty else (STDOUT, STDERR)
        return self.pid is not None and all(self._marked[each].words for each in channels)

    def stream_ended(self, reason: Exception | None) -> None:
        """The streams ended, and nothing was told: only the engine knows the end, if it does."""
        if self._offer is not None:
            self._offer.tell(False, reason)
        elif not self._over:
            asking = defer.ensureDeferred(self._ask(reason))
            asking.addErrback(unexpected(f"sandbox {self.sandbox.id}: asking for a command's end"))

    async def _ask(self, reason: Exception | None) -> None:
        if not self.sandbox.is_ready:
            self._end(Ended())
            return
        asked = self.sandbox.reactor.seconds()
        try:
            status = None if reason else await self.sandbox.exec_status(self._exec_id)
        except EngineError as error_:
            status, reason = None, error_
        was_slow = self.sandbox.reactor.seconds() - asked > _NOTED_WITHIN
        if self._signalled is None and not await self.sandbox.still_runs():
            self._end(Ended())
            return
        if status == _NOT_STARTED and self.pid is None:
            self._give(STDERR, self._why_not_started().encode())
        if status == 0:
            # The end of the output is missing: never success.
            status = None if was_slow else _UNTOLD
            if status == _UNTOLD:
                self._give(STDERR, _WHY_UNTOLD)
        if status is None:
            self.sandbox.lose(reason or SandboxGone(self.sandbox.id, "unsure of a command's end"))
            self._end(Ended())
        else:
            # Our shell itself was ended from inside, by a signal as a rule.
            self._end(self._told("signal", status))

    def _why_not_started(self) -> str:
        return (
            "sandboxworker: the engine could not start the command; processes that earlier steps "
            f"left behind may hold the policy's pids ({self.sandbox.spec.pids})\n"
        )

    def _told(self, kind: str, status: int) -> Ended:
        """A status that our own signal explains is that signal, whatever the shell made of it."""
        if self._signalled is not None and status == 128 + self._signalled:
            return Ended(signal=self._signalled)
        return Ended.told(kind, status)

    def _give(self, channel: int, data: bytes) -> None:
        if self._over or channel in self._closed:
            return
        if channel == STDOUT:
            self.proto.outReceived(data)
        else:
            self.proto.errReceived(data)

    def _end(self, ended: Ended) -> None:
        if self._over:
            return
        self._over = True
        self.pid = None
        if self._offer is not None:
            self._offer.tell(True)
        # What was to be sent is not kept until the next garbage collection.
        self._stdin, self._written = None, bytearray()
        if self._stream is not None:
            self.sandbox.release(self._stream)
        reason = ended.reason()
        self.proto.processExited(reason)
        for channel in (STDOUT, STDERR):
            self.proto.childConnectionLost(channel)
        self.proto.processEnded(reason)

    # the protocol's side: IProcessTransport

    def writeToChild(self, childFD: int, data: bytes) -> None:
        if childFD != 0:
            raise KeyError(childFD)
        self.write(data)

    def write(self, data: bytes) -> None:
        if not self._stdin_open:
            return
        if self._stream is None:
            self._written += data
        else:
            self._stream.write(data)

    def writeSequence(self, data: Sequence[bytes]) -> None:
        self.write(b"".join(data))

    def closeChildFD(self, descriptor: int) -> None:
        if descriptor == 0:
            self.closeStdin()
        else:
            self._closed.add(descriptor)

    def closeStdin(self) -> None:
        if self._stdin_open and self._stream is not None:
            self._stream.close_write()
        self._stdin_open = False

    def closeStdout(self) -> None:
        self._closed.add(STDOUT)

    def closeStderr(self) -> None:
        self._closed.add(STDERR)

    def loseConnection(self) -> None:
        """No more input and no more output; the end is still told."""
        self.closeStdin()
        self._closed |= {STDOUT, STDERR}

    def abandon(self) -> None:
        """Ask it to end, take no more of its output, and tell its end now, obeyed or not."""
        if not self._over:
            self.signalProcess("TERM")
            self._end(Ended())

    def signalProcess(self, signalID: str | int) -> None:
        """Signal the command's process group; ``KILL`` kills everything that the build runs."""
        if self._over:
            raise error.ProcessExitedAlready()
        number = _signal_number(signalID)
        self._signalled = number
        if number == signal.SIGKILL:
            self._kill()
        elif self.pid is not None:
            self._send_signal(number, self.pid)

    def _send_early_signal(self) -> None:
        """What was sent before there was anybody to receive it."""
        if self._signalled is not None and self.pid is not None:
            self._send_signal(self._signalled, self.pid)

    def _send_signal(self, number: int, pid: int) -> None:
        name = signal.Signals(number).name.removeprefix("SIG")
        sending = defer.ensureDeferred(self._signal(name, -pid))
        sending.addErrback(unexpected(f"sandbox {self.sandbox.id}: sending SIG{name}"))

    async def _signal(self, name: str, pid: int) -> None:
        # Where nobody is left to hear it, or a build hinders it, KILL is what will do.
        with contextlib.suppress(SandboxGone, ExecFailed, EngineRefused):
            await self.sandbox.signal(name, pid)

    def _kill(self) -> None:
        """Everything dies, also what has left the session; then the streams end by themselves.

        Its output is read on, and dropped: the engine's kill hangs behind an unread stream.
        """
        self._closed |= {STDOUT, STDERR}
        self.resumeProducing()
        killing = defer.ensureDeferred(self.sandbox.kill_all())
        killing.addCallback(lambda _: self._end_soon(Ended(signal=int(signal.SIGKILL))))
        killing.addErrback(unexpected(f"sandbox {self.sandbox.id}: killing a command"))

    def _end_soon(self, ended: Ended) -> None:
        """All is dead: what it had written is on its way, but is not waited for long."""
        if not self._over:
            self.sandbox.reactor.callLater(_TAIL_SECONDS, self._end, ended)

    def resize(self, rows: int, columns: int) -> defer.Deferred[None]:
        """Tell the command's terminal its size."""
        return defer.ensureDeferred(self.sandbox.engine.resize(self._exec_id, rows, columns))

    # back-pressure: IPushProducer for the output, IConsumer for the input

    def pauseProducing(self) -> None:
        self._paused = True
        # The answer to an offer must be heard; nothing else comes before it.
        if self._stream is not None and self._offer is None:
            self._stream.pause()

    def resumeProducing(self) -> None:
        self._paused = False
        if self._stream is not None and not self._over:
            self._stream.resume()

    def stopProducing(self) -> None:
        self.loseConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self._stream is not None:
            self._stream.register_producer(producer, streaming)

    def unregisterProducer(self) -> None:
        if self._stream is not None:
            self._stream.unregister_producer()

    def getPeer(self) -> str:
        return self.sandbox.id

    def getHost(self) -> str:
        return self.sandbox.id


@implementer(interfaces.IConsumer)
class _Consumer:
    """A stream's input, for Twisted's ``FileSender``."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, data: bytes) -> None:
        self._stream.write(data)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._stream.register_producer(producer, streaming)

    def unregisterProducer(self) -> None:
        self._stream.unregister_producer()


def _length(file: Any) -> int:
    here: int = file.tell()
    end: int = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end - here


def _number(text: str) -> int:
    """What our shell lines gave as a number; a build that fakes it gets one that fails."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 2**31 - 1


def _signal_number(signal_id: str | int) -> int:
    if isinstance(signal_id, int):
        return signal_id
    return int(signal.Signals["SIG" + signal_id.removeprefix("SIG")])


@attrs.frozen
class Completed:
    """A finished command: its output as far as it was kept, and its exit code.

    The exit code is -1 where a signal ended it, or where it was not waited for.

    ``is_cut``: there was more output than was kept.
    """

    stdout: bytes
    stderr: bytes
    exit_code: int
    is_cut: bool = False


class _Collector(ProcessProtocol):
    """Keeps a small command's output, up to a limit; one that writes more is not waited for."""

    transport: Any

    def __init__(self, limit: int) -> None:
        self._output = {STDOUT: Kept(limit), STDERR: Kept(limit)}
        self.completed: defer.Deferred[Completed] = defer.Deferred(self._give_up)

    def connectionMade(self) -> None:
        self.transport.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        kept = self._output[childFD]
        kept.add(data)
        if kept.is_cut:
            self.transport.abandon()

    def _give_up(self, _completed: Any) -> None:
        """Nobody waits any more; that it has ended without an exit code is the answer."""
        self.transport.abandon()

    def outReceived(self, data: bytes) -> None:
        self.childDataReceived(STDOUT, data)

    def errReceived(self, data: bytes) -> None:
        self.childDataReceived(STDERR, data)

    def processEnded(self, reason: Failure) -> None:
        code = getattr(reason.value, "exitCode", None)
        out, err = self._output[STDOUT], self._output[STDERR]
        self.completed.callback(
            Completed(
                stdout=bytes(out.data),
                stderr=bytes(err.data),
                exit_code=-1 if code is None else code,
                is_cut=out.is_cut or err.is_cut,
            )
        )


def spawn_process(
    sandbox: Sandbox,
    protocol: ProcessProtocol,
    argv: Sequence[str],
    environ: Mapping[str, str] | None = None,
    directory: str = "/",
    *,
    tty: bool = False,
    stdin: Any = None,
) -> SandboxProcess:
    """Twisted's ``spawnProcess``, inside a sandbox.

    ``environ``: exactly what the process sees; None for the sandbox's minimal one.
    ``directory``: where it starts; made if it is not there.
    ``stdin``: a seekable file that is sent as the process's input, streamed; or what has ``size``
    bytes and sends them to a consumer when told to ``begin``, until a Deferred fires.
    """
    process = SandboxProcess(sandbox, protocol, argv, environ, directory, tty=tty, stdin=stdin)
    process.start()
    return process


def run(
    sandbox: Sandbox,
    argv: Sequence[str],
    *,
    directory: str = "/",
    stdin: Any = None,
    limit: int = 1024 * 1024,
) -> defer.Deferred[Completed]:
    """Run a small command of ours; ``limit`` bytes of each output are kept, and ``is_cut`` told.

    Cancelled, or timed out, it is not waited for, and completes at once with exit code -1.
    """
    collector = _Collector(limit)
    spawn_process(sandbox, collector, argv, None, directory, stdin=stdin)
    return collector.completed
