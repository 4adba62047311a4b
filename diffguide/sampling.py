"""What a sampling run writes, and what a sweep of them writes beside."""

import csv
import io
import itertools
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy
import torch
from torch import Tensor

from . import __version__, images
from .runs import strict_json, write_atomically

__all__ = ["resolve_labels", "write", "write_sweep"]


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
        raise ValueError("the list is empty; give classes, balanced, all, or null for no condition")
    return [chosen[i % len(chosen)] for i in range(n)]


def class_index(label: int | str, class_names: Sequence[str]) -> int:
    """The index of one class given by index or name."""
    if isinstance(label, str) and label in class_names:
        return list(class_names).index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(class_names):
        return label
    shown = ", ".join(map(str, class_names[:12])) + (", ..." if len(class_names) > 12 else "")
    raise ValueError(f"there is no class {label!r}; indices 0 to {len(class_names) - 1}, or names: {shown}")


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
    lines = "".join(strict_json(record) + "\n" for record in records)
    write_atomically(folder / "manifest.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))
    images.sample_picture(folder / "grid.png", samples, labels, class_names, training_data(config) if vectors else None)


def training_data(config: dict) -> Tensor | None:
    """The vectors that a run with this `dataset` node was trained on, to draw samples over; None where they are not at hand.

    The node comes from a file, so only data sets that are drawn from a seed are built: others read files or download.
    """
    from .vetting import construct, vet

    try:
        return (
            construct(config["dataset"], "dataset", ()).train.x if vet(config["dataset"], "dataset").synthetic else None
        )
    except (TypeError, ValueError):  # a node that is not ours (CheckpointError), or does not fit
        return None


def write_sweep(jobs: list[dict]) -> Path:
    """Writes contact_sheet.png and sweep.csv of a sweep's runs into a folder beside them, and returns it.

    Arguments:
        jobs: per run `folder`, `overrides`, `class_names`, `dataset` and the manifest's `header`.
    """
    folders = [Path(job["folder"]) for job in jobs]
    folder = claim_name(folders[0].parent, f"sweep_{folders[0].name}-{folders[-1].name}")
    keys = list(dict.fromkeys(key for job in jobs for key in job["overrides"]))
    varying = [key for key in keys if len({job["overrides"].get(key) for job in jobs}) > 1]
    columns = []
    for job, path in zip(jobs, folders):
        with numpy.load(path / "samples.npz") as arrays:
            x, labels = torch.from_numpy(arrays["arr_0"]), arrays["arr_1"].tolist()
        if x.ndim == 4:
            x = x.permute(0, 3, 1, 2) / 127.5 - 1
        titles = [f"{key.rpartition('.')[2]} {short(job['overrides'].get(key, ''))}" for key in varying]
        columns.append((" ".join(titles) or path.name, x, labels))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    facts = ["n", "network_evaluations", "checkpoint", "folder"]
    table.writerow([*varying, *(f"run_{fact}" if fact in varying else fact for fact in facts)])
    for job, (_, x, _) in zip(jobs, columns):
        header = job["header"]
        values = [job["overrides"].get(key, "") for key in varying]
        table.writerow([*values, len(x), header["network_evaluations"], header["checkpoint"], job["folder"]])
    write_atomically(folder / "sweep.csv", lambda path: path.write_text(text.getvalue(), encoding="utf-8"))
    if len({tuple(x.shape[1:]) for _, x, _ in columns}) == 1:  # runs of different data have no common picture
        background = training_data(jobs[0]) if columns[0][1].ndim == 2 else None
        images.contact_sheet(folder / "contact_sheet.png", columns, jobs[0]["class_names"], background)
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
