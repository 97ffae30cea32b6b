"""Files of a sandbox brought back, under the rules of an upload."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from twisted.internet import defer
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from sandboxworker.commands.archive import ArchiveRefused, Limits, rewrite
from sandboxworker.errors import SandboxworkerError
from sandboxworker.policy import SandboxPolicy
from sandboxworker.process import spawn_process
from sandboxworker.sandbox import Sandbox

#: What an archive may have beside its files' content.
_HEADERS = 16 * 1024 * 1024


async def bring_back(
    sandbox: Sandbox, directory: str, paths: Sequence[str], out: Path, policy: SandboxPolicy
) -> list[str]:
    """Copy these files and directories below ``out``: the names of the files that came.

    Links, devices and what leaves the directory do not; the policy's ``max_upload`` and
    ``max_upload_files`` hold. Raises `SandboxworkerError`.
    """
    with tempfile.TemporaryFile() as raw, tempfile.TemporaryFile() as checked:
        into = _Into(raw, policy.max_upload + _HEADERS)
        argv = ("tar", "-cf", "-", "--", *(f"./{path.lstrip('/')}" for path in paths))
        spawn_process(sandbox, into, argv, None, directory)
        if await into.ended != 0:
            raise _refused(into.problem)
        raw.seek(0)
        limits = Limits(policy.max_upload, policy.max_upload_files)
        try:
            rewrite(raw, checked, None, limits, lambda _name: None)
        except ArchiveRefused as error:
            raise _refused(str(error)) from None
        checked.seek(0)
        return _unpacked(checked, out)


def _refused(why: str) -> SandboxworkerError:
    return SandboxworkerError(
        "the artifacts could not be brought back",
        details=why,
        resolution="Name what the command makes; max_upload bounds it",
    )


def _unpacked(checked: IO[bytes], out: Path) -> list[str]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=checked, mode="r:") as tar:
            members = tar.getmembers()
            tar.extractall(out, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise SandboxworkerError(f"{out} cannot take the artifacts", details=str(error)) from None
    return sorted(member.name for member in members if member.isreg())


class _Into(ProcessProtocol):
    """Keeps a command's output in a file, up to a limit."""

    transport: Any

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file = file
        self._left = limit
        self.problem = "tar failed"
        self._has_said = False
        self.ended: defer.Deferred[int] = defer.Deferred()

    def connectionMade(self) -> None:
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self.problem = "they are larger than the policy's max_upload"
            self.transport.abandon()
            return
        self._file.write(data)

    def errReceived(self, data: bytes) -> None:
        """The first words name the file, the last ones only sum up."""
        said = data.decode(errors="replace").strip().splitlines()
        if said and not self._has_said:
            self._has_said, self.problem = True, said[0][:200]

    def processEnded(self, reason: Failure) -> None:
        code = getattr(reason.value, "exitCode", None)
        self.ended.callback(1 if code is None or self._left < 0 else int(code))
