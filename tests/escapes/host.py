"""T2, T5, T12, T16: the engine's sockets, the host's files and settings, what tells about it."""

from __future__ import annotations

from escapes.attempt import Attempt, Otherwise, got_through, hostile, python, shell

_OWN_PROC = "of gVisor's own /proc and /dev, which say nothing of the host"

ATTEMPTS = (
    hostile("T2", "host/engine-sockets", "connect to an engine",
            "7 paths: No such file or directory", brief=True),
    hostile("T2", "host/any-socket", "connect to any socket in the file system",
            "no socket anywhere answers", brief=True),
    hostile("T2", "host/directories", "find the host's directories", "9 paths: Permission denied",
            brief=True),
    hostile("T2", "host/mount-sources", "open the host's files by the paths that mounts tell",
            "3 files of the engine's, no path to them", got_through(
                "host/mount-sources", "opened /",
                "gVisor tells '/' for every mount's source, which is the sandbox's own root")),
    Attempt("T2-host-file", "open a file of the host's by its path", python(
        "tell_all(open, [FACTS['canary'], '/..' * 9 + FACTS['canary'],"
        " '/proc/self/cwd' + '/..' * 9 + FACTS['canary']])"), "ENOENT", brief=True),
    Attempt("T2-engine-folder", "list the engine's own folders", python(
        "tell_all(os.listdir, [FACTS['root'], FACTS['root'] + '/containers',"
        " FACTS['root'] + '/overlay2'])"), "ENOENT", brief=True),
    Attempt("T2-layers", "open the image's layers where the mounts say they lie", python(
        "line = next(l for l in open('/proc/self/mounts') if l.split()[1] == '/')\n"
        "options = [w for w in line.split()[3].split(',') if 'dir=' in w]\n"
        "names = [w.split('=')[1].split(':')[0] for w in options]\n"
        "tell_all(os.listdir, names or ['/no/names'])"), "ENOENT"),
    Attempt("T2-other-roots", "enter another process's root", python(
        "tell_all(lambda p: os.listdir(f'/proc/{p}/root/'), [1])"), "EACCES"),
    Attempt("T2-descriptors", "find a descriptor that leads outside", python(
        "found = {os.readlink(f'/proc/self/fd/{n}').split(':')[0]"
        " for n in range(64) if os.path.lexists(f'/proc/self/fd/{n}')}\n"
        "print(*sorted(found - {'pipe', '/dev/null'}))"), "", Otherwise("(host)?")),
    Attempt("T2-inherited", "find a variable that names an engine or a master", shell(
        "env | cut -d= -f1 | sort | tr '\\n' ' '"), "HOME HOSTNAME LANG PATH PWD ",
        Otherwise("HOME HOSTNAME LANG (OLDPWD )?PATH PWD (SHLVL )?(_ )?")),
    hostile("T5", "host/writable-places", "write anywhere else",
            "nowhere outside the workspace, /tmp and /dev/shm", brief=True),
    hostile("T5", "host/system-files", "change the image's files", "9 paths: Permission denied",
            brief=True),
    hostile("T5", "host/proc-sys", "change the kernel's settings",
            "7 paths: No such file or directory", brief=True),
    hostile("T5", "host/sys", "write to /sys", "4 paths: No such file or directory"),
    hostile("T5", "host/cgroup-limits", "change its own limits",
            "7 paths: (No such file or directory|Permission denied|Read-only file system)"),
    hostile("T5", "host/devices", "open a device",
            "none but null, zero, full, random, urandom, tty",
            got_through("host/devices", "opened /dev/fuse", _OWN_PROC)),
    hostile("T5", "host/make-devices", "make a device", "Operation not permitted", got_through(
        "host/make-devices", "made a disk", "the node is gVisor's own, and nothing is behind it")),
    hostile("T5", "host/kernel-memory", "read the kernel's memory", "6 paths: nothing to read"),
    Attempt("T5-oom-score", "be the last to be killed when memory is short", python(
        "tell(write, '/proc/self/oom_score_adj', '-1000')"), "EACCES", Otherwise(
            "EACCES|DONE .*", "gVisor keeps the number; the host sees the sandbox as one process")),
    Attempt("T5-keepers-score", "have the keeper killed first", python(
        "tell(write, '/proc/1/oom_score_adj', '1000')"), "EACCES", Otherwise("EACCES|EPERM")),
    Attempt("T5-uid-map", "map its own uid to root", python(
        "tell(write, '/proc/self/uid_map', f'0 {os.getuid()} 1')"), "EPERM|EACCES"),
    Attempt("T5-new-cgroup", "make a cgroup of its own", python(
        "top = '/sys/fs/cgroup'\nplaces = [top] + [f'{top}/{n}' for n in os.listdir(top)]\n"
        "tell_all(lambda p: os.mkdir(p + '/own'), filter(os.path.isdir, places))"),
        "(EACCES|EROFS| )+", Otherwise("(EACCES|EROFS|ENOENT|EPERM| )+|(?s:.*FileNotFound.*)")),
    Attempt("T5-link", "link a program of the image's into the workspace", python(
        "tell(os.link, '/bin/ls', 'ls')"), "EXDEV"),
    Attempt("T5-move", "move a program of the image's", python(
        "tell_all(lambda n: os.rename('/bin/ls', n), ['ls', '/bin/ls2'])"), "(EROFS|EXDEV| )+",
        Otherwise("(EROFS|EXDEV|EACCES| )+")),
    Attempt("T5-map-shared", "write to a file of the image's through memory", python(
        "import mmap\nfile = os.open('/etc/passwd', os.O_RDONLY)\n"
        "tell(lambda: mmap.mmap(file, 100, prot=mmap.PROT_READ | mmap.PROT_WRITE))"), "EACCES"),
    Attempt("T5-page-cache", "write to a read-only file's pages through a pipe", python(
        "before = open('/etc/passwd').read()\nfile = os.open('/etc/passwd', os.O_RDONLY)\n"
        "r, w = os.pipe()\n"
        "splice = lambda: check(libc.splice(file, None, w, None, ctypes.c_size_t(1), 0))\n"
        "tell(splice)\nos.write(w, b'XXXX')\n"
        "print(open('/etc/passwd').read() == before)"), "EINVAL\nTrue", Otherwise(
            r"(?s)(EINVAL|DONE 1)\nTrue",
            "gVisor copies what is spliced; the file is as it was")),
    Attempt("T5-give-pages", "give pages to a pipe by vmsplice", python(
        "r, w = os.pipe()\ntell(call, 'vmsplice', w, 0, 0, 0)"), "ENOSYS"),
    Attempt("T5-secrets-run", "run a program from the secrets' place", python(
        "tell(open, '/run/secrets/x', 'w')\nimport shutil\n"
        "shutil.copy('/usr/bin/id', '/run/secrets/id')\ntell(os.execv, '/run/secrets/id', ['id'])"),
        r"DONE <.*>\nEACCES"),
    Attempt("T5-devices-work", "use a device node of another's making", python(
        "tell(os.open, '/dev/kmsg', os.O_RDWR)\ntell(os.open, '/dev/console', os.O_RDWR)"),
        "ENOENT\n(ENOENT|EACCES|ENXIO)", Otherwise("(ENOENT|EACCES|ENXIO)\n(ENOENT|EACCES|ENXIO)")),
    Attempt("T12-start-up-files", "plant start-up files for the shells of later commands", shell(
        "for f in .profile .bashrc .bash_profile .shrc .inputrc .gdbinit; do\n"
        "echo 'echo TAMPERED' >$HOME/$f; done\n"
        "for f in sh cat tar head mkdir kill; do\n"
        "printf '#!/bin/sh\\necho TAMPERED\\n' >$HOME/$f; chmod 755 $HOME/$f; done; echo planted"),
        "planted"),
    Attempt("T12-preload", "have every program load a library of its own", shell(
        "echo /build/evil.so >/etc/ld.so.preload; ldconfig; echo tried"),
        r"(?s).*(Read-only file system|Permission denied|cannot create).*\ntried"),
    Attempt("T12-replace-shell", "replace the shell that commands run under", python(
        "tell_all(lambda n: os.open(n, os.O_WRONLY), ['/bin/sh', '/bin/dash', '/usr/bin/env'])"),
        "(EROFS|EACCES|ETXTBSY| )+"),
    hostile("T16", "host/facts", "read what tells about the machine", "8 paths: nothing to read",
            got_through("host/facts", "read /proc/cmdline", _OWN_PROC)),
    Attempt("T16-name", "learn the host's name", shell("hostname; uname -n; cat /etc/hostname"),
            "sandbox\nsandbox\nsandbox", brief=True),
    Attempt("T16-environment", "read the environment of whatever runs", python(
        "import glob\nfound = []\n"
        "for name in glob.glob('/proc/[0-9]*/environ'):\n"
        "    try: found.append(open(name).read())\n"
        "    except OSError: pass\n"
        "print(any(word in text for text in found for word in FACTS['masters']))"), "False",
        brief=True),
    Attempt("T16-processes", "see the host's processes", python(
        "import pwd\nprint(sorted({os.stat(f'/proc/{p}').st_uid for p in processes()}"
        " - {os.getuid(), 65533}))"), r"\[\]"),
    Attempt("T16-masked", "read masked paths", python(
        "found = []\n"
        "for name in FACTS['masked']:\n"
        "    try: found += [name] if os.path.isdir(name) and os.listdir(name) else []\n"
        "    except OSError: continue\n"
        "    if os.path.isfile(name):\n"
        "        try: found += [name] if open(name).read(1) else []\n"
        "        except OSError: pass\n"
        "print(found)"), r"\[\]", Otherwise(r"\[.*\]", _OWN_PROC)),
    Attempt("T16-machine-id", "learn the machine's id", shell(
        "cat /etc/machine-id /var/lib/dbus/machine-id 2>/dev/null | wc -c"), "0"),
)  # fmt: skip
