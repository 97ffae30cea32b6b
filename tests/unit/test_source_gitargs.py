"""What a step's git command will ask for, as git itself reads its arguments."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.source.gitargs import GitCommand, parse


def parsed(*words: str) -> GitCommand:
    git = parse(["git", *words])
    assert git is not None
    return git


@pytest.mark.parametrize(
    "argv",
    [None, "git fetch", b"git", [], ["git"], ["sh", "-c", "git fetch"], ["/usr/bin/git", "fetch"],
     ["git", b"fetch"], ["git", 1], [["git", "fetch"]], ["git", "-C"], ["git", "--version"],
     {"git": "fetch"}, ["git", "-c", "a=b"]],
)  # fmt: skip
def test_what_runs_no_git_command_is_none(argv: Any) -> None:
    assert parse(argv) is None


@pytest.mark.parametrize(
    "options",
    [[], ["-c", "push"], ["-c", "a=b", "-C", "fetch"], ["--git-dir", "fetch"], ["--git-dir=x"],
     ["--no-pager"], ["--work-tree", "clone", "-p"], ["--namespace", "x"],
     ["--config-env", "a=push"]],
)  # fmt: skip
def test_gits_own_options_are_not_the_commands_name(options: list[str]) -> None:
    assert parsed(*options, "push", "origin") == GitCommand("push", ("origin",))


@pytest.mark.parametrize(
    ("words", "positional"),
    [
        (["fetch", "-f", "-t", "URL", "main", "--progress"], ("URL", "main")),
        (["clone", "--branch", "b", "URL", ".", "--progress"], ("URL", ".")),
        (["clone", "-b", "b", "-o", "up", "--depth", "1", "URL"], ("URL",)),
        (["clone", "--depth=1", "--filter", "blob:none", "URL"], ("URL",)),
        (["clone", "--reference", "/a/b", "-c", "x=y", "--", "URL", "-d"], ("URL", "-d")),
        (["fetch", "--", "--upload-pack=x", "main"], ("--upload-pack=x", "main")),
        (["fetch", "--upload-pack", "x", "URL"], ("URL",)),
        (["fetch", "-"], ("-",)),
        (["fetch", "URL", "--depth"], ("URL",)),
        (["fetch", ""], ("",)),
    ],
)
def test_an_options_word_is_no_argument(words: list[str], positional: tuple[str, ...]) -> None:
    assert parsed(*words).positional == positional


@pytest.mark.parametrize(
    ("words", "depth"),
    [(["--depth", "3"], 3), (["--depth=3"], 3), ([], None), (["--depth"], None),
     (["--depth", "²"], None), (["--depth", "٣"], None), (["--depth", "-1"], None),
     (["--depth="], None), (["--", "--depth=3"], None), (["--branch", "--depth=3"], None)],
)  # fmt: skip
def test_a_depth_is_a_plain_number(words: list[str], depth: int | None) -> None:
    assert parsed("clone", *words).depth == depth


@pytest.mark.parametrize("words", [["--branch", "b"], ["-b", "b"], ["--branch=b"]])
def test_a_clone_names_its_branch(words: list[str]) -> None:
    assert parsed("clone", "URL", *words).branch == "b"
    assert parsed("clone", "--", *words).branch is None


def test_who_asks_a_server() -> None:
    asks = {"clone", "fetch", "pull", "ls-remote", "remote"}
    for name in (*asks, "push", "submodule", "checkout", "reset", "clean", "rev-parse"):
        assert parsed(name).asks_server == (name in asks)
    assert parsed("submodule", "update", "--init").updates_submodules
    assert not parsed("submodule", "sync").updates_submodules
    assert not parsed("submodule", "foreach", "update").updates_submodules
    assert not parsed("update", "submodule").updates_submodules


WORDS = st.lists(st.text(max_size=12) | st.sampled_from(["--", "-c", "--depth", "-b", "--branch"]))


@given(WORDS)
def test_any_argv_is_read_without_a_fault(words: list[str]) -> None:
    git = parse(["git", *words])
    if git is not None:
        assert not git.name.startswith("-")
        assert set(git.positional) <= set(words)
        assert git.depth is None or git.depth >= 0
        assert git.branch is None or isinstance(git.branch, str)


@given(st.lists(st.text(max_size=12)))
def test_behind_two_dashes_nothing_is_an_option(words: list[str]) -> None:
    assert parsed("fetch", "--", *words).positional == tuple(words)
