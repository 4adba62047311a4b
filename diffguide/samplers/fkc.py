"""Feynman-Kac correctors: particles with weights, so that samples have the law that guidance names."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, Energy, Prediction, WeightedPrediction, take_rows
from ..randomness import Noise
from ..runtime.ranges import check_range, check_whole
from ..schedules import Schedule
from .base import LawSampler, Memory, Sampler, check_decreasing
from .dpmpp_sde import DPMpp2MSDE
from .noise import SharedIncrement, StepNoise
from .particles import ConstantNoise, Given, Particles, gather_rows, level_widths, to_uniform

__all__ = ["FKC"]

MAX_PARTICLES = 4096
MAX_CHANGE = 2.0  # nats above the median of a group in one step of a spread
RESAMPLE_DRAW, CHOICE_DRAW = 2**37, 2**37 + 1  # beyond the draws of samplers, their visits and potentials


class FKC(LawSampler):
    """K particles per sample by another sampler of the SDE, weighted and resampled towards the law that guidance names.

        d log W = (1/2) (|sum_i w_i eps_i|^2 - sum_i w_i |eps_i|^2) d log-SNR    for the law prod_i p_i^w_i

    which for guidance of scale w is w (w - 1) / 2 |eps_y - eps|^2: g^2 / 2 w (w - 1) |score_y - score|^2 dt. Skreta et al.,
    "Feynman-Kac Correctors in Diffusion", 2025, arXiv 2503.02819. A log-potential r(x_t) adds

        r(x_s) - r(x_t) + log N(x_s; m, v) - log N(x_s; m', v)

    per step, with the means m of the sampler's step without and m' with its gradient (twisted sequential Monte Carlo: Wu et
    al. 2023, arXiv 2306.17775; Singhal et al. 2025, arXiv 2501.06848). The weights are exact for exact models as steps shrink.
    Without potentials the law is of second order in the steps, by the trapezoidal rule over the log-SNR and an inner sampler of
    second order; with them it is of first order, since the sampler's earlier values are those of guided steps.

    A spread changes a log-weight by at most 2 nats more than the median of its group in one step, which matters for steps
    that are long beside the details of the law.

    Groups are resampled on their own, and one particle of each is chosen by its weight at the end, so that a sample depends
    on its own seed alone. The law is reached as particles grow, with an error of order 1 / K.

    Arguments:
        inner: the sampler of the SDE, with its steps and grid; None = `DPMpp2MSDE(100, eta=4.0)`. The weights are the same for
            any amount of noise, and more noise lets particles forget where they came from, so that fewer are needed.
        particles: K, 1 to 4096; network evaluations and memory are K times those of `inner`. 1 is `inner` itself.
        threshold: share of K below which the effective sample size of a group triggers resampling, in [0, 1]; 0 = never.

    Raises:
        ValueError: a sampler whose step is no Gaussian kernel; from `times`, guidance without a law.
    """

    def __init__(self, inner: Sampler | None = None, particles: int = 16, threshold: float = 0.5):
        inner = DPMpp2MSDE(100, eta=4.0) if inner is None else inner
        super().__init__(inner)
        if not (inner.gaussian_steps and inner.stochastic):
            raise ValueError(
                f"inner must be a sampler of the SDE with one evaluation a step, got {type(inner).__name__}: take ddpm, ddim "
                "with eta > 0, euler_ancestral, euler_maruyama, dpmpp_2m_sde or dpmpp_3m_sde"
            )
        self.particles = check_whole("particles", particles, 1, MAX_PARTICLES)
        self.threshold = check_range("threshold", threshold, "[0, 1]")

    def check(self, denoiser: Denoiser | Energy) -> None:
        super().check(denoiser)
        self.inner.check(denoiser)
        assert isinstance(denoiser, Denoiser)
        reason = denoiser.explain_no_law()
        if reason is not None:
            raise ValueError(f"sampler=fkc needs guidance with a law at every noise level: {reason}")

    def times(self, denoiser: Denoiser | Energy) -> Tensor:
        self.check(denoiser)
        return self.inner.times(denoiser)

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser | Energy,
        x: Tensor,
        times: Tensor,
        y: Condition | None = None,
        noise: StepNoise | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """As of `Sampler`; x is the start of the first particle of each sample, the others draw theirs.

        `on_step` gets the first particle of each sample.
        """
        x, weights = self.sample_particles(denoiser, x, times, y, noise, on_step)
        assert isinstance(noise, Noise)
        return x[weights.choose(to_uniform(noise.of((1,)).normal(times[-1], CHOICE_DRAW))[:, 0])]

    @torch.no_grad()
    def sample_particles(
        self,
        denoiser: Denoiser | Energy,
        x: Tensor,
        times: Tensor,
        y: Condition | None,
        noise: StepNoise | None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> tuple[Tensor, Particles]:
        """All particles at the end of the grid, [B K, ...] with those of a sample together, and their weights."""
        check_decreasing(times)
        if not isinstance(noise, Noise) or not isinstance(denoiser, Denoiser):
            raise ValueError(
                "FKC runs on its own, with noise=Noise(seeds, shape, schedule), not inside another sampler"
            )
        self.check(denoiser)
        single, cloud = noise.of((1,)), noise.split(self.particles)
        group = torch.arange(len(x), device=x.device).repeat_interleave(self.particles)
        first = slice(None, None, self.particles)
        start, x = x, self.begin(denoiser, times, cloud).to(x)
        x[first] = start
        y = None if y is None else y[group]
        run = denoiser.start(cloud, times)
        weights = Particles(len(start), self.particles, self.threshold, x.device)
        widths = level_widths(run.schedule.log_snr(times))
        before: Tensor | float = 0.0  # the potentials at the level above
        histories: tuple[Memory, Memory] = {}, {}  # of the inner sampler, with and without potentials
        for index, (t, s) in enumerate(zip(times[:-1], times[1:])):
            found = run.predict_weighted(x, t, y)
            weights.add(limit_change(-widths[index] / 2 * found.spread, self.particles))
            if found.value is not None:
                weights.add(found.value - before)
                before = found.value
            ancestors = weights.resample(to_uniform(single.normal(t, RESAMPLE_DRAW))[:, 0])
            if ancestors is not None:
                x, found, histories = x[ancestors], take_weighted(found, ancestors), gather_rows(histories, ancestors)
                before = before[ancestors] if isinstance(before, Tensor) else before
            x, change = self.advance(run.schedule, x, t, s, found, cloud, histories)
            if change is not None:
                weights.add(change)
            if on_step is not None:
                on_step(index + 1, x[first])
        final = run.end_value(x, y)
        if final is not None:
            weights.add(final - before)
        return x, weights

    def advance(
        self,
        schedule: Schedule,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        found: WeightedPrediction,
        noise: StepNoise,
        histories: tuple[Memory, Memory],
    ) -> tuple[Tensor, Tensor | None]:
        """x at s, and log N(x_s; m, v) - log N(x_s; m', v) per row where potentials move the mean; else None."""
        noise = SharedIncrement(noise)

        def step(prediction: Prediction, noise: StepNoise, history: Memory) -> Tensor:
            return self.inner(Given(prediction, schedule), x, torch.stack([t, s]), None, noise, memory=history)

        guided, plain = histories
        if found.value is None:
            moved = step(found.guided, noise, guided)
            plain.clear()
            plain.update(guided)
            return moved, None
        mean = step(found.guided, ConstantNoise(0.0, x), dict(guided))
        deviation = step(found.guided, ConstantNoise(1.0, x), dict(guided)) - mean
        unguided = step(found.plain, ConstantNoise(0.0, x), plain)
        if not bool((deviation > 0).any()):  # exact data: both means would have no density
            return unguided, None
        moved = step(found.guided, noise, guided)
        z, shift = (moved - mean) / deviation, (mean - unguided) / deviation
        return moved, -(shift * (z + shift / 2)).double().flatten(1).sum(1)


def take_weighted(found: WeightedPrediction, rows: Tensor) -> WeightedPrediction:
    """Some rows of a prediction with its weights."""
    value = None if found.value is None else found.value[rows]
    return WeightedPrediction(take_rows(found.guided, rows), take_rows(found.plain, rows), found.spread[rows], value)


def limit_change(change: Tensor, particles: int) -> Tensor:
    """Changes [B K] of log-weights, at most MAX_CHANGE above the median of their group.

    A step that throws a particle far from the law would give it all the weight: there the score pulls back faster than the
    step is short. Small steps are not limited, so no law changes as they shrink.
    """
    groups = change.reshape(-1, particles)
    return torch.minimum(groups, groups.median(1, keepdim=True).values + MAX_CHANGE).flatten()
