"""``c['protocols'] = {}``: a master whose workers need no port opens none.

Buildbot refuses a configuration with workers and no protocol
(``MasterConfig.check_ports``: "workers are configured, but c['protocols'] not"), since its own
workers could never connect.
``c['protocols'] = {"null": {}}`` says the same in Buildbot's words and needs nothing from here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from buildbot.config.master import MasterConfig


def allow_no_protocols(is_portless: Callable[[Any], bool]) -> None:
    """Let a configuration have no protocols while every worker in it is portless."""
    check_ports = MasterConfig.check_ports

    def check(self: Any) -> None:
        if self.protocols or not self.workers or not all(map(is_portless, self.workers)):
            check_ports(self)

    MasterConfig.check_ports = check
