"""Buildbot's worker commands, carried out from outside the sandbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sandboxworker.commands.filesystem import (
    CopyDirectory,
    MakeDirectory,
    RemoveDirectory,
    RemoveFile,
    StatFile,
)
from sandboxworker.commands.listing import GlobPath, ListDirectory
from sandboxworker.commands.shell import Shell
from sandboxworker.commands.transfer import DownloadFile, UploadDirectory, UploadFile

#: Every command that a sandbox carries out, by the name that the master uses.
COMMANDS: dict[str, Callable[..., Any]] = {
    "shell": Shell,
    "mkdir": MakeDirectory,
    "rmdir": RemoveDirectory,
    "rmfile": RemoveFile,
    "cpdir": CopyDirectory,
    "stat": StatFile,
    "glob": GlobPath,
    "listdir": ListDirectory,
    "uploadFile": UploadFile,
    "upload_file": UploadFile,
    "uploadDirectory": UploadDirectory,
    "upload_directory": UploadDirectory,
    "downloadFile": DownloadFile,
    "download_file": DownloadFile,
}
