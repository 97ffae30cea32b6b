/* Tries what seccomp/build.json and strict.json refuse, and a little of what they allow.
 *
 * Run it in a sandbox: `probe_seccomp build` or `probe_seccomp strict`.
 * Each line names an attempt and what came of it; one that came out otherwise than
 * the profile promises is marked, and the program then exits with 1.
 * Sockets, descriptors and files that it makes die with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define HIGH 0x100000000L
#define AF_OTHER_LAST 63
/* Numbers that Debian 12's headers do not have yet. */
#define NR_STATMOUNT 457
#define NR_LISTMOUNT 458
#define NR_FILE_SETATTR 469
#define NR_NOT_YET 600

static int failures;

static void report(const char *name, int got, int expected) {
    int good = got == expected;
    printf("%s\t%s%s\n", name, got ? strerrorname_np(got) : "ok", good ? "" : "\tUNEXPECTED");
    failures += !good;
}

#define TRY(name, expected, ...)                                  \
    do {                                                          \
        errno = 0;                                                \
        long result = syscall(__VA_ARGS__);                       \
        report(name, result == -1 ? errno : 0, expected);         \
    } while (0)

static void try_clone(const char *name, long flags, int expected) {
    errno = 0;
    long child = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (child == 0)
        _exit(0);
    report(name, child < 0 ? errno : 0, expected);
    if (child > 0)
        waitpid(child, NULL, 0);
}

static void namespaces(void) {
    try_clone("clone", 0, 0);
    try_clone("clone user", CLONE_NEWUSER, EPERM);
    try_clone("clone mount", CLONE_NEWNS, EPERM);
    try_clone("clone net", CLONE_NEWNET, EPERM);
    try_clone("clone pid", CLONE_NEWPID, EPERM);
    try_clone("clone ipc", CLONE_NEWIPC, EPERM);
    try_clone("clone uts", CLONE_NEWUTS, EPERM);
    try_clone("clone cgroup", CLONE_NEWCGROUP, EPERM);
    try_clone("clone user, high bit", HIGH | CLONE_NEWUSER, EPERM);
    TRY("clone3", ENOSYS, SYS_clone3, NULL, 0);
    TRY("unshare user", EPERM, SYS_unshare, CLONE_NEWUSER);
    TRY("setns", EPERM, SYS_setns, 0, 0);
}

static void families(void) {
    char name[40];
    for (long family = 0; family <= AF_OTHER_LAST; family++) {
        if (family == 1 || family == 2 || family == 10 || family == 16)
            continue;
        for (int type = 1; type <= 5; type++) {
            snprintf(name, sizeof name, "socket family %ld type %d", family, type);
            TRY(name, EAFNOSUPPORT, SYS_socket, family, type, 0);
        }
    }
    TRY("socket AF_VSOCK, high bit", EAFNOSUPPORT, SYS_socket, HIGH | 40, 1, 0);
    TRY("socket AF_ALG, high bit", EAFNOSUPPORT, SYS_socket, HIGH | 38, 5, 0);
}

static void protocols(void) {
    char name[40];
    TRY("socket unix", 0, SYS_socket, 1, 1, 0);
    TRY("socket tcp", 0, SYS_socket, 2, 1 | 0x80800, 6);
    TRY("socket udp", 0, SYS_socket, 2, 2, 17);
    TRY("socket raw", EPERM, SYS_socket, 2, 3, 1);
    TRY("socket raw, high bit", EPERM, SYS_socket, 2, HIGH | 3, 1);
    TRY("socket ping", EPERM, SYS_socket, 2, 2, 1);
    TRY("socket ping6", EPERM, SYS_socket, 10, 2, 58);
    TRY("socket sctp", EPERM, SYS_socket, 2, 1, 132);
    TRY("socket mptcp", EPERM, SYS_socket, 2, 1, 262);
    TRY("socket udplite", EPERM, SYS_socket, 2, 2, 136);
    TRY("socket netlink route", 0, SYS_socket, 16, 3, 0);
    for (int protocol = 1; protocol <= 22; protocol++) {
        snprintf(name, sizeof name, "socket netlink %d", protocol);
        TRY(name, EPERM, SYS_socket, 16, 3, protocol);
    }
    TRY("socket netlink, high bit", EPERM, SYS_socket, 16, 3, HIGH | 12);
}

static void pairs(void) {
    int pair[2];
    TRY("socketpair unix", 0, SYS_socketpair, 1, 1, 0, pair);
    TRY("socketpair tipc", EAFNOSUPPORT, SYS_socketpair, 30, 1, 0, pair);
}

static void terminals(void) {
    char byte = 'x', answer[256];
    int discipline = 0, terminal = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    TRY("ioctl TCGETS", 0, SYS_ioctl, terminal, 0x5401L, answer);
    TRY("ioctl TIOCGWINSZ", 0, SYS_ioctl, terminal, 0x5413L, answer);
    TRY("ioctl TIOCSTI", EPERM, SYS_ioctl, terminal, 0x5412L, &byte);
    TRY("ioctl TIOCSTI, high bit", EPERM, SYS_ioctl, terminal, HIGH | 0x5412L, &byte);
    TRY("ioctl TIOCSTI, all high", EPERM, SYS_ioctl, terminal, ~0xffffffffL | 0x5412L, &byte);
    TRY("ioctl TIOCLINUX", EPERM, SYS_ioctl, terminal, 0x541cL, &byte);
    TRY("ioctl TIOCLINUX, high bit", EPERM, SYS_ioctl, terminal, HIGH | 0x541cL, &byte);
    TRY("ioctl TIOCSETD", EPERM, SYS_ioctl, terminal, 0x5423L, &discipline);
    close(terminal);
}

static void file_flags(void) {
    char flags[64] = {0};
    int file = open("/tmp/probe", O_CREAT | O_RDWR, 0600);
    TRY("ioctl FS_IOC_SETFLAGS", EPERM, SYS_ioctl, file, 0x40086602L, flags);
    TRY("ioctl FS_IOC_FSSETXATTR", EPERM, SYS_ioctl, file, 0x401c5820L, flags);
    TRY("file_setattr", ENOSYS, NR_FILE_SETATTR, -1, 0, 0, 0, 0);
    close(file);
    unlink("/tmp/probe");
}

static void nodes(void) {
    TRY("mknodat fifo", 0, SYS_mknodat, AT_FDCWD, "/tmp/fifo", S_IFIFO | 0600, 0);
    TRY("mknodat device", EPERM, SYS_mknodat, AT_FDCWD, "/tmp/device", S_IFBLK | 0600, 0x801);
    TRY("mknodat whiteout", EPERM, SYS_mknodat, AT_FDCWD, "/tmp/whiteout", S_IFCHR, 0);
    TRY("mknodat device, high bit", EPERM, SYS_mknodat, AT_FDCWD, "/tmp/h", 0x10000 | S_IFCHR, 0);
    unlink("/tmp/fifo");
}

static void personalities(void) {
    TRY("personality query", 0, SYS_personality, 0xffffffffL);
    TRY("personality READ_IMPLIES_EXEC", EPERM, SYS_personality, 0x400000);
    TRY("personality, high bit", EPERM, SYS_personality, HIGH | 0x400000);
    TRY("personality ADDR_NO_RANDOMIZE", EPERM, SYS_personality, 0x40000);
    TRY("personality UNAME26", EPERM, SYS_personality, 0x20000);
}

static void memory(void) {
    TRY("userfaultfd", ENOSYS, SYS_userfaultfd, 0);
    TRY("memfd_secret", ENOSYS, SYS_memfd_secret, 0);
    TRY("splice", EINVAL, SYS_splice, -1, 0, -1, 0, 0, 0);
    TRY("tee", ENOSYS, SYS_tee, -1, -1, 0, 0);
    TRY("vmsplice", ENOSYS, SYS_vmsplice, -1, 0, 0, 0);
    TRY("process_vm_readv", EPERM, SYS_process_vm_readv, 0, 0, 0, 0, 0, 0);
    TRY("process_vm_writev", EPERM, SYS_process_vm_writev, 0, 0, 0, 0, 0, 0);
    TRY("process_madvise", ENOSYS, SYS_process_madvise, -1, 0, 0, 0, 0);
    TRY("pidfd_getfd", ENOSYS, SYS_pidfd_getfd, -1, 0, 0);
    TRY("kcmp", ENOSYS, SYS_kcmp, 0, 0, 0, 0, 0);
    TRY("mbind", EPERM, SYS_mbind, 0, 0, 0, 0, 0, 0);
    TRY("move_pages", EPERM, SYS_move_pages, 0, 0, 0, 0, 0, 0);
}

static void kernel(void) {
    TRY("io_uring_setup", ENOSYS, SYS_io_uring_setup, 1, 0);
    TRY("io_uring_enter", ENOSYS, SYS_io_uring_enter, -1, 0, 0, 0, 0, 0);
    TRY("io_uring_register", ENOSYS, SYS_io_uring_register, -1, 0, 0, 0);
    TRY("bpf", EPERM, SYS_bpf, 0, 0, 0);
    TRY("perf_event_open", EPERM, SYS_perf_event_open, 0, 0, 0, 0, 0);
    TRY("keyctl", EPERM, SYS_keyctl, 0, 0);
    TRY("add_key", EPERM, SYS_add_key, 0, 0, 0, 0, 0);
    TRY("request_key", EPERM, SYS_request_key, 0, 0, 0, 0);
    TRY("io_setup", ENOSYS, SYS_io_setup, 1, 0);
    TRY("mq_open", ENOSYS, SYS_mq_open, "x", 0, 0, 0);
    TRY("nothing yet", ENOSYS, NR_NOT_YET);
}

static void files(void) {
    TRY("mount", EPERM, SYS_mount, 0, 0, 0, 0, 0);
    TRY("umount2", EPERM, SYS_umount2, 0, 0);
    TRY("pivot_root", EPERM, SYS_pivot_root, 0, 0);
    TRY("chroot", EPERM, SYS_chroot, "/");
    TRY("open_tree", ENOSYS, SYS_open_tree, -1, 0, 0);
    TRY("move_mount", ENOSYS, SYS_move_mount, -1, 0, -1, 0, 0);
    TRY("fsopen", ENOSYS, SYS_fsopen, 0, 0);
    TRY("fsconfig", ENOSYS, SYS_fsconfig, -1, 0, 0, 0, 0);
    TRY("fsmount", ENOSYS, SYS_fsmount, -1, 0, 0);
    TRY("fspick", ENOSYS, SYS_fspick, -1, 0, 0);
    TRY("mount_setattr", ENOSYS, SYS_mount_setattr, -1, 0, 0, 0, 0);
    TRY("statmount", ENOSYS, NR_STATMOUNT, 0, 0, 0, 0);
    TRY("listmount", ENOSYS, NR_LISTMOUNT, 0, 0, 0, 0);
    TRY("name_to_handle_at", ENOSYS, SYS_name_to_handle_at, -1, 0, 0, 0, 0);
    TRY("open_by_handle_at", EPERM, SYS_open_by_handle_at, -1, 0, 0);
}

/* None of these would do anything even if it were let through: each has wrong arguments. */
static void administration(void) {
    TRY("init_module", EPERM, SYS_init_module, 0, 0, 0);
    TRY("kexec_load", EPERM, SYS_kexec_load, 0, 0, 0, ~0L);
    TRY("reboot", EPERM, SYS_reboot, 0, 0, 0, 0);
    TRY("swapon", EPERM, SYS_swapon, 0, 0);
    TRY("quotactl", EPERM, SYS_quotactl, 0, 0, 0, 0);
    TRY("settimeofday", EPERM, SYS_settimeofday, 0, 0);
    TRY("adjtimex", EPERM, SYS_adjtimex, 0);
    TRY("syslog", EPERM, SYS_syslog, 3, 0, 0);
    TRY("fanotify_init", EPERM, SYS_fanotify_init, 0, 0);
    TRY("sync", 0, SYS_sync);
    TRY("syncfs", 0, SYS_syncfs, -1);
}

static void traceme(void) {
    _exit(syscall(SYS_ptrace, 0, 0, 0, 0) < 0 ? errno : 0);
}

#ifdef __x86_64__
static void enter_as_32_bit(void) {
    long number = 20;
    __asm__ volatile("int $0x80" : "+a"(number));
    _exit(0);
}

static void enter_as_x32(void) {
    syscall(0x40000000 | SYS_getpid);
    _exit(0);
}
#endif

/* In a child of its own: to be killed, or to be traced by nobody but this program. */
static void in_child(const char *name, void (*attempt)(void), int code, int signal) {
    int status;
    pid_t child = fork();
    if (child == 0)
        attempt();
    waitpid(child, &status, 0);
    int got = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
    int good = WIFSIGNALED(status) ? got == signal : !signal && got == code;
    printf("%s\t%s %d%s\n", name, WIFSIGNALED(status) ? "signal" : "errno", got,
           good ? "" : "\tUNEXPECTED");
    failures += !good;
}

int main(int argc, char **argv) {
    int strict = argc > 1 && strcmp(argv[1], "strict") == 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    namespaces();
    families();
    protocols();
    pairs();
    terminals();
    file_flags();
    nodes();
    personalities();
    memory();
    kernel();
    files();
    administration();
    in_child("ptrace", traceme, strict ? EPERM : 0, 0);
#ifdef __x86_64__
    TRY("modify_ldt", EPERM, SYS_modify_ldt, 0, 0, 0);
    TRY("iopl", EPERM, SYS_iopl, 3);
    in_child("int 0x80", enter_as_32_bit, 0, SIGSYS);
    in_child("x32", enter_as_x32, 0, SIGSYS);
#endif
    printf("%d unexpected\n", failures);
    return failures != 0;
}
