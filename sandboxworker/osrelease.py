"""Which operating system an image holds, in its own words: ``Debian GNU/Linux 12 (bookworm)``.

Asked in the first sandbox of an image, before its build gets it, so no build has a say in it.
The image's maker has: what it says is bounded, and freed of all that is no plain text.
"""

from __future__ import annotations

import re
import shlex

from sandboxworker.process import run
from sandboxworker.sandbox import Sandbox

#: What is told where an image does not say.
UNKNOWN = "unknown"

_READ = ("/bin/sh", "-c", "head -c 8192 /etc/os-release")
_SECONDS = 5.0
_MAX_BYTES = 8192
_MAX_NAME = 80

#: A line of os-release(5): a name, and a value by the shell's rules.
_LINE = re.compile(r"([A-Z_]+)=(.*)")


def os_name(text: bytes) -> str:
    """The name in an ``/etc/os-release``."""
    fields = {}
    for line in text[:_MAX_BYTES].decode(errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match:
            fields[match[1]] = _clean(match[2])
    name = f"{fields.get('NAME', '')} {fields.get('VERSION_ID', '')}".strip()
    return fields.get("PRETTY_NAME") or name or UNKNOWN


def _clean(value: str) -> str:
    try:
        words = shlex.split(value)
    except ValueError:  # A quote that nothing closes.
        words = []
    text = "".join(char for char in " ".join(words) if char.isprintable())
    return " ".join(text.split())[:_MAX_NAME]


class OsNames:
    """The names of the images of all engines; each is asked for once."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}

    async def of(self, sandbox: Sandbox) -> str:
        """The name of this sandbox's; no build may run in it yet."""
        key = (sandbox.engine.name, sandbox.spec.image_id)
        if key not in self._names:
            name = await _ask(sandbox)
            if not sandbox.is_ready:
                return name
            self._names[key] = name
        return self._names[key]


async def _ask(sandbox: Sandbox) -> str:
    asking = run(sandbox, _READ, limit=_MAX_BYTES)
    asking.addTimeout(_SECONDS, sandbox.reactor)
    return os_name((await asking).stdout)


OS_NAMES = OsNames()
