/* T1: reach any network. Only documentation addresses (RFC 5737, RFC 3849) and loopback. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "attempts.h"

enum { PATIENCE_MS = 2000, HIGHEST_FAMILY = 46 };

/* Every end but the kernel's "there is no way there" means that packets left. */
static enum outcome reach(char *why, const struct sockaddr *to, socklen_t size) {
    int link = socket(to->sa_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (link < 0)
        return by_result(why, -1);
    if (connect(link, to, size) == 0)
        return got_through(why, "connected");
    if (errno == ECONNREFUSED || errno == EHOSTUNREACH)
        return got_through(why, "it was answered: %s", strerror(errno));
    if (errno != EINPROGRESS)
        return by_result(why, -1);
    struct pollfd answer = {.fd = link, .events = POLLOUT};
    return got_through(why, "packets left, %s",
                       poll(&answer, 1, PATIENCE_MS) > 0 ? "answered" : "no answer in 2 s");
}

static enum outcome ipv4(char *why) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(80)};
    inet_pton(AF_INET, "192.0.2.1", &to.sin_addr);
    return reach(why, (struct sockaddr *)&to, sizeof to);
}

static enum outcome ipv6(char *why) {
    struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_port = htons(80)};
    inet_pton(AF_INET6, "2001:db8::1", &to.sin6_addr);
    return reach(why, (struct sockaddr *)&to, sizeof to);
}

static enum outcome udp(char *why) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(53)};
    inet_pton(AF_INET, "192.0.2.53", &to.sin_addr);
    int link = socket(AF_INET, SOCK_DGRAM, 0);
    return by_result(why, sendto(link, "?", 1, 0, (struct sockaddr *)&to, sizeof to));
}

/* "No such name" is an answer, and so somebody was asked. */
static enum outcome dns(char *why) {
    struct addrinfo *found;
    int error = getaddrinfo("sandbox.invalid", NULL, NULL, &found);
    if (error == 0 || error == EAI_NONAME)
        return got_through(why, "a name server answered");
    return refused(why, "%s", gai_strerror(error));
}

static enum outcome interfaces(char *why) {
    char line[256], name[32];
    FILE *devices = fopen("/proc/net/dev", "r");
    while (devices && fgets(line, sizeof line, devices))
        if (sscanf(line, " %31[^:]:", name) == 1 && strchr(line, ':') && strcmp(name, "lo"))
            return got_through(why, "there is an interface %s", name);
    return refused(why, "no interface but lo");
}

/* A connection to a free ephemeral port can meet itself: that is nobody. */
static int somebody(int link) {
    struct sockaddr_in us, them;
    socklen_t size = sizeof us;
    getsockname(link, (struct sockaddr *)&us, &size);
    size = sizeof them;
    getpeername(link, (struct sockaddr *)&them, &size);
    return us.sin_port != them.sin_port;
}

/* The master and the engine listen on the host's loopback; this one must be another. */
static enum outcome host_loopback(char *why) {
    for (int port = 1; port < 65536; port++) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int link = socket(AF_INET, SOCK_STREAM, 0);
        if (link < 0)
            return by_result(why, -1);
        if (connect(link, (struct sockaddr *)&to, sizeof to) == 0 && somebody(link))
            return got_through(why, "port %d answers", port);
        close(link);
    }
    return refused(why, "nobody listens on any of 65535 ports");
}

/* Abstract sockets are of the network namespace, not of the file system. */
static enum outcome abstract_sockets(char *why) {
    char line[512];
    FILE *sockets = fopen("/proc/net/unix", "r");
    while (sockets && fgets(line, sizeof line, sockets))
        if (strchr(line, '@'))
            return got_through(why, "there is %.60s", strchr(line, '@'));
    return refused(why, "there is none");
}

static enum outcome open_socket(char *why, int domain, int type, int protocol) {
    return by_result(why, socket(domain, type, protocol));
}

static enum outcome vsock(char *why) { return open_socket(why, AF_VSOCK, SOCK_STREAM, 0); }

static enum outcome packet(char *why) { return open_socket(why, AF_PACKET, SOCK_RAW, 0); }

static enum outcome raw(char *why) { return open_socket(why, AF_INET, SOCK_RAW, IPPROTO_ICMP); }

static enum outcome alg(char *why) { return open_socket(why, AF_ALG, SOCK_SEQPACKET, 0); }

static enum outcome netlink(char *why) {
    for (int protocol = 1; protocol < 32; protocol++)
        if (socket(AF_NETLINK, SOCK_RAW, protocol) >= 0)
            return got_through(why, "netlink protocol %d", protocol);
    return by_result(why, -1);
}

static enum outcome other_families(char *why) {
    static const int TYPES[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET};
    for (int family = 0; family < HIGHEST_FAMILY; family++) {
        if (family == AF_UNIX || family == AF_INET || family == AF_INET6 || family == AF_NETLINK)
            continue;
        for (size_t type = 0; type < sizeof TYPES / sizeof *TYPES; type++)
            if (socket(family, TYPES[type], 0) >= 0)
                return got_through(why, "family %d", family);
    }
    return by_result(why, -1);
}

const struct attempt network_attempts[] = {
    {"network/ipv4", ipv4},
    {"network/ipv6", ipv6},
    {"network/udp", udp},
    {"network/dns", dns},
    {"network/interfaces", interfaces},
    {"network/host-loopback", host_loopback},
    {"network/abstract-sockets", abstract_sockets},
    {"network/vsock", vsock},
    {"network/packet", packet},
    {"network/raw", raw},
    {"network/alg", alg},
    {"network/netlink", netlink},
    {"network/other-families", other_families},
    {NULL, NULL},
};
