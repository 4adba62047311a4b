"""What an evaluation writes: metrics.json, a table of its figures, its curve and pictures; of several runs one table."""

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

REPETITION_KEYS = ("images", "weights", "split", "dataset", "n")  # of rows that are repetitions of each other


def plot_to_json(plot: Plot) -> dict[str, Any]:
    """A plot as JSON has it."""
    return plot._asdict() | {"panels": [panel._asdict() for panel in plot.panels]}


def plot_from_json(plot: dict[str, Any]) -> Plot:
    """What `plot_to_json` wrote."""
    return Plot(**plot | {"panels": [Panel(**panel) for panel in plot["panels"]]})


def write_run(
    folder: Path, record: dict[str, Any], arrays: Mapping[str, Mapping[str, numpy.ndarray]] | None = None
) -> str:  # fmt: skip
    """Writes metrics.json, tables, curve.csv, plots and arrays (<name>.npz) of one run; returns its figures, a line each.

    metrics.json is the last: where it is, the run is finished.

    Raises:
        WriteError: the disk is full, the folder is gone, ...
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
    """Writes table.csv, table.md and the plots of several runs into a folder beside them, and returns it.

    A row is a checkpoint with what else varies but for the metric; every metric adds its columns to it.

    Arguments:
        runs: per run its `folder`, and the `overrides` that were typed.
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
    for record, own in zip(records, varied):
        title = [f"{key} {value}" for key, value in own.items()]
        if len(states) > len(set(models)):
            title = [f"{record['model']} at {record.get('images')} images", *title]
        elif len(states) > 1 or not title:
            title = [record["model"], *title]
        for plot in map(plot_from_json, record["plots"]):
            name, number = plot.name, 1
            while (both := merge_plots(plots.get(name, plot), plot)) is None:  # nats and bits have a picture each
                number += 1
                name = f"{plot.name}_{number}"
            plots[name] = both
            lines.setdefault(name, {})[", ".join(title)] = record["curve"]
    for name, plot in plots.items():
        curves.write_curve_figure(folder / f"{name}.png", plot, lines[name])
    return folder


def merge_plots(one: Plot, other: Plot) -> Plot | None:
    """A plot with the panels of both; None where they draw a column in two ways."""
    panels = {panel.column: panel for panel in one.panels}
    if any(panels.get(panel.column, panel) != panel for panel in other.panels):
        return None
    return one._replace(panels=list((panels | {panel.column: panel for panel in other.panels}).values()))


def write_tables(folder: Path, records: Sequence[dict[str, Any]], varied: Sequence[dict[str, str]]) -> None:
    """Writes table.csv, every number in full, and table.md, to the digits that the standard errors leave."""
    rows: dict[tuple, dict[str, Any]] = {}
    names = name_columns(records)
    for record, own in zip(records, varied):
        key = (record["model"], record.get("checkpoint"), record.get("weights"), record["split"], *own.values())
        row = rows.setdefault(key, {"record": record, "varied": own, "figures": {}, "n": [], "seconds": 0.0})
        row["figures"] |= {
            names[record["metric"], name, part["unit"]]: part for name, part in record["figures"].items()
        }
        row["n"].append(record["n"])
        row["seconds"] += record["seconds"]
    columns = list(dict.fromkeys(column for row in rows.values() for column in row["figures"]))
    keys = list(varied[0])
    facts = ["model", "images", "weights", "split", "n"]
    everything = [part for row in rows.values() for part in row["figures"].items()]
    marked = {name for name, part in everything if not part.get("meaningful", True)}
    ends = {name: ("", "_se", *(["_meaningful"] if name in marked else [])) for name in columns}
    whole = [["checkpoint", *keys, *facts, *(f"{name}{end}" for name in columns for end in ends[name]), "seconds"]]
    units = {name: part["unit"] for row in rows.values() for name, part in row["figures"].items()}
    brief = [[*keys, *facts, *(f"{name} [{units[name]}]" for name in columns)]]
    for row in rows.values():
        record, n = row["record"], "/".join(map(str, dict.fromkeys(row["n"])))
        parts = [row["figures"].get(name) for name in columns]
        stated = [*row["varied"].values(), *(record.get(fact, "") for fact in facts[:-1]), n]
        numbers: list[Any] = []
        for name, part in zip(columns, parts):
            values = (part["value"], part["standard_error"], part.get("meaningful", True)) if part else ("", "", "")
            numbers += values[: len(ends[name])]
        whole.append([record.get("checkpoint", ""), *stated, *numbers, row["seconds"]])
        brief.append([*stated, *(format_figure(part) if part else "" for part in parts)])
    if differ_in_seed_only(list(rows.values())):
        label = [f"mean ± standard deviation over {len(rows)} seeds", *[""] * (len(keys) + len(facts) - 1)]
        brief.append([*label, *(summarize([row["figures"].get(name) for row in rows.values()]) for name in columns)])
    write_together({
        folder / "table.csv": lambda path: path.write_text(to_csv(whole), encoding="utf-8"),
        folder / "table.md": lambda path: path.write_text(to_markdown(brief), encoding="utf-8"),
    })  # fmt: skip


def differ_in_seed_only(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether rows differ in the seed, of the training or of the measurement, and in nothing else: then they have a mean."""
    seeds, others = set(), set()
    for row in rows:
        record, own = row["record"], {key: value for key, value in row["varied"].items() if key != "seed"}
        seeds.add((record.get("training_seed"), record.get("seed")))
        others.add(strict_json([record.get("configuration", record["model"]), *map(record.get, REPETITION_KEYS), own]))
    return len(seeds) == len(rows) > 1 and len(others) == 1


def summarize(figures: Sequence[dict[str, Any] | None]) -> str:
    """Mean and standard deviation of a column; nothing where a row has no number."""
    values = [figure["value"] for figure in figures if figure and isinstance(figure["value"], int | float)]
    if len(values) < max(2, len(figures)):
        return ""
    return format_figure({"value": statistics.fmean(values), "standard_error": statistics.stdev(values)})


def name_columns(records: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], str]:
    """(metric, figure, unit) -> column: the figure's name, background that of its metric where another one has such a figure
    too, before its unit where other data have it in another one."""
    units: dict[tuple[str, str], dict[str, None]] = {}
    for record in records:
        for name, part in record["figures"].items():
            units.setdefault((record["metric"], name), {})[part["unit"]] = None
    count = [name for _, name in units].count
    return {
        (metric, name, unit): (f"{metric}_{name}" if count(name) > 1 else name) + (f"_{unit}" if len(found) > 1 else "")
        for (metric, name), found in units.items()
        for unit in found
    }


def format_figure(figure: dict[str, Any]) -> str:
    """value ± standard error, to two digits of the latter; and whether it is ignored."""
    value, error = figure["value"], figure["standard_error"]
    mark = "" if figure.get("meaningful", True) else " (not meaningful)"
    if isinstance(value, str) or isinstance(error, str):  # inf, nan
        return f"{value}{mark}"
    if not error:
        return f"{value:.4g}{mark}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}{mark}"


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Comma-separated values, nothing for None."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def to_markdown(rows: Sequence[Sequence[Any]]) -> str:
    """A table, the first row its head."""
    lines = [" | ".join(str(part).replace("|", "\\|") for part in row) for row in rows]
    head, *rest = (f"| {line} |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest]) + "\n"


def write_text(path: Path, text: str) -> None:
    write_together({path: lambda temporary: temporary.write_text(text, encoding="utf-8")})
