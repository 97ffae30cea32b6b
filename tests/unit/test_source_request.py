"""Names of branches and commits, some of which come from a change that a stranger made."""

from __future__ import annotations

import subprocess
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxworker.errors import SourceRefused
from sandboxworker.source.gitargs import parse
from sandboxworker.source.mirror import Wanted, is_object, is_ref
from sandboxworker.source.request import Request, placing, request_of

URL = "https://good.example.org/team/x.git"
OID = "0123456789abcdef0123456789abcdef01234567"


@attrs.define
class Step:
    """What of a git step is read."""

    repourl: str = URL
    branch: str | None = None


def requested(*words: str, branch: str | None = None) -> Request:
    git = parse(["git", *words])
    assert git is not None
    return request_of(Step(branch=branch), git)


BAD_NAMES = [
    "-x", "--upload-pack=touch x", "a..b", "a b", "a\nb", "a\n", "a\0b", "a~1", "a^", "a:b", "a?b",
    "a[b", "a\\b", ".a", "a/.b", "a//b", "/a", "a/", "a.", "a.lock", "a.lock/b", "a@{1}", "@",
    "@{-1}", "é", "a\x7f", "",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_git_might_take_for_something_else_is_none(name: str) -> None:
    assert not is_ref(name)


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name])
def test_such_a_name_is_refused_wherever_it_stands(name: str) -> None:
    with pytest.raises(SourceRefused) as caught:
        requested("fetch", URL, "main", branch=name)
    assert "is no name of a branch" in str(caught.value)
    with pytest.raises(SourceRefused):
        placing(Step(), {"branch": name})
    with pytest.raises(SourceRefused):
        requested("clone", "--branch", name, "--", URL)


@settings(max_examples=150, deadline=None)
@given(st.from_regex(r"\A[!-~ ]{1,14}\Z") | st.from_regex(r"\A[a-c./@{~^:*-]{1,8}\Z"))
def test_what_we_take_for_a_ref_git_does_as_well(name: str) -> None:
    if is_ref(name):
        argv = ["git", "check-ref-format", "--branch", name]
        assert subprocess.run(argv, check=False, capture_output=True).returncode == 0
        assert not name.startswith("-")


@given(st.text("0123456789abcdefABCDEFg\n", min_size=38, max_size=66))
def test_a_commits_full_name_is_40_or_64_digits(name: str) -> None:
    is_hexadecimal = set(name) <= set("0123456789abcdef")
    assert is_object(name) == (is_hexadecimal and len(name) in (40, 64))


# ---- what a command asks for ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "url", "names"),
    [
        (["clone", URL, "."], URL, {"HEAD"}),
        (["clone", "--branch", "v1", URL, "."], URL, {"v1"}),
        (["fetch", "-f", URL, "refs/pull/7/head"], URL, {"refs/pull/7/head"}),
        (["fetch", URL, "+main:refs/x"], URL, {"main"}),
        (["fetch", URL, "refs/pull/*:refs/pull/*"], URL, {"refs/pull/*"}),
        (["fetch", URL, ":x"], URL, {"HEAD"}),
        (["fetch", URL, OID], URL, {OID}),
        (["fetch", "origin"], URL, set()),
        (["ls-remote", "--symref", "git@h:x", "HEAD"], "git@h:x", set()),
        (["submodule", "update", "a/b"], URL, set()),
    ],
)
def test_a_command_names_its_url_and_refs(words: list[str], url: str, names: set[str]) -> None:
    request = requested(*words)
    assert (request.url, request.names) == (url, names)


def test_the_steps_own_branch_comes_along() -> None:
    assert requested("ls-remote", URL, branch="topic").names == {"topic"}
    assert placing(Step(), {"branch": "HEAD"}).names == {"HEAD"}


def test_a_mirror_is_asked_for_what_is_no_branch_or_tag() -> None:
    names = ("main", "refs/heads/a", "refs/tags/b", "refs/pull/7/head", "refs/headstrong", OID)
    request = Request(URL, frozenset(names))
    assert request.special == {"refs/pull/7/head", "refs/headstrong", OID}


def test_a_whole_history_takes_every_branch_and_a_shallow_one_what_is_named() -> None:
    names: Any = frozenset({"main", "refs/pull/7/head", OID})
    pull = frozenset({"refs/pull/7/head"})
    assert Request(URL, names).wanted == Wanted(None, pull, frozenset({OID}))
    assert Request(URL, names, 1).wanted == Wanted(1, pull | {"main"}, frozenset({OID}))
    assert Request(URL, frozenset(), 2).wanted == Wanted(2, frozenset({"HEAD"}))


@given(st.lists(st.text(max_size=10), max_size=4))
def test_no_word_of_a_fetch_reaches_the_master_unchecked(words: list[str]) -> None:
    try:
        request = requested("fetch", "--", URL, *words)
    except SourceRefused:
        return
    assert all(name == "HEAD" or is_ref(name.removesuffix("/*")) for name in request.names)
