"""The state of a training run: weights and their average, optimiser, position in the data, sums for the log.

All random numbers are functions of the position in the data (`batches`), so a resumed run needs no generator state. A step
writes, in this order: a line of metrics, the held-out loss, a sample grid, and the checkpoint. So everything before a
checkpoint is on disk; everything after the newest checkpoint is repeated on resume.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..checkpoints import data_record as provenance
from ..checkpoints import store as checkpoints
from ..conditions.examples import ConditionedData
from ..datasets import Dataset
from ..files.metrics_log import Meter, MetricsLog
from ..files.run_folders import append_text, convert_write_errors
from ..first_stages.latent_data import LatentData
from ..objectives import Diverged, Loss, Objective
from ..randomness import fold
from ..runtime.compiling import compile_average
from ..runtime.engine import Fabric, gather_objects
from ..runtime.progress import Progress
from ..runtime.put_off import use_optimizer
from ..runtime.signals import Interrupts, Stopped
from .batches import Batches
from .divergence import DivergenceWatch
from .held_out import held_out_loss
from .learning_rates import resume_plan

if TYPE_CHECKING:
    from .loop import Training

__all__ = ["TrainingRun"]

ROLLBACK_PURPOSE = 4  # purpose of a folded seed, besides those of `batches` and `held_out`
UNCHECKED_STEPS = 50  # of an accelerator, if nothing is written before
SIGNAL_STEPS = 8  # with several processes, steps between two exchanges of signals


@dataclass(eq=False)
class TrainingRun:
    """The state of `Training.run`, from the start or from a checkpoint.

    Arguments:
        training: the settings.
        examples: the data with their conditions.
        rollbacks: number of rollbacks so far.

    The others are those of `Training.run`.

    Attributes:
        images: images seen.
        module: the objective as Fabric wraps it.
        averaged: the objective with averaged weights.
        batches: endless iterator over micro-batches.
    """

    training: "Training"
    objective: Objective
    examples: ConditionedData
    folder: Path | None
    seed: int
    engine: Fabric
    config: Mapping[str, Any] | None
    draw: Callable[[Objective, Path], None] | None
    resume: Path | None
    note: Mapping[str, Any] | None
    rollbacks: int = 0

    def __post_init__(self) -> None:
        training, objective, engine = self.training, self.objective, self.engine
        self.main = engine.is_global_zero
        self.module, self.optimizer = engine.setup(objective, training.make_optimizer(objective))
        with use_optimizer(self.optimizer):
            self.optimizer.zero_grad()  # a step that diverged leaves its gradient
        self.ema = AveragedModel(objective).eval().requires_grad_(False)
        averaged = self.ema.module
        assert isinstance(averaged, Objective)
        self.averaged = averaged
        compile_average(objective.model, averaged.model)
        self.meter, self.losses = Meter(), list[Loss]()
        self.images = 0
        self.plan = training.plan()
        self.data_record = provenance.record(self.data)
        notice = "" if self.resume is None else self.restore(self.resume)
        self.open_files()
        self.source = self.open_batches()
        self.batches = iter(self.source)
        if notice:
            self.progress.write_line(notice)
        if self.data.held_out_split[0] != "validation":
            self.progress.write_line("the validation split is empty: held-out losses are on training examples")
        self.watch = DivergenceWatch(0 if engine.device.type == "cpu" else UNCHECKED_STEPS)
        self.started = time.monotonic()
        if self.resume is None and objective.max_restores:
            self.save(None)  # for a rollback before the first interval

    @property
    def data(self) -> Dataset:
        return self.examples.data

    def restore(self, checkpoint: Path) -> str:
        """Loads a checkpoint; adds a changed length to the note, and returns a line about it."""
        training, engine = self.training, self.engine
        state = checkpoints.load_training_state(checkpoint, self.objective, self.averaged, self.optimizer)
        self.images, self.rollbacks = state.facts["images"], self.rollbacks or state.facts.get("restores", 0)
        self.plan, changes, notice = resume_plan(self.plan, state.facts, training.extend, training.extend_rate)
        self.ema.n_averaged.fill_(self.images // training.batch_size)
        self.meter.restore(state.sums, engine)
        engine.strategy.precision.load_state_dict(state.precision)
        if changes:
            self.note = {"images": self.images, **(self.note or {}), **changes}
        return notice

    def open_files(self) -> None:
        """Opens metrics.jsonl and log.txt, and writes data.json; none of them without a folder."""
        folder, training = self.folder, self.training
        log = None if folder is None else partial(append_text, folder / "log.txt")
        self.progress = Progress("training", training.images, "images", self.images, silent=not self.main, log=log)
        path = Path() if folder is None else folder / "metrics.jsonl"
        self.metrics = MetricsLog(path, silent=not self.main or folder is None)
        if folder is not None and self.main:
            for part in ("checkpoints", "samples"):
                with convert_write_errors(folder / part):
                    (folder / part).mkdir(parents=True, exist_ok=True)
            provenance.write(folder / provenance.FILE, self.data)
        self.metrics.truncate(self.images, dict(self.note) if self.note else None, self.rollbacks)

    def open_batches(self) -> Batches:
        """The batches from the current position on; after a rollback with another order and other noise."""
        training, engine = self.training, self.engine
        seed = fold(self.seed, ROLLBACK_PURPOSE, self.rollbacks) if self.rollbacks else self.seed
        share = training.share(engine.world_size)
        return Batches(self.examples.train, seed, engine, training.batch_size, share, self.images)

    def add(self, loss: Loss) -> None:
        """Adds the loss of a micro-batch."""
        self.losses.append(Loss(loss.per_example.detach(), loss.terms, loss.log_snr))
        self.meter.add({"loss": self.losses[-1].per_example, **loss.terms})

    def update(self) -> None:
        """Takes one optimiser step with the accumulated gradient, and updates the average of the weights."""
        training, engine = self.training, self.engine
        norm = engine.clip_gradients(
            self.module, self.optimizer, max_norm=training.max_grad_norm, error_if_nonfinite=False
        )
        assert norm is not None  # with max_norm it is a tensor
        self.norm = norm
        scaled = bool(engine.strategy.precision.state_dict())  # a gradient scaler skips steps that are not finite
        step = self.images // training.batch_size
        self.watch.check(self.images, step, self.losses, None if scaled else self.norm)
        self.losses = []
        self.rate = self.plan.rate_at(self.images)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        with use_optimizer(self.optimizer):
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.objective.finish_step(self.gather)
        self.images += training.batch_size
        self.ema.multi_avg_fn = get_ema_multi_avg_fn(training.ema_decay_at(self.images))
        self.ema.update_parameters(self.objective)
        self.progress.advance(training.batch_size)

    def gather(self, tensor: Tensor) -> Tensor:
        """Stacks the tensors of all ranks; a single rank's tensor is returned unchanged."""
        gathered = self.engine.all_gather(tensor)
        assert isinstance(gathered, Tensor)
        return gathered

    def is_due(self, every: int) -> bool:
        """Whether the last step passed a multiple of `every` images, or was the last step."""
        before = self.images - self.training.batch_size
        return self.images // every > before // every or self.images >= self.training.images

    def write(self, interrupts: Interrupts) -> None:
        """Writes everything that is due after a step.

        Raises:
            Diverged: a held-out loss or weights that are not finite.
            Stopped: a signal arrived, and a checkpoint was written.
        """
        training = self.training
        lengths = training.log_images, training.validation_images, training.checkpoint_images, training.sample_images
        if any(map(self.is_due, lengths)):
            self.watch.flush()
        if self.is_due(training.log_images):
            self.write_metrics()
        with self.meter.pause():  # excluded from the images per second of training
            loss = None
            if self.main and (self.is_due(training.validation_images) or self.is_due(training.checkpoint_images)):
                loss = self.validate()
            if self.is_due(training.sample_images) and self.main and self.draw and self.folder:
                self.draw(self.averaged, self.folder / "samples" / f"{self.images:010d}.png")
            stop = self.agree_on_signal(interrupts)
            if self.is_due(training.checkpoint_images) or stop:
                self.watch.flush()
                if not all(value.isfinite().all() for value in self.objective.state_dict().values()):
                    raise Diverged(f"the weights are not finite after {self.images} images")
                self.save(loss)
        if stop and self.images < training.images:
            self.close()
            raise Stopped(stop, f"{self.images} of {training.images} images")

    def write_metrics(self) -> None:
        """Writes the means since the last line."""
        means, timing = self.meter.read(self.engine, self.source)
        figures = {"learning_rate": self.rate, "grad_norm": float(self.norm)}
        timing["seconds"] = time.monotonic() - self.started
        self.metrics.write({"images": self.images, **means, **figures, **timing})
        self.progress.show(loss=means["loss"])
        self.meter.reset()

    def validate(self) -> float:
        """Measures and writes the held-out loss of the averaged weights; Diverged if it is not finite."""
        batch_size = min(self.training.batch_size, 500)
        losses = held_out_loss(self.averaged, self.examples.held_out, self.seed, self.engine.device, batch_size)
        loss = float(losses.per_example.mean())
        self.metrics.write({"images": self.images, "validation_loss": loss, **self.objective.figures(losses)})
        self.progress.write_line(f"{self.images} images: held-out loss {loss:.4f}")
        if not math.isfinite(loss):
            raise Diverged(f"the held-out loss is {loss} after {self.images} images")
        return loss

    def agree_on_signal(self, interrupts: Interrupts) -> int:
        """The signal of any process, 0 for none; several processes exchange signals every `SIGNAL_STEPS` steps."""
        step = self.images // self.training.batch_size
        if self.engine.world_size > 1 and step % SIGNAL_STEPS:
            return 0
        return max(gather_objects(self.engine, interrupts.number))

    def save(self, loss: float | None) -> None:
        """Writes a checkpoint on the first rank, if there are a folder and a configuration."""
        totals = self.meter.totals(self.engine)
        if not self.main or self.folder is None or self.config is None:
            return
        self.metrics.flush()
        facts: dict[str, Any] = {
            "images": self.images,
            "validation_loss": loss,
            "class_names": list(self.data.class_names) if self.objective.model.num_classes else [],
            "shape": list(self.data.shape),
            "data": self.data_record,
        }
        if isinstance(self.data, LatentData):
            facts["first_stage"] = self.data.space.facts()
        if self.rollbacks:
            facts["restores"] = self.rollbacks
        if self.plan.extension:
            facts["extension"] = self.plan.extension._asdict()
        state = checkpoints.TrainingState(facts, totals, self.engine.strategy.precision.state_dict())
        folder = self.folder / "checkpoints"
        checkpoints.save(folder, self.objective, self.averaged, self.optimizer, dict(self.config), state)
        checkpoints.prune(folder, self.training.keep_checkpoints)

    def roll_back(self, error: Diverged) -> "TrainingRun":
        """Returns the run from its last checkpoint, with another seed.

        Raises:
            Diverged: there is no checkpoint, or the objective does not allow another rollback.
        """
        files = [] if self.folder is None else checkpoints.list_checkpoints(self.folder / "checkpoints")
        allowed = self.objective.max_restores
        if self.rollbacks >= allowed or not files:
            after = f", after {self.rollbacks} restores" if self.rollbacks else ""
            raise Diverged(f"{error}{after}") from error
        rollbacks, images = self.rollbacks + 1, int(files[-1].stem)
        self.progress.write_line(f"{error}: back to {images} images, restore {rollbacks} of at most {allowed}")
        self.progress.close()
        note = {"images": images, "restores": rollbacks}
        return dataclasses.replace(self, resume=files[-1], note=note, rollbacks=rollbacks)

    def close(self) -> None:
        self.progress.close()
        self.engine.barrier()
