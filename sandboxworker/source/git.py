"""git on the master's side: hardened, without the master's settings, bounded in time and size."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from buildbot.util.runprocess import RunProcess
from twisted.internet import defer

from sandboxworker.errors import SourceFailed
from sandboxworker.kept import Kept
from sandboxworker.policy import show_size
from sandboxworker.source.access import Access

#: What reaches git from the master's environment: how it gets out, and whom it trusts.
_PASSED = (
    "PATH",
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH"),
)

#: The only settings that git reads, but for a mirror's own.
#: The messages of fsck that are let pass are about old histories' form and endanger nobody.
SETTINGS = """\
[core]
\thooksPath = /dev/null
\tfsmonitor = false
\tattributesFile = /dev/null
\texcludesFile = /dev/null
[protocol]
\tversion = 2
\tallow = never
[transfer]
\tfsckObjects = true
[fetch]
\tunpackLimit = 1
\trecurseSubmodules = false
[fetch "fsck"]
\tbadTimezone = warn
\tmissingSpaceBeforeDate = warn
\tmissingSpaceBeforeEmail = warn
\tzeroPaddedFilemode = warn
[submodule]
\trecurse = false
[credential]
\thelper =
[http]
\tlowSpeedLimit = 1000
\tlowSpeedTime = 300
[gc]
\tautoDetach = false
[pack]
\tthreads = 1
[safe]
\tdirectory = *
[uploadpack]
\tallowAnySHA1InWant = true
[tar]
\tumask = 0022
[init]
\tdefaultBranch = main
"""

#: Bytes of a command's output that are kept: of a list of refs, at most.
_MOST_OUTPUT = 32 * 1024 * 1024
_MOST_ERRORS = 64 * 1024
#: Seconds without a word after which a transfer is given up.
_SILENCE = 600
_LINES_TOLD = 6
_OF_NO_USE = re.compile(r"^(hint|warning):|\d% \(")

#: A file's size is bounded by the kernel: $1 is POSIX's blocks of 512 bytes.
_BOUNDED = 'ulimit -f "$1" || exit 125; shift; exec setsid git "$@"'
_BLOCK = 512


class _Process(RunProcess):
    """Buildbot's own, with nothing of the master's environment; git's helpers die with it."""

    def get_os_env(self) -> dict[str, str]:
        return {}

    def send_signal(self, interrupt_signal: str) -> bool:
        try:
            os.killpg(self.process.pid, signal.Signals[f"SIG{interrupt_signal}"])
        except (ProcessLookupError, TypeError):
            # Not its own leader yet, or gone.
            return bool(super().send_signal(interrupt_signal))
        return True


@attrs.frozen
class Limits:
    """``seconds`` for one git command; ``size``: bytes that a repository may have."""

    seconds: float
    size: int

    @property
    def largest_file(self) -> int:
        """The kernel's limit, which counts in blocks."""
        return max(1, self.size // _BLOCK) * _BLOCK

    @property
    def passed(self) -> str:
        return f"it is larger than the policy's max_source ({show_size(self.size)})"


@attrs.frozen
class Git:
    """Runs git for one purpose: a private home with what it needs to log in, and limits.

    ``protocols``: what it may speak, as ``GIT_ALLOW_PROTOCOL`` has it; ``told``: is given the
    lines that git says meanwhile.
    """

    reactor: Any
    home: Path
    limits: Limits
    options: tuple[str, ...] = ()
    environ: Mapping[str, str] = attrs.Factory(dict)
    protocols: str = ""
    told: Callable[[str], None] = attrs.field(default=lambda _: None)

    async def run(self, *args: str, directory: Path, stdin: bytes | None = None) -> bytes:
        """Run git to its end: what it wrote to stdout. Raises `SourceFailed`, with its words."""
        code, output, errors = await self._finished(args, directory, stdin)
        if code != 0:
            raise SourceFailed(f"git {args[0]}", self._reason(errors))
        return output

    async def attempt(self, *args: str, directory: Path) -> bytes | None:
        """As `run`; None where git says no."""
        code, output, _ = await self._finished(args, directory, None)
        return output if code == 0 else None

    async def _finished(
        self, args: tuple[str, ...], directory: Path, stdin: bytes | None
    ) -> tuple[int, bytes, bytes]:
        output, errors = Kept(_MOST_OUTPUT), Kept(_MOST_ERRORS)
        process = _Process(
            self.reactor,
            self._argv(args),
            workdir=str(directory),
            env=self._environ(),
            collect_stdout=output.add,
            collect_stderr=self._listen(errors),
            io_timeout=_SILENCE,
            runtime_timeout=self.limits.seconds,
            sigterm_timeout=2,
            initial_stdin=stdin,
        )
        code = await _killed_if_cancelled(self.reactor, process)
        if output.is_cut:
            raise SourceFailed(f"git {args[0]}", "its answer is too long")
        return code, bytes(output.data), bytes(errors.data)

    def _argv(self, args: tuple[str, ...]) -> list[str]:
        blocks = str(self.limits.largest_file // _BLOCK)
        return ["/bin/sh", "-c", _BOUNDED, "sh", blocks, *self.options, *args]

    def _environ(self) -> dict[str, str]:
        passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
        return {
            **passed,
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ALLOW_PROTOCOL": self.protocols,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "SSH_ASKPASS": "/bin/false",
            **self.environ,
        }

    def _listen(self, errors: Kept) -> Callable[[bytes], None]:
        def listen(data: bytes) -> None:
            errors.add(data)
            lines = self._lines(data)
            if lines:
                self.told(lines[-1])

        return listen

    def _lines(self, data: bytes) -> list[str]:
        """Where the mirrors lie is the master's own affair: builds read this (T16)."""
        return [line.replace(f"{self.home.parent}/", "") for line in printable(data)]

    def _reason(self, errors: bytes) -> str:
        if re.search(rb"File size limit|signal 25|File too large", errors):
            return self.limits.passed
        lines = [line for line in self._lines(errors) if not _OF_NO_USE.search(line)]
        return "; ".join(lines[-_LINES_TOLD:])[-1000:] or "git gave no reason"


def printable(data: bytes) -> list[str]:
    """A server may say anything; this is what of it can be shown."""
    text = data.decode(errors="replace")
    lines = (
        "".join(c for c in line if c.isprintable()).strip() for line in re.split("[\r\n]", text)
    )
    return [line for line in lines if line]


async def _killed_if_cancelled(reactor: Any, process: RunProcess) -> int:
    running = process.start()
    waiting: defer.Deferred[int] = defer.Deferred(lambda _: process.kill("nobody waits for it"))
    running.chainDeferred(waiting)
    at_the_end = reactor.addSystemEventTrigger("before", "shutdown", process.kill, "master stops")
    try:
        return await waiting
    finally:
        reactor.removeSystemEventTrigger(at_the_end)


@contextmanager
def prepared(
    reactor: Any,
    parent: Path,
    limits: Limits,
    access: Access | None = None,
    told: Callable[[str], None] = lambda _: None,
    protocols: str = "",
) -> Iterator[Git]:
    """A `Git` with a home of its own, which is removed afterwards with the keys in it.

    Without ``access`` it speaks to nobody.
    """
    home = Path(tempfile.mkdtemp(prefix="home-", dir=parent))  # 0700
    try:
        (home / ".gitconfig").write_text(SETTINGS)
        if access is None:
            yield Git(reactor, home, limits, told=told)
            return
        options, environ = _helper(home, access), _ssh(home, access)
        yield Git(reactor, home, limits, options, environ, protocols, told)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _private(file: Path, text: str) -> Path:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text)
    return file


def _helper(home: Path, access: Access) -> tuple[str, ...]:
    """git's own store of passwords, in a file: none stands in a command line."""
    options: tuple[str, ...] = (
        "-c",
        f"credential.helper=store --file={shlex.quote(str(home / 'credentials'))}",
    )
    if access.use_http_path is not None:
        options += ("-c", f"credential.useHttpPath={str(access.use_http_path).lower()}")
    return options


def _ssh(home: Path, access: Access) -> dict[str, str]:
    command = ["ssh", "-o", "BatchMode=yes", "-o", "ForwardAgent=no", "-o", "PermitLocalCommand=no"]
    environ = {}
    if access.private_key is not None:
        key = _private(home / "ssh-key", access.private_key)
        command += ["-F", "none", "-i", str(key), "-o", "IdentitiesOnly=yes"]
        command += ["-o", "IdentityAgent=none"]
    elif not access.is_own:
        command += ["-F", "none", "-o", "IdentityFile=none", "-o", "IdentityAgent=none"]
    elif "SSH_AUTH_SOCK" in os.environ:
        environ["SSH_AUTH_SOCK"] = os.environ["SSH_AUTH_SOCK"]
    if access.known_hosts is not None:
        hosts = _private(home / "known-hosts", access.known_hosts)
        command += ["-o", f"UserKnownHostsFile={hosts}", "-o", "GlobalKnownHostsFile=/dev/null"]
    return {**environ, "GIT_SSH_COMMAND": shlex.join(command), "GIT_SSH_VARIANT": "ssh"}
