"""The virtual machine that tests run in: how its words are taken, and what its first disk holds."""

from __future__ import annotations

import gzip
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from vm import acceleration, initrd, machine, packages, tasks
from vm.__main__ import main
from vm.acceleration import KVM, TCG
from vm.console import Console, Outcome

WORD = "5f0c"


def heard(*parts: str) -> tuple[Console, list[str]]:
    shown: list[str] = []
    console = Console(WORD, shown.append)
    for part in parts:
        console.received(part.encode())
    return console, shown


# ---- its words -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_begin_and_end_are_heard_however_the_line_is_cut(cut: int) -> None:
    text = f"boot\r\n{WORD} begin\r\n1 passed\r\n\r\n{WORD} end 5\r\n"
    console, shown = heard(text[:cut], text[cut:])
    assert (console.has_begun, console.code) == (True, 5)
    assert shown == ["boot", "1 passed", ""]
    assert console.outcome(in_time=True) is Outcome.FINISHED


@pytest.mark.parametrize(
    ("text", "in_time", "outcome"),
    [
        ("", True, Outcome.NO_BOOT),
        ("Kernel panic\n", False, Outcome.NO_BOOT),
        (f"{WORD} begin\n1 passed\nKernel panic\n", True, Outcome.CRASHED),
        (f"{WORD} begin\n1 passed\n", False, Outcome.HUNG),
        (f"{WORD} begin\nother end 0\nend 0\n {WORD} end 0\n", False, Outcome.HUNG),
        (f"{WORD} begin\n{WORD} end\n{WORD} end none\n", True, Outcome.CRASHED),
    ],
    ids=["nothing", "panic", "crash", "hang", "imitated", "half a word"],
)
def test_without_the_end_it_is_no_success(text: str, in_time: bool, outcome: Outcome) -> None:
    console, _ = heard(text)
    assert console.outcome(in_time=in_time) is outcome
    assert outcome.value != 0


def test_terminal_is_left_as_it_is() -> None:
    assert heard("\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\r\n")[1] == ["SeaBIOS"]


# ---- the process ---------------------------------------------------------------------------------


def ran(script: str, seconds: float = 60.0) -> tuple[Outcome, list[str]]:
    console, shown = heard()
    outcome = machine.run([sys.executable, "-uc", script], console, seconds)
    return outcome, shown


def test_machine_that_goes_down_is_told_from_one_that_ends() -> None:
    assert ran(f"print('{WORD} begin'); print('{WORD} end 0')") == (Outcome.FINISHED, [])
    assert ran(f"print('{WORD} begin'); print('Oops')") == (Outcome.CRASHED, ["Oops"])
    assert ran("print('no disk')") == (Outcome.NO_BOOT, ["no disk"])


def test_machine_that_hangs_is_ended() -> None:
    begun = time.monotonic()
    script = f"import time; print('{WORD} begin'); time.sleep(1000)"
    assert ran(script, seconds=0.5) == (Outcome.HUNG, [])
    assert time.monotonic() - begun < 60


def test_machine_is_ended_with_whoever_started_it(tmp_path: Path) -> None:
    words = machine.command(tmp_path, [], TCG.options)
    assert words[:3] == ["setpriv", "--pdeathsig", "KILL"]
    program = [*words[:3], "sleep", "1000"]
    script = f"import subprocess; print(subprocess.Popen({program!r}).pid, flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1)
    with parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        until(lambda: _program(pid) == "sleep")
        parent.kill()
    until(lambda: _program(pid) != "sleep")


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]
    except OSError:
        return ""


# ---- where there can be none ---------------------------------------------------------------------


def test_only_who_asks_for_it_may_do_without_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packages, "is_possible", lambda: False)
    assert main(["--short"]) == 1
    assert capsys.readouterr().err.startswith("error: the virtual machine is made for x86-64")
    assert main(["--short", "--if-possible"]) == 0
    assert capsys.readouterr().out.startswith("SKIPPED: no test runs in a virtual machine (")


# ---- what it does --------------------------------------------------------------------------------


def test_tests_are_run_with_their_variables_and_arguments_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "pytest").write_text('#!/bin/sh\nprintf \'<%s>\' "$A" "$@"; exit 3\n')
    (tmp_path / "pytest").chmod(0o755)
    task = tasks.tests(["-k", "a or $b"], {"A": "1 $2"}).replace("/payload/project", "/")
    script = f"docker_engine() {{ :; }}\n{task}"
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", script], env=environ, stdout=-1, text=True, check=False)
    assert done.stdout == "<1 $2><-p><no:cacheprovider><-k><a or $b>"
    assert done.returncode == 3


# ---- its processor -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "refusal", "chosen"),
    [
        ("auto", None, (KVM, None)),
        ("auto", "no such device", (TCG, "no such device")),
        ("kvm", "no such device", (KVM, None)),
        ("tcg", None, (TCG, None)),
    ],
)
def test_machine_is_emulated_where_it_must_be_or_shall_be(
    wanted: str, refusal: str | None, chosen: object
) -> None:
    assert acceleration.choose(wanted, lambda: refusal) == chosen


def test_device_that_does_not_open_is_no_acceleration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(acceleration, "DEVICE", tmp_path / "kvm")
    assert acceleration.kvm_refusal(tmp_path) == f"{tmp_path}/kvm: No such file or directory"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("print('Kernel panic: VFS: Unable to mount root fs on unknown-block(0,0)')", None),
        ("print('failed to set MSR'); exit(6)", "exit code 6, failed to set MSR"),
        ("pass", "exit code 0, it said nothing"),
        ("import time; time.sleep(1000)", "does not boot within 5 s"),
    ],
    ids=["boots", "is refused", "says nothing", "hangs"],
)
def test_acceleration_is_what_boots_a_kernel(script: str, reason: str | None) -> None:
    told = acceleration.trial([sys.executable, "-uc", script], seconds=5)
    assert told is None if reason is None else reason in (told or "")


def test_trial_machine_has_a_kernel_and_no_disk(tmp_path: Path) -> None:
    words = acceleration.trial_command(KVM, tmp_path / "vmlinuz")
    assert words[words.index("-accel") + 1] == "kvm"
    assert words[words.index("-kernel") + 1] == f"{tmp_path}/vmlinuz"
    assert not {"-drive", "-initrd"} & set(words)


# ---- its disks -----------------------------------------------------------------------------------


def test_modules_are_loaded_behind_what_they_need() -> None:
    dependencies = """\
kernel/fs/ext4/ext4.ko: kernel/fs/mbcache.ko kernel/lib/crc16.ko
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko
kernel/fs/mbcache.ko:
kernel/lib/crc16.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio-ring.ko
kernel/drivers/virtio/virtio-ring.ko:
kernel/unrelated.ko:
"""
    order = [Path(path).stem for path in initrd.load_order(dependencies, ["virtio_pci", "ext4"])]
    assert order == ["virtio-ring", "virtio", "virtio_pci", "mbcache", "crc16", "ext4"]


def test_first_disk_is_an_archive_as_the_kernel_takes_it(tmp_path: Path) -> None:
    members = [("bin", 0o40755, b""), ("bin/tool", 0o100755, b"#!x"), ("init", 0o100755, b"abcd")]
    content = gzip.decompress(initrd.archive(members))
    assert len(content) % 4 == 0
    names = []
    while content:
        assert content[:6] == b"070701"
        fields = [int(content[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
        size, name_size = fields[6], fields[11]
        names.append((content[110 : 110 + name_size - 1].decode(), oct(fields[1])))
        start = (110 + name_size + 3) // 4 * 4
        content = content[start + (size + 3) // 4 * 4 :]
    assert names[:3] == [("bin", "0o40755"), ("bin/tool", "0o100755"), ("init", "0o100755")]
    assert names[3][0] == "TRAILER!!!"


def test_system_is_made_anew_when_what_it_is_made_of_changes(tmp_path: Path) -> None:
    file = tmp_path / "recipe"
    file.write_text("a")
    before = packages.digest("x", file)
    file.write_text("b")
    assert packages.digest("x", file) != before
    assert packages.digest("x", "y") != packages.digest("xy")
    assert len(packages.system_digest()) == 16


def test_wheels_are_fetched_for_the_machines_own_python() -> None:
    wanted = packages.requirements()
    assert any(each.startswith("buildbot>=") for each in wanted)
    assert any(each.startswith("pytest-timeout") for each in wanted)
    assert not any(each.startswith("sandboxworker") for each in wanted)
    command = packages.download_command("python3", Path("/wheels"), wanted)
    assert "--python-version=3.11" in command
    assert command[-len(wanted) :] == wanted
