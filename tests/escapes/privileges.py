"""T3, T4, T9: be root, gain capabilities, namespaces, priority, the kernel's dangerous calls."""

from __future__ import annotations

from escapes.attempt import Attempt, Otherwise, got_through, hostile, python, shell

_NO = "Operation not permitted"
_OWN_KERNEL = "made by gVisor's own kernel, for the sandbox alone; the host's has no part in it"

ATTEMPTS = (
    hostile("T3", "root/setuid", "become root", _NO, brief=True),
    hostile("T3", "root/setgid", "become root's group", _NO),
    hostile("T3", "root/sudo", "use sudo", "there is no sudo"),
    hostile("T3", "root/su", "use su", "su ended with 1"),
    hostile("T3", "root/set-uid-files", "find a set-uid file or file capabilities",
            "the image has none"),
    hostile("T3", "root/make-set-uid", "make a set-uid file of root's", _NO),
    hostile("T3", "root/hold-capabilities", "hold a capability", "all sets are empty", brief=True),
    hostile("T3", "root/gain-capabilities", "take every capability", _NO, brief=True),
    Attempt("T3-file-capability", "give a file capabilities", python(
        "name = write('capable', '')\n"
        "blob = struct.pack('<IIIII', 0x02000001, 0xffffffff, 0, 0xffffffff, 0)\n"
        "tell(os.setxattr, name, 'security.capability', blob)"), "EPERM",
        Otherwise("EPERM|ENOTSUP")),
    Attempt("T3-own-set-uid", "run a set-uid copy", shell(
        "cp /usr/bin/id ./set; chmod 6755 set; [ $(./set -u) = $(id -u) ] && echo same"), "same",
        brief=True),
    Attempt("T3-new-privileges", "switch no_new_privs off", python("tell(prctl, 38, 0)"), "EINVAL"),
    Attempt("T3-ambient", "raise an ambient capability", python("tell(prctl, 47, 2, 21)"), "EPERM",
            Otherwise("EPERM|EINVAL")),
    Attempt("T3-securebits", "change the secure bits", python("tell(prctl, 28, 1)"), "EPERM",
            Otherwise("EPERM|EINVAL")),
    Attempt("T3-bounding-set", "find a capability in the bounding set", python(
        "print(sum(prctl(23, number) for number in range(38)))"), "0", Otherwise("0|EINVAL")),
    Attempt("T3-keeper", "become the keeper", python("tell(os.setresuid, 65533, 65533, 65533)"),
            "EPERM"),
    Attempt("T3-groups", "join root's groups", python("tell(os.setgroups, [0, 65533])"), "EPERM"),
    Attempt("T3-give-away", "give a file to the keeper", python(
        "tell(os.chown, write('gift', ''), 65533, 65533)"), "EPERM"),
    Attempt("T3-file-uid", "touch files as root", python(
        "call('setfsuid', 0)\nprint(os.stat(write('rooted', '')).st_uid == os.getuid())"), "True",
        Otherwise("(?s).*OSError.*Function not implemented")),
    hostile("T4", "root/unshare", "make a namespace by unshare", _NO, got_through(
        "root/unshare", "a new user namespace", _OWN_KERNEL), brief=True),
    hostile("T4", "root/clone", "make a namespace by clone", _NO, got_through(
        "root/clone", "a new user namespace", _OWN_KERNEL), brief=True),
    hostile("T4", "root/clone3", "make a namespace by clone3", "Function not implemented"),
    hostile("T4", "root/setns", "join another namespace", "Permission denied",
            Otherwise("Operation not supported")),
    hostile("T4", "root/mount", "mount, remount or unmount", _NO, brief=True),
    hostile("T4", "root/new-mount-calls", "mount by the newer calls", "Function not implemented"),
    hostile("T4", "root/chroot", "change the root", _NO),
    hostile("T4", "root/kernel-calls", "reach 19 dangerous system calls",
            "19 calls: Function not implemented", got_through(
                "root/kernel-calls", "io_uring_setup reached the kernel: Invalid argument",
                "answered by gVisor's own kernel, which has no such rings")),
    Attempt("T4-root-by-namespace", "be root in a namespace of its own", shell(
        "unshare --user --map-root-user --mount id -u"), "unshare: unshare failed: " + _NO,
        Otherwise("unshare: .*|0", _OWN_KERNEL)),
    Attempt("T4-keepers-namespaces", "join the keeper's namespaces", shell(
        "nsenter --target 1 --mount --pid id -u"),
        "nsenter: cannot open /proc/1/ns/(mnt|pid): Permission denied",
        Otherwise("nsenter: .*")),
    Attempt("T4-filter-off", "switch the system call filter off", python("tell(prctl, 22, 0)"),
            "EINVAL"),
    Attempt("T4-core-dump", "have the host's core handler run", shell(
        "ulimit -c unlimited 2>/dev/null || echo limited\n"
        "sh -c 'kill -SEGV $$'; ls core* 2>/dev/null; echo over"),
        "limited\n(Segmentation fault.*\n)?over"),
    Attempt("T4-kernel-log", "read the kernel's log", shell("dmesg | head -n 3"),
            "dmesg: read kernel buffer failed: " + _NO, Otherwise(
                r"(?s).*", "gVisor's own log of jokes, not the host's")),
    hostile("T9", "root/priority", "run before everybody else", _NO, got_through(
        "root/priority", "nice is -20", "gVisor keeps the number and does nothing by it")),
    Attempt("T9-realtime", "take a real-time class", python(
        "tell(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(50))"), "EPERM",
        Otherwise("EPERM|EINVAL")),
    Attempt("T9-disk-priority", "take a real-time class for disks", python(
        "tell(call, 'ioprio_set', 1, 0, 1 << 13)"), "EPERM",
        Otherwise("EPERM|ENOSYS")),
    Attempt("T9-open-files", "raise the limit of open files", python(
        "import resource\ntell(resource.setrlimit, resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))"),
        "not allowed to raise maximum limit", Otherwise(".*not allowed.*|EPERM")),
    Attempt("T9-locked-memory", "lock more memory than the policy says", python(
        "import mmap\nplace = mmap.mmap(-1, 64 << 20)\n"
        "tell(lambda: check(libc.mlock(ctypes.byref(ctypes.c_char.from_buffer(place)),"
        " ctypes.c_size_t(64 << 20))))"), "ENOMEM|EAGAIN", Otherwise(
            "ENOMEM|EAGAIN|EPERM|DONE 0",
            "the lock is gVisor's own; nothing is pinned on the host")),
)  # fmt: skip
