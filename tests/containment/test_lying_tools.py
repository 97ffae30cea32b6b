"""A build that has taken over the tools that work for the master (threat model, T11, T12, T17).

Whatever they say: the master writes nowhere but where the step asked it to, holds little of it in
memory, waits no longer than the policy's deadline, says why the step failed, and builds on.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from buildbot.plugins import steps
from buildbot.process.buildstep import BuildStep
from buildbot.process.remotecommand import RemoteCommand
from buildbot.process.results import FAILURE, SUCCESS
from conftest import DEBIAN
from lying_tools import make_lying_image
from real_master import BuildResult, RealMaster, one_builder_each, running_master, shell
from slow import SLOW

from sandboxworker import SandboxLatentWorker, SandboxPolicy
from sandboxworker.commands import COMMANDS

pytestmark = pytest.mark.engine

MIB = 1024 * 1024
ALIASES = {"upload_file", "upload_directory", "download_file"}
#: What one hostile step may cost the master.
MAX_GROWTH = 100 * MIB
#: Seconds after which the policy ends a build here: more than the steps before the one that lies
#: take, four builds beside each other.
DEADLINE = round(10 * SLOW**0.5)
AT_ONCE = 4

LIMITS: dict[str, Any] = {
    "memory": "256m", "disk": "64m", "max_upload": "8m", "max_upload_files": 100,
    "max_step_output": "256k", "pids": 128,
}  # fmt: skip


@pytest_twisted.async_yield_fixture(scope="module")
async def master(
    engine_client: Any, left_over: Any, tmp_path_factory: Any
) -> AsyncIterator[RealMaster]:
    image = make_lying_image(engine_client)
    policies = {
        "liar": SandboxPolicy(image, max_runtime="2m", **LIMITS),
        "debian": SandboxPolicy(DEBIAN, max_runtime="2m", **LIMITS),
        "brief": SandboxPolicy(DEBIAN, max_runtime=DEADLINE, **LIMITS),
        # A file that becomes a FIFO between the look at it and its opening is waited for.
        "changing": SandboxPolicy(DEBIAN, max_runtime=2 * DEADLINE, **LIMITS),
    }
    # So that all can be tried side by side.
    brief = SandboxPolicy(image, max_runtime=DEADLINE, **LIMITS)
    policies |= {f"brief-{command}": brief for command in set(COMMANDS) - ALIASES}
    workers = [SandboxLatentWorker(name, policy=policy) for name, policy in policies.items()]
    basedir = tmp_path_factory.mktemp("master")
    try:
        async with running_master(basedir, one_builder_each(workers), left_over) as running:
            for name in ("liar", "debian"):  # What is loaded once is not a hostile step's memory.
                build = await running.run(name, [shell("true", "true")])
                assert build.result == "success", build.log
            yield running
    finally:
        engine_client.remove_image(image, force=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a step may write; beside it lies what nobody may touch."""
    (tmp_path / "out").mkdir()
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary" / "file").write_text("untouched")
    (tmp_path / "etc").mkdir()
    return tmp_path / "out"


def canaries(place: Path) -> dict[str, Any]:
    """All that is beside the place where a step may write."""
    return {
        str(path.relative_to(place.parent)): _content(path)
        for path in sorted(place.parent.rglob("*"))
        if path != place and place not in path.parents
    }  # fmt: skip


def _content(path: Path) -> Any:
    return path.lstat().st_mode, path.read_bytes() if path.is_file() else None


class Growth:
    """How far this process's memory grew, at its highest."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # Forget the peak (proc(5)).
        self._before = self._field("VmRSS")

    def peak(self) -> int:
        return self._field("VmHWM") - self._before

    def _field(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith(f"{name}:")]
        return int(line.split()[1]) * 1024


class Raw(BuildStep):
    """One worker command as it is: its answers as a property, its updates as a log."""

    haltOnFailure = False
    flunkOnFailure = False

    def __init__(self, command: str, arguments: Any, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(name=f"{prefix}{command}", **kwargs)
        self._command, self._arguments = command, arguments

    async def run(self) -> int:
        log = await self.addLog("stdio")
        command = RemoteCommand(self._command, self._arguments, ignore_updates=False)
        command.useLog(log, False, "stdio")
        await self.runCommand(command)
        told = {name: values for name, values in command.updates.items() if name != "header"}
        self.setProperty(f"{self._command} told", {**told, "rc": command.rc}, "test")
        return SUCCESS if command.rc == 0 else FAILURE


def lie(snippet: str, after: str = "") -> Any:
    """From here on the tools do this; by a shell that is honest still."""
    text = snippet.replace("'", "'\\''")
    return shell(f"{after}printf '%s\\n' '{text}' >/tmp/lie", "lie")


def lie_of_shells(snippet: str) -> list[Any]:
    """As `lie`; then a step that takes the shell which was honest before, and waited for it."""
    return [
        lie(snippet, after="sleep 2; "),
        shell("true", "settle", haltOnFailure=False, flunkOnFailure=False),
    ]


HALT = {"haltOnFailure": False}


def every_command(place: Path, prefix: str = "") -> dict[str, Any]:
    """A step for each worker command; those that write do so below ``place``."""
    return {
        "shell": shell("echo done", f"{prefix}shell", **HALT),
        "mkdir": Raw("mkdir", {"dir": "/build/new"}, prefix),
        "rmdir": Raw("rmdir", {"dir": "/build/old"}, prefix),
        "rmfile": Raw("rmfile", {"path": "/build/file"}, prefix),
        "cpdir": Raw("cpdir", {"fromdir": "/build/a", "todir": "/build/b"}, prefix),
        "stat": Raw("stat", {"file": "/build/file"}, prefix),
        "glob": Raw("glob", {"path": "/build/*"}, prefix),
        "listdir": Raw("listdir", {"dir": "/build"}, prefix),
        "uploadFile": steps.FileUpload(
            workersrc="/build/file", masterdest=str(place / "file"), name=f"{prefix}uploadFile",
            keepstamp=True, **HALT,
        ),
        "uploadDirectory": steps.DirectoryUpload(
            workersrc="/build/tree", masterdest=str(place / "tree"),
            name=f"{prefix}uploadDirectory", **HALT
        ),
        "downloadFile": steps.StringDownload(
            "x" * 100_000, workerdest="/build/in", name=f"{prefix}downloadFile", **HALT
        ),
    }  # fmt: skip


def test_no_command_is_forgotten(tmp_path: Path) -> None:
    assert set(every_command(tmp_path)) == set(COMMANDS) - ALIASES


READY = shell(
    "cd /build; mkdir -p tree old a; echo content >file; cp file tree; cp file /tmp/file", "ready"
)


async def run(master: RealMaster, builder: str, place: Path, build: list[Any]) -> BuildResult:
    """Run it, and look what that did to the master."""
    before, growth = canaries(place), Growth()
    request = await master.begin(builder, build)
    result = await master.finished(request)
    assert growth.peak() < MAX_GROWTH
    assert canaries(place) == before
    assert result.result in ("success", "failure"), result.log
    assert len(await master.builds(request)) == 1
    assert_no_errors(master)
    return result


async def run_each(master: RealMaster, place: Path, snippet: str) -> dict[str, BuildResult]:
    """One build for each command, a few at once, each with tools that lie."""
    before, growth = canaries(place), Growth()
    waiting, builds = list(every_command(place).items()), {}
    while waiting:
        batch, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        requests = {
            command: await master.begin(f"brief-{command}", [READY, *lie_of_shells(snippet), step])
            for command, step in batch
        }
        for command, request in requests.items():
            builds[command] = await master.finished(request)
            assert len(await master.builds(request)) == 1
    assert growth.peak() < MAX_GROWTH
    assert canaries(place) == before
    assert_no_errors(master)
    return builds


def assert_no_errors(master: RealMaster) -> None:
    errors, master.errors = master.errors, []
    assert errors == []


async def assert_it_builds_on(master: RealMaster, *builders: str) -> None:
    """Neither quarantined nor stuck."""
    for builder in builders:
        worker = master.master.workers.workers[builder]
        assert worker.quarantine_timeout == worker.quarantine_initial_timeout
        assert worker.quarantine_timer is None
        build = await master.run(builder, [shell("echo fine", "fine")])
        assert (build.result, build["fine"].out) == ("success", "fine")


def reason(build: BuildResult, step: str) -> str:
    """Everything that tells why a step failed."""
    return " ".join([build[step].state, *build[step].logs.values(), build.state])


# ---- lies that every command meets ---------------------------------------------------------------

#: Instead of the lines that every command runs under; what kills stays honest.
#: ``$w`` is the word that tells the end.
LAUNCH = """case "$T$2" in
sh"__w="*) w=$4$5;;
sh"printf '%s"*)
    echo $$
    IFS= read -r w
    while IFS= read -r l && [ "$l" != "$w" ]; do :; done;;
sh*) exec /usr/bin/dash "$@";;
*) exec "/usr/bin/$T" "$@";;
esac
"""
ENDS = {
    "dies at once": "exit 1",
    "is killed": "kill -9 $$",
    "ends with no number":
        'printf "%s 1\\n%s exit x\\n" "$w" "$w"; printf "%s exit x\\n" "$w" >&2',
    "ends with a huge number":
        'n=99999999999999999999; printf "%s $n\\n%s exit $n\\n" "$w" "$w"; '
        'printf "%s exit $n\\n" "$w" >&2; sleep 1',
    "ends before it began": 'printf "%s exit 1\\n%s 0\\n" "$w" "$w"; exit 1',
    "ends with nonsense": "/usr/bin/head -c 100000 /dev/urandom; exit 7",
}  # fmt: skip


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("end", ENDS)
async def test_a_shell_that_lies_about_its_end_fails_every_command(
    master: RealMaster, place: Path, end: str
) -> None:
    commands = every_command(place)
    lies = lie_of_shells(LAUNCH + ENDS[end])
    build = await run(master, "liar", place, [READY, *lies, *commands.values()])
    for command in commands:
        assert build[command].result == "failure", (command, build.log)
        assert reason(build, command).strip()
    await assert_it_builds_on(master, "liar")


@pytest_twisted.ensureDeferred
async def test_a_shell_that_does_nothing_and_succeeds_harms_nobody_but_its_build(
    master: RealMaster, place: Path
) -> None:
    """It does not say that its commands have ended, so that none of them counts as a success."""
    commands = every_command(place)
    lie = lie_of_shells(LAUNCH + "exit 0")
    build = await run(master, "liar", place, [READY, *lie, *commands.values()])
    assert build.result == "failure", build.log
    assert not (place / "file").exists()
    assert not (place / "tree").exists()
    await assert_it_builds_on(master, "liar")


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "forever",
    [
        "exec /usr/bin/sleep 1000",
        "exec /usr/bin/yes",
        "exec /usr/bin/yes >&2",
        "exec /usr/bin/cat /dev/zero",
        'printf "%s 1\\n" "$w"; trap "" TERM; while :; do sleep 1; done',
    ],
    ids=["silent", "flood", "flood of errors", "one endless line", "deaf"],
)
async def test_a_command_that_never_ends_is_over_at_the_deadline(
    master: RealMaster, place: Path, forever: str
) -> None:
    builds = await run_each(master, place, LAUNCH + forever)
    for command, build in builds.items():
        # Such as flunks nothing, or was interrupted between two commands.
        assert build.result == "failure" or build[command].result == "failure", build.log
        assert build.result in ("success", "failure"), build.log
        assert build[command].result != "success", build.log
        assert reason(build, command).strip()
    assert not (place / "tree").exists()
    await assert_it_builds_on(master, *(f"brief-{command}" for command in builds))


# ---- lies of one tool ----------------------------------------------------------------------------


def answer(tool: str, script: str) -> str:
    """A lie of one tool; of the shell for one of our scripts, by how that begins."""
    if tool in ("cd --", "[ -f", "[ -d"):
        return f'case "$T$2" in "sh{tool} "*) {script}; exit 0;; esac'
    return f"case $T in {tool}) {script}; exit 0;; esac"


def listing(name: str) -> str:
    return answer("cd --", f"printf '%b\\0' '{name}'")


def found(*names: str) -> str:
    return answer("find", " ".join(["printf '%b\\0'", *(f"'{name}'" for name in names)]))


LIES = [
    ("listdir", listing("../../etc/passwd"), "leaves"),
    ("listdir", listing("/etc/passwd"), "leaves"),
    ("listdir", listing("a/b"), "leaves"),
    ("listdir", listing(".."), "leaves"),
    ("listdir", listing(""), "leaves"),
    ("listdir", answer("cd --", "exec /usr/bin/yes name"), "more names"),
    ("listdir", answer("cd --", "exec /usr/bin/cat /dev/zero"), "more names"),
    ("listdir", answer("cd --", "/usr/bin/head -c 8000000 /dev/zero"), "more names"),
    ("glob", found("/etc/passwd"), "leaves"),
    ("glob", found("/build/../etc/passwd"), "leaves"),
    ("glob", found("/build/./x"), "leaves"),
    ("glob", found("/buildx"), "leaves"),
    ("glob", found("-rf"), "leaves"),
    ("glob", answer("find", "exec /usr/bin/yes /build/x"), "more names"),
    ("glob", answer("find", "exec /usr/bin/cat /dev/zero"), "more names|leaves"),
    ("stat", answer("stat", "echo 81a4 1 2 3"), "stat: "),
    ("stat", answer("stat", "echo zz 1 1 1 1 1 1 1 1 1"), "stat: "),
    ("stat", answer("stat", "echo ffffffffffffffffffff 1 1 1 1 1 1 1 1 1"), "stat: "),
    ("stat", answer("stat", "echo 81a4 1 1 1 1 1 99999999999999999999999 1 1 1"), "stat: "),
    ("stat", answer("stat", "exec /usr/bin/yes 1"), "stat: "),
    ("stat", answer("stat", "exec /usr/bin/tr \"\\0\" 7 </dev/zero"), "stat: "),
    ("uploadFile", answer("cat", "exec /usr/bin/yes"), "max_upload"),
    ("uploadFile", answer("cat", "exit 1"), "Cannot read file"),
    ("uploadFile", answer("cat", "kill -9 $$"), "Cannot read file"),
    ("uploadDirectory", answer("tar", "exec /usr/bin/yes"), "max_upload"),
    ("uploadDirectory", answer("tar", "exec /usr/bin/cat /dev/zero"), "max_upload"),
    ("uploadDirectory", answer("tar", "/usr/bin/head -c 9999 /dev/urandom"), "no archive"),
    ("uploadDirectory", answer("tar", "kill -9 $$"), "tar failed"),
    ("uploadDirectory", answer("tar", "exit 9"), "tar failed"),
    ("downloadFile", answer("cat", "exit 1"), "Cannot open file"),
    ("downloadFile", answer("cat", "exec /usr/bin/yes >&2"), "Cannot open file"),
    ("downloadFile", answer("cat", "kill -9 $$"), "Cannot open file"),
    ("downloadFile", answer("mkdir", "exit 1") + "\n" + answer("cat", "exit 2"), "Cannot open"),
    ("mkdir", answer("mkdir", "echo Unknown words >&2; exit 5"), "Input/output error"),
    ("mkdir", answer("mkdir", "echo mkdir: x: No space left on device >&2; exit 1"), "No space"),
    ("rmfile", answer("rm", "exec /usr/bin/yes >&2"), "Input/output error"),
]  # fmt: skip


@pytest_twisted.ensureDeferred
async def test_what_a_tool_says_is_refused_with_the_reason(master: RealMaster, place: Path) -> None:
    build: list[Any] = [READY]
    for number, (command, snippet, _) in enumerate(LIES):
        step = every_command(place, f"{number} ")[command]
        build += [lie(snippet), step]
    result = await run(master, "liar", place, build)
    for number, (command, snippet, why) in enumerate(LIES):
        name = f"{number} {command}"
        assert result[name].result == "failure", (snippet, result[name].logs)
        if command.startswith("upload") and "max_upload" in reason(result, name):
            continue  # The limit that an earlier one has used up comes first.
        assert re.search(why, reason(result, name)), (snippet, reason(result, name))
    assert not (place / "tree").exists()
    await assert_it_builds_on(master, "liar")


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("times", ["99999999999999999999 1", "-1 -1", "x y", "1e9 1"])
async def test_forged_times_are_not_believed(master: RealMaster, place: Path, times: str) -> None:
    build = await run(
        master,
        "liar",
        place,
        [READY, lie(answer("stat", f"echo {times}")), every_command(place)["uploadFile"]],
    )
    assert build["uploadFile"].result == "success"
    assert (place / "file").stat().st_mtime > 1_600_000_000


# ---- archives ------------------------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> Any:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = kind, size, link, 0o6777
    return info


FILE, DIR, SYM, LNK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
#: Members, and what the log says; a line of its own for what is taken without what is hostile.
ARCHIVES: dict[str, tuple[list[Any], str]] = {
    "above": ([member("../canary/file", size=3)], "leaves the directory"),
    "inside above": ([member("a/../../canary/new", size=3)], "leaves the directory"),
    "absolute": ([member("/etc/new", size=3)], "leaves the directory"),
    "through a link": (
        [member("d", SYM, link="../canary"), member("d/new", size=3)], "left out: d"),
    "hard link out": ([member("h", LNK, link="../canary/file")], "left out: h"),
    "link over a link": (
        [member("l", SYM, link="../canary/file"), member("l", size=3)], "left out: l"),
    "devices": (
        [member("c", tarfile.CHRTYPE), member("b", tarfile.BLKTYPE), member("p", tarfile.FIFOTYPE)],
        "left out: c, b, p"),
    "cut short": ([member("f", size=100_000)], "no archive"),
    "too big": ([member("f", size=2**40)], "max_upload"),
    "too many": ([member(f"f{n}") for n in range(200)], "max_upload_files"),
    "too deep": ([member("d/" * 200 + "f")], "too deep"),
    "a longer name than any": ([member("n" * 300)], "too long"),
    "the same twice": ([member("f", size=1), member("f", DIR)], "contradicts"),
    "long name": ([member("n" * 1_000_000)], "too long"),
    "file as directory": ([member("f", size=1), member("f/g", size=1)], "contradicts"),
}  # fmt: skip


def _archive(file: Path, members: list[Any], *, is_whole: bool) -> None:
    with file.open("wb") as writer:
        for info in members:
            writer.write(info.tobuf(tarfile.GNU_FORMAT))
            if is_whole:
                writer.write((b"x" * info.size).ljust(-(-info.size // 512) * 512, b"\0"))
        if is_whole:
            writer.write(bytes(1024))


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("name", ARCHIVES)
async def test_a_hostile_archive_writes_nothing_but_below_the_destination(
    master: RealMaster, place: Path, name: str
) -> None:
    members, why = ARCHIVES[name]
    evil = place.parent / "evil.tar"
    _archive(evil, members, is_whole=name not in ("cut short", "too big"))
    step = every_command(place)["uploadDirectory"]
    build = await run(
        master,
        "liar",
        place,
        [
            READY,
            steps.FileDownload(mastersrc=str(evil), workerdest="/tmp/evil.tar"),
            lie(answer("tar", "exec /usr/bin/cat /tmp/evil.tar")),
            step,
        ],
    )
    assert re.search(why, reason(build, "uploadDirectory")), build.log
    kept = build["uploadDirectory"].result == "success"
    assert kept == why.startswith("left out"), build.log
    written = list(place.rglob("*"))
    assert all(not path.is_symlink() and (path.is_file() or path.is_dir()) for path in written)
    assert all(path.stat().st_mode & 0o6000 == 0 for path in written)
    await assert_it_builds_on(master, "liar")


# ---- processes that work against the helpers -----------------------------------------------------

#: Signals everything of this user, again and again; itself the kernel leaves out.
AGAINST = """\
import os, signal, sys
if os.fork(): sys.exit()
os.setsid()
for n in range(3): os.close(n)
while True:
    try: os.kill(-1, signal.{signal})
    except ProcessLookupError: pass
"""
SWAP = """\
import os, sys
if os.fork(): sys.exit()
os.setsid()
for n in range(3): os.close(n)
os.chdir("/build/tree")
os.mkfifo("fifo")
while True:
    for other in ("/etc/passwd", "/dev/zero", "fifo", "/proc/self/mem", ".", "/"):
        os.symlink(other, "new"); os.rename("new", "file")
        with open("new", "w") as file: file.write("content")
        os.rename("new", "file")
"""


def against(program: str, **more: Any) -> Any:
    return shell(["python3", "-c", program], "against", **more)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("signal", ["SIGSTOP", "SIGKILL"])
async def test_helpers_that_the_build_stops_or_kills_fail_the_build_and_nothing_is_retried(
    master: RealMaster, place: Path, signal: str
) -> None:
    commands = every_command(place)
    build = await run(
        master,
        "brief",
        place,
        [READY, against(AGAINST.format(signal=signal)), *commands.values()],
    )
    assert build.result == "failure", build.log
    assert build.properties["sandbox_outcome"] == "failed"
    await assert_it_builds_on(master, "brief")


@pytest_twisted.ensureDeferred
async def test_a_step_whose_processes_withstand_being_killed_fails_the_build(
    master: RealMaster, place: Path
) -> None:
    """Whoever kills them is stopped before it can; the deadline is far."""
    stopping = against(AGAINST.format(signal="SIGSTOP"), timeout=2)
    build = await run(master, "debian", place, [stopping])
    assert build.result == "failure", build.log
    assert build.properties["sandbox_outcome"] == "failed"
    await assert_it_builds_on(master, "debian")


@pytest_twisted.ensureDeferred
async def test_files_that_change_while_they_are_read_bring_nothing_of_the_master(
    master: RealMaster, place: Path
) -> None:
    uploads = [
        step
        for number in range(6)
        for step in (
            steps.FileUpload(
                workersrc="/build/tree/file", masterdest=str(place / f"file{number}"),
                maxsize=MIB, name=f"file {number}", **HALT,
            ),
            steps.DirectoryUpload(
                workersrc="/build/tree", masterdest=str(place / f"tree{number}"),
                name=f"tree {number}", **HALT,
            ),
        )
    ]  # fmt: skip
    await run(master, "changing", place, [READY, against(SWAP), *uploads])
    passwd = Path("/etc/passwd").read_bytes()
    for path in place.rglob("*"):
        assert not path.is_symlink()
        assert not path.is_file() or path.read_bytes() != passwd
    await assert_it_builds_on(master, "changing")
