"""What a sweep of sampling runs writes beside them: pictures with all runs in them, and one table."""

import csv
import io
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy

from ..evaluation.quality.precision_recall import quality_notes
from ..figures import curves
from ..figures import image_grids as images
from ..figures.plot_spec import Panel, Plot
from ..figures.scatter import ScatterBackground
from ..files.run_folders import create_sweep_dir, shorten_path, write_atomically
from ..files.shards import read_rows
from . import tradeoff
from .tradeoff import NoTradeoff, SweepRun

__all__ = ["write_sweep"]

LOG_AXIS_RATIO = 8  # times the least number is the largest one from which on their axis is logarithmic
COSTS = ["network_evaluations", "potential_evaluations"]  # of the manifest, per sample


def write_sweep(jobs: list[dict]) -> Path:
    """Writes contact_sheet.png, tradeoff.png, curves.png and sweep.csv of a sweep's runs into a folder beside them; returns it.

    curves.png has the figures over the number that was swept, where one was. Where fidelity and diversity cannot be measured
    there is neither of the last pictures, and a sentence on stderr says why.

    Arguments:
        jobs: per run `folder`, `overrides`, `shape`, `class_names`, the manifest's `header`, what vectors are drawn over
            (`background`) and the `figures` of an oracle's metrics.
    """
    folder = create_sweep_dir([Path(job["folder"]) for job in jobs])
    keys = list(dict.fromkeys(key for job in jobs for key in job["overrides"]))
    varying = [key for key in keys if len({job["overrides"].get(key) for job in jobs}) > 1]
    axis = find_axis(jobs, varying)
    runs = [load_run(job, varying, axis) for job in jobs]
    common = all(
        picture_key(job) == picture_key(jobs[0]) for job in jobs
    )  # runs of different data have no common picture
    columns = [dict(job["figures"]) for job in jobs]
    write_table(folder / "sweep.csv", jobs, runs, varying, columns)
    if common:
        shape = tuple(jobs[0]["shape"])
        rows = images.choose_contact_rows(runs[0].labels[: min(len(run.labels) for run in runs)], shape)
        titles = [
            describe_overrides(job["overrides"], varying, "\n") or run.folder.name for job, run in zip(jobs, runs)
        ]
        sheet = [(title, read_rows(run.folder / "samples.npz", rows)) for title, run in zip(titles, runs)]
        background = jobs[0]["background"] and ScatterBackground.from_json(jobs[0]["background"])
        shown = [[run.labels[row] for row in rows] for run in runs]
        images.write_contact_sheet(folder / "contact_sheet.png", sheet, shown, jobs[0]["class_names"], background)
    try:  # the last: it may read a large data set, and whoever stops it has the rest
        if not common:
            raise NoTradeoff("the runs are of different data")
        columns = write_pictures(folder, jobs, runs, columns, axis)
        write_table(folder / "sweep.csv", jobs, runs, varying, columns)
    except NoTradeoff as reason:
        print(f"no tradeoff.png: {reason}", file=sys.stderr)
    return folder


def find_axis(jobs: Sequence[dict], varying: Sequence[str]) -> str | None:
    """The swept key whose number is a run's place on its curve: the scale of the guidance, or of one part of it, else
    sampler.steps, else the only other number; None where there is none, or several."""
    scales = [key for key in varying if key == "guidance.scale"] or [key for key in varying if key.endswith(".scale")]
    if len(scales) == 1:
        return scales[0]
    numbers = [
        key
        for key in varying
        if key not in scales and key != "seed"  # seeds have no order
        and all(math.isfinite(tradeoff.axis_position(job["overrides"].get(key, ""))) for job in jobs)
    ]  # fmt: skip
    numbers = [key for key in numbers if key == "sampler.steps"] or numbers
    return numbers[0] if len(numbers) == 1 else None


def load_run(job: dict, varying: Sequence[str], axis: str | None) -> SweepRun:
    """A run, its method named by whatever varies beside the axis, or by its guidance where nothing does."""
    folder = Path(job["folder"])
    with numpy.load(folder / "samples.npz") as arrays:
        labels = arrays["arr_1"].tolist()
    method = describe_overrides(job["overrides"], [key for key in varying if key != axis])
    name = method or job["header"]["guidance"]["_target_"].rpartition(".")[2]
    return SweepRun(folder, labels, name, job["overrides"].get(axis, ""))


def describe_overrides(overrides: Mapping[str, str], keys: Sequence[str], between: str = " ") -> str:
    """The values of some keys, each by the last part of its name where no other key ends so."""
    last = {key: re.split("[./@]", key)[-1] for key in keys}
    names = {key: key if list(last.values()).count(name) > 1 else name for key, name in last.items()}
    return between.join(f"{names[key]} {shorten_path(overrides.get(key, ''))}" for key in keys)


def write_pictures(
    folder: Path, jobs: Sequence[dict], runs: Sequence[SweepRun], columns: list[dict], axis: str | None
) -> list[dict]:
    """Measures what there is to be measured, draws tradeoff.png and curves.png, and returns the columns of the table.

    Raises:
        NoTradeoff: nothing to be measured.
    """
    headers, n = [job["header"] for job in jobs], sorted({len(run.labels) for run in runs})
    if all("oracle" in header for header in headers):
        panels, drawn = tradeoff.oracle_panels(columns), oracle_curves(columns)
        note = f"against exact samples of the oracle, n = {n[0]}" + (f" to {n[-1]}" if len(n) > 1 else "")
    elif any("oracle" in header for header in headers):
        raise NoTradeoff("some runs are of an oracle, and some of a checkpoint")
    else:
        files = [header["checkpoint"] for header in headers]
        columns = tradeoff.compare_with_data(
            runs, files, jobs[0]["shape"], jobs[0]["class_names"], jobs[0].get("moved")
        )
        panels, drawn, facts = tradeoff.data_panels(columns), data_curves(columns), columns[0]
        note = f"{facts['compared']} samples a run against {facts['reference']}, as {facts['features']}"
        print_notes(runs, columns)
    marked = f"; points: {axis}" if axis else ""
    tradeoff.write_tradeoff(folder / "tradeoff.png", panels, runs, columns, note + marked)
    if axis is not None:
        write_curves(folder / "curves.png", drawn, runs, columns, axis)
    return columns


def print_notes(runs: Sequence[SweepRun], columns: Sequence[dict]) -> None:
    """Says on stderr what must be known beside the figures of runs, `quality_notes`."""
    notes: dict[str, list[str]] = {}
    for run, column in zip(runs, columns):
        samples, real = (
            (column["repeated_samples"], column["compared"]),
            (column["repeated_real"], column["compared_real"]),
        )
        for note in quality_notes(column["precision"], samples, real):
            notes.setdefault(note, []).append(run.folder.name)
    for note, names in notes.items():
        print(f"{', '.join(names)}: {note}", file=sys.stderr)


def oracle_curves(columns: Sequence[dict]) -> list[Panel]:
    """What is drawn over a swept number, of an oracle."""
    floor = float(numpy.mean([column["energy_distance_floor"] for column in columns]))
    return [
        Panel("energy_distance", "energy distance", ("exact samples", floor), logarithmic=True),
        Panel("deviation_ratio", "standard deviation within classes / exact", ("exact samples", 1.0)),
    ]


def data_curves(columns: Sequence[dict]) -> list[Panel]:
    """What is drawn over a swept number, of a model that was trained."""
    names = ["precision", "recall", "coverage"]
    panels = [Panel(name, name) for name in names]
    if all("agreed_labels" in column for column in columns):
        real = ("real examples", columns[0]["agreed_labels_of_real"])
        panels.append(Panel("agreed_labels", "agreed labels", real))
    return panels


def write_curves(
    path: Path, panels: Sequence[Panel], runs: Sequence[SweepRun], columns: Sequence[dict], axis: str
) -> None:
    """Draws figures over the swept number, a line per method."""
    lines: dict[str, list[dict]] = {}
    for run, column in sorted(zip(runs, columns), key=lambda pair: tradeoff.axis_position(pair[0].number)):
        lines.setdefault(run.method, []).append(column | {axis: tradeoff.axis_position(run.number)})
    places = [row[axis] for rows in lines.values() for row in rows]
    wide = min(places) > 0 and max(places) >= LOG_AXIS_RATIO * min(places)
    curves.write_curve_figure(
        path, Plot("curves", axis, axis, wide, panels), lines if len(lines) > 1 else {"": [*lines.values()][0]}
    )


def write_table(
    path: Path, jobs: Sequence[dict], runs: Sequence[SweepRun], varying: Sequence[str], columns: list[dict]
) -> None:
    """Writes a row per run: what varies, what it cost, its figures, and where it is."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    figures = list(dict.fromkeys(name for column in columns for name in column))
    model = ["checkpoint"] if all("checkpoint" in job["header"] for job in jobs) else []
    facts = ["n", *COSTS, *figures, *model, "folder"]
    table.writerow([*varying, *(f"run_{fact}" if fact in varying else fact for fact in facts)])
    for job, run, column in zip(jobs, runs, columns):
        values = [job["overrides"].get(key, "") for key in varying]
        values += [
            len(run.labels),
            *(job["header"][cost] for cost in COSTS),
            *(column.get(name, "") for name in figures),
        ]
        table.writerow([*values, *(job["header"][key] for key in model), job["folder"]])
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


def picture_key(job: dict) -> list:
    """What runs must share to be shown in one picture: shape and classes, and of vectors the law that is drawn under them."""
    law = [job["header"].get(key) for key in ("oracle", "dataset")] if job["background"] else []
    return [list(job["shape"]), list(job["class_names"]), law]
