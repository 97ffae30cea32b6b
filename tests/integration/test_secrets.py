"""What becomes of a secret that a build's configuration names."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import docker
import docker.errors
import pytest
import pytest_twisted
from buildbot.plugins import steps, util
from buildbot.process.factory import BuildFactory
from buildbot.secrets.providers.file import SecretInAFile
from real_master import BuildResult, RealMaster, one_builder_each, running_master, shell, until
from runtime import SandboxPolicy, differs

from sandboxworker import SandboxLatentWorker

pytestmark = pytest.mark.engine

DEBIAN = "sandboxworker/debian:bookworm"
BUSYBOX = "sandboxworker/busybox:latest"

TOKEN = "/run/secrets/token"
VALUES = {
    "token": "released-f81c5a0e",
    "key": "line one 77aa\nline two 99bb\n",
    "other": "kept-1d2e3f",
    "pin": "7q",
    "pip": "zj",
}

POLICIES = {
    "debian": SandboxPolicy(DEBIAN, disk="16m", secrets=["token", "key"]),
    "busybox": SandboxPolicy(BUSYBOX, disk="16m", secrets=["token", "key"]),
    "trusted": SandboxPolicy(BUSYBOX, disk="16m", secrets="*"),
    "stranger": SandboxPolicy(BUSYBOX, disk="16m"),
}


#: Names what is among the secrets.
LOOK = "cd /run/secrets && ls -A; echo looked"


@pytest_twisted.async_yield_fixture(scope="module")
async def master(
    engine_client: Any, left_over: Any, tmp_path_factory: Any
) -> AsyncIterator[RealMaster]:
    folder = tmp_path_factory.mktemp("secrets")
    for name, value in VALUES.items():
        (folder / name).write_text(value)
        (folder / name).chmod(0o600)
    workers = [SandboxLatentWorker(name, policy=policy) for name, policy in POLICIES.items()]
    config = one_builder_each(workers, secretsProviders=[SecretInAFile(str(folder), strip=False)])
    async with running_master(tmp_path_factory.mktemp("master"), config, left_over) as running:
        yield running


def with_secrets(files: list[tuple[str, Any]], *build: Any) -> BuildFactory:
    factory = BuildFactory()
    with factory.withSecrets(files):
        factory.addSteps(build)
    return factory


def populating(build: BuildResult) -> Any:
    """The step that put the secrets there, or did not: the first after the worker's."""
    return build.steps[1]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", [pytest.param("debian", marks=differs("statx")), "busybox"])
async def test_a_released_secret_is_a_private_file_on_tmpfs(
    master: RealMaster, builder: str
) -> None:
    build = await master.run(
        builder,
        with_secrets(
            [
                ("/run/secrets/token", util.Secret("token")),
                ("/run/secrets/deep/er/key", util.Interpolate("[%(secret:key)s]")),
            ],
            shell("stat -c '%a %u' /run/secrets/token /run/secrets/deep/er/key; id -u", "mode"),
            shell("tr a-z b-za </run/secrets/token", "read"),
            shell("wc -c </run/secrets/deep/er/key; head -c 1 /run/secrets/deep/er/key", "key"),
            shell("cat /run/secrets/token", "shown"),
            shell("grep ' /run/secrets ' /proc/self/mounts", "mount"),
        ),
    )
    assert build.result == "success", build.log
    *modes, uid = build["mode"].out.splitlines()
    assert modes == [f"600 {uid}"] * 2
    assert build["read"].out == VALUES["token"].translate(
        str.maketrans("abcdefghijklmnopqrstuvwxyz", "bcdefghijklmnopqrstuvwxyza")
    )
    assert build["key"].out.split() == [str(len(VALUES["key"]) + 2), "["]
    assert build["mount"].out.split()[2] == "tmpfs"
    # Buildbot's own redaction works with these steps as with any.
    assert build["shown"].out == "<token>"
    assert VALUES["token"] not in build.log


@pytest_twisted.ensureDeferred
async def test_a_secret_stands_nowhere_but_in_its_file_and_goes_with_the_container(
    master: RealMaster, engine_client: Any
) -> None:
    """Not in the image, labels, inspect, exec, argv or environment, nor in the engine's log."""
    peek = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | grep -ac 'r[e]leased-'; echo looked"
    request = await master.begin(
        "debian",
        with_secrets(
            [("/run/secrets/token", util.Secret("token"))], shell(peek + "; sleep 3", "hold")
        ),
    )
    container = await master.process_runs(engine_client, "sleep 3")
    # Also while the file is being written, for which an exec is there.
    known: dict[str, Any] = {}

    def is_over() -> bool:
        with contextlib.suppress(docker.errors.APIError):
            known["container"] = engine_client.inspect_container(container)
            for exec_id in known["container"]["ExecIDs"] or ():
                known[exec_id] = engine_client.exec_inspect(exec_id)
            known["top"] = engine_client.top(container, "axeww")
        return not master.containers(engine_client)

    await until(is_over, "the end of the container")
    build = await master.finished(request)
    assert build.result == "success", build.log
    image = engine_client.inspect_image(DEBIAN)
    assert len(known) >= 3
    assert "sandboxworker.master" in known["container"]["Config"]["Labels"]
    for text in (json.dumps(known), json.dumps(image), json.dumps(engine_client.history(DEBIAN))):
        assert VALUES["token"] not in text
    assert build["hold"].out.split() == ["0", "looked"]
    after = await master.run("debian", [shell(LOOK, "look")])
    assert after["look"].out == "looked"


@pytest_twisted.ensureDeferred
async def test_a_secret_is_removed_after_its_steps_and_others_do_not_see_it(
    master: RealMaster,
) -> None:
    factory = with_secrets([("/run/secrets/token", util.Secret("token"))], shell("true", "in"))
    factory.addStep(shell(LOOK, "after"))
    build = await master.run("debian", factory)
    assert build.result == "success", build.log
    assert build["after"].out == "looked"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("builder", "content", "names"),
    [
        ("stranger", util.Secret("token"), "token"),
        ("debian", util.Secret("other"), "other"),
        ("debian", util.Interpolate("%(secret:token)s and %(secret:other)s"), "other"),
    ],
    ids=["none released", "another released", "one of two released"],
)
async def test_a_secret_that_the_policy_does_not_release_is_refused_with_the_way_to_allow_it(
    master: RealMaster, builder: str, content: Any, names: str
) -> None:
    build = await master.run(
        builder,
        with_secrets([("/run/secrets/x", content)], shell(LOOK, "ls")),
    )
    assert build.result == "failure"
    refused = populating(build)
    assert refused.result == "failure"
    assert f"secret {names} is refused" in build.log
    assert f"secrets=['{names}']" in build.log
    # Where the steps go on they go on without, and nothing is told but the name.
    assert all(step.out == "looked" for step in build.steps if step.name == "ls")
    for value in VALUES.values():
        assert value not in build.log


@pytest_twisted.ensureDeferred
async def test_a_trusted_policy_releases_every_secret(master: RealMaster) -> None:
    build = await master.run(
        "trusted",
        with_secrets(
            [("/run/secrets/x", util.Secret("other"))], shell("wc -c /run/secrets/x", "c")
        ),
    )
    assert build.result == "success", build.log
    assert build["c"].out.split()[0] == str(len(VALUES["other"]))


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "path",
    ["/build/token", "../token", "/tmp/token", "/run/secrets/../../tmp/token",
     "/run/secretsx/token", "/run/secrets", "~/token", "/dev/shm/token", "a/../../token"],
)  # fmt: skip
async def test_a_secret_outside_the_secrets_tmpfs_is_refused(master: RealMaster, path: str) -> None:
    look = "find /build /tmp /dev/shm /run/secrets -name 'token*'; echo looked"
    factory = with_secrets([(path, util.Secret("token"))], shell("true", "never"))
    factory.addStep(shell(look, "look", alwaysRun=True))
    build = await master.run("debian", factory)
    assert build.result == "failure"
    assert "secret token is refused" in build.log
    assert "/run/secrets/" in build.log
    assert build["look"].out == "looked"
    assert VALUES["token"] not in build.log


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["debian", "busybox"])
async def test_a_relative_path_is_one_on_the_secrets_tmpfs_and_removed_there(
    master: RealMaster, builder: str
) -> None:
    look = "cd /run/secrets && find . -type f | sort; find /build /tmp -name 'token*'"
    files = [("token", util.Secret("token")), ("deep/er/token", util.Interpolate("%(secret:key)s"))]
    factory = with_secrets(files, shell(look, "in"))
    factory.addStep(shell(look, "after"))
    build = await master.run(builder, factory)
    assert build.result == "success", build.log
    assert build["in"].out.split() == ["./deep/er/token", "./token"]
    assert build["after"].out == ""


@pytest_twisted.ensureDeferred
async def test_a_short_secret_is_delivered_and_warned_about_once(master: RealMaster) -> None:
    master.audit.clear()
    build = await master.run(
        "trusted",
        [
            *with_secrets(
                [("pin", util.Secret("pin"))],
                shell("wc -c </run/secrets/pin", "size"),
                shell("rev /run/secrets/pin", "read"),
            ).steps,
            # Not a secret of this build before now.
            shell(util.Interpolate("true %(secret:pip)s"), "command"),
            shell("true", "last"),
        ],
    )
    assert build.result == "success", build.log
    assert build["size"].out == str(len(VALUES["pin"]))
    assert build["read"].out == VALUES["pin"][::-1]
    warning = "secret pin is shorter than 4 characters"
    assert warning in populating(build).logs["warnings"]
    assert build.log.count(warning) == 1
    assert "secret pip is shorter than 4 characters" in build["command"].headers
    assert build.log.count("secret pip is shorter") == 1
    told = [(entry["secret"], entry["step"]) for entry in master.audit if "short" in entry["event"]]
    assert told == [("pin", populating(build).name), ("pip", "command")]
    assert VALUES["pin"] not in json.dumps(master.audit)
    assert VALUES["pin"] not in "".join(populating(build).logs.values())


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "leak",
    [
        lambda value: shell(["echo", value], "leak"),
        lambda value: shell(util.Interpolate("echo %(secret:token)s"), "leak"),
        lambda value: shell("env", "leak", env={"TOKEN": value}),
        lambda value: shell("env", "leak", env={"PATH": ["/x", value]}),
        lambda value: shell("cat", "leak", initialStdin=util.Interpolate("<%(secret:token)s>")),
        lambda value: shell("pwd", "leak", workdir=util.Interpolate("/build/%(secret:token)s")),
        lambda value: steps.StringDownload(value, name="leak", workerdest="file"),
        lambda value: steps.MakeDirectory(name="leak", dir=util.Interpolate("%(secret:token)s")),
    ],
    ids=["argv", "script", "env", "env list", "stdin", "workdir", "StringDownload", "mkdir"],
)
async def test_a_secret_that_a_step_would_carry_elsewhere_is_refused(
    master: RealMaster, engine_client: Any, leak: Callable[[Any], Any]
) -> None:
    """Also one that the policy releases: argv and environment are for everyone to read."""
    look = "find /build -name '*released-*'; grep -rl released- /build; echo looked"
    build = await master.run(
        "debian",
        [leak(util.Secret("token")), shell(look, "look", alwaysRun=True)],
    )
    assert build["leak"].result in ("failure", "exception"), build.log
    assert "secret token is refused" in build.log
    assert "withSecrets" in build.log
    assert build["look"].out == "looked"
    assert VALUES["token"] not in build.log


@pytest_twisted.ensureDeferred
async def test_every_release_and_refusal_is_audited_by_name_and_never_by_value(
    master: RealMaster,
) -> None:
    master.audit.clear()
    for builder in ("busybox", "stranger"):
        await master.run(
            builder, with_secrets([("/run/secrets/x", util.Secret("token"))], shell("true", "t"))
        )
    told = [
        (entry["event"], entry["worker"])
        for entry in master.audit
        if "secret" in entry["event"] and "token" in json.dumps(entry)
    ]
    assert told == [("secret.released", "busybox"), ("secret.refused", "stranger")]
    assert VALUES["token"] not in json.dumps(master.audit)


@pytest_twisted.ensureDeferred
async def test_a_secret_that_a_build_prints_in_pieces_or_encoded_is_redacted(
    master: RealMaster,
) -> None:
    build = await master.run(
        "debian",
        with_secrets(
            [("/run/secrets/token", util.Secret("token"))],
            shell("head -c 5 $T; sleep 1; tail -c +6 $T", "pieces", env={"T": TOKEN}),
            shell("base64 $T; base64 -w 0 <$T; echo", "base64", env={"T": TOKEN}),
            shell("od -An -v -tx1 $T | tr -d ' \\n'", "hex", env={"T": TOKEN}),
            shell("cat $T >&2", "stderr", env={"T": TOKEN}),
            shell("cat $T >f.log; sleep 1", "file", env={"T": TOKEN}, logfiles={"f": "f.log"}),
        ),
    )
    assert build.result == "success", build.log
    assert build["pieces"].out == "<token>"
    raw = VALUES["token"].encode()
    for leak in (VALUES["token"], raw.hex(), base64.b64encode(raw).decode().rstrip("=")[:-1]):
        assert leak not in build.log
    for name in ("base64", "hex", "stderr", "file"):
        assert "<token>" in "".join(build[name].logs.values()), name
