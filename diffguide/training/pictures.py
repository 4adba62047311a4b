"""The sample grids and accuracy plots that training draws of its averaged model."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..backbones.conditions import RowCondition
from ..conditions.examples import Examples
from ..datasets import Split
from ..datasets.base import fetch_examples
from ..evaluation.classification.metric import write_accuracy
from ..figures.image_grids import choose_training_labels, write_samples
from ..figures.reconstructions import MAX_RECONSTRUCTIONS, write_reconstructions
from ..first_stages import FirstStage
from ..first_stages.latent_data import LatentData
from ..models.protocols import Classifier, Denoiser, Energy
from ..objectives import Objective
from ..samplers import SamplingError, generate

if TYPE_CHECKING:
    from .job import TrainingJob

__all__ = ["TrainingPictures"]

MAX_PROMPTS = 16  # in a picture


class TrainingPictures:
    """Callback of `Training.run`: draws samples of every class, with the same seeds each time.

    For a classifier it plots the held-out accuracy against the noise level; for an autoencoder it draws held-out pictures above
    their reconstructions.
    """

    def __init__(self, job: "TrainingJob"):
        self.job = job

    def __call__(self, averaged: Objective, path: Path) -> None:
        """Writes a PNG file for an averaged objective; none for a density at a single noise level."""
        model, job = averaged.model, self.job
        if isinstance(model, Denoiser | Energy):
            if not job.generates:
                return
            try:
                self.draw_samples(model, path)
            except SamplingError as error:  # continue the training
                print(f"no samples: {error}", file=sys.stderr)
        elif isinstance(model, Classifier):
            write_accuracy(path, model, job.data, job.seed, job.engine.device)
        elif isinstance(model, FirstStage):
            self.draw_reconstructions(model, path)

    @torch.no_grad()
    def draw_reconstructions(self, model: FirstStage, path: Path) -> None:
        """The first held-out pictures, and what the mean of their latents decodes to."""
        _, split = self.job.data.held_out_split
        rows = torch.arange(min(MAX_RECONSTRUCTIONS, len(split.y)))
        x = self.job.data.preprocess(fetch_examples(split, rows)[0]).to(self.job.engine.device)
        write_reconstructions(path, x, model.decode(model.encode(x)))

    def draw_samples(self, model: Denoiser | Energy, path: Path) -> None:
        job, data = self.job, self.job.data
        guided = job.add_guidance(model, job.engine.device)
        names: Sequence[str] = data.class_names
        conditions: RowCondition | None = None
        if isinstance(guided, Denoiser) and guided.conditioning is not None:
            names, conditions = choose_prompts(job.examples.held_out, guided)
        count = guided.num_classes if conditions is None else len(names)
        labels = choose_training_labels(count, vectors=len(data.shape) == 1)
        y: Sequence[int] | RowCondition = labels if conditions is None else conditions[torch.tensor(labels)]
        batch_size = min(250, max(job.training.share(job.engine.world_size), 8))
        batches = generate(guided, job.sampler, range(len(labels)), y, data.shape, batch_size, job.engine.device)
        background = data.train.x if len(data.shape) == 1 and isinstance(data.train, Split) else None
        x = torch.cat([batch.float().cpu() for batch in batches])
        x = data.space.decode(x) if isinstance(data, LatentData) else x
        write_samples(path, x, labels, names, background, note_missing=True)


def choose_prompts(examples: Examples, model: Denoiser) -> tuple[Sequence[str], RowCondition | None]:
    """Conditions for a picture and their names: the first captions of held-out examples, all different.

    Without captions, the conditions of the first held-out examples.
    """
    split, conditioning = examples.split, model.conditioning
    assert conditioning is not None
    captions = split.columns.get(conditioning.column) if conditioning.reads_text else None
    if captions is not None:
        found: dict[str, int] = {}  # the first example with each caption
        for row, given in enumerate(captions):
            if given and given[0] and len(found) < MAX_PROMPTS:
                found.setdefault(given[0], row)
        return list(found), read_table(examples, list(found.values()))
    rows = list(range(min(MAX_PROMPTS, len(split.y))))
    return [f"example {row}" for row in rows], read_table(examples, rows)


def read_table(examples: Examples, rows: Sequence[int]) -> RowCondition | None:
    """The conditions of some examples; None for no rows, and for class indices."""
    if not rows:
        return None
    y = examples.fetch(torch.tensor(rows))[1]
    return y if isinstance(y, RowCondition) else None
