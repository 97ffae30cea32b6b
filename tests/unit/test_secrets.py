"""Where the file of a secret may be."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.secrets import placed, where_it_belongs


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("token", "/run/secrets/token"),
        ("deep/er/token", "/run/secrets/deep/er/token"),
        ("./token", "/run/secrets/token"),
        ("a/../token", "/run/secrets/token"),
        ("-rf", "/run/secrets/-rf"),
        ("/run/secrets/token", "/run/secrets/token"),
        ("/run/secrets//token", "/run/secrets/token"),
        ("//run/secrets/token", None),
        ("/run/secrets", None),
        ("/run/secrets/", None),
        ("/run/secrets/..", None),
        ("/run/secretsx/token", None),
        ("/build/token", None),
        ("..", None),
        ("../token", None),
        ("a/../../token", None),
        ("", None),
        (".", None),
        ("~", None),
        ("~/token", None),
        ("~root/token", None),
    ],
)
def test_relative_paths_are_below_the_secrets_tmpfs_and_others_must_be(
    path: str, place: str | None
) -> None:
    assert placed(path) == place


@given(st.lists(st.sampled_from(["..", ".", "a", "", "run", "secrets", "~"])).map("/".join))
def test_no_path_leads_out_of_the_secrets_tmpfs(path: str) -> None:
    place = placed(path)
    assert place is None or (
        place.startswith("/run/secrets/")
        and posixpath.normpath(place) == place
        and placed(place) == place
    )


def test_what_is_advised_is_accepted() -> None:
    advised = where_it_belongs("/build/token").rpartition(" ")[2]
    assert placed(advised) == advised
