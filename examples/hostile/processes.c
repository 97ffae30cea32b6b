/* T14: the keeper and everybody else: their memory, their files, their lives. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "attempts.h"

/* Whether the try on this process got through. */
typedef int (*try_on)(pid_t pid);

static uid_t owner(pid_t pid) {
    char path[64];
    struct stat facts;
    snprintf(path, sizeof path, "/proc/%d", pid);
    return stat(path, &facts) ? geteuid() : facts.st_uid;
}

/* Tries on every process that is not the build's own: the keeper is PID 1 and its child. */
static enum outcome on_others(char *why, try_on try) {
    struct dirent *entry;
    int count = 0, error = 0;
    DIR *processes = opendir("/proc");
    while (processes && (entry = readdir(processes))) {
        pid_t pid = atoi(entry->d_name);
        if (!isdigit((unsigned char)*entry->d_name) || owner(pid) == geteuid())
            continue;
        if (try(pid))
            return got_through(why, "process %d", pid);
        error = errno;
        count++;
    }
    if (count == 0)
        return refused(why, "no other process is to be seen");
    return refused(why, "%d processes: %s", count, strerror(error));
}

static int opens(pid_t pid, const char *name, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    return open(path, flags | O_NONBLOCK) >= 0;
}

static int traces(pid_t pid) {
    return ptrace(PTRACE_SEIZE, pid, 0, 0) == 0 || ptrace(PTRACE_ATTACH, pid, 0, 0) == 0;
}

static int copies_memory(pid_t pid) {
    char byte;
    const struct iovec here = {&byte, 1}, there = {(void *)0x400000, 1};
    return process_vm_readv(pid, &here, 1, &there, 1, 0) >= 0 ||
           process_vm_writev(pid, &here, 1, &there, 1, 0) >= 0;
}

static int opens_memory(pid_t pid) {
    return opens(pid, "mem", O_RDONLY) || opens(pid, "mem", O_RDWR) || opens(pid, "maps", O_RDONLY);
}

static int opens_environment(pid_t pid) { return opens(pid, "environ", O_RDONLY); }

static int opens_root(pid_t pid) {
    return opens(pid, "root/", O_RDONLY) || opens(pid, "cwd/", O_RDONLY);
}

/* Whoever holds the keeper's stdin open keeps the sandbox alive without its master. */
static int holds_stdin(pid_t pid) {
    return opens(pid, "fd/0", O_WRONLY) || opens(pid, "fd/0", O_RDONLY);
}

static int takes_descriptors(pid_t pid) {
    long process = syscall(SYS_pidfd_open, pid, 0);
    return process >= 0 && syscall(SYS_pidfd_getfd, process, 0, 0) >= 0;
}

/* Stopped, the keeper would sleep through the end of its stdin. */
static int signals(pid_t pid) { return kill(pid, SIGSTOP) == 0 || kill(pid, SIGKILL) == 0; }

static enum outcome trace(char *why) { return on_others(why, traces); }
static enum outcome copy_memory(char *why) { return on_others(why, copies_memory); }
static enum outcome open_memory(char *why) { return on_others(why, opens_memory); }
static enum outcome environment(char *why) { return on_others(why, opens_environment); }
static enum outcome root(char *why) { return on_others(why, opens_root); }
static enum outcome keeper_stdin(char *why) { return on_others(why, holds_stdin); }
static enum outcome descriptors(char *why) { return on_others(why, takes_descriptors); }
static enum outcome kill_others(char *why) { return on_others(why, signals); }

/* A neighbour's process would have neither the build's uid nor the keeper's. */
static enum outcome neighbours(char *why) {
    struct dirent *entry;
    DIR *processes = opendir("/proc");
    while (processes && (entry = readdir(processes))) {
        pid_t pid = atoi(entry->d_name);
        if (isdigit((unsigned char)*entry->d_name) && owner(pid) != geteuid() &&
            owner(pid) != owner(1))
            return got_through(why, "process %d belongs to uid %d", pid, owner(pid));
    }
    return refused(why, "only the build's and the keeper's processes");
}

const struct attempt process_attempts[] = {
    {"processes/ptrace", trace},
    {"processes/copy-memory", copy_memory},
    {"processes/open-memory", open_memory},
    {"processes/environment", environment},
    {"processes/root", root},
    {"processes/keeper-stdin", keeper_stdin},
    {"processes/descriptors", descriptors},
    {"processes/kill", kill_others},
    {"processes/neighbours", neighbours},
    {NULL, NULL},
};
