"""A closed list of policies for one worker, from which each builder's configuration picks one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from sandboxworker.errors import Fault, PolicyError
from sandboxworker.policy import SandboxPolicy

#: The builder's property that names its policy.
PROPERTY = "sandbox_policy"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_ONLY = "default"


def _as_dictionary(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


@attrs.frozen(hash=False)
class SandboxPolicies:
    """Several policies for one worker: ``SandboxPolicies({"small": P1, "big": P2}, "small")``.

    ``policies``: name to `SandboxPolicy`, all of one trust;
    ``default``: the name for builders that pick none.
    A builder picks by its configuration, ``properties={"sandbox_policy": "big"}``; nothing that
    a change or a person who asks for a build says is heard (T19).
    Nothing is judged on construction: `faults` lists everything that is wrong.
    """

    policies: Mapping[str, SandboxPolicy] = attrs.field(default=None, converter=_as_dictionary)
    default: str = ""

    def faults(self) -> tuple[Fault, ...]:
        """Everything that is wrong with the list and the policies in it."""
        if not isinstance(self.policies, dict) or not self.policies:
            allowed = "a dictionary of names to SandboxPolicy, with one at least"
            return (Fault("policies", self.policies, allowed),)
        wrong = tuple(self._entry_faults())
        return (*wrong, *self._default_faults(), *(() if wrong else self._trust_faults()))

    def pick(self, wanted: object) -> tuple[str, SandboxPolicy]:
        """The policy that a builder's configuration asks for, with its name; None: the default.

        Raises `PolicyError` for what is not in the list.
        """
        name = self.default if wanted is None else wanted
        if not isinstance(name, str) or name not in self.policies:
            raise PolicyError([Fault(PROPERTY, wanted, f"one of {self._names}")])
        return name, self.policies[name]

    @property
    def release_secrets(self) -> bool:
        """Whether any of these policies hands any secret to a build: what trust means here."""
        return any(policy.secrets for policy in self.policies.values())

    @property
    def profiles(self) -> set[str]:
        """The names of their seccomp profiles, as far as these are texts."""
        policies = self.policies.values() if isinstance(self.policies, dict) else ()
        named = (getattr(policy, "seccomp", None) for policy in policies)
        return {name for name in named if isinstance(name, str)}

    @property
    def _names(self) -> str:
        return ", ".join(map(repr, self.policies))

    def _entry_faults(self) -> Iterator[Fault]:
        for name, policy in self.policies.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                yield Fault("policies", name, "a name of letters, digits, '_', '.' and '-'")
            if not isinstance(policy, SandboxPolicy):
                yield Fault(f"policies[{name!r}]", policy, "a SandboxPolicy is required")
                continue
            for fault in policy.faults():
                yield Fault(f"policies[{name!r}].{fault.field}", fault.value, fault.allowed)

    def _default_faults(self) -> Iterator[Fault]:
        if self.default not in list(self.policies):  # It may be anything, a list for one.
            yield Fault("default", self.default, f"one of {self._names}")

    def _trust_faults(self) -> Iterator[Fault]:
        releasing = [name for name, policy in self.policies.items() if policy.secrets]
        if releasing and len(releasing) < len(self.policies):
            yield Fault(
                "policies",
                list(self.policies),
                f"all of one trust: {', '.join(map(repr, releasing))} release secrets and the "
                "others do not; give each kind a worker of its own",
            )


def as_policies(policy: Any) -> SandboxPolicies:
    """A worker's ``policy=`` as a list, which has one policy in it where no list was given."""
    if isinstance(policy, SandboxPolicies):
        return policy
    return SandboxPolicies({_ONLY: policy}, _ONLY)
