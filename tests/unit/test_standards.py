"""What holds: a sound sandbox passes each row, and each way of spoiling it fails its own."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import pytest

from sandboxworker import standards
from sandboxworker.kernelview import View
from sandboxworker.policy import SandboxPolicy
from sandboxworker.seccomp import load
from sandboxworker.spec import Identity, ImageFacts, build_spec, create_body
from sandboxworker.standards import Seen, Verdict

SPEC = build_spec(SandboxPolicy("an/image:1"), ImageFacts("an/image:1", "sha256:0"), load("build"))
IDENTITY = Identity("sandboxworker-20001", 20001, 20001, etc="/var/lib/x")
EMPTY = "0000000000000000"
STATUS = "Uid:\t{0}\t{0}\t{0}\t{0}\n" + "".join(
    f"Cap{name}:\t{EMPTY}\n" for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")
) + "NoNewPrivs:\t1\nSeccomp:\t2\n"  # fmt: skip
MOUNT = "1 1 0:1 / {0} {1} - tmpfs tmpfs rw,size={2}k\n"
FILES = {
    "/proc/self/status": STATUS.format(20001),
    "/proc/1/status": STATUS.format(65533),
    "/proc/net/dev": "Inter-|   Receive\n face |bytes\n    lo: 0 0\n",
    "/proc/self/mountinfo": MOUNT.format("/", "ro", 0) + "".join(
        MOUNT.format(place, "rw,nosuid,nodev", 1024)
        for place in ("/build", "/tmp", "/dev/shm", "/run/secrets")
    ),
}  # fmt: skip


def seen(files: dict[str, str] | None = None, **settings: Any) -> Seen:
    body = copy.deepcopy(create_body(SPEC, IDENTITY))
    host = {**body.pop("HostConfig"), **settings}
    return Seen(SPEC, IDENTITY, {"HostConfig": host, "Config": body}, View(files or FILES))


def failing(found: Seen) -> set[str]:
    return {row.id for row in standards.failures(standards.rows(found))}


def test_a_sound_sandbox_holds_every_row() -> None:
    assert failing(seen()) == set()


def test_every_row_is_there_once_and_in_order() -> None:
    rows = standards.rows(seen())
    numbers = [row.id for row in rows if row.standard == standards.CIS]
    assert numbers == [f"5.{number}" for number in range(1, 33)]
    threats = [row.id for row in rows if row.standard == standards.THREATS]
    assert threats == [f"T{number}" for number in range(1, 21)]
    assert all(row.seen for row in rows)
    assert {row.id for row in rows if row.verdict is Verdict.ELSEWHERE} == {
        "5.1", "5.3", "5.7", "5.27", "5.28", "T11", "T17", "T19", "T20",
    }  # fmt: skip


def test_a_policy_that_takes_unbounded_sockets_does_not_hold_what_a_build_may_pile_up() -> None:
    spec = attrs.evolve(SPEC, bounds_sockets=False)
    assert failing(attrs.evolve(seen(), spec=spec)) == {"T7"}


@pytest.mark.parametrize(
    ("setting", "value", "fails"),
    [
        ("Privileged", True, {"5.5", "privileged"}),
        ("CapDrop", [], {"5.4", "capabilities", "T3"}),
        ("CapAdd", ["NET_ADMIN"], {"5.4", "capabilities", "T3"}),
        ("Binds", ["/:/host"], {"5.6", "5.32", "host paths", "volumes", "T2"}),
        ("Mounts", [{"Target": "/etc/hosts", "ReadOnly": False}],
         {"5.6", "5.32", "host paths", "volumes", "T2"}),
        ("Mounts", [{"Target": "/etc/shadow", "ReadOnly": True}],
         {"5.6", "5.32", "host paths", "volumes", "T2"}),
        ("NetworkMode", "host", {"5.10", "5.30", "host namespaces", "T1"}),
        ("PidMode", "host", {"5.16", "host namespaces"}),
        ("IpcMode", "host", {"5.17", "host namespaces", "T13", "T18"}),
        ("UTSMode", "host", {"5.21", "host namespaces"}),
        ("UsernsMode", "host", {"5.31"}),
        ("Devices", [{"PathOnHost": "/dev/sda"}], {"5.18"}),
        ("ReadonlyRootfs", False, {"5.13"}),
        ("SecurityOpt", ["no-new-privileges:true"], {"5.22", "seccomp", "T4"}),
        ("SecurityOpt", ["seccomp=unconfined", "apparmor=unconfined"],
         {"5.2", "AppArmor", "5.22", "seccomp", "T4", "5.26", "privilege escalation", "T3"}),
        ("Memory", 0, {"5.11", "T7"}),
        ("MemorySwap", -1, {"5.11", "T7"}),
        ("NanoCpus", 0, {"5.12", "T9"}),
        ("PidsLimit", 0, {"5.29", "T6"}),
        ("Ulimits", [], {"5.19"}),
        ("CgroupParent", "/", {"5.25"}),
        ("PortBindings", {"80/tcp": [{}]}, {"5.8", "5.9", "5.14", "host ports"}),
        ("RestartPolicy", {"Name": "always"}, {"5.15"}),
        ("LogConfig", {"Type": "json-file"}, {"T10"}),
        ("MaskedPaths", [], {"T16", "proc mount"}),
        ("Sysctls", {"kernel.shmmax": "1"}, {"sysctls"}),
        ("AutoRemove", False, {"T14"}),
    ],
)  # fmt: skip
def test_a_setting_that_opens_it_fails_its_rows(
    setting: str, value: object, fails: set[str]
) -> None:
    assert failing(seen(**{setting: value})) == fails


@pytest.mark.parametrize(
    ("file", "text", "fails"),
    [
        ("/proc/self/status", STATUS.format(0), {"non-root", "T3"}),
        ("/proc/1/status", STATUS.format(20001), {"T14"}),
        ("/proc/self/status", STATUS.format(20001).replace(EMPTY, "0000000000000400"),
         {"5.4", "capabilities", "T3"}),
        ("/proc/self/status", STATUS.format(20001).replace("Seccomp:\t2", "Seccomp:\t0"),
         {"5.22", "seccomp", "T4"}),
        ("/proc/net/dev", "    lo: 0\n  eth0: 0\n", {"5.10", "5.30", "T1"}),
        ("/proc/self/mountinfo", FILES["/proc/self/mountinfo"]
         + MOUNT.format("/var", "rw,nosuid,nodev", 9), {"T5"}),
        ("/proc/self/mountinfo", FILES["/proc/self/mountinfo"].replace("nosuid,", ""), {"T5"}),
    ],
)  # fmt: skip
def test_what_the_kernel_shows_fails_its_rows(file: str, text: str, fails: set[str]) -> None:
    assert failing(seen({**FILES, file: text})) == fails


def test_what_gvisor_does_not_show_of_its_mounts_is_no_failure() -> None:
    bare = {
        **FILES,
        "/proc/self/mountinfo": FILES["/proc/self/mountinfo"].replace(",nosuid,nodev", ""),
    }
    spec = build_spec(
        SandboxPolicy("an/image:1", runtime="runsc"),
        ImageFacts("an/image:1", "sha256:0"),
        load("build"),
    )
    assert failing(seen(bare)) == {"T5"}
    assert failing(attrs.evolve(seen(bare), spec=spec)) == set()
