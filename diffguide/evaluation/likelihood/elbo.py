"""The variational bound of any denoiser on log p(x), in three parts.

Kingma, Salimans, Poole, Ho, "Variational Diffusion Models", 2021, arXiv 2107.00630, eq. 11 to 18:

    -log p(x) <= KL(q(x_1 | x) || N(0, sigma_1^2 I)) - E log p(x | z_0) + 1/2 int E||eps - eps_hat(x_t)||^2 d log_snr
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.decoders import Decoder
from ...models.protocols import Denoiser
from ...randomness import Noise
from ...runtime.ranges import check_whole
from ...schedules import Schedule
from ..noise_levels import time_of_log_snr
from .control_variate import GaussianFit

__all__ = ["Bound", "Control", "Piece", "elbo", "fit_control", "pieces", "reconstruction", "start_log_snr"]


class Bound(NamedTuple):
    """A bound on -log p(x) in nats, [B] float64 each.

    Fields:
        prior: KL(q(x_1 | x) || N(0, sigma_1^2 I)), exact.
        reconstruction: -E log p(x | z_0).
        diffusion: the weighted error of the denoiser at the noise levels between them.
        noise: standard error of the sum of the three due to the finite number of draws.
        terms: the pieces of the diffusion term, [K, B]; their cumulative sums are the diffusion terms of earlier ends.
    """

    prior: Tensor
    reconstruction: Tensor
    diffusion: Tensor
    noise: Tensor
    terms: Tensor

    @property
    def nats(self) -> Tensor:
        return self.prior + self.reconstruction + self.diffusion


class Piece(NamedTuple):
    """A part of the diffusion term: E weight ||eps - eps_hat||^2, log_snr uniform from low to high, float64, 0-d each.

    With low = high it is one step of a discrete chain. `end` is the log-SNR of the less noisy latent.
    """

    low: Tensor
    high: Tensor
    weight: Tensor
    end: Tensor

    def gaussian_value(self, fit: GaussianFit, x: Tensor) -> Tensor:
        """The value of the piece for the denoiser of the Gaussian, [B]."""
        if self.low == self.high:
            return self.weight * fit.mean_error(x, self.low)
        return self.weight * fit.integral(x, self.low, self.high) / (self.high - self.low)


class Control(NamedTuple):
    """The control variate: `coefficients` [K] times the error of the Gaussian is subtracted from the denoiser's error."""

    fit: GaussianFit
    coefficients: Tensor


def pieces(
    schedule: Schedule, levels: int | None, times: Tensor | None = None, log_snr_max: float | None = None
) -> list[Piece]:
    """The diffusion term as a sum, from noise to data: strata of log-SNR, or steps of a discrete chain.

    Continuous: 1/2 int E||eps - eps_hat||^2 d log_snr (eq. 18). Discrete, for steps t -> s: sum_t 1/2 (SNR_s / SNR_t - 1)
    E||eps - eps_hat(x_t)||^2 (eq. 13 and 14), the bound of the ancestral sampler with those times.

    Arguments:
        levels: number of strata of equal width, for continuous time.
        times: 1 = t_T > ... > t_0, float64, instead of `levels`.
        log_snr_max: of z_0, where the decoder starts, for continuous time; None = that of the schedule.

    Raises:
        ValueError: infinite ends, a log_snr_max outside the schedule, levels below 1.
    """
    ends = schedule.log_snr_min, start_log_snr(schedule, log_snr_max)
    if times is not None:
        log_snr = schedule.log_snr(times).detach().cpu()
        return [Piece(t, t, torch.expm1(s - t) / 2, s) for t, s in zip(log_snr[:-1], log_snr[1:])]
    edges = torch.linspace(*ends, check_whole("levels", levels or 0, 1) + 1, dtype=torch.float64)
    return [Piece(low, high, (high - low) / 2, high) for low, high in zip(edges[:-1], edges[1:])]


def start_log_snr(schedule: Schedule, log_snr_max: float | None) -> float:
    """The log-SNR of z_0; ValueError if it is outside the schedule, or an end of the schedule is infinite."""
    low, high = schedule.log_snr_min, schedule.log_snr_max
    start = high if log_snr_max is None else float(log_snr_max)
    if math.isinf(low) or math.isinf(high) and start == high:
        remedy = (
            "train with a finite schedule.log_snr_min"
            if math.isinf(low)
            else "set log_snr_max of this metric, such as 9"
        )
        raise ValueError(
            f"a likelihood needs a schedule with finite ends; that of this model has log-SNR {low:g} to {high:g}: {remedy}"
        )
    if not low < start <= high:
        raise ValueError(f"log_snr_max must lie within the schedule's {low:g} to {high:g}, got {start:g}")
    return start


def draw_noise(piece: Piece, index: int, replicate: int, noise: Noise) -> tuple[Tensor, Tensor]:
    """log_snr [B] float64 and eps [B, ...] of one evaluation: functions of the seed of an example, piece and replicate.

    They do not depend on the model or the condition: models and classes are compared with common random numbers.
    """
    u = torch.special.ndtr(noise.of((1,)).normal(index, 2 * replicate).double()[:, 0])
    log_snr = piece.low.to(u) + (piece.high - piece.low).to(u) * u
    return log_snr, noise.normal(index, 2 * replicate + 1)


def squared_error(denoiser: Denoiser, x: Tensor, y: Condition | None, log_snr: Tensor, eps: Tensor) -> Tensor:
    """||eps - eps_hat(alpha x + sigma eps)||^2, [B] float64."""
    alpha, sigma = (scale.to(x) for scale in denoiser.schedule.scales(log_snr, x.ndim))
    t = time_of_log_snr(log_snr, denoiser.schedule, denoiser.levels)
    return (eps - denoiser(alpha * x + sigma * eps, t, y).eps).double().square().flatten(1).sum(1)


@torch.no_grad()
def fit_control(
    fit: GaussianFit,
    denoiser: Denoiser,
    x: Tensor,
    y: Condition | None,
    noise: Noise,
    terms: Sequence[Piece],
    progress: Callable[[float], None] | None = None,
) -> Control:
    """Fits the coefficient of every piece by regression over two draws, on *other* examples than those measured.

    So the estimate stays unbiased, and the estimate of an example does not depend on the other examples.

    Arguments:
        x, y, noise: of the pilot examples, e.g. 64 of the training split.
        progress: called with the fraction of the work done, after every piece.
    """
    coefficients = []
    for index, piece in enumerate(terms):
        draws = [draw_noise(piece, index, replicate, noise) for replicate in (0, 1)]
        first, second = (squared_error(denoiser, x, y, log_snr, eps) for log_snr, eps in draws)
        first_fit, second_fit = (fit.error(x, eps, log_snr) for log_snr, eps in draws)
        control = first_fit - second_fit
        coefficients.append(((first - second) * control).sum() / control.square().sum().clamp(min=1e-12))
        if progress is not None:
            progress((index + 1) / len(terms))
    return Control(fit, torch.stack(coefficients))


def reconstruction(x: Tensor, decoder: Decoder, log_snr: Tensor, samples: Sequence[Tensor]) -> Tensor:
    """-log p(x | z_0 = alpha x + sigma eps) for each eps [B, ...] of the samples, [R, B] float64."""
    if not decoder.quantization_levels:  # the mean of a Gaussian log-density over eps is its value at eps_i^2 = 1
        samples = [torch.ones_like(x)] * len(samples)
    return torch.stack([-decoder.log_prob(x, eps, log_snr).double() for eps in samples])


@torch.no_grad()
def elbo(
    denoiser: Denoiser,
    x: Tensor,
    y: Condition | None,
    decoder: Decoder,
    noise: Noise,
    terms: Sequence[Piece],
    replicates: int,
    draws: int,
    control: Control | None,
    progress: Callable[[float], None] | None = None,
) -> Bound:
    """The bound on -log p(x | y), an unbiased estimate for every example.

    A `Discretized` decoder bounds the probability of discrete data, a `Gaussian` decoder a density. No part of the bound is
    neglected: the decoder accounts for noise below that of z_0, and the prior N(0, sigma_1^2 I), from which samplers start,
    for noise above log_snr_min.

    Arguments:
        x: [B, ...] in [-1, 1], on the device of the denoiser.
        y: condition, None = no row has one.
        decoder: p(x | z_0).
        noise: one seed per example, in the shape and dtype of x.
        terms: from `pieces`; one evaluation each per replicate.
        replicates: independent repetitions, at least 2, for the noise of the estimate.
        draws: of eps for the reconstruction, at least 2; they need no evaluation.
        control: from `fit_control` with the same pieces; None = no control variate.
        progress: called with the fraction of the work done, after every evaluation.

    Raises:
        ValueError: fewer than two replicates or draws, or data that the decoder does not support.
    """
    check_whole("replicates", replicates, 2)
    check_whole("draws", draws, 2)
    decoder.check(x)
    prior = 0.5 * math.exp(terms[0].low) * x.double().square().flatten(1).sum(1)
    decoded = reconstruction(x, decoder, terms[-1].end, [noise.normal(len(terms), k) for k in range(draws)])
    values = prior.new_zeros(replicates, len(terms), len(x))
    for replicate, (index, piece) in itertools.product(range(replicates), enumerate(terms)):
        log_snr, eps = draw_noise(piece, index, replicate, noise)
        value = piece.weight.to(prior) * squared_error(denoiser, x, y, log_snr, eps)
        if control is not None:
            gaussian = piece.weight.to(prior) * control.fit.error(x, eps, log_snr)
            value = value - control.coefficients[index] * (gaussian - piece.gaussian_value(control.fit, x))
        values[replicate, index] = value
        if progress is not None:
            progress((replicate * len(terms) + index + 1) / (replicates * len(terms)))
    mean = values.mean(0)
    variance = values.sum(1).var(0) / replicates + decoded.var(0) / draws
    return Bound(prior, decoded.mean(0), mean.sum(0), variance.sqrt(), mean)
