"""Secrets' values taken out of what a build writes, as it streams by.

Pure. Buildbot's own redaction replaces whole values within one piece of text; a build that
prints a value in two writes, line by line or encoded would get past it.
"""

from __future__ import annotations

import base64
import re
import urllib.parse
from collections.abc import Iterator, Mapping

#: What is shorter would take out half of an innocent log.
SHORTEST = 4
#: Encodings of part of a value are looked for only if they are this long.
_SHORTEST_PART = 12
#: Columns of a line of ``base64`` (GNU coreutils) and of PEM files (RFC 7468).
_BASE64_COLUMNS = (76, 64)


def forms(value: str) -> set[str]:
    """The texts in which a value may appear: itself, its lines, and in the usual encodings."""
    texts = {value, value.strip(), *map(str.strip, value.splitlines())}
    found = {form for text in texts if len(text) >= SHORTEST for form in _encoded(text)}
    return {form for form in found if len(form) >= SHORTEST}


def _encoded(text: str) -> Iterator[str]:
    raw = text.encode()
    yield text
    yield urllib.parse.quote(text)
    yield urllib.parse.quote(text, safe="")
    yield urllib.parse.quote_plus(text)
    yield raw.hex()
    yield raw.hex().upper()
    for end in (b"", b"\n"):  # ``echo`` puts a newline behind it.
        yield from _base64_forms(raw + end)


def _base64_forms(raw: bytes) -> Iterator[str]:
    """Base64 of it at each place it can begin at, less the digits that its neighbours share."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for shift, shared in ((0, 0), (1, 2), (2, 3)):
            digits = encode(bytes(shift) + raw).decode().rstrip("=")
            last = 1 if (shift + len(raw)) % 3 else 0
            yield digits[shared : len(digits) - last]
        yield from _lines(encode(raw).decode())


def _lines(digits: str) -> Iterator[str]:
    """The lines in which tools print it; the last one only if it is long enough to tell."""
    for columns in _BASE64_COLUMNS:
        parts = (digits[at : at + columns] for at in range(0, len(digits), columns))
        yield from (part for part in parts if len(part) >= _SHORTEST_PART)


class Redactor:
    """One stream's text, with every form of every secret replaced by its name.

    ``secrets``: value to name; values shorter than `SHORTEST` are left alone.
    Keeps back what may be the beginning of a form; `flush` gives that at the stream's end.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._names = {form: f"<{secrets[value]}>" for value in secrets for form in forms(value)}
        # The longest first: a regular expression takes the first alternative that fits.
        ordered = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered)))
        self._longest = len(ordered[0]) if ordered else 0
        self._firsts = {form[0] for form in ordered}
        self._kept = ""

    def feed(self, text: str) -> str:
        if not self._names:
            return text
        text = self._pattern.sub(lambda match: self._names[match[0]], self._kept + text)
        cut = self._beginning(text)
        self._kept = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was kept back, at the end."""
        kept, self._kept = self._kept, ""
        return kept

    def _beginning(self, text: str) -> int:
        """Where the end of ``text`` begins that may be the beginning of a form."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[at] in self._firsts and self._begins_a_form(text[at:]):
                return at
        return len(text)

    def _begins_a_form(self, end: str) -> bool:
        return any(form.startswith(end) for form in self._names)
