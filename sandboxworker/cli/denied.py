"""``sandboxworker try --explain-denied``: which system calls the profile refused a command.

The command runs under the image's own ``strace``, inside the same sandbox under the same profile,
so nothing is let through that would not be otherwise.
The kernel's log would need no ``strace``, but only root on the engine's host may read it, and
Docker Engine 20.10 drops the flag that makes refusals be logged.
"""

from __future__ import annotations

import configparser
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

_SOURCE = Path(__file__).resolve().parents[1] / "_seccomp" / "source.ini"
_LOG = "/tmp/.sandboxworker-denied"
#: Their refusal is told apart from an ordinary failure by these words alone.
_IOCTLS = "TIOCSTI|TIOCLINUX|TIOCSETD|FS_IOC_SETFLAGS|FS_IOC_FSSETXATTR"

#: $@ is the command. Each call is told once, with how often, and then why; where strace cannot
#: trace, the command runs without it and that is told.
_SCRIPT = """\
said() {{ echo "sandboxworker: $*" >&2; }}
if ! command -v strace >/dev/null; then
said "denied calls cannot be named: the image has no strace"; exec "$@"
fi
if ! strace -qq -o /dev/null true 2>/dev/null; then
said "denied calls cannot be named: this profile or runtime lets nobody trace"; exec "$@"
fi
rm -f {log}
strace -f -qq -Z -s 64 -e 'trace={calls}' -e signal=none -o {log} "$@"
ended=$?
if grep -Eq ' = -1 ({errors}) ' {log}; then said 'calls that the profile refused:'
else said 'the profile refused no call'; fi
grep -E ' = -1 ({errors}) ' {log} | sed -E 's/^[0-9]+ +//; s/ += -1 ([A-Z]+) .*/ = \\1/' |
grep -Ev '^ioctl\\(' | sort | uniq -c | sort -rn | head -n 40 |
while read -r times call; do
case ${{call%%"("*}} in
{reasons}
*) why= ;;
esac
said "$times times: $call${{why:+ -- $why}}"
done
grep -E '^[0-9]+ +ioctl\\(.*({ioctls}).* = -1 EPERM' {log} | sort -u | head -n 5 >&2
rm -f {log}
exit $ended
"""


@attrs.frozen
class Refusal:
    """Calls that the packaged profiles refuse, or refuse for some arguments, and why."""

    calls: tuple[str, ...]
    why: str


def refusals(source: str) -> Iterator[Refusal]:
    """What ``seccomp/source.ini`` refuses."""
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(source)
    for title in parser.sections():
        kind, _, name = title.partition(":")
        section = parser[title]
        why = " ".join(section["why"].split())
        if kind == "refuse" and section.get("errno") != "OK":
            yield Refusal(tuple(section["calls"].split()), why)
        elif kind == "filter":
            yield Refusal(tuple(name.split()), why)


def explained(command: Sequence[str], source: str | None = None) -> tuple[str, ...]:
    """The command that runs ``command`` and then says what was refused it, on standard error."""
    found = list(refusals(_SOURCE.read_text() if source is None else source))
    script = _SCRIPT.format(
        log=_LOG,
        calls=",".join(f"?{call}" for refusal in found for call in refusal.calls),
        errors="EPERM|ENOSYS|EINVAL|EAFNOSUPPORT",
        reasons="\n".join(
            f"{'|'.join(refusal.calls)}) why={shlex.quote(refusal.why)} ;;" for refusal in found
        ),
        ioctls=_IOCTLS,
    )
    return ("/bin/sh", "-c", script, "sh", *command)
