"""What is noticed between a spec and what a process in its sandbox sees."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.kernelview import (
    LOOKED_AT,
    Expected,
    kernel_deviations,
    outside,
    parse,
    parse_amount,
    parse_list,
)
from sandboxworker.policy import KEEPER_UID, SandboxPolicy
from sandboxworker.seccomp import Profile
from sandboxworker.spec import (
    ETC_FILES,
    MASKED_PATHS,
    ContainerSpec,
    Identity,
    ImageFacts,
    build_spec,
)

PROFILE = Profile("build", '{"defaultAction":"SCMP_ACT_ERRNO"}', "sha256:" + "1" * 64)
FACTS = ImageFacts("image", "sha256:" + "0" * 64)
IDENTITY = Identity("n", 20007, 20007, device="/dev/loop3", cpuset="0,2-3", etc="/var/x")
CGROUP = "/sys/fs/cgroup"


def spec_of(**policy: object) -> ContainerSpec:
    return build_spec(SandboxPolicy("image", **policy), FACTS, PROFILE)  # type: ignore[arg-type]


SPEC = spec_of(cpus=1.5, disk="8m", disk_inodes=200)


def status(uid: int) -> str:
    capabilities = "".join(
        f"{name}:\t0000000000000000\n"
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    )
    return (
        f"Name:\tcat\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{uid}\t{uid}\t{uid}\t{uid}\n"
        f"Groups:\t{uid} \n{capabilities}NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"
        "Cpus_allowed_list:\t0,2-3\n"
    )


def mount(place: str, options: str, type_: str, settings: str, source: str = "none") -> str:
    return f"90 80 0:40 / {place} {options},relatime master:1 - {type_} {source} {settings}\n"


def mountinfo(spec: ContainerSpec) -> str:
    lines = [
        mount("/", "ro", "overlay", "rw,lowerdir=/var/lib/x"),
        mount("/proc", "rw,nosuid,nodev,noexec", "proc", "rw"),
        mount("/dev", "rw,nosuid", "tmpfs", "rw,size=65536k"),
        mount("/proc/kcore", "rw,nosuid", "tmpfs", "rw,size=65536k"),
        mount("/proc/sys", "ro,nosuid,nodev,noexec", "proc", "rw"),
        mount("/dev/mqueue", "rw,nosuid,nodev,noexec", "mqueue", "rw"),
        mount("/dev/mqueue", "ro", "tmpfs", "ro"),
        mount("/etc/hosts", "rw", "ext4", "rw"),
        mount("/dev/shm", "rw,nosuid,nodev,noexec", "tmpfs", f"rw,size={spec.shm >> 10}k"),
    ]
    for each in spec.tmpfs:
        options = "rw,nosuid,nodev" + ("" if each.executable else ",noexec")
        sizes = f"rw,size={each.size >> 10}k,nr_inodes={each.inodes}"
        lines.append(mount(each.path, options, "tmpfs", sizes))
    if spec.disk is not None:
        lines.append(mount(spec.disk.path, "rw,nosuid,nodev", "ext4", "rw", "/dev/loop3"))
    return "".join(lines)


def limits(spec: ContainerSpec) -> str:
    rows = {
        "Max core file size": spec.core,
        "Max open files": spec.nofile,
        "Max locked memory": spec.memlock,
    }
    head = f"{'Limit':<26}{'Soft Limit':<21}{'Hard Limit':<21}Units\n"
    return head + "".join(f"{name:<26}{n:<21}{n:<21}bytes\n" for name, n in rows.items())


def faithful(spec: ContainerSpec = SPEC, *, version: int = 2) -> dict[str, str]:
    """What a kernel shows that applied everything, with cgroups of that version."""
    quota = round(spec.cpus * 100000)
    cgroups = {
        1: {
            "memory/memory.limit_in_bytes": str(spec.memory),
            "memory/memory.memsw.limit_in_bytes": str(spec.memory),
            "pids/pids.max": str(spec.pids),
            "cpu/cpu.cfs_quota_us": str(quota),
            "cpu/cpu.cfs_period_us": "100000",
        },
        2: {
            "memory.max": str(spec.memory),
            "memory.swap.max": "0",
            "pids.max": str(spec.pids),
            "cpu.max": f"{quota} 100000",
        },
    }[version]
    return {
        "/proc/self/status": status(IDENTITY.uid),
        "/proc/1/status": status(KEEPER_UID),
        "/proc/self/oom_score_adj": "500",
        "/proc/1/oom_score_adj": "500",
        "/proc/self/mountinfo": mountinfo(spec),
        "/proc/self/limits": limits(spec),
        "/proc/sys/kernel/random/boot_id": "boot",
        "/proc/self/attr/current": "docker-default (enforce)",
        "/proc/sys/net/ipv6/conf/all/disable_ipv6": "0",
        "/proc/sys/net/ipv4/tcp_rmem": "4096\t32768\t65536",
        "/proc/sys/net/ipv4/tcp_wmem": "4096\t16384\t65536",
        **{f"path {path}": "none" for path in MASKED_PATHS},
        "path /proc/kcore": "there",
        "path /dev/mqueue": "there",
        "/proc/net/dev": "Inter-|   Receive\n face |bytes\n    lo:   0   0\n",
        "/proc/net/if_inet6": f"{1:032x} 01 80 10 80       lo\n",
        **{f"/etc/{name}": text for name, text in ETC_FILES.items()},
        **{f"{CGROUP}/{name}": text for name, text in cgroups.items()},
        **{
            f"/proc/self/ns/{name}": f"{name}:[{4026532000 + number}]"
            for number, name in enumerate(("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"))
        },
    }


def printed(files: dict[str, str]) -> str:
    return "".join(f"\nsandboxworker-view {name}\n{text}" for name, text in files.items())


def found(
    files: dict[str, str], spec: ContainerSpec = SPEC, own: dict[str, int] | None = None
) -> list[str]:
    expected = Expected(spec, IDENTITY, own or {}, lsm=True)
    return [each.setting for each in kernel_deviations(parse(printed(files)), expected)]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("backing", ["tmpfs", "disk"])
def test_faithful_kernel_has_no_deviation(version: int, backing: str) -> None:
    spec = spec_of(cpus=1.5, disk="8m", disk_inodes=200, disk_backing=backing)
    files = faithful(spec, version=version)
    assert found(files, spec) == []
    assert set(files) <= set(LOOKED_AT)


def changed(file: str, old: str, new: str, version: int = 2) -> dict[str, str]:
    files = faithful(version=version)
    assert old in files[file]
    return {**files, file: files[file].replace(old, new)}


#: Where, what stands there, what a weaker sandbox would show, and the word that tells of it.
WEAKER = [
    ("/proc/self/status", "Uid:\t20007\t", "Uid:\t0\t", "build's Uid"),
    ("/proc/self/status", "Gid:\t20007\t20007", "Gid:\t20007\t0", "build's Gid"),
    ("/proc/self/status", "Groups:\t20007", "Groups:\t0 20007", "build's groups"),
    ("/proc/1/status", f"Uid:\t{KEEPER_UID}", "Uid:\t20007", "keeper's Uid"),
    ("/proc/self/status", "CapBnd:\t0000000000000000", "CapBnd:\t0000000000000400", "CapBnd"),
    ("/proc/1/status", "CapEff:\t0000000000000000", "CapEff:\t000001ffffffffff", "CapEff"),
    ("/proc/self/status", "NoNewPrivs:\t1", "NoNewPrivs:\t0", "build's NoNewPrivs"),
    ("/proc/self/status", "Seccomp:\t2", "Seccomp:\t0", "build's Seccomp"),
    ("/proc/1/status", "Seccomp:\t2", "Seccomp:\t0", "keeper's Seccomp"),
    ("/proc/self/oom_score_adj", "500", "1", "build's OomScoreAdj"),
    ("/proc/1/oom_score_adj", "500", "", "keeper's OomScoreAdj"),
    ("/proc/self/status", "0,2-3", "0-7", "processors"),
    ("/proc/self/mountinfo", "/ / ro", "/ / rw", "/ "),
    ("/proc/self/mountinfo", "/build rw,nosuid", "/build rw", "/build"),
    ("/proc/self/mountinfo", "/build rw,nosuid,nodev", "/elsewhere rw,nosuid,nodev", "/build"),
    ("/proc/self/mountinfo", "/tmp rw,nosuid,nodev", "/tmp rw,nosuid", "/tmp"),
    ("/proc/self/mountinfo", "/run/secrets rw,nosuid,nodev,noexec", "/run/secrets rw", "/run"),
    ("/proc/self/mountinfo", "size=8192k", "size=8388608k", "size of /build"),
    ("/proc/self/mountinfo", "nr_inodes=200", "nr_inodes=0", "inodes of /build"),
    ("/proc/self/mountinfo", ",size=65536k\n90 80 0:40 / /build", "\n90 80 0:40 / /build", "shm"),
    ("/proc/self/mountinfo", "/etc/hosts", "/etc/shadow", "mounts"),
    ("/proc/self/mountinfo", "/proc/kcore", "/proc/elsewhere", "/proc/kcore"),
    ("/proc/self/mountinfo", "/dev/mqueue ro", "/dev/elsewhere ro", "/dev/mqueue"),
    ("/proc/self/mountinfo", "/proc/sys ro", "/proc/sys rw", "/proc/sys"),
    ("path /sys/hypervisor", "none", "there", "/sys/hypervisor"),
    ("/proc/sys/net/ipv4/tcp_rmem", "65536", "6291456", "tcp_rmem"),
    ("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0", "1", "disable_ipv6"),
    ("/etc/hosts", "127.0.0.1\tlocalhost", "192.0.2.7\tlocalhost", "hosts"),
    ("/etc/resolv.conf", "127.0.0.1", "192.0.2.7", "resolv.conf"),
    ("/proc/self/limits", "16384", "1048576", "Max open files"),
    ("/proc/self/limits", "Max core", "Max more", "Max core file size"),
    ("/proc/net/dev", "lo:", "eth0:", "network devices"),
    ("/proc/net/if_inet6", f"{1:032x}", "20010db8" + "0" * 24, "IPv6"),
    ("/proc/self/attr/current", "docker-default (enforce)", "unconfined", "AppArmor"),
    ("/proc/self/attr/current", "docker-default (enforce)", "", "AppArmor"),
    ("/proc/self/ns/pid", "4026532004", "4026531836", "pid namespace"),
    ("/proc/self/ns/ipc", "4026532001", "4026531839", "ipc namespace"),
    ("/proc/self/ns/uts", "uts:[4026532006]", "", "uts namespace"),
    (f"{CGROUP}/memory.max", str(SPEC.memory), "max", "memory"),
    (f"{CGROUP}/memory.max", str(SPEC.memory), str(SPEC.memory * 2), "memory"),
    (f"{CGROUP}/memory.swap.max", "0", "max", "swap"),
    (f"{CGROUP}/pids.max", "1024", "max", "pids"),
    (f"{CGROUP}/cpu.max", "150000", "max", "cpus"),
    (f"{CGROUP}/cpu.max", "150000", "200000", "cpus"),
]


@pytest.mark.parametrize(("file", "old", "new", "word"), WEAKER)
def test_whatever_is_weaker_is_noticed(file: str, old: str, new: str, word: str) -> None:
    (told,) = found(changed(file, old, new))[:1]
    assert word in told


@pytest.mark.parametrize(
    ("file", "old", "new", "word"),
    [
        ("memory/memory.limit_in_bytes", str(SPEC.memory), "9223372036854771712", "memory"),
        ("memory/memory.memsw.limit_in_bytes", str(SPEC.memory), "9223372036854771712", "swap"),
        ("pids/pids.max", "1024", "max", "pids"),
        ("cpu/cpu.cfs_quota_us", "150000", "-1", "cpus"),
    ],
)
def test_older_cgroups_are_read_as_well(file: str, old: str, new: str, word: str) -> None:
    (told,) = found(changed(f"{CGROUP}/{file}", old, new, version=1))
    assert word in told


REQUIRED = sorted(
    set(faithful())
    - {
        *("/proc/sys/kernel/random/boot_id", "/proc/self/ns/user", f"{CGROUP}/memory.swap.max"),
        "/proc/net/if_inet6",
        # They are masked by the list of mounts.
        *("path /dev/mqueue", "path /proc/kcore"),
    }
)


@pytest.mark.parametrize("file", REQUIRED)
def test_what_cannot_be_read_counts_as_missing(file: str) -> None:
    files = faithful()
    del files[file]
    assert found(files) != []


def test_nothing_at_all_deviates_in_everything() -> None:
    told = " ".join(found({}))
    for word in ("Uid", "Seccomp", "/build", "memory", "pids", "cpus", "namespace", "Max open"):
        assert word in told


def test_workspace_on_disk_must_be_on_one() -> None:
    spec = spec_of(disk_backing="disk")
    files = faithful(spec)
    files["/proc/self/mountinfo"] = files["/proc/self/mountinfo"].replace(" - ext4 ", " - xfs ")
    assert "/build" in found(files, spec)[0]


def test_mount_over_another_of_the_same_place_is_what_counts() -> None:
    files = faithful()
    files["/proc/self/mountinfo"] += mount("/tmp", "rw", "ext4", "rw")
    assert "/tmp" in found(files)[0]


def test_namespaces_of_this_process_are_none_of_a_sandboxs() -> None:
    files = faithful()
    assert found(files, own={"net": 4026532003}) == ["net namespace (as the kernel sees it)"]
    # Only without a user namespace of its own is a sandbox's the same as everybody's.
    assert found(files, own={"user": 4026532005}) == []


def test_own_namespaces_are_compared_on_the_same_kernel_alone() -> None:
    view = parse(printed(faithful()))
    read: Callable[[str], str] = lambda path: path.rpartition("/")[2] + ":[7]"  # noqa: E731
    assert outside("boot", read, view)["net"] == 7
    assert outside("other", read, view) == {}
    assert outside("", read, view) == {}


def test_gvisor_is_not_asked_for_what_it_cannot_show() -> None:
    spec = attrs.evolve(SPEC, runtime="runsc")
    files = faithful()
    for name in ("/proc/self/status", "/proc/1/status"):
        lines = files[name].replace("Seccomp:\t2", "Seccomp:\t0").splitlines()
        files[name] = "\n".join(line for line in lines if not line.startswith("CapAmb"))
    for name in [each for each in files if each.startswith((CGROUP, "/proc/self/ns"))]:
        del files[name]
    del files["/proc/self/limits"]
    shown = files["/proc/self/mountinfo"].replace("nosuid,nodev", "relatime")
    files["/proc/self/mountinfo"] = shown.replace(",nr_inodes=200", "")
    assert found(files, spec) == []
    files["/proc/self/status"] = status(0)
    assert found(files, spec) != []


def test_machine_without_apparmor_is_not_asked_for_it() -> None:
    files = {**faithful(), "/proc/self/attr/current": ""}
    expected = Expected(SPEC, IDENTITY, {}, lsm=False)
    assert kernel_deviations(parse(printed(files)), expected) == ()


@given(st.text(max_size=200))
def test_nonsense_is_no_crash(text: str) -> None:
    expected = Expected(SPEC, IDENTITY, {})
    assert kernel_deviations(parse(text), expected)
    for name in ("/proc/self/mountinfo", "/proc/self/limits", "/proc/self/status"):
        assert kernel_deviations(parse(printed({**faithful(), name: text})), expected)


def test_place_with_a_blank_is_read() -> None:
    files = faithful()
    files["/proc/self/mountinfo"] += mount("/a\\040b", "rw", "tmpfs", "rw")
    view = parse(printed(files))
    assert "/a b" in view.mounts


@pytest.mark.parametrize(
    ("text", "cores"),
    [("0", {0}), ("0-2,5", {0, 1, 2, 5}), ("", None), ("x", None), ("1-", None), ("0-2,", None)],
)
def test_lists_of_processors(text: str, cores: set[int] | None) -> None:
    assert parse_list(text) == cores


@pytest.mark.parametrize(("text", "amount"), [("8k", 8192), ("3", 3), ("1m", 1 << 20), ("k", None)])
def test_amounts(text: str, amount: int | None) -> None:
    assert parse_amount(text) == amount
