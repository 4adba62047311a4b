"""What a sampling run writes, and what a sweep of them writes beside."""

import csv
import io
import json
import math
import platform
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy
import torch
from torch import Tensor

from . import __version__, images
from .runs import write_atomically

__all__ = ["record_job", "resolve_labels", "write", "write_sweep"]


def resolve_labels(labels, n: int, class_names: Sequence[str]) -> list[int] | None:
    """The class index of each of n samples, or None for no condition.

    Arguments:
        labels: `balanced` = the classes in turn, so that every prefix is balanced; `all` = class by class; a list of
            indices or names, or one of them, taken in turn; None = no condition.
        n: number of samples.
        class_names: one per class.

    Raises:
        ValueError: an unknown class, or labels for a model without classes.
    """
    if labels is None or (labels in ("balanced", "all") and not class_names):
        return None
    classes = len(class_names)
    if labels == "balanced":
        return [i % classes for i in range(n)]
    if labels == "all":
        return sorted(i % classes for i in range(n))
    chosen = [class_index(label, class_names) for label in (labels if isinstance(labels, list) else [labels])]
    if not chosen:
        raise ValueError("labels is an empty list; give classes, balanced, all, or null for no condition")
    return [chosen[i % len(chosen)] for i in range(n)]


def class_index(label: int | str, class_names: Sequence[str]) -> int:
    """The index of one class given by index or name."""
    if isinstance(label, str) and label in class_names:
        return list(class_names).index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(class_names):
        return label
    shown = ", ".join(map(str, class_names[:12])) + (", ..." if len(class_names) > 12 else "")
    raise ValueError(f"labels: there is no class {label!r}; indices 0 to {len(class_names) - 1}, or names: {shown}")


def write(
    folder: Path, samples: Tensor, labels: Sequence[int] | None, seeds: Sequence[int], class_names: Sequence[str],
    header: dict, config: dict,
) -> None:  # fmt: skip
    """Writes samples.npz, manifest.jsonl and grid.png.

    samples.npz has arr_0 uint8 [N, H, W, C] (vectors: float32 [N, D]) and arr_1 labels [N], -1 = no condition: the
    layout that the evaluator of guided-diffusion reads. The manifest has the header, then seed and label per sample.
    """
    labels = [-1] * len(samples) if labels is None else labels
    vectors = samples.ndim == 2
    array = samples.numpy() if vectors else images.to_uint8(samples)
    buffer = io.BytesIO()
    numpy.savez(buffer, array, numpy.asarray(labels, dtype=numpy.int64))
    write_atomically(folder / "samples.npz", lambda path: path.write_bytes(buffer.getvalue()))
    versions = {"diffguide": __version__, "torch": torch.__version__, "python": platform.python_version()}
    records = [header | {"n": len(samples), "versions": versions}]
    for index, (seed, label) in enumerate(zip(seeds, labels)):
        name = None if label < 0 else class_names[label]
        records.append({"index": index, "seed": seed, "label": label, "class": name})
    lines = "".join(json.dumps(finite(record), allow_nan=False) + "\n" for record in records)
    write_atomically(folder / "manifest.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))
    images.sample_picture(folder / "grid.png", samples, labels, class_names, training_data(config) if vectors else None)


def finite(value):
    """The value with infinities as the strings inf and -inf: JSON has none."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def training_data(config: dict) -> Tensor | None:
    """The vectors that a run was trained on, to draw samples over; None where they are not at hand."""
    from .checkpoints import CheckpointError, construct

    try:
        return construct(config["dataset"], "dataset", ()).train.x
    except (CheckpointError, OSError, ValueError):
        return None


def record_job(sweep: Path, job, folder: Path, header: dict) -> None:
    """Leaves, in the sweep's own folder, what `write_sweep` needs of one run; `job` is Hydra's configuration."""
    swept = dict(override.lstrip("+").split("=", 1) for override in job.overrides.task)
    record = {"number": job.job.num, "overrides": swept, "folder": str(folder), "header": header}
    sweep.mkdir(parents=True, exist_ok=True)
    write_atomically(sweep / f"{job.job.num:05d}.json", lambda path: path.write_text(json.dumps(record)))


def write_sweep(sweep: Path) -> Path | None:
    """Writes contact_sheet.png and sweep.csv of the runs recorded in `sweep`, into a folder beside them, and returns it."""
    jobs = [json.loads(file.read_text()) for file in sorted(sweep.glob("[0-9]*.json"))]
    if not jobs:
        return None
    folders = [Path(job["folder"]) for job in jobs]
    folder = folders[0].parent / f"sweep_{folders[0].name}-{folders[-1].name}"
    folder.mkdir()
    varying = [key for key in jobs[0]["overrides"] if len({job["overrides"].get(key) for job in jobs}) > 1]
    columns, class_names, background = {}, [], None
    for job, path in zip(jobs, folders):
        with numpy.load(path / "samples.npz") as arrays:
            x, labels = torch.from_numpy(arrays["arr_0"]), arrays["arr_1"].tolist()
        if x.ndim == 4:
            x = x.permute(0, 3, 1, 2) / 127.5 - 1
        values = {
            key.rpartition(".")[2]: Path(job["overrides"][key]).name for key in varying
        }  # paths by their last part
        title = " ".join(f"{key} {value}" for key, value in values.items()) or path.name
        columns[title] = x, labels
    lines = [json.loads(line) for line in (folders[0] / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[1:]]
    names = {line["label"]: line["class"] for line in lines}
    class_names = [names.get(label, str(label)) for label in range(max(names) + 1)]
    images.contact_sheet(folder / "contact_sheet.png", columns, class_names, background)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*varying, "n", "network_evaluations", "checkpoint_file", "folder"])
    for job, (samples, _) in zip(jobs, columns.values()):
        header = job["header"]
        values = [job["overrides"][key] for key in varying]
        table.writerow([*values, len(samples), header["network_evaluations"], header["checkpoint"], job["folder"]])
    write_atomically(folder / "sweep.csv", lambda path: path.write_text(text.getvalue(), encoding="utf-8"))
    shutil.rmtree(sweep, ignore_errors=True)
    with suppress(OSError):  # other sweeps may be under way
        sweep.parent.rmdir()
    return folder
