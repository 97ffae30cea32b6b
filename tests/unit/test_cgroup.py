"""What is read from, or written to, the container's own cgroup, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxworker.engine.cgroup import bound_sockets, memory_peak

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


SOCKETS = "memory.kmem.tcp"


def version_1(root: Path, line: str, place: str) -> Path:
    """A process 7, and a memory cgroup at that place; its limit."""
    (root / "proc/7").mkdir(parents=True)
    (root / "proc/7/cgroup").write_text(f"5:pids:/docker/{ID}\n{line}\n0::/\n")
    folder = root / "sys/fs/cgroup/memory" / place
    folder.mkdir(parents=True)
    (folder / f"{SOCKETS}.limit_in_bytes").write_text("9223372036854771712\n")
    (folder / f"{SOCKETS}.usage_in_bytes").write_text("4096\n")
    return folder / f"{SOCKETS}.limit_in_bytes"


@pytest.mark.parametrize("controllers", ["memory", "hugetlb,memory", "memory,cpu"])
def test_sockets_are_bounded_in_the_containers_own_cgroup(tmp_path: Path, controllers: str) -> None:
    limit = version_1(tmp_path, f"4:{controllers}:/docker/{ID}", f"docker/{ID}")
    gauge = bound_sockets(ID, 7, 65536, tmp_path)
    assert limit.read_text() == "65536"
    assert gauge is not None
    assert gauge() == 4096
    (limit.parent / f"{SOCKETS}.usage_in_bytes").write_text("8192\n")
    assert gauge() == 8192


def test_a_container_that_is_gone_has_no_sockets_to_look_at(tmp_path: Path) -> None:
    limit = version_1(tmp_path, f"4:memory:/docker/{ID}", f"docker/{ID}")
    gauge = bound_sockets(ID, 7, 65536, tmp_path)
    assert gauge is not None
    (limit.parent / f"{SOCKETS}.usage_in_bytes").unlink()
    with pytest.raises(OSError, match="No such file"):
        gauge()


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("4:memory:/user", "user"),
        (f"4:memory_x:/docker/{ID}", f"docker/{ID}"),
        (f"4:memory:/docker/{ID}", "docker"),
        (f"4:name=memory:/docker/{ID}", f"docker/{ID}"),
        ("", f"docker/{ID}"),
    ],
    ids=["another's pid", "another controller", "no such cgroup", "a name", "no memory"],
)
def test_sockets_of_nobody_else_are_bounded(tmp_path: Path, line: str, place: str) -> None:
    limit = version_1(tmp_path, line, place)
    assert bound_sockets(ID, 7, 65536, tmp_path) is None
    assert limit.read_text() == "9223372036854771712\n"


def test_with_version_2_all_memory_of_the_containers_own_cgroup_is_looked_at(
    tmp_path: Path,
) -> None:
    root = machine(tmp_path, f"0::/docker/{ID}\n", OURS)
    assert bound_sockets(ID, 7, 65536, root) is None
    (root / f"sys/fs/cgroup/docker/{ID}/memory.current").write_text("8192\n")
    gauge = bound_sockets(ID, 7, 65536, root)
    assert gauge is not None
    assert gauge() == 8192
    assert bound_sockets("6" * 64, 7, 65536, root) is None
