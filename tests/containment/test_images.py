"""T3, T19: what an image says of itself opens nothing."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from conftest import BUSYBOX
from memory_engine import within
from real_master import one_builder_each, running_master, shell

from sandboxworker import SandboxLatentWorker, SandboxPolicy
from sandboxworker.errors import ImageRefused
from sandboxworker.process import run

pytestmark = pytest.mark.engine
SECONDS = 90

MakeImage = Callable[..., str]


def tree_of(client: Any, image: str) -> tarfile.TarFile:
    """The files of an image."""
    made = client.create_container(image, ["true"])["Id"]
    try:
        return tarfile.open(fileobj=io.BytesIO(b"".join(client.export(made))))
    finally:
        client.remove_container(made, force=True)


@pytest.fixture
def make_image(engine_client: Any) -> Iterator[MakeImage]:
    """Busybox with other members in its tree and other settings; removed after the test."""
    made: list[str] = []

    def make(members: Iterator[tarfile.TarInfo] | tuple[Any, ...] = (), changes: Any = ()) -> str:
        packed = io.BytesIO()
        with (
            tree_of(engine_client, BUSYBOX) as tree,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            ours = {member.name: (member, data) for member, data in members}
            for member in tree:
                if not any((member.name + "/").startswith(name + "/") for name in ours):
                    data = tree.extractfile(member) if member.isreg() else None
                    archive.addfile(member, data)
            for member, data in ours.values():
                archive.addfile(member, io.BytesIO(data))
        answer = engine_client.import_image_from_data(packed.getvalue(), changes=list(changes))
        made.append(answer.strip().rpartition('"sha256:')[2].partition('"')[0])
        return f"sha256:{made[-1]}"

    yield make
    for image in made:
        engine_client.remove_image(image, force=True)


def file(name: str, data: bytes, mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), mode
    return member, data


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member, b""


async def say(sandbox: Any, script: str) -> list[str]:
    done = await within(SECONDS, run(sandbox, ["sh", "-c", f"exec 2>&1; {script}"]))
    return done.stdout.decode(errors="replace").split("\n")[:-1]


SETTINGS = (
    "USER root",
    "WORKDIR /nowhere",
    'ENTRYPOINT ["/bin/false"]',
    'CMD ["/bin/false"]',
    "HEALTHCHECK --interval=1s CMD touch /dev/shm/checked",
    "EXPOSE 80/tcp",
    "ONBUILD RUN false",
    "LABEL sandboxworker.master=somebody",
    "ENV BASH_ENV=/evil.sh",
    "ENV ENV=/evil.sh",
    "ENV LD_PRELOAD=/evil.so",
    "ENV HOME=/",
    "ENV KEPT=yes",
)


@pytest_twisted.ensureDeferred
async def test_settings_of_an_image_are_overridden_or_without_effect(
    make_image: MakeImage, make_sandbox: Any, engine_client: Any, owner: Any
) -> None:
    image = make_image((file("evil.sh", b"echo evil\n"),), SETTINGS)
    sandbox = await make_sandbox(image)
    assert (await say(sandbox, "id -u"))[0] == str(sandbox.identity.uid)
    seen = dict(line.partition("=")[::2] for line in await say(sandbox, "env"))
    assert not {"ENV", "BASH_ENV", "LD_PRELOAD", "KEPT"} & set(seen)
    names = dict(sandbox.spec.environ)
    assert names["KEPT"] == "yes"
    assert names["HOME"] == "/build"
    assert set(names) == {"PATH", "HOME", "LANG", "KEPT"}
    inspected = engine_client.inspect_container(sandbox.container)
    assert inspected["Config"]["Labels"]["sandboxworker.master"] == owner.master
    assert "Health" not in inspected["State"]
    assert not inspected["NetworkSettings"]["Ports"]
    assert await say(sandbox, "ls -A /dev/shm") == []


@pytest_twisted.ensureDeferred
async def test_set_uid_files_and_groups_of_an_image_give_nothing(
    make_image: MakeImage, make_sandbox: Any, engine_client: Any
) -> None:
    with tree_of(engine_client, BUSYBOX) as tree:
        program = tree.extractfile("bin/busybox").read()  # type: ignore[union-attr]
        groups = tree.extractfile("etc/group").read()  # type: ignore[union-attr]
    users = ",".join(f"build{number}" for number in range(512))
    everybody = groups.replace(b"root:x:0:", b"root:x:0:" + users.encode())
    assert everybody != groups
    # Programs of busybox that mean to run set-uid do not drop it.
    image = make_image((file("bin/su", program, 0o6755), file("etc/group", everybody)))
    sandbox = await make_sandbox(image)
    uid = str(sandbox.identity.uid)
    assert await say(sandbox, "stat -c %a:%u /bin/su; id -u; id -G") == ["6755:0", uid, uid]
    told = await say(sandbox, "/bin/su -c 'id -u; touch /etc/x'; grep Uid /proc/self/status")
    assert told[-1].split() == ["Uid:", uid, uid, uid, uid]
    assert "0" not in told


@pytest.mark.parametrize(
    ("place", "target", "said"),
    [
        ("build", "/etc", "/build is a link to /etc"),
        ("build", "../../proc", "/build is a link to /proc"),
        ("build", "nowhere", "/build is a link to /nowhere"),
        ("tmp", "/var/tmp", "/tmp is a link to /var/tmp"),
        ("run/secrets", "/build", "/run/secrets is a link to /build"),
        ("run", "/var/elsewhere", "/run is a link to /var/elsewhere"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_image_whose_own_link_would_lead_a_mount_elsewhere_is_refused(
    make_image: MakeImage, make_sandbox: Any, place: str, target: str, said: str
) -> None:
    sandbox = await make_sandbox(make_image((link(place, target),)), start=False)
    with pytest.raises(ImageRefused, match=said):
        await within(SECONDS, sandbox.start())
    assert not sandbox.is_ready


@pytest_twisted.ensureDeferred
async def test_every_wrong_place_of_an_image_is_told_at_once(
    make_image: MakeImage, make_sandbox: Any
) -> None:
    image = make_image((link("w", "/etc"), file("tmp", b"no directory")))
    sandbox = await make_sandbox(image, start=False, workspace="/w/deeper")
    with pytest.raises(ImageRefused, match=r"/tmp is no directory.*/w is a link to /etc"):
        await within(SECONDS, sandbox.start())


@pytest_twisted.ensureDeferred
async def test_build_with_such_an_image_says_so_and_is_not_tried_again(
    make_image: MakeImage, left_over: Any, tmp_path: Path
) -> None:
    policy = SandboxPolicy(make_image((link("tmp", "/var/tmp"),)), disk="16m")
    config = one_builder_each([SandboxLatentWorker("w", policy=policy)])
    async with running_master(tmp_path, config, left_over) as master:
        request = await master.begin("w", [shell("true", "never")])
        build = await master.finished(request)
        assert build.result == "exception"
        assert "/tmp is a link to /var/tmp" in build.log
        assert len(await master.builds(request)) == 1


@pytest_twisted.ensureDeferred
async def test_image_is_looked_at_once(make_sandbox: Any, engine: Any, monkeypatch: Any) -> None:
    looks = []
    entry = engine.entry

    async def counted(container: str, path: str) -> Any:
        looks.append(path)
        return await entry(container, path)

    monkeypatch.setattr(engine, "entry", counted)
    await make_sandbox(BUSYBOX)
    assert looks == ["/build", "/dev", "/dev/shm", "/proc", "/run", "/run/secrets", "/sys", "/tmp"]
    await make_sandbox(BUSYBOX, memory="32m")
    assert len(looks) == 8


@pytest_twisted.ensureDeferred
async def test_image_that_declares_volumes_is_refused(
    make_image: MakeImage, make_sandbox: Any
) -> None:
    with pytest.raises(ImageRefused, match="/data"):
        await make_sandbox(make_image((), ("VOLUME /data",)))
