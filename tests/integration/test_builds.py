"""Real builds of a real master, each step carried out in a sandbox of a real engine."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from buildbot.plugins import steps, util
from buildbot.process.buildstep import BuildStep
from buildbot.process.remotecommand import RemoteCommand
from buildbot.process.results import SUCCESS
from real_master import (
    HOLD,
    RealMaster,
    configuration,
    let_go,
    one_builder_each,
    pause,
    running_master,
    shell,
    until,
)
from runtime import HAS_OWN_KERNEL, SandboxPolicy, differs
from twisted.internet import defer, reactor

from sandboxworker import SandboxLatentWorker
from sandboxworker.commands import base

pytestmark = pytest.mark.engine

#: A failed transfer lets the next step run.
GO_ON = {"haltOnFailure": False}

DEBIAN = "sandboxworker/debian:bookworm"
BUSYBOX = "sandboxworker/busybox:latest"
MIB = 1024 * 1024

#: The workers of this module's master, and the builders of the same names.
POLICIES = {
    "plain": SandboxPolicy(DEBIAN, memory="256m", disk="192m", env={"FROM_POLICY": "yes"}),
    "busybox": SandboxPolicy(BUSYBOX, memory="64m", disk="16m"),
    "tight": SandboxPolicy(
        DEBIAN,
        disk="16m",
        max_step_output="64k",
        max_output="96k",
        max_upload="1m",
        max_upload_files=2,
    ),
    "brief": SandboxPolicy(DEBIAN, disk="16m", max_runtime="4s"),
}


@pytest_twisted.async_yield_fixture(scope="module")
async def master(
    engine_client: Any, left_over: Any, tmp_path_factory: Any
) -> AsyncIterator[RealMaster]:
    workers = [SandboxLatentWorker(name, policy=policy) for name, policy in POLICIES.items()]
    basedir = tmp_path_factory.mktemp("master")
    async with running_master(basedir, one_builder_each(workers), left_over) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_logged_errors(master: RealMaster) -> Any:
    """Nothing that a build does may show as an error of the master's."""
    yield
    errors, master.errors = master.errors, []
    assert not errors, "\n".join(errors)


# ---- shell ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["plain", "busybox"])
async def test_an_honest_build_succeeds_in_any_image_with_a_shell(
    master: RealMaster, builder: str
) -> None:
    build = await master.run(
        builder,
        [
            shell("echo one; echo two >&2; pwd", "text"),
            shell(["printf", "<%s>", "a b", "$HOME", "'", ""], "words"),
            shell("echo left >file; mkdir sub", "write"),
            shell("cat file", "read"),
            shell("pwd", "elsewhere", workdir="new/place"),
            shell("pwd", "absolute", workdir="/tmp/over there"),
        ],
    )
    assert build.result == "success", build.log
    assert build["text"].out.splitlines()[0] == "one"
    assert build["text"].err == "two"
    assert build["text"].out.splitlines()[1] == f"/build/{builder}/build"
    assert build["words"].out == "<a b><$HOME><'><>"
    assert build["read"].out == "left"
    assert build["elsewhere"].out == f"/build/{builder}/new/place"
    assert build["absolute"].out == "/tmp/over there"
    assert "program finished with exit code 0" in build["text"].headers


@pytest_twisted.ensureDeferred
async def test_a_step_sees_the_environment_that_buildbot_documents(master: RealMaster) -> None:
    env = {
        "PLAIN": "a b",
        "JOINED": ["/one", "/two"],
        "FROM_POLICY": None,
        "PATH": ["/extra", "${PATH}"],
        "UNKNOWN": "<${NO_SUCH_VARIABLE}>",
    }
    build = await master.run(
        "plain",
        [
            shell("env | sort", "with", env=env),
            shell("env | sort", "without"),
            steps.ShellCommand(command="true", name="logged", env={"SHOWN": "yes"}),
        ],
    )
    with_env = dict(line.split("=", 1) for line in build["with"].out.splitlines())
    without = dict(line.split("=", 1) for line in build["without"].out.splitlines())
    assert with_env["PLAIN"] == "a b"
    assert with_env["JOINED"] == "/one:/two"
    assert with_env["UNKNOWN"] == "<>"
    assert with_env["PATH"] == "/extra:" + without["PATH"]
    assert "FROM_POLICY" not in with_env
    assert without["FROM_POLICY"] == "yes"
    assert without["PWD"] == "/build/plain/build"
    assert without["HOME"] == "/build"
    assert "\n  SHOWN=yes\n" in build["logged"].headers
    assert "environment:" not in build["without"].headers


@pytest_twisted.ensureDeferred
async def test_a_step_sees_no_variable_that_nobody_asked_for(master: RealMaster) -> None:
    build = await master.run("plain", [shell(["env"], "env")])
    names = {line.partition("=")[0] for line in build["env"].out.splitlines()}
    assert names == {"PATH", "HOME", "LANG", "PWD", "FROM_POLICY"}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["plain", "busybox"])
async def test_initial_stdin_arrives_whole_and_ends(master: RealMaster, builder: str) -> None:
    small = "one line\nand \N{SNOWMAN} no newline"
    large = "0123456789abcdef" * 20_000
    build = await master.run(
        builder,
        [
            shell("cat; echo; echo end", "small", initialStdin=small),
            shell("wc -c; cat", "large", initialStdin=large),
            shell("wc -c", "none"),
        ],
    )
    assert build["small"].out == small + "\nend"
    assert build["large"].out.strip() == str(len(large))
    assert build["none"].out.strip() == "0"


@pytest_twisted.ensureDeferred
async def test_a_terminal_is_there_only_when_the_step_asks(master: RealMaster) -> None:
    look = "test -t 1 && echo terminal || echo pipe; exit 4"
    build = await master.run(
        "plain",
        [
            shell(look, "pty", usePTY=True),
            shell(look, "pipe"),
            shell("kill -SEGV $$", "killed", usePTY=True),
            shell("sleep 300", "hangs", usePTY=True, maxTime=1),
        ],
    )
    assert build["pty"].out.strip() == "terminal"
    assert build["pipe"].out == "pipe"
    assert "program finished with exit code 4" in build["pty"].headers
    assert "process killed by signal 11" in build["killed"].headers
    assert "process killed by signal 9" in build["hangs"].headers


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["plain", "busybox"])
async def test_a_step_that_exits_3_is_a_failure_with_3(master: RealMaster, builder: str) -> None:
    build = await master.run(
        builder,
        [shell("exit 3", "three"), shell(["/no/such/program"], "absent"), shell("echo on", "next")],
    )
    assert build.result == "failure"
    assert build["three"].result == "failure"
    assert "program finished with exit code 3" in build["three"].headers
    assert "killed by signal" not in build["three"].headers
    assert build["absent"].result == "failure"
    assert "program finished with exit code 127" in build["absent"].headers
    assert build["next"].out == "on"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["plain", "busybox"])
async def test_a_step_that_a_signal_killed_says_so(master: RealMaster, builder: str) -> None:
    build = await master.run(
        builder,
        [
            shell("kill -KILL $$", "kill"),
            shell("kill -SEGV $$", "segv"),
            shell("kill -TERM $$", "term"),
            shell("kill -INT $$; sleep 5", "int"),
            shell("exit 137", "exit"),
            shell("sh -c 'kill -KILL $$'; exit 5", "child"),
        ],
    )
    for name, number in {"kill": 9, "segv": 11, "term": 15}.items():
        assert f"process killed by signal {number}\n" in build[name].headers + "\n", name
        assert build[name].result == "failure"
    assert build["int"].result == "failure"
    for name, code in {"exit": 137, "child": 5}.items():
        assert "killed by signal" not in build[name].headers, name
        assert f"program finished with exit code {code}" in build[name].headers


@pytest_twisted.ensureDeferred
async def test_a_background_child_that_keeps_the_output_open_does_not_hold_the_step(
    master: RealMaster,
) -> None:
    build = await master.run(
        "plain", [shell("sleep 300 & echo begun", "daemon"), shell("echo on", "next")]
    )
    assert build.result == "success"
    assert build["daemon"].out == "begun"
    assert build["next"].out == "on"


@pytest_twisted.ensureDeferred
async def test_output_survives_bytes_that_are_no_text(master: RealMaster) -> None:
    build = await master.run(
        "plain",
        [
            shell(r"printf 'a\377\376b\000\033c\nlast'", "bytes"),
            # Split in the midst of characters of three bytes each.
            shell(
                r"i=0; while [ $i -lt 500 ]; do printf '\342'; printf '\230\203\n'; "
                "i=$((i+1)); done",
                "split",
            ),
        ],
    )
    assert build.result == "success"
    assert build["bytes"].out == "a\ufffd\ufffdb\0\033c\nlast"
    assert build["split"].out.split("\n") == ["\N{SNOWMAN}"] * 500


#: Every byte there is, twice over in what looks like sequences for a terminal, ended or not.
CONTROL = (
    b"".join(
        b"".join(b"\x1b%c%c." % (byte, byte) for byte in range(first, 256, 16)) + b"\n"
        for first in range(16)
    )
    + b"\x1b]0;title\x07\x1b[2Jcleared\x1b[9;9Hmoved\x08\x08back\rover\x1b]52;c;unfinished"
)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("pty", [False, True], ids=["pipe", "terminal"])
async def test_control_sequences_are_text_of_the_log(master: RealMaster, pty: bool) -> None:
    octal = "".join(f"\\{byte:03o}" for byte in CONTROL)
    # A terminal may not put a carriage return before each newline of its own accord.
    quiet = "stty raw; " if pty else ""
    steps_ = [shell(f"{quiet}printf '{octal}'", "control", usePTY=pty), shell("echo on", "next")]
    build = await master.run("plain", steps_)
    assert build.result == "success", build.log
    assert build["next"].out == "on"
    # What moves a cursor ends a line, as on Buildbot's own worker.
    moves = re.compile(base._NEWLINE_RE)
    wanted = moves.sub("\n", CONTROL.decode(errors="replace"))
    assert build["control"].out == wanted


class Database:
    """A master's, that takes its time; ``stored``: when it got each piece of a log, and which.

    To read a log right after its build would not do: Buildbot packs it just then, and lines may
    come twice.
    """

    def __init__(self, master: RealMaster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.stored: list[tuple[float, str]] = []
        updates = master.master.data.updates
        self._append = updates.appendLog
        monkeypatch.setattr(
            updates, "appendLog", lambda *piece: defer.ensureDeferred(self._store(*piece))
        )

    async def _store(self, log: int, content: str) -> Any:
        await pause(self.seconds)
        self.stored.append((time.time(), content))
        return await self._append(log, content)

    def written(self, since: float = 0.0) -> str:
        """What came from stdout, without ends of lines."""
        pieces = (text for when, text in self.stored if when >= since)
        return "".join("".join(re.findall("^o(.*)$", text, re.MULTILINE)) for text in pieces)


@pytest_twisted.ensureDeferred
async def test_millions_of_tiny_writes_arrive_whole(
    master: RealMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each write is a stop of the traced process under gVisor.
    database, writes = Database(master, monkeypatch), 200_000 if HAS_OWN_KERNEL else 2_000_000
    build = await master.run("plain", [shell(f"yes | dd bs=1 count={writes} status=none", "tiny")])
    assert build.result == "success", build.log[-1000:]
    assert database.written() == "y" * (writes // 2)


@pytest_twisted.ensureDeferred
async def test_a_command_that_writes_faster_than_the_master_is_held_back(
    master: RealMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, size = Database(master, monkeypatch), 12 * MIB
    database.seconds = 0.05
    flood = f"head -c {size} /dev/zero | tr '\\0' '~' | fold -w 99; date +%s.%N >ended"
    build = await master.run("plain", [shell(flood, "flood"), shell("cat ended", "when")])
    assert build.result == "success", build.log[-1000:]
    assert database.written().count("~") == size
    # Eight pieces of 64 KiB wait on the master, the rest in the engine's buffers and pipes, and in
    # gVisor's own.
    most = 4 * MIB if HAS_OWN_KERNEL else 2 * MIB
    assert database.written(since=float(build["when"].out)).count("~") < most


# ---- the end of a step ---------------------------------------------------------------------------

#: Starts what is hard to kill: a child, one that ignores signals, one in a session of its own.
STUBBORN = """\
echo begun
(trap '' HUP INT TERM; sh -c 'while :; do sleep 1; done' stubborn) &
setsid sh -c 'trap "" HUP INT TERM; while :; do sleep 1; done' stubborn </dev/null >/dev/null 2>&1 &
(setsid sh -c 'setsid sh -c "sleep 300; :" stubborn & :' &)
(setsid sh -c 'kill -STOP $$; :' stubborn &)
"""
#: What of that is still alive.
SURVIVORS = "grep -al '[s]tubborn' /proc/[0-9]*/cmdline 2>/dev/null; echo looked"


def _ended_and_clean(build: Any, name: str) -> None:
    assert build[name].result == "failure", build.log
    assert build["next"].out == "looked", build["next"].out


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["plain", "busybox"])
async def test_a_step_past_its_timeout_is_killed_with_everything_it_started(
    master: RealMaster, builder: str
) -> None:
    build = await master.run(
        builder, [shell(STUBBORN + "sleep 300", "hang", timeout=1), shell(SURVIVORS, "next")]
    )
    _ended_and_clean(build, "hang")
    assert "1 seconds without output" in build["hang"].headers
    assert "process killed by signal 9" in build["hang"].headers
    assert build["hang"].out == "begun"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["plain", "busybox"])
async def test_a_step_past_its_max_time_is_killed_with_everything_it_started(
    master: RealMaster, builder: str
) -> None:
    talkative = STUBBORN + "trap '' TERM HUP; while :; do echo x; sleep 0.2; done"
    build = await master.run(
        builder, [shell(talkative, "hang", timeout=30, maxTime=1), shell(SURVIVORS, "next")]
    )
    _ended_and_clean(build, "hang")
    assert "1 seconds elapsed" in build["hang"].headers
    assert "process killed by signal 9" in build["hang"].headers


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["plain", "busybox"])
async def test_what_a_step_leaves_behind_when_it_ends_by_itself_goes_on(
    master: RealMaster, builder: str
) -> None:
    """A build may start a server in one step and use it in the next."""
    build = await master.run(builder, [shell(STUBBORN, "leave"), shell(SURVIVORS, "next")])
    assert build.result == "success"
    assert build["next"].out.count("/cmdline") >= 4, build["next"].out


@pytest_twisted.ensureDeferred
async def test_output_resets_the_timeout(master: RealMaster) -> None:
    build = await master.run(
        "plain", [shell("for i in 1 2 3 4 5 6; do echo $i; sleep 0.4; done", "slow", timeout=2)]
    )
    assert build["slow"].result == "success"


@pytest_twisted.ensureDeferred
async def test_sigterm_time_lets_a_step_clean_up(master: RealMaster) -> None:
    polite = "trap 'echo cleaned; exit 7' TERM; echo begun; while :; do sleep 0.1; done"
    build = await master.run(
        "plain",
        [
            shell(polite, "polite", maxTime=1, sigtermTime=20),
            shell("trap '' TERM; echo begun; while :; do sleep 1; done", "rude", maxTime=1,
                  sigtermTime=1),
            shell(SURVIVORS, "next"),
        ],
    )  # fmt: skip
    assert build["polite"].out == "begun\ncleaned"
    assert "program finished with exit code 7" in build["polite"].headers
    _ended_and_clean(build, "rude")
    assert "process killed by signal 9" in build["rude"].headers


@pytest_twisted.ensureDeferred
async def test_the_interrupt_signal_of_a_step_is_sent_first(master: RealMaster) -> None:
    loop = "trap 'echo got-{0}; exit 8' {0}; echo begun; while :; do sleep 0.1; done"
    build = await master.run(
        "plain",
        [
            shell(loop.format("INT"), "int", maxTime=1, interruptSignal="INT"),
            shell(loop.format("QUIT"), "quit", maxTime=1, interruptSignal="QUIT"),
            shell(SURVIVORS, "next"),
        ],
    )
    # Once it is told to die its output is closed, as Buildbot's own worker does on POSIX.
    for name in ("int", "quit"):
        assert "program finished with exit code 8" in build[name].headers, build[name].headers
        assert build[name].out.splitlines()[0] == "begun"
    assert build["next"].out == "looked"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("builder", "command"),
    [
        ("plain", STUBBORN + "sleep 300"),
        ("busybox", STUBBORN + "sleep 300"),
        ("plain", "trap '' HUP INT TERM; while :; do echo sleep 300; done"),
    ],
    ids=["debian", "busybox", "flood"],
)
async def test_the_stop_button_ends_a_build_within_10_seconds(
    master: RealMaster, engine_client: Any, builder: str, command: str
) -> None:
    request = await master.begin(builder, [shell(command, "hang"), shell("echo on", "never")])
    await master.process_runs(engine_client, "sleep 300")
    if "echo sleep" in command:
        await pause(4)  # For a backlog of what it wrote.
    pressed = reactor.seconds()
    await master.stop_build(request)
    await master.ended(request)
    await until(lambda: not master.containers(engine_client), "its end", 10)
    assert reactor.seconds() - pressed < 10
    build = await master.finished(request)
    assert build.result == "cancelled"
    assert build["hang"].result == "cancelled", build.log
    assert "never" not in {step.name for step in build.steps}
    assert len(await master.builds(request)) == 1


@pytest_twisted.ensureDeferred
async def test_a_build_can_be_stopped_before_its_first_step(master: RealMaster) -> None:
    request = await master.begin("plain", [shell("sleep 300", "hang")])
    await until(lambda: master.builds(request), "the build")
    await master.stop_build(request)
    build = await master.finished(request)
    assert build.result == "cancelled"
    again = await master.run("plain", [shell("echo fine", "next")])
    assert again["next"].out == "fine"


# ---- limits on output and time -------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_max_lines_ends_a_step(master: RealMaster) -> None:
    build = await master.run(
        "plain",
        [
            shell("i=0; while :; do echo $i; i=$((i+1)); done", "many", max_lines=50),
            shell("seq 50", "enough", max_lines=50),
            shell(SURVIVORS, "next"),
        ],
    )
    _ended_and_clean(build, "many")
    assert "command exceeds max lines" in build["many"].headers
    assert build["enough"].result == "success"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "flood",
    ["yes", "cat /dev/zero", "yes >&2", "setsid yes & wait", "trap '' TERM HUP INT; yes"],
)
async def test_a_flood_is_cut_at_max_step_output_and_the_log_names_the_field(
    master: RealMaster, flood: str
) -> None:
    build = await master.run("tight", [shell(flood, "flood"), shell("echo on", "next")])
    assert build.result == "failure"
    assert build["flood"].result == "failure"
    assert "64k" in build["flood"].headers
    assert "max_step_output" in build["flood"].headers
    written = len(build["flood"].out) + len(build["flood"].err)
    # Buildbot breaks overlong lines.
    assert 0 < written <= 64 * 1024 + 100
    assert build["next"].out == "on"


@pytest_twisted.ensureDeferred
async def test_what_all_steps_write_together_is_cut_at_max_output(master: RealMaster) -> None:
    write = "yes | head -c 50000"
    build = await master.run(
        "tight", [shell(write, "one"), shell(write, "two"), shell("echo on", "three")]
    )
    assert build["one"].result == "success"
    assert build["two"].result == "failure"
    assert "96k" in build["two"].headers
    assert re.search(r"max_output\b", build["two"].headers)
    assert build["three"].result == "failure"


@pytest_twisted.ensureDeferred
async def test_max_runtime_fails_the_build_and_does_not_retry_it(
    master: RealMaster, engine_client: Any
) -> None:
    request = await master.begin(
        "brief", [shell(STUBBORN + "sleep 300", "hang"), shell("echo on", "never")]
    )
    build = await master.finished(request)
    assert build.result == "failure"
    assert "max_runtime" in build.log + build.state
    assert "4s" in build.log + build.state
    assert "never" not in {step.name for step in build.steps}
    await until(lambda: not master.containers(engine_client), "end of the container")
    assert len(await master.builds(request)) == 1


# ---- files ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", [pytest.param("plain", marks=differs("statx")), "busybox"])
async def test_small_files_travel_both_ways(
    master: RealMaster, tmp_path: Path, builder: str
) -> None:
    (tmp_path / "in").write_bytes(bytes(range(256)))
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    build = await master.run(
        builder,
        [
            steps.FileDownload(mastersrc=str(tmp_path / "in"), workerdest="new dir/in", mode=0o640),
            steps.FileDownload(mastersrc=str(empty), workerdest="-empty"),
            steps.StringDownload("text \N{SNOWMAN}\n", workerdest="script", mode=0o755),
            steps.StringDownload("x", workerdest="/tmp/absolute"),
            shell("stat -c %a 'new dir/in' script; cat script /tmp/absolute", "look"),
            shell("touch -d @1000000000 'new dir/in'", "touch"),
            steps.FileUpload(
                workersrc="new dir/in", masterdest=str(tmp_path / "out"), keepstamp=True, mode=0o600
            ),
            steps.FileUpload(workersrc="-empty", masterdest=str(tmp_path / "empty-out")),
        ],
    )
    assert build.result == "success", build.log
    assert build["look"].out.splitlines() == ["640", "755", "text \N{SNOWMAN}", "x"]
    assert (tmp_path / "out").read_bytes() == bytes(range(256))
    assert (tmp_path / "out").stat().st_mtime == 1_000_000_000
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600
    assert (tmp_path / "empty-out").read_bytes() == b""


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(("builder", "size"), [("plain", 50 * MIB), ("busybox", 5 * MIB)])
async def test_a_big_file_travels_both_ways_unharmed(
    master: RealMaster, tmp_path: Path, builder: str, size: int
) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(size + 1))
    digest = hashlib.sha256(big.read_bytes()).hexdigest()
    build = await master.run(
        builder,
        [
            steps.FileDownload(mastersrc=str(big), workerdest="big"),
            shell("sha256sum big", "sum"),
            steps.FileUpload(workersrc="big", masterdest=str(tmp_path / "back")),
        ],
    )
    assert build.result == "success", build.log
    assert build["sum"].out.split()[0] == digest
    assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == digest


@pytest_twisted.ensureDeferred
async def test_max_size_of_a_transfer_is_kept(master: RealMaster, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x" * 1000)

    def upload(name: str, maxsize: int) -> Any:
        return steps.FileUpload(
            name=name, workersrc="f", masterdest=str(tmp_path / name), maxsize=maxsize, **GO_ON
        )

    def download(name: str, maxsize: int) -> Any:
        return steps.FileDownload(
            name=name, mastersrc=str(tmp_path / "in"), workerdest=name, maxsize=maxsize, **GO_ON
        )

    build = await master.run(
        "plain",
        [
            shell("head -c 1000 /dev/zero >f", "make"),
            upload("upload-over", 999),
            # One of exactly that size fails on Buildbot's own worker too.
            upload("upload-fits", 1001),
            download("download-over", 999),
            download("download-fits", 1001),
        ],
    )
    for direction in ("upload", "download"):
        over, fits = build[f"{direction}-over"], build[f"{direction}-fits"]
        assert over.result == "failure"
        assert "Maximum filesize reached" in over.err
        assert fits.result == "success", (direction, fits.err)
    assert (tmp_path / "upload-fits").stat().st_size == 1000
    # Buildbot takes away what a failed upload has written.
    assert not (tmp_path / "upload-over").exists()


@pytest_twisted.ensureDeferred
async def test_only_readable_regular_files_can_be_uploaded(
    master: RealMaster, tmp_path: Path
) -> None:
    prepare = """\
mkfifo fifo; mkdir directory; echo x >locked; chmod 000 locked
ln -s /dev/zero endless; ln -s fifo link; ln -s nowhere dangling; echo x >honest
"""
    refused = ["missing", "fifo", "directory", "locked", "endless", "link", "dangling", "/dev/zero",
               "honest/below", *([] if HAS_OWN_KERNEL else ["/proc/1/environ"])]  # fmt: skip
    build = await master.run(
        "plain",
        [
            shell(prepare, "prepare"),
            *(
                steps.FileUpload(name=f"up {source}", workersrc=source, keepstamp=keepstamp,
                                 masterdest=str(tmp_path / "out"), **GO_ON)
                for source in refused
                for keepstamp in (False, True)[: 1 + (source in ("fifo", "missing"))]
            ),
            steps.FileUpload(name="honest", workersrc="honest", masterdest=str(tmp_path / "ok")),
        ],
    )  # fmt: skip
    assert build["honest"].result == "success"
    for source in refused:
        for step in [each for each in build.steps if each.name.startswith(f"up {source}")]:
            assert step.result == "failure", (step.name, step.err)
            assert "for upload" in step.err, (step.name, step.err)
    assert sum(step.name.startswith("up ") for step in build.steps) == len(refused) + 2
    assert not (tmp_path / "out").exists()


@pytest_twisted.ensureDeferred
async def test_a_build_takes_out_no_more_bytes_than_max_upload(
    master: RealMaster, tmp_path: Path
) -> None:
    build = await master.run(
        "tight",
        [
            shell("head -c 700000 /dev/zero >f", "make"),
            steps.FileUpload(name="one", workersrc="f", masterdest=str(tmp_path / "one")),
            steps.FileUpload(name="two", workersrc="f", masterdest=str(tmp_path / "two")),
        ],
    )
    assert build["one"].result == "success"
    assert build["two"].result == "failure"
    assert re.search(r"max_upload\b", build["two"].err)
    assert "1m" in build["two"].err
    assert not (tmp_path / "two").exists()


@pytest_twisted.ensureDeferred
async def test_a_build_takes_out_no_more_files_than_max_upload_files(
    master: RealMaster, tmp_path: Path
) -> None:
    ups = [
        steps.FileUpload(name=name, workersrc="f", masterdest=str(tmp_path / name))
        for name in ("one", "two", "three")
    ]
    build = await master.run("tight", [shell("echo x >f", "make"), *ups])
    assert [build[name].result for name in ("one", "two", "three")] == [
        "success", "success", "failure",
    ]  # fmt: skip
    assert "max_upload_files" in build["three"].err
    assert not (tmp_path / "three").exists()


@pytest_twisted.ensureDeferred
async def test_a_download_that_finds_no_room_fails_with_the_reason(
    master: RealMaster, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(b"x" * (17 * MIB))
    build = await master.run(
        "tight",
        [
            steps.FileDownload(
                name="big", mastersrc=str(tmp_path / "big"), workerdest="big", **GO_ON
            ),
            steps.StringDownload("x", name="usr", workerdest="/usr/x", **GO_ON),
            shell("rm big; mkdir in-the-way", "free"),
            steps.StringDownload("x", name="directory", workerdest="in-the-way", **GO_ON),
            steps.StringDownload("x", name="small", workerdest="small"),
        ],
    )
    assert build["big"].result == "failure"
    assert "No space left on device" in build["big"].err
    assert build["usr"].result == "failure"
    # gVisor looks at the user first.
    refused = "Permission denied" if HAS_OWN_KERNEL else "Read-only file system"
    assert refused in build["usr"].err
    assert build["directory"].result == "failure"
    assert build["small"].result == "success"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["plain", "busybox"])
async def test_directories_are_made_and_removed(master: RealMaster, builder: str) -> None:
    hard = "mkdir -p build/tree/locked/deep; touch build/tree/locked/deep/f; chmod 000 build/tree/*"
    build = await master.run(
        builder,
        [
            steps.MakeDirectory(dir="build/a/b c", name="make"),
            steps.MakeDirectory(dir="build/a/b c", name="make again"),
            steps.FileExists(file="build/a/b c/../b c", name="exists-directory", **GO_ON),
            shell("touch file; test -d 'a/b c'", "touch"),
            steps.FileExists(file="build/file", name="exists-file", **GO_ON),
            steps.FileExists(file="build/none", name="exists-none", **GO_ON),
            steps.MakeDirectory(dir="build/file/below", name="make-below-file", **GO_ON),
            steps.MakeDirectory(dir="/usr/x", name="make-read-only", **GO_ON),
            shell(hard + "; chmod 000 build/tree", "lock", workdir="."),
            steps.RemoveDirectory(dir="build/tree", name="remove-locked"),
            steps.RemoveDirectory(dir="build/none", name="remove-none"),
            steps.RemoveDirectory(dir="/usr", name="remove-usr", **GO_ON),
            shell("ls -A", "ls"),
        ],
    )
    results = {step.name: step.result for step in build.steps}
    assert results["make"] == results["make again"] == results["touch"] == "success", build.log
    assert results["exists-file"] == "success"
    # "Not a file" is what this step says about a directory.
    assert results["exists-directory"] == "failure"
    assert results["exists-none"] == "failure"
    assert results["make-below-file"] == results["make-read-only"] == "failure"
    assert results["remove-locked"] == results["remove-none"] == "success"
    assert results["remove-usr"] == "failure"
    assert build["ls"].out.split("\n") == ["a", "file"]


class _Stat(BuildStep):
    """Asks for the worker's ``stat`` of a path and keeps the answers."""

    answers: list[Any] = []

    def __init__(self, command: str, **args: Any) -> None:
        super().__init__(name=command)
        self.command, self.args = command, args

    @defer.inlineCallbacks
    def run(self) -> Any:
        command = RemoteCommand(self.command, self.args, ignore_updates=False)
        yield self.runCommand(command)
        self.answers.append((command.rc, command.updates.get("stat", [None])[-1]))
        return SUCCESS


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("builder", ["plain", "busybox"])
async def test_stat_and_rmfile_answer_as_the_system_would(master: RealMaster, builder: str) -> None:
    _Stat.answers.clear()
    await master.run(
        builder,
        [
            shell("printf 12345 >f; chmod 640 f; touch -d @1000000000 f; ln -s f l; id -u", "make"),
            _Stat("stat", file="f", workdir="build"),
            _Stat("stat", file="l", workdir="build"),
            _Stat("stat", file="none", workdir="build"),
            _Stat("stat", file="f/below", workdir="build"),
            _Stat("rmfile", path="build/l"),
            _Stat("rmfile", path="build/l"),
            _Stat("stat", file="f", workdir="build"),
            _Stat("rmfile", path="build"),
        ],
    )
    answers = list(_Stat.answers)
    assert [code for code, _ in answers[:-1]] == [0, 0, 2, 20, 0, 2, 0]
    # Busybox words "Is a directory" in its own way.
    assert answers[-1][0] == (21 if builder == "plain" else 5)
    file = os.stat_result(answers[0][1])
    assert stat.filemode(file.st_mode) == "-rw-r-----"
    assert file.st_size == 5
    assert file.st_nlink == 1
    assert file.st_mtime == 1_000_000_000
    assert file.st_uid >= 1000
    assert answers[1][1] == answers[0][1]
    assert answers[2][1] is None


@pytest_twisted.ensureDeferred
async def test_an_upload_stops_with_the_stop_button(master: RealMaster, tmp_path: Path) -> None:
    request = await master.begin(
        "plain",
        [
            shell("head -c 150m /dev/zero >f", "make"),
            # So many small blocks that it cannot be done in time.
            steps.FileUpload(
                name="up", workersrc="f", masterdest=str(tmp_path / "out"), blocksize=512
            ),
        ],
    )
    await until(lambda: any(file.stat().st_size for file in tmp_path.iterdir()), "the first block")
    pressed = reactor.seconds()
    await master.stop_build(request)
    build = await master.finished(request)
    assert reactor.seconds() - pressed < 10
    assert build.result == "cancelled"
    assert not (tmp_path / "out").exists()


# ---- workers and containers ----------------------------------------------------------------------


@differs("statx")
@pytest_twisted.ensureDeferred
async def test_each_build_gets_a_fresh_container_that_is_gone_after_it(
    master: RealMaster, engine_client: Any
) -> None:
    seen = []
    leave = "touch /tmp/left /dev/shm/left left; sleep 300 & setsid sleep 300 & "
    look = "ls -A /tmp /dev/shm . ; cat /proc/[0-9]*/comm | grep -c sleep"
    for _ in range(2):
        steps_ = [shell(look, "look"), shell(leave, "leave"), shell(HOLD, "hold")]
        request = await master.begin("plain", steps_)
        await master.step_started(request, "hold")
        (container,) = master.containers(engine_client)
        seen.append((container["Id"], container["Labels"]["sandboxworker.sandbox"]))
        let_go(engine_client, container["Id"])
        build = await master.finished(request)
        assert build["look"].out.split() == [".:", "/dev/shm:", "/tmp:", "0"]
        await until(lambda: not master.containers(engine_client), "end of the container")
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


@pytest_twisted.ensureDeferred
async def test_two_workers_build_side_by_side_as_two_users(
    master: RealMaster, engine_client: Any
) -> None:
    both = [
        await master.begin(builder, [shell("id -u", "id"), shell(HOLD, "hold")])
        for builder in ("plain", "tight")
    ]
    for request in both:
        await master.step_started(request, "hold")
    containers = master.containers(engine_client)
    assert len(containers) == 2
    assert {each["Labels"]["sandboxworker.worker"] for each in containers} == {"plain", "tight"}
    for container in containers:
        let_go(engine_client, container["Id"])
    builds = [await master.finished(request) for request in both]
    assert [build.result for build in builds] == ["success", "success"]
    assert builds[0]["id"].out != builds[1]["id"].out


@pytest_twisted.ensureDeferred
async def test_a_sandbox_that_is_lost_during_a_build_is_not_success(
    master: RealMaster, engine_client: Any
) -> None:
    request = await master.begin("plain", [shell("sleep 300", "hang")])
    await master.step_started(request, "hang")
    (container,) = master.containers(engine_client)
    engine_client.remove_container(container["Id"], force=True)
    await until(
        lambda: _first_is_complete(master, request), "end of the build that lost its sandbox"
    )
    first = (await master.builds(request))[0]
    assert first["results"] not in (None, SUCCESS)
    await until(lambda: _has_second(master, request), "the second attempt")
    await master.stop_build(request)
    await master.finished(request)


async def _first_is_complete(master: RealMaster, request: int) -> bool:
    return bool((await master.builds(request))[0]["complete"])


async def _has_second(master: RealMaster, request: int) -> bool:
    return len(await master.builds(request)) > 1


@pytest_twisted.ensureDeferred
async def test_the_build_knows_its_image_and_spec(master: RealMaster) -> None:
    names = ["image", "image_id", "spec_digest", "system", "basedir", "numcpus"]
    tell = ["echo", *(util.Interpolate(f"%(worker:{name})s") for name in names)]
    build = await master.run("plain", [shell(tell, "tell")])
    image, image_id, digest, system, basedir, cpus = build["tell"].out.split()
    assert image == DEBIAN
    assert image_id.startswith("sha256:")
    assert digest.startswith("sha256:")
    assert digest != image_id
    assert (system, basedir, cpus) == ("posix", "/build", "1")


@pytest_twisted.ensureDeferred
async def test_several_workers_share_the_builds_of_one_builder(
    engine_client: Any, left_over: Any, tmp_path: Path
) -> None:
    policy = SandboxPolicy(BUSYBOX, memory="64m", disk="8m")
    workers = [SandboxLatentWorker(f"w{n}", policy=policy) for n in range(2)]
    look = [shell(util.Interpolate("echo %(prop:n)s; id -u"), "look")]
    async with running_master(tmp_path, configuration(workers, look), left_over) as master:
        requests = [await master.submit(n=n) for n in range(6)]
        builds = [await master.finished(request) for request in requests]
        assert [build.result for build in builds] == ["success"] * 6
        assert [build["look"].out.split()[0] for build in builds] == [str(n) for n in range(6)]
        assert {build.properties["workername"] for build in builds} == {"w0", "w1"}
        assert master.errors == []
