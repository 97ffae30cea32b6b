"""A closed list of policies, and what is wrong with one."""

from __future__ import annotations

from typing import Any

import pytest
from buildbot.config.errors import ConfigErrors, capture_config_errors

from sandboxworker import SandboxLatentWorker, SandboxPolicies, SandboxPolicy
from sandboxworker.errors import PolicyError
from sandboxworker.policies import as_policies

SMALL = SandboxPolicy("a/b:1")
BIG = SandboxPolicy("a/b:1", memory="4g")
TRUSTED = SandboxPolicy.trusted("a/b:1")


def test_a_builder_that_picks_none_gets_the_default() -> None:
    policies = SandboxPolicies({"small": SMALL, "big": BIG}, default="small")
    assert policies.faults() == ()
    assert policies.pick(None) == ("small", SMALL)
    assert policies.pick("big") == ("big", BIG)


@pytest.mark.parametrize("wanted", ["huge", "", 7, ["big"], {"big": 1}, True])
def test_what_is_not_in_the_list_cannot_be_picked(wanted: object) -> None:
    policies = SandboxPolicies({"small": SMALL, "big": BIG}, default="small")
    with pytest.raises(PolicyError, match="one of 'small', 'big'"):
        policies.pick(wanted)


def test_a_single_policy_is_a_list_of_one() -> None:
    policies = as_policies(SMALL)
    assert policies.faults() == ()
    assert policies.pick(None)[1] is SMALL
    assert as_policies(policies) is policies


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "with one at least"),
        ([None, "small"], "with one at least"),
        ([{}, "small"], "with one at least"),
        ([[SMALL], "small"], "with one at least"),
        ([{"small": SMALL}], "default='': one of 'small'"),
        ([{"small": SMALL}, "big"], "default='big': one of 'small'"),
        ([{"small": SMALL}, ["small"]], "one of 'small'"),
        ([{"a name": SMALL}, "a name"], "a name of letters"),
        ([{7: SMALL}, 7], "a name of letters"),
        ([{"small": "a/b:1"}, "small"], "a SandboxPolicy is required"),
        ([{"small": SandboxPolicy("a/b:1", pids=1)}, "small"], "policies['small'].pids=1"),
        ([{"a": SMALL, "b": TRUSTED}, "a"], "all of one trust: 'b' release secrets"),
    ],
)
def test_everything_that_is_wrong_is_told_by_the_worker(arguments: list[Any], said: str) -> None:
    policies = SandboxPolicies(*arguments)
    (fault,) = policies.faults()
    assert said in str(fault)
    with pytest.raises(ConfigErrors) as caught, capture_config_errors(True):
        SandboxLatentWorker("w", policy=policies)
    assert caught.value.errors == [f"SandboxLatentWorker 'w': policy: {fault}"]


def test_a_profile_that_is_no_profile_is_told_once_for_all_policies_that_name_it() -> None:
    wrong = SandboxPolicies(
        {name: SandboxPolicy("a/b:1", seccomp="/no/such") for name in "ab"}, default="a"
    )
    with pytest.raises(ConfigErrors) as caught, capture_config_errors(True):
        SandboxLatentWorker("w", policy=wrong)
    (told,) = caught.value.errors
    assert "/no/such" in told


def test_lists_are_equal_when_all_in_them_is() -> None:
    assert SandboxPolicies({"a": SMALL}, "a") == SandboxPolicies({"a": SandboxPolicy("a/b:1")}, "a")
    assert SandboxPolicies({"a": SMALL}, "a") != SandboxPolicies({"a": BIG}, "a")


def test_the_policies_given_may_change_afterwards() -> None:
    given = {"a": SMALL}
    policies = SandboxPolicies(given, "a")
    given["b"] = TRUSTED
    assert policies.faults() == ()
