"""One piece of work that several wait for."""

from __future__ import annotations

from twisted.internet import defer


def follow(leader: defer.Deferred[Exception | None]) -> defer.Deferred[None]:
    """A Deferred of one's own that ends as ``leader`` does; there may be many of them."""
    follower: defer.Deferred[None] = defer.Deferred()

    def tell(error: Exception | None) -> Exception | None:
        follower.callback(None) if error is None else follower.errback(error)
        return error

    leader.addCallback(tell)
    return follower
