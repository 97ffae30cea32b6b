"""What the engine takes when nobody but a few lines of Python asks it: the limit of every ratio."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from masters import IMAGE

from sandboxworker.policy import SandboxPolicy
from sandboxworker.seccomp import load
from sandboxworker.spec import Identity, ImageFacts, build_spec, create_body

BLOCK = 1 << 20
_USER = "20500:20500"


def _body(client: Any, **policy: Any) -> dict[str, Any]:
    """The create request of a sandbox, but that the engine makes its files in /etc."""
    facts = ImageFacts(IMAGE, client.inspect_image(IMAGE)["Id"])
    spec = build_spec(SandboxPolicy(IMAGE, **policy), facts, load("build"))
    # Without a network of the engine's, as sandboxes are.
    return create_body(spec, Identity("", 20500, 20500)) | {"NetworkDisabled": True}


@contextlib.contextmanager
def _container(client: Any, body: dict[str, Any]) -> Iterator[str]:
    container = client.create_container_from_config(body)["Id"]
    try:
        keeper = client.attach_socket(container, params={"stdin": 1, "stream": 1})
        client.start(container)
        yield container
        keeper.close()
    finally:
        client.remove_container(container, force=True)


def _exec(client: Any, container: str, argv: list[str]) -> Any:
    """The raw socket of a command's streams."""
    made = client.exec_create(container, argv, stdin=True, user=_USER)["Id"]
    return client.exec_start(made, socket=True)


def transfer(client: Any, megabytes: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds for so much into a container by an exec's stdin, and out by its stdout."""
    downs, ups = [], []
    size = megabytes * 1_000_000
    with _container(client, _body(client, disk="600m", memory="512m")) as container:
        for _ in range(rounds):
            begin = time.monotonic()
            _send(_exec(client, container, ["sh", "-c", f"head -c {size} >/build/big"]), size)
            downs.append(time.monotonic() - begin)
            begin = time.monotonic()
            _drain(_exec(client, container, ["cat", "/build/big"]))
            ups.append(time.monotonic() - begin)
    return downs, ups


def _send(stream: Any, size: int) -> None:
    block = os.urandom(BLOCK)
    while size > 0:
        stream._sock.sendall(block[:size])
        size -= BLOCK
    _drain(stream)


def _drain(stream: Any) -> None:
    buffer = bytearray(BLOCK)
    while stream._sock.recv_into(buffer):
        pass
    stream.close()


def containers_a_minute(client: Any, count: int, together: int = 4) -> float:
    """Sandboxes' containers that are created, started, entered once and removed."""
    body = _body(client, memory="64m", disk="16m", tmp="16m", shm="8m")

    def live(_: int) -> None:
        with _container(client, body) as container:
            _drain(_exec(client, container, ["true"]))

    begin = time.monotonic()
    with ThreadPoolExecutor(together) as pool:
        list(pool.map(live, range(count)))
    return 60 * count / (time.monotonic() - begin)
