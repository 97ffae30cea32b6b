"""What was measured, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import attrs
from cases import Outcome, Ratio
from rich.console import Console
from rich.table import Table


def ratio_of(outcome: Outcome, ratio: Ratio) -> float:
    """The quotient of the medians."""
    of, by = outcome.samples[ratio.of], outcome.samples[ratio.by]
    return statistics.median(of) / statistics.median(by)


def is_met(ratio: Ratio, value: float) -> bool | None:
    """Whether its target is met; None where it has none."""
    if ratio.target is None:
        return None
    return value >= ratio.target if ratio.least else round(value, 2) <= ratio.target


def as_json(outcomes: Mapping[str, Outcome], machine: Mapping[str, Any]) -> str:
    """Everything, the samples included."""
    return json.dumps(
        {
            "machine": machine,
            "cases": {
                name: {
                    "unit": outcome.unit,
                    "samples": outcome.samples,
                    "notes": list(outcome.notes),
                    "ratios": [
                        {
                            **attrs.asdict(ratio),
                            "value": round(value, 3),
                            "met": is_met(ratio, value),
                        }
                        for ratio in outcome.ratios
                        for value in [ratio_of(outcome, ratio)]
                    ],
                }
                for name, outcome in outcomes.items()
            },
        },
        indent=1,
        ensure_ascii=False,
    )


def machine(engine: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures hang on."""
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "engine": engine.get("Version", ""),
        "load before": round(os.getloadavg()[0], 2),
    }


def show(name: str, outcome: Outcome, console: Console) -> None:
    """A case's medians with their spread."""
    table = Table("what", f"median {outcome.unit}".strip(), "least", "most", "n", title=name)
    for what, values in outcome.samples.items():
        if what != "limit":
            figures = (statistics.median(values), min(values), max(values))
            table.add_row(what, *(f"{value:.3g}" for value in figures), str(len(values)))
    console.print(table)
    for line in outcome.notes:
        console.print(line)


def show_ratios(outcomes: Mapping[str, Outcome], console: Console) -> None:
    table = Table("ratio", "value", "target", "met")
    for outcome in outcomes.values():
        for ratio in outcome.ratios:
            value = ratio_of(outcome, ratio)
            sign = "≥" if ratio.least else "≤"
            target = "" if ratio.target is None else f"{sign} {ratio.target:g}"
            met = {True: "yes", False: "no", None: ""}[is_met(ratio, value)]
            table.add_row(ratio.name, f"{value:.2f}", target, met)
    console.print(table)


# ---- the picture ---------------------------------------------------------------------------------

_ROW, _LEFT, _WIDTH = 22, 330, 360


def picture(outcomes: Mapping[str, Outcome]) -> str:
    """Bars of all ratios, each with its target as a line, as SVG."""
    rows = [
        (ratio, ratio_of(outcome, ratio))
        for outcome in outcomes.values()
        for ratio in outcome.ratios
        if ratio.target != 0 and ratio.by != "limit"
    ]
    most = max([1.2, *(max(value, ratio.target or 0) for ratio, value in rows)])
    height = _ROW * (len(rows) + 2)
    size = f'width="{_LEFT + _WIDTH + 70}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        '<text x="10" y="16" font-weight="bold">Ratios of medians; the line is the target</text>',
    ]
    for number, (ratio, value) in enumerate(rows):
        lines += _bar(_ROW * (number + 1) + 6, ratio, value, most)
    return "\n".join([*lines, "</svg>", ""])


def _bar(top: int, ratio: Ratio, value: float, most: float) -> list[str]:
    fill = {True: "#3b8f5a", False: "#c4572b", None: "#7a8aa0"}[is_met(ratio, value)]
    width = _WIDTH * value / most
    parts = [
        f'<text x="{_LEFT - 8}" y="{top + 12}" text-anchor="end">{escape(ratio.name)}</text>',
        f'<rect x="{_LEFT}" y="{top}" width="{width:.0f}" height="15" fill="{fill}"/>',
        f'<text x="{_LEFT + width + 5:.0f}" y="{top + 12}">{value:.2f}</text>',
    ]
    if ratio.target is not None:
        at = _LEFT + _WIDTH * ratio.target / most
        parts.append(
            f'<line x1="{at:.0f}" x2="{at:.0f}" y1="{top - 2}" y2="{top + 17}" stroke="#000000"/>'
        )
    return parts


def write(outcomes: Mapping[str, Outcome], about: Mapping[str, Any], folder: Path) -> None:
    """``benchmarks.json`` and ``benchmarks.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks.json").write_text(as_json(outcomes, about) + "\n", encoding="utf-8")
    (folder / "benchmarks.svg").write_text(picture(outcomes), encoding="utf-8")
