"""One event, one line."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sandboxworker.audit import SCHEMA, Event, unheard

scalars = st.booleans() | st.integers() | st.text()
reserved = {"schema", "time", "master", "event", "sandbox"}
fields = st.dictionaries(
    st.text(max_size=9).filter(lambda name: name not in reserved), scalars | st.lists(scalars)
)


@given(st.text(), st.text(min_size=1), fields)
def test_event_is_one_line_of_json_with_all_that_is_known(
    name: str, sandbox: str, known: dict[str, Any]
) -> None:
    line = Event(name, sandbox, known).json_line(1.0, "m")
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {
        "schema": SCHEMA,
        "time": 1.0,
        "master": "m",
        "event": name,
        "sandbox": sandbox,
        **known,
    }


def test_time_is_in_milliseconds() -> None:
    assert json.loads(Event("e", "s").json_line(1700000000.123456, "m"))["time"] == 1700000000.123


def test_what_is_no_json_is_written_as_text() -> None:
    line = Event("e", "s", {"reason": ValueError("no room")}).json_line(0, "m")
    assert json.loads(line)["reason"] == "no room"


def test_events_may_go_unheard() -> None:
    unheard(Event("e", "s"))
