"""The peak of memory is read from the container's own cgroup or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxworker.engine.cgroup import memory_peak

ID = "5" * 64
OURS = {f"docker/{ID}": "1048576\n"}


def machine(root: Path, cgroup: str, peaks: dict[str, str]) -> Path:
    """A tree with a process 7 and cgroups."""
    (root / "proc/7").mkdir(parents=True)
    (root / "proc/7/cgroup").write_text(cgroup)
    for path, peak in peaks.items():
        folder = root / "sys/fs/cgroup" / path
        folder.mkdir(parents=True)
        (folder / "memory.peak").write_text(peak)
    return root


@pytest.mark.parametrize("path", [f"docker/{ID}", f"system.slice/docker-{ID}.scope"])
def test_peak_is_read_where_the_keeper_is(tmp_path: Path, path: str) -> None:
    root = machine(tmp_path, f"0::/{path}\n", {path: "1048576\n"})
    assert memory_peak(ID, 7, root) == 1048576


@pytest.mark.parametrize(
    ("cgroup", "peaks"),
    [
        ("0::/user.slice\n", {"user.slice": "1\n"}),
        (f"0::/docker/{ID}\n", {}),
        (f"0::/docker/{ID}\n", {f"docker/{ID}": "max\n"}),
        (f"4:memory:/docker/{ID}\n1:name=systemd:/docker/{ID}\n", OURS),
        (f"4:memory:/docker/{ID}\n0::/\n", OURS),
        ("", OURS),
    ],
    ids=["another's pid", "older kernel", "no number", "version 1", "both versions", "nothing"],
)
def test_peak_is_unknown(tmp_path: Path, cgroup: str, peaks: dict[str, str]) -> None:
    assert memory_peak(ID, 7, machine(tmp_path, cgroup, peaks)) is None


def test_peak_of_a_process_that_is_not_here_is_unknown(tmp_path: Path) -> None:
    assert memory_peak(ID, 0, machine(tmp_path, "", {})) is None
