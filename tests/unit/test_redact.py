"""Whatever way a build writes a secret, its value does not reach the log."""

from __future__ import annotations

import base64
import binascii
import subprocess
import urllib.parse
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.redact import Redactor

VALUE = "s3cr3t-Valu3/with+odd=chars&€"
KEY = "-----BEGIN KEY-----\n" + "\n".join("abcdefgh" * 8 for _ in range(3)) + "\n-----END KEY-----"
values = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=8, max_size=60)
plain = st.text("abc \n", max_size=20)


def redacted(pieces: list[str], value: str = VALUE) -> str:
    redactor = Redactor({value: "token"})
    return "".join(map(redactor.feed, pieces)) + redactor.flush()


def cut(text: str, places: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[begin:end] for begin, end in pairwise(borders)]


@given(values, plain, plain, st.lists(st.integers(0, 500), max_size=10))
def test_value_in_any_pieces_is_replaced(
    value: str, before: str, after: str, places: list[int]
) -> None:
    shown = redacted(cut(before + value + after, places), value)
    assert value not in shown
    assert "<token>" in shown


@given(st.text(max_size=200), st.lists(st.integers(0, 500), max_size=10))
def test_text_without_the_value_comes_through_whole(text: str, places: list[int]) -> None:
    assert redacted(cut(text, places)) == text


@pytest.mark.parametrize(
    "written",
    [
        VALUE,
        VALUE.encode().hex(),
        VALUE.encode().hex().upper(),
        urllib.parse.quote(VALUE),
        urllib.parse.quote(VALUE, safe=""),
        urllib.parse.quote_plus(VALUE),
        base64.b64encode(VALUE.encode()).decode(),
        base64.urlsafe_b64encode(VALUE.encode()).decode(),
        base64.b64encode(f"{VALUE}\n".encode()).decode(),
    ],
)
def test_usual_encodings_are_replaced(written: str) -> None:
    assert redacted(list(f"begin {written} end")) in (
        "begin <token> end",
        "begin <token>= end",
        *(f"begin <token>{rest} end" for rest in (written[-3:], written[-2:], written[-1:])),
    )


@given(st.binary(max_size=5), st.binary(max_size=5))
def test_base64_at_any_place_of_a_longer_text_is_replaced(before: bytes, after: bytes) -> None:
    whole = base64.b64encode(before + VALUE.encode() + after).decode()
    assert "<token>" in redacted([whole])


def test_every_line_of_a_key_is_replaced_by_itself() -> None:
    for line in KEY.splitlines():
        assert redacted([f"x{line}y"], KEY) == "x<token>y"


@pytest.mark.parametrize("tool", [["base64"], ["base64", "-w", "64"]])
def test_what_the_base64_tool_prints_is_replaced_line_by_line(tool: list[str]) -> None:
    printed = subprocess.run(tool, input=KEY.encode(), capture_output=True, check=True).stdout
    shown = redacted([printed.decode()], KEY)
    assert all(line not in shown for line in printed.decode().splitlines() if len(line) >= 12)
    assert binascii.a2b_base64(printed) == KEY.encode()


def test_short_value_is_left_alone() -> None:
    assert redacted(["abc and more"], "abc") == "abc and more"


def test_no_more_is_kept_back_than_may_become_a_value() -> None:
    redactor = Redactor({VALUE: "token"})
    assert redactor.feed("innocent line\n") == "innocent line\n"
    assert redactor.feed(f"x{VALUE[:10]}") == "x"
    assert redactor.feed("!") == f"{VALUE[:10]}!"


def test_without_secrets_everything_goes_through_at_once() -> None:
    assert Redactor({}).feed("text") == "text"
