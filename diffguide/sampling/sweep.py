"""Plots and a table of all runs of a sampling sweep."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from ..evaluation.quality.precision_recall import quality_notes
from ..figures import curves
from ..figures import image_grids as images
from ..figures.plot_spec import Panel, Plot
from ..figures.scatter import ScatterBackground
from ..figures.tables import to_csv, write_text
from ..files.run_folders import create_sweep_dir, shorten_path
from ..files.shards import read_rows
from . import tradeoff, tradeoff_plot
from .tradeoff import NoTradeoff, SweepRun

__all__ = ["write_sweep"]

LOG_AXIS_RATIO = 8  # an axis is logarithmic if the largest number is this many times the smallest
COSTS = ["network_evaluations", "potential_evaluations"]  # of the manifest, per sample


def write_sweep(jobs: list[dict[str, Any]]) -> Path:
    """Writes contact_sheet.png, tradeoff.png, curves.png and sweep.csv into a new folder beside the runs; returns it.

    curves.png shows the figures over the swept number, if there is one. If fidelity and diversity cannot be measured,
    tradeoff.png and curves.png are skipped and a message on stderr explains why.

    Arguments:
        jobs: per run `folder`, `overrides`, `shape`, `class_names`, the `header` of the manifest, the `background` of scatter
            plots and the `figures` of an oracle's metrics.
    """
    folder = create_sweep_dir([Path(job["folder"]) for job in jobs])
    keys = list(dict.fromkeys(key for job in jobs for key in job["overrides"]))
    varying = [key for key in keys if len({job["overrides"].get(key) for job in jobs}) > 1]
    axis = find_axis(jobs, varying)
    runs = [load_run(job, varying, axis) for job in jobs]
    columns = [dict(job["figures"]) for job in jobs]
    write_table(folder / "sweep.csv", jobs, runs, varying, columns)
    same_data = all(picture_key(job) == picture_key(jobs[0]) for job in jobs)
    if same_data:
        write_sweep_sheet(folder / "contact_sheet.png", jobs, runs, varying)
    try:  # at the end, because it may read a large data set
        if not same_data:
            raise NoTradeoff("the runs are of different data")
        columns = write_comparisons(folder, jobs, runs, columns, axis)
        write_table(folder / "sweep.csv", jobs, runs, varying, columns)
    except NoTradeoff as reason:
        print(f"no tradeoff.png: {reason}", file=sys.stderr)
    return folder


def write_sweep_sheet(path: Path, jobs: Sequence[dict], runs: Sequence[SweepRun], varying: Sequence[str]) -> None:
    """Writes an image with a column per run."""
    rows = images.choose_contact_rows(runs[0].labels[: min(len(run.labels) for run in runs)], tuple(jobs[0]["shape"]))
    titles = [describe_overrides(job["overrides"], varying, "\n") or run.folder.name for job, run in zip(jobs, runs)]
    sheet = [(title, read_rows(run.folder / "samples.npz", rows)) for title, run in zip(titles, runs)]
    labels = [[run.labels[row] for row in rows] for run in runs]
    background = jobs[0]["background"] and ScatterBackground.from_json(jobs[0]["background"])
    images.write_contact_sheet(path, sheet, labels, jobs[0]["class_names"], background)


def find_axis(jobs: Sequence[dict], varying: Sequence[str]) -> str | None:
    """The swept key whose number is the position of a run on its curve; None if there is none, or several.

    It is the only swept scale of the guidance, else sampler.steps, else the only other swept number.
    """
    scales = [key for key in varying if key == "guidance.scale"] or [key for key in varying if key.endswith(".scale")]
    if len(scales) == 1:
        return scales[0]
    numbers = []
    for key in varying:
        positions = [tradeoff_plot.axis_position(job["overrides"].get(key, "")) for job in jobs]
        if key not in scales and key != "seed" and all(map(math.isfinite, positions)):  # seeds have no order
            numbers.append(key)
    if "sampler.steps" in numbers:
        return "sampler.steps"
    return numbers[0] if len(numbers) == 1 else None


def load_run(job: dict, varying: Sequence[str], axis: str | None) -> SweepRun:
    """Loads a run. Its method has the name of the swept values besides the axis, or of its guidance."""
    folder = Path(job["folder"])
    with numpy.load(folder / "samples.npz") as arrays:
        labels = arrays["arr_1"].tolist()
    method = describe_overrides(job["overrides"], [key for key in varying if key != axis])
    name = method or job["header"]["guidance"]["_target_"].rpartition(".")[2]
    return SweepRun(folder, labels, name, job["overrides"].get(axis, ""))


def describe_overrides(overrides: Mapping[str, str], keys: Sequence[str], between: str = " ") -> str:
    """The values of some keys, each with the last part of its key, or the whole key if that is ambiguous."""
    last = {key: re.split("[./@]", key)[-1] for key in keys}
    names = {key: key if list(last.values()).count(name) > 1 else name for key, name in last.items()}
    return between.join(f"{names[key]} {shorten_path(overrides.get(key, ''))}" for key in keys)


def write_comparisons(
    folder: Path, jobs: Sequence[dict], runs: Sequence[SweepRun], columns: list[dict], axis: str | None
) -> list[dict]:
    """Measures fidelity and diversity, draws tradeoff.png and curves.png, and returns the columns of the table.

    Raises:
        NoTradeoff: they cannot be measured.
    """
    headers = [job["header"] for job in jobs]
    n = sorted({len(run.labels) for run in runs})
    if all("oracle" in header for header in headers):
        panels, curve_panels = tradeoff_plot.oracle_panels(columns)
        note = f"compared with exact samples of the oracle, n = {n[0]}" + (f" to {n[-1]}" if len(n) > 1 else "")
    elif any("oracle" in header for header in headers):
        raise NoTradeoff("some runs sample an oracle, and some a checkpoint")
    else:
        files = [header["checkpoint"] for header in headers]
        columns = tradeoff.compare_with_data(
            runs, files, jobs[0]["shape"], jobs[0]["class_names"], jobs[0].get("moved")
        )
        panels, curve_panels = tradeoff_plot.data_panels(columns)
        facts = columns[0]
        note = f"{facts['compared']} samples per run compared with {facts['reference']}, features: {facts['features']}"
        print_notes(runs, columns)
    if axis is not None:
        note += f"; points: {axis}"
    tradeoff_plot.write_tradeoff(folder / "tradeoff.png", panels, runs, columns, note)
    if axis is not None:
        write_curves(folder / "curves.png", curve_panels, runs, columns, axis)
    return columns


def print_notes(runs: Sequence[SweepRun], columns: Sequence[dict]) -> None:
    """Prints the `quality_notes` of runs on stderr."""
    notes: dict[str, list[str]] = {}
    for run, column in zip(runs, columns):
        samples = column["repeated_samples"], column["compared"]
        real = column["repeated_real"], column["compared_real"]
        for note in quality_notes(column["precision"], samples, real):
            notes.setdefault(note, []).append(run.folder.name)
    for note, names in notes.items():
        print(f"{', '.join(names)}: {note}", file=sys.stderr)


def write_curves(
    path: Path, panels: Sequence[Panel], runs: Sequence[SweepRun], columns: Sequence[dict], axis: str
) -> None:
    """Plots figures over the swept number, a line per method."""
    lines: dict[str, list[dict]] = {}
    for run, column in sorted(zip(runs, columns), key=lambda pair: tradeoff_plot.axis_position(pair[0].number)):
        lines.setdefault(run.method, []).append(column | {axis: tradeoff_plot.axis_position(run.number)})
    numbers = [row[axis] for rows in lines.values() for row in rows]
    logarithmic = min(numbers) > 0 and max(numbers) >= LOG_AXIS_RATIO * min(numbers)
    if len(lines) == 1:  # needs no legend
        lines = {"": next(iter(lines.values()))}
    curves.write_curve_figure(path, Plot("curves", axis, axis, logarithmic, panels), lines)


def write_table(
    path: Path, jobs: Sequence[dict], runs: Sequence[SweepRun], varying: Sequence[str], columns: list[dict]
) -> None:
    """Writes a row per run: swept values, number of samples, costs, figures, and folder."""
    figures = list(dict.fromkeys(name for column in columns for name in column))
    model = ["checkpoint"] if all("checkpoint" in job["header"] for job in jobs) else []
    facts = ["n", *COSTS, *figures, *model, "folder"]
    rows: list[list[Any]] = [[*varying, *(f"run_{fact}" if fact in varying else fact for fact in facts)]]
    for job, run, column in zip(jobs, runs, columns):
        header = job["header"]
        swept = [job["overrides"].get(key, "") for key in varying]
        costs = [header[cost] for cost in COSTS]
        values = [column.get(name, "") for name in figures]
        rows.append([*swept, len(run.labels), *costs, *values, *(header[key] for key in model), job["folder"]])
    write_text(path, to_csv(rows))


def picture_key(job: dict) -> list:
    """A key that is equal for runs with the same shape, classes, and for vectors the same background."""
    law = [job["header"].get(key) for key in ("oracle", "dataset")] if job["background"] else []
    return [list(job["shape"]), list(job["class_names"]), law]
