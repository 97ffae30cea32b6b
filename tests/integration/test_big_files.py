"""Big files both ways: streamed, whole, and never held in the master's memory.

``SANDBOXWORKER_TEST_BIG`` sets their size in MiB; without it they are small enough for every day.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from buildbot.plugins import steps
from buildbot.process.remotetransfer import DirectoryWriter
from conftest import DEBIAN
from memory_growth import MAX_GROWTH, Growth
from real_master import RealMaster, one_builder_each, running_master, shell
from runtime import SandboxPolicy

from sandboxworker import SandboxLatentWorker

pytestmark = pytest.mark.engine

MIB = 1024 * 1024
_ASKED = os.environ.get("SANDBOXWORKER_TEST_BIG")
SIZE = int(_ASKED or 160)
#: Seconds for a build; bzip2 and a busy machine take their time.
PATIENCE = 600
#: bzip2 packs a few MiB a second.
SIZES = {None: SIZE, "gz": SIZE, "bz2": SIZE if _ASKED else SIZE // 4}


@pytest_twisted.async_yield_fixture(scope="module")
async def master(
    engine_client: Any, left_over: Any, tmp_path_factory: Any
) -> AsyncIterator[RealMaster]:
    policy = SandboxPolicy(
        DEBIAN, memory="256m", disk=(SIZE + 16) * MIB, max_upload=(SIZE + 16) * MIB
    )
    workers = [SandboxLatentWorker("big", policy=policy)]
    basedir = tmp_path_factory.mktemp("master")
    async with running_master(basedir, one_builder_each(workers), left_over) as running:
        # What is loaded once is not the transfers' memory.
        await running.run("big", _round_trip(Path(__file__), basedir / "back"))
        yield running
        assert running.errors == []


def _round_trip(there: Path, back: Path) -> list[Any]:
    return [
        steps.FileDownload(mastersrc=str(there), workerdest="file"),
        shell("sha256sum file", "sum"),
        steps.FileUpload(workersrc="file", masterdest=str(back)),
    ]


@pytest.fixture(scope="module")
def big(tmp_path_factory: Any) -> Iterator[Path]:
    """A file whose every MiB is different, and that packs well."""
    file = tmp_path_factory.mktemp("big") / "file"
    with file.open("wb") as writer:
        for number in range(SIZE):
            writer.write(os.urandom(16 * 1024) + number.to_bytes(8, "big") + bytes(MIB - 16392))
    yield file
    file.unlink()


def digest(file: Path) -> str:
    total = hashlib.sha256()
    with file.open("rb") as reader:
        while block := reader.read(MIB):
            total.update(block)
    return total.hexdigest()


def test_growth_is_seen() -> None:
    """Else the tests below would show nothing."""
    growth = Growth()
    held = os.urandom(MAX_GROWTH)
    assert growth.peak() >= MAX_GROWTH * 0.9
    del held


@pytest_twisted.ensureDeferred
async def test_a_big_file_goes_in_and_comes_out_in_little_memory(
    master: RealMaster, big: Path, tmp_path: Path
) -> None:
    growth = Growth()
    request = await master.begin("big", _round_trip(big, tmp_path / "back"))
    build = await master.finished(request, PATIENCE)
    peak = growth.peak()
    assert build.result == "success", build.log
    assert build["sum"].out.split()[0] == digest(big) == digest(tmp_path / "back")
    assert peak < MAX_GROWTH
    (tmp_path / "back").unlink()


#: As `big`, made inside: sending it in first would take as long again.
MAKE = r"""mkdir -p tree/sub; i=0; while [ $i -lt $SIZE ]; do head -c 16384 /dev/urandom
head -c 1032192 /dev/zero; i=$((i+1)); done >tree/sub/big; echo small >tree/small
sha256sum tree/sub/big"""


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("compress", [None, "gz", "bz2"])
async def test_a_big_directory_comes_out_in_little_memory(
    master: RealMaster, tmp_path: Path, compress: str | None
) -> None:
    growth = Growth()
    request = await master.begin(
        "big",
        [
            shell(MAKE, "make", env={"SIZE": str(SIZES[compress])}),
            steps.DirectoryUpload(
                workersrc="tree", masterdest=str(tmp_path / "tree"), compress=compress
            ),
        ],
    )
    build = await master.finished(request, PATIENCE)
    peak = growth.peak()
    assert build.result == "success", build.log
    assert build["make"].out.split()[0] == digest(tmp_path / "tree/sub/big")
    assert (tmp_path / "tree/small").read_text() == "small\n"
    assert peak < MAX_GROWTH
    (tmp_path / "tree/sub/big").unlink()


@pytest_twisted.ensureDeferred
async def test_a_directory_is_unpacked_outside_the_reactors_thread(
    master: RealMaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, unpacked_in = DirectoryWriter.remote_unpack, []

    def remote_unpack(writer: Any) -> None:
        unpacked_in.append(threading.current_thread())
        upstream(writer)

    monkeypatch.setattr(DirectoryWriter, "remote_unpack", remote_unpack)
    upload = steps.DirectoryUpload(workersrc=".", masterdest=str(tmp_path / "tree"))
    build = await master.run("big", [shell("echo here >file", "make"), upload])
    assert build.result == "success", build.log
    assert (tmp_path / "tree/file").read_text() == "here\n"
    assert len(unpacked_in) == 1
    assert threading.main_thread() not in unpacked_in
