"""From a policy to exactly what is asked of the engine.

Pure: a policy, the facts of an image and a seccomp profile give a `ContainerSpec`;
the spec and an `Identity` give the create request.
Everything in a spec is the same for every sandbox of that policy (its digest names it);
everything that tells one sandbox from another is in the `Identity`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from sandboxworker.errors import ImageRefused
from sandboxworker.policy import KEEPER_UID, SandboxPolicy
from sandboxworker.seccomp import Profile

#: The uids (and gids) of living sandboxes under ``user="auto"``.
#: Our images carry passwd entries for them.
UID_RANGE = range(20000, 20512)

SECRETS_PATH = "/run/secrets"
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
HOSTNAME = "sandbox"
#: So that a host short of memory ends a sandbox before its services (``proc(5)``: -1000 to 1000).
OOM_SCORE_ADJ = 500

#: How a `Disk` is made and mounted. Its inode tables are zero from the start, as the file below is
#: new: no thread of the kernel's needs to write them.
DISK_TYPE, DISK_OPTIONS = "ext4", "nosuid,nodev,noinit_itable"
#: Bytes of one block of it.
BLOCK = 4096

#: PID 1. It waits for the end of its stdin, which the master's side holds open: when the master
#: goes, for whatever reason, the sandbox goes. It reaps orphans meanwhile.
#: The exit code is ours, so that an end of file is told apart from everything else.
KEEPER_EXIT = 97
KEEPER = f"until cat >/dev/null; do :; done; exit {KEEPER_EXIT}"

#: Beyond Docker's own list: what tells about the host (docs/threat-model.md, T16).
MASKED_PATHS = (
    # Writable for everyone, and bounded by nothing of the policy's.
    "/dev/mqueue",
    "/proc/acpi",
    "/proc/asound",
    "/proc/buddyinfo",
    "/proc/bus",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/consoles",
    "/proc/diskstats",
    "/proc/dma",
    "/proc/driver",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/irq",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/locks",
    "/proc/mdstat",
    "/proc/misc",
    "/proc/modules",
    "/proc/mtrr",
    "/proc/pagetypeinfo",
    "/proc/partitions",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/schedstat",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/softirqs",
    "/proc/swaps",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/tty",
    "/proc/vmallocinfo",
    "/proc/zoneinfo",
    "/sys/block",
    "/sys/bus",
    "/sys/class",
    "/sys/dev",
    # Not all of it: /sys/devices/system tells how many processors there are.
    "/sys/devices/LNXSYSTM:00",
    "/sys/devices/pci0000:00",
    "/sys/devices/platform",
    "/sys/devices/pnp0",
    "/sys/devices/virtual",
    "/sys/firmware",
    "/sys/fs/bpf",
    "/sys/hypervisor",
    "/sys/kernel",
    "/sys/module",
    "/sys/power",
)
READONLY_PATHS = ("/proc/sys",)

#: Of the sandbox's own network namespace.
SYSCTLS = (
    # Without it network "none" has no ::1, which test suites miss.
    ("net.ipv6.conf.all.disable_ipv6", "0"),
    # What waits in TCP connections to itself is no part of the memory limit under cgroup v1
    # (runc sets no `memory.kmem.tcp.limit_in_bytes`): with the kernel's 6 MiB for each, one sandbox
    # of 128 MiB held 3 GiB of its host's memory in 12 s.
    ("net.ipv4.tcp_rmem", "4096 32768 65536"),
    ("net.ipv4.tcp_wmem", "4096 16384 65536"),
)

#: What is looked up by name inside, by the file's name in /etc: loopback, and nobody else.
ETC_FILES = {
    "hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    "resolv.conf": "search .\nnameserver 127.0.0.1\n",
}

#: Image variables that would change what a shell or the dynamic linker does.
_UNSAFE_VARIABLE = re.compile(
    r"LD_.*|GLIBC_TUNABLES|GCONV_PATH|LOCPATH|"
    r"ENV|BASH.*|SHELLOPTS|POSIXLY_CORRECT|IFS|CDPATH|FPATH|ZDOTDIR|GLOBIGNORE|EXECIGNORE|"
    r"PS[0-4]|PROMPT_COMMAND|TMOUT|OPTIND|PWD|OLDPWD|HOSTNAME"
)


@attrs.frozen
class ImageFacts:
    """What the engine knows of an image, as far as it matters here.

    ``id``: the image's own id (``sha256:…``); ``digest``: of the registry it came from, if any.
    """

    reference: str
    id: str
    digest: str | None = None
    env: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    os: str = "linux"
    architecture: str = ""

    def faults(self) -> tuple[str, ...]:
        """What in the image would open the sandbox."""
        volumes = ", ".join(self.volumes)
        return (f"it declares volumes, which would be unbounded disk: {volumes}",) * bool(volumes)


@attrs.frozen
class Tmpfs:
    """One bounded file system in memory. ``size`` in bytes, ``mode`` in octal text."""

    path: str
    size: int
    inodes: int
    executable: bool
    mode: str

    def options(self, uid: int, gid: int) -> str:
        # uid and gid carry the protection: runc resets the mode where the mount point
        # exists in the image.
        exec_flag = "exec" if self.executable else "noexec"
        return (
            f"rw,nosuid,nodev,{exec_flag},size={self.size},nr_inodes={self.inodes},"
            f"mode={self.mode},uid={uid},gid={gid}"
        )


@attrs.frozen
class Disk:
    """A file system of the sandbox's own on the disk of the engine's host.

    ``size``: bytes for files; ``inodes``: how many of them there may be.
    """

    path: str
    size: int
    inodes: int


@attrs.frozen
class ContainerSpec:
    """Exactly what a sandbox of one policy is; equal specs are interchangeable.

    Sizes in bytes, ``cpus`` in cores, ``max_runtime`` in seconds.
    """

    image: str
    image_id: str
    user: str
    cpus: float
    #: How many processors it may run on, and sees; None for all that there are.
    processors: int | None
    memory: int
    pids: int
    tmpfs: tuple[Tmpfs, ...]
    disk: Disk | None
    shm: int
    nofile: int
    memlock: int
    #: Whether it is refused where what waits in its sockets is not bounded by ``memory``.
    bounds_sockets: bool
    core: int
    max_runtime: int
    workspace: str
    environ: tuple[tuple[str, str], ...]
    removed_environ: tuple[str, ...]
    seccomp: Profile
    runtime: str | None
    keeper: str = KEEPER
    keeper_uid: int = KEEPER_UID
    masked_paths: tuple[str, ...] = MASKED_PATHS
    readonly_paths: tuple[str, ...] = READONLY_PATHS

    def canonical_json(self) -> str:
        """One line of JSON that is the same for equal specs; the profile stands as its digest."""
        fields = attrs.asdict(self)
        fields["seccomp"] = {"name": self.seccomp.name, "digest": self.seccomp.digest}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """``sha256:…`` over `canonical_json`."""
        return "sha256:" + hashlib.sha256(self.canonical_json().encode()).hexdigest()


@attrs.frozen
class Identity:
    """What tells one sandbox from all others: its name, its user, its labels, its place.

    ``device``: the block device that holds its `Disk`, on the engine's host.
    ``cpuset``: the processors that it runs on, in the kernel's list format; empty for all.
    ``etc``: the folder on the engine's host that holds `ETC_FILES`; empty where the engine makes
    them itself, with the network that it then looks after.
    """

    name: str
    uid: int
    gid: int
    labels: tuple[tuple[str, str], ...] = ()
    device: str = ""
    cpuset: str = ""
    etc: str = ""

    @property
    def user(self) -> str:
        return f"{self.uid}:{self.gid}"


def build_spec(policy: SandboxPolicy, image: ImageFacts, profile: Profile) -> ContainerSpec:
    """The spec of every sandbox under this policy.

    Raises `PolicyError` for a policy with faults and `ImageRefused` for an image with faults.
    """
    policy.require_valid()
    if image.faults():
        raise ImageRefused(image.reference, image.faults())
    image_environ = _parse_environ(image.env)
    return ContainerSpec(
        image=policy.image,
        image_id=image.id,
        user=policy.user,
        cpus=policy.cpus,
        processors=math.ceil(policy.cpus) if policy.cpuset == "auto" else None,
        memory=policy.cgroup_memory,
        pids=policy.pids,
        tmpfs=_tmpfs(policy),
        disk=_disk(policy),
        shm=policy.shm,
        nofile=policy.nofile,
        memlock=policy.memlock,
        bounds_sockets=policy.sockets == "bounded",
        core=policy.core,
        max_runtime=policy.max_runtime,
        workspace=policy.workspace,
        environ=tuple(sorted(_environ(policy, image_environ).items())),
        removed_environ=tuple(sorted(set(image_environ) - {"PATH"})),
        seccomp=profile,
        runtime=policy.runtime,
    )


def _disk(policy: SandboxPolicy) -> Disk | None:
    if policy.disk_backing != "disk":
        return None
    # A file that is not empty takes a block, so more inodes than blocks are of little use.
    inodes = min(policy.disk_inodes, policy.disk // BLOCK)
    return Disk(policy.workspace, policy.disk, inodes)


def _tmpfs(policy: SandboxPolicy) -> tuple[Tmpfs, ...]:
    workspace = Tmpfs(
        policy.workspace, policy.disk, policy.disk_inodes, executable=True, mode="0755"
    )
    return (
        *((workspace,) if policy.disk_backing == "tmpfs" else ()),
        # Compilers and configure scripts run what they put into /tmp.
        Tmpfs("/tmp", policy.tmp, policy.disk_inodes, executable=True, mode="1777"),
        Tmpfs(SECRETS_PATH, policy.secrets_size, 1024, executable=False, mode="0700"),
    )


def _parse_environ(lines: Iterable[str]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _environ(policy: SandboxPolicy, image: Mapping[str, str]) -> dict[str, str]:
    """What a step's environment starts from: the image's, then ours, then the policy's."""
    safe = {name: value for name, value in image.items() if not _UNSAFE_VARIABLE.fullmatch(name)}
    ours = {"HOME": policy.workspace, "LANG": "C.UTF-8"}
    return {"PATH": DEFAULT_PATH, **safe, **ours, **policy.env}


def create_body(spec: ContainerSpec, identity: Identity) -> dict[str, Any]:
    """The engine's create request (Docker Engine API, ``ContainerCreate``).

    Every field that could open the sandbox is stated, also where the engine's default would do.
    """
    return {
        "Image": spec.image_id,
        "User": f"{spec.keeper_uid}:{spec.keeper_uid}",
        "Entrypoint": ["/bin/sh", "-c", spec.keeper],
        "Cmd": [],
        "Env": _keeper_environ(spec),
        "WorkingDir": "/",
        "Hostname": HOSTNAME,
        "Domainname": "",
        "Labels": dict(identity.labels),
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGKILL",
        "Tty": False,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": False,
        # There is none either way. An engine that is told so takes half the time for a start, and
        # makes no /etc/hosts, without which "localhost" is unknown.
        "NetworkDisabled": bool(identity.etc),
        "HostConfig": {
            **_isolation(spec),
            **_limits(spec),
            "CpusetCpus": identity.cpuset,
            "Tmpfs": {
                mount.path: mount.options(identity.uid, identity.gid) for mount in spec.tmpfs
            },
            "Mounts": [*_disk_mount(spec, identity), *_etc_mounts(identity)],
            "AutoRemove": True,
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            # The keeper prints nothing, and nothing of a build belongs on the host's disk.
            "LogConfig": {"Type": "none", "Config": {}},
            **({"Runtime": spec.runtime} if spec.runtime else {}),
        },
    }


def _disk_mount(spec: ContainerSpec, identity: Identity) -> list[dict[str, Any]]:
    """The workspace's file system, as a volume without a name: it goes with its container.

    The engine mounts the device itself, when the container starts.
    """
    if spec.disk is None:
        return []
    options = {"type": DISK_TYPE, "device": identity.device, "o": DISK_OPTIONS}
    volume = {
        # Else the engine would copy what the image has there.
        "NoCopy": True,
        "Labels": dict(identity.labels),
        "DriverConfig": {"Name": "local", "Options": options},
    }
    return [{"Type": "volume", "Target": spec.disk.path, "VolumeOptions": volume}]


def _etc_mounts(identity: Identity) -> list[dict[str, Any]]:
    """As the engine would mount its own, but read-only."""
    if not identity.etc:
        return []
    return [
        {
            "Type": "bind",
            "Source": f"{identity.etc}/{name}",
            "Target": f"/etc/{name}",
            "ReadOnly": True,
            # The engine asks for it of what lies in its own folder; nothing comes back from here.
            "BindOptions": {"Propagation": "rslave"},
        }
        for name in ETC_FILES
    ]


def _keeper_environ(spec: ContainerSpec) -> list[str]:
    """The environment that every exec starts from: minimal, the image's own removed.

    A name without ``=`` removes that variable (Engine API, ``ContainerConfig.Env``).
    """
    ours = {"PATH": dict(spec.environ)["PATH"], "HOME": spec.workspace, "LANG": "C.UTF-8"}
    removed = [name for name in spec.removed_environ if name not in ours]
    return [*(f"{name}={value}" for name, value in ours.items()), *removed]


def _isolation(spec: ContainerSpec) -> dict[str, Any]:
    return {
        "Privileged": False,
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={spec.seccomp.text}"],
        "ReadonlyRootfs": True,
        "NetworkMode": "none",
        "IpcMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "UsernsMode": "",
        "CgroupnsMode": "private",
        "Binds": [],
        "VolumesFrom": [],
        "Devices": [],
        "DeviceRequests": [],
        "DeviceCgroupRules": [],
        "GroupAdd": [],
        "Links": [],
        "ExtraHosts": [],
        # Else the host's own resolv.conf is copied into the sandbox.
        "Dns": ["127.0.0.1"],
        "DnsSearch": ["."],
        "PortBindings": {},
        "PublishAllPorts": False,
        "CgroupParent": "",
        "MaskedPaths": list(spec.masked_paths),
        "ReadonlyPaths": list(spec.readonly_paths),
        "Sysctls": dict(SYSCTLS),
    }


def _limits(spec: ContainerSpec) -> dict[str, Any]:
    return {
        "Memory": spec.memory,
        "MemorySwap": spec.memory,
        "OomKillDisable": False,
        "OomScoreAdj": OOM_SCORE_ADJ,
        "NanoCpus": round(spec.cpus * 1_000_000_000),
        "PidsLimit": spec.pids,
        "ShmSize": spec.shm,
        "Ulimits": [
            _ulimit("core", spec.core),
            _ulimit("memlock", spec.memlock),
            _ulimit("nofile", spec.nofile),
        ],
    }


def _ulimit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}


def exec_environ(spec: ContainerSpec, environ: Mapping[str, str]) -> Sequence[str]:
    """The ``Env`` of an exec whose process shall see exactly ``environ``.

    The engine starts from the container's own; what is not wanted is removed by its bare name.
    """
    inherited = {line.split("=", 1)[0] for line in _keeper_environ(spec) if "=" in line}
    wanted = [f"{name}={value}" for name, value in environ.items()]
    return [*wanted, *sorted((inherited | {"HOSTNAME"}) - set(environ))]
