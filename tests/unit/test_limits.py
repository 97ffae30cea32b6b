"""Which limits a command met, told from the kernel's counts and from ``df``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.engine.answers import memory_ended_it
from sandboxworker.limits import Counts, counted, full, out_of_memory, was_full
from sandboxworker.outcome import Cause
from sandboxworker.policy import MIB, SandboxPolicy
from sandboxworker.struck import Struck

POLICY = SandboxPolicy(
    "image:1", memory="64m", disk="8m", tmp="4m", shm="2m", secrets_size="1m", pids=50
)

HEAD = "Filesystem 1024-blocks Used Available Capacity Mounted on"
EMPTY = (
    f"{HEAD}\ntmpfs 8192 0 8192 0% /build\ntmpfs 4096 0 4096 0% /tmp\nshm 2048 0 2048 0% /dev/shm"
)
INODES = "Filesystem Inodes IUsed IFree IUse% Mounted on\ntmpfs 200000 1 199999 1% /build"

numbers = st.integers(0, 10**12)
counts = st.builds(Counts, numbers, numbers, numbers)


class TestCounts:
    @given(counts)
    def test_are_read_as_they_are_told(self, told: Counts) -> None:
        words = f"{told.oom_kills} {told.refused_forks} {told.memory_peak}".split(" ")
        assert Counts.told(words) == told

    @given(st.lists(st.text(max_size=20), max_size=5))
    def test_whatever_a_build_fakes_is_numbers(self, words: list[str]) -> None:
        told = Counts.told(words)
        assert 0 <= told.oom_kills < 10**16

    @pytest.mark.parametrize("words", [[""], [], ["1", "2"], ["1", "2", "-3"], ["1", "2", "x"]])
    def test_are_none_where_none_were_told(self, words: list[str]) -> None:
        assert Counts.told(words) == Counts()

    @given(counts, counts)
    def test_never_fall(self, one: Counts, other: Counts) -> None:
        later = one.with_(other)
        assert later == other.with_(one)
        assert later.oom_kills >= one.oom_kills


class TestCounted:
    @given(counts)
    def test_nothing_new_is_no_limit(self, told: Counts) -> None:
        assert not list(counted(told, told, POLICY))

    def test_a_kill_for_memory_names_limit_peak_and_field(self) -> None:
        (strike,) = counted(Counts(1, 0, 50), Counts(3, 0, 79 * MIB), POLICY)
        assert (strike.field, strike.value, strike.peak) == ("memory", 64 * MIB, 79 * MIB)
        assert str(strike) == (
            "sandboxworker: limit reached: out of memory, 2 processes were killed; the sandbox may "
            "use 79.0 MiB with its file systems in memory, its peak 79.0 MiB; "
            "the limit is the policy's memory (64m)"
        )

    def test_without_a_peak_there_is_no_word_of_it(self) -> None:
        assert "peak" not in str(out_of_memory(POLICY, None))

    def test_refused_processes_name_limit_and_field(self) -> None:
        (strike,) = counted(Counts(), Counts(0, 7, 0), POLICY)
        assert str(strike) == (
            "sandboxworker: limit reached: a process or thread could not be started; "
            "the limit is the policy's pids (50)"
        )


class TestFull:
    def test_room_is_no_limit(self) -> None:
        assert not list(full(f"{EMPTY}\n\n{INODES}\n", POLICY))

    @pytest.mark.parametrize(
        ("line", "field", "shown"),
        [
            ("tmpfs 8192 8192 0 100% /build", "disk", "/build is full; {}disk (8m)"),
            ("tmpfs 4096 4096 0 100% /tmp", "tmp", "/tmp is full; {}tmp (4m)"),
            ("shm 2048 2048 0 100% /dev/shm", "shm", "/dev/shm is full; {}shm (2m)"),
        ],
        ids=["workspace", "tmp", "shm"],
    )
    def test_a_full_place_names_its_field(self, line: str, field: str, shown: str) -> None:
        (strike,) = full(f"{HEAD}\n{line}\n\n{INODES}\n", POLICY)
        assert strike.field == field
        assert shown.format("the limit is the policy's ") in str(strike)

    def test_no_inodes_left_is_a_limit_of_its_own(self) -> None:
        inodes = INODES.replace("199999 1%", "0 100%")
        (strike,) = full(f"{EMPTY}\n\n{inodes}\n", POLICY)
        assert "/build can take no more files; the limit is the policy's disk_inodes (200000)" in (
            str(strike)
        )

    def test_who_counts_no_inodes_has_not_run_out_of_them(self) -> None:
        assert not list(
            full(f"{EMPTY}\n\n{HEAD}\nnone 0 0 0 - /build\nnone 0 0 0 - /tmp\n", POLICY)
        )

    def test_a_workspace_with_a_space_is_found(self) -> None:
        policy = SandboxPolicy("image:1", workspace="/a b")
        (strike,) = full(f"{HEAD}\ntmpfs 1 1 0 100% /a b\n", policy)
        assert strike.field == "disk"

    @given(st.text(max_size=300))
    def test_whatever_a_build_fakes_is_read(self, text: str) -> None:
        fields = {strike.field for strike in full(text, POLICY)}
        assert fields <= {"disk", "tmp", "shm", "disk_inodes"}

    def test_what_was_full_names_all_that_may_have_been(self) -> None:
        assert "(disk 8m, tmp 4m, shm 2m)" in str(was_full(POLICY))


class TestStruck:
    def test_the_first_limit_that_made_a_command_fail_is_the_cause(self) -> None:
        struck = Struck(POLICY)
        struck.command_ended([], exit_code=1, signal=None)
        assert struck.cause is Cause.EXIT
        struck.command_ended(struck.since_told(Counts(1)), exit_code=None, signal=9)
        struck.ended_by("max_step_output", 5)
        assert struck.cause is Cause.MEMORY
        assert struck.fields == ["memory", "max_step_output"]

    def test_a_limit_that_no_command_failed_for_is_told_and_is_no_cause(self) -> None:
        struck = Struck(POLICY)
        struck.command_ended(struck.since_told(Counts(1)), exit_code=0, signal=None)
        assert struck.cause is None
        assert struck.fields == ["memory"]

    def test_each_is_told_once(self) -> None:
        struck = Struck(POLICY)
        assert len(struck.since_told(Counts(1, 1))) == 2
        assert struck.since_told(Counts(1, 1)) == []
        assert struck.since_told(Counts()) == []
        assert [strike.field for strike in struck.since_told(Counts(1, 2))] == ["pids"]

    def test_a_signal_is_told_from_an_exit(self) -> None:
        struck = Struck(POLICY)
        struck.command_ended([], exit_code=None, signal=11)
        assert struck.cause is Cause.SIGNAL

    def test_the_audit_log_hears_of_each(self) -> None:
        heard: list[tuple[str, int, int | None]] = []
        struck = Struck(POLICY, lambda field, value, peak: heard.append((field, value, peak)))
        strikes = struck.since_told(Counts(1, 0, 70 * MIB))
        struck.command_ended(strikes, exit_code=1, signal=None)
        assert heard == [("memory", 64 * MIB, 70 * MIB)]


def event(action: str, at: float) -> dict[str, object]:
    return {"Action": action, "timeNano": int(at * 1e9)}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], False),
        ([event("die", 5)], False),
        ([event("oom", 5)], True),
        ([event("oom", 4.9), event("die", 5)], True),
        ([event("oom", 5), event("oom", 99), event("die", 100)], True),
        # A child's death long before has nothing to do with it.
        ([event("oom", 5), event("die", 100)], False),
    ],
)
def test_memory_ended_a_container_that_was_killed_for_it_right_before(
    events: list[dict[str, object]], expected: bool
) -> None:
    assert memory_ended_it(events) is expected
