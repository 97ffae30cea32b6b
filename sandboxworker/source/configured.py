"""Whether a step's repository is the configuration's own choice, or what a change says."""

from __future__ import annotations

from typing import Any

from buildbot.util.git import scp_style_to_url_syntax

from sandboxworker.errors import SourceRefused
from sandboxworker.source.urls import Repository, read


def is_configured(step: Any, repository: Repository) -> bool:
    """Whether ``repourl`` stands in ``master.cfg`` as plain text, and is this repository.

    A rendered one may come from a webhook's payload, and some steps put a fork's in its place:
    with such a URL a stranger would choose whom the master connects to, and logs in to (T19).
    """
    written = step.get_step_factory().buildStep().repourl
    if not isinstance(written, str):
        return False
    try:
        return read(scp_style_to_url_syntax(written, step.port)).repository == repository
    except (SourceRefused, ValueError):
        return False
