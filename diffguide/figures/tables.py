"""The files of an evaluation: metrics.json, tables of figures, the curve and its plots; one table for several runs."""

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from ..files.run_folders import create_sweep_dir, shorten_path, strict_json, write_together
from ..files.shards import write_npz
from . import curves
from .plot_spec import Panel, Plot

__all__ = ["plot_to_json", "write_comparison", "write_run"]

REPETITION_KEYS = ("images", "weights", "split", "dataset", "n")  # equal in rows that repeat a measurement


def plot_to_json(plot: Plot) -> dict[str, Any]:
    """A plot as mappings and lists."""
    return plot._asdict() | {"panels": [panel._asdict() for panel in plot.panels]}


def plot_from_json(plot: dict[str, Any]) -> Plot:
    """Inverse of `plot_to_json`."""
    return Plot(**plot | {"panels": [Panel(**panel) for panel in plot["panels"]]})


def write_run(
    folder: Path, record: dict[str, Any], arrays: Mapping[str, Mapping[str, numpy.ndarray]] | None = None
) -> str:
    """Writes tables, curve.csv, plots, arrays (<name>.npz) and metrics.json of one run; returns its figures, a line each.

    metrics.json is written last, so that it exists only in finished runs.

    Raises:
        WriteError: the disk is full, the folder is missing, ...
    """
    record = json.loads(strict_json(record))
    write_tables(folder, [record], [{}])
    if record["curve"]:
        columns = list(dict.fromkeys(column for row in record["curve"] for column in row))
        rows = [[row.get(column) for column in columns] for row in record["curve"]]
        write_text(folder / "curve.csv", to_csv([columns, *rows]))
    for plot in map(plot_from_json, record["plots"]):
        curves.write_curve_figure(folder / f"{plot.name}.png", plot, {"": record["curve"]})
    for name, values in (arrays or {}).items():
        write_npz(folder / f"{name}.npz", values)
    write_text(folder / "metrics.json", strict_json(record, indent=2) + "\n")
    width = max(map(len, record["figures"]), default=0)
    return "".join(
        f"{name:<{width}}  {format_figure(part)} {part['unit']} (n = {part['n']})\n"
        for name, part in record["figures"].items()
    )


def write_comparison(runs: Sequence[dict[str, Any]]) -> Path:
    """Writes table.csv, table.md and the plots of several runs into a new folder next to them, and returns it.

    A row is a checkpoint with the keys that vary, except the metric; every metric adds its columns.

    Arguments:
        runs: `folder` and command line `overrides` of each run.
    """
    folders = [Path(run["folder"]) for run in runs]
    folder = create_sweep_dir(folders)
    records = [json.loads((path / "metrics.json").read_text(encoding="utf-8")) for path in folders]
    keys = dict.fromkeys(key for run in runs for key in run["overrides"] if key not in ("checkpoint", "metric"))
    varying = [key for key in keys if len({run["overrides"].get(key) for run in runs}) > 1]
    varied = [{key: shorten_path(run["overrides"].get(key, "")) for key in varying} for run in runs]
    write_tables(folder, records, varied)
    models = [record["model"] for record in records]
    states = {(record["model"], record.get("images")) for record in records}
    lines: dict[str, dict[str, list]] = {}
    plots: dict[str, Plot] = {}
    for record, variation in zip(records, varied):
        title = [f"{key} {value}" for key, value in variation.items()]
        if len(states) > len(set(models)):
            title = [f"{record['model']} at {record.get('images')} images", *title]
        elif len(states) > 1 or not title:
            title = [record["model"], *title]
        for plot in map(plot_from_json, record["plots"]):
            name = plot.name
            number = 1
            while (merged := merge_plots(plots.get(name, plot), plot)) is None:  # nats and bits have a figure each
                number += 1
                name = f"{plot.name}_{number}"
            plots[name] = merged
            lines.setdefault(name, {})[", ".join(title)] = record["curve"]
    for name, plot in plots.items():
        curves.write_curve_figure(folder / f"{name}.png", plot, lines[name])
    return folder


def merge_plots(one: Plot, other: Plot) -> Plot | None:
    """A plot with the panels of both; None if their panels of one column differ."""
    panels = {panel.column: panel for panel in one.panels}
    if any(panels.get(panel.column, panel) != panel for panel in other.panels):
        return None
    return one._replace(panels=list((panels | {panel.column: panel for panel in other.panels}).values()))


def write_tables(folder: Path, records: Sequence[dict[str, Any]], varied: Sequence[dict[str, str]]) -> None:
    """Writes table.csv with all digits, and table.md with as many digits as the standard errors justify."""
    rows = collect_rows(records, varied)
    figures = [row["figures"] for row in rows]
    columns = list(dict.fromkeys(name for parts in figures for name in parts))
    units = {name: part["unit"] for parts in figures for name, part in parts.items()}
    flagged = {name for parts in figures for name, part in parts.items() if not part.get("meaningful", True)}
    facts = [*varied[0], "model", "images", "weights", "split", "n"]
    header = ["checkpoint", *facts]
    for name in columns:
        header += [name, f"{name}_se", *([f"{name}_meaningful"] if name in flagged else [])]
    csv_rows: list[list[Any]] = [[*header, "seconds"]]
    markdown_rows: list[list[Any]] = [[*facts, *(f"{name} [{units[name]}]" for name in columns)]]
    for row in rows:
        record = row["record"]
        values = [record.get(fact, "") for fact in ("model", "images", "weights", "split")]
        values = [*row["varied"].values(), *values, "/".join(map(str, dict.fromkeys(row["n"])))]
        numbers: list[Any] = []
        for name in columns:
            part = row["figures"].get(name, {"value": "", "standard_error": "", "meaningful": ""})
            numbers += [part["value"], part["standard_error"]]
            numbers += [part.get("meaningful", True)] if name in flagged else []
        csv_rows.append([record.get("checkpoint", ""), *values, *numbers, row["seconds"]])
        cells = [format_figure(row["figures"][name]) if name in row["figures"] else "" for name in columns]
        markdown_rows.append([*values, *cells])
    if differ_in_seed_only(rows):
        label = [f"mean ± standard deviation over {len(rows)} seeds", *[""] * (len(facts) - 1)]
        markdown_rows.append([*label, *(summarize([parts.get(name) for parts in figures]) for name in columns)])
    write_together(
        {
            folder / "table.csv": lambda path: path.write_text(to_csv(csv_rows), encoding="utf-8"),
            folder / "table.md": lambda path: path.write_text(to_markdown(markdown_rows), encoding="utf-8"),
        }
    )


def collect_rows(records: Sequence[dict[str, Any]], varied: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """One row per checkpoint and variation, with the figures of all its metrics by column."""
    rows: dict[tuple, dict[str, Any]] = {}
    names = name_columns(records)
    for record, variation in zip(records, varied):
        key = (record["model"], record.get("checkpoint"), record.get("weights"), record["split"], *variation.values())
        row = rows.setdefault(key, {"record": record, "varied": variation, "figures": {}, "n": [], "seconds": 0.0})
        for name, part in record["figures"].items():
            row["figures"][names[record["metric"], name, part["unit"]]] = part
        row["n"].append(record["n"])
        row["seconds"] += record["seconds"]
    return list(rows.values())


def differ_in_seed_only(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether rows differ only in the seed, of the training or of the measurement, so that their mean is defined."""
    seeds, others = set(), set()
    for row in rows:
        record = row["record"]
        variation = {key: value for key, value in row["varied"].items() if key != "seed"}
        configuration = record.get("configuration", record["model"])
        seeds.add((record.get("training_seed"), record.get("seed")))
        others.add(strict_json([configuration, *map(record.get, REPETITION_KEYS), variation]))
    return len(seeds) == len(rows) > 1 and len(others) == 1


def summarize(figures: Sequence[dict[str, Any] | None]) -> str:
    """Mean and standard deviation of a column; "" if a row has no number."""
    values = [figure["value"] for figure in figures if figure and isinstance(figure["value"], int | float)]
    if len(values) < max(2, len(figures)):
        return ""
    return format_figure({"value": statistics.fmean(values), "standard_error": statistics.stdev(values)})


def name_columns(records: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], str]:
    """(metric, figure, unit) -> name of the column: <metric>_<figure>_<unit>.

    The metric is omitted if no other metric has such a figure, the unit if it is the same for all data.
    """
    units: dict[tuple[str, str], dict[str, None]] = {}
    for record in records:
        for name, part in record["figures"].items():
            units.setdefault((record["metric"], name), {})[part["unit"]] = None
    columns = {}
    for (metric, name), found in units.items():
        shared = sum(other == name for _, other in units) > 1
        for unit in found:
            parts = [metric] * shared + [name] + [unit] * (len(found) > 1)
            columns[metric, name, unit] = "_".join(parts)
    return columns


def format_figure(figure: dict[str, Any]) -> str:
    """value ± standard error, to two digits of the latter, with a note if it is not meaningful."""
    value, error = figure["value"], figure["standard_error"]
    mark = "" if figure.get("meaningful", True) else " (not meaningful)"
    if isinstance(value, str) or isinstance(error, str):  # inf, nan
        return f"{value}{mark}"
    if not error:
        return f"{value:.4g}{mark}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}{mark}"


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Comma-separated values; None is empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def to_markdown(rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table whose first row is the header."""
    lines = [" | ".join(str(part).replace("|", "\\|") for part in row) for row in rows]
    head, *rest = (f"| {line} |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest]) + "\n"


def write_text(path: Path, text: str) -> None:
    write_together({path: lambda temporary: temporary.write_text(text, encoding="utf-8")})
