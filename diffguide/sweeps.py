"""What a sweep of sampling runs writes beside them: pictures with all runs in them, and one table."""

import csv
import io
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy

from . import images, tradeoff
from .runs import write_atomically
from .shards import read_rows
from .tradeoff import NoTradeoff, Run
from .vectors import Backdrop

__all__ = ["write_sweep"]

COSTS = ["network_evaluations", "potential_evaluations"]  # of the manifest, per sample


def write_sweep(jobs: list[dict]) -> Path:
    """Writes contact_sheet.png, tradeoff.png and sweep.csv of a sweep's runs into a folder beside them, and returns it.

    Where fidelity and diversity cannot be measured there is no tradeoff.png, and a sentence on stderr says why.

    Arguments:
        jobs: per run `folder`, `overrides`, `shape`, `class_names`, the manifest's `header`, what vectors are drawn over
            (`behind`) and the `figures` of an oracle's metrics.
    """
    folder = claim_beside([Path(job["folder"]) for job in jobs])
    keys = list(dict.fromkeys(key for job in jobs for key in job["overrides"]))
    varying = [key for key in keys if len({job["overrides"].get(key) for job in jobs}) > 1]
    runs = [run_of(job, varying) for job in jobs]
    common = all(pictured(job) == pictured(jobs[0]) for job in jobs)  # runs of different data have no common picture
    columns = [dict(job["figures"]) for job in jobs]
    write_table(folder / "sweep.csv", jobs, runs, varying, columns)
    if common:
        shape = tuple(jobs[0]["shape"])
        rows = images.contact_rows(runs[0].labels[: min(len(run.labels) for run in runs)], shape)
        titles = [described(job["overrides"], varying, "\n") or run.folder.name for job, run in zip(jobs, runs)]
        sheet = [(title, read_rows(run.folder / "samples.npz", rows)) for title, run in zip(titles, runs)]
        behind = jobs[0]["behind"] and Backdrop.restored(jobs[0]["behind"])
        shown = [[run.labels[row] for row in rows] for run in runs]
        images.contact_sheet(folder / "contact_sheet.png", sheet, shown, jobs[0]["class_names"], behind)
    try:  # the last: it may read a large data set, and whoever stops it has the rest
        if not common:
            raise NoTradeoff("the runs are of different data")
        columns = write_tradeoff(folder / "tradeoff.png", jobs, runs, columns)
        write_table(folder / "sweep.csv", jobs, runs, varying, columns)
    except NoTradeoff as reason:
        print(f"no tradeoff.png: {reason}", file=sys.stderr)
    return folder


def run_of(job: dict, varying: Sequence[str]) -> Run:
    """A run, its method named by whatever varies beside the scale, or by its guidance where nothing does.

    The scale is guidance.scale, or that of one part of several guidances where it alone is swept.
    """
    folder = Path(job["folder"])
    with numpy.load(folder / "samples.npz") as arrays:
        labels = arrays["arr_1"].tolist()
    scales = [key for key in varying if key == "guidance.scale"] or [key for key in varying if key.endswith(".scale")]
    scale = scales[0] if len(scales) == 1 else None
    method = described(job["overrides"], [key for key in varying if key != scale])
    name = method or job["header"]["guidance"]["_target_"].rpartition(".")[2]
    return Run(folder, labels, name, job["overrides"].get(scale, ""))


def described(overrides: Mapping[str, str], keys: Sequence[str], between: str = " ") -> str:
    """The values of some keys, each by the last part of its name where no other key ends so."""
    last = {key: re.split("[./@]", key)[-1] for key in keys}
    names = {key: key if list(last.values()).count(name) > 1 else name for key, name in last.items()}
    return between.join(f"{names[key]} {short(overrides.get(key, ''))}" for key in keys)


def write_tradeoff(path: Path, jobs: Sequence[dict], runs: Sequence[Run], columns: list[dict]) -> list[dict]:
    """Measures what there is to be measured, draws it, and returns the columns of the table.

    Raises:
        NoTradeoff: nothing to be measured.
    """
    headers, n = [job["header"] for job in jobs], sorted({len(run.labels) for run in runs})
    if all("oracle" in header for header in headers):
        panels = tradeoff.of_oracle(columns)
        note = f"against exact samples of the oracle, n = {n[0]}" + (f" to {n[-1]}" if len(n) > 1 else "")
    elif any("oracle" in header for header in headers):
        raise NoTradeoff("some runs are of an oracle, and some of a checkpoint")
    else:
        files = [header["checkpoint"] for header in headers]
        moved = jobs[0].get("moved")
        columns = tradeoff.against_data(runs, files, jobs[0]["shape"], jobs[0]["class_names"], moved)
        panels, facts = tradeoff.of_data(columns), columns[0]
        note = f"{facts['compared']} samples a run against {facts['reference']}, as {facts['features']}"
    tradeoff.write_tradeoff(path, panels, runs, columns, note)
    return columns


def write_table(
    path: Path, jobs: Sequence[dict], runs: Sequence[Run], varying: Sequence[str], columns: list[dict]
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


def pictured(job: dict) -> list:
    """What runs must share to be shown in one picture: shape and classes, and of vectors the law that is drawn under them."""
    law = [job["header"].get(key) for key in ("oracle", "dataset")] if job["behind"] else []
    return [list(job["shape"]), list(job["class_names"]), law]


def claim_beside(folders: Sequence[Path]) -> Path:
    """Makes and returns the folder of a sweep: beside its runs, or beside their folders where they are of several names."""
    parent, ends = folders[0].parent, [folders[0].name, folders[-1].name]
    if any(folder.parent != parent for folder in folders):
        parent, ends = parent.parent, [f"{folder.parent.name}_{folder.name}" for folder in (folders[0], folders[-1])]
    return claim_name(parent, "sweep_" + "-".join(ends))


def claim_name(parent: Path, name: str) -> Path:
    """Makes and returns parent/name, or parent/name_2, ... where that is taken."""
    for number in itertools.count(1):
        with suppress(FileExistsError):
            (folder := parent / (name if number == 1 else f"{name}_{number}")).mkdir()
            return folder


def short(value: str) -> str:
    """A path by its last two parts, anything else as it is."""
    return "/".join(Path(value).parts[-2:])
