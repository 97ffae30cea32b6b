"""T1: reach a network, the host's loopback, or another machine's kernel code for sockets."""

from __future__ import annotations

from escapes.attempt import Attempt, Otherwise, got_through, hostile, python

_UNREACHABLE = "Network is unreachable"
_NO_ROUTE = "the network of gVisor's own says at once that there is no way there; no packet leaves"
_OWN_NETWORK = Otherwise("EHOSTUNREACH|ENETUNREACH")


def _socket(name: str, what: str, arguments: str, told: str, *gvisor: Otherwise) -> Attempt:
    code = f"tell(lambda: socket.socket({arguments}))"
    return Attempt(f"T1-{name}", what, python(code), told, *gvisor)


ATTEMPTS = (
    hostile("T1", "network/ipv4", "connect to a machine by IPv4", _UNREACHABLE, got_through(
        "network/ipv4", "it was answered: No route to host", _NO_ROUTE), brief=True),
    hostile("T1", "network/ipv6", "connect to a machine by IPv6", _UNREACHABLE, got_through(
        "network/ipv6", "it was answered: No route to host", _NO_ROUTE), brief=True),
    hostile("T1", "network/udp", "send a datagram", _UNREACHABLE, Otherwise("No route to host"),
            brief=True),
    hostile("T1", "network/dns", "ask a name server", "Temporary failure in name resolution",
            brief=True),
    hostile("T1", "network/interfaces", "find an interface", "no interface but lo", brief=True),
    hostile("T1", "network/abstract-sockets", "find an abstract socket", "there is none"),
    hostile("T1", "network/vsock", "open a vsock", "Address family not supported by protocol"),
    hostile("T1", "network/packet", "open a packet socket",
            "Address family not supported by protocol", Otherwise("Operation not permitted")),
    hostile("T1", "network/raw", "open a raw socket", "Operation not permitted"),
    hostile("T1", "network/alg", "open a socket to the kernel's ciphers",
            "Address family not supported by protocol"),
    hostile("T1", "network/netlink", "open netlink beyond routing", "Operation not permitted",
            got_through("network/netlink", "netlink protocol 15",
                        "gVisor's kernel knows routing and uevents, and its uevents are empty")),
    hostile("T1", "network/other-families", "open sockets of 40 other families",
            "Address family not supported by protocol"),
    Attempt("T1-host-loopback", "connect to what listens on the host's 127.0.0.1", python(
        "tell(connect, socket.AF_INET, ('127.0.0.1', FACTS['port']))"), "ECONNREFUSED",
        brief=True),
    Attempt("T1-host-loopback-v6", "connect to what listens on the host's ::1", python(
        "tell(connect, socket.AF_INET6, ('::1', FACTS['port_v6']))"),
        "ECONNREFUSED"),
    Attempt("T1-host-addresses", "connect to the host by its own addresses", python(
        "tell_all(lambda a: connect(socket.AF_INET, (a, FACTS['port'])), FACTS['addresses'])"),
        "ENETUNREACH", _OWN_NETWORK),
    Attempt("T1-abstract-socket", "connect to an abstract socket of the host", python(
        "tell(connect, socket.AF_UNIX, chr(0) + FACTS['abstract'])"), "ECONNREFUSED", brief=True),
    Attempt("T1-metadata", "ask the cloud's metadata service", python(
        "tell(connect, socket.AF_INET, ('169.254.169.254', 80))"), "ENETUNREACH", _OWN_NETWORK,
        brief=True),
    Attempt("T1-link-local", "reach a neighbour on the link by IPv6", python(
        "tell(connect, socket.AF_INET6, ('fe80::1', 80, 0, 1))"),
        "ENETUNREACH|EADDRNOTAVAIL|EINVAL|EHOSTUNREACH", Otherwise(
            "timed out", "nobody answers on gVisor's own loopback; no packet leaves")),
    Attempt("T1-multicast", "send to every machine on the link", python(
        "link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "tell(link.sendto, b'?', ('224.0.0.1', 5353))"), "ENETUNREACH", _OWN_NETWORK),
    Attempt("T1-broadcast", "broadcast", python(
        "link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "link.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n"
        "tell(link.sendto, b'?', ('255.255.255.255', 67))"), "ENETUNREACH", _OWN_NETWORK),
    _socket("sctp", "open an SCTP socket", "2, 1, 132", "EPERM",
            Otherwise("EPROTONOSUPPORT|EINVAL")),
    _socket("dccp", "open a DCCP socket", "2, 6, 33", "EPERM", Otherwise("EPROTONOSUPPORT|EINVAL")),
    _socket("mptcp", "open an MPTCP socket", "2, 1, 262", "EPERM",
            Otherwise("EPROTONOSUPPORT|EINVAL")),
    _socket("udplite", "open a UDP-Lite socket", "2, 2, 136", "EPERM",
            Otherwise("EPROTONOSUPPORT")),
    _socket("ping", "open a ping socket", "2, 2, 1", "EPERM", Otherwise(
        r"DONE <socket.*>", "the socket is of gVisor's own network, which has loopback alone")),
    Attempt("T1-tipc-pair", "get a TIPC socket as a pair", python(
        "tell(socket.socketpair, 30, socket.SOCK_STREAM)"), "EAFNOSUPPORT"),
    Attempt("T1-new-interface", "make a network interface", python(
        "name = struct.pack('=HH', 8, 3) + b'x0' + bytes(2)\n"
        "kind = struct.pack('=HH', 16, 18) + struct.pack('=HH', 9, 1) + b'dummy' + bytes(3)\n"
        "tell(netlink, 16, bytes(16) + name + kind)"), "EPERM", Otherwise("EACCES")),
    Attempt("T1-new-address", "give the loopback another address", python(
        "tell(netlink, 20, struct.pack('=BBBBI', 2, 8, 0, 0, 1)"
        " + struct.pack('=HH', 8, 2) + bytes([10, 0, 0, 1]))"), "EPERM",
        Otherwise("EPERM|EACCES|EOPNOTSUPP")),
    Attempt("T1-new-route", "add a default route", python(
        "tell(netlink, 24, struct.pack('=BBBBBBBBI', 2, 0, 0, 0, 254, 3, 0, 1, 0)"
        " + struct.pack('=HHI', 8, 4, 1))"), "EPERM", Otherwise("EACCES")),
    Attempt("T1-interface-flags", "change an interface by ioctl", python(
        "import fcntl\nlink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "tell(fcntl.ioctl, link, 0x8914, struct.pack('16sH14x', b'lo', 0))"), "EPERM",
        Otherwise("EPERM|EINVAL|ENOTTY")),
    Attempt("T1-tunnel", "open a tunnel device", python("tell(os.open, '/dev/net/tun', os.O_RDWR)"),
            "ENOENT", Otherwise(
                "ENOENT|EACCES|EPERM|DONE .*",
                "gVisor has the device, and a tunnel needs a capability to be set up")),
    Attempt("T1-bind-to-device", "bind a socket to the host's interface", python(
        "link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "tell(link.setsockopt, socket.SOL_SOCKET, 25, b'eth0')"), "ENODEV"),
)  # fmt: skip
