"""What a sweep of sampling runs writes beside them: one picture with a column per run, and one table."""

import csv
import io
import itertools
from contextlib import suppress
from pathlib import Path

import numpy

from . import images
from .runs import write_atomically
from .shards import read_rows
from .vectors import Backdrop

__all__ = ["write_sweep"]


def write_sweep(jobs: list[dict]) -> Path:
    """Writes contact_sheet.png and sweep.csv of a sweep's runs into a folder beside them, and returns it.

    Arguments:
        jobs: per run `folder`, `overrides`, `shape`, `class_names`, the manifest's `header`, what vectors are drawn over
            (`behind`) and the `figures` of an oracle's metrics.
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
    figures = list(dict.fromkeys(name for job in jobs for name in job["figures"]))
    model = [] if figures else ["checkpoint"]
    facts = ["n", "network_evaluations", *figures, *model, "folder"]
    table.writerow([*varying, *(f"run_{fact}" if fact in varying else fact for fact in facts)])
    for job, own in zip(jobs, labels):
        header = job["header"]
        values = [job["overrides"].get(key, "") for key in varying]
        values += [len(own), header["network_evaluations"], *(job["figures"].get(name, "") for name in figures)]
        table.writerow([*values, *(header[key] for key in model), job["folder"]])
    write_atomically(folder / "sweep.csv", lambda path: path.write_text(text.getvalue(), encoding="utf-8"))
    if all(pictured(job) == pictured(jobs[0]) for job in jobs):  # runs of different data have no common picture
        shape = tuple(jobs[0]["shape"])
        rows = images.contact_rows(labels[0][: min(map(len, labels))], shape)
        columns = [(title, read_rows(path / "samples.npz", rows)) for title, path in zip(titles, folders)]
        behind = jobs[0]["behind"] and Backdrop.restored(jobs[0]["behind"])
        shown = [[own[row] for row in rows] for own in labels]
        images.contact_sheet(folder / "contact_sheet.png", columns, shown, jobs[0]["class_names"], behind)
    return folder


def pictured(job: dict) -> list:
    """What runs must share to be shown in one picture: shape and classes, and of vectors the law that is drawn under them."""
    law = [job["header"].get(key) for key in ("oracle", "dataset")] if job["behind"] else []
    return [list(job["shape"]), list(job["class_names"]), law]


def claim_name(parent: Path, name: str) -> Path:
    """Makes and returns parent/name, or parent/name_2, ... where that is taken."""
    for number in itertools.count(1):
        with suppress(FileExistsError):
            (folder := parent / (name if number == 1 else f"{name}_{number}")).mkdir()
            return folder


def short(value: str) -> str:
    """A path by its last two parts, anything else as it is."""
    return "/".join(Path(value).parts[-2:])
