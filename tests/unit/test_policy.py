"""What ``SandboxPolicy`` takes, what it refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandboxworker.errors import PolicyError
from sandboxworker.policy import (
    FIELDS,
    GIB,
    KEEPER_UID,
    KIB,
    MIB,
    TIB,
    SandboxPolicy,
    parse_seconds,
    parse_size,
    show_seconds,
    show_size,
)

IMAGE = "sandboxworker/debian:bookworm"
HEX = "0123456789abcdef" * 4

#: field, what the operator writes, what it means
ACCEPTED: list[tuple[str, Any, Any]] = [
    ("image", "busybox", "busybox"),
    ("image", "registry.invalid:5000/team/image:1.2_x", "registry.invalid:5000/team/image:1.2_x"),
    ("image", f"image@sha256:{HEX}", f"image@sha256:{HEX}"),
    ("image", f"sha256:{HEX}", f"sha256:{HEX}"),
    ("require_digest", False, False),
    ("user", "auto", "auto"),
    ("user", "1000:1000", "1000:1000"),
    ("user", f"1:{KEEPER_UID - 1}", f"1:{KEEPER_UID - 1}"),
    ("cpus", 1, 1),
    ("cpus", 0.5, 0.5),
    ("cpus", 1024, 1024),
    ("cpuset", "auto", "auto"),
    ("cpuset", "none", "none"),
    ("sockets", "bounded", "bounded"),
    ("sockets", "unbounded", "unbounded"),
    ("memory", 512 * MIB, 512 * MIB),
    ("memory", "512m", 512 * MIB),
    ("memory", "2G", 2 * GIB),
    ("memory", "1.5g", 3 * GIB // 2),
    ("memory", "64 MiB", 64 * MIB),
    ("memory", "65536kb", 64 * MIB),
    ("memory", "1t", TIB),
    ("memory", "16777216", 16 * MIB),
    ("pids", 16, 16),
    ("disk", "10g", 10 * GIB),
    ("disk_inodes", 64, 64),
    ("disk_backing", "tmpfs", "tmpfs"),
    ("disk_backing", "disk", "disk"),
    ("workspace", "/build", "/build"),
    ("workspace", "/home/ci/work-1.0_x", "/home/ci/work-1.0_x"),
    ("workspace", "/tmpfs", "/tmpfs"),
    ("shm", "64k", 64 * KIB),
    ("tmp", "1g", GIB),
    ("secrets_size", "64m", 64 * MIB),
    ("nofile", 1024, 1024),
    ("memlock", 0, 0),
    ("core", "1m", MIB),
    ("max_runtime", 90, 90),
    ("max_runtime", "90s", 90),
    ("max_runtime", "2h", 7200),
    ("max_runtime", "1.5m", 90),
    ("max_runtime", "1D", 86400),
    ("max_runtime", "90", 90),
    ("max_output", "1k", KIB),
    ("max_step_output", "16m", 16 * MIB),
    ("max_upload", 0, 0),
    ("max_upload_files", 0, 0),
    ("seccomp", "strict", "strict"),
    ("seccomp", "/etc/sandboxworker/mine.json", "/etc/sandboxworker/mine.json"),
    ("runtime", None, None),
    ("runtime", "runsc", "runsc"),
    ("env", {"CC": "gcc -O2", "EMPTY": ""}, {"CC": "gcc -O2", "EMPTY": ""}),
    ("secrets", (), ()),
    ("secrets", ["b", "a"], ("a", "b")),
    ("secrets", {"deploy/key.pem"}, ("deploy/key.pem",)),
    ("secrets", ["ci/deploy|token", r"a\|b|c"], (r"a\|b|c", "ci/deploy|token")),
    ("secrets", "*", "*"),
    ("network", "none", "none"),
    ("sources", None, None),
    ("sources", [], ()),
    ("sources", ["*"], ("*",)),
    (
        "sources",
        ["https://git.example.org/team/*", "ssh://git@example.org/x", "file:///srv/git/*"],
        ("https://git.example.org/team/*", "ssh://git@example.org/x", "file:///srv/git/*"),
    ),
    ("max_source", "1m", MIB),
]

#: field, what is wrong
REFUSED: list[tuple[str, Any]] = [
    *(("image", wrong) for wrong in ("", None, 7, "Upper/Case", "a b", "a\n", "-x", "a:")),
    ("image", "a@sha256:12"),
    *(("require_digest", wrong) for wrong in (None, "yes", 1)),
    *(
        ("user", wrong)
        for wrong in (
            None, 1000, "root", "1000", "0:0", "0:1000", "1000:0", "00:1", "-1:1", "1000:1000\n",
            f"{KEEPER_UID}:1", f"1:{KEEPER_UID}", "65534:65534", "99999:1", "٣:٣",
        )
    ),
    *(("cpus", wrong) for wrong in (0, -1, True, "1", None, 1025, float("nan"), float("inf"))),
    *(("cpuset", wrong) for wrong in (None, "", "0-1", 2, True)),
    *(("sockets", wrong) for wrong in (None, "", "none", 0, False)),
    *(
        ("memory", wrong)
        for wrong in (
            0, -1, None, True, "", "lots", "-1g", "1x", "1 g b", "0x10m", "1e3m", [], "1m", "17t",
            float("inf"), float("nan"),
        )
    ),
    *(("pids", wrong) for wrong in (0, -1, 15, 65537, "1024", 1024.0, True, None)),
    *(("disk", wrong) for wrong in (0, -1, "1k", "17t", None)),
    *(("disk_inodes", wrong) for wrong in (0, 63, 10**9 + 1, "200k", None)),
    *(("disk_backing", wrong) for wrong in (None, "", "ext4", "/srv", True)),
    *(
        ("workspace", wrong)
        for wrong in (
            None, "", "build", "/", "//", "/build/", "/a//b", "/a/../b", "/./a", "/a b", "/a:b",
            "/a,b", "/a\n", "/proc", "/proc/self", "/sys/fs", "/dev/shm", "/tmp", "/tmp/x",
            "/run/secrets", "/etc", "/bin", "/usr/local/x", "/lib",
        )
    ),
    *(("shm", wrong) for wrong in (0, "1k", "2t", None)),
    *(("tmp", wrong) for wrong in (0, "1k", "2t", None)),
    *(("secrets_size", wrong) for wrong in (0, "1k", "65m", None)),
    *(("nofile", wrong) for wrong in (0, 63, 2**20 + 1, "1024", None)),
    *(("memlock", wrong) for wrong in (-1, "2t", None)),
    *(
        ("sources", wrong)
        for wrong in (
            "*", 7, [None], ["example.org"], ["https://"], ["ftp://example.org/x"],
            ["https://example.org"], ["https://example.org/a b"], ["file://host/x"], ["ext::sh"],
        )
    ),
    *(("max_source", wrong) for wrong in (0, "1k", "17t", None)),
    *(("core", wrong) for wrong in (-1, "2t", None, "unlimited")),
    *(("max_runtime", wrong) for wrong in (0, -1, "0s", "1w", "31d", None, True, "soon")),
    *(("max_output", wrong) for wrong in (0, -1, "2t", None)),
    *(("max_step_output", wrong) for wrong in (0, -1, "2t", None)),
    *(("max_upload", wrong) for wrong in (-1, "17t", None)),
    *(("max_upload_files", wrong) for wrong in (-1, 10**7 + 1, "10k", None)),
    *(("seccomp", wrong) for wrong in (None, "", "a\0b", {})),
    *(("runtime", wrong) for wrong in ("", "run sc", "run/sc", 1, "runsc\n")),
    *(
        ("env", wrong)
        for wrong in (
            None, "A=b", ["A=b"], {"": "x"}, {"1A": "x"}, {"A=B": "x"}, {"A B": "x"}, {"A\n": "x"},
            {"A": 1}, {"A": None}, {"A": "x\0y"}, {1: "x"},
        )
    ),
    *(("secrets", wrong) for wrong in (None, "name", 1, [1], ["*"], [""], ["a b"], ["/a"])),
    ("secrets", ["a\n"]),
    *(("network", wrong) for wrong in (None, "host", "bridge", "", True)),
]  # fmt: skip


def policy(**fields: Any) -> SandboxPolicy:
    return SandboxPolicy(**{"image": IMAGE, **fields})


def test_every_field_is_tried_with_right_and_with_wrong_values() -> None:
    assert {field for field, *_ in ACCEPTED} == set(FIELDS)
    assert {field for field, *_ in REFUSED} == set(FIELDS)


@pytest.mark.parametrize(("field", "written", "meant"), ACCEPTED)
def test_accepted_value_is_understood(field: str, written: Any, meant: Any) -> None:
    made = policy(**{field: written})
    assert made.faults() == ()
    assert getattr(made, field) == meant


@pytest.mark.parametrize(("field", "wrong"), REFUSED)
def test_wrong_value_is_one_fault_that_names_field_value_and_what_is_allowed(
    field: str, wrong: Any
) -> None:
    (fault,) = policy(**{field: wrong}).faults()
    shown = list(wrong) if isinstance(wrong, dict) else wrong  # Its values may be secrets.
    assert str(fault) == f"{field}={shown!r}: {FIELDS[field].allowed}"


def test_defaults_are_those_of_the_design() -> None:
    made = policy()
    assert made.faults() == ()
    assert {name: getattr(made, name) for name in FIELDS} == {
        "image": IMAGE,
        "require_digest": False,
        "user": "auto",
        "cpus": 1,
        "cpuset": "auto",
        "sockets": "bounded",
        "memory": GIB,
        "pids": 1024,
        "disk": 2 * GIB,
        "disk_inodes": 200_000,
        "disk_backing": "tmpfs",
        "workspace": "/build",
        "shm": 64 * MIB,
        "tmp": 256 * MIB,
        "secrets_size": MIB,
        "nofile": 16384,
        "memlock": 8 * MIB,
        "core": 0,
        "max_runtime": 3600,
        "max_output": 64 * MIB,
        "max_step_output": 16 * MIB,
        "max_upload": 256 * MIB,
        "max_upload_files": 10_000,
        "seccomp": "build",
        "runtime": None,
        "env": {},
        "secrets": (),
        "network": "none",
        "sources": None,
        "max_source": 4 * GIB,
    }


def test_image_is_required() -> None:
    assert [fault.field for fault in SandboxPolicy().faults()] == ["image"]


def test_every_fault_is_reported_at_once() -> None:
    wrong = dict(reversed(REFUSED))
    with pytest.raises(PolicyError) as caught:
        policy(**wrong, privileged=True).require_valid()
    assert [fault.field for fault in caught.value.faults] == [*FIELDS, "privileged"]
    for field in (*FIELDS, "privileged"):
        assert f"{field}=" in str(caught.value)


def test_valid_policy_raises_nothing() -> None:
    policy().require_valid()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("privileged", "never privileged"),
        ("capabilities", "no capability"),
        ("cap_add", "no capability"),
        ("binds", "nothing of the host is mounted"),
        ("mounts", "nothing of the host is mounted"),
        ("volumes", "nothing writable is shared"),
        ("devices", "no device of the host"),
        ("network_mode", "no network"),
        ("ports", "no network"),
        ("pid_mode", "namespaces of its own"),
        ("ipc_mode", "namespaces of its own"),
        ("read_only", "always read-only"),
        ("hostconfig", "no raw create request"),
        ("host_config", "no raw create request"),
        ("security_opt", "no_new_privs is always on"),
    ],
)
@pytest.mark.parametrize("value", [True, False, None, "", "anything", ["x"]])
def test_what_would_open_a_sandbox_is_refused_by_name_with_the_reason(
    name: str, reason: str, value: Any
) -> None:
    (fault,) = policy(**{name: value}).faults()
    assert fault.field == name
    assert reason in fault.allowed


def test_unknown_name_is_refused_with_the_names_there_are() -> None:
    (fault,) = policy(memroy="1g").faults()
    assert fault.field == "memroy"
    assert all(name in fault.allowed for name in FIELDS)


class TestRequireDigest:
    @pytest.mark.parametrize("image", [f"a/b@sha256:{HEX}", f"a/b:1@sha256:{HEX}", f"sha256:{HEX}"])
    def test_takes_a_digest(self, image: str) -> None:
        assert policy(image=image, require_digest=True).faults() == ()

    @pytest.mark.parametrize("image", ["a/b", "a/b:1", "a/sha256:latest", "sha256:latest"])
    def test_refuses_a_tag(self, image: str) -> None:
        assert policy(image=image).faults() == ()
        (fault,) = policy(image=image, require_digest=True).faults()
        assert fault.field == "image"


class TestSizesAndTimes:
    @given(st.integers(0, 2**60))
    def test_shown_size_reads_back(self, size: int) -> None:
        assert parse_size(show_size(size)) == size

    @given(st.integers(0, 10**9))
    def test_shown_time_reads_back(self, seconds: int) -> None:
        assert parse_seconds(show_seconds(seconds)) == seconds

    @example("9" * 400)
    @example("9" * 400 + "d")
    @given(st.text() | st.from_regex(r"\A\d{1,400}(\.\d+)?[kmgtKsh]?\Z") | st.floats())
    def test_whatever_is_written_is_read_or_is_a_fault_and_never_a_crash(self, text: Any) -> None:
        for field in ("memory", "max_runtime"):
            made = policy(**{field: text})
            assert made.faults() or isinstance(getattr(made, field), int)

    def test_units_are_powers_of_two(self) -> None:
        sizes = [parse_size(f"3{unit}") for unit in ("", "b", "k", "m", "g", "t")]
        assert sizes == [3, 3, 3 * 2**10, 3 * 2**20, 3 * 2**30, 3 * 2**40]

    def test_units_of_time(self) -> None:
        times = [parse_seconds(f"3{unit}") for unit in ("", "s", "m", "h", "d")]
        assert times == [3, 3, 180, 10800, 259200]


@given(
    st.dictionaries(
        st.sampled_from(sorted(FIELDS)),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())
        | st.dictionaries(st.text(), st.integers()),
    )
)  # fmt: skip
def test_no_value_whatever_makes_a_traceback(fields: dict[str, Any]) -> None:
    faults = policy(**fields).faults()
    assert {fault.field for fault in faults} <= {*fields, "image"}
    assert all(str(fault) for fault in faults)


def test_cgroup_memory_is_memory_and_every_tmpfs() -> None:
    made = policy(memory="1g", disk="2g", tmp="3m", shm="5m", secrets_size="7m")
    assert made.cgroup_memory == 3 * GIB + 15 * MIB


def test_workspace_on_disk_is_none_of_the_cgroups_memory() -> None:
    made = policy(
        memory="1g", disk="9g", tmp="3m", shm="5m", secrets_size="7m", disk_backing="disk"
    )
    assert made.cgroup_memory == GIB + 15 * MIB


def test_only_named_secrets_are_released() -> None:
    some, every, none = policy(secrets=["a", "b"]), policy(secrets="*"), policy()
    assert [each.releases("a") for each in (some, every, none)] == [True, True, False]
    assert [each.releases("c") for each in (some, every, none)] == [False, True, False]
    assert not policy(secrets=["abc"]).releases("a")


def test_policies_are_equal_when_all_fields_are() -> None:
    assert policy(memory="1g") == policy(memory=GIB)
    assert policy(memory="1g") != policy(memory="2g")
    assert policy() != policy(privileged=True)


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        policy().memory = 1  # type: ignore[misc]
