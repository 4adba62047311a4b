"""The outputs of a finished sampling run: manifest, pictures, archive, and for an oracle metrics.json."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..evaluation.quality import oracle_distances
from ..figures import image_grids as images
from ..figures import scatter as vectors
from ..figures import trajectories
from ..files.run_folders import strict_json, write_atomically
from ..files.shards import POTENTIAL_EVALUATIONS, Shards, write_archive
from ..models.protocols import Denoiser, is_guided
from ..oracles import Oracle, TiltedLaw
from ..runtime.signals import Interrupts, Stopped
from .run import SamplingPlan

__all__ = ["finalize_run", "write_metrics"]


def finalize_run(
    plan: SamplingPlan,
    shards: Shards,
    folder: Path,
    header: Mapping[str, Any],
    filmed: images.GridLayout | None,
    interrupts: Interrupts,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Writes manifest.jsonl, grid.png, trajectory.gif, for an oracle metrics.json, and last samples.npz.

    samples.npz has arr_0 uint8 [N, H, W, C] (vectors and latents: float32 as they are) and arr_1 labels [N], -1 = no
    condition: the layout of the evaluator of guided-diffusion. The manifest has the header, then seed and label per sample.

    Arguments:
        shards: of all batches.
        header: of the manifest, without network_evaluations and potential_evaluations per sample, and without what samplers
            state per noise level, such as the acceptance of chains.
        filmed: layout of trajectory.gif, None = no trajectory.

    Returns:
        The complete header, and the figures of metrics.json for a table, {} = none.

    Raises:
        Stopped: a signal arrived before the end.
        ShardError: a shard is damaged.
        WriteError: a file could not be written.
    """
    evaluations = {
        "network_evaluations": shards.evaluations() / shards.n,
        POTENTIAL_EVALUATIONS: shards.evaluations(POTENTIAL_EVALUATIONS) / shards.n,
    }
    complete = dict(header) | evaluations | shards.means()

    def read_batches() -> Iterator[numpy.ndarray]:
        for first in shards.firsts:
            if interrupts.number:
                raise Stopped(interrupts.number, f"all {shards.n} samples, not yet merged into samples.npz")
            yield shards.samples(first)

    write_atomically(folder / "manifest.jsonl", lambda path: write_manifest(path, plan, complete))
    write_pictures(folder, plan, shards, filmed)
    figures = {}
    if plan.source.oracle is not None:
        figures = write_metrics(folder / "metrics.json", plan, plan.source.oracle, shards, complete)
    write_atomically(folder / "samples.npz", lambda path: write_archive(path, read_batches(), plan.classes))
    shards.remove()
    return complete, figures


def write_manifest(path: Path, plan: SamplingPlan, header: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(strict_json(header) + "\n")
        for index, (seed, label) in enumerate(zip(plan.seeds, plan.classes)):
            name = None if label < 0 else plan.class_names[label]
            kind = "prompt" if plan.prompts else "class"
            file.write(strict_json({"index": index, "seed": seed, "label": label, kind: name}) + "\n")


def write_pictures(folder: Path, plan: SamplingPlan, shards: Shards, filmed: images.GridLayout | None) -> None:
    """Writes grid.png, and trajectory.gif if there are trajectories."""
    grid, gif, names = folder / "grid.png", folder / "trajectory.gif", plan.class_names
    frames = None if filmed is None else shards.frames(filmed.indices)
    if plan.background is not None:
        x = pick_samples(shards, range(min(shards.n, images.MAX_CONTACT_POINTS)))
        vectors.write_scatter(grid, [("", x, plan.classes[: len(x)])], names, plan.background)
        if frames is not None:
            trajectories.write_vector_gif(gif, frames, plan.classes, names, plan.background)
        return
    layout = images.lay_out_grid(plan.classes, names)
    samples = shards.read_samples(layout.indices)
    images.write_grid(grid, layout, {index: images.preview_latents(x) for index, x in samples.items()})
    if frames is not None and filmed is not None:
        trajectories.write_image_gif(gif, filmed, frames)


def pick_samples(shards: Shards, indices: Iterable[int]) -> numpy.ndarray:
    """Reads single samples, in ascending order of their indices."""
    return numpy.stack([sample for _, sample in sorted(shards.read_samples(indices).items())])


def write_metrics(
    path: Path, plan: SamplingPlan, oracle: Oracle, shards: Shards, header: Mapping[str, Any]
) -> dict[str, float]:
    """Writes metrics.json, the comparison with exact samples of the same labels; returns its figures.

    Images are compared as bytes: exact samples are rounded too.
    """
    seed, guided = plan.seeds.start, is_guided(plan.guided)
    indices = oracle_distances.select_compared(shards.n, int(numpy.prod(plan.shape)), seed)
    labels = [plan.classes[index] for index in indices]
    x = torch.from_numpy(pick_samples(shards, indices))
    store: Callable[[Tensor], Tensor] = Tensor.float
    if len(plan.shape) > 1:
        x, store = from_bytes(x), round_to_bytes
    metrics = oracle_distances.compare_with_oracle(oracle, x, labels, plan.class_names, seed, store)
    if guided:
        metrics["tilted"] = compare_with_named_law(plan, oracle, x, labels, store)
    law = "; their distribution is the unguided one, which guidance changes on purpose: see tilted" if guided else ""
    facts = {
        "reference": f"exact samples of the oracle, same labels{law}",
        "n": shards.n,
        "compared": len(indices),
        "seed": seed,
        "guidance": header["guidance"],
        "sampler": header["sampler"],
        "steps": plan.sampler.steps,
        "network_evaluations": header["network_evaluations"],
        POTENTIAL_EVALUATIONS: header[POTENTIAL_EVALUATIONS],
    }
    text = strict_json(facts | metrics, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return oracle_distances.table_figures(metrics)


def compare_with_named_law(
    plan: SamplingPlan, oracle: Oracle, x: Tensor, labels: list[int], store: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """The distances from the law that the guidance names, or the reason why there are none."""
    tilt = plan.guided.tilt() if isinstance(plan.guided, Denoiser) else None
    if tilt is None:
        return {"none": f"{type(plan.guided).__name__} names no law of this oracle"}
    try:
        return oracle_distances.compare_with_tilted(
            TiltedLaw(oracle, tilt), x, labels, plan.class_names, plan.seeds.start, store
        )
    except ValueError as error:
        return {"law": tilt.describe(), "none": str(error)}


def from_bytes(x: Tensor) -> Tensor:
    """Converts uint8 [N, H, W, C] to [N, C, H, W] in [-1, 1]."""
    return x.permute(0, 3, 1, 2).float() / 127.5 - 1


def round_to_bytes(x: Tensor) -> Tensor:
    """Rounds images to bytes, as in samples.npz."""
    return from_bytes(torch.from_numpy(images.to_uint8(x)))
