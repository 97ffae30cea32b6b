"""What happened to every sandbox: one event a transition, one JSON line an event.

``audit.schema.json`` beside this module, and ``docs/audit.md``, say what each line has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs

#: Raised when a field changes its meaning or goes away; new events and fields may come any time.
SCHEMA = 1
#: Characters of one text, so that a line stays within what syslog daemons take.
_LONGEST_TEXT = 2000


@attrs.frozen
class Event:
    """One thing that happened.

    ``name``: such as ``sandbox.ready``; ``sandbox``: its id, empty where it is about none;
    ``fields``: what else is known, never a secret's value; those that are None are left out.
    """

    name: str
    sandbox: str = ""
    fields: Mapping[str, Any] = attrs.Factory(dict)

    def also(self, **fields: Any) -> Event:
        """The event with more that is known about it; these fields take the place of its own."""
        return attrs.evolve(self, fields={**self.fields, **fields})

    def json_line(self, time: float, master: str) -> str:
        """The event as one line; ``time`` in seconds since the epoch."""
        known = {name: _short(value) for name, value in self.fields.items() if value is not None}
        own = {"sandbox": self.sandbox, **known} if self.sandbox else known
        stamp = {"schema": SCHEMA, "time": round(time, 3), "master": master, "event": self.name}
        # The stamp comes first, and nothing takes its place.
        return json.dumps({**stamp, **own, **stamp}, separators=(",", ":"), default=_text)


def _short(value: Any) -> Any:
    return value[:_LONGEST_TEXT] if isinstance(value, str) else value


def _text(value: Any) -> str:
    return str(_short(str(value)))


#: Who writes events down.
Audit = Callable[[Event], None]


def unheard(_event: Event) -> None:
    """For who keeps no audit log, as ``sandboxworker try`` does."""
