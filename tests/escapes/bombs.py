"""What a hostile build can pile up, each until something says no: T6 to T10."""

from __future__ import annotations

import attrs

#: Limits of the sandbox that a bomb goes off in.
LIMITS = {
    "cpus": 1, "memory": "128m", "pids": 128, "disk": "64m", "disk_inodes": 5000, "tmp": "32m",
    "shm": "16m", "nofile": 1024, "max_runtime": "5m",
}  # fmt: skip

_STAY = "\nimport time; print(flush=True); time.sleep(600)"


@attrs.frozen
class Bomb:
    """``told``: a pattern for what it says of how far it got; "" where it is killed before;
    ``ends_sandbox``: whether its sandbox goes with it under cgroup v1."""

    id: str
    row: str
    what: str
    argv: tuple[str, ...]
    told: str = ""
    ends_sandbox: bool = False


def _python(code: str) -> tuple[str, ...]:
    return ("python3", "-c", f"import os, errno\n{code}")


def _until_refused(make: str, most: int = 1_000_000) -> tuple[str, ...]:
    """A Python program that makes one thing after another and holds them all."""
    return _python(
        "held = []\n"
        "try:\n"
        f"    while len(held) < {most}:\n"
        f"        held.append({make})\n"
        "except (OSError, RuntimeError) as error:\n"
        "    print(errno.errorcode.get(getattr(error, 'errno', 0), error), end='')" + _STAY
    )


def _fill(*places: str) -> tuple[str, ...]:
    lines = "; ".join(f"head -c 1G /dev/zero 2>&1 >{place}/full | tail -c 24" for place in places)
    return ("sh", "-c", f"{lines}; sleep 600")


_NO_SPACE = r"(No space left on device\n)+"

BOMBS = (
    Bomb("fork", "T6", "processes without end", _python(
        "while True:\n    try: os.fork()\n    except OSError: pass")),
    Bomb("deaf", "T6", "processes in sessions of their own, deaf to signals", _python(
        "import signal\n"
        "for number in range(1, 32):\n"
        "    if number not in (9, 19): signal.signal(number, signal.SIG_IGN)\n"
        "while True:\n    try: os.fork() or os.setsid()\n    except OSError: pass")),
    Bomb("threads", "T6", "threads without end", _python(
        "import threading, time\n"
        "def stay(): time.sleep(600)\n"
        "try:\n"
        "    while True: threading.Thread(target=stay, daemon=True).start()\n"
        "except RuntimeError as error: print(error, end='')" + _STAY), "can't start new thread\n"),
    Bomb("memory", "T7", "memory without end", _python(
        "while True:\n"
        "    if os.fork() == 0:\n"
        "        held = []\n"
        "        while True: held.append(bytearray(1 << 20))\n"
        "    os.wait()")),
    Bomb("files-in-memory", "T7", "files in every place that is in memory",
         _fill("/tmp", "/dev/shm", "/build"), _NO_SPACE),
    Bomb("page-cache", "T7", "all of the image's files, read over and over", (
        "sh", "-c", "while :; do find /usr /bin /lib -type f -exec cat {} + >/dev/null; done")),
    Bomb("shared-memory", "T7", "System V shared memory, written to", _python(
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_void_p\n"
        "while True:\n"
        "    if os.fork() == 0:\n"
        "        while True:\n"
        "            one = libc.shmget(0, 8 << 20, 0o1600)\n"
        "            if one >= 0: ctypes.memset(libc.shmat(one, None, 0), 1, 8 << 20)\n"
        "    os.wait()")),
    Bomb("names", "T7", "the kernel's memory of names that do not exist", _python(
        "number = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    os.path.lexists(f'/build/{number:0200}')")),
    Bomb("descriptors", "T7", "pipes, filled", _until_refused(
        "[p := os.pipe(), os.set_blocking(p[1], False), os.write(p[1], bytes(65536))]"),
        "EMFILE\n|EAGAIN\n|ENFILE\n"),
    Bomb("timers", "T7", "watchers and event counters", _until_refused("os.eventfd(1)"),
         "EMFILE\n"),
    Bomb("sockets", "T7", "connections to themselves of 40 processes, never read", _python(
        "import socket, time\n"
        "for _ in range(40):\n"
        "    if os.fork() == 0: break\n"
        "else: time.sleep(600)\n"
        "server = socket.create_server(('127.0.0.1', 0), backlog=1000)\n"
        "held = []\n"
        "try:\n"
        "    while True:\n"
        "        one = socket.create_connection(server.getsockname(), 5)\n"
        "        other = server.accept()[0]\n"
        "        held += [one, other]\n"
        "        for end in (one, other):\n"
        "            end.setblocking(False)\n"
        "            try:\n"
        "                while end.send(bytes(1 << 20)): pass\n"
        "            except BlockingIOError: pass\n"
        "except OSError: time.sleep(600)"), ends_sandbox=True),
    Bomb("datagrams", "T7", "datagrams to themselves of 40 processes, never read", _python(
        "import socket, time\n"
        "for _ in range(40):\n"
        "    if os.fork() == 0: break\n"
        "else: time.sleep(600)\n"
        "sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "sender.setblocking(False)\n"
        "held = []\n"
        "while len(held) < 900:\n"
        "    held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))\n"
        "    held[-1].bind(('127.0.0.1', 0))\n"
        "    try:\n"
        "        for _ in range(100): sender.sendto(bytes(60000), held[-1].getsockname())\n"
        "    except OSError: pass\n"
        "time.sleep(600)")),
    Bomb("terminals", "T7", "terminals", _until_refused("os.open('/dev/ptmx', os.O_RDWR)"),
         "EMFILE\n|ENOSPC\n"),
    Bomb("inodes", "T8", "empty files without end", _python(
        "number = 0\n"
        "try:\n"
        "    while True:\n"
        "        number += 1\n"
        "        os.close(os.open(f'/build/{number}', os.O_CREAT | os.O_WRONLY))\n"
        "except OSError as error: print(errno.errorcode[error.errno], end='')" + _STAY),
        "ENOSPC\n"),
    Bomb("processors", "T9", "busy loops on every processor, four times", (
        "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait")),
    Bomb("log", "T10", "output without end", ("yes", "flood")),
)  # fmt: skip
