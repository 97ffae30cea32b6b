"""What a build sees and can do, asked from inside by real builds."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import docker
import docker.errors
import pytest
import pytest_twisted
from buildbot.plugins import steps
from real_master import BuildResult, RealMaster, one_builder_each, running_master, shell, until
from runtime import HAS_OWN_KERNEL, SandboxPolicy, differs
from slow import withstood_the_kill

from sandboxworker import SandboxLatentWorker

pytestmark = pytest.mark.engine

MIB = 1024 * 1024
#: In the environment of the master's process, for the builds not to find.
MARKER = "SANDBOXWORKER_TEST_MARKER"
MARKER_VALUE = "what-only-the-master-may-know"

POLICY = SandboxPolicy(
    "sandboxworker/debian:bookworm",
    cpus=0.5,
    memory="96m",
    pids=64,
    disk="8m",
    disk_inodes=200,
    tmp="4m",
    shm="2m",
    secrets_size="1m",
    nofile=256,
    memlock="1m",
)
BUSYBOX = SandboxPolicy("sandboxworker/busybox:latest", memory="32m", disk="8m", tmp="4m")


@pytest_twisted.async_yield_fixture(scope="module")
async def master(
    engine_client: Any, left_over: Any, tmp_path_factory: Any
) -> AsyncIterator[RealMaster]:
    os.environ[MARKER] = MARKER_VALUE
    workers = [
        SandboxLatentWorker("debian", policy=POLICY),
        SandboxLatentWorker("busybox", policy=BUSYBOX),
    ]
    basedir = tmp_path_factory.mktemp("master")
    async with running_master(basedir, one_builder_each(workers), left_over) as running:
        yield running
    del os.environ[MARKER]


async def ask(master: RealMaster, builder: str, **questions: str) -> BuildResult:
    """One build with a shell step for each question, named as it is."""
    build = await master.run(builder, [shell(text, name) for name, text in questions.items()])
    assert {step.name for step in build.steps} >= set(questions)
    return build


@differs("kernel")
@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["debian", "busybox"])
async def test_a_build_has_no_privilege_of_any_kind(master: RealMaster, builder: str) -> None:
    build = await ask(
        master,
        builder,
        ids="id -u; id -g; id -G",
        status="cat /proc/self/status",
        root="touch /x; touch /usr/x; touch /etc/x; mkdir /bin/x; echo >/proc/sys/kernel/printk",
        mounts="cat /proc/self/mounts",
        mount="mount -t tmpfs none /tmp && echo did; umount /tmp && echo did;"
        "mknod /tmp/d c 1 3 && echo did; chown 0 /tmp && echo did; renice -n -5 $$ && echo did;"
        "chroot / /bin/sh -c 'echo did'; unshare -U echo did; echo tried",
    )
    uid, gid, groups = build["ids"].out.splitlines()
    assert uid == gid == groups
    assert int(uid) >= 1000
    status = dict(line.split(":", 1) for line in build["status"].out.splitlines())
    for ids in ("Uid", "Gid"):
        assert status[ids].split() == [uid] * 4
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities], 16) == 0, capabilities
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    assert build["root"].err.count("Read-only file system") == 5, build["root"].err
    assert build["mount"].out == "tried"
    mounts = [line.split() for line in build["mounts"].out.splitlines()]
    root = next(mount for mount in mounts if mount[1] == "/")
    assert root[3].split(",")[0] == "ro"
    for _, place, _, options, *_ in mounts:
        if place in ("/build", "/tmp", "/dev/shm", "/run/secrets"):
            assert {"nosuid", "nodev"} <= set(options.split(",")), (place, options)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["debian", "busybox"])
async def test_a_build_has_no_network_but_its_own_loopback(
    master: RealMaster, builder: str
) -> None:
    build = await ask(
        master,
        builder,
        devices="cat /proc/net/dev",
        routes="cat /proc/net/route",
        resolver="cat /etc/resolv.conf",
        hosts="cat /etc/hosts",
    )
    devices = [line.split(":")[0].strip() for line in build["devices"].out.splitlines()[2:]]
    assert devices == ["lo"]
    assert len(build["routes"].out.splitlines()) == 1
    servers = re.findall(r"^\s*nameserver\s+(\S+)", build["resolver"].out, re.MULTILINE)
    assert set(servers) <= {"127.0.0.1"}
    assert re.search(r"^127\.0\.0\.1\s.*\blocalhost\b", build["hosts"].out, re.MULTILINE)


NETWORK = """\
import errno, socket
print(sorted({info[4][0] for info in socket.getaddrinfo("localhost", 80)}))
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    server = socket.create_server((address, 0), family=family)
    socket.create_connection(server.getsockname()[:2], timeout=5).sendall(b"x")
    print("loopback", server.accept()[0].recv(1))
for family, address in (
    (socket.AF_INET, ("192.0.2.1", 80)), (socket.AF_INET6, ("2001:db8::1", 80)),
):
    try:
        socket.socket(family, socket.SOCK_STREAM).connect(address)
    except OSError as error:
        print("outside", errno.errorcode[error.errno])
for name in ("AF_PACKET", "AF_VSOCK", "AF_ALG", "AF_BLUETOOTH"):
    try:
        socket.socket(getattr(socket, name), socket.SOCK_RAW)
    except OSError as error:
        print(name, "refused")
try:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
except OSError as error:
    print("raw", "refused")
"""


@pytest_twisted.ensureDeferred
async def test_loopback_works_and_nothing_else_does(master: RealMaster) -> None:
    build = await ask(master, "debian", network=f"python3 - <<'END'\n{NETWORK}\nEND")
    lines = build["network"].out.splitlines()
    unreachable = "EHOSTUNREACH" if HAS_OWN_KERNEL else "ENETUNREACH"
    assert build["network"].result == "success", build["network"].err
    assert "127.0.0.1" in lines[0]
    assert lines[1:] == [
        "loopback b'x'",
        "loopback b'x'",
        f"outside {unreachable}",
        f"outside {unreachable}",
        "AF_PACKET refused",
        "AF_VSOCK refused",
        "AF_ALG refused",
        "AF_BLUETOOTH refused",
        "raw refused",
    ]


#: Prints "name value" for each limit; cgroup v1 and v2 keep them in other files.
CGROUP = """\
cd /sys/fs/cgroup
show() { [ ! -f "$2" ] || echo "$1 $(cat "$2")"; }
show memory memory/memory.limit_in_bytes; show memory memory.max
show with_swap memory/memory.memsw.limit_in_bytes; show swap memory.swap.max
show quota cpu/cpu.cfs_quota_us; show period cpu/cpu.cfs_period_us; show cpu cpu.max
show pids pids/pids.max; show pids pids.max
"""


@differs("kernel")
@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("builder", "policy"), [("debian", POLICY), ("busybox", BUSYBOX)], ids=["debian", "busybox"]
)
async def test_the_cgroup_holds_what_the_policy_says(
    master: RealMaster, builder: str, policy: SandboxPolicy
) -> None:
    build = await ask(master, builder, cgroup=CGROUP, write=(
        "for f in $(find /sys/fs/cgroup -name 'memory.limit_in_bytes' -o -name memory.max "
        "-o -name pids.max -o -name cgroup.procs); do echo 1 >$f && echo wrote; done; echo looked"
    ))  # fmt: skip
    found = dict(line.split(" ", 1) for line in build["cgroup"].out.splitlines())
    assert int(found["memory"]) == policy.cgroup_memory
    if "swap" in found:
        assert int(found["swap"]) == 0
        quota, period = found["cpu"].split()
    else:
        assert int(found["with_swap"]) == policy.cgroup_memory
        quota, period = found["quota"], found["period"]
    assert int(quota) / int(period) == policy.cpus
    assert int(found["pids"]) == policy.pids
    assert build["write"].out == "looked"


@differs("kernel")
@pytest_twisted.ensureDeferred
async def test_process_limits_are_the_policys(master: RealMaster) -> None:
    build = await ask(master, "debian", limits="cat /proc/self/limits", raise_="ulimit -n 4096")
    found = {
        line[:26].strip(): line[26:].split()[:2] for line in build["limits"].out.splitlines()[1:]
    }
    assert found["Max open files"] == ["256", "256"]
    assert found["Max locked memory"] == [str(MIB), str(MIB)]
    assert found["Max core file size"] == ["0", "0"]
    assert build["raise_"].result == "failure"


FILL = "head -c {0}m /dev/zero >{1}/full; echo code $?; stat -c %s {1}/full; rm {1}/full"


@differs("inodes")
@pytest_twisted.ensureDeferred
async def test_every_writable_place_is_full_at_its_own_size(master: RealMaster) -> None:
    sizes = {"/build": 8, "/tmp": 4, "/dev/shm": 2, "/run/secrets": 1}
    inodes = "i=0; while true >{0}/n$i; do i=$((i+1)); [ $i -lt 5000 ] || break; done; echo made $i"
    build = await ask(
        master,
        "debian",
        **{place: FILL.format(size * 2, place) for place, size in sizes.items()},
        writable="find / -type d -writable -not -path '/proc/*' 2>/dev/null",
        allocate="fallocate -l 100m f; echo code $?; rm -f f; truncate -s 100g f; echo code $?;"
        "stat -c %b f",
        inodes=f"mkdir i; ({inodes.format('i')}) 2>&1 | tail -n 2",
        tmp_inodes=f"({inodes.format('/tmp')}) 2>&1 | tail -n 2",
        fits="rm -rf i f; head -c 7m /dev/zero >f && echo fits",
    )
    for place, size in sizes.items():
        assert "No space left on device" in build[place].err, (place, build[place].err)
        code, written = build[place].out.splitlines()
        assert code != "code 0"
        assert int(written) <= size * MIB
        assert int(written) >= size * MIB * 0.95, place
    below = re.compile("(/build|/tmp|/dev/shm|/run/secrets)(/.*)?")
    assert [place for place in build["writable"].out.split() if not below.fullmatch(place)] == []
    assert "No space left on device" in build["allocate"].err
    # A sparse file may claim any size; it holds no block.
    assert build["allocate"].out.split() == ["code", "1", "code", "0", "0"]
    for name in ("inodes", "tmp_inodes"):
        assert "No space left on device" in build[name].out, build[name].out
        made = int(build[name].out.split("made ")[1])
        assert 100 < made <= POLICY.disk_inodes
    # And none of this was charged to the memory of the build's own processes.
    assert build["fits"].out == "fits"


@differs("memory")
@pytest_twisted.ensureDeferred
async def test_a_full_set_of_file_systems_leaves_the_processes_their_memory(
    master: RealMaster,
) -> None:
    fill = "for d in /build /tmp /dev/shm /run/secrets; do head -c 9m /dev/zero >$d/full; done"

    def allocate(size: int) -> list[str]:
        return ["python3", "-c", f"x = bytearray({size} * 1048576); print('had', len(x) >> 20)"]

    build = await master.run(
        "debian",
        [
            shell(f"{fill} 2>/dev/null; true", "fill"),
            shell(allocate(70), "fits"),
            shell(allocate(400), "bomb"),
            shell("echo alive", "next"),
        ],
    )
    assert build["fits"].out == "had 70"
    assert build["bomb"].result == "failure"
    assert "process killed by signal 9" in build["bomb"].headers
    assert build["next"].out == "alive"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["debian", "busybox"])
async def test_nothing_of_the_master_is_inside(
    master: RealMaster, engine_client: Any, builder: str
) -> None:
    """Neither in what the build can read nor in the headers of its own log."""
    build = await master.run(
        builder,
        [
            steps.ShellCommand(name="env", command="env; hostname; uname -n"),
            shell("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'", "processes"),
            shell("cat /etc/hostname /etc/hosts /etc/resolv.conf /proc/self/mountinfo "
                  "/proc/self/cgroup /proc/sys/kernel/hostname", "files"),
            steps.ShellCommand(name="fails", command=["/no/such"], workdir="../../x"),
            steps.FileUpload(workersrc="none", masterdest="ignored", haltOnFailure=False),
            steps.StringDownload("x", workerdest="/proc/x", haltOnFailure=False),
        ],
    )  # fmt: skip
    # The kernel tells of every mount where it came from: the engine's own folder, no other.
    told = build.log.replace(engine_client.info()["DockerRootDir"], "")
    assert "HOSTNAME" not in told.replace("HOSTNAME=sandbox\n", "")
    hostname = build["env"].out.splitlines()[-2:]
    assert hostname == ["sandbox", "sandbox"]
    for secret in (MARKER, MARKER_VALUE, str(master.basedir), os.getcwd(), "Traceback"):
        assert secret not in told, secret
    if len(socket.gethostname()) > 3:
        assert socket.gethostname() not in told
    assert platform.node() not in told or len(platform.node()) <= 3


@differs("keeper")
@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["debian", "busybox"])
async def test_the_keeper_can_be_neither_read_nor_harmed(master: RealMaster, builder: str) -> None:
    build = await ask(
        master,
        builder,
        who="stat -c %u /proc/1",
        environ="cat /proc/1/environ",
        memory="head -c 1 /proc/1/mem; ls /proc/1/fd/; cat /proc/1/maps; readlink /proc/1/exe",
        stdin="echo x >/proc/1/fd/0; sleep 0 </proc/1/fd/0",
        kill="for s in KILL STOP TERM INT HUP QUIT; do kill -$s 1 && echo sent; done",
        # What it runs itself, and everything at once.
        keepers="for p in /proc/[0-9]*; do if [ $(stat -c %u $p) = 65533 ]; then "
        "kill -STOP ${p#/proc/} && echo sent; fi; done; kill -KILL -1",
        alive="cat /proc/1/status",
    )
    assert build["who"].out == "65533"
    for name in ("environ", "memory", "stdin"):
        assert build[name].result == "failure"
        assert build[name].out == "", name
        assert "denied" in build[name].err, name
    assert "sent" not in build["kill"].out + build["keepers"].out
    assert "not permitted" in build["kill"].err
    assert "not permitted" in build["keepers"].err
    state = dict(line.split(":", 1) for line in build["alive"].out.splitlines() if ":" in line)
    assert state["State"].split()[0] == "S"
    assert build["alive"].result == "success"


SET_UID = """\
cp /usr/bin/id ./id 2>/dev/null || cp /bin/busybox ./id
chmod 6755 ./id; ./id -u; ./id -g; cp ./id /tmp/id; chmod 6755 /tmp/id; /tmp/id -u
find / -xdev -perm /6000 -type f 2>/dev/null
"""


@pytest_twisted.ensureDeferred
async def test_set_uid_bits_have_no_effect(master: RealMaster) -> None:
    build = await ask(master, "debian", ids="id -u", try_=SET_UID,
                      su="su -c id; sudo -n id; newgrp root; echo tried")  # fmt: skip
    uid = build["ids"].out
    assert build["try_"].out.splitlines()[:3] == [uid, uid, uid]
    # Our image has none either.
    assert len(build["try_"].out.splitlines()) == 3, build["try_"].out
    assert "uid=0" not in build["su"].out


FORK_BOMB = """\
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.02)
"""


@differs("bomb")
@pytest_twisted.ensureDeferred
async def test_a_fork_bomb_stops_at_the_limit_and_the_next_step_runs(
    master: RealMaster, engine_client: Any
) -> None:
    bomb = shell(["python3", "-c", FORK_BOMB], "bomb", maxTime=3)
    request = await master.begin("debian", [bomb, shell("echo alive; id -u", "next")])
    container = await master.process_runs(engine_client, "os.fork")
    seen = []

    def is_over() -> bool:
        with contextlib.suppress(docker.errors.APIError):
            seen.append(len(engine_client.top(container)["Processes"] or ()))
        return not master.containers(engine_client)

    await until(is_over, "the end of the build")
    build = await master.finished(request)
    # A few more: the engine puts what it starts itself into a full cgroup.
    assert POLICY.pids - 5 <= max(seen) <= POLICY.pids + 5
    assert build["bomb"].result == "failure"
    if withstood_the_kill(build["bomb"].headers):
        return
    assert "process killed by signal 9" in build["bomb"].headers
    assert build["next"].out.startswith("alive")


@differs("bomb")
@pytest_twisted.ensureDeferred
async def test_what_a_step_leaves_at_the_limit_fails_the_build_and_retries_nothing(
    master: RealMaster,
) -> None:
    leave = "i=0; while [ $i -lt 300 ]; do sleep 300 & i=$((i+1)); done; echo all"
    request = await master.begin("debian", [shell(leave, "leave"), shell("echo on", "next")])
    build = await master.finished(request)
    assert "all" not in build["leave"].out
    assert build["leave"].result == build.result == "failure"
    assert len(await master.builds(request)) == 1
