"""The few lines of the image's own shell that every command runs under, and what they tell.

They tell a command's pid before it starts and its end after it has ended, on the very streams
that carry its output, framed by a word that nobody can guess beforehand.
That costs no further call to the engine, says whether a signal or an exit ended the command (the
engine's exit code does not), and marks the end even while a background child holds the streams
open.
A build that reads the word from ``/proc`` can fake the end of its own command, no more than that.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence

import attrs
from twisted.internet import error
from twisted.python.failure import Failure

_SIGNALS = "HUP INT QUIT ALRM TERM PIPE USR1 USR2"

_NO_STDIN = "none"

#: $1 and $2 the word (in two parts, so that it does not stand in the process list), $3 the
#: directory, $4 bytes of stdin (- for no end, or none at all), $5 variables to forget, $6 whether
#: what is no UTF-8 comes escaped (engines take JSON), $7 shell lines that make its environment,
#: then the command.
#: The innermost subshell becomes the command. The one around it waits and passes the exit status
#: on; shells say on their stderr when a child died by a signal (except INT and PIPE), and that
#: stderr goes down the same pipe. The reader at its end tells what came.
#: All but the command ignore the signals that are meant for it.
#: What is set before the command begins has names that no command's environment has.
#: Where a limit was met the end on stdout carries what the kernel has counted in the sandbox (see
#: `limits.Counts`), cgroup v1 or v2: read by builtins, as there may be no room for a fork.
LAUNCH = f"""\
__w=$1$2 __d=$3 __n=$4 __u=$5 __e=$6 __x=$7; shift 7
if [ -n "$__e" ]; then
__d=$(printf '%b.' "$__d"); __d=${{__d%.}}
for __a; do shift; __a=$(printf '%b.' "$__a"); set -- "$@" "${{__a%.}}"; done
fi
[ -d "$__d" ] || mkdir -p -- "$__d" || exit 125
cd -- "$__d" || exit 125
trap '' {_SIGNALS}
exec 3>&1 4>&2
printf '%s %s\\n' "$__w" "$$"
input() {{
case $__n in
-) wait_for "$@";;
{_NO_STDIN}) wait_for "$@" </dev/null;;
*) head -c "$__n" 2>/dev/null | wait_for "$@";;
esac
}}
wait_for() {{
( trap - {_SIGNALS}; unset $__u; eval "$__x"; exec >&3 2>&4 3>&- 4>&-; exec "$@" )
echo "$?"
}}
count() {{ [ ! -r "$2" ] || while read -r a b; do [ "$a" != "$1" ] || n=$b; done <"$2"; }}
{{ input "$@"; }} 2>&1 | {{
k=exit s=
while read -r l; do [ -z "$s" ] || k=signal; s=$l; done
case $s in ""|*[!0-9]*) s=255;; esac
g=/sys/fs/cgroup c= m=0 n=0
count oom_kill $g/memory/memory.oom_control; count oom_kill $g/memory.events; o=$n n=0
count max $g/pids/pids.events; count max $g/pids.events
[ "$o$n" = 00 ] || {{
for f in $g/memory/memory.max_usage_in_bytes $g/memory.peak; do [ ! -r $f ] || read -r m <$f; done
c=" $o $n $m"
}}
printf '%s %s %s%s\\n' "$__w" "$k" "$s" "$c"
printf '%s %s %s\\n' "$__w" "$k" "$s" >&4
exit "$s"
}}
"""


#: What shells and runtimes set on their own.
_UNASKED = ("HOME", "OLDPWD", "PATH", "PWD", "SHLVL")


def launch(
    word: str,
    directory: str,
    argv: Sequence[str],
    stdin: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """The exec's argv for a command.

    ``stdin``: how many bytes it will get, None for no end;
    ``environ``: what it shall see, None where that does not matter.
    """
    size = "-" if stdin is None else str(stdin)
    forget = [name for name in _UNASKED if environ is not None and name not in environ]
    texts = [directory, *argv]
    escape = not all(map(_is_utf8, texts))
    directory, *argv = map(_escaped, texts) if escape else texts
    return (
        *("/bin/sh", "-c", LAUNCH, "sh", word[:-8], word[-8:], directory, size),
        " ".join(forget) or "OLDPWD",
        "escaped" if escape else "",
        "",
        *argv,
    )


#: What a shell runs that waits for the lines of a command on its stdin: it tells its pid, takes
#: a line, then others up to one like it, and is `LAUNCH` with the arguments that these set.
#: ``read`` takes a byte at a time, so that what follows is left to the command.
WAIT = (
    """\
printf '%s\\n' "$$"
IFS= read -r t || exit 1
while :; do
IFS= read -r l || exit 1
[ "$l" != "$t" ] || break
s="$s$l
"
done
eval "$s"
"""
    + LAUNCH
)

#: Bytes of lines that a shell is given on its stdin; each costs it a system call.
LONGEST_LINES = 8192
#: What a shell or an engine may have set in such a shell beyond `_UNASKED`.
_INHERITED = ("HOSTNAME", "LANG", "TERM", "container")
#: Variables that every shell takes, and lets become the command's.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
#: Those that some shell does not let be set, or sets by itself.
_SHELLS_OWN = re.compile(
    r"U?E?UID|PPID|GROUPS|FUNCNAME|DIRSTACK|S?RANDOM|SECONDS|LINENO|IFS|EPOCH.*|HIST.*|COMP.*"
    r"|BASH.*|SHELLOPTS|OPT.*|MAIL.*|PS[0-9]"
)


def waiting(word: str) -> tuple[str, ...]:
    """The argv of a shell that waits for `lines`; ``word`` names it in its process list."""
    return ("/bin/sh", "-c", WAIT, word)


def lines(
    word: str,
    directory: str,
    argv: Sequence[str],
    stdin: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> bytes | None:
    """What makes a waiting shell run a command, as `launch` would; None where that is not sure.

    ``stdin``: how many bytes follow for it, None for no stdin at all.
    """
    unfit = [name for name in environ or () if not _is_fit(name)]
    forget = ["OLDPWD"]
    if environ is not None:
        forget = [name for name in (*_UNASKED, *_INHERITED) if name not in environ] or forget
    exports = [
        # As after any other "cd": without "." and ".." in it.
        "export PWD" if name == "PWD" else f"export {name}={shlex.quote(value)}"
        for name, value in (environ or {}).items()
    ]
    size = _NO_STDIN if stdin is None else str(stdin)
    words = (word[:-8], word[-8:], directory, size, " ".join(forget), "", "\n".join(exports), *argv)
    text = f"{word}\nset -- {' '.join(map(shlex.quote, words))}\n{word}\n"
    is_sure = text.isascii() and len(text) <= LONGEST_LINES and not unfit
    return text.encode() if is_sure else None


def _is_fit(name: str) -> bool:
    return _PLAIN.fullmatch(name) is not None and _SHELLS_OWN.fullmatch(name) is None


def _is_utf8(text: str) -> bool:
    """Whether it is text, and not bytes that Python smuggles in text (PEP 383)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(text: str) -> str:
    """For ``printf %b``: every byte as ``\\0ooo``."""
    return "".join(f"\\0{byte:03o}" for byte in os.fsencode(text))


#: What a build may make us keep by faking our words.
_LONGEST_WORD, _MOST_WORDS = 256, 8


@attrs.frozen
class Ended:
    """How a command ended: by an exit code, or by a signal's number."""

    exit_code: int | None = None
    signal: int | None = None

    @classmethod
    def told(cls, kind: str, status: int) -> Ended:
        """From the shell's words: 128 and the number for a signal."""
        if kind == "signal" and status > 128:
            return cls(signal=status - 128)
        return cls(exit_code=status)

    def reason(self) -> Failure:
        """As Twisted tells a process protocol."""
        if self.exit_code == 0:
            return Failure(error.ProcessDone(0))
        return Failure(error.ProcessTerminated(self.exit_code, self.signal, None))


@attrs.define
class Marked:
    """A stream's bytes, parted from our own words in them.

    ``feed`` gives the command's bytes; ``words`` collects what stood behind the marker.
    Keeps back only what may be the beginning of a marker.
    """

    marker: bytes
    words: list[str] = attrs.Factory(list)
    _kept: bytes = b""

    def feed(self, data: bytes) -> bytes:
        data, self._kept = self._kept + data, b""
        output = bytearray()
        while (found := data.find(self.marker)) >= 0:
            begin = found + len(self.marker)
            end = data.find(b"\n", begin, begin + _LONGEST_WORD)
            if end < 0 and len(data) < begin + _LONGEST_WORD:
                self._kept = data[found:]
                return bytes(output) + data[:found]
            if end < 0:  # Too long to be a word of ours.
                output += data[:begin]
                data = data[begin:]
                continue
            if len(self.words) < _MOST_WORDS:
                self.words.append(data[begin:end].decode(errors="replace").strip())
            output += data[:found]
            data = data[end + 1 :]
        cut = len(data) - self._beginning(data)
        self._kept = data[cut:]
        return bytes(output) + data[:cut]

    def _beginning(self, data: bytes) -> int:
        """How many bytes at the end of ``data`` begin a marker."""
        at = data.rfind(self.marker[:1], max(0, len(data) - len(self.marker) + 1))
        while at >= 0:
            if self.marker.startswith(data[at:]):
                return len(data) - at
            at = data.rfind(self.marker[:1], max(0, len(data) - len(self.marker) + 1), at)
        return 0
