"""Patterns are matched as Python's own ``glob`` matches them on a disk."""

from __future__ import annotations

import glob
import itertools
import os
from pathlib import Path

import pytest

from sandboxworker.commands.globbing import Pattern, is_forged

FILES = ["a/b/c.txt", "a/.h/x", "a/b.txt", ".hid/y", "z", "a/b/d/e/f.py", "[x]/q", "sp ace/n\nl"]
PARTS = ["*", "**", "a", "b", "*.txt", "?", ".*", "[ab]", "[!a]*", "z", "[[]x]", ".hid", "broken"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "broken").symlink_to("nowhere")
    return root


def listed(root: str) -> tuple[list[str], list[str]]:
    """What ``find`` would tell of a directory: the directories, and the rest."""
    directories, others = [""] if os.path.isdir(root) else [], []
    for folder, below, files in os.walk(root):
        here = os.path.relpath(folder, root)
        directories += [os.path.normpath(os.path.join(here, name)) for name in below]
        others += [os.path.normpath(os.path.join(here, name)) for name in files]
    return directories, others


def selected(text: str) -> list[str]:
    pattern = Pattern.parse(text)
    return sorted(set(pattern.select(*listed(pattern.root))))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_finds_what_python_finds(tree: Path, depth: int) -> None:
    compared = 0
    for parts in itertools.product(PARTS, repeat=depth):
        for end in ("", "/"):
            text = f"{tree}/{'/'.join(parts)}{end}"
            # Python gives "x/" for "x/**" even where there is no x; here it must be there.
            wanted = {name for name in glob.glob(text, recursive=True) if os.path.lexists(name)}
            assert selected(text) == sorted(wanted), text
            compared += 1
    assert compared == 2 * len(PARTS) ** depth


def test_depth_is_no_deeper_than_the_pattern_looks() -> None:
    assert Pattern.parse("/build/*.c").depth == 1
    assert Pattern.parse("/build/*/x/*.c").depth == 3
    assert Pattern.parse("/build/**/*.c").depth is None


def test_pattern_without_magic_looks_into_its_own_directory() -> None:
    assert Pattern.parse("/build/a/b") == Pattern("/build/a", ("b",))
    assert Pattern.parse("/*") == Pattern("/", ("*",))


@pytest.mark.parametrize("name", ["..", "a/../b", "/a", "a//b", ".", "a/.", "", "a/", "a\0b"])
def test_name_that_leaves_the_directory_is_forged(name: str) -> None:
    assert is_forged(name)


@pytest.mark.parametrize("name", ["a", "a/b", "...", "a b", "-x", "a\nb", "..a", ".hid/y"])
def test_honest_name_is_not_forged(name: str) -> None:
    assert not is_forged(name)
