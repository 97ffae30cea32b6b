"""How much a build may still write to its logs and take out as files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from sandboxworker import figures
from sandboxworker.policy import SandboxPolicy, show_size


def _nobody(_field: str, _value: int) -> None:
    return None


@attrs.define
class Budget:
    """What is left of a policy's limits; counted as it arrives. ``step`` is the current one.

    ``on_struck(field, value)`` is called once when a limit is passed; a step's own, for each step.
    """

    policy: SandboxPolicy
    step: Any = None
    build_output: int = 0
    step_output: int = 0
    uploaded: int = 0
    uploaded_files: int = 0
    on_struck: Callable[[str, int], None] = attrs.field(default=_nobody, kw_only=True)
    _struck: set[str] = attrs.field(factory=set, init=False)

    def enter(self, step: Any) -> None:
        """A command of this step begins."""
        if step is not self.step:
            self.step, self.step_output = step, 0
            self._struck.discard("max_step_output")

    def output(self, size: int) -> tuple[int, str | None]:
        """Count bytes of log: how many of them still fit, and what to tell if not all do."""
        step_left = self.policy.max_step_output - self.step_output
        build_left = self.policy.max_output - self.build_output
        fits = min(size, step_left, build_left)
        self.step_output += fits
        self.build_output += fits
        figures.output(fits)
        if size > step_left:
            return fits, self._passed("this step wrote", "max_step_output")
        if size > build_left:
            return fits, self._passed("this build wrote", "max_output")
        return fits, None

    def upload_file(self) -> str | None:
        """Count a file taken out; what to tell when there were too many."""
        self.uploaded_files += 1
        if self.uploaded_files > self.policy.max_upload_files:
            self._strike("max_upload_files")
            return (
                f"sandboxworker: upload refused: more than {self.policy.max_upload_files} files "
                "in this build; the limit is the policy's max_upload_files"
            )
        return None

    def upload(self, size: int) -> str | None:
        """Count bytes taken out; what to tell when there were too many."""
        self.uploaded += size
        if self.uploaded > self.policy.max_upload:
            self._strike("max_upload")
            limit = show_size(self.policy.max_upload)
            return (
                f"sandboxworker: upload refused: more than {limit} in this build; "
                "the limit is the policy's max_upload"
            )
        return None

    def _passed(self, who: str, field: str) -> str:
        limit = show_size(self._strike(field))
        return (
            f"sandboxworker: output limit reached: {who} more than {limit} of log; "
            f"the limit is the policy's {field}"
        )

    def _strike(self, field: str) -> int:
        value = int(getattr(self.policy, field))
        if field not in self._struck:
            self._struck.add(field)
            self.on_struck(field, value)
        return value
