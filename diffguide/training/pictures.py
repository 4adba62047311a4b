"""The sample grids and accuracy plots that training draws of its averaged model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

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
        labels = choose_training_labels(guided.num_classes, vectors=len(data.shape) == 1)
        batch_size = min(250, max(job.training.share(job.engine.world_size), 8))
        batches = generate(guided, job.sampler, range(len(labels)), labels, data.shape, batch_size, job.engine.device)
        background = data.train.x if len(data.shape) == 1 and isinstance(data.train, Split) else None
        x = torch.cat([batch.float().cpu() for batch in batches])
        x = data.space.decode(x) if isinstance(data, LatentData) else x
        write_samples(path, x, labels, data.class_names, background, note_missing=True)
