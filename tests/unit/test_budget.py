"""How much a build may still write and take out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.commands.budget import Budget
from sandboxworker.policy import SandboxPolicy

POLICY = SandboxPolicy(
    "a/b:1", max_step_output=2048, max_output="4k", max_upload="10k", max_upload_files=3
)


def test_a_step_may_write_up_to_its_limit_and_not_a_byte_more() -> None:
    budget = Budget(POLICY)
    budget.enter("one")
    assert budget.output(2047) == (2047, None)
    assert budget.output(1) == (1, None)
    fits, told = budget.output(1)
    assert fits == 0
    assert told is not None
    assert "max_step_output" in told
    assert "2k" in told
    assert "this step" in told


def test_of_what_passes_the_limit_the_part_that_fits_is_written() -> None:
    budget = Budget(POLICY)
    budget.enter("one")
    fits, told = budget.output(3000)
    assert fits == 2048
    assert told is not None


def test_each_step_starts_anew_and_the_build_goes_on() -> None:
    budget = Budget(POLICY)
    budget.enter("one")
    assert budget.output(1_000_000)[0] == 2048
    budget.enter("two")
    # Of what was thrown away nothing counts.
    assert budget.output(2048) == (2048, None)
    budget.enter("three")
    fits, told = budget.output(1)
    assert fits == 0
    assert told is not None
    assert "max_output" in told
    assert "4k" in told
    assert "this build" in told


def test_several_commands_of_one_step_share_its_limit() -> None:
    budget = Budget(POLICY)
    step = object()
    budget.enter(step)
    assert budget.output(2000)[1] is None
    budget.enter(step)
    assert budget.output(49)[1] is not None


def test_files_are_counted_up_to_the_limit() -> None:
    budget = Budget(POLICY)
    assert [budget.upload_file() for _ in range(3)] == [None] * 3
    told = budget.upload_file()
    assert told is not None
    assert "more than 3 files" in told
    assert "max_upload_files" in told


def test_bytes_taken_out_are_counted_up_to_the_limit() -> None:
    budget = Budget(POLICY)
    assert budget.upload(10 * 1024) is None
    told = budget.upload(1)
    assert told is not None
    assert "more than 10k" in told
    assert "max_upload" in told


def test_a_policy_may_let_nothing_out() -> None:
    budget = Budget(SandboxPolicy("a/b:1", max_upload=0, max_upload_files=0))
    assert budget.upload(0) is None
    assert budget.upload(1) is not None
    assert budget.upload_file() is not None


@given(st.lists(st.integers(1, 1000), max_size=30))
def test_however_it_is_cut_the_same_sum_is_allowed(sizes: list[int]) -> None:
    log, files = Budget(POLICY), Budget(POLICY)
    log.enter("one")
    offered = written = 0
    for size in sizes:
        fits, told = log.output(size)
        offered, written = offered + size, written + fits
        assert written == min(offered, 2048)
        assert (told is None) == (offered <= 2048)
        assert (files.upload(size) is None) == (offered <= 10 * 1024)
