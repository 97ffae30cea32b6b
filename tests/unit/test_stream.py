"""Attach and exec streams: the upgrade, the frames, the end, back-pressure."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_engine import Recorder
from twisted.internet import error
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from sandboxworker.engine.interface import STDERR, STDOUT
from sandboxworker.engine.stream import EngineStream, upgrade_request
from sandboxworker.errors import EngineError, EngineRefused, EngineUnreachable

HEAD = (
    b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
    b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
)
HEAD_OF_HIJACK = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"


def frame(channel: int, data: bytes) -> bytes:
    return struct.pack(">BxxxI", channel, len(data)) + data


FRAMES = frame(STDOUT, b"out") + frame(STDERR, b"err") + frame(STDOUT, b"") + frame(STDOUT, b"more")


class Opened:
    """A stream on a transport in memory, and all that came of it."""

    def __init__(self, *, tty: bool = False) -> None:
        self.receiver = Recorder()
        self.stream = EngineStream("engine", "start exec", b"REQUEST", self.receiver, tty=tty)
        self.transport = StringTransport()
        self.outcome: list[Any] = []
        self.stream.opened.addBoth(self.outcome.append)
        self.stream.makeConnection(self.transport)

    @property
    def failure(self) -> Exception:
        (outcome,) = self.outcome
        assert isinstance(outcome, Failure)
        assert isinstance(outcome.value, EngineError)
        return outcome.value

    def receive(self, data: bytes, size: int | None = None) -> Opened:
        for at in range(0, len(data), size or len(data) or 1):
            self.stream.dataReceived(data[at : at + (size or len(data))])
        return self

    def close(self, reason: Exception | None = None) -> Opened:
        self.stream.connectionLost(Failure(reason or error.ConnectionDone()))
        return self


# ---- the request -------------------------------------------------------------------------------


def test_request_is_an_upgrade_with_the_body_as_json() -> None:
    head, _, body = upgrade_request("/exec/1/start", "docker", {"Tty": False}).partition(
        b"\r\n\r\n"
    )
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /exec/1/start HTTP/1.1"
    assert {b"Connection: Upgrade", b"Upgrade: tcp", b"Host: docker"} <= set(lines)
    assert f"Content-Length: {len(body)}".encode() in lines
    assert json.loads(body) == {"Tty": False}


def test_request_without_a_body_says_so() -> None:
    request = upgrade_request("/containers/1/attach", "docker", None)
    assert b"Content-Length: 0\r\n" in request
    assert request.endswith(b"\r\n\r\n")


def test_request_is_sent_on_connection_and_nothing_is_open_yet() -> None:
    opened = Opened()
    assert opened.transport.value() == b"REQUEST"
    assert opened.outcome == []


# ---- the head ----------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [HEAD, HEAD_OF_HIJACK])
def test_answer_may_be_cut_anywhere(head: bytes) -> None:
    answer = head + FRAMES
    for at in range(1, len(answer)):
        opened = Opened().receive(answer[:at]).receive(answer[at:]).close()
        heard = opened.receiver
        assert opened.outcome == [opened.stream], at
        assert (heard.stdout, heard.stderr, heard.ends) == (b"outmore", b"err", [None]), at


def test_answer_may_come_byte_by_byte() -> None:
    opened = Opened().receive(HEAD + FRAMES, size=1)
    assert opened.receiver.stdout == b"outmore"
    assert opened.receiver.stderr == b"err"


def test_it_is_open_before_bytes_that_came_with_the_head_are_given() -> None:
    opened = Opened()
    heard_at_opening = []
    opened.stream.opened.addCallback(lambda _: heard_at_opening.append(opened.receiver.stdout))
    opened.receive(HEAD + FRAMES)
    assert heard_at_opening == [b""]
    assert opened.receiver.stdout == b"outmore"


def refusal(status: str, message: str) -> bytes:
    body = json.dumps({"message": message}).encode() + b"\n"
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("size", [None, 1, 7])
def test_refusal_carries_status_and_the_engines_words(size: int | None) -> None:
    opened = Opened().receive(refusal("409 Conflict", "container 1 is not running"), size)
    failure = opened.failure
    assert isinstance(failure, EngineRefused)
    assert (failure.call, failure.status) == ("start exec", 409)
    assert failure.message == "container 1 is not running"
    assert opened.transport.disconnecting or opened.transport.disconnected
    assert opened.receiver.ends == []


@pytest.mark.parametrize("size", [None, 1])
def test_refusal_may_be_chunked(size: int | None) -> None:
    body = b'{"message":"no such exec"}'
    answer = (
        b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n"
        + f"{len(body):x}".encode() + b"\r\n" + body + b"\r\n0\r\n\r\n"
    )  # fmt: skip
    failure = Opened().receive(answer, size).failure
    assert isinstance(failure, EngineRefused)
    assert (failure.status, failure.message) == (404, "no such exec")


def test_refusal_without_json_is_told_as_it_is() -> None:
    failure = Opened().receive(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nbusy").failure
    assert isinstance(failure, EngineRefused)
    assert (failure.status, failure.message) == (502, "busy")


def test_refusal_without_a_body_says_that_there_is_no_reason() -> None:
    failure = Opened().receive(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").failure
    assert isinstance(failure, EngineRefused)
    assert (failure.status, failure.message) == (500, "no reason given")


def test_refusal_that_ends_with_the_connection_keeps_status_and_reason() -> None:
    answer = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
    failure = Opened().receive(answer).close().failure
    assert isinstance(failure, EngineRefused)
    assert failure.status == 400
    assert "HTTPS server" in failure.message


@pytest.mark.parametrize("answer", [b"x" * 100_000, b"SSH-2.0-server\r\n\r\n" + b"x" * 100_000])
def test_endless_answer_that_is_no_http_is_refused(answer: bytes) -> None:
    opened = Opened().receive(answer, size=4096)
    assert isinstance(opened.failure, EngineRefused)
    assert opened.transport.disconnecting or opened.transport.disconnected


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101", HEAD[:-1], b"\x15\x03\x01\x00\x02"])
def test_connection_closed_before_the_answer_is_whole_is_an_unreachable_engine(
    answer: bytes,
) -> None:
    opened = Opened().receive(answer).close()
    assert isinstance(opened.failure, EngineUnreachable)
    assert "start exec" in str(opened.failure)
    assert opened.receiver.ends == []


# ---- frames ------------------------------------------------------------------------------------

frames = st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=40)), max_size=10)


@given(frames, st.lists(st.integers(0, 300), max_size=20))
def test_frames_are_told_apart_however_they_arrive(
    sent: list[tuple[int, bytes]], at: list[int]
) -> None:
    data = HEAD + b"".join(frame(*each) for each in sent)
    opened = Opened()
    places = sorted({0, len(data), *(place for place in at if place < len(data))})
    for begin, end in pairwise(places):
        opened.receive(data[begin:end])
    opened.close()
    assert opened.receiver.stdout == b"".join(part for channel, part in sent if channel == STDOUT)
    assert opened.receiver.stderr == b"".join(part for channel, part in sent if channel == STDERR)
    assert opened.receiver.ends == [None]


def test_large_frame_is_given_as_it_comes_and_not_kept() -> None:
    opened = Opened().receive(HEAD + struct.pack(">BxxxI", STDOUT, 10_000_000))
    for count in range(1, 1001):
        opened.receive(b"x" * 10_000)
        assert len(opened.receiver.output[STDOUT]) == count * 10_000
        assert len(opened.stream._buffer) == 0
    assert opened.close().receiver.ends == [None]


@pytest.mark.parametrize("size", [None, 1])
def test_terminal_is_raw(size: int | None) -> None:
    opened = Opened(tty=True).receive(HEAD + FRAMES, size).close()
    assert opened.receiver.stdout == FRAMES
    assert opened.receiver.stderr == b""


# ---- the end -----------------------------------------------------------------------------------

_BOUNDARIES = {0, 11, 22, 30, 42}


def test_stream_cut_inside_a_frame_is_no_clean_end() -> None:
    ends = {
        length: Opened().receive(HEAD + FRAMES[:length]).close().receiver.ends
        for length in range(len(FRAMES) + 1)
    }
    assert all(len(each) == 1 for each in ends.values())
    assert {length for length, (end,) in ends.items() if end is None} == _BOUNDARIES


def test_lost_connection_is_no_clean_end() -> None:
    lost = error.ConnectionLost("reset")
    assert Opened().receive(HEAD + FRAMES).close(lost).receiver.ends == [lost]


def test_what_is_no_frame_ends_the_stream_and_nothing_of_it_is_given() -> None:
    garbage = b"HTTP/1.1 500 Internal Server Error\r\n\r\n"
    opened = Opened().receive(HEAD + frame(STDOUT, b"good") + garbage)
    opened.close()
    assert opened.receiver.stdout == b"good"
    assert [type(end) for end in opened.receiver.ends] == [error.ConnectionLost]
    assert opened.transport.disconnecting or opened.transport.disconnected


def test_end_is_told_once() -> None:
    assert Opened().receive(HEAD).close().close().receiver.ends == [None]


def test_aborted_stream_says_nothing_more() -> None:
    opened = Opened().receive(HEAD + FRAMES[:5])
    opened.stream.abort()
    opened.receive(FRAMES[5:]).close()
    assert opened.receiver.stdout == b""
    assert opened.receiver.ends == []
    opened.stream.abort()


def test_receiver_may_abort_while_it_is_given_bytes() -> None:
    opened = Opened()
    opened.receiver.on_data = lambda *_: opened.stream.abort()
    opened.receive(HEAD + FRAMES).close()
    assert opened.receiver.stdout == b"out"
    assert opened.receiver.stderr == b""
    assert opened.receiver.ends == []


def test_giving_up_the_opening_closes_the_connection() -> None:
    opened = Opened()
    opened.stream.opened.cancel()
    assert opened.transport.disconnecting or opened.transport.disconnected


# ---- our side ----------------------------------------------------------------------------------


def test_what_is_written_goes_to_the_process() -> None:
    opened = Opened().receive(HEAD)
    opened.transport.clear()
    opened.stream.write(b"input")
    assert opened.transport.value() == b"input"


def test_pause_stops_reading_and_resume_goes_on() -> None:
    opened = Opened().receive(HEAD)
    opened.stream.pause()
    assert opened.transport.producerState == "paused"
    opened.stream.resume()
    assert opened.transport.producerState == "producing"


def test_producer_of_input_is_registered_with_the_connection() -> None:
    opened, producer = Opened().receive(HEAD), object()
    opened.stream.register_producer(producer, True)
    assert opened.transport.producer is producer
    opened.stream.unregister_producer()
    assert opened.transport.producer is None
