"""A service that a reconfigure compares with what it was last given, not with what it was made by.

Buildbot compares a new configuration with the arguments of the service's making.
So a policy that was loosened and then made as strict again would stay loose until a restart.
"""

from __future__ import annotations

from typing import Any

from buildbot.util.service import BuildbotService
from twisted.internet import defer


class Reconfigured(BuildbotService):
    """Mixed in before a `BuildbotService`: remembers the arguments that hold."""

    @defer.inlineCallbacks
    def reconfigServiceWithSibling(self, sibling: Any) -> Any:
        yield super().reconfigServiceWithSibling(sibling)
        self._config_args = sibling._config_args
        self._config_kwargs = sibling._config_kwargs
