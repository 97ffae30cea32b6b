"""The table of deadlines in ``docs/reliability.md`` is what the code says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from sandboxworker.policy import SandboxPolicy

_TEXT = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
_SECTION = _TEXT.partition("## Deadlines\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `([\w.]+)`[^|]* \|", _SECTION, re.MULTILINE)


def found(path: str) -> Any:
    """What ``module.NAME`` or ``module.Class.name`` of ours is."""
    parts = path.split(".")
    at = max(index for index, part in enumerate(parts) if part.islower() and index < len(parts) - 1)
    module = importlib.import_module(".".join(["sandboxworker", *parts[: at + 1]]))
    value: Any = module
    for part in parts[at + 1 :]:
        value = getattr(value, part)
    return value


def test_there_is_a_table() -> None:
    assert len(ROWS) > 15


@pytest.mark.parametrize(("what", "seconds", "name"), ROWS, ids=[row[2] for row in ROWS])
def test_a_row_is_what_the_code_says(what: str, seconds: str, name: str) -> None:
    if seconds == "the policy's":
        assert name in {field.name for field in attrs.fields(SandboxPolicy)}
    else:
        assert found(name) == float(seconds), what
