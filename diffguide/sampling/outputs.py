"""What a sampling run makes of its batches at its end: manifest, pictures, archive, and an oracle's metrics.json."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ..evaluation.quality import oracle_distances as truth
from ..figures import image_grids as images
from ..figures import scatter as vectors
from ..figures import trajectories
from ..files.run_folders import strict_json, write_atomically
from ..files.shards import POTENTIAL_EVALUATIONS, Shards, write_archive
from ..models.evaluation_counters import EvaluationCounter
from ..runtime.signals import Interrupts, Stopped
from .run import SamplingPlan

__all__ = ["finalize_run", "write_metrics"]


def finalize_run(
    plan: SamplingPlan, shards: Shards, folder: Path, header: dict, filmed: images.GridLayout | None,
    interrupts: Interrupts,
) -> tuple[dict, dict[str, float]]:  # fmt: skip
    """Writes manifest.jsonl, grid.png, trajectory.gif, of an oracle metrics.json, and samples.npz.

    Returns the manifest's header and the figures of metrics.json that a table shows, none where there is no truth.

    samples.npz is the last: where it is, the run is finished.

    samples.npz has arr_0 uint8 [N, H, W, C] (vectors: float32 [N, D]) and arr_1 labels [N], -1 = no condition: the
    layout that the evaluator of guided-diffusion reads. The manifest has the header, then seed and label per sample.

    Arguments:
        shards: all of them.
        header: of the manifest; network_evaluations and potential_evaluations, per sample, are filled in.

    Raises:
        Stopped: a signal came before the end.
        ShardError: a shard is damaged.
        WriteError: a file could not be written.
    """
    labels, background = plan.classes, plan.background
    header = header | {
        "network_evaluations": shards.evaluations() / shards.n,
        POTENTIAL_EVALUATIONS: shards.evaluations(POTENTIAL_EVALUATIONS) / shards.n,
    }

    def write_manifest(path: Path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(strict_json(header) + "\n")
            for index, (seed, label) in enumerate(zip(plan.seeds, labels)):
                name = None if label < 0 else plan.class_names[label]
                file.write(strict_json({"index": index, "seed": seed, "label": label, "class": name}) + "\n")

    def parts() -> Iterator[numpy.ndarray]:
        for first in shards.firsts:
            if interrupts.number:
                raise Stopped(interrupts.number, f"all {shards.n} samples, before they were merged")
            yield shards.samples(first)

    write_atomically(folder / "manifest.jsonl", write_manifest)
    if background is not None:
        x = pick_samples(shards, range(min(shards.n, images.MAX_CONTACT_POINTS)))
        vectors.write_scatter(folder / "grid.png", [("", x, labels[: len(x)])], plan.class_names, background)
    else:
        shown = images.lay_out_grid(labels, plan.class_names)
        images.write_grid(folder / "grid.png", shown, shards.read_samples(shown.indices))
    if filmed is not None:
        frames, path = shards.frames(filmed.indices), folder / "trajectory.gif"
        if background is not None:
            trajectories.write_vector_gif(path, frames, labels, plan.class_names, background)
        else:
            trajectories.write_image_gif(path, filmed, frames)
    figures = {} if plan.source.oracle is None else write_metrics(folder / "metrics.json", plan, shards, header)
    write_atomically(folder / "samples.npz", lambda path: write_archive(path, parts(), labels))
    shards.remove()
    return header, figures


def pick_samples(shards: Shards, indices: Iterable[int]) -> numpy.ndarray:
    """Single samples, in ascending order of their indices."""
    return numpy.stack([sample for _, sample in sorted(shards.read_samples(indices).items())])


def write_metrics(path: Path, plan: SamplingPlan, shards: Shards, header: dict) -> dict[str, float]:
    """Writes metrics.json: the samples against exact ones with the same labels (`truth.compare`); returns its figures.

    Images are compared as bytes, which is how they are stored: exact ones are rounded likewise.
    """
    seed, guided = plan.seeds.start, not isinstance(plan.guided, EvaluationCounter)
    indices = truth.select_compared(shards.n, int(numpy.prod(plan.shape)), seed)
    x, labels = torch.from_numpy(pick_samples(shards, indices)), [plan.classes[index] for index in indices]
    vector = len(plan.shape) == 1
    metrics = truth.compare_with_oracle(
        plan.source.oracle,
        x if vector else from_bytes(x),
        labels,
        plan.class_names,
        seed,
        Tensor.float if vector else round_to_bytes,
    )
    law = "; their law is the unguided one, which guidance leaves on purpose" if guided else ""
    facts = {
        "reference": f"exact samples of the oracle, same labels{law}", "n": shards.n, "compared": len(indices),
        "seed": seed, "guidance": header["guidance"], "sampler": header["sampler"], "steps": plan.sampler.steps,
        "network_evaluations": header["network_evaluations"],
        POTENTIAL_EVALUATIONS: header[POTENTIAL_EVALUATIONS],
    }  # fmt: skip
    text = strict_json(facts | metrics, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return truth.table_figures(metrics)


def from_bytes(x: Tensor) -> Tensor:
    """uint8 [N, H, W, C] to [N, C, H, W] in [-1, 1], as data sets read bytes."""
    return x.permute(0, 3, 1, 2).float() / 127.5 - 1


def round_to_bytes(x: Tensor) -> Tensor:
    """Images as they are stored."""
    return from_bytes(torch.from_numpy(images.to_uint8(x)))
