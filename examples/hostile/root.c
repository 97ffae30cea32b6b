/* T3, T4: be root, gain a capability, make a namespace, reach the kernel's dangerous calls. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "attempts.h"

enum { OPEN_FILES = 64 };

/* ---- identity ------------------------------------------------------------------------------ */

static enum outcome set_uid(char *why) {
    if (setuid(0) == 0 || seteuid(0) == 0 || setresuid(0, 0, 0) == 0)
        return got_through(why, "uid is %d, effective %d", getuid(), geteuid());
    return by_result(why, -1);
}

static enum outcome set_gid(char *why) {
    const gid_t root = 0;
    if (setgid(0) == 0 || setresgid(0, 0, 0) == 0 || setgroups(1, &root) == 0)
        return got_through(why, "gid is %d, effective %d", getgid(), getegid());
    return by_result(why, -1);
}

/* Runs a program that says who it is; "0" is what must not come out. */
static enum outcome ask_for_root(char *why, char *const *command) {
    char answer[64] = "";
    int ends[2], status = 0;
    if (pipe(ends))
        return by_result(why, -1);
    pid_t child = fork();
    if (child == 0) {
        setsid();
        dup2(open("/dev/null", O_RDWR), STDIN_FILENO);
        dup2(ends[1], STDOUT_FILENO);
        dup2(open("/dev/null", O_RDWR), STDERR_FILENO);
        execvp(command[0], command);
        _exit(127);
    }
    close(ends[1]);
    ssize_t size = read(ends[0], answer, sizeof answer - 1);
    waitpid(child, &status, 0);
    if (size > 0 && answer[0] == '0')
        return got_through(why, "%s gave uid 0", command[0]);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        return refused(why, "there is no %s", command[0]);
    return refused(why, "%s ended with %d", command[0], WEXITSTATUS(status));
}

static enum outcome sudo(char *why) {
    char *const command[] = {"sudo", "-n", "id", "-u", NULL};
    return ask_for_root(why, command);
}

static enum outcome su(char *why) {
    char *const command[] = {"su", "-c", "id -u", NULL};
    return ask_for_root(why, command);
}

static int privileged_files;

static int count_privileged(const char *path, const struct stat *facts, int kind, struct FTW *at) {
    char capability[64];
    (void)at;
    if (kind != FTW_F)
        return 0;
    privileged_files += (facts->st_mode & (S_ISUID | S_ISGID)) != 0 ||
                        getxattr(path, "security.capability", capability, sizeof capability) > 0;
    return 0;
}

/* Where an image has such files, no_new_privs takes their effect away. */
static enum outcome set_uid_files(char *why) {
    nftw("/", count_privileged, OPEN_FILES, FTW_PHYS | FTW_MOUNT);
    if (privileged_files == 0)
        return refused(why, "the image has none");
    if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)
        return refused(why, "%d files, without effect: no_new_privs", privileged_files);
    return got_through(why, "%d files", privileged_files);
}

static enum outcome make_set_uid(char *why) {
    const char *path = "root-owned";
    close(open(path, O_CREAT | O_WRONLY, 0755));
    int result = chown(path, 0, 0);
    int error = errno;
    if (result == 0 && chmod(path, 04755) == 0)
        return got_through(why, "made a set-uid file of root's");
    unlink(path);
    errno = error;
    return by_result(why, result);
}

/* ---- capabilities and namespaces ----------------------------------------------------------- */

static enum outcome hold_capabilities(char *why) {
    char line[128], set[32];
    unsigned long long bits;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "Cap%31[^:]: %llx", set, &bits) == 2 && bits)
            return got_through(why, "Cap%s is %llx", set, bits);
    return refused(why, "all sets are empty");
}

static enum outcome gain_capabilities(char *why) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    const struct __user_cap_data_struct all[2] = {{~0u, ~0u, ~0u}, {~0u, ~0u, ~0u}};
    return by_result(why, syscall(SYS_capset, &head, all));
}

static const struct {
    const char *name;
    int flag;
} NAMESPACES[] = {
    {"user", CLONE_NEWUSER}, {"mount", CLONE_NEWNS}, {"pid", CLONE_NEWPID},
    {"net", CLONE_NEWNET},   {"ipc", CLONE_NEWIPC},  {"uts", CLONE_NEWUTS},
    {"cgroup", CLONE_NEWCGROUP},
};

enum { NAMESPACE_COUNT = sizeof NAMESPACES / sizeof *NAMESPACES };

static enum outcome unshare_namespaces(char *why) {
    for (int one = 0; one < NAMESPACE_COUNT; one++)
        if (unshare(NAMESPACES[one].flag) == 0)
            return got_through(why, "a new %s namespace", NAMESPACES[one].name);
    return by_result(why, -1);
}

static enum outcome clone_namespaces(char *why) {
    for (int one = 0; one < NAMESPACE_COUNT; one++) {
        long child = syscall(SYS_clone, NAMESPACES[one].flag | SIGCHLD, 0, 0, 0, 0);
        if (child == 0)
            _exit(0);
        if (child > 0)
            return got_through(why, "a new %s namespace", NAMESPACES[one].name);
    }
    return by_result(why, -1);
}

static enum outcome clone3_namespaces(char *why) {
    unsigned long long arguments[8] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
    long child = syscall(SYS_clone3, arguments, sizeof arguments);
    if (child == 0)
        _exit(0);
    return by_result(why, child);
}

static enum outcome join_namespaces(char *why) {
    int space = open("/proc/1/ns/net", O_RDONLY);
    return by_result(why, space < 0 ? space : setns(space, 0));
}

/* ---- mounts -------------------------------------------------------------------------------- */

static enum outcome mounts(char *why) {
    if (mount("none", "/tmp", "tmpfs", 0, "") == 0)
        return got_through(why, "mounted a tmpfs");
    if (mount("none", "/", NULL, MS_REMOUNT | MS_BIND, NULL) == 0)
        return got_through(why, "the root is writable");
    if (mount("proc", "/tmp", "proc", 0, NULL) == 0)
        return got_through(why, "mounted /proc");
    if (umount2("/proc/sys", MNT_DETACH) == 0)
        return got_through(why, "unmounted /proc/sys");
    return by_result(why, -1);
}

static enum outcome new_mount_calls(char *why) {
    if (syscall(SYS_fsopen, "tmpfs", 0) >= 0)
        return got_through(why, "fsopen");
    if (syscall(SYS_open_tree, AT_FDCWD, "/", 1) >= 0)
        return got_through(why, "open_tree");
    return by_result(why, -1);
}

static enum outcome change_root(char *why) { return by_result(why, chroot(".")); }

/* ---- the rest of the kernel ---------------------------------------------------------------- */

static const struct {
    const char *name;
    long number;
} KERNEL_CALLS[] = {
    {"acct", SYS_acct},
    {"add_key", SYS_add_key},
    {"bpf", SYS_bpf},
    {"clock_settime", SYS_clock_settime},
    {"delete_module", SYS_delete_module},
    {"finit_module", SYS_finit_module},
    {"init_module", SYS_init_module},
    {"io_uring_setup", SYS_io_uring_setup},
    {"kexec_load", SYS_kexec_load},
    {"keyctl", SYS_keyctl},
    {"open_by_handle_at", SYS_open_by_handle_at},
    {"perf_event_open", SYS_perf_event_open},
    {"pivot_root", SYS_pivot_root},
    {"quotactl", SYS_quotactl},
    {"reboot", SYS_reboot},
    {"request_key", SYS_request_key},
    {"swapoff", SYS_swapoff},
    {"swapon", SYS_swapon},
    {"userfaultfd", SYS_userfaultfd},
};

/* Without arguments: a complaint about them would mean that the kernel was reached. */
static enum outcome kernel_calls(char *why) {
    const int count = sizeof KERNEL_CALLS / sizeof *KERNEL_CALLS;
    for (int one = 0; one < count; one++) {
        long result = syscall(KERNEL_CALLS[one].number, 0, 0, 0, 0, 0, 0);
        if (result >= 0 || (errno != EPERM && errno != ENOSYS && errno != EACCES))
            return got_through(why, "%s reached the kernel: %s", KERNEL_CALLS[one].name,
                               result < 0 ? strerror(errno) : "it was done");
    }
    return refused(why, "%d calls: %s", count, strerror(errno));
}

static enum outcome priority(char *why) {
    const struct sched_param highest = {.sched_priority = 99};
    if (setpriority(PRIO_PROCESS, 0, -20) == 0)
        return got_through(why, "nice is -20");
    return by_result(why, sched_setscheduler(0, SCHED_FIFO, &highest));
}

const struct attempt root_attempts[] = {
    {"root/setuid", set_uid},
    {"root/setgid", set_gid},
    {"root/sudo", sudo},
    {"root/su", su},
    {"root/set-uid-files", set_uid_files},
    {"root/make-set-uid", make_set_uid},
    {"root/hold-capabilities", hold_capabilities},
    {"root/gain-capabilities", gain_capabilities},
    {"root/unshare", unshare_namespaces},
    {"root/clone", clone_namespaces},
    {"root/clone3", clone3_namespaces},
    {"root/setns", join_namespaces},
    {"root/mount", mounts},
    {"root/new-mount-calls", new_mount_calls},
    {"root/chroot", change_root},
    {"root/kernel-calls", kernel_calls},
    {"root/priority", priority},
    {NULL, NULL},
};
