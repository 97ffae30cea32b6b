"""One attempt of a hostile build: its program, and how it must fail."""

from __future__ import annotations

from pathlib import Path

import attrs

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "hostile"

#: Where the programs lie inside, and what they are told of the world outside.
FOLDER = "/build/attack"


@attrs.frozen
class Otherwise:
    """What comes out under gVisor instead, and why that lets nobody out.

    ``because`` is empty where only the word for the same refusal differs.
    """

    told: str
    because: str = ""


@attrs.frozen
class Attempt:
    """``told``: a pattern for all that the program says (``re.fullmatch``), none of it a success.

    ``brief``: also in the short selection that always runs under gVisor.
    """

    id: str
    what: str
    argv: tuple[str, ...]
    told: str
    under_gvisor: Otherwise | None = None
    brief: bool = False

    def expected(self, runtime: str) -> str:
        """What must be told under this runtime."""
        if runtime == "runsc" and self.under_gvisor is not None:
            return self.under_gvisor.told
        return self.told

    @property
    def row(self) -> str:
        """The row of the threat model."""
        return self.id.partition("-")[0]


def python(code: str) -> tuple[str, ...]:
    """A program that has `inside` at hand."""
    return ("python3", "-c", f"from inside import *\n{code}")


def shell(code: str) -> tuple[str, ...]:
    """A few lines of shell; what they complain about counts as told."""
    return ("sh", "-c", f"exec 2>&1\n{code}")


def hostile(
    row: str,
    name: str,
    what: str,
    told: str,
    under_gvisor: Otherwise | None = None,
    *,
    brief: bool = False,
) -> Attempt:
    """One of the programs of ``examples/hostile``; ``told`` is the reason in its line."""
    if under_gvisor is not None:
        line = under_gvisor.told
        if not line.startswith("ATTEMPT"):
            line = _line(name, "refused", line)
        under_gvisor = attrs.evolve(under_gvisor, told=line)
    return Attempt(
        id=f"{row}-{name.replace('/', '-')}",
        what=what,
        argv=("./attempts", name),
        told=_line(name, "refused", told),
        under_gvisor=under_gvisor,
        brief=brief,
    )


def got_through(name: str, how: str, because: str) -> Otherwise:
    """A program of ``examples/hostile`` that does get somewhere, inside gVisor's own kernel."""
    return Otherwise(_line(name, "GOT THROUGH", how), because)


def _line(name: str, verdict: str, reason: str) -> str:
    return rf"ATTEMPT {name}: {verdict} \({reason}\)\nATTEMPTS 1"
