"""What the hostile programs share; copied into the sandbox and imported there, never by tests."""

import ctypes
import errno
import json
import os
import platform
import socket
import struct
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
#: What an attacker may know of the world outside.
FACTS = json.loads(Path(__file__).with_name("facts.json").read_text())
_NUMBERS = {
    "x86_64": {"vmsplice": 278, "ioprio_set": 251, "setfsuid": 122, "mq_open": 240},
    "aarch64": {"vmsplice": 75, "ioprio_set": 30, "setfsuid": 151, "mq_open": 180},
}


def check(result):
    """What a C function returned, or its errno as an exception."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def call(name, *arguments):
    """A system call by its name."""
    return check(libc.syscall(_NUMBERS[platform.machine()][name], *arguments))


def prctl(*arguments):
    return check(libc.prctl(*map(ctypes.c_ulong, (*arguments, 0, 0, 0, 0)[:5])))


def tell(function, *arguments):
    """Say how it failed, or that it did not."""
    try:
        result = function(*arguments)
    except OSError as error:
        print(errno.errorcode.get(error.errno, error))
    except ValueError as error:
        print(error)
    else:
        print("DONE", result)


def tell_all(function, things):
    """Say each way of failing once, and each success."""
    print(*sorted({_way(function, thing) for thing in things}))


def _way(function, thing):
    try:
        return f"DONE {thing} {function(thing)}"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def connect(family, address, kind=socket.SOCK_STREAM):
    link = socket.socket(family, kind)
    link.settimeout(5)
    link.connect(address)
    return link


def netlink(kind, body, flags=0x1 | 0x4 | 0x400):
    """One routing message; its answer's error as an exception. Flags: request, ack, create."""
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    link.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
    answer = link.recv(4096)
    number = -struct.unpack_from("=i", answer, 16)[0]
    if number:
        raise OSError(number, os.strerror(number))
    return "acknowledged"


def write(path, text):
    with open(path, "r+" if os.path.exists(path) else "w") as file:
        file.write(text)
        file.flush()
    return path


def processes():
    """The pids that /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
