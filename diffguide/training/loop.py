"""The training loop. Progress is counted in images, so that the batch size does not change what a configuration means.

Everything random is a function of a position (`batches`), so that a resumed run needs no generator state. What a step
leaves behind, in this order, is a line of metrics, the held-out loss, a sample grid, and last the checkpoint: what a
checkpoint stands for is complete, and what came after the newest one is done again.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..checkpoints import data_record as provenance
from ..checkpoints import store as checkpoints
from ..checkpoints.extension import EXTEND
from ..datasets import Dataset
from ..files.metrics_log import Journal, Meter
from ..files.run_folders import append_text
from ..objectives import Diverged, Loss, Objective
from ..randomness import fold
from ..runtime.progress import Progress
from ..runtime.signals import Interrupts, Stopped
from .batches import Batches
from .divergence import Watch
from .held_out import held_out_loss
from .learning_rates import Plan, resumed

__all__ = ["Diverged", "Training"]

RESTORED = 4  # purpose of a folded seed, beside those of `batches` and `held_out`
AGREE = 8  # steps between the moments at which several processes ask each other for signals


class Training:
    """How to train: amounts in images unless said otherwise.

    Arguments:
        images: training images in total.
        batch_size: images per optimiser step, over all devices.
        learning_rate: peak learning rate, after warm-up.
        warmup_images: linear rise of the learning rate at the start; a cosine fall to 0 follows, until `images`.
        extend: what the learning rate does when a run is resumed with another number of images (`learning_rates`):
            decay_again, constant or as_if_planned.
        extend_rate: where the first two begin, in units of `learning_rate`, or where the run was, if that is higher.
        accumulate: parts into which each device's share of the batch is cut, for memory.
        max_grad_norm: the gradient's norm is clipped to this.
        ema_images: half-life of the weights' moving average; early on a tenth of the images seen, if that is shorter.
        log_images, validation_images, checkpoint_images, sample_images: how often; each also at the end.
        keep: newest checkpoints that stay, beside the one with the lowest held-out loss.
        optimizer: callable (parameters, lr=...) -> torch optimiser.

    Raises:
        ValueError: an amount that is not positive, or a batch that cannot be divided.
    """

    def __init__(
        self, images: int, batch_size: int, learning_rate: float, warmup_images: int, accumulate: int,
        max_grad_norm: float, ema_images: int, log_images: int, validation_images: int, checkpoint_images: int,
        sample_images: int, keep: int, optimizer: Callable[..., torch.optim.Optimizer],
        extend: str = "decay_again", extend_rate: float = 0.5,
    ):  # fmt: skip
        amounts = dict(
            images=images, batch_size=batch_size, accumulate=accumulate, ema_images=ema_images, log_images=log_images,
            validation_images=validation_images, checkpoint_images=checkpoint_images, sample_images=sample_images,
            keep=keep,
        )  # fmt: skip
        for name, value in amounts.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name, value in {"learning_rate": learning_rate, "max_grad_norm": max_grad_norm}.items():
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if not isinstance(warmup_images, int) or warmup_images < 0:
            raise ValueError(f"warmup_images must be a whole number of at least 0, got {warmup_images!r}")
        if extend not in EXTEND:
            raise ValueError(f"extend must be {', '.join(EXTEND[:-1])} or {EXTEND[-1]}, got {extend!r}")
        if not isinstance(extend_rate, int | float) or not 0 < extend_rate <= 1:
            raise ValueError(f"extend_rate must be a number above 0, of at most 1, got {extend_rate!r}")
        self.images, self.batch_size, self.keep = images, batch_size, keep
        self.learning_rate, self.warmup_images = learning_rate, warmup_images
        self.accumulate, self.max_grad_norm, self.ema_images = accumulate, max_grad_norm, ema_images
        self.log_images, self.validation_images = log_images, validation_images
        self.checkpoint_images, self.sample_images = checkpoint_images, sample_images
        self.optimizer, self.extend, self.extend_rate = optimizer, extend, extend_rate

    def plan(self) -> Plan:
        """The learning rate of a run that was never made longer."""
        return Plan(self.learning_rate, self.warmup_images, self.batch_size, self.images)

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
        self, fabric, objective: Objective, data: Dataset, folder: Path, seed: int, config: dict,
        draw: Callable[[Objective, Path], None], resume: Path | None = None, note: dict | None = None,
    ) -> Objective:  # fmt: skip
        """Trains and returns the averaged objective; writes metrics.jsonl, data.json, checkpoints/ and samples/ into `folder`.

        A run that diverges goes back to its last checkpoint, and on with another seed, as often as its objective says. How
        often it did so is in every checkpoint, and a line {images, restores} in metrics.jsonl.

        Arguments:
            fabric: launched Fabric.
            data: what to train on.
            seed: of everything random.
            config: resolved configuration, for the checkpoints.
            draw: called with (averaged objective, PNG path) on rank 0 to make a sample grid.
            resume: checkpoint to continue from.
            note: line for metrics.jsonl that says what the resumed run changes.

        Raises:
            Diverged: a loss or gradient that is not finite, or what else the objective calls so; the last checkpoint stays.
            Stopped: SIGTERM or SIGINT came, and a checkpoint was written.
            WriteError: a file could not be written.
        """
        restores = 0 if resume is None else checkpoints.read(resume)[1].get("restores", 0)
        while True:
            try:
                return self.attempt(fabric, objective, data, folder, seed, config, draw, resume, note, restores)
            except Diverged as error:
                files = checkpoints.list_checkpoints(folder / "checkpoints")
                if restores >= objective.max_restores or not files:
                    after = f", after {restores} restores" if restores else ""
                    raise Diverged(f"{error}{after}") from error
                restores, resume = restores + 1, files[-1]
                images = int(resume.stem)
                note = {"images": images, "restores": restores}
                line = f"{error}: back to {images} images, restore {restores} of at most {objective.max_restores}"
                Progress("training", self.images, "images", log=partial(append_text, folder / "log.txt")).say(line)

    def attempt(
        self, fabric, objective: Objective, data: Dataset, folder: Path, seed: int, config: dict,
        draw: Callable[[Objective, Path], None], resume: Path | None, note: dict | None, restores: int,
    ) -> Objective:  # fmt: skip
        """`run` from a checkpoint on, until it ends or diverges.

        Arguments:
            restores: how often the run has gone back before.
        """
        module, optimizer = fabric.setup(objective, self.make_optimizer(objective))
        optimizer.zero_grad()  # a step that diverged leaves its gradient
        ema = AveragedModel(objective).eval().requires_grad_(False)
        main, images, meter, plan, change = fabric.is_global_zero, 0, Meter(), self.plan(), ""
        journal = Journal(folder / "metrics.jsonl", silent=not main)
        if resume is not None:
            state = checkpoints.load_training_state(resume, objective, ema.module, optimizer)
            images = state.facts["images"]
            plan, changed, change = resumed(plan, state.facts, self.extend, self.extend_rate)
            note = {"images": images, **(note or {}), **changed} if changed else note
            ema.n_averaged.fill_(images // self.batch_size)
            meter.restore(state.sums, fabric)
            fabric.strategy.precision.load_state_dict(state.precision)
        journal.cut(images, note, restores)
        if main:
            provenance.write(folder / provenance.FILE, data)
        drawn = fold(seed, RESTORED, restores) if restores else seed
        batches = Batches(data, drawn, fabric, self.batch_size, self.share(fabric.world_size), images)
        parts, watch = iter(batches), Watch(0 if fabric.device.type == "cpu" else 1)
        progress = Progress(
            "training", self.images, "images", images, silent=not main, log=partial(append_text, folder / "log.txt")
        )
        if change:
            progress.say(change)
        started, record = time.monotonic(), provenance.record(data)
        if data.held_out[0] != "validation":
            progress.say("no example validates: held-out losses are of training examples")

        def save(totals: dict[str, Tensor], loss: float | None) -> None:
            if not main:
                return
            journal.flush()
            names = list(data.class_names) if objective.model.num_classes else []
            facts = {"images": images, "validation_loss": loss, "class_names": names, "shape": list(data.shape)}
            facts |= {"data": record} | ({"restores": restores} if restores else {})
            facts |= {"extension": plan.extension._asdict()} if plan.extension else {}
            training = checkpoints.TrainingState(facts, totals, fabric.strategy.precision.state_dict())
            checkpoints.save(folder / "checkpoints", objective, ema.module, optimizer, config, training)
            checkpoints.prune(folder / "checkpoints", self.keep)

        if resume is None and objective.max_restores:
            save(meter.totals(fabric), None)  # where to go back to before the first
        with Interrupts(silent=not main) as interrupts:
            while images < self.images:
                for group in optimizer.param_groups:
                    group["lr"] = plan.at(images)
                norm = self.step(fabric, module, optimizer, parts, images, meter, watch)
                before, images = images, images + self.batch_size
                ema.multi_avg_fn = get_ema_multi_avg_fn(self.ema_decay_at(images))
                ema.update_parameters(objective)
                progress.advance(self.batch_size)

                def due(every: int) -> bool:
                    return images // every > before // every or images >= self.images

                if due(self.log_images):
                    means, timing = meter.read(fabric, batches)
                    figures = {"learning_rate": plan.at(before), "grad_norm": float(norm)}
                    timing["seconds"] = time.monotonic() - started
                    journal.write({"images": images, **means, **figures, **timing})
                    progress.show(loss=means["loss"])
                    meter.reset()
                with meter.paused():  # the rate is that of training
                    loss = None
                    if (due(self.validation_images) or due(self.checkpoint_images)) and main:
                        held = held_out_loss(ema.module, data, seed, fabric.device, min(self.batch_size, 500))
                        loss = float(held.per_example.mean())
                        journal.write({"images": images, "validation_loss": loss, **objective.figures(held)})
                        progress.say(f"{images} images: held-out loss {loss:.4f}")
                        if not math.isfinite(loss):
                            raise Diverged(f"the held-out loss is {loss} after {images} images")
                    if due(self.sample_images) and main:
                        draw(ema.module, folder / "samples" / f"{images:010d}.png")
                    stop = agreed(fabric, interrupts, images // self.batch_size)
                    if due(self.checkpoint_images) or stop:
                        watch.flush()
                        if not all(value.isfinite().all() for value in objective.state_dict().values()):
                            raise Diverged(f"the weights are not finite after {images} images")
                        save(meter.totals(fabric), loss)
                if stop and images < self.images:
                    progress.close()
                    fabric.barrier()
                    raise Stopped(stop, f"{images} of {self.images} images")
        progress.close()
        fabric.barrier()
        return ema.module

    def step(self, fabric, module, optimizer, parts, images: int, meter: Meter, watch: Watch) -> Tensor:
        """One optimiser step from a number of images on; returns the gradient's norm before clipping."""
        losses = []
        for micro, (x_0, y, rng) in zip(range(self.accumulate), parts):
            with fabric.no_backward_sync(module, enabled=micro < self.accumulate - 1):
                loss = module(x_0, y, rng)
                fabric.backward(loss.per_example.mean() / self.accumulate)
            losses.append(Loss(loss.per_example.detach(), loss.terms, loss.log_snr))
            meter.add({"loss": losses[-1].per_example, **loss.terms})
        norm = fabric.clip_gradients(module, optimizer, max_norm=self.max_grad_norm, error_if_nonfinite=False)
        scaled = bool(fabric.strategy.precision.state_dict())  # a gradient scaler meets infinities, and skips the step
        watch.look(images, images // self.batch_size, losses, None if scaled else norm)
        optimizer.step()
        optimizer.zero_grad()
        module.module.finish_step(fabric.all_gather)
        return norm


def agreed(fabric, interrupts: Interrupts, step: int) -> int:
    """The signal that any process has got, 0 for none; several processes ask each other every few steps."""
    if fabric.world_size == 1:
        return interrupts.number
    if step % AGREE:
        return 0
    return int(fabric.all_reduce(torch.tensor(float(interrupts.number), device=fabric.device), reduce_op="max"))
