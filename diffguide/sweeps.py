"""What a sweep of sampling runs writes beside them: one picture with a column per run, and one table."""

import csv
import io
import itertools
from contextlib import suppress
from pathlib import Path

import numpy

from . import images
from .runs import write_atomically
from .sampling import training_data
from .shards import read_rows

__all__ = ["write_sweep"]


def write_sweep(jobs: list[dict]) -> Path:
    """Writes contact_sheet.png and sweep.csv of a sweep's runs into a folder beside them, and returns it.

    Arguments:
        jobs: per run `folder`, `overrides`, `shape`, `class_names`, `dataset` and the manifest's `header`.
    """
    folders = [Path(job["folder"]) for job in jobs]
    folder = claim_name(folders[0].parent, f"sweep_{folders[0].name}-{folders[-1].name}")
    keys = list(dict.fromkeys(key for job in jobs for key in job["overrides"]))
    varying = [key for key in keys if len({job["overrides"].get(key) for job in jobs}) > 1]
    labels = []
    for path in folders:
        with numpy.load(path / "samples.npz") as arrays:
            labels.append(arrays["arr_1"].tolist())
    titles = [
        " ".join(f"{key.rpartition('.')[2]} {short(job['overrides'].get(key, ''))}" for key in varying) or path.name
        for job, path in zip(jobs, folders)
    ]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    facts = ["n", "network_evaluations", "checkpoint", "folder"]
    table.writerow([*varying, *(f"run_{fact}" if fact in varying else fact for fact in facts)])
    for job, own in zip(jobs, labels):
        header = job["header"]
        values = [job["overrides"].get(key, "") for key in varying]
        table.writerow([*values, len(own), header["network_evaluations"], header["checkpoint"], job["folder"]])
    write_atomically(folder / "sweep.csv", lambda path: path.write_text(text.getvalue(), encoding="utf-8"))
    shapes = {tuple(job["shape"]) for job in jobs}
    if len(shapes) == 1:  # runs of different data have no common picture
        shape = shapes.pop()
        rows = images.contact_rows(labels[0][: min(map(len, labels))], shape)
        columns = [(title, read_rows(path / "samples.npz", rows)) for title, path in zip(titles, folders)]
        background = training_data(jobs[0]) if len(shape) == 1 else None
        shown = [[own[row] for row in rows] for own in labels]
        images.contact_sheet(folder / "contact_sheet.png", columns, shown, jobs[0]["class_names"], background)
    return folder


def claim_name(parent: Path, name: str) -> Path:
    """Makes and returns parent/name, or parent/name_2, ... where that is taken."""
    for number in itertools.count(1):
        with suppress(FileExistsError):
            (folder := parent / (name if number == 1 else f"{name}_{number}")).mkdir()
            return folder


def short(value: str) -> str:
    """A path by its last two parts, anything else as it is."""
    return "/".join(Path(value).parts[-2:])
