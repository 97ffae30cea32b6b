"""The tests' own way of running under another runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
from runtime import DIFFERENCES, LEAST, SandboxPolicy, differs

from sandboxworker import policy

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "engines.md"


@pytest.mark.skipif(not DOCUMENT.is_file(), reason="the documents are not part of a wheel")
@pytest.mark.parametrize("name", DIFFERENCES)
def test_each_difference_is_a_row_of_the_document(name: str) -> None:
    table = DOCUMENT.read_text().partition("\n## gVisor\n")[2]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert [row for row in rows if DIFFERENCES[name] in row]


def test_a_test_that_differs_has_its_reason() -> None:
    assert differs("statx").kwargs["reason"] == f"gVisor: {DIFFERENCES['statx']}"
    with pytest.raises(KeyError):
        differs("nothing")


def test_a_policy_is_what_was_asked_for_and_under_gvisor_has_room_for_that() -> None:
    small = {"memory": "32m", "pids": 40, "disk": "4m"}
    assert SandboxPolicy("a/b:1", **small, runtime="runc") == policy.SandboxPolicy(
        "a/b:1", **small, runtime="runc"
    )
    assert SandboxPolicy("a/b:1", **small, runtime="runsc") == policy.SandboxPolicy(
        "a/b:1", **{**small, **LEAST}, runtime="runsc"
    )
    large = {"memory": "2g", "pids": 4096}
    assert SandboxPolicy("a/b:1", **large, runtime="runsc") == policy.SandboxPolicy(
        "a/b:1", **large, runtime="runsc"
    )
