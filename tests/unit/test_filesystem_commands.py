"""What the image's small tools say, in Buildbot's words."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.commands.base import told_error
from sandboxworker.commands.filesystem import _stat_fields


@pytest.mark.parametrize(
    ("said", "number"),
    [
        (b"mkdir: cannot create directory '/x': Read-only file system\n", errno.EROFS),
        (b"mkdir: can't create directory '/x': Read-only file system\n", errno.EROFS),
        (b"rm: cannot remove 'a: b': No such file or directory\n", errno.ENOENT),
        (b"stat: cannot statx 'f/below': Not a directory\n", errno.ENOTDIR),
        (b"one: No such file or directory\ntwo: Permission denied\n", errno.EACCES),
        (b"x: No space left on device\nand then something else\n", errno.ENOSPC),
        (b"rm: 'Permission denied': Is a directory", errno.EISDIR),
    ],
)
def test_the_error_at_the_end_of_a_line_is_understood(said: bytes, number: int) -> None:
    assert told_error(said) == (number, os.strerror(number))


@pytest.mark.parametrize(
    "said", [b"", b"\n", b"Killed", b"Permission denied but not quite", b"\xff\xfe: \xff", b": "]
)
def test_what_is_not_understood_is_an_input_output_error(said: bytes) -> None:
    assert told_error(said) == (errno.EIO, os.strerror(errno.EIO))


@given(st.binary(max_size=200))
def test_any_bytes_give_some_error_and_never_none(said: bytes) -> None:
    number, text = told_error(said)
    assert number in errno.errorcode
    assert text == os.strerror(number)


def test_the_ten_numbers_of_stat_are_in_the_order_of_os_stat() -> None:
    fields = _stat_fields(b"81a4 11 22 1 1000 1001 5 1000000001 1000000002 1000000003\n")
    assert fields is not None
    found = os.stat_result(fields)
    assert found.st_mode == 0o100644
    assert (found.st_ino, found.st_dev, found.st_nlink) == (11, 22, 1)
    assert (found.st_uid, found.st_gid, found.st_size) == (1000, 1001, 5)
    assert (found.st_atime, found.st_mtime, found.st_ctime) == (
        1_000_000_001, 1_000_000_002, 1_000_000_003,
    )  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"81a4",
        b"81a4 1 2 3 4 5 6 7 8",
        b"81a4 1 2 3 4 5 6 7 8 9 10",
        b"mode 1 2 3 4 5 6 7 8 9",
        b"81a4 1 2 three 4 5 6 7 8 9",
        b"81a4 1 2 3.5 4 5 6 7 8 9",
        b"\xff 1 2 3 4 5 6 7 8 9",
    ],
)
def test_what_is_no_answer_of_stat_is_none(line: bytes) -> None:
    assert _stat_fields(line) is None


@given(st.binary(max_size=100))
def test_any_bytes_are_ten_numbers_or_none(line: bytes) -> None:
    fields = _stat_fields(line)
    assert fields is None or (len(fields) == 10 and all(type(each) is int for each in fields))
