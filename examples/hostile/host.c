/* T2, T5: the engine's sockets, the host's files and devices, everything that is not ours. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include "attempts.h"

enum { OPEN_FILES = 64, ENDED = 1 };

static int connects(const char *path) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    snprintf(to.sun_path, sizeof to.sun_path, "%s", path);
    int link = socket(AF_UNIX, SOCK_STREAM, 0);
    int result = connect(link, (struct sockaddr *)&to, sizeof to);
    close(link);
    return result == 0;
}

static enum outcome engine_sockets(char *why) {
    static const char *const PATHS[] = {
        "/var/run/docker.sock",           "/run/docker.sock",
        "/run/containerd/containerd.sock", "/run/podman/podman.sock",
        "/run/crio/crio.sock",            "/run/systemd/private",
        "/run/dbus/system_bus_socket",    NULL,
    };
    int count = 0;
    for (; PATHS[count]; count++)
        if (connects(PATHS[count]))
            return got_through(why, "connected to %s", PATHS[count]);
    return refused(why, "%d paths: %s", count, strerror(errno));
}

/* What a walk over the file system found; the first is enough. */
static char found[WHY / 2];

static int is_below(const char *path, const char *const *places) {
    for (; *places; places++) {
        size_t size = strlen(*places);
        if (strncmp(path, *places, size) == 0 && (path[size] == '\0' || path[size] == '/'))
            return 1;
    }
    return 0;
}

static int note(const char *path) {
    snprintf(found, sizeof found, "%s", path);
    return ENDED;
}

static int if_socket(const char *path, const struct stat *facts, int kind, struct FTW *at) {
    (void)at;
    return kind == FTW_F && S_ISSOCK(facts->st_mode) && connects(path) ? note(path) : 0;
}

static enum outcome any_socket(char *why) {
    nftw("/", if_socket, OPEN_FILES, FTW_PHYS);
    return *found ? got_through(why, "connected to %s", found)
                  : refused(why, "no socket anywhere answers");
}

/* The kernel's own file systems have attempts of their own. */
static int if_writable(const char *path, const struct stat *facts, int kind, struct FTW *at) {
    static const char *const OURS[] = {
        "/build", "/tmp", "/dev/shm", "/run/secrets", "/proc", "/sys", NULL,
    };
    char file[512];
    (void)facts, (void)at;
    if (kind != FTW_D || is_below(path, OURS))
        return 0;
    snprintf(file, sizeof file, "%s/planted", path);
    int made = open(file, O_CREAT | O_WRONLY | O_EXCL, 0600);
    if (made < 0)
        return 0;
    close(made);
    unlink(file);
    return note(path);
}

static enum outcome writable_places(char *why) {
    nftw("/", if_writable, OPEN_FILES, FTW_PHYS);
    return *found ? got_through(why, "a file in %s", found)
                  : refused(why, "nowhere outside the workspace, /tmp and /dev/shm");
}

static enum outcome system_files(char *why) {
    static const char *const PATHS[] = {
        "/etc/passwd", "/etc/shadow", "/etc/resolv.conf", "/etc/hosts", "/etc/ld.so.preload",
        "/bin/sh",     "/usr/bin/make", "/root/.profile", "/.dockerenv", NULL,
    };
    return open_any(why, PATHS, O_WRONLY | O_CREAT);
}

static enum outcome kernel_settings(char *why) {
    static const char *const PATHS[] = {
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/overcommit_memory", "/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger",
        "/proc/sys/fs/binfmt_misc/register", NULL,
    };
    return open_any(why, PATHS, O_WRONLY);
}

static enum outcome sys_files(char *why) {
    static const char *const PATHS[] = {
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
        "/sys/module/kernel/parameters/panic",
        NULL,
    };
    return open_any(why, PATHS, O_WRONLY);
}

static enum outcome cgroup_limits(char *why) {
    static const char *const PATHS[] = {
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/pids.max",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/pids/pids.max",
        "/sys/fs/cgroup/devices/devices.allow",
        "/sys/fs/cgroup/memory/release_agent",
        NULL,
    };
    return open_any(why, PATHS, O_WRONLY);
}

static int is_harmless(const char *name) {
    static const char *const NAMES[] = {
        "null", "zero", "full", "random", "urandom", "tty", "ptmx", "console", NULL,
    };
    for (const char *const *one = NAMES; *one; one++)
        if (strcmp(name, *one) == 0)
            return 1;
    return 0;
}

/* Whatever the engine put into /dev beyond what every program needs. */
static enum outcome present_devices(char *why) {
    char path[512];
    struct stat facts;
    struct dirent *entry;
    DIR *devices = opendir("/dev");
    while (devices && (entry = readdir(devices))) {
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        if (lstat(path, &facts) || !(S_ISBLK(facts.st_mode) || S_ISCHR(facts.st_mode)))
            continue;
        if (!is_harmless(entry->d_name) && open(path, O_RDONLY | O_NONBLOCK) >= 0)
            return got_through(why, "opened %s", path);
    }
    return refused(why, "none but null, zero, full, random, urandom, tty");
}

static enum outcome make_devices(char *why) {
    if (mknod("disk", S_IFBLK | 0600, makedev(254, 0)) == 0)
        return got_through(why, "made a disk");
    if (mknod("/tmp/mem", S_IFCHR | 0600, makedev(1, 1)) == 0)
        return got_through(why, "made the memory's device");
    return by_result(why, -1);
}

static enum outcome kernel_memory(char *why) {
    static const char *const PATHS[] = {
        "/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/kmem", "/dev/kmsg", "/dev/port", NULL,
    };
    return read_any(why, PATHS);
}

/* What tells about the machine and its other tenants. */
static enum outcome host_facts(char *why) {
    static const char *const PATHS[] = {
        "/proc/keys",           "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats",
        "/proc/kallsyms",       "/proc/modules",    "/proc/cmdline",     "/proc/interrupts",
        NULL,
    };
    return read_any(why, PATHS);
}

/* The engine binds files of the host's (/etc/hosts and others): is their own path reachable? */
static enum outcome mount_sources(char *why) {
    char line[1024], root[512], point[512];
    int count = 0;
    FILE *mounts = fopen("/proc/self/mountinfo", "r");
    while (mounts && fgets(line, sizeof line, mounts)) {
        if (sscanf(line, "%*d %*d %*s %511s %511s", root, point) != 2 ||
            strncmp(point, "/etc/", 5) != 0)
            continue;
        count++;
        if (open(root, O_RDONLY) >= 0)
            return got_through(why, "opened %s", root);
    }
    return refused(why, "%d files of the engine's, no path to them", count);
}

static enum outcome host_directories(char *why) {
    static const char *const PATHS[] = {
        "/host",  "/hostfs",           "/rootfs",          "/var/lib/docker",
        "/var/lib/containerd", "/var/lib/buildbot", "/etc/buildbot", "/proc/1/root/etc",
        "/proc/1/cwd/etc", NULL,
    };
    return open_any(why, PATHS, O_RDONLY);
}

const struct attempt host_attempts[] = {
    {"host/engine-sockets", engine_sockets},
    {"host/any-socket", any_socket},
    {"host/directories", host_directories},
    {"host/mount-sources", mount_sources},
    {"host/writable-places", writable_places},
    {"host/system-files", system_files},
    {"host/proc-sys", kernel_settings},
    {"host/sys", sys_files},
    {"host/cgroup-limits", cgroup_limits},
    {"host/devices", present_devices},
    {"host/make-devices", make_devices},
    {"host/kernel-memory", kernel_memory},
    {"host/facts", host_facts},
    {NULL, NULL},
};
