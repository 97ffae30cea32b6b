/* Runs every attempt, each in a process of its own, and prints one line for each. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "attempts.h"

enum { SECONDS_FOR_ONE = 60 };

static const char *const VERDICT[] = {"refused", "GOT THROUGH", "unclear"};

static void explain(char *why, const char *format, va_list arguments) {
    vsnprintf(why, WHY, format, arguments);
}

enum outcome refused(char *why, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    explain(why, format, arguments);
    va_end(arguments);
    return REFUSED;
}

enum outcome got_through(char *why, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    explain(why, format, arguments);
    va_end(arguments);
    return GOT_THROUGH;
}

enum outcome by_result(char *why, long result) {
    return result < 0 ? refused(why, "%s", strerror(errno)) : got_through(why, "it was done");
}

enum outcome open_any(char *why, const char *const *paths, int flags) {
    int count = 0;
    for (; paths[count]; count++)
        if (open(paths[count], flags | O_CLOEXEC | O_NONBLOCK, 0600) >= 0)
            return got_through(why, "opened %s", paths[count]);
    return refused(why, "%d paths: %s", count, strerror(errno));
}

enum outcome read_any(char *why, const char *const *paths) {
    char byte;
    int count = 0;
    for (; paths[count]; count++) {
        int file = open(paths[count], O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (file >= 0 && read(file, &byte, 1) == 1)
            return got_through(why, "read %s", paths[count]);
        if (file >= 0)
            close(file);
    }
    return refused(why, "%d paths: nothing to read", count);
}

/* Waits for the attempt; a negative result means that it had to be ended. */
static int wait_for(pid_t child) {
    const struct timespec pause = {0, 5 * 1000 * 1000};
    const time_t deadline = time(NULL) + SECONDS_FOR_ONE;
    int status;
    while (waitpid(child, &status, WNOHANG) == 0) {
        if (time(NULL) >= deadline) {
            kill(child, SIGKILL);
            waitpid(child, &status, 0);
            return -1;
        }
        nanosleep(&pause, NULL);
    }
    return status;
}

/* A call that seccomp answers with death is refused; every other death is not understood. */
static enum outcome judge(int status, char *why) {
    if (status < 0)
        snprintf(why, WHY, "no end after %d seconds", SECONDS_FOR_ONE);
    else if (WIFEXITED(status))
        return WEXITSTATUS(status) <= UNCLEAR ? WEXITSTATUS(status) : UNCLEAR;
    else if (WTERMSIG(status) == SIGSYS)
        return refused(why, "killed by seccomp");
    else
        snprintf(why, WHY, "killed by signal %d", WTERMSIG(status));
    return UNCLEAR;
}

/* One write for one line, so that nothing else gets in between. */
static void report(const char *name, enum outcome outcome, const char *why) {
    char line[WHY + 128];
    int size = snprintf(line, sizeof line, "ATTEMPT %s: %s (%s)\n", name, VERDICT[outcome], why);
    if (write(STDOUT_FILENO, line, size) != size)
        exit(EXIT_FAILURE);
}

static void run(const struct attempt *attempt, char *why) {
    memset(why, 0, WHY);
    pid_t child = fork();
    if (child == 0)
        _exit(attempt->try(why));
    enum outcome outcome = UNCLEAR;
    if (child < 0)
        snprintf(why, WHY, "not started: %s", strerror(errno));
    else
        outcome = judge(wait_for(child), why);
    why[WHY - 1] = '\0';
    report(attempt->name, outcome, why);
}

/* Wanted is an attempt by its name, a table by its name and a slash, or everything. */
static int is_wanted(const char *name, const char *wanted) {
    size_t size = strlen(wanted);
    if (size == 0 || wanted[size - 1] == '/')
        return strncmp(name, wanted, size) == 0;
    return strcmp(name, wanted) == 0;
}

static int run_all(const char *wanted) {
    const struct attempt *const tables[] = {
        network_attempts, root_attempts, host_attempts, process_attempts, exhaust_attempts,
    };
    int count = 0;
    char *why = mmap(NULL, WHY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (why == MAP_FAILED)
        return EXIT_FAILURE;
    for (size_t table = 0; table < sizeof tables / sizeof *tables; table++)
        for (const struct attempt *one = tables[table]; one->name; one++)
            if (is_wanted(one->name, wanted))
                run(one, why), count++;
    printf("ATTEMPTS %d\n", count);
    return EXIT_SUCCESS;
}

/* The bombs are bounded, but a desktop is still no place for them. */
static int in_a_sandbox(void) {
    return geteuid() != 0 && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!in_a_sandbox()) {
        fputs("This attacks the machine that it runs on: run it in a sandbox.\n", stderr);
        return EXIT_FAILURE;
    }
    if (argc == 2 && strcmp(argv[1], "flood") == 0)
        return flood();
    return run_all(argc == 2 ? argv[1] : "");
}
