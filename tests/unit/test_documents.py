"""Every code block of the documents is parsed, run, tried by a test, or says why not."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, Block, all_blocks, blocks, documents

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PARSED: dict[str, Callable[[str], Any]] = {
    "python": ast.parse,
    "toml": tomllib.loads,
    "json": json.loads,
    "text": str,
    "{toctree}": str,
}
BLOCKS = all_blocks()
RUN = [block for block in BLOCKS if block.mark == "run"]


def ids(blocks: list[Block]) -> list[str]:
    return [block.place for block in blocks]


def test_the_documents_are_found() -> None:
    names = {str(path.relative_to(ROOT)) for path in documents()}
    assert {"README.md", "docs/policy.md", "seccomp/README.md"} <= names
    assert len(BLOCKS) > 20


def test_each_document_is_on_the_site() -> None:
    """By an entry of a table of contents; a decision's is a pattern."""
    index = ROOT / "docs" / "index.md"
    entries = [
        (index.parent / line).with_suffix(".md").resolve()
        for block in blocks(index)
        for line in block.text.splitlines()
        if line and not line.startswith(":")
    ]
    assert [path for path in entries if not path.exists()] == []
    decisions = {path for path in documents() if path.parent.name == "decisions"}
    assert set(documents()) - decisions - {index} <= set(entries)


def test_each_block_is_parsed_or_says_how_it_was_tried() -> None:
    assert [
        block.place for block in BLOCKS if not block.mark and block.language not in PARSED
    ] == []


def test_what_tried_a_block_is_there() -> None:
    named = {
        (block.place, name.strip())
        for block in BLOCKS
        if block.mark.startswith("tried by: ")
        for name in block.mark.removeprefix("tried by: ").split(",")
    }
    assert [pair for pair in sorted(named) if not (ROOT / pair[1].split("::")[0]).exists()] == []


@pytest.mark.parametrize(
    "block", (parsed := [b for b in BLOCKS if b.language in PARSED]), ids=ids(parsed)
)
def test_a_block_of_configuration_can_be_parsed(block: Block) -> None:
    PARSED[block.language](block.text)


@pytest.mark.parametrize("block", RUN, ids=ids(RUN))
def test_a_command_does_what_it_says(block: Block, engine_client: Any, tmp_path: Path) -> None:
    """It succeeds, in a directory of its own."""
    beside = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{beside}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
