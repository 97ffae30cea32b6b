"""A download's bytes, read as their consumer takes them."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandboxworker.commands.feed import Feed, known_size


class Consumer:
    """Takes what it is given, and lets its producer wait when told to."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.producer: Any = None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        self.got += data


class Fed:
    """A feed of a file that may be shorter than it was said to be."""

    def __init__(self, content: bytes, size: int) -> None:
        self.file = io.BytesIO(content)
        self.consumer = Consumer()
        self.reads: list[int] = []
        self.given_up = False
        self.feed = Feed(size, self.read, self.give_up)

    async def read(self, most: int) -> bytes:
        self.reads.append(most)
        return self.file.read(min(most, 4))

    def give_up(self) -> None:
        self.given_up = True


def test_all_of_it_is_sent_and_not_one_byte_more() -> None:
    fed = Fed(b"0123456789 and more", 10)
    assert fed.feed.begin(fed.consumer).called
    assert fed.consumer.got == b"0123456789"
    assert fed.reads == [10, 6, 2]
    assert fed.consumer.producer is None
    assert not fed.given_up


def test_what_is_shorter_than_it_was_is_given_up() -> None:
    fed = Fed(b"01234", 10)
    caught: list[Any] = []
    fed.feed.begin(fed.consumer).addErrback(caught.append)
    assert caught[0].check(EOFError)
    assert fed.given_up
    assert fed.consumer.producer is None


def test_nothing_is_read_while_the_consumer_waits() -> None:
    fed = Fed(b"0123456789", 10)
    fed.feed.pauseProducing()
    sending = fed.feed.begin(fed.consumer)
    assert fed.consumer.got == b"0123"
    fed.consumer.producer.resumeProducing()
    assert sending.called
    assert fed.consumer.got == b"0123456789"


def test_a_consumer_that_goes_away_is_sent_no_more() -> None:
    fed = Fed(b"0123456789", 10)
    fed.feed.pauseProducing()
    sending = fed.feed.begin(fed.consumer)
    fed.consumer.producer.stopProducing()
    assert sending.called
    assert fed.consumer.got == b"0123"
    assert not fed.given_up


def test_an_error_of_the_readers_is_told() -> None:
    fed = Fed(b"", 10)

    async def fail(_most: int) -> bytes:
        raise OSError("gone")

    sending = Feed(10, fail, fed.give_up).begin(fed.consumer)
    caught: list[Any] = []
    sending.addErrback(caught.append)
    assert caught[0].check(OSError)
    assert fed.given_up


def reader(file: Any) -> Any:
    return SimpleNamespace(impl=SimpleNamespace(fp=file))


def test_the_size_is_known_of_a_regular_file_from_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        assert known_size(reader(file)) == 10
        file.read(3)
        assert known_size(reader(file)) == 7


@pytest.mark.parametrize("file", [io.BytesIO(b"text"), None], ids=["in memory", "closed"])
def test_the_size_of_anything_else_is_not_known(file: Any) -> None:
    assert known_size(reader(file)) is None
    assert known_size(object()) is None
