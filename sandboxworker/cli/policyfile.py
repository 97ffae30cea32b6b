"""A policy in a TOML file: the same fields as in ``master.cfg``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from sandboxworker.errors import SandboxworkerError
from sandboxworker.policy import SandboxPolicy

DEFAULT_IMAGE = "sandboxworker/debian:bookworm"


def load_policy(file: Path | None, image: str | None) -> SandboxPolicy:
    """The policy in a file, or the default one; ``image`` takes the place of its image.

    Raises `PolicyError` with every fault, or a `SandboxworkerError` for a file that is no TOML.
    """
    fields = {} if file is None else _read(file)
    fields["image"] = image or fields.get("image", DEFAULT_IMAGE)
    policy = SandboxPolicy(**fields)
    policy.require_valid()
    return policy


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SandboxworkerError(
            f"policy file {file} cannot be read", details=str(error.strerror)
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SandboxworkerError(f"policy file {file} is not TOML", details=str(error)) from None
