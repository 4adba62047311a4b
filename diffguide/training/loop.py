"""The training loop. Progress is counted in images, so that the batch size does not change what a configuration means."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.extension import EXTEND
from ..datasets import Dataset
from ..objectives import Diverged, Objective
from ..runtime.engine import Fabric, build_fabric
from ..runtime.signals import Interrupts
from .learning_rates import LearningRatePlan
from .state import TrainingRun

__all__ = ["Diverged", "Training"]

ADAMW = partial(torch.optim.AdamW, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


class Training:
    """How to train: amounts in images unless said otherwise.

        objective = Denoising(UNet(in_channels=1, size=8, num_classes=10), Cosine())
        model = Training(images=1000).run(objective, Digits()).model  # a denoiser, with averaged weights

    Arguments:
        images: training images in total.
        batch_size: images per optimiser step, over all devices.
        learning_rate: peak learning rate, after warm-up.
        warmup_images: linear rise of the learning rate at the start; a cosine fall to 0 follows, until `images`.
        accumulate: parts into which each device's share of the batch is cut, to save memory.
        max_grad_norm: the norm of the gradient is clipped to this.
        ema_images: half-life of the moving average of the weights; a tenth of the images seen, while that is shorter.
        log_images, validation_images, checkpoint_images, sample_images: interval between lines of metrics.jsonl, held-out
            losses, checkpoints, sample grids; each is also written at the end.
        keep_checkpoints: number of newest checkpoints to keep, beside the one with the lowest held-out loss.
        optimizer: (parameters, lr=...) -> torch optimiser; AdamW by default.
        extend: what the learning rate does when a run is resumed with another number of images (`learning_rates`):
            decay_again, constant or as_if_planned.
        extend_rate: where the first two begin, in units of `learning_rate`; the current rate, if that is higher.

    Raises:
        ValueError: an amount that is not positive, or a batch that cannot be divided.
    """

    def __init__(
        self, images: int = 60000, batch_size: int = 128, learning_rate: float = 0.004, warmup_images: int = 3000,
        accumulate: int = 1, max_grad_norm: float = 1.0, ema_images: int = 1800, log_images: int = 2000,
        validation_images: int = 15000, checkpoint_images: int = 30000, sample_images: int = 30000, keep_checkpoints: int = 3,
        optimizer: Callable[..., torch.optim.Optimizer] = ADAMW, extend: str = "decay_again", extend_rate: float = 0.5,
    ):  # fmt: skip
        counts = dict(
            images=images, batch_size=batch_size, accumulate=accumulate, ema_images=ema_images, log_images=log_images,
            validation_images=validation_images, checkpoint_images=checkpoint_images, sample_images=sample_images,
            keep_checkpoints=keep_checkpoints,
        )  # fmt: skip
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")
        for name, value in {"learning_rate": learning_rate, "max_grad_norm": max_grad_norm}.items():
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if not isinstance(warmup_images, int) or warmup_images < 0:
            raise ValueError(f"warmup_images must be a whole number of at least 0, got {warmup_images!r}")
        if extend not in EXTEND:
            raise ValueError(f"extend must be {', '.join(EXTEND[:-1])} or {EXTEND[-1]}, got {extend!r}")
        if not isinstance(extend_rate, int | float) or not 0 < extend_rate <= 1:
            raise ValueError(f"extend_rate must be a number above 0, of at most 1, got {extend_rate!r}")
        self.images, self.batch_size, self.accumulate = images, batch_size, accumulate
        self.learning_rate, self.warmup_images = learning_rate, warmup_images
        self.extend, self.extend_rate = extend, extend_rate
        self.max_grad_norm, self.ema_images = max_grad_norm, ema_images
        self.log_images, self.validation_images = log_images, validation_images
        self.checkpoint_images, self.sample_images = checkpoint_images, sample_images
        self.keep_checkpoints, self.optimizer = keep_checkpoints, optimizer

    def plan(self) -> LearningRatePlan:
        """The learning rates of a run whose length never changes."""
        return LearningRatePlan(self.learning_rate, self.warmup_images, self.batch_size, self.images)

    def ema_decay_at(self, images: int) -> float:
        """The decay per step at a half-life of min(ema_images, images / 10)."""
        return 0.5 ** (self.batch_size / max(min(self.ema_images, images / 10), 1e-9))

    def share(self, devices: int) -> int:
        """Images per device and micro-step.

        Raises:
            ValueError: a batch that the devices cannot share.
        """
        share, rest = divmod(self.batch_size, devices * self.accumulate)
        if rest or not share:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of devices x accumulate, {devices} x {self.accumulate}"
            )
        return share

    def make_optimizer(self, objective: Objective) -> torch.optim.Optimizer:
        """The optimiser of an objective's parameters.

        Raises:
            ValueError: arguments that this optimiser does not take.
        """
        try:
            return self.optimizer(objective.parameters(), lr=self.learning_rate)
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(f"optimizer: {error}") from error

    def run(
        self, objective: Objective, data: Dataset, folder: str | Path | None = None, seed: int = 0,
        engine: Fabric | None = None, config: Mapping[str, Any] | None = None,
        draw: Callable[[Objective, Path], None] | None = None, resume: Path | None = None,
        note: Mapping[str, Any] | None = None,
    ) -> Objective:  # fmt: skip
        """Trains, and returns the objective with averaged weights, in evaluation mode.

        A run that diverges goes back to its last checkpoint and continues with another seed, at most
        `objective.max_restores` times. The number is in every checkpoint, and in a line {images, restores} of metrics.jsonl.

        Arguments:
            data: what to train on.
            folder: where metrics.jsonl, data.json, checkpoints/ and samples/ are written, None = nowhere.
            seed: of everything random.
            engine: launched Fabric, None = one device.
            config: resolved configuration, from which a checkpoint is rebuilt; None = no checkpoints.
            draw: called with (averaged objective, PNG path) on rank 0 to make a sample grid.
            resume: checkpoint to continue from.
            note: line for metrics.jsonl that says what the resumed run changes.

        Raises:
            Diverged: a loss, gradient or weight is not finite, or the objective says so; the last checkpoint stays.
            Stopped: SIGTERM or SIGINT came, and a checkpoint was written.
            WriteError: a file could not be written.
        """
        if engine is None:
            engine = build_fabric("auto", 1, 1, "auto", "32-true")
            engine.launch()
        path = None if folder is None else Path(folder)
        run = TrainingRun(self, objective, data, path, seed, engine, config, draw, resume, note)
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
