"""Gitea's and Forgejo's webhook: each call is signed, and a pull request is told by its own ref.

A refusal is an HTTP 400, and nothing of the call is used.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

from buildbot.process.properties import Properties
from buildbot.www.hooks.base import BaseHookHandler
from twisted.internet import defer

#: Actions of a pull request after which there is something new to build.
_NEWS = ("opened", "reopened", "synchronized")


class GiteaHook(BaseHookHandler):
    """``change_hook_dialects={"gitea": {"custom_class": GiteaHook, "secret": …}}``."""

    @defer.inlineCallbacks
    def getChanges(self, request: Any) -> Any:
        content = request.content.read()
        secret = yield self._secret()
        told = request.getHeader("X-Gitea-Signature") or ""
        right = hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(right.encode(), told.encode("utf-8", "replace")):
            raise ValueError("the signature is missing or wrong")
        payload = json.loads(content)
        event = request.getHeader("X-Gitea-Event")
        if event == "pull_request" and payload["action"] in _NEWS:
            return [_pull_request(payload)], "git"
        if event == "push" and payload["ref"].startswith("refs/heads/") and payload["commits"]:
            return [_push(payload)], "git"
        return [], "git"

    @defer.inlineCallbacks
    def _secret(self) -> Any:
        properties = Properties()
        properties.master = self.master
        secret = yield properties.render(self.options["secret"])
        if not secret:  # Or everybody could sign.
            raise ValueError("this webhook has no secret")
        return secret


def _pull_request(payload: dict[str, Any]) -> dict[str, Any]:
    request = payload["pull_request"]
    return {
        "category": "pull",
        "branch": f"refs/pull/{int(payload['number'])}/head",
        "revision": request["head"]["sha"],
        "author": request["user"]["login"],
        "comments": request["title"],
        "revlink": request["html_url"],
        "repository": request["base"]["repo"]["clone_url"],
        "project": payload["repository"]["full_name"],
    }


def _push(payload: dict[str, Any]) -> dict[str, Any]:
    commit = payload["commits"][0]
    return {
        "category": "push",
        "branch": payload["ref"].removeprefix("refs/heads/"),
        "revision": payload["after"],
        "author": payload["pusher"]["login"],
        "comments": commit["message"],
        "revlink": commit["url"],
        "repository": payload["repository"]["clone_url"],
        "project": payload["repository"]["full_name"],
    }
