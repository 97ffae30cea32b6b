"""Whether the kernel applied what was asked: what a fresh process sees, against the spec.

Pure. `conformance` has the engine's word that it asked the kernel; this has the kernel's own,
through the image's shell before any build has touched it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from sandboxworker.conformance import Deviation
from sandboxworker.spec import (
    DISK_TYPE,
    ETC_FILES,
    MASKED_PATHS,
    OOM_SCORE_ADJ,
    SYSCTLS,
    ContainerSpec,
    Identity,
)

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
#: Numbers of the namespaces that a machine starts with (Linux, ``include/linux/proc_ns.h``).
_FIRST = {"ipc": 0xEFFFFFFF, "uts": 0xEFFFFFFE, "pid": 0xEFFFFFFC, "cgroup": 0xEFFFFFFB}
#: Those of which each sandbox has its own. A user namespace is the engine's to give.
_OWN = ("cgroup", "ipc", "mnt", "net", "pid", "uts")

_STATUS, _KEEPER = "/proc/self/status", "/proc/1/status"
_OOM, _KEEPERS_OOM = "/proc/self/oom_score_adj", "/proc/1/oom_score_adj"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_APPARMOR = "/proc/self/attr/current"
_CGROUP = "/sys/fs/cgroup"
_SYSCTL_FILES = {name: f"/proc/sys/{name.replace('.', '/')}" for name, _ in SYSCTLS}
_FILES = (
    *(_STATUS, _KEEPER, "/proc/self/mountinfo", "/proc/self/limits", _BOOT_ID, _APPARMOR),
    *(_OOM, _KEEPERS_OOM),
    *("/proc/net/dev", "/proc/net/if_inet6"),
    *_SYSCTL_FILES.values(),
    *(f"/etc/{name}" for name in ETC_FILES),
    *(f"{_CGROUP}/{name}" for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max")),
    *(f"{_CGROUP}/memory/memory.{name}_in_bytes" for name in ("limit", "memsw.limit")),
    *(f"{_CGROUP}/cpu/cpu.cfs_{name}_us" for name in ("quota", "period")),
    f"{_CGROUP}/pids/pids.max",
)
_MARK = "sandboxworker-view"
_PATH, _NONE = "path ", "none"
#: Prints each file behind a line with its name, what each namespace is, and which paths there are.
LOOK = (
    f'for f in "$@"; do echo; echo "{_MARK} $f"; case $f in '
    f'"{_PATH}"*) [ -e "${{f#{_PATH}}}" ] && echo there || echo {_NONE};; '
    '*/ns/*) readlink "$f";; *) cat "$f";; esac; done 2>/dev/null; :'
)
LOOKED_AT = (
    *_FILES,
    *(f"/proc/self/ns/{name}" for name in NAMESPACES),
    *(f"{_PATH}{path}" for path in MASKED_PATHS),
)

#: What a runtime with a kernel of its own cannot show, or shows in its own way
#: (docs/threat-model.md, "gVisor").
_GVISOR = frozenset(
    {"ambient", "cgroup", "disk", "inodes", "limits", "lsm", "masks", "namespaces", "options"}
    | {"oom", "processors", "seccomp", "sysctls"}
)
_RUNTIMES = (("runsc", _GVISOR), ("gvisor", _GVISOR))

#: What runtimes mask with: a directory in memory, or the null device of one.
_EMPTY = ("tmpfs", "devtmpfs")

#: Bytes by which a limit may differ: the kernel rounds to pages, of 64 KiB on some machines.
_PAGE = 65536

#: The engine's own mounts, which are its own files or the kernel's, and no build's to write.
_ENGINES_OWN = re.compile(r"/(?:dev|proc|sys)(?:/.*)?|/etc/(?:hosts|hostname|resolv\.conf)")


@attrs.frozen
class Mount:
    """One line of ``mountinfo``: a place, how it is mounted, and the file system behind it."""

    place: str
    options: frozenset[str]
    type: str
    source: str
    settings: Mapping[str, str]


@attrs.frozen
class View:
    """What a process in the sandbox reads, by the file's name; a missing one is empty."""

    files: Mapping[str, str]

    def status(self, file: str) -> Mapping[str, str]:
        """The fields of a ``status`` file."""
        lines = (line.partition(":") for line in self.files.get(file, "").splitlines())
        return {name: value.strip() for name, _, value in lines}

    @property
    def boot_id(self) -> str:
        """Names this run of the kernel."""
        return self.files.get(_BOOT_ID, "").strip()

    @property
    def mounts(self) -> Mapping[str, Mount]:
        """By place; what lies under another mount of the same place is not seen."""
        lines = self.files.get("/proc/self/mountinfo", "").splitlines()
        return {mount.place: mount for mount in map(_mount, lines) if mount}

    @property
    def limits(self) -> Mapping[str, tuple[str, ...]]:
        """Soft and hard limit by name (``proc(5)``: columns of fixed width)."""
        lines = self.files.get("/proc/self/limits", "").splitlines()[1:]
        return {line[:26].strip(): tuple(line[26:].split()[:2]) for line in lines}

    @property
    def namespaces(self) -> Mapping[str, int]:
        """The number of each."""
        found = (
            (name, re.search(r"\[(\d+)\]", self.files.get(f"/proc/self/ns/{name}", "")))
            for name in NAMESPACES
        )
        return {name: int(match[1]) for name, match in found if match}

    def number(self, *names: str) -> int | None:
        """The first of these cgroup files that is there, as a number; None where it is none."""
        for name in names:
            text = self.files.get(f"{_CGROUP}/{name}", "").strip()
            if text:
                return int(text) if re.fullmatch(r"-?\d+", text) else None
        return None


def _mount(line: str) -> Mount | None:
    """``36 35 0:32 / /build rw,nosuid shared:1 - tmpfs tmpfs rw,size=8k`` (``proc(5)``)."""
    first, separator, second = line.partition(" - ")
    left, right = first.split(), second.split()
    if not separator or len(left) < 6 or len(right) < 3:
        return None
    settings = dict(option.partition("=")[::2] for option in right[2].split(","))
    return Mount(_plain(left[4]), frozenset(left[5].split(",")), right[0], right[1], settings)


def _plain(path: str) -> str:
    """``mountinfo`` writes blanks and the like in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def parse(output: str) -> View:
    """The output of `LOOK` over `LOOKED_AT`."""
    parts = re.split(rf"^{_MARK} (.+)\n", output, flags=re.MULTILINE)
    return View(dict(zip(parts[1::2], (text.strip("\n") for text in parts[2::2]), strict=True)))


@attrs.frozen
class Expected:
    """What the view is held against.

    ``outside``: the namespaces of this process, where it runs on the same kernel; else empty.
    ``lsm``: whether the engine says that it confines containers by AppArmor.
    """

    spec: ContainerSpec
    identity: Identity
    outside: Mapping[str, int]
    lsm: bool = False


def unseen_by(runtime: str | None) -> frozenset[str]:
    """Which of `CHECKS` an OCI runtime cannot show."""
    known = (unseen for name, unseen in _RUNTIMES if name in (runtime or ""))
    return next(known, frozenset())


def kernel_deviations(view: View, expected: Expected) -> tuple[Deviation, ...]:
    """Everything in which the kernel's view differs from the spec; empty where nothing does."""
    unseen = unseen_by(expected.spec.runtime)
    return tuple(
        deviation
        for name, check in CHECKS.items()
        if name not in unseen
        for deviation in check(view, expected)
    )


def _unless(is_so: bool, setting: str, asked: object, seen: object) -> Iterable[Deviation]:
    if not is_so:
        yield Deviation(f"{setting} (as the kernel sees it)", asked, seen)


def _users(view: View, expected: Expected) -> Iterable[Deviation]:
    identity, keeper = expected.identity, expected.spec.keeper_uid
    for who, file, uid, gid in (
        ("build", _STATUS, identity.uid, identity.gid),
        ("keeper", _KEEPER, keeper, keeper),
    ):
        status = view.status(file)
        for name, number in (("Uid", uid), ("Gid", gid)):
            seen = status.get(name, "").split()
            yield from _unless(seen == [str(number)] * 4, f"{who}'s {name}", number, seen)
        groups = set(status.get("Groups", "").split())
        yield from _unless(groups <= {str(gid)}, f"{who}'s groups", [gid], sorted(groups))


def _privileges(view: View, expected: Expected) -> Iterable[Deviation]:
    for who, file in (("build", _STATUS), ("keeper", _KEEPER)):
        status = view.status(file)
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd"):
            yield from _no_capability(f"{who}'s {name}", status.get(name, ""))
        # Kernels before 4.10 and gVisor do not tell it; the engine's answer was compared.
        yield from _unless(
            status.get("NoNewPrivs", "1") == "1", f"{who}'s NoNewPrivs", 1, status.get("NoNewPrivs")
        )


def _ambient(view: View, expected: Expected) -> Iterable[Deviation]:
    for who, file in (("build", _STATUS), ("keeper", _KEEPER)):
        yield from _no_capability(f"{who}'s CapAmb", view.status(file).get("CapAmb", ""))


def _no_capability(which: str, seen: str) -> Iterable[Deviation]:
    yield from _unless(bool(re.fullmatch("0+", seen)), which, "no capability", seen)


def _seccomp(view: View, expected: Expected) -> Iterable[Deviation]:
    for who, file in (("build", _STATUS), ("keeper", _KEEPER)):
        status = view.status(file)
        yield from _unless(
            status.get("Seccomp") == "2", f"{who}'s Seccomp", 2, status.get("Seccomp")
        )
        filters = status.get("Seccomp_filters", "1")
        yield from _unless(filters != "0", f"{who}'s seccomp filters", "one", filters)


def _mounts(view: View, expected: Expected) -> Iterable[Deviation]:
    """Each place is there and writable, in memory where it should be, and nothing else is."""
    spec, mounts = expected.spec, view.mounts
    root = mounts.get("/")
    yield from _unless(root is not None and "ro" in root.options, "/", "read-only", root)
    for place in _writable(spec):
        kind = None if spec.disk and place == spec.disk.path else "tmpfs"
        mount = mounts.get(place)
        is_so = mount is not None and "rw" in mount.options and mount.type == (kind or mount.type)
        yield from _unless(is_so, place, f"a writable {kind or 'disk'}", mount)
    for place, mount in mounts.items():
        is_so = "ro" in mount.options or bool(_ENGINES_OWN.fullmatch(place))
        is_so = is_so or place in {"/", *_writable(spec)}
        yield from _unless(is_so, "mounts", "nothing else that is writable", mount)


def _masks(view: View, expected: Expected) -> Iterable[Deviation]:
    """Over each path to mask that there is lies an empty file or directory."""
    spec, mounts = expected.spec, view.mounts
    for path in spec.masked_paths:
        is_none = view.files.get(f"{_PATH}{path}", "").strip() == _NONE
        is_masked = path in mounts and mounts[path].type in _EMPTY
        yield from _unless(is_masked or is_none, path, "masked", mounts.get(path, "the host's"))
    for path in spec.readonly_paths:
        mount = mounts.get(path)
        yield from _unless(mount is not None and "ro" in mount.options, path, "read-only", mount)


def _writable(spec: ContainerSpec) -> tuple[str, ...]:
    on_disk = () if spec.disk is None else (spec.disk.path,)
    return ("/dev/shm", *(tmpfs.path for tmpfs in spec.tmpfs), *on_disk)


def _options(view: View, expected: Expected) -> Iterable[Deviation]:
    spec = expected.spec
    executable = {tmpfs.path for tmpfs in spec.tmpfs if tmpfs.executable}
    executable |= {spec.disk.path} if spec.disk else set()
    for place in _writable(spec):
        asked = {"nosuid", "nodev", *(() if place in executable else ("noexec",))}
        seen = view.mounts[place].options if place in view.mounts else frozenset[str]()
        yield from _unless(asked <= seen, f"options of {place}", sorted(asked), sorted(seen))


def _disk(view: View, expected: Expected) -> Iterable[Deviation]:
    disk = expected.spec.disk
    if disk is not None:
        mount = view.mounts.get(disk.path)
        is_so = mount is not None and mount.type == DISK_TYPE
        yield from _unless(is_so, disk.path, DISK_TYPE, mount)


def _sizes(view: View, expected: Expected) -> Iterable[Deviation]:
    sizes = {tmpfs.path: tmpfs.size for tmpfs in expected.spec.tmpfs}
    for place, asked in {**sizes, "/dev/shm": expected.spec.shm}.items():
        seen = _setting(view, place, "size")
        is_so = seen is not None and asked <= seen <= asked + _PAGE
        yield from _unless(is_so, f"size of {place}", asked, seen)


def _inodes(view: View, expected: Expected) -> Iterable[Deviation]:
    for tmpfs in expected.spec.tmpfs:
        seen = _setting(view, tmpfs.path, "nr_inodes")
        yield from _unless(seen == tmpfs.inodes, f"inodes of {tmpfs.path}", tmpfs.inodes, seen)


def _setting(view: View, place: str, name: str) -> int | None:
    mount = view.mounts.get(place)
    return None if mount is None else parse_amount(mount.settings.get(name, ""))


def parse_amount(text: str) -> int | None:
    """``8192k`` as the kernel writes it; None for what is no amount."""
    match = re.fullmatch(r"(\d+)([kmg]?)", text)
    return None if match is None else int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]]


def _cgroup(view: View, expected: Expected) -> Iterable[Deviation]:
    spec = expected.spec
    memory = view.number("memory.max", "memory/memory.limit_in_bytes")
    yield from _unless(_about(memory, spec.memory), "memory", spec.memory, memory)
    pids = view.number("pids.max", "pids/pids.max")
    yield from _unless(pids == spec.pids, "pids", spec.pids, pids)
    cpus = _cpus(view)
    is_so = cpus is not None and abs(cpus - spec.cpus) <= 0.01 * max(spec.cpus, 1)
    yield from _unless(is_so, "cpus", spec.cpus, cpus)
    # Files that a kernel without swap does not have; the engine warns where it cannot limit it.
    with_swap = view.number("memory/memory.memsw.limit_in_bytes")
    is_so = with_swap is None or _about(with_swap, spec.memory)
    yield from _unless(is_so, "memory and swap", spec.memory, with_swap)
    swap = view.files.get(f"{_CGROUP}/memory.swap.max", "").strip() or "0"
    yield from _unless(swap == "0", "swap", 0, swap)


def _about(seen: int | None, asked: int) -> bool:
    return seen is not None and asked - _PAGE <= seen <= asked


def _cpus(view: View) -> float | None:
    """The share of processor time, in cores; None where it is not limited, or not shown."""
    quota, _, period = view.files.get(f"{_CGROUP}/cpu.max", "").strip().partition(" ")
    if not quota:
        quota, period = (
            view.files.get(f"{_CGROUP}/cpu/cpu.cfs_{name}_us", "").strip()
            for name in ("quota", "period")
        )
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _oom(view: View, expected: Expected) -> Iterable[Deviation]:
    """A build and its keeper are killed before what their host lives on."""
    for who, file in (("build", _OOM), ("keeper", _KEEPERS_OOM)):
        seen = view.files.get(file, "").strip()
        is_so = seen.isdecimal() and int(seen) >= OOM_SCORE_ADJ
        yield from _unless(is_so, f"{who}'s OomScoreAdj", OOM_SCORE_ADJ, seen)


def _processors(view: View, expected: Expected) -> Iterable[Deviation]:
    asked = expected.identity.cpuset
    seen = view.status(_STATUS).get("Cpus_allowed_list", "")
    is_so = not asked or parse_list(seen) == parse_list(asked)
    yield from _unless(is_so, "processors", asked, seen)


def parse_list(text: str) -> frozenset[int] | None:
    """``0-2,5``, as the kernel lists processors; None for anything else."""
    if not re.fullmatch(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", text):
        return None
    ranges = (part.partition("-") for part in text.split(","))
    return frozenset(
        number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)
    )


def _namespaces(view: View, expected: Expected) -> Iterable[Deviation]:
    for name in _OWN:
        seen = view.namespaces.get(name)
        shared = {_FIRST.get(name), expected.outside.get(name)} - {None}
        yield from _unless(
            seen is not None and seen not in shared, f"{name} namespace", "one of its own", seen
        )


def _limits(view: View, expected: Expected) -> Iterable[Deviation]:
    spec = expected.spec
    for name, asked in (
        ("Max open files", spec.nofile),
        ("Max locked memory", spec.memlock),
        ("Max core file size", spec.core),
    ):
        seen = view.limits.get(name)
        yield from _unless(seen == (str(asked),) * 2, name, asked, seen)


def _network(view: View, expected: Expected) -> Iterable[Deviation]:
    lines = view.files.get("/proc/net/dev", "").splitlines()
    devices = [line.partition(":")[0].strip() for line in lines if ":" in line]
    yield from _unless(devices == ["lo"], "network devices", ["lo"], devices)
    # A kernel without IPv6 has no such file; one with it lists ::1 first.
    addresses = [line.split()[0] for line in _lines(view, "/proc/net/if_inet6")]
    is_so = not addresses or addresses == [f"{1:032x}"]
    yield from _unless(is_so, "IPv6 addresses", ["::1"], addresses)


def _sysctls(view: View, expected: Expected) -> Iterable[Deviation]:
    for name, asked in SYSCTLS:
        seen = view.files.get(_SYSCTL_FILES[name], "").split()
        yield from _unless(seen == asked.split(), name, asked, " ".join(seen))


def _names(view: View, expected: Expected) -> Iterable[Deviation]:
    """Where the files are ours: they lie where others may have been."""
    for name, text in ETC_FILES.items() if expected.identity.etc else ():
        seen = view.files.get(f"/etc/{name}", "")
        yield from _unless(_lines(view, f"/etc/{name}") == text.splitlines(), name, text, seen)


def _lines(view: View, file: str) -> list[str]:
    return [line for line in view.files.get(file, "").splitlines() if line.strip()]


def _lsm(view: View, expected: Expected) -> Iterable[Deviation]:
    seen = view.files.get(_APPARMOR, "").strip("\0\n ")
    is_so = not expected.lsm or (bool(seen) and not seen.startswith("unconfined"))
    yield from _unless(is_so, "AppArmor", "a profile", seen or "none")


CHECKS: Mapping[str, Callable[[View, Expected], Iterable[Deviation]]] = {
    "users": _users,
    "privileges": _privileges,
    "ambient": _ambient,
    "seccomp": _seccomp,
    "mounts": _mounts,
    "options": _options,
    "masks": _masks,
    "disk": _disk,
    "sizes": _sizes,
    "inodes": _inodes,
    "cgroup": _cgroup,
    "oom": _oom,
    "processors": _processors,
    "namespaces": _namespaces,
    "limits": _limits,
    "network": _network,
    "sysctls": _sysctls,
    "names": _names,
    "lsm": _lsm,
}


def outside(boot_id: str, read: Callable[[str], str], view: View) -> dict[str, Any]:
    """This process's own namespaces, where it runs on the view's kernel."""
    if not boot_id or boot_id != view.boot_id:
        return {}
    own = View({f"/proc/self/ns/{name}": read(f"/proc/self/ns/{name}") for name in NAMESPACES})
    return dict(own.namespaces)
