/* T6, T7, T8, T10: use up what the machine has. Every bomb has a bound of its own and cleans up. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "attempts.h"

enum {
    MOST_PROCESSES = 20000,
    MOST_MEMORY_MIB = 8192,
    MOST_DISK_MIB = 8192,
    MOST_FILES = 1000000,
    MOST_FLOOD_MIB = 512,
    MOST_FLOOD_SECONDS = 60,
    MIB = 1 << 20,
};

/* A counter that outlives the process that counts. */
static long *shared_counter(void) {
    return mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

/* ---- processes ----------------------------------------------------------------------------- */

/* Every process makes more of itself until the kernel or the bound says no, and then stays. */
static void multiply(long *living) {
    while (__atomic_load_n(living, __ATOMIC_SEQ_CST) < MOST_PROCESSES) {
        pid_t child = fork();
        if (child < 0)
            break;
        if (child == 0)
            __atomic_add_fetch(living, 1, __ATOMIC_SEQ_CST);
    }
    alarm(20);
    for (;;)
        pause();
}

/* Waits until the number of processes stands still. */
static void until_it_stops(const long *living) {
    long before;
    do {
        before = __atomic_load_n(living, __ATOMIC_SEQ_CST);
        usleep(500 * 1000);
    } while (__atomic_load_n(living, __ATOMIC_SEQ_CST) != before);
}

/* The bomb is a process group of its own, and its orphans are ours to bury. */
static enum outcome fork_bomb(char *why) {
    long *living = shared_counter();
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    pid_t bomb = fork();
    if (bomb == 0) {
        setpgid(0, 0);
        multiply(living);
    }
    if (bomb < 0)
        return by_result(why, bomb);
    until_it_stops(living);
    while (kill(-bomb, SIGKILL) == 0 || wait(NULL) > 0)
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    if (*living >= MOST_PROCESSES)
        return got_through(why, "%ld processes", *living);
    return refused(why, "stopped at %ld processes", *living);
}

/* ---- memory -------------------------------------------------------------------------------- */

/* Returns the errno that stopped it, if the kernel did not end it first. */
static int eat_memory(long *eaten) {
    for (; *eaten < MOST_MEMORY_MIB; *eaten += 16) {
        char *piece =
            mmap(NULL, 16 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (piece == MAP_FAILED)
            return errno;
        memset(piece, 1, 16 * MIB);
    }
    return 0;
}

static enum outcome memory_bomb(char *why) {
    int status;
    long *eaten = shared_counter();
    pid_t bomb = fork();
    if (bomb == 0)
        _exit(eat_memory(eaten));
    waitpid(bomb, &status, 0);
    if (WIFSIGNALED(status))
        return refused(why, "killed by signal %d at %ld MiB", WTERMSIG(status), *eaten);
    if (WEXITSTATUS(status))
        return refused(why, "%s at %ld MiB", strerror(WEXITSTATUS(status)), *eaten);
    return got_through(why, "%ld MiB", *eaten);
}

/* ---- disk ---------------------------------------------------------------------------------- */

/* The file has no name, so that it is gone with this process, however that ends. */
static int nameless_file(const char *directory) {
    char path[256];
    snprintf(path, sizeof path, "%s/bomb-XXXXXX", directory);
    int file = mkstemp(path);
    unlink(path);
    return file;
}

static enum outcome fill(char *why, const char *directory) {
    static char block[MIB];
    int written = 0, file = nameless_file(directory);
    memset(block, 1, sizeof block);
    while (written < MOST_DISK_MIB && write(file, block, sizeof block) > 0)
        written++;
    if (written == MOST_DISK_MIB)
        return got_through(why, "%d MiB", written);
    return refused(why, "%s after %d MiB", strerror(errno), written);
}

static enum outcome fill_workspace(char *why) { return fill(why, "."); }
static enum outcome fill_tmp(char *why) { return fill(why, "/tmp"); }
static enum outcome fill_shm(char *why) { return fill(why, "/dev/shm"); }

static enum outcome huge_file(char *why) {
    errno = posix_fallocate(nameless_file("."), 0, (off_t)MOST_DISK_MIB * MIB);
    return by_result(why, errno ? -1 : 0);
}

static void number_file(char *path, const char *directory, int number) {
    sprintf(path, "%s/%d", directory, number);
}

static enum outcome many_files(char *why) {
    char path[300], directory[] = "inodes-XXXXXX";
    int made = 0, file = 0, error;
    if (!mkdtemp(directory))
        return by_result(why, -1);
    for (; made < MOST_FILES && file >= 0; made++) {
        number_file(path, directory, made);
        file = open(path, O_CREAT | O_WRONLY, 0600);
        error = errno;
        close(file);
    }
    for (int one = 0; one < made; one++) {
        number_file(path, directory, one);
        unlink(path);
    }
    rmdir(directory);
    if (file >= 0)
        return got_through(why, "%d files", made);
    return refused(why, "%s after %d files", strerror(error), made - 1);
}

/* ---- the log ------------------------------------------------------------------------------- */

/* Deaf to what a polite master would send. */
int flood(void) {
    static char block[1 << 16];
    const time_t end = time(NULL) + MOST_FLOOD_SECONDS;
    long written = 0;
    setsid();
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    for (size_t at = 0; at < sizeof block; at += 64)
        memcpy(block + at, "flood flood flood flood flood flood flood flood flood flood ...\n", 64);
    while (written < (long)MOST_FLOOD_MIB * MIB && time(NULL) < end) {
        ssize_t size = write(STDOUT_FILENO, block, sizeof block);
        if (size < 0)
            return EXIT_FAILURE;
        written += size;
    }
    printf("ATTEMPT exhaust/log: GOT THROUGH (%ld MiB)\n", written / MIB);
    return EXIT_SUCCESS;
}

const struct attempt exhaust_attempts[] = {
    {"exhaust/processes", fork_bomb},
    {"exhaust/memory", memory_bomb},
    {"exhaust/workspace", fill_workspace},
    {"exhaust/huge-file", huge_file},
    {"exhaust/inodes", many_files},
    {"exhaust/tmp", fill_tmp},
    {"exhaust/shm", fill_shm},
    {NULL, NULL},
};
