"""Load, check and digest a seccomp profile.

A profile is JSON in the form that Docker reads. ``parse`` refuses what would not protect:
a profile that allows by default, that lets a dangerous call through, or that says something
an engine would read otherwise than we do. It sees no files; ``load`` does.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

from sandboxworker.errors import SeccompError

PACKAGED = ("build", "strict")
MAX_BYTES = 1 << 20
MAX_ERRNO = 4095

_WORD = (1 << 64) - 1

_DIRECTORY = Path(__file__).parent / "_seccomp"

_REFUSING = {"SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS"}
# These let a call through: logged, as a tracer wills, or as a listener wills.
_PASSING = {"SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_NOTIFY"}
_ACTIONS = _REFUSING | _PASSING | {"SCMP_ACT_TRAP"}

# Every other architecture is a second entry to a 64-bit kernel, past the argument filters.
_ARCHITECTURES = {
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_LOONGARCH64",
}

# Engines match keys whatever their case and ignore those they do not know: so none may be unknown.
_TOP_KEYS = {"defaultAction", "defaultErrnoRet", "architectures", "archMap", "syscalls"}
_ARCHITECTURE_KEYS = {"architecture", "subArchitectures"}
_RULE_KEYS = {"names", "name", "action", "args", "errnoRet", "comment", "includes", "excludes"}
_ARGUMENT_KEYS = {"index", "value", "valueTwo", "op"}
_CONDITION_KEYS = {"caps", "arches", "minKernel"}

# No sandbox is one with these, whatever their arguments (T4 of the threat model).
_NEVER = {
    "mounts": "mount umount umount2 pivot_root chroot",
    "new mounts": "fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr",
    "mounts made writable": "mount_setattr",
    "namespaces": "unshare setns clone3",
    "programs in the kernel": "bpf perf_event_open",
    "races made wide": "userfaultfd",
    "keyrings": "add_key request_key keyctl",
    "files past every directory": "open_by_handle_at",
    "work that no filter sees": "io_uring_setup io_uring_enter io_uring_register",
    "kernel modules": "init_module finit_module delete_module create_module",
    "another kernel": "kexec_load kexec_file_load reboot",
    "the host's clock": "settimeofday clock_settime clock_settime64 stime",
    "the host's disks": "swapon swapoff quotactl quotactl_fd acct fanotify_init",
    "the host": "iopl ioperm syslog sethostname setdomainname vhangup",
}
DANGEROUS = {name: what for what, names in _NEVER.items() for name in names.split()}

_HIGH = 1 << 32
# No sandbox is one where these arguments pass; the high bit is one that kernels cut off.
HOSTILE = (
    ("clone", (0x10000000,), "a new user namespace"),
    ("clone", (0x00020000,), "a new mount namespace"),
    ("clone", (0x40000000,), "a new network namespace"),
    ("clone", (_HIGH | 0x10000000,), "a new user namespace, with a high bit set"),
    ("socket", (38, 5, 0), "AF_ALG"),
    ("socket", (40, 1, 0), "AF_VSOCK"),
    ("socket", (_HIGH | 40, 1, 0), "AF_VSOCK, with a high bit set"),
    ("socket", (17, 3, 0), "AF_PACKET"),
    ("socket", (16, 3, 12), "netlink to netfilter"),
    ("ioctl", (0, 0x5412), "TIOCSTI"),
    ("ioctl", (0, _HIGH | 0x5412), "TIOCSTI, with a high bit set"),
    ("ioctl", (0, 0x541C), "TIOCLINUX"),
)
_COMPARISONS: dict[str, Callable[[int, int, int], bool]] = {
    "SCMP_CMP_EQ": lambda argument, value, _: argument == value,
    "SCMP_CMP_NE": lambda argument, value, _: argument != value,
    "SCMP_CMP_LT": lambda argument, value, _: argument < value,
    "SCMP_CMP_LE": lambda argument, value, _: argument <= value,
    "SCMP_CMP_GT": lambda argument, value, _: argument > value,
    "SCMP_CMP_GE": lambda argument, value, _: argument >= value,
    "SCMP_CMP_MASKED_EQ": lambda argument, mask, value: argument & mask == value,
}


@attrs.frozen
class Profile:
    """A checked profile: its canonical text, and the digest that names it in a spec."""

    name: str
    text: str = attrs.field(repr=False)
    digest: str


def load(name_or_path: str) -> Profile:
    """The packaged profile of that name, or the one in that file."""
    if "/" in name_or_path or name_or_path.endswith(".json"):
        path = Path(name_or_path)
    elif name_or_path in PACKAGED:
        path = _DIRECTORY / f"{name_or_path}.json"
    else:
        raise SeccompError(
            name_or_path,
            [f"no such profile; there are {', '.join(PACKAGED)}, or a path with '/' or '.json'"],
        )
    return parse(_read(path, name_or_path), name_or_path)


def _read(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise SeccompError(name, [f"cannot be read: {error.strerror}"]) from None
    except (UnicodeDecodeError, ValueError):
        raise SeccompError(name, ["not UTF-8 text"]) from None
    if len(content) > MAX_BYTES:
        raise SeccompError(name, [f"larger than {MAX_BYTES} bytes"])
    return text


@functools.lru_cache(maxsize=16)
def parse(text: str, name: str) -> Profile:
    """Check a profile and name it by its digest; raise ``SeccompError`` with every fault."""
    content = _decoded(text, name)
    if not isinstance(content, dict):
        raise SeccompError(name, ["not a JSON object"])
    faults = list(_profile_faults(content))
    if faults:
        raise SeccompError(name, faults)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return Profile(name, canonical, f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}")


def _decoded(text: str, name: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise SeccompError(name, [f"not JSON: {error.msg} ({where})"]) from None
    except RecursionError:
        raise SeccompError(name, ["not JSON: nested too deeply"]) from None
    except ValueError as error:
        raise SeccompError(name, [f"not JSON: {error}"]) from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose keys come once; of two, engines and we might believe different ones."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return content


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _profile_faults(content: dict[str, Any]) -> Iterator[str]:
    yield from _unknown_keys("the profile", content, _TOP_KEYS)
    default = content.get("defaultAction")
    if not _is_one_of(_REFUSING, default):
        yield f"defaultAction is {default!r}, not SCMP_ACT_ERRNO or SCMP_ACT_KILL_PROCESS"
    yield from _architecture_faults(content)
    rules = content.get("syscalls")
    if not isinstance(rules, list) or not rules:
        yield "syscalls is not a list of rules"
        return
    for number, rule in enumerate(rules):
        yield from (f"syscalls[{number}]: {fault}" for fault in _rule_faults(rule))


def _is_one_of(words: set[str], value: object) -> bool:
    return isinstance(value, str) and value in words


def _unknown_keys(what: str, content: dict[str, Any], known: set[str]) -> Iterator[str]:
    unknown = sorted(set(content) - known)
    if unknown:
        yield f"{what} has unknown keys {', '.join(map(repr, unknown))}"


def _architecture_faults(content: dict[str, Any]) -> Iterator[str]:
    try:
        named = list(_architectures(content))
    except (AttributeError, KeyError, TypeError):
        yield "architectures or archMap is not in the form that Docker reads"
        return
    for entry in content.get("archMap") or ():
        yield from _unknown_keys("archMap", entry, _ARCHITECTURE_KEYS)
    others = {str(name) for name in named} - _ARCHITECTURES
    if others:
        shown = ", ".join(sorted(others))
        yield f"{shown}: entry points past the argument filters; only native 64-bit ones may be"


def _architectures(content: dict[str, Any]) -> Iterator[object]:
    yield from content.get("architectures") or ()
    for entry in content.get("archMap") or ():
        yield entry["architecture"]
        yield from entry.get("subArchitectures") or ()


def _rule_faults(rule: object) -> Iterator[str]:
    if not isinstance(rule, dict):
        yield "not an object"
        return
    shape = list(_shape_faults(rule))
    yield from shape
    if not shape and rule["action"] in _PASSING and not _needs_capability(rule):
        yield from _opening_faults(rule)


def _shape_faults(rule: dict[str, Any]) -> Iterator[str]:
    yield from _unknown_keys("the rule", rule, _RULE_KEYS)
    if not _is_one_of(_ACTIONS, rule.get("action")):
        yield f"action is {rule.get('action')!r}"
    names = _names(rule)
    if not names or not all(isinstance(name, str) and name for name in names):
        yield "names is not a list of system calls"
    if not _is_number(rule.get("errnoRet", 0), MAX_ERRNO):
        yield f"errnoRet is {rule['errnoRet']!r}"
    yield from _argument_faults(rule.get("args"))
    for key in ("includes", "excludes"):
        yield from _condition_faults(key, rule.get(key))


def _names(rule: dict[str, Any]) -> list[Any]:
    names = rule.get("names") or []
    return [*names, *filter(None, [rule.get("name")])] if isinstance(names, list) else []


def _argument_faults(arguments: object) -> Iterator[str]:
    if arguments is None:
        return
    if not isinstance(arguments, list) or not all(isinstance(each, dict) for each in arguments):
        yield "args is not a list of conditions"
        return
    for each in arguments:
        yield from _unknown_keys("a condition", each, _ARGUMENT_KEYS)
        if not _is_condition(each):
            yield f"not a condition: {each!r}"


def _is_condition(argument: dict[str, Any]) -> bool:
    return (
        isinstance(argument.get("op"), str)
        and argument["op"] in _COMPARISONS
        and _is_number(argument.get("index"), 5)
        and _is_number(argument.get("value"), _WORD)
        and _is_number(argument.get("valueTwo", 0), _WORD)
    )


def _is_number(value: object, greatest: int) -> bool:
    return type(value) is int and 0 <= value <= greatest


def _condition_faults(key: str, condition: object) -> Iterator[str]:
    if condition is None:
        return
    if not isinstance(condition, dict):
        yield f"{key} is not an object"
        return
    yield from _unknown_keys(key, condition, _CONDITION_KEYS)


def _needs_capability(rule: dict[str, Any]) -> bool:
    """Whether a rule applies only to containers with a capability; a sandbox has none."""
    return bool((rule.get("includes") or {}).get("caps"))


def _opening_faults(rule: dict[str, Any]) -> Iterator[str]:
    names = _names(rule)
    for name in sorted(DANGEROUS.keys() & set(names)):
        yield f"lets {name} through ({DANGEROUS[name]})"
    for name, arguments, what in HOSTILE:
        if name in names and _passes(rule, arguments):
            yield f"lets {name} through for {what}"


def _passes(rule: dict[str, Any], arguments: tuple[int, ...]) -> bool:
    """Whether a rule covers these arguments; those not given count as 0.

    Two conditions on one argument hold as "or": runc makes a rule of each.
    """
    conditions = rule.get("args") or []
    held = [_holds(each, arguments) for each in conditions]
    indexes = [each["index"] for each in conditions]
    return all(held) if len(indexes) == len(set(indexes)) else any(held)


def _holds(condition: dict[str, Any], arguments: tuple[int, ...]) -> bool:
    argument = dict(enumerate(arguments)).get(condition["index"], 0)
    compare = _COMPARISONS[condition["op"]]
    return compare(argument, condition["value"], condition.get("valueTwo", 0))
