"""The tables of the ranking: every run as CSV, and a short one per method as markdown."""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import exp, isfinite, isnan, log, nan
from pathlib import Path
from statistics import mean, median
from typing import Any

from diffguide.files.run_folders import write_atomically

from .methods import METHODS, MIDDLE, UNSUITED

__all__ = ["format_markdown", "middle_rows", "read_csv", "summarize", "write_csv"]

LARGEST = 1e4  # floors; a run that diverges would decide a mean


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every run, a row each; figures with four digits."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


TEXTS = ("law", "method", "knob", "value")


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of `write_csv`."""
    with open(path, encoding="utf-8") as file:
        return [
            {key: value if key in TEXTS or not value else float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def middle_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """method -> law -> the run with the first value of the knob and the scale of the short table."""
    found: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        name = row["method"]
        if name in METHODS:
            points = METHODS[name].points()
            scale, value = points[min(MIDDLE, len(METHODS[name].scales) - 1)]
        else:
            scale, value = (1.0 if name == "exact samples" else 3.0), ""
        if float(row["scale"]) == scale and row["value"] == str(value):
            found[name][row["law"]] = row
    return dict(found)


def average(values: Sequence[float], how: Any) -> float:
    """The mean over the laws on which a figure is defined; nan if there are none."""
    kept = [value for value in values if not isnan(value)]
    return how(kept) if kept else nan


def geometric(values: Sequence[float]) -> float:
    return exp(mean(log(min(max(value, 1e-3), LARGEST)) for value in values))


AVERAGES = {
    "agreement": mean, "conditional": geometric, "named": geometric, "acts_as": median, "nearest": geometric,
    "outliers": mean, "thinned": mean, "diversity": geometric,
}  # fmt: skip


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per method at its middle scale, over laws; nearest to the class first."""
    summary = []
    for name, laws in middle_rows(rows).items():
        runs = list(laws.values())
        figures = {key: average([run[key] for run in runs], how) for key, how in AVERAGES.items()}
        summary.append(
            {"method": name, "scale": runs[0]["scale"], "laws": len(runs), "steps": runs[0]["steps"]} | figures
        )
    return sorted(summary, key=lambda row: row["conditional"])


HEADS = {
    "method": "method", "scale": "scale", "steps": "steps", "agreement": "p(y given x)", "conditional": "to the class",
    "named": "to the law it names", "acts_as": "acts as w =", "nearest": "to that law", "outliers": "outliers",
    "thinned": "thinned", "diversity": "diversity",
}  # fmt: skip
PERCENT = ("outliers", "thinned", "agreement")


def format_cell(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isfinite(value):
        return ""
    if key in PERCENT:
        return f"{100 * value:.3g} %" if value < 0.995 or key != "agreement" else "100 %"
    return f"{value:.3g}"


def format_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The short table, and the methods that were not tried."""
    lines = ["| " + " | ".join(HEADS.values()) + " |", "|---" * len(HEADS) + "|"]
    for row in summarize(rows):
        lines.append("| " + " | ".join(format_cell(key, row[key]) for key in HEADS) + " |")
    lines += ["", "Not tried:", ""]
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in UNSUITED.items():
        reasons[reason].append(f"`{name}`")
    return "\n".join(lines + [f"- {', '.join(names)}: {reason}." for reason, names in reasons.items()]) + "\n"
