"""A password store of ``pass``, for real: with a key of its own that needs no passphrase."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest


@contextlib.contextmanager
def password_store(entries: Mapping[str, str]) -> Iterator[Path]:
    """Its directory, for the length of a block in which the environment names it as well."""
    missing = [tool for tool in ("pass", "gpg", "gpgconf") if shutil.which(tool) is None]
    if missing:
        pytest.fail(f"{', '.join(missing)} cannot be found: run 'make setup', or install pass")
    # The agent's socket is in it, and a socket's path must be short.
    home = Path(tempfile.mkdtemp(prefix="pass-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNUPGHOME", str(home))
        patch.setenv("PASSWORD_STORE_DIR", str(home / "store"))
        try:
            _tool("gpg", "--batch", "--passphrase", "", "--quick-generate-key", "ci@test.invalid")
            _tool("pass", "init", "ci@test.invalid")
            for name, text in entries.items():
                _tool("pass", "insert", "--multiline", name, text=text)
            yield home / "store"
        finally:
            _tool("gpgconf", "--kill", "all")
            shutil.rmtree(home, ignore_errors=True)


def _tool(*command: str, text: str = "") -> None:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, (command, done.stderr)
