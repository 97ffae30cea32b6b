"""A master's id: kept, renewed in a copy, never shared by two that live."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sandboxworker import identity
from sandboxworker.identity import ID_FILE, NoIdentity, claim, is_living, master_id, read_id


@pytest.fixture
def basedir(tmp_path: Path) -> Path:
    made = tmp_path / "master"
    made.mkdir()
    return made


def claimed(basedir: Path) -> identity.Identity:
    found = claim(basedir)
    assert found is not None
    return found


def test_a_master_keeps_the_id_that_it_made(basedir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    first = claimed(basedir)
    assert first.is_kept
    assert first.former is None
    first.release()
    assert claimed(basedir).id == first.id == read_id(basedir) != master_id(other)


def test_the_id_is_for_the_masters_user_alone(basedir: Path) -> None:
    master_id(basedir)
    assert stat.S_IMODE((basedir / ID_FILE).stat().st_mode) == 0o600


def copied(basedir: Path, to: Path) -> Path:
    shutil.copytree(basedir, to, symlinks=True)
    return to


def moved(basedir: Path, to: Path) -> Path:
    return basedir.rename(to)


def replaced(basedir: Path, to: Path) -> Path:
    """A copy in the place of its model, which lives on elsewhere."""
    return copied(basedir.rename(to), basedir)


@pytest.mark.parametrize("how", [copied, moved, replaced])
def test_a_directory_that_is_another_gets_another_id(
    basedir: Path, tmp_path: Path, how: object
) -> None:
    first = master_id(basedir)
    other = how(basedir, tmp_path / "to")  # type: ignore[operator]
    with pytest.raises(NoIdentity, match="made in another place"):
        read_id(other)
    renewed = claimed(other)
    assert renewed.id != first
    assert renewed.former == first
    renewed.release()
    again = claimed(other)
    assert (again.id, again.former) == (renewed.id, None)


def test_a_machine_that_was_cloned_gets_another_id(
    basedir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = master_id(basedir)
    monkeypatch.setattr(identity, "_MACHINE_ID", tmp_path / "machine-id")
    (tmp_path / "machine-id").write_text("0" * 32)
    assert claimed(basedir).former == first


def test_a_directory_is_the_same_by_whatever_way_it_is_reached(
    basedir: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(basedir)
    assert master_id(tmp_path / "link") == master_id(basedir)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"id": "x", "place": {}}', '{"id": 7, "place": {}}', "\xff"]
)
def test_a_file_that_is_no_id_is_made_anew(basedir: Path, content: str) -> None:
    (basedir / ID_FILE).write_text(content, encoding="latin-1")
    with pytest.raises(NoIdentity):
        read_id(basedir)
    made = claimed(basedir)
    assert made.is_kept
    assert read_id(basedir) == made.id


def test_nobody_else_can_claim_the_id_of_a_living_master(basedir: Path) -> None:
    assert not _living_after_making_one(basedir)
    first = claimed(basedir)
    assert claim(basedir) is None
    assert is_living(basedir)
    assert master_id(basedir) == first.id  # To read it is not to claim it.
    first.release()
    assert not is_living(basedir)
    assert claimed(basedir).id == first.id


def test_a_directory_that_cannot_be_looked_at_may_have_a_living_master(
    basedir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_living(basedir / "none")
    master_id(basedir)

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(identity.fcntl, "flock", no_locks)
    assert is_living(basedir)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No locks"):
        claim(basedir)
    assert len(os.listdir("/proc/self/fd")) == before


def _living_after_making_one(basedir: Path) -> bool:
    master_id(basedir)
    return is_living(basedir)


def test_an_id_is_free_when_its_process_is_killed_though_its_children_live(basedir: Path) -> None:
    script = f"""
        import subprocess, sys
        from pathlib import Path
        from sandboxworker.identity import claim
        claimed = claim(Path({str(basedir)!r}))
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
        print(child.pid, flush=True)
        sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        assert is_living(basedir)
        process.kill()
        process.wait(20)
        assert not is_living(basedir)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_stand_in_is_nobody_elses(basedir: Path) -> None:
    one, other = identity.stand_in(), identity.stand_in()
    assert one.id != other.id
    assert not one.is_kept
    one.release()


def test_what_a_place_is_stands_in_the_file_for_people(basedir: Path) -> None:
    master_id(basedir)
    known = json.loads((basedir / ID_FILE).read_text())
    assert known["place"]["directory"] == os.path.realpath(basedir)


def test_a_directory_without_an_id_is_named_with_what_to_do(basedir: Path) -> None:
    with pytest.raises(NoIdentity) as raised:
        read_id(basedir)
    assert str(basedir) in str(raised.value)
    assert "No such file" in str(raised.value)
    assert not (basedir / ID_FILE).exists()
