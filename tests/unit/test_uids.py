"""A uid of its own for every living sandbox."""

from __future__ import annotations

from sandboxworker.engine.uids import UidRange
from sandboxworker.spec import UID_RANGE


def test_no_uid_is_given_twice_while_its_sandbox_lives() -> None:
    uids = UidRange()
    taken = [uids.take() for _ in UID_RANGE]
    assert sorted(uid for uid in taken if uid is not None) == list(UID_RANGE)


def test_none_is_left_when_all_are_taken() -> None:
    uids = UidRange([1001])
    assert uids.take() == 1001
    assert uids.take() is None
    assert len(uids) == 0


def test_uid_given_back_is_used_again() -> None:
    uids = UidRange([1001])
    uids.take()
    uids.give_back(1001)
    assert uids.take() == 1001


def test_uid_given_back_rests_until_the_others_were_used() -> None:
    uids = UidRange([1001, 1002, 1003])
    first = uids.take()
    assert first is not None
    uids.give_back(first)
    assert first not in (uids.take(), uids.take())
    assert uids.take() == first
