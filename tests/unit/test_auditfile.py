"""The audit log's file: whole lines, rotation, what a crash leaves, reading it again."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sandboxworker import auditfile
from sandboxworker.auditfile import AuditFile, Reading, reading, rotated


def line(number: int, **more: object) -> str:
    return json.dumps({"time": number, "event": "e", **more})


def numbers(path: Path) -> list[int]:
    return [entry["time"] for entry in reading(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_lines_are_appended_for_the_masters_user_alone(path: Path) -> None:
    for number in (1, 2):
        file = AuditFile(path)
        assert file.open() == ""
        file.write(line(number))
        file.close()
    assert path.read_text() == f"{line(1)}\n{line(2)}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_is_one_write_and_is_there_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []

    def write(descriptor: int, data: bytes) -> int:
        written.append(data)
        return os_write(descriptor, data)

    os_write = os.write
    file = AuditFile(path)
    monkeypatch.setattr(auditfile.os, "write", write)
    long = line(1, reason="x" * 100_000)
    file.write(long)
    assert written == [long.encode() + b"\n"]
    assert path.read_bytes() == written[0]


# ---- rotation ----------------------------------------------------------------------------------


def test_full_files_are_kept_beside_it_up_to_a_number(path: Path) -> None:
    size = len(line(10)) + 1
    file = AuditFile(path, rotate_at=3 * size, keep=2)
    for number in range(10, 30):
        file.write(line(number))
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "audit.jsonl",
        "audit.jsonl.1",
        "audit.jsonl.2",
    ]
    assert all(each.stat().st_size <= 3 * size for each in path.parent.iterdir())
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in path.parent.iterdir())
    assert numbers(path) == list(range(22, 30))


def test_no_full_file_need_be_kept(path: Path) -> None:
    file = AuditFile(path, rotate_at=2 * len(line(10)) + 2, keep=0)
    for number in range(10, 15):
        file.write(line(number))
    assert numbers(path) == [14]
    assert list(path.parent.iterdir()) == [path]


def test_a_line_longer_than_a_file_is_written_all_the_same(path: Path) -> None:
    file = AuditFile(path, rotate_at=10, keep=3)
    file.write(line(10, more="x" * 100))
    file.write(line(11))
    assert numbers(path) == [10, 11]
    assert numbers(rotated(path, 1).with_name("audit.jsonl.1")) == [10]


def test_who_shares_a_file_does_not_rotate_it(path: Path) -> None:
    file = AuditFile(path, rotate_at=10, is_shared=True)
    for number in range(10, 15):
        file.write(line(number))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_file_that_somebody_takes_away_is_begun_anew(path: Path, how: str) -> None:
    file = AuditFile(path)
    file.write(line(1))
    if how == "moved":
        path.rename(path.with_name("taken"))
    else:
        path.unlink()
    file.write(line(2))
    assert numbers(path) == [2]


def test_a_rotation_while_it_is_read_loses_and_repeats_nothing(path: Path) -> None:
    file = AuditFile(path, rotate_at=2 * len(line(10)) + 2, keep=9)
    for number in range(10, 16):
        file.write(line(number))
    begun = reading(path)
    for number in range(16, 20):
        file.write(line(number))
    assert [entry["time"] for entry in begun] == list(range(10, 16))


def test_a_rotation_while_the_files_are_opened_loses_and_repeats_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = AuditFile(path, rotate_at=2 * len(line(10)) + 2, keep=9)
    for number in range(10, 16):
        file.write(line(number))
    oldest = auditfile._oldest

    def rotate_first(path: Path) -> int:
        """The newest is open by now."""
        file.write(line(16))
        return oldest(path)

    monkeypatch.setattr(auditfile, "_oldest", rotate_first)
    assert numbers(path) == list(range(10, 16))


def test_rotated_files_are_read_in_their_order_and_others_not_at_all(path: Path) -> None:
    for number in (0, 1, 2, 9, 10):
        rotated(path, number).write_text(line(100 - number) + "\n")
    path.with_name("audit.jsonl.gz").write_text("no")
    path.with_name("other.jsonl.1").write_text(line(1) + "\n")
    assert numbers(path) == [90, 91, 98, 99, 100]


# ---- what a crash leaves -----------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", line(1) + "\n"])
def test_a_torn_line_is_cut_off_on_the_next_start_and_told(path: Path, before: str) -> None:
    path.write_text(before + line(2)[:7])
    file = AuditFile(path)
    assert file.open() == line(2)[:7]
    file.write(line(3))
    assert path.read_text() == before + line(3) + "\n"


def test_who_shares_a_file_cuts_nothing_and_begins_a_line(path: Path) -> None:
    path.write_text(line(1) + "\n" + line(2)[:7])
    file = AuditFile(path, is_shared=True)
    assert file.open() == ""
    file.write(line(3))
    assert path.read_text() == f"{line(1)}\n{line(2)[:7]}\n{line(3)}\n"


def test_a_line_that_another_program_is_just_writing_is_not_cut_off(path: Path) -> None:
    path.write_text(line(1)[:7])
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        file = AuditFile(path)
        assert file.open() == ""
        assert path.read_text() == line(1)[:7]
    assert AuditFile(path).open() == line(1)[:7]


def test_who_shares_a_file_keeps_others_from_cutting_while_it_writes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_free: list[bool] = []
    write = os.write

    def look(descriptor: int, data: bytes) -> int:
        with path.open("rb") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_free.append(False)
            else:
                is_free.append(True)
        return write(descriptor, data)

    monkeypatch.setattr(auditfile.os, "write", look)
    AuditFile(path, is_shared=True).write(line(1))
    AuditFile(path).write(line(2))  # The master waits for nobody.
    assert is_free == [False, True]


def test_what_is_no_entry_is_counted_and_passed_over(path: Path) -> None:
    path.write_bytes(
        b"".join(
            each + b"\n"
            for each in (
                line(1).encode(),
                b"",
                b'{"time": 2, "ev',
                b"\xff",
                b"[]",
                b'{"time": "x", "event": "e"}',
                b'{"time": 3}',
                line(4).encode(),
            )
        )
    )
    found = reading(path)
    assert [entry["time"] for entry in found] == [1, 4]
    assert (found.entries, found.unreadable) == (2, 5)


WRITER = """
    import itertools, json, sys
    from pathlib import Path
    from sandboxworker.auditfile import AuditFile

    file = AuditFile(Path(sys.argv[1]), rotate_at=200_000, keep=1000)
    file.open()
    print("begun", flush=True)
    for number in itertools.count():
        entry = {"time": 0, "event": "e", "by": sys.argv[2], "number": number}
        file.write(json.dumps({**entry, "more": "x" * (number % 3000)}))
"""


def test_a_writer_that_is_killed_again_and_again_loses_at_most_its_last_line(path: Path) -> None:
    for by in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(by)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        time.sleep(0.02 * (by % 4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for file in (each for each in path.parent.iterdir() if each.stat().st_size):
            *whole, last = file.read_bytes().split(b"\n")
            assert all(json.loads(each) for each in whole)
            assert last == b"" or file == path
    found = reading(path)
    written: dict[str, list[int]] = {}
    for entry in found:
        written.setdefault(entry["by"], []).append(entry["number"])
    assert found.unreadable <= 1
    assert len(written) > 1
    for counted in written.values():
        assert counted == list(range(len(counted)))


def test_two_processes_write_to_one_file_without_mixing_lines(path: Path) -> None:
    """As ``gc`` does beside a master that rotates."""
    script = """
        import json, sys
        from pathlib import Path
        from sandboxworker.auditfile import AuditFile

        is_shared = sys.argv[2] == "1"
        file = AuditFile(Path(sys.argv[1]), rotate_at=50_000, keep=1000, is_shared=is_shared)
        for number in range(2000):
            file.write(json.dumps({"time": number, "event": "e", "by": sys.argv[2]}))
    """
    processes = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(path), by])
        for by in ("0", "1")
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    found = reading(path)
    entries = list(found)
    assert found.unreadable == 0
    for by in ("0", "1"):
        assert sorted(each["time"] for each in entries if each["by"] == by) == list(range(2000))


@pytest.fixture
def _small_files() -> object:
    """No file of this process can grow past a few bytes: a full disk, as far as one write goes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.usefixtures("_small_files")
def test_a_line_that_does_not_fit_on_the_disk_leaves_no_part_of_itself(path: Path) -> None:
    file = AuditFile(path)
    file.write(line(1))
    with pytest.raises(OSError):  # noqa: PT011 - which error is the disk's own affair.
        file.write(line(2, more="x" * 100))
    assert path.read_text() == line(1) + "\n"
    file.write(line(3))
    assert numbers(path) == [1, 3]


def test_entries_come_from_any_stream(tmp_path: Path) -> None:
    (tmp_path / "piped").write_text(line(1) + "\n" + line(2))
    assert [each["time"] for each in Reading([(tmp_path / "piped").open("rb")])] == [1, 2]
