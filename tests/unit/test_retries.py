"""How often a build is built again, and what its log says of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.retries import Fault, history, may_retry, retries_faults


@given(st.integers(0, 100))
def test_a_build_is_built_again_exactly_so_often(max_retries: int) -> None:
    attempts = 1
    while may_retry(attempts, max_retries):
        attempts += 1
    assert attempts == max_retries + 1


@pytest.mark.parametrize("value", [0, 1, 2, 1000])
def test_a_number_of_times_is_taken(value: int) -> None:
    assert retries_faults(value) == []


@pytest.mark.parametrize("value", [-1, True, None, 1.5, "2"])
def test_anything_else_is_a_fault(value: object) -> None:
    assert retries_faults(value) == [f"max_retries={value!r}: a number of times, 0 or more"]


def test_the_log_says_which_retry_it_is() -> None:
    assert history([Fault(7, "gone")], 2) == (
        "sandboxworker: a fault of the infrastructure ended this build; the build is not to blame "
        "and is built again (retry 1 of max_retries=2).\nbuild 7: gone\n"
    )


def test_the_last_log_has_every_reason() -> None:
    text = history([Fault(7, "gone"), Fault(8, "gone again"), Fault(9, "no engine")], 2)
    assert "not built again, as max_retries=2 is used up" in text
    assert text.splitlines()[1:] == ["build 7: gone", "build 8: gone again", "build 9: no engine"]
