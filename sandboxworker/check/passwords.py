"""Whether a password withstands being guessed, and what looks like a secret."""

from __future__ import annotations

import re

#: Below this a password that people think of is found by trying.
SHORTEST = 12
_DIFFERENT = 6
_KNOWN = frozenset(
    {"buildbot", "changeme", "changepw", "default", "letmein", "master", "pass", "passwd"}
    | {"password", "qwerty", "secret", "test", "token", "trustno1", "worker", "admin", "example"}
)

#: How names end under which a program keeps what nobody else must know.
_SECRET_NAME = re.compile(
    r"(^|[\W_])(pass(word|wd|phrase)?|secret|token|credentials?|(api|private|access)_?key)$"
)
#: How well-known services' tokens, and keys, begin; and a password inside a URL.
SECRET_SHAPE = re.compile(
    r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|AKIA[0-9A-Z]{16}"
    r"|xox[abprs]-[\w-]{10,}|hvs\.\w{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\w+://[^/\s:@]+:(?!%\()[^/\s@]+@"
)


def names_a_secret(name: str) -> bool:
    """Whether a variable, argument or key is called as secrets are: ``API_KEY``, ``dbPassword``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return _SECRET_NAME.search(words.lower()) is not None


def weakness(password: str, user: str = "") -> str | None:
    """Why a password is weak, without repeating it; None if it is not."""
    plain = password.lower()
    if plain == user.lower():
        return "is the account's own name"
    if re.sub(r"\W|\d|_", "", plain) in _KNOWN:
        return "is one of the first that anybody would try"
    if len(password) < SHORTEST:
        return f"has {len(password)} characters, fewer than {SHORTEST}"
    if len(set(password)) < _DIFFERENT:
        return f"has fewer than {_DIFFERENT} different characters"
    return None
