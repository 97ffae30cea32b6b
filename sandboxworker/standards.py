"""A running sandbox held against standards that others wrote: one row for each, with what was seen.

Pure: the engine's inspect answer and a process's own view in, rows out.
The CIS Docker Benchmark's section 5 is numbered as in its version 1.6.0; the Pod Security Standards
are Kubernetes' "restricted" level; T1 to T20 are those of ``docs/threat-model.md``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs

from sandboxworker.kernelview import View, parse_amount, unseen_by
from sandboxworker.spec import ETC_FILES, SECRETS_PATH, ContainerSpec, Identity

CIS, PODS, THREATS = "CIS Docker 5", "Pod Security", "Threat model"
_STATUS, _KEEPER = "/proc/self/status", "/proc/1/status"
#: Mounts of the engine's own and of the kernel's.
_OWN = ("/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


class Verdict(enum.Enum):
    """What came of a row."""

    HOLDS = "holds"
    FAILS = "fails"
    #: No single sandbox can show it; the row says where it is proved.
    ELSEWHERE = "elsewhere"


@attrs.frozen
class Row:
    """One requirement, and what was seen of it."""

    standard: str
    id: str
    requirement: str
    verdict: Verdict
    seen: str


@attrs.frozen
class Seen:
    """All that is known of the sandbox: what was asked, what the engine says, what it sees."""

    spec: ContainerSpec
    identity: Identity
    inspected: Mapping[str, Any]
    view: View

    @property
    def host(self) -> Mapping[str, Any]:
        """The engine's ``HostConfig``."""
        found: Mapping[str, Any] = self.inspected.get("HostConfig") or {}
        return found

    def setting(self, name: str) -> Any:
        """One of the engine's settings."""
        return self.host.get(name)

    def option(self, name: str) -> str:
        """A security option: ``name=value`` or ``name:value``; empty where there is none."""
        for line in self.setting("SecurityOpt") or ():
            if line.replace(":", "=", 1).startswith(f"{name}="):
                return str(line[len(name) + 1 :])
        return ""

    @property
    def writable(self) -> list[str]:
        """Places that a build can write to, the kernel's own file systems aside."""
        return sorted(
            place
            for place, mount in self.view.mounts.items()
            if "ro" not in mount.options and not (place.startswith(_OWN) and place != "/dev/shm")
        )


#: What was seen, and whether it is as required.
Check = Callable[[Seen], tuple[bool, object]]


def _empty(*names: str) -> Check:
    """None of these settings may hold anything."""

    def check(seen: Seen) -> tuple[bool, object]:
        held = {name: seen.setting(name) for name in names if seen.setting(name)}
        return not held, held or "none"

    return check


def _one_of(name: str, *allowed: object) -> Check:
    def check(seen: Seen) -> tuple[bool, object]:
        return seen.setting(name) in allowed, f"{name} is {seen.setting(name)!r}"

    return check


def _at_least(name: str) -> Check:
    def check(seen: Seen) -> tuple[bool, object]:
        return (seen.setting(name) or 0) > 0, f"{name} is {seen.setting(name)}"

    return check


def _user(seen: Seen) -> tuple[bool, object]:
    uids = {
        who: seen.view.status(file).get("Uid", "").split()
        for who, file in (("build", _STATUS), ("keeper", _KEEPER))
    }
    told = ", ".join(f"{who} {' '.join(sorted(set(found)))}" for who, found in uids.items())
    return all(found and "0" not in found for found in uids.values()), told


def _capabilities(seen: Seen) -> tuple[bool, object]:
    status = seen.view.status(_STATUS)
    held = {name: bits for name, bits in status.items() if name.startswith("Cap") and int(bits, 16)}
    asked = seen.setting("CapDrop") == ["ALL"] and not seen.setting("CapAdd")
    return asked and not held, held or "every set is empty, ALL dropped, none added"


def _no_new_privileges(seen: Seen) -> tuple[bool, object]:
    told = seen.view.status(_STATUS).get("NoNewPrivs", "not shown")
    return told != "0" and seen.option("no-new-privileges") == "true", f"NoNewPrivs is {told}"


def _seccomp(seen: Seen) -> tuple[bool, object]:
    profile = seen.option("seccomp")
    told = seen.view.status(_STATUS).get("Seccomp", "not shown")
    hidden = "seccomp" in unseen_by(seen.spec.runtime)
    name = f"profile {seen.spec.seccomp.name} {seen.spec.seccomp.digest[:19]}, Seccomp is {told}"
    return profile not in ("", "unconfined") and (hidden or told == "2"), name


def _apparmor(seen: Seen) -> tuple[bool, object]:
    told = seen.view.files.get("/proc/self/attr/current", "").strip("\0 \n")
    return seen.option("apparmor") != "unconfined", told or "this kernel has no AppArmor"


def _root(seen: Seen) -> tuple[bool, object]:
    return seen.setting("ReadonlyRootfs") is True, f"writable: {', '.join(seen.writable)}"


def _propagation(seen: Seen) -> tuple[bool, object]:
    found = {mount.get("Propagation") for mount in seen.inspected.get("Mounts") or ()}
    return not found & {"shared", "rshared"}, found - {"", None} or "no mount that could be shared"


def _network(seen: Seen) -> tuple[bool, object]:
    lines = seen.view.files.get("/proc/net/dev", "").splitlines()
    devices = [line.partition(":")[0].strip() for line in lines if ":" in line]
    return devices == ["lo"] and seen.setting("NetworkMode") == "none", f"interfaces: {devices}"


def _no_host_paths(seen: Seen) -> tuple[bool, object]:
    binds = [*(seen.setting("Binds") or ()), *(seen.setting("Mounts") or ())]
    others = [place for place in seen.view.mounts if place.endswith(".sock")]
    found = [bind for bind in binds if not _is_its_own(bind, seen)] + others
    return not found, found or "no bind and no socket"


def _is_its_own(mount: Any, seen: Seen) -> bool:
    """Its disk, or one of the two files that every container has from its engine."""
    target = mount.get("Target") if isinstance(mount, Mapping) else None
    if seen.spec.disk is not None and target == seen.spec.disk.path:
        return True
    etc = {f"/etc/{name}" for name in ETC_FILES} if seen.identity.etc else set()
    return target in etc and mount.get("ReadOnly") is True


def _ulimits(seen: Seen) -> tuple[bool, object]:
    names = ("Max open files", "Max core file size", "Max locked memory")
    found = {name: seen.view.limits.get(name) for name in names}
    told = ", ".join(f"{name[4:]} {value[0]}" for name, value in found.items() if value)
    return bool(seen.setting("Ulimits")), told or "set; not shown by this runtime"


def _sysctls(seen: Seen) -> tuple[bool, object]:
    found = seen.setting("Sysctls") or {}
    return all(name.startswith("net.") for name in found), f"of its own network only: {found}"


def _writable(seen: Seen) -> tuple[bool, object]:
    asked = {"/dev/shm", *(tmpfs.path for tmpfs in seen.spec.tmpfs)}
    asked |= {seen.spec.disk.path} if seen.spec.disk else set()
    mounts = seen.view.mounts
    loose = [place for place in asked if place in mounts and not _tight(seen, place)]
    extra = set(seen.writable) - asked
    return not loose and not extra, f"writable: {', '.join(seen.writable)}; loose: {loose}"


def _tight(seen: Seen, place: str) -> bool:
    hidden = "options" in unseen_by(seen.spec.runtime)
    return hidden or {"nosuid", "nodev"} <= seen.view.mounts[place].options


def _memory(seen: Seen) -> tuple[bool, object]:
    limit, with_swap = seen.setting("Memory"), seen.setting("MemorySwap")
    return bool(limit) and limit == with_swap, f"{limit} bytes, and as much with swap"


def _all_memory(seen: Seen) -> tuple[bool, object]:
    """A sandbox whose sockets are not bounded does not start, unless its policy takes that."""
    holds, told = _memory(seen)
    is_bounded = seen.spec.bounds_sockets
    sockets = "what waits in sockets too" if is_bounded else "the policy takes unbounded sockets"
    return holds and is_bounded, f"{told}; {sockets}"


def _quotas(seen: Seen) -> tuple[bool, object]:
    sizes = {
        place: mount.settings.get("size")
        for place, mount in seen.view.mounts.items()
        if place in seen.writable and mount.type == "tmpfs"
    }
    known = all(parse_amount(size or "") for size in sizes.values())
    disk = f"; {seen.spec.disk.path} on a disk of its own" if seen.spec.disk else ""
    return known, ", ".join(f"{place} {size}" for place, size in sorted(sizes.items())) + disk


def _execs(seen: Seen) -> tuple[bool, object]:
    config = seen.inspected.get("Config") or {}
    told = f"user {seen.identity.user}, from {config.get('WorkingDir')!r}"
    return config.get("WorkingDir") == "/" and seen.identity.uid > 0, told


def _alone(seen: Seen) -> tuple[bool, object]:
    shared = [*(seen.setting("VolumesFrom") or ()), *(seen.setting("Links") or ())]
    is_so = not shared and seen.setting("IpcMode") == "private"
    return is_so, f"uid {seen.identity.uid} of its own, IPC {seen.setting('IpcMode')}"


def _keeper(seen: Seen) -> tuple[bool, object]:
    uid = seen.view.status(_KEEPER).get("Uid", "").split()
    is_so = bool(uid) and str(seen.identity.uid) not in uid and seen.setting("AutoRemove") is True
    return is_so, f"keeper's uid {uid[0] if uid else 'not seen'}, removed when it ends"


def _secrets(seen: Seen) -> tuple[bool, object]:
    place = next((one for one in seen.spec.tmpfs if one.path == SECRETS_PATH), None)
    is_so = place is not None and not place.executable and SECRETS_PATH in seen.view.mounts
    return is_so, f"{SECRETS_PATH}: {place.size if place else 0} bytes of memory, noexec"


def _masked(seen: Seen) -> tuple[bool, object]:
    asked = seen.spec.masked_paths
    missing = set(asked) - set(seen.setting("MaskedPaths") or ())
    name = (seen.inspected.get("Config") or {}).get("Hostname")
    covered = sum(path in seen.view.mounts for path in asked)
    told = f"host name {name}, {len(asked)} masked, of which the kernel shows {covered}"
    return not missing and name == "sandbox", told


def _log(seen: Seen) -> tuple[bool, object]:
    driver = (seen.setting("LogConfig") or {}).get("Type")
    return driver == "none", f"log driver {driver}; the policy's max_output bounds the rest"


_UNPRIVILEGED = _one_of("Privileged", False)
_CHECKS: tuple[tuple[str, str, str, Check], ...] = (
    (CIS, "5.2", "AppArmor is not switched off", _apparmor),
    (CIS, "5.4", "capabilities are restricted", _capabilities),
    (CIS, "5.5", "not privileged", _UNPRIVILEGED),
    (CIS, "5.6", "no sensitive directory of the host", _no_host_paths),
    (CIS, "5.8", "no privileged port mapped", _empty("PortBindings", "PublishAllPorts")),
    (CIS, "5.9", "only needed ports open", _empty("PortBindings", "PublishAllPorts")),
    (CIS, "5.10", "not the host's network", _network),
    (CIS, "5.11", "memory is limited", _memory),
    (CIS, "5.12", "processor share is limited", _at_least("NanoCpus")),
    (CIS, "5.13", "the root file system is read-only", _root),
    (CIS, "5.14", "incoming traffic bound to an interface", _empty("PortBindings")),
    (CIS, "5.15", "restarts on failure, at most 5 times", lambda seen: (
        (seen.setting("RestartPolicy") or {}).get("Name") in ("no", ""), "never restarted")),
    (CIS, "5.16", "not the host's processes", _one_of("PidMode", "")),
    (CIS, "5.17", "not the host's IPC", _one_of("IpcMode", "private")),
    (CIS, "5.18", "no device of the host", _empty("Devices", "DeviceRequests",
                                                   "DeviceCgroupRules")),
    (CIS, "5.19", "resource limits of processes are set", _ulimits),
    (CIS, "5.20", "no shared mount propagation", _propagation),
    (CIS, "5.21", "not the host's UTS namespace", _one_of("UTSMode", "")),
    (CIS, "5.22", "seccomp is not switched off", _seccomp),
    (CIS, "5.23", "no privileged exec", _execs),
    (CIS, "5.24", "no exec as root", _execs),
    (CIS, "5.25", "the cgroup is the engine's choice", _empty("CgroupParent")),
    (CIS, "5.26", "no new privileges", _no_new_privileges),
    (CIS, "5.29", "processes are limited", _at_least("PidsLimit")),
    (CIS, "5.30", "not on the default bridge", _network),
    (CIS, "5.31", "not the host's user namespace by request", _one_of("UsernsMode", "")),
    (CIS, "5.32", "no engine's socket inside", _no_host_paths),
    (PODS, "privileged", "not privileged", _UNPRIVILEGED),
    (PODS, "host namespaces", "none of the host's", lambda seen: (
        all(seen.setting(name) in ("", "private", "none") for name in
            ("PidMode", "IpcMode", "UTSMode", "NetworkMode")), "network none, IPC private")),
    (PODS, "capabilities", "ALL dropped", _capabilities),
    (PODS, "host paths", "no path of the host", _no_host_paths),
    (PODS, "host ports", "none", _empty("PortBindings", "PublishAllPorts")),
    (PODS, "AppArmor", "not switched off", _apparmor),
    (PODS, "proc mount", "masked as by default", _masked),
    (PODS, "seccomp", "a profile is set", _seccomp),
    (PODS, "sysctls", "only those of its own namespaces", _sysctls),
    (PODS, "volumes", "only memory and disks of its own", _no_host_paths),
    (PODS, "privilege escalation", "not allowed", _no_new_privileges),
    (PODS, "non-root", "runs as non-root, by number", _user),
    (THREATS, "T1", "no network but loopback", _network),
    (THREATS, "T2", "no socket and no path of the host", _no_host_paths),
    (THREATS, "T3", "neither root nor a capability", lambda seen: (
        _user(seen)[0] and _capabilities(seen)[0] and _no_new_privileges(seen)[0],
        f"{_user(seen)[1]}; {_capabilities(seen)[1]}")),
    (THREATS, "T4", "system calls are filtered", _seccomp),
    (THREATS, "T5", "nothing else is writable", _writable),
    (THREATS, "T6", "processes are limited", _at_least("PidsLimit")),
    (THREATS, "T7", "memory is limited, without swap", _all_memory),
    (THREATS, "T8", "every writable place has a size", _quotas),
    (THREATS, "T9", "processor share is limited", _at_least("NanoCpus")),
    (THREATS, "T10", "output goes to no disk", _log),
    (THREATS, "T12", "commands enter at / as nobody in particular", _execs),
    (THREATS, "T13", "nothing is shared with a neighbour", _alone),
    (THREATS, "T14", "a keeper of another user", _keeper),
    (THREATS, "T15", "secrets have a place in memory", _secrets),
    (THREATS, "T16", "what tells about the host is masked", _masked),
    (THREATS, "T18", "no cache that others write to", _alone),
)  # fmt: skip

_ELSEWHERE: tuple[tuple[str, str, str, str], ...] = (
    (CIS, "5.1", "swarm mode is off where it is not needed", "the engine's setting: docker info"),
    (CIS, "5.3", "SELinux where the host has it", "the engine's setting: docker info"),
    (CIS, "5.7", "no ssh server inside", "the keeper is the only program of a new sandbox"),
    (CIS, "5.27", "health is checked", "no check: the keeper's stream tells of its end at once"),
    (CIS, "5.28", "the newest image", "the operator's choice: pin it by digest"),
    (THREATS, "T11", "lies in answers and files", "tests/containment/test_lying_tools.py"),
    (THREATS, "T17", "builds that starve the service", "tests/integration/test_builds.py"),
    (THREATS, "T19", "a build chooses its own policy", "buildbot checkconfig"),
    (THREATS, "T20", "known faults of the engine", "sandboxworker doctor, without --sandbox"),
)


def rows(seen: Seen) -> list[Row]:
    """Every requirement, in the order of the standards."""
    found = [*_checked(seen), *(Row(*row[:3], Verdict.ELSEWHERE, row[3]) for row in _ELSEWHERE)]
    order = (CIS, PODS, THREATS)
    return sorted(found, key=lambda row: (order.index(row.standard), _place(row.id)))


def _checked(seen: Seen) -> Iterator[Row]:
    for standard, name, requirement, check in _CHECKS:
        holds, what = check(seen)
        verdict = Verdict.HOLDS if holds else Verdict.FAILS
        yield Row(standard, name, requirement, verdict, str(what))


def _place(name: str) -> int:
    """The number in ``5.12`` or ``T7``; names without one keep their order."""
    digits = name.removeprefix("T").removeprefix("5.")
    return int(digits) if digits.isdecimal() else 0


def failures(found: Iterable[Row]) -> list[Row]:
    """Those that do not hold."""
    return [row for row in found if row.verdict is Verdict.FAILS]
