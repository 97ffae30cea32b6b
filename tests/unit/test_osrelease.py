"""What an image says that it holds: read by the rules of os-release(5), and never believed far."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.osrelease import UNKNOWN, os_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n', "Debian GNU/Linux 12"),
        (b"PRETTY_NAME='Alpine Linux v3.20'\n", "Alpine Linux v3.20"),
        (b"PRETTY_NAME=Void\r\n", "Void"),
        (b'# comment\nNAME=Tiny\nVERSION_ID="7"\n', "Tiny 7"),
        (b'PRETTY_NAME="a \\"b\\" c"\n', 'a "b" c'),
        (b"", UNKNOWN),
        (b'PRETTY_NAME=""\n', UNKNOWN),
        (b'PRETTY_NAME="never closed\n', UNKNOWN),
        (b"\x7fELF\x00\xff\xfe", UNKNOWN),
        (b'PRETTY_NAME="\x1b[31mred\x1b[0m\xe2\x80\xae\x00x"\n', "[31mred[0mx"),
    ],
)
def test_name_is_what_the_file_says_in_plain_text(text: bytes, name: str) -> None:
    assert os_name(text).startswith(name)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_no_content_gives_more_than_a_short_line_of_plain_text(before: bytes, value: bytes) -> None:
    for text in (before, before + b'\nPRETTY_NAME="' + value + b'"\n', b"NAME=" + value * 100):
        name = os_name(text)
        assert 0 < len(name) <= 200
        assert name.isprintable()
