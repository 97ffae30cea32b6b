"""A step's ``env`` upon the sandbox's own, by the rules of Buildbot's worker."""

from __future__ import annotations

from typing import Any

import pytest
from buildbot_worker.runprocess import RunProcess
from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.commands.shell import merge_environ

BASE = {"PATH": "/usr/bin:/bin", "HOME": "/build", "PYTHONPATH": "/lib/py", "EMPTY": ""}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, {}),
        ({"NEW": "x"}, {"NEW": "x"}),
        ({"HOME": "/other"}, {"HOME": "/other"}),
        ({"HOME": None, "ABSENT": None}, {"HOME": None}),
        ({"LIST": ["/a", "/b"], "NONE": []}, {"LIST": "/a:/b", "NONE": ""}),
        ({"PATH": "/a:${PATH}"}, {"PATH": "/a:/usr/bin:/bin"}),
        ({"PATH": ["/a", "${PATH}", "${HOME}/bin"]}, {"PATH": "/a:/usr/bin:/bin:/build/bin"}),
        ({"X": "<${ABSENT}>"}, {"X": "<>"}),
        ({"X": "$HOME ${} $$ ${a-b} %HOME%"}, {"X": "$HOME  $$ ${a-b} %HOME%"}),
        ({"PYTHONPATH": "/mine"}, {"PYTHONPATH": "/mine:/lib/py"}),
        ({"PYTHONPATH": ["/one", "/two"]}, {"PYTHONPATH": "/one:/two:/lib/py"}),
        ({"PYTHONPATH": None}, {"PYTHONPATH": None}),
    ],
)
def test_each_rule(wanted: dict[str, Any], expected: dict[str, Any]) -> None:
    merged = {**BASE, **expected}
    assert merge_environ(BASE, wanted) == {k: v for k, v in merged.items() if v is not None}


def test_one_new_variable_does_not_see_another() -> None:
    """As upstream: ``${…}`` is of the environment before, not of the step's own."""
    assert merge_environ(BASE, {"A": "1", "B": "${A}", "HOME": "/h", "C": "${HOME}"}) == {
        **BASE, "A": "1", "B": "", "HOME": "/h", "C": "/build",
    }  # fmt: skip


def test_neither_argument_is_changed() -> None:
    base, wanted = dict(BASE), {"HOME": None, "LIST": ["a"], "PYTHONPATH": "x"}
    merge_environ(base, wanted)
    assert base == BASE
    assert wanted == {"HOME": None, "LIST": ["a"], "PYTHONPATH": "x"}


@pytest.mark.parametrize("value", [1, 1.5, True, ("a", "b"), {"a": "b"}, b"bytes"])
def test_a_value_of_another_kind_is_refused_in_upstreams_words(value: Any) -> None:
    with pytest.raises(RuntimeError, match="must be strings or lists; key 'BAD' is incorrect"):
        merge_environ(BASE, {"GOOD": "x", "BAD": value})


_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
_texts = st.text(
    alphabet=st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=8
) | st.builds(lambda name: f"a${{{name}}}b", st.sampled_from(["PATH", "HOME", "NOT"]))


@given(
    base=st.dictionaries(_names, _texts.filter(lambda text: "$" not in text), max_size=4),
    wanted=st.dictionaries(_names, st.none() | _texts | st.lists(_texts, max_size=3), max_size=4),
)
def test_it_agrees_with_buildbots_own_worker(base: dict[str, str], wanted: dict[str, Any]) -> None:
    assert merge_environ(base, wanted) == _upstream(base, wanted)


def _upstream(base: dict[str, str], wanted: dict[str, Any]) -> dict[str, str]:
    """What `RunProcess` makes of it with ``base`` as the process's environment."""
    copied = {name: list(value) if isinstance(value, list) else value
              for name, value in wanted.items()}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("buildbot_worker.runprocess.os.environ", dict(base))
        made = RunProcess("id", ["true"], "/", "utf-8", lambda _: None, environ=copied)
    return dict(made.environ)
