"""The training loop. Lengths are in images, so that they do not depend on the batch size."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.extension import EXTEND
from ..conditions.examples import ConditionedData
from ..datasets import Dataset
from ..objectives import Diverged, Objective
from ..runtime.engine import Fabric, build_fabric
from ..runtime.put_off import use_optimizer
from ..runtime.ranges import check_range, check_whole
from ..runtime.signals import Interrupts
from .learning_rates import LearningRatePlan
from .state import TrainingRun

__all__ = ["Diverged", "Training"]

ADAMW = partial(torch.optim.AdamW, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


@dataclass(eq=False)
class Training:
    """The settings of a training, with lengths in images.

        objective = Denoising(UNet(in_channels=1, size=8, num_classes=10), Cosine())
        model = Training(images=1000).run(objective, Digits()).model  # a denoiser, with averaged weights

    Arguments:
        images: training images in total.
        batch_size: images per optimiser step, over all devices.
        learning_rate: peak learning rate, after warm-up.
        warmup_images: linear rise of the learning rate at the start; then it falls to 0 at `images` as a cosine.
        accumulate: number of micro-batches into which each device divides its share of a batch, to save memory.
        max_grad_norm: the norm of the gradient is clipped to this.
        ema_images: half-life of the moving average of the weights; it is at most a tenth of the images seen so far.
        log_images, validation_images, checkpoint_images, sample_images: interval between lines of metrics.jsonl, held-out
            losses, checkpoints, sample grids; each is also written at the end.
        keep_checkpoints: number of newest checkpoints to keep, besides the one with the lowest held-out loss.
        optimizer: (parameters, lr=...) -> torch optimiser; AdamW by default.
        extend: the learning rate of a run that is resumed with another number of images: decay_again, constant or
            as_if_planned, see `learning_rates`.
        extend_rate: where the first two start, in units of `learning_rate`, in (0, 1]; the current rate if it is higher.

    Raises:
        ValueError: an argument out of its range.
    """

    images: int = 60000
    batch_size: int = 128
    learning_rate: float = 0.004
    warmup_images: int = 3000
    accumulate: int = 1
    max_grad_norm: float = 1.0
    ema_images: int = 1800
    log_images: int = 2000
    validation_images: int = 15000
    checkpoint_images: int = 30000
    sample_images: int = 30000
    keep_checkpoints: int = 3
    optimizer: Callable[..., torch.optim.Optimizer] = ADAMW
    extend: str = "decay_again"
    extend_rate: float = 0.5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type is int:
                check_whole(field.name, getattr(self, field.name), 0 if field.name == "warmup_images" else 1)
        check_range("learning_rate", self.learning_rate, "(0, inf)")
        check_range("max_grad_norm", self.max_grad_norm, "(0, inf)")
        check_range("extend_rate", self.extend_rate, "(0, 1]")
        if self.extend not in EXTEND:
            raise ValueError(f"extend must be {', '.join(EXTEND[:-1])} or {EXTEND[-1]}, got {self.extend!r}")

    def plan(self) -> LearningRatePlan:
        """The learning rates of a run whose length does not change."""
        return LearningRatePlan(self.learning_rate, self.warmup_images, self.batch_size, self.images)

    def ema_decay_at(self, images: int) -> float:
        """The decay per step at a half-life of min(ema_images, images / 10)."""
        return 0.5 ** (self.batch_size / max(min(self.ema_images, images / 10), 1e-9))

    def share(self, devices: int) -> int:
        """Images per device and micro-step; ValueError if the devices cannot share a batch."""
        share, rest = divmod(self.batch_size, devices * self.accumulate)
        if rest or not share:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of devices x accumulate, {devices} x {self.accumulate}"
            )
        return share

    def make_optimizer(self, objective: Objective) -> torch.optim.Optimizer:
        """Builds the optimiser of an objective's parameters; ValueError for arguments that it does not support."""
        try:
            with use_optimizer(getattr(self.optimizer, "func", self.optimizer)):
                return self.optimizer(objective.parameters(), lr=self.learning_rate)
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(f"optimizer: {error}") from error

    def run(
        self,
        objective: Objective,
        data: Dataset | ConditionedData,
        folder: str | Path | None = None,
        seed: int = 0,
        engine: Fabric | None = None,
        config: Mapping[str, Any] | None = None,
        draw: Callable[[Objective, Path], None] | None = None,
        resume: Path | None = None,
        note: Mapping[str, Any] | None = None,
    ) -> Objective:
        """Trains, and returns the objective with averaged weights, in evaluation mode.

        A run that diverges restarts from its last checkpoint with another seed, at most `objective.max_restores` times. The
        number is in every checkpoint, and in a line {images, restores} of metrics.jsonl.

        Arguments:
            data: training data, or with their conditions.
            folder: of metrics.jsonl and data.json, of checkpoints/ with `config` and samples/ with `draw`; None = nothing is
                written.
            seed: of all random numbers.
            engine: launched Fabric, None = one device.
            config: resolved configuration, saved in the checkpoints; None = no checkpoints.
            draw: called with (averaged objective, PNG path) on rank 0 to make a sample grid.
            resume, note: checkpoint from which to continue, and a line of metrics.jsonl with the changes.

        Raises:
            Diverged: a loss, gradient or weight is not finite, or the objective raised it; the last checkpoint is kept.
            Stopped: SIGTERM or SIGINT arrived, and a checkpoint was written.
            WriteError: a file could not be written.
        """
        if engine is None:
            engine = build_fabric("auto", 1, 1, "auto", "32-true")
            engine.launch()
        path = None if folder is None else Path(folder)
        examples = ConditionedData.of(data, objective.model)
        run = TrainingRun(self, objective, examples, path, seed, engine, config, draw, resume, note)
        with Interrupts(silent=not engine.is_global_zero) as interrupts:
            while run.images < self.images:
                try:
                    for micro, (x_0, y, rng) in zip(range(self.accumulate), run.batches):
                        with engine.no_backward_sync(run.module, enabled=micro < self.accumulate - 1):
                            loss = run.module(x_0, y, rng)
                            engine.backward(loss.per_example.mean() / self.accumulate)
                        run.add(loss)
                    run.update()
                    run.write(interrupts)
                except Diverged as error:
                    run = run.roll_back(error)
        run.close()
        return run.averaged
