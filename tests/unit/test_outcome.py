"""How a build ended, in one word, and by what it failed."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.errors import Actor
from sandboxworker.outcome import LIMITS, Cause, Known, Outcome, Verdict, judge
from sandboxworker.policy import SandboxPolicy

RESULTS = ["success", "warnings", "failure", "skipped", "exception", "retry", "cancelled"]

knowns = st.builds(
    Known,
    st.sampled_from(RESULTS),
    st.none() | st.sampled_from(Actor),
    st.booleans(),
    st.frozensets(st.sampled_from(["secret", "source"])),
    st.none() | st.sampled_from(Cause),
)


@pytest.mark.parametrize(
    ("result", "known", "expected"),
    [
        ("success", {}, Outcome.COMPLETED),
        ("warnings", {}, Outcome.COMPLETED),
        ("skipped", {}, Outcome.COMPLETED),
        # A failed command that does not make its build fail.
        ("success", {"cause": Cause.EXIT}, Outcome.COMPLETED),
        # Its sandbox went after its last step.
        ("success", {"is_lost": True}, Outcome.COMPLETED),
        ("failure", {"cause": Cause.EXIT}, Outcome.FAILED),
        ("exception", {}, Outcome.FAILED),
        ("cancelled", {}, Outcome.STOPPED),
        ("cancelled", {"is_lost": True}, Outcome.STOPPED),
        # A shutdown of the master gives it back.
        ("retry", {}, Outcome.STOPPED),
        ("retry", {"is_lost": True}, Outcome.LOST),
        ("exception", {"is_lost": True}, Outcome.LOST),
        ("failure", {"withheld": frozenset({"secret"})}, Outcome.SECRET_REFUSED),
        ("failure", {"withheld": frozenset({"source"})}, Outcome.REFUSED),
        ("failure", {"withheld": frozenset({"secret"}), "cause": Cause.MEMORY}, Outcome.FAILED),
        ("exception", {"refused_by": Actor.OPERATOR}, Outcome.REFUSED),
        ("retry", {"refused_by": Actor.ENGINE}, Outcome.ENGINE_ERROR),
        ("retry", {"refused_by": Actor.ENGINE, "is_lost": True}, Outcome.ENGINE_ERROR),
    ],
)
def test_every_end_has_its_word(result: str, known: dict[str, Any], expected: Outcome) -> None:
    assert judge(Known(result, **known)).outcome is expected


@given(knowns)
def test_exactly_a_failure_has_a_cause(known: Known) -> None:
    verdict = judge(known)
    assert (verdict.cause is not None) == (verdict.outcome is Outcome.FAILED)


@given(knowns)
def test_only_a_fault_of_the_infrastructure_is_one(known: Known) -> None:
    """What nobody but the build has caused is never tried again."""
    blameless = attrs.evolve(known, refused_by=None, is_lost=False)
    assert not judge(blameless).outcome.is_fault


@pytest.mark.parametrize("cause", sorted(Cause, key=lambda cause: cause.value))
def test_a_failure_says_by_what(cause: Cause) -> None:
    assert judge(Known("failure", cause=cause)) == Verdict(Outcome.FAILED, cause)
    assert judge(Known("failure")) == Verdict(Outcome.FAILED, Cause.STEP)


def test_every_limit_is_a_field_of_the_policy() -> None:
    fields = {field.name for field in attrs.fields(SandboxPolicy)}
    assert set(LIMITS) <= fields
