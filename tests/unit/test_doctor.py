"""What is made of an engine's answers and of what its sandboxes told."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from sandboxworker.cli.doctorview import exit_code
from sandboxworker.doctor.rows import TEXTS, Facts, Status, judge
from sandboxworker.doctor.vulnerable import KNOWN, Known, affects, matches, parse, versions_of

INFO = {
    "MemoryLimit": True, "SwapLimit": True, "PidsLimit": True, "CpuCfsQuota": True,
    "SecurityOptions": ["name=seccomp,profile=default"], "CgroupDriver": "systemd",
    "CgroupVersion": "2", "Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"]],
    "Runtimes": {"runc": {}}, "DefaultRuntime": "runc",
}  # fmt: skip
PROBED = {
    "sandbox": "ready", "memory": "killed", "swap": "same", "oom": "true",
    "sockets": "bounded 0", "pids": "60/64", "cpu": "0.50/0.70",
    "nofile": "256/256", "disk": "2048/2048", "inodes": "199/200",
    "shm": "1024/1024", "seccomp": "2", "no_new_privs": "1", "capabilities": "0", "uid": "20001",
    "namespaces": "refused", "root": "refused", "network": "lo", "space": "99999999",
    "disk_backing": "held",
}  # fmt: skip
VERSION = {
    "Components": [
        {"Name": "Engine", "Version": "28.2.2"},
        {"Name": "containerd", "Version": "1.7.29"},
        {"Name": "runc", "Version": "1.3.3"},
    ],
    "KernelVersion": "6.12.57",
}
SECONDS = {"create": 0.1, "start": 0.2, "exec": 0.1, "remove": 0.1}
GOOD = Facts(INFO, VERSION, PROBED, SECONDS, 0.0)


def statuses(facts: Facts) -> dict[str, Status]:
    return {row.name: row.status for row in judge(facts)}


def bad(facts: Facts) -> dict[str, str]:
    return {row.name: row.found for row in judge(facts) if row.status is not Status.OK}


def test_good_engine_is_green() -> None:
    assert bad(GOOD) == {}
    assert exit_code(judge(GOOD), strict=True) == 0


def test_each_row_says_what_it_means_and_how_to_mend_it() -> None:
    rows = judge(GOOD)
    assert [row.name for row in rows] == list(TEXTS)
    assert all(row.meaning and row.fix and row.found for row in rows)


@pytest.mark.parametrize(
    ("name", "told", "said"),
    [
        ("memory", "it had 300 MiB", "300 MiB"),
        ("swap", "swap may be used", "swap"),
        ("sockets", "unbounded by cgroup v1", "all sockets of the host bounds it: by cgroup v1"),
        ("pids", "192/64", "192 processes"),
        ("cpu", "3.90/0.70", "3.90"),
        ("nofile", "1048576/256", "1048576"),
        ("disk", "4096/2048", "4096 KiB"),
        ("inodes", "400/200", "400 files"),
        ("shm", "2048/1024", "2048 KiB"),
        ("seccomp", "0", "no filter"),
        ("no_new_privs", "0", "it is 0"),
        ("capabilities", "00000000a80425fb", "00000000a80425fb"),
        ("uid", "0", "uid 0"),
        ("namespaces", "possible", "possible"),
        ("root", "possible", "possible"),
        ("network", "lo,eth0", "eth0"),
    ],
)
def test_limit_that_did_not_hold_fails_its_row_and_no_other(
    name: str, told: str, said: str
) -> None:
    found = bad(attrs.evolve(GOOD, probed={**PROBED, name: told}))
    assert list(found) == [name]
    assert said in found[name]
    rows = judge(attrs.evolve(GOOD, probed={**PROBED, name: told}))
    assert exit_code(rows, strict=False) == 1


@pytest.mark.parametrize(
    ("flag", "name"),
    [("MemoryLimit", "memory"), ("SwapLimit", "swap"), ("PidsLimit", "pids"),
     ("CpuCfsQuota", "cpu")],
)  # fmt: skip
def test_kernel_without_a_controller_is_named(flag: str, name: str) -> None:
    found = bad(attrs.evolve(GOOD, info={**INFO, flag: False}))
    assert list(found) == [name]
    assert flag in found[name]


def test_sockets_that_only_the_engine_tells_of_are_bounded_and_the_row_says_how_late() -> None:
    rows = judge(attrs.evolve(GOOD, probed={**PROBED, "sockets": "bounded 1"}))
    (row,) = [row for row in rows if row.name == "sockets"]
    assert row.status is Status.OK
    assert "every 1 s" in row.found


def test_engine_without_seccomp_or_cgroups_is_named() -> None:
    found = bad(attrs.evolve(GOOD, info={**INFO, "SecurityOptions": [], "CgroupDriver": "none"}))
    assert set(found) == {"seccomp", "cgroup"}


def test_settings_that_were_not_applied_are_their_rows_and_the_rest_is_unknown() -> None:
    facts = attrs.evolve(
        GOOD,
        probed={},
        problem="no sandbox was used",
        deviations=("HostConfig.PidsLimit: asked for 64, got None", "warning: odd"),
    )
    found = statuses(facts)
    assert (found["pids"], found["sandbox"]) == (Status.FAILS, Status.FAILS)
    assert found["memory"] is Status.UNKNOWN
    assert exit_code(judge(facts), strict=False) == 1


@pytest.mark.parametrize(
    ("deviation", "name"),
    [
        ("build's Seccomp (as the kernel sees it): asked for 2, got '0'", "seccomp"),
        ("keeper's NoNewPrivs (as the kernel sees it): asked for 1, got '0'", "no_new_privs"),
        ("build's CapBnd (as the kernel sees it): asked for 'none', got 'a'", "capabilities"),
        ("pids (as the kernel sees it): asked for 64, got 4096", "pids"),
        ("Max open files (as the kernel sees it): asked for 256, got 4096", "nofile"),
        ("HostConfig.MemorySwap: asked for 1, got -1", "swap"),
        ("HostConfig.Memory: asked for 1, got 0", "memory"),
        ("HostConfig.SecurityOpt: asked for ['seccomp'], got None", "seccomp"),
        ("HostConfig.ReadonlyRootfs: asked for True, got False", "root"),
        ("HostConfig.NetworkMode: asked for 'none', got 'bridge'", "network"),
        ("Labels: asked for {'memory': 1}, got None", "sandbox"),
    ],
)
def test_deviation_is_told_in_the_row_of_its_setting(deviation: str, name: str) -> None:
    found = bad(attrs.evolve(GOOD, deviations=(deviation,)))
    assert list(found) == [name]


# ---- what cannot be shown ------------------------------------------------------------------------

#: What gVisor shows where a limit holds all the same.
UNSHOWN = {
    "seccomp": "0", "no_new_privs": "not shown", "namespaces": "possible", "inodes": "400/200",
}  # fmt: skip
UNDER_GVISOR = attrs.evolve(GOOD, probed={**PROBED, **UNSHOWN}, runtime="runsc")


def test_memory_that_was_not_used_up_proves_nothing() -> None:
    for probed in ({**PROBED, "memory": "it ended with 127: dd: not found"}, {**PROBED}):
        if "dd" not in probed["memory"]:
            del probed["memory"]
        assert statuses(attrs.evolve(GOOD, probed=probed))["memory"] is Status.UNKNOWN


def test_what_gvisor_does_not_show_is_noted_with_what_holds_instead() -> None:
    found = bad(UNDER_GVISOR)
    assert {statuses(UNDER_GVISOR)[name] for name in found} == {Status.NOTED}
    assert set(found) == set(UNSHOWN)
    assert all("; runsc " in text for text in found.values())
    assert exit_code(judge(UNDER_GVISOR), strict=True) == 0


def test_fork_bomb_may_end_gvisor_as_a_whole_and_nobody_else() -> None:
    ended = {**PROBED, "pids": "ended"}
    assert statuses(attrs.evolve(UNDER_GVISOR, probed=ended))["pids"] is Status.OK
    assert statuses(attrs.evolve(GOOD, probed=ended))["pids"] is Status.FAILS


@pytest.mark.parametrize("name", UNSHOWN)
def test_the_same_without_gvisor_is_no_note(name: str) -> None:
    facts = attrs.evolve(GOOD, probed={**PROBED, name: UNSHOWN[name]})
    wanted = Status.UNKNOWN if name == "no_new_privs" else Status.FAILS
    assert statuses(facts)[name] is wanted


def test_files_beyond_their_number_fail_under_gvisor_where_memory_is_not_limited() -> None:
    facts = attrs.evolve(UNDER_GVISOR, probed={**UNDER_GVISOR.probed, "memory": "it had 300 MiB"})
    assert statuses(facts)["inodes"] is Status.FAILS


@pytest.mark.parametrize(
    ("name", "told"),
    [("memory", "it had 300 MiB"), ("pids", "1536/512"), ("nofile", "4096/256"),
     ("disk", "4096/2048"),
     ("network", "lo,eth0"), ("capabilities", "00000000a80425fb"), ("uid", "0"),
     ("root", "possible"), ("cpu", "3.90/0.70")],
)  # fmt: skip
def test_limit_that_does_not_hold_fails_under_gvisor_too(name: str, told: str) -> None:
    facts = attrs.evolve(UNDER_GVISOR, probed={**UNDER_GVISOR.probed, name: told})
    assert statuses(facts)[name] is Status.FAILS


def test_setting_that_was_not_applied_fails_under_gvisor_too() -> None:
    told = "HostConfig.SecurityOpt: asked for ['seccomp'], got None"
    facts = attrs.evolve(UNDER_GVISOR, deviations=(told,))
    assert statuses(facts)["seccomp"] is Status.FAILS


@pytest.mark.parametrize(
    ("told", "status", "said"),
    [
        ("held", Status.OK, "stopped"),
        ("refused this master is not on its host", Status.NOTED, "not on its host; a workspace"),
        ("unbounded of 256 files it let 999 be made", Status.FAILS, "of 256 files it let 999"),
    ],
)
def test_workspace_on_disk(told: str, status: Status, said: str) -> None:
    facts = attrs.evolve(GOOD, probed={**PROBED, "disk_backing": told})
    (row,) = [row for row in judge(facts) if row.name == "disk_backing"]
    assert row.status is status
    assert said in row.found
    assert exit_code(judge(facts), strict=True) == (1 if status is Status.FAILS else 0)


def test_the_runtime_that_was_tried_is_named() -> None:
    (row,) = [row for row in judge(UNDER_GVISOR) if row.name == "runtimes"]
    assert row.found.endswith("; tried runsc")


def test_warnings_fail_only_if_strict() -> None:
    facts = attrs.evolve(GOOD, skew=30.0, seconds={**SECONDS, "start": 20.0})
    assert bad(facts).keys() == {"clock", "latency start"}
    assert exit_code(judge(facts), strict=False) == 0
    assert exit_code(judge(facts), strict=True) == 1


# ---- versions ------------------------------------------------------------------------------------


def with_runc(version: str, commit: str = "") -> dict[str, Any]:
    runc = {"Name": "runc", "Version": version, "Details": {"GitCommit": commit}}
    return {"Components": [runc], "KernelVersion": "6.12.57"}


_OLDEST = {"CVE-2019-5736", "CVE-2021-30465", "CVE-2022-29162"}
_LATE = {"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("1.0.0-rc2", {*_OLDEST, *_LATE} - {"CVE-2025-52565"}),
        ("1.0.0-rc6", {*_OLDEST, *_LATE}),
        ("1.0.0-rc92", {*_OLDEST, *_LATE} - {"CVE-2019-5736"}),
        ("1.0.0-rc94", {*_OLDEST, *_LATE, "CVE-2024-21626"} - {"CVE-2019-5736"}),
        ("1.0.0", {"CVE-2022-29162", "CVE-2023-27561", "CVE-2024-21626", *_LATE}),
        ("1.1.11", {"CVE-2024-21626", *_LATE}),
        ("1.1.12", _LATE),
        ("1.2.7", _LATE),
        ("1.3.2", _LATE),
        ("1.4.0-rc.2", _LATE),
        ("1.2.8", set()),
        ("1.3.3", set()),
        ("1.4.0-rc.3", set()),
        ("1.5.0", set()),
    ],
)
def test_old_runtime_is_named(version: str, names: set[str]) -> None:
    found = {match.known.name for match in matches(versions_of(with_runc(version)))}
    assert found == names


def test_old_release_fails_and_a_package_warns() -> None:
    release = attrs.evolve(GOOD, version=with_runc("1.1.11"))
    assert statuses(release)["versions"] is Status.FAILS
    assert "github.com" in bad(release)["versions"]
    package = attrs.evolve(GOOD, version=with_runc("1.1.5+ds1", "1.1.5+ds1-1+deb12u1"))
    assert statuses(package)["versions"] is Status.WARNING


def test_what_a_distribution_is_known_to_have_mended_is_not_named() -> None:
    mended = matches(versions_of(with_runc("1.1.5+ds1", "1.1.5+ds1-1+deb12u1")))
    assert "CVE-2024-21626" not in {match.known.name for match in mended}
    older = matches(versions_of(with_runc("1.1.5+ds1", "1.1.5+ds1-1")))
    assert "CVE-2024-21626" in {match.known.name for match in older}


@pytest.mark.parametrize(
    ("version", "has_it"),
    [("5.7.19", False), ("5.10.101", True), ("5.10.102", False), ("5.12.1", True),
     ("5.15.24", True), ("5.16.11", False), ("6.1.0", False), ("4.19.300", False)],
)  # fmt: skip
def test_lines_of_releases_are_mended_each_for_itself(version: str, has_it: bool) -> None:
    (dirty_pipe,) = [known for known in KNOWN if known.name == "CVE-2022-0847"]
    parsed = parse(version)
    assert parsed is not None
    assert affects(dirty_pipe, parsed) is has_it


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_each_entry_has_its_reference(known: Known) -> None:
    assert known.reference.startswith("https://")
    assert all(parse(each) for each in known.fixed)
    assert known.what[0].islower()
