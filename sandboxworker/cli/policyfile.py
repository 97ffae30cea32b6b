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


#: The presets that may stand in a file's place.
PRESETS = {"untrusted": SandboxPolicy.untrusted, "trusted": SandboxPolicy.trusted}


def load_policy(
    named: str | Path | None, image: str | None, runtime: str | None = None
) -> SandboxPolicy:
    """The policy of that preset or in that file, or the default one.

    ``image`` and ``runtime`` replace its own, where they are given.
    Raises `PolicyError` with every fault, or a `SandboxworkerError` for a file that is no TOML.
    """
    own = {} if runtime is None else {"runtime": runtime}
    if isinstance(named, str) and named in PRESETS:
        policy = PRESETS[named](image or DEFAULT_IMAGE, **own)
    else:
        fields = {} if named is None else _read(Path(named))
        fields["image"] = image or fields.get("image", DEFAULT_IMAGE)
        policy = SandboxPolicy(**{**fields, **own})
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
