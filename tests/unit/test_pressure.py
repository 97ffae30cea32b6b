"""Shortage of memory, from the kernel's own texts."""

from __future__ import annotations

import pytest

from sandboxworker.pressure import is_short

PLENTY = "MemTotal:       24000000 kB\nMemFree:          100000 kB\nMemAvailable:   20000000 kB\n"
LITTLE = "MemTotal:       24000000 kB\nMemFree:          100000 kB\nMemAvailable:    2000000 kB\n"
CALM = "some avg10=0.50 avg60=9.00 avg300=80.00 total=1\nfull avg10=0.00 avg60=0.00 total=0\n"
STALLED = "some avg10=10.00 avg60=9.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 total=0\n"


@pytest.mark.parametrize(
    ("meminfo", "stalled", "short"),
    [
        pytest.param(PLENTY, CALM, False, id="plenty"),
        pytest.param(LITTLE, CALM, True, id="little-available"),
        pytest.param(PLENTY, STALLED, True, id="processes-wait-for-memory"),
        pytest.param(LITTLE, "", True, id="little-and-no-psi"),
        pytest.param("", "", False, id="a-kernel-that-tells-nothing"),
        pytest.param("garbage", "some avg10=x", False, id="other-words"),
    ],
)
def test_short_by_what_is_available_or_by_what_waits(
    meminfo: str, stalled: str, short: bool
) -> None:
    assert is_short(meminfo, stalled) is short
