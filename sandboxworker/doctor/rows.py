"""One row for each thing that an engine must do; judged from what was found (pure)."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from sandboxworker.doctor.vulnerable import AS_OF, matches, versions_of
from sandboxworker.kernelview import unseen_by

_GIB = 1024**3
#: What a sandbox tells where its kernel has no such line.
NOT_SHOWN = "not shown"
#: What is told of a sandbox that ended instead.
ENDED = "ended"
#: Seconds beyond which a row warns.
SLOW = {"create": 2.0, "start": 3.0, "exec": 2.0, "remove": 5.0}
_SKEW_SECONDS = 2.0


class Status(enum.Enum):
    """How a row stands; ``UNKNOWN`` where nothing could be found out.

    ``NOTED``: not shown here, and not a failure; the row says why, and what holds instead.
    """

    OK = "ok"
    NOTED = "noted"
    WARNING = "warning"
    FAILS = "fails"
    UNKNOWN = "unknown"


@attrs.frozen
class Row:
    """``found``: what was seen; ``meaning``: what depends on it; ``fix``: how to mend it."""

    name: str
    status: Status
    found: str
    meaning: str
    fix: str


@attrs.frozen
class Facts:
    """``info`` and ``version``: the engine's answers; ``probed``: what the sandboxes told, by
    name; ``problem``: why none was to be had, with the settings that were not applied
    (``deviations``); ``runtime``: the one that was asked for, empty for the engine's own."""

    info: Mapping[str, Any]
    version: Mapping[str, Any]
    probed: Mapping[str, str] = attrs.field(factory=dict)
    seconds: Mapping[str, float] = attrs.field(factory=dict)
    skew: float | None = None
    problem: str = ""
    deviations: tuple[str, ...] = ()
    runtime: str = ""

    @property
    def kernel(self) -> str:
        """The runtime whose own kernel the sandboxes saw; empty where it was the host's."""
        return self.runtime if unseen_by(self.runtime) else ""


Judged = tuple[Status, str]
_SOCKETS = (
    "Boot the engine's host with cgroup v2 (systemd.unified_cgroup_hierarchy=1) and let the master "
    "have the engine's stats of a container, or run it as root on that host; sockets='unbounded' "
    "in a policy takes it as it is"
)
_KERNEL = "Give the kernel that controller (boot options, kernel configuration), then restart it"
_PROFILE = "Build the kernel with CONFIG_SECCOMP_FILTER and the engine with seccomp"
_TMPFS = "Use a runtime that applies size, nr_inodes, uid and gid of a tmpfs"

#: Name: what it means, how to fix it.
TEXTS: dict[str, tuple[str, str]] = {
    "sandbox": ("a sandbox starts as asked", "Mend what the row says; see 'sandboxworker try'"),
    "memory": ("a build cannot use more memory than its policy says", _KERNEL),
    "swap": ("a build's memory and secrets do not reach the disk",
             "Boot with swapaccount=1 or cgroup v2, or turn the host's swap off"),
    "oom": ("a build that is ended for its memory is told so",
            "Update engine and runtime; builds then fail with signal 9 alone"),
    "sockets": ("what waits in a build's sockets is bounded by its memory", _SOCKETS),
    "pids": ("a fork bomb stops", _KERNEL),
    "cpu": ("a build leaves processors to others", _KERNEL),
    "nofile": ("open files are bounded", "Take the ulimits out of the engine's own settings"),
    "disk": ("the workspace cannot grow beyond its size", _TMPFS),
    "inodes": ("the workspace cannot hold more files than it may", _TMPFS),
    "shm": ("/dev/shm is bounded", _TMPFS),
    "seccomp": ("dangerous system calls are refused", _PROFILE),
    "no_new_privs": ("set-uid programs have no effect", "Update the runtime"),
    "capabilities": ("a build has no capability", "Update the runtime; do not run it privileged"),
    "uid": ("a build is not root", "Update the runtime"),
    "namespaces": ("a build makes no user namespace of its own", _PROFILE),
    "root": ("the image is read-only", "Update the runtime"),
    "network": ("a build has no network", "Update the engine"),
    "cgroup": ("limits can be enforced at all",
               "Run the engine as root, or rootless with the controllers of cgroup v2 delegated"),
    "users": ("root inside is or is not root outside",
              "Nothing: a sandbox has no root. userns-remap or rootless are a second wall"),
    "quota": ("which ways there are to bound a workspace", "Nothing is needed for tmpfs"),
    "disk_backing": ("a workspace on disk (disk_backing='disk') cannot grow beyond its size",
                     "Use 'tmpfs', or run the master as root on the engine's host"),
    "runtimes": ("which OCI runtimes a policy may name", "Add others to the engine's daemon.json"),
    "clock": ("deadlines in labels mean the same on both sides", "Run a time service on both"),
    "space": ("the engine can store images and containers", "Free some of its disk"),
    "versions": ("no version is known to let a build out", "Update what the row names"),
    **{f"latency {name}": ("builds start quickly", "Look at the engine's host: load, disk, memory")
       for name in SLOW},
}  # fmt: skip

#: Which row a setting that was not applied belongs to, by its name; the first that fits.
_SETTINGS = tuple(
    (re.compile(pattern, re.IGNORECASE), row)
    for pattern, row in (
        ("nonewprivs|no.new.priv", "no_new_privs"),
        ("seccomp|securityopt", "seccomp"),
        (r"\bcap(eff|prm|bnd|inh|amb|add|drop)|privileged", "capabilities"),
        ("pids", "pids"),
        ("swap", "swap"),
        ("memory", "memory"),
        ("cpu", "cpu"),
        ("open files|nofile|ulimit", "nofile"),
        ("shm", "shm"),
        (r"readonly|^/$", "root"),
        ("tmpfs|^/", "disk"),
        ("network|interface", "network"),
        (r"\buids?\b|^user", "uid"),
    )
)


def judge(facts: Facts) -> list[Row]:
    """Every row, in the order of `TEXTS`."""
    return [Row(name, *_judged(name, facts), *texts) for name, texts in TEXTS.items()]


def _judged(name: str, facts: Facts) -> Judged:
    told = [each for each in facts.deviations if _row_of(each) == name]
    if told:
        return Status.FAILS, "not applied: " + "; ".join(told)
    if name.startswith("latency "):
        return _latency(name.partition(" ")[2], facts)
    lacking = _lacking(name, facts.info)
    if lacking:
        return Status.FAILS, lacking
    if name in _BY_PROBE and (told_by := facts.probed.get(name)) is not None:
        return _instead(name, facts, _BY_PROBE[name](told_by, facts))
    if name in _BY_FACTS:
        return _BY_FACTS[name](facts)
    return Status.UNKNOWN, facts.problem or "no sandbox could tell"


def _row_of(deviation: str) -> str:
    setting = deviation.partition(": asked for ")[0].removesuffix(" (as the kernel sees it)")
    return next((row for pattern, row in _SETTINGS if pattern.search(setting)), "sandbox")


#: What an engine says of its own kernel.
_FLAGS = {"memory": "MemoryLimit", "swap": "SwapLimit", "pids": "PidsLimit", "cpu": "CpuCfsQuota"}


def _lacking(name: str, info: Mapping[str, Any]) -> str:
    flag = _FLAGS.get(name)
    if flag is not None and info.get(flag) is False:
        return f"the engine says that its kernel cannot ({flag})"
    options = " ".join(info.get("SecurityOptions") or ())
    if name == "seccomp" and info.get("SecurityOptions") is not None and "seccomp" not in options:
        return "the engine says that it has no seccomp"
    return ""


# ---- by what a sandbox told ----------------------------------------------------------------------


def _is(wanted: str, good: str, bad: str) -> Callable[[str, Facts], Judged]:
    def judged(told: str, _facts: Facts) -> Judged:
        if told == wanted:
            return Status.OK, good
        return Status.FAILS, bad.format(told)

    return judged


def _held(what: str) -> Callable[[str, Facts], Judged]:
    """``told``: how far it came, and how far it may."""

    def judged(told: str, _facts: Facts) -> Judged:
        reached, _, allowed = told.partition("/")
        if not reached.isdigit():
            return Status.UNKNOWN, f"the sandbox told {told!r}"
        if int(reached) <= int(allowed):
            return Status.OK, f"stopped at {reached} of {allowed} {what}"
        return Status.FAILS, f"{reached} {what} were to be had where {allowed} are allowed"

    return judged


def _memory(told: str, _facts: Facts) -> Judged:
    if told == "killed":
        return Status.OK, "ended when it had used up its memory"
    return (Status.FAILS if told.startswith("it had ") else Status.UNKNOWN), f"not killed: {told}"


def _pids(told: str, facts: Facts) -> Judged:
    """A kernel of the runtime's own gets no more processes either, and then gives up as a whole."""
    if told != ENDED:
        return _held("processes")(told, facts)
    status = Status.OK if facts.kernel else Status.FAILS
    return status, "the whole sandbox ended when it had no process left"


def _no_new_privileges(told: str, _facts: Facts) -> Judged:
    if told == "1":
        return Status.OK, "it is set"
    if told == NOT_SHOWN:
        return Status.UNKNOWN, "the kernel does not show it"
    return Status.FAILS, f"it is {told}"


def _disk_backing(told: str, _facts: Facts) -> Judged:
    """``told``: how it went, and what it went wrong with."""
    how, _, what = told.partition(" ")
    if how == "held":
        return Status.OK, "stopped at its bytes and at its files"
    if how == "refused":
        return Status.NOTED, f"not to be had: {what}; a workspace in memory is"
    return Status.FAILS, what


def _cpu(told: str, _facts: Facts) -> Judged:
    used, _, allowed = told.partition("/")
    if float(used) <= float(allowed):
        return Status.OK, f"{used} s used where {allowed} s are allowed"
    return Status.FAILS, f"{used} s used where {allowed} s are allowed"


def _space(told: str, _facts: Facts) -> Judged:
    if not told.isdigit():
        return Status.UNKNOWN, "df told nothing"
    free = int(told) * 1024
    status = Status.OK if free > 2 * _GIB else Status.WARNING
    return status, f"{free / _GIB:.1f} GiB are free"


def _oom(told: str, _facts: Facts) -> Judged:
    if told == "true":
        return Status.OK, "the engine tells it"
    return Status.WARNING, "the engine did not tell it"


def _sockets(told: str, _facts: Facts) -> Judged:
    how, _, what = told.partition(" ")
    if how != "bounded":
        return Status.FAILS, f"nothing but the limits for all sockets of the host bounds it: {what}"
    if float(what):
        return Status.OK, f"bounded, by figures that the engine tells every {what} s"
    return Status.OK, "bounded"


_BY_PROBE: dict[str, Callable[[str, Facts], Judged]] = {
    "sandbox": _is("ready", "it does", "{}"),
    "memory": _memory,
    "swap": _is("same", "no swap beyond the memory", "{}"),
    "oom": _oom,
    "sockets": _sockets,
    "pids": _pids,
    "cpu": _cpu,
    "nofile": _held("open files"),
    "disk": _held("KiB"),
    "inodes": _held("files"),
    "shm": _held("KiB"),
    "seccomp": _is("2", "the profile is applied", "no filter is applied (Seccomp: {})"),
    "no_new_privs": _no_new_privileges,
    "capabilities": _is("0", "none", "it has {}"),
    "uid": lambda told, _: (Status.FAILS if told == "0" else Status.OK, f"uid {told}"),
    "namespaces": _is("refused", "refused", "unshare was {}"),
    "root": _is("refused", "nothing can be written", "a write was {}"),
    "network": _is("lo", "loopback alone", "interfaces: {}"),
    "space": _space,
    "disk_backing": _disk_backing,
}

#: What a kernel of the runtime's own does not show, or answers itself: what holds there instead,
#: and the row that has to hold for it.
_INSTEAD = {
    "seccomp": ("answers system calls itself; the engine says that the profile is set", "sandbox"),
    "no_new_privs": ("does not show it; the engine says that it is set", "sandbox"),
    "namespaces": ("makes it in a kernel of its own, which is not the host's", "sandbox"),
    "inodes": ("does not count files; they use up the sandbox's memory", "memory"),
}


def _instead(name: str, facts: Facts, judged: Judged) -> Judged:
    """Not a failure where that is only what cannot be seen, and what holds instead was proved."""
    status, found = judged
    if not facts.kernel or name not in _INSTEAD or status is Status.OK:
        return judged
    why, other = _INSTEAD[name]
    if _judged(other, facts)[0] is not Status.OK:
        return judged
    return Status.NOTED, f"{found}; {facts.kernel} {why}"


# ---- by what the engine says ---------------------------------------------------------------------


def _cgroup(facts: Facts) -> Judged:
    driver, version = facts.info.get("CgroupDriver"), facts.info.get("CgroupVersion", "1")
    if driver in (None, "", "none"):
        return Status.FAILS, "the engine has no cgroup driver: it accepts limits and enforces none"
    return Status.OK, f"version {version}, driver {driver}"


def _users(facts: Facts) -> Judged:
    options = " ".join(facts.info.get("SecurityOptions") or ())
    ways = [way for way in ("rootless", "userns") if f"name={way}" in options]
    return Status.OK, " and ".join(ways) or "the engine is root's, without user namespaces"


def _quota(facts: Facts) -> Judged:
    status = dict(facts.info.get("DriverStatus") or ())
    backing = status.get("Backing Filesystem", "unknown")
    return Status.OK, f"tmpfs; images on {facts.info.get('Driver')} over {backing}"


def _runtimes(facts: Facts) -> Judged:
    names = ", ".join(sorted(facts.info.get("Runtimes") or ())) or "none told"
    tried = f"; tried {facts.runtime}" if facts.runtime else ""
    return Status.OK, f"{names}; default {facts.info.get('DefaultRuntime')}{tried}"


def _clock(facts: Facts) -> Judged:
    if facts.skew is None:
        return Status.UNKNOWN, "the engine does not tell its time"
    status = Status.OK if abs(facts.skew) <= _SKEW_SECONDS else Status.WARNING
    return status, f"{abs(facts.skew):.1f} s apart"


def _versions(facts: Facts) -> Judged:
    found = matches(versions_of(facts.version))
    certain = [each for each in found if each.is_certain]
    if certain:
        return Status.FAILS, "; ".join(f"{each} ({each.known.reference})" for each in certain)
    if found:
        names = "; ".join(
            f"{each.known.product} {each.version}: {each.known.name}" for each in found
        )
        return Status.WARNING, f"{names}, unless the distribution has mended it"
    return Status.OK, f"none of the {AS_OF} table"


def _latency(name: str, facts: Facts) -> Judged:
    seconds = facts.seconds.get(name)
    if seconds is None:
        return Status.UNKNOWN, facts.problem or "not measured"
    return (Status.OK if seconds <= SLOW[name] else Status.WARNING), f"{seconds:.3f} s"


def _sandbox(facts: Facts) -> Judged:
    """Why none was to be had is told by the rows of the settings, where there are such."""
    if any(_row_of(each) != "sandbox" for each in facts.deviations):
        return Status.UNKNOWN, facts.problem
    return Status.FAILS, facts.problem or "none could be started"


_BY_FACTS: dict[str, Callable[[Facts], Judged]] = {
    "sandbox": _sandbox,
    "cgroup": _cgroup,
    "users": _users,
    "quota": _quota,
    "runtimes": _runtimes,
    "clock": _clock,
    "versions": _versions,
}


def worst(rows: list[Row]) -> Iterator[Status]:
    """Each status that occurs, the worst first."""
    for status in (Status.FAILS, Status.WARNING, Status.UNKNOWN, Status.NOTED, Status.OK):
        if any(row.status is status for row in rows):
            yield status
