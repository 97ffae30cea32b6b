"""What is told of a file where GNU's stat works, and where only find does, as under gVisor."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import defer

from sandboxworker.commands.base import told_by_stat
from sandboxworker.commands.filesystem import _STAT_FORMAT, _stat_fields
from sandboxworker.process import Completed


def tools(*, stat: bool) -> Any:
    """Runs this machine's tools; ``stat``: whether its own works."""

    async def run(argv: Sequence[str], limit: int) -> Completed:
        if argv[0] == "stat" and not stat:
            return Completed(b"", b"stat: cannot statx 'x': Invalid argument\n", 1)
        done = subprocess.run(argv, capture_output=True, check=False)
        return Completed(done.stdout[:limit], done.stderr, done.returncode)

    return run


def told(path: str, *, stat: bool, fields: str = _STAT_FORMAT) -> Completed:
    found: list[Completed] = []
    asking = defer.ensureDeferred(told_by_stat(tools(stat=stat), path, fields, 4096))
    asking.addCallback(found.append)
    return found[0]


@pytest.mark.parametrize("stat", [True, False])
@pytest.mark.parametrize("kind", ["file", "-dash", "folder", "pipe", "link", "device"])
def test_the_numbers_are_those_of_os_stat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stat: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("twelve bytes")
    (tmp_path / "file").chmod(0o4751)
    (tmp_path / "-dash").write_text("")
    (tmp_path / "folder").mkdir(mode=0o1700)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "device").symlink_to("/dev/null")
    answer = told(kind, stat=stat)
    expected = tuple(os.stat(kind))
    assert _stat_fields(answer.stdout) == expected
    assert answer.exit_code == 0


@pytest.mark.parametrize("stat", [True, False])
@pytest.mark.parametrize("kind", ["absent", "dangling"])
def test_what_is_not_there_is_told_so(tmp_path: Path, kind: str, stat: bool) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    answer = told(str(tmp_path / kind), stat=stat)
    assert answer.exit_code == 1
    assert b"No such file or directory" in answer.stderr


def test_times_have_no_fractions(tmp_path: Path) -> None:
    os.utime(tmp_path, (12.75, 34.5))
    assert told(str(tmp_path), stat=False, fields="%X %Y").stdout == b"12 34"
