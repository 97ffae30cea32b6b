"""What ``try`` takes along: the work tree as it is now."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from sandboxworker.cli.policyfile import DEFAULT_IMAGE, load_policy
from sandboxworker.cli.worktree import pack
from sandboxworker.errors import PolicyError, SandboxworkerError


def git(directory: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.invalid")
    subprocess.run(["git", *who, *arguments], cwd=directory, check=True, capture_output=True)


def packed(directory: Path) -> dict[str, tuple[bytes, bytes]]:
    """Type and content of every member, by name."""
    found = pack(directory)
    with found.archive, tarfile.open(fileobj=found.archive) as tar:
        members = {
            info.name: (info.type, content.read() if (content := tar.extractfile(info)) else b"")
            for info in tar
            if not info.issym()
        }
        assert found.files == len(tar.getmembers())
        assert all((info.uid, info.uname) == (0, "") for info in tar.getmembers())
    return members


def test_git_work_tree_gives_tracked_and_untracked_but_not_ignored_files(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / ".gitignore").write_text("*.o\n")
    for name in ("tracked", "changed", "deleted", "untracked", "ignored.o"):
        (tmp_path / name).write_text(name)
    git(tmp_path, "add", ".gitignore", "tracked", "changed", "deleted")
    git(tmp_path, "commit", "-m", "x")
    (tmp_path / "changed").write_text("now")
    (tmp_path / "deleted").unlink()
    found = packed(tmp_path)
    assert sorted(found) == [".gitignore", "changed", "tracked", "untracked"]
    assert found["changed"][1] == b"now"


def test_subdirectory_of_a_work_tree_gives_its_own_files(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "outside").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "inside").touch()
    assert sorted(packed(tmp_path / "sub")) == ["inside"]


def test_submodule_gives_its_files(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "main").mkdir()
    git(tmp_path / "lib", "init")
    (tmp_path / "lib" / "f").touch()
    git(tmp_path / "lib", "add", "f")
    git(tmp_path / "lib", "commit", "-m", "x")
    git(tmp_path / "main", "init")
    git(
        tmp_path / "main",
        *("-c", "protocol.file.allow=always", "submodule", "add", str(tmp_path / "lib"), "lib"),
    )
    assert "lib/f" in packed(tmp_path / "main")


def test_plain_directory_gives_everything_but_special_files(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"content")
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    os.link(tmp_path / "d" / "f", tmp_path / "second")
    found = pack(tmp_path)
    with found.archive, tarfile.open(fileobj=found.archive) as tar:
        names = {info.name: info for info in tar}
    assert sorted(names) == ["d/f", "link", "second"]
    assert names["link"].issym()
    assert names["second"].isreg()
    assert names["second"].size == 7


def test_policy_file_gives_the_fields_and_image_comes_before(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('image = "a"\nmemory = "64m"\n[env]\nX = "1"\n')
    policy = load_policy(file, None)
    assert (policy.image, policy.memory, policy.env) == ("a", 64 * 1024**2, {"X": "1"})
    assert load_policy(file, "b").image == "b"
    assert load_policy(None, None).image == DEFAULT_IMAGE


def test_policy_file_with_faults_tells_all_of_them(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('pids = 1\ndisk = "x"\nprivileged = true\n')
    with pytest.raises(PolicyError) as caught:
        load_policy(file, None)
    assert [fault.field for fault in caught.value.faults] == ["pids", "disk", "privileged"]


@pytest.mark.parametrize(
    ("content", "said"), [(b"= 1", "is not TOML"), (b"\xff\xfe", "is not TOML"), (None, "be read")]
)
def test_file_that_is_no_policy_is_told(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "p.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SandboxworkerError, match=said):
        load_policy(file, None)
