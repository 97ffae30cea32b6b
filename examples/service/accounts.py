"""Who may log into the web interface: a file of names and scrypt hashes, no passwords.

``python3 accounts.py NAME`` reads a password and prints NAME's line for the file.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import secrets
import sys
from pathlib import Path

from buildbot.www.auth import CustomAuth

#: scrypt's cost: 16 MiB and some 50 ms for one guess.
_COST = {"n": 2**14, "r": 8, "p": 1}


class Accounts(CustomAuth):
    """Names and passwords as a file has them; read at each login, so that a change is at once."""

    def __init__(self, file: Path) -> None:
        self._file = file
        super().__init__()

    def check_credentials(self, username: bytes, password: bytes) -> bool:
        lines = (line.split(":") for line in self._file.read_text().splitlines())
        known = {name: (salt, hashed) for name, salt, hashed in lines}
        salt, hashed = known.get(username.decode(errors="replace"), ("00", ""))
        return hmac.compare_digest(_hashed(password, salt), hashed)


def line(name: str, password: str) -> str:
    """A line of the file."""
    salt = secrets.token_hex(16)
    return f"{name}:{salt}:{_hashed(password.encode(), salt)}"


def _hashed(password: bytes, salt: str) -> str:
    return hashlib.scrypt(password, salt=bytes.fromhex(salt), **_COST).hex()


if __name__ == "__main__":
    print(line(sys.argv[1], getpass.getpass()))
