"""The training loop. Progress is counted in images, so that the batch size does not change what a configuration means.

Everything random is a function of a position: the data order of (seed, epoch), the noise of (seed, rank, step), the
layers' own randomness (dropout) of (seed, rank, step, micro-step). A resumed run needs no generator state.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import checkpoints
from .datasets import Dataset, Split
from .objectives import Objective
from .progress import Progress
from .randomness import fold
from .runs import append_line, write_atomically

__all__ = ["Training"]

ORDER, NOISE, LAYERS, VALIDATION = range(4)  # purposes of a folded seed


class DataOrder:
    """The endless order in which examples are shown: every epoch its own permutation, a function of (seed, epoch)."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, -1

    def indices(self, position: int, count: int) -> Tensor:
        """The examples at positions position .. position + count - 1, [count]."""
        parts = []
        while count:
            epoch, offset = divmod(position, self.length)
            if epoch != self.epoch:
                rng = torch.Generator().manual_seed(fold(self.seed, ORDER, epoch))
                self.epoch, self.permutation = epoch, torch.randperm(self.length, generator=rng)
            parts.append(self.permutation[offset : offset + count])
            position, count = position + len(parts[-1]), count - len(parts[-1])
        return torch.cat(parts)


class Training:
    """How to train: amounts in images unless said otherwise.

    Arguments:
        images: training images in total.
        batch_size: images per optimiser step, over all devices.
        learning_rate: peak learning rate, after warm-up.
        warmup_images: linear rise of the learning rate at the start; a cosine fall to 0 follows, until `images`.
        accumulate: parts into which each device's share of the batch is cut, for memory.
        max_grad_norm: the gradient's norm is clipped to this.
        ema_images: half-life of the weights' moving average; early on a tenth of the images seen, if that is shorter.
        log_images, validation_images, checkpoint_images, sample_images: how often; each also at the end.
        optimizer: callable (parameters, lr=...) -> torch optimiser.

    Raises:
        ValueError: an amount that is not positive, or a batch that cannot be divided.
    """

    def __init__(
        self, images: int, batch_size: int, learning_rate: float, warmup_images: int, accumulate: int,
        max_grad_norm: float, ema_images: int, log_images: int, validation_images: int, checkpoint_images: int,
        sample_images: int, optimizer: Callable[..., torch.optim.Optimizer],
    ):  # fmt: skip
        amounts = dict(
            images=images, batch_size=batch_size, accumulate=accumulate, ema_images=ema_images, log_images=log_images,
            validation_images=validation_images, checkpoint_images=checkpoint_images, sample_images=sample_images,
        )  # fmt: skip
        for name, value in amounts.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name, value in {"learning_rate": learning_rate, "max_grad_norm": max_grad_norm}.items():
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if not isinstance(warmup_images, int) or warmup_images < 0:
            raise ValueError(f"warmup_images must be a whole number of at least 0, got {warmup_images!r}")
        self.images, self.batch_size, self.learning_rate, self.warmup_images = (
            images,
            batch_size,
            learning_rate,
            warmup_images,
        )
        self.accumulate, self.max_grad_norm, self.ema_images = accumulate, max_grad_norm, ema_images
        self.log_images, self.validation_images = log_images, validation_images
        self.checkpoint_images, self.sample_images = checkpoint_images, sample_images
        self.optimizer = optimizer

    def learning_rate_at(self, images: int) -> float:
        """Warm-up, then half a cosine to 0 at `self.images`."""
        warm = min(1.0, (images + self.batch_size) / max(self.warmup_images, 1))
        return self.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * min(images / self.images, 1)))

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
        except (TypeError, ValueError) as error:
            raise ValueError(f"optimizer: {error}") from error

    def run(
        self, fabric, objective: Objective, data: Dataset, folder: Path, seed: int, config: dict,
        draw: Callable[[Objective, Path], None], resume: Path | None = None,
    ) -> Objective:  # fmt: skip
        """Trains and returns the averaged objective; writes metrics.jsonl, checkpoints/ and samples/ into `folder`.

        Arguments:
            fabric: launched Fabric.
            data: what to train on.
            seed: of everything random.
            config: resolved configuration, for the checkpoints.
            draw: called with (averaged objective, PNG path) on rank 0 to make a sample grid.
            resume: checkpoint to continue from.
        """
        module, optimizer = fabric.setup(objective, self.make_optimizer(objective))
        ema = AveragedModel(objective).eval().requires_grad_(False)
        images, main = 0, fabric.is_global_zero
        if resume is not None:
            images = checkpoints.load_training_state(resume, objective, ema.module, optimizer)["images"]
            ema.n_averaged.fill_(images // self.batch_size)
            if main:
                cut_metrics(folder / "metrics.jsonl", images)
        batches = Batches(data.train, seed, fabric, self.batch_size, self.share(fabric.world_size))
        progress = Progress("training", self.images, "images", images, silent=not main, log=folder / "log.txt")
        meter, started = Meter(), time.monotonic()
        while images < self.images:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate_at(images)
            norm = self.step(fabric, module, optimizer, batches, images, meter)
            before, images = images, images + self.batch_size
            ema.multi_avg_fn = get_ema_multi_avg_fn(self.ema_decay_at(images))
            ema.update_parameters(objective)
            progress.advance(self.batch_size)

            def due(every: int) -> bool:
                return images // every > before // every or images >= self.images

            if due(self.log_images) and main:
                means, seconds = meter.read()
                figures = {"learning_rate": self.learning_rate_at(before), "grad_norm": float(norm)}
                rate = meter.count * fabric.world_size / seconds
                timing = {"images_per_second": rate, "seconds": time.monotonic() - started}
                append_line(folder / "metrics.jsonl", {"images": images, **means, **figures, **timing})
                progress.show(loss=means["loss"])
                meter.reset()
            with meter.paused():  # the rate is that of training
                if due(self.validation_images) and main:
                    loss = held_out_loss(ema.module, data.validation, seed, fabric.device)
                    append_line(folder / "metrics.jsonl", {"images": images, "validation_loss": loss})
                    progress.say(f"{images} images: held-out loss {loss:.4f}")
                if due(self.checkpoint_images) and main:
                    names = list(data.class_names) if objective.model.num_classes else []
                    facts = {"images": images, "class_names": names, "shape": list(data.shape)}
                    checkpoints.save(folder / "checkpoints", objective, ema.module, optimizer, config, facts)
                if due(self.sample_images) and main:
                    draw(ema.module, folder / "samples" / f"{images:010d}.png")
        progress.close()
        fabric.barrier()
        return ema.module

    def step(self, fabric, module, optimizer, batches: "Batches", images: int, meter: "Meter") -> Tensor:
        """One optimiser step from a number of images on; returns the gradient's norm before clipping."""
        for micro, (x_0, y, rng) in enumerate(batches.parts(images)):
            with fabric.no_backward_sync(module, enabled=micro < self.accumulate - 1):
                per_example, terms = module(x_0, y, rng)
                fabric.backward(per_example.mean() / self.accumulate)
            meter.add({"loss": per_example.detach(), **terms})
        norm = fabric.clip_gradients(module, optimizer, max_norm=self.max_grad_norm, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        return norm


class Batches:
    """This device's share of every batch, in micro-batches, and the randomness that belongs to it."""

    def __init__(self, split: Split, seed: int, fabric, batch_size: int, share: int):
        self.data = Split(*(tensor.to(fabric.device) for tensor in split))
        self.order, self.rng = DataOrder(len(split.y), seed), torch.Generator(fabric.device)
        self.seed, self.rank, self.batch_size, self.share = seed, fabric.global_rank, batch_size, share
        self.local = batch_size // fabric.world_size

    def parts(self, images: int) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
        """The micro-batches of the step that begins after `images` images; also seeds the layers' own generators."""
        step = images // self.batch_size
        self.rng.manual_seed(fold(self.seed, NOISE, self.rank, step))
        mine = self.order.indices(images, self.batch_size)[self.rank * self.local :][: self.local]
        for micro, part in enumerate(mine.to(self.data.y.device).split(self.share)):
            torch.manual_seed(fold(self.seed, LAYERS, self.rank, step, micro))
            yield self.data.x[part], self.data.y[part], self.rng


class Meter:
    """Means of named per-example figures, and the time they took, since the last reset."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count, self.since = 0, time.monotonic()

    def add(self, figures: dict[str, Tensor]) -> None:
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.sum()  # on the device: reading would wait for it
        self.count += len(value)

    def read(self) -> tuple[dict[str, float], float]:
        """The means, and the seconds."""
        return {name: float(value) / self.count for name, value in self.sums.items()}, time.monotonic() - self.since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count as time."""
        started = time.monotonic()
        yield
        self.since += time.monotonic() - started


@torch.no_grad()
def held_out_loss(objective: Objective, split: Split, seed: int, device: torch.device, batch_size: int = 500) -> float:
    """The mean loss over a split, with noise that is the same every time."""
    rng = torch.Generator(device).manual_seed(fold(seed, VALIDATION))
    parts = [
        objective(x.to(device), y.to(device), rng)[0] for x, y in zip(*(field.split(batch_size) for field in split))
    ]
    return float(torch.cat(parts).mean())


def cut_metrics(path: Path, images: int) -> None:
    """Drops the lines of metrics.jsonl that lie after a checkpoint."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = "".join(line for line in lines if json.loads(line)["images"] <= images)
    write_atomically(path, lambda temporary: temporary.write_text(kept, encoding="utf-8"))
