"""What a sampling run samples, and how it gets there: in batches, each on the disk when it is done."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoints.references import Guide
from ..figures import image_grids as images
from ..figures import trajectories
from ..figures.scatter import Backdrop
from ..files.run_folders import WriteError
from ..files.shards import Shards
from ..guidance import Unguided
from ..models.evaluation_counters import EnergyCounter, EvaluationCounter
from ..models.protocols import Denoiser, DenoiserWrapper, Energy
from ..runtime.progress import Progress
from ..runtime.signals import Interrupts, Stopped
from ..samplers import Sampler, SamplingError, generate
from .sources import Source

__all__ = ["Plan", "Stream", "idle", "kind"]

FAILED = 1000  # more than any signal's number; the rank that failed is added


def idle(guided: Denoiser | Energy, sampler: Sampler, labelled: bool) -> str | None:
    """Why guidance can change nothing in a run; None where it can, and where it is none.

    Arguments:
        labelled: whether the samples have conditions.
    """
    if not isinstance(guided, DenoiserWrapper) or isinstance(guided, Unguided):
        return None
    times = sampler.times(guided)
    between = sampler.off_grid or hasattr(sampler, "inner")  # restarts walk levels of their own
    asked = torch.linspace(float(times[0]), float(times[-1]), 1000).double() if between else times[:-1]
    if not guided.steers(asked, True):
        levels = guided.schedule.noise_level(asked)
        return (
            f"guidance acts nowhere: its interval holds none of the noise levels {float(levels.max()):.4g} to "
            f"{float(levels.min()):.4g} where this sampler evaluates the model"
        )
    if not guided.steers(asked, labelled):
        return "guidance acts nowhere: it steers samples that have a class, and labels=null gives none"
    return None


class Plan(NamedTuple):
    """What a run samples: a source; guided, counter (inside it), sampler; seeds, labels (None = no condition).

    behind: what vectors are drawn over, None = the samples are images.
    guides: trained models that the guidance has beside the source.
    """

    source: Source
    guided: Denoiser | Energy
    counter: EvaluationCounter | EnergyCounter
    sampler: Sampler
    seeds: range
    labels: list[int] | None
    behind: Backdrop | None
    guides: Sequence[Guide] = ()

    @property
    def shape(self) -> Sequence[int]:
        return self.source.shape

    @property
    def class_names(self) -> Sequence[str]:
        return self.source.class_names

    @property
    def classes(self) -> list[int]:
        """The label of each sample, -1 = no condition."""
        return [-1] * len(self.seeds) if self.labels is None else self.labels

    @property
    def times(self) -> Tensor:
        return self.sampler.times(self.guided)


class Stream:
    """Samples batches into shards, this rank's part of every round; batch i is the same whoever samples it.

    Arguments:
        engine: launched Fabric; its processes share the folder, and need no network between them but for a word a round.
        plan: what to sample.
        shards: where to.
        singles: folder for one PNG per sample, None = none.
        filmed: what a trajectory shows, None = there is none.
    """

    def __init__(self, engine, plan: Plan, shards: Shards, singles: Path | None, filmed: images.Layout | None):
        self.engine, self.plan, self.shards, self.singles = engine, plan, shards, singles
        shown = () if filmed is None else filmed.indices
        axes = None if plan.behind is None else plan.behind.axes
        schedule = None if plan.sampler.at_data else plan.guided.schedule
        self.film = trajectories.Film(shown, plan.times, schedule, axes)

    def run(self, missing: Sequence[int], interrupts: Interrupts) -> None:
        """Samples the batches with these first indices.

        Raises:
            Stopped: some rank got a signal; every batch that was begun is written.
            WriteError: some rank could not write, or its sampler could not go on; on every rank.
        """
        world, rank, steps = self.engine.world_size, self.engine.global_rank, len(self.plan.times) - 1
        total = self.shards.n
        done = total - sum(map(self.shards.count, missing))
        progress = Progress("sampling", total, "images", done, silent=not self.engine.is_global_zero)

        def on_step(step: int, x: Tensor) -> None:
            self.film.on_step(step, x)
            made = min(
                done + world * len(x) * step // steps, total
            )  # the others do as much; so many steps are so many images
            progress.advance(max(made - progress.count, 0))
            progress.show(evaluations=world * self.plan.counter.evaluations)

        for start in range(0, len(missing), world):
            turn, failure = missing[start : start + world], None
            try:
                if rank < len(turn):
                    self.draw(turn[rank], on_step)
            except (WriteError, SamplingError) as error:
                failure = str(error)
            number = self.agreed(failure, interrupts)
            done += sum(map(self.shards.count, turn))
            if number and done < total:
                progress.close()
                raise Stopped(number, f"{done} of {total} samples")
        progress.close()

    def draw(self, first: int, on_step: Callable[[int, Tensor], None]) -> None:
        """Samples one batch and writes it, the shard last: where it is, everything of the batch is."""
        plan, counter = self.plan, self.plan.counter
        before, asked_before = counter.evaluations, counter.potential_evaluations
        part = slice(first, first + self.shards.count(first))
        self.film.start(first, self.shards.count(first))
        labels = None if plan.labels is None else plan.labels[part]
        with self.engine.autocast():
            (x,) = generate(
                plan.guided, plan.sampler, plan.seeds[part], labels, plan.shape, self.shards.batch_size,
                self.engine.device, on_step, plan.source.dtype,
            )  # fmt: skip
        x = x.float().cpu()
        lost = int((~x.flatten(1).isfinite().all(1)).sum())
        if lost and x.ndim > 2:  # bytes do not show it; vectors do, and metrics.json counts them
            print(
                f"\n{lost} of the {len(x)} samples from {first} on are not finite: their pictures mean nothing",
                file=sys.stderr,
            )
        array = x.numpy() if x.ndim == 2 else images.to_uint8(x)
        if self.singles is not None:
            images.save_singles(self.singles, first, array)
        asked = counter.potential_evaluations - asked_before
        self.shards.write(first, array, counter.evaluations - before, self.film.taken(), asked)

    def agreed(self, failure: str | None, interrupts: Interrupts) -> int:
        """The signal that some rank has got, 0 for none; all ranks wait for each other, and learn of one's failure.

        Raises:
            WriteError: one could not write or go on.
        """
        number = FAILED + self.engine.global_rank if failure else interrupts.number
        if self.engine.world_size > 1:
            word = torch.tensor(float(number), device=self.engine.device)
            number = int(self.engine.all_reduce(word, reduce_op="max"))
        if number >= FAILED:
            raise WriteError(self.engine.broadcast(failure, src=number - FAILED))
        return number


def kind(shape: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """How a sample is stored, dtype and shape: an image [C, H, W] as bytes [H, W, C], a vector [D] as it is."""
    return ("float32", tuple(shape)) if len(shape) == 1 else ("uint8", (*shape[1:], shape[0]))
