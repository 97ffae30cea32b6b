"""What a valid policy becomes: the spec, its digest, the engine's create request."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sandboxworker.errors import ImageRefused, PolicyError
from sandboxworker.policy import GIB, KEEPER_UID, KIB, MIB, TIB, SandboxPolicy
from sandboxworker.seccomp import Profile
from sandboxworker.spec import (
    SECRETS_PATH,
    UID_RANGE,
    ContainerSpec,
    Disk,
    Identity,
    ImageFacts,
    build_spec,
    create_body,
    exec_environ,
)

#: Two profiles, short ones: a spec only carries them.
BUILD = Profile("build", '{"defaultAction":"SCMP_ACT_ERRNO"}', "sha256:" + "1" * 64)
STRICT = Profile("strict", '{"defaultAction":"SCMP_ACT_KILL_PROCESS"}', "sha256:" + "2" * 64)
FACTS = ImageFacts("image", "sha256:" + "0" * 64)
DEVICE = "/dev/loop7"
IDENTITY = Identity("sandboxworker-20000", 20000, 20000, (("sandboxworker.master", "m"),))

names = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,8}\Z")
texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)
sizes = st.integers(64 * KIB, 64 * MIB)
paths = st.from_regex(r"\A(/[A-Za-z0-9_.+-]{1,8}){1,3}\Z")

#: For every field, a little wider than what is allowed; what does not validate is left out.
fields = {
    "user": st.just("auto")
    | st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map("{0[0]}:{0[1]}".format),
    "cpus": st.integers(0, 1024) | st.floats(0.009, 1024),
    "memory": st.integers(16 * MIB - 1, 2 * TIB) | st.sampled_from(["512m", "1g"]),
    "pids": st.integers(15, 65537),
    "disk": st.integers(MIB - 1, TIB),
    "disk_inodes": st.integers(63, 10**9),
    "disk_backing": st.sampled_from(["tmpfs", "disk"]),
    "cpuset": st.sampled_from(["auto", "none"]),
    "sockets": st.sampled_from(["bounded", "unbounded"]),
    "workspace": paths,
    "shm": sizes,
    "tmp": sizes,
    "secrets_size": sizes,
    "nofile": st.integers(63, 2**20),
    "memlock": st.integers(-1, GIB),
    "core": st.integers(-1, GIB),
    "max_runtime": st.integers(1, 100000),
    "runtime": st.none() | st.sampled_from(["runsc", "kata"]),
    "env": st.dictionaries(names, texts, max_size=4),
    "secrets": st.just("*") | st.lists(names, max_size=3),
    "network": st.just("none"),
}
opening = {
    "privileged": st.booleans(),
    "binds": st.just(["/:/host"]),
    "network": st.sampled_from(["none", "host"]),
    "runtime": st.just("../runc"),
    "user": st.sampled_from(["0:0", "root", f"{KEEPER_UID}:{KEEPER_UID}"]),
    "pids": st.sampled_from([0, -1, None]),
    "memory": st.sampled_from([0, -1, "unlimited"]),
}


def policies_of(strategies: dict[str, Any]) -> Any:
    chosen = st.fixed_dictionaries({}, optional=strategies)
    return chosen.map(lambda chosen: SandboxPolicy("image", **chosen))


policies = policies_of(fields)
hostile_policies = policies_of({**fields, **opening})
image_lines = st.lists(
    st.builds("{}={}".format, names | st.sampled_from(["PATH", "HOME", "ENV", "LD_PRELOAD"]), texts)
    | names,
    max_size=6,
)
images = st.builds(attrs.evolve, st.just(FACTS), env=image_lines.map(tuple))
uids = st.sampled_from(UID_RANGE)


plain_image = st.just(FACTS)


@st.composite
def specs(draw: Any, image: Any = plain_image) -> ContainerSpec:
    policy = draw(policies)
    assume(not policy.faults())
    return build_spec(policy, draw(image), BUILD)


def spec_of(image_env: tuple[str, ...] = (), **policy: Any) -> ContainerSpec:
    return build_spec(SandboxPolicy("image", **policy), attrs.evolve(FACTS, env=image_env), BUILD)


def body_of(spec: ContainerSpec, uid: int = 20000) -> dict[str, Any]:
    return create_body(spec, Identity(f"sandboxworker-{uid}", uid, uid, device=DEVICE))


def options(text: str) -> dict[str, str]:
    return dict(option.partition("=")[::2] for option in text.split(","))


# ---- no valid policy opens a sandbox -----------------------------------------------------------


@given(hostile_policies)
def test_policy_with_any_fault_gives_no_spec(policy: SandboxPolicy) -> None:
    if policy.faults():
        with pytest.raises(PolicyError):
            build_spec(policy, FACTS, BUILD)
    else:
        assert build_spec(policy, FACTS, BUILD).image == "image"


@given(specs(), uids)
def test_nobody_in_the_container_is_root(spec: ContainerSpec, uid: int) -> None:
    body = body_of(spec, uid)
    assert body["User"] == f"{KEEPER_UID}:{KEEPER_UID}"
    assert uid not in (0, KEEPER_UID)
    for mount in body["HostConfig"]["Tmpfs"].values():
        assert options(mount)["uid"] == options(mount)["gid"] == str(uid)
    if spec.user != "auto":
        assert all(0 < int(part) != KEEPER_UID for part in spec.user.split(":"))


@given(specs())
def test_container_has_no_privilege_and_no_capability(spec: ContainerSpec) -> None:
    host = body_of(spec)["HostConfig"]
    assert host["Privileged"] is False
    assert host["CapAdd"] == []
    assert host["CapDrop"] == ["ALL"]
    assert host["GroupAdd"] == []
    assert host["SecurityOpt"] == ["no-new-privileges:true", f"seccomp={BUILD.text}"]
    assert "Capabilities" not in host


@given(specs())
def test_container_has_nothing_of_the_host(spec: ContainerSpec) -> None:
    body = body_of(spec)
    host = body["HostConfig"]
    empty = ("Binds", "VolumesFrom", "Devices", "DeviceRequests", "DeviceCgroupRules",
             "Links", "ExtraHosts", "CgroupParent")  # fmt: skip
    assert not any(host[name] for name in empty)
    assert "Volumes" not in body
    assert host["LogConfig"]["Type"] == "none"


@given(specs())
def test_container_has_namespaces_of_its_own(spec: ContainerSpec) -> None:
    host = body_of(spec)["HostConfig"]
    assert (host["PidMode"], host["UTSMode"], host["UsernsMode"]) == ("", "", "")
    assert (host["IpcMode"], host["CgroupnsMode"]) == ("private", "private")


@given(specs())
def test_container_has_no_network(spec: ContainerSpec) -> None:
    host = body_of(spec)["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["PortBindings"] == {}
    assert host["PublishAllPorts"] is False


@given(specs())
def test_only_bounded_file_systems_are_writable(spec: ContainerSpec) -> None:
    host = body_of(spec)["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    volumes = {mount["Target"]: mount["VolumeOptions"] for mount in host["Mounts"]}
    assert set(volumes) == ({spec.workspace} if spec.disk else set())
    assert {*host["Tmpfs"], *volumes} == {spec.workspace, "/tmp", SECRETS_PATH}
    for volume in volumes.values():
        mounted = volume["DriverConfig"]["Options"]
        assert {"nosuid", "nodev"} <= set(mounted["o"].split(","))
        assert (mounted["type"], mounted["device"]) == ("ext4", DEVICE)
    for mount in map(options, host["Tmpfs"].values()):
        assert {"rw", "nosuid", "nodev"} <= mount.keys()
        assert 0 < int(mount["size"]) <= spec.memory
        assert int(mount["nr_inodes"]) > 0
    assert 0 < host["ShmSize"] <= spec.memory


@given(specs())
def test_every_resource_is_limited(spec: ContainerSpec) -> None:
    host = body_of(spec)["HostConfig"]
    assert 0 < host["Memory"] == host["MemorySwap"]
    assert host["OomKillDisable"] is False
    assert host["NanoCpus"] > 0
    assert host["PidsLimit"] > 0
    ulimits = {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in host["Ulimits"]}
    assert set(ulimits) == {"core", "memlock", "nofile"}
    for soft, hard in ulimits.values():
        assert 0 <= soft == hard
    assert ulimits["nofile"][0] > 0


@given(specs())
def test_cgroup_holds_every_tmpfs_and_the_processes(spec: ContainerSpec) -> None:
    assert spec.memory >= 16 * MIB + spec.shm + sum(mount.size for mount in spec.tmpfs)


@given(specs())
def test_container_ends_with_its_keeper_and_its_keeper_with_the_attached_stream(
    spec: ContainerSpec,
) -> None:
    body = body_of(spec)
    assert body["Entrypoint"] == ["/bin/sh", "-c", spec.keeper]
    assert body["Cmd"] == []
    assert body["OpenStdin"] is body["StdinOnce"] is body["AttachStdin"] is True
    assert body["Tty"] is False
    assert body["HostConfig"]["AutoRemove"] is True
    assert body["HostConfig"]["RestartPolicy"]["Name"] == "no"


@given(specs())
def test_request_is_json(spec: ContainerSpec) -> None:
    body = body_of(spec)
    assert json.loads(json.dumps(body)) == body


def test_workspace_on_disk_is_an_unnamed_volume_that_takes_nothing_of_the_images() -> None:
    """Unnamed: the engine removes it with its container. Named ones are there to be shared."""
    (mount,) = body_of(spec_of(disk_backing="disk"))["HostConfig"]["Mounts"]
    assert (mount["Type"], mount.get("Source")) == ("volume", None)
    assert mount["VolumeOptions"]["NoCopy"] is True


def test_etc_files_of_the_engines_host_are_mounted_read_only_and_its_network_left_alone() -> None:
    body = create_body(spec_of(), attrs.evolve(IDENTITY, etc="/var/lib/x"))
    mounts = body["HostConfig"]["Mounts"]
    assert {mount["Target"]: mount["Source"] for mount in mounts} == {
        "/etc/hosts": "/var/lib/x/hosts",
        "/etc/resolv.conf": "/var/lib/x/resolv.conf",
    }
    assert all(mount["Type"] == "bind" and mount["ReadOnly"] for mount in mounts)
    assert (body["NetworkDisabled"], body["HostConfig"]["NetworkMode"]) == (True, "none")


def test_without_etc_files_the_engine_makes_its_own_with_the_network() -> None:
    body = create_body(spec_of(), IDENTITY)
    assert body["HostConfig"]["Mounts"] == []
    assert (body["NetworkDisabled"], body["HostConfig"]["NetworkMode"]) == (False, "none")


def test_disk_has_no_more_inodes_than_blocks() -> None:
    assert spec_of(disk_backing="disk", disk="1m", disk_inodes=200_000).disk == Disk(
        "/build", MIB, 256
    )
    assert spec_of(disk_backing="disk", disk="1g", disk_inodes=1000).disk == Disk(
        "/build", GIB, 1000
    )


@pytest.mark.parametrize(
    ("cpus", "cpuset", "processors"),
    [(1, "auto", 1), (0.5, "auto", 1), (1.5, "auto", 2), (8, "auto", 8), (1, "none", None)],
)
def test_processors_seen_are_the_cpus_rounded_up(
    cpus: float, cpuset: str, processors: int | None
) -> None:
    assert spec_of(cpus=cpus, cpuset=cpuset).processors == processors


def test_processors_of_the_identity_are_asked_for() -> None:
    body = create_body(spec_of(), attrs.evolve(IDENTITY, cpuset="0,3"))
    assert body["HostConfig"]["CpusetCpus"] == "0,3"


def test_limits_are_those_of_the_policy() -> None:
    spec = spec_of(
        cpus=1.5, memory="1g", disk="2g", disk_inodes=1000, tmp="3m", shm="5m", secrets_size="7m",
        pids=99, nofile=100, memlock="1m", core="2m", workspace="/work", runtime="runsc",
    )  # fmt: skip
    host = body_of(spec)["HostConfig"]
    assert host["Memory"] == 3 * GIB + 15 * MIB
    assert host["NanoCpus"] == 1_500_000_000
    assert host["PidsLimit"] == 99
    assert host["ShmSize"] == 5 * MIB
    assert host["Runtime"] == "runsc"
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]} == {
        "nofile": 100,
        "memlock": MIB,
        "core": 2 * MIB,
    }
    mounts = {path: options(text) for path, text in host["Tmpfs"].items()}
    assert {path: int(mount["size"]) for path, mount in mounts.items()} == {
        "/work": 2 * GIB,
        "/tmp": 3 * MIB,
        SECRETS_PATH: 7 * MIB,
    }
    assert mounts["/work"]["nr_inodes"] == "1000"
    assert "noexec" in mounts[SECRETS_PATH]
    assert mounts[SECRETS_PATH]["mode"] == "0700"


def test_engine_chooses_the_runtime_where_the_policy_names_none() -> None:
    assert "Runtime" not in body_of(spec_of())["HostConfig"]


def test_identity_tells_sandboxes_of_one_spec_apart() -> None:
    spec = spec_of()
    one, other = (
        create_body(spec, Identity("n", uid, uid, (("sandboxworker.sandbox", str(uid)),)))
        for uid in (20001, 20002)
    )
    assert one["Labels"] == {"sandboxworker.sandbox": "20001"}
    differing = {name for name in one if one[name] != other[name]}
    assert differing == {"Labels", "HostConfig"}
    differing = {
        name for name in one["HostConfig"] if one["HostConfig"][name] != other["HostConfig"][name]
    }
    assert differing == {"Tmpfs"}


def test_uids_of_sandboxes_are_nobody_elses() -> None:
    assert 0 not in UID_RANGE
    assert KEEPER_UID not in UID_RANGE
    assert min(UID_RANGE) > 1000


# ---- the digest --------------------------------------------------------------------------------


@given(specs())
def test_canonical_json_is_one_line_of_sorted_json(spec: ContainerSpec) -> None:
    text = spec.canonical_json()
    assert "\n" not in text
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert spec.digest.startswith("sha256:")
    assert len(spec.digest) == len("sha256:") + 64


@given(policies, images)
def test_same_policy_and_image_give_the_same_digest(
    policy: SandboxPolicy, image: ImageFacts
) -> None:
    assume(not policy.faults())
    one, other = build_spec(policy, image, BUILD), build_spec(policy, image, BUILD)
    assert one == other
    assert one.digest == other.digest


@given(specs(), specs())
def test_digests_are_equal_when_and_only_when_specs_are(
    one: ContainerSpec, other: ContainerSpec
) -> None:
    assert (one == other) == (one.digest == other.digest)


def test_whole_number_of_cores_has_one_digest_however_it_is_written() -> None:
    one, other = spec_of(cpus=1), spec_of(cpus=1.0)
    assert one == other
    assert one.digest == other.digest


@pytest.mark.parametrize("field", [field.name for field in attrs.fields(ContainerSpec)])
def test_digest_depends_on_every_field(field: str) -> None:
    spec = spec_of()
    changed = {
        "seccomp": STRICT,
        "tmpfs": spec.tmpfs[:1],
        "environ": (("A", "b"),),
        "removed_environ": ("X",),
        "masked_paths": (),
        "readonly_paths": (),
    }
    value = changed.get(field, 7 if isinstance(getattr(spec, field), (int, float)) else "other")
    assert attrs.evolve(spec, **{field: value}).digest != spec.digest


# ---- images ------------------------------------------------------------------------------------


def test_image_with_volumes_is_refused_by_name() -> None:
    with pytest.raises(ImageRefused, match=r"'image'.*/cache, /data"):
        build_spec(SandboxPolicy("image"), attrs.evolve(FACTS, volumes=("/cache", "/data")), BUILD)


@given(specs())
def test_container_is_created_from_the_image_that_was_looked_at(spec: ContainerSpec) -> None:
    assert body_of(spec)["Image"] == FACTS.id


# ---- the environment ---------------------------------------------------------------------------

UNSAFE = [
    "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "ENV", "BASH_ENV", "BASH_FUNC_ls%%", "BASHOPTS",
    "SHELLOPTS", "IFS", "CDPATH", "PS4", "PROMPT_COMMAND", "HOSTNAME", "BASH_COMPAT", "GLOBIGNORE",
    "BASH_XTRACEFD", "BASH_LOADABLES_PATH", "POSIXLY_CORRECT", "TMOUT", "GLIBC_TUNABLES", "PWD",
]  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_image_variables_that_change_shell_or_linker_reach_no_step(name: str) -> None:
    assert name not in dict(spec_of((f"{name}=x",)).environ)


def test_step_environment_is_the_images_then_ours_then_the_policys() -> None:
    image = ("PATH=/image/bin", "HOME=/image", "JAVA_HOME=/java", "A=image", "LANG=tlh")
    spec = spec_of(image, workspace="/work", env={"A": "policy", "LANG": "C"})
    assert dict(spec.environ) == {
        "PATH": "/image/bin",
        "HOME": "/work",
        "JAVA_HOME": "/java",
        "A": "policy",
        "LANG": "C",
    }


def test_image_without_a_path_gets_one() -> None:
    assert "/usr/bin" in dict(spec_of().environ)["PATH"].split(":")


def set_and_removed(lines: list[str]) -> tuple[dict[str, str], list[str]]:
    """What lines of an ``Env`` set, and what they remove by its bare name."""
    given_values = dict(line.split("=", 1) for line in lines if "=" in line)
    return given_values, [line for line in lines if "=" not in line]


@given(specs(images))
def test_keeper_gets_a_minimal_environment_and_nothing_of_the_images(spec: ContainerSpec) -> None:
    given_values, removed = set_and_removed(body_of(spec)["Env"])
    assert given_values == {
        "PATH": dict(spec.environ)["PATH"],
        "HOME": spec.workspace,
        "LANG": "C.UTF-8",
    }
    assert set(spec.removed_environ) - set(given_values) <= set(removed)


@given(specs(images))
def test_no_variable_is_both_set_and_removed(spec: ContainerSpec) -> None:
    """Which of the two wins is up to the engine."""
    given_values, removed = set_and_removed(body_of(spec)["Env"])
    assert not set(given_values) & set(removed)


@given(specs(images), st.dictionaries(names, texts))
def test_exec_sees_exactly_what_it_is_given(spec: ContainerSpec, environ: dict[str, str]) -> None:
    """As an engine works it out: the container's own lines, then the exec's."""
    inherited, _ = set_and_removed(body_of(spec)["Env"])
    given_values, removed = set_and_removed(list(exec_environ(spec, environ)))
    seen = {"HOSTNAME": "sandbox", **inherited, **given_values}
    for name in removed:
        assert name not in given_values
        seen.pop(name, None)
    assert seen == environ
