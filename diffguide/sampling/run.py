"""Samples a plan in batches, and writes each batch to disk."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..backbones.conditions import Condition, RowCondition
from ..checkpoints.references import Guide
from ..figures import image_grids as images
from ..figures import trajectories
from ..figures.scatter import ScatterBackground
from ..files.run_folders import WriteError
from ..files.shards import Shards
from ..models.protocols import Denoiser, DenoiserWrapper, Energy, Tally
from ..randomness import Noise
from ..runtime.engine import Fabric, gather_objects, inference_autocast
from ..runtime.progress import Progress
from ..runtime.signals import Interrupts, Stopped
from ..samplers import Sampler, SamplingError
from ..samplers.generate import initial_state
from .sources import SampleSource
from .stored import StoredForm

__all__ = ["SampleWriter", "SamplingPlan", "explain_no_op_guidance"]


def explain_no_op_guidance(guided: Denoiser | Energy, sampler: Sampler, labelled: bool) -> str | None:
    """The reason why guidance has no effect in a run; None if it has an effect, or if there is no guidance.

    Arguments:
        labelled: whether the samples have labels.
    """
    if not isinstance(guided, DenoiserWrapper) or guided.passthrough:
        return None
    times = sampler.times(guided)
    between = sampler.off_grid or hasattr(sampler, "inner")  # restarts have noise levels between those of the grid
    evaluated = torch.linspace(float(times[0]), float(times[-1]), 1000).double() if between else times[:-1]
    if not guided.acts_at(evaluated, True):
        levels = guided.schedule.noise_level(evaluated)
        return (
            f"guidance has no effect: its interval has none of the noise levels {float(levels.max()):.4g} to "
            f"{float(levels.min()):.4g} at which this sampler evaluates the model"
        )
    if not guided.acts_at(evaluated, labelled):
        return "guidance has no effect on samples without a class: remove labels=null"
    return None


class SamplingPlan(NamedTuple):
    """What a run samples.

    Arguments:
        guided: the model of the source under guidance.
        tally: of its evaluations.
        seeds: one per sample.
        labels: one per sample, None = no condition.
        background: of the scatter plot of vectors, None = the samples are images.
        guides: trained models of the guidance.
        prompts: what the labels are the indices of, in place of classes; () = classes.
        conditions: a row per prompt, on the CPU; None = the guidance alone reads the prompts.
    """

    source: SampleSource
    guided: Denoiser | Energy
    tally: Tally
    sampler: Sampler
    seeds: range
    labels: list[int] | None
    background: ScatterBackground | None
    guides: Sequence[Guide] = ()
    prompts: Sequence[str] = ()
    conditions: RowCondition | None = None

    @property
    def shape(self) -> Sequence[int]:
        return self.source.shape

    @property
    def stored(self) -> StoredForm:
        return self.source.stored

    @property
    def class_names(self) -> Sequence[str]:
        return self.prompts or self.source.class_names

    @property
    def classes(self) -> list[int]:
        """The label of each sample, -1 = no condition."""
        return [-1] * len(self.seeds) if self.labels is None else self.labels

    @property
    def times(self) -> Tensor:
        return self.sampler.times(self.guided)


class SampleWriter:
    """Samples batches and writes them to shards. In every round each rank samples one batch; its samples do not depend on
    the rank.

    Arguments:
        engine: launched Fabric; its processes share the folder, and exchange one message per round.
        plan: what to sample.
        shards: of the samples.
        singles: folder for one PNG file per sample, None = no such files.
        filmed: samples of the trajectory, None = no trajectory.
    """

    def __init__(
        self, engine: Fabric, plan: SamplingPlan, shards: Shards, singles: Path | None, filmed: images.GridLayout | None
    ):
        self.engine, self.plan, self.shards, self.singles = engine, plan, shards, singles
        self.times = plan.times
        shown = () if filmed is None else filmed.indices
        axes = None if plan.background is None else plan.background.axes
        schedule = None if plan.sampler.at_data else plan.guided.schedule
        self.film = trajectories.TrajectoryRecorder(shown, self.times, schedule, axes, plan.stored.convert)

    def run(self, missing: Sequence[int], interrupts: Interrupts) -> None:
        """Samples the batches with these first indices.

        Raises:
            Stopped: a rank got a signal; all batches of the round are written.
            WriteError: on every rank, if writing or sampling failed on one of them.
        """
        plan, world, rank = self.plan, self.engine.world_size, self.engine.global_rank
        self.done = self.shards.n - sum(map(self.shards.count, missing))
        self.progress = Progress("sampling", self.shards.n, "images", self.done, silent=not self.engine.is_global_zero)
        for start in range(0, len(missing), world):
            turn = missing[start : start + world]
            failure = None
            try:
                if rank < len(turn):
                    with inference_autocast(self.engine):
                        x, y, noise = self.begin_batch(turn[rank])
                        x = plan.sampler(plan.guided, x, self.times, y, noise, self.on_step)
                    self.write_batch(turn[rank], x.float().cpu())
            except (WriteError, SamplingError) as error:
                failure = str(error)
            signals, failures = zip(*gather_objects(self.engine, (interrupts.number, failure)))
            if any(failures):
                raise WriteError(next(filter(None, failures)))
            self.done += sum(map(self.shards.count, turn))
            if any(signals) and self.done < self.shards.n:
                self.progress.close()
                raise Stopped(max(signals), f"{self.done} of {self.shards.n} samples")
        self.progress.close()

    def begin_batch(self, first: int) -> tuple[Tensor, Condition | None, Noise]:
        """The initial noise of a batch, its condition, and the source of all further noise."""
        plan, count = self.plan, self.shards.count(first)
        self.film.start(first, count)
        self.counts = plan.tally.evaluations, plan.tally.potential_evaluations
        plan.tally.means.clear()
        part = slice(first, first + count)
        labels: Sequence[int] | RowCondition | None = None if plan.labels is None else plan.labels[part]
        if labels is not None and plan.prompts:
            labels = None if plan.conditions is None else plan.conditions[torch.tensor(labels)]
        source, device = plan.source, self.engine.device
        return initial_state(
            plan.guided, plan.sampler, self.times, plan.seeds[part], labels, source.shape, device, source.dtype
        )

    def on_step(self, step: int, x: Tensor) -> None:
        """Records a step for the trajectory, and shows the progress, as if all ranks were at the same step."""
        self.film.on_step(step, x)
        world, steps = self.engine.world_size, len(self.times) - 1
        done = min(self.done + world * len(x) * step // steps, self.shards.n)
        self.progress.advance(max(done - self.progress.count, 0))
        self.progress.show(evaluations=world * self.plan.tally.evaluations)

    def write_batch(self, first: int, x: Tensor) -> None:
        """Writes a batch. The shard is written last, so a batch with a shard is complete."""
        not_finite = int((~x.flatten(1).isfinite().all(1)).sum())
        if not_finite and x.ndim > 2:  # not visible in bytes; for vectors metrics.json counts them
            print(
                f"\n{not_finite} of the {len(x)} samples from {first} on are not finite: ignore their images",
                file=sys.stderr,
            )
        array = self.plan.stored.array(x)
        if self.singles is not None:
            images.write_pngs(self.singles, first, array)
        tally, (network, potential) = self.plan.tally, self.counts
        network, potential = tally.evaluations - network, tally.potential_evaluations - potential
        self.shards.write(first, array, network, self.film.stack_frames(), potential, tally.means)
