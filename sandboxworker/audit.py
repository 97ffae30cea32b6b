"""What happened to every sandbox: one event a transition, one JSON line an event."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs

#: Raised when a field changes its meaning or goes away.
SCHEMA = 1


@attrs.frozen
class Event:
    """One thing that happened.

    ``name``: such as ``sandbox.ready``; ``sandbox``: its id;
    ``fields``: what else is known, never a secret's value.
    """

    name: str
    sandbox: str
    fields: Mapping[str, Any] = attrs.Factory(dict)

    def json_line(self, time: float) -> str:
        """The event as one line; ``time`` in seconds since the epoch."""
        record = {
            "schema": SCHEMA,
            "time": round(time, 3),
            "event": self.name,
            "sandbox": self.sandbox,
            **self.fields,
        }
        return json.dumps(record, separators=(",", ":"), default=str)


#: Who writes events down.
Audit = Callable[[Event], None]


def unheard(_event: Event) -> None:
    """For who keeps no audit log, as ``sandboxworker try`` does."""
