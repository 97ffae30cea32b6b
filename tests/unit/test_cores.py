"""Which processors a sandbox runs on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.engine.cores import Cores
from sandboxworker.kernelview import parse_list


@given(st.integers(1, 64), st.integers(1, 64))
def test_as_many_as_wanted_are_chosen_of_those_there_are(wanted: int, available: int) -> None:
    chosen = Cores().take(wanted, available)
    if wanted >= available:
        assert chosen == ""
        return
    cores = parse_list(chosen)
    assert cores is not None
    assert len(cores) == wanted
    assert cores <= set(range(available))


def test_no_choice_is_made_where_none_is_wanted_or_known() -> None:
    assert Cores().take(None, 8) == ""
    assert Cores().take(2, 0) == ""


@given(st.integers(1, 7), st.integers(1, 40))
def test_sandboxes_are_spread_evenly(wanted: int, sandboxes: int) -> None:
    cores = Cores()
    chosen = [parse_list(cores.take(wanted, 8)) or frozenset() for _ in range(sandboxes)]
    users = [sum(core in one for one in chosen) for core in range(8)]
    assert max(users) - min(users) <= 1


def test_processors_given_back_are_free_again() -> None:
    cores = Cores()
    first = cores.take(1, 2)
    cores.take(1, 2)
    cores.give_back(first)
    assert cores.take(1, 2) == first
    cores.give_back("")
